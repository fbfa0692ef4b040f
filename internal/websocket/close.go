package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Code says in a close frame why a connection is closed (RFC 6455, section 7.4). Applications may use 3000 to 4999.
type Code uint16

// The codes that RFC 6455 and its registry define, as far as a relay has a use for them.
const (
	CloseNormal        Code = 1000
	CloseGoingAway     Code = 1001
	CloseProtocolError Code = 1002
	CloseUnsupported   Code = 1003 // a kind of data that is not accepted
	CloseNoCode        Code = 1005 // never sent: a close frame came without a code
	CloseLost          Code = 1006 // never sent: the connection ended without a close frame
	CloseBadText       Code = 1007 // text that is not UTF-8
	ClosePolicy        Code = 1008
	CloseTooBig        Code = 1009
	CloseInternal      Code = 1011
	CloseTryAgain      Code = 1013
)

// maxReason is how many bytes of a close frame are left for the reason, behind the code.
const maxReason = maxControl - 2

// mayBeSent reports whether a close frame may have this code. 1004, 1005, 1006 and 1015 are reserved, and 1000 to 2999
// are for the registry, which has given out none above 1014.
func (c Code) mayBeSent() bool {
	switch {
	case c == 1004 || c == CloseNoCode || c == CloseLost:
		return false
	default:
		return 1000 <= c && c <= 1014 || 3000 <= c && c <= 4999
	}
}

// A CloseError says that the peer has sent a close frame.
type CloseError struct {
	Code   Code   // CloseNoCode if the frame had none
	Reason string // up to 123 bytes of UTF-8
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("the peer has closed the connection: %d %q", e.Code, e.Reason)
}

// A ProtocolError says that the peer has broken the protocol or a limit. It was sent a close frame with this code and
// reason.
type ProtocolError struct {
	Code   Code // CloseProtocolError, CloseBadText or CloseTooBig
	Reason string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("the peer has broken the protocol: %d %s", e.Code, e.Reason)
}

// Forward returns the code and the reason with which a relay closes one side after the other has ended with err, which
// Next has returned: those of the other side's close frame. If there was no such frame, the code is lost.
func Forward(err error, lost Code) (Code, string) {
	var closed *CloseError
	if errors.As(err, &closed) {
		return closed.Code, closed.Reason
	}
	return lost, ""
}

// parseClose reads the payload of a close frame. The error is a *CloseError if that is valid, else a *ProtocolError.
func parseClose(p []byte) error {
	if len(p) == 0 {
		return &CloseError{Code: CloseNoCode}
	}
	if len(p) == 1 {
		return &ProtocolError{CloseProtocolError, "half a close code"}
	}
	code, reason := Code(binary.BigEndian.Uint16(p)), p[2:]
	if !code.mayBeSent() {
		return &ProtocolError{CloseProtocolError, "a close code that must not be sent"}
	}
	if !utf8.Valid(reason) {
		return &ProtocolError{CloseBadText, "the reason is not UTF-8"}
	}
	return &CloseError{code, string(reason)}
}

// appendClose appends the payload of a close frame to p. With CloseNoCode it is empty; other codes that must not be
// sent become CloseInternal. Of a reason that is too long, or is not UTF-8, as much is kept as may be sent.
func appendClose(p []byte, code Code, reason string) []byte {
	if code == CloseNoCode {
		return p
	}
	if !code.mayBeSent() {
		code = CloseInternal
	}
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if len(reason) > maxReason {
		end := maxReason
		for !utf8.RuneStart(reason[end]) {
			end--
		}
		reason = reason[:end]
	}
	return append(binary.BigEndian.AppendUint16(p, uint16(code)), reason...)
}

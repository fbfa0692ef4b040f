package websocket

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"time"
)

// A HandshakeError says what is wrong with the opening handshake of a client, and how to respond to it.
type HandshakeError struct {
	Status int
	Header http.Header // which belongs to the response
	Reason string
}

func (e *HandshakeError) Error() string { return e.Reason }

// Protocols returns the subprotocols that a client offers, the one it likes best first. They may have secrets in them.
func Protocols(r *http.Request) []string { return list(r.Header, "Sec-WebSocket-Protocol") }

// CheckRequest returns a *HandshakeError if Accept would refuse the request, so that this is known before a server is
// dialled (RFC 6455, section 4.2.1).
func CheckRequest(r *http.Request) error {
	refuse := func(status int, reason string, header ...string) error {
		e := &HandshakeError{Status: status, Header: http.Header{}, Reason: reason}
		for ; len(header) > 0; header = header[2:] {
			e.Header.Set(header[0], header[1])
		}
		if status == http.StatusUpgradeRequired { // RFC 9110, section 15.5.22
			e.Header.Set("Upgrade", "websocket")
			e.Header.Set("Connection", "Upgrade")
		}
		return e
	}
	if r.Method != http.MethodGet {
		return refuse(http.StatusMethodNotAllowed, "a WebSocket is opened with GET", "Allow", http.MethodGet)
	}
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || !isUpgrade(r.Header) {
		return refuse(http.StatusUpgradeRequired, "the request does not ask for an upgrade to a WebSocket on HTTP/1.1")
	}
	if v, ok := only(r.Header, "Sec-WebSocket-Version"); !ok || v != version {
		return refuse(http.StatusUpgradeRequired, "the WebSocket's version is not 13", "Sec-WebSocket-Version", version)
	}
	if !hasKey(r.Header) {
		return refuse(http.StatusBadRequest, "Sec-WebSocket-Key is not 16 bytes in base64")
	}
	if r.ContentLength != 0 {
		return refuse(http.StatusBadRequest, "the request has a body")
	}
	if !areProtocols(Protocols(r)) {
		return refuse(http.StatusBadRequest, "Sec-WebSocket-Protocol is not a list of different tokens")
	}
	return nil
}

// hasKey reports whether a header has the key of a client.
func hasKey(h http.Header) bool {
	key, ok := only(h, "Sec-WebSocket-Key")
	nonce, err := base64.StdEncoding.DecodeString(key)
	return ok && err == nil && len(nonce) == 16
}

// areProtocols reports whether a client may offer these subprotocols.
func areProtocols(offered []string) bool {
	for i, p := range offered {
		if !isToken(p) || slices.Contains(offered[:i], p) {
			return false
		}
	}
	return true
}

// Accept opens a WebSocket for a client, and takes its connection from the HTTP server. protocol is the subprotocol for
// the answer, one that the client has offered, or "" for none. Extensions are never agreed to. header, which may be
// nil, is sent along.
//
// The error is that of CheckRequest, after which the caller responds, or else the connection is lost. A handler
// that returns when it has the Conn frees some 15 KB that net/http keeps for it.
func (s *Side) Accept(w http.ResponseWriter, r *http.Request, protocol string, header http.Header) (*Conn, error) {
	if err := CheckRequest(r); err != nil {
		return nil, err
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if n := buffered.Reader.Buffered(); n > 0 { // frames that came right behind the request
		early, _ := buffered.Peek(n)
		conn = &upgraded{conn, io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)}
	}
	response := bytes.NewBufferString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
	key, _ := only(r.Header, "Sec-WebSocket-Key")
	answer := http.Header{"Sec-Websocket-Accept": {acceptKey(key)}}
	if protocol != "" {
		answer.Set("Sec-WebSocket-Protocol", protocol)
	}
	_ = header.Write(response)
	_ = answer.Write(response)
	response.WriteString("\r\n")
	err = conn.SetWriteDeadline(time.Now().Add(s.writeTimeout())) // Hijack has cleared the server's
	if err == nil {
		_, err = conn.Write(response.Bytes())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s.newConn(conn, true, protocol), nil
}

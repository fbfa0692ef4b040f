package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"unicode/utf8"

	"tollgate/internal/websockettest"
)

// fuzzMaxMessage is the longest message in FuzzFrames.
const fuzzMaxMessage = MaxPart + 100

// reference reads frames the plain way: all is there, and nothing is fast. It returns what comes out, with the messages
// that are complete, and the code of the close frame that is to be sent, CloseLost if none is.
func reference(p []byte, isServer bool) (messages, pongs []string, code Code) {
	var message []byte
	var kind byte
	for {
		if len(p) < 2 {
			return messages, pongs, CloseLost
		}
		op, fin, masked, length := p[0]&15, p[0] >= 128, p[1] >= 128, uint64(p[1]&127)
		isControl := op >= 8
		if p[0]&0x70 != 0 || op > 10 || op > 2 && op < 8 || masked != isServer ||
			isControl && (!fin || length > 125) || !isControl && (op == 0) != (kind != 0) {
			return messages, pongs, CloseProtocolError
		}
		size := map[uint64]int{126: 2, 127: 8}[length]
		head := 2 + size
		if masked {
			head += 4
		}
		if len(p) < head {
			return messages, pongs, CloseLost
		}
		if size > 0 {
			length = binary.BigEndian.Uint64(append(make([]byte, 8-size), p[2:2+size]...))
			if length < map[int]uint64{2: 126, 8: 65536}[size] {
				return messages, pongs, CloseProtocolError
			}
		}
		if !isControl && length > fuzzMaxMessage-uint64(len(message)) {
			return messages, pongs, CloseTooBig
		}
		payload := append([]byte(nil), p[head:min(uint64(head)+length, uint64(len(p)))]...)
		for i := range payload {
			if masked {
				payload[i] ^= p[head-4+i%4]
			}
		}
		isCut := uint64(len(payload)) < length
		if isControl {
			switch {
			case isCut:
				return messages, pongs, CloseLost
			case op == 8 && length == 0:
				return messages, pongs, CloseNoCode
			case op == 8 && (length == 1 || !Code(binary.BigEndian.Uint16(payload)).mayBeSent()):
				return messages, pongs, CloseProtocolError
			case op == 8 && !utf8.Valid(payload[2:]):
				return messages, pongs, CloseBadText
			case op == 8:
				return messages, pongs, Code(binary.BigEndian.Uint16(payload))
			case op == 9:
				pongs = append(pongs, string(payload))
			}
			p = p[head+len(payload):]
			continue
		}
		if op != 0 {
			kind = op
		}
		if isCut { // what was passed on of it is whole parts
			payload = payload[:len(payload)/MaxPart*MaxPart]
		}
		message = append(message, payload...)
		if kind == 1 && !isPrefix(message) || kind == 1 && fin && !isCut && !utf8.Valid(message) {
			return messages, pongs, CloseBadText
		}
		if isCut {
			return messages, pongs, CloseLost
		}
		p = p[head+len(payload):]
		if fin {
			messages = append(messages, fmt.Sprintf("%d %q", kind, message))
			message, kind = nil, 0
		}
	}
}

// isPrefix reports whether p can be the beginning of a text in UTF-8.
func isPrefix(p []byte) bool {
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		if r == utf8.RuneError && size == 1 {
			return !utf8.FullRune(p)
		}
		p = p[size:]
	}
	return true
}

// observe returns what a Conn makes of p, in the terms of reference.
func observe(t *testing.T, p []byte, isServer bool, piece int) (messages, pongs []string, code Code) {
	t.Helper()
	s := &script{say: p, piece: piece}
	c := (&Side{MaxMessage: fuzzMaxMessage}).newConn(s, isServer, "")
	var message []byte
	isOpen := false
	for {
		part, err := c.Next()
		if err != nil {
			code = CloseLost
			var broken *ProtocolError
			var closed *CloseError
			switch {
			case errors.As(err, &broken):
				code = broken.Code
			case errors.As(err, &closed):
				code = closed.Code
			case !errors.Is(err, io.EOF):
				t.Errorf("got %v", err)
			}
			break
		}
		if part.First == isOpen || len(part.Data) > MaxPart {
			t.Fatalf("a part of %d bytes with First %t, within a message: %t", len(part.Data), part.First, isOpen)
		}
		isOpen = !part.Last
		if message = append(message, part.Data...); part.Last {
			messages = append(messages, fmt.Sprintf("%d %q", part.Kind, message))
			message = nil
		}
	}
	sent := CloseLost
	for s.heard.Len() > 0 {
		w, err := websockettest.Read(&s.heard, !isServer)
		switch {
		case err != nil:
			t.Fatal(err)
		case w.First == 0x8a:
			pongs = append(pongs, w.Payload)
		case w.First == 0x88 && len(w.Payload) == 0:
			sent = CloseNoCode
		case w.First == 0x88:
			sent = Code(binary.BigEndian.Uint16([]byte(w.Payload)))
		default:
			t.Fatalf("it sends %s", w)
		}
	}
	if sent != code {
		t.Errorf("it sends code %d, want %d", sent, code)
	}
	return messages, pongs, code
}

// Whatever comes, in whatever pieces, a Conn makes of it what a plain reader makes of the whole.
func FuzzFrames(f *testing.F) {
	for _, test := range conformanceCases {
		for _, isServer := range []bool{true, false} {
			if p := websockettest.EncodeAll(test.frames, isServer); len(p) < 2*MaxPart { // longer ones take long to minimize
				f.Add(p, isServer, uint16(len(test.name)))
			}
		}
	}
	for _, size := range []int{smallSize, MaxPart, MaxPart + 1, fuzzMaxMessage, fuzzMaxMessage + 1} {
		f.Add(websockettest.EncodeAll([]wire{text("a"), {First: 0x82, Payload: string(make([]byte, size))}, bye}, false), false, uint16(1000))
	}
	third := wire{Payload: string(make([]byte, fuzzMaxMessage/3))}
	f.Add(websockettest.EncodeAll([]wire{begin(third.Payload), third, third, more("x"), more("y"), more("z")}, true), true, uint16(1000))
	f.Fuzz(func(t *testing.T, p []byte, isServer bool, piece uint16) {
		messages, pongs, code := reference(p, isServer)
		want := fmt.Sprint(messages, pongs, code)
		for _, piece := range []int{max(int(piece), 1), 1 << 20} {
			messages, pongs, code := observe(t, append([]byte(nil), p...), isServer, piece)
			if got := fmt.Sprint(messages, pongs, code); got != want {
				t.Errorf("in pieces of %d: got %.1000s, want %.1000s", piece, got, want)
			}
		}
	})
}

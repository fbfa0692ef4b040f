// Package websockettest reads and writes WebSocket frames of any kind, such as no peer may send. It shares no code with
// internal/websocket, which it is to test.
package websockettest

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"
)

// What the bits of the first two bytes of a frame mean (RFC 6455, section 5.2).
const (
	finBit     = 0x80
	opcodeBits = 0x0f
	maskBit    = 0x80
	lengthBits = 0x7f

	maxControl = 125 // bytes of payload

	Length16 = 126 // a Form
	Length64 = 127 // a Form
)

// A Frame is a frame as a peer of any kind may write it.
type Frame struct {
	First   byte // fin, reserved bits, opcode
	Payload string
	Form    byte   // Length16 or Length64, though a shorter one would do
	Claims  uint64 // a length that is not the payload's
	Flip    bool   // masked if it must not be, and the other way round
}

// Close returns a close frame with a code and a reason.
func Close(code uint16, reason string) Frame {
	return Frame{First: 0x88, Payload: string(binary.BigEndian.AppendUint16(nil, code)) + reason}
}

// Encode returns the bytes of the frame.
func (w Frame) Encode(masked bool) []byte {
	length := max(uint64(len(w.Payload)), w.Claims)
	p := []byte{w.First, 0}
	switch {
	case w.Form == Length64 || length > math.MaxUint16:
		p[1] = Length64
		p = binary.BigEndian.AppendUint64(p, length)
	case w.Form == Length16 || length > maxControl:
		p[1] = Length16
		p = binary.BigEndian.AppendUint16(p, uint16(length))
	default:
		p[1] = byte(length)
	}
	if masked == w.Flip {
		return append(p, w.Payload...)
	}
	p[1] |= maskBit
	key := []byte{0x37, 0xfa, 0x21, 0x3d}
	p = append(p, key...)
	return append(p, xor([]byte(w.Payload), key)...)
}

// xor masks p in place, in another way than internal/websocket does.
func xor(p, key []byte) []byte {
	subtle.XORBytes(p, p, bytes.Repeat(key, len(p)/len(key)+1))
	return p
}

// EncodeAll returns the bytes of several frames.
func EncodeAll(frames []Frame, masked bool) (p []byte) {
	for _, w := range frames {
		p = append(p, w.Encode(masked)...)
	}
	return p
}

// Read reads a frame that must be masked, or must not be, and must use the shortest length.
func Read(r io.Reader, masked bool) (Frame, error) {
	h, err := readHeader(r, masked)
	if err != nil {
		return Frame{}, err
	}
	return h.readPayload(r)
}

// A header is what comes before the payload of a frame.
type header struct {
	first  byte
	length uint64
	key    []byte // of the mask; 0 without one
}

func readHeader(r io.Reader, masked bool) (header, error) {
	start := make([]byte, 2)
	if _, err := io.ReadFull(r, start); err != nil {
		return header{}, err
	}
	if got := start[1]&maskBit != 0; got != masked {
		return header{}, fmt.Errorf("a frame has masked %t, want %t", got, masked)
	}
	h, least := header{start[0], uint64(start[1] & lengthBits), make([]byte, 4)}, uint64(0)
	if size := map[uint64]int{Length16: 2, Length64: 8}[h.length]; size > 0 {
		p := make([]byte, 8)
		if _, err := io.ReadFull(r, p[8-size:]); err != nil {
			return header{}, err
		}
		h.length, least = binary.BigEndian.Uint64(p), map[int]uint64{2: maxControl + 1, 8: 1 << 16}[size]
	}
	if h.length < least {
		return header{}, fmt.Errorf("the length %d is not in its shortest form", h.length)
	}
	if masked {
		if _, err := io.ReadFull(r, h.key); err != nil {
			return header{}, err
		}
	}
	return h, nil
}

func (h header) readPayload(r io.Reader) (Frame, error) {
	payload := make([]byte, h.length)
	_, err := io.ReadFull(r, payload)
	return Frame{First: h.first, Payload: string(xor(payload, h.key))}, err
}

// String shows a frame: T for text, B for binary, C for a continuation, P and Q for ping and pong, in lower case if it
// is not the last of its message; X and the code for a close.
func (w Frame) String() string {
	if w.First == 0x88 {
		if len(w.Payload) < 2 {
			return fmt.Sprintf("X%q", w.Payload)
		}
		return fmt.Sprintf("X%d%q", binary.BigEndian.Uint16([]byte(w.Payload)), w.Payload[2:])
	}
	letter := string("ctb?????xpq?????"[w.First&opcodeBits])
	if w.First&finBit != 0 {
		letter = strings.ToUpper(letter)
	}
	if len(w.Payload) > 200 {
		return fmt.Sprintf("%s(%d)", letter, len(w.Payload))
	}
	return letter + fmt.Sprintf("%q", w.Payload)
}

// Show returns frames as text.
func Show(frames []Frame) string {
	var all []string
	for _, w := range frames {
		all = append(all, w.String())
	}
	return strings.Join(all, " ")
}

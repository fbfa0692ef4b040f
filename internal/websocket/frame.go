package websocket

import (
	"encoding/binary"
	"math/bits"
)

// The opcodes of frames (RFC 6455, section 5.2). Those of data frames that begin a message are Text and Binary.
const (
	opContinuation = 0x0
	opClose        = 0x8 // this and above are control frames
	opPing         = 0x9
	opPong         = 0xa
)

// The bits of the first two bytes of a frame.
const (
	finBit     = 0x80
	rsvBits    = 0x70
	opcodeBits = 0x0f
	maskBit    = 0x80
	lengthBits = 0x7f
)

const (
	maxHeader  = 14  // bytes: 2, 8 of length, 4 of mask
	maxControl = 125 // bytes of a control frame's payload; also the longest length that the second byte can say
	length16   = 126 // means that two bytes of length follow
	length64   = 127 // means that eight do
)

// A header is what stands before the payload of a frame.
type header struct {
	opcode byte
	fin    bool
	rsv    bool // a reserved bit is set
	masked bool
	short  byte   // the length in the second byte: up to maxControl, length16 or length64
	length uint64 // of the payload
	key    uint32 // the mask, first byte lowest
}

// parseStart reads the first two bytes of a header. The rest takes more bytes, as many as rest says.
func parseStart(first, second byte) header {
	return header{
		opcode: first & opcodeBits, fin: first&finBit != 0, rsv: first&rsvBits != 0,
		masked: second&maskBit != 0, short: second & lengthBits, length: uint64(second & lengthBits),
	}
}

// rest returns how many bytes of the header follow the first two.
func (h *header) rest() int {
	n := 0
	switch h.short {
	case length16:
		n = 2
	case length64:
		n = 8
	}
	if h.masked {
		n += 4
	}
	return n
}

// parseRest reads the bytes that follow the first two.
func (h *header) parseRest(p []byte) {
	switch h.short {
	case length16:
		h.length = uint64(binary.BigEndian.Uint16(p))
		p = p[2:]
	case length64:
		h.length = binary.BigEndian.Uint64(p)
		p = p[8:]
	}
	if h.masked {
		h.key = binary.LittleEndian.Uint32(p)
	}
}

// isControl reports whether the frame is a close, a ping or a pong, or would be if its opcode were not reserved.
func (h *header) isControl() bool { return h.opcode >= opClose }

// problem returns how the first two bytes break the protocol, "" if they do not. wantMask says whether the peer is a
// client, and inMessage whether a message has begun whose last frame has not come.
func (h *header) problem(wantMask, inMessage bool) string {
	switch isContinuation := h.opcode == opContinuation; {
	case h.rsv:
		return "a reserved bit is set"
	case h.opcode > byte(Binary) && !h.isControl() || h.opcode > opPong:
		return "the opcode is reserved"
	case h.masked != wantMask:
		return "a client must mask, and a server must not"
	case h.isControl() && !h.fin:
		return "a control frame is fragmented"
	case h.isControl() && h.short > maxControl:
		return "a control frame is too long"
	case !h.isControl() && isContinuation != inMessage:
		return "a message begins within another, or none has begun"
	}
	return ""
}

// isMinimal reports whether the length is written with the fewest bytes that can say it, as section 5.2 demands.
func (h *header) isMinimal() bool {
	return h.short != length16 && h.short != length64 ||
		h.short == length16 && h.length > maxControl || h.length > 0xffff
}

// put writes the header to p, which has maxHeader bytes, and returns how many it took. It ignores rsv and short.
func (h *header) put(p []byte) int {
	p[0], p[1] = h.opcode, 0
	if h.fin {
		p[0] |= finBit
	}
	n := 2
	switch {
	case h.length <= maxControl:
		p[1] = byte(h.length)
	case h.length <= 0xffff:
		p[1] = length16
		binary.BigEndian.PutUint16(p[n:], uint16(h.length))
		n += 2
	default:
		p[1] = length64
		binary.BigEndian.PutUint64(p[n:], h.length)
		n += 8
	}
	if h.masked {
		p[1] |= maskBit
		binary.LittleEndian.PutUint32(p[n:], h.key)
		n += 4
	}
	return n
}

// mask masks or unmasks src to dst, which may be src itself. It returns the key as it is for the byte after these, so
// that a payload can be masked in parts.
func mask(dst, src []byte, key uint32) uint32 {
	wide := uint64(key)<<32 | uint64(key)
	for len(src) >= 32 && len(dst) >= 32 { // the second comparison saves the compiler one for each of these lines
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^wide)
		binary.LittleEndian.PutUint64(dst[8:], binary.LittleEndian.Uint64(src[8:])^wide)
		binary.LittleEndian.PutUint64(dst[16:], binary.LittleEndian.Uint64(src[16:])^wide)
		binary.LittleEndian.PutUint64(dst[24:], binary.LittleEndian.Uint64(src[24:])^wide)
		dst, src = dst[32:], src[32:]
	}
	for len(src) >= 8 {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^wide)
		dst, src = dst[8:], src[8:]
	}
	for i, b := range src {
		dst[i] = b ^ byte(key)
		key = bits.RotateLeft32(key, -8)
	}
	return key
}

package strict

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A Scanner reads JSON (RFC 8259) in one pass, without allocating. It accepts what encoding/json accepts, and does not
// check that strings are valid UTF-8 either. If a method fails, At is near the first byte that is wrong.
type Scanner struct {
	Data []byte // what is read; it is never changed
	At   int    // index of the byte of Data that is read next; len(Data) at the end

	// Escapes is by how many bytes the escapes in the strings that were read are longer than what they spell.
	Escapes int
}

// Peek moves to the next byte that is not white space and returns it, or 0 at the end.
func (s *Scanner) Peek() byte {
	if s.At < len(s.Data) && s.Data[s.At] > ' ' { // mostly, and the compiler inlines it
		return s.Data[s.At]
	}
	return s.skipSpace()
}

// skipSpace does what Peek does.
func (s *Scanner) skipSpace() byte {
	for ; s.At < len(s.Data); s.At++ {
		switch c := s.Data[s.At]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// Name reads the name of a member and the colon. It returns the name's spelling, quotes included, which shares the
// memory of Data. It returns nil if there is no valid name.
func (s *Scanner) Name() []byte {
	if s.Peek() != '"' {
		return nil
	}
	from := s.At
	if !s.string() {
		return nil
	}
	name := s.Data[from:s.At]
	if s.Peek() != ':' {
		return nil
	}
	s.At++
	return name
}

// Value reads a value and reports whether it is valid and at most levels deep. Scalars and empty containers are one
// level deep, other containers one more than what is in them. It does not check what follows.
func (s *Scanner) Value(levels int) bool {
	switch c := s.Peek(); {
	case levels <= 0:
		return false
	case c == '{' || c == '[':
		return s.container(c+2, levels-1) // in ASCII, { and [ are two before } and ]
	case c == '"':
		return s.string()
	}
	return s.scalar()
}

// container reads an object or array that ends with end.
func (s *Scanner) container(end byte, levels int) bool {
	s.At++
	if s.Peek() == end {
		s.At++
		return true
	}
	for {
		if end == '}' && s.Name() == nil || !s.Value(levels) {
			return false
		}
		switch s.Peek() {
		case ',':
			s.At++
		case end:
			s.At++
			return true
		default:
			return false
		}
	}
}

// isPlain has the bytes that stand for themselves in a string, among them those of UTF-8, which is not checked.
var isPlain = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return set
}()

const wordBytes = 8

// plainBytes returns how many of the bytes of a word, the lowest first, isPlain has before one that it has not. A
// subtraction borrows into the highest bit of a byte that was too small, and from the bytes above it only.
func plainBytes(word uint64) int {
	const ones, highest = 0x0101010101010101, 0x8080808080808080
	quote, escape := word^ones*'"', word^ones*'\\'
	special := (word-ones*' ')&^word | (quote-ones)&^quote | (escape-ones)&^escape
	return bits.TrailingZeros64(special&highest) / 8
}

// PlainBytes returns how many bytes at the start of text stand for themselves in a string.
func PlainBytes(text []byte) (n int) {
	for len(text)-n >= wordBytes {
		plain := plainBytes(binary.LittleEndian.Uint64(text[n:]))
		if n += plain; plain < wordBytes {
			return n
		}
	}
	for n < len(text) && isPlain[text[n]] {
		n++
	}
	return n
}

// string reads a string.
func (s *Scanner) string() bool {
	data := s.Data
	for at := s.At + 1; at < len(data); at++ {
		if isPlain[data[at]] {
			if len(data)-at < wordBytes {
				continue
			}
			n := plainBytes(binary.LittleEndian.Uint64(data[at:]))
			if n == wordBytes {
				at += n - 1
				continue
			}
			at += n
		}
		s.At = at
		switch data[at] {
		case '"':
			s.At++
			return true
		case '\\':
			if !s.escape() {
				return false
			}
			at = s.At
		default: // a control character
			return false
		}
	}
	s.At = len(data)
	return false
}

// isEscape has the bytes that stand for one byte after a backslash.
var isEscape = func() (set [256]bool) {
	for _, c := range []byte(`"\/bfnrt`) {
		set[c] = true
	}
	return set
}()

// escape moves from the backslash of an escape to its last byte.
func (s *Scanner) escape() bool {
	if s.At++; s.At == len(s.Data) {
		return false
	}
	if s.Data[s.At] != 'u' {
		s.Escapes++
		return isEscape[s.Data[s.At]]
	}
	if len(s.Data)-s.At <= 4 {
		return false
	}
	unit, err := strconv.ParseUint(string(s.Data[s.At+1:s.At+5]), 16, 16)
	s.At += 4
	switch { // in UTF-8
	case unit < 0x80:
		s.Escapes += 5
	case unit < 0x800, utf16.IsSurrogate(rune(unit)): // of which two are four bytes
		s.Escapes += 4
	default:
		s.Escapes += 3
	}
	return err == nil
}

// scalar reads a number, true, false or null.
func (s *Scanner) scalar() bool {
	word := ""
	switch s.Peek() {
	case 'n':
		word = "null"
	case 't':
		word = "true"
	case 'f':
		word = "false"
	default:
		return s.number()
	}
	if !bytes.HasPrefix(s.Data[s.At:], []byte(word)) {
		return false
	}
	s.At += len(word)
	return true
}

// number reads a number.
func (s *Scanner) number() bool {
	s.accept("-")
	ok := s.accept("0") || s.digits()
	if ok && s.accept(".") {
		ok = s.digits()
	}
	if ok && s.accept("eE") {
		s.accept("+-")
		ok = s.digits()
	}
	return ok
}

// digits reads one digit or more.
func (s *Scanner) digits() bool {
	from := s.At
	for s.At < len(s.Data) && '0' <= s.Data[s.At] && s.Data[s.At] <= '9' {
		s.At++
	}
	return s.At > from
}

// accept moves over the next byte if it is one of set.
func (s *Scanner) accept(set string) bool {
	ok := s.At < len(s.Data) && strings.IndexByte(set, s.Data[s.At]) >= 0
	if ok {
		s.At++
	}
	return ok
}

// children returns the values in a valid object or array, in order, each after the spelling of its name, which is nil
// in an array. Both share the memory of container.
func children(container []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		s := Scanner{Data: container, At: 1}
		end := container[0] + 2
		for s.Peek() != end {
			var name []byte
			if end == '}' {
				name = s.Name()
			}
			s.Peek()
			from := s.At
			if !s.Value(math.MaxInt) || !yield(name, container[from:s.At]) {
				return
			}
			if s.Peek() == ',' {
				s.At++
			}
		}
	}
}

// AppendUnquoted appends what a valid JSON string spells to dst. Half of a surrogate pair, which UTF-8 cannot
// represent, becomes U+FFFD, and ok is false.
func AppendUnquoted(dst, spelling []byte) (text []byte, ok bool) {
	rest := spelling[1 : len(spelling)-1]
	for ok = true; ; {
		at := bytes.IndexByte(rest, '\\')
		if at < 0 {
			return append(dst, rest...), ok
		}
		dst = append(dst, rest[:at]...)
		rest = rest[at:]
		r, size := escapedUnit(rest), len(`\n`)
		switch {
		case utf16.IsSurrogate(r):
			size = len(`\ud83d\ude00`)
			if r = utf16.DecodeRune(r, escapedUnit(rest[size/2:])); r == utf8.RuneError {
				size, ok = size/2, false
			}
		case r >= 0:
			size = len(`\u0000`)
		default:
			r = rune(rest[1])
			if control := strings.IndexByte("bfnrt", rest[1]); control >= 0 {
				r = rune("\b\f\n\r\t"[control])
			}
		}
		dst = utf8.AppendRune(dst, r)
		rest = rest[size:]
	}
}

// escapedUnit returns the UTF-16 code unit of the \u escape that spelling starts with, or -1 if it starts with none.
func escapedUnit(spelling []byte) rune {
	if !bytes.HasPrefix(spelling, []byte(`\u`)) {
		return -1
	}
	unit, _ := strconv.ParseUint(string(spelling[2:6]), 16, 16)
	return rune(unit)
}

package websocket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// A payload is masked the same way however it is cut into parts and wherever it lies in memory.
func TestMask(t *testing.T) {
	key := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	src := make([]byte, 150)
	for i := range src {
		src[i] = byte(i * 7)
	}
	for from := range 9 {
		for size := range len(src) - from {
			for _, cut := range []int{0, 1, 2, 3, 5, 8, 33, size} {
				cut = min(cut, size)
				p, want := src[from:from+size], make([]byte, size)
				for i := range p {
					want[i] = p[i] ^ key[i%4]
				}
				got := make([]byte, size+1)
				rest := mask(got, p[:cut], binary.LittleEndian.Uint32(key[:]))
				mask(got[cut:], p[cut:], rest)
				if !bytes.Equal(got[:size], want) || got[size] != 0 {
					t.Fatalf("%d bytes from %d, cut at %d: got %x, want %x", size, from, cut, got, want)
				}
				mask(got, got[:size], binary.LittleEndian.Uint32(key[:])) // in place
				if !bytes.Equal(got[:size], p) {
					t.Fatalf("unmasked: got %x, want %x", got, p)
				}
			}
		}
	}
}

// A header that was put is parsed to the same.
func TestHeader(t *testing.T) {
	for _, length := range []uint64{0, 1, 125, 126, 127, 65535, 65536, 16 << 20, 1<<64 - 1} {
		for _, masked := range []bool{false, true} {
			want := header{opcode: opContinuation, fin: length%2 == 0, masked: masked, length: length}
			if masked {
				want.key = 0x3d21fa37
			}
			var p [maxHeader]byte
			n := want.put(p[:])
			got := parseStart(p[0], p[1])
			if rest := got.rest(); rest != n-2 {
				t.Errorf("%+v: %d bytes, want %d", want, rest+2, n)
			}
			if got.parseRest(p[2:n]); !got.isMinimal() {
				t.Errorf("%x is not minimal", p[:n])
			}
			got.short = 0
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	}
}

// A text is valid as a whole if it is in parts, wherever they end, and found invalid at the first byte that is wrong.
func TestTextCheck(t *testing.T) {
	check := func(text []byte, cuts ...int) {
		t.Helper()
		var c textCheck
		for i, cut := range cuts {
			from := 0
			if i > 0 {
				from = cuts[i-1]
			}
			got, want := c.add(text[from:cut]), isPrefix(text[:cut])
			if got != want {
				t.Fatalf("%q up to %d of %v: got %t, want %t", text, cut, cuts, got, want)
			}
			if !got {
				return
			}
		}
		if got, want := c.isComplete(), utf8.Valid(text); got != want {
			t.Fatalf("%q cut at %v: complete: got %t, want %t", text, cuts, got, want)
		}
	}
	alphabet := []string{"a", "é", "€", "\U0001f600", "\xff", "\xc0", "\xe2", "\x82", "\xed", "\xa0", "\xf0", "\xf4", "\x90", "\x80"}
	for _, a := range alphabet {
		for _, b := range alphabet {
			for _, c := range alphabet {
				for _, d := range alphabet {
					text := []byte(a + b + c + d)
					one := len(a) + len(b)/2
					check(text, len(text))
					check(text, one, len(text))
					check(text, 1, one, one, len(text)-1, len(text))
				}
			}
		}
	}
	check(nil, 0, 0)
}

var closeCodes = []struct {
	from, to Code
	valid    bool
}{
	{0, 999, false}, {1000, 1003, true}, {1004, 1006, false}, {1007, 1014, true}, {1015, 2999, false},
	{3000, 4999, true}, {5000, 65535, false},
}

// Only codes that may be sent are accepted, and sent.
func TestCloseCodes(t *testing.T) {
	seen := 0
	for _, row := range closeCodes {
		for code := int(row.from); code <= int(row.to); code++ {
			seen++
			var want error = &ProtocolError{CloseProtocolError, "a close code that must not be sent"}
			sent := CloseInternal
			if row.valid {
				want, sent = &CloseError{Code(code), "é"}, Code(code)
			}
			if got := parseClose([]byte(closeFrame(Code(code), "é").Payload)); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%d: got %v, want %v", code, got, want)
			}
			payload := closeFrame(sent, "é").Payload
			if code == int(CloseNoCode) {
				payload = ""
			}
			if got := appendClose(nil, Code(code), "é"); string(got) != payload {
				t.Errorf("%d is sent as %q, want %q", code, got, payload)
			}
		}
	}
	if seen != 1<<16 {
		t.Errorf("%d codes", seen)
	}
}

// A reason is valid UTF-8 of at most 123 bytes.
func TestCloseReason(t *testing.T) {
	for _, test := range []struct{ reason, want string }{
		{"", ""},
		{"a\xffb", "a\uFFFDb"},
		{strings.Repeat("a", 123), strings.Repeat("a", 123)},
		{strings.Repeat("a", 124), strings.Repeat("a", 123)},
		{strings.Repeat("a", 122) + "é", strings.Repeat("a", 122)},
		{strings.Repeat("a", 121) + "é", strings.Repeat("a", 121) + "é"},
		{strings.Repeat("a", 120) + "\U0001f600", strings.Repeat("a", 120)},
		{strings.Repeat("a", 1000), strings.Repeat("a", 123)},
		{strings.Repeat("\xff ", 100), strings.Repeat("\uFFFD ", 30) + "\uFFFD"},
	} {
		got := appendClose(nil, CloseNormal, test.reason)
		if string(got[2:]) != test.want {
			t.Errorf("%q: got %q, want %q", test.reason, got[2:], test.want)
		}
		if err := parseClose(got); err.Error() != (&CloseError{CloseNormal, test.want}).Error() {
			t.Errorf("%q: %v", test.reason, err)
		}
	}
}

// Masks differ from frame to frame.
func TestKeys(t *testing.T) {
	seen := make(map[uint32]bool)
	for range 1000 {
		seen[newKey()] = true
	}
	if len(seen) < 990 {
		t.Errorf("%d different keys of 1000", len(seen))
	}
}

func BenchmarkMask(b *testing.B) {
	for _, size := range []int{16, 1024, MaxPart} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := make([]byte, size+3)
			key := rand.Uint32()
			b.SetBytes(int64(size))
			for b.Loop() {
				key = mask(p[3:], p[3:], key) // not aligned
			}
		})
	}
}

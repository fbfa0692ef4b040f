package strict

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

func TestScannerLevels(t *testing.T) {
	for _, test := range []struct {
		document string
		levels   int // the least that it needs
	}{
		{`1`, 1}, {` "[[" `, 1}, {`[]`, 1}, {`{ }`, 1}, {`[null]`, 2}, {`{"a":[],"b":1}`, 2}, {`[[],[{"a":{}}]]`, 4},
		{strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), 10_000},
	} {
		for _, levels := range []int{0, test.levels - 1, test.levels, test.levels + 1} {
			s := Scanner{Data: []byte(test.document)}
			if got, want := s.Value(levels), levels >= test.levels; got != want {
				t.Fatalf("%.20s with %d levels: got %t", test.document, levels, got)
			}
		}
	}
}

// The scanner reads without allocating.
func TestScannerAllocations(t *testing.T) {
	document := []byte(` {"a\u0061\n": [ -1.5e+7, true, {"b": "\ud83d\ude00"} ] , "c": {} } `)
	if n := testing.AllocsPerRun(10, func() {
		if s := (Scanner{Data: document}); !s.Value(5) || s.Peek() != 0 || s.At != len(document) {
			t.Fatal("the document was not read")
		}
	}); n > 0 {
		t.Errorf("it makes %v allocations", n)
	}
}

// A string ends at its quote, and not at what the bytes before or after it spell, wherever it stands.
func TestScannerStrings(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			content := []byte(strings.Repeat("a", 20))
			content[at] = byte(c)
			document := slices.Concat([]byte(`"`), content, []byte(`"!aaaaaaaaaaaaaaaaaaaa`))
			s := Scanner{Data: document}
			valid, end := s.Value(1), 22
			if c == '"' {
				end = at + 2
			}
			if want := c >= ' ' && c != '\\' || c == '"'; valid != want || valid && s.At != end {
				t.Fatalf("%q: %v, read to %d, want %v, %d", document, valid, s.At, want, end)
			}
		}
	}
}

// Escapes are counted in bytes of UTF-8.
func TestScannerEscapes(t *testing.T) {
	for _, document := range []string{
		`"plain"`, `"\"\\\/\b\f\n\r\t"`, `"\u0041\u00e4\u20ac\ud83d\ude00"`, `["\n",{"\u007f":"\u0080 \u07ff \u0800 \uffff"}]`,
	} {
		s := Scanner{Data: []byte(document)}
		if !s.Value(10) {
			t.Fatal(document)
		}
		text := regexp.MustCompile(`"(\\.|[^"\\])*"`).ReplaceAllStringFunc(document, func(spelling string) string {
			unquoted, _ := AppendUnquoted(nil, []byte(spelling))
			return `"` + string(unquoted) + `"`
		})
		if want := len(document) - len(text); s.Escapes != want {
			t.Errorf("%s: %d bytes of escapes, want %d", document, s.Escapes, want)
		}
	}
}

// The scanner accepts what encoding/json accepts, and finds the same names and values in it.
func FuzzScanner(f *testing.F) {
	for _, document := range []string{
		``, ` `, `0`, `-0`, `01`, `-`, `1.`, `.5`, `1.5e+7`, `1e`, `true`, `tru`, `nullx`, `"`, `"\u00e9\n"`, `"\x"`, `"\u12"`,
		"\"\x00\"", "\"\x7f\xff\"", `"\u+123"`, `"\u12_4"`, `[`, `[]`, `[,]`, `[1,]`, `[1 2]`, `{`, `{}`, `{"a"}`, `{"a":}`,
		`{"a":1,}`, `{"a":1 "b":2}`, `{1:2}`, `{"a":[{"b":[]}]}`, `1 1`, `[1]]`, `{"a":1}x`, `"a"b`, `[tru"e"]`, "[1\x00]",
		`{"\u0061\n":1,"\ud83d\ude00\ud800\ud800\u0061":[{"a":[2]}],"\/\b":{}}`, `[ -1 , {"a" : "]"} , "\\" ]`,
		`[1:2]`, `{"a":1:2}`, `{"a","b"}`, "\ufeff1", `"\`, `"\u`, `[1}`, `{"a":1]`, `"\ud800"`, `{ "":{} , "":[] }`,
	} {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if bytes.Count(document, []byte("["))+bytes.Count(document, []byte("{")) > 10_000 { // encoding/json gives up then
			return
		}
		s := Scanner{Data: document}
		if valid := s.Value(len(document)+1) && s.Peek() == 0 && s.At == len(document); valid != json.Valid(document) {
			t.Fatalf("%q: got %t", document, valid)
		} else if !valid {
			return
		}
		value := bytes.Trim(document, " \t\n\r")
		switch value[0] {
		case '[', '{':
			checkChildren(t, value)
		case '"':
			if utf8.Valid(value) {
				checkString(t, value)
			}
		}
	})
}

// checkChildren compares the children of a container with those that encoding/json finds.
func checkChildren(t *testing.T, container []byte) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(container))
	_, _ = decoder.Token()
	for name, child := range children(container) {
		if container[0] == '{' {
			token, err := decoder.Token()
			if text, _ := unquote(name); err != nil || utf8.ValidString(text) && token != text {
				t.Fatalf("%q: the name is %q, want %q, %v", container, text, token, err)
			}
		} else if name != nil {
			t.Fatalf("%q: an element has the name %q", container, name)
		}
		var want json.RawMessage
		if err := decoder.Decode(&want); err != nil || string(child) != string(want) {
			t.Fatalf("%q: the value of %q is %q, want %q, %v", container, name, child, want, err)
		}
	}
	if decoder.More() {
		t.Fatalf("%q has more children", container)
	}
}

// checkString compares what a string spells with what encoding/json reads, and with its UTF-16 code units.
func checkString(t *testing.T, spelling []byte) {
	t.Helper()
	var want string
	err := json.Unmarshal(spelling, &want)
	got, ok := unquote(spelling)
	if err != nil || got != want {
		t.Fatalf("%q: got %q, want %q, %v", spelling, got, want, err)
	}
	var units []uint16
	for _, character := range regexp.MustCompile(`\\u....|\\.|(?s:.)`).FindAllString(string(spelling), -1) {
		unit, err := strconv.ParseUint(strings.TrimPrefix(character, `\u`), 16, 16)
		if len(character) != len(`\u0000`) || err != nil {
			unit = 'x' // no surrogate
		}
		units = append(units, uint16(unit))
	}
	whole := true
	for i := 0; i < len(units); i++ {
		if r := rune(units[i]); utf16.IsSurrogate(r) {
			i++
			whole = whole && i < len(units) && utf16.DecodeRune(r, rune(units[i])) != utf8.RuneError
		}
	}
	if ok != whole {
		t.Fatalf("%q: that it is whole is %t", spelling, ok)
	}
}

func TestPlainBytes(t *testing.T) {
	for n := range 20 {
		for _, end := range []string{"", `"`, `\`, "\n", "\x00", "\x1f"} {
			for _, plain := range []string{" ", "a", "\x7f", "\xff"} {
				text := strings.Repeat(plain, n) + end
				if got := PlainBytes([]byte(text + strings.Repeat("a", len(end)))); got != n {
					t.Errorf("%q: got %d, want %d", text, got, n)
				}
			}
		}
	}
}

package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// membersOf accepts an object whose members keep rules. It passes over members that are not in rules.
func membersOf(rules Rules) Rule { return MapOf(func(name string) Rule { return rules[name] }) }

// anyInt accepts a whole number from 0 to MaxInt.
func anyInt(wrong *Problems, value []byte) bool { return Int(new(int64), 0, MaxInt)(wrong, value) }

func TestDecode(t *testing.T) {
	deep := strings.Repeat("[", 100_000)
	for body, want := range map[string]string{
		`{"n":1}`: "", ` { "n" : 1 , "s" : "a" } `: "", "\n{\"\\u006e\":\t1}\r\n": "", `{"n":1,"o":{"x":1,"x":2,"i":1}}`: "",
		``:                     "Invalid JSON: unexpected end of JSON input at byte 0",
		` `:                    "Invalid JSON: unexpected end of JSON input at byte 1",
		`n=1`:                  "Invalid JSON: the body does not start with {",
		`'a'`:                  "Invalid JSON: the body does not start with {",
		`"a`:                   "Invalid JSON: the body does not start with {",
		`{"n":1`:               "Invalid JSON: unexpected end of JSON input at byte 6",
		`{"n":01}`:             "Invalid JSON: invalid character '1' after object key:value pair at byte 7",
		`{'n':1}`:              `Invalid JSON: invalid character '\'' looking for beginning of object key string at byte 2`,
		`{"n":1}x`:             "Invalid JSON: invalid character 'x' after top-level value at byte 8",
		"{\"n\":1,\"\xff\":2}": "Invalid JSON: no valid UTF-8 at byte 9",
		deep:                   "Invalid JSON: invalid character '[' exceeded max depth at byte 10001",
		"\ufeff{\"n\":1}":      "Invalid JSON: it starts with a byte order mark",
		"\xff\xfe{\x00}\x00":   "Invalid JSON: it starts with a byte order mark",
		"\xfe\xff\x00{\x00}":   "Invalid JSON: it starts with a byte order mark",
		"\x00\x00\xfe\xff":     "Invalid JSON: it starts with a byte order mark",
		`[]`:                   "Body must be a JSON object", `null`: "Body must be a JSON object",
		`1`: "Body must be a JSON object", ` "{}"`: "Body must be a JSON object",
		`{}`: "n is missing", `{"s":"a"}`: "n is missing",
		`{"n":null}`:    "n must be a whole number ≥ 1",
		`{"n":1,"n":1}`: "n is duplicated", `{"n":1,"\u006e":1}`: "n is duplicated",
		`{"N":1}`: "N is not a known member", `{"x":1,"x":2}`: "x is not a known member",
		`{"":1}`:                                 `[""] is not a known member`,
		`{"a b":1}`:                              `["a b"] is not a known member`,
		"{\"\u212a\":1}":                         "[\"\u212a\"] is not a known member",
		`{"\ud800":1}`:                           "[\"\ufffd\"] " + loneSurrogate,
		`{"n":1,"s":"\ud800"}`:                   "s " + loneSurrogate,
		`{"n":1,"o":{"i":1,"i":2}}`:              "o.i is duplicated",
		`{"n":1,"o":{"i":-1}}`:                   "o.i must be a whole number ≥ 0",
		`{"n":1,"o":[]}`:                         "o must be an object",
		`{"n":1,"m":{"a b":{},"c":null}}`:        `m["a b"] must be a string`,
		`{"` + strings.Repeat("é", 100) + `":1}`: `["` + strings.Repeat("é", 32) + `…"] is not a known member`,
	} {
		var n int64
		err := Decode([]byte(body), Rules{
			"n": Int(&n, 1, MaxInt), "s": AnyString,
			"o": membersOf(Rules{"i": anyInt}),
			"m": MapOf(func(string) Rule { return AnyString }),
		}, "n")
		if want == "" && (err != nil || n != 1) || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%.80q: got %d, %v, want %q", body, n, err, want)
		}
		if _, ok := errors.AsType[*Error](err); err != nil && !ok {
			t.Errorf("%.80q: the error is a %T", body, err)
		}
	}
}

// A config as large as a body may be takes time in proportion to its size.
func TestLargeDocuments(t *testing.T) {
	document := func(groups int) []byte {
		var b bytes.Buffer
		for i := range groups {
			fmt.Fprintf(&b, `,"group-%d":{"tokens":%d,"rate_limit":100,"x":{}}`, i, i)
		}
		return []byte(`{"user_groups":{` + b.String()[1:] + `}}`)
	}
	read := func(groups int) time.Duration {
		body, seen := document(groups), 0
		start := time.Now()
		err := Decode(body, Rules{"user_groups": MapOf(func(string) Rule {
			seen++
			return membersOf(Rules{"tokens": anyInt, "rate_limit": anyInt})
		})})
		if err != nil || seen != groups {
			t.Errorf("of %d groups it read %d: %v", groups, seen, err)
		}
		return time.Since(start)
	}
	for attempt := 0; ; attempt++ { // 16 times as much takes 256 times the time if it is quadratic
		small, large := read(1_000), read(16_000)
		if large < 80*small {
			return
		}
		if attempt == 5 {
			t.Fatalf("1,000 groups take %s, 16,000 %s", small, large)
		}
	}
}

// Decode never panics, and accepts only what encoding/json accepts too, with the same values.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{
		`{"tokens":1}`, `{"text":"a","tokens":1}`,
		` {"text" : "\ud83d\ude00\\" , "raw":[{"a":"]"},2] }`, `{"tokens":1,"tokens":2}`,
		`{"raw":{"a":{}}}`,
		`{"raw":"}"}`, `{"raw":-1.5e-7}`, `{"raw":null,"tokens":0}`, `{}`, `[]`,
		`{"text":"\ud800"}`, "{\"\xff\":1}", `{"a\"b":1}`, strings.Repeat("[", 20),
		`{"map":{"a":1,"\u0061":2}}`, `{"tokens":1e2}`, `{"tokens":10.0}`, `{"map":{"\ud800":1,"":{}}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var n int64
		var s string
		var raw []byte
		names := make(map[string]string)
		err := Decode(body, Rules{
			"tokens": Int(&n, 0, MaxInt), "text": String(&s), "raw": Raw(&raw),
			"map": MapOf(func(name string) Rule {
				return func(_ *Problems, value []byte) bool {
					names[name] = string(value)
					return true
				}
			}),
		})
		if err != nil {
			if _, ok := err.(*Error); !ok || !utf8.ValidString(err.Error()) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("%q was accepted: %v", body, err)
		}
		if value, ok := want["tokens"]; ok {
			if exact, ok := new(big.Rat).SetString(string(value)); len(value) < 20 && (!ok || exact.Cmp(new(big.Rat).SetInt64(n)) != 0) {
				t.Errorf("%q: tokens is %d", body, n)
			}
		}
		var wantText string
		if value, ok := want["text"]; ok && (json.Unmarshal(value, &wantText) != nil || wantText != s) {
			t.Errorf("%q: text is %q", body, s)
		}
		if string(want["raw"]) != string(raw) {
			t.Errorf("%q: raw is %q, want %q", body, raw, want["raw"])
		}
		var wantNames map[string]json.RawMessage
		if value, ok := want["map"]; ok && (json.Unmarshal(value, &wantNames) != nil || len(wantNames) != len(names)) {
			t.Errorf("%q: map has %q", body, names)
		}
		for name, value := range wantNames {
			if names[name] != string(value) {
				t.Errorf("%q: %q is %q, want %q", body, name, names[name], value)
			}
		}
		for name := range want {
			if !strings.Contains(" tokens text raw map ", " "+name+" ") {
				t.Errorf("%q: an unknown member was accepted", body)
			}
		}
	})
}

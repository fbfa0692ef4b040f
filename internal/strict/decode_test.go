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

func TestStringField(t *testing.T) {
	for in, want := range map[string]string{
		`""`: "", `"a"`: "a", `"\u0061\n\\\"\/"`: "a\n\\\"/", `"\ud83d\ude00"`: "😀", `"\uD83D\uDE00"`: "😀",
		`"�\ufffd"`: "\ufffd\ufffd", `"\\ud800"`: `\ud800`, `"\\\\udc00"`: `\\udc00`,
	} {
		var got string
		var wrong Problems
		if String(&got)(&wrong, "a", []byte(in)); len(wrong) > 0 || got != want {
			t.Errorf("%s: got %q, %v, want %q", in, got, wrong, want)
		}
	}
	for in, want := range map[string]string{
		`1`: "a must be a string", `null`: "a must be a string", `{}`: "a must be a string",
		`"\ud800"`: "a " + loneSurrogate, `"\udc00\ud800"`: "a " + loneSurrogate, `"\ud83d \ude00"`: "a " + loneSurrogate,
		`"\ud83d\\ude00"`: "a " + loneSurrogate,
		`"x\uD800\u0061"`: "a " + loneSurrogate, `"\ud83d\ud83d\ude00"`: "a " + loneSurrogate,
		`"\\\ud800"`: "a " + loneSurrogate, `"\ud83d\ude00\udc00"`: "a " + loneSurrogate,
	} {
		got := "before"
		var wrong Problems
		if String(&got)(&wrong, "a", []byte(in)); len(wrong) != 1 || wrong[0] != want || got != "before" {
			t.Errorf("%s: got %q, %q, want %q", in, got, wrong, want)
		}
	}
}

// A whole number is accepted in every spelling that JSON has for it, exactly, whatever its exponent.
func TestIntFieldSpellings(t *testing.T) {
	zeros := strings.Repeat("0", 1_000_000)
	for in, want := range map[string]int64{
		`0`: 0, `-0`: 0, `0.0`: 0, `-0.0e5`: 0, `0e999999999`: 0, `0e-99999999999999999999`: 0, `0.` + zeros: 0,
		`1`: 1, `1.0`: 1, `1.000`: 1, `1e0`: 1, `1E+0`: 1, `1e-0`: 1, `1e2`: 100, `1E2`: 100, `1.5e1`: 15, `0.01e2`: 1,
		`100e-2`: 1, `120.0e-1`: 12,
		`10`: 10, `-7`: -7, `-7.0`: -7, `-70e-1`: -7, `1e15`: 1e15, `1` + zeros + `e-1000000`: 1, `0.` + zeros + `1e1000001`: 1,
		`9007199254740991`: MaxInt, `9007199254740991.0`: MaxInt, `9007199254740.991e3`: MaxInt, `-9007199254740991`: -MaxInt,
	} {
		got := int64(-1)
		var wrong Problems
		if Int(&got, -MaxInt, MaxInt)(&wrong, "a", []byte(in)); len(wrong) > 0 || got != want {
			t.Errorf("%.40s: got %d, %v, want %d", in, got, wrong, want)
		}
	}
	const whole, bounds = "a must be a whole number ≥ 0", "a must be a whole number from 0 to 9007199254740991"
	for in, want := range map[string]string{
		`-1`: whole, `1.5`: whole, `0.1`: whole, `1e-1`: whole, `15e-2`: whole, `9007199254740991.5`: whole, `1e-999999999999`: whole,
		`-1e400`: whole, `-9007199254740992`: whole, `0.` + zeros + `1`: whole,
		`9007199254740992`: bounds, `9007199254740992.0`: bounds, `9007199254740991.5e1`: bounds, `1e16`: bounds, `1e400`: bounds,
		`1e99999999999999999999`: bounds, `99999999999999999999`: bounds, `1` + zeros: bounds,
		`null`: whole, `true`: whole, `"1"`: whole, `"1`: whole, `[1]`: whole, `{}`: whole,
		// Values of query parameters are not always JSON.
		``: whole, `-`: whole, `+1`: whole, ` 1`: whole, `1 `: whole, "1\n": whole, `01`: whole, `1.`: whole, `.5`: whole,
		`1e`: whole, `1_0`: whole,
		`0x10`: whole, `1,2`: whole, `١`: whole, `e1`: whole, `-e1`: whole, `NaN`: whole, `Inf`: whole, `1 2`: whole,
	} {
		got := int64(-1)
		var wrong Problems
		if Int(&got, 0, MaxInt)(&wrong, "a", []byte(in)); len(wrong) != 1 || wrong[0] != want || got != -1 {
			t.Errorf("%.40s: got %d, %q, want %q", in, got, wrong, want)
		}
	}
	for in, want := range map[string]string{
		`0`: "a must be a whole number from 1 to 5", `6`: "a must be a whole number from 1 to 5",
		`-1e99`: "a must be a whole number from 1 to 5",
		`null`:  "a must be a whole number from 1 to 5", `5.5`: "a must be a whole number from 1 to 5",
	} {
		var wrong Problems
		if Int(new(int64), 1, 5)(&wrong, "a", []byte(in)); len(wrong) != 1 || wrong[0] != want {
			t.Errorf("%s: got %q, want %q", in, wrong, want)
		}
	}
}

// Int agrees with exact arithmetic.
func FuzzIntField(f *testing.F) {
	for _, s := range []string{"1", "-0", "1.0", "1e2", "100e-2", "9007199254740991.5", "123456789.0e-3", "0.001e3",
		"1e19", "-1e19", "01", "+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var n int64
		var wrong Problems
		Int(&n, -MaxInt, MaxInt)(&wrong, "a", []byte(s))
		if !json.Valid([]byte(s)) && len(wrong) == 0 {
			t.Fatalf("%q was accepted as %d", s, n)
		}
		_, exponent, _ := strings.Cut(strings.ToLower(s), "e")
		if !IsNumber([]byte(s)) || len(exponent) > 4 {
			return
		}
		want, ok := new(big.Rat).SetString(s)
		inRange := ok && want.IsInt() && want.Num().CmpAbs(big.NewInt(MaxInt)) <= 0
		if inRange != (len(wrong) == 0) || inRange && want.Num().Int64() != n {
			t.Errorf("%q: got %d, %q, want %s", s, n, wrong, want)
		}
	})
}

// Every rule refuses the JSON values that are not of its kind, and null always.
func TestFieldRules(t *testing.T) {
	values := []string{`null`, `true`, `false`, `1`, `-1.5e3`, `101`, `"a"`, `"http://h"`, `"https://h:1/p?q"`, `"//h"`, `"ftp://h"`,
		`"http:///p"`, `[]`, `[{}]`, `{}`, `{"a":1}`}
	for name, test := range map[string]struct {
		rule    Rule
		problem string
		want    []string
	}{
		"boolField":   {Bool(new(bool)), "must be true or false", []string{`true`, `false`}},
		"anyNumber":   {AnyNumber, "must be a number", []string{`1`, `-1.5e3`, `101`}},
		"anyCount":    {AnyInt, "must be a whole number ≥ 0", []string{`1`, `101`}},
		"anyString":   {AnyString, "must be a string", []string{`"a"`, `"http://h"`, `"https://h:1/p?q"`, `"//h"`, `"ftp://h"`, `"http:///p"`}},
		"absoluteURL": {AbsoluteURL, "must be an absolute http or https URL", []string{`"http://h"`, `"https://h:1/p?q"`}},
		"numberField": {Number(0, 100), "must be a number from 0 to 100", []string{`1`}},
		"objectOf":    {objectOf(nil), "must be an object", []string{`{}`, `{"a":1}`}},
		"mapOf":       {MapOf(func(string) Rule { return AnyInt }), "must be an object", []string{`{}`, `{"a":1}`}},
		"rawField":    {Raw(new([]byte)), "", values},
	} {
		t.Run(name, func(t *testing.T) {
			var accepted []string
			for _, value := range values {
				var wrong Problems
				test.rule(&wrong, "p", []byte(value))
				if len(wrong) == 0 {
					accepted = append(accepted, value)
				} else if wrong[0] != "p "+test.problem {
					t.Errorf("%s: %q, want %q", value, wrong, test.problem)
				}
			}
			if fmt.Sprint(accepted) != fmt.Sprint(test.want) {
				t.Errorf("accepts %q, want %q", accepted, test.want)
			}
		})
	}
	yes := true
	if Bool(&yes)(new(Problems), "p", []byte(`false`)); yes {
		t.Error("false was read as true")
	}
	if Bool(&yes)(new(Problems), "p", []byte(`true`)); !yes {
		t.Error("true was read as false")
	}
}

func TestDecodeObject(t *testing.T) {
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
			"o": objectOf(Rules{"i": AnyInt}),
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
			return objectOf(Rules{"tokens": AnyInt, "rate_limit": AnyInt})
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
func FuzzDecodeObject(f *testing.F) {
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
				return func(_ *Problems, _ string, value []byte) { names[name] = string(value) }
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

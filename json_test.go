package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestUnquote(t *testing.T) {
	for _, test := range []struct{ name, quoted, want string }{
		{"empty", `""`, ""},
		{"plain", `"a"`, "a"},
		{"escapes", `"\u0061\n\\\"\/"`, "a\n\\\"/"},
		{"a surrogate pair", `"\ud83d\ude00"`, "😀"},
		{"the replacement character", `"�\ufffd"`, "\ufffd\ufffd"},
		{"a backslash before u", `"\\ud800"`, `\ud800`},
	} {
		if got, err := unquote([]byte(test.quoted)); err != nil || got != test.want {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
	for _, quoted := range []string{
		`1`, `null`, `{}`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d \ude00"`, `"\ud83d\\ude00"`, `"x\uD800\u0061"`,
	} {
		if got, err := unquote([]byte(quoted)); err == nil {
			t.Errorf("%s: got %q, want an error", quoted, got)
		}
	}
}

// Documents that are not valid JSON by RFC 8259 are refused, wherever they are.
func TestMalformedDocuments(t *testing.T) {
	sections := []struct {
		name      string
		documents []string
	}{
		{"section 2: nothing, or white space that is not JSON's", []string{
			"", " ", "\t\n\r ", "\v{}", "\f{}", "\u00a0{}", "\ufeff{}", "\u2028{}", "{}\x00", "\x00", "{\v}", "[\f]", "\xa0{}",
		}},
		{"sections 4 and 5: structure", []string{
			"{", "}", "[", "]", "{]", "[}", "{}}", "[]]", "[[]", "{{}}", "{}{}", "[][]", "{},", ",", ":", "{,}", "[,]", "[1,]",
			"[,1]", "[1,,2]", "[1 2]", "[1:2]", `{"a"}`, `{"a":}`, `{"a":1,}`, `{,"a":1}`, `{"a":1,,"b":2}`, `{"a":1 "b":2}`,
			`{"a" 1}`, `{"a"::1}`, `{"a":1:2}`, `{:1}`, `{"a",1}`, `{"a":1;"b":2}`, `{a:1}`, `{'a':1}`, `{1:1}`, `{null:1}`,
			`{true:1}`, `{[]:1}`, `{{}:1}`, `{"a":1`, `{"a":`, `{"a"`, `{"a`, `["a",`, `["a"`, "[1", "(1)", "<null>", "[1]x",
			"{} //", "/**/{}", "{/**/}", "#\n{}", "[1,\n2,\n", "...", "[...]", "*", "=", "@", "$", "~", "`a`", "&", "|",
		}},
		{"section 3: literals", []string{
			"nul", "nulll", "Null", "NULL", "tru", "truee", "True", "TRUE", "fals", "falsee", "False", "undefined", "nil", "None",
			"[nul]", "[tru]", "n", "t", "f",
		}},
		{"section 6: numbers", []string{
			"+1", "01", "-01", "00", "-", "--1", "1-", "1.", ".1", "-.1", "1.e1", "1.2.3", "1e", "1e+", "1e-", "1E", "e1", "1e1.5",
			"1e1e1", "0x10", "0b1", "0o7", "1_000", "1,000", "1 000", "NaN", "Infinity", "-Infinity", "Inf", "1a", "1f", "0.1.2",
			"-0x1", "१", "１", "½", "[1e]", "[-]", "[01]", "[.5]",
		}},
		{"section 7: strings", []string{
			`"`, `"a`, `'a'`, `a`, `"\"`, `"\x41"`, `"\a"`, `"\v"`, `"\0"`, `"\u"`, `"\u0"`, `"\u00"`, `"\u000"`, `"\u000g"`,
			`"\U0041"`, `"\u{41}"`, `"\ "`, `"\'"`, "\"\n\"", "\"\t\"", "\"\x00\"", "\"\x1f\"", `"a""b"`, `"a" "b"`, `["a" "b"]`,
			`["\"]`,
		}},
		{"section 8.1: encoding", []string{
			"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc3\"", "\"\x80\"", "\xff\xfe{\x00}\x00",
			"{\"\xe2\x82\":1}",
		}},
		{"section 9: depth", []string{
			strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000), strings.Repeat("[", 100_000),
			strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000),
		}},
	}
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	for _, section := range sections {
		t.Run(section.name, func(t *testing.T) {
			for _, document := range section.documents {
				if err := checkJSON([]byte(document)); err == nil {
					t.Errorf("%.60q is taken for JSON", document)
				}
				for _, wrap := range []string{"%s", `{"tokens":%s}`, `{"tokens":1,"x":%s}`} {
					body := strings.Replace(wrap, "%s", document, 1)
					if json.Valid([]byte(body)) || body == "" { // some make sense within another
						continue
					}
					got := s.consume(t, id, key, body)
					got.want(t, 400, "")
					if !strings.HasPrefix(got.text(t, "error"), "Invalid JSON: ") {
						t.Errorf("%.60q: %s", body, got.body)
					}
				}
				s.putConfig(t, id, document).want(t, 400, "")
			}
		})
	}
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left", left)
	}
}

// plainTokens takes only what readJSON takes, as the same amount.
func FuzzPlainTokens(f *testing.F) {
	for _, body := range []string{
		`{"tokens":1}`, `{"tokens":0}`, `{"tokens":01}`, `{"tokens":}`, `{"tokens":999999999999999}`, `{"tokens":9999999999999999}`,
		`{"tokens":-1}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, ok := plainTokens(body)
		var n int64
		if err := readJSON(body, fields{"tokens": wholeNumber(&n, 1, maxAmount)}, "tokens"); ok && (err != nil || n != got) {
			t.Errorf("%q: got %d, readJSON says %d, %v", body, got, n, err)
		}
	})
}

// readJSON never panics, and takes only what encoding/json takes too, with the same values.
func FuzzReadJSON(f *testing.F) {
	for _, body := range []string{
		`{"tokens":1}`, `{"text":"a","tokens":1}`, ` {"text" : "\ud83d\ude00\\" , "raw":[{"a":"]"},2] }`, `{"tokens":1,"tokens":2}`,
		`{"raw":{"a":{}}}`, `{"raw":"}"}`, `{"raw":-1.5e-7}`, `{"raw":null,"tokens":0}`, `{}`, `[]`, `{"text":"\ud800"}`,
		"{\"\xff\":1}", `{"a\"b":1}`, strings.Repeat("[", 20),
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var n int64
		var s string
		var raw []byte
		err := readJSON(body, fields{"tokens": wholeNumber(&n, 0, maxAmount), "text": text(&s), "raw": rawJSON(&raw)})
		if err != nil {
			if _, ok := err.(badRequest); !ok || !utf8.ValidString(err.Error()) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("%q was taken: %v", body, err)
		}
		if value, ok := want["tokens"]; ok && strings.TrimPrefix(string(value), "-") != fmt.Sprint(n) {
			t.Errorf("%q: tokens is %d", body, n)
		}
		var wantText string
		if value, ok := want["text"]; ok && (json.Unmarshal(value, &wantText) != nil || wantText != s) {
			t.Errorf("%q: text is %q", body, s)
		}
		if string(want["raw"]) != string(raw) {
			t.Errorf("%q: raw is %q, want %q", body, raw, want["raw"])
		}
		delete(want, "tokens")
		delete(want, "text")
		delete(want, "raw")
		if len(want) > 0 {
			t.Errorf("%q: unknown members were taken", body)
		}
	})
}

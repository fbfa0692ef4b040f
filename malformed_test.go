package main

import (
	"encoding/json"
	"strings"
	"testing"

	"tollgate/internal/strict"
)

// Documents that are not JSON by the rules of RFC 8259 are refused, wherever they appear.
func TestMalformedDocuments(t *testing.T) {
	malformed := []string{
		// Nothing, or white space that JSON does not have (section 2).
		"", " ", "\t\n\r ", "\v{}", "\f{}", "\u00a0{}", "\ufeff{}", "\u2028{}", "{}\x00", "\x00", "{\v}", "[\f]", "\xa0{}",
		// Structure (sections 4 and 5).
		"{", "}", "[", "]", "{]", "[}", "{}}", "[]]", "[[]", "{{}}", "{}{}", "[][]", "{},", ",", ":", "{,}", "[,]", "[1,]", "[,1]", "[1,,2]",
		"[1 2]",
		"[1:2]", `{"a"}`, `{"a":}`, `{"a":1,}`, `{,"a":1}`, `{"a":1,,"b":2}`, `{"a":1 "b":2}`, `{"a" 1}`, `{"a"::1}`, `{"a":1:2}`, `{:1}`,
		`{"a",1}`, `{"a":1;"b":2}`,
		`{a:1}`, `{'a':1}`, `{1:1}`, `{null:1}`, `{true:1}`, `{[]:1}`, `{{}:1}`, `{"a":1`, `{"a":`, `{"a"`, `{"a`, `["a",`, `["a"`, "[1",
		"(1)", "<null>", "[1]x", "{} //",
		"/**/{}", "{/**/}", "#\n{}", "[1,\n2,\n", "...", "[...]", "*", "=", "@", "$", "~", "`a`", "&", "|",
		// Literals (section 3).
		"nul", "nulll", "Null", "NULL", "tru", "truee", "True", "TRUE", "fals", "falsee", "False", "undefined", "nil", "None", "[nul]",
		"[tru]", "n", "t", "f",
		// Numbers (section 6).
		"+1", "01", "-01", "00", "-", "--1", "1-", "1.", ".1", "-.1", "1.e1", "1.2.3", "1e", "1e+", "1e-", "1E", "e1", "1e1.5", "1e1e1",
		"0x10", "0b1", "0o7", "1_000", "1,000",
		"1 000", "NaN", "Infinity", "-Infinity", "Inf", "1a", "1f", "0.1.2", "-0x1", "१", "１", "½", "[1e]", "[-]", "[01]", "[.5]",
		// Strings (section 7).
		`"`, `"a`, `'a'`, `a`, `"\"`, `"\x41"`, `"\a"`, `"\v"`, `"\0"`, `"\u"`, `"\u0"`, `"\u00"`, `"\u000"`, `"\u000g"`, `"\U0041"`,
		`"\u{41}"`, `"\ "`, `"\'"`, "\"\n\"", "\"\t\"",
		"\"\x00\"", "\"\x1f\"", `"a""b"`, `"a" "b"`, `["a" "b"]`, `["\"]`,
		// Encoding (section 8.1).
		"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc3\"", "\"\x80\"", "\xff\xfe{\x00}\x00", "{\"\xe2\x82\":1}",
		strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000), strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000),
		strings.Repeat("[", 100_000),
	}
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	for _, document := range malformed {
		if err := strict.Check([]byte(document)); err == nil {
			t.Errorf("%.60q is accepted as JSON", document)
		}
		for _, wrap := range []string{"%s", `{"tokens":%s}`, `{"tokens":1,"x":%s}`} {
			body := strings.Replace(wrap, "%s", document, 1)
			if json.Valid([]byte(body)) || body == "" { // some make sense within another
				continue
			}
			answer := s.consume(t, id, key, body)
			answer.want(t, 400, "")
			if !strings.HasPrefix(answer.field(t, "error").(string), "Invalid JSON: ") {
				t.Errorf("%.60q: %s", body, answer.body)
			}
		}
		s.admin(t, "PUT", "/"+id+"/admin/config", `{"config":`+document+`}`).want(t, 400, "")
	}
	if len(malformed) < 120 {
		t.Errorf("there are %d documents", len(malformed))
	}
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left", left)
	}
}

// plainTokens accepts only what strict.Decode accepts, as the same amount.
func FuzzPlainTokens(f *testing.F) {
	for _, body := range []string{`{"tokens":1}`, `{"tokens":0}`, `{"tokens":01}`, `{"tokens":}`, `{"tokens":999999999999999}`,
		`{"tokens":9999999999999999}`, `{"tokens":-1}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, ok := plainTokens(body)
		var n int64
		if err := strict.Decode(body, strict.Rules{"tokens": strict.Int(&n, 1, maxAmount)}, "tokens"); ok && (err != nil || n != got) {
			t.Errorf("%q: got %d, strict.Decode says %d, %v", body, got, n, err)
		}
	})
}

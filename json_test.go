package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestUnquote(t *testing.T) {
	for in, want := range map[string]string{
		`""`: "", `"a"`: "a", `"\u0061\n\\\"\/"`: "a\n\\\"/", `"\ud83d\ude00"`: "😀", `"�\ufffd"`: "\ufffd\ufffd", `"\\ud800"`: `\ud800`,
	} {
		if got, err := unquote([]byte(in)); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{`1`, `null`, `{}`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d \ude00"`, `"\ud83d\\ude00"`, `"x\uD800\u0061"`} {
		if got, err := unquote([]byte(in)); err == nil {
			t.Errorf("%s: got %q, want an error", in, got)
		}
	}
}

// readJSON never panics, and takes only what encoding/json takes too, with the same values.
func FuzzReadJSON(f *testing.F) {
	for _, body := range []string{
		`{"tokens":1}`, `{"text":"a","tokens":1}`, ` {"text" : "\ud83d\ude00\\" , "raw":[{"a":"]"},2] }`, `{"tokens":1,"tokens":2}`, `{"raw":{"a":{}}}`,
		`{"raw":"}"}`, `{"raw":-1.5e-7}`, `{"raw":null,"tokens":0}`, `{}`, `[]`, `{"text":"\ud800"}`, "{\"\xff\":1}", `{"a\"b":1}`, strings.Repeat("[", 20),
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

// parseConfig never panics, and what it takes it takes again, compact, as the same.
func FuzzParseConfig(f *testing.F) {
	f.Add(seedConfig)
	f.Add([]byte(`{"user_groups":{"a":{"tokens":1,"rate_limit":1}},"providers":{"x":{"default":"y","endpoints":{"y":{"url":"http://h"}}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := parseConfig(data)
		if err != nil {
			if _, ok := err.(*invalidConfig); !ok || err.Error() == "" {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		again, err := parseConfig(config.raw)
		if err != nil || string(again.raw) != string(config.raw) || fmt.Sprint(again.groups) != fmt.Sprint(config.groups) {
			t.Errorf("%q: %v", data, err)
		}
	})
}

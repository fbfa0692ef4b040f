package llmwire

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestModelNames(t *testing.T) {
	list := func(n int, name string) string {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf(`{"id":"%s%d"}`, name, i)
		}
		return `{"data":[` + strings.Join(ids, ",") + `]}`
	}
	long := strings.Repeat("x", maxModelNameBytes)
	for _, test := range []struct {
		body string
		want []string // nil if it is no list
	}{
		{`{"object":"list","data":[{"id":"gpt-4o","object":"model","created":1,"owned_by":"openai"},{"id":"o3"}]}`, []string{"gpt-4o", "o3"}},
		{`{"data":[{"type":"model","id":"claude","display_name":"C","created_at":"2026-01-01T00:00:00Z"}],"has_more":false}`,
			[]string{"claude"}},
		{`{"data":[{"id":"openai\/gpt-4o","data":[{"id":"no"}]},{"id":"models/gemini"},{"id":"b\u00fc"}]}`,
			[]string{"openai/gpt-4o", "models/gemini", "bü"}},
		{`{"data":[]}`, []string{}},
		{`{"data":[{"id":""},{"id":7},{"id":null},{"name":"x"},"x",{"id":"a\nb"},{"id":"a\u2028b"},{"id":"a` + "\xff" + `"},{"id":"\ud800"},` +
			`{"id":"ok"}]}`, []string{"ok"}},
		{`{"data":[{"id":"` + long + `"},{"id":"` + long + `x"}]}`, []string{long}},
		{`{"data":{"id":"m"}}`, nil},
		{`{"data":null}`, nil},
		{`{"error":{"message":"no"}}`, nil},
		{`[{"id":"m"}]`, nil},
		{`{"data":[{"id":"m"}]`, nil},
		{`<html>`, nil},
		{``, nil},
	} {
		got, err := ModelNames([]byte(test.body))
		if (err == nil) != (test.want != nil) || err == nil && !slices.Equal(got, test.want) {
			t.Errorf("%.100s: got %q, %v, want %q", test.body, got, err, test.want)
		}
	}
	if got, err := ModelNames([]byte(list(5000, "m"))); err != nil || len(got) != 1000 || got[999] != "m999" {
		t.Errorf("got %d names, %v", len(got), err)
	}
	if got, err := ModelNames([]byte(list(900, strings.Repeat("x", 200)))); err != nil || len(got)*200 > 64<<10 || len(got) < 300 {
		t.Errorf("got %d names, %v", len(got), err)
	}
}

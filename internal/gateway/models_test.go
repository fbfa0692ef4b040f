package gateway

import (
	"fmt"
	"strings"
	"testing"
)

const chatURL, messagesURL = `"url":"http://h/v1/chat/completions"`, `"url":"http://h/v1/messages"`

// newPriced returns an endpoint whose models cost that many tokens for one of the input.
func newPriced(t testing.TB, models string) *Endpoint {
	t.Helper()
	var members []string
	for word := range strings.FieldsSeq(models) {
		name, price, _ := strings.Cut(word, "=")
		members = append(members, fmt.Sprintf(`%q:{"input":%s}`, name, price))
	}
	return newEndpoint(t, "e", chatURL+`,"models":{`+strings.Join(members, ",")+`}`)
}

// The price of a model is that of its name, else of a snapshot of it, else of the longest prefix.
func TestPriceList(t *testing.T) {
	for _, test := range []struct{ models, asked string }{
		{"gpt-4o=10 *=1", "gpt-4o:10 gpt-4o-2024-08-06:10 gpt-4o-20240806:10 gpt-4o-latest:10 gpt-4o@20240806:10 gpt-4o@x:10"},
		{"gpt-4o=10", "gpt-4o@preset/x:- gpt-4o@preset/x@y:- gpt-4o-latest@preset/x:- gpt-4o@x:online:-"},
		{"gpt-4o=10 *=1", "gpt-4o-mini:1 openai/gpt-4o:1 GPT-4o:1 gpt-4:1 gpt-4o-2024-8-6:1 gpt-4o-202408:1 gpt-4o-x-latest:1"},
		{"gpt-4o=10 gpt-4o-2024-05-13=20", "gpt-4o-2024-05-13:20 gpt-4o:10 gpt-4o-2024-08-06:10"},
		{"claude-opus-4-20250514=15", "claude-opus-4-20250514:15 claude-opus-4:15 claude-opus-4-latest:15 claude-opus:-"},
		{"o-2024-01-01=1 o-2024-02-02=3 o-2024-03-03=2", "o:3 o-2024-01-01:1 o-latest:3"}, // the dearest, not the first
		{"o-2024-01-01=9 o=1", "o:1 o-latest:1 o-2024-01-01:9"},
		{"o=1 o-2024-01-01=9", "o:1 o-latest:1 o-2024-01-01:9"},
		{"a*=1 abc*=3 ab*=2 abcd=9", "a:1 ab:2 abc:3 abcz:3 abcd:9 abcd-latest:9 b:- A:-"},
		{"gpt-4o*=2 gpt-4o=10", "gpt-4o-2024-08-06:10 gpt-4o-2024-08-06x:2 gpt-4o-:2"}, // a snapshot before a prefix
		{"gpt-4o-2024*=2 gpt-4o-latest=7", "gpt-4o:7 gpt-4o-2024-08-06:7 gpt-4o-2024:2"},
		{"@cf/meta/llama=4 m=1", "@cf/meta/llama:4 @cf/meta/other:- @:- @x:- -latest:- -2024-08-06:- m@:1"},
		{"*=1", "*:1 -latest:1 @:1 " + strings.Repeat("x", 10_000) + ":1"},
		{"x*y=1", "x*y:1 xy:- xzy:-"},
	} {
		e := newPriced(t, test.models)
		for word := range strings.FieldsSeq(test.asked) {
			colon := strings.LastIndexByte(word, ':')
			name, want, got := word[:colon], word[colon+1:], "-"
			if p := e.prices.find(name); p != nil {
				got = fmt.Sprint(p.rates[kindInput] / priceUnit)
			}
			if got != want {
				t.Errorf("%s: %.50s costs %s, want %s", test.models, name, got, want)
			}
		}
		if e.prices.find("") != nil {
			t.Errorf("%s: the model without a name has a price", test.models)
		}
	}
}

// The default model is always allowed, also if its name has a *, and stands for its snapshots.
func TestDefaultModelPrice(t *testing.T) {
	for models, want := range map[string]int64{
		`{}`: 1, `{"m":{"input":2}}`: 2, `{"m-latest":{"input":3}}`: 3, `{"m*":{"input":4}}`: 4, `{"*":{"input":5},"n":{"input":6}}`: 5,
	} {
		e := newEndpoint(t, "e", chatURL+`,"default_model":"m-2025-01-01","models":`+models)
		for _, name := range []string{"m-2025-01-01", "m-latest"} {
			if p := e.prices.find(name); p == nil || p.rates[kindInput] != want*priceUnit {
				t.Errorf("%s: %s costs %v, want %d", models, name, p, want)
			}
		}
	}
	if e := newEndpoint(t, "e", chatURL+`,"default_model":"m*"`); e.prices.find("m*") == nil || e.prices.find("mn") != nil {
		t.Error("m* is not a name")
	}
}

// What is cheap by mistake, or is not charged, is a warning.
func TestWarn(t *testing.T) {
	const dear = `{"input":10,"output":10}`
	const cheaper = `models has %q cheaper than %q: other spellings of that name cost less`
	for _, test := range []struct{ members, want string }{
		{chatURL + `,"models":{"*":{},"gpt-4o":` + dear + `}`, fmt.Sprintf(cheaper, "*", "gpt-4o")},
		{chatURL + `,"models":{"gpt*":{"input":10,"output":1},"gpt-4o":` + dear + `}`, fmt.Sprintf(cheaper, "gpt*", "gpt-4o")},
		{chatURL + `,"models":{"G PT*":{},"gpt-4o":` + dear + `}`, fmt.Sprintf(cheaper, "G PT*", "gpt-4o")},
		{chatURL + `,"models":{"GPT-4o*":{},"gpt-4o":` + dear + `}`, fmt.Sprintf(cheaper, "GPT-4o*", "gpt-4o")},
		{chatURL + `,"models":{"gpt*":` + dear + `,"gpt-4o":` + dear + `,"*":{}}`, fmt.Sprintf(cheaper, "*", "gpt-4o")},
		{chatURL + `,"models":{"*":{},"a":` + dear + `,"b":` + dear + `}`, fmt.Sprintf(cheaper, "*", "a")}, // each pattern once
		{chatURL + `,"models":{"*":{},"m":{"request":1}}`, fmt.Sprintf(cheaper, "*", "m")},
		{chatURL + `,"models":{"*":{},"m":{"above":{"tokens":9,"output":2}}}`, fmt.Sprintf(cheaper, "*", "m")},
		{chatURL + `,"models":{"*":{"above":{"tokens":9,"output":0}},"m":{}}`, fmt.Sprintf(cheaper, "*", "m")},
		{chatURL + `,"models":{"*":` + dear + `,"m":{},"n":` + dear + `,"x*":{}}`, ""},
		{chatURL + `,"models":{"*":{}},"default_model":"m"`, ""},
		{messagesURL + `,"models":{"m":{"input":3,"output":15}}`,
			`models has "m" without cache_write: Anthropic asks 1.25 or 2 times the input price for a write`},
		{messagesURL + `,"models":{"m":{},"m*":{"input":3}}`,
			`models has "m*" without cache_write: Anthropic asks 1.25 or 2 times the input price for a write`},
		{messagesURL + `,"models":{"m":{"input":3,"output":3},"n":{"input":3,"output":15,"cache_write":3}}`, ""},
		{chatURL + `,"models":{"m":{"input":3,"output":15}}`, ""},
		{chatURL + `,"on_hangup":"cancel","default_model":"m"`,
			`on_hangup is "cancel" though reasoning is not false: what a model thinks for a client that has gone is free`},
		{chatURL + `,"on_hangup":"cancel","models":{"m":{"reasoning":false},"n":{}}`,
			`on_hangup is "cancel" though reasoning is not false: what a model thinks for a client that has gone is free`},
		{chatURL + `,"on_hangup":"cancel","reasoning":false,"models":{"m":{"reasoning":true}}`,
			`on_hangup is "cancel" though reasoning is not false: what a model thinks for a client that has gone is free`},
		{chatURL + `,"on_hangup":"cancel","models":{"m":{"reasoning":false}}`, ""},
		{chatURL + `,"on_hangup":"cancel","reasoning":false,"default_model":"m"`, ""},
		{chatURL + `,"on_hangup":"drain","default_model":"m"`, ""},
		{chatURL + `,"limit_member":"max_tokens"`, ""},
		{messagesURL + `,"limit_member":"max_completion_tokens"`,
			"limit_member has no effect: all servers with that path expect the limit in the same member"},
	} {
		var got []string
		newEndpoint(t, "e", test.members).Warn(func(member, sentence string) { got = append(got, member+" "+sentence) })
		if text := strings.Join(got, "; "); text != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.members, text, test.want)
		}
	}
}

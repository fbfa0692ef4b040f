package gateway

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// Which endpoints may serve a request, and what they are asked for.
func TestChoose(t *testing.T) {
	const chat = `"url":"http://h/v1/chat/completions"`
	endpoints := Endpoints{
		newEndpoint(t, "a", chat+`,"default_model":"x/y","models":{"b/n":{}}`),
		newEndpoint(t, "b", chat+`,"models":{"n":{},"o":{}},"server_tools":true`),
		newEndpoint(t, "c", chat+`,"models":{"*":{}}`),
		newEndpoint(t, "claude", `"url":"http://h/v1/messages","models":{"*":{}}`),
		newEndpoint(t, "d", chat+`,"models":{"n":{},"o":{}}`),
		newEndpoint(t, "e", chat+`,"models":{"n":{},"o":{}}`),
	}
	for _, test := range []struct {
		format      llmwire.Format
		body        string
		count       bool
		want, model string // the names of the endpoints, or the error
	}{
		{llmwire.OpenAIChat, `{}`, false, "ac", "x/y"},
		{llmwire.OpenAIChat, `{"model":"n"}`, false, "bcd", "n"}, // at most three
		{llmwire.OpenAIChat, `{"model":"b/n"}`, false, "b", "n"}, // not a, which has a model of that name
		{llmwire.OpenAIChat, `{"model":"b/z"}`, false, "c", "b/z"},
		{llmwire.OpenAIChat, `{"model":"c/z"}`, false, "c", "z"},
		{llmwire.OpenAIChat, `{"model":"claude/z"}`, false, "c", "claude/z"},
		{llmwire.OpenAIChat, `{"model":"o","tools":[{"type":"web"}]}`, false, "b", "o"},
		{llmwire.OpenAIChat, `{"model":"d/o","tools":[{"type":"web"}]}`, false,
			`400 The provider runs "web" itself, or tollgate does not know it. That can cost more than can be held: ` +
				`server_tools of the endpoint does not allow it`, "o"},
		{llmwire.OpenAIChat, `{"model":"d/o","tools":[{"type":"web"}]}`, true, "d", "o"},
		{llmwire.AnthropicMessages, `{}`, false, "404 No endpoint has a default model: name one in the request", ""},
		{llmwire.AnthropicMessages, `{"model":"n"}`, false, "claude", "n"},
	} {
		request, err := llmwire.ReadRequest(test.format, []byte(test.body))
		if err != nil {
			t.Fatal(err)
		}
		c := &Call{Request: request, CountTokens: test.count, Outcome: new(Outcome)}
		got := ""
		if err := c.Choose(endpoints); err != nil {
			failure, _ := errors.AsType[Error](err)
			got = fmt.Sprint(failure.Status, " ", failure.Message)
		} else {
			for _, e := range c.endpoints {
				got += e.Name
			}
		}
		if got != test.want || c.model != test.model || c.Outcome.Model != test.model {
			t.Errorf("%s: got %s, %q; want %s, %q", test.body, got, c.model, test.want, test.model)
		}
	}
	request, _ := llmwire.ReadRequest(llmwire.OpenAIChat, []byte(`{"model":"`+strings.Repeat("x", 100)+`"}`))
	c := &Call{Request: request, Outcome: new(Outcome)}
	for _, body := range []string{`{}`, `{"model":"m"}`} {
		request, _ := llmwire.ReadRequest(llmwire.AnthropicMessages, []byte(body))
		c := &Call{Request: request, Outcome: new(Outcome)}
		want := Error{404, "No endpoint has this format: the path of its URL would end in /messages"}
		if err := c.Choose(endpoints[:2]); err != want {
			t.Errorf("%s: got %v", body, err)
		}
	}
	want := Error{404, `No endpoint allows the model "` + strings.Repeat("x", 64) + `…"`}
	if err := c.Choose(endpoints[:2]); err != want {
		t.Errorf("got %v", err)
	}
}

func TestModels(t *testing.T) {
	const chat = `"url":"http://h/v1/chat/completions"`
	endpoints := Endpoints{
		newEndpoint(t, "a", chat+`,"default_model":"m","models":{"n":{},"m":{}}`),
		newEndpoint(t, "b", chat+`,"models":{"n":{},"o":{},"*":{}}`),
		newEndpoint(t, "c", `"url":"http://h/v1/messages","default_model":"c"`),
	}
	if got := fmt.Sprint(endpoints.named(llmwire.OpenAIChat)); got != "[{m a} {n a} {o b}]" {
		t.Errorf("got %s", got)
	}
	for _, test := range []struct{ name, want string }{{"n", "{n a} <nil>"}, {"b/n", "{b/n b} <nil>"}, {"any", "{any b} <nil>"}} {
		model, err := endpoints.Model(llmwire.OpenAIChat, test.name)
		if got := fmt.Sprint(model, " ", err); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	none := Error{404, "No endpoint has this format: the path of its URL would end in /messages"}
	if _, err := endpoints[:2].Model(llmwire.AnthropicMessages, "n"); err != none {
		t.Errorf("got %v", err)
	}
	if _, err := endpoints.Model(llmwire.AnthropicMessages, "n"); err != (Error{404, `No endpoint allows the model "n"`}) {
		t.Errorf("got %v", err)
	}
}

// An endpoint can be used if its URL ends in the path of a format. A model without a price of its own costs what * does,
// or a token for a token.
func TestComplete(t *testing.T) {
	for members, ok := range map[string]bool{
		`"url":"https://h/v1/chat/completions"`: true, `"url":"https://h/v1/messages?a=b"`: true, `"url":"https://h/v1/speech"`: false,
		`"model":"m"`: false, `"url":"https://h/v1"`: false, `"url":"https://h/v1/messages/"`: true, `"url":"https://h/v1/messages//"`: false,
		`"url":"https://h/v1/chat/completions/?a=b/"`: true, `"url":"https://h/a%2Fb/messages/"`: true,
	} {
		e := NewEndpoint(llmwire.Text, "e")
		var wrong strict.Problems
		accepted := objectOf(e.GatewayRules(objectOf))(&wrong, []byte("{"+members+"}"))
		if got := e.Complete(); got != ok || !accepted {
			t.Errorf("%s: %v, %v", members, got, wrong.Sentences)
		}
	}
	const url = `"url":"https://h/v1/messages",`
	for _, test := range []struct {
		members, model string
		want           [2]int64 // of a token of input and of output, in millionths
		ok             bool
	}{
		{`"default_model":"m"`, "m", [2]int64{1_000_000, 1_000_000}, true},
		{`"default_model":"m"`, "n", [2]int64{}, false},
		{`"default_model":"m","models":{"*":{"input":2,"output":0.5}}`, "m", [2]int64{2_000_000, 500_000}, true},
		{`"default_model":"m","models":{"*":{"input":2},"m":{"input":3}}`, "m", [2]int64{3_000_000, 1_000_000}, true},
		{`"models":{"*":{"input":0}}`, "n", [2]int64{0, 1_000_000}, true},
		{`"models":{"*":{"input":0}}`, "", [2]int64{}, false},
	} {
		var got [2]int64
		p := newEndpoint(t, "e", url+test.members).prices.find(test.model)
		if p != nil {
			got = [2]int64{p.rates[kindInput], p.rates[kindOutput]}
		}
		if ok := p != nil; got != test.want || ok != test.ok {
			t.Errorf("%s: %s costs %v, %v; want %v", test.members, test.model, got, ok, test.want)
		}
	}
}

package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/llmwire"
)

// choose returns the names of the endpoints that may serve a request for the model m, or the error.
func choose(endpoints Endpoints, request llmwire.Request, count bool) (string, *Call) {
	request.Model = "m"
	c := &Call{Request: &request, Tenant: "acme", CountTokens: count, Outcome: new(Outcome)}
	if err := c.Choose(endpoints); err != nil {
		failure, _ := errors.AsType[Error](err)
		return fmt.Sprint(failure.Status, " ", failure.Message), c
	}
	names := ""
	for _, e := range c.endpoints {
		names += e.Name
	}
	return names, c
}

// Endpoints that do not allow what a request has are left out.
func TestChooseAllowed(t *testing.T) {
	const chat = chatURL + `,"default_model":"m","models":{"priced":{},"pre*":{}}`
	endpoints := Endpoints{
		newEndpoint(t, "a", chat),
		newEndpoint(t, "b", chat+`,"allow":["route"]`),
		newEndpoint(t, "c", chat+`,"allow":["plugins","route","anthropic-beta:x"],"server_tools":"drop"`),
		newEndpoint(t, "d", chat+`,"allow":["*"],"server_tools":true`),
	}
	unknown := func(names ...string) llmwire.Request { return llmwire.Request{Unknown: names} }
	const refused = `400 Unknown members: plugins, route. If the operator adds "allow": ["plugins", "route"] to the endpoint, ` +
		`they are forwarded`
	const tools = `400 The provider runs "web" itself, or tollgate does not know it. That can cost more than can be held: ` +
		`server_tools of the endpoint does not allow it`
	for _, test := range []struct {
		from    string // the endpoints
		request llmwire.Request
		count   bool
		want    string
	}{
		{"abcd", unknown(), false, "abc"},
		{"abcd", unknown("route"), false, "bcd"},
		{"abcd", unknown("plugins", "route"), false, "cd"},
		{"abcd", unknown("models"), false, "d"},
		{"ab", unknown("plugins", "route"), false, refused},
		{"a", unknown("plugins", "route"), false, refused},
		{"a", unknown("plugins", "route"), true, "a"}, // costs nothing
		{"abc", unknown("x"), false, `400 Unknown members: x. If the operator adds "allow": ["x"] to the endpoint, they are forwarded`},
		{"a", unknown(`x","y`, "*"), false,
			`400 Unknown members: x","y, *. If the operator adds "allow": ["x\",\"y", "*"] to the endpoint, they are forwarded`},
		{"abcd", llmwire.Request{ServerTool: "web"}, false, "d"},
		{"abcd", llmwire.Request{ServerTool: "web", CanDropTools: true}, false, "cd"},
		{"abc", llmwire.Request{ServerTool: "web"}, false, tools},
		{"ab", llmwire.Request{ServerTool: "web", CanDropTools: true}, false, tools},
		{"a", llmwire.Request{ServerTool: "web"}, true, "a"},
		{"cd", llmwire.Request{Unknown: []string{"models"}, ServerTool: "web", CanDropTools: true}, false, "d"},
		{"d", llmwire.Request{ServerTool: "advisor", AdvisorModels: []string{"m", "priced", "prefix"}}, false, "d"},
		{"d", llmwire.Request{ServerTool: "advisor", AdvisorModels: []string{"priced", "dear"}}, false,
			`400 A tool would ask the model "dear", which the endpoint does not allow`},
		{"d", llmwire.Request{ServerTool: "advisor", AdvisorModels: []string{strings.Repeat("x", 1<<20)}}, false,
			`400 A tool would ask the model "` + strings.Repeat("x", 64) + `…", which the endpoint does not allow`},
		{"cd", llmwire.Request{ServerTool: "advisor", CanDropTools: true, AdvisorModels: []string{"dear"}}, false, "c"},
	} {
		some := endpoints.where(func(e *Endpoint) bool { return strings.Contains(test.from, e.Name) })
		if got, _ := choose(some, test.request, test.count); got != test.want {
			t.Errorf("%s of %s:\ngot  %s\nwant %s", fmt.Sprintf("%+v", test.request), test.from, got, test.want)
		}
	}
}

// An account must allow the models that tools name, unless these are dropped wherever the request may go.
func TestModelsOfCall(t *testing.T) {
	const chat = chatURL + `,"default_model":"m","models":{"priced":{}}`
	drops, allows := newEndpoint(t, "a", chat+`,"server_tools":"drop"`), newEndpoint(t, "b", chat+`,"server_tools":true`)
	request := llmwire.Request{ServerTool: "advisor", CanDropTools: true, AdvisorModels: []string{"priced"}}
	for want, endpoints := range map[string]Endpoints{
		"m": {drops}, "m priced": {allows}, "m  priced": {drops, allows},
	} {
		_, c := choose(endpoints, request, false)
		if got := c.models(); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("of %d endpoints: got %q, want %s", len(endpoints), got, want)
		}
	}
}

// A member that is refused is logged once for each endpoint that does not allow it, 100 times at most, and counted each
// time.
func TestNoteRefusal(t *testing.T) {
	g := newTestGateway(t)
	endpoints := Endpoints{newEndpoint(t, "a", chatURL+`,"default_model":"m"`),
		newEndpoint(t, "b", chatURL+`,"default_model":"m","allow":["x"]`)}
	note := func(names ...string) {
		_, c := choose(endpoints, llmwire.Request{Unknown: names}, false)
		g.NoteRefusal(c)
	}
	line := func(endpoint, name string) string {
		return fmt.Sprintf("[WARN] The endpoint %s of tenant acme does not allow %q: requests with this member are refused\n", endpoint, name)
	}
	note("x", "y\nz")
	note("x", "y\nz")
	note() // is not refused
	note("x")
	for text, want := range map[string]int{line("a", "x"): 1, line("b", "x"): 0, line("a", "y\nz"): 1, line("b", "y\nz"): 1, "[WARN]": 3} {
		if got := g.log.count(text); got != want {
			t.Errorf("%q is logged %d times, want %d", text, got, want)
		}
	}
	for i := range 200 {
		note(fmt.Sprint("name", i))
	}
	if got := g.log.count("[WARN]"); got != 100 {
		t.Errorf("%d lines are logged, want 100", got)
	}
	if got := g.unknownMembers.Load(); got != 4+200 {
		t.Errorf("%d members were counted, want 204", got)
	}
}

// Values of anthropic-beta that make tokens dearer are taken out unless the endpoint allows them.
func TestDearBetas(t *testing.T) {
	for _, test := range []struct {
		allow       string
		lines, want []string
	}{
		{`[]`, nil, nil},
		{`[]`, []string{"a-2025", "b"}, []string{"a-2025", "b"}},
		{`[]`, []string{"context-1m-2025-08-07"}, nil},
		{`[]`, []string{"a,context-1m-2025-08-07, fast-mode-2026-02-01 ,b", "Fast-Mode-1"}, []string{"a,b"}},
		{`[]`, []string{`a context-1m-2025-08-07,"fast-mode-1",b;fast-mode-1,c`}, []string{"c"}},
		{`["context-1m-2025-08-07"]`, []string{"context-1m-2025-08-07"}, nil}, // that is a member of a request
		{`["anthropic-beta:context-1m-2025-08-07"]`, []string{"context-1m-2025-08-07, fast-mode-1, context-1m-2026-01-01"},
			[]string{"context-1m-2025-08-07"}},
		{`["*"]`, []string{"context-1m-2025-08-07,a", "fast-mode-1"}, []string{"context-1m-2025-08-07,a", "fast-mode-1"}},
	} {
		e := newEndpoint(t, "e", messagesURL+`,"default_model":"m","allow":`+test.allow)
		got := new(Call).providerHeader(e, http.Header{"Anthropic-Beta": test.lines})["Anthropic-Beta"]
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q becomes %q, want %q", test.allow, test.lines, got, test.want)
		}
	}
}

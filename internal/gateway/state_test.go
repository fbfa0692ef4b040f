package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/waittest"
)

// fakeStates are the States of an owner.
type fakeStates struct {
	mu     sync.Mutex
	known  map[string]State
	during func() // is called by Keep, if it is not nil
}

func (s *fakeStates) Find(_ time.Time, ids []string) (owner string, states []State, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		state, ok := s.known[id]
		if !ok {
			return "", nil, ErrNotKept
		}
		states = append(states, state)
	}
	return "owner", states, nil
}

func (s *fakeStates) Keep(_ time.Time, _ string, states []State, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, state := range states {
		s.known[state.ID] = state
	}
	if s.during != nil {
		s.during()
	}
}

func (s *fakeStates) Forget(_ time.Time, _, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// ids returns what is known, sorted.
func (s *fakeStates) ids() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.known {
		all = append(all, id)
	}
	slices.Sort(all)
	return all
}

// A response that is kept, with an item.
const keptBody = `{"id":"resp_1","object":"response","status":"completed","model":"m",` +
	`"output":[{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"output_text","text":"%s"}]}]%s}`

const keptUsage = `,"usage":{"input_tokens":5,"output_tokens":6,"total_tokens":11}`

// What is remembered of a response: those of its IDs that a path can have, and its usage or, if that is not reported,
// the most that it can be.
func TestKeepState(t *testing.T) {
	t.Parallel()
	const request = `{"input":"hi"}`
	events := "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n" +
		"data: {\"type\":\"response.completed\",\"response\":" + fmt.Sprintf(keptBody, "x", keptUsage) + "}\n\n"
	usual := fmt.Sprintf(keptBody, "x", keptUsage)
	for name, test := range map[string]struct {
		request, response string
		compact           bool
		ids               []string
		input, output     int64
	}{
		"not streamed":     {request, usual, false, []string{"msg_1", "resp_1"}, 5, 6},
		"stream":           {`{"stream":true}`, events, false, []string{"msg_1", "resp_1"}, 5, 6},
		"without an end":   {`{"stream":true}`, strings.TrimSuffix(events, "\n\n"), false, []string{"msg_1", "resp_1"}, 5, 6},
		"no usage":         {request, fmt.Sprintf(keptBody, "x", ""), false, []string{"msg_1", "resp_1"}, int64(len(request)), 100},
		"compact":          {request, usual, true, []string{"resp_1"}, 5, 6},
		"not stored":       {`{"store":false}`, usual, false, nil, 0, 0},
		"path in the item": {request, strings.Replace(usual, "msg_1", "../x", 1), false, []string{"resp_1"}, 5, 6},
		"path in its ID":   {request, strings.Replace(usual, "resp_1", "a/b", 1), false, nil, 0, 0},
		"large": {request, fmt.Sprintf(keptBody, strings.Repeat("x", maxWholeBody), keptUsage), false,
			[]string{"resp_1"}, 5, 6}, // its output is not kept until its end is read
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := jsonBody(test.response)
			if strings.HasPrefix(test.response, "data:") {
				server = stream(test.response)
			}
			g := newFormatted(t, llmwire.OpenAIResponses, `,"max_output_tokens":100`, server)
			g.compact = test.compact
			if _, _, err := g.post(t, test.request); err != nil {
				t.Fatal(err)
			}
			<-g.errors
			if got := g.states.ids(); !slices.Equal(got, test.ids) {
				t.Fatalf("got %q, want %q", got, test.ids)
			}
			for id, state := range g.states.known {
				want := State{ID: id, Response: "resp_1", Endpoint: g.endpoints[0].stateID(), Input: test.input, Output: test.output}
				if state != want {
					t.Errorf("got %+v, want %+v", state, want)
				}
			}
		})
	}
}

// The digest of an endpoint is too long for two with the same one to be found: that takes 2^(bits / 2) attempts.
func TestStateID(t *testing.T) {
	t.Parallel()
	const url = "https://api.example.com/v1/responses"
	seen := make(map[string]*Endpoint)
	for _, e := range []*Endpoint{
		{Name: "a", rawURL: url}, {Name: "b", rawURL: url}, {Name: "a", rawURL: url + "?a"}, {Name: "a1:", rawURL: url[1:]},
		{rawURL: "a" + url}, {Name: "a" + url},
	} {
		id := e.stateID()
		if got := 6 * len(id); got < 160 || strings.Contains(id, " ") {
			t.Errorf("%s %s: got %q with %d bits, want 160 or more", e.Name, e.rawURL, id, got)
		}
		if other, exists := seen[id]; exists {
			t.Errorf("%s %s has the ID of %s %s", e.Name, e.rawURL, other.Name, other.rawURL)
		}
		seen[id] = e
	}
}

// While it is noted whose a response is, the client may hang up: the watchdogs are not held up.
func TestKeepStateUnlocked(t *testing.T) {
	t.Parallel()
	g := newFormatted(t, llmwire.OpenAIResponses, "", stream("data: {\"type\":\"response.completed\",\"response\":"+
		fmt.Sprintf(keptBody, "x", keptUsage)+"}\n\n"))
	ctx, hangUp := context.WithCancel(t.Context())
	g.states.during = func() {
		hangUp()
		waittest.Eventually(t, 5*time.Second, func() error {
			if g.gone.Load() == 0 {
				return errors.New("the hang-up is not noticed")
			}
			return nil
		})
	}
	r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(`{"stream":true}`))
	if response, err := http.DefaultClient.Do(r); err == nil {
		_ = response.Body.Close()
	}
	<-g.errors
	if got := g.states.ids(); len(got) != 2 {
		t.Errorf("got %q", got)
	}
}

// A stream that is cancelled, since its client has gone, costs what was seen of it: the client gets nothing more.
func TestKeepStateCancelled(t *testing.T) {
	t.Parallel()
	g := newFormatted(t, llmwire.OpenAIResponses, `,"on_hangup":"cancel"`, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprint(w, `data: {"type":"response.created","response":{"id":"resp_1"}}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	ctx, hangUp := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(`{"stream":true}`))
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	hangUp()
	_ = response.Body.Close()
	<-g.errors
	if got := g.states.ids(); len(got) > 0 {
		t.Errorf("got %q", got)
	}
}

// What a request goes on from counts once: all of the response that it continues, and the output of others.
func TestKeptTokens(t *testing.T) {
	t.Parallel()
	a, b := State{Response: "a", Input: 10, Output: 1}, State{Response: "b", Input: 20, Output: 2}
	huge := State{Response: "c", Input: llmwire.MaxTokens, Output: llmwire.MaxTokens}
	for _, test := range []struct {
		previous string
		states   []State
		want     int64
	}{
		{"a", []State{a}, 11},
		{"", []State{a}, 1},
		{"", []State{a, a, b, a}, 3},
		{"a", []State{a, a, b, b}, 13},
		{"c", []State{huge, a}, llmwire.MaxTokens},
	} {
		if got := keptTokens(&llmwire.Request{Previous: test.previous}, test.states); got != test.want {
			t.Errorf("%q, %v: got %d, want %d", test.previous, test.states, got, test.want)
		}
	}
}

// An ID becomes part of a path, so that only one with nothing special in it is remembered.
func TestIsStateID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"resp_1": true, "resp_bGl0ZWxsbTpj==": true, "a.b:c-d~e+f@g": true, "": false, ".": false, "..": false, ".a": false, "a/b": false,
		"a%2fb": false, "a?b": false, "a#b": false, `a\b`: false, "a b": false, "a\n": false, "é": false, "a;b": false,
	} {
		if got := isStateID(id); got != want {
			t.Errorf("%q: got %v", id, got)
		}
	}
}

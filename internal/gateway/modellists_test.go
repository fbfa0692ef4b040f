package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
)

// modelServer is a provider that has a list of models.
type modelServer struct {
	url string

	mu   sync.Mutex
	got  []*http.Request
	send http.Handler
}

func newModelServer(t testing.TB, send http.Handler) *modelServer {
	t.Helper()
	s := &modelServer{send: send}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.got = append(s.got, r)
		send := s.send
		s.mu.Unlock()
		send.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = telemetry.NewLogger(io.Discard).Warnings() // what is cut is meant
	server.Config.SetKeepAlivesEnabled(false)                           // a Transport sends a GET again on another connection
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *modelServer) sends(send http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send = send
}

// requests returns how many came so far.
func (s *modelServer) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// endpoint returns an endpoint of the server.
func (s *modelServer) endpoint(t testing.TB, name, path, members string) *Endpoint {
	t.Helper()
	return newEndpoint(t, name, fmt.Sprintf(`"url":"%s%s"%s`, s.url, path, members))
}

const (
	anyOf   = `,"models":{"*":{}}`
	openAIs = `{"object":"list","data":[{"id":"x"},{"id":"y"}]}`
)

// models returns the names of the models of a tenant, each with its endpoint.
func (g *testGateway) models(tenant string, format llmwire.Format, endpoints ...*Endpoint) string {
	memory, place := g.memory.Claim(tenant, "user"), g.Place(tenant, "user")
	defer memory.Release()
	defer place.Release()
	found := g.Models(endpoints, &ModelsCall{Tenant: tenant, Hops: "a", Format: format, Memory: memory, Place: place})
	return strings.Trim(fmt.Sprint(found), "[]")
}

// expire lets providers be asked again.
func (g *testGateway) expire() {
	g.lists.mu.Lock()
	defer g.lists.mu.Unlock()
	for _, list := range g.lists.lists {
		list.next = time.Time{}
	}
}

// askedAgain returns in how long the provider of the only list is asked again.
func (g *testGateway) askedAgain() (in time.Duration) {
	g.lists.mu.Lock()
	defer g.lists.mu.Unlock()
	for _, list := range g.lists.lists {
		in = time.Until(list.next)
	}
	return in
}

// Providers are asked for their models where the config leaves them open, each in the format of its endpoint.
func TestModelLists(t *testing.T) {
	g := newTestGateway(t)
	s := newModelServer(t, jsonBody(`{"data":[{"id":"x"},{"id":"m"},{"id":"a/b"},{"id":"x"},{"id":"bad\n"}],"has_more":true}`))
	open := s.endpoint(t, "a", "/v1/chat/completions?api-version=1", `,"default_model":"m","api_key":"k","auth":"api-key"`+anyOf)
	closed := s.endpoint(t, "b", "/v1/chat/completions", `,"default_model":"m","models":{"n":{}}`)
	claude := s.endpoint(t, "c", "/b%2Fc/messages/?q=1", `,"api_key":"k"`+anyOf)
	other := newModelServer(t, jsonBody(openAIs)).endpoint(t, "d", "/v1/chat/completions", anyOf)
	for _, test := range []struct {
		format     llmwire.Format
		endpoints  Endpoints
		want, path string // of the request; "" if no request is sent
		header     string
	}{
		{llmwire.OpenAIChat, Endpoints{closed, claude}, "{m b} {n b}", "", ""},
		{llmwire.OpenAIChat, Endpoints{open, closed, claude, other}, "{m a} {n b} {x a} {a/b a} {y d}", "/v1/models?api-version=1",
			"map[Accept:[application/json] Accept-Encoding:[] Api-Key:[k] Tollgate-Loop:[a] User-Agent:[tollgate]]"},
		{llmwire.AnthropicMessages, Endpoints{open, claude}, "{x c} {m c} {a/b c}", "/b%2Fc/models?q=1&limit=1000",
			"map[Accept:[application/json] Anthropic-Version:[2023-06-01] Tollgate-Loop:[a] User-Agent:[tollgate] X-Api-Key:[k]]"},
	} {
		before := s.requests()
		for range 3 { // it is asked once
			if got := g.models("acme", test.format, test.endpoints...); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		}
		if test.path == "" {
			continue
		}
		s.mu.Lock()
		if got := s.got[before:]; len(got) != 1 || got[0].Method != "GET" || got[0].URL.String() != test.path ||
			fmt.Sprint(got[0].Header) != strings.Replace(test.header, " Accept-Encoding:[]", "", 1) {
			t.Errorf("%d requests: %v %v\nwant %s %s", len(got), got[0].URL, got[0].Header, test.path, test.header)
		}
		s.mu.Unlock()
	}
	if got := g.models("other", llmwire.OpenAIChat, open); s.requests() != 3 {
		t.Errorf("another tenant got %s of the same list", got)
	}
}

// A provider that has no list is not asked again soon. What it has sent before still counts.
func TestModelListFailures(t *testing.T) {
	var followed atomic.Int64
	elsewhere := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		followed.Add(1)
		jsonBody(openAIs).ServeHTTP(w, r)
	}))
	reasons := map[string]string{
		"404": "its response is 404", "401": "its response is 401", "500": "its response is 500", "redirect": "its response is 307",
		"compressed": "its response is compressed", "no JSON": "it is no JSON", "no list": "it is no JSON object with an array",
		"cut": "it closed the connection", "cut before the header": "it closed the connection",
		"silent": "it does not respond in time", "silent later": "it does not respond in time", "too long": "it is too long",
	}
	for name, failure := range map[string]script{
		"404": {status: 404, parts: []string{openAIs}}, "401": {status: 401}, "500": {status: 500},
		"redirect": {status: 307, header: "Location: " + elsewhere}, "compressed": {header: "Content-Encoding: gzip", parts: []string{openAIs}},
		"no JSON": jsonBody("<html>"), "no list": jsonBody(`{"data":{}}`), "cut": {parts: []string{openAIs[:20], cut}},
		"cut before the header": {parts: []string{cut}}, "silent": {parts: []string{hang}}, "silent later": {parts: []string{openAIs, hang}},
		"too long": jsonBody(openAIs + strings.Repeat(" ", maxListBody)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, s := newTestGateway(t), newModelServer(t, failure)
			e := s.endpoint(t, "a", "/v1/chat/completions?sig=hidden", `,"default_model":"m","api_key":"hidden"`+anyOf)
			want := func(want string, requests int) {
				t.Helper()
				began := time.Now()
				if got := g.models("acme", llmwire.OpenAIChat, e); got != want || s.requests() != requests {
					t.Errorf("got %s after %d requests, want %s after %d", got, s.requests(), want, requests)
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("it took %s", took)
				}
			}
			began := time.Now()
			want("{m a}", 1)
			if took := time.Since(began); strings.HasPrefix(name, "silent") && took < 2*time.Second {
				t.Errorf("it was awaited for %s", took)
			}
			want("{m a}", 1)
			s.sends(jsonBody(openAIs))
			g.expire()
			want("{m a} {x a} {y a}", 2)
			if in := g.askedAgain(); in > 5*time.Minute || in < 4*time.Minute {
				t.Errorf("a list is kept for %s", in)
			}
			s.sends(failure)
			g.expire()
			want("{m a} {x a} {y a}", 3)
			want("{m a} {x a} {y a}", 3)
			line := "[WARN] The endpoint a of tenant acme does not list its models: " + reasons[name]
			if g.log.count(line) != 1 || g.log.count("[WARN]") != 1 || g.log.count("hidden") != 0 || g.log.count(s.url) != 0 {
				t.Errorf("got %s, want %s once", g.log.text.String(), line)
			}
			g.wantNothingHeld(t)
			if n := g.memory.Stats().Used + g.lists.fetches.Stats().Used; n != 0 {
				t.Errorf("%d are still taken", n)
			}
		})
	}
	t.Run("is not followed", func(t *testing.T) {
		if n := followed.Load(); n != 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

// A provider gets one request at a time, whoever asks, and no key that is not for it.
func TestModelListRequests(t *testing.T) {
	release := make(chan struct{})
	s := newModelServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		jsonBody(openAIs).ServeHTTP(w, r)
	}))
	g := newTestGateway(t)
	e := s.endpoint(t, "a", "/v1/chat/completions", anyOf)
	got := make(chan string)
	for range 3 {
		go func() { got <- g.models("acme", llmwire.OpenAIChat, e) }()
	}
	eventually(t, "all waiting", func() bool { return g.waiting.Stats().Used == 3 })
	close(release)
	for range 3 {
		if got := <-got; got != "{x a} {y a}" {
			t.Errorf("got %s", got)
		}
	}
	if n := s.requests(); n != 1 {
		t.Errorf("%d requests came", n)
	}

	// A request that gets no place among those that wait gets what is known.
	g.expire()
	var all []*fairpool.Claim
	for i := range 10 {
		all = append(all, g.Place(fmt.Sprint("t", i), "user"))
		fill(t, all[i], 1)
	}
	if got := g.models("acme", llmwire.OpenAIChat, e); got != "{x a} {y a}" || s.requests() != 1 {
		t.Errorf("got %s after %d requests", got, s.requests())
	}
	for _, claim := range all {
		claim.Release()
	}

	file := filepath.Join(t.TempDir(), "keys.json")
	content := `{"k":{"api_key":"sk-operator","url_prefix":"` + s.url + `/v1/chat/","tenants":["*"]},` +
		`"wide":{"api_key":"sk-operator","url_prefix":"` + s.url + `/v1/","tenants":["*"]}}`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	g.options.Keys = new(OperatorKeys)
	if err := g.options.Keys.Load(file); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"k": "", "wide": "{x a} {y a}"} {
		e := s.endpoint(t, "a", "/v1/chat/completions", `,"api_key_name":"`+name+`"`+anyOf)
		if got := g.models("acme", llmwire.OpenAIChat, g.Usable(Endpoints{e}, "acme")...); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	bad := s.endpoint(t, "a", "/v1/chat/completions", `,"api_key":"k\n"`+anyOf)
	if got := g.models("acme", llmwire.OpenAIChat, bad); got != "" || s.requests() != 2 {
		t.Errorf("got %s after %d requests", got, s.requests())
	}
}

// Configs cannot make a process ask many providers or keep many lists.
func TestModelListBounds(t *testing.T) {
	g := newTestGateway(t)
	s := newModelServer(t, jsonBody(openAIs))
	var many Endpoints
	for i := range 3 * maxListed {
		many = append(many, s.endpoint(t, fmt.Sprint("e", i), fmt.Sprintf("/%d/chat/completions", i), anyOf))
	}
	for range 3 {
		if got := g.models("acme", llmwire.OpenAIChat, many...); got != "{x e0} {y e0}" {
			t.Errorf("got %s", got)
		}
	}
	if n := s.requests(); n > maxListed || n < 2 { // all at the same time, of which a tenant may have so many
		t.Errorf("%d requests came", n)
	}
	quiet := s.endpoint(t, "q", "/q/chat/completions", anyOf)
	g.models("quiet", llmwire.OpenAIChat, quiet)
	for i := range 2 * maxLists {
		g.lists.find(newListID(s.endpoint(t, "e", fmt.Sprintf("/b%d/chat/completions", i), ""), "acme"), "acme")
	}
	before := s.requests()
	if g.models("quiet", llmwire.OpenAIChat, quiet); s.requests() != before || len(g.lists.lists) != maxLists {
		t.Errorf("%d lists are kept, and the one of another tenant was asked for %d times", len(g.lists.lists), s.requests()-before)
	}

	silent := newModelServer(t, script{parts: []string{hang}})
	ended := make(chan string)
	for i := range 4 {
		go func() {
			var all Endpoints
			for j := range maxListed {
				all = append(all, silent.endpoint(t, "e", fmt.Sprintf("/%d/%d/chat/completions", i, j), anyOf))
			}
			ended <- g.models(fmt.Sprint("t", i), llmwire.OpenAIChat, all...)
		}()
	}
	for range 4 {
		<-ended
	}
	if n := silent.requests(); n > maxListFetches {
		t.Errorf("%d requests came", n)
	}
	if n := g.lists.fetches.Stats().Used; n != 0 {
		t.Errorf("%d are under way", n)
	}
}

// Endpoints of several kinds whose models are listed at the same place, with the same key, share a list. Clients of
// Anthropic's API do not see it.
func TestModelListOfKinds(t *testing.T) {
	s := newModelServer(t, jsonBody(openAIs))
	g := newTestGateway(t)
	text := s.endpoint(t, "t", "/v1/chat/completions", anyOf)
	vectors := newKindEndpoint(t, llmwire.Embeddings, "v", fmt.Sprintf(`"url":"%s/v1/embeddings","default_model":"e"%s`, s.url, anyOf))
	images := newKindEndpoint(t, llmwire.Images, "i", fmt.Sprintf(`"url":"%s/v1/images/generations"%s`, s.url, anyOf))
	if got := g.models("acme", llmwire.OpenAIChat, text, vectors, images); got != "{e v} {x t} {y t}" {
		t.Errorf("got %s", got)
	}
	if got := g.models("acme", llmwire.AnthropicMessages, text, vectors, images); got != "" {
		t.Errorf("Anthropic's clients get %s", got)
	}
	if n := s.requests(); n != 1 {
		t.Errorf("%d requests came, want 1", n)
	}
}

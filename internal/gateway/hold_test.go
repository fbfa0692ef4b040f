package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tollgate/internal/llmwire"
)

// newRecorded returns a gateway with one endpoint, whose server responds with completion and sends the body of each
// request to got.
func newRecorded(t testing.TB, members string) (g *testGateway, got chan map[string]any) {
	t.Helper()
	got = make(chan map[string]any, 10)
	g = newScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		got <- body
		jsonBody(completion).ServeHTTP(w, r)
	}), members)
	return g, got
}

// padded returns a request of that many bytes with these members.
func padded(members string, size int) string {
	body := `{"messages":[{"content":"` + strings.Repeat("x", size) + `"}],` + members + `}`
	return strings.Replace(body, "x", "", len(body)-size)
}

// A request's own limit is lowered to what the balance covers, but not below the minimum, and leaves half of the rest to
// others.
func TestClamp(t *testing.T) {
	const limit = `"max_tokens":`
	for _, test := range []struct {
		name, members, request string
		balance                int64
		least, most, held      int64
		given                  int64 // the limit that the provider gets; 0 is a refusal
	}{
		// 1,000 bytes.
		{"covered", ``, limit + `8000`, 9000, 5096, 9000, 9000, 8000},
		{"one less", ``, limit + `8000`, 8999, 5096, 9000, 5096 + 1951, 4096 + 1951},
		{"the minimum", ``, limit + `8000`, 5096, 5096, 9000, 5096, 4096},
		{"less than the minimum", ``, limit + `8000`, 5095, 5096, 9000, 0, 0},
		{"a low limit", ``, limit + `4096`, 5096, 5096, 5096, 5096, 4096},
		{"a low limit that is not covered", ``, limit + `4096`, 5095, 5096, 5096, 0, 0},
		{"another minimum", `,"min_output_tokens":100`, limit + `8000`, 2100, 1100, 9000, 1600, 600},
		{"a high minimum", `,"min_output_tokens":9000`, limit + `8000`, 8999, 9000, 9000, 0, 0},
		{"strict", `,"limit":"strict"`, limit + `8000`, 8999, 9000, 9000, 0, 0},
		{"strict and covered", `,"limit":"strict"`, limit + `8000`, 9000, 9000, 9000, 9000, 8000},
		{"clamp", `,"limit":"clamp"`, limit + `8000`, 5096, 5096, 9000, 5096, 4096},
		{"choices", `,"min_output_tokens":100`, limit + `8000,"n":2`, 2100, 1200, 17000, 1650, 325},
		{"prices", `,"min_output_tokens":100,"models":{"m":{"input":0.5,"output":4,"request":7}}`, limit + `8000`, 2000,
			907, 32507, 1453, 236}, // (1453 - 507) / 4
		{"no limit", `,"max_output_tokens":3000`, `"n":1`, 2500, 1001, 4000, 2500, 1500},
		{"no limit, strict", `,"max_output_tokens":3000,"limit":"strict"`, `"n":1`, 2500, 1001, 4000, 2500, 1500},
		{"free", `,"models":{"m":{"input":0,"output":0}}`, limit + `8000`, 1, 1, 1, 1, 8000},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, got := newRecorded(t, test.members)
			g.account.left = test.balance
			response, body, err := g.post(t, padded(test.request, 1000))
			if err != nil {
				t.Fatal(err)
			}
			asked := g.account.asked
			header := response.Header
			if test.given == 0 {
				want := fmt.Sprintf("The request needs %d tokens, %d are left: ", test.least, test.balance)
				if response.StatusCode != 402 || !strings.HasPrefix(body, want) || header.Get("X-Tokens-Held") != "" {
					t.Errorf("got %d %s, want %s", response.StatusCode, body, want)
				}
				return
			}
			if asked.Least != test.least || asked.Most != test.most {
				t.Errorf("asked for %+v, want %d to %d", asked, test.least, test.most)
			}
			if held := header.Get("X-Tokens-Held"); held != fmt.Sprint(test.held) {
				t.Errorf("%s are held, want %d", held, test.held)
			}
			if limit := (<-got)["max_tokens"]; limit != float64(test.given) {
				t.Errorf("the provider got the limit %v, want %d", limit, test.given)
			}
			hasLimit := strings.Contains(test.request, "max_tokens")
			lowered, want := header.Get("X-Max-Tokens"), ""
			if hasLimit && test.held < test.most {
				want = fmt.Sprint(test.given)
			}
			if lowered != want {
				t.Errorf("X-Max-Tokens is %q, want %q", lowered, want)
			}
			if test.least < test.most && asked.Half != hasLimit {
				t.Errorf("asked for %+v", asked)
			}
		})
	}
}

// A coding agent sends some 76 KB and asks for up to 128,000 tokens of output: 60,000 tokens are enough for it.
func TestClampOfAnAgent(t *testing.T) {
	for _, limit := range []int{35_000, 64_000, 128_000} {
		g, got := newRecorded(t, `,"bytes_per_token":3`)
		g.account.left = 60_000
		const own = `"tools":[{"type":"function"}],"max_tokens":`
		response, body, err := g.post(t, padded(own+fmt.Sprint(limit), 76_000))
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("%d: %v %s", limit, err, body)
		}
		input := int64(76_000/3 + 1 + 600)
		held := input + 4096 + (60_000-input-4096)/2
		if got := response.Header.Get("X-Tokens-Held"); got != fmt.Sprint(held) {
			t.Errorf("%d: %s are held, want %d", limit, got, held)
		}
		if given := (<-got)["max_tokens"]; given != float64(held-input) {
			t.Errorf("%d: the provider got the limit %v, want %d", limit, given, held-input)
		}
	}
}

// What a request is held for depends on what was read of it.
func TestHoldsOfRequests(t *testing.T) {
	e := newEndpoint(t, "e", chatURL+`,"default_model":"m","min_output_tokens":50,"models":{"m":{"request":3}}`)
	for _, test := range []struct {
		request            llmwire.Request
		fewest, most, held int64 // 0 bytes
	}{
		{llmwire.Request{N: 1, HasLimit: true, Limit: 100}, 50, 100, 103},
		{llmwire.Request{N: 1, HasLimit: true, Limit: 100, MinLimit: 80}, 80, 100, 103},
		{llmwire.Request{N: 1, HasLimit: true, Limit: 100, MinLimit: 200}, 100, 100, 103},
		{llmwire.Request{N: 1, HasLimit: true, Limit: 100, Twice: true}, 50, 100, 203},
		{llmwire.Request{N: 4, HasLimit: true, Limit: 100, Twice: true}, 50, 100, 803},
		{llmwire.Request{N: 1, HasLimit: true}, 0, 0, 3}, // fills the provider's cache
		{llmwire.Request{N: 1}, 1, 4096, 4099},
		{llmwire.Request{N: 1, MinLimit: 2000}, 2000, 4096, 4099},
	} {
		x := &exchange{call: &Call{Request: &test.request, model: "m", endpoints: Endpoints{e}}}
		fewest, most := x.limits(e)
		price, input := x.priceAt(e)
		if held := price.cost(input, most*x.outputs()); fewest != test.fewest || most != test.most || held != test.held {
			t.Errorf("%+v: %d to %d, held %d; want %d to %d, held %d", test.request, fewest, most, held, test.fewest, test.most, test.held)
		}
		if got, want := x.affordableOutput(e, test.held), test.most; got != want {
			t.Errorf("%+v: what is held affords %d, want %d", test.request, got, want)
		}
	}
}

// A limit that was lowered at one endpoint is the request's own at a cheaper one, and its response is not cached.
func TestClampAtTheNextEndpoint(t *testing.T) {
	first := newServer(t, script{status: 503})
	g, got := newRecorded(t, `,"models":{"m":{"output":0.1}}`)
	dear := newEndpoint(t, "dear", fmt.Sprintf(`"url":%q,"default_model":"m"`, first))
	g.endpoints = Endpoints{dear, g.endpoints[0]}
	g.account.left = 6000
	response, _, err := g.post(t, padded(`"max_tokens":8000`, 1000))
	if err != nil || response.StatusCode != 200 {
		t.Fatal(response, err)
	}
	if limit := (<-got)["max_tokens"]; limit != float64(8000) || response.Header.Get("X-Max-Tokens") != "" {
		t.Errorf("got the limit %v; %v", limit, response.Header)
	}
}

// A response to a request whose limit was lowered is not what others would get.
func TestLoweredIsNotCached(t *testing.T) {
	g := newCached(t, jsonBody(completion))
	body := padded(`"max_tokens":8000`, 1000)
	g.account.left = 6000
	if response := g.wantCached(t, body, "MISS", CacheSkipped); response.Header.Get("X-Max-Tokens") == "" {
		t.Errorf("the limit was not lowered: %v", response.Header)
	}
	g.account.left = 10_000
	g.wantCached(t, body, "MISS", CacheStored)
}

// The price of a request is charged once, if it succeeds.
func TestRequestPrice(t *testing.T) {
	for name, test := range map[string]struct {
		body   string
		server http.Handler
		cost   int64
	}{
		"whole":         {whole, jsonBody(completion), 18 + 100},
		"stream":        {streamed, stream(content, reason, usage, done), 18 + 100},
		"refused":       {whole, script{status: 400, parts: []string{"{}"}}, 0},
		"not JSON":      {whole, jsonBody("<html>"), 0},
		"error":         {streamed, stream(broken), 0},
		"broken stream": {streamed, stream(content, cut), 3},
	} {
		t.Run(name, func(t *testing.T) {
			g := newScripted(t, test.server, `,"models":{"m":{"request":100}}`)
			_, _, _ = g.post(t, test.body)
			if got := <-g.outcomes; got.cost != test.cost {
				t.Errorf("it costs %d, want %d", got.cost, test.cost)
			}
			g.wantNothingHeld(t)
		})
	}
}

// A 2xx without usage is logged once an endpoint.
func TestNoUsageWarning(t *testing.T) {
	g := newScripted(t, jsonBody(`{"choices":[{"message":{"content":"123456789"},"finish_reason":"stop"}]}`), "")
	const line = "[WARN] The endpoint e of tenant acme does not report usage: charges are estimated\n"
	for range 3 {
		if response, _, err := g.post(t, whole); err != nil || response.StatusCode != 200 {
			t.Fatal(response, err)
		}
	}
	if n := g.log.count(line); n != 1 {
		t.Errorf("it is logged %d times:\n%s", n, g.log.text.String())
	}
	for _, server := range []http.Handler{jsonBody(completion), jsonBody(`<html>`), script{status: 500}, stream(content, cut)} {
		g := newScripted(t, server, "")
		_, _, _ = g.post(t, whole)
		g.wantNothingHeld(t)
		if n := g.log.count(line); n != 0 {
			t.Errorf("%v: it is logged", server)
		}
	}
}

// What a provider is told of a user is the same for each request, and differs between users and tenants.
func TestSafetyID(t *testing.T) {
	seen := make(map[string]bool)
	for _, of := range []struct{ tenant, owner string }{{"a", "b"}, {"a", "c"}, {"b", "b"}} {
		id := safetyID(of.tenant, of.owner)
		if len(id) != 64 || seen[id] || id != safetyID(of.tenant, of.owner) || strings.Contains(id, of.owner+of.tenant) {
			t.Errorf("%+v has %q", of, id)
		}
		seen[id] = true
	}
}

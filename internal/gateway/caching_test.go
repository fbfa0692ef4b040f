package gateway

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

func readCaching(t testing.TB, members string) (c Caching) {
	t.Helper()
	var wrong strict.Problems
	if !objectOf(c.Rules())(&wrong, []byte("{"+members+"}")) {
		t.Fatal(wrong.Sentences)
	}
	return c
}

// A fee is rounded up, whatever its percentage is.
func TestFee(t *testing.T) {
	const most = llmwire.MaxTokens
	for _, test := range []struct {
		percent   string
		cost, fee int64
	}{
		{"0", 18, 0}, {"20", 18, 4}, {"100", 18, 18}, {"20", 0, 0}, {"20", 1, 1}, {"20", 5, 1}, {"20", 6, 2},
		{"7", 100, 7}, {"7.0", 200, 14}, {"0.1", 1000, 1}, {"0.1", 1001, 2}, {"33.3", 1000, 333},
		{"29", 100, 29}, {"1e-9", 5, 1}, {"0.00", 5, 0}, {"1e2", 7, 7},
		{"100", most, most}, {"50", most, most/2 + 1},
	} {
		c := readCaching(t, `"fee_percentage":`+test.percent)
		if got := c.feeFor(test.cost); got != test.fee {
			t.Errorf("%s %% of %d is %d, want %d", test.percent, test.cost, got, test.fee)
		}
	}
}

func TestCachingTTL(t *testing.T) {
	for members, want := range map[string]time.Duration{
		``: 0, `"enabled":true`: 0, `"text_ttl":5`: 0, `"enabled":true,"text_ttl":5`: 5 * time.Second,
		`"enabled":true,"text_ttl":9007199254740991`: maxCacheSeconds * time.Second,
	} {
		if c := readCaching(t, members); c.ttl(llmwire.Text) != want {
			t.Errorf("%s: %s, want %s", members, c.ttl(llmwire.Text), want)
		}
		members = strings.ReplaceAll(members, "text_ttl", "transcription_ttl")
		if c := readCaching(t, members); c.ttl(llmwire.Transcription) != want || c.ttl(llmwire.Text) != 0 {
			t.Errorf("%s: %s, want %s, and %s for text, want 0",
				members, c.ttl(llmwire.Transcription), want, c.ttl(llmwire.Text))
		}
	}
	both := readCaching(t, `"enabled":true,"text_ttl":5,"transcription_ttl":6`)
	for kind, want := range map[llmwire.Kind]time.Duration{
		llmwire.Text: 5, llmwire.Embeddings: 5, llmwire.Transcription: 6, llmwire.Speech: 0, llmwire.Images: 0, llmwire.Moderation: 0,
	} {
		if got := both.ttl(kind); got != want*time.Second {
			t.Errorf("%s is served for %s, want %d s", kind, got, want)
		}
	}
	for member, sentence := range map[string]string{
		`"enabled":1`:             "enabled must be true or false",
		`"text_ttl":-1`:           "text_ttl must be a whole number ≥ 0",
		`"fee_percentage":101`:    "fee_percentage must be a number from 0 to 100",
		`"transcription_ttl":"x"`: "transcription_ttl must be a whole number ≥ 0",
	} {
		var c Caching
		var wrong strict.Problems
		if objectOf(c.Rules())(&wrong, []byte("{"+member+"}")); !slices.Equal(wrong.Sentences, []string{sentence}) {
			t.Errorf("%s: got %q, want %s", member, wrong.Sentences, sentence)
		}
	}
}

// What is encoded is parsed again, and its beginning without its end. Other values are refused.
func TestCachedResponse(t *testing.T) {
	r := cachedResponse{
		storedAt: time.UnixMilli(1_700_000_000_123), cost: 18, input: 11, output: 7, mediaType: "a/b; c=d", body: []byte("x\ny z"),
	}
	value := r.encode()
	if want := "1 1700000000123 18 11 7 5 a/b; c=d\nx\ny z"; string(value) != want {
		t.Errorf("got %q, want %q", value, want)
	}
	for size := range len(value) + 1 {
		got, ok := parseCachedResponse(value[:size])
		head := bytes.IndexByte(value, '\n') + 1
		if ok != (size >= head) {
			t.Errorf("%q: %v", value[:size], ok)
			continue
		}
		r.size, r.body = 5, value[min(head, size):size]
		if ok && fmt.Sprint(got) != fmt.Sprint(r) || ok && got.isWhole() != (size == len(value)) {
			t.Errorf("got %v, want %v", got, r)
		}
	}
	for _, value := range []string{
		"", "1", "\n", "1 2 3 4 5 6 x", "2 2 3 4 5 0 a\n", "1 a 18 11 7 2 a\n{}", "1 2 -18 11 7 2 a\n{}", "1 2 3 4 5 0\n",
		"1 2 18 11 7 1 a\n{}", "1 2 18 11 7 9999999 a\n{}", "1 9007199254740992 18 11 7 2 a\n{}",
	} {
		if got, ok := parseCachedResponse([]byte(value)); ok {
			t.Errorf("%q is %v", value, got)
		}
	}
}

func TestCacheDirectives(t *testing.T) {
	for _, test := range []struct {
		lines             []string
		noLookup, noStore bool
	}{
		{nil, false, false}, {[]string{"max-age=0"}, true, false}, {[]string{"no-cache"}, true, false},
		{[]string{"Max-Age=0"}, true, false}, {[]string{"x, max-age=00"}, true, false}, {[]string{`max-age="0"`}, true, false},
		{[]string{"max-age = 0 "}, true, false}, {[]string{"max-age=1", "max-age=0"}, true, false},
		{[]string{"max-age=1"}, false, false}, {[]string{"max-age"}, false, false}, {[]string{"max-age=x"}, false, false},
		{[]string{"s-maxage=0"}, false, false}, {[]string{`no-cache="x"`}, true, false},
		{[]string{"max-age=0, No-Store "}, true, true}, {[]string{"NO-CACHE", "x"}, true, false}, {[]string{"no-cachex"}, false, false},
	} {
		noLookup, noStore := cacheDirectives(http.Header{"Cache-Control": test.lines})
		if noLookup != test.noLookup || noStore != test.noStore {
			t.Errorf("%q: %v, %v", test.lines, noLookup, noStore)
		}
	}
}

// Everything that a response may depend on changes the key, and nothing else. The key of a request is as it always was:
// responses stay in the cache when a process is replaced.
func TestCacheKey(t *testing.T) {
	const url = `"url":"http://h/v1/messages","default_model":"m"`
	key := func(change func(c *Call, r *http.Request)) string {
		request, err := llmwire.ReadRequest(llmwire.AnthropicMessages, []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		c := &Call{Request: request, Body: []byte(`{}`), Outcome: new(Outcome)}
		if err := c.Choose(Endpoints{newEndpoint(t, "e", url)}); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("POST", "/v1/messages?a=1", nil)
		r.Header["Anthropic-Version"] = []string{"v"}
		c.Caching = readCaching(t, `"enabled":true,"text_ttl":1`)
		change(c, r)
		return fmt.Sprintf("%x", c.cacheKey(r))
	}
	same := key(func(c *Call, r *http.Request) {
		c.ID, c.Tenant = "id", "acme" // the tenant is part of where the Cache keeps it
		for name, value := range map[string]string{
			"User-Agent": "sdk/1", "Session-Id": "s", "Traceparent": traceParent, "Tracestate": traceState, "Authorization": "Bearer temp_1",
			"Accept": "evil/accept", "Content-Type": "application/json; charset=utf-7", "Idempotency-Key": "k", // are not forwarded
		} {
			r.Header.Set(name, value)
		}
		c.endpoints = Endpoints{newEndpoint(t, "e", url+`,"api_key":"k","auth":"api-key"`)}
	})
	if want := "06ce948fa235e6472d874290a66b0a28"; !strings.HasPrefix(same, want) {
		t.Errorf("the key is %s, want %s…", same, want)
	}
	unkeyed := []string{"Api-Key", sessionHeader, "Traceparent", "Tracestate"}
	client := http.Header{"Traceparent": {traceParent}, "Tracestate": {traceState}}
	for _, name := range forwardedHeaders {
		client[name] = []string{"x"}
	}
	e := newEndpoint(t, "e", url+`,"api_key":"k","auth":"api-key"`)
	for name := range (&Call{Hops: "a"}).providerHeader(e, client) {
		if slices.Contains(unkeyed, name) == slices.Contains(keyedHeaders, name) {
			t.Errorf("%s is forwarded and not part of the key", name)
		}
	}
	keys := map[string]string{same: "the same"}
	for name, change := range map[string]func(c *Call, r *http.Request){
		"generation": func(c *Call, _ *http.Request) { c.Generation = "2" },
		"body":       func(c *Call, _ *http.Request) { c.Body = []byte(`{ }`) },
		"model":      func(c *Call, _ *http.Request) { c.model = "n" },
		"name":       func(c *Call, _ *http.Request) { c.endpoints = Endpoints{newEndpoint(t, "f", url)} },
		"URL": func(c *Call, _ *http.Request) {
			c.endpoints = Endpoints{newEndpoint(t, "e", strings.Replace(url, "//h", "//i", 1))}
		},
		"format": func(c *Call, _ *http.Request) {
			e := *c.endpoints[0]
			e.format = llmwire.OpenAIChat
			c.endpoints = Endpoints{&e}
		},
		"query":      func(_ *Call, r *http.Request) { r.URL.RawQuery = "a=2" },
		"version":    func(_ *Call, r *http.Request) { r.Header.Set("Anthropic-Version", "w") },
		"a beta":     func(_ *Call, r *http.Request) { r.Header.Set("Anthropic-Beta", "v") },
		"two betas":  func(_ *Call, r *http.Request) { r.Header["Anthropic-Beta"] = []string{"v", "w"} },
		"originator": func(_ *Call, r *http.Request) { r.Header.Set("Originator", "codex_exec") },
		"hops":       func(c *Call, _ *http.Request) { c.Hops = "a" },
		"OpenAI's":   func(_ *Call, r *http.Request) { r.Header.Set("Openai-Beta", "v") },
	} {
		k := key(change)
		if other, found := keys[k]; found {
			t.Errorf("another %s has the key of %s", name, other)
		}
		keys[k] = name
	}
}

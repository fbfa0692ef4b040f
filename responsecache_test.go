package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// maxCachedBody is how many bytes of a response the gateway caches.
const maxCachedBody = 1 << 20

// cachedConfig is textConfig with members of caching.
func cachedConfig(tokens int64, caching string, endpoints ...string) string {
	return strings.TrimSuffix(textConfig(tokens, endpoints...), "}") + `,"caching":{` + caching + `}}`
}

const cachingForAnHour = `"enabled":true,"text_ttl":3600,"transcription_ttl":3600,"fee_percentage":20`

// newCacheService is newService, for requests that come at once: the service knows the ID of its deployment, which each
// key of the cache has. Else only the first of them would wait for it.
func newCacheService(t testing.TB) *service {
	t.Helper()
	s := newService(t)
	s.newCacheTest(t, 1).call(t, chatPath, "{}")
	return s
}

// newCacheTest is newGatewayTest with caching for an hour, at a fee of 20 %.
func (s *service) newCacheTest(t testing.TB, tokens int64) *gatewayTest {
	t.Helper()
	p := providertest.New(t)
	return s.gatewayTest(t, p, cachedConfig(tokens, cachingForAnHour, endpointsJSON(p, "")...))
}

func (g *gatewayTest) cacheSample(t testing.TB, result string) int {
	t.Helper()
	return int(max(g.sample(t, fmt.Sprintf(`gateway_cache_total{tenant=%q,result=%q}`, g.tenant, result)), 0))
}

// decided waits until n responses were stored or skipped, and returns how many are cached.
func (g *gatewayTest) decided(t testing.TB, n int) int {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if got := g.cacheSample(t, "stored") + g.cacheSample(t, "skipped"); got != n {
			return fmt.Errorf("%d responses were stored or skipped, want %d", got, n)
		}
		return nil
	})
	return len(g.cacheKeys(t))
}

func (g *gatewayTest) cacheKeys(t testing.TB) []string {
	t.Helper()
	return testRedis.Keys(t, "cache:"+g.tenant+":*")
}

// miss sends a request that goes to the provider, and waits until its response is cached.
func (g *gatewayTest) miss(t testing.TB, path, body string, headers ...string) reply {
	t.Helper()
	before, requests := g.cacheSample(t, "stored"), len(g.provider.Requests())
	got := g.call(t, path, body, headers...)
	if err := got.is(200); err != nil {
		t.Fatal(err)
	}
	got.wantHeader(t, "X-Cache", "MISS")
	if n := len(g.provider.Requests()) - requests; n != 1 {
		t.Errorf("%d requests came to the provider", n)
	}
	g.awaitStored(t, before+1)
	return got
}

// awaitStored waits until the service has stored that many responses.
func (g *gatewayTest) awaitStored(t testing.TB, want int) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := g.cacheSample(t, "stored"); n != want {
			return fmt.Errorf("%d responses are stored, want %d", n, want)
		}
		return nil
	})
}

// hit sends a request that is responded to from the cache.
func (g *gatewayTest) hit(t testing.TB, path, body string, headers ...string) reply {
	t.Helper()
	requests := len(g.provider.Requests())
	got := g.call(t, path, body, headers...)
	if err := got.is(200); err != nil {
		t.Fatal(err)
	}
	got.wantHeader(t, "X-Cache", "HIT")
	if n := len(g.provider.Requests()) - requests; n != 0 {
		t.Errorf("%d requests came to the provider", n)
	}
	return got
}

// A response is replayed byte for byte to another key of the tenant, a stream as a stream, for the fee.
func TestCacheReplays(t *testing.T) {
	t.Parallel()
	s := newCacheService(t)
	const tool = `,"tools":[{"type":"function","name":"weather","function":{"name":"weather"}}]`
	for _, f := range wireFormats() {
		if !f.can("cache") {
			continue
		}
		t.Run(f.path, func(t *testing.T) {
			t.Parallel()
			p := providertest.New(t)
			g := s.gatewayTest(t, p, formatsConfig(p, 10_000, "", `,"caching":{`+cachingForAnHour+`}`))
			p.On("odd", providertest.Conduct{
				Piece: 7, LineEnd: "\r\n", Reasoning: "hm", Header: []string{"Content-Type: text/event-stream"},
			})
			p.On("long", providertest.Conduct{Content: strings.Repeat("ünd ", 2000), Events: 20, Size: 20_000})
			replayed := 0
			for _, test := range []struct {
				name, members string
				buffering     string // X-Accel-Buffering
			}{
				{"cache", ``, ""},
				{"cache of streams", `,STREAM`, "no"},
				{"cache, tool", tool, ""},
				{"cache of streams, tool", tool + `,STREAM`, "no"},
				{"cache of streams, odd", `,"model":"odd",STREAM`, "no"},
				{"cache, long", `,"model":"long"`, ""},
				{"cache of streams, long", `,"model":"long",STREAM`, "no"},
				{"cache of streams, usage", `,STREAM,"stream_options":{"include_usage":true}`, "no"},
				{"cache, limit", `,"max_tokens":1`, ""},
			} {
				if !f.can(test.name) || strings.Contains(test.members, "STREAM") && !f.can("stream") {
					continue
				}
				replayed++
				t.Run(test.name, func(t *testing.T) {
					body, fee := f.fill("{ASK"+test.members+"}"), (f.charged+4)/5 // a fifth of the cost, rounded up
					if test.name == "cache, limit" {
						fee = 3 // of 11 + 1
					}
					first := g.miss(t, f.path, body)
					g.key = g.login(t, g.tenant)
					got := g.hit(t, f.path, body)
					if got.body != first.body || got.body == "" {
						t.Errorf("got %q\nwant %q", got.body, first.body)
					}
					for _, name := range []string{"Content-Type", "Cache-Control", "X-Accel-Buffering", "Content-Length"} {
						got.wantHeader(t, name, first.header.Get(name))
					}
					got.wantHeader(t, "X-Accel-Buffering", test.buffering)
					got.wantHeader(t, "X-Tokens-Charged", strconv.Itoa(fee))
					got.wantHeader(t, "X-Tokens-Left", strconv.Itoa(10_000-fee))
					if left := tokensLeft(t, g.key); left != 10_000-fee {
						t.Errorf("%d tokens are left", left)
					}
					if age := seconds(t, got, "Age"); age < 0 || age > 60 {
						t.Errorf("Age is %d", age)
					}
				})
			}
			hits, misses, skipped := g.cacheSample(t, "hit"), g.cacheSample(t, "miss"), g.cacheSample(t, "skipped")
			if hits != replayed || misses != replayed || skipped != 0 {
				t.Errorf("%d hits, %d misses, %d skipped, want %d, %[4]d and none", hits, misses, skipped, replayed)
			}
		})
	}
}

// A hit that cannot be paid for, or is over the rate, is refused and costs nothing, before anything is sent. Who can pay
// the fee need not be able to pay for more.
func TestCacheCharges(t *testing.T) {
	t.Parallel()
	const body = `{"max_tokens":500}`
	p := providertest.New(t)
	s := newService(t)
	endpoint := endpointJSON(p, "chat", chatPath, "")
	for percent, fee := range map[int]int{0: 0, 20: 4, 100: 18} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			g := s.gatewayTest(t, p, cachedConfig(1000, fmt.Sprintf(`"enabled":true,"text_ttl":60,"fee_percentage":%d`, percent), endpoint))
			g.miss(t, chatPath, body)
			rich := g.key
			needed := max(fee, 1)
			for tokens, status := range map[int]int{needed: 200, needed - 1: 402} {
				g.key = s.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":"anonymous","tokens":%d`, tokens))
				requests := len(p.Requests())
				got := g.call(t, chatPath, body)
				if status == 200 {
					got.wantHeader(t, "X-Cache", "HIT")
					got.wantHeader(t, "X-Tokens-Charged", strconv.Itoa(fee))
					got.wantHeader(t, "X-Tokens-Left", strconv.Itoa(tokens-fee))
				} else {
					got.wantWireError(t, chatPath, 402, "insufficient_quota", "insufficient_quota")
					got.wantHeader(t, "X-Tokens-Left", strconv.Itoa(tokens))
					got.wantHeader(t, "Age", "")
					if left := tokensLeft(t, g.key); left != tokens {
						t.Errorf("%d tokens are left of %d", left, tokens)
					}
				}
				if n := len(p.Requests()); n != requests {
					t.Errorf("a request came to the provider")
				}
			}
			if n := tokensLeft(t, rich); n != 1000-18 {
				t.Errorf("%d tokens are left", n)
			}
		})
	}
	t.Run("rate, key and group", func(t *testing.T) {
		g := s.gatewayTest(t, p, strings.Replace(cachedConfig(1000, cachingForAnHour, endpoint),
			`{"tokens":1000}`, `{"tokens":1000,"rate_limit":3,"rate_limit_window":3600}`, 1))
		g.miss(t, chatPath, body)
		g.hit(t, chatPath, body).wantHeader(t, "X-RateLimit-Remaining-Requests", "1")
		g.hit(t, chatPath, body)
		got := g.call(t, chatPath, body)
		got.wantWireError(t, chatPath, 429, "rate_limit_error", "rate_limit_exceeded")
		if left := tokensLeft(t, g.key); left != 1000-18-4-4 || got.header.Get("Retry-After") == "" {
			t.Errorf("%d tokens are left, %v", left, got.header)
		}
		g.do(t, "POST", "/"+g.tenant+chatPath, body, bearer(someKey)).
			wantWireError(t, chatPath, 401, "invalid_request_error", "invalid_api_key")
		ungrouped := g.issue(t, g.tenant, `"userId":"u","group":"anonymous"`)
		testRedis.Do(t, "HSET", "apiKey:"+ungrouped, "group", "gone")
		g.do(t, "POST", "/"+g.tenant+chatPath, body, bearer(ungrouped)).
			wantWireError(t, chatPath, 403, "invalid_request_error", "key_disabled")
	})
}

// A response is found only by the same request: everything that it may depend on counts, and nothing else.
func TestCacheKey(t *testing.T) {
	t.Parallel()
	p, other := providertest.New(t), providertest.New(t)
	s := newService(t)
	config := func(p *providertest.Provider, name, members string) string {
		return cachedConfig(1_000_000, cachingForAnHour, fmt.Sprintf(`%q:{"url":"%s%s","models":{"*":{}}%s}`, name, p.URL, messagesPath, members))
	}
	const body, version = `{"messages":[]}`, "anthropic-version: 2023-06-01"
	g := s.gatewayTest(t, p, config(p, "a", `,"default_model":"m"`))
	g.miss(t, messagesPath, body, version)
	g.hit(t, messagesPath, body, version, "User-Agent: another", "X-Stainless-Lang: js", "Idempotency-Key: k", "X-Request-Id: r",
		"session-id: s", traceParent, "tracestate: a=1")
	if got := p.Last(t).Header.Get("User-Agent"); got != "tollgate" {
		t.Errorf("the provider got the client's User-Agent %q", got)
	}
	poor := s.issue(t, g.tenant, `"userId":"u","group":"anonymous","tokens":30`) // would be given a smaller limit
	s.do(t, "POST", "/"+g.tenant+messagesPath, body, bearer(poor), version).wantHeader(t, "X-Cache", "HIT")
	for name, test := range map[string]struct {
		path, body string
		headers    []string
	}{
		"query":      {messagesPath + "?beta=true", body, []string{version}},
		"version":    {messagesPath, body, []string{"anthropic-version: 2024-01-01"}},
		"no version": {messagesPath, body, nil},
		"beta":       {messagesPath, body, []string{version, "anthropic-beta: x"}},
		"two betas":  {messagesPath, body, []string{version, "anthropic-beta: x", "anthropic-beta: y"}},
		"originator": {messagesPath, body, []string{version, "originator: codex_exec"}},
		"no hops":    {messagesPath, body, []string{version, "Tollgate-Loop: x"}},
		"space":      {messagesPath, `{"messages": []}`, []string{version}},
		"model":      {messagesPath, `{"messages":[],"model":"m"}`, []string{version}},
	} {
		t.Run(name, func(t *testing.T) {
			g.miss(t, test.path, test.body, test.headers...)
			g.hit(t, test.path, test.body, test.headers...)
		})
	}
	t.Run("what is not forwarded", func(t *testing.T) {
		const evil = `{"messages":[],"temperature":1}`
		g.miss(t, messagesPath, evil, version, "Content-Type: application/json; charset=utf-7", "Accept: evil/accept")
		sent := p.Last(t).Header
		g.hit(t, messagesPath, evil, version)
		if sent.Get("Content-Type") != "application/json" || sent.Get("Accept") != "application/json" {
			t.Errorf("another key gets what the provider has sent for %v", sent)
		}
	})
	t.Run("reload", func(t *testing.T) {
		got := g.call(t, messagesPath, body, version, "Cache-Control: max-age=0")
		got.wantHeader(t, "X-Cache", "MISS")
		g.hit(t, messagesPath, body, version, "Cache-Control: max-age=60")
	})
	t.Run("config", func(t *testing.T) {
		for _, changed := range []string{
			config(p, "b", `,"default_model":"m"`), config(other, "a", `,"default_model":"m"`), config(p, "a", `,"default_model":"n"`),
		} {
			s.putConfig(t, g.tenant, changed).want(t, 200, "")
			if got := g.call(t, messagesPath, body, version); got.status != 200 || got.header.Get("X-Cache") != "MISS" {
				t.Errorf("%s: %d %v", changed, got.status, got.header)
			}
		}
	})
	t.Run("tenant", func(t *testing.T) {
		s.putConfig(t, g.tenant, config(p, "a", `,"default_model":"m"`)).want(t, 200, "")
		g.hit(t, messagesPath, body, version)
		another := s.gatewayTest(t, p, config(p, "a", `,"default_model":"m"`))
		another.miss(t, messagesPath, body, version)
		s.admin(t, "DELETE", "/admin/tenants/"+g.tenant, "").want(t, 204, "")
		s.createTenant(t, g.tenant, config(p, "a", `,"default_model":"m"`)).want(t, 201, "")
		g.key = s.login(t, g.tenant)
		g.miss(t, messagesPath, body, version)
		g.hit(t, messagesPath, body, version)
	})
}

// Cache-Control of the request: no-cache skips the lookup, no-store the storing too.
func TestCacheDirectives(t *testing.T) {
	t.Parallel()
	g := newService(t).newCacheTest(t, 10_000)
	const body = `{"messages":[]}`
	for _, header := range []string{"Cache-Control: no-store", "Cache-Control: max-age=0, No-Store ", "cache-control: no-cache,no-store"} {
		got := g.call(t, chatPath, body, header)
		got.wantHeader(t, "X-Cache", "MISS")
		got.wantHeader(t, "X-Tokens-Charged", "18")
	}
	g.miss(t, chatPath, body, "Cache-Control: max-age=0")
	g.provider.On("", providertest.Conduct{Content: "newer"})
	g.call(t, chatPath, body, "Cache-Control: no-store").wantHeader(t, "X-Cache", "MISS")
	if got := g.hit(t, chatPath, body); strings.Contains(got.body, "newer") {
		t.Errorf("no-store was stored: %s", got.body)
	}
	g.miss(t, chatPath, body, "Cache-Control: NO-CACHE")
	if got := g.hit(t, chatPath, body); !strings.Contains(got.body, "newer") {
		t.Errorf("no-cache was not stored: %s", got.body)
	}
	if n := g.cacheSample(t, "bypass"); n != 6 || g.cacheSample(t, "stored") != 2 || g.cacheSample(t, "skipped") != 0 {
		t.Errorf("%d were bypassed", n)
	}
	if n := len(g.cacheKeys(t)); n != 1 {
		t.Errorf("%d responses are cached", n)
	}
}

// A response is as old as it is, and served for the text_ttl of the present config.
func TestCacheTTL(t *testing.T) {
	t.Parallel()
	g := newService(t).newCacheTest(t, 10_000)
	const body = `{"messages":[]}`
	g.miss(t, chatPath, body)
	entry := g.cacheKeys(t)[0]
	if ttl := testRedis.Int(t, "TTL", entry); ttl < 3500 || ttl > 3600 {
		t.Errorf("it expires after %d s", ttl)
	}
	value := strings.SplitN(testRedis.String(t, "GET", entry), " ", 3)
	age := func(d time.Duration) {
		testRedis.Do(t, "SET", entry, fmt.Sprintf("1 %d %s", time.Now().Add(-d).UnixMilli(), value[2]), "EX", 3600)
	}
	put := func(caching string) {
		s, p := g.service, g.provider
		s.putConfig(t, g.tenant, cachedConfig(10_000, caching, endpointJSON(p, "chat", chatPath, ""))).want(t, 200, "")
	}
	age(1000 * time.Second)
	if n, err := strconv.Atoi(g.hit(t, chatPath, body).header.Get("Age")); err != nil || n < 1000 || n > 1060 {
		t.Errorf("Age is %d", n)
	}
	age(-time.Hour) // by a clock that is ahead
	g.hit(t, chatPath, body).wantHeader(t, "Age", "0")
	age(1000 * time.Second)
	put(`"enabled":true,"text_ttl":1100`)
	g.hit(t, chatPath, body).wantHeader(t, "X-Tokens-Charged", "0") // without fee_percentage
	put(`"enabled":true,"text_ttl":999`)
	g.miss(t, chatPath, body)
	if ttl := testRedis.Int(t, "TTL", entry); ttl < 900 || ttl > 999 {
		t.Errorf("it expires after %d s", ttl)
	}
	for _, off := range []string{`"text_ttl":3600`, `"enabled":false,"text_ttl":3600`, `"enabled":true`, `"enabled":true,"text_ttl":0`} {
		put(off)
		got := g.call(t, chatPath, body)
		got.wantHeader(t, "X-Cache", "")
		got.wantHeader(t, "X-Tokens-Charged", "18")
	}
	testRedis.Do(t, "DEL", entry)
	put(`"enabled":true,"text_ttl":9007199254740991`)
	g.miss(t, chatPath, body)
	g.hit(t, chatPath, body)
	testRedis.Do(t, "DEL", entry)
	put(`"enabled":true,"text_ttl":1`)
	g.miss(t, chatPath, body)
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := testRedis.Int(t, "EXISTS", entry); n != 0 {
			return fmt.Errorf("it does not expire")
		}
		return nil
	})
}

// chatEnd is a response of OpenAI with that finish reason and those further members of its message.
func chatEnd(reason, members string) providertest.Conduct {
	return providertest.Conduct{Body: `{"choices":[{"message":{"content":"a"` + members + `},"finish_reason":"` + reason +
		`"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`}
}

// messageEnd is a response of Anthropic with that stop reason.
func messageEnd(reason string) providertest.Conduct {
	return providertest.Conduct{Body: `{"type":"message","content":[],"stop_reason":"` + reason +
		`","usage":{"input_tokens":1,"output_tokens":1}}`}
}

// cacheCase is a request with those members, and what the provider does.
type cacheCase struct {
	name, path, members string
	conduct             providertest.Conduct
}

// testCacheCases sends each request twice, to a tenant of its own. Of its responses stored are cached after the first
// time, and the second response has again as its X-Cache.
func testCacheCases(t *testing.T, stored int, again string, cases []cacheCase) {
	t.Helper()
	s := newCacheService(t)
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := s.newCacheTest(t, 10_000_000)
			g.provider.On("", test.conduct)
			send := func(want string) {
				got, err := g.send("POST", "/"+g.tenant+test.path, `{`+test.members+`}`, bearer(g.key))
				if err != nil {
					t.Fatal(err)
				}
				got.wantHeader(t, "X-Cache", want)
			}
			send("MISS")
			if n := g.decided(t, 1); n != stored {
				t.Errorf("%d responses are cached", n)
			}
			send(again)
		})
	}
}

// A whole response is stored if it ended in a way in which every response to that request may end.
func TestCacheStores(t *testing.T) {
	t.Parallel()
	longText := strings.Repeat("x", maxCachedBody)
	const stream = `"stream":true`
	testCacheCases(t, 1, "HIT", []cacheCase{
		{"stop", chatPath, ``, chatEnd("stop", "")},
		{"tool_calls", chatPath, ``, chatEnd("tool_calls", "")},
		{"end_turn", messagesPath, ``, messageEnd("end_turn")},
		{"tool_use", messagesPath, ``, messageEnd("tool_use")},
		{"stop_sequence", messagesPath, ``, messageEnd("stop_sequence")},
		{"length of the client", chatPath, `"max_tokens":3`, providertest.Conduct{}},
		{"length of the client, stream", chatPath, `"max_completion_tokens":3,` + stream, providertest.Conduct{}},
		{"max_tokens of the client", messagesPath, `"max_tokens":3`, providertest.Conduct{}},
		{"almost too long", chatPath, ``, chatEnd("stop", `,"x":"`+longText[:maxCachedBody-500]+`"`)},
	})
}

// A response that ended in another way, or cannot be replayed as it was, is not stored.
func TestCacheSkips(t *testing.T) {
	t.Parallel()
	longText := strings.Repeat("x", maxCachedBody)
	const stream = `"stream":true`
	testCacheCases(t, 0, "MISS", []cacheCase{
		{"length", chatPath, ``, chatEnd("length", "")},
		{"max_tokens", messagesPath, ``, messageEnd("max_tokens")},
		{"content_filter", chatPath, `"max_tokens":9`, chatEnd("content_filter", "")},
		{"refusal", chatPath, ``, chatEnd("stop", `,"refusal":"no"`)},
		{"refusal, Anthropic", messagesPath, `"max_tokens":9`, messageEnd("refusal")},
		{"pause_turn", messagesPath, `"max_tokens":9`, messageEnd("pause_turn")},
		{"unknown", messagesPath, `"max_tokens":9`, messageEnd("magic")},
		{"an unknown end and a limit", chatPath, `"max_tokens":9,"n":2`, providertest.Conduct{
			Body: `{"choices":[{"index":0,"finish_reason":"magic"},{"index":1,"finish_reason":"length"}],` +
				`"usage":{"prompt_tokens":1,"completion_tokens":1}}`}},
		{"a choice is missing", chatPath, `"n":2`, chatEnd("stop", "")},
		{"no end", chatPath, ``, providertest.Conduct{Body: `{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}`}},
		{"no usage", chatPath, ``, providertest.Conduct{NoUsage: true}},
		{"no usage, stream", messagesPath, stream, providertest.Conduct{NoUsage: true}},
		{"error beside it", chatPath, ``, providertest.Conduct{Body: strings.Replace(chatEnd("stop", "").Body, "{", `{"error":{},`, 1)}},
		{"cannot be read to its end", chatPath, ``, providertest.Conduct{Body: strings.TrimSuffix(chatEnd("stop", "").Body, "}") +
			`,"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`}},
		{"201", chatPath, ``, providertest.Conduct{Status: 201, Body: chatEnd("stop", "").Body}},
		{"no end marker", chatPath, stream, providertest.Conduct{End: providertest.BeforeEnd}},
		{"no usage at the end", chatPath, stream, providertest.Conduct{End: providertest.BeforeUsage}},
		{"too long", chatPath, ``, chatEnd("stop", `,"x":"`+longText+`"`)},
		{"too long, stream", chatPath, stream, providertest.Conduct{Content: longText[:1000], Events: maxCachedBody / 1000}},
		{"media type", chatPath, ``, providertest.Conduct{Header: []string{"Content-Type: application/json;x=" + longText[:300]}}},
	})
}

// A response that fails is not stored. The next one, which does not, is.
func TestCacheSkipsFailures(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for name, c := range map[string]providertest.Conduct{
		"cut": {Cut: providertest.InContent}, "error event": {Error: providertest.BeforeEnd},
		"400": providertest.Refuse(400), "500": providertest.Refuse(500), "no bytes": {Cut: providertest.BeforeHeaders},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, path := range []string{chatPath, messagesPath} {
				g := s.newCacheTest(t, 10_000)
				g.provider.On("", c)
				_, _ = g.send("POST", "/"+g.tenant+path, `{"stream":true}`, bearer(g.key))
				g.charged(t, 10_000)
				g.provider.On("", providertest.Conduct{})
				g.miss(t, path, `{"stream":true}`)
				if n := g.cacheSample(t, "stored") + g.cacheSample(t, "hit"); n != 1 {
					t.Errorf("it was stored")
				}
			}
		})
	}
	t.Run("another endpoint", func(t *testing.T) {
		t.Parallel()
		first, second := providertest.New(t), providertest.New(t)
		first.On("", providertest.Refuse(503))
		g := s.gatewayTest(t, first, cachedConfig(1000, cachingForAnHour,
			endpointJSON(first, "a", chatPath, ""), endpointJSON(second, "b", chatPath, "")))
		g.call(t, chatPath, `{"max_tokens":9}`).wantHeader(t, "X-Cache", "MISS")
		if n := len(second.Requests()); n != 1 {
			t.Errorf("the second endpoint got %d requests", n)
		}
		if n := len(g.cacheKeys(t)); n != 0 {
			t.Errorf("%d responses are cached", n)
		}
	})
}

// A client that hangs up when it has seen the end marker, as SDKs do, has had the whole stream.
func TestCacheHangUp(t *testing.T) {
	t.Parallel()
	g := newService(t).newCacheTest(t, 10_000)
	for path, end := range map[string]string{chatPath: "[DONE]", messagesPath: `"message_stop"}`} {
		g.open(t, path, `{"stream":true}`, end).Close()
	}
	if n := g.decided(t, 2); n != 2 {
		t.Errorf("%d streams are cached", n)
	}
	if got := g.hit(t, chatPath, `{"stream":true}`); !strings.HasSuffix(got.body, "data: [DONE]\n\n") {
		t.Errorf("%s", got.body)
	}
	g.hit(t, messagesPath, `{"stream":true}`)
}

// What cannot be used in the cache is a miss, and costs what a miss costs.
func TestCacheUnreadable(t *testing.T) {
	t.Parallel()
	g := newService(t).newCacheTest(t, 1_000_000)
	const body = `{"max_tokens":9}`
	g.miss(t, chatPath, body)
	entry, now := g.cacheKeys(t)[0], time.Now().UnixMilli()
	for _, value := range []string{
		"", "1", "\n", "1 2 3 4 5 6 x", "2 2 3 4 5 0 application/json\n", "1 a 18 11 7 2 application/json\n{}",
		fmt.Sprintf("1 %d -18 11 7 2 application/json\n{}", now),
		fmt.Sprintf("1 %d 18 11 7 1 application/json\n{}", now),       // longer than it says
		fmt.Sprintf("1 %d 18 11 7 9 application/json\n{}", now),       // shorter
		fmt.Sprintf("1 %d 18 11 7 9999999 application/json\n{}", now), // too long
	} {
		testRedis.Do(t, "SET", entry, value)
		before := tokensLeft(t, g.key)
		g.miss(t, chatPath, body)
		if n := before - tokensLeft(t, g.key); n != 18 {
			t.Errorf("%q: charged %d", value, n)
		}
		g.hit(t, chatPath, body)
	}
	testRedis.Do(t, "DEL", entry)
	testRedis.Do(t, "LPUSH", entry, "x")
	g.call(t, chatPath, body).wantHeader(t, "X-Cache", "MISS")
	if g.log.Count("[ERROR]") != 0 {
		t.Errorf("log:\n%s", g.log)
	}
}

// Requests that come while nothing is cached all go to the provider, and each pays in full: what was granted is what was
// charged and what is left.
func TestCacheRace(t *testing.T) {
	t.Parallel()
	const granted, clients = 100_000, 100
	p := providertest.New(t)
	services := newServices(t)
	p.On("", providertest.Conduct{Delay: 20 * time.Millisecond})
	g := services[0].gatewayTest(t, p, cachedConfig(granted, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")))
	results := make(chan string, clients)
	for i := range clients {
		go func() {
			got, err := services[i%2].send("POST", "/"+g.tenant+chatPath, `{"max_tokens":9}`, bearer(g.key))
			results <- fmt.Sprint(got.status, got.header.Get("X-Cache"), got.header.Get("X-Tokens-Charged"), err)
		}()
	}
	hits, misses := 0, 0
	for range clients {
		switch got := <-results; got {
		case "200HIT4<nil>":
			hits++
		case "200MISS18<nil>":
			misses++
		default:
			t.Errorf("got %s", got)
		}
	}
	if n := len(p.Requests()); n != misses || misses == 0 {
		t.Errorf("%d misses, %d requests came to the provider", misses, n)
	}
	if n := g.charged(t, granted); n != 18*misses+4*hits {
		t.Errorf("charged %d for %d misses and %d hits", n, misses, hits)
	}
	waittest.Eventually(t, 20*time.Second, func() error { // one process finds what the other has stored
		got := services[1].do(t, "POST", "/"+g.tenant+chatPath, `{"max_tokens":9}`, bearer(g.key))
		if got.header.Get("X-Cache") != "HIT" {
			return fmt.Errorf("%d %v", got.status, got.header)
		}
		return nil
	})
}

// What is read of a cached response before its fee is charged comes over a connection that only such reads share. The
// rest of a large one comes over another, so that it delays none of them. No charge waits behind either.
func TestCacheConnections(t *testing.T) {
	t.Parallel()
	r, p := redistest.New(t), providertest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	tenant := newTenantIn(t, r, cachedConfig(100_000, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")))
	g := &gatewayTest{service: s, provider: p, tenant: tenant, key: s.login(t, tenant)}
	const small, large = `{"max_tokens":9}`, `{"max_tokens":9,"model":"large"}`
	p.On("large", providertest.Conduct{Content: strings.Repeat("x", 100_000)})
	g.miss(t, chatPath, small)
	g.miss(t, chatPath, large)
	heads := "" // the connection that they come over
	for _, body := range []string{small, large} {
		watched := watchCommands(t, r)
		g.hit(t, chatPath, body)
		sent := watched()
		charges := sent["EVALSHA apiKey:"+g.key]
		reads := 0
		for command, from := range sent {
			name, key, _ := strings.Cut(command, " ")
			if !strings.HasPrefix(key, "cache:") {
				continue
			}
			if heads == "" {
				heads = from
			}
			if isHead := name == "GETRANGE"; from == charges || isHead != (from == heads) || !isHead && body == small {
				t.Errorf("%s: %s came from %s, heads from %s, the charge from %s", body, command, from, heads, charges)
			}
			reads++
		}
		if want := map[string]int{small: 1, large: 2}[body]; reads != want {
			t.Errorf("%s: %d commands read the cache, want %d", body, reads, want)
		}
	}
}

// watchCommands returns a function that returns what clients have sent to r since, but for what scripts did: the
// addresses that commands came from, by their name in capital letters and their first key.
func watchCommands(t *testing.T, r *redistest.Server) func() map[string]string {
	t.Helper()
	c, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Do("MONITOR"); err != nil {
		t.Fatal(err)
	}
	return func() map[string]string {
		const last = "the-last-one"
		r.Do(t, "ECHO", last)
		from := make(map[string]string)
		for {
			line, err := redis.String(c.Receive())
			if err != nil {
				t.Fatal(err)
			}
			// Such as: 1339518083.107412 [0 127.0.0.1:60866] "GET" "key"
			fields := append(strings.Fields(strings.ReplaceAll(line, `"`, "")), "", "", "")
			address, name, key := strings.TrimSuffix(fields[2], "]"), strings.ToUpper(fields[3]), fields[4]
			switch {
			case key == last:
				return from
			case name == "EVALSHA":
				key = fields[6] // after the script and the number of keys
			}
			if address != "lua" {
				from[name+" "+key] = address
			}
		}
	}
}

// A Redis that is short of memory is left alone: nothing is stored, the log says so once, and what is cached is served.
func TestCacheFull(t *testing.T) {
	t.Parallel()
	r, p := redistest.New(t), providertest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	tenant := newTenantIn(t, r, cachedConfig(100_000, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")))
	g := &gatewayTest{service: s, provider: p, tenant: tenant, key: s.login(t, tenant)}
	g.miss(t, chatPath, `{}`)
	used, _ := memoryOf(t, r)
	r.Do(t, "CONFIG", "SET", "maxmemory", used+used/5)
	for i := 0; g.cacheSample(t, "skipped") < 3; i++ {
		if i == 300 {
			t.Fatal("it goes on to store")
		}
		if err := g.call(t, chatPath, fmt.Sprintf(`{"seed":%d}`, i)).is(200); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // until Redis's memory is looked at again
	}
	const line = "[WARN] Redis uses more than three quarters of its memory: responses are neither cached nor remembered for their owners\n"
	if n := s.log.Count(line); n != 1 || s.log.Count("[ERROR]") != 0 {
		t.Errorf("log:\n%s", s.log)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	g.hit(t, chatPath, `{}`)
}

// In a cluster the responses of one tenant and its API keys are on all masters.
func testCacheInCluster(t *testing.T) {
	c := redistest.SharedCluster(t)
	p := providertest.New(t)
	s := newService(t, "REDIS_URL="+c.URL())
	tenant := newClusterTenant(t, s, cachedConfig(10_000, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")))
	p.On("long", providertest.Conduct{Content: strings.Repeat("x", 100_000)})
	g := &gatewayTest{service: s, provider: p, tenant: tenant}
	const requests = 12
	isStored, late := false, 0
	for _, keys := range keysOn(t, c, s, tenant, 1, `"userId":"u","group":"anonymous"`) {
		g.key = keys[0]
		cost := 0
		for i := range requests {
			body := fmt.Sprintf(`{"model":%q,"max_tokens":9,"user":"%d"}`, []string{"m", "long"}[i%2], i)
			if !isStored {
				g.miss(t, chatPath, body)
				cost += 18
			}
			stored := g.cacheSample(t, "stored")
			got := g.call(t, chatPath, body)
			if err := got.is(200); err != nil {
				t.Fatal(err)
			}
			if cost += 4; got.header.Get("X-Cache") != "HIT" { // a busy machine may exceed the patience of 300 ms
				cost += 14
				late++
				g.awaitStored(t, stored+1)
			}
		}
		isStored = true
		if left := balanceIn(t, c, g.key); left != 10_000-cost {
			t.Errorf("%d tokens are left, want %d", left, 10_000-cost)
		}
	}
	if late > 2 {
		t.Errorf("%d of %d responses did not come from the cache", late, 3*requests)
	}
	found := 0
	for _, node := range c.MastersNow(t) {
		if n := len(node.Keys(t, "cache:"+tenant+":*")); n > 0 {
			found++
		}
	}
	if found < 2 {
		t.Errorf("responses are on %d masters", found)
	}
}

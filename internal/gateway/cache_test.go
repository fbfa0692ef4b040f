package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"tollgate/internal/fairpool"
)

const cachingForAnHour = `"enabled":true,"text_ttl":3600,"fee_percentage":20`

// newCached returns a gateway that caches for an hour, at a fee of 20 %.
func newCached(t testing.TB, s http.Handler) *testGateway {
	t.Helper()
	g := newScripted(t, s, "")
	g.caching = readCaching(t, cachingForAnHour)
	return g
}

// wantCached sends a request whose response has that X-Cache, and waits until the cache was told result.
func (g *testGateway) wantCached(t testing.TB, body, header string, result CacheResult, headers ...string) *http.Response {
	t.Helper()
	before := g.kept.counted(result)
	response, _, err := g.post(t, body, headers...)
	if err != nil || response.StatusCode != 200 || response.Header.Get("X-Cache") != header {
		t.Fatalf("got %v, %v; want X-Cache %s", response, err, header)
	}
	eventually(t, "counted as "+strconv.Itoa(int(result)), func() bool { return g.kept.counted(result) == before+1 })
	return response
}

// A response is replayed byte for byte for its fee, a stream as a stream.
func TestReplay(t *testing.T) {
	long := strings.Replace(completion, "Hello.", strings.Repeat("x", 3*firstRead), 1)
	for name, test := range map[string]struct {
		body   string
		server script
	}{
		"whole":       {whole, jsonBody(completion)},
		"long":        {whole, jsonBody(long)},
		"stream":      {streamed, stream(content, reason, usage, done)},
		"long stream": {streamed, stream(content, strings.Repeat(comment, 3000), reason, usage, done)},
	} {
		t.Run(name, func(t *testing.T) {
			g := newCached(t, test.server)
			first := g.wantCached(t, test.body, "MISS", CacheStored)
			got := g.wantCached(t, test.body, "HIT", CacheHit)
			for _, header := range []string{"Content-Type", "Cache-Control", "X-Accel-Buffering", "Content-Length"} {
				if got.Header.Get(header) != first.Header.Get(header) {
					t.Errorf("%s is %q, was %q", header, got.Header.Get(header), first.Header.Get(header))
				}
			}
			if h := got.Header; h.Get("X-Tokens-Charged") != "4" || h.Get("X-Tokens-Left") != "9978" || h.Get("Age") != "0" {
				t.Errorf("got %v", h)
			}
			_, body, _ := g.post(t, test.body)
			if want := strings.Join(test.server.parts, ""); body != strings.Replace(want, usage, "", 1) {
				t.Errorf("got %d bytes of %d", len(body), len(want))
			}
			if a := g.account; len(a.settled) != 1 || len(a.charged) != 2 || a.charged[0] != (Usage{Endpoint: "e", Model: "m", Cost: 4}) {
				t.Errorf("%v was charged, %v settled", a.charged, a.settled)
			}
			g.wantNothingHeld(t)
		})
	}
}

// What is charged for names the model, but keeps no more of it than a config's name may have.
func TestUsageModel(t *testing.T) {
	server := jsonBody(completion)
	g := newScripted(t, server, `,"models":{"*":{}}`)
	long := strings.Repeat("é", maxModelBytes)
	for model, want := range map[string]string{"": "m", "e/x": "x", "a b/c": "a b/c", long: long[:maxModelBytes]} {
		body := whole
		if model != "" {
			body = strings.Replace(whole, "{", `{"model":"`+model+`",`, 1)
		}
		before := len(g.account.settled)
		_, _, _ = g.post(t, body)
		if a := g.account; len(a.settled) != before+1 || a.settled[before].Model != want || a.settled[before].Endpoint != "e" {
			t.Errorf("%.20s: %v was settled, want %.20s", model, a.settled[before:], want)
		}
	}
}

// A hit needs its fee and no more. If the response is gone once that was charged, it is given back.
func TestFees(t *testing.T) {
	g := newCached(t, jsonBody(strings.Replace(completion, "Hello.", strings.Repeat("x", firstRead), 1)))
	g.wantCached(t, whole, "MISS", CacheStored)
	g.account.left = 4
	g.wantCached(t, whole, "HIT", CacheHit)
	response, body, _ := g.post(t, whole)
	const refusal = "The cached response needs 4 tokens, 0 are left"
	if response.StatusCode != 402 || body != refusal || response.Header.Get("X-Tokens-Left") != "0" {
		t.Errorf("got %v %s", response, body)
	}
	g.account.left, g.kept.cut = 1000, true
	g.wantCached(t, whole, "MISS", CacheMiss)
	if g.account.left != 1000-18 {
		t.Errorf("%d are left", g.account.left)
	}
	g.account.refund = errors.New("a timeout")
	g.wantCached(t, whole, "MISS", CacheMiss)
	if g.log.count("[WARN] A fee of 4 tokens of tenant acme was not returned: a timeout\n") != 1 {
		t.Errorf("log:\n%s", g.log.text.String())
	}
	g.wantNothingHeld(t)
}

// Only what every response to the request may be is stored, and what the client allows.
func TestSkips(t *testing.T) {
	with := func(old, new string) script { return jsonBody(strings.Replace(completion, old, new, 1)) }
	const jsonType = "Content-Type: application/json"
	comments := strings.Repeat(comment, 1+maxCachedBody/len(comment))
	for name, test := range map[string]struct {
		body   string
		server script
		result CacheResult
	}{
		"length of the client's": {whole, with("stop", "length"), CacheStored},
		"length":                 {`{}`, with("stop", "length"), CacheSkipped},
		"filter":                 {whole, with("stop", "content_filter"), CacheSkipped},
		"no usage":               {whole, with("usage", "used"), CacheSkipped},
		"201":                    {whole, script{201, jsonType, []string{completion}}, CacheSkipped},
		"media type":             {whole, script{200, jsonType + ";" + strings.Repeat("x", 256), []string{completion}}, CacheSkipped},
		"too long":               {whole, with("Hello.", strings.Repeat("x", maxCachedBody)), CacheSkipped},
		"no end marker":          {streamed, stream(content, reason, usage), CacheSkipped},
		"too long a stream":      {streamed, stream(content, comments, reason, usage, done), CacheSkipped},
	} {
		t.Run(name, func(t *testing.T) {
			g := newCached(t, test.server)
			response, _, err := g.post(t, test.body)
			if err != nil || response.Header.Get("X-Cache") != "MISS" {
				t.Errorf("got %v, %v", response, err)
			}
			eventually(t, "decided", func() bool { return g.kept.counted(CacheStored)+g.kept.counted(CacheSkipped) == 1 })
			if g.kept.counted(test.result) != 1 || g.kept.counted(CacheMiss) != 1 {
				t.Errorf("got %v", g.kept.counts)
			}
			g.wantNothingHeld(t)
		})
	}
	t.Run("directives", func(t *testing.T) {
		g := newCached(t, jsonBody(completion))
		g.wantCached(t, whole, "MISS", CacheBypass, "Cache-Control: no-store")
		g.wantCached(t, whole, "MISS", CacheStored)
		g.wantCached(t, whole, "MISS", CacheStored, "Cache-Control: no-cache")
		if g.kept.counted(CacheBypass) != 2 || g.kept.counted(CacheSkipped) != 0 {
			t.Errorf("got %v", g.kept.counts)
		}
	})
	t.Run("another endpoint", func(t *testing.T) {
		g := newCached(t, script{status: 503})
		url := newServer(t, jsonBody(completion))
		g.endpoints = append(g.endpoints, newEndpoint(t, "f", `"default_model":"m","url":"`+url+`"`))
		g.wantCached(t, whole, "MISS", CacheMiss)
		if n := g.kept.counted(CacheStored) + g.kept.counted(CacheSkipped); n != 0 {
			t.Errorf("got %v", g.kept.counts)
		}
	})
}

// A response is served for as long as the rules say now.
func TestStale(t *testing.T) {
	g := newCached(t, jsonBody(completion))
	g.wantCached(t, whole, "MISS", CacheStored)
	for key, value := range g.kept.values {
		r, _ := parseCachedResponse(value)
		r.storedAt = time.Now().Add(-100 * time.Second)
		g.kept.values[key] = r.encode()
	}
	if age, _ := strconv.Atoi(g.wantCached(t, whole, "HIT", CacheHit).Header.Get("Age")); age < 100 || age > 160 {
		t.Errorf("Age is %d", age)
	}
	g.caching = readCaching(t, `"enabled":true,"text_ttl":99`)
	g.wantCached(t, whole, "MISS", CacheMiss)
}

// fill lets a claim take n.
func fill(t testing.TB, claim *fairpool.Claim, n int64) {
	t.Helper()
	if err := claim.Add(n); err != nil {
		t.Fatal(err)
	}
}

// A response is written in the background if not too many wait, and a stream is kept for that if there is memory for it.
func TestCacheBounds(t *testing.T) {
	g := newCached(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := jsonBody(completion)
		if r.Header.Get("Originator") == "stream" {
			s = stream(content, reason, usage, done)
		}
		s.ServeHTTP(w, r)
	}))
	for _, full := range []struct {
		pool *fairpool.Pool
		body string
	}{{g.cache.waiting, whole}, {g.cache.collected, streamed}} {
		var all []*fairpool.Claim
		for i := range 8 {
			all = append(all, full.pool.Claim(strconv.Itoa(i), "user"))
			fill(t, all[i], full.pool.Stats().Size/8)
		}
		g.wantCached(t, full.body, "MISS", CacheSkipped, "Originator: "+map[bool]string{true: "stream"}[full.body == streamed])
		if s := full.pool.Stats(); s.Used != s.Size {
			t.Errorf("%d of %d are used", s.Used, s.Size)
		}
		all[0].Release()
		g.wantCached(t, full.body, "MISS", CacheStored, "Originator: "+map[bool]string{true: "stream"}[full.body == streamed])
	}
	g.kept.full = errors.New("it is full")
	g.wantCached(t, `{"n":2}`, "MISS", CacheSkipped)
	g.kept.full = nil
	g.cache.stop()
	g.wantCached(t, `{"n":1}`, "MISS", CacheSkipped)
	eventually(t, "everything written", func() bool { return g.cache.waiting.Stats().Used == 7*maxCacheWaits/8 })
}

// A stream that breaks gives back the memory that it was kept in.
func TestCutWhileCollected(t *testing.T) {
	g := newCached(t, stream(content, cut))
	if _, _, err := g.post(t, streamed); err == nil {
		t.Error("it was whole")
	}
	g.wantNothingHeld(t)
	if n := g.kept.counted(CacheStored) + g.kept.counted(CacheSkipped); n != 0 {
		t.Errorf("got %v", g.kept.counts)
	}
}

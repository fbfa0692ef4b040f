package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// A waitingTest is a service with 20 connections, of which 10 may wait for a provider: a tenant has a share of 5, and a
// key one of 1, or 4 while half is free.
type waitingTest struct {
	*gatewayTest
	neighbour *gatewayTest // another tenant of the service, with a provider of its own
}

func newWaitingTest(t *testing.T) *waitingTest {
	t.Helper()
	s := newService(t, "MAX_CONNECTIONS=20")
	return &waitingTest{s.newGatewayTest(t, 10_000_000, ""), s.newGatewayTest(t, 10_000_000, "")}
}

// used returns how much of a pool is used.
func (s *service) used(t testing.TB, pool string) float64 {
	t.Helper()
	return s.sample(t, fmt.Sprintf("pool_used{pool=%q}", pool))
}

// awaitUsed waits until as much of a pool is used.
func (s *service) awaitUsed(t testing.TB, pool string, want float64) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := s.used(t, pool); got != want {
			return fmt.Errorf("%v of the pool %s are used, want %v", got, pool, want)
		}
		return nil
	})
}

// awaitAtLeast waits until at least as much of a pool is used.
func (s *service) awaitAtLeast(t testing.TB, pool string, want float64) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := s.used(t, pool); got < want {
			return fmt.Errorf("%v of the pool %s are used, want %v", got, pool, want)
		}
		return nil
	})
}

// wait begins n calls that wait for the provider, each on a connection of its own.
func (g *gatewayTest) wait(t testing.TB, n int, path, body string) (connections []net.Conn) {
	t.Helper()
	before := len(g.provider.Requests())
	for range n {
		c := g.begin(t, "POST", "/"+g.tenant+path, len(body), bearer(g.key))
		fmt.Fprint(c, body)
		connections = append(connections, c)
	}
	g.awaitRequests(t, before+n)
	return connections
}

// wantOpen checks that health checks and charges find a connection, and that another tenant's request is served.
func (w *waitingTest) wantOpen(t *testing.T) {
	t.Helper()
	began := time.Now()
	w.do(t, "GET", "/healthz", "").want(t, 200, "")
	w.do(t, "GET", "/readyz", "").want(t, 200, "")
	w.consume(t, w.tenant, w.login(t, w.tenant), "").want(t, 200, "")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	w.neighbour.wantServed(t, "{}")
}

// wantServed checks that a call is responded to by the provider.
func (g *gatewayTest) wantServed(t testing.TB, body string) {
	t.Helper()
	if err := g.call(t, chatPath, body).is(200); err != nil {
		t.Error(err)
	}
}

// TestWaitingShares lets one key wait as often as it may, in each way in which a request waits.
func TestWaitingShares(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, path, body string }{
		{"JSON", chatPath, "{}"},
		{"a stream", messagesPath, `{"stream":true}`},
		{"a count of tokens", messagesPath + "/count_tokens", "{}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWaitingTest(t)
			w.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
			w.wait(t, 4, test.path, test.body)
			left := tokensLeft(t, w.key)
			refused := w.call(t, test.path, test.body)
			refused.want(t, 503, "")
			refused.wantHeader(t, "Retry-After", "1")
			if now := tokensLeft(t, w.key); now != left {
				t.Errorf("a refused request has changed the balance from %d to %d", left, now)
			}
			w.wantOpen(t)
			w.key = w.login(t, w.tenant)
			w.wait(t, 1, test.path, test.body) // the last quarter of the tenant's share
			w.key = w.login(t, w.tenant)
			w.call(t, test.path, test.body).want(t, 503, "")
			w.wantOpen(t)
			w.provider.Stop()
			w.awaitUsed(t, "waiting", 0)
		})
	}
}

// A key's share of the requests is the max_concurrent of its own group, as far as its tenant has as many, also if the
// largest of other groups is more.
func TestMaxConcurrentShare(t *testing.T) {
	t.Parallel()
	long := `{"x":"` + strings.Repeat("x", gateway.FreeBodyBytes) + `"}`
	for _, test := range []struct {
		group, path, body string
		want              int
	}{
		{"many", chatPath, "{}", 5}, {"many", messagesPath + "/count_tokens", "{}", 5}, {"many", chatPath, long, 5},
		{"few", chatPath, "{}", 4}, {"few", messagesPath + "/count_tokens", "{}", 4}, {"few", chatPath, long, 4},
	} {
		t.Run(fmt.Sprintf("%s, %s, %d bytes", test.group, test.path, len(test.body)), func(t *testing.T) {
			t.Parallel()
			p := providertest.New(t)
			config := textConfig(1, endpointsJSON(p, `,"allow":["x"]`)...)
			config = strings.Replace(config, `{"anonymous":`,
				`{"many":{"tokens":10000000,"max_concurrent":1000},"few":{"tokens":10000000},"anonymous":`, 1)
			g := newService(t, "MAX_CONNECTIONS=20").gatewayTest(t, p, config)
			g.key = g.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":%q`, test.group))
			p.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
			g.wait(t, test.want-1, test.path, test.body)
			g.wait(t, 1, test.path, test.body) // the others have their places, so that it is refused early if it is
			left := tokensLeft(t, g.key)
			g.call(t, test.path, test.body).want(t, 503, "")
			if now := tokensLeft(t, g.key); now != left {
				t.Errorf("a refused request has changed the balance from %d to %d", left, now)
			}
			p.Stop()
			g.awaitUsed(t, "waiting", 0)
		})
	}
}

// TestClientsThatAreGone lets clients of one key leave while their requests wait: each gives its connection back, and
// its place for a drain. What the provider generates is charged.
func TestClientsThatAreGone(t *testing.T) {
	t.Parallel()
	w := newWaitingTest(t)
	w.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	for round := 1; round <= 6; round++ { // 24 in all, with 20 connections
		for _, c := range w.wait(t, 4, chatPath, "{}") {
			c.Close()
		}
		w.awaitUsed(t, "drains", float64(4*round))
	}
	w.awaitUsed(t, "waiting", 0)
	w.wantOpen(t)
	if held := testRedis.Int(t, "HLEN", "{apiKey:"+w.key+"}:holds"); held != 24 {
		t.Errorf("%d requests are held for, want 24", held)
	}
	w.provider.Stop()
	w.awaitUsed(t, "drains", 0)
}

// TestCountWithoutClient cancels a count of tokens, which nobody pays for, when its client leaves.
func TestCountWithoutClient(t *testing.T) {
	t.Parallel()
	w := newWaitingTest(t)
	w.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	w.wait(t, 1, messagesPath+"/count_tokens", "{}")[0].Close()
	w.awaitUsed(t, "waiting", 0)
	if open, cancelled := w.provider.Counts(); open != 0 || cancelled != 1 {
		t.Errorf("%d requests are open, %d were cancelled", open, cancelled)
	}
}

// TestPromisedBodies begins bodies of 16 MiB and sends one byte of each. Others' bodies still find memory.
func TestPromisedBodies(t *testing.T) {
	t.Parallel()
	w := newWaitingTest(t)
	const most = 16 << 20
	for i := range 4 {
		w.key = w.login(t, w.tenant)
		if i%2 == 0 {
			fmt.Fprint(w.begin(t, "POST", "/"+w.tenant+chatPath, most, bearer(w.key)), "{")
			continue
		}
		c := w.dial(t)
		fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", w.tenant, chatPath, bearer(w.key))
	}
	w.awaitUsed(t, "waiting", 4) // uploads have their place
	if used := w.used(t, "gateway_bodies"); used != 0 {
		t.Errorf("%v bytes are taken for 4 that have come", used)
	}
	large := `{"messages":[]` + strings.Repeat(" ", 1<<20) + "}"
	w.neighbour.wantServed(t, large)
	w.wantOpen(t)
}

// TestPromisedResponses has a provider promise 16 MiB and send half of a small response. That takes no memory.
func TestPromisedResponses(t *testing.T) {
	t.Parallel()
	w := newWaitingTest(t)
	w.provider.On("", providertest.Conduct{Header: []string{fmt.Sprintf("Content-Length: %d", 16<<20)}, Hang: providertest.InContent})
	w.wait(t, 4, chatPath, "{}")
	if used := w.used(t, "gateway_bodies"); used != 0 {
		t.Errorf("%v bytes are taken for responses", used)
	}
	w.wantOpen(t)
}

// TestSlowUploads cuts a large body that comes more slowly than 16 KiB/s, after 5 s. One that is fast enough may take
// longer than other requests may.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 10_000_000, `,"bytes_per_token":8`)
	const size = 300 << 10
	begin := func(sent int) *net.TCPConn {
		c := g.begin(t, "POST", "/"+g.tenant+chatPath, size, bearer(g.key))
		fmt.Fprint(c, `{"messages":[]`+strings.Repeat(" ", sent-14))
		return c
	}
	var uploads sync.WaitGroup
	defer uploads.Wait()
	for name, sent := range map[string]int{"nothing more comes": 14, "it began fast": 70 << 10} {
		began, c := time.Now(), begin(sent)
		uploads.Go(func() {
			if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, "Body came too slowly") {
				t.Errorf("%s: got %s", name, got)
			}
			if took := time.Since(began); took < uploadPatience || took > 3*uploadPatience {
				t.Errorf("%s: it was cut after %s", name, took)
			}
		})
	}
	c := begin(size * 3 / 4)
	time.Sleep(readTimeout + time.Second)
	fmt.Fprint(c, strings.Repeat(" ", size/4-1)+"}")
	if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("fast enough: got %s", got)
	}
}

// TestBodyShares fills one key's share of the memory for bodies. Another key of its tenant, and another tenant, find
// theirs.
func TestBodyShares(t *testing.T) {
	t.Parallel()
	s := newService(t, "MAX_GATEWAY_BODY=209715200", "TENANT_SHARE=0.25")
	g, neighbour := s.newGatewayTest(t, 1_000_000_000, `,"bytes_per_token":8`), s.newGatewayTest(t, 1_000_000_000, "")
	const most = gatewayBodyMemory / 8 // a key's share
	send := func(g *gatewayTest, size int) (status int) {
		body := io.MultiReader(strings.NewReader(`{"messages":[]}`), io.LimitReader(spaces{}, int64(size-15)))
		r, _ := http.NewRequestWithContext(t.Context(), "POST", g.url+"/"+g.tenant+chatPath, body)
		r.ContentLength = int64(size)
		r.Header.Set("x-api-key", g.key)
		response, err := client.Do(r)
		if err != nil {
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	g.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	go send(g, most)
	waittest.Eventually(t, 20*time.Second, func() error {
		if used := s.used(t, "gateway_bodies"); used < most-gatewayBodyMemory/1000 {
			return fmt.Errorf("%v bytes are used", used)
		}
		return nil
	})
	g.provider.On("", providertest.Conduct{})
	// Beyond its share, the key may use three quarters of its tenant's: 48 MiB in all.
	if status := send(g, 24<<20); status != 503 {
		t.Errorf("beyond the share: got %d, want 503", status)
	}
	if status := send(g, 12<<20); status != 200 {
		t.Errorf("beyond the share, with half of the memory free: got %d, want 200", status)
	}
	g.key = g.login(t, g.tenant)
	if status := send(g, 24<<20); status != 200 {
		t.Errorf("another key: got %d, want 200", status)
	}
	if status := send(neighbour, 24<<20); status != 200 {
		t.Errorf("another tenant: got %d, want 200", status)
	}
}

// TestModelListMemory refuses a long list of models while memory is short. A short list needs no memory.
func TestModelListMemory(t *testing.T) {
	t.Parallel()
	s := newBareServer(t, new(telemetrytest.Log))
	for models, want := range map[int]int{100: 200, 1000: 503} {
		names := make([]string, models)
		for i := range names {
			names[i] = fmt.Sprintf(`"model-%d":{}`, i)
		}
		id := newTenant(t, 100)
		tn := s.store.wantTenant(t, id)
		endpoint := `"e":{"url":"http://127.0.0.1:1/v1/chat/completions","models":{` + strings.Join(names, ",") + "}}"
		config, err := parseConfig([]byte(textConfig(100, endpoint)))
		if err != nil {
			t.Fatal(err)
		}
		large := *tn
		large.config = config
		s.bodies.gateway = fairpool.New(1, 1)
		w := httptest.NewRecorder()
		info := &requestInfo{tenantID: id, tenant: &large, apiKey: someKey, format: new(llmwire.OpenAIChat)}
		err = s.listModels(w, httptest.NewRequest("GET", "/", nil), info)
		if got := responseTo(err).status; err != nil && got != want || err == nil && want != 200 {
			t.Errorf("%d models: got %v, want %d", models, err, want)
		}
	}
}

// spaces is white space without an end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	return copy(p, strings.Repeat(" ", min(len(p), 32<<10))), nil
}

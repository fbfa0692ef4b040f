package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

// fakeAccount is an account with some tokens. Settle fails with the errors of fail first, one after the other.
type fakeAccount struct {
	mu      sync.Mutex
	left    int64
	held    int64 // by the only hold
	asked   HoldRequest
	ttl     time.Duration
	fail    []error
	refund  error
	holds   error       // what Hold returns, though it may have been taken
	renewed []time.Time // when Renew was called
	renew   []error     // what Renew returns first
	settled []Usage     // what each Settle was called with
	charged []Usage
}

func (a *fakeAccount) Hold(_ time.Time, r HoldRequest) (Hold, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left < r.Least {
		return Hold{}, InsufficientError{Left: a.left}
	}
	a.asked, a.held, a.ttl = r, min(r.Most, a.left), r.TTL
	if r.Half && a.left < r.Most {
		a.held = r.Least + (a.left-r.Least)/2
	}
	a.left -= a.held
	return Hold{ID: "h", Tokens: a.held}, a.holds
}

func (a *fakeAccount) Renew(_ time.Time, hold Hold, ttl time.Duration) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.renewed = append(a.renewed, time.Now())
	if len(a.renew) > 0 {
		err, a.renew = a.renew[0], a.renew[1:]
	}
	if hold != (Hold{ID: "h", Tokens: a.held}) || ttl != leaseTTL {
		err = errors.New("another hold")
	}
	return err
}

func (a *fakeAccount) Settle(_ time.Time, id string, u Usage) (Balance, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled = append(a.settled, u)
	if len(a.fail) > 0 {
		err := a.fail[0]
		a.fail = a.fail[1:]
		return Balance{}, err
	}
	if id != "h" {
		return Balance{}, ErrNoHold
	}
	a.left += a.held
	a.held = 0
	return a.take(u.Cost), nil
}

func (a *fakeAccount) Charge(_ time.Time, _ []string, u Usage) (Balance, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left < max(u.Cost, 1) {
		return Balance{}, InsufficientError{Left: a.left}
	}
	a.charged = append(a.charged, u)
	return a.take(u.Cost), nil
}

func (a *fakeAccount) Count(time.Time) error { return nil }

func (a *fakeAccount) Refund(_ time.Time, tokens int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left += tokens
	return a.refund
}

// take takes tokens, down to 0. The caller holds a.mu.
func (a *fakeAccount) take(tokens int64) Balance {
	tokens = min(tokens, a.left)
	a.left -= tokens
	return Balance{Charged: tokens, Left: a.left}
}

// attempts returns how often Settle was called.
func (a *fakeAccount) attempts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.settled)
}

// fakeCache keeps values in memory and counts results.
type fakeCache struct {
	mu     sync.Mutex
	values map[string][]byte
	full   error // what Put returns
	cut    bool  // Get finds nothing
	counts map[CacheResult]int
}

func (c *fakeCache) Head(_ time.Time, key []byte, n int) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value := c.values[string(key)]
	return value[:min(n, len(value))], nil
}

func (c *fakeCache) Get(_ time.Time, key []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return nil, errors.New("it has expired")
	}
	return c.values[string(key)], nil
}

func (c *fakeCache) Put(_ time.Time, key, value []byte, _ time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full == nil {
		c.values[string(key)] = value
	}
	return c.full
}

func (c *fakeCache) Count(result CacheResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[result]++
}

func (c *fakeCache) counted(result CacheResult) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[result]
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu      sync.Mutex
	text    strings.Builder
	waiting *telemetry.Logger // which writes to it; nil if none does
}

// logger returns the Logger that writes to b, for which count waits.
func (b *logBuffer) logger() *telemetry.Logger {
	b.waiting = telemetry.NewLogger(b)
	return b.waiting
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) count(text string) int {
	if b.waiting != nil {
		b.waiting.Flush(10 * time.Second)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// testGateway is an HTTP server in front of a Gateway: the caller's side of this package.
type testGateway struct {
	*Gateway
	url       string
	log       *logBuffer
	account   *fakeAccount
	kept      *fakeCache
	states    *fakeStates
	caching   Caching
	memory    *fairpool.Pool
	format    llmwire.Format
	endpoints Endpoints
	count     bool         // requests ask for the number of their tokens
	compact   bool         // or for their input in fewer
	gone      atomic.Int64 // clients
	writer    func(http.ResponseWriter) http.ResponseWriter
	outcomes  chan Outcome // of the requests, when they have ended
	errors    chan error   // what Serve has returned, and panics
}

// newTestGateway returns a gateway whose account has 10,000 tokens.
func newTestGateway(t testing.TB, endpoints ...*Endpoint) *testGateway {
	t.Helper()
	log := new(logBuffer)
	g := &testGateway{
		Gateway: New(Options{
			HeaderTimeout: time.Minute, IdleTimeout: 2 * time.Second, TotalTimeout: time.Minute, MaxWaiting: 10,
			TenantShare: 0.5, MaxDrains: 100, MaxIdle: 100, KeepAlive: time.Minute,
		}, log.logger()),
		memory: fairpool.New(256<<20, 0.5),
		log:    log, account: &fakeAccount{left: 10_000}, endpoints: endpoints,
		states:   &fakeStates{known: make(map[string]State)},
		kept:     &fakeCache{values: make(map[string][]byte), counts: make(map[CacheResult]int)},
		writer:   func(w http.ResponseWriter) http.ResponseWriter { return w },
		outcomes: make(chan Outcome, 1000), errors: make(chan error, 1000),
	}
	server := httptest.NewUnstartedServer(g)
	server.Config.ErrorLog = telemetry.NewLogger(io.Discard).Warnings() // panics are meant
	server.Start()
	g.url = server.URL
	t.Cleanup(server.Close)
	return g
}

func (g *testGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	outcome := Outcome{}
	var err error = errors.New("it has panicked")
	defer func() {
		g.outcomes <- outcome
		g.errors <- err
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	request, wrong := llmwire.ReadRequest(g.format, body)
	if wrong != nil {
		panic(wrong)
	}
	memory, place := g.memory.Claim("acme", "user"), g.Place("acme", "user")
	defer memory.Release()
	defer place.Release()
	c := &Call{
		ID: "id", Tenant: "acme", User: "user", Memory: memory, Place: place, Disconnect: func() { g.gone.Add(1) },
		Account: g.account, Request: request, Body: body, Start: time.Now(),
		Deadline: time.Now().Add(time.Second), CountTokens: g.count, Compact: g.compact, States: g.states,
		Caching: g.caching, Cache: g.kept, Outcome: &outcome,
	}
	w = g.writer(w)
	if err = c.Choose(g.endpoints); err == nil {
		var rest func() error
		if rest, err = g.Serve(w, r, c); rest != nil {
			err = rest()
		}
	}
	if failure, ok := errors.AsType[Error](err); ok {
		w.WriteHeader(failure.Status)
		_, _ = io.WriteString(w, failure.Message)
		err = nil
	}
}

// post sends a request and returns the response, its body and the error with which that ended.
func (g *testGateway) post(t testing.TB, body string, headers ...string) (*http.Response, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", g.url+"/v1?beta=1", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response, string(text), err
}

// newEndpoint returns the endpoint for an object of a config.
func newEndpoint(t testing.TB, name, members string) *Endpoint {
	t.Helper()
	e := NewEndpoint(llmwire.Text, name)
	var wrong strict.Problems
	if !objectOf(e.GatewayRules(objectOf))(&wrong, []byte("{"+members+"}")) || !e.Complete() {
		t.Fatalf("%s cannot be used: %v", members, wrong.Sentences)
	}
	return e
}

func objectOf(rules strict.Rules) strict.Rule {
	return strict.MapOf(func(name string) strict.Rule { return rules[name] })
}

// Parts of a script that stand for what goes wrong.
const (
	cut  = "cut"  // the connection
	hang = "hang" // until the caller is gone
)

// script is what a model server sends.
type script struct {
	status int    // 0 is 200
	header string // "Name: value"
	parts  []string
}

func (s script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if name, value, ok := strings.Cut(s.header, ": "); ok {
		w.Header().Set(name, value)
	}
	if s.status == 0 {
		s.status = 200
	}
	if len(s.parts) == 0 || s.parts[0] != cut && s.parts[0] != hang {
		w.WriteHeader(s.status)
	}
	for _, part := range s.parts {
		switch part {
		case cut:
			panic(http.ErrAbortHandler)
		case hang:
			<-r.Context().Done()
		default:
			_, _ = io.WriteString(w, part)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// newServer starts a model server and returns the URL of its chat completions.
func newServer(t testing.TB, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = telemetry.NewLogger(io.Discard).Warnings() // what is cut is meant
	server.Start()
	t.Cleanup(server.Close)
	return server.URL + "/v1/chat/completions"
}

// partsToCome are the parts of a stream, which a server sends as they come from the test.
type partsToCome chan string

func (next partsToCome) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for part := range next {
		_, _ = io.WriteString(w, part)
		_ = http.NewResponseController(w).Flush()
	}
}

// newScripted returns a gateway with one endpoint, whose server sends s.
func newScripted(t testing.TB, s http.Handler, members string) *testGateway {
	t.Helper()
	return newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"%s`, newServer(t, s), members)))
}

// eventually waits until done reports true.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	waitUntil(10*time.Second, done)
	if !done() {
		t.Fatalf("not %s", what)
	}
}

// wantNothingHeld checks that what a gateway takes for a request was given back.
func (g *testGateway) wantNothingHeld(t testing.TB) {
	t.Helper()
	eventually(t, "everything given back", func() bool {
		return g.settler.holds.Load() == 0 && g.settler.waiting.Load() == 0 && g.waiting.Stats().Used == 0 &&
			g.drains.Stats().Used == 0 && g.cache.collected.Stats().Used == 0
	})
}

func TestWriteMetrics(t *testing.T) {
	g := newTestGateway(t)
	g.settler.holds.Store(1)
	g.settler.waiting.Store(2)
	g.estimated.Store(3)
	g.settler.unpaid.Store(4)
	page := new(telemetry.Page)
	g.WriteMetrics(page)
	for _, want := range []string{
		"# TYPE gateway_holds gauge\ngateway_holds 1\n", "# TYPE gateway_settlements_waiting gauge\ngateway_settlements_waiting 2\n",
		"# TYPE gateway_estimated_total counter\ngateway_estimated_total 3\n",
		"# TYPE gateway_unpaid_tokens_total counter\ngateway_unpaid_tokens_total 4\n",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}

// A request of a gateway that is stopped is cut and settled, and Stop waits for that.
func TestStop(t *testing.T) {
	g := newScripted(t, script{header: "Content-Type: text/event-stream", parts: []string{content, hang}}, "")
	g.options.IdleTimeout = time.Minute
	ended := make(chan string)
	go func() {
		_, body, _ := g.post(t, `{"stream":true}`)
		ended <- body
	}()
	eventually(t, "begun", func() bool { return g.settler.holds.Load() == 1 })
	time.Sleep(100 * time.Millisecond) // the first event is relayed
	g.Stop()
	if n := g.account.attempts(); n != 1 {
		t.Errorf("settled %d times", n)
	}
	if body := <-ended; !strings.Contains(body, "The server is stopping") {
		t.Errorf("got %s", body)
	}
	g.Stop()
	g.wantNothingHeld(t)
}

// A request that is cut because the process stops may be repeated: another process can serve it.
func TestStopAllowsRetry(t *testing.T) {
	g := newScripted(t, script{parts: []string{hang}}, "")
	ended := make(chan *http.Response)
	go func() {
		response, _, _ := g.post(t, whole)
		ended <- response
	}()
	eventually(t, "begun", func() bool { return g.settler.holds.Load() == 1 })
	g.Stop()
	if response := <-ended; response.StatusCode != 503 || len(response.Header["X-Should-Retry"]) > 0 {
		t.Errorf("got %d %v", response.StatusCode, response.Header)
	}
	g.wantNothingHeld(t)
}

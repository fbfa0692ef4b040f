package gateway

import (
	"context"
	"encoding/json"
	"errors"
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
	"tollgate/internal/providertest"
	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// The prices of the model m of a testSession, and of transcriptions.
var (
	tokenPrices = map[string]int64{
		"input": 4, "cached_input": 1, "audio_input": 32, "cached_audio_input": 2, "image_input": 5, "output": 16, "audio_output": 64,
	}
	transcriptPrices = map[string]int64{"input": 3, "output": 5, "second": 7}
)

// testEndpoint returns an endpoint with the model m at a URL, and further members.
func testEndpoint(t testing.TB, url, members string) *Endpoint {
	t.Helper()
	price := make(map[string]any)
	for name, n := range tokenPrices {
		price[name] = n
	}
	price["transcription"] = transcriptPrices
	prices, err := json.Marshal(map[string]any{"m": price})
	if err != nil {
		t.Fatal(err)
	}
	return newSessionEndpoint(t, "e", fmt.Sprintf(`"type":"openai","url":%q,"api_key":%q,"model":"m","models":%s,`+
		`"max_input_tokens":1000,"max_output_tokens":400%s`, url, providertest.Key, prices, members))
}

// testSession is an HTTP server in front of a Gateway for sessions, with a provider and an account.
type testSession struct {
	*Gateway
	provider *providertest.Realtime
	account  *fakeSessionAccount
	endpoint *Endpoint
	call     SessionCall // what the calls have in common
	memory   *fairpool.Pool
	log      *logBuffer
	url      string
	outcomes chan Outcome // of the sessions, when they have ended
}

// newTestSession returns a gateway for sessions of the model m, whose account has a million tokens. One response is
// held at 1,000 × 32 + 400 × 64 = 57,600 tokens.
func newTestSession(t testing.TB, conduct providertest.RealtimeConduct) *testSession {
	t.Helper()
	g := &testSession{
		provider: providertest.NewRealtime(t), account: newFakeSessionAccount(1_000_000),
		memory: fairpool.New(16<<20, 0.5), log: new(logBuffer), outcomes: make(chan Outcome, 1000),
	}
	g.Gateway = New(Options{
		HeaderTimeout: time.Minute, IdleTimeout: time.Minute, TotalTimeout: time.Minute, MaxWaiting: 10, TenantShare: 0.5, MaxDrains: 100,
		MaxSessions: 100, MaxIdle: 100, KeepAlive: time.Minute,
	}, g.log.logger())
	g.provider.On(conduct)
	g.endpoint = testEndpoint(t, g.provider.URL, "")
	server := httptest.NewUnstartedServer(g)
	server.Config.ErrorLog = telemetry.NewLogger(io.Discard).Warnings()
	server.Start()
	g.url = server.URL
	t.Cleanup(server.Close)
	t.Cleanup(g.Gateway.Stop)
	return g
}

func (g *testSession) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	outcome := Outcome{}
	c := g.call
	c.ID, c.Tenant, c.User, c.Model, c.Account = "id", "acme", "user", r.URL.Query().Get("model"), g.account
	c.Place, c.Memory = g.SessionPlace("acme", "user"), g.memory.Claim("acme", "user")
	c.Start, c.Deadline, c.Outcome = time.Now(), time.Now().Add(time.Second), &outcome
	defer c.Memory.Release()
	defer func() { g.outcomes <- outcome }() // also after a panic
	err := c.ChooseEndpoint(Endpoints{g.endpoint})
	if err == nil {
		var run func()
		if run, err = g.OpenSession(w, r, &c); run != nil {
			run()
		}
	}
	if err == nil {
		return
	}
	status, _, message := c.refusal(err)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, message)
}

// A sessionClient is a client of a testSession.
type sessionClient struct {
	*websocket.Conn
	ended chan struct{}

	mu     sync.Mutex
	events []string
	err    error // with which the session has ended
}

var clientSide websocket.Side

// smallBuffers lets little be on its way to a client that does not read.
var smallBuffers = &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		err = conn.(*net.TCPConn).SetReadBuffer(32 << 10)
	}
	return conn, err
}}

// dial opens a session, or returns the response that refuses it.
func (g *testSession) dial(t testing.TB, query string) (*websocket.Conn, *http.Response) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, response, err := clientSide.Dial(ctx, smallBuffers, g.url+"/"+query, http.Header{
		"Authorization": {"Bearer client-key"}, "X-Client": {"secret"}, "User-Agent": {"client"}, "Cookie": {"a=b"},
	})
	if response == nil {
		t.Fatal(err)
	}
	return conn, response
}

// open opens a session whose client reads.
func (g *testSession) open(t testing.TB) *sessionClient {
	t.Helper()
	conn, response := g.dial(t, "?model=m")
	if conn == nil {
		body, _ := io.ReadAll(response.Body)
		t.Fatalf("refused with %d %s", response.StatusCode, body)
	}
	c := &sessionClient{Conn: conn, ended: make(chan struct{})}
	t.Cleanup(c.Abort)
	go c.read()
	return c
}

func (c *sessionClient) read() {
	defer close(c.ended)
	var event []byte
	for {
		part, err := c.Next()
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			c.Finish()
			return
		}
		if event = append(event, part.Data...); part.Last {
			c.mu.Lock()
			c.events = append(c.events, string(event))
			c.mu.Unlock()
			event = nil
		}
	}
}

// send sends an event.
func (c *sessionClient) send(event string) { _ = c.Send(websocket.Text, []byte(event)) }

// having returns the events so far that have a text in them.
func (c *sessionClient) having(text string) (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, event := range c.events {
		if strings.Contains(event, text) {
			all = append(all, event)
		}
	}
	return all
}

// wait waits until n events have come that have a text in them, and returns the last of them.
func (c *sessionClient) wait(t testing.TB, text string, n int) (event string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		got := c.having(text)
		if len(got) < n {
			return fmt.Errorf("the client got %d events with %s, want %d; all: %.3000q", len(got), text, n, c.having(""))
		}
		event = got[n-1]
		return nil
	})
	return event
}

// end waits for the end of the session, and returns the code and the reason with which it was closed.
func (c *sessionClient) end(t testing.TB) (websocket.Code, string) {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(30 * time.Second):
		t.Fatalf("the session does not end; the client got %.3000q", c.having(""))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var closed *websocket.CloseError
	if !errors.As(c.err, &closed) {
		return websocket.CloseLost, ""
	}
	return closed.Code, closed.Reason
}

// awaitEnd waits until a session has ended, of which wantCharged still gets the outcome.
func (g *testSession) awaitEnd() {
	o := <-g.outcomes
	g.outcomes <- o
}

// wantCharged checks what was charged in the end, and that nothing is left open.
func (g *testSession) wantCharged(t testing.TB, want int64) Outcome {
	t.Helper()
	outcome := <-g.outcomes
	waittest.Eventually(t, 20*time.Second, func() error {
		if n, used := g.settler.holds.Load(), g.sessions.pool.Stats().Used; n != 0 || used != 0 {
			return fmt.Errorf("%d holds are open, and %d places are taken", n, used)
		}
		return nil
	})
	g.account.mu.Lock()
	defer g.account.mu.Unlock()
	a := g.account
	if a.charged != want || a.missing != 0 {
		t.Errorf("%d tokens were charged, and %d could not be, want %d; settled: %+v", a.charged, a.missing, want, a.settled)
	}
	if len(a.open) > 0 || a.ends != a.requests || len(a.wrong) > 0 {
		t.Errorf("%d holds are open, %d sessions began and %d ended; %q", len(a.open), a.requests, a.ends, a.wrong)
	}
	if outcome.cost != want {
		t.Errorf("the outcome is %+v, want a cost of %d", outcome, want)
	}
	return outcome
}

// costs returns what the provider's usages cost.
func (g *testSession) costs() (sum int64) {
	for _, u := range g.provider.Usages() {
		sum += u.Cost(tokenPrices, transcriptPrices)
	}
	return sum
}

// A session is opened, told its limit, relayed, metered to the token and closed.
func TestSession(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{Transcript: providertest.RealtimeUsage{Audio: 10, OutputText: 3}})
	g.endpoint.session.voice = "cedar"
	g.call.Hops = "a, b"
	c := g.open(t)
	c.wait(t, `"session.created"`, 1)
	s := g.provider.Session(t, 1)
	want := `{"type":"session.update","event_id":"tollgate-update","session":{"type":"realtime","max_output_tokens":400,` +
		`"audio":{"output":{"voice":"cedar"}}}}`
	if got := s.Wait(t, "session.update", 1); got != want {
		t.Errorf("the provider got %s, want %s", got, want)
	}
	c.wait(t, `"session.updated"`, 1)
	c.send(`{"type":"input_audio_buffer.append","audio":"AAAA"}`)
	c.send(`{"type":"input_audio_buffer.commit"}`)
	c.wait(t, "transcription.completed", 1)
	for n := 1; n <= 2; n++ {
		c.send(`{"type":"response.create"}`)
		c.wait(t, `"response.done"`, n)
	}
	if got := s.Texts("response.create"); !strings.Contains(got[0], `"max_output_tokens":400`) {
		t.Errorf("the provider got %s", got[0])
	}
	if got := c.having("rate_limits"); len(got) > 0 {
		t.Errorf("the client got %q", got)
	}
	_ = c.Close(4001, "bye")
	if code, _ := c.end(t); code != 4001 {
		t.Errorf("the client's close was answered with %d", code)
	}
	if code := s.Ended(t); code != 4001 {
		t.Errorf("the provider's side was closed with %d", code)
	}
	o := g.wantCharged(t, g.costs())
	if o.Session <= 0 || o.FirstByte <= 0 || o.Endpoint != "e" || o.Model != "m" || o.Input != 274 || o.estimated {
		t.Errorf("the outcome is %+v", o)
	}
	h := g.provider.Requests()[0].Header
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Key", "Sec-Websocket-Version"} {
		delete(h, name)
	}
	want = "map[Authorization:[Bearer " + providertest.Key + "] Tollgate-Loop:[a, b] User-Agent:[tollgate]]"
	if got := fmt.Sprint(h); got != want {
		t.Errorf("the provider got the header %s", got)
	}
	if n := g.log.count("WARN"); n > 0 {
		t.Errorf("%d warnings: %s", n, g.log.text.String())
	}
}

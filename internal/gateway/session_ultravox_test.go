package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
	"tollgate/internal/websocket"
)

const (
	ultravoxKey   = "uv-secret-key"
	joinToken     = "join-secret"
	callStarted   = `{"type":"call_started","callId":"c1"}`
	anyUltravox   = "http://provider/api/calls"
	hungUp        = "T" + llmwire.UltravoxHangUp
	createdByTest = `{"callId":"c1","joinUrl":"ws://provider/join/` + joinToken + `"}`
)

// A pipeNet is a network without sockets, so that time is fake in a bubble of synctest: a listener, and the dialler for
// it.
type pipeNet struct {
	conns chan net.Conn
	ended chan struct{}
}

func (n *pipeNet) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.ended:
		return nil, net.ErrClosed
	}
}

func (n *pipeNet) Close() error   { close(n.ended); return nil }
func (n *pipeNet) Addr() net.Addr { return &net.TCPAddr{} }

func (n *pipeNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case n.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// servePiped serves a handler until the test ends, and returns the network on which it listens.
func servePiped(t *testing.T, handler http.Handler) *pipeNet {
	n := &pipeNet{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: handler, ErrorLog: telemetry.NewLogger(io.Discard).Warnings()}
	go server.Serve(n)
	t.Cleanup(func() { server.Close() })
	return n
}

// A wsPeer is an end of a session that a test plays. It reads everything that comes.
type wsPeer struct {
	*websocket.Conn
	mu    sync.Mutex
	got   []string // messages: T or B before each, and ~ if it did not end; then the close code
	ended chan struct{}
}

func newPeer(c *websocket.Conn) *wsPeer {
	p := &wsPeer{Conn: c, ended: make(chan struct{})}
	go p.read()
	return p
}

func (p *wsPeer) read() {
	defer close(p.ended)
	defer p.Finish()
	var message strings.Builder
	for {
		part, err := p.Next()
		p.mu.Lock()
		if err != nil {
			code, reason := websocket.Forward(err, websocket.CloseLost)
			if message.Len() > 0 {
				p.got = append(p.got, message.String()+"~")
			}
			p.got = append(p.got, strings.TrimSpace(fmt.Sprint(code, " ", reason)))
			p.mu.Unlock()
			return
		}
		if part.First {
			message.WriteByte("?TB"[part.Kind])
		}
		message.Write(part.Data)
		if part.Last {
			p.got = append(p.got, message.String())
			message.Reset()
		}
		p.mu.Unlock()
	}
}

// messages returns what has come so far.
func (p *wsPeer) messages() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// want checks what has come.
func (p *wsPeer) want(t *testing.T, who string, want ...string) {
	t.Helper()
	if got := p.messages(); !slices.Equal(got, want) {
		t.Errorf("the %s got  %q\nwant %q", who, got, want)
	}
}

// sendText sends a text in frames of size bytes.
func (p *wsPeer) sendText(text string, size int) {
	for at := 0; at < len(text); at += size {
		end := min(at+size, len(text))
		_ = p.WritePart(websocket.Part{Kind: websocket.Text, First: at == 0, Last: end == len(text), Data: []byte(text[at:end])})
	}
}

// A callAccount is a fakeAccount of a session.
type callAccount struct {
	fakeAccount
	check  error // what Check returns
	checks int   // how often it was called
}

func (a *callAccount) Check(time.Time, []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks++
	return a.check
}

func (a *callAccount) Exchange(time.Time, string, Usage, HoldRequest) (Balance, Hold, error) {
	panic("a call has one hold")
}

func (a *callAccount) refuse(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.check = err
}

// A callTest is a gateway with an endpoint of Ultravox, both sides of which a test plays, in a bubble of synctest.
type callTest struct {
	*Gateway
	t       *testing.T
	log     *logBuffer
	account *callAccount
	rules   *sessionRules
	price   int64 // millionths of a token a second
	call    *SessionCall

	url     string // of the endpoint
	key     string
	status  int    // of the response to the creation of a call
	created string // its body
	joins   int    // with which status joining is refused; 0: it is not
	ctx     context.Context
	isDeaf  bool // it starts the call and reads nothing

	isSilent, isJoinSilent bool // it does not respond

	requests  []*http.Request
	bodies    []string
	providers chan *wsPeer
	done      chan struct{} // closed when run has returned
}

// inCall runs a test with a gateway whose account has 100,000 tokens. A second costs 10 of them.
func inCall(t *testing.T, test func(c *callTest)) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		c := &callTest{
			t: t, ctx: t.Context(), log: log, account: &callAccount{fakeAccount: fakeAccount{left: 100_000}}, price: 10 * priceUnit,
			Gateway:   New(Options{HeaderTimeout: time.Minute, TenantShare: 0.5, MaxWaiting: 1, MaxDrains: 1}, log.logger()),
			rules:     &sessionRules{isUltravox: true, sampleRate: 16000, maxSession: time.Hour},
			providers: make(chan *wsPeer, 1), done: make(chan struct{}),
			url: anyUltravox, key: ultravoxKey, status: http.StatusCreated, created: createdByTest,
		}
		provider := servePiped(t, http.HandlerFunc(c.serveProvider))
		for _, transport := range []*http.Transport{c.transports.plain, c.transports.secure, c.transports.fresh} {
			transport.DialContext = provider.dial
			defer transport.CloseIdleConnections()
		}
		test(c)
	})
}

// serveProvider is the server of Ultravox.
func (c *callTest) serveProvider(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.requests, c.bodies = append(c.requests, r), append(c.bodies, string(body))
	switch {
	case c.isSilent, c.isJoinSilent && r.Method == http.MethodGet:
		<-r.Context().Done()
	case r.Method == http.MethodPost:
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(c.status)
		_, _ = io.WriteString(w, c.created)
	case c.joins != 0:
		w.WriteHeader(c.joins)
	default:
		side := new(websocket.Side)
		if conn, err := side.Accept(w, r, "", nil); err == nil && c.isDeaf {
			_ = conn.Send(websocket.Text, []byte(callStarted))
			c.providers <- nil
		} else if err == nil {
			c.providers <- newPeer(conn)
		}
	}
}

// begin opens a session. It returns nil and the error if it is refused.
func (c *callTest) begin() (*ultravoxSession, error) {
	e := NewEndpoint(llmwire.Realtime, "u")
	e.rawURL, e.apiKey, e.auth, e.session = c.url, c.key, "x-api-key", c.rules
	e.url, _ = url.Parse(c.url)
	given := newRates()
	given[kindSecond] = c.price
	e.prices.add("u", &price{rates: given.completed()})
	c.call = &SessionCall{
		ID: "id", Tenant: "acme", User: "user", Hops: "hop", Account: c.account, Start: time.Now(),
		Deadline: time.Now().Add(time.Second), Outcome: new(Outcome), endpoint: e, model: "u", header: make(http.Header),
	}
	s := newUltravoxSession(c.Gateway, c.call)
	_, err := s.open(c.ctx)
	return s, err
}

// connect opens a session and returns both ends.
func (c *callTest) connect() (client, provider *wsPeer) {
	c.t.Helper()
	s, err := c.begin()
	if err != nil {
		c.t.Fatal(err)
	}
	front := servePiped(c.t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(c.done)
		if conn, err := c.sessions.clients.Accept(w, r, "", nil); err == nil {
			s.run(conn, s.server)
		}
	}))
	transport := &http.Transport{DialContext: front.dial}
	conn, _, err := new(websocket.Side).Dial(c.t.Context(), transport, "ws://tollgate/", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return newPeer(conn), <-c.providers
}

// start does what connect does, and starts the call.
func (c *callTest) start() (client, provider *wsPeer) {
	c.t.Helper()
	client, provider = c.connect()
	provider.sendText(callStarted, len(callStarted))
	client.want(c.t, "client", "T"+callStarted)
	return client, provider
}

// wantCharged checks that the session ends, what is charged for it, and that nothing more is held.
func (c *callTest) wantCharged(seconds int64) {
	c.t.Helper()
	synctest.Wait()
	cost := (seconds*c.price + priceUnit - 1) / priceUnit
	want := Usage{Endpoint: "u", Model: "u", Usage: llmwire.Usage{Seconds: seconds}, Cost: cost}
	if a := c.account; len(a.settled) != 1 || a.settled[0] != want || a.held != 0 {
		c.t.Errorf("settled %+v, want %+v; %d are held", a.settled, want, a.held)
	}
	if o := c.call.Outcome; o.Seconds != seconds || o.cost != cost || o.estimated {
		c.t.Errorf("the outcome has %d s and costs %d, want %d s and %d", o.Seconds, o.cost, seconds, cost)
	}
	if n := c.settler.holds.Load(); n != 0 {
		c.t.Errorf("%d holds are open", n)
	}
	c.wantSecret()
}

// wantSecret checks that nothing secret was logged.
func (c *callTest) wantSecret(shown ...string) {
	c.t.Helper()
	for _, secret := range []string{ultravoxKey, joinToken} {
		if c.log.count(secret) > 0 || strings.Contains(strings.Join(shown, "\n"), secret) {
			c.t.Errorf("%q was shown: %q, or in the log", secret, shown)
		}
	}
}

// eventOf returns what a client gets of an error that ends its session.
func eventOf(err error) string { return "T" + string(new(SessionCall).failure(err).Event()) }

// However a call ends, its length is charged exactly, Ultravox is asked to hang up, and both sides get the code.
func TestUltravoxEnds(t *testing.T) {
	disabled := Error{http.StatusForbidden, "The API key is disabled"}
	after := func(seconds float64) { time.Sleep(time.Duration(seconds * float64(time.Second))) }
	tests := []struct {
		name     string
		end      func(c *callTest, client, provider *wsPeer)
		seconds  int64
		client   string // what it got after call_started, joined by |
		provider string
	}{
		{"the client closes", func(_ *callTest, client, _ *wsPeer) { after(37); _ = client.Close(1000, "bye") },
			42, "1000", hungUp + "|1000 bye"},
		{"the client closes with a code of its own", func(_ *callTest, client, _ *wsPeer) { _ = client.Close(4001, "") },
			6, "4001", hungUp + "|4001"},
		{"the client is lost", func(_ *callTest, client, _ *wsPeer) { after(6.001); client.Abort() },
			12, "1006", hungUp + "|1001"},
		{"the client closes in a message", func(_ *callTest, client, _ *wsPeer) {
			_ = client.WritePart(websocket.Part{Kind: websocket.Binary, First: true, Data: []byte("ab")})
			_ = client.Close(1000, "")
		}, 6, "1000", "Bab|" + hungUp + "|1000"},
		{"the client hangs up", func(_ *callTest, client, provider *wsPeer) {
			after(12)
			_ = client.Send(websocket.Text, []byte(llmwire.UltravoxHangUp))
			synctest.Wait()
			_ = provider.Close(1000, "over")
		}, 12, "1000 over", hungUp + "|1000"},
		{"the provider closes", func(_ *callTest, _, provider *wsPeer) { after(600); _ = provider.Close(4500, "why") },
			600, "4500 why", "4500"},
		{"the provider closes without a code", func(_ *callTest, _, provider *wsPeer) { _ = provider.Close(1005, "") },
			6, "1005", "1005"},
		{"the provider is lost", func(_ *callTest, _, provider *wsPeer) { after(61); provider.Abort() },
			66, eventOf(errCallLost) + "|1011", "1006"},
		{"the key is gone", func(c *callTest, _, _ *wsPeer) { c.account.refuse(ErrNoHold); after(31) },
			30, eventOf(ErrNoHold) + "|1008 invalid_api_key", hungUp + "|1008"},
		{"the key is disabled", func(c *callTest, _, _ *wsPeer) { after(40); c.account.refuse(disabled); after(30) },
			60, eventOf(disabled) + "|1008 key_disabled", hungUp + "|1008"},
		{"the server stops", func(c *callTest, _, _ *wsPeer) { after(8); c.cut(errStopping) },
			12, "1001", hungUp + "|1001"},
		{"Redis is away", func(c *callTest, client, _ *wsPeer) {
			c.account.refuse(ErrUnavailable)
			after(100)
			_ = client.Close(1000, "")
		}, 102, "1000", hungUp + "|1000"},
		{"the key is disabled while Redis is away", func(c *callTest, _, _ *wsPeer) {
			c.account.refuse(ErrUnavailable)
			after(50)
			c.account.refuse(disabled)
			after(20)
		}, 60, eventOf(disabled) + "|1008 key_disabled", hungUp + "|1008"},
		{"max_session is over", func(*callTest, *wsPeer, *wsPeer) { after(3700) },
			3600, "1000", hungUp + "|1000"},
		{"a text is too long", func(_ *callTest, client, _ *wsPeer) {
			client.sendText(strings.Repeat(" ", llmwire.MaxUltravoxMessage+1), 10_000)
		}, 6, "1009", hungUp + "|1009"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inCall(t, func(c *callTest) {
				client, provider := c.start()
				test.end(c, client, provider)
				<-c.done
				client.want(t, "client", append([]string{"T" + callStarted}, strings.Split(test.client, "|")...)...)
				provider.want(t, "provider", strings.Split(test.provider, "|")...)
				c.wantCharged(test.seconds)
			})
		})
	}
}

// A call that Ultravox does not end by itself is ended here, and costs no more than what was held.
func TestUltravoxOverdue(t *testing.T) {
	tests := []struct {
		name    string
		left    int64 // in the account, at 10 tokens a second
		limit   time.Duration
		starts  bool
		lasts   time.Duration
		seconds int64
		client  []string
	}{
		{"paid for", 995, time.Hour, true, 101 * time.Second, 96, []string{"T" + callStarted, eventOf(errCallPaid), "1008 insufficient_quota"}},
		{"one step", 60, time.Hour, true, 11 * time.Second, 6, []string{"T" + callStarted, eventOf(errCallPaid), "1008 insufficient_quota"}},
		{"max_session", 100_000, 100 * time.Second, true, 100 * time.Second, 96, []string{"T" + callStarted, "1000"}},
		{"a short max_session", 100_000, time.Second, true, time.Second, 6, []string{"T" + callStarted, "1000"}},
		{"not started", 100_000, time.Hour, false, 30 * time.Second, 0, []string{eventOf(errNotStarted), "1011"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inCall(t, func(c *callTest) {
				c.account.left, c.rules.maxSession = test.left, test.limit
				begin := c.connect
				if test.starts {
					begin = c.start
				}
				client, provider := begin()
				began := time.Now()
				<-c.done
				if got := time.Since(began); got != test.lasts {
					t.Errorf("it lasted %v, want %v", got, test.lasts)
				}
				client.want(t, "client", test.client...)
				provider.want(t, "provider", hungUp, strings.Fields(test.client[len(test.client)-1])[0])
				c.wantCharged(test.seconds)
			})
		})
	}
}

// A provider that no longer reads delays the end only for as long as a write may take. That time is charged: it may be
// billed.
func TestUltravoxDeafProvider(t *testing.T) {
	inCall(t, func(c *callTest) {
		c.isDeaf = true
		c.sessions.servers.PingInterval = 0 // a ping would wait for a mutex, during which time stands still
		client, _ := c.connect()
		client.want(t, "client", "T"+callStarted)
		began := time.Now()
		_ = client.Close(1000, "")
		<-c.done
		if got, want := time.Since(began), 30*time.Second; got != want {
			t.Errorf("it took %v, want %v", got, want)
		}
		c.wantCharged(30)
	})
}

// call_started is found however it is spelled, and nothing else is taken for it.
func TestUltravoxStart(t *testing.T) {
	for _, text := range []string{
		callStarted, `{"callId":"c1","x":{"type":"state"},"type":"call_started"}`, `{"t\u0079pe":"call\u005fstarted"}`,
		`{"type":"state","type":"call_started"}`, `{"type":"call_started","type":"state"}`,
		`{"x":"` + strings.Repeat("x", 1<<20) + `","type":"call_started"}`,
	} {
		inCall(t, func(c *callTest) {
			client, provider := c.connect()
			other := `{"x":"call_started","type":"state","y":{"type":"call_started"},"z":["type","call_started"]}`
			provider.sendText(other, 1000)
			time.Sleep(20 * time.Second)
			provider.sendText(text, max(len(text)/1000, 1))
			time.Sleep(7 * time.Second)
			_ = client.Close(1000, "")
			<-c.done
			client.want(t, "client", "T"+other, "T"+text, "1000")
			c.wantCharged(12)
		})
	}
}

// Sound and texts pass in both directions as they are. What a client may not send is dropped, and the call goes on.
func TestUltravoxMessages(t *testing.T) {
	inCall(t, func(c *callTest) {
		client, provider := c.start()
		sound := strings.Repeat("\x00\xff", 20_000)
		ping := `{ "timestamp":1.5,"type" : "p\u0069ng"}`
		spawn := `{"x":"","type":"spawn_thread"}`
		for _, size := range []int{1, 1000, 100_000} {
			client.sendText(ping, size)
			client.sendText(spawn, size)
		}
		_ = client.Send(websocket.Binary, []byte(sound))
		_ = provider.Send(websocket.Binary, []byte(sound))
		_ = provider.Send(websocket.Text, []byte(`{"type":"spawn_thread"`)) // whatever it is
		provider.want(t, "provider", "T"+ping, "T"+ping, "T"+ping, "B"+sound)
		refusal := llmwire.CheckUltravox([]byte(spawn)).(*llmwire.RealtimeError)
		event := "T" + string(refusal.Event())
		client.want(t, "client", "T"+callStarted, event, event, event, "B"+sound, `T{"type":"spawn_thread"`)
		time.Sleep(12 * time.Second)
		_ = client.Close(1000, "")
		<-c.done
		c.wantCharged(12)
	})
}

// A client that sends more of what is refused than it is told, since it is within a message, loses its session.
func TestUltravoxFlood(t *testing.T) {
	inCall(t, func(c *callTest) {
		client, provider := c.start()
		_ = provider.WritePart(websocket.Part{Kind: websocket.Binary, First: true, Data: []byte("a")})
		for range 1000 {
			_ = client.Send(websocket.Text, []byte("{}"))
		}
		<-c.done
		provider.want(t, "provider", hungUp, "1008")
		if got := client.messages(); got[len(got)-1] != "1008" {
			t.Errorf("the client got %q", got)
		}
		c.wantCharged(6)
	})
}

// While a call goes on its hold is renewed, and its account is checked, every 30 s.
func TestUltravoxLease(t *testing.T) {
	inCall(t, func(c *callTest) {
		began := time.Now()
		client, _ := c.start()
		time.Sleep(95 * time.Second)
		if got, want := c.account.renewals(began), []int{30, 60, 90}; !slices.Equal(got, want) || c.account.checks != 3 {
			t.Errorf("renewed after %v s, want %v; %d checks", got, want, c.account.checks)
		}
		_ = client.Close(1000, "")
		<-c.done
		time.Sleep(time.Hour)
		if n := len(c.account.renewals(began)); n != 3 || c.account.checks != 3 {
			t.Errorf("%d renewals and %d checks after the end", n, c.account.checks)
		}
		c.wantCharged(96)
	})
}

// If the client cannot be accepted, the call is ended, and charged if it has started.
func TestUltravoxAbandon(t *testing.T) {
	for _, starts := range []bool{true, false} {
		inCall(t, func(c *callTest) {
			s, err := c.begin()
			if err != nil {
				t.Fatal(err)
			}
			provider := <-c.providers
			seconds := int64(0)
			if starts {
				go provider.sendText(callStarted, len(callStarted))
				synctest.Wait() // until it is being written
				seconds = 6
			}
			s.abandon()
			provider.want(t, "provider", hungUp, "1001")
			c.wantCharged(seconds)
		})
	}
}

func TestBilledSeconds(t *testing.T) {
	for _, test := range []struct {
		lasted     time.Duration
		most, want int64
	}{
		{0, 600, 6}, {1, 600, 6}, {time.Second, 600, 6}, {6 * time.Second, 600, 6}, {6*time.Second + 1, 600, 12},
		{37 * time.Second, 600, 42}, {42 * time.Second, 600, 42}, {600 * time.Second, 600, 600},
		{601 * time.Second, 600, 600}, {time.Hour, 6, 6},
	} {
		if got := billedSeconds(test.lasted, test.most); got != test.want {
			t.Errorf("%v of %d s: got %d, want %d", test.lasted, test.most, got, test.want)
		}
	}
}

// The balance says how long a call may last, in whole steps.
func TestUltravoxHold(t *testing.T) {
	const tooLittle = "The session needs %d tokens, %d are left"
	tests := []struct {
		name        string
		left, price int64 // price in millionths of a token a second
		limit       time.Duration
		held        int64
		duration    string // "" if it is refused
	}{
		{"everything", 100_000, 10 * priceUnit, time.Hour, 36_000, "3600s"},
		{"max_session", 100_000, 10 * priceUnit, 100 * time.Second, 960, "96s"},
		{"less than the whole", 35_999, 10 * priceUnit, time.Hour, 35_999, "3594s"},
		{"one step", 60, 10 * priceUnit, time.Hour, 60, "6s"},
		{"nearly two", 119, 10 * priceUnit, time.Hour, 119, "6s"},
		{"not one", 59, 10 * priceUnit, time.Hour, 60, ""},
		{"none", 0, 10 * priceUnit, time.Hour, 60, ""},
		{"a fraction", 1, 166_666, time.Hour, 1, "6s"},
		{"a fraction above one token a step", 1, 166_667, time.Hour, 2, ""},
		{"a fraction above one token a step, two left", 2, 166_667, time.Hour, 2, "6s"},
		{"the least price", 1, 1, time.Hour, 1, "3600s"},
		{"free", 1, 0, time.Hour, 1, "3600s"},
		{"free without a balance", 0, 0, time.Hour, 1, ""},
		{"the highest price", llmwire.MaxTokens, maxPrice, time.Hour, 3_600_000_000_000, "3600s"},
		{"a huge session", llmwire.MaxTokens, maxPrice, strictMaxSession, llmwire.MaxTokens, "9007194s"},
		{"a session below one step", 100_000, 10 * priceUnit, time.Second, 60, "6s"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inCall(t, func(c *callTest) {
				c.account.left, c.price, c.rules.maxSession = test.left, test.price, test.limit
				s, err := c.begin()
				if test.duration == "" {
					want := Error{http.StatusPaymentRequired, fmt.Sprintf(tooLittle, test.held, test.left)}
					if err != want || len(c.requests) > 0 || c.settler.holds.Load() != 0 {
						t.Errorf("got %v, want %v; %d requests", err, want, len(c.requests))
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				asked := c.account.asked
				if c.account.held != test.held || asked.Half || asked.TTL != leaseTTL || !slices.Equal(asked.Models, []string{"u"}) {
					t.Errorf("%d are held, want %d; asked for %+v", c.account.held, test.held, asked)
				}
				if want := `"maxDuration":"` + test.duration + `"`; !strings.Contains(c.bodies[0], want) {
					t.Errorf("got %s, want %s", c.bodies[0], want)
				}
				<-c.providers
				s.abandon()
				c.wantCharged(0)
			})
		})
	}
}

// strictMaxSession is longer than any session that can be paid for.
const strictMaxSession = 1e9 * time.Second

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// An endMoment is when a session ends.
type endMoment string

const (
	whenIdle       endMoment = "idle"
	whenResponding endMoment = "responding"
	whenPaying     endMoment = "between response.done and the new hold"
)

// An endRow is a row of the table of ends: who ends a session, what each side gets to see, and what is charged.
type endRow struct {
	name   string
	tokens int       // that the key has; 0: a million
	config [2]string // what becomes what in the tenant's config
	end    func(t *testing.T, e *endTest)

	spend int64 // tokens of a transcription that comes then, so that the account is asked; 0: none comes

	client, server websocket.Code // that each side gets; CloseLost: none
	event          string         // the code, or else the type, of the error that the client gets; "" for none

	isClient, isProvider bool // it is the client, or the provider, that ends the session
	isTimed              bool // the session ends by itself, and what is to be paid waits for that
	isGone               bool // the key is, and whatever is not paid yet with it
	isDeleted            bool // the tenant is, and what it has used with it
	isAway               bool // Redis is
	goesOn               bool // the session does, and it is the client that ends it later
}

func (row *endRow) granted() int { return cmp.Or(row.tokens, 1_000_000) }

// endRows is the table of who ends a session.
var endRows = []endRow{
	{
		name: "client closes", client: 4001, server: 4001, isClient: true,
		end: func(_ *testing.T, e *endTest) { _ = e.client.Close(4001, "bye") },
	},
	{
		name: "client is gone", client: websocket.CloseLost, server: websocket.CloseGoingAway, isClient: true,
		end: func(_ *testing.T, e *endTest) { e.client.Abort() },
	},
	{
		name: "client breaks a rule", client: websocket.CloseUnsupported, server: websocket.CloseGoingAway,
		end: func(_ *testing.T, e *endTest) { _ = e.client.Send(websocket.Binary, []byte("x")) },
	},
	{
		name: "provider closes", client: 4002, server: 4002, isProvider: true,
		end: func(_ *testing.T, e *endTest) { e.session.Close(4002, "enough") },
	},
	{
		name: "provider is gone", client: websocket.CloseInternal, server: websocket.CloseLost, event: "api_error", isProvider: true,
		end: func(_ *testing.T, e *endTest) { e.session.Abort() },
	},
	{
		name: "balance", tokens: 48_384 + 8_000, spend: 100, // the least, of which half goes beyond it
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "insufficient_quota",
		end: func(t *testing.T, e *endTest) {
			e.elsewhere = tokensLeft(t, e.key)
			e.other.consume(t, e.tenant, e.key, fmt.Sprintf(`{"tokens":%d}`, e.elsewhere)).want(t, 200, `{"tokensLeft":0}`)
		},
	},
	{
		name: "key revoked", spend: 100, isGone: true,
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "invalid_api_key",
		end: func(t *testing.T, e *endTest) {
			e.other.admin(t, "DELETE", "/"+e.tenant+"/admin/keys/"+e.key, "").want(t, 204, "")
		},
	},
	{
		name: "key disabled", spend: 100,
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "key_disabled",
		end: func(t *testing.T, e *endTest) {
			e.other.admin(t, "PATCH", "/"+e.tenant+"/admin/keys/"+e.key, `{"enabled":false}`).want(t, 200, "")
		},
	},
	{
		name: "key rotated", spend: 100, goesOn: true,
		end: func(t *testing.T, e *endTest) { e.key = e.other.rotate(t, e.tenant, e.key) },
	},
	{
		name: "visitor signs in", spend: 100, goesOn: true,
		config: [2]string{`{"user_groups":{`,
			`{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{"google_logged_in":{"tokens":1000},`},
		end: func(t *testing.T, e *endTest) {
			got := e.other.signIn(t, e.tenant, "u", bearer(e.key))
			got.want(t, 200, "")
			e.key, e.elsewhere = got.text(t, "apiKey"), -1000
		},
	},
	{
		name: "group gone", spend: 100, client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "group_disabled",
		end: func(t *testing.T, e *endTest) { e.change(t, `"anonymous":`, `"others":`) },
	},
	{
		name: "model taken from the group", spend: 100,
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "model_not_found",
		end: func(t *testing.T, e *endTest) { e.change(t, `"tokens":`, `"models":["x"],"tokens":`) },
	},
	{
		name: "tenant deleted", spend: 100, isDeleted: true,
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: "invalid_api_key",
		end: func(t *testing.T, e *endTest) {
			e.other.admin(t, "DELETE", "/admin/tenants/"+e.tenant, "").want(t, 204, "")
		},
	},
	{
		name: "SIGTERM", client: websocket.CloseGoingAway, server: websocket.CloseGoingAway, isTimed: true,
		end: func(_ *testing.T, e *endTest) { go func() { _ = e.stop() }() },
	},
	{
		name: "max_session", client: websocket.CloseNormal, server: websocket.CloseNormal, isTimed: true,
		config: [2]string{`"max_input_tokens"`, `"max_session":3,"max_input_tokens"`},
		end:    func(*testing.T, *endTest) {},
	},
	{
		name: "Redis cannot be reached", spend: 8_000, isAway: true,
		client: websocket.CloseTryAgain, server: websocket.CloseTryAgain, event: "api_error",
		end: func(_ *testing.T, e *endTest) { e.requests.Store(int64(redistest.Cut)) },
	},
	{
		name: "replies of Redis are lost", spend: 8_000, isAway: true,
		client: websocket.CloseTryAgain, server: websocket.CloseTryAgain, event: "api_error",
		end: func(_ *testing.T, e *endTest) { e.replies.Store(int64(redistest.Swallow)) },
	},
	{
		name: "Redis is away for a while", spend: 100, isAway: true, goesOn: true,
		end: func(_ *testing.T, e *endTest) { e.requests.Store(int64(redistest.Cut)) },
	},
}

// An endTest is a session that ends. Its service reaches Redis over a proxy.
type endTest struct {
	*talkTest          // its key is the present one
	other     *service // another process, which Redis is never away from
	client    *endClient
	session   *providertest.RealtimeSession
	elsewhere int // tokens of the key that were spent otherwise; less than 0: granted

	requests, replies atomic.Int64 // the Fate of what passes the proxy

	// From isPaying on, requests that settle a hold wait in the proxy until released is closed.
	isPaying          atomic.Bool
	reach             sync.Once
	reached, released chan struct{}
}

// No matter what ends a session, and when, what was used is charged to the token, nothing more is held, and each side
// learns why.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	others, _ := signInServices(t, 1)
	for _, row := range endRows {
		for _, when := range []endMoment{whenIdle, whenResponding, whenPaying} {
			t.Run(row.name+", "+string(when), func(t *testing.T) {
				t.Parallel()
				row := row
				if testRedis.Cluster != nil && (row.isAway || when == whenPaying) {
					t.Skip("there is no proxy before a cluster")
				}
				first := today()
				e := newEndTest(t, &row, when, others[0])
				e.reachMoment(t, &row, when)
				if row.goesOn {
					e.goOn(t, &row, when)
				}
				e.wantEnd(t, &row, when)
				e.wantCharged(t, &row, when, first)
			})
		}
	}
}

// newEndTest opens a session, and waits until one response of it is done.
func newEndTest(t *testing.T, row *endRow, when endMoment, other *service) *endTest {
	t.Helper()
	e := &endTest{other: other, reached: make(chan struct{}), released: make(chan struct{})}
	url := testRedis.URL()
	if testRedis.Cluster == nil {
		proxy := redistest.NewProxy(t, testRedis, func([]byte) redistest.Fate { return redistest.Fate(e.replies.Load()) })
		proxy.OnRequest(e.judge)
		url = proxy.URL
	}
	p, responses := providertest.NewRealtime(t), 0
	p.On(providertest.RealtimeConduct{Respond: func([]byte) providertest.RealtimeResponse {
		response := providertest.RealtimeResponse{Text: "word ", Deltas: 10, Usage: used}
		if responses++; responses == 2 && when == whenResponding {
			response.Hang = providertest.InContent
		}
		return response
	}})
	e.talkTest = &talkTest{service: newService(t, "REDIS_URL="+url, "DRAIN_TIMEOUT=100ms"), provider: p}
	config := strings.Replace(talkConfig(p, row.granted()), `"max_output_tokens":100`, `"max_output_tokens":4000`, 1)
	e.tenant = newTenantIn(t, testRedis, strings.Replace(config, row.config[0], row.config[1], 1))
	e.key = other.login(t, e.tenant)
	e.client = newEndClient(e.open(t))
	e.session = p.Session(t, 1)
	e.client.respond(t)
	return e
}

// judge is the fate of what the service sends to Redis.
func (e *endTest) judge(request []byte) redistest.Fate {
	if e.isPaying.Load() && bytes.Contains(request, []byte("}:settled:"+leasePrefix)) {
		e.reach.Do(func() { close(e.reached) })
		<-e.released
	}
	return redistest.Fate(e.requests.Load())
}

// change changes the tenant's config.
func (e *endTest) change(t *testing.T, before, after string) {
	config := testRedis.String(t, "GET", "tenant:"+e.tenant+":config")
	e.other.saveConfig(t, e.tenant, strings.Replace(config, before, after, 1))
}

// reachMoment lets what ends the session happen at its moment, and sees to it that the session learns of it.
func (e *endTest) reachMoment(t *testing.T, row *endRow, when endMoment) {
	switch when {
	case whenIdle:
		row.end(t, e)
	case whenResponding:
		e.client.create(t)
		e.client.wait(t, `"response.output_text.delta"`, 15) // 10 are of the first response
		row.end(t, e)
	case whenPaying:
		e.isPaying.Store(true)
		e.client.create(t)
		e.endPaying(t, row)
	}
	if row.spend > 0 && (when != whenPaying || row.isAway) {
		e.session.Transcribe(providertest.RealtimeUsage{Audio: row.spend})
	}
	if row.spend > 0 && !row.goesOn {
		go e.nudge()
	}
}

// endPaying waits until the request for the new hold is under way, and lets it reach Redis after what ends the session.
func (e *endTest) endPaying(t *testing.T, row *endRow) {
	defer close(e.released)
	select {
	case <-e.reached:
	case <-time.After(20 * time.Second):
		t.Fatal("no new hold is asked for")
	}
	row.end(t, e)
	if row.isTimed {
		e.client.end(t)
	}
}

// nudge reports transcriptions that have used nothing until the session has ended: the account is asked each time, and
// a change of the config is noticed within a second.
func (e *endTest) nudge() {
	for {
		select {
		case <-e.client.ended:
			return
		case <-time.After(100 * time.Millisecond):
			e.session.Transcribe(providertest.RealtimeUsage{})
		}
	}
}

// goOn checks that a session goes on in spite of all, and ends it.
func (e *endTest) goOn(t *testing.T, row *endRow, when endMoment) {
	done := 1
	if when != whenPaying {
		e.client.wait(t, "transcription.completed", 1)
	}
	if when != whenIdle {
		e.session.Continue()
		done++
	}
	e.client.wait(t, `"response.done"`, done)
	e.requests.Store(int64(redistest.Pass))
	e.client.respond(t)
	row.client, row.server, row.isClient = 4001, 4001, true
	_ = e.client.Close(4001, "")
}

// wantEnd checks what each side gets to see.
func (e *endTest) wantEnd(t *testing.T, row *endRow, when endMoment) {
	t.Helper()
	client, event := row.client, row.event
	isBroken := row.isProvider && when == whenResponding
	if isBroken {
		client, event = websocket.CloseInternal, "api_error"
	}
	if code := e.client.end(t); code != client {
		t.Errorf("the client got the code %d, want %d", code, client)
	}
	if code := e.session.Ended(t); code != row.server {
		t.Errorf("the provider got the code %d, want %d", code, row.server)
	}
	if got, want := e.client.errors(t), strings.Fields(event); !slices.Equal(got, want) {
		t.Errorf("the client got the errors %q, want %q", got, want)
	}
	cancels, done := 0, 0
	if when == whenResponding && !row.isProvider && !row.goesOn {
		cancels = 1
	}
	if got := len(e.session.Texts(`"response.cancel"`)); got != cancels {
		t.Errorf("the provider got %d cancels, want %d", got, cancels)
	}
	if !row.isClient {
		done = cancels
	}
	if got := e.client.count(`"cancelled"`); got < done {
		t.Errorf("the client got %d cancelled responses, want %d", got, done)
	}
	failed := e.log.Count("[WARN] The endpoint realtime of tenant " + e.tenant + " failed: it closed")
	if isFailure := isBroken || row.server == websocket.CloseLost; (failed == 1) != isFailure || e.log.Count("[WARN] The endpoint") != failed {
		t.Errorf("log:\n%s", e.log)
	}
}

// wantCharged waits until what was used is charged and counted, and nothing is held any more.
func (e *endTest) wantCharged(t *testing.T, row *endRow, when endMoment, first string) {
	t.Helper()
	e.requests.Store(int64(redistest.Pass))
	e.replies.Store(int64(redistest.Pass))
	want := int64(0)
	for _, u := range e.provider.Usages() {
		want += u.Cost(talkPrices, map[string]int64{"input": talkPrices["audio_input"], "output": talkPrices["output"]})
	}
	if row.isGone {
		want = usedCost()
	}
	if row.isProvider && when == whenResponding { // half of it is 25 bytes
		estimate := used
		estimate.OutputText, estimate.OutputAudio = 9, 0
		want += estimate.Cost(talkPrices, nil)
	}
	waittest.Eventually(t, 20*time.Second, func() error {
		// While Redis is away, counts may be lost: what it has got, for all a process knows, is not sent again.
		if err := e.wantBalance(t, row, want); err != nil || row.isDeleted || row.isAway {
			return err
		}
		got := e.other.usage(t, e.tenant, first).ByEndpoint["realtime"]
		if got.Requests != 1 || got.TokensCharged != want {
			return fmt.Errorf("%d requests and %d tokens are counted, want 1 and %d", got.Requests, got.TokensCharged, want)
		}
		return nil
	})
}

// wantBalance returns an error unless that was charged, and nothing is held.
func (e *endTest) wantBalance(t *testing.T, row *endRow, charged int64) error {
	t.Helper()
	name := "apiKey:" + e.key
	if n := testRedis.Int(t, "EXISTS", "{"+name+"}:holds"); n > 0 {
		return errors.New("tokens are still held")
	}
	if row.isGone {
		if n := testRedis.Int(t, "EXISTS", name); n > 0 {
			return errors.New("the key is still there")
		}
		return nil
	}
	if held := testRedis.String(t, "HGET", name, "tokensHeld"); held != "" {
		return fmt.Errorf("%s tokens are held", held)
	}
	if left, want := tokensLeft(t, e.key), row.granted()-e.elsewhere-int(charged); left != want {
		return fmt.Errorf("%d tokens are left, want %d", left, want)
	}
	return nil
}

// An endClient is a client of a session that remembers what it gets.
type endClient struct {
	*talkClient
	ended chan struct{} // closed when nothing more comes

	mu     sync.Mutex
	events []string
	err    error // why nothing more comes
}

func newEndClient(c *talkClient) *endClient {
	e := &endClient{talkClient: c, ended: make(chan struct{})}
	go e.read()
	return e
}

// read reads until the session has ended.
func (c *endClient) read() {
	defer close(c.ended)
	defer c.Finish()
	var event []byte
	for {
		part, err := c.Next()
		c.mu.Lock()
		if c.err = err; err == nil {
			if event = append(event, part.Data...); part.Last {
				c.events, event = append(c.events, string(event)), event[:0]
			}
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// count returns how many events so far have text in them.
func (c *endClient) count(text string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, event := range c.events {
		if strings.Contains(event, text) {
			n++
		}
	}
	return n
}

// wait waits for n events that have text in them.
func (c *endClient) wait(t *testing.T, text string, n int) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if got := c.count(text); got < n {
			return fmt.Errorf("the client got %d events with %s, want %d", got, text, n)
		}
		return nil
	})
}

// create asks for a response.
func (c *endClient) create(t *testing.T) {
	t.Helper()
	if err := c.Send(websocket.Text, []byte(`{"type":"response.create"}`)); err != nil {
		t.Fatal(err)
	}
}

// respond asks for a response, and waits until it is done.
func (c *endClient) respond(t *testing.T) {
	t.Helper()
	done := c.count(`"response.done"`)
	c.create(t)
	c.wait(t, `"response.done"`, done+1)
}

// end waits for the end of the session, and returns the code.
func (c *endClient) end(t *testing.T) websocket.Code {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the session goes on")
	}
	if closed, ok := errors.AsType[*websocket.CloseError](c.err); ok {
		return closed.Code
	}
	return websocket.CloseLost
}

// errors returns the codes, or else the types, of the errors that have come.
func (c *endClient) errors(t *testing.T) (codes []string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, event := range c.events {
		var e struct {
			Type  string
			Error struct{ Type, Code string }
		}
		if err := json.Unmarshal([]byte(event), &e); err != nil {
			t.Errorf("%s: %v", event, err)
		}
		if e.Type == "error" {
			codes = append(codes, cmp.Or(e.Error.Code, e.Error.Type))
		}
	}
	return codes
}

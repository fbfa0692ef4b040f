package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// A sessionMoment is when a session ends.
type sessionMoment string

const (
	whenIdle       sessionMoment = "idle"
	whenResponding sessionMoment = "responding"
	whenPaying     sessionMoment = "between response.done and the new hold"
)

// A sessionEndRow is a row of the table of ends: who ends a session, and what each side gets to see.
type sessionEndRow struct {
	name string
	end  func(*testSession, *sessionClient, *providertest.RealtimeSession) // nil: the account does

	refuse  error                                 // what the account says from then on
	isAway  bool                                  // the account cannot be reached from then on
	spend   func(s *providertest.RealtimeSession) // afterwards, so that the account is asked; nil: it is checked
	isLate  bool                                  // spend also follows if the account was asked because of a response
	session time.Duration                         // after which it is too long; 0: an hour

	client, server websocket.Code // that each side gets; CloseLost: none
	event          string         // in the error that the client gets; "" for none

	isClient, isProvider bool // it is the client, or the provider, that ends the session
}

var errGroupGone = errors.New("group is disabled")

// sessionEndRows is the table of who ends a session.
var sessionEndRows = []sessionEndRow{
	{
		name: "client closes", client: 4001, server: 4001, isClient: true,
		end: func(_ *testSession, c *sessionClient, _ *providertest.RealtimeSession) { _ = c.Close(4001, "bye") },
	},
	{
		name: "client is gone", client: websocket.CloseLost, server: websocket.CloseGoingAway, isClient: true,
		end: func(_ *testSession, c *sessionClient, _ *providertest.RealtimeSession) { c.Abort() },
	},
	{
		name: "provider closes", client: 4002, server: 4002, isProvider: true,
		end: func(_ *testSession, _ *sessionClient, s *providertest.RealtimeSession) { s.Close(4002, "enough") },
	},
	{
		name: "provider is gone", client: websocket.CloseInternal, server: websocket.CloseLost, isProvider: true, event: `"api_error"`,
		end: func(_ *testSession, _ *sessionClient, s *providertest.RealtimeSession) { s.Abort() },
	},
	{
		name: "balance", refuse: InsufficientError{Left: 3}, spend: transcribe(10),
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: `"insufficient_quota"`,
	},
	{
		name: "key revoked", refuse: fmt.Errorf("no such key: %w", ErrNoHold),
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: `"invalid_api_key"`,
	},
	{
		name: "key disabled", refuse: errors.New("API key is disabled"),
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: `"key_disabled"`,
	},
	{
		name: "group gone", refuse: errGroupGone,
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: `"group_disabled"`,
	},
	{
		name: "model no longer allowed", refuse: DeniedError{ModelNames{"x"}},
		client: websocket.ClosePolicy, server: websocket.ClosePolicy, event: `"model_not_found"`,
	},
	{
		name: "SIGTERM", client: websocket.CloseGoingAway, server: websocket.CloseGoingAway,
		end: func(g *testSession, _ *sessionClient, _ *providertest.RealtimeSession) { go g.Stop() },
	},
	{
		name: "Redis away", isAway: true, spend: transcribe(100_000), isLate: true,
		client: websocket.CloseTryAgain, server: websocket.CloseTryAgain, event: `"api_error"`,
	},
	{
		name: "Redis is full", refuse: Error{503, "Too little memory is left to hold tokens"}, spend: transcribe(10),
		client: websocket.CloseTryAgain, server: websocket.CloseTryAgain, event: `"api_error"`,
	},
	{
		name: "max_session", session: 300 * time.Millisecond, client: websocket.CloseNormal, server: websocket.CloseNormal,
		end: func(*testSession, *sessionClient, *providertest.RealtimeSession) {},
	},
}

// transcribe reports that a transcription has used that many tokens.
func transcribe(tokens int64) func(*providertest.RealtimeSession) {
	return func(s *providertest.RealtimeSession) { s.Transcribe(providertest.RealtimeUsage{Audio: tokens}) }
}

// No matter how and when a session ends, what was used is charged to the token, and each side learns why.
func TestSessionEnds(t *testing.T) {
	for _, row := range sessionEndRows {
		for _, when := range []sessionMoment{whenIdle, whenResponding, whenPaying} {
			t.Run(row.name+", "+string(when), func(t *testing.T) {
				t.Parallel()
				row.run(t, when)
			})
		}
	}
}

func (row *sessionEndRow) run(t *testing.T, when sessionMoment) {
	response := providertest.RealtimeResponse{Text: "word ", Deltas: 10}
	if when == whenResponding {
		response.Hang = providertest.InContent
	}
	g := newTestSession(t, providertest.RealtimeConduct{Response: response})
	g.call.Refusal = func(err error) (int, string, string) {
		if err == errGroupGone {
			return http.StatusForbidden, "group_disabled", err.Error()
		}
		return http.StatusForbidden, "", err.Error()
	}
	if row.refuse != nil && row.spend == nil && when != whenPaying {
		g.renewal = 20 * time.Millisecond
	}
	if row.session > 0 {
		g.endpoint.session.maxSession = row.session
	}
	c := g.open(t)
	c.wait(t, `"session.updated"`, 1)
	s := g.provider.Session(t, 1)
	switch when {
	case whenIdle:
		g.account.mu.Lock()
		row.change(g, c, s)
		g.account.mu.Unlock()
	case whenResponding:
		c.send(`{"type":"response.create"}`)
		c.wait(t, ".delta", 5)
		g.account.mu.Lock()
		row.change(g, c, s)
		g.account.mu.Unlock()
	case whenPaying:
		isDone := false
		g.account.setChance(func() mishap {
			if isDone {
				return fine
			}
			isDone = true
			row.change(g, c, s)
			if row.isAway {
				return away
			}
			return fine
		})
		c.send(`{"type":"response.create"}`)
		s.Wait(t, "response.create", 1)
		if !row.isClient {
			c.wait(t, `"response.done"`, 1)
		}
	}
	if row.spend != nil && (when != whenPaying || row.isLate) {
		row.spend(s)
	}
	row.want(t, when, g, c, s)
}

// change ends the session, or changes its account. The caller holds the account's mutex.
func (row *sessionEndRow) change(g *testSession, c *sessionClient, s *providertest.RealtimeSession) {
	g.account.refuse = row.refuse
	if row.isAway {
		g.account.chance = func() mishap { return away }
	}
	if row.end != nil {
		row.end(g, c, s)
	}
}

// want checks what each side gets to see, and what is charged.
func (row *sessionEndRow) want(t *testing.T, when sessionMoment, g *testSession, c *sessionClient, s *providertest.RealtimeSession) {
	isBroken := row.isProvider && when == whenResponding
	client, event := row.client, row.event
	if isBroken {
		client, event = websocket.CloseInternal, `"api_error"`
	}
	if code, reason := c.end(t); code != client || len(reason) > 123 {
		t.Errorf("the client got the code %d %q, want %d", code, reason, client)
	}
	if code := s.Ended(t); code != row.server {
		t.Errorf("the provider got the code %d, want %d", code, row.server)
	}
	if got := c.having(`"type":"error"`); len(got) != min(len(event), 1) || len(got) > 0 && !strings.Contains(got[0], event) {
		t.Errorf("the client got %q, want %q", got, event)
	}
	if row.isAway {
		g.account.setChance(nil)
	}
	isFailure := isBroken || row.server == websocket.CloseLost
	if n := g.log.count("[WARN] The endpoint e of tenant acme failed: it closed"); (n == 1) != isFailure || g.log.count("WARN") != n {
		t.Errorf("the log is %s", g.log.text.String())
	}
	want := g.costs()
	if isBroken { // half of ten words
		want += 9 * tokenPrices["output"] // 25 bytes
	}
	o := g.wantCharged(t, want)
	if o.estimated != isBroken {
		t.Errorf("the outcome is %+v", o)
	}
	if when == whenResponding && !isBroken {
		if n := len(s.Texts(`"response.cancel"`)); n != 1 {
			t.Errorf("the provider got %d cancels", n)
		}
		if !row.isClient {
			waittest.Eventually(t, time.Second, func() error {
				if len(c.having(`"cancelled"`)) == 0 {
					return fmt.Errorf("the client got no response.done: %q", c.having(""))
				}
				return nil
			})
		}
	}
}

// A panic ends the session that it is in, wherever that is, and nothing else. What it
// holds is given back.
func TestSessionPanics(t *testing.T) {
	for name, row := range map[string]struct {
		hang   providertest.Moment
		events []string
	}{
		"when a response is paid for": {events: []string{`{"type":"response.create"}`}},
		"when one is held for":        {hang: providertest.BeforeHeaders, events: []string{`{"type":"response.create"}`, apart}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{
				Response: providertest.RealtimeResponse{Text: "a", Deltas: 2, Hang: row.hang},
			})
			c := g.open(t)
			c.wait(t, `"session.updated"`, 1)
			var isBroken atomic.Bool
			g.account.setChance(func() mishap {
				if isBroken.CompareAndSwap(false, true) {
					panic("boom")
				}
				return fine
			})
			for _, event := range row.events {
				c.send(event)
			}
			c.end(t)
			waittest.Eventually(t, 20*time.Second, func() error {
				if held, used := g.account.held(), g.sessions.pool.Stats().Used; len(held) > 0 || used > 0 {
					return fmt.Errorf("%d tokens are held, and %d places are taken", held, used)
				}
				return nil
			})
		})
	}
}

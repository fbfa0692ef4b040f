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

var errGroupGone = errors.New("group is disabled")

// The account of a session is checked now and then, also if nothing is to be paid. What is generating when that refuses
// is cancelled and paid for. Ends of all kinds, over a real Redis, are a table of the service's tests.
func TestSessionIsChecked(t *testing.T) {
	for event, refusal := range map[string]error{ // nil: it cannot be reached
		`"invalid_api_key"`: fmt.Errorf("no such key: %w", ErrNoHold),
		`"key_disabled"`:    errors.New("API key is disabled"),
		`"group_disabled"`:  errGroupGone,
		`"model_not_found"`: DeniedError{ModelNames{"x"}},
		`"api_error"`:       Error{http.StatusServiceUnavailable, "Too little memory is left to hold tokens"},
		"none":              nil,
	} {
		for _, isResponding := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, responding: %t", event, isResponding), func(t *testing.T) {
				t.Parallel()
				testCheck(t, event, refusal, isResponding)
			})
		}
	}
}

func testCheck(t *testing.T, event string, refusal error, isResponding bool) {
	response := providertest.RealtimeResponse{Text: "word ", Deltas: 10, Hang: providertest.InContent}
	g := newTestSession(t, providertest.RealtimeConduct{Response: response})
	g.call.Refusal = func(err error) (int, string, string) {
		if err == errGroupGone {
			return http.StatusForbidden, "group_disabled", err.Error()
		}
		return http.StatusForbidden, "", err.Error()
	}
	g.renewal = 20 * time.Millisecond
	c := g.open(t)
	c.wait(t, `"session.updated"`, 1)
	s := g.provider.Session(t, 1)
	if isResponding {
		c.send(`{"type":"response.create"}`)
		c.wait(t, ".delta", 5)
	}
	code, errs := websocket.ClosePolicy, 1
	if plain, ok := errors.AsType[Error](refusal); ok && plain.Status == http.StatusServiceUnavailable {
		code = websocket.CloseTryAgain
	}
	if refusal == nil {
		g.outliveChecks(t)
		code, errs = 4001, 0
		_ = c.Close(code, "")
	}
	g.account.mu.Lock()
	g.account.refuse = refusal
	g.account.mu.Unlock()
	if got, reason := c.end(t); got != code {
		t.Errorf("the client got the code %d %q, want %d", got, reason, code)
	}
	if got := s.Ended(t); got != code {
		t.Errorf("the provider got the code %d, want %d", got, code)
	}
	if got := c.having(`"type":"error"`); len(got) != errs || errs > 0 && !strings.Contains(got[0], event) {
		t.Errorf("the client got %q, want %s", got, event)
	}
	if n := len(s.Texts(`"response.cancel"`)); (n == 1) != isResponding {
		t.Errorf("the provider got %d cancels", n)
	}
	if o := g.wantCharged(t, g.costs()); o.estimated {
		t.Errorf("the outcome is %+v", o)
	}
}

// outliveChecks lets the account be away for some checks.
func (g *testSession) outliveChecks(t *testing.T) {
	t.Helper()
	var steps atomic.Int64
	g.account.setChance(func() mishap {
		steps.Add(1)
		return away
	})
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := steps.Load(); n < 5 { // one renewal comes with the first check, and others much later
			return fmt.Errorf("the account was asked %d times", n)
		}
		return nil
	})
	g.account.setChance(nil)
}

// A panic ends the session that it is in, wherever that is, and nothing else. What it holds is given back.
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

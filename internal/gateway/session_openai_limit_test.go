package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// object is JSON.
type object = map[string]any

// respond asks for the nth response, and waits for its end.
func (c *sessionClient) respond(t testing.TB, n int) {
	t.Helper()
	c.send(`{"type":"response.create"}`)
	c.wait(t, `"response.done"`, n)
}

// wantLimits waits until the provider was told all these limits of output tokens by us.
func wantLimits(t testing.TB, s *providertest.RealtimeSession, want ...string) {
	t.Helper()
	s.Wait(t, updateID, len(want))
	for i, got := range s.Texts(updateID) {
		limit := `"session":{"type":"realtime","max_output_tokens":` + want[min(i, len(want)-1)] + "}}"
		if i >= len(want) || !strings.HasSuffix(got, limit) {
			t.Errorf("update %d: the provider got %s, want %s", i, got, want)
		}
	}
}

// The limit of output tokens follows what is held, and what the client has set below it. The voice is set once.
func TestSessionLimitIsSent(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Text: "a"}}) // costs 1,180
	g.account.left = 50_000
	c := g.open(t)
	c.wait(t, "session.updated", 1)
	s := g.provider.Session(t, 1)
	wantLimits(t, s, "268") // 48,384 and half of 1,616 beyond it, less 1,000 × 32
	c.respond(t, 1)
	wantLimits(t, s, "268", "259")
	setting := func(want float64) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			if got := s.Settings()["max_output_tokens"]; got != want {
				return fmt.Errorf("the provider's limit is %v, want %v", got, want)
			}
			return nil
		})
	}
	setting(259)
	c.send(`{"type":"session.update","session":{"type":"realtime","max_output_tokens":260}}`)
	c.wait(t, `"type":"error"`, 1)
	c.send(`{"type":"session.update","session":{"type":"realtime","max_output_tokens":100}}`)
	setting(100)
	c.send(`{"type":"session.update","session":{"type":"realtime","instructions":"x","model":"m"}}`)
	c.wait(t, "session.updated", 4)
	g.account.mu.Lock()
	g.account.left += 100_000
	g.account.mu.Unlock()
	c.respond(t, 2)
	wantLimits(t, s, "268", "259", "100") // now 400 are held, and the client has asked for 100
	c.send(`{"type":"response.create","response":{"max_output_tokens":399}}`)
	c.wait(t, `"response.done"`, 3)
	c.send(`{"type":"session.update","session":{"type":"realtime","max_output_tokens":"inf"}}`)
	setting(400)
	var limits []string
	for _, event := range s.Texts(`"response.create"`) {
		limits = append(limits, event[strings.Index(event, "max_output_tokens"):])
	}
	want := []string{`max_output_tokens":268}}`, `max_output_tokens":100}}`, `max_output_tokens":399}}`}
	for i := range want {
		if i >= len(limits) || !strings.HasPrefix(limits[i], strings.TrimSuffix(want[i], "}}")) {
			t.Errorf("the provider got the limits %q, want %q", limits, want)
		}
	}
	_ = c.Close(1000, "")
	g.wantCharged(t, g.costs())
}

// A response beside another one is asked for with the limit that its own hold covers, which may be a small one.
func TestSessionLimitOfFurtherResponse(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Hang: providertest.BeforeHeaders},
	})
	g.account.left = fullHold + 50_000
	c := g.open(t)
	s := g.provider.Session(t, 1)
	c.send(`{"type":"response.create"}`)
	s.Wait(t, "response.create", 1)
	c.send(`{"type":"response.create","event_id":"much","response":{"conversation":"none","max_output_tokens":400}}`)
	if got := c.wait(t, `"type":"error"`, 1); !strings.Contains(got, "from 1 to 268") || !strings.Contains(got, `"event_id":"much"`) {
		t.Errorf("got %s", got)
	}
	wantLimits(t, s, "400", "268")
	c.send(apart)
	s.Wait(t, `"conversation":"none"`, 1)
	if got := s.Texts(`"conversation":"none"`); len(got) != 1 || !strings.Contains(got[0], `"max_output_tokens":268`) {
		t.Errorf("the provider got %q", got)
	}
	s.Continue()
	c.wait(t, `"response.done"`, 2)
	_ = c.Close(1000, "")
	g.wantCharged(t, g.costs())
}

// A provider that does not take our limit could let a response cost more than is held.
func TestSessionProviderFails(t *testing.T) {
	onUpdate := func(do func(*providertest.RealtimeSession)) providertest.RealtimeConduct {
		return providertest.RealtimeConduct{OnEvent: func(s *providertest.RealtimeSession, kind string, event []byte) bool {
			if kind != "session.update" {
				return false
			}
			do(s)
			return true
		}}
	}
	long := strings.Repeat("a", 100<<10)
	for name, row := range map[string]struct {
		conduct        providertest.RealtimeConduct
		client, server websocket.Code
		event, warning string
		cost           int64
	}{
		"no limit": {onUpdate(func(s *providertest.RealtimeSession) { s.SendError("invalid_value", "no", updateID) }),
			1011, 1001, "does not take the limit", "refuses the session's limit", 0},
		"binary": {onUpdate(func(s *providertest.RealtimeSession) { s.SendBinary([]byte("{}")) }),
			1011, 1001, "not text", "sent a binary message", 0},
		"no session": {providertest.RealtimeConduct{Mute: true}, 1011, 1001, "does not create", "not create the session", 0},
		"too large for the memory": {onUpdate(func(s *providertest.RealtimeSession) {
			s.SendEvent("response.created", object{"response": object{"id": "r"}})
			s.SendEvent("response.output_text.delta", object{"response_id": "r", "delta": "12345"})
			s.SendEvent("response.done", object{"response": object{"id": "r", "output": long}})
		}), 1013, 1001, "", "", 2 * tokenPrices["output"]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, row.conduct)
			g.memory = fairpool.New(1, 1)
			c := g.open(t)
			c.send(`{"type":"input_audio_buffer.clear"}`)
			if code, reason := c.end(t); code != row.client {
				t.Errorf("the client got %d %q, want %d", code, reason, row.client)
			}
			if code := g.provider.Session(t, 1).Ended(t); code != row.server {
				t.Errorf("the provider got %d, want %d", code, row.server)
			}
			got := c.having(`"type":"error"`)
			if len(got) != min(len(row.event), 1) || len(got) > 0 && !strings.Contains(got[0], row.event) {
				t.Errorf("the client got %q, want %q", got, row.event)
			}
			if n := g.log.count("WARN"); n != min(len(row.warning), 1) || g.log.count(row.warning) == 0 {
				t.Errorf("the log is %s, want %q", g.log.text.String(), row.warning)
			}
			g.wantCharged(t, row.cost)
		})
	}
}

// The provider may say that it is another model of the endpoint. The dearer price counts.
func TestSessionDearerModel(t *testing.T) {
	for model, factor := range map[string]int64{"n": 2, "n-2026-01-01": 2, "m-2026-01-01": 1, "cheap": 1, "unknown": 1} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{Mute: true})
			g.endpoint.prices.addNamed("cheap", &price{})
			dear := *g.endpoint.prices.find("m")
			for k := range dear.rates {
				dear.rates[k] *= 2
			}
			g.endpoint.prices.addNamed("n", &dear)
			c := g.open(t)
			s := g.provider.Session(t, 1)
			s.SendEvent("session.created", object{"session": object{"model": model}})
			s.Wait(t, updateID, 1)
			c.respond(t, 1)
			_ = c.Close(1000, "")
			g.wantCharged(t, factor*g.costs())
		})
	}
}

// What a response has used is estimated if it does not say so. Tokens without details are text.
func TestSessionEstimates(t *testing.T) {
	response := providertest.RealtimeResponse{Text: "123", Deltas: 3}
	for usage, want := range map[string]int64{
		`null`: 3 * tokenPrices["output"], `{}`: 3 * tokenPrices["output"],
		`{"input_tokens":5,"output_tokens":7}`: 5*tokenPrices["input"] + 7*tokenPrices["output"],
		`{"input_tokens":5,"output_tokens":7,"input_token_details":{"audio_tokens":2}}`: 3*tokenPrices["input"] +
			2*tokenPrices["audio_input"] + 7*tokenPrices["output"],
	} {
		response.RawUsage = usage
		g := newTestSession(t, providertest.RealtimeConduct{Response: response})
		c := g.open(t)
		c.respond(t, 1)
		_ = c.Close(1000, "")
		if o := g.wantCharged(t, want); o.estimated != (len(usage) < 5) {
			t.Errorf("%s: the outcome is %+v", usage, o)
		}
	}
	g := newTestSession(t, providertest.RealtimeConduct{Transcript: providertest.RealtimeUsage{Seconds: 2.4}})
	c := g.open(t)
	c.send(`{"type":"input_audio_buffer.commit"}`)
	c.wait(t, "transcription.completed", 1)
	_ = c.Close(1000, "")
	if o := g.wantCharged(t, 17); o.Seconds != 3 {
		t.Errorf("the outcome is %+v", o)
	}
}

// Nothing that the client gets has the endpoint's key, and it gets no errors about events of ours.
func TestSessionErrors(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	c.wait(t, "session.updated", 1)
	s := g.provider.Session(t, 1)
	s.SendError("x", "the key "+providertest.Key+" is wrong", "")
	s.SendError("response_cancel_not_active", "", cancelID)
	s.SendEvent("rate_limits.updated", nil)
	s.SendEvent("last", nil)
	c.wait(t, `"last"`, 1)
	got := c.having(`"type":"error"`)
	if len(got) != 1 || !strings.Contains(got[0], "the key [removed] is wrong") || len(c.having("rate_limits")) > 0 {
		t.Errorf("the client got %q", got)
	}
	c.send(`{"type":"session.update","event_id":"e1","session":{"type":"realtime","instructions":"` + strings.Repeat("a", 100<<10) + `"}}`)
	c.wait(t, "session.updated", 2) // there is memory
	g.memory = fairpool.New(1, 1)
	c = g.open(t)
	c.send(`{"type":"session.update","session":{"type":"realtime","instructions":"` + strings.Repeat("a", 100<<10) + `"}}`)
	c.wait(t, "too little memory", 1)
	c.respond(t, 1)
	s = g.provider.Session(t, 2)
	if slices.ContainsFunc(s.Texts("session.update"), func(event string) bool { return len(event) > 1000 }) {
		t.Error("the provider got what could not be read")
	}
}

// A provider that does not keep to the limit is paid for all of its output, from the balance beyond what was held.
func TestSessionAboveTheLimit(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{OnEvent: func(s *providertest.RealtimeSession, kind string, _ []byte) bool {
		if kind == "response.create" {
			s.SendEvent("response.created", object{"response": object{"id": "r"}})
			s.SendEvent("response.done", object{"response": object{"id": "r", "usage": object{"input_tokens": 10, "output_tokens": 9_000}}})
		}
		return kind == "response.create" || kind == "session.update" // which it does not answer, either
	}})
	c := g.open(t)
	c.send(`{"type":"response.create"}`)
	c.wait(t, `"response.done"`, 1)
	_ = c.Close(1000, "")
	g.wantCharged(t, 10*tokenPrices["input"]+9_000*tokenPrices["output"])
}

package gateway

import (
	"encoding/json"
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

const (
	fullHold = 57_600 // of one response of a testSession
	apart    = `{"type":"response.create","response":{"conversation":"none"}}`
)

// wantHeld waits until holds of these tokens are open.
func (g *testSession) wantHeld(t testing.TB, want ...int64) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := g.account.held(); !slices.Equal(got, want) {
			return fmt.Errorf("%d tokens are held, want %d", got, want)
		}
		return nil
	})
}

// Each response that is under way is held for, no matter which side has begun it. What is held beyond that is given back.
func TestSessionResponsesAreHeld(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Hang: providertest.BeforeHeaders},
	})
	c := g.open(t)
	s := g.provider.Session(t, 1)
	g.wantHeld(t, fullHold)
	c.send(`{"type":"response.create"}`)
	s.Wait(t, "response.create", 1)
	g.wantHeld(t, fullHold)
	c.send(apart)
	s.Wait(t, "response.create", 2)
	g.wantHeld(t, fullHold, fullHold)
	c.send(`{"type":"response.create","event_id":"third"}`) // the provider refuses it
	c.wait(t, "conversation_already_has_active_response", 1)
	g.wantHeld(t, fullHold, fullHold, fullHold)
	s.Continue()
	c.wait(t, `"response.done"`, 2)
	g.wantHeld(t, fullHold)
	// One that nobody has asked for, beside one that somebody has.
	c.send(apart)
	s.Wait(t, `"conversation":"none"`, 2)
	s.Continue()
	c.wait(t, `"response.created"`, 3)
	c.wait(t, `"response.done"`, 3)
	s.SendEvent("response.created", object{"response": object{"id": "x"}})
	s.SendEvent("response.created", object{"response": object{"id": "y"}})
	c.wait(t, `"response.created"`, 5)
	g.wantHeld(t, fullHold, fullHold)
	for _, id := range []string{"x", "y"} {
		s.SendEvent("response.done", object{"response": object{"id": id, "usage": object{"input_tokens": 0, "output_tokens": 0}}})
	}
	c.wait(t, `"response.done"`, 5)
	g.wantHeld(t, fullHold)
	_ = c.Close(1000, "")
	g.wantCharged(t, g.costs())
}

// A response that the balance does not cover beside another is not asked for, and the session goes on.
func TestSessionBalanceHeld(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Deltas: 2, Hang: providertest.InContent},
	})
	g.account.left = fullHold + 40_000
	c := g.open(t)
	c.send(`{"type":"response.create"}`)
	c.wait(t, ".delta", 1)
	c.send(`{"type":"response.create","event_id":"second","response":{"conversation":"none"}}`)
	got := c.wait(t, `"balance_held"`, 1)
	if !strings.Contains(got, `"event_id":"second"`) || !strings.Contains(got, `"rate_limit_error"`) {
		t.Errorf("the client got %s", got)
	}
	s := g.provider.Session(t, 1)
	s.Continue()
	c.wait(t, `"response.done"`, 1)
	if n := len(s.Texts("response.create")); n != 1 {
		t.Errorf("the provider got %d events", n)
	}
	// The provider does not ask.
	c.send(`{"type":"response.create"}`)
	c.wait(t, ".delta", 3)
	s.SendEvent("response.created", object{"response": object{"id": "x"}})
	s.Wait(t, `"response_id":"x"`, 1)
	s.SendEvent("response.done", object{"response": object{"id": "x", "usage": object{"input_tokens": 0, "output_tokens": 0}}})
	if code, _ := c.end(t); code != websocket.ClosePolicy || len(c.having("insufficient_quota")) != 1 {
		t.Errorf("the client got %d, %q", code, c.having(`"type":"error"`))
	}
	g.wantCharged(t, g.costs())
}

// More than nine responses at a time are refused, whatever the balance is.
func TestSessionManyResponses(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Hang: providertest.InContent},
	})
	c := g.open(t)
	for range maxResponses + 1 {
		c.send(apart)
	}
	c.wait(t, `"balance_held"`, 1)
	c.wait(t, ".delta", maxResponses)
	if n := len(g.provider.Session(t, 1).Texts("response.create")); n != maxResponses {
		t.Errorf("the provider got %d events", n)
	}
	_ = c.Close(1000, "")
	s := g.provider.Session(t, 1)
	if code := s.Ended(t); code != 1000 {
		t.Errorf("the provider got %d", code)
	}
	g.wantCharged(t, g.costs())
}

// Nobody can keep a session from ending: neither a provider that does not cancel, nor a client that does not read.
func TestSessionEndsInTime(t *testing.T) {
	flood := providertest.RealtimeResponse{Text: strings.Repeat("a", 60<<10), Deltas: 10_000}
	deafFlood := flood
	deafFlood.Deaf, deafFlood.Deltas, deafFlood.Hang = true, 500, providertest.BeforeEnd
	hang := providertest.RealtimeResponse{Text: "abc", Deltas: 2, Hang: providertest.InContent, Deaf: true}
	late := hang
	late.Hang = providertest.BeforeHeaders
	for name, row := range map[string]struct {
		response        providertest.RealtimeResponse
		isSlow, hasGone bool          // the client does not read; it is the one that ends the session
		reads           time.Duration // after which it reads some, again and again; 0: never
		want            int64
		isEstimate      bool
		within          time.Duration
	}{
		"the provider does not cancel":     {hang, false, false, 0, 1 * tokenPrices["output"], true, 7 * time.Second},
		"nor when the client hangs up":     {hang, false, true, 0, 1 * tokenPrices["output"], true, 7 * time.Second},
		"it does not even begin":           {late, false, true, 0, 0, false, 7 * time.Second},
		"the client does not read":         {flood, true, false, 0, -1, false, 12 * time.Second},
		"the client reads slowly":          {flood, true, false, 40 * time.Millisecond, -1, false, 12 * time.Second},
		"the client does not read, either": {deafFlood, true, false, 0, fullHold, true, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{Response: row.response})
			conn, _ := g.dial(t, "?model=m")
			c := &sessionClient{Conn: conn, ended: make(chan struct{})}
			if !row.isSlow {
				go c.read()
			}
			c.send(`{"type":"response.create"}`)
			s := g.provider.Session(t, 1)
			s.Wait(t, "response.create", 1)
			switch {
			case row.isSlow:
				time.Sleep(time.Second) // the buffers between them are full
				if row.reads > 0 {
					go readSlowly(conn, row.reads)
				}
			case row.response.Hang == providertest.InContent:
				c.wait(t, ".delta", 1)
			}
			began := time.Now()
			if row.hasGone {
				_ = c.Close(4001, "")
			} else {
				go g.Stop()
			}
			want := row.want
			g.awaitEnd()
			if took := time.Since(began); took > row.within {
				t.Errorf("the session took %s to end", took)
			}
			if want < 0 {
				want = g.costs()
			}
			if o := g.wantCharged(t, want); o.estimated != row.isEstimate {
				t.Errorf("the outcome is %+v", o)
			}
			c.Abort()
		})
	}
}

// readSlowly reads a few parts each time that the pause has passed.
func readSlowly(conn *websocket.Conn, pause time.Duration) {
	for {
		time.Sleep(pause)
		for range 3 {
			if _, err := conn.Next(); err != nil {
				return
			}
		}
	}
}

// A session whose account cannot be reached goes on as long as what is held covers what it uses.
func TestSessionOutlivesRedis(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Text: "a"}}) // costs 1,180
	c := g.open(t)
	c.wait(t, "session.updated", 1)
	g.account.setChance(func() mishap { return away })
	c.respond(t, 1)
	c.respond(t, 2)
	c.send(`{"type":"response.create"}`)
	c.send(apart)
	g.account.setChance(nil)
	c.wait(t, `"response.done"`, 3)
	_ = c.Close(1000, "")
	s := g.provider.Session(t, 1)
	_ = s.Ended(t)
	g.wantCharged(t, g.costs())
}

// An error about another event of the client does not answer a response.create: what was asked for stays held for,
// whatever IDs the client gives its events.
func TestSessionOtherErrors(t *testing.T) {
	for name, row := range map[string]struct{ create, other, errorID string }{
		"no IDs":   {`{"type":"response.create"}`, `{"type":"conversation.item.delete","item_id":"x"}`, ""},
		"same IDs": {`{"type":"response.create","event_id":"x"}`, `{"type":"conversation.item.delete","item_id":"x","event_id":"x"}`, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{
				Response: providertest.RealtimeResponse{Text: "a", Hang: providertest.BeforeHeaders},
				OnEvent: func(s *providertest.RealtimeSession, kind string, _ []byte) bool {
					if kind == "conversation.item.delete" {
						s.SendError("item_delete_invalid_item_id", "no such item", row.errorID)
					}
					return kind == "conversation.item.delete"
				},
			})
			c := g.open(t)
			c.send(row.create)
			c.send(row.other)
			c.wait(t, "no such item", 1)
			c.send(apart)
			g.provider.Session(t, 1).Wait(t, "response.create", 2)
			g.wantHeld(t, fullHold, fullHold)
			c.Abort()
			g.awaitEnd() // when the responses were cancelled
			g.wantCharged(t, g.costs())
		})
	}
}

// An error about a response.create has the ID that the client has given it, and answers it.
func TestSessionResponseErrors(t *testing.T) {
	long := strings.Repeat("a", 512)
	for name, row := range map[string]struct{ create, want string }{
		"with an ID": {`{"type":"response.create","event_id":"a\"b"}`, `"event_id":"a\"b"`},
		"without":    {`{"type":"response.create"}`, `"event_id":null`},
		"a long one": {`{"type":"response.create","event_id":"` + long + `"}`, `"event_id":"` + long + `"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Error: "refused"}})
			c := g.open(t)
			for n := 1; n <= maxResponses+1; n++ {
				c.send(row.create)
				if got := c.wait(t, `"refused"`, n); !strings.Contains(got, row.want) || strings.Contains(got, "tollgate") {
					t.Fatalf("the client got %s", got)
				}
			}
			g.wantHeld(t, fullHold)
			_ = c.Close(1000, "")
			g.wantCharged(t, 0)
		})
	}
}

// A client cannot give an event the ID of one of the gateway's.
func TestSessionOwnIDs(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	for n, id := range []string{"tollgate-update", "\\u0074ollgate-create-1"} {
		c.send(`{"event_id":"` + id + `","type":"conversation.item.delete","item_id":"x"}`)
		c.wait(t, `"param":"event_id","event_id":"tollgate-`, n+1)
	}
	_ = c.Close(1000, "")
	if got := g.provider.Session(t, 1).Texts("item.delete"); len(got) > 0 {
		t.Errorf("the provider got %q", got)
	}
	g.wantCharged(t, 0)
}

// What was transcribed of the input when a session ends is not free because its usage has not come: as many tokens of
// sound as its text has bytes are paid for.
func TestSessionTranscribing(t *testing.T) {
	const kind = "conversation.item.input_audio_transcription."
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	c.wait(t, `"session.updated"`, 1)
	s := g.provider.Session(t, 1)
	for _, id := range []string{"item_speech", "failed", "open", "open", "other"} {
		s.SendEvent(kind+"delta", object{"item_id": id, "content_index": 0, "delta": "four"})
	}
	s.Transcribe(providertest.RealtimeUsage{Audio: 100, OutputText: 10}) // of item_speech
	s.SendEvent(kind+"failed", object{"item_id": "failed", "error": object{"code": "audio_unintelligible"}})
	c.wait(t, kind, 7)
	_ = c.Close(1000, "")
	const open = 12
	if o := g.wantCharged(t, g.costs()+open*transcriptPrices["input"]+open/3*transcriptPrices["output"]); !o.estimated {
		t.Errorf("the outcome is %+v", o)
	}
}

// What is transcribed while a session ends in mid-response is paid for beside the response.
func TestSessionTranscribingWhileResponding(t *testing.T) {
	const kind = "conversation.item.input_audio_transcription.delta"
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Deltas: 2, Hang: providertest.InContent},
	})
	c := g.open(t)
	c.send(`{"type":"response.create"}`)
	c.wait(t, ".output_text.delta", 1)
	g.provider.Session(t, 1).SendEvent(kind, object{"item_id": "x", "content_index": 0, "delta": "four"})
	c.wait(t, kind, 1)
	_ = c.Close(1000, "")
	g.awaitEnd() // when the response was cancelled
	g.wantCharged(t, g.costs()+4*transcriptPrices["input"]+2*transcriptPrices["output"])
}

// An error about a response.create has the client's ID, also if a response that the provider has begun by itself has
// come between.
func TestSessionResponseErrorAfterTurn(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		OnEvent: func(s *providertest.RealtimeSession, kind string, event []byte) bool {
			if kind != "response.create" {
				return false
			}
			var e struct {
				EventID string `json:"event_id"`
			}
			_ = json.Unmarshal(event, &e)
			s.SendEvent("response.created", object{"response": object{"id": "turn"}})
			s.SendError(activeResponse, "a response is active", e.EventID)
			return true
		},
	})
	c := g.open(t)
	c.send(`{"type":"response.create","event_id":"mine"}`)
	if got := c.wait(t, "a response is active", 1); !strings.Contains(got, `"event_id":"mine"`) {
		t.Errorf("the client got %s", got)
	}
	g.wantHeld(t, fullHold)
	s := g.provider.Session(t, 1)
	s.SendEvent("response.done", object{"response": object{"id": "turn", "usage": object{"input_tokens": 0, "output_tokens": 0}}})
	c.wait(t, "response.done", 1)
	_ = c.Close(1000, "")
	g.wantCharged(t, 0)
}

// What the provider never answers is not held for until the end, and does not keep the client from asking for more.
func TestSessionUnanswered(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		OnEvent: func(_ *providertest.RealtimeSession, kind string, _ []byte) bool { return kind == "response.create" },
	})
	g.renewal = 100 * time.Millisecond
	c := g.open(t)
	for range maxResponses {
		c.send(apart)
	}
	s := g.provider.Session(t, 1)
	s.Wait(t, "response.create", maxResponses)
	waittest.Eventually(t, 10*time.Second, func() error {
		c.send(apart)
		if got := len(s.Texts("response.create")); got <= maxResponses {
			return fmt.Errorf("the provider got %d events", got)
		}
		return nil
	})
	_ = c.Close(1000, "")
	g.wantCharged(t, 0)
}

// What the provider has begun by itself when a session ends is paid for if it comes before the provider's close frame,
// and the client learns of no cancel.
func TestSessionResponseBehindTheEnd(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	c.wait(t, `"session.updated"`, 1)
	s := g.provider.Session(t, 1)
	sent := make(chan struct{})
	g.account.setChance(func() (none mishap) {
		<-sent
		return none
	})
	g.account.mu.Lock()
	g.account.refuse = ErrNoHold
	g.account.mu.Unlock()
	s.Transcribe(providertest.RealtimeUsage{Audio: 10})
	s.SendEvent("response.created", object{"response": object{"id": "turn"}})
	s.SendEvent("response.done", object{"response": object{"id": "turn", "usage": object{"input_tokens": 7, "output_tokens": 5}}})
	s.SendError("response_cancel_not_active", "nothing is active", cancelID)
	close(sent)
	c.end(t)
	if got := c.having(cancelID); len(got) > 0 {
		t.Errorf("the client got %q", got)
	}
	g.wantCharged(t, g.costs()+7*tokenPrices["input"]+5*tokenPrices["output"])
}

// No event that is read whole shows the endpoint's key: a failed response can quote what the provider was sent.
func TestSessionEventsHaveNoKey(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	c.wait(t, `"session.updated"`, 1)
	s := g.provider.Session(t, 1)
	wrong := object{"message": "the key " + providertest.Key + " is wrong"}
	s.SendError("invalid_api_key", wrong["message"].(string), "")
	s.SendEvent("response.done", object{"response": object{"id": "x", "status": "failed", "status_details": object{"error": wrong}}})
	c.wait(t, "the key [removed] is wrong", 2)
	if got := c.having(providertest.Key); len(got) > 0 {
		t.Errorf("the client got %q", got)
	}
	_ = c.Close(1000, "")
	g.wantCharged(t, 0)
}

// A session whose client lets the provider send more than there is memory for ends when its response is done, which is
// charged exactly.
func TestSessionMemoryWhileResponding(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{
		Response: providertest.RealtimeResponse{Text: "a", Deltas: 2, Hang: providertest.InContent},
	})
	g.memory = fairpool.New(1, 1)
	c := g.open(t)
	c.send(`{"type":"response.create"}`)
	c.wait(t, ".delta", 1)
	s := g.provider.Session(t, 1)
	s.SendEvent("session.updated", object{"session": object{"instructions": strings.Repeat("a", 200<<10)}})
	if code, _ := c.end(t); code != websocket.CloseTryAgain {
		t.Errorf("the client got %d", code)
	}
	s.Ended(t)
	if o := g.wantCharged(t, g.costs()); o.estimated || o.cost == 0 {
		t.Errorf("the outcome is %+v", o)
	}
}

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
	"tollgate/internal/websockettest"
)

// sendPieces sends a message in fragments of n bytes.
func (c *sessionClient) sendPieces(event string, n int) {
	for first := true; ; first = false {
		size := min(n, len(event))
		part := websocket.Part{Kind: websocket.Text, First: first, Last: size == len(event), Data: []byte(event[:size])}
		if c.WritePart(part) != nil || part.Last {
			return
		}
		event = event[size:]
	}
}

// refusedEvents are events that must not reach the provider: the type, and the other members.
var refusedEvents = [][2]string{
	{"session.update", `"session":{"type":"realtime","model":"gpt-realtime"}`},
	{"session.update", `"session":{"type":"realtime","max_output_tokens":401}`},
	{"session.update", `"session":{"type":"realtime","prompt":{"id":"p"}}`},
	{"session.update", `"session":{"type":"realtime","tools":[{"type":"mcp","server_url":"https://x"}]}`},
	{"session.update", `"session":{"type":"transcription"}`},
	{"session.update", `"session":{"type":"realtime","unknown":1}`},
	{"response.create", `"response":{"model":"x"}`},
	{"response.create", `"response":{"max_output_tokens":401}`},
	{"response.create", `"response":{"prompt":{"id":"p"}}`},
	{"response.create", `"response":{"tools":[{"type":"web_search"}]}`},
	{"response.create", `"response":{"input":[{"type":"item_reference","id":"i"}]}`},
	{"response.create", `"Response":{}`},
	{"response.create", `"response":{"max_output_tokens":1,"max_output_tokens":1}`},
	{"conversation.item.create", `"item":{"type":"item_reference","id":"i"}`},
	{"conversation.item.create", `"item":{"type":"mcp_call","id":"i"}`},
	{"conversation.item.create", `"Item":{"type":"message"}`},
	{"transcription_session.update", `"session":{}`},
	{"Response.create", `"response":{}`},
	{"response.create ", `"response":{}`},
}

// escaped returns a string of JSON in which each byte of text is escaped.
func escaped(text string) string {
	var s strings.Builder
	for _, b := range []byte(text) {
		fmt.Fprintf(&s, `\u%04x`, b)
	}
	return `"` + s.String() + `"`
}

// spellings returns how an event with a type and other members may be spelled: with the type first, last, escaped and
// twice. Those of starts begin as if they were something else, which may be passed on.
func spellings(kind, rest string) (all, starts []string) {
	plain, other := fmt.Sprintf(`"type":%q`, kind), `"type":"input_audio_buffer.clear"`
	escapedType := escaped("type") + ":" + escaped(kind)
	all = []string{
		"{" + plain + "," + rest + "}", "{" + rest + "," + plain + "}", " {" + rest + " , " + escapedType + "} ",
		"{" + plain + "," + rest + "," + plain + "}", "{" + plain + "," + escapedType + "," + rest + "}",
		"{" + plain + "," + rest + "," + other + "}", "{" + plain + "," + rest + "}{}", "[{" + plain + "," + rest + "}]",
	}
	return all, []string{"{" + other + "," + rest + "," + plain + "}", "{" + other + "," + escapedType + "," + rest + "}"}
}

// No event that is refused reaches the provider, however it is spelled and cut. The client is told, and goes on unless
// the event has begun as another one.
func TestSessionRefusedEvents(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	c := g.open(t)
	s := g.provider.Session(t, 1)
	s.Wait(t, "session.update", 1)
	n := 0
	refuse := func(event string, size int) {
		c.sendPieces(event, size)
		n++
		if got := c.wait(t, `"type":"error"`, n); !strings.Contains(got, `"invalid_request_error"`) {
			t.Errorf("%s: got %s", event, got)
		}
	}
	for _, e := range refusedEvents {
		all, starts := spellings(e[0], e[1])
		for _, event := range all {
			refuse(event, len(event))
			refuse(event, 1)
		}
		for _, event := range starts {
			refuse(event, len(event))
			t.Run(event, func(t *testing.T) {
				t.Parallel()
				g := newTestSession(t, providertest.RealtimeConduct{})
				c := g.open(t)
				c.wait(t, "session.updated", 1)
				c.sendPieces(event, 1)
				if code, reason := c.end(t); code != websocket.ClosePolicy {
					t.Errorf("got %d %s", code, reason)
				}
				c.wait(t, `"type":"error"`, 1)
				if s := g.provider.Session(t, 1); s.Ended(t) != websocket.ClosePolicy || len(s.Messages()) != 1 {
					t.Errorf("the provider got %.3000q", s.Messages())
				}
				g.wantCharged(t, 0)
			})
		}
	}
	c.send(`{"type":"input_audio_buffer.clear"}`)
	s.Wait(t, "input_audio_buffer.clear", 1)
	if got := s.Messages(); len(got) != 2 {
		t.Errorf("the provider got %.3000q", got)
	}
	_ = c.Close(1000, "")
	g.wantCharged(t, 0)
}

// What is passed on may be cut anywhere.
func TestSessionFragments(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{Piece: 1, Response: providertest.RealtimeResponse{Text: "wörd€😀 "}})
	c := g.open(t)
	s := g.provider.Session(t, 1)
	events := []string{
		` { "type" : "conversation.item.create" , "item":{"type":"message","role":"user","content":[{"type":"input_text","text":"wörd€😀"}]}}  `,
		`{"item":{"content":[{"text":"` + strings.Repeat("€", 20_000) + `","type":"input_text"}],"type":"message"},` +
			`"type":"conversation.item.create"}`,
		`{"audio":"` + strings.Repeat("A", 50_000) + `","type":"input_audio_buffer.append"}`,
	}
	n := 1 // our session.update
	for _, event := range events {
		for _, size := range []int{len(event), 1, 2, 3, 7, 1000} {
			if size < 7 && len(event) > 1000 {
				continue
			}
			c.sendPieces(event, size)
			n++
			waittest.Eventually(t, 20*time.Second, func() error {
				if got := s.Messages(); len(got) < n {
					return fmt.Errorf("the provider got %d messages, want %d", len(got), n)
				}
				return nil
			})
			if got := string(s.Messages()[n-1].Data); got != event {
				t.Errorf("in fragments of %d bytes, the provider got %.200q, want %.200q", size, got, event)
			}
		}
	}
	c.sendPieces(`{"type":"response.create"}`, 1)
	c.wait(t, `"response.done"`, 1)
	if got := c.having("wörd€😀"); len(got) == 0 {
		t.Errorf("the client got %q", c.having(""))
	}
	_ = c.Close(1000, "")
	g.wantCharged(t, g.costs())
}

// What a client must not do ends the session, with what is generating paid for.
func TestSessionMisuse(t *testing.T) {
	text := func(s string) func(*sessionClient) { return func(c *sessionClient) { c.sendPieces(s, 1<<20) } }
	half := func(s string) func(*sessionClient) {
		return func(c *sessionClient) {
			_ = c.WritePart(websocket.Part{Kind: websocket.Text, First: true, Data: []byte(s)})
		}
	}
	long := strings.Repeat("A", 20<<10)
	const item = `{"type":"conversation.item.create","item":{"type":"message","content":[`
	for name, row := range map[string]struct {
		do             func(*sessionClient)
		client, server websocket.Code
		event          string
	}{
		"binary":         {func(c *sessionClient) { _ = c.Send(websocket.Binary, []byte{1}) }, 1003, 1001, ""},
		"no type":        {text(`{"audio":"` + strings.Repeat("A", 65<<10) + `"}`), 1009, 1001, ""},
		"long update":    {text(`{"type":"session.update","session":{"instructions":"` + strings.Repeat("A", 1<<20) + `"}}`), 1009, 1001, ""},
		"spaces behind":  {text(`{"type":"input_audio_buffer.clear"}` + strings.Repeat(" ", 200<<10)), 1009, 1001, ""},
		"late refusal":   {text(item + `{"type":"input_text","text":"` + long + `"},{"type":"x"}]}}`), 1008, 1008, "invalid_value"},
		"late bad JSON":  {text(`{"type":"input_audio_buffer.append","audio":"` + long + `"]`), 1008, 1008, "invalid_json"},
		"bad UTF-8":      {text("{\"type\":\"\xff"), 1007, 1001, ""},
		"half an event":  {half(`{"type":"input_audio_buffer.append","audio":"AAAA`), 1000, 1000, ""},
		"half character": {half(item + "{\"type\":\"input_text\",\"text\":\"\xf0\x9f\x98"), 1000, 1000, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{
				Response: providertest.RealtimeResponse{Deltas: 10, Hang: providertest.InContent},
			})
			if row.client == 1000 {
				g.endpoint.session.maxSession = time.Second
			}
			c := g.open(t)
			c.send(`{"type":"response.create"}`)
			c.wait(t, ".delta", 5)
			row.do(c)
			if code, reason := c.end(t); code != row.client {
				t.Errorf("the client got %d %q, want %d", code, reason, row.client)
			}
			s := g.provider.Session(t, 1)
			if code := s.Ended(t); code != row.server {
				t.Errorf("the provider got %d, want %d", code, row.server)
			}
			if got := c.having(`"type":"error"`); len(got) != min(len(row.event), 1) || len(got) == 1 && !strings.Contains(got[0], row.event) {
				t.Errorf("the client got %q, want %q", got, row.event)
			}
			if n := len(s.Texts("response.cancel")); n != 1 {
				t.Errorf("the provider got %d cancels", n)
			}
			if o := g.wantCharged(t, g.costs()); o.estimated || o.Output == 0 {
				t.Errorf("the outcome is %+v", o)
			}
		})
	}
}

// Messages of 16 MiB pass in both directions as they come, and longer ones do not.
func TestSessionLargeMessages(t *testing.T) {
	const most = 16 << 20
	sound := func(kind, member string, n int) string {
		head := fmt.Sprintf(`{"type":%q,%q:"`, kind, member)
		return head + strings.Repeat("A", n-len(head)-2) + `"}`
	}
	g := newTestSession(t, providertest.RealtimeConduct{})
	g.memory = fairpool.New(1, 1) // none is taken
	c := g.open(t)
	s := g.provider.Session(t, 1)
	s.Wait(t, "session.update", 1)
	event := sound("input_audio_buffer.append", "audio", most)
	c.sendPieces(event[:most], most)
	if got := s.Wait(t, "buffer.append", 1); got != event {
		t.Errorf("the provider got %d bytes", len(got))
	}
	event = sound("response.output_audio.delta", "delta", most)
	s.Send(`{"type":"response.created","response":{"id":"r"}}`)
	s.Send(event)
	if got := c.wait(t, "audio.delta", 1); got != event {
		t.Errorf("the client got %d bytes", len(got))
	}
	s.Send(`{"type":"response.done","response":{"id":"r","usage":{"input_tokens":0,"output_tokens":2}}}`)
	c.wait(t, "response.done", 1)
	c.sendPieces(sound("input_audio_buffer.append", "audio", most+1), most+1)
	if code, _ := c.end(t); code != websocket.CloseTooBig {
		t.Errorf("the client got %d", code)
	}
	if slices.ContainsFunc(s.Texts("buffer.append"), func(got string) bool { return len(got) > most }) {
		t.Error("the provider got what is too long")
	}
	g.wantCharged(t, 2*tokenPrices["output"])
}

// A side that leaves a message open, and so keeps what is to be told it from being sent, is told only so much.
func TestSessionQueues(t *testing.T) {
	t.Run("errors for the client", func(t *testing.T) {
		t.Parallel()
		g, server := newFrameSession(t)
		c := g.open(t)
		provider := <-server.Peers
		provider.Send(t, websockettest.Frame{First: 0x81, Payload: frameCreated}, websockettest.Frame{First: 0x01, Payload: `{"type":"x","y":"`})
		c.wait(t, "session.created", 1)
		for range 1000 {
			c.send(`{"type":"z"}`)
		}
		if code, reason := c.end(t); code != websocket.ClosePolicy {
			t.Errorf("the client got %d %s", code, reason)
		}
		g.wantCharged(t, 0)
	})
	t.Run("limits for the provider", func(t *testing.T) {
		t.Parallel()
		g := newTestSession(t, providertest.RealtimeConduct{})
		c := g.open(t)
		c.wait(t, "session.updated", 1)
		half := websocket.Part{Kind: websocket.Text, First: true, Data: []byte(`{"type":"input_audio_buffer.append","audio":"`)}
		_ = c.WritePart(half)
		s := g.provider.Session(t, 1)
		n := 0
		g.account.setChance(func() mishap { // the limit changes each time
			n++
			g.account.left = 50_000 + 20_000*int64(n%2)
			for _, hold := range g.account.open {
				g.account.left -= hold.tokens // which come back now
			}
			return fine
		})
		done := object{"response": object{"usage": object{"input_tokens": 0, "output_tokens": 1}}}
		for isOpen := true; isOpen; { // the part may take a while to be passed on
			s.SendEvent("response.done", done)
			select {
			case <-c.ended:
				isOpen = false
			case <-time.After(time.Millisecond):
			}
		}
		if code, reason := c.end(t); code != websocket.ClosePolicy {
			t.Errorf("the client got %d %s", code, reason)
		}
	})
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websockettest"
)

// framesConfig returns the config of a tenant whose anonymous users get that many tokens, and whose sessions go to a
// server at address.
func framesConfig(tokens int64, address string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{"realtime":{"endpoints":{"openai":{`+
		`"url":"ws://%s%s","model":"gpt-realtime","api_key":"%s"}}}}}`, tokens, address, realtimePath, providertest.Key)
}

// realtimeTest is a tenant whose sessions go to a server that speaks raw frames, and a key of it.
type realtimeTest struct {
	*gatewayTest
	server *websockettest.Server
}

// realtimeTokens is what each key of a realtimeTest has: enough for many responses.
const realtimeTokens = 1_000_000

func (s *service) newRealtimeTest(t testing.TB, server *websockettest.Server) *realtimeTest {
	t.Helper()
	return &realtimeTest{s.gatewayTest(t, nil, framesConfig(realtimeTokens, server.Address)), server}
}

const (
	createdEvent = `{"type":"session.created","event_id":"event_1","session":{"type":"realtime","id":"sess_1",` +
		`"model":"gpt-realtime","max_output_tokens":"inf"}}`
	updateEvent = `{"type":"session.update",`
)

// open opens a session, with the credential in a header or in the subprotocol, and returns both of its ends once the
// client has the event with which the provider begins, and the provider the limit that tollgate sets.
func (g *realtimeTest) open(t testing.TB, inProtocol bool) (client, provider *websockettest.Peer) {
	t.Helper()
	credential := bearer(g.key)
	if inProtocol {
		credential = "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + g.key
	}
	// The place of an earlier session may still be taken.
	waittest.Eventually(t, 10*time.Second, func() error {
		response, peer := websockettest.Upgrade(t, g.dial(t), "/"+g.tenant+realtimePath, credential)
		if client = peer; client == nil {
			return fmt.Errorf("the handshake is %s", response.Status)
		}
		if got := response.Header.Get("Sec-WebSocket-Extensions"); got != "" {
			t.Errorf("the extension %s is agreed to", got)
		}
		if got := response.Header.Get("Sec-WebSocket-Protocol"); (got == "realtime") != inProtocol {
			t.Errorf("the subprotocol is %q", got)
		}
		return nil
	})
	<-g.server.Requests
	provider = <-g.server.Peers
	provider.Send(t, websockettest.Frame{First: 0x81, Payload: createdEvent})
	for peer, prefix := range map[*websockettest.Peer]string{client: createdEvent, provider: updateEvent} {
		waittest.Eventually(t, 10*time.Second, func() error {
			if got := peer.Got(); len(got) != 1 || !strings.HasPrefix(got[0].Payload, prefix) {
				return fmt.Errorf("got %s, want %s…", websockettest.Show(got), prefix)
			}
			return nil
		})
	}
	return client, provider
}

// A hostileCase is what a client or a provider sends that breaks RFC 6455, and the code of the close frame that it gets.
type hostileCase struct {
	name   string
	frames []websockettest.Frame
	code   int
	passed int // whole messages that the other side gets
}

// hostileCases returns what is sent by either side. Each event passes in both directions if its frames are valid.
func hostileCases() []hostileCase {
	const (
		event   = `{"type":"input_audio_buffer.append","audio":"AAAA"}`
		half    = `{"type":"input_audio_buffer.append","audio":"AA`
		badText = `{"type":"input_audio_buffer.append","event_id":"` + "\xff" + `","audio":"AAAA"}`
		cutText = `{"type":"input_audio_buffer.append","event_id":"` + "\xe2\x82"
		most    = 16 << 20
	)
	type frame = websockettest.Frame
	text := frame{First: 0x81, Payload: event}
	begin := frame{First: 0x01, Payload: half}
	more := frame{First: 0x00, Payload: "AA"}
	end := frame{First: 0x80, Payload: `AA"}`}
	long := strings.Repeat("*", 126)
	all := []hostileCase{
		{"a mask the wrong way round", []frame{text, {First: 0x81, Payload: event, Flip: true}}, 1002, 1},
		{"a mask the wrong way round on a ping", []frame{{First: 0x89, Flip: true}}, 1002, 0},
		{"a mask the wrong way round on a close", []frame{{First: 0x88, Flip: true}}, 1002, 0},
		{"a mask the wrong way round on a continuation", []frame{begin, {First: 0x80, Payload: `"}`, Flip: true}}, 1002, 0},

		{"RSV1, as of compression", []frame{text, {First: 0xc1, Payload: event}}, 1002, 1},
		{"RSV2", []frame{{First: 0xa1, Payload: event}}, 1002, 0},
		{"RSV3", []frame{{First: 0x91, Payload: event}}, 1002, 0},
		{"RSV1 on a continuation", []frame{begin, {First: 0xc0, Payload: `"}`}}, 1002, 0},
		{"all reserved bits on a ping", []frame{{First: 0xf9}}, 1002, 0},
		{"RSV1 on a close", []frame{{First: 0xc8}}, 1002, 0},

		{"a ping of 126 bytes", []frame{{First: 0x89, Payload: long}}, 1002, 0},
		{"a pong of 126 bytes", []frame{{First: 0x8a, Payload: long}}, 1002, 0},
		{"a close of 126 bytes", []frame{websockettest.Close(1000, long[2:])}, 1002, 0},
		{"a ping that claims 64 KiB", []frame{{First: 0x89, Claims: 1 << 16}}, 1002, 0},
		{"a ping in fragments", []frame{{First: 0x09, Payload: "a"}, {First: 0x80, Payload: "b"}}, 1002, 0},
		{"a pong in fragments within a message", []frame{begin, {First: 0x0a}}, 1002, 0},
		{"a close in fragments", []frame{{First: 0x08}}, 1002, 0},

		{"a continuation of nothing", []frame{end, text}, 1002, 0},
		{"a first continuation of nothing", []frame{more, text}, 1002, 0},
		{"a continuation after a message", []frame{text, end}, 1002, 1},
		{"a text within a text", []frame{begin, text}, 1002, 0},
		{"a text that begins within a text", []frame{begin, more, begin}, 1002, 0},
		{"a binary message within a text", []frame{begin, {First: 0x82, Payload: "b"}}, 1002, 0},

		{"bad UTF-8", []frame{text, {First: 0x81, Payload: badText}}, 1007, 1},
		{"bad UTF-8 in a second fragment", []frame{begin, {First: 0x80, Payload: "\xff\"}"}}, 1007, 0},
		{"a character that fragments break", []frame{{First: 0x01, Payload: cutText}, {First: 0x80, Payload: `","audio":""}`}}, 1007, 0},
		{"a text that ends within a character", []frame{{First: 0x01, Payload: cutText}, {First: 0x80}}, 1007, 0},
		{"an overlong character", []frame{{First: 0x81, Payload: "\xc0\xaf"}}, 1007, 0},
		{"a surrogate", []frame{{First: 0x81, Payload: "\xed\xa0\x80"}}, 1007, 0},
		{"bad UTF-8 in a reason", []frame{websockettest.Close(1000, "a\xff")}, 1007, 0},
		{"a reason that ends within a character", []frame{text, websockettest.Close(4001, "a\xe2\x82")}, 1007, 1},

		{"a close of one byte", []frame{{First: 0x88, Payload: "\x03"}}, 1002, 0},
		{"a length of 2^63", []frame{{First: 0x81, Claims: 1 << 63}}, 1009, 0},
		{"a length of 2^64-1", []frame{text, {First: 0x81, Claims: 1<<64 - 1}}, 1009, 1},
		{"a length of 2^64-1 of a continuation", []frame{begin, {First: 0x00, Claims: 1<<64 - 1}}, 1009, 0},
		{"a frame of 16 MiB and a byte", []frame{{First: 0x81, Payload: half, Claims: most + 1}}, 1009, 0},
		{"a message of 16 MiB and a byte", []frame{begin, {First: 0x00, Claims: most + 1 - uint64(len(half))}}, 1009, 0},
		{"7 bits of length in 16", []frame{{First: 0x81, Payload: event, Form: websockettest.Length16}}, 1002, 0},
		{"7 bits of length in 64", []frame{{First: 0x81, Payload: event, Form: websockettest.Length64}}, 1002, 0},
		{"16 bits of length in 64", []frame{{First: 0x81, Claims: 65535, Form: websockettest.Length64}}, 1002, 0},
	}
	for _, opcode := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		all = append(all, hostileCase{fmt.Sprint("opcode ", opcode), []frame{text, {First: 0x80 | opcode}}, 1002, 1},
			hostileCase{fmt.Sprintf("opcode %d within a message", opcode), []frame{begin, {First: 0x80 | opcode, Payload: "a"}}, 1002, 0})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535} {
		all = append(all, hostileCase{fmt.Sprint("the close code ", code), []frame{websockettest.Close(code, "a")}, 1002, 0})
	}
	return all
}

// closeCode matches a close frame, as Show writes it at the end of what a peer has got.
var closeCode = regexp.MustCompile(`(?:^| )X(\d+)"[^ ]*(?: [^ ]+)*"$`)

// sessionEnd returns how many whole messages with data are in frames, after the first frame, of them errors that tollgate
// itself sends, and the code of the close frame that ends them: 0 if they do not end with one.
func sessionEnd(frames []websockettest.Frame) (messages, told, code int) {
	for _, f := range frames[1:] {
		switch {
		case strings.HasPrefix(f.Payload, `{"type":"error",`):
			told++
		case f.First&0x80 != 0 && f.First&0x0f < 8:
			messages++
		}
	}
	if found := closeCode.FindStringSubmatch(frames[len(frames)-1].String()); found != nil {
		fmt.Sscan(found[1], &code)
	}
	return messages, told, code
}

// A side that breaks the protocol of a session gets the close code that RFC 6455 demands, the other side learns that it is
// gone, and nothing of it stays: no hold, no charge, no place and no connection.
func TestRealtimeHostileFrames(t *testing.T) {
	t.Parallel()
	s := newService(t, "MAX_CONNECTIONS=8", "ACCESS_LOG=true") // one place for sessions
	g := s.newRealtimeTest(t, websockettest.NewServer(t, nil))
	n := 0
	for _, test := range hostileCases() {
		for _, fromClient := range []bool{true, false} {
			n++
			client, provider := g.open(t, n%4 < 2)
			sender, other, told, otherCode := client, provider, 0, 1001
			if !fromClient {
				sender, other, told, otherCode = provider, client, 1, 1011
				if test.frames[0].First == 0x01 { // none can be sent within a message
					told = 0
				}
			}
			sender.Send(t, test.frames...)
			got, want := fmt.Sprint(sessionEnd(sender.Wait(t))), fmt.Sprint(0, 0, test.code)
			if got != want {
				t.Errorf("%s from the client (%t): the sender gets %s, want %s", test.name, fromClient, websockettest.Show(sender.Got()), want)
			}
			got, want = fmt.Sprint(sessionEnd(other.Wait(t))), fmt.Sprint(test.passed, told, otherCode)
			if got != want {
				t.Errorf("%s from the client (%t): the other side gets %s, want %s", test.name, fromClient,
					websockettest.Show(other.Got()), want)
			}
		}
	}
	g.wantUntouched(t, n)
}

// An earlyConn is a connection whose first write has more behind it.
type earlyConn struct {
	net.Conn
	more string
}

func (c *earlyConn) Write(p []byte) (int, error) {
	if c.more == "" {
		return c.Conn.Write(p)
	}
	_, err := io.WriteString(c.Conn, string(p)+c.more)
	c.more = ""
	return len(p), err
}

// What a client sends right behind its request, before the 101, is not lost.
func TestRealtimeEarlyFrames(t *testing.T) {
	t.Parallel()
	g := newService(t, "ACCESS_LOG=true").newRealtimeTest(t, websockettest.NewServer(t, nil))
	for _, size := range []int{4, 10_000} { // net/http reads 4 KiB at once
		event := `{"type":"input_audio_buffer.append","audio":"` + strings.Repeat("A", size) + `"}`
		early := &earlyConn{g.dial(t), string(websockettest.Frame{First: 0x81, Payload: event}.Encode(true))}
		response, client := websockettest.Upgrade(t, early, "/"+g.tenant+realtimePath, bearer(g.key))
		if client == nil {
			t.Fatalf("the handshake is %s", response.Status)
		}
		provider := <-g.server.Peers
		provider.Send(t, websockettest.Frame{First: 0x81, Payload: createdEvent})
		waittest.Eventually(t, 10*time.Second, func() error {
			if got := provider.Got(); len(got) != 2 || got[1].Payload != event {
				return fmt.Errorf("the provider got %s", websockettest.Show(got))
			}
			return nil
		})
		client.Send(t, websockettest.Close(1000, ""))
		client.Wait(t)
	}
	g.wantUntouched(t, 2)
}

// What comes behind a close frame is dropped. The other side gets the code and the reason.
func TestRealtimeBytesAfterClose(t *testing.T) {
	t.Parallel()
	g := newService(t, "ACCESS_LOG=true").newRealtimeTest(t, websockettest.NewServer(t, nil))
	text := websockettest.Frame{First: 0x81, Payload: `{"type":"input_audio_buffer.append","audio":"AAAA"}`}
	bye := websockettest.Close(4001, "bye")
	for _, behind := range [][]websockettest.Frame{
		{text}, {{First: 0x89, Payload: "a"}}, {bye}, {{First: 0xff, Payload: "garbage", Flip: true}},
	} {
		for _, fromClient := range []bool{true, false} {
			client, provider := g.open(t, false)
			sender, other := client, provider
			if !fromClient {
				sender, other = provider, client
			}
			sender.Send(t, append([]websockettest.Frame{bye}, behind...)...)
			if messages, _, code := sessionEnd(sender.Wait(t)); messages != 0 || code != 4001 {
				t.Errorf("%s from the client (%t): the sender gets %s", behind, fromClient, websockettest.Show(sender.Got()))
			}
			if got := other.Wait(t); len(got) != 2 || got[1].String() != `X4001"bye"` {
				t.Errorf("%s from the client (%t): the other side gets %s", behind, fromClient, websockettest.Show(got))
			}
		}
	}
	g.wantUntouched(t, 8)
}

// A provider whose handshake is wrong is one that fails: nothing is held for it.
func TestRealtimeHostileHandshakes(t *testing.T) {
	t.Parallel()
	s := newService(t, "ACCESS_LOG=true")
	accepted := func(more string) func(*http.Request) string {
		return func(r *http.Request) string { return websockettest.Accepted + websockettest.AcceptLine(r) + more }
	}
	for name, respond := range map[string]func(*http.Request) string{
		"another key":                func(*http.Request) string { return websockettest.Accepted + "Sec-WebSocket-Accept: AAAA\r\n" },
		"no key":                     func(*http.Request) string { return websockettest.Accepted },
		"compression":                accepted("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
		"a subprotocol":              accepted("Sec-WebSocket-Protocol: realtime\r\n"),
		"another protocol":           func(*http.Request) string { return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n" },
		"no WebSocket":               func(*http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" },
		"a redirect":                 func(*http.Request) string { return "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n" },
		"a response that is no HTTP": func(*http.Request) string { return "\x81\x05hello" },
		"a header that does not end": func(*http.Request) string { return websockettest.Accepted + strings.Repeat("X: y\r\n", 1<<20) },
		"nothing":                    func(*http.Request) string { return "" },
	} {
		g := s.newRealtimeTest(t, websockettest.NewServer(t, respond))
		response, client := websockettest.Upgrade(t, g.dial(t), "/"+g.tenant+realtimePath, bearer(g.key))
		if client != nil || response.StatusCode != 502 {
			t.Errorf("%s: got %s, want 502", name, response.Status)
		}
		g.wantUntouched(t, 1)
	}
}

// wantUntouched checks that n sessions have left nothing behind, cost nothing, and are in the log, which has no key.
func (g *realtimeTest) wantUntouched(t *testing.T, n int) {
	t.Helper()
	if charged := g.charged(t, realtimeTokens); charged != 0 {
		t.Errorf("the sessions have cost %d tokens", charged)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		for _, name := range []string{"gateway_realtime_sessions", "gateway_holds", "gateway_settlements_waiting"} {
			if got := g.sample(t, name); got != 0 {
				return fmt.Errorf("%s is %v", name, got)
			}
		}
		const line = "[INFO] GET /{tenantId}/v1/realtime "
		if got := g.log.Count(line); got < n {
			return fmt.Errorf("%d sessions of %d are in the log", got, n)
		}
		return nil
	})
	log := g.log.String()
	for _, secret := range []string{g.key, strings.TrimPrefix(g.key, anonymousKeyPrefix), providertest.Key, "openai-insecure"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %s", secret[:8])
		}
	}
	if strings.Contains(log, "[ERROR]") || strings.Contains(log, "panic") {
		t.Errorf("the log has an error:\n%s", log)
	}
}

// Messages of 16 MiB pass in both directions, and no more of them is held than a part.
func TestRealtimeLargeMessages(t *testing.T) {
	g := newService(t).newRealtimeTest(t, websockettest.NewServer(t, nil))
	const soundID = "resp_1"
	live := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	for _, test := range []struct {
		name, head, tail string
		fromClient       bool
	}{
		{"sound", `{"type":"input_audio_buffer.append","audio":"`, `"}`, true},
		{"an image", `{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_image",` +
			`"image_url":"data:image/png;base64,`, `"}]}}`, true},
		{"the provider's sound", `{"type":"response.output_audio.delta","response_id":"` + soundID + `","delta":"`, `"}`, false},
		{"an event that nobody knows", `{"type":"conversation.smelled","smell":"`, `"}`, false},
	} {
		client, provider := g.open(t, false)
		sender, other := client, provider
		if !test.fromClient {
			sender, other = provider, client
		}
		other.Count()
		const size = 16 << 20
		before, most := live(), int64(0)
		sender.SendLong(t, test.head, test.tail, size, func(sent int) {
			if sent%(4<<20) == 0 {
				most = max(most, live()-before)
			}
		})
		waittest.Eventually(t, 30*time.Second, func() error {
			if got := other.Counted(); got != size {
				return fmt.Errorf("%s: %d bytes have come, want %d", test.name, got, size)
			}
			return nil
		})
		if most > 2<<20 {
			t.Errorf("%s: %d bytes more are in use meanwhile", test.name, most)
		}
		if strings.Contains(test.head, soundID) { // without the usage, what was said would be estimated
			provider.Send(t, websockettest.Frame{First: 0x81, Payload: `{"type":"response.done","response":{"id":"` + soundID +
				`","status":"completed","usage":{"input_tokens":0,"output_tokens":0,"total_tokens":0}}}`})
			waittest.Eventually(t, 10*time.Second, func() error {
				if other.Counted() == size {
					return errors.New("response.done has not come")
				}
				return nil
			})
		}
		client.Send(t, websockettest.Close(1000, ""))
		client.Wait(t)
		provider.Wait(t)
	}
	g.wantUntouched(t, 0)
}

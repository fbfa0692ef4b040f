package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
	"tollgate/internal/websockettest"
)

const frameCreated = `{"type":"session.created","event_id":"event_1","session":{"type":"realtime","id":"sess_1","model":"m"}}`

// newFrameSession returns a testSession whose provider speaks raw frames.
func newFrameSession(t testing.TB) (*testSession, *websockettest.Server) {
	t.Helper()
	g, server := newTestSession(t, providertest.RealtimeConduct{}), websockettest.NewServer(t, nil)
	g.endpoint = testEndpoint(t, "ws://"+server.Address+"/v1/realtime", "")
	return g, server
}

// dialRaw opens a connection to the gateway.
func (g *testSession) dialRaw(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A side that is silent, or says half of a frame or of a message and no more, is dropped after a time.
func TestSessionSilence(t *testing.T) {
	t.Parallel()
	type frame = websockettest.Frame
	const half = `{"type":"input_audio_buffer.append","audio":"AA`
	for name, frames := range map[string][]frame{
		"silence":           nil,
		"half a header":     {{First: 0x81, Claims: 300}},
		"half a payload":    {{First: 0x81, Payload: half, Claims: 100}},
		"half a long frame": {{First: 0x81, Payload: half + strings.Repeat("A", 20_000), Claims: 16 << 20}},
		"half a ping":       {{First: 0x01, Payload: half}, {First: 0x89, Payload: "abc", Claims: 4}},
		"half a message":    {{First: 0x01, Payload: half}},
	} {
		for _, fromClient := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s from the client %t", name, fromClient), func(t *testing.T) {
				t.Parallel()
				g, server := newFrameSession(t)
				side := &g.sessions.clients
				if !fromClient {
					side = &g.sessions.servers
				}
				side.IdleTimeout = 300 * time.Millisecond
				_, client := websockettest.Upgrade(t, g.dialRaw(t), "/?model=m")
				provider := <-server.Peers
				provider.Send(t, frame{First: 0x81, Payload: frameCreated})
				waittest.Eventually(t, 10*time.Second, func() error {
					if len(client.Got()) == 0 || len(provider.Got()) == 0 {
						return fmt.Errorf("the client got %s, the provider %s", client.Got(), provider.Got())
					}
					return nil
				})
				sender, other, otherCode := client, provider, "X1001"
				if !fromClient {
					sender, other, otherCode = provider, client, "X1011"
				}
				began := time.Now()
				sender.Send(t, frames...)
				for peer, code := range map[*websockettest.Peer]string{sender: "X1001", other: otherCode} {
					if got := peer.Wait(t); !strings.HasPrefix(got[len(got)-1].String(), code) {
						t.Errorf("got %s, want %s in the end", websockettest.Show(got), code)
					}
				}
				if took := time.Since(began); took < side.IdleTimeout/2 {
					t.Errorf("it took %s", took)
				}
				g.wantCharged(t, 0)
			})
		}
	}
}

// Both sides are pinged every 25 s, gone after 60 s without a frame, and after 30 s in which they take none.
func TestSessionTimeouts(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	for _, side := range []*websocket.Side{&g.sessions.clients, &g.sessions.servers} {
		got := [...]time.Duration{side.PingInterval, side.IdleTimeout, side.WriteTimeout}
		if want := [...]time.Duration{25 * time.Second, time.Minute, 30 * time.Second}; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// A rawSession is an open session of a testSession, with both ends bare connections.
type rawSession struct {
	client, provider net.Conn
	up, down         []byte // frames as they are sent, with an event each
	got              []byte
}

func newRawSession(t testing.TB, size int) *rawSession {
	t.Helper()
	g := newTestSession(t, providertest.RealtimeConduct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g.endpoint = testEndpoint(t, "ws://"+l.Addr().String()+"/v1/realtime", "")
	sound := strings.Repeat("A", size)
	s := &rawSession{client: g.dialRaw(t), got: make([]byte, size+1000)}
	accepted := make(chan error, 1)
	go func() {
		var r *http.Request
		if s.provider, err = l.Accept(); err == nil {
			if r, err = http.ReadRequest(bufio.NewReader(s.provider)); err == nil {
				_, err = io.WriteString(s.provider, websockettest.Accepted+websockettest.AcceptLine(r)+"\r\n")
			}
		}
		accepted <- err
	}()
	websockettest.Shake(t, s.client, "/?model=m")
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.provider.Close() })
	say := func(event string, masked bool) []byte {
		return websockettest.Frame{First: 0x81, Payload: event}.Encode(masked)
	}
	if _, err := s.provider.Write(say(frameCreated, false)); err != nil {
		t.Fatal(err)
	}
	for conn, masked := range map[net.Conn]bool{s.client: false, s.provider: true} { // session.created and our session.update
		if w, err := websockettest.Read(conn, masked); err != nil {
			t.Fatal(w, err)
		}
	}
	s.up = say(`{"type":"input_audio_buffer.append","audio":"`+sound+`"}`, true)
	s.down = say(`{"type":"response.output_audio.delta","event_id":"event_42","response_id":"resp_1","item_id":"item_1",`+
		`"output_index":0,"content_index":0,"delta":"`+sound+`"}`, false)
	return s
}

// pass sends a frame in a direction and receives it.
func (s *rawSession) pass(t testing.TB, up bool) {
	from, to, frame := s.provider, s.client, s.down
	if up {
		from, to, frame = s.client, s.provider, s.up
	}
	if _, err := from.Write(frame); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, s.got[:len(frame)]); err != nil {
		t.Fatal(err)
	}
}

// A frame with sound is relayed, scanned and counted without an allocation.
func TestSessionFramesAllocateNothing(t *testing.T) {
	most := 0.0
	info, _ := debug.ReadBuildInfo()
	if slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		most = 1 // the race detector makes a sync.Pool forget a quarter of what it has, and a frame uses up to four
	}
	for _, size := range []int{400, 4096, 16_000} {
		s := newRawSession(t, size)
		for _, up := range []bool{true, false} {
			if n := testing.AllocsPerRun(1000, func() { s.pass(t, up) }); n > most {
				t.Errorf("%d bytes, from the client %t: %v allocations", size, up, n)
			}
		}
	}
}

func BenchmarkSessionFrame(b *testing.B) {
	for _, size := range []int{400, 4096, 16_000} {
		for _, from := range []string{"client", "provider"} {
			b.Run(fmt.Sprintf("from=%s/bytes=%d", from, size), func(b *testing.B) {
				s := newRawSession(b, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					s.pass(b, from == "client")
				}
			})
		}
	}
}

package websocket

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/websockettest"
)

// An endless connection says the same frame again and again, and takes what is written.
type endless struct {
	script
	frame []byte
	at    int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], e.frame[e.at:])
		n += m
		e.at = (e.at + m) % len(e.frame)
	}
	return n, nil
}

func (e *endless) Write(p []byte) (int, error) { return len(p), nil }

// newEndless returns a function that relays a frame from a client to a server, or the other way round, without a
// network: it is read, unmasked, checked, masked anew and written.
func newEndless(tb testing.TB, w wire, fromClient bool) (relayOne func()) {
	side := &Side{PingInterval: time.Minute, IdleTimeout: time.Minute}
	from := side.newConn(&endless{frame: w.Encode(fromClient)}, fromClient, "")
	to := side.newConn(&endless{}, !fromClient, "")
	return func() {
		part, err := from.Next()
		if err == nil {
			err = to.WritePart(part)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// A frame is relayed without an allocation.
func TestRelayAllocatesNothing(t *testing.T) {
	info, _ := debug.ReadBuildInfo()
	if slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector makes a sync.Pool forget some of what it has")
	}
	for _, fromClient := range []bool{true, false} {
		for _, w := range []wire{text(long), text(strings.Repeat("é", 2000)), bin(string(make([]byte, MaxPart)))} {
			if n := testing.AllocsPerRun(1000, newEndless(t, w, fromClient)); n > 0 {
				t.Errorf("%s, from the client: %t: %v allocations", w, fromClient, n)
			}
		}
	}
}

func BenchmarkRelayedFrame(b *testing.B) {
	for _, from := range []string{"client", "server"} {
		for _, size := range []int{100, 4000, MaxPart} {
			for _, w := range []wire{text(strings.Repeat("a", size)), bin(strings.Repeat("a", size))} {
				b.Run(fmt.Sprintf("from=%s/kind=%d/bytes=%d", from, w.First&opcodeBits, size), func(b *testing.B) {
					relayOne := newEndless(b, w, from == "client")
					b.SetBytes(int64(size))
					b.ReportAllocs()
					for b.Loop() {
						relayOne()
					}
				})
			}
		}
	}
}

// BenchmarkRoundTrip sends a message over TCP to a server that sends it back, straight and through a relay.
func BenchmarkRoundTrip(b *testing.B) {
	for _, through := range []string{"nothing", "relay"} {
		for _, size := range []int{100, 4000, 100_000} {
			b.Run(fmt.Sprintf("through=%s/bytes=%d", through, size), func(b *testing.B) {
				side := &Side{PingInterval: time.Minute, IdleTimeout: time.Minute}
				here, there := newConns(b)
				client, server := side.newConn(here, false, ""), side.newConn(there, true, "")
				if through == "relay" {
					here, there = newConns(b)
					r := &Relay{Client: server, Server: side.newConn(here, false, "")}
					server = side.newConn(there, true, "")
					go r.Run()
				}
				go func() {
					for part, err := server.Next(); err == nil; part, err = server.Next() {
						_ = server.WritePart(part)
					}
				}()
				data := []byte(strings.Repeat("a", size))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := client.Send(Text, data); err != nil {
						b.Fatal(err)
					}
					for part := (Part{}); !part.Last; {
						var err error
						if part, err = client.Next(); err != nil {
							b.Fatal(err)
						}
					}
				}
				client.Abort()
			})
		}
	}
}

// BenchmarkIdleSession measures what a relay takes that carries nothing, with both connections and its goroutines. The
// peers are bare connections in the same process. A handler that waits for the relay keeps what net/http has for it.
func BenchmarkIdleSession(b *testing.B) {
	for _, handlerWaits := range []bool{false, true} {
		b.Run(fmt.Sprint("handlerWaits=", handlerWaits), func(b *testing.B) {
			start := newIdleSessions(b, handlerWaits)
			start() // what is there once
			for b.Loop() {
				const sessions = 500
				inUse, resident := memory(b)
				relays := make([]*Relay, sessions)
				for i := range relays {
					relays[i] = start()
				}
				inUseAfter, residentAfter := memory(b)
				b.ReportMetric(float64(inUseAfter-inUse)/sessions/1000, "kB-in-use/session")
				b.ReportMetric(float64(residentAfter-resident)/sessions/1000, "kB-resident/session")
				for _, relay := range relays {
					relay.Client.Abort()
				}
			}
		})
	}
}

// newIdleSessions returns a function that starts a relay through which one message passes, after which its buffers are
// to be free again.
func newIdleSessions(b *testing.B, handlerWaits bool) (start func() *Relay) {
	clients, servers := &Side{PingInterval: 25 * time.Second, IdleTimeout: time.Minute}, &Side{}
	transport, started, passed := newTransport(b), make(chan *Relay, 1), make(chan error, 1)
	server := rawServer(b, func(r *http.Request) string {
		return websockettest.Accepted + websockettest.AcceptLine(r) + "\r\n"
	})
	address := serve(b, func(w http.ResponseWriter, r *http.Request) {
		relay := &Relay{}
		var err error
		if relay.Server, _, err = servers.Dial(r.Context(), transport, "ws://"+server, nil); err != nil {
			b.Error(err)
			return
		}
		if relay.Client, err = clients.Accept(w, r, "", nil); err != nil {
			b.Error(err)
			return
		}
		relay.FromClient = func(p Part) error {
			err := relay.Server.WritePart(p)
			if p.Last {
				passed <- err
			}
			return err
		}
		started <- relay
		if handlerWaits {
			_, _ = relay.Run()
		} else {
			go relay.Run()
		}
	})
	message := text(strings.Repeat("*", 10_000)).Encode(true)
	return func() *Relay {
		c, _, _ := exchange(b, address, handshakeOf("GET / HTTP/1.1"))
		relay := waitFor(b, started)
		if _, err := c.Write(message); err != nil {
			b.Fatal(err)
		}
		if err := waitFor(b, passed); err != nil {
			b.Fatal(err)
		}
		return relay
	}
}

// memory returns how many bytes of heap and stacks are in use, and how many the process has resident.
func memory(b *testing.B) (inUse, resident int64) {
	b.Helper()
	for range 3 { // a sync.Pool forgets in two steps
		debug.FreeOSMemory()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	statm, err := os.ReadFile("/proc/self/statm")
	var total, pages int64
	if _, scanErr := fmt.Sscan(string(statm), &total, &pages); err != nil || scanErr != nil {
		b.Skip("no /proc: ", err)
	}
	return int64(stats.HeapAlloc + stats.StackInuse), pages * int64(os.Getpagesize())
}

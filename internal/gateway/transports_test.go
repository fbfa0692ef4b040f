package gateway

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// rawServer is a model server that decides for each request what becomes of its connection.
type rawServer struct {
	url   string
	dials atomic.Int64 // connections so far
	got   atomic.Int64 // requests so far

	listener net.Listener
}

// newRawServer starts a server that calls serve for each request on each connection: both are counted from 1. It is
// called when the first byte of the request has come, and reports whether the connection stays open.
func newRawServer(t testing.TB, serve func(s *rawServer, c *rawConn, dial, request int64) bool) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &rawServer{url: "http://" + l.Addr().String() + "/v1/chat/completions", listener: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			dial := s.dials.Add(1)
			c := &rawConn{TCPConn: conn.(*net.TCPConn), in: bufio.NewReader(conn)}
			go func() {
				defer c.Close()
				for request := int64(1); ; request++ {
					if _, err := c.in.Peek(1); err != nil {
						return
					}
					s.got.Add(1)
					if !serve(s, c, dial, request) {
						return
					}
				}
			}()
		}
	}()
	return s
}

// rawConn is a connection of a rawServer.
type rawConn struct {
	*net.TCPConn
	in *bufio.Reader
}

// read reads a request.
func (c *rawConn) read() bool {
	r, err := http.ReadRequest(c.in)
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	return err == nil
}

// respond reads a request and responds to it.
func (c *rawConn) respond() bool {
	if !c.read() {
		return false
	}
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		len(completion), completion)
	return err == nil
}

// What becomes of a request whose connection breaks before there is a response depends on whether the connection was
// kept from an earlier request.
func TestStaleConnections(t *testing.T) {
	never := func(*rawConn) bool { return false }
	for _, test := range []struct {
		name   string
		fresh  func(c *rawConn) bool // serves the first request of each connection but the first
		again  func(c *rawConn) bool // serves the second
		status int
		retry  string // X-Should-Retry
		dials  int64
		got    int64
	}{
		{"closed unread", (*rawConn).respond, never, 200, "", 2, 3},
		{"reset", (*rawConn).respond, func(c *rawConn) bool { return c.SetLinger(0) != nil }, 200, "", 2, 3},
		{"closed after it was read", (*rawConn).respond, func(c *rawConn) bool { return c.read() && false }, 200, "", 2, 3},
		{"a fresh one closed too", never, never, 502, "false", 2, 3},
		{"after a byte", (*rawConn).respond, func(c *rawConn) bool {
			c.read()
			_, _ = io.WriteString(c, "H")
			return false
		}, 502, "false", 1, 2},
		{"silent", (*rawConn).respond, func(c *rawConn) bool {
			c.read()
			_, _ = c.in.ReadByte() // until the gateway closes it
			return false
		}, 504, "false", 1, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newRawServer(t, func(_ *rawServer, c *rawConn, dial, request int64) bool {
				switch {
				case request > 1:
					return test.again(c)
				case dial > 1:
					return test.fresh(c)
				}
				return c.respond()
			})
			g := newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"`, s.url)))
			g.transports = newTransports(Options{HeaderTimeout: 300 * time.Millisecond, KeepAlive: time.Minute, MaxIdle: 100})
			if response, body, err := g.post(t, whole); err != nil || response.StatusCode != 200 {
				t.Fatalf("got %v %s, %v", response, body, err)
			}
			response, body, err := g.post(t, whole)
			if err != nil || response.StatusCode != test.status || response.Header.Get("X-Should-Retry") != test.retry {
				t.Errorf("got %v %s, %v; want %d, X-Should-Retry %q", response, body, err, test.status, test.retry)
			}
			if dials, got := s.dials.Load(), s.got.Load(); dials != test.dials || got != test.got {
				t.Errorf("%d requests on %d connections, want %d on %d", got, dials, test.got, test.dials)
			}
			g.wantNothingHeld(t)
		})
	}
}

// A server that closes a connection as its second request arrives fails no request, and one that closes each
// connection before it responds gets each request once.
func TestConnectionsOfOneRequest(t *testing.T) {
	s := newRawServer(t, func(_ *rawServer, c *rawConn, _, request int64) bool { return request == 1 && c.respond() })
	g := newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"`, s.url)))
	for i := range 20 {
		if response, body, err := g.post(t, whole); err != nil || response.StatusCode != 200 {
			t.Fatalf("%d: got %v %s, %v", i, response, body, err)
		}
	}
	s = newRawServer(t, func(*rawServer, *rawConn, int64, int64) bool { return false })
	g = newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"`, s.url)))
	for i := range int64(3) {
		response, body, err := g.post(t, whole)
		if err != nil || response.StatusCode != 502 || response.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("got %v %s, %v", response, body, err)
		}
		if n := s.got.Load(); n != i+1 {
			t.Errorf("%d requests arrived, want %d", n, i+1)
		}
	}
}

// If the server of a stale connection cannot be dialled again, the next endpoint is tried. Without another one, the
// client may try again.
func TestStaleConnectionOfADeadServer(t *testing.T) {
	for _, others := range []int{0, 1} {
		s := newRawServer(t, func(s *rawServer, c *rawConn, _, request int64) bool {
			if request > 1 {
				s.listener.Close()
				return false
			}
			return c.respond()
		})
		endpoints := Endpoints{newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"`, s.url))}
		for range others {
			endpoints = append(endpoints, newEndpoint(t, "f",
				fmt.Sprintf(`"url":%q,"default_model":"m"`, newServer(t, jsonBody(completion)))))
		}
		g := newTestGateway(t, endpoints...)
		for i, status := range []int{200, 502 - 302*others} {
			response, body, err := g.post(t, whole)
			if err != nil || response.StatusCode != status || response.Header.Get("X-Should-Retry") != "" {
				t.Errorf("%d others, request %d: got %v %s, %v; want %d", others, i, response, body, err, status)
			}
		}
	}
}

func TestFoundStale(t *testing.T) {
	closed := errors.New("http: server closed idle connection")
	now := time.Now()
	for _, test := range []struct {
		name   string
		a      *attempt
		err    error
		reused bool
	}{
		{"", &attempt{at: now, reused: true}, closed, true},
		{"reset", &attempt{at: now, reused: true}, syscall.ECONNRESET, true},
		{"fresh", &attempt{at: now}, closed, false},
		{"no error", &attempt{at: now, reused: true}, nil, false},
		{"timeout", &attempt{at: now, reused: true}, context.DeadlineExceeded, false},
		{"timeout of TCP", &attempt{at: now, reused: true}, syscall.ETIMEDOUT, false},
		{"late", &attempt{at: now.Add(-staleWithin), reused: true}, closed, false},
	} {
		if got := test.a.foundStale(test.err); got != test.reused {
			t.Errorf("%s: got %v, want %v", test.name, got, test.reused)
		}
	}
}

// TestHTTP2IsNotRepeated has a provider reset the stream of a request that it works on, on a connection that was idle. It
// does not get the request twice.
func TestHTTP2IsNotRepeated(t *testing.T) {
	var got atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		jsonBody(completion).ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	g := newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":"%s/v1/chat/completions","default_model":"m"`, server.URL)))
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	g.transports.secure.TLSClientConfig.RootCAs = roots
	g.transports.fresh.TLSClientConfig.RootCAs = roots
	for _, want := range []string{"200 ", "502 false", "200 "} {
		response, body, err := g.post(t, whole)
		if err != nil {
			t.Fatal(err)
		}
		if status := fmt.Sprint(response.StatusCode, " ", response.Header.Get("X-Should-Retry")); status != want {
			t.Errorf("got %s %s, want %s", status, body, want)
		}
	}
	if n := got.Load(); n != 3 {
		t.Errorf("the provider has got %d requests, want 3", n)
	}
}

// Idle connections to a server without TLS are closed soon, and all are when the gateway stops.
func TestKeepAlive(t *testing.T) {
	for name, test := range map[string]struct {
		keepAlive time.Duration
		stop      bool
	}{"soon": {50 * time.Millisecond, false}, "stop": {time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			var open atomic.Int64
			server := httptest.NewUnstartedServer(jsonBody(completion))
			server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				switch state {
				case http.StateNew:
					open.Add(1)
				case http.StateClosed:
					open.Add(-1)
				}
			}
			server.Start()
			t.Cleanup(server.Close)
			g := newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":"%s/v1/chat/completions","default_model":"m"`, server.URL)))
			g.transports = newTransports(Options{HeaderTimeout: time.Minute, KeepAlive: test.keepAlive, MaxIdle: 100})
			if response, body, err := g.post(t, whole); err != nil || response.StatusCode != 200 {
				t.Fatalf("got %v %s, %v", response, body, err)
			}
			if test.stop {
				if n := open.Load(); n != 1 {
					t.Errorf("%d connections are open", n)
				}
				g.Stop()
			}
			eventually(t, "closed", func() bool { return open.Load() == 0 })
			if d := g.transports.secure.IdleConnTimeout; d != 90*time.Second {
				t.Errorf("connections of TLS are kept for %s", d)
			}
		})
	}
}

// The two ways to http:// servers keep half of the idle connections each that are allowed to https:// servers.
func TestIdleBounds(t *testing.T) {
	for most, half := range map[int64]int{100: 50, 1: 1} {
		c := newTransports(Options{MaxIdle: most})
		if c.plain.MaxIdleConns != half || c.small.Base != c.plain || c.secure.MaxIdleConns != int(most) {
			t.Errorf("%d: got %d and %d", most, c.plain.MaxIdleConns, c.secure.MaxIdleConns)
		}
	}
}

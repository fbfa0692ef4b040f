package plainhttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A rawServer lets a function serve each of its connections, which it closes afterwards.
type rawServer struct {
	net.Listener
	url    string
	dials  atomic.Int64
	closed atomic.Int64 // connections that the client has closed, or their function
}

func newServer(t testing.TB, serve func(c *serverConn)) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &rawServer{Listener: l, url: fmt.Sprintf("http://%s/v1", l.Addr())}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.dials.Add(1)
			go func() {
				defer s.closed.Add(1)
				defer c.Close()
				serve(&serverConn{c.(*net.TCPConn), bufio.NewReader(c)})
			}()
		}
	}()
	return s
}

// A serverConn is the server's end of a connection.
type serverConn struct {
	*net.TCPConn
	in *bufio.Reader
}

// request reads a request and returns its body; false if the client has closed the connection.
func (c *serverConn) request() (body string, ok bool) {
	r, err := http.ReadRequest(c.in)
	if err != nil {
		return "", false
	}
	all, err := io.ReadAll(r.Body)
	return string(all), err == nil
}

// respond reads a request and sends a response.
func (c *serverConn) respond(response string) bool {
	if _, ok := c.request(); !ok {
		return false
	}
	_, err := io.WriteString(c, response)
	return err == nil
}

// newTransport returns a Transport as the gateway makes it.
func newTransport(t testing.TB) *Transport {
	direct := &Transport{Base: newBase()}
	t.Cleanup(direct.CloseIdleConnections)
	return direct
}

func newRequest(ctx context.Context, url, body string) *http.Request {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	return r
}

// post sends a request and returns the status and the body of the response.
func post(t testing.TB, by http.RoundTripper, url, body string) (status int, got string, err error) {
	t.Helper()
	response, err := by.RoundTrip(newRequest(t.Context(), url, body))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	return response.StatusCode, string(all), err
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 500 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not %s", what)
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

var long = strings.Repeat("x", 70<<10)

// What a server may respond, and whether another request may follow on the connection.
var responses = []struct {
	name, response string
	status         int
	body           string // "error" if it breaks off
	isKept         bool
}{
	{"length", ok, 200, "ok", true},
	{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, "ok", true},
	{"trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", 200, "ok", true},
	{"no body", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true},
	{"204", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", true},
	{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, "", true},
	{"error", "HTTP/1.1 500 x\r\nContent-Length: 2\r\n\r\nno", 500, "no", true},
	{"1xx", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok, 200, "ok", true},
	{"long body", "HTTP/1.1 200 OK\r\nContent-Length: 71680\r\n\r\n" + long, 200, long, true},
	{"HTTP/1.0, kept", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true},

	{"close", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
	{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
	{"until EOF", "HTTP/1.1 200 OK\r\n\r\nok", 200, "ok", false},
	{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok", true},
	{"101", "HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, "", false},
	{"two responses", ok + ok, 200, "ok", false},
	{"bytes after it", "HTTP/1.1 204 No Content\r\n\r\nx", 204, "", false},

	{"nothing", "", 0, "", false},
	{"no HTTP", "SSH-2.0-OpenSSH_9.6\r\n", 0, "", false},
	{"half a header", "HTTP/1.1 200 OK\r\nContent-Le", 0, "", false},
	{"only 1xx", "HTTP/1.1 100 Continue\r\n\r\n", 0, "", false},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\nok", 0, "", false},
	{"wrong length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", 0, "", false},
	{"unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", 0, "", false},
	{"long header", "HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n", 0, "", false},
	{"1xx for ever", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 3000) + ok, 0, "", false},
	{"a part of it", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", 200, "error", false},
	{"a part of a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", 200, "error", false},
	{"no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", 200, "error", false},
	{"no chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nok", 200, "error", false},
}

func TestResponses(t *testing.T) {
	for _, test := range responses {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, func(c *serverConn) {
				endsByEOF := test.status == 0 || test.body == "error" || test.name == "until EOF"
				if c.respond(test.response) && !endsByEOF {
					c.respond(ok)
				}
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c) // else what the client still writes could reset the connection
			})
			transport := newTransport(t)
			for _, by := range []http.RoundTripper{transport, transport.Base} {
				status, body, err := post(t, by, s.url, "{}")
				if isBroken := err != nil && status > 0; isBroken {
					body, err = "error", nil
				}
				if status != test.status || body != test.body && err == nil || (err != nil) != (test.status == 0) {
					t.Errorf("%T: got %d %.20q, %v; want %d %.20q", by, status, body, err, test.status, test.body)
				}
			}
			dials := s.dials.Load()
			if _, _, err := post(t, transport, s.url, "{}"); test.isKept && (err != nil || s.dials.Load() != dials) {
				t.Errorf("the connection is not used again: %v", err)
			}
			if !test.isKept && s.dials.Load() == dials {
				t.Error("the connection is used again")
			}
		})
	}
}

// An idle connection is not used again if something has come on it, or if it was closed.
func TestIdleConnections(t *testing.T) {
	for name, spoil := range map[string]func(c *serverConn){
		"closed":      func(*serverConn) {},
		"reset":       func(c *serverConn) { _ = c.SetLinger(0) },
		"unsolicited": func(c *serverConn) { _, _ = io.WriteString(c, ok); time.Sleep(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			spoilt, now := make(chan bool), make(chan bool)
			s := newServer(t, func(c *serverConn) {
				c.respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
				if <-now {
					time.AfterFunc(100*time.Millisecond, func() { spoilt <- true })
					spoil(c)
				}
			})
			transport := newTransport(t)
			if _, body, err := post(t, transport, s.url, "{}"); body != "first" || err != nil {
				t.Fatalf("got %q, %v", body, err)
			}
			now <- true
			<-spoilt
			go func() { now <- false }()
			if _, body, err := post(t, transport, s.url, "{}"); body != "first" || err != nil || s.dials.Load() != 2 {
				t.Errorf("got %q on connection %d, %v", body, s.dials.Load(), err)
			}
		})
	}
}

// A trace learns what it needs to tell a stale connection.
func TestTrace(t *testing.T) {
	s := newServer(t, func(c *serverConn) {
		c.respond(ok)
		c.request() // is read, and not responded to
	})
	transport := newTransport(t)
	for i, want := range []string{"get got false byte ", "get got true "} {
		var seen strings.Builder
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GetConn:              func(string) { seen.WriteString("get ") },
			GotConn:              func(c httptrace.GotConnInfo) { fmt.Fprintf(&seen, "got %v ", c.Reused) },
			GotFirstResponseByte: func() { seen.WriteString("byte ") },
		})
		response, err := transport.RoundTrip(newRequest(ctx, s.url, "{}"))
		if err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
		}
		if seen.String() != want || (err == io.EOF) != (i == 1) {
			t.Errorf("%d: got %q, %v, want %q", i, seen.String(), err, want)
		}
	}
}

func TestHeaderTimeout(t *testing.T) {
	for _, sent := range []string{"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"} {
		s := newServer(t, func(c *serverConn) {
			c.respond(sent)
			c.request()
		})
		transport := newTransport(t)
		transport.Base.ResponseHeaderTimeout = 300 * time.Millisecond
		_, _, err := post(t, transport, s.url, "{}")
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			t.Errorf("%q: got %v", sent, err)
		}
		eventually(t, "closed", func() bool { return s.closed.Load() == 1 })
	}
	s := newServer(t, func(c *serverConn) { // the body may take longer
		c.respond("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
		time.Sleep(1500 * time.Millisecond)
		_, _ = io.WriteString(c, "k")
	})
	transport := newTransport(t)
	transport.Base.ResponseHeaderTimeout = time.Second
	if _, body, err := post(t, transport, s.url, "{}"); body != "ok" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
}

// A request ends when its context is done, wherever it waits, with the context's cause.
func TestCancel(t *testing.T) {
	why := errors.New("cancelled")
	for name, sent := range map[string]string{
		"header": "", "length": ok[:len(ok)-1], "EOF": "HTTP/1.1 200 OK\r\n\r\no",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(c *serverConn) {
				c.respond(sent)
				c.request()
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			soon := func() { time.AfterFunc(100*time.Millisecond, func() { cancel(why) }) }
			if sent == "" {
				soon()
			}
			response, err := newTransport(t).RoundTrip(newRequest(ctx, s.url, "{}"))
			if (err == nil) != (sent != "") {
				t.Fatal(err)
			}
			if err == nil {
				soon()
				_, err = io.Copy(io.Discard, response.Body)
			}
			if err != why {
				t.Errorf("got %v", err)
			}
			eventually(t, "closed", func() bool { return s.closed.Load() == 1 })
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	dials := 0
	transport := newTransport(t)
	transport.Base.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials++
		cancel(why)
		return nil, ctx.Err()
	}
	for range 2 { // the second time it is done before
		if _, err := transport.RoundTrip(newRequest(ctx, "http://127.0.0.1", "{}")); err != why || dials != 1 {
			t.Errorf("got %v after dialling %d times", err, dials)
		}
	}
}

// A connection is not kept if its request is cancelled while the end of the response is read: it is about to be closed.
func TestCancelAtTheEnd(t *testing.T) {
	s := newServer(t, func(c *serverConn) {
		c.respond(ok)
		c.request()
	})
	ctx, cancel := context.WithCancel(t.Context())
	transport := newTransport(t)
	response, err := transport.RoundTrip(newRequest(ctx, s.url, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(response.Body); err == nil && transport.idle.Len() > 0 {
		t.Error("the connection is kept")
	}
	eventually(t, "closed", func() bool { return s.closed.Load() == 1 })
}

// A body that is closed ends its request, also while it is read. It never seems to have ended.
func TestClose(t *testing.T) {
	for _, isReading := range []bool{false, true} {
		s := newServer(t, func(c *serverConn) {
			c.respond("HTTP/1.1 200 OK\r\n\r\no")
			c.request()
		})
		response, err := newTransport(t).RoundTrip(newRequest(t.Context(), s.url, "{}"))
		if err != nil {
			t.Fatal(err)
		}
		if isReading {
			time.AfterFunc(100*time.Millisecond, func() { response.Body.Close() })
		} else {
			response.Body.Close()
		}
		for range 2 {
			if _, err := io.Copy(io.Discard, response.Body); err == nil {
				t.Error("the body seems to have ended")
			}
		}
		eventually(t, "closed", func() bool { return s.closed.Load() == 1 })
	}
}

// A stuckConn writes long requests only when it is closed.
type stuckConn struct {
	net.Conn
	closed <-chan struct{}
	close  func()
}

func (c *stuckConn) Write(p []byte) (int, error) {
	if len(p) > maxWrite {
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *stuckConn) Close() error {
	c.close()
	return c.Conn.Close()
}

// A response counts that comes before the request was read, or instead of that.
func TestEarlyResponse(t *testing.T) {
	for name, end := range map[string]func(c *serverConn){
		"open":   func(c *serverConn) { _, _ = c.in.WriteTo(io.Discard) },
		"closed": func(c *serverConn) { _ = c.CloseWrite() },
		"reset":  func(c *serverConn) { time.Sleep(100 * time.Millisecond) },
	} {
		for _, size := range []int{10, maxBody} {
			for _, isStuck := range []bool{false, true} {
				s := newServer(t, func(c *serverConn) {
					if !isStuck {
						_, _ = c.in.Peek(1)
					}
					_, _ = io.WriteString(c, "HTTP/1.1 413 x\r\nContent-Length: 2\r\n\r\nno")
					end(c)
				})
				transport := newTransport(t)
				transport.Base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := net.Dial(network, address)
					if err == nil && isStuck {
						ctx, cancel := context.WithCancel(context.Background())
						c = &stuckConn{c, ctx.Done(), cancel}
					}
					return c, err
				}
				status, body, err := post(t, transport, s.url, strings.Repeat("x", size))
				if status != 413 || body != "no" || err != nil {
					t.Errorf("%s, %d bytes: got %d %q, %v", name, size, status, body, err)
				}
				if n := transport.idle.Len(); size == maxBody && isStuck && n > 0 {
					t.Errorf("%s: a connection is kept on which the request was not written", name)
				}
			}
		}
	}
}

// Idle connections are bounded in number, for each host and in all, and in time.
func TestBounds(t *testing.T) {
	var release sync.WaitGroup
	serve := func(c *serverConn) {
		for {
			if _, ok := c.request(); !ok {
				return
			}
			release.Wait()
			if _, err := io.WriteString(c, ok); err != nil {
				return
			}
		}
	}
	a, b := newServer(t, serve), newServer(t, serve)
	transport := newTransport(t)
	transport.Base.MaxIdleConns, transport.Base.MaxIdleConnsPerHost = 5, 3
	use := func(s *rawServer, n int) {
		var all sync.WaitGroup
		release.Add(1)
		began := s.dials.Load()
		for range n {
			all.Go(func() {
				if _, body, err := post(t, transport, s.url, "{}"); body != "ok" || err != nil {
					t.Errorf("got %q, %v", body, err)
				}
			})
		}
		eventually(t, "dialled", func() bool { return s.dials.Load() == began+int64(n) })
		release.Done()
		all.Wait()
	}
	open := func(s *rawServer) int64 { return s.dials.Load() - s.closed.Load() }
	use(a, 4)
	eventually(t, "closed beyond the host's bound", func() bool { return open(a) == 3 })
	use(b, 3)
	eventually(t, "closed beyond the bound of all", func() bool { return open(a) == 2 && open(b) == 3 })
	transport.CloseIdleConnections()
	eventually(t, "closed", func() bool { return open(a) == 0 && open(b) == 0 })

	release.Add(1)
	go func() {
		eventually(t, "dialled", func() bool { return open(a) == 1 })
		transport.CloseIdleConnections()
		release.Done()
	}()
	if _, _, err := post(t, transport, a.url, "{}"); err != nil {
		t.Error(err)
	}
	eventually(t, "closed after use", func() bool { return open(a) == 0 })
	if use(a, 1); transport.idle.Len() != 1 {
		t.Error("no connection is kept any more")
	}
	transport.CloseIdleConnections()
	eventually(t, "closed", func() bool { return open(a) == 0 })

	transport = newTransport(t)
	transport.Base.IdleConnTimeout = time.Second
	use(a, 1)
	use(b, 1)
	if open(a) != 1 || open(b) != 1 {
		t.Error("closed too early")
	}
	eventually(t, "closed in time", func() bool { return open(a) == 0 && open(b) == 0 })
	transport.mu.Lock()
	defer transport.mu.Unlock()
	if n := len(transport.byHost); n > 0 {
		t.Errorf("%d hosts are remembered", n)
	}
}

package connlimit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tollgate/internal/waittest"
)

// largeBody is more than the system buffers.
const largeBody = 32 << 20

// prompt is far longer than anything takes that does not wait.
const prompt = 10 * time.Second

// listen returns a listener for n connections, which is closed when the test ends.
func listen(t *testing.T, n int64) *Listener {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(tcp, n)
	t.Cleanup(func() { l.Close() })
	return l
}

// serve serves l with a handler that responds when the body has come, and cuts slow headers.
func serve(t *testing.T, l *Listener) {
	t.Helper()
	server := &http.Server{
		Handler: l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/patient" {
				Admit(r.Context())
			}
			_, _ = io.Copy(w, r.Body)
			if strings.HasPrefix(r.URL.Path, "/large") {
				if r.URL.Path == "/large/patient" {
					Admit(r.Context())
				}
				_, _ = w.Write(make([]byte, largeBody))
			}
			if r.URL.Path == "/gone" {
				Disconnect(r.Context())
				Disconnect(r.Context())
			}
		})),
		ConnContext: ConnContext,
		ConnState:   ConnState,
	}
	go l.KeepRoom()
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
}

// dial returns a connection to l over which text was sent.
func dial(t *testing.T, l *Listener, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(prompt))
	_, _ = io.WriteString(c, text)
	return c
}

// accept returns the next connection.
func accept(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// No more connections than that are accepted at a time. Closing one twice gives one place back.
func TestListenerCapacity(t *testing.T) {
	l := listen(t, 4)
	var conns []net.Conn
	for n := range 4 {
		if l.Connections() != n || l.NearCapacity() {
			t.Errorf("%d connections, near capacity: %v; want %d", l.Connections(), l.NearCapacity(), n)
		}
		if open, most := l.Open(); open != n || most != 4 {
			t.Errorf("%d of %d connections are open, want %d of 4", open, most, n)
		}
		dial(t, l, "")
		conns = append(conns, accept(t, l))
	}
	if !l.NearCapacity() {
		t.Error("4 connections of 4 are not near the capacity")
	}
	dial(t, l, "")
	dial(t, l, "")
	accepted := make(chan net.Conn, 2)
	for range 2 {
		go func() {
			c, _ := l.Accept()
			accepted <- c
		}()
	}
	select {
	case <-accepted:
		t.Fatal("a fifth connection was accepted")
	case <-time.After(100 * time.Millisecond):
	}
	conns[0].Close()
	conns[0].Close()
	fifth := <-accepted
	select {
	case <-accepted:
		t.Error("one that ended has made room for two")
	case <-time.After(100 * time.Millisecond):
	}
	fifth.Close()
	(<-accepted).Close()
}

// A listener whose Accept fails, as when there are too many open files, loses no place by that.
func TestListenerAcceptFails(t *testing.T) {
	l := listen(t, 2)
	l.inner.Close()
	for range 5 {
		if _, err := l.Accept(); err == nil {
			t.Fatal("a closed listener accepts")
		}
	}
	if n := l.Connections(); n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

// Close ends an Accept that waits for a connection to end, and KeepRoom. It may be called twice.
func TestListenerClose(t *testing.T) {
	l := listen(t, 1)
	dial(t, l, "")
	open := accept(t, l)
	ended := make(chan error, 2)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	go func() {
		l.KeepRoom()
		ended <- net.ErrClosed
	}()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
		case <-time.After(prompt):
			t.Fatal("it goes on")
		}
	}
	if _, err := open.Write([]byte("x")); err != nil {
		t.Errorf("a connection that was accepted: %v", err)
	}
}

// Wait returns when the last connection has ended, or after its timeout.
func TestListenerWait(t *testing.T) {
	l := listen(t, 2)
	dial(t, l, "")
	open := accept(t, l)
	if l.Wait(50 * time.Millisecond); l.Connections() != 1 {
		t.Errorf("%d connections are open", l.Connections())
	}
	time.AfterFunc(100*time.Millisecond, func() { open.Close() })
	began := time.Now()
	if l.Wait(prompt); l.Connections() != 0 || time.Since(began) >= prompt {
		t.Errorf("%d connections are open after %s", l.Connections(), time.Since(began))
	}
}

// A header of too many lines is refused, on a new connection and on one that was kept; a body may have any number.
func TestTooManyHeaderLines(t *testing.T) {
	l := listen(t, 10)
	serve(t, l)
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	many := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", maxHeaderLines) + "\r\n"
	lines := strings.Repeat("\n", 2*maxHeaderLines)
	post := fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(lines), lines)
	tests := []struct {
		name   string
		sent   []string
		status []int
	}{
		{"on a new connection", []string{many}, []int{431}},
		{"on a kept one", []string{get, post, many}, []int{200, 200, 431}},
		{"after empty lines", []string{post, "\r\n\r\n" + many}, []int{200, 431}}, // net/http skips them after a POST
		{"none", []string{get, post, get}, []int{200, 200, 200}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, l, "")
			r := bufio.NewReader(c)
			for i, text := range test.sent {
				_, _ = io.WriteString(c, text)
				response, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				if response.StatusCode != test.status[i] || response.Close != (response.StatusCode == 431) {
					t.Errorf("request %d: got %s, closed: %v", i, response.Status, response.Close)
				}
			}
		})
	}
}

// TestSlowReaders cuts a response that its client does not read while connections are scarce, unless it was admitted.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		path   string
		places int64
		cut    bool
	}{{"/large", 1, true}, {"/large/patient", 1, false}, {"/large", 3, false}} {
		l := listen(t, test.places)
		serve(t, l)
		c := dial(t, l, "GET "+test.path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		time.Sleep(2 * crowdedTimeout)
		n, _ := io.Copy(io.Discard, c)
		if isCut := n < largeBody; isCut != test.cut {
			t.Errorf("%+v: %d bytes of %d have come", test, n, largeBody)
		}
	}
}

// TestPipelinedRequests cuts a client that sends admitted requests and reads none of their small responses.
func TestPipelinedRequests(t *testing.T) {
	t.Parallel()
	l := listen(t, 1)
	serve(t, l)
	c := dial(t, l, "")
	_ = c.(*net.TCPConn).SetReadBuffer(4096) // few responses fill it
	_ = c.SetDeadline(time.Now().Add(6 * prompt))
	request := []byte("POST /patient HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	_, _ = c.Write(request)
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for err := error(nil); err == nil; {
			_, err = c.Write(request)
		}
	}()
	// The client need not learn of it: a TCP stack may drop a reset that comes while its buffer is full.
	waittest.Eventually(t, 6*prompt, func() error {
		if open, _ := l.Open(); open > 0 {
			return errors.New("it was not cut")
		}
		return nil
	})
}

// TestIdleConnections closes the connections that have waited longest for another request, until there is room again.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	l := listen(t, 8)
	serve(t, l)
	var idle []net.Conn
	for range 8 { // one more than Accept would have let in if none were closed
		c := dial(t, l, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.StatusCode != 200 {
			t.Fatalf("got %v, %v", response, err)
		}
		idle = append(idle, c)
		awaitIdle(t, l) // the server may notice later than its client that the response has ended
	}
	for i, c := range idle[:2] {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("connection %d: got %v, want %v", i, err, io.EOF)
		}
	}
	last := idle[7]
	_, _ = io.WriteString(last, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if response, err := http.ReadResponse(bufio.NewReader(last), nil); err != nil || response.StatusCode != 200 {
		t.Errorf("the newest: got %v, %v", response, err)
	}
}

// awaitIdle waits until each open connection of l waits for another request.
func awaitIdle(t *testing.T, l *Listener) {
	t.Helper()
	waittest.Eventually(t, prompt, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for c := range l.conns {
			if since := c.headerSince.Load(); since != betweenRequests {
				return fmt.Errorf("a request is open since %d", since)
			}
		}
		return nil
	})
}

// TestDisconnect gives the place of a connection to the next while its handler goes on.
func TestDisconnect(t *testing.T) {
	t.Parallel()
	l := listen(t, 1)
	serve(t, l)
	for range 3 {
		c := dial(t, l, "POST /gone HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
		if got, err := io.ReadAll(c); err == nil && strings.Contains(string(got), "{}") {
			t.Errorf("got %q", got)
		}
	}
	Disconnect(t.Context())
	Admit(t.Context())
}

// TestHijackedConnection keeps its place until it is closed, also when its handler has returned. If it was admitted it
// is not closed for others, however long either side is silent or does not read, and what comes over it is no header.
func TestHijackedConnection(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{"new": "", "kept": "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, 1)
			lines := strings.Repeat("\n", 2*maxHeaderLines)
			serveHijacked(t, l, len(lines))
			c := dial(t, l, before)
			r := bufio.NewReader(c)
			if before != "" {
				if _, err := http.ReadResponse(r, nil); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.WriteString(c, "GET /hijacked HTTP/1.1\r\nHost: x\r\n\r\n"+lines[:1])
			time.Sleep(2 * crowdedTimeout)
			_, _ = io.WriteString(c, lines[1:])
			if _, err := r.Peek(1); err != nil {
				t.Fatalf("it was cut while it was silent: %v", err)
			}
			waiting := dial(t, l, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(2 * crowdedTimeout)
			if n := l.Connections(); n != 1 {
				t.Errorf("%d places are taken", n)
			}
			if n, err := io.Copy(io.Discard, r); n != largeBody || err != nil {
				t.Errorf("got %d bytes of %d, %v", n, largeBody, err)
			}
			if _, err := http.ReadResponse(bufio.NewReader(waiting), nil); err != nil {
				t.Errorf("its place is not given back: %v", err)
			}
		})
	}
}

// serveHijacked serves l. For /hijacked the handler takes over the connection, reads n bytes of it, writes largeBody and
// closes it.
func serveHijacked(t *testing.T, l *Listener, n int) {
	server := &http.Server{
		Handler: l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/hijacked" {
				return
			}
			Admit(r.Context())
			c, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.CopyN(io.Discard, buffered, int64(n)); err != nil {
					t.Error(err)
				}
				_, _ = c.Write(make([]byte, largeBody))
			}()
		})),
		ConnContext: ConnContext, ConnState: ConnState,
	}
	go l.KeepRoom()
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
}

// While connections are scarce a request must come within a second, on a new connection and on one that was kept, and its
// response must be read. A request that is admitted may take longer. While there are enough connections all may.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	const post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
	tests := []struct {
		name   string
		places int64
		kept   bool   // a request was served before
		sent   string // then
		rest   string // what is sent later
		cut    bool
	}{
		{"half a header", 1, false, get[:10], get[10:], true},
		{"nothing", 1, false, "", get, true},
		{"half a header on a kept connection", 1, true, get[:10], get[10:], true},
		{"nothing on a kept connection", 1, true, "", get, true},
		{"nothing on a kept connection, with places left", 3, true, "", get, false},
		{"half a body", 1, false, post + "{", "}", true},
		{"half a body on a kept connection", 1, true, post + "{", "}", true},
		{"half a body that is admitted", 1, false, strings.Replace(post, "/", "/patient", 1) + "{", "}", false},
		{"half a body, with places left", 3, false, post + "{", "}", false},
		{"half a header, with places left", 3, false, get[:10], get[10:], false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, test.places)
			serve(t, l)
			c := dial(t, l, "")
			r := bufio.NewReader(c)
			if test.kept {
				_, _ = io.WriteString(c, get)
				if _, err := http.ReadResponse(r, nil); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			_, _ = io.WriteString(c, test.sent)
			if test.cut {
				if _, err := r.ReadByte(); err == nil {
					t.Error("it is responded to")
				}
				took := time.Since(began)
				if early := !test.kept && took < crowdedTimeout/2; early || took > crowdedTimeout+prompt/2 {
					t.Errorf("it was cut after %s", took)
				}
				return
			}
			time.Sleep(crowdedTimeout * 3 / 2)
			_, _ = io.WriteString(c, test.rest)
			if response, err := http.ReadResponse(r, nil); err != nil || response.StatusCode != 200 {
				t.Errorf("got %v, %v", response, err)
			}
		})
	}
}

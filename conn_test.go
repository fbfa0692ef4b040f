package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// lazyPair is a lazyConn, as a server has it, and its other end.
func lazyPair(t *testing.T) (c *lazyConn, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if other, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	accepted, err := newLazyListener(l, 10).Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return accepted.(*lazyConn), other
}

// However often it is set, a call ends at the deadline that was set last: not before, and not later.
func TestLazyDeadlines(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	full := make([]byte, 64<<20) // more than the system buffers
	calls := map[string]struct {
		set  func(*lazyConn, time.Time) error
		call func(*lazyConn) error
	}{
		"read":  {(*lazyConn).SetReadDeadline, func(c *lazyConn) error { _, err := c.Read(make([]byte, 10)); return err }},
		"write": {(*lazyConn).SetWriteDeadline, func(c *lazyConn) error { _, err := c.Write(full); return err }},
		"both":  {(*lazyConn).SetDeadline, func(c *lazyConn) error { _, err := c.Read(make([]byte, 1)); return err }},
	}
	for name, test := range calls {
		for _, steps := range [][]int{{150}, {50, 150}, {300, 150}, {50, 0, 150}, {50, 100, 20, 150}, {-50, 150}} {
			c, _ := lazyPair(t)
			start := time.Now()
			for _, step := range steps {
				at := time.Time{}
				if step != 0 {
					at = start.Add(ms(step))
				}
				if err := test.set(c, at); err != nil {
					t.Fatal(err)
				}
			}
			err := test.call(c)
			if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took < ms(149) || took > ms(600) {
				t.Errorf("%s with the deadlines %v: %v after %s", name, steps, err, took)
			}
		}
	}
	// Without a deadline a read waits, also where the runtime had one.
	c, other := lazyPair(t)
	_ = c.SetReadDeadline(in(ms(30)))
	_ = c.SetReadDeadline(time.Time{})
	time.AfterFunc(ms(150), func() { _, _ = other.Write([]byte("x")) })
	if n, err := c.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	// All of a write arrives, also where the runtime ended it in between.
	_ = c.SetWriteDeadline(in(ms(30)))
	_ = c.SetWriteDeadline(in(10 * time.Second))
	got := make(chan int)
	go func() {
		time.Sleep(ms(100))
		total, buffer := 0, make([]byte, 1<<20)
		for total < len(full) {
			n, err := other.Read(buffer)
			if total += n; err != nil {
				break
			}
		}
		got <- total
	}()
	if n, err := c.Write(full); n != len(full) || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if n := <-got; n != len(full) {
		t.Errorf("%d bytes arrived", n)
	}
}

// A server's background read, of one byte and without a deadline, ends when it is told to or the connection is closed,
// and takes nothing of what the client sends meanwhile.
func TestLazyBackgroundRead(t *testing.T) {
	c, other := lazyPair(t)
	read := func(end func()) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			n, err := c.Read(make([]byte, 1))
			if n != 0 {
				t.Errorf("it read %d bytes", n)
			}
			done <- err
		}()
		end()
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("it does not end")
		}
	}
	for range 3 {
		_ = c.SetReadDeadline(time.Time{})
		read(func() {
			_, _ = other.Write([]byte("next"))
			_ = c.SetReadDeadline(time.Unix(1, 0)) // as net/http does
		})
		_ = c.SetReadDeadline(in(time.Second))
		buffer := make([]byte, 10)
		if n, err := c.Read(buffer); string(buffer[:n]) != "next" || err != nil {
			t.Errorf("read %q, %v", buffer[:n], err)
		}
	}
	_ = c.SetReadDeadline(time.Time{})
	read(func() { c.Close() })
}

// Requests that a client sends without waiting for the answers are answered in turn, also while one waits for Redis.
func TestPipelinedRequests(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	one := fmt.Sprintf("POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 12\r\n\r\n{\"tokens\":1}", id, bearer(key))
	last := strings.Replace(one, "Host: x", "Host: x\r\nConnection: close", 1)
	c := s.dial(t)
	fmt.Fprint(c, strings.Repeat(one, 49)+last)
	answers := readAll(c)
	for i := range 50 {
		if want := fmt.Sprintf(`{"tokensLeft":%d}`, 999-i); !strings.Contains(answers, want) {
			t.Fatalf("%s is missing in\n%s", want, answers)
		}
	}
}

// Whatever a client does, net/http serves it over a lazyConn just as over the connection itself, to the same bytes and
// after the same time.
func TestLazyConnIsAConn(t *testing.T) {
	const request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
	const head = len(request) - len("abc")
	with := func(old, new string) string { return strings.Replace(request, old, new, 1) }
	long := with("Host", "A: "+strings.Repeat("x", 4092)+"\r\nHost") // more than net/http's buffer of 4,096 bytes
	type step struct {
		pause int // ms
		text  string
	}
	drip := func(text string, pause int) (steps []step) {
		for _, c := range text {
			steps = append(steps, step{pause, string(c)})
		}
		return steps
	}
	scenarios := map[string][]step{
		"nothing":                  nil,
		"part of a header":         {{0, "POST / HT"}},
		"dripped header":           drip(request, 50),
		"idle":                     {{0, request}},
		"request, late header":     {{0, request}, {700, "POST / HT"}},
		"slow body":                {{0, request[:head+1]}},
		"request, slow body":       {{0, request}, {450, request[:head+1]}},
		"request, body in time":    {{0, request}, {450, request[:head+1]}, {450, "bc"}},
		"dripped body":             append([]step{{0, with("3", "9")[:head]}}, drip("abcdefghijkl", 80)...),
		"now and then":             {{0, request}, {800, request}, {800, request}},
		"pipelined":                {{0, strings.Repeat(request, 5) + request[:20]}, {50, request[20:]}},
		"pipelined while one runs": {{0, with("/", "/slow")}, {30, request[:1]}, {300, request[1:]}},
		"half closed":              {{0, with("/", "/slow")}, {0, "EOF"}},
		"HTTP/1.0":                 {{0, with("1.1", "1.0")}},
		"close":                    {{0, with("Host", "Connection: close\r\nHost")}},
		"expect":                   {{0, with("Host", "Expect: 100-continue\r\nHost")[:head+24]}, {100, "abc"}, {100, request}},
		"unread body":              {{0, with("/", "/unread") + request}},
		"chunked":                  {{0, with("Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n") + request}},
		"long header":              {{0, long}},
		"one byte of room":         {{0, long[:17+3000]}, {50, long[17+3000 : 17+4095]}, {50, long[17+4095:]}},
		"panic":                    {{0, with("/", "/panic") + request}},
		"large body":               {{0, with("3\r\n\r\nabc", "600000\r\n\r\n"+strings.Repeat("x", 600000)) + request}},
	}
	serve := func(wrap func(net.Listener) net.Listener, steps []step) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err.Error()
		}
		closed := make(chan struct{}, 1)
		web := &http.Server{
			ReadHeaderTimeout: 300 * time.Millisecond, ReadTimeout: 600 * time.Millisecond,
			WriteTimeout: 750 * time.Millisecond, IdleTimeout: 900 * time.Millisecond,
			ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed <- struct{}{}
				}
			},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Date"] = nil
				switch r.URL.Path {
				case "/slow":
					time.Sleep(200 * time.Millisecond)
				case "/panic":
					panic(http.ErrAbortHandler)
				case "/unread":
					return
				}
				body, err := io.ReadAll(r.Body)
				fmt.Fprint(w, len(body), err != nil)
			}),
		}
		go func() { _ = web.Serve(wrap(l)) }()
		defer web.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		start := time.Now()
		go func() {
			for _, step := range steps {
				time.Sleep(time.Duration(step.pause) * time.Millisecond)
				if step.text == "EOF" {
					_ = c.(*net.TCPConn).CloseWrite()
				} else {
					fmt.Fprint(c, step.text)
				}
			}
		}()
		got, err := io.ReadAll(c)
		took := time.Since(start)
		select {
		case <-closed:
		case <-time.After(3 * time.Second):
			return "the connection stays open"
		}
		return fmt.Sprintf("%s\n%T after %.0f tenths of a second", got, err, took.Seconds()*10-0.3)
	}
	var all sync.WaitGroup
	for name, steps := range scenarios {
		all.Go(func() {
			var plain, lazy string
			for range 5 { // what takes longer on a busy machine does not count
				var both sync.WaitGroup
				both.Go(func() { plain = serve(func(l net.Listener) net.Listener { return l }, steps) })
				both.Go(func() { lazy = serve(func(l net.Listener) net.Listener { return newLazyListener(l, 10) }, steps) })
				if both.Wait(); lazy == plain {
					return
				}
			}
			t.Errorf("%s: over a lazyConn %.2000q\nover the connection itself %.2000q", name, lazy, plain)
		})
	}
	all.Wait()
}

// 500 slow clients do not keep an honest one from an answer, and are cut off within 10 s.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	end := time.Now().Add(11 * time.Second)
	var slow sync.WaitGroup
	for i := range 500 {
		text := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(key) + "\r\nX-Long: " + strings.Repeat("x", 100)
		if i%2 == 0 { // a slow body, after a header that is there at once
			text = strings.Replace(text, "X-Long", "Content-Length: 1000\r\n\r\n", 1)
		}
		head := strings.Index(text, "\r\n\r\n") + 4
		c := s.dial(t)
		slow.Go(func() {
			start := time.Now()
			if head > 4 {
				fmt.Fprint(c, text[:head])
				text = text[head:]
			}
			for at := 0; time.Now().Before(end); at = (at + 1) % len(text) {
				if _, err := fmt.Fprint(c, text[at:at+1]); err != nil {
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("a slow client was cut off after %s", took)
					}
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Error("a slow client is still there after 11 s")
		})
	}
	var took []time.Duration
	for range 100 {
		start := time.Now()
		s.consume(t, id, key, "").want(t, 200, "")
		took = append(took, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	if p90 := took[90]; p90 > 50*time.Millisecond { // what else the machine does may hold up a few
		t.Errorf("beside slow clients 10 of 100 answers took %s and more", p90)
	}
	slow.Wait()
}

// So many connections are served at a time; one more is when another ends.
func TestMaxConnections(t *testing.T) {
	s := newService(t, "MAX_CONNECTIONS=3")
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	var taken []net.Conn
	for range 3 {
		c := s.dial(t)
		fmt.Fprint(c, request[:10])
		taken = append(taken, c)
	}
	for _, other := range taken[:2] {
		waiting := s.dial(t)
		fmt.Fprint(waiting, request)
		_ = waiting.SetReadDeadline(in(300 * time.Millisecond))
		if n, err := waiting.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("beside 3 connections another got %d bytes, %v", n, err)
		}
		other.Close()
		_ = waiting.SetReadDeadline(in(5 * time.Second))
		if got := readAll(waiting); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("when one has ended, the next got %q", got)
		}
		c := s.dial(t)
		fmt.Fprint(c, request[:10])
		time.Sleep(50 * time.Millisecond)
	}
}

// Clients that keep their connections without a use for them do not keep others out.
func TestIdleConnections(t *testing.T) {
	s := newService(t, "MAX_CONNECTIONS=20")
	kept := 0
	for range 100 {
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !answer.Close {
			kept++
		}
	}
	if kept < 14 || kept > 15 { // the server may have taken a place for the next one already
		t.Errorf("%d connections are kept of 20", kept)
	}
}

// A listener whose Accept fails, as where there are too many open files, loses no place by that.
func TestAcceptFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	lazy := newLazyListener(l, 2)
	for range 5 {
		if _, err := lazy.Accept(); err == nil {
			t.Fatal("a closed listener accepts")
		}
	}
	if n := len(lazy.slots); n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

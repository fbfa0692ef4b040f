package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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
	long(t)
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

// Whatever a client does, net/http serves it over a lazyConn just as over the connection itself, to the same bytes and
// after the same time.
func TestLazyConnIsAConn(t *testing.T) {
	long(t)
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

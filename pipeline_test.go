package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// newTestPipeline is a pipeline to the Redis at url, without timeouts of its own.
func newTestPipeline(t *testing.T, network, address string) *pipeline {
	t.Helper()
	p := newPipeline(func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, network, address) })
	t.Cleanup(p.close)
	return p
}

func in(d time.Duration) time.Time { return time.Now().Add(d) }

// Each of many callers gets the reply to its own command, errors of Redis too.
func TestPipelineReplies(t *testing.T) {
	p := newTestPipeline(t, "unix", testRedis.socket())
	var wg sync.WaitGroup
	for g := range 64 {
		wg.Go(func() {
			for i := range 100 {
				want := fmt.Sprint(g, "-", i)
				if got, err := redis.String(p.do(in(5*time.Second), "ECHO", []any{want})); err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
				if _, err := p.do(in(5*time.Second), "NOSUCHCOMMAND", nil); err == nil || !strings.HasPrefix(err.Error(), "ERR unknown command") {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// While Redis says nothing each caller waits until its own deadline and no longer, no more than maxPending wait, and all
// is well once Redis goes on.
func TestPipelineDeadlines(t *testing.T) {
	r := newRedis(t)
	p := newTestPipeline(t, "unix", r.socket())
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Fatal(err)
	}
	r.signal(t, syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range maxPending {
		wg.Go(func() {
			timeout := time.Duration(500+i%3*100) * time.Millisecond
			start := time.Now()
			_, err := p.do(start.Add(timeout), "PING", nil)
			if took := time.Since(start); !errors.Is(err, errNoReply) || took < timeout || took > timeout+500*time.Millisecond {
				t.Errorf("%v after %s, want an error after %s", err, took, timeout)
			}
		})
	}
	pending := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.waiting) + len(p.sent) - p.first
	}
	for deadline := in(5 * time.Second); pending() < maxPending && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	if _, err := p.do(in(time.Second), "PING", nil); !errors.Is(err, errPipelineFull) || time.Since(start) > 100*time.Millisecond {
		t.Errorf("got %v after %s from a full pipeline", err, time.Since(start))
	}
	wg.Wait()
	r.signal(t, syscall.SIGCONT)
	for start := time.Now(); ; time.Sleep(time.Millisecond) { // the replies that nobody waits for come first
		_, err := p.do(in(time.Second), "PING", nil)
		if err == nil {
			break
		}
		if time.Since(start) > 500*time.Millisecond {
			t.Fatalf("after Redis goes on: %v", err)
		}
	}
}

// When the connection breaks, what was sent fails at once, what was not is sent over the next, and nobody gets the reply
// to another's command.
func TestPipelineBreaks(t *testing.T) {
	r := newRedis(t)
	p := newTestPipeline(t, "unix", r.socket())
	var stop atomic.Bool
	var lost atomic.Int64
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				want := fmt.Sprint(g, "-", i)
				start := time.Now()
				got, err := redis.String(p.do(start.Add(5*time.Second), "ECHO", []any{want}))
				switch {
				case err != nil && time.Since(start) > time.Second:
					t.Errorf("%v came after %s", err, time.Since(start))
				case err != nil:
					lost.Add(1)
				case got != want:
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
	for range 50 {
		time.Sleep(5 * time.Millisecond)
		r.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	}
	stop.Store(true)
	wg.Wait()
	if lost.Load() == 0 {
		t.Error("no command was under way when the connection broke")
	}
	_, _ = p.do(in(time.Second), "PING", nil) // may yet go over the last that was cut
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Error(err)
	}
}

// A connection that swallows what it is sent is replaced soon after the first command over it has expired.
func TestPipelineSilence(t *testing.T) {
	var mute atomic.Bool
	proxy := newRedisProxy(t, testRedis, func([]byte) fate {
		if mute.Swap(false) {
			return swallow
		}
		return pass
	})
	p := newTestPipeline(t, "tcp", strings.TrimPrefix(proxy.url, "redis://"))
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Fatal(err)
	}
	mute.Store(true)
	if _, err := p.do(in(200*time.Millisecond), "PING", nil); !errors.Is(err, errNoReply) {
		t.Errorf("got %v, want %v", err, errNoReply)
	}
	time.Sleep(silenceLeft + 100*time.Millisecond)
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Error(err)
	}
}

// That one command runs out of time does not end the connection for those behind it that have more.
func TestPipelineSlow(t *testing.T) {
	r := newRedis(t, "--enable-debug-command", "yes")
	p := newTestPipeline(t, "unix", r.socket())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.do(in(100*time.Millisecond), "DEBUG", []any{"SLEEP", "0.4"}); !errors.Is(err, errNoReply) {
			t.Errorf("got %v, want %v", err, errNoReply)
		}
	})
	time.Sleep(50 * time.Millisecond)
	for i := range 10 {
		wg.Go(func() {
			want := fmt.Sprint(i)
			if got, err := redis.String(p.do(in(5*time.Second), "ECHO", []any{want})); err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
	}
	wg.Wait()
}

// Where nobody listens, callers learn it at once.
func TestPipelineRefused(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPipeline(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	for range 20 {
		start := time.Now()
		if _, err := p.do(in(5*time.Second), "PING", nil); err == nil || !strings.Contains(err.Error(), "connection refused") || time.Since(start) > 500*time.Millisecond {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	}
}

// A Redis that has too many clients says so unasked, and hangs up. Once it has room all is well.
func TestPipelineTooManyClients(t *testing.T) {
	r := newRedis(t)
	r.do(t, "CONFIG", "SET", "maxclients", 2)
	var others []redis.Conn
	for range 2 {
		c, err := redis.Dial("unix", r.socket())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		others = append(others, c)
	}
	p := newTestPipeline(t, "unix", r.socket())
	for range 20 {
		start := time.Now()
		if _, err := p.do(in(time.Second), "PING", nil); err == nil || time.Since(start) > 500*time.Millisecond {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	}
	others[0].Close()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := p.do(in(time.Second), "PING", nil)
		if err == nil {
			break
		}
		if time.Since(start) > time.Second {
			t.Fatal(err)
		}
	}
}

// Closed, a pipeline fails all that waits and leaves no goroutine behind.
func TestPipelineClose(t *testing.T) {
	r := newRedis(t)
	before := runtime.NumGoroutine()
	for range 20 {
		p := newPipeline(func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "unix", r.socket()) })
		if _, err := p.do(in(time.Second), "PING", nil); err != nil {
			t.Fatal(err)
		}
		r.signal(t, syscall.SIGSTOP)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := p.do(in(time.Minute), "PING", nil); err == nil {
					t.Error("a command was answered after the end")
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		start := time.Now()
		p.close()
		wg.Wait()
		if took := time.Since(start); took > time.Second {
			t.Errorf("closing took %s", took)
		}
		r.signal(t, syscall.SIGCONT)
		if _, err := p.do(in(time.Minute), "PING", nil); !errors.Is(err, errPipelineClosed) {
			t.Errorf("got %v, want %v", err, errPipelineClosed)
		}
	}
	for deadline := in(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left, there were %d", runtime.NumGoroutine(), before)
		}
	}
}

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
	accepted, err := lazyListener{l}.Accept()
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

package main

import (
	"context"
	"errors"
	"fmt"
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
	for deadline := in(5 * time.Second); p.pending() < maxPending && time.Now().Before(deadline); {
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

// A connection that hands on no more replies, or no more of those that it owes, is replaced soon after the first command
// over it has expired.
func TestPipelineSilence(t *testing.T) {
	var mute atomic.Bool
	var left atomic.Int64
	proxy := newRedisProxy(t, testRedis, func(reply []byte) fate {
		if mute.Load() && left.Add(-1) < 0 {
			mute.Store(false)
			return swallow
		}
		return pass
	})
	p := newTestPipeline(t, "tcp", proxy.address)
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Fatal(err)
	}
	for answered := range 3 {
		left.Store(int64(answered))
		mute.Store(true)
		var wg sync.WaitGroup
		for range answered + 1 { // one after the other, so that each reply comes by itself
			wg.Go(func() { _, _ = p.do(in(300*time.Millisecond), "PING", nil) })
			time.Sleep(20 * time.Millisecond)
		}
		wg.Go(func() {
			if _, err := p.do(in(300*time.Millisecond), "PING", nil); !errors.Is(err, errNoReply) {
				t.Errorf("got %v, want %v", err, errNoReply)
			}
		})
		wg.Wait()
		time.Sleep(silenceLeft + 100*time.Millisecond)
		if _, err := p.do(in(time.Second), "PING", nil); err != nil {
			t.Errorf("after %d replies: %v", answered, err)
		}
	}
}

// That one command runs out of time does not end the connection for those behind it that have more.
func TestPipelineSlow(t *testing.T) {
	r := newRedis(t, "--enable-debug-command", "yes")
	p := newTestPipeline(t, "unix", r.socket())
	var wg sync.WaitGroup
	for i := range 5 { // for longer than silenceLeft, with a reply now and then
		wg.Go(func() {
			if _, err := p.do(in(100*time.Millisecond), "DEBUG", []any{"SLEEP", "0.3"}); !errors.Is(err, errNoReply) {
				t.Errorf("got %v, want %v", err, errNoReply)
			}
		})
		time.Sleep(20 * time.Millisecond)
		wg.Go(func() {
			want := fmt.Sprint(i)
			if got, err := redis.String(p.do(in(5*time.Second), "ECHO", []any{want})); err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
		time.Sleep(280 * time.Millisecond)
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

// A connection that is not read any more while much is sent over it is replaced, and keeps nobody from closing.
func TestPipelineStuck(t *testing.T) {
	r := newRedis(t)
	var dials atomic.Int64
	p := newPipeline(func(ctx context.Context) (redis.Conn, error) {
		dials.Add(1)
		return redis.DialContext(ctx, "unix", r.socket())
	})
	if _, err := p.do(in(time.Second), "PING", nil); err != nil {
		t.Fatal(err)
	}
	r.signal(t, syscall.SIGSTOP)
	defer r.signal(t, syscall.SIGCONT)
	big := strings.Repeat("x", 4500)
	var wg sync.WaitGroup
	for range 3000 { // more than the system buffers
		wg.Go(func() { _, _ = p.do(in(300*time.Millisecond), "ECHO", []any{big}) })
	}
	wg.Wait()
	for deadline := in(5 * time.Second); dials.Load() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection is not replaced")
		}
		_, _ = p.do(in(100*time.Millisecond), "ECHO", []any{big})
	}
	for range 3000 {
		wg.Go(func() { _, _ = p.do(in(time.Minute), "ECHO", []any{big}) })
	}
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	p.close()
	wg.Wait()
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("closing took %s", took)
	}
}

// Commands that expire while the pipeline is closed are failed once, and their callers learn nothing of others.
func TestPipelineCloseAndExpire(t *testing.T) {
	for range 50 {
		p := newPipeline(func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "unix", testRedis.socket())
		})
		at := in(5 * time.Millisecond)
		var wg sync.WaitGroup
		for g := range 100 {
			wg.Go(func() {
				for i := 0; ; i++ {
					want := fmt.Sprint(g, "-", i)
					got, err := redis.String(p.do(at.Add(time.Duration(i%7)*100*time.Microsecond), "ECHO", []any{want}))
					if err == nil && got != want || errors.Is(err, redis.ErrNil) {
						t.Errorf("got %q, %v, want %q", got, err, want)
					}
					if errors.Is(err, errPipelineClosed) {
						return
					}
				}
			})
		}
		time.Sleep(time.Until(at))
		p.close()
		wg.Wait()
	}
}

// What waits for replies takes no more room the longer it goes on.
func TestPipelineMemory(t *testing.T) {
	p := new(pipeline)
	for range 100_000 {
		p.owe([]*command{{}, {}})
		p.first += 2
		if p.first > 10 {
			p.owe(make([]*command, 3))
			p.first += 3
		}
	}
	if n := cap(p.sent); n > 100 {
		t.Errorf("there is room for %d commands", n)
	}
}

// Where Redis does not let it in, a caller learns that it is unavailable, whatever Redis's words are.
func TestPipelineLogin(t *testing.T) {
	r := newRedis(t)
	r.do(t, "CONFIG", "SET", "requirepass", "pw")
	s := newService(t, fmt.Sprintf("REDIS_URL=redis://:pw@127.0.0.1:%d", r.port))
	key := s.login(t, "abc")
	c, err := redis.Dial("unix", r.socket(), redis.DialPassword("pw"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, change := range [][]any{{"SET", "requirepass", ""}, {"SET", "requirepass", "other"}} {
		if _, err := c.Do("CONFIG", change...); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		_, _ = c.Do("CLIENT", "KILL", "TYPE", "pubsub")
		for range 5 {
			s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 503, `{"error":"Service unavailable"}`)
			s.admin(t, "DELETE", "/abc/admin/tokens", "").want(t, 503, `{"error":"Service unavailable"}`)
		}
	}
	if _, err := c.Do("CONFIG", "SET", "requirepass", "pw"); err != nil {
		t.Fatal(err)
	}
	s.wantRecovery(t)
	if n := strings.Count(s.log.String(), "[ERROR]"); n != 1 {
		t.Errorf("%d errors in the log:\n%s", n, s.log)
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
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 20 {
				start := time.Now()
				if _, err := p.do(in(time.Second), "ECHO", []any{strings.Repeat("x", 300)}); err == nil || time.Since(start) > 500*time.Millisecond {
					t.Errorf("got %v after %s", err, time.Since(start))
				}
			}
		})
	}
	wg.Wait()
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

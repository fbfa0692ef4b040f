package redisdb

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

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// prompt is far longer than anything takes that does not wait, and far shorter than the deadlines that must not be
// waited for.
const prompt = 5 * time.Second

// newShared returns a shared connection that dial makes, and whatever waits for it is released when the test ends.
func newShared(t *testing.T, dial func(context.Context) (redis.Conn, error)) *sharedConn {
	t.Helper()
	c := newSharedConn(0, dial)
	t.Cleanup(c.close)
	return c
}

// ping sends PING over c.
func ping(c *sharedConn, within time.Duration) error {
	_, err := c.do(time.Now().Add(within), "PING", nil, 0)
	return err
}

// echo sends ECHO over c and returns an error unless the reply is its argument.
func echo(c *sharedConn, deadline time.Time, text string) error {
	got, err := redis.String(c.do(deadline, "ECHO", []any{text}, 0))
	if err == nil && got != text {
		return fmt.Errorf("%w: %q to ECHO %q", errMixedUp, got, text)
	}
	return err
}

var errMixedUp = errors.New("the reply to another command")

// wantPing waits until c works.
func wantPing(t *testing.T, c *sharedConn) {
	t.Helper()
	waittest.Eventually(t, 2*prompt, func() error { return ping(c, time.Second) })
}

// wantPromptClose closes c, and waits for its callers, which must not take long.
func wantPromptClose(t *testing.T, c *sharedConn, callers *sync.WaitGroup) {
	t.Helper()
	began := time.Now()
	c.close()
	callers.Wait()
	if took := time.Since(began); took > prompt {
		t.Errorf("closing took %s", took)
	}
}

// wantPending waits until n commands wait to be sent over c or for their reply.
func wantPending(t *testing.T, c *sharedConn, n int) {
	t.Helper()
	waittest.Eventually(t, prompt, func() error {
		if got := c.pending(); got < n {
			return fmt.Errorf("%d commands are pending, want %d", got, n)
		}
		return nil
	})
}

// Each of many callers gets the reply to its own command, errors of Redis too.
func TestSharedConnReplies(t *testing.T) {
	c := newShared(t, testRedis.DialContext)
	var callers sync.WaitGroup
	for g := range 64 {
		callers.Go(func() {
			for i := range 100 {
				if err := echo(c, time.Now().Add(30*time.Second), fmt.Sprint(g, "-", i)); err != nil {
					t.Error(err)
				}
				_, err := c.do(time.Now().Add(30*time.Second), "NOSUCHCOMMAND", nil, 0)
				if err == nil || !strings.HasPrefix(err.Error(), "ERR unknown command") {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	callers.Wait()
}

// While Redis says nothing, each caller waits until its own deadline and no longer, no more than maxPending wait, and
// all is well once Redis goes on.
func TestSharedConnDeadlines(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	c := newShared(t, r.DialContext)
	wantPing(t, c)
	r.Signal(t, syscall.SIGSTOP)
	var callers sync.WaitGroup
	first := time.Now().Add(3 * time.Second)
	for i := range maxPending {
		callers.Go(func() {
			// After the first deadline the connection is closed once silenceTimeout has passed: all deadlines come before.
			deadline := first.Add(time.Duration(i%3) * silenceTimeout / 6)
			_, err := c.do(deadline, "PING", nil, 0)
			if late := time.Since(deadline); !errors.Is(err, errNoReply) || late < 0 || late > prompt {
				t.Errorf("%v, %s after the deadline", err, late)
			}
		})
	}
	wantPending(t, c, maxPending)
	start := time.Now()
	if err := ping(c, 4*prompt); !errors.Is(err, errTooManyPending) || time.Since(start) > prompt {
		t.Errorf("got %v after %s while as many as may wait do", err, time.Since(start))
	}
	callers.Wait()
	r.Signal(t, syscall.SIGCONT)
	wantPing(t, c) // the replies that nobody waits for come first
}

// When the connection breaks, what was sent fails immediately, what was not is sent over the next, and nobody gets the
// reply to another's command.
func TestSharedConnBreaks(t *testing.T) {
	r := redistest.New(t)
	c := newShared(t, r.DialContext)
	var stop atomic.Bool
	var lost atomic.Int64
	var callers sync.WaitGroup
	for g := range 32 {
		callers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				start := time.Now()
				err := echo(c, time.Now().Add(4*prompt), fmt.Sprint(g, "-", i))
				if errors.Is(err, errMixedUp) || time.Since(start) > prompt {
					t.Errorf("%v after %s", err, time.Since(start))
				}
				if err != nil {
					lost.Add(1)
				}
			}
		})
	}
	waittest.Eventually(t, 4*prompt, func() error {
		r.Do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		if n := lost.Load(); n < 50 {
			return fmt.Errorf("only %d commands were under way when the connection broke", n)
		}
		return nil
	})
	stop.Store(true)
	callers.Wait()
	wantPing(t, c)
}

// A connection that forwards no more replies, or no more of those that it owes, is replaced soon after the first
// command over it has expired.
func TestSharedConnSilence(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		first   redistest.Fate // what becomes of the first reply, while the others are owed
		expired int64          // commands, of two
	}{
		{"no reply comes", redistest.Swallow, 2},
		{"one of the replies comes", redistest.Pass, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var mute atomic.Bool
			var held atomic.Int64
			release := make(chan redistest.Fate, 2)
			t.Cleanup(func() { close(release) })
			proxy := redistest.NewProxy(t, testRedis, func([]byte) redistest.Fate {
				if !mute.Load() {
					return redistest.Pass
				}
				held.Add(1)
				return <-release
			})
			// It does not log in. If Redis asks for that its reply is an error, which is a reply as good as any.
			c := newShared(t, func(ctx context.Context) (redis.Conn, error) {
				return redis.DialContext(ctx, "tcp", proxy.Address)
			})
			replied := func(err error) error {
				if _, ok := errors.AsType[redis.Error](err); ok {
					return nil
				}
				return err
			}
			waittest.Eventually(t, prompt, func() error { return replied(ping(c, time.Second)) })

			mute.Store(true)
			var callers sync.WaitGroup
			var expired atomic.Int64
			send := func() {
				callers.Go(func() {
					if errors.Is(ping(c, time.Second), errNoReply) {
						expired.Add(1)
					}
				})
			}
			send()
			waittest.Eventually(t, prompt, func() error {
				if held.Load() == 0 {
					return errors.New("no reply has reached the proxy")
				}
				return nil
			})
			send()
			wantPending(t, c, 2)
			release <- test.first
			release <- redistest.Swallow
			callers.Wait()
			mute.Store(false)
			if n := expired.Load(); n != test.expired {
				t.Errorf("%d commands have expired, want %d", n, test.expired)
			}
			waittest.Eventually(t, 2*prompt, func() error { return replied(ping(c, time.Second)) })
		})
	}
}

// That one command runs out of time does not end the connection for those behind it that have more.
func TestSharedConnSlow(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--enable-debug-command", "yes")
	c := newShared(t, r.DialContext)
	var callers sync.WaitGroup
	var expired atomic.Int64
	for i := range 5 { // for longer than silenceTimeout, with a reply now and then
		callers.Go(func() {
			_, err := c.do(time.Now().Add(100*time.Millisecond), "DEBUG", []any{"SLEEP", "0.3"}, 0)
			if errors.Is(err, errNoReply) {
				expired.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
		wantPending(t, c, 1)
		if err := echo(c, time.Now().Add(30*time.Second), fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
	callers.Wait()
	if expired.Load() == 0 {
		t.Error("no command has expired: that proves nothing")
	}
}

// If nobody listens, callers learn it immediately.
func TestSharedConnRefused(t *testing.T) {
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c := newShared(t, func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	})
	for range 20 {
		start := time.Now()
		err := ping(c, 4*prompt)
		if err == nil || !strings.Contains(err.Error(), "connection refused") || time.Since(start) > prompt {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	}
}

// A connection that is no longer read while much is sent over it is replaced, and keeps nobody from closing.
func TestSharedConnStuck(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	var dials atomic.Int64
	c := newSharedConn(0, func(ctx context.Context) (redis.Conn, error) {
		dials.Add(1)
		return r.DialContext(ctx)
	})
	wantPing(t, c)
	r.Signal(t, syscall.SIGSTOP)
	defer r.Signal(t, syscall.SIGCONT)
	big := strings.Repeat("x", 4500)
	var callers sync.WaitGroup
	for range 3000 { // more than the system buffers
		callers.Go(func() { _ = echo(c, time.Now().Add(300*time.Millisecond), big) })
	}
	callers.Wait()
	waittest.Eventually(t, 4*prompt, func() error {
		_ = echo(c, time.Now().Add(100*time.Millisecond), big)
		if dials.Load() < 2 {
			return errors.New("the connection is not replaced")
		}
		return nil
	})
	for range 3000 {
		callers.Go(func() { _ = echo(c, time.Now().Add(time.Minute), big) })
	}
	wantPending(t, c, 1000)
	wantPromptClose(t, c, &callers)
}

// Commands that expire while the connection is closed fail once, and their callers learn nothing of others.
func TestSharedConnCloseAndExpire(t *testing.T) {
	r := testRedis
	for range 50 {
		c := newSharedConn(0, r.DialContext)
		at := time.Now().Add(5 * time.Millisecond)
		var callers sync.WaitGroup
		for g := range 100 {
			callers.Go(func() {
				for i := 0; ; i++ {
					err := echo(c, at.Add(time.Duration(i%7)*100*time.Microsecond), fmt.Sprint(g, "-", i))
					if errors.Is(err, errMixedUp) || errors.Is(err, redis.ErrNil) {
						t.Error(err)
					}
					if errors.Is(err, errConnClosed) {
						return
					}
				}
			})
		}
		time.Sleep(time.Until(at))
		c.close()
		callers.Wait()
	}
}

// What waits for replies takes no more room the longer it goes on.
func TestSharedConnMemory(t *testing.T) {
	var q commandQueue
	for i := range 100_000 {
		q = append(q, new(pendingCommand), new(pendingCommand))
		if i%10 > 0 {
			q.pop()
			q.pop()
		}
		for i%10 == 9 && len(q) > 2 {
			q.pop()
		}
	}
	if n := cap(q); n > 100 {
		t.Errorf("there is room for %d commands", n)
	}
}

// A Redis that has too many clients says so unasked, and hangs up. Once it has room all is well.
func TestSharedConnTooManyClients(t *testing.T) {
	r := redistest.New(t)
	r.Do(t, "CONFIG", "SET", "maxclients", 2)
	var others []redis.Conn
	for range 2 {
		c, err := r.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		others = append(others, c)
	}
	c := newShared(t, r.DialContext)
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for range 20 {
				start := time.Now()
				if err := echo(c, time.Now().Add(4*prompt), strings.Repeat("x", 300)); err == nil || time.Since(start) > prompt {
					t.Errorf("got %v after %s", err, time.Since(start))
				}
			}
		})
	}
	callers.Wait()
	others[0].Close()
	wantPing(t, c)
}

// Closed, it fails all that waits and leaves no goroutine behind.
func TestSharedConnClose(t *testing.T) {
	r := redistest.New(t)
	before := runtime.NumGoroutine()
	for range 20 {
		c := newSharedConn(0, r.DialContext)
		wantPing(t, c)
		r.Signal(t, syscall.SIGSTOP)
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				if err := ping(c, time.Minute); err == nil {
					t.Error("a command has a reply after the end")
				}
			})
		}
		wantPending(t, c, 10)
		wantPromptClose(t, c, &callers)
		r.Signal(t, syscall.SIGCONT)
		if err := ping(c, time.Minute); !errors.Is(err, errConnClosed) {
			t.Errorf("got %v, want %v", err, errConnClosed)
		}
	}
	waittest.Eventually(t, prompt, func() error {
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Errorf("%d goroutines are left, there were %d", n, before)
		}
		return nil
	})
}

package redisdb

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// When another server becomes the master, what the log says of the last one is that, and not that the client has closed
// its connections.
func TestSentinelSwitchLog(t *testing.T) {
	t.Parallel()
	old, next := redistest.New(t), redistest.New(t)
	sentinel := redistest.NewSentinel(t, old.Port)
	log := new(telemetrytest.Log)
	c := newTestClient(t, redistest.SentinelURL(sentinel), log)
	deadline := time.Now().Add(10 * time.Second)
	read := NewScript("read", "return redis.call('GET', KEYS[1])", NoWrites)
	if _, err := c.Eval(deadline, read, []string{"apiKey:a"}); err != nil { // there is a shared connection
		t.Fatal(err)
	}
	old.Signal(t, syscall.SIGSTOP)
	failed := make(chan error, 1)
	go func() { // over the shared connection
		_, err := c.Eval(deadline, read, []string{"apiKey:a"})
		failed <- err
	}()
	go func() { // over one that does not respond to AUTH, so this may be sent to the next master
		_, _ = c.Write(deadline, "SET", "apiKey:a", "1")
	}()
	n := c.master.Load()
	waittest.Eventually(t, 5*time.Second, func() error {
		if n.shared.pending() == 0 || n.pool.Stats().ActiveCount == 0 {
			return errors.New("the commands are not on their way")
		}
		return nil
	})
	sentinel.Monitor(t, next.Port)
	if err := <-failed; !errors.Is(err, ErrUnavailable) || !MayHaveRun(err) {
		t.Errorf("the command that was on its way: %v", err)
	}
	if _, err := c.Write(deadline, "SET", "apiKey:b", "1"); err != nil || next.Int(t, "EXISTS", "apiKey:b") != 1 {
		t.Errorf("the next command: %v", err)
	}
	want := "[INFO] Redis " + next.TCP + " is the master now, no longer " + old.TCP + "\n"
	if log.String() != want {
		t.Errorf("log:\n%swant:\n%s", log, want)
	}
}

// A Sentinel that has promoted a replica counts before the others know, also if it is slow to say so: a master that was
// down, and is back, gets no new connection.
func TestSlowSentinelHasPromoted(t *testing.T) {
	t.Parallel()
	old, next := redistest.New(t), redistest.New(t)
	first, second := redistest.NewSentinel(t, old.Port), redistest.NewSentinel(t, old.Port)
	third := redistest.NewSentinel(t, next.Port, "sentinel config-epoch "+redistest.MasterName+" 1")
	var promoted atomic.Bool
	slow := redistest.NewProxyTo(t, func() *redistest.Server {
		if promoted.Load() {
			return &redistest.Server{Network: "tcp", Address: third.Address}
		}
		return &redistest.Server{Network: "tcp"} // nobody is there
	}, func([]byte) redistest.Fate {
		time.Sleep(locateTimeout / 5)
		return redistest.Pass
	})
	url := redistest.SentinelURL(first, second, &redistest.Sentinel{Address: slow.Address})
	c := newTestClient(t, url, new(telemetrytest.Log))
	n := c.master.Load()
	c.sentinels.mu.Lock()
	c.sentinels.askedAt = time.Time{} // the next connection asks again
	c.sentinels.mu.Unlock()
	promoted.Store(true)
	if _, err := n.dial(t.Context(), redialTimeout); err != errOtherMaster || c.master.Load().address != next.TCP {
		t.Errorf("the old master is connected to: %v; the master is %s", err, c.master.Load().address)
	}
}

// A Sentinel that names a higher epoch, of which most others do not hear, is wrong: it was cut off, or forgotten when the
// master was moved by hand. A process that starts finds the same master as one that runs.
func TestForgottenSentinel(t *testing.T) {
	t.Parallel()
	old, next := redistest.New(t), redistest.New(t)
	url := redistest.SentinelURL(redistest.NewSentinel(t, old.Port, "sentinel config-epoch "+redistest.MasterName+" 1"),
		redistest.NewSentinel(t, next.Port), redistest.NewSentinel(t, next.Port))
	began := time.Now()
	c := newTestClient(t, url, new(telemetrytest.Log))
	if took := time.Since(began); took < settleTime || c.master.Load().address != next.TCP {
		t.Errorf("after %s the master is %s, want %s", took, c.master.Load().address, next.TCP)
	}
	for range 3 { // that stays so
		time.Sleep(locateAge)
		conn, err := c.master.Load().dial(t.Context(), redialTimeout)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

// A Sentinel that hangs holds up neither the start nor a new connection for long, and connections that are made together
// ask the others once.
func TestSentinelHangs(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := redistest.New(t)
	second, third := redistest.NewSentinel(t, r.Port), redistest.NewSentinel(t, r.Port)
	url := redistest.SentinelURL(&redistest.Sentinel{Address: silent.Addr().String()}, second, third)
	began := time.Now()
	c := newTestClient(t, url, new(telemetrytest.Log))
	if took := time.Since(began); took > time.Second {
		t.Errorf("the start took %s", took)
	}
	n := c.master.Load()
	for range 5 {
		began := time.Now()
		conn, err := n.dial(t.Context(), redialTimeout)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if took := time.Since(began); took > 3*locateTimeout {
			t.Errorf("a connection took %s", took)
		}
		time.Sleep(locateAge) // the next one asks again
	}
	calls := func() int {
		info, _ := second.Do(t, "INFO", "commandstats").([]byte)
		return redistest.Calls(string(info), "sentinel|get-master-addr-by-name")
	}
	before := calls()
	Each(50, 50, func(int) {
		if conn, err := n.dial(t.Context(), redialTimeout); err == nil {
			conn.Close()
		}
	})
	if got := calls() - before; got > 10 {
		t.Errorf("50 connections asked a Sentinel %d times", got)
	}
}

// While no Sentinel knows the name any more the last master is used. If that is gone, the error says both.
func TestSentinelForgetsName(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	sentinel := redistest.NewSentinel(t, r.Port)
	c := newTestClient(t, redistest.SentinelURL(sentinel), new(telemetrytest.Log))
	n := c.master.Load()
	dial := func() error {
		conn, err := n.dial(t.Context(), 5*time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	}
	sentinel.Monitor(t, 0)
	time.Sleep(locateAge) // then it is asked again
	if err := dial(); err != nil {
		t.Errorf("the last master serves: %v", err)
	}
	r.Kill()
	err := dial()
	if !errors.Is(err, errNoSuchMaster) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the last master is gone: %v", err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	sentinel.Do(t, "SENTINEL", "MONITOR", redistest.MasterName, "127.0.0.1", r.Port, 2)
	waittest.Eventually(t, 5*time.Second, func() error {
		if c.sentinels.nameUnknown.Load() {
			return errors.New("the name is unknown")
		}
		return dial()
	})
}

// If no Sentinel can be used, the error says why of each.
func TestSentinelsError(t *testing.T) {
	t.Parallel()
	plain := redistest.New(t)
	url := redistest.SentinelURL(&redistest.Sentinel{Address: "127.0.0.1:1"}, &redistest.Sentinel{Address: plain.TCP})
	open := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		c, err := Open(ctx, testOptions(t, url, new(telemetrytest.Log)))
		if err == nil {
			c.Close()
			t.Fatal("there is no error")
		}
		return err
	}
	err := open(time.Second)
	if !strings.Contains(err.Error(), plain.TCP+": this is") { // a busy machine has not got to it
		err = open(10 * time.Second)
	}
	for _, want := range []string{"127.0.0.1:1: dial tcp", "; " + plain.TCP + ": this is not a Sentinel"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

package redisdb

import (
	"errors"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

func TestMemoryGauge(t *testing.T) {
	t.Parallel()
	var g memoryGauge
	asked := 0
	info := func() (string, error) {
		asked++
		return "used_memory:500\r\nmaxmemory:1000\r\n", nil
	}
	for _, step := range []struct {
		size int64
		want error
	}{{251, ErrFull}, {100, nil}, {151, ErrFull}, {150, nil}, {1, ErrFull}} {
		if got := g.claim(step.size, info); got != step.want {
			t.Errorf("%d: got %v, want %v", step.size, got, step.want)
		}
	}
	if asked != 1 {
		t.Errorf("Redis was asked %d times", asked)
	}
	g.readAt = time.Time{}
	if got := g.claim(1, func() (string, error) { return "", ErrUnavailable }); got != ErrUnavailable {
		t.Errorf("got %v of a Redis that does not respond", got)
	}
	if got := g.claim(1<<40, func() (string, error) { return "", nil }); got != nil { // it does not say
		t.Errorf("got %v of a Redis without a limit", got)
	}
}

// A caller is not held up by another one that waits for Redis longer.
func TestMemoryGaugeWait(t *testing.T) {
	t.Parallel()
	var g memoryGauge
	asks, replies, done := make(chan bool), make(chan bool), make(chan error)
	go func() {
		done <- g.claim(1, func() (string, error) {
			close(asks)
			<-replies
			return "", nil
		})
	}()
	<-asks
	go func() { done <- g.claim(1, func() (string, error) { return "", ErrUnavailable }) }()
	select {
	case err := <-done:
		if err != ErrUnavailable {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it waits for the other one")
	}
	close(replies)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A Redis whose memory is full refuses what can be done without, and is not unavailable because of that.
func TestWriteIfRoom(t *testing.T) {
	t.Parallel()
	r, log := redistest.New(t), new(telemetrytest.Log)
	c := newTestClient(t, r.URL(), log)
	write := func() error {
		return c.WriteIfRoom(time.Now().Add(prompt), 2, "SET", "cache:x", "{}", "EX", 60)
	}
	if err := write(); err != nil {
		t.Error(err)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	gauge := &c.master.Load().memory // as it was before Redis became full
	gauge.readAt, gauge.max = time.Now().Add(time.Minute), 0
	if err := write(); err != ErrFull || log.Count("[ERROR]") != 0 || c.master.Load().health.down.Load() {
		t.Errorf("got %v, log:\n%s", err, log)
	}
	gauge.readAt = time.Time{}
	if err := write(); err != ErrFull {
		t.Errorf("got %v", err)
	}
	r.Kill()
	gauge.readAt = time.Time{}
	if err := write(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v of a Redis that has ended", err)
	}
}

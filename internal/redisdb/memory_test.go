package redisdb

import (
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
		want bool
	}{{251, false}, {100, true}, {151, false}, {150, true}, {1, false}} {
		if got := g.hasRoom(step.size, info); got != step.want {
			t.Errorf("%d: %v", step.size, got)
		}
	}
	if asked != 1 {
		t.Errorf("Redis was asked %d times", asked)
	}
	g.readAt = time.Time{}
	if g.hasRoom(1, func() (string, error) { return "", ErrUnavailable }) {
		t.Error("there is room in a Redis that does not respond")
	}
	if !g.hasRoom(1<<40, func() (string, error) { return "", nil }) { // it does not say
		t.Error("there is no room in a Redis without a limit")
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
}

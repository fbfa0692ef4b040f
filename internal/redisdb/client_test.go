package redisdb

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
)

// At most maxWaiting callers wait for a master that does not respond; others are refused immediately.
func TestClusterWaitingLimit(t *testing.T) {
	c := redistest.SharedCluster(t)
	client := newTestClient(t, c.URL(), new(telemetrytest.Log))
	victim := c.MastersNow(t)[0]
	key := keyInSlot(victim.Slots(t)[0])
	read := NewScript("read", "return redis.call('GET', KEYS[1])", 0)
	victim.Signal(t, syscall.SIGSTOP)
	defer victim.Signal(t, syscall.SIGCONT)
	var callers sync.WaitGroup
	var refused atomic.Int64
	const more = 100
	for range maxWaiting + more {
		callers.Go(func() {
			if _, err := client.Eval(time.Now().Add(700*time.Millisecond), read, []string{key}); errors.Is(err, errTooManyPending) {
				refused.Add(1)
			}
		})
	}
	callers.Wait()
	if n := refused.Load(); n != more {
		t.Errorf("%d callers were refused, want %d", n, more)
	}
}

// BenchmarkKeySlot measures what finding the server of a key adds to a charge in a cluster.
func BenchmarkKeySlot(b *testing.B) {
	c := &Client{}
	c.slots[0].Store(new(node))
	key := "apiKey:temp_11111111-2222-4333-8444-555555555555"
	for b.Loop() {
		c.owner(Slot(key))
	}
}

// newTestClient returns a client of the Redis at rawURL, which is closed when the test ends.
func newTestClient(t *testing.T, rawURL string, log *telemetrytest.Log) *Client {
	t.Helper()
	url, err := ParseURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), Options{
		Url: url, Required: []Requirement{{Prefix: "apiKey:", Commands: "GET SET"}}, Log: telemetry.New(log),
		ProbeKey: func(i int) string { return "apiKey:{" + strconv.Itoa(i) + "}" },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// keyInSlot returns the name of a key in a slot.
func keyInSlot(slot int) string {
	for i := 0; ; i++ {
		if key := strconv.Itoa(i); Slot(key) == slot {
			return key
		}
	}
}

package main

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// At most maxWaiting callers wait for a master that does not respond; others are refused immediately.
func TestClusterWaitingLimit(t *testing.T) {
	c := useCluster(t)
	client := newTestClient(t, c.url(), new(logBuffer))
	victim := c.mastersNow(t)[0]
	key := "apiKey:" + slotKey(slotsOf(t, victim)[0])
	read := newScript("read", "return redis.call('GET', KEYS[1])", 0)
	victim.signal(t, syscall.SIGSTOP)
	defer victim.signal(t, syscall.SIGCONT)
	var callers sync.WaitGroup
	var refused atomic.Int64
	const more = 100
	for range maxWaiting + more {
		callers.Go(func() {
			if _, err := client.eval(time.Now().Add(700*time.Millisecond), read, []string{key}); errors.Is(err, errTooManyPending) {
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
	c := &redisClient{}
	c.slots[0].Store(new(redisNode))
	key := "apiKey:temp_11111111-2222-4333-8444-555555555555"
	for b.Loop() {
		c.owner(keySlot(key))
	}
}

// newTestClient returns a client of the Redis at rawURL, which is closed when the test ends.
func newTestClient(t *testing.T, rawURL string, log *logBuffer) *redisClient {
	t.Helper()
	url, err := parseRedisURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := openRedis(t.Context(), redisOptions{
		url: url, required: []requirement{{"apiKey:", "GET SET"}}, log: newLogger(log),
		probeKey: func(i int) string { return "apiKey:{" + strconv.Itoa(i) + "}" },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

package redisdb

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// At most maxWaiting callers wait for a master that does not respond; others are refused immediately.
func TestClusterWaitingLimit(t *testing.T) {
	c := redistest.SharedCluster(t)
	client := newTestClient(t, c.URL(), new(telemetrytest.Log))
	victim := c.MastersNow(t)[0]
	key := keyInSlot(victim.Slots(t)[0])
	read := NewScript("read", "return redis.call('GET', KEYS[1])", NoWrites)
	victim.Signal(t, syscall.SIGSTOP)
	defer victim.Signal(t, syscall.SIGCONT)
	var callers sync.WaitGroup
	var refused atomic.Int64
	const more = 100
	for range maxWaiting + more {
		callers.Go(func() {
			_, err := client.Eval(time.Now().Add(700*time.Millisecond), read, []string{key})
			if errors.Is(err, errTooManyPending) {
				refused.Add(1)
			}
		})
	}
	callers.Wait()
	if n := refused.Load(); n != more {
		t.Errorf("%d callers were refused, want %d", n, more)
	}
}

// What can be done without says nothing about the health of a master that does not respond, however many wait for it.
func TestClusterDispensable(t *testing.T) {
	c := redistest.SharedCluster(t)
	client := newTestClient(t, c.URL(), new(telemetrytest.Log))
	victim := c.MastersNow(t)[0]
	key := keyInSlot(victim.Slots(t)[0])
	victim.Signal(t, syscall.SIGSTOP)
	defer victim.Signal(t, syscall.SIGCONT)
	var callers sync.WaitGroup
	for range maxWaiting + 100 {
		callers.Go(func() {
			deadline := time.Now().Add(300 * time.Millisecond)
			if _, err := client.ReadSmall(deadline, "GETRANGE", key, 0, 9); !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	callers.Wait()
	if n := client.owner(key).health.failures.Load(); n > 0 {
		t.Errorf("%d failures are noted", n)
	}
}

// Callers wait for the owner of a slot until their deadline, but about maxWaiting at a time: a part of the cluster that
// is gone must not hold all of the service's connections.
func TestOwnerlessWaitingLimit(t *testing.T) {
	c := &Client{options: testOptions(t, "redis-cluster://localhost", new(telemetrytest.Log)), wake: make(chan struct{}, 1)}
	const more = 100
	var callers sync.WaitGroup
	var refused, late atomic.Int64
	for range maxWaiting + more {
		callers.Go(func() {
			began := time.Now()
			_, err := c.Read(began.Add(300*time.Millisecond), "GET", "apiKey:a")
			switch {
			case !errors.Is(err, ErrUnavailable) || MayHaveRun(err):
				t.Errorf("got %v", err)
			case errors.Is(err, errTooManyPending):
				refused.Add(1)
			case errors.Is(err, errNoOwner) && time.Since(began) > 200*time.Millisecond:
				late.Add(1)
			}
		})
	}
	callers.Wait()
	if refused, late := refused.Load(), late.Load(); refused > more || refused+late != maxWaiting+more {
		t.Errorf("%d callers were refused and %d waited, of %d", refused, late, maxWaiting+more)
	}
	if len(c.wake) != 1 {
		t.Error("no refresh was asked for")
	}
}

// ReadEach returns the replies in the order of the keys: of one server over one connection, of a cluster over several.
func TestReadEach(t *testing.T) {
	t.Parallel()
	keys := make([]string, 3*poolSize)
	for i := range keys {
		keys[i] = "apiKey:" + strconv.Itoa(i)
	}
	test := func(t *testing.T, c *Client) {
		deadline := time.Now().Add(prompt)
		for _, key := range keys {
			if _, err := c.Write(deadline, "SET", key, "value of "+key); err != nil {
				t.Fatal(err)
			}
		}
		got, err := redis.Strings(c.ReadEach(deadline, "GET", keys))
		if err != nil || len(got) != len(keys) {
			t.Fatalf("%d replies, %v", len(got), err)
		}
		for i, key := range keys {
			if want := "value of " + key; got[i] != want {
				t.Errorf("got %q, want %q", got[i], want)
			}
		}
		if got, err := c.ReadEach(deadline, "GET", nil); err != nil || len(got) != 0 {
			t.Errorf("no keys: got %q, %v", got, err)
		}
		if _, err := c.ReadEach(deadline, "LLEN", keys); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("a wrong type: got %v", err)
		}
	}
	t.Run("one server", func(t *testing.T) {
		c := newTestClient(t, testRedis.URL(), new(telemetrytest.Log))
		test(t, c)
		if n := c.master.Load().pool.Stats().ActiveCount; n != 1 {
			t.Errorf("%d connections were made", n)
		}
	})
	t.Run("a cluster", func(t *testing.T) {
		test(t, newTestClient(t, redistest.SharedCluster(t).URL(), new(telemetrytest.Log)))
	})
}

func TestEach(t *testing.T) {
	for _, n := range []int{0, 1, 7, 100} {
		for _, limit := range []int{1, 3, 200} {
			calls := make([]atomic.Int64, n)
			var now, most atomic.Int64
			Each(n, limit, func(i int) {
				if running := now.Add(1); running > int64(limit) {
					most.Store(running)
				}
				calls[i].Add(1)
				now.Add(-1)
			})
			for i := range calls {
				if got := calls[i].Load(); got != 1 {
					t.Errorf("Each(%d, %d): f(%d) was called %d times", n, limit, i, got)
				}
			}
			if most.Load() > 0 {
				t.Errorf("Each(%d, %d): %d calls at a time", n, limit, most.Load())
			}
		}
	}
}

// A small read does not wait for the replicas that a write waits for.
func TestReadSmallReplicas(t *testing.T) {
	t.Parallel()
	r := redistest.New(t) // has none
	options := testOptions(t, r.URL(), new(telemetrytest.Log))
	options.Replicas = 1
	c := open(t, options)
	script := NewScript("write", "return redis.call('SET', KEYS[1], 'new')", AllowOOM)
	r.Do(t, "SCRIPT", "LOAD", script.source)
	written := make(chan error, 1)
	go func() {
		_, err := c.Eval(time.Now().Add(prompt), script, []string{"apiKey:x"})
		written <- err
	}()
	waittest.Eventually(t, prompt, func() error {
		if got := r.String(t, "GETRANGE", "apiKey:x", 0, -1); got != "new" {
			return fmt.Errorf("the key is %q", got)
		}
		return nil
	})
	got, err := redis.String(c.ReadSmall(time.Now().Add(prompt), "GETRANGE", "apiKey:x", 0, 1))
	if err != nil || got != "ne" {
		t.Errorf("got %q, %v", got, err)
	}
	time.Sleep(50 * time.Millisecond) // in which the write would end if its WAIT had
	if len(written) > 0 {
		t.Error("it waited for the write")
	}
	if err := <-written; !errors.Is(err, errTooFewReplicas) {
		t.Errorf("the write: %v", err)
	}
}

// BenchmarkKeySlot measures what finding the server of a key adds to a charge in a cluster.
func BenchmarkKeySlot(b *testing.B) {
	c := &Client{}
	key := "apiKey:temp_11111111-2222-4333-8444-555555555555"
	c.slots[Slot(key)].Store(new(node))
	for b.Loop() {
		c.owner(key)
	}
}

// BenchmarkSlotDigits measures what a key in the slot of another costs, as in a rotation.
func BenchmarkSlotDigits(b *testing.B) {
	for i := 0; b.Loop(); i++ {
		SlotDigits("apiKey:temp_11111111-2222-4333-8444-55555555", i%slotCount, uint16(i*7919))
	}
}

// newTestClient returns a client of the Redis at rawURL, which is closed when the test ends.
func newTestClient(t *testing.T, rawURL string, log *telemetrytest.Log) *Client {
	t.Helper()
	return open(t, testOptions(t, rawURL, log))
}

// testOptions returns what newTestClient opens.
func testOptions(t *testing.T, rawURL string, log *telemetrytest.Log) Options {
	t.Helper()
	url, err := ParseURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		URL: url, Required: []Requirement{{Prefix: "apiKey:", Commands: "GET SET"}}, Log: log.Logger(),
		ProbeKey: func(i int) string { return "apiKey:{" + strconv.Itoa(i) + "}" },
	}
}

// open is Open with a client that is closed when the test ends.
func open(t *testing.T, options Options) *Client {
	t.Helper()
	c, err := Open(t.Context(), options)
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

package redisdb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"tollgate/internal/telemetry"

	"github.com/gomodule/redigo/redis"
)

// Options says how to use Redis.
type Options struct {
	Url      *URL
	Required []Requirement
	ProbeKey func(i int) string // returns the name of a key that never exists; the names have all slots
	Replicas int                // that must have a write before its reply counts; 0: Redis replicates when it likes
	Log      *telemetry.Logger
}

// Requirement names commands that the service needs on keys with a prefix.
type Requirement struct{ Prefix, Commands string }

const maxWaiting = 1024 // callers of one node of several: a dead one must not hold all of the service's connections

// Client runs commands and scripts on the Redis server that has their key: the one server, the master that
// Sentinels name, or a master of a Redis Cluster. Its methods may be called from any number of goroutines. They take a
// deadline and no context, for the reason that node has. Their errors are a redis.Error if Redis refuses this
// command alone, else they wrap ErrUnavailable.
//
// If there are several servers, a command that was certainly not executed is sent again until its deadline, each time
// to the server that has the key then. One that may have been executed is never sent twice.
//
// There is no library under it but redigo. The one for clusters on redigo, mna/redisc, has not changed since 2023, does
// not follow ASK on a pipelined connection, and notices a dead master only when another node redirects to the next.
type Client struct {
	Options
	single    *node                // the one server; nil if there are several
	master    atomic.Pointer[node] // that the Sentinels name
	sentinels *sentinelSet
	slots     [slotCount]atomic.Pointer[node] // the masters of a cluster

	wake  chan struct{} // asks for a refresh; holds one
	ctx   context.Context
	stop  context.CancelFunc
	loops sync.WaitGroup // of what runs in the background until stop, and of nodes that are being closed

	redirects [len(redirectNames)]atomic.Int64

	mu          sync.Mutex       // guards the fields below, and changes of master and slots
	nodes       map[string]*node // in use, by address
	masters     []*node          // those that decide charges, by address
	replicasAt  []string         // addresses of replicas, which also know the slots
	masterEpoch int64            // in which the Sentinels made master that
}

// Open connects to Redis and checks it, until ctx is done. Errors are those of the dial, of a server that is too
// old or denies a required command, and of one in another topology than the URL says. The caller closes the client.
func Open(ctx context.Context, options Options) (*Client, error) {
	c := &Client{Options: options, wake: make(chan struct{}, 1), nodes: make(map[string]*node)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	var err error
	switch options.Url.topology {
	case singleServer:
		c.single, err = c.openSingle(ctx)
	case sentinelMaster:
		err = c.openSentinels(ctx)
	case clusterServers:
		err = c.openCluster(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) openSingle(ctx context.Context) (*node, error) {
	server := nodeOptions{name: "Redis", dial: c.dialTo(c.Url.address), readyKey: c.anyProbeKey}
	server.Options = c.Options
	if err := server.check(ctx); err != nil {
		return nil, err
	}
	n := newNode(server)
	c.masters = []*node{n}
	return n, nil
}

// anyProbeKey returns a key that does not exist.
func (c *Client) anyProbeKey() string { return c.ProbeKey(0) }

// dialTo returns the function that dials address.
func (c *Client) dialTo(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		return c.Url.dial(ctx, address, timeout, more...)
	}
}

// Close ends all connections. Nobody may use the client any more.
func (c *Client) Close() {
	c.mu.Lock()
	c.stop() // from here on no background goroutine starts another
	c.mu.Unlock()
	c.loops.Wait()
	if c.single != nil {
		c.single.close()
	}
	for _, n := range c.nodes {
		n.close()
	}
}

// OneSlot reports whether a script may have keys of different slots.
func (c *Client) OneSlot() bool { return c.Url.topology != clusterServers }

// SameSlot reports whether a script may have both keys.
func (c *Client) SameSlot(a, b string) bool { return c.OneSlot() || Slot(a) == Slot(b) }

// Eval runs a script over a shared connection: its keys and arguments must be small, and so must its reply. All keys
// must hash to the slot of the first, unless oneSlot.
func (c *Client) Eval(deadline time.Time, s *Script, keys []string, args ...any) (any, error) {
	return c.run(deadline, keys[0], operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind})
}

// EvalLarge runs a script over a connection of a pool. All keys must hash to the slot of the first, unless oneSlot.
func (c *Client) EvalLarge(deadline time.Time, s *Script, keys []string, args ...any) (any, error) {
	op := operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind, large: true}
	return c.run(deadline, keys[0], op)
}

// Read runs one command that reads a key, over a connection of a pool. The reply may be nil.
func (c *Client) Read(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), large: true})
}

// ReadDispensable is read for what can be done without: that it is late or fails says nothing about Redis.
func (c *Client) ReadDispensable(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), kind: Dispensable, large: true})
}

// Write runs one command that writes a key, over a connection of a pool.
func (c *Client) Write(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), kind: Writes, large: true})
}

// ErrFull means that Redis has no memory to spare for what can be done without.
var ErrFull = errors.New("redis is short of memory")

// WriteIfRoom runs one command that writes size bytes to a key, over a connection of a pool, if Redis has memory to
// spare. It is not for requests, since it may look at Redis's memory first. Errors: ErrFull if nothing was written
// because of that.
func (c *Client) WriteIfRoom(deadline time.Time, size int, command, key string, args ...any) error {
	n := c.single
	if n == nil {
		n = c.owner(Slot(key))
	}
	if n == nil || !n.memory.hasRoom(int64(size), func() (string, error) { return n.memoryInfo(deadline) }) {
		return ErrFull
	}
	op := operation{name: command, args: commandArgs(key, args), kind: Dispensable, large: true}
	_, err := c.run(deadline, key, op)
	if IsOutOfMemory(err) {
		return ErrFull
	}
	return err
}

// ReadEach runs a command that reads a key once for each key.
func (c *Client) ReadEach(deadline time.Time, command string, keys []string) ([]any, error) {
	if c.single != nil {
		replies, err := c.single.doEach(deadline, command, keys)
		_, err = c.single.health.observe(command, nil, err)
		return replies, err
	}
	replies, errs := make([]any, len(keys)), make([]error, len(keys))
	var workers sync.WaitGroup
	for first := range min(len(keys), poolSize) {
		workers.Go(func() {
			for i := first; i < len(keys); i += poolSize {
				replies[i], errs[i] = c.Read(deadline, command, keys[i])
			}
		})
	}
	workers.Wait()
	return replies, errors.Join(errs...)
}

func (c *Client) run(deadline time.Time, key string, op operation) (any, error) {
	if c.single != nil {
		reply, err := c.single.run(deadline, op, false)
		return c.single.observe(op, reply, err)
	}
	return c.route(deadline, key, op)
}

// route runs op on the server that has key, wherever it moves.
func (c *Client) route(deadline time.Time, key string, op operation) (any, error) {
	slot := Slot(key)
	var target *node // other than the owner, for one attempt
	for failures := 0; ; failures++ {
		n, asking := c.owner(slot), target != nil
		if asking {
			n = target
		}
		if n == nil {
			c.refreshSoon()
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, unsentError{errNoOwner})
		}
		// One server has maxPending as its only bound: there are no others that it could hold up.
		if n.waiting.Add(1) > maxWaiting && !c.OneSlot() {
			n.waiting.Add(-1)
			return nil, n.health.failed(op.name, unsentError{errTooManyPending})
		}
		reply, err := n.run(deadline, op, asking)
		var pause time.Duration
		if err != nil {
			target, pause = c.redirect(n, slot, err, failures)
		}
		if err == nil || pause == noRetry {
			n.waiting.Add(-1)
			return n.observe(op, reply, err)
		}
		if !time.Now().Add(pause).Before(deadline) {
			n.waiting.Add(-1)
			return nil, n.health.failed(op.name, err)
		}
		time.Sleep(pause)
		n.waiting.Add(-1)
	}
}

// owner returns the server that has a slot, nil if none is known.
func (c *Client) owner(slot int) *node {
	if n := c.master.Load(); n != nil {
		return n
	}
	return c.slots[slot].Load()
}

// deciding returns the servers that decide charges.
func (c *Client) deciding() []*node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.masters
}

// Scan does what node.scan does, on each master.
func (c *Client) Scan(pattern string, count int, timeout time.Duration, f func(names []string) error) error {
	for _, n := range c.deciding() {
		if err := n.scan(pattern, count, timeout, f); err != nil {
			return err
		}
	}
	return nil
}

// Ready returns an error if no server would decide a charge.
func (c *Client) Ready(deadline time.Time) error {
	nodes := c.deciding()
	results := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() {
			err := n.ready(deadline)
			if err != nil { // as after a failover that no command has met yet
				c.refreshSoon()
			}
			results <- err
		}()
	}
	err := fmt.Errorf("%w: %w", ErrUnavailable, errNoOwner)
	for range nodes {
		if err = <-results; err == nil {
			return nil
		}
	}
	return err
}

// WriteMetrics writes the state of the connections, and of each server, which it queries.
func (c *Client) WriteMetrics(e *telemetry.Page) {
	nodes := c.deciding()
	up := make([]float64, len(nodes))
	var queries sync.WaitGroup
	for i, n := range nodes {
		queries.Go(func() {
			if n.ready(time.Now().Add(redialTimeout)) == nil {
				up[i] = 1
			}
		})
	}
	queries.Wait()
	write := func(name, kind, help string, value func(i int, n *node) float64) {
		e.Family(name, kind, help)
		for i, n := range nodes {
			if n.address == "" {
				e.Sample(name, value(i, n))
			} else {
				e.Sample(name, value(i, n), "node", n.address)
			}
		}
	}
	write("redis_up", "gauge", "1 if Redis would decide a charge, else 0.",
		func(i int, _ *node) float64 { return up[i] })
	write("redis_pool_connections", "gauge", "Connections of the pool.",
		func(_ int, n *node) float64 { return float64(n.pool.Stats().ActiveCount) })
	write("redis_pool_idle_connections", "gauge", "Idle connections of the pool.",
		func(_ int, n *node) float64 { return float64(n.pool.Stats().IdleCount) })
	write("redis_pool_waits_total", "counter", "Times that a caller waited for a connection of the pool.",
		func(_ int, n *node) float64 { return float64(n.pool.Stats().WaitCount) })
	write("redis_pool_wait_seconds_total", "counter", "Time that callers waited for a connection of the pool.",
		func(_ int, n *node) float64 { return n.pool.Stats().WaitDuration.Seconds() })
	write("redis_pipeline_commands", "gauge", "Commands of the shared connection that wait for their reply.",
		func(_ int, n *node) float64 { return float64(n.shared.pending()) })
	write("redis_errors_total", "counter", "Commands that found Redis unavailable.",
		func(_ int, n *node) float64 { return float64(n.health.failures.Load()) })
	e.Family("redis_redirects_total", "counter", "Commands that were sent again because they had not been executed.")
	for kind, name := range redirectNames {
		e.Sample("redis_redirects_total", float64(c.redirects[kind].Load()), "kind", name)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// redisOptions says how to use Redis.
type redisOptions struct {
	url      *redisURL
	required []requirement
	probeKey func(i int) string // returns the name of a key that never exists; the names have all slots
	replicas int                // that must have a write before its reply counts; 0: Redis replicates when it likes
	log      *logger
}

// requirement names commands that the service needs on keys with a prefix.
type requirement struct{ prefix, commands string }

const maxWaiting = 1024 // callers of one node of several: a dead one must not hold all of the service's connections

// redisClient runs commands and scripts on the Redis server that has their key: the one server, the master that
// Sentinels name, or a master of a Redis Cluster. Its methods may be called from any number of goroutines. They take a
// deadline and no context, for the reason that redisNode has. Their errors are a redis.Error if Redis refuses this
// command alone, else they wrap ErrUnavailable.
//
// If there are several servers, a command that was certainly not executed is sent again until its deadline, each time
// to the server that has the key then. One that may have been executed is never sent twice.
//
// There is no library under it but redigo. The one for clusters on redigo, mna/redisc, has not changed since 2023, does
// not follow ASK on a pipelined connection, and notices a dead master only when another node redirects to the next.
type redisClient struct {
	redisOptions
	single    *redisNode                // the one server; nil if there are several
	master    atomic.Pointer[redisNode] // that the Sentinels name
	sentinels *sentinelSet
	slots     [slotCount]atomic.Pointer[redisNode] // the masters of a cluster

	wake  chan struct{} // asks for a refresh; holds one
	ctx   context.Context
	stop  context.CancelFunc
	loops sync.WaitGroup // of what runs in the background until stop, and of nodes that are being closed

	redirects [len(redirectNames)]atomic.Int64

	mu          sync.Mutex            // guards the fields below, and changes of master and slots
	nodes       map[string]*redisNode // in use, by address
	masters     []*redisNode          // those that decide charges, by address
	replicasAt  []string              // addresses of replicas, which also know the slots
	masterEpoch int64                 // in which the Sentinels made master that
}

// openRedis connects to Redis and checks it, until ctx is done. Errors are those of the dial, of a server that is too
// old or denies a required command, and of one in another topology than the URL says. The caller closes the client.
func openRedis(ctx context.Context, options redisOptions) (*redisClient, error) {
	c := &redisClient{redisOptions: options, wake: make(chan struct{}, 1), nodes: make(map[string]*redisNode)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	var err error
	switch options.url.topology {
	case oneServer:
		c.single, err = c.openSingle(ctx)
	case sentinelMaster:
		err = c.openSentinels(ctx)
	case redisCluster:
		err = c.openCluster(ctx)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *redisClient) openSingle(ctx context.Context) (*redisNode, error) {
	server := nodeOptions{name: "Redis", dial: c.dialTo(c.url.address), readyKey: c.anyProbeKey}
	server.redisOptions = c.redisOptions
	if err := server.check(ctx); err != nil {
		return nil, err
	}
	n := newRedisNode(server)
	c.masters = []*redisNode{n}
	return n, nil
}

// anyProbeKey returns a key that does not exist.
func (c *redisClient) anyProbeKey() string { return c.probeKey(0) }

// dialTo returns the function that dials address.
func (c *redisClient) dialTo(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		return c.url.dial(ctx, address, timeout, more...)
	}
}

// close ends all connections. Nobody may use the client any more.
func (c *redisClient) close() {
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

// oneSlot reports whether a script may have keys of different slots.
func (c *redisClient) oneSlot() bool { return c.url.topology != redisCluster }

// sameSlot reports whether a script may have both keys.
func (c *redisClient) sameSlot(a, b string) bool { return c.oneSlot() || keySlot(a) == keySlot(b) }

// eval runs a script over a shared connection: its keys and arguments must be small, and so must its reply. All keys
// must hash to the slot of the first, unless oneSlot.
func (c *redisClient) eval(deadline time.Time, s *script, keys []string, args ...any) (any, error) {
	return c.run(deadline, keys[0], operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind})
}

// evalLarge runs a script over a connection of a pool. All keys must hash to the slot of the first, unless oneSlot.
func (c *redisClient) evalLarge(deadline time.Time, s *script, keys []string, args ...any) (any, error) {
	op := operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind, large: true}
	return c.run(deadline, keys[0], op)
}

// read runs one command that reads a key, over a connection of a pool. The reply may be nil.
func (c *redisClient) read(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), large: true})
}

// readDispensable is read for what can be done without: that it is late or fails says nothing about Redis.
func (c *redisClient) readDispensable(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), kind: dispensable, large: true})
}

// write runs one command that writes a key, over a connection of a pool.
func (c *redisClient) write(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.run(deadline, key, operation{name: command, args: commandArgs(key, args), kind: writes, large: true})
}

// errFull means that Redis has no memory to spare for what can be done without.
var errFull = errors.New("redis is short of memory")

// writeIfRoom runs one command that writes size bytes to a key, over a connection of a pool, if Redis has memory to
// spare. It is not for requests, since it may look at Redis's memory first. Errors: errFull if nothing was written
// because of that.
func (c *redisClient) writeIfRoom(deadline time.Time, size int, command, key string, args ...any) error {
	n := c.single
	if n == nil {
		n = c.owner(keySlot(key))
	}
	if n == nil || !n.memory.hasRoom(int64(size), func() (string, error) { return n.memoryInfo(deadline) }) {
		return errFull
	}
	op := operation{name: command, args: commandArgs(key, args), kind: dispensable, large: true}
	_, err := c.run(deadline, key, op)
	if isOutOfMemory(err) {
		return errFull
	}
	return err
}

// readEach runs a command that reads a key once for each key.
func (c *redisClient) readEach(deadline time.Time, command string, keys []string) ([]any, error) {
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
				replies[i], errs[i] = c.read(deadline, command, keys[i])
			}
		})
	}
	workers.Wait()
	return replies, errors.Join(errs...)
}

func (c *redisClient) run(deadline time.Time, key string, op operation) (any, error) {
	if c.single != nil {
		reply, err := c.single.run(deadline, op, false)
		return c.single.observe(op, reply, err)
	}
	return c.route(deadline, key, op)
}

// route runs op on the server that has key, wherever it moves.
func (c *redisClient) route(deadline time.Time, key string, op operation) (any, error) {
	slot := keySlot(key)
	var target *redisNode // other than the owner, for one attempt
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
		if n.waiting.Add(1) > maxWaiting && !c.oneSlot() {
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
func (c *redisClient) owner(slot int) *redisNode {
	if n := c.master.Load(); n != nil {
		return n
	}
	return c.slots[slot].Load()
}

// deciding returns the servers that decide charges.
func (c *redisClient) deciding() []*redisNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.masters
}

// scan does what redisNode.scan does, on each master.
func (c *redisClient) scan(pattern string, count int, timeout time.Duration, f func(names []string) error) error {
	for _, n := range c.deciding() {
		if err := n.scan(pattern, count, timeout, f); err != nil {
			return err
		}
	}
	return nil
}

// ready returns an error if no server would decide a charge.
func (c *redisClient) ready(deadline time.Time) error {
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

// writeMetrics writes the state of the connections, and of each server, which it queries.
func (c *redisClient) writeMetrics(e *exposition) {
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
	write := func(name, kind, help string, value func(i int, n *redisNode) float64) {
		e.family(name, kind, help)
		for i, n := range nodes {
			if n.address == "" {
				e.sample(name, value(i, n))
			} else {
				e.sample(name, value(i, n), "node", n.address)
			}
		}
	}
	write("redis_up", "gauge", "1 if Redis would decide a charge, else 0.",
		func(i int, _ *redisNode) float64 { return up[i] })
	write("redis_pool_connections", "gauge", "Connections of the pool.",
		func(_ int, n *redisNode) float64 { return float64(n.pool.Stats().ActiveCount) })
	write("redis_pool_idle_connections", "gauge", "Idle connections of the pool.",
		func(_ int, n *redisNode) float64 { return float64(n.pool.Stats().IdleCount) })
	write("redis_pool_waits_total", "counter", "Times that a caller waited for a connection of the pool.",
		func(_ int, n *redisNode) float64 { return float64(n.pool.Stats().WaitCount) })
	write("redis_pool_wait_seconds_total", "counter", "Time that callers waited for a connection of the pool.",
		func(_ int, n *redisNode) float64 { return n.pool.Stats().WaitDuration.Seconds() })
	write("redis_pipeline_commands", "gauge", "Commands of the shared connection that wait for their reply.",
		func(_ int, n *redisNode) float64 { return float64(n.shared.pending()) })
	write("redis_errors_total", "counter", "Commands that found Redis unavailable.",
		func(_ int, n *redisNode) float64 { return float64(n.health.failures.Load()) })
	e.family("redis_redirects_total", "counter", "Commands that were sent again because they had not been executed.")
	for kind, name := range redirectNames {
		e.sample("redis_redirects_total", float64(c.redirects[kind].Load()), "kind", name)
	}
}

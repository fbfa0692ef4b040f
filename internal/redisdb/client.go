package redisdb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/telemetry"
)

// Options says which Redis to use, and how.
type Options struct {
	URL      *URL          // must not be nil
	Required []Requirement // what the user of the URL must be allowed to do

	// Replicas is how many replicas of a master must have a write before its reply counts. If it is 0, Redis replicates
	// when it likes, and a failover may lose writes that have succeeded.
	Replicas int

	// ProbeKey returns the i-th of any number of keys that never exist, i ≥ 0. The names must match the prefix of a
	// Requirement, and be spread over all slots of a cluster. It may be called concurrently.
	ProbeKey func(i int) string

	Log *telemetry.Logger // is told when a server fails, recovers or changes its role
}

// Requirement names commands, separated by spaces and in capital letters, that the service needs on the keys with a
// prefix. A server that denies one is not used: Open fails, and Ready does.
type Requirement struct {
	Prefix   string // of the keys
	Commands string // such as "GET SET"
}

const maxWaiting = 1024 // callers of one master of a cluster: a dead one must not hold all of the service's connections

// Client is the way to Redis. Its methods may be called from any number of goroutines.
//
// The errors of its methods are a redis.Error of redigo if Redis refuses this command alone, as for a wrong type, or if
// the script itself returns an error. All others wrap ErrUnavailable, unless a method says otherwise.
type Client struct {
	options   Options
	master    atomic.Pointer[node] // the one server, or the one that the Sentinels name; nil in a cluster
	sentinels *sentinelSet
	slots     [slotCount]atomic.Pointer[node] // the masters of a cluster

	wake  chan struct{} // asks for a refresh; holds one
	ctx   context.Context
	stop  context.CancelFunc
	loops sync.WaitGroup // of what runs in the background until stop, and of nodes that are being closed

	redirects [len(redirectNames)]atomic.Int64
	started   atomic.Bool
	unowned   atomic.Int64 // slots of a cluster without an owner
	ownerless atomic.Int64 // callers that wait for the owner of such a slot

	mu         sync.Mutex         // guards the fields below, and changes of master and slots
	nodes      map[string]*node   // in use, by address
	masters    []*node            // that take writes, sorted by address; the slice is replaced, never changed
	replicasAt []string           // addresses of replicas, which also know the slots
	names      nodeNames          // of the servers, also of those that were named of late
	listing    func() []NodeState // what Nodes waits for; nil: nobody does

	named, failed namedMaster // of masterInUse
	changedAt     time.Time   // when the Sentinels last made another server the master
	rival         namedMaster // see rival, as the Sentinels last said
	rivalSince    time.Time   // since when they have said so
}

// Open connects to Redis and checks it. Until ctx is done it waits for what may pass by itself: a server that is not
// there yet, loads its data or is being replaced. It fails at once if the server is older than Redis 7.0 or Valkey 7.2,
// if it denies the user or a required command, and if it is in another topology than the URL says. Of a cluster one
// master is enough; the log is warned of those that cannot be reached. It is also warned of settings with which Redis
// may lose data. The caller closes the client.
func Open(ctx context.Context, options Options) (*Client, error) {
	c := &Client{options: options, wake: make(chan struct{}, 1), nodes: make(map[string]*node), names: make(nodeNames)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	open := c.openSingle
	switch options.URL.topology {
	case sentinelMaster:
		open = c.openSentinels
	case clusterServers:
		open = c.openCluster
	}
	if err := options.URL.openChecked(ctx, open); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// openSingle makes the one server the master, which it stays. The node begins to dial in the background before the
// server is checked: if the check fails, the caller closes the client, and the node with it.
func (c *Client) openSingle(ctx context.Context) error {
	n := c.newNode("", c.dialTo(c.options.URL.address), c.anyProbeKey, nil)
	c.mu.Lock()
	c.setMaster(n)
	c.mu.Unlock()
	return untilServes(ctx, func() error { return n.check(ctx) })
}

// setMaster makes n the master of all keys. The caller holds c.mu.
func (c *Client) setMaster(n *node) {
	c.master.Store(n)
	c.masters = []*node{n}
	c.nodes = map[string]*node{n.address: n}
}

// anyProbeKey returns a key that does not exist.
func (c *Client) anyProbeKey() string { return c.options.ProbeKey(0) }

// dialTo returns the function that dials address.
func (c *Client) dialTo(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		return c.options.URL.dial(ctx, address, timeout, more...)
	}
}

// Close ends all connections. Commands that still wait fail. Nobody may use the client any more.
func (c *Client) Close() {
	c.mu.Lock()
	c.stop() // from here on no background goroutine starts another
	c.mu.Unlock()
	c.loops.Wait()
	for _, n := range c.nodes {
		n.close()
	}
}

// OneSlot reports whether a script may have any keys together. In a cluster it may not.
func (c *Client) OneSlot() bool { return c.options.URL.topology != clusterServers }

// SameSlot reports whether a script may have both keys.
func (c *Client) SameSlot(a, b string) bool { return c.OneSlot() || Slot(a) == Slot(b) }

// Eval runs a script over the shared connection, and returns its reply as redigo does. The script must be fast, and its
// keys, arguments and reply small: about a kilobyte, not a megabyte. There must be at least one key. Unless OneSlot,
// all must hash to the same slot.
func (c *Client) Eval(deadline time.Time, s *Script, keys []string, args ...any) (any, error) {
	return c.EvalQueued(deadline, nil, s, keys, args...)
}

// EvalQueued does what Eval does, and calls queued, unless it is nil, as soon as the script is queued on the shared
// connection, if it was run before. What is queued there afterwards, also by other calls, runs after it, unless Redis
// has to be sent the script again: because it has forgotten it, or because the keys are on another server by now.
func (c *Client) EvalQueued(deadline time.Time, queued func(), s *Script, keys []string, args ...any) (any, error) {
	op := operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind, queued: queued}
	return c.route(deadline, keys[0], op)
}

// EvalLarge does what Eval does, over a connection of the pool: arguments and reply may have any size.
func (c *Client) EvalLarge(deadline time.Time, s *Script, keys []string, args ...any) (any, error) {
	op := operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: s.kind, large: true}
	return c.route(deadline, keys[0], op)
}

// EvalDispensable does what EvalLarge does, for what can be done without: that it is late or fails says nothing about
// Redis, and it does not wait for replicas.
func (c *Client) EvalDispensable(deadline time.Time, s *Script, keys []string, args ...any) (any, error) {
	op := operation{name: s.name, script: s, args: scriptArgs(keys, args), kind: kindDispensable, large: true}
	return c.route(deadline, keys[0], op)
}

// Read runs one command that reads a key, over a connection of the pool. The reply may be nil.
func (c *Client) Read(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.route(deadline, key, operation{name: command, args: commandArgs(key, args), large: true})
}

// ReadDispensable does what Read does, for what can be done without: that it is late or fails says nothing about Redis.
func (c *Client) ReadDispensable(deadline time.Time, command, key string, args ...any) (any, error) {
	op := operation{name: command, args: commandArgs(key, args), kind: kindDispensable, large: true}
	return c.route(deadline, key, op)
}

// ReadSmall does what ReadDispensable does, over a connection that only such reads share. The command must be fast, and
// its reply small: 16 KiB at most.
func (c *Client) ReadSmall(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.route(deadline, key, operation{name: command, args: commandArgs(key, args), kind: kindDispensable})
}

// WriteDispensable does what Write does, for a write that may be lost. Its delay or failure does not mark Redis as
// unavailable, and it does not wait for replicas.
func (c *Client) WriteDispensable(deadline time.Time, command, key string, args ...any) (any, error) {
	return c.ReadDispensable(deadline, command, key, args...)
}

// ReadEach runs a command that reads a key once for each of keys, and returns the replies in their order: in one
// pipeline or, in a cluster, over several connections at a time. If one fails the replies are of no use. Behind
// Sentinels, the whole pipeline is then sent again if Redis has refused that one for now: reading twice does no harm.
func (c *Client) ReadEach(deadline time.Time, command string, keys []string) ([]any, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	if c.OneSlot() {
		return redis.Values(c.route(deadline, keys[0], operation{name: command, each: keys, large: true}))
	}
	replies, errs := make([]any, len(keys)), make([]error, len(keys))
	Each(len(keys), poolSize, func(i int) { replies[i], errs[i] = c.Read(deadline, command, keys[i]) })
	return replies, errors.Join(errs...)
}

// Write runs one command that writes a key, over a connection of the pool.
func (c *Client) Write(deadline time.Time, command, key string, args ...any) (any, error) {
	op := operation{name: command, args: commandArgs(key, args), kind: kindWrite, large: true}
	return c.route(deadline, key, op)
}

// ErrFull means that Redis has no memory to spare for what can be done without.
var ErrFull = errors.New("redis is short of memory")

// WriteIfRoom runs one command that writes about size bytes to a key, over a connection of the pool, if that leaves a
// quarter of Redis's memory (maxmemory) free. It is for what can be done without: a failure says nothing about Redis,
// and it does not wait for replicas. It is not for requests, since it may have to ask for Redis's memory first.
// Errors: ErrFull if nothing was written for want of memory; ErrUnavailable.
func (c *Client) WriteIfRoom(deadline time.Time, size int, command, key string, args ...any) error {
	return c.doIfRoom(deadline, size, key, operation{name: command, args: commandArgs(key, args)})
}

// EvalIfRoom does what WriteIfRoom does with a script, whose keys and arguments are those of Eval.
func (c *Client) EvalIfRoom(deadline time.Time, size int, s *Script, keys []string, args ...any) error {
	return c.doIfRoom(deadline, size, keys[0], operation{name: s.name, script: s, args: scriptArgs(keys, args)})
}

// doIfRoom runs op, which writes about size bytes to a key.
func (c *Client) doIfRoom(deadline time.Time, size int, key string, op operation) error {
	n := c.owner(key)
	if n == nil {
		c.refreshSoon()
		return fmt.Errorf("%w: %w", ErrUnavailable, errNoOwner)
	}
	switch err := n.memory.claim(int64(size), func() (string, error) { return n.memoryInfo(deadline) }); {
	case err == ErrFull:
		return err
	case err != nil:
		c.refreshSoon()
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	op.kind, op.large = kindDispensable, true
	_, err := c.route(deadline, key, op)
	if IsOutOfMemory(err) {
		return ErrFull
	}
	return err
}

// route runs op on the server that has key, wherever it moves.
func (c *Client) route(deadline time.Time, key string, op operation) (any, error) {
	var target *node // other than the owner, for one attempt
	for failures := 0; ; failures++ {
		n, asking := target, target != nil
		if !asking {
			n = c.owner(key)
		}
		if n == nil {
			if err := c.awaitOwner(deadline, failures); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, unsentError{err})
			}
			continue
		}
		// Where one server has all keys, maxPending is the only bound: there are no others that it could hold up.
		if n.waiting.Add(1) > maxWaiting && !c.OneSlot() {
			n.waiting.Add(-1)
			return nil, n.failed(op, unsentError{errTooManyPending})
		}
		reply, err := n.run(deadline, op, asking)
		pause := noRetry
		if err != nil {
			target, pause = c.redirect(n, key, err, failures)
		}
		if pause == noRetry {
			n.waiting.Add(-1)
			return n.observe(op, reply, err)
		}
		if !time.Now().Add(pause).Before(deadline) {
			n.waiting.Add(-1)
			return nil, n.failed(op, err)
		}
		time.Sleep(pause)
		n.waiting.Add(-1)
	}
}

// awaitOwner pauses before another attempt, after a number of failures, to find the owner of a slot that has none. It
// returns an error if there is no time left for one, or if too many wait already.
func (c *Client) awaitOwner(deadline time.Time, failures int) error {
	c.refreshSoon()
	defer c.ownerless.Add(-1)
	pause := retryPause(failures)
	switch {
	case c.ownerless.Add(1) > maxWaiting:
		return errTooManyPending
	case !time.Now().Add(pause).Before(deadline):
		return errNoOwner
	}
	time.Sleep(pause)
	return nil
}

// owner returns the server that has a key, nil if none is known.
func (c *Client) owner(key string) *node {
	if n := c.master.Load(); n != nil {
		return n
	}
	return c.slots[Slot(key)].Load()
}

// allMasters returns the servers that take writes now.
func (c *Client) allMasters() []*node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.masters
}

// Scan calls f with the names of all keys that match pattern, each at least once unless it comes or goes meanwhile. It
// takes steps in which Redis looks at about count keys, each of which may take timeout, and stops at the first error:
// one of f, or one that is as redigo returns it. Such an error says nothing about Redis as a whole.
func (c *Client) Scan(pattern string, count int, timeout time.Duration, f func(names []string) error) error {
	for _, n := range c.allMasters() {
		if err := n.scan(pattern, count, timeout, f); err != nil {
			return err
		}
	}
	return nil
}

// Ready returns nil as soon as one server would execute all required commands. If none would, or none has replied by
// the deadline, the error wraps ErrUnavailable.
func (c *Client) Ready(deadline time.Time) error {
	nodes := c.allMasters()
	results := make(chan error, len(nodes))
	go Each(len(nodes), len(nodes), func(i int) {
		err := nodes[i].ready(deadline)
		if err != nil { // as after a failover that no command has met yet
			c.refreshSoon()
		}
		results <- err
	})
	err := fmt.Errorf("%w: %w", ErrUnavailable, errNoOwner)
	for range nodes {
		if err = <-results; err == nil {
			return nil
		}
	}
	return err
}

// WriteMetrics writes the state of the connections, and of each server, which it queries for up to 900 ms. The samples
// of several servers have a label node, the address.
func (c *Client) WriteMetrics(page *telemetry.Page) {
	nodes := c.allMasters()
	up, took := make([]float64, len(nodes)), make([]float64, len(nodes))
	Each(len(nodes), len(nodes), func(i int) {
		began := time.Now()
		if nodes[i].ready(began.Add(redialTimeout)) == nil {
			up[i] = 1
		}
		took[i] = time.Since(began).Seconds()
	})
	write := func(name, kind, help string, value func(i int, n *node) float64) {
		page.Family(name, kind, help)
		for i, n := range nodes {
			if n.address == "" {
				page.Sample(name, value(i, n))
			} else {
				page.Sample(name, value(i, n), "node", n.address)
			}
		}
	}
	write("redis_up", "gauge", "1 if Redis would decide a charge, else 0.",
		func(i int, _ *node) float64 { return up[i] })
	write("redis_probe_seconds", "gauge", "How long the query for redis_up took.",
		func(i int, _ *node) float64 { return took[i] })
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
	if !c.OneSlot() {
		page.Single("redis_slots_unowned", "gauge", "Slots of the cluster without an owner.", float64(c.unowned.Load()))
	}
	page.Family("redis_redirects_total", "counter", "Commands that were sent again because they had not been executed.")
	for kind, name := range redirectNames {
		page.Sample("redis_redirects_total", float64(c.redirects[kind].Load()), "kind", name)
	}
}

// Each calls f with 0 to n-1, at most limit calls at a time, and returns when all have returned.
func Each(n, limit int, f func(i int)) {
	var workers sync.WaitGroup
	for first := range min(n, limit) {
		workers.Go(func() {
			for i := first; i < n; i += limit {
				f(i)
			}
		})
	}
	workers.Wait()
}

// sleep pauses for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

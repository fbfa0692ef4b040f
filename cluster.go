package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	maxWaiting = 1024 // callers of one node of several: a dead one must not hold all of the service's connections

	refreshTimeout  = 300 * time.Millisecond // of one node that is asked
	refreshPause    = 100 * time.Millisecond
	refreshInterval = time.Minute

	freeRedirects = 3 // in a row, before a pause: two nodes may name each other
	maxRetryPause = 50 * time.Millisecond
	retireDelay   = 2 * time.Second // in which all commands that were sent to a node have expired
	askedAge      = time.Minute     // for which a node without slots is kept after a command was sent there
)

var (
	errNoOwner     = errors.New("no server has the key's slot")
	errNoSlots     = errors.New("no node of the cluster has slots: create it with redis-cli --cluster create")
	errOtherMaster = errors.New("the Sentinels name another master")
	errNotMaster   = errors.New("the server that the Sentinels name is not a master")
	errNotCluster  = errors.New("this is not a node of a Redis Cluster: use redis:// (rediss:// for TLS)")
)

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
	server := nodeOptions{name: "Redis", dial: c.dialTo(c.url.address), readyKey: anyReadyKey}
	server.redisOptions = c.redisOptions
	if err := server.check(ctx); err != nil {
		return nil, err
	}
	n := newRedisNode(server)
	c.masters = []*redisNode{n}
	return n, nil
}

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

// scriptArgs returns the arguments of a script, with a place for what names it.
func scriptArgs(keys []string, args []any) []any {
	all := append(make([]any, 0, 2+len(keys)+len(args)), nil, len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	return append(all, args...)
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

func commandArgs(key string, args []any) []any {
	return append(append(make([]any, 0, 1+len(args)), key), args...)
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

const noRetry time.Duration = -1

// redirect decides what follows err, with which n refused a command on a slot after that many failures: a pause, after
// which it is sent again, to target or, if that is nil, to the slot's owner. The pause is noRetry if the command may
// have been executed, or would be refused again.
func (c *redisClient) redirect(n *redisNode, slot int, err error, failures int) (target *redisNode,
	pause time.Duration) {
	kind, address := parseRedirect(err, n.address)
	if kind == noRedirect || kind != notNow && c.url.topology != redisCluster {
		if classify(err) == faultConnection {
			c.refreshSoon()
		}
		return nil, noRetry
	}
	c.redirects[kind].Add(1)
	pause = min(time.Millisecond<<min(failures, 10), maxRetryPause)
	if kind != notNow && failures < freeRedirects {
		pause = 0
	}
	switch kind {
	case movedSlot:
		c.moveSlot(n, slot, address)
	case askedSlot:
		target = c.nodeAt(address)
		target.askedAt.Store(time.Now().UnixNano())
		return target, pause // the map stays as it is until the slot has been moved
	case notNow:
		if classify(err) == faultDemoted {
			n.health.discardIdle()
		}
	}
	c.refreshSoon()
	return nil, pause
}

// moveSlot notes that the server at address has a slot, as n says.
func (c *redisClient) moveSlot(n *redisNode, slot int, address string) {
	if address == n.address {
		// The name now stands for another server, to which only new connections lead.
		c.replaceNode(n)
		return
	}
	owner := c.nodeAt(address)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[address] == owner {
		c.slots[slot].Store(owner)
	}
}

// nodeAt returns the node with an address, which it adds if need be.
func (c *redisClient) nodeAt(address string) *redisNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addNode(address)
}

// addNode is nodeAt if the caller holds c.mu.
func (c *redisClient) addNode(address string) *redisNode {
	if n := c.nodes[address]; n != nil {
		return n
	}
	n := newRedisNode(nodeOptions{
		redisOptions: c.redisOptions, name: "Redis " + address, address: address, dial: c.dialTo(address),
		redialed: c.refreshSoon, readyKey: func() string { return c.readyKeyOf(address) },
	})
	c.nodes[address] = n
	return n
}

// replaceNode replaces n by a node with the same address, unless that has happened already.
func (c *redisClient) replaceNode(n *redisNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[n.address] != n {
		return
	}
	delete(c.nodes, n.address)
	replacement := c.addNode(n.address)
	for i := range c.slots {
		c.slots[i].CompareAndSwap(n, replacement)
	}
	if i := slices.Index(c.masters, n); i >= 0 {
		c.masters = slices.Clone(c.masters)
		c.masters[i] = replacement
	}
	c.retire(n)
}

// retire closes a node that gets no more commands, after those that were sent to it have got their replies.
func (c *redisClient) retire(n *redisNode) {
	c.loops.Go(func() {
		select {
		case <-c.ctx.Done():
		case <-time.After(retireDelay):
		}
		n.close()
	})
}

// openCluster reads the map of slots from a seed, and checks every master.
func (c *redisClient) openCluster(ctx context.Context) error {
	timeout := redialTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline) / time.Duration(len(c.url.seeds))
	}
	var err error
	for {
		if failure := c.refreshSlots(ctx, timeout); failure != nil {
			return cmp.Or(err, failure) // out of time, what the masters said tells more
		}
		err = c.checkMasters(ctx)
		if kind, _ := parseRedirect(err, ""); err == nil || kind == noRedirect || ctx.Err() != nil {
			if err == nil {
				c.loops.Go(func() { c.refreshLoop(func() error { return c.refreshSlots(c.ctx, refreshTimeout) }) })
			}
			return err
		}
		time.Sleep(refreshPause) // a failover goes on, of which the seed does not know yet
	}
}

// checkMasters returns an error if one of the masters cannot serve tollgate.
func (c *redisClient) checkMasters(ctx context.Context) error {
	nodes := c.deciding()
	checks := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() {
			err := n.check(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", n.address, err)
			}
			checks <- err
		}()
	}
	var failure error
	for range nodes {
		failure = cmp.Or(failure, <-checks)
	}
	return failure
}

// refreshSoon asks for a refresh. It never blocks.
func (c *redisClient) refreshSoon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// refreshLoop calls refresh when it is asked for, and every refreshInterval.
func (c *redisClient) refreshLoop(refresh func() error) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-time.After(refreshInterval):
		}
		_ = refresh() // if nobody responds, the next command that fails asks for another
		select {
		case <-c.ctx.Done():
		case <-time.After(refreshPause):
		}
	}
}

// refreshSlots reads the map of slots from the first server that knows an owner for each, else from the one that knows
// most.
func (c *redisClient) refreshSlots(ctx context.Context, timeout time.Duration) error {
	var best slotMap
	var failure error
	for _, address := range c.slotSources() {
		m, err := c.readSlots(ctx, address, timeout)
		if err != nil {
			failure = cmp.Or(failure, fmt.Errorf("%s: %w", address, err))
			continue
		}
		if m.covered > best.covered {
			best = m
		}
		if m.covered == slotCount {
			break
		}
	}
	if best.covered == 0 {
		return cmp.Or(failure, errNoSlots)
	}
	c.useSlots(best)
	return nil
}

// slotSources returns the addresses of those that may know the slots: the masters, those without a failure first, then
// replicas, and the seeds, whose names are looked up again.
func (c *redisClient) slotSources() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var up, down []string
	for _, i := range rand.Perm(len(c.masters)) {
		if n := c.masters[i]; n.health.down.Load() {
			down = append(down, n.address)
		} else {
			up = append(up, n.address)
		}
	}
	return slices.Concat(up, c.replicasAt, c.url.seeds, down)
}

// readSlots reads the map of slots that the server at address has.
func (c *redisClient) readSlots(ctx context.Context, address string, timeout time.Duration) (slotMap, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.url.dial(ctx, address, timeout)
	if err != nil {
		return slotMap{}, err
	}
	defer conn.Close()
	// Not CLUSTER SHARDS: some managed services have only this.
	ranges, err := redis.Values(redis.DoContext(conn, ctx, "CLUSTER", "SLOTS"))
	if err != nil {
		if strings.Contains(err.Error(), "cluster support disabled") {
			err = errNotCluster
		}
		return slotMap{}, err
	}
	return parseSlots(ranges, address)
}

// useSlots makes the masters of m the owners of their slots, and retires the nodes that have none any more.
func (c *redisClient) useSlots(m slotMap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var owners [slotCount]*redisNode
	masters := make(map[string]*redisNode)
	for _, r := range m.ranges {
		n := c.addNode(r.master)
		masters[r.master] = n
		for slot := r.first; slot <= r.last; slot++ {
			owners[slot] = n
		}
	}
	for slot, n := range owners {
		if c.slots[slot].Load() != n {
			c.slots[slot].Store(n)
		}
	}
	c.logMasters(masters)
	c.masters = c.masters[:0:0]
	for _, address := range slices.Sorted(maps.Keys(masters)) {
		c.masters = append(c.masters, masters[address])
	}
	c.replicasAt = slices.Compact(slices.Sorted(slices.Values(m.replicas)))
	for address, n := range c.nodes {
		if masters[address] == nil && time.Since(time.Unix(0, n.askedAt.Load())) > askedAge {
			delete(c.nodes, address)
			c.retire(n)
		}
	}
}

// logMasters logs how the masters change. The caller holds c.mu.
func (c *redisClient) logMasters(masters map[string]*redisNode) {
	if len(c.masters) == 0 {
		return // at the start
	}
	for _, n := range c.masters {
		if masters[n.address] == nil {
			c.log.infof("%s has no slots any more", n.name)
		}
	}
	for address, n := range masters {
		if !slices.Contains(c.masters, n) {
			c.log.infof("Redis %s has slots now", address)
		}
	}
}

// readyKeyOf returns a key that would be in a slot of the master at address. It does not exist: no API key has braces.
func (c *redisClient) readyKeyOf(address string) string {
	for i := range slotCount * 16 { // enough that all slots are among them
		key := "apiKey:{" + strconv.Itoa(i) + "}"
		if n := c.slots[keySlot(key)].Load(); n != nil && n.address == address {
			return key
		}
	}
	return anyReadyKey()
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

// openSentinels connects to the master that Sentinels name, checks it, and follows it
// (https://redis.io/docs/latest/develop/reference/sentinel-clients/).
func (c *redisClient) openSentinels(ctx context.Context) error {
	c.sentinels = &sentinelSet{url: c.url, addresses: c.url.seeds}
	named, err := c.sentinels.first(ctx)
	if err != nil {
		return err
	}
	c.useMaster(named, true)
	if err := c.master.Load().check(ctx); err != nil {
		return fmt.Errorf("%s: %w", named.address, err)
	}
	c.loops.Go(func() {
		c.refreshLoop(func() error {
			if named, agreed := c.sentinels.newest(c.ctx); named.address != "" {
				c.useMaster(named, agreed)
			}
			return nil
		})
	})
	c.loops.Go(func() { c.sentinels.follow(c.ctx, c.refreshSoon) })
	return nil
}

// useMaster makes the server that Sentinels name the master, unless that is old news and not what they agree on. The
// connections to the last one end immediately: it may live on and take writes, which will be lost.
func (c *redisClient) useMaster(named namedMaster, agreed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil || named.epoch < c.masterEpoch && !agreed {
		return
	}
	c.masterEpoch = named.epoch
	old := c.master.Load()
	if old != nil && old.address == named.address {
		return
	}
	n := newRedisNode(nodeOptions{
		redisOptions: c.redisOptions, name: "Redis " + named.address, address: named.address,
		dial: c.dialMaster(named.address), redialed: c.refreshSoon, readyKey: anyReadyKey,
	})
	c.master.Store(n)
	c.masters = []*redisNode{n}
	c.nodes = map[string]*redisNode{n.address: n}
	if old != nil {
		c.log.infof("%s is the master now, no longer %s", n.name, old.address)
		c.loops.Go(old.close)
	}
}

// dialMaster returns a function that connects to the server at address if it is the master. A Sentinel is asked each
// time: a master that was down for a while is a master for some more time when it is back, but no longer theirs.
func (c *redisClient) dialMaster(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		if named, err := c.sentinels.first(ctx); err == nil {
			c.useMaster(named, false)
		} // without a Sentinel, the master that is known is the best guess
		if c.master.Load().address != address {
			return nil, errOtherMaster
		}
		conn, err := c.url.dial(ctx, address, timeout, more...)
		if err != nil {
			return nil, err
		}
		role, err := redis.Values(redis.DoContext(conn, ctx, "ROLE"))
		if err == nil && len(role) > 0 {
			if name, _ := redis.String(role[0], nil); name != "master" {
				err = errNotMaster
			}
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
}

package redisdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	refreshTimeout  = 300 * time.Millisecond // of one node that is asked for the slots
	refreshPause    = 100 * time.Millisecond // at least, between two refreshes
	refreshInterval = time.Minute            // at most
	unownedInterval = time.Second            // the same while slots have no owner

	freeRedirects = 3 // in a row, before a pause: two nodes may name each other
	maxRetryPause = 50 * time.Millisecond
	retireDelay   = 2 * time.Second // after it, all commands that were sent to a node have expired
	askedAge      = time.Minute     // for which a node without slots is kept after a command was sent there with ASKING
)

var (
	errNoOwner    = errors.New("no server has the key's slot")
	errNoSlots    = errors.New("no node of the cluster has slots: create it with redis-cli --cluster create")
	errNotCluster = setupError("this is not a node of a Redis Cluster: use redis:// (rediss:// for TLS)")
)

const noRetry time.Duration = -1

// redirect decides what follows err, with which n has refused a command on key after a number of failures: a pause,
// after which the command is sent again, to target or, if that is nil, to the key's owner. The pause is noRetry if the
// command may have been executed, or would be refused again.
func (c *Client) redirect(n *node, key string, err error, failures int) (target *node, pause time.Duration) {
	kind, address := parseRedirect(err, n.address)
	if !c.options.URL.topology.follows(kind) {
		if classify(err) == faultConnection {
			c.refreshSoon()
		}
		return nil, noRetry
	}
	c.redirects[kind].Add(1)
	pause = retryPause(failures)
	if kind != notNow && failures < freeRedirects {
		pause = 0
	}
	switch kind {
	case movedSlot:
		c.moveSlot(n, Slot(key), address)
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

// retryPause returns the pause before another attempt, after a number of failures.
func retryPause(failures int) time.Duration {
	return min(time.Millisecond<<min(failures, 10), maxRetryPause)
}

// follows reports whether a command that was refused with an error of that kind is sent again.
func (t topology) follows(kind redirectKind) bool {
	switch t {
	case clusterServers:
		return kind != noRedirect
	case sentinelMaster:
		return kind == notNow
	}
	return false // there is no other server
}

// moveSlot notes that the server at address has a slot, as n says.
func (c *Client) moveSlot(n *node, slot int, address string) {
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
func (c *Client) nodeAt(address string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addNode(address, nil)
}

// addNode does what nodeAt does. A node that is added has that health or, if it is nil, one of its own. The caller
// holds c.mu.
func (c *Client) addNode(address string, h *health) *node {
	if n := c.nodes[address]; n != nil {
		return n
	}
	n := c.newNode(address, c.dialTo(address), func() string { return c.probeKeyOf(address) }, h)
	c.nodes[address] = n
	return n
}

// replaceNode replaces n by a node with the same address and the same health, unless that has happened already.
func (c *Client) replaceNode(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[n.address] != n {
		return
	}
	delete(c.nodes, n.address)
	replacement := c.addNode(n.address, n.health)
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
func (c *Client) retire(n *node) {
	c.loops.Go(func() {
		sleep(c.ctx, retireDelay)
		n.close()
	})
}

// openCluster reads the map of slots from a seed, and checks the masters.
func (c *Client) openCluster(ctx context.Context) error {
	err := untilServes(ctx, func() error {
		// Each seed may take its part, and the masters one too.
		timeout := timeLeft(ctx) / time.Duration(len(c.options.URL.seeds)+1)
		if err := c.refreshSlots(ctx, timeout); err != nil {
			return err
		}
		return c.checkMasters(ctx)
	})
	if err != nil {
		return err
	}
	c.started.Store(true)
	c.noteUnowned()
	c.loops.Go(func() {
		c.refreshLoop(func() {
			_ = c.refreshSlots(c.ctx, refreshTimeout) // if nobody responds, the next command that fails asks for another
			c.noteUnowned()
		})
	})
	return nil
}

// checkMasters returns an error if no master can serve, or if one cannot because its set-up is wrong. Those that cannot
// be reached are checked when they are back. Each may take half of the time that is left.
func (c *Client) checkMasters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeLeft(ctx)/2)
	defer cancel()
	nodes := c.allMasters()
	errs := make([]error, len(nodes))
	Each(len(nodes), len(nodes), func(i int) {
		if err := nodes[i].check(ctx); err != nil {
			errs[i] = fmt.Errorf("%s: %w", nodes[i].address, err)
		}
	})
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil && lasts(err) }); i >= 0 {
		return errs[i]
	}
	if !slices.Contains(errs, nil) {
		return manyErrors(errs)
	}
	for i, n := range nodes {
		if errs[i] != nil {
			n.options.Log.Warnf("%s cannot be used yet: %v", n.name, errors.Unwrap(errs[i]))
			n.unchecked.Store(true)
		}
	}
	return nil
}

// noteUnowned counts the slots without an owner, and logs when some lose theirs, and when all have one again.
func (c *Client) noteUnowned() {
	unowned := int64(0)
	for i := range c.slots {
		if c.slots[i].Load() == nil {
			unowned++
		}
	}
	before := c.unowned.Swap(unowned)
	switch {
	case before == 0 && unowned > 0:
		c.options.Log.Errorf("%d of %d slots have an owner: keys in the others get 503", slotCount-unowned, slotCount)
	case before > 0 && unowned == 0:
		c.options.Log.Infof("All slots have an owner again")
	}
}

// refreshSoon asks for a refresh. It never blocks.
func (c *Client) refreshSoon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// refreshLoop calls refresh when it is asked for, and every refreshInterval.
func (c *Client) refreshLoop(refresh func()) {
	for {
		interval := refreshInterval
		if c.unowned.Load() > 0 {
			interval = unownedInterval
		}
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-time.After(interval):
		}
		refresh()
		sleep(c.ctx, refreshPause)
	}
}

// refreshSlots reads the map of slots from the first server that knows an owner for each, else from the one that knows
// most.
func (c *Client) refreshSlots(ctx context.Context, timeout time.Duration) error {
	var best slotMap
	var failures manyErrors
	for _, address := range c.slotSources() {
		m, err := c.readSlots(ctx, address, timeout)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", address, err))
			continue
		}
		if m.covered > best.covered {
			best = m
		}
		if m.covered == slotCount {
			break
		}
	}
	switch {
	case best.covered > 0:
	case len(failures) > 0:
		return failures
	default:
		return errNoSlots
	}
	c.useSlots(best)
	return nil
}

// slotSources returns the addresses of those that may know the slots: the masters, those without a failure first, then
// replicas, and the seeds, whose names are looked up again.
func (c *Client) slotSources() []string {
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
	return slices.Concat(up, c.replicasAt, c.options.URL.seeds, down)
}

// readSlots reads the map of slots that the server at address has.
func (c *Client) readSlots(ctx context.Context, address string, timeout time.Duration) (slotMap, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.options.URL.dial(ctx, address, timeout)
	if err != nil {
		return slotMap{}, err
	}
	defer conn.Close()
	// Not CLUSTER SHARDS: some managed services have only this.
	ranges, err := redis.Values(redis.DoContext(conn, ctx, "CLUSTER", "SLOTS"))
	if err != nil {
		if strings.Contains(err.Error(), "cluster support disabled") {
			err = errNotCluster
		} else if info, _ := redis.String(redis.DoContext(conn, ctx, "INFO", "server")); isSentinel(info) {
			err = errSentinel
		}
		return slotMap{}, err
	}
	return parseSlots(ranges, address)
}

// useSlots makes the masters of m the owners of their slots, and retires the nodes that have none any more.
func (c *Client) useSlots(m slotMap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var owners [slotCount]*node
	masters := make(map[string]*node)
	for _, r := range m.ranges {
		n := c.addNode(r.master, nil)
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
	c.names.note(time.Now(), slices.AppendSeq(m.replicas, maps.Keys(masters)))
	for address, n := range c.nodes {
		if masters[address] == nil && time.Since(time.Unix(0, n.askedAt.Load())) > askedAge {
			delete(c.nodes, address)
			c.retire(n)
		}
	}
}

// logMasters logs how the masters change. The caller holds c.mu.
func (c *Client) logMasters(masters map[string]*node) {
	if len(c.masters) == 0 {
		return // at the start
	}
	for _, n := range c.masters {
		if masters[n.address] == nil {
			c.options.Log.Infof("%s has no slots any more", n.name)
		}
	}
	for address, n := range masters {
		if !slices.Contains(c.masters, n) {
			c.options.Log.Infof("Redis %s has slots now", address)
		}
	}
}

// probeKeyOf returns a key that does not exist and would be in a slot of the master at address. If that has no slots,
// it returns any.
func (c *Client) probeKeyOf(address string) string {
	if !slices.ContainsFunc(c.allMasters(), func(n *node) bool { return n.address == address }) {
		return c.anyProbeKey() // none of the many keys would be right
	}
	for i := range slotCount * 16 { // enough that all slots are among them
		key := c.options.ProbeKey(i)
		if n := c.slots[Slot(key)].Load(); n != nil && n.address == address {
			return key
		}
	}
	return c.anyProbeKey()
}

package redisdb

import (
	"cmp"
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

	freeRedirects = 3 // in a row, before a pause: two nodes may name each other
	maxRetryPause = 50 * time.Millisecond
	retireDelay   = 2 * time.Second // after it, all commands that were sent to a node have expired
	askedAge      = time.Minute     // for which a node without slots is kept after a command was sent there with ASKING
)

var (
	errNoOwner    = errors.New("no server has the key's slot")
	errNoSlots    = errors.New("no node of the cluster has slots: create it with redis-cli --cluster create")
	errNotCluster = errors.New("this is not a node of a Redis Cluster: use redis:// (rediss:// for TLS)")
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
	pause = min(time.Millisecond<<min(failures, 10), maxRetryPause)
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
	return c.addNode(address)
}

// addNode does what nodeAt does. The caller holds c.mu.
func (c *Client) addNode(address string) *node {
	if n := c.nodes[address]; n != nil {
		return n
	}
	n := c.newNode(address, c.dialTo(address), func() string { return c.probeKeyOf(address) })
	c.nodes[address] = n
	return n
}

// replaceNode replaces n by a node with the same address, unless that has happened already.
func (c *Client) replaceNode(n *node) {
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
func (c *Client) retire(n *node) {
	c.loops.Go(func() {
		sleep(c.ctx, retireDelay)
		n.close()
	})
}

// openCluster reads the map of slots from a seed, and checks every master.
func (c *Client) openCluster(ctx context.Context) error {
	timeout := redialTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline) / time.Duration(len(c.options.URL.seeds))
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
		sleep(ctx, refreshPause) // a failover goes on, of which the seed does not know yet
	}
}

// checkMasters returns an error if one of the masters cannot serve.
func (c *Client) checkMasters(ctx context.Context) error {
	nodes := c.allMasters()
	errs := make([]error, len(nodes))
	each(len(nodes), len(nodes), func(i int) {
		if err := nodes[i].check(ctx); err != nil {
			errs[i] = fmt.Errorf("%s: %w", nodes[i].address, err)
		}
	})
	return cmp.Or(errs...)
}

// refreshSoon asks for a refresh. It never blocks.
func (c *Client) refreshSoon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// refreshLoop calls refresh when it is asked for, and every refreshInterval.
func (c *Client) refreshLoop(refresh func() error) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-time.After(refreshInterval):
		}
		_ = refresh() // if nobody responds, the next command that fails asks for another
		sleep(c.ctx, refreshPause)
	}
}

// refreshSlots reads the map of slots from the first server that knows an owner for each, else from the one that knows
// most.
func (c *Client) refreshSlots(ctx context.Context, timeout time.Duration) error {
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

// probeKeyOf returns a key that does not exist and would be in a slot of the master at address.
func (c *Client) probeKeyOf(address string) string {
	for i := range slotCount * 16 { // enough that all slots are among them
		key := c.options.ProbeKey(i)
		if n := c.slots[Slot(key)].Load(); n != nil && n.address == address {
			return key
		}
	}
	return c.anyProbeKey()
}

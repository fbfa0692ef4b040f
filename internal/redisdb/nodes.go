package redisdb

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	maxListed   = 64                     // nodes that are listed, and pinged at a time
	masterWait  = 400 * time.Millisecond // for the masters, and for what names their replicas
	replicaWait = 400 * time.Millisecond // for all others
	listGrace   = 50 * time.Millisecond  // for a reply that comes when the time is up
	namedAge    = time.Hour              // for which a node is listed after it was last named
)

// A NodeState is what a server has said of itself.
type NodeState struct {
	Address string        // host:port, or the path of a socket
	Role    string        // master or replica; if it has not said so, what it is taken for
	Up      bool          // the user could log in, and PING succeeded
	Latency time.Duration // of PING; if it is not up, the time until that was known
}

// Topology returns single, sentinel or cluster.
func (c *Client) Topology() string {
	names := [...]string{singleServer: "single", sentinelMaster: "sentinel", clusterServers: "cluster"}
	return names[c.options.URL.topology]
}

// Nodes pings the masters and the replicas that are known, all at once, and returns their states: first the masters,
// then the others, each sorted by address, 64 at most. One that is no longer named, because it is down or was removed,
// is listed for an hour more. Nodes takes about 0.9 s at most, and says nothing to the log. Callers at the same time
// share the result.
//
// The replicas are those that the masters name (ROLE), that a Sentinel names (SENTINEL REPLICAS), and that the last map
// of a cluster's slots has. A user who may not ask for them learns less.
func (c *Client) Nodes() []NodeState {
	c.mu.Lock()
	list := c.listing
	if list == nil {
		list = sync.OnceValue(func() []NodeState {
			defer func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.listing = nil
			}()
			return c.listNodes()
		})
		c.listing = list
	}
	c.mu.Unlock()
	return list()
}

// nodeReply is a NodeState with the addresses of the replicas that the server names.
type nodeReply struct {
	NodeState
	replicas []string
}

// listNodes does what Nodes does.
func (c *Client) listNodes() []NodeState {
	nodes := c.allMasters()
	nodes = nodes[:min(len(nodes), maxListed)]
	bySentinel := make(chan []string, 1)
	go func() { bySentinel <- c.sentinels.replicas(c.ctx, masterWait) }()
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, cmp.Or(n.address, c.options.URL.address))
	}
	masters := askEach(addresses, "master", masterWait, func(deadline time.Time, r *nodeReply, i int) error {
		_, err := nodes[i].withConn(deadline, func(conn redis.Conn) (any, error) { return nil, r.ask(deadline, conn) })
		return err
	})
	others := c.othersOf(masters, <-bySentinel)
	url := c.options.URL.ofReplicas()
	replicas := askEach(others, "replica", replicaWait, func(deadline time.Time, r *nodeReply, _ int) error {
		ctx, cancel := context.WithDeadline(c.ctx, deadline)
		defer cancel()
		conn, err := url.dial(ctx, r.Address, replicaWait)
		if err != nil {
			return err
		}
		defer conn.Close()
		return r.ask(deadline, conn)
	})
	var states []NodeState
	for _, r := range append(masters, replicas...) {
		states = append(states, r.NodeState)
	}
	return states
}

// othersOf returns the addresses of all servers that are known beside the masters, as many as may be listed. bySentinel
// are the replicas that a Sentinel names, nil if none does.
func (c *Client) othersOf(masters []nodeReply, bySentinel []string) []string {
	named := bySentinel
	for _, m := range masters {
		// A master has the IP addresses of its replicas. Sentinels and clusters may name the same servers by hosts.
		if bySentinel == nil && (c.options.URL.topology == singleServer || isIP(m.Address)) {
			named = append(named, m.replicas...)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(named) > 0 || slices.ContainsFunc(masters, func(m nodeReply) bool { return m.Up }) {
		for _, m := range masters {
			named = append(named, m.Address)
		}
		c.names.note(time.Now(), named)
	}
	others := maps.Clone(c.names)
	for _, address := range c.replicasAt {
		others[address] = time.Time{}
	}
	for _, m := range masters {
		delete(others, m.Address)
	}
	sorted := slices.Sorted(maps.Keys(others))
	return sorted[:min(len(sorted), maxListed-len(masters))]
}

// askEach calls ask for the servers at all addresses at once, each with the reply that it completes. It returns the
// replies. A server from which there is an error, or nothing in time, is down, and has the role that is given.
func askEach(addresses []string, role string, wait time.Duration,
	ask func(deadline time.Time, r *nodeReply, i int) error) []nodeReply {
	type indexed struct {
		nodeReply
		i int
	}
	began := time.Now()
	arrived := make(chan indexed, len(addresses))
	replies := make([]nodeReply, len(addresses))
	for i, address := range addresses {
		replies[i].NodeState = NodeState{Address: address, Role: role, Latency: wait}
		go func(r nodeReply) {
			if err := ask(began.Add(wait), &r, i); err != nil {
				r.Up, r.Latency = false, time.Since(began)
			}
			arrived <- indexed{r, i}
		}(replies[i])
	}
	late := time.After(wait + listGrace)
	for range addresses {
		select {
		case r := <-arrived:
			replies[r.i] = r.nodeReply
		case <-late: // it will end soon, but nobody waits for it
			return replies
		}
	}
	return replies
}

// ask pings the server at the other end of conn, and asks for its role, which the user may not be allowed.
func (r *nodeReply) ask(deadline time.Time, conn redis.Conn) error {
	began := time.Now()
	if _, err := doUntil(deadline, conn, "PING"); err != nil {
		return err
	}
	r.Up, r.Latency = true, time.Since(began)
	if role, err := redis.Values(doUntil(deadline, conn, "ROLE")); err == nil {
		r.readRole(role)
	}
	return nil
}

// readRole reads the reply to ROLE. What it does not understand changes nothing.
func (r *nodeReply) readRole(reply []any) {
	if len(reply) < 3 {
		return
	}
	switch name, _ := redis.String(reply[0], nil); name {
	case "slave":
		r.Role = "replica"
	case "master":
		r.Role = "master"
		replicas, _ := redis.Values(reply[2], nil)
		for _, replica := range replicas {
			if fields, err := redis.Strings(replica, nil); err == nil && len(fields) >= 2 {
				r.replicas = append(r.replicas, announcedAddress(fields[0], fields[1], r.Address))
			}
		}
	}
}

// ofReplicas returns the URL with which the replicas of the server or servers are reached.
func (r *URL) ofReplicas() *URL {
	u := *r
	u.network = "tcp" // also those of a master that has a socket here
	if u.topology == singleServer {
		u.seeds = []string{r.address}
	}
	return &u
}

// replicas returns the addresses of the replicas that a Sentinel names, those of the first that names any. It returns
// nil if none does in time, or if s is nil.
func (s *sentinelSet) replicas(ctx context.Context, wait time.Duration) []string {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	arrived := make(chan []string, len(s.url.seeds))
	for _, sentinel := range s.url.seeds {
		go func() { arrived <- s.replicasOf(ctx, sentinel, wait) }()
	}
	for range s.url.seeds {
		if addresses := <-arrived; addresses != nil {
			return addresses
		}
	}
	return nil
}

// replicasOf returns the addresses of the replicas that a Sentinel names, nil if it names none.
func (s *sentinelSet) replicasOf(ctx context.Context, sentinel string, timeout time.Duration) (addresses []string) {
	conn, err := s.dial(ctx, sentinel, timeout)
	if err != nil {
		return nil
	}
	defer conn.Close()
	replicas, _ := redis.Values(redis.DoContext(conn, ctx, "SENTINEL", "REPLICAS", s.url.master))
	for _, replica := range replicas {
		if fields, err := redis.StringMap(replica, nil); err == nil && fields["port"] != "" {
			addresses = append(addresses, announcedAddress(fields["ip"], fields["port"], sentinel))
		}
	}
	return addresses
}

// nodeNames has when the topology has last named each address.
type nodeNames map[string]time.Time

// note notes that the topology names addresses, and forgets those that it has not named for namedAge, and of more than
// maxListed those that were named longest ago.
func (n nodeNames) note(now time.Time, addresses []string) {
	for _, address := range addresses {
		n[address] = now
	}
	maps.DeleteFunc(n, func(_ string, at time.Time) bool { return now.Sub(at) > namedAge })
	if surplus := len(n) - maxListed; surplus > 0 {
		oldest := slices.SortedFunc(maps.Keys(n), func(a, b string) int { return n[a].Compare(n[b]) })
		for _, address := range oldest[:surplus] {
			delete(n, address)
		}
	}
}

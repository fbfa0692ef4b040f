package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// testCluster is a real Redis Cluster of small servers: its first nodes are masters, and after them come replicas, each
// of the master with the same number.
type testCluster struct {
	masters int
	nodes   []*redisServer
}

const clusterNodeTimeout = time.Second

// startCluster starts a cluster and waits until it serves. replicas is 0 or 1, of each master.
func startCluster(masters, replicas int, args ...string) (*testCluster, error) {
	c := &testCluster{masters: masters, nodes: make([]*redisServer, masters*(1+replicas))}
	errs := make([]error, len(c.nodes))
	var starts sync.WaitGroup
	for i := range c.nodes {
		starts.Go(func() { c.nodes[i], errs[i] = startClusterNode(args...) })
	}
	starts.Wait()
	err := errors.Join(errs...)
	if err == nil {
		err = c.join()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func startClusterNode(args ...string) (*redisServer, error) {
	busPort, err := freePort()
	if err != nil {
		return nil, err
	}
	return startRedis("", append([]string{
		"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(busPort), "--appendonly", "no",
		"--cluster-node-timeout", strconv.FormatInt(clusterNodeTimeout.Milliseconds(), 10),
		"--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no",
		"--repl-diskless-sync-delay", "0", "--repl-timeout", "60",
	}, args...)...)
}

// join makes the nodes one cluster.
func (c *testCluster) join() error {
	for i, n := range c.nodes {
		commands := [][]any{{"CLUSTER", "SET-CONFIG-EPOCH", i + 1}}
		if i < c.masters {
			first, last := i*slotCount/c.masters, (i+1)*slotCount/c.masters-1
			commands = append(commands, []any{"CLUSTER", "ADDSLOTSRANGE", first, last})
		}
		if i > 0 {
			commands = append(commands, meet(c.nodes[0]))
		}
		if err := n.all(commands...); err != nil {
			return err
		}
	}
	if err := wait(20*time.Second, c.check); err != nil {
		return err
	}
	for i, n := range c.nodes[c.masters:] {
		if err := n.replicate(c.nodes[i]); err != nil {
			return err
		}
	}
	return wait(20*time.Second, c.check)
}

func meet(n *redisServer) []any { return []any{"CLUSTER", "MEET", "127.0.0.1", n.port, n.busPort()} }

func (r *redisServer) busPort() string { return r.args[slices.Index(r.args, "--cluster-port")+1] }

// replicate makes r a replica of master, as soon as it knows it.
func (r *redisServer) replicate(master *redisServer) error {
	id, err := master.myID()
	if err != nil {
		return err
	}
	return wait(10*time.Second, func() error { return r.all([]any{"CLUSTER", "REPLICATE", id}) })
}

func (r *redisServer) myID() (string, error) {
	c, err := r.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	return redis.String(c.Do("CLUSTER", "MYID"))
}

// all runs commands and returns their first error.
func (r *redisServer) all(commands ...[]any) error {
	c, err := r.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, command := range commands {
		if _, err := c.Do(command[0].(string), command[1:]...); err != nil {
			return fmt.Errorf("%v: %w", command[:2], err)
		}
	}
	return nil
}

// wait is eventually without a test.
func wait(within time.Duration, condition func() error) error {
	for deadline := in(within); ; time.Sleep(10 * time.Millisecond) {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// check returns an error unless every node knows all others, that all slots are served, and is in sync if it is a replica.
func (c *testCluster) check() error {
	for _, n := range c.nodes {
		if err := n.checkMember(len(c.nodes)); err != nil {
			return fmt.Errorf("%s: %w", n.tcp, err)
		}
	}
	return nil
}

func (r *redisServer) checkMember(nodes int) error {
	conn, err := r.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	state, err := redis.String(conn.Do("CLUSTER", "INFO"))
	if err != nil {
		return err
	}
	if infoField(state, "cluster_state") != "ok" || infoField(state, "cluster_known_nodes") != strconv.Itoa(nodes) ||
		infoField(state, "cluster_slots_ok") != strconv.Itoa(slotCount) {
		return fmt.Errorf("the cluster is not complete: %s", state)
	}
	replication, err := redis.String(conn.Do("INFO", "replication"))
	if err != nil {
		return err
	}
	if infoField(replication, "role") == "slave" && infoField(replication, "master_link_status") != "up" {
		return errors.New("the replica is not in sync")
	}
	return nil
}

func (c *testCluster) close() {
	for _, n := range c.nodes {
		if n != nil {
			n.close()
		}
	}
}

// url returns the URL of the cluster for the services under test.
func (c *testCluster) url() string {
	addresses := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		addresses[i] = n.tcp
	}
	return fmt.Sprintf("redis-cluster://tollgate:%s@%s", testRedisPassword, strings.Join(addresses, ","))
}

// isMaster reports whether a node is a master with slots.
func (r *redisServer) isMaster(t testing.TB) bool {
	t.Helper()
	for line := range strings.Lines(r.string(t, "CLUSTER", "NODES")) {
		if fields := strings.Fields(line); strings.Contains(fields[2], "myself") {
			return strings.Contains(fields[2], "master") && len(fields) > 8
		}
	}
	return false
}

// owner returns the master that has the slot of key.
func (c *testCluster) owner(t testing.TB, key string) *redisServer {
	t.Helper()
	conn := c.conn()
	defer conn.Close()
	for _, n := range c.nodes {
		if !n.alive() || !n.isMaster(t) {
			continue
		}
		if _, err := n.one("GET", "{"+key+"}owner"); err == nil {
			return n
		}
	}
	t.Fatalf("no master has the slot of %s", key)
	return nil
}

func (r *redisServer) one(command string, args ...any) (any, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Do(command, args...)
}

func (r *redisServer) alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// replicaOf returns the replica that follows master.
func (c *testCluster) replicaOf(t testing.TB, master *redisServer) *redisServer {
	t.Helper()
	for _, n := range c.nodes {
		if n.alive() && infoField(n.string(t, "INFO", "replication"), "master_port") == strconv.Itoa(master.port) {
			return n
		}
	}
	t.Fatalf("%s has no replica", master.tcp)
	return nil
}

// heal starts the nodes that are down and waits until the cluster is complete.
func (c *testCluster) heal(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		if !n.alive() {
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, 30*time.Second, c.check)
}

// moveSlots moves slots with their keys from one master to another, as redis-cli --cluster reshard does. between is
// called while the first slot is half moved.
func (c *testCluster) moveSlots(t testing.TB, from, to *redisServer, slots []int) {
	t.Helper()
	source, target := from.mustDial(t), to.mustDial(t)
	defer source.Close()
	defer target.Close()
	fromID, toID := c.id(t, from), c.id(t, to)
	for _, slot := range slots {
		mustDo(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
		mustDo(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
		for {
			keys, err := redis.Values(mustDo(t, source, "CLUSTER", "GETKEYSINSLOT", slot, 10), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			mustDo(t, source, "MIGRATE", append([]any{"127.0.0.1", to.port, "", 0, 5000, "KEYS"}, keys...)...)
		}
		mustDo(t, target, "CLUSTER", "SETSLOT", slot, "NODE", toID)
		mustDo(t, source, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
}

func (c *testCluster) id(t testing.TB, n *redisServer) string {
	t.Helper()
	id, err := n.myID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (r *redisServer) mustDial(t testing.TB) redis.Conn {
	t.Helper()
	c, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustDo(t testing.TB, c redis.Conn, command string, args ...any) any {
	t.Helper()
	reply, err := c.Do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// slotsOf returns the slots that a master has.
func slotsOf(t testing.TB, n *redisServer) (slots []int) {
	t.Helper()
	ranges, err := redis.Values(n.do(t, "CLUSTER", "SLOTS"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseSlots(ranges, n.tcp)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.ranges {
		for slot := r.first; r.master == n.tcp && slot <= r.last; slot++ {
			slots = append(slots, slot)
		}
	}
	return slots
}

// conn returns a connection that runs each command on the master that has its key, and those without a key on all.
func (c *testCluster) conn() redis.Conn { return &clusterConn{c, make(map[string]redis.Conn)} }

// clusterConn follows redirections. Only Do and Close may be used.
type clusterConn struct {
	cluster *testCluster
	conns   map[string]redis.Conn
}

func (c *clusterConn) Close() error {
	for _, conn := range c.conns {
		conn.Close()
	}
	return nil
}

func (c *clusterConn) at(address string) (redis.Conn, error) {
	if conn := c.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := redis.Dial("tcp", address)
	if err == nil {
		c.conns[address] = conn
	}
	return conn, err
}

func (c *clusterConn) Do(command string, args ...any) (any, error) {
	switch command {
	case "KEYS", "SCRIPT", "PING", "CLIENT", "CONFIG", "ACL", "FLUSHALL", "INFO":
		return c.doAll(command, args...)
	case "EXISTS", "DEL":
		total := int64(0)
		for _, key := range args {
			n, err := redis.Int64(c.doOne(command, key))
			if err != nil {
				return nil, err
			}
			total += n
		}
		return total, nil
	}
	return c.doOne(command, args...)
}

// doAll runs a command on all masters. It returns the elements of all their replies, or the last reply.
func (c *clusterConn) doAll(command string, args ...any) (reply any, err error) {
	var elements []any
	for _, n := range c.cluster.nodes[:c.cluster.masters] {
		conn, err := c.at(n.tcp)
		if err == nil {
			reply, err = conn.Do(command, args...)
		}
		if err != nil {
			return nil, err
		}
		if some, ok := reply.([]any); ok {
			elements = append(elements, some...)
			reply = elements
		}
	}
	return reply, nil
}

func (c *clusterConn) doOne(command string, args ...any) (any, error) {
	address := c.cluster.nodes[slices.IndexFunc(c.cluster.nodes, (*redisServer).alive)].tcp
	for {
		conn, err := c.at(address)
		if err != nil {
			return nil, err
		}
		reply, err := conn.Do(command, args...)
		if kind, moved := parseRedirect(err, address); err != nil && kind == movedSlot {
			address = moved
			continue
		}
		return reply, err
	}
}

var errOnlyDo = errors.New("a clusterConn can only Do")

func (c *clusterConn) Err() error                { return nil }
func (c *clusterConn) Send(string, ...any) error { return errOnlyDo }
func (c *clusterConn) Flush() error              { return errOnlyDo }
func (c *clusterConn) Receive() (any, error)     { return nil, errOnlyDo }

var sharedCluster struct {
	sync.Mutex
	*testCluster
}

// useCluster returns the cluster of three masters with a replica each that tests share, one after the other. It is
// complete then, and again when the test has ended.
func useCluster(t testing.TB) *testCluster {
	t.Helper()
	sharedCluster.Lock()
	t.Cleanup(sharedCluster.Unlock)
	if sharedCluster.testCluster == nil {
		c, err := startCluster(3, 1)
		if err != nil {
			t.Fatal(err)
		}
		sharedCluster.testCluster = c
	}
	c := sharedCluster.testCluster
	c.heal(t)
	t.Cleanup(func() { c.heal(t) })
	return c
}

// closeSharedCluster ends the cluster when all tests have ended.
func closeSharedCluster() {
	if sharedCluster.testCluster != nil {
		sharedCluster.close()
	}
}

// newTenant creates a tenant in the cluster through the service.
func newClusterTenant(t testing.TB, s *service, config string) string {
	t.Helper()
	id := newTenantID()
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`).want(t, 201, "")
	return id
}

// keysOn returns API keys of a tenant, n of them on each master, by its address.
func (c *testCluster) keysOn(t testing.TB, s *service, tenant string, n int, members string) map[string][]string {
	t.Helper()
	masters := make(map[string]map[int]bool)
	keys := make(map[string][]string)
	for _, node := range c.nodes {
		if node.alive() && node.isMaster(t) {
			slots := make(map[int]bool)
			for _, slot := range slotsOf(t, node) {
				slots[slot] = true
			}
			masters[node.tcp], keys[node.tcp] = slots, nil
		}
	}
	complete := func() bool {
		for _, some := range keys {
			if len(some) < n {
				return false
			}
		}
		return true
	}
	for !complete() {
		key := s.issue(t, tenant, members)
		for address := range maps.Keys(masters) {
			if masters[address][keySlot(apiKeyRedisKey(key))] && len(keys[address]) < n {
				keys[address] = append(keys[address], key)
			}
		}
	}
	return keys
}

// balance returns what is left of an API key, from its master.
func (c *testCluster) balance(t testing.TB, key string) int {
	t.Helper()
	conn := c.conn()
	defer conn.Close()
	n, err := redis.Int(conn.Do("HGET", apiKeyRedisKey(key), "tokensLeft"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

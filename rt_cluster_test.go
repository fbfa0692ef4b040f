package main

import (
	"errors"
	"fmt"
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

const (
	clusterNodeTimeout = time.Second
	slots              = 16384 // of a Redis Cluster
)

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
			first, last := i*slots/c.masters, (i+1)*slots/c.masters-1
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
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
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
	if redisField(state, "cluster_state") != "ok" || redisField(state, "cluster_known_nodes") != strconv.Itoa(nodes) ||
		redisField(state, "cluster_slots_ok") != strconv.Itoa(slots) {
		return fmt.Errorf("the cluster is not complete: %s", state)
	}
	replication, err := redis.String(conn.Do("INFO", "replication"))
	if err != nil {
		return err
	}
	if redisField(replication, "role") == "slave" && redisField(replication, "master_link_status") != "up" {
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
		if n.alive() && redisField(n.string(t, "INFO", "replication"), "master_port") == strconv.Itoa(master.port) {
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
	for _, one := range ranges { // first slot, last slot, its master, its replicas
		var first, last int
		var master []any
		if _, err := redis.Scan(one.([]any), &first, &last, &master); err != nil {
			t.Fatal(err)
		}
		if port, err := redis.Int(master[1], nil); err != nil || port != n.port {
			continue
		}
		for slot := first; slot <= last; slot++ {
			slots = append(slots, slot)
		}
	}
	return slots
}

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

// mastersNow returns the masters.
func (c *testCluster) mastersNow(t testing.TB) (masters []*redisServer) {
	t.Helper()
	for _, n := range c.nodes {
		if n.alive() && n.isMaster(t) {
			masters = append(masters, n)
		}
	}
	return masters
}

// awaitVotes waits until a failover that may just have ended hinders no other: for two timeouts the masters do not vote
// again for a replica of the same shard, and a planned failover pauses its master's clients meanwhile.
func awaitVotes() { time.Sleep(2*clusterNodeTimeout + 200*time.Millisecond) }

// slotKey returns a hash tag of a slot.
func slotKey(slot int) string {
	for i := 0; ; i++ {
		if tag := "{" + strconv.Itoa(i) + "}"; keySlot(tag) == slot {
			return tag
		}
	}
}

package redistest

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

// Cluster is a real Redis Cluster of small servers: its first nodes are masters, and after them come replicas, each
// of the master with the same number.
type Cluster struct {
	Masters int
	Nodes   []*Server
}

const (
	clusterNodeTimeout = time.Second
	slots              = 16384 // of a Redis Cluster
)

// StartCluster starts a cluster and waits until it serves. replicas is 0 or 1, of each master.
func StartCluster(masters, replicas int, args ...string) (*Cluster, error) {
	c := &Cluster{Masters: masters, Nodes: make([]*Server, masters*(1+replicas))}
	errs := make([]error, len(c.Nodes))
	var starts sync.WaitGroup
	for i := range c.Nodes {
		starts.Go(func() { c.Nodes[i], errs[i] = StartClusterNode(args...) })
	}
	starts.Wait()
	err := errors.Join(errs...)
	if err == nil {
		err = c.join()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func StartClusterNode(args ...string) (*Server, error) {
	busPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	return Start("", append([]string{
		"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(busPort), "--appendonly", "no",
		"--cluster-node-timeout", strconv.FormatInt(clusterNodeTimeout.Milliseconds(), 10),
		"--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no",
		"--repl-diskless-sync-delay", "0", "--repl-timeout", "60",
	}, args...)...)
}

// join makes the nodes one cluster.
func (c *Cluster) join() error {
	for i, n := range c.Nodes {
		commands := [][]any{{"CLUSTER", "SET-CONFIG-EPOCH", i + 1}}
		if i < c.Masters {
			first, last := i*slots/c.Masters, (i+1)*slots/c.Masters-1
			commands = append(commands, []any{"CLUSTER", "ADDSLOTSRANGE", first, last})
		}
		if i > 0 {
			commands = append(commands, Meet(c.Nodes[0]))
		}
		if err := n.All(commands...); err != nil {
			return err
		}
	}
	if err := wait(20*time.Second, c.Check); err != nil {
		return err
	}
	for i, n := range c.Nodes[c.Masters:] {
		if err := n.replicate(c.Nodes[i]); err != nil {
			return err
		}
	}
	return wait(20*time.Second, c.Check)
}

func Meet(n *Server) []any { return []any{"CLUSTER", "MEET", "127.0.0.1", n.Port, n.busPort()} }

func (r *Server) busPort() string { return r.args[slices.Index(r.args, "--cluster-port")+1] }

// replicate makes r a replica of master, as soon as it knows it.
func (r *Server) replicate(master *Server) error {
	id, err := master.myID()
	if err != nil {
		return err
	}
	return wait(10*time.Second, func() error { return r.All([]any{"CLUSTER", "REPLICATE", id}) })
}

func (r *Server) myID() (string, error) {
	c, err := r.Dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	return redis.String(c.Do("CLUSTER", "MYID"))
}

// All runs commands and returns their first error.
func (r *Server) All(commands ...[]any) error {
	c, err := r.Dial()
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

// Check returns an error unless every node knows all others, that all slots are served, and is in sync if it is a replica.
func (c *Cluster) Check() error {
	for _, n := range c.Nodes {
		if err := n.CheckMember(len(c.Nodes)); err != nil {
			return fmt.Errorf("%s: %w", n.TCP, err)
		}
	}
	return nil
}

func (r *Server) CheckMember(nodes int) error {
	conn, err := r.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	state, err := redis.String(conn.Do("CLUSTER", "INFO"))
	if err != nil {
		return err
	}
	if Field(state, "cluster_state") != "ok" || Field(state, "cluster_known_nodes") != strconv.Itoa(nodes) ||
		Field(state, "cluster_slots_ok") != strconv.Itoa(slots) {
		return fmt.Errorf("the cluster is not complete: %s", state)
	}
	replication, err := redis.String(conn.Do("INFO", "replication"))
	if err != nil {
		return err
	}
	if Field(replication, "role") == "slave" && Field(replication, "master_link_status") != "up" {
		return errors.New("the replica is not in sync")
	}
	return nil
}

func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		if n != nil {
			n.Close()
		}
	}
}

// Url returns the URL of the cluster for the services under test.
func (c *Cluster) Url() string {
	addresses := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addresses[i] = n.TCP
	}
	return fmt.Sprintf("redis-cluster://tollgate:%s@%s", Password, strings.Join(addresses, ","))
}

// IsMaster reports whether a node is a master with slots.
func (r *Server) IsMaster(t testing.TB) bool {
	t.Helper()
	for line := range strings.Lines(r.String(t, "CLUSTER", "NODES")) {
		if fields := strings.Fields(line); strings.Contains(fields[2], "myself") {
			return strings.Contains(fields[2], "master") && len(fields) > 8
		}
	}
	return false
}

// Owner returns the master that has the slot of key.
func (c *Cluster) Owner(t testing.TB, key string) *Server {
	t.Helper()
	conn := c.Conn()
	defer conn.Close()
	for _, n := range c.Nodes {
		if !n.Alive() || !n.IsMaster(t) {
			continue
		}
		if _, err := n.one("GET", "{"+key+"}owner"); err == nil {
			return n
		}
	}
	t.Fatalf("no master has the slot of %s", key)
	return nil
}

func (r *Server) one(command string, args ...any) (any, error) {
	c, err := r.Dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Do(command, args...)
}

func (r *Server) Alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// ReplicaOf returns the replica that follows master.
func (c *Cluster) ReplicaOf(t testing.TB, master *Server) *Server {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Alive() && Field(n.String(t, "INFO", "replication"), "master_port") == strconv.Itoa(master.Port) {
			return n
		}
	}
	t.Fatalf("%s has no replica", master.TCP)
	return nil
}

// heal starts the nodes that are down and waits until the cluster is complete.
func (c *Cluster) heal(t testing.TB) {
	t.Helper()
	for _, n := range c.Nodes {
		if !n.Alive() {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	Eventually(t, 30*time.Second, c.Check)
}

// MoveSlots moves slots with their keys from one master to another, as redis-cli --cluster reshard does. between is
// called while the first slot is half moved.
func (c *Cluster) MoveSlots(t testing.TB, from, to *Server, slots []int) {
	t.Helper()
	source, target := from.MustDial(t), to.MustDial(t)
	defer source.Close()
	defer target.Close()
	fromID, toID := c.Id(t, from), c.Id(t, to)
	for _, slot := range slots {
		MustDo(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
		MustDo(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
		for {
			keys, err := redis.Values(MustDo(t, source, "CLUSTER", "GETKEYSINSLOT", slot, 10), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			MustDo(t, source, "MIGRATE", append([]any{"127.0.0.1", to.Port, "", 0, 5000, "KEYS"}, keys...)...)
		}
		MustDo(t, target, "CLUSTER", "SETSLOT", slot, "NODE", toID)
		MustDo(t, source, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
}

func (c *Cluster) Id(t testing.TB, n *Server) string {
	t.Helper()
	id, err := n.myID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (r *Server) MustDial(t testing.TB) redis.Conn {
	t.Helper()
	c, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func MustDo(t testing.TB, c redis.Conn, command string, args ...any) any {
	t.Helper()
	reply, err := c.Do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// SlotsOf returns the slots that a master has.
func SlotsOf(t testing.TB, n *Server) (slots []int) {
	t.Helper()
	ranges, err := redis.Values(n.Do(t, "CLUSTER", "SLOTS"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range ranges { // first slot, last slot, its master, its replicas
		var first, last int
		var master []any
		if _, err := redis.Scan(one.([]any), &first, &last, &master); err != nil {
			t.Fatal(err)
		}
		if port, err := redis.Int(master[1], nil); err != nil || port != n.Port {
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
	*Cluster
}

// UseCluster returns the cluster of three masters with a replica each that tests share, one after the other. It is
// complete then, and again when the test has ended.
func UseCluster(t testing.TB) *Cluster {
	t.Helper()
	sharedCluster.Lock()
	t.Cleanup(sharedCluster.Unlock)
	if sharedCluster.Cluster == nil {
		c, err := StartCluster(3, 1)
		if err != nil {
			t.Fatal(err)
		}
		sharedCluster.Cluster = c
	}
	c := sharedCluster.Cluster
	c.heal(t)
	t.Cleanup(func() { c.heal(t) })
	return c
}

// CloseSharedCluster ends the cluster when all tests have ended.
func CloseSharedCluster() {
	if sharedCluster.Cluster != nil {
		sharedCluster.Close()
	}
}

// MastersNow returns the masters.
func (c *Cluster) MastersNow(t testing.TB) (masters []*Server) {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Alive() && n.IsMaster(t) {
			masters = append(masters, n)
		}
	}
	return masters
}

// AwaitVotes waits until a failover that may just have ended hinders no other: for two timeouts the masters do not vote
// again for a replica of the same shard, and a planned failover pauses its master's clients meanwhile.
func AwaitVotes() { time.Sleep(2*clusterNodeTimeout + 200*time.Millisecond) }

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

	"tollgate/internal/waittest"
)

// Cluster is a real Redis Cluster of small servers. When it is started, the first nodes are its masters, and after them
// come the replicas, each of the master with the same number. Failovers change that.
type Cluster struct {
	Masters int       // when it was started
	Nodes   []*Server // must not change, except of a cluster that the test made itself
}

const slotCount = 16384

// Times after which a silent node is taken for dead: a second where tests wait for that, and more where a busy machine
// that stands still for a second must not look like it.
const (
	clusterNodeTimeout = time.Second
	patientNodeTimeout = 5 * time.Second
)

// StartCluster starts a cluster and waits until it serves. Each master has that number of replicas, 0 or 1. The
// arguments are for each of the redis-servers.
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

// StartClusterNode starts a redis-server in cluster mode that knows no other yet and has no slots. A node that is
// silent for a second is taken for dead.
func StartClusterNode(args ...string) (*Server, error) {
	busPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	return Start(append([]string{
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
			first, last := i*slotCount/c.Masters, (i+1)*slotCount/c.Masters-1
			commands = append(commands, []any{"CLUSTER", "ADDSLOTSRANGE", first, last})
		}
		if i > 0 {
			commands = append(commands, Meet(c.Nodes[0]))
		}
		if err := n.DoAll(commands...); err != nil {
			return err
		}
	}
	if err := waittest.Until(20*time.Second, c.Check); err != nil {
		return err
	}
	for i, n := range c.Nodes[c.Masters:] {
		if err := n.replicate(c.Nodes[i]); err != nil {
			return err
		}
	}
	return waittest.Until(20*time.Second, c.Check)
}

// Meet returns the command with which a node joins the cluster of n.
func Meet(n *Server) []any { return []any{"CLUSTER", "MEET", "127.0.0.1", n.Port, n.busPort()} }

func (r *Server) busPort() string { return r.args[slices.Index(r.args, "--cluster-port")+1] }

// replicate makes r a replica of master, as soon as it knows it.
func (r *Server) replicate(master *Server) error {
	id, err := master.id()
	if err != nil {
		return err
	}
	return waittest.Until(10*time.Second, func() error { return r.DoAll([]any{"CLUSTER", "REPLICATE", id}) })
}

// Check returns an error unless every node knows all others, knows that all slots are served, and, if it is a replica,
// is in sync.
func (c *Cluster) Check() error {
	for _, n := range c.Nodes {
		if err := n.CheckMember(len(c.Nodes)); err != nil {
			return fmt.Errorf("%s: %w", n.TCP, err)
		}
	}
	return nil
}

// CheckMember returns an error unless r is a member of a cluster of that number of nodes which serves all slots and, if
// it is a replica, is in sync.
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
		Field(state, "cluster_slots_ok") != strconv.Itoa(slotCount) {
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

// Close ends all nodes.
func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		if n != nil {
			n.Close()
		}
	}
}

// URL returns the URL for the services under test. It names all nodes.
func (c *Cluster) URL() string {
	addresses := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addresses[i] = n.TCP
	}
	return fmt.Sprintf("redis-cluster://tollgate:%s@%s", Password, strings.Join(addresses, ","))
}

// IsMaster reports whether a node of a cluster is a master with slots.
func (r *Server) IsMaster(t testing.TB) bool {
	t.Helper()
	for line := range strings.Lines(r.String(t, "CLUSTER", "NODES")) {
		if fields := strings.Fields(line); strings.Contains(fields[2], "myself") {
			return strings.Contains(fields[2], "master") && len(fields) > 8
		}
	}
	return false
}

// Owner returns the master that has the slot of key, which must have no {tag} of its own.
func (c *Cluster) Owner(t testing.TB, key string) *Server {
	t.Helper()
	for _, n := range c.Nodes {
		if !n.Alive() || !n.IsMaster(t) {
			continue
		}
		if _, err := n.do("GET", "{"+key+"}owner"); err == nil {
			return n
		}
	}
	t.Fatalf("no master has the slot of %s", key)
	return nil
}

// ReplicaOf returns a replica that follows master.
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

// AwaitCopy waits until replica has what master has now. Redis 7.0 sends a replica that it has just filled nothing more
// for up to a second, though each calls the other in sync.
func AwaitCopy(t testing.TB, master, replica *Server) {
	t.Helper()
	offset := func(r *Server, name string) (n int) {
		n, _ = strconv.Atoi(Field(r.String(t, "INFO", "replication"), name))
		return n
	}
	sent := offset(master, "master_repl_offset")
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := offset(replica, "slave_repl_offset"); got < sent {
			return fmt.Errorf("the replica has %d bytes of %d", got, sent)
		}
		return nil
	})
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
	waittest.Eventually(t, 30*time.Second, c.Check)
}

// MoveSlots moves slots with their keys from one master to another, as redis-cli --cluster reshard does. Those that
// have keys are half moved for a moment, in which commands for these are redirected with ASK.
func (c *Cluster) MoveSlots(t testing.TB, from, to *Server, slots []int) {
	t.Helper()
	source, target := from.MustDial(t), to.MustDial(t)
	defer source.Close()
	defer target.Close()
	fromID, toID := from.ID(t), to.ID(t)
	for _, slot := range slots {
		MustDo(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
		MustDo(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
		for batch := 0; ; batch++ {
			keys, err := redis.Values(MustDo(t, source, "CLUSTER", "GETKEYSINSLOT", slot, 10), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			MustDo(t, source, "MIGRATE", append([]any{"127.0.0.1", to.Port, "", 0, 5000, "KEYS"}, keys...)...)
			if batch < 3 {
				time.Sleep(30 * time.Millisecond)
			}
		}
		MustDo(t, target, "CLUSTER", "SETSLOT", slot, "NODE", toID)
		MustDo(t, source, "CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
}

// ID returns the ID of a node of a cluster.
func (r *Server) ID(t testing.TB) string {
	t.Helper()
	id, err := r.id()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (r *Server) id() (string, error) { return redis.String(r.do("CLUSTER", "MYID")) }

// MustDial does what Dial does. It must succeed.
func (r *Server) MustDial(t testing.TB) redis.Conn {
	t.Helper()
	c, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// MustDo runs one command over c. It must succeed.
func MustDo(t testing.TB, c redis.Conn, command string, args ...any) any {
	t.Helper()
	reply, err := c.Do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// Slots returns the slots that a master has, in order.
func (r *Server) Slots(t testing.TB) (slots []int) {
	t.Helper()
	ranges, err := redis.Values(r.Do(t, "CLUSTER", "SLOTS"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range ranges { // first slot, last slot, its master, its replicas
		var first, last int
		var master []any
		if _, err := redis.Scan(one.([]any), &first, &last, &master); err != nil {
			t.Fatal(err)
		}
		if port, err := redis.Int(master[1], nil); err != nil || port != r.Port {
			continue
		}
		for slot := first; slot <= last; slot++ {
			slots = append(slots, slot)
		}
	}
	return slots
}

// sharedCluster is what SharedCluster returns.
var sharedCluster struct {
	inUse   sync.Mutex // held by a test as long as it runs
	cluster *Cluster   // nil before the first use
}

// SharedCluster returns the cluster of three masters with a replica each that the tests of a package share. It waits
// until the test that has the cluster ends, and starts it for the first one. The cluster is complete when the test gets
// it, and again when it has ended: nodes that the test has killed are started. A node that is silent is not taken for
// dead within the test unless that calls ExpectFailures.
func SharedCluster(t testing.TB) *Cluster {
	t.Helper()
	sharedCluster.inUse.Lock()
	t.Cleanup(sharedCluster.inUse.Unlock)
	if sharedCluster.cluster == nil {
		c, err := StartCluster(3, 1)
		if err != nil {
			t.Fatal(err)
		}
		sharedCluster.cluster = c
	}
	c := sharedCluster.cluster
	c.heal(t)
	if err := c.setNodeTimeout(patientNodeTimeout); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.heal(t) })
	return c
}

// ExpectFailures lets the nodes take one that is silent for a second for dead, until the test ends.
func (c *Cluster) ExpectFailures(t testing.TB) {
	t.Helper()
	if err := c.setNodeTimeout(clusterNodeTimeout); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) setNodeTimeout(timeout time.Duration) error {
	for _, n := range c.Nodes {
		if err := n.DoAll([]any{"CONFIG", "SET", "cluster-node-timeout", timeout.Milliseconds()}); err != nil {
			return err
		}
	}
	return nil
}

// CloseSharedCluster ends the cluster of SharedCluster. TestMain calls it when all tests have ended.
func CloseSharedCluster() {
	if sharedCluster.cluster != nil {
		sharedCluster.cluster.Close()
	}
}

// MastersNow returns the nodes that are masters with slots now.
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

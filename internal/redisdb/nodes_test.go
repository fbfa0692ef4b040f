package redisdb

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// replicaOf starts a replica of master.
func replicaOf(t *testing.T, master *redistest.Server) *redistest.Server {
	t.Helper()
	return redistest.New(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port), "--repl-diskless-sync-delay", "0")
}

// isNodes returns an error unless c's nodes are as want says: "address role", and " down" if it is not up.
func isNodes(c *Client, want ...string) error {
	began := time.Now()
	states := c.Nodes()
	if took := time.Since(began); took > 2*time.Second {
		return fmt.Errorf("it took %s", took)
	}
	var got []string
	for _, n := range states {
		text := n.Address + " " + n.Role
		if !n.Up {
			text += " down"
		}
		if n.Latency <= 0 || n.Latency > time.Second {
			return fmt.Errorf("the latency of %s is %s", text, n.Latency)
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// awaitNodes waits until isNodes.
func awaitNodes(t *testing.T, c *Client, want ...string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error { return isNodes(c, want...) })
}

// One server is listed with its replicas, which it still is when it no longer names them.
func TestNodesOfOneServer(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	replica := replicaOf(t, master)
	log := new(telemetrytest.Log)
	c := newTestClient(t, master.URL(), log)
	if got := c.Topology(); got != "single" {
		t.Errorf("the topology is %s", got)
	}
	both := []string{master.TCP + " master", replica.TCP + " replica"}
	awaitNodes(t, c, both...)

	t.Run("over a socket", func(t *testing.T) {
		url := "unix://" + master.User + ":" + redistest.Password + "@" + master.Address
		awaitNodes(t, newTestClient(t, url, log), master.Address+" master", both[1])
	})
	t.Run("the user may not ask", func(t *testing.T) {
		master.Do(t, "ACL", "SETUSER", master.User, "-role")
		defer master.Do(t, "ACL", "SETUSER", master.User, "+role")
		awaitNodes(t, c, both...)
		awaitNodes(t, newTestClient(t, master.URL(), log), both[0])
	})
	t.Run("the replica has no such user", func(t *testing.T) {
		replica.Do(t, "ACL", "SETUSER", replica.User, "off")
		awaitNodes(t, c, both[0], both[1]+" down")
		replica.Do(t, "ACL", "SETUSER", replica.User, "on")
		awaitNodes(t, c, both...)
	})
	t.Run("the master hangs", func(t *testing.T) {
		master.Signal(t, syscall.SIGSTOP)
		defer master.Signal(t, syscall.SIGCONT)
		awaitNodes(t, c, both[0]+" down", both[1])
	})
	t.Run("the replica is gone", func(t *testing.T) {
		awaitNodes(t, c, both...)
		replica.Kill()
		awaitNodes(t, c, both[0], both[1]+" down")
	})
	t.Run("the master is gone", func(t *testing.T) {
		master.Kill()
		awaitNodes(t, c, both[0]+" down", both[1]+" down")
		if err := master.Start(); err != nil {
			t.Fatal(err)
		}
		awaitNodes(t, c, both[0], both[1]+" down")
	})
	t.Run("it is a replica itself", func(t *testing.T) {
		master.Do(t, "REPLICAOF", "127.0.0.1", "1")
		awaitNodes(t, c, master.TCP+" replica", both[1]+" down")
	})
	if log.String() != "" {
		t.Errorf("log:\n%s", log)
	}
}

// Those that ask at the same time share what is found, so that a server that hangs is not asked by each.
func TestNodesAreShared(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	replica := replicaOf(t, master)
	c := newTestClient(t, master.URL(), new(telemetrytest.Log))
	awaitNodes(t, c, master.TCP+" master", replica.TCP+" replica")
	calls := func() int {
		info, _ := redis.String(master.Do(t, "INFO", "commandstats"), nil)
		return redistest.Calls(info, "role")
	}
	before := calls()
	replica.Signal(t, syscall.SIGSTOP)
	defer replica.Signal(t, syscall.SIGCONT)
	Each(100, 100, func(int) {
		if err := isNodes(c, master.TCP+" master", replica.TCP+" replica down"); err != nil {
			t.Error(err)
		}
	})
	if n := calls() - before; n < 1 || n > 3 {
		t.Errorf("the master was asked %d times", n)
	}
	if n := c.master.Load().pool.Stats().ActiveCount; n > 1 {
		t.Errorf("there are %d connections to the master", n)
	}
}

// A Sentinel names the replicas of its master, also those that are down, or whose master is.
func TestNodesBehindSentinels(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	replica := replicaOf(t, master)
	sentinel := redistest.NewSentinel(t, master.Port)
	gone := &redistest.Sentinel{Address: "127.0.0.1:1"}
	url := redistest.SentinelURL(gone, sentinel)
	c := newTestClient(t, url, new(telemetrytest.Log))
	if got := c.Topology(); got != "sentinel" {
		t.Errorf("the topology is %s", got)
	}
	awaitNodes(t, c, master.TCP+" master", replica.TCP+" replica")
	replica.Kill()
	c = newTestClient(t, url, new(telemetrytest.Log)) // which has not seen it up
	awaitNodes(t, c, master.TCP+" master", replica.TCP+" replica down")
	master.Signal(t, syscall.SIGSTOP)
	defer master.Signal(t, syscall.SIGCONT)
	awaitNodes(t, c, master.TCP+" master down", replica.TCP+" replica down")
}

// Without a Sentinel that responds, the master names its replicas.
func TestNodesWithoutSentinels(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	sentinel := redistest.NewSentinel(t, master.Port)
	c := newTestClient(t, redistest.SentinelURL(sentinel), new(telemetrytest.Log))
	sentinel.Kill()
	replica := replicaOf(t, master)
	awaitNodes(t, c, master.TCP+" master", replica.TCP+" replica")
}

// All nodes of a cluster are listed, masters first.
func TestNodesOfCluster(t *testing.T) {
	cluster := redistest.SharedCluster(t)
	c := newTestClient(t, cluster.URL(), new(telemetrytest.Log))
	if got := c.Topology(); got != "cluster" {
		t.Errorf("the topology is %s", got)
	}
	var want []string
	for _, role := range []string{"master", "replica"} {
		var nodes []string
		for _, n := range cluster.Nodes {
			if n.IsMaster(t) == (role == "master") {
				nodes = append(nodes, n.TCP+" "+role)
			}
		}
		want = append(want, slices.Sorted(slices.Values(nodes))...)
	}
	awaitNodes(t, c, want...)

	// One that the map of the slots had is listed, too, when the masters take it for dead.
	c = newTestClient(t, cluster.URL(), new(telemetrytest.Log))
	victim := cluster.ReplicaOf(t, cluster.MastersNow(t)[0])
	awaitListed := func(want bool) {
		t.Helper()
		waittest.Eventually(t, 20*time.Second, func() error {
			for _, n := range cluster.MastersNow(t) { // a replica without data is not in the map
				n.Do(t, "SET", keyInSlot(n.Slots(t)[0]), "1")
			}
			if err := c.refreshSlots(t.Context(), time.Second); err != nil {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if slices.Contains(c.replicasAt, victim.TCP) != want {
				return fmt.Errorf("the replicas are %q", c.replicasAt)
			}
			return nil
		})
	}
	awaitListed(true)
	cluster.ExpectFailures(t)
	victim.Kill()
	awaitListed(false)
	want[slices.Index(want, victim.TCP+" replica")] += " down"
	awaitNodes(t, c, want...)
}

// A replica is reached over TCP, and may have the certificate of the name in the URL.
func TestURLOfReplicas(t *testing.T) {
	for rawURL, want := range map[string]string{
		"rediss://u:p@redis.example.com/3":                 "redis.example.com",
		"rediss://u:p@10.0.0.1/3":                          "",
		"unix:///run/redis.sock":                           "",
		"rediss-cluster://u:p@a.example.com,b.example.com": "a.example.com",
	} {
		u, err := ParseURL(rawURL)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.ofReplicas(); got.network != "tcp" || got.seedName() != want || got.db != u.db || got.password != u.password {
			t.Errorf("%s: got %s, the name %q, want %q", rawURL, got.network, got.seedName(), want)
		}
	}
}

func TestReadRole(t *testing.T) {
	replica := func(host, port string) []any { return []any{[]byte(host), []byte(port), []byte("1")} }
	tests := map[string]struct {
		reply    []any
		role     string
		replicas []string
	}{
		"a master": {[]any{[]byte("master"), int64(7), []any{replica("10.0.0.2", "7"), replica("", "8"), replica("::1", "9")}},
			"master", []string{"10.0.0.2:7", "10.0.0.1:8", "[::1]:9"}},
		"a master alone":  {[]any{[]byte("master"), int64(7), []any{}}, "master", nil},
		"a replica":       {[]any{[]byte("slave"), []byte("10.0.0.2"), int64(6379), []byte("connected"), int64(7)}, "replica", nil},
		"a Sentinel":      {[]any{[]byte("sentinel"), []any{}}, "given", nil},
		"nothing":         {nil, "given", nil},
		"something else":  {[]any{int64(1), int64(2), int64(3)}, "given", nil},
		"other replicas":  {[]any{[]byte("master"), int64(7), []any{int64(1), []any{[]byte("x")}, replica("y", "1")}}, "master", []string{"y:1"}},
		"no list of them": {[]any{[]byte("master"), int64(7), int64(7)}, "master", nil},
	}
	for name, test := range tests {
		r := nodeReply{NodeState: NodeState{Address: "10.0.0.1:6379", Role: "given"}}
		if r.readRole(test.reply); r.Role != test.role || !slices.Equal(r.replicas, test.replicas) {
			t.Errorf("%s: got %s %q, want %s %q", name, r.Role, r.replicas, test.role, test.replicas)
		}
	}
}

// An address is forgotten an hour after it was last named, and earlier if there are too many.
func TestNodeNames(t *testing.T) {
	start := time.Now()
	names := make(nodeNames)
	for i, step := range []struct {
		after time.Duration
		named string
		want  string
	}{
		{0, "a b", "a b"}, {namedAge, "b c", "a b c"}, {namedAge + 1, "c", "b c"}, {2*namedAge + 1, "", "c"},
		{3*namedAge + 2, "d", "d"},
	} {
		names.note(start.Add(step.after), strings.Fields(step.named))
		if got := slices.Sorted(maps.Keys(names)); !reflect.DeepEqual(got, strings.Fields(step.want)) {
			t.Errorf("step %d: got %q, want %s", i, got, step.want)
		}
	}
	for i := range 3 * maxListed {
		names.note(start.Add(3*namedAge+time.Duration(i)), []string{strconv.Itoa(i), "e"})
	}
	if len(names) != maxListed || names[strconv.Itoa(3*maxListed-1)].IsZero() || !names["0"].IsZero() {
		t.Errorf("%d are known: %v", len(names), names)
	}
}

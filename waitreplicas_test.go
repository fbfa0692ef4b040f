package main

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// With -wait-replicas no charge that was acknowledged is lost when a master is killed.
func TestWaitReplicas(t *testing.T) {
	long(t)
	t.Parallel()
	c, err := redistest.StartCluster(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	services := newServices(t, "REDIS_URL="+c.URL(), "WAIT_REPLICAS=1")
	tenant := newClusterTenant(t, services[0], ledgerConfig)
	const start = 1_000_000
	keys := make([]string, 8)
	for i := range keys {
		keys[i] = services[0].issue(t, tenant, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, start))
	}
	// What a charge led to is known only to its client, so each counts by itself.
	acknowledged, unsure := make([]int, len(keys)), make([]int, len(keys))
	var stop atomic.Bool
	var served atomic.Int64
	var clients sync.WaitGroup
	for i, key := range keys {
		clients.Go(func() {
			for n := 0; !stop.Load(); n++ {
				got, err := services[n%2].send("POST", "/"+tenant+"/tokens/consume", "", bearer(key))
				switch {
				case err == nil && got.status == 200:
					acknowledged[i]++
					served.Add(1)
				case err == nil && got.status == 503:
					unsure[i]++
				default:
					t.Errorf("%d %s, %v", got.status, got.body, err)
					return
				}
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		before := served.Load()
		waittest.Eventually(t, 20*time.Second, func() error {
			if served.Load() < before+n {
				return fmt.Errorf("%d charges", served.Load()-before)
			}
			return nil
		})
	}
	const failovers = 20
	for range failovers {
		more(50)
		master := c.MastersNow(t)[0]
		replica := c.ReplicaOf(t, master)
		master.Kill()
		replica.Do(t, "CLUSTER", "FAILOVER", "TAKEOVER") // without a vote, which one master alone could not give
		if err := master.Start(); err != nil {
			t.Fatal(err)
		}
		waittest.Eventually(t, 20*time.Second, c.Check)
	}
	more(50)
	stop.Store(true)
	clients.Wait()
	all := 0
	for i, key := range keys {
		taken := start - balanceIn(t, c, key)
		if taken < acknowledged[i] || taken > acknowledged[i]+unsure[i] {
			t.Errorf("%d charges were acknowledged, %d taken, %d unsure", acknowledged[i], taken, unsure[i])
		}
		all += acknowledged[i]
	}
	t.Logf("%d charges were acknowledged through %d failovers", all, failovers)
}

// With -wait-replicas nothing is acknowledged while the replica does not respond. What is read over
// connections of its own goes on.
func TestWaitReplicasMissing(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	replica := redistest.New(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port), "--repl-diskless-sync-delay", "0")
	inSync := func() error {
		if redistest.Field(replica.String(t, "INFO", "replication"), "master_link_status") != "up" {
			return errors.New("the replica is not in sync")
		}
		return nil
	}
	waittest.Eventually(t, 20*time.Second, inSync)
	s := newService(t, "REDIS_URL="+master.URL(), "WAIT_REPLICAS=1")
	key := s.login(t, "abc")
	s.consume(t, "abc", key, `{"tokens":1}`, retryKey+"a").want(t, 200, `{"tokensLeft":99}`)
	replica.Signal(t, syscall.SIGSTOP)
	writes := []request{
		consumeRequest("abc", key, 1, retryKey+"b"),
		{method: "POST", path: "/abc/auth/anonymous"},
		{method: "PUT", path: "/abc/admin/config", body: `{"config":{"user_groups":{}}}`, headers: []string{bearer(testAdminToken)}},
		{method: "GET", path: "/readyz"},
	}
	unacknowledged := load{
		services: []*service{s}, clients: len(writes), requests: 1, statuses: []int{503},
		request: func(client, _ int) request { return writes[client] },
	}.run(t)
	for _, o := range unacknowledged {
		o.got.want(t, 503, `{"error":"Service unavailable"}`)
	}
	s.admin(t, "GET", "/abc/admin/config/history", "").want(t, 200, "")
	replica.Signal(t, syscall.SIGCONT)
	waittest.Eventually(t, 5*time.Second, func() error { return s.do(t, "GET", "/readyz", "").is(200) })
	got := s.consume(t, "abc", key, `{"tokens":1}`, retryKey+"b")
	got.want(t, 200, `{"tokensLeft":98}`)
	got.wantHeader(t, "Idempotent-Replayed", "true")
	if n := s.log.Count("[ERROR] Redis is unavailable: "); n != 1 { // or the deadline comes before WAIT's reply
		t.Errorf("log:\n%s", s.log)
	}
}

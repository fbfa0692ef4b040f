package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/providertest"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// The tests that share a cluster run one after the other, beside all others. To run one of them:
// go test -run 'TestCluster/resharding' .
func TestCluster(t *testing.T) {
	t.Parallel()
	t.Run("commands", testClusterCommands)
	t.Run("status", testClusterStatus)
	t.Run("login limit", testClusterLoginLimit)
	t.Run("responses", testClusterResponses)
	t.Run("index of keys", testIndexInCluster)
	t.Run("usage", testUsageInCluster)
	t.Run("payments", testPaymentsInCluster)
	t.Run("response cache", testCacheInCluster)
	t.Run("script flush", testClusterScriptFlush)
	t.Run("half-moved slot", testClusterHalfMovedSlot)
	t.Run("resharding", testClusterResharding)
	t.Run("spenders", testClusterSpenders)
	t.Run("contention", testClusterContention)
	t.Run("config freshness", testClusterConfigFreshness)
	t.Run("planned failover", testClusterPlannedFailover)
	t.Run("killed master", testClusterKilledMaster)
	t.Run("dead shard", testClusterDeadShard)
	t.Run("start without a master", testClusterStartWithoutMaster)
	t.Run("unowned slots", testClusterUnownedSlots)
	t.Run("frozen master", testClusterFrozenMaster)
	t.Run("nodes", testClusterNodes)
	// The last two have parts that are parallel, and wait until other tests have ended.
	t.Run("topologies", testRedisTopologies)
	t.Run("holds", testClusterWalks)
}

// Every script and command works on keys of every master, and in a steady state nothing is redirected.
func testClusterCommands(t *testing.T) {
	c := redistest.SharedCluster(t)
	services := newServices(t, "REDIS_URL="+c.URL(), "LOGIN_LIMIT=100000")
	s := services[0]
	var ids []string
	for range 30 {
		id := newClusterTenant(t, s, `{"user_groups":{"anonymous":{"tokens":9},"pro":{"tokens":9,"rate_limit":3,"rate_limit_window":60}}}`)
		ids = append(ids, id)
		anonymous := s.login(t, id)
		s.consume(t, id, anonymous, "").want(t, 200, `{"tokensLeft":8}`)
		pro := s.issue(t, id, `"userId":"u","group":"pro"`)
		for _, replayed := range []string{"", "true"} {
			got := services[1].consume(t, id, pro, `{"tokens":4}`, retryKey+"once")
			got.want(t, 200, `{"tokensLeft":5}`)
			got.wantHeader(t, "Idempotent-Replayed", replayed)
		}
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+pro, `{"addTokens":2}`).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(pro)).want(t, 200, "")
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+pro, "").want(t, 204, "")
		s.putConfig(t, id, `{"user_groups":{}}`).want(t, 200, `{"success":true}`)
		if n := len(s.history(t, id)); n != 2 {
			t.Errorf("%d versions, want 2", n)
		}
		token := s.admin(t, "POST", "/"+id+"/admin/tokens", "").text(t, "adminToken")
		s.do(t, "GET", "/"+id+"/admin/config", "", bearer(token)).want(t, 200, `{"config":{"user_groups":{}}}`)
		s.admin(t, "DELETE", "/"+id+"/admin/tokens", "").want(t, 204, "")
	}
	s.admin(t, "DELETE", "/admin/tenants/"+ids[0], "").want(t, 204, "")
	list := s.admin(t, "GET", "/admin/tenants", "").body
	for i, id := range ids {
		if listed := strings.Contains(list, `"`+id+`"`); listed != (i > 0) {
			t.Errorf("%s: listed is %v in %s", id, listed, list)
		}
	}
	for _, kind := range []string{"moved", "ask", "retry"} {
		if n := s.sample(t, `redis_redirects_total{kind="`+kind+`"}`); n != 0 {
			t.Errorf("%v redirects of the kind %s", n, kind)
		}
	}
	for _, n := range c.Nodes[:c.Masters] {
		if n.IsMaster(t) && s.sample(t, `redis_up{node="`+n.TCP+`"}`) != 1 {
			t.Errorf("redis_up of %s is not 1", n.TCP)
		}
	}
}

// Whose a response is is known wherever the owner's slot is.
func testClusterResponses(t *testing.T) {
	c, p := redistest.SharedCluster(t), providertest.New(t)
	g := &gatewayTest{service: newService(t, "REDIS_URL="+c.URL()), provider: p}
	config := textConfig(100_000, endpointJSON(p, "responses", responsesRoute, ""))
	g.tenant = newClusterTenant(t, g.service, strings.Replace(config, `{"anonymous"`, `{"pro":{"tokens":100000},"anonymous"`, 1))
	nodes := make(map[string]bool)
	for user := range 12 {
		id := fmt.Sprintf("%d}u", user)
		keys := statesRedisKeys(g.tenant, "u:"+id)
		if redisdb.Slot(keys[0]) != redisdb.Slot(keys[1]) {
			t.Errorf("%q are in two slots", keys)
		}
		nodes[c.Owner(t, keys[0]).TCP] = true
		g.key = g.issue(t, g.tenant, fmt.Sprintf(`"userId":%q,"group":"pro"`, id))
		response, items := g.create(t, "")
		g.create(t, fmt.Sprintf(`,"previous_response_id":%q`, response))
		if err := g.call(t, responsesRoute, fmt.Sprintf(`{"input":[{"id":%q}]}`, items[0])).is(200); err != nil {
			t.Error(err)
		}
		if err := g.about(t, "DELETE", response).is(200); err != nil {
			t.Error(err)
		}
	}
	if len(nodes) < 2 {
		t.Errorf("all are on %v", nodes)
	}
}

// The login limit of an address holds in a cluster.
func testClusterLoginLimit(t *testing.T) {
	c := redistest.SharedCluster(t)
	services := newServices(t, "REDIS_URL="+c.URL(), "LOGIN_LIMIT=20")
	conn := c.Conn()
	defer conn.Close()
	redistest.MustDo(t, conn, "DEL", "login:127.0.0.1")
	all := load{
		services: services, clients: 8, requests: 10, statuses: []int{200, 429},
		request: func(int, int) request { return request{method: "POST", path: "/abc/auth/anonymous"} },
	}.run(t)
	if n := len(all.of("", 200)); n != 20 {
		t.Errorf("%d logins, want 20", n)
	}
	redistest.MustDo(t, conn, "DEL", "login:127.0.0.1")
}

// ledger is a load of keyed charges, each of which is repeated until it succeeds.
type ledger struct {
	cluster  *redistest.Cluster
	services []*service
	tenant   string
	keys     []string
	started  int // balance
	running  *runningLoad
}

const ledgerClients = 12

// startLedger begins to charge keys of a new tenant over two processes, perMaster of them on each master of the cluster
// that tests share. Each of the clients pauses after a charge.
func startLedger(t testing.TB, perMaster int, pause time.Duration) *ledger {
	t.Helper()
	l := &ledger{cluster: redistest.SharedCluster(t), started: 1_000_000}
	l.services = newServices(t, "REDIS_URL="+l.cluster.URL())
	l.tenant = newClusterTenant(t, l.services[0], ledgerConfig)
	members := fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, l.started)
	for _, some := range keysOn(t, l.cluster, l.services[0], l.tenant, perMaster, members) {
		l.keys = append(l.keys, some...)
	}
	var n atomic.Int64
	l.running = load{
		services: l.services, clients: ledgerClients, statuses: []int{200}, retry: true, within: 2*time.Second + busy,
		pause: pause,
		request: func(client, i int) request {
			return consumeRequest(l.tenant, l.keys[(client*7+i)%len(l.keys)], 1, retryKey+strconv.FormatInt(n.Add(1), 10))
		},
	}.start(t)
	return l
}

// slotsOf returns that many of the first slots of a master, and those of the keys that are charged there.
func (l *ledger) slotsOf(t testing.TB, master *redistest.Server, first int) []int {
	t.Helper()
	owned := master.Slots(t)
	slots := owned[:first:first]
	for _, key := range l.keys {
		if slot := redisdb.Slot(apiKeyRedisKey(key)); slices.Contains(owned, slot) && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
	}
	return slots
}

// stop ends the load and returns how many tokens were acknowledged, how many were taken, and how many requests were 503.
func (l *ledger) stop(t testing.TB) (acknowledged, taken, failed int) {
	t.Helper()
	all := l.running.stop()
	for _, key := range l.keys {
		taken += l.started - balanceIn(t, l.cluster, key)
	}
	return all.of("", 200).sum(), taken, len(all.of("", 503))
}

// wantExact ends the load and checks that each charge was taken once, at least that many, and that none failed, but for
// those whose deadline a busy machine may miss: one in a thousand, or one of each client.
func (l *ledger) wantExact(t testing.TB, least int) {
	t.Helper()
	acknowledged, taken, failed := l.stop(t)
	if acknowledged != taken || failed > max(acknowledged/1000, ledgerClients) || acknowledged < least {
		t.Errorf("%d charges were acknowledged and %d taken; %d requests were 503", acknowledged, taken, failed)
	}
}

// wantNoneTwice ends the load and checks that no more was taken than was acknowledged.
func (l *ledger) wantNoneTwice(t testing.TB) {
	t.Helper()
	acknowledged, taken, failed := l.stop(t)
	if taken > acknowledged {
		t.Errorf("%d charges were acknowledged and %d taken", acknowledged, taken)
	}
	t.Logf("%d acknowledged, %d lost, %d requests were 503", acknowledged, acknowledged-taken, failed)
}

// wantMaster waits until a replica has become a master.
func wantMaster(t testing.TB, replica *redistest.Server) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if !replica.IsMaster(t) {
			return errors.New("the replica is not a master")
		}
		return nil
	})
}

const ledgerConfig = `{"user_groups":{"anonymous":{"tokens":50},"pro":{"tokens":5000,"rate_limit":100000,"rate_limit_window":1}}}`

// Slots may be moved while their keys are charged: each charge is taken once, and none fails.
func testClusterResharding(t *testing.T) {
	long(t)
	l := startLedger(t, 20, 10*time.Millisecond)
	c := l.cluster
	l.running.more(t, 500)
	masters := c.MastersNow(t)
	from, to := masters[0], masters[1]
	slots := l.slotsOf(t, from, 50)
	c.MoveSlots(t, from, to, slots)
	c.MoveSlots(t, to, from, slots)
	l.running.more(t, 500)
	l.wantExact(t, 1000)
	s := l.services[0]
	if n := s.sample(t, `redis_redirects_total{kind="ask"}`) + s.sample(t, `redis_redirects_total{kind="moved"}`); n < 10 {
		t.Errorf("%v redirects prove little", n)
	}
}

// A command that is refused because its slot is half moved waits until it has been moved.
func testClusterHalfMovedSlot(t *testing.T) {
	c := redistest.SharedCluster(t)
	s := newService(t, "REDIS_URL="+c.URL(), "LOGIN_LIMIT=1000")
	tenant := newClusterTenant(t, s, ledgerConfig)
	key := s.login(t, tenant)
	s.consume(t, tenant, key, "").want(t, 200, `{"tokensLeft":49}`)
	tests := []struct {
		name, redisKey string
		send           func() reply
		want           string
	}{
		{"charge", apiKeyRedisKey(key), func() reply { return s.consume(t, tenant, key, "") }, `{"tokensLeft":48}`},
		{"charge with an Idempotency-Key", apiKeyRedisKey(key), func() reply {
			return s.consume(t, tenant, key, "", retryKey+"k")
		}, `{"tokensLeft":47}`},
		{"config", configRedisKey(tenant), func() reply { return s.putConfig(t, tenant, ledgerConfig) }, `{"success":true}`},
		{"login", loginRedisKey("127.0.0.1"), func() reply {
			return s.do(t, "POST", "/"+tenant+"/auth/anonymous", "")
		}, ""},
	}
	t.Run("for too long", func(t *testing.T) {
		redisKey := apiKeyRedisKey(key)
		from := c.Owner(t, redisKey)
		masters := c.MastersNow(t)
		to := masters[(slices.Index(masters, from)+1)%len(masters)]
		to.Do(t, "CLUSTER", "SETSLOT", redisdb.Slot(redisKey), "IMPORTING", from.ID(t))
		from.Do(t, "CLUSTER", "SETSLOT", redisdb.Slot(redisKey), "MIGRATING", to.ID(t))
		s.consume(t, tenant, key, "", retryKey+"late").want(t, 503, `{"error":"Service unavailable"}`)
		c.MoveSlots(t, from, to, []int{redisdb.Slot(redisKey)})
		c.MoveSlots(t, to, from, []int{redisdb.Slot(redisKey)})
		if left := balanceIn(t, c, key); left != 49 {
			t.Errorf("%d tokens are left, want 49", left)
		}
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			from := c.Owner(t, test.redisKey)
			masters := c.MastersNow(t)
			to := masters[(slices.Index(masters, from)+1)%len(masters)]
			slot := redisdb.Slot(test.redisKey)
			fromID, toID := from.ID(t), to.ID(t)
			to.Do(t, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
			from.Do(t, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
			// One key of the slot is there already, so that commands with several keys find some on each side.
			from.Do(t, "MIGRATE", "127.0.0.1", to.Port, test.redisKey, 0, 5000)
			var got reply
			var sent sync.WaitGroup // which also ends if the request fails
			sent.Go(func() { got = test.send() })
			time.Sleep(200 * time.Millisecond) // a resharding may leave a slot like this for a while
			c.MoveSlots(t, from, to, []int{slot})
			sent.Wait()
			got.want(t, 200, test.want)
			c.MoveSlots(t, to, from, []int{slot})
		})
	}
}

// A planned failover loses no charge, and fails none.
func testClusterPlannedFailover(t *testing.T) {
	long(t)
	l := startLedger(t, 5, 20*time.Millisecond)
	c := l.cluster
	c.ExpectFailures(t)
	for range 3 {
		redistest.AwaitVotes()
		l.running.more(t, 200)
		replica := c.ReplicaOf(t, c.MastersNow(t)[0])
		replica.Do(t, "CLUSTER", "FAILOVER")
		wantMaster(t, replica)
		waittest.Eventually(t, 20*time.Second, c.Check)
	}
	l.running.more(t, 200)
	l.wantExact(t, 800)
}

// When a master is killed, its replica takes over, nothing is charged twice, and the keys of others are served meanwhile.
func testClusterKilledMaster(t *testing.T) {
	long(t)
	redistest.AwaitVotes()
	l := startLedger(t, 5, 20*time.Millisecond)
	c, s, tenant := l.cluster, l.services[0], l.tenant
	c.ExpectFailures(t)
	l.running.more(t, 200)
	victim := c.MastersNow(t)[0]
	replica := c.ReplicaOf(t, victim)
	key := keysOn(t, c, s, tenant, 1, `"userId":"u","group":"pro"`)[victim.TCP][0]
	redistest.AwaitCopy(t, victim, replica)
	victim.Kill()
	wantMaster(t, replica)
	promoted := time.Now()
	waittest.Eventually(t, 2*time.Second+busy, func() error { return s.consume(t, tenant, key, "").is(200) })
	t.Logf("served %s after the promotion", time.Since(promoted))
	l.running.more(t, 200)
	l.wantNoneTwice(t)
}

// A master that is down without a replica takes down neither the keys of others nor the service, and a tenant whose
// config it has goes on with the cached one for a while.
func testClusterDeadShard(t *testing.T) {
	long(t)
	c := redistest.SharedCluster(t)
	s := newService(t, "REDIS_URL="+c.URL())
	tenant := newClusterTenant(t, s, ledgerConfig)
	victim := c.Owner(t, configRedisKey(tenant))
	other := newClusterTenant(t, s, ledgerConfig)
	for c.Owner(t, configRedisKey(other)) == victim {
		other = newClusterTenant(t, s, ledgerConfig)
	}
	dead, alive := make(map[string][]string), make(map[string][]string) // by tenant
	tenants := []string{other, tenant}
	for _, id := range tenants {
		keys := keysOn(t, c, s, id, 4, `"userId":"u","group":"pro","tokens":1000000`)
		dead[id] = keys[victim.TCP]
		for address, some := range keys {
			if address != victim.TCP {
				alive[id] = append(alive[id], some...)
			}
		}
	}
	s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(alive[tenant][0])).want(t, 200, "") // its config is read
	c.ReplicaOf(t, victim).Kill()
	victim.Kill()
	half := in(configGraceAge / 2)
	onDead := load{
		services: []*service{s}, clients: 50, statuses: []int{503}, within: 2*time.Second + busy,
		request: func(client, i int) request {
			id := tenants[client%2]
			return consumeRequest(id, dead[id][i%4], 1)
		},
	}.start(t)
	charges := func(id string) load {
		keys := alive[id]
		return load{
			services: []*service{s}, clients: 8, statuses: []int{200}, retry: true, within: 2*time.Second + busy,
			request: func(client, i int) request { return consumeRequest(id, keys[(client+i)%len(keys)], 1) },
		}
	}
	cached, others := charges(tenant), charges(other)
	cached.until = func(outcome) bool { return time.Now().After(half) }
	others.requests = 400
	ofCached := cached.start(t)
	ofOthers := others.run(t)
	// A busy machine that stands still for a second lets each client miss one deadline.
	if n, failed := len(ofOthers.of("", 200)), len(ofOthers.of("", 503)); n != 3200 || failed > 16 {
		t.Errorf("%d charges of other keys, want 3200; %d requests were 503", n, failed)
	}
	all := ofCached.wait()
	if n, failed := len(all.of("", 200)), len(all.of("", 503)); n < 8 || failed > 16 {
		t.Errorf("%d charges with a cached config, %d requests were 503", n, failed)
	}
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
	if n := s.sample(t, `redis_up{node="`+victim.TCP+`"}`); n != 0 {
		t.Errorf("redis_up is %v", n)
	}
	if n := len(onDead.stop().of("", 503)); n < 50 {
		t.Errorf("%d charges of keys of the dead master failed", n)
	}
	if s.log.Count("[ERROR] Redis "+victim.TCP+" is unavailable: ") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

// A service starts while one master is down, and without a replica. It says so, serves the keys of the others, and
// checks the master when it is back. A master that denies a command ends the start all the same.
func testClusterStartWithoutMaster(t *testing.T) {
	c := redistest.SharedCluster(t)
	newService(t, "REDIS_URL="+c.URL()) // the seed is there
	masters := c.MastersNow(t)
	victim := c.Owner(t, configRedisKey("abc")) // where the start would write the example tenant
	c.ReplicaOf(t, victim).Kill()
	victim.Kill()
	s := newService(t, "REDIS_URL="+c.URL())
	if n := s.log.Count("[WARN] Redis " + victim.TCP + " cannot be used yet: "); n != 1 {
		t.Errorf("%d lines about the master:\n%s", n, s.log)
	}
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
	other := masters[(slices.Index(masters, victim)+1)%len(masters)]
	other.Do(t, "ACL", "SETUSER", "tollgate", "-hincrby")
	p := startProcess(t, []string{"REDIS_URL=" + c.URL(), "ADDR=127.0.0.1:0"})
	if code := p.exitCode(t); code != 1 || p.log.Count("[ERROR] Redis connection failed: "+other.TCP+": NOPERM ") != 1 {
		t.Errorf("a master denies a command: exit code %d\n%s", code, p.log)
	}
	other.Do(t, "ACL", "SETUSER", "tollgate", "+hincrby")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	s.log.Wait(t, "[INFO] Redis "+victim.TCP+" can be used now", nil)
	victim.Do(t, "SET", configRedisKey("abc"), string(seedConfig)) // it keeps nothing on disk
	waittest.Eventually(t, 5*time.Second, func() error { return s.do(t, "POST", "/abc/auth/anonymous", "").is(200) })
}

// A slot without an owner, or all slots of a master, are said in the log and in the metrics, also at start. Requests for
// their keys wait for an owner until their deadline.
func testClusterUnownedSlots(t *testing.T) {
	c := redistest.SharedCluster(t)
	s := newService(t, "REDIS_URL="+c.URL())
	tenant := newClusterTenant(t, s, ledgerConfig)
	key := s.login(t, tenant)
	for c.Owner(t, apiKeyRedisKey(key)) == c.Owner(t, configRedisKey(tenant)) {
		key = s.login(t, tenant)
	}
	owner := c.Owner(t, apiKeyRedisKey(key))
	for _, slots := range [][]int{{redisdb.Slot(apiKeyRedisKey(key))}, owner.Slots(t)} {
		t.Run(fmt.Sprint(len(slots), " slots"), func(t *testing.T) {
			before := s.log.Count("All slots have an owner again")
			give := disownSlots(t, c, owner, slots)
			line := fmt.Sprintf("[ERROR] %d of 16384 slots have an owner", 16384-len(slots))
			waittest.Eventually(t, 5*time.Second, func() error {
				got := s.consume(t, tenant, key, "")
				if got.status != 503 || s.log.Count(line) != 1 {
					return fmt.Errorf("got %d %s, log:\n%s", got.status, got.body, s.log)
				}
				return nil
			})
			if n := s.sample(t, "redis_slots_unowned"); n != float64(len(slots)) {
				t.Errorf("redis_slots_unowned is %v, want %d", n, len(slots))
			}
			if n := newService(t, "REDIS_URL="+c.URL()).log.Count(line); n != 1 {
				t.Errorf("a new service logs %d lines", n)
			}
			given := 0
			repeat(func() (got reply) { // a busy machine may give them too late for a request
				if given > 0 {
					give = disownSlots(t, c, owner, slots)
				}
				var sent sync.WaitGroup
				sent.Go(func() { got = s.consume(t, tenant, key, "") })
				time.Sleep(100 * time.Millisecond)
				give()
				given++
				sent.Wait()
				return got
			}).want(t, 200, "")
			waittest.Eventually(t, 5*time.Second, func() error {
				lines, n := s.log.Count("All slots have an owner again"), s.sample(t, "redis_slots_unowned")
				if lines <= before || lines > before+given || n != 0 {
					return fmt.Errorf("redis_slots_unowned is %v, log:\n%s", n, s.log)
				}
				return nil
			})
		})
		waittest.Eventually(t, 20*time.Second, c.Check)
	}
}

// disownSlots takes slots from their owner, so that no node knows one. They have it again when give is called, or when
// the test ends.
func disownSlots(t *testing.T, c *redistest.Cluster, owner *redistest.Server, slots []int) (give func()) {
	t.Helper()
	args := make([]any, len(slots))
	for i, slot := range slots {
		args[i] = slot
	}
	give = sync.OnceFunc(func() { owner.Do(t, "CLUSTER", append([]any{"ADDSLOTS"}, args...)...) })
	t.Cleanup(give)
	assigned := strconv.Itoa(16384 - len(slots))
	owner.Do(t, "CLUSTER", append([]any{"DELSLOTS"}, args...)...)
	waittest.Eventually(t, 10*time.Second, func() (err error) {
		for _, n := range c.Nodes {
			if redistest.Field(n.String(t, "CLUSTER", "INFO"), "cluster_slots_assigned") != assigned {
				_ = n.DoAll(append([]any{"CLUSTER", "DELSLOTS"}, args...)) // a message of the owner may bring them back
				err = errors.New(n.TCP + " has the slots")
			}
		}
		return err
	})
	return give
}

// A master that is frozen and comes back after its replica was promoted neither loses nor repeats what was acknowledged.
func testClusterFrozenMaster(t *testing.T) {
	long(t)
	l := startLedger(t, 5, 20*time.Millisecond)
	c := l.cluster
	c.ExpectFailures(t)
	l.running.more(t, 200)
	victim := c.MastersNow(t)[1]
	replica := c.ReplicaOf(t, victim)
	redistest.AwaitCopy(t, victim, replica)
	victim.Signal(t, syscall.SIGSTOP)
	wantMaster(t, replica)
	victim.Signal(t, syscall.SIGCONT)
	l.running.more(t, 500)
	l.wantNoneTwice(t)
}

// A node may be added and another one removed while their keys are charged. Afterwards nothing is sent to the latter.
func testClusterNodes(t *testing.T) {
	long(t)
	l := startLedger(t, 20, 10*time.Millisecond)
	c, s := l.cluster, l.services[0]
	l.running.more(t, 200)
	added, err := redistest.StartClusterNode("--cluster-node-timeout", "5000") // as the others now have
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes = append(c.Nodes, added)
	if err := added.DoAll([]any{"CLUSTER", "RESET", "HARD"}, redistest.Meet(c.Nodes[0])); err != nil {
		t.Fatal(err)
	}
	waittest.Eventually(t, 20*time.Second, c.Check)
	from := c.Owner(t, apiKeyRedisKey(l.keys[0]))
	slots := l.slotsOf(t, from, 50)
	c.MoveSlots(t, from, added, slots)
	l.running.more(t, 200)
	waittest.Eventually(t, 5*time.Second, func() error {
		if n := s.sample(t, `redis_up{node="`+added.TCP+`"}`); n != 1 {
			return fmt.Errorf("redis_up of the added node is %v", n)
		}
		return nil
	})
	c.MoveSlots(t, added, from, slots)
	id := added.ID(t)
	c.Nodes = slices.DeleteFunc(c.Nodes, func(n *redistest.Server) bool { return n == added })
	for _, n := range c.Nodes {
		n.Do(t, "CLUSTER", "FORGET", id)
	}
	l.running.more(t, 200)
	added.Close()
	before := s.log.String()
	l.running.more(t, 1000)
	if after := s.log.String(); strings.Contains(strings.TrimPrefix(after, before), "unavailable") {
		t.Errorf("log:\n%s", after)
	}
	l.wantExact(t, 1600)
}

// A config that another process has put is served within a second, while its slot moves too.
func testClusterConfigFreshness(t *testing.T) {
	long(t)
	c := redistest.SharedCluster(t)
	services := newServices(t, "REDIS_URL="+c.URL())
	id := newClusterTenant(t, services[0], `{"v":0}`)
	masters := c.MastersNow(t)
	for i := range 9 {
		services[1].wantConfig(t, id, fmt.Sprintf(`{"v":%d}`, i))
		from := c.Owner(t, configRedisKey(id))
		to := masters[(slices.Index(masters, from)+1)%len(masters)]
		put := func() { services[0].putConfig(t, id, fmt.Sprintf(`{"v":%d}`, i+1)).want(t, 200, `{"success":true}`) }
		if i%2 == 0 {
			put()
		}
		c.MoveSlots(t, from, to, []int{redisdb.Slot(configRedisKey(id))})
		if i%2 == 1 {
			put()
		}
	}
	services[1].wantConfig(t, id, `{"v":9}`)
}

// sameName is a cluster of two nodes that announce one address, that of a proxy which leads to one of them.
type sameName struct {
	cluster  *redistest.Cluster
	from, to *redistest.Server // from has all slots
	target   atomic.Pointer[redistest.Server]
	address  string
}

// newSameName starts a cluster whose proxy leads to from.
func newSameName(t *testing.T) *sameName {
	t.Helper()
	start := func() *redistest.Server {
		n, err := redistest.StartClusterNode("--cluster-announce-ip", "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		return n
	}
	c := &sameName{from: start(), to: start()}
	c.cluster = &redistest.Cluster{Nodes: []*redistest.Server{c.from, c.to}}
	c.from.Do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	if err := c.to.DoAll([]any{"CLUSTER", "SET-CONFIG-EPOCH", 1}, redistest.Meet(c.from)); err != nil {
		t.Fatal(err)
	}
	waittest.Eventually(t, 20*time.Second, c.cluster.Check)
	c.target.Store(c.from)
	c.address = redistest.NewProxyTo(t, c.target.Load, func([]byte) redistest.Fate { return redistest.Pass }).Address
	_, port, err := net.SplitHostPort(c.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.cluster.Nodes {
		n.Do(t, "CONFIG", "SET", "cluster-announce-port", port)
	}
	for _, n := range c.cluster.Nodes { // each learns from the other what it announces
		waittest.Eventually(t, 10*time.Second, func() error {
			if nodes := n.String(t, "CLUSTER", "NODES"); strings.Count(nodes, "127.0.0.1:"+port+"@") != 2 {
				return errors.New(nodes)
			}
			return nil
		})
	}
	return c
}

// service starts a service that reaches the cluster through the proxy.
func (c *sameName) service(t *testing.T) *service {
	t.Helper()
	return newService(t, fmt.Sprintf("REDIS_URL=redis-cluster://tollgate:%s@%s", redistest.Password, c.address))
}

// Some services give a master a new server and let its name stand. The old one then says that the slot has moved to that
// very name: only a new connection leads to the new one.
func TestClusterSameName(t *testing.T) {
	t.Parallel()
	c := newSameName(t)
	s := c.service(t)
	key := s.login(t, "abc")
	c.cluster.MoveSlots(t, c.from, c.to, []int{redisdb.Slot(apiKeyRedisKey(key)), redisdb.Slot(configRedisKey("abc"))})
	c.target.Store(c.to)
	for want := 99; want > 90; want-- {
		got := repeat(func() reply { return s.consume(t, "abc", key, "", retryKey+strconv.Itoa(want)) })
		got.want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, want))
	}
	if left := tokensLeftIn(t, c.to, key); left != 91 {
		t.Errorf("%d tokens are left at the new server, want 91", left)
	}
}

// If the name leads to the old server for ever, that is one fault in the log, and one count of errors, though the node is
// replaced again and again. On a busy machine a late reply may look like its end.
func TestClusterSameNameForEver(t *testing.T) {
	long(t)
	t.Parallel()
	c := newSameName(t)
	s := c.service(t)
	key := s.login(t, "abc")
	c.cluster.MoveSlots(t, c.from, c.to, []int{redisdb.Slot(apiKeyRedisKey(key))})
	load{
		services: []*service{s}, clients: 8, requests: 4, statuses: []int{503}, within: 2*time.Second + busy,
		request: func(int, int) request { return consumeRequest("abc", key, 1) },
	}.run(t)
	if n := s.log.Count("[ERROR]"); n < 1 || n > 3 {
		t.Errorf("%d errors in the log:\n%s", n, s.log)
	}
	if n := s.sample(t, fmt.Sprintf(`redis_errors_total{node="%s"}`, c.address)); n < 32 {
		t.Errorf("redis_errors_total is %v after 32 errors", n)
	}
}

// A script that one master has forgotten is loaded there again.
func testClusterScriptFlush(t *testing.T) {
	c := redistest.SharedCluster(t)
	s := newService(t, "REDIS_URL="+c.URL())
	tenant := newClusterTenant(t, s, ledgerConfig)
	for address, keys := range keysOn(t, c, s, tenant, 1, `"userId":"u","group":"pro"`) {
		i := slices.IndexFunc(c.Nodes, func(n *redistest.Server) bool { return n.TCP == address })
		c.Nodes[i].Do(t, "SCRIPT", "FLUSH")
		s.consume(t, tenant, keys[0], "").want(t, 200, `{"tokensLeft":4999}`)
	}
}

// The service says what to write into REDIS_URL if it is in another topology.
func testRedisTopologies(t *testing.T) {
	c := redistest.SharedCluster(t)
	plain := redistest.New(t)
	free, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	cluster := fmt.Sprintf("redis-cluster://tollgate:%s@", redistest.Password)
	tests := []struct{ name, url, want string }{
		{"a node of a cluster as one server", c.Nodes[0].URL(), "use redis-cluster://"},
		{"a replica of a cluster as one server", c.Nodes[5].URL(), "use redis-cluster://"},
		{"one server as a cluster", cluster + plain.TCP, "use redis://"},
		{"one server as a Sentinel", fmt.Sprintf("redis-sentinel://%s/x", plain.TCP), "this is not a Sentinel"},
		{"a seed that is down", cluster + fmt.Sprintf("127.0.0.1:%d", free), "connection refused"},
		{
			"a seed that is down and one server", cluster + fmt.Sprintf("127.0.0.1:%d,%s", free, plain.TCP),
			"connection refused; " + plain.TCP + ": this is not a node of a Redis Cluster",
		},
		{"a wrong password", "redis-cluster://tollgate:SECRET@" + c.Nodes[0].TCP, "WRONGPASS"},
	}
	t.Run("URLs", func(t *testing.T) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel() // some take the 5 s of a start
				p := startProcess(t, []string{"REDIS_URL=" + test.url, "ADDR=127.0.0.1:0"})
				if code := p.exitCode(t); code != 1 {
					t.Errorf("exit code %d", code)
				}
				log := p.log.String()
				if !strings.HasPrefix(log, "[ERROR] Redis connection failed: ") || !strings.Contains(log, test.want) ||
					strings.Contains(log, "SECRET") || strings.Count(log, "\n") != 1 {
					t.Errorf("log:\n%s", log)
				}
			})
		}
	})
	t.Run("the first seed is down", func(t *testing.T) {
		s := newService(t, "REDIS_URL="+cluster+fmt.Sprintf("127.0.0.1:%d,%s", free, c.Nodes[1].TCP))
		s.login(t, "abc")
	})
	t.Run("a master denies a command", func(t *testing.T) {
		denying := c.MastersNow(t)[2]
		denying.Do(t, "ACL", "SETUSER", "tollgate", "-hincrby")
		defer denying.Do(t, "ACL", "SETUSER", "tollgate", "+hincrby")
		p := startProcess(t, []string{"REDIS_URL=" + c.URL(), "ADDR=127.0.0.1:0"})
		want := "[ERROR] Redis connection failed: " + denying.TCP + ": NOPERM "
		if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), want) {
			t.Errorf("exit code %d\n%s", code, p.log)
		}
	})
}

// Nodes may be announced by names, which TLS verifies, or by addresses while the certificate has the seeds' name, or not
// at all. Ports may be those of TLS alone.
func TestClusterNames(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t) // for localhost
	announce := func(name string) []string {
		return []string{"--cluster-announce-hostname", name, "--cluster-preferred-endpoint-type", "hostname"}
	}
	tests := []struct {
		name string
		args []string
		seed string
		ok   bool
	}{
		{"names", announce("localhost"), "localhost", true},
		{"a seed that the certificate lacks", announce("localhost"), "127.0.0.1", false},
		{"a name that the certificate lacks", announce("ip6-localhost"), "localhost", false},
		{"addresses", nil, "localhost", true},
		{"unknown", []string{"--cluster-preferred-endpoint-type", "unknown-endpoint"}, "localhost", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // each waits two seconds for its server, which then begins to take writes
			port, err := redistest.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			n, err := redistest.StartClusterNode(append(test.args, "--tls-port", strconv.Itoa(port), "--tls-cert-file", certFile,
				"--tls-key-file", keyFile, "--tls-ca-cert-file", certFile, "--tls-auth-clients", "no", "--tls-cluster", "yes")...)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			n.Do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
			waittest.Eventually(t, 10*time.Second, func() error { return n.CheckMember(1) })
			url := fmt.Sprintf("rediss-cluster://tollgate:%s@%s", redistest.Password, net.JoinHostPort(test.seed, strconv.Itoa(port)))
			p := startProcess(t, []string{"REDIS_URL=" + url, "ADDR=127.0.0.1:0", "SSL_CERT_FILE=" + certFile})
			if test.ok {
				p.service(t).login(t, "abc")
			} else if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), "certificate") &&
				!strings.Contains(p.log.String(), ": lookup ip6-localhost") { // not every machine has that name
				t.Errorf("exit code %d\n%s", code, p.log)
			}
		})
	}
}

func TestClusterIPv6(t *testing.T) {
	t.Parallel()
	n, err := redistest.StartClusterNode("--bind", "::1", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.Do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	waittest.Eventually(t, 10*time.Second, func() error { return n.CheckMember(1) })
	s := newService(t, fmt.Sprintf("REDIS_URL=redis-cluster://tollgate:%s@[::1]:%d", redistest.Password, n.Port))
	s.login(t, "abc")
	if up := s.sample(t, fmt.Sprintf(`redis_up{node="[::1]:%d"}`, n.Port)); up != 1 {
		t.Errorf("redis_up is %v", up)
	}
}

// newClusterTenant creates a tenant in the cluster through the service.
func newClusterTenant(t testing.TB, s *service, config string) string {
	t.Helper()
	id := newTenantID()
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`).want(t, 201, "")
	return id
}

// keysOn returns API keys of a tenant, n of them on each master, by its address.
func keysOn(t testing.TB, c *redistest.Cluster, s *service, tenant string, n int, members string) map[string][]string {
	t.Helper()
	masters := make(map[string]map[int]bool)
	keys := make(map[string][]string)
	for _, node := range c.Nodes {
		if node.Alive() && node.IsMaster(t) {
			slots := make(map[int]bool)
			for _, slot := range node.Slots(t) {
				slots[slot] = true
			}
			masters[node.TCP], keys[node.TCP] = slots, nil
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
			if masters[address][redisdb.Slot(apiKeyRedisKey(key))] && len(keys[address]) < n {
				keys[address] = append(keys[address], key)
			}
		}
	}
	return keys
}

// balanceIn returns what is left of an API key, from its master.
func balanceIn(t testing.TB, c *redistest.Cluster, key string) int {
	t.Helper()
	conn := c.Conn()
	defer conn.Close()
	n, err := redis.Int(conn.Do("HGET", apiKeyRedisKey(key), "tokensLeft"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Every script and command works on keys of every master, and in a steady state nothing is redirected.
func TestCluster(t *testing.T) {
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url(), "LOGIN_LIMIT=100000")
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
	for _, n := range c.nodes[:c.masters] {
		if n.isMaster(t) && s.sample(t, `redis_up{node="`+n.tcp+`"}`) != 1 {
			t.Errorf("redis_up of %s is not 1", n.tcp)
		}
	}
}

// The login limit of an address holds in a cluster, where it takes two steps.
func TestClusterLoginLimit(t *testing.T) {
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url(), "LOGIN_LIMIT=20")
	conn := c.conn()
	defer conn.Close()
	mustDo(t, conn, "DEL", "login:127.0.0.1")
	all := load{
		services: services, clients: 8, requests: 10, statuses: []int{200, 429},
		request: func(int, int) request { return request{method: "POST", path: "/abc/auth/anonymous"} },
	}.run(t)
	if n := len(all.of("", 200)); n != 20 {
		t.Errorf("%d logins, want 20", n)
	}
	mustDo(t, conn, "DEL", "login:127.0.0.1")
}

// ledger is a load of keyed charges, each of which is repeated until it succeeds.
type ledger struct {
	cluster *testCluster
	tenant  string
	keys    []string
	started int // balance
	running *runningLoad
}

// startLedger begins to charge keys on all masters, a number of them on each.
func startLedger(t testing.TB, c *testCluster, services []*service, tenant string, perMaster int) *ledger {
	t.Helper()
	l := &ledger{cluster: c, tenant: tenant, started: 1_000_000}
	for _, some := range keysOn(t, c, services[0], tenant, perMaster, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, l.started)) {
		l.keys = append(l.keys, some...)
	}
	var n atomic.Int64
	l.running = load{
		services: services, clients: 12, statuses: []int{200}, retry: true, within: 2*time.Second + busy,
		request: func(client, i int) request {
			return consumeRequest(tenant, l.keys[(client*7+i)%len(l.keys)], 1, retryKey+strconv.FormatInt(n.Add(1), 10))
		},
	}.start(t)
	return l
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

const ledgerConfig = `{"user_groups":{"anonymous":{"tokens":50},"pro":{"tokens":5000,"rate_limit":100000,"rate_limit_window":1}}}`

// Slots may be moved while their keys are charged: each charge is taken once, and none fails.
func TestClusterResharding(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	l := startLedger(t, c, services, newClusterTenant(t, services[0], ledgerConfig), 40)
	l.running.more(t, 500)
	masters := c.mastersNow(t)
	from, to := masters[0], masters[1]
	slots := slotsOf(t, from)[:1000]
	for _, key := range l.keys { // those that are charged are among them
		if slot := keySlot(apiKeyRedisKey(key)); slices.Contains(slotsOf(t, from), slot) && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
	}
	c.moveSlots(t, from, to, slots)
	c.moveSlots(t, to, from, slots)
	l.running.more(t, 500)
	acknowledged, taken, failed := l.stop(t)
	if acknowledged != taken || failed > 0 || acknowledged < 1000 {
		t.Errorf("%d charges were acknowledged and %d taken; %d requests were 503", acknowledged, taken, failed)
	}
	if n := services[0].sample(t, `redis_redirects_total{kind="ask"}`) + services[0].sample(t, `redis_redirects_total{kind="moved"}`); n < 10 {
		t.Errorf("%v redirects prove little", n)
	}
}

// A command that is refused because its slot is half moved waits until it has been moved.
func TestClusterHalfMovedSlot(t *testing.T) {
	c := useCluster(t)
	s := newService(t, "REDIS_URL="+c.url(), "LOGIN_LIMIT=1000")
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
		from := c.owner(t, redisKey)
		masters := c.mastersNow(t)
		to := masters[(slices.Index(masters, from)+1)%len(masters)]
		to.do(t, "CLUSTER", "SETSLOT", keySlot(redisKey), "IMPORTING", c.id(t, from))
		from.do(t, "CLUSTER", "SETSLOT", keySlot(redisKey), "MIGRATING", c.id(t, to))
		s.consume(t, tenant, key, "", retryKey+"late").want(t, 503, `{"error":"Service unavailable"}`)
		c.moveSlots(t, from, to, []int{keySlot(redisKey)})
		c.moveSlots(t, to, from, []int{keySlot(redisKey)})
		if left := balanceIn(t, c, key); left != 49 {
			t.Errorf("%d tokens are left, want 49", left)
		}
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			from := c.owner(t, test.redisKey)
			masters := c.mastersNow(t)
			to := masters[(slices.Index(masters, from)+1)%len(masters)]
			slot := keySlot(test.redisKey)
			fromID, toID := c.id(t, from), c.id(t, to)
			to.do(t, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
			from.do(t, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
			// One key of the slot is there already, so that commands with several keys find some on each side.
			from.do(t, "MIGRATE", "127.0.0.1", to.port, test.redisKey, 0, 5000)
			var got reply
			var sent sync.WaitGroup // which also ends if the request fails
			sent.Go(func() { got = test.send() })
			time.Sleep(200 * time.Millisecond) // a resharding may leave a slot like this for a while
			c.moveSlots(t, from, to, []int{slot})
			sent.Wait()
			got.want(t, 200, test.want)
			c.moveSlots(t, to, from, []int{slot})
		})
	}
}

// A planned failover loses no charge, and fails none.
func TestClusterPlannedFailover(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	l := startLedger(t, c, services, newClusterTenant(t, services[0], ledgerConfig), 5)
	for range 3 {
		awaitVotes()
		l.running.more(t, 200)
		replica := c.replicaOf(t, c.mastersNow(t)[0])
		replica.do(t, "CLUSTER", "FAILOVER")
		eventually(t, 10*time.Second, func() error {
			if !replica.isMaster(t) {
				return errors.New("the replica is not a master")
			}
			return nil
		})
		eventually(t, 20*time.Second, c.check)
	}
	l.running.more(t, 200)
	acknowledged, taken, failed := l.stop(t)
	if acknowledged != taken || failed > 0 {
		t.Errorf("%d charges were acknowledged and %d taken; %d requests were 503", acknowledged, taken, failed)
	}
}

// When a master is killed, its replica takes over, nothing is charged twice, and the keys of others are served meanwhile.
func TestClusterKilledMaster(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	s := services[0]
	tenant := newClusterTenant(t, s, ledgerConfig)
	awaitVotes()
	l := startLedger(t, c, services, tenant, 5)
	l.running.more(t, 200)
	victim := c.mastersNow(t)[0]
	replica := c.replicaOf(t, victim)
	key := keysOn(t, c, s, tenant, 1, `"userId":"u","group":"pro"`)[victim.tcp][0]
	victim.kill()
	eventually(t, 20*time.Second, func() error {
		if !replica.isMaster(t) {
			return errors.New("the replica is not a master")
		}
		return nil
	})
	promoted := time.Now()
	eventually(t, 2*time.Second+busy, func() error { return s.consume(t, tenant, key, "").is(200) })
	t.Logf("served %s after the promotion", time.Since(promoted))
	l.running.more(t, 200)
	acknowledged, taken, failed := l.stop(t)
	if taken > acknowledged {
		t.Errorf("%d charges were acknowledged and %d taken", acknowledged, taken)
	}
	t.Logf("%d acknowledged, %d lost, %d requests were 503", acknowledged, acknowledged-taken, failed)
}

// A master that is down without a replica takes down neither the keys of others nor the service, and a tenant whose
// config it has goes on with the cached one.
func TestClusterDeadShard(t *testing.T) {
	long(t)
	c := useCluster(t)
	s := newService(t, "REDIS_URL="+c.url())
	var tenant string
	var victim *redisServer
	for victim == nil || !victim.isMaster(t) {
		tenant = newClusterTenant(t, s, ledgerConfig)
		victim = c.owner(t, configRedisKey(tenant))
	}
	keys := keysOn(t, c, s, tenant, 4, `"userId":"u","group":"pro","tokens":1000000`)
	dead := keys[victim.tcp]
	var others []string
	for address, some := range keys {
		if address != victim.tcp {
			others = append(others, some...)
		}
	}
	c.replicaOf(t, victim).kill()
	victim.kill()
	onDead := load{
		services: []*service{s}, clients: 50, statuses: []int{503}, within: 2*time.Second + busy,
		request: func(client, i int) request { return consumeRequest(tenant, dead[i%len(dead)], 1) },
	}.start(t)
	onOthers := load{
		services: []*service{s}, clients: 8, requests: 400, statuses: []int{200}, within: 2*time.Second + busy,
		request: func(client, i int) request { return consumeRequest(tenant, others[(client+i)%len(others)], 1) },
	}.run(t)
	if n := len(onOthers.of("", 200)); n != 3200 {
		t.Errorf("%d charges of other keys, want 3200", n)
	}
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
	if n := s.sample(t, `redis_up{node="`+victim.tcp+`"}`); n != 0 {
		t.Errorf("redis_up is %v", n)
	}
	if n := len(onDead.stop().of("", 503)); n < 50 {
		t.Errorf("%d charges of keys of the dead master failed", n)
	}
	if s.log.count("[ERROR] Redis "+victim.tcp+" is unavailable: ") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

// A master that is frozen and comes back after its replica was promoted neither loses nor repeats what was acknowledged.
func TestClusterFrozenMaster(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	l := startLedger(t, c, services, newClusterTenant(t, services[0], ledgerConfig), 5)
	l.running.more(t, 200)
	victim := c.mastersNow(t)[1]
	replica := c.replicaOf(t, victim)
	victim.signal(t, syscall.SIGSTOP)
	eventually(t, 20*time.Second, func() error {
		if !replica.isMaster(t) {
			return errors.New("the replica is not a master")
		}
		return nil
	})
	victim.signal(t, syscall.SIGCONT)
	l.running.more(t, 500)
	if acknowledged, taken, _ := l.stop(t); taken > acknowledged {
		t.Errorf("%d charges were acknowledged and %d taken", acknowledged, taken)
	}
}

// A node may be added and another one removed while their keys are charged. Afterwards nothing is sent to the latter.
func TestClusterNodes(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	s := services[0]
	l := startLedger(t, c, services, newClusterTenant(t, s, ledgerConfig), 20)
	l.running.more(t, 200)
	added, err := startClusterNode()
	if err != nil {
		t.Fatal(err)
	}
	c.nodes = append(c.nodes, added)
	if err := added.all([]any{"CLUSTER", "RESET", "HARD"}, meet(c.nodes[0])); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, c.check)
	from := c.owner(t, apiKeyRedisKey(l.keys[0]))
	slots := slotsOf(t, from)
	slots = slots[len(slots)-300:]
	for _, key := range l.keys {
		if slot := keySlot(apiKeyRedisKey(key)); slices.Contains(slotsOf(t, from), slot) && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
	}
	c.moveSlots(t, from, added, slots)
	l.running.more(t, 200)
	eventually(t, 5*time.Second, func() error {
		if n := s.sample(t, `redis_up{node="`+added.tcp+`"}`); n != 1 {
			return fmt.Errorf("redis_up of the added node is %v", n)
		}
		return nil
	})
	c.moveSlots(t, added, from, slots)
	id := c.id(t, added)
	c.nodes = slices.DeleteFunc(c.nodes, func(n *redisServer) bool { return n == added })
	for _, n := range c.nodes {
		n.do(t, "CLUSTER", "FORGET", id)
	}
	l.running.more(t, 200)
	added.close()
	before := s.log.String()
	l.running.more(t, 1000)
	if after := s.log.String(); strings.Contains(strings.TrimPrefix(after, before), "unavailable") {
		t.Errorf("log:\n%s", after)
	}
	acknowledged, taken, failed := l.stop(t)
	if acknowledged != taken || failed > 0 {
		t.Errorf("%d charges were acknowledged and %d taken; %d requests were 503", acknowledged, taken, failed)
	}
}

// A config that another process has put is served within a second, while its slot moves too.
func TestClusterConfigFreshness(t *testing.T) {
	long(t)
	c := useCluster(t)
	services := newServices(t, "REDIS_URL="+c.url())
	id := newClusterTenant(t, services[0], `{"v":0}`)
	masters := c.mastersNow(t)
	for i := range 9 {
		services[1].wantConfig(t, id, fmt.Sprintf(`{"v":%d}`, i))
		from := c.owner(t, configRedisKey(id))
		to := masters[(slices.Index(masters, from)+1)%len(masters)]
		put := func() { services[0].putConfig(t, id, fmt.Sprintf(`{"v":%d}`, i+1)).want(t, 200, `{"success":true}`) }
		if i%2 == 0 {
			put()
		}
		c.moveSlots(t, from, to, []int{keySlot(configRedisKey(id))})
		if i%2 == 1 {
			put()
		}
	}
	services[1].wantConfig(t, id, `{"v":9}`)
}

// Some services give a master a new server and let its name stand. The old one then says that the slot has moved to that
// very name: only a new connection leads to the new one.
func TestClusterSameName(t *testing.T) {
	t.Parallel()
	start := func() *redisServer {
		n, err := startClusterNode("--cluster-announce-ip", "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.close)
		return n
	}
	from, to := start(), start()
	c := &testCluster{nodes: []*redisServer{from, to}}
	from.do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	if err := to.all([]any{"CLUSTER", "SET-CONFIG-EPOCH", 1}, meet(from)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, c.check)
	var target atomic.Pointer[redisServer]
	target.Store(from)
	proxy := newRedisProxyTo(t, target.Load, func([]byte) fate { return pass })
	_, port, err := net.SplitHostPort(proxy.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.do(t, "CONFIG", "SET", "cluster-announce-port", port)
	}
	for _, n := range c.nodes { // each learns from the other what it announces
		eventually(t, 10*time.Second, func() error {
			if nodes := n.string(t, "CLUSTER", "NODES"); strings.Count(nodes, "127.0.0.1:"+port+"@") != 2 {
				return errors.New(nodes)
			}
			return nil
		})
	}
	s := newService(t, fmt.Sprintf("REDIS_URL=redis-cluster://tollgate:%s@%s", testRedisPassword, proxy.address))
	key := s.login(t, "abc")
	c.moveSlots(t, from, to, []int{keySlot(apiKeyRedisKey(key)), keySlot(configRedisKey("abc"))})
	target.Store(to)
	for want := 99; want > 90; want-- {
		s.consume(t, "abc", key, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, want))
	}
	if left := tokensLeftIn(t, to, key); left != 91 {
		t.Errorf("%d tokens are left at the new server, want 91", left)
	}
}

// A script that one master has forgotten is loaded there again.
func TestClusterScriptFlush(t *testing.T) {
	c := useCluster(t)
	s := newService(t, "REDIS_URL="+c.url())
	tenant := newClusterTenant(t, s, ledgerConfig)
	for address, keys := range keysOn(t, c, s, tenant, 1, `"userId":"u","group":"pro"`) {
		i := slices.IndexFunc(c.nodes, func(n *redisServer) bool { return n.tcp == address })
		c.nodes[i].do(t, "SCRIPT", "FLUSH")
		s.consume(t, tenant, keys[0], "").want(t, 200, `{"tokensLeft":4999}`)
	}
}

// The service says what to write into REDIS_URL if it is in another topology.
func TestRedisTopologies(t *testing.T) {
	c := useCluster(t)
	plain := newRedis(t)
	free, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	cluster := fmt.Sprintf("redis-cluster://tollgate:%s@", testRedisPassword)
	tests := []struct{ name, url, want string }{
		{"a node of a cluster as one server", c.nodes[0].url(), "use redis-cluster://"},
		{"a replica of a cluster as one server", c.nodes[5].url(), "use redis-cluster://"},
		{"one server as a cluster", cluster + plain.tcp, "use redis://"},
		{"one server as a Sentinel", fmt.Sprintf("redis-sentinel://%s/x", plain.tcp), "this is not a Sentinel"},
		{"a seed that is down", cluster + fmt.Sprintf("127.0.0.1:%d", free), "connection refused"},
		{"a wrong password", "redis-cluster://tollgate:SECRET@" + c.nodes[0].tcp, "WRONGPASS"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
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
	t.Run("the first seed is down", func(t *testing.T) {
		s := newService(t, "REDIS_URL="+cluster+fmt.Sprintf("127.0.0.1:%d,%s", free, c.nodes[1].tcp))
		s.login(t, "abc")
	})
	t.Run("a master denies a command", func(t *testing.T) {
		denying := c.mastersNow(t)[2]
		denying.do(t, "ACL", "SETUSER", "tollgate", "-hincrby")
		defer denying.do(t, "ACL", "SETUSER", "tollgate", "+hincrby")
		p := startProcess(t, []string{"REDIS_URL=" + c.url(), "ADDR=127.0.0.1:0"})
		want := "[ERROR] Redis connection failed: " + denying.tcp + ": NOPERM "
		if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), want) {
			t.Errorf("exit code %d\n%s", code, p.log)
		}
	})
}

// Nodes may be announced by names, which TLS verifies, or by addresses while the certificate has the seeds' name, or not
// at all. Ports may be those of TLS alone.
func TestClusterNames(t *testing.T) {
	certFile, keyFile := newCertificate(t) // for localhost
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
			port, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			n, err := startClusterNode(append(test.args, "--tls-port", strconv.Itoa(port), "--tls-cert-file", certFile,
				"--tls-key-file", keyFile, "--tls-ca-cert-file", certFile, "--tls-auth-clients", "no", "--tls-cluster", "yes")...)
			if err != nil {
				t.Fatal(err)
			}
			defer n.close()
			n.do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
			eventually(t, 10*time.Second, func() error { return n.checkMember(1) })
			url := fmt.Sprintf("rediss-cluster://tollgate:%s@%s", testRedisPassword, net.JoinHostPort(test.seed, strconv.Itoa(port)))
			p := startProcess(t, []string{"REDIS_URL=" + url, "ADDR=127.0.0.1:0", "SSL_CERT_FILE=" + certFile})
			if test.ok {
				p.service(t).login(t, "abc")
			} else if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), "certificate") &&
				!strings.Contains(p.log.String(), "no such host") {
				t.Errorf("exit code %d\n%s", code, p.log)
			}
		})
	}
}

func TestClusterIPv6(t *testing.T) {
	t.Parallel()
	n, err := startClusterNode("--bind", "::1", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	n.do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	eventually(t, 10*time.Second, func() error { return n.checkMember(1) })
	s := newService(t, fmt.Sprintf("REDIS_URL=redis-cluster://tollgate:%s@[::1]:%d", testRedisPassword, n.port))
	s.login(t, "abc")
	if up := s.sample(t, fmt.Sprintf(`redis_up{node="[::1]:%d"}`, n.port)); up != 1 {
		t.Errorf("redis_up is %v", up)
	}
}

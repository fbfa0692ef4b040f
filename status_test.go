package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// status returns what GET /admin/status shows.
func (s *service) status(t testing.TB) (status statusBody) {
	t.Helper()
	began := time.Now()
	got := s.admin(t, "GET", "/admin/status", "")
	took := time.Since(began)
	got.want(t, 200, "")
	if err := json.Unmarshal([]byte(got.body), &status); err != nil || took > adminTimeout+busy {
		t.Fatalf("%s after %s: %v", got.body, took, err)
	}
	return status
}

// awaitStatus waits until is returns nil for the status.
func (s *service) awaitStatus(t testing.TB, is func(statusBody) error) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error { return is(s.status(t)) })
}

// awaitNodes waits until the nodes of Redis are as want says: "address role", and " down" if it is not up.
func (s *service) awaitNodes(t testing.TB, topology string, want ...string) {
	t.Helper()
	s.awaitStatus(t, func(status statusBody) error {
		var got []string
		for _, n := range status.Redis.Nodes {
			text := n.Address + " " + n.Role
			if !n.Up {
				text += " down"
			}
			got = append(got, text)
		}
		if status.Redis.Topology != topology || !slices.Equal(got, want) {
			return fmt.Errorf("got %+v, want %s %q", status.Redis, topology, want)
		}
		return nil
	})
}

// The operator sees the state of the process, and nobody else does.
func TestStatus(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "MAX_CONNECTIONS=77", "METRICS_TOKEN=test-metrics-token", trustTest)
	got := s.admin(t, "GET", "/admin/status", "")
	got.wantHeader(t, "Cache-Control", "no-store, no-transform")
	shape := regexp.MustCompile(`^\{"version":"` + regexp.QuoteMeta(buildVersion()) + `","uptime":\d+,"redis":\{"topology":"single",` +
		`"nodes":\[\{"address":"` + r.TCP + `","role":"master","up":true,"latencyMs":[\d.]+\}\]\},` +
		`"connections":\{"open":\d+,"max":77\},"streams":0,"sessions":0,"drains":0,"pools":\{"admin_bodies":\{"used":0,"max":67108864\},`)
	if got.status != 200 || !shape.MatchString(got.body) || strings.Contains(got.body, redistest.Password) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	status := s.status(t)
	if status.Uptime < 0 || status.Uptime > 60 || status.Connections.Open < 1 {
		t.Errorf("got %+v", status)
	}
	var pools []string
	for _, match := range regexp.MustCompile(`pool_size\{pool="(\w+)"\}`).FindAllStringSubmatch(s.admin(t, "GET", "/metrics", "").body, -1) {
		pools = append(pools, match[1])
	}
	if named := slices.Sorted(maps.Keys(status.Pools)); !slices.Equal(named, pools) {
		t.Errorf("the pools are %q, in the metrics %q", named, pools)
	}
	key, admin := s.login(t, "abc"), s.newAdminToken(t, "abc")
	for _, token := range []string{"", "wrong", key, admin, "test-metrics-token"} {
		s.do(t, "GET", "/admin/status", "", bearer(token), fromElsewhere()).want(t, 401, `{"error":"Unauthorized"}`)
	}
	s.do(t, "GET", "/admin/status", "", fromElsewhere()).want(t, 401, "")
	s.admin(t, "POST", "/admin/status", "").want(t, 405, "")
}

// The numbers are those of what is open now.
func TestStatusCounts(t *testing.T) {
	t.Parallel()
	s := newTalkTest(t, 1_000_000, providertest.RealtimeConduct{})
	p := providertest.New(t)
	p.On("slow", providertest.Conduct{Hang: providertest.InContent})
	g := s.gatewayTest(t, p, textConfig(1000, endpointJSON(p, "chat", chatPath, `,"on_hangup":"drain"`)))
	connections := s.status(t).Connections.Open
	await := func(when string, streams, sessions, drains, waiting int64, more int) {
		t.Helper()
		s.awaitStatus(t, func(got statusBody) error {
			if got.Streams != streams || got.Sessions != sessions || got.Drains != drains ||
				got.Pools["waiting"].Used != waiting || got.Pools["sessions"].Used != sessions || got.Pools["drains"].Used != drains ||
				got.Connections.Open != connections+more {
				return fmt.Errorf("%s: got %+v, at first there were %d connections", when, got, connections)
			}
			return nil
		})
	}
	await("at first", 0, 0, 0, 0, 0)
	var idle []net.Conn
	for range 3 {
		idle = append(idle, s.dial(t))
	}
	await("with connections", 0, 0, 0, 0, 3)
	stream := g.open(t, chatPath, `{"model":"slow","stream":true,"max_tokens":50}`, "ünd")
	await("with a stream", 1, 0, 0, 1, 4)
	session := s.open(t)
	await("with a session", 1, 1, 0, 1, 5)
	stream.Close()
	await("after a hang-up", 1, 1, 1, 0, 4)
	_ = session.Close(websocket.CloseNormal, "")
	session.end(t)
	for _, c := range idle {
		c.Close()
	}
	p.Stop()
	await("at the end", 0, 0, 0, 0, 0)
}

// A Redis that does not respond is shown as such.
func TestStatusWithoutRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	up := r.TCP + " master"
	s.awaitNodes(t, "single", up)
	r.Signal(t, syscall.SIGSTOP)
	s.do(t, "GET", "/readyz", "").want(t, 503, "")
	s.awaitNodes(t, "single", up+" down")
	before := time.Now()
	at := make(chan error, 20)
	for range cap(at) {
		go func() {
			got, err := s.send("GET", "/admin/status", "", bearer(testAdminToken))
			at <- errors.Join(err, got.is(200))
		}()
	}
	for range cap(at) {
		if err := <-at; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(before); took > 2*time.Second+busy {
		t.Errorf("20 at a time took %s", took)
	}
	if uptime := s.status(t).Uptime; uptime < 1 || uptime > 60 { // seconds: each status took 0.4 s, and /readyz 0.9 s
		t.Errorf("the process has run for %d s", uptime)
	}
	r.Signal(t, syscall.SIGCONT)
	s.awaitNodes(t, "single", up)
	r.Kill()
	s.awaitNodes(t, "single", up+" down")
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	s.awaitNodes(t, "single", up)
}

// Behind Sentinels the replicas are shown, too, also one that is down.
func TestStatusOfSentinel(t *testing.T) {
	t.Parallel()
	master := redistest.New(t)
	replica := redistest.New(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port), "--repl-diskless-sync-delay", "0")
	s := newService(t, "REDIS_URL="+redistest.SentinelURL(redistest.NewSentinel(t, master.Port)))
	s.awaitNodes(t, "sentinel", master.TCP+" master", replica.TCP+" replica")
	replica.Signal(t, syscall.SIGSTOP)
	defer replica.Signal(t, syscall.SIGCONT)
	s.awaitNodes(t, "sentinel", master.TCP+" master", replica.TCP+" replica down")
}

// testClusterStatus expects each node of the cluster in the status, also a replica that hangs.
func testClusterStatus(t *testing.T) {
	c := redistest.SharedCluster(t)
	s := newService(t, "REDIS_URL="+c.URL())
	masters := c.MastersNow(t)
	hanging := c.ReplicaOf(t, masters[0])
	var first, then []string
	for _, n := range c.Nodes {
		switch {
		case slices.Contains(masters, n):
			first = append(first, n.TCP+" master")
		case n == hanging:
			then = append(then, n.TCP+" replica down")
		default:
			then = append(then, n.TCP+" replica")
		}
	}
	slices.Sort(first)
	slices.Sort(then)
	want := append(first, then...)
	hanging.Signal(t, syscall.SIGSTOP)
	s.awaitNodes(t, "cluster", want...)
	hanging.Signal(t, syscall.SIGCONT)
	for i := range want {
		want[i] = strings.TrimSuffix(want[i], " down")
	}
	s.awaitNodes(t, "cluster", want...)
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// benchTopology is a way to keep the keys.
type benchTopology struct {
	name              string
	masters, replicas int // 0 masters: one server, not a cluster
	wait              int
}

var benchTopologies = []benchTopology{
	{"one server", 0, 0, 0}, {"one server, 1 replica", 0, 1, 0}, {"one server, 1 replica, -wait-replicas 1", 0, 1, 1},
	{"1 master", 1, 0, 0}, {"2 masters", 2, 0, 0}, {"3 masters", 3, 0, 0},
	{"3 masters, 3 replicas", 3, 1, 0}, {"3 masters, 3 replicas, -wait-replicas 1", 3, 1, 1},
}

// start starts the servers and returns their URL and masters.
func (bt benchTopology) start(b *testing.B) (url string, masters []*redistest.Server, closeAll func()) {
	b.Helper()
	if bt.masters > 0 {
		c, err := redistest.StartCluster(bt.masters, bt.replicas)
		if err != nil {
			b.Fatal(err)
		}
		return c.URL(), c.Nodes[:bt.masters], c.Close
	}
	master, err := redistest.Start("--appendonly", "no", "--repl-diskless-sync-delay", "0")
	if err != nil {
		b.Fatal(err)
	}
	closeAll = master.Close
	for range bt.replicas {
		replica, err := redistest.Start("--appendonly", "no", "--replicaof", fmt.Sprint("127.0.0.1 ", master.Port))
		if err != nil {
			b.Fatal(err)
		}
		last := closeAll
		closeAll = func() { replica.Close(); last() }
		waittest.Eventually(b, 20*time.Second, func() error {
			if redistest.Field(replica.String(b, "INFO", "replication"), "master_link_status") != "up" {
				return fmt.Errorf("the replica is not in sync")
			}
			return nil
		})
	}
	return master.URL(), []*redistest.Server{master}, closeAll
}

// BenchmarkCluster prints what a charge costs the service and Redis's masters in each topology: at the same load, and at
// the most that 64 connections get. All run on one machine, so that the rates compare what it can do, not what clusters
// can.
func BenchmarkCluster(b *testing.B) {
	for b.Loop() {
		binary := buildBinary(b, "")
		fmt.Print("\n| topology | service µs a charge, at 4,000/s | Redis µs (masters) | " +
			"charges/s of 64 connections | service µs | Redis µs |\n" +
			"|---|---|---|---|---|---|\n")
		for _, bt := range benchTopologies {
			url, masters, closeAll := bt.start(b)
			p := startCommand(b, exec.Command(binary), append([]string{
				"REDIS_URL=" + url, fmt.Sprint("WAIT_REPLICAS=", bt.wait)}, benchSettings...))
			s := &service{url: "http://" + p.address(b)}
			tenant := newClusterTenant(b, s, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}}}`, int64(maxAmount)))
			w := workload{method: "POST", path: "/" + tenant + "/tokens/consume", body: oneToken}
			for range 300 {
				w.tokens = append(w.tokens, s.login(b, tenant))
			}
			paced := benchCharges(b, w, p, masters, 4000)
			most := benchCharges(b, w, p, masters, 0)
			fmt.Printf("| %s | %.1f | %.1f | %.0f | %.1f | %.1f |\n", bt.name, paced.service, paced.redis, most.rate, most.service, most.redis)
			p.kill()
			closeAll()
		}
	}
}

// chargeCost is what a load of charges gave: its rate, and the processor time of a charge in µs.
type chargeCost struct{ rate, service, redis float64 }

// benchCharges sends charges over 64 connections for some seconds, that many a second or, if rate is 0, as many as it can.
func benchCharges(b *testing.B, w workload, p *process, masters []*redistest.Server, rate int) chargeCost {
	b.Helper()
	const seconds = 5
	used := func() (service, redis float64) {
		for _, n := range masters {
			redis += cpuMicros(b, n.PID())
		}
		return cpuMicros(b, p.cmd.Process.Pid), redis
	}
	service, redis := used()
	d := during(seconds*time.Second, p.address(b), 64, w.requests())
	d.rate = rate
	n := float64(d.run(b).requests)
	serviceAfter, redisAfter := used()
	return chargeCost{n / seconds, (serviceAfter - service) / n, (redisAfter - redis) / n}
}

// BenchmarkClusterDeadShard prints how many of their charges keys keep while another master is down and 300 clients want
// keys of that one. Rounds with and without these clients alternate.
func BenchmarkClusterDeadShard(b *testing.B) {
	for b.Loop() {
		c, err := redistest.StartCluster(3, 0)
		if err != nil {
			b.Fatal(err)
		}
		p := startCommand(b, exec.Command(os.Args[0]), append([]string{"REDIS_URL=" + c.URL(), "TOLLGATE_RUN_MAIN=1"}, benchSettings...))
		s := &service{url: "http://" + p.address(b)}
		victim := c.Nodes[0]
		tenant := newClusterTenant(b, s, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
		for c.Owner(b, configRedisKey(tenant)) == victim {
			tenant = newClusterTenant(b, s, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
		}
		keys := keysOn(b, c, s, tenant, 20, `"userId":"u","group":"anonymous"`)
		others := workload{method: "POST", path: "/" + tenant + "/tokens/consume", body: oneToken}
		others.tokens = append(keys[c.Nodes[1].TCP], keys[c.Nodes[2].TCP]...)
		count := func() float64 {
			return float64(during(2*time.Second, p.address(b), 32, others.requests()).run(b).requests)
		}
		victim.Kill()
		var ratios []float64
		failed := 0
		for range 9 {
			alone := count()
			waiting := load{
				services: []*service{s}, clients: 300, statuses: []int{503},
				request: func(int, int) request { return consumeRequest(tenant, keys[victim.TCP][0], 1) },
			}.start(b)
			time.Sleep(300 * time.Millisecond) // all of them wait
			ratios = append(ratios, count()/alone)
			failed += len(waiting.stop().of("", 503))
		}
		fmt.Printf("\nwith one master of three down and 300 clients of its keys: %.0f %% [%.0f … %.0f] of the charges of other keys; "+
			"%d requests were 503\n", 100*median(ratios), 100*slices.Min(ratios), 100*slices.Max(ratios), failed)
		p.kill()
		c.Close()
	}
}

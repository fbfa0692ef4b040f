package main

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

// BenchmarkRequest measures, in one process, what a request takes of the whole server: allocations, commands for Redis,
// and its reads from connections, of which many requests share one. The clients allocate nothing.
func BenchmarkRequest(b *testing.B) {
	s := newService(b)
	provider := startBenchServer(b, "provider", freeAddress)
	for _, w := range tollgateWorks(b, s, testRedis, provider.address(b)) {
		b.Run(w.name, func(b *testing.B) {
			b.ReportAllocs()
			before := redisWork(b)
			b.ResetTimer()
			drive{address: s.address(), connections: 64, requests: w.requests(), more: func(n int) bool { return n < b.N }}.run(b)
			b.StopTimer()
			for name, n := range redisWork(b) {
				b.ReportMetric(float64(n-before[name])/float64(b.N), name)
			}
		})
	}
}

// redisWork is what Redis has done so far, by the name of the metric: commands that the service sent (scripts, and
// the two that load a config), reads from connections (at most one a round trip), and commands with those that scripts
// call.
func redisWork(b *testing.B) map[string]int {
	info := testRedis.String(b, "INFO", "everything")
	field := func(name string) (n int) {
		fmt.Sscan(redistest.Field(info, name), &n)
		return n
	}
	return map[string]int{
		"redis-sent/op":  redistest.Calls(info, "evalsha") + redistest.Calls(info, "eval") + 2*redistest.Calls(info, "pttl"),
		"redis-reads/op": field("total_reads_processed"),
		"redis-calls/op": field("total_commands_processed"),
	}
}

// benchSteps are calls of the store, which a request waits for.
type benchSteps struct{ charge, pooled, hold, settle func() error }

func newBenchSteps(b *testing.B, s *service, r *redistest.Server) benchSteps {
	b.Helper()
	id := newTenantIn(b, r, gatewayConfig("localhost"))
	key := s.login(b, id)
	url, err := redisdb.ParseURL(r.URL())
	if err != nil {
		b.Fatal(err)
	}
	st, closeStore, err := openStore(context.Background(), &settings{redisURL: url}, new(telemetrytest.Log).Logger())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(closeStore)
	tenant, err := st.Tenant(in(publicTimeout), id)
	if err != nil {
		b.Fatal(err)
	}
	holds := make(chan holdResult, 64)
	return benchSteps{
		charge: func() error {
			_, err := st.Charge(in(publicTimeout), tenant, chargeRequest{key: key, tokens: 1})
			return err
		},
		pooled: func() error {
			_, err := st.redis.EvalLarge(in(publicTimeout), chargeScript.own, []string{apiKeyRedisKey(key)}, id, "", 1, "\xffanonymous\xfe")
			return err
		},
		hold: func() error {
			lease, err := newCredential(leasePrefix)
			if err != nil {
				return err
			}
			hold, err := st.Hold(in(publicTimeout), tenant, holdRequest{key: key, id: lease, most: 100, least: 1, ttl: time.Minute})
			holds <- hold
			return err
		},
		settle: func() error {
			hold := <-holds
			_, err := st.Settle(in(publicTimeout), tenant, &hold.holder, settleRequest{holdID: hold.id, used: 18, isLease: true})
			return err
		},
	}
}

// BenchmarkStep measures the steps of a request in Redis without HTTP around them, for a lone caller and for 64: a charge on
// the connection that all share, and on one of the pool; and a completion's hold and settlement.
func BenchmarkStep(b *testing.B) {
	r := redistest.New(b, "--appendonly", "no")
	steps := newBenchSteps(b, newService(b, "REDIS_URL="+r.URL()), r)
	for _, callers := range []int{1, 64} {
		run := func(name string, prefixes []string, calls ...func() error) {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				b.ReportAllocs()
				for i, cost := range costOf(b, r, callers, b.N, calls...) {
					b.ReportMetric(cost.took, prefixes[i]+"µs")
					b.ReportMetric(cost.scripts, prefixes[i]+"scripts-µs")
				}
			})
		}
		run("charge", []string{""}, steps.charge)
		run("pooled charge", []string{""}, steps.pooled)
		run("completion", []string{"hold-", "settle-"}, steps.hold, steps.settle)
	}
}

// A stepCost is the median of how long a step takes, and how long Redis says that its script does, in µs.
type stepCost struct{ took, scripts float64 }

// costOf has that many goroutines call the steps, all of them one step before the next, n times in all.
func costOf(b *testing.B, r *redistest.Server, callers, n int, steps ...func() error) []stepCost {
	b.Helper()
	costs := make([]stepCost, len(steps))
	times := make([][]float64, len(steps))
	for i := range times {
		times[i] = make([]float64, n)
	}
	for done := 0; done < n; done += callers {
		for i, step := range steps {
			before := scriptMicros(b, r)
			var wg sync.WaitGroup
			for at := done; at < min(done+callers, n); at++ {
				wg.Go(func() {
					began := time.Now()
					if err := step(); err != nil {
						b.Error(err)
					}
					times[i][at] = float64(time.Since(began).Nanoseconds()) / 1000
				})
			}
			wg.Wait()
			costs[i].scripts += (scriptMicros(b, r) - before) / float64(n)
		}
	}
	for i := range costs {
		costs[i].took = median(times[i])
	}
	return costs
}

// BenchmarkGrown prints what a key takes in Redis, and, with 1,000,000 keys there, what many tenants change.
func BenchmarkGrown(b *testing.B) {
	for b.Loop() {
		binary, r := buildBinary(b, ""), redistest.New(b, "--appendonly", "no")
		p := startCommand(b, exec.Command(binary), append([]string{"REDIS_URL=" + r.URL()}, benchSettings...))
		s := &service{url: "http://" + p.address(b)}
		const keys = 1_000_000
		before := memory(b, r)
		fillRedis(b, r, keys)
		perKey := float64(memory(b, r)-before) / keys
		charges := func(tenants, keys int) (requests [][]byte) {
			for range tenants {
				id := newTenantIn(b, r, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}}}`, int64(maxAmount)))
				w := workload{method: "POST", path: "/" + id + "/tokens/consume", body: oneToken}
				for range keys {
					w.tokens = append(w.tokens, s.login(b, id))
				}
				requests = append(requests, w.requests()...)
			}
			return requests
		}
		one, many := charges(1, 1000), charges(1000, 1)
		var ratios []float64
		for range 9 {
			few := during(time.Second, s.address(), 64, one).run(b).requests
			ratios = append(ratios, float64(during(time.Second, s.address(), 64, many).run(b).requests)/float64(few))
		}
		fmt.Printf("\nbeside 1,000,000 keys, keys of 1,000 tenants: %s of the charges/s of keys of one tenant; %.0f bytes in Redis a key\n",
			spread(ratios, true), perKey)
		p.kill()
	}
}

func memory(b *testing.B, r *redistest.Server) (n int) {
	fmt.Sscan(redistest.Field(r.String(b, "INFO", "memory"), "used_memory"), &n)
	return n
}

// fillRedis makes n anonymous keys with the script that logins use.
func fillRedis(b *testing.B, r *redistest.Server, n int) {
	c, err := r.Dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	sha, err := redis.String(c.Do("SCRIPT", "LOAD", luaSource("issue")))
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		key, err := newCredential(anonymousKeyPrefix)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Send("EVALSHA", sha, 1, apiKeyRedisKey(key), anonymousKeyTTL.Milliseconds(), 0,
			"", "abc", "", anonymousGroup, formatTime(time.Now()), 100, "")
		if i%1000 == 999 {
			if _, err := c.Do(""); err != nil {
				b.Fatal(err)
			}
		}
	}
}

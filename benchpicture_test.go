package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkPicture prints the picture in docs/performance.md: what a completion costs where.
func BenchmarkPicture(b *testing.B) {
	for b.Loop() {
		sides := startSides(b, []string{"now"})
		now := sides["now"]
		lone := func(side string) float64 { return medianOf(b, sides[side], 1)[medianMS] }
		direct, proxy, all := lone("direct"), lone("proxy"), lone("now")
		full := medianOf(b, now, 64)
		steps := newBenchSteps(b, &service{url: "http://" + now.address}, now.redis)
		alone := costOf(b, now.redis, 1, 4000, steps.hold, steps.settle)
		among := costOf(b, now.redis, 64, 20_000, steps.hold, steps.settle)
		hold, settle := alone[0].took/1000, alone[1].took/1000
		shares := profileShares(b, now)
		fmt.Printf("\n%-30s %-48s64 at a time:\n%-30s %-48sµs of tollgate, of Redis\n\n", "", "a lone one:", "", "ms until the response")
		line := func(name string, ms, share, redis float64) {
			bar := strings.Repeat("█", int(max(ms, 0)*100+0.5))
			fmt.Printf("%-30s %6s %-45s %10s %8s\n", name,
				blank("%.3f", ms), bar, blank("%.0f", share*full[serverCPU]), blank("%.0f", redis))
		}
		line("client and provider", direct, 0, 0)
		line("relay, as the bare proxy's", proxy-direct, shares.relay, 0)
		line("hold", hold, shares.hold, among[0].scripts)
		line("settlement", settle, shares.settle, among[1].scripts)
		line("the rest of tollgate", all-proxy-hold-settle, shares.rest, 0)
		line("scheduler, garbage collector", 0, shares.runtime, 0)
		line("commands and replies", 0, 0, full[redisCPU]-among[0].scripts-among[1].scripts)
		fmt.Printf("%-30s %6.3f %-45s %10.0f %8.0f\n\n", "", all, "", full[serverCPU], full[redisCPU])
	}
}

// blank returns a number, or "" for 0.
func blank(format string, value float64) string {
	if value == 0 {
		return ""
	}
	return fmt.Sprintf(format, value)
}

// medianOf returns the medians of some rounds of completions.
func medianOf(b *testing.B, side *benchSide, connections int) sample {
	b.Helper()
	all := make(map[metric][]float64)
	for range 9 {
		for m, value := range side.works["completion"](b, connections) {
			all[m] = append(all[m], value)
		}
	}
	medians := make(sample)
	for m, values := range all {
		medians[m] = median(values)
	}
	return medians
}

// cpuShares are parts of the processor time that tollgate takes for completions.
type cpuShares struct{ relay, hold, settle, rest, runtime float64 }

// profileShares serves completions in this process, with the Redis and the provider of a side, and returns what a profile of
// it says. The relay is what the bare proxy does too: HTTP as a server, by net/http, and as a client, by plainhttp.
func profileShares(b *testing.B, side *benchSide) cpuShares {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as benchSettings
	s := newService(b, "REDIS_URL="+side.redis.URL())
	var completion workload
	for _, w := range tollgateWorks(b, s, side.redis, side.provider.address(b)) {
		if w.name == "completion" {
			completion = w.workload
		}
	}
	path := filepath.Join(b.TempDir(), "cpu.out")
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		b.Fatal(err)
	}
	during(5*time.Second, s.address(), 64, completion.requests()).run(b)
	pprof.StopCPUProfile()
	file.Close()
	top, err := exec.Command("go", "tool", "pprof", "-top", "-cum", "-nodecount=5000", "-nodefraction=0", os.Args[0], path).Output()
	if err != nil {
		b.Fatal(err)
	}
	in := make(map[string]float64) // by function: the share of it and of what it calls
	for _, line := range regexp.MustCompile(`([\d.]+)%  (\S+)`).FindAllStringSubmatch(string(top), -1) {
		in[line[2]], _ = strconv.ParseFloat(line[1], 64)
	}
	of := func(function string) float64 { // of one that takes much
		share, ok := in[function]
		if !ok {
			b.Fatalf("the profile has no %s", function)
		}
		return share
	}
	const (
		redis   = "tollgate/internal/redisdb.(*sharedConn)."
		client  = "tollgate/internal/plainhttp."
		gateway = "tollgate/internal/gateway.(*exchange)."
	)
	shared, hold, settle := in[redis+"writeLoop"]+in[redis+"readLoop"], of(gateway+"takeHold"), of(gateway+"settle")
	handler, trip := of("net/http.serverHandler.ServeHTTP"), of(client+"(*Transport).RoundTrip")+in[client+"(*exchange).Read"]
	shares := cpuShares{
		relay:   of("net/http.(*conn).serve") - handler + trip,
		hold:    hold + shared/2,
		settle:  settle + shared/2,
		rest:    handler - trip - hold - settle,
		runtime: in["runtime.mcall"] + in["runtime.gcBgMarkWorker"],
	}
	all := shares.relay + shares.hold + shares.settle + shares.rest + shares.runtime
	return cpuShares{shares.relay / all, shares.hold / all, shares.settle / all, shares.rest / all, shares.runtime / all}
}

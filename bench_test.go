package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/providertest"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

// floor responds as a charge does, by net/http and encoding/json with nothing behind them.
func floor() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{tenantId}/tokens/consume", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Tokens int64 `json:"tokens"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(http.StatusOK)
		_ = json.NewEncoder(w).Encode(struct {
			TokensLeft int64 `json:"tokensLeft"`
		}{maxAmount - body.Tokens})
	})
	return mux
}

// runFloor serves floor in a process of its own, as startCommand starts it, without limits of time or with tollgate's.
func runFloor(kind string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Fprintln(os.Stderr, "[INFO] Listening on", l.Addr())
		web := &http.Server{Handler: floor()}
		if kind == floorWithTimeouts {
			web.ReadHeaderTimeout, web.ReadTimeout = readHeaderTimeout, readTimeout
			web.WriteTimeout, web.IdleTimeout = writeTimeout, 2*time.Minute
		}
		err = web.Serve(l)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

const floorWithTimeouts = "floor with tollgate's timeouts"

// A workload is a kind of request. Each of tokens is one request's bearer token, in turn.
type workload struct {
	name, method, path string
	tokens             []string
	header, body       string
	warmUp             bool // a run is to come before each that counts
}

const (
	oneToken = `{"tokens":1}`
	serial   = "000000000000" // is replaced by a number of its own in each request
)

// workloads makes the tenants and keys for them through s. The first is the floor's.
func workloads(b *testing.B, s *service, r *redistest.Server) []workload {
	tenant := newTenantIn(b, r, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}}}`, int64(maxAmount)))
	limited := newTenantIn(b, r, fmt.Sprintf(
		`{"user_groups":{"anonymous":{"tokens":%d,"rate_limit":100000,"rate_limit_window":1}}}`, int64(maxAmount)))
	keys := func(tenant string, n int) []string {
		keys := make([]string, n)
		for i := range keys {
			keys[i] = s.login(b, tenant)
		}
		return keys
	}
	charge := func(name, tenant string, n int, header string) workload {
		// The window of the rate limit is as long as a run: only after one do requests leave it, as they do in the long run.
		return workload{name, "POST", "/" + tenant + "/tokens/consume", keys(tenant, n), header, oneToken, tenant == limited}
	}
	return []workload{
		charge("floor", tenant, 1, ""),
		charge("charge", tenant, 1, ""),
		charge("charge, 1,000 keys", tenant, 1000, ""),
		charge("charge, rate limit", limited, 1, ""),
		charge("charge, rate limit, 1,000 keys", limited, 1000, ""),
		charge("charge, Idempotency-Key", tenant, 1000, retryKey+serial+"\r\n"),
		{"verify", "GET", "/" + tenant + "/auth/verify?tokens=1", keys(tenant, 1), "", "", false},
		{"login", "POST", "/" + tenant + "/auth/anonymous", []string{""}, "", "", false},
		{"config", "GET", "/" + tenant + "/admin/config", []string{testAdminToken}, "", "", false},
		cachedWorkload(b, s, r),
	}
}

// cachedWorkload returns the request to the gateway whose response is cached.
func cachedWorkload(b *testing.B, s *service, r *redistest.Server) workload {
	p := providertest.New(b)
	tenant := newTenantIn(b, r, cachedConfig(maxAmount, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")))
	g := &gatewayTest{service: s, provider: p, tenant: tenant, key: s.login(b, tenant)}
	const body = `{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"Hello!"}]}`
	g.miss(b, chatPath, body)
	return workload{"cached response", "POST", "/" + tenant + chatPath, []string{g.key}, "", body, false}
}

// requests are the bytes that a workload sends.
func (w workload) requests() [][]byte {
	var all [][]byte
	for _, token := range w.tokens {
		all = append(all, fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: tollgate\r\nContent-Length: %d\r\n%s%s\r\n\r\n%s",
			w.method, w.path, len(w.body), w.header, bearer(token), w.body))
	}
	return all
}

// BenchmarkRequest measures, in one process, what a request takes of the whole server: allocations, commands for Redis,
// and its reads from connections, of which many requests share one. The clients allocate nothing.
func BenchmarkRequest(b *testing.B) {
	s := newService(b, "LOGIN_LIMIT=100000")
	web := httptest.NewServer(floor())
	defer web.Close()
	for _, w := range workloads(b, s, testRedis) {
		b.Run(w.name, func(b *testing.B) {
			b.ReportAllocs()
			address := strings.TrimPrefix(s.url, "http://")
			if w.name == "floor" {
				address = web.Listener.Addr().String()
			}
			before := redisWork(b)
			b.ResetTimer()
			drive(b, address, 64, w.requests(), func(n int) bool { return n < b.N }, nil)
			b.StopTimer()
			for name, n := range redisWork(b) {
				b.ReportMetric(float64(n-before[name])/float64(b.N), name)
			}
		})
	}
}

// drive sends requests in turn over that many connections, each with one under way, while more reports true for the
// number of those that were sent. Every response must be 200. before, if there is one, is called before each request,
// and what it returns when the response has come. drive returns how many requests it sent.
func drive(b *testing.B, address string, connections int, requests [][]byte, more func(n int) bool, before func() func()) int {
	run := time.Now().UnixNano() / 1000 % 1_000_000 * 1_000_000 // no other run has its serial numbers
	var sent atomic.Int64
	var wg sync.WaitGroup
	for range connections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			responses := bufio.NewReader(c)
			request := make([]byte, 0, 1024)
			for {
				n := int(sent.Add(1)) - 1
				if !more(n) {
					sent.Add(-1)
					return
				}
				request = append(request[:0], requests[n%len(requests)]...)
				if at := bytes.Index(request, []byte(serial)); at >= 0 {
					strconv.AppendInt(request[:at], 1e11+(run+int64(n))%1e11, 10)
				}
				var after func()
				if before != nil {
					after = before()
				}
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if err := readResponse(responses); err != nil {
					b.Error(err)
					return
				}
				if after != nil {
					after()
				}
			}
		})
	}
	wg.Wait()
	return int(sent.Load())
}

// readResponse reads one response, which must be a 200 with a Content-Length, and allocates nothing.
func readResponse(r *bufio.Reader) error {
	size := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("got %q", line)
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			size = 0
			for _, digit := range bytes.TrimSpace(value) {
				size = size*10 + int(digit-'0')
			}
		}
		if len(line) == 2 {
			break
		}
	}
	if size < 0 {
		return fmt.Errorf("no Content-Length")
	}
	_, err := r.Discard(size)
	return err
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

// BenchmarkCharge compares the ways to Redis under the store: the connection that all share, and one of the pool for each
// call, for a lone caller and for 64.
func BenchmarkCharge(b *testing.B) {
	s := newService(b)
	key := s.login(b, newTenant(b, maxAmount))
	url, err := redisdb.ParseURL(testRedis.URL())
	if err != nil {
		b.Fatal(err)
	}
	st, closeStore, err := openStore(context.Background(), &settings{redisURL: url}, new(telemetrytest.Log).Logger())
	if err != nil {
		b.Fatal(err)
	}
	defer closeStore()
	tenant := testRedis.String(b, "HGET", "apiKey:"+key, "tenantId")
	const groups = "\xffanonymous\xfe"
	ways := map[string]func() (any, error){
		"shared": func() (any, error) {
			return st.redis.Eval(in(publicTimeout), chargeScript.own, []string{apiKeyRedisKey(key)}, tenant, "", 1, groups)
		},
		"pooled": func() (any, error) {
			return st.redis.EvalLarge(in(publicTimeout), chargeScript.own, []string{apiKeyRedisKey(key)}, tenant, "", 1, groups)
		},
	}
	for _, callers := range []int{1, 64} {
		for _, name := range []string{"pooled", "shared"} {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				b.ReportAllocs()
				var wg sync.WaitGroup
				var n atomic.Int64
				for range callers {
					wg.Go(func() {
						for n.Add(1) <= int64(b.N) {
							if _, err := ways[name](); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// The service and the floor run in processes of their own, as deployed but for their being on one machine with the load
// and with Redis, and as `make run` sets the garbage collector.
var benchSettings = []string{"GOGC=400", "GOMEMLIMIT=256MiB", "LOGIN_LIMIT=0", "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken}

const (
	speedRounds = 9
	speedTime   = time.Second // of one run
)

// buildBinary builds tollgate as it is released, at a commit, or as it is here if that is "".
func buildBinary(t testing.TB, commit string) string {
	t.Helper()
	dir := "."
	if commit != "" {
		dir = t.TempDir()
		archive := exec.Command("sh", "-c", `git archive -o "$1/all.tar" "$0" && tar -x -C "$1" -f "$1/all.tar"`, commit, dir)
		if out, err := archive.CombinedOutput(); err != nil {
			t.Fatalf("commit %s: %v\n%s", commit, err, out)
		}
	}
	binary := filepath.Join(t.TempDir(), "tollgate")
	build := exec.Command("go", "build", "-C", dir, "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// speedRun is one run of BenchmarkSpeed.
type speedRun struct {
	r        *redistest.Server
	settings []string
	binary   string
	service  *process
	floor    *process
	former   *process // the service at the commit BASE; nil without one
	loads    []workload
	charges  int     // that the service has made, at least
	rate64   float64 // its most charges a second with 64 connections
}

// BenchmarkSpeed prints what docs/performance.md states of requests. One run takes a quarter of an hour and more. The runs of a
// round are interleaved, so that what happens on the machine happens to all. If BASE is a commit, the service as it was
// there runs beside that of now.
func BenchmarkSpeed(b *testing.B) {
	for b.Loop() {
		run := &speedRun{r: redistest.New(b, "--appendonly", "no"), binary: buildBinary(b, "")}
		run.settings = append([]string{"REDIS_URL=" + run.r.URL()}, benchSettings...)
		run.measureStart(b)
		run.service = startCommand(b, exec.Command(run.binary), run.settings)
		if commit := os.Getenv("BASE"); commit != "" {
			run.former = startCommand(b, exec.Command(buildBinary(b, commit)), run.settings)
		}
		run.floor = startFloor(b, "floor")
		run.loads = workloads(b, &service{url: "http://" + run.service.address(b)}, run.r)
		run.measureRates(b)
		run.measureTail(b)
		run.measureGrown(b)
		run.measureMemory(b)
	}
}

func startFloor(b *testing.B, kind string) *process {
	b.Helper()
	return startCommand(b, exec.Command(os.Args[0]), append([]string{"TOLLGATE_RUN_FLOOR=" + kind}, benchSettings...))
}

// measureStart prints how long the service takes to start, and the size of its binary.
func (run *speedRun) measureStart(b *testing.B) {
	var starts []float64
	for range speedRounds {
		begin := time.Now()
		p := startCommand(b, exec.Command(run.binary), run.settings)
		(&service{url: "http://" + p.address(b)}).do(b, "GET", "/readyz", "").want(b, 200, "")
		starts = append(starts, time.Since(begin).Seconds()*1000)
		p.kill()
	}
	info, err := os.Stat(run.binary)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\nstart to first response: %.0f ms; binary: %d KiB\n", median(starts), info.Size()>>10)
}

// measureRates prints how many requests of each kind are served, and the processor time that they take.
func (run *speedRun) measureRates(b *testing.B) {
	type row struct {
		workload
		on *process
		result
	}
	rows := []*row{{workload: run.loads[0], on: run.floor}}
	limited := run.loads[0]
	limited.name = floorWithTimeouts
	rows = append(rows, &row{workload: limited, on: startFloor(b, floorWithTimeouts)})
	for _, w := range run.loads[1:] {
		rows = append(rows, &row{workload: w, on: run.service})
		if run.former != nil {
			w.name += ", at BASE"
			rows = append(rows, &row{workload: w, on: run.former})
		}
	}
	fmt.Printf("\nload: %s; medians of %d rounds [min … max]\n\n", loader(), speedRounds)
	fmt.Print("| | connections | requests/s | of the floor | server µs (user + system) | Redis µs |\n|---|---|---|---|---|---|\n")
	for _, connections := range []int{1, 8, 64, 256} {
		for _, row := range rows {
			row.result = result{}
		}
		for round := range speedRounds {
			order := slices.Clone(rows)
			if round%2 == 1 { // the floor comes first always, the others in both orders
				slices.Reverse(order[1:])
			}
			for _, row := range order {
				if row.warmUp {
					runWorkload(b, row.workload, row.on.address(b), connections)
				}
				row.run(b, row.workload, row.on, run.r, connections, &rows[0].result)
				if row.on == run.service && strings.HasSuffix(row.path, "/tokens/consume") {
					run.charges += row.result.requests
				}
			}
		}
		for _, row := range rows {
			fmt.Printf("| %s | %d | %s |\n", row.name, connections, row.result)
			if connections == 64 && row.name == run.loads[1].name {
				run.rate64 = median(row.rates)
			}
		}
	}
}

// measureTail prints how long a response takes at half of the most charges, and the floor's at the same rate.
func (run *speedRun) measureTail(b *testing.B) {
	type side struct {
		name     string
		on       *process
		requests [][]byte
		p50, p99 []float64 // ms, of each round
	}
	sides := []*side{
		{name: "floor", on: run.floor, requests: run.loads[0].requests()},
		{name: "charge", on: run.service, requests: run.loads[1].requests()},
	}
	if run.former != nil {
		sides = append(sides, &side{name: "charge, at BASE", on: run.former, requests: run.loads[1].requests()})
	}
	for range speedRounds {
		for _, side := range sides {
			took := paced(b, side.on.address(b), side.requests, run.rate64/2, 3*time.Second)
			side.p50 = append(side.p50, took[len(took)/2].Seconds()*1000)
			side.p99 = append(side.p99, took[len(took)*99/100].Seconds()*1000)
		}
	}
	fmt.Printf("\nat half of the most charges, %.0f/s:\n", run.rate64/2)
	for _, side := range sides {
		var ratios []float64
		for i, p99 := range side.p99 {
			ratios = append(ratios, p99/sides[0].p99[i])
		}
		fmt.Printf("%s: median %.2f ms, p99 %.2f ms [%.2f … %.2f], %.2f [%.2f … %.2f] of the floor's\n", side.name,
			median(side.p50), median(side.p99), slices.Min(side.p99), slices.Max(side.p99),
			median(ratios), slices.Min(ratios), slices.Max(ratios))
	}
}

// paced sends requests at a rate a second and returns, sorted, how long the responses took from when they were due: one
// that had to wait for a connection counts whole.
func paced(b *testing.B, address string, requests [][]byte, rate float64, duration time.Duration) []time.Duration {
	var mu sync.Mutex
	var took []time.Duration
	next, interval := time.Now(), time.Duration(float64(time.Second)/rate)
	end := next.Add(duration)
	drive(b, address, 64, requests, func(int) bool { return time.Now().Before(end) }, func() func() {
		mu.Lock()
		next = next.Add(interval)
		due := next
		mu.Unlock()
		time.Sleep(time.Until(due))
		return func() {
			d := time.Since(due)
			mu.Lock()
			took = append(took, d)
			mu.Unlock()
		}
	})
	slices.Sort(took)
	return took
}

// chargesOfTenants returns charges for a key of each of n new tenants.
func chargesOfTenants(b *testing.B, s *service, r *redistest.Server, n int) (requests [][]byte) {
	for range n {
		id := newTenantIn(b, r, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}}}`, int64(maxAmount)))
		one := workload{method: "POST", path: "/" + id + "/tokens/consume", tokens: []string{s.login(b, id)}, body: oneToken}
		requests = append(requests, one.requests()...)
	}
	return requests
}

// measureGrown prints what many tenants and keys change.
func (run *speedRun) measureGrown(b *testing.B) {
	large := redistest.New(b, "--appendonly", "no")
	const keys = 1_000_000
	before := memory(b, large)
	fillRedis(b, large, keys)
	perKey := float64(memory(b, large)-before) / keys
	grown := startCommand(b, exec.Command(run.binary), append([]string{"REDIS_URL=" + large.URL()}, benchSettings...))
	defer grown.kill()
	requests := chargesOfTenants(b, &service{url: "http://" + grown.address(b)}, large, 1000)
	var ratios []float64
	for range speedRounds {
		count := func(p *process, requests [][]byte) float64 {
			end := time.Now().Add(2 * speedTime)
			return float64(drive(b, p.address(b), 64, requests, func(int) bool { return time.Now().Before(end) }, nil))
		}
		few := count(run.service, run.loads[2].requests())
		run.charges += int(few)
		ratios = append(ratios, count(grown, requests)/few)
	}
	fmt.Printf("\n1,000 keys of 1,000 tenants beside 1,000,000 keys in Redis, to 1,000 keys of 1 tenant beside none: "+
		"%.2f [%.2f … %.2f] of the charges/s; %.0f bytes in Redis a key\n",
		median(ratios), slices.Min(ratios), slices.Max(ratios), perKey)
}

// measureMemory prints what is resident after ten million charges, with 1,000 tenants and 200 open streams, and what a
// connection takes.
func (run *speedRun) measureMemory(b *testing.B) {
	s := &service{url: "http://" + run.service.address(b)}
	requests := chargesOfTenants(b, s, run.r, 1000)
	for first := true; first || run.charges < 10_000_000; first = false {
		end := time.Now().Add(10 * time.Second)
		run.charges += drive(b, s.address(), 64, requests, func(int) bool { return time.Now().Before(end) }, nil)
	}
	provider := startCommand(b, exec.Command(os.Args[0]), []string{"TOLLGATE_RUN_BENCH=provider"}).address(b)
	pid := run.service.cmd.Process.Pid
	charged := residentKiB(b, pid)
	closeStreams := openSilentStreams(b, s, run.r, provider, chatPath, 200)
	fmt.Printf("resident after at least %d charges with 1,000 tenants: %d KiB, with 200 streams: %d KiB\n",
		run.charges, charged, residentKiB(b, pid))
	closeStreams()

	for _, path := range []string{chatPath, responsesRoute} {
		run.measureConnections(b, provider, path)
	}
}

// measureConnections prints what a connection takes, and a stream at the path that is silent.
func (run *speedRun) measureConnections(b *testing.B, provider, path string) {
	// With little garbage: what counts is what a connection needs.
	fresh := startCommand(b, exec.Command(run.binary), append(slices.Clone(run.settings), "GOGC=25"))
	defer fresh.kill()
	s := &service{url: "http://" + fresh.address(b)}
	pid := fresh.cmd.Process.Pid
	const connections = 1000
	before := residentKiB(b, pid)
	for range connections {
		c, err := net.Dial("tcp", s.address())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := readResponse(bufio.NewReader(c)); err != nil {
			b.Fatal(err)
		}
	}
	idle := residentKiB(b, pid)
	defer openSilentStreams(b, s, run.r, provider, path, connections)()
	fmt.Printf("resident: %d KiB, with %d idle connections %d KiB, with as many silent streams of %s beside them %d KiB\n",
		before, connections, idle, path, residentKiB(b, pid))
}

// result is what the rounds of one workload gave.
type result struct {
	requests                      int // of the last round
	rates, ratios                 []float64
	userMicros, systemMicros, own []float64 // a request: of the server, and of Redis
}

func (res result) String() string {
	return fmt.Sprintf("%.0f [%.0f … %.0f] | %.2f [%.2f … %.2f] | %.1f + %.1f | %.1f",
		median(res.rates), slices.Min(res.rates), slices.Max(res.rates), median(res.ratios), slices.Min(res.ratios), slices.Max(res.ratios),
		median(res.userMicros), median(res.systemMicros), median(res.own))
}

// run adds a round, and its ratio to the last one of base.
func (res *result) run(b *testing.B, w workload, p *process, r *redistest.Server, connections int, base *result) {
	user, system := cpuMicros(b, p.cmd.Process.Pid)
	redisUser, redisSystem := cpuMicros(b, r.PID())
	rate, n := runWorkload(b, w, p.address(b), connections)
	userAfter, systemAfter := cpuMicros(b, p.cmd.Process.Pid)
	redisUserAfter, redisSystemAfter := cpuMicros(b, r.PID())
	res.requests = n
	res.rates = append(res.rates, rate)
	res.ratios = append(res.ratios, rate/base.rates[len(base.rates)-1])
	res.userMicros = append(res.userMicros, (userAfter-user)/float64(n))
	res.systemMicros = append(res.systemMicros, (systemAfter-system)/float64(n))
	res.own = append(res.own, (redisUserAfter+redisSystemAfter-redisUser-redisSystem)/float64(n))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// loader returns what sends the load: wrk, if there is one, which costs less than a client in Go.
func loader() string {
	if _, err := exec.LookPath("wrk"); err == nil {
		return "wrk -t1"
	}
	return "a client in Go"
}

// runWorkload sends w for speedTime and returns how many responses came in a second, and in all.
func runWorkload(b *testing.B, w workload, address string, connections int) (rate float64, requests int) {
	if loader() != "wrk -t1" {
		begin := time.Now()
		n := drive(b, address, connections, w.requests(), func(int) bool { return time.Since(begin) < speedTime }, nil)
		return float64(n) / time.Since(begin).Seconds(), n
	}
	var script strings.Builder
	fmt.Fprintf(&script, "wrk.method = %q\nwrk.body = %q\n", w.method, w.body)
	if len(w.tokens) == 1 {
		fmt.Fprintf(&script, "wrk.headers['Authorization'] = 'Bearer %s'\n", w.tokens[0])
	} else {
		fmt.Fprintf(&script, "local tokens, requests, n = {'%s'}, {}, 0\n", strings.Join(w.tokens, "','"))
		fmt.Fprintf(&script, "function init() for i, token in ipairs(tokens) do "+
			"requests[i] = wrk.format(nil, nil, {['Authorization'] = 'Bearer ' .. token%s}) end end\n",
			map[bool]string{true: ", ['Idempotency-Key'] = '" + serial + "'"}[w.header != ""])
		if w.header == "" {
			fmt.Fprint(&script, "function request() n = n + 1; return requests[n % #requests + 1] end\n")
		} else {
			fmt.Fprintf(&script, "function request() n = n + 1; return (string.gsub(requests[n %% #requests + 1], '%s', '%d-' .. n, 1)) end\n",
				serial, time.Now().UnixNano())
		}
	}
	file := filepath.Join(b.TempDir(), "load.lua")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	wrk := exec.Command("wrk", "-t1", fmt.Sprintf("-c%d", connections), "-d"+speedTime.String(), "-s", file, "http://"+address+w.path)
	out, err := wrk.CombinedOutput()
	found := regexp.MustCompile(`(?s)(\d+) requests in .*Requests/sec: +([\d.]+)`).FindSubmatch(out)
	if err != nil || found == nil || bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
		b.Fatalf("%s: %v\n%s", w.name, err, out)
	}
	requests, _ = strconv.Atoi(string(found[1]))
	rate, _ = strconv.ParseFloat(string(found[2]), 64)
	return rate, requests
}

// cpuMicros is the processor time that a process has used so far, as Linux counts it in ticks of 10 ms.
func cpuMicros(b *testing.B, pid int) (user, system float64) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal("processor times are read as Linux has them: ", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ = strconv.ParseFloat(fields[11], 64)
	system, _ = strconv.ParseFloat(fields[12], 64)
	return user * 1e4, system * 1e4
}

func residentKiB(b *testing.B, pid int) (n int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	fmt.Sscan(redistest.Field(string(status), "VmRSS"), &n)
	return n
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

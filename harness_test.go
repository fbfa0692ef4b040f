package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
)

// What all tests use: Redis, tenants, and the program. client_test.go has requests and responses, load_test.go many of
// them.
//
// Tests that wait, for a response or for a time to pass, run beside one another (t.Parallel). The others run alone: they
// compute, measure, make a load of their own, or look at all of testRedis.

const testAdminToken = "test-admin-token"

// testRedis is the Redis of all tests that do not stop, freeze, restart or configure theirs. Each test has tenants of
// its own there. It is the server at TEST_REDIS_URL, if that is set, else one that TestMain starts, or, if
// TEST_REDIS_TOPOLOGY is "cluster", a Redis Cluster of three masters.
var testRedis *redistest.Server

func TestMain(m *testing.M) {
	if os.Getenv("TOLLGATE_RUN_MAIN") != "" { // startProcess runs this binary as the program itself
		main()
		os.Exit(0)
	}
	if role := os.Getenv("TOLLGATE_RUN_BENCH"); role != "" {
		runBenchServer(role)
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = parallel.Set("16") // the default is for tests that compute: those that are parallel here wait
	}
	os.Exit(redistest.Main(m, startUsed, &testRedis))
}

// startUsed starts the servers that tests share. They are not empty, or the first service would say so in its log.
func startUsed() (*redistest.Server, error) {
	r, err := redistest.StartShared()
	if err != nil {
		return nil, err
	}
	if err = r.DoAll([]any{"SADD", tenantsRedisKey, seedTenant}); err != nil {
		r.Close()
	}
	return r, err
}

// singleRedis returns testRedis or, if that is a cluster, a server of the test's own.
func singleRedis(t testing.TB) *redistest.Server {
	t.Helper()
	if testRedis.Cluster != nil {
		return redistest.New(t)
	}
	return testRedis
}

// tokensLeftIn returns the balance of an API key in r.
func tokensLeftIn(t testing.TB, r *redistest.Server, key string) int {
	t.Helper()
	return r.Int(t, "HGET", "apiKey:"+key, "tokensLeft")
}

var tenants atomic.Int64

// newTenantID returns a tenant ID that no other test has.
func newTenantID() string { return fmt.Sprintf("t%d", tenants.Add(1)) }

// newTenantIn puts config straight into r, as an operator may, under an ID that no other test has, and returns the ID.
func newTenantIn(t testing.TB, r *redistest.Server, config string) string {
	t.Helper()
	id := newTenantID()
	r.Do(t, "SET", "tenant:"+id+":config", config)
	return id
}

// newTenant creates a tenant in testRedis whose anonymous users get that many tokens.
func newTenant(t testing.TB, tokens int) string {
	t.Helper()
	return newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d},"pro":{"tokens":5000}}}`, tokens))
}

// limitedTenant creates a tenant in testRedis whose group anonymous has 1,000 tokens and that rate limit.
func limitedTenant(t testing.TB, limit, window int) string {
	t.Helper()
	return newTenantIn(t, testRedis, fmt.Sprintf(
		`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d},"pro":{"tokens":5000}}}`, limit, window))
}

// tokensLeft returns the balance of an API key in testRedis.
func tokensLeft(t testing.TB, key string) int {
	t.Helper()
	return tokensLeftIn(t, testRedis, key)
}

// service is the whole program, running in this process.
type service struct {
	url  string
	log  *telemetrytest.Log
	stop func() error // returns what run returned
}

// newService runs the program on testRedis, or as the settings (NAME=value) say, until the test ends.
func newService(t testing.TB, settings ...string) *service {
	t.Helper()
	log := new(telemetrytest.Log)
	return newServiceWithLog(t, log, log.Logger(), settings...)
}

// newServiceWithLog does what newService does, with a logger whose lines come to log.
func newServiceWithLog(t testing.TB, log *telemetrytest.Log, logger *telemetry.Logger, settings ...string) *service {
	t.Helper()
	env := map[string]string{
		"REDIS_URL": testRedis.URL(), "ADDR": "127.0.0.1:0", "ADMIN_TOKEN": testAdminToken, "LOGIN_LIMIT": "0",
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		env[name] = value
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{log: log}
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = run(ctx, nil, nil, func(name string) string { return env[name] }, io.Discard, logger)
	}()
	s.stop = func() error {
		cancel()
		for {
			client.CloseIdleConnections() // the service would wait a moment for what may come on them
			select {
			case <-done:
				return err
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("the service ended with: %v", err)
		}
	})
	s.url = "http://" + s.log.Wait(t, "[INFO] Listening on ", done)
	return s
}

// newServices runs the program twice, with the same settings.
func newServices(t testing.TB, settings ...string) []*service {
	t.Helper()
	return []*service{newService(t, settings...), newService(t, settings...)}
}

// process is the program in a process of its own, for what only a process has: signals and an exit code.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	log    *telemetrytest.Log
	done   <-chan struct{} // closed when it has ended
}

// startProcess starts the program with just these settings (NAME=value) and arguments.
func startProcess(t *testing.T, settings []string, args ...string) *process {
	t.Helper()
	// The race detector would have each process wait for a second before it ends.
	env := append(settings, "TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+t.TempDir())
	return startCommand(t, exec.Command(os.Args[0], args...), env)
}

func startCommand(t testing.TB, cmd *exec.Cmd, env []string) *process {
	t.Helper()
	p := &process{cmd: cmd, log: new(telemetrytest.Log)}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, p.log
	p.done = start(t, cmd)
	t.Cleanup(p.kill)
	return p
}

// start starts cmd, and returns a channel that is closed when its process has ended.
func start(t testing.TB, cmd *exec.Cmd) (ended <-chan struct{}) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	return done
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// address returns where the process listens, once it does.
func (p *process) address(t testing.TB) string {
	t.Helper()
	return p.log.Wait(t, "[INFO] Listening on ", p.done)
}

// service returns the process as a service.
func (p *process) service(t testing.TB) *service {
	t.Helper()
	return &service{url: "http://" + p.address(t), log: p.log}
}

func (p *process) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("the process still runs:\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

// brief reports whether load and fault suites are left out: with -short, and where testRedis is a cluster. Nearly all of
// these suites start a Redis of their own, so a cluster would change nothing about them.
func brief() bool { return testing.Short() || testRedis.Cluster != nil }

// long marks a load or fault suite. It is left out of brief runs, and for no other reason.
func long(t *testing.T) {
	t.Helper()
	if brief() {
		t.Skip("left out by -short, and on a cluster")
	}
}

// busy is what a busy machine may add to the time that a response takes.
const busy = 500 * time.Millisecond

// called returns what r executes while do runs, by scripts too, as "<command>=<calls> …" in order.
func called(t testing.TB, r *redistest.Server, do func()) string {
	t.Helper()
	r.Do(t, "CONFIG", "RESETSTAT")
	do()
	var calls []string
	for line := range strings.Lines(r.String(t, "INFO", "commandstats")) {
		name, n, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		n, _, _ = strings.Cut(n, ",")
		if ok && !strings.HasPrefix(name, "config") && name != "info" {
			calls = append(calls, name+"="+n)
		}
	}
	slices.Sort(calls)
	return strings.Join(calls, " ")
}

func in(d time.Duration) time.Time { return time.Now().Add(d) }

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// After the signal the service goes on for the shutdown delay, and takes new connections, while /readyz tells balancers
// to send their requests elsewhere.
func TestShutdownDelay(t *testing.T) {
	t.Parallel()
	const delay = 3 * time.Second
	s := newService(t, "SHUTDOWN_DELAY="+delay.String())
	id := newTenant(t, 10)
	key := s.login(t, id)
	process, _, _ := strings.Cut(s.do(t, "GET", "/healthz", "").header.Get("X-Request-Id"), "-")
	began := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	s.log.Wait(t, "[INFO] Stopping", nil)
	for range 3 {
		c := s.dial(t) // a new connection
		fmt.Fprint(c, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "\r\nConnection: close\r\n") {
			t.Errorf("/readyz: %q", got)
		}
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
		s.consume(t, id, key, "").want(t, 200, "")
	}
	select {
	case err := <-stopped:
		t.Fatalf("the service ended during the delay, with %v", err)
	default:
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < delay || took > delay+5*time.Second {
		t.Errorf("the service has ended after %s", took)
	}
	c, err := net.Dial("tcp", s.address())
	if err != nil {
		return
	}
	defer c.Close() // the port may be that of another server by now
	_ = c.SetDeadline(in(10 * time.Second))
	fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if got := readAll(c); strings.Contains(got, "X-Request-Id: "+process) {
		t.Errorf("a new connection is taken after the end: %q", got)
	}
}

// A second signal ends the shutdown delay, and the process.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	p := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "SHUTDOWN_DELAY=1h"})
	p.address(t)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.log.Wait(t, "[INFO] Stopping", p.done)
	waittest.Eventually(t, 20*time.Second, func() error { // it is caught until a moment after the first
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return nil
		default:
			return errors.New("the process still runs")
		}
	})
}

// SIGHUP has the files of tokens read again. What cannot be read keeps its value; what was valid goes on meanwhile.
func TestReload(t *testing.T) {
	t.Parallel()
	const first, second, metrics = "first-operator-token", "second-operator-token", "metrics-token-of-the-collector"
	admins, collectors := tokenFile(t, first+"\n"), tokenFile(t, metrics)
	p := startProcess(t, []string{
		"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN_FILE=" + admins, "METRICS_TOKEN_FILE=" + collectors,
	})
	s := p.service(t)
	opens := func(path string, statuses map[string]int) {
		t.Helper()
		for token, status := range statuses {
			if got := s.do(t, "GET", path, "", bearer(token)); got.status != status {
				t.Errorf("%s opens %s: %d, want %d", token, path, got.status, status)
			}
		}
	}
	reload := func(content, wantLine string) {
		t.Helper()
		p.reload(t, admins, content, wantLine)
	}
	opens("/admin/tenants", map[string]int{first: 200, second: 401, metrics: 401})
	reload(first+"\n"+second, "[INFO] ADMIN_TOKEN_FILE was read again\n")
	opens("/admin/tenants", map[string]int{first: 200, second: 200, metrics: 401})
	for content, why := range map[string]string{"": "is empty", "not a token": "has characters", ",\n": "has no token"} {
		reload(content, "[ERROR] ADMIN_TOKEN_FILE was not read again, and the old value stays: ")
		if p.log.Count(why) != 1 {
			t.Errorf("%q is not in the log:\n%s", why, p.log)
		}
		opens("/admin/tenants", map[string]int{first: 200, second: 200, "not": 401})
	}
	reload(second+",short", "[INFO] ADMIN_TOKEN_FILE was read again\n")
	p.log.Wait(t, "[WARN] Token 2 of ADMIN_TOKEN has fewer than 16 characters: it can be guessed", p.done)
	opens("/admin/tenants", map[string]int{first: 401, second: 200, "short": 200})
	opens("/metrics", map[string]int{metrics: 200, second: 200})
	if err := os.Remove(admins); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(collectors, []byte("metrics-token-that-is-new"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Process.Signal(syscall.SIGHUP)
	p.log.Wait(t, "[ERROR] ADMIN_TOKEN_FILE was not read again, and the old value stays: open "+admins, p.done)
	waittest.Eventually(t, 20*time.Second, func() error { return s.do(t, "GET", "/metrics", "", bearer("metrics-token-that-is-new")).is(200) })
	opens("/metrics", map[string]int{metrics: 401, second: 200})
	for _, secret := range []string{first, second, metrics, "short\n", "not a token"} {
		if p.log.Count(secret) > 0 {
			t.Errorf("%q is in the log:\n%s", secret, p.log)
		}
	}
}

// reload writes a file, sends SIGHUP, and waits for a further line in the log.
func (p *process) reload(t *testing.T, file, content, wantLine string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := p.log.Count(wantLine)
	_ = p.cmd.Process.Signal(syscall.SIGHUP)
	waittest.Eventually(t, 20*time.Second, func() error {
		if p.log.Count(wantLine) == lines {
			return fmt.Errorf("no further line %q in the log:\n%s", wantLine, p.log)
		}
		return nil
	})
}

// SIGHUP never ends the process: not while it connects to Redis, nor without files, nor while it drains.
func TestHangup(t *testing.T) {
	t.Parallel()
	t.Run("while connecting", func(t *testing.T) {
		t.Parallel()
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		p := startProcess(t, []string{"REDIS_URL=redis://" + silent.Addr().String()})
		if _, err := silent.Accept(); err != nil {
			t.Fatal(err)
		}
		_ = p.cmd.Process.Signal(syscall.SIGHUP)
		p.log.Wait(t, "[INFO] SIGHUP: no setting is a file that could be read again", p.done)
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		if code := p.exitCode(t); code != 0 {
			t.Errorf("exit code %d, log %s", code, p.log)
		}
	})
	t.Run("while draining", func(t *testing.T) {
		t.Parallel()
		p := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken})
		s := p.service(t)
		id := newTenant(t, 10)
		key := s.login(t, id)
		running := s.begin(t, "POST", "/"+id+"/tokens/consume", 12, bearer(key))
		_ = p.cmd.Process.Signal(syscall.SIGHUP)
		p.log.Wait(t, "[INFO] SIGHUP: ", p.done)
		s.do(t, "GET", "/readyz", "").want(t, 200, "")
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		p.log.Wait(t, "[INFO] Stopping", p.done)
		_ = p.cmd.Process.Signal(syscall.SIGHUP)
		waittest.Eventually(t, 20*time.Second, func() error {
			if p.log.Count("[INFO] SIGHUP: ") != 2 {
				return fmt.Errorf("log:\n%s", p.log)
			}
			return nil
		})
		fmt.Fprint(running, `{"tokens":7}`)
		if got := readAll(running); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("the request that ran got %q", got)
		}
		if code := p.exitCode(t); code != 0 {
			t.Errorf("exit code %d, log %s", code, p.log)
		}
	})
}

// Each of several operator's tokens opens what one opens, and each that is short is warned of.
func TestSeveralAdminTokens(t *testing.T) {
	t.Parallel()
	const first, second = "the-first-of-two-tokens", "tiny"
	for _, value := range []string{first + "," + second, first + "\n" + second + "\n", " " + first + " ,, " + second} {
		s := newService(t, "ADMIN_TOKEN="+value, "METRICS_TOKEN=little")
		id := newTenant(t, 10)
		for _, token := range []string{first, second} {
			s.do(t, "GET", "/"+id+"/admin/config", "", bearer(token)).want(t, 200, "")
			s.do(t, "GET", "/admin/tenants", "", bearer(token)).want(t, 200, "")
			if got := s.do(t, "GET", "/metrics", "", bearer(token)); got.status != 200 {
				t.Errorf("/metrics: %d", got.status)
			}
		}
		s.do(t, "GET", "/admin/tenants", "", bearer(strings.ReplaceAll(strings.TrimSpace(value), "\n", ","))).want(t, 401, "")
		if s.log.Count("[WARN]") != 2 ||
			s.log.Count("[WARN] Token 2 of ADMIN_TOKEN has fewer than 16 characters: it can be guessed\n") != 1 ||
			s.log.Count("[WARN] METRICS_TOKEN has fewer than 16 characters: it can be guessed\n") != 1 {
			t.Errorf("log:\n%s", s.log)
		}
	}
}

// An idle connection is closed after the idle timeout.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	s := newService(t, "IDLE_TIMEOUT=1s")
	c := s.dial(t)
	fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(c)
	if response, err := http.ReadResponse(r, nil); err != nil || response.Close {
		t.Fatalf("%+v, %v", response, err)
	}
	began := time.Now()
	_, _ = r.Discard(len(`{"status":"ok"}` + "\n"))
	if b, err := r.ReadByte(); err == nil {
		t.Errorf("got %q", b)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("closed after %s", took)
	}
}

// Connections are limited by the open files that the process may have: one for the client, one for a provider.
func TestLimitConnections(t *testing.T) {
	for _, test := range []struct{ max, files, want, waiting, sessions, drains, idle int64 }{
		{4096, 0, 4096, 2048, 512, 1024, 1024}, // the limit is not known
		{4096, 20000, 4096, 2048, 512, 1024, 1024},
		{4096, 8292, 4096, 2048, 512, 768, 384},
		{4096, 8291, 4095, 2047, 511, 769, 384},
		{4096, 1024, 462, 231, 57, 87, 43},
		{4096, 256, 78, 39, 9, 15, 7},
		{4096, 104, 2, 1, 1, 1, 1},
		{4096, 100, 1, 1, 1, 1, 1},
		{4096, 3, 1, 1, 1, 1, 1},
		{1, 102, 1, 1, 1, 1, 1},
		{200, 500, 200, 100, 25, 37, 18},
	} {
		log := new(telemetrytest.Log)
		s := &settings{}
		s.setMaxConnections(test.max)
		s.limitConnections(test.files, log.Logger())
		g := s.server.gateway
		got := [...]int64{s.maxConnections, g.MaxWaiting, g.MaxSessions, g.MaxDrains, g.MaxIdle}
		if want := [...]int64{test.want, test.waiting, test.sessions, test.drains, test.idle}; got != want {
			t.Errorf("%d connections with %d files: got %d connections, that wait, sessions, drains and idle, want %d",
				test.max, test.files, got, want)
		}
		needed := s.maxConnections + g.MaxWaiting + g.MaxSessions + g.MaxDrains + 2*g.MaxIdle + spareFiles
		if test.files > 200 && needed > test.files {
			t.Errorf("%d files are too few for %+v", test.files, test)
		}
		if warned := log.Count("[WARN]") == 1; warned != (test.files > 0 && test.files < 2*test.max+100) {
			t.Errorf("%d connections with %d files: log %q", test.max, test.files, log)
		}
	}
}

// With fewer open files than connections need, clients that keep theirs do not keep others out.
func TestFewOpenFiles(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", `ulimit -n 120 && exec "$0"`, os.Args[0])
	p := startCommand(t, cmd, []string{
		"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0",
		"GOCOVERDIR=" + t.TempDir(),
	})
	s := p.service(t)
	const warning = "[WARN] The process may have 120 open files (ulimit -n), and 4096 connections need 8292: at most 10 are taken\n"
	if p.log.Count(warning) != 1 {
		t.Errorf("log:\n%s", p.log)
	}
	for range 60 {
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is the program in a process of its own, for what only a process has: signals and an exit code.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	log    *logBuffer
	done   chan struct{}
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
	p := &process{cmd: cmd, log: new(logBuffer), done: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// address is where the process listens, once it does.
func (p *process) address(t testing.TB) string {
	t.Helper()
	address, ok := p.log.wait("[INFO] Listening on ", p.done)
	if !ok {
		t.Fatalf("it does not listen:\n%s", p.log)
	}
	return address
}

func (p *process) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("the process still runs:\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

func TestRedisConnectionFailed(t *testing.T) {
	r := newRedis(t, "--requirepass", "right")
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	replica := newRedis(t)
	replica.do(t, "REPLICAOF", "127.0.0.1", port)
	old := newRedisProxy(t, testRedis, func(reply []byte) fate { // a real Redis, but for its age
		copy(reply, bytes.ReplaceAll(reply, []byte("redis_version:7."), []byte("redis_version:6.")))
		return pass
	})
	tests := map[string]string{
		fmt.Sprintf("redis://:hunter2@127.0.0.1:%d", port):    "connection refused",
		fmt.Sprintf("redis://:hunter2@127.0.0.1:%d", r.port):  "WRONGPASS",
		fmt.Sprintf("redis://127.0.0.1:%d", r.port):           "NOAUTH",
		fmt.Sprintf("redis://:right@127.0.0.1:%d/99", r.port): "DB index is out of range",
		fmt.Sprintf("rediss://:right@127.0.0.1:%d", r.port):   "",
		"unix:///nowhere/redis.sock":                          "no such file",
		"redis://hunter2:hunter2@hunter2.invalid":             "xxxxx",
		"redis://" + silent.Addr().String():                   "deadline exceeded|i/o timeout", // of the whole, or of a read: both are 5 s
		fmt.Sprintf("redis://127.0.0.1:%d", replica.port):     "READONLY",
		old.url: "is too old: tollgate needs Redis 7.0 or Valkey 7.2 or newer",
	}
	for url, want := range tests {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			p := startProcess(t, []string{"REDIS_URL=" + url, "ADDR=127.0.0.1:0"})
			if code := p.exitCode(t); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			log := p.log.String()
			if !strings.HasPrefix(log, "[ERROR] Redis connection failed: ") || strings.Count(log, "\n") != 1 || !regexp.MustCompile(want).MatchString(log) {
				t.Errorf("log is %q, want one line with %q", log, want)
			}
			if strings.Contains(log, "hunter2") {
				t.Errorf("the password is in the log: %q", log)
			}
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(env map[string]string, args ...string) (*settings, error) {
		return parseSettings(args, func(name string) string { return env[name] }, io.Discard)
	}
	type env = map[string]string
	good := []struct {
		env  env
		args []string
		want func(*settings) any
		text string
	}{
		{nil, nil, func(s *settings) any { return *s.redisURL }, "{tcp localhost:6379 false   0}"},
		{env{"REDIS_URL": "redis://u:p@h:1/2"}, nil, func(s *settings) any { return *s.redisURL }, "{tcp h:1 false u p 2}"},
		{env{"REDIS_URL": "redis://h:1"}, []string{"-redis-url", "redis://i:2"}, func(s *settings) any { return s.redisURL.address }, "i:2"},
		{nil, nil, func(s *settings) any { return s.addr }, ":8080"},
		{env{"PORT": "9"}, nil, func(s *settings) any { return s.addr }, ":9"},
		{env{"PORT": "9", "ADDR": "h:8"}, nil, func(s *settings) any { return s.addr }, "h:8"},
		{env{"PORT": "9", "ADDR": "h:8"}, []string{"-addr", ":7"}, func(s *settings) any { return s.addr }, ":7"},
		{nil, nil, func(s *settings) any { return s.adminToken }, ""},
		{env{"ADMIN_TOKEN": "t"}, nil, func(s *settings) any { return s.adminToken }, "t"},
		{env{"ADMIN_TOKEN_FILE": secret}, nil, func(s *settings) any { return s.adminToken }, "from-file"},
		{env{"ADMIN_TOKEN": "t"}, []string{"-admin-token-file", secret}, func(s *settings) any { return s.adminToken }, "from-file"},
		{nil, nil, func(s *settings) any { return s.loginLimit }, "600"},
		{env{"LOGIN_LIMIT": "5"}, nil, func(s *settings) any { return s.loginLimit }, "5"},
		{env{"LOGIN_LIMIT": "5"}, []string{"-login-limit=0"}, func(s *settings) any { return s.loginLimit }, "0"},
		{nil, nil, func(s *settings) any { return s.trustedProxies }, "[]"},
		{nil, nil, func(s *settings) any { return s.maxConnections }, "4096"},
		{env{"MAX_CONNECTIONS": "7"}, []string{"-max-connections", "8"}, func(s *settings) any { return s.maxConnections }, "8"},
		{nil, nil, func(s *settings) any { return s.accessLog }, "false"},
		{env{"ACCESS_LOG": "1"}, nil, func(s *settings) any { return s.accessLog }, "true"},
		{env{"ACCESS_LOG": "true"}, []string{"-access-log=false"}, func(s *settings) any { return s.accessLog }, "false"},
		{env{"TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"}, nil, func(s *settings) any { return s.trustedProxies }, "[10.0.0.0/8 ::1/128]"},
	}
	for _, test := range good {
		set, err := parse(test.env, test.args...)
		if err != nil {
			t.Errorf("%v %v: %v", test.env, test.args, err)
		} else if got := fmt.Sprint(test.want(set)); got != test.text {
			t.Errorf("%v %v: got %s, want %s", test.env, test.args, got, test.text)
		}
	}
	bad := []struct {
		env  env
		args []string
		want string
	}{
		{env{"REDIS_URL": "h:1"}, nil, "REDIS_URL must begin"},
		{nil, []string{"-redis-url", "redis://:hunter2@h"}, "-redis-url must not hold a password"},
		{env{"REDIS_URL": "redis://user@h"}, nil, "REDIS_URL has a user but no password"},
		{env{"ADDR": "8080"}, nil, "ADDR: "},
		{env{"PORT": "http"}, nil, "PORT: "},
		{env{"PORT": "65536"}, nil, "PORT: "},
		{nil, []string{"-addr", "8080"}, "-addr: "},
		{env{"ADMIN_TOKEN": "hunter 2"}, nil, "ADMIN_TOKEN has characters"},
		{env{"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": secret}, nil, "both set"},
		{env{"ADMIN_TOKEN_FILE": "/nowhere"}, nil, "/nowhere"},
		{env{"ADMIN_TOKEN_FILE": "/dev/null"}, nil, `ADMIN_TOKEN_FILE: "/dev/null" is empty`},
		{nil, []string{"-admin-token-file", "/nowhere"}, "-admin-token-file: open /nowhere"},
		{env{"LOGIN_LIMIT": "-1"}, nil, "LOGIN_LIMIT"},
		{env{"LOGIN_LIMIT": "1.5"}, nil, "LOGIN_LIMIT"},
		{env{"TRUSTED_PROXIES": "10.0.0.1"}, nil, "TRUSTED_PROXIES"},
		{env{"MAX_CONNECTIONS": "1000001"}, nil, "MAX_CONNECTIONS"},
		{nil, []string{"-max-connections=many"}, "-max-connections"},
		{env{"ACCESS_LOG": "yes"}, nil, `ACCESS_LOG: "yes" is neither true nor false`},
		{nil, []string{"-access-log=maybe"}, "-access-log"},
		{nil, []string{"-admin-token=hunter2"}, "not defined: -admin-token"},
		{nil, []string{"serve"}, `unexpected argument "serve"`},
		{nil, []string{"-nope1", "---", "-login-limit=x", "a", "-nope2"}, `not defined: -nope1; bad flag syntax: ---; unexpected argument "a"; ` +
			"flag provided but not defined: -nope2; -login-limit: "},
	}
	for _, test := range bad {
		if _, err := parse(test.env, test.args...); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v %v: got %v, want %q", test.env, test.args, err, test.want)
		}
	}
}

// All bad settings are named at once, with exit code 2, before anything is tried.
func TestBadSettings(t *testing.T) {
	p := startProcess(t, []string{"REDIS_URL=x", "ADDR=y", "ADMIN_TOKEN=ä", "LOGIN_LIMIT=z", "TRUSTED_PROXIES=q", "MAX_CONNECTIONS=0", "ACCESS_LOG=2"}, "more")
	if code := p.exitCode(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	log := p.log.String()
	if strings.Count(log, "[ERROR] ") != 8 || strings.Count(log, "\n") != 8 {
		t.Errorf("want 8 errors, got\n%s", log)
	}
	for _, name := range []string{"REDIS_URL", "ADDR", "ADMIN_TOKEN", "LOGIN_LIMIT", "TRUSTED_PROXIES", "MAX_CONNECTIONS", "ACCESS_LOG", "more"} {
		if !strings.Contains(log, name) {
			t.Errorf("%s is not named in\n%s", name, log)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	p := startProcess(t, nil, "-h")
	if code := p.exitCode(t); code != 0 {
		t.Errorf("-h: exit code %d", code)
	}
	for _, want := range []string{
		"REDIS_URL", "redis://localhost:6379", "ADDR", ":8080", "PORT", "ADMIN_TOKEN", "ADMIN_TOKEN_FILE", "LOGIN_LIMIT", "600",
		"TRUSTED_PROXIES", "MAX_CONNECTIONS", "4096", "ACCESS_LOG", "-health", "-version",
	} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("-h does not name %s", want)
		}
	}
	p = startProcess(t, []string{"REDIS_URL=bad"}, "-version")
	if code, out := p.exitCode(t), p.stdout.String(); code != 0 || !strings.HasPrefix(out, "tollgate ") || len(out) < len("tollgate v\n") {
		t.Errorf("-version: exit code %d, %q", code, out)
	}
}

// Without ADMIN_TOKEN each run has a random one, logged once; with one, it is never logged.
func TestAdminTokenAtStart(t *testing.T) {
	const line = "[INFO] ADMIN_TOKEN is not set; this run's admin token is "
	seen := make(map[string]bool)
	for range 2 {
		s := newService(t, "ADMIN_TOKEN=")
		token, ok := s.log.wait(line, nil)
		if !ok || len(token) < 20 || seen[token] {
			t.Fatalf("token %q", token)
		}
		seen[token] = true
		s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 200, "")
		s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 401, "")
		if strings.Count(s.log.String(), token) != 1 {
			t.Error("the token is logged more than once")
		}
	}
	s := newService(t)
	s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 200, "")
	if strings.Contains(s.log.String(), testAdminToken) || strings.Contains(s.log.String(), line) {
		t.Errorf("the admin token is in the log:\n%s", s.log)
	}
}

// The user in docker-compose.yml is the one that all tests run as.
func TestComposeUser(t *testing.T) {
	user, err := leastPrivilege()
	if err != nil {
		t.Fatal(err)
	}
	compose, err := os.ReadFile("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(compose), `">${REDIS_PASSWORD:-tollgate}",`)
	after, _, _ = strings.Cut(after, "]")
	if got := strings.Fields(strings.NewReplacer(`"`, "", ",", "").Replace(after)); !slices.Equal(got, user[3:]) {
		t.Errorf("compose has %q, the README %q", got, user[3:])
	}
}

func TestSafetyWarnings(t *testing.T) {
	r := newRedis(t)
	r.do(t, "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
	s := newService(t, "REDIS_URL="+r.url())
	if !strings.Contains(s.log.String(), "[WARN] Redis's maxmemory-policy is volatile-lru") {
		t.Errorf("no warning in\n%s", s.log)
	}
	if s = newService(t, "REDIS_URL="+newRedis(t, "--appendonly", "no").url()); !strings.Contains(s.log.String(), "[WARN] Redis keeps no append-only file") {
		t.Errorf("no warning in\n%s", s.log)
	}
	s = newService(t)
	if strings.Contains(s.log.String(), "[WARN]") {
		t.Errorf("a warning without need in\n%s", s.log)
	}
}

// Told to stop before Redis has answered, the process ends in good order.
func TestStopWhileConnecting(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := startProcess(t, []string{"REDIS_URL=redis://" + silent.Addr().String()})
	if _, err := silent.Accept(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.exitCode(t); code != 0 || p.log.String() != "" || time.Since(start) > 2*time.Second {
		t.Errorf("exit code %d after %s, log %q", code, time.Since(start), p.log)
	}
}

// A request that does not end keeps the service only for so long.
func TestDrainTimeout(t *testing.T) {
	var log logBuffer
	env := map[string]string{"REDIS_URL": testRedis.url()}
	set, err := parseSettings([]string{"-addr=127.0.0.1:0"}, func(name string) string { return env[name] }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if set.drainTimeout != 10*time.Second {
		t.Errorf("by default it has %s", set.drainTimeout)
	}
	set.drainTimeout = 300 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- serve(ctx, set, newLogger(&log)) }()
	address, _ := log.wait("[INFO] Listening on ", nil)
	token, _ := log.wait("[INFO] ADMIN_TOKEN is not set; this run's admin token is ", nil)
	c := (&service{url: "http://" + address}).dial(t)
	fmt.Fprintf(c, "PUT /abc/admin/config HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 12\r\n\r\n{", bearer(token))
	time.Sleep(50 * time.Millisecond)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "[WARN] Requests still ran after 300ms and were cut off\n") {
		t.Errorf("log:\n%s", &log)
	}
}

func TestAddressInUse(t *testing.T) {
	s := newService(t)
	p := startProcess(t, []string{"REDIS_URL=" + testRedis.url(), "ADDR=" + strings.TrimPrefix(s.url, "http://")})
	if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), "[ERROR] listen tcp") {
		t.Errorf("exit code %d, log\n%s", code, p.log)
	}
}

func TestHealthFlag(t *testing.T) {
	s := newService(t)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.url, "http://"))
	for _, addr := range []string{":" + port, "127.0.0.1:" + port, "0.0.0.0:" + port} {
		if p := startProcess(t, []string{"ADDR=" + addr}, "-health"); p.exitCode(t) != 0 {
			t.Errorf("%s: exit code %d, %s", addr, p.exitCode(t), p.log)
		}
	}
	s.stop()
	if p := startProcess(t, []string{"ADDR=:" + port}, "-health"); p.exitCode(t) != 1 {
		t.Errorf("exit code %d for a service that is gone, want 1", p.exitCode(t))
	}
}

// SIGTERM or SIGINT finishes what runs: each charge that was taken is answered, and the process ends with 0.
func TestShutdownUnderLoad(t *testing.T) {
	for round := range 33 {
		sig := syscall.SIGTERM
		if round >= 30 {
			sig = syscall.SIGINT
		}
		t.Run(fmt.Sprint(round, " ", sig), func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, []string{"REDIS_URL=" + testRedis.url(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0"})
			s := &service{url: "http://" + p.address(t)}
			id := newTenant(t, 1_000_000)
			key := s.login(t, id)
			var charged atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for {
						answer, err := s.send("POST", "/"+id+"/tokens/consume", "", bearer(key))
						if errors.Is(err, syscall.ECONNREFUSED) {
							return // the server has gone
						}
						if err != nil {
							t.Error(err)
							return
						}
						if answer.status != 200 {
							t.Errorf("got %d %s", answer.status, answer.body)
						}
						charged.Add(1)
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d, want 0:\n%s", code, p.log)
			}
			wg.Wait()
			left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft")
			if spent := 1_000_000 - left; int64(spent) != charged.Load() || spent == 0 {
				t.Errorf("%d charges were answered, %d taken", charged.Load(), spent)
			}
			if strings.Contains(p.log.String(), "[WARN]") || strings.Contains(p.log.String(), "[ERROR]") {
				t.Errorf("log:\n%s", p.log)
			}
		})
	}
}

// A request that runs when the signal comes is finished, while /readyz is 503 and no new connection is taken.
func TestDrain(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")

	// A request that has come half, so that it is sure to run when the service is told to stop.
	half := fmt.Sprintf("POST /abc/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 12\r\n\r\n{", bearer(key))
	running, ready := s.dial(t), s.dial(t)
	fmt.Fprint(running, half)
	fmt.Fprint(ready, "GET /readyz HTTP/1.1\r\nHost: x\r\nContent-") // its header is not there yet
	time.Sleep(50 * time.Millisecond)
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	if _, ok := s.log.wait("[INFO] Stopping", nil); !ok {
		t.Fatal("it does not stop")
	}
	time.Sleep(50 * time.Millisecond)
	if c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://")); err == nil {
		c.Close()
		t.Error("a new connection was taken")
	}
	fmt.Fprint(ready, "Length: 0\r\n\r\n")
	if got := readAll(ready); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "\r\nConnection: close\r\n") {
		t.Errorf("/readyz answered %q", got)
	}
	fmt.Fprint(running, `"tokens":7}`)
	if got := readAll(running); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.HasSuffix(got, "{\"tokensLeft\":93}\n") {
		t.Errorf("the running request was answered %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func (s *service) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// readAll is all that comes until the other side closes the connection, or the deadline.
func readAll(c net.Conn) string {
	content, _ := io.ReadAll(c)
	return string(content)
}

// Whatever a request brings, it cannot forge a line of the log.
func TestLogLines(t *testing.T) {
	var out logBuffer
	log := newLogger(&out)
	log.infof("%s", "a\n[ERROR] b\r\x00\x1b[31m\u0085\u2028c\td é")
	log.warnings().Printf("http: %s\n[INFO] x", "y")
	want := "[INFO] a\\n[ERROR] b\\r\\x00\\x1b[31m\\u0085\\u2028c\td é\n[WARN] http: y\\n[INFO] x\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

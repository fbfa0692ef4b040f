package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// Without a Redis that can serve it the program ends with code 1 after one line that says why: at once if the set-up is
// wrong, and after 5 s if that may pass.
func TestRedisConnectionFailed(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--requirepass", "right")
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	replica := redistest.New(t)
	replica.Do(t, "REPLICAOF", "127.0.0.1", port)
	version := regexp.MustCompile(`redis_version:\d\.`)
	old := redistest.NewProxy(t, redistest.New(t), func(reply []byte) redistest.Fate { // a real Redis, but for its age
		copy(reply, version.ReplaceAll(reply, []byte("redis_version:6.")))
		return redistest.Pass
	})
	tests := []struct {
		name, url, want string
		lasts           bool
	}{
		{"nobody listens", "redis://:hunter2@127.0.0.1:1", "connection refused", false},
		{"wrong password", fmt.Sprintf("redis://:hunter2@127.0.0.1:%d", r.Port), "WRONGPASS", true},
		{"no password", fmt.Sprintf("redis://127.0.0.1:%d", r.Port), "NOAUTH", true},
		{"no such database", fmt.Sprintf("redis://:right@127.0.0.1:%d/99", r.Port), "DB index is out of range", true},
		{"no TLS", fmt.Sprintf("rediss://:right@127.0.0.1:%d", r.Port), "use redis://", true},
		{"no socket", "unix:///nowhere/redis.sock", "no such file", false},
		{"no such host", "redis://hunter2:hunter2@hunter2.invalid", "xxxxx", false},
		// The deadline is that of the whole, or of a read: both are 5 s.
		{"silence", "redis://" + silent.Addr().String(), "deadline exceeded|i/o timeout", false},
		{"a silent Sentinel", "redis-sentinel://" + silent.Addr().String() + "/main", silent.Addr().String(), false},
		{"a silent cluster", "redis-cluster://" + silent.Addr().String(), "deadline exceeded|i/o timeout", false},
		{"a replica", fmt.Sprintf("redis://127.0.0.1:%d", replica.Port), "READONLY", false},
		{"an old version", old.URL, "is too old: tollgate needs Redis 7.0 or Valkey 7.2 or newer", true},
	}
	var starts sync.WaitGroup // most take 5 s, so they are made together
	for _, test := range tests {
		starts.Go(func() {
			began := time.Now()
			p := startProcess(t, []string{"REDIS_URL=" + test.url, "ADDR=127.0.0.1:0"})
			<-p.done
			took := time.Since(began)
			if code := p.cmd.ProcessState.ExitCode(); code != 1 {
				t.Errorf("%s: exit code %d, want 1", test.name, code)
			}
			if test.lasts && took > redisStartTimeout-time.Second || !test.lasts && took < redisStartTimeout {
				t.Errorf("%s: it took %s", test.name, took)
			}
			log := p.log.String()
			matches := regexp.MustCompile(test.want).MatchString(log)
			if !strings.HasPrefix(log, "[ERROR] Redis connection failed: ") || strings.Count(log, "\n") != 1 || !matches {
				t.Errorf("%s: log is %q, want one line with %q", test.name, log, test.want)
			}
			if strings.Contains(log, "hunter2") {
				t.Errorf("%s: the password is in the log: %q", test.name, log)
			}
		})
	}
	starts.Wait()
}

// Without ADMIN_TOKEN each run has a random one, logged once; with one, it is never logged.
func TestAdminTokenAtStart(t *testing.T) {
	t.Parallel()
	const line = "[INFO] ADMIN_TOKEN is not set; this run's admin token is "
	seen := make(map[string]bool)
	for range 2 {
		s := newService(t, "ADMIN_TOKEN=")
		token := s.log.Wait(t, line, nil)
		if len(token) < 20 || seen[token] {
			t.Fatalf("token %q", token)
		}
		seen[token] = true
		s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 200, "")
		s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 401, "")
		if s.log.Count(token) != 1 {
			t.Error("the token is logged more than once")
		}
	}
	s := newService(t)
	s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 200, "")
	if s.log.Count(testAdminToken) != 0 || s.log.Count(line) != 0 {
		t.Errorf("the admin token is in the log:\n%s", s.log)
	}
}

// If it is told to stop before Redis has replied, the process ends in good order, without waiting for Redis.
func TestStopWhileConnecting(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{
		"redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster",
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			silent, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			url := scheme + "://" + silent.Addr().String()
			if strings.HasSuffix(scheme, "sentinel") {
				url += "/main"
			}
			p := startProcess(t, []string{"REDIS_URL=" + url})
			if _, err := silent.Accept(); err != nil {
				t.Fatal(err)
			}
			p.wantPromptStop(t)
		})
	}
}

// Nor does it wait for Redis if that does not reply to what writes the example tenant.
func TestStopWhileSeeding(t *testing.T) {
	t.Parallel()
	var ready atomic.Bool
	seeding := make(chan struct{})
	begin := sync.OnceFunc(func() { close(seeding) })
	proxy := redistest.NewProxy(t, redistest.New(t), func(reply []byte) redistest.Fate {
		if ready.Load() {
			begin()
			return redistest.Swallow
		}
		ready.Store(bytes.HasSuffix(reply, []byte("$2\r\nOK\r\n"))) // of ready.lua, the last of the checks
		return redistest.Pass
	})
	p := startProcess(t, []string{"REDIS_URL=" + proxy.URL, "ADDR=127.0.0.1:0"})
	<-seeding
	p.wantPromptStop(t)
}

// wantPromptStop sends SIGTERM to a process that is starting, and checks that it ends soon, in good order and without a
// line in the log.
func (p *process) wantPromptStop(t *testing.T) {
	t.Helper()
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.exitCode(t); code != 0 || p.log.String() != "" {
		t.Errorf("exit code %d, log %q", code, p.log)
	}
	if took := time.Since(began); took > busy {
		t.Errorf("it took %s", took)
	}
}

// A start waits for a Redis that does not listen yet, for one that loads its data, and for slow Sentinels.
func TestStartWaits(t *testing.T) {
	t.Parallel()
	t.Run("for a server", func(t *testing.T) {
		t.Parallel()
		r := redistest.New(t)
		r.Kill()
		started := make(chan error, 1)
		time.AfterFunc(time.Second, func() { started <- r.Start() })
		newService(t, "REDIS_URL="+r.URL()).login(t, "abc")
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("for its data", func(t *testing.T) {
		t.Parallel()
		r := redistest.New(t, "--key-load-delay", "400")
		r.Do(t, "EVAL", "for i = 1, 8000 do redis.call('SET', 'filler' .. i, 'x') end", 0)
		r.Kill()
		started := make(chan error, 1)
		go func() { started <- r.Start() }()
		waittest.Eventually(t, 10*time.Second, func() error {
			c, err := r.Dial()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err = c.Do("PING"); err == nil || !strings.HasPrefix(err.Error(), "LOADING") {
				return fmt.Errorf("Redis does not load: %v", err)
			}
			return nil
		})
		newService(t, "REDIS_URL="+r.URL()).login(t, "abc")
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("for Sentinels", func(t *testing.T) {
		t.Parallel()
		r := redistest.New(t)
		var slow []*redistest.Sentinel
		for range 3 {
			sentinel := &redistest.Server{Network: "tcp", Address: redistest.NewSentinel(t, r.Port).Address}
			slow = append(slow, &redistest.Sentinel{Address: redistest.NewProxy(t, sentinel, func([]byte) redistest.Fate {
				time.Sleep(700 * time.Millisecond)
				return redistest.Pass
			}).Address})
		}
		newService(t, "REDIS_URL="+redistest.SentinelURL(slow...)).login(t, "abc")
	})
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=" + s.address()})
	if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), "[ERROR] listen tcp") {
		t.Errorf("exit code %d, log\n%s", code, p.log)
	}
}

func TestHealthFlag(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, port, _ := net.SplitHostPort(s.address())
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

// A request that does not end keeps the service only until the drain timeout.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	var log telemetrytest.Log
	set, err := parse(env{"REDIS_URL": testRedis.URL(), "ADMIN_TOKEN": testAdminToken}, "-addr=127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if set.drainTimeout != 10*time.Second || set.idleTimeout != 2*time.Minute || set.shutdownDelay != 0 {
		t.Errorf("the defaults are %s, %s and %s", set.drainTimeout, set.idleTimeout, set.shutdownDelay)
	}
	set.drainTimeout = 300 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- serve(ctx, set, log.Logger()) }()
	s := &service{url: "http://" + log.Wait(t, "[INFO] Listening on ", nil)}
	s.begin(t, "PUT", "/abc/admin/config", 12, bearer(testAdminToken))
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if log.Count("[WARN] Requests still ran after 300ms and were cut off\n") != 1 {
		t.Errorf("log:\n%s", &log)
	}
}

// SIGTERM or SIGINT finishes what runs: each charge that was taken has its response, and the process ends with 0.
func TestShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 33
	if brief() {
		rounds = 3
	}
	for round := range rounds {
		sig := syscall.SIGTERM
		if round%11 == 0 {
			sig = syscall.SIGINT
		}
		t.Run(fmt.Sprint(round, " ", sig), func(t *testing.T) {
			t.Parallel()
			id := newTenant(t, 1_000_000)
			p := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0"})
			s := p.service(t)
			key := s.login(t, id)
			var signalled atomic.Int64
			charges := load{
				services: []*service{s}, clients: 16, statuses: []int{200},
				request: func(int, int) request { return consumeRequest(id, key, 1) },
				until: func(o outcome) bool {
					// The service is gone, it had not yet accepted the connection, or a busy machine let the grace pass
					// in which it waits for idle connections.
					at := signalled.Load()
					late := at > 0 && o.ended.UnixNano() > at+int64(keepAliveGrace*3/4)
					reset := at > 0 && errors.Is(o.err, syscall.ECONNRESET) && errors.Is(o.err, errNewConn)
					return errors.Is(o.err, syscall.ECONNREFUSED) || reset ||
						late && o.err != nil && strings.Contains(o.err.Error(), "server closed idle connection")
				},
			}.start(t)
			charges.more(t, 50)
			signalled.Store(time.Now().UnixNano())
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d, want 0:\n%s", code, p.log)
			}
			if got, spent := len(charges.wait().of("POST", 200)), 1_000_000-tokensLeft(t, key); got != spent {
				t.Errorf("%d charges have their response, %d were taken", got, spent)
			}
			if p.log.Count("[WARN]")+p.log.Count("[ERROR]") > 0 {
				t.Errorf("log:\n%s", p.log)
			}
		})
	}
}

// A request that runs when the signal comes is finished, while /readyz is 503 and no new connection is taken.
func TestDrain(t *testing.T) {
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	ready := s.dial(t)
	fmt.Fprint(ready, "GET /readyz HTTP/1.1\r\nHost: x\r\nContent-") // the rest of its header comes later
	// Connections are accepted in turn, so that the other is there, too, once this one's request runs.
	running := s.begin(t, "POST", "/abc/tokens/consume", 12, bearer(key))
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	s.log.Wait(t, "[INFO] Stopping", nil)
	waittest.Eventually(t, 5*time.Second, func() error {
		c, err := net.Dial("tcp", s.address())
		if err != nil {
			return nil
		}
		c.Close()
		return errors.New("a new connection is taken")
	})
	fmt.Fprint(ready, "Length: 0\r\n\r\n")
	if got := readAll(ready); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "\r\nConnection: close\r\n") {
		t.Errorf("the response of /readyz is %q", got)
	}
	fmt.Fprint(running, `{"tokens":7}`)
	if got := readAll(running); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.HasSuffix(got, "{\"tokensLeft\":93}\n") {
		t.Errorf("the response of the request that ran is %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// Requests that a client sends without waiting for the responses are served in turn.
func TestPipelinedRequests(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	one := fmt.Sprintf("POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 12\r\n\r\n{\"tokens\":1}", id, bearer(key))
	last := strings.Replace(one, "Host: x", "Host: x\r\nConnection: close", 1)
	c := s.dial(t)
	fmt.Fprint(c, strings.Repeat(one, 49)+last)
	got := readAll(c)
	for i := range 50 {
		want := fmt.Sprintf(`{"tokensLeft":%d}`, 999-i)
		_, after, ok := strings.Cut(got, want)
		if !ok {
			t.Fatalf("%s is missing in\n%s", want, got)
		}
		got = after
	}
}

// 500 slow clients do not keep honest ones out, and are cut off.
func TestSlowClients(t *testing.T) {
	long(t)
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	head := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(key) + "\r\n"
	kinds := []struct{ name, head, drip string }{
		{"header", head, "X-Long: " + strings.Repeat("x", 1000)},
		{"body", head + "Content-Length: 1000\r\n\r\n", strings.Repeat(" ", 1000)},
	}
	end := in(30 * time.Second)
	var slow sync.WaitGroup
	for i := range 500 {
		kind := kinds[i%2]
		c := s.dial(t)
		_ = c.SetDeadline(end.Add(30 * time.Second))
		slow.Go(func() {
			fmt.Fprint(c, kind.head)
			for i := 0; time.Now().Before(end); i++ {
				if _, err := fmt.Fprint(c, kind.drip[i:i+1]); err != nil {
					return // it was cut off
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("a client with a slow %s is not cut off", kind.name)
		})
	}
	for range 100 {
		s.consume(t, id, key, "").want(t, 200, "")
	}
	slow.Wait()
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":899}`)
}

// No more connections than that are served at a time; one more is when another ends.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	s := newService(t, "MAX_CONNECTIONS=3")
	for range 3 {
		// Connections that are served: their requests run, and wait for the rest of their bodies, for a second at most.
		var taken []*net.TCPConn
		for range 3 {
			taken = append(taken, s.begin(t, "PUT", "/abc/admin/config", 13, bearer(testAdminToken)))
		}
		waiting := s.dial(t)
		fmt.Fprint(waiting, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		_ = waiting.SetReadDeadline(in(100 * time.Millisecond))
		if n, err := waiting.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("beside 3 connections another got %d bytes, %v", n, err)
		}
		taken[0].Close()
		_ = waiting.SetReadDeadline(in(30 * time.Second))
		if got := readAll(waiting); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("when one has ended, the next got %q", got)
		}
		taken[1].Close()
		taken[2].Close()
	}
}

// Clients that keep their connections without using them do not keep others out.
func TestIdleConnections(t *testing.T) {
	s := newService(t, "MAX_CONNECTIONS=20")
	kept := 0
	for range 100 {
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !response.Close {
			kept++
		}
	}
	if kept < 14 || kept > 15 { // the server may have taken a place for the next one already
		t.Errorf("%d connections are kept of 20", kept)
	}
}

// With -seed=false the tenant abc does not come back, whatever the environment says.
func TestSeedOff(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "SEED=false")
	s.do(t, "POST", "/abc/auth/anonymous", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	if keys := r.Keys(t, "*"); len(keys) != 0 {
		t.Errorf("there are %q", keys)
	}
	s.stop()
	newService(t, "REDIS_URL="+r.URL(), "SEED=true").stop()
	if keys := r.Keys(t, "tenant:*"); len(keys) != 1 {
		t.Errorf("there are %q", keys)
	}
	for setting, seeds := range map[string]bool{"SEED=false": false, "SEED=": true} {
		r.Do(t, "FLUSHALL")
		p := startProcess(t, []string{"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0", setting})
		p.address(t)
		p.kill()
		if n := r.Int(t, "EXISTS", "tenant:abc:config"); (n == 1) != seeds {
			t.Errorf("%s: there are %d configs", setting, n)
		}
	}
	r.Do(t, "FLUSHALL")
	p := startProcess(t, []string{"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0"}, "-seed=false")
	p.address(t)
	if keys := r.Keys(t, "*"); len(keys) != 0 {
		t.Errorf("-seed=false: there are %q", keys)
	}
}

// peakMemory returns the most memory that a process had resident, in bytes.
func peakMemory(t *testing.T, pid int) (bytes int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Sscan(after, &bytes)
	return bytes << 10
}

// 2,500 connections that send a header of as many fields as fit, and hold back the body, neither stall the service nor
// fill the memory, with the settings that it is shipped with.
func TestHeaderFlood(t *testing.T) {
	long(t)
	id := newTenant(t, 10)
	binary := buildBinary(t, "")
	// Many short fields take far more memory than they have bytes: equal ones, and those whose names differ.
	equal := strings.Repeat("a:\r\n", 2800)
	var names strings.Builder
	for i := 0; names.Len() < 11_000; i++ {
		fmt.Fprintf(&names, "%x:\r\n", i)
	}
	for _, test := range []struct{ name, fields string }{{"equal fields", equal}, {"names that differ", names.String()}} {
		t.Run(test.name, func(t *testing.T) {
			env := []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "GOGC=400", "GOMEMLIMIT=256MiB"}
			p := startCommand(t, exec.Command(binary), env)
			s := p.service(t)
			s.do(t, "GET", "/healthz", "").want(t, 200, "")
			const clients = 2500
			done := s.flood(t, clients, "POST /"+id+"/tokens/consume HTTP/1.1\r\nHost: x\r\n"+bearer(someKey)+"\r\n"+
				test.fields+"Content-Length: 4096\r\n\r\n")
			refused := -1
			var slowest time.Duration
			for refused < 0 {
				select {
				case refused = <-done:
				case <-time.After(10 * time.Millisecond):
				}
				began := time.Now()
				s.do(t, "GET", "/healthz", "").want(t, 200, "")
				slowest = max(slowest, time.Since(began))
			}
			if refused != clients {
				t.Errorf("%d of %d were refused", refused, clients)
			}
			if slowest > 2*time.Second { // the aim is 1 s
				t.Errorf("/healthz took %s", slowest)
			}
			peak := peakMemory(t, p.cmd.Process.Pid)
			t.Logf("/healthz took at most %s, %d MB were resident", slowest, peak>>20)
			if peak > 300<<20 { // the aim is 200 MB
				t.Errorf("%d MB were resident", peak>>20)
			}
		})
	}
}

// flood sends text from many clients at the same time and returns a channel on which comes, when all have ended, how many
// have the response 431.
func (s *service) flood(t *testing.T, clients int, text string) <-chan int {
	var flood sync.WaitGroup
	var refused atomic.Int64
	gate := make(chan struct{}, 100) // that dial at a time: the system's queue is not what is tested
	for range clients {
		flood.Go(func() {
			gate <- struct{}{}
			c, err := net.Dial("tcp", s.address())
			<-gate
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(in(30 * time.Second))
			fmt.Fprint(c, text)
			if got := readAll(c); strings.HasPrefix(got, "HTTP/1.1 431 ") {
				refused.Add(1)
			}
		})
	}
	done := make(chan int, 1)
	go func() {
		flood.Wait()
		done <- int(refused.Load())
	}()
	return done
}

// Clients that send half a request, and come back when they are cut off, do not take all connections: -health responds.
func TestHalfRequests(t *testing.T) {
	long(t)
	t.Parallel()
	halves := []string{
		"GET /healthz HTTP/1.1\r\nHo",
		"POST /abc/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(someKey) + "\r\nContent-Length: 9\r\n\r\n{",
	}
	const sockets = 256
	s := newService(t, fmt.Sprint("MAX_CONNECTIONS=", sockets))
	var cuts atomic.Int64
	stop := s.crowd(t, sockets, func(i int, c net.Conn) {
		if i%2 == 0 { // on a connection that has served a request
			fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
				return
			}
		}
		fmt.Fprint(c, halves[i/2%2])
		readAll(c)
		cuts.Add(1)
	})
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := cuts.Load(); n < sockets {
			return fmt.Errorf("%d connections were cut", n)
		}
		return nil
	})
	for range 3 {
		if p := startProcess(t, []string{"ADDR=" + s.address()}, "-health"); p.exitCode(t) != 0 {
			t.Errorf("-health: exit code %d, %s", p.exitCode(t), p.log)
		}
	}
	stop()
}

// crowd lets n clients use one connection after the other, until stop is called.
func (s *service) crowd(t *testing.T, n int, use func(client int, c net.Conn)) (stop func()) {
	t.Helper()
	var stopped atomic.Bool
	var clients sync.WaitGroup
	for i := range n {
		clients.Go(func() {
			for !stopped.Load() {
				c, err := net.Dial("tcp", s.address())
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(in(10 * time.Second))
				use(i, c)
				c.Close()
			}
		})
	}
	return func() {
		stopped.Store(true)
		clients.Wait()
	}
}

// TestCrowdedConnections has clients take all connections with half a header each, again and again. A connection between
// two requests is closed then, but the body of an admin may be slow.
func TestCrowdedConnections(t *testing.T) {
	t.Parallel()
	s := newService(t, "MAX_CONNECTIONS=8")
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	idle := s.dial(t)
	fmt.Fprint(idle, request)
	idleReader := bufio.NewReader(idle)
	if response, err := http.ReadResponse(idleReader, nil); err != nil {
		t.Fatal(err)
	} else if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	body := s.begin(t, "PUT", "/abc/admin/config", 2, bearer(testAdminToken))
	stop := s.crowd(t, 16, func(_ int, c net.Conn) {
		fmt.Fprint(c, request[:10])
		readAll(c)
	})
	if _, err := idleReader.ReadByte(); err != io.EOF {
		t.Errorf("a connection between two requests: got %v, want %v", err, io.EOF)
	}
	time.Sleep(2 * time.Second)
	fmt.Fprint(body, "{}")
	if got := readAll(body); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("an admin's request whose body was slow got %q", got)
	}
	stop()
}

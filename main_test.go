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
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

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

// Requests that a client sends without waiting for the answers are answered in turn, also while one waits for Redis.
func TestPipelinedRequests(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	one := fmt.Sprintf("POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 12\r\n\r\n{\"tokens\":1}", id, bearer(key))
	last := strings.Replace(one, "Host: x", "Host: x\r\nConnection: close", 1)
	c := s.dial(t)
	fmt.Fprint(c, strings.Repeat(one, 49)+last)
	answers := readAll(c)
	for i := range 50 {
		if want := fmt.Sprintf(`{"tokensLeft":%d}`, 999-i); !strings.Contains(answers, want) {
			t.Fatalf("%s is missing in\n%s", want, answers)
		}
	}
}

// 500 slow clients do not keep an honest one from an answer, and are cut off within 10 s.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	end := time.Now().Add(11 * time.Second)
	var slow sync.WaitGroup
	for i := range 500 {
		text := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(key) + "\r\nX-Long: " + strings.Repeat("x", 100)
		if i%2 == 0 { // a slow body, after a header that is there at once
			text = strings.Replace(text, "X-Long", "Content-Length: 1000\r\n\r\n", 1)
		}
		head := strings.Index(text, "\r\n\r\n") + 4
		c := s.dial(t)
		slow.Go(func() {
			start := time.Now()
			if head > 4 {
				fmt.Fprint(c, text[:head])
				text = text[head:]
			}
			for at := 0; time.Now().Before(end); at = (at + 1) % len(text) {
				if _, err := fmt.Fprint(c, text[at:at+1]); err != nil {
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("a slow client was cut off after %s", took)
					}
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Error("a slow client is still there after 11 s")
		})
	}
	var took []time.Duration
	for range 100 {
		start := time.Now()
		s.consume(t, id, key, "").want(t, 200, "")
		took = append(took, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	if p90 := took[90]; p90 > 50*time.Millisecond { // what else the machine does may hold up a few
		t.Errorf("beside slow clients 10 of 100 answers took %s and more", p90)
	}
	slow.Wait()
}

// So many connections are served at a time; one more is when another ends.
func TestMaxConnections(t *testing.T) {
	s := newService(t, "MAX_CONNECTIONS=3")
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	var taken []net.Conn
	for range 3 {
		c := s.dial(t)
		fmt.Fprint(c, request[:10])
		taken = append(taken, c)
	}
	for _, other := range taken[:2] {
		waiting := s.dial(t)
		fmt.Fprint(waiting, request)
		_ = waiting.SetReadDeadline(in(300 * time.Millisecond))
		if n, err := waiting.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("beside 3 connections another got %d bytes, %v", n, err)
		}
		other.Close()
		_ = waiting.SetReadDeadline(in(5 * time.Second))
		if got := readAll(waiting); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("when one has ended, the next got %q", got)
		}
		c := s.dial(t)
		fmt.Fprint(c, request[:10])
		time.Sleep(50 * time.Millisecond)
	}
}

// Clients that keep their connections without a use for them do not keep others out.
func TestIdleConnections(t *testing.T) {
	s := newService(t, "MAX_CONNECTIONS=20")
	kept := 0
	for range 100 {
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !answer.Close {
			kept++
		}
	}
	if kept < 14 || kept > 15 { // the server may have taken a place for the next one already
		t.Errorf("%d connections are kept of 20", kept)
	}
}

// A listener whose Accept fails, as where there are too many open files, loses no place by that.
func TestAcceptFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	lazy := newLazyListener(l, 2)
	for range 5 {
		if _, err := lazy.Accept(); err == nil {
			t.Fatal("a closed listener accepts")
		}
	}
	if n := len(lazy.slots); n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

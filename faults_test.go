package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// keyedLoad charges key one token at a time from many clients, each charge under an Idempotency-Key of its own and
// retried until it is answered with 200, until stop is called, which returns how many charges that were.
func (s *service) keyedLoad(t *testing.T, tenant, key string, clients int, longest time.Duration) (stop func() int) {
	t.Helper()
	var stopped atomic.Bool
	var charges atomic.Int64
	var wg sync.WaitGroup
	for g := range clients {
		wg.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				for end := in(20 * time.Second); ; {
					start := time.Now()
					answer, err := s.send("POST", "/"+tenant+"/tokens/consume", "", bearer(key), fmt.Sprintf("%s%d-%d", retryKey, g, i))
					if took := time.Since(start); err != nil || answer.status != 200 && answer.status != 503 || took > longest || start.After(end) {
						t.Errorf("%d %s after %s, %v", answer.status, answer.body, took, err)
						return
					}
					if answer.status == 200 {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				charges.Add(1)
			}
		})
	}
	return func() int {
		stopped.Store(true)
		wg.Wait()
		return int(charges.Load())
	}
}

// Killed and started again 20 times under load: not one acknowledged charge is lost or taken twice, and the service is
// back as soon as Redis is, without an error from a connection of before. Redis answers only what is in its file: with
// everysec it holds writes back while a sync runs, and a kill just then would lose them.
func TestRedisKilledUnderLoad(t *testing.T) {
	r := newRedis(t, "--appendfsync", "always")
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
	key := s.login(t, id)
	stop := s.keyedLoad(t, id, key, 16, time.Second)
	var stopped atomic.Bool
	var issued []string // keys whose making was acknowledged
	var logins sync.WaitGroup
	logins.Go(func() {
		for ; !stopped.Load(); time.Sleep(time.Millisecond) {
			if answer, err := s.send("POST", "/"+id+"/auth/anonymous", ""); err == nil && answer.status == 200 {
				issued = append(issued, answer.field(t, "apiKey").(string))
			}
		}
	})
	for range 20 {
		time.Sleep(60 * time.Millisecond)
		r.kill()
		for range 5 {
			start := time.Now()
			answer := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
			answer.want(t, 503, `{"error":"Service unavailable"}`)
			if took := time.Since(start); took > 500*time.Millisecond {
				t.Errorf("with Redis killed an answer took %s", took)
			}
		}
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
		s.do(t, "GET", "/readyz", "").want(t, 503, "")
		if err := r.start(); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); ; time.Sleep(time.Millisecond) {
			if answer := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)); answer.status == 200 {
				break
			}
			if time.Since(start) > time.Second {
				t.Fatal("1 s after Redis is back the service is not")
			}
		}
		for range 20 {
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
			s.do(t, "GET", "/readyz", "").want(t, 200, "")
		}
	}
	stopped.Store(true)
	logins.Wait()
	charges := stop()
	for _, key := range issued {
		if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 1_000_000 {
			t.Errorf("a new key has %d tokens", left)
		}
	}
	all := r.do(t, "KEYS", "apiKey:*").([]any)
	for _, key := range all {
		if fields, ttl := r.int(t, "HLEN", key), r.int(t, "PTTL", key); fields != 4 || ttl <= 0 {
			t.Errorf("a key has %d fields and expires in %d ms", fields, ttl)
		}
	}
	if len(issued) == 0 || len(all) < len(issued) {
		t.Errorf("%d keys were made, there are %d", len(issued), len(all))
	}
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); 1_000_000-left != charges || charges == 0 {
		t.Errorf("%d charges were acknowledged, %d tokens taken", charges, 1_000_000-left)
	}
}

// Frozen for 5 s under load: each request is answered within 1 s, nothing piles up, the service is back at once when
// Redis goes on, and what that executed late is charged once.
func TestRedisFrozenUnderLoad(t *testing.T) {
	const clients = 64
	r := newRedis(t)
	p := startProcess(t, []string{"REDIS_URL=" + r.url(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0", "ADMIN_TOKEN=" + testAdminToken})
	s := &service{url: "http://" + p.address(t)}
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
	key := s.login(t, id)
	stop := s.keyedLoad(t, id, key, clients, 1200*time.Millisecond) // 1 s, and what a busy machine adds
	time.Sleep(300 * time.Millisecond)
	r.signal(t, syscall.SIGSTOP)
	time.Sleep(4500 * time.Millisecond)
	metrics := s.admin(t, "GET", "/metrics", "")
	if metrics.status != 200 {
		t.Errorf("metrics: %+v", metrics)
	}
	var goroutines int
	_, rest, _ := strings.Cut(metrics.body, "\ngo_goroutines ")
	fmt.Sscan(rest, &goroutines)
	if goroutines == 0 || goroutines > 4*clients { // two for each connection, of which the clients have some to spare
		t.Errorf("there are %d goroutines for %d clients", goroutines, clients)
	}
	var heap float64
	_, rest, _ = strings.Cut(metrics.body, "\ngo_memstats_heap_alloc_bytes ")
	fmt.Sscan(rest, &heap)
	if heap == 0 || heap > 32<<20 {
		t.Errorf("%g bytes are allocated for %d clients", heap, clients)
	}
	if !strings.Contains(metrics.body, "\nredis_up 0\n") {
		t.Error("Redis is up though it is frozen")
	}
	r.signal(t, syscall.SIGCONT)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if answer := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)); answer.status == 200 {
			break
		}
		if time.Since(start) > 500*time.Millisecond {
			t.Error("500 ms after Redis goes on the service does not")
			break
		}
	}
	time.Sleep(300 * time.Millisecond)
	charges := stop()
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); 1_000_000-left != charges || charges == 0 {
		t.Errorf("%d charges were acknowledged, %d tokens taken", charges, 1_000_000-left)
	}
}

// Connections that Redis closes and scripts that it forgets, again and again under load, cost no charge and take none twice.
func TestRedisKillsConnections(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
	key := s.login(t, id)
	stop := s.keyedLoad(t, id, key, 16, time.Second)
	for round := range 40 {
		time.Sleep(20 * time.Millisecond)
		if round%2 == 0 {
			r.do(t, "CLIENT", "KILL", "USER", "tollgate")
		}
		r.do(t, "SCRIPT", "FLUSH")
	}
	charges := stop()
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); 1_000_000-left != charges || charges < 100 {
		t.Errorf("%d charges were acknowledged, %d tokens taken", charges, 1_000_000-left)
	}
	r.do(t, "SCRIPT", "FLUSH")
	for range 20 { // nothing of that is left, and what Redis has forgotten is no fault
		s.consume(t, id, key, "").want(t, 200, "")
		s.login(t, id)
	}
	time.Sleep(faultOver)
	s.login(t, id)
	if log := s.log.String(); strings.Count(log, "[ERROR]") != strings.Count(log, "[INFO] Redis is available again\n") {
		t.Errorf("log:\n%s", log)
	}
}

// What Redis may answer instead of serving is a 503 while it lasts, and one line of the log; then all is as before.
func TestRedisRefuses(t *testing.T) {
	tests := map[string]struct {
		setUp      string
		args       []string
		begin, end func(t *testing.T, r *redisServer)
		chargesToo bool // are refused, and so the service is not ready
		code       string
	}{
		"MISCONF, a snapshot failed": {
			args: []string{"--enable-protected-configs", "yes"},
			begin: func(t *testing.T, r *redisServer) {
				r.do(t, "CONFIG", "SET", "save", "3600 1")
				r.do(t, "CONFIG", "SET", "dir", "/proc")
				r.do(t, "BGSAVE")
				for deadline := in(5 * time.Second); !strings.Contains(r.string(t, "INFO", "persistence"), "rdb_last_bgsave_status:err"); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("saving into /proc does not fail")
					}
				}
			},
			end:        func(t *testing.T, r *redisServer) { r.do(t, "CONFIG", "SET", "save", "") },
			chargesToo: true, code: "MISCONF",
		},
		"MISCONF, the disk of the append-only file is full": {
			setUp: `trap "" XFSZ; ulimit -f 2048`, // blocks; a write beyond is refused, instead of ending the process
			begin: func(t *testing.T, r *redisServer) {
				c, err := r.dial()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for range 100 {
					if _, err = c.Do("SET", "filler", strings.Repeat("x", 100_000)); err != nil {
						break
					}
				}
				if err == nil || !strings.Contains(err.Error(), "AOF") {
					t.Fatalf("writing into a file that is full: %v", err)
				}
			},
			end: func(t *testing.T, r *redisServer) { // a new file has room
				r.do(t, "BGREWRITEAOF")
				for deadline := in(5 * time.Second); !strings.Contains(r.string(t, "INFO", "persistence"), "aof_last_write_status:ok"); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("the new file is not written")
					}
				}
			},
			chargesToo: true, code: "MISCONF",
		},
		"NOPERM": {
			begin:      func(t *testing.T, r *redisServer) { r.do(t, "ACL", "SETUSER", "tollgate", "-evalsha", "-eval") },
			end:        func(t *testing.T, r *redisServer) { r.do(t, "ACL", "SETUSER", "tollgate", "+evalsha", "+eval") },
			chargesToo: true, code: "NOPERM",
		},
		"WRONGPASS on a new connection": {
			begin: func(t *testing.T, r *redisServer) {
				r.do(t, "ACL", "SETUSER", "tollgate", "resetpass", ">other")
				r.do(t, "CLIENT", "KILL", "USER", "tollgate")
			},
			end:        func(t *testing.T, r *redisServer) { r.do(t, "ACL", "SETUSER", "tollgate", ">"+testRedisPassword) },
			chargesToo: true, // what ended the connections is what the log says
		},
		"READONLY": {
			begin:      func(t *testing.T, r *redisServer) { r.do(t, "REPLICAOF", "127.0.0.1", 1) },
			end:        func(t *testing.T, r *redisServer) { r.do(t, "REPLICAOF", "NO", "ONE") },
			chargesToo: true, code: "READONLY",
		},
		"OOM": {
			begin: func(t *testing.T, r *redisServer) { r.do(t, "CONFIG", "SET", "maxmemory", 1) },
			end:   func(t *testing.T, r *redisServer) { r.do(t, "CONFIG", "SET", "maxmemory", 0) },
			code:  "OOM",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRedisAfter(t, test.setUp, test.args...)
			s := newService(t, "REDIS_URL="+r.url())
			key := s.login(t, "abc")
			for range 5 { // the group's rate allows 10
				s.consume(t, "abc", key, "").want(t, 200, "")
			}
			test.begin(t, r)
			for range 5 {
				answer := s.do(t, "POST", "/abc/auth/anonymous", "")
				answer.want(t, 503, `{"error":"Service unavailable"}`)
				answer.wantHeader(t, "Retry-After", "1")
				if test.chargesToo {
					s.consume(t, "abc", key, "").want(t, 503, `{"error":"Service unavailable"}`)
					s.do(t, "GET", "/readyz", "").want(t, 503, `{"error":"Service unavailable"}`)
				} else {
					s.do(t, "GET", "/abc/auth/verify", "", bearer(key)).want(t, 200, "")
					s.do(t, "GET", "/readyz", "").want(t, 200, "")
				}
				s.do(t, "GET", "/healthz", "").want(t, 200, "")
			}
			test.end(t, r)
			s.wantRecovery(t)
			s.wantOneFault(t)
			if log := s.log.String(); !strings.Contains(log, test.code) {
				t.Errorf("the log does not say %s:\n%s", test.code, log)
			}
			s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 200, "")
			r.kill() // what Redis answers is in its file, too
			if err := r.start(); err != nil {
				t.Fatal(err)
			}
			if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 95 {
				t.Errorf("%d tokens are left, want 95", left)
			}
		})
	}
}

// Whatever command Redis denies within a script, no charge is taken that its retry would not find, and no key is made that
// would never expire.
func TestDeniedCommands(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url(), "LOGIN_LIMIT=600")
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":100,"rate_limit":4,"rate_limit_window":60},"other":{}}}`)
	for _, command := range []string{"hincrby", "hincrby del", "set", "rpush", "pexpire", "hmget", "lindex", "time"} {
		key := s.login(t, id)
		before := len(s.log.String())
		keys := len(r.do(t, "KEYS", "apiKey:*").([]any))
		all := func(sign string) {
			args := []any{"SETUSER", "tollgate"}
			for _, name := range strings.Fields(command) {
				args = append(args, sign+name)
			}
			r.do(t, "ACL", args...)
		}
		all("-")
		for range 3 {
			s.consume(t, id, key, `{"tokens":10}`, retryKey+"k").want(t, 503, `{"error":"Service unavailable"}`)
			s.do(t, "GET", "/readyz", "").want(t, 503, `{"error":"Service unavailable"}`)
		}
		if command == "pexpire" {
			r.do(t, "DEL", "login:127.0.0.1")
			s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, "")
			if n := r.int(t, "EXISTS", "login:127.0.0.1"); n != 0 {
				t.Error("a log of logins would never expire")
			}
		}
		all("+")
		if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 100 {
			t.Errorf("%s is denied: %d tokens are left", command, left)
		}
		if n := len(r.do(t, "KEYS", "apiKey:*").([]any)); n != keys {
			t.Errorf("%s is denied: %d keys were made", command, n-keys)
		}
		answer := s.consume(t, id, key, `{"tokens":10}`, retryKey+"k")
		answer.want(t, 200, `{"tokensLeft":90}`)
		answer.wantHeader(t, "Idempotent-Replayed", "")
		time.Sleep(faultOver)
		s.do(t, "GET", "/readyz", "").want(t, 200, "")
		s.login(t, id)
		s.consume(t, id, key, "").want(t, 200, "")
		if log := s.log.String()[before:]; strings.Count(log, "[ERROR]") != 1 || strings.Count(log, "available again") != 1 {
			t.Errorf("%s was denied:\n%s", command, log)
		}
	}
	key := s.login(t, id)
	r.do(t, "ACL", "SETUSER", "tollgate", "-pexpiretime") // a change that is answered 503 may be repeated
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1,"group":"other"}`).want(t, 503, "")
	r.do(t, "ACL", "SETUSER", "tollgate", "+pexpiretime")
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 100 {
		t.Errorf("%d tokens are left", left)
	}
	r.do(t, "ACL", "SETUSER", "tollgate", "-hincrby")
	p := startProcess(t, []string{"REDIS_URL=" + r.url(), "ADDR=127.0.0.1:0"})
	if code := p.exitCode(t); code != 1 || !strings.Contains(p.log.String(), "[ERROR] Redis connection failed: NOPERM the user may not run HINCRBY\n") {
		t.Errorf("exit code %d, %s", code, p.log)
	}
}

// After FLUSHALL keys are gone and stay so, and tenants too, until their configs are back.
func TestFlushAll(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	r.do(t, "FLUSHALL")
	s.wantConfig(t, "abc", "")
	s.consume(t, "abc", key, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	r.do(t, "SET", "tenant:abc:config", string(seedConfig))
	for deadline := in(time.Second); ; time.Sleep(time.Millisecond) {
		if answer := s.consume(t, "abc", key, "", retryKey+"k"); answer.status == 401 {
			break
		} else if answer.status != 400 || time.Now().After(deadline) {
			t.Fatalf("got %d %s", answer.status, answer.body)
		}
	}
	if keys := r.do(t, "KEYS", "*apiKey*").([]any); len(keys) != 0 {
		t.Errorf("there are %q", keys)
	}
}

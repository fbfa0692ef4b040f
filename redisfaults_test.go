package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// keyedLoad charges key one token at a time, each charge under an Idempotency-Key of its own and retried until its
// response is 200.
func (s *service) keyedLoad(tenant, key string, clients int, within time.Duration) load {
	return load{
		services: []*service{s}, clients: clients, statuses: []int{200}, retry: true, within: within,
		request: func(client, i int) request {
			return consumeRequest(tenant, key, 1, fmt.Sprintf("%s%d-%d", retryKey, client, i))
		},
	}
}

// million is a config whose anonymous users have more tokens than any test spends.
const million = `{"user_groups":{"anonymous":{"tokens":1000000}}}`

// wantSpent checks that of a million tokens as many are gone as charges are acknowledged.
func wantSpent(t *testing.T, r *redistest.Server, key string, all tally) {
	t.Helper()
	charges, spent := len(all.of("POST", 200)), 1_000_000-tokensLeftIn(t, r, key)
	if spent != charges || charges < 100 {
		t.Errorf("%d charges were acknowledged, %d tokens taken", charges, spent)
	}
}

// Killed and started again 20 times under load: not one acknowledged charge is lost or taken twice, and the service is
// back as soon as Redis is, without an error from a connection from before.
func TestRedisKilledUnderLoad(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, million)
	key := s.login(t, id)
	charges := s.keyedLoad(id, key, 16, 2*time.Second+busy).start(t)
	logins := load{
		services: []*service{s}, clients: 1, statuses: []int{200, 503},
		request: func(int, int) request {
			time.Sleep(time.Millisecond)
			return request{method: "POST", path: "/" + id + "/auth/anonymous"}
		},
	}.start(t)
	show := func() reply { return s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)) }
	for range 20 {
		charges.more(t, 50)
		r.Kill()
		for range 5 {
			start := time.Now()
			show().want(t, 503, `{"error":"Service unavailable"}`)
			if took := time.Since(start); took > time.Second+busy {
				t.Errorf("with Redis killed a response took %s", took)
			}
		}
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
		s.do(t, "GET", "/readyz", "").want(t, 503, "")
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		waittest.Eventually(t, time.Second+busy, func() error { return show().is(200) })
		missed := 0
		for range 20 {
			got := show()
			if missed == 0 && got.status == 503 { // a busy machine may miss one deadline
				missed++
				got = show()
			}
			got.want(t, 200, "")
			s.do(t, "GET", "/readyz", "").want(t, 200, "")
		}
	}
	issued := logins.stop().of("POST", 200) // keys whose creation was acknowledged
	wantSpent(t, r, key, charges.stop())
	for _, o := range issued {
		if left := tokensLeftIn(t, r, o.got.text(t, "apiKey")); left != 1_000_000 {
			t.Errorf("a new key has %d tokens", left)
		}
	}
	all := r.Keys(t, "apiKey:*")
	for _, key := range all {
		if fields, ttl := r.Int(t, "HLEN", key), r.Int(t, "PTTL", key); fields != 4 || ttl <= 0 {
			t.Errorf("a key has %d fields and expires in %d ms", fields, ttl)
		}
	}
	if len(issued) == 0 || len(all) < len(issued) {
		t.Errorf("%d keys were created, there are %d", len(issued), len(all))
	}
}

// Frozen for 5 s under load: each request has its response within 2 s, nothing piles up, the service is back as soon as
// Redis goes on, and what that executed late is charged once.
func TestRedisFrozenUnderLoad(t *testing.T) {
	long(t)
	t.Parallel()
	const clients = 64
	r := redistest.New(t)
	p := startProcess(t, []string{
		"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0", "ADMIN_TOKEN=" + testAdminToken,
	})
	s := p.service(t)
	id := newTenantIn(t, r, million)
	key := s.login(t, id)
	charges := s.keyedLoad(id, key, clients, 2*time.Second+busy).start(t)
	charges.more(t, 1000)
	r.Signal(t, syscall.SIGSTOP)
	time.Sleep(4500 * time.Millisecond)
	// These look for what grows with each request, not for the least that would do.
	if n := s.sample(t, "go_goroutines"); n < 1 || n > 40*clients {
		t.Errorf("there are %v goroutines for %d clients", n, clients)
	}
	if heap := s.sample(t, "go_memstats_heap_alloc_bytes"); heap < 1 || heap > 256<<20 {
		t.Errorf("%g bytes are allocated for %d clients", heap, clients)
	}
	if up, took := s.sample(t, "redis_up"), s.sample(t, "redis_probe_seconds"); up != 0 || took < 0.3 {
		t.Errorf("redis_up is %v after %v seconds though Redis is frozen", up, took)
	}
	r.Signal(t, syscall.SIGCONT)
	waittest.Eventually(t, 2*time.Second+busy, func() error { return s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).is(200) })
	charges.more(t, 100)
	wantSpent(t, r, key, charges.stop())
}

// Connections that Redis closes and scripts that it forgets, again and again under load, cost no charge and take none
// twice.
func TestRedisKillsConnections(t *testing.T) {
	long(t)
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, million)
	key := s.login(t, id)
	charges := s.keyedLoad(id, key, 16, 2*time.Second+busy).start(t)
	for round := range 40 {
		charges.more(t, 20)
		if round%2 == 0 {
			r.Do(t, "CLIENT", "KILL", "USER", r.User)
		}
		r.Do(t, "SCRIPT", "FLUSH")
	}
	wantSpent(t, r, key, charges.stop())
	r.Do(t, "SCRIPT", "FLUSH")
	for range 20 { // nothing of that is left, and what Redis has forgotten is no fault
		s.consume(t, id, key, "").want(t, 200, "")
		s.login(t, id)
	}
	s.wantFaultsOver(t)
}

// wantFaultsOver waits until the log has said for each fault that it is over.
func (s *service) wantFaultsOver(t *testing.T) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if s.log.Count("[ERROR]") != s.log.Count("[INFO] Redis is available again\n") {
			return fmt.Errorf("log:\n%s", s.log)
		}
		return nil
	})
}

// wantInfo waits until INFO has text in that section.
func wantInfo(t *testing.T, r *redistest.Server, section, text string) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if info := r.String(t, "INFO", section); !strings.Contains(info, text) {
			return fmt.Errorf("INFO %s has no %s:\n%s", section, text, info)
		}
		return nil
	})
}

// fillFile writes to the append-only file until there is no room.
func fillFile(t *testing.T, r *redistest.Server) {
	t.Helper()
	c, err := r.Dial()
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
}

// redisRefusal is a state in which Redis replies, but not with what was asked for.
type redisRefusal struct {
	name       string
	setUp      string   // what a shell does before it becomes redis-server
	args       []string // of redis-server
	begin, end func(*testing.T, *redistest.Server)
	unlimited  int    // the status of charges of a key without a rate limit, and of /readyz
	code       string // in the log
}

func redisRefusals() []redisRefusal {
	commands := func(commands ...[]any) func(*testing.T, *redistest.Server) {
		return func(t *testing.T, r *redistest.Server) {
			for _, c := range commands {
				r.Do(t, c[0].(string), c[1:]...)
			}
		}
	}
	acl := func(rules ...any) []any { return append([]any{"ACL", "SETUSER", "tollgate"}, rules...) }
	return []redisRefusal{
		{
			name: "MISCONF, a snapshot failed", args: []string{"--enable-protected-configs", "yes"},
			begin: func(t *testing.T, r *redistest.Server) {
				r.Do(t, "CONFIG", "SET", "save", "3600 1")
				r.Do(t, "CONFIG", "SET", "dir", "/proc")
				r.Do(t, "BGSAVE")
				wantInfo(t, r, "persistence", "rdb_last_bgsave_status:err")
			},
			end:       commands([]any{"CONFIG", "SET", "save", ""}),
			unlimited: 503, code: "MISCONF",
		},
		{
			name:  "MISCONF, the disk of the append-only file is full",
			setUp: `trap "" XFSZ; ulimit -f 2048`, // blocks; a write beyond is refused, instead of ending the process
			begin: fillFile,
			end: func(t *testing.T, r *redistest.Server) { // a new file has room
				r.Do(t, "BGREWRITEAOF")
				wantInfo(t, r, "persistence", "aof_last_write_status:ok")
			},
			unlimited: 503, code: "MISCONF",
		},
		{
			name:  "NOPERM",
			begin: commands(acl("-evalsha", "-eval")), end: commands(acl("+evalsha", "+eval")),
			unlimited: 503, code: "NOPERM",
		},
		{
			name:      "WRONGPASS on a new connection",
			begin:     commands(acl("resetpass", ">other"), []any{"CLIENT", "KILL", "USER", "tollgate"}),
			end:       commands(acl(">" + redistest.Password)),
			unlimited: 503, // what ended the connections is what the log says
		},
		{
			name:  "READONLY",
			begin: commands([]any{"REPLICAOF", "127.0.0.1", 1}), end: commands([]any{"REPLICAOF", "NO", "ONE"}),
			unlimited: 503, code: "READONLY",
		},
		{
			name:  "OOM", // a rate limit needs memory, a charge alone does not
			begin: commands([]any{"CONFIG", "SET", "maxmemory", 1}), end: commands([]any{"CONFIG", "SET", "maxmemory", 0}),
			unlimited: 200, code: "OOM",
		},
	}
}

// Whatever Redis may reply instead of serving is a 503 while it lasts, and one line of the log; then all is as before.
func TestRedisRefuses(t *testing.T) {
	long(t)
	t.Parallel()
	for _, test := range redisRefusals() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := redistest.NewAfter(t, test.setUp, test.args...)
			s := newService(t, "REDIS_URL="+r.URL())
			id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":100}}}`)
			limited, unlimited := s.login(t, "abc"), s.login(t, id)
			for range 5 { // the group's rate allows 10
				s.consume(t, "abc", limited, "").want(t, 200, "")
			}
			test.begin(t, r)
			for range 5 {
				got := s.do(t, "POST", "/abc/auth/anonymous", "")
				got.want(t, 503, `{"error":"Service unavailable"}`)
				got.wantHeader(t, "Retry-After", "1")
				s.consume(t, "abc", limited, "").want(t, 503, `{"error":"Service unavailable"}`)
				s.do(t, "GET", "/abc/auth/verify", "", bearer(limited)).want(t, 503, "")
				s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(unlimited)).want(t, test.unlimited, "")
				s.do(t, "GET", "/readyz", "").want(t, test.unlimited, "")
				s.do(t, "GET", "/healthz", "").want(t, 200, "")
			}
			test.end(t, r)
			s.wantRecovery(t)
			s.do(t, "GET", "/abc/auth/verify", "", bearer(limited)).want(t, 200, "")
			s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(unlimited)).want(t, 200, "")
			s.wantOneFault(t)
			if s.log.Count(test.code) == 0 {
				t.Errorf("the log does not say %s:\n%s", test.code, s.log)
			}
			s.do(t, "GET", "/abc/auth/key", "", bearer(limited)).want(t, 200, "")
			r.Kill() // what Redis replies is in its file, too
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
			if left := tokensLeftIn(t, r, limited); left != 95 {
				t.Errorf("%d tokens are left, want 95", left)
			}
		})
	}
}

// permit lets the services run commands of Redis ("+hincrby"), or denies them ("-hincrby").
func permit(t *testing.T, r *redistest.Server, rules ...string) {
	t.Helper()
	args := []any{"SETUSER", r.User}
	for _, rule := range rules {
		args = append(args, rule)
	}
	r.Do(t, "ACL", args...)
}

// Whatever command Redis denies within a script, no charge is taken that its retry would not find, and no key is created
// that would never expire.
func TestDeniedCommands(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=100000")
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":100,"rate_limit":4,"rate_limit_window":60},"other":{}}}`)
	for _, denied := range []string{"hincrby", "hincrby and del", "set", "rpush", "pexpire", "hmget", "llen", "lindex", "time"} {
		t.Run(denied, func(t *testing.T) { testDeniedCharge(t, s, r, id, strings.Split(denied, " and ")) })
	}
	t.Run("a hold is not in a log that would never expire", func(t *testing.T) {
		key := s.login(t, id)
		log := "{apiKey:" + key + "}:rate"
		r.Do(t, "RPUSH", log, in(-2*time.Second).UnixMicro())
		permit(t, r, "-pexpire")
		s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":1}`, bearer(key)).want(t, 503, "")
		permit(t, r, "+pexpire")
		if n := r.Int(t, "LLEN", log); n != 1 {
			t.Errorf("%d requests are in the log, want 1", n)
		}
	})
	t.Run("a login is not in a log that would never expire", func(t *testing.T) {
		r.Do(t, "DEL", "login:127.0.0.1")
		keys := len(r.Keys(t, "apiKey:*"))
		permit(t, r, "-pexpire")
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, "")
		permit(t, r, "+pexpire")
		if n := r.Int(t, "EXISTS", "login:127.0.0.1"); n != 0 {
			t.Error("a log of logins would never expire")
		}
		if n := len(r.Keys(t, "apiKey:*")); n != keys {
			t.Errorf("%d keys were created", n-keys)
		}
	})
	t.Run("a login whose key cannot be stored is counted", func(t *testing.T) {
		r.Do(t, "DEL", "login:127.0.0.1")
		keys := r.Keys(t, "apiKey:*")
		permit(t, r, "-hset")
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, `{"error":"Service unavailable"}`)
		permit(t, r, "+hset")
		if after := r.Keys(t, "apiKey:*"); !slices.Equal(after, keys) {
			t.Errorf("the keys were %q and are %q", keys, after)
		}
		if n := r.Int(t, "LLEN", "login:127.0.0.1"); n != 1 {
			t.Errorf("%d logins are used up, want 1", n)
		}
	})
	t.Run("a change whose response is 503 may be repeated", func(t *testing.T) {
		key := s.login(t, id)
		permit(t, r, "-pexpiretime")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1,"group":"other"}`).want(t, 503, "")
		permit(t, r, "+pexpiretime")
		if left := tokensLeftIn(t, r, key); left != 100 {
			t.Errorf("%d tokens are left", left)
		}
	})
	t.Run("at start", func(t *testing.T) {
		permit(t, r, "-hincrby")
		p := startProcess(t, []string{"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0"})
		const want = "[ERROR] Redis connection failed: NOPERM the user may not run HINCRBY\n"
		if code := p.exitCode(t); code != 1 || p.log.Count(want) != 1 {
			t.Errorf("exit code %d, %s", code, p.log)
		}
	})
}

// testDeniedCharge charges a new key while commands are denied, and afterwards.
func testDeniedCharge(t *testing.T, s *service, r *redistest.Server, id string, denied []string) {
	key := s.login(t, id)
	r.Do(t, "RPUSH", "{apiKey:"+key+"}:rate", in(-2*time.Second).UnixMicro()) // an empty log is not read
	logged := len(s.log.String())
	keys := len(r.Keys(t, "apiKey:*"))
	permit(t, r, "-"+denied[0], "-"+denied[len(denied)-1])
	for range 3 {
		s.consume(t, id, key, `{"tokens":10}`, retryKey+"k").want(t, 503, `{"error":"Service unavailable"}`)
		s.do(t, "GET", "/readyz", "").want(t, 503, `{"error":"Service unavailable"}`)
	}
	permit(t, r, "+"+denied[0], "+"+denied[len(denied)-1])
	if left := tokensLeftIn(t, r, key); left != 100 {
		t.Errorf("%d tokens are left", left)
	}
	if n := len(r.Keys(t, "apiKey:*")); n != keys {
		t.Errorf("%d keys were created", n-keys)
	}
	got := s.consume(t, id, key, `{"tokens":10}`, retryKey+"k")
	got.want(t, 200, `{"tokensLeft":90}`)
	got.wantHeader(t, "Idempotent-Replayed", "")
	over := func() int { return strings.Count(s.log.String()[logged:], "available again") }
	waittest.Eventually(t, 10*time.Second, func() error {
		s.do(t, "GET", "/readyz", "").want(t, 200, "")
		s.login(t, id)
		s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":1000}`, bearer(key)).want(t, 402, "")
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
		if over() == 0 {
			return errors.New("the log does not say that the fault is over")
		}
		return nil
	})
	s.consume(t, id, key, "").want(t, 200, "")
	if log := s.log.String()[logged:]; strings.Count(log, "[ERROR]") != 1 || over() != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// After FLUSHALL keys are gone and stay so, and tenants too, until their configs are back.
func TestFlushAll(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	r.Do(t, "FLUSHALL")
	s.wantConfig(t, "abc", "")
	s.consume(t, "abc", key, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	r.Do(t, "SET", "tenant:abc:config", string(seedConfig))
	waittest.Eventually(t, time.Second+busy, func() error { return s.consume(t, "abc", key, "", retryKey+"k").is(401) })
	if keys := r.Keys(t, "*apiKey*"); len(keys) != 0 {
		t.Errorf("there are %q", keys)
	}
}

// wantRecovery waits until the service works again.
func (s *service) wantRecovery(t testing.TB) {
	t.Helper()
	waittest.Eventually(t, 2*time.Second+busy, func() error {
		return s.do(t, "POST", "/abc/auth/anonymous", "").is(200)
	})
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
}

// wantOneFault checks, after recovery, that the log says once that Redis was unavailable and once that it is back.
func (s *service) wantOneFault(t testing.TB) {
	t.Helper()
	waittest.Eventually(t, 30*time.Second, func() error {
		s.do(t, "GET", "/readyz", "").want(t, 200, "")
		s.consume(t, "abc", someKey, "").want(t, 401, "")
		s.login(t, "abc")
		if s.log.Count("[INFO] Redis is available again\n") == 0 {
			return fmt.Errorf("the log does not say that Redis is back:\n%s", s.log)
		}
		return nil
	})
	if s.log.Count("[ERROR]") != 1 || s.log.Count("[INFO] Redis is available again\n") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
)

// Redis may be reached in every way that the documentation names.
func TestRedisURLs(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--requirepass", "s3cret", "--user", "gate", "on", ">gate:pw", "~*", "&*", "+@all")
	r.Options = append(r.Options, redis.DialPassword("s3cret"))
	tests := []struct {
		name, url string
		db        int
	}{
		{"password", fmt.Sprintf("redis://:s3cret@127.0.0.1:%d", r.Port), 0},
		{"name of a host", fmt.Sprintf("redis://:s3cret@localhost:%d/", r.Port), 0},
		{"user and database", fmt.Sprintf("redis://gate:gate%%3Apw@127.0.0.1:%d/3", r.Port), 3},
		{"socket", fmt.Sprintf("unix://:s3cret@%s", r.Address), 0},
		{"socket, user and database", fmt.Sprintf("unix://gate:gate%%3Apw@%s?db=5", r.Address), 5},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r.Do(t, "FLUSHALL")
			s := newService(t, "REDIS_URL="+test.url)
			s.login(t, "abc")
			s.stop()
			in := *r
			in.Options = append(slices.Clone(r.Options), redis.DialDatabase(test.db))
			if in.Int(t, "EXISTS", "tenant:abc:config") != 1 {
				t.Errorf("it did not use database %d", test.db)
			}
		})
	}
}

// A Redis that may lose balances is named in the log at start.
func TestSafetyWarnings(t *testing.T) {
	t.Parallel()
	safe := redistest.New(t)
	evicting := redistest.New(t, "--maxmemory-policy", "volatile-lru")
	forgetful := redistest.New(t, "--appendonly", "no")
	for _, test := range []struct {
		name  string
		redis *redistest.Server
		want  string
	}{
		{"an eviction policy", evicting, "[WARN] Redis's maxmemory-policy is volatile-lru"},
		{"no append-only file", forgetful, "[WARN] Redis keeps no append-only file"},
		{"nothing to warn of", safe, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			newTenantIn(t, test.redis, "{}") // the log says if Redis is empty
			s := newService(t, "REDIS_URL="+test.redis.URL())
			if warned := s.log.Count("[WARN]") > 0; !strings.Contains(s.log.String(), test.want) || warned != (test.want != "") {
				t.Errorf("want %q in\n%s", test.want, s.log)
			}
		})
	}
}

// A Redis whose EVALSHA was taken away quotes its arguments in its error, and they are keys: none of them is logged.
func TestErrorsWithoutKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--rename-command", "EVALSHA", "")
	err := run(t.Context(), nil, nil, func(name string) string {
		return map[string]string{"REDIS_URL": r.URL(), "ADDR": "127.0.0.1:0", "ADMIN_TOKEN": testAdminToken}[name]
	}, io.Discard, telemetry.NewLogger(io.Discard))
	if err == nil || !strings.HasSuffix(err.Error(), "ERR unknown command 'EVALSHA'") {
		t.Errorf("got %v", err)
	}
}

// While Redis is frozen every response is a 503 within 2 s; then everything is as before by itself, and the log says
// once that there was a fault.
func TestRedisFrozen(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	r.Signal(t, syscall.SIGSTOP)
	all := load{
		services: []*service{s}, clients: 128, requests: 1, statuses: []int{503}, within: 2*time.Second + busy,
		request: func(int, int) request { return consumeRequest("abc", key, 1) },
	}.run(t)
	for _, o := range all {
		o.got.want(t, 503, `{"error":"Service unavailable"}`)
		o.got.wantHeader(t, "Retry-After", "1")
	}
	s.do(t, "GET", "/healthz", "").want(t, 200, `{"status":"ok"}`)
	s.do(t, "GET", "/readyz", "").want(t, 503, `{"error":"Service unavailable"}`)
	r.Signal(t, syscall.SIGCONT)
	s.wantRecovery(t)
	s.wantOneFault(t)
}

// However slow Redis is, a response comes within 2 s, even if a request needs several of Redis's replies.
func TestRedisSlow(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	var delay atomic.Int64 // of every reply; Redis's time is as good as still
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		time.Sleep(time.Duration(delay.Load()))
		return redistest.Pass
	})
	s := newService(t, "REDIS_URL="+proxy.URL)
	const config = `{"user_groups":{"anonymous":{"tokens":5}}}`
	s.putConfig(t, "abc", config).want(t, 200, "")
	etag := s.history(t, "abc")[0].ETag
	token := s.admin(t, "POST", "/abc/admin/tokens", "").text(t, "adminToken")
	key := s.issue(t, "abc", `"userId":"u","group":"anonymous","tokens":1000`)
	requests := []request{
		{method: "POST", path: "/abc/admin/config/history/" + etag + "/restore", headers: []string{bearer(token)}},
		{method: "PUT", path: "/abc/admin/config", body: `{"config":` + config + `}`, headers: []string{bearer(token)}},
		{method: "POST", path: "/abc/auth/anonymous"},
		consumeRequest("abc", key, 1),
		{method: "POST", path: "/abc/admin/keys", body: `{"userId":"u","group":"anonymous"}`, headers: []string{bearer(token)}},
		{method: "PATCH", path: "/abc/admin/keys/" + key, body: `{"addTokens":1}`, headers: []string{bearer(token)}},
	}
	for _, ms := range []time.Duration{250, 340, 600, 880} {
		time.Sleep(configMaxAge) // then a request needs its config as well
		delay.Store(int64(ms * time.Millisecond))
		load{
			services: []*service{s}, clients: 128, requests: 1, statuses: []int{200, 201, 503}, within: 2*time.Second + busy,
			request: func(client, _ int) request { return requests[client%len(requests)] },
		}.run(t)
	}
}

// A connection to a Redis that was demoted is given up: the next leads to the new master.
func TestRedisDemoted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		rephrase func(reply []byte)
	}{
		{"READONLY", func([]byte) {}},
		{"ERR READONLY, as managed Redis may say", func(reply []byte) {
			copy(reply, bytes.ReplaceAll(reply, []byte("-READONLY You "), []byte("-ERR READONLY ")))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			old, master := redistest.New(t), redistest.New(t)
			var promoted atomic.Bool
			proxy := redistest.NewProxyTo(t, func() *redistest.Server {
				if promoted.Load() {
					return master
				}
				return old
			}, func(reply []byte) redistest.Fate {
				test.rephrase(reply)
				return redistest.Pass
			})
			s := newService(t, "REDIS_URL="+proxy.URL)
			load{ // several connections
				services: []*service{s}, clients: 8, requests: 1, statuses: []int{200},
				request: func(int, int) request { return request{method: "POST", path: "/abc/auth/anonymous"} },
			}.run(t)
			master.Do(t, "SET", "tenant:abc:config", string(seedConfig))
			promoted.Store(true)
			old.Do(t, "REPLICAOF", "127.0.0.1", 1)
			s.wantRecovery(t)
			for range 20 {
				s.login(t, "abc")
			}
			s.wantOneFault(t)
			const changed = `{"user_groups":{"anonymous":{"tokens":7}}}` // of which the old one knows nothing
			master.Do(t, "SET", "tenant:abc:config", changed)
			s.wantConfig(t, "abc", changed)
		})
	}
}

// After a restart of Redis not one request meets a connection from before.
func TestRedisRestarted(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	load{ // several idle connections
		services: []*service{s}, clients: 16, requests: 1, statuses: []int{200},
		request: func(int, int) request {
			return request{method: "GET", path: "/abc/auth/key", headers: []string{bearer(key)}}
		},
	}.run(t)
	s.consume(t, "abc", key, `{"tokens":5}`).want(t, 200, `{"tokensLeft":95}`)
	r.Kill()
	s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 503, `{"error":"Service unavailable"}`)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		got := s.do(t, "GET", "/abc/auth/key", "", bearer(key))
		got.want(t, 200, "")
		if left := got.field(t, "tokensLeft"); left != 95.0 {
			t.Fatalf("tokensLeft is %v, want 95", left)
		}
	}
}

// A connection that Redis has closed while nobody used it costs no request, neither of the pool nor the shared one.
func TestClosedWhileIdle(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000}}}`)
	key := s.login(t, id)
	for round := range 4 {
		load{
			services: []*service{s}, clients: 8, requests: 1, statuses: []int{200, 503},
			request: func(int, int) request {
				return request{method: "GET", path: "/" + id + "/admin/config/history", headers: []string{bearer(testAdminToken)}}
			},
		}.run(t)
		if round%2 == 0 {
			r.Do(t, "CLIENT", "KILL", "TYPE", "normal")
		} else {
			r.Kill()
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(300 * time.Millisecond) // nobody uses it
		for range 10 {
			s.admin(t, "GET", "/"+id+"/admin/config/history", "").want(t, 200, "")
			s.consume(t, id, key, "").want(t, 200, "")
		}
	}
}

// A fault that shows only now and then is one all the same, and it is over even if nobody sends a request.
func TestFaultLog(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000}}}`)
	key := s.login(t, id)
	back := func(want int) error {
		if s.log.Count("[INFO] Redis is available again\n") < want {
			return errors.New("the log does not say that Redis is back")
		}
		return nil
	}
	t.Run("a fault that charges do not show", func(t *testing.T) {
		r.Do(t, "CONFIG", "SET", "maxmemory", 1)
		for i := range 30 {
			if i%15 == 0 {
				s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, "")
			}
			s.consume(t, id, key, "").want(t, 200, "")
			time.Sleep(100 * time.Millisecond) // in all, three times as long as a fault lasts that nothing shows any more
		}
		if s.log.Count("[ERROR]") != 1 || back(1) == nil {
			t.Errorf("while Redis was full:\n%s", s.log)
		}
		r.Do(t, "CONFIG", "SET", "maxmemory", 0)
		waittest.Eventually(t, 10*time.Second, func() error {
			s.login(t, id)
			return back(1)
		})
	})
	t.Run("a fault that nobody asks about", func(t *testing.T) {
		r.Kill()
		s.consume(t, id, key, "").want(t, 503, "")
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		waittest.Eventually(t, 10*time.Second, func() error { return back(2) })
	})
}

// While Redis loads its data it replies, but does not serve.
func TestRedisLoading(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--key-load-delay", "400")
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	// While it loads Redis looks at its connections after each 1,024 commands of its append-only file.
	r.Do(t, "EVAL", "for i = 1, 4000 do redis.call('SET', 'filler' .. i, 'x') end", 0)
	r.Kill()
	started := make(chan error, 1)
	go func() { started <- r.Start() }()
	loading := false
	waittest.Eventually(t, 30*time.Second, func() error {
		got := s.do(t, "GET", "/abc/auth/key", "", bearer(key))
		if got.status != 200 {
			got.want(t, 503, `{"error":"Service unavailable"}`)
		}
		if c, err := r.Dial(); err == nil {
			_, err := c.Do("PING")
			c.Close()
			loading = loading || err != nil && strings.HasPrefix(err.Error(), "LOADING")
		}
		return got.is(200)
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if !loading {
		t.Error("Redis was never seen to load")
	}
}

// If Redis does not let it in, a caller learns that Redis is unavailable, whatever Redis's words are.
func TestSharedConnLogin(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	r.Do(t, "CONFIG", "SET", "requirepass", "pw")
	r.Options = append(r.Options, redis.DialPassword("pw"))
	s := newService(t, fmt.Sprintf("REDIS_URL=redis://:pw@127.0.0.1:%d", r.Port))
	key := s.login(t, "abc")
	c, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, password := range []string{"", "other"} {
		if _, err := c.Do("CONFIG", "SET", "requirepass", password); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		_, _ = c.Do("CLIENT", "KILL", "TYPE", "pubsub")
		for range 5 {
			s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 503, `{"error":"Service unavailable"}`)
			s.admin(t, "DELETE", "/abc/admin/tokens", "").want(t, 503, `{"error":"Service unavailable"}`)
		}
	}
	if _, err := c.Do("CONFIG", "SET", "requirepass", "pw"); err != nil {
		t.Fatal(err)
	}
	s.wantRecovery(t)
	if n := s.log.Count("[ERROR]"); n != 1 {
		t.Errorf("%d errors in the log:\n%s", n, s.log)
	}
}

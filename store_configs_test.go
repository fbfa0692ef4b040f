package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// freshConfig is the config of a tenant in a Redis of its own, which two services serve.
type freshConfig struct {
	redis    *redistest.Server
	services []*service
	id       string
	version  int // of the newest config
}

func newFreshConfig(t *testing.T) *freshConfig {
	t.Helper()
	r := redistest.New(t)
	return &freshConfig{redis: r, services: newServices(t, "REDIS_URL="+r.URL()), id: "fresh"}
}

// beside returns the config of another tenant there.
func (f *freshConfig) beside(id string) *freshConfig {
	return &freshConfig{redis: f.redis, services: f.services, id: id}
}

// newest returns the config that next has returned last.
func (f *freshConfig) newest() string { return fmt.Sprintf(`{"version":%d}`, f.version) }

// next returns a config that was not there before.
func (f *freshConfig) next() string {
	f.version++
	return f.newest()
}

// set writes a new config straight to Redis and returns it.
func (f *freshConfig) set(t *testing.T) string {
	t.Helper()
	config := f.next()
	f.redis.Do(t, "SET", configRedisKey(f.id), config)
	return config
}

// want waits until both services serve that config, or none if it is "".
func (f *freshConfig) want(t *testing.T, config string) {
	t.Helper()
	for _, s := range f.services {
		s.wantConfig(t, f.id, config)
	}
}

// eachFresh runs tests, each with a config of its own, beside one another.
func eachFresh(t *testing.T, tests map[string]func(*testing.T, *freshConfig)) {
	t.Parallel()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newFreshConfig(t))
		})
	}
}

// What is written by any process, or straight to Redis, is what every process serves within 1 s, and immediately on the
// process that wrote it. A config that has not changed is not loaded again.
func TestConfigFreshness(t *testing.T) {
	eachFresh(t, map[string]func(*testing.T, *freshConfig){
		"written straight to Redis": func(t *testing.T, f *freshConfig) {
			f.want(t, "")
			f.want(t, f.set(t))
			f.want(t, f.set(t))
		},
		"written by a process": func(t *testing.T, f *freshConfig) {
			f.want(t, f.set(t))
			for i, s := range f.services {
				other := f.services[1-i]
				for range 20 {
					config := f.next()
					s.putConfig(t, f.id, config).want(t, 200, "")
					s.admin(t, "GET", "/"+f.id+"/admin/config", "").want(t, 200, `{"config":`+config+`}`)
					other.admin(t, "GET", "/"+f.id+"/admin/config", "").want(t, 200, "")
				}
				other.wantConfig(t, f.id, f.newest())
			}
		},
		"created and deleted by a process": func(t *testing.T, f *freshConfig) {
			s := f.services[0]
			for range 5 {
				s.admin(t, "POST", "/admin/tenants", `{"tenantId":"own","config":{}}`).want(t, 201, "")
				s.admin(t, "GET", "/own/admin/config", "").want(t, 200, `{"config":{}}`)
				s.admin(t, "DELETE", "/admin/tenants/own", "").want(t, 204, "")
				s.admin(t, "GET", "/own/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
			}
		},
		"unchanged": func(t *testing.T, f *freshConfig) {
			f.want(t, f.set(t))
			before := []int{f.services[0].loads(f.id), f.services[1].loads(f.id)}
			for end := in(2 * configMaxAge); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				for _, s := range f.services {
					s.admin(t, "GET", "/"+f.id+"/admin/config", "").want(t, 200, "")
				}
			}
			for i, s := range f.services {
				if n := s.loads(f.id) - before[i]; n != 0 {
					t.Errorf("a config that has not changed was loaded %d times", n)
				}
			}
		},
		"changed while it is loaded": func(t *testing.T, f *freshConfig) {
			tenants := []*freshConfig{f, f.beside("b"), f.beside("c"), f.beside("d")}
			for range 5 {
				for _, f := range tenants {
					f.set(t)
					go f.services[1].send("GET", "/"+f.id+"/admin/config", "", bearer(testAdminToken))
				}
				for _, f := range tenants {
					f.services[0].wantConfig(t, f.id, f.newest())
				}
			}
			for _, f := range tenants {
				f.want(t, f.set(t))
			}
		},
	})
}

// What Redis has is what every process serves within 1 s, whatever happens to connections and keys.
func TestConfigFollowsRedis(t *testing.T) {
	flushed := func(command string) func(*testing.T, *freshConfig) {
		return func(t *testing.T, f *freshConfig) {
			f.want(t, f.set(t))
			f.redis.Do(t, command)
			f.want(t, "")
		}
	}
	eachFresh(t, map[string]func(*testing.T, *freshConfig){
		"FLUSHALL": flushed("FLUSHALL"),
		"FLUSHDB":  flushed("FLUSHDB"),
		"SWAPDB": func(t *testing.T, f *freshConfig) {
			config := f.set(t)
			f.want(t, config)
			f.redis.Do(t, "SWAPDB", 0, 1)
			f.want(t, "")
			f.redis.Do(t, "SWAPDB", 0, 1)
			f.want(t, config)
		},
		"deleted and renamed": func(t *testing.T, f *freshConfig) {
			config := f.set(t)
			f.want(t, config)
			f.redis.Do(t, "DEL", configRedisKey(f.id))
			f.want(t, "")
			f.redis.Do(t, "SET", configRedisKey("other"), config)
			f.redis.Do(t, "RENAME", configRedisKey("other"), configRedisKey(f.id))
			f.want(t, config)
		},
		"expired": func(t *testing.T, f *freshConfig) {
			f.want(t, f.set(t))
			f.redis.Do(t, "PEXPIRE", configRedisKey(f.id), 50)
			f.want(t, "")
		},
		"connections cut": func(t *testing.T, f *freshConfig) {
			for range 5 {
				f.want(t, f.set(t))
				f.redis.Do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
				f.want(t, f.set(t))
			}
		},
	})
}

// Requests that need the same config at the same time cause one load.
func TestConfigLoadIsShared(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{}`)
	r.Do(t, "CLIENT", "PAUSE", 300, "ALL")
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			got, err := s.send("GET", "/"+id+"/admin/config", "", bearer(testAdminToken))
			if err != nil || got.status != 200 {
				t.Errorf("%d %s, %v", got.status, got.body, err)
			}
		})
	}
	wg.Wait()
	if n := s.loads(id); n != 1 {
		t.Errorf("64 requests loaded the config %d times", n)
	}
}

// In steady use a config is refreshed in the background: no request waits for Redis, and the config stays fresh.
func TestConfigRefresh(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	validations := func() int {
		info := r.String(t, "INFO", "commandstats")
		return redistest.Calls(info, "evalsha") + redistest.Calls(info, "eval")
	}
	before, began := validations(), time.Now()
	for end := in(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
	}
	most := int(time.Since(began)/configRefreshAge) + 2
	if n := validations() - before; n < 2 || n > most {
		t.Errorf("the config was validated %d times in %s, want 2 to %d", n, time.Since(began), most)
	}
}

// While Redis cannot be reached a cached config is used for configGraceAge and no longer.
func TestConfigWithoutRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	r.Kill()
	began := time.Now()
	for time.Since(began) < configGraceAge/2 {
		s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
		time.Sleep(20 * time.Millisecond)
	}
	waittest.Eventually(t, configGraceAge, func() error {
		return s.admin(t, "GET", "/"+id+"/admin/config", "").is(503)
	})
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	r.Do(t, "SET", "tenant:"+id+":config", `{"version":2}`)
	waittest.Eventually(t, 5*time.Second, func() error {
		got := s.admin(t, "GET", "/"+id+"/admin/config", "")
		if got.body != `{"config":{"version":2}}`+"\n" {
			return fmt.Errorf("got %d %s", got.status, got.body)
		}
		return nil
	})
}

// A config that expires is not served for longer than 1 s, even if Redis has not yet deleted it.
func TestExpiringConfig(t *testing.T) {
	t.Parallel()
	r := redistest.New(t, "--enable-debug-command", "yes")
	s := newService(t, "REDIS_URL="+r.URL())
	r.Do(t, "DEBUG", "SET-ACTIVE-EXPIRE", 0)
	r.Do(t, "SET", "tenant:brief:config", `{}`, "PX", 2000)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 200, "")
	time.Sleep(2 * time.Second)
	s.wantConfig(t, "brief", "")
}

// cacheOf returns a cache whose configs load and unchanged provide.
func cacheOf(load func(id string) (*tenant, error), unchanged func(*tenant) (bool, error)) *configCache {
	return newConfigCache(func(_ time.Time, id string) (*tenant, error) { return load(id) },
		func(_ time.Time, t *tenant) (bool, error) { return unchanged(t) }, func(*tenant) {})
}

// The log says that a config has vanished, once in each process, and of at most linesPerMinute tenants in a minute. A
// tenant that was deleted over HTTP has not vanished.
func TestVanishedConfigs(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const line = "[WARN] The config of tenant "
	gone := func(id string) int { return s.log.Count(line + id + " is gone") }
	for _, id := range []string{"removed", "expired", "deleted"} {
		r.Do(t, "SET", configRedisKey(id), `{}`)
		s.wantConfig(t, id, `{}`)
	}
	r.Do(t, "DEL", configRedisKey("removed"))
	r.Do(t, "PEXPIRE", configRedisKey("expired"), 1)
	newService(t, "REDIS_URL="+r.URL()).admin(t, "DELETE", "/admin/tenants/deleted", "").want(t, 204, "")
	for _, id := range []string{"removed", "expired", "deleted"} {
		s.wantConfig(t, id, "")
		s.wantConfig(t, id, "")
	}
	waittest.Eventually(t, 5*time.Second, func() error {
		if gone("removed") != 1 || gone("expired") != 1 {
			return fmt.Errorf("log:\n%s", s.log)
		}
		return nil
	})
	if n := gone("deleted"); n != 0 {
		t.Errorf("%d lines about the deleted tenant", n)
	}
	var ids []string
	for i := range 2 * linesPerMinute {
		ids = append(ids, fmt.Sprintf("many%d", i))
		r.Do(t, "SET", configRedisKey(ids[i]), `{}`)
		s.wantConfig(t, ids[i], `{}`)
	}
	r.Do(t, "FLUSHALL")
	for _, id := range ids {
		s.wantConfig(t, id, "")
	}
	waittest.Eventually(t, 5*time.Second, func() error {
		if s.log.Count("more are not logged for a minute\n") != 1 {
			return fmt.Errorf("log:\n%s", s.log)
		}
		return nil
	})
	if n := s.log.Count(line); n != linesPerMinute {
		t.Errorf("%d lines, want %d", n, linesPerMinute)
	}
}

func TestLineLimit(t *testing.T) {
	var l lineLimit
	now := time.Now()
	for round := range 2 {
		for want := linesPerMinute; want >= 0; want-- {
			if got := l.take(now.Add(time.Duration(round) * time.Minute)); got != want {
				t.Errorf("minute %d: got %d, want %d", round, got, want)
			}
		}
		if got := l.take(now.Add(time.Duration(round)*time.Minute + 59*time.Second)); got != 0 {
			t.Errorf("minute %d: got %d at its end", round, got)
		}
	}
}

// What was read before a write of this process is neither cached nor given to requests that come after the write.
func TestConfigCacheDrop(t *testing.T) {
	reading, resume := make(chan struct{}), make(chan struct{})
	first, second := &tenant{id: "x", config: new(tenantConfig)}, &tenant{id: "x", config: new(tenantConfig)}
	loads := 0
	c := cacheOf(func(string) (*tenant, error) {
		if loads++; loads > 1 {
			return second, nil
		}
		close(reading)
		<-resume
		return first, nil
	}, func(*tenant) (bool, error) { return true, nil })
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, err := c.get(in(10*time.Second), "x"); got != first || err != nil {
			t.Errorf("a request that came before the write got %p, %v", got, err)
		}
	})
	<-reading
	c.invalidate("x")
	if got, err := c.get(in(10*time.Second), "x"); got != second || err != nil {
		t.Errorf("a request that came after the write got %p, %v", got, err)
	}
	close(resume)
	wg.Wait()
	c.close()
	if got, err := c.get(in(10*time.Second), "x"); got != second || err != nil {
		t.Errorf("cached is %p, %v", got, err)
	}
}

// What a refresh finds replaces what is cached, unless the server cannot be reached.
func TestConfigCacheRefresh(t *testing.T) {
	old, changed := &tenant{id: "x", config: new(tenantConfig)}, &tenant{id: "x", config: new(tenantConfig)}
	broken := &tenant{id: "x"}
	for _, test := range []struct {
		name      string
		unchanged bool
		refresh   error // of the validation
		load      error // of the load after it
		want      *tenant
		wantError error
	}{
		{"unchanged", true, nil, nil, old, nil},
		{"changed", false, nil, nil, changed, nil},
		{"deleted", false, nil, ErrNoTenant, nil, ErrNoTenant},
		{"broken", false, nil, ErrBrokenConfig, broken, ErrBrokenConfig},
		{"unreachable", false, ErrUnavailable, nil, old, nil},
		{"changed, and unreachable when it is loaded", false, nil, ErrUnavailable, nil, ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := cacheOf(func(string) (*tenant, error) {
				switch test.load {
				case nil:
					return changed, nil
				case ErrBrokenConfig:
					return broken, test.load
				}
				return nil, test.load
			}, func(*tenant) (bool, error) { return test.unchanged, test.refresh })
			c.put(old, nil, -configMaxAge)
			if got, err := c.get(in(10*time.Second), "x"); got != test.want || !errors.Is(err, test.wantError) {
				t.Errorf("got %p, %v, want %p, %v", got, err, test.want, test.wantError)
			}
		})
	}
	c := cacheOf(func(string) (*tenant, error) { return nil, ErrUnavailable },
		func(*tenant) (bool, error) { return false, ErrUnavailable })
	c.put(old, nil, -configGraceAge)
	if got, err := c.get(in(10*time.Second), "x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a config older than the grace is served: %p, %v", got, err)
	}
}

// The exact times: a config is used as it is for 500 ms, is refreshed in the background until 750 ms, and is never served
// when it is older, unless its server cannot be reached: then for 10 s, and no request waits longer than 400 ms.
func TestConfigCacheTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		validations, delay, fault := 0, time.Duration(0), error(nil)
		one := &tenant{id: "x", config: new(tenantConfig)}
		load := func(string) (*tenant, error) {
			if fault != nil {
				return nil, fault
			}
			return one, nil
		}
		c := cacheOf(load, func(*tenant) (bool, error) {
			validations++
			time.Sleep(delay)
			return fault == nil, fault
		})
		get := func(want *tenant, most time.Duration) {
			t.Helper()
			began := time.Now()
			got, err := c.get(in(900*time.Millisecond), "x")
			if took := time.Since(began); got != want || want == nil && !errors.Is(err, ErrUnavailable) || took > most {
				t.Errorf("got %p, %v after %s", got, err, took)
			}
			synctest.Wait()
		}
		wantValidations := func(want int) {
			t.Helper()
			if validations != want {
				t.Errorf("%d validations, want %d", validations, want)
			}
		}
		get(one, 0)
		time.Sleep(configRefreshAge - 1)
		get(one, 0)
		wantValidations(0)
		time.Sleep(time.Nanosecond)
		delay = 200 * time.Millisecond
		get(one, 0) // in the background
		wantValidations(1)
		time.Sleep(delay)
		synctest.Wait()
		time.Sleep(configMaxAge) // nobody has used it meanwhile
		get(one, delay)
		wantValidations(2)
		time.Sleep(configMaxAge)
		delay, fault = 10*time.Second, ErrUnavailable // a server that hangs
		get(one, configPatience)
		time.Sleep(configGraceAge)
		synctest.Wait()
		delay = 0 // a server that is gone
		get(nil, 900*time.Millisecond)
		fault = nil
		get(one, 0)
		c.close()
	})
}

// A panic while a config is read is an error of the request, and does not end the process.
func TestConfigCachePanic(t *testing.T) {
	c := cacheOf(func(string) (*tenant, error) { panic("oops") }, nil)
	if _, err := c.get(in(10*time.Second), "x"); err == nil || !strings.Contains(err.Error(), "panic: oops") {
		t.Errorf("got %v", err)
	}
}

// The cache keeps maxCachedBytes and no more.
func TestConfigCacheBound(t *testing.T) {
	config := &tenantConfig{json: make([]byte, 1<<20)}
	c := cacheOf(func(id string) (*tenant, error) { return &tenant{id: id, config: config}, nil },
		func(*tenant) (bool, error) { return true, nil })
	for i := range 3 * maxCachedBytes >> 20 {
		id := fmt.Sprint(i)
		if _, err := c.get(in(10*time.Second), id); err != nil || c.entries[id] == nil || c.bytes > maxCachedBytes {
			t.Fatalf("%d bytes are cached after %d configs, %v", c.bytes, i+1, err)
		}
	}
	if n, most := len(c.entries), maxCachedBytes/(&tenant{config: config}).bytes(); n != most || most < 60 {
		t.Errorf("%d configs of 1 MiB are cached", n)
	}
}

// A broken config is cached as such: it is logged once for each version, and read once.
func TestBrokenConfigIsCached(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	put := func(version int) {
		r.Do(t, "SET", "tenant:broken:config", fmt.Sprintf(`{"caching":%d,"x":"%s"}`, version, strings.Repeat("x", 100_000)))
	}
	requests := func(t *testing.T, lines int) { // until the log has that many, and for 2*configMaxAge at least
		t.Helper()
		isRead := func() bool { return s.log.Count("[ERROR]") >= lines }
		end, giveUp := in(2*configMaxAge), in(20*time.Second)
		for ; time.Now().Before(end) || !isRead() && time.Now().Before(giveUp); time.Sleep(5 * time.Millisecond) {
			s.do(t, "POST", "/broken/auth/anonymous", "").want(t, 500, `{"error":"Internal error"}`)
			s.consume(t, "broken", someKey, "").want(t, 500, `{"error":"Internal error"}`)
		}
	}
	sent := func() (n int) {
		fmt.Sscan(redistest.Field(r.String(t, "INFO", "stats"), "total_net_output_bytes"), &n)
		return n
	}
	for version := 1; version <= 3; version++ {
		before := sent()
		put(version)
		requests(t, version)
		if n := s.log.Count("[ERROR]"); n != version {
			t.Fatalf("%d versions that are broken are %d lines of the log:\n%s", version, n, s.log)
		}
		if n := sent() - before; n > 200_000 {
			t.Errorf("Redis has sent %d bytes for a config of 100 kB", n)
		}
	}
	if n := s.log.Count("[ERROR] The config of tenant broken is broken: Invalid config: caching must be an object\n"); n != 3 {
		t.Errorf("log:\n%s", s.log)
	}
	r.Do(t, "SET", "tenant:broken:config", `{"user_groups":{"anonymous":{}}}`)
	waittest.Eventually(t, time.Second+busy, func() error { return s.do(t, "POST", "/broken/auth/anonymous", "").is(200) })
}

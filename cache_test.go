package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// What is written by any process, or straight to Redis, is what every process serves within 1 s, and immediately on the
// process that wrote it, whatever happens to connections and keys. A config that has not changed is not loaded again.
func TestConfigFreshness(t *testing.T) {
	r := newRedis(t)
	services := []*service{newService(t, "REDIS_URL="+r.url()), newService(t, "REDIS_URL="+r.url())}
	const id = "fresh"
	version := 0
	next := func() string {
		version++
		return fmt.Sprintf(`{"version":%d}`, version)
	}
	set := func(args ...any) string {
		t.Helper()
		config := next()
		r.do(t, "SET", append([]any{"tenant:" + id + ":config", config}, args...)...)
		return config
	}
	everywhere := func(t *testing.T, config string) {
		t.Helper()
		for _, s := range services {
			s.wantConfig(t, id, config)
		}
	}

	t.Run("written straight to Redis", func(t *testing.T) {
		everywhere(t, "")
		everywhere(t, set())
		everywhere(t, set())
	})
	t.Run("written by a process", func(t *testing.T) {
		for i, s := range services {
			for range 20 {
				config := next()
				s.putConfig(t, id, config).want(t, 200, "")
				s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":`+config+`}`)
				services[1-i].admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
			}
			services[1-i].wantConfig(t, id, fmt.Sprintf(`{"version":%d}`, version))
		}
	})
	t.Run("created and deleted by a process", func(t *testing.T) {
		s := services[0]
		for range 5 {
			s.admin(t, "POST", "/admin/tenants", `{"tenantId":"own","config":{}}`).want(t, 201, "")
			s.admin(t, "GET", "/own/admin/config", "").want(t, 200, `{"config":{}}`)
			s.admin(t, "DELETE", "/admin/tenants/own", "").want(t, 204, "")
			s.admin(t, "GET", "/own/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		}
	})
	t.Run("unchanged", func(t *testing.T) {
		for _, s := range services {
			before := s.loads(id)
			for end := in(2 * configMaxAge); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
			}
			if n := s.loads(id) - before; n != 0 {
				t.Errorf("a config that has not changed was loaded %d times", n)
			}
		}
	})
	t.Run("deleted and renamed", func(t *testing.T) {
		config := set()
		everywhere(t, config)
		r.do(t, "DEL", "tenant:"+id+":config")
		everywhere(t, "")
		r.do(t, "SET", "tenant:other:config", config)
		r.do(t, "RENAME", "tenant:other:config", "tenant:"+id+":config")
		everywhere(t, config)
	})
	for _, flush := range []string{"FLUSHALL", "FLUSHDB"} {
		t.Run(flush, func(t *testing.T) {
			everywhere(t, set())
			r.do(t, flush)
			everywhere(t, "")
		})
	}
	t.Run("SWAPDB", func(t *testing.T) {
		everywhere(t, set())
		r.do(t, "SWAPDB", 0, 1)
		everywhere(t, "")
		r.do(t, "SWAPDB", 0, 1)
		everywhere(t, fmt.Sprintf(`{"version":%d}`, version))
	})
	t.Run("expired", func(t *testing.T) {
		everywhere(t, set())
		r.do(t, "PEXPIRE", "tenant:"+id+":config", 50)
		everywhere(t, "")
	})
	t.Run("connections cut", func(t *testing.T) {
		for range 5 {
			everywhere(t, set())
			r.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			everywhere(t, set())
		}
	})
	t.Run("changed while it is loaded", func(t *testing.T) {
		for range 20 {
			config := set()
			go services[1].send("GET", "/"+id+"/admin/config", "", bearer(testAdminToken))
			services[0].wantConfig(t, id, config)
		}
		everywhere(t, set())
	})
}

// Requests that need the same config at the same time cause one load.
func TestConfigLoadIsShared(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{}`)
	r.do(t, "CLIENT", "PAUSE", 300, "ALL")
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
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	validations := func() int { return commandCalls(t, r, "evalsha") + commandCalls(t, r, "eval") }
	before, began := validations(), time.Now()
	for end := in(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
	}
	most := int(time.Since(began)/configRefreshAge) + 2
	if n := validations() - before; n < 2 || n > most {
		t.Errorf("the config was validated %d times in %s, want 2 to %d", n, time.Since(began), most)
	}
}

// commandCalls returns how often r has executed a command.
func commandCalls(t *testing.T, r *redisServer, command string) int {
	t.Helper()
	calls := 0
	for line := range strings.Lines(r.string(t, "INFO", "commandstats")) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			if _, err := fmt.Sscan(rest[:strings.IndexByte(rest, ',')], &calls); err != nil {
				t.Fatal(err)
			}
		}
	}
	return calls
}

// While Redis cannot be reached a cached config is used for configGraceAge and no longer.
func TestConfigWithoutRedis(t *testing.T) {
	t.Parallel()
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	r.kill()
	began := time.Now()
	for time.Since(began) < configGraceAge/2 {
		s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, configGraceAge, func() error {
		return s.admin(t, "GET", "/"+id+"/admin/config", "").is(503)
	})
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	r.do(t, "SET", "tenant:"+id+":config", `{"version":2}`)
	eventually(t, 5*time.Second, func() error {
		got := s.admin(t, "GET", "/"+id+"/admin/config", "")
		if got.body != `{"config":{"version":2}}`+"\n" {
			return fmt.Errorf("got %d %s", got.status, got.body)
		}
		return nil
	})
}

// A config that expires is not served for longer than 1 s, even if Redis has not yet deleted it.
func TestExpiringConfig(t *testing.T) {
	r := newRedis(t, "--enable-debug-command", "yes")
	s := newService(t, "REDIS_URL="+r.url())
	r.do(t, "DEBUG", "SET-ACTIVE-EXPIRE", 0)
	r.do(t, "SET", "tenant:brief:config", `{}`, "PX", 300)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 200, "")
	time.Sleep(300 * time.Millisecond)
	s.wantConfig(t, "brief", "")
}

// cacheOf returns a cache whose configs load and unchanged provide.
func cacheOf(load func(id string) (*tenant, error), unchanged func(*tenant) (bool, error)) *configCache {
	return newConfigCache(func(_ time.Time, id string) (*tenant, error) { return load(id) },
		func(_ time.Time, t *tenant) (bool, error) { return unchanged(t) })
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
	c.drop("x")
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
		{"broken", false, nil, ErrBrokenConfig, nil, ErrBrokenConfig},
		{"unreachable", false, ErrUnavailable, nil, old, nil},
		{"unreachable when it is loaded", false, nil, ErrUnavailable, old, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := cacheOf(func(string) (*tenant, error) {
				if test.load != nil {
					return nil, test.load
				}
				return changed, nil
			}, func(*tenant) (bool, error) { return test.unchanged, test.refresh })
			c.put(old, time.Now().Add(-configMaxAge))
			if got, err := c.get(in(10*time.Second), "x"); got != test.want || !errors.Is(err, test.wantError) {
				t.Errorf("got %p, %v, want %p, %v", got, err, test.want, test.wantError)
			}
		})
	}
	c := cacheOf(func(string) (*tenant, error) { return nil, ErrUnavailable },
		func(*tenant) (bool, error) { return false, ErrUnavailable })
	c.put(old, time.Now().Add(-configGraceAge))
	if got, err := c.get(in(10*time.Second), "x"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a config older than the grace is served: %p, %v", got, err)
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
	if n := len(c.entries); n != maxCachedBytes>>20 {
		t.Errorf("%d configs of 1 MiB are cached", n)
	}
}

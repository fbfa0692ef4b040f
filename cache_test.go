package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// watchers are the IDs of the connections on which services learn what changes.
func (r *redisServer) watchers(t *testing.T) (ids []string) {
	t.Helper()
	for line := range strings.Lines(r.string(t, "CLIENT", "LIST", "TYPE", "pubsub")) {
		id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
		ids = append(ids, id)
	}
	return ids
}

// What is written by any process, or straight to Redis, is what every process serves within 1 s, and at once on the
// process that wrote it, whatever happens to connections and keys. Between changes Redis is not asked.
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
	everywhere := func(config string) {
		t.Helper()
		for _, s := range services {
			s.wantConfig(t, id, config)
		}
	}

	everywhere("")
	everywhere(set()) // straight to Redis
	for i, s := range services {
		config := next()
		s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken)).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)).want(t, 200, `{"config":`+config+`}`)
		services[1-i].wantConfig(t, id, config)
	}
	for _, s := range services {
		before := s.loads(id)
		for range 50 {
			s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)).want(t, 200, "")
		}
		if n := s.loads(id) - before; n != 0 {
			t.Errorf("a config that has not changed was loaded %d times", n)
		}
	}

	config := set()
	r.do(t, "DEL", "tenant:"+id+":config")
	everywhere("")
	r.do(t, "SET", "tenant:other:config", config)
	r.do(t, "RENAME", "tenant:other:config", "tenant:"+id+":config")
	everywhere(config)
	for _, flush := range []string{"FLUSHALL", "FLUSHDB"} {
		everywhere(set())
		r.do(t, flush)
		everywhere("")
	}
	everywhere(set("PX", 300)) // Redis tells of an expiry only when it gets round to it
	everywhere("")
	everywhere(set())
	r.do(t, "PEXPIRE", "tenant:"+id+":config", 200)
	everywhere("")

	// All connections cut, while the config changes.
	for range 5 {
		everywhere(set())
		r.do(t, "CLIENT", "KILL", "TYPE", "pubsub")
		r.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		everywhere(set())
	}
	everywhere(set())
	for deadline := time.Now().Add(5 * time.Second); len(r.watchers(t)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody listens for changes any more")
		}
	}
	// A change that races with its loading.
	for range 200 {
		config := set()
		go services[1].send("GET", "/"+id+"/admin/config", "", bearer(testAdminToken))
		services[0].wantConfig(t, id, config)
	}
	everywhere(set())
}

// When the connection that tells of changes is there but says nothing (a network that swallows packets, a Redis that
// hangs), nothing that is cached is served for longer than 1 s.
func TestSilentWatch(t *testing.T) {
	r := newRedis(t)
	var mute atomic.Bool
	proxy := newRedisProxy(t, r, func(reply []byte) fate {
		if mute.Load() && (bytes.Contains(reply, []byte("pong")) || bytes.Contains(reply, []byte("__redis__:invalidate"))) {
			return swallow
		}
		return pass
	})
	s := newService(t, "REDIS_URL="+proxy.url)
	const id = "silent"
	r.do(t, "SET", "tenant:"+id+":config", `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	mute.Store(true)
	r.do(t, "SET", "tenant:"+id+":config", `{"version":2}`)
	s.wantConfig(t, id, `{"version":2}`)
	r.do(t, "SET", "tenant:"+id+":config", `{"version":3}`)
	s.wantConfig(t, id, `{"version":3}`)
}

// What a process has written it serves at once, also where Redis does not tell it of the change.
func TestOwnWrites(t *testing.T) {
	r := newRedis(t)
	proxy := newRedisProxy(t, r, func(reply []byte) fate {
		// An invalidation becomes one of another tenant. The answers to PING, which keep the cache alive, pass.
		copy(reply, bytes.ReplaceAll(reply, []byte("tenant:own:config"), []byte("tenant:www:config")))
		return pass
	})
	s := newService(t, "REDIS_URL="+proxy.url)
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"own","config":{"version":0}}`).want(t, 201, "")
	for version := range 20 {
		s.admin(t, "GET", "/own/admin/config", "").want(t, 200, fmt.Sprintf(`{"config":{"version":%d}}`, version))
		s.admin(t, "PUT", "/own/admin/config", fmt.Sprintf(`{"config":{"version":%d}}`, version+1)).want(t, 200, "")
	}
	s.admin(t, "GET", "/own/admin/config", "").want(t, 200, "")
	s.admin(t, "DELETE", "/admin/tenants/own", "").want(t, 204, "")
	s.admin(t, "GET", "/own/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
}

// A config that expires is not served for longer, also where Redis does not get round to delete it.
func TestExpiringConfig(t *testing.T) {
	r := newRedis(t, "--enable-debug-command", "yes")
	s := newService(t, "REDIS_URL="+r.url())
	r.do(t, "DEBUG", "SET-ACTIVE-EXPIRE", 0)
	r.do(t, "SET", "tenant:brief:config", `{}`, "PX", 300)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 200, "")
	time.Sleep(400 * time.Millisecond)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
}

// A config that was loaded while it changed is not kept.
func TestCacheRace(t *testing.T) {
	one := &tenant{id: "x", config: &tenantConfig{answer: []byte("{}")}}
	for name, change := range map[string]func(*configCache){
		"drop":            func(c *configCache) { c.drop("x") },
		"reset":           func(c *configCache) { c.reset(true) },
		"drop, load":      func(c *configCache) { c.drop("x"); c.load("x") },
		"end of watching": func(c *configCache) { c.reset(false); c.reset(true) },
	} {
		var c configCache
		c.reset(true)
		place := c.load("x")
		change(&c)
		c.put(place, one)
		if c.get("x") != nil || c.bytes != 0 {
			t.Errorf("%s: what was loaded before is kept", name)
		}
	}
}

// Where Redis refuses to tell of changes, each request loads its config, and the log says so once, at start.
func TestTrackingRefused(t *testing.T) {
	r := newRedis(t)
	r.do(t, "ACL", "SETUSER", "gate", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
	s := newService(t, fmt.Sprintf("REDIS_URL=redis://gate:pw@127.0.0.1:%d", r.port))
	if n := s.log.count("[WARN]"); n != 1 || !strings.Contains(s.log.String(), "[WARN] Redis refuses to say when configs change") {
		t.Errorf("%d warnings in\n%s", n, s.log)
	}
	before := s.loads("abc")
	for i := range 5 {
		config := fmt.Sprintf(`{"version":%d}`, i)
		r.do(t, "SET", "tenant:abc:config", config)
		s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 200, `{"config":`+config+`}`)
	}
	if n := s.loads("abc") - before; n != 5 {
		t.Errorf("5 requests loaded the config %d times", n)
	}
}

// The cache holds so many bytes and no more.
func TestCacheBound(t *testing.T) {
	var c configCache
	c.reset(true)
	config := &tenantConfig{answer: make([]byte, 1<<20)}
	for i := range 3 * maxCachedBytes >> 20 {
		one := &tenant{id: fmt.Sprint(i), config: config}
		c.put(c.load(one.id), one)
		if c.get(one.id) != one || c.bytes > maxCachedBytes {
			t.Fatalf("%d bytes are cached after %d configs", c.bytes, i+1)
		}
	}
	if n := len(c.entries); n != maxCachedBytes>>20 {
		t.Errorf("%d configs of 1 MiB are cached", n)
	}
	c.reset(false)
	if c.load("x") != nil || c.bytes != 0 {
		t.Error("it caches though nobody watches")
	}
}

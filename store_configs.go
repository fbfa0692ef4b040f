package main

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// A config is used for configMaxAge after it was read, so what is served is never older than a second. From
// configRefreshAge on it is read again in the background, so that no request of a tenant in steady use waits for it.
const (
	configMaxAge     = 750 * time.Millisecond
	configRefreshAge = 500 * time.Millisecond

	// While its server cannot be reached, a config may be used for configGraceAge. After a failed read, requests use the
	// cached config for configRetry. The next one then waits up to configPatience for a new read, which leaves it the
	// time to be served.
	configGraceAge = 10 * time.Second
	configRetry    = 500 * time.Millisecond
	configPatience = 400 * time.Millisecond

	configLoadTimeout = 900 * time.Millisecond

	maxCachedBytes = 64 << 20
)

// configCache keeps the configs of tenants. It watches nothing: a config that is due is validated, which is cheap if it
// has not changed, so the rule of freshness holds for every server, whatever happened to the key.
type configCache struct {
	// load reads a tenant. Its results are those of store.Tenant. A tenant is cached even if there is an error beside it.
	load func(deadline time.Time, tenantID string) (*tenant, error)
	// unchanged reports whether the tenant is still what Redis holds.
	unchanged func(deadline time.Time, t *tenant) (bool, error)
	// vanished is called when a tenant that was cached turns out to have no config any more.
	vanished func(t *tenant)

	epoch time.Time      // which times count from: unlike Unix time they are monotonic
	loads sync.WaitGroup // goroutines that read configs

	mu      sync.RWMutex // guards the fields below
	entries map[string]*cacheEntry
	loading map[string]*configLoad
	bytes   int
}

// cacheEntry is a cached tenant. Its times are durations since the cache's epoch.
type cacheEntry struct {
	tenant     *tenant
	err        error        // that load returned beside the tenant, as when its config is broken
	readAt     atomic.Int64 // when the read or validation that confirmed it began
	failedAt   atomic.Int64 // when its server was last found unreachable
	refreshing atomic.Bool
}

// configLoad is one reading of a config, which all that need it wait for.
type configLoad struct {
	done   chan struct{} // closed when tenant and err are set
	tenant *tenant
	err    error
}

// wait waits until the load is done, for timeout at most, and reports whether it is.
func (l *configLoad) wait(timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-l.done:
		return true
	case <-timer.C:
		return false
	}
}

func newConfigCache(load func(time.Time, string) (*tenant, error), unchanged func(time.Time, *tenant) (bool, error),
	vanished func(*tenant)) *configCache {
	return &configCache{
		load: load, unchanged: unchanged, vanished: vanished, epoch: time.Now(),
		entries: make(map[string]*cacheEntry), loading: make(map[string]*configLoad),
	}
}

// close waits for the reads that are under way.
func (c *configCache) close() { c.loads.Wait() }

// since returns how long ago a time is that an entry holds.
func (c *configCache) since(at *atomic.Int64) time.Duration {
	return time.Since(c.epoch) - time.Duration(at.Load())
}

// get returns the tenant, from the cache if it is fresh enough, else after it was read or validated. Its results are
// those of load, or ErrUnavailable if that has not ended by deadline.
func (c *configCache) get(deadline time.Time, tenantID string) (*tenant, error) {
	c.mu.RLock()
	e := c.entries[tenantID]
	c.mu.RUnlock()
	if e != nil {
		age := c.since(&e.readAt)
		use := age < configMaxAge || age < configGraceAge && c.since(&e.failedAt) < configRetry
		if use && age >= configRefreshAge && !e.refreshing.Swap(true) {
			c.start(tenantID)
		}
		if use {
			return e.tenant, e.err
		}
	}
	l := c.start(tenantID)
	if e != nil {
		done := l.wait(min(configPatience, time.Until(deadline)))
		if (!done || errors.Is(l.err, ErrUnavailable)) && c.isUsable(e) {
			return e.tenant, e.err
		}
	}
	if !l.wait(time.Until(deadline)) {
		return nil, fmt.Errorf("%w: the config was not read in time", ErrUnavailable)
	}
	return l.tenant, l.err
}

// isUsable reports whether e may be used while its server cannot be reached: it is not known to have changed.
func (c *configCache) isUsable(e *cacheEntry) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.entries[e.tenant.id] == e && c.since(&e.readAt) < configGraceAge
}

// start begins to read or validate the tenant, unless somebody has begun already.
func (c *configCache) start(tenantID string) *configLoad {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.loading[tenantID]; l != nil {
		return l
	}
	l := &configLoad{done: make(chan struct{})}
	c.loading[tenantID] = l
	e := c.entries[tenantID]
	c.loads.Go(func() {
		began := time.Since(c.epoch)
		l.tenant, l.err = c.read(tenantID, e)
		c.finish(tenantID, l, e, began)
		close(l.done)
		if e != nil && l.err == ErrNoTenant {
			c.vanished(e.tenant)
		}
	})
	return l
}

// read validates e, if there is one, and loads the tenant if that has changed. A panic becomes an error: it must not
// end the process.
func (c *configCache) read(tenantID string, e *cacheEntry) (t *tenant, err error) {
	defer func() {
		if p := recover(); p != nil {
			t, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if e != nil && c.since(&e.readAt) < configGraceAge {
		same, err := c.unchanged(time.Now().Add(configLoadTimeout), e.tenant)
		switch {
		case err != nil:
			return nil, err
		case same:
			return e.tenant, e.err
		}
	}
	if e != nil {
		c.forget(e)
	}
	return c.load(time.Now().Add(configLoadTimeout), tenantID)
}

// lineLimit allows a number of lines in the log in each minute. Its zero value is ready. Its methods may be called
// concurrently.
type lineLimit struct {
	mu    sync.Mutex
	began time.Time // the minute that counts
	lines int       // in it
}

const linesPerMinute = 10

// take counts a line at a time, and returns how many the minute still has, with this one. If it is 0, the line must not
// be written.
func (l *lineLimit) take(now time.Time) (left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.began) >= time.Minute {
		l.began, l.lines = now, 0
	}
	left = linesPerMinute - l.lines
	l.lines = min(l.lines+1, linesPerMinute)
	return left
}

// finish puts the result of a load into the cache, unless invalidate was called meanwhile: then it may be old. e is the
// entry that was validated, nil if there was none.
func (c *configCache) finish(tenantID string, l *configLoad, e *cacheEntry, began time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loading[tenantID] != l {
		return
	}
	delete(c.loading, tenantID)
	if e != nil {
		e.refreshing.Store(false)
	}
	switch {
	case errors.Is(l.err, ErrUnavailable):
		if e != nil {
			e.failedAt.Store(int64(time.Since(c.epoch)))
		}
	case l.tenant == nil:
		c.remove(tenantID)
	case e != nil && l.tenant == e.tenant:
		e.readAt.Store(int64(began))
		e.failedAt.Store(math.MinInt64 / 2)
	default:
		c.put(l.tenant, l.err, began)
	}
}

// forget removes e, which is known to be old.
func (c *configCache) forget(e *cacheEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[e.tenant.id] == e {
		c.remove(e.tenant.id)
	}
}

// put adds a tenant that was read at a time, with the error if its config is broken. The caller holds c.mu.
func (c *configCache) put(t *tenant, err error, readAt time.Duration) {
	c.remove(t.id)
	e := &cacheEntry{tenant: t, err: err}
	e.readAt.Store(int64(readAt))
	e.failedAt.Store(math.MinInt64 / 2) // never
	for other := range c.entries {
		if c.bytes+t.bytes() <= maxCachedBytes {
			break
		}
		c.remove(other)
	}
	c.entries[t.id] = e
	c.bytes += t.bytes()
}

// invalidate forgets tenantID's config, and the result of a load that is under way.
func (c *configCache) invalidate(tenantID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loading, tenantID)
	c.remove(tenantID)
}

// remove forgets tenantID's config. The caller holds c.mu.
func (c *configCache) remove(tenantID string) {
	if e := c.entries[tenantID]; e != nil {
		c.bytes -= e.tenant.bytes()
		delete(c.entries, tenantID)
	}
}

const (
	startCheckTimeout = time.Second // for each step of the look at Redis at start
	startCheckKeys    = 1000        // that are looked at, at least, if there are so many
)

// foreignKeyError says that a key of tollgate holds what tollgate never writes there.
type foreignKeyError struct{ key string }

func (e foreignKeyError) Error() string {
	return fmt.Sprintf("Redis seems to be used by another application: its key %s is not of the type that tollgate "+
		"writes; tollgate needs a Redis, or a database of one, of its own", e.key)
}

// LooksEmpty reports whether Redis has none of tollgate's keys, as far as that can be seen at little cost: the set of
// tenants, which lasts as long as the data does, and the config of seedTenant are missing, and none of about the first
// startCheckKeys keys is tollgate's. The error is a foreignKeyError if one of these two is another application's. If
// Redis does not tell, it does not look empty.
func (s *store) LooksEmpty() (bool, error) {
	for _, look := range [][]any{{"SRANDMEMBER", tenantsRedisKey}, {"GETRANGE", configRedisKey(seedTenant), 0, 0}} {
		command, key := look[0].(string), look[1].(string)
		found, err := redis.String(s.redis.ReadDispensable(time.Now().Add(startCheckTimeout), command, key, look[2:]...))
		switch {
		case isMalformed(err):
			return false, foreignKeyError{key}
		case err != nil && !errors.Is(err, redis.ErrNil) || found != "":
			return false, nil
		}
	}
	errStop := errors.New("enough was seen")
	seen, empty := 0, true
	err := s.redis.Scan("*", startCheckKeys, startCheckTimeout, func(names []string) error {
		for _, name := range names {
			empty = empty && !isOwnName(name)
		}
		if seen += len(names); !empty || seen >= startCheckKeys {
			return errStop
		}
		return nil
	})
	return empty && (err == nil || errors.Is(err, errStop)), nil
}

// isOwnName reports whether a key in Redis has the name of one in which tollgate keeps what must last.
func isOwnName(name string) bool {
	kind, _, _ := strings.Cut(strings.TrimPrefix(name, "{"), ":")
	return kind == "tenant" || kind == "apiKey" || kind == "userKeys" || kind == "signIn"
}

package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A config is used for configMaxAge after it was read, so what is served is never older than a second. From
// configRefreshAge on it is read again in the background, so that no request of a tenant in steady use waits for it.
const (
	configMaxAge     = 750 * time.Millisecond
	configRefreshAge = 500 * time.Millisecond

	// While its server cannot be reached, a config may be used for configGraceAge. A server is taken for unreachable
	// until configRetry after the last attempt; then a request waits for the next attempt.
	configGraceAge = 10 * time.Second
	configRetry    = 500 * time.Millisecond

	configLoadTimeout    = 900 * time.Millisecond
	configRefreshTimeout = 400 * time.Millisecond // leaves a request the time to be served with the cached config

	maxCachedBytes = 64 << 20
)

// configCache keeps the configs of tenants. It watches nothing: a config that is due is validated, which is cheap if it
// has not changed, so the rule of freshness holds for every server, whatever happened to the key.
type configCache struct {
	// load reads a tenant. Its errors are those of store.Tenant.
	load func(deadline time.Time, tenantID string) (*tenant, error)
	// unchanged reports whether the tenant is still what Redis holds.
	unchanged func(deadline time.Time, t *tenant) (bool, error)

	loads sync.WaitGroup // goroutines that read configs

	mu      sync.RWMutex // guards the fields below
	entries map[string]*cacheEntry
	loading map[string]*configLoad
	bytes   int
}

// cacheEntry is a cached tenant. The times are Unix nanoseconds.
type cacheEntry struct {
	tenant      *tenant
	readAt      atomic.Int64 // when the read or validation that confirmed it began
	failedAt    atomic.Int64 // when its server was last found unreachable
	refreshing  atomic.Bool
	configBytes int
}

// configLoad is one reading of a config, which all that need it wait for.
type configLoad struct {
	done   chan struct{} // closed when tenant and err are set
	tenant *tenant
	err    error
}

func newConfigCache(load func(time.Time, string) (*tenant, error),
	unchanged func(time.Time, *tenant) (bool, error)) *configCache {
	return &configCache{
		load: load, unchanged: unchanged,
		entries: make(map[string]*cacheEntry), loading: make(map[string]*configLoad),
	}
}

// close waits for the reads that are under way.
func (c *configCache) close() { c.loads.Wait() }

// get returns the tenant, from the cache if it is fresh enough, else after it was read or validated. Errors are those
// of load, and ErrUnavailable if that has not ended by deadline.
func (c *configCache) get(deadline time.Time, tenantID string) (*tenant, error) {
	c.mu.RLock()
	e := c.entries[tenantID]
	c.mu.RUnlock()
	if e != nil {
		now := time.Now()
		age := now.Sub(time.Unix(0, e.readAt.Load()))
		unreachable := now.Sub(time.Unix(0, e.failedAt.Load())) < configRetry && age < configGraceAge
		if age >= configRefreshAge && (age < configMaxAge || unreachable) && !e.refreshing.Swap(true) {
			c.start(tenantID)
		}
		if age < configMaxAge || unreachable {
			return e.tenant, nil
		}
	}
	l := c.start(tenantID)
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	select {
	case <-l.done:
	case <-timeout.C:
		return nil, fmt.Errorf("%w: the config was not read in time", ErrUnavailable)
	}
	if e != nil && errors.Is(l.err, ErrUnavailable) && time.Since(time.Unix(0, e.readAt.Load())) < configGraceAge {
		return e.tenant, nil
	}
	return l.tenant, l.err
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
		began := time.Now()
		if e != nil {
			l.tenant, l.err = c.refresh(began.Add(configRefreshTimeout), e.tenant)
		} else {
			l.tenant, l.err = c.load(began.Add(configLoadTimeout), tenantID)
		}
		c.finish(tenantID, l, e, began)
		close(l.done)
	})
	return l
}

// refresh returns t if it is unchanged, else what it is now.
func (c *configCache) refresh(deadline time.Time, t *tenant) (*tenant, error) {
	same, err := c.unchanged(deadline, t)
	if same || err != nil {
		return t, err
	}
	return c.load(deadline, t.id)
}

// finish puts the result of a load into the cache, unless drop was called meanwhile: then it may be old. e is the entry
// that was refreshed, nil if there was none.
func (c *configCache) finish(tenantID string, l *configLoad, e *cacheEntry, began time.Time) {
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
	case e != nil && errors.Is(l.err, ErrUnavailable):
		e.failedAt.Store(time.Now().UnixNano())
	case l.err != nil:
		c.remove(tenantID)
	case e != nil && l.tenant == e.tenant:
		e.readAt.Store(began.UnixNano())
		e.failedAt.Store(0)
	default:
		c.put(l.tenant, began)
	}
}

// put adds a tenant that was read at a time. The caller holds c.mu.
func (c *configCache) put(t *tenant, readAt time.Time) {
	c.remove(t.id)
	e := &cacheEntry{tenant: t, configBytes: t.config.bytes()}
	e.readAt.Store(readAt.UnixNano())
	for other := range c.entries {
		if c.bytes+e.configBytes <= maxCachedBytes {
			break
		}
		c.remove(other)
	}
	c.entries[t.id] = e
	c.bytes += e.configBytes
}

// drop forgets tenantID's config, and the result of a load that is under way.
func (c *configCache) drop(tenantID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loading, tenantID)
	c.remove(tenantID)
}

// remove forgets tenantID's config. The caller holds c.mu.
func (c *configCache) remove(tenantID string) {
	if e := c.entries[tenantID]; e != nil {
		c.bytes -= e.configBytes
		delete(c.entries, tenantID)
	}
}

package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	configPrefix = "tenant:"
	configSuffix = ":config"

	// While it listens, Redis is asked for a sign of life every watchInterval. Without one for watchTimeout nothing is
	// cached any more, so what is served is never older than that.
	watchInterval = 250 * time.Millisecond
	watchTimeout  = 750 * time.Millisecond
	watchRetry    = 100 * time.Millisecond // from the loss of the connection to the next
	refusedRetry  = time.Minute            // the same where Redis has refused, as it will again

	maxCachedBytes = 64 << 20
	maxCachedTime  = time.Minute // a change that Redis does not tell (SWAPDB) is seen after so long
)

// configCache holds tenants' configs for as long as Redis promises to say when one changes
// (https://redis.io/docs/latest/develop/reference/client-side-caching/, broadcasting mode). As soon as that promise is
// broken it is empty, and stays so until there is a new one.
type configCache struct {
	mu       sync.RWMutex
	watching bool
	entries  map[string]*cacheEntry
	bytes    int
}

// cacheEntry is a config, or a place for one that is being loaded. A change in Redis takes it out of the cache: what
// is loaded into it afterwards may be old, and nobody finds it.
type cacheEntry struct{ tenant *tenant }

// get returns the tenant, nil where it is not cached.
func (c *configCache) get(tenantID string) *tenant {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e := c.entries[tenantID]; e != nil {
		return e.tenant
	}
	return nil
}

// load makes a place for tenantID's config, to be filled with put or given up with drop. It must be called before
// Redis is asked for the config.
func (c *configCache) load(tenantID string) *cacheEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.watching {
		return nil
	}
	if e := c.entries[tenantID]; e != nil {
		return e
	}
	e := new(cacheEntry)
	c.entries[tenantID] = e
	return e
}

// put fills the place that load made, if no change has come between.
func (c *configCache) put(place *cacheEntry, t *tenant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if place == nil || c.entries[t.id] != place || place.tenant != nil {
		return
	}
	for other, e := range c.entries {
		if c.bytes+t.config.bytes() <= maxCachedBytes {
			break
		}
		if e.tenant != nil {
			c.remove(other)
		}
	}
	place.tenant = t
	c.bytes += t.config.bytes()
}

// drop forgets tenantID's config, also one that is being loaded.
func (c *configCache) drop(tenantID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(tenantID)
}

func (c *configCache) remove(tenantID string) {
	if e := c.entries[tenantID]; e != nil {
		if e.tenant != nil {
			c.bytes -= e.tenant.config.bytes()
		}
		delete(c.entries, tenantID)
	}
}

// reset forgets everything. From then on configs are cached only if Redis says when they change.
func (c *configCache) reset(watching bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watching, c.entries, c.bytes = watching, make(map[string]*cacheEntry), 0
}

// watch keeps the cache true until ctx is done. It closes tried once it has asked Redis for the first time: where Redis
// refuses, which is logged, nothing is cached and each request asks for its config.
func (s *store) watch(ctx context.Context, redisURL *redisURL, tried chan<- struct{}) {
	var once sync.Once
	retry := time.NewTimer(0)
	defer retry.Stop()
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
		err := s.watchOnce(ctx, redisURL, func() { once.Do(func() { close(tried) }) })
		s.configs.reset(false)
		wait := watchRetry
		reply, answered := errors.AsType[redis.Error](err)
		if answered && (strings.HasPrefix(string(reply), "NOPERM") || !unavailable(reply)) {
			wait = refusedRetry
			if !warned {
				warned = true
				s.log.warnf("Redis refuses to say when configs change, so each request loads its own: %v", err)
			}
		}
		once.Do(func() { close(tried) })
		retry.Reset(wait)
	}
}

// watchOnce listens on a connection of its own for what changes, and calls ready when it does. It returns what ended it.
func (s *store) watchOnce(ctx context.Context, redisURL *redisURL, ready func()) error {
	dial, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	c, err := redisURL.dial(dial, watchTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	// RESP2 has no push messages, so the connection redirects them to itself, where they come as messages of a channel.
	id, err := redis.Int64(c.Do("CLIENT", "ID"))
	if err != nil {
		return err
	}
	if _, err := c.Do("CLIENT", "TRACKING", "ON", "REDIRECT", id, "BCAST", "PREFIX", configPrefix); err != nil {
		return err
	}
	if _, err := c.Do("SUBSCRIBE", "__redis__:invalidate"); err != nil {
		return err
	}
	s.configs.reset(true)
	ready()

	// One goroutine sends and this one receives, which redigo allows.
	ended := make(chan struct{})
	var pings sync.WaitGroup
	pings.Go(func() {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if s.faulty.Load() { // it may be over, though nobody asks for anything
					_ = s.Ready()
				}
				if c.Send("PING") != nil || c.Flush() != nil {
					return
				}
			case <-s.demoted: // this Redis may tell nothing of what is written to the new master
				c.Close()
				return
			case <-ctx.Done():
				c.Close() // ends Receive
				return
			case <-ended:
				return
			}
		}
	})
	defer pings.Wait()
	defer close(ended)
	for began := time.Now(); ; {
		message, err := redis.Values(redis.ReceiveWithTimeout(c, watchTimeout))
		if err != nil {
			return err
		}
		if time.Since(began) > maxCachedTime {
			began = time.Now()
			s.configs.reset(true)
		}
		if len(message) < 3 {
			continue // the answer to a PING
		}
		keys, ok := message[2].([]any)
		if !ok { // FLUSHALL, FLUSHDB
			s.configs.reset(true)
			continue
		}
		for _, key := range keys {
			if name, ok := key.([]byte); ok {
				id, _ := strings.CutPrefix(string(name), configPrefix)
				if id, ok := strings.CutSuffix(id, configSuffix); ok {
					s.configs.drop(id)
				}
			}
		}
	}
}

package main

import (
	"errors"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
)

const fullLogPause = 10 * time.Minute // between two lines in the log

// ResponseHead returns the first n bytes of a cached response. They are empty if nothing is cached. An error says only
// that they are not known.
func (s *store) ResponseHead(deadline time.Time, redisKey string, n int) ([]byte, error) {
	return redis.Bytes(s.redis.ReadDispensable(deadline, "GETRANGE", redisKey, 0, n-1))
}

// Response returns a cached response. An error says only that nothing is cached, or that it is not known.
func (s *store) Response(deadline time.Time, redisKey string) ([]byte, error) {
	return redis.Bytes(s.redis.ReadDispensable(deadline, "GET", redisKey))
}

// StoreResponse caches a response for ttl, if Redis has memory to spare. Errors: redisdb.ErrFull if it has not;
// ErrUnavailable.
func (s *store) StoreResponse(deadline time.Time, redisKey string, value []byte, ttl time.Duration) error {
	return s.redis.WriteIfRoom(deadline, len(value), "SET", redisKey, value, "EX", int64(ttl/time.Second))
}

// A tenantCache is the gateway.Cache of a tenant.
type tenantCache struct {
	server   *server
	tenantID string
}

// Head implements gateway.Cache.
func (c tenantCache) Head(deadline time.Time, key []byte, n int) ([]byte, error) {
	return c.server.store.ResponseHead(deadline, responseRedisKey(c.tenantID, key), n)
}

// Get implements gateway.Cache.
func (c tenantCache) Get(deadline time.Time, key []byte) ([]byte, error) {
	return c.server.store.Response(deadline, responseRedisKey(c.tenantID, key))
}

// Put implements gateway.Cache.
func (c tenantCache) Put(deadline time.Time, key, value []byte, ttl time.Duration) error {
	err := c.server.store.StoreResponse(deadline, responseRedisKey(c.tenantID, key), value, ttl)
	if errors.Is(err, redisdb.ErrFull) {
		c.server.logFull()
	}
	return err
}

// Count implements gateway.Cache.
func (c tenantCache) Count(result gateway.CacheResult) {
	c.server.metrics.cacheUsed(c.tenantID, result)
}

// logFull logs that responses are not cached, but not each time.
func (s *server) logFull() {
	last, now := s.loggedFull.Load(), time.Now().UnixNano()
	if now-last > int64(fullLogPause) && s.loggedFull.CompareAndSwap(last, now) {
		s.log.Warnf("Redis uses more than three quarters of its memory: responses are not cached")
	}
}

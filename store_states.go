package main

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
)

const (
	maxStates    = 2000 // IDs that are remembered for one owner
	noGeneration = "-"  // in what Redis has of a state

	keepPause = 25 * time.Millisecond // before a step that has failed is repeated the first time; then twice as long
)

// statesRedisKeys returns where the IDs are that endpoints of a tenant keep for an owner, and their order.
func statesRedisKeys(tenantID, owner string) []string {
	hash := "{responses:" + tenantID + ":" + owner + "}"
	return []string{hash, hash + ":order"}
}

// Owner returns whose the responses are that t's API key has made: those of the key's user or, without one, of the name
// that the key which has its balance had first. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Owner(deadline time.Time, t *tenant, key string) (string, error) {
	fields, err := redis.Strings(s.redis.Read(deadline, "HMGET", apiKeyRedisKey(key),
		"tenantId", "generation", "userId", "sharesFirst", "first"))
	switch {
	case err != nil:
		return "", withTenant(err, "read the owner of an API key", t)
	case len(fields) != 5 || fields[0] != t.id || fields[1] != t.generation:
		return "", ErrNoKey
	}
	return ownerName(fields[2], cmp.Or(fields[3], fields[4], key)), nil
}

// ownerName returns whose the responses are that an API key of a user has made, or one without a user, whose user ID is
// "".
func ownerName(userID, firstKey string) string {
	if userID != "" {
		return "u:" + userID
	}
	return "k:" + firstKey
}

// States returns what is known of each of the IDs, all of which must be the owner's, in one atomic step. Errors:
// gateway.ErrNotKept, ErrUnavailable.
func (s *store) States(deadline time.Time, t *tenant, owner string, ids []string) ([]gateway.State, error) {
	fields := make([]any, len(ids))
	for i, id := range ids {
		fields[i] = id
	}
	values, err := redis.Strings(s.redis.Read(deadline, "HMGET", statesRedisKeys(t.id, owner)[0], fields...))
	if err != nil {
		return nil, withTenant(err, "read who owns a response", t)
	}
	states := make([]gateway.State, 0, len(ids))
	for i, value := range values {
		state, ok := parseState(t, ids[i], value)
		if !ok {
			return nil, gateway.ErrNotKept
		}
		states = append(states, state)
	}
	return states, nil
}

// KeepStates remembers states for an owner, until ttl after it remembers the last one for that owner. It forgets the
// oldest beyond maxStates. As long as Redis is unavailable it is asked again, which does no harm, until the deadline.
// Errors: redisdb.ErrFull if Redis has no memory to spare; ErrUnavailable.
func (s *store) KeepStates(deadline time.Time, t *tenant, owner string, states []gateway.State,
	ttl time.Duration) error {
	now, size := time.Now(), 0
	args := []any{ttl.Milliseconds(), maxStates}
	for _, state := range states[:min(len(states), maxStates)] {
		value := formatState(t, state, now)
		args = append(args, state.ID, value)
		size += 3*len(state.ID) + len(value)
	}
	for pause := keepPause; ; pause *= 2 {
		err := s.redis.EvalIfRoom(deadline, size, keepScript, statesRedisKeys(t.id, owner), args...)
		if !errors.Is(err, ErrUnavailable) || time.Until(deadline) < pause {
			return err
		}
		time.Sleep(pause)
	}
}

// ForgetState forgets an ID of an owner. Error: ErrUnavailable.
func (s *store) ForgetState(deadline time.Time, t *tenant, owner, id string) error {
	_, err := s.redis.EvalDispensable(deadline, forgetScript, statesRedisKeys(t.id, owner), id)
	return withTenant(err, "forget a response", t)
}

// formatState returns what Redis has of a state: the tenant's generation, the digest of the endpoint, input and output
// tokens, the time, and the ID of the response.
func formatState(t *tenant, state gateway.State, now time.Time) string {
	return fmt.Sprintf("%s %s %d %d %d %s", cmp.Or(t.generation, noGeneration), state.Endpoint, state.Input, state.Output,
		now.UnixMilli(), state.Response)
}

// parseState returns the state of that ID. ok is false if it is malformed, or not one of the tenant's generation.
func parseState(t *tenant, id, value string) (state gateway.State, ok bool) {
	fields := strings.SplitN(value, " ", 6)
	if len(fields) != 6 || fields[0] != cmp.Or(t.generation, noGeneration) {
		return state, false
	}
	input, inputErr := strconv.ParseInt(fields[2], 10, 64)
	output, outputErr := strconv.ParseInt(fields[3], 10, 64)
	ok = inputErr == nil && outputErr == nil && 0 <= input && input <= maxAmount && 0 <= output && output <= maxAmount
	return gateway.State{ID: id, Response: fields[5], Endpoint: fields[1], Input: input, Output: output}, ok
}

// tenantStates is the gateway.States of an API key of a tenant.
type tenantStates struct {
	server *server
	tenant *tenant
	key    string
}

// Find implements gateway.States.
func (s tenantStates) Find(deadline time.Time, ids []string) (owner string, _ []gateway.State, err error) {
	owner, err = s.server.store.Owner(deadline, s.tenant, s.key)
	if err != nil {
		return "", nil, err
	}
	states, err := s.server.store.States(deadline, s.tenant, owner, ids)
	return owner, states, err
}

// Keep implements gateway.States.
func (s tenantStates) Keep(deadline time.Time, owner string, states []gateway.State, ttl time.Duration) {
	err := s.server.store.KeepStates(deadline, s.tenant, owner, states, ttl)
	switch {
	case errors.Is(err, redisdb.ErrFull):
		s.server.logFull()
	case err != nil:
		s.server.log.Warnf("A response of tenant %s can be neither continued nor fetched: %v", s.tenant.id, err)
	}
}

// Forget implements gateway.States.
func (s tenantStates) Forget(deadline time.Time, owner, id string) {
	if err := s.server.store.ForgetState(deadline, s.tenant, owner, id); err != nil {
		s.server.log.Warnf("A response of tenant %s that was deleted is still remembered: %v", s.tenant.id, err)
	}
}

const fullLogPause = 10 * time.Minute // between two lines in the log

// ResponseHead returns the first n bytes of a cached response. They are empty if nothing is cached. An error says only
// that they are not known.
func (s *store) ResponseHead(deadline time.Time, redisKey string, n int) ([]byte, error) {
	return redis.Bytes(s.redis.ReadSmall(deadline, "GETRANGE", redisKey, 0, n-1))
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

// logFull logs that responses are neither cached nor remembered, but not each time.
func (s *server) logFull() {
	last, now := s.loggedFull.Load(), time.Now().UnixNano()
	if now-last > int64(fullLogPause) && s.loggedFull.CompareAndSwap(last, now) {
		s.log.Warnf("Redis uses more than three quarters of its memory: responses are neither cached nor remembered " +
			"for their owners")
	}
}

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
// that the key had first. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Owner(deadline time.Time, t *tenant, key string) (string, error) {
	fields, err := redis.Strings(s.redis.Read(deadline, "HMGET", apiKeyRedisKey(key),
		"tenantId", "generation", "userId", "first"))
	switch {
	case err != nil:
		return "", withTenant(err, "read the owner of an API key", t)
	case len(fields) != 4 || fields[0] != t.id || fields[1] != t.generation:
		return "", ErrNoKey
	case fields[3] == "":
		fields[3] = key
	}
	return ownerName(fields[2], fields[3]), nil
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

package main

import (
	"errors"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	holdPrefix = "hold_" // of the IDs of holds

	holdRecordTTL = 24 * time.Hour // how long the outcome of a hold is remembered
)

// holdRequest is what to hold.
type holdRequest struct {
	key   string
	id    string // a valid hold ID that no other hold has
	most  int64  // tokens to hold, 1 … maxAmount
	least int64  // if the balance is between the two, all of it is held
	ttl   time.Duration

	idempotent idempotentRequest
}

// holdResult is what a hold led to.
type holdResult struct {
	decision
	id        string
	held      int64
	expiresAt time.Time
}

// Hold takes tokens out of the balance of t's API key, within the rate limit of the key's group, and holds them until
// they are settled or h.ttl has passed, all in one atomic step. Errors: ErrNoKey; rateLimitError and
// insufficientTokensError, with a result, ErrKeyDisabled, ErrGroupDisabled and ErrKeyReused if nothing was held;
// ErrUnavailable if Redis may or may not have held them.
func (s *store) Hold(deadline time.Time, t *tenant, h holdRequest) (result holdResult, err error) {
	outcome, err := s.withGroups(deadline, &t.config.encoded, h.key, anonymousGroup,
		func(groups any, _ string) (outcome, group string, err error) {
			outcome, result, err = s.holdOnce(deadline, t, h, groups)
			return outcome, result.group, err
		})
	if err == nil {
		err = result.err(outcome)
	}
	return result, withTenant(err, "hold tokens of an API key", t)
}

// holdOnce runs hold.lua.
func (s *store) holdOnce(deadline time.Time, t *tenant, h holdRequest, groups any) (string, holdResult, error) {
	keys := []string{apiKeyRedisKey(h.key), rateRedisKey(h.key), holdsRedisKey(h.key)}
	args := []any{t.id, t.generation, h.most, h.least, h.id, h.ttl.Milliseconds(), groups}
	if h.idempotent.key != "" {
		keys = append(keys, recordRedisKey(h.key, "hold", h.idempotent.key))
		args = append(args, h.idempotent.hash)
	}
	reply, err := redis.String(s.redis.Eval(deadline, holdScript, keys, args...))
	if err != nil {
		return "", holdResult{}, err
	}
	head, rest, _ := strings.Cut(reply, "\n")
	id, identity, _ := strings.Cut(rest, "\n")
	outcome, numbers, d, err := parseDecision(head, identity, 3)
	return outcome, holdResult{decision: d, id: id, held: numbers[0], expiresAt: time.UnixMilli(numbers[2])}, err
}

// settlement is what settling a hold led to.
type settlement struct {
	charged    int64
	tokensLeft int64
	group      string // of the key
	replayed   bool   // it was settled before; the numbers are those of the first time
}

// Settle ends a hold of t's API key with a charge of the tokens used, 0 … maxAmount, in one atomic step: what was held
// beyond them goes back to the balance, what is missing is taken from it, down to 0. The outcome is remembered for
// holdRecordTTL, so that it may be repeated. Errors: ErrNoKey; ErrNoHold; ErrHoldSettled if it was settled with another
// number; ErrUnavailable if it may or may not have been settled.
func (s *store) Settle(deadline time.Time, t *tenant, key, holdID string, used int64) (settlement, error) {
	keys := []string{apiKeyRedisKey(key), settledRedisKey(key, holdID), holdsRedisKey(key)}
	reply, err := redis.Values(s.redis.Eval(deadline, settleScript, keys,
		t.id, t.generation, holdID, used, int64(holdRecordTTL/time.Second)))
	var outcome string
	var result settlement
	if err == nil {
		if _, err = redis.Scan(reply, &outcome, &result.charged, &result.tokensLeft, &result.group); err != nil {
			err = errBadReply
		}
	}
	if err != nil {
		return settlement{}, withTenant(err, "settle a hold of an API key", t)
	}
	switch outcome {
	case "replayed":
		result.replayed = true
	case "mismatch":
		return settlement{}, ErrHoldSettled
	case "unknown":
		return settlement{}, ErrNoHold
	}
	return result, nil
}

// SettleRotated ends a hold as Settle does, also if the key was rotated since: then the hold is that of the new key. It
// is for those who have read the key before.
func (s *store) SettleRotated(deadline time.Time, t *tenant, key, holdID string, used int64) (settlement, error) {
	for {
		result, err := s.Settle(deadline, t, key, holdID, used)
		if !errors.Is(err, ErrNoKey) {
			return result, err
		}
		successor, err := s.successor(deadline, key)
		if err != nil {
			return result, withTenant(err, "settle a hold of an API key", t)
		}
		if !validAPIKey(successor) {
			return result, ErrNoKey
		}
		key = successor
	}
}

// validHoldID reports whether id has the form of a hold's ID.
func validHoldID(id string) bool { return validCredential(id, holdPrefix) }

// releaseHolds returns the tokens of key's expired holds to its balance.
func (s *store) releaseHolds(deadline time.Time, key string) error {
	_, err := s.redis.Eval(deadline, releaseScript, []string{apiKeyRedisKey(key), holdsRedisKey(key)})
	return err
}

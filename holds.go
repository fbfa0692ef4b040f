package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

var (
	// ErrNoHold means that the API key has no such open hold: it is unknown or has expired.
	ErrNoHold = errors.New("no such hold")
	// ErrHoldSettled means that a hold was settled before, with another amount.
	ErrHoldSettled = errors.New("hold was settled with another amount")
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
	id           string
	held         int64
	tokensLeft   int64
	expiresAt    time.Time
	replayed     bool // the Idempotency-Key was known: nothing was held now, and the rest is that of the first time
	group        string
	userID       string // "" is an anonymous user
	hasRateLimit bool
	rate         rateLimitState // if hasRateLimit
}

// Hold takes tokens out of the balance of t's API key, within the rate limit of the key's group, and holds them until
// they are settled or h.ttl has passed, all in one atomic step. Errors: ErrNoKey; rateLimitError and
// insufficientTokensError, with a result, ErrKeyDisabled, ErrGroupDisabled and ErrKeyReused if nothing was held;
// ErrUnavailable if Redis may or may not have held them.
func (s *store) Hold(deadline time.Time, t *tenant, h holdRequest) (holdResult, error) {
	group := anonymousGroup
	for {
		outcome, result, err := s.holdOnce(deadline, t, h, group)
		if err == nil && outcome == "group" { // as in Charge
			group = result.group
			continue
		}
		if err == nil {
			result.replayed = outcome == "replayed"
			err = outcomeError(outcome, result.tokensLeft, result.rate)
		}
		return result, withTenant(err, "hold tokens of an API key", t)
	}
}

// holdOnce runs hold.lua with all groups of the tenant or, if they are too large, with that of the name group.
func (s *store) holdOnce(deadline time.Time, t *tenant, h holdRequest, group string) (string, holdResult, error) {
	groups, onlyOne := t.config.encoded.sent(group)
	if !onlyOne {
		group = ""
	}
	keys := []string{apiKeyRedisKey(h.key), rateRedisKey(h.key), holdsRedisKey(h.key)}
	args := []any{t.id, t.generation, h.most, h.least, h.id, h.ttl.Milliseconds(), groups, group}
	if h.idempotent.key != "" {
		keys = append(keys, recordRedisKey(h.key, "hold", h.idempotent.key))
		args = append(args, h.idempotent.digest)
	}
	reply, err := redis.String(s.redis.Eval(deadline, holdScript, keys, args...))
	if err != nil {
		return "", holdResult{}, err
	}
	return parseHoldReply(reply)
}

// parseHoldReply parses the reply of hold.lua.
func parseHoldReply(reply string) (outcome string, result holdResult, err error) {
	head, rest, _ := strings.Cut(reply, "\n")
	result.id, rest, _ = strings.Cut(rest, "\n")
	result.userID, result.group, _ = strings.Cut(rest, "\n")
	var numbers [7]int64
	outcome, n, err := parseOutcome(head, numbers[:])
	if err != nil || n != 3 && n != 7 {
		return outcome, result, errBadReply
	}
	result.held, result.tokensLeft, result.expiresAt = numbers[0], numbers[1], time.UnixMilli(numbers[2])
	result.hasRateLimit = n == 7
	result.rate = parseRateLimitState(numbers[3:])
	return outcome, result, nil
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
	keys := []string{apiKeyRedisKey(key), "{apiKey:" + key + "}:settled:" + holdID, holdsRedisKey(key)}
	reply, err := redis.Values(s.redis.Eval(deadline, settleScript, keys,
		t.id, t.generation, holdID, used, int64(holdRecordTTL/time.Second)))
	if errors.Is(err, redis.ErrNil) {
		return settlement{}, ErrNoKey
	}
	var outcome string
	var result settlement
	if err == nil {
		if _, err = redis.Scan(reply, &outcome, &result.charged, &result.tokensLeft, &result.group); err != nil {
			err = errBadReply
		}
	}
	if err != nil {
		return settlement{}, fmt.Errorf("settle a hold of an API key of tenant %s: %w", t.id, err)
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
			return result, fmt.Errorf("settle a hold of an API key of tenant %s: %w", t.id, err)
		}
		if !validAPIKey(successor) {
			return result, ErrNoKey
		}
		key = successor
	}
}

// validHoldID reports whether id has the form of a hold's ID.
func validHoldID(id string) bool { return validCredential(id, holdPrefix) }

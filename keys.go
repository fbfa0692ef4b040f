package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/redisdb"

	"github.com/gomodule/redigo/redis"
)

// apiKey is what Redis holds of an API key.
type apiKey struct {
	userID     string // "" is an anonymous user
	group      string
	createdAt  time.Time
	expiresAt  time.Time // zero: never
	tokensLeft int64
	refillsAt  time.Time // zero: never
	disabled   bool
}

// NewKey stores an API key of t, with an expiry if ttl is not 0. k.expiresAt is not used. Error: ErrUnavailable.
func (s *store) NewKey(deadline time.Time, t *tenant, key string, k apiKey, ttl time.Duration) error {
	if err := s.indexKey(deadline, t.id, k.userID, key); err != nil {
		return fmt.Errorf("index an API key of tenant %s: %w", t.id, err)
	}
	_, err := s.issueKey(deadline, t, []string{apiKeyRedisKey(key)}, issueArgs(t, k, ttl, 0, "", ""))
	if err == nil {
		_ = s.indexKey(deadline, t.id, k.userID, key) // whoever listed the keys meanwhile has removed it
	}
	return err
}

// indexKey adds a key to the index of its user. It is called before the key is created: an index may name a key that
// does not exist, but a key that it does not name is not found.
func (s *store) indexKey(deadline time.Time, tenantID, userID, key string) error {
	if userID == "" {
		return nil
	}
	_, err := s.redis.Write(deadline, "SADD", userKeysRedisKey(tenantID, userID), key)
	return err
}

// unindexKey removes a key that does not exist from the index of its user.
func (s *store) unindexKey(deadline time.Time, tenantID, userID, key string) error {
	if userID == "" {
		return nil
	}
	_, err := s.redis.Write(deadline, "SREM", userKeysRedisKey(tenantID, userID), key)
	return err
}

// Login stores an API key as NewKey does, unless address has had perMinute logins in the last minute, over all
// processes. Check and write are one atomic step, except in a cluster. Errors: rateLimitError, ErrUnavailable.
func (s *store) Login(deadline time.Time, t *tenant, key string, k apiKey, ttl time.Duration, address string,
	perMinute int64) error {
	logins := loginRedisKey(address)
	var reply any
	var err error
	if s.redis.OneSlot() {
		reply, err = s.issueKey(deadline, t, []string{apiKeyRedisKey(key), logins}, issueArgs(t, k, ttl, perMinute, "", ""))
	} else {
		// The two keys have different slots. A crash between the steps uses up one login of the address, without a key.
		reply, err = s.issueKey(deadline, t, []string{logins}, []any{0, perMinute})
		if wait, _ := reply.(int64); err == nil && wait == 0 {
			return s.NewKey(deadline, t, key, k, ttl)
		}
	}
	if wait, _ := reply.(int64); err == nil && wait > 0 {
		return rateLimitError{wait}
	}
	return err
}

// idempotentRequest identifies a request that must take effect once.
type idempotentRequest struct {
	key    string // the Idempotency-Key; "" if the request has no such header
	digest string // of what the request asks for
}

// NewKeyOnce stores a new API key as NewKey does, unless the same request has stored one in the last 24 h. It returns
// the key that is stored, its balance when it was, and whether the request was repeated. Check and write are one atomic
// step. Errors: ErrKeyReused if another request had the same Idempotency-Key; ErrUnavailable.
func (s *store) NewKeyOnce(deadline time.Time, t *tenant, k apiKey, ttl time.Duration,
	request idempotentRequest) (stored string, tokensLeft int64, replayed bool, err error) {
	record := issueRecordRedisKey(t, request.key)
	key, err := s.newKeyInSlotOf(record)
	if err == nil {
		err = s.indexKey(deadline, t.id, k.userID, key)
	}
	if err != nil {
		return "", 0, false, fmt.Errorf("index an API key of tenant %s: %w", t.id, err)
	}
	keys := []string{apiKeyRedisKey(key), record}
	reply, err := s.issueKey(deadline, t, keys, issueArgs(t, k, ttl, 0, request.digest, key))
	if err != nil {
		return "", 0, false, err
	}
	_ = s.indexKey(deadline, t.id, k.userID, key) // whoever listed the keys meanwhile has removed it
	switch before := reply.(type) {
	case int64:
		return key, k.tokensLeft, false, nil
	case []byte:
		return "", 0, false, ErrKeyReused
	case []any:
		if _, err = redis.Scan(before, &stored, &tokensLeft); err == nil {
			return stored, tokensLeft, true, nil
		}
	}
	return "", 0, false, fmt.Errorf("store an API key of tenant %s: %w", t.id, errBadReply)
}

// newKeyInSlotOf returns a new API key that one script can write beside a key in Redis. In a cluster it generates keys
// until one is in that key's slot: 16,384 on average, which takes a few milliseconds.
func (s *store) newKeyInSlotOf(redisKey string) (string, error) {
	for {
		key, err := newCredential(userKeyPrefix)
		if err != nil || s.redis.SameSlot(apiKeyRedisKey(key), redisKey) {
			return key, err
		}
	}
}

// issueArgs returns the arguments of issue.lua.
func issueArgs(t *tenant, k apiKey, ttl time.Duration, perMinute int64, requestDigest, key string) []any {
	args := []any{
		ttl.Milliseconds(), perMinute, requestDigest, t.id, t.generation, k.group, formatTime(k.createdAt),
		k.tokensLeft, key,
	}
	if k.userID != "" {
		args = append(args, k.userID)
	}
	return args
}

// issueKey returns the reply of issue.lua.
func (s *store) issueKey(deadline time.Time, t *tenant, keys []string, args []any) (any, error) {
	reply, err := s.redis.Eval(deadline, issueScript, keys, args...)
	if err != nil {
		return nil, fmt.Errorf("store an API key of tenant %s: %w", t.id, err)
	}
	return reply, nil
}

// Key returns t's API key. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Key(deadline time.Time, t *tenant, key string) (apiKey, error) {
	k, _, err := s.UpdateKey(deadline, t, key, keyChange{}, idempotentRequest{})
	return k, err
}

// keyChange is a change of an API key; nil changes nothing. At most one of addTokens and setTokens may be set.
type keyChange struct {
	group     *string
	addTokens *int64 // from -maxAmount to maxAmount
	setTokens *int64 // from 0 to maxAmount
	enabled   *bool
	ttl       *time.Duration // until the key expires; 0: it never does
}

// UpdateKey changes t's API key in one atomic step and returns it as it is then. With an Idempotency-Key it does so
// once in 24 h; if the request is repeated, it returns the key as it was after the first time, and true. Errors:
// ErrNoKey; ErrBalanceRange and ErrKeyReused if nothing was changed; ErrUnavailable.
func (s *store) UpdateKey(deadline time.Time, t *tenant, key string, change keyChange,
	request idempotentRequest) (k apiKey, replayed bool, err error) {
	group := anonymousGroup
	if change.group != nil {
		group = *change.group
	}
	for {
		script, keys, args := change.call(t, key, request, group)
		reply, err := s.redis.Eval(deadline, script, keys, args...)
		refusal, _ := reply.([]byte)
		other, moved := strings.CutPrefix(string(refusal), "group\n")
		switch {
		case err != nil:
		case reply == nil:
			return apiKey{}, false, ErrNoKey
		case moved: // try again with what the config says of that group, as Charge does
			group = other
			continue
		case string(refusal) == "due":
			if err = s.releaseHolds(deadline, key); err == nil {
				continue
			}
		case string(refusal) == "mismatch":
			return apiKey{}, false, ErrKeyReused
		case refusal != nil:
			return apiKey{}, false, ErrBalanceRange
		default:
			k, replayed, err = parseAPIKey(t, reply)
		}
		if err != nil {
			return apiKey{}, false, fmt.Errorf("read an API key of tenant %s: %w", t.id, err)
		}
		return k, replayed, nil
	}
}

// call returns key.lua with its keys and arguments: in the form that runs in a full Redis if that needs no memory. If
// the tenant's groups are too large, they are only that of the name refilled.
func (change keyChange) call(t *tenant, key string, request idempotentRequest, refilled string) (
	*redisdb.Script, []string, []any,
) {
	script, keys := keyScript, []string{apiKeyRedisKey(key)}
	balance, tokens, group := "", int64(0), ""
	switch {
	case change.addTokens != nil:
		balance, tokens = "add", *change.addTokens
	case change.setTokens != nil:
		balance, tokens = "set", *change.setTokens
	}
	if change.group != nil {
		script, group = growingKeyScript, *change.group
	}
	enabled, ttl := "", ""
	if change.enabled != nil {
		enabled = "0"
		if *change.enabled {
			enabled = "1"
		}
	}
	if request.key != "" {
		script = growingKeyScript
		keys = append(keys, recordRedisKey(key, "update", request.key))
	}
	if change.ttl != nil {
		ttl = strconv.FormatInt(change.ttl.Milliseconds(), 10)
		keys = append(keys, holdsRedisKey(key))
	}
	groups, only := "", ""
	if t.config != nil && t.config.encoded.refilled {
		var onlyOne bool
		if groups, onlyOne = t.config.encoded.sent(refilled); onlyOne {
			only = refilled
		}
	}
	return script, keys, []any{t.id, t.generation, balance, tokens, group, request.digest, enabled, ttl, groups, only}
}

// parseAPIKey parses the reply of key.lua.
func parseAPIKey(t *tenant, reply any) (k apiKey, replayed bool, err error) {
	var createdAt, enabled, refilledAt string
	var expiresAt int64
	values, err := redis.Values(reply, nil)
	if err == nil {
		_, err = redis.Scan(values, &k.userID, &k.group, &createdAt, &k.tokensLeft, &expiresAt, &enabled, &refilledAt)
	}
	k.disabled = enabled == "0"
	if err == nil {
		k.createdAt, err = time.Parse(time.RFC3339, createdAt)
	}
	if err != nil {
		return k, false, errBadReply // err itself may quote a value
	}
	if expiresAt >= 0 {
		k.expiresAt = time.UnixMilli(expiresAt)
	}
	if t.config != nil {
		if refill := t.config.groups[k.group].refill; refill != nil {
			last, _ := strconv.ParseInt(refilledAt, 10, 64) // 0 if it never was
			k.refillsAt = refill.next(k.createdAt, time.UnixMilli(last))
		}
	}
	return k, len(values) > 7, nil
}

// chargeRequest is what to charge.
type chargeRequest struct {
	key            string
	tokens         int64  // 0 … maxAmount; 0 takes nothing, but needs a balance of 1
	upTo           bool   // if fewer tokens are left, take those; then tokens is at least 1
	idempotencyKey string // "" if the charge has none
	requestID      string // of a forward-auth check, which is remembered for verifyRecordTTL; "" if it has none
}

// chargeResult is what a charge led to.
type chargeResult struct {
	charged      int64
	tokensLeft   int64
	replayed     bool // the Idempotency-Key was known: nothing was taken now, and the numbers are those of the first time
	group        string
	userID       string // "" is an anonymous user
	hasRateLimit bool
	rate         rateLimitState // if hasRateLimit
}

// rateLimitState is how much an API key has used of its group's rate limit.
type rateLimitState struct {
	limit, window int64 // requests, in any window of seconds
	remaining     int64 // requests that would be accepted now
	wait          int64 // seconds until the next slot frees; 0 if none is used
}

// Charge takes c.tokens from the balance of t's API key, all or none, within the rate limit of the key's group, in one
// atomic step. With an Idempotency-Key it does so once in 24 h, however often it is called. Errors: ErrNoKey;
// rateLimitError and insufficientTokensError, with a result, ErrKeyDisabled, ErrGroupDisabled and ErrKeyReused if
// nothing was taken; ErrUnavailable if Redis may or may not have taken them.
func (s *store) Charge(deadline time.Time, t *tenant, c chargeRequest) (chargeResult, error) {
	group := anonymousGroup
	for {
		outcome, result, err := s.chargeOnce(deadline, t, c, group)
		switch {
		case err != nil:
		case outcome == "group":
			// The key is in another group: try again with that group. An admin may move it meanwhile, so this may repeat;
			// the deadline ends it.
			group = result.group
			continue
		case outcome == "due":
			if err = s.releaseHolds(deadline, c.key); err == nil {
				continue
			}
		default:
			result.replayed = outcome == "replayed"
			err = outcomeError(outcome, result.tokensLeft, result.rate)
		}
		return result, withTenant(err, "charge an API key", t)
	}
}

// outcomeError returns the error for an outcome of charge.lua or hold.lua, nil if tokens were charged or held.
func outcomeError(outcome string, tokensLeft int64, rate rateLimitState) error {
	switch outcome {
	case "charged", "held", "replayed":
		return nil
	case "mismatch":
		return ErrKeyReused
	case "limited":
		return rateLimitError{rate.wait}
	case "spent":
		return insufficientTokensError{tokensLeft}
	case "off":
		return ErrKeyDisabled
	case "disabled":
		return ErrGroupDisabled
	case "full":
		return fmt.Errorf("%w: its memory is full", ErrUnavailable)
	}
	return errBadReply
}

// withTenant adds to an error of Redis what was being done and for whom. A nil reply, redis.ErrNil, is ErrNoKey.
func withTenant(err error, doing string, t *tenant) error {
	if errors.Is(err, redis.ErrNil) {
		return ErrNoKey
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of tenant %s: %w", doing, t.id, err)
}

// successor returns what Redis says became of an API key, see successorRedisKey; "" if it says nothing.
func (s *store) successor(deadline time.Time, key string) (string, error) {
	successor, err := redis.String(s.redis.Read(deadline, "GET", successorRedisKey(key)))
	if errors.Is(err, redis.ErrNil) {
		err = nil
	}
	return successor, err
}

// releaseHolds returns the tokens of key's expired holds to its balance.
func (s *store) releaseHolds(deadline time.Time, key string) error {
	_, err := s.redis.Eval(deadline, releaseScript, []string{apiKeyRedisKey(key), holdsRedisKey(key)})
	return err
}

// chargeOnce runs charge.lua with all groups of the tenant or, if they are too large, with that of the name group.
func (s *store) chargeOnce(deadline time.Time, t *tenant, c chargeRequest, group string) (string, chargeResult, error) {
	groups, onlyOne := t.config.encoded.sent(group)
	keys := append(make([]string, 0, 3), apiKeyRedisKey(c.key))
	args := append(make([]any, 0, 6), t.id, t.generation, c.amount(), groups)
	if onlyOne {
		args = append(args, group)
	}
	if t.config.encoded.limited || c.isIdempotent() {
		keys = append(keys, rateRedisKey(c.key))
	}
	if c.isIdempotent() {
		if !onlyOne {
			args = append(args, "")
		}
		record, ttl := c.record()
		keys, args = append(keys, record), append(args, int64(ttl/time.Second))
	}
	full, script := chargeScript, growingChargeScript
	if t.config.encoded.refilled {
		full, script = refillChargeScript, growingRefillChargeScript
	}
	if len(keys) == 1 {
		script = full
	}
	reply, err := redis.Bytes(s.redis.Eval(deadline, script, keys, args...))
	if redisdb.IsOutOfMemory(err) && !c.isIdempotent() { // if the key itself has no rate limit, its charge needs no memory
		reply, err = redis.Bytes(s.redis.Eval(deadline, full, keys, args...))
	}
	if err != nil {
		return "", chargeResult{}, err
	}
	return parseChargeReply(string(reply))
}

// amount returns the tokens to take as charge.lua reads them.
func (c *chargeRequest) amount() any {
	if c.upTo {
		return strconv.FormatInt(c.tokens, 10) + "+"
	}
	return c.tokens
}

func (c *chargeRequest) isIdempotent() bool { return c.idempotencyKey != "" || c.requestID != "" }

// record returns where the outcome of the charge is remembered, and for how long.
func (c *chargeRequest) record() (key string, ttl time.Duration) {
	if c.requestID != "" {
		return recordRedisKey(c.key, "verify", c.requestID), verifyRecordTTL
	}
	return recordRedisKey(c.key, "charge", c.idempotencyKey), chargeRecordTTL
}

// parseChargeReply parses the reply of charge.lua.
func parseChargeReply(reply string) (outcome string, result chargeResult, err error) {
	head, identity, _ := strings.Cut(reply, "\n")
	result.userID, result.group, _ = strings.Cut(identity, "\n")
	var numbers [6]int64
	outcome, n, err := parseOutcome(head, numbers[:])
	if err != nil || n != 2 && n != 6 {
		return outcome, result, errBadReply
	}
	result.charged, result.tokensLeft = numbers[0], numbers[1]
	result.hasRateLimit = n == 6
	result.rate = parseRateLimitState(numbers[2:])
	return outcome, result, nil
}

// parseOutcome parses a word and the numbers that follow it, and returns how many there are.
func parseOutcome(head string, numbers []int64) (outcome string, n int, err error) {
	outcome, head, _ = strings.Cut(head, " ")
	for number := range strings.SplitSeq(head, " ") {
		if n == len(numbers) {
			return outcome, n, errBadReply
		}
		if numbers[n], err = strconv.ParseInt(number, 10, 64); err != nil {
			return outcome, n, errBadReply
		}
		n++
	}
	return outcome, n, nil
}

func parseRateLimitState(numbers []int64) rateLimitState {
	return rateLimitState{limit: numbers[0], window: numbers[1], remaining: numbers[2], wait: numbers[3]}
}

package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

// apiKey is what Redis holds of an API key.
type apiKey struct {
	userID     string // "" is an anonymous user
	group      string
	label      string // "" if it has none
	createdAt  time.Time
	expiresAt  time.Time // zero: never
	tokensLeft int64
	tokensHeld int64     // by open holds
	refillsAt  time.Time // zero: never
	disabled   bool
	malformed  bool  // nothing else is known
	taken      int64 // by the change after which the key is as it is here, if that has upTo

	// The key whose balance it shares, and its first name; "" if the balance is its own. Only the times, disabled and the
	// user are its own then.
	sharesWith, sharesFirst string
}

// idempotentRequest identifies a request that must take effect once.
type idempotentRequest struct {
	key  string // the Idempotency-Key; "" if the request has no such header
	hash string // of what the request asks for
	// refused is why the request must not take effect now, only be replayed; nil if it may. It is an error if key is "".
	refused error
}

// mode returns the argument of a script that says whether it may do something new.
func (r idempotentRequest) mode() string {
	if r.refused != nil {
		return "replay"
	}
	return ""
}

// issuedKey is an API key that a request has issued or rotated.
type issuedKey struct {
	key        string
	tokensLeft int64
	replayed   bool // the request was repeated: nothing was done now, and the rest is that of the first time
}

// NewKey issues an API key of t: a temp_ key if it has no user, else a user_ key. Of k the user, the group, the label,
// the times and the balance are used. With an Idempotency-Key it does so once in 40 days. Check and write are one
// atomic step. Errors: ErrKeyReused if another request had the same Idempotency-Key; request.refused; ErrUnavailable.
func (s *store) NewKey(deadline time.Time, t *tenant, k apiKey, request idempotentRequest) (issuedKey, error) {
	prefix, ttl := anonymousKeyPrefix, time.Duration(0)
	if k.userID != "" {
		prefix = userKeyPrefix
	}
	if !k.expiresAt.IsZero() {
		ttl = k.expiresAt.Sub(k.createdAt)
	}
	args := []any{t.id, t.generation, k.group, formatTime(k.createdAt), k.tokensLeft, k.userID, ttl.Milliseconds(),
		k.label}
	key, err := newCredential(prefix)
	keys := []string{apiKeyRedisKey(key)}
	if err == nil && request.key != "" {
		record := issueRecordRedisKey(t, request.key)
		key, err = newKeyBeside(record, prefix)
		keys, args = []string{apiKeyRedisKey(key), record}, append(args, key, request.hash, request.mode())
	}
	if err != nil {
		return issuedKey{}, err
	}
	if request.refused == nil {
		err = s.indexNewKey(deadline, t, k.userID, key, k.createdAt)
	}
	if err != nil {
		return issuedKey{}, fmt.Errorf("index an API key of tenant %s: %w", t.id, err)
	}
	reply, err := s.redis.Eval(deadline, issueScript, keys, args...)
	if err != nil {
		return issuedKey{}, fmt.Errorf("store an API key of tenant %s: %w", t.id, err)
	}
	switch before := reply.(type) {
	case int64:
		if k.userID != "" {
			_, _ = s.indexStored(deadline, key)
		}
		return issuedKey{key: key, tokensLeft: k.tokensLeft}, nil
	case []byte:
		if string(before) == "new" {
			return issuedKey{}, request.refused
		}
		_ = s.unindexKey(deadline, t.id, k.userID, key) // it was not created
		return issuedKey{}, ErrKeyReused
	case []any:
		_ = s.unindexKey(deadline, t.id, k.userID, key)
		issued := issuedKey{replayed: true}
		if _, err := redis.Scan(before, &issued.key, &issued.tokensLeft); err == nil {
			return issued, nil
		}
	}
	return issuedKey{}, fmt.Errorf("store an API key of tenant %s: %w", t.id, errBadReply)
}

// newKeyBeside returns a new API key that is in the slot of redisKey in a Redis Cluster, with all that belongs to it:
// one script may write both. It is so with one server, too, whose data may move to a cluster: what is remembered of a
// key stays under its first name. The last four digits of the UUID are chosen for that, and where the search for them
// begins is as random as they were. That costs 14 of the UUID's 122 random bits, and some 50 µs.
func newKeyBeside(redisKey, prefix string) (string, error) {
	for slot := redisdb.Slot(redisKey); ; {
		key, err := newCredential(prefix)
		if err != nil {
			return "", err
		}
		head := key[:len(key)-4]
		first, err := strconv.ParseUint(key[len(head):], 16, 16)
		if err != nil {
			return "", fmt.Errorf("the last digits of a UUID: %w", err)
		}
		if digits, ok := redisdb.SlotDigits(apiKeyRedisKey(head), slot, uint16(first)); ok {
			return head + digits, nil
		}
	}
}

// CountLogin counts a login of address, unless it has had perMinute in the last minute, over all processes. Check and
// count are one atomic step. Errors: rateLimitError, ErrUnavailable.
func (s *store) CountLogin(deadline time.Time, address string, perMinute int64) error {
	if err := s.countInMinute(deadline, loginRedisKey(address), perMinute); err != nil {
		return fmt.Errorf("count a login: %w", err)
	}
	return nil
}

func checkoutsRedisKey(first string) string   { return "{apiKey:" + first + "}:checkouts" }
func portalsRedisKey(first string) string     { return "{apiKey:" + first + "}:portals" }
func checkoutDayRedisKey(first string) string { return "{apiKey:" + first + "}:checkoutDay" }

// CountCheckout counts a checkout of an API key, which is given by its first name, unless it has had sessionsPerMinute
// in the last minute or checkoutsPerDay today (UTC). Errors: rateLimitError, ErrUnavailable.
func (s *store) CountCheckout(deadline time.Time, first string) error {
	err := s.countInMinute(deadline, checkoutsRedisKey(first), sessionsPerMinute)
	if err == nil {
		err = s.countInDay(deadline, checkoutDayRedisKey(first), checkoutsPerDay)
	}
	if err != nil {
		return fmt.Errorf("count a checkout: %w", err)
	}
	return nil
}

// CountPortal does what CountCheckout does for a session of the portal, which no day bounds.
func (s *store) CountPortal(deadline time.Time, first string) error {
	if err := s.countInMinute(deadline, portalsRedisKey(first), sessionsPerMinute); err != nil {
		return fmt.Errorf("count a session of the portal: %w", err)
	}
	return nil
}

func endpointTestsRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:endpointTests"
}

// CountEndpointTest counts a test of an endpoint of a tenant, unless it has had testsPerMinute in the last minute.
// Errors: rateLimitError, ErrUnavailable.
func (s *store) CountEndpointTest(deadline time.Time, tenantID string) error {
	if err := s.countInMinute(deadline, endpointTestsRedisKey(tenantID), testsPerMinute); err != nil {
		return fmt.Errorf("count a test of an endpoint: %w", err)
	}
	return nil
}

// countInMinute counts something in the list at name, unless there were perMinute in the last minute. Errors:
// rateLimitError, ErrUnavailable.
func (s *store) countInMinute(deadline time.Time, name string, perMinute int64) error {
	keys := []string{name}
	wait, err := redis.Int64(s.redis.Eval(deadline, growingLoginScript, keys, perMinute))
	if redisdb.IsOutOfMemory(err) { // a refusal needs no memory
		if refused, _ := redis.Int64(s.redis.Eval(deadline, loginScript, keys, perMinute, "full")); refused > 0 {
			wait, err = refused, nil
		}
	}
	if err == nil && wait > 0 {
		err = rateLimitError{wait}
	}
	return err
}

// CountRecord counts a record of an Idempotency-Key that a tenant's admin leaves, unless there were maxRecords today
// (UTC). Errors: rateLimitError, ErrUnavailable.
func (s *store) CountRecord(deadline time.Time, t *tenant) error {
	if err := s.countInDay(deadline, recordsRedisKey(t.id), maxRecords); err != nil {
		return fmt.Errorf("count a record of tenant %s: %w", t.id, err)
	}
	return nil
}

// countInDay counts something at name, unless there were most today (UTC). Errors: rateLimitError, ErrUnavailable.
func (s *store) countInDay(deadline time.Time, name string, most int64) error {
	wait, err := redis.Int64(s.redis.Eval(deadline, countScript, []string{name}, most))
	if err == nil && wait > 0 {
		err = rateLimitError{wait}
	}
	return err
}

// UncountRecord takes back what CountRecord has counted. If that fails, there is one record less today.
func (s *store) UncountRecord(deadline time.Time, t *tenant) {
	_, _ = s.redis.Eval(deadline, countScript, []string{recordsRedisKey(t.id)}, "-")
}

// Key returns t's API key. Errors: ErrNoKey, ErrMalformed, ErrUnavailable.
func (s *store) Key(deadline time.Time, t *tenant, key string) (apiKey, error) {
	k, _, err := s.UpdateKey(deadline, t, key, keyChange{}, idempotentRequest{})
	return k, err
}

// parseAPIKey parses the reply of key.lua.
func parseAPIKey(t *tenant, reply any) (k apiKey, replayed bool, err error) {
	var createdAt, enabled, refilledAt, since string
	var expiresAt int64
	values, err := redis.Values(reply, nil)
	if err == nil {
		_, err = redis.Scan(values, &k.userID, &k.group, &createdAt, &k.tokensLeft, &expiresAt, &enabled, &refilledAt,
			&k.tokensHeld, &k.label, &k.taken, &since)
	}
	if err != nil {
		return k, false, fmt.Errorf("%w: a field is of the wrong kind", ErrMalformed) // err itself may quote a value
	}
	k.disabled = enabled == "0"
	k.createdAt, err = time.Parse(time.RFC3339, createdAt)
	refilledSince, wrong := time.Parse(time.RFC3339, since)
	if err != nil || wrong != nil {
		return k, false, fmt.Errorf("%w: createdAt is not a time", ErrMalformed)
	}
	if expiresAt >= 0 {
		k.expiresAt = time.UnixMilli(expiresAt)
	}
	if t.config != nil {
		if refill := t.config.groups[k.group].refill; refill != nil {
			last, _ := strconv.ParseInt(refilledAt, 10, 64) // 0 if it never was
			k.refillsAt = refill.next(refilledSince, time.UnixMilli(last))
		}
	}
	return k, len(values) > 11, nil
}

// chargeRequest is what to charge.
type chargeRequest struct {
	key            string
	tokens         int64  // 0 … maxAmount; 0 takes nothing, but needs a balance of 1
	upTo           bool   // if fewer tokens are left, take those; then tokens is at least 1
	free           bool   // take nothing, whatever the balance is; then tokens is 0
	idempotencyKey string // "" if the charge has none
	requestID      string // of a forward-auth check, which is remembered for verifyRecordTTL; "" if it has none

	models []string // that the key's group must have
}

// decision is what Redis has decided about a charge or a hold.
type decision struct {
	key        string // that has the balance, by its present name
	group      string // of the API key
	userID     string // "" is an anonymous user
	tokensLeft int64
	replayed   bool            // the Idempotency-Key was known: nothing was taken now, and the rest is as it was then
	rate       *rateLimitState // nil if the group has no rate limit
}

// rateLimitState is how much an API key has used of its group's rate limit.
type rateLimitState struct {
	limit, window int64 // requests, in any window of seconds
	remaining     int64 // requests that would be accepted now
	wait          int64 // seconds until the next slot frees; 0 if none is used
}

// chargeResult is what a charge led to.
type chargeResult struct {
	decision
	charged int64
}

// Charge takes c.tokens from the balance of t's API key, all or none, within the rate limit of the key's group, in one
// atomic step. With an Idempotency-Key it does so once in 24 h, however often it is called. Errors: ErrNoKey;
// rateLimitError, insufficientTokensError and ErrModelDenied, with a result, ErrKeyDisabled, ErrGroupDisabled and
// ErrKeyReused if nothing was taken; ErrUnavailable if Redis may or may not have taken them.
func (s *store) Charge(deadline time.Time, t *tenant, c chargeRequest) (result chargeResult, err error) {
	h := newHolder(c.key)
	outcome, err := s.withGroups(deadline, &t.config.encoded, h, anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			outcome, result, err = s.chargeOnce(deadline, t, c, h, groups, only)
			if outcome == "first" {
				h.first = result.userID
				return "again", only, err
			}
			return outcome, result.group, err
		})
	result.key = h.key
	if outcome == "spent" {
		err = insufficientTokensError{result.tokensLeft, result.charged}
	} else if err == nil {
		err = result.err(outcome)
	}
	return result, withTenant(err, "charge an API key", t)
}

// withGroups calls attempt, which runs a script on the API key that h names, with the groups of the key's tenant. If
// they are too large to be sent each time, it gets only one, at first the one called first, and is called again if the
// key is in another. It is also called again if the outcome is "due", after the key's expired holds have been returned,
// or "again", and if the key shares the balance of another: then h names that. In all these cases the script must have
// changed nothing. attempt returns the outcome and the key's group.
func (s *store) withGroups(deadline time.Time, table *groupTable, h *holder, first string,
	attempt func(groups any, only string) (outcome, group string, err error)) (outcome string, err error) {
	for name := first; ; {
		groups, only := table.argument(name)
		outcome, group, err := attempt(groups, only)
		switch {
		case err != nil:
			if err = s.followBalance(deadline, h, err); err != nil {
				return "", err
			}
			name = first
		case only != "" && group != only:
			name = group // an admin may move the key meanwhile, so this may repeat; the deadline ends it
		case outcome == "due":
			if err := s.releaseHolds(deadline, h.key); err != nil {
				return "", err
			}
		case outcome == "again":
		default:
			return outcome, nil
		}
	}
}

// rateLimitError refuses a request for now; nothing was written.
type rateLimitError struct {
	wait int64 // seconds, at least one, until the same request may be accepted
}

func (rateLimitError) Error() string { return "rate limited" }

// insufficientTokensError refuses a charge that the balance does not cover; nothing was written.
type insufficientTokensError struct {
	tokensLeft int64
	tokensHeld int64 // by the gateway's requests of the key
}

func (insufficientTokensError) Error() string { return "not enough tokens" }

// err returns the error for an outcome of charge.lua or hold.lua, nil if tokens were charged or held.
func (d *decision) err(outcome string) error {
	switch outcome {
	case "charged", "held", "replayed":
		return nil
	case "mismatch":
		return ErrKeyReused
	case "limited":
		return rateLimitError{d.rate.wait}
	case "denied":
		return ErrModelDenied
	case "busy":
		return ErrTooManyRequests
	case "crowded":
		return ErrTooManyHolds
	case "off":
		return ErrKeyDisabled
	case "disabled":
		return ErrGroupDisabled
	case "full":
		return fmt.Errorf("%w: its memory is full", ErrUnavailable)
	}
	return errBadReply
}

// chargeOnce runs charge.lua on the key that h names.
func (s *store) chargeOnce(deadline time.Time, t *tenant, c chargeRequest, h *holder, groups any, only string) (
	string, chargeResult, error) {
	keys := append(make([]string, 0, 3), apiKeyRedisKey(h.key))
	args := append(make([]any, 0, 7), t.id, t.generation, c.amount(), groups)
	if t.config.encoded.limited || c.isIdempotent() {
		keys = append(keys, rateRedisKey(h.key))
	}
	if c.isIdempotent() {
		record, ttl := c.record(h.first)
		keys, args = append(keys, record), append(args, int64(ttl/time.Second), h.first)
	}
	if denying := t.config.encoded.denying(c.models, only); denying != "" {
		args = append(args[:4], "", "", denying) // what has models is not idempotent
	}
	full, script := chargeScript, growingChargeScript
	if t.config.encoded.refilled {
		full, script = refillChargeScript, growingRefillChargeScript
	}
	if len(keys) == 1 {
		script = full
	}
	reply, err := redis.Bytes(s.evalBalance(deadline, script, h.sharer, keys, args...))
	if redisdb.IsOutOfMemory(err) && !c.isIdempotent() { // if the key itself has no rate limit, its charge needs no memory
		reply, err = redis.Bytes(s.evalBalance(deadline, full, h.sharer, keys, args...))
	}
	if err != nil {
		return "", chargeResult{}, err
	}
	head, identity, _ := strings.Cut(string(reply), "\n")
	outcome, numbers, d, err := parseDecision(head, identity, 2)
	return outcome, chargeResult{decision: d, charged: numbers[0]}, err
}

// amount returns the tokens to take as charge.lua reads them.
func (c *chargeRequest) amount() any {
	if c.free {
		return "free"
	}
	if c.upTo {
		return strconv.FormatInt(c.tokens, 10) + "+"
	}
	return c.tokens
}

func (c *chargeRequest) isIdempotent() bool { return c.idempotencyKey != "" || c.requestID != "" }

// record returns where the outcome of the charge is remembered, and for how long.
func (c *chargeRequest) record(first string) (key string, ttl time.Duration) {
	if c.requestID != "" {
		return recordRedisKey(first, "verify", c.requestID), verifyRecordTTL
	}
	return recordRedisKey(first, "charge", c.idempotencyKey), chargeRecordTTL
}

// parseDecision parses what charge.lua and hold.lua return. head has the outcome, n numbers, of which the second is the
// balance, and, under a rate limit, its state. identity has the user ID and the group.
func parseDecision(head, identity string, n int) (outcome string, numbers [3]int64, d decision, err error) {
	outcome, head, _ = strings.Cut(head, " ")
	d.replayed = outcome == "replayed"
	d.userID, d.group, _ = strings.Cut(identity, "\n")
	all := make([]int64, 0, len(numbers)+4)
	for text := range strings.SplitSeq(head, " ") {
		number, err := strconv.ParseInt(text, 10, 64)
		if err != nil || len(all) == n+4 {
			return outcome, numbers, d, errBadReply
		}
		all = append(all, number)
	}
	switch {
	case len(all) == n+4:
		d.rate = &rateLimitState{limit: all[n], window: all[n+1], remaining: all[n+2], wait: all[n+3]}
	case len(all) != n || outcome == "limited":
		return outcome, numbers, d, errBadReply
	}
	copy(numbers[:], all)
	d.tokensLeft = numbers[1]
	return outcome, numbers, d, nil
}

package main

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

const (
	holdPrefix  = "hold_"  // of the IDs of holds
	leasePrefix = "lease_" // of those of the gateway, which scripts tell apart by it, see holds.lua
	extraPrefix = "extra_" // of the further ones of a session of the gateway, see holds.lua

	// The outcome of a hold is remembered for holdRecordTTL, that of one of the gateway, whose settling is repeated for a
	// few minutes, for leaseRecordTTL. If a hold charged nothing, it is remembered for 10 minutes, see settle.lua.
	holdRecordTTL  = 24 * time.Hour
	leaseRecordTTL = 10 * time.Minute

	maxHolds = 1000 // that an API key may have open, see hold.lua
)

// holdRequest is what to hold.
type holdRequest struct {
	key   string
	known *holder // of that key, if something is known of it
	id    string  // a hold ID that no other hold has, which begins with one of the prefixes above
	most  int64   // tokens to hold, 1 … maxAmount
	least int64   // if the balance is between the two, all of it is held
	ttl   time.Duration

	half, patient bool     // see gateway.HoldRequest
	models        []string // that the key's group must have

	idempotent idempotentRequest
}

// words returns how to hold, as hold.lua reads it.
func (h *holdRequest) words() string {
	switch {
	case h.half && h.patient:
		return "half patient"
	case h.half:
		return "half"
	case h.patient:
		return "patient"
	}
	return ""
}

// holdResult is what a hold led to.
type holdResult struct {
	decision
	id        string
	holder    holder // which has the balance
	held      int64
	expiresAt time.Time
}

// Hold takes tokens out of the balance of t's API key, within the rate limit of the key's group, and holds them until
// they are settled or h.ttl has passed, all in one atomic step. Errors: ErrNoKey; rateLimitError and
// insufficientTokensError and ErrModelDenied, with a result, ErrTooManyHolds, ErrTooManyRequests, ErrKeyDisabled,
// ErrGroupDisabled and ErrKeyReused if nothing was held; ErrUnavailable if Redis may or may not have held them.
func (s *store) Hold(deadline time.Time, t *tenant, h holdRequest) (result holdResult, err error) {
	who := *cmp.Or(h.known, newHolder(h.key))
	outcome, err := s.withGroups(deadline, &t.config.encoded, &who, anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			outcome, result, err = s.holdOnce(deadline, t, h, &who, groups, only)
			if outcome == "first" {
				return "again", only, err
			}
			return outcome, result.group, err
		})
	result.key, result.holder = who.key, who
	if outcome == "spent" {
		err = insufficientTokensError{result.tokensLeft, result.held}
	} else if err == nil {
		err = result.err(outcome)
	}
	return result, withTenant(err, "hold tokens of an API key", t)
}

// holdOnce runs hold.lua, or its quick form, on the key that who names, and sets who.first to the name that it had
// first.
func (s *store) holdOnce(deadline time.Time, t *tenant, h holdRequest, who *holder, groups any, only string) (
	string, holdResult, error) {
	denied := t.config.encoded.denying(h.models, only)
	var reply string
	var err error
	if h.isQuick(t) && who.sharer == "" && only == "" {
		reply, err = s.holdQuickly(deadline, t, who.key, h, groups, denied)
	}
	if reply == "" && err == nil {
		keys := []string{apiKeyRedisKey(who.key), rateRedisKey(who.key), holdsRedisKey(who.key)}
		args := []any{t.id, t.generation, h.most, h.least, h.id, h.ttl.Milliseconds(), groups, who.first, h.words(),
			denied}
		if h.idempotent.key != "" {
			keys = append(keys, recordRedisKey(who.first, "hold", h.idempotent.key))
			args = append(args, h.idempotent.hash, shortHash(h.idempotent.key))
		}
		reply, err = redis.String(s.evalBalance(deadline, holdScript, who.sharer, keys, args...))
	}
	if err != nil {
		return "", holdResult{}, err
	}
	lines := strings.SplitN(reply, "\n", 4)
	if len(lines) != 4 {
		return "", holdResult{}, errBadReply
	}
	who.first = cmp.Or(lines[2], who.first)
	outcome, numbers, d, err := parseDecision(lines[0], lines[3], 3)
	return outcome, holdResult{
		decision: d, id: lines[1], held: numbers[0], expiresAt: time.UnixMilli(numbers[2]),
	}, err
}

// isQuick reports whether the quick form of hold.lua may serve h. It has to leave a group with a refill to hold.lua,
// which would then take two commands.
func (h *holdRequest) isQuick(t *tenant) bool {
	return h.idempotent.key == "" && !t.hasRefill() && strings.HasPrefix(h.id, leasePrefix)
}

// holdQuickly runs the quick form of hold.lua. Its reply is "" if hold.lua must decide.
func (s *store) holdQuickly(deadline time.Time, t *tenant, key string, h holdRequest, groups any, denied string) (
	string, error) {
	script, keys := quickHoldScript, append(make([]string, 0, 3), apiKeyRedisKey(key))
	if t.config.encoded.limited {
		script, keys = limitedQuickHoldScript, append(keys, rateRedisKey(key))
	}
	args := append(make([]any, 0, 9), t.id, h.most, h.least, h.id, h.ttl.Milliseconds(), groups)
	if words := h.words(); t.generation != "" || words != "" || denied != "" {
		args = append(args, t.generation, words, denied)
	}
	return redis.String(s.redis.Eval(deadline, script, append(keys, holdsRedisKey(key)), args...))
}

// A holder is an API key with open holds. It may be rotated or, if it is a visitor's, be merged into a user's key
// meanwhile: then its holds are the new key's.
type holder struct {
	key   string // its present name, as far as is known
	first string // the name that it had first, as far as is known: its records are named by it

	sharer string // the key that shares its balance, if the caller has come with one
}

// newHolder returns the holder of an API key of which nothing more is known.
func newHolder(key string) *holder { return &holder{key: key, first: key} }

// settleRequest says how to end a hold.
type settleRequest struct {
	holdID string
	used   int64 // tokens, 0 … maxAmount
	// isLease means that the hold is one of the gateway: the tokens are charged, down to a balance of 0, even if the hold
	// has expired, and the key may have been rotated.
	isLease bool
	// queued, unless it is nil, is called when what this process does in Redis from then on finds the hold settled. It is
	// not called if a second script is known to be needed. If one turns out to be, as after a rotation or if Redis has
	// forgotten the scripts, it was called too early: a charge may then find the tokens still held. It is called again.
	queued func()
}

// settlement is what settling a hold led to.
type settlement struct {
	key        string // that has the balance, by its present name
	charged    int64
	tokensLeft int64
	group      string // of the key; "" if the hold was settled before, with a key that is gone
	replayed   bool   // it was settled before; the numbers are those of the first time
}

// Settle ends a hold of t's API key with a charge of the tokens used, in one atomic step: what was held beyond them
// goes back to the balance, what is missing is taken from it, down to 0. The outcome is remembered, so that it may be
// repeated. If the key was a visitor's and is merged into a user's, the hold is the user's. Settle changes h to the
// key's present name. Errors: ErrNoKey; ErrNoHold; ErrHoldSettled if it was settled with another number;
// ErrUnavailable if it may or may not have been settled.
func (s *store) Settle(deadline time.Time, t *tenant, h *holder, r settleRequest) (settlement, error) {
	outcome, result, err := s.settleQuickly(deadline, t, h, r)
	if outcome == "" && err == nil {
		outcome, result, err = s.settleFully(deadline, t, h, r)
	}
	switch {
	case err != nil:
		return settlement{}, withTenant(err, "settle a hold of an API key", t)
	case outcome == "replayed":
		result.replayed = true
	case outcome == "mismatch":
		return settlement{}, ErrHoldSettled
	case outcome == "unknown":
		return settlement{}, ErrNoHold
	}
	result.key = h.key
	return result, nil
}

// settleQuickly runs the quick form of settle.lua, if that may serve r. The outcome is "" if settle.lua must decide.
func (s *store) settleQuickly(deadline time.Time, t *tenant, h *holder, r settleRequest) (outcome string,
	result settlement, err error) {
	if !r.isLease || !strings.HasPrefix(r.holdID, leasePrefix) || t.hasRefill() {
		return "", settlement{}, nil
	}
	keys := []string{apiKeyRedisKey(h.key), settledRedisKey(h.first, r.holdID), holdsRedisKey(h.key)}
	args := append(make([]any, 0, 4), t.id, r.holdID, r.used)
	if t.generation != "" {
		args = append(args, t.generation)
	}
	reply, err := redis.String(s.redis.EvalQueued(deadline, r.queued, quickSettleScript, keys, args...))
	if err != nil || reply == "" {
		return "", settlement{}, err
	}
	head, group, _ := strings.Cut(reply, "\n")
	outcome, numbers, _, err := parseDecision(head, "", 2)
	return outcome, settlement{charged: numbers[0], tokensLeft: numbers[1], group: group}, err
}

// settleFully runs settle.lua.
func (s *store) settleFully(deadline time.Time, t *tenant, h *holder, r settleRequest) (outcome string,
	result settlement, err error) {
	step := holdStep{script: settleScript, holdID: r.holdID, ttl: holdRecordTTL, tokens: r.used, follow: r.isLease,
		queued: r.queued}
	if r.isLease {
		step.ttl, step.late = leaseRecordTTL, "late"
	}
	reply, err := s.onHold(deadline, t, h, step)
	if err != nil {
		return "", settlement{}, err
	}
	if _, err = redis.Scan(reply, &outcome, &result.charged, &result.tokensLeft, &result.group); err != nil {
		err = errBadReply
	}
	return outcome, result, err
}

// RenewHold gives a hold of the gateway another ttl from now on. If its tokens were returned, because it had expired,
// they are held again, or as many as are left. The key may have been rotated or merged, as in Settle. Errors: ErrNoKey;
// ErrNoHold if the hold was settled, or nothing is left to hold; ErrUnavailable.
func (s *store) RenewHold(deadline time.Time, t *tenant, h *holder, holdID string, tokens int64,
	ttl time.Duration) error {
	reply, err := s.onHold(deadline, t, h, holdStep{
		script: renewScript, holdID: holdID, ttl: ttl, tokens: tokens, follow: true,
	})
	if err == nil {
		if outcome, _ := redis.String(reply[0], nil); outcome != "renewed" {
			return ErrNoHold
		}
	}
	return withTenant(err, "renew a hold of an API key", t)
}

// holdStep is what to do with a hold: the script, settle.lua or one that takes the same keys, and those of its
// arguments that onHold does not know.
type holdStep struct {
	script balanceScript
	holdID string
	ttl    time.Duration
	tokens int64
	late   string // as settle.lua takes it
	follow bool   // the key may have been rotated since the caller has read it; a hold of it ends also without the sharer
	queued func() // as settleRequest has it

	next    *holdRequest // as exchange.lua and check.lua take it; nil for other scripts
	settled string       // ARGV[17] of exchange.lua; "" if that is omitted
}

// onHold runs a script on a hold of h, and follows the key wherever it has gone. It returns the script's reply, whose
// first element is the outcome.
func (s *store) onHold(deadline time.Time, t *tenant, h *holder, step holdStep) (reply []any, err error) {
	for again := false; ; again = true {
		reply, err = s.onHoldOf(deadline, t, h, step)
		if err == nil {
			if outcome, _ := redis.Bytes(reply[0], nil); string(outcome) != "moved" {
				return reply, nil
			}
			moved, _ := redis.Strings(reply, nil)
			if len(moved) > 4 {
				step.settled = moved[4]
			}
			to := moved[1]
			if moved[3] != "-" { // the hold may not have reached the user's key yet
				who := signInIdentity{tenant: t, userID: moved[2]}
				to, err = s.finishMoveOf(deadline, who, h.key, to)
			}
			switch {
			case to != "":
				*h, step.follow = *newHolder(to), true
			case again && err == nil: // an earlier version has moved it
				err = redis.ErrNil
			}
		} else if errors.Is(err, redis.ErrNil) && step.follow {
			err = s.followKey(deadline, h)
		}
		if err != nil {
			return nil, err
		}
	}
}

// onHoldOf runs a script on a hold of the key that h names.
func (s *store) onHoldOf(deadline time.Time, t *tenant, h *holder, step holdStep) (reply []any, err error) {
	digest := "" // of the hold's Idempotency-Key
	table := t.refillGroups()
	if step.next != nil {
		table = &t.config.encoded
	}
	_, err = s.withGroups(deadline, table, h, anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			keys := []string{apiKeyRedisKey(h.key), settledRedisKey(h.first, step.holdID), holdsRedisKey(h.key),
				closedRedisKey(h.key), firstRedisKey(h.key)}
			if digest != "" {
				keys = append(keys, holdRecordRedisKey(h.first, digest))
			}
			args := []any{t.id, t.generation, groups, only, step.holdID, step.ttl.Milliseconds(), h.first, digest,
				step.tokens, step.late}
			if next := step.next; next != nil {
				keys = append(keys, settledRedisKey(h.first, next.id))
				args = append(args, next.most, next.least, next.id, next.ttl.Milliseconds(), next.words(),
					t.config.encoded.denying(next.models, only))
				if step.settled != "" {
					args = append(args, step.settled)
				}
			}
			sharer := h.sharer
			if step.follow && step.next == nil {
				sharer = ""
			}
			queued := step.queued
			if only != "" { // which need not be the key's group
				queued = nil
			}
			reply, err = redis.Values(s.queueBalance(deadline, queued, step.script, sharer, keys, args...))
			if err != nil {
				return "", "", err
			}
			word, _ := redis.Bytes(reply[0], nil)
			switch string(word) {
			case "first":
				_, err = redis.Scan(reply[1:], &h.first, &digest)
				return "again", only, err
			case "group":
				group, err = redis.String(reply[1], nil)
				return "", group, err
			case "due":
				return "due", only, nil
			}
			return "", only, nil
		})
	return reply, err
}

// validHoldID reports whether id has the form of a hold's ID.
func validHoldID(id string) bool { return validCredential(id, holdPrefix) }

// releaseHolds returns the tokens of key's expired holds to its balance.
func (s *store) releaseHolds(deadline time.Time, key string) error {
	_, err := s.redis.Eval(deadline, releaseScript, []string{apiKeyRedisKey(key), holdsRedisKey(key)})
	return err
}

// exchange is what settling one hold and taking another in its place led to.
type exchange struct {
	settlement
	isSettled bool  // now or before; else the settlement is empty
	held      int64 // tokens of the other hold; 0 if it was not taken
}

// Exchange settles a hold of h's API key as Settle does one of the gateway, and takes next in its place, in one atomic
// step. next.key is not used: it is the present name of the key that counts, which Exchange changes h to. The rate and
// the requests under way do not matter. To repeat it with the same arguments settles nothing more, and returns the same
// hold or, if that was refused, tries to take it again. The config of t must not be broken. Errors: those of Settle; if
// the first hold is settled, why next is not held: those of Hold, ErrNoHold if next was settled before, or
// redisdb.ErrFull if Redis has no memory for it.
func (s *store) Exchange(deadline time.Time, t *tenant, h *holder, r settleRequest, next holdRequest) (
	result exchange, err error) {
	reply, err := s.onHold(deadline, t, h, holdStep{
		script: exchangeScript, holdID: r.holdID, ttl: leaseRecordTTL, tokens: r.used, late: "late", follow: true,
		next: &next,
	})
	if redisdb.IsOutOfMemory(err) { // a session leaves one more record each time, which a full Redis takes only at its end
		result.settlement, err = s.Settle(deadline, t, h, r)
		if result.isSettled = err == nil; result.isSettled {
			err = redisdb.ErrFull
		}
		return result, err
	}
	if errors.Is(err, redis.ErrNil) && h.sharer != "" { // that is gone, but not the hold
		result.settlement, err = s.Settle(deadline, t, h, r)
		if result.isSettled = err == nil; result.isSettled {
			err = ErrNoKey
		}
		return result, err
	}
	if err != nil {
		return exchange{}, withTenant(err, "exchange a hold of an API key", t)
	}
	var outcome, taken string
	var d decision
	rest, err := redis.Scan(reply, &outcome, &result.charged, &result.tokensLeft, &result.group)
	if err == nil && outcome == "mismatch" {
		return exchange{}, ErrHoldSettled
	}
	if err == nil {
		_, err = redis.Scan(rest, &taken, &result.held, &d.tokensLeft)
	}
	if err != nil {
		return exchange{}, withTenant(errBadReply, "exchange a hold of an API key", t)
	}
	result.isSettled, result.replayed, result.key = true, outcome == "replayed", h.key
	if taken == "held" {
		return result, nil
	}
	leased := result.held
	result.held = 0
	switch taken {
	case "spent":
		return result, insufficientTokensError{d.tokensLeft, leased}
	case "unknown":
		return result, ErrNoHold
	}
	return result, withTenant(d.err(taken), "hold tokens of an API key", t)
}

// Check returns the refusal of a hold of h's API key for those models, whatever the balance, the rate and the requests
// under way are; nil if it may go on. It also returns the key's group. The config of t must not be broken. Errors:
// ErrNoKey, ErrKeyDisabled, ErrGroupDisabled, ErrModelDenied, ErrUnavailable.
func (s *store) Check(deadline time.Time, t *tenant, h *holder, models []string) (group string, err error) {
	reply, err := s.onHold(deadline, t, h, holdStep{
		script: checkScript, follow: true, next: &holdRequest{models: models},
	})
	var outcome string
	if err == nil {
		if _, err = redis.Scan(reply, &outcome, &group); err != nil {
			err = errBadReply
		}
	}
	if err == nil && outcome != "allowed" {
		err = new(decision).err(outcome)
	}
	return group, withTenant(err, "check an API key", t)
}

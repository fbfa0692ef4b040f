package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	// successorTTL is how long the successor of a key that was rotated is remembered: as long as a hold may last.
	successorTTL = 24 * time.Hour

	forgotten = "forget" // the value of successorRedisKey if a user is to be forgotten
)

// keyChange is a change of an API key; nil changes nothing. At most one of addTokens and setTokens may be set.
type keyChange struct {
	group     *string
	addTokens *int64 // from -maxAmount to maxAmount
	upTo      bool   // if addTokens, which is negative then, would leave less than 0, it leaves 0
	setTokens *int64 // from 0 to maxAmount
	enabled   *bool
	ttl       *time.Duration // until the key expires; 0: it never does
	label     *string        // "": none
}

// UpdateKey changes t's API key in one atomic step and returns it as it is then. With an Idempotency-Key it does so
// once in a day, or in 40 days if its balance changes; if the request is repeated, it returns the key as it was after
// the first time, and true: also if the key was rotated or revoked since. A change that needs nothing of what the key
// has is made even if that is malformed; then k.malformed is set. Errors: ErrNoKey; ErrBalanceRange, ErrKeyReused,
// ErrMalformed and request.refused if nothing was changed; ErrUnavailable.
func (s *store) UpdateKey(deadline time.Time, t *tenant, key string, change keyChange,
	request idempotentRequest) (k apiKey, replayed bool, err error) {
	k, replayed, err = s.updateKey(deadline, t, key, change, request, "")
	if errors.Is(err, ErrMalformed) && change != (keyChange{}) && change.addTokens == nil {
		k, replayed, err = s.updateKey(deadline, t, key, change, request, "malformed")
	}
	return k, replayed, err
}

// updateKey runs key.lua. state is "malformed" if the key is known to be, else "".
func (s *store) updateKey(deadline time.Time, t *tenant, key string, change keyChange,
	request idempotentRequest, state string) (k apiKey, replayed bool, err error) {
	indexed, err := s.keepIndexed(deadline, t, key, change)
	if err != nil {
		return k, false, err
	}
	defer indexed()
	h, first, firstGroup := newHolder(key), key, anonymousGroup
	if change.group != nil {
		firstGroup = *change.group
	}
	outcome, err := s.withGroups(deadline, t.refillGroups(), h, firstGroup,
		func(groups any, only string) (outcome, group string, err error) {
			script, keys, args := change.script(t, h, key, first, request)
			args = append(args, groups, only, state, change.newLabel())
			reply, err := s.evalBalance(deadline, script, h.sharer, keys, args...)
			switch reply := reply.(type) {
			case nil:
				return "", "", cmp.Or(err, redis.ErrNil)
			case []byte:
				outcome, rest, _ := strings.Cut(string(reply), "\n")
				switch outcome {
				case "group":
					return "", rest, nil
				case "first":
					if h.first = rest; h.sharer == "" {
						first = rest
					}
					return "again", only, nil
				}
				replayed = rest == "replayed"
				return outcome, only, nil
			}
			k, replayed, err = parseAPIKey(t, reply)
			return "", only, err
		})
	switch outcome {
	case "":
	case "mismatch":
		err = ErrKeyReused
	case "new":
		err = request.refused
	case "below", "above":
		err = ErrBalanceRange
	case "malformed":
		k = apiKey{malformed: true}
	default:
		err = errBadReply
	}
	if h.sharer != "" {
		k.sharesWith, k.sharesFirst = h.key, h.first
	}
	return k, replayed, withTenant(err, "read an API key", t)
}

// script returns key.lua with its keys and all arguments but the groups: in the form that runs in a full Redis if the
// change needs no memory. h names the key that has the balance of key; first is the name that key had first, as far as
// is known.
func (change keyChange) script(t *tenant, h *holder, key, first string, request idempotentRequest) (balanceScript,
	[]string, []any) {
	script, keys := keyScript, []string{apiKeyRedisKey(h.key)}
	if change != (keyChange{}) || request.key != "" {
		keys = append(keys, holdsRedisKey(h.key), currentRedisKey(first), firstRedisKey(key))
	}
	if request.key != "" {
		script = growingKeyScript
		keys = append(keys, recordRedisKey(first, "update", request.key))
	}
	if h.sharer != "" && change.ttl != nil {
		keys = append(keys, sharesRedisKey(h.first))
	}
	balance, tokens, group, enabled, ttl := "", int64(0), "", "", ""
	switch {
	case change.upTo:
		balance, tokens = "take", *change.addTokens
	case change.addTokens != nil:
		balance, tokens = "add", *change.addTokens
	case change.setTokens != nil:
		balance, tokens = "set", *change.setTokens
	}
	if change.group != nil {
		script, group = growingKeyScript, *change.group
	}
	if change.label != nil && *change.label != "" {
		script = growingKeyScript
	}
	if change.enabled != nil {
		enabled = "0"
		if *change.enabled {
			enabled = "1"
		}
	}
	if change.ttl != nil {
		ttl = strconv.FormatInt(change.ttl.Milliseconds(), 10)
	}
	return script, keys, []any{
		t.id, t.generation, balance, tokens, group, enabled, ttl, h.first, request.hash, request.mode(),
	}
}

// newLabel returns the label as key.lua takes it.
func (change keyChange) newLabel() string {
	if change.label == nil {
		return ""
	}
	return "=" + *change.label
}

// RotateKey gives t's API key a new UUID: the balance, user, group, times, rate log, holds and what is remembered of it
// are those of the old one, in one atomic step. The old one is dead or, with a grace, a key that shares the balance for
// that time. With an Idempotency-Key it does so once in 40 days, also if the request names the key by an earlier name.
// Errors: ErrNoKey, ErrInGrace, ErrTooManyShares, ErrKeyReused and request.refused if nothing was done; ErrUnavailable.
func (s *store) RotateKey(deadline time.Time, t *tenant, key string, grace time.Duration, request idempotentRequest) (
	issuedKey, error) {
	rotation, err := s.rotate(deadline, t, key, grace, request)
	if err == nil {
		err = s.finishRotation(deadline, t, key, grace, rotation)
	}
	return rotation.issuedKey, withTenant(err, "rotate an API key", t)
}

// rotation is a key that was rotated, and whose it is.
type rotation struct {
	issuedKey
	userID  string
	signsIn bool
}

// rotate chooses the new key, adds it to the index and runs rotate.lua. Its nil reply is redis.ErrNil.
func (s *store) rotate(deadline time.Time, t *tenant, key string, grace time.Duration, request idempotentRequest) (
	r rotation, err error) {
	k, err := s.Key(deadline, t, key)
	if errors.Is(err, ErrNoKey) && request.key != "" { // it may be gone because the request is repeated
		err, request.refused = nil, cmp.Or(request.refused, ErrNoKey)
	}
	next := ""
	if err == nil && request.refused == nil {
		if next, err = newKeyBeside(apiKeyRedisKey(key), key[:strings.IndexByte(key, '_')+1]); err == nil {
			err = s.indexNewKey(deadline, t, k.userID, next, k.createdAt)
		}
	}
	if err != nil {
		return r, err
	}
	r, err = s.runRotate(deadline, t, listedKey{key, k}, next, grace, request)
	if next != "" && r.key != next && !errors.Is(err, ErrUnavailable) {
		_ = s.unindexKey(deadline, t.id, k.userID, next) // it was not created
	}
	return r, err
}

// runRotate runs rotate.lua. If next is "" it only returns the rotation that the request has made before.
func (s *store) runRotate(deadline time.Time, t *tenant, k listedKey, next string, grace time.Duration,
	request idempotentRequest) (r rotation, err error) {
	left := ""
	if k.sharesWith != "" {
		left = strconv.FormatInt(k.tokensLeft, 10)
	}
	var sharing []string // with the key
	for first := k.key; ; {
		keys := append(allRedisKeys(k.key), allRedisKeys(cmp.Or(next, k.key))...)
		keys = append(keys, successorRedisKey(k.key), firstRedisKey(k.key), firstRedisKey(cmp.Or(next, k.key)),
			currentRedisKey(first), sharesRedisKey(cmp.Or(k.sharesFirst, first)))
		if request.key != "" {
			keys = append(keys, recordRedisKey(first, "rotate", strings.Join([]string{t.id, t.generation, request.key}, " ")))
		}
		args := []any{t.id, t.generation, next, successorTTL.Milliseconds(), first, grace.Milliseconds(), left, maxShares}
		for _, name := range sharing {
			keys, args = append(keys, apiKeyRedisKey(name)), append(args, name)
		}
		reply, err := redis.Values(s.redis.Eval(deadline, rotateScript, keys, args...))
		if err != nil {
			return r, err
		}
		switch word, _ := redis.String(reply[0], nil); word {
		case "new":
			return r, request.refused
		case "mismatch":
			return r, ErrKeyReused
		case "full":
			return r, ErrTooManyShares
		case "grace":
			return r, ErrInGrace
		case "first":
			first, err = redis.String(reply[1], nil)
		case "shares":
			sharing, err = redis.Strings(reply[1:], nil)
		default:
			_, err = redis.Scan(reply, &r.key, &r.tokensLeft, &r.userID, &r.signsIn, &r.replayed)
			return r, err
		}
		if err != nil {
			return r, err
		}
	}
}

// finishRotation tells the index and the sign-in of a key that was rotated. What it leaves undone the next listing and
// the next sign-in do.
func (s *store) finishRotation(deadline time.Time, t *tenant, key string, grace time.Duration, r rotation) (err error) {
	if grace > 0 {
		_, err = s.indexStored(deadline, key)
	} else {
		err = s.unindexKey(deadline, t.id, r.userID, key)
	}
	if err == nil {
		_, err = s.indexStored(deadline, r.key) // whoever listed the keys meanwhile has removed it
	}
	if err != nil || !r.signsIn {
		return err
	}
	who := signInIdentity{tenant: t, userID: r.userID}
	record, _, err := s.readSignInRecord(deadline, who)
	if err == nil && record.key == key {
		_, _, err = s.replaceSignInRecord(deadline, who, record, newSignInRecord(r.key, "", record.generation))
	}
	return err
}

// RevokeKey deletes t's API key, with those that share its balance, and, if forget is set and its user has signed in,
// lets the next sign-in of that user be a first one: also if the key was revoked before, and the user has not signed in
// since. Errors: ErrNoKey, ErrUnavailable.
func (s *store) RevokeKey(deadline time.Time, t *tenant, key string, forget bool) error {
	owner, err := s.runRevoke(deadline, t, key, forget)
	if err == nil {
		// The key is dead: what follows is done by the next sign-in and the next listing, if it is not done now.
		err = s.unindexKey(deadline, t.id, owner[1], append(owner[3:], key)...)
	}
	if err == nil && forget && owner[2] != "" {
		var forgot bool
		forgot, err = s.forget(deadline, signInIdentity{tenant: t, userID: owner[1]}, key)
		if err == nil && !forgot && owner[0] == "gone" {
			return ErrNoKey
		}
	}
	return withTenant(err, "revoke an API key", t)
}

// runRevoke runs revoke.lua, and returns its reply: 'revoked' or 'gone', the user ID, whether the user has signed in,
// and the other keys that were deleted.
func (s *store) runRevoke(deadline time.Time, t *tenant, key string, forget bool) (owner []string, err error) {
	how := ""
	if forget {
		how = forgotten
	}
	first, balance := key, ""
	var sharing []string
	for {
		keys := append(allRedisKeys(key), successorRedisKey(key), revokedRedisKey(key), firstRedisKey(key),
			currentRedisKey(first), sharesRedisKey(cmp.Or(balance, first)))
		args := []any{t.id, t.generation, how, first, cmp.Or(balance, first)}
		for _, name := range sharing {
			keys, args = append(keys, apiKeyRedisKey(name), firstRedisKey(name)), append(args, name)
		}
		owner, err = redis.Strings(s.redis.Eval(deadline, revokeScript, keys, args...))
		switch {
		case err != nil:
			return nil, err
		case owner[0] == "first":
			first = owner[1]
		case owner[0] == "shares":
			balance, sharing = owner[1], owner[2:]
		default:
			return owner, nil
		}
	}
}

// allRedisKeys returns the keys in Redis that end with an API key, or move with it.
func allRedisKeys(key string) []string {
	return []string{apiKeyRedisKey(key), rateRedisKey(key), holdsRedisKey(key), movesRedisKey(key)}
}

// successor returns what Redis says became of an API key, see successorRedisKey; "" if it says nothing.
func (s *store) successor(deadline time.Time, key string) (string, error) {
	return s.readText(deadline, successorRedisKey(key))
}

// present returns a later name of an API key that is gone; "" if it was not rotated. It is mostly the present one; but
// a process of an earlier version may have rotated the key again.
func (s *store) present(deadline time.Time, key string) (string, error) {
	first, err := s.readText(deadline, firstRedisKey(key))
	if err != nil {
		return "", err
	}
	current, err := s.readText(deadline, currentRedisKey(cmp.Or(first, key)))
	if err != nil || current != "" && current != key {
		return current, err
	}
	next, err := s.successor(deadline, key)
	if !validAPIKey(next) {
		return "", err
	}
	return next, err
}

// presentName returns the present name of t's key that had that name first; "" if it is gone. A key that shares the
// balance of its successor does not count.
func (s *store) presentName(deadline time.Time, t *tenant, first string) (string, error) {
	name, err := s.readText(deadline, currentRedisKey(first))
	for name = cmp.Or(name, first); name != "" && err == nil; {
		var fields []string
		fields, err = redis.Strings(s.redis.Read(deadline, "HMGET", apiKeyRedisKey(name),
			"tenantId", "generation", "sharesWith"))
		if err == nil && slices.Equal(fields, []string{t.id, t.generation, ""}) {
			return name, nil
		}
		if err == nil {
			name, err = s.present(deadline, name)
		}
	}
	return "", err
}

// A receiver is the key that gets what is paid for a checkout.
type receiver struct {
	first string // the name that it had first; "" if nobody is there
	key   string // its present name
}

// receiver returns the key that gets what is paid for c: the one that c was made with or, if that is gone, the one
// chosen in its place, which is the user's oldest when it is chosen.
func (s *store) receiver(deadline time.Time, t *tenant, c checkout) (r receiver, err error) {
	r = receiver{first: c.first}
	if r.key, err = s.presentName(deadline, t, r.first); r.key != "" || err != nil {
		return r, err
	}
	chosen := receiverRedisKey(c.first)
	for r.first, err = s.readText(deadline, chosen); err == nil; {
		if r.first != "" {
			r.key, err = s.presentName(deadline, t, r.first)
		}
		if r.key != "" || err != nil {
			break
		}
		var next receiver
		if next, err = s.oldestKey(deadline, t, c.userID); next.key == "" || err != nil {
			return next, err
		}
		if r.first, err = s.swap(deadline, chosen, r.first, next.first); r.first == next.first {
			return next, err
		}
	}
	return r, err
}

// swap replaces a string by another, if it is still what it was before, and returns it as it is then.
func (s *store) swap(deadline time.Time, name, before, after string) (string, error) {
	return redis.String(s.redis.Eval(deadline, swapScript, []string{name}, before, after, paidTTL.Milliseconds()))
}

// readText returns a string that Redis holds, "" if it holds none.
func (s *store) readText(deadline time.Time, name string) (string, error) {
	text, err := redis.String(s.redis.Read(deadline, "GET", name))
	if errors.Is(err, redis.ErrNil) {
		err = nil
	}
	return text, err
}

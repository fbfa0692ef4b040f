package main

import (
	"cmp"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
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
	setTokens *int64 // from 0 to maxAmount
	enabled   *bool
	ttl       *time.Duration // until the key expires; 0: it never does
}

// UpdateKey changes t's API key in one atomic step and returns it as it is then. With an Idempotency-Key it does so
// once in 24 h; if the request is repeated, it returns the key as it was after the first time, and true. Errors:
// ErrNoKey; ErrBalanceRange and ErrKeyReused if nothing was changed; ErrUnavailable.
func (s *store) UpdateKey(deadline time.Time, t *tenant, key string, change keyChange,
	request idempotentRequest) (k apiKey, replayed bool, err error) {
	indexed, err := s.keepIndexed(deadline, t, key, change)
	if err != nil {
		return k, false, err
	}
	defer indexed()
	first, table := anonymousGroup, new(groupTable)
	if change.group != nil {
		first = *change.group
	}
	if t.config != nil && t.config.encoded.refilled {
		table = &t.config.encoded
	}
	outcome, err := s.withGroups(deadline, table, key, first,
		func(groups any, only string) (outcome, group string, err error) {
			script, keys, args := change.script(t, key, request)
			reply, err := s.redis.Eval(deadline, script, keys, append(args, groups, only)...)
			switch reply := reply.(type) {
			case nil:
				return "", "", cmp.Or(err, redis.ErrNil)
			case []byte:
				if other, moved := strings.CutPrefix(string(reply), "group\n"); moved {
					return "", other, nil
				}
				return string(reply), only, nil
			}
			k, replayed, err = parseAPIKey(t, reply)
			return "", only, err
		})
	switch outcome {
	case "":
	case "mismatch":
		err = ErrKeyReused
	case "below", "above":
		err = ErrBalanceRange
	default:
		err = errBadReply
	}
	return k, replayed, withTenant(err, "read an API key", t)
}

// script returns key.lua with its keys and all arguments but the groups: in the form that runs in a full Redis if the
// change needs no memory.
func (change keyChange) script(t *tenant, key string, request idempotentRequest) (*redisdb.Script, []string, []any) {
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
	return script, keys, []any{t.id, t.generation, balance, tokens, group, request.hash, enabled, ttl}
}

// RotateKey gives t's API key a new UUID: the balance, user, group, times, rate log and holds are those of the old one,
// which is dead, in one atomic step. With an Idempotency-Key it does so once in 24 h. Errors: ErrNoKey, ErrUnavailable.
func (s *store) RotateKey(deadline time.Time, t *tenant, key string, request idempotentRequest) (issuedKey, error) {
	rotation, err := s.rotate(deadline, t, key, request)
	if err == nil {
		err = s.finishRotation(deadline, t, key, rotation)
	}
	return rotation.issuedKey, withTenant(err, "rotate an API key", t)
}

// rotation is a key that was rotated, and whose it is.
type rotation struct {
	issuedKey
	userID  string
	signsIn bool
}

// rotate runs rotate.lua. Its nil reply is redis.ErrNil.
func (s *store) rotate(deadline time.Time, t *tenant, key string, request idempotentRequest) (r rotation, err error) {
	k, err := s.Key(deadline, t, key)
	if err != nil && (request.key == "" || !errors.Is(err, ErrNoKey)) { // repeated, and the key gone therefore
		return r, err
	}
	next, err := s.newKeyBeside(apiKeyRedisKey(key), key[:strings.IndexByte(key, '_')+1])
	if err == nil {
		err = s.indexKey(deadline, t.id, k.userID, next, k.createdAt, time.Time{})
	}
	if err != nil {
		return r, err
	}
	keys := append(allRedisKeys(key), allRedisKeys(next)...)
	keys = append(keys, successorRedisKey(key))
	if request.key != "" {
		keys = append(keys, recordRedisKey(key, "rotate", strings.Join([]string{t.id, t.generation, request.key}, " ")))
	}
	reply, err := redis.Values(s.redis.Eval(deadline, rotateScript, keys,
		t.id, t.generation, next, successorTTL.Milliseconds()))
	if err == nil {
		_, err = redis.Scan(reply, &r.key, &r.tokensLeft, &r.userID, &r.signsIn, &r.replayed)
	}
	if r.key != next && (err == nil || errors.Is(err, redis.ErrNil)) {
		_ = s.unindexKey(deadline, t.id, k.userID, next) // it was not created
	}
	return r, err
}

// finishRotation tells the index and the sign-in of a key that was rotated. What it leaves undone the next listing and
// the next sign-in do.
func (s *store) finishRotation(deadline time.Time, t *tenant, key string, r rotation) error {
	err := s.unindexKey(deadline, t.id, r.userID, key)
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

// RevokeKey deletes t's API key and, if forget is set and its user has signed in, lets the next sign-in of that user be
// a first one. Errors: ErrNoKey, ErrUnavailable.
func (s *store) RevokeKey(deadline time.Time, t *tenant, key string, forget bool) error {
	keys := append(allRedisKeys(key), successorRedisKey(key))
	how := ""
	if forget {
		how = forgotten
	}
	owner, err := redis.Strings(s.redis.Eval(deadline, revokeScript, keys, t.id, t.generation, how))
	if err == nil {
		// The key is dead: what follows is done by the next sign-in and the next listing, if it is not done now.
		err = s.unindexKey(deadline, t.id, owner[0], key)
	}
	if err == nil && forget && owner[1] != "" {
		err = s.forget(deadline, signInIdentity{tenant: t, userID: owner[0]}, key)
	}
	return withTenant(err, "revoke an API key", t)
}

// allRedisKeys returns the keys in Redis that end with an API key, or move with it.
func allRedisKeys(key string) []string {
	return []string{apiKeyRedisKey(key), rateRedisKey(key), holdsRedisKey(key), movesRedisKey(key)}
}

// successor returns what Redis says became of an API key, see successorRedisKey; "" if it says nothing.
func (s *store) successor(deadline time.Time, key string) (string, error) {
	successor, err := redis.String(s.redis.Read(deadline, "GET", successorRedisKey(key)))
	if errors.Is(err, redis.ErrNil) {
		err = nil
	}
	return successor, err
}

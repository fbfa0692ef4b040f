package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

// A user who signs in has data in three slots of a cluster: the sign-in record, the API key, and the index of the
// user's keys. They change in steps, in such an order that a crash between two of them leaves nothing that grants
// tokens twice.

const (
	// closedRecordTTL is how long …:closed is kept, which says what was left of a temp_ key, and a move beside the
	// sign-in, until the move has ended. movedRecordTTL is how long …:moves of the user's key is kept, which says that
	// this was added; it must be longer. When a move has ended, its records are kept for minutes.
	closedRecordTTL = 30 * 24 * time.Hour
	movedRecordTTL  = 31 * 24 * time.Hour

	maxMerges = 20 // visitors whose keys are merged into one user's in a day (UTC)
)

// signInRecord is what Redis holds of a user who signs in:
//
//	record = key [ " new" | " zero" ] [ " @" generation ]
//
// As long as the key may not have been created, " new" says that it gets the tokens of its group, " zero" that it gets
// none. The generation is the tenant's, if that is not "".
type signInRecord struct {
	text       string // as it is in Redis, "" if it is not there
	key        string
	pending    string // "", "new" or "zero"
	generation string
}

// signInState is what a signInRecord says of a user.
type signInState int

const (
	signInAbsent  signInState = iota // the user has not signed in before, or is forgotten
	signInFormer                     // the user has signed in to a former tenant of that ID
	signInPending                    // the user's key may not have been created yet
	signInKnown                      // the user's key was created; it may be gone since
)

func (r signInRecord) state(t *tenant) signInState {
	switch {
	case r.key == "":
		return signInAbsent
	case r.generation != t.generation:
		return signInFormer
	case r.pending != "":
		return signInPending
	}
	return signInKnown
}

func newSignInRecord(key, pending, generation string) signInRecord {
	r := signInRecord{key, key, pending, generation}
	if pending != "" {
		r.text += " " + pending
	}
	if generation != "" {
		r.text += " @" + generation
	}
	return r
}

func parseSignInRecord(text string) (signInRecord, error) {
	if text == "" {
		return signInRecord{}, nil
	}
	key, rest, _ := strings.Cut(text, " ")
	pending, generation, _ := strings.Cut(rest, "@")
	r := newSignInRecord(key, strings.TrimSpace(pending), generation)
	known := r.pending == "" || r.pending == "new" || r.pending == "zero"
	if r.text != text || !known || !validCredential(key, userKeyPrefix) {
		return r, errBadReply
	}
	return r, nil
}

// pendingMove is a temp_ key of which what is left is being moved to a user's key.
type pendingMove struct{ from, to string }

// signInIdentity is who signs in: a user of a tenant.
type signInIdentity struct {
	tenant *tenant
	userID string // '<provider>:<subject>'
	group  string // of a new key
	tokens int64  // of a first key
}

// signIn is what a sign-in led to.
type signIn struct {
	listedKey
	created bool  // the key was created now
	merged  *bool // whether the visitor's key was merged into it, now or before; nil: the tenant has no such key
}

// SignIn returns the API key of a user who has signed in. It is created if the user signs in for the first time, with
// tokens, or if the user's key was revoked or has expired, with none. If visitor is a temp_ key of the tenant that
// could be charged, what is left of it and its open holds are moved to the user's key, once, and it is dead; but not
// of more than maxMerges keys a day. However many sign-ins race, and wherever one of them is interrupted, a user has
// one key, one grant, and the tokens of each visitor's key once. Error: ErrUnavailable.
func (s *store) SignIn(deadline time.Time, who signInIdentity, visitor string) (result signIn, err error) {
	k, moves, created, err := s.userKey(deadline, who)
	result.created = created
	for i := 0; i < len(moves) && err == nil; i++ {
		if _, err = s.finishNotedMove(deadline, who, moves[i]); redisdb.IsOutOfMemory(err) {
			err = nil // the note stays
		}
	}
	if err == nil && visitor != "" {
		var noted bool
		if result.merged, noted, err = s.merge(deadline, who, pendingMove{visitor, k.key}); noted {
			moves = append(moves, pendingMove{})
		}
	}
	if len(moves) > 0 && err == nil {
		var now bool
		k, _, now, err = s.userKey(deadline, who) // its balance is another now, and it may be gone since
		result.created = result.created || now
	}
	if err != nil {
		return signIn{}, fmt.Errorf("sign in a user of tenant %s: %w", who.tenant.id, err)
	}
	result.listedKey = k
	return result, nil
}

// userKey returns the user's key, which it creates if it is missing, and the moves to it that are not known to have
// ended.
func (s *store) userKey(deadline time.Time, who signInIdentity) (k listedKey, moves []pendingMove, created bool,
	err error) {
	record, moves, err := s.readSignInRecord(deadline, who)
	for err == nil {
		var next signInRecord
		switch record.state(who.tenant) {
		case signInAbsent:
			next, err = recordOfNewKey(who, "new")
		case signInFormer:
			if err = s.checkGeneration(deadline, who.tenant); err == nil { // else who.tenant is the former one
				next, err = recordOfNewKey(who, "new")
			}
		case signInPending:
			next, created, err = s.createUserKey(deadline, who, record)
		case signInKnown:
			k = listedKey{key: record.key}
			if k.apiKey, err = s.Key(deadline, who.tenant, record.key); err == nil {
				if k.sharesWith == "" {
					return k, moves, created, nil
				}
				err = ErrNoKey // it was rotated with a grace, which somebody has not told the record yet
			}
			if errors.Is(err, ErrNoKey) {
				created = false
				next, err = s.replacedKey(deadline, who, record)
			}
		}
		if err == nil {
			record, moves, err = s.replaceSignInRecord(deadline, who, record, next)
		}
	}
	return k, nil, false, err
}

// readSignInRecord returns the record of a user, and the moves that are noted.
func (s *store) readSignInRecord(deadline time.Time, who signInIdentity) (signInRecord, []pendingMove, error) {
	return s.runSignIn(deadline, signInScript, who, "", "")
}

// replaceSignInRecord replaces the record of a user by next, if it is still before. It returns the record as it is
// then, and the moves that are noted.
func (s *store) replaceSignInRecord(deadline time.Time, who signInIdentity, before, next signInRecord) (
	signInRecord, []pendingMove, error) {
	script := growingSignInScript
	if next.text == "" {
		script = signInScript
	}
	record, moves, err := s.runSignIn(deadline, script, who, before.text, next.text)
	if err == nil && before.key != "" && before.text != next.text && record.text == next.text {
		err = s.forgetFate(deadline, before.key)
	}
	return record, moves, err
}

// forgetFate lets Redis forget after a while what became of a user's key, which the sign-in knows now.
func (s *store) forgetFate(deadline time.Time, key string) error {
	err := s.expire(deadline, successorRedisKey(key), movedRecordTTL)
	if err == nil {
		err = s.expire(deadline, revokedRedisKey(key), movedRecordTTL)
	}
	return err
}

// noteMove notes a move to a user's key, unless there were maxMerges today, and returns all moves that are noted. If
// alone is set, it does so only if no other is noted.
func (s *store) noteMove(deadline time.Time, who signInIdentity, move pendingMove, alone bool) ([]pendingMove, error) {
	how := ""
	if alone {
		how = "alone"
	}
	_, moves, err := s.runSignIn(deadline, growingSignInScript, who,
		"", "", move.from, move.to, closedRecordTTL.Milliseconds(), maxMerges, how)
	return moves, err
}

// runSignIn runs signin.lua, and returns the record of a user and the moves that are noted.
func (s *store) runSignIn(deadline time.Time, script *redisdb.Script, who signInIdentity, args ...any) (
	record signInRecord, moves []pendingMove, err error) {
	t, id := who.tenant.id, who.userID
	keys := []string{signInRedisKey(t, id), signInMovesRedisKey(t, id), mergesRedisKey(t, id)}
	reply, err := redis.Strings(s.redis.Eval(deadline, script, keys, args...))
	if err != nil {
		return record, nil, err
	}
	for i := 2; i < len(reply); i += 2 {
		moves = append(moves, pendingMove{reply[i-1], reply[i]})
	}
	record, err = parseSignInRecord(reply[0])
	return record, moves, err
}

// recordOfNewKey returns a record with a new key that is to be created.
func recordOfNewKey(who signInIdentity, pending string) (signInRecord, error) {
	key, err := newCredential(userKeyPrefix)
	return newSignInRecord(key, pending, who.tenant.generation), err
}

// createUserKey creates the key of a record, unless that was done before. It returns the record that comes next.
func (s *store) createUserKey(deadline time.Time, who signInIdentity, record signInRecord) (next signInRecord,
	created bool, err error) {
	t := who.tenant
	tokens := who.tokens
	if record.pending == "zero" {
		tokens = 0
	}
	now := time.Now()
	if err := s.indexNewKey(deadline, t, who.userID, record.key, now); err != nil {
		return record, false, err
	}
	keys := []string{apiKeyRedisKey(record.key), successorRedisKey(record.key)}
	successor, err := redis.String(s.redis.Eval(deadline, userScript, keys,
		t.id, t.generation, who.group, formatTime(now), tokens, who.userID))
	switch {
	case errors.Is(err, redis.ErrNil): // it was created now
		o := keyOwner{tenantID: t.id, generation: t.generation, userID: who.userID, createdAt: now}
		_ = s.indexOwned(deadline, o, record.key) // it may have been removed meanwhile
		return newSignInRecord(record.key, "", record.generation), true, nil
	case err != nil:
		return record, false, err
	}
	if o, err := s.indexStored(deadline, record.key); err == nil && o.userID == "" {
		_ = s.unindexKey(deadline, t.id, who.userID, record.key) // it was revoked since
	}
	next, err = successorRecord(who, record, successor)
	return next, false, err
}

// replacedKey returns the record that comes after one whose key is gone.
func (s *store) replacedKey(deadline time.Time, who signInIdentity, record signInRecord) (signInRecord, error) {
	successor, err := s.successor(deadline, record.key)
	if err != nil {
		return record, err
	}
	if successor == "" {
		return recordOfNewKey(who, "zero")
	}
	return successorRecord(who, record, successor)
}

// successorRecord returns the record that comes after one of whose key Redis says that successor has replaced it.
func successorRecord(who signInIdentity, record signInRecord, successor string) (signInRecord, error) {
	switch {
	case successor == "":
		successor = record.key
	case successor == forgotten:
		return recordOfNewKey(who, "new")
	case !validCredential(successor, userKeyPrefix):
		return record, errBadReply
	}
	return newSignInRecord(successor, "", record.generation), nil
}

// runClose runs a step of close.lua for a visitor's key. The reply is nil if the tenant has no such key.
func (s *store) runClose(deadline time.Time, who signInIdentity, visitor, step, to string) (reply []string, err error) {
	t := who.tenant
	keys := []string{apiKeyRedisKey(visitor), rateRedisKey(visitor), holdsRedisKey(visitor), closedRedisKey(visitor),
		movingRedisKey(visitor)}
	owner := strings.Join([]string{t.id, t.generation, who.userID}, " ")
	_, err = s.withGroups(deadline, &t.config.encoded, newHolder(visitor), anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			reply, err = redis.Strings(s.redis.Eval(deadline, closeScript, keys,
				t.id, t.generation, groups, only, step, owner, to, closedRecordTTL.Milliseconds()))
			return decideMove(reply, only, err)
		})
	if errors.Is(err, redis.ErrNil) {
		return nil, nil
	}
	return reply, err
}

// decideMove returns what a reply of close.lua or receive.lua means to withGroups.
func decideMove(reply []string, only string, err error) (outcome, group string, _ error) {
	switch {
	case err != nil:
		return "", "", err
	case reply[0] == "group":
		return "", reply[1], nil
	case reply[0] == "due":
		return "due", only, nil
	}
	return "", only, nil
}

// forget lets the next sign-in of a user whose key was revoked with forgotten be a first one. It reports whether that
// key was the user's.
func (s *store) forget(deadline time.Time, who signInIdentity, key string) (forgot bool, err error) {
	record, _, err := s.readSignInRecord(deadline, who)
	if err == nil && record.key == key {
		forgot = true
		_, _, err = s.replaceSignInRecord(deadline, who, record, signInRecord{})
	}
	if err == nil {
		err = s.forgetFate(deadline, key)
	}
	return forgot, err
}

// expire lets a key in Redis expire after ttl.
func (s *store) expire(deadline time.Time, name string, ttl time.Duration) error {
	_, err := s.redis.Write(deadline, "PEXPIRE", name, ttl.Milliseconds())
	return err
}

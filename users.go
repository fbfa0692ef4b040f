package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tollgate/internal/redisdb"

	"github.com/gomodule/redigo/redis"
)

// Users who sign in, and the keys of each user. What is said of a user is in three slots of a cluster: the sign-in, the
// user's API key, and the index of the user's keys. The order of the steps is such that a crash between two of them
// leaves nothing that grants tokens twice.

const (
	// closedRecordTTL is how long it is remembered what was left of a temp_ key that was moved, and movedRecordTTL, which
	// must be longer, that it was added.
	closedRecordTTL = 30 * 24 * time.Hour
	movedRecordTTL  = 31 * 24 * time.Hour

	// successorTTL is how long the successor of a key that was rotated is remembered: as long as a hold may last.
	successorTTL = 24 * time.Hour

	forgotten = "forget" // the value of successorRedisKey if a user is to be forgotten

	maxConcurrentReads = 64
)

// allRedisKeys returns the keys in Redis that end with an API key, or move with it.
func allRedisKeys(key string) []string {
	return []string{apiKeyRedisKey(key), rateRedisKey(key), holdsRedisKey(key), movesRedisKey(key)}
}

func signInRedisKey(tenantID, userID string) string { return "signIn:" + tenantID + ":" + userID }
func movesRedisKey(key string) string               { return "{apiKey:" + key + "}:moves" }

// signInRecord is what Redis holds of a user who signs in: '<API key>', if the key is not known to have been created
// ' new' (with the tokens of its group) or ' zero' (with none), and ' @<generation>' unless the tenant's is "".
type signInRecord struct {
	text       string // as it is in Redis, "" if it is not there
	key        string
	pending    string // "", "new" or "zero"
	generation string
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

// SignIn returns the API key of a user who has signed in, and whether it was created now: with tokens if the user signs
// in for the first time, with none if the user's key was revoked or has expired. If visitor is a temp_ key of the
// tenant that is not disabled, what is left of it is added to the user's key, once, and it is dead. However many
// sign-ins race, and wherever one of them is interrupted, a user has one key, one grant, and the tokens of each
// visitor's key once. Error: ErrUnavailable.
func (s *store) SignIn(deadline time.Time, who signInIdentity, visitor string) (k listedKey, created bool, err error) {
	for moves := []pendingMove(nil); ; {
		var now bool
		k, moves, now, err = s.userKey(deadline, who)
		created = created || now
		if err == nil && visitor != "" {
			move := pendingMove{visitor, k.key}
			visitor = ""
			if _, moves, err = s.changeSignIn(deadline, who, signInRecord{}, signInRecord{}, move); err != nil {
				break
			}
		}
		if err != nil || len(moves) == 0 {
			break
		}
		if err = s.finishMoves(deadline, who, moves); err != nil {
			break
		}
	}
	if err != nil {
		return k, false, fmt.Errorf("sign in a user of tenant %s: %w", who.tenant.id, err)
	}
	return k, created, nil
}

// listedKey is an API key with what Redis holds of it.
type listedKey struct {
	key string
	apiKey
}

// userKey returns the user's key, which it creates if it is missing, and the moves to it that are not known to have
// ended.
func (s *store) userKey(deadline time.Time, who signInIdentity) (k listedKey, moves []pendingMove, created bool,
	err error) {
	var record signInRecord
	next := record
	for {
		record, moves, err = s.changeSignIn(deadline, who, record, next)
		if err != nil {
			return k, nil, false, err
		}
		switch {
		case record.key == "":
			next, err = s.nextSignIn(who, "new")
		case record.generation != who.tenant.generation: // a user of a former tenant, unless who.tenant is a former one
			if err = s.checkGeneration(deadline, who.tenant); err == nil {
				next, err = s.nextSignIn(who, "new")
			}
		case record.pending != "":
			created, next, err = s.createUserKey(deadline, who, record)
		default:
			k.key = record.key
			k.apiKey, err = s.Key(deadline, who.tenant, record.key)
			if err == nil {
				return k, moves, created, nil
			}
			if errors.Is(err, ErrNoKey) {
				created = false
				next, err = s.replacedKey(deadline, who, record)
			}
		}
		if err != nil {
			return k, nil, false, err
		}
	}
}

// changeSignIn replaces the record of a user by next, if it is before, and notes a move. It returns the record as it is
// then, and all moves that are noted.
func (s *store) changeSignIn(deadline time.Time, who signInIdentity, before, next signInRecord,
	move ...pendingMove) (signInRecord, []pendingMove, error) {
	name := signInRedisKey(who.tenant.id, who.userID)
	args := []any{before.text, next.text}
	for _, m := range move {
		args = append(args, m.from, m.to)
	}
	script := growingSignInScript
	if len(move) == 0 && (next.text == "" || next.text == before.text) {
		script = signInScript
	}
	reply, err := redis.Strings(s.redis.Eval(deadline, script, []string{name, "{" + name + "}:moves"}, args...))
	if err != nil {
		return signInRecord{}, nil, err
	}
	record, err := parseSignInRecord(reply[0])
	var moves []pendingMove
	for i := 2; i < len(reply); i += 2 {
		moves = append(moves, pendingMove{reply[i-1], reply[i]})
	}
	if err == nil && before.key != "" && before.text != next.text && record.text == next.text {
		// What became of the key is known here now, so that it need not be remembered beside the key itself for long.
		err = s.expire(deadline, successorRedisKey(before.key), movedRecordTTL)
	}
	return record, moves, err
}

// nextSignIn returns a record with a new key that is to be created.
func (s *store) nextSignIn(who signInIdentity, pending string) (signInRecord, error) {
	key, err := newCredential(userKeyPrefix)
	return newSignInRecord(key, pending, who.tenant.generation), err
}

// createUserKey creates the key of a record, unless that was done before. It returns the record that comes next.
func (s *store) createUserKey(deadline time.Time, who signInIdentity, record signInRecord) (bool, signInRecord, error) {
	tokens := who.tokens
	if record.pending == "zero" {
		tokens = 0
	}
	if err := s.indexKey(deadline, who.tenant.id, who.userID, record.key); err != nil {
		return false, record, err
	}
	keys := []string{apiKeyRedisKey(record.key), successorRedisKey(record.key)}
	reply, err := s.redis.Eval(deadline, userScript, keys,
		who.tenant.id, who.tenant.generation, who.group, formatTime(time.Now()), tokens, who.userID)
	if err != nil {
		return false, record, err
	}
	successor, err := redis.String(reply, nil)
	if errors.Is(err, redis.ErrNil) { // it was created now
		_ = s.indexKey(deadline, who.tenant.id, who.userID, record.key) // whoever listed the keys meanwhile has removed it
		return true, newSignInRecord(record.key, "", record.generation), nil
	}
	next, err := s.successorRecord(who, record, successor)
	return false, next, err
}

// replacedKey returns the record that comes after one whose key is gone.
func (s *store) replacedKey(deadline time.Time, who signInIdentity, record signInRecord) (signInRecord, error) {
	successor, err := s.successor(deadline, record.key)
	if err != nil {
		return record, err
	}
	if successor == "" {
		return s.nextSignIn(who, "zero")
	}
	return s.successorRecord(who, record, successor)
}

// successorRecord returns the record that comes after one of whose key Redis says that successor has replaced it.
func (s *store) successorRecord(who signInIdentity, record signInRecord, successor string) (signInRecord, error) {
	switch {
	case successor == "":
		successor = record.key
	case successor == forgotten:
		return s.nextSignIn(who, "new")
	case !validCredential(successor, userKeyPrefix):
		return record, errBadReply
	}
	return newSignInRecord(successor, "", record.generation), nil
}

// finishMoves carries out moves that are noted, in steps each of which may be repeated: it closes the visitor's key,
// adds what was left of it to the user's, and forgets the move. A move to a key that was revoked has no effect.
func (s *store) finishMoves(deadline time.Time, who signInIdentity, moves []pendingMove) error {
	t := who.tenant
	for _, move := range moves {
		if !validCredential(move.from, anonymousKeyPrefix) || !validCredential(move.to, userKeyPrefix) {
			return errBadReply
		}
		keys := []string{apiKeyRedisKey(move.from), rateRedisKey(move.from), holdsRedisKey(move.from),
			"{apiKey:" + move.from + "}:closed"}
		owner := strings.Join([]string{t.id, t.generation, who.userID}, " ")
		args := []any{t.id, t.generation, owner, closedRecordTTL.Milliseconds()}
		tokens, err := redis.Int64(s.redis.Eval(deadline, closeScript, keys, args...))
		if err == nil {
			err = s.receive(deadline, t, move, tokens)
		}
		if err == nil {
			_, err = s.redis.Eval(deadline, closeScript, keys, append(args, "moved")...)
		}
		if err == nil || errors.Is(err, redis.ErrNil) {
			_, err = s.redis.Write(deadline, "HDEL", "{"+signInRedisKey(t.id, who.userID)+"}:moves", move.from)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// receive adds what was left of a visitor's key to the user's key or, if that was rotated, to the one that has replaced
// it.
func (s *store) receive(deadline time.Time, t *tenant, move pendingMove, tokens int64) error {
	for key := move.to; key != "" && key != forgotten; {
		keys := []string{apiKeyRedisKey(key), movesRedisKey(key)}
		done, err := redis.Bool(s.redis.Eval(deadline, receiveScript, keys,
			t.id, t.generation, digest(move.from), tokens, movedRecordTTL.Milliseconds()))
		if err != nil || done {
			return err
		}
		if key, err = s.successor(deadline, key); err != nil {
			return err
		}
	}
	return nil
}

// forget lets the next sign-in of a user whose key was revoked with forgotten be a first one.
func (s *store) forget(deadline time.Time, who signInIdentity, key string) error {
	record, _, err := s.changeSignIn(deadline, who, signInRecord{}, signInRecord{})
	if err == nil && record.key == key {
		_, _, err = s.changeSignIn(deadline, who, record, signInRecord{})
	}
	if err == nil {
		err = s.expire(deadline, successorRedisKey(key), movedRecordTTL)
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
	if errors.Is(err, redis.ErrNil) {
		return ErrNoKey
	}
	if err == nil {
		// The key is dead: what follows is done by the next sign-in and the next listing, if it is not done now.
		err = s.unindexKey(deadline, t.id, owner[0], key)
	}
	if err == nil && forget && owner[1] != "" {
		err = s.forget(deadline, signInIdentity{tenant: t, userID: owner[0]}, key)
	}
	if err != nil {
		return fmt.Errorf("revoke an API key of tenant %s: %w", t.id, err)
	}
	return nil
}

// RotateKey gives t's API key a new UUID and returns the key and its balance: the balance, user, group, times, rate log
// and holds are those of the old one, which is dead, in one atomic step. With an Idempotency-Key it does so once in 24
// h; if the request is repeated, it returns the key and the balance of the first time, and true. Errors: ErrNoKey,
// ErrUnavailable.
func (s *store) RotateKey(deadline time.Time, t *tenant, key string, request idempotentRequest) (rotated string,
	tokensLeft int64, replayed bool, err error) {
	rotated, err = newKeyInSlot(key)
	var k apiKey
	if err == nil {
		k, err = s.Key(deadline, t, key)
	}
	if err == nil {
		err = s.indexKey(deadline, t.id, k.userID, rotated)
	}
	var owner rotatedOwner
	if err == nil || errors.Is(err, ErrNoKey) { // the request may be repeated, and the key gone therefore
		rotated, tokensLeft, owner, err = s.rotateOnce(deadline, t, key, rotated, request)
	}
	if errors.Is(err, ErrNoKey) {
		return "", 0, false, ErrNoKey
	}
	if err == nil {
		err = s.finishRotation(deadline, t, key, rotated, owner)
	}
	if err != nil {
		return "", 0, false, fmt.Errorf("rotate an API key of tenant %s: %w", t.id, err)
	}
	return rotated, tokensLeft, owner.replayed, nil
}

// rotatedOwner is whose key was rotated.
type rotatedOwner struct {
	userID   string
	signsIn  bool
	replayed bool // it was rotated before
}

// rotateOnce runs rotate.lua. Errors: ErrNoKey, ErrUnavailable.
func (s *store) rotateOnce(deadline time.Time, t *tenant, key, next string, request idempotentRequest) (rotated string,
	tokensLeft int64, owner rotatedOwner, err error) {
	keys := append(allRedisKeys(key), allRedisKeys(next)...)
	keys = append(keys, successorRedisKey(key))
	if request.key != "" {
		keys = append(keys, recordRedisKey(key, "rotate", strings.Join([]string{t.id, t.generation, request.key}, " ")))
	}
	reply, err := redis.Values(s.redis.Eval(deadline, rotateScript, keys,
		t.id, t.generation, next, successorTTL.Milliseconds()))
	if errors.Is(err, redis.ErrNil) {
		return "", 0, owner, ErrNoKey
	}
	if err == nil {
		_, err = redis.Scan(reply, &rotated, &tokensLeft, &owner.userID, &owner.signsIn, &owner.replayed)
	}
	return rotated, tokensLeft, owner, err
}

// finishRotation tells the index and the sign-in of a key that was rotated. What it leaves undone the next listing and
// the next sign-in do.
func (s *store) finishRotation(deadline time.Time, t *tenant, key, rotated string, owner rotatedOwner) error {
	err := s.unindexKey(deadline, t.id, owner.userID, key)
	if err == nil {
		err = s.indexKey(deadline, t.id, owner.userID, rotated) // whoever listed the keys meanwhile has removed it
	}
	if err != nil || !owner.signsIn {
		return err
	}
	who := signInIdentity{tenant: t, userID: owner.userID}
	record, _, err := s.changeSignIn(deadline, who, signInRecord{}, signInRecord{})
	if err == nil && record.key == key {
		_, _, err = s.changeSignIn(deadline, who, record, newSignInRecord(rotated, "", record.generation))
	}
	return err
}

// newKeyInSlot returns a new API key of the kind of key, all of which is in the slot of key in a Redis Cluster, so that
// one atomic step can rename it.
func newKeyInSlot(key string) (string, error) {
	prefix := key[:strings.IndexByte(key, '_')+1]
	for slot := redisdb.Slot(apiKeyRedisKey(key)); ; {
		next, err := newCredential(prefix)
		if err != nil || redisdb.Slot(apiKeyRedisKey(next)) == slot {
			return next, err
		}
	}
}

// CountLogin counts a login of address, unless it has had perMinute in the last minute, over all processes. Errors:
// rateLimitError, ErrUnavailable.
func (s *store) CountLogin(deadline time.Time, address string, perMinute int64) error {
	wait, err := redis.Int64(s.redis.Eval(deadline, issueScript, []string{loginRedisKey(address)}, 0, perMinute))
	if err != nil {
		return fmt.Errorf("count a login: %w", err)
	}
	if wait > 0 {
		return rateLimitError{wait}
	}
	return nil
}

func (s *store) expire(deadline time.Time, name string, ttl time.Duration) error {
	_, err := s.redis.Write(deadline, "PEXPIRE", name, ttl.Milliseconds())
	return err
}

// checkGeneration returns ErrUnavailable if t is not known to be the tenant that has its ID now: it may have been
// deleted and created again since its config was read.
func (s *store) checkGeneration(deadline time.Time, t *tenant) error {
	generation, err := redis.String(s.redis.Read(deadline, "GET", generationRedisKey(t.id)))
	if err != nil && !errors.Is(err, redis.ErrNil) {
		return err
	}
	if generation != t.generation {
		return fmt.Errorf("%w: the tenant was deleted, and the config in use is older", ErrUnavailable)
	}
	return nil
}

// UserKeys returns the API keys of a user of t, oldest first. The index is only a hint: what it names is looked up, and
// removed from it if it is not a key of that user. Error: ErrUnavailable.
func (s *store) UserKeys(deadline time.Time, t *tenant, userID string) ([]listedKey, error) {
	named, err := redis.Strings(s.redis.Read(deadline, "SMEMBERS", userKeysRedisKey(t.id, userID)))
	found := make([]*listedKey, len(named))
	if err == nil {
		err = inParallel(len(named), func(i int) error {
			k, err := apiKey{}, ErrNoKey
			if validAPIKey(named[i]) {
				k, err = s.Key(deadline, t, named[i])
			}
			if err == nil && k.userID == userID {
				found[i] = &listedKey{named[i], k}
				return nil
			}
			if err == nil || errors.Is(err, ErrNoKey) {
				err = s.dropFromIndex(deadline, t, userID, named[i])
			}
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list the API keys of a user of tenant %s: %w", t.id, err)
	}
	keys := make([]listedKey, 0, len(named))
	for _, k := range found {
		if k != nil {
			keys = append(keys, *k)
		}
	}
	slices.SortFunc(keys, func(a, b listedKey) int {
		if order := a.createdAt.Compare(b.createdAt); order != 0 {
			return order
		}
		return strings.Compare(a.key, b.key)
	})
	return keys, nil
}

// dropFromIndex removes from the index of a user what is not known to be a key of that user, and adds it again if it
// has become one meanwhile: keys are added before they are created.
func (s *store) dropFromIndex(deadline time.Time, t *tenant, userID, key string) error {
	err := s.checkGeneration(deadline, t)
	if err == nil {
		err = s.unindexKey(deadline, t.id, userID, key)
	}
	if err != nil || !validAPIKey(key) {
		return err
	}
	k, err := s.Key(deadline, t, key)
	if err == nil && k.userID == userID {
		return s.indexKey(deadline, t.id, userID, key)
	}
	if errors.Is(err, ErrNoKey) {
		return nil
	}
	return err
}

// inParallel calls f with 0 … n-1, at most maxConcurrentReads at a time, and returns one of the errors.
func inParallel(n int, f func(i int) error) error {
	var calls sync.WaitGroup
	var mu sync.Mutex
	var first error
	slots := make(chan struct{}, maxConcurrentReads)
	for i := range n {
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				first = err
			}
		})
	}
	calls.Wait()
	return first
}

const (
	reindexStep    = 1000 // keys that Redis looks at before it does something else
	reindexTimeout = 10 * time.Second
)

// Reindex adds every API key of a user to the index, as far as it is missing: those that were created before there was
// an index. It may run beside processes that serve. After each step it calls progress with how many keys it has found.
// It ends early if ctx is done.
func (s *store) Reindex(ctx context.Context, progress func(keys int)) error {
	keys := 0
	err := s.redis.Scan(apiKeyRedisKey(userKeyPrefix+"*"), reindexStep, reindexTimeout, func(names []string) error {
		deadline := time.Now().Add(reindexTimeout)
		err := inParallel(len(names), func(i int) error {
			key, _ := strings.CutPrefix(names[i], apiKeyRedisKey(""))
			owner, err := redis.Strings(s.redis.Read(deadline, "HMGET", names[i], "tenantId", "userId"))
			if err != nil || !validAPIKey(key) || !validTenantID(owner[0]) {
				return err
			}
			return s.indexKey(deadline, owner[0], owner[1], key)
		})
		keys += len(names)
		progress(keys)
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return fmt.Errorf("index the API keys: %w", err)
	}
	return nil
}

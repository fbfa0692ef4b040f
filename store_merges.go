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

// A visitor's key is merged into the key of the user who signs in, in steps that may be repeated: the move is noted
// beside the sign-in (noteMove), the visitor's key is closed, what was left of it is added to the user's, and all three
// forget it.

// merge merges a visitor's key into the user's, if it may be. merged is what SignIn returns. noted reports whether
// something may have moved now.
func (s *store) merge(deadline time.Time, who signInIdentity, move pendingMove) (merged *bool, noted bool, err error) {
	state, holds, err := s.lookAtVisitor(deadline, who, move.from)
	if err != nil || state == "" {
		return nil, false, err
	}
	moved := state == "closed"
	if moved || state == "refused" {
		return &moved, false, nil
	}
	var moves []pendingMove
	for i, attempt := -1, 0; i < 0; attempt++ {
		moves, err = s.noteMove(deadline, who, move, holds > 0)
		i = slices.IndexFunc(moves, func(m pendingMove) bool { return m.from == move.from })
		if err != nil || i < 0 && (len(moves) == 0 || attempt == maxMerges) {
			return &moved, attempt > 0, err
		}
		if i >= 0 {
			moves = moves[i : i+1]
		}
		for _, m := range moves { // this one or, before one with holds, all others
			if moved, err = s.finishNotedMove(deadline, who, m); err != nil {
				return &moved, true, err
			}
		}
	}
	return &moved, true, nil
}

// fits reports whether the user's key can be read, and may have that many more open holds.
func (s *store) fits(deadline time.Time, who signInIdentity, key string, holds int) (bool, error) {
	receiver, reply, err := s.runReceive(deadline, who.tenant, key, "", movedRecordTTL.Milliseconds(), 0, 0, "")
	if err != nil || receiver == "" {
		return err == nil, err // a move to a key that is gone has no effect
	}
	open, err := strconv.Atoi(reply[1])
	return open+holds <= maxHolds, err
}

// lookAtVisitor returns "open" if a visitor's key may be merged into the user's key, or "closing" if that has begun,
// and how many open holds it has; "closed" if it was merged before, "refused" if it may not be, and "" if the tenant
// has no such key.
func (s *store) lookAtVisitor(deadline time.Time, who signInIdentity, visitor string) (state string, holds int,
	err error) {
	reply, err := s.runClose(deadline, who, visitor, "look", "")
	if isMalformed(err) {
		s.logMalformedVisitor(who, err)
		return "refused", 0, nil
	}
	if err != nil || reply == nil {
		return "", 0, err
	}
	if len(reply) > 1 {
		holds, err = strconv.Atoi(reply[1])
	}
	return reply[0], holds, err
}

// logMalformedVisitor says that a visitor's key could not be merged. Its user can sign in all the same.
func (s *store) logMalformedVisitor(who signInIdentity, err error) {
	s.log.Warnf("A visitor's key of tenant %s is not merged: %v", who.tenant.id, err)
}

// finishNotedMove carries out a move that is noted, and forgets the note. It reports whether the tokens were moved, now
// or before. If what it meets is malformed, it says so in the log. The note stays if the visitor's key is closed then.
func (s *store) finishNotedMove(deadline time.Time, who signInIdentity, move pendingMove) (moved bool, err error) {
	if validCredential(move.from, anonymousKeyPrefix) && validCredential(move.to, userKeyPrefix) {
		moved, err = s.tryMove(deadline, who, move)
	}
	if isMalformed(err) {
		s.logMalformedVisitor(who, err)
		closed, wrong := s.readText(deadline, closedRedisKey(move.from))
		if closed != "" || isMalformed(wrong) {
			return false, nil
		}
		err = wrong
	}
	if err == nil {
		_, err = s.redis.Write(deadline, "HDEL", signInMovesRedisKey(who.tenant.id, who.userID), move.from)
	}
	return moved, err
}

// tryMove does what finishMove does, unless the move has not begun, and the user's key cannot take it.
func (s *store) tryMove(deadline time.Time, who signInIdentity, move pendingMove) (moved bool, err error) {
	state, holds, err := s.lookAtVisitor(deadline, who, move.from)
	if err != nil || state == "" || state == "refused" {
		return false, err
	}
	if state == "open" {
		if fits, err := s.fits(deadline, who, move.to, holds); err != nil || !fits {
			return false, err
		}
	}
	return s.finishMove(deadline, who, move)
}

// finishMove closes the visitor's key and adds what was left of it, and its open holds, to the user's. Each step may be
// repeated. It reports whether the tokens were moved, now or before. A move to a key that was revoked has no effect.
func (s *store) finishMove(deadline time.Time, who signInIdentity, move pendingMove) (moved bool, err error) {
	closed, err := s.runClose(deadline, who, move.from, "close", move.to)
	if err != nil || len(closed) < 4 {
		return false, err
	}
	receiver, err := s.receive(deadline, who.tenant, move, closed[1:])
	if err == nil {
		closed, err = s.runClose(deadline, who, move.from, "moved", move.to)
	}
	if err == nil && len(closed) > 2 { // nobody can repeat the requests that have made the holds
		var records []any
		for _, digest := range closed[2:] {
			records = append(records, holdRecordRedisKey(cmp.Or(closed[1], move.from), digest))
		}
		_, err = s.redis.Write(deadline, "UNLINK", records[0].(string), records[1:]...)
	}
	if err == nil && receiver != "" {
		_, err = s.redis.Eval(deadline, movedScript, []string{movesRedisKey(receiver)},
			shortHash(move.from), movedRecordTTL.Milliseconds())
	}
	return err == nil, err
}

// receive adds what was left of a visitor's key, as close.lua returns it, to the user's key or, if that was rotated, to
// its successor. It returns the key that received it, or "" if nothing was left or the user has no key any more.
func (s *store) receive(deadline time.Time, t *tenant, move pendingMove, left []string) (receiver string, err error) {
	if len(left) == 3 && left[0] == "0" {
		return "", nil
	}
	args := []any{shortHash(move.from), movedRecordTTL.Milliseconds()}
	for _, arg := range left {
		args = append(args, arg)
	}
	receiver, _, err = s.runReceive(deadline, t, move.to, args...)
	return receiver, err
}

// runReceive runs receive.lua on a user's key or, if that was rotated, on its successor. It returns the key that it ran
// on, or "" if the user has no key any more.
func (s *store) runReceive(
	deadline time.Time, t *tenant, key string, args ...any,
) (receiver string, reply []string, err error) {
	for key != "" && key != forgotten {
		h := newHolder(key) // in its grace, the key shares its successor's balance
		_, err = s.withGroups(deadline, t.refillGroups(), h, anonymousGroup,
			func(groups any, only string) (outcome, group string, err error) {
				keys := []string{apiKeyRedisKey(h.key), movesRedisKey(h.key), holdsRedisKey(h.key)}
				reply, err = redis.Strings(s.redis.Eval(deadline, receiveScript, keys,
					append([]any{t.id, t.generation, groups, only}, args...)...))
				return decideMove(reply, only, err)
			})
		if !errors.Is(err, redis.ErrNil) {
			return h.key, reply, err
		}
		if key, err = s.present(deadline, key); err != nil {
			return "", nil, err
		}
	}
	return "", nil, nil
}

// finishMoveOf finishes a move of a visitor's key that is closed in favour of the user, and returns the user's key: to
// or, if that is "", the one that is noted. It returns "" if none is: then the move has ended meanwhile.
func (s *store) finishMoveOf(deadline time.Time, who signInIdentity, visitor, to string) (key string, err error) {
	if to == "" {
		to, err = redis.String(s.redis.Read(deadline, "HGET", signInMovesRedisKey(who.tenant.id, who.userID), visitor))
		if errors.Is(err, redis.ErrNil) {
			return "", nil
		}
	}
	if err == nil {
		_, err = s.finishMove(deadline, who, pendingMove{visitor, to})
	}
	return to, err
}

// An API key may share the balance of another: then its hash has no balance, but says whose it has, and is in the same
// slot. A script that is called with it ends with an error that names the key with the balance; then its second form
// runs there, which checks both keys in one step.

const maxShares = 100 // keys that may share the balance of one

var (
	// ErrTooManyShares means that as many API keys share the balance of one as may.
	ErrTooManyShares = errors.New("too many keys share the balance")
	// ErrInGrace means that the API key was rotated, and is valid for its grace only.
	ErrInGrace = errors.New("API key was rotated")
)

// sharesRedisKey returns where the keys are that share the balance of one, by the name that this had first.
func sharesRedisKey(first string) string { return "{apiKey:" + first + "}:shares" }

// madeRedisKey returns where it is remembered that an API key was made which shares the balance of another.
func madeRedisKey(key string) string { return "{apiKey:" + key + "}:made" }

// ShareKey issues an API key of t that shares the balance of another: of k the user, the times, sharesWith and the
// balance are used, which must be those of the other key. With an Idempotency-Key it does so once in 40 days: the
// record, which is in another slot, first names the new key, then one step makes it, which may be repeated. Errors:
// ErrNoKey if sharesWith is not a key with a balance of its own; ErrTooManyShares, ErrKeyReused and request.refused if
// nothing was issued; ErrUnavailable.
func (s *store) ShareKey(deadline time.Time, t *tenant, k apiKey, request idempotentRequest) (issuedKey, error) {
	issued, err := s.shareKey(deadline, t, k, request)
	return issued, withTenant(err, "share the balance of an API key", t)
}

func (s *store) shareKey(deadline time.Time, t *tenant, k apiKey, request idempotentRequest) (issued issuedKey,
	err error) {
	issued.tokensLeft = k.tokensLeft
	issued.key, err = newKeyBeside(apiKeyRedisKey(k.sharesWith), userKeyPrefix)
	if err != nil {
		return issued, err
	}
	if request.key != "" {
		reply, err := s.redis.Eval(deadline, noteScript, []string{issueRecordRedisKey(t, request.key)},
			issued.key, k.tokensLeft, request.hash, request.mode())
		if word, _ := redis.String(reply, nil); word == "new" {
			return issued, request.refused
		} else if word == "mismatch" {
			return issued, ErrKeyReused
		}
		values, err := redis.Values(reply, err)
		if err == nil {
			_, err = redis.Scan(values, &issued.key, &issued.tokensLeft)
		}
		if err != nil {
			return issued, err
		}
	}
	if request.refused == nil {
		if err = s.indexNewKey(deadline, t, k.userID, issued.key, k.createdAt); err != nil {
			return issued, err
		}
	}
	issued.replayed, err = s.runShare(deadline, t, k, issued.key, request)
	if request.refused == nil && !errors.Is(err, ErrUnavailable) {
		// A listing of the keys may have removed it meanwhile.
		if o, wrong := s.indexStored(deadline, issued.key); wrong == nil && o.userID == "" {
			_ = s.unindexKey(deadline, t.id, k.userID, issued.key) // it was not created, or is gone again
		}
	}
	return issued, err
}

// runShare runs share.lua. It reports whether the same request has stored the key before.
func (s *store) runShare(deadline time.Time, t *tenant, k apiKey, key string, request idempotentRequest) (before bool,
	err error) {
	ttl := time.Duration(0)
	if !k.expiresAt.IsZero() {
		ttl = k.expiresAt.Sub(k.createdAt)
	}
	for first := k.sharesWith; ; {
		keys := []string{apiKeyRedisKey(k.sharesWith), sharesRedisKey(first), apiKeyRedisKey(key)}
		if request.key != "" {
			keys = append(keys, madeRedisKey(key))
		}
		reply, err := redis.Strings(s.redis.Eval(deadline, shareScript, keys, t.id, t.generation, k.sharesWith, first,
			key, formatTime(k.createdAt), ttl.Milliseconds(), k.label, maxShares, request.mode()))
		switch {
		case err != nil:
			return false, err
		case reply[0] == "first":
			first = reply[1]
		case reply[0] == "full":
			return false, ErrTooManyShares
		case reply[0] == "new":
			return false, request.refused
		default:
			return reply[0] == "before", nil
		}
	}
}

// evalBalance runs a script on the balance of an API key. sharer is the key that shares the balance, with which the
// caller has come and which the script checks, too; "" if the caller has come with the key itself.
func (s *store) evalBalance(deadline time.Time, script balanceScript, sharer string, keys []string, args ...any) (any,
	error) {
	return s.queueBalance(deadline, nil, script, sharer, keys, args...)
}

// queueBalance does what evalBalance does, and calls queued as redisdb.Client.EvalQueued does.
func (s *store) queueBalance(deadline time.Time, queued func(), script balanceScript, sharer string, keys []string,
	args ...any) (any, error) {
	if sharer == "" {
		return s.redis.EvalQueued(deadline, queued, script.own, keys, args...)
	}
	return s.redis.EvalQueued(deadline, queued, script.sharing, append(keys, apiKeyRedisKey(sharer)), args...)
}

// followBalance changes h to the key whose balance its key shares, if err of a script says that it does. If h has a
// sharer, and err that the key is gone, it changes h to the name that the key has now: mostly the sharer knows that,
// but the key may have been rotated meanwhile. Else it returns err.
func (s *store) followBalance(deadline time.Time, h *holder, err error) error {
	refused, _ := errors.AsType[redis.Error](err)
	if words := strings.Fields(string(refused)); len(words) > 2 && words[0] == "SHARED" {
		h.sharer = cmp.Or(h.sharer, h.key)
		if h.key, h.first = words[1], words[2]; !validAPIKey(h.key) || !validAPIKey(h.first) {
			return errBadReply // the error itself has API keys
		}
		return nil
	}
	if h.sharer == "" || !errors.Is(err, redis.ErrNil) {
		return err
	}
	next, err := s.present(deadline, h.key)
	if err == nil && next == "" {
		s.dropOrphan(deadline, h)
		err = redis.ErrNil
	}
	if err == nil {
		h.key = next
	}
	return err
}

// dropOrphan deletes the sharer of h if the key that it shares with is gone. If that fails, it is tried again when
// somebody comes with that key once more.
func (s *store) dropOrphan(deadline time.Time, h *holder) {
	keys := []string{apiKeyRedisKey(h.sharer), firstRedisKey(h.sharer), apiKeyRedisKey(h.key), successorRedisKey(h.key),
		currentRedisKey(h.first), sharesRedisKey(h.first)}
	_, _ = s.redis.Eval(deadline, orphanScript, keys, h.key, h.first)
}

// followKey changes h, whose key or sharer is gone, to the name that this has now. If neither was rotated, the error is
// redis.ErrNil. A sharer that was in its grace and was not revoked has become the key itself.
func (s *store) followKey(deadline time.Time, h *holder) error {
	next, err := s.present(deadline, h.key)
	if err != nil || next != "" {
		h.key = cmp.Or(next, h.key)
		return err
	}
	if h.sharer == "" {
		return redis.ErrNil
	}
	revoked, err := s.readText(deadline, revokedRedisKey(h.sharer))
	if err == nil && revoked == "" {
		next, err = s.present(deadline, h.sharer)
	}
	switch {
	case err != nil:
		return err
	case next == "":
		return redis.ErrNil
	case next == h.key:
		next = ""
	}
	h.sharer = next
	return nil
}

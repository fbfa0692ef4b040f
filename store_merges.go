package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
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
		if reply, err = s.receiveOnce(deadline, t, key, args...); !errors.Is(err, redis.ErrNil) {
			return key, reply, err
		}
		if key, err = s.present(deadline, key); err != nil {
			return "", nil, err
		}
	}
	return "", nil, nil
}

// receiveOnce runs receive.lua on a user's key. If that was rotated or revoked, the error is redis.ErrNil.
func (s *store) receiveOnce(deadline time.Time, t *tenant, key string, args ...any) (reply []string, err error) {
	keys := []string{apiKeyRedisKey(key), movesRedisKey(key), holdsRedisKey(key)}
	_, err = s.withGroups(deadline, t.refillGroups(), newHolder(key), anonymousGroup,
		func(groups any, only string) (outcome, group string, err error) {
			reply, err = redis.Strings(s.redis.Eval(deadline, receiveScript, keys,
				append([]any{t.id, t.generation, groups, only}, args...)...))
			return decideMove(reply, only, err)
		})
	return reply, err
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

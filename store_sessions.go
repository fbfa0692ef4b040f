package main

import (
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

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
	result.isSettled, result.replayed = true, outcome == "replayed"
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

package main

import (
	"cmp"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
)

// An account is the gateway.Account of a request: its API key. It counts what is charged and refused, and sets the
// headers of the rate limit. Renew and Settle may be called beside the request and after it has ended, so they use
// neither header nor fee.
type account struct {
	server *server
	tenant *tenant
	key    string
	header http.Header     // of the response
	place  *fairpool.Claim // of the request, whose share is what the key's group may have under way
	fee    *usageEvent     // a charge that is not counted yet; nil: none

	mu     sync.Mutex // guards holder
	holder holder     // what is known of the key since Hold
}

// Hold implements gateway.Account.
func (a *account) Hold(deadline time.Time, r gateway.HoldRequest) (gateway.Hold, error) {
	id, err := newCredential(leasePrefix)
	if err != nil {
		return gateway.Hold{}, err
	}
	result, err := a.server.store.Hold(deadline, a.tenant, newHoldRequest(a.key, id, r))
	a.holder = holder{a.key, cmp.Or(result.firstKey, a.key)}
	hold := gateway.Hold{ID: id, Tokens: result.held, Owner: ownerName(result.userID, a.holder.first)}
	return hold, a.refusal(result.decision, err)
}

// newHoldRequest returns what r asks for, of an API key.
func newHoldRequest(key, id string, r gateway.HoldRequest) holdRequest {
	return holdRequest{
		key: key, id: id, most: r.Most, least: r.Least, ttl: r.TTL, half: r.Half, patient: r.Patient, models: r.Models,
	}
}

// onHolder calls f with what is known of the key, and keeps what f finds out, unless it fails in the middle of a move.
// Two calls may run at the same time.
func (a *account) onHolder(f func(h *holder) error) error {
	a.mu.Lock()
	h := a.holder
	a.mu.Unlock()
	err := f(&h)
	if err == nil || errors.Is(err, ErrNoHold) {
		a.mu.Lock()
		a.holder = h
		a.mu.Unlock()
	}
	return err
}

// Renew implements gateway.Account.
func (a *account) Renew(deadline time.Time, hold gateway.Hold, ttl time.Duration) error {
	return forGateway(a.onHolder(func(h *holder) error {
		return a.server.store.RenewHold(deadline, a.tenant, h, hold.ID, hold.Tokens, ttl)
	}))
}

// Settle implements gateway.Account. It also finds the hold of a key that was rotated or merged since, and charges for
// one that has expired.
func (a *account) Settle(deadline time.Time, holdID string, u gateway.Usage) (gateway.Balance, error) {
	var result settlement
	err := a.onHolder(func(h *holder) (err error) {
		r := settleRequest{holdID: holdID, used: u.Cost, isLease: true}
		result, err = a.server.store.Settle(deadline, a.tenant, h, r)
		return err
	})
	if err != nil {
		return gateway.Balance{}, forGateway(err)
	}
	a.countUsage(result, u)
	return gateway.Balance{Charged: result.charged, Left: result.tokensLeft}, nil
}

// countUsage counts what a settlement has charged for.
func (a *account) countUsage(s settlement, u gateway.Usage) {
	e := usageEvent{
		group: s.group, endpoint: u.Endpoint, model: u.Model, requests: 1, charged: s.charged, used: u.Usage,
	}
	if u.IsPart {
		e.requests = 0
	}
	a.count(e)
}

// Charge implements gateway.Account. It leaves it to countFee to count the charge, since Refund may undo it.
func (a *account) Charge(deadline time.Time, models []string, u gateway.Usage) (gateway.Balance, error) {
	c := chargeRequest{key: a.key, tokens: u.Cost, models: models}
	result, err := a.server.store.Charge(deadline, a.tenant, c)
	if err := a.refusal(result.decision, err); err != nil {
		return gateway.Balance{}, err
	}
	a.fee = &usageEvent{
		group: result.group, endpoint: u.Endpoint, model: u.Model, requests: 1, charged: result.charged,
	}
	return gateway.Balance{Charged: result.charged, Left: result.tokensLeft}, nil
}

// Count implements gateway.Account.
func (a *account) Count(deadline time.Time) error {
	result, err := a.server.store.Charge(deadline, a.tenant, chargeRequest{key: a.key, free: true})
	return a.refusal(result.decision, err)
}

// Refund implements gateway.Account.
func (a *account) Refund(deadline time.Time, tokens int64) error {
	a.fee = nil
	if tokens == 0 {
		return nil
	}
	change := keyChange{addTokens: &tokens}
	_, _, err := a.server.store.UpdateKey(deadline, a.tenant, a.key, change, idempotentRequest{})
	return err
}

// countFee counts what Charge has charged. It is called when the request has ended.
func (a *account) countFee() {
	switch {
	case a.fee == nil:
	case a.fee.charged == 0: // it was free, which is no charge to count
		a.server.usage.add(a.tenant, *a.fee)
	default:
		a.count(*a.fee)
	}
}

// count counts what was charged.
func (a *account) count(e usageEvent) {
	a.server.metrics.charged(a.tenant.id, e.charged)
	a.server.usage.add(a.tenant, e)
}

// refusal sets the headers and the share for a decision of the store, and returns err, the store's error, as the
// gateway understands it. It counts refusals, but for those for lack of tokens: the gateway may repeat them, and relay
// counts the last one.
func (a *account) refusal(d decision, err error) error {
	counted := err
	if _, spent := errors.AsType[insufficientTokensError](err); spent {
		counted = nil
	}
	_ = a.server.decided(a.header, a.tenant.id, d, counted)
	group := a.tenant.config.groups[d.group]
	a.place.SetShare(group.maxConcurrent)
	if errors.Is(err, ErrModelDenied) {
		return gateway.DeniedError{Allowed: group.models}
	}
	return forGateway(err)
}

// forGateway returns an error of the store as the gateway understands it.
func forGateway(err error) error {
	spent, isSpent := errors.AsType[insufficientTokensError](err)
	switch {
	case isSpent:
		return gateway.InsufficientError{Left: spent.tokensLeft, Held: spent.tokensHeld}
	case errors.Is(err, ErrUnavailable):
		return storeError{err, gateway.ErrUnavailable}
	case errors.Is(err, ErrNoKey), errors.Is(err, ErrNoHold), // a key that was revoked has no holds
		errors.Is(err, ErrNoTenant): // nor has a tenant that was deleted
		return storeError{err, gateway.ErrNoHold}
	}
	return err
}

// A storeError is an error of the store that is also one of the gateway.
type storeError struct{ store, gateway error }

func (e storeError) Error() string   { return e.store.Error() }
func (e storeError) Unwrap() []error { return []error{e.store, e.gateway} }

const fullLogPause = 10 * time.Minute // between two lines in the log

// ResponseHead returns the first n bytes of a cached response. They are empty if nothing is cached. An error says only
// that they are not known.
func (s *store) ResponseHead(deadline time.Time, redisKey string, n int) ([]byte, error) {
	return redis.Bytes(s.redis.ReadDispensable(deadline, "GETRANGE", redisKey, 0, n-1))
}

// Response returns a cached response. An error says only that nothing is cached, or that it is not known.
func (s *store) Response(deadline time.Time, redisKey string) ([]byte, error) {
	return redis.Bytes(s.redis.ReadDispensable(deadline, "GET", redisKey))
}

// StoreResponse caches a response for ttl, if Redis has memory to spare. Errors: redisdb.ErrFull if it has not;
// ErrUnavailable.
func (s *store) StoreResponse(deadline time.Time, redisKey string, value []byte, ttl time.Duration) error {
	return s.redis.WriteIfRoom(deadline, len(value), "SET", redisKey, value, "EX", int64(ttl/time.Second))
}

// A tenantCache is the gateway.Cache of a tenant.
type tenantCache struct {
	server   *server
	tenantID string
}

// Head implements gateway.Cache.
func (c tenantCache) Head(deadline time.Time, key []byte, n int) ([]byte, error) {
	return c.server.store.ResponseHead(deadline, responseRedisKey(c.tenantID, key), n)
}

// Get implements gateway.Cache.
func (c tenantCache) Get(deadline time.Time, key []byte) ([]byte, error) {
	return c.server.store.Response(deadline, responseRedisKey(c.tenantID, key))
}

// Put implements gateway.Cache.
func (c tenantCache) Put(deadline time.Time, key, value []byte, ttl time.Duration) error {
	err := c.server.store.StoreResponse(deadline, responseRedisKey(c.tenantID, key), value, ttl)
	if errors.Is(err, redisdb.ErrFull) {
		c.server.logFull()
	}
	return err
}

// Count implements gateway.Cache.
func (c tenantCache) Count(result gateway.CacheResult) {
	c.server.metrics.cacheUsed(c.tenantID, result)
}

// logFull logs that responses are neither cached nor remembered, but not each time.
func (s *server) logFull() {
	last, now := s.loggedFull.Load(), time.Now().UnixNano()
	if now-last > int64(fullLogPause) && s.loggedFull.CompareAndSwap(last, now) {
		s.log.Warnf("Redis uses more than three quarters of its memory: responses are neither cached nor remembered " +
			"for their owners")
	}
}

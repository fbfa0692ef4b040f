package main

import (
	"cmp"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
)

// An account is the gateway.Account of a request: its API key. It counts what is charged and refused, and sets the
// headers of the rate limit. Renew and Settle may be called beside the request and after it has ended, so they use
// neither header nor fee.
type account struct {
	server    *server
	tenant    *tenant
	key       string
	header    http.Header     // of the response
	place     *fairpool.Claim // of the request, whose share is what the key's group may have under way
	fee       *usageEvent     // a charge that is not counted yet; nil: none
	denied    bool            // the last decision was that the key's group does not have the model
	isBounded bool            // the key's group bounds how many requests may be under way

	feeFrom string // the key that has paid the last charge

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
	a.holder = result.holder
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
	return a.settleQueued(deadline, holdID, u, nil)
}

// A queuedAccount is an account as a gateway.QueuedAccount. An account itself must not be one: a sessionAccount embeds
// it, and has a Settle of its own that SettleQueued would bypass.
type queuedAccount struct{ *account }

// SettleQueued implements gateway.QueuedAccount. If only a few requests may be under way, the hold must have ended
// before the client sends the next one, which may go to another process. One that only lacks tokens waits for them.
func (a queuedAccount) SettleQueued(deadline time.Time, holdID string, u gateway.Usage, queued func()) (
	gateway.Balance, error) {
	if a.isBounded {
		queued = nil
	}
	return a.settleQueued(deadline, holdID, u, queued)
}

// settleQueued does what Settle does, and calls queued as SettleQueued does, unless it is nil.
func (a *account) settleQueued(deadline time.Time, holdID string, u gateway.Usage, queued func()) (
	gateway.Balance, error) {
	var result settlement
	err := a.onHolder(func(h *holder) (err error) {
		r := settleRequest{holdID: holdID, used: u.Cost, isLease: true, queued: queued}
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
		key: s.key, group: s.group, endpoint: u.Endpoint, model: u.Model, requests: 1, charged: s.charged, used: u.Usage,
	}
	if u.IsPart {
		e.requests = 0
	}
	a.count(e)
}

// countRefused counts a request that ended with err, nil if it was not refused, for lack of tokens or because the
// key's group does not have the model: these are counted once, however often the gateway has tried.
func (a *account) countRefused(err error) {
	switch {
	case err == nil:
	case a.denied:
		a.server.countRefused(a.tenant, refusedGroup)
	case responseTo(err).refusal == refusedBalance:
		a.server.countRefused(a.tenant, refusedBalance)
	}
}

// Charge implements gateway.Account. It leaves it to countFee to count the charge, since Refund may undo it.
func (a *account) Charge(deadline time.Time, models []string, u gateway.Usage) (gateway.Balance, error) {
	c := chargeRequest{key: a.key, tokens: u.Cost, models: models}
	result, err := a.server.store.Charge(deadline, a.tenant, c)
	if err := a.refusal(result.decision, err); err != nil {
		return gateway.Balance{}, err
	}
	a.feeFrom = result.key
	a.fee = &usageEvent{
		key: result.key, group: result.group, endpoint: u.Endpoint, model: u.Model, requests: 1, charged: result.charged,
		cacheHit: u.Endpoint != "", // else it was for counting tokens
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
	_, _, err := a.server.store.UpdateKey(deadline, a.tenant, a.feeFrom, change, idempotentRequest{})
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
	_ = a.server.decided(a.header, a.tenant, d, counted)
	a.denied = errors.Is(err, ErrModelDenied)
	group := a.tenant.config.groups[d.group]
	a.place.SetShare(group.maxConcurrent)
	a.isBounded = group.maxConcurrent > 0
	if a.denied {
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

// A sessionAccount is the gateway.SessionAccount of a session. That may last for an hour, so what is held anew is held
// under the config of that time, with the API key by the name that it has then.
type sessionAccount struct {
	account // for the first hold; its mu also guards what follows, and its holder is where the key was last seen

	latest *tenant                // as it was last seen
	group  string                 // of the key, when something was last paid; "" if nothing was
	holds  map[string]sessionHold // by ID: those that may be open, and those that were settled, but not exchanged

	charged atomic.Int64 // by all settlements together
}

// A sessionHold is what is known of one hold. Each has its own holder, since a repeated settlement must not miss the
// record that the first attempt has left under the name of a visitor's key.
type sessionHold struct {
	holder  holder
	counted bool // what was used is counted
}

// newSessionAccount returns the account of a session that an API key of t asks for. The first hold sets headers of the
// response, and the share of place.
func (s *server) newSessionAccount(t *tenant, key string, h http.Header, place *fairpool.Claim) *sessionAccount {
	return &sessionAccount{
		account: account{server: s, tenant: t, key: key, header: h, place: place, holder: *newHolder(key)},
		latest:  t, holds: make(map[string]sessionHold),
	}
}

// Hold implements gateway.SessionAccount. The first hold is like that of a request.
func (a *sessionAccount) Hold(deadline time.Time, r gateway.HoldRequest) (gateway.Hold, error) {
	if r.Further {
		return a.holdFurther(deadline, r)
	}
	hold, err := a.account.Hold(deadline, r)
	if err == nil || errors.Is(err, gateway.ErrUnavailable) {
		a.found(hold.ID, a.holder)
	}
	return hold, err
}

// holdFurther takes one more hold.
func (a *sessionAccount) holdFurther(deadline time.Time, r gateway.HoldRequest) (gateway.Hold, error) {
	id, err := newCredential(extraPrefix)
	if err != nil {
		return gateway.Hold{}, err
	}
	hold := gateway.Hold{ID: id}
	t, err := a.present(deadline)
	for err == nil {
		h := a.lastSeen()
		request := newHoldRequest(h.key, id, r)
		request.known = &h
		var result holdResult
		result, err = a.server.store.Hold(deadline, t, request)
		if errors.Is(err, ErrNoKey) { // it may have been rotated or merged: look follows it
			if _, err = a.look(deadline, t, nil); err == nil {
				continue
			}
		}
		if err == nil || errors.Is(err, ErrUnavailable) {
			a.found(id, result.holder)
		}
		hold.Tokens, hold.Owner = result.held, ownerName(result.userID, result.holder.first)
		return hold, a.refused(t, result.group, err)
	}
	return hold, a.refused(t, "", err)
}

// Renew implements gateway.Account.
func (a *sessionAccount) Renew(deadline time.Time, hold gateway.Hold, ttl time.Duration) error {
	t, h := a.known(hold.ID)
	err := a.server.store.RenewHold(deadline, t, &h, hold.ID, hold.Tokens, ttl)
	if err == nil || errors.Is(err, ErrNoHold) {
		a.found(hold.ID, h)
	}
	return forGateway(err)
}

// Settle implements gateway.Account. What Exchange has settled is counted once.
func (a *sessionAccount) Settle(deadline time.Time, holdID string, u gateway.Usage) (gateway.Balance, error) {
	balance, err := a.settle(deadline, holdID, u)
	if !errors.Is(err, ErrUnavailable) {
		a.forget(holdID)
	}
	if !u.IsPart && (errors.Is(err, ErrNoKey) || errors.Is(err, ErrNoHold)) { // the request was one all the same
		a.mu.Lock()
		group := a.group
		a.mu.Unlock()
		a.countUsage(settlement{key: a.key, group: group}, gateway.Usage{Endpoint: u.Endpoint, Model: u.Model})
	}
	return balance, forGateway(err)
}

// settle does what Settle does, but remembers the hold. Errors are those of the store.
func (a *sessionAccount) settle(deadline time.Time, holdID string, u gateway.Usage) (gateway.Balance, error) {
	t, h := a.known(holdID)
	result, err := a.server.store.Settle(deadline, t, &h, settleRequest{holdID: holdID, used: u.Cost, isLease: true})
	if err != nil {
		return gateway.Balance{}, err
	}
	return a.paid(holdID, result, u), nil
}

// Exchange implements gateway.SessionAccount.
func (a *sessionAccount) Exchange(deadline time.Time, holdID string, u gateway.Usage, next gateway.HoldRequest) (
	gateway.Balance, gateway.Hold, error) {
	hold := gateway.Hold{ID: next.ID}
	if hold.ID == "" {
		prefix := leasePrefix
		if strings.HasPrefix(holdID, extraPrefix) {
			prefix = extraPrefix
		}
		var err error
		if hold.ID, err = newCredential(prefix); err != nil {
			return gateway.Balance{}, gateway.Hold{}, err
		}
	}
	_, from := a.known(holdID)
	a.remember(hold.ID, from) // also if it is refused: it may be settled all the same
	t, err := a.present(deadline)
	if errors.Is(err, ErrUnavailable) {
		return gateway.Balance{}, hold, forGateway(err)
	}
	if err != nil { // there is no config to hold anything under
		balance, unsettled := a.settle(deadline, holdID, u)
		return balance, hold, a.refused(t, "", cmp.Or(unsettled, err))
	}
	h, r := from, settleRequest{holdID: holdID, used: u.Cost, isLease: true}
	result, err := a.server.store.Exchange(deadline, t, &h, r, newHoldRequest("", hold.ID, next))
	var balance gateway.Balance
	if result.isSettled {
		balance = a.paid(holdID, result.settlement, u)
	}
	if err == nil {
		a.forget(holdID)
		a.found(hold.ID, h)
	}
	hold.Tokens = result.held
	return balance, hold, a.refused(t, result.group, err)
}

// Check implements gateway.SessionAccount.
func (a *sessionAccount) Check(deadline time.Time, models []string) error {
	t, err := a.present(deadline)
	group := ""
	if err == nil {
		group, err = a.look(deadline, t, models)
	}
	return a.forSession(t, group, err)
}

// look returns what the store's Check does, and learns where the key is.
func (a *sessionAccount) look(deadline time.Time, t *tenant, models []string) (group string, err error) {
	h := a.lastSeen()
	group, err = a.server.store.Check(deadline, t, &h, models)
	if err == nil {
		a.mu.Lock()
		a.holder = h
		a.mu.Unlock()
	}
	return group, err
}

// present returns the tenant as it is now. Errors: those of store.Tenant, also if it was deleted and created anew.
func (a *sessionAccount) present(deadline time.Time) (*tenant, error) {
	t, err := a.server.store.Tenant(deadline, a.tenant.id)
	if t != nil && t.generation != a.tenant.generation {
		return nil, ErrNoTenant
	}
	if err == nil {
		a.mu.Lock()
		a.latest = t
		a.mu.Unlock()
	}
	return t, err
}

// lastSeen returns where the key was last seen.
func (a *sessionAccount) lastSeen() holder {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holder
}

// known returns the tenant as it was last seen, and where to look for a hold: if nothing is known of it, where the key
// was at first.
func (a *sessionAccount) known(holdID string) (*tenant, holder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if hold, ok := a.holds[holdID]; ok {
		return a.latest, hold.holder
	}
	return a.latest, *newHolder(a.key)
}

// remember remembers from where a hold is to be looked for.
func (a *sessionAccount) remember(holdID string, h holder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds[holdID] = sessionHold{h, a.holds[holdID].counted}
}

// found remembers who has a hold, which says where the key is.
func (a *sessionAccount) found(holdID string, h holder) {
	a.remember(holdID, h)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holder = h
}

// forget forgets a hold that is settled.
func (a *sessionAccount) forget(holdID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.holds, holdID)
}

// paid counts what settling a hold has led to, unless that was counted before, and returns it.
func (a *sessionAccount) paid(holdID string, s settlement, u gateway.Usage) gateway.Balance {
	a.mu.Lock()
	hold, ok := a.holds[holdID]
	if !ok {
		hold.holder = *newHolder(a.key)
	}
	isNew := !hold.counted
	hold.counted = true
	a.holds[holdID], a.group = hold, s.group
	a.mu.Unlock()
	if isNew {
		a.countUsage(s, u)
	}
	return gateway.Balance{Charged: s.charged, Left: s.tokensLeft}
}

// countUsage counts what a settlement has charged for, also among the tokens of models: a session may last for an hour.
func (a *sessionAccount) countUsage(s settlement, u gateway.Usage) {
	a.charged.Add(s.charged)
	a.account.countUsage(s, u)
	if u.Endpoint != "" {
		a.server.metrics.gateway.countTokens(a.tenant.id, u.Endpoint, &u.Usage)
	}
}

// refused counts err, with which the store has refused a hold, and returns it as the gateway understands it.
func (a *sessionAccount) refused(t *tenant, group string, err error) error {
	if err != nil {
		a.server.countRefusal(a.tenant, err)
		if errors.Is(err, ErrModelDenied) {
			a.server.countRefused(a.tenant, refusedGroup)
		}
	}
	return a.forSession(t, group, err)
}

// forSession returns err, an error of the store about a key of that group, as the gateway understands it.
func (a *sessionAccount) forSession(t *tenant, group string, err error) error {
	switch {
	case errors.Is(err, ErrModelDenied):
		return gateway.DeniedError{Allowed: t.config.groups[group].models}
	case errors.Is(err, redisdb.ErrFull):
		return gateway.Error{Status: http.StatusServiceUnavailable, Message: "Too little memory is left to hold tokens"}
	}
	return forGateway(err)
}

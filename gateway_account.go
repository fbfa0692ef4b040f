package main

import (
	"errors"
	"net/http"
	"time"

	"tollgate/internal/gateway"
)

// An account is the gateway.Account of a request: its API key. It counts what is charged and refused, and sets the
// headers of the rate limit. Settle may be called after the request has ended, so it uses neither header nor fee.
type account struct {
	server *server
	tenant *tenant
	key    string
	header http.Header // of the response
	fee    *usageEvent // a charge that is not counted yet; nil: none
}

// Hold implements gateway.Account.
func (a *account) Hold(deadline time.Time, least, most int64, ttl time.Duration) (gateway.Hold, error) {
	id, err := newCredential(holdPrefix)
	if err != nil {
		return gateway.Hold{}, err
	}
	h := holdRequest{key: a.key, id: id, most: most, least: least, ttl: ttl}
	result, err := a.server.store.Hold(deadline, a.tenant, h)
	err = a.server.decided(a.header, a.tenant.id, result.decision, err)
	return gateway.Hold{ID: id, Tokens: result.held}, forGateway(err)
}

// Settle implements gateway.Account. It also finds the hold of a key that was rotated since.
func (a *account) Settle(deadline time.Time, holdID string, u gateway.Usage) (gateway.Balance, error) {
	result, err := a.server.store.SettleRotated(deadline, a.tenant, a.key, holdID, u.Cost)
	if err != nil {
		return gateway.Balance{}, forGateway(err)
	}
	a.count(usageEvent{
		group: result.group, endpoint: u.Endpoint, requests: 1, charged: result.charged, input: u.Input, output: u.Output,
	})
	return gateway.Balance{Charged: result.charged, Left: result.tokensLeft}, nil
}

// Charge implements gateway.Account. It leaves it to countFee to count the charge, since Refund may undo it.
func (a *account) Charge(deadline time.Time, u gateway.Usage) (gateway.Balance, error) {
	result, err := a.server.store.Charge(deadline, a.tenant, chargeRequest{key: a.key, tokens: u.Cost})
	if err := a.server.decided(a.header, a.tenant.id, result.decision, err); err != nil {
		return gateway.Balance{}, forGateway(err)
	}
	a.fee = &usageEvent{group: result.group, endpoint: u.Endpoint, requests: 1, charged: result.charged}
	return gateway.Balance{Charged: result.charged, Left: result.tokensLeft}, nil
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

// forGateway returns an error of the store as the gateway understands it.
func forGateway(err error) error {
	spent, isSpent := errors.AsType[insufficientTokensError](err)
	switch {
	case isSpent:
		return gateway.InsufficientError{Left: spent.tokensLeft}
	case errors.Is(err, ErrUnavailable):
		return storeError{err, gateway.ErrUnavailable}
	case errors.Is(err, ErrNoKey), errors.Is(err, ErrNoHold): // a key that was revoked has no holds
		return storeError{err, gateway.ErrNoHold}
	}
	return err
}

// A storeError is an error of the store that is also one of the gateway.
type storeError struct{ store, gateway error }

func (e storeError) Error() string   { return e.store.Error() }
func (e storeError) Unwrap() []error { return []error{e.store, e.gateway} }

package gateway

import (
	"errors"
	"net/http"
	"sync"
	"time"
)

// A hold is a lease: it is short, so that the tokens are soon back if the process dies, and renewed until it is
// settled.
const (
	leaseTTL     = 90 * time.Second // of a hold that is not renewed
	leaseRenewal = 30 * time.Second // between renewals
	leaseRetry   = time.Second      // after a renewal that has failed
)

// hold takes a hold for a tenant, if the account grants it now, and starts its lease. After an error nothing is held,
// or it is returned in the background. Errors: an Error of status 503; those of Account.Hold.
func (g *Gateway) hold(account Account, tenant string, deadline time.Time, r HoldRequest) (Hold, *lease, error) {
	if g.settler.isFull() {
		return Hold{}, nil, Error{http.StatusServiceUnavailable, "Too many charges wait for Redis"}
	}
	g.settler.begin()
	hold, err := account.Hold(deadline, r)
	switch {
	case err == nil:
		return hold, startLease(account, hold, g.renewal), nil
	case errors.Is(err, ErrUnavailable): // the hold may have been taken
		g.settler.settleLater(debt{account, tenant, hold.ID, Usage{IsPart: r.Further}, nil})
	default:
		g.settler.holdRefused()
	}
	return Hold{}, nil, err
}

// A lease renews a hold until it is ended.
type lease struct {
	account Account
	hold    Hold
	every   time.Duration // between renewals

	mu    sync.Mutex  // guards timer
	timer *time.Timer // of the next renewal; nil when the lease has ended
}

// startLease begins to renew a hold that was just taken, each time that every has passed.
func startLease(account Account, hold Hold, every time.Duration) *lease {
	l := &lease{account: account, hold: hold, every: every}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(every, l.renew)
	return l
}

// renew renews the hold, and plans the next renewal: soon if the account could not be reached. It goes on after
// ErrNoHold, since tokens may come back to the account.
func (l *lease) renew() {
	err := l.account.Renew(time.Now().Add(settleStep), l.hold, leaseTTL)
	next := l.every
	if errors.Is(err, ErrUnavailable) {
		next = leaseRetry
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Reset(next)
	}
}

// hurry lets the next renewal be at once.
func (l *lease) hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Reset(0)
	}
}

// end ends the lease. A renewal that is under way then may still reach the account. A nil lease has ended.
func (l *lease) end() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

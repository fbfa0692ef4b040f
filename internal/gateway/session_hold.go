package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tollgate/internal/llmwire"
)

// A sessionHold is what a session holds until it is settled, which must happen once. Its lease is renewed until then.
type sessionHold struct {
	Hold
	gateway *Gateway
	call    *SessionCall
	lease   *lease // nil if nothing is known to be held
}

// firstHold takes the first hold of a session, without waiting for what others hold. Errors: an Error of status 402
// or 503; a HeldError; those of Account.Hold but InsufficientError.
func (g *Gateway) firstHold(c *SessionCall, r HoldRequest) (*sessionHold, error) {
	h, err := g.holdFor(c, c.Deadline, r)
	left, isSpent := asInsufficient(err)
	if !isSpent {
		return h, err
	}
	c.header.Set("X-Tokens-Left", strconv.FormatInt(left, 10))
	if spent, isHeld := onlyHeld(err, r.Least); isHeld {
		return nil, HeldError{r.Least, left, spent.Held}
	}
	return nil, Error{http.StatusPaymentRequired, fmt.Sprintf("The session needs %d tokens, %d are left", r.Least, left)}
}

// holdFor takes a hold for a session. Errors: those of Gateway.hold.
func (g *Gateway) holdFor(c *SessionCall, deadline time.Time, r HoldRequest) (*sessionHold, error) {
	hold, lease, err := g.hold(c.Account, c.Tenant, deadline, r)
	if err != nil {
		return nil, err
	}
	return &sessionHold{hold, g, c, lease}, nil
}

// settle charges for what was used instead of the hold, later if the account cannot be reached.
func (h *sessionHold) settle(used Usage) {
	h.gateway.settler.settle(h.debt(used))
	h.wake()
}

// settleAll settles holds, each to the same, at the same time.
func settleAll(holds []*sessionHold, used Usage) {
	var all sync.WaitGroup
	for _, h := range holds {
		all.Go(func() { h.settle(used) })
	}
	all.Wait()
}

func (h *sessionHold) debt(used Usage) debt {
	return debt{h.call.Account, h.call.Tenant, h.ID, used, h.lease}
}

// wake lets a request of the same user look for tokens that may have come back.
func (h *sessionHold) wake() { h.gateway.patient.wake(member{h.call.Tenant, h.call.User}) }

// use adds something that was used, which costs that much, to the outcome of the session, and returns it as it is
// charged: as a part of the session, unless it is what ends it. It may not be called by two at the same time.
func (h *sessionHold) use(u llmwire.Usage, cost int64, isEstimate, isPart bool) Usage {
	o := h.call.Outcome
	o.Usage.Add(&u)
	o.cost = min(o.cost+cost, llmwire.MaxTokens)
	if isEstimate {
		h.gateway.estimated.Add(1)
		o.estimated = true
	}
	return Usage{
		Endpoint: h.call.endpoint.label, Model: usageModel(h.call.model), Usage: u, Cost: cost, IsPart: isPart,
	}
}

// withoutCost returns u as if nothing had been used.
func (u Usage) withoutCost() Usage {
	return Usage{Endpoint: u.Endpoint, Model: u.Model, IsPart: u.IsPart}
}

package gateway

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"tollgate/internal/llmwire"
)

// maxResponses is how many responses of one session are held for at a time.
const maxResponses = 9

var errTooManyResponses = Error{http.StatusTooManyRequests, "Too many responses are under way"}

// A purse pays for the responses of one session out of its account. It holds what one response can cost, and as much
// again for each further one that is under way; each time that something was used, one of these holds is settled and
// another is taken in its place. Its methods may be called at the same time, unless they say otherwise.
//
// An exchange of holds that may or may not have been done is repeated in the background. What is used meanwhile is
// owed: the next hold pays for it. The session goes on while the hold that is being exchanged would cover both and the
// least.
type purse struct {
	gateway *Gateway
	call    *SessionCall
	price   *sessionPrice

	mu        sync.Mutex     // guards what follows, also while the account is awaited
	holds     []*sessionHold // one for each response, at least one; the first stands for the session
	lastInput int64          // tokens of the last response
	underWay  int            // responses, when something was used last
	pending   *sessionHold   // one of holds, whose exchange is repeated; nil: none
	charging  int64          // tokens that this exchange charges
	owed      Usage          // what was used since; once the purse is closed, what pending is settled to
	refusal   error          // why the session must end
	closed    bool
}

// open takes the first hold, before the provider is asked for anything. Errors: an Error of status 402 or 503, a
// HeldError, those of Account.Hold.
func (p *purse) open() error {
	first, err := p.gateway.firstHold(p.call, p.next(false, true))
	if err == nil {
		p.holds = []*sessionHold{first}
	}
	return err
}

// next returns what to hold for a response. If that has not begun, part of a small balance is left to others, and the
// response gets a limit that what is held covers.
func (p *purse) next(isFurther, isLimited bool) HoldRequest {
	return HoldRequest{
		Least: p.price.least(p.lastInput), Most: p.price.full(), Half: isLimited, TTL: leaseTTL,
		Models: p.call.models(), Further: isFurther,
	}
}

// limit returns the limit of output tokens that the next response needs so that what is held covers it.
func (p *purse) limit() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.price.limit(max(p.unspent(p.smallest()), 0), p.lastInput)
}

// unspent returns what is left of a hold, less than 0 if it does not cover what is owed.
func (p *purse) unspent(h *sessionHold) int64 {
	if h == p.pending {
		return h.Tokens - p.charging - p.owed.Cost
	}
	return h.Tokens
}

func (p *purse) smallest() *sessionHold {
	return slices.MinFunc(p.holds, func(a, b *sessionHold) int { return cmp.Compare(p.unspent(a), p.unspent(b)) })
}

// cover takes further holds until n responses (≥ 1) are held for. isLimited says that the last of them has not begun,
// and will get the present limit. After an error, what was held before still is. Errors: an Error, if n is too many;
// those of Account.Hold.
func (p *purse) cover(n int, isLimited bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holdFor(n, isLimited)
}

func (p *purse) holdFor(n int, isLimited bool) error {
	switch {
	case p.refusal != nil:
		return p.refusal
	case n > maxResponses:
		return errTooManyResponses
	case p.pending != nil && (len(p.holds) < n || p.unspent(p.pending) < p.price.least(p.lastInput)):
		return ErrUnavailable
	}
	for len(p.holds) < n {
		h, err := p.gateway.holdFor(p.call, time.Now().Add(settleStep), p.next(true, isLimited))
		if err != nil {
			return err
		}
		p.holds = append(p.holds, h)
	}
	return nil
}

// spend pays for something that was used and cost that much, while n responses are under way. Afterwards these are held
// for, and one at least: holds beyond that are given back. lastInput is the input of the last response. The error says
// that the session must end: ErrUnavailable if Redis has not responded and what is still held does not cover what was
// used and the least, or the refusal of Exchange or Hold. What was used is paid for, or will be, in any case.
func (p *purse) spend(u llmwire.Usage, cost int64, isEstimate bool, n int, lastInput llmwire.Usage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastInput, p.underWay, n = lastInput.Input, n, max(n, 1)
	used := p.use(u, cost, isEstimate, true)
	if p.refusal != nil || p.pending != nil {
		p.owe(used)
		return p.holdFor(n, false)
	}
	p.pay(used, n)
	if h := p.smallest(); p.refusal == nil && p.pending == nil && h.Tokens < p.price.least(p.lastInput) {
		p.exchange(h, used.withoutCost())
	}
	return p.holdFor(n, false)
}

// pay settles one of the holds to what was used. Further holds beyond n are given back; if that one is to stay, another
// is taken in its place.
func (p *purse) pay(used Usage, n int) {
	payer, kept := p.payer(used.Cost), min(n, len(p.holds))
	if at, last := slices.Index(p.holds, payer), len(p.holds)-1; at > 0 {
		p.holds[at], p.holds[last] = p.holds[last], payer
	}
	surplus := p.holds[kept:]
	p.holds = p.holds[:kept:kept]
	if i := len(surplus) - 1; i >= 0 && surplus[i] == payer {
		settleAll(surplus[:i], used.withoutCost())
		payer.settle(used)
		return
	}
	settleAll(surplus, used.withoutCost())
	p.exchange(payer, used)
}

// payer returns the hold that a cost is paid from: the smallest that covers it or, if none does, the largest. What it
// lacks would be taken from the balance, which may be empty because of the other holds.
func (p *purse) payer(cost int64) *sessionHold {
	best := p.holds[0]
	for _, h := range p.holds[1:] {
		isLarger, isSmaller := h.Tokens >= best.Tokens, h.Tokens <= best.Tokens
		if best.Tokens < cost && isLarger || h.Tokens >= cost && isSmaller {
			best = h
		}
	}
	return best
}

// use adds something that was used to the outcome, and returns it as it is charged. An estimate costs at most what is
// held for one response, if that is known.
func (p *purse) use(u llmwire.Usage, cost int64, isEstimate, isPart bool) Usage {
	if isEstimate {
		most := p.price.full()
		if p.refusal == nil {
			most = slices.MaxFunc(p.holds, func(a, b *sessionHold) int { return cmp.Compare(a.Tokens, b.Tokens) }).Tokens
		}
		cost = min(cost, most)
	}
	return p.holds[0].use(u, cost, isEstimate, isPart)
}

// owe adds something that was used to what is paid for later.
func (p *purse) owe(used Usage) {
	used.Add(&p.owed.Usage)
	used.Cost = min(used.Cost+p.owed.Cost, llmwire.MaxTokens)
	p.owed = used
}

// check returns why the account may not go on, or nil; also if Redis does not respond. It is called now and then while
// nothing is spent.
func (p *purse) check(deadline time.Time) error {
	p.mu.Lock()
	refusal, isAway := p.refusal, p.pending != nil
	p.mu.Unlock()
	if refusal != nil || isAway {
		return refusal
	}
	if err := p.call.Account.Check(deadline, p.call.models()); !errors.Is(err, ErrUnavailable) {
		return err
	}
	return nil
}

// close ends the session: it pays for what was used last, and gives back everything else that is held. The account
// counts the session then, also if it has used nothing. Nothing may be called after it; a second close does nothing.
func (p *purse) close(u llmwire.Usage, cost int64, isEstimate bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.owe(p.use(u, cost, isEstimate, false))
	last, nothing := p.owed, p.owed.withoutCost()
	nothing.IsPart = true
	if p.pending != nil && p.pending != p.holds[0] {
		p.owed = nothing
	}
	// What the further holds give back may have to pay for what was used last.
	settleAll(slices.DeleteFunc(p.holds[1:], func(h *sessionHold) bool { return h == p.pending }), nothing)
	if first := p.holds[0]; first != p.pending {
		first.settle(last)
	}
}

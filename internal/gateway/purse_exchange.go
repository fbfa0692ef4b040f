package gateway

import (
	"errors"
	"time"
)

// exchange settles one of the holds, h, and takes another one in its place. If the account cannot be reached, that is
// repeated in the background. The caller holds p.mu, and nothing is pending.
func (p *purse) exchange(h *sessionHold, used Usage) {
	next := p.next(h != p.holds[0], p.underWay == 0)
	if p.underWay > 0 { // with limits that are not lowered any more: as much stays held, as far as the balance has it
		next.Most = max(h.Tokens, next.Least)
	}
	var balance Balance
	var taken Hold
	step := func() (err error) {
		balance, taken, err = p.call.Account.Exchange(time.Now().Add(settleStep), h.ID, used, next)
		next.ID = taken.ID // so that a repetition takes no other
		return err
	}
	err := step()
	if !errors.Is(err, ErrUnavailable) {
		p.exchanged(h, used, balance, taken, err)
		return
	}
	p.pending, p.charging = h, used.Cost
	p.gateway.settler.repeat(step, func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pending = nil
		p.exchanged(h, used, balance, taken, err)
		p.payOwed(h)
	})
}

// exchanged replaces h, which was settled to used, by the hold that was taken. If none was, what the session still uses
// is charged without one, and it must end.
func (p *purse) exchanged(h *sessionHold, used Usage, balance Balance, taken Hold, err error) {
	s := &p.gateway.settler
	s.begin() // before the other one is counted out: Stop must wait for what is charged next
	unsettled := err
	if balance.Charged > 0 || used.Cost == 0 {
		unsettled = nil // only the next hold was refused
	}
	s.settled(h.debt(used), balance, unsettled)
	h.wake()
	if err != nil {
		h.Hold, p.refusal = Hold{ID: taken.ID}, err
		return
	}
	h.Hold, h.lease = taken, startLease(p.call.Account, taken, p.gateway.renewal)
}

// payOwed pays for what was used while h, which has just been taken, was pending.
func (p *purse) payOwed(h *sessionHold) {
	owed := p.owed
	switch {
	case p.closed:
		h.settle(owed)
	case p.refusal != nil: // close pays
	default:
		h.lease.hurry() // the hold may have been taken long ago
		if owed != (Usage{}) {
			p.owed = Usage{}
			p.exchange(p.payer(owed.Cost), owed)
		}
	}
}

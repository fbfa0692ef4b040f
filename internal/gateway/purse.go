package gateway

import (
	"time"

	"tollgate/internal/llmwire"
)

// A purse pays for the responses of one session out of its account. It holds what one response can cost, and as much
// again for each further one that is under way; each time that something was used, one of these holds is settled and
// another is taken in its place. Its methods may be called at the same time, unless they say otherwise.
type purse struct {
	gateway *Gateway
	call    *SessionCall
	price   *sessionPrice
}

// open takes the first hold, before the provider is asked for anything. Errors: an Error of status 402, a HeldError,
// those of Account.Hold.
func (p *purse) open() error { panic("not built yet") }

// limit returns the limit of output tokens that the next response needs so that what is held covers it.
func (p *purse) limit() int64 { panic("not built yet") }

// cover sees to it that n responses (≥ 1) are held for, and takes further holds if need be. After an error fewer are;
// what was held before still is. Errors: those of Account.Hold.
func (p *purse) cover(n int) error { panic("not built yet") }

// spend pays for something that was used and cost that much. Afterwards n responses (≥ 1) are held for: holds beyond
// that are given back. lastInput is the input of the last response. The error says that the session must end:
// ErrUnavailable if Redis has not responded and what is still held does not cover what was used and the least, or the
// refusal of Exchange. What was used is paid for, or will be, in any case.
func (p *purse) spend(u llmwire.Usage, cost int64, isEstimate bool, n int, lastInput llmwire.Usage) error {
	panic("not built yet")
}

// check returns why the account may not go on, or nil; also if Redis does not respond. It is called now and then while
// nothing is spent.
func (p *purse) check(deadline time.Time) error { panic("not built yet") }

// close ends the session: it pays for what has used last, if that is not 0, and gives back everything else that is held.
// It adds the session to the outcome of the call. Nothing may be called after it.
func (p *purse) close(u llmwire.Usage, cost int64, isEstimate bool) { panic("not built yet") }

package gateway

import (
	"time"

	"tollgate/internal/llmwire"
)

// A sessionPrice is what a session of a model costs at an endpoint. Amounts are tokens of the account, at most 2^53-1.
type sessionPrice struct {
	price         *price
	transcription *price // of what a provider transcribes of the input
	maxInput      int64  // tokens that one response is held for
	maxOutput     int64
}

// full returns the most that one response can cost, at least 1: what is held for it.
func (p *sessionPrice) full() int64 { panic("not built yet") }

// least returns the fewest tokens with which a response may begin: what 1,000 tokens of input beyond that of the last
// response and 256 of output cost at their dearest, but no more than full returns. It is at least 1.
func (p *sessionPrice) least(lastInput int64) int64 { panic("not built yet") }

// limit returns how many output tokens of a response the given tokens cover, beside 1,000 tokens of input beyond that of
// the last response, all at their dearest: 1 to p.maxOutput.
func (p *sessionPrice) limit(tokens, lastInput int64) int64 { panic("not built yet") }

// response returns what a response costs. It changes u if that contradicts itself, as price.bill does.
func (p *sessionPrice) response(u *llmwire.Usage) int64 { panic("not built yet") }

// dearest returns the estimate of a response that costs most, and what it costs.
func (p *sessionPrice) dearest(estimates []llmwire.Usage) (llmwire.Usage, int64) { panic("not built yet") }

// transcript returns what the transcription of a part of the input costs, which has used tokens or lasted for a while.
// Only the cost is rounded up.
func (p *sessionPrice) transcript(u *llmwire.Usage, lasted time.Duration) int64 { panic("not built yet") }

// seconds returns what n seconds of a session cost that is paid for by its duration.
func (p *sessionPrice) seconds(n int64) int64 { panic("not built yet") }

// secondsFor returns how many whole seconds the given tokens pay for, at most most.
func (p *sessionPrice) secondsFor(tokens, most int64) int64 { panic("not built yet") }

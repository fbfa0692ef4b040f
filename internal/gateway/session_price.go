package gateway

import (
	"math/bits"
	"time"

	"tollgate/internal/llmwire"
)

const (
	moreInput   = 1_000 // tokens that the input of a response may have beyond that of the one before
	fewestWords = 256   // output tokens of a response that is worth beginning
)

// A sessionPrice is what a session of a model costs at an endpoint. Amounts are tokens of the account, at most 2^53-1.
type sessionPrice struct {
	price         *price
	transcription *price // of what a provider transcribes of the input
	maxInput      int64  // tokens that one response is held for
	maxOutput     int64
}

// held returns the most that a response can cost: each token at the dearest of the kinds that it can have, with little
// input or with much, and what each response costs.
func (p *sessionPrice) held() heldPrice {
	h := p.price.rates.heldResponse()
	if above := p.price.above; above != nil {
		h = h.dearer(above.heldResponse())
	}
	return h
}

func (r *rates) heldResponse() heldPrice {
	h := heldPrice{
		input: max(r[kindInput], r[kindCachedInput], r[kindAudioInput], r[kindCachedAudio], r[kindImageInput]),
		// No image is generated, but if one is reported, it is paid for.
		output: max(r[kindOutput], r[kindAudioOutput], r[kindImageOutput]),
	}
	h.known.add(1, r[kindRequest])
	return h
}

// full returns the most that one response can cost, at least 1: what is held for it.
func (p *sessionPrice) full() int64 { return max(p.held().cost(p.maxInput, p.maxOutput), 1) }

// least returns the fewest tokens with which a response may begin: what 1,000 tokens of input beyond that of the last
// response and 256 of output cost at their dearest, but no more than full returns. It is at least 1.
func (p *sessionPrice) least(lastInput int64) int64 {
	return max(min(p.held().cost(p.nextInput(lastInput), fewestWords), p.full()), 1)
}

// nextInput returns how much input the response after one with lastInput is assumed to have.
func (p *sessionPrice) nextInput(lastInput int64) int64 { return min(lastInput+moreInput, p.maxInput) }

// limit returns how many output tokens of a response the given tokens cover, beside 1,000 tokens of input beyond that
// of the last response, all at their dearest: 1 to p.maxOutput.
func (p *sessionPrice) limit(tokens, lastInput int64) int64 {
	output, _ := p.held().affords(tokens, p.nextInput(lastInput))
	return max(min(output, p.maxOutput), 1)
}

// response returns what a response costs. It changes u if that contradicts itself, as price.bill does. The price of a
// request counts once, unless the response has used nothing.
func (p *sessionPrice) response(u *llmwire.Usage) int64 {
	if u.Input == 0 && u.Output == 0 {
		return 0
	}
	return p.price.bill(u, 1).tokens()
}

// dearest returns the estimate of a response that costs most, and what it costs.
func (p *sessionPrice) dearest(estimates []llmwire.Usage) (most llmwire.Usage, cost int64) {
	for i, u := range estimates {
		if one := p.response(&u); i == 0 || one > cost {
			most, cost = u, one
		}
	}
	return most, cost
}

// transcript returns what the transcription of a part of the input costs, which has used tokens or lasted for a while.
// Only the cost is rounded up.
func (p *sessionPrice) transcript(u *llmwire.Usage, lasted time.Duration) int64 {
	b := p.transcription.bill(u, 0)
	rate := p.transcription.of(u.Input)[kindSecond]
	lasted = lasted.Round(time.Microsecond) // the nanoseconds are what a binary fraction has made of a decimal one
	whole := lasted / time.Second
	b.add(int64(whole), rate)
	high, low := bits.Mul64(uint64(lasted-whole*time.Second), uint64(rate))
	b.add(1, divideUp(high, low, uint64(time.Second))) // less than rate
	return b.tokens()
}

// seconds returns what n seconds of a session cost that is paid for by its duration.
func (p *sessionPrice) seconds(n int64) int64 {
	var b bill
	b.add(n, p.price.rates[kindSecond])
	return b.tokens()
}

// secondsFor returns how many whole seconds the given tokens pay for, at most most.
func (p *sessionPrice) secondsFor(tokens, most int64) int64 {
	perSecond := heldPrice{output: p.price.rates[kindSecond]}
	n, _ := perSecond.affords(tokens, 0)
	return min(n, most)
}

package gateway

import (
	"math/bits"

	"tollgate/internal/llmwire"
)

// A bill adds up what is to be paid for one request, in millionths of a token of the account. It never overflows: each
// count that it gets is below 2^58, each rate below 2^54, and there are far fewer than 2^20 of them.
type bill struct{ high, low uint64 }

// add adds what count of a kind cost. Neither may be negative.
func (b *bill) add(count, rate int64) {
	high, low := bits.Mul64(uint64(count), uint64(rate))
	*b = b.plus(bill{high, low})
}

// plus returns the sum of two bills.
func (b bill) plus(other bill) bill {
	low, carry := bits.Add64(b.low, other.low, 0)
	return bill{b.high + other.high + carry, low}
}

// isLess reports whether b is less than other.
func (b bill) isLess(other bill) bool {
	return b.high < other.high || b.high == other.high && b.low < other.low
}

func dearer(a, b bill) bill {
	if a.isLess(b) {
		return b
	}
	return a
}

// tokens returns the sum in tokens, rounded up, and 2^53-1 if it is more.
func (b bill) tokens() int64 { return divideUp(b.high, b.low, priceUnit) }

// divideUp returns a number of 128 bits divided by unit, rounded up, and 2^53-1 if it is more.
func divideUp(high, low, unit uint64) int64 {
	low, carry := bits.Add64(low, unit-1, 0)
	if high += carry; high >= unit {
		return llmwire.MaxTokens
	}
	quotient, _ := bits.Div64(high, low, unit)
	return int64(min(quotient, llmwire.MaxTokens))
}

// A part is the tokens of one kind that are counted within a total.
type part struct {
	kind   kind
	tokens *int64
}

func inputParts(u *llmwire.Usage) [6]part {
	return [...]part{
		{kindCachedInput, &u.CachedInput}, {kindCacheWrite, &u.CacheWrite}, {kindCacheWrite1h, &u.CacheWrite1h},
		{kindAudioInput, &u.AudioInput}, {kindImageInput, &u.ImageInput}, {kindCachedAudio, &u.CachedAudioInput},
	}
}

func outputParts(u *llmwire.Usage) [2]part {
	return [...]part{{kindAudioOutput, &u.AudioOutput}, {kindImageOutput, &u.ImageOutput}}
}

// bill returns what u and a number of requests cost. If the kinds of u are more than its totals, it takes what is too
// much from the cheapest of them, in u too.
func (p *price) bill(u *llmwire.Usage, requests int64) (b bill) {
	r := p.of(u.Input)
	input, output := inputParts(u), outputParts(u)
	b.add(r.addParts(&b, u.Input, input[:]), r[kindInput])
	b.add(r.addParts(&b, u.Output, output[:]), r[kindOutput])
	b.add(u.Searches, r[kindSearch])
	b.add(u.Seconds, r[kindSecond])
	b.add(u.Characters, r[kindCharacter])
	b.add(requests, r[kindRequest])
	return b
}

// addParts adds to b what the parts of a total cost, and returns how many tokens of the total are in none of them.
func (r *rates) addParts(b *bill, total int64, parts []part) (rest int64) {
	rest = total
	for _, part := range parts {
		rest -= *part.tokens
	}
	for rest < 0 { // once for each part at most
		cheapest := part{kind: kindCount}
		for _, part := range parts {
			if *part.tokens > 0 && (cheapest.kind == kindCount || r[part.kind] < r[cheapest.kind]) {
				cheapest = part
			}
		}
		less := min(*cheapest.tokens, -rest)
		*cheapest.tokens -= less
		rest += less
	}
	for _, part := range parts {
		if *part.tokens > 0 {
			b.add(*part.tokens, r[part.kind])
		}
	}
	return rest
}

// A heldPrice is the most that a request can cost: each token of its input and of its output, in millionths of a token
// of the account, and what else is known before.
type heldPrice struct {
	input, output int64
	known         bill
}

// held returns the most that a request with that much input can cost: the dearest of the kinds of tokens that it can
// have.
func (p *price) held(q *llmwire.Request, input int64) heldPrice {
	h := p.rates.held(q)
	if p.above != nil && max(input, llmwire.SoundInputTokens*q.Seconds) > p.aboveTokens {
		h = h.dearer(p.above.held(q))
	}
	return h
}

// dearer returns the most that a request can cost that costs h or other.
func (h heldPrice) dearer(other heldPrice) heldPrice {
	return heldPrice{max(h.input, other.input), max(h.output, other.output), dearer(h.known, other.known)}
}

func (r *rates) held(q *llmwire.Request) heldPrice {
	h := heldPrice{input: max(r[kindInput], r[kindCachedInput]), output: r[kindOutput], known: r.known(q)}
	if q.CacheWrite > llmwire.NotCached || q.Format.CachesUnasked() {
		h.input = max(h.input, r[kindCacheWrite])
	}
	if q.CacheWrite == llmwire.CachedHour {
		h.input = max(h.input, r[kindCacheWrite1h])
	}
	if q.HasAudio {
		h.input = max(h.input, r[kindAudioInput], r[kindCachedAudio])
	}
	if q.HasImages {
		h.input = max(h.input, r[kindImageInput])
	}
	if q.MediaOutput {
		h.output = max(h.output, r[kindAudioOutput], r[kindImageOutput])
	}
	return h
}

// known returns the most that the request itself costs, its characters, and its sound, which is paid for by the second
// or by the token.
func (r *rates) known(q *llmwire.Request) bill {
	var b, tokens bill
	b.add(q.Seconds, r[kindSecond])
	tokens.add(q.Seconds, llmwire.SoundInputTokens*r[kindAudioInput])
	tokens.add(q.Seconds, llmwire.SoundOutputTokens*r[kindOutput])
	b = dearer(b, tokens)
	b.add(q.Characters, r[kindCharacter])
	b.add(1, r[kindRequest])
	return b
}

// bill returns what the given tokens cost.
func (h heldPrice) bill(input, output int64) bill {
	b := h.known
	b.add(input, h.input)
	b.add(output, h.output)
	return b
}

// cost returns what the given tokens cost, rounded up, and 2^53-1 if it is more. No count may be negative.
func (h heldPrice) cost(input, output int64) int64 { return h.bill(input, output).tokens() }

// affords returns the most output tokens that can be had for tokens beside the given input, and false if there is not
// even enough for the input. It is the inverse of cost.
func (h heldPrice) affords(tokens, input int64) (output int64, ok bool) {
	budgetHigh, budget := bits.Mul64(uint64(tokens), priceUnit)
	spent := h.bill(input, 0)
	low, borrow := bits.Sub64(budget, spent.low, 0)
	high, borrow := bits.Sub64(budgetHigh, spent.high, borrow)
	switch {
	case borrow != 0:
		return 0, false
	case high >= uint64(h.output): // also if output costs nothing
		return llmwire.MaxTokens, true
	}
	most, _ := bits.Div64(high, low, uint64(h.output))
	return int64(min(most, llmwire.MaxTokens)), true
}

// billOf returns what u costs for that many requests for the model asked. If the response names another model of the
// endpoint that is not a snapshot of the same, and is dearer, it costs what that one does.
func (e *Endpoint) billOf(asked, responded string, u *llmwire.Usage, requests int64) bill {
	p, used := e.prices.find(asked), *u
	b := p.bill(u, requests)
	if other := e.prices.listed(responded); other != nil && withoutSnapshot(responded) != withoutSnapshot(asked) {
		if dearer := other.bill(&used, requests); b.isLess(dearer) {
			*u = used
			return dearer
		}
	}
	return b
}

// billOfOther returns what a model has used that the request did not ask for. One without a price, or several that are
// not told apart, cost as much as at the dearest price of the endpoint.
func (e *Endpoint) billOfOther(other *llmwire.ModelUsage) (b bill) {
	if p := e.prices.find(other.Model); p != nil {
		return p.bill(&other.Usage, 0)
	}
	dearest := other.Usage
	e.prices.each(func(p *price) {
		used := other.Usage
		if one := p.bill(&used, 0); b.isLess(one) {
			b, dearest = one, used
		}
	})
	other.Usage = dearest
	return b
}

package gateway

import (
	"fmt"
	"maps"
	"math"
	"strconv"

	"tollgate/internal/strict"
)

// A kind is what has a price of its own: one of the kinds of tokens, a search, a request, a second of sound, or a
// character to speak.
type kind int

const (
	kindInput kind = iota
	kindCachedInput
	kindCacheWrite
	kindCacheWrite1h
	kindAudioInput
	kindImageInput
	kindCachedAudio
	kindOutput
	kindAudioOutput
	kindImageOutput
	kindSearch
	kindRequest
	kindSecond
	kindCharacter
	kindCount
)

// kindTable says what the price of a kind is if the config does not give it: that of the kind instead or, if that is
// the same kind, otherwise millionths of a token.
var kindTable = [kindCount]struct {
	instead   kind
	otherwise int64
}{
	kindInput:        {kindInput, priceUnit},
	kindCachedInput:  {kindInput, 0},
	kindCacheWrite:   {kindInput, 0},
	kindCacheWrite1h: {kindCacheWrite, 0},
	kindAudioInput:   {kindInput, 0},
	kindImageInput:   {kindInput, 0},
	kindCachedAudio:  {kindAudioInput, 0},
	kindOutput:       {kindOutput, priceUnit},
	kindAudioOutput:  {kindOutput, 0},
	kindImageOutput:  {kindOutput, 0},
	kindSearch:       {kindSearch, 0},
	kindRequest:      {kindRequest, 0},
	kindSecond:       {kindSecond, priceUnit},
	kindCharacter:    {kindCharacter, priceUnit},
}

// rates are what one of each kind costs, in millionths of a token of the account.
type rates [kindCount]int64

const (
	priceUnit = 1_000_000
	maxPrice  = 1_000_000_000 * priceUnit
	noRate    = -1 // of a kind whose price is not given
)

// A price is what a model costs.
type price struct {
	rates

	aboveTokens int64  // with more input than this, a request costs what above says
	above       *rates // nil: it never does

	pricesWrites bool   // the config has a cache_write
	reasoning    *bool  // what the config says about the model; nil: what it says about the endpoint
	ofTranscript *rates // what the config says of the transcription of a session's input; nil: nothing
	isOfTextOnly bool   // the config has an input, and no audio_input
}

// newRates returns rates none of which is given.
func newRates() (r rates) {
	for k := range r {
		r[k] = noRate
	}
	return r
}

// onePrice returns the price of a model that the config does not give: a token of the account for each token.
func onePrice() *price { return &price{rates: newRates().completed()} }

// rules returns the rules for the rates that are members of an object.
func (r *rates) rules() strict.Rules {
	return strict.Rules{
		"input":              priceRule(&r[kindInput]),
		"cached_input":       priceRule(&r[kindCachedInput]),
		"cache_write":        priceRule(&r[kindCacheWrite]),
		"cache_write_1h":     priceRule(&r[kindCacheWrite1h]),
		"audio_input":        priceRule(&r[kindAudioInput]),
		"image_input":        priceRule(&r[kindImageInput]),
		"cached_audio_input": priceRule(&r[kindCachedAudio]),
		"output":             priceRule(&r[kindOutput]),
		"audio_output":       priceRule(&r[kindAudioOutput]),
		"image_output":       priceRule(&r[kindImageOutput]),
		"search":             priceRule(&r[kindSearch]),
		"request":            priceRule(&r[kindRequest]),
		"second":             priceRule(&r[kindSecond]),
		"character":          priceRule(&r[kindCharacter]),
	}
}

// readPrice reads what a model costs. object must return the rule for an object with the given members.
func (e *Endpoint) readPrice(object func(strict.Rules) strict.Rule, wrong *strict.Problems, value []byte) (
	*price, bool,
) {
	given, above, ofTranscript := newRates(), newRates(), newRates()
	p, anyObject := new(price), object
	object = e.session.pricesOnly(object)
	rules := given.rules()
	maps.Copy(rules, strict.Rules{
		"reasoning": func(wrong *strict.Problems, value []byte) bool {
			reasons := new(bool)
			ok := strict.Bool(reasons)(wrong, value)
			if ok {
				p.reasoning = reasons
			}
			return ok
		},
		"above": func(wrong *strict.Problems, value []byte) bool {
			hasTokens, tokens, rules := false, int64(0), above.rules()
			maps.Copy(rules, strict.Rules{"tokens": func(wrong *strict.Problems, value []byte) bool {
				hasTokens = true
				return strict.Int(&tokens, 1, strict.MaxInt)(wrong, value)
			}})
			ok := object(rules)(wrong, value)
			if value[0] == '{' && !hasTokens {
				ok = wrong.AddMember("tokens", "is missing")
			}
			if ok {
				p.above, p.aboveTokens = &above, tokens
			}
			return ok
		},
		"transcription": func(wrong *strict.Problems, value []byte) bool {
			p.ofTranscript = &ofTranscript
			return anyObject(strict.Rules{
				"input":  priceRule(&ofTranscript[kindInput]),
				"output": priceRule(&ofTranscript[kindOutput]),
				"second": priceRule(&ofTranscript[kindSecond]),
			})(wrong, value)
		},
	})
	ok := object(rules)(wrong, value)
	p.rates, p.pricesWrites = given.completed(), given[kindCacheWrite] != noRate
	p.isOfTextOnly = given[kindInput] != noRate && given[kindAudioInput] == noRate
	if p.above != nil {
		for k, rate := range above {
			if rate == noRate {
				above[k] = given[k]
			}
		}
		above = above.completed()
	}
	return p, ok
}

// completed returns r with the rates that are not given.
func (r rates) completed() rates {
	all := r
	for k, row := range kindTable { // what a row stands for comes before it
		if all[k] == noRate && row.instead == kind(k) {
			all[k] = row.otherwise
		} else if all[k] == noRate {
			all[k] = all[row.instead]
		}
	}
	return all
}

// of returns the rates of a request with that much input.
func (p *price) of(input int64) *rates {
	if p.above != nil && input > p.aboveTokens {
		return p.above
	}
	return &p.rates
}

// isFreeSound reports whether a transcript costs nothing, whatever the sound is, but for the request.
func (p *price) isFreeSound() bool {
	all := []*rates{&p.rates}
	if p.above != nil {
		all = append(all, p.above)
	}
	for _, r := range all {
		for k, rate := range r {
			if rate != 0 && kind(k) != kindRequest && kind(k) != kindCharacter {
				return false
			}
		}
	}
	return true
}

// mayReason reports whether the model may generate what its responses do not show, at e.
func (p *price) mayReason(e *Endpoint) bool {
	if p.reasoning != nil {
		return *p.reasoning
	}
	return !e.neverReasons
}

// weight returns a number that is larger for a price that is dearer for most requests.
func (p *price) weight() (sum int64) {
	for _, rate := range p.rates { // 14 of at most 1e15
		sum += rate
	}
	return sum
}

// isCheaper reports whether anything costs less at p than at other, with any input.
func (p *price) isCheaper(other *price) bool {
	for _, input := range []int64{0, p.aboveTokens, other.aboveTokens + 1, math.MaxInt64} {
		for k, rate := range p.of(input) {
			if rate < other.of(input)[k] {
				return true
			}
		}
	}
	return false
}

// priceRule accepts the tokens of an account that one token of a model costs.
func priceRule(dst *int64) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		millionths, ok := int64(0), false
		if strict.IsNumber(value) {
			millionths, ok = parsePrice(string(value))
		}
		if !ok {
			return wrong.Add(fmt.Sprintf("must be a number from 0 to %d with at most 6 decimals", maxPrice/priceUnit))
		}
		*dst = millionths
		return true
	}
}

// parsePrice returns the millionths that a JSON number spells, and false if it is not from 0 to 1,000,000,000 or has
// more than 6 decimals.
func parsePrice(number string) (int64, bool) {
	tokens, err := strconv.ParseFloat(number, 64)
	if err != nil || !(tokens >= 0 && tokens <= maxPrice/priceUnit) {
		return 0, false
	}
	millionths := int64(math.Round(tokens * priceUnit))
	return millionths, float64(millionths)/priceUnit == tokens
}

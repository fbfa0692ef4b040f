package gateway

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// A price is what one input and one output token of a model cost, in millionths of a token of the account.
type price struct{ input, output int64 }

const (
	priceUnit = 1_000_000
	maxPrice  = 1_000_000_000 * priceUnit
)

// onePrice is the price of a model that the config does not give: a token of the account for each token.
var onePrice = price{input: priceUnit, output: priceUnit}

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

// cost returns what the given tokens cost, rounded up, and 2^53-1 if it is more. No count may be negative.
func (p price) cost(input, output int64) int64 {
	high, low := p.millionths(input, output)
	return divideUp(high, low, priceUnit)
}

// affords returns the most output tokens that can be had for tokens beside the given input, and false if there is not
// even enough for the input. It is the inverse of cost.
func (p price) affords(tokens, input int64) (output int64, ok bool) {
	budgetHigh, budget := bits.Mul64(uint64(tokens), priceUnit)
	spentHigh, spent := p.millionths(input, 0)
	low, borrow := bits.Sub64(budget, spent, 0)
	high, borrow := bits.Sub64(budgetHigh, spentHigh, borrow)
	switch {
	case borrow != 0:
		return 0, false
	case high >= uint64(p.output): // also if output costs nothing
		return llmwire.MaxTokens, true
	}
	most, _ := bits.Div64(high, low, uint64(p.output))
	return int64(min(most, llmwire.MaxTokens)), true
}

func (p price) millionths(input, output int64) (high, low uint64) {
	high, low = bits.Mul64(uint64(input), uint64(p.input))
	outputHigh, outputLow := bits.Mul64(uint64(output), uint64(p.output))
	low, carry := bits.Add64(low, outputLow, 0)
	return high + outputHigh + carry, low
}

// divideUp returns a number of 128 bits divided by unit, rounded up, and 2^53-1 if it is more.
func divideUp(high, low, unit uint64) int64 {
	low, carry := bits.Add64(low, unit-1, 0)
	if high += carry; high >= unit {
		return llmwire.MaxTokens
	}
	quotient, _ := bits.Div64(high, low, unit)
	return int64(min(quotient, llmwire.MaxTokens))
}

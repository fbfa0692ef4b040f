package main

import (
	"math"
	"math/bits"
	"strconv"

	"tollgate/internal/llmwire"
)

// A tokenPrice is what one input and one output token cost, in millionths of a token of the balance.
type tokenPrice struct{ input, output int64 }

const (
	priceUnit = 1_000_000
	maxPrice  = 1_000_000_000 * priceUnit
)

// parsePrice returns the millionths that a JSON number spells, and false if it is not from 0 to 1,000,000,000 or has
// more than 6 decimals.
func parsePrice(number string) (int64, bool) {
	price, err := strconv.ParseFloat(number, 64)
	if err != nil || !(price >= 0 && price <= maxPrice/priceUnit) {
		return 0, false
	}
	millionths := int64(math.Round(price * priceUnit))
	return millionths, float64(millionths)/priceUnit == price
}

// cost returns what the given tokens cost, rounded up, and 2^53-1 if it is more. No count may be negative.
func (p tokenPrice) cost(input, output int64) int64 {
	high, low := p.millionths(input, output)
	low, carry := bits.Add64(low, priceUnit-1, 0)
	if high += carry; high >= priceUnit {
		return llmwire.MaxTokens
	}
	cost, _ := bits.Div64(high, low, priceUnit)
	return int64(min(cost, llmwire.MaxTokens))
}

// affords returns the most output tokens that can be had for tokens beside the given input, and false if there is not
// even enough for the input. It is the inverse of cost.
func (p tokenPrice) affords(tokens, input int64) (output int64, ok bool) {
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

func (p tokenPrice) millionths(input, output int64) (high, low uint64) {
	high, low = bits.Mul64(uint64(input), uint64(p.input))
	outputHigh, outputLow := bits.Mul64(uint64(output), uint64(p.output))
	low, carry := bits.Add64(low, outputLow, 0)
	return high + outputHigh + carry, low
}

package main

import (
	"fmt"
	"math"
	"math/bits"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const maxModelBytes = 256

// cachingRules says which responses of providers are cached, and what a cached one costs.
type cachingRules struct {
	enabled bool
	textTTL int64 // seconds; 0: nothing is cached
	fee     int64 // of what a response has cost, in units of which wholeFee is all of it
}

const wholeFee = 100_000_000

// readFee is the rule for fee_percentage. A fee is rounded to a millionth of a percent, but is never 0 unless it is
// spelled so.
func (r *cachingRules) readFee(wrong *strict.Problems, path string, value []byte) {
	before := len(*wrong)
	strict.Number(0, 100)(wrong, path, value)
	if len(*wrong) > before {
		return
	}
	percent, _ := strconv.ParseFloat(string(value), 64) // cannot fail: strict.Number has parsed it
	r.fee = int64(math.Round(percent * (wholeFee / 100)))
	if r.fee == 0 && percent > 0 {
		r.fee = 1
	}
}

// feeFor returns the tokens to charge for a cached response that has cost that many, rounded up.
func (r *cachingRules) feeFor(cost int64) int64 {
	high, low := bits.Mul64(uint64(cost), uint64(r.fee))
	low, carry := bits.Add64(low, wholeFee-1, 0)
	fee, _ := bits.Div64(high+carry, low, wholeFee)
	return int64(fee)
}

// ttl returns for how long a response is served from the cache; 0 is not at all.
func (r *cachingRules) ttl() time.Duration {
	if !r.enabled {
		return 0
	}
	return time.Duration(min(r.textTTL, maxCacheSeconds)) * time.Second
}

// anyModel is the name in an endpoint's models that stands for every model.
const anyModel = "*"

// endpoint is a model server that the gateway may call.
type endpoint struct {
	name   string
	url    *url.URL
	format llmwire.Format
	apiKey string // "" if the server needs none

	defaultModel string   // "" if a request must name its model
	models       []string // that may be asked for, the default one first, then in the config's order
	prices       map[string]tokenPrice

	maxOutput     int64 // output tokens of a request that names no limit
	maxInput      int64 // the context window, in tokens
	bytesPerToken int64
	mediaTokens   int64 // input tokens for each image, audio or file
	serverTools   bool  // tools that the provider runs are allowed
	drain         bool  // a stream whose client hangs up is read to its end

	rawURL string
}

func newEndpoint(name string) *endpoint {
	return &endpoint{
		name: name, prices: make(map[string]tokenPrice),
		maxOutput: 4096, maxInput: 200_000, bytesPerToken: 1, mediaTokens: 2000,
	}
}

// rules returns the rules for the members that an endpoint of any kind has.
func (e *endpoint) rules() strict.Rules {
	return strict.Rules{
		"url": func(wrong *strict.Problems, path string, value []byte) {
			strict.AbsoluteURL(wrong, path, value)
			strict.String(&e.rawURL)(new(strict.Problems), path, value)
		},
		"api_key": strict.String(&e.apiKey), "default_model": strict.String(&e.defaultModel),
		"model": strict.AnyString, "voice": strict.AnyString, "encoding": strict.AnyString, "sampleRate": strict.AnyNumber,
	}
}

// textRules returns the rules for the members that only an endpoint of text has.
func (e *endpoint) textRules(c *tenantConfig) strict.Rules {
	return strict.Rules{
		"models":            strict.MapOf(func(model string) strict.Rule { return e.modelRule(c, model) }),
		"max_output_tokens": strict.Int(&e.maxOutput, 1, maxAmount),
		"max_input_tokens":  strict.Int(&e.maxInput, 1, maxAmount),
		"bytes_per_token":   strict.Int(&e.bytesPerToken, 1, 8),
		"media_tokens":      strict.Int(&e.mediaTokens, 0, maxAmount),
		"server_tools":      strict.Bool(&e.serverTools),
		"on_hangup": func(wrong *strict.Problems, path string, value []byte) {
			var reaction string
			strict.String(&reaction)(new(strict.Problems), path, value)
			if reaction != "cancel" && reaction != "drain" {
				wrong.Add(path, `must be "cancel" or "drain"`)
			}
			e.drain = reaction == "drain"
		},
	}
}

// modelRule returns the rule for one member of models.
func (e *endpoint) modelRule(c *tenantConfig, model string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		if model == "" || len(model) > maxModelBytes {
			wrong.Add(path, fmt.Sprintf("must have a name of 1 to %d bytes", maxModelBytes))
			return
		}
		price := onePrice
		rules := strict.Rules{"input": priceField(&price.input), "output": priceField(&price.output)}
		c.readMembers(wrong, path, value, rules)
		e.models = append(e.models, model)
		e.prices[model] = price
	}
}

// onePrice is the price of a model that the config does not give: a token of the balance for each token.
var onePrice = tokenPrice{input: priceUnit, output: priceUnit}

// priceField accepts the tokens of a balance that one token of a model costs.
func priceField(dst *int64) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		millionths, ok := int64(0), false
		if strict.IsNumber(value) {
			millionths, ok = parsePrice(string(value))
		}
		if !ok {
			wrong.Add(path, fmt.Sprintf("must be a number from 0 to %d with at most 6 decimals", maxPrice/priceUnit))
			return
		}
		*dst = millionths
	}
}

// complete works out what an endpoint's members mean together, and reports whether the gateway can use it.
func (e *endpoint) complete() bool {
	if e.defaultModel != "" {
		if _, priced := e.prices[e.defaultModel]; !priced {
			price, any := e.prices[anyModel]
			if !any {
				price = onePrice
			}
			e.prices[e.defaultModel] = price
		}
		e.models = slices.DeleteFunc(e.models, func(model string) bool { return model == e.defaultModel })
		e.models = slices.Insert(e.models, 0, e.defaultModel)
	}
	u, err := url.Parse(e.rawURL)
	if err != nil || u.Host == "" {
		return false
	}
	e.url = u
	var known bool
	e.format, known = llmwire.FormatOf(u.Path)
	return known
}

// price returns what a model costs at the endpoint, and false if it may not be asked for there.
func (e *endpoint) price(model string) (tokenPrice, bool) {
	price, ok := e.prices[model]
	if !ok && model != "" {
		price, ok = e.prices[anyModel]
	}
	return price, ok
}

// textEndpoints returns the endpoints that speak format, in the order in which they are tried.
func (c *tenantConfig) textEndpoints(format llmwire.Format) (found []*endpoint) {
	for _, e := range c.text {
		if e.format == format {
			found = append(found, e)
		}
	}
	return found
}

// endpointsFor returns those of all that allow a model, and the model's name there: endpoint/model chooses the
// endpoint.
func endpointsFor(all []*endpoint, model string) ([]*endpoint, string) {
	if name, rest, ok := strings.Cut(model, "/"); ok {
		for _, e := range all {
			if _, allowed := e.price(rest); allowed && e.name == name {
				return []*endpoint{e}, rest
			}
		}
	}
	return endpointsAllowing(all, model), model
}

// endpointsAllowing returns the endpoints that allow a model of exactly that name.
func endpointsAllowing(all []*endpoint, model string) (found []*endpoint) {
	for _, e := range all {
		if _, allowed := e.price(model); allowed {
			found = append(found, e)
		}
	}
	return found
}

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

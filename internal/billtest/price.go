package billtest

import (
	"cmp"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// Prices are prices by kind, in millionths of a token of the balance. A kind without a price is absent.
type Prices map[string]int64

// A Model is a model of an endpoint, and what it costs.
type Model struct {
	Name        string
	Prices      Prices
	Above       Prices // of requests with more input tokens than AboveTokens; nil if they are no other
	AboveTokens int64
}

// fallbacks says which price counts for a kind without one. Each comes after those that it falls back to.
var fallbacks = [][2]string{
	{cachedInput, input}, {cacheWrite, input}, {cacheWrite1h, cacheWrite}, {audioInput, input}, {imageInput, input},
	{cachedAudioInput, audioInput}, {audioOutput, output}, {imageOutput, output},
}

// pricesOf returns the prices of all kinds for a request with that many input tokens.
func (m Model) pricesOf(inputTokens int64) Prices {
	prices := Prices{input: 1_000_000, output: 1_000_000}
	maps.Copy(prices, m.Prices)
	if inputTokens > m.AboveTokens {
		maps.Copy(prices, m.Above)
	}
	for _, pair := range fallbacks {
		if _, ok := prices[pair[0]]; !ok {
			prices[pair[0]] = prices[pair[1]]
		}
	}
	return prices
}

// millionths returns what is to be paid for what the model has used, but for the request itself.
func (m Model) millionths(used Counts) *big.Int {
	prices := m.pricesOf(used[input])
	sum := new(big.Int)
	add := func(n, price int64) { sum.Add(sum, new(big.Int).Mul(big.NewInt(n), big.NewInt(price))) }
	for total, kinds := range map[string][]string{input: inputKinds, output: outputKinds} {
		dearest := slices.Clone(kinds)
		slices.SortStableFunc(dearest, func(a, b string) int { return cmp.Compare(prices[b], prices[a]) })
		rest := used[total]
		for _, kind := range dearest { // what is too much is taken from the cheapest
			n := min(used[kind], rest)
			add(n, prices[kind])
			rest -= n
		}
		add(rest, prices[total])
	}
	add(used[search], prices[search])
	return sum
}

// An Endpoint is what the config says of an endpoint. Its models are those that its prices are of.
type Endpoint struct {
	Models      []Model // the first is the default one
	MediaTokens int64
	Reasons     bool   // it may generate what cannot be seen
	OnHangUp    string // as in the config, "" if it says nothing
}

// NewEndpoint returns the endpoint that a seed stands for, with bounds of prices near to the input of r.
func NewEndpoint(seed uint64, r *Response) Endpoint {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, 1))}
	e := Endpoint{MediaTokens: 7, Reasons: m.in(3), OnHangUp: oneOf(m, "", "", "", "cancel", "drain")}
	names := []string{"m", "dear", "cheap", "begins-*"}
	if m.in(2) {
		names = append(names, "m-2026-01-31")
	}
	for _, name := range names {
		model := Model{Name: name, Prices: m.prices()}
		if m.in(3) {
			model.Above, model.AboveTokens = m.prices(), max(1, oneOf(m, r.input, r.input+1, m.upTo(2000)))
		}
		e.Models = append(e.Models, model)
	}
	return e
}

// prices returns prices of some kinds.
func (m *maker) prices() Prices {
	prices := make(Prices)
	for _, kind := range slices.Concat(inputKinds, outputKinds, []string{input, output, search, request}) {
		if m.in(2) {
			prices[kind] = oneOf(m, m.upTo(20_000_000), m.upTo(5)*1_000_000)
		}
	}
	return prices
}

// Config returns the members of the endpoint in a config, but for its URL.
func (e Endpoint) Config() string {
	var models []string
	for _, m := range e.Models {
		prices := m.Prices.config()
		if m.Above != nil {
			above := append(m.Above.config(), fmt.Sprintf(`"tokens":%d`, m.AboveTokens))
			prices = append(prices, `"above":{`+strings.Join(above, ",")+"}")
		}
		models = append(models, fmt.Sprintf("%q:{%s}", m.Name, strings.Join(prices, ",")))
	}
	const format = `"default_model":"m","min_output_tokens":30,"media_tokens":%d,"models":{%s}`
	config := fmt.Sprintf(format, e.MediaTokens, strings.Join(models, ","))
	if !e.Reasons {
		config += `,"reasoning":false`
	}
	if e.OnHangUp != "" {
		config += fmt.Sprintf(`,"on_hangup":%q`, e.OnHangUp)
	}
	return config
}

func (p Prices) config() (members []string) {
	for _, kind := range slices.Sorted(maps.Keys(p)) {
		members = append(members, fmt.Sprintf("%q:%d.%06d", kind, p[kind]/1_000_000, p[kind]%1_000_000))
	}
	return members
}

// Cancels reports whether a stream that has not finished is cancelled when its client leaves, once seen has come of it.
func (e Endpoint) Cancels(r *Response, seen *Reading) bool {
	switch e.OnHangUp {
	case "cancel":
		return true
	case "drain":
		return false
	}
	return !e.Reasons && !r.Media && !seen.Hidden
}

// snapshot is the end of a name that names a snapshot of a model.
var snapshot = regexp.MustCompile(`(-[0-9]{4}-[0-9]{2}-[0-9]{2}|-[0-9]{8}|-latest|@.*)$`)

// find returns the model that a name stands for, and false if the endpoint lists none. Of prefixes it finds none.
func (e Endpoint) find(name string) (Model, bool) {
	for _, name := range []string{name, snapshot.ReplaceAllString(name, "")} {
		if i := slices.IndexFunc(e.Models, func(m Model) bool { return m.Name == name }); i >= 0 {
			return e.Models[i], true
		}
	}
	return Model{}, false
}

// An End is how a response has ended.
type End int

// The ends.
const (
	Complete End = iota
	Broken       // by the provider
	Left         // by the client, so that it was cancelled
)

// Cost returns what the response to a request for the default model costs, whatever the balance is. It is exact unless
// a part of it is estimated.
func (e Endpoint) Cost(r *Reading, end End, estimatedInput, held int64) (cost int64, exact bool) {
	failed := end == Broken || r.Failed && end != Left
	switch exact = r.Exact(); {
	case r.Empty && end != Left:
		return 0, true
	case exact:
	case failed && !r.outputFinal && r.ContentBytes == 0:
		return 0, true
	}
	counts, others := r.Used(estimatedInput)
	cost = e.dearest(r.Model, counts, others, !failed)
	if exact {
		return cost, true
	}
	least := int64(0)
	if r.outputFinal {
		reported, all := r.reported(0)
		counts, others := reported.with(all)
		least = e.dearest(r.Model, counts, others, !failed)
	}
	return max(least, min(cost, held)), false
}

// dearest returns the cost at the prices of the default model or, if that is more, of the one that the response names.
func (e Endpoint) dearest(named string, counts Counts, others []Of, succeeded bool) int64 {
	cost := e.cost(e.Models[0], counts, others, succeeded)
	isSnapshot := snapshot.ReplaceAllString(named, "") == e.Models[0].Name
	if other, ok := e.find(named); ok && !isSnapshot {
		cost = max(cost, e.cost(other, counts, others, succeeded))
	}
	return cost
}

// cost returns the cost in tokens of the balance, rounded up.
func (e Endpoint) cost(m Model, counts Counts, others []Of, succeeded bool) int64 {
	sum := m.millionths(counts)
	if succeeded {
		sum.Add(sum, big.NewInt(m.pricesOf(counts[input])[request]))
	}
	for _, other := range others {
		sum.Add(sum, e.millionthsOf(other))
	}
	sum.Add(sum, big.NewInt(999_999)).Div(sum, big.NewInt(1_000_000))
	return min(sum.Int64(), 1<<53-1)
}

// millionthsOf returns what is to be paid for another model. One that the endpoint does not have is as dear as any.
func (e Endpoint) millionthsOf(other Of) *big.Int {
	if m, ok := e.find(other.Model); ok {
		return m.millionths(other.Counts)
	}
	most := new(big.Int)
	for _, m := range e.Models {
		if sum := m.millionths(other.Counts); sum.Cmp(most) > 0 {
			most = sum
		}
	}
	return most
}

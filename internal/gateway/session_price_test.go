package gateway

import (
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"tollgate/internal/llmwire"
)

// sixPrices are those of a model that hears and speaks: each kind of token costs another power of ten.
const sixPrices = `"input":10,"cached_input":1,"audio_input":100,"cached_audio_input":2,"image_input":20,"output":40,"audio_output":200`

// sessionPriceOf returns a price with these members, of responses with at most 28,672 input and 4,096 output tokens.
func sessionPriceOf(t testing.TB, members, transcription string) *sessionPrice {
	return &sessionPrice{
		price: priceOf(t, members), transcription: priceOf(t, transcription), maxInput: 28_672, maxOutput: 4_096,
	}
}

// A response is held at the dearest of its kinds.
func TestSessionHolds(t *testing.T) {
	const full = 28_672 + 4_096
	for _, test := range []struct {
		prices      string
		lastInput   int64
		full, least int64
	}{
		{``, 0, full, 1256},
		{``, 5_000, full, 6256},
		{``, 27_672, full, 28_672 + 256},
		{``, 28_672, full, 28_672 + 256}, // the provider refuses more
		{``, 1 << 53, full, 28_672 + 256},
		{sixPrices, 0, 28_672*100 + 4_096*200, 100_000 + 51_200},
		{`"input":2,"output":0`, 0, 2 * 28_672, 2000},
		{`"input":0,"output":3`, 7_000, 3 * 4_096, 3 * 256},
		{`"input":0,"output":0`, 7_000, 1, 1},
		{`"input":0.0001,"output":0.0001`, 0, 4, 1}, // 3.2768 and 0.1256
		{`"cached_input":2`, 0, 2*28_672 + 4_096, 2256},
		{`"audio_input":2`, 0, 2*28_672 + 4_096, 2256},
		{`"cached_audio_input":2`, 0, 2*28_672 + 4_096, 2256},
		{`"image_input":2`, 0, 2*28_672 + 4_096, 2256},
		{`"audio_output":2`, 0, full + 4_096, 1512},
		{`"image_output":2`, 0, full + 4_096, 1512},
		{`"cache_write":9,"search":9,"second":9,"character":9`, 0, full, 1256}, // a response has none
		{`"request":7`, 0, full + 7, 1263},
		{`"above":{"tokens":1,"input":2}`, 0, full + 28_672, 2256},
		{`"above":{"tokens":1000000,"audio_output":2}`, 0, full + 4_096, 1512},
		{`"input":3,"above":{"tokens":1,"input":2}`, 0, 3*28_672 + 4_096, 3256},
		{`"above":{"tokens":1,"request":5}`, 0, full + 5, 1261},
		{`"input":1000000000,"output":1000000000`, 0, 1_000_000_000 * full, 1_256_000_000_000},
	} {
		p := sessionPriceOf(t, test.prices, "")
		if full, least := p.full(), p.least(test.lastInput); full != test.full || least != test.least {
			t.Errorf("%s, last input %d: full %d, least %d; want %d, %d",
				test.prices, test.lastInput, full, least, test.full, test.least)
		}
	}
}

// A small window is held for what it has, and no more.
func TestSessionHoldsSmall(t *testing.T) {
	p := sessionPriceOf(t, `"output":2`, "")
	p.maxInput, p.maxOutput = 500, 100
	if full, least, limit := p.full(), p.least(0), p.limit(700, 0); full != 700 || least != 700 || limit != 100 {
		t.Errorf("full %d, least %d, limit %d; want 700, 700, 100", full, least, limit)
	}
	p.maxInput, p.maxOutput = llmwire.MaxTokens, llmwire.MaxTokens
	if full := p.full(); full != llmwire.MaxTokens {
		t.Errorf("full %d, want %d", full, int64(llmwire.MaxTokens))
	}
}

func TestSessionLimit(t *testing.T) {
	for _, test := range []struct {
		prices            string
		tokens, lastInput int64
		want              int64
	}{
		{``, 28_672 + 4_096, 0, 4_096},
		{``, 28_672 + 4_096, 28_672, 4_096},
		{``, 1256, 0, 256},
		{``, 1256, 100, 156},
		{``, 1001, 0, 1},
		{``, 1000, 0, 1}, // a limit is at least 1
		{``, 1, 0, 1},
		{``, 28_672, 28_672, 1},
		{`"output":3`, 1299, 0, 99},
		{`"output":3`, 1302, 0, 100},
		{`"audio_output":3`, 1302, 0, 100},
		{`"request":2,"output":3`, 1302, 0, 100},
		{`"request":3,"output":3`, 1302, 0, 99},
		{`"output":0`, 1000, 0, 4_096},
		{`"output":0`, 1, 0, 1},
		{`"input":0,"output":0`, 1, 0, 4_096},
		{`"output":0.000001`, 1001, 0, 4_096},
	} {
		if got := sessionPriceOf(t, test.prices, "").limit(test.tokens, test.lastInput); got != test.want {
			t.Errorf("%s: %d tokens after %d: limit %d, want %d", test.prices, test.tokens, test.lastInput, got, test.want)
		}
	}
}

func TestSessionResponse(t *testing.T) {
	for _, test := range []struct {
		prices string
		usage  llmwire.Usage
		want   int64
	}{
		{``, llmwire.Usage{}, 0},
		{`"request":5`, llmwire.Usage{}, 0}, // cancelled before anything was used
		{`"request":5`, llmwire.Usage{Input: 1}, 6},
		{`"request":5`, llmwire.Usage{Output: 1}, 6},
		{`"input":0.001`, llmwire.Usage{Input: 1}, 1}, // rounded up
		// 119 text and 13 sound, 64 text of which were cached; 30 text and 91 sound.
		{sixPrices, llmwire.Usage{Input: 132, CachedInput: 64, AudioInput: 13, Output: 121, AudioOutput: 91},
			55*10 + 64 + 13*100 + 30*40 + 91*200},
		{sixPrices, llmwire.Usage{Input: 100, CachedAudioInput: 30, ImageInput: 20, Output: 1}, 50*10 + 30*2 + 20*20 + 40},
		{sixPrices, llmwire.Usage{Input: 10, AudioInput: 20}, 1000}, // contradicts itself
		{`"above":{"tokens":9,"input":2,"request":1}`, llmwire.Usage{Input: 10}, 21},
	} {
		if got := sessionPriceOf(t, test.prices, "").response(&test.usage); got != test.want {
			t.Errorf("%s: %+v costs %d, want %d", test.prices, test.usage, got, test.want)
		}
	}
}

func TestSessionDearest(t *testing.T) {
	text, sound := llmwire.Usage{Input: 5, Output: 30}, llmwire.Usage{Input: 5, Output: 20, AudioOutput: 20}
	for _, test := range []struct {
		prices    string
		estimates []llmwire.Usage
		want      llmwire.Usage
		cost      int64
	}{
		{``, nil, llmwire.Usage{}, 0},
		{``, []llmwire.Usage{text, sound}, text, 35},
		{`"audio_output":5`, []llmwire.Usage{text, sound}, sound, 105},
		{`"audio_output":5`, []llmwire.Usage{sound, text}, sound, 105},
		{`"input":0,"output":0`, []llmwire.Usage{sound, text}, sound, 0},
	} {
		if got, cost := sessionPriceOf(t, test.prices, "").dearest(test.estimates); got != test.want || cost != test.cost {
			t.Errorf("%s, %+v: %+v at %d, want %+v at %d", test.prices, test.estimates, got, cost, test.want, test.cost)
		}
	}
}

// Seconds are not rounded up, their cost is.
func TestSessionTranscript(t *testing.T) {
	tokens := llmwire.Usage{Input: 30, AudioInput: 20, Output: 4}
	for _, test := range []struct {
		prices string
		usage  llmwire.Usage
		lasted time.Duration
		want   int64
	}{
		{``, llmwire.Usage{}, 0, 0},
		{`"input":2,"output":3`, tokens, 0, 60 + 12}, // tokens of sound are input as those of text are
		{`"second":10`, llmwire.Usage{}, 2400 * time.Millisecond, 24},
		{`"second":10`, llmwire.Usage{}, 2401 * time.Millisecond, 25},
		{`"second":10`, llmwire.Usage{}, 1100*time.Millisecond + 1, 11}, // 1.1 * 1e9, rounded up
		{`"second":0.001`, llmwire.Usage{}, time.Millisecond, 1},
		{`"second":0`, llmwire.Usage{}, time.Hour, 0},
		{`"second":0.5,"input":0.5`, llmwire.Usage{Input: 1}, time.Second, 1}, // one sum, rounded once
		{`"input":0.3,"second":0.0004`, llmwire.Usage{Input: 2}, time.Second, 1},
		{`"second":1000000000`, llmwire.Usage{}, 24 * time.Hour, 86_400_000_000_000},
		{`"second":1000000000`, llmwire.Usage{}, 1<<63 - 1, llmwire.MaxTokens},
		{`"second":1000000000`, llmwire.Usage{}, time.Microsecond, 1000},
		{`"input":1000000000`, llmwire.Usage{Input: llmwire.MaxTokens}, 0, llmwire.MaxTokens},
	} {
		if got := sessionPriceOf(t, sixPrices, test.prices).transcript(&test.usage, test.lasted); got != test.want {
			t.Errorf("%s: %+v and %v cost %d, want %d", test.prices, test.usage, test.lasted, got, test.want)
		}
	}
}

func TestSessionSeconds(t *testing.T) {
	for _, test := range []struct {
		price           string
		seconds, cost   int64
		tokens, covered int64 // of at most 3,600
	}{
		{``, 42, 42, 42, 42},
		{`"second":0`, 3600, 0, 0, 3600},
		{`"second":0.1`, 42, 5, 5, 50},
		{`"second":2.5`, 3, 8, 8, 3},
		{`"second":2.5`, 0, 0, 2, 0},
		{`"second":0.000001`, 3600, 1, 1, 3600},
		{`"second":1000000000`, 3600, 3_600_000_000_000, llmwire.MaxTokens, 3600},
		{`"second":1000000000`, 1 << 53, llmwire.MaxTokens, 999_999_999, 0},
	} {
		p := sessionPriceOf(t, test.price, "")
		if cost, covered := p.seconds(test.seconds), p.secondsFor(test.tokens, 3600); cost != test.cost || covered != test.covered {
			t.Errorf("%s: %d s cost %d, want %d; %d tokens are for %d s, want %d",
				test.price, test.seconds, cost, test.cost, test.tokens, covered, test.covered)
		}
	}
}

// FuzzSessionPrice checks, for prices of all magnitudes, that what is held for a response covers it, that a limit is
// what the tokens cover and no less, and that seconds cost what pays for them.
func FuzzSessionPrice(f *testing.F) {
	f.Add(uint64(1), int64(28_672), int64(4_096), int64(0), int64(10_000))
	f.Add(uint64(2), int64(1)<<53, int64(1)<<53, int64(1)<<53, int64(1)<<53)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		n := func() int64 { return r.Int64N(1 << r.IntN(54)) }
		f.Add(seed, n(), n(), n(), n())
	}
	f.Fuzz(func(t *testing.T, seed uint64, maxInput, maxOutput, lastInput, tokens int64) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := &sessionPrice{
			price: randomPrice(r), transcription: randomPrice(r),
			maxInput: max(maxInput&(1<<53-1), 1), maxOutput: max(maxOutput&(1<<53-1), 1),
		}
		lastInput, tokens = lastInput&(1<<53-1), max(tokens&(1<<53-1), 1)
		checkHolds(t, r, p, lastInput)
		checkLimit(t, p, tokens, lastInput)
		if n := p.secondsFor(tokens, 3600); n < 0 || n > 3600 || p.seconds(n) > tokens || n < 3600 && p.seconds(n+1) <= tokens {
			t.Fatalf("%d tokens pay for %d s, which cost %d, and one more %d", tokens, n, p.seconds(n), p.seconds(n+1))
		}
	})
}

// randomPrice returns a price whose rates are random, of all magnitudes.
func randomPrice(r *rand.Rand) *price {
	random := func() (all rates) {
		most := int64(1) << r.IntN(50)
		for k := range all {
			all[k] = r.Int64N(most + 1)
		}
		return all
	}
	p := &price{rates: random()}
	if above := random(); r.IntN(2) > 0 {
		p.above, p.aboveTokens = &above, r.Int64N(1<<r.IntN(54))
	}
	return p
}

// checkHolds checks that no response within the bounds costs more than is held for it, and what is least.
func checkHolds(t *testing.T, r *rand.Rand, p *sessionPrice, lastInput int64) {
	full, least := p.full(), p.least(lastInput)
	if full < 1 || full > llmwire.MaxTokens || least < 1 || least > full || p.least(0) > least {
		t.Fatalf("full %d, least %d, %d at first", full, least, p.least(0))
	}
	u := llmwire.Usage{Input: r.Int64N(p.maxInput + 1), Output: r.Int64N(p.maxOutput + 1)}
	u.CachedInput, u.AudioInput = r.Int64N(u.Input+1), r.Int64N(u.Input+1)
	u.CachedAudioInput, u.ImageInput = r.Int64N(u.Input+1), r.Int64N(u.Input+1)
	u.AudioOutput = r.Int64N(u.Output + 1)
	text := llmwire.Usage{Input: u.Input, Output: u.Output}
	u, cost := p.dearest([]llmwire.Usage{u, text})
	if cost > full {
		t.Fatalf("%+v costs %d, %d are held", u, cost, full)
	}
	if alone := p.response(&text); alone > cost {
		t.Fatalf("%+v costs %d and is not the dearest: %+v costs %d", text, alone, u, cost)
	}
}

// checkLimit checks that a limit is the inverse of the cost.
func checkLimit(t *testing.T, p *sessionPrice, tokens, lastInput int64) {
	held, input, limit := p.held(), min(lastInput+1000, p.maxInput), p.limit(tokens, lastInput)
	if limit < 1 || limit > p.maxOutput || p.limit(tokens+1, lastInput) < limit || p.limit(p.full(), lastInput) != p.maxOutput &&
		p.full() < llmwire.MaxTokens {
		t.Fatalf("limit %d of %d; %d for one token more, %d for all",
			limit, p.maxOutput, p.limit(tokens+1, lastInput), p.limit(p.full(), lastInput))
	}
	// Costs end at 2^53-1.
	if cost := exactCost(held, input, limit); limit > 1 && cost.Cmp(big.NewInt(tokens)) > 0 {
		t.Fatalf("%d tokens are a limit of %d, which costs %d", tokens, limit, cost)
	}
	if cost := exactCost(held, input, limit+1); limit < p.maxOutput && cost.Cmp(big.NewInt(tokens)) <= 0 {
		t.Fatalf("%d tokens are a limit of %d, but one more costs %d", tokens, limit, cost)
	}
}

// exactCost is heldPrice.cost without the bounds of integers.
func exactCost(h heldPrice, input, output int64) *big.Int {
	sum := new(big.Int).Lsh(new(big.Int).SetUint64(h.known.high), 64)
	sum.Add(sum, new(big.Int).SetUint64(h.known.low))
	for _, product := range [][2]int64{{input, h.input}, {output, h.output}} {
		sum.Add(sum, new(big.Int).Mul(big.NewInt(product[0]), big.NewInt(product[1])))
	}
	return sum.Add(sum, big.NewInt(priceUnit-1)).Div(sum, big.NewInt(priceUnit))
}

package gateway

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"tollgate/internal/llmwire"
)

// priceOf returns the price of the model whose object in a config has these members.
func priceOf(t testing.TB, members string) *price {
	t.Helper()
	return newEndpoint(t, "e", chatURL+`,"models":{"m":{`+members+`}}`).prices.find("m")
}

// allKinds is a usage with every kind: of the input 1,000 have none of their own, of the output 100.
var allKinds = llmwire.Usage{
	Input: 1127, CachedInput: 1, CacheWrite: 2, CacheWrite1h: 4, AudioInput: 8, CachedAudioInput: 16, ImageInput: 96,
	Output: 107, AudioOutput: 3, ImageOutput: 4, Searches: 5,
}

// Each kind of token has its price, or that of another kind.
func TestBill(t *testing.T) {
	one := func(f func(u *llmwire.Usage)) llmwire.Usage {
		u := llmwire.Usage{Input: 1000, Output: 100}
		f(&u)
		return u
	}
	for _, test := range []struct {
		prices string
		usage  llmwire.Usage
		want   int64
	}{
		{``, allKinds, 1127 + 107},
		{`"input":2,"output":3`, allKinds, 2*1127 + 3*107},
		{`"input":0,"output":0,"cached_input":1000000,"cache_write":10000,"cache_write_1h":1000,"audio_input":100,"image_input":10`,
			allKinds, 1*1000000 + 2*10000 + 4*1000 + (8+16)*100 + 96*10},
		{`"input":0,"output":0,"cached_audio_input":7,"audio_output":100,"image_output":1000,"search":10000`, allKinds,
			16*7 + 300 + 4000 + 50000},
		{`"cached_input":0.1`, one(func(u *llmwire.Usage) { u.CachedInput = 995 }), 100 + 5 + 100}, // 99.5 + 5 + 100
		{`"cached_input":0.1,"cached_audio_input":0`, one(func(u *llmwire.Usage) { u.CachedInput, u.CachedAudioInput = 500, 500 }), 150},
		{`"cache_write":2`, one(func(u *llmwire.Usage) { u.CacheWrite1h = 10 }), 1110},
		{`"cache_write":2,"cache_write_1h":3`, one(func(u *llmwire.Usage) { u.CacheWrite1h = 10 }), 1120},
		{`"audio_input":2`, one(func(u *llmwire.Usage) { u.CachedAudioInput = 10 }), 1110},
		{`"output":2,"audio_output":5`, one(func(u *llmwire.Usage) { u.AudioOutput = 10 }), 1000 + 2*90 + 50},
		// What is too much is taken from the cheapest.
		{`"cached_input":0.1,"cache_write":2`, one(func(u *llmwire.Usage) { u.CachedInput, u.CacheWrite = 900, 300 }), 600 + 70 + 100},
		{`"cached_input":9`, one(func(u *llmwire.Usage) { u.CachedInput, u.AudioInput = 2000, 500 }), 9000 + 100},
		{`"audio_output":9`, one(func(u *llmwire.Usage) { u.AudioOutput, u.ImageOutput = 40, 9000 }), 1000 + 60 + 360},
		// Above.
		{`"above":{"tokens":999,"input":2,"output":3}`, one(func(*llmwire.Usage) {}), 2300},
		{`"above":{"tokens":1000,"input":2,"output":3}`, one(func(*llmwire.Usage) {}), 1100},
		{`"above":{"tokens":999,"input":2}`, one(func(u *llmwire.Usage) { u.CachedInput = 10 }), 2100},
		{`"cached_input":0.5,"above":{"tokens":999,"input":2}`, one(func(u *llmwire.Usage) { u.CachedInput = 10 }), 2*990 + 5 + 100},
		{`"cached_input":0.5,"above":{"tokens":999,"cached_input":1.5}`, one(func(u *llmwire.Usage) { u.CachedInput = 10 }), 990 + 15 + 100},
		{`"above":{"tokens":999,"search":3}`, one(func(u *llmwire.Usage) { u.Searches = 2 }), 1106},
	} {
		if got := priceOf(t, test.prices).bill(&test.usage, 0).tokens(); got != test.want {
			t.Errorf("%s: %+v costs %d, want %d", test.prices, test.usage, got, test.want)
		}
	}
}

// priceMembers are the names of the prices, in the order of the kinds.
var priceMembers = [...]string{
	"input", "cached_input", "cache_write", "cache_write_1h", "audio_input", "image_input", "cached_audio_input",
	"output", "audio_output", "image_output", "search", "request", "second", "character",
}

// randomPrices returns members with random prices, some of which are missing.
func randomPrices(most int64) (members string) {
	for _, name := range priceMembers {
		if millionths := rand.Int64N(most + 1); rand.IntN(3) > 0 {
			members += fmt.Sprintf(`"%s":%d.%06d,`, name, millionths/priceUnit, millionths%priceUnit)
		}
	}
	return members
}

// naiveCost computes what u costs from a list of its tokens, each kind at its own price, without the bounds of integers.
func naiveCost(r *rates, u llmwire.Usage, requests int64) *big.Int {
	type kindOf struct{ count, rate int64 }
	sum := new(big.Int)
	add := func(count, rate int64) { sum.Add(sum, new(big.Int).Mul(big.NewInt(count), big.NewInt(rate))) }
	side := func(total int64, rest int64, parts ...kindOf) {
		slices.SortFunc(parts, func(a, b kindOf) int { return int(min(max(b.rate-a.rate, -1), 1)) }) // the dearest first
		for _, part := range parts {
			n := min(part.count, total)
			total -= n
			add(n, part.rate)
		}
		add(total, rest)
	}
	side(u.Input, r[kindInput], kindOf{u.CachedInput, r[kindCachedInput]}, kindOf{u.CacheWrite, r[kindCacheWrite]},
		kindOf{u.CacheWrite1h, r[kindCacheWrite1h]}, kindOf{u.AudioInput, r[kindAudioInput]}, kindOf{u.ImageInput, r[kindImageInput]},
		kindOf{u.CachedAudioInput, r[kindCachedAudio]})
	side(u.Output, r[kindOutput], kindOf{u.AudioOutput, r[kindAudioOutput]}, kindOf{u.ImageOutput, r[kindImageOutput]})
	add(u.Searches, r[kindSearch])
	add(requests, r[kindRequest])
	add(u.Seconds, r[kindSecond])
	add(u.Characters, r[kindCharacter])
	sum.Add(sum, big.NewInt(priceUnit-1)).Div(sum, big.NewInt(priceUnit))
	if sum.Cmp(big.NewInt(llmwire.MaxTokens)) > 0 {
		sum.SetInt64(llmwire.MaxTokens)
	}
	return sum
}

// randomUsage returns a usage whose counts are random, of all magnitudes.
func randomUsage() (u llmwire.Usage) {
	fields := reflect.ValueOf(&u).Elem()
	for i := range fields.NumField() {
		if rand.IntN(2) > 0 {
			fields.Field(i).SetInt(min(rand.Int64N(1<<rand.IntN(54)), llmwire.MaxTokens))
		}
	}
	return u
}

// Charges are exact for numbers of all sizes, and the usage that is counted never has more of a kind than there are.
func TestBillProperties(t *testing.T) {
	for range 2000 {
		p := priceOf(t, randomPrices(1<<rand.IntN(50))+fmt.Sprintf(`"above":{%s"tokens":%d}`, randomPrices(1<<20), 1+rand.Int64N(1<<40)))
		for range 10 { // to read prices takes longer than to use them
			u := randomUsage()
			before := u
			got, want := p.bill(&u, 3).tokens(), naiveCost(p.of(u.Input), u, 3)
			if got != want.Int64() {
				t.Fatalf("%+v costs %d at %v, want %d", before, got, p.of(u.Input), want)
			}
			if in := u.CachedInput + u.CacheWrite + u.CacheWrite1h + u.AudioInput + u.ImageInput + u.CachedAudioInput; in > u.Input ||
				u.AudioOutput+u.ImageOutput > u.Output || u.Input != before.Input || u.Output != before.Output {
				t.Fatalf("%+v became %+v", before, u)
			}
		}
	}
}

// A hold is the dearest of what the request can have.
func TestHeldKinds(t *testing.T) {
	const prices = `"input":1,"cached_input":2,"cache_write":3,"cache_write_1h":4,"audio_input":5,"cached_audio_input":6,"image_input":7,` +
		`"output":10,"audio_output":20,"image_output":30,"request":100`
	type held struct{ input, output, request int64 }
	const anthropic = llmwire.AnthropicMessages
	for _, test := range []struct {
		prices  string
		request llmwire.Request
		want    held // in tokens
	}{
		{prices, llmwire.Request{Format: anthropic}, held{2, 10, 100}},
		{prices, llmwire.Request{Format: anthropic, CacheWrite: llmwire.CachedShort}, held{3, 10, 100}},
		{prices, llmwire.Request{Format: anthropic, CacheWrite: llmwire.CachedHour}, held{4, 10, 100}},
		{prices, llmwire.Request{Format: anthropic, HasImages: true}, held{7, 10, 100}},
		{prices, llmwire.Request{Format: anthropic, HasAudio: true}, held{6, 10, 100}},
		{prices, llmwire.Request{Format: anthropic, MediaOutput: true}, held{2, 30, 100}},
		{prices, llmwire.Request{}, held{3, 10, 100}}, // OpenAI's caches are written unasked
		{`"cache_write_1h":9`, llmwire.Request{}, held{1, 1, 0}},
		{`"cache_write_1h":9`, llmwire.Request{CacheWrite: llmwire.CachedHour}, held{9, 1, 0}},
		{`"cached_input":0.1`, llmwire.Request{}, held{1, 1, 0}},
		{`"above":{"tokens":999,"input":2,"output":3,"request":1}`, llmwire.Request{}, held{2, 3, 1}},
		{`"above":{"tokens":1000,"input":2,"output":3}`, llmwire.Request{}, held{1, 1, 0}},
		{`"above":{"tokens":999,"input":0.5,"output":3}`, llmwire.Request{}, held{1, 3, 0}}, // less may be used than is held
	} {
		got := priceOf(t, test.prices).held(&test.request, 1000)
		want := heldPrice{input: test.want.input * priceUnit, output: test.want.output * priceUnit}
		if want.known.add(test.want.request, priceUnit); got != want {
			t.Errorf("%s, %+v: %v, want %v", test.prices, test.request, got, want)
		}
	}
}

// A sound is held at the dearer of its seconds and of the tokens that these may have, text to speak by the character.
func TestHeldSounds(t *testing.T) {
	for _, test := range []struct {
		prices              string
		seconds, characters int64
		want                int64
	}{
		{``, 10, 0, 150},
		{``, 0, 7, 7},
		{`"second":20`, 10, 0, 200},
		{`"second":15.1`, 1, 0, 16},
		{`"second":0,"input":0,"output":0`, 10, 0, 0},
		{`"second":0,"audio_input":4,"output":2,"input":9,"cached_input":99,"request":3`, 10, 0, 503},
		{`"second":1,"audio_input":0,"output":0`, 10, 0, 10},
		{`"character":0.5,"request":0.1,"input":9,"output":9`, 0, 3, 2},
		{`"character":0`, 0, 3, 0},
		{`"above":{"tokens":100,"audio_input":2}`, 10, 0, 150},
		{`"above":{"tokens":100,"audio_input":2}`, 11, 0, 275},
		{`"above":{"tokens":100,"audio_input":0,"output":0,"second":0}`, 11, 0, 165},
		{fmt.Sprintf(`"second":%d,"audio_input":%[1]d`, maxPrice/priceUnit), llmwire.MaxTokens, 0, llmwire.MaxTokens},
	} {
		request := llmwire.Request{Format: llmwire.OpenAITranscriptions, Seconds: test.seconds, Characters: test.characters}
		if got := priceOf(t, test.prices).held(&request, 0).cost(0, 0); got != test.want {
			t.Errorf("%s: %d seconds and %d characters are held at %d, want %d",
				test.prices, test.seconds, test.characters, got, test.want)
		}
	}
}

// Only where no second and no token costs anything, a transcript may come without saying how long the sound was.
func TestIsFreeSound(t *testing.T) {
	for prices, want := range map[string]bool{
		``:                                false,
		`"second":0,"input":0,"output":0`: true,
		`"second":0,"input":0,"output":0,"character":5,"request":5`:        true,
		`"second":0,"input":0,"output":0,"audio_input":1`:                  false,
		`"second":0,"input":0,"output":0,"audio_output":1`:                 false,
		`"second":0,"input":0,"output":0.000001`:                           false,
		`"second":0,"input":0`:                                             false,
		`"input":0,"output":0`:                                             false,
		`"second":0,"input":0,"output":0,"above":{"tokens":1}`:             true,
		`"second":0,"input":0,"output":0,"above":{"tokens":1,"second":1}`:  false,
		`"second":0,"input":0,"output":0,"above":{"tokens":1,"request":1}`: true,
		`"second":1,"input":0,"output":0,"above":{"tokens":1,"second":0}`:  false,
	} {
		if got := priceOf(t, prices).isFreeSound(); got != want {
			t.Errorf("%s: free is %v, want %v", prices, got, want)
		}
	}
}

// Whatever a request can use of what is held, costs no more than that.
func TestHoldsBound(t *testing.T) {
	for range 2000 {
		p := priceOf(t, randomPrices(1<<40)+fmt.Sprintf(`"above":{%s"tokens":%d}`, randomPrices(1<<40), 1+rand.Int64N(2000)))
		for range 10 {
			testHoldBounds(t, p)
		}
	}
}

// testHoldBounds compares what a random request is held at with the cost of a random usage that it may have.
func testHoldBounds(t *testing.T, p *price) {
	t.Helper()
	request := llmwire.Request{
		Format: llmwire.Format(rand.IntN(2)), CacheWrite: llmwire.CacheTime(rand.IntN(3)),
		HasAudio: rand.IntN(2) > 0, HasImages: rand.IntN(2) > 0, MediaOutput: rand.IntN(2) > 0,
	}
	input, output := rand.Int64N(2000), rand.Int64N(2000)
	held := p.held(&request, input).cost(input, output)
	u := llmwire.Usage{Input: rand.Int64N(input + 1), Output: rand.Int64N(output + 1), CachedInput: rand.Int64N(2000)}
	if request.Format != llmwire.AnthropicMessages || request.CacheWrite > llmwire.NotCached {
		u.CacheWrite = rand.Int64N(2000)
	}
	if request.CacheWrite == llmwire.CachedHour {
		u.CacheWrite1h = rand.Int64N(2000)
	}
	if request.HasAudio {
		u.AudioInput, u.CachedAudioInput = rand.Int64N(2000), rand.Int64N(2000)
	}
	if request.HasImages {
		u.ImageInput = rand.Int64N(2000)
	}
	if request.MediaOutput {
		u.AudioOutput, u.ImageOutput = rand.Int64N(2000), rand.Int64N(2000)
	}
	if cost := p.bill(&u, 1).tokens(); cost > held {
		t.Fatalf("%+v costs %d, and %d are held for %+v with %d and %d tokens", u, cost, held, request, input, output)
	}
}

// A response is charged as the dearer model that it names, if that is listed.
func TestBillOfResponse(t *testing.T) {
	e := newPriced(t, "mini=1 gpt=10 gpt-2024-01-01=20 dear-2025-01-01=30 pre*=50 free=0")
	for _, test := range []struct {
		asked, responded string
		want             int64
	}{
		{"mini", "mini", 1}, {"mini", "", 1}, {"mini", "mini-2024-01-01", 1}, {"mini", "unheard of", 1},
		{"mini", "gpt", 10}, {"mini", "gpt-2025-01-01", 10}, {"mini", "gpt-2024-01-01", 20}, {"mini", "dear", 30},
		{"gpt", "mini", 10}, {"gpt", "free", 10},
		{"gpt", "gpt-2024-01-01", 10}, {"gpt-latest", "gpt-2024-01-01", 10}, // a snapshot of what was asked for
		{"mini", "prefix", 1}, {"prefix", "gpt", 50}, {"prefix", "dear", 50}, {"free", "gpt", 10},
	} {
		if got := e.billOf(test.asked, test.responded, &llmwire.Usage{Input: 1}, 0).tokens(); got != test.want {
			t.Errorf("%s, answered by %s, costs %d, want %d", test.asked, test.responded, got, test.want)
		}
	}
}

// What another model has used costs what that model does, and as much as the dearest if it has no price, or if it is
// several models.
func TestBillOfOther(t *testing.T) {
	e := newEndpoint(t, "e", chatURL+`,"models":{"m":{"input":2},"n":{"input":9,"cached_input":1},"p*":{"input":3}}`)
	for model, want := range map[string]int64{"m": 20, "m-latest": 20, "n": 9*2 + 8, "pq": 30, "other": 30, "": 30} {
		other := llmwire.ModelUsage{Model: model, Usage: llmwire.Usage{Input: 10, CachedInput: 8}}
		if got := e.billOfOther(&other).tokens(); got != want {
			t.Errorf("%q costs %d, want %d", model, got, want)
		}
	}
	e = newEndpoint(t, "e", chatURL+`,"models":{"*":{"input":1},"n":{"input":9}}`)
	for model, want := range map[string]int64{"other": 10, "": 90} {
		if got := e.billOfOther(&llmwire.ModelUsage{Model: model, Usage: llmwire.Usage{Input: 10}}).tokens(); got != want {
			t.Errorf("beside a pattern for all, %q costs %d, want %d", model, got, want)
		}
	}
}

package llmwire

import (
	"math"
	"slices"
	"strconv"
)

// Usage is what a response has used: tokens of the model by kind, each from 0 to MaxTokens, and what else is counted.
// Input and Output are the totals. The other kinds of tokens are parts of them, and no token has two kinds.
//
// The kinds are as the provider reports them. A provider that contradicts itself can report more of them than the total
// has. Whoever knows the prices then takes what is too much from the cheapest kind.
type Usage struct {
	Input            int64
	CachedInput      int64 // read from the provider's cache, without sounds
	CacheWrite       int64 // written to it, for its shortest time
	CacheWrite1h     int64 // written to it for an hour
	AudioInput       int64 // without what was read from the cache
	CachedAudioInput int64
	ImageInput       int64 // without what was read from the cache

	Output      int64
	AudioOutput int64
	ImageOutput int64

	Searches   int64 // that the provider has made, or sources that it bills instead of them
	Seconds    int64 // of sound, rounded up
	Characters int64 // to speak: Unicode code points
}

// Add adds other to u. Each sum stays at or below MaxTokens.
func (u *Usage) Add(other *Usage) {
	to, from := u.counts(), other.counts()
	for i := range to {
		*to[i] = min(*to[i]+*from[i], MaxTokens)
	}
}

func (u *Usage) counts() [13]*int64 {
	return [...]*int64{
		&u.Input, &u.CachedInput, &u.CacheWrite, &u.CacheWrite1h, &u.AudioInput, &u.CachedAudioInput, &u.ImageInput,
		&u.Output, &u.AudioOutput, &u.ImageOutput, &u.Searches, &u.Seconds, &u.Characters,
	}
}

// total returns all tokens.
func (u *Usage) total() int64 { return u.Input + u.Output }

// ModelUsage is what one model has used.
type ModelUsage struct {
	Model string // "" for all models together that are too many to be told apart
	Usage
}

// A countKind is something that providers count.
type countKind uint

// What is counted. Providers have different names for it.
const (
	promptTokens    countKind = iota // input, with all of its kinds
	inputTokens                      // input; Anthropic's has none that was read from a cache or written to it
	cacheReadTokens                  // Anthropic's, beside inputTokens
	cacheWriteTokens
	cachedTokens // of promptTokens
	writtenTokens
	written5mTokens
	written1hTokens
	audioTokens
	cachedAudioTokens
	cachedImageTokens
	imageTokens

	outputTokens
	totalTokens
	audioOutputTokens
	imageOutputTokens

	searches
	otherSearches

	kindsCounted
)

// Sets of counts, a bit for each.
const (
	inputTotals counts = 1<<promptTokens | 1<<inputTokens | 1<<cacheReadTokens | 1<<cacheWriteTokens |
		1<<written5mTokens | 1<<written1hTokens
	inputCounts counts = 1<<outputTokens - 1
)

type counts uint32

// A rawUsage is one usage object as a provider has sent it.
type rawUsage struct {
	has counts // a bit for each count that it has
	n   [kindsCounted]int64
}

// set notes a count. Of two with the same meaning, or of one that is there twice, the larger counts.
func (u *rawUsage) set(what countKind, n int64) {
	if u.has&(1<<what) != 0 {
		n = max(n, u.n[what])
	}
	u.has |= 1 << what
	u.n[what] = n
}

// get returns a count, 0 if u does not have it.
func (u *rawUsage) get(what countKind) int64 {
	if u.has&(1<<what) == 0 {
		return 0
	}
	return u.n[what]
}

// sees reports which totals follow from u. A sum of both says what one is beside the other, and what they are together.
func (u *rawUsage) sees() (input, output bool) {
	hasSum, hasOutput := u.has&(1<<totalTokens) != 0, u.has&(1<<outputTokens) != 0
	hasInput := u.has&inputTotals != 0 || hasSum && (!hasOutput || u.get(totalTokens) > u.get(outputTokens))
	return hasInput, hasSum || hasOutput
}

// input returns the input tokens that u counts. OpenAI's prompt_tokens include what was read from a cache or written to
// it. Anthropic's input_tokens do not.
func (u *rawUsage) input() int64 {
	input := max(u.get(promptTokens), u.get(inputTokens))
	if u.has&(1<<promptTokens) == 0 {
		input += u.get(cacheReadTokens) + max(u.get(cacheWriteTokens), u.get(written5mTokens)+u.get(written1hTokens))
	}
	return min(input, MaxTokens)
}

// usage returns what u counts. If u has only the sum of input and output, the input is taken to be estimatedInput. If
// the sum is more than both, it has reasoning that the output leaves out (xAI, Gemini).
func (u *rawUsage) usage(estimatedInput int64) Usage {
	input, output, both := u.input(), u.get(outputTokens), u.get(totalTokens)
	if u.has&inputTotals == 0 {
		input = min(both, estimatedInput)
		if u.has&(1<<outputTokens) != 0 {
			input = max(0, both-output)
		}
	}
	cached := max(u.get(cachedTokens), u.get(cacheReadTokens))
	cachedAudio := min(u.get(cachedAudioTokens), cached)
	written1h := u.get(written1hTokens)
	written := max(u.get(cacheWriteTokens), u.get(writtenTokens), u.get(written5mTokens)+written1h)
	return Usage{
		Input:            input,
		CachedInput:      cached - cachedAudio,
		CacheWrite:       min(written-written1h, MaxTokens),
		CacheWrite1h:     written1h,
		AudioInput:       max(0, u.get(audioTokens)-cachedAudio),
		CachedAudioInput: cachedAudio,
		ImageInput:       max(0, u.get(imageTokens)-min(u.get(cachedImageTokens), cached-cachedAudio)),

		Output:      max(output, both-input),
		AudioOutput: u.get(audioOutputTokens),
		ImageOutput: u.get(imageOutputTokens),

		Searches: min(u.get(searches)+u.get(otherSearches), MaxTokens),
	}
}

// replace makes u what v is, unless v has fewer tokens.
func (u *rawUsage) replace(v *rawUsage) {
	before, now := u.usage(0), v.usage(0)
	if now.total() >= before.total() {
		*u = *v
	}
}

// update takes over what v has of the input, unless that then is less than before, and of the rest what has grown.
// Anthropic's events repeat counts, leave them out or have null for them.
func (u *rawUsage) update(v *rawUsage) {
	input := *u
	for what := promptTokens; what < kindsCounted; what++ {
		if bit := counts(1 << what); v.has&bit == 0 {
			continue
		} else if bit&inputCounts == 0 {
			u.set(what, v.n[what])
		} else {
			input.has |= bit
			input.n[what] = v.n[what]
		}
	}
	if input.input() >= u.input() {
		u.has |= input.has & inputCounts
		copy(u.n[:outputTokens], input.n[:outputTokens])
	}
}

// usageMembers are the members of a usage object, in all formats. Sources: the types of the SDKs openai
// (CompletionUsage, ResponseUsage) and @anthropic-ai/sdk (BetaUsage), and the documentation of the APIs of OpenRouter
// (cache_write_tokens, server_tool_use), DeepSeek (prompt_cache_hit_tokens), Moonshot (cached_tokens), xAI
// (num_sources_used, server_side_tool_usage_details) and Perplexity (num_search_queries).
var usageMembers = joined(
	promptDetails.under("prompt_tokens_details"), promptDetails.under("input_tokens_details"),
	outputDetails.under("completion_tokens_details"), outputDetails.under("output_tokens_details"),
	jsonTable[Report]{
		"prompt_tokens":               count(promptTokens),
		"input_tokens":                count(inputTokens),
		"cache_read_input_tokens":     count(cacheReadTokens),
		"cache_creation_input_tokens": count(cacheWriteTokens),
		"completion_tokens":           count(outputTokens),
		"output_tokens":               count(outputTokens),
		"total_tokens":                count(totalTokens),
		"cached_tokens":               count(cachedTokens),
		"prompt_cache_hit_tokens":     count(cachedTokens),

		"cache_creation.ephemeral_5m_input_tokens": count(written5mTokens),
		"cache_creation.ephemeral_1h_input_tokens": count(written1hTokens),

		"server_tool_use.web_search_requests":             count(searches),
		"num_search_queries":                              count(searches),
		"num_sources_used":                                count(searches),
		"server_side_tool_usage_details.web_search_calls": count(searches),
		"server_side_tool_usage_details.x_search_calls":   count(otherSearches),
	})

var promptDetails = jsonTable[Report]{
	"cached_tokens":                      count(cachedTokens),
	"cache_write_tokens":                 count(writtenTokens),
	"cache_creation_tokens":              count(writtenTokens),
	"audio_tokens":                       count(audioTokens),
	"image_tokens":                       count(imageTokens),
	"cached_tokens_details.audio_tokens": count(cachedAudioTokens),
	"cached_tokens_details.image_tokens": count(cachedImageTokens),
}

var outputDetails = jsonTable[Report]{
	"audio_tokens": count(audioOutputTokens),
	"image_tokens": count(imageOutputTokens),
}

// usageTable has the usage wherever a provider puts it, but for Anthropic's message_start.
var usageTable = joined(usageMembers.under("usage"), usageMembers.under("usage.iterations[]"), jsonTable[Report]{
	"usage":                    {enter: (*Report).beginUsage, read: (*Report).endUsage},
	"usage.iterations":         {enter: (*Report).beginIterations, read: (*Report).endIterations},
	"usage.iterations[]":       {enter: (*Report).beginIteration, read: (*Report).endIteration},
	"usage.iterations[].type":  {read: (*Report).readIterationType},
	"usage.iterations[].model": {read: (*Report).readIterationModel},
	"choices[].usage":          {same: "usage"}, // Moonshot
	"x_groq.usage":             {same: "usage"},
})

// count returns the row of a count.
func count(what countKind) jsonRow[Report] {
	return jsonRow[Report]{read: func(r *Report, v jsonValue) {
		if n, ok := readCount(v.text); ok {
			if r.object.level == 0 {
				r.reading.set(what, n)
			} else {
				r.iterations.reading.set(what, n)
			}
		}
	}}
}

// readCount returns the count that a JSON value spells, rounded up and lowered to MaxTokens. It is a number ≥ 0 or a
// string of digits. ok is false for any other value.
func readCount(text []byte) (n int64, ok bool) {
	digits := text
	if text[0] == '"' {
		digits = text[1 : len(text)-1]
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return readFraction(text)
		}
		n = min(10*n+int64(c-'0'), MaxTokens)
	}
	return n, len(digits) > 0
}

// readFraction does what readCount does for numbers that are not spelled in digits alone.
func readFraction(text []byte) (n int64, ok bool) {
	if c := text[0]; c != '-' && (c < '0' || c > '9') {
		return 0, false
	}
	f, _ := strconv.ParseFloat(string(text), 64) // infinite if it is too large
	return int64(math.Ceil(min(f, MaxTokens))), f >= 0
}

func (r *Report) beginUsage() { r.reading.has = 0 }

// endUsage adds a usage object. Of two the one with more tokens counts, and the later of two with as many.
func (r *Report) endUsage(v jsonValue) {
	if r.sawUsage(v) {
		r.usage.replace(&r.reading)
	}
}

// updateUsage adds a usage object that repeats, and completes, those before it. It may have nothing but searches.
func (r *Report) updateUsage(v jsonValue) {
	if r.sawUsage(v) || r.reading.has != 0 {
		r.usage.update(&r.reading)
	}
}

// sawUsage notes what a usage has, and reports whether it counts tokens.
func (r *Report) sawUsage(v jsonValue) bool {
	o := &r.object
	if v.text[0] != '{' {
		return false
	}
	input, output := r.reading.sees()
	o.hasUsage, o.seesInput, o.seesOutput = true, input || o.seesInput, output || o.seesOutput
	return input || output
}

// maxModels is how many models beside the response's own are told apart.
const maxModels = 8

// An extraUsage is what the other counts of a usage leave out.
type extraUsage struct {
	own    Usage        // of the response's model
	others []ModelUsage // never changed once it is in Report.extra; one more than maxModels if there are more
}

// total returns all tokens. A nil extraUsage has none.
func (e *extraUsage) total() int64 {
	if e == nil {
		return 0
	}
	total := e.own.total()
	for i := range e.others {
		total += e.others[i].total()
	}
	return total
}

// isSome reports whether anything was counted, tokens or not.
func (e *extraUsage) isSome() bool {
	return e.own != Usage{} || slices.ContainsFunc(e.others, func(m ModelUsage) bool { return m.Usage != Usage{} })
}

func (e *extraUsage) add(model []byte, u *Usage) {
	if len(model) == 0 {
		e.own.Add(u)
		return
	}
	for i := range e.others {
		if m := &e.others[i]; m.Model == string(model) || i == maxModels {
			m.Add(u)
			return
		}
	}
	if len(e.others) == maxModels {
		model = nil
	}
	e.others = append(e.others, ModelUsage{string(model), *u})
}

// iterationsRead are the iterations of a usage that is being read.
type iterationsRead struct {
	reading rawUsage   // the iteration that is being read
	extra   extraUsage // of those before it
}

func (r *Report) beginIterations() {
	if r.iterations == nil {
		r.iterations = new(iterationsRead)
	}
	r.iterations.extra = extraUsage{}
}

func (r *Report) beginIteration() {
	r.object.level, r.object.iteration, r.object.model = 1, nil, nil
	r.iterations.reading.has = 0
}

func (r *Report) readIterationType(v jsonValue) { r.object.iteration = v.text }

func (r *Report) readIterationModel(v jsonValue) { r.object.model = v.text }

// endIteration adds an iteration that the other counts leave out, such as a compaction or what an advisor said, or one
// that is not known. They include those of the messages. A fallback_message is the last of these if another model than
// the one that was asked for has responded (BetaIterationsUsage).
func (r *Report) endIteration(jsonValue) {
	o := &r.object
	o.level = 0
	switch string(o.iteration) {
	case `"message"`:
	case `"fallback_message"`:
		r.setModel(o.model)
	default:
		used := r.iterations.reading.usage(0)
		r.iterations.extra.add(r.modelName(o.model), &used)
	}
}

// endIterations makes the iterations that were read count, unless they have fewer tokens than those before.
func (r *Report) endIterations(jsonValue) {
	if read := &r.iterations.extra; read.isSome() && read.total() >= r.extra.total() {
		extra := *read
		r.extra = &extra
	}
}

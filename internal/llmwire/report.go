package llmwire

import (
	"encoding/json"
	"errors"
	"math/bits"
	"strconv"

	"tollgate/internal/strict"
)

// A Report gathers what a provider reports of a response, from one JSON object or from the data of a stream's events.
// Only its Format has to be set.
type Report struct {
	Format Format // of the response

	InputSeen, OutputSeen bool  // the input tokens, or the output tokens, were reported
	ContentEvents         int64 // objects with text, thinking or arguments of tools
	Done                  bool  // the end marker was seen: [DONE] or message_stop
	Failed                bool  // an error was seen
	Unread                bool  // a part could not be read, so that what it says is not known

	usage        tokenUsage
	contentBytes int64  // in ContentEvents
	finished     uint16 // a bit for each choice that has ended
	worst        ending // of these choices
	refused      bool   // the model, or a filter, declined

	walker jsonWalker[Report]
	object reportObject
}

// tokenUsage has the last count seen of each kind, at most MaxTokens. Only Anthropic counts input to and from a cache
// apart from other input, and leaves compaction out of the other counts.
type tokenUsage struct {
	input, cacheWrite, cacheRead, output int64
	compaction                           tokenPair
}

type tokenPair struct{ input, output int64 }

// reportObject is what is known of the JSON object that is being read.
type reportObject struct {
	isObject                    bool
	hasUsage                    bool
	hasChoices, hasEmptyChoices bool

	choice int64  // index of the choice that is being read
	reason []byte // why that has ended

	iteration    tokenPair // of the usage that is being read
	isCompaction bool      // the type of that iteration
	compaction   tokenPair // of the iterations before it
}

// Used returns what to charge for. What was not reported is estimated, and exact is false then: the input at
// estimatedInput, the output at a token for each 3 bytes of content, but at least one for each event with content. An
// estimate can be more than was held for the request.
// Others is what other models than the response's own have used beside that.
func (r *Report) Used(estimatedInput int64) (used Usage, others []ModelUsage, exact bool) {
	input, output, exact := r.counts(estimatedInput)
	return Usage{Input: input, Output: output}, nil, exact
}

func (r *Report) counts(estimatedInput int64) (input, output int64, exact bool) {
	input = r.usage.input + r.usage.cacheWrite + r.usage.cacheRead + r.usage.compaction.input
	output = r.usage.output + r.usage.compaction.output
	if !r.InputSeen {
		input = max(input, estimatedInput)
	}
	if !r.OutputSeen {
		output = max(output, r.ContentEvents, (r.contentBytes+2)/3)
	}
	return min(input, MaxTokens), min(output, MaxTokens), r.InputSeen && r.OutputSeen
}

// AddUnread counts bytes of a response that were not read as content.
func (r *Report) AddUnread(bytes int64) {
	r.ContentEvents++
	r.contentBytes += bytes
}

// HasFinished reports whether all n choices have ended, so that only usage can follow. n is at most 16.
func (r *Report) HasFinished(n int64) bool { return int64(bits.OnesCount16(r.finished)) >= n }

// IsReusable reports whether the response, with n choices, may be served to others: it is complete, with usage and
// without an error, and all choices have ended normally or, if the client has set the limit itself, at the limit.
func (r *Report) IsReusable(n int64, ownLimit bool) bool {
	if r.Failed || r.refused || r.Unread || !r.InputSeen || !r.OutputSeen || !r.HasFinished(n) {
		return false
	}
	return r.worst == endedNormally || ownLimit && r.worst == endedAtLimit
}

// ErrTooDeep means that a JSON object is nested more than 500 deep.
var ErrTooDeep = errors.New("nested too deep")

var errNoObject = errors.New("not a JSON object")

// Read adds what one JSON object of the provider reports: a whole response, or the data of an event. isUsageChunk
// reports whether it is the extra event that stream_options.include_usage asks for. The error is ErrTooDeep if data is
// an object that is nested more than 500, but at most 10,000 deep. Any other error means that data is not a JSON
// object. After an error Unread is true, and a part of data may have been added.
func (r *Report) Read(data []byte) (isUsageChunk bool, err error) {
	contentBytes := r.contentBytes
	r.object = reportObject{}
	err = r.walker.walk(data, formats[r.Format].report, r)
	switch {
	case err != nil && json.Valid(data) && strict.SkipSpace(data)[0] == '{':
		err = ErrTooDeep
	case err == nil && !r.object.isObject:
		err = errNoObject
	}
	if err != nil {
		r.Unread = true
		return false, err
	}
	if r.contentBytes > contentBytes {
		r.ContentEvents++
	}
	return r.object.hasUsage && r.object.hasEmptyChoices, nil
}

// reportMembers are the members that are read in all formats of text: an error, and the content, wherever one of these
// formats has it, so that a provider that mixes formats is not free.
var reportMembers = joined(jsonTable[Report]{"error": {read: (*Report).readError}},
	choiceContent.under("choices[].message"), choiceContent.under("choices[].delta"),
	blockContent.under("content[]"), blockContent.under("content_block"), blockContent.under("delta"))

// choiceContent is the content in a choice's message or delta.
var choiceContent = jsonTable[Report]{
	"content":                         {read: (*Report).readContent},
	"content[].text":                  {read: (*Report).readContent},
	"refusal":                         {read: (*Report).readRefusal},
	"reasoning":                       {read: (*Report).readContent},
	"reasoning_content":               {read: (*Report).readContent},
	"audio.transcript":                {read: (*Report).readContent},
	"tool_calls[].function.arguments": {read: (*Report).readContent},
	"tool_calls[].custom.input":       {read: (*Report).readContent},
	"function_call.arguments":         {read: (*Report).readContent},
}

// blockContent is the content in one of Anthropic's blocks.
var blockContent = jsonTable[Report]{
	"text":         {read: (*Report).readContent},
	"thinking":     {read: (*Report).readContent},
	"partial_json": {read: (*Report).readContent},
	"input":        {read: (*Report).readContent},
}

func (r *Report) readObject(v jsonValue) { r.object.isObject = v.text[0] == '{' }

func (r *Report) readError(v jsonValue) { r.Failed = !v.isNull() || r.Failed }

func (r *Report) readInput(v jsonValue) {
	r.InputSeen = readCount(&r.usage.input, v) || r.InputSeen
}

func (r *Report) readOutput(v jsonValue) {
	r.OutputSeen = readCount(&r.usage.output, v) || r.OutputSeen
}

// readCount reads a whole number ≥ 0 into n, lowered to MaxTokens, and reports whether the value is one. Otherwise n
// stays as it is.
func readCount(n *int64, v jsonValue) bool {
	count, err := strconv.ParseInt(string(v.text), 10, 64)
	if err != nil || count < 0 {
		return false
	}
	*n = min(count, MaxTokens)
	return true
}

func (r *Report) readContent(v jsonValue) { r.addContent(v) }

func (r *Report) readRefusal(v jsonValue) { r.refused = r.addContent(v) > 0 || r.refused }

// addContent counts the bytes of content and returns how many there are: in a string those that it spells, in an
// object, such as a tool's arguments, those between its braces.
func (r *Report) addContent(v jsonValue) int {
	size := len(v.text) - len("{}")
	switch {
	case v.text[0] == '"':
		for i := 0; i < len(v.text); i++ {
			if v.text[i] == '\\' && v.text[i+1] == 'u' {
				size -= 4 // taken for two bytes in UTF-8
				i++
			} else if v.text[i] == '\\' {
				size--
				i++
			}
		}
	case v.text[0] != '{':
		return 0
	}
	r.contentBytes += int64(size)
	return size
}

// An ending is how a choice has ended, the worse the larger.
type ending uint8

const (
	notEnded ending = iota
	endedNormally
	endedAtLimit // of output tokens
	endedAbnormally
)

// endings has the reasons for which choices end, in all formats. A reason that is not here is abnormal.
var endings = map[string]ending{
	"stop":          endedNormally,
	"tool_calls":    endedNormally,
	"end_turn":      endedNormally,
	"tool_use":      endedNormally,
	"stop_sequence": endedNormally,
	"length":        endedAtLimit,
	"max_tokens":    endedAtLimit,
}

// readStop reads why a choice has ended. Absent, null and "" mean that it has not.
func (r *Report) readStop(value []byte, choice int64) {
	if len(value) <= len(`""`) || value[0] != '"' {
		return
	}
	reason := value[1 : len(value)-1]
	end, known := endings[string(reason)]
	if !known {
		end = endedAbnormally
	}
	r.finished |= 1 << min(choice, maxChoices-1)
	r.worst = max(r.worst, end)
	r.refused = string(reason) == "content_filter" || string(reason) == "refusal" || r.refused
}

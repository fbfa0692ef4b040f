package llmwire

import (
	"errors"
	"math/bits"
	"slices"
	"strconv"
)

// A Report is what a provider reports of its response, in one JSON object or gathered from the events of a stream.
type Report struct {
	Format Format

	usage                 tokenUsage
	InputSeen, OutputSeen bool

	ContentEvents int64  // events with text, thinking or arguments of tools
	contentBytes  int64  // of these
	finished      uint16 // a bit for each choice that has ended
	stop          string // the reason, "other" if it is unknown; one that is not a normal end if choices differ
	abnormal      bool   // a choice ended neither normally nor at a limit
	Done          bool   // the end marker was seen: [DONE] or message_stop
	Failed        bool   // an error was seen
	refused       bool   // the model, or a filter, declined
	Unread        bool   // a part could not be read: what it says is not known

	walker jsonWalker[Report]
	object reportObject
}

// tokenUsage has the last count seen of each kind. Only Anthropic counts input to and from a cache apart, and leaves
// compaction out of the other counts.
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
	choice                      int64  // index of the choice that is being read
	reason                      []byte // why it has ended
	iteration, compaction       tokenPair
	isCompaction                bool // the type of iteration
}

// Counts returns the input and output tokens to charge: those that were reported or, if exact is false, an estimate of
// what was not. The caller caps an estimate at the hold.
func (r *Report) Counts(estimatedInput int64) (input, output int64, exact bool) {
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

// HasFinished reports whether all n choices have ended, so that only usage can follow.
func (r *Report) HasFinished(n int64) bool { return int64(bits.OnesCount16(r.finished)) >= n }

// isComplete reports whether the response with n choices has ended and its usage is known.
func (r *Report) isComplete(n int64) bool {
	return r.InputSeen && r.OutputSeen && (r.Done || r.HasFinished(n))
}

// IsReusable reports whether the response with n choices is whole, as far as one JSON object can be, and ended as every
// response to that request may: normally or, if the client has set the limit itself, at the limit.
func (r *Report) IsReusable(n int64, ownLimit bool) bool {
	if r.Failed || r.refused || r.abnormal || r.Unread || !r.InputSeen || !r.OutputSeen || !r.HasFinished(n) {
		return false
	}
	return ownLimit || slices.Contains(stopReasons[:normalStops], r.stop)
}

// Read adds what one JSON object of the provider reports: a whole response, or an event's data. isUsageChunk is true
// for the extra chunk that include_usage asks for. An error means that data is not a JSON object.
func (r *Report) Read(data []byte) (isUsageChunk bool, err error) {
	contentBytes := r.contentBytes
	r.object = reportObject{}
	if err := r.walker.walk(data, reportShapes[r.Format], r); err != nil {
		return false, err
	}
	if !r.object.isObject {
		return false, errors.New("not a JSON object")
	}
	if r.contentBytes > contentBytes {
		r.ContentEvents++
	}
	return r.object.hasUsage && r.object.hasEmptyChoices, nil
}

// reportShapes has what is read of a response, and of an event's data, in each format.
var reportShapes = map[Format]*jsonShape[Report]{
	OpenAIChat: newJSONShape(reportMembers, jsonTable[Report]{
		"":                        {read: (*Report).readObject},
		"usage":                   {read: (*Report).readUsage},
		"usage.prompt_tokens":     {read: (*Report).readInput},
		"usage.completion_tokens": {read: (*Report).readOutput},
		"choices":                 {read: (*Report).readChoices},
		"choices[]":               {read: (*Report).endChoice},
		"choices[].index":         {read: (*Report).readIndex},
		"choices[].finish_reason": {read: (*Report).readFinishReason},
	}),
	AnthropicMessages: newJSONShape(messageMembers, messageMembers.under("message"), jsonTable[Report]{
		"":        {read: (*Report).readObject},
		"message": {read: (*Report).readMessage}, // of the first event: all of a response but its content
	}),
}

// messageMembers are the members of Anthropic's responses and events.
var messageMembers = joined(reportMembers, jsonTable[Report]{
	"type":              {read: (*Report).readType},
	"stop_reason":       {read: (*Report).readStopReason},
	"delta.stop_reason": {read: (*Report).readStopReason},

	"usage.input_tokens":                {read: (*Report).readInput},
	"usage.output_tokens":               {read: (*Report).readOutput},
	"usage.cache_creation_input_tokens": {read: (*Report).readCacheWrite},
	"usage.cache_read_input_tokens":     {read: (*Report).readCacheRead},

	"usage.iterations":                               {read: (*Report).endIterations},
	"usage.iterations[]":                             {read: (*Report).endIteration},
	"usage.iterations[].type":                        {read: (*Report).readIterationType},
	"usage.iterations[].input_tokens":                {read: (*Report).readIterationInput},
	"usage.iterations[].cache_creation_input_tokens": {read: (*Report).readIterationInput},
	"usage.iterations[].cache_read_input_tokens":     {read: (*Report).readIterationInput},
	"usage.iterations[].output_tokens":               {read: (*Report).readIterationOutput},
})

// reportMembers are the members that are read in both formats: an error, and wherever either has text, thinking and
// arguments of tools, so that a provider that mixes them is not free.
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

func (r *Report) readUsage(v jsonValue) { r.object.hasUsage = v.text[0] == '{' }

func (r *Report) readInput(v jsonValue) {
	r.InputSeen = readCount(&r.usage.input, v) || r.InputSeen
}

func (r *Report) readOutput(v jsonValue) {
	r.OutputSeen = readCount(&r.usage.output, v) || r.OutputSeen
}

func (r *Report) readCacheWrite(v jsonValue) { readCount(&r.usage.cacheWrite, v) }

func (r *Report) readCacheRead(v jsonValue) { readCount(&r.usage.cacheRead, v) }

func (r *Report) readIndex(v jsonValue) { readCount(&r.object.choice, v) }

func (r *Report) readFinishReason(v jsonValue) { r.object.reason = v.text }

func (r *Report) endChoice(jsonValue) {
	o := &r.object
	r.readStop(o.reason, o.choice)
	o.hasChoices, o.reason, o.choice = true, nil, 0
}

func (r *Report) readChoices(v jsonValue) {
	r.object.hasEmptyChoices = v.text[0] == '[' && !r.object.hasChoices
}

// readMessage notes that the first event counts only the beginning of the output.
func (r *Report) readMessage(jsonValue) { r.OutputSeen = false }

func (r *Report) readStopReason(v jsonValue) { r.readStop(v.text, 0) }

func (r *Report) readType(v jsonValue) {
	r.Done = string(v.text) == `"message_stop"` || r.Done
	r.Failed = string(v.text) == `"error"` || r.Failed
}

func (r *Report) readIterationType(v jsonValue) {
	r.object.isCompaction = string(v.text) == `"compaction"`
}

func (r *Report) readIterationInput(v jsonValue) {
	var count int64
	readCount(&count, v)
	r.object.iteration.input += count
}

func (r *Report) readIterationOutput(v jsonValue) { readCount(&r.object.iteration.output, v) }

// endIteration adds up the iterations of type compaction, which are billed beside the other counts.
func (r *Report) endIteration(jsonValue) {
	o := &r.object
	if o.isCompaction {
		o.compaction.input = min(o.compaction.input+o.iteration.input, MaxTokens)
		o.compaction.output = min(o.compaction.output+o.iteration.output, MaxTokens)
	}
	o.iteration, o.isCompaction = tokenPair{}, false
}

func (r *Report) endIterations(jsonValue) {
	r.usage.compaction, r.object.compaction = r.object.compaction, tokenPair{}
}

// readCount reads a count into n and reports whether it is one. Otherwise n stays as it is.
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

// addContent counts the bytes of content and returns them: of a string without its escapes, of a tool's arguments as
// they are spelled.
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

// stopReasons are the known ones, as they are spelled in JSON. normalStops of them are the ends of a whole response.
var stopReasons = []string{
	"stop", "tool_calls", "end_turn", "tool_use", "stop_sequence",
	"length", "max_tokens", "content_filter", "refusal", "function_call", "pause_turn",
}

const (
	normalStops = 5
	limitStops  = 2 // follow them: the limit of output tokens was reached
)

// readStop reads why a choice has ended. Absent, null and empty mean that it has not.
func (r *Report) readStop(value []byte, choice int64) {
	if len(value) <= len(`""`) || value[0] != '"' {
		return
	}
	r.finished |= 1 << min(choice, maxChoices-1)
	value = value[1 : len(value)-1]
	at := slices.IndexFunc(stopReasons, func(known string) bool { return string(value) == known })
	r.abnormal = at < 0 || at >= normalStops+limitStops || r.abnormal
	switch {
	case at < 0:
		r.stop = "other"
	case at >= normalStops || r.stop == "": // another choice may have ended in a worse way
		r.stop = stopReasons[at]
	}
	r.refused = r.stop == "content_filter" || r.stop == "refusal" || r.refused
}

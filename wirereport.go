package main

import (
	"errors"
	"math/bits"
	"slices"
	"strconv"
)

// A wireReport is what a provider reports of its response, in one JSON object or gathered from the events of a stream.
type wireReport struct {
	format wireFormat

	usage                 tokenUsage
	inputSeen, outputSeen bool

	contentEvents int64  // events with text, thinking or arguments of tools
	contentBytes  int64  // of these
	finished      uint16 // a bit for each choice that has ended
	stop          string // the reason, "other" if it is unknown; one that is not a normal end if choices differ
	abnormal      bool   // a choice ended neither normally nor at a limit
	done          bool   // the end marker was seen: [DONE] or message_stop
	failed        bool   // an error was seen
	refused       bool   // the model, or a filter, declined
	unread        bool   // a part could not be read: what it says is not known

	walker jsonWalker[wireReport]
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

// counts returns the input and output tokens to charge: those that were reported or, if exact is false, an estimate of
// what was not. The caller caps an estimate at the hold.
func (r *wireReport) counts(estimatedInput int64) (input, output int64, exact bool) {
	input = r.usage.input + r.usage.cacheWrite + r.usage.cacheRead + r.usage.compaction.input
	output = r.usage.output + r.usage.compaction.output
	if !r.inputSeen {
		input = max(input, estimatedInput)
	}
	if !r.outputSeen {
		output = max(output, r.contentEvents, (r.contentBytes+2)/3)
	}
	return min(input, maxWireTokens), min(output, maxWireTokens), r.inputSeen && r.outputSeen
}

// hasFinished reports whether all n choices have ended, so that only usage can follow.
func (r *wireReport) hasFinished(n int64) bool { return int64(bits.OnesCount16(r.finished)) >= n }

// isComplete reports whether the response with n choices has ended and its usage is known.
func (r *wireReport) isComplete(n int64) bool {
	return r.inputSeen && r.outputSeen && (r.done || r.hasFinished(n))
}

// isReusable reports whether the response with n choices is whole, as far as one JSON object can be, and ended as every
// response to that request may: normally or, if the client has set the limit itself, at the limit.
func (r *wireReport) isReusable(n int64, ownLimit bool) bool {
	if r.failed || r.refused || r.abnormal || r.unread || !r.inputSeen || !r.outputSeen || !r.hasFinished(n) {
		return false
	}
	return ownLimit || slices.Contains(stopReasons[:normalStops], r.stop)
}

// read adds what one JSON object of the provider reports: a whole response, or an event's data. isUsageChunk is true
// for the extra chunk that include_usage asks for. An error means that data is not a JSON object.
func (r *wireReport) read(data []byte) (isUsageChunk bool, err error) {
	contentBytes := r.contentBytes
	r.object = reportObject{}
	if err := r.walker.walk(data, wireReports[r.format], r); err != nil {
		return false, err
	}
	if !r.object.isObject {
		return false, errors.New("not a JSON object")
	}
	if r.contentBytes > contentBytes {
		r.contentEvents++
	}
	return r.object.hasUsage && r.object.hasEmptyChoices, nil
}

// wireReports has what is read of a response, and of an event's data, in each format.
var wireReports = map[wireFormat]*jsonShape[wireReport]{
	openAIChat: newJSONShape(reportMembers, jsonTable[wireReport]{
		"":                        {read: (*wireReport).readObject},
		"usage":                   {read: (*wireReport).readUsage},
		"usage.prompt_tokens":     {read: (*wireReport).readInput},
		"usage.completion_tokens": {read: (*wireReport).readOutput},
		"choices":                 {read: (*wireReport).readChoices},
		"choices[]":               {read: (*wireReport).endChoice},
		"choices[].index":         {read: (*wireReport).readIndex},
		"choices[].finish_reason": {read: (*wireReport).readFinishReason},
	}),
	anthropicMessages: newJSONShape(messageMembers, messageMembers.under("message"), jsonTable[wireReport]{
		"":        {read: (*wireReport).readObject},
		"message": {read: (*wireReport).readMessage}, // of the first event: all of a response but its content
	}),
}

// messageMembers are the members of Anthropic's responses and events.
var messageMembers = joined(reportMembers, jsonTable[wireReport]{
	"type":              {read: (*wireReport).readType},
	"stop_reason":       {read: (*wireReport).readStopReason},
	"delta.stop_reason": {read: (*wireReport).readStopReason},

	"usage.input_tokens":                {read: (*wireReport).readInput},
	"usage.output_tokens":               {read: (*wireReport).readOutput},
	"usage.cache_creation_input_tokens": {read: (*wireReport).readCacheWrite},
	"usage.cache_read_input_tokens":     {read: (*wireReport).readCacheRead},

	"usage.iterations":                               {read: (*wireReport).endIterations},
	"usage.iterations[]":                             {read: (*wireReport).endIteration},
	"usage.iterations[].type":                        {read: (*wireReport).readIterationType},
	"usage.iterations[].input_tokens":                {read: (*wireReport).readIterationInput},
	"usage.iterations[].cache_creation_input_tokens": {read: (*wireReport).readIterationInput},
	"usage.iterations[].cache_read_input_tokens":     {read: (*wireReport).readIterationInput},
	"usage.iterations[].output_tokens":               {read: (*wireReport).readIterationOutput},
})

// reportMembers are the members that are read in both formats: an error, and wherever either has text, thinking and
// arguments of tools, so that a provider that mixes them is not free.
var reportMembers = joined(jsonTable[wireReport]{"error": {read: (*wireReport).readError}},
	choiceContent.under("choices[].message"), choiceContent.under("choices[].delta"),
	blockContent.under("content[]"), blockContent.under("content_block"), blockContent.under("delta"))

// choiceContent is the content in a choice's message or delta.
var choiceContent = jsonTable[wireReport]{
	"content":                         {read: (*wireReport).readContent},
	"content[].text":                  {read: (*wireReport).readContent},
	"refusal":                         {read: (*wireReport).readRefusal},
	"reasoning":                       {read: (*wireReport).readContent},
	"reasoning_content":               {read: (*wireReport).readContent},
	"audio.transcript":                {read: (*wireReport).readContent},
	"tool_calls[].function.arguments": {read: (*wireReport).readContent},
	"tool_calls[].custom.input":       {read: (*wireReport).readContent},
	"function_call.arguments":         {read: (*wireReport).readContent},
}

// blockContent is the content in one of Anthropic's blocks.
var blockContent = jsonTable[wireReport]{
	"text":         {read: (*wireReport).readContent},
	"thinking":     {read: (*wireReport).readContent},
	"partial_json": {read: (*wireReport).readContent},
	"input":        {read: (*wireReport).readContent},
}

func (r *wireReport) readObject(v jsonValue) { r.object.isObject = v.text[0] == '{' }

func (r *wireReport) readError(v jsonValue) { r.failed = !v.isNull() || r.failed }

func (r *wireReport) readUsage(v jsonValue) { r.object.hasUsage = v.text[0] == '{' }

func (r *wireReport) readInput(v jsonValue) {
	r.inputSeen = readCount(&r.usage.input, v) || r.inputSeen
}

func (r *wireReport) readOutput(v jsonValue) {
	r.outputSeen = readCount(&r.usage.output, v) || r.outputSeen
}

func (r *wireReport) readCacheWrite(v jsonValue) { readCount(&r.usage.cacheWrite, v) }

func (r *wireReport) readCacheRead(v jsonValue) { readCount(&r.usage.cacheRead, v) }

func (r *wireReport) readIndex(v jsonValue) { readCount(&r.object.choice, v) }

func (r *wireReport) readFinishReason(v jsonValue) { r.object.reason = v.text }

func (r *wireReport) endChoice(jsonValue) {
	o := &r.object
	r.readStop(o.reason, o.choice)
	o.hasChoices, o.reason, o.choice = true, nil, 0
}

func (r *wireReport) readChoices(v jsonValue) {
	r.object.hasEmptyChoices = v.text[0] == '[' && !r.object.hasChoices
}

// readMessage notes that the first event counts only the beginning of the output.
func (r *wireReport) readMessage(jsonValue) { r.outputSeen = false }

func (r *wireReport) readStopReason(v jsonValue) { r.readStop(v.text, 0) }

func (r *wireReport) readType(v jsonValue) {
	r.done = string(v.text) == `"message_stop"` || r.done
	r.failed = string(v.text) == `"error"` || r.failed
}

func (r *wireReport) readIterationType(v jsonValue) {
	r.object.isCompaction = string(v.text) == `"compaction"`
}

func (r *wireReport) readIterationInput(v jsonValue) {
	var count int64
	readCount(&count, v)
	r.object.iteration.input += count
}

func (r *wireReport) readIterationOutput(v jsonValue) { readCount(&r.object.iteration.output, v) }

// endIteration adds up the iterations of type compaction, which are billed beside the other counts.
func (r *wireReport) endIteration(jsonValue) {
	o := &r.object
	if o.isCompaction {
		o.compaction.input = min(o.compaction.input+o.iteration.input, maxWireTokens)
		o.compaction.output = min(o.compaction.output+o.iteration.output, maxWireTokens)
	}
	o.iteration, o.isCompaction = tokenPair{}, false
}

func (r *wireReport) endIterations(jsonValue) {
	r.usage.compaction, r.object.compaction = r.object.compaction, tokenPair{}
}

// readCount reads a count into n and reports whether it is one. Otherwise n stays as it is.
func readCount(n *int64, v jsonValue) bool {
	count, err := strconv.ParseInt(string(v.text), 10, 64)
	if err != nil || count < 0 {
		return false
	}
	*n = min(count, maxWireTokens)
	return true
}

func (r *wireReport) readContent(v jsonValue) { r.addContent(v) }

func (r *wireReport) readRefusal(v jsonValue) { r.refused = r.addContent(v) > 0 || r.refused }

// addContent counts the bytes of content and returns them: of a string without its escapes, of a tool's arguments as
// they are spelled.
func (r *wireReport) addContent(v jsonValue) int {
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
func (r *wireReport) readStop(value []byte, choice int64) {
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

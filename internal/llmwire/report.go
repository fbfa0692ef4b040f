package llmwire

import (
	"encoding/json"
	"errors"
	"math/bits"

	"tollgate/internal/strict"
)

// A Report gathers what a provider reports of a response, from one JSON object or from the data of a stream's events.
// Only its Format has to be set. A copy of it can be read, but nothing can be added to it.
type Report struct {
	Format Format // of the response

	Objects       int64 // that have come, or parts of them that cannot be read; the end marker is one
	ContentEvents int64 // objects with content: text, thinking, calls of tools, media or what is not known
	Done          bool  // the end marker was seen: [DONE], message_stop, or an event that ends a response
	Failed        bool  // an error was seen
	FailedAtOnce  bool  // the first object was an error
	Unread        bool  // a part could not be read, so that what it says is not known

	Hidden bool   // thinking, media or what is not known was seen: the content may not show all that is billed
	Model  string // that is named last, of at most 256 bytes; "" if none is

	// ResponseID is the ID of the response, and ItemIDs are those of the items of its output, each once: at most 2,000 of
	// at most 256 bytes, 64 KiB together, only of a format whose responses the provider keeps. Those of a stream are
	// known before its end event is, also if that is too long to be read at once.
	ResponseID string
	ItemIDs    []string

	usage        rawUsage
	extra        *extraUsage // nil without any
	seconds      int64       // of sound
	seesInput    bool        // it was reported with or after the last content, reason for an end, or error
	seesOutput   bool        // this, too
	isStream     bool        // not one object
	hasChoices   bool        // at least one
	contentBytes int64       // of ContentEvents
	finished     uint16      // a bit for each choice that has ended
	worst        ending      // of these choices
	refused      bool        // the model, or a filter, declined
	searches     int64       // that were seen, or reported beside the usage

	searchesBegun, searchesEnded int64 // in a stream
	itemIDBytes                  int   // of ItemIDs
	itemsEnd                     int64 // bytes of content when the last item of a stream was complete

	walker     jsonWalker[Report]
	object     reportObject
	reading    rawUsage        // the usage that is being read
	iterations *iterationsRead // in that usage; nil before the first ones
	name       []byte          // what the last name of a model with escapes spells
	response   responseRead    // what is read of one of OpenAI's other API
	hasItem    map[string]bool // the IDs in ItemIDs
	parts      *partReader     // nil if no object was read in parts
	alike      alikeEvent
}

// reportObject is what is known of the JSON object that is being read.
type reportObject struct {
	isObject                    bool
	hasUsage                    bool // maybe without counts
	seesInput, seesOutput       bool // in its usage
	hasChoices, hasEmptyChoices bool
	hasEnded                    bool // it has an error, or a reason for which a choice has ended

	choice int64  // index of the choice that is being read
	reason []byte // why that has ended

	strings, stringAt, stringEnd int  // of content: how many have come, and where the last one stands
	hasInput                     bool // content that is no string: the input of a tool

	level     int    // 1 in an iteration, otherwise 0
	iteration []byte // type of the iteration that is being read
	model     []byte // of it
}

// Used returns what to charge for a response with n choices. What was not reported is estimated, and exact is false
// then: the input at estimatedInput, the output at a token for each 3 bytes of content, but at least one for each event
// with content. An estimate can be more than was held for the request.
//
// What a stream reports before it ends can be a placeholder: the output then is at least the estimate, and so is an
// input of 0.
//
// Others is what other models have used beside the response's own.
func (r *Report) Used(n, estimatedInput int64) (used Usage, others []ModelUsage, exact bool) {
	f := formats[r.Format]
	if f.held == noInput {
		return Usage{}, nil, true
	}
	if f.held == soundInput {
		used, exact = r.usedSound()
		return used, nil, exact
	}
	used = r.usage.usage(f.shareOf(estimatedInput))
	input, output := r.knows(n)
	if !input {
		used.Input = max(used.Input, estimatedInput)
	}
	if !output {
		used.Output = max(used.Output, r.ContentEvents, (r.contentBytes+2)/3)
	}
	used.Input, used.Output = min(used.Input, MaxTokens), min(used.Output, MaxTokens)
	used.Searches = max(used.Searches, r.searches)
	switch f.output {
	case noOutput:
		used.Output, used.AudioOutput, used.ImageOutput = 0, 0, 0
	case imageOutput:
		used.AudioOutput, used.ImageOutput = 0, used.Output
	}
	if r.extra != nil {
		used.Add(&r.extra.own)
		others = r.extra.others
	}
	return used, others, input && output
}

// shareOf returns how much of a sum of tokens is input at most, if the usage does not say so, and it is estimated.
func (f *format) shareOf(estimated int64) int64 {
	if f.output == noOutput {
		return MaxTokens
	}
	return estimated
}

// IsFinal reports whether all that a response with n choices has used is known.
func (r *Report) IsFinal(n int64) bool {
	input, output := r.knows(n)
	return input && output
}

// KnowsOutput reports whether the output tokens of a response with n choices are known.
func (r *Report) KnowsOutput(n int64) bool {
	_, output := r.knows(n)
	return output
}

// knows reports whether the counts of input and of output that were seen are those of the whole response. Counts of a
// stream are if they came with its end or after it. For the input, others will do, unless they are 0. No output beside
// content is a placeholder until the end marker: the usage can be in an event of its own, after the end.
func (r *Report) knows(n int64) (input, output bool) {
	if formats[r.Format].held == soundInput {
		known := r.knowsSound()
		return known, known
	}
	used := r.usage.usage(0)
	hasEnded := !r.isStream || r.Done || (r.Failed || r.HasFinished(n)) && (used.Output > 0 || r.ContentEvents == 0)
	input, output = r.usage.sees()
	output = output && hasEnded && r.seesOutput || formats[r.Format].output == noOutput
	return input && (used.Input > 0 || hasEnded && r.seesInput), output
}

// HasUsage reports whether tokens, or seconds of sound, were reported, more than 0.
func (r *Report) HasUsage() bool {
	used := r.usage.usage(0)
	return used.total() > 0 || r.extra.total() > 0 || r.seconds > 0
}

// IsFailure reports whether the response, as far as it was read, is an error, or nothing at all, and costs nothing: the
// provider reports no usage with it. A stream that fails after it has begun to generate is no such response.
func (r *Report) IsFailure() bool {
	isEmpty := r.Objects > 0 && r.ContentEvents == 0 && !r.hasChoices && !r.HasUsage()
	if !r.isStream {
		return !r.Unread && (isEmpty || r.Failed && !r.HasUsage())
	}
	reported := r.HasUsage() && (r.seesInput || r.seesOutput)
	return r.Failed && r.ContentEvents == 0 && !reported || (r.Done || r.finished != 0) && isEmpty
}

// ContentBytes returns how many bytes of content were seen.
func (r *Report) ContentBytes() int64 { return r.contentBytes }

// AddUnread counts bytes of a response that were not read as content.
func (r *Report) AddUnread(bytes int64) {
	r.Objects++
	r.ContentEvents++
	r.contentBytes += bytes
	r.Hidden, r.Unread = true, true
	r.seesInput, r.seesOutput = false, false
}

// HasFinished reports whether all n choices have ended, so that only usage can follow. n is at most 16.
func (r *Report) HasFinished(n int64) bool { return int64(bits.OnesCount16(r.finished)) >= n }

// IsReusable reports whether the response, with n choices, may be served to others: it is complete, with usage and
// without an error, and all choices have ended normally or, if the client has set the limit itself, at the limit.
func (r *Report) IsReusable(n int64, ownLimit bool) bool {
	if r.Failed || r.refused || r.Unread || !r.IsFinal(n) {
		return false
	}
	if formats[r.Format].output == noOutput {
		return true
	}
	if !r.HasFinished(n) {
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
	if r.readAlike(data) {
		return false, nil
	}
	return r.readUnlike(data)
}

// readUnlike does what Read does, for data that is not like the event before.
func (r *Report) readUnlike(data []byte) (isUsageChunk bool, err error) {
	contentBytes, before := r.contentBytes, r.alikeState()
	r.alike.data = r.alike.data[:0]
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
	r.Objects++
	r.FailedAtOnce = r.FailedAtOnce || r.Failed && r.Objects == 1
	o := &r.object
	if r.contentBytes > contentBytes {
		r.ContentEvents++
	}
	if r.contentBytes > contentBytes || o.hasEnded {
		r.seesInput, r.seesOutput = false, false
	}
	r.seesInput, r.seesOutput = o.seesInput || r.seesInput, o.seesOutput || r.seesOutput
	r.noteAlike(data, before)
	return o.hasUsage && o.hasEmptyChoices, nil
}

// reportMembers are the members that are read in all formats: an error, the model, the usage and the content, wherever
// one of these formats has it, so that a provider that mixes formats is not free.
var reportMembers = joined(usageTable, contentTable, jsonTable[Report]{
	"":      {read: (*Report).readObject},
	"error": {read: (*Report).readError},
	"model": {read: (*Report).readModel},
})

func (r *Report) readObject(v jsonValue) { r.object.isObject = v.text[0] == '{' }

// readError reads an error. Some providers have an empty one if there was none.
func (r *Report) readError(v jsonValue) {
	switch string(v.text) {
	case `null`, `""`, `false`:
	default:
		r.fail()
	}
}

// fail notes an error.
func (r *Report) fail() {
	r.Failed, r.object.hasEnded = true, true
}

func (r *Report) readModel(v jsonValue) { r.setModel(v.text) }

// setModel notes the model that a JSON value names.
func (r *Report) setModel(value []byte) {
	if name := r.modelName(value); len(name) > 0 && string(name) != r.Model {
		r.Model = string(name)
	}
}

// modelName returns the model that a JSON value names, until the next call, and nothing if it names none or one that
// takes more than 256 bytes.
func (r *Report) modelName(value []byte) []byte {
	const maxModel = 256
	if len(value) < len(`""`) || len(value) > maxModel+len(`""`) || value[0] != '"' {
		return nil
	}
	r.name, _ = strict.AppendUnquoted(r.name[:0], value)
	return r.name
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
	"completed":     endedNormally,
	"tool_calls":    endedNormally,
	"end_turn":      endedNormally,
	"tool_use":      endedNormally,
	"stop_sequence": endedNormally,
	"length":        endedAtLimit,
	"max_tokens":    endedAtLimit,

	"max_output_tokens": endedAtLimit,
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
	r.Failed = string(reason) == "error" || r.Failed
	r.object.hasEnded = true
}

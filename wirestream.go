package main

import (
	"bytes"
	"errors"
	"math/bits"
	"slices"
	"strconv"
)

const (
	maxEventBytes = 1 << 20 // a longer line or event is relayed unread
	eventBuffer   = 2 << 10 // enough for a stream without long events
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

	walker jsonWalker
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
	if err := r.walker.walk(data, r); err != nil {
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

func (r *wireReport) enters([]byte) bool { return true }

func (r *wireReport) visit(path, value []byte, _ int) bool {
	if r.format == anthropicMessages {
		path = bytes.TrimPrefix(path, []byte("message.")) // the first event has all of the message but its content
		r.visitAnthropic(path, value)
	} else {
		r.visitOpenAI(path, value)
	}
	switch string(path) {
	case "":
		r.object.isObject = value[0] == '{'
	case "error":
		r.failed = value[0] != 'n' || r.failed
	default:
		if contentPaths[string(path)] {
			r.readContent(path, value)
		}
	}
	return true
}

func (r *wireReport) visitOpenAI(path, value []byte) {
	switch o := &r.object; string(path) {
	case "usage.prompt_tokens":
		r.inputSeen = readCount(&r.usage.input, value) || r.inputSeen
	case "usage.completion_tokens":
		r.outputSeen = readCount(&r.usage.output, value) || r.outputSeen
	case "usage":
		o.hasUsage = value[0] == '{'
	case "choices[].index":
		readCount(&o.choice, value)
	case "choices[].finish_reason":
		o.reason = value
	case "choices[]":
		r.readStop(o.reason, o.choice)
		o.hasChoices, o.reason, o.choice = true, nil, 0
	case "choices":
		o.hasEmptyChoices = value[0] == '[' && !o.hasChoices
	}
}

func (r *wireReport) visitAnthropic(path, value []byte) {
	if inner, ok := bytes.CutPrefix(path, []byte("usage.iterations")); ok {
		r.visitIterations(inner, value)
		return
	}
	switch string(path) {
	case "usage.input_tokens":
		r.inputSeen = readCount(&r.usage.input, value) || r.inputSeen
	case "usage.output_tokens":
		r.outputSeen = readCount(&r.usage.output, value) || r.outputSeen
	case "usage.cache_creation_input_tokens":
		readCount(&r.usage.cacheWrite, value)
	case "usage.cache_read_input_tokens":
		readCount(&r.usage.cacheRead, value)
	case "message":
		r.outputSeen = false // the first event counts only the beginning
	case "stop_reason", "delta.stop_reason":
		r.readStop(value, 0)
	case "type":
		r.done = string(value) == `"message_stop"` || r.done
		r.failed = string(value) == `"error"` || r.failed
	}
}

// visitIterations adds up the iterations of type compaction, which are billed beside the other counts.
func (r *wireReport) visitIterations(path, value []byte) {
	o, count := &r.object, int64(0)
	switch string(path) {
	case "[].input_tokens", "[].cache_creation_input_tokens", "[].cache_read_input_tokens":
		readCount(&count, value)
		o.iteration.input += count
	case "[].output_tokens":
		readCount(&o.iteration.output, value)
	case "[].type":
		o.isCompaction = string(value) == `"compaction"`
	case "[]":
		if o.isCompaction {
			o.compaction.input = min(o.compaction.input+o.iteration.input, maxWireTokens)
			o.compaction.output = min(o.compaction.output+o.iteration.output, maxWireTokens)
		}
		o.iteration, o.isCompaction = tokenPair{}, false
	case "":
		r.usage.compaction, o.compaction = o.compaction, tokenPair{}
	}
}

// readCount reads a count into n and reports whether it is one. Otherwise n stays as it is.
func readCount(n *int64, value []byte) bool {
	count, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || count < 0 {
		return false
	}
	*n = min(count, maxWireTokens)
	return true
}

// contentPaths are where responses and events have text, thinking and arguments of tools.
var contentPaths = func() map[string]bool {
	paths := make(map[string]bool)
	for _, parent := range []string{"choices[].message", "choices[].delta"} {
		for _, member := range []string{
			"content", "content[].text", "refusal", "reasoning", "reasoning_content", "audio.transcript",
			"tool_calls[].function.arguments", "tool_calls[].custom.input", "function_call.arguments",
		} {
			paths[parent+"."+member] = true
		}
	}
	for _, parent := range []string{"content[]", "content_block", "delta"} {
		for _, member := range []string{"text", "thinking", "partial_json", "input"} {
			paths[parent+"."+member] = true
		}
	}
	return paths
}()

// readContent counts the bytes of content: of a string without its escapes, of a tool's arguments as they are spelled.
func (r *wireReport) readContent(path, value []byte) {
	size := len(value) - len("{}")
	switch {
	case value[0] == '"':
		for i := 0; i < len(value); i++ {
			if value[i] == '\\' && value[i+1] == 'u' {
				size -= 4 // taken for two bytes in UTF-8
				i++
			} else if value[i] == '\\' {
				size--
				i++
			}
		}
	case value[0] != '{':
		return
	}
	r.contentBytes += int64(size)
	r.refused = size > 0 && bytes.HasSuffix(path, []byte(".refusal")) || r.refused
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

// A wireStream reads a provider's stream of server-sent events while it is relayed. What it returns are the provider's
// own bytes: whole events, or as much as has come of an event that is longer than maxEventBytes. A format and dropUsage
// are all that it has to be given.
//
//	for {
//		n, err := provider.Read(s.room())
//		client.Write(s.received(n))
//	}
type wireStream struct {
	wireReport
	dropUsage bool // take the extra usage chunk out, since the client did not ask for it

	buf      []byte // buf[:returned] was returned by received, buf[event:] is what has come of the next event
	returned int
	event    int  // start of the current event
	line     int  // start of the current line
	scanned  int  // no line ends in buf[line:scanned]
	afterCR  bool // buf[line] may be the second half of the last line's CR LF
	dropped  bool // that line ended an event that was dropped
	hasData  bool // the current event has data
	isUsage  bool // which is the extra usage chunk and nothing else
	inEvent  bool // the start of the current event was returned before its end came, because it is too long
	inLine   bool // the start of the current line, too
}

// room returns where the next bytes are to be read to. It invalidates what received has returned.
func (s *wireStream) room() []byte {
	rest := copy(s.buf, s.buf[s.returned:])
	s.buf = s.buf[:rest]
	s.event, s.line, s.scanned = s.event-s.returned, s.line-s.returned, s.scanned-s.returned
	s.returned = 0
	if size := cap(s.buf); rest == 0 && size > 16*eventBuffer {
		s.buf = nil // a stream keeps no more than it needs
	} else if size-rest < size/4 {
		s.buf = append(make([]byte, 0, 2*size), s.buf...)
	}
	if cap(s.buf) == 0 {
		s.buf = make([]byte, 0, eventBuffer)
	}
	return s.buf[len(s.buf):cap(s.buf)]
}

// received takes in the n bytes that were read to room, and returns what can be relayed now.
func (s *wireStream) received(n int) []byte {
	s.buf = s.buf[:len(s.buf)+n]
	for s.readLine() {
	}
	if s.inLine || len(s.buf)-s.event > maxEventBytes {
		s.inEvent, s.inLine = true, s.inLine || s.line < len(s.buf)
		s.countUnread(s.buf[s.line:])
		s.event, s.line, s.scanned = len(s.buf), len(s.buf), len(s.buf)
	}
	s.returned = s.event
	return s.buf[:s.returned]
}

// isBetweenEvents reports whether what was returned so far ends with a whole event, so that others can be put in.
func (s *wireStream) isBetweenEvents() bool { return !s.inEvent }

// finish takes in the end of the provider's stream and returns what came after the last whole event: an event without
// its blank line, or half of one. Relay it only if done or hasFinished holds then.
func (s *wireStream) finish() []byte {
	if s.line < len(s.buf) {
		s.endLine(s.buf[s.line:], len(s.buf))
	}
	if s.isUsage && s.dropUsage && !s.inEvent {
		return nil
	}
	return s.buf[s.event:]
}

// readLine reads the next line, which ends in LF, CR LF or CR, and reports whether there is one.
func (s *wireStream) readLine() bool {
	if s.afterCR && s.line < len(s.buf) {
		s.afterCR = false
		if s.buf[s.line] == '\n' {
			s.skipLF()
		}
	}
	end := len(s.buf)
	if at := bytes.IndexByte(s.buf[s.scanned:end], '\n'); at >= 0 {
		end = s.scanned + at
	}
	if at := bytes.IndexByte(s.buf[s.scanned:end], '\r'); at >= 0 {
		end = s.scanned + at
	}
	s.scanned = end
	if end == len(s.buf) {
		return false
	}
	next := end + 1
	if s.buf[end] == '\r' {
		if s.afterCR = next == len(s.buf); !s.afterCR && s.buf[next] == '\n' {
			next++
		}
	}
	s.endLine(s.buf[s.line:end], next)
	return true
}

// skipLF takes the LF at the start of the current line for a part of the line before.
func (s *wireStream) skipLF() {
	switch {
	case s.dropped:
		s.buf = append(s.buf[:s.line], s.buf[s.line+1:]...)
		return
	case s.event == s.line:
		s.event++
	}
	s.line++
	s.scanned = s.line
}

// endLine reads a line of the stream. The next one starts at next.
func (s *wireStream) endLine(line []byte, next int) {
	s.dropped = false
	switch {
	case s.inLine:
		s.countUnread(line)
		s.inLine = false
	case len(line) > 0:
		s.readField(line)
	default: // a blank line ends an event
		if s.isUsage && s.dropUsage && !s.inEvent {
			s.buf = append(s.buf[:s.event], s.buf[next:]...)
			next = s.event
			s.dropped = true
		}
		s.event = next
		s.hasData, s.isUsage, s.inEvent = false, false, false
	}
	s.line, s.scanned = next, next
}

// readField reads a line of an event. Only data matters: both formats repeat the event's name in it.
func (s *wireStream) readField(line []byte) {
	data, isData := bytes.CutPrefix(line, []byte("data:"))
	data = bytes.TrimSpace(data)
	if !isData || len(data) == 0 {
		return
	}
	isFirst := !s.hasData
	s.hasData, s.isUsage = true, false
	if string(data) == "[DONE]" {
		s.done = true
		return
	}
	isUsage, err := s.read(data)
	if err != nil {
		s.countUnread(data)
	}
	s.isUsage = isUsage && isFirst
}

// countUnread takes bytes that cannot be read for content: a provider that is not understood is not free.
func (s *wireStream) countUnread(data []byte) {
	if len(data) > 0 {
		s.unread = true
		s.contentEvents++
		s.contentBytes += int64(len(data))
	}
}

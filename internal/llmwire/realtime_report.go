package llmwire

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"time"
)

const (
	maxProviderEvent = 4 << 20 // bytes of an event of the provider that is read whole
	maxUnfinished    = 32      // responses that are told apart

	// What a token of sound is. OpenAI's documentation (realtime-costs) has a token for each 50 ms that are generated, and
	// for each 100 ms of input. A second of speech has at least 10 bytes of text.
	bytesOfPCM         = 2_400 // 16 bits at 24 kHz
	bytesOfG711        = 400   // 8 bits at 8 kHz
	bytesOfTranscript  = 3     // of text that is generated
	maxRealtimeSeconds = 24 * 60 * 60
)

// A RealtimeKind says what an event of the provider means for a meter.
type RealtimeKind int

// The kinds.
const (
	OtherRealtime      RealtimeKind = iota
	SessionCreated                  // the first event
	SessionUpdated                  // the answer to session.update
	ResponseCreated                 // a response has begun, asked for or not
	ResponseDone                    // it has ended, whatever its status
	InputTranscribed                // a part of the input was transcribed, which has a price of its own
	RealtimeErrorEvent              // most of them leave the session open
)

// realtimeKinds has the types of events that are read whole (RealtimeServerEvent of OpenAI's SDKs).
var realtimeKinds = map[string]RealtimeKind{
	"session.created":  SessionCreated,
	"session.updated":  SessionUpdated,
	"response.created": ResponseCreated,
	"response.done":    ResponseDone,
	"error":            RealtimeErrorEvent,

	transcriptCompleted: InputTranscribed,
}

// The types of events of a transcription. Their text comes before it is known what it has used.
const (
	transcriptDelta     = "conversation.item.input_audio_transcription.delta"
	transcriptCompleted = "conversation.item.input_audio_transcription.completed"
	transcriptFailed    = "conversation.item.input_audio_transcription.failed"
)

// A RealtimeEvent is what a meter must know of an event of the provider.
type RealtimeEvent struct {
	Kind RealtimeKind

	Model string // of a session that was created or updated
	ID    string // of a response

	// Usage is what a response, or the transcription of a part of the input, has used. Duration is the length of the
	// sound if that is what a transcription is charged for. If the provider did not report what was used, there are
	// Estimates instead, of which the dearest counts.
	Usage     Usage
	Duration  time.Duration
	Estimates []Usage

	ErrorEventID string // of the event that an error is about; "" if it names none
	ErrorCode    string // of an error
}

// An UnfinishedResponse is one whose end has not come.
type UnfinishedResponse struct {
	ID        string
	Estimates []Usage // of what it has used so far; the dearest counts
}

// A RealtimeReport reads the events that the provider of a session sends, each while it comes, in parts of any size.
// Events with sound or text are counted, and not decoded or kept. The zero value is ready to read the first event of a
// session.
type RealtimeReport struct {
	event providerEvent // that is being read

	bytesPerToken int64 // of the sound that a session generates; 0 if it is not known
	lastInput     Usage // of the last response that had any
	unfinished    []unfinishedResponse
	transcripts   []transcript // whose end has not come, the oldest first
	reader        realtimeEventReader
}

// A transcript counts what has come of the transcription of an item.
type transcript struct {
	item string
	text int64 // bytes
}

// An unfinishedResponse counts what has come of a response.
type unfinishedResponse struct {
	id            string
	bytesPerToken int64
	text, sound   int64 // bytes, decoded
}

// A providerEvent is what is known of an event that is being read.
type providerEvent struct {
	json    jsonParts
	bytes   int64
	action  RealtimeAction
	kind    RealtimeKind
	member  string // whose value is read next, if it is one of those below
	isText  bool   // delta is text that was generated
	isSound bool   // it is sound, in base64
	delta   int64  // bytes that it spells
	scratch [maxKeptString]byte

	transcription string // what the event says of one, as transcriptDelta; "" if nothing
	item          [maxKeptString]byte
	itemLen       int

	response    [maxKeptString]byte // its ID
	responseLen int
}

// Read reads the next part of an event and says what is done with it. An event that is not valid, that is too long to
// be held, or that has ended and is still to be held, is passed on.
func (r *RealtimeReport) Read(part []byte) RealtimeAction {
	e := &r.event
	for len(part) > 0 && !e.json.isDone() {
		n, token := e.json.next(part)
		part = part[n:]
		e.bytes += int64(n)
		if token == invalidToken {
			e.action = PassEvent
			e.json.state = atEnd
		} else if e.json.depth == 1 {
			e.readToken(token)
		}
		if e.action == HoldEvent && e.bytes > maxUntyped {
			e.action = PassEvent
		}
	}
	e.bytes += int64(len(part))
	if e.action == ReadEvent && e.bytes > maxProviderEvent {
		e.action = PassEvent
	}
	return e.action
}

// readToken reads a token in the event, and not in what is inside it.
func (e *providerEvent) readToken(token jsonToken) {
	if token != nameToken && token != stringToken {
		return
	}
	text := e.json.text(e.scratch[:])
	switch {
	case token == nameToken:
		e.member = ""
		for _, name := range []string{"type", "delta", "response_id", "item_id"} {
			if string(text) == name {
				e.member = name
			}
		}
	case e.member == "delta":
		e.delta = max(e.delta, e.json.length)
	case e.member == "response_id":
		e.responseLen = copy(e.response[:], text)
	case e.member == "item_id":
		e.itemLen = copy(e.item[:], text)
	case e.member == "type" && e.action == HoldEvent:
		e.readType(text)
	}
}

func (e *providerEvent) readType(kind []byte) {
	e.action = PassEvent
	if e.kind = realtimeKinds[string(kind)]; e.kind != OtherRealtime {
		e.action = ReadEvent
	} else if string(kind) == "rate_limits.updated" { // those of the operator's account
		e.action = DropEvent
	}
	for _, what := range []string{transcriptDelta, transcriptCompleted, transcriptFailed} {
		if string(kind) == what {
			e.transcription = what
		}
	}
	if bytes.HasPrefix(kind, []byte("response.")) && bytes.HasSuffix(kind, []byte(".delta")) {
		e.isSound = bytes.HasSuffix(kind, []byte("audio.delta"))
		e.isText = !e.isSound
	}
}

// End reads the end of an event. If Read has returned ReadEvent for it, event is all of it, else nil.
func (r *RealtimeReport) End(event []byte) RealtimeEvent {
	e := &r.event
	if e.isText || e.isSound {
		one := r.response(e.response[:e.responseLen])
		if e.isText {
			one.text += e.delta
		} else {
			one.sound += e.delta / 4 * 3 // base64
		}
	}
	if e.transcription != "" {
		r.countTranscript(e)
	}
	var read RealtimeEvent
	if e.kind != OtherRealtime {
		read = *r.readWhole(event)
	}
	r.event = providerEvent{}
	return read
}

// countTranscript counts what an event has of a transcription, or forgets the one that it ends.
func (r *RealtimeReport) countTranscript(e *providerEvent) {
	id := e.item[:e.itemLen]
	at := slices.IndexFunc(r.transcripts, func(t transcript) bool { return t.item == string(id) })
	switch {
	case e.transcription != transcriptDelta:
		if at >= 0 {
			r.transcripts = slices.Delete(r.transcripts, at, at+1)
		}
		return
	case at < 0 && len(r.transcripts) < maxUnfinished:
		r.transcripts = append(r.transcripts, transcript{item: string(id)})
		at = len(r.transcripts) - 1
	case at < 0:
		at = len(r.transcripts) - 1
	}
	r.transcripts[at].text += e.delta
}

// Transcribing returns what may have been used by the transcriptions whose end has not come. ok is false if there are
// none.
func (r *RealtimeReport) Transcribing() (usage Usage, ok bool) {
	size := int64(0)
	for _, t := range r.transcripts {
		size += t.text
	}
	return transcriptUsage(size), size > 0
}

// transcriptUsage returns what the transcription of a text of that many bytes may have used: as many tokens of sound.
func transcriptUsage(size int64) Usage {
	size = min(size, MaxTokens)
	return Usage{Input: size, AudioInput: size, Output: divideUp(size, bytesOfTranscript)}
}

// readWhole reads an event that is read whole, or nothing if it was too long.
func (r *RealtimeReport) readWhole(event []byte) *RealtimeEvent {
	read, reader := &RealtimeEvent{Kind: r.event.kind}, &r.reader
	*reader = realtimeEventReader{walker: reader.walker, to: read}
	if event != nil {
		_ = reader.walker.walk(event, realtimeEventShape, reader) // is valid, or Read would have passed it on
	}
	switch read.Kind {
	case SessionCreated, SessionUpdated:
		if reader.bytesPerToken > 0 {
			r.bytesPerToken = reader.bytesPerToken
		}
	case ResponseCreated:
		one := r.response([]byte(read.ID))
		if reader.bytesPerToken > 0 {
			one.bytesPerToken = reader.bytesPerToken
		}
	case ResponseDone:
		r.endResponse(read)
	case InputTranscribed:
		reader.endTranscription(r.event.bytes)
	}
	return read
}

// response returns the response with an ID, which is added if it is not there. An ID that is "" is that of the latest.
func (r *RealtimeReport) response(id []byte) *unfinishedResponse {
	for i := range r.unfinished {
		if r.unfinished[i].id == string(id) {
			return &r.unfinished[i]
		}
	}
	if n := len(r.unfinished); n == 0 || n < maxUnfinished && len(id) > 0 {
		r.unfinished = append(r.unfinished, unfinishedResponse{id: string(id), bytesPerToken: r.bytesPerToken})
	}
	return &r.unfinished[len(r.unfinished)-1]
}

// endResponse reads the end of a response. If its ID is missing here or there, it is the oldest one.
func (r *RealtimeReport) endResponse(read *RealtimeEvent) {
	usage, isKnown := r.reader.used()
	at := slices.IndexFunc(r.unfinished, func(u unfinishedResponse) bool { return u.id == read.ID })
	if at < 0 {
		at = slices.IndexFunc(r.unfinished, func(u unfinishedResponse) bool { return u.id == "" || read.ID == "" })
	}
	one := unfinishedResponse{bytesPerToken: r.bytesPerToken}
	if at >= 0 {
		one = r.unfinished[at]
		r.unfinished = slices.Delete(r.unfinished, at, at+1)
	}
	if !isKnown {
		read.Estimates = r.estimates(&one)
		return
	}
	read.Usage = usage
	if usage.Input > 0 {
		r.lastInput = usage
		r.lastInput.Output, r.lastInput.AudioOutput, r.lastInput.ImageOutput = 0, 0, 0
	}
}

// LastInput returns the input of the last response that had any.
func (r *RealtimeReport) LastInput() Usage { return r.lastInput }

// Responding returns how many responses there are whose end has not come; at most 32.
func (r *RealtimeReport) Responding() int { return len(r.unfinished) }

// Unfinished returns the responses whose end has not come, the oldest first; at most 32.
func (r *RealtimeReport) Unfinished() []UnfinishedResponse {
	var all []UnfinishedResponse
	for i := range r.unfinished {
		all = append(all, UnfinishedResponse{r.unfinished[i].id, r.estimates(&r.unfinished[i])})
	}
	return all
}

// estimates returns what a response may have used: the input of the last one, and the text or the sound that has come.
func (r *RealtimeReport) estimates(one *unfinishedResponse) []Usage {
	text, sound := r.lastInput, r.lastInput
	text.Output = min(divideUp(one.text, bytesOfTranscript), MaxTokens)
	bytesPerToken := one.bytesPerToken
	if bytesPerToken == 0 {
		bytesPerToken = bytesOfPCM
	}
	sound.Output = min(divideUp(one.sound, bytesPerToken), MaxTokens)
	sound.AudioOutput = sound.Output
	return []Usage{text, sound}
}

// A realtimeEventReader reads an event of the provider as a whole.
type realtimeEventReader struct {
	walker        jsonWalker[realtimeEventReader]
	to            *RealtimeEvent
	usage         rawUsage
	inputParts    int64 // the sum of the tokens of its kinds
	outputParts   int64
	hasDuration   bool
	transcript    int64 // bytes
	hasTranscript bool
	bytesPerToken int64
}

// realtimeEventShape has what is read of events of the provider.
var realtimeEventShape = newJSONShape(realtimeUsage.under("usage"), realtimeUsage.under("response.usage"),
	jsonTable[realtimeEventReader]{
		"session.model":                     textRow(func(e *RealtimeEvent) *string { return &e.Model }),
		"session.audio.output.format.type":  {read: (*realtimeEventReader).readFormat},
		"response.audio.output.format.type": {read: (*realtimeEventReader).readFormat},
		"response.id":                       textRow(func(e *RealtimeEvent) *string { return &e.ID }),
		"error.event_id":                    textRow(func(e *RealtimeEvent) *string { return &e.ErrorEventID }),
		"error.code":                        textRow(func(e *RealtimeEvent) *string { return &e.ErrorCode }),
		"transcript":                        {read: (*realtimeEventReader).readTranscript},
	})

// realtimeUsage are the members of a usage (RealtimeResponseUsage, and TranscriptTextUsageTokens and
// TranscriptTextUsageDuration of OpenAI's SDKs).
var realtimeUsage = jsonTable[realtimeEventReader]{
	"input_tokens":  realtimeCount(inputTokens),
	"output_tokens": realtimeCount(outputTokens),
	"total_tokens":  realtimeCount(totalTokens),
	"seconds":       {read: (*realtimeEventReader).readSeconds},

	"input_token_details.text_tokens":   {read: (*realtimeEventReader).readInputPart},
	"input_token_details.audio_tokens":  realtimeCount(audioTokens),
	"input_token_details.image_tokens":  realtimeCount(imageTokens),
	"input_token_details.cached_tokens": realtimeCount(cachedTokens),

	"input_token_details.cached_tokens_details.audio_tokens": realtimeCount(cachedAudioTokens),
	"input_token_details.cached_tokens_details.image_tokens": realtimeCount(cachedImageTokens),

	"output_token_details.text_tokens":  {read: (*realtimeEventReader).readOutputPart},
	"output_token_details.audio_tokens": realtimeCount(audioOutputTokens),
	"output_token_details.image_tokens": realtimeCount(imageOutputTokens),
}

// realtimeCount returns the row of a count.
func realtimeCount(what countKind) jsonRow[realtimeEventReader] {
	return jsonRow[realtimeEventReader]{read: func(r *realtimeEventReader, v jsonValue) {
		if n, ok := readCount(v.text); ok {
			r.usage.set(what, n)
		}
	}}
}

// textRow returns the row of a string that the event has.
func textRow(member func(*RealtimeEvent) *string) jsonRow[realtimeEventReader] {
	return jsonRow[realtimeEventReader]{read: func(r *realtimeEventReader, v jsonValue) {
		if v.text[0] == '"' && len(v.text) <= maxUntyped {
			*member(r.to) = string(unquoted(v.text))
		}
	}}
}

func (r *realtimeEventReader) readInputPart(v jsonValue) {
	n, _ := readCount(v.text)
	r.inputParts = n
}

func (r *realtimeEventReader) readOutputPart(v jsonValue) {
	n, _ := readCount(v.text)
	r.outputParts = n
}

// readFormat reads the format of the sound that is generated. One that is not known may be as short as G.711.
func (r *realtimeEventReader) readFormat(v jsonValue) {
	switch {
	case v.isNull():
	case string(unquoted(v.text)) == "audio/pcm":
		r.bytesPerToken = bytesOfPCM
	default:
		r.bytesPerToken = bytesOfG711
	}
}

func (r *realtimeEventReader) readTranscript(v jsonValue) {
	r.transcript, r.hasTranscript = v.stringBytes(), v.text[0] == '"'
}

func (r *realtimeEventReader) readSeconds(v jsonValue) {
	seconds, err := strconv.ParseFloat(string(v.text), 64)
	if err != nil || seconds < 0 {
		return
	}
	r.hasDuration = true
	r.to.Duration = time.Duration(math.Ceil(min(seconds, maxRealtimeSeconds) * 1e9))
}

// used returns the usage, and isKnown false if the event does not have the totals of input and output. Those that are
// missing follow from the tokens by their kinds.
func (r *realtimeEventReader) used() (usage Usage, isKnown bool) {
	u := &r.usage
	if n := r.inputParts + u.get(audioTokens) + u.get(imageTokens); n > 0 && u.has&inputTotals == 0 {
		u.set(inputTokens, min(n, MaxTokens))
	}
	if n := r.outputParts + u.get(audioOutputTokens) + u.get(imageOutputTokens); n > 0 && u.has&(1<<outputTokens) == 0 {
		u.set(outputTokens, min(n, MaxTokens))
	}
	input, output := u.sees()
	return u.usage(0), input && output
}

// endTranscription reads the end of an event of a transcription. Without a usage, there are as many tokens of sound as
// its transcript has bytes, or the event of the given size.
func (r *realtimeEventReader) endTranscription(size int64) {
	usage, isKnown := r.used()
	if isKnown || r.hasDuration {
		r.to.Usage = usage
		return
	}
	if r.hasTranscript {
		size = r.transcript
	}
	r.to.Estimates = []Usage{transcriptUsage(size)}
}

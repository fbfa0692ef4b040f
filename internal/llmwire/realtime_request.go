package llmwire

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// RealtimeRules are what session.update and response.create of a client are held to.
type RealtimeRules struct {
	Model string // of the session, as the provider knows it
	Alias string // by which the client knows it, "" for none; Model takes its place

	Limit   int64 // the most output tokens of a response; also for "inf"
	Default int64 // for an event without a limit: the one that the session has; 0 means Limit, which it cannot exceed

	ResponseID string // of the response.create that is passed on, in place of the client's; "" keeps that
}

// A RealtimeRequest is a session.update or response.create of a client.
type RealtimeRequest struct {
	CreatesResponse bool
	EventID         string   // the client's; "" if it has none
	Limit           int64    // of output tokens, as it is passed on
	Pieces          [][]byte // the event to pass on; they share the memory of what was read
}

// Read reads an event that RealtimeScan says is to be read. It has an allowlist of members and of what they may hold:
// everything else is refused, so that no member in another case, no duplicate and nothing that is new can raise the
// cost. A member that is null counts as absent. What is passed on has a limit of output tokens and no tracing.
// Everything else stays byte for byte as it came. The error is a *RealtimeError.
func (l RealtimeRules) Read(event []byte) (*RealtimeRequest, error) {
	r := &realtimeReader{rules: l, seen: make(map[string]map[string]bool)}
	r.limit = min(cmp.Or(l.Default, l.Limit), l.Limit)
	r.Request = Request{body: event, at: make(map[memberName]span)}
	err := r.walker.walk(event, realtimeShape, r)
	if r.refusal == nil && (err != nil || !utf8.Valid(event)) {
		r.refuse("invalid_json", "", "The event is not valid JSON.")
	}
	r.checkKind()
	if r.refusal != nil {
		r.refusal.EventID = r.eventID
		return nil, r.refusal
	}
	return &RealtimeRequest{
		CreatesResponse: r.object() == "response", EventID: r.eventID, Limit: r.limit, Pieces: r.rewrite(),
	}, nil
}

// A realtimeReader reads a session.update or response.create. Of the Request, it has what a rewriter needs.
type realtimeReader struct {
	Request
	rules   RealtimeRules
	walker  jsonWalker[realtimeReader]
	seen    map[string]map[string]bool // members of the objects that are being read, by the path of the object
	kind    string                     // the type of the event
	eventID string
	limit   int64
	rename  bool // the model is to be replaced
	refusal *RealtimeError
}

// refuse ends the reading with an error, unless there is one already.
func (r *realtimeReader) refuse(code, param, format string, args ...any) {
	if r.refusal == nil {
		r.refusal = &RealtimeError{Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
		r.walker.stop()
	}
}

// object returns the name of the member that the event is about.
func (r *realtimeReader) object() string {
	if r.kind == "response.create" {
		return "response"
	}
	return "session"
}

func (r *realtimeReader) checkKind() {
	_, hasSession := r.at[memberName{"", "session"}]
	_, hasResponse := r.at[memberName{"", "response"}]
	switch isUpdate := r.kind == "session.update"; {
	case !isUpdate && r.kind != "response.create":
		r.refuse("unknown_event", "type", "Events of the type %s are not supported.", quoted([]byte(r.kind)))
	case isUpdate && !hasSession:
		r.refuse("missing_required_parameter", "session", "The event has no session.")
	case isUpdate && hasResponse:
		r.refuse("unknown_parameter", "response", "A session.update has no response.")
	case !isUpdate && hasSession:
		r.refuse("unknown_parameter", "session", "A response.create has no session.")
	}
}

// realtimeShape has the members that session.update and response.create may have (RealtimeSessionCreateRequest and
// RealtimeResponseCreateParams of OpenAI's SDKs). An object in it may have no others, but for those in which nothing is
// read: they are noted, or describe a function.
var realtimeShape = newJSONShape(jsonTable[realtimeReader]{
	"":         objectRow("type"),
	"type":     {read: (*realtimeReader).readKind},
	"event_id": {read: (*realtimeReader).readEventID},
	"session":  {each: (*realtimeReader).addMember, read: (*realtimeReader).readSession},
	"response": objectRow(),
}, realtimeMembers.under("session"), realtimeSession.under("session"),
	realtimeMembers.under("response"), realtimeResponse.under("response"))

// realtimeMembers are the members that sessions and responses share.
var realtimeMembers = jsonTable[realtimeReader]{
	"instructions":          {},
	"max_output_tokens":     {read: (*realtimeReader).readLimit},
	"model":                 {read: (*realtimeReader).readModel},
	"output_modalities":     {read: (*realtimeReader).readArray},
	"output_modalities[]":   oneOf("text", "audio"),
	"parallel_tool_calls":   {},
	"prompt":                {read: (*realtimeReader).refuseAny}, // is kept at the provider, and may have tools
	"reasoning":             objectRow(),
	"reasoning.effort":      {}, // counts as output
	"tool_choice":           {each: (*realtimeReader).addMember, read: (*realtimeReader).readChoice},
	"tool_choice.type":      oneOf("function"),
	"tool_choice.name":      {},
	"tools":                 {read: (*realtimeReader).readArray},
	"tools[]":               elementRow("type"),
	"tools[].type":          oneOf("function"), // others run at the provider
	"tools[].name":          {},
	"tools[].description":   {},
	"tools[].parameters":    {},
	"tools[].strict":        {},
	"tracing":               {}, // is taken out
	"audio":                 objectRow(),
	"audio.output":          objectRow(),
	"audio.output.format":   {},
	"audio.output.speed":    {},
	"audio.output.voice":    {each: (*realtimeReader).addMember},
	"audio.output.voice.id": {},
}

// realtimeSession are the members that only sessions have. The model that transcribes is free to choose: it has a price
// of its own.
var realtimeSession = jsonTable[realtimeReader]{
	"type":                               oneOf("realtime"),
	"include":                            {read: (*realtimeReader).readArray},
	"include[]":                          oneOf("item.input_audio_transcription.logprobs"),
	"truncation":                         {}, // of what is below the context window
	"audio.input":                        objectRow(),
	"audio.input.format":                 {},
	"audio.input.noise_reduction":        {},
	"audio.input.transcription":          objectRow(),
	"audio.input.transcription.delay":    {},
	"audio.input.transcription.language": {},
	"audio.input.transcription.model":    {},
	"audio.input.transcription.prompt":   {},

	"audio.input.turn_detection":                     objectRow(),
	"audio.input.turn_detection.type":                oneOf("server_vad", "semantic_vad"),
	"audio.input.turn_detection.create_response":     {},
	"audio.input.turn_detection.eagerness":           {},
	"audio.input.turn_detection.idle_timeout_ms":     {},
	"audio.input.turn_detection.interrupt_response":  {},
	"audio.input.turn_detection.prefix_padding_ms":   {},
	"audio.input.turn_detection.silence_duration_ms": {},
	"audio.input.turn_detection.threshold":           {},
}

// realtimeResponse are the members that only responses have.
var realtimeResponse = jsonTable[realtimeReader]{
	"conversation":                 oneOf("auto", "none"),
	"metadata":                     {},
	"input":                        {read: (*realtimeReader).readArray},
	"input[]":                      elementRow("type"),
	"input[].type":                 listed(realtimeItems),
	"input[].arguments":            {},
	"input[].call_id":              {},
	"input[].id":                   {},
	"input[].name":                 {},
	"input[].object":               {},
	"input[].output":               {},
	"input[].role":                 {},
	"input[].status":               {},
	"input[].content":              {read: (*realtimeReader).readArray},
	"input[].content[]":            elementRow("type"),
	"input[].content[].type":       listed(realtimeParts),
	"input[].content[].audio":      {},
	"input[].content[].detail":     {},
	"input[].content[].image_url":  {},
	"input[].content[].text":       {},
	"input[].content[].transcript": {},
}

// objectRow returns the row of an object that may be null or absent.
func objectRow(required ...string) jsonRow[realtimeReader] {
	return jsonRow[realtimeReader]{each: (*realtimeReader).addMember, read: func(r *realtimeReader, v jsonValue) {
		if !v.isNull() {
			r.endObject(v, required)
		}
	}}
}

// elementRow returns the row of the objects in an array.
func elementRow(required ...string) jsonRow[realtimeReader] {
	return jsonRow[realtimeReader]{each: (*realtimeReader).addMember, read: func(r *realtimeReader, v jsonValue) {
		r.endObject(v, required)
	}}
}

// oneOf returns the row of a value that is null or one of some strings.
func oneOf(values ...string) jsonRow[realtimeReader] {
	return jsonRow[realtimeReader]{read: func(r *realtimeReader, v jsonValue) {
		if !v.isNull() && (v.text[0] != '"' || !slices.Contains(values, string(unquoted(v.text)))) {
			r.refuse("invalid_value", v.path, "The value %s of %s is not supported.", quoted(unquoted(v.text)), v.path)
		}
	}}
}

// listed returns the row of a type that is known in table.
func listed(table columnTable) jsonRow[realtimeReader] { return oneOf(table.names(known)...) }

// endObject reads the end of an object, whose members are those required and others that were read.
func (r *realtimeReader) endObject(v jsonValue, required []string) {
	if v.text[0] != '{' {
		r.refuse("invalid_type", v.path, "%s must be an object.", pathName(v.path))
		return
	}
	for _, name := range required {
		if !r.seen[v.path][name] {
			r.refuse("missing_required_parameter", v.path, "%s has no %s.", pathName(v.path), name)
		}
	}
	delete(r.seen, v.path)
}

func pathName(path string) string {
	if path == "" {
		return "The event"
	}
	return path
}

// addMember refuses a member that is not known, or is there twice. A type that is null counts as absent.
func (r *realtimeReader) addMember(object *jsonShape[realtimeReader], name []byte, v jsonValue) {
	seen := r.seen[object.path]
	if seen == nil {
		seen = make(map[string]bool)
		r.seen[object.path] = seen
	}
	param := memberName{object.path, string(name)}
	_, exists := seen[param.name]
	switch {
	case object.members[param.name] == nil:
		r.refuse("unknown_parameter", object.path, "%s has the member %s, which is not supported.",
			pathName(object.path), quoted(name))
	case exists:
		r.refuse("invalid_value", param.String(), "%s is there twice.", param.String())
	}
	seen[param.name] = !v.isNull()
	if object.path == "" || object.path == "session" || object.path == "response" {
		r.at[param] = v.span()
	}
	if object.path == "" {
		r.members++
	}
}

func (r *realtimeReader) readKind(v jsonValue) { r.kind = string(unquoted(v.text)) }

// maxEventID is how many bytes the ID of an event may have that errors name, quotes included: OpenAI takes 512
// characters, each up to 12 bytes as two escapes.
const maxEventID = 512*12 + 2

func (r *realtimeReader) readEventID(v jsonValue) {
	if v.text[0] == '"' && len(v.text) <= maxEventID {
		r.eventID = string(unquoted(v.text))
	}
}

func (r *realtimeReader) readSession(v jsonValue) { r.endObject(v, nil) }

// readLimit reads a limit of output tokens.
func (r *realtimeReader) readLimit(v jsonValue) {
	switch {
	case v.isNull():
		return
	case string(unquoted(v.text)) == "inf":
		r.limit = r.rules.Limit
		return
	}
	n, err := strconv.ParseInt(string(v.text), 10, 64)
	if err != nil || n < 1 || n > r.rules.Limit {
		r.refuse("invalid_value", v.path, "%s must be a whole number from 1 to %d.", v.path, r.rules.Limit)
	}
	r.limit = n
}

func (r *realtimeReader) readModel(v jsonValue) {
	switch model := string(unquoted(v.text)); {
	case v.isNull():
	case v.text[0] == '"' && model == r.rules.Model:
	case v.text[0] == '"' && model == r.rules.Alias && model != "":
		r.rename = true
	default:
		r.refuse("invalid_value", v.path, "The session has another model, which cannot be changed.")
	}
}

func (r *realtimeReader) readArray(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.refuse("invalid_type", v.path, "%s must be an array.", v.path)
	}
}

func (r *realtimeReader) refuseAny(v jsonValue) {
	if !v.isNull() {
		r.refuse("unsupported_parameter", v.path, "%s is not supported.", v.path)
	}
}

// readChoice reads the choice of a tool: a word, or an object that names a function.
func (r *realtimeReader) readChoice(v jsonValue) {
	if v.text[0] == '{' {
		r.endObject(v, []string{"type"})
		return
	}
	oneOf("none", "auto", "required").read(r, v)
}

// rewrite returns the event with a limit, the session's model and no tracing.
func (r *realtimeReader) rewrite() [][]byte {
	w := rewriter{r: &r.Request}
	object := r.object()
	if r.rename {
		w.set(memberName{object, "model"}, jsonString(r.rules.Model))
	}
	if id := r.rules.ResponseID; id != "" && object == "response" {
		w.set(memberName{"", "event_id"}, jsonString(id))
	}
	limit := strconv.FormatInt(r.limit, 10)
	at, hasLimit := r.at[memberName{object, "max_output_tokens"}]
	tracing, hasTracing := r.at[memberName{object, "tracing"}]
	switch {
	case !hasLimit && hasTracing: // an object from which all else was taken needs no care this way
		w.edits = append(w.edits, edit{r.memberSpan(tracing), `"max_output_tokens":` + limit})
	case hasTracing:
		w.removed = append(w.removed, r.memberSpan(tracing))
	}
	switch {
	case hasLimit && string(r.body[at.from:at.to]) != limit, !hasLimit && !hasTracing:
		w.set(memberName{object, "max_output_tokens"}, limit)
	}
	return w.pieces()
}

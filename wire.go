package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)


const (
	maxWireTokens  = 1<<53 - 1 // no count, limit or cost is larger
	maxWireMembers = 256       // top-level members of a request
	maxChoices     = 16        // n of a request
	toolTokens     = 600       // held for the prompt that providers add if there are tools
)

// A wireRequest is what the gateway reads of a request. Everything else in body is forwarded as it came.
type wireRequest struct {
	format wireFormat
	body   []byte

	model        string // "" if the request names none
	stream       bool
	includeUsage bool  // the client itself asked for the chunk with its stream's usage
	n            int64 // choices, 1 to 16
	limit        int64 // of output tokens for each choice, the larger if there are two; 0 if the request has no limit

	hasTools     bool
	serverTool   string // the first tool or member that lets the provider read more than body; "" if it has no such tool
	hiddenOutput bool   // thinking or reasoning is asked for, so content does not show all that is generated

	mediaParts int64
	mediaBytes int64 // of their base64, as it is spelled in body

	shape       *jsonShape[wireRequest]
	walker      jsonWalker[wireRequest]
	at          map[memberName]span // the top-level members, and those of stream_options
	parts       []contentPart       // the content part that is being read, and those around it
	thinkingOff bool
	err         error // the first that was found
}

// A memberName is the name of a member of the object at a path, "" for that of a top-level one.
type memberName struct{ object, name string }

// A span is where a value is in a request's body.
type span struct{ from, to int }

type contentPart struct {
	isMedia bool
	isText  bool  // its data is not base64
	encoded int64 // bytes of base64
}

// readWireRequest reads a request's body, which it keeps and never changes. A member that is null counts as absent, as
// it does for providers. An error is a sentence for the client (400).
func readWireRequest(format wireFormat, body []byte) (*wireRequest, error) {
	if !utf8.Valid(body) {
		//lint:ignore ST1005 a sentence for the client
		return nil, errors.New("Body is not valid UTF-8")
	}
	r := &wireRequest{format: format, body: body, n: 1, shape: wireRequests[format], at: make(map[memberName]span)}
	err := r.walker.walk(body, r.shape, r)
	if r.err != nil {
		return nil, r.err
	}
	if err != nil {
		//lint:ignore ST1005 a sentence for the client
		return nil, fmt.Errorf("Body is %w", err)
	}
	return r, nil
}

func (r *wireRequest) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
		r.walker.stop()
	}
}

// wireRequests has what is read of a request in each format.
var wireRequests = map[wireFormat]*jsonShape[wireRequest]{
	openAIChat: newJSONShape(requestMembers, messageParts, jsonTable[wireRequest]{
		"max_completion_tokens": {read: (*wireRequest).readLimit},
		"tools[].type":          {read: (*wireRequest).readToolType},
	}),
	anthropicMessages: newJSONShape(requestMembers, messageParts, jsonTable[wireRequest]{
		"max_completion_tokens": {}, // is not read, but must be spelled so
		"tools[].type":          {read: (*wireRequest).readAnthropicToolType},
	}),
}

// requestMembers are the members that both formats have, or that a provider of one may understand in the other.
var requestMembers = jsonTable[wireRequest]{
	"":                             {read: (*wireRequest).readBody, each: (*wireRequest).addMember},
	"model":                        {read: (*wireRequest).readModel},
	"stream":                       {read: (*wireRequest).readStream},
	"stream_options":               {read: (*wireRequest).readStreamOptions, each: (*wireRequest).addMember},
	"stream_options.include_usage": {read: (*wireRequest).readIncludeUsage},
	"n":                            {read: (*wireRequest).readChoices},
	"max_tokens":                   {read: (*wireRequest).readLimit},

	"tools":              {read: (*wireRequest).readTools},
	"tools[]":            {read: (*wireRequest).readTool},
	"functions":          {read: (*wireRequest).readTools},
	"functions[]":        {read: (*wireRequest).readTool},
	"mcp_servers":        {read: (*wireRequest).readServerTool},
	"web_search_options": {read: (*wireRequest).readServerTool},
	"background":         {read: (*wireRequest).readServerTool},

	"thinking":         {read: (*wireRequest).readThinking},
	"thinking.type":    {read: (*wireRequest).readThinkingType},
	"reasoning":        {read: (*wireRequest).readReasoning},
	"reasoning_effort": {read: (*wireRequest).readReasoning},
}

// messageParts are the content parts in messages, in results of tools and in documents. A message is read as a part.
var messageParts = jsonTable[wireRequest]{
	"messages[]":                  {enter: (*wireRequest).beginPart, read: (*wireRequest).endPart},
	"messages[].content[]":        {same: "messages[]"},
	"messages[].source.content[]": {same: "messages[]"},

	"messages[].type":             {read: (*wireRequest).readPartType},
	"messages[].source.type":      {read: (*wireRequest).readSourceType},
	"messages[].source.data":      {read: (*wireRequest).readData},
	"messages[].input_audio.data": {read: (*wireRequest).readData},
	"messages[].file.file_data":   {read: (*wireRequest).readData},
	"messages[].source.url":       {read: (*wireRequest).readDataURL},
	"messages[].image_url":        {read: (*wireRequest).readDataURL},
	"messages[].image_url.url":    {read: (*wireRequest).readDataURL},
	"messages[].audio_url.url":    {read: (*wireRequest).readDataURL},
	"messages[].video_url.url":    {read: (*wireRequest).readDataURL},
}

// addMember notes where a member of the body or of stream_options is. It refuses what another parser could read as
// another value: a second member of that name, and a name that differs in case, which some servers ignore, from one of
// the table.
func (r *wireRequest) addMember(object *jsonShape[wireRequest], name []byte, v jsonValue) {
	member := memberName{object.path, string(name)}
	if _, exists := r.at[member]; exists {
		r.fail("%s is duplicated", shorten(member.String()))
	}
	r.at[member] = span{v.from, v.from + len(v.text)}
	if len(r.at) > maxWireMembers {
		r.fail("Body has more than %d members", maxWireMembers)
	}
	if strings.IndexFunc(member.name, func(c rune) bool { return c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' }) < 0 {
		return
	}
	for exact, shape := range object.members {
		if strings.EqualFold(member.name, exact) {
			r.fail("%s must be spelled %s", member, shape.path)
		}
	}
}

// String returns the member's path.
func (m memberName) String() string {
	if m.object == "" {
		return m.name
	}
	return m.object + "." + m.name
}

func (r *wireRequest) readBody(v jsonValue) {
	if v.text[0] != '{' {
		r.fail("Body must be a JSON object")
	}
}

func (r *wireRequest) readModel(v jsonValue) {
	if v.isNull() {
		return
	}
	r.model = string(unquoted(v.text))
	if v.text[0] != '"' || r.model == "" {
		r.fail("model must be a string that is not empty")
	} else if strings.ContainsRune(r.model, utf8.RuneError) { // as halves of surrogate pairs become
		r.fail("model is not valid Unicode")
	}
}

func (r *wireRequest) readStream(v jsonValue) { r.stream = r.boolean(v) }

func (r *wireRequest) readStreamOptions(v jsonValue) {
	if v.text[0] != '{' && !v.isNull() {
		r.fail("stream_options must be an object")
	}
}

func (r *wireRequest) readIncludeUsage(v jsonValue) { r.includeUsage = r.boolean(v) }

func (r *wireRequest) readChoices(v jsonValue) { r.n = max(1, r.number(v, maxChoices)) }

func (r *wireRequest) readLimit(v jsonValue) { r.limit = max(r.limit, r.number(v, maxWireTokens)) }

func (r *wireRequest) readTools(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.fail("%s must be an array", v.path)
	}
}

func (r *wireRequest) readTool(jsonValue) { r.hasTools = true }

func (r *wireRequest) readToolType(v jsonValue) {
	switch kind := unquoted(v.text); string(kind) {
	case "function", "custom", "null":
	default:
		r.addServerTool(shorten(string(kind)))
	}
}

func (r *wireRequest) readAnthropicToolType(v jsonValue) {
	if !isClientTool(unquoted(v.text)) {
		r.readToolType(v)
	}
}

// readServerTool reads a member that adds input that no hold can bound.
func (r *wireRequest) readServerTool(v jsonValue) {
	if !v.isOff() {
		r.addServerTool(v.path)
	}
}

func (r *wireRequest) addServerTool(name string) { r.serverTool = cmp.Or(r.serverTool, name) }

// readThinking and the following methods read what adds output that no stream shows.
func (r *wireRequest) readThinking(v jsonValue) {
	r.hiddenOutput = !v.isOff() && !r.thinkingOff || r.hiddenOutput
}

func (r *wireRequest) readThinkingType(v jsonValue) {
	r.thinkingOff = string(unquoted(v.text)) == "disabled"
	r.hiddenOutput = !r.thinkingOff || r.hiddenOutput
}

func (r *wireRequest) readReasoning(v jsonValue) { r.hiddenOutput = !v.isOff() || r.hiddenOutput }

// isClientTool reports whether a tool that Anthropic has defined, such as bash_20250124, is run by the client.
func isClientTool(kind []byte) bool {
	for _, name := range []string{"bash_", "text_editor_", "computer_", "memory_"} {
		if bytes.HasPrefix(kind, []byte(name)) {
			return true
		}
	}
	return false
}

// isNull reports whether the value is null, which counts as absent.
func (v jsonValue) isNull() bool { return v.text[0] == 'n' }

// isOff reports whether the value says that a feature is not wanted.
func (v jsonValue) isOff() bool {
	switch string(v.text) {
	case "null", "false", "[]", `"none"`, `"minimal"`:
		return true
	}
	return false
}

func (r *wireRequest) boolean(v jsonValue) bool {
	if c := v.text[0]; c != 't' && c != 'f' && c != 'n' {
		r.fail("%s must be true or false", v.path)
	}
	return v.text[0] == 't'
}

// number returns a number from 1 to most in plain digits, and 0 for null. It refuses 1e3 and 5.0.
func (r *wireRequest) number(v jsonValue, most int64) int64 {
	if v.isNull() {
		return 0
	}
	n, err := strconv.ParseInt(string(v.text), 10, 64)
	if err != nil || n < 1 || n > most {
		r.fail("%s must be a whole number from 1 to %d", v.path, most)
		return 0
	}
	return n
}

func (r *wireRequest) beginPart() { r.parts = append(r.parts, contentPart{}) }

// part returns the innermost content part that is being read.
func (r *wireRequest) part() *contentPart { return &r.parts[len(r.parts)-1] }

func (r *wireRequest) endPart(jsonValue) {
	if part := r.part(); part.isMedia {
		r.mediaParts++
		if !part.isText {
			r.mediaBytes += part.encoded
		}
	}
	r.parts = r.parts[:len(r.parts)-1]
}

func (r *wireRequest) readPartType(v jsonValue) {
	switch string(unquoted(v.text)) {
	case "image", "image_url", "input_audio", "audio_url", "video_url", "document", "file":
		r.part().isMedia = true
	}
}

func (r *wireRequest) readSourceType(v jsonValue) {
	if string(v.text) != `"base64"` {
		r.part().isText = true
	}
}

func (r *wireRequest) readData(v jsonValue) { r.part().encoded += base64Length(v.text, true) }

func (r *wireRequest) readDataURL(v jsonValue) { r.part().encoded += base64Length(v.text, false) }

// base64Length returns how many bytes of the JSON value raw are base64: all that a data URL has behind its comma or, if
// bare is true, the whole string. Anything else than base64 counts as text.
func base64Length(raw []byte, bare bool) int64 {
	if raw[0] != '"' {
		return 0
	}
	data := raw[1 : len(raw)-1]
	head, rest, isURL := bytes.Cut(data, []byte(";base64,"))
	if isURL {
		isMedia := func(prefix string) bool { return bytes.HasPrefix(head, []byte(prefix)) }
		if !slices.ContainsFunc(mediaURLs, isMedia) {
			return 0
		}
		data = rest
	} else if !bare {
		return 0
	}
	for i, c := range data {
		isSlash := c == '\\' && i+1 < len(data) && data[i+1] == '/' // some encoders escape it
		if !isBase64[c] && !isSlash {
			return 0
		}
	}
	return int64(len(data))
}

// mediaURLs are how data URLs of media begin. Those of text are not among them.
var mediaURLs = []string{"data:image", "data:audio", "data:video", "data:application", "data:;"}

// isBase64 has the bytes of both alphabets of base64 and of its padding (RFC 4648).
var isBase64 = byteSet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")

func byteSet(members string) (set [256]bool) {
	for _, c := range []byte(members) {
		set[c] = true
	}
	return set
}

// rewrite returns the body to forward: with model, unless that is "" or the body's own; with limit in the member
// limitMember, unless that is 0; and with include_usage, if it is a stream of OpenAI's format. The pieces share the
// body's memory. Whatever does not have to change stays byte for byte as it is.
func (r *wireRequest) rewrite(model, limitMember string, limit int64) [][]byte {
	var edits []edit
	var added []string // top-level members that the body does not have
	set := func(name, value string) {
		if at, exists := r.at[memberName{"", name}]; exists {
			edits = append(edits, edit{at, value})
		} else {
			added = append(added, jsonString(name)+":"+value)
		}
	}
	if model != "" && model != r.model {
		set("model", jsonString(model))
	}
	if limit > 0 {
		set(limitMember, strconv.FormatInt(limit, 10))
	}
	if r.format == openAIChat && r.stream && !r.includeUsage {
		options := r.at[memberName{"", "stream_options"}]
		if at, exists := r.at[memberName{"stream_options", "include_usage"}]; exists {
			edits = append(edits, edit{at, "true"})
		} else if options.to > 0 && r.body[options.from] == '{' {
			edits = append(edits, r.prepend(options.from, `"include_usage":true`))
		} else {
			set("stream_options", `{"include_usage":true}`)
		}
	}
	if len(added) > 0 {
		edits = append(edits, r.prepend(bytes.IndexByte(r.body, '{'), strings.Join(added, ",")))
	}
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	pieces, from := make([][]byte, 0, 2*len(edits)+1), 0
	for _, e := range edits {
		pieces = append(pieces, r.body[from:e.from], []byte(e.text))
		from = e.to
	}
	return append(pieces, r.body[from:])
}

// An edit puts text in the place of a span.
type edit struct {
	span
	text string
}

// prepend returns the edit that puts members before those of the object that starts at brace.
func (r *wireRequest) prepend(brace int, members string) edit {
	at := brace + 1
	if rest := bytes.TrimLeft(r.body[at:], " \t\r\n"); rest[0] != '}' {
		members += ","
	}
	return edit{span{at, at}, members}
}

func jsonString(s string) string {
	quoted, _ := json.Marshal(s) // every string can be encoded
	return string(quoted)
}

// heldInput returns the input tokens to hold for the request, at least one for bytesPerToken bytes of text, but no more
// than maxInput.
func (r *wireRequest) heldInput(bytesPerToken, mediaTokens, maxInput int64) int64 {
	tokens := r.inputTokens(bytesPerToken, mediaTokens)
	if r.hasTools {
		tokens += toolTokens
	}
	return min(tokens, maxInput)
}

// estimatedInput returns the input tokens to charge if the provider does not report them.
func (r *wireRequest) estimatedInput(mediaTokens int64) int64 { return r.inputTokens(4, mediaTokens) }

func (r *wireRequest) inputTokens(bytesPerToken, mediaTokens int64) int64 {
	text := (int64(len(r.body)) - r.mediaBytes + bytesPerToken - 1) / bytesPerToken
	if high, media := bits.Mul64(uint64(r.mediaParts), uint64(mediaTokens)); high == 0 && media < maxWireTokens {
		return text + int64(media)
	}
	return maxWireTokens
}

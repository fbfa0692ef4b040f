package llmwire

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

	"tollgate/internal/strict"
)

const (
	MaxTokens  = 1<<53 - 1 // no count, limit or cost is larger
	maxMembers = 256       // top-level members of a request
	maxChoices = 16        // n of a request
	toolTokens = 600       // held for the prompt that providers add if there are tools
)

// A Request is what the gateway reads of a request. Everything else in body is forwarded as it came.
type Request struct {
	Format Format
	body   []byte

	Model        string // "" if the request names none
	Stream       bool
	IncludeUsage bool  // the client itself asked for the chunk with its stream's usage
	N            int64 // choices, 1 to 16
	Limit        int64 // of output tokens for each choice, the larger if there are two; 0 if the request has no limit

	hasTools     bool
	ServerTool   string // the first tool or member that lets the provider read more than body; "" if it has no such tool
	HiddenOutput bool   // thinking or reasoning is asked for, so content does not show all that is generated

	mediaParts int64
	mediaBytes int64 // of their base64, as it is spelled in body

	shape       *jsonShape[Request]
	walker      jsonWalker[Request]
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

// ReadRequest reads a request's body, which it keeps and never changes. A member that is null counts as absent, as
// it does for providers. An error is a sentence for the client (400).
func ReadRequest(format Format, body []byte) (*Request, error) {
	if !utf8.Valid(body) {
		//lint:ignore ST1005 a sentence for the client
		return nil, errors.New("Body is not valid UTF-8")
	}
	r := &Request{Format: format, body: body, N: 1, shape: requestShapes[format], at: make(map[memberName]span)}
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

func (r *Request) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
		r.walker.stop()
	}
}

// requestShapes has what is read of a request in each format.
var requestShapes = map[Format]*jsonShape[Request]{
	OpenAIChat: newJSONShape(requestMembers, messageParts, jsonTable[Request]{
		"max_completion_tokens": {read: (*Request).readLimit},
		"tools[].type":          {read: (*Request).readToolType},
	}),
	AnthropicMessages: newJSONShape(requestMembers, messageParts, jsonTable[Request]{
		"max_completion_tokens": {}, // is not read, but must be spelled so
		"tools[].type":          {read: (*Request).readAnthropicToolType},
	}),
}

// requestMembers are the members that both formats have, or that a provider of one may understand in the other.
var requestMembers = jsonTable[Request]{
	"":                             {read: (*Request).readBody, each: (*Request).addMember},
	"model":                        {read: (*Request).readModel},
	"stream":                       {read: (*Request).readStream},
	"stream_options":               {read: (*Request).readStreamOptions, each: (*Request).addMember},
	"stream_options.include_usage": {read: (*Request).readIncludeUsage},
	"n":                            {read: (*Request).readChoices},
	"max_tokens":                   {read: (*Request).readLimit},

	"tools":              {read: (*Request).readTools},
	"tools[]":            {read: (*Request).readTool},
	"functions":          {read: (*Request).readTools},
	"functions[]":        {read: (*Request).readTool},
	"mcp_servers":        {read: (*Request).readServerTool},
	"web_search_options": {read: (*Request).readServerTool},
	"background":         {read: (*Request).readServerTool},

	"thinking":         {read: (*Request).readThinking},
	"thinking.type":    {read: (*Request).readThinkingType},
	"reasoning":        {read: (*Request).readReasoning},
	"reasoning_effort": {read: (*Request).readReasoning},
}

// messageParts are the content parts in messages, in results of tools and in documents. A message is read as a part.
var messageParts = jsonTable[Request]{
	"messages[]":                  {enter: (*Request).beginPart, read: (*Request).endPart},
	"messages[].content[]":        {same: "messages[]"},
	"messages[].source.content[]": {same: "messages[]"},

	"messages[].type":             {read: (*Request).readPartType},
	"messages[].source.type":      {read: (*Request).readSourceType},
	"messages[].source.data":      {read: (*Request).readData},
	"messages[].input_audio.data": {read: (*Request).readData},
	"messages[].file.file_data":   {read: (*Request).readData},
	"messages[].source.url":       {read: (*Request).readDataURL},
	"messages[].image_url":        {read: (*Request).readDataURL},
	"messages[].image_url.url":    {read: (*Request).readDataURL},
	"messages[].audio_url.url":    {read: (*Request).readDataURL},
	"messages[].video_url.url":    {read: (*Request).readDataURL},
}

// addMember notes where a member of the body or of stream_options is. It refuses what another parser could read as
// another value: a second member of that name, and a name that differs in case, which some servers ignore, from one of
// the table.
func (r *Request) addMember(object *jsonShape[Request], name []byte, v jsonValue) {
	member := memberName{object.path, string(name)}
	if _, exists := r.at[member]; exists {
		r.fail("%s is duplicated", strict.Shorten(member.String()))
	}
	r.at[member] = span{v.from, v.from + len(v.text)}
	if len(r.at) > maxMembers {
		r.fail("Body has more than %d members", maxMembers)
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

func (r *Request) readBody(v jsonValue) {
	if v.text[0] != '{' {
		r.fail("Body must be a JSON object")
	}
}

func (r *Request) readModel(v jsonValue) {
	if v.isNull() {
		return
	}
	r.Model = string(unquoted(v.text))
	if v.text[0] != '"' || r.Model == "" {
		r.fail("model must be a string that is not empty")
	} else if strings.ContainsRune(r.Model, utf8.RuneError) { // as halves of surrogate pairs become
		r.fail("model is not valid Unicode")
	}
}

func (r *Request) readStream(v jsonValue) { r.Stream = r.boolean(v) }

func (r *Request) readStreamOptions(v jsonValue) {
	if v.text[0] != '{' && !v.isNull() {
		r.fail("stream_options must be an object")
	}
}

func (r *Request) readIncludeUsage(v jsonValue) { r.IncludeUsage = r.boolean(v) }

func (r *Request) readChoices(v jsonValue) { r.N = max(1, r.number(v, maxChoices)) }

func (r *Request) readLimit(v jsonValue) { r.Limit = max(r.Limit, r.number(v, MaxTokens)) }

func (r *Request) readTools(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.fail("%s must be an array", v.path)
	}
}

func (r *Request) readTool(jsonValue) { r.hasTools = true }

func (r *Request) readToolType(v jsonValue) {
	switch kind := unquoted(v.text); string(kind) {
	case "function", "custom", "null":
	default:
		r.addServerTool(strict.Shorten(string(kind)))
	}
}

func (r *Request) readAnthropicToolType(v jsonValue) {
	if !isClientTool(unquoted(v.text)) {
		r.readToolType(v)
	}
}

// readServerTool reads a member that adds input that no hold can bound.
func (r *Request) readServerTool(v jsonValue) {
	if !v.isOff() {
		r.addServerTool(v.path)
	}
}

func (r *Request) addServerTool(name string) { r.ServerTool = cmp.Or(r.ServerTool, name) }

// readThinking and the following methods read what adds output that no stream shows.
func (r *Request) readThinking(v jsonValue) {
	r.HiddenOutput = !v.isOff() && !r.thinkingOff || r.HiddenOutput
}

func (r *Request) readThinkingType(v jsonValue) {
	r.thinkingOff = string(unquoted(v.text)) == "disabled"
	r.HiddenOutput = !r.thinkingOff || r.HiddenOutput
}

func (r *Request) readReasoning(v jsonValue) { r.HiddenOutput = !v.isOff() || r.HiddenOutput }

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

func (r *Request) boolean(v jsonValue) bool {
	if c := v.text[0]; c != 't' && c != 'f' && c != 'n' {
		r.fail("%s must be true or false", v.path)
	}
	return v.text[0] == 't'
}

// number returns a number from 1 to most in plain digits, and 0 for null. It refuses 1e3 and 5.0.
func (r *Request) number(v jsonValue, most int64) int64 {
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

func (r *Request) beginPart() { r.parts = append(r.parts, contentPart{}) }

// part returns the innermost content part that is being read.
func (r *Request) part() *contentPart { return &r.parts[len(r.parts)-1] }

func (r *Request) endPart(jsonValue) {
	if part := r.part(); part.isMedia {
		r.mediaParts++
		if !part.isText {
			r.mediaBytes += part.encoded
		}
	}
	r.parts = r.parts[:len(r.parts)-1]
}

func (r *Request) readPartType(v jsonValue) {
	switch string(unquoted(v.text)) {
	case "image", "image_url", "input_audio", "audio_url", "video_url", "document", "file":
		r.part().isMedia = true
	}
}

func (r *Request) readSourceType(v jsonValue) {
	if string(v.text) != `"base64"` {
		r.part().isText = true
	}
}

func (r *Request) readData(v jsonValue) { r.part().encoded += base64Length(v.text, true) }

func (r *Request) readDataURL(v jsonValue) { r.part().encoded += base64Length(v.text, false) }

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

// Rewrite returns the body to forward: with model, unless that is "" or the body's own; with limit in the member
// limitMember, unless that is 0; and with include_usage, if it is a stream of OpenAI's format. The pieces share the
// body's memory. Whatever does not have to change stays byte for byte as it is.
func (r *Request) Rewrite(model, limitMember string, limit int64) [][]byte {
	var edits []edit
	var added []string // top-level members that the body does not have
	set := func(name, value string) {
		if at, exists := r.at[memberName{"", name}]; exists {
			edits = append(edits, edit{at, value})
		} else {
			added = append(added, jsonString(name)+":"+value)
		}
	}
	if model != "" && model != r.Model {
		set("model", jsonString(model))
	}
	if limit > 0 {
		set(limitMember, strconv.FormatInt(limit, 10))
	}
	if r.Format == OpenAIChat && r.Stream && !r.IncludeUsage {
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
func (r *Request) prepend(brace int, members string) edit {
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

// HeldInput returns the input tokens to hold for the request, at least one for bytesPerToken bytes of text, but no more
// than maxInput.
func (r *Request) HeldInput(bytesPerToken, mediaTokens, maxInput int64) int64 {
	tokens := r.inputTokens(bytesPerToken, mediaTokens)
	if r.hasTools {
		tokens += toolTokens
	}
	return min(tokens, maxInput)
}

// EstimatedInput returns the input tokens to charge if the provider does not report them.
func (r *Request) EstimatedInput(mediaTokens int64) int64 { return r.inputTokens(4, mediaTokens) }

func (r *Request) inputTokens(bytesPerToken, mediaTokens int64) int64 {
	text := (int64(len(r.body)) - r.mediaBytes + bytesPerToken - 1) / bytesPerToken
	if high, media := bits.Mul64(uint64(r.mediaParts), uint64(mediaTokens)); high == 0 && media < MaxTokens {
		return text + int64(media)
	}
	return MaxTokens
}

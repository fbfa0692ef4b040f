package llmwire

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"tollgate/internal/strict"
)

// MaxTokens is the largest count, limit or cost. Larger ones are lowered to it.
const MaxTokens = strict.MaxInt

const (
	maxMembers = 256 // of the body and its stream_options together
	maxChoices = 16  // n of a request
	toolTokens = 600 // held for the prompt that providers add if there are tools
)

// A Request is what is read of a request's body. Everything else in the body is forwarded as it came.
type Request struct {
	Format Format // that the body was read by
	body   []byte

	Model        string // "" if the request names none
	Stream       bool   // the response is to be a stream
	IncludeUsage bool   // the request itself asks for the extra event with the usage of its stream
	N            int64  // choices, 1 to 16

	HasLimit bool
	Limit    int64 // of output tokens for each choice, the larger if there are two; 0 if HasLimit is false, too
	MinLimit int64 // the least limit that leaves room for the thinking that is asked for; 0 if none is

	// Unknown has the names of the top-level members that may raise the cost beyond what is read of the request: each
	// once, 16 at most, shortened. A member is also here for its value, as service_tier for "priority".
	Unknown []string

	// ServerTool is the first tool, content part or member that lets the provider add input of its own, which nobody can
	// bound, or that is not known. It is "" if the request has none.
	ServerTool    string
	CanDropTools  bool     // all of these stand in tools, and tool_choice names none of them
	AdvisorModels []string // other models that tools name, each once

	// HiddenOutput is true if the request asks for thinking or reasoning: the content then does not show all output.
	HiddenOutput bool
	ReasoningOff bool // the request says that nothing is generated that the content does not show
	MediaOutput  bool // the request asks for output that may be other than text

	CacheWrite CacheTime // the longest that a part of the prompt is to be kept in the provider's cache
	HasAudio   bool      // the input may have sound
	HasImages  bool      // the input may have images
	Twice      bool      // the provider may read the input, and generate output, twice

	hasTools    bool
	thinkingOff bool
	mediaParts  int64
	mediaBytes  int64         // of their base64, as it is spelled in the body
	parts       []contentPart // the part that is being read, after those around it

	walker jsonWalker[Request]
	at     map[memberName]span // of the top-level members and those of stream_options
	err    error               // the first that was found
}

// A CacheTime is how long a provider is to keep a part of a prompt, as far as it has a price of its own.
type CacheTime int

// The times.
const (
	NotCached CacheTime = iota
	CachedShort
	CachedHour
)

// A memberName is the name of a member of the object at a path, which is "" for the body.
type memberName struct{ object, name string }

// A span is where a value stands in a body.
type span struct{ from, to int }

// ReadRequest reads the body of a request. The Request keeps the body, so nobody may change it afterwards. A member
// that is null counts as absent, as it does for providers.
//
// The error is a sentence for the client (400 Bad Request). It means that the body is not valid JSON or UTF-8, is not
// an object, is nested more than 500 deep, has more than 256 members at its top level and in stream_options, has one of
// these twice, has one in another case than the member that is read, or has an invalid value in a member that is read.
func ReadRequest(format Format, body []byte) (*Request, error) {
	if !utf8.Valid(body) {
		//lint:ignore ST1005 a sentence for the client
		return nil, errors.New("Body is not valid UTF-8")
	}
	r := &Request{Format: format, body: body, N: 1, at: make(map[memberName]span)}
	err := r.walker.walk(body, formats[format].request, r)
	if r.err != nil {
		return nil, r.err
	}
	if err != nil {
		//lint:ignore ST1005 a sentence for the client
		return nil, fmt.Errorf("Body is %w", err)
	}
	return r, nil
}

// requestMembers are the members that are read in all formats of text: a provider may understand those of another
// format than its own.
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

// addMember notes where a member of the body or of stream_options stands. It refuses what another parser could read
// differently: a second member of the same name, and a name that differs only in case from one that is read, since some
// servers ignore case.
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
	switch {
	case m.object != "":
		return m.object + "." + m.name
	case m.name == "":
		return `""`
	}
	return m.name
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

func (r *Request) readLimit(v jsonValue) {
	r.Limit = max(r.Limit, r.number(v, MaxTokens))
	r.HasLimit = r.Limit > 0
}

func (r *Request) readTools(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.fail("%s must be an array", v.path)
	}
}

func (r *Request) readTool(jsonValue) { r.hasTools = true }

// readToolType reads the type of a tool. Any that is not known to run at the client counts as a server tool.
func (r *Request) readToolType(v jsonValue) {
	switch kind := unquoted(v.text); string(kind) {
	case "function", "custom", "null":
	default:
		r.addServerTool(strict.Shorten(string(kind)))
	}
}

// readServerTool reads a member that lets the provider add input which nobody can bound.
func (r *Request) readServerTool(v jsonValue) {
	if !v.isOff() {
		r.addServerTool(v.path)
	}
}

func (r *Request) addServerTool(name string) { r.ServerTool = cmp.Or(r.ServerTool, name) }

// readThinking, readThinkingType and readReasoning read what asks for output that is not in the content.
func (r *Request) readThinking(v jsonValue) {
	r.HiddenOutput = !v.isOff() && !r.thinkingOff || r.HiddenOutput
}

func (r *Request) readThinkingType(v jsonValue) {
	r.thinkingOff = string(unquoted(v.text)) == "disabled"
	r.HiddenOutput = !r.thinkingOff || r.HiddenOutput
}

func (r *Request) readReasoning(v jsonValue) { r.HiddenOutput = !v.isOff() || r.HiddenOutput }

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

// fail ends the reading with an error, unless there is one already.
func (r *Request) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
		r.walker.stop()
	}
}

// A Holding says how the input of a request is counted. No number may be negative.
type Holding struct {
	BytesPerToken int64 // bytes of text that are assumed to be a token; at 1, text never has more tokens; not 0
	MediaTokens   int64 // tokens of each image and sound
	FileTokens    int64 // most tokens of each document, file and video; 0 means MaxInput or, without that, 200,000
	MaxInput      int64 // the model's context window in tokens; 0 means that it is not known
}

// HeldInput returns the input tokens to hold for the request: one for each BytesPerToken bytes of its body without the
// base64 of media, those of the media and, if it has tools, 600; at most MaxInput.
func (r *Request) HeldInput(h Holding) int64 {
	tokens := r.inputTokens(h.BytesPerToken, h.MediaTokens)
	if r.hasTools {
		tokens += toolTokens
	}
	if h.MaxInput > 0 {
		tokens = min(tokens, h.MaxInput)
	}
	return tokens
}

// EstimatedInput returns the input tokens to charge if the provider does not report them: one for each 4 bytes of the
// body without the base64 of media, and media as they are held.
func (r *Request) EstimatedInput(h Holding) int64 { return r.inputTokens(4, h.MediaTokens) }

func (r *Request) inputTokens(bytesPerToken, mediaTokens int64) int64 {
	text := (int64(len(r.body)) - r.mediaBytes + bytesPerToken - 1) / bytesPerToken
	if high, media := bits.Mul64(uint64(r.mediaParts), uint64(mediaTokens)); high == 0 && media < MaxTokens {
		return text + int64(media)
	}
	return MaxTokens
}

// Changes are what is changed in a request's body before it is forwarded.
type Changes struct {
	Model       string // that is asked for; "" leaves the request's own
	LimitMember string // the member in which the limit is written; other limits are taken out; "" leaves all
	Limit       int64  // of output tokens; 0 leaves the request's own, if it has one

	DropTools          bool   // takes out the tools that the provider runs; Request.CanDropTools must be true
	LeaveStreamOptions bool   // does not ask for the usage of a stream
	SafetyID           string // by which the provider can tell users apart; "" leaves the request's own
}

// Rewrite returns the body to forward, in pieces that share the memory of the body that was read. If the format reports
// the usage of a stream only on request, a stream asks for it. Everything else that c does not name stays byte for byte
// as it came.
func (r *Request) Rewrite(c Changes) [][]byte {
	var edits []edit
	var added []string // top-level members that the body does not have
	set := func(name, value string) {
		if at, exists := r.at[memberName{"", name}]; exists {
			edits = append(edits, edit{at, value})
		} else {
			added = append(added, jsonString(name)+":"+value)
		}
	}
	if c.Model != "" && c.Model != r.Model {
		set("model", jsonString(c.Model))
	}
	if c.Limit > 0 {
		set(c.LimitMember, strconv.FormatInt(c.Limit, 10))
	}
	if formats[r.Format].usageOption && r.Stream && !r.IncludeUsage {
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

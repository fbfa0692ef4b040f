package llmwire

import (
	"cmp"
	"errors"
	"fmt"
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
)

// A Request is what is read of a request's body. Everything else in the body is forwarded as it came.
type Request struct {
	Format    Format // that the body was read by
	body      []byte
	forgotten int64 // bytes of the body that Forget has let go of

	Model        string // "" if the request names none
	Stream       bool   // the response is to be a stream
	IncludeUsage bool   // the request itself asks for the extra event with the usage of its stream
	N            int64  // choices, 1 to 16

	HasLimit bool
	Limit    int64 // of output tokens for each choice, the larger if there are two; 0 without one
	MinLimit int64 // the least limit that the provider accepts beside the thinking that is asked for; 0 without any

	// Unknown has the names of the top-level members that may raise the cost beyond what is read of the request: each
	// once, shortened. A member is also here for its value, as service_tier for "priority".
	Unknown []string

	// ServerTool is the first tool, content part or member that lets the provider add input of its own, which nobody can
	// bound, or that is not known. It is "" if the request has none.
	ServerTool    string
	CanDropTools  bool     // all of these stand in tools, and tool_choice names none of them
	AdvisorModels []string // other models that tools name, each once

	ReasoningOff bool // the request says that nothing is generated that the content does not show
	MediaOutput  bool // the request asks for output that may be other than text

	CacheWrite CacheTime // the longest that a part of the prompt is to be kept in the provider's cache
	HasAudio   bool      // the input may have sound
	HasImages  bool      // the input may have images
	Twice      bool      // the provider may read the input, and generate output, twice

	// Previous is the ID of the response that the request goes on from, and References are the IDs of other responses'
	// items that its input refers to, each once: all of them are kept by the provider. Stored says that the response is to
	// be kept, too.
	Previous   string
	References []string
	Stored     bool

	// KeptTokens are what the provider reads as input of what Previous and References name, at most MaxTokens. The caller
	// of ReadRequest sets it.
	KeptTokens int64

	Characters int64 // to speak: Unicode code points
	Seconds    int64 // of sound in the request, rounded up

	ResponseFormat string // of a transcript; "" if the request names none

	partials int64 // images that show each image before it is complete

	input inputSize
	tools toolReader
	parts []contentPart // the part that is being read, after those around it

	items    []inputItem     // the same, in a format whose input can refer to what the provider keeps
	referred map[string]bool // References

	asksHidden     bool // for thinking or reasoning
	isReasoningOff bool // by the type or effort in the thinking or reasoning that is being read
	includesUsage  bool // the member usage asks for what is there without it
	hasEditType    bool // the edit of the context that is being read has a type

	fields    []formField // of a form
	delimiter string      // between them, with the end of a line before it

	rules   *requestRules
	walker  jsonWalker[Request]
	at      map[memberName]span // of the top-level members and of those in them that may be replaced
	members int                 // at the top level
	err     error               // the first that was found
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

func (v jsonValue) span() span { return span{v.from, v.from + len(v.text)} }

// ReadRequest reads the body of a request. The Request keeps the body, so nobody may change it afterwards. A member
// that is null counts as absent, as it does for providers.
//
// The error is a sentence for the client (400 Bad Request). It means that the body is not valid JSON or UTF-8, is not
// an object, is nested more than 500 deep, has more than 256 members at its top level and in stream_options, has one of
// these twice, has one in another case than the member that is read, or has an invalid value in a member that is read.
// It is an UnsupportedError if the request has a member that no server can serve whose requests are charged one by one.
func ReadRequest(format Format, body []byte) (*Request, error) {
	if !utf8.Valid(body) {
		//lint:ignore ST1005 a sentence for the client
		return nil, errors.New("Body is not valid UTF-8")
	}
	r := newRequest(format, body)
	err := r.walker.walk(body, formats[format].request, r)
	if r.err != nil {
		return nil, r.err
	}
	if err != nil {
		//lint:ignore ST1005 a sentence for the client
		return nil, fmt.Errorf("Body is %w", err)
	}
	r.ReasoningOff = r.ReasoningOff && !r.asksHidden
	r.CanDropTools = r.tools.canDrop()
	if complete := formats[format].complete; complete != nil {
		complete(r)
	}
	return r, r.err
}

// Forget lets go of the body, and of all that is only needed to forward it: a long response would otherwise keep both
// in memory. What the request costs is still known. Rewrite and Fields must not be called any more.
func (r *Request) Forget() {
	r.forgotten += int64(len(r.body))
	r.body, r.at, r.fields, r.items, r.parts, r.referred = nil, nil, nil, nil, nil, nil
	r.tools.reading, r.tools.server, r.tools.chosen = nil, nil, nil
	r.walker = jsonWalker[Request]{}
}

// UsesState reports whether the request goes on from what the provider keeps.
func (r *Request) UsesState() bool { return r.Previous != "" || len(r.References) > 0 }

func newRequest(format Format, body []byte) *Request {
	rules := &formats[format].rules
	return &Request{
		Format: format, body: body, N: 1, Stored: rules.isStored, rules: rules, at: make(map[memberName]span),
	}
}

// requestMembers are the members that are read in all formats of text: a provider may understand those of another
// format than its own.
var requestMembers = joined(jsonTable[Request]{
	"":                             {read: (*Request).readBody, each: (*Request).addMember},
	"model":                        {read: (*Request).readModel},
	"stream":                       {read: (*Request).readStream},
	"stream_options":               {read: (*Request).readStreamOptions, each: (*Request).addMember},
	"stream_options.include_usage": {read: (*Request).readIncludeUsage},
	"n":                            {read: (*Request).readChoices},
	"max_tokens":                   {read: (*Request).readLimit},
	"max_completion_tokens":        {read: (*Request).readLimit},
	"max_output_tokens":            {read: (*Request).readLimit},

	"thread":               {read: (*Request).refuse},
	"previous_response_id": {read: (*Request).refuse},
	"conversation":         {read: (*Request).refuse},
	"background":           {read: (*Request).refuse},
	"container.skills":     {read: (*Request).readServerTool},
	"mcp_servers":          {read: (*Request).readServerTool},
	"service_tier":         {read: (*Request).readServiceTier},
	"speed":                {read: (*Request).readSpeed},
	"modalities":           {read: (*Request).readModalities},
	"modalities[]":         {read: (*Request).readModality},
	"cache_control":        {read: (*Request).readCacheControl, each: (*Request).checkMemberCase},
	"cache_control.ttl":    {read: (*Request).readCacheTTL},

	"prompt_cache_options":     {each: (*Request).checkMemberCase},
	"prompt_cache_options.ttl": {read: (*Request).readPromptTTL},

	"prompt_cache_options.comparison_response_id": {read: (*Request).readComparison},

	// What the model reads beside the messages.
	"documents":          {read: (*Request).readSchema},
	"guided_json":        {read: (*Request).readSchema},
	"json_schema":        {read: (*Request).readSchema},
	"output_config":      {read: (*Request).readSchema},
	"output_format":      {read: (*Request).readSchema},
	"response_format":    {read: (*Request).readSchema},
	"structured_outputs": {read: (*Request).readSchema},

	"thinking":               {read: (*Request).readReasoning, each: (*Request).checkMemberCase},
	"thinking.type":          {read: (*Request).readThinkingType},
	"thinking.budget_tokens": {read: (*Request).readThinkingBudget},
	"reasoning":              {read: (*Request).readReasoning, each: (*Request).checkMemberCase},
	"reasoning.effort":       {read: (*Request).readEffort},
	"reasoning.max_tokens":   {read: (*Request).readThinkingBudget},
	"reasoning_effort":       {read: (*Request).readReasoningEffort},
}, toolMembers, messageParts)

// addMember notes where a member of the body or of stream_options stands. It refuses what another parser could read
// differently: a second member of the same name, and a name that differs only in case from one that is read, since some
// servers ignore case.
func (r *Request) addMember(object *jsonShape[Request], name []byte, v jsonValue) {
	member := memberName{object.path, string(name)}
	if _, exists := r.at[member]; exists {
		r.fail("%s is duplicated", strict.Shorten(member.String()))
	}
	r.at[member] = v.span()
	if object.path == "" {
		r.members++
		r.checkMember(name, v)
	}
	if len(r.at) > maxMembers {
		r.fail("Body has more than %d members", maxMembers)
	}
	r.checkCase(object, name)
}

// checkMemberCase is checkCase for an object of which nothing else is to be checked.
func (r *Request) checkMemberCase(object *jsonShape[Request], name []byte, _ jsonValue) {
	r.checkCase(object, name)
}

// checkCase refuses the name of a member that differs only in case from one that is read. Those are in lower case.
func (r *Request) checkCase(object *jsonShape[Request], name []byte) {
	isLower := true
	for _, c := range name {
		isLower = isLower && c < utf8.RuneSelf && (c < 'A' || 'Z' < c)
	}
	if isLower {
		return
	}
	var room [maxFolded]byte
	if shape := object.members[string(appendFolded(room[:0], name))]; shape != nil {
		r.fail("%s must be spelled %s", memberName{object.path, string(name)}, shape.path)
	}
}

// maxFolded is more bytes than any name has that is read.
const maxFolded = 64

// appendFolded appends the first maxFolded letters of a name in lower case, and 0x80 for each that is not in ASCII. The
// letters ſ and K (U+212A) are s and k in another case.
func appendFolded(to, name []byte) []byte {
	for i := 0; i < len(name) && len(to) < maxFolded; {
		c, size := utf8.DecodeRune(name[i:])
		i += size
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == 'ſ':
			c = 's'
		case c == '\u212a':
			c = 'k'
		}
		to = append(to, byte(min(c, utf8.RuneSelf)))
	}
	return to
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

func (r *Request) readChoices(v jsonValue) { r.N = max(1, r.number(v, 1, maxChoices)) }

// readLimit reads a limit of output tokens. -1 means no limit, as it does for llama.cpp.
func (r *Request) readLimit(v jsonValue) {
	if v.isNull() || string(v.text) == "-1" {
		return
	}
	least := int64(1)
	if r.rules.mayLimitToZero && v.path == "max_tokens" {
		least = 0
	}
	r.Limit = max(r.Limit, r.number(v, least, MaxTokens))
	r.HasLimit = true
}

// refuse refuses a member that asks for what is kept at the provider or comes later, and so can be neither bounded nor
// charged.
func (r *Request) refuse(v jsonValue) {
	if v.isNull() || string(v.text) == "false" || r.err != nil {
		return
	}
	r.err = UnsupportedError{Member: v.path}
	r.walker.stop()
}

// An UnsupportedError is the error of ReadRequest for a request with a member whose cost nothing can bound.
type UnsupportedError struct{ Member string }

func (e UnsupportedError) Error() string {
	return e.Member + " is not supported: send the whole conversation, and wait for the response"
}

// Details returns the JSON that tells Anthropic's SDK what to do without, so that it sends the whole conversation.
func (e UnsupportedError) Details() string {
	const format = `{"error_code":"%s_unsupported_request","unsupported":["%[1]s"]}`
	return fmt.Sprintf(format, e.Member)
}

// readServerTool reads a member that lets the provider add input which nobody can bound.
func (r *Request) readServerTool(v jsonValue) {
	if !v.isOff() {
		r.addServerTool(v.path)
		r.tools.isElsewhere = true
	}
}

func (r *Request) addServerTool(name string) { r.ServerTool = cmp.Or(r.ServerTool, name) }

// readServiceTier reads the choice of a service. Those that are known cost no more than the default one.
func (r *Request) readServiceTier(v jsonValue) {
	switch string(unquoted(v.text)) {
	case "null", "auto", "default", "flex", "standard_only":
	default:
		r.addUnknown(v.path)
	}
}

func (r *Request) readSpeed(v jsonValue) {
	if !v.isNull() && string(unquoted(v.text)) != "standard" {
		r.addUnknown(v.path)
	}
}

func (r *Request) readModalities(v jsonValue) {
	if v.text[0] != '[' {
		r.readModality(v)
	}
}

func (r *Request) readModality(v jsonValue) {
	r.MediaOutput = r.MediaOutput || !v.isNull() && string(unquoted(v.text)) != "text"
}

// readCacheControl and readCacheTTL read how long a part of the prompt is to be kept. A time that is not known may be
// longer than that of five minutes.
func (r *Request) readCacheControl(v jsonValue) {
	if !v.isNull() {
		r.CacheWrite = max(r.CacheWrite, CachedShort)
	}
}

func (r *Request) readCacheTTL(v jsonValue) {
	if !v.isNull() && string(unquoted(v.text)) != "5m" {
		r.CacheWrite = CachedHour
	}
}

// readPromptTTL reads how long OpenAI is to keep a part of the prompt. It asks more for more than 30 minutes, and its
// usage does not tell the two apart.
func (r *Request) readPromptTTL(v jsonValue) {
	if !v.isNull() && string(unquoted(v.text)) != "30m" {
		r.addUnknown("prompt_cache_options")
	}
}

// readComparison reads the ID of a response that the provider keeps, which may be anybody's.
func (r *Request) readComparison(v jsonValue) {
	if !v.isNull() {
		r.addUnknown("prompt_cache_options")
	}
}

// readReasoning reads the end of thinking or reasoning, whose type or effort was read before.
func (r *Request) readReasoning(v jsonValue) {
	if !v.isOff() && !r.isReasoningOff {
		r.asksHidden = true
	}
	r.ReasoningOff = r.ReasoningOff || r.isReasoningOff
	r.isReasoningOff = false
}

// readThinkingType, readEffort and readReasoningEffort read what asks for output that is not in the content, or says
// that there is to be none.
func (r *Request) readThinkingType(v jsonValue) { r.readReasoningMode(v, "disabled") }

func (r *Request) readEffort(v jsonValue) { r.readReasoningMode(v, "none") }

func (r *Request) readReasoningEffort(v jsonValue) {
	r.readReasoningMode(v, "none")
	r.readReasoning(v)
}

func (r *Request) readReasoningMode(v jsonValue, off string) {
	r.isReasoningOff = string(unquoted(v.text)) == off
	r.asksHidden = r.asksHidden || !r.isReasoningOff && !v.isNull()
}

// readThinkingBudget reads how many tokens may be used for thinking: a limit must be larger. Any other
// value is left to the provider to refuse.
func (r *Request) readThinkingBudget(v jsonValue) {
	if n, err := strconv.ParseInt(string(v.text), 10, 64); err == nil && n > 0 {
		r.MinLimit = max(r.MinLimit, min(n, MaxTokens-1)+1)
	}
}

// readArray refuses any value but an array or null: nothing in it would be read.
func (r *Request) readArray(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.fail("%s must be an array", v.path)
	}
}

func (r *Request) boolean(v jsonValue) bool {
	if c := v.text[0]; c != 't' && c != 'f' && c != 'n' {
		r.fail("%s must be true or false", v.path)
	}
	return v.text[0] == 't'
}

// number returns a number in plain digits, and 0 for null. It refuses 1e3 and 5.0.
func (r *Request) number(v jsonValue, least, most int64) int64 {
	if v.isNull() {
		return 0
	}
	n, err := strconv.ParseInt(string(v.text), 10, 64)
	if err != nil || n < least || n > most || v.text[0] == '-' {
		r.fail("%s must be a whole number from %d to %d", v.path, least, most)
		return 0
	}
	return n
}

// fail ends the reading with an error, unless there is one already.
func (r *Request) fail(format string, args ...any) {
	if r.err != nil {
		return
	}
	r.err = fmt.Errorf(format, args...)
	if name := r.rules.messages; name != "" {
		r.err = errors.New(strings.ReplaceAll(r.err.Error(), "messages[]", name))
	}
	r.walker.stop()
}

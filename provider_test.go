package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// The stand-in provider: a real HTTP server that speaks OpenAI Chat and Anthropic Messages, and misbehaves if told to.

const (
	// providerKey is the credential that the provider accepts. It also takes requests without any, as a local model
	// server does.
	providerKey = "sk-provider-0123456789abcdef"

	// The usage that is reported unless a conduct has another.
	providerInput, providerOutput = 11, 7

	providerEvents = 3 // events with content in a stream
)

// moment is a point in the life of a response.
type moment int

const (
	never         moment = iota
	beforeHeaders        // the request was read
	beforeContent        // headers are sent; of a stream also the event that begins it
	inContent            // half of the content is sent; of JSON, half of the bytes
	beforeUsage          // of a stream: the finish reason is sent
	beforeEnd            // of a stream: the usage is sent; not [DONE] or message_stop
)

// mishap is what goes wrong at a moment.
type mishap int

const (
	abort     mishap = iota // the connection is cut
	hang                    // nothing more comes until the caller is gone
	sendError               // an error event comes, and the stream ends
	endEarly                // the response ends as if it were complete
)

// conduct is how the provider responds to a request. The zero value is a provider that works.
type conduct struct {
	status int      // 0 is 200
	header []string // "Name: value"
	body   string   // sent instead of what the format says
	delay  time.Duration

	input, output int64 // usage; 0 is the default, and output is at most what the request allows
	noUsage       bool
	content       string // of one event of a stream, or a response's text; the default has 10 bytes: "word ünd "
	events        int    // with content in a stream; 0 is providerEvents
	reasoning     string // is sent before the content, in an event of its own

	at   moment
	then mishap

	pause   time.Duration // before each event of a stream
	piece   int           // bytes of a stream that are sent at a time; 0 is an event
	lineEnd string        // of a stream; "" is "\n"
	prefix  string        // of a data line; "" is "data: "
}

// providerError returns the conduct of a provider that refuses, with a body in the shape of the request's format.
func providerError(status int, header ...string) conduct {
	return conduct{status: status, header: header}
}

const (
	insufficientQuota = `{"error":{"message":"You exceeded your current quota, please check your plan and billing details.",` +
		`"type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
	emptyCredit = `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to ` +
		`access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."},"request_id":"req_1"}`
)

// received is a request as the provider got it.
type received struct {
	method, path, query string
	header              http.Header
	body                []byte
	model               string
	stream              bool
}

// provider is the stand-in. Its fields are set before the first request.
type provider struct {
	url string // http://127.0.0.1:port

	server *httptest.Server
	closed chan struct{}

	mu        sync.Mutex
	conducts  map[string]conduct
	choose    func(received) conduct
	got       []received
	open      int       // requests that are being served
	cancelled int       // requests whose caller left before the response was complete
	leftAt    time.Time // when the last of them did
}

// newProvider starts a provider that works, until the test ends.
func newProvider(t testing.TB) *provider {
	t.Helper()
	p := &provider{closed: make(chan struct{}), conducts: make(map[string]conduct)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", p.serve)
	mux.HandleFunc("POST /v1/messages", p.serve)
	mux.HandleFunc("POST /v1/messages/count_tokens", p.serve)
	mux.HandleFunc("/", p.serve) // records what should not come
	p.server = httptest.NewServer(mux)
	p.url = p.server.URL
	t.Cleanup(p.stop)
	return p
}

// stop ends the provider: connections to it are refused from now on.
func (p *provider) stop() {
	select {
	case <-p.closed:
		return
	default:
	}
	close(p.closed)
	p.server.CloseClientConnections()
	p.server.Close()
}

// on sets how requests for model are responded to; "" is every model without a conduct of its own.
func (p *provider) on(model string, c conduct) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conducts[model] = c
}

// each has choose decide about every request.
func (p *provider) each(choose func(received) conduct) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose = choose
}

// requests returns the requests so far, oldest first.
func (p *provider) requests() []received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// last returns the newest request.
func (p *provider) last(t testing.TB) received {
	t.Helper()
	got := p.requests()
	if len(got) == 0 {
		t.Fatal("no request came to the provider")
	}
	return got[len(got)-1]
}

// counts returns how many requests are being served, and of how many the caller left before the end.
func (p *provider) counts() (open, cancelled int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open, p.cancelled
}

// member returns a top-level member of the request's body as it was written, or "" if it is missing.
func (r received) member(t testing.TB, name string) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(r.body, &members); err != nil {
		t.Fatalf("the provider got %q: %v", r.body, err)
	}
	return string(members[name])
}

// providerRequest is what the provider reads of a body, in either format.
type providerRequest struct {
	Model         string
	Stream        bool
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	N                   int
	MaxTokens           int64           `json:"max_tokens"`
	MaxCompletionTokens int64           `json:"max_completion_tokens"`
	Tools               json.RawMessage `json:"tools"`
	Messages            []struct {
		Role    string
		Content json.RawMessage
	}
}

// serve records a request and responds to it.
func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var request providerRequest
	isJSON := json.Unmarshal(body, &request) == nil
	got := received{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), body, request.Model, request.Stream}
	c := p.begin(got)
	complete := false
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
		if !complete && r.Context().Err() != nil {
			p.cancelled++
			p.leftAt = time.Now()
		}
	}()
	a := &providerAnswer{conduct: c, request: request, w: w, r: r, closed: p.closed, isMessages: strings.Contains(r.URL.Path, "/messages")}
	a.setHeaders()
	switch {
	case !a.isAuthorized():
		a.fail(http.StatusUnauthorized, "Incorrect API key provided: "+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	case r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/v1/"):
		a.fail(http.StatusNotFound, "Unknown request URL")
	case !isJSON:
		a.fail(http.StatusBadRequest, "We could not parse the JSON body of your request.")
	case request.StreamOptions != nil && !request.Stream:
		a.fail(http.StatusBadRequest, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	default:
		a.respond()
	}
	complete = r.Context().Err() == nil
}

// begin notes a request and returns how to respond to it.
func (p *provider) begin(got received) conduct {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, got)
	p.open++
	if p.choose != nil {
		return p.choose(got)
	}
	if c, ok := p.conducts[got.model]; ok {
		return c
	}
	return p.conducts[""]
}

// providerAnswer is the response to one request.
type providerAnswer struct {
	conduct
	request    providerRequest
	w          http.ResponseWriter
	r          *http.Request
	closed     <-chan struct{}
	isMessages bool // Anthropic's format, not OpenAI's
}

func (a *providerAnswer) isAuthorized() bool {
	if a.isMessages {
		key := a.r.Header.Get("X-Api-Key")
		return a.r.Header.Get("Authorization") == "" && (key == "" || key == providerKey)
	}
	key := a.r.Header.Get("Authorization")
	return a.r.Header.Get("X-Api-Key") == "" && (key == "" || key == "Bearer "+providerKey)
}

// setHeaders sets the headers that real providers send, many of which are not for a client of the gateway.
func (a *providerAnswer) setHeaders() {
	h := a.w.Header()
	h.Set("Content-Type", "application/json")
	if a.isMessages {
		h.Set("request-id", "req_provider")
		h.Set("anthropic-organization-id", "org-of-the-operator")
		h.Set("anthropic-ratelimit-tokens-remaining", "39999")
	} else {
		h.Set("x-request-id", "req_provider")
		h.Set("openai-organization", "org-of-the-operator")
		h.Set("openai-processing-ms", "42")
		h.Set("openai-version", "2020-10-01")
		h.Set("x-ratelimit-remaining-requests", "9999")
	}
	h.Set("Set-Cookie", "__cf_bm=1; path=/")
	h.Set("Alt-Svc", `h3=":443"`)
	a.setOwnHeaders()
}

func (a *providerAnswer) respond() {
	if !a.sleep(a.delay) || a.happens(beforeHeaders) {
		return
	}
	switch {
	case a.status >= 300 && a.body == "":
		a.fail(a.status, "The provider refuses.")
	case a.body != "":
		a.w.WriteHeader(cmp.Or(a.status, http.StatusOK))
		a.send([]byte(a.body))
	case strings.HasSuffix(a.r.URL.Path, "/count_tokens"):
		a.send(fmt.Appendf(nil, `{"input_tokens":%d}`, a.usedInput()))
	case a.request.Stream:
		a.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		a.setOwnHeaders()
		a.w.WriteHeader(http.StatusOK)
		a.flush()
		a.stream()
	default:
		a.json()
	}
}

// setOwnHeaders sets the headers of the conduct.
func (a *providerAnswer) setOwnHeaders() {
	for _, line := range a.header {
		name, value, _ := strings.Cut(line, ": ")
		a.w.Header().Set(name, value)
	}
}

// providerErrorTypes are the types of errors by status, in both formats.
var providerErrorTypes = map[int]struct{ openAI, anthropic string }{
	400: {"invalid_request_error", "invalid_request_error"},
	401: {"invalid_request_error", "authentication_error"},
	402: {"billing_error", "billing_error"},
	403: {"invalid_request_error", "permission_error"},
	404: {"invalid_request_error", "not_found_error"},
	413: {"invalid_request_error", "request_too_large"},
	429: {"requests", "rate_limit_error"},
	503: {"server_error", "api_error"},
	529: {"server_error", "overloaded_error"},
}

func (a *providerAnswer) fail(status int, message string) {
	a.w.WriteHeader(status)
	a.send(a.errorBody(status, message))
}

func (a *providerAnswer) errorBody(status int, message string) []byte {
	kinds, ok := providerErrorTypes[status]
	if !ok {
		kinds.openAI, kinds.anthropic = "server_error", "api_error"
	}
	if a.isMessages {
		return fmt.Appendf(nil, `{"type":"error","error":{"type":%q,"message":%q},"request_id":"req_provider"}`, kinds.anthropic, message)
	}
	return fmt.Appendf(nil, `{"error":{"message":%q,"type":%q,"param":null,"code":null}}`, message, kinds.openAI)
}

// usedInput and usedOutput return the usage that is reported.
func (a *providerAnswer) usedInput() int64 { return cmp.Or(a.input, providerInput) }

func (a *providerAnswer) usedOutput() (tokens int64, cutOff bool) {
	tokens = cmp.Or(a.output, providerOutput)
	if limit := max(a.request.MaxTokens, a.request.MaxCompletionTokens) * int64(a.choices()); limit > 0 && limit < tokens {
		return limit, true
	}
	return tokens, false
}

func (a *providerAnswer) choices() int { return max(a.request.N, 1) }

func (a *providerAnswer) text() string { return cmp.Or(a.content, "word ünd ") }

// tool returns the name of the tool that is called: the first, unless the request has the result of a call.
func (a *providerAnswer) tool() string {
	var tools []struct {
		Name     string
		Function struct{ Name string }
	}
	_ = json.Unmarshal(a.request.Tools, &tools)
	last := len(a.request.Messages) - 1
	if len(tools) == 0 || last >= 0 && (a.request.Messages[last].Role == "tool" ||
		bytes.Contains(a.request.Messages[last].Content, []byte(`"tool_result"`))) {
		return ""
	}
	return cmp.Or(tools[0].Name, tools[0].Function.Name)
}

const toolArguments = `{"city":"Zürich"}`

// reason returns why the response ends, in the words of the request's format.
func (a *providerAnswer) reason() string {
	_, cutOff := a.usedOutput()
	names := [2]string{"stop", "end_turn"}
	switch {
	case cutOff:
		names = [2]string{"length", "max_tokens"}
	case a.tool() != "":
		names = [2]string{"tool_calls", "tool_use"}
	}
	if a.isMessages {
		return names[1]
	}
	return names[0]
}

// usage returns the usage as the format has it: OpenAI's includes cached tokens, Anthropic's does not.
func (a *providerAnswer) usage() string {
	input := a.usedInput()
	output, _ := a.usedOutput()
	if a.isMessages {
		return fmt.Sprintf(`{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}`,
			input-input/4-input/3, input/4, input/3, output)
	}
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}`,
		input, output, input+output, input/2)
}

// json sends a response that is not a stream. It is cut short if something goes wrong after its headers.
func (a *providerAnswer) json() {
	body := a.chatBody()
	if a.isMessages {
		body = a.messageBody()
	}
	sent := len(body)
	switch a.at {
	case beforeContent:
		sent = 0
	case inContent:
		sent /= 2
	}
	announced := len(body)
	if sent < len(body) && a.then == endEarly {
		announced = sent
	}
	a.w.Header().Set("Content-Length", strconv.Itoa(announced))
	a.send([]byte(body[:sent]))
	if sent < len(body) {
		a.flush()
		a.happens(a.at)
	}
}

func (a *providerAnswer) chatBody() string {
	choices := make([]string, a.choices())
	for i := range choices {
		message := fmt.Sprintf(`{"role":"assistant","content":%s}`, quoted(a.text()))
		if tool := a.tool(); tool != "" {
			message = `{"role":"assistant","content":null,"tool_calls":[` + toolCall(tool) + `]}`
		}
		choices[i] = fmt.Sprintf(`{"index":%d,"message":%s,"logprobs":null,"finish_reason":%q}`, i, message, a.reason())
	}
	usage := ""
	if !a.noUsage {
		usage = `,"usage":` + a.usage()
	}
	return fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion","created":1764000000,"model":%s,"choices":[%s]%s}`,
		quoted(a.request.Model), strings.Join(choices, ","), usage)
}

func toolCall(name string) string {
	return fmt.Sprintf(`{"id":"call_1","type":"function","function":{"name":%s,"arguments":%s}}`, quoted(name), quoted(toolArguments))
}

func (a *providerAnswer) messageBody() string {
	content := fmt.Sprintf(`{"type":"text","text":%s}`, quoted(a.text()))
	if tool := a.tool(); tool != "" {
		content = fmt.Sprintf(`{"type":"tool_use","id":"toolu_1","name":%s,"input":%s}`, quoted(tool), toolArguments)
	}
	usage := ""
	if !a.noUsage {
		usage = `,"usage":` + a.usage()
	}
	return fmt.Sprintf(`{"id":"msg_1","type":"message","role":"assistant","model":%s,"content":[%s],"stop_reason":%q,`+
		`"stop_sequence":null%s}`, quoted(a.request.Model), content, a.reason(), usage)
}

// quoted returns s as a JSON string, with its non-ASCII characters as they are.
func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// providerEvent is an event of a stream and the moment after which it comes.
type providerEvent struct {
	after      moment
	name, data string // name is "" for OpenAI
}

// stream sends the events one by one.
func (a *providerAnswer) stream() {
	events := a.chatEvents()
	if a.isMessages {
		events = a.messageEvents()
	}
	reached := never
	for _, e := range events {
		for reached < e.after {
			if reached++; a.happens(reached) {
				return
			}
		}
		if !a.sleep(a.pause) {
			return
		}
		a.event(e.name, e.data)
	}
}

func (a *providerAnswer) event(name, data string) {
	end := cmp.Or(a.lineEnd, "\n")
	text := cmp.Or(a.prefix, "data: ") + data + end + end
	if name != "" {
		text = "event: " + name + end + text
	}
	a.send([]byte(text))
	a.flush()
}

// contents returns the moment of each event with content: those of the second half come after inContent.
func (a *providerAnswer) contents() []moment {
	moments := make([]moment, cmp.Or(a.events, providerEvents))
	for i := range moments {
		moments[i] = beforeContent
		if i > 0 && i >= len(moments)/2 {
			moments[i] = inContent
		}
	}
	return moments
}

func (a *providerAnswer) chatEvents() (events []providerEvent) {
	null := ""
	if options := a.request.StreamOptions; options != nil && options.IncludeUsage && !a.noUsage {
		null = `,"usage":null`
	}
	head := `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":` + quoted(a.request.Model)
	add := func(after moment, index int, delta, reason string) {
		events = append(events, providerEvent{after, "", fmt.Sprintf(
			`%s,"choices":[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]%s}`, head, index, delta, reason, null)})
	}
	for i := range a.choices() {
		add(never, i, `{"role":"assistant","content":""}`, "null")
	}
	if a.reasoning != "" {
		add(beforeContent, 0, `{"reasoning_content":`+quoted(a.reasoning)+`}`, "null")
	}
	tool := a.tool()
	for n, after := range a.contents() {
		for i := range a.choices() {
			switch {
			case tool == "":
				add(after, i, `{"content":`+quoted(a.text())+`}`, "null")
			case n == 0:
				call := strings.Replace(toolCall(tool), quoted(toolArguments), `""`, 1)
				add(after, i, `{"tool_calls":[{"index":0,`+strings.TrimPrefix(call, "{")+`]}`, "null")
			case n == 1:
				add(after, i, `{"tool_calls":[{"index":0,"function":{"arguments":`+quoted(toolArguments)+`}}]}`, "null")
			}
		}
	}
	for i := range a.choices() {
		add(inContent, i, `{}`, strconv.Quote(a.reason()))
	}
	if null != "" {
		events = append(events, providerEvent{beforeUsage, "", head + `,"choices":[],"usage":` + a.usage() + `}`})
	}
	return append(events, providerEvent{beforeEnd, "", "[DONE]"})
}

func (a *providerAnswer) messageEvents() (events []providerEvent) {
	add := func(after moment, name, members string) {
		events = append(events, providerEvent{after, name, fmt.Sprintf(`{"type":%q%s}`, name, members)})
	}
	startUsage, endUsage := "", ""
	if !a.noUsage {
		output, _ := a.usedOutput()
		startUsage = `,"usage":` + strings.Replace(a.usage(), fmt.Sprintf(`"output_tokens":%d`, output), `"output_tokens":1`, 1)
		endUsage = fmt.Sprintf(`,"usage":{"output_tokens":%d}`, output)
	}
	add(never, "message_start", fmt.Sprintf(`,"message":{"id":"msg_1","type":"message","role":"assistant","model":%s,"content":[],`+
		`"stop_reason":null,"stop_sequence":null%s}`, quoted(a.request.Model), startUsage))
	add(beforeContent, "ping", "")
	index := 0
	block := func(start string) {
		add(beforeContent, "content_block_start", fmt.Sprintf(`,"index":%d,"content_block":%s`, index, start))
	}
	delta := func(after moment, kind, member, value string) {
		add(after, "content_block_delta", fmt.Sprintf(`,"index":%d,"delta":{"type":%q,%q:%s}`, index, kind, member, quoted(value)))
	}
	if a.reasoning != "" {
		block(`{"type":"thinking","thinking":"","signature":""}`)
		delta(beforeContent, "thinking_delta", "thinking", a.reasoning)
		add(beforeContent, "content_block_stop", `,"index":0`)
		index++
	}
	if tool := a.tool(); tool != "" {
		block(fmt.Sprintf(`{"type":"tool_use","id":"toolu_1","name":%s,"input":{}}`, quoted(tool)))
		half := len(toolArguments) / 2
		delta(beforeContent, "input_json_delta", "partial_json", toolArguments[:half])
		delta(inContent, "input_json_delta", "partial_json", toolArguments[half:])
	} else {
		block(`{"type":"text","text":""}`)
		for _, after := range a.contents() {
			delta(after, "text_delta", "text", a.text())
		}
	}
	add(inContent, "content_block_stop", fmt.Sprintf(`,"index":%d`, index))
	// The reason and the usage come in one event.
	add(beforeUsage, "message_delta", fmt.Sprintf(`,"delta":{"stop_reason":%q,"stop_sequence":null}%s`, a.reason(), endUsage))
	add(beforeEnd, "message_stop", "")
	return events
}

// happens does what goes wrong at the moment m, if anything does, and reports whether the response is over.
func (a *providerAnswer) happens(m moment) bool {
	if a.at != m {
		return false
	}
	switch a.then {
	case hang:
		a.sleep(time.Hour)
	case sendError:
		name := ""
		if a.isMessages {
			name = "error"
		}
		a.event(name, string(a.errorBody(http.StatusServiceUnavailable, "The provider gives up.")))
	case endEarly:
	case abort:
		panic(http.ErrAbortHandler)
	}
	return true
}

// sleep waits for d and reports whether the caller is still there.
func (a *providerAnswer) sleep(d time.Duration) bool {
	if d == 0 {
		return a.r.Context().Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-a.r.Context().Done():
	case <-a.closed:
	}
	return false
}

// send writes text, in pieces if that is asked for.
func (a *providerAnswer) send(text []byte) {
	for a.piece > 0 && len(text) > a.piece {
		_, _ = a.w.Write(text[:a.piece])
		a.flush()
		text = text[a.piece:]
	}
	_, _ = a.w.Write(text)
}

func (a *providerAnswer) flush() { _ = http.NewResponseController(a.w).Flush() }

// The provider speaks both formats, and each mishap comes at its moment.
func TestProvider(t *testing.T) {
	p := newProvider(t)
	s := &service{url: p.url}
	const chat, messages = "/v1/chat/completions", "/v1/messages"
	p.on("cut", conduct{at: inContent})
	p.on("error", conduct{at: inContent, then: sendError})
	p.on("early", conduct{at: beforeUsage, then: endEarly})
	p.on("busy", providerError(429, "Retry-After: 7"))
	p.on("small", conduct{output: 50, piece: 1, lineEnd: "\r"})
	for _, test := range []struct {
		path, members string
		status        int
		has, hasNot   string
		isCut         bool
	}{
		{chat, ``, 200, `"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,`, "", false},
		{chat, `,"n":2,"max_tokens":3`, 200, `"completion_tokens":6,`, `"finish_reason":"stop"`, false},
		{chat, `,"stream":true`, 200, "\n\ndata: [DONE]\n\n", `"usage"`, false},
		{chat, `,"stream":true,"stream_options":{"include_usage":true}`, 200, `"choices":[],"usage":{"prompt_tokens":11,`, "", false},
		{chat, `,"stream_options":{"include_usage":true}`, 400, `only allowed when 'stream'`, "", false},
		{chat, `,"tools":[{"type":"function","function":{"name":"weather"}}]`, 200, `"name":"weather","arguments":"{\"city\"`, "", false},
		{chat, `,"tools":[{"type":"function","function":{"name":"weather"}}],"stream":true`, 200, `"finish_reason":"tool_calls"`, "", false},
		{messages, ``, 200, `"input_tokens":6,"cache_creation_input_tokens":2,"cache_read_input_tokens":3,"output_tokens":7}`, "", false},
		{messages, `,"stream":true`, 200, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", "error", false},
		{messages, `,"tools":[{"name":"weather"}]`, 200, `"stop_reason":"tool_use"`, "", false},
		{messages + "/count_tokens", ``, 200, `{"input_tokens":11}`, "", false},
		{chat, `,"model":"cut","stream":true`, 200, `"content":"word`, "[DONE]", true},
		{chat, `,"model":"cut"`, 200, `"chatcmpl-1"`, "usage", true},
		{messages, `,"model":"error","stream":true`, 200, "event: error\n", "message_stop", false},
		{messages, `,"model":"early","stream":true`, 200, "content_block_stop", "message_delta", false},
		{messages, `,"model":"busy"`, 429, `"type":"rate_limit_error"`, "", false},
		{messages, `,"model":"small","stream":true,"max_tokens":20`, 200, `{"output_tokens":20}}` + "\r\r", "\n", false},
	} {
		got, err := s.send("POST", test.path, `{"messages":[]`+test.members+`}`)
		if got.status != test.status || !strings.Contains(got.body, test.has) ||
			test.hasNot != "" && strings.Contains(got.body, test.hasNot) || (err != nil) != test.isCut {
			t.Errorf("%s %s: %v, %d %s\nwant %d, %s", test.path, test.members, err, got.status, got.body, test.status, test.has)
		}
	}
	if got := p.last(t); got.path != messages || got.model != "small" || got.member(t, "max_tokens") != "20" || !got.stream {
		t.Errorf("the last request is %+v", got)
	}
	s.do(t, "POST", chat, "{}", bearer("of a client")).wantHeader(t, "Content-Type", "application/json")
	p.on("", conduct{at: beforeUsage, then: hang})
	c := s.dial(t)
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"+`{"stream":true}`, chat)
	redistest.Eventually(t, 10*time.Second, func() error {
		if open, cancelled := p.counts(); open != 1 || cancelled != 0 {
			return fmt.Errorf("%d requests are open, %d were cancelled", open, cancelled)
		}
		return nil
	})
	c.Close()
	redistest.Eventually(t, 10*time.Second, func() error {
		if open, cancelled := p.counts(); open != 0 || cancelled != 1 {
			return fmt.Errorf("%d requests are open, %d were cancelled", open, cancelled)
		}
		return nil
	})
}

// A small request, which tollgate rewrites, comes to the provider in one piece with its header.
func TestProviderGetsOnePiece(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		piece := make([]byte, 64<<10)
		n, _ := c.Read(piece)
		got <- string(piece[:n])
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	}()
	p := &provider{url: "http://" + l.Addr().String()}
	g := newService(t).gatewayTest(t, p, textConfig(10_000, endpointJSON(p, "chat", chatPath, "")))
	if err := g.call(t, chatPath, `{"messages":[],"max_tokens":5}`).is(200); err != nil {
		t.Error(err)
	}
	piece := <-got
	if _, body, _ := strings.Cut(piece, "\r\n\r\n"); !json.Valid([]byte(body)) || !strings.Contains(body, `"model":"m"`) {
		t.Errorf("the first piece is %q", piece)
	}
}

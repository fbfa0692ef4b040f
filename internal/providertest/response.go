package providertest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// requestBody is what the provider reads of a body, in any format. The form of a recording has Model and Stream.
type requestBody struct {
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

// response is the response to one request.
type response struct {
	conduct    Conduct
	request    requestBody
	content    []byte // the body as it came
	w          http.ResponseWriter
	r          *http.Request
	closed     <-chan struct{}
	stored     *storedResponses
	isMessages bool  // Anthropic's format, not OpenAI's
	carried    int64 // tokens of the input that are not in the body
}

// isMessages reports whether a request is in Anthropic's format, not OpenAI's.
func isMessages(r *http.Request) bool {
	isList := strings.HasSuffix(r.URL.Path, "/models") && r.Header.Get("Anthropic-Version") != ""
	return isList || strings.Contains(r.URL.Path, "/messages")
}

// isAuthorized reports whether the request has the key, or none, in the header of its format or in Azure's, and no
// other credential.
func (a *response) isAuthorized() bool {
	credentials := make(map[string]string)
	for _, name := range []string{"Authorization", "X-Api-Key", "Api-Key"} {
		if value := a.r.Header.Get(name); value != "" {
			credentials[name] = value
		}
	}
	own := credentials["Authorization"] == "Bearer "+Key
	if a.isMessages {
		own = credentials["X-Api-Key"] == Key
	}
	return len(credentials) == 0 || len(credentials) == 1 && (own || credentials["Api-Key"] == Key)
}

// setHeaders sets the headers that real providers send, many of which are not for a client of the gateway.
func (a *response) setHeaders() {
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

// setOwnHeaders sets the headers of the conduct.
func (a *response) setOwnHeaders() {
	for _, line := range a.conduct.Header {
		name, value, _ := strings.Cut(line, ": ")
		a.w.Header().Set(name, value)
	}
}

// respond responds to a request that the provider accepts.
func (a *response) respond() {
	if !a.sleep(a.conduct.Delay) || a.happens(BeforeHeaders) {
		return
	}
	switch {
	case a.conduct.Status >= 300 && a.conduct.Body == "":
		a.fail(a.conduct.Status, "The provider refuses.")
	case a.conduct.Body != "":
		a.w.WriteHeader(cmp.Or(a.conduct.Status, http.StatusOK))
		a.send([]byte(a.conduct.Body))
	default:
		formatOf(a.r).respond(a)
	}
}

// respondChat responds in the format OpenAI Chat.
func (a *response) respondChat() {
	if a.request.Stream {
		a.stream(a.chatEvents())
		return
	}
	a.whole(text(a.chatBody()))
}

// respondMessages responds in the format Anthropic Messages.
func (a *response) respondMessages() {
	if a.request.Stream {
		a.stream(a.messageEvents())
		return
	}
	a.whole(text(a.messageBody()))
}

// countMessages says how many tokens a request in the format Anthropic Messages has.
func (a *response) countMessages() {
	a.send(fmt.Appendf(nil, `{"input_tokens":%d}`, a.input()))
}

// refuse responds with an error of OpenAI's that names the member of the request that is wrong, and has a code.
func (a *response) refuse(status int, param, code, message string) {
	a.w.WriteHeader(status)
	a.send(fmt.Appendf(nil, `{"error":{"message":%s,"type":"invalid_request_error","param":%q,"code":%q}}`,
		quoted(message), param, code))
}

func (a *response) fail(status int, message string) {
	a.w.WriteHeader(status)
	a.send(a.errorBody(status, message))
}

// errorBody returns an error in the shape of the request's format.
func (a *response) errorBody(status int, message string) []byte {
	kinds, ok := map[int]struct{ openAI, anthropic string }{
		400: {"invalid_request_error", "invalid_request_error"},
		401: {"invalid_request_error", "authentication_error"},
		402: {"billing_error", "billing_error"},
		403: {"invalid_request_error", "permission_error"},
		404: {"invalid_request_error", "not_found_error"},
		413: {"invalid_request_error", "request_too_large"},
		429: {"requests", "rate_limit_error"},
		503: {"server_error", "api_error"},
		529: {"server_error", "overloaded_error"},
	}[status]
	if !ok {
		kinds.openAI, kinds.anthropic = "server_error", "api_error"
	}
	if a.isMessages {
		return fmt.Appendf(nil, `{"type":"error","error":{"type":%q,"message":%q},"request_id":"req_provider"}`,
			kinds.anthropic, message)
	}
	return fmt.Appendf(nil, `{"error":{"message":%q,"type":%q,"param":null,"code":null}}`, message, kinds.openAI)
}

// input returns the input tokens that are reported.
func (a *response) input() int64 { return cmp.Or(a.conduct.Input, InputTokens) + a.carried }

// output returns the output tokens that are reported, and whether the request's limit has cut them off.
func (a *response) output() (tokens int64, cutOff bool) {
	tokens = cmp.Or(a.conduct.Output, OutputTokens)
	limit := max(a.request.MaxTokens, a.request.MaxCompletionTokens) * int64(a.choices())
	if limit > 0 && limit < tokens {
		return limit, true
	}
	return tokens, false
}

func (a *response) choices() int { return max(a.request.N, 1) }

func (a *response) text() string { return cmp.Or(a.conduct.Content, "word ünd ") }

// toolArguments are the arguments of every call of a tool.
const toolArguments = `{"city":"Zürich"}`

// tool returns the name of the tool that is called, the first of the request's. It is "" if there are none, or the
// request has the result of a call.
func (a *response) tool() string {
	var tools []struct {
		Name     string
		Function struct{ Name string }
	}
	_ = json.Unmarshal(a.request.Tools, &tools)
	if len(tools) == 0 {
		return ""
	}
	if n := len(a.request.Messages); n > 0 {
		last := a.request.Messages[n-1]
		if last.Role == "tool" || bytes.Contains(last.Content, []byte(`"tool_result"`)) {
			return ""
		}
	}
	return cmp.Or(tools[0].Name, tools[0].Function.Name)
}

// A part is a part of a body: text that is repeated a number of times.
type part struct {
	text  string
	times int
}

func text(s string) part { return part{s, 1} }

// whole sends a response that is not a stream. It is cut short if something goes wrong after its headers.
func (a *response) whole(body ...part) {
	length := 0
	for _, p := range body {
		length += len(p.text) * p.times
	}
	sent := length
	wrongAt := max(a.conduct.Cut, a.conduct.Hang, a.conduct.Error, a.conduct.End)
	switch wrongAt {
	case BeforeContent:
		sent = 0
	case InContent:
		sent /= 2
	}
	announced := length
	if a.conduct.End != never {
		announced = sent
	}
	a.w.Header().Set("Content-Length", strconv.Itoa(announced))
	a.sendParts(body, sent)
	if sent < length {
		a.flush()
		a.happens(wrongAt)
	}
}

// sendParts sends the first n bytes of the parts, without ever having all of them in memory.
func (a *response) sendParts(body []part, n int) {
	const atOnce = 32 << 10
	for _, p := range body {
		for n > 0 && p.times > 0 && a.r.Context().Err() == nil {
			times := min(p.times, max(atOnce/max(len(p.text), 1), 1))
			piece := strings.Repeat(p.text, times)
			piece = piece[:min(len(piece), n)]
			a.send([]byte(piece))
			n -= len(piece)
			p.times -= times
		}
	}
}

// event is an event of a stream, which comes after a moment.
type event struct {
	after      Moment
	name, data string // of some formats' events there is no name
}

// stream sends the events one by one.
func (a *response) stream(events []event) {
	a.sendAll(events, "text/event-stream; charset=utf-8", a.sendEvent)
}

// sendAll sends the events one by one, each with send.
func (a *response) sendAll(events []event, contentType string, send func(name, data string)) {
	a.w.Header().Set("Content-Type", contentType)
	a.setOwnHeaders()
	a.w.WriteHeader(http.StatusOK)
	a.flush()
	reached := never
	for _, e := range events {
		for reached < e.after {
			if reached++; a.happens(reached) {
				return
			}
		}
		if !a.sleep(a.conduct.Pause) {
			return
		}
		send(e.name, e.data)
	}
	for reached++; reached <= BeforeEnd && !a.happens(reached); reached++ {
	}
}

func (a *response) sendEvent(name, data string) {
	end := cmp.Or(a.conduct.LineEnd, "\n")
	text := cmp.Or(a.conduct.Prefix, "data: ") + data + end + end
	if name != "" {
		text = "event: " + name + end + text
	}
	a.send([]byte(text))
	a.flush()
}

// contents returns after which moment each event with content comes: those of the second half come after InContent.
func (a *response) contents() []Moment {
	moments := make([]Moment, cmp.Or(a.conduct.Events, Events))
	for i := range moments {
		moments[i] = BeforeContent
		if i > 0 && i >= len(moments)/2 {
			moments[i] = InContent
		}
	}
	return moments
}

// happens does what goes wrong at the moment m, if anything does, and reports whether the response is over.
func (a *response) happens(m Moment) bool {
	switch m {
	case a.conduct.Cut:
		panic(http.ErrAbortHandler)
	case a.conduct.Hang:
		a.sleep(time.Hour)
	case a.conduct.Error:
		a.sendEvent(a.errorEvent("The provider gives up."))
	case a.conduct.End:
	default:
		return false
	}
	return true
}

// errorEvent returns the event with which a stream of the request's format ends that fails.
func (a *response) errorEvent(message string) (name, data string) {
	switch {
	case a.isMessages:
		name = "error"
	case isResponses(a.r):
		return "error", fmt.Sprintf(`{"type":"error","code":"server_error","message":%q,"param":null}`, message)
	}
	return name, string(a.errorBody(http.StatusServiceUnavailable, message))
}

// sleep waits for d and reports whether the caller is still there.
func (a *response) sleep(d time.Duration) bool {
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

// send writes text, in pieces if the conduct has it so.
func (a *response) send(text []byte) {
	for piece := a.conduct.Piece; piece > 0 && len(text) > piece; text = text[piece:] {
		_, _ = a.w.Write(text[:piece])
		a.flush()
	}
	_, _ = a.w.Write(text)
}

func (a *response) flush() { _ = http.NewResponseController(a.w).Flush() }

// quoted returns s as a JSON string, with its non-ASCII characters as they are.
func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(text)
}

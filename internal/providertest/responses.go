package providertest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// responsesRequest is what the provider reads of a request of the format Responses.
type responsesRequest struct {
	Input           json.RawMessage
	Instructions    json.RawMessage
	MaxOutputTokens int64  `json:"max_output_tokens"`
	Previous        string `json:"previous_response_id"`
	Store           *bool
	Include         []string
	Tools           json.RawMessage
	StreamOptions   map[string]any `json:"stream_options"`
}

// madeResponse is a response of the format Responses.
type madeResponse struct {
	*response
	id          string
	asked       responsesRequest
	inputItems  []item
	outputItems []item
	said        string // the whole text
	called      string // the tool that is called, or ""
}

// isResponses reports whether a request is in the format Responses.
func isResponses(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/v1/responses") }

// readResponses reads a request of the format Responses. It responds to one that names what is not stored, and reports
// false.
func (a *response) readResponses() (m *madeResponse, ok bool) {
	m = &madeResponse{response: a, id: a.stored.newID("resp"), said: a.text()}
	if err := json.Unmarshal(a.content, &m.asked); err != nil {
		a.fail(http.StatusBadRequest, "Invalid type: "+err.Error())
		return nil, false
	}
	if _, found := m.asked.StreamOptions["include_usage"]; found {
		a.refuse(http.StatusBadRequest, "stream_options.include_usage", "unknown_parameter",
			"Unknown parameter: 'stream_options.include_usage'.")
		return nil, false
	}
	a.request.MaxTokens = m.asked.MaxOutputTokens
	input, carried, missing := a.readInput(m.asked.Input, m.asked.Previous)
	if missing != nil {
		missing()
		return nil, false
	}
	m.inputItems, a.carried, m.called = input, carried, toolOf(m.asked.Tools, input)
	return m, true
}

// toolOf returns the name of the tool that is called: the first function, unless the input ends with what a tool has
// returned.
func toolOf(tools json.RawMessage, input []item) string {
	if n := len(input); n > 0 && strings.Contains(input[n-1].json, `_call_output"`) {
		return ""
	}
	var all []struct{ Type, Name string }
	_ = json.Unmarshal(tools, &all)
	for _, t := range all {
		if t.Type == "function" {
			return t.Name
		}
	}
	return ""
}

// respondResponses responds in the format Responses.
func (a *response) respondResponses() {
	m, ok := a.readResponses()
	if !ok {
		return
	}
	if a.request.Stream {
		m.said = strings.Repeat(m.said, len(a.contents()))
	}
	m.makeOutput()
	whole := m.object(m.status(), join(m.outputItems), m.usage())
	if m.asked.Store == nil || *m.asked.Store {
		output, _ := a.output()
		a.stored.put(&storedResponse{
			id: m.id, json: whole, input: m.inputItems, output: m.outputItems, all: a.input() + output, made: output,
		})
	}
	if a.request.Stream {
		a.stream(m.events(whole))
		return
	}
	a.whole(text(whole))
}

// compact responds with the input in a shorter form.
func (a *response) compact() {
	m, ok := a.readResponses()
	if !ok {
		return
	}
	kept := slices.Clone(m.inputItems)
	kept = slices.DeleteFunc(kept, func(i item) bool { return !strings.Contains(i.json, `"role":"user"`) })
	kept = append(kept, item{json: fmt.Sprintf(`{"id":%q,"type":"compaction","encrypted_content":"Z0FBQUFB"}`,
		a.stored.newID("cmp"))})
	a.whole(text(fmt.Sprintf(`{"id":%q,"object":"response.compaction","created_at":1764000000,"output":[%s],"usage":%s}`,
		m.id, join(kept), m.usage())))
}

// countResponses says how many tokens the input has.
func (a *response) countResponses() {
	if _, ok := a.readResponses(); ok {
		a.whole(text(fmt.Sprintf(`{"object":"response.input_tokens","input_tokens":%d}`, a.input())))
	}
}

// status returns how the response ends.
func (m *madeResponse) status() string {
	if m.conduct.Failed {
		return "failed"
	}
	if _, cutOff := m.output(); cutOff {
		return "incomplete"
	}
	return "completed"
}

// usage returns the usage as Responses has it: the input includes cached tokens, and the output reasoning.
func (m *madeResponse) usage() string {
	if m.conduct.NoUsage {
		return "null"
	}
	input := m.input()
	output, _ := m.output()
	reasoning := int64(0)
	if m.conduct.Reasoning != "" {
		reasoning = output / 2
	}
	return fmt.Sprintf(`{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d,"cache_write_tokens":%d},`+
		`"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}`,
		input, input/2, input/4, output, reasoning, input+output)
}

// object returns the response as it is with a status.
func (m *madeResponse) object(status, output, usage string) string {
	fault, details := "null", "null"
	switch status {
	case "failed":
		fault = `{"code":"server_error","message":"The model failed."}`
	case "incomplete":
		details = `{"reason":"max_output_tokens"}`
	}
	previous, limit := "null", "null"
	if m.asked.Previous != "" {
		previous = quoted(m.asked.Previous)
	}
	if m.asked.MaxOutputTokens > 0 {
		limit = fmt.Sprint(m.asked.MaxOutputTokens)
	}
	store := m.asked.Store == nil || *m.asked.Store
	return fmt.Sprintf(`{"id":%q,"object":"response","created_at":1764000000,"status":%q,"background":false,`+
		`"error":%s,"incomplete_details":%s,"instructions":%s,"max_output_tokens":%s,"model":%s,"output":[%s],`+
		`"parallel_tool_calls":true,"previous_response_id":%s,"reasoning":{"effort":null,"summary":null},"store":%t,`+
		`"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":%s,"top_p":1.0,`+
		`"truncation":"disabled","usage":%s,"user":null,"metadata":{}}`,
		m.id, status, fault, details, orElse(m.asked.Instructions, "null"), limit, quoted(m.request.Model), output,
		previous, store, orElse(m.asked.Tools, "[]"), usage)
}

func orElse(text json.RawMessage, other string) string { return cmp.Or(string(text), other) }

// makeOutput makes the items of the output.
func (m *madeResponse) makeOutput() {
	add := func(prefix, format string, values ...any) {
		id := m.stored.newID(prefix)
		m.outputItems = append(m.outputItems, item{id, fmt.Sprintf(format, append([]any{id}, values...)...)})
	}
	if reasoning := m.conduct.Reasoning; reasoning != "" {
		encrypted := ""
		if slices.Contains(m.asked.Include, "reasoning.encrypted_content") {
			encrypted = `,"encrypted_content":"Z0FBQUFB"`
		}
		add("rs", `{"id":%q,"type":"reasoning","summary":[%s]%s}`, summary(reasoning), encrypted)
	}
	if m.called != "" {
		add("fc", `{"id":%q,"type":"function_call","status":"completed","call_id":"call_1","name":%s,"arguments":%s}`,
			quoted(m.called), quoted(toolArguments))
		return
	}
	status := "completed"
	if m.status() == "incomplete" {
		status = "incomplete"
	}
	add("msg", `{"id":%q,"type":"message","status":%q,"role":"assistant","content":[%s]}`, status, outputText(m.said))
}

func summary(s string) string { return `{"type":"summary_text","text":` + quoted(s) + `}` }

func outputText(s string) string {
	return `{"type":"output_text","annotations":[],"logprobs":[],"text":` + quoted(s) + `}`
}

// responseEvents are the events of a stream of the format Responses.
type responseEvents struct {
	*madeResponse
	all         []event
	added, done Moment // of the item that is sent
	place       string // of the part that is sent: members of its events
}

func (s *responseEvents) add(after Moment, kind, format string, values ...any) {
	s.all = append(s.all, event{after, kind, fmt.Sprintf(`{"type":%q,"sequence_number":%d,%s}`,
		kind, len(s.all), fmt.Sprintf(format, values...))})
}

// delta adds an event with a part of the content, and a member that hides its length.
func (s *responseEvents) delta(after Moment, kind, delta string) {
	s.add(after, kind, `%s,"delta":%s,"obfuscation":"aB3"`, s.place, quoted(delta))
}

// events returns the events of a stream that ends with whole.
func (m *madeResponse) events(whole string) []event {
	s := &responseEvents{madeResponse: m}
	begun := m.object("in_progress", "", "null")
	s.add(never, "response.created", `"response":%s`, begun)
	s.add(never, "response.in_progress", `"response":%s`, begun)
	for i, one := range m.outputItems {
		s.added, s.done = BeforeContent, BeforeContent
		if i == len(m.outputItems)-1 {
			s.done = InContent
		}
		prefix, _, _ := strings.Cut(one.id, "_")
		send, begin := s.message, `"type":"message","status":"in_progress","role":"assistant","content":[]`
		switch prefix {
		case "rs":
			send, begin = s.reasoning, `"type":"reasoning","summary":[]`
		case "fc":
			const call = `"type":"function_call","status":"in_progress","call_id":"call_1","arguments":"","name":`
			send, begin = s.call, call+quoted(m.called)
		}
		s.place = fmt.Sprintf(`"item_id":%q,"output_index":%d`, one.id, i)
		s.add(s.added, "response.output_item.added", `"output_index":%d,"item":{"id":%q,%s}`, i, one.id, begin)
		send()
		s.add(s.done, "response.output_item.done", `"output_index":%d,"item":%s`, i, one.json)
	}
	s.add(BeforeUsage, "response."+m.status(), `"response":%s`, whole)
	return s.all
}

func (s *responseEvents) reasoning() {
	const name = "response.reasoning_summary_"
	s.place += `,"summary_index":0`
	s.add(s.added, name+"part.added", `%s,"part":%s`, s.place, summary(""))
	s.delta(s.added, name+"text.delta", s.conduct.Reasoning)
	s.add(s.done, name+"text.done", `%s,"text":%s`, s.place, quoted(s.conduct.Reasoning))
	s.add(s.done, name+"part.done", `%s,"part":%s`, s.place, summary(s.conduct.Reasoning))
}

func (s *responseEvents) call() {
	const name, half = "response.function_call_arguments.", len(toolArguments) / 2
	s.delta(s.added, name+"delta", toolArguments[:half])
	s.delta(s.done, name+"delta", toolArguments[half:])
	s.add(s.done, name+"done", `%s,"name":%s,"arguments":%s`, s.place, quoted(s.called), quoted(toolArguments))
}

func (s *responseEvents) message() {
	s.place += `,"content_index":0`
	s.add(s.added, "response.content_part.added", `%s,"part":%s`, s.place, outputText(""))
	for _, after := range s.contents() {
		s.delta(after, "response.output_text.delta", s.text())
	}
	s.add(s.done, "response.output_text.done", `%s,"text":%s,"logprobs":[]`, s.place, quoted(s.said))
	s.add(s.done, "response.content_part.done", `%s,"part":%s`, s.place, outputText(s.said))
}

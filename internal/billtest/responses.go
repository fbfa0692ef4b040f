package billtest

import (
	"fmt"
	"slices"
	"strings"
)

// readResponse reads an event of OpenAI Responses, or a whole response.
func readResponse(object map[string]any) (e event) {
	kind := text(object, "type")
	body, isEvent := any(object), false
	if response, ok := object["response"].(map[string]any); ok {
		body, isEvent = response, true
	}
	for _, item := range elements(body, "output") {
		e.hidden = e.hidden || hidesItem(item)
		if isEvent {
			e.repeats += contentBytes(item)
		} else {
			e.content += contentBytes(item)
		}
		if text(item, "type") == "web_search_call" {
			e.searches++
		}
	}
	if n, ok := count(body, "tool_usage", "web_search", "num_requests"); ok {
		e.searches = max(e.searches, n)
	}
	e.addDelta(kind, object)
	e.addItem(kind, at(object, "item"))
	e.model = text(body, "model")
	e.readStatus(kind, body)
	e.failed = e.failed || kind == "error" || at(object, "error") != nil || at(body, "error") != nil
	if u, ok := readChatUsage(at(body, "usage")); ok {
		e.usages = append(e.usages, u)
	}
	if images, ok := readChatUsage(at(body, "tool_usage", "image_gen")); ok {
		e.tools = images.counts
	}
	return e
}

// addDelta adds what an event says beside those before it. Only text, refusals and what the client's tools are called
// with shows all that was generated.
func (e *event) addDelta(kind string, object map[string]any) {
	said := text(object, "delta") + text(object, "partial_image_b64")
	e.content += int64(len(said))
	switch kind {
	case "response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta",
		"response.custom_tool_call_input.delta":
	default:
		e.hidden = e.hidden || said != ""
	}
}

// addItem adds an item of the output that an event has. The deltas of most items come before.
func (e *event) addItem(kind string, item any) {
	if item == nil {
		return
	}
	e.hidden = e.hidden || hidesItem(item)
	e.begins = kind == "response.output_item.added" && text(item, "type") == "web_search_call"
	e.ends = kind == "response.output_item.done" && text(item, "type") == "web_search_call"
	switch text(item, "type") {
	case "message", "function_call", "custom_tool_call", "reasoning":
	default:
		if kind == "response.output_item.done" {
			e.content += contentBytes(item)
		}
	}
}

// hidesItem reports whether more can have been generated than is seen of an item.
func hidesItem(item any) bool {
	for _, part := range elements(item, "content") {
		if kind := text(part, "type"); kind != "output_text" && kind != "refusal" {
			return true
		}
	}
	shown := []string{"message", "function_call", "custom_tool_call", "local_shell_call"}
	return !slices.Contains(shown, text(item, "type"))
}

// readStatus reads whether a response has ended.
func (e *event) readStatus(kind string, body any) {
	status := text(body, "status")
	switch kind {
	case "error":
		e.done = true
	case "response.completed", "response.incomplete", "response.failed":
		e.done = true
		status = strings.TrimPrefix(kind, "response.")
	}
	switch status {
	case "completed", "incomplete", "failed", "cancelled":
		e.stopped = append(e.stopped, 0)
	}
	e.failed = status == "failed"
}

func (m *maker) responseRequest() string {
	m.choices = 1
	said := "[" + m.turns() + "]"
	if m.in(4) {
		said = m.phrase()
	}
	return m.object(member("model", `"m"`), member("max_output_tokens", fmt.Sprint(m.limit())), member("input", said),
		member("stream", fmt.Sprint(m.stream)), m.maybe("store", "false"), m.maybe("instructions", m.phrase()))
}

// responseUsage returns the usage of a response, with the details that it has.
func (m *maker) responseUsage(input, output int64) string {
	cached := m.upTo(input)
	details := m.object(m.count("cached_tokens", cached), m.count("cache_write_tokens", input-cached))
	return m.object(m.count("input_tokens", input), m.count("output_tokens", output),
		m.maybe("total_tokens", m.number(input+output)), m.maybe("input_tokens_details", details),
		m.maybe("output_tokens_details", m.object(m.maybe("reasoning_tokens", m.number(m.upTo(output))))))
}

// toolUsage returns what the tools of a response have used.
func (m *maker) toolUsage() string {
	images := m.object(m.count("input_tokens", m.upTo(90)), m.count("output_tokens", m.upTo(900)),
		m.maybe("output_tokens_details", m.object(m.count("image_tokens", m.upTo(900)))))
	return m.object(m.maybe("image_gen", images), m.maybe("web_search", m.object(m.count("num_requests", m.upTo(4)))))
}

// response returns a response with the given items, status and usage, or the members of one that are known so far.
func (m *maker) response(items []string, status, usage string) string {
	model, id, used := "", member("id", `"resp_1"`), member("usage", usage)
	if m.model != "" {
		model = member("model", m.quoted(m.model))
	}
	if status != "in_progress" && !m.plain && m.in(3) {
		used = member("tool_usage", m.toolUsage()) + "," + used // half a response has this before the rest
	}
	tools := m.maybe("tools", `[{"type":"function","name":"f","description":"It helps."}]`)
	return m.object(id, model, used, tools, m.maybe("object", `"response"`), m.maybe("error", "null"),
		m.maybe("instructions", m.phrase()), member("status", m.quoted(status)),
		member("output", "["+strings.Join(items, ",")+"]"))
}

// item returns the type of an item of the output, the item with something that a model says, and the kind and the text
// of the delta that says it. These are "" if it has none.
func (m *maker) item() (kind, item, delta, said string) {
	said = m.phrase()
	members := []string{
		member("id", m.quoted(fmt.Sprintf("item_%d", m.IntN(1000)))), m.maybe("call_id", `"call_1"`),
		m.maybe("status", `"completed"`),
	}
	is := func(itemKind, deltaKind string, more ...string) {
		kind, delta, item = itemKind, deltaKind, m.typed(itemKind, append(members, more...)...)
	}
	parts := func(kind, name string, more ...string) string {
		return "[" + m.typed(kind, append(more, member(name, said))...) + "]"
	}
	kinds := 11
	if m.plain {
		kinds = 6
	}
	switch m.IntN(kinds) {
	case 0, 1:
		is("message", "output_text", m.maybe("phase", `"final_answer"`),
			member("content", parts("output_text", "text", m.maybe("logprobs", `[{"token":"a"}]`))))
	case 2:
		is("message", "refusal", member("content", parts("refusal", "refusal")))
	case 3:
		is("function_call", "function_call_arguments", member("name", `"f"`), member("arguments", said))
	case 4:
		is("custom_tool_call", "custom_tool_call_input", member("name", `"f"`), member("input", said))
	case 5:
		is("local_shell_call", "", member("action", m.object(member("command", "["+said+"]"))))
	case 6:
		is("reasoning", "reasoning_summary_text", member("summary", parts("summary_text", "text")),
			m.maybe("encrypted_content", m.phrase()))
	case 7:
		is("reasoning", "reasoning_text", member("content", parts("reasoning_text", "text")))
	case 8:
		is("image_generation_call", "", member("result", `"QUJDRA=="`))
	case 9:
		is("web_search_call", "", member("action", m.typed("search", member("query", said))))
	default:
		is("something_new", "something_new", member("new", "[["+said+"]]"))
	}
	return kind, item, delta, said
}

// responseEnd returns how a response ends.
func (m *maker) responseEnd() string { return oneOf(m, "completed", "completed", "incomplete") }

// finalUsage returns the usage with which a response ends, null without one.
func (m *maker) finalUsage() string {
	if m.final == nowhere {
		return "null"
	}
	return m.responseUsage(m.input, m.output)
}

func (m *maker) wholeResponse() string {
	usage := m.finalUsage()
	switch {
	case m.in(10):
		return m.object(member("error", m.object(member("code", `"server_error"`), member("message", `"Overloaded"`))))
	case m.in(10):
		return m.response(nil, "failed", usage)
	}
	var items []string
	for range m.IntN(4) {
		_, item, _, _ := m.item()
		items = append(items, item)
	}
	return m.response(items, m.responseEnd(), usage)
}

func (m *maker) responseStream() (events []string) {
	add := func(kind string, members ...string) {
		number := m.maybe("sequence_number", fmt.Sprint(len(events)))
		events = append(events, m.typed(kind, append(members, number)...))
	}
	progress := func(i, n int) {
		usage := "null"
		if input, output, ok := m.counts(i, n); ok {
			usage = m.responseUsage(input, output)
		}
		add(oneOf(m, "response.created", "response.in_progress"), member("response", m.response(nil, "in_progress", usage)))
	}
	progress(0, 5)
	var items []string
	n := m.pieces()
	for i := range n {
		kind, item, delta, said := m.item()
		add("response.output_item.added", member("item", m.typed(kind, m.maybe("status", `"in_progress"`))))
		if delta != "" {
			add("response."+delta+".delta", member("delta", said), m.maybe("item_id", `"item_1"`),
				m.maybe("logprobs", `[{"token":"a"}]`))
			add("response."+delta+".done", member("text", said))
		} else if m.in(3) && !m.plain {
			add("response.image_generation_call.partial_image", member("partial_image_b64", `"QUJD"`))
		}
		if !m.in(4) {
			add("response.output_item.done", member("item", item))
		}
		items = append(items, item)
		if m.in(3) {
			progress(i, n)
		}
	}
	usage := m.finalUsage()
	switch {
	case m.in(10):
		add("error", m.maybe("code", "null"), member("message", `"Overloaded"`), m.maybe("param", "null"))
	case m.in(10):
		add("response.failed", member("response", m.response(nil, "failed", usage)))
	case !m.in(8):
		end := m.responseEnd()
		add("response."+end, member("response", m.response(items, end, usage)))
	}
	return events
}

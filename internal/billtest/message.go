package billtest

import (
	"fmt"
	"maps"
	"strings"
)

// readMessage reads an event of Anthropic Messages, or a whole message.
func readMessage(object map[string]any) (e event) {
	kind := text(object, "type")
	e.done = kind == "message_stop"
	e.failed = kind == "error" || at(object, "error") != nil
	for _, message := range []any{object, at(object, "message")} {
		if model := text(message, "model"); model != "" {
			e.model = model
		}
		for _, block := range elements(message, "content") {
			e.addBlock(block)
		}
		if text(message, "stop_reason") != "" {
			e.stopped = append(e.stopped, 0)
		}
		if u, ok := readMessageUsage(at(message, "usage")); ok {
			e.usages = append(e.usages, u)
		}
	}
	e.addBlock(at(object, "content_block"))
	e.addBlock(at(object, "delta"))
	if text(object, "delta", "stop_reason") != "" {
		e.stopped = append(e.stopped, 0)
	}
	return e
}

// addBlock adds a block of content, or a part of one. Only text and what tools are called with shows all that was
// generated.
func (e *event) addBlock(block any) {
	e.content += contentBytes(block)
	switch text(block, "type") {
	case "", "text", "text_delta", "citations_delta", "tool_use", "input_json_delta":
	default:
		e.hidden = true
	}
}

// readMessageUsage reads a usage.
func readMessageUsage(v any) (u usage, ok bool) {
	u.parts = messageParts(v)
	u.counts = u.parts.added()
	u.counts.set(search, v, "server_tool_use", "web_search_requests")
	iterations, isArray := at(v, "iterations").([]any)
	for _, iteration := range iterations {
		switch text(iteration, "type") {
		case "message", "fallback_message": // the counts beside the iterations have it
		default:
			u.others = append(u.others, Of{text(iteration, "model"), messageParts(iteration).added()})
		}
	}
	return u, len(u.counts) > 0 || isArray
}

// messageParts reads the counts of a usage, or of an iteration in one, under the provider's names.
func messageParts(v any) Counts {
	c := make(Counts)
	const creation, read = "cache_creation_input_tokens", "cache_read_input_tokens"
	for _, name := range []string{"input_tokens", creation, read, "output_tokens"} {
		c.set(name, v, name)
	}
	c.set("1h", v, "cache_creation", "ephemeral_1h_input_tokens")
	return c
}

// added returns the counts that the provider's add up to.
func (c Counts) added() Counts {
	sum := make(Counts)
	add := func(kind, name string, n int64) {
		if _, ok := c[name]; ok {
			sum[kind] += n
		}
	}
	created, read := c["cache_creation_input_tokens"], c["cache_read_input_tokens"]
	add(input, "input_tokens", c["input_tokens"])
	add(input, "cache_creation_input_tokens", created)
	add(input, "cache_read_input_tokens", read)
	add(cachedInput, "cache_read_input_tokens", read)
	hour := min(c["1h"], created)
	add(cacheWrite1h, "1h", hour)
	add(cacheWrite, "cache_creation_input_tokens", created-hour)
	add(output, "output_tokens", c["output_tokens"])
	return sum
}

// largerMessage takes the larger input and the larger output. Counts that b lacks are a's: the events of a stream only
// repeat those that have changed.
func largerMessage(a, b usage) usage {
	parts := make(Counts)
	maps.Copy(parts, a.parts)
	maps.Copy(parts, b.parts)
	merged := usage{parts: parts, counts: parts.added(), others: b.others}
	if merged.counts[input] < a.counts[input] {
		merged.parts, merged.counts = maps.Clone(a.parts), maps.Clone(a.counts)
	}
	for kind, name := range map[string]string{output: "output_tokens", search: search} {
		if n := max(a.counts[kind], b.counts[kind]); n > 0 {
			merged.counts[kind], merged.parts[name] = n, n
		}
	}
	if merged.others == nil {
		merged.others = a.others
	}
	return merged
}

func (m *maker) messageRequest() string {
	m.choices = 1
	return m.object(member("model", `"m"`), member("max_tokens", fmt.Sprint(m.limit())), m.messages(),
		member("stream", fmt.Sprint(m.stream)))
}

// A messagePlan is what all usages of a message have in common.
type messagePlan struct {
	creation, read, hour int64 // of the input
	iterations, searches string
}

func (m *maker) messagePlan() (p messagePlan) {
	p.read = oneOf(m, 0, m.upTo(m.input))
	p.creation = oneOf(m, 0, m.upTo(m.input-p.read))
	p.hour = oneOf(m, -1, 0, m.upTo(p.creation))
	if m.in(4) {
		uses := m.object(m.count("web_search_requests", m.upTo(5)), m.maybe("web_fetch_requests", "3"))
		p.searches = member("server_tool_use", uses)
	}
	if m.in(3) {
		var all []string
		for range m.IntN(4) {
			all = append(all, m.iteration())
		}
		p.iterations = member("iterations", "["+strings.Join(all, ",")+"]")
	}
	return p
}

// iteration returns one of the iterations of a usage.
func (m *maker) iteration() string {
	kind := oneOf(m, "message", "fallback_message", "compaction", "advisor_message", "something_new")
	created := m.upTo(100)
	members := append(m.messageInput(m.upTo(300), m.upTo(200), created, m.upTo(created+1)-1),
		member("type", m.quoted(kind)), m.count("output_tokens", m.upTo(200)))
	if kind == "advisor_message" || kind == "something_new" && m.in(2) {
		members = append(members, member("model", m.quoted(oneOf(m, "dear", "cheap", "odd"))))
	}
	return m.object(members...)
}

// messageInput returns the members that count the input. Hour is −1 if writes to the cache are not told apart.
func (m *maker) messageInput(plain, read, creation, hour int64) []string {
	split := ""
	if hour >= 0 {
		split = member("cache_creation", m.object(m.count("ephemeral_1h_input_tokens", hour),
			m.count("ephemeral_5m_input_tokens", max(0, creation-hour))))
	}
	return []string{
		m.count("input_tokens", plain), m.count("cache_read_input_tokens", read),
		m.count("cache_creation_input_tokens", creation), split,
	}
}

// messageUsage returns a usage with that much input and output.
func (m *maker) messageUsage(p messagePlan, input, output int64) string {
	members := []string{m.count("output_tokens", output), p.iterations, p.searches}
	if plain := input - p.read - p.creation; plain >= 0 {
		members = append(members, m.messageInput(plain, p.read, p.creation, p.hour)...)
	} else {
		members = append(members, m.messageInput(input, 0, 0, min(p.hour, 0))...)
	}
	return m.object(members...)
}

// typed returns an object with a type.
func (m *maker) typed(kind string, members ...string) string {
	return m.object(append(members, member("type", m.quoted(kind)))...)
}

// block returns a block of content as it starts, and a delta of it.
func (m *maker) block() (start, delta string) {
	said, kinds := m.phrase(), 6
	if m.plain {
		kinds = 2
	}
	text, thinking := m.typed("text", member("text", `""`)), m.typed("thinking", member("thinking", `""`))
	switch m.IntN(kinds) {
	case 0:
		return text, m.typed("text_delta", member("text", said))
	case 1:
		start = m.typed("tool_use", member("id", `"toolu_1"`), member("name", `"f"`), member("input", "{}"))
		return start, m.typed("input_json_delta", member("partial_json", said))
	case 2:
		return thinking, m.typed("thinking_delta", member("thinking", said))
	case 3:
		return thinking, m.typed("signature_delta", member("signature", said))
	case 4:
		return text, m.typed("citations_delta", member("citation", m.object(member("cited_text", said))))
	}
	return m.typed("something_new"), m.typed("new_delta", member("new", "["+said+"]"))
}

// message returns a message, whole or as a stream begins.
func (m *maker) message(members ...string) string {
	if m.model != "" {
		members = append(members, member("model", m.quoted(m.model)))
	}
	return m.typed("message", append(members, m.maybe("id", `"msg_1"`), m.maybe("role", `"assistant"`))...)
}

func (m *maker) wholeMessage() string {
	if m.in(10) {
		return m.typed("error", member("error", `{"type":"overloaded_error","message":"Overloaded"}`))
	}
	var blocks []string
	for range m.IntN(3) {
		blocks = append(blocks, oneOf(m,
			m.typed("text", member("text", m.phrase())),
			m.typed("thinking", member("thinking", m.phrase()), m.maybe("signature", m.phrase())),
			m.typed("tool_use", member("id", `"toolu_1"`), member("name", `"f"`), member("input", `{"q":"an answer"}`)),
		))
	}
	usage := ""
	if m.final != nowhere {
		usage = member("usage", m.messageUsage(m.messagePlan(), m.input, m.output))
	}
	return m.message(member("content", "["+strings.Join(blocks, ",")+"]"), m.messageEnd(), usage)
}

func (m *maker) messageEnd() string {
	return member("stop_reason", m.quoted(oneOf(m, "end_turn", "tool_use", "max_tokens", "refusal")))
}

func (m *maker) messageStream() (events []string) {
	plan := m.messagePlan()
	add := func(kind string, members ...string) { events = append(events, m.typed(kind, members...)) }
	usage := ""
	if m.final != nowhere || m.in(2) {
		input, output, ok := m.counts(0, 5)
		if !ok {
			input, output = m.input, 1
		}
		usage = member("usage", m.messageUsage(plan, input, output))
	}
	add("message_start", member("message", m.message(member("content", "[]"), m.maybe("stop_reason", "null"), usage)))
	n := m.pieces()
	for i := range n {
		start, delta := m.block()
		index := member("index", fmt.Sprint(i))
		add("content_block_start", index, member("content_block", start))
		add("content_block_delta", index, member("delta", delta))
		add("content_block_stop", index)
		if input, output, ok := m.counts(i, n); ok && m.in(2) {
			add("message_delta", member("delta", "{}"), member("usage", m.messageUsage(plan, input, output)))
		} else if m.in(5) {
			add("ping")
		}
	}
	if m.in(8) {
		add("error", member("error", `{"type":"overloaded_error","message":"Overloaded"}`))
		return events
	}
	end := member("delta", m.object(m.messageEnd(), m.maybe("stop_sequence", "null")))
	final := member("usage", oneOf(m, m.messageUsage(plan, m.input, m.output), m.lastUsage(plan), m.lastUsage(plan)))
	if m.final == withStop {
		add("message_delta", end, final)
	} else if input, output, ok := m.counts(n, n+1); ok {
		add("message_delta", end, member("usage", m.messageUsage(plan, input, output)))
	} else {
		add("message_delta", end)
	}
	if m.final == afterStop {
		add("message_delta", member("delta", "{}"), final)
	}
	if !m.in(6) {
		add("message_stop")
	}
	return events
}

// lastUsage returns a usage that does not repeat the input.
func (m *maker) lastUsage(p messagePlan) string {
	return m.object(m.count("output_tokens", m.output), p.iterations, p.searches,
		m.maybe("input_tokens", "null"), m.maybe("cache_read_input_tokens", "null"))
}

package billtest

import (
	"fmt"
	"strings"
)

// readChat reads a chunk of OpenAI Chat, or a whole completion.
func readChat(object map[string]any) (e event) {
	e.model = text(object, "model")
	e.failed = at(object, "error") != nil
	addUsage := func(v any) {
		if u, ok := readChatUsage(v); ok {
			e.usages = append(e.usages, u)
		}
	}
	for _, choice := range elements(object, "choices") {
		e.hasChoice = true
		for _, name := range []string{"delta", "message"} {
			said := at(choice, name)
			e.content += contentBytes(said)
			e.hidden = e.hidden || hidesChat(said)
		}
		reason := text(choice, "finish_reason")
		if reason != "" {
			index, _ := count(choice, "index")
			e.stopped = append(e.stopped, index)
		}
		e.failed = e.failed || reason == "error" || at(choice, "error") != nil
		addUsage(at(choice, "usage"))
	}
	addUsage(at(object, "x_groq", "usage"))
	addUsage(at(object, "usage"))
	return e
}

// hidesChat reports whether a message has more than text and calls of tools.
func hidesChat(message any) bool {
	object, _ := message.(map[string]any)
	for name, value := range object {
		switch name {
		case "role", "content", "refusal", "tool_calls", "function_call":
		default:
			if contentBytes(value) > 0 {
				return true
			}
		}
	}
	return false
}

// readChatUsage reads a usage in any of its spellings.
func readChatUsage(v any) (u usage, ok bool) {
	u.counts = make(Counts)
	for _, names := range [][2]string{{"input_tokens", "output_tokens"}, {"prompt_tokens", "completion_tokens"}} {
		u.counts.set(input, v, names[0])
		u.counts.set(output, v, names[1])
	}
	total, hasTotal := count(v, "total_tokens")
	_, hasInput := u.counts[input]
	_, hasOutput := u.counts[output]
	switch {
	case hasTotal && hasInput:
		u.counts[output] = max(u.counts[output], total-u.counts[input])
	case hasTotal && hasOutput && total > u.counts[output]:
		u.counts[input] = total - u.counts[output]
	case hasOutput:
	case hasTotal:
		u.counts[both] = total
	}
	for _, details := range []string{"prompt_tokens_details", "input_tokens_details"} {
		u.counts.set(cachedInput, v, details, "cached_tokens")
		u.counts.set(cacheWrite, v, details, "cache_write_tokens")
		u.counts.set(audioInput, v, details, "audio_tokens")
		u.counts.set(imageInput, v, details, "image_tokens")
		u.counts.set(cachedAudioInput, v, details, "cached_tokens_details", "audio_tokens")
	}
	if n, ok := u.counts[cachedAudioInput]; ok { // is a part of two others
		u.counts[cachedInput] -= n
		u.counts[audioInput] -= n
	}
	for _, details := range []string{"completion_tokens_details", "output_tokens_details"} {
		u.counts.set(audioOutput, v, details, "audio_tokens")
		u.counts.set(imageOutput, v, details, "image_tokens")
	}
	return u, hasInput || hasOutput || hasTotal
}

// largerChat takes the usage with the larger total as a whole.
func largerChat(a, b usage) usage {
	if b.total() < a.total() {
		return a
	}
	return b
}

func (m *maker) chatRequest() string {
	m.media = m.in(6)
	modalities, options := "", ""
	if m.media {
		modalities = member("modalities", `["text","audio"]`)
	}
	if m.stream {
		options = m.maybe("stream_options", oneOf(m, "{}", `{"include_usage":true}`, `{"include_usage":false}`))
	}
	return m.object(member("model", `"m"`), member("max_tokens", fmt.Sprint(m.limit())), m.messages(),
		member("n", fmt.Sprint(m.choices)), member("stream", fmt.Sprint(m.stream)), options, modalities)
}

// chatUsage returns a usage of OpenAI Chat.
func (m *maker) chatUsage(input, output int64) string {
	in, out := "prompt_tokens", "completion_tokens"
	if m.in(4) {
		in, out = "input_tokens", "output_tokens"
	}
	completion, total := m.count(out, output), m.maybe("total_tokens", m.number(input+output))
	if output > 0 && m.in(4) { // some leave reasoning out
		completion, total = m.count(out, m.upTo(output-1)), m.count("total_tokens", input+output)
	}
	switch {
	case m.in(10):
		return m.object(m.count("total_tokens", input+output))
	case m.in(6):
		return m.object(completion, total, m.maybe(in, m.noNumber()))
	}
	outKinds := []string{
		m.maybe("audio_tokens", m.number(m.upTo(output)/2)), m.maybe("image_tokens", m.number(m.upTo(output)/2)),
		m.maybe("reasoning_tokens", m.number(m.upTo(output))),
	}
	return m.object(m.count(in, input), completion, total,
		m.maybe(in+"_details", m.object(m.inputKinds(input)...)), m.maybe(out+"_details", m.object(outKinds...)))
}

// inputKinds returns the members of the details of that much input.
func (m *maker) inputKinds(input int64) []string {
	cached, audio := m.upTo(input), m.upTo(input)
	kinds := []string{
		m.maybe("image_tokens", m.number(m.upTo(input)/3)), m.maybe("text_tokens", m.number(m.upTo(input))),
		m.maybe("cache_write_tokens", m.number(m.upTo(input-cached))),
	}
	if m.in(2) {
		kinds = append(kinds, m.count("cached_tokens", cached))
		if m.in(2) {
			both := m.object(m.maybe("audio_tokens", m.number(m.upTo(min(cached, audio)))))
			kinds = append(kinds, m.count("audio_tokens", audio), m.maybe("cached_tokens_details", both))
		}
	}
	return kinds
}

// chunk returns a chunk of a stream, or a completion, with the given choices and maybe a usage, at one of its places.
func (m *maker) chunk(usage string, choices ...[]string) string {
	own, groq := "", ""
	switch {
	case usage == "":
		own = m.maybe("usage", "null")
	case m.in(5):
		groq = member("x_groq", m.object(member("id", `"req_1"`), member("usage", usage)))
	case m.in(5) && len(choices) > 0:
		i := m.IntN(len(choices))
		choices[i] = append(choices[i], member("usage", usage))
	default:
		own = member("usage", usage)
	}
	var all []string
	for _, members := range choices {
		all = append(all, m.object(members...))
	}
	model := ""
	if m.model != "" {
		model = member("model", m.quoted(m.model))
	}
	return m.object(m.maybe("id", `"chatcmpl-1"`), m.maybe("created", "1741570283"), model, own, groq,
		member("choices", "["+strings.Join(all, ",")+"]"))
}

// said returns the members of a message with something that a model says.
func (m *maker) said() []string {
	if m.plain || m.in(2) {
		call := m.object(member("index", "0"), member("id", `"call_12345678"`), member("type", `"function"`),
			member("function", m.object(member("name", `"f"`), member("arguments", m.phrase()))))
		said := oneOf(m, member("content", m.phrase()), member("content", m.phrase()), member("refusal", m.phrase()),
			member("content", `""`), member("tool_calls", "["+call+"]"))
		return []string{said, m.maybe("role", `"assistant"`), m.maybe("reasoning_content", oneOf(m, "null", `""`))}
	}
	data := strings.Repeat("QUJD", m.IntN(50))
	audio := fmt.Sprintf(`{"id":"audio_1","data":"%s","transcript":%s}`, data, m.phrase())
	image := fmt.Sprintf(`{"type":"image_url","index":0,"image_url":{"url":"data:image/png;base64,%s"}}`, data)
	unknown := fmt.Sprintf(`{"deep":[%s,7,{"id":"x","text":%s}]}`, m.phrase(), m.phrase())
	said := oneOf(m, member("reasoning_content", m.phrase()), member("reasoning", m.phrase()), member("audio", audio),
		member("images", "["+image+"]"), member("something_new", unknown))
	return []string{said, m.maybe("content", "null")}
}

// ended returns the members of a choice that has ended.
func (m *maker) ended() string {
	return member("finish_reason", m.quoted(oneOf(m, "stop", "stop", "length", "tool_calls", "content_filter")))
}

func (m *maker) wholeChat() string {
	var choices [][]string
	for i := range m.choices {
		choices = append(choices, choice(i, member("message", m.object(m.said()...)), m.ended()))
	}
	usage := ""
	if m.final != nowhere {
		usage = m.chatUsage(m.input, m.output)
	}
	if !m.in(6) {
		return m.chunk(usage, choices...)
	}
	failure := m.object(member("code", "502"), member("message", `"Provider returned error"`))
	switch m.IntN(3) {
	case 0:
		return m.object(member("error", failure), m.maybe("usage", m.chatUsage(m.input, m.output)))
	case 1:
		return m.chunk(usage)
	}
	return m.chunk(usage, choice(0, member("message", `{"role":"assistant","content":""}`),
		member("finish_reason", `"error"`), m.maybe("error", failure)))
}

// choice returns the members of a choice.
func choice(i int64, members ...string) []string {
	return append(members, member("index", fmt.Sprint(i)))
}

// chatDelta returns the members of a choice that has not ended.
func (m *maker) chatDelta(i int64, delta string) []string {
	return choice(i, member("delta", delta), m.maybe("finish_reason", "null"))
}

func (m *maker) chatStream() (events []string) {
	if m.in(2) {
		events = append(events, m.chunk("", m.chatDelta(0, `{"role":"assistant","content":""}`)))
	}
	n := m.pieces()
	for i := range n {
		usage := ""
		if input, output, ok := m.counts(i, n); ok {
			usage = m.chatUsage(input, output)
		}
		events = append(events, m.chunk(usage, m.chatDelta(m.Int64N(m.choices), m.object(m.said()...))))
	}
	if m.in(8) {
		return append(events, m.object(member("error", `{"message":"Overloaded","code":503}`)))
	}
	for i, at := range m.Perm(int(m.choices)) {
		usage, isLast := "", i == int(m.choices)-1
		if m.final == withStop && isLast {
			usage = m.chatUsage(m.input, m.output)
		} else if input, output, ok := m.counts(n, n+1); ok {
			usage = m.chatUsage(input, output)
		}
		delta := "{}"
		if !m.mute && m.in(2) {
			delta = m.object(m.said()...)
		}
		events = append(events, m.chunk(usage, choice(int64(at), member("delta", delta), m.ended())))
	}
	if m.final == afterStop {
		events = append(events, m.chunk(m.chatUsage(m.input, m.output)))
	}
	if !m.in(6) {
		events = append(events, "[DONE]")
	}
	return events
}

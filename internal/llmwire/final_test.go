package llmwire

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// Chunks of a chat and events of a message, as their data.
func chunkOf(content, reason, usage string) string {
	return fmt.Sprintf(`{"choices":[{"index":0,"delta":{"content":%q},"finish_reason":%s}],"usage":%s}`,
		content, reason, usage)
}

func tokensOf(input, output any) string {
	return fmt.Sprintf(`{"prompt_tokens":%v,"completion_tokens":%v}`, input, output)
}

const (
	stopped    = `"stop"`
	usageAlone = `{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":5000}}`
	startOf0   = `{"type":"message_start","message":{"usage":{"input_tokens":0,"output_tokens":0}}}`
	startOf25  = `{"type":"message_start","message":{"usage":{"input_tokens":25,"cache_read_input_tokens":2000,"output_tokens":1}}}`
	endTurn    = `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":120}}`
	messageEnd = `{"type":"message_stop"}`
)

func deltaOf(text string) string {
	return fmt.Sprintf(`{"type":"content_block_delta","delta":{"type":"text_delta","text":%q}}`, text)
}

func deltaUsage(reason, usage string) string {
	return fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":%s},"usage":{%s}}`, reason, usage)
}

// A count of a stream is final only if it came with its end or after it. What came before can be a placeholder.
func TestFinalUsage(t *testing.T) {
	words := strings.Repeat("word ", 3) // 15 bytes: 5 tokens
	for _, test := range []struct {
		name   string
		format Format
		n      int64
		events []string
		want   string // with an estimated input of 700
	}{
		{"zeros in each chunk", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(0, 0)), chunkOf(words, "null", tokensOf(0, 0))}, "700+10 estimated"},
		{"zeros, and then the usage", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(0, 0)), chunkOf("", stopped, tokensOf(1000, 5000)), doneData}, "1000+5000"},
		{"only an input, at first", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(1000, 0)), chunkOf(words, "null", "null")}, "1000+10 estimated"},
		{"a count that grows (vLLM)", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(9, 4)), chunkOf(words, "null", tokensOf(9, 80))}, "9+80 estimated"},
		{"a count that grows and lags", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(9, 1)), chunkOf(words, "null", tokensOf(9, 2))}, "9+10 estimated"},
		{"a count that falls", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(1000, 5000)), chunkOf("", stopped, tokensOf(0, 0)), doneData}, "1000+5000"},
		{"of two, the larger as a whole", OpenAIChat, 1,
			[]string{chunkOf("", stopped, tokensOf(900, 10)), `{"choices":[],"usage":` + tokensOf(10, 899) + `}`}, "900+10"},
		{"of two, the later", OpenAIChat, 1,
			[]string{chunkOf("", stopped, tokensOf(900, 10)), `{"choices":[],"usage":` + tokensOf(10, 900) + `}`}, "10+900"},
		{"usage twice", OpenAIChat, 1, []string{chunkOf("", stopped, "null"), usageAlone, usageAlone, doneData}, "1000+5000"},
		{"usage after the end marker", OpenAIChat, 1, []string{chunkOf("a", stopped, "null"), doneData, usageAlone}, "1000+5000"},
		{"usage before the reason", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(9, 1)), chunkOf("", stopped, "null"), doneData}, "9+5 estimated"},
		{"usage and no reason", OpenAIChat, 1, []string{chunkOf(words, "null", "null"), usageAlone}, "1000+5000 estimated"},
		{"usage, and the end marker only", OpenAIChat, 1,
			[]string{chunkOf(words, "null", "null"), usageAlone, doneData}, "1000+5000"},
		{"one of two choices has ended", OpenAIChat, 2, []string{chunkOf(words, stopped, tokensOf(9, 1))}, "9+5 estimated"},
		{"a final 0", OpenAIChat, 1, []string{chunkOf(words, "null", "null"), chunkOf("", stopped, tokensOf(0, 0))}, "0+0"},
		{"only a total, in mid-stream", OpenAIChat, 1,
			[]string{chunkOf(words, "null", `{"total_tokens":701}`), chunkOf(words, "null", "null")}, "700+10 estimated"},
		{"no usage", OpenAIChat, 1, []string{chunkOf(words, stopped, "null"), doneData}, "700+5 estimated"},
		{"more events than bytes", OpenAIChat, 1,
			[]string{chunkOf("a", "null", "null"), chunkOf("b", "null", "null"), chunkOf("c", "null", "null")}, "700+3 estimated"},
		{"an error with usage", OpenAIChat, 1,
			[]string{chunkOf(words, "null", "null"), `{"error":{},"usage":` + tokensOf(9, 2) + `}`}, "9+2"},
		{"an error after usage", OpenAIChat, 1,
			[]string{chunkOf(words, "null", tokensOf(9, 2)), `{"error":{}}`}, "9+5 estimated"},

		{"message_start of 0, cut", AnthropicMessages, 1, []string{startOf0, deltaOf(words)}, "700+5 estimated"},
		{"message_start of 0, whole", AnthropicMessages, 1, []string{startOf0, deltaOf(words), deltaUsage(`"end_turn"`,
			`"input_tokens":2000,"cache_read_input_tokens":9000,"output_tokens":120`), messageEnd}, "11000+120"},
		{"message_start of 0, and no input at the end", AnthropicMessages, 1,
			[]string{startOf0, deltaOf(words), endTurn, messageEnd}, "700+120 estimated"},
		{"an input of 0 at the end", AnthropicMessages, 1, []string{startOf0, deltaOf(words),
			deltaUsage(`"end_turn"`, `"input_tokens":0,"output_tokens":120`)}, "0+120"},
		{"message_start, cut", AnthropicMessages, 1, []string{startOf25, deltaOf(words)}, "2025+5 estimated"},
		{"message_start, whole", AnthropicMessages, 1, []string{startOf25, deltaOf(words), endTurn}, "2025+120"},
		{"an early message_delta", AnthropicMessages, 1, []string{startOf25, deltaUsage(`null`, `"output_tokens":2`),
			deltaOf(words)}, "2025+5 estimated"},
		{"counts that fall to 0", AnthropicMessages, 1, []string{startOf25, deltaOf(words), deltaUsage(`"end_turn"`,
			`"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":120`)}, "2025+120"},
		{"counts that become null", AnthropicMessages, 1, []string{startOf25, deltaOf(words), deltaUsage(`"end_turn"`,
			`"input_tokens":null,"cache_read_input_tokens":null,"output_tokens":120`)}, "2025+120"},
		{"counts that are told apart at the end", AnthropicMessages, 1, []string{startOf25, deltaOf(words),
			deltaUsage(`"end_turn"`, `"input_tokens":1025,"cache_read_input_tokens":1000,"output_tokens":120`)}, "2025+120"},
		{"an output that falls", AnthropicMessages, 1,
			[]string{startOf25, deltaUsage(`null`, `"output_tokens":500`), endTurn}, "2025+500"},
		{"no usage", AnthropicMessages, 1, []string{deltaOf(words), messageEnd}, "700+5 estimated"},
	} {
		r := readAll(t, test.format, append(test.events, "{}")...) // a stream
		used, _, exact := r.Used(test.n, 700)
		got := fmt.Sprintf("%d+%d", used.Input, used.Output)
		if !exact {
			got += " estimated"
		}
		if got != test.want || exact != r.IsFinal(test.n) {
			t.Errorf("%s: got %s (final: %v), want %s", test.name, got, r.IsFinal(test.n), test.want)
		}
	}
}

// plainEstimate is the estimated input.
const plainEstimate = 700

// A plainStream is what a second, plain computation knows of a stream, of which all events are decoded first.
type plainStream struct {
	format        Format
	end           int // the last event with content, a reason for an end, or an error
	stops         map[any]bool
	ended         bool
	contentEvents float64
	contentBytes  float64
	usages        []plainUsage
}

// A plainUsage is the counts of a usage object, by name, and the event that has it.
type plainUsage struct {
	counts map[string]float64
	at     int
}

// get returns the largest count that has one of the names.
func (u plainUsage) get(names ...string) (n float64, ok bool) {
	for _, name := range names {
		if count, is := u.counts[name]; is {
			n, ok = max(n, count), true
		}
	}
	return n, ok
}

func (u plainUsage) input() (float64, bool) {
	prompt, isPrompt := u.get("prompt_tokens")
	input, isInput := u.get("input_tokens")
	read, isRead := u.get("cache_read_input_tokens")
	written, isWritten := u.get("cache_creation_input_tokens")
	total, isTotal := u.get("total_tokens")
	output, isOutput := u.get("completion_tokens", "output_tokens")
	switch {
	case isPrompt:
		return max(prompt, input), true
	case isInput, isRead, isWritten:
	case isTotal && !isOutput:
		return min(total, plainEstimate), true
	case total > output:
		return total - output, true
	}
	return input + read + written, isInput || isRead || isWritten
}

func (u plainUsage) output() (float64, bool) {
	output, isOutput := u.get("completion_tokens", "output_tokens")
	input, isInput := u.input()
	if total, isTotal := u.get("total_tokens"); isTotal && isInput {
		return max(output, total-input), true
	}
	return output, isOutput
}

func at(v any, path ...string) any {
	for _, name := range path {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	return v
}

// plainCount is what a decoded value counts.
func plainCount(v any) (n float64, ok bool) {
	switch v := v.(type) {
	case float64:
		return math.Ceil(v), v >= 0
	case string:
		digits, err := strconv.ParseUint(v, 10, 63)
		return float64(digits), err == nil
	}
	return 0, false
}

// add adds the event i.
func (p *plainStream) add(i int, event any) {
	texts, isEnd := []any{at(event, "delta", "text")}, at(event, "error") != nil
	if at(event, "delta", "stop_reason") != nil {
		p.stops[0.0], isEnd = true, true
	}
	choices, _ := at(event, "choices").([]any)
	for _, choice := range choices {
		p.addUsage(i, at(choice, "usage"))
		texts = append(texts, at(choice, "delta", "content"))
		if at(choice, "finish_reason") != nil {
			p.stops[at(choice, "index")], isEnd = true, true
		}
	}
	p.addUsage(i, at(event, "usage"), at(event, "x_groq", "usage"), at(event, "message", "usage"))
	size := 0
	for _, text := range texts {
		s, _ := text.(string)
		size += len(s)
	}
	if size > 0 {
		p.contentEvents++
		p.contentBytes += float64(size)
	}
	if size > 0 || isEnd {
		p.end = i
	}
	p.ended = p.ended || at(event, "error") != nil || at(event, "type") == "message_stop"
}

func (p *plainStream) addUsage(i int, places ...any) {
	for _, place := range places {
		object, isObject := place.(map[string]any)
		if !isObject {
			continue
		}
		u := plainUsage{make(map[string]float64), i}
		for name, value := range object {
			if n, ok := plainCount(value); ok && name != "cost" {
				u.counts[name] = n
			}
		}
		if len(u.counts) > 0 {
			p.usages = append(p.usages, u)
		}
	}
}

// reported returns the usage that counts. Anthropic's are cumulative.
func (p *plainStream) reported() plainUsage {
	best := plainUsage{counts: make(map[string]float64)}
	for _, u := range p.usages {
		bestInput, _ := best.input()
		bestOutput, hasOutput := best.output()
		input, _ := u.input()
		output, isOutput := u.output()
		if p.format == OpenAIChat {
			if input+output >= bestInput+bestOutput {
				best = u
			}
			continue
		}
		merged := plainUsage{counts: maps.Clone(best.counts)}
		maps.Copy(merged.counts, u.counts)
		if input, _ = merged.input(); input >= bestInput {
			best = merged
		}
		if hasOutput || isOutput {
			best.counts["output_tokens"] = max(bestOutput, output)
		}
	}
	return best
}

// used returns what the stream has used, by the rules as they are written down.
func (p *plainStream) used(n int) (input, output float64, exact bool) {
	best := p.reported()
	input, hasInput := best.input()
	output, hasOutput := best.output()
	finalInput, finalOutput := false, false
	if p.ended || len(p.stops) >= n {
		for _, u := range p.usages {
			_, isInput := u.input()
			_, isOutput := u.output()
			finalInput = finalInput || isInput && hasInput && u.at >= p.end
			finalOutput = finalOutput || isOutput && hasOutput && u.at >= p.end
		}
	}
	_, isTotal := best.get("total_tokens")
	isAlone := isTotal && len(best.counts) == 1
	if (input == 0 || isAlone) && !finalInput {
		input = plainEstimate
	} else {
		finalInput = true
	}
	if !finalOutput {
		output = max(output, p.contentEvents, math.Ceil(p.contentBytes/3))
	}
	return input, output, finalInput && finalOutput
}

// A randomStream is a stream that nobody would send as it is, but that has what somebody sends.
type randomStream struct{ *rand.Rand }

func (s randomStream) oneOf(choices ...string) string { return choices[s.IntN(len(choices))] }

// count returns a count, as some provider spells it.
func (s randomStream) count() string {
	n := s.IntN(2) * s.IntN(2000)
	return s.oneOf(strconv.Itoa(n), strconv.Itoa(n), strconv.Itoa(n), fmt.Sprintf("%d.0", n), fmt.Sprintf("%d.25", n),
		fmt.Sprintf("%de1", n), fmt.Sprintf("%q", strconv.Itoa(n)), "null", "-1", "0")
}

// usage returns a usage object with some of the given counts.
func (s randomStream) usage(names ...string) string {
	members := []string{`"cost":0.5`}
	for _, name := range names {
		if s.IntN(3) > 0 {
			members = append(members, fmt.Sprintf("%q:%s", name, s.count()))
		}
	}
	s.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return s.oneOf("{"+strings.Join(members, ",")+"}", "{"+strings.Join(members, ",")+"}", "null")
}

func (s randomStream) chatUsage() string {
	if s.IntN(4) == 0 {
		return s.usage("input_tokens", "output_tokens")
	}
	usage := s.usage("prompt_tokens", "completion_tokens")
	return strings.Replace(usage, `"prompt_tokens"`, s.oneOf(`"total_tokens":`+s.count()+`,"prompt_tokens"`, `"prompt_tokens"`), 1)
}

func (s randomStream) text() string { return strings.Repeat("word ", s.IntN(3)*s.IntN(40)) }

// event returns the data of an event.
func (s randomStream) event(format Format) string {
	reason := s.oneOf("null", "null", "null", `"stop"`)
	if format == OpenAIChat {
		return s.oneOf(
			fmt.Sprintf(`{"choices":[{"index":%d,"delta":{"content":%q},"finish_reason":%s,"usage":%s}],"usage":%s}`,
				s.IntN(2), s.text(), reason, s.oneOf("null", s.chatUsage()), s.oneOf("null", s.chatUsage())),
			fmt.Sprintf(`{"x_groq":{"usage":%s},"choices":[]}`, s.chatUsage()),
			fmt.Sprintf(`{"choices":[],"usage":%s}`, s.chatUsage()),
			s.oneOf(`{}`, `{"error":{"message":"x"}}`, `{}`, `{}`))
	}
	input := []string{"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"}
	return s.oneOf(
		fmt.Sprintf(`{"type":"message_start","message":{"usage":%s}}`, s.usage(input...)),
		fmt.Sprintf(`{"type":"content_block_delta","delta":{"text":%q}}`, s.text()),
		fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":%s},"usage":%s}`, reason, s.usage(input...)),
		s.oneOf(`{"type":"ping"}`, `{"type":"ping"}`, `{"type":"message_stop"}`))
}

// Whatever a stream reports, and wherever it is cut, what it has used is what a plain computation says that has all its
// events.
func TestRandomUsage(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5_000) {
		s := randomStream{rand.New(rand.NewPCG(seed, 1))}
		format := Format(s.IntN(2))
		r, plain := &Report{Format: format, isStream: true}, &plainStream{format: format, end: -1, stops: make(map[any]bool)}
		n := 1 + s.IntN(2)
		var events []string
		for i := range 1 + s.IntN(8) {
			data := s.event(format)
			events = append(events, data)
			var event any
			if err := json.Unmarshal([]byte(data), &event); err != nil {
				t.Fatalf("%s: %v", data, err)
			}
			plain.add(i, event)
			if _, err := r.Read([]byte(data)); err != nil {
				t.Fatalf("%s: %v", data, err)
			}
			input, output, wantExact := plain.used(n)
			used, _, exact := r.Used(int64(n), plainEstimate)
			if float64(used.Input) != input || float64(used.Output) != output || exact != wantExact {
				t.Fatalf("seed %d, n %d:\n%s\ngot  %d+%d, exact: %v\nwant %v+%v, exact: %v", seed, n,
					strings.Join(events, "\n"), used.Input, used.Output, exact, input, output, wantExact)
			}
		}
	}
}

package llmwire

import (
	"fmt"
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
		{"a final 0", OpenAIChat, 1,
			[]string{chunkOf(words, "null", "null"), chunkOf("", stopped, tokensOf(0, 0)), doneData}, "0+0"},
		{"a 0 with the reason", OpenAIChat, 1,
			[]string{chunkOf(words, "null", "null"), chunkOf("", stopped, tokensOf(0, 0))}, "700+5 estimated"},
		{"an output of 0 with the reason", OpenAIChat, 1,
			[]string{chunkOf(words, "null", "null"), chunkOf("", stopped, tokensOf(9, 0))}, "9+5 estimated"},
		{"a 0 with the reason, without content", OpenAIChat, 1, []string{chunkOf("", stopped, tokensOf(9, 0))}, "9+0"},
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

package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

func TestHeldInput(t *testing.T) {
	image := `{"type":"image","source":{"type":"base64","data":"` + strings.Repeat("A", 4000) + `"}}` // 55 bytes beside it
	document := strings.Replace(image, "image", "document", 1)
	const remote = `{"type":"document","source":{"type":"url","url":"https://a.example"}}`
	content := func(parts ...string) string { return `{"messages":[{"content":[` + strings.Join(parts, ",") + `]}]}` }
	size := func(parts ...string) int64 { return int64(len(content(parts...))) }
	for _, test := range []struct {
		name, body string
		h          Holding
		want       int64
	}{
		{"text", `{"m":"12345"}`, Holding{BytesPerToken: 1}, 13},
		{"three bytes a token", `{"m":"12345"}`, Holding{BytesPerToken: 3}, 5},
		{"eight bytes a token", `{"m":"12345"}`, Holding{BytesPerToken: 8}, 2},
		{"long text", `{"m":"` + strings.Repeat("a", 1_000_000) + `"}`, Holding{BytesPerToken: 1}, 1_000_008},
		{"tools", `{"tools":[{}]}`, Holding{BytesPerToken: 1}, 614},
		{"context window", `{"tools":[{}]}`, Holding{BytesPerToken: 1, MaxInput: 500}, 500},
		{"images", content(image, image), Holding{BytesPerToken: 1, MediaTokens: 2000}, size(image, image) - 8000 + 4000},
		{"document", content(document), Holding{BytesPerToken: 1, MediaTokens: 2000}, size(document) - 4000 + 3000},
		{"document at three bytes", content(document), Holding{BytesPerToken: 3}, (size(document)-4000+2)/3 + 1000},
		{"document, less for files", content(document), Holding{BytesPerToken: 1, FileTokens: 70}, size(document) - 4000 + 70},
		{"document, more for files", content(document), Holding{BytesPerToken: 1, FileTokens: 4000}, size(document) - 4000 + 3000},
		{"document at a URL", content(remote), Holding{BytesPerToken: 1, MediaTokens: 2000}, size(remote) + 200_000},
		{"two of them", content(remote, remote), Holding{BytesPerToken: 1}, size(remote, remote) + 400_000},
		{"document at a URL, context window", content(remote), Holding{BytesPerToken: 1, MaxInput: 9000}, 9000},
		{"document at a URL, tokens for files", content(remote), Holding{BytesPerToken: 1, FileTokens: 70, MaxInput: 9000},
			size(remote) + 70},
		{"too much", content(image, image), Holding{BytesPerToken: 1, MediaTokens: 1 << 62}, MaxTokens},
		{"too much for a file", content(remote, remote), Holding{BytesPerToken: 1, FileTokens: 1 << 62}, MaxTokens},
		{"too much, context window", content(image), Holding{BytesPerToken: 1, MediaTokens: 1 << 62, MaxInput: 7}, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(AnthropicMessages, []byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if got := r.HeldInput(test.h); got != test.want {
				t.Errorf("held %d, want %d", got, test.want)
			}
			if r.Forget(); r.HeldInput(test.h) != test.want {
				t.Errorf("held %d without the body, want %d", r.HeldInput(test.h), test.want)
			}
		})
	}
}

// The input is estimated by what the model reads, and not by what is around that.
func TestEstimatedInput(t *testing.T) {
	const text = "twenty bytes of text" // 5 tokens
	part := func(name string) string { return fmt.Sprintf(`{"messages":[{"content":[{"%s":"%s"}]}]}`, name, text) }
	spaces := strings.Repeat(" ", 1000)
	for _, test := range []struct {
		name, body string
		want       int64
	}{
		{"nothing", `{}`, 0},
		{"members", `{"model":"` + text + `","stop":["` + text + `"],"user":"` + text + `"}`, 0},
		{"message", `{"messages":[{"role":"user","content":"` + text + `"}]}`, 4 + 5},
		{"white space", `{"messages":` + spaces + `[{"role":"user",` + spaces + `"content":"` + text + `"}]}`, 4 + 5},
		{"two messages", `{"messages":[{"content":"` + text + `"},{"content":"` + text + `"}]}`, 8 + 10},
		{"rounded up", `{"messages":[{"content":"a"},{"content":"b"},{}]}`, 12 + 1},
		{"escapes", `{"messages":[{"content":"\n\"\\\/\u0041\t\r\b\f` + `\u00e4\u20ac\ud83d\ude00` + `"}]}`, 4 + 5}, // 9 + 2 + 3 + 4 bytes
		{"text", part("text"), 4 + 5}, {"thinking", part("thinking"), 4 + 5}, {"refusal", part("refusal"), 4 + 5},
		{"title", part("title"), 4 + 5}, {"IDs", part("id"), 4}, {"signature", part("signature"), 4}, {"types", part("type"), 4},
		{"reasoning", `{"messages":[{"reasoning_content":"` + text + `"}]}`, 4 + 5},
		{"result of a tool", `{"messages":[{"content":[{"type":"tool_result","content":"` + text + `"}]}]}`, 4 + 5},
		{"parts of a result", `{"messages":[{"content":[{"type":"tool_result","content":[{"text":"` + text + `"}]}]}]}`, 4 + 5},
		{"call of a tool", `{"messages":[{"tool_calls":[{"id":"` + text + `","type":"function","function":` +
			`{"name":"four","arguments":"{\"a\":1}` + text + `"}}]}]}`, 4 + 8},
		{"input of a tool", `{"messages":[{"content":[{"type":"tool_use","id":"x","input":{"a":"` + text + `"}}]}]}`, 4 + 7},
		{"system prompt", `{"system":"` + text + `"}`, 4 + 5},
		{"parts of it", `{"system":[{"type":"text","text":"` + text + `"}]}`, 4 + 5},
		{"tool", `{"tools":[{"name":"four","description":"` + text + `","input_schema":{"type":"object"}}]}`, 1 + 5 + 5},
		{"function", `{"tools":[{"type":"function","function":{"name":"four","description":"` + text +
			`","parameters":{"type":"object"}}}]}`, 1 + 5 + 5},
		{"old function", `{"functions":[{"name":"four","description":"` + text + `","parameters":{}}]}`, 7},
		{"name", part("name"), 4 + 5}, {"hidden thinking", part("data"), 4 + 5}, {"source", part("source"), 4 + 5},
		{"object for a tool", `{"messages":[{"tool_calls":[{"function":{"arguments":{"a":"` + text + `"}}}]}]}`, 4 + 7},
		{"details", `{"messages":[{"reasoning_details":[{"text":"` + text + `"}]}]}`, 4 + 9},
		{"documents", `{"documents":["` + text + `"]}`, 6}, {"schema", `{"response_format":{"json_schema":"` + text + `"}}`, 10},
		{"guide", `{"guided_json":{"a":"` + text + `"}}`, 7}, {"format", `{"output_format":{"a":"` + text + `"}}`, 7},
		{"image", `{"messages":[{"content":[{"image_url":"https://example.com/a.png"}]}]}`, 4 + 2000},
		{"text document", `{"messages":[{"content":[{"type":"document","source":{"type":"text","data":"` + text + `"}}]}]}`, 4 + 5},
		{"document", `{"messages":[{"content":[{"type":"document","source":{"type":"base64","data":"QUJDREVG"}}]}]}`, 4 + 6},
		{"file ID", `{"messages":[{"content":[{"type":"file","file":{"file_id":"a"}}]}]}`, 4 + 9000},
	} {
		for _, format := range textFormats {
			r, err := ReadRequest(Format(format), []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			if got := r.EstimatedInput(Holding{BytesPerToken: 1, MediaTokens: 2000, FileTokens: 9000}); got != test.want {
				t.Errorf("%s: estimated %d, want %d", test.name, got, test.want)
			}
			if got := r.EstimatedInput(Holding{BytesPerToken: 1, MediaTokens: 2000, MaxInput: 7}); got != min(test.want, 7) {
				t.Errorf("%s: estimated %d within a window of 7", test.name, got)
			}
			r.Forget()
			if got := r.EstimatedInput(Holding{BytesPerToken: 1, MediaTokens: 2000, FileTokens: 9000}); got != test.want {
				t.Errorf("%s: estimated %d without the body, want %d", test.name, got, test.want)
			}
		}
	}
}

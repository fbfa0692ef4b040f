package llmwire

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestChatErrors(t *testing.T) {
	for _, test := range []struct {
		status     int
		kind, code string
	}{
		{400, "invalid_request_error", "null"},
		{401, "invalid_request_error", `"invalid_api_key"`},
		{402, "insufficient_quota", `"insufficient_quota"`},
		{403, "invalid_request_error", `"key_disabled"`},
		{404, "invalid_request_error", `"model_not_found"`},
		{413, "invalid_request_error", "null"},
		{429, "rate_limit_error", `"rate_limit_exceeded"`},
		{500, "api_error", "null"},
		{502, "api_error", "null"},
		{503, "api_error", "null"},
		{504, "api_error", "null"},
	} {
		const format = `{"error":{"message":"say \"x\"","type":"%s","param":null,"code":%s}}`
		body := fmt.Sprintf(format, test.kind, test.code)
		checkError(t, OpenAIChat, test.status, body, "data: "+body+"\n\n")
	}
	const want = `{"error":{"message":"No such path","type":"invalid_request_error","param":null,"code":null}}`
	if got := string(UnknownRouteBody("No such path")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestChatModels(t *testing.T) {
	checkModels(t, OpenAIChat, `{"object":"list","data":[]}`,
		`{"object":"list","data":[{"id":"gpt-4o","object":"model","created":0,"owned_by":"openai"},`+
			`{"id":"a\"b","object":"model","created":0,"owned_by":"local"}]}`)
}

func TestChatResponses(t *testing.T) {
	const chat = `{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,` +
		`"model":"gpt-4.1-2025-04-14","choices":[%s],%s"service_tier":"default","system_fingerprint":"fp_b376dfbbd5"}`
	const chatUsage = `"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,` +
		`"prompt_tokens_details":{"cached_tokens":12,"audio_tokens":0},` +
		`"completion_tokens_details":{"reasoning_tokens":4,"rejected_prediction_tokens":1}},`
	choice := func(index int, message, reason string) string {
		return fmt.Sprintf(`{"index":%d,"message":{"role":"assistant",%s},"logprobs":null,"finish_reason":"%s"}`,
			index, message, reason)
	}
	response := func(choices, usage string) string { return fmt.Sprintf(chat, choices, usage) }
	hello := choice(0, `"content":"Hello!"`, "stop")
	checkResponses(t, OpenAIChat, []responseTest{
		{"chat", 1, response(choice(0, `"content":"Hello!\n\u00e9","refusal":null`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 9 bytes normal finished complete`},
		{"without usage", 1, response(choice(0, `"content":"Hello!!"`, "stop"), ""),
			`1000+3 tokens, 1 events, 7 bytes normal estimated finished`},
		{"usage of zero", 1, response(hello, `"usage":{"prompt_tokens":0,"completion_tokens":0},`),
			`0+0 tokens, 1 events, 6 bytes normal finished complete`},
		{"half a usage", 1, response(hello, `"usage":{"prompt_tokens":7,"completion_tokens":null},`),
			`7+2 tokens, 1 events, 6 bytes normal estimated finished`},
		{"odd usage", 1, response(hello, `"usage":{"prompt_tokens":-1,"completion_tokens":"-5"},`),
			`1000+2 tokens, 1 events, 6 bytes normal estimated finished`},
		{"other members of usage", 1, response(choice(0, `"content":"Hi"`, "stop"), `"usage":{"prompt_tokens":7,`+
			`"input_tokens":0,"completion_tokens":2,"output_tokens":0,"cache_read_input_tokens":5},`),
			`7+2 tokens, 1 events, 2 bytes normal finished complete`},
		{"two choices", 2,
			response(choice(0, `"content":"One"`, "length")+","+choice(1, `"content":"Three"`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 8 bytes limit finished complete`},
		{"tools", 1, response(choice(0, `"content":null,"tool_calls":[{"id":"call_abc","type":"function",`+
			`"function":{"name":"get_weather","arguments":"{\"city\":1}"}},{"type":"custom","custom":{"input":"abc"}}]`,
			"tool_calls"), chatUsage), `19+10 tokens, 1 events, 24 bytes normal finished complete`},
		{"refusal", 1, response(choice(0, `"content":null,"refusal":"I cannot."`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 9 bytes normal finished complete refused`},
		{"filter", 1, response(choice(0, `"content":""`, "content_filter"), chatUsage),
			`19+10 tokens, 0 events, 0 bytes abnormal finished complete refused`},
		{"reasoning", 1,
			response(choice(0, `"reasoning_content":"abc","content":[{"type":"text","text":"def"}]`, "new_reason"), ""),
			`1000+2 tokens, 1 events, 6 bytes abnormal estimated finished`},
		{"error", 1, `{"error":{"message":"no","type":"server_error","param":null,"code":null}}`,
			`1000+0 tokens, 0 events, 0 bytes estimated failed`},
		{"no error", 1, response(choice(0, `"content":"a"`, "stop"), `"error":null,`+chatUsage),
			`19+10 tokens, 1 events, 1 bytes normal finished complete`},
	})
}

// chatChunk returns an event of a stream with one choice. It is short, because streams are split at each byte.
func chatChunk(index int, delta, reason string) string {
	const format = `[{"index":%d,"delta":{%s},"finish_reason":%s}]`
	return chatEvent(fmt.Sprintf(format, index, delta, reason), "null")
}

func chatEvent(choices, usage string) string {
	return `data: {"object":"chat.completion.chunk","choices":` + choices + `,"usage":` + usage + "}\n\n"
}

const (
	chatUsage = `{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,` +
		`"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}`
	chatDone = "data: [DONE]\n\n"
)

func chatStreams() []streamTest {
	chat := []string{
		chatEvent("[]", "null"), // as Azure begins
		chatChunk(0, `"role":"assistant","content":"","refusal":null`, "null"),
		": OPENROUTER PROCESSING\n\n",
		chatChunk(0, `"content":"Hello 😀"`, "null"),
		chatChunk(0, `"content":"!\nÄ"`, "null"),
		chatChunk(0, ``, `"stop"`),
		chatEvent("[]", chatUsage),
		chatDone,
	}
	tools := []string{
		chatChunk(0, `"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_DdmO",`+
			`"type":"function","function":{"name":"get_weather","arguments":""}}]`, "null"),
		chatChunk(0, `"tool_calls":[{"index":0,"function":{"arguments":"{\"location\""}}]`, "null"),
		chatChunk(1, `"content":"abc"`, `"length"`),
		chatChunk(0, ``, `"tool_calls"`),
		chatEvent("[]", chatUsage),
		"data:[DONE]\n\n",
	}
	usageInEach := []string{
		chatEvent(`[{"index":0,"delta":{"content":"a"},"finish_reason":""}]`, `{"prompt_tokens":9,"completion_tokens":1}`),
		chatEvent(`[{"index":0,"delta":{"content":"b"},"finish_reason":""}]`, `{"prompt_tokens":9,"completion_tokens":2}`),
	}
	usageBesideContent := chatEvent(`[{"index":0,"delta":{},"finish_reason":"stop"}]`, chatUsage)
	failed := "data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":null}}\n\n"
	otherFields := []string{"id: 1\nretry: 5\ndata\ndata:\nevent:x\ndata:  " + chat[3][len("data: "):], "\n", "\n"}
	marked := []string{"\ufeff" + chat[6], chat[3], chat[5]}
	split := []string{
		chat[3],
		"data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"ab\"},\nevent: x\ndata:\"finish_reason\":\"stop\"}]}\n\n",
		"data: {\"choices\":[],\ndata:\ndata: \"usage\":" + chatUsage + "}\n\n",
		"data: {\"choices\":[],\ndata: \"usage\":" + chatUsage + "}\ndata: [DONE]\n\n",
	}
	on := func(events []string, more ...string) []string { return append(slices.Clone(events), more...) }
	return []streamTest{
		{"chat", OpenAIChat, 1, chat, 7, `1117+46 tokens, 2 events, 14 bytes normal done finished complete`},
		{"chat, cut", OpenAIChat, 1, chat[:5], 0, `1000+5 tokens, 2 events, 14 bytes estimated`},
		{"chat, cut before content", OpenAIChat, 1, chat[:3], 0, `1000+0 tokens, 0 events, 0 bytes estimated`},
		{"chat, cut before usage", OpenAIChat, 1, chat[:6], 0,
			`1000+5 tokens, 2 events, 14 bytes normal estimated finished`},
		{"chat, cut after usage", OpenAIChat, 1, chat[:7], 7,
			`1117+46 tokens, 2 events, 14 bytes normal finished complete`},
		{"chat without usage", OpenAIChat, 1, on(chat[:6], chatDone), 0,
			`1000+5 tokens, 2 events, 14 bytes normal estimated done finished`},
		{"usage beside content", OpenAIChat, 1, on(chat[:5], usageBesideContent, chatDone), 0,
			`1117+46 tokens, 2 events, 14 bytes normal done finished complete`},
		{"usage in all chunks", OpenAIChat, 1, usageInEach, 0, `9+2 tokens, 2 events, 2 bytes estimated`},
		{"tools and two choices", OpenAIChat, 2, tools, 5,
			`1117+46 tokens, 3 events, 25 bytes limit done finished complete`},
		{"one of two choices", OpenAIChat, 2, tools[:3], 0, `1000+9 tokens, 3 events, 25 bytes limit estimated`},
		{"error", OpenAIChat, 1, on(chat[:4], failed), 0, `1000+4 tokens, 1 events, 10 bytes estimated failed`},
		{"not JSON", OpenAIChat, 1, on(chat[:4], "data: upstream died\n\n"), 0,
			`1000+8 tokens, 2 events, 23 bytes estimated unread`},
		{"no blank line after the usage", OpenAIChat, 1, []string{chat[3], strings.TrimSuffix(chat[6], "\n"), chatDone}, 0,
			`1117+46 tokens, 1 events, 10 bytes done complete`},
		{"two lines of data", OpenAIChat, 1, []string{strings.TrimSuffix(chat[3], "\n"), chat[6]}, 0,
			`1117+46 tokens, 1 events, 10 bytes estimated`},
		{"byte order mark", OpenAIChat, 1, marked, 1, `1117+46 tokens, 1 events, 10 bytes normal estimated finished`},
		{"one object in several lines", OpenAIChat, 1, split, 3,
			`1117+46 tokens, 2 events, 12 bytes normal done finished complete`},
		{"several lines, not an object", OpenAIChat, 1, []string{"data: ab\ndata: cd\n\n"}, 0,
			`1000+2 tokens, 2 events, 4 bytes estimated unread`},
		{"other fields", OpenAIChat, 1, otherFields, 0, `1000+4 tokens, 1 events, 10 bytes estimated`},
	}
}

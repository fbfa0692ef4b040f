package llmwire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestMessageErrors(t *testing.T) {
	for _, test := range []struct {
		status int
		kind   string
	}{
		{400, "invalid_request_error"},
		{401, "authentication_error"},
		{402, "billing_error"},
		{403, "permission_error"},
		{404, "not_found_error"},
		{413, "request_too_large"},
		{422, "invalid_request_error"},
		{429, "rate_limit_error"},
		{500, "api_error"},
		{502, "api_error"},
		{503, "overloaded_error"},
		{504, "api_error"},
	} {
		body := fmt.Sprintf(`{"type":"error","error":{"type":"%s","message":"say \"x\""}}`, test.kind)
		checkError(t, AnthropicMessages, test.status, body, "event: error\ndata: "+body+"\n\n")
	}
}

func TestMessageModels(t *testing.T) {
	const unknown = `"lifecycle":"active","deprecated_at":null,"retires_at":null,"line":null,"capabilities":null,` +
		`"max_input_tokens":null,"max_tokens":null`
	checkModels(t, AnthropicMessages, `{"data":[],"has_more":false,"first_id":null,"last_id":null}`, `{"data":[`+
		`{"type":"model","id":"gpt-4o","display_name":"gpt-4o","created_at":"1970-01-01T00:00:00Z",`+unknown+`},`+
		`{"type":"model","id":"a\"b","display_name":"a\"b","created_at":"1970-01-01T00:00:00Z",`+unknown+`}],`+
		`"has_more":false,"first_id":"gpt-4o","last_id":"a\"b"}`)
}

func TestMessageRequests(t *testing.T) {
	checkRequests(t, AnthropicMessages, []requestTest{
		{"limit of OpenAI's", `{"max_completion_tokens":9,"max_tokens":5}`, ` n=1 limit=9 unknown:[max_completion_tokens]`},
		{"limit of nothing", `{"max_tokens":0}`, ` n=1 limit=0 has one: true`},
		{"no limit", `{"max_tokens":-1}`, ` n=1 limit=0`},
		{"cache", `{"cache_control":{"type":"ephemeral"}}`, ` n=1 limit=0 cached`},
		{"cache of five minutes", `{"system":[{"type":"text","text":"x","cache_control":{"type":"ephemeral","ttl":"5m"}}]}`,
			` n=1 limit=0 cached`},
		{"cache of an hour", `{"tools":[{"cache_control":{"ttl":"1h","type":"ephemeral"}}],"cache_control":{}}`,
			` n=1 limit=0 tools cached for an hour`},
		{"cache of a new time", `{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","cache_control":` +
			`{"ttl":"24h"}}]}]}]}`, ` n=1 limit=0 cached for an hour`},
		{"no cache", `{"messages":[{"content":[{"type":"text","cache_control":null}]}]}`, ` n=1 limit=0`},
		{"context edits", `{"context_management":{"edits":[{"type":"clear_tool_uses_20250919","keep":{"type":"x"}},` +
			`{"type":"clear_thinking_20251015"}]}}`, ` n=1 limit=0`},
		{"no context edits", `{"context_management":{"edits":null}}`, ` n=1 limit=0`},
		{"compaction", `{"context_management":{"edits":[{"type":"compact_20260112"}]}}`, ` n=1 limit=0 twice`},
		{"unknown context edit", `{"context_management":{"edits":[{"type":"clear_x"},{"type":"expand_20270101"}]}}`,
			` n=1 limit=0 unknown:[context_management]`},
		{"context edit of two types", `{"context_management":{"edits":[{"type":"expand","type":"clear_x"}]}}`,
			` n=1 limit=0 unknown:[context_management]`},
		{"context edit without type", `{"context_management":{"edits":[{"type":"clear_x"},{}]}}`,
			` n=1 limit=0 unknown:[context_management]`},
		{"other context management", `{"context_management":{"edits":[],"recall":{}}}`,
			` n=1 limit=0 unknown:[context_management]`},
		{"odd context edits", `{"context_management":{"edits":{}}}`, ` n=1 limit=0 unknown:[context_management]`},
		{"odd context management", `{"context_management":"auto"}`, ` n=1 limit=0 unknown:[context_management]`},
		{"summary", `{"compaction":{"type":"summarize"}}`, ` n=1 limit=0 twice`},
		{"unknown compaction", `{"compaction":{"type":"forget"}}`, ` n=1 limit=0 unknown:[compaction]`},
		{"compaction without type", `{"compaction":{}}`, ` n=1 limit=0 unknown:[compaction]`},
	})
	const edit = `{"context_management":{"edits":[{"type":"clear_thinking_20251015","Type":"compact_20260112"}]}}`
	if _, err := ReadRequest(AnthropicMessages, []byte(edit)); err == nil {
		t.Error("the type of an edit was accepted in another case")
	}
	if _, err := ReadRequest(AnthropicMessages, []byte(`{"Max_completion_tokens":1}`)); err == nil {
		t.Error("a limit was spelled differently")
	}
	r, err := ReadRequest(AnthropicMessages, []byte(`{"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(r.Rewrite(Changes{LimitMember: "max_tokens"}), nil); string(got) != `{"stream":true}` {
		t.Errorf("Anthropic has no stream_options: %s", got)
	}
}

func TestMessageResponses(t *testing.T) {
	const message = `{"id":"msg_01XFDUDYJgAACzvnptvVoYEL","type":"message","role":"assistant",` +
		`"model":"claude-sonnet-4-5","content":[%s],"stop_reason":"%s","stop_sequence":null,"usage":%s}`
	hello := func(usage string) string {
		return fmt.Sprintf(message, `{"type":"text","text":"Hello!"}`, "end_turn", usage)
	}
	const compaction = `{"type":"compaction","input_tokens":%s}`
	many := `9007199254740991` + strings.Repeat(`,"input_tokens":9007199254740991`, 1024)
	checkResponses(t, AnthropicMessages, []responseTest{
		{"message", 1, hello(`{"input_tokens":2095,"output_tokens":503}`),
			`2095+503 tokens, 1 events, 6 bytes normal finished complete`},
		{"cache", 1, hello(`{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,` +
			`"output_tokens":5,"cache_creation":{"ephemeral_5m_input_tokens":200},"server_tool_use":null,` +
			`"service_tier":"standard"}`),
			`3210+5 tokens, 1 events, 6 bytes normal finished complete`},
		{"compaction", 1, hello(`{"input_tokens":23000,"output_tokens":1000,"cache_read_input_tokens":null,"iterations":[` +
			`{"type":"compaction","input_tokens":180000,"output_tokens":3500,"cache_read_input_tokens":7},` +
			`{"input_tokens":23000,"output_tokens":1000,"type":"message"},` +
			`{"output_tokens":1,"cache_creation_input_tokens":2,"type":"compaction"}]}`),
			`203009+4501 tokens, 1 events, 6 bytes normal finished complete`},
		{"thinking and tools", 1,
			fmt.Sprintf(message, `{"type":"thinking","thinking":"abcd","signature":"EqQBCgIYAhIM"},`+
				`{"type":"tool_use","id":"toolu_01","name":"get_weather","input":{"city":"Bern"}}`, "tool_use", `null`),
			`1000+14 tokens, 1 events, 40 bytes normal estimated finished`},
		{"refusal", 1, fmt.Sprintf(message, ``, "refusal", `{"input_tokens":5,"output_tokens":1}`),
			`5+1 tokens, 0 events, 0 bytes abnormal finished complete refused`},
		{"error", 1, `{"type":"error","error":{"type":"api_error","message":"x"}}`,
			`1000+0 tokens, 0 events, 0 bytes estimated failed`},
		{"too many tokens", 1, fmt.Sprintf(message, ``, "end_turn",
			`{"input_tokens":9007199254740991,"cache_read_input_tokens":9223372036854775807,"output_tokens":1}`),
			`9007199254740991+1 tokens, 0 events, 0 bytes normal finished complete`},
		{"too many tokens of an iteration", 1, fmt.Sprintf(message, ``, "end_turn",
			`{"input_tokens":1,"output_tokens":1,"iterations":[`+fmt.Sprintf(compaction, many)+`]}`),
			`9007199254740991+1 tokens, 0 events, 0 bytes normal finished complete`},
	})
}

// messageEvent returns an event of a stream.
func messageEvent(name, rest string) string {
	return "event: " + name + "\ndata: {\"type\":\"" + name + "\"" + rest + "}\n\n"
}

const messageStart = `,"message":{"id":"msg_1nZd","type":"message","role":"assistant",` +
	`"content":[],"model":"claude-sonnet-4-5","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,` +
	`"cache_creation_input_tokens":100,"cache_read_input_tokens":2000,"output_tokens":1}}`

func blockDelta(index int, kind, rest string) string {
	return messageEvent("content_block_delta", fmt.Sprintf(`,"index":%d,"delta":{"type":"%s",%s}`, index, kind, rest))
}

func textDelta(text string) string { return blockDelta(0, "text_delta", `"text":"`+text+`"`) }

func messageStreams() []streamTest {
	const stop = `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":`
	message := []string{
		messageEvent("message_start", messageStart),
		messageEvent("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`),
		messageEvent("ping", ""),
		textDelta("Hello 😀"), textDelta("!"),
		messageEvent("content_block_stop", `,"index":0`),
		messageEvent("message_delta", stop+`{"output_tokens":15}`),
		messageEvent("message_stop", ""),
	}
	repeated := slices.Clone(message)
	repeated[6] = messageEvent("message_delta", stop+`{"input_tokens":25,"cache_creation_input_tokens":100,`+
		`"cache_read_input_tokens":2000,"output_tokens":15,"iterations":[`+
		`{"type":"compaction","input_tokens":5000,"output_tokens":300},`+
		`{"type":"message","input_tokens":9,"output_tokens":9}]}`)
	thinking := []string{
		messageEvent("message_start", messageStart),
		messageEvent("content_block_start", `,"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`),
		blockDelta(0, "thinking_delta", `"thinking":"Let me see"`),
		blockDelta(0, "signature_delta", `"signature":"EqQBCgIYAhIM"`),
		messageEvent("content_block_stop", `,"index":0`),
		messageEvent("content_block_start",
			`,"index":1,"content_block":{"type":"tool_use","id":"toolu_01T1","name":"f","input":{}}`),
		blockDelta(1, "input_json_delta", `"partial_json":""`),
		blockDelta(1, "input_json_delta", `"partial_json":"{\"a\":1"`),
	}
	failed := append(slices.Clone(message[:4]),
		messageEvent("error", `,"error":{"type":"overloaded_error","message":"Overloaded"}`))
	return []streamTest{
		{"message", AnthropicMessages, 1, message, 0,
			`2125+15 tokens, 2 events, 11 bytes normal done finished complete`},
		{"message with repeated usage", AnthropicMessages, 1, repeated, 0,
			`7125+315 tokens, 2 events, 11 bytes normal done finished complete`},
		{"message, cut", AnthropicMessages, 1, message[:5], 0, `2125+4 tokens, 2 events, 11 bytes estimated`},
		{"message, cut before content", AnthropicMessages, 1, message[:3], 0,
			`2125+1 tokens, 0 events, 0 bytes estimated`},
		{"message, cut after usage", AnthropicMessages, 1, message[:7], 0,
			`2125+15 tokens, 2 events, 11 bytes normal finished complete`},
		{"thinking and tools", AnthropicMessages, 1, thinking, 0, `2125+10 tokens, 4 events, 29 bytes estimated`},
		{"message with an error", AnthropicMessages, 1, failed, 0,
			`2125+4 tokens, 1 events, 10 bytes estimated failed`},
	}
}

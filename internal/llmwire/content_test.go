package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

// Every string in a delta, a message or a block counts that is no label. What is not text that the client sees, or a
// call of one of its tools, is hidden.
func TestContent(t *testing.T) {
	const abc = `"abcdef"` // 6 bytes
	for _, test := range []struct {
		content string // members of a delta, a message or a block
		bytes   int64
		hidden  bool
	}{
		{`"content":` + abc, 6, false},
		{`"content":[{"type":"text","text":` + abc + `},` + abc + `]`, 12, false},
		{`"content":[{"type":"output_text","text":` + abc + `}]`, 6, false},
		{`"content":{"text":` + abc + `}`, 6, false},
		{`"text":` + abc, 6, false},
		{`"type":"text_delta","text":` + abc, 6, false},
		{`"refusal":` + abc, 6, false},
		{`"tool_calls":[{"id":"call_1","index":0,"type":"function","function":{"name":"f","arguments":` + abc + `}}]`, 7, false},
		{`"tool_calls":[{"type":"function","function":{"name":"f","arguments":{"a":12345}}}]`, 10, false},
		{`"tool_calls":[{"id":"call_1","type":"custom","custom":{"name":"f","input":` + abc + `}}]`, 7, false},
		{`"tool_calls":{"function":{"name":` + abc + `}}`, 6, false},
		{`"function_call":{"name":"f","arguments":` + abc + `}`, 7, false},
		{`"type":"tool_use","id":"toolu_1","name":"f","input":{"a":"b"}`, 8, false},
		{`"type":"tool_use","id":"toolu_1","name":"f","input":{}`, 1, false},
		{`"type":"input_json_delta","partial_json":` + abc, 6, false},
		{`"type":"citations_delta","citation":{"type":"char_location","cited_text":` + abc + `,"title":"t","file_id":"x"}`,
			7, false},
		{`"annotations":[{"type":"url_citation","url_citation":{"url":"u","title":` + abc + `,"start_index":1}}]`, 7, false},
		{`"role":"assistant","id":"msg_1","index":0,"content":null,"refusal":null,"reasoning":null,"audio":null`, 0, false},
		{`"reasoning_content":"","content":"","tool_calls":[],"x":{},"y":[{}],"z":1`, 0, false},

		{`"reasoning":` + abc, 6, true},
		{`"reasoning_content":` + abc, 6, true},
		{`"reasoning_text":` + abc, 6, true},
		{`"reasoning_details":[{"type":"reasoning.text","text":` + abc + `,"id":"rs_1","format":"x-v1","index":0}]`, 6, true},
		{`"reasoning_details":[{"type":"reasoning.encrypted","data":` + abc + `}]`, 6, true},
		{`"content":[{"type":"thinking","thinking":[{"type":"text","text":` + abc + `}]}]`, 6, true},
		{`"images":[{"type":"image_url","image_url":{"url":` + abc + `}}]`, 6, true},
		{`"content":[{"type":"image_url","image_url":{"url":` + abc + `}}]`, 6, true},
		{`"audio":{"id":"audio_1","data":` + abc + `,"transcript":"abc","expires_at":1}`, 9, true},
		{`"type":"thinking","thinking":"","signature":""`, 0, true},
		{`"type":"thinking_delta","thinking":` + abc, 6, true},
		{`"type":"redacted_thinking","data":` + abc, 6, true},
		{`"type":"signature_delta","signature":` + abc, 6, true},
		{`"type":"compaction","content":` + abc + `,"encrypted_content":null`, 6, true},
		{`"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}`, 10, true},
		{`"type":"web_search_tool_result","tool_use_id":"x","content":[{"type":"web_search_result","url":` + abc + `}]`, 6, true},
		{`"something_new":` + abc, 6, true},
		{`"something_new":[[{"a":{"b":[` + abc + `],"type":"x"}}]]`, 6, true},
		{`"type":"something_new"`, 0, true},
	} {
		for _, place := range []string{
			`{"choices":[{"index":0,"delta":{%s}}]}`, `{"choices":[{"index":0,"message":{%s}}]}`,
			`{"content":[{%s}]}`, `{"type":"content_block_start","content_block":{%s}}`,
			`{"type":"content_block_delta","delta":{%s}}`,
		} {
			for _, format := range textFormats {
				r := readAll(t, Format(format), fmt.Sprintf(place, test.content))
				events := min(1, test.bytes)
				if r.ContentBytes() != test.bytes || r.Hidden != test.hidden || r.ContentEvents != events {
					t.Errorf("%s\ngot  %d bytes in %d events, hidden: %v\nwant %d, hidden: %v", fmt.Sprintf(place, test.content),
						r.ContentBytes(), r.ContentEvents, r.Hidden, test.bytes, test.hidden)
				}
			}
		}
	}
}

// Only content counts.
func TestNoContent(t *testing.T) {
	for _, object := range []string{
		startOf25, endTurn, messageEnd, `{"type":"ping"}`,
		`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":"abc","container":{"id":"c"}},"usage":{}}`,
		`{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt","system_fingerprint":"fp","obfuscation":"xyz",` +
			`"choices":[{"index":0,"delta":{},"logprobs":{"content":[{"token":"a","bytes":[1]}]},"finish_reason":"stop"}]}`,
		`{"choices":[],"prompt_filter_results":[{"content_filter_results":{"hate":{"severity":"safe"}}}]}`,
		`{"error":{"message":"abc","type":"x"}}`,
	} {
		for _, format := range textFormats {
			if r := readAll(t, Format(format), object); r.ContentBytes() > 0 || r.ContentEvents > 0 || r.Hidden {
				t.Errorf("%s: %d bytes, hidden: %v", object, r.ContentBytes(), r.Hidden)
			}
		}
	}
}

// Strings count as what they spell.
func TestContentBytes(t *testing.T) {
	for spelled, want := range map[string]int64{
		``: 0, `abc`: 3, `ä€`: 5, `\n\"\\`: 3, `\u00e4`: 2, `a\u00e4\\u00e4`: 9, `\\\\`: 2, strings.Repeat(`\n`, 1000): 1000,
	} {
		if r := readAll(t, OpenAIChat, `{"choices":[{"delta":{"content":"`+spelled+`"}}]}`); r.ContentBytes() != want {
			t.Errorf("%.50s: got %d, want %d", spelled, r.ContentBytes(), want)
		}
	}
}

// A 2xx that is an error, or nothing, costs nothing unless usage comes with it. A stream shows it with its first event.
func TestFailures(t *testing.T) {
	const (
		usage = `"usage":{"prompt_tokens":9,"input_tokens":9}`
		zeros = `"usage":{"prompt_tokens":0,"completion_tokens":0,"input_tokens":0,"output_tokens":0}`
		first = `{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`
	)
	choice := func(members string) string { return `{"choices":[{"index":0,` + members + `}]` }
	for _, test := range []struct {
		name   string
		format Format
		whole  bool
		read   []string
		want   bool
	}{
		{"error", OpenAIChat, true, []string{`{"error":{"message":"x"}}`}, true},
		{"error that is a sentence", OpenAIChat, true, []string{`{"error":"x"}`}, true},
		{"error with usage", OpenAIChat, true, []string{`{"error":{},` + usage + `}`}, false},
		{"error with a usage of 0", OpenAIChat, true, []string{`{"error":{},` + zeros + `}`}, true},
		{"no error", OpenAIChat, true, []string{choice(`"message":{"content":"a"}`) + `,"error":null}`}, false},
		{"empty error", OpenAIChat, true, []string{choice(`"message":{"content":"a"}`) + `,"error":""}`}, false},
		{"object of type error (vLLM)", OpenAIChat, true, []string{`{"object":"error","message":"x","code":400}`}, true},
		{"x_groq.error", OpenAIChat, true, []string{`{"x_groq":{"error":"x"},"choices":[]}`}, true},
		{"error in a choice", OpenAIChat, true,
			[]string{choice(`"message":{"content":""},"finish_reason":"stop","error":{"code":502}`) + `}`}, true},
		{"reason error", OpenAIChat, true, []string{choice(`"message":{"content":"ab"},"finish_reason":"error"`) + `}`}, true},
		{"reason error with usage", OpenAIChat, true,
			[]string{choice(`"message":{"content":"ab"},"finish_reason":"error"`) + `,` + usage + `}`}, false},
		{"no choices", OpenAIChat, true, []string{`{"id":"g","choices":[]}`}, true},
		{"choices null", OpenAIChat, true, []string{`{"id":"g","choices":null}`}, true},
		{"nothing", OpenAIChat, true, []string{`{}`}, true},
		{"no choices, with usage", OpenAIChat, true, []string{`{"choices":[],` + usage + `}`}, false},
		{"empty choice", OpenAIChat, true, []string{choice(`"message":{"content":""},"finish_reason":"stop"`) + `}`}, false},
		{"error", AnthropicMessages, true, []string{`{"type":"error","error":{"type":"overloaded_error"}}`}, true},
		{"type error", AnthropicMessages, true, []string{`{"type":"error"}`}, true},
		{"no content", AnthropicMessages, true, []string{`{"type":"message","content":[]}`}, true},
		{"no content, with usage", AnthropicMessages, true, []string{`{"type":"message","content":[],` + usage + `}`}, false},

		{"error", OpenAIResponses, true, []string{`{"error":{"message":"x"}}`}, true},
		{"failed", OpenAIResponses, true, []string{responseOf(failed, "", "null")}, true},
		{"failed with usage", OpenAIResponses, true, []string{responseOf(failed, "", responseUsage)}, false},
		{"no output, with usage", OpenAIResponses, true, []string{responseOf(completed, "", responseUsage)}, false},
		{"output", OpenAIResponses, true, []string{responseOf(completed, helloItem, "null")}, false},
		{"created", OpenAIResponses, false, []string{responseBegun}, false},
		{"error first", OpenAIResponses, false, []string{`{"type":"error","code":"x","message":"x"}`}, true},
		{"failed first", OpenAIResponses, false, []string{`{"type":"response.failed","response":{"error":{"code":"x"}}}`}, true},
		{"failed before content", OpenAIResponses, false, []string{responseBegun, `{"type":"response.failed","response":{}}`}, true},
		{"failed with usage", OpenAIResponses, false,
			[]string{responseBegun, `{"type":"response.failed","response":{"usage":` + responseUsage + `}}`}, false},
		{"failed after content", OpenAIResponses, false, []string{`{"type":"response.output_text.delta","delta":"a"}`,
			`{"type":"response.failed","response":{}}`}, false},
		{"no output", OpenAIResponses, false, []string{responseBegun, `{"type":"response.completed","response":{"output":[]}}`}, true},
		{"output at the end", OpenAIResponses, false,
			[]string{`{"type":"response.completed","response":{"output":[` + helloItem + `]}}`}, false},

		{"nothing yet", OpenAIChat, false, nil, false},
		{"first event", OpenAIChat, false, []string{first}, false},
		{"Azure's first event", OpenAIChat, false, []string{`{"choices":[],"prompt_filter_results":[]}`}, false},
		{"error first", OpenAIChat, false, []string{`{"error":{"message":"x"}}`}, true},
		{"reason error first", OpenAIChat, false, []string{choice(`"delta":{"content":""},"finish_reason":"error"`) + `}`}, true},
		{"reason error, then usage", OpenAIChat, false,
			[]string{choice(`"delta":{},"finish_reason":"error"`) + `}`, `{"choices":[],` + usage + `}`}, false},
		{"error before content", OpenAIChat, false, []string{first, `{"error":{"message":"x"}}`}, true},
		{"error after content", OpenAIChat, false, []string{chunkOf("a", "null", "null"), `{"error":{"message":"x"}}`}, false},
		{"error with usage", OpenAIChat, false, []string{`{"error":{"message":"x"},` + usage + `}`}, false},
		{"end marker alone", OpenAIChat, false, []string{doneData}, true},
		{"no choice", OpenAIChat, false, []string{`{"choices":[]}`, doneData}, true},
		{"no content", OpenAIChat, false, []string{first, doneData}, false},
		{"usage alone", OpenAIChat, false, []string{usageAlone, doneData}, false},
		{"no content, before its end", AnthropicMessages, false, []string{`{"type":"message_start","message":{"content":[]}}`}, false},
		{"no content", AnthropicMessages, false,
			[]string{`{"type":"message_start","message":{"content":[]}}`, deltaUsage(`"end_turn"`, "")}, true},
		{"error after message_start", AnthropicMessages, false,
			[]string{startOf25, `{"type":"error","error":{"type":"overloaded_error"}}`}, true},
		{"error after content", AnthropicMessages, false,
			[]string{startOf25, deltaOf("a"), `{"type":"error","error":{"type":"overloaded_error"}}`}, false},
	} {
		s := &Stream{Report: Report{Format: test.format}}
		for _, data := range test.read {
			if test.whole {
				s.Report = *readAll(t, test.format, data)
			} else {
				s.Received(copy(s.Room(), "data: "+data+"\n\n"))
			}
		}
		if got := s.Report.IsFailure(); got != test.want {
			t.Errorf("%s, format %d, whole: %v: got %v", test.name, test.format, test.whole, got)
		}
	}
	s := new(Stream)
	if s.Received(copy(s.Room(), "event: error\ndata: {\"message\":\"x\"}\n\n")); !s.Report.IsFailure() {
		t.Error("an event with the name error is no failure")
	}
	s = new(Stream)
	if s.Received(copy(s.Room(), "event: error\n\nevent: x\ndata: {}\n\n")); s.Report.Failed {
		t.Error("an event without data is a failure")
	}
	if r := (&Report{}); r.IsFailure() {
		t.Error("a response that has not come is a failure")
	}
}

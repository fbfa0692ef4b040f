package llmwire

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestResponsesErrors(t *testing.T) {
	for status, codes := range map[int][2]string{
		400: {"invalid_request_error", "null"}, 402: {"insufficient_quota", `"insufficient_quota"`},
		429: {"rate_limit_error", `"rate_limit_exceeded"`}, 502: {"api_error", "null"}, 504: {"api_error", "null"},
	} {
		body := fmt.Sprintf(`{"error":{"message":"say \"x\"","type":"%s","param":null,"code":%s}}`, codes[0], codes[1])
		event := fmt.Sprintf(`{"type":"error","code":%s,"message":"say \"x\"","param":null,%s`, codes[1], body[1:])
		checkError(t, OpenAIResponses, status, body, "event: error\ndata: "+event+"\n\n")
	}
}

func TestTokenCounts(t *testing.T) {
	for _, test := range []struct {
		format Format
		path   string
		body   string
		want   bool
	}{
		{OpenAIResponses, "/input_tokens", `{"object":"response.input_tokens","input_tokens":11}`, true},
		{OpenAIResponses, "/input_tokens", `{"object":"response.input_tokens","input_tokens":null}`, false},
		{OpenAIResponses, "/input_tokens", `{"object":"response","usage":{"input_tokens":11}}`, false},
		{OpenAIResponses, "/input_tokens", `{"input_tokens":11`, false},
		{AnthropicMessages, "/count_tokens", `{"input_tokens":11}`, true},
		{AnthropicMessages, "/count_tokens", `{}`, false},
		{OpenAIChat, "", `{"input_tokens":11}`, false},
	} {
		if got := test.format.IsTokenCount([]byte(test.body)); got != test.want || test.format.CountPath() != test.path {
			t.Errorf("format %d, %s: got %v, and %q", test.format, test.body, got, test.format.CountPath())
		}
	}
}

func TestResponsesRequests(t *testing.T) {
	checkRequests(t, OpenAIResponses, []requestTest{
		{"empty", `{}`, ` n=1 limit=0`},
		{"as the SDK sends it", `{"model":"gpt-5.2","input":"Hi","instructions":"Be brief.","max_output_tokens":100,"stream":true}`,
			`gpt-5.2 n=1 limit=100 stream`},
		{"as Codex does", `{"model":"gpt-5.2-codex","instructions":"x","input":[{"type":"message","role":"user","content":` +
			`[{"type":"input_text","text":"say hello"}]}],"tools":[{"type":"function","name":"shell","parameters":{}},` +
			`{"type":"namespace","name":"n","description":"d","tools":[{"type":"function","name":"f"}]},` +
			`{"type":"custom","name":"apply_patch","format":{"type":"grammar"}},{"type":"web_search","external_web_access":false}],` +
			`"tool_choice":"auto","parallel_tool_calls":false,"reasoning":{"effort":"medium","summary":"auto"},"store":false,` +
			`"stream":true,"include":["reasoning.encrypted_content"],"prompt_cache_key":"k","client_metadata":{"a":"b"},` +
			`"text":{"verbosity":"low"}}`,
			`gpt-5.2-codex n=1 limit=0 stream tools hidden server:web_search (can be dropped)`},
		{"nulls", `{"model":null,"input":null,"instructions":null,"max_output_tokens":null,"conversation":null,"prompt":null,` +
			`"background":null,"context_management":null,"previous_response_id":null,"store":null,"text":null,` +
			`"reasoning":null,"moderation":null,"service_tier":null,"max_tool_calls":null,"stream_options":null}`, ` n=1 limit=0`},
		{"no limit", `{"max_output_tokens":-1}`, ` n=1 limit=0`},
		{"limits of the other API", `{"max_tokens":5,"max_output_tokens":7,"max_completion_tokens":9}`, ` n=1 limit=9`},
		{"no reasoning", `{"reasoning":{"effort":"none"}}`, ` n=1 limit=0 off`},
		{"minimal reasoning", `{"reasoning":{"effort":"minimal"}}`, ` n=1 limit=0 hidden`},
		{"reasoning in an update", `{"reasoning":{"effort":"none"},"input":[{"type":"configuration_update",` +
			`"reasoning":{"effort":"high"}}]}`, ` n=1 limit=0 hidden`},
		{"reasoning several times over", `{"reasoning":{"mode":"pro"}}`, ` n=1 limit=0 hidden unknown:[reasoning]`},
		{"reasoning in the standard mode", `{"reasoning":{"mode":"standard","effort":"none"}}`, ` n=1 limit=0 off`},
		{"known members", `{"include":["x"],"max_tool_calls":3,"metadata":{},"truncation":"auto","top_logprobs":1,"user":"u",` +
			`"safety_identifier":"s","prompt_cache_retention":"24h","background":false,"image":{"context_compression":"auto"}}`,
			` n=1 limit=0`},
		{"known members of vLLM", `{"top_k":1,"seed":1,"ignore_eos":true,"structured_outputs":{"json":{}},"logit_bias":{}}`,
			` n=1 limit=0`},
		{"unknown members", `{"moderation":{"model":"m"},"n":2,"messages":[],"request_id":"resp_1","previous_response":{},` +
			`"personality":"friendly","invented":1}`,
			` n=2 limit=0 unknown:[moderation n messages request_id previous_response personality invented]`},
		{"tiers", `{"service_tier":"flex"}`, ` n=1 limit=0`},
		{"dear tiers", `{"service_tier":"priority"}`, ` n=1 limit=0 unknown:[service_tier]`},
		{"cache", `{"prompt_cache_options":{"ttl":"12h"}}`, ` n=1 limit=0 unknown:[prompt_cache_options]`},
		{"summary first", `{"input":[{"type":"compaction_trigger"}]}`, ` n=1 limit=0 twice`},
		{"limit of a sound", `{"modalities":["audio"]}`, ` n=1 limit=0 media`},
	})
	for _, name := range []string{ // what chooses another model, price or service, or adds input or output
		"models", "route", "fallbacks", "provider", "plugins", "search_parameters", "enable_search", "data_sources",
		"web_search_options", "inference_geo", "container", "n_predict", "best_of", "use_beam_search", "options", "lora",
		"chat_template_kwargs", "access_programs", "background_options", "vllm_xargs", "priority", "system",
	} {
		r, err := ReadRequest(OpenAIResponses, fmt.Appendf(nil, `{%q:{"x":1}}`, name))
		if err != nil || !slices.Equal(r.Unknown, []string{name}) {
			t.Errorf("%s: unknown are %v, %v", name, r.Unknown, err)
		}
	}
	for _, member := range []string{"conversation", "prompt", "background", "context_management"} {
		for _, value := range []string{`{"id":"x"}`, `true`, `"x"`, `[]`, `{}`, `1`} {
			body := fmt.Sprintf(`{"model":"m",%q:%s}`, member, value)
			if _, err := ReadRequest(OpenAIResponses, []byte(body)); err != (UnsupportedError{member}) {
				t.Errorf("%s: got %v", body, err)
			}
		}
	}
}

// An item whose content the provider looks up is a reference, however it is spelled and wherever it stands.
func TestReferences(t *testing.T) {
	item := func(members string) string { return `{"input":[{"role":"user","content":"x"},` + members + `]}` }
	for _, test := range []struct{ name, body, want string }{
		{"none", item(`{"type":"message","id":"msg_1","role":"assistant","content":[{"type":"output_text","text":"x"}]}`), ` [] true`},
		{"not stored", `{"store":false}`, ` [] false`},
		{"stored", `{"store":true}`, ` [] true`},
		{"stored by default", `{"store":null}`, ` [] true`},
		{"previous", `{"previous_response_id":"resp_1","store":false}`, `resp_1 [] false`},
		{"previous, with escapes", `{"previous\u005fresponse_id":"resp\u005f1"}`, `resp_1 [] true`},
		{"no previous", `{"previous_response_id":null}`, ` [] true`},
		{"reference", item(`{"type":"item_reference","id":"msg_1"}`), ` [msg_1] true`},
		{"with escapes", item(`{"\u0074ype":"item\u005freference","\u0069d":"msg\u005f1"}`), ` [msg_1] true`},
		{"ID first", item(`{"id":"msg_1","type":"item_reference"}`), ` [msg_1] true`},
		{"without a type", item(`{"id":"msg_1"}`), ` [msg_1] true`},
		{"type null", item(`{"id":"msg_1","type":null,"role":null}`), ` [msg_1] true`},
		{"empty type and role", item(`{"id":"msg_1","type":"","role":""}`), ` [msg_1] true`},
		{"without a type, with content", item(`{"id":"msg_1","content":"x"}`), ` [msg_1] true`},
		{"with a role", item(`{"id":"msg_1","role":"assistant","content":"x"}`), ` [] true`},
		{"reference with a role", item(`{"id":"msg_1","role":"user","type":"item_reference"}`), ` [msg_1] true`},
		{"role alone", item(`{"id":"msg_1","role":"assistant","content":null}`), ` [msg_1] true`},
		{"type and role alone", item(`{"id":"msg_1","type":"message","role":"assistant","status":"completed"}`), ` [msg_1] true`},
		{"type alone", item(`{"id":"fc_1","type":"function_call","arguments":null}`), ` [fc_1] true`},
		{"with empty content", item(`{"id":"msg_1","type":"message","role":"assistant","content":[]}`), ` [] true`},
		{"a summary that is kept", item(`{"id":"cmp_1","type":"compaction","summary":"x"}`), ` [cmp_1] true`},
		{"a summary in the body", item(`{"id":"cmp_1","type":"compaction","encrypted_content":"x"}`), ` [] true`},
		{"each once", item(`{"id":"a"},{"id":"b"},{"id":"a","type":"item_reference"}`), ` [a b] true`},
		{"in content", item(`{"role":"user","content":[{"type":"item_reference","id":"msg_1"}]}`), ` [msg_1] true`},
		{"in output", item(`{"type":"function_call_output","call_id":"c","output":[{"id":"msg_1"}]}`), ` [msg_1] true`},
		{"in instructions", `{"instructions":[{"id":"msg_1"}]}`, ` [msg_1] true`},
		{"in messages", `{"messages":[{"id":"msg_1"}]}`, ` [msg_1] true`},
		{"of a call", item(`{"type":"function_call","id":"fc_1","call_id":"c","name":"f","arguments":"{}"}`), ` [] true`},
		{"of a type that is not known", item(`{"type":"invented","id":"x_1"}`), ` [x_1] true`},
		{"of no string", item(`{"type":["item_reference"],"id":"x_1"}`), ` [x_1] true`},
		{"reasoning that is kept", item(`{"type":"reasoning","id":"rs_1","summary":[]}`), ` [rs_1] true`},
		{"reasoning with a summary", item(`{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"x"}]}`),
			` [rs_1] true`},
		{"reasoning in the body", item(`{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"QUJD"}`), ` [] true`},
		{"reasoning that is empty", item(`{"type":"reasoning","id":"rs_1","encrypted_content":""}`), ` [rs_1] true`},
		{"reasoning with another's content", item(`{"type":"reasoning","id":"rs_1","result":"x"},` +
			`{"type":"image_generation_call","id":"ig_1","encrypted_content":"x"}`), ` [rs_1 ig_1] true`},
		{"reasoning without an ID", item(`{"type":"reasoning","summary":[]}`), ` [] true`},
		{"image that is kept", item(`{"type":"image_generation_call","id":"ig_1"}`), ` [ig_1] true`},
		{"image that is null", item(`{"type":"image_generation_call","id":"ig_1","result":null}`), ` [ig_1] true`},
		{"image in the body", item(`{"type":"image_generation_call","id":"ig_1","result":"QUJD"}`), ` [] true`},
		{"diagnosis", `{"prompt_cache_options":{"comparison_response_id":"resp_1"}}`, ` [resp_1] true`},
		{"long ID of an item", item(`{"type":"message","role":"user","content":"x","id":"` + strings.Repeat("x", 999) + `"}`), ` [] true`},
		{"metadata", `{"metadata":{"previous_response_id":"resp_1","input":[{"id":"x"}]}}`, ` [] true`},
	} {
		r, err := ReadRequest(OpenAIResponses, []byte(test.body))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := fmt.Sprintf("%s %v %v", r.Previous, r.References, r.Stored); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
	many := strings.Repeat(`{"id":"a"},`, 3*maxReferences)
	for i := range maxReferences - 1 {
		many += fmt.Sprintf(`{"id":"m%d"},`, i)
	}
	const id = "must be a string of 1 to 256 bytes"
	for _, test := range []struct{ body, want string }{
		{item(many + `{"id":"a"}`), ""},
		{item(many + `{"id":"b"}`), "The input refers to more than 2000 items"},
		{item(`{"id":"a","id":"b"}`), "input[].id is duplicated"},
		{item(`{"id":"a","i\u0064":"b"}`), "input[].id is duplicated"},
		{item(`{"id":"a","type":"item_reference","type":"message"}`), "input[].type is duplicated"},
		{item(`{"id":"a","role":"user","role":null}`), "input[].role is duplicated"},
		{item(`{"type":"reasoning","encrypted_content":"x","encrypted_content":null}`), "input[].encrypted_content is duplicated"},
		{item(`{"type":"image_generation_call","result":"x","result":null}`), "input[].result is duplicated"},
		{item(`{"ID":"a"}`), "input[].ID must be spelled input[].id"},
		{item(`{"id":"a","Type":"message"}`), "input[].Type must be spelled input[].type"},
		{item(`{"id":5}`), "input[].id " + id}, {item(`{"id":""}`), "input[].id " + id},
		{item(`{"id":["a"],"type":"item_reference"}`), "input[].id " + id},
		{item(`{"id":"` + strings.Repeat("x", 257) + `"}`), "input[].id " + id},
		{`{"previous_response_id":["resp_1"]}`, "previous_response_id " + id},
		{`{"previous_response_id":""}`, "previous_response_id " + id},
		{`{"previous_response_id":"` + strings.Repeat("x", 257) + `"}`, "previous_response_id " + id},
		{`{"previous_response_id":"a","previous_response_id":"b"}`, "previous_response_id is duplicated"},
		{`{"Previous_response_id":"a"}`, "Previous_response_id must be spelled previous_response_id"},
		{`{"prompt_cache_options":{"Comparison_response_id":"a"}}`, "prompt_cache_options.Comparison_response_id must be " +
			"spelled prompt_cache_options.comparison_response_id"},
		{`{"tools":[{"type":"namespace","tools":{"type":"web_search"}}]}`, "tools[].tools must be an array"},
		{`{"tools":[{"type":"shell","environment":{"type":"local","Type":"container_auto"}}]}`,
			"tools[].environment.Type must be spelled tools[].environment.type"},
		{`{"text":{"Format":{}}}`, "text.Format must be spelled text.format"},
		{`{"store":"no"}`, "store must be true or false"}, {`{"store":true,"store":false}`, "store is duplicated"},
		{`{"input":{"type":"item_reference","id":"msg_1"}}`, "input must be a string or an array"},
		{item(`[{"id":"a"}]`), "A message, or a part of one, must not be an array"},
		{item(`{"type":"additional_tools","tools":{"type":"web_search"}}`), "input[].tools must be an array"},
	} {
		_, err := ReadRequest(OpenAIResponses, []byte(test.body))
		if got := fmt.Sprint(err); got != test.want && (err != nil || test.want != "") {
			t.Errorf("%.100s\ngot  %s\nwant %s", test.body, got, test.want)
		}
	}
}

func TestResponsesTools(t *testing.T) {
	const shell = `{"type":"shell","environment":{"type":"local","skills":[{"name":"s"}]}}`
	for _, test := range []struct {
		tools, server string
		canDrop       bool
	}{
		{`{"type":"function","name":"f","parameters":{},"output_schema":{"type":"object"}}`, "", false},
		{`{"type":"custom"},{"type":"local_shell"},{"type":"apply_patch"},{"type":"computer"}`, "", false},
		{`{"type":"computer_use_preview","environment":"browser","display_width":1}`, "", false},
		{`{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"},{"type":"custom"}]}`, "", false},
		{`{"type":"namespace","tools":[{"type":"function"},{"type":"web_search"}]}`, "web_search", true},
		{shell, "", false},
		{`{"environment":{"type":"local"},"type":"shell"}`, "", false},
		{`{"type":"shell"}`, "shell", true},
		{`{"type":"shell","environment":null}`, "shell", true},
		{`{"type":"shell","environment":{}}`, "shell", true},
		{`{"type":"shell","environment":"local"}`, "shell", true},
		{`{"type":"shell","execution":"client"}`, "shell", true},
		{`{"type":"shell","environment":{"type":"container_auto"}}`, "shell", true},
		{`{"type":"shell","environment":{"type":"container_reference","container_id":"c"}}`, "shell", true},
		{`{"type":"shell","environment":{"type":"local","type":"container_auto"}}`, "shell", true},
		{`{"type":"shell","environment":{"type":"local"},"environment":{"container_id":"c"}}`, "shell", true},
		{`{"type":"shell","environment":{"type":"local"},"environment":null}`, "shell", true},
		{`{"type":"namespace","tools":[{"type":"shell"},` + shell + `]}`, "shell", true},
		{`{"type":"shell","type":"function"}`, "function", true},
		{`{"type":"tool_search","execution":"client","parameters":{}}`, "", false},
		{`{"type":"tool_search"}`, "tool_search", true},
		{`{"type":"tool_search","execution":"server"}`, "tool_search", true},
		{`{"type":"tool_search","execution":"client","execution":null}`, "tool_search", true},
		{`{"type":"tool_search","environment":{"type":"local"}}`, "tool_search", true},
		{`{"type":"web_search"}`, "web_search", true}, {`{"type":"file_search"}`, "file_search", true},
		{`{"type":"code_interpreter","container":{"type":"auto"}}`, "code_interpreter", true},
		{`{"type":"mcp","server_url":"https://example.com"}`, "mcp", true}, {`{"type":"invented"}`, "invented", true},
		{`{"type":"image_generation"}`, "image_generation", true},
		{`{"type":"programmatic_tool_calling"}`, "programmatic_tool_calling", true},
	} {
		for _, place := range []string{`{"tools":[%s]}`, `{"input":[{"type":"additional_tools","role":"developer","tools":[%s]}]}`} {
			body := fmt.Sprintf(place, test.tools)
			r, err := ReadRequest(OpenAIResponses, []byte(body))
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			canDrop := test.canDrop && strings.HasPrefix(body, `{"tools"`)
			if r.ServerTool != test.server || r.CanDropTools != canDrop || !r.tools.exist {
				t.Errorf("%s: the provider runs %q, can be dropped: %v", body, r.ServerTool, r.CanDropTools)
			}
		}
	}
	for choice, want := range map[string]bool{
		`"auto"`: true, `"required"`: true, `{"type":"function","name":"f"}`: true, `{"type":"web_search"}`: false,
		`{"type":"mcp","server_label":"s"}`: false, `{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f"}]}`: true,
		`{"type":"allowed_tools","mode":"auto","tools":[{"type":"mcp","server_label":"s"}]}`: false, `{"type":"\u006dcp"}`: false,
	} {
		body := `{"tools":[{"type":"function","name":"f"},{"type":"web_search"},{"type":"mcp"}],"tool_choice":` + choice + `}`
		if r, err := ReadRequest(OpenAIResponses, []byte(body)); err != nil || r.CanDropTools != want {
			t.Errorf("%s: can be dropped: %v, %v", choice, r.CanDropTools, err)
		}
	}
	for _, kind := range []string{"mcp_approval_response", "program", "program_output", "invented"} {
		r, err := ReadRequest(OpenAIResponses, []byte(`{"input":[{"type":"`+kind+`"}],"tools":[{"type":"web_search"}]}`))
		if err != nil || r.ServerTool != kind || r.CanDropTools {
			t.Errorf("%s: the provider runs %q, %v", kind, r.ServerTool, err)
		}
	}
}

// What the model reads is counted for the estimate, and media for the hold.
func TestResponsesInput(t *testing.T) {
	const text = "twenty bytes of text" // 5 tokens
	item := func(members string) string {
		return `{"input":[{` + strings.ReplaceAll(members, "TEXT", `"`+text+`"`) + `}]}`
	}
	for _, test := range []struct {
		body string
		want int64
	}{
		{`{"input":"` + text + `"}`, 4 + 5}, {`{"instructions":"` + text + `"}`, 4 + 5},
		{`{"text":{"verbosity":"low","format":{"type":"json_schema","schema":{}}}}`, 9},
		{item(`"role":"user","content":TEXT},{"role":"user","content":TEXT`), 18},
		{item(`"role":"user","content":TEXT`), 9}, {item(`"role":"user","content":[{"type":"input_text","text":TEXT}]`), 9},
		{item(`"type":"message","content":[{"type":"output_text","text":TEXT},{"type":"refusal","refusal":TEXT}]`), 14},
		{item(`"type":"function_call","call_id":TEXT,"name":"four","arguments":TEXT`), 4 + 6},
		{item(`"type":"function_call_output","output":TEXT`), 9},
		{item(`"type":"function_call_output","output":[{"type":"input_text","text":TEXT}]`), 9},
		{item(`"type":"custom_tool_call","input":TEXT`), 9}, {item(`"type":"custom_tool_call_output","output":TEXT`), 9},
		{item(`"type":"reasoning","summary":[{"type":"summary_text","text":TEXT}],"encrypted_content":TEXT`), 14},
		{item(`"type":"reasoning","content":[{"type":"reasoning_text","text":TEXT}]`), 9},
		{item(`"type":"local_shell_call","action":{"a":TEXT}`), 4 + 7}, {item(`"type":"local_shell_call_output","output":TEXT`), 9},
		{item(`"type":"shell_call_output","output":[{"stdout":TEXT,"stderr":TEXT,"outcome":{"type":"exit"}}]`), 14},
		{item(`"type":"computer_call","actions":[TEXT]`), 4 + 6}, {item(`"type":"mcp_call","error":{"a":TEXT}`), 4 + 7},
		{item(`"type":"apply_patch_call","operation":{"diff":TEXT}`), 4 + 8}, {item(`"type":"mcp_call","arguments":TEXT,"output":TEXT`), 14},
		{item(`"type":"code_interpreter_call","code":TEXT,"outputs":[{"type":"logs","logs":TEXT}]`), 14},
		{item(`"type":"file_search_call","queries":[TEXT],"results":[{"text":TEXT}]`), 4 + 15},
		{item(`"type":"compaction","encrypted_content":TEXT`), 9}, {item(`"type":"program_output","result":TEXT`), 9},
		{item(`"type":"configuration_update","text":{"format":{"a":TEXT}}`), 4 + 10},
		{item(`"type":"additional_tools","tools":[{"type":"function","name":"four","description":TEXT,"parameters":{}}]`), 4 + 7},

		{item(`"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,QUJD"}]`), 4 + 2000},
		{item(`"role":"user","content":[{"type":"input_image","file_id":"file_1"}]`), 4 + 2000},
		{item(`"role":"user","content":[{"type":"input_image","image_url":"https://example.com"}]`), 4 + 2000},
		{item(`"role":"user","content":[{"type":"input_file","file_data":"data:application/pdf;base64,QUJDREVG"}]`), 4 + 6},
		{item(`"role":"user","content":[{"type":"input_file","file_id":"file_1"}]`), 4 + 9000},
		{item(`"role":"user","content":[{"type":"input_file","file_url":"https://example.com"}]`), 4 + 9000},
		{item(`"role":"user","content":[{"type":"input_audio","input_audio":{"data":"QUJD"}}]`), 4 + 2000},
		{item(`"type":"function_call_output","output":[{"type":"input_image","image_url":"https://example.com"}]`), 4 + 2000},
		{item(`"type":"computer_call_output","output":{"type":"computer_screenshot","file_id":"file_1"}`), 4 + 2000},
		{item(`"type":"computer_call_output","output":{"type":"computer_screenshot","image_url":"data:image/png;base64,QUJD"}`), 2004},
		{item(`"type":"image_generation_call","result":"QUJD"`), 4 + 2000},
		{item(`"type":"code_interpreter_call","outputs":[{"type":"image","url":"https://example.com"}]`), 4 + 2000},
	} {
		r, err := ReadRequest(OpenAIResponses, []byte(test.body))
		if err != nil {
			t.Fatalf("%s: %v", test.body, err)
		}
		if got := r.EstimatedInput(Holding{BytesPerToken: 1, MediaTokens: 2000, FileTokens: 9000}); got != test.want {
			t.Errorf("%s: estimated %d, want %d", test.body, got, test.want)
		}
	}
}

func TestResponsesRewrite(t *testing.T) {
	for _, test := range []struct {
		body string
		c    Changes
		want string
	}{
		{`{"model":"m"}`, Changes{NoStore: true}, `{"store":false,"model":"m"}`},
		{`{"store":null}`, Changes{NoStore: true}, `{"store":false}`},
		{`{"store" : true}`, Changes{NoStore: true}, `{"store" : false}`},
		{`{"store":false}`, Changes{NoStore: true}, `{"store":false}`},
		{`{"store":true}`, Changes{}, `{"store":true}`},
		{`{"stream":true}`, Changes{}, `{"stream":true}`},
		{`{"stream":true,"stream_options":{"include_obfuscation":false}}`, Changes{},
			`{"stream":true,"stream_options":{"include_obfuscation":false}}`},
		{`{}`, Changes{LimitMember: "max_output_tokens", Limit: 7}, `{"max_output_tokens":7}`},
		{`{"max_output_tokens":9}`, Changes{LimitMember: "max_output_tokens", Limit: 7}, `{"max_output_tokens":7}`},
		{`{"max_tokens":9}`, Changes{LimitMember: "max_output_tokens"}, `{"max_output_tokens":9}`},
		{`{"max_output_tokens":9,"max_tokens":8}`, Changes{LimitMember: "max_output_tokens"}, `{"max_output_tokens":9}`},
		{`{"tools":[{"type":"web_search"},{"type":"function","name":"f"}]}`, Changes{DropTools: true},
			`{"tools":[{"type":"function","name":"f"}]}`},
		{`{"tools":[{"type":"web_search"}],"tool_choice":"auto","store":false}`, Changes{DropTools: true}, `{"store":false}`},
		{`{}`, Changes{SafetyID: "u"}, `{"safety_identifier":"u"}`},
	} {
		r, err := ReadRequest(OpenAIResponses, []byte(test.body))
		if err != nil {
			t.Fatalf("%s: %v", test.body, err)
		}
		var got string
		for _, piece := range r.Rewrite(test.c) {
			got += string(piece)
		}
		if got != test.want {
			t.Errorf("%s, %+v\ngot  %s\nwant %s", test.body, test.c, got, test.want)
		}
	}
	if r, err := ReadRequest(OpenAIChat, []byte(`{"store":true}`)); err != nil || r.Stored || len(r.Rewrite(Changes{NoStore: true})) != 1 {
		t.Errorf("a chat completion is stored as a response: %v", err)
	}
}

// itemIDs returns the IDs that a report of items with n IDs has, which are read twice.
func itemIDs(t *testing.T, n int) []string {
	t.Helper()
	r := &Report{Format: OpenAIResponses}
	for range 2 {
		for i := range n {
			event := fmt.Sprintf(`{"type":"response.output_item.added","item":{"type":"message","id":"msg_%d"}}`, i)
			if _, err := r.Read([]byte(event)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r.ItemIDs
}

func TestItemIDs(t *testing.T) {
	for _, test := range []struct {
		name, want string
		objects    []string
	}{
		{"whole", "resp_1 [rs_1 msg_1]", []string{`{"id":"resp_1","object":"response","output":[{"id":"rs_1","type":"reasoning"},` +
			`{"type":"message","id":"msg_1","content":[{"type":"output_text","text":"x","id":"no"}]}]}`}},
		{"compact", "resp_1 [cmp_1]", []string{`{"id":"resp_1","object":"response.compaction","output":[{"type":"compaction",` +
			`"id":"cmp_1","encrypted_content":"x"}]}`}},
		{"before the end", "resp_1 [rs_1 msg_1]", []string{
			`{"type":"response.created","response":{"id":"resp_1","output":[]}}`,
			`{"type":"response.output_item.added","item":{"id":"rs_1","type":"reasoning"}}`,
			`{"type":"response.output_item.done","item":{"id":"rs_1","type":"reasoning"}}`,
			`{"type":"response.output_item.done","item":{"id":"msg_1","type":"message"}}`,
			`{"type":"response.output_text.delta","item_id":"msg_2","delta":"x"}`,
		}},
		{"at the end alone", "resp_2 [msg_1]", []string{
			`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"response.completed","response":{"id":"resp_2","output":[{"id":"msg_1"}]}}`}},
		{"none", " []", []string{`{"type":"error","message":"x"}`}},
		{"escapes", "resp_1 [a/b]", []string{`{"id":"r\u0065sp_1","output":[{"id":"a\/b"}]}`}},
		{"odd", " []", []string{`{"id":5,"output":[{"id":null},{"id":""},{"id":"` + strings.Repeat("x", 257) + `"},"x"]}`}},
	} {
		r := readAll(t, OpenAIResponses, test.objects...)
		if got := fmt.Sprintf("%s %v", r.ResponseID, r.ItemIDs); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
	if got := itemIDs(t, maxReferences+1); len(got) != maxReferences || got[7] != "msg_7" || !slices.IsSortedFunc(got[:9], strings.Compare) {
		t.Errorf("got %d IDs", len(got))
	}
	if r := readAll(t, OpenAIChat, `{"id":"x","output":[{"id":"y"}],"choices":[]}`); r.ResponseID != "" || len(r.ItemIDs) > 0 {
		t.Errorf("a chat completion has %s and %v", r.ResponseID, r.ItemIDs)
	}
}

// The IDs that are noted of a response take little memory, whatever the provider sends.
func TestItemIDBounds(t *testing.T) {
	long := make([]string, 1000)
	for i := range long {
		long[i] = fmt.Sprintf(`{"item":{"id":"%0250d"}}`, i)
	}
	if r := readAll(t, OpenAIResponses, long...); len(r.ItemIDs) != maxItemIDBytes/250 || len(r.hasItem) != len(r.ItemIDs) {
		t.Errorf("%d IDs of 250 bytes are noted, want %d", len(r.ItemIDs), maxItemIDBytes/250)
	}
	s := &Stream{Report: Report{Format: OpenAIResponses}}
	relay(s, []byte(`data: {"item":{"id":"kept"}}`+"\n\n"))
	for i := range 3 * maxReferences { // lines that are no object together, and none of which is one
		relay(s, fmt.Appendf(nil, "data: {\ndata: \"item\":{\"id\":\"kept\"},\"item\":{\"id\":\"x%d\"},\n\n", i))
	}
	relay(s, []byte(`data: {"item":{"id":"kept"}}`+"\n\n"))
	if got := s.Report.ItemIDs; len(got) != 1 || len(s.Report.hasItem) != 1 {
		t.Errorf("got %d IDs and an index of %d, want 1", len(got), len(s.Report.hasItem))
	}
}

package llmwire

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// listings returns what is listed of the top-level members of a format.
func listings(format Format) []listing {
	if format == OpenAIChat {
		return openAIChatMembers
	}
	if format == OpenAIResponses {
		return openAIResponsesMembers
	}
	return []listing{anthropicMembers}
}

// A name has one column, and one that has a rule is read.
func TestListings(t *testing.T) {
	for i, f := range formats[:len(textFormats)] {
		seen := make(map[string]bool)
		for _, l := range listings(Format(i)) {
			for _, name := range slices.Concat(l.known, l.ruled, l.refused) {
				if seen[name] {
					t.Errorf("%s has two columns", name)
				}
				seen[name] = true
			}
			for _, name := range l.ruled {
				if f.request.members[name] == nil {
					t.Errorf("%s has no rule", name)
				}
			}
			for _, name := range slices.Concat(l.known, l.refused) {
				shape := f.request.members[name]
				isTree := name == "messages" || name == "system" || name == "metadata" || name == "container"
				if shape != nil && !isTree {
					t.Errorf("%s has a rule", name)
				}
			}
		}
	}
}

// A member is known, or it is named. null is as absent, and so is what is off and known to be dear when it is on.
func TestUnknownMembers(t *testing.T) {
	many := `"x0":1`
	names := []string{"x0"}
	for i := 1; i < 200; i++ { // an endpoint may allow all but the last
		many += fmt.Sprintf(`,"x%d":1`, i)
		names = append(names, fmt.Sprintf("x%d", i))
	}
	long := strings.Repeat("x", 100)
	for _, test := range []struct {
		member       string
		chat, claude string // the names, unless both have the first
	}{
		{`"models":["a"]`, "models", ""}, {`"route":"fallback"`, "route", ""}, {`"fallbacks":[{"model":"a"}]`, "fallbacks", ""},
		{`"fallbacks":"default"`, "fallbacks", ""}, {`"provider":{"order":["a"]}`, "provider", ""},
		{`"plugins":[{"id":"web"}]`, "plugins", ""}, {`"search_parameters":{"mode":"on"}`, "search_parameters", ""},
		{`"enable_search":true`, "enable_search", ""}, {`"data_sources":[{}]`, "data_sources", ""},
		{`"web_search_options":{}`, "web_search_options", ""}, {`"inference_geo":"us"`, "inference_geo", ""},
		{`"container":"c1"`, "container", ""}, {`"container":{"id":"c1"}`, "container", ""}, {`"n_predict":-1`, "n_predict", ""},
		{`"best_of":2`, "best_of", ""}, {`"use_beam_search":true`, "use_beam_search", ""}, {`"extra_body":{}`, "extra_body", ""},
		{`"options":{"num_predict":9}`, "options", ""}, {`"n_cmpl":9`, "n_cmpl", ""}, {`"prediction":{}`, "prediction", ""},
		{`"chat_template":"{{x}}"`, "chat_template", ""}, {`"mm_processor_kwargs":{}`, "mm_processor_kwargs", ""},
		{`"chat_template_kwargs":{"a":1,"chat_templat\u0065":"{{x}}"}`, "chat_template", "chat_template_kwargs"},
		{`"chat_template_kwargs":{"enable_thinking":false,"chat_template":null}`, "-", "chat_template_kwargs"},
		{`"max_output_tokens":9`, "max_output_tokens", ""}, {`"betas":["x"]`, "betas", ""},
		{`"input":[{"type":"x"}]`, "input", ""}, {`"invented":0`, "invented", ""},
		{`"invented":false`, "invented", ""}, {`"invented":[]`, "invented", ""}, {`"Temperature":1`, "Temperature", ""},
		{`"\u006dodels":[""]`, "models", ""}, {`"messages.":1`, "messages.", ""}, {`"":1`, "", ""},
		{`"` + long + `":1`, long[:64] + "…", ""},
		{many, strings.Join(names, " "), ""},

		{`"response_fields":["content"]`, "response_fields", ""}, {`"response_fields":null`, "-", ""},
		{`"usage":{"include":false}`, "usage", ""}, {`"usage":{}`, "usage", ""}, {`"usage":true`, "usage", ""},
		{`"usage":{"include":null}`, "usage", ""}, {`"usage":{"include":"true"}`, "usage", ""},
		{`"usage":{"include":true,"include":false}`, "usage", ""}, {`"usage":{"include":false,"include":true}`, "usage", ""},
		{`"usage":{"include": true }`, "-", "usage"}, {`"usage":null`, "-", ""},

		{`"service_tier":"priority"`, "service_tier", ""}, {`"service_tier":"fast"`, "service_tier", ""},
		{`"service_tier":1`, "service_tier", ""}, {`"speed":"fast"`, "speed", ""},
		{`"service_tier":"auto"`, "-", ""}, {`"service_tier":"default"`, "-", ""}, {`"service_tier":"flex"`, "-", ""},
		{`"service_tier":"standard_only"`, "-", ""}, {`"speed":"standard"`, "-", ""},

		{`"models":[]`, "-", "-"}, {`"fallbacks":null`, "-", ""}, {`"invented":null`, "-", ""}, {`"temperature":1`, "-", ""},
		{`"plugins":false`, "-", ""}, {`"mcp_servers":[]`, "-", ""}, {`"messages":[]`, "-", ""}, {`"top_k":1`, "-", ""},
		{`"metadata":{}`, "-", ""},

		{`"enable_search":false`, "-", "enable_search"}, {`"use_beam_search":false`, "-", "use_beam_search"},
		{`"ignore_eos":true`, "-", "ignore_eos"}, {`"min_tokens":5`, "-", "min_tokens"}, {`"mirostat":2`, "-", "mirostat"},
		{`"n":2`, "-", "n"}, {`"stream_options":{"x":1}`, "-", "stream_options"}, {`"functions":[]`, "-", "functions"},
		{`"guided_json":{}`, "-", "guided_json"}, {`"random_seed":1`, "-", "random_seed"}, {`"modalities":[]`, "-", "modalities"},
		{`"prompt_cache_options":{"mode":"explicit","ttl":"30m"}`, "-", "prompt_cache_options"},
		{`"prompt_cache_options":{"ttl":"12h"}`, "prompt_cache_options", ""},
		{`"prompt_cache_options":{"comparison_response_id":"a"}`, "prompt_cache_options", ""},
		{`"prompt_cache_options":{"comparison_response_id":null}`, "-", "prompt_cache_options"},
		{`"messages":[{"content":[{"type":"text","prompt_cache_breakpoint":{"ttl":"30m"}}]}]`, "-", ""},
		{`"messages":[{"content":[{"type":"text","prompt_cache_breakpoint":{"ttl":"12h"}}]}]`, "prompt_cache_options", ""},
		{`"system":"x"`, "system", "-"}, {`"context_management":{}`, "context_management", "-"},
		{`"compaction":{"type":"summarize"}`, "compaction", "-"}, {`"stop_sequences":[]`, "stop_sequences", "-"},
		{`"output_config":{}`, "output_config", "-"}, {`"diagnostics":{}`, "diagnostics", "-"},
	} {
		for format, want := range map[Format]string{OpenAIChat: test.chat, AnthropicMessages: test.claude} {
			if want == "" {
				want = test.chat
			}
			r, err := ReadRequest(format, []byte(`{"model":"m",`+test.member+`}`))
			if err != nil {
				t.Fatalf("%s: %v", test.member, err)
			}
			got := strings.Join(r.Unknown, " ")
			if len(r.Unknown) == 0 {
				got = "-"
			}
			if got != want {
				t.Errorf("format %d, %s: got %s, want %s", format, test.member, got, want)
			}
		}
	}
}

// What is kept at the provider, or comes later, is refused in all formats.
func TestUnsupportedMembers(t *testing.T) {
	for _, format := range textFormats {
		for _, test := range []struct{ body, member string }{
			{`{"thread":{"type":"create"}}`, "thread"},
			{`{"messages":[],"thread":{"type":"continue","previous_message_id":"msg_1"}}`, "thread"},
			{`{"thread":"msg_1","model":5}`, "thread"}, // what comes first is said
			{`{"previous_response_id":"resp_1"}`, "previous_response_id"},
			{`{"conversation":"conv_1"}`, "conversation"},
			{`{"conversation":{"id":"conv_1"}}`, "conversation"},
			{`{"background":true}`, "background"},
		} {
			if test.member == "previous_response_id" && format == OpenAIResponses {
				continue // has a test of its own
			}
			r, err := ReadRequest(Format(format), []byte(test.body))
			if refused, ok := errors.AsType[UnsupportedError](err); !ok || refused.Member != test.member || r != nil {
				t.Errorf("%s: got %v, want that %s is not supported", test.body, err, test.member)
			}
		}
		for _, body := range []string{`{"thread":null}`, `{"background":false}`, `{"metadata":{"thread":1},"messages":[{"thread":1}]}`} {
			if _, err := ReadRequest(Format(format), []byte(body)); err != nil {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
	e := UnsupportedError{"thread"}
	const claude = `{"type":"error","error":{"type":"invalid_request_error","message":"thread is not supported: ` +
		`send the whole conversation, and wait for the response",` +
		`"details":{"error_code":"thread_unsupported_request","unsupported":["thread"]}}}`
	if got := string(AnthropicMessages.UnsupportedBody(400, e)); got != claude {
		t.Errorf("got %s", got)
	}
	if got, want := string(OpenAIChat.UnsupportedBody(400, e)), string(OpenAIChat.ErrorBody(400, e.Error())); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

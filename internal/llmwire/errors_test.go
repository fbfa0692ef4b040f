package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
)

func TestWireErrors(t *testing.T) {
	for _, test := range []struct {
		status                  int
		openAI, code, anthropic string
	}{
		{400, "invalid_request_error", "null", "invalid_request_error"},
		{401, "invalid_request_error", `"invalid_api_key"`, "authentication_error"},
		{402, "insufficient_quota", `"insufficient_quota"`, "billing_error"},
		{403, "invalid_request_error", `"key_disabled"`, "permission_error"},
		{404, "invalid_request_error", `"model_not_found"`, "not_found_error"},
		{413, "invalid_request_error", "null", "request_too_large"},
		{429, "rate_limit_error", `"rate_limit_exceeded"`, "rate_limit_error"},
		{500, "api_error", "null", "api_error"},
		{502, "api_error", "null", "api_error"},
		{503, "api_error", "null", "overloaded_error"},
		{504, "api_error", "null", "api_error"},
	} {
		openAI := fmt.Sprintf(`{"error":{"message":"say \"x\"","type":"%s","param":null,"code":%s}}`, test.openAI, test.code)
		anthropic := fmt.Sprintf(`{"type":"error","error":{"type":"%s","message":"say \"x\""}}`, test.anthropic)
		for _, got := range []struct{ got, want string }{
			{string(OpenAIChat.ErrorBody(test.status, `say "x"`)), openAI},
			{string(AnthropicMessages.ErrorBody(test.status, `say "x"`)), anthropic},
			{string(OpenAIChat.ErrorEvent(test.status, `say "x"`)), "data: " + openAI + "\n\n"},
			{string(AnthropicMessages.ErrorEvent(test.status, `say "x"`)), "event: error\ndata: " + anthropic + "\n\n"},
		} {
			if got.got != got.want {
				t.Errorf("%d: got %s, want %s", test.status, got.got, got.want)
			}
		}
	}
	const want = `{"error":{"message":"No such path","type":"invalid_request_error","param":null,"code":null}}`
	if got := string(UnknownRouteBody("No such path")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, format := range []Format{OpenAIChat, AnthropicMessages} {
		s := &Stream{Report: Report{Format: format}}
		event := format.ErrorEvent(502, "line 1\nline 2")
		if got := relay(s, event); !s.Failed || !bytes.Equal(got, event) || bytes.Count(event, []byte("\n\n")) != 1 {
			t.Errorf("%q is not an error event", event)
		}
	}
}

func TestAccountErrors(t *testing.T) {
	const (
		quota = `{"error":{"message":"You exceeded your current quota, please check your plan and billing details.",` +
			`"type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
		rate = `{"error":{"message":"Rate limit reached for gpt-4o: insufficient_quota is not the reason",` +
			`"type":"tokens","param":null,"code":"rate_limit_exceeded"}}`
		credit = `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access ` +
			`the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}`
		tokens = `{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: 1000000 > 64000"}}`
	)
	for _, test := range []struct {
		format Format
		status int
		body   string
		want   bool
	}{
		{OpenAIChat, 401, ``, true}, {OpenAIChat, 402, `{}`, true}, {AnthropicMessages, 403, `<html>`, true},
		{OpenAIChat, 429, quota, true}, {OpenAIChat, 429, rate, false}, {OpenAIChat, 429, `{"error":{"code":429}}`, false},
		{OpenAIChat, 429, `{"error":{"type":"insufficient_quota","message":null}}`, true}, {AnthropicMessages, 429, quota, false},
		{AnthropicMessages, 400, credit, true}, {AnthropicMessages, 400, tokens, false}, {OpenAIChat, 400, credit, false},
		{OpenAIChat, 404, quota, false}, {OpenAIChat, 500, quota, false}, {AnthropicMessages, 529, credit, false},
	} {
		if got := test.format.IsAccountError(test.status, []byte(test.body)); got != test.want {
			t.Errorf("%d %s: got %v", test.status, test.body, got)
		}
	}
}

func TestModelLists(t *testing.T) {
	models := []Model{{"gpt-4o", "openai"}, {`a"b`, "local"}}
	for _, test := range []struct {
		format Format
		models []Model
		want   string
	}{
		{OpenAIChat, models, `{"object":"list","data":[{"id":"gpt-4o","object":"model","created":0,"owned_by":"openai"},` +
			`{"id":"a\"b","object":"model","created":0,"owned_by":"local"}]}`},
		{OpenAIChat, nil, `{"object":"list","data":[]}`},
		{AnthropicMessages, models, `{"data":[` +
			`{"type":"model","id":"gpt-4o","display_name":"gpt-4o","created_at":"1970-01-01T00:00:00Z"},` +
			`{"type":"model","id":"a\"b","display_name":"a\"b","created_at":"1970-01-01T00:00:00Z"}],` +
			`"has_more":false,"first_id":"gpt-4o","last_id":"a\"b"}`},
		{AnthropicMessages, nil, `{"data":[],"has_more":false,"first_id":null,"last_id":null}`},
	} {
		got := test.format.ModelListBody(test.models)
		if string(got) != test.want || !json.Valid(got) {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

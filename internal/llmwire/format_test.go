package llmwire

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// textFormats are the formats of text. Their constants are the first ones.
var textFormats = []Format{OpenAIChat, AnthropicMessages, OpenAIResponses}

// Each row of the table of formats is complete, and its suffix is of no other.
func TestFormats(t *testing.T) {
	optional := []string{
		"keyPrefix", "usageOption", "countPath", "versionHeader", "version", "modelsQuery", "limitMember", "limitVaries", "safetyID",
		"takesForm", "delivery", "holdIfUnreported", "held", "output", "cachesUnasked", "request", "complete",
		"leastLimit",
	}
	for i, row := range formats {
		value := reflect.ValueOf(*row)
		for column := range value.NumField() {
			name := value.Type().Field(column).Name
			if value.Field(column).IsZero() && !slices.Contains(optional, name) {
				t.Errorf("%s has no %s", row.urlSuffix, name)
			}
		}
		if format, ok := FormatOf(row.kind, "/v1"+row.urlSuffix); !ok || format != Format(i) {
			t.Errorf("%s is the suffix of format %d, too", row.urlSuffix, format)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for _, test := range []struct {
		path   string
		format Format
		ok     bool
	}{
		{"/v1/chat/completions", OpenAIChat, true},
		{"/openai/deployments/gpt-4o/chat/completions", OpenAIChat, true},
		{"/v1/messages", AnthropicMessages, true},
		{"/v1/responses", OpenAIResponses, true},
		{"/v1/responses/compact", 0, false},
		{"/v1/embeddings", 0, false}, // is of another kind
		{"/v1/messages/count_tokens", 0, false},
		{"", 0, false},
	} {
		if format, ok := FormatOf(Text, test.path); ok != test.ok || ok && format != test.format {
			t.Errorf("FormatOf(%q) = %v, %v", test.path, format, ok)
		}
	}
}

func TestProviderNames(t *testing.T) {
	for _, test := range []struct {
		format               Format
		host                 string
		limit, header, value string
	}{
		{OpenAIChat, "api.openai.com", "max_completion_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "localhost", "max_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "API.OpenAI.com", "max_completion_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "acme.openai.azure.com", "max_completion_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "acme.cognitiveservices.azure.com", "max_completion_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "acme.services.ai.azure.com", "max_completion_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "openai.azure.com.example", "max_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIChat, "myapi.openai.com", "max_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIResponses, "api.openai.com", "max_output_tokens", "Authorization", "Bearer sk-1"},
		{OpenAIResponses, "localhost", "max_output_tokens", "Authorization", "Bearer sk-1"},
		{AnthropicMessages, "api.anthropic.com", "max_tokens", "X-Api-Key", "sk-1"},
		{AnthropicMessages, "api.openai.com", "max_tokens", "X-Api-Key", "sk-1"},
	} {
		if got := test.format.LimitMember(test.host); got != test.limit {
			t.Errorf("%s: the limit is %s, want %s", test.host, got, test.limit)
		}
		if got := test.format.RequestIDHeader(); got != http.CanonicalHeaderKey(got) || !strings.HasSuffix(got, "Request-Id") {
			t.Errorf("the request's ID is in %s", got)
		}
		if name, value := test.format.Credential("sk-1"); name != test.header || value != test.value {
			t.Errorf("%s: the credential is %s: %s, want %s: %s", test.host, name, value, test.header, test.value)
		}
	}
}

// checkError checks the error with a status whose message is `say "x"`, and that Stream takes the event for an error.
func checkError(t *testing.T, format Format, status int, body, event string) {
	t.Helper()
	if got := string(format.ErrorBody(status, `say "x"`)); got != body || !json.Valid([]byte(got)) {
		t.Errorf("%d: got %s, want %s", status, got, body)
	}
	if got := string(format.ErrorEvent(status, `say "x"`)); got != event {
		t.Errorf("%d: got %s, want %s", status, got, event)
	}
	s := &Stream{Report: Report{Format: format}}
	twoLines := format.ErrorEvent(status, "line 1\nline 2")
	if got := relay(s, twoLines); !s.Report.Failed || !bytes.Equal(got, twoLines) || bytes.Count(got, []byte("\n\n")) != 1 {
		t.Errorf("%q is not an error event", twoLines)
	}
}

// checkModels checks an empty list of models, and one of gpt-4o at openai and a"b at local.
func checkModels(t *testing.T, format Format, none, two string) {
	t.Helper()
	models := []Model{{"gpt-4o", "openai"}, {`a"b`, "local"}}
	if got := string(format.ModelListBody(nil)); got != none {
		t.Errorf("got %s, want %s", got, none)
	}
	got := format.ModelListBody(models)
	if string(got) != two || !json.Valid(got) {
		t.Errorf("got %s, want %s", got, two)
	}
	for _, m := range models {
		if one := format.ModelBody(m); !bytes.Contains(got, one) || !json.Valid(one) {
			t.Errorf("%s is not in the list", one)
		}
	}
}

func TestAccountErrors(t *testing.T) {
	const (
		quota = `{"error":{"message":"You exceeded your current quota, please check your plan and billing details.",` +
			`"type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
		rate = `{"error":{"message":"Rate limit reached for gpt-4o: insufficient_quota is not the reason",` +
			`"type":"tokens","param":null,"code":"rate_limit_exceeded"}}`
		quotaType = `{"error":{"type":"insufficient_quota","message":null}}`
		credit    = `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low ` +
			`to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}`
		tokens = `{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: 1000000 > 64000"}}`
	)
	for _, test := range []struct {
		format Format
		status int
		body   string
		want   bool
	}{
		{OpenAIChat, 401, ``, true},
		{OpenAIChat, 402, `{}`, true},
		{OpenAIChat, 403, `[]`, true},
		{AnthropicMessages, 401, ``, true},
		{AnthropicMessages, 402, `{}`, true},
		{AnthropicMessages, 403, `<html>`, true},
		{OpenAIChat, 429, quota, true},
		{OpenAIChat, 429, rate, false},
		{OpenAIChat, 429, `{"error":{"code":429}}`, false},
		{OpenAIChat, 429, quotaType, true},
		{AnthropicMessages, 429, quota, false},
		{OpenAIChat, 429, `{"error":{"code":"billing_not_active","type":"billing_not_active"}}`, true},
		{OpenAIChat, 400, `{"error":{"code":"billing_hard_limit_reached","type":"invalid_request_error"}}`, true},
		{OpenAIChat, 429, `{"error":{"type":"exceeded_current_quota_error","message":"Your account is suspended"}}`, true},
		{OpenAIChat, 400, quotaType, true},
		{OpenAIChat, 400, `{"error":{"code":"context_length_exceeded","message":"billing_not_active"}}`, false},
		{OpenAIChat, 400, `{"error":{"code":["billing_not_active"]}}`, false},
		{OpenAIChat, 400, `{"error":"billing_not_active"}`, false},
		{OpenAIChat, 500, `{"error":{"code":"billing_not_active"}}`, false},
		{AnthropicMessages, 400, credit, true},
		{AnthropicMessages, 429, credit, false},
		{AnthropicMessages, 400, `{"error":{"message":"tools.0.name: credit balance"}}`, false},
		{AnthropicMessages, 400, tokens, false},
		{OpenAIChat, 400, credit, false},
		{OpenAIChat, 404, quota, false},
		{OpenAIChat, 500, quota, false},
		{AnthropicMessages, 529, credit, false},
	} {
		if got := test.format.IsAccountError(test.status, []byte(test.body)); got != test.want {
			t.Errorf("%d %s: got %v", test.status, test.body, got)
		}
	}
}

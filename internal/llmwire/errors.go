package llmwire

import (
	"encoding/json"
	"fmt"
	"strings"
)

// errorTypes has the type of error that a status stands for, in OpenAI's format with a code.
var errorTypes = map[int]struct{ openAI, code, anthropic string }{
	400: {"invalid_request_error", "", "invalid_request_error"},
	401: {"invalid_request_error", "invalid_api_key", "authentication_error"},
	402: {"insufficient_quota", "insufficient_quota", "billing_error"},
	403: {"invalid_request_error", "key_disabled", "permission_error"},
	404: {"invalid_request_error", "model_not_found", "not_found_error"},
	413: {"invalid_request_error", "", "request_too_large"},
	429: {"rate_limit_error", "rate_limit_exceeded", "rate_limit_error"},
	503: {"api_error", "", "overloaded_error"},
}

// ErrorBody returns the body of an error with the given status. Both SDKs raise their own error for it.
func (f Format) ErrorBody(status int, message string) []byte {
	kind, known := errorTypes[status]
	if !known && status < 500 {
		kind.openAI, kind.anthropic = "invalid_request_error", "invalid_request_error"
	} else if !known {
		kind.openAI, kind.anthropic = "api_error", "api_error"
	}
	if f == AnthropicMessages {
		return fmt.Appendf(nil, `{"type":"error","error":{"type":"%s","message":%s}}`, kind.anthropic, jsonString(message))
	}
	return openAIError(kind.openAI, kind.code, message)
}

// UnknownRouteBody returns the body of a 404 for a path that does not exist.
func UnknownRouteBody(message string) []byte {
	return openAIError("invalid_request_error", "", message)
}

func openAIError(kind, code, message string) []byte {
	if code = jsonString(code); code == `""` {
		code = "null"
	}
	const format = `{"error":{"message":%s,"type":"%s","param":null,"code":%s}}`
	return fmt.Appendf(nil, format, jsonString(message), kind, code)
}

// ErrorEvent returns the event that tells a client that its stream is broken.
func (f Format) ErrorEvent(status int, message string) []byte {
	name := ""
	if f == AnthropicMessages {
		name = "event: error\n"
	}
	return fmt.Appendf(nil, "%sdata: %s\n\n", name, f.ErrorBody(status, message))
}

// IsAccountError reports whether a provider's error concerns the operator's account with it, and not the request.
func (f Format) IsAccountError(status int, body []byte) bool {
	var response struct {
		Error struct {
			Type, Code any
			Message    string
		}
	}
	_ = json.Unmarshal(body, &response) // what is not as expected does not concern the account
	switch status {
	case 401, 402, 403:
		return true
	case 429:
		return f == OpenAIChat && (response.Error.Code == "insufficient_quota" || response.Error.Type == "insufficient_quota")
	case 400:
		return f == AnthropicMessages && strings.Contains(response.Error.Message, "credit balance")
	}
	return false
}

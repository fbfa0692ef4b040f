package llmwire

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// This file has what all of OpenAI's formats share.

// openAI returns f with what it shares with the other formats of OpenAI.
func openAI(f format) format {
	f.company, f.isOwnHost = "openai", isOpenAI
	f.cachesUnasked = true
	f.keyHeader, f.keyPrefix = "Authorization", "Bearer "
	f.requestIDHeader = "X-Request-Id"
	f.errorBody = openAIErrorBody
	if f.errorEvent == nil {
		f.errorEvent = func(status int, message string) []byte {
			return fmt.Appendf(nil, "data: %s\n\n", openAIErrorBody(status, errorText{message: message}))
		}
	}
	f.isAccountError = isOpenAIAccountError
	f.modelBody, f.modelList = openAIModelBody, openAIModelList
	return f
}

// openAIMembers has the top-level members of requests that all of OpenAI's formats have.
var openAIMembers = listing{known: []string{"user"}, ruled: []string{"model"}}

// openAIBody are the members that are read in all of OpenAI's formats.
var openAIBody = jsonTable[Request]{
	"":      {read: (*Request).readBody, each: (*Request).addMember},
	"model": {read: (*Request).readModel},
}

// usageReport are the members that are read of responses whose content is not: an error, the model and the usage.
var usageReport = joined(usageTable, jsonTable[Report]{
	"":       {read: (*Report).readObject},
	"error":  {read: (*Report).readError},
	"model":  {read: (*Report).readModel},
	"object": {read: (*Report).readObjectType},
})

// readResults reads what a response consists of, so that one without usage is not taken for an error.
func (r *Report) readResults(v jsonValue) {
	if !v.isOff() {
		r.hasChoices = true
	}
}

// isOpenAI reports whether a host is OpenAI's own or Azure's, which have the same members.
func isOpenAI(host string) bool {
	host = strings.ToLower(host)
	return host == "api.openai.com" || slices.ContainsFunc(azureDomains, func(domain string) bool {
		return strings.HasSuffix(host, domain)
	})
}

var azureDomains = []string{".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"}

// openAIErrorTypes has the type and the code of an error with a status. A status that is not here has no code.
var openAIErrorTypes = map[int]struct{ kind, code string }{
	401: {"invalid_request_error", "invalid_api_key"},
	402: {"insufficient_quota", "insufficient_quota"},
	403: {"invalid_request_error", "key_disabled"},
	404: {"invalid_request_error", "model_not_found"},
	429: {"rate_limit_error", "rate_limit_exceeded"},
	508: {"invalid_request_error", "loop"},
}

func openAIErrorBody(status int, text errorText) []byte {
	if e, ok := openAIErrorTypes[status]; ok {
		return openAIError(e.kind, cmp.Or(text.code, e.code), text.message)
	}
	return openAIError(errorType(status), text.code, text.message)
}

// openAIError returns the JSON of an error, whose code is null if it is "".
func openAIError(kind, code, message string) []byte {
	const format = `{"error":{"message":%s,"type":"%s","param":null,"code":%s}}`
	return fmt.Appendf(nil, format, jsonString(message), kind, nullable(code))
}

// nullable returns s as a JSON string, and null for "".
func nullable(s string) string {
	if s == "" {
		return "null"
	}
	return jsonString(s)
}

// accountErrors are the codes, or types, of errors that concern the account: of OpenAI
// (https://platform.openai.com/docs/guides/error-codes) and Azure and, the last one, of Moonshot.
var accountErrors = []string{
	"insufficient_quota", "billing_not_active", "billing_hard_limit_reached", "exceeded_current_quota_error",
}

// isOpenAIAccountError accepts the status 400 and 429 for all of them: servers differ.
func isOpenAIAccountError(status int, e providerError) bool {
	code, _ := e.Code.(string)
	kind, _ := e.Type.(string)
	return (status == 400 || status == 429) &&
		(slices.Contains(accountErrors, code) || slices.Contains(accountErrors, kind))
}

func openAIModelBody(m Model) []byte {
	const format = `{"id":%s,"object":"model","created":0,"owned_by":%s}`
	return fmt.Appendf(nil, format, jsonString(m.Name), jsonString(m.Endpoint))
}

func openAIModelList(_ []Model, bodies []byte) []byte {
	return fmt.Appendf(nil, `{"object":"list","data":[%s]}`, bodies)
}

package llmwire

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
)

var anthropicMessages = format{
	kind:            Text,
	company:         "anthropic",
	urlSuffix:       "/messages",
	countPath:       "/count_tokens",
	isOwnHost:       func(host string) bool { return strings.EqualFold(host, "api.anthropic.com") },
	keyHeader:       "X-Api-Key",
	requestIDHeader: "Request-Id",
	versionHeader:   "Anthropic-Version",
	version:         "2023-06-01",
	modelsQuery:     "limit=1000", // instead of 20
	limitMember:     func(string) string { return "max_tokens" },
	smallest:        `{"messages":[{"role":"user","content":"a"}]}`,

	safetyID: memberName{"metadata", "user_id"},

	rules: requestRules{
		members:        newColumnTable(anthropicMembers),
		tools:          newColumnTable(anthropicTools),
		mayLimitToZero: true,
	},
	request: newJSONShape(requestMembers, jsonTable[Request]{
		"metadata.user_id": {read: (*Request).readUserID},

		"compaction":      {read: (*Request).readCompaction},
		"compaction.type": {read: (*Request).readCompactionType},
		"context_management": {
			read: (*Request).readContextManagement, each: (*Request).checkContextManagement,
		},
		"context_management.edits":        {read: (*Request).readContextEdits},
		"context_management.edits[]":      {read: (*Request).endContextEdit, each: (*Request).checkMemberCase},
		"context_management.edits[].type": {read: (*Request).readContextEdit},
	}),
	report: newJSONShape(reportMembers, jsonTable[Report]{
		"type":                {read: (*Report).readType},
		"stop_reason":         {read: (*Report).readStopReason},
		"content.stop_reason": {read: (*Report).readStopReason}, // of delta
		"usage":               {enter: (*Report).beginUsage, read: (*Report).updateUsage},
		"message.content":     {same: "content"},
		"message.model":       {read: (*Report).readModel},
		"message.stop_reason": {read: (*Report).readStopReason},
		"message.usage":       {same: "usage"},
	}),

	errorBody: anthropicErrorBody,
	errorEvent: func(status int, message string) []byte {
		return fmt.Appendf(nil, "event: error\ndata: %s\n\n", anthropicErrorBody(status, errorText{message: message}))
	},
	isAccountError: func(status int, e providerError) bool {
		return status == 400 && strings.Contains(e.Message, "credit balance is too low")
	},

	modelBody: func(m Model) []byte {
		// What is not known is null, if it may be.
		const format = `{"type":"model","id":%s,"display_name":%[1]s,"created_at":"1970-01-01T00:00:00Z",` +
			`"lifecycle":"active","deprecated_at":null,"retires_at":null,"line":null,"capabilities":null,` +
			`"max_input_tokens":null,"max_tokens":null}`
		return fmt.Appendf(nil, format, jsonString(m.Name))
	},
	modelList: func(models []Model, bodies []byte) []byte {
		first, last := "null", "null"
		if n := len(models); n > 0 {
			first, last = jsonString(models[0].Name), jsonString(models[n-1].Name)
		}
		const format = `{"data":[%s],"has_more":false,"first_id":%s,"last_id":%s}`
		return fmt.Appendf(nil, format, bodies, first, last)
	},
}

// anthropicErrorTypes has the type of an error with a status that has one of its own.
var anthropicErrorTypes = map[int]string{
	401: "authentication_error",
	402: "billing_error",
	403: "permission_error",
	404: "not_found_error",
	413: "request_too_large",
	429: "rate_limit_error",
	503: "overloaded_error",
}

func anthropicErrorBody(status int, e errorText) []byte {
	kind := cmp.Or(anthropicErrorTypes[status], errorType(status))
	details := ""
	if e.details != "" {
		details = `,"details":` + e.details
	}
	const format = `{"type":"error","error":{"type":"%s","message":%s%s}}`
	return fmt.Appendf(nil, format, kind, jsonString(e.message), details)
}

// readCompaction reads the end of the member that asks for a summary of the conversation.
func (r *Request) readCompaction(v jsonValue) {
	if !v.isNull() {
		r.endContextEdit(v)
	}
}

func (r *Request) readCompactionType(v jsonValue) {
	isSummary := string(unquoted(v.text)) == "summarize"
	r.Twice = r.Twice || isSummary
	r.readEditType(v.path, isSummary)
}

// readContextManagement, checkContextManagement and readContextEdits read what the provider is to do with a
// conversation before the model reads it. Some of that takes a model, and is billed beside what the response has used.
func (r *Request) readContextManagement(v jsonValue) {
	if v.text[0] != '{' && !v.isNull() {
		r.addUnknown(v.path)
	}
}

func (r *Request) checkContextManagement(object *jsonShape[Request], name []byte, v jsonValue) {
	if string(name) != "edits" && !v.isNull() {
		r.addUnknown(object.path)
	}
}

func (r *Request) readContextEdits(v jsonValue) {
	if v.text[0] != '[' && !v.isNull() {
		r.addUnknown("context_management")
	}
}

func (r *Request) readContextEdit(v jsonValue) {
	kind := unquoted(v.text)
	isCompact := bytes.HasPrefix(kind, []byte("compact_"))
	r.Twice = r.Twice || isCompact
	r.readEditType(v.path, isCompact || bytes.HasPrefix(kind, []byte("clear_")))
}

// readEditType reads a type. One that is not known counts, whatever others there are.
func (r *Request) readEditType(path string, isKnown bool) {
	r.hasEditType = true
	if !isKnown {
		name, _, _ := strings.Cut(path, ".")
		r.addUnknown(name)
	}
}

// endContextEdit reads the end of what must have a type, which was read before.
func (r *Request) endContextEdit(v jsonValue) {
	if !r.hasEditType {
		r.readEditType(v.path, false)
	}
	r.hasEditType = false
}

// readUserID notes where the ID of a user stands. Of two, a provider may read either.
func (r *Request) readUserID(v jsonValue) {
	member := memberName{"metadata", "user_id"}
	if _, exists := r.at[member]; exists {
		r.fail("%s is duplicated", member)
	}
	r.at[member] = v.span()
}

func (r *Report) readStopReason(v jsonValue) { r.readStop(v.text, 0) }

func (r *Report) readType(v jsonValue) {
	r.Done = string(v.text) == `"message_stop"` || r.Done
	if string(v.text) == `"error"` {
		r.fail()
	}
}

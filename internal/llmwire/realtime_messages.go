package llmwire

import (
	"cmp"
	"fmt"
)

// This file has the events that a gateway sends itself.

// RealtimeUpdate returns the session.update that limits the output tokens of each response and, unless voice is "",
// sets the voice, which cannot be changed once a session has spoken.
func RealtimeUpdate(limit int64, voice string) []byte {
	audio := ""
	if voice != "" {
		audio = `,"audio":{"output":{"voice":` + jsonString(voice) + `}}`
	}
	const format = `{"type":"session.update","session":{"type":"realtime","max_output_tokens":%d%s}}`
	return fmt.Appendf(nil, format, limit, audio)
}

// RealtimeCancel returns the response.cancel for a response, or for the one of the conversation if id is "".
func RealtimeCancel(id string) []byte {
	if id == "" {
		return []byte(`{"type":"response.cancel"}`)
	}
	return fmt.Appendf(nil, `{"type":"response.cancel","response_id":%s}`, jsonString(id))
}

// RealtimeFailure returns the error that an error with an HTTP status is in a session, as insufficient_quota for 402
// and key_disabled for 403. The code is that of the status if it is "".
func RealtimeFailure(status int, code, message string) *RealtimeError {
	e, ok := openAIErrorTypes[status]
	if !ok {
		e.kind = errorType(status)
	}
	return &RealtimeError{Type: e.kind, Code: cmp.Or(code, e.code), Message: message}
}

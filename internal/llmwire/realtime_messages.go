package llmwire

import (
	"cmp"
	"fmt"
)

// This file has the events that a gateway sends itself.

// OwnRealtimeID is how the IDs of a gateway's own events begin. Events of clients with such an ID are refused: errors
// about them would be taken for errors about the gateway's.
const OwnRealtimeID = "tollgate-"

// RealtimeUpdate returns the session.update that limits the output tokens of each response and, unless voice is "",
// sets the voice, which cannot be changed once a session has spoken. An error about it names the event's ID.
func RealtimeUpdate(eventID string, limit int64, voice string) []byte {
	audio := ""
	if voice != "" {
		audio = `,"audio":{"output":{"voice":` + jsonString(voice) + `}}`
	}
	const format = `{"type":"session.update","event_id":%s,"session":{"type":"realtime","max_output_tokens":%d%s}}`
	return fmt.Appendf(nil, format, jsonString(eventID), limit, audio)
}

// RealtimeCancel returns the response.cancel for a response, or for the one of the conversation if id is "". An error
// about it names the event's ID.
func RealtimeCancel(eventID, id string) []byte {
	response := ""
	if id != "" {
		response = `,"response_id":` + jsonString(id)
	}
	return fmt.Appendf(nil, `{"type":"response.cancel","event_id":%s%s}`, jsonString(eventID), response)
}

// RealtimeID returns an event's ID as JSON, null for "".
func RealtimeID(id string) []byte { return []byte(nullable(id)) }

// RealtimeFailure returns the error that an error with an HTTP status is in a session, as insufficient_quota for 402
// and key_disabled for 403. The code is that of the status if it is "".
func RealtimeFailure(status int, code, message string) *RealtimeError {
	e, ok := openAIErrorTypes[status]
	if !ok {
		e.kind = errorType(status)
	}
	return &RealtimeError{Type: e.kind, Code: cmp.Or(code, e.code), Message: message}
}

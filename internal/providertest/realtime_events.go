package providertest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// realtimeEvent is what is read of an event of the client.
type realtimeEvent struct {
	Type       string
	EventID    string `json:"event_id"`
	Session    object
	Item       object
	ItemID     string `json:"item_id"`
	ResponseID string `json:"response_id"`
	Response   struct {
		Conversation     string
		Metadata         object
		MaxOutputTokens  any      `json:"max_output_tokens"`
		OutputModalities []string `json:"output_modalities"`
	}
}

// read responds to a message of the client.
func (s *RealtimeSession) read(text []byte) {
	var e realtimeEvent
	if err := json.Unmarshal(text, &e); err != nil {
		s.SendError("invalid_json", "The event is not JSON: "+err.Error(), "")
	} else if s.conduct.OnEvent == nil || !s.conduct.OnEvent(s, e.Type, text) {
		s.obey(e, text)
	}
}

// obey does what an event asks for.
func (s *RealtimeSession) obey(e realtimeEvent, text []byte) {
	switch e.Type {
	case "session.update":
		s.update(e)
	case "input_audio_buffer.append":
		s.append()
	case "input_audio_buffer.commit":
		s.commit()
	case "conversation.item.create":
		if e.Item == nil {
			s.SendError("missing_required_parameter", "Missing required parameter: 'item'.", e.EventID)
			return
		}
		s.addItem(e.Item)
	case "conversation.item.retrieve":
		s.SendEvent("conversation.item.retrieved", object{"item": object{
			"id": e.ItemID, "object": "realtime.item", "type": "message", "role": "assistant", "status": "incomplete",
			"content": []any{},
		}})
	case "conversation.item.truncate", "conversation.item.delete", "input_audio_buffer.clear":
		done := strings.TrimSuffix(e.Type, "e") + "ed" // as its answers are named
		s.SendEvent(done, object{"item_id": e.ItemID, "content_index": 0, "audio_end_ms": 0})
	case "response.create":
		s.create(e, text)
	case "response.cancel":
		s.cancel(e)
	default:
		s.SendError("invalid_value", fmt.Sprintf("Invalid value: '%s'.", e.Type), e.EventID)
	}
}

// update changes the session as session.update says.
func (s *RealtimeSession) update(e realtimeEvent) {
	s.mu.Lock()
	model := s.settings["model"]
	if named := e.Session["model"]; named != nil && named != model {
		s.mu.Unlock()
		s.SendError("invalid_request_error", "The model of a session cannot be changed.", e.EventID)
		return
	}
	s.settings = merge(s.settings, e.Session)
	s.mu.Unlock()
	s.SendEvent("session.updated", object{"session": s.Settings()})
}

// merge returns old with the members of changes, those of objects in it included.
func merge(old, changes object) object {
	merged := make(object, len(old))
	for name, value := range old {
		merged[name] = value
	}
	for name, value := range changes {
		before, isObject := merged[name].(object)
		if after, ok := value.(object); ok && isObject {
			value = merge(before, after)
		}
		merged[name] = value
	}
	return merged
}

// append takes some of the input's sound, and finds the end of a turn in it if it is time.
func (s *RealtimeSession) append() {
	s.mu.Lock()
	s.appended++
	isStart, isEnd := s.appended == 1, s.appended == s.conduct.Turn
	current := s.current
	s.mu.Unlock()
	if s.conduct.Turn == 0 {
		return
	}
	if isStart {
		s.SendEvent("input_audio_buffer.speech_started", object{"audio_start_ms": 0, "item_id": "item_speech"})
	}
	if !isEnd {
		return
	}
	if current != nil && current.end("turn_detected") {
		<-current.done
	}
	s.SendEvent("input_audio_buffer.speech_stopped", object{"audio_end_ms": 1000, "item_id": "item_speech"})
	s.commit()
	s.create(realtimeEvent{}, nil)
}

// commit makes an item of the input, which is transcribed if the conduct says so.
func (s *RealtimeSession) commit() {
	s.mu.Lock()
	s.appended = 0
	s.mu.Unlock()
	content := []any{object{"type": "input_audio", "transcript": nil}}
	item := object{"type": "message", "role": "user", "content": content}
	s.prepare(item)
	s.SendEvent("input_audio_buffer.committed", object{"item_id": item["id"], "previous_item_id": nil})
	s.addItem(item)
	if s.conduct.Transcript != (RealtimeUsage{}) {
		s.Transcribe(s.conduct.Transcript)
	}
}

// Transcribe reports that some input was transcribed.
func (s *RealtimeSession) Transcribe(u RealtimeUsage) {
	u.IsTranscript = true
	s.spend(u)
	s.SendEvent("conversation.item.input_audio_transcription.completed",
		object{"item_id": "item_speech", "content_index": 0, "transcript": "words", "usage": u.json()})
}

// prepare gives an item what it lacks.
func (s *RealtimeSession) prepare(item object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, _ := item["id"].(string); id == "" {
		s.items++
		item["id"] = fmt.Sprintf("item_%d", s.items)
	}
	item["object"], item["status"] = "realtime.item", "completed"
}

// addItem adds an item of the client to the conversation.
func (s *RealtimeSession) addItem(item object) {
	s.prepare(item)
	for _, kind := range []string{"conversation.item.added", "conversation.item.done"} {
		s.SendEvent(kind, object{"item": item, "previous_item_id": nil})
	}
}

// cancel ends the response that the client names, or that of the conversation.
func (s *RealtimeSession) cancel(e realtimeEvent) {
	s.mu.Lock()
	run := s.current
	if e.ResponseID != "" {
		run = s.active[e.ResponseID]
	}
	s.mu.Unlock()
	if run == nil {
		s.SendError("response_cancel_not_active", "Cancellation failed: no active response found", e.EventID)
		return
	}
	run.end("client_cancelled")
}

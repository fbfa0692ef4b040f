package providertest

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"sync"
)

// maxRealtimeOutput is the most tokens of one response.
const maxRealtimeOutput = 4096

// RealtimeUsage is what was used, in tokens by their kinds. Those that were cached are a part of the others.
type RealtimeUsage struct {
	Text, Audio, Image                   int64 // of the input
	CachedText, CachedAudio, CachedImage int64
	OutputText, OutputAudio              int64

	IsTranscript bool    // of a transcription of the input
	Seconds      float64 // which it has used instead of tokens
}

// Cost returns what the usage costs at the given prices of a token of each kind, as an endpoint's config names them,
// and at those of the transcription.
func (u RealtimeUsage) Cost(price, transcription map[string]int64) int64 {
	if u.IsTranscript {
		seconds := int64(math.Ceil(u.Seconds * float64(transcription["second"])))
		return (u.Text+u.Audio)*transcription["input"] + u.OutputText*transcription["output"] + seconds
	}
	return (u.Text-u.CachedText)*price["input"] + (u.CachedText+u.CachedImage)*price["cached_input"] +
		(u.Audio-u.CachedAudio)*price["audio_input"] + u.CachedAudio*price["cached_audio_input"] +
		(u.Image-u.CachedImage)*price["image_input"] + u.OutputText*price["output"] + u.OutputAudio*price["audio_output"]
}

// json returns the member usage of an event.
func (u RealtimeUsage) json() object {
	if u.Seconds > 0 {
		return object{"type": "duration", "seconds": u.Seconds}
	}
	input, output := u.Text+u.Audio+u.Image, u.OutputText+u.OutputAudio
	usage := object{"input_tokens": input, "output_tokens": output, "total_tokens": input + output}
	if u.IsTranscript {
		usage["type"] = "tokens"
		usage["input_token_details"] = object{"text_tokens": u.Text, "audio_tokens": u.Audio}
		return usage
	}
	usage["input_token_details"] = object{
		"text_tokens": u.Text, "audio_tokens": u.Audio, "image_tokens": u.Image,
		"cached_tokens": u.CachedText + u.CachedAudio + u.CachedImage,
		"cached_tokens_details": object{
			"text_tokens": u.CachedText, "audio_tokens": u.CachedAudio, "image_tokens": u.CachedImage,
		},
	}
	usage["output_token_details"] = object{"text_tokens": u.OutputText, "audio_tokens": u.OutputAudio}
	return usage
}

// RealtimeResponse is how a Realtime responds to one response.create, or to one turn. The zero value is a few words of
// sound.
type RealtimeResponse struct {
	Text  string // a text, which each delta has; "" and no Call: it is sound, with a transcript
	Sound int    // bytes of PCM in each delta of sound; 0 is 100 ms
	Call  string // the name of a function that is called, with arguments in the deltas

	Deltas int    // 0 is Events
	Hang   Moment // the response waits there until Continue is called or it is cancelled
	Deaf   bool   // it cannot be cancelled

	// Usage is that of the whole response; the zero value is a few tokens of the kinds that its content has. A response
	// that is cancelled, or ended by the limit, has used less output.
	Usage    RealtimeUsage
	RawUsage string // JSON that is sent instead, and not added to Usages
	Failed   bool   // its status is failed in the end
	Error    string // the code of an error that is sent instead of a response
}

// deltaBytes is a tenth of a second.
const deltaBytes = 4800

// A realtimeRun is a response that is active.
type realtimeRun struct {
	RealtimeResponse
	id, itemID   string
	conversation any // its ID, or nil
	metadata     object
	limit        int64
	item         object

	proceed chan struct{} // closed by Continue
	done    chan struct{} // closed when response.done was sent

	once  sync.Once
	ended chan struct{} // closed when it is cancelled
	why   string        // it is
}

// end cancels a response. It returns false if that is not to be.
func (r *realtimeRun) end(why string) bool {
	if r.Deaf {
		return false
	}
	r.once.Do(func() {
		r.why = why
		close(r.ended)
	})
	return true
}

// Continue lets all responses go on that wait at a Moment.
func (s *RealtimeSession) Continue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, run := range s.active {
		select {
		case <-run.proceed:
		default:
			close(run.proceed)
		}
	}
}

// create begins a response, which a response.create or a turn has led to.
func (s *RealtimeSession) create(e realtimeEvent, text []byte) {
	c := s.conduct.Response
	if s.conduct.Respond != nil {
		c = s.conduct.Respond(text)
	}
	if c.Error != "" {
		s.SendError(c.Error, "The provider does not respond.", e.EventID)
		return
	}
	run := &realtimeRun{
		RealtimeResponse: c, conversation: "conv_1", metadata: e.Response.Metadata,
		proceed: make(chan struct{}), done: make(chan struct{}), ended: make(chan struct{}),
	}
	s.mu.Lock()
	isOwn := e.Response.Conversation != "none"
	if current := s.current; isOwn && current != nil {
		s.mu.Unlock()
		s.SendError("conversation_already_has_active_response",
			"Conversation already has an active response in progress: "+current.id+".", e.EventID)
		return
	}
	s.items++
	run.id, run.itemID = fmt.Sprintf("resp_%d", s.items), fmt.Sprintf("item_%d", s.items)
	run.limit = outputLimit(e.Response.MaxOutputTokens, outputLimit(s.settings["max_output_tokens"], maxRealtimeOutput))
	s.active[run.id] = run
	if isOwn {
		s.current = run
	} else {
		run.conversation = nil
	}
	s.mu.Unlock()
	s.running.Add(1)
	go s.respond(run)
}

// outputLimit returns the limit in JSON, or other if it is not a number.
func outputLimit(value any, other int64) int64 {
	if n, ok := value.(float64); ok {
		return int64(n)
	}
	return other
}

// respond sends all events of a response.
func (s *RealtimeSession) respond(run *realtimeRun) {
	defer s.running.Done()
	defer close(run.done)
	if !s.waits(run, BeforeHeaders) {
		s.finish(run, 0)
		return
	}
	s.SendEvent("response.created", object{"response": run.json("in_progress", nil)})
	s.SendEvent("rate_limits.updated", object{"rate_limits": []any{
		object{"name": "requests", "limit": 9999, "remaining": 9998, "reset_seconds": 0.1},
	}})
	sent, all := 0, cmp.Or(run.Deltas, Events)
	if s.waits(run, BeforeContent) {
		run.item = s.beginItem(run)
		for sent < all && (sent != all/2 || s.waits(run, InContent)) && run.isActive() {
			s.sendDelta(run)
			sent++
		}
		s.endItem(run)
	}
	if sent == all {
		s.waits(run, BeforeEnd)
	}
	s.finish(run, float64(sent)/float64(all))
}

// waits waits at a moment if the response is to, and returns false if it was cancelled.
func (s *RealtimeSession) waits(run *realtimeRun, at Moment) bool {
	if run.Hang == at {
		select {
		case <-run.proceed:
		case <-run.ended:
		case <-s.ended:
		}
	}
	return run.isActive()
}

// isActive reports whether the response was not cancelled.
func (r *realtimeRun) isActive() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// json returns the response as events have it.
func (r *realtimeRun) json(status string, usage any) object {
	output := []any{}
	if r.item != nil {
		output = append(output, r.item)
	}
	return object{
		"object": "realtime.response", "id": r.id, "status": status, "status_details": nil, "output": output,
		"conversation_id": r.conversation, "metadata": r.metadata, "max_output_tokens": r.limit, "usage": usage,
		"output_modalities": []string{"audio"},
		"audio":             object{"output": object{"format": object{"type": "audio/pcm", "rate": 24000}, "voice": "marin"}},
	}
}

// place returns where a delta belongs.
func (r *realtimeRun) place(members object) object {
	members["response_id"], members["item_id"], members["output_index"] = r.id, r.itemID, 0
	if r.Call == "" {
		members["content_index"] = 0
	}
	return members
}

// beginItem sends the events that come before the deltas, and returns the item that they are for.
func (s *RealtimeSession) beginItem(run *realtimeRun) object {
	item := object{"id": run.itemID, "object": "realtime.item", "status": "in_progress"}
	if run.Call != "" {
		item["type"], item["name"], item["call_id"], item["arguments"] = "function_call", run.Call, "call_1", ""
	} else {
		item["type"], item["role"], item["content"] = "message", "assistant", []any{}
	}
	s.SendEvent("response.output_item.added", object{"response_id": run.id, "output_index": 0, "item": item})
	s.SendEvent("conversation.item.added", object{"item": item, "previous_item_id": nil})
	if run.Call == "" {
		part := object{"type": "audio", "transcript": ""}
		if run.Text != "" {
			part = object{"type": "text", "text": ""}
		}
		s.SendEvent("response.content_part.added", run.place(object{"part": part}))
	}
	return item
}

// sendDelta sends one piece of the content.
func (s *RealtimeSession) sendDelta(run *realtimeRun) {
	switch {
	case run.Call != "":
		s.SendEvent("response.function_call_arguments.delta", run.place(object{"call_id": "call_1", "delta": " "}))
	case run.Text != "":
		s.SendEvent("response.output_text.delta", run.place(object{"delta": run.Text}))
	default:
		sound := base64.StdEncoding.EncodeToString(make([]byte, cmp.Or(run.Sound, deltaBytes)))
		s.SendEvent("response.output_audio_transcript.delta", run.place(object{"delta": "word "}))
		s.SendEvent("response.output_audio.delta", run.place(object{"delta": sound}))
	}
}

// endItem sends the events that come after the deltas.
func (s *RealtimeSession) endItem(run *realtimeRun) {
	run.item["status"] = "completed"
	if !run.isActive() {
		run.item["status"] = "incomplete"
	}
	const arguments = `{"city":"Zürich"}`
	switch {
	case run.Call != "":
		run.item["arguments"] = arguments
		s.SendEvent("response.function_call_arguments.done",
			run.place(object{"call_id": "call_1", "name": run.Call, "arguments": arguments}))
	case run.Text != "":
		run.item["content"] = []any{object{"type": "output_text", "text": run.Text}}
		s.SendEvent("response.output_text.done", run.place(object{"text": run.Text}))
	default:
		run.item["content"] = []any{object{"type": "output_audio", "transcript": "word "}}
		s.SendEvent("response.output_audio.done", run.place(object{}))
		s.SendEvent("response.output_audio_transcript.done", run.place(object{"transcript": "word "}))
	}
	s.SendEvent("response.output_item.done", object{"response_id": run.id, "output_index": 0, "item": run.item})
	s.SendEvent("conversation.item.done", object{"item": run.item, "previous_item_id": nil})
}

// finish sends response.done for a response of which that share was generated.
func (s *RealtimeSession) finish(run *realtimeRun, share float64) {
	usage, isLimited := run.used(share)
	status, details := "completed", object(nil)
	switch {
	case !run.isActive():
		status, details = "cancelled", object{"type": "cancelled", "reason": run.why}
	case run.Failed:
		status = "failed"
		details = object{"type": "failed", "error": object{"type": "server_error", "code": "server_error", "message": "x"}}
	case isLimited:
		status, details = "incomplete", object{"type": "incomplete", "reason": "max_output_tokens"}
	}
	response := run.json(status, usage.json())
	response["status_details"] = details
	s.mu.Lock()
	delete(s.active, run.id)
	if s.current == run {
		s.current = nil
	}
	s.mu.Unlock()
	if run.RawUsage != "" {
		response["usage"] = json.RawMessage(run.RawUsage)
	} else if s.isOpen() {
		s.spend(usage)
	}
	s.SendEvent("response.done", object{"response": response})
}

// used returns the usage of that share of a response, and whether the limit has cut it.
func (r *realtimeRun) used(share float64) (u RealtimeUsage, isLimited bool) {
	u = r.Usage
	if u == (RealtimeUsage{}) {
		u = RealtimeUsage{Text: 119, Audio: 13, CachedText: 64, OutputText: 30}
		if r.Text == "" && r.Call == "" {
			u.OutputAudio = 91
		}
	}
	u.OutputText, u.OutputAudio = int64(float64(u.OutputText)*share), int64(float64(u.OutputAudio)*share)
	isLimited = u.OutputText+u.OutputAudio > r.limit
	u.OutputText = min(u.OutputText, r.limit)
	u.OutputAudio = min(u.OutputAudio, r.limit-u.OutputText)
	return u, isLimited
}

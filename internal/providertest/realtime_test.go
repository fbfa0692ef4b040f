package providertest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/websocket"
)

// dial opens a WebSocket.
func dial(t *testing.T, url string, header http.Header) *websocket.Conn {
	t.Helper()
	conn, response, err := new(websocket.Side).Dial(t.Context(), http.DefaultTransport, url, header)
	if err != nil {
		t.Fatalf("%v; the response is %v", err, response)
	}
	t.Cleanup(conn.Abort)
	return conn
}

// next returns the next message.
func next(t *testing.T, conn *websocket.Conn) (m Message, err error) {
	t.Helper()
	for {
		part, err := conn.Next()
		if err != nil {
			return m, err
		}
		m.Kind, m.Data = part.Kind, append(m.Data, part.Data...)
		if part.Last {
			return m, nil
		}
	}
}

// say sends events and returns those that come until one of a type, without rate_limits.updated and what comes of
// items and parts.
func say(t *testing.T, conn *websocket.Conn, until string, events ...string) (kinds []string, last map[string]any) {
	t.Helper()
	for _, event := range events {
		if err := conn.Send(websocket.Text, []byte(event)); err != nil {
			t.Fatal(err)
		}
	}
	for {
		m, err := next(t, conn)
		if err != nil {
			t.Fatalf("%v, after %q", err, kinds)
		}
		last = nil
		if err := json.Unmarshal(m.Data, &last); err != nil {
			t.Fatalf("%v: %q", err, m.Data)
		}
		kind := last["type"].(string)
		if !strings.Contains(kind, "item") && !strings.Contains(kind, "_part") && kind != "rate_limits.updated" {
			kinds = append(kinds, kind)
		}
		if kind == until {
			return kinds, last
		}
	}
}

// at returns the member of an event at a path.
func at(event any, path string) any {
	for _, name := range strings.Split(path, ".") {
		object, _ := event.(map[string]any)
		event = object[name]
	}
	return event
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// Each response is reported once, with what was generated of it.
func TestRealtime(t *testing.T) {
	const create, cancel = `{"type":"response.create"}`, `{"type":"response.cancel"}`
	r := NewRealtime(t)
	r.On(RealtimeConduct{Respond: func(event []byte) (response RealtimeResponse) {
		if bytes.Contains(event, []byte("hang")) {
			response = RealtimeResponse{Text: "word ", Deltas: 2, Hang: InContent, Usage: RealtimeUsage{Text: 7, OutputText: 10}}
		}
		return response
	}})
	conn := dial(t, r.URL+"?model=m", http.Header{"Authorization": {"Bearer " + Key}})
	_, event := say(t, conn, "session.created")
	want(t, "the model", at(event, "session.model"), any("m"))
	_, event = say(t, conn, "session.updated", `{"type":"session.update","session":{"type":"realtime","max_output_tokens":100}}`)
	want(t, "the limit", at(event, "session.max_output_tokens"), any(100.0))

	kinds, event := say(t, conn, "response.done", create)
	want(t, "the events", slices.Compact(kinds), []string{"response.created",
		"response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_audio_transcript.delta",
		"response.output_audio.delta", "response.output_audio_transcript.delta", "response.output_audio.delta",
		"response.output_audio.done", "response.output_audio_transcript.done", "response.done"})
	want(t, "the status", at(event, "response.status"), any("incomplete")) // 121 tokens are more than the limit
	want(t, "the output", at(event, "response.usage.output_tokens"), any(100.0))

	const hang = `{"type":"response.create","response":{"metadata":{"n":"hang"}}}`
	say(t, conn, "response.output_text.delta", hang)
	_, event = say(t, conn, "error", create)
	want(t, "a second response", at(event, "error.code"), any("conversation_already_has_active_response"))
	_, event = say(t, conn, "response.done", `{"type":"response.create","response":{"conversation":"none","max_output_tokens":3}}`)
	want(t, "the output of one beside it", at(event, "response.usage.output_tokens"), any(3.0))
	_, event = say(t, conn, "response.done", cancel)
	want(t, "the status", at(event, "response.status"), any("cancelled"))
	want(t, "the output", at(event, "response.usage.output_tokens"), any(5.0))
	_, event = say(t, conn, "error", cancel)
	want(t, "to cancel nothing", at(event, "error.code"), any("response_cancel_not_active"))

	say(t, conn, "response.output_text.delta", hang)
	s := r.Session(t, 1)
	s.Continue()
	_, event = say(t, conn, "response.done")
	want(t, "the status", at(event, "response.status"), any("completed"))
	first := RealtimeUsage{Text: 119, Audio: 13, CachedText: 64}
	second := first
	first.OutputText, first.OutputAudio, second.OutputText = 30, 70, 3
	want(t, "the usages", r.Usages(), []RealtimeUsage{first, second, {Text: 7, OutputText: 5}, {Text: 7, OutputText: 10}})
	cost := first.Cost(map[string]int64{"input": 1, "cached_input": 10, "audio_input": 100, "output": 1000, "audio_output": 10000}, nil)
	want(t, "the cost", cost, int64(55+640+1300+30*1000+70*10000))

	s.Close(4001, "bye")
	_, err := next(t, conn)
	want(t, "the end", err, error(&websocket.CloseError{Code: 4001, Reason: "bye"}))
	conn.Finish()
	want(t, "the code of the answer", s.Ended(t), websocket.Code(4001))
	want(t, "response.create among the messages", len(s.Texts(`"type":"response.create"`)), 5)
}

// Turns are found in what is appended, and transcribed.
func TestRealtimeTurns(t *testing.T) {
	r := NewRealtime(t)
	r.On(RealtimeConduct{
		Turn: 2, Transcript: RealtimeUsage{Seconds: 2.5}, Piece: 7,
		Response: RealtimeResponse{Call: "weather", Hang: BeforeEnd, RawUsage: "null"},
	})
	conn := dial(t, r.URL+"?model=m", http.Header{"Api-Key": {Key}})
	appended := `{"type":"input_audio_buffer.append","audio":"` + base64.StdEncoding.EncodeToString(make([]byte, 4800)) + `"}`
	kinds, _ := say(t, conn, "response.function_call_arguments.done", appended, appended)
	want(t, "the events", slices.Compact(kinds), []string{"session.created", "input_audio_buffer.speech_started",
		"input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
		"response.created", "response.function_call_arguments.delta", "response.function_call_arguments.done"})
	_, event := say(t, conn, "response.done", appended, appended)
	want(t, "why it was cancelled", at(event, "response.status_details.reason"), any("turn_detected"))
	want(t, "the usage", at(event, "response.usage"), nil)
	say(t, conn, "response.created")
	transcribed := RealtimeUsage{IsTranscript: true, Seconds: 2.5}
	want(t, "the usages", r.Usages(), []RealtimeUsage{transcribed, transcribed})
	want(t, "the cost", transcribed.Cost(nil, map[string]int64{"second": 3}), int64(8))
	s := r.Session(t, 1)
	s.Abort()
	for err := error(nil); err == nil; {
		_, err = next(t, conn)
		if closed := new(websocket.CloseError); errors.As(err, &closed) {
			t.Errorf("got a close frame: %v", err)
		}
	}
}

// A handshake may be refused, and needs the key.
func TestRealtimeRefusals(t *testing.T) {
	r := NewRealtime(t)
	for name, test := range map[string]struct {
		conduct RealtimeConduct
		url     string
		header  http.Header
		status  int
	}{
		"no key":     {RealtimeConduct{}, r.URL + "?model=m", nil, 401},
		"two keys":   {RealtimeConduct{}, r.URL + "?model=m", http.Header{"Api-Key": {Key}, "Authorization": {"Bearer " + Key}}, 401},
		"no model":   {RealtimeConduct{}, r.URL, http.Header{"Api-Key": {Key}}, 400},
		"no such":    {RealtimeConduct{}, r.URL + "s?model=m", http.Header{"Api-Key": {Key}}, 404},
		"as it says": {RealtimeConduct{Status: 429}, r.URL + "?model=m", http.Header{"Api-Key": {Key}}, 429},
	} {
		r.On(test.conduct)
		_, response, err := new(websocket.Side).Dial(t.Context(), http.DefaultTransport, test.url, test.header)
		if err == nil || response == nil || response.StatusCode != test.status {
			t.Errorf("%s: got %v, %v, want %d", name, response, err, test.status)
		}
	}
	if n := len(r.Requests()); n != 5 || len(r.Sessions()) != 0 {
		t.Errorf("got %d requests and %d sessions", n, len(r.Sessions()))
	}
}

// A call is created, joined, and billed from its start to its end.
func TestUltravox(t *testing.T) {
	u := NewUltravox(t)
	post := func(key, body string) (status int, answer map[string]any) {
		t.Helper()
		req, err := http.NewRequest("POST", u.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", key)
		response, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		_ = json.NewDecoder(response.Body).Decode(&answer)
		return response.StatusCode, answer
	}
	const body = `{"maxDuration":"42s","medium":{"serverWebSocket":{"inputSampleRate":16000}}}`
	for name, test := range map[string]struct {
		key, body string
		status    int
	}{
		"no key": {"", body, 403}, "no medium": {Key, `{}`, 400}, "wrong time": {Key, strings.Replace(body, "42s", "1m", 1), 400},
	} {
		if status, answer := post(test.key, test.body); status != test.status {
			t.Errorf("%s: got %d %v, want %d", name, status, answer, test.status)
		}
	}
	status, answer := post(Key, body)
	if status != 201 || answer["maxDuration"] != "42s" {
		t.Fatalf("got %d %v", status, answer)
	}
	conn := dial(t, answer["joinUrl"].(string), nil)
	say(t, conn, "call_started")
	say(t, conn, "pong", `{"type":"ping"}`)
	say(t, conn, "transcript", `{"type":"user_text_message","text":"How?"}`)
	call := u.Call(t, 1)
	_, err := next(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Send(websocket.Binary, []byte{1, 2})
	m, _ := next(t, conn)
	want(t, "the sound", m, Message{websocket.Binary, []byte{1, 2}})
	want(t, "the sound that came", call.Sound(), []byte{1, 2})
	_ = conn.Send(websocket.Text, []byte(`{"type":"hang_up"}`))
	if _, err = next(t, conn); err == nil {
		t.Error("it does not end")
	}
	conn.Finish()
	call.Ended(t)
	lasted, billed, reason := call.Bill()
	if lasted <= 0 || lasted > billed || billed%(6*time.Second) != 0 || reason != "hangup" {
		t.Errorf("got %s, %s, %q", lasted, billed, reason)
	}
	if _, _, err := new(websocket.Side).Dial(t.Context(), http.DefaultTransport, call.JoinURL, nil); err == nil {
		t.Error("the call was joined twice")
	}
}

package providertest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// OpenAI's other formats have the shapes of the real ones, and the mishaps come at their moments.
func TestFormats(t *testing.T) {
	p := New(t)
	p.On("cut", Conduct{Cut: InContent})
	p.On("error", Conduct{Error: InContent})
	p.On("early", Conduct{End: BeforeUsage})
	p.On("late", Conduct{Cut: BeforeEnd})
	p.On("failed", Conduct{Failed: true})
	p.On("mute", Conduct{NoUsage: true})
	p.On("thinking", Conduct{Reasoning: "hm"})
	p.On("first", Conduct{UsageAt: First})
	p.On("middle", Conduct{UsageAt: Middle})
	p.On("long", Conduct{Seconds: 2.5})
	p.On("busy", Refuse(429))
	const (
		responses, embeddings, images, speech = "/v1/responses", "/v1/embeddings", "/v1/images/generations", "/v1/audio/speech"

		stream   = `,"stream":true`
		function = `,"tools":[{"type":"web_search"},{"type":"function","name":"weather"}]`
		usage    = `"usage":{"input_tokens":11,"input_tokens_details":{"cached_tokens":5,"cache_write_tokens":2},"output_tokens":7,`
	)
	for _, test := range []responseTest{
		{responses, ``, 200, usage, "", false},
		{responses, `,"max_output_tokens":3`, 200, `"incomplete_details":{"reason":`, "", false},
		{responses, stream, 200, "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,", "[DONE]", false},
		{responses, stream, 200, `{"type":"response.completed",`, `"usage":{"input_tokens":12`, false},
		{responses, stream + `,"max_output_tokens":3`, 200, "event: response.incomplete\n", "response.completed", false},
		{responses, function, 200, `"call_id":"call_1","name":"weather","arguments":"{\"city\"`, "", false},
		{responses, function + stream, 200, `"type":"response.function_call_arguments.delta"`, "output_text", false},
		{responses, function + `,"input":[{"type":"function_call_output","call_id":"call_1"}]`, 200, "output_text", "function_call", false},
		{responses, `,"model":"thinking"` + stream, 200, `"type":"response.reasoning_summary_text.delta"`, "encrypted", false},
		{responses, `,"model":"thinking","include":["reasoning.encrypted_content"]`, 200, `"encrypted_content":"`, "", false},
		{responses, `,"model":"failed"`, 200, `"status":"failed"`, "", false},
		{responses, `,"model":"failed"` + stream, 200, "event: response.failed\n", "response.completed", false},
		{responses, `,"model":"mute"` + stream, 200, `"usage":null`, usage, false},
		{responses, `,"model":"cut"` + stream, 200, `"delta":"word`, "completed", true},
		{responses, `,"model":"late"` + stream, 200, "response.completed", "", true},
		{responses, `,"model":"early"` + stream, 200, "response.output_item.done", "response.completed", false},
		{responses, `,"model":"error"` + stream, 200, "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\"", "completed", false},
		{responses, `,"model":"busy"`, 429, `"type":"requests"`, "", false},
		{responses, `,"max_tokens":3`, 400, `Unknown parameter: 'max_tokens'`, "", false},
		{responses, stream + `,"stream_options":{"include_usage":true}`, 400, `Unknown parameter: 'stream_options.include_usage'`, "", false},
		{responses, stream + `,"stream_options":{"include_obfuscation":false}`, 200, "completed", "", false},
		{responses + "/compact", `,"input":"hi"`, 200, `"encrypted_content":"Z0FBQUFB"}],` + usage, "", false},
		{responses + "/input_tokens", ``, 200, `"input_tokens":11}`, "", false},

		{embeddings, `,"input":["a","b"]`, 200, `{"object":"embedding","index":1,"embedding":[0.25,-0.5,1]}],"model":`, "", false},
		{embeddings, `,"input":[1,2]`, 200, `"usage":{"prompt_tokens":11,"total_tokens":11}}`, `"index":1`, false},
		{embeddings, `,"input":[[1,2],[3]],"dimensions":6`, 200, `"index":1,"embedding":[0.25,-0.5,1,0.25,-0.5,1]}`, "", false},
		{embeddings, `,"input":"a","encoding_format":"base64"`, 200, `"embedding":"AACAPgAAAL8AAIA/"}`, "", false},
		{embeddings, `,"model":"first"`, 200, `{"usage":{"prompt_tokens":11,"total_tokens":11},"object":"list"`, "", false},
		{embeddings, `,"model":"middle"`, 200, `]}],"usage":{"prompt_tokens":11,"total_tokens":11},"model":"middle"}`, "", false},
		{embeddings, `,"model":"mute"`, 200, `"model":"mute"}`, "usage", false},
		{embeddings, `,"model":"cut"`, 200, `"embedding"`, "usage", true},
		{embeddings, `,"stream":true`, 400, `Unknown parameter: 'stream'`, "", false},
		{"/v1/moderations", `,"input":["a","b"]`, 200, `}},{"flagged":false`, "usage", false},
		{images, `,"n":2`, 200, `"data":[{"b64_json":"iVBORw0KGgoA"},{"b64_json":"iVBORw0KGgoA"}],"background"`, "", false},
		{images, ``, 200, `"usage":{"input_tokens":11,"output_tokens":7,"total_tokens":18,"input_tokens_details":{"text`, "", false},
		{images, stream, 200, "event: image_generation.completed\n", "partial", false},
		{images, stream + `,"partial_images":1`, 200, "event: image_generation.partial_image\n", "", false},
		{speech, `,"input":"a"`, 200, sound, "usage", false},
		{speech, `,"input":"a","model":"cut"`, 200, sound, "usage", true},
		{speech, `,"input":"a","stream_format":"sse"`, 200, `{"type":"speech.audio.done","usage":{"input_tokens":11,`, "", false},
		{speech, `,"input":"a","stream_format":"sse","model":"tts-1"`, 400, `'sse' is not supported`, "", false},
	} {
		wantResponse(t, p, test.path, `{"safety_identifier":"u"`+test.members+`}`, nil, test.status, test.has, test.hasNot, test.isCut)
	}
}

// Recordings come as forms, and the fields say in which shape the transcript is.
func TestAudioForms(t *testing.T) {
	p := New(t)
	p.On("long", Conduct{Seconds: 2.5})
	p.On("mute", Conduct{NoUsage: true})
	const (
		transcriptions, translations = "/v1/audio/transcriptions", "/v1/audio/translations"

		tokens  = `"usage":{"type":"tokens","input_tokens":11,"output_tokens":7,"total_tokens":18,"input_token_details":`
		seconds = `"usage":{"type":"duration","seconds":3}`
	)
	form := http.Header{"Content-Type": {`multipart/form-data; boundary="b"`}}
	for _, test := range []struct {
		path, fields string
		status       int
		has, hasNot  string
	}{
		{transcriptions, "model=gpt-4o-transcribe", 200, `{"text":"word ünd ",` + tokens, "seconds"},
		{transcriptions, "model=gpt-4o-transcribe stream=true", 200, `data: {"type":"transcript.text.done","text":"word ünd word`, "duration"},
		{transcriptions, "model=gpt-4o-transcribe response_format=srt", 400, "not compatible", ""},
		{transcriptions, "model=whisper-1", 200, `{"text":"word ünd ",` + seconds, "tokens"},
		{transcriptions, "model=whisper-1 stream=true", 200, `{"text":"word ünd ",` + seconds, "data:"},
		{transcriptions, "model=whisper-1 response_format=verbose_json", 200, `"duration":3,"text":"word ünd "`, "tokens_"},
		{transcriptions, "model=whisper-1 response_format=text", 200, "word ünd \n", "{"},
		{transcriptions, "model=whisper-1 response_format=srt", 200, "00:00:03,000\nword ünd \n", "{"},
		{transcriptions, "model=whisper-1 response_format=vtt", 200, "WEBVTT\n", "{"},
		{transcriptions, "model=long", 200, `"usage":{"type":"duration","seconds":2.5}`, ""},
		{transcriptions, "model=mute", 200, `{"text":"word ünd "}`, ""},
		{transcriptions, "n=2", 400, "Unknown parameter: 'n'", ""},
		{translations, "model=whisper-1", 200, `{"text":"word ünd "}`, ""},
		{translations, "model=whisper-1 response_format=verbose_json", 200, `"duration":3,`, "usage"},
		{translations, "stream=true", 400, "Unknown parameter: 'stream'", ""},
	} {
		body := "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n"
		for _, field := range strings.Fields(test.fields) {
			name, value, _ := strings.Cut(field, "=")
			body += fmt.Sprintf("--b\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", name, value)
		}
		wantResponse(t, p, test.path, body+"--b--\r\n", form, test.status, test.has, test.hasNot, false)
	}
	if got := p.Last(t); got.Field(t, "file") != "RIFF" || !got.Stream {
		t.Errorf("the last request is %+v", got)
	}
	wantResponse(t, p, transcriptions, `{}`, nil, 400, "Could not parse multipart form", "", false)
	wantResponse(t, p, transcriptions, "--b--\r\n", form, 400, "Missing required parameter: 'file'", "", false)
	wantResponse(t, p, "/v1/embeddings", "--b--\r\n", form, 400, "you must provide a model parameter", "", false)
}

// A body of a size is sent as it is made, whole or cut in its middle.
func TestSize(t *testing.T) {
	p := New(t)
	p.On("", Conduct{Size: 3 << 20})
	p.On("cut", Conduct{Size: 3 << 20, Cut: InContent})
	for _, test := range []struct {
		path, body string
		has        string
		least      int
	}{
		{"/v1/embeddings", `{"input":["a","b"]}`, `"usage"`, 3 << 20},
		{"/v1/embeddings", `{"input":"a","encoding_format":"base64"}`, `"usage"`, 3 << 20},
		{"/v1/images/generations", `{}`, `"usage"`, 3 << 20},
		{"/v1/audio/speech", `{}`, sound, 3 << 20},
		{"/v1/embeddings", `{"model":"cut"}`, "", 3 << 19},
	} {
		_, got, cut := post(t, p, test.path, test.body, nil)
		if n := len(got); n < test.least-100 || n > test.least+1000 || !strings.Contains(got, test.has) || (cut != nil) != (test.has == "") {
			t.Errorf("%s %s: %v, got %d bytes, want %d", test.path, test.body, cut, n, test.least)
		}
		if strings.HasPrefix(got, "{") && cut == nil && !json.Valid([]byte(got)) {
			t.Errorf("%s %s: the body is not JSON", test.path, test.body)
		}
	}
}

// stored sends a request without a body and returns what came.
func stored(t *testing.T, p *Provider, method, path string) (status int, got string) {
	t.Helper()
	r, err := http.NewRequest(method, p.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// A response is stored unless the request says otherwise. It can be retrieved, continued and referred to by its ID, by
// everybody.
func TestStored(t *testing.T) {
	p := New(t)
	var first struct {
		ID     string
		Output []struct{ ID string }
	}
	create := func(body string) {
		t.Helper()
		if _, got, _ := post(t, p, "/v1/responses", body, nil); json.Unmarshal([]byte(got), &first) != nil || len(first.Output) != 1 {
			t.Fatalf("got %s", got)
		}
	}
	create(`{"input":"hidden","store":false}`)
	if status, got := stored(t, p, "GET", "/v1/responses/"+first.ID); status != 404 {
		t.Errorf("a response that is not stored: got %d %s", status, got)
	}
	create(`{"input":"the question"}`)
	const responses = "/v1/responses"
	reference := fmt.Sprintf(`{"type":"item_reference","id":%q}`, first.Output[0].ID)
	for _, test := range []struct {
		path, body string
		status     int
		has        string
	}{
		{responses, `{"input":"more","previous_response_id":"` + first.ID + `"}`, 200, `"usage":{"input_tokens":29,`},
		{responses, `{"input":[` + reference + `,` + reference + `]}`, 200, `"usage":{"input_tokens":18,`},
		{responses, `{"input":[{"id":"` + first.Output[0].ID + `"}]}`, 200, `"usage":{"input_tokens":18,`},
		{responses, `{"input":[{"type":"message","role":"user","id":"msg_own","content":"a"}]}`, 200, `"usage":{"input_tokens":11,`},
		{responses + "/compact", `{"previous_response_id":"` + first.ID + `"}`, 200, `"text":"the question"`},
		{responses + "/input_tokens", `{"previous_response_id":"` + first.ID + `"}`, 200, `"input_tokens":29`},
		{responses, `{"previous_response_id":"resp_1"}`, 400, `"code":"previous_response_not_found"`},
		{responses, `{"input":[{"type":"item_reference","id":"msg_1"}]}`, 404, `"code":"item_not_found"`},
	} {
		wantResponse(t, p, test.path, test.body, nil, test.status, test.has, "", false)
	}
	path := responses + "/" + first.ID
	for _, test := range []struct {
		method, path string
		status       int
		has          string
	}{
		{"GET", path, 200, `"output_tokens":7`},
		{"GET", path + "/input_items", 200, `"text":"the question"`},
		{"GET", responses + "/other/%2e%2e/" + first.ID + "%2Finput_items", 200, `"text":"the question"`},
		{"GET", path + "/other", 404, "Unknown request URL"},
		{"DELETE", path + "/input_items", 404, "Unknown request URL"},
		{"DELETE", path, 200, `"deleted":true`},
		{"GET", path, 404, `"code":"response_not_found"`},
		{"DELETE", path, 404, `"code":"response_not_found"`},
		{"GET", responses, 404, "Unknown request URL"},
	} {
		if status, got := stored(t, p, test.method, test.path); status != test.status || !strings.Contains(got, test.has) {
			t.Errorf("%s %s: got %d %s, want %d %s", test.method, test.path, status, got, test.status, test.has)
		}
	}
}

// Only the newest responses are kept.
func TestStoredBound(t *testing.T) {
	var s storedResponses
	for i := range mostStored + 1 {
		id := fmt.Sprint(i)
		s.put(&storedResponse{id: id, input: []item{{id: "in" + id}}, output: []item{{id: "out" + id}}})
	}
	_, owner := s.find("out0")
	if s.get("0") != nil || owner != nil || s.get("1") == nil || len(s.items) != 2*mostStored {
		t.Errorf("got %v, %v, %v, %d items", s.get("0"), owner, s.get("1"), len(s.items))
	}
}

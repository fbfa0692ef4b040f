package llmwire

import (
	"bytes"
	"strings"
	"testing"

	"tollgate/internal/soundlength"
)

// The smallest request of each format is one of the format, for the model, with no more output than providers need.
func TestSmallest(t *testing.T) {
	for _, test := range []struct {
		format Format
		limit  string // the member; "" for none
		voice  string
		want   string
	}{
		{OpenAIChat, "max_tokens", "", `{"model":"m\"","max_tokens":1,"messages":[{"role":"user","content":"a"}]}`},
		{OpenAIChat, "max_completion_tokens", "", `{"model":"m\"","max_completion_tokens":1,"messages":[{"role":"user","content":"a"}]}`},
		{AnthropicMessages, "max_tokens", "", `{"model":"m\"","max_tokens":1,"messages":[{"role":"user","content":"a"}]}`},
		{OpenAIResponses, "max_output_tokens", "", `{"model":"m\"","max_output_tokens":16,"store":false,"input":"a"}`},
		{OpenAIEmbeddings, "", "", `{"model":"m\"","input":"a"}`},
		{OpenAIModerations, "", "", `{"model":"m\"","input":"a"}`},
		{OpenAIImages, "", "", `{"model":"m\"","prompt":"a","n":1}`},
		{OpenAISpeech, "", "", `{"model":"m\"","input":"a","voice":"alloy"}`},
		{OpenAISpeech, "", `"x"`, `{"model":"m\"","input":"a","voice":"\"x\""}`},
	} {
		contentType, body := test.format.Smallest(Changes{Model: `m"`, LimitMember: test.limit}, test.voice)
		got := string(bytes.Join(body, nil))
		if got != test.want || contentType != "application/json" {
			t.Errorf("%s: got %s of type %s\nwant %s", test.format.URLSuffix(), got, contentType, test.want)
		}
		if r, err := ReadRequest(test.format, []byte(got)); err != nil || len(r.Unknown) > 0 || r.ServerTool != "" || r.Stream {
			t.Errorf("%s: read as %+v, %v", test.format.URLSuffix(), r, err)
		}
	}
	for _, format := range []Format{OpenAITranscriptions, OpenAITranslations} {
		contentType, pieces := format.Smallest(Changes{Model: "m"}, "")
		body := bytes.Join(pieces, nil)
		r, err := ReadForm(format, []string{contentType}, body)
		if err != nil || r.Model != "m" || len(r.Unknown) > 0 || len(r.fields) != 2 || r.Seconds != 1 {
			t.Fatalf("%s: read as %+v, %v", format.URLSuffix(), r, err)
		}
		file := r.fields[1]
		sound := body[file.value.from:file.value.to]
		if seconds, ok := soundlength.Of(sound); !ok || seconds != 1 || !strings.HasSuffix(file.fileName, ".wav") {
			t.Errorf("%s: %s has %d s, %t", format.URLSuffix(), file.fileName, seconds, ok)
		}
		// RIFF, its size, 16 bits in one channel at 8 kHz, and 0.2 s.
		const header = "RIFF\xa4\x0c\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00" +
			"\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x80\x0c\x00\x00"
		if !bytes.HasPrefix(sound, []byte(header)) || len(sound) != len(header)+3200 || len(body) > 4<<10 {
			t.Errorf("%s: %d bytes with a sound of %d bytes that begins with %q", format.URLSuffix(), len(body), len(sound), sound[:44])
		}
	}
}

func TestErrorSentence(t *testing.T) {
	for _, test := range []struct{ body, want string }{
		{`{"error":{"message":"No such model.","type":"invalid_request_error","code":null}}`, "No such model."}, // OpenAI
		{`{"type":"error","error":{"type":"not_found_error","message":"model: x"}}`, "model: x"},                // Anthropic
		{`{"error":"model \u0022x\u0022 not found"}`, `model "x" not found`},                                    // Ollama
		{`{"object":"error","message":"Bad.","type":"BadRequestError","code":400}`, "Bad."},                     // vLLM
		{`{"statusCode":401,"message":"Access denied"}`, "Access denied"},                                       // Azure
		{`[{"error":{"code":400,"message":"API key not valid.","status":"INVALID"}}]`, "API key not valid."},    // Google
		{`{"detail":[{"loc":["body"],"msg":"Field required"}]}`, "Field required"},                              // FastAPI
		{`{"detail":"Invalid API key."}`, "Invalid API key."},                                                   // Ultravox
		{`"Forbidden"`, "Forbidden"},
		{`{"error":null,"message":"x"}`, "x"}, {`{"error":true,"message":{"error":[{}],"detail":"y"}}`, "y"},
		{`{"choices":[]}`, ""}, {"", ""}, {"<html>", ""}, {"null", ""}, {`{"error":{"message":"cut`, ""}, {`[]`, ""}, {`{"error":{}}`, ""},
	} {
		if got := ErrorSentence([]byte(test.body)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.body, got, test.want)
		}
	}
}

func TestIsAtLimit(t *testing.T) {
	const sentence = `{"error":{"message":"Could not finish the message because max_tokens or model output limit was reached.` +
		` Please try again with higher max_tokens.","type":"invalid_request_error","param":null,"code":null}}`
	for _, test := range []struct {
		status int
		body   string
		want   bool
	}{
		{400, sentence, true}, {500, sentence, false}, {400, `{"error":{"message":"max_tokens is too large"}}`, false}, {400, "", false},
	} {
		if got := IsAtLimit(test.status, []byte(test.body)); got != test.want {
			t.Errorf("%d %s: got %t", test.status, test.body, got)
		}
	}
}

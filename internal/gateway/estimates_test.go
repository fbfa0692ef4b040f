package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"tollgate/internal/llmwire"
)

// A recordedStream is a response to a prompt as the model's tokens came: on OpenAI's format each in an event, on
// Anthropic's three in one. The counts are those of the public tokenizers of the two, o200k_base and Anthropic's, with 7
// tokens around the prompt.
type recordedStream struct {
	Name, Format, Prompt string
	Input, Output        int64
	Events               []string
}

func recordedStreams(t testing.TB) (all []recordedStream) {
	t.Helper()
	file, err := os.Open("testdata/streams.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var s recordedStream
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// request returns the request for the stream, and parts what the provider sends until all content has come.
func (s *recordedStream) request(t testing.TB) (request *llmwire.Request, parts []string) {
	t.Helper()
	format := llmwire.OpenAIChat
	event := `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}`
	if parts = []string{role}; s.Format == "messages" {
		format = llmwire.AnthropicMessages
		event = `data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}`
		parts = []string{
			fmt.Sprintf(`data: {"type":"message_start","message":{"usage":{"input_tokens":%d,"output_tokens":1}}}`+"\n\n", s.Input),
			`data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}` + "\n\n",
		}
	}
	for _, content := range s.Events {
		parts = append(parts, fmt.Sprintf(event, quoted(t, content))+"\n\n")
	}
	body := fmt.Sprintf(`{"model":"m","max_tokens":1000,"stream":true,"temperature":0.7,"messages":[{"role":"user","content":%s}]}`,
		quoted(t, s.Prompt))
	request, err := llmwire.ReadRequest(format, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return request, parts
}

func quoted(t testing.TB, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A stream that is cancelled costs at most 1.6 times what all of it would have cost, wherever it is left. One that is
// left just before its end costs most of that.
func TestEstimates(t *testing.T) {
	for _, s := range recordedStreams(t) {
		t.Run(s.Name, func(t *testing.T) {
			request, parts := s.request(t)
			stream := llmwire.Stream{Report: llmwire.Report{Format: request.Format}}
			whole, cost, before := s.Input+s.Output, int64(0), int64(0)
			for i, part := range parts {
				stream.Received(copy(stream.Room(), part))
				used, _, exact := stream.Report.Used(1, request.EstimatedInput(llmwire.Holding{MediaTokens: 2000}))
				if cost = used.Input + used.Output; exact || 10*cost > 16*whole || cost < before {
					t.Errorf("left after %d of %d events it costs %d, exact: %v; before %d, the whole %d", i+1, len(parts), cost, exact, before, whole)
				}
				before = cost
			}
			if 10*cost < 7*whole {
				t.Errorf("all content costs %d, the whole %d", cost, whole)
			}
		})
	}
}

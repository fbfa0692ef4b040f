package llmwire

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// A tokenizedText is what a model could respond to a prompt. It is made for these tests, not recorded: the texts were
// written by hand, and cut into the tokens of OpenAI's tokenizer o200k_base, whose counts they have. Tokens that do not
// end with a character are empty.
type tokenizedText struct {
	Name, Prompt     string
	PromptTokens     int64 `json:"prompt_tokens"`
	CompletionTokens int64 `json:"completion_tokens"`
	Pieces           []string
}

func readTexts(t *testing.T) (all []tokenizedText) {
	t.Helper()
	data, err := os.ReadFile("testdata/estimates.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// What is estimated of a stream that breaks off is not far from what has been generated, and never much more than the
// whole costs, whatever the language and however many tokens come in an event.
func TestEstimates(t *testing.T) {
	for _, r := range readTexts(t) {
		for format, template := range map[Format]string{
			OpenAIChat:        `{"choices":[{"index":0,"delta":{"content":%s}}]}`,
			AnthropicMessages: `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}`,
			OpenAIResponses:   `{"type":"response.output_text.delta","item_id":"msg_1","delta":%s}`,
		} {
			for _, tokens := range []int{1, 2, 7} {
				body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%s}]}`, jsonString(r.Prompt))
				if format == OpenAIResponses {
					body = fmt.Sprintf(`{"model":"m","input":%s}`, jsonString(r.Prompt))
				}
				request, err := ReadRequest(format, []byte(body))
				if err != nil {
					t.Fatal(err)
				}
				estimated := request.EstimatedInput(Holding{BytesPerToken: 1})
				stream := &Stream{Report: Report{Format: format}}
				for i := 0; i < len(r.Pieces); i += tokens {
					piece := strings.Join(r.Pieces[i:min(i+tokens, len(r.Pieces))], "")
					stream.Received(copy(stream.Room(), fmt.Sprintf("data: "+template+"\n\n", jsonString(piece))))
					generated := min(int64(i+tokens), r.CompletionTokens)
					used, _, exact := stream.Report.Used(1, estimated)
					if whole := r.PromptTokens + r.CompletionTokens; exact || 10*(used.Input+used.Output) > 16*whole {
						t.Errorf("%s, %d tokens an event: after %d of %d tokens %d + %d are charged, exact: %v; the whole costs %d",
							r.Name, tokens, generated, r.CompletionTokens, used.Input, used.Output, exact, whole)
					}
					if 10*used.Output < 7*generated-10 || 10*used.Input < 6*r.PromptTokens {
						t.Errorf("%s, %d tokens an event: after %d tokens %d are charged, and %d for %d of input",
							r.Name, tokens, generated, used.Output, used.Input, r.PromptTokens)
					}
				}
			}
		}
	}
}

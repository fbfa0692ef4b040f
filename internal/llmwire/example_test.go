package llmwire_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing/iotest"

	"tollgate/internal/llmwire"
)

// A request is read to find what to hold for it, and forwarded with a model and a limit of the gateway's.
func ExampleRequest() {
	body := []byte(`{"messages": [{"role": "user", "content": "Hello!"}], "top_p": 0.90}`)
	r, err := llmwire.ReadRequest(llmwire.OpenAIChat, body)
	if err != nil {
		fmt.Println(err) // for the client
		return
	}
	fmt.Println("hold", r.HeldInput(llmwire.Holding{BytesPerToken: 1, MediaTokens: 2000}), "input tokens")
	limitMember := r.Format.LimitMember("api.openai.com")
	fmt.Printf("%s\n", bytes.Join(r.Rewrite(llmwire.Changes{Model: "gpt-4o", LimitMember: limitMember, Limit: 100}), nil))
	// Output:
	// hold 68 input tokens
	// {"model":"gpt-4o","max_completion_tokens":100,"messages": [{"role": "user", "content": "Hello!"}], "top_p": 0.90}
}

// A stream is relayed event by event, but for the usage that only the gateway has asked for.
func ExampleStream() {
	provider := iotest.OneByteReader(strings.NewReader(
		`data: {"choices": [{"index": 0, "delta": {"content": "Hello!"}, "finish_reason": null}]}` + "\n\n" +
			`data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}` + "\n\n" +
			`data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}` + "\n\n" +
			`data: [DONE]` + "\n\n"))
	stream := llmwire.Stream{Report: llmwire.Report{Format: llmwire.OpenAIChat}, DropUsage: true}
	for {
		n, err := provider.Read(stream.Room())
		os.Stdout.Write(stream.Received(n))
		if err != nil {
			break
		}
	}
	if rest := stream.Finish(); stream.Report.Done || stream.Report.HasFinished(1) {
		os.Stdout.Write(rest)
	}
	used, _, exact := stream.Report.Used(1, 0)
	fmt.Println(used.Input, "input tokens,", used.Output, "output tokens, exact:", exact)
	// Output:
	// data: {"choices": [{"index": 0, "delta": {"content": "Hello!"}, "finish_reason": null}]}
	//
	// data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
	//
	// data: [DONE]
	//
	// 9 input tokens, 2 output tokens, exact: true
}

// An event that a client sends to OpenAI's Realtime API is passed on as it comes, or read.
func ExampleRealtimeScan() {
	rules := llmwire.RealtimeRules{Model: "gpt-realtime", Limit: 4096, Default: 4096}
	for _, event := range []string{
		`{"type": "input_audio_buffer.append", "audio": "AAAA"}`,
		`{"type": "session.update", "session": {"type": "realtime", "max_output_tokens": "inf"}}`,
		`{"type": "response.create", "response": {"tools": [{"type": "mcp"}]}}`,
	} {
		var scan llmwire.RealtimeScan
		passed := int64(0)
		for part := range slices.Chunk([]byte(event), 40) {
			_, _ = scan.Read(part) // End returns the error, too
			fmt.Printf("%s", event[passed:max(passed, scan.Released())])
			passed = max(passed, scan.Released())
		}
		action, err := scan.End()
		rest := []byte(event[passed:])
		if err == nil && action == llmwire.ReadEvent {
			var request *llmwire.RealtimeRequest
			if request, err = rules.Read(rest); err == nil {
				rest = bytes.Join(request.Pieces, nil)
			}
		}
		var refusal *llmwire.RealtimeError
		if errors.As(err, &refusal) {
			fmt.Println("refused:", refusal)
		} else {
			fmt.Printf("|%s\n", rest)
		}
	}
	// Output:
	// {"type": "input_audio_buffer.append", "audio": "AAAA"|}
	// |{"type": "session.update", "session": {"type": "realtime", "max_output_tokens": 4096}}
	// refused: The value "mcp" of response.tools[].type is not supported.
}

package llmwire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// summary is what the tests compare of a report.
func (r *Report) summary(n int64) string {
	input, output, exact := r.Counts(1000)
	s := fmt.Sprintf("%d+%d tokens, %d events, %d bytes, %q", input, output, r.ContentEvents, r.contentBytes, r.stop)
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"estimated", !exact}, {"done", r.Done}, {"finished", r.HasFinished(n)}, {"complete", r.isComplete(n)},
		{"failed", r.Failed}, {"refused", r.refused},
	} {
		if flag.on {
			s += " " + flag.name
		}
	}
	return s
}

func TestWireResponses(t *testing.T) {
	const chat = `{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,` +
		`"model":"gpt-4.1-2025-04-14","choices":[%s],%s"service_tier":"default","system_fingerprint":"fp_b376dfbbd5"}`
	const chatUsage = `"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,` +
		`"prompt_tokens_details":{"cached_tokens":12,"audio_tokens":0},` +
		`"completion_tokens_details":{"reasoning_tokens":4,"rejected_prediction_tokens":1}},`
	const message = `{"id":"msg_01XFDUDYJgAACzvnptvVoYEL","type":"message","role":"assistant","model":"claude-sonnet-4-5",` +
		`"content":[%s],"stop_reason":"%s","stop_sequence":null,"usage":%s}`
	choice := func(index int, message, reason string) string {
		return fmt.Sprintf(`{"index":%d,"message":{"role":"assistant",%s},"logprobs":null,"finish_reason":"%s"}`,
			index, message, reason)
	}
	for _, test := range []struct {
		name   string
		format Format
		n      int64
		body   string
		want   string
	}{
		{"chat", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":"Hello!\n\u00e9","refusal":null`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 9 bytes, "stop" finished complete`},
		{"chat without usage", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":"Hello!!"`, "stop"), ""),
			`1000+3 tokens, 1 events, 7 bytes, "stop" estimated finished`},
		{"usage of zero", OpenAIChat, 1,
			fmt.Sprintf(chat, choice(0, `"content":"Hello!"`, "stop"), `"usage":{"prompt_tokens":0,"completion_tokens":0},`),
			`0+0 tokens, 1 events, 6 bytes, "stop" finished complete`},
		{"half a usage", OpenAIChat, 1,
			fmt.Sprintf(chat, choice(0, `"content":"Hello!"`, "stop"), `"usage":{"prompt_tokens":7,"completion_tokens":null},`),
			`7+2 tokens, 1 events, 6 bytes, "stop" estimated finished`},
		{"odd usage", OpenAIChat, 1,
			fmt.Sprintf(chat, choice(0, `"content":"Hello!"`, "stop"), `"usage":{"prompt_tokens":-1,"completion_tokens":"5"},`),
			`1000+2 tokens, 1 events, 6 bytes, "stop" estimated finished`},
		{"other members of usage", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":"Hi"`, "stop"),
			`"usage":{"prompt_tokens":7,"input_tokens":0,"completion_tokens":2,"output_tokens":0,"cache_read_input_tokens":5},`),
			`7+2 tokens, 1 events, 2 bytes, "stop" finished complete`},
		{"two choices", OpenAIChat, 2,
			fmt.Sprintf(chat, choice(0, `"content":"One"`, "length")+","+choice(1, `"content":"Three"`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 8 bytes, "length" finished complete`},
		{"tools", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":null,"tool_calls":[{"id":"call_abc","type":"function",`+
			`"function":{"name":"get_weather","arguments":"{\"city\":1}"}},{"type":"custom","custom":{"input":"abc"}}]`,
			"tool_calls"), chatUsage), `19+10 tokens, 1 events, 13 bytes, "tool_calls" finished complete`},
		{"refusal", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":null,"refusal":"I cannot."`, "stop"), chatUsage),
			`19+10 tokens, 1 events, 9 bytes, "stop" finished complete refused`},
		{"filter", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":""`, "content_filter"), chatUsage),
			`19+10 tokens, 0 events, 0 bytes, "content_filter" finished complete refused`},
		{"reasoning", OpenAIChat, 1,
			fmt.Sprintf(chat, choice(0, `"reasoning_content":"abc","content":[{"type":"text","text":"def"}]`, "new_reason"), ""),
			`1000+2 tokens, 1 events, 6 bytes, "other" estimated finished`},
		{"error", OpenAIChat, 1, `{"error":{"message":"no","type":"server_error","param":null,"code":null}}`,
			`1000+0 tokens, 0 events, 0 bytes, "" estimated failed`},
		{"no error", OpenAIChat, 1, fmt.Sprintf(chat, choice(0, `"content":"a"`, "stop"), `"error":null,`+chatUsage),
			`19+10 tokens, 1 events, 1 bytes, "stop" finished complete`},

		{"message", AnthropicMessages, 1, fmt.Sprintf(message, `{"type":"text","text":"Hello!"}`, "end_turn",
			`{"input_tokens":2095,"output_tokens":503}`),
			`2095+503 tokens, 1 events, 6 bytes, "end_turn" finished complete`},
		{"cache", AnthropicMessages, 1, fmt.Sprintf(message, `{"type":"text","text":"Hello!"}`, "end_turn",
			`{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,"output_tokens":5,`+
				`"cache_creation":{"ephemeral_5m_input_tokens":200},"server_tool_use":null,"service_tier":"standard"}`),
			`3210+5 tokens, 1 events, 6 bytes, "end_turn" finished complete`},
		{"compaction", AnthropicMessages, 1, fmt.Sprintf(message, `{"type":"text","text":"Hello!"}`, "end_turn",
			`{"input_tokens":23000,"output_tokens":1000,"cache_read_input_tokens":null,"iterations":[`+
				`{"type":"compaction","input_tokens":180000,"output_tokens":3500,"cache_read_input_tokens":7},`+
				`{"input_tokens":23000,"output_tokens":1000,"type":"message"},`+
				`{"output_tokens":1,"cache_creation_input_tokens":2,"type":"compaction"}]}`),
			`203009+4501 tokens, 1 events, 6 bytes, "end_turn" finished complete`},
		{"thinking and tools", AnthropicMessages, 1,
			fmt.Sprintf(message, `{"type":"thinking","thinking":"abcd","signature":"EqQBCgIYAhIM"},`+
				`{"type":"tool_use","id":"toolu_01","name":"get_weather","input":{"city":"Bern"}}`, "tool_use", `null`),
			`1000+6 tokens, 1 events, 17 bytes, "tool_use" estimated finished`},
		{"Anthropic's refusal", AnthropicMessages, 1,
			fmt.Sprintf(message, ``, "refusal", `{"input_tokens":5,"output_tokens":1}`),
			`5+1 tokens, 0 events, 0 bytes, "refusal" finished complete refused`},
		{"Anthropic's error", AnthropicMessages, 1, `{"type":"error","error":{"type":"api_error","message":"x"}}`,
			`1000+0 tokens, 0 events, 0 bytes, "" estimated failed`},
		{"too many tokens", AnthropicMessages, 1, fmt.Sprintf(message, ``, "end_turn",
			`{"input_tokens":9007199254740991,"cache_read_input_tokens":9223372036854775807,"output_tokens":1}`),
			`9007199254740991+1 tokens, 0 events, 0 bytes, "end_turn" finished complete`},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Report{Format: test.format}
			if _, err := r.Read([]byte(test.body)); err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			if got := r.summary(test.n); got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
	for _, body := range []string{``, `[]`, `null`, `"x"`, `{"id":"chatcmpl-1","choices":[{"index":0`, `<html>`, `{}{}`} {
		if _, err := new(Report).Read([]byte(body)); err == nil {
			t.Errorf("%s was read as a response", body)
		}
	}
}

// chatChunk returns an event of OpenAI's stream with one choice.
func chatChunk(index int, delta, reason string) string {
	return chatEvent(fmt.Sprintf(`[{"index":%d,"delta":{%s},"logprobs":null,"finish_reason":%s}]`, index, delta, reason), "null")
}

func chatEvent(choices, usage string) string {
	return `data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,` +
		`"model":"gpt-4o-2024-08-06","choices":` + choices + `,"usage":` + usage + "}\n\n"
}

const (
	chatUsage = `{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,` +
		`"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}`
	chatDone = "data: [DONE]\n\n"
)

// messageEvent returns an event of Anthropic's stream.
func messageEvent(name, rest string) string {
	return "event: " + name + "\ndata: {\"type\":\"" + name + "\"" + rest + "}\n\n"
}

const messageStart = `,"message":{"id":"msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY","type":"message","role":"assistant",` +
	`"content":[],"model":"claude-sonnet-4-5","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,` +
	`"cache_creation_input_tokens":100,"cache_read_input_tokens":2000,"output_tokens":1}}`

func textDelta(text string) string {
	return messageEvent("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":"`+text+`"}`)
}

type streamTest struct {
	name    string
	format  Format
	n       int64
	events  []string // with LF
	dropped int      // the event that is taken out, from 1; 0 for none
	want    string
}

func streamTests() []streamTest {
	chat := []string{
		chatEvent("[]", "null"), // as Azure begins
		chatChunk(0, `"role":"assistant","content":"","refusal":null`, "null"),
		": OPENROUTER PROCESSING\n\n",
		chatChunk(0, `"content":"Hello 😀"`, "null"),
		chatChunk(0, `"content":"!\nÄ"`, "null"),
		chatChunk(0, ``, `"stop"`),
		chatEvent("[]", chatUsage),
		chatDone,
	}
	tools := []string{
		chatChunk(0, `"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_DdmO9pD3xa9XTPNJ32zg2hcA",`+
			`"type":"function","function":{"name":"get_weather","arguments":""}}]`, "null"),
		chatChunk(0, `"tool_calls":[{"index":0,"function":{"arguments":"{\"location\""}}]`, "null"),
		chatChunk(1, `"content":"abc"`, `"length"`),
		chatChunk(0, ``, `"tool_calls"`),
		chatEvent("[]", chatUsage),
		"data:[DONE]\n\n",
	}
	message := []string{
		messageEvent("message_start", messageStart),
		messageEvent("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`),
		messageEvent("ping", ""),
		textDelta("Hello 😀"), textDelta("!"),
		messageEvent("content_block_stop", `,"index":0`),
		messageEvent("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}`),
		messageEvent("message_stop", ""),
	}
	repeated := slices.Clone(message)
	repeated[6] = messageEvent("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":`+
		`{"input_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":2000,"output_tokens":15,"iterations":[`+
		`{"type":"compaction","input_tokens":5000,"output_tokens":300},{"type":"message","input_tokens":9,"output_tokens":9}]}`)
	thinking := []string{
		messageEvent("message_start", messageStart),
		messageEvent("content_block_start", `,"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`),
		messageEvent("content_block_delta", `,"index":0,"delta":{"type":"thinking_delta","thinking":"Let me see"}`),
		messageEvent("content_block_delta", `,"index":0,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM"}`),
		messageEvent("content_block_stop", `,"index":0`),
		messageEvent("content_block_start", `,"index":1,"content_block":{"type":"tool_use","id":"toolu_01T1","name":"f","input":{}}`),
		messageEvent("content_block_delta", `,"index":1,"delta":{"type":"input_json_delta","partial_json":""}`),
		messageEvent("content_block_delta", `,"index":1,"delta":{"type":"input_json_delta","partial_json":"{\"a\":1"}`),
	}
	on := func(events []string, more ...string) []string { return append(slices.Clone(events), more...) }
	anthropicError := messageEvent("error", `,"error":{"type":"overloaded_error","message":"Overloaded"}`)
	return []streamTest{
		{"chat", OpenAIChat, 1, chat, 7, `1117+46 tokens, 2 events, 14 bytes, "stop" done finished complete`},
		{"chat, cut", OpenAIChat, 1, chat[:5], 0, `1000+5 tokens, 2 events, 14 bytes, "" estimated`},
		{"chat, cut before content", OpenAIChat, 1, chat[:3], 0, `1000+0 tokens, 0 events, 0 bytes, "" estimated`},
		{"chat, cut before usage", OpenAIChat, 1, chat[:6], 0,
			`1000+5 tokens, 2 events, 14 bytes, "stop" estimated finished`},
		{"chat, cut after usage", OpenAIChat, 1, chat[:7], 7, `1117+46 tokens, 2 events, 14 bytes, "stop" finished complete`},
		{"chat without usage", OpenAIChat, 1, on(chat[:6], chatDone), 0,
			`1000+5 tokens, 2 events, 14 bytes, "stop" estimated done finished`},
		{"usage beside content", OpenAIChat, 1,
			on(chat[:5], chatEvent(`[{"index":0,"delta":{},"finish_reason":"stop"}]`, chatUsage), chatDone), 0,
			`1117+46 tokens, 2 events, 14 bytes, "stop" done finished complete`},
		{"usage in all chunks", OpenAIChat, 1, []string{
			chatEvent(`[{"index":0,"delta":{"content":"a"},"finish_reason":""}]`, `{"prompt_tokens":9,"completion_tokens":1}`),
			chatEvent(`[{"index":0,"delta":{"content":"b"},"finish_reason":""}]`, `{"prompt_tokens":9,"completion_tokens":2}`)},
			0, `9+2 tokens, 2 events, 2 bytes, ""`},
		{"tools and two choices", OpenAIChat, 2, tools, 5,
			`1117+46 tokens, 2 events, 14 bytes, "length" done finished complete`},
		{"one of two choices", OpenAIChat, 2, tools[:3], 0, `1000+5 tokens, 2 events, 14 bytes, "length" estimated`},
		{"error", OpenAIChat, 1, on(chat[:4], "data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":null}}\n\n"),
			0, `1000+4 tokens, 1 events, 10 bytes, "" estimated failed`},
		{"not JSON", OpenAIChat, 1, on(chat[:4], "data: upstream died\n\n"), 0,
			`1000+8 tokens, 2 events, 23 bytes, "" estimated`},
		{"no blank line after the usage", OpenAIChat, 1, []string{chat[3], strings.TrimSuffix(chat[6], "\n"), chatDone}, 0,
			`1117+46 tokens, 1 events, 10 bytes, "" done complete`},
		{"two lines of data", OpenAIChat, 1, []string{strings.TrimSuffix(chat[3], "\n"), chat[6]}, 0,
			`1117+46 tokens, 1 events, 10 bytes, ""`},
		{"other fields", OpenAIChat, 1, []string{"id: 1\nretry: 5\ndata\ndata:\nevent:x\ndata:  " + chat[3][6:], "\n", "\n"}, 0,
			`1000+4 tokens, 1 events, 10 bytes, "" estimated`},

		{"message", AnthropicMessages, 1, message, 0,
			`2125+15 tokens, 2 events, 11 bytes, "end_turn" done finished complete`},
		{"message with repeated usage", AnthropicMessages, 1, repeated, 0,
			`7125+315 tokens, 2 events, 11 bytes, "end_turn" done finished complete`},
		{"message, cut", AnthropicMessages, 1, message[:5], 0, `2125+4 tokens, 2 events, 11 bytes, "" estimated`},
		{"message, cut before content", AnthropicMessages, 1, message[:3], 0, `2125+1 tokens, 0 events, 0 bytes, "" estimated`},
		{"message, cut after usage", AnthropicMessages, 1, message[:7], 0,
			`2125+15 tokens, 2 events, 11 bytes, "end_turn" finished complete`},
		{"thinking and tools", AnthropicMessages, 1, thinking, 0, `2125+6 tokens, 2 events, 16 bytes, "" estimated`},
		{"Anthropic's error", AnthropicMessages, 1, on(message[:4], anthropicError), 0,
			`2125+4 tokens, 1 events, 10 bytes, "" estimated failed`},
	}
}

// relay feeds data to s in pieces that end at the given offsets, and returns what it relays.
func relay(s *Stream, data []byte, ends ...int) (relayed []byte) {
	from := 0
	for _, end := range append(ends, len(data)) {
		for from < end {
			n := copy(s.Room(), data[from:end])
			relayed = append(relayed, s.Received(n)...)
			from += n
		}
	}
	return append(relayed, s.Finish()...)
}

// Wherever a stream is split and whatever its lines end in, the report is the same and the bytes are the provider's.
func TestWireStreams(t *testing.T) {
	t.Parallel()
	for _, test := range streamTests() {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			t.Run(test.name+fmt.Sprintf("%q", ending), func(t *testing.T) {
				events := make([]string, len(test.events))
				for i, event := range test.events {
					events[i] = strings.ReplaceAll(event, "\n", ending)
				}
				data := []byte(strings.Join(events, ""))
				for _, drop := range slices.Compact([]bool{test.dropped == 0, true}) {
					want := string(data)
					if test.dropped > 0 && drop {
						want = strings.Join(slices.Delete(slices.Clone(events), test.dropped-1, test.dropped), "")
					}
					check := func(ends ...int) {
						t.Helper()
						s := &Stream{Report: Report{Format: test.format}, DropUsage: drop}
						if got := string(relay(s, data, ends...)); got != want {
							t.Fatalf("split at %v: got %q, want %q", ends, got, want)
						}
						if got := s.summary(test.n); got != test.want {
							t.Fatalf("split at %v\ngot  %s\nwant %s", ends, got, test.want)
						}
					}
					bytewise := make([]int, len(data))
					for i := range data {
						check(i)
						bytewise[i] = i
					}
					check(bytewise...)
				}
			})
		}
	}
}

// An event is relayed when its last byte has come, and not a byte of it before.
func TestWireStreamFlush(t *testing.T) {
	for _, test := range streamTests()[:3] {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			s := &Stream{Report: Report{Format: test.format}}
			fed, relayed := 0, 0
			for _, event := range test.events {
				event = strings.ReplaceAll(event, "\n", ending)
				for i := range len(event) {
					s.Room()[0] = event[i]
					n := len(s.Received(1))
					relayed, fed = relayed+n, fed+1
					isLast := i == len(event)-1 || ending == "\r\n" && i == len(event)-2 // CR alone could be the end
					if isLast != (relayed == fed) || isLast != (n > 0) || !s.IsBetweenEvents() {
						t.Fatalf("%q: %d of %d bytes relayed after byte %d of %q", ending, relayed, fed, i, event)
					}
				}
			}
		}
	}
}

// What is too long to be read is relayed as it comes, and counted as content. What follows it is read.
func TestLongEvents(t *testing.T) {
	longLine := chatChunk(0, `"content":"`+strings.Repeat("x", 3<<20)+`"`, "null")
	manyLines := strings.Repeat("data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}]}\n", 40_000) + "\n"
	usage := chatEvent("[]", chatUsage)
	for _, test := range []struct {
		name, long string
		least      int64 // bytes of content
	}{
		{"line", longLine, 3 << 20}, {"event", manyLines, 3 * 40_000},
	} {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			t.Run(test.name+fmt.Sprintf("%q", ending), func(t *testing.T) {
				replace := func(s string) string { return strings.ReplaceAll(s, "\n", ending) }
				s := &Stream{DropUsage: true}
				before := replace(chatChunk(0, `"content":"a"`, "null"))
				data := before + replace(test.long)
				wasInEvent := false
				var relayed []byte
				for rest := []byte(data); len(rest) > 0; {
					room := s.Room()
					if len(rest) < 10_000 {
						room = room[:1] // so that every state is seen
					}
					n := copy(room[:min(len(room), 32<<10)], rest)
					rest = rest[n:]
					relayed = append(relayed, s.Received(n)...)
					wasInEvent = wasInEvent || !s.IsBetweenEvents()
					if held := len(data) - len(rest) - len(relayed); held > maxEventBytes {
						t.Fatalf("%d bytes are held back", held)
					}
				}
				if !wasInEvent || !s.IsBetweenEvents() || string(relayed) != data {
					t.Errorf("relayed %d of %d bytes, in an event: %v, still: %v",
						len(relayed), len(data), wasInEvent, !s.IsBetweenEvents())
				}
				if s.contentBytes < test.least || s.contentBytes > int64(len(data)) {
					t.Errorf("%d bytes of content, want at least %d", s.contentBytes, test.least)
				}
				rest := replace(chatChunk(0, ``, `"stop"`) + usage + chatDone)
				want := replace(chatChunk(0, ``, `"stop"`) + chatDone)
				if got := string(relay(s, []byte(rest))); got != want || !s.isComplete(1) {
					t.Errorf("then got %q, want %q; complete: %v", got, want, s.isComplete(1))
				}
				if s.Room(); cap(s.buf) > 16*eventBuffer {
					t.Errorf("the buffer still has %d bytes", cap(s.buf))
				}
			})
		}
	}
}

// At its end a stream may lack the last blank line, or break off in the middle of an event.
func TestWireStreamFinish(t *testing.T) {
	whole := chatChunk(0, `"content":"a"`, `"stop"`)
	usage := chatEvent("[]", chatUsage)
	for _, test := range []struct {
		name, rest string
		finish     string
		want       string
	}{
		{"nothing", "", "", `1000+1 tokens, 1 events, 1 bytes, "stop" estimated finished`},
		{"no blank line", "data: [DONE]\n", "data: [DONE]\n", `1000+1 tokens, 1 events, 1 bytes, "stop" estimated done finished`},
		{"no line end", "data: [DONE]", "data: [DONE]", `1000+1 tokens, 1 events, 1 bytes, "stop" estimated done finished`},
		{"CR", "data: [DONE]\r", "data: [DONE]\r", `1000+1 tokens, 1 events, 1 bytes, "stop" estimated done finished`},
		{"usage without blank line", usage[:len(usage)-1], "", `1117+46 tokens, 1 events, 1 bytes, "stop" finished complete`},
		{"half an event", "data: {\"ch", "data: {\"ch", `1000+2 tokens, 2 events, 5 bytes, "stop" estimated finished`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Stream{DropUsage: true}
			data := whole + test.rest
			n := copy(s.Room(), data)
			if got := string(s.Received(n)); got != whole {
				t.Errorf("relayed %q", got)
			}
			s.Room()
			if got := string(s.Received(0)); got != "" {
				t.Errorf("then relayed %q", got)
			}
			if got := string(s.Finish()); got != test.finish {
				t.Errorf("at last relayed %q, want %q", got, test.finish)
			}
			if got := s.summary(1); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Whatever a provider sends is relayed byte for byte, and read the same however it is split.
func FuzzWireStream(f *testing.F) {
	for _, test := range streamTests() {
		f.Add(int(test.format), []byte(strings.Join(test.events, "")), uint16(100), uint16(7))
		f.Add(int(test.format), []byte(strings.ReplaceAll(strings.Join(test.events, ""), "\n", "\r\n")), uint16(333), uint16(1))
	}
	f.Add(0, []byte("\r\r\n\n\r\n\rdata:{}\r\n\r"), uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, format int, data []byte, first, size uint16) {
		newStream := func(drop bool) *Stream {
			return &Stream{Report: Report{Format: Format(format & 1)}, DropUsage: drop}
		}
		var ends []int
		for at := int(first); at < len(data); at += int(size) + 1 {
			ends = append(ends, at)
		}
		whole, split := newStream(false), newStream(false)
		if got := relay(whole, data); !bytes.Equal(got, data) {
			t.Fatalf("%q became %q", data, got)
		}
		if got := relay(split, data, ends...); !bytes.Equal(got, data) {
			t.Fatalf("%q in pieces became %q", data, got)
		}
		if whole.summary(1) != split.summary(1) {
			t.Fatalf("%q: %s; in pieces %s", data, whole.summary(1), split.summary(1))
		}
		dropped, droppedSplit := relay(newStream(true), data), relay(newStream(true), data, ends...)
		if !bytes.Equal(dropped, droppedSplit) {
			t.Fatalf("%q became %q, in pieces %q", data, dropped, droppedSplit)
		}
		again := newStream(true)
		if relay(again, dropped); again.Report.ContentEvents != whole.ContentEvents {
			t.Fatalf("%q became %q, with other content", data, dropped)
		}
	})
}

// A stream of 100 events allocates nothing for an event.
func TestStreamAllocations(t *testing.T) {
	for _, format := range []Format{OpenAIChat, AnthropicMessages} {
		events := benchmarkEvents(format)
		s := &Stream{Report: Report{Format: format}, DropUsage: true}
		feed := func() {
			for _, event := range events {
				if n := copy(s.Room(), event); len(s.Received(n)) != n {
					t.Fatal("not a whole event was relayed")
				}
			}
		}
		feed() // the buffers are allocated
		n := testing.AllocsPerRun(20, feed)
		for range 4 { // what other tests have left running allocates, too
			n = min(n, testing.AllocsPerRun(20, feed))
		}
		if n > 0 {
			t.Errorf("format %d: %v allocations in %d events", format, n, len(events))
		}
	}
}

func benchmarkEvents(format Format) [][]byte {
	events := make([][]byte, 100)
	for i := range events {
		events[i] = []byte(chatChunk(0, `"content":"word\n\u00e9"`, "null"))
		if format == AnthropicMessages {
			events[i] = []byte(textDelta(`word\n\"`))
		}
	}
	events[98] = []byte(chatChunk(0, ``, `"stop"`))
	return events
}

func BenchmarkWireStream(b *testing.B) {
	for _, format := range []Format{OpenAIChat, AnthropicMessages} {
		b.Run([]string{"OpenAI", "Anthropic"}[format], func(b *testing.B) {
			events := benchmarkEvents(format)
			s := &Stream{Report: Report{Format: format}}
			b.SetBytes(int64(len(events[0])))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Received(copy(s.Room(), events[i%100]))
			}
		})
	}
}

func BenchmarkWireRequest(b *testing.B) {
	text := strings.Repeat(`The quick brown fox jumps over the lazy dog.\n`, 10)
	tools := `{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}`
	for _, test := range []struct{ name, body string }{
		{"small", `{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are helpful."},` +
			`{"role":"user","content":"Hello!"}],"temperature":0.7,"max_tokens":100}`},
		{"agent", `{"model":"gpt-4o-mini","stream":true,"tools":[` + tools + strings.Repeat(","+tools, 50) + `],"messages":[{}` +
			strings.Repeat(`,{"role":"user","content":"`+text+`"}`, 200) + `]}`},
		{"image", `{"model":"gpt-4o-mini","messages":[{"role":"user","content":[{"type":"image_url","image_url":` +
			`{"url":"data:image/png;base64,` + strings.Repeat("iVBORw0K", 1<<18) + `"}}]}]}`},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.SetBytes(int64(len(test.body)))
			b.ReportAllocs()
			for b.Loop() {
				r, err := ReadRequest(OpenAIChat, []byte(test.body))
				if err != nil {
					b.Fatal(err)
				}
				r.Rewrite("gpt-4o", "max_tokens", 100)
			}
		})
	}
}

package llmwire

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
)

// alikeEvents are events of streams, in which %s is any JSON.
var alikeEvents = map[Format][]string{
	OpenAIChat: {
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}],"usage":null}`,
		`{"id":"c","model":"n","choices":[{"index":1,"delta":{"content":%s},"finish_reason":null}]}`,
		`{"choices":[{"delta":{"reasoning_content":%s}}]}`, `{"choices":[{"delta":{"refusal":%s}}]}`,
		`{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":%s}}]}}]}`,
		`{"choices":[{"delta":{"role":"assistant","content":%s}}],"model":"m"}`,
		`{"choices":[{"delta":{"content":%s,"tool_calls":[{"function":{"arguments":{"a":[1,2]}}}]}}]}`,
		`{"choices":[{"delta":{"content":%s,"reasoning":"r"}}]}`, `{"choices":[{"delta":{"content":%s}}]`,
		`{"choices":[{"delta":{"content":%s},"finish_reason":"stop"}]}`,
		`{"choices":[{"delta":{"content":%s}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`,
		`{"choices":[{"delta":{"content":%s}}],"x_groq":{"usage":{"prompt_tokens":4,"completion_tokens":3}}}`,
		`{"choices":[{"delta":{"content":%s}}],"error":"e"}`, `{"choices":[],"usage":{"completion_tokens":%s}}`,
	},
	AnthropicMessages: {
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":%s}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":%s}}`,
		`{"type":"content_block_start","content_block":{"type":"tool_use","name":%s,"input":{"a":"b"}}}`,
		`{"type":"content_block_delta","delta":{"type":%s,"text":"a"}}`, `{"type":"ping"}`, `{"type":%s}`,
		`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":%s}}`,
		`{"type":"message_start","message":{"model":%s,"usage":{"input_tokens":5,"output_tokens":1}}}`,
		`{"type":"message_delta","delta":{"stop_reason":%s},"usage":{"output_tokens":7}}`,
		`{"type":"message_stop","delta":{"text":%s}}`, `{"type":"error","error":{"message":%s}}`,
	},
}

var alikeValues = []string{
	`"word"`, `" other"`, `"\n"`, `"\u00e9\"ü"`, `"\u00e"`, `"\x"`, "\"\n\"", `""`, `null`, `7`, `{}`, `["a","b"]`,
	`"a","content":"b"`, `"a"}`, `"`, ``, `"message_stop"`, `"error"`, `"stop"`, `"a" `, `"a`, `"]}}"`,
}

// What a Report has of a stream is the same whether or not it reads events faster that are like the one before.
func TestAlikeEvents(t *testing.T) {
	alike := 0
	for format, events := range alikeEvents {
		for seed := range uint64(300) {
			random := rand.New(rand.NewPCG(seed, 1))
			got, want := Report{Format: format, isStream: true}, Report{Format: format, isStream: true}
			event, text := events[0], ""
			for i := range 40 {
				if random.IntN(4) == 0 {
					event = events[random.IntN(len(events))]
				}
				value := alikeValues[random.IntN(len(alikeValues))]
				if random.IntN(2) == 0 {
					value = fmt.Sprintf(`"word %d"`, i)
				}
				if text = fmt.Sprintf(event, value); event == `{"type":"ping"}` {
					text = event
				}
				want.alike = alikeEvent{}
				isUsage, err := got.Read([]byte(text))
				wantUsage, wantErr := want.Read([]byte(text))
				if isUsage != wantUsage || (err == nil) != (wantErr == nil) {
					t.Fatalf("format %d, seed %d: %s: %v, %v; want %v, %v", format, seed, text, isUsage, err, wantUsage, wantErr)
				}
				if len(got.alike.data) > 0 && got.alike.unlike == 0 {
					alike++
				}
				if a, b := shown(got), shown(want); !reflect.DeepEqual(a, b) {
					t.Fatalf("format %d, seed %d: after %s:\n%+v\nwant\n%+v", format, seed, text, a, b)
				}
			}
		}
	}
	if alike < 1000 {
		t.Errorf("%d events were alike", alike)
	}
}

// shown returns r without what belongs to the event that was read last.
func shown(r Report) Report {
	r.alike, r.object, r.reading, r.walker, r.name, r.parts = alikeEvent{}, reportObject{}, rawUsage{}, jsonWalker[Report]{}, nil, nil
	r.iterations, r.response = nil, responseRead{}
	return r
}

// A stream whose events are never alike does not go on to remember each of them.
func TestUnlikeEvents(t *testing.T) {
	r := Report{isStream: true}
	for i := range 100 {
		_, _ = r.Read(fmt.Appendf(nil, `{"n":%d,"choices":[{"delta":{"content":"a"}}]}`, i))
	}
	if len(r.alike.data) > 0 || r.contentBytes != 100 {
		t.Errorf("it remembers %s; %d bytes", r.alike.data, r.contentBytes)
	}
}

package llmwire

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// whole is a response of both formats that is not streamed, with more members, such as usage.
func whole(members string) string {
	return `{"choices":[{"index":0,"message":{"content":"Hello!"},"finish_reason":"stop"}],` +
		`"content":[{"type":"text","text":"Hello!"}],"stop_reason":"end_turn",` + members + `}`
}

// readAll returns what is read of objects, the data of a stream's events or, if it is one, a response.
func readAll(t *testing.T, format Format, objects ...string) *Report {
	t.Helper()
	r := &Report{Format: format, isStream: len(objects) > 1}
	for _, object := range objects {
		if object == doneData {
			r.Done = true
		} else if _, err := r.Read([]byte(object)); err != nil {
			t.Fatalf("%s: %v", object, err)
		}
	}
	return r
}

// Each kind of token is read where OpenAI, Anthropic and those that are compatible with them have it.
func TestUsageKinds(t *testing.T) {
	const both = Format(-1)
	chat := Usage{Input: 100, Output: 50}
	cached, written := Usage{Input: 100, CachedInput: 80, Output: 50}, Usage{Input: 100, CacheWrite: 30, Output: 50}
	searched := Usage{Input: 100, Output: 50, Searches: 5}
	const tokens = `"prompt_tokens":100,"completion_tokens":50,`
	for _, test := range []struct {
		name   string
		format Format
		body   string // members of a response
		want   Usage
	}{
		{"OpenAI", both, `"usage":{` + tokens + `"total_tokens":150}`, chat},
		{"names of Responses", both, `"usage":{"input_tokens":100,"output_tokens":50,"total_tokens":150}`, chat},
		{"both names", both, `"usage":{` + tokens + `"input_tokens":0,"output_tokens":0}`, chat},
		{"x_groq", both, `"x_groq":{"id":"req_1","usage":{` + tokens + `"total_time":0.1}}`, chat},
		{"in a choice", both, `"choices":[{"message":{},"finish_reason":"stop","usage":{` + tokens + `"x":1}}]`, chat},
		{"of two, the larger", OpenAIChat, `"usage":{` + tokens + `"x":1},"x_groq":{"usage":{"prompt_tokens":140}}`, chat},
		{"of two, the later", OpenAIChat, `"x_groq":{"usage":{"prompt_tokens":140,"completion_tokens":10}},` +
			`"usage":{` + tokens + `"x":1}`, chat},
		{"reasoning beside (xAI)", both, `"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,` +
			`"completion_tokens_details":{"reasoning_tokens":94}}`, Usage{Input: 32, Output: 103}},
		{"reasoning within (OpenAI)", both, `"usage":{"prompt_tokens":32,"completion_tokens":103,"total_tokens":135,` +
			`"completion_tokens_details":{"reasoning_tokens":94}}`, Usage{Input: 32, Output: 103}},
		{"a total too small", both, `"usage":{` + tokens + `"total_tokens":1}`, chat},
		{"no input", both, `"usage":{"completion_tokens":50,"total_tokens":150}`, chat},
		{"no output", both, `"usage":{"prompt_tokens":100,"total_tokens":150}`, chat},
		{"total alone", both, `"usage":{"total_tokens":6000}`, Usage{Input: 1000, Output: 5000}},
		{"a total below the estimate", both, `"usage":{"total_tokens":600}`, Usage{Input: 600}},

		{"fractions", both, `"usage":{"prompt_tokens":99.2,"completion_tokens":5e1}`, chat},
		{"floats", both, `"usage":{"prompt_tokens":100.0,"completion_tokens":50.000}`, chat},
		{"strings", both, `"usage":{"prompt_tokens":"100","completion_tokens":"050"}`, chat},
		{"huge", both, `"usage":{"prompt_tokens":1e999,"completion_tokens":99999999999999999999}`,
			Usage{Input: MaxTokens, Output: MaxTokens}},
		{"a huge string", both, `"usage":{"prompt_tokens":"99999999999999999999","completion_tokens":1}`,
			Usage{Input: MaxTokens, Output: 1}},
		{"twice", both, `"usage":{` + tokens + `"prompt_tokens":7}`, chat},

		{"cached (OpenAI)", both, `"usage":{` + tokens + `"prompt_tokens_details":{"cached_tokens":80}}`, cached},
		{"cached (Responses)", both,
			`"usage":{"input_tokens":100,"output_tokens":50,"input_tokens_details":{"cached_tokens":80}}`, cached},
		{"cached (DeepSeek)", both, `"usage":{` + tokens + `"prompt_cache_hit_tokens":80,"prompt_cache_miss_tokens":20}`,
			cached},
		{"cached (Moonshot)", both, `"usage":{` + tokens + `"cached_tokens":80}`, cached},
		{"cached (LiteLLM)", both, `"usage":{` + tokens + `"cache_read_input_tokens":80,` +
			`"prompt_tokens_details":{"cached_tokens":80}}`, cached},
		{"written (OpenAI)", both, `"usage":{` + tokens + `"prompt_tokens_details":{"cache_write_tokens":30}}`, written},
		{"written (LiteLLM)", both, `"usage":{` + tokens + `"cache_creation_input_tokens":30,` +
			`"prompt_tokens_details":{"cache_creation_tokens":30}}`, written},
		{"sounds", both, `"usage":{` + tokens + `"prompt_tokens_details":{"audio_tokens":40,"cached_tokens":30,` +
			`"cached_tokens_details":{"audio_tokens":10}},"completion_tokens_details":{"audio_tokens":20}}`,
			Usage{Input: 100, CachedInput: 20, AudioInput: 30, CachedAudioInput: 10, Output: 50, AudioOutput: 20}},
		{"images", both, `"usage":{` + tokens + `"prompt_tokens_details":{"image_tokens":40},` +
			`"completion_tokens_details":{"image_tokens":20}}`,
			Usage{Input: 100, ImageInput: 40, Output: 50, ImageOutput: 20}},
		{"cached images", both, `"usage":{` + tokens + `"prompt_tokens_details":{"image_tokens":40,"cached_tokens":30,` +
			`"cached_tokens_details":{"image_tokens":10}}}`, Usage{Input: 100, CachedInput: 30, ImageInput: 30, Output: 50}},
		{"more cached images than images", both, `"usage":{` + tokens + `"prompt_tokens_details":{"image_tokens":5,"cached_tokens":30,` +
			`"cached_tokens_details":{"image_tokens":10}}}`, Usage{Input: 100, CachedInput: 30, Output: 50}},

		{"Anthropic", both, `"usage":{"input_tokens":10,"cache_creation_input_tokens":30,"cache_read_input_tokens":60,` +
			`"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20},"output_tokens":50}`,
			Usage{Input: 100, CachedInput: 60, CacheWrite: 10, CacheWrite1h: 20, Output: 50}},
		{"only written by time", both, `"usage":{"input_tokens":70,"output_tokens":50,` +
			`"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20}}`,
			Usage{Input: 100, CacheWrite: 10, CacheWrite1h: 20, Output: 50}},
		{"more written for an hour than written", both,
			`"usage":{"prompt_tokens":100,"output_tokens":50,"cache_creation":{"ephemeral_1h_input_tokens":20}}`,
			Usage{Input: 100, CacheWrite1h: 20, Output: 50}},

		{"searches (Anthropic, OpenRouter)", both, `"usage":{` + tokens + `"server_tool_use":{"web_search_requests":5}}`,
			searched},
		{"searches (Perplexity)", both, `"usage":{` + tokens + `"num_search_queries":5}`, searched},
		{"sources (xAI)", both, `"usage":{` + tokens + `"num_sources_used":5}`, searched},
		{"searches (xAI)", both, `"usage":{` + tokens + `"num_sources_used":0,` +
			`"server_side_tool_usage_details":{"web_search_calls":2,"x_search_calls":3}}`, searched},
	} {
		for _, format := range textFormats {
			if test.format != both && test.format != Format(format) {
				continue
			}
			r := readAll(t, Format(format), whole(test.body))
			if got, others, exact := r.Used(1, 1000); got != test.want || len(others) > 0 || !exact || !r.IsFinal(1) {
				t.Errorf("%s, format %d:\ngot  %+v, %v, exact: %v\nwant %+v", test.name, format, got, others, exact, test.want)
			}
		}
	}
}

// A value that is not a count is ignored.
func TestNoCounts(t *testing.T) {
	for _, count := range []string{
		"null", "-1", "-0.5", "-1e99", `""`, `"-1"`, `"1.5"`, `"1e3"`, `" 1"`, `"NaN"`, "true", "{}", "[]", "[7]", `{"a":7}`,
	} {
		r := readAll(t, OpenAIChat, whole(`"usage":{"prompt_tokens":7,"completion_tokens":`+count+`}`))
		if got, _, exact := r.Used(1, 1000); got != (Usage{Input: 7, Output: 4}) || exact {
			t.Errorf("%s: got %+v, exact: %v", count, got, exact)
		}
	}
	for text, want := range map[string]int64{
		"0": 0, "-0": 0, "-0.0": 0, "1e-9": 1, "14417.92": 14418, "1E3": 1000, "9007199254740991": MaxTokens,
		"9007199254740992": MaxTokens, `"7"`: 7, `"007"`: 7,
	} {
		if got, ok := readCount([]byte(text)); got != want || !ok {
			t.Errorf("%s: got %d, %v, want %d", text, got, ok, want)
		}
	}
}

// Iterations that the other counts leave out are added, at the price of their own model if they have one.
func TestIterations(t *testing.T) {
	const top = `"model":"claude-a","usage":{"input_tokens":11,"output_tokens":7,"iterations":`
	const advisor = `{"type":"advisor_message","model":"claude-b","input_tokens":159000,"cache_read_input_tokens":400,` +
		`"cache_creation_input_tokens":19,"cache_creation":{"ephemeral_1h_input_tokens":19},"output_tokens":7805}`
	advised := Usage{Input: 159_419, CachedInput: 400, CacheWrite1h: 19, Output: 7805}
	many := ""
	for i := range 100 {
		many += fmt.Sprintf(`{"type":"x","model":"m%d","output_tokens":1},`, i)
	}
	many += `{"type":"x","model":"m3","output_tokens":5},`
	for _, test := range []struct {
		name, iterations string
		used             Usage
		others           []ModelUsage
		model            string
	}{
		{"none", `null`, Usage{Input: 11, Output: 7}, nil, "claude-a"},
		{"messages", `[{"type":"message","model":"claude-a","input_tokens":9,"output_tokens":9},` +
			`{"type":"message","model":null,"input_tokens":2}]`, Usage{Input: 11, Output: 7}, nil, "claude-a"},
		{"fallback", `[{"type":"message","model":"claude-a","input_tokens":9},` +
			`{"type":"fallback_message","model":"claude-c","input_tokens":11,"output_tokens":7}]`,
			Usage{Input: 11, Output: 7}, nil, "claude-c"},
		{"compaction", `[{"type":"compaction","input_tokens":5000,"cache_read_input_tokens":1,"output_tokens":300}]`,
			Usage{Input: 5012, CachedInput: 1, Output: 307}, nil, "claude-a"},
		{"advisor", `[` + advisor + `]`, Usage{Input: 11, Output: 7}, []ModelUsage{{"claude-b", advised}}, "claude-a"},
		{"advisor without a model", `[` + strings.Replace(advisor, `"model":"claude-b",`, "", 1) + `]`,
			Usage{Input: 159_430, CachedInput: 400, CacheWrite1h: 19, Output: 7812}, nil, "claude-a"},
		{"advisor, twice", `[` + advisor + `,` + advisor + `]`, Usage{Input: 11, Output: 7},
			[]ModelUsage{{"claude-b", Usage{Input: 318_838, CachedInput: 800, CacheWrite1h: 38, Output: 15610}}}, "claude-a"},
		{"unknown", `[{"type":"dream","model":"claude-d","output_tokens":3},{"output_tokens":1}]`,
			Usage{Input: 11, Output: 8}, []ModelUsage{{"claude-d", Usage{Output: 3}}}, "claude-a"},
		{"searches alone", `[{"type":"x","server_tool_use":{"web_search_requests":3}},` +
			`{"type":"x","model":"claude-d","input_tokens":0,"server_tool_use":{"web_search_requests":2}}]`,
			Usage{Input: 11, Output: 7, Searches: 3}, []ModelUsage{{"claude-d", Usage{Searches: 2}}}, "claude-a"},
		{"huge", `[{"type":"x","output_tokens":1e300},{"type":"x","output_tokens":1e300}]`,
			Usage{Input: 11, Output: MaxTokens}, nil, "claude-a"},
		{"many", `[` + many + `{}]`, Usage{Input: 11, Output: 7}, []ModelUsage{
			{"m0", Usage{Output: 1}}, {"m1", Usage{Output: 1}}, {"m2", Usage{Output: 1}}, {"m3", Usage{Output: 6}},
			{"m4", Usage{Output: 1}}, {"m5", Usage{Output: 1}}, {"m6", Usage{Output: 1}}, {"m7", Usage{Output: 1}},
			{"", Usage{Output: 92}},
		}, "claude-a"},
	} {
		for _, format := range textFormats {
			r := readAll(t, Format(format), whole(top+test.iterations+"}"))
			used, others, exact := r.Used(1, 0)
			if used != test.used || !slices.Equal(others, test.others) || !exact || r.Model != test.model {
				t.Errorf("%s, format %d:\ngot  %+v, %+v, %q\nwant %+v, %+v, %q", test.name, format,
					used, others, r.Model, test.used, test.others, test.model)
			}
		}
	}
}

// Searches that come without tokens are not lost, nor when an object without any follows.
func TestSearchesAlone(t *testing.T) {
	const (
		start   = `{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}`
		end     = `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`
		nothing = `{"type":"message_delta","delta":{},"usage":{"iterations":[{"type":"x","model":"m","output_tokens":0}]}}`
	)
	for _, usage := range []string{
		`{"server_tool_use":{"web_search_requests":5}}`,
		`{"iterations":[{"type":"x","server_tool_use":{"web_search_requests":5}}]}`,
	} {
		r := readAll(t, AnthropicMessages, start, `{"type":"message_delta","delta":{},"usage":`+usage+`}`, nothing, end)
		want := Usage{Input: 9, Output: 7, Searches: 5}
		if used, others, exact := r.Used(1, 0); used != want || len(others) > 0 || !exact {
			t.Errorf("%s: got %+v, %+v, exact: %v, want %+v", usage, used, others, exact, want)
		}
	}
}

// Repeated iterations count once, and do not disappear.
func TestRepeatedIterations(t *testing.T) {
	event := func(count int) string {
		return fmt.Sprintf(`{"type":"message_delta","delta":{},"usage":{"output_tokens":1,"iterations":[`+
			`{"type":"compaction","output_tokens":%d},{"type":"x","model":"m","output_tokens":%[1]d}]}}`, count)
	}
	const end = `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9,"iterations":null}}`
	r := readAll(t, AnthropicMessages, event(5), event(7), event(7), event(3), end)
	used, others, _ := r.Used(1, 0)
	if used.Output != 16 || len(others) != 1 || others[0].Output != 7 {
		t.Errorf("got %+v and %+v, want an output of 16 and 7", used, others)
	}
}

func TestResponseModels(t *testing.T) {
	long := strings.Repeat("m", 257)
	for _, test := range []struct{ objects, want string }{
		{`{"model":"a"}`, "a"},
		{`{"model":"a"} {"model":"b"}`, "b"},
		{`{"model":"a"} {"model":""} {"model":null} {"model":7} {}`, "a"},
		{`{"model":"a\/b"} {"model":"a\/b"}`, "a/b"},
		{`{"model":"` + long + `"}`, ""},
		{`{"model":"` + long[1:] + `"}`, long[1:]},
		{`{"choices":[{"delta":{"model":"x"}}]}`, ""},
	} {
		if r := readAll(t, OpenAIChat, strings.Split(test.objects, " ")...); r.Model != test.want {
			t.Errorf("%.80s: got %q, want %q", test.objects, r.Model, test.want)
		}
	}
	r := readAll(t, AnthropicMessages, `{"type":"message_start","message":{"model":"claude"}}`, `{"type":"ping"}`)
	if r.Model != "claude" {
		t.Errorf("the first event names %q", r.Model)
	}
}

// The largest counts do not overflow wherever they are added.
func TestLargestUsage(t *testing.T) {
	var most rawUsage
	for what := promptTokens; what < kindsCounted; what++ {
		most.set(what, MaxTokens)
	}
	for _, leftOut := range []countKind{promptTokens, outputTokens, totalTokens, cacheReadTokens} {
		u := most
		u.has &^= 1 << leftOut
		used := u.usage(math.MaxInt64)
		for i, n := range used.counts() {
			if *n < 0 || *n > MaxTokens {
				t.Errorf("without %d: count %d is %d", leftOut, i, *n)
			}
		}
	}
}

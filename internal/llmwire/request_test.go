package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

// summary is what the tests compare of a request.
func (r *Request) summary() string {
	s := fmt.Sprintf("%s n=%d limit=%d", r.Model, r.N, r.Limit)
	if r.HasLimit != (r.Limit > 0) {
		s += fmt.Sprintf(" has one: %v", r.HasLimit)
	}
	if r.MinLimit > 0 {
		s += fmt.Sprintf(" at least %d", r.MinLimit)
	}
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"stream", r.Stream}, {"usage", r.IncludeUsage}, {"tools", r.tools.exist}, {"hidden", r.asksHidden},
		{"off", r.ReasoningOff}, {"media", r.MediaOutput}, {"twice", r.Twice}, {"cached", r.CacheWrite == CachedShort},
		{"cached for an hour", r.CacheWrite == CachedHour},
	} {
		if flag.on {
			s += " " + flag.name
		}
	}
	if r.ServerTool != "" {
		s += " server:" + r.ServerTool
	}
	if r.CanDropTools {
		s += " (can be dropped)"
	}
	if len(r.AdvisorModels) > 0 {
		s += fmt.Sprintf(" models:%v", r.AdvisorModels)
	}
	if len(r.Unknown) > 0 {
		s += fmt.Sprintf(" unknown:%v", r.Unknown)
	}
	return s
}

// A requestTest is a request's body and its summary.
type requestTest struct{ name, body, want string }

func checkRequests(t *testing.T, format Format, tests []requestTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(format, []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			if got := r.summary(); got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	checkRequests(t, OpenAIChat, []requestTest{
		{"empty", `{}`, ` n=1 limit=0`},
		{"model", `{"model":"gpt-4o"}`, `gpt-4o n=1 limit=0`},
		{"white space", " \r\n\t{ \"model\" : \"m\" , \"n\" : 3 } \n", `m n=3 limit=0`},
		{"escaped", `{"\u006dodel":"\u0067pt\/4\ud83d\ude00"}`, `gpt/4😀 n=1 limit=0`},
		{"nulls", `{"model":null,"stream":null,"n":null,"max_tokens":null,"max_completion_tokens":null,` +
			`"stream_options":null,"tools":null,"messages":null,"thinking":null,"reasoning_effort":null,` +
			`"reasoning":null,"mcp_servers":null,"background":null,"thread":null,"service_tier":null,"speed":null,` +
			`"modalities":null,"cache_control":null,"previous_response_id":null,"invented":null}`, ` n=1 limit=0`},
		{"limit", `{"max_tokens":17}`, ` n=1 limit=17`},
		{"two limits", `{"max_tokens":17,"max_completion_tokens":400}`, ` n=1 limit=400`},
		{"two limits, the first is larger", `{"max_tokens":500,"max_completion_tokens":400}`, ` n=1 limit=500`},
		{"largest", `{"n":16,"max_tokens":9007199254740991}`, ` n=16 limit=9007199254740991`},
		{"no limit", `{"max_tokens":-1}`, ` n=1 limit=0`},
		{"a limit and none", `{"max_tokens":-1,"max_completion_tokens":5}`, ` n=1 limit=5`},
		{"stream", `{"stream":true}`, ` n=1 limit=0 stream`},
		{"no stream", `{"stream":false}`, ` n=1 limit=0`},
		{"usage", `{"stream":true,"stream_options":{"include_obfuscation":false,"include_usage":true}}`,
			` n=1 limit=0 stream usage`},
		{"usage not wanted", `{"stream":true,"stream_options":{"include_usage":false}}`, ` n=1 limit=0 stream`},
		{"inner members", `{"metadata":{"model":"x","n":99},"messages":[{"model":"x","max_tokens":"y"}]}`, ` n=1 limit=0`},
		{"dots", `{"stream_options.include_usage":"x","messages[]":1,"a.b":1,"a":{"b":2}}`,
			` n=1 limit=0 unknown:[stream_options.include_usage messages[] a.b a]`},
		{"cache", `{"messages":[{"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}]}`,
			` n=1 limit=0 cached`}, // as OpenRouter has it
		{"text alone", `{"modalities":["text"]}`, ` n=1 limit=0`},
		{"sound", `{"modalities":["text","audio"],"audio":{"voice":"x"}}`, ` n=1 limit=0 media`},
		{"images", `{"modalities":["image"]}`, ` n=1 limit=0 media`},
		{"odd modalities", `{"modalities":"text"}`, ` n=1 limit=0`},
		{"odd modality", `{"modalities":"any"}`, ` n=1 limit=0 media`},
	})
}

// Thinking and reasoning that is off in one way and on in another is on.
func TestReasoning(t *testing.T) {
	checkRequests(t, OpenAIChat, []requestTest{
		{"thinking", `{"thinking":{"type":"enabled","budget_tokens":1024}}`, ` n=1 limit=0 at least 1025 hidden`},
		{"adaptive thinking", `{"thinking":{"type":"adaptive"}}`, ` n=1 limit=0 hidden`},
		{"no thinking", `{"thinking":{"type":"disabled"}}`, ` n=1 limit=0 off`},
		{"no thinking, spelled with escapes", `{"thinking":{"type":"\u0064isabled"}}`, ` n=1 limit=0 off`},
		{"thinking twice", `{"thinking":{"type":"enabled","type":"disabled"}}`, ` n=1 limit=0 hidden`},
		{"thinking without type", `{"thinking":{}}`, ` n=1 limit=0 hidden`},
		{"effort", `{"reasoning_effort":"low"}`, ` n=1 limit=0 hidden`},
		{"no effort", `{"reasoning_effort":"none"}`, ` n=1 limit=0 off`},
		{"minimal effort", `{"reasoning_effort":"minimal"}`, ` n=1 limit=0 hidden`},
		{"reasoning", `{"reasoning":{"max_tokens":100}}`, ` n=1 limit=0 at least 101 hidden`},
		{"effort in reasoning", `{"reasoning":{"effort":"high"}}`, ` n=1 limit=0 hidden`},
		{"no effort in reasoning", `{"reasoning":{"effort":"none"}}`, ` n=1 limit=0 off`},
		{"two efforts", `{"reasoning":{"effort":"high","effort":"none"}}`, ` n=1 limit=0 hidden`},
		{"both", `{"reasoning_effort":"none","thinking":{"type":"enabled"}}`, ` n=1 limit=0 hidden`},
		{"both, the other way", `{"thinking":{"type":"enabled"},"reasoning":{"effort":"none"}}`, ` n=1 limit=0 hidden`},
		{"largest budget", `{"thinking":{"type":"disabled","budget_tokens":9223372036854775807}}`,
			` n=1 limit=0 at least 9007199254740991 off`},
		{"odd budget", `{"thinking":{"type":"disabled","budget_tokens":"many"}}`, ` n=1 limit=0 off`},
	})
}

func TestRequestErrors(t *testing.T) {
	many := `{"a0":0`
	for i := range maxMembers {
		many += fmt.Sprintf(`,"a%d":0`, i+1)
	}
	deep := strings.Repeat("[", maxJSONDepth) + strings.Repeat("]", maxJSONDepth)
	for _, test := range []struct{ body, want string }{
		{``, "Body is not valid JSON at byte 1"},
		{`[]`, "Body must be a JSON object"},
		{`null`, "Body must be a JSON object"},
		{`{"a":1`, "Body is not valid JSON at byte 7"},
		{`{"a":1,}`, "Body is not valid JSON at byte 8"},
		{`{"a":1}{}`, "Body is not valid JSON at byte 8"},
		{"{\"a\":\"\n\"}", "Body is not valid JSON at byte 7"},
		{`{"model":"\ud800"}`, "model is not valid Unicode"},
		{"{\"a\":\"\xff\"}", "Body is not valid UTF-8"},
		{`{"a":` + deep + `}`, "Body is not valid JSON at byte 505"},
		{many + `}`, "Body has more than 256 members"},
		{many + `,"model":`, "Body has more than 256 members"}, // nothing more is read
		{`{"a":1,"b":2,"a":1}`, "a is duplicated"},
		{`{"temperature":1,"temperatur\u0065":1}`, "temperature is duplicated"},
		{`{"model":"a","model":"a"}`, "model is duplicated"},
		{`{"":1,"":2}`, `"" is duplicated`},
		{`{"stream_options":{"include_usage":true,"include_usage":false}}`, "stream_options.include_usage is duplicated"},
		{`{"` + strings.Repeat("x", 99) + `":1,"` + strings.Repeat("x", 99) + `":1}`,
			strings.Repeat("x", 64) + "… is duplicated"},
		{`{"max_tokens":1,"Max_Tokens":9}`, "Max_Tokens must be spelled max_tokens"},
		{`{"tools":[{"type":"function","Type":"web_search"}]}`, "tools[].Type must be spelled tools[].type"},
		{`{"messages":[{"content":[{"type":"text","Type":"document"}]}]}`, "messages[].Type must be spelled messages[].type"},
		{`{"system":[{"content":{"type":"document","source":{"type":"base64","Url":"https://example.com"}}}]}`,
			"messages[].source.Url must be spelled messages[].source.url"},
		{`{"system":[{"type":"text","cache_control":{"type":"ephemeral","TTL":"1h"}}]}`,
			"cache_control.TTL must be spelled cache_control.ttl"},
		{`{"tools":[{"cache_control":{"ttl":"5m","Ttl":"1h"}}]}`, "cache_control.Ttl must be spelled cache_control.ttl"},
		{`{"prompt_cache_options":{"TTL":"12h"}}`, "prompt_cache_options.TTL must be spelled prompt_cache_options.ttl"},
		{`{"thinking":{"type":"disabled","Type":"enabled"}}`, "thinking.Type must be spelled thinking.type"},
		{`{"reasoning":{"effort":"none","Effort":"high"}}`, "reasoning.Effort must be spelled reasoning.effort"},
		{`{"usage":{"include":true,"Include":false}}`, "usage.Include must be spelled usage.include"},
		{`{"messages":[{"tool":{"type":"custom","\u212aype":1,"TYPE":"web_search"}}]}`, "tools[].TYPE must be spelled tools[].type"},
		{`{"max_to\u212aens":9}`, "max_to\u212aens must be spelled max_tokens"},
		{`{"stream_options":{"Include_usage":false}}`,
			"stream_options.Include_usage must be spelled stream_options.include_usage"},
		{`{"model":5}`, "model must be a string that is not empty"},
		{`{"model":""}`, "model must be a string that is not empty"},
		{`{"model":["gpt-4o"]}`, "model must be a string that is not empty"},
		{`{"stream":"true"}`, "stream must be true or false"},
		{`{"stream":1}`, "stream must be true or false"},
		{`{"stream_options":[]}`, "stream_options must be an object"},
		{`{"stream_options":true}`, "stream_options must be an object"},
		{`{"stream_options":{"include_usage":1}}`, "stream_options.include_usage must be true or false"},
		{`{"tools":{}}`, "tools must be an array"},
		{`{"functions":"f"}`, "functions must be an array"},
		{`{"messages":{"content":[{"type":"invented"}]}}`, "messages must be an array"},
		{`{"messages":[[{"type":"invented"}]]}`, "A message, or a part of one, must not be an array"},
		{`{"messages":[{"content":[[{"type":"invented"}]]}]}`, "A message, or a part of one, must not be an array"},
		{`{"system":[[]]}`, "A message, or a part of one, must not be an array"},
		{`{"n":0}`, "n must be a whole number from 1 to 16"},
		{`{"n":17}`, "n must be a whole number from 1 to 16"},
		{`{"n":-1}`, "n must be a whole number from 1 to 16"},
		{`{"n":1.0}`, "n must be a whole number from 1 to 16"},
		{`{"max_tokens":-2}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":-1.0}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":0}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":-0}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":1e3}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":5.0}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":"5"}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":true}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":70,"a":007}`, "Body is not valid JSON at byte 23"},
		{`{"max_tokens":9007199254740992}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_tokens":99999999999999999999}`, "max_tokens must be a whole number from 1 to 9007199254740991"},
		{`{"max_completion_tokens":[]}`, "max_completion_tokens must be a whole number from 1 to 9007199254740991"},
	} {
		if r, err := ReadRequest(OpenAIChat, []byte(test.body)); err == nil || err.Error() != test.want || r != nil {
			t.Errorf("%.100s\ngot  %v\nwant %s", test.body, err, test.want)
		}
	}
}

// What is inside a member without a name is not at the top level: it would set a hold that the provider ignores.
func TestRequestEmptyName(t *testing.T) {
	for _, format := range textFormats {
		const body = `{"":{"max_tokens":1,"model":"cheap","stream":true,"n":2},"model":"m","messages":[]}`
		r, err := ReadRequest(Format(format), []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if r.Limit != 0 || r.Model != "m" || r.Stream || r.N != 1 {
			t.Errorf("limit %d, model %q, stream %v, n %d", r.Limit, r.Model, r.Stream, r.N)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	text := strings.Repeat(`The quick brown fox jumps over the lazy dog.\n`, 10)
	tools := `{"type":"function","function":{"name":"f","parameters":{"type":"object",` +
		`"properties":{"a":{"type":"string"}}}}}`
	for _, test := range []struct{ name, body string }{
		{"small", `{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are helpful."},` +
			`{"role":"user","content":"Hello!"}],"temperature":0.7,"max_tokens":100}`},
		{"agent", `{"model":"gpt-4o-mini","stream":true,"tools":[` + tools + strings.Repeat(","+tools, 50) + `],` +
			`"messages":[{}` + strings.Repeat(`,{"role":"user","content":"`+text+`"}`, 200) + `]}`},
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
				r.Rewrite(Changes{Model: "gpt-4o", LimitMember: "max_tokens", Limit: 100})
			}
		})
	}
}

package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// summary is what the tests compare of a request.
func (r *Request) summary() string {
	s := fmt.Sprintf("%s n=%d limit=%d", r.Model, r.N, r.Limit)
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"stream", r.Stream}, {"usage", r.IncludeUsage}, {"tools", r.tools.exist}, {"hidden", r.HiddenOutput},
	} {
		if flag.on {
			s += " " + flag.name
		}
	}
	if r.ServerTool != "" {
		s += " server:" + r.ServerTool
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
			`"reasoning":null,"mcp_servers":null,"background":null}`, ` n=1 limit=0`},
		{"limit", `{"max_tokens":17}`, ` n=1 limit=17`},
		{"two limits", `{"max_tokens":17,"max_completion_tokens":400}`, ` n=1 limit=400`},
		{"two limits, the first is larger", `{"max_tokens":500,"max_completion_tokens":400}`, ` n=1 limit=500`},
		{"largest", `{"n":16,"max_tokens":9007199254740991}`, ` n=16 limit=9007199254740991`},
		{"stream", `{"stream":true}`, ` n=1 limit=0 stream`},
		{"no stream", `{"stream":false}`, ` n=1 limit=0`},
		{"usage", `{"stream":true,"stream_options":{"include_obfuscation":false,"include_usage":true}}`,
			` n=1 limit=0 stream usage`},
		{"usage not wanted", `{"stream":true,"stream_options":{"include_usage":false}}`, ` n=1 limit=0 stream`},
		{"inner members", `{"metadata":{"model":"x","n":99},"messages":[{"model":"x","max_tokens":"y"}]}`, ` n=1 limit=0`},
		{"dots", `{"stream_options.include_usage":"x","messages[]":1,"a.b":1,"a":{"b":2}}`,
			` n=1 limit=0 unknown:[stream_options.include_usage messages[] a.b a]`},
		{"no tools", `{"tools":[]}`, ` n=1 limit=0`},
		{"tools", `{"tools":[{"type":"function","function":{"name":"f"}},{"name":"g","input_schema":{"type":"object"}},` +
			`{"type":"custom"},{"type":null}]}`, ` n=1 limit=0 tools`},
		{"functions", `{"functions":[{"name":"f"}]}`, ` n=1 limit=0 tools`},
		{"server tool", `{"tools":[{"type":"function"},{"type":"web_search_20250305"},{"type":"code_execution"}]}`,
			` n=1 limit=0 tools server:web_search_20250305`},
		{"escaped server tool", `{"tools":[{"type":"\u0077eb"}]}`, ` n=1 limit=0 tools server:web`},
		{"two types", `{"tools":[{"type":"web","type":"function"}]}`, ` n=1 limit=0 tools server:web`},
		{"odd type", `{"tools":[{"type":1}]}`, ` n=1 limit=0 tools server:1`},
		{"MCP", `{"mcp_servers":[{"url":"https://example.com"}]}`, ` n=1 limit=0 server:mcp_servers`},
		{"no MCP", `{"mcp_servers":[]}`, ` n=1 limit=0`},
		{"web search", `{"web_search_options":{}}`, ` n=1 limit=0 unknown:[web_search_options]`},
		{"no background", `{"background":false}`, ` n=1 limit=0`},
		{"thinking", `{"thinking":{"type":"enabled","budget_tokens":1024}}`, ` n=1 limit=0 hidden`},
		{"adaptive thinking", `{"thinking":{"type":"adaptive"}}`, ` n=1 limit=0 hidden`},
		{"no thinking", `{"thinking":{"type":"disabled"}}`, ` n=1 limit=0 off`},
		{"thinking twice", `{"thinking":{"type":"enabled","type":"disabled"}}`, ` n=1 limit=0 hidden`},
		{"thinking without type", `{"thinking":{}}`, ` n=1 limit=0 hidden`},
		{"effort", `{"reasoning_effort":"low"}`, ` n=1 limit=0 hidden`},
		{"no effort", `{"reasoning_effort":"none"}`, ` n=1 limit=0 off`},
		{"minimal effort", `{"reasoning_effort":"minimal"}`, ` n=1 limit=0 hidden`},
		{"reasoning", `{"reasoning":{"max_tokens":100}}`, ` n=1 limit=0 hidden`},
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
		{`{"n":0}`, "n must be a whole number from 1 to 16"},
		{`{"n":17}`, "n must be a whole number from 1 to 16"},
		{`{"n":-1}`, "n must be a whole number from 1 to 16"},
		{`{"n":1.0}`, "n must be a whole number from 1 to 16"},
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

func TestRewrite(t *testing.T) {
	for _, test := range []struct {
		name, body, model string
		limit             int64
		want              string
	}{
		{"nothing", `{ "model" : "m" }`, "m", 0, `{ "model" : "m" }`},
		{"no model to set", `{"model":"m"}`, "", 0, `{"model":"m"}`},
		{"model", `{ "n":1, "model" : "e/m" , "x":1.0e0}`, "m", 0, `{ "n":1, "model" : "m" , "x":1.0e0}`},
		{"default model", `{"n":1}`, "m", 0, `{"model":"m","n":1}`},
		{"null model", `{"model":null}`, "m", 0, `{"model":"m"}`},
		{"odd model", `{}`, "a\"b\\\x01é", 0, `{"model":"a\"b\\\u0001é"}`},
		{"empty body", " { \n } ", "m", 7, " {\"model\":\"m\",\"max_tokens\":7 \n } "},
		{"limit", `{"a":1}`, "", 7, `{"max_tokens":7,"a":1}`},
		{"null limit", `{"max_tokens": null,"a":1}`, "", 7, `{"max_tokens": 7,"a":1}`},
		{"stream", `{"stream":true}`, "", 0, `{"stream_options":{"include_usage":true},"stream":true}`},
		{"usage wanted", `{"stream":true,"stream_options":{"include_usage":true}}`, "", 0,
			`{"stream":true,"stream_options":{"include_usage":true}}`},
		{"usage not wanted", `{"stream_options":{"x":1,"include_usage": false},"stream":true}`, "", 0,
			`{"stream_options":{"x":1,"include_usage": true},"stream":true}`},
		{"other options", `{"stream":true,"stream_options": { "include_obfuscation":false}}`, "", 0,
			`{"stream":true,"stream_options": {"include_usage":true, "include_obfuscation":false}}`},
		{"no options", `{"stream":true,"stream_options":{ }}`, "", 0,
			`{"stream":true,"stream_options":{"include_usage":true }}`},
		{"null options", `{"stream":true,"stream_options":null}`, "", 0,
			`{"stream":true,"stream_options":{"include_usage":true}}`},
		{"no stream", `{"stream":false,"stream_options":{}}`, "", 0, `{"stream":false,"stream_options":{}}`},
		{"all", `{"stream_options":{},"messages":[{"model":"e/m"}],"model":"e/m","stream":true}`, "m", 7,
			`{"max_tokens":7,"stream_options":{"include_usage":true},"messages":[{"model":"e/m"}],"model":"m","stream":true}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(OpenAIChat, []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			if got := bytes.Join(r.Rewrite(Changes{Model: test.model, LimitMember: "max_tokens", Limit: test.limit}), nil); string(got) != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
	r, err := ReadRequest(OpenAIChat, []byte(`{"max_tokens":null}`))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"max_completion_tokens":7,"max_tokens":null}`
	if got := bytes.Join(r.Rewrite(Changes{LimitMember: "max_completion_tokens", Limit: 7}), nil); string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Rewriting a body changes the members that are meant to change and nothing else, and holds at least the bytes that are
// not base64.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"model":"m","stream":true,"n":2,"max_tokens":5}`,
		`{"model":null, "max_tokens" : null, "stream":true ,"stream_options":{"include_obfuscation":true}}`,
		`{"stream":true,"stream_options":{"include_usage":false},"tools":[{"type":"function"}],"thinking":{}}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}},` +
			`{"type":"image","source":{"type":"base64","data":"QU\/D"}},{"type":"text","text":"\ud83d\ude00 \n"}]}]}`,
		`{"messages":[{"content":[{"type":"tool_result","content":[{"type":"document","source":{"data":"QUJD"}}]}]}]}`,
	} {
		f.Add([]byte(body), "model-1", int64(9))
	}
	f.Fuzz(func(t *testing.T, body []byte, model string, limit int64) {
		kept := bytes.Clone(body)
		for format := range formats {
			r, err := ReadRequest(Format(format), body)
			if err != nil {
				continue
			}
			checkRewrite(t, r, strings.ToValidUTF8(model, ""), max(limit, 0))
			if !bytes.Equal(body, kept) {
				t.Fatalf("the body was changed: %s", body)
			}
			media := base64InStrings(t, body)
			if least := int64(len(body)) - media; r.HeldInput(Holding{BytesPerToken: 1}) < least || r.input.base64 < 0 {
				t.Fatalf("%s: held %d for %d bytes, %d of them base64",
					body, r.HeldInput(Holding{BytesPerToken: 1}), len(body), media)
			}
		}
	})
}

func checkRewrite(t *testing.T, r *Request, model string, limit int64) {
	var before, after map[string]json.RawMessage
	if err := json.Unmarshal(r.body, &before); err != nil {
		t.Fatalf("%s was accepted: %v", r.body, err)
	}
	changed := bytes.Join(r.Rewrite(Changes{Model: model, LimitMember: "max_tokens", Limit: limit}), nil)
	if err := json.Unmarshal(changed, &after); err != nil {
		t.Fatalf("%s became %s: %v", r.body, changed, err)
	}
	want := make(map[string]json.RawMessage)
	for name, value := range before {
		want[name] = value
	}
	if model != "" && model != r.Model {
		want["model"], _ = json.Marshal(model)
	}
	if limit > 0 {
		want["max_tokens"] = fmt.Append(nil, limit)
	}
	if r.Stream && !r.IncludeUsage && formats[r.Format].usageOption {
		options, was := map[string]json.RawMessage{}, map[string]json.RawMessage{}
		if err := json.Unmarshal(after["stream_options"], &options); err != nil {
			t.Fatalf("%s became %s: %v", r.body, changed, err)
		}
		_ = json.Unmarshal(before["stream_options"], &was) // may be absent
		if was == nil {
			was = map[string]json.RawMessage{}
		}
		was["include_usage"] = json.RawMessage("true")
		if !reflect.DeepEqual(options, was) {
			t.Fatalf("%s became %s", r.body, changed)
		}
		want["stream_options"] = after["stream_options"]
	}
	if !reflect.DeepEqual(after, want) {
		t.Fatalf("%s became %s", r.body, changed)
	}
	again, err := ReadRequest(r.Format, changed)
	if err != nil {
		t.Fatalf("%s became %s: %v", r.body, changed, err)
	}
	if model != "" && again.Model != model || limit > 0 && again.Limit < limit || again.Stream != r.Stream {
		t.Fatalf("%s became %s", r.body, changed)
	}
}

// base64InStrings returns the length of what could be base64 in the strings of body, as they are spelled, in another
// way than the code under test: at most it may be left out of a hold.
func base64InStrings(t *testing.T, body []byte) (total int64) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	for {
		from := decoder.InputOffset()
		token, err := decoder.Token()
		if err != nil {
			return total
		}
		if _, ok := token.(string); ok {
			raw := string(body[from:decoder.InputOffset()])
			raw = raw[strings.IndexByte(raw, '"')+1 : len(raw)-1]
			_, data, isURL := strings.Cut(raw, ";base64,")
			if !isURL {
				data = raw
			}
			if strings.Trim(strings.ReplaceAll(data, `\/`, "/"),
				"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=") == "" {
				total += int64(len(data))
			}
		}
	}
}

func TestHeldInput(t *testing.T) {
	image := `{"type":"image","source":{"type":"base64","data":"` + strings.Repeat("A", 4000) + `"}}`
	for _, test := range []struct {
		name, body                            string
		bytesPerToken, mediaTokens, most      int64
		held, estimate, bytesWithoutTheBase64 int64
	}{
		{"text", `{"m":"12345"}`, 1, 2000, 200_000, 13, 4, 13},
		{"three bytes a token", `{"m":"12345"}`, 3, 2000, 200_000, 5, 4, 13},
		{"eight bytes a token", `{"m":"12345"}`, 8, 2000, 200_000, 2, 4, 13},
		{"tools", `{"tools":[{}]}`, 1, 2000, 200_000, 614, 4, 14},
		{"context window", `{"tools":[{}]}`, 1, 2000, 500, 500, 4, 14},
		{"media", `{"messages":[{"content":[` + image + `,` + image + `]}]}`, 1, 2000, 200_000, 4136, 4034, 136},
		{"too much", `{"messages":[{"content":[` + image + `,` + image + `]}]}`, 1, 1 << 62, MaxTokens,
			MaxTokens, MaxTokens, 136},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(AnthropicMessages, []byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if got := int64(len(test.body)) - r.input.base64; got != test.bytesWithoutTheBase64 {
				t.Errorf("%d bytes without base64, want %d", got, test.bytesWithoutTheBase64)
			}
			if got := r.HeldInput(Holding{BytesPerToken: test.bytesPerToken, MediaTokens: test.mediaTokens, MaxInput: test.most}); got != test.held {
				t.Errorf("held %d, want %d", got, test.held)
			}
			if got := r.EstimatedInput(Holding{MediaTokens: test.mediaTokens}); got != test.estimate {
				t.Errorf("estimated %d, want %d", got, test.estimate)
			}
		})
	}
}

// What is inside a member without a name is not at the top level: it would set a hold that the provider ignores.
func TestRequestEmptyName(t *testing.T) {
	for format := range formats {
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

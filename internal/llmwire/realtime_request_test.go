package llmwire

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// What session.update and response.create may have is passed on with a limit, whatever they are spelled like.
func TestRealtimeRead(t *testing.T) {
	allOfBoth := `"instructions":"i","output_modalities":["text","audio"],"parallel_tool_calls":true,"prompt":null,` +
		`"reasoning":{"effort":"low"},"tool_choice":{"type":"function","name":"f"},` +
		`"tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"mcp","Type":1,"Type":2},"strict":true}],` +
		`"audio":{"output":{"format":{"type":"audio/pcm","rate":24000},"voice":{"id":"v"}}`
	const message = `{"type":"message","role":"user","content":[{"type":"input_text","text":"t"}]}`
	for _, test := range []struct{ kind, members, want string }{
		{"session.update", `"session":{}`, `"session":{"max_output_tokens":1000}`},
		{"session.update", `"session": { }`, `"session": {"max_output_tokens":1000 }`},
		{"session.update", `"session":{"type":"realtime"}`, `"session":{"max_output_tokens":1000,"type":"realtime"}`},
		{"session.update", `"session":{"max_output_tokens":"inf"}`, `"session":{"max_output_tokens":4096}`},
		{"session.update", `"session":{"max_output_tokens":"\u0069nf"}`, `"session":{"max_output_tokens":4096}`},
		{"session.update", `"session":{"max_output_tokens" : null}`, `"session":{"max_output_tokens" : 1000}`},
		{"session.update", `"session":{"max_output_tokens":4096}`, ``},
		{"session.update", `"session":{"max\u005foutput_tokens":1}`, ``},
		{"session.update", `"session":{"model":"gpt-realtime","max_output_tokens":9}`, ``},
		{"session.update", `"session":{"model":"\u0067pt-realtime","max_output_tokens":9}`, ``},
		{"session.update", `"session":{"model":"voice","max_output_tokens":9}`, `"session":{"model":"gpt-realtime","max_output_tokens":9}`},
		{"session.update", `"session":{"model":null,"max_output_tokens":9}`, ``},
		{"session.update", `"session":{"tracing":"auto"}`, `"session":{"max_output_tokens":1000}`},
		{"session.update", `"session":{"type":"realtime","\u0074racing":{"group_id":"g"},"tools":[]}`,
			`"session":{"type":"realtime","max_output_tokens":1000,"tools":[]}`},
		{"session.update", `"session":{"tracing":"auto","max_output_tokens":9}`, `"session":{"max_output_tokens":9}`},
		{"session.update", `"session":{"max_output_tokens":"inf", "tracing":null}`, `"session":{"max_output_tokens":4096}`},
		{"session.update", `"session":{"max_output_tokens":9,` + allOfBoth + `}}`, ``},
		{"session.update", `"session":{"max_output_tokens":9,"include":["item.input_audio_transcription.logprobs"],"truncation":"auto",` +
			`"audio":{"input":{"format":{"type":"audio/pcmu"},"noise_reduction":{"type":"near_field"},` +
			`"transcription":{"model":"whisper-1","language":"en","prompt":"p","delay":"low"},"turn_detection":{"type":"server_vad",` +
			`"create_response":true,"interrupt_response":true,"idle_timeout_ms":5000,"prefix_padding_ms":300,` +
			`"silence_duration_ms":500,"threshold":0.5}},"output":{"speed":1.5,"voice":"marin"}}}`, ``},
		{"session.update", `"session":{"max_output_tokens":9,"audio":{"input":{"transcription":null,"turn_detection":null}}}`, ``},
		{"session.update", `"session":{"max_output_tokens":9,"truncation":{"type":"retention_ratio","retention_ratio":0.8}}`, ``},
		{"response.create", `"response":null`, `"response":{"max_output_tokens":1000}`},
		{"response.create", `"response":{"max_output_tokens":2000}`, ``},
		{"response.create", `"response":{"tracing":"auto"}`, `"response":{"max_output_tokens":1000}`},
		{"response.create", `"response":{"model":"voice"}`, `"response":{"max_output_tokens":1000,"model":"gpt-realtime"}`},
		{"response.create", `"response":{"max_output_tokens":9,` + allOfBoth + `}}`, ``},
		{"response.create", `"response":{"max_output_tokens":9,"conversation":"none","metadata":{"tools":"x","a":1},"tool_choice":"auto",` +
			`"input":[` + message + `,{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},` +
			`{"type":"function_call_output","call_id":"c","output":"o"}]}`, ``},
	} {
		for name, event := range eventSpellings(test.kind, test.members) {
			got := relayEverywhere(t, event)
			want := event
			if test.want != "" {
				want = eventSpellings(test.kind, test.want)[name]
			}
			if got.early != 0 || got.refusal != nil || got.passed != want {
				t.Errorf("%s: %s\ngot  %s %+v\nwant %s", name, event, got.passed, got.refusal, want)
			}
			wantHeldTo(t, got.passed)
		}
		wantForgeriesRefused(t, test.kind, test.members)
	}
	for event, want := range map[string]string{
		`{"type":"response.create"}`:                   `{"response":{"max_output_tokens":1000},"type":"response.create"}`,
		` { "type":"response.create","event_id":null}`: ` {"response":{"max_output_tokens":1000}, "type":"response.create","event_id":null}`,
	} {
		if got := relayEverywhere(t, event); got.passed != want {
			t.Errorf("%s\ngot  %s %+v\nwant %s", event, got.passed, got.refusal, want)
		}
	}
	wantForgeriesRefused(t, "response.create", ``)
	request, err := testRealtimeRules.Read([]byte(`{"type":"response.create","event_id":"e","response":{"max_output_tokens":"inf"}}`))
	if err != nil || !request.CreatesResponse || request.EventID != "e" || request.Limit != 4096 {
		t.Errorf("got %+v, %v", request, err)
	}
	for _, rules := range []RealtimeRules{{Limit: 9}, {Limit: 9, Default: 10}} {
		if request, err := rules.Read([]byte(`{"type":"response.create"}`)); err != nil || request.Limit != 9 {
			t.Errorf("%+v: got %+v, %v", rules, request, err)
		}
	}
	noAlias, noModel := RealtimeRules{Model: "m", Limit: 9, Default: 9}, []byte(`{"type":"session.update","session":{"model":""}}`)
	if _, err := noAlias.Read(noModel); err == nil {
		t.Error("a model without a name was not refused")
	}
	request, err = testRealtimeRules.Read([]byte(`{"type":"session.update","session":{"max_output_tokens":7}}`))
	if err != nil || request.CreatesResponse || request.EventID != "" || request.Limit != 7 {
		t.Errorf("got %+v, %v", request, err)
	}
}

// wantHeldTo reports an event that a reader which ignores case, and takes the last of some members, reads as more than
// the rules allow.
func wantHeldTo(t *testing.T, event string) {
	t.Helper()
	type body struct {
		Model             *string
		Max_Output_Tokens int64
		Prompt, Tracing   any
		Tools             []struct{ Type string }
		Input             []struct{ Type string }
	}
	var read struct {
		Type              string
		Session, Response *body
	}
	if err := json.Unmarshal([]byte(event), &read); err != nil || (read.Session == nil) == (read.Response == nil) {
		t.Fatalf("%q: %v", event, err)
	}
	one := read.Session
	if one == nil {
		one = read.Response
	}
	isOther := func(tool struct{ Type string }) bool { return tool.Type != "function" }
	isReference := func(item struct{ Type string }) bool { return realtimeItems.of([]byte(item.Type)) != known }
	if one.Max_Output_Tokens < 1 || one.Max_Output_Tokens > testRealtimeRules.Limit || one.Prompt != nil || one.Tracing != nil ||
		one.Model != nil && *one.Model != testRealtimeRules.Model ||
		slices.ContainsFunc(one.Tools, isOther) || slices.ContainsFunc(one.Input, isReference) {
		t.Errorf("%q is not held to the rules", event)
	}
}

func TestRealtimeReadRefused(t *testing.T) {
	both := []string{
		`"model":"gpt-realtime-2"`, `"model":""`, `"model":"GPT-realtime"`, `"model":["gpt-realtime"]`, `"model":{"gpt-realtime":1}`,
		`"model":"gpt-realtime","model":"gpt-realtime"`, `"model":null,"\u006dodel":"gpt-realtime-2"`, `"Model":"gpt-realtime-2"`,
		`"model\u0000":"x"`,
		`"max_output_tokens":4097`, `"max_output_tokens":0`, `"max_output_tokens":-1`, `"max_output_tokens":1e3`, `"max_output_tokens":5.0`,
		`"max_output_tokens":"4096"`, `"max_output_tokens":"INF"`, `"max_output_tokens":99999999999999999999`, `"max_output_tokens":[9]`,
		`"max_output_tokens":true`, `"max_output_tokens":9,"max_output_tokens":9`, `"max_output_tokens":9,"max_output\u005ftokens":"inf"`,
		`"max_output_tokens":9,"Max_Output_Tokens":"inf"`, `"max_response_output_tokens":"inf"`, `"max_tokens":9`,
		`"prompt":{"id":"p"}`, `"prompt":"p"`, `"prompt":false`, `"prompt":[]`, `"pr\u006fmpt":{"id":"p"}`, `"prompt":null,"prompt":{"id":"p"}`,
		`"tools":[{"type":"mcp","server_label":"s"}]`, `"tools":[{"type":"web_search"}]`, `"tools":[{"type":"function"},{"type":"mcp"}]`,
		`"tools":[{"type":"\u006dcp"}]`, `"tools":[{"type":"Function"}]`, `"tools":[{}]`, `"tools":[{"name":"f"}]`, `"tools":[{"type":null}]`,
		`"tools":[null]`, `"tools":["mcp"]`, `"tools":[[{"type":"mcp"}]]`, `"tools":{"type":"mcp"}`, `"tools":"mcp"`,
		`"tools":[{"type":"function","type":"mcp"}]`, `"tools":[{"type":"mcp","type":"function"}]`, `"tools":[{"type":"function","Type":"mcp"}]`,
		`"tools":[{"type":"function","server_url":"u"}]`, `"tools":[],"tools":[{"type":"mcp"}]`, `"tools":[],"Tools":[{"type":"mcp"}]`,
		`"tool_choice":{"type":"mcp","server_label":"s"}`, `"tool_choice":{}`, `"tool_choice":"mcp"`, `"tool_choice":[]`,
		`"tool_choice":{"type":"function","type":"mcp"}`,
		`"output_modalities":["image"]`, `"output_modalities":"image"`, `"output_modalities":[["image"]]`, `"modalities":["text"]`,
		`"audio":[]`, `"audio":{"Output":{}}`, `"audio":{"x":1}`, `"audio":{},"audio":{}`, `"audio":{"output":{"x":1}}`,
		`"audio":{"output":{"voice":{"x":1}}}`, `"reasoning":{"budget":9}`, `"reasoning":"high"`,
		`"tracing":"auto","tracing":"auto"`, `"Tracing":"auto"`, `"service_tier":"priority"`, `"x":null`, `"":1`, `"session":{}`, `"response":{}`,
	}
	for _, members := range both {
		wantRefused(t, "session.update", `"session":{`+members+`}`)
		wantRefused(t, "response.create", `"response":{`+members+`}`)
	}
	for _, members := range []string{
		`"type":"transcription"`, `"type":"Realtime"`, `"type":["realtime"]`, `"type":"realtime","type":"transcription"`,
		`"include":["x"]`, `"include":"x"`, `"conversation":"auto"`, `"input":[]`, `"metadata":{}`, `"temperature":1`, `"voice":"marin"`,
		`"turn_detection":null`, `"audio":{"input":{"model":"m"}}`, `"audio":{"input":{"transcription":"x"}}`,
		`"audio":{"input":{"transcription":{"x":1}}}`, `"audio":{"input":{"turn_detection":{"type":"x"}}}`,
		`"audio":{"input":{"turn_detection":{"x":1}}}`,
	} {
		wantRefused(t, "session.update", `"session":{`+members+`}`)
	}
	for _, members := range []string{
		`"conversation":"conv_1"`, `"conversation":{"id":"conv_1"}`, `"conversation":"auto","conversation":"conv_1"`,
		`"type":"realtime"`, `"audio":{"input":{}}`, `"truncation":"auto"`, `"include":[]`,
		`"input":[{"type":"item_reference","id":"i"}]`, `"input":[{"id":"i"}]`, `"input":["i"]`, `"input":[null]`, `"input":"i"`,
		`"input":{"type":"item_reference"}`, `"input":[[{"type":"item_reference"}]]`, `"input":[{"type":"mcp_call"}]`,
		`"input":[{"type":"message","type":"item_reference"}]`, `"input":[{"type":"message","Type":"item_reference"}]`,
		`"input":[{"type":"message","content":[{"type":"input_file"}]}]`, `"input":[{"type":"message","content":[{}]}]`,
		`"input":[{"type":"message","content":["x"]}]`, `"input":[{"type":"message","content":"x"}]`,
		`"input":[{"type":"message","content":[{"type":"input_text","file_id":"f"}]}]`, `"input":[{"type":"message","x":1}]`,
	} {
		wantRefused(t, "response.create", `"response":{`+members+`}`)
	}
	for kind, all := range map[string][]string{
		"session.update": {``, `"session":null`, `"session":[]`, `"session":"s"`, `"session":{},"session":{}`, `"session":{},"Session":{}`,
			`"session":{},"response":{}`, `"session":{},"model":"x"`, `"session":{"instructions":"` + "\x01" + `"}`},
		"response.create": {`"response":[]`, `"response":"r"`, `"response":{},"response":null`, `"response":null,"respons\u0065":{}`,
			`"response":{},"session":{}`, `"Response":{}`},
	} {
		for _, members := range all {
			wantRefused(t, kind, members)
		}
	}
	for _, event := range []string{ // which do not come from a scan
		`{"type":"x"}`, `{}`, `[]`, `null`, ``, `{"type":"session.update","session":{"instructions":"` + "\xff" + `"}}`,
		`{"type":"session.update","session":{},"response":{}}`, `{"type":"response.create","session":{}}`, `{"session":{}}`,
	} {
		if _, err := testRealtimeRules.Read([]byte(event)); err == nil {
			t.Errorf("%q was not refused", event)
		}
	}
}

// A value costs what its own name and text do, whatever it is in.
func TestLinearRealtime(t *testing.T) {
	for _, n := range []int{1 << 14, 1 << 16} {
		session := func(name, members string) hostileDocument {
			return hostileDocument{name, `{"type":"session.update","session":{` + members + `}}`}
		}
		response := func(name, members string) hostileDocument {
			return hostileDocument{name, `{"type":"response.create","response":{` + members + `}}`}
		}
		items := func(item string) string { return `"input":[` + item + strings.Repeat(","+item, n/len(item)) + `]` }
		for _, d := range []hostileDocument{
			session("tools", `"tools":[{"type":"function"}`+strings.Repeat(`,{"type":"function"}`, n/20)+`]`),
			session("deep", `"tools":[{"type":"function","parameters":`+deepArray(n, 490, `[`, `1`, `]`)+`}]`),
			session("modalities", `"output_modalities":["text"`+strings.Repeat(`,"\u0074ext"`, n/12)+`]`),
			session("long limit", `"max_output_tokens":1`+strings.Repeat("0", n)),
			session("long name", `"instructions":`+longName(n, "model")),
			response("items", items(`{"type":"message"}`)),
			response("parts", `"input":[{"type":"message","content":[{"type":"text"}`+strings.Repeat(`,{"type":"text"}`, n/16)+`]}]`),
			response("metadata", `"metadata":`+longName(n, "model")),
		} {
			var got calls
			r := &realtimeReader{rules: testRealtimeRules, seen: make(map[string]map[string]bool)}
			r.Request = Request{body: []byte(d.text), at: make(map[memberName]span)}
			err := r.walker.walk(r.body, counted(realtimeShape, &got), r)
			if isRefused := d.name == "long limit"; (err != nil) != isRefused {
				t.Errorf("%s: %v", d.name, r.refusal)
			}
			if size := len(d.text); got.n > size/4+64 || got.bytes > 8*size+1024 || len(r.at) > 4 || len(r.seen) > 4 {
				t.Errorf("%s of %d bytes: %+v, %d members are noted", d.name, size, got, len(r.at)+len(r.seen))
			}
		}
	}
}

func TestRealtimeMessages(t *testing.T) {
	for got, want := range map[string]string{
		string(RealtimeUpdate("e", 9, "")): `{"type":"session.update","event_id":"e","session":{"type":"realtime","max_output_tokens":9}}`,
		string(RealtimeUpdate("e", 9, `m"`)): `{"type":"session.update","event_id":"e","session":{"type":"realtime","max_output_tokens":9,` +
			`"audio":{"output":{"voice":"m\""}}}}`,
		string(RealtimeCancel("e", "")):    `{"type":"response.cancel","event_id":"e"}`,
		string(RealtimeCancel(`e"`, `r"`)): `{"type":"response.cancel","event_id":"e\"","response_id":"r\""}`,
	} {
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if strings.Contains(got, "update") {
			if request, err := testRealtimeRules.Read([]byte(got)); err != nil || string(bytes.Join(request.Pieces, nil)) != got {
				t.Errorf("%s is not passed on as it is: %v", got, err)
			}
		} else if relayed := relayEverywhere(t, got); relayed.passed != got {
			t.Errorf("%s is not passed on: %+v", got, relayed.refusal)
		}
	}
}

func FuzzRealtimeRead(f *testing.F) {
	for _, members := range []string{`"session":{"tracing":"auto","tools":[{"type":"function"}]}`, `"session":{"model":"voice"}`} {
		for _, event := range eventSpellings("session.update", members) {
			f.Add([]byte(event))
		}
	}
	f.Add([]byte(`{"type":"response.create","response":{"input":[{"type":"message","content":[{"type":"text"}]}]}}`))
	f.Add([]byte(`{"type":"response.create","response":{"tracing":"auto","max_output_tokens":"inf"}}`))
	f.Fuzz(func(t *testing.T, event []byte) {
		var s RealtimeScan
		_, _ = s.Read(event)
		action, scanErr := s.End()
		request, err := testRealtimeRules.Read(event)
		if err != nil {
			return
		}
		if action != ReadEvent {
			t.Errorf("%q: %d %v, and is read", event, action, scanErr)
		}
		wantHeldTo(t, string(bytes.Join(request.Pieces, nil)))
	})
}

package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

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
			c := Changes{Model: test.model, LimitMember: "max_tokens", Limit: test.limit}
			if got := bytes.Join(r.Rewrite(c), nil); string(got) != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
}

// Of all limits one is left, under the name that the provider obeys.
func TestRewriteLimit(t *testing.T) {
	for _, test := range []struct {
		body, member string
		limit        int64
		want         string
	}{
		{`{"max_tokens": 5 ,"a":1}`, "max_tokens", 0, `{"max_tokens": 5 ,"a":1}`},
		{`{"max_tokens": 5 ,"a":1}`, "max_tokens", 3, `{"max_tokens": 3 ,"a":1}`},
		{`{"max_tokens": 5 ,"a":1}`, "", 0, `{"max_tokens": 5 ,"a":1}`},
		{`{"max_tokens": 5 ,"a":1}`, "max_completion_tokens", 0, `{"max_completion_tokens":5 ,"a":1}`},
		{`{"max_tokens": 5 ,"a":1}`, "max_completion_tokens", 3, `{"max_completion_tokens":3 ,"a":1}`},
		{`{ "max_completion_tokens":5}`, "max_tokens", 0, `{ "max_tokens":5}`},
		{`{ "max_completion_t\u006fkens" : 5}`, "max_tokens", 0, `{ "max_tokens":5}`},
		{`{"a":"\\\"","max_completion_tokens":5}`, "max_tokens", 0, `{"a":"\\\"","max_tokens":5}`},
		{`{"max_tokens":5,"max_completion_tokens":7}`, "max_tokens", 0, `{"max_tokens":7}`},
		{`{"max_tokens":5, "max_completion_tokens":7 , "a":1}`, "max_tokens", 0, `{"max_tokens":7,  "a":1}`},
		{`{"max_completion_tokens":7,"max_tokens":9}`, "max_tokens", 0, `{"max_tokens":9}`},
		{`{"max_completion_tokens":7 , "max_tokens":5 }`, "max_completion_tokens", 0, `{"max_completion_tokens":7  }`},
		{`{"max_completion_tokens":7,"max_tokens":9}`, "max_tokens", 4, `{"max_tokens":4}`},
		{`{"max_tokens":-1}`, "max_tokens", 9, `{"max_tokens":9}`},
		{`{"max_tokens":-1}`, "max_completion_tokens", 9, `{"max_completion_tokens":9}`},
		{`{"max_tokens":-1,"max_completion_tokens":7}`, "max_completion_tokens", 0, `{"max_completion_tokens":7}`},
		{`{"max_tokens":-1,"max_completion_tokens":7}`, "max_tokens", 0, `{"max_tokens":7}`},
		{`{"max_tokens":null}`, "max_completion_tokens", 7, `{"max_completion_tokens":7,"max_tokens":null}`},
		{`{"max_tokens":null,"max_completion_tokens":6}`, "max_tokens", 0, `{"max_tokens":6}`},
		{`{"max_tokens":null}`, "max_tokens", 0, `{"max_tokens":null}`},
	} {
		wantRewritten(t, OpenAIChat, test.body, Changes{LimitMember: test.member, Limit: test.limit}, test.want)
	}
	wantRewritten(t, AnthropicMessages, `{"max_tokens":0}`, Changes{LimitMember: "max_tokens"}, `{"max_tokens":0}`)
	wantRewritten(t, AnthropicMessages, `{"max_tokens":0,"max_completion_tokens":7}`, Changes{LimitMember: "max_tokens"},
		`{"max_tokens":7}`)
}

func TestRewriteTools(t *testing.T) {
	for _, test := range []struct{ body, want string }{
		{`{"tools":[{"type":"web"},{"name":"f"}]}`, `{"tools":[{"name":"f"}]}`},
		{`{"tools":[{"name":"f"},{"type":"web"}]}`, `{"tools":[{"name":"f"}]}`},
		{`{"tools":[ {"name":"f"} , {"type":"web"} , {"name":"g"} ]}`, `{"tools":[ {"name":"f"} ,  {"name":"g"} ]}`},
		{`{"tools":[{"type":"a"},{"type":"b"},{},{"type":"c"},{"type":"d"}]}`, `{"tools":[{}]}`},
		{`{"tools":[{},{"type":"b"},{"type":"c"},{}]}`, `{"tools":[{},{}]}`},
		{`{"tools":["web",{}],"tool_choice":"auto"}`, `{"tools":[{}],"tool_choice":"auto"}`},
		{`{"a":1,"tools":[{"type":"web"}],"b":2}`, `{"a":1,"b":2}`},
		{`{"tools":[{"type":"web"}],"tool_choice":"auto","parallel_tool_calls":false}`, `{}`},
		{`{ "tool_choice":"auto", "a":1 , "tools":[{"type":"web"}] }`, `{  "a":1  }`},
		{`{"a":1,"tools":[{"type":"x"},{"type":"y"}] , "tool_choice" : "any"}`, `{"a":1}`},
		{`{"tool_choice":{"type":"auto"},"a":1,"tools":[{"type":"web"}],"b":2}`, `{"a":1,"b":2}`},
	} {
		wantRewritten(t, AnthropicMessages, test.body, Changes{DropTools: true}, test.want)
	}
	all := Changes{DropTools: true, Model: "m", LimitMember: "max_tokens", Limit: 7}
	wantRewritten(t, OpenAIChat, ` {"tools":[{"type":"web"}]}`, all, ` {"model":"m","max_tokens":7}`)
	wantRewritten(t, OpenAIChat, `{"tools":[{"type":"web"}],"a":1}`, Changes{DropTools: true, Model: "m"}, `{"model":"m","a":1}`)
}

func TestRewriteUser(t *testing.T) {
	for _, test := range []struct {
		format     Format
		body, want string
	}{
		{OpenAIChat, `{}`, `{"safety_identifier":"u"}`},
		{OpenAIChat, `{"safety_identifier":"mine","user":"me"}`, `{"safety_identifier":"u","user":"me"}`},
		{OpenAIChat, `{"metadata":{"user_id":"mine"}}`, `{"safety_identifier":"u","metadata":{"user_id":"mine"}}`},
		{AnthropicMessages, `{}`, `{"metadata":{"user_id":"u"}}`},
		{AnthropicMessages, `{"metadata":null}`, `{"metadata":{"user_id":"u"}}`},
		{AnthropicMessages, `{"metadata":"x"}`, `{"metadata":{"user_id":"u"}}`},
		{AnthropicMessages, `{"metadata":{ }}`, `{"metadata":{"user_id":"u" }}`},
		{AnthropicMessages, `{"metadata":{"a":1}}`, `{"metadata":{"user_id":"u","a":1}}`},
		{AnthropicMessages, `{"metadata":{"user_id" : {"a":1} }}`, `{"metadata":{"user_id" : "u" }}`},
	} {
		wantRewritten(t, test.format, test.body, Changes{SafetyID: "u"}, test.want)
	}
	if _, err := ReadRequest(AnthropicMessages, []byte(`{"metadata":{"user_id":"a","user_id":"b"}}`)); err == nil {
		t.Error("a user has two IDs")
	}
}

// Servers that refuse stream_options get what the client has sent.
func TestRewriteStreamOptions(t *testing.T) {
	for _, body := range []string{`{"stream":true}`, `{"stream":true,"stream_options":{"include_usage":false}}`} {
		wantRewritten(t, OpenAIChat, body, Changes{LeaveStreamOptions: true}, body)
	}
}

func wantRewritten(t *testing.T, format Format, body string, c Changes, want string) {
	t.Helper()
	r, err := ReadRequest(format, []byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if got := string(bytes.Join(r.Rewrite(c), nil)); got != want {
		t.Errorf("%s, %+v\ngot  %s\nwant %s", body, c, got, want)
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
		`{"max_completion_tokens":7 , "max_tokens":5,"tools":[{"type":"x"},{},{"type":"y"}] }`,
		`{"a":1,"tools":[{"type":"x"}] , "tool_choice":"auto","parallel_tool_calls":true, "max_tokens":-1}`,
		`{"input":[{"type":"item_reference","id":"msg_1"},{"type":"image_generation_call","result":"QUJD"}],"store":null}`,
		`{"max_output_tokens":7,"max_tokens":9,"input":{"output":{"type":"computer_screenshot","image_url":"data:,"}}}`,
		`{"metadata":{"user_id":"x","a":[]},"messages":[{"content":[{"type":"document","source":{"type":"url"}}]}]}`,
	} {
		f.Add([]byte(body), "model-1", int64(9), uint8(0))
		f.Add([]byte(body), "", int64(0), uint8(255))
	}
	f.Fuzz(func(t *testing.T, body []byte, model string, limit int64, flags uint8) {
		kept := bytes.Clone(body)
		for _, format := range textFormats {
			r, err := ReadRequest(Format(format), body)
			if err != nil {
				continue
			}
			c := Changes{Model: strings.ToValidUTF8(model, ""), Limit: max(limit, 0), LeaveStreamOptions: flags&1 > 0}
			c.LimitMember = append([]string{""}, limitMembers...)[flags>>1&3]
			c.NoStore = flags&32 > 0
			c.DropTools = flags&8 > 0 && r.CanDropTools
			c.SafetyID = []string{"", "u\""}[flags>>4&1]
			checkRewrite(t, r, c)
			if !bytes.Equal(body, kept) {
				t.Fatalf("the body was changed: %s", body)
			}
			media := base64InStrings(t, body)
			if least := int64(len(body)) - media; r.HeldInput(Holding{BytesPerToken: 1}) < least || r.input.base64 < 0 {
				t.Fatalf("%s: held %d for %d bytes, %d of them base64",
					body, r.HeldInput(Holding{BytesPerToken: 1}), len(body), media)
			}
			if n := r.input.text; n < 0 || n > int64(len(body)) {
				t.Fatalf("%s: %d bytes of text in %d", body, n, len(body))
			}
		}
	})
}

// object returns the members of a JSON object, and none of another value.
func object(value []byte) map[string]json.RawMessage {
	members := make(map[string]json.RawMessage)
	if len(value) > 0 && value[0] == '{' {
		_ = json.Unmarshal(value, &members) // what is in a request was checked
	}
	return members
}

// checkRewrite compares what r becomes by c with the same changes of its decoded members.
func checkRewrite(t *testing.T, r *Request, c Changes) {
	t.Helper()
	want := make(map[string]json.RawMessage)
	if err := json.Unmarshal(r.body, &want); err != nil {
		t.Fatalf("%s was accepted: %v", r.body, err)
	}
	changed := bytes.Join(r.Rewrite(c), nil)
	after := make(map[string]json.RawMessage)
	if err := json.Unmarshal(changed, &after); err != nil {
		t.Fatalf("%s, %+v became %s: %v", r.body, c, changed, err)
	}
	if c.Model != "" && c.Model != r.Model {
		want["model"], _ = json.Marshal(c.Model)
	}
	changeLimit(want, r, c)
	if c.DropTools {
		dropTools(want, r.Format)
	}
	if c.NoStore && r.Stored {
		want["store"] = json.RawMessage("false")
	}
	set := func(object map[string]json.RawMessage, name, value string) json.RawMessage {
		object[name] = json.RawMessage(value)
		encoded, _ := json.Marshal(object)
		return encoded
	}
	if id := formats[r.Format].safetyID; c.SafetyID != "" {
		text, _ := json.Marshal(c.SafetyID)
		if id.object == "" {
			want[id.name] = text
		} else {
			want[id.object] = set(object(want[id.object]), id.name, string(text))
		}
	}
	if formats[r.Format].usageOption && r.Stream && !r.IncludeUsage && !c.LeaveStreamOptions {
		want["stream_options"] = set(object(want["stream_options"]), "include_usage", "true")
	}
	if got, want := compacted(after), compacted(want); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s, %+v became %s\nwant %s", r.body, c, got, want)
	}
	again, err := ReadRequest(r.Format, changed)
	if err != nil {
		t.Fatalf("%s became %s: %v", r.body, changed, err)
	}
	if c.Model != "" && again.Model != c.Model || again.Stream != r.Stream || c.DropTools && again.ServerTool != "" ||
		c.LimitMember != "" && c.Limit > 0 && again.Limit != min(c.Limit, MaxTokens) {
		t.Fatalf("%s, %+v became %s", r.body, c, changed)
	}
}

// changeLimit leaves one limit in members, under the name that the provider obeys.
func changeLimit(members map[string]json.RawMessage, r *Request, c Changes) {
	limit := r.Limit
	if c.Limit > 0 {
		limit = c.Limit
	}
	if c.LimitMember == "" || c.Limit == 0 && !r.HasLimit {
		return
	}
	for _, name := range limitMembers {
		if string(members[name]) != "null" {
			delete(members, name)
		}
	}
	members[c.LimitMember] = fmt.Append(nil, limit)
}

// dropTools takes the tools that are not known out of members.
func dropTools(members map[string]json.RawMessage, format Format) {
	var all []json.RawMessage
	_ = json.Unmarshal(members["tools"], &all)
	kept := []json.RawMessage{}
	for _, tool := range all {
		if r, err := ReadRequest(format, fmt.Appendf(nil, `{"tools":[%s]}`, tool)); err == nil && r.ServerTool == "" {
			kept = append(kept, tool)
		}
	}
	if len(kept) > 0 {
		members["tools"], _ = json.Marshal(kept)
		return
	}
	for _, name := range []string{"tools", "tool_choice", "parallel_tool_calls"} {
		delete(members, name)
	}
}

// compacted returns members without white space, and with those in objects in order.
func compacted(members map[string]json.RawMessage) map[string]string {
	texts := make(map[string]string)
	for name, value := range members {
		var text bytes.Buffer
		_ = json.Compact(&text, value)
		texts[name] = text.String()
		if name == "stream_options" || name == "metadata" {
			sorted, _ := json.Marshal(object(value))
			texts[name] = string(sorted)
		}
	}
	return texts
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

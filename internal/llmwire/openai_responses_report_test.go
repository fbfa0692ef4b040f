package llmwire

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	responseUsage = `{"input_tokens":36,"input_tokens_details":{"cached_tokens":9,"cache_write_tokens":3},"output_tokens":87,` +
		`"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123}`
	helloItem = `{"type":"message","id":"msg_1","status":"completed","role":"assistant","phase":"final_answer","content":` +
		`[{"type":"output_text","text":"Hello 😀","annotations":[],"logprobs":[{"token":"Hello"}]}]}`
	reasoningItem = `{"type":"reasoning","id":"rs_1","summary":[]}`
)

const responseBegun = `{"type":"response.created","response":{"id":"resp_1","status":"in_progress","output":[],"usage":null}}`

// responseOf returns a response with the given end, items and usage.
func responseOf(end, items, usage string) string {
	return `{"id":"resp_1","object":"response",` + end + `,"error":null,"instructions":"abc","model":"gpt-5.2","output":[` + items +
		`],"tools":[{"type":"function","name":"f","description":"abc"}],"text":{"format":{"type":"text"}},"usage":` + usage + `}`
}

const (
	completed = `"status":"completed","incomplete_details":null`
	atLimit   = `"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}`
	filtered  = `"status":"incomplete","incomplete_details":{"reason":"content_filter"}`
	failed    = `"status":"failed"`
)

func TestResponses(t *testing.T) {
	call := `{"type":"function_call","id":"fc_1","call_id":"call_1","name":"f","arguments":"{\"a\":1}"}`
	checkResponses(t, OpenAIResponses, []responseTest{
		{"completed", 1, responseOf(completed, helloItem, responseUsage),
			`36+87 tokens, 1 events, 10 bytes normal finished complete`},
		{"without usage", 1, responseOf(completed, helloItem, "null"),
			`1000+4 tokens, 1 events, 10 bytes normal estimated finished`},
		{"call", 1, responseOf(completed, reasoningItem+","+call, responseUsage),
			`36+87 tokens, 1 events, 8 bytes normal finished complete`},
		{"at the limit", 1, responseOf(atLimit, helloItem, responseUsage),
			`36+87 tokens, 1 events, 10 bytes limit finished complete`},
		{"filtered", 1, responseOf(filtered, "", responseUsage),
			`36+87 tokens, 0 events, 0 bytes abnormal finished complete refused`},
		{"incomplete without a reason", 1, responseOf(`"status":"incomplete"`, helloItem, responseUsage),
			`36+87 tokens, 1 events, 10 bytes abnormal finished complete`},
		{"refusal", 1, responseOf(completed, `{"type":"message","content":[{"type":"refusal","refusal":"No."}]}`, responseUsage),
			`36+87 tokens, 1 events, 3 bytes normal finished complete refused`},
		{"failed", 1, responseOf(failed, "", "null"), `1000+0 tokens, 0 events, 0 bytes abnormal estimated finished failed`},
		{"failed with usage", 1, responseOf(failed, helloItem, responseUsage),
			`36+87 tokens, 1 events, 10 bytes abnormal finished complete failed`},
		{"queued", 1, responseOf(`"status":"queued"`, "", "null"), `1000+0 tokens, 0 events, 0 bytes estimated`},
		{"cancelled", 1, responseOf(`"status":"cancelled"`, helloItem, responseUsage),
			`36+87 tokens, 1 events, 10 bytes abnormal finished complete`},
		{"without status", 1, `{"output":[` + helloItem + `],"usage":` + responseUsage + `}`, `36+87 tokens, 1 events, 10 bytes`},
		{"compacted", 1, `{"object":"response.compaction","output":[{"type":"compaction","encrypted_content":"abc"}],"usage":` +
			responseUsage + `}`, `36+87 tokens, 1 events, 3 bytes`},
		{"error", 1, `{"error":{"message":"x"}}`, `1000+0 tokens, 0 events, 0 bytes estimated failed`},
	})
	r := readAll(t, OpenAIResponses, responseOf(completed, helloItem, responseUsage))
	used, _, _ := r.Used(1, 0)
	if want := (Usage{Input: 36, CachedInput: 9, CacheWrite: 3, Output: 87}); used != want || r.Model != "gpt-5.2" || r.Hidden {
		t.Errorf("got %+v of %q, hidden: %v", used, r.Model, r.Hidden)
	}
}

func TestReusableResponses(t *testing.T) {
	for _, test := range []struct {
		body      string
		want, own bool
	}{
		{responseOf(completed, helloItem, responseUsage), true, true},
		{responseOf(completed, reasoningItem+","+helloItem, responseUsage), true, true},
		{responseOf(atLimit, helloItem, responseUsage), false, true},
		{responseOf(filtered, helloItem, responseUsage), false, false},
		{responseOf(failed, helloItem, responseUsage), false, false},
		{responseOf(completed, helloItem, "null"), false, false},
		{responseOf(`"status":"in_progress"`, helloItem, responseUsage), false, false},
		{responseOf(completed, `{"type":"message","content":[{"type":"refusal","refusal":"No."}]}`, responseUsage), false, false},
	} {
		r := readAll(t, OpenAIResponses, test.body)
		if got, own := r.IsReusable(1, false), r.IsReusable(1, true); got != test.want || own != test.own {
			t.Errorf("%s\nreusable: %v, with the client's own limit: %v", test.body, got, own)
		}
	}
}

// responseEvent returns an event of a stream. It is short, because streams are split at each byte.
func responseEvent(kind, members string) string {
	return "event: " + kind + "\ndata: {\"type\":\"" + kind + `","sequence_number":1,` + members + "}\n\n"
}

// responseEnd returns the event that ends a stream.
func responseEnd(kind, items, usage string) string {
	return responseEvent(kind, `"response":{"id":"resp_1","instructions":"abc","model":"m",`+
		`"output":[`+items+`],"usage":`+usage+`}`)
}

func responseDelta(kind, text string) string {
	return responseEvent("response."+kind+".delta", `"item_id":"msg_1","logprobs":[{"token":"a"}],"delta":"`+text+`"`)
}

func responseStreams() []streamTest {
	const usage = `{"input_tokens":36,"output_tokens":87,"total_tokens":123}`
	created := responseEvent("response.created", `"response":{"id":"resp_1","status":"in_progress","instructions":"abc","usage":null}`)
	added := responseEvent("response.output_item.added", `"item":{"type":"message","id":"msg_1","content":[]}`)
	item := `{"type":"message","id":"msg_1","content":[{"type":"output_text","text":"Hello 😀"}]}`
	hello := []string{
		created, added, responseDelta("output_text", "Hello "), responseDelta("output_text", "😀"),
		responseEvent("response.output_text.done", `"text":"Hello 😀"`),
		responseEvent("response.content_part.done", `"part":{"type":"output_text","text":"Hello 😀"}`),
		responseEvent("response.output_item.done", `"item":`+item),
		responseEnd("response.completed", item, usage),
	}
	failed := responseEvent("response.failed", `"response":{"status":"failed","error":{"code":"x"},"output":[],"usage":%s}`)
	limited := responseEvent("response.incomplete",
		`"response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[],"usage":`+usage+`}`)
	on := func(events []string, more ...string) []string { return append(slices.Clone(events), more...) }
	f := OpenAIResponses
	return []streamTest{
		{"response", f, 1, hello, 0, `36+87 tokens, 2 events, 10 bytes normal done finished complete`},
		{"response, cut", f, 1, hello[:7], 0, `1000+4 tokens, 2 events, 10 bytes estimated`},
		{"response, cut before content", f, 1, hello[:2], 0, `1000+0 tokens, 0 events, 0 bytes estimated`},
		{"response without usage", f, 1, on(hello[:7], responseEnd("response.completed", item, "null")), 0,
			`1000+4 tokens, 2 events, 10 bytes normal estimated done finished`},
		{"response without deltas and usage", f, 1, on(hello[:1], responseEnd("response.completed", item, "null")), 0,
			`1000+4 tokens, 1 events, 10 bytes normal estimated done finished`},
		{"response at its limit", f, 1, on(hello[:3], limited), 0, `36+87 tokens, 1 events, 6 bytes limit done finished complete`},
		{"response that failed", f, 1, on(hello[:1], fmt.Sprintf(failed, "null")), 0,
			`1000+0 tokens, 0 events, 0 bytes abnormal estimated done finished failed`},
		{"response that failed late", f, 1, on(hello[:3], fmt.Sprintf(failed, usage)), 0,
			`36+87 tokens, 1 events, 6 bytes abnormal done finished complete failed`},
		{"response that failed, by its status", f, 1, on(hello[:1], responseEvent("response.done",
			`"response":{"status":"failed","error":null}`)), 0, `1000+0 tokens, 0 events, 0 bytes abnormal estimated finished failed`},
		{"response that failed, by its error", f, 1, on(hello[:1], responseEvent("response.done",
			`"response":{"error":{"code":"x"}}`)), 0, `1000+0 tokens, 0 events, 0 bytes estimated failed`},
		{"response and an error", f, 1, on(hello[:3], "event: error\ndata: {\"type\":\"error\",\"code\":null,\"message\":\"x\"}\n\n"), 0,
			`1000+2 tokens, 1 events, 6 bytes estimated done failed`},
		{"response with items without deltas", f, 1, []string{hello[6], hello[2], hello[6], hello[6]}, 0,
			`1000+9 tokens, 3 events, 26 bytes estimated`},
		{"response that is called", f, 1, []string{responseDelta("function_call_arguments", `{}`), responseDelta("refusal", "No.")}, 0,
			`1000+2 tokens, 2 events, 5 bytes estimated refused`},
	}
}

// What was generated, and cannot be seen in text or in calls of the client's tools, is hidden.
func TestHiddenResponses(t *testing.T) {
	data := func(event string) string {
		return strings.TrimSpace(event[strings.Index(event, "data: ")+len("data: "):])
	}
	added := func(kind string) string {
		return data(responseEvent("response.output_item.added", `"item":{"type":"`+kind+`","id":"x"}`))
	}
	done := func(members string) string {
		return data(responseEvent("response.output_item.done", `"item":{`+members+`}`))
	}
	for _, test := range []struct {
		object string
		bytes  int64
		hidden bool
	}{
		{added("message"), 0, false}, {added("function_call"), 0, false}, {added("custom_tool_call"), 0, false},
		{added("local_shell_call"), 0, false}, {added("apply_patch_call"), 0, false}, {added("computer_call"), 0, false},
		{added("reasoning"), 0, true}, {added("image_generation_call"), 0, true}, {added("web_search_call"), 0, true},
		{added("shell_call"), 0, true}, {added("compaction"), 0, true}, {added("invented"), 0, true},
		{data(responseDelta("output_text", "ab")), 2, false}, {data(responseDelta("refusal", "ab")), 2, false},
		{data(responseDelta("function_call_arguments", "ab")), 2, false}, {data(responseDelta("custom_tool_call_input", "ab")), 2, false},
		{data(responseDelta("reasoning_text", "ab")), 2, true}, {data(responseDelta("reasoning_summary_text", "ab")), 2, true},
		{data(responseDelta("audio", "ab")), 2, true}, {data(responseDelta("mcp_call_arguments", "ab")), 2, true},
		{data(responseDelta("invented", "ab")), 2, true}, {data(responseDelta("invented", "")), 0, false},
		{data(responseEvent("response.image_generation_call.partial_image", `"partial_image_b64":"QUJD"`)), 4, true},
		{data(responseEvent("response.output_text.done", `"text":"ab"`)), 0, false},
		{done(`"type":"message","content":[{"type":"output_text","text":"ab"}]`), 2, false}, // without deltas
		{done(`"type":"function_call","name":"f","arguments":"ab"`), 3, false},
		{`{"item":{"type":"message","content":"ab"}}`, 2, false},
		{data(responseEvent("response.invented", `"item":{"type":"message","content":"ab"}`)), 2, true},
		{added("message")[:len(added("message"))-2] + `,"content":"ab"}}`, 0, false},
		{done(`"type":"reasoning","encrypted_content":"ab"`), 0, true},
		{done(`"type":"local_shell_call","action":{"type":"exec","command":["ab","c"]}`), 3, false},
		{done(`"type":"computer_call","actions":[{"type":"type","text":"ab"}],"pending_safety_checks":[]`), 2, false},
		{done(`"type":"apply_patch_call","operation":{"type":"update_file","diff":"ab"}`), 2, false},
		{done(`"type":"image_generation_call","result":"QUJD"`), 4, true}, {done(`"type":"invented","x":[{"y":"ab"}]`), 2, true},
		{responseOf(completed, `{"type":"function_call","name":"f","namespace":"n","arguments":"ab"}`, "null"), 3, false},
		{responseOf(completed, `{"type":"custom_tool_call","name":"f","input":"ab"}`, "null"), 3, false},
		{responseOf(completed, `{"type":"reasoning","summary":[{"type":"summary_text","text":"ab"}]}`, "null"), 2, true},
		{responseOf(completed, `{"type":"message","content":[{"type":"output_audio","data":"ab"}]}`, "null"), 2, true},
		{responseOf(completed, `{"type":"message","content":[{"type":"output_text","text":"a","annotations":[{"title":"b"}]}]}`, "null"),
			2, false},
	} {
		r := readAll(t, OpenAIResponses, test.object)
		if r.ContentBytes() != test.bytes || r.Hidden != test.hidden || r.ContentEvents != min(1, test.bytes) {
			t.Errorf("%s: got %d bytes in %d events, hidden: %v", test.object, r.ContentBytes(), r.ContentEvents, r.Hidden)
		}
	}
}

// Searches are counted once, and what other models of the provider's have used is used beside the rest.
func TestToolUsage(t *testing.T) {
	search := func(event string) string {
		return `{"type":"response.output_item.` + event + `","item":{"type":"web_search_call","id":"ws_1"}}`
	}
	const two = `{"type":"web_search_call"},{"type":"message"},{"type":"web_search_call"}`
	end := func(members string) string { return `{"type":"response.completed","response":{` + members + `}}` }
	for _, test := range []struct {
		name    string
		objects []string
		want    Usage
	}{
		{"none", []string{responseOf(completed, helloItem, "null")}, Usage{Output: 4}},
		{"items", []string{responseOf(completed, two, "null")}, Usage{Searches: 2}},
		{"more than items", []string{`{"output":[` + two + `],"tool_usage":{"web_search":{"num_requests":3}}}`}, Usage{Searches: 3}},
		{"fewer than items", []string{`{"tool_usage":{"web_search":{"num_requests":1}},"output":[` + two + `]}`}, Usage{Searches: 2}},
		{"events", []string{search("added"), search("done"), search("added"), search("done")}, Usage{Searches: 2}},
		{"ends of events", []string{search("done"), search("done")}, Usage{Searches: 2}},
		{"events and items", []string{search("added"), search("done"), search("added"), end(`"output":[` + two + `]`)},
			Usage{Searches: 2}},
		{"images", []string{`{"tool_usage":{"image_gen":{"input_tokens":5,"input_tokens_details":{"image_tokens":2},` +
			`"output_tokens":7,"output_tokens_details":{"image_tokens":6}},"web_search":{"num_requests":0}},` +
			`"usage":{"input_tokens":100,"output_tokens":200}}`},
			Usage{Input: 105, ImageInput: 2, Output: 207, ImageOutput: 6}},
		{"images in a stream", []string{end(`"usage":{"input_tokens":100,"output_tokens":200},"tool_usage":{"image_gen":` +
			`{"input_tokens":5,"output_tokens":7},"web_search":{"num_requests":4}}`)}, Usage{Input: 105, Output: 207, Searches: 4}},
	} {
		if got, _, _ := readAll(t, OpenAIResponses, test.objects...).Used(1, 0); got != test.want {
			t.Errorf("%s\ngot  %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

// An event of more than 1 MiB that repeats a response adds no content, and says what the response has used.
func TestLongResponses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2200<<10)
	created := responseEvent("response.created", `"response":{"id":"resp_1","instructions":"`+long+`","usage":null}`)
	item := `{"type":"message","id":"msg_1","content":[{"type":"output_text","text":"` + long + `"}]}`
	items := strings.Repeat(`{"type":"message","id":"msg_1","content":[]},`, 60_000)
	hello := responseDelta("output_text", "Hello!")
	usage := `{"input_tokens":36,"output_tokens":87}`
	failure := responseEvent("response.failed", `"response":{"status":"failed","instructions":"`+long+`","usage":null}`)
	for _, test := range []struct {
		name, stream, want string
		id                 string
	}{
		{"instructions", created + hello, `1000+2 tokens, 1 events, 6 bytes estimated unread`, "resp_1"},
		{"completed", hello + responseEnd("response.completed", item, usage),
			`36+87 tokens, %d events, %d bytes normal done finished complete unread`, "resp_1"},
		{"many items", hello + responseEnd("response.completed", items+helloItem, usage),
			`36+87 tokens, %d events, %d bytes normal done finished complete unread`, "resp_1"},
		{"instructions at the end", created + hello + strings.Replace(created, `.created"`, `.completed"`, 1),
			`1000+2 tokens, 1 events, 6 bytes normal estimated done finished unread`, "resp_1"},
		{"item", responseDelta("image_generation_call.partial", "Hello!") + responseEvent("response.output_item.done",
			`"item":{"type":"image_generation_call","id":"ig_1","result":"`+long+`"}`) + responseEnd("response.completed", item, usage),
			`36+87 tokens, %d events, %d bytes normal done finished complete unread`, "resp_1"},
		{"failed at once", created + failure, `1000+0 tokens, 0 events, 0 bytes abnormal estimated done finished failed unread`, "resp_1"},
	} {
		for _, size := range []int{999, 4 << 20} {
			s := &Stream{Report: Report{Format: OpenAIResponses}}
			var ends []int
			for at := size; at < len(test.stream); at += size {
				ends = append(ends, at)
			}
			if got := relay(s, []byte(test.stream), ends...); string(got) != test.stream {
				t.Errorf("%s: it became %.300q", test.name, got)
			}
			want := test.want
			if strings.Contains(want, "%d") { // without deltas, the output is the content
				want = fmt.Sprintf(want, s.Report.ContentEvents, s.Report.contentBytes)
			}
			if got := s.Report.summary(1); got != want || s.Report.ResponseID != test.id || s.Report.ContentEvents > 1 {
				t.Errorf("%s, %d at a time: %s\ngot  %s\nwant %s", test.name, size, s.Report.ResponseID, got, want)
			}
		}
	}
	s := &Stream{Report: Report{Format: OpenAIResponses}}
	relay(s, []byte(responseEnd("response.completed", item, "null")))
	if used, _, exact := s.Report.Used(1, 0); exact || used.Output < int64(len(long))/3 || s.Report.IsFailure() {
		t.Errorf("a response without deltas and usage has used %+v, exact: %v", used, exact)
	}
}

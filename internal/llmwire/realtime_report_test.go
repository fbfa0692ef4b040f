package llmwire

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// readRealtime reads an event of the provider as a gateway does, in parts of the given size.
func readRealtime(r *RealtimeReport, event string, size int) (RealtimeEvent, RealtimeAction) {
	action := HoldEvent
	for part := range slices.Chunk([]byte(event), size) {
		action = r.Read(part)
	}
	if action == ReadEvent {
		return r.End([]byte(event)), action
	}
	return r.End(nil), action
}

// wantRealtime reads events in parts of several sizes, and compares what is known of the last one and after it.
func wantRealtime(t *testing.T, events []string, want RealtimeEvent, unfinished ...UnfinishedResponse) {
	t.Helper()
	for _, size := range []int{1, 7, 1 << 20} {
		var r RealtimeReport
		var got RealtimeEvent
		for _, event := range events {
			got, _ = readRealtime(&r, event, size)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%.200s, %d at a time\ngot  %+v\nwant %+v", events, size, got, want)
		}
		if all := r.Unfinished(); !reflect.DeepEqual(all, unfinished) || r.Responding() != len(unfinished) {
			t.Errorf("%.200s, %d at a time\ngot  %+v\nwant %+v", events, size, all, unfinished)
		}
	}
}

const (
	realtimeCreated = `{"type":"response.created","event_id":"e","response":{"id":"r","status":"in_progress","usage":null}}`
	realtimeFull    = `{"total_tokens":253,"input_tokens":132,"output_tokens":121,` +
		`"input_token_details":{"text_tokens":99,"audio_tokens":23,"image_tokens":10,"cached_tokens":64,` +
		`"cached_tokens_details":{"text_tokens":51,"audio_tokens":9,"image_tokens":4}},` +
		`"output_token_details":{"text_tokens":30,"audio_tokens":91}}`
)

func realtimeDone(status, usage string) string {
	return `{"event_id":"e","response":{"output":[{"usage":{"input_tokens":9}}],"usage":` + usage + `,"status":"` + status +
		`","id":"r"},"type":"response.done"}`
}

func TestRealtimeUsage(t *testing.T) {
	for usage, want := range map[string]Usage{
		realtimeFull: {Input: 132, CachedInput: 55, AudioInput: 14, CachedAudioInput: 9, ImageInput: 6, Output: 121, AudioOutput: 91},
		`{"input_tokens":132,"output_tokens":121}`: {Input: 132, Output: 121},
		`{"input_tokens":132,"output_tokens":121,"input_token_details":{"audio_tokens":13},"output_token_details":{"text_tokens":30}}`: {
			Input: 132, AudioInput: 13, Output: 121},
		`{"input_tokens":10,"output_tokens":1,"input_token_details":{"audio_tokens":10,"cached_tokens":4}}`: {
			Input: 10, CachedInput: 4, AudioInput: 10, Output: 1},
		`{"input_tokens":10,"output_tokens":1,"input_token_details":{"audio_tokens":10,"cached_tokens_details":{"audio_tokens":4}}}`: {
			Input: 10, AudioInput: 10, Output: 1},
		`{"input_token_details":{"text_tokens":5,"audio_tokens":6,"image_tokens":7},"output_token_details":{"text_tokens":1,"audio_tokens":2}}`: {
			Input: 18, AudioInput: 6, ImageInput: 7, Output: 3, AudioOutput: 2},
		`{"input_tokens":0,"output_tokens":0,"total_tokens":0}`:                     {},
		`{"input_tokens":7,"total_tokens":9}`:                                       {Input: 7, Output: 2},
		`{"total_tokens":9}`:                                                        {Output: 9},
		`{"input_tokens":7,"output_tokens":2,"input_tokens":8}`:                     {Input: 8, Output: 2},
		`{"input_tokens":1e99,"output_tokens":2,"input_token_details":null}`:        {Input: MaxTokens, Output: 2},
		`{"input_\u0074okens":7,"output_tokens":2,"output_token_details":[]}`:       {Input: 7, Output: 2},
		`{"input_tokens":"7","output_tokens":2.5,"input_token_details":{"x":[{}]}}`: {Input: 7, Output: 3},
	} {
		for _, status := range []string{"completed", "cancelled", "failed", "incomplete"} {
			wantRealtime(t, []string{realtimeCreated, realtimeDone(status, usage)},
				RealtimeEvent{Kind: ResponseDone, ID: "r", Usage: want})
		}
	}
}

func TestRealtimeEstimates(t *testing.T) {
	delta := func(kind, id, delta string) string {
		return `{"type":"response.` + kind + `.delta","response_id":"` + id + `","delta":"` + delta + `"}`
	}
	sound := delta("output_audio", "r", strings.Repeat("AAAA", 8001)) // 24,003 bytes
	text := delta("output_audio_transcript", "r", `\n\u00e9\ud83d\ude00`)
	estimates := func(input Usage, text, sound int64) []Usage {
		ofText, ofSound := input, input
		ofText.Output, ofSound.Output, ofSound.AudioOutput = text, sound, sound
		return []Usage{ofText, ofSound}
	}
	format := func(kind string) string {
		return `{"type":"session.updated","session":{"audio":{"output":{"format":{"type":"` + kind + `"}}}}}`
	}
	other := strings.Replace(realtimeCreated, `"r"`, `"other"`, 1)
	full := Usage{Input: 132, CachedInput: 55, AudioInput: 14, CachedAudioInput: 9, ImageInput: 6}
	for name, test := range map[string]struct {
		events []string
		want   []UnfinishedResponse
	}{
		"begun":    {[]string{realtimeCreated}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 0)}}},
		"sound":    {[]string{realtimeCreated, sound}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 11)}}},
		"no begin": {[]string{sound}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 11)}}},
		"text":     {[]string{realtimeCreated, text, text}, []UnfinishedResponse{{"r", estimates(Usage{}, 5, 0)}}},
		"call": {[]string{realtimeCreated, delta("function_call_arguments", "r", "{}"), delta("output_text", "r", "abc"), sound},
			[]UnfinishedResponse{{"r", estimates(Usage{}, 2, 11)}}},
		"beta names": {[]string{realtimeCreated, delta("audio", "r", "AAAAAAAA"), delta("audio_transcript", "r", "abc")},
			[]UnfinishedResponse{{"r", estimates(Usage{}, 1, 1)}}},
		"not generated": {[]string{realtimeCreated, `{"type":"conversation.item.input_audio_transcription.delta","delta":"abc"}`,
			`{"type":"response.output_audio.done","response_id":"r","delta":"abc"}`}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 0)}}},
		"after another": {[]string{realtimeCreated, sound, realtimeDone("completed", realtimeFull), realtimeCreated, text},
			[]UnfinishedResponse{{"r", estimates(full, 3, 0)}}},
		"after one without input": {[]string{realtimeCreated, realtimeDone("completed", realtimeFull), realtimeCreated,
			realtimeDone("cancelled", `{"input_tokens":0,"output_tokens":0}`), realtimeCreated},
			[]UnfinishedResponse{{"r", estimates(full, 0, 0)}}},
		"two": {[]string{other, realtimeCreated, sound, delta("output_text", "other", "abc")},
			[]UnfinishedResponse{{"other", estimates(Usage{}, 1, 0)}, {"r", estimates(Usage{}, 0, 11)}}},
		"no ID": {[]string{other, realtimeCreated, delta("output_text", "", "abc")},
			[]UnfinishedResponse{{"other", estimates(Usage{}, 0, 0)}, {"r", estimates(Usage{}, 1, 0)}}},
		"G.711": {[]string{format("audio/pcmu"), realtimeCreated, sound}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 61)}}},
		"its format": {[]string{strings.Replace(realtimeCreated, `"id"`, `"audio":{"output":{"format":{"type":"audio/pcma"}}},"id"`, 1), sound},
			[]UnfinishedResponse{{"r", estimates(Usage{}, 0, 61)}}},
		"new format": {[]string{format("audio/x"), realtimeCreated, sound}, []UnfinishedResponse{{"r", estimates(Usage{}, 0, 61)}}},
		"PCM": {[]string{format("audio/pcmu"), format("audio/pcm"), realtimeCreated, sound},
			[]UnfinishedResponse{{"r", estimates(Usage{}, 0, 11)}}},
		"delta first": {[]string{realtimeCreated, `{"delta":"abcd","response_id":"r","type":"response.output_text.delta"}`},
			[]UnfinishedResponse{{"r", estimates(Usage{}, 2, 0)}}},
	} {
		t.Run(name, func(t *testing.T) {
			last := test.events[len(test.events)-1]
			want := RealtimeEvent{}
			if last == realtimeCreated {
				want = RealtimeEvent{Kind: ResponseCreated, ID: "r"}
			}
			wantRealtime(t, test.events, want, test.want...)
			for _, usage := range []string{"null", "{}", `"x"`, `{"input_tokens":null}`, `{"output_tokens":-1}`} {
				if len(test.want) == 1 {
					wantRealtime(t, append(slices.Clone(test.events), realtimeDone("failed", usage)),
						RealtimeEvent{Kind: ResponseDone, ID: "r", Estimates: test.want[0].Estimates})
				}
			}
		})
	}
}

func TestRealtimeEvents(t *testing.T) {
	const done = `{"type":"conversation.item.input_audio_transcription.completed","item_id":"i","transcript":"abc\n","usage":`
	for event, want := range map[string]RealtimeEvent{
		`{"type":"session.created","session":{"model":"m","max_output_tokens":"inf"}}`: {Kind: SessionCreated, Model: "m"},
		`{"session":{"model":"m","max_output_tokens":9},"type":"session.updated"}`:     {Kind: SessionUpdated, Model: "m"},
		`{"type":"error","error":{"type":"t","code":"c","message":"m\n","event_id":"e"}}`: {
			Kind: RealtimeErrorEvent, ErrorEventID: "e", ErrorCode: "c"},
		`{"type":"error","error":{"type":null,"code":5}}`: {Kind: RealtimeErrorEvent},
		`{"type":"response.done","response":{"id":"x","status":"failed","status_details":{"error":{"type":"t","code":"c"}},` +
			`"usage":{"input_tokens":1,"output_tokens":0}}}`: {
			Kind: ResponseDone, ID: "x", Usage: Usage{Input: 1}},
		done + `{"type":"tokens","input_tokens":9,"output_tokens":4,"total_tokens":13,` +
			`"input_token_details":{"text_tokens":2,"audio_tokens":7}}}`: {
			Kind: InputTranscribed, Usage: Usage{Input: 9, AudioInput: 7, Output: 4}},
		done + `{"type":"tokens","input_tokens":9,"output_tokens":4}}`: {Kind: InputTranscribed, Usage: Usage{Input: 9, Output: 4}},
		done + `{"type":"duration","seconds":2.4}}`:                    {Kind: InputTranscribed, Duration: 2400 * time.Millisecond},
		done + `{"type":"duration","seconds":1e300}}`:                  {Kind: InputTranscribed, Duration: 24 * time.Hour},
		done + `{"type":"duration","seconds":0}}`:                      {Kind: InputTranscribed},
		done + `{"type":"duration","seconds":-1}}`: {
			Kind: InputTranscribed, Estimates: []Usage{{Input: 4, AudioInput: 4, Output: 2}}},
		done + `null}`: {Kind: InputTranscribed, Estimates: []Usage{{Input: 4, AudioInput: 4, Output: 2}}},
		strings.Replace(done, `"transcript"`, `"x"`, 1) + `null}`: {Kind: InputTranscribed,
			Estimates: []Usage{{Input: 103, AudioInput: 103, Output: 35}}},
		`{"type":"conversation.item.input_audio_transcription.failed","usage":{"input_tokens":1}}`: {},
	} {
		wantRealtime(t, []string{event}, want)
	}
}

// What is done with an event is known with its type, and does not depend on its parts.
func TestRealtimeActions(t *testing.T) {
	long := strings.Repeat("a", maxUntyped)
	for event, want := range map[string]RealtimeAction{
		`{"type":"rate_limits.updated","rate_limits":[]}`:                                   DropEvent,
		`{"rate_limits":[{"type":"response.done"}],"\u0074ype":"rate_limits\u002eupdated"}`: DropEvent,
		`{"type":"response.output_audio.delta","delta":"AAAA"}`:                             PassEvent,
		`{"type":"x"}`:                        PassEvent,
		`{"type":5,"x":{"type":"error"}}`:     HoldEvent,
		`{}`:                                  HoldEvent,
		`{"type":"error"`:                     ReadEvent,
		`{"type":"error",}`:                   PassEvent,
		`[]`:                                  PassEvent,
		`{"x":"` + long + `"}`:                PassEvent,
		`{"type":"error","x":"` + long + `"}`: ReadEvent,
		`{"type":"error","x":"` + strings.Repeat("a", maxProviderEvent) + `"}`: PassEvent,
		`{"type":"error","type":"rate_limits.updated"}`:                        ReadEvent,
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			if size > 1 || len(event) < 1<<20 {
				if _, got := readRealtime(new(RealtimeReport), event, size); got != want {
					t.Errorf("%.100s, %d at a time: %d, want %d", event, size, got, want)
				}
			}
		}
	}
}

// A response ends even if its events are too long to be read, or not valid.
func TestRealtimeLost(t *testing.T) {
	pad := `,"x":"` + strings.Repeat("a", maxProviderEvent) + `"}`
	long := func(event string) string { return strings.TrimSuffix(event, "}") + pad }
	done := `{"type":"response.done","response":{"id":"r","usage":` + realtimeFull + `}}`
	for name, events := range map[string][]string{
		"both too long": {long(realtimeCreated), long(done)},
		"begin":         {long(realtimeCreated), done},
		"end":           {realtimeCreated, long(done)},
		"not valid":     {realtimeCreated, strings.TrimSuffix(done, "}") + ",}"},
		"no usage":      {realtimeCreated, `{"type":"response.done"}`},
	} {
		var r RealtimeReport
		var got RealtimeEvent
		for _, event := range events {
			got, _ = readRealtime(&r, event, 1<<16)
		}
		if isExact := name == "begin"; got.Kind != ResponseDone || r.Responding() > 0 || (got.Estimates == nil) != isExact {
			t.Errorf("%s: %+v, responding %d", name, got, r.Responding())
		}
	}
}

// A provider cannot make the report grow.
func TestRealtimeBounds(t *testing.T) {
	var r RealtimeReport
	for i := range 10_000 {
		event := fmt.Sprintf(`{"type":"response.created","response":{"id":"%d"}}`, i)
		r.Read([]byte(event))
		r.End([]byte(event))
	}
	if n := len(r.Unfinished()); n != maxUnfinished {
		t.Errorf("%d responses, want %d", n, maxUnfinished)
	}
	var input RealtimeReport
	readRealtime(&input, realtimeDone("completed", realtimeFull), 100)
	if want := (Usage{Input: 132, CachedInput: 55, AudioInput: 14, CachedAudioInput: 9, ImageInput: 6}); input.LastInput() != want {
		t.Errorf("got %+v, want %+v", input.LastInput(), want)
	}
}

func TestRealtimeReportAllocations(t *testing.T) {
	var r RealtimeReport
	readRealtime(&r, realtimeCreated, 100)
	event := `{"type":"response.output_audio.delta","event_id":"e","response_id":"r","delta":"` + strings.Repeat("AAAA", 1000) + `"}`
	parts := slices.Collect(slices.Chunk([]byte(event), 100))
	n := testing.AllocsPerRun(10, func() {
		for _, part := range parts {
			r.Read(part)
		}
		r.End(nil)
	})
	if n > 0 || r.Unfinished()[0].Estimates[1].AudioOutput != 14 { // 11 × 3,000 bytes
		t.Errorf("%v allocations, %+v", n, r.Unfinished())
	}
}

func FuzzRealtimeReport(f *testing.F) {
	for _, event := range []string{realtimeCreated, realtimeDone("completed", realtimeFull), `{"type":"rate_limits.updated"}`} {
		f.Add([]byte(event), 3)
	}
	f.Fuzz(func(t *testing.T, event []byte, size int) {
		var whole, parts RealtimeReport
		want, wantAction := readRealtime(&whole, string(event), max(1, len(event)))
		got, action := readRealtime(&parts, string(event), max(1, size&0xff))
		if !reflect.DeepEqual(got, want) || action != wantAction {
			t.Fatalf("%q\ngot  %+v %d\nwant %+v %d", event, got, action, want, wantAction)
		}
		for _, n := range got.Usage.counts() {
			if *n < 0 || *n > MaxTokens {
				t.Fatalf("%q: %+v", event, got.Usage)
			}
		}
	})
}

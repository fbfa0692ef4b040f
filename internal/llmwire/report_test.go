package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

// summary is what the tests compare of a report on a response with n choices.
func (r *Report) summary(n int64) string {
	used, _, exact := r.Used(n, 1000)
	s := fmt.Sprintf("%d+%d tokens, %d events, %d bytes", used.Input, used.Output, r.ContentEvents, r.contentBytes)
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"normal", r.worst == endedNormally}, {"limit", r.worst == endedAtLimit}, {"abnormal", r.worst == endedAbnormally},
		{"estimated", !exact}, {"done", r.Done}, {"finished", r.HasFinished(n)}, {"complete", r.isComplete(n)},
		{"failed", r.Failed}, {"refused", r.refused}, {"unread", r.Unread},
	} {
		if flag.on {
			s += " " + flag.name
		}
	}
	return s
}

// isComplete reports whether the response with n choices has ended and its usage is known.
func (r *Report) isComplete(n int64) bool {
	return r.IsFinal(n) && (r.Done || r.HasFinished(n))
}

// A responseTest is a response that is not streamed, with n choices, and the summary of its report.
type responseTest struct {
	name string
	n    int64
	body string
	want string
}

func checkResponses(t *testing.T, format Format, tests []responseTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := Report{Format: format}
			if _, err := r.Read([]byte(test.body)); err != nil {
				t.Fatalf("%.1000s: %v", test.body, err)
			}
			if got := r.summary(test.n); got != test.want {
				t.Errorf("%.1000s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
}

// What cannot be read is an error. An object that is only nested too deep has an error of its own.
func TestNoResponses(t *testing.T) {
	deep := strings.Repeat("[", maxJSONDepth) + strings.Repeat("]", maxJSONDepth)
	for body, tooDeep := range map[string]bool{
		``: false, `[]`: false, `null`: false, `"x"`: false, `{"id":"chatcmpl-1","choices":[{"index":0`: false,
		`<html>`: false, `{}{}`: false,
		` {"choices":` + deep + `}`: true, `{"x":` + deep + `}`: true, `[` + deep + `]`: false, `{"choices":` + deep: false,
	} {
		for _, format := range textFormats {
			r := Report{Format: Format(format)}
			if _, err := r.Read([]byte(body)); err == nil || (err == ErrTooDeep) != tooDeep || !r.Unread {
				t.Errorf("%s was read with %v, unread: %v", body, err, r.Unread)
			}
		}
	}
}

func TestReusable(t *testing.T) {
	const usage = `,"usage":{"prompt_tokens":1,"completion_tokens":1}`
	stops := func(reasons ...string) string {
		choices := ""
		for i, reason := range reasons {
			choices += fmt.Sprintf(`,{"index":%d,"message":{"content":"a"},"finish_reason":%q}`, i, reason)
		}
		return `{"choices":[` + choices[1:] + `]`
	}
	for _, test := range []struct {
		name, body string
		n          int64
		want, own  bool // own: if the client has set the limit itself
	}{
		{"stop", stops("stop") + usage, 1, true, true},
		{"tool_calls", stops("tool_calls") + usage, 1, true, true},
		{"end_turn", stops("end_turn") + usage, 1, true, true},
		{"tool_use", stops("tool_use") + usage, 1, true, true},
		{"stop_sequence", stops("stop_sequence") + usage, 1, true, true},
		{"length", stops("length") + usage, 1, false, true},
		{"max_tokens", stops("max_tokens") + usage, 1, false, true},
		{"content_filter", stops("content_filter") + usage, 1, false, false},
		{"refusal", stops("refusal") + usage, 1, false, false},
		{"function_call", stops("function_call") + usage, 1, false, false},
		{"pause_turn", stops("pause_turn") + usage, 1, false, false},
		{"error", stops("error") + usage, 1, false, false},
		{"no reason", stops("") + usage, 1, false, false},
		{"all choices", stops("stop", "tool_calls") + usage, 2, true, true},
		{"one of two", stops("stop") + usage, 2, false, false},
		{"one at the limit", stops("length", "stop") + usage, 2, false, true},
		{"another at the limit", stops("stop", "length") + usage, 2, false, true},
		{"one filtered", stops("content_filter", "stop") + usage, 2, false, false},
		{"another filtered", stops("stop", "content_filter") + usage, 2, false, false},
		{"no usage", stops("stop"), 1, false, false},
		{"half a usage", stops("stop") + `,"usage":{"prompt_tokens":1}`, 1, false, false},
		{"the other half", stops("stop") + `,"usage":{"completion_tokens":1}`, 1, false, false},
		{"failed", stops("stop") + usage + `,"error":{}`, 1, false, false},
		{"refused", `{"choices":[{"message":{"refusal":"No."},"finish_reason":"stop"}]` + usage, 1, false, false},
	} {
		r := new(Report)
		if _, err := r.Read([]byte(test.body + "}")); err != nil {
			t.Fatalf("%s: %v", test.body, err)
		}
		if got, own := r.IsReusable(test.n, false), r.IsReusable(test.n, true); got != test.want || own != test.own {
			t.Errorf("%s: reusable: %v, with the client's own limit: %v", test.name, got, own)
		}
		if r.Unread = true; r.IsReusable(test.n, true) {
			t.Errorf("%s: reusable, though a part was not read", test.name)
		}
	}
}

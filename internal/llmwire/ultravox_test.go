package llmwire

import (
	"errors"
	"strings"
	"testing"
)

// ultravoxMessages are messages that clients may send, by type, with members that may be left out.
var ultravoxMessages = []struct{ kind, members string }{
	{"ping", `"timestamp":1.5`},
	{"ping", ""},
	{"user_text_message", `"text":"Hi","urgency":"soon"`},
	{"user_text_message", `"text":"","deferResponse":true`},
	{"set_output_medium", `"medium":"text"`},
	{"forced_agent_message", `"content":"Hello","uninterruptible":true,"urgency":"immediate"`},
	{"hang_up", ""},
	{"hang_up", `"message":"Bye \ud800"`},
	{"client_tool_result", `"invocationId":"i","result":"{\"type\":\"spawn_thread\"}","agentReaction":"speaks"`},
	{"client_tool_result", `"invocationId":"i","responseType":"tool-response","errorType":null,"errorMessage":"x"`},
	{"client_tool_result", `"invocationId":"i","responseType":"hang-up","updateCallState":{"type":["spawn_thread"],"type":1}`},
	{"client_tool_result", `"invocationId":"i","responseType":null`},
}

func TestCheckUltravox(t *testing.T) {
	for _, test := range ultravoxMessages {
		for name, message := range eventSpellings(test.kind, test.members) {
			if err := CheckUltravox([]byte(message)); err != nil {
				t.Errorf("%s: %s was refused: %v", name, message, err)
			}
		}
		for name, message := range eventForgeries(test.kind, test.members) {
			if err := CheckUltravox([]byte(message)); err == nil {
				t.Errorf("%s: %s was not refused", name, message)
			}
		}
	}
}

// What costs more than time, or is not known, is refused however it is spelled.
func TestUltravoxRefusals(t *testing.T) {
	for _, test := range []struct{ kind, members, code, param string }{
		{"spawn_thread", "", "unknown_event", "type"},
		{"spawn_thread", `"text":"x"`, "unknown_event", "type"},
		{"spawn_thread", `"prompt":"x"`, "unknown_parameter", ""},
		{"call_started", "", "unknown_event", "type"},
		{"input_text_message", `"text":"x"`, "unknown_event", "type"},
		{"data_connection_tool_result", `"invocationId":"i"`, "unknown_event", "type"},
		{"", "", "unknown_event", "type"},
		{"forced_agent_message", `"content":"","toolCalls":[{"name":"t"}]`, "unknown_parameter", ""},
		{"forced_agent_message", `"content":"","TOOLCALLS":[]`, "unknown_parameter", ""},
		{"ping", `"text":"x"`, "unknown_parameter", "text"},
		{"ping", `"timestamp":1,"timestamp":2`, "invalid_value", "timestamp"},
		{"ping", `"timestamp":1,"time\u0073tamp":2`, "invalid_value", "timestamp"},
		{"client_tool_result", `"responseType":"new-stage","result":"{}"`, "invalid_value", "responseType"},
		{"client_tool_result", `"responseType":"new-st\u0061ge"`, "invalid_value", "responseType"},
		{"client_tool_result", `"responseType":["tool-response"]`, "invalid_value", "responseType"},
		{"client_tool_result", `"responseType":"tool-response","responseType":"new-stage"`, "invalid_value", "responseType"},
		{"client_tool_result", `"response_type":"new-stage"`, "unknown_parameter", ""},
	} {
		for name, message := range eventSpellings(test.kind, test.members) {
			wantUltravoxRefusal(t, name+": "+message, message, test.code, test.param)
		}
	}
	for name, message := range map[string]string{
		"nothing": "", "no object": `"ping"`, "array": `[]`, "null": `null`, "truncated": `{"type":"ping"`,
		"bad UTF-8": "{\"type\":\"hang_up\",\"message\":\"\xff\"}", "no type": `{}`, "type null": `{"type":null}`,
		"deep": `{"type":"client_tool_result","updateCallState":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`,
	} {
		code, param := "invalid_json", ""
		if strings.HasSuffix(name, "type") || name == "type null" {
			code, param = "unknown_event", "type"
		}
		wantUltravoxRefusal(t, name, message, code, param)
	}
}

func wantUltravoxRefusal(t *testing.T, name, message, code, param string) {
	t.Helper()
	refusal, ok := errors.AsType[*RealtimeError](CheckUltravox([]byte(message)))
	if !ok || refusal.Code != code || refusal.Param != param || !strings.HasSuffix(refusal.Message, ".") {
		t.Errorf("%s: got %+v, want %s of %q", name, refusal, code, param)
	}
}

// Members of all messages together are few, so a message takes time in proportion to its length.
func TestLinearUltravox(t *testing.T) {
	const start, end = `{"type":"client_tool_result","updateCallState":`, `}`
	for name, value := range map[string]string{
		"objects": "[" + strings.Repeat(`{"type":"a"},`, 5000) + "0]", "escapes": `"` + strings.Repeat(`\u0061`, 10_000) + `"`,
		"names": `{` + strings.Repeat(`"\u0061":1,`, 5000) + `"b":1}`,
	} {
		message := []byte(start + value + end)
		if n := testing.AllocsPerRun(10, func() { _ = CheckUltravox(message) }); n > 20 || CheckUltravox(message) != nil {
			t.Errorf("%s: %v allocations, %v", name, n, CheckUltravox(message))
		}
	}
}

// scanUltravox reads messages in parts of the given size, and returns after which of them the call has started.
func scanUltravox(messages []string, size int) int {
	var s UltravoxScan
	for i, message := range messages {
		for at := 0; at < len(message); at += size {
			end := min(at+size, len(message))
			if s.Read([]byte(message[at:end]), end == len(message)) {
				return i
			}
		}
	}
	return -1
}

func TestUltravoxScan(t *testing.T) {
	const started = `{"type":"call_started","callId":"c"}`
	long := `"` + strings.Repeat("x", 10_000) + `"`
	for _, test := range []struct {
		messages []string
		want     int
	}{
		{[]string{started}, 0},
		{[]string{`{"type":"state","state":"idle"}`, started}, 1},
		{[]string{`{"callId":` + long + `,"x":{"type":"state"},"type":"call_started"}`}, 0},
		{[]string{`{"` + escapeAll("type") + `":"` + escapeAll("call_started") + `"}`}, 0},
		{[]string{`{"type":"state","type":"call_started"}`}, 0}, // it is held at its dearest
		{[]string{`{"type":"call_started","type":"state"}`}, 0},
		{[]string{`{"type":"call_started"`}, 0}, // it is not complete, but what else can it be?
		{[]string{`{"type":`, started}, 1},      // a message that is not valid ends with its last part
		{[]string{`{"a":"b}`, `x`, `[]`, started}, 3},
		{[]string{`{"x":{"type":"call_started"}}`, `{"x":["type","call_started"]}`, `["type","call_started"]`}, -1},
		{[]string{`{"x":"call_started"}`, `{"type":{"type":"call_started"}}`, `{"type":["call_started"]}`}, -1},
		{[]string{`{"type":1,"x":"call_started"}`, `{"type":"call_started` + strings.Repeat(" ", 300) + `"}`}, -1},
		{[]string{`{"Type":"call_started"}`, `{"type":"CALL_STARTED"}`, `{"type":"call_started\ud800"}`}, -1},
	} {
		for _, size := range []int{1, 2, 7, 1000, 100_000} {
			if got := scanUltravox(test.messages, size); got != test.want {
				t.Errorf("%.200q, %d at a time: got %d, want %d", test.messages, size, got, test.want)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { scanUltravox([]string{`{"t\u0079pe":"state"}`, started}, 7) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

package llmwire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

var testRealtimeRules = RealtimeRules{Model: "gpt-realtime", Alias: "voice", Limit: 4096, Default: 1000}

// A relayedEvent is what becomes of an event of a client.
type relayedEvent struct {
	passed  string // to the provider
	early   int    // bytes of that, before the event was complete
	refusal *RealtimeError
	tooLong bool
}

// relayEvent does with an event what a gateway does with one that comes in parts of the given size.
func relayEvent(t *testing.T, event string, size int) (to relayedEvent) {
	t.Helper()
	var s RealtimeScan
	var err error
	var action RealtimeAction
	for at := 0; at < len(event) && err == nil; at += size {
		action, err = s.Read([]byte(event[at:min(at+size, len(event))]))
		if released := int(s.Released()); err == nil {
			if released < to.early || released > at+size || strings.HasSuffix(event[:released], "}") && json.Valid([]byte(event[:released])) {
				t.Errorf("%.200q, %d at a time: %d bytes are released after %d", event, size, released, to.early)
			}
			to.early = released
		}
	}
	if err == nil {
		action, err = s.End()
	}
	to.passed = event[:to.early]
	if err != nil && s.Released() != 0 {
		t.Errorf("%.200q: %d bytes are released after %v", event, s.Released(), err)
	}
	if err == nil && action == PassEvent {
		to.passed = event
	} else if err == nil && action == ReadEvent {
		var request *RealtimeRequest
		if request, err = testRealtimeRules.Read([]byte(event)); err == nil {
			to.passed = string(bytes.Join(request.Pieces, nil))
		}
	} else if err == nil {
		t.Errorf("%.200q: action %d", event, action)
	}
	to.tooLong = errors.Is(err, ErrEventTooLong)
	if !errors.As(err, &to.refusal) && err != nil && !to.tooLong {
		t.Errorf("%.200q: %v is not a RealtimeError", event, err)
	}
	return to
}

// relayEverywhere returns what becomes of an event, which must not depend on the size of its parts.
func relayEverywhere(t *testing.T, event string) relayedEvent {
	t.Helper()
	whole := relayEvent(t, event, len(event))
	for _, size := range []int{1, 2, 7, 1000} {
		if size == 1 && len(event) > 1<<18 {
			continue
		}
		got := relayEvent(t, event, size)
		if (got.refusal == nil) != (whole.refusal == nil) || got.tooLong != whole.tooLong ||
			got.refusal != nil && *got.refusal != *whole.refusal || got.refusal == nil && !got.tooLong && got.passed != whole.passed {
			t.Errorf("%.200q, %d at a time\ngot  %.200q %+v\nwant %.200q %+v", event, size, got.passed, got.refusal, whole.passed, whole.refusal)
		}
		whole.early = max(whole.early, got.early)
	}
	return whole
}

// escapeAll spells a string in escapes alone.
func escapeAll(text string) string {
	var spelled strings.Builder
	for _, c := range []byte(text) {
		fmt.Fprintf(&spelled, `\u%04X`, c)
	}
	return spelled.String()
}

// eventSpellings returns spellings of an event that mean the same, by name.
func eventSpellings(kind, members string) map[string]string {
	comma := ","
	if members == "" {
		comma = ""
	}
	return map[string]string{
		"type first":   `{"type":"` + kind + `"` + comma + members + `}`,
		"type last":    `{` + members + comma + `"type":"` + kind + `"}`,
		"type escaped": `{"` + escapeAll("type") + `":"` + escapeAll(kind) + `"` + comma + members + `}`,
		"spaces":       " {\n\"type\" :\t\"" + kind + "\"\r\n" + comma + " " + members + " } \n",
	}
}

// eventForgeries returns events that some parsers take for the one of a type.
func eventForgeries(kind, members string) map[string]string {
	if members != "" {
		members = "," + members
	}
	forgeries := map[string]string{
		"type twice":      `{"type":"` + kind + `"` + members + `,"type":"` + kind + `"}`,
		"type twice, esc": `{"type":"` + kind + `"` + members + `,"t\u0079pe":"` + kind + `"}`,
		"case":            `{"type":"` + kind + `"` + members + `,"Type":"` + kind + `"}`,
		"case alone":      `{"Type":"` + kind + `"` + members + `}`,
		"no string":       `{"type":["` + kind + `"]` + members + `}`,
		"null":            `{"type":null` + members + `}`,
		"case of type":    `{"type":"` + strings.ToUpper(kind) + `"` + members + `}`,
		"longer type":     `{"type":"` + kind + ` "` + members + `}`,
		"half surrogate":  `{"type":"` + kind + `\ud800"` + members + `}`,
		"array":           `[{"type":"` + kind + `"` + members + `}]`,
		"two objects":     `{"type":"` + kind + `"` + members + `}{}`,
		"no end":          `{"type":"` + kind + `"` + members,
		"comma":           `{"type":"` + kind + `"` + members + `,}`,
		"mark":            "\ufeff" + `{"type":"` + kind + `"` + members + `}`,
	}
	for _, other := range []string{"input_audio_buffer.append", "session.update", "response.create", "x"} {
		if other != kind {
			forgeries["after "+other] = `{"type":"` + other + `"` + members + `,"type":"` + kind + `"}`
			forgeries["before "+other] = `{"type":"` + kind + `"` + members + `,"type":"` + other + `"}`
		}
	}
	return forgeries
}

// wantRefused reports an event that is not refused in every spelling, and a forgery of it that is.
func wantRefused(t *testing.T, kind, members string) {
	t.Helper()
	for name, event := range eventSpellings(kind, members) {
		if got := relayEverywhere(t, event); got.refusal == nil || got.passed == event {
			t.Errorf("%s: %.200q was not refused: %+v", name, event, got)
		} else if got.early > 0 && realtimeTypes[kind].action != PassEvent {
			t.Errorf("%s: %d bytes of %.200q were passed on", name, got.early, event)
		}
	}
	wantForgeriesRefused(t, kind, members)
}

func wantForgeriesRefused(t *testing.T, kind, members string) {
	t.Helper()
	for name, event := range eventForgeries(kind, members) {
		if got := relayEverywhere(t, event); got.refusal == nil {
			t.Errorf("%s: %.200q was not refused: %+v", name, event, got)
		}
	}
}

func TestRealtimePassed(t *testing.T) {
	sound := strings.Repeat("AAAA", 50_000)
	for _, test := range []struct{ kind, members string }{
		{"input_audio_buffer.append", `"audio":"AAAA"`},
		{"input_audio_buffer.append", `"event_id":"e","audio":"\/\u0041"`},
		{"input_audio_buffer.commit", ``},
		{"input_audio_buffer.clear", `"event_id":null`},
		{"output_audio_buffer.clear", ``},
		{"response.cancel", `"response_id":"r"`},
		{"conversation.item.delete", `"item_id":"i"`},
		{"conversation.item.retrieve", `"item_id":"i"`},
		{"conversation.item.truncate", `"item_id":"i","content_index":0,"audio_end_ms":-1.5e+3`},
		{"conversation.item.create", `"previous_item_id":null,"item":{"id":"i","type":"message","role":"user","content":[]}`},
		{"conversation.item.create", `"item":{"type":"message","role":"user","content":[{"type":"input_text","text":"{\"type\":\"x\"}"},` +
			`{"audio":"AAAA","type":"input_audio"},{"type":"input_image","image_url":"data:","detail":"high"}]}`},
		{"conversation.item.create", `"item":{"type":"function_call_output","call_id":"c","output":"[1]"}`},
		{"conversation.item.create", `"item":{"type":"function_call","call_id":"c","name":"f","arguments":"{}","status":"completed"}`},
	} {
		for name, event := range eventSpellings(test.kind, test.members) {
			if got := relayEverywhere(t, event); got.refusal != nil || got.tooLong || got.passed != event {
				t.Errorf("%s: %q was not passed on: %+v", name, event, got.refusal)
			}
		}
		wantForgeriesRefused(t, test.kind, test.members)
	}
	for _, event := range []string{ // is passed on while it comes
		`{"type":"input_audio_buffer.append","audio":"` + sound + `"}`,
		`{"type":"conversation.item.create","item":{"type":"message","content":[{"type":"input_audio","audio":"` + sound + `"}]}}`,
	} {
		if got := relayEvent(t, event, 1000); got.passed != event || got.early < len(event)-1000 {
			t.Errorf("%.200q: %d of %d bytes were passed on early: %v", event, got.early, len(event), got.refusal)
		}
	}
}

func TestRealtimeRefused(t *testing.T) {
	for _, test := range []struct{ kind, members string }{
		{"x", ``},
		{"", ``},
		{"transcription_session.update", `"session":{}`},
		{"session.close", ``},
		{"input_audio_buffer.append", `"audio":"AAAA","session":{}`},
		{"input_audio_buffer.append", `"audio":"AAAA","audio":"AAAA"`},
		{"input_audio_buffer.append", `"Audio":"AAAA"`},
		{"input_audio_buffer.append", `"audio":"AAAA","model":"x"`},
		{"input_audio_buffer.append", `"audio":"AAAA","item":{"type":"message"}`},
		{"input_audio_buffer.append", `"audio":"` + "\n" + `"`},
		{"input_audio_buffer.append", `"audio":"\x"`},
		{"input_audio_buffer.append", `"audio":"\u12G4"`},
		{"input_audio_buffer.append", `"event_id":{},"audio":"AAAA"`},
		{"response.cancel", `"response":{}`},
		{"conversation.item.create", ``},
		{"conversation.item.create", `"item":null`},
		{"conversation.item.create", `"item":[]`},
		{"conversation.item.create", `"item":"i"`},
		{"conversation.item.create", `"item":{}`},
		{"conversation.item.create", `"item":{"type":"item_reference","id":"i"}`},
		{"conversation.item.create", `"item":{"type":"\u0069tem_reference","id":"i"}`},
		{"conversation.item.create", `"item":{"type":"mcp_approval_response","id":"i"}`},
		{"conversation.item.create", `"item":{"type":"mcp_call","id":"i"}`},
		{"conversation.item.create", `"item":{"type":"x"}`},
		{"conversation.item.create", `"item":{"type":["message"]}`},
		{"conversation.item.create", `"item":{"type":"message","type":"item_reference"}`},
		{"conversation.item.create", `"item":{"type":"item_reference","type":"message"}`},
		{"conversation.item.create", `"item":{"type":"message","Type":"item_reference"}`},
		{"conversation.item.create", `"item":{"type":"message","prompt":{}}`},
		{"conversation.item.create", `"item":{"type":"message"},"item":{"type":"message"}`},
		{"conversation.item.create", `"item":{"type":"message"},"\u0069tem":{"type":"item_reference"}`},
		{"conversation.item.create", `"item":{"type":"message","content":{"type":"x"}}`},
		{"conversation.item.create", `"item":{"type":"message","content":["x"]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[null]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_text","text":"t"},"input_text"]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_text","text":"t"},null]}`},
		{"conversation.item.create", `"item":{"type":"message","content":"x"}`},
		{"conversation.item.create", `"item":{"type":"message","content":5}`},
		{"conversation.item.create", `"item":{"type":"message","` + strings.Repeat("x", 300) + `":5}`},
		{strings.Repeat("x", 300), ``},
		{"conversation.item.create", `"item":{"type":"message","content":[[]]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{}]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_file"}]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_text"},{"type":"x"}]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_text","type":"x"}]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[{"type":"input_text","file_id":"x"}]}`},
		{"conversation.item.create", `"item":{"type":"message","content":[],"content":[]}`},
		{"conversation.item.create", `"session":{},"item":{"type":"message"}`},
		{"session.update", `"item":{"type":"message"},"session":{}`},
	} {
		wantRefused(t, test.kind, test.members)
	}
	for _, event := range []string{``, ` `, `{}`, `[]`, `"type"`, `{"event_id":"x"}`, `null`, `{"":1}`} {
		if got := relayEvent(t, event, 1); got.refusal == nil {
			t.Errorf("%q was not refused", event)
		}
	}
}

// Of an event, at most 64 KiB are held before it is known what to do with it, and 1 MiB if it is read whole, whatever
// parts it comes in.
func TestRealtimeTooLong(t *testing.T) {
	pad := func(event string, size int) string {
		return strings.Replace(event, "A", strings.Repeat("A", size-len(event)+1), 1)
	}
	for _, test := range []struct {
		event string
		want  bool
	}{
		{pad(`{"audio":"A","type":"input_audio_buffer.append"`, maxUntyped) + "}", false},
		{pad(`{"audio":"A","type":"input_audio_buffer.append"`, maxUntyped+1) + "}", true},
		{strings.Repeat(" ", maxUntyped+1) + `{"type":"input_audio_buffer.clear"}`, true},
		{pad(`{"type":"conversation.item.create","item":{"id":"A","type":"message"`, maxUntyped) + "}}", false},
		{pad(`{"type":"conversation.item.create","item":{"id":"A","type":"message"`, maxUntyped+1) + "}}", true},
		{pad(`{"type":"session.update","session":{"instructions":"A"}}`, maxReadEvent), false},
		{pad(`{"type":"session.update","session":{"instructions":"A"}}`, maxReadEvent+1), true},
		{pad(`{"type":"input_audio_buffer.append","audio":"A"}`, 2*maxReadEvent), false},
	} {
		if got := relayEverywhere(t, test.event); got.tooLong != test.want || got.refusal != nil {
			t.Errorf("%.100q of %d bytes: %v %v, want %v", test.event, len(test.event), got.tooLong, got.refusal, test.want)
		}
	}
}

// The refusal names the client's event.
func TestRealtimeRefusal(t *testing.T) {
	for event, want := range map[string]string{
		`{"event_id":"e\u0031\"","type":"x"}`: `{"type":"error","error":{"type":"invalid_request_error","code":"unknown_event",` +
			`"message":"Events of the type \"x\" are not supported.","param":"type","event_id":"e1\""}}`,
		`{"event_id":"e2","type":"session.update","session":{"prompt":{"id":"p"}}}`: `{"type":"error","error":{` +
			`"type":"invalid_request_error","code":"unsupported_parameter","message":"session.prompt is not supported.",` +
			`"param":"session.prompt","event_id":"e2"}}`,
		`{`: `{"type":"error","error":{"type":"invalid_request_error","code":"invalid_json",` +
			`"message":"The event is not valid JSON: it ends too early.","param":null,"event_id":null}}`,
	} {
		if got := relayEverywhere(t, event); got.refusal == nil || string(got.refusal.Event()) != want {
			t.Errorf("%s\ngot  %+v\nwant %s", event, got.refusal, want)
		} else if got.refusal.Error() != got.refusal.Message {
			t.Errorf("%s: %q", event, got.refusal.Error())
		}
	}
	for _, test := range []struct {
		status              int
		code, message, want string
	}{
		{402, "", "No tokens", `"type":"insufficient_quota","code":"insufficient_quota","message":"No tokens"`},
		{402, "balance_held", "Held", `"type":"insufficient_quota","code":"balance_held","message":"Held"`},
		{403, "", "Disabled", `"type":"invalid_request_error","code":"key_disabled","message":"Disabled"`},
		{502, "", "Gone", `"type":"api_error","code":null,"message":"Gone"`},
	} {
		want := `{"type":"error","error":{` + test.want + `,"param":null,"event_id":null}}`
		if got := string(RealtimeFailure(test.status, test.code, test.message).Event()); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestRealtimeScanAllocations(t *testing.T) {
	sound := strings.Repeat("AAAA", 1000)
	for _, event := range []string{
		`{"event_id":"e","type":"input_audio_buffer.append","audio":"` + sound + `"}`,
		`{"t\u0079pe":"input_audio_buffer\u002eappend","audio":"` + sound + `"}`,
		`{"type":"conversation.item.create","item":{"type":"message","content":[{"type":"input_audio","audio":"` + sound + `"}]}}`,
	} {
		var s RealtimeScan
		parts := slices.Collect(slices.Chunk([]byte(event), 100))
		n := testing.AllocsPerRun(10, func() {
			s.Reset()
			for _, part := range parts {
				_, _ = s.Read(part)
			}
			if action, err := s.End(); action != PassEvent || err != nil {
				t.Errorf("%.100q: %d %v", event, action, err)
			}
		})
		if n > 0 {
			t.Errorf("%.100q: %v allocations", event, n)
		}
	}
}

// hostileEvents are made to be slow to read in parts.
func hostileEvents(n int) []hostileDocument {
	item := `{"type":"conversation.item.create","item":{"type":"message","content":[`
	return []hostileDocument{
		{"sound", `{"type":"input_audio_buffer.append","audio":"` + strings.Repeat("A", n) + `"}`},
		{"escapes", `{"type":"input_audio_buffer.append","audio":"` + strings.Repeat(`\n`, n/2) + `"}`},
		{"units", `{"type":"input_audio_buffer.append","audio":"` + strings.Repeat(`\u0041`, n/6) + `"}`},
		{"numbers", `{"type":"input_audio_buffer.append","audio":[1` + strings.Repeat(",1", n/2) + `]}`},
		{"long number", `{"type":"input_audio_buffer.append","audio":1` + strings.Repeat("0", n) + `}`},
		{"spaces", `{"type":"input_audio_buffer.append"` + strings.Repeat(" ", n) + `}`},
		{"spaces after it", `{"type":"input_audio_buffer.append"}` + strings.Repeat(" ", n)},
		{"deep", `{"type":"input_audio_buffer.append","audio":` + deepArray(n, 490, `[`, `1`, `]`) + `}`},
		{"names", `{"type":"input_audio_buffer.append","audio":{"":1` + strings.Repeat(`,"\n":1`, n/7) + `}}`},
		{"parts", item + `{"type":"input_text"}` + strings.Repeat(`,{"type":"input_text"}`, n/22) + `]}}`},
	}
}

// An event that is twice as long takes twice as many steps, each of a bounded size.
func TestLinearEvents(t *testing.T) {
	for _, n := range []int{1 << 12, 1 << 16} {
		for _, d := range hostileEvents(n) {
			var s RealtimeScan
			if action, err := s.Read([]byte(d.text)); action != PassEvent || err != nil {
				t.Errorf("%s: %d %v", d.name, action, err)
			}
			var j jsonParts
			tokens, bytes := 0, 0
			for rest := []byte(d.text); len(rest) > 0; tokens++ {
				read, token := j.next(rest)
				if token == invalidToken || read == 0 {
					t.Fatalf("%s: token %d after %d bytes", d.name, token, bytes)
				}
				rest, bytes = rest[read:], bytes+read
			}
			if tokens > len(d.text) || bytes != len(d.text) {
				t.Errorf("%s: %d tokens and %d bytes of %d", d.name, tokens, bytes, len(d.text))
			}
		}
	}
}

func BenchmarkRealtimeScan(b *testing.B) {
	for _, d := range hostileEvents(hostileBytes) {
		for _, size := range []int{1, 4 << 10} {
			b.Run(fmt.Sprintf("%s/parts of %d", d.name, size), func(b *testing.B) {
				b.SetBytes(int64(len(d.text)))
				b.ReportAllocs()
				parts := slices.Collect(slices.Chunk([]byte(d.text), size))
				var s RealtimeScan
				for b.Loop() {
					s.Reset()
					for _, part := range parts {
						_, _ = s.Read(part)
					}
				}
			})
		}
	}
}

// wantReadAlike reports what jsonParts reads in another way than encoding/json.
func wantReadAlike(t *testing.T, data []byte, size int) {
	t.Helper()
	var j jsonParts
	var tokens []string
	isValid := true
	for part := range slices.Chunk(data, size) {
		for len(part) > 0 && isValid {
			n, token := j.next(part)
			part = part[n:]
			isValid = token != invalidToken
			if token != nameToken && token != stringToken {
				continue
			}
			text := j.text(nil)
			if text != nil && int64(len(text)) != j.length && !bytes.ContainsRune(text, utf8.RuneError) {
				t.Errorf("%q: %q is %d bytes", data, text, j.length)
			}
			tokens = append(tokens, string(text))
		}
	}
	isValid = isValid && j.isDone()
	var shallow jsonWalker[struct{}]
	isObject := bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
	err := shallow.walk(data, nil, nil)
	if want := err == nil && isObject; isValid != want || isValid && !json.Valid(data) {
		t.Fatalf("%q, %d at a time: valid %v, want %v", data, size, isValid, want)
	}
	if !isValid || len(data) > maxKeptString {
		return
	}
	var want []string
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if err != nil {
			break
		}
		if text, ok := token.(string); ok {
			want = append(want, text)
		}
	}
	isUnicode := !strings.Contains(strings.Join(want, ""), "\ufffd") // else some are not kept
	if isUnicode && !slices.Equal(tokens, want) {
		t.Fatalf("%q, %d at a time: %q, want %q", data, size, tokens, want)
	}
}

func TestJSONParts(t *testing.T) {
	deep := func(n int, inner string) string {
		return `{"a":` + strings.Repeat("[", n-1) + inner + strings.Repeat("]", n-1) + `}`
	}
	for _, data := range []string{
		``, ` `, `{`, `{}`, ` { } `, `{}x`, `{},`, `[]`, `1`, `"a"`, `null`, `{"a"}`, `{"a":}`, `{"a":1}`, `{"a":1,}`, `{,}`, `{"a":1 "b":2}`,
		`{"a":[]}`, `{"a":[1]}`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1}`, `{"a":[1}]`, `{"a":{"b":[{"c":null}]},"d":"e"}`, `{"a":{]}`, `{]`,
		`{"a":0}`, `{"a":00}`, `{"a":01}`, `{"a":-}`, `{"a":-0}`, `{"a":-01}`, `{"a":1.}`, `{"a":1.0}`, `{"a":.1}`, `{"a":1e}`, `{"a":1e+}`,
		`{"a":1e5}`, `{"a":1E-05}`, `{"a":1.5e+3}`, `{"a":1e5.5}`, `{"a":1.5.5}`, `{"a":+1}`, `{"a":0.1,"b":10}`, `{"a":0e1}`, `{"a":1 }`,
		`{"a":1-1}`, `{"a":0x1}`, `{"a":true}`, `{"a":tru}`, `{"a":false}`, `{"a":nul}`, `{"a":null}`, `{"a":Null}`, `{"a":t rue}`,
		`{"a":"\b\f\n\r\t\/\\\""}`, `{"a":"\a"}`, `{"a":"\u00e9\u20ac\ud83d\ude00"}`, `{"a":"\u00"}`, `{"a":"\u00g0"}`, `{"a":"\U0041"}`,
		"{\"a\":\"\x00\"}", "{\"a\":\"\x1f\"}", "{\"a\":\"\x7f\"}", "{\"a\":\"é\"}", "{\"a\":\"\n\"}", "{\"a\"\v:1}", `{a:1}`, `{'a':1}`,
		`{1:2}`, `{"a":truee}`,
		deep(499, "1"), deep(499, "[]"), deep(500, ""), deep(500, "1"), deep(501, ""), `{"` + strings.Repeat("a", 300) + `":1}`,
	} {
		for _, size := range []int{1, 2, 3, 1000} {
			wantReadAlike(t, []byte(data), size)
		}
	}
}

func FuzzRealtimeScan(f *testing.F) {
	for _, d := range hostileEvents(64) {
		f.Add([]byte(d.text), 3)
	}
	for name, event := range eventForgeries("session.update", `"session":{"tools":[{"type":"function"}]}`) {
		f.Add([]byte(event), len(name))
	}
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		size = max(1, size&0xff)
		wantReadAlike(t, data, size)
		var s RealtimeScan
		var err error
		for part := range slices.Chunk(data, size) {
			_, err = s.Read(part)
		}
		_ = err // End returns it, too
		action, err := s.End()
		var at RealtimeScan
		_, _ = at.Read(data)
		if atAction, atErr := at.End(); action != atAction || fmt.Sprint(err) != fmt.Sprint(atErr) {
			t.Fatalf("%q, %d at a time: %d %v, want %d %v", data, size, action, err, atAction, atErr)
		}
		if err != nil {
			return
		}
		// A reader that takes the last of some members, in any case, reads the same type.
		var event struct {
			Type string
			Item struct{ Type string }
		}
		if err := json.Unmarshal(data, &event); err != nil || realtimeTypes[event.Type].action != action {
			t.Fatalf("%q: action %d, type %q, %v", data, action, event.Type, err)
		}
		if event.Type == "conversation.item.create" && realtimeItems.of([]byte(event.Item.Type)) != known {
			t.Fatalf("%q: item of type %q", data, event.Item.Type)
		}
	})
}

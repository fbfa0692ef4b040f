package main

import (
	"strings"
	"testing"

	"tollgate/internal/providertest"
)

// What providers report in ways of their own is charged: an input of 1,000 and an output of 5,000 tokens. Of streams
// that are cut, the output is estimated, and an input of a few tokens.
func TestGatewayReportedUsage(t *testing.T) {
	t.Parallel()
	const (
		granted = 100_000
		exact   = 6000
		usage   = `{"prompt_tokens":1000,"completion_tokens":5000}`
		zeros   = `{"prompt_tokens":0,"completion_tokens":0}`
		message = `"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn"`
		end     = `data: [DONE]` + "\n\n"
	)
	choice := func(rest string) string {
		return `{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"` + rest + `}`
	}
	event := func(data string) string { return "data: " + data + "\n\n" }
	chunk := func(content, reason, usage string) string {
		return event(`{"choices":[{"index":0,"delta":{"content":"` + content + `"},"finish_reason":` + reason + `}],"usage":` +
			usage + `}`)
	}
	words := strings.Repeat(chunk("word word word ", "null", zeros), 40)
	messageStart := event(`{"type":"message_start","message":{"usage":{"input_tokens":0,"output_tokens":0}}}`)
	deltas := strings.Repeat(event(`{"type":"content_block_delta","delta":{"type":"text_delta","text":"word word word "}}`), 40)
	s := newService(t)
	for _, test := range []struct {
		name, path, body string
		want             int
	}{
		{"reasoning beside", chatPath, choice(`}],"usage":{"prompt_tokens":1000,"completion_tokens":9,"total_tokens":6000}`), exact},
		{"floats", chatPath, choice(`}],"usage":{"prompt_tokens":999.2,"completion_tokens":5e3}`), exact},
		{"strings", chatPath, choice(`}],"usage":{"prompt_tokens":"1000","completion_tokens":"5000"}`), exact},
		{"total alone", chatPath, choice(`}],"usage":{"total_tokens":6000}`), exact},
		{"other names", chatPath, choice(`}],"usage":{"input_tokens":1000,"output_tokens":5000}`), exact},
		{"in the choice", chatPath, choice(`,"usage":` + usage + `}]`), exact},
		{"x_groq", chatPath, choice(`}],"x_groq":{"usage":` + usage + `}`), exact},
		{"error in a choice, with usage", chatPath, choice(`,"error":{"code":502}}],"usage":` + usage), exact},
		{"cache writes", messagesPath, `{` + message + `,"usage":{"input_tokens":10,"cache_creation_input_tokens":900,` +
			`"cache_read_input_tokens":90,"output_tokens":5000}}`, exact},
		{"iterations", messagesPath, `{` + message + `,"usage":{"input_tokens":11,"output_tokens":7,"iterations":[` +
			`{"type":"message","input_tokens":11,"output_tokens":7},` +
			`{"type":"compaction","input_tokens":989,"output_tokens":4993}]}}`, exact},

		{"placeholders", chatPath, words + chunk("", `"stop"`, usage) + end, exact},
		{"usage before the marker", chatPath, words + chunk("", `"stop"`, "null") + event(`{"choices":[],"usage":`+usage+`}`) + end, exact},
		{"usage after the marker", chatPath, words + chunk("", `"stop"`, "null") + end + event(`{"choices":[],"usage":`+usage+`}`), exact},
		{"usage that falls", chatPath, chunk("a", "null", usage) + chunk("", `"stop"`, zeros) + end, exact},
		{"placeholders, cut", chatPath, words, 200},
		{"placeholders, and no usage", chatPath, words + chunk("", `"stop"`, "null") + end, 200},
		{"byte order mark", chatPath, "\ufeff" + chunk("a", `"stop"`, usage) + end, exact},
		{"object in several lines", chatPath, strings.ReplaceAll(chunk("a", `"stop"`, usage), `,`, ",\ndata: ") + end, exact},
		{"line over 1 MiB", chatPath, chunk(strings.Repeat("x", 3<<20), `"stop"`, usage) + end, exact},
		{"image", chatPath, event(`{"choices":[{"delta":{"images":[{"image_url":{"url":"` + strings.Repeat("A", 900) + `"}}]}}]}`), 300},
		{"message_start of 0", messagesPath, messageStart + deltas + event(`{"type":"message_delta",`+
			`"delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":100,"cache_read_input_tokens":900,"output_tokens":5000}}`) +
			event(`{"type":"message_stop"}`), exact},
		{"message_start of 0, cut", messagesPath, messageStart + deltas, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := s.newGatewayTest(t, granted, "")
			g.key = g.login(t, g.tenant)
			conduct, request := providertest.Conduct{Body: test.body}, `{"max_tokens":9000}`
			if !strings.HasPrefix(test.body, "{") {
				conduct.Header, request = []string{"Content-Type: text/event-stream"}, `{"stream":true}`
			}
			g.provider.On("", conduct)
			got, _ := g.send("POST", "/"+g.tenant+test.path, request, bearer(g.key))
			most := test.want
			if most != exact {
				most += 20
			}
			if n := g.charged(t, granted); n < test.want || n > most || got.status != 200 {
				t.Errorf("got %d, charged %d, want %d: %.500s", got.status, n, test.want, got.body)
			}
		})
	}
}

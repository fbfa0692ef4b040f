package llmwire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What is held for a request for embeddings, a moderation or images, or why it is refused.
func TestOtherRequests(t *testing.T) {
	allFree := Holding{BytesPerToken: 1, ImageTokens: 6240}
	thirds := Holding{BytesPerToken: 3, ImageTokens: 100}
	for _, test := range []struct {
		format Format
		body   string
		h      Holding
		want   string
	}{
		{OpenAIEmbeddings, `{"input":"12345"}`, allFree, "17+0 held, 2 estimated"},
		{OpenAIEmbeddings, `{"input":"12345"}`, thirds, "6+0 held, 2 estimated"},
		{OpenAIEmbeddings, `{"input":["12345678","1234"]}`, allFree, "29+0 held, 3 estimated"},
		{OpenAIEmbeddings, `{"input":[1,22,333]}`, allFree, "20+0 held, 3 estimated"},
		{OpenAIEmbeddings, `{"input":[[1,22],[333]]}`, allFree, "24+0 held, 3 estimated"},
		{OpenAIEmbeddings, `{"input":"1","dimensions":2,"encoding_format":"base64","user":"u"}`, allFree, "66+0 held, 1 estimated"},
		{OpenAIEmbeddings, `{"input":"1","stream":false}`, allFree, "28+0 held, 1 estimated"},
		{OpenAIEmbeddings, `{"input":"1","stream":true}`, allFree, "27+0 held, 1 estimated, unknown [stream]"},
		{OpenAIEmbeddings, `{"input":"1","messages":[]}`, allFree, "27+0 held, 1 estimated"}, // as good as absent
		{OpenAIEmbeddings, `{"input":"1","messages":[1],"x":1}`, allFree, "34+0 held, 1 estimated, unknown [messages x]"},
		{OpenAIEmbeddings, `{"input":"1","provider":{}}`, allFree, "27+0 held, 1 estimated, unknown [provider]"},
		{OpenAIEmbeddings, `{"input":{}}`, allFree, "input must be a string, or an array of strings or of numbers of tokens"},
		{OpenAIEmbeddings, `{"input":[{"image":"https://a.example"}]}`, allFree,
			"input must be a string, or an array of strings or of numbers of tokens"},
		{OpenAIEmbeddings, `{"input":[["a"]]}`, allFree, "input must be a string, or an array of strings or of numbers of tokens"},
		{OpenAIEmbeddings, `{"input":[[1,[2]]]}`, allFree, "input must be a string, or an array of strings or of numbers of tokens"},
		{OpenAIEmbeddings, `{"input":"1","input":"2"}`, allFree, "input is duplicated"},
		{OpenAIEmbeddings, `{"Input":"1"}`, allFree, "Input must be spelled input"},
		{OpenAIEmbeddings, `{"model":1}`, allFree, "model must be a string that is not empty"},
		{OpenAIEmbeddings, `[]`, allFree, "Body must be a JSON object"},

		{OpenAIModerations, `{"input":"12345"}`, allFree, "0+0 held, 0 estimated"},
		{OpenAIModerations, `{"input":[{"type":"image_url","image_url":{"url":"https://a.example"}}]}`, allFree, "0+0 held, 0 estimated"},
		{OpenAIModerations, `{"input":"1","models":[1]}`, allFree, "0+0 held, 0 estimated, unknown [models]"},
		{OpenAIModerations, `{"input":"1","stream":true}`, allFree, "0+0 held, 0 estimated, unknown [stream]"},

		{OpenAIImages, `{"prompt":"12345"}`, allFree, "5+6240 held, 2 estimated"},
		{OpenAIImages, `{"prompt":"\u00e9"}`, allFree, "2+6240 held, 1 estimated"},
		{OpenAIImages, `{"prompt":"12345"}`, thirds, "2+100 held, 2 estimated"},
		{OpenAIImages, `{"prompt":"12345","n":10}`, allFree, "5+62400 held, 2 estimated"},
		{OpenAIImages, `{"prompt":"12345","stream":true,"partial_images":3}`, allFree, "5+6540 held, 2 estimated"},
		{OpenAIImages, `{"prompt":"12345","negative_prompt":"1"}`, allFree, "6+6240 held, 2 estimated"},
		{OpenAIImages, `{"prompt":"1","image_url":"https://a.example"}`, allFree, "46+6240 held, 1 estimated, unknown [image_url]"},
		{OpenAIImages, `{"prompt":"1","size":"1536x1024","quality":"high","output_format":"webp","background":"transparent"}`,
			allFree, "1+6240 held, 1 estimated"},
		{OpenAIImages, `{"prompt":"1","size":"auto","quality":"auto","moderation":"low"}`, allFree, "1+6240 held, 1 estimated"},
		{OpenAIImages, `{"size":"3840x2160"}`, allFree, "20+6240 held, 0 estimated, unknown [size]"},
		{OpenAIImages, `{"size":"65537x1"}`, allFree, "18+6240 held, 0 estimated, unknown [size]"},
		{OpenAIImages, `{"size":"4K"}`, allFree, "13+6240 held, 0 estimated, unknown [size]"},
		{OpenAIImages, `{"size":"1024x"}`, allFree, "16+6240 held, 0 estimated, unknown [size]"},
		{OpenAIImages, `{"size":null,"quality":null,"n":null,"prompt":null}`, allFree, "0+6240 held, 0 estimated"},
		{OpenAIImages, `{"quality":"max"}`, allFree, "17+6240 held, 0 estimated, unknown [quality]"},
		{OpenAIImages, `{"output_format":"svg","svg":{}}`, allFree, "32+6240 held, 0 estimated, unknown [output_format svg]"},
		{OpenAIImages, `{"frame_count":9,"complexity":"high"}`, allFree, "37+6240 held, 0 estimated, unknown [frame_count complexity]"},
		{OpenAIImages, `{"n":11}`, allFree, "n must be a whole number from 1 to 10"},
		{OpenAIImages, `{"n":0}`, allFree, "n must be a whole number from 1 to 10"},
		{OpenAIImages, `{"partial_images":4}`, allFree, "partial_images must be a whole number from 0 to 3"},
		{OpenAIImages, `{"prompt":["a"]}`, allFree, "prompt must be a string"},
		{OpenAIImages, `{"n":2,"stream":true}`, allFree, "n must be 1 in a request with stream: true"},
		{OpenAIImages, `{"n":1}`, Holding{BytesPerToken: 1, ImageTokens: MaxTokens}, fmt.Sprintf("0+%d held, 0 estimated", int64(MaxTokens))},
	} {
		t.Run(test.body, func(t *testing.T) {
			r, err := ReadRequest(test.format, []byte(test.body))
			got := fmt.Sprint(err)
			if err == nil {
				got = fmt.Sprintf("%d+%d held, %d estimated", r.HeldInput(test.h), r.HeldOutput(test.h)*r.N, r.EstimatedInput(test.h))
				if len(r.Unknown) > 0 {
					got += fmt.Sprintf(", unknown %v", r.Unknown)
				}
				isImage := test.format == OpenAIImages
				if r.MediaOutput != isImage || r.HasImages != (isImage && len(r.Unknown) > 0) {
					t.Errorf("output of media %v, images in the input %v", r.MediaOutput, r.HasImages)
				}
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// What is changed of these requests is the model, and who the user is.
func TestOtherRewrites(t *testing.T) {
	for _, test := range []struct {
		format           Format
		body, safe, want string
	}{
		{OpenAIEmbeddings, `{"input": [1, 2], "model":"m", "encoding_format":"base64"}`, "",
			`{"input": [1, 2], "model":"n", "encoding_format":"base64"}`},
		{OpenAIEmbeddings, `{"input":"1"}`, "id", `{"model":"n","user":"id","input":"1"}`},
		{OpenAIModerations, `{"input":"1"}`, "id", `{"model":"n","input":"1"}`},
		{OpenAIImages, `{"prompt":"1","user":"u","stream":true}`, "id",
			`{"model":"n","safety_identifier":"id","prompt":"1","user":"u","stream":true}`},
	} {
		r, err := ReadRequest(test.format, []byte(test.body))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(bytes.Join(r.Rewrite(Changes{Model: "n", SafetyID: test.safe}), nil)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// otherResponse is what was read of a response, whose input is estimated at 1,000.
func (r *Report) otherResponse() string {
	used, others, exact := r.Used(1, 1000)
	got := fmt.Sprintf("%d (%d images)+%d (%d images)", used.Input, used.ImageInput, used.Output, used.ImageOutput)
	for _, other := range others {
		got += fmt.Sprintf(" %s %d+%d", other.Model, other.Input, other.Output)
	}
	for _, flag := range []struct {
		name string
		is   bool
	}{{" estimated", !exact}, {" failure", r.IsFailure()}, {" reusable", r.IsReusable(1, false)}} {
		if flag.is {
			got += flag.name
		}
	}
	return got
}

// What is read of a response is the same at once and in parts, wherever it is split.
func TestOtherResponses(t *testing.T) {
	vectors := `"data":[{"object":"embedding","index":0,"embedding":[0.5,-1e-3]},{"embedding":"AAAA\"]}"}]`
	for _, test := range []struct {
		format     Format
		body, want string
	}{
		{OpenAIEmbeddings, `{"object":"list",` + vectors + `,"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}`,
			"8 (0 images)+0 (0 images) reusable"},
		{OpenAIEmbeddings, `{"usage":{"prompt_tokens":8,"total_tokens":8},` + vectors + `}`, "8 (0 images)+0 (0 images) reusable"},
		{OpenAIEmbeddings, `{"a":[{"b":{}}],"usage":{"prompt_tokens":8},` + vectors + `}`, "8 (0 images)+0 (0 images) reusable"},
		{OpenAIEmbeddings, `{` + vectors + `,"usage":{"total_tokens":2000}}`, "2000 (0 images)+0 (0 images) reusable"},
		{OpenAIEmbeddings, `{` + vectors + `,"usage":{"prompt_tokens":8,"total_tokens":12}}`, "8 (0 images)+0 (0 images) reusable"},
		{OpenAIEmbeddings, `{` + vectors + `}`, "1000 (0 images)+0 (0 images) estimated"},
		{OpenAIEmbeddings, `{` + vectors + `,"usage":null}`, "1000 (0 images)+0 (0 images) estimated"},
		{OpenAIEmbeddings, `{"error":{"message":"1"}}`, "1000 (0 images)+0 (0 images) estimated failure"},
		{OpenAIEmbeddings, `{"object":"error","message":"1"}`, "1000 (0 images)+0 (0 images) estimated failure"},
		{OpenAIEmbeddings, `{"error":"1","usage":{"prompt_tokens":8}}`, "8 (0 images)+0 (0 images)"},

		{OpenAIModerations, `{"id":"1","results":[{"flagged":true}],"usage":{"prompt_tokens":8}}`, "0 (0 images)+0 (0 images)"},
		{OpenAIModerations, `{"results":[{"flagged":true}]}`, "0 (0 images)+0 (0 images)"},
		{OpenAIModerations, `{"error":"1"}`, "0 (0 images)+0 (0 images) failure"},

		{OpenAIImages, `{"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":50,"input_tokens_details":{"text_tokens":40,` +
			`"image_tokens":10},"output_tokens":4160,"output_tokens_details":{"text_tokens":60,"image_tokens":4100},"total_tokens":4210}}`,
			"50 (10 images)+4160 (4160 images)"},
		{OpenAIImages, `{"data":[{"url":"https://a.example"}]}`, "1000 (0 images)+0 (0 images) estimated"},
		{OpenAIImages, `{"data":[{}],"usage":{"input_tokens":5,"output_tokens":7},"svg_usage":{"model":"m","input_tokens":3,` +
			`"output_tokens":4,"reasoning_tokens":1,"total_tokens":7}}`, "5 (0 images)+7 (7 images) m 3+4"},
		{OpenAIImages, `{"data":[{}],"usage":{"input_tokens":5,"output_tokens":7},"svg_usage":null}`, "5 (0 images)+7 (7 images)"},
	} {
		at := &Report{Format: test.format}
		if _, err := at.Read([]byte(test.body)); err != nil {
			t.Fatalf("%s: %v", test.body, err)
		}
		if got := at.otherResponse(); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
		}
		for first := range len(test.body) {
			for _, second := range []int{first, (first + len(test.body)) / 2} {
				r := &Report{Format: test.format}
				for _, part := range []string{test.body[:first], test.body[first:second], test.body[second:]} {
					r.ReadUsage([]byte(part))
				}
				r.contentBytes, r.ContentEvents = 0, 0 // which only tell a response that has begun from none
				if got := r.otherResponse(); got != test.want || r.EndUsage() != nil {
					t.Fatalf("%s, split at %d and %d: %v\ngot  %s\nwant %s", test.body, first, second, r.EndUsage(), got, test.want)
				}
			}
		}
	}
}

// Only one whole object is a response.
func TestEndUsage(t *testing.T) {
	for _, body := range []string{
		"", " ", "<html>", "1", `"{}"`, "[]", "[{}]", "{", `{"a":`, `{"a":[`, `{"a":"`, `{"a":[{"b":1}`, "{}{}", "{}1", `{} "`, "{}[",
		`{"usage":{"prompt_tokens":01}}`, `{"usage":[` + strings.Repeat(`{"prompt_tokens":1},`, maxKept) + `1]`,
	} {
		r := &Report{Format: OpenAIEmbeddings}
		r.ReadUsage([]byte(body))
		if r.EndUsage() == nil {
			t.Errorf("%.40s is whole", body)
		}
	}
	r := &Report{Format: OpenAIEmbeddings}
	if r.EndUsage() == nil {
		t.Error("nothing is whole")
	}
	// What says nothing costs something once it was relayed.
	if _, err := r.Read([]byte(`{"data":null}`)); err != nil || !r.IsFailure() {
		t.Errorf("an empty response: %v, is a failure: %v", err, r.IsFailure())
	}
	if r.ReadUsage([]byte(" ")); r.IsFailure() {
		t.Error("what was relayed is a failure")
	}
}

// A name has one column, and one that has a rule is read.
func TestOtherListings(t *testing.T) {
	for format, listings := range map[Format][]listing{
		OpenAIEmbeddings: append(openAIEmbeddingsMembers, openAIMembers), OpenAIImages: append(openAIImagesMembers, openAIMembers),
	} {
		seen := make(map[string]bool)
		for _, l := range listings {
			for _, name := range slices.Concat(l.known, l.ruled, l.refused) {
				if seen[name] {
					t.Errorf("%s has two columns", name)
				}
				seen[name] = true
				if isRead := formats[format].request.members[name] != nil; isRead != slices.Contains(l.ruled, name) {
					t.Errorf("%s is read: %v", name, isRead)
				}
			}
		}
	}
}

// Of an object that breaks off, what has come of its usage counts, wherever that is.
func TestEndUsageOfPart(t *testing.T) {
	const body = `{"a":[1],"usage":{"prompt_tokens":18,"total_tokens":18},"data":[{"embedding":"AAAA"}]}`
	at := func(part string) int { return strings.Index(body, part) }
	for end := range len(body) {
		r := &Report{Format: OpenAIEmbeddings}
		r.ReadUsage([]byte(body[:end]))
		if r.EndUsage() == nil {
			t.Errorf("%s is whole", body[:end])
		}
		want := int64(1000)      // as estimated
		if end > at(`,"total`) { // a number ends with what follows it
			want = 18
		}
		if used, _, _ := r.Used(1, 1000); used.Input != want || used.Output != 0 {
			t.Errorf("%s: got %+v, want %d", body[:end], used, want)
		}
	}
}

// A stream of images ends with the complete one, whose usage counts, however long its line is.
func TestImageStream(t *testing.T) {
	image := func(size int) string { return strings.Repeat("A", size) }
	event := func(kind, members string) string {
		return fmt.Sprintf("event: %s\ndata: {\"type\":%q,%s}\n\n", kind, kind, members)
	}
	partial := event("image_generation.partial_image", `"b64_json":"`+image(300)+`","partial_image_index":0`)
	usage := `"usage":{"input_tokens":50,"input_tokens_details":{"image_tokens":0},"output_tokens":4260,"total_tokens":4310}`
	for name, test := range map[string]struct{ stream, want string }{
		"complete": {partial + event("image_generation.completed", `"b64_json":"`+image(300)+`",`+usage),
			"50 (0 images)+4260 (4260 images), done"},
		"a long one": {partial + event("image_generation.completed", `"b64_json":"`+image(3<<20)+`",`+usage),
			"50 (0 images)+4260 (4260 images), done"},
		"usage first":   {event("image_generation.completed", usage+`,"b64_json":"`+image(3<<20)+`"`), "50 (0 images)+4260 (4260 images), done"},
		"without usage": {event("image_generation.completed", `"b64_json":"AA"`), "1000 (0 images)+1 (1 images) estimated, done"},
		"broken":        {partial, "1000 (0 images)+100 (100 images) estimated"},
		"an error":      {event("error", `"error":{"message":"1"}`), "1000 (0 images)+0 (0 images) estimated failure, failed"},
		"a flat error":  {event("error", `"message":"1"`), "1000 (0 images)+0 (0 images) estimated failure, failed"},
	} {
		for _, size := range []int{7, 1000, 1 << 20} {
			s := &Stream{Report: Report{Format: OpenAIImages}}
			for rest := []byte(test.stream); len(rest) > 0; {
				n := copy(s.Room(), rest[:min(size, len(rest))])
				s.Received(n)
				rest = rest[n:]
			}
			s.Finish()
			got := s.Report.otherResponse()
			if s.Report.Done {
				got += ", done"
			}
			if s.Report.Failed {
				got += ", failed"
			}
			if got != test.want {
				t.Errorf("%s, %d at a time\ngot  %s\nwant %s", name, size, got, test.want)
			}
		}
	}
}

// What the other packages ask of a format that has no test of its own.
func TestFormatProperties(t *testing.T) {
	isForm := []Format{OpenAITranscriptions, OpenAITranslations}
	hasNoUsage := []Format{OpenAIModerations, OpenAISpeech}
	for f := range formats {
		format := Format(f)
		for _, test := range []struct {
			what      string
			got, want bool
		}{
			{"shares models with chat", format.SharesModels(OpenAIChat), format != AnthropicMessages},
			{"caches unasked", format.CachesUnasked(), format != AnthropicMessages},
			{"takes forms", format.TakesForm(), slices.Contains(isForm, format)},
			{"is a transcript", format.IsTranscript(), slices.Contains(isForm, format)},
			{"reports usage", format.ReportsUsage(), !slices.Contains(hasNoUsage, format)},
		} {
			if test.got != test.want {
				t.Errorf("%s %s: got %v, want %v", format.URLSuffix(), test.what, test.got, test.want)
			}
		}
	}
}

package llmwire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// reported is what is compared of reports that were read at once and in parts.
func (r *Report) reported() string {
	used, others, _ := r.Used(1, 0)
	if r.IsFinal(1) { // else there is an estimate of the content
		return fmt.Sprintf("%+v %+v %q", used, others, r.Model)
	}
	return fmt.Sprintf("%+v %+v %q %d %v %v %v", r.usage.usage(0), others, r.Model, r.finished, r.worst, r.Done, r.Failed)
}

// readInParts reads an object in parts of the given size.
func readInParts(format Format, object string, size int) *Report {
	r := &Report{Format: format}
	for part := []byte(object); len(part) > 0; {
		n := min(size, len(part))
		r.ReadPart(bytes.Clone(part[:n]))
		part = part[n:]
	}
	return r
}

// A response that comes in parts reports the same, wherever it is split.
func TestReadPart(t *testing.T) {
	long := strings.Repeat(`x\n\"`, 10_000)
	numbers := strings.Repeat("0.25,", 10_000)
	for name, object := range map[string]string{
		"chat": whole(`"model":"m","usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":1},"completion_tokens":2}`),
		"message": whole(`"model":"m","usage":{"input_tokens":7,"output_tokens":2,` +
			`"iterations":[{"type":"x","model":"n","output_tokens":3}]}`),
		"white space": " {\n\t\"usage\" : { \"prompt_tokens\" : 7 , \"completion_tokens\" : 2\n} , \"choices\" : [ { } , { } ] }\r\n",
		"image": `{"data":[{"b64_json":"` + long + `"}],"choices":[{"message":{"images":["` + long + `"]},"finish_reason":"stop"}],` +
			`"usage":{"prompt_tokens":7,"completion_tokens":2}}`,
		"numbers":       `{"data":[{"embedding":[` + numbers + `1]}],"usage":{"prompt_tokens":7,"total_tokens":9}}`,
		"usage first":   `{"usage":{"prompt_tokens":7,"completion_tokens":2},"data":[` + numbers + `{"a":{}}]}`,
		"long values":   `{"model":"` + long + `","x":"` + long + `","usage":{"x":"` + long + `","prompt_tokens":7}}`,
		"long error":    `{"error":"` + long + `"}`,
		"error":         `{"error":{"message":"` + long + `"},"choices":[]}`,
		"null":          `{"error":null,"usage":null,"choices":null}`,
		"escaped names": `{"\u0075sage":{"prompt\u005ftokens":7,"completion_tokens":2},"\"":"\\","` + long + `":1}`,
		"deep":          `{"usage":{"x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `,"prompt_tokens":7}}`,
		"duplicates":    `{"usage":{"prompt_tokens":7},"usage":{"prompt_tokens":9,"completion_tokens":2}}`,
		"empty":         `{}`,
	} {
		for _, format := range textFormats {
			at := &Report{Format: Format(format)}
			if _, err := at.Read([]byte(object)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, size := range []int{1, 2, 3, 7, 1000, len(object)} {
				r := readInParts(Format(format), object, size)
				if got, want := r.reported(), at.reported(); got != want {
					t.Errorf("%s, %d at a time\ngot  %s\nwant %s", name, size, got, want)
				}
				if size >= 7 && r.ContentBytes() != int64(len(object)) && name != "white space" || !r.Unread {
					t.Errorf("%s: %d bytes of content, want %d", name, r.ContentBytes(), len(object))
				}
				if len(r.parts.kept) > 0 || cap(r.parts.kept) > maxKept {
					t.Errorf("%s: %d bytes are kept, and room for %d", name, len(r.parts.kept), cap(r.parts.kept))
				}
			}
		}
	}
}

// What is too much to keep is not read, and what is not an object neither. The next object is.
func TestPartsThatCannotBeRead(t *testing.T) {
	const usage = `{"usage":{"prompt_tokens":7,"completion_tokens":2}}`
	for _, bad := range []string{
		`{"choices":[` + strings.Repeat(`{"index":0},`, maxKept) + `{}],"usage":{"prompt_tokens":1e9}}`,
		`{"usage":{"prompt_tokens":01}}`, `[{"usage":{"prompt_tokens":1e9}}]`,
		`]]}}`, `{"\x":1}`, `{"\u00":1}`, `{usage:1}`, `"{"`, `7 `, `{"usage"}`, `{:}`, `{,}`,
	} {
		r := readInParts(OpenAIChat, bad, 5)
		if r.HasUsage() || !r.Unread || r.ContentBytes() == 0 {
			t.Errorf("%.80s: got %+v, %d bytes", bad, r.usage.usage(0), r.ContentBytes())
		}
		r.endParts()
		r.ReadPart([]byte(usage))
		if got := r.usage.usage(0); got.total() != 9 {
			t.Errorf("after %.80s: got %+v", bad, got)
		}
	}
	r := readInParts(OpenAIChat, `{"usage":{"prompt_tokens":7}`, 100)
	if r.endParts(); r.HasUsage() {
		t.Error("the end of the object is not needed")
	}
}

func FuzzReadPart(f *testing.F) {
	for _, test := range streamTests() {
		for _, event := range test.events {
			_, data, _ := strings.Cut(event, "data: ")
			f.Add(int(test.format), strings.TrimSpace(data), uint8(3))
		}
	}
	f.Add(0, whole(`"model":"m","usage":{"x":[{"a":"b\\\""}],"prompt_tokens":"7","iterations":[{"type":"x"}]}`), uint8(0))
	f.Fuzz(func(t *testing.T, format int, object string, size uint8) {
		at := &Report{Format: Format(uint(format) % uint(len(formats)))}
		_, err := at.Read([]byte(object))
		r := readInParts(at.Format, object, int(size)+1)
		if err != nil || !json.Valid([]byte(object)) || len(object) > maxKeptName {
			return
		}
		if got, want := r.reported(), at.reported(); got != want {
			t.Fatalf("%s\ngot  %s\nwant %s", object, got, want)
		}
	})
}

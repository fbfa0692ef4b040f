package llmwire

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"strings"
)

// Smallest returns the smallest request of the format that providers serve, and its Content-Type. It asks for the model
// of c and, if c has a LimitMember, for one token or the fewest that providers accept. Speech has the voice, unless
// that is "".
func (f Format) Smallest(c Changes, voice string) (contentType string, body [][]byte) {
	var r *Request
	text := formats[f].smallest
	if f.TakesForm() {
		contentType = "multipart/form-data; boundary=" + smallestBoundary
		r, _ = ReadForm(f, []string{contentType}, []byte(text)) // cannot fail, nor can the other
	} else {
		contentType = "application/json"
		if voice != "" {
			text = strings.Replace(text, anyVoice, jsonString(voice), 1)
		}
		r, _ = ReadRequest(f, []byte(text))
	}
	c.Limit, c.NoStore = cmp.Or(formats[f].leastLimit, 1), true
	return contentType, r.Rewrite(c)
}

// anyVoice is a voice that OpenAI has, and most servers that speak its format, as JSON.
const anyVoice = `"alloy"`

const (
	smallestBoundary = "tollgate-smallest-request"

	// A sound of 0.2 s: OpenAI refuses those below 0.1 s.
	smallestRate    = 8_000 // samples of 2 bytes a second
	smallestSamples = smallestRate / 5
)

// smallestForm returns a form whose file is a WAV with silence.
func smallestForm() string {
	const header, sampleBytes, pcm = 44, 2, 1
	form := []byte("--" + smallestBoundary + "\r\n" +
		`Content-Disposition: form-data; name="file"; filename="silence.wav"` + "\r\nContent-Type: audio/wav\r\n\r\n")
	add := func(values ...any) {
		for _, value := range values {
			form, _ = binary.Append(form, binary.LittleEndian, value) // all have a fixed size
		}
	}
	const size = smallestSamples * sampleBytes
	form = append(form, "RIFF"...)
	add(uint32(header - 8 + size))
	form = append(form, "WAVEfmt "...)
	add(uint32(16), uint16(pcm), uint16(1), uint32(smallestRate), uint32(smallestRate*sampleBytes), uint16(sampleBytes),
		uint16(8*sampleBytes))
	form = append(form, "data"...)
	add(uint32(size), make([]byte, size))
	return string(form) + "\r\n--" + smallestBoundary + "--\r\n"
}

// ErrorSentence returns what a provider's error says to people, in whatever format: the first string under error,
// message, detail or msg. It is "" if body has none.
func ErrorSentence(body []byte) string {
	var response any
	_ = json.Unmarshal(body, &response) // something else has no sentence
	return sentenceIn(response)
}

func sentenceIn(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []any: // Google's errors are in one
		if len(v) > 0 {
			return sentenceIn(v[0])
		}
	case map[string]any:
		for _, name := range []string{"error", "message", "detail", "msg"} {
			if sentence := sentenceIn(v[name]); sentence != "" {
				return sentence
			}
		}
	}
	return ""
}

// IsAtLimit reports whether a provider's error says that the model has used up the limit of output tokens with what it
// does not show. OpenAI's models that reason respond so, with the status 400, where others end a response early.
func IsAtLimit(status int, body []byte) bool {
	return status == 400 && bytes.Contains(body, []byte("max_tokens or model output limit was reached"))
}

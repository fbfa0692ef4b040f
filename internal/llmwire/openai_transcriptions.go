package llmwire

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"tollgate/internal/soundlength"
	"tollgate/internal/strict"
)

// leastByteRate is how many bytes of a file count as a second of sound, if its header does not say how long it is. At 6
// kbit/s speech can hardly be understood.
const leastByteRate = 750

// The tokens of the input and of the output that are held for a second of sound, as OpenAI's models count it.
const (
	SoundInputTokens  = 10
	SoundOutputTokens = 5
)

var openAITranscriptions = transcriptions("/audio/transcriptions", openAITranscriptionMembers...)

var openAITranslations = transcriptions("/audio/translations", listing{
	// OpenAI's SDKs (TranslationCreateParams in resources/audio/translations.d.ts).
	known:   []string{"prompt", "temperature"},
	ruled:   []string{"file", "response_format"},
	refused: []string{"stream"}, // what it would look like is not known
})

// transcriptions returns a format whose requests are forms with a file. Its responses may have no usage.
func transcriptions(urlSuffix string, members ...listing) format {
	return openAI(format{
		kind:             Transcription,
		urlSuffix:        urlSuffix,
		takesForm:        true,
		holdIfUnreported: true,
		held:             soundInput,
		smallest:         smallestForm(),

		rules: requestRules{members: newColumnTable(append(members, openAIMembers)...)},
		report: newJSONShape(reportMembers, promptDetails.under("usage.input_token_details"), jsonTable[Report]{
			"":              {read: (*Report).readTranscript},
			"object":        {read: (*Report).readObjectType},
			"type":          {read: (*Report).readTranscriptEvent},
			"text":          {read: (*Report).readTranscriptText},
			"duration":      {read: (*Report).readSeconds},
			"usage.seconds": {read: (*Report).readSeconds},
		}),
	})
}

// openAITranscriptionMembers has the fields of requests for transcriptions, arrays and objects as the SDKs write them
// into a form.
var openAITranscriptionMembers = []listing{
	// OpenAI's SDKs (TranscriptionCreateParamsBase in resources/audio/transcriptions.d.ts).
	{
		known: []string{
			"chunking_strategy", "chunking_strategy[*", "include", "include[]", "keywords", "keywords[]",
			"known_speaker_names", "known_speaker_names[]", "language", "languages", "languages[]", "prompt",
			"temperature", "timestamp_granularities", "timestamp_granularities[]",
		},
		ruled: []string{
			"file", "known_speaker_references", "known_speaker_references[]", "response_format", "stream",
		},
	},
	// vLLM (vllm/entrypoints/openai/speech_to_text/protocol.py). Those that sample differently end with the sound.
	{
		known: []string{
			"frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "seed",
			"stream_continuous_usage_stats", "stream_include_usage", "top_k", "top_p",
		},
		refused: []string{"max_completion_tokens", "to_language", "vllm_xargs"},
	},
	// Groq (console.groq.com/docs/api-reference): a sound of unknown length.
	{refused: []string{"url"}},
}

// readRuledField reads a field of a form that has a rule.
func (r *Request) readRuledField(f *formField, value []byte) {
	switch f.name {
	case "file":
		r.Seconds = min(r.Seconds+secondsOf(value, f.fileName), MaxTokens)
	case "known_speaker_references", "known_speaker_references[]": // sounds, in base64
		r.Seconds = min(r.Seconds+divideUp(int64(len(value)), leastByteRate), MaxTokens)
	case "model":
		r.Model = string(value)
		if r.Model == "" || strings.ContainsFunc(r.Model, unicode.IsControl) {
			r.fail("model must be a string that is not empty, without control characters")
		}
	case "stream":
		switch text := strings.ToLower(string(value)); text {
		case "true", "false":
			r.Stream = text == "true"
		default:
			r.fail("stream must be true or false")
		}
	case "response_format":
		r.ResponseFormat = string(value)
		if !slices.Contains(transcriptFormats, r.ResponseFormat) {
			r.fail("response_format must be one of %s", strings.Join(transcriptFormats, ", "))
		}
	}
}

// transcriptFormats are the forms in which a transcript can be asked for.
var transcriptFormats = []string{"json", "text", "srt", "verbose_json", "vtt", "diarized_json"}

// WantsText reports whether the client wants a transcript as plain text. Such a response has no usage, so that the
// provider is asked for JSON, and UnpackText makes the text of that.
func (r *Request) WantsText() bool { return r.ResponseFormat == "text" }

// WantsSubtitles reports whether the client wants a transcript in a format that says nothing of its cost, and that
// cannot be made of one that does.
func (r *Request) WantsSubtitles() bool {
	return r.ResponseFormat == "srt" || r.ResponseFormat == "vtt"
}

// soundNames are the ends of the names of files with sound that are neither WAV nor FLAC.
var soundNames = []string{
	".aac", ".m4a", ".mka", ".mkv", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpga", ".oga", ".ogg", ".opus", ".webm",
}

// secondsOf returns how long the sound in a file may be. A header is believed unless the name says that there is
// something else, for which a provider may take the rest of it.
func secondsOf(file []byte, name string) int64 {
	seconds, ok := soundlength.Of(file)
	if !ok || slices.Contains(soundNames, strings.ToLower(path.Ext(strings.TrimRight(name, " .")))) {
		return divideUp(int64(len(file)), leastByteRate)
	}
	return seconds
}

// readTranscript reads the end of an object, which is a complete transcript unless it is an event.
func (r *Report) readTranscript(v jsonValue) {
	r.readSoundEvent(v)
	if r.hasChoices && !r.isStream {
		r.finished, r.worst = 1, max(r.worst, endedNormally)
	}
}

func (r *Report) readTranscriptEvent(v jsonValue) {
	switch string(v.text) {
	case `"transcript.text.done"`:
		r.Done, r.hasChoices = true, true
		r.finished, r.worst = 1, max(r.worst, endedNormally)
	case `"error"`:
		r.fail()
	}
}

// readTranscriptText reads the text, which is empty if nothing was said.
func (r *Report) readTranscriptText(v jsonValue) {
	r.addString(v)
	r.hasChoices = r.hasChoices || v.text[0] == '"'
}

// readSeconds reads how long the sound was: a number of seconds, or a string with one.
func (r *Report) readSeconds(v jsonValue) {
	text := bytes.TrimSpace(unquoted(v.text))
	if len(text) == 0 {
		return
	}
	if n, ok := readCount(text); ok {
		r.seconds = max(r.seconds, n)
	}
}

// usedSound does what Used does for a sound. Seconds count if the usage has no tokens.
func (r *Report) usedSound() (used Usage, exact bool) {
	used, exact = r.usage.usage(0), r.knowsSound()
	if used.total() == 0 && exact {
		used.Seconds = r.seconds
	}
	return used, exact
}

// knowsSound reports whether the response has said what it has used: tokens or seconds, more than 0.
func (r *Report) knowsSound() bool {
	used := r.usage.usage(0)
	input, output := r.usage.sees()
	return (!r.isStream || r.Done) && (used.total() > 0 && input && output || used.total() == 0 && r.seconds > 0)
}

// UnpackText returns the text of a transcript in JSON as OpenAI sends it as plain text, with a line end behind it. The
// text takes the place of body. ok is false if body is no such transcript.
func UnpackText(body []byte) (text []byte, ok bool) {
	var w jsonWalker[[]byte]
	if w.walk(body, transcriptTextShape, &text) != nil || len(text) == 0 {
		return nil, false
	}
	text, _ = strict.AppendUnquoted(text[:0], text)
	return append(text, '\n'), true
}

var transcriptTextShape = newJSONShape(jsonTable[[]byte]{"text": {read: func(text *[]byte, v jsonValue) {
	if v.text[0] == '"' {
		*text = v.text
	}
}}})

// changeForm makes all changes of a form.
func (w *rewriter) changeForm(c Changes) {
	for i := range w.r.fields {
		w.setHeader(&w.r.fields[i])
	}
	if c.Model != "" && c.Model != w.r.Model {
		w.setField("model", c.Model)
	}
	if w.r.WantsText() {
		w.setField("response_format", "json")
	}
}

// setHeader lets the header of a field that is no file be the one line that every server understands. Some take a field
// with a type for a file, or pass over a name without quotes or with a semicolon behind it: another model would be
// asked than the one that the form names. A Content-Length may be wrong once the value has changed.
func (w *rewriter) setHeader(f *formField) {
	header := formHeader(f.name)
	if !f.isFile && string(w.r.body[f.header.from:f.header.to]) != header {
		w.edits = append(w.edits, edit{f.header, header})
	}
}

// formHeader returns the header of a field that is no file, as most clients write it.
func formHeader(name string) string {
	return "Content-Disposition: form-data; name=" + strconv.Quote(name)
}

// setField sets a field of a form, which is put before all others if the form does not have it.
func (w *rewriter) setField(name, value string) {
	if at, exists := w.r.at[memberName{"", name}]; exists {
		w.edits = append(w.edits, edit{at, value})
		return
	}
	dashes := w.r.delimiter[len("\r\n"):]
	w.edits = append(w.edits, edit{text: dashes + "\r\n" + formHeader(name) + "\r\n\r\n" + value + "\r\n"})
}

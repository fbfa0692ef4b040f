package providertest

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// respondTranscription responds in the format of transcriptions. Models whose names begin with "whisper" report the
// length of the recording as usage, and have no streams.
func (a *response) respondTranscription() {
	form, _ := readForm(a.r.Header.Get("Content-Type"), a.content) // it was read before
	isWhisper := strings.HasPrefix(a.request.Model, "whisper")
	switch shape := form["response_format"]; {
	case strings.HasPrefix(a.request.Model, "gpt-4o") && shape != "" && shape != "json" && shape != "text":
		a.refuse(http.StatusBadRequest, "response_format", "unsupported_value",
			fmt.Sprintf("response_format '%s' is not compatible with model '%s'.", shape, a.request.Model))
	case a.request.Stream && !isWhisper:
		a.stream(a.transcriptEvents())
	default:
		a.transcript(shape, a.transcriptUsage(isWhisper || a.conduct.Seconds > 0 || shape == "verbose_json"))
	}
}

// respondTranslation responds in the format of translations, whose JSON has no usage.
func (a *response) respondTranslation() {
	form, _ := readForm(a.r.Header.Get("Content-Type"), a.content)
	a.transcript(form["response_format"], "")
}

// seconds returns the length of the recording.
func (a *response) seconds() float64 { return cmp.Or(a.conduct.Seconds, Seconds) }

// transcriptUsage returns a member with the usage of a transcription, in seconds or in tokens.
func (a *response) transcriptUsage(inSeconds bool) string {
	switch {
	case a.conduct.NoUsage:
		return ""
	case inSeconds:
		return fmt.Sprintf(`,"usage":{"type":"duration","seconds":%g}`, a.seconds())
	}
	usage := a.mediaUsage(fmt.Sprintf(`,"input_token_details":{"text_tokens":0,"audio_tokens":%d}`, a.input()))
	return `,"usage":{"type":"tokens",` + usage[1:]
}

// transcript sends a transcript in the shape that the member response_format names.
func (a *response) transcript(shape, usage string) {
	words := quoted(a.text())
	body, contentType := fmt.Sprintf(`{"text":%s%s}`, words, usage), "application/json"
	switch shape {
	case "verbose_json":
		body = fmt.Sprintf(`{"task":"transcribe","language":"english","duration":%g,"text":%s,"segments":[{"id":0,"seek":0,`+
			`"start":0.0,"end":%[1]g,"text":%[2]s,"tokens":[1],"temperature":0.0,"avg_logprob":-0.1,"compression_ratio":1.0,`+
			`"no_speech_prob":0.0}]%[3]s}`, a.seconds(), words, usage)
	case "text":
		body, contentType = a.text()+"\n", "text/plain; charset=utf-8"
	case "srt":
		body, contentType = "1\n00:00:00,000 --> 00:00:03,000\n"+a.text()+"\n\n", "text/plain; charset=utf-8"
	case "vtt":
		body, contentType = "WEBVTT\n\n00:00:00.000 --> 00:00:03.000\n"+a.text()+"\n\n", "text/plain; charset=utf-8"
	}
	a.w.Header().Set("Content-Type", contentType)
	a.setOwnHeaders()
	a.whole(text(body))
}

// transcriptEvents returns the events of a transcription that is streamed. They have no name.
func (a *response) transcriptEvents() (events []event) {
	moments := a.contents()
	for _, after := range moments {
		events = append(events, event{after, "", `{"type":"transcript.text.delta","delta":` + quoted(a.text()) + `}`})
	}
	return append(events, event{BeforeUsage, "", fmt.Sprintf(`{"type":"transcript.text.done","text":%s%s}`,
		quoted(strings.Repeat(a.text(), len(moments))), a.transcriptUsage(a.conduct.Seconds > 0))})
}

// sound is what speech consists of.
const sound = "\xff\xfb\x90\x00\x00\x0b"

// respondSpeech responds in the format of speech: with a sound as it is made, or with a stream of events.
func (a *response) respondSpeech() {
	var body struct {
		ResponseFormat string `json:"response_format"`
		StreamFormat   string `json:"stream_format"`
	}
	_ = json.Unmarshal(a.content, &body)
	isStream := body.StreamFormat == "sse"
	if isStream && strings.HasPrefix(a.request.Model, "tts-1") {
		a.refuse(http.StatusBadRequest, "stream_format", "unsupported_value", "'sse' is not supported for tts-1 or tts-1-hd.")
		return
	}
	moments := a.contents()
	content := cmp.Or(a.conduct.Content, strings.Repeat(sound, max(a.conduct.Size/len(moments)/len(sound), 1)))
	var events []event
	for _, after := range moments {
		data := content
		if isStream {
			data = fmt.Sprintf(`{"type":"speech.audio.delta","audio":%q}`, base64.StdEncoding.EncodeToString([]byte(content)))
		}
		events = append(events, event{after, "", data})
	}
	if !isStream {
		kind := "audio/" + strings.Replace(cmp.Or(body.ResponseFormat, "mp3"), "mp3", "mpeg", 1)
		a.sendAll(events, kind, func(_, data string) {
			a.send([]byte(data))
			a.flush()
		})
		return
	}
	done := `{"type":"speech.audio.done"`
	if usage := a.mediaUsage(""); usage != "" {
		done += `,"usage":` + usage
	}
	a.stream(append(events, event{BeforeUsage, "", done + "}"}))
}

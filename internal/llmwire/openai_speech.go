package llmwire

import (
	"strings"
	"unicode/utf8"
)

// maxInstructions are the characters that OpenAI accepts as instructions. They are not charged for.
const maxInstructions = 4096

// Speech costs what the characters do that are spoken, whatever its response says.
var openAISpeech = openAI(format{
	kind:      Speech,
	urlSuffix: "/audio/speech",
	delivery:  Binary,
	held:      noInput,
	smallest:  `{"input":"a","voice":` + anyVoice + `}`,

	rules: requestRules{members: newColumnTable(
		// OpenAI's SDKs (SpeechCreateParams in resources/audio/speech.d.ts).
		listing{
			known: []string{"response_format", "speed", "stream_format", "voice"},
			ruled: []string{"input", "instructions"},
		},
		// Groq, vLLM and others.
		listing{known: []string{"language", "sample_rate"}},
		openAIMembers,
	)},
	request: newJSONShape(openAIBody, jsonTable[Request]{
		"input":        {read: (*Request).readSpoken},
		"instructions": {read: (*Request).readInstructions},
	}),
	report: newJSONShape(usageReport, jsonTable[Report]{
		"":      {read: (*Report).readSoundEvent},
		"type":  {read: (*Report).readSpeechEvent},
		"audio": {read: (*Report).readText},
	}),
})

// readSpoken counts the characters that are to be spoken.
func (r *Request) readSpoken(v jsonValue) {
	if v.text[0] != '"' {
		r.fail("input must be a string")
		return
	}
	r.Characters = charactersOf(v.text)
}

// charactersOf returns how many Unicode code points a JSON string spells. Half of a surrogate pair counts as one.
func charactersOf(spelling []byte) (n int64) {
	for i := 1; i < len(spelling)-1; n++ {
		if spelling[i] != '\\' {
			_, size := utf8.DecodeRune(spelling[i:])
			i += size
			continue
		}
		const escape, unit = len(`\n`), len(`\u0000`)
		switch rest := spelling[i:]; {
		case rest[1] != 'u':
			i += escape
		case isUnit(rest, "89ab") && isUnit(rest[unit:], "cdef"):
			i += 2 * unit
		default:
			i += unit
		}
	}
	return n
}

// isUnit reports whether text begins with the \u escape of a UTF-16 code unit that is a surrogate, whose second digit
// is one of those given.
func isUnit(text []byte, digits string) bool {
	return len(text) > 3 && text[0] == '\\' && text[1] == 'u' && text[2]|0x20 == 'd' &&
		strings.IndexByte(digits, text[3]|0x20) >= 0
}

func (r *Request) readInstructions(v jsonValue) {
	if v.text[0] != '"' && !v.isNull() {
		r.fail("instructions must be a string")
	} else if charactersOf(v.text) > maxInstructions {
		r.fail("instructions must have at most %d characters", maxInstructions)
	}
}

// readSoundEvent reads the end of an object. In a stream, every event but an error counts as content, whatever it has:
// a sound or a transcript in a member that is not known is not free.
func (r *Report) readSoundEvent(v jsonValue) {
	r.readObject(v)
	if r.isStream && !r.Failed {
		r.contentBytes += int64(len(v.text))
	}
}

func (r *Report) readSpeechEvent(v jsonValue) {
	switch string(v.text) {
	case `"speech.audio.done"`:
		r.Done, r.hasChoices = true, true
		r.finished, r.worst = 1, max(r.worst, endedNormally)
	case `"error"`:
		r.fail()
	}
}

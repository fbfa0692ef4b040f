package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

// spent describes what a report says of the cost.
func (r *Report) spent() string {
	used, _, exact := r.Used(1, 0)
	got := fmt.Sprintf("%d+%d, %d s", used.Input, used.Output, used.Seconds)
	for _, flag := range []struct {
		name string
		is   bool
	}{{" unknown", !exact}, {" failure", r.IsFailure()}, {" reusable", r.IsReusable(1, false)}, {" done", r.Done}} {
		if flag.is {
			got += flag.name
		}
	}
	return got
}

func TestTranscripts(t *testing.T) {
	t.Parallel()
	const tokens = `"usage":{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":4,"audio_tokens":10},` +
		`"output_tokens":45,"total_tokens":59}`
	for body, want := range map[string]string{
		`{"text":"a",` + tokens + `}`:                                          "14+45, 0 s reusable",
		`{` + tokens + `,"text":""}`:                                           "14+45, 0 s reusable",
		`{"text":"a","usage":{"type":"duration","seconds":9}}`:                 "0+0, 9 s reusable",
		`{"text":"a","usage":{"type":"duration","seconds":8.01}}`:              "0+0, 9 s reusable",
		`{"task":"transcribe","duration":8.47,"text":"a","segments":[{}]}`:     "0+0, 9 s reusable",
		`{"duration":"8.470000267028809","text":"a"}`:                          "0+0, 9 s reusable",
		`{"duration":8.47,"text":"a","usage":{"type":"duration","seconds":9}}`: "0+0, 9 s reusable",
		`{"duration":8.47,"text":"a",` + tokens + `}`:                          "14+45, 0 s reusable",
		`{"text":"a"}`: "0+0, 0 s unknown",
		`{"text":""}`:  "0+0, 0 s unknown",
		`{"text":"a","duration":null,"usage":null}`:                                 "0+0, 0 s unknown",
		`{"text":"a","duration":-1}`:                                                "0+0, 0 s unknown",
		`{"text":"a","duration":"","usage":{"seconds":0}}`:                          "0+0, 0 s unknown",
		`{"text":"a","usage":{"type":"tokens","input_tokens":0,"output_tokens":0}}`: "0+0, 0 s unknown",
		`{"text":"a","usage":{"type":"tokens","input_tokens":14}}`:                  "14+0, 0 s unknown",
		`{"text":"a","segments":[{"duration":5,"usage":{"seconds":5}}]}`:            "0+0, 0 s unknown",
		`{}`:                                  "0+0, 0 s unknown failure",
		`{"text":null}`:                       "0+0, 0 s unknown failure",
		`{"error":{"message":"1"}}`:           "0+0, 0 s unknown failure",
		`{"object":"error","message":"a"}`:    "0+0, 0 s unknown failure",
		`{"error":"1","usage":{"seconds":2}}`: "0+0, 2 s",
	} {
		r := &Report{Format: OpenAITranscriptions}
		if _, err := r.Read([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		} else if got := r.spent(); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", body, got, want)
		}
	}
	r := &Report{Format: OpenAITranscriptions}
	if _, err := r.Read([]byte(`{"text":"a",` + tokens + `}`)); err != nil || r.usage.usage(0).AudioInput != 10 {
		t.Errorf("%d of the input are sound, want 10: %v", r.usage.usage(0).AudioInput, err)
	}
}

func TestSoundStreams(t *testing.T) {
	t.Parallel()
	const (
		delta   = `data: {"type":"transcript.text.delta","delta":"word"}` + "\n\n"
		segment = `data: {"type":"transcript.text.segment","id":"s","start":0,"end":9,"speaker":"A","text":"word"}` + "\n\n"
		usage   = `"usage":{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59}`
		spoken  = `data: {"type":"speech.audio.delta","audio":"AAAA"}` + "\n\n"
	)
	done := func(members string) string {
		return `data: {"type":"transcript.text.done","text":"word"` + members + "}\n\n"
	}
	for name, test := range map[string]struct {
		format       Format
		stream, want string
	}{
		"whole":         {OpenAITranscriptions, delta + delta + done(","+usage), "14+45, 0 s reusable done"},
		"segments":      {OpenAITranscriptions, segment + segment + done(`,"usage":{"type":"duration","seconds":9}`), "0+0, 9 s reusable done"},
		"nothing heard": {OpenAITranscriptions, `data: {"type":"transcript.text.done","text":"",` + usage + "}\n\n", "14+45, 0 s reusable done"},
		"without usage": {OpenAITranscriptions, delta + done(""), "0+0, 0 s unknown done"},
		"broken off":    {OpenAITranscriptions, delta + segment, "0+0, 0 s unknown"},
		"usage, no end": {OpenAITranscriptions, delta + "data: {" + usage + "}\n\n", "14+45, 0 s unknown"},
		"an error":      {OpenAITranscriptions, `data: {"type":"error","error":{"message":"1"}}` + "\n\n", "0+0, 0 s unknown failure"},
		"vLLM": {OpenAITranscriptions, `data: {"object":"transcription.chunk","choices":[{"delta":{"content":"a"}}]}` + "\n\ndata: [DONE]\n\n",
			"0+0, 0 s unknown done"},

		"speech":           {OpenAISpeech, spoken + `data: {"type":"speech.audio.done",` + usage + "}\n\n", "0+0, 0 s reusable done"},
		"unknown events":   {OpenAISpeech, `data: {"x":{"y":"AAAA"}}` + "\n\ndata: [DONE]\n\n", "0+0, 0 s done"},
		"unknown texts":    {OpenAITranscriptions, `data: {"x":{"y":"AAAA"}}` + "\n\ndata: [DONE]\n\n", "0+0, 0 s unknown done"},
		"a speech's half":  {OpenAISpeech, spoken, "0+0, 0 s"},
		"a speech's error": {OpenAISpeech, `data: {"type":"error","error":{"message":"1"}}` + "\n\n", "0+0, 0 s failure"},
	} {
		s := &Stream{Report: Report{Format: test.format}}
		s.Received(copy(s.Room(), test.stream))
		s.Finish()
		if got := s.Report.spent(); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", name, got, test.want)
		}
	}
}

func TestUnpackText(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"text":"a b"}`: "a b\n",
		`{"usage":{"text":"c"},"text":"\u00e4\"\n\ud83d\ude00\ud83d"}`: "ä\"\n😀\ufffd\n",
		`{"text":""}`:    "\n",
		`{"text":null}`:  "",
		`{"text":["a"]}`: "",
		`{}`:             "",
		`{"text":"a"`:    "",
		`a`:              "",
	} {
		got, ok := UnpackText([]byte(body))
		if string(got) != want || ok != (want != "") {
			t.Errorf("%s: %q, %v, want %q", body, got, ok, want)
		}
	}
}

func TestSecondsOf(t *testing.T) {
	t.Parallel()
	wav := "RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data\x00\x7d\x00\x00" +
		strings.Repeat("\x00", 32000)
	for _, test := range []struct {
		file, name string
		want       int64
	}{
		{wav, "a.wav", 1}, {wav, "sound", 1}, {wav, "a.MP3", 43}, {wav, "a.ogg. ", 43}, {wav, "mp3", 1},
		{"", "a.mp3", 0}, {"a", "a.mp3", 1}, {strings.Repeat("a", 750), "a.mp3", 1}, {strings.Repeat("a", 751), "a.wav", 2},
	} {
		if got := secondsOf([]byte(test.file), test.name); got != test.want {
			t.Errorf("%.4q… of %s: %d seconds, want %d", test.file, test.name, got, test.want)
		}
	}
}

// A character is a code point, however it is spelled.
func TestCharacters(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]int64{
		`""`: 0, `"abc"`: 3, `"äß€😀"`: 4, `"e\u0301"`: 2, `"\u00e4\n\"\\\/"`: 5, `"\ud83d\ude00"`: 1, `"\uD83D\uDE00"`: 1,
		`"\ud83d"`: 1, `"\ude00\ud83d"`: 2, `"\ud83d\u0041"`: 2, `"\ud83d\\ude00"`: 7, `"\ud83da"`: 2, `"👨‍👩‍👧"`: 5,
	} {
		r, err := ReadRequest(OpenAISpeech, []byte(`{"model":"m","voice":"v","input":`+input+`}`))
		if err != nil || r.Characters != want {
			t.Errorf("%s: %v, %v, want %d", input, r, err, want)
		}
	}
	for _, body := range []string{
		`{"input":null}`, `{"input":["a"]}`, `{"input":{}}`, `{"input":"a","input":"b"}`, `{"Input":"a"}`, `{"input":"a","instructions":1}`,
		`{"input":"a","instructions":"` + strings.Repeat("a", maxInstructions+1) + `"}`,
	} {
		if _, err := ReadRequest(OpenAISpeech, []byte(body)); err == nil {
			t.Errorf("%.80s is accepted", body)
		}
	}
	body := `{"input":"a","instructions":"` + strings.Repeat("ä", maxInstructions) + `","speed":2,"stream_format":"sse","voice":{"id":"v"},` +
		`"response_format":"mp3","model":"m","n":2,"stream":true}`
	r, err := ReadRequest(OpenAISpeech, []byte(body))
	if err != nil || fmt.Sprint(r.Unknown) != "[n stream]" || r.HeldInput(Holding{BytesPerToken: 1}) != 0 {
		t.Errorf("%v, %v", r, err)
	}
}

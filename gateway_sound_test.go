package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

const (
	speechPath      = "/v1/audio/speech"
	transcriptsPath = "/v1/audio/transcriptions"
	translatesPath  = "/v1/audio/translations"
	soundType       = "Content-Type: multipart/form-data; boundary=sound"
)

// soundForm returns a form with fields, each written name=value, and a file. Its boundary is that of soundType.
func soundForm(file string, fields ...string) string {
	var form strings.Builder
	for _, field := range fields {
		name, value, _ := strings.Cut(field, "=")
		fmt.Fprintf(&form, "--sound\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", name, value)
	}
	form.WriteString("--sound\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n" +
		"Content-Type: audio/wav\r\n\r\n" + file + "\r\n--sound--\r\n")
	return form.String()
}

// tenSeconds is a file that counts as a sound of 10 seconds.
var tenSeconds = strings.Repeat("x", 7500)

// wavOf returns a WAV of that many bytes of samples at 16 kHz, 2 bytes each.
func wavOf(size int) string {
	head := []byte("RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data")
	return string(binary.LittleEndian.AppendUint32(head, uint32(size))) + strings.Repeat("\x00", size)
}

// newSoundTest creates a tenant with endpoints for sounds in all formats. models are members of models, beside *.
func (s *service) newSoundTest(t testing.TB, tokens int, models, others string) *gatewayTest {
	t.Helper()
	p := providertest.New(t)
	endpoint := func(path string) string {
		return fmt.Sprintf(`{"url":"%s%s","default_model":"m","models":{%s"*":{}},"api_key":"%s"}`, p.URL, path, models, providertest.Key)
	}
	config := fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{"speech":{"endpoints":{"voice":%s}},`+
		`"transcription":{"endpoints":{"ear":%s,"interpreter":%s}}}%s}`,
		tokens, endpoint(speechPath), endpoint(transcriptsPath), endpoint(translatesPath), others)
	return s.gatewayTest(t, p, config)
}

// A soundCase is a request for a sound or a transcript, and what it costs.
type soundCase struct {
	name, path, body string // the body is a file, with fields before it if there are any, or JSON
	fields           string
	conduct          providertest.Conduct

	status        int
	held, charged int
	isStream      bool // the header does not say what it costs
	want          string
}

func (test *soundCase) request() (body, contentType string) {
	if test.path == speechPath {
		return test.body, "Content-Type: application/json"
	}
	return soundForm(test.body, strings.Fields(test.fields)...), soundType
}

// What each transcript costs. Prices are 1, if the model has no others.
func TestTranscriptCharges(t *testing.T) {
	t.Parallel()
	const models = `"timed":{"second":100,"input":0,"output":0},"seconds":{"second":100},` +
		`"tokens":{"second":0,"audio_input":4,"input":1000,"output":2,"request":3},` +
		`"free":{"second":0,"input":0,"output":0,"request":7},` +
		`"above":{"second":0,"above":{"tokens":100,"audio_input":10,"output":0}},"half":{"second":0,"input":0},`
	noUsage := providertest.Conduct{NoUsage: true}
	wantSoundCharges(t, models, []soundCase{
		{name: "tokens", path: transcriptsPath, body: tenSeconds, held: 150, charged: 18, want: `"type":"tokens"`},
		{name: "seconds", path: transcriptsPath, body: tenSeconds, conduct: providertest.Conduct{Seconds: 2.5},
			held: 150, charged: 3},
		{name: "seconds at a price", path: transcriptsPath, body: tenSeconds, fields: "model=seconds",
			conduct: providertest.Conduct{Seconds: 9.1},
			held:    1000, charged: 1000},
		{name: "tokens at prices", path: transcriptsPath, body: tenSeconds, fields: "model=tokens",
			held: 10*(10*4+5*2) + 3, charged: 11*4 + 7*2 + 3},
		{name: "seconds without a price", path: transcriptsPath, body: tenSeconds, fields: "model=tokens",
			conduct: providertest.Conduct{Seconds: 3}, held: 503, charged: 503},
		{name: "tokens without a price", path: transcriptsPath, body: tenSeconds, fields: "model=timed",
			held: 1000, charged: 1000},
		{name: "more than the hold", path: transcriptsPath, body: "x", conduct: providertest.Conduct{Seconds: 5000},
			held: 15, charged: 5000},
		{name: "dear if long", path: transcriptsPath, body: tenSeconds, fields: "model=above", held: 150, charged: 18},
		{name: "dearer if longer", path: transcriptsPath, body: tenSeconds + tenSeconds, fields: "model=above",
			held: 2000, charged: 18},
		{name: "a WAV", path: transcriptsPath, body: wavOf(32000*3 + 2), held: 60, charged: 18},
		{name: "no usage", path: transcriptsPath, body: tenSeconds, conduct: noUsage, held: 150, charged: 150},
		{name: "silence", path: transcriptsPath, body: tenSeconds, conduct: providertest.Conduct{Body: `{"text":""}`},
			held: 150, charged: 150},
		{name: "an error", path: transcriptsPath, body: tenSeconds,
			conduct: providertest.Conduct{Body: `{"error":{"message":"no"}}`}, status: 502},
		{name: "no JSON", path: transcriptsPath, body: tenSeconds, conduct: providertest.Conduct{Body: "a"},
			status: 502},
		{name: "refused", path: transcriptsPath, body: tenSeconds, conduct: providertest.Refuse(400), status: 400},
		{name: "verbose", path: transcriptsPath, body: tenSeconds, fields: "response_format=verbose_json",
			held: 150, charged: 3, want: `"duration":3,`},
		{name: "verbose without usage", path: transcriptsPath, body: tenSeconds, fields: "response_format=verbose_json",
			conduct: noUsage,
			held:    150, charged: 3},
		{name: "text", path: transcriptsPath, body: tenSeconds, fields: "response_format=text", held: 150, charged: 18,
			want: "word ünd \n"},
		{name: "text without usage", path: transcriptsPath, body: tenSeconds, fields: "response_format=text",
			conduct: noUsage,
			held:    150, charged: 150, want: "word ünd \n"},
		{name: "a stream", path: transcriptsPath, body: tenSeconds, fields: "stream=true",
			held: 150, charged: 18, isStream: true,
			want: `"transcript.text.done"`},
		{name: "a stream of text", path: transcriptsPath, body: tenSeconds, fields: "stream=true response_format=text",
			held: 150, charged: 18,
			isStream: true, want: `"transcript.text.done"`},
		{name: "a stream without usage", path: transcriptsPath, body: tenSeconds, fields: "stream=true", conduct: noUsage,
			held: 150, charged: 150,
			isStream: true},
		{name: "no stream though asked for", path: transcriptsPath, body: tenSeconds, fields: "model=whisper-1 stream=true",
			held: 150, charged: 3},
		{name: "srt", path: transcriptsPath, body: tenSeconds, fields: "response_format=srt", status: 400},
		{name: "vtt, free but for output", path: transcriptsPath, body: tenSeconds, fields: "model=half response_format=vtt", status: 400},
		{name: "srt, free", path: transcriptsPath, body: tenSeconds, fields: "model=free response_format=srt",
			held: 7, charged: 7, want: "00:00:03,000\n"},
		{name: "vtt, free", path: translatesPath, body: tenSeconds, fields: "model=free response_format=vtt",
			held: 7, charged: 7, want: "WEBVTT\n"},
		{name: "json, free", path: transcriptsPath, body: tenSeconds, fields: "model=free", conduct: noUsage,
			held: 7, charged: 7},

		{name: "a translation", path: translatesPath, body: tenSeconds, held: 150, charged: 150,
			want: `{"text":"word ünd "}`},
		{name: "a verbose translation", path: translatesPath, body: tenSeconds, fields: "response_format=verbose_json",
			held: 150, charged: 3},
		{name: "a translation as text", path: translatesPath, body: tenSeconds, fields: "response_format=text",
			held: 150, charged: 150, want: "word ünd \n"},
	})
}

// What each sound costs that is spoken.
func TestSpeechCharges(t *testing.T) {
	t.Parallel()
	cut := func(m providertest.Moment) providertest.Conduct { return providertest.Conduct{Cut: m} }
	const three = `{"input":"äß😀","voice":"v"}`
	wantSoundCharges(t, `"letters":{"character":0.5,"request":2},`, []soundCase{
		{name: "speech", path: speechPath, body: three, held: 3, charged: 3, want: "\xff\xfb\x90\x00\x00\x0b"},
		{name: "speech at a price", path: speechPath, body: `{"model":"letters","input":"abc","instructions":"loud"}`,
			held: 4, charged: 4},
		{name: "speech as events", path: speechPath, body: `{"input":"abc","stream_format":"sse"}`,
			held: 3, charged: 3, isStream: true,
			want: `"speech.audio.done"`},
		{name: "speech refused", path: speechPath, body: three, conduct: providertest.Refuse(422), status: 422},
		{name: "speech, an error", path: speechPath, body: three,
			conduct: providertest.Conduct{Body: `{"error":{"message":"no"}}`,
				Header: []string{"Content-Type: application/json"}}, status: 502},
		{name: "speech cut at once", path: speechPath, body: three, conduct: cut(providertest.BeforeContent),
			status: 502},
		{name: "speech cut later", path: speechPath, body: three, conduct: cut(providertest.InContent),
			status: -1, charged: 3},
	})
}

// wantSoundCharges checks what requests cost, each of a new key.
func wantSoundCharges(t *testing.T, models string, tests []soundCase) {
	t.Helper()
	const granted = 100_000
	g := newService(t).newSoundTest(t, granted, models, "")
	for _, test := range tests {
		g.provider.Each(func(providertest.Request) providertest.Conduct { return test.conduct })
		g.key = g.login(t, g.tenant)
		body, contentType := test.request()
		got, err := g.send("POST", "/"+g.tenant+test.path, body, contentType, bearer(g.key))
		if charged := g.charged(t, granted); charged != test.charged {
			t.Errorf("%s: charged %d, want %d", test.name, charged, test.charged)
		}
		if test.status < 0 {
			if err == nil {
				t.Errorf("%s: the connection is not cut: %q", test.name, got.body)
			}
			continue
		}
		test.check(t, got, err)
	}
}

// check checks the response.
func (test *soundCase) check(t *testing.T, got reply, err error) {
	t.Helper()
	status := max(test.status, 200)
	if err != nil || got.status != status || !strings.Contains(got.body, test.want) {
		t.Errorf("%s: got %d %q, %v, want %d %q", test.name, got.status, got.body, err, status, test.want)
	}
	if status != 200 {
		got.wantHeader(t, "X-Tokens-Charged", map[bool]string{true: "0"}[got.header.Get("X-Tokens-Charged") != ""])
		return
	}
	got.wantDocumented(t, "POST", "/acme"+test.path)
	got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(test.held))
	if want := fmt.Sprint(test.charged); !test.isStream {
		got.wantHeader(t, "X-Tokens-Charged", want)
	}
	if test.want == "word ünd \n" {
		if got.body != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got.body, test.want)
		}
		got.wantHeader(t, "Content-Type", "text/plain; charset=utf-8")
	}
}

// A form reaches the provider byte for byte, with its type, but for what changes.
func TestSoundForwarding(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 1_000_000, "", "")
	file := tenSeconds + "\r\n--soun\r\n\x00\xff"
	for _, test := range []struct{ body, want string }{
		{soundForm(file, "model=m", "language=en"), soundForm(file, "model=m", "language=en")},
		{soundForm(file), soundForm(file, "model=m")},
		{soundForm(file, "model=ear/m", "response_format=text"), soundForm(file, "model=m", "response_format=json")},
	} {
		transcribe := func() reply { return g.call(t, transcriptsPath, test.body, soundType, "Accept: text/plain") }
		if err := repeat(transcribe).is(200); err != nil {
			t.Error(err)
		}
		got := g.provider.Last(t)
		if string(got.Body) != test.want {
			t.Errorf("the provider got %q, want %q", got.Body, test.want)
		}
		if h := got.Header; "Content-Type: "+h.Get("Content-Type") != soundType || h.Get("Accept") != "application/json" {
			t.Errorf("the provider got the header %v", h)
		}
	}
	if err := g.call(t, speechPath, `{"input":"a"}`).is(200); err != nil {
		t.Error(err)
	}
	if h := g.provider.Last(t).Header; h.Get("Content-Type") != "application/json" || h.Get("Accept") != "*/*" {
		t.Errorf("the provider got the header %v", h)
	}
}

func TestSoundErrors(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 100, "", "")
	for _, test := range []struct {
		path, body, contentType string
		status                  int
		kind, code              string
	}{
		{transcriptsPath, "{}", "Content-Type: application/json", 400, "invalid_request_error", ""},
		{transcriptsPath, soundForm("x"), "Content-Type: multipart/form-data", 400, "invalid_request_error", ""},
		{transcriptsPath, soundForm("x") + "a", soundType, 400, "invalid_request_error", ""},
		{transcriptsPath, soundForm("x", "language=a", "language=b"), soundType, 400, "invalid_request_error", ""},
		{transcriptsPath, soundForm("x", "url=https://a.example"), soundType, 400, "invalid_request_error", ""},
		{translatesPath, soundForm("x", "stream=true"), soundType, 400, "invalid_request_error", ""},
		{transcriptsPath, soundForm(tenSeconds), soundType, 402, "insufficient_quota", "insufficient_quota"},
		{speechPath, `{"input":"` + strings.Repeat("a", 101) + `"}`, "", 402, "insufficient_quota", "insufficient_quota"},
		{speechPath, soundForm("x"), soundType, 400, "invalid_request_error", ""},
		{speechPath, `{"input":1}`, "", 400, "invalid_request_error", ""},
		{speechPath, `{"input":"a","n":2}`, "", 400, "invalid_request_error", ""},
		{speechPath, strings.Repeat(" ", 16<<20+1), "", 413, "invalid_request_error", ""},
		{transcriptsPath, strings.Repeat(" ", 32<<20+1), soundType, 413, "invalid_request_error", ""},
	} {
		headers := []string{}
		if test.contentType != "" {
			headers = []string{test.contentType}
		}
		g.call(t, test.path, test.body, headers...).wantWireError(t, test.path, test.status, test.kind, test.code)
	}
	if n := len(g.provider.Requests()); n > 0 {
		t.Errorf("%d requests came to the provider", n)
	}
	if left := tokensLeft(t, g.key); left != 100 {
		t.Errorf("%d tokens are left of 100", left)
	}
	g.call(t, "/v1/v1/audio/speech", "{}").wantWireError(t, chatPath, 404, "invalid_request_error", "")
}

// A form of 32 MiB is read whole, with its model behind the sound, in memory that is counted while it is there.
func TestSoundMemory(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 1_000_000, "", "")
	g.provider.On("hang", providertest.Conduct{Hang: providertest.BeforeHeaders})
	file := strings.Repeat("x", 32<<20-400)
	body := strings.TrimSuffix(soundForm(file), "--sound--\r\n") +
		"--sound\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nlast\r\n--sound--\r\n"
	got := g.call(t, transcriptsPath, body, soundType)
	got.wantHeader(t, "X-Tokens-Charged", "18")
	if last := g.provider.Last(t); last.Model != "last" || string(last.Body) != body {
		t.Errorf("the provider got %d bytes for the model %q, want %d", len(last.Body), last.Model, len(body))
	}
	g.awaitUsed(t, "gateway_bodies", 0)

	body = soundForm(strings.Repeat("x", 1<<20), "model=hang")
	before := len(g.provider.Requests())
	c := g.begin(t, "POST", "/"+g.tenant+transcriptsPath, len(body), bearer(g.key), soundType)
	io.WriteString(c, body)
	g.awaitRequests(t, before+1)
	if used := g.used(t, "gateway_bodies"); used < 900<<10 || used > 2<<20 {
		t.Errorf("%v bytes are counted for a form of 1 MiB", used)
	}
	c.Close()
	g.provider.Stop()
	g.awaitUsed(t, "gateway_bodies", 0)
}

// Transcripts are cached for all keys of the tenant. The boundary of the form and the name of the file do not matter.
func TestTranscriptCache(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 10_000, "", `,"caching":{"enabled":true,"transcription_ttl":60,"fee_percentage":50}`)
	call := func(body, contentType, cache string, charged int) reply {
		t.Helper()
		got := g.call(t, transcriptsPath, body, contentType)
		if err := got.is(200); err != nil {
			t.Error(err)
		}
		got.wantHeader(t, "X-Cache", cache)
		if charged >= 0 {
			got.wantHeader(t, "X-Tokens-Charged", fmt.Sprint(charged))
		}
		return got
	}
	hit := func(body, contentType string) (got reply) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			if got = g.call(t, transcriptsPath, body, contentType); got.header.Get("X-Cache") != "HIT" {
				return fmt.Errorf("X-Cache is %q", got.header.Get("X-Cache"))
			}
			return nil
		})
		got.wantHeader(t, "X-Tokens-Charged", "9")
		return got
	}
	first := call(soundForm(tenSeconds, "language=en"), soundType, "MISS", 18)
	g.key = g.login(t, g.tenant)
	other := strings.ReplaceAll(soundForm(tenSeconds, "language=en"), "sound", "other-boundary")
	other = strings.ReplaceAll(other, "a.wav", "b.wav")
	if got := hit(other, strings.ReplaceAll(soundType, "sound", "other-boundary")); got.body != first.body {
		t.Errorf("got %q, want %q", got.body, first.body)
	}
	call(soundForm(tenSeconds, "language=de"), soundType, "MISS", 18)
	call(soundForm(tenSeconds, "language=", "prompt=en"), soundType, "MISS", 18)
	call(soundForm(tenSeconds+"x", "language=en"), soundType, "MISS", 18)

	asText := soundForm(tenSeconds, "response_format=text")
	call(asText, soundType, "MISS", 18)
	got := hit(asText, soundType)
	if want := "word ünd \n"; got.body != want {
		t.Errorf("got %q, want %q", got.body, want)
	}
	got.wantHeader(t, "Content-Type", "text/plain; charset=utf-8")

	for range 2 { // streams are not cached
		stream := call(soundForm(tenSeconds, "stream=true"), soundType, "", -1)
		if !strings.Contains(stream.body, "transcript.text.done") {
			t.Errorf("got %q", stream.body)
		}
		g.call(t, speechPath, `{"input":"a"}`).wantHeader(t, "X-Cache", "")
	}
}

// A sound is relayed while it is made, and what it costs is charged when it has begun, also if its client goes.
func TestSpeechHangUp(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"input":"abcd"}`, `{"input":"abcd","stream_format":"sse"}`} {
		g := newService(t).newSoundTest(t, 1000, "", "")
		g.provider.On("", providertest.Conduct{Hang: providertest.InContent})
		r, _ := http.NewRequest("POST", g.url+"/"+g.tenant+speechPath, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+g.key)
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, 10)
		n, err := response.Body.Read(part)
		if n == 0 {
			t.Fatalf("nothing came: %v", err)
		}
		response.Body.Close()
		waittest.Eventually(t, 10*time.Second, func() error {
			if _, cancelled := g.provider.Counts(); cancelled != 1 {
				return fmt.Errorf("%s: %d requests are cancelled, want 1", body, cancelled)
			}
			return nil
		})
		if charged := g.charged(t, 1000); charged != 4 {
			t.Errorf("%s: charged %d, want 4", body, charged)
		}
		g.awaitUsed(t, "waiting", 0)
		g.awaitUsed(t, "drains", 0)
	}
}

// A client that goes before the sound begins pays for it, since the provider makes it all the same. Its rest is not
// awaited.
func TestSpeechHangUpBefore(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 1000, "", "")
	g.provider.On("", providertest.Conduct{Delay: 300 * time.Millisecond, Hang: providertest.InContent})
	const body = `{"input":"abcd"}`
	c := g.begin(t, "POST", "/"+g.tenant+speechPath, len(body), bearer(g.key))
	io.WriteString(c, body)
	g.awaitRequests(t, 1)
	c.Close()
	if charged := g.charged(t, 1000); charged != 4 {
		t.Errorf("charged %d, want 4", charged)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if _, cancelled := g.provider.Counts(); cancelled != 1 {
			return fmt.Errorf("%d requests are cancelled, want 1", cancelled)
		}
		return nil
	})
	g.awaitUsed(t, "drains", 0)
}

// A transcript whose client goes is read to its end, since the provider bills it all the same: it costs its usage, or
// what was held if that does not come.
func TestTranscriptHangUp(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for name, test := range map[string]struct {
		fields  string
		conduct providertest.Conduct
		text    string // that the client has seen before it goes
		charged int
	}{
		"JSON":            {"model=m", providertest.Conduct{Delay: 300 * time.Millisecond}, "", 18},
		"a stream":        {"stream=true", providertest.Conduct{Pause: 100 * time.Millisecond}, "delta", 18},
		"a broken stream": {"stream=true", providertest.Conduct{Pause: 100 * time.Millisecond, Cut: providertest.BeforeUsage}, "delta", 150},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := s.newSoundTest(t, 1000, "", "")
			g.provider.On("m", test.conduct)
			body := soundForm(tenSeconds, test.fields, "language=en")
			c := g.begin(t, "POST", "/"+g.tenant+transcriptsPath, len(body), bearer(g.key), soundType)
			io.WriteString(c, body)
			g.awaitRequests(t, 1)
			seen, part := "", make([]byte, 4096)
			for !strings.Contains(seen, test.text) {
				n, err := c.Read(part)
				if seen += string(part[:n]); err != nil {
					t.Fatalf("got %q, %v", seen, err)
				}
			}
			c.Close()
			if charged := g.charged(t, 1000); charged != test.charged {
				t.Errorf("charged %d, want %d", charged, test.charged)
			}
			if _, cancelled := g.provider.Counts(); cancelled != 0 {
				t.Errorf("%d requests are cancelled", cancelled)
			}
		})
	}
}

// A form is sent to the next endpoint as it came, if the first one cannot have begun.
func TestSoundFallback(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := providertest.New(t)
	endpoint := func(name, model string) string {
		return fmt.Sprintf(`%q:{"url":"%s%s","models":{"*":{}},"api_key":"%s"}`, name, p.URL, transcriptsPath, model)
	}
	const config = `{"user_groups":{"anonymous":{"tokens":1000}},"providers":{"transcription":{"endpoints":{%s,%s}}}}`
	g := s.gatewayTest(t, p, fmt.Sprintf(config,
		endpoint("first", "wrong"), endpoint("second", providertest.Key)))
	body := soundForm(tenSeconds, "model=m")
	got := g.call(t, transcriptsPath, body, soundType)
	got.wantHeader(t, "X-Tokens-Charged", "18")
	for _, request := range p.Requests() {
		if string(request.Body) != body || len(p.Requests()) != 2 {
			t.Errorf("one of %d requests is %q", len(p.Requests()), request.Body)
		}
	}
}

// A sound of any size takes no memory: it comes as fast as its client reads it.
func TestSpeechBackpressure(t *testing.T) {
	t.Parallel()
	g := newService(t).newSoundTest(t, 1000, "", "")
	const size = 24 << 20
	g.provider.On("", providertest.Conduct{Size: size, Events: 64})
	r, _ := http.NewRequest("POST", g.url+"/"+g.tenant+speechPath, bytes.NewReader([]byte(`{"input":"abcd"}`)))
	r.Header.Set("Authorization", "Bearer "+g.key)
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); kind != "audio/mpeg" || response.Header.Get("X-Tokens-Charged") != "4" {
		t.Errorf("the header is %v", response.Header)
	}
	part := make([]byte, 64<<10)
	if _, err := io.ReadFull(response.Body, part); err != nil {
		t.Fatal(err)
	}
	if used := g.used(t, "gateway_bodies"); used != 0 {
		t.Errorf("%v bytes are counted", used)
	}
	rest, err := io.Copy(io.Discard, response.Body)
	if got := rest + int64(len(part)); err != nil || got < size*9/10 || got > size*11/10 {
		t.Errorf("%d bytes came of about %d: %v", got, size, err)
	}
}

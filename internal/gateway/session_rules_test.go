package gateway

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

// newSessionEndpoint returns an endpoint for sessions with these members.
func newSessionEndpoint(t testing.TB, name, members string) *Endpoint {
	t.Helper()
	e := NewEndpoint(llmwire.Realtime, name)
	var wrong strict.Problems
	object := []byte("{" + members + "}")
	rules, _ := e.SessionRules(object, objectOf)
	if !objectOf(rules)(&wrong, object) || !e.Complete() {
		t.Fatalf("%s: %s cannot be used: %v", name, members, wrong.Sentences)
	}
	return e
}

// Where the requests go that open sessions, and with which key.
func TestSessionEndpoint(t *testing.T) {
	for _, test := range []struct{ name, members, url, header, key string }{
		{"openai", `"api_key":"k"`, "https://api.openai.com/v1/realtime", "Authorization", "Bearer k"},
		{"ultravox", `"api_key":"k"`, "https://api.ultravox.ai/api/calls", "X-Api-Key", "k"},
		{"e", `"type":"openai","url":"wss://h:1/x/realtime/?a=b","auth":"api-key","api_key":"k"`, "https://h:1/x/realtime?a=b", "Api-Key", "k"},
		{"openai", `"type":"ultravox","url":"ws://h/calls/","api_key":"k"`, "http://h/calls", "X-Api-Key", "k"},
		{"ultravox", `"type":"openai","url":"http://h/v1/realtime","api_key":"k"`, "http://h/v1/realtime", "Authorization", "Bearer k"},
		{"ultravox", `"auth":"bearer","api_key":"k"`, "https://api.ultravox.ai/api/calls", "Authorization", "Bearer k"},
	} {
		e := newSessionEndpoint(t, test.name, test.members)
		header, key := e.credential()
		if got := e.url.String(); got != test.url || header != test.header || key != test.key {
			t.Errorf("%s: %s: got %s, %s: %s", test.name, test.members, got, header, key)
		}
	}
}

// What the members of an endpoint for sessions are if they are missing, and what is read of them.
func TestSessionRules(t *testing.T) {
	defaults := sessionRules{
		maxSession: time.Hour, maxInput: 28_672, maxOutput: 4_096, sampleRate: 48_000,
	}
	with := func(change func(s *sessionRules)) sessionRules {
		s := defaults
		change(&s)
		return s
	}
	for _, test := range []struct {
		name, members string
		want          sessionRules
	}{
		{"openai", ``, defaults},
		{"ultravox", `"call":{}`, with(func(s *sessionRules) { s.isUltravox = true })},
		{"openai", `"model":"m","voice":"v","max_session":60,"max_input_tokens":96000,"max_output_tokens":32000,"sampleRate":1`,
			with(func(s *sessionRules) {
				s.model, s.voice, s.maxSession, s.maxInput, s.maxOutput = "m", "v", time.Minute, 96_000, 32_000
			})},
		{"ultravox", `"model":"m","voice":"v","max_session":7200,"sampleRate":16000`, with(func(s *sessionRules) {
			s.isUltravox, s.model, s.voice, s.maxSession, s.sampleRate = true, "m", "v", 2*time.Hour, 16_000
		})},
	} {
		if got := *newSessionEndpoint(t, test.name, test.members).session; fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: %s: got %+v, want %+v", test.name, test.members, got, test.want)
		}
	}
	const call = `{"systemPrompt":"Be brief."}`
	if got := string(newSessionEndpoint(t, "ultravox", `"call":`+call).session.call); got != call {
		t.Errorf("the call is %s, want %s", got, call)
	}
}

// What a session costs: by its model, else beside it, else a token for a token. Transcriptions cost what the sound and
// the text do, and a token a second.
func TestSessionPriceOfModel(t *testing.T) {
	for _, test := range []struct {
		name, members, model string
		want, transcription  [3]int64 // of input, output and a second, in tokens
	}{
		{"openai", `"model":"m"`, "m", [3]int64{1, 1, 1}, [3]int64{1, 1, 1}},
		{"openai", `"model":"m","price":{"input":2,"output":3}`, "m", [3]int64{2, 3, 1}, [3]int64{2, 3, 1}},
		{"openai", `"model":"m","models":{"m":{"input":5}},"price":{"input":2}`, "m", [3]int64{5, 1, 1}, [3]int64{5, 1, 1}},
		{"openai", `"model":"m","models":{"m":{"input":5}},"price":{"input":2}`, "m-latest", [3]int64{5, 1, 1}, [3]int64{5, 1, 1}},
		{"openai", `"model":"m","models":{"*":{"input":5}},"price":{"input":2}`, "m", [3]int64{2, 1, 1}, [3]int64{2, 1, 1}},
		{"openai", `"model":"m","models":{"*":{"input":5}},"price":{"input":2}`, "n", [3]int64{5, 1, 1}, [3]int64{5, 1, 1}},
		{"openai", `"model":"m","models":{"*":{"input":5}}`, "m", [3]int64{5, 1, 1}, [3]int64{5, 1, 1}},
		{"openai", `"model":"m","price":{"input":2,"audio_input":9,"output":3,"audio_output":8}`, "m",
			[3]int64{2, 3, 1}, [3]int64{9, 3, 1}},
		{"openai", `"model":"m","price":{"audio_input":9,"transcription":{"input":6}}`, "m", [3]int64{1, 1, 1}, [3]int64{6, 1, 1}},
		{"openai", `"models":{"m":{"output":7,"transcription":{"output":5,"second":0}}}`, "m", [3]int64{1, 7, 1}, [3]int64{1, 5, 0}},
		{"openai", `"model":"m","price":{"transcription":{}}`, "m", [3]int64{1, 1, 1}, [3]int64{1, 1, 1}},
		{"ultravox", ``, "ultravox", [3]int64{1, 1, 1}, [3]int64{1, 1, 1}},
		{"ultravox", `"models":{"*":{"second":3}}`, "ultravox", [3]int64{1, 1, 3}, [3]int64{1, 1, 1}},
		{"ultravox", `"model":"uv","models":{"uv":{"second":3}}`, "uv", [3]int64{1, 1, 3}, [3]int64{1, 1, 1}},
		{"ultravox", `"price":{"second":4}`, "ultravox", [3]int64{1, 1, 4}, [3]int64{1, 1, 1}},
		{"ultravox", `"model":"uv","price":{"second":4,"input":9}`, "uv", [3]int64{1, 1, 4}, [3]int64{1, 1, 1}},
	} {
		c := &SessionCall{Model: test.model, Outcome: new(Outcome)}
		if err := c.ChooseEndpoint(Endpoints{newSessionEndpoint(t, test.name, test.members)}); err != nil {
			t.Errorf("%s: %v", test.members, err)
			continue
		}
		p := c.price()
		of := func(p *price) [3]int64 {
			return [3]int64{p.rates[kindInput] / priceUnit, p.rates[kindOutput] / priceUnit, p.rates[kindSecond] / priceUnit}
		}
		if got, transcription := of(p.price), of(p.transcription); got != test.want || transcription != test.transcription {
			t.Errorf("%s: %s costs %v, transcriptions %v; want %v, %v",
				test.members, test.model, got, transcription, test.want, test.transcription)
		}
		if p.maxInput != 28_672 || p.maxOutput != 4_096 {
			t.Errorf("%s: held for %d and %d", test.members, p.maxInput, p.maxOutput)
		}
	}
	p := newSessionEndpoint(t, "openai", `"model":"m","price":{"transcription":{"input":2}}`).prices.find("m").transcription()
	if cost := p.bill(&llmwire.Usage{Input: 10, AudioInput: 4, CachedAudioInput: 3}, 1).tokens(); cost != 20 {
		t.Errorf("10 tokens, some of sound, cost %d, want 20", cost)
	}
}

// Which endpoint and model a session has.
func TestChooseEndpoint(t *testing.T) {
	all := Endpoints{
		newSessionEndpoint(t, "openai_open", `"models":{"gpt-*":{},"a/b":{}}`),
		newSessionEndpoint(t, "openai", `"model":"gpt-realtime","models":{"mini":{},"ultravox":{}}`),
		newSessionEndpoint(t, "ultravox", `"models":{"*":{}}`), // has no other model all the same
		newSessionEndpoint(t, "ultravox_new", `"model":"uv-1","models":{"uv-2":{}}`),
	}
	some := all[1:]
	for _, test := range []struct {
		all         Endpoints
		model, want string // the endpoint and the model, or the error
	}{
		{some, "", "openai gpt-realtime"},
		{all, "", "openai_open gpt-realtime"}, // the first that allows the first model
		{all[2:], "", "ultravox ultravox"},
		{all[3:], "", "ultravox_new uv-1"},
		{all, "openai", "openai gpt-realtime"},
		{all, "ultravox", "ultravox ultravox"}, // the endpoint, not the model
		{all, "openai/ultravox", "openai ultravox"},
		{all, "ultravox/ultravox", "ultravox ultravox"},
		{all, "ultravox_new", "ultravox_new uv-1"},
		{all, "uv-1", "ultravox_new uv-1"},
		{all, "ultravox_new/uv-1", "ultravox_new uv-1"},
		{all, "uv-2", `404 No endpoint allows the model "uv-2"`},
		{all, "mini", "openai mini"},
		{all, "mini-2026-01-01", "openai mini-2026-01-01"},
		{all, "gpt-9", "openai_open gpt-9"},
		{all, "openai/gpt-realtime", "openai gpt-realtime"},
		{all, "a/b", "openai_open a/b"},
		{all, "openai/gpt-9", `404 No endpoint allows the model "openai/gpt-9"`},
		{all, "ultravox/uv-1", `404 No endpoint allows the model "ultravox/uv-1"`},
		{all, "ultravox_new/", `404 No endpoint allows the model "ultravox_new/"`},
		{all, "openai_open", `404 No endpoint allows the model "openai_open"`}, // has no model of its own
		{all, "GPT-realtime", `404 No endpoint allows the model "GPT-realtime"`},
		{all[:1], "", "404 No endpoint of providers.realtime has a model: name one, as ?model="},
		{nil, "", "404 No endpoint of providers.realtime can be used"},
		{nil, "m", "404 No endpoint of providers.realtime can be used"},
	} {
		c := &SessionCall{Model: test.model, Outcome: new(Outcome)}
		err := c.ChooseEndpoint(test.all)
		if got := c.chosen(err); got != test.want {
			t.Errorf("%q of %d endpoints: got %s, want %s", test.model, len(test.all), got, test.want)
		}
		if got := c.Outcome.Model; err == nil && got != c.model || err != nil && got != "" {
			t.Errorf("%q: the outcome has the model %q; %v", test.model, got, err)
		}
	}
}

// chosen describes what was chosen, or the error.
func (c *SessionCall) chosen(err error) string {
	if err != nil {
		failure, _ := errors.AsType[Error](err)
		return fmt.Sprint(failure.Status, " ", failure.Message)
	}
	return c.endpoint.Name + " " + c.model
}

// An account that does not allow a model gets the first one that it allows, unless the client has named the model.
func TestChooseAllowedSession(t *testing.T) {
	all := Endpoints{
		newSessionEndpoint(t, "openai", `"model":"gpt-realtime","models":{"mini":{}}`),
		newSessionEndpoint(t, "openai_eu", `"model":"gpt-realtime","models":{"mini-eu":{}}`),
		newSessionEndpoint(t, "ultravox", ``),
	}
	const denied = `404 This API key may not use the model "gpt-realtime"`
	for _, test := range []struct {
		model   string
		allowed ModelNames
		want    string
	}{
		{"", ModelNames{"ultravox", "mini"}, "openai mini"},
		{"", ModelNames{"ultravox"}, "ultravox ultravox"},
		{"", ModelNames{"ultra*"}, "ultravox ultravox"},
		{"", ModelNames{}, denied},
		{"", ModelNames{"other"}, denied},
		{"openai_eu", ModelNames{"mini", "mini-eu"}, "openai_eu mini-eu"},
		{"openai_eu", ModelNames{"mini"}, denied},
		{"gpt-realtime", ModelNames{"mini"}, denied},
		{"openai/gpt-realtime", ModelNames{"mini"}, denied},
	} {
		c := &SessionCall{Model: test.model, Outcome: new(Outcome)}
		if err := c.ChooseEndpoint(all); err != nil {
			t.Fatal(err)
		}
		got := c.chosen(c.chooseAllowed(test.allowed))
		if got != test.want || c.Outcome.Model != c.model {
			t.Errorf("%q with %q: got %s, want %s", test.model, test.allowed, got, test.want)
		}
		if again := c.chosen(c.chooseAllowed(test.allowed)); got != denied && again != `404 This API key may not use the model "`+c.model+`"` {
			t.Errorf("%q with %q, again: got %s", test.model, test.allowed, again)
		}
	}
}

// An operator's key goes to the same host by a WebSocket as by HTTP, and nowhere else.
func TestOperatorKeysOfSessions(t *testing.T) {
	keys := func(prefix string) *OperatorKeys {
		k := new(OperatorKeys)
		parsed, err := parseOperatorKeys([]byte(`{"k":{"api_key":"x","url_prefix":"` + prefix + `","tenants":["*"]}}`))
		if err != nil {
			t.Fatal(err)
		}
		k.current.Store(&parsed)
		return k
	}
	for _, test := range []struct {
		prefix, name, members string
		ok                    bool
	}{
		{"https://api.openai.com/", "openai", ``, true},
		{"https://api.openai.com/v1", "openai", `"url":"wss://api.openai.com/v1/realtime"`, true},
		{"https://api.openai.com/v1", "openai", `"url":"https://api.openai.com:443/v1/realtime"`, true},
		{"https://api.openai.com/v2", "openai", ``, false},
		{"http://api.openai.com/", "openai", ``, false},
		{"https://api.openai.com/", "openai", `"url":"ws://api.openai.com/v1/realtime"`, false},
		{"http://h/", "openai", `"url":"ws://h/v1/realtime"`, true},
		{"http://h/", "openai", `"url":"wss://h/v1/realtime"`, false},
		{"http://h:80/", "openai", `"url":"ws://h/v1/realtime"`, true},
		{"https://api.openai.com/", "ultravox", ``, false},
		{"https://api.ultravox.ai/api", "ultravox", ``, true},
		{"https://api.ultravox.ai/api", "ultravox", `"url":"https://api.ultravox.ai/api/../calls"`, false},
	} {
		e := newSessionEndpoint(t, test.name, test.members+map[bool]string{true: ","}[test.members != ""]+`"api_key_name":"k"`)
		usable := (&Gateway{options: Options{Keys: keys(test.prefix)}, log: telemetry.NewLogger(io.Discard)}).Usable(Endpoints{e}, "acme")
		if ok := len(usable) == 1 && usable[0].apiKey == "x"; ok != test.ok {
			t.Errorf("%s, %s %s: %v", test.prefix, test.name, test.members, ok)
		}
	}
}

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/gateway"
	"tollgate/internal/strict"
	"tollgate/internal/telemetrytest"
)

const switchedOff = "providers.realtime.endpoints.openai_realtime.model is of the beta API, " +
	"which OpenAI has switched off: sessions fail"

// realtimeConfig returns a config with one endpoint for sessions.
func realtimeConfig(name, members string) []byte {
	return fmt.Appendf(nil, `{"providers":{"realtime":{"endpoints":{%q:{%s}}}}}`, name, members)
}

// parseNew parses a config that is put by a tenant without keys of the operator.
func parseNew(config []byte) (*tenantConfig, error) {
	return parseConfigWith(config, func(e *gateway.Endpoint, wrong *strict.Problems) bool {
		ok := new(gateway.OperatorKeys).Check(e, "acme", wrong)
		return e.CheckCredential(wrong) && ok
	})
}

// What an endpoint for sessions may not have keeps a config from being put. One in Redis is served without the endpoint.
func TestRealtimeConfigRefused(t *testing.T) {
	t.Parallel()
	const (
		price  = " must be a number from 0 to 1000000000 with at most 6 decimals"
		url    = "url must be an absolute ws, wss, http or https URL"
		member = " is not a member that the gateway may set: tools and connections to other servers are not among them"
	)
	for _, test := range []struct{ name, members, want string }{
		{"e", `"type":"gemini"`, `type must be "openai" or "ultravox"`},
		{"openai", `"type":"OpenAI"`, `type must be "openai" or "ultravox"`},
		{"openai", `"type":null`, `type must be "openai" or "ultravox"`},
		{"openai", `"type":"openai","type":"openai"`, "type is duplicated"},
		{"e", `"url":"ftp://h/"`, url},
		{"e", `"url":"wss:///v1/realtime"`, url},
		{"openai", `"url":"/v1/realtime"`, url},
		{"openai", `"url":7`, url},
		{"ultravox", `"url":"h"`, url},
		{"openai", `"url":"wss://h/v1/realtime?model=m"`, "url must not have model in its query: the member model says what is asked for"},
		{"openai", `"url":"wss://h/v1/realtime?x=1&intent=transcription"`,
			"url must not have intent in its query: the member model says what is asked for"},
		{"openai", `"url":"wss://h/v1/realtime?call_id=rtc_1"`,
			"url must not have call_id in its query: the member model says what is asked for"},
		{"e", `"model":7`, "model must be a string"},
		{"openai", `"model":7`, "model must be a string"},
		{"openai", `"voice":{}`, "voice must be a string"},
		{"openai", `"default_model":7`, "default_model must be a string"},
		{"openai", `"encoding":7`, "encoding must be a string"},
		{"openai", `"sampleRate":"7"`, "sampleRate must be a number"},
		{"openai", `"api_key":"s k"`, "api_key must be printable ASCII without white space"},
		{"openai", `"auth":"basic"`, `auth must be "bearer", "x-api-key" or "api-key"`},
		{"ultravox", `"auth":null`, `auth must be "bearer", "x-api-key" or "api-key"`},
		{"openai", `"api_key_name":"k"`, "api_key_name must name a key that the operator has for this tenant"},
		{"openai", `"max_session":0`, "max_session must be a whole number of seconds from 1 to 3600"},
		{"openai", `"max_session":3601`, "max_session must be a whole number of seconds from 1 to 3600"},
		{"ultravox", `"max_session":5`, "max_session must be a whole number of seconds from 6 to 86400"},
		{"ultravox", `"max_session":86401`, "max_session must be a whole number of seconds from 6 to 86400"},
		{"openai", `"max_input_tokens":0`, "max_input_tokens must be a whole number ≥ 1"},
		{"openai", `"max_output_tokens":"inf"`, "max_output_tokens must be a whole number ≥ 1"},
		{"openai", `"price":1`, "price must be an object"},
		{"openai", `"price":{"audio_output":-1}`, "price.audio_output" + price},
		{"openai", `"price":{"above":{"input":1}}`, "price.above.tokens is missing"},
		{"openai", `"price":{"transcription":1}`, "price.transcription must be an object"},
		{"openai", `"price":{"transcription":{"second":-1}}`, "price.transcription.second" + price},
		{"openai", `"models":{"m":{"transcription":{"input":"1"}}}`, "models.m.transcription.input" + price},
		{"openai", `"models":{"":{}}`, `models[""] must have a name of 1 to 256 bytes`},
		{"openai", `"models":{"m":{"cached_audio_input":1e-7}}`, "models.m.cached_audio_input" + price},
		{"ultravox", `"price":{"second":null}`, "price.second" + price},
		{"ultravox", `"encoding":"opus"`, `encoding must be "pcm_s16le"`},
		{"ultravox", `"encoding":7`, `encoding must be "pcm_s16le"`},
		{"ultravox", `"sampleRate":7999`, "sampleRate must be a whole number from 8000 to 48000"},
		{"ultravox", `"sampleRate":48001`, "sampleRate must be a whole number from 8000 to 48000"},
		{"ultravox", `"sampleRate":44100.5`, "sampleRate must be a whole number from 8000 to 48000"},
		{"ultravox", `"call":[]`, "call must be an object"},
		{"ultravox", `"call":{"selectedTools":[]}`, "call.selectedTools" + member},
		{"ultravox", `"call":{"SystemPrompt":"x"}`, "call.SystemPrompt" + member},
		{"ultravox", `"call":{"dataConnection":{}}`, "call.dataConnection" + member},
		{"ultravox", `"call":{"callbacks":null}`, "call.callbacks" + member},
		{"ultravox", `"call":{"externalVoice":{}}`, "call.externalVoice" + member},
		{"ultravox", `"call":{"experimentalSettings":{}}`, "call.experimentalSettings" + member},
		{"ultravox", `"call":{"initialState":{}}`, "call.initialState" + member},
		{"ultravox", `"call":{"maxDuration":"1s"}`, "call.maxDuration must be left out: it comes from max_session and the balance"},
		{"ultravox", `"call":{"medium":{}}`, "call.medium must be left out: it comes from the endpoint's sampleRate"},
		{"ultravox", `"call":{"model":"m"}`, "call.model must be left out: it comes from the endpoint's model"},
		{"ultravox", `"call":{"voice":"v"}`, "call.voice must be left out: it comes from the endpoint's voice"},
		{"ultravox", `"call":{"joinTimeout":"9s"}`, "call.joinTimeout must be left out: it comes from tollgate"},
		{"ultravox", `"call":{"systemPrompt":"x","systemPrompt":"y"}`, "call.systemPrompt is duplicated"},
		{"ultravox", `"call":{"systemPrompt":7}`, "call.systemPrompt must be a string"},
		{"ultravox", `"call":{"temperature":"0"}`, "call.temperature must be a number"},
		{"ultravox", `"call":{"recordingEnabled":1}`, "call.recordingEnabled must be true or false"},
		{"ultravox", `"call":{"metadata":"x"}`, "call.metadata must be an object"},
		{"ultravox", `"call":{"initialMessages":["x"]}`, "call.initialMessages[0] must be an object"},
	} {
		config := realtimeConfig(test.name, test.members)
		want := "providers.realtime.endpoints." + test.name + "." + test.want
		_, err := parseNew(config)
		if err == nil || err.Error() != "Invalid config: "+want {
			t.Errorf("%s, put: got %v, want %s", config, err, want)
		}
		stored, err := parseConfig(config)
		if err != nil || len(stored.endpoints) > 0 {
			t.Errorf("%s, stored: %v", config, err)
			continue
		}
		if strings.Contains(test.members, `"api_key`) || strings.Contains(test.members, `"auth"`) {
			continue // these are looked at whenever the endpoint is used
		}
		if got := strings.Join(stored.ignored, "\n"); got != want+notUsed || len(stored.realtime) > 0 {
			t.Errorf("%s, stored: %s; %d endpoints are used", config, got, len(stored.realtime))
		}
	}
}

// What is accepted of an endpoint for sessions, and what the response says about it.
func TestRealtimeConfigAccepted(t *testing.T) {
	t.Parallel()
	const unknown = " is not known: it has no effect"
	for _, test := range []struct {
		name, members string
		isUsed        bool
		warnings      []string
	}{
		{"openai", `"model":"gpt-realtime"`, true, nil},
		{"openai_eu", `"model":"m","voice":"alloy","sampleRate":24000.5,"encoding":"pcm16","api_key":"k"`, true, nil},
		{"azure", `"type":"openai","url":"https://x.openai.azure.com/openai/v1/realtime","auth":"api-key","model":"d"`, true, nil},
		{"openai", `"url":"ws://h:8080/v1/realtime/?a=b","models":{"*":{"input":0}},"max_session":3600`, true,
			[]string{`models has no audio_input for "*": a token of sound costs what one of text does`}},
		{"ultravox", ``, true, nil},
		{"ultravox", `"url":"http://h/api/calls?enableGreetingPrompt=false","model":"ultravox-v0.7","max_session":86400`, true, nil},
		{"u", `"type":"ultravox","price":{"second":0.000001},"sampleRate":8e3,"encoding":"pcm_s16le","auth":"x-api-key"`, true, nil},
		{"ultravox", `"call":{"systemPrompt":"x","temperature":0.4,"languageHint":"de","firstSpeakerSettings":{"user":{}},` +
			`"initialMessages":[{"role":"MESSAGE_ROLE_USER","text":"hi"}],"recordingEnabled":false,"vadSettings":{},` +
			`"transcriptOptional":true,"timeExceededMessage":"bye","inactivityMessages":[],"metadata":{"a":1},` +
			`"initialOutputMedium":"MESSAGE_MEDIUM_TEXT","firstSpeaker":"FIRST_SPEAKER_USER"}`, true, nil},
		{"openai", `"model":"m","price":{"input":4,"cached_input":0.4,"output":16,"audio_input":32,"cached_audio_input":0.4,` +
			`"audio_output":64,"image_input":5,"request":1,"above":{"tokens":9,"input":5},` +
			`"transcription":{"input":6,"output":10,"second":0.1}}`, true, nil},
		{"openai", `"model":"m","price":{"input":4,"output":16}`, true,
			[]string{`price has no audio_input for "m": a token of sound costs what one of text does`}},
		{"openai", `"model":"m","models":{"m":{"audio_input":3},"n":{}},"price":{}`, true, []string{`price has no effect: models has "m"`}},
		{"openai", `"models":{"n":{}},"price":{}`, true, []string{"price has no effect without model"}},
		{"openai", ``, true, []string{"model is missing, and so is models: no session can have a model"}},
		{"openai", `"model":"m","default_model":"m"`, true, []string{"default_model has no effect: the name of the member is model"}},
		{"openai", `"model":"m","allow":["x"],"limit":"soft","bytes_per_token":99,"call":{}`, true,
			[]string{"allow" + unknown, "limit" + unknown, "bytes_per_token" + unknown, "call" + unknown}},
		{"openai", `"model":"m","price":{"second":1,"search":1,"character":1,"cache_write":1,"image_output":1,"reasoning":true,` +
			`"above":{"tokens":1,"second":2},"transcription":{"request":1}}`, true, []string{
			"price.above.second" + unknown, "price.transcription.request" + unknown, "price.second" + unknown, "price.search" + unknown,
			"price.character" + unknown, "price.cache_write" + unknown, "price.image_output" + unknown, "price.reasoning" + unknown}},
		{"ultravox", `"models":{},"max_input_tokens":1,"price":{"input":1,"request":1}`, true, []string{
			"price.input" + unknown, "price.request" + unknown, "max_input_tokens" + unknown}},
		{"ultravox", `"models":{"*":{"second":12}}`, true, nil},
		{"ultravox", `"models":{"uv-1":{"second":12}}`, true,
			[]string{`models has no price for "ultravox": a token or a second of it costs 1`}},
		{"openai", `"model":"m","models":{"n":{}}`, true, []string{`models has no price for "m": a token or a second of it costs 1`}},
		{"openai", `"model":"m","max_sesion":9`, true, []string{"max_sesion is not known: did you mean max_session?"}},
		{"openai", `"model":"gpt-4o-realtime-preview","url":"wss://x.example/v1/realtime"`, true, nil}, // another server may have it
		{"e", `"auth":"basic","max_session":"x","call":7`, false,
			[]string{`type is missing: without "openai" or "ultravox" the endpoint is not used`}},
		{"openai", `"model":"m","url":"wss://api.openai.com/v1/live/sessions"`, false,
			[]string{"url is not used: its path should end in /realtime"}},
		{"openai", `"model":"m","url":"wss://h/v1/realtime/translations"`, false,
			[]string{"url is not used: its path should end in /realtime"}},
		{"ultravox", `"url":"https://api.ultravox.ai/api/tools"`, false, []string{"url is not used: its path should end in /calls"}},
		{"u", `"type":"ultravox","url":"https://api.ultravox.ai/api/agents/a/calls/"`, true, nil},
		{"Openai", `"url":"wss://h"`, false, []string{`type is missing: without "openai" or "ultravox" the endpoint is not used`}},
	} {
		config := realtimeConfig(test.name, test.members)
		for i, parse := range []func([]byte) (*tenantConfig, error){parseNew, parseConfig} {
			got, err := parse(config)
			if err != nil {
				t.Errorf("%s: %v", config, err)
				break
			}
			for i, warning := range test.warnings {
				test.warnings[i] = "providers.realtime.endpoints." + test.name + "." + warning
			}
			if i == 0 && !slices.Equal(got.warnings, test.warnings) {
				t.Errorf("%s: got %q, want %q", config, got.warnings, test.warnings)
			}
			if isUsed := len(got.realtime) == 1; isUsed != test.isUsed || len(got.endpoints)+len(got.ignored) > 0 {
				t.Errorf("%s: is used: %v; ignored: %q", config, isUsed, got.ignored)
			}
		}
	}
}

// The default endpoint for sessions is tried first. A name that another kind has, too, is told apart.
func TestRealtimeEndpointOrder(t *testing.T) {
	const text = `"text":{"endpoints":{"openai_b":{"url":"https://h/v1/chat/completions"}}}`
	const realtime = `"realtime":{"default":"openai_b","endpoints":{"openai_a":{"model":"m"},"other":{},` +
		`"openai_b":{"model":"m","api_key_name":"k"}}}`
	for _, providers := range []string{text + "," + realtime, realtime + "," + text} {
		c, err := parseConfig([]byte(`{"providers":{` + providers + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range c.realtime {
			names = append(names, e.Name)
		}
		if len(c.endpoints) != 1 || !slices.Equal(names, []string{"openai_b", "openai_a"}) {
			t.Errorf("%s: %d endpoints, and for sessions %q", providers, len(c.endpoints), names)
		}
		log := new(telemetrytest.Log)
		gateway.New(gateway.Options{}, log.Logger()).Usable(c.realtime, "acme")
		if n := log.Count("[WARN] The endpoint realtime/openai_b of tenant acme is not used: its api_key_name must name"); n != 1 {
			t.Errorf("the log is %s", log)
		}
		small, _ := parseConfig([]byte(`{"providers":{` + text + `}}`))
		if with, without := (&tenant{config: c}).bytes(), (&tenant{config: small}).bytes(); with < without+2*1024 {
			t.Errorf("%d bytes with the endpoints for sessions, %d without", with, without)
		}
	}
}

// The example's config loads without errors. That its model is switched off is in the log whenever a process loads it.
func TestSeedRealtime(t *testing.T) {
	s := newService(t)
	id := newTenantID()
	want := `{"success":true}`
	s.createTenant(t, id, string(seedConfig)).want(t, 201, want)
	s.putConfig(t, newTenant(t, 1), string(seedConfig)).want(t, 200, want)
	for range 2 {
		s.login(t, id)
	}
	if n := s.log.Count("[WARN] The config of tenant " + id + ": " + switchedOff + "\n"); n != 1 || s.log.Count("[ERROR]") > 0 {
		t.Errorf("the log has the warning %d times:\n%s", n, s.log)
	}
	c, err := parseConfig(seedConfig)
	if err != nil || len(c.realtime) != 2 || c.realtime[0].Name != "openai_realtime" || !slices.Equal(c.ignored, []string{switchedOff}) {
		t.Errorf("%d endpoints, %q, %v", len(c.realtime), c.ignored, err)
	}
	for model, want := range map[string]int{
		"gpt-4o-mini-realtime-preview-2024-12-17": 1, "gpt-4o-realtime-preview": 1, "gpt-realtime": 0,
	} {
		if c, err := parseConfig(realtimeConfig("openai", fmt.Sprintf(`"model":%q`, model))); err != nil || len(c.ignored) != want {
			t.Errorf("%s: %q, %v", model, c.ignored, err)
		}
	}
}

// The models of sessions are listed among those of OpenAI's API, as far as the key's group has them.
func TestRealtimeModels(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantID()
	s.createTenant(t, id, `{"user_groups":{"anonymous":{"tokens":1},"few":{"tokens":1,"models":["gpt-realtime","m"]}},"providers":{`+
		`"text":{"endpoints":{"openai":{"url":"https://h/v1/chat/completions","default_model":"m"},`+
		`"claude":{"url":"https://h/v1/messages","default_model":"c"}}},`+
		`"realtime":{"endpoints":{"openai":{"model":"gpt-realtime","models":{"gpt-realtime-mini":{},"gpt-*":{}}},`+
		`"ultravox":{"model":"ultravox-v0.7"},"other":{"model":"x"}}}}}`).want(t, 201, "")
	list := func(key string, headers ...string) string {
		var names []string
		models, _ := s.do(t, "GET", "/"+id+"/v1/models", "", append(headers, bearer(key))...).field(t, "data").([]any)
		for _, m := range models {
			names = append(names, m.(map[string]any)["id"].(string))
		}
		return strings.Join(names, " ")
	}
	all, few := s.login(t, id), s.issue(t, id, `"userId":"u","group":"few"`)
	for _, test := range []struct{ got, want string }{
		{list(all), "m gpt-realtime gpt-realtime-mini"},
		{list(few), "m gpt-realtime"},
		{list(all, "anthropic-version: 2023-06-01"), "c"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	for path, status := range map[string]int{
		"gpt-realtime": 200, "gpt-realtime-2": 200, "ultravox-v0.7": 404, "x": 404,
	} {
		s.do(t, "GET", "/"+id+"/v1/models/"+path, "", bearer(all)).want(t, status, "")
	}
	s.do(t, "GET", "/"+id+"/v1/models/gpt-realtime-mini", "", bearer(few)).want(t, 404, "")
}

// The endpoint in the documentation is used, and there is nothing to say against it.
func TestDocumentedRealtimeEndpoint(t *testing.T) {
	for _, block := range docBlocks(t, "docs/configuration.md") {
		if block.section == "Endpoints for sessions" {
			c, err := parseNew([]byte(`{"providers":{` + strings.ReplaceAll(block.text, "…", "") + `}}`))
			if err != nil || len(c.realtime) != 1 || len(c.warnings) > 0 {
				t.Errorf("line %d: %+v, %v", block.line, c, err)
			}
			return
		}
	}
	t.Error("no endpoint is documented")
}

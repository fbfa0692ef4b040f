package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	openAIHost = "api.openai.com"

	maxOpenAISession   = 60 * 60      // seconds, after which OpenAI ends a session
	maxUltravoxSession = 24 * 60 * 60 // seconds
	minUltravoxSession = 6            // seconds, in steps of which Ultravox bills calls
	lowestRate         = 8_000        // samples a second
	highestRate        = 48_000
)

// sessionRules are the members that only endpoints of the kind realtime have.
type sessionRules struct {
	isUltravox bool
	model      string // OpenAI: if the client names none, and always allowed; Ultravox: "" is the provider's default
	hasDefault bool   // the config has a default_model
	isUnpriced bool   // the config has prices of other models only
	voice      string // "" is the provider's default
	price      *price // of the model; nil if the config does not give it beside it

	maxInput, maxOutput int64 // OpenAI: tokens that one response is held for
	maxSession          time.Duration

	sampleRate int64  // Ultravox: samples a second, in both directions
	call       []byte // Ultravox: an object with further members of the call to create; nil if there are none
}

// The APIs that endpoints of the kind realtime can have. Names that begin so have that API unless type says otherwise.
const (
	openAIType   = "openai"
	ultravoxType = "ultravox"
)

// SessionRules returns the rules for the members of an endpoint of the kind realtime, whose object is value. ok is
// false if it is not known which API the endpoint has: then nothing can use it. object is as in GatewayRules.
func (e *Endpoint) SessionRules(value []byte, object func(strict.Rules) strict.Rule) (rules strict.Rules, ok bool) {
	api, isGiven := "", false
	readType := oneOf(&api, map[string]string{`"openai"`: openAIType, `"ultravox"`: ultravoxType})
	_, _ = strict.ReadObject(new(strict.Problems), value, func(name string) strict.Rule {
		if name != "type" {
			return nil
		}
		isGiven = true
		return readType
	})
	for _, prefix := range []string{openAIType, ultravoxType} {
		if !isGiven && strings.HasPrefix(e.Name, prefix) {
			api = prefix
		}
	}
	rules = e.Rules()
	maps.Copy(rules, strict.Rules{"type": readType, "url": e.readSessionURL})
	if api == "" {
		return rules, false
	}
	e.session = &sessionRules{
		isUltravox: api == ultravoxType, maxSession: time.Hour,
		maxInput: 28_672, maxOutput: 4_096, // what gpt-realtime can have
		sampleRate: highestRate,
	}
	maps.Copy(rules, e.session.rules(e, object))
	return rules, true
}

// rules returns the rules for members of e, whose API is known.
func (s *sessionRules) rules(e *Endpoint, object func(strict.Rules) strict.Rule) strict.Rules {
	rules := strict.Rules{
		"auth": e.readAuth,
		"default_model": func(wrong *strict.Problems, value []byte) bool {
			s.hasDefault = true
			return strict.AnyString(wrong, value)
		},
		"model": strict.String(&s.model),
		"voice": strict.String(&s.voice),
		"price": func(wrong *strict.Problems, value []byte) (ok bool) {
			s.price, ok = e.readPrice(object, wrong, value)
			return ok
		},
		"models":      strict.MapOf(func(model string) strict.Rule { return e.modelRule(object, model) }),
		"max_session": s.readMaxSession,
	}
	if s.isUltravox {
		maps.Copy(rules, strict.Rules{
			"sampleRate": strict.Int(&s.sampleRate, lowestRate, highestRate), "encoding": readPCM, "call": s.readCall,
		})
	} else {
		maps.Copy(rules, strict.Rules{
			"max_input_tokens":  strict.Int(&s.maxInput, 1, strict.MaxInt),
			"max_output_tokens": strict.Int(&s.maxOutput, 1, strict.MaxInt),
		})
	}
	return rules
}

// readMaxSession is the rule for max_session.
func (s *sessionRules) readMaxSession(wrong *strict.Problems, value []byte) bool {
	seconds, lo, hi := int64(0), int64(1), int64(maxOpenAISession)
	if s.isUltravox {
		lo, hi = minUltravoxSession, maxUltravoxSession
	}
	ok := strict.Seconds(&seconds, lo, hi)(wrong, value)
	s.maxSession = time.Duration(seconds) * time.Second
	return ok
}

// readPCM is the rule for encoding at Ultravox, which has no other.
func readPCM(wrong *strict.Problems, value []byte) bool {
	encoding, _ := strict.Text(value)
	return encoding == "pcm_s16le" || wrong.Add(`must be "pcm_s16le"`)
}

// readSessionURL is the rule for the url of an endpoint of the kind realtime.
func (e *Endpoint) readSessionURL(wrong *strict.Problems, value []byte) bool {
	e.rawURL, _ = strict.Text(value)
	u, err := url.Parse(e.rawURL)
	if err != nil || !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme) || u.Hostname() == "" {
		return wrong.Add("must be an absolute ws, wss, http or https URL")
	}
	for _, name := range []string{"model", "intent", "call_id"} {
		if e.session != nil && !e.session.isUltravox && u.Query().Has(name) {
			return wrong.Add("must not have " + name + " in its query: the member model says what is asked for")
		}
	}
	return true
}

// overHTTP returns u with the scheme of the request that opens a WebSocket there: https for wss, http for ws.
func overHTTP(u *url.URL) *url.URL {
	changed := *u
	switch u.Scheme {
	case "ws":
		changed.Scheme = "http"
	case "wss":
		changed.Scheme = "https"
	}
	return &changed
}

// address returns the URL of e, with the scheme http or https.
func (e *Endpoint) address() (*url.URL, error) {
	raw := e.rawURL
	if s := e.session; raw == "" && s != nil {
		raw = "wss://" + openAIHost + "/v1/realtime"
		if s.isUltravox {
			raw = "https://api.ultravox.ai/api/calls"
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	if e.kind == llmwire.Realtime {
		u = overHTTP(u)
	}
	return u, nil
}

// callMembers are the members that call may have, with the rules for their values. With none of them Ultravox calls a
// URL, and none costs more than the seconds of the call. (https://docs.ultravox.ai/api-reference/calls/calls-post)
var callMembers = strict.Rules{
	"systemPrompt": strict.AnyString, "languageHint": strict.AnyString, "temperature": strict.AnyNumber,
	"timeExceededMessage": strict.AnyString, "initialOutputMedium": strict.AnyString, "firstSpeaker": strict.AnyString,
	"firstSpeakerSettings": anyObject, "vadSettings": anyObject, "metadata": anyObject,
	"initialMessages": anyObjects, "inactivityMessages": anyObjects,
	"recordingEnabled": anyBool, "transcriptOptional": anyBool,
}

// ownCallMembers are those that tollgate sets itself, with where they come from.
var ownCallMembers = map[string]string{
	"model": "the endpoint's model", "voice": "the endpoint's voice", "medium": "the endpoint's sampleRate",
	"maxDuration": "max_session and the balance", "joinTimeout": "tollgate",
}

// readCall is the rule for call. It refuses what is not known.
func (s *sessionRules) readCall(wrong *strict.Problems, value []byte) bool {
	seen, ok := strict.ReadObject(wrong, value, func(name string) strict.Rule {
		if rule := callMembers[name]; rule != nil {
			return rule
		}
		reason := "is not a member that the gateway may set: tools and connections to other servers are not among them"
		if source := ownCallMembers[name]; source != "" {
			reason = "must be left out: it comes from " + source
		}
		return func(wrong *strict.Problems, _ []byte) bool { return wrong.Add(reason) }
	})
	if len(seen) > 0 {
		s.call = value
	}
	return ok
}

func anyBool(wrong *strict.Problems, value []byte) bool { return strict.Bool(new(bool))(wrong, value) }

func anyObject(wrong *strict.Problems, value []byte) bool {
	return strict.MapOf(func(string) strict.Rule { return nil })(wrong, value)
}

func anyObjects(wrong *strict.Problems, value []byte) bool {
	return strict.ArrayOf(anyObject)(wrong, value)
}

// completeSession does what Complete does for an endpoint of the kind realtime. Calls at Ultravox have one model, which
// goes by the name of the endpoint if the config does not name it.
func (e *Endpoint) completeSession() bool {
	s := e.session
	if s == nil {
		return false
	}
	e.defaultModel = s.model
	if s.isUltravox {
		e.defaultModel = cmp.Or(s.model, e.Name)
	}
	if model := e.defaultModel; model != "" {
		p := cmp.Or(e.prices.named[model], s.price, e.prices.find(model))
		s.isUnpriced = p == nil && len(e.models)+len(e.patterns) > 0
		if s.isUltravox {
			e.prices, e.models, e.patterns = priceList{}, nil, nil
		}
		e.allowFirst(model, cmp.Or(p, onePrice()))
	}
	u, err := e.address()
	if err != nil || u.Host == "" {
		return false
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	e.url = u
	return strings.HasSuffix(u.Path, e.URLSuffixes()[0])
}

// URLSuffixes returns what the path of the URL of e has to end in for a Gateway to use it, nil if it cannot use e at
// all. Beside /realtime, for example, OpenAI has sessions that are billed in other ways.
func (e *Endpoint) URLSuffixes() []string {
	switch {
	case e.kind != llmwire.Realtime:
		return llmwire.URLSuffixes(e.kind)
	case e.session == nil:
		return nil
	case e.session.isUltravox:
		return []string{"/calls"}
	}
	return []string{"/realtime"}
}

// sessionPrices are the members of the prices of sessions: of kinds of tokens that a response can report, and of it.
var sessionPrices = []string{
	"input", "cached_input", "audio_input", "cached_audio_input", "image_input", "output", "audio_output", "request",
	"above", "tokens", "transcription",
}

// pricesOnly returns the rule that object returns for an object of prices, without the members that would have no
// effect. A nil s is that of an endpoint without sessions.
func (s *sessionRules) pricesOnly(object func(strict.Rules) strict.Rule) func(strict.Rules) strict.Rule {
	return func(rules strict.Rules) strict.Rule {
		maps.DeleteFunc(rules, func(name string, _ strict.Rule) bool {
			switch {
			case s == nil:
				return name == "transcription"
			case s.isUltravox:
				return name != "second"
			}
			return !slices.Contains(sessionPrices, name)
		})
		return object(rules)
	}
}

// transcription returns the price of what a provider transcribes of the input of a session at p: as the sound in the
// input, and the text of the output, unless the config says otherwise.
func (p *price) transcription() *price {
	r := newRates()
	if p.ofTranscript != nil {
		r = *p.ofTranscript
	}
	for own, instead := range map[kind]kind{kindInput: kindAudioInput, kindOutput: kindOutput} {
		if r[own] == noRate {
			r[own] = p.rates[instead]
		}
	}
	return &price{rates: r.completed()}
}

// betaModels are how the names of models begin that OpenAI has switched off together with the beta of its Realtime API
// (https://developers.openai.com/api/docs/deprecations).
var betaModels = []string{"gpt-4o-realtime-preview", "gpt-4o-mini-realtime-preview"}

// IsSwitchedOff reports whether sessions at the endpoint fail because the model that they have, unless the client names
// another, does not exist any more.
func (e *Endpoint) IsSwitchedOff() bool {
	return e.session != nil && !e.session.isUltravox && e.url != nil && e.url.Hostname() == openAIHost &&
		slices.ContainsFunc(betaModels, func(prefix string) bool { return strings.HasPrefix(e.session.model, prefix) })
}

// warnOfSession does what Warn does for an endpoint of the kind realtime whose API is known.
func (e *Endpoint) warnOfSession(add func(member, sentence string)) {
	s := e.session
	if s.hasDefault {
		add("default_model", "has no effect: the name of the member is model")
	}
	if s.price != nil && e.defaultModel == "" {
		add("price", "has no effect without model")
	} else if s.price != nil && e.prices.named[e.defaultModel] != s.price {
		add("price", fmt.Sprintf("has no effect: models has %s", quoteName(s.model)))
	}
	if s.isUnpriced {
		add("models", fmt.Sprintf("has no price for %s: a token or a second of it costs 1", quoteName(e.defaultModel)))
	}
	if len(e.models)+len(e.patterns) == 0 {
		add("model", "is missing, and so is models: no session can have a model")
	}
	for _, name := range slices.Concat(e.models, e.patterns) {
		if e.prices.find(name).isOfTextOnly {
			member := "models"
			if s.price != nil && name == e.defaultModel {
				member = "price"
			}
			add(member, fmt.Sprintf("has no audio_input for %s: a token of sound costs what one of text does",
				quoteName(name)))
			break
		}
	}
}

package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	maxModelBytes   = 256
	maxAllowed      = 1000 // names in allow
	maxAllowedBytes = 256  // of one of them

	maxStateSeconds = 365 * 24 * 60 * 60 // for which it is remembered whose a response is
	stateTTL        = 24 * time.Hour     // unless the config says otherwise
)

// An Endpoint is a model server that a Gateway may call. It is not changed once it is complete.
type Endpoint struct {
	Name string // by which a request for the model name/model chooses it; also in the log and in cache keys

	label  string // the Name, or kind/Name if an endpoint of another kind has it, too: for counts and the log
	kind   llmwire.Kind
	rawURL string
	url    *url.URL
	format llmwire.Format
	apiKey string // "" if the server needs none, or Usable has not been called for the operator's

	hasKey     bool         // it has an api_key
	hasAuth    bool         // it has a member auth
	auth       string       // how the key is sent: see authHeaders
	isKeyNamed bool         // it has an api_key_name
	keyName    string       // of a key of the operator's; "" if it is no string
	warned     *atomic.Bool // that it cannot be used

	voice        string   // for a test of speech; "" is a usual one
	defaultModel string   // "" if a request must name its model
	models       []string // that may be asked for by name, the default one first, then in the config's order
	patterns     []string // names that end in *, in the config's order
	prices       priceList

	holding      llmwire.Holding // how the input of a request is counted
	maxOutput    int64           // output tokens of a request that names no limit
	minOutput    int64           // that the limit of a request is not lowered below
	strictLimits bool            // the limit of a request is never lowered
	limitMember  string          // that the provider obeys; "" is the format's

	allowed      map[string]bool // members of requests beside those that are known, and values of anthropic-beta
	serverTools  toolRule
	onHangUp     hangUpRule
	neverReasons bool          // unless a model says otherwise, it generates nothing that its responses do not show
	leavesUsage  bool          // its streams are not asked for their usage
	stateTTL     time.Duration // for which it is remembered whose the responses are that it keeps; 0: it keeps none
	sendsUsers   bool          // it is told which user a request is of

	session *sessionRules // of an endpoint of the kind realtime; else nil
}

// A toolRule says what becomes of a request with tools that the provider runs.
type toolRule int

const (
	refuseTools toolRule = iota
	allowTools
	dropTools // if they can be taken out of the request, they are
)

// A hangUpRule says what becomes of a stream whose client hangs up.
type hangUpRule int

const (
	drainHidden    hangUpRule = iota // it is read to its end if it may have output that it does not show
	drainOnHangUp                    // it is always read to its end
	cancelOnHangUp                   // it is always cancelled
)

// NewEndpoint returns the endpoint of that kind and name as it is before its members are read.
func NewEndpoint(kind llmwire.Kind, name string) *Endpoint {
	return &Endpoint{
		Name: name, label: name, kind: kind, warned: new(atomic.Bool),
		holding:   llmwire.Holding{BytesPerToken: 1, MediaTokens: 2000, ImageTokens: 6240},
		maxOutput: 4096, minOutput: 4096, stateTTL: stateTTL,
	}
}

// Rules returns the rules for the members that an endpoint of any kind has.
func (e *Endpoint) Rules() strict.Rules {
	return strict.Rules{
		"url": e.readURL, "default_model": strict.String(&e.defaultModel),
		"api_key": e.readKey, "api_key_name": e.readKeyName,
		"model": strict.AnyString, "voice": strict.String(&e.voice), "encoding": strict.AnyString,
		"sampleRate": strict.AnyNumber,
	}
}

// readKeyName is the rule for api_key_name. It accepts any value: OperatorKeys.Check has the rules for configs that are
// put.
func (e *Endpoint) readKeyName(_ *strict.Problems, value []byte) bool {
	e.isKeyNamed = true
	e.keyName, _ = strict.Text(value)
	return true
}

// readURL is the rule for url.
func (e *Endpoint) readURL(wrong *strict.Problems, value []byte) bool {
	e.rawURL, _ = strict.Text(value)
	u, err := url.Parse(e.rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return wrong.Add("must be an absolute http or https URL")
	}
	return true
}

// GatewayRules returns the rules for the members that an endpoint has if a Gateway can use endpoints of its kind: more
// than those of Rules. object must return the rule for an object with the given members; the caller decides what it
// does with others.
func (e *Endpoint) GatewayRules(object func(strict.Rules) strict.Rule) strict.Rules {
	rules := e.Rules()
	maps.Copy(rules, strict.Rules{
		"auth":              e.readAuth,
		"models":            strict.MapOf(func(model string) strict.Rule { return e.modelRule(object, model) }),
		"max_output_tokens": strict.Int(&e.maxOutput, 1, strict.MaxInt),
		"min_output_tokens": strict.Int(&e.minOutput, 1, strict.MaxInt),
		"max_input_tokens":  strict.Int(&e.holding.MaxInput, 1, strict.MaxInt),
		"bytes_per_token":   strict.Int(&e.holding.BytesPerToken, 1, 8),
		"media_tokens":      strict.Int(&e.holding.MediaTokens, 0, strict.MaxInt),
		"file_tokens":       strict.Int(&e.holding.FileTokens, 1, strict.MaxInt),
		"image_tokens":      strict.Int(&e.holding.ImageTokens, 0, strict.MaxInt),
		"limit":             oneOf(&e.strictLimits, map[string]bool{`"clamp"`: false, `"strict"`: true}),
		"limit_member":      oneOf(&e.limitMember, limitMembers),
		"allow":             e.readAllow,
		"server_tools":      oneOf(&e.serverTools, toolRules),
		"on_hangup":         oneOf(&e.onHangUp, hangUpRules),
		"reasoning":         not(&e.neverReasons),
		"stream_usage":      not(&e.leavesUsage),
		"user_ids":          strict.Bool(&e.sendsUsers),
		"state_ttl":         e.readStateTTL,
	})
	return rules
}

// The values of members that have few, as JSON spells them. They are never changed.
var (
	toolRules    = map[string]toolRule{"false": refuseTools, "true": allowTools, `"drop"`: dropTools}
	hangUpRules  = map[string]hangUpRule{`"cancel"`: cancelOnHangUp, `"drain"`: drainOnHangUp}
	limitMembers = map[string]string{
		`"max_tokens"`: "max_tokens", `"max_completion_tokens"`: "max_completion_tokens",
	}
)

// oneOf accepts the values that are spelled like one of names.
func oneOf[T any](dst *T, names map[string]T) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		spelling := string(value)
		if text, ok := strict.Text(value); ok {
			spelling = strconv.Quote(text)
		}
		meant, ok := names[spelling]
		if !ok {
			all := slices.Sorted(maps.Keys(names))
			last := len(all) - 1
			return wrong.Add("must be " + strings.Join(all[:last], ", ") + " or " + all[last])
		}
		*dst = meant
		return true
	}
}

// not accepts what strict.Bool accepts, and then sets dst to the opposite.
func not(dst *bool) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		isTrue := !*dst
		ok := strict.Bool(&isTrue)(wrong, value)
		*dst = !isTrue
		return ok
	}
}

// readStateTTL is the rule for state_ttl.
func (e *Endpoint) readStateTTL(wrong *strict.Problems, value []byte) bool {
	var seconds int64
	ok := strict.Int(&seconds, 0, maxStateSeconds)(wrong, value)
	e.stateTTL = time.Duration(seconds) * time.Second
	return ok
}

// readAllow is the rule for allow.
func (e *Endpoint) readAllow(wrong *strict.Problems, value []byte) bool {
	allowed, n := make(map[string]bool), 0
	ok := strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
		n++
		name, _ := strict.Text(value)
		if name == "" || len(name) > maxAllowedBytes {
			return wrong.Add(fmt.Sprintf("must be a string of 1 to %d bytes", maxAllowedBytes))
		}
		allowed[name] = true
		return true
	})(wrong, value)
	if n > maxAllowed {
		return wrong.Add(fmt.Sprintf("must have at most %d names", maxAllowed))
	}
	if ok {
		e.allowed = allowed
	}
	return ok
}

// modelRule returns the rule for one member of models.
func (e *Endpoint) modelRule(object func(strict.Rules) strict.Rule, model string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		if model == "" || len(model) > maxModelBytes {
			return wrong.Add(fmt.Sprintf("must have a name of 1 to %d bytes", maxModelBytes))
		}
		p, ok := e.readPrice(object, wrong, value)
		if strings.HasSuffix(model, "*") {
			e.patterns = append(e.patterns, model)
		} else {
			e.models = append(e.models, model)
		}
		e.prices.add(model, p)
		return ok
	}
}

// Complete works out what the members of an endpoint mean together, once they were read. It reports whether a Gateway
// can use it: its URL must end in the path of a format of its kind or, if it is for sessions, its API must be known.
func (e *Endpoint) Complete() bool {
	if e.kind == llmwire.Realtime {
		return e.completeSession()
	}
	if e.defaultModel != "" {
		e.allowFirst(e.defaultModel, cmp.Or(e.prices.find(e.defaultModel), onePrice()))
	}
	u, err := url.Parse(e.rawURL)
	if err != nil || u.Host == "" {
		return false
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	e.url = u
	var known bool
	e.format, known = llmwire.FormatOf(e.kind, u.Path)
	return known
}

// allowFirst allows a model, before all others, at a price.
func (e *Endpoint) allowFirst(model string, p *price) {
	e.prices.addNamed(model, p)
	e.models = slices.DeleteFunc(e.models, func(other string) bool { return other == model })
	e.models = slices.Insert(e.models, 0, model)
}

// Kind returns what the endpoint is for.
func (e *Endpoint) Kind() llmwire.Kind { return e.kind }

// limitName returns the member of a request in which the endpoint expects the limit of output tokens.
func (e *Endpoint) limitName() string {
	if e.limitMember != "" && e.format.LimitVaries() {
		return e.limitMember
	}
	return e.format.LimitMember(e.url.Hostname())
}

// HasURL reports whether the endpoint has a URL, of whatever format.
func (e *Endpoint) HasURL() bool { return e.rawURL != "" }

// Bytes returns about how much memory the endpoint takes.
func (e *Endpoint) Bytes() int {
	size := 1024 + 512*(len(e.models)+len(e.patterns)) + 64*len(e.allowed)
	if e.session != nil {
		size += 512 + 128*(len(e.models)+len(e.patterns)) // prices of transcriptions
	}
	return size
}

// Endpoints are endpoints in the order in which they are tried.
type Endpoints []*Endpoint

// TellApart lets each endpoint whose name stands in two kinds be counted, and logged, as kind/name. It is called once,
// for all endpoints of a config, before they are used.
func (all Endpoints) TellApart() {
	kinds := make(map[string]llmwire.Kind, len(all))
	shared := make(map[string]bool)
	for _, e := range all {
		kind, exists := kinds[e.Name]
		shared[e.Name] = shared[e.Name] || exists && kind != e.kind
		kinds[e.Name] = e.kind
	}
	for _, e := range all {
		if shared[e.Name] {
			e.label = string(e.kind) + "/" + e.Name
		}
	}
}

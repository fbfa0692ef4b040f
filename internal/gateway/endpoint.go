package gateway

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	maxModelBytes = 256
	maxEndpoints  = 3 // that one request may be tried at
)

// anyModel is the name in an endpoint's models that stands for every model.
const anyModel = "*"

// An Endpoint is a model server that a Gateway may call. It is not changed once it is complete.
type Endpoint struct {
	Name string // by which a request for the model name/model chooses it; also in the log and in cache keys

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

	defaultModel string   // "" if a request must name its model
	models       []string // that may be asked for, the default one first, then in the config's order
	prices       map[string]price

	maxOutput     int64 // output tokens of a request that names no limit
	maxInput      int64 // the context window, in tokens
	bytesPerToken int64
	mediaTokens   int64 // input tokens for each image, audio or file
	serverTools   bool  // tools that the provider runs are allowed
	drainOnHangUp bool  // a stream whose client hangs up is read to its end
}

// NewEndpoint returns the endpoint of that name as it is before its members are read.
func NewEndpoint(name string) *Endpoint {
	return &Endpoint{
		Name: name, prices: make(map[string]price), warned: new(atomic.Bool),
		maxOutput: 4096, maxInput: 200_000, bytesPerToken: 1, mediaTokens: 2000,
	}
}

// Rules returns the rules for the members that an endpoint of any kind has.
func (e *Endpoint) Rules() strict.Rules {
	return strict.Rules{
		"url": e.readURL, "default_model": strict.String(&e.defaultModel),
		"api_key": e.readKey, "api_key_name": e.readKeyName,
		"model": strict.AnyString, "voice": strict.AnyString, "encoding": strict.AnyString, "sampleRate": strict.AnyNumber,
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

// TextRules returns the rules for the members that a text endpoint has, more than those of Rules. object must return
// the rule for an object with the given members; the caller decides what it does with others.
func (e *Endpoint) TextRules(object func(strict.Rules) strict.Rule) strict.Rules {
	rules := e.Rules()
	maps.Copy(rules, strict.Rules{
		"auth":              e.readAuth,
		"models":            strict.MapOf(func(model string) strict.Rule { return e.modelRule(object, model) }),
		"max_output_tokens": strict.Int(&e.maxOutput, 1, strict.MaxInt),
		"max_input_tokens":  strict.Int(&e.maxInput, 1, strict.MaxInt),
		"bytes_per_token":   strict.Int(&e.bytesPerToken, 1, 8),
		"media_tokens":      strict.Int(&e.mediaTokens, 0, strict.MaxInt),
		"server_tools":      strict.Bool(&e.serverTools),
		"on_hangup": func(wrong *strict.Problems, value []byte) bool {
			reaction, _ := strict.Text(value)
			e.drainOnHangUp = reaction == "drain"
			return e.drainOnHangUp || reaction == "cancel" || wrong.Add(`must be "cancel" or "drain"`)
		},
	})
	return rules
}

// modelRule returns the rule for one member of models.
func (e *Endpoint) modelRule(object func(strict.Rules) strict.Rule, model string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		if model == "" || len(model) > maxModelBytes {
			return wrong.Add(fmt.Sprintf("must have a name of 1 to %d bytes", maxModelBytes))
		}
		p := onePrice
		ok := object(strict.Rules{"input": priceRule(&p.input), "output": priceRule(&p.output)})(wrong, value)
		e.models = append(e.models, model)
		e.prices[model] = p
		return ok
	}
}

// Complete works out what the members of an endpoint of text mean together, once they were read. It reports whether a
// Gateway can use it: its URL must end in the path of a format.
func (e *Endpoint) Complete() bool {
	if e.defaultModel != "" {
		if _, priced := e.prices[e.defaultModel]; !priced {
			p, any := e.prices[anyModel]
			if !any {
				p = onePrice
			}
			e.prices[e.defaultModel] = p
		}
		e.models = slices.DeleteFunc(e.models, func(model string) bool { return model == e.defaultModel })
		e.models = slices.Insert(e.models, 0, e.defaultModel)
	}
	u, err := url.Parse(e.rawURL)
	if err != nil || u.Host == "" {
		return false
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	e.url = u
	var known bool
	e.format, known = llmwire.FormatOf(u.Path)
	return known
}

// holding returns how the input of a request is counted at the endpoint.
func (e *Endpoint) holding() llmwire.Holding {
	return llmwire.Holding{BytesPerToken: e.bytesPerToken, MediaTokens: e.mediaTokens, MaxInput: e.maxInput}
}

// HasURL reports whether the endpoint has a URL, of whatever format.
func (e *Endpoint) HasURL() bool { return e.rawURL != "" }

// Bytes returns about how much memory the endpoint takes.
func (e *Endpoint) Bytes() int { return 1024 + 256*len(e.models) }

// price returns what a model costs at the endpoint, and false if it may not be asked for there.
func (e *Endpoint) price(model string) (price, bool) {
	p, ok := e.prices[model]
	if !ok && model != "" {
		p, ok = e.prices[anyModel]
	}
	return p, ok
}

// Endpoints are endpoints in the order in which they are tried.
type Endpoints []*Endpoint

// named returns the models that the config allows by name in a format, each once.
func (all Endpoints) named(format llmwire.Format) (models []llmwire.Model) {
	listed := make(map[string]bool)
	for _, e := range all.speaking(format) {
		for _, name := range e.models {
			if !isPattern(name) && !listed[name] {
				listed[name] = true
				models = append(models, llmwire.Model{Name: name, Endpoint: e.Name})
			}
		}
	}
	return models
}

// Model returns the model of that name, if a request in that format may ask for it. Otherwise it returns an Error of
// status 404.
func (all Endpoints) Model(format llmwire.Format, name string) (llmwire.Model, error) {
	all = all.speaking(format)
	if len(all) == 0 {
		return llmwire.Model{}, errNoFormat(format)
	}
	found, _ := all.find(name)
	if len(found) == 0 {
		return llmwire.Model{}, errNoModel(name)
	}
	return llmwire.Model{Name: name, Endpoint: found[0].Name}, nil
}

func errNoFormat(format llmwire.Format) Error {
	return Error{http.StatusNotFound,
		"No endpoint has this format: the path of its URL would end in " + format.URLSuffix()}
}

func errNoModel(name string) Error {
	return Error{http.StatusNotFound, "No endpoint allows the model " + strconv.Quote(strict.Shorten(name))}
}

// speaking returns the endpoints of a format.
func (all Endpoints) speaking(format llmwire.Format) Endpoints {
	return all.where(func(e *Endpoint) bool { return e.format == format })
}

// find returns the endpoints that allow a model, and the model's name there: endpoint/model chooses the endpoint.
func (all Endpoints) find(model string) (Endpoints, string) {
	if name, rest, ok := strings.Cut(model, "/"); ok {
		for _, e := range all {
			if _, allowed := e.price(rest); allowed && e.Name == name {
				return Endpoints{e}, rest
			}
		}
	}
	return all.allowing(model), model
}

// allowing returns the endpoints that allow a model of exactly that name.
func (all Endpoints) allowing(model string) Endpoints {
	return all.where(func(e *Endpoint) bool {
		_, allowed := e.price(model)
		return allowed
	})
}

// where returns the endpoints for which f reports true.
func (all Endpoints) where(f func(*Endpoint) bool) (found Endpoints) {
	for _, e := range all {
		if f(e) {
			found = append(found, e)
		}
	}
	return found
}

// Choose finds those of all endpoints that may serve the call, and the model that they are asked for. It returns an
// Error of status 404 if no endpoint has the format or the model, and of 400 if none of those allows the tools of the
// request.
func (c *Call) Choose(all Endpoints) error {
	c.all = all
	all = all.speaking(c.Request.Format)
	c.model = c.Request.Model
	if c.model != "" {
		c.endpoints, c.model = all.find(c.model)
	} else if c.model = all.defaultModel(c.allowed); c.model != "" { // which may have a slash and names no endpoint
		c.endpoints = all.allowing(c.model)
	}
	c.Outcome.Model = c.model
	switch {
	case len(c.endpoints) > 0:
	case len(all) == 0:
		return errNoFormat(c.Request.Format)
	case c.model == "":
		return Error{http.StatusNotFound, "No endpoint has a default model: name one in the request"}
	default:
		return errNoModel(c.model)
	}
	if tool := c.Request.ServerTool; tool != "" && !c.CountTokens {
		c.endpoints = c.endpoints.where(func(e *Endpoint) bool { return e.serverTools })
		if len(c.endpoints) == 0 {
			return Error{http.StatusBadRequest, "The provider would run " + strconv.Quote(tool) +
				" itself, which can cost more than can be held: it is not enabled"}
		}
	}
	c.endpoints = c.endpoints[:min(len(c.endpoints), maxEndpoints)]
	return nil
}

package gateway

import "net/http"

// ChooseEndpoint finds the endpoint of the session among all of the kind realtime, and its model: by the name of an
// endpoint, by endpoint/model, or the first endpoint that allows the model. A client that names no model gets that of
// the endpoint that it names or, without one, of the first that has one. The error is an Error of status 404.
func (c *SessionCall) ChooseEndpoint(all Endpoints) error {
	c.all, c.endpoint, c.model = all, nil, c.Model
	unnamed := c.unnamed()
	if model := unnamed.defaultModel(c.allowed); model != "" {
		c.endpoint, c.model = unnamed.allowing(model)[0], model
	} else if found, model := all.find(c.Model); len(found) > 0 {
		c.endpoint, c.model = found[0], model
	}
	switch {
	case c.endpoint != nil:
		c.Outcome.Model = c.model // not before: a name that is not known may be a key, and this is logged
		return nil
	case len(all) == 0:
		return Error{http.StatusNotFound, "No endpoint of providers.realtime can be used"}
	case c.Model == "":
		return Error{http.StatusNotFound, "No endpoint of providers.realtime has a model: name one, as ?model="}
	}
	return errNoModel(c.Model)
}

// unnamed returns the endpoints that the session may have with a model that the client has not named: all, or the one
// that it names.
func (c *SessionCall) unnamed() Endpoints {
	return c.all.where(func(e *Endpoint) bool { return c.Model == "" || c.Model == e.Name })
}

// chooseAllowed chooses again, once, for a session whose account has denied a model that the client has not named: the
// first that is allowed. Otherwise it returns an Error of status 404.
func (c *SessionCall) chooseAllowed(allowed ModelNames) error {
	denied := DeniedModel(c.model)
	if c.allowed != nil || c.unnamed().defaultModel(allowed) == "" {
		return denied
	}
	c.allowed = allowed
	return c.ChooseEndpoint(c.all)
}

// models returns what the account must allow.
func (c *SessionCall) models() []string { return []string{c.model} }

// price returns what the session costs, once its endpoint is chosen.
func (c *SessionCall) price() *sessionPrice {
	p, s := c.endpoint.prices.find(c.model), c.endpoint.session
	return &sessionPrice{price: p, transcription: p.transcription(), maxInput: s.maxInput, maxOutput: s.maxOutput}
}

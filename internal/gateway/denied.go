package gateway

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// models returns the models that the call may use, which its account must allow: not those of tools that no endpoint
// gets.
func (c *Call) models() []string {
	models := []string{c.model}
	if slices.ContainsFunc(c.endpoints, func(e *Endpoint) bool { return !e.drops(c) }) {
		models = append(models, c.Request.AdvisorModels...)
	}
	return models
}

// DeniedModel returns the Error, of status 404, for a model that an endpoint has and the account does not allow.
func DeniedModel(model string) Error {
	return Error{http.StatusNotFound, "This API key may not use the model " + strconv.Quote(strict.Shorten(model))}
}

// chooseAllowed chooses again, once, for a call whose account has denied a model, if the request names none: the first
// of the endpoints' models that is allowed. Otherwise it returns an Error of status 404.
func (c *Call) chooseAllowed(allowed ModelNames) error {
	denied := DeniedModel(c.model)
	if c.Request.Model != "" || c.allowed != nil || c.all.speaking(c.Request.Format).defaultModel(allowed) == "" {
		return denied
	}
	c.allowed = allowed
	return c.Choose(c.all)
}

// defaultModel returns the model that a request gets which names none: the first default_model or, if it is not
// allowed, the first model that is. It returns "" if no endpoint has such a model.
func (all Endpoints) defaultModel(allowed ModelNames) string {
	i := slices.IndexFunc(all, func(e *Endpoint) bool { return e.defaultModel != "" })
	switch {
	case i >= 0 && allowed.Allow(all[i].defaultModel):
		return all[i].defaultModel
	case allowed == nil:
		return ""
	}
	for _, e := range all {
		for _, model := range e.models {
			if allowed.Allow(model) {
				return model
			}
		}
	}
	return ""
}

// Listed returns those of models that are allowed. Their names may begin with that of their endpoint and a slash.
func (names ModelNames) Listed(models []llmwire.Model) (listed []llmwire.Model) {
	for _, m := range models {
		if names.Allow(m.Name) || names.Allow(strings.TrimPrefix(m.Name, m.Endpoint+"/")) {
			listed = append(listed, m)
		}
	}
	return listed
}

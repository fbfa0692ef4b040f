package gateway

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/strict"
)

const (
	maxEndpoints = 3 // that one request may be tried at

	anyMember  = "*"               // in allow: all members
	betaPrefix = "anthropic-beta:" // in allow: before a value of that header
)

// Choose finds those of all endpoints that may serve the call, and the model that they are asked for. It returns an
// Error of status 404 if no endpoint has the format or the model, and of 400 if none of those allows what the request
// has. Once it is known which endpoint keeps what the request goes on from, that is the only one.
func (c *Call) Choose(all Endpoints) error {
	c.all = all
	all = all.speaking(c.Request.Format)
	if c.keeper != "" {
		if all = all.keeping(c.keeper); len(all) == 0 {
			return errNotKept
		}
	}
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
	if !c.CountTokens { // which is free, whatever the request has
		for _, allow := range []func() error{c.allowMembers, c.allowTools, c.allowAdvisors, c.allowSubtitles} {
			if err := allow(); err != nil {
				return err
			}
		}
	}
	c.endpoints = c.endpoints[:min(len(c.endpoints), maxEndpoints)]
	return nil
}

// keep leaves out the endpoints for which f reports false, unless that leaves none: then it returns false.
func (c *Call) keep(f func(*Endpoint) bool) bool {
	if kept := c.endpoints.where(f); len(kept) > 0 {
		c.endpoints = kept
		return true
	}
	return false
}

// allowMembers leaves out the endpoints that do not allow the unknown members of the request.
func (c *Call) allowMembers() error {
	unknown := c.Request.Unknown
	if len(unknown) == 0 || c.keep(func(e *Endpoint) bool { return len(e.notAllowed(unknown)) == 0 }) {
		return nil
	}
	c.refused = unknown
	names, _ := json.Marshal(unknown) // cannot fail
	return Error{http.StatusBadRequest, "Unknown members: " + strings.Join(unknown, ", ") +
		`. If the operator adds "allow": ` + strings.ReplaceAll(string(names), `","`, `", "`) +
		" to the endpoint, they are forwarded"}
}

// notAllowed returns those of names that the endpoint does not allow.
func (e *Endpoint) notAllowed(names []string) (missing []string) {
	for _, name := range names {
		if !e.allowed[name] && !e.allowed[anyMember] {
			missing = append(missing, name)
		}
	}
	return missing
}

// allowTools leaves out the endpoints that do not allow tools which the provider runs, if the request has some.
func (c *Call) allowTools() error {
	tool := c.Request.ServerTool
	if tool == "" || c.keep(func(e *Endpoint) bool { return e.serverTools == allowTools || e.drops(c) }) {
		return nil
	}
	return Error{http.StatusBadRequest, "The provider runs " + strconv.Quote(tool) +
		" itself, or tollgate does not know it. That can cost more than can be held: " +
		"server_tools of the endpoint does not allow it"}
}

// drops reports whether the tools of the call that the provider runs are not forwarded to e.
func (e *Endpoint) drops(c *Call) bool {
	return e.serverTools == dropTools && c.Request.ServerTool != "" && c.Request.CanDropTools && !c.CountTokens
}

// allowAdvisors leaves out the endpoints that do not allow the models which tools of the request would ask.
func (c *Call) allowAdvisors() error {
	var missing string
	if len(c.Request.AdvisorModels) == 0 || c.keep(func(e *Endpoint) bool {
		i := slices.IndexFunc(c.Request.AdvisorModels, func(model string) bool { return e.prices.find(model) == nil })
		if i < 0 || e.drops(c) {
			return true
		}
		missing = c.Request.AdvisorModels[i]
		return false
	}) {
		return nil
	}
	return Error{http.StatusBadRequest, "A tool would ask the model " + strconv.Quote(strict.Shorten(missing)) +
		", which the endpoint does not allow"}
}

// allowSubtitles leaves out the endpoints where a sound costs something, if the response would not say how long it is.
func (c *Call) allowSubtitles() error {
	if !c.Request.WantsSubtitles() || c.keep(func(e *Endpoint) bool { return e.prices.find(c.model).isFreeSound() }) {
		return nil
	}
	return Error{http.StatusBadRequest, "response_format " + c.Request.ResponseFormat +
		" does not say what the transcript costs: ask for verbose_json, which has the times of its segments"}
}

// dearBetas are how values of the header anthropic-beta begin that make tokens dearer
// (https://docs.anthropic.com/en/docs/about-claude/pricing). A server may also find them between spaces or in
// quotes, in what is one value here.
var dearBetas = [...]string{"context-1m-", "fast-mode-"}

// withoutDearBetas takes those values out of a header of anthropic-beta that make tokens dearer, unless the endpoint
// allows them.
func (e *Endpoint) withoutDearBetas(lines []string) (kept []string) {
	for _, line := range lines {
		var values []string
		for value := range strings.SplitSeq(line, ",") {
			value = strings.TrimSpace(value)
			isDear := slices.ContainsFunc(dearBetas[:], func(prefix string) bool {
				return strings.Contains(strings.ToLower(value), prefix)
			})
			if value != "" && !(isDear && len(e.notAllowed([]string{betaPrefix + value})) > 0) {
				values = append(values, value)
			}
		}
		if len(values) > 0 {
			kept = append(kept, strings.Join(values, ","))
		}
	}
	return kept
}

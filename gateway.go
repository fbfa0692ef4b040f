package main

import (
	"cmp"
	"net/http"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
)

// noEndpoint is the endpoint, in metrics, of requests that were sent to none: refused, or served from the cache.
const noEndpoint = "none"

// generate responds to a request for a chat completion or a message.
func (s *server) generate(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, false)
}

// countTokens responds to the question how many tokens a request has.
func (s *server) countTokens(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, true)
}

// relay lets the gateway respond to a request.
func (s *server) relay(w http.ResponseWriter, r *http.Request, info *requestInfo, countTokens bool) error {
	info.outcome.Endpoint = noEndpoint
	began := time.Now()
	request, err := llmwire.ReadRequest(*info.format, info.body)
	info.deadline = info.deadline.Add(time.Since(began)) // which is Redis's, and a large body takes a while
	if err != nil {
		return badRequestError(err.Error())
	}
	t := info.tenant
	a := &account{server: s, tenant: t, key: info.apiKey, header: w.Header()}
	c := &gateway.Call{
		ID: info.id, Start: info.start, Deadline: info.deadline, Tenant: t.id, User: info.apiKey, Generation: t.generation,
		Memory: info.memory, Place: info.place, Disconnect: func() { connlimit.Disconnect(r.Context()) }, Hops: info.hops,
		Request: request, Body: info.body, CountTokens: countTokens,
		Account: a, Caching: t.config.caching, Cache: tenantCache{s, t.id}, Outcome: &info.outcome,
	}
	if err := c.Choose(s.gateway.Usable(t.config.text, t.id)); err != nil {
		return cmp.Or(s.requireKey(w, r, info), err) // a stranger learns nothing about models
	}
	defer a.countFee()
	connlimit.Admit(r.Context()) // the gateway bounds what takes long
	err = s.gateway.Serve(w, r, c)
	if err == http.ErrAbortHandler {
		panic(err)
	}
	return err
}

// listedModelBytes is about how much memory a model takes in the response of listModels.
const listedModelBytes = 128

// listModels sends the models that may be asked for. Error: errNoMemory if they are so many that there is no memory for
// them.
func (s *server) listModels(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	models := s.gateway.Usable(info.tenant.config.text, info.tenantID).Models(*info.format)
	info.memory = s.bodies.gateway.Claim(info.tenantID, info.apiKey)
	if info.memory.Add(max(listedModelBytes*int64(len(models))-gateway.FreeBodyBytes, 0)) != nil {
		return errNoMemory
	}
	return writeBody(w, http.StatusOK, append(info.format.ModelListBody(models), '\n'))
}

// showModel sends one model that may be asked for.
func (s *server) showModel(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	model, err := s.gateway.Usable(info.tenant.config.text, info.tenantID).Model(*info.format, r.PathValue("model"))
	if err != nil {
		return err
	}
	return writeBody(w, http.StatusOK, append(info.format.ModelBody(model), '\n'))
}

package main

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
)

const (
	checkedBody = 64 << 10 // a larger body is read only if its API key exists
	bodyTimeout = time.Minute
)

// generate responds to a request for a chat completion or a message.
func (s *server) generate(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, &gateway.Call{})
}

// countTokens responds to the question how many tokens a request has.
func (s *server) countTokens(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, &gateway.Call{CountTokens: true})
}

// relay lets the gateway respond to a request, which it puts into c.
func (s *server) relay(w http.ResponseWriter, r *http.Request, info *requestInfo, c *gateway.Call) error {
	info.outcome.Endpoint = gateway.NoEndpoint
	format, _ := gatewayFormat(r)
	request, err := llmwire.ReadRequest(format, info.body)
	if err != nil {
		return badRequestError(err.Error())
	}
	t := info.tenant
	a := &account{server: s, tenant: t, key: info.apiKey, header: w.Header()}
	c.ID, c.Tenant, c.Start, c.Deadline, c.Outcome = info.id, t.id, info.start, info.deadline, &info.outcome
	c.Request, c.Body, c.Account = request, info.body, a
	c.Caching, c.Cache, c.Generation = t.config.caching, tenantCache{s, t.id}, t.generation
	if err := c.Choose(t.config.text); err != nil {
		return cmp.Or(s.requireKey(w, r, info), err) // a stranger learns nothing about models
	}
	defer a.countFee()
	err = s.gateway.Serve(w, r, c)
	if err == http.ErrAbortHandler {
		panic(err)
	}
	return err
}

// listModels sends the models that may be asked for.
func (s *server) listModels(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	format, _ := gatewayFormat(r)
	models := info.tenant.config.text.Models(format)
	return writeBody(w, http.StatusOK, append(format.ModelListBody(models), '\n'))
}

// showModel sends one model that may be asked for.
func (s *server) showModel(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	format, _ := gatewayFormat(r)
	model, err := info.tenant.config.text.Model(format, r.PathValue("model"))
	if err != nil {
		return err
	}
	return writeBody(w, http.StatusOK, append(format.ModelBody(model), '\n'))
}

// readKey reads the API key from Authorization or X-API-Key, of which SDKs send either or both: what does not have the
// form of a key of ours may be meant for another service.
func (s *server) readKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	sent := false
	for _, value := range slices.Concat(r.Header["Authorization"], r.Header["X-Api-Key"]) {
		sent = true
		if scheme, token, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "Bearer") {
			value = strings.TrimLeft(token, " ")
		}
		if !validAPIKey(value) {
			continue
		}
		if info.apiKey != "" && info.apiKey != value {
			return errInvalidCredential
		}
		info.apiKey = value
	}
	switch {
	case !sent:
		return errNoCredential
	case info.apiKey == "":
		return ErrNoKey
	}
	return nil
}

// requireKey checks that the tenant has the API key.
func (s *server) requireKey(_ http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	_, err := s.store.Key(info.deadline, info.tenant, info.apiKey)
	return err
}

// readBody reads a body of up to maxGatewayBody bytes. One that is large is read only for an API key that exists, so
// that strangers cannot fill the memory.
func (s *server) readBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Content-Encoding"]) > 0 {
		return errEncodedBody
	}
	size := r.ContentLength
	if size > s.maxGatewayBody {
		w.Header().Set("Connection", "close")
		return errBodyTooLarge
	}
	reserved := size
	if size < 0 || size > checkedBody {
		if err := s.requireKey(w, r, info); err != nil {
			w.Header().Set("Connection", "close")
			return err
		}
		if size < 0 {
			reserved = s.maxGatewayBody
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
	info.releaseBody = func() { s.gateway.AddBodyBytes(-reserved) }
	if !s.gateway.AddBodyBytes(reserved) {
		w.Header().Set("Connection", "close")
		return gateway.Error{Status: http.StatusServiceUnavailable, Message: "Too many bytes are in flight"}
	}
	began := time.Now()
	var err error
	if size >= 0 {
		info.body = make([]byte, size)
		_, err = io.ReadFull(r.Body, info.body)
	} else {
		info.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, s.maxGatewayBody))
		s.gateway.AddBodyBytes(int64(len(info.body)) - reserved)
		reserved = int64(len(info.body))
	}
	info.deadline = info.deadline.Add(time.Since(began))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errBodyTooLarge
	}
	if err != nil {
		return errBrokenBody
	}
	return nil
}

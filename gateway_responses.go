package main

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// compact responds to a request that asks for its input in fewer tokens.
func (s *server) compact(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, &gateway.Call{Compact: true})
}

// storedQuery are the parameters that requests about a stored response may have beside stream. They change neither what
// these cost nor whose response is shown.
var storedQuery = []string{"include", "include[]", "after", "limit", "order", "api-version"}

// stored returns the handler of requests about a response that a provider stores, or about what is below it.
func (s *server) stored(resource string) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		info.outcome.Endpoint = noEndpoint
		query, err := storedQueryOf(r)
		if err != nil {
			return err
		}
		request, err := llmwire.ReadRequest(*info.format, []byte("{}"))
		if err != nil {
			return err
		}
		method := http.MethodGet // HEAD, too: its response is what net/http makes of that
		if r.Method == http.MethodDelete {
			method = http.MethodDelete
		}
		t := info.tenant
		info.memory = s.bodies.gateway.Claim(t.id, info.apiKey)
		info.place = s.gateway.Place(t.id, info.apiKey)
		return s.serve(w, r, info, &gateway.Call{Request: request, Stored: &gateway.StoredRequest{
			Method: method, ID: r.PathValue("responseId"), Resource: resource, Query: query,
			Endpoints: s.gateway.Usable(t.config.endpoints, t.id),
		}})
	}
}

// storedQueryOf returns the query with which a request about a stored response is forwarded. The error is a
// badRequestError. A response is never streamed again: only those made in the background need that, and they are
// refused.
func storedQueryOf(r *http.Request) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", badRequestError("Invalid query")
	}
	for name, values := range query {
		switch {
		case name == "stream" && !slices.ContainsFunc(values, func(value string) bool { return value != "false" }):
			delete(query, name)
		case name == "stream":
			return "", badRequestError("A stored response is not streamed: leave out stream")
		case !slices.Contains(storedQuery, name):
			return "", badRequestError("Query " + strconv.Quote(strict.Shorten(name)) + " is unknown")
		}
	}
	return query.Encode(), nil
}

// refuseWebSocket is the first step of GET /v1/responses. Nothing but HTTP is spoken there: clients that try a
// WebSocket first, as Codex does, use POST at once when they get 426.
func refuseWebSocket(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	isHandshake := len(r.Header["Sec-Websocket-Key"]) > 0 // nginx takes the header Upgrade out
	for _, line := range r.Header["Upgrade"] {
		isHandshake = isHandshake || strings.Contains(strings.ToLower(line), "websocket")
	}
	if !isHandshake {
		return nil
	}
	h := w.Header()
	h["Upgrade"], h["Connection"] = []string{"HTTP/1.1"}, []string{"Upgrade"} // RFC 9110, section 15.5.22
	return gateway.Error{Status: http.StatusUpgradeRequired, Message: "There is no WebSocket here: use POST"}
}

// listResponses responds to GET /v1/responses without a WebSocket: responses are not listed.
func listResponses(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	w.Header()["Allow"] = []string{"OPTIONS, POST"}
	return gateway.Error{Status: http.StatusMethodNotAllowed, Message: "Method not allowed"}
}

// isCodex reports whether a request for a response is one of Codex, which repeats each request that fails, unless the
// error is a 429 of the type insufficient_quota.
func isCodex(r *http.Request, info *requestInfo) bool {
	isResponse := info.format != nil && *info.format == llmwire.OpenAIResponses
	return isResponse && strings.HasPrefix(r.Header.Get("Originator"), "codex")
}

// writeQuotaError sends a 402 to Codex.
func writeQuotaError(w http.ResponseWriter, message string) {
	w.Header()["X-Should-Retry"] = []string{"false"}
	body := llmwire.OpenAIResponses.ErrorBody(http.StatusPaymentRequired, message)
	_ = writeBody(w, http.StatusTooManyRequests, append(body, '\n'))
}

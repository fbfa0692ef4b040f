package gateway

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

// dial connects to OpenAI. Nothing of the client's request is sent. Errors: an Error; a *refusedSession.
func (s *openAISession) dial(ctx context.Context) (*websocket.Conn, error) {
	e := s.call.endpoint
	if member, fault := e.credentialFault(); fault != "" {
		wrong := credentialError(member + " " + fault)
		return nil, s.failed(failureReason(wrong), "The endpoint's key cannot be sent: its "+wrong.Error())
	}
	header := http.Header{"User-Agent": ownUserAgent}
	if s.call.Hops != "" {
		header[loopHeader] = []string{s.call.Hops}
	}
	if e.apiKey != "" {
		name, value := e.credential()
		header[name] = []string{value}
	}
	g := s.gateway
	server, response, err := g.sessions.servers.Dial(ctx, g.transports.fresh, s.address(), header)
	switch {
	case err == nil:
		return server, nil
	case response != nil:
		return nil, s.refused(response)
	}
	return nil, s.unreachable(ctx, err)
}

// address returns the endpoint's URL with the model in its query, beside what is there.
func (s *openAISession) address() string {
	u := *s.call.endpoint.url
	u.User, u.Fragment = nil, ""
	query := u.Query()
	query.Set("model", s.call.model)
	u.RawQuery = query.Encode()
	return u.String()
}

// refused returns the error for a response that opens no WebSocket, as relayError does for requests.
func (s *openAISession) refused(response *http.Response) error {
	const format = llmwire.OpenAIChat // whose errors those of the Realtime API are
	status, key := response.StatusCode, s.call.endpoint.apiKey
	body, _ := io.ReadAll(response.Body) // at most maxErrorBody, and in memory
	switch {
	case status < 400:
		return s.failed("it responds with "+strconv.Itoa(status)+" and opens no WebSocket", "The provider opens no session")
	case format.IsAccountError(status, body):
		return s.failed(accountRefused+strconv.Itoa(status), "The provider refuses this service's account")
	}
	if len(body) >= maxErrorBody { // it may end within the key
		body = body[:max(maxErrorBody-maxSpelling*len(key), 0)]
	}
	return &refusedSession{response, shownError(format, response, body, key)}
}

// failed logs that the provider has failed, and returns the error of status 502 for the client, who is not to try again.
func (s *openAISession) failed(reason, message string) error {
	s.header["X-Should-Retry"] = []string{"false"}
	s.logFailure(reason)
	return Error{http.StatusBadGateway, message}
}

func (s *openAISession) logFailure(reason string) {
	s.gateway.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s",
		s.call.endpoint.label, s.call.Tenant, reason, s.call.ID)
}

// unreachable returns the error for a provider that could not be reached, or does not respond.
func (s *openAISession) unreachable(ctx context.Context, err error) error {
	switch context.Cause(ctx) {
	case errClientGone:
		return errHungUp
	case errStopping:
		return Error{http.StatusServiceUnavailable, "The server is stopping"}
	}
	s.logFailure(failureReason(err))
	if isTimeout(err) || context.Cause(ctx) == errSilent {
		return Error{http.StatusGatewayTimeout, "The provider does not respond in time"}
	}
	return Error{http.StatusBadGateway, "The provider cannot be reached"}
}

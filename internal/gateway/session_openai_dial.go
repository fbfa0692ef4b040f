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
	header, err := s.keyHeader()
	if err != nil {
		return nil, err
	}
	g := s.gateway
	address := s.call.endpoint.sessionURL(s.call.model)
	server, response, err := g.sessions.servers.Dial(ctx, g.transports.fresh, address, header)
	switch {
	case err == nil:
		return server, nil
	case response != nil:
		return nil, s.refused(response)
	}
	return nil, s.unreachable(ctx, err)
}

// sessionURL returns the endpoint's URL with a model in its query, beside what is there.
func (e *Endpoint) sessionURL(model string) string {
	u := *e.url
	u.User, u.Fragment = nil, ""
	query := u.Query()
	query.Set("model", model)
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

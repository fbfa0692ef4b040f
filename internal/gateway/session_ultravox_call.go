package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

const maxCreatedCall = 64 << 10 // bytes of the response to the creation of a call

// noSession is what the client is told of a provider that does not do what it should.
const noSession = "The provider opens no session"

// join creates a call and joins it. Errors: an Error; a *refusedSession. A call that was created and not joined costs
// nothing: it ends by itself.
func (s *ultravoxSession) join(ctx context.Context) (*websocket.Conn, error) {
	address, err := s.create(ctx)
	if err != nil {
		return nil, err
	}
	g := s.gateway
	server, response, err := g.sessions.servers.Dial(ctx, g.transports.fresh, address, openingHeader(s.call.Hops))
	switch {
	case err == nil:
		return server, nil
	case response != nil:
		return nil, s.failed("its call cannot be joined: it responds with "+strconv.Itoa(response.StatusCode), noSession)
	}
	return nil, s.unreachable(ctx, err)
}

// create creates a call, and returns the URL at which it is joined. That is a secret: it opens the call to anybody.
func (s *ultravoxSession) create(ctx context.Context) (address string, err error) {
	header, err := s.keyHeader()
	if err != nil {
		return "", err
	}
	header["Content-Type"], header["Accept"] = jsonType, jsonType
	e := s.call.endpoint
	p := endpointRequest{to: e, body: [][]byte{e.session.newCall(s.seconds)}, header: header}
	response, _, err := p.send(ctx, s.gateway.transports)
	if err != nil {
		return "", s.unreachable(ctx, err)
	}
	defer response.Body.Close()
	if status := response.StatusCode; status != http.StatusCreated && status != http.StatusOK {
		return "", s.refused(response)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxCreatedCall+1))
	if err != nil {
		return "", s.unreachable(ctx, err)
	}
	address, ok := joinURL(body, e.url.Scheme)
	if !ok || len(body) > maxCreatedCall {
		return "", s.failed("its response has no joinUrl that may be dialled", noSession)
	}
	return address, nil
}

// refused returns the error for a response that creates no call. Its body is not shown: it is about the config.
func (s *ultravoxSession) refused(response *http.Response) error {
	const format = llmwire.OpenAIChat // in whose errors clients are told
	status := strconv.Itoa(response.StatusCode)
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden:
		return s.failed(accountRefused+status, "The provider refuses this service's account")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		s.logFailure("it responds with " + status)
		response.Header["Content-Type"] = jsonType
		return &refusedSession{response, format.ErrorBody(response.StatusCode, "The provider has too many calls")}
	}
	return s.failed("it responds with "+status+" to the request for a call", noSession)
}

// newCall returns the request for a call that may last that many seconds.
func (s *sessionRules) newCall(seconds int64) []byte {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(s.call, &members) // was read before; nil is nothing
	call := make(map[string]any, len(members)+5)
	for name, value := range members {
		call[name] = value
	}
	call["medium"] = map[string]any{"serverWebSocket": map[string]int64{
		"inputSampleRate": s.sampleRate, "outputSampleRate": s.sampleRate,
	}}
	call["maxDuration"] = fmt.Sprintf("%ds", seconds)
	call["joinTimeout"] = fmt.Sprintf("%ds", startTimeout/time.Second)
	if s.model != "" {
		call["model"] = s.model
	}
	if s.voice != "" {
		call["voice"] = s.voice
	}
	body, _ := json.Marshal(call) // cannot fail
	return body
}

// joinURL returns the URL with which a call is joined. It must be one of a WebSocket, over TLS unless the calls are
// created without.
func joinURL(body []byte, scheme string) (address string, ok bool) {
	var created struct{ JoinURL string }
	if err := json.Unmarshal(body, &created); err != nil {
		return "", false
	}
	u, err := url.Parse(created.JoinURL)
	if err != nil || u.Hostname() == "" || u.Scheme != "wss" && (u.Scheme != "ws" || scheme != "http") {
		return "", false
	}
	u.User, u.Fragment = nil, ""
	return u.String(), true
}

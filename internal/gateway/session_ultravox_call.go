package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"tollgate/internal/websocket"
)

const maxCreatedCall = 64 << 10 // bytes of the response to the creation of a call

// errNoJoinURL means that the response to the creation of a call has no URL that may be dialled.
var errNoJoinURL = errors.New("no joinUrl")

// join creates a call and joins it. The errors are an Error; those of the provider are logged. A call that was created
// and not joined costs nothing: it ends by itself.
func (s *ultravoxSession) join(ctx context.Context) (*websocket.Conn, error) {
	address, err := s.create(ctx)
	if err != nil {
		return nil, err
	}
	header := make(http.Header)
	s.setCommon(header)
	transport := s.gateway.transports.plain
	if address.Scheme == "wss" {
		transport = s.gateway.transports.secure
	}
	server, response, err := s.gateway.sessions.servers.Dial(ctx, transport, address.String(), header)
	switch {
	case err == nil:
		return server, nil
	case response != nil:
		return nil, s.failed("it refuses to let its call be joined with " + strconv.Itoa(response.StatusCode))
	}
	return nil, s.failed("its call cannot be joined: " + failureReason(err))
}

// create creates a call, and returns where it is joined. Whoever knows that can join it, so it is told nobody.
func (s *ultravoxSession) create(ctx context.Context) (*url.URL, error) {
	e := s.call.endpoint
	header := http.Header{"Content-Type": jsonType, "Accept": jsonType}
	s.setCommon(header)
	if e.apiKey != "" {
		name, value := e.credential()
		header[name] = []string{value}
	}
	p := endpointRequest{to: e, body: [][]byte{s.newCall()}, header: header}
	response, _, err := p.send(ctx, s.gateway.transports)
	if err != nil {
		return nil, s.failed(failureReason(err))
	}
	defer response.Body.Close()
	if status := response.StatusCode; status != http.StatusCreated && status != http.StatusOK {
		return nil, s.refused(status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxCreatedCall+1))
	if err != nil {
		return nil, s.failed(failureReason(err))
	}
	address, err := joinURL(body, e.url.Scheme)
	if err != nil || len(body) > maxCreatedCall {
		return nil, s.failed("its response has no joinUrl that may be dialled")
	}
	return address, nil
}

// setCommon sets the headers of all requests of the session.
func (s *ultravoxSession) setCommon(header http.Header) {
	header["User-Agent"] = ownUserAgent
	if s.call.Hops != "" {
		header[loopHeader] = []string{s.call.Hops}
	}
}

// newCall returns the request for a call.
func (s *ultravoxSession) newCall() []byte {
	rules := s.call.endpoint.session
	var members map[string]json.RawMessage
	_ = json.Unmarshal(rules.call, &members) // was read before; nil is nothing
	call := make(map[string]any, len(members)+5)
	for name, value := range members {
		call[name] = value
	}
	call["medium"] = map[string]any{"serverWebSocket": map[string]int64{
		"inputSampleRate": rules.inputRate, "outputSampleRate": rules.outputRate,
	}}
	call["maxDuration"] = fmt.Sprintf("%ds", s.seconds)
	call["joinTimeout"] = fmt.Sprintf("%ds", startTimeout/time.Second)
	if rules.model != "" {
		call["model"] = rules.model
	}
	if rules.voice != "" {
		call["voice"] = rules.voice
	}
	body, _ := json.Marshal(call) // cannot fail
	return body
}

// joinURL returns the URL with which a call is joined, which is one of a WebSocket, over TLS unless the calls are created
// without.
func joinURL(body []byte, scheme string) (*url.URL, error) {
	var created struct{ JoinURL string }
	if err := json.Unmarshal(body, &created); err != nil {
		return nil, errNoJoinURL
	}
	u, err := url.Parse(created.JoinURL)
	if err != nil || u.Hostname() == "" || u.Scheme != "wss" && (u.Scheme != "ws" || scheme != "http") {
		return nil, errNoJoinURL
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}

// failed logs a failure of the provider, and returns the error for the client.
func (s *ultravoxSession) failed(reason string) error {
	s.gateway.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s",
		s.call.endpoint.label, s.call.Tenant, reason, s.call.ID)
	return Error{http.StatusBadGateway, "The provider does not open a session"}
}

// refused returns the error for a client after the provider has refused to create a call.
func (s *ultravoxSession) refused(status int) error {
	switch status {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden:
		_ = s.failed(accountRefused + strconv.Itoa(status))
		return Error{http.StatusBadGateway, "The provider refuses this service's account"}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		_ = s.failed("it responds with " + strconv.Itoa(status))
		return Error{status, "The provider has too many sessions"}
	}
	return s.failed("it responds with " + strconv.Itoa(status) + " to the creation of a call")
}

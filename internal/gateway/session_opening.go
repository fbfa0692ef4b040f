package gateway

import (
	"context"
	"net/http"

	"tollgate/internal/websocket"
)

// A sessionOpening is what the provider's side of any session needs to connect to its provider.
type sessionOpening struct {
	gateway *Gateway
	call    *SessionCall
}

// openingHeader returns the header of a request that opens a session and has come through hops. Nothing of a client is
// in it.
func openingHeader(hops string) http.Header {
	header := http.Header{"User-Agent": ownUserAgent}
	if hops != "" {
		header[loopHeader] = []string{hops}
	}
	return header
}

// openingHeader does what the function does, with the endpoint's key.
func (e *Endpoint) openingHeader(hops string) http.Header {
	header := openingHeader(hops)
	e.setCredential(header)
	return header
}

// keyHeader returns the header of a request with the endpoint's key. The error is an Error.
func (s *sessionOpening) keyHeader() (http.Header, error) {
	e := s.call.endpoint
	if member, fault := e.credentialFault(); fault != "" {
		wrong := credentialError(member + " " + fault)
		return nil, s.failed(failureReason(wrong), "The endpoint's key cannot be sent: its "+wrong.Error())
	}
	return e.openingHeader(s.call.Hops), nil
}

// failed logs that the provider has failed, and returns the error of status 502 for the client, who is not to try
// again.
func (s *sessionOpening) failed(reason, message string) error {
	s.call.header["X-Should-Retry"] = []string{"false"}
	s.logFailure(reason)
	return Error{http.StatusBadGateway, message}
}

func (s *sessionOpening) logFailure(reason string) {
	s.gateway.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s",
		s.call.endpoint.label, s.call.Tenant, reason, s.call.ID)
}

// unreachable returns the error for a provider that could not be reached, or does not respond.
func (s *sessionOpening) unreachable(ctx context.Context, err error) error {
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

// catch is deferred in what a session does in goroutines of its own, where a panic would end the process: it is logged,
// and the connections are cut.
func (s *sessionOpening) catch(conns ...*websocket.Conn) {
	p := recover()
	if p == nil {
		return
	}
	s.gateway.log.Panicf(p, "panic in a session id=%s", s.call.ID)
	for _, c := range conns {
		if c != nil { // the client of a call may not have come
			c.Abort()
		}
	}
}

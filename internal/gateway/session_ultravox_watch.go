package gateway

import (
	"errors"
	"net/http"
	"time"

	"tollgate/internal/websocket"
)

// Why a call has ended, as its client is told.
var (
	errCallLost   = Error{http.StatusBadGateway, "The connection to the provider was lost"}
	errNotStarted = Error{http.StatusGatewayTimeout, "The provider does not start the call"}
	errCallPaid   = Error{http.StatusPaymentRequired, "The call has lasted as long as the balance has paid for"}
)

// startWatch begins to watch the time of the call and its account, until stopWatch.
func (s *ultravoxSession) startWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = time.AfterFunc(s.nextWatch(), s.look)
}

func (s *ultravoxSession) stopWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch.Stop()
	s.watch = nil
}

// look ends the session if its time is over, or if its account may not go on. If the account cannot be reached, it goes
// on: the call is paid for.
func (s *ultravoxSession) look() {
	defer s.catch(s.client, s.server)
	s.mu.Lock()
	at, end := s.deadline()
	s.mu.Unlock()
	if !time.Now().Before(at) {
		s.end(end)
		return
	}
	err := s.call.Account.Check(time.Now().Add(settleStep), s.call.models())
	if err != nil && !errors.Is(err, ErrUnavailable) {
		s.end(sessionEnd{s.call.closeCode(err), err})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != nil {
		s.watch.Reset(s.nextWatch())
	}
}

// nextWatch returns after how long the session is looked at. The caller holds s.mu.
func (s *ultravoxSession) nextWatch() time.Duration {
	at, _ := s.deadline()
	return min(time.Until(at), s.gateway.renewal)
}

// deadline returns when the session ends, and how. The caller holds s.mu.
func (s *ultravoxSession) deadline() (time.Time, sessionEnd) {
	if s.started.IsZero() {
		return s.opened.Add(startTimeout), sessionEnd{websocket.CloseInternal, errNotStarted}
	}
	at := s.opened.Add(s.call.endpoint.session.maxSession)
	if spent := s.started.Add(time.Duration(s.seconds)*time.Second + durationGrace); spent.Before(at) {
		return spent, sessionEnd{websocket.ClosePolicy, errCallPaid}
	}
	return at, sessionEnd{websocket.CloseNormal, nil}
}

package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

const (
	ultravoxStep  = 6                // seconds: Ultravox bills each call in whole steps
	startTimeout  = 30 * time.Second // for call_started, once a call was joined
	durationGrace = 5 * time.Second  // for Ultravox to end a call itself that has taken maxDuration
)

// An ultravoxSession is a call at Ultravox, which costs what it lasts. Its provider limits it to what was held for it.
type ultravoxSession struct {
	sessionOpening
	price *sessionPrice
	hold  *sessionHold

	seconds int64     // that the call may last, in whole steps
	opened  time.Time // when the call was joined
	client  *websocket.Conn
	server  *websocket.Conn
	text    []byte               // a message of the client that is incomplete
	tooLong bool                 // it was, and nothing more is read
	scan    llmwire.UltravoxScan // of what Ultravox sends, until the call has started

	settleOnce sync.Once // of what was opened

	mu      sync.Mutex  // guards what follows
	started time.Time   // when call_started came; zero before
	watch   *time.Timer // of the next look at the session; nil once run has returned
	cause   *sessionEnd // why it ends here; nil if it does not
}

// newUltravoxSession returns a session for a call whose endpoint was chosen.
func newUltravoxSession(g *Gateway, c *SessionCall) *ultravoxSession {
	return &ultravoxSession{sessionOpening: sessionOpening{g, c}, price: c.price()}
}

// open holds what a call of up to max_session costs, or everything that is left if that pays for one step, and joins a
// call that lasts no longer than what is held pays for.
func (s *ultravoxSession) open(ctx context.Context) (*websocket.Conn, error) {
	most := inSteps(int64(s.call.endpoint.session.maxSession / time.Second))
	var err error
	s.hold, err = s.gateway.firstHold(s.call, HoldRequest{
		Least: max(s.price.seconds(ultravoxStep), 1), Most: max(s.price.seconds(most), 1), TTL: leaseTTL,
		Models: s.call.models(),
	})
	if err != nil {
		return nil, err
	}
	s.seconds = inSteps(s.price.secondsFor(s.hold.Tokens, most))
	server, err := s.join(ctx)
	if err != nil {
		s.settle()
		return nil, err
	}
	s.server, s.call.header, s.opened = server, nil, time.Now()
	return server, nil
}

// inSteps returns a number of seconds rounded down to whole steps, but at least one.
func inSteps(seconds int64) int64 { return max(seconds-seconds%ultravoxStep, ultravoxStep) }

// billedSeconds returns how many seconds are charged for a call that has lasted for d and could not last longer than
// most: it is rounded up to whole steps, and to one for a call that has just started.
func billedSeconds(d time.Duration, most int64) int64 {
	const step = ultravoxStep * time.Second
	return min(max(int64((d+step-1)/step), 1)*ultravoxStep, most)
}

// settle charges for the call, which is over. One that has not started costs nothing.
func (s *ultravoxSession) settle() {
	var used llmwire.Usage
	if !s.started.IsZero() {
		used.Seconds = billedSeconds(time.Since(s.started), s.seconds)
	}
	s.hold.settle(s.hold.use(used, s.price.seconds(used.Seconds), false, false))
}

// run implements provider.
func (s *ultravoxSession) run(client, server *websocket.Conn) {
	s.client = client
	defer context.AfterFunc(s.gateway.ctx, func() { s.end(sessionEnd{websocket.CloseGoingAway, nil}) })()
	s.startWatch()
	defer s.stopWatch()
	relay := websocket.Relay{
		Client: client, Server: server, FromClient: s.fromClient, FromServer: s.fromServer,
		ClientEnded: s.clientEnded, ServerEnded: s.serverEnded,
	}
	defer s.settleOnce.Do(s.settle) // it is, unless something has panicked
	relay.Run()
}

// abandon ends the call. If it has started meanwhile, that is billed.
func (s *ultravoxSession) abandon() {
	s.hangUp(websocket.CloseGoingAway, "")
	for {
		part, err := s.server.Next()
		if err != nil {
			break
		}
		s.readStart(part)
	}
	s.server.Finish()
	s.settle()
}

// fromClient passes a part of a message on to Ultravox: sound as it comes, and a text when it is complete and was
// checked.
func (s *ultravoxSession) fromClient(part websocket.Part) error {
	if part.Kind == websocket.Binary {
		return s.server.WritePart(part)
	}
	message := part.Data
	if !part.First || !part.Last {
		s.tooLong = s.tooLong || len(s.text)+len(message) > llmwire.MaxUltravoxMessage
		if s.tooLong {
			s.end(sessionEnd{websocket.CloseTooBig, nil})
			return nil
		}
		s.text = append(s.text, message...)
		if message = s.text; !part.Last {
			return nil
		}
		s.text = nil
	}
	if wrong, refused := errors.AsType[*llmwire.RealtimeError](llmwire.CheckUltravox(message)); refused {
		if err := s.client.Send(websocket.Text, wrong.Event()); err == websocket.ErrQueueFull {
			s.end(sessionEnd{websocket.ClosePolicy, nil})
		}
		return nil
	}
	return s.server.Send(websocket.Text, message)
}

// fromServer passes a part of a message on to the client.
func (s *ultravoxSession) fromServer(part websocket.Part) error {
	s.readStart(part)
	return s.client.WritePart(part)
}

// readStart starts the clock if the part has the end of call_started.
func (s *ultravoxSession) readStart(part websocket.Part) {
	if part.Kind != websocket.Text || !s.started.IsZero() || !s.scan.Read(part.Data, part.Last) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = time.Now()
	if s.watch != nil {
		s.watch.Reset(s.nextWatch())
	}
}

// clientEnded ends the call when nothing more comes from the client.
func (s *ultravoxSession) clientEnded(err error) {
	s.hangUp(websocket.Forward(err, websocket.CloseGoingAway))
}

// serverEnded charges for the call, which is over when nothing more comes from Ultravox, and then lets the client know.
func (s *ultravoxSession) serverEnded(err error) {
	s.settleOnce.Do(s.settle)
	s.mu.Lock()
	cause := s.cause
	s.mu.Unlock()
	if cause == nil && !isClose(err) {
		cause = &sessionEnd{websocket.CloseInternal, errCallLost}
	}
	if cause == nil {
		code, reason := websocket.Forward(err, websocket.CloseInternal)
		_ = s.client.Close(code, string(withoutKey([]byte(reason), s.call.endpoint.apiKey)))
		return
	}
	s.closeClient(*cause)
}

// isClose reports whether a connection has ended with a close frame.
func isClose(err error) bool {
	_, ok := errors.AsType[*websocket.CloseError](err)
	return ok
}

// A sessionEnd is how a session ends here.
type sessionEnd struct {
	code websocket.Code
	why  error // that the client is told; nil if there is nothing to tell
}

// end ends the call and the session, unless it did before. Neither side has to wait until the other has read it.
func (s *ultravoxSession) end(cause sessionEnd) {
	defer s.catch(s.client, s.server)
	s.mu.Lock()
	isFirst := s.cause == nil
	if isFirst {
		s.cause = &cause
	}
	s.mu.Unlock()
	if !isFirst {
		return
	}
	go s.hangUp(cause.code, "")
	s.closeClient(cause)
}

// closeClient closes the client's connection.
func (s *ultravoxSession) closeClient(cause sessionEnd) {
	if cause.why == nil {
		_ = s.client.Close(cause.code, "")
		return
	}
	failure := s.call.failure(cause.why)
	_ = s.client.CloseAfter(failure.Event(), cause.code, failure.Code)
}

// hangUp asks Ultravox to end the call, and closes the connection in any case.
func (s *ultravoxSession) hangUp(code websocket.Code, reason string) {
	defer s.catch(s.client, s.server)
	_ = s.server.CloseAfter([]byte(llmwire.UltravoxHangUp), code, reason)
}

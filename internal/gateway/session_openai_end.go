package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

const (
	cancelPatience  = 5 * time.Second  // for the response.done of what was cancelled
	messagePatience = 2 * time.Second  // for the end of an event that the client is getting, before it is told of the end
	endPatience     = 30 * time.Second // for both sides to be closed and everything to be settled, at most
	closePatience   = 5 * time.Second  // for a side to take a close frame, before its connection is cut
)

// An openAIEnd is how a session ends. Only the first cause counts.
type openAIEnd struct {
	event          *llmwire.RealtimeError // that the client is told; nil: none
	client, server closing
	isLost         bool   // nothing is awaited of the provider any more
	failure        string // of the provider, for the log; "" if it has not failed
}

// closing is how one side is closed, unless it has ended itself.
type closing struct {
	code   websocket.Code
	reason string
}

// The ends that do not depend on anything. They are never changed.
var (
	endStopping = bothEnd(nil, websocket.CloseGoingAway, "the service is stopping")
	endTooLong  = bothEnd(nil, websocket.CloseNormal, "the session has reached its longest duration")

	endBinary   = clientEnd(websocket.CloseUnsupported, "events are text")
	endTooBig   = clientEnd(websocket.CloseTooBig, llmwire.ErrEventTooLong.Error())
	endFlooded  = clientEnd(websocket.ClosePolicy, "the errors are not read")
	endHalf     = clientEnd(websocket.ClosePolicy, "an event is not ended, and others wait for that")
	endNoMemory = clientEnd(websocket.CloseTryAgain, "too little memory")

	endNotLimited = providerEnd("The provider does not take the limit of output tokens",
		"it refuses the session's limit of output tokens or voice")
	endNotCreated = providerEnd("The provider does not create the session", "it does not create the session")
	endUnmetered  = providerEnd("The provider has sent a message that is not text", "it has sent a binary message")
)

// bothEnd returns an end with the same code for both sides.
func bothEnd(event *llmwire.RealtimeError, code websocket.Code, reason string) *openAIEnd {
	both := closing{code, reason}
	return &openAIEnd{event: event, client: both, server: both}
}

// clientEnd returns the end of a session whose client does what it must not.
func clientEnd(code websocket.Code, reason string) *openAIEnd {
	return &openAIEnd{client: closing{code, reason}, server: closing{websocket.CloseGoingAway, ""}}
}

// providerEnd returns the end of a session whose provider fails, with a sentence for the client and a reason for the
// log.
func providerEnd(message, failure string) *openAIEnd {
	return &openAIEnd{
		event:  llmwire.RealtimeFailure(http.StatusBadGateway, "", message),
		client: closing{websocket.CloseInternal, message}, server: closing{websocket.CloseGoingAway, ""}, failure: failure,
	}
}

// endRefused returns the end of a session whose client has sent an event that must not be passed on, some of which was.
func endRefused(wrong *llmwire.RealtimeError) *openAIEnd {
	return bothEnd(wrong, websocket.ClosePolicy, wrong.Message)
}

// refusal returns the end of a session whose account may not go on, or cannot be reached.
func (s *openAISession) refusal(err error) *openAIEnd {
	event := s.call.failure(err)
	return bothEnd(event, s.call.closeCode(err), event.Message)
}

// clientEnded ends the session when nothing more comes from the client. The provider is told how it has ended.
func (s *openAISession) clientEnded(err error) {
	code, reason := websocket.Forward(err, websocket.CloseGoingAway)
	s.end(&openAIEnd{client: closing{code, ""}, server: closing{code, reason}})
}

// serverEnded ends the session when nothing more comes from the provider. The client is told how it has ended, unless
// that was in the middle of a response, or without a close frame.
func (s *openAISession) serverEnded(err error) {
	code, reason := websocket.Forward(err, websocket.CloseInternal)
	reason = string(withoutKey([]byte(reason), s.call.endpoint.apiKey))
	closed, isClosed := errors.AsType[*websocket.CloseError](err)
	s.mu.Lock()
	defer s.mu.Unlock()
	end := &openAIEnd{client: closing{code, reason}, server: closing{code, ""}}
	switch {
	case !isClosed:
		end = providerEnd("The connection to the provider was lost", "it closed the connection of a session")
	case s.underWay() > 0:
		end = providerEnd("The provider has ended the session", fmt.Sprintf("it closed a session with %d", closed.Code))
	}
	end.isLost = true
	s.endLocked(end)
	s.settle()
	go s.hangUp()
}

// end ends the session, unless it ends already.
func (s *openAISession) end(cause *openAIEnd) {
	defer s.catch(s.client, s.server)
	isOver := false
	s.locked(func() { isOver = s.endLocked(cause) })
	if isOver {
		go s.hangUp()
	}
}

// locked calls f while it holds s.mu, also if f panics.
func (s *openAISession) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// endLocked does what end does, but that it only reports whether both sides are to be closed. Responses that are under
// way are cancelled instead, and what they have used is awaited. What the provider has sent before it answers the close
// frame is paid for, too: it may have begun a response by itself. The caller holds s.mu.
func (s *openAISession) endLocked(cause *openAIEnd) (isOver bool) {
	if s.cause != nil {
		return false
	}
	s.cause = cause
	if cause.failure != "" {
		s.logFailure(cause.failure)
	}
	s.ending.Store(true)
	s.readyOnce.Do(func() { close(s.ready) })
	if !cause.isLost {
		s.patience = time.AfterFunc(cancelPatience, s.giveUp)
	}
	if cause.isLost || s.underWay() == 0 {
		s.isOver = true
		return true
	}
	writes := s.serverSide.writes.Load()
	s.unblocking = time.AfterFunc(cancelPatience/2, func() { s.unblock(writes) })
	ids := make([]string, 0, 1)
	for _, response := range s.report.Unfinished() {
		ids = append(ids, response.ID)
	}
	if len(s.asked) > 0 {
		ids = append(ids, "")
	}
	go s.cancelAll(ids)
	return false
}

// cancelAll ends the event that the client was sending, and cancels responses.
func (s *openAISession) cancelAll(ids []string) {
	defer s.catch(s.client, s.server)
	c := &s.clientSide
	c.mu.Lock()
	c.isCut = true
	if c.isOpen { // nothing else can be sent before its end; half of an event asks for nothing
		c.isHalf.Store(true)
		_ = s.server.WritePart(websocket.Part{Kind: websocket.Text, Last: true})
	}
	c.mu.Unlock()
	for _, id := range ids {
		s.cancel(id)
	}
}

// cancel asks the provider to end a response.
func (s *openAISession) cancel(id string) {
	_ = s.server.Send(websocket.Text, llmwire.RealtimeCancel(cancelID, id)) // if that fails, it is not awaited for long
}

// unblock sees to it that the client does not keep what the provider reports from being read. It cuts the client's
// connection if a part that it was sent when the session began to end, after that many writes, is still not written.
// Else it gets no other event and, if it then has not got all of the present one in time, it is cut off as well.
func (s *openAISession) unblock(writes int64) {
	defer s.catch(s.client, s.server)
	e := &s.serverSide
	isStuck := writes%2 == 1 && e.writes.Load() == writes
	if wasMuted := e.isMuted.Swap(true); isStuck || wasMuted && e.isOpen.Load() {
		s.client.Abort()
	} else if !wasMuted {
		s.locked(func() {
			if !s.isOver && !s.settled {
				s.unblocking.Reset(cancelPatience / 4)
			}
		})
	}
}

// giveUp ends a session whose provider does not end its responses, or the connection, in time: settling cannot wait.
func (s *openAISession) giveUp() {
	defer s.catch(s.client, s.server)
	s.locked(s.settle)
	s.hangUp()
}

// settle pays for the responses and transcriptions whose end has not come, as far as is known of them, when it is
// called first. A response that was only asked for has cost nothing. The caller holds s.mu.
func (s *openAISession) settle() {
	unfinished := s.report.Unfinished()
	if u, ok := s.report.Transcribing(); ok {
		cost := s.price.transcript(&u, 0)
		s.payRest(u, cost, len(unfinished))
	}
	for i := range unfinished {
		u, cost := s.cost(llmwire.Usage{}, unfinished[i].Estimates)
		s.payRest(u, cost, len(unfinished)-1-i)
	}
	s.closePurse(llmwire.Usage{}, 0, false)
}

// payRest pays for what may have been used when the session ends, before n responses, unless everything is settled. The
// caller holds s.mu.
func (s *openAISession) payRest(u llmwire.Usage, cost int64, n int) {
	if n > 0 && !s.settled {
		_ = s.purse.spend(u, cost, true, n, s.report.LastInput()) // the session ends already
	} else {
		s.closePurse(u, cost, true)
	}
}

// closePurse pays for what was used last, and gives back what is held, unless everything is settled. The caller holds
// s.mu.
func (s *openAISession) closePurse(u llmwire.Usage, cost int64, isEstimate bool) {
	if s.settled {
		return
	}
	s.settled = true
	for _, timer := range []*time.Timer{s.checking, s.patience, s.unblocking} {
		if timer != nil {
			timer.Stop()
		}
	}
	s.purse.close(u, cost, isEstimate)
}

// hangUp closes both sides, once no response is under way. The client is closed first, after the event that it is
// getting, if that ends soon.
func (s *openAISession) hangUp() {
	defer s.catch(s.client, s.server)
	s.hangUpOnce.Do(func() {
		defer close(s.done)
		s.mu.Lock()
		end := s.cause
		s.mu.Unlock()
		e := &s.serverSide
		e.isQuiet.Store(true)
		if !end.isLost {
			waitUntil(messagePatience, func() bool { return !e.isOpen.Load() })
		}
		event := end.event
		if e.isOpen.Load() { // Close would drop what comes after it
			event = nil
		}
		closeSide(s.client, event, end.client)
		closeSide(s.server, nil, end.server)
	})
}

// closeSide closes one side, after an event unless that is nil, and cuts its connection if it does not take that in
// time.
func closeSide(side *websocket.Conn, event *llmwire.RealtimeError, how closing) {
	defer time.AfterFunc(closePatience, side.Abort).Stop()
	if event != nil {
		_ = side.Send(websocket.Text, event.Event()) // if that fails, so does Close, and the connection has ended
	}
	_ = side.Close(how.code, how.reason)
}

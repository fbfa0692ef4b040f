package gateway

import (
	"bytes"
	"slices"
	"sync/atomic"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

// activeResponse is the code of an error that nothing but a response.create leads to.
const activeResponse = "conversation_already_has_active_response"

// serverEvents is what is known of the event that the provider sends. It is used by the goroutine that reads from the
// provider alone, but for the atomic members.
type serverEvents struct {
	buffer   eventBuffer // what was not passed on
	isUnread bool        // there is no memory for the event
	isHidden bool        // the client gets nothing of the event
	isBegun  bool        // the client has got a part of the event, and not all of it

	isOpen  atomic.Bool  // the client has got a part of the event, or is about to, and not all of it
	isMuted atomic.Bool  // events that come are hidden: the client takes too long to read them
	isQuiet atomic.Bool  // no event is begun any more
	writes  atomic.Int64 // of parts for the client: an odd number while one is written
}

// fromServer passes on a part of an event of the provider. What an event reports is paid for before its end is passed
// on.
func (s *openAISession) fromServer(p websocket.Part) error {
	e := &s.serverSide
	if p.Kind != websocket.Text {
		s.end(endUnmetered)
		return nil
	}
	if p.First {
		e.isHidden, e.isUnread = e.isMuted.Load(), false
	}
	action, data := s.report.Read(p.Data), p.Data
	isHeld := !p.Last && (action == llmwire.HoldEvent || action == llmwire.ReadEvent)
	if isHeld || e.isUnread || e.buffer.kept != nil {
		if e.isUnread = e.isUnread || !e.buffer.add(data); e.isUnread {
			s.dropUnread(p.Last)
			return nil
		}
		data = e.buffer.bytes()
	}
	if isHeld {
		return nil
	}
	err := s.passOnOrDrop(data, action, p.Last)
	e.buffer.release()
	return err
}

// dropUnread drops what has come of an event for which there is no memory, and counts it when it is complete.
func (s *openAISession) dropUnread(isLast bool) {
	s.serverSide.buffer.release()
	s.end(endNoMemory)
	if isLast {
		s.follow(s.meter(nil))
	}
}

// passOnOrDrop passes on what has come of an event and was not passed on, which may be the end of it.
func (s *openAISession) passOnOrDrop(data []byte, action llmwire.RealtimeAction, isLast bool) error {
	e := &s.serverSide
	isDropped := action == llmwire.DropEvent || e.isHidden
	if !isLast && isDropped {
		return nil
	}
	if e.isOpen.Store(!e.isHidden); !e.isBegun && e.isQuiet.Load() {
		e.isOpen.Store(false)
		e.isHidden, isDropped = true, true // but paid for
	}
	if !isLast && isDropped {
		return nil
	}
	if !isLast {
		return s.show(data, false)
	}
	var whole []byte
	if action == llmwire.ReadEvent {
		whole = data
	}
	next := s.meter(whole)
	if whole != nil {
		data = withoutKey(data, s.call.endpoint.apiKey)
	}
	if a := next.refused; a != nil {
		data = bytes.ReplaceAll(data, llmwire.RealtimeID(a.id), llmwire.RealtimeID(a.client))
	}
	var err error
	if !isDropped && !next.isOurs {
		err = s.show(data, true)
	}
	e.isOpen.Store(false)
	s.follow(next)
	return err
}

// show sends a part of an event to the client.
func (s *openAISession) show(data []byte, isLast bool) error {
	e := &s.serverSide
	e.writes.Add(1)
	defer e.writes.Add(1)
	isFirst := !e.isBegun
	e.isBegun = !isLast
	return s.client.WritePart(websocket.Part{Kind: websocket.Text, First: isFirst, Last: isLast, Data: data})
}

// An afterEvent says what is to be done about an event once it is paid for.
type afterEvent struct {
	isOurs  bool      // it is an error about an event of ours, which the client does not get
	refused *askedFor // it is an error about this one; else nil

	// When it was passed on:
	isCreated bool   // the provider is told the limit of output tokens and the voice
	hasLimit  bool   // it is told the limit, which has changed
	isLate    bool   // the response with the ID is cancelled, since the session ends
	id        string // of a response
	hangUp    bool   // both sides are closed
}

// follow does what is to be done when an event was passed on.
func (s *openAISession) follow(next afterEvent) {
	switch {
	case next.isCreated:
		s.sendLimit(s.call.endpoint.session.voice)
		s.readyOnce.Do(func() { close(s.ready) })
	case next.hasLimit:
		s.sendLimit("")
	}
	if next.isLate {
		s.cancel(next.id)
	}
	if next.hangUp {
		go s.hangUp()
	}
}

// meter reads the end of an event, which is whole if it is to be read, and pays for what it reports.
func (s *openAISession) meter(whole []byte) (next afterEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.report.End(whole)
	if e.Kind == llmwire.OtherRealtime || s.settled {
		next.isOurs = e.ErrorEventID == cancelID || e.ErrorEventID == updateID
		return next
	}
	switch e.Kind {
	case llmwire.SessionCreated, llmwire.SessionUpdated:
		s.noteModel(e.Model)
		next.isCreated = e.Kind == llmwire.SessionCreated
	case llmwire.ResponseCreated:
		s.responseCreated()
		next.isLate, next.id = s.cause != nil, e.ID
	case llmwire.ResponseDone:
		u, cost := s.cost(e.Usage, e.Estimates)
		s.spend(u, cost, e.Estimates != nil)
	case llmwire.InputTranscribed:
		s.transcribed(&e)
	case llmwire.RealtimeErrorEvent:
		next.isOurs, next.refused = s.errorCame(&e)
	}
	s.isOver = s.isOver || s.cause != nil && s.underWay() == 0
	next.hangUp = s.isOver
	next.hasLimit = s.hasNewLimit()
	return next
}

// hasNewLimit notes the limit that what is held covers, and reports whether it is another one. The caller holds s.mu.
func (s *openAISession) hasNewLimit() bool {
	if s.cause != nil {
		return false
	}
	before := s.limit
	s.limit = s.purse.limit()
	return s.limit != before
}

// noteModel notes the model that the provider says it is. If that is another one of the endpoint, and no snapshot of
// the same, the session costs what the dearer one does, as a response of billOf. The caller holds s.mu.
func (s *openAISession) noteModel(model string) {
	other := s.call.endpoint.prices.listed(model)
	if other == nil || withoutSnapshot(model) == withoutSnapshot(s.call.model) {
		return
	}
	p := *s.price
	p.price = other
	s.dearer = &p
}

// responseCreated sees to it that a response that the client has not asked for is held for, too. The caller holds s.mu.
func (s *openAISession) responseCreated() {
	if len(s.asked) > 0 {
		if len(s.begun) == maxResponses {
			s.begun = slices.Delete(s.begun, 0, 1)
		}
		s.begun = append(s.begun, s.asked[0])
		s.asked = slices.Delete(s.asked, 0, 1)
		return
	}
	if n := s.underWay(); n > 1 && s.cause == nil {
		if err := s.purse.cover(n, false); err != nil {
			s.endLocked(s.refusal(err))
		}
	}
}

// cost returns what a response has used, and what that costs: the dearest of the estimates if there are some.
func (s *openAISession) cost(u llmwire.Usage, estimates []llmwire.Usage) (llmwire.Usage, int64) {
	if estimates == nil {
		estimates = []llmwire.Usage{u}
	}
	used, cost := s.price.dearest(estimates)
	if s.dearer != nil {
		if other, more := s.dearer.dearest(estimates); more > cost {
			return other, more
		}
	}
	return used, cost
}

// transcribed pays for the transcription of a part of the input. The caller holds s.mu.
func (s *openAISession) transcribed(e *llmwire.RealtimeEvent) {
	u, cost := e.Usage, int64(0)
	if e.Estimates != nil {
		u = e.Estimates[0]
	}
	cost = s.price.transcript(&u, e.Duration)
	u.Seconds = int64((e.Duration + time.Second - 1) / time.Second) // only to be counted: they are paid for as they are
	s.spend(u, cost, e.Estimates != nil)
}

// spend pays for what was used. The caller holds s.mu.
func (s *openAISession) spend(u llmwire.Usage, cost int64, isEstimate bool) {
	if err := s.purse.spend(u, cost, isEstimate, s.underWay(), s.report.LastInput()); err != nil {
		s.endLocked(s.refusal(err))
	}
}

// errorCame reads an error, and reports whether it is about an event of ours, or about which response.create. The
// caller holds s.mu.
func (s *openAISession) errorCame(e *llmwire.RealtimeEvent) (isOurs bool, refused *askedFor) {
	id := e.ErrorEventID
	switch id {
	case cancelID: // nothing was to be cancelled any more
		return true, nil
	case updateID: // then a response can cost more than is held
		s.endLocked(endNotLimited)
		return true, nil
	case "":
		if s.clientSide.isHalf.CompareAndSwap(true, false) {
			return true, nil
		}
		if len(s.asked) > 0 && e.ErrorCode == activeResponse {
			id = s.asked[0].id
		}
	}
	return false, s.answered(id)
}

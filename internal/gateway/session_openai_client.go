package gateway

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

// clientEvents is what is known of the event that the client sends. It is used by the goroutine that reads from the
// client alone, but for what is behind mu.
type clientEvents struct {
	isReady   bool // the provider was sent our limit
	scan      llmwire.RealtimeScan
	buffer    eventBuffer // what was not passed on
	passed    int64       // bytes that were
	created   int64       // response.creates and session.updates that were read: each has another ID
	isDropped bool        // the event was refused: what still comes of it is dropped

	mu     sync.Mutex // guards what follows; held while a part of the event is passed on
	isOpen bool       // the provider has got a part of the event, and not all of it
	isCut  bool       // nothing more is passed on

	isHalf atomic.Bool // the provider has got an event that was ended in the middle, and has not told so
}

// fromClient passes on a part of an event of the client as far as it is known what that asks for.
func (s *openAISession) fromClient(p websocket.Part) (err error) {
	c := &s.clientSide
	if !s.awaitReady() || s.ending.Load() {
		return nil
	}
	if p.Kind != websocket.Text {
		s.end(endBinary)
		return nil
	}
	if p.First {
		c.scan.Reset()
		c.passed, c.isDropped = 0, false
	}
	if c.isDropped {
		return nil
	}
	action, wrong := c.scan.Read(p.Data)
	if wrong == nil && p.Last {
		action, wrong = c.scan.End()
	}
	switch {
	case wrong != nil:
		s.refuse(wrong)
	case action == llmwire.PassEvent:
		err = s.passOn(p)
	case !p.Last:
		if !c.buffer.add(p.Data) {
			s.refuse(errNoEventMemory)
		}
	default:
		s.readEvent(p.Data)
	}
	if p.Last {
		c.buffer.release()
	}
	return err
}

// errNoEventMemory is the refusal of an event that is to be read, for which there is no memory.
var errNoEventMemory = llmwire.RealtimeFailure(http.StatusServiceUnavailable, "",
	"There is too little memory to read the event")

// awaitReady waits until the provider was sent our limit: what the client asks for comes after it. It returns false if
// the session ends.
func (s *openAISession) awaitReady() bool {
	if s.clientSide.isReady {
		return true
	}
	timer := time.NewTimer(createdTimeout)
	defer timer.Stop()
	select {
	case <-s.ready:
		s.clientSide.isReady = true
	case <-timer.C:
		s.end(endNotCreated)
	}
	return s.clientSide.isReady
}

// passOn passes on as much of an event as may be, up to the end of a character: so the event can be ended anywhere.
func (s *openAISession) passOn(p websocket.Part) error {
	c := &s.clientSide
	data, isKept := p.Data, c.buffer.kept != nil
	if isKept {
		if !c.buffer.add(data) {
			s.refuse(errNoEventMemory)
			return nil
		}
		data = c.buffer.bytes()
	}
	n := len(data)
	if !p.Last {
		n = wholeCharacters(data[:c.scan.Released()-c.passed])
	}
	if rest := data[n:]; len(rest) > FreeBodyBytes { // spaces behind the event
		s.refuse(llmwire.ErrEventTooLong)
		return nil
	}
	var err error
	if n > 0 || p.Last {
		err = s.write(data[:n], p.Last)
		c.passed += int64(n)
	}
	switch {
	case isKept:
		c.buffer.drop(n)
	case !c.buffer.add(data[n:]):
		s.refuse(errNoEventMemory)
	}
	return err
}

// wholeCharacters returns how many bytes of text are left without a character at its end that is not complete.
func wholeCharacters(text []byte) int {
	for i := len(text) - 1; i >= max(len(text)-utf8.UTFMax, 0); i-- {
		if utf8.RuneStart(text[i]) {
			if !utf8.FullRune(text[i:]) {
				return i
			}
			break
		}
	}
	return len(text)
}

// write sends a part of the client's event to the provider, unless the session ends.
func (s *openAISession) write(data []byte, isLast bool) error {
	c := &s.clientSide
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		return nil
	}
	err := s.server.WritePart(websocket.Part{Kind: websocket.Text, First: !c.isOpen, Last: isLast, Data: data})
	c.isOpen = !isLast
	return err
}

// refuse drops an event. The client is told why, and the session goes on unless the provider has got a part of it.
func (s *openAISession) refuse(err error) {
	c := &s.clientSide
	c.isDropped = true
	c.buffer.release()
	wrong, isEvent := errors.AsType[*llmwire.RealtimeError](err)
	switch {
	case !isEvent:
		s.end(endTooBig)
	case c.passed > 0:
		s.end(endRefused(wrong))
	default:
		s.tell(wrong)
	}
}

// tell sends the client an error.
func (s *openAISession) tell(wrong *llmwire.RealtimeError) {
	if s.client.Send(websocket.Text, wrong.Event()) == websocket.ErrQueueFull { // the client does not read, and goes on
		s.end(endFlooded)
	}
}

// readEvent reads an event that is complete but for its last part, which is data, and passes it on as the rules allow.
func (s *openAISession) readEvent(data []byte) {
	c := &s.clientSide
	if c.buffer.kept != nil {
		if !c.buffer.add(data) {
			s.refuse(errNoEventMemory)
			return
		}
		data = c.buffer.bytes()
	}
	s.mu.Lock()
	rules := llmwire.RealtimeRules{Model: s.call.model, Limit: s.limit, Default: s.limitLocked()}
	s.mu.Unlock()
	c.created++
	rules.ResponseID = createID + strconv.FormatInt(c.created, 10)
	if s.call.Model != s.call.model {
		rules.Alias = s.call.Model
	}
	request, err := rules.Read(data)
	switch {
	case err != nil:
		s.refuse(err)
	case request.CreatesResponse:
		s.createResponse(request, data, rules)
	default:
		s.updateSession(request, rules)
	}
}

// createResponse asks the provider for a response, if it is held for. The event was read by the given rules.
func (s *openAISession) createResponse(request *llmwire.RealtimeRequest, event []byte, rules llmwire.RealtimeRules) {
	eventID := request.EventID
	request, hasLimit, err := s.ask(request, event, rules)
	if hasLimit {
		s.sendLimit("")
	}
	if err != nil {
		s.tellNotAsked(err, eventID)
	} else if request != nil && !s.send(request) { // the session has begun to end, and awaits the response
		s.mu.Lock()
		isOver := s.answered(rules.ResponseID) != nil && s.underWay() == 0
		s.isOver = s.isOver || isOver
		s.mu.Unlock()
		if isOver {
			s.hangUp()
		}
	}
}

// ask sees to it that a response is held for that is about to be asked for. If what is held covers less by now, since
// another response is under way, the event is read again. It returns what to send, nil if the session ends.
func (s *openAISession) ask(request *llmwire.RealtimeRequest, event []byte, rules llmwire.RealtimeRules) (
	_ *llmwire.RealtimeRequest, hasLimit bool, err error) {
	eventID := request.EventID
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return nil, false, nil
	}
	if n := s.underWay(); n > 0 {
		err = s.purse.cover(n+1, true)
	}
	hasLimit = s.hasNewLimit()
	if err == nil && s.limit < rules.Limit {
		rules.Limit, rules.Default = s.limit, s.limitLocked()
		request, err = rules.Read(event)
	}
	if err == nil {
		s.asked = append(s.asked, askedFor{rules.ResponseID, eventID, time.Now()})
	}
	return request, hasLimit, err
}

// tellNotAsked tells the client that a response was not asked for: it is not held for, or wants more output than that
// covers.
func (s *openAISession) tellNotAsked(err error, eventID string) {
	wrong, isRead := errors.AsType[*llmwire.RealtimeError](err)
	if !isRead {
		_, _, message := s.call.refusal(err)
		wrong = llmwire.RealtimeFailure(http.StatusTooManyRequests, "balance_held", message)
		wrong.EventID = eventID
	}
	s.tell(wrong)
}

// answered forgets a response.create that the provider has answered, and returns it, or nil if none has the ID. It also
// finds one that a response seems to have answered: the provider may have begun that by itself. The caller holds s.mu.
func (s *openAISession) answered(id string) *askedFor {
	for _, all := range []*[]askedFor{&s.asked, &s.begun} {
		if at := slices.IndexFunc(*all, func(a askedFor) bool { return a.id == id }); at >= 0 {
			one := (*all)[at]
			*all = slices.Delete(*all, at, at+1)
			return &one
		}
	}
	return nil
}

// updateSession passes on a session.update, and lets the limit that it has count from then on. It was read by the given
// rules. If our limit was lowered meanwhile, that is sent once more.
func (s *openAISession) updateSession(request *llmwire.RealtimeRequest, rules llmwire.RealtimeRules) {
	s.mu.Lock()
	switch request.Limit {
	case rules.Default: // it names none, or the same
	case rules.Limit:
		s.wanted = 0
	default:
		s.wanted = request.Limit
	}
	s.mu.Unlock()
	s.send(request)
	s.mu.Lock()
	isOutdated := s.limit < rules.Limit
	s.mu.Unlock()
	if isOutdated {
		s.sendLimit("")
	}
}

// send passes on an event that was read, and returns false if the session ends.
func (s *openAISession) send(request *llmwire.RealtimeRequest) bool {
	c := &s.clientSide
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		return false
	}
	_ = s.server.Send(websocket.Text, bytes.Join(request.Pieces, nil)) // if that fails, the relay ends
	return true
}

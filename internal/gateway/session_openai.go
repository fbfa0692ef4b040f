package gateway

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

const (
	createdTimeout = 10 * time.Second // for session.created, without which nothing of the client is passed on
	updateID       = llmwire.OwnRealtimeID + "update"
	cancelID       = llmwire.OwnRealtimeID + "cancel"
	createID       = llmwire.OwnRealtimeID + "create-" // and a number
)

// An openAISession is a session of OpenAI's Realtime API. What the client sends is checked before it is passed on, and
// what the provider reports is paid for before it is.
//
// Each direction has a goroutine, which alone writes messages of the other side. What both need, and what ends the
// session, is guarded by mu, which is never held while something is written.
type openAISession struct {
	sessionOpening
	price *sessionPrice
	purse *purse

	client, server *websocket.Conn
	ready          chan struct{} // closed when the provider was sent our limit, or the session ends
	done           chan struct{} // closed when both sides were sent a close frame
	ending         atomic.Bool   // there is a cause

	clientSide clientEvents
	serverSide serverEvents

	mu       sync.Mutex // guards what follows, also while the account is asked
	report   llmwire.RealtimeReport
	asked    []askedFor    // response.creates that were passed on and not answered, the oldest first
	begun    []askedFor    // the last of those that a response seems to have answered, the oldest first
	limit    int64         // of output tokens, which what is held covers
	wanted   int64         // the lower limit that the client has set for the session; 0: none
	dearer   *sessionPrice // of the model that the provider says it is, if that is another one of the endpoint
	cause    *openAIEnd    // why the session ends; nil: it does not
	isOver   bool          // it ends, and no response is under way any more: both sides are closed
	settled  bool          // nothing more is paid for
	checking *time.Timer   // of the next check of the account

	// While responses are awaited in the end: until then, and until the client must have read something. Else nil.
	patience, unblocking *time.Timer

	readyOnce, hangUpOnce sync.Once
}

// An askedFor is a response.create of the client. It is passed on with an ID that no other event has: an error about
// another event that is taken for the answer would leave a response that is not held for.
type askedFor struct {
	id     string
	client string // the ID that the client knows it by; "" for none
	when   time.Time
}

// newOpenAISession returns a session for a call whose endpoint was chosen.
func newOpenAISession(g *Gateway, c *SessionCall) *openAISession {
	p := c.price()
	s := &openAISession{
		sessionOpening: sessionOpening{g, c}, price: p, purse: &purse{gateway: g, call: c, price: p},
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	s.clientSide.buffer = eventBuffer{pool: &g.sessions.events, memory: c.Memory}
	s.serverSide.buffer = s.clientSide.buffer
	if c.Memory != nil {
		s.serverSide.buffer.memory = c.Memory.Another()
	}
	return s
}

// open implements provider.
func (s *openAISession) open(ctx context.Context) (*websocket.Conn, error) {
	if err := s.purse.open(); err != nil {
		return nil, err
	}
	s.limit = s.purse.limit()
	server, err := s.dial(ctx)
	if err != nil {
		s.purse.close(llmwire.Usage{}, 0, false)
		return nil, err
	}
	s.server, s.call.header = server, nil
	return server, nil
}

// abandon implements provider.
func (s *openAISession) abandon() {
	s.purse.close(llmwire.Usage{}, 0, false)
	_ = s.server.Close(websocket.CloseGoingAway, "")
	s.server.Finish()
}

// run implements provider.
func (s *openAISession) run(client, server *websocket.Conn) {
	s.client, s.server = client, server
	defer context.AfterFunc(s.gateway.ctx, func() { s.end(endStopping) })()
	defer time.AfterFunc(s.call.endpoint.session.maxSession, func() { s.end(endTooLong) }).Stop()
	s.mu.Lock()
	s.checking = time.AfterFunc(s.gateway.renewal, s.check)
	s.mu.Unlock()
	relay := websocket.Relay{
		Client: client, Server: server, FromClient: s.fromClient, FromServer: s.fromServer,
		ClientEnded: s.clientEnded, ServerEnded: s.serverEnded,
	}
	defer s.finish()
	relay.Run()
}

// finish waits until both sides were closed, once their connections have ended. After a panic, what was not settled is
// given back.
func (s *openAISession) finish() {
	select {
	case <-s.done:
	case <-time.After(endPatience):
	}
	s.purse.close(llmwire.Usage{}, 0, false)
	s.clientSide.buffer.release()
	s.serverSide.buffer.release()
}

// check ends the session if its account may not go on, and otherwise plans the next check. What is held may have
// changed if the account could not be reached before.
func (s *openAISession) check() {
	defer s.catch(s.client, s.server)
	if err := s.purse.check(time.Now().Add(settleStep)); err != nil {
		s.end(s.refusal(err))
		return
	}
	s.mu.Lock()
	hasLimit := s.hasNewLimit()
	s.forgetUnanswered()
	if s.cause == nil {
		s.checking.Reset(s.gateway.renewal)
	}
	s.mu.Unlock()
	if hasLimit {
		s.sendLimit("")
	}
}

// forgetUnanswered forgets response.creates that the provider has not answered for long, or another one in their place:
// they would be held for until the end. A response that comes nevertheless is held for like one that was not asked for.
// The caller holds s.mu.
func (s *openAISession) forgetUnanswered() {
	s.asked = slices.DeleteFunc(s.asked, func(a askedFor) bool { return time.Since(a.when) > 2*s.gateway.renewal })
}

// underWay returns how many responses are under way: those that were created and are not done, and those that were
// asked for and not created. The caller holds s.mu.
func (s *openAISession) underWay() int { return s.report.Responding() + len(s.asked) }

// limitLocked returns the limit of the output tokens of a response that names none. The caller holds s.mu.
func (s *openAISession) limitLocked() int64 {
	if s.wanted > 0 {
		return min(s.wanted, s.limit)
	}
	return s.limit
}

// sendLimit tells the provider the limit of output tokens and, unless it is "", the voice. Another limit may be sent at
// the same time, so it is sent again until it is the one that counts. The client sees the session.updated with which
// the provider answers, as it would see one of its own.
func (s *openAISession) sendLimit(voice string) {
	for {
		s.mu.Lock()
		limit := s.limitLocked()
		s.mu.Unlock()
		if err := s.server.Send(websocket.Text, llmwire.RealtimeUpdate(updateID, limit, voice)); err != nil {
			if err == websocket.ErrQueueFull { // of other limits
				s.end(endHalf)
			}
			return
		}
		s.mu.Lock()
		isSame := limit == s.limitLocked()
		s.mu.Unlock()
		if isSame {
			return
		}
	}
}

// An eventBuffer keeps what has come of an event. Its first FreeBodyBytes are in memory that sessions have in common,
// the rest is counted.
type eventBuffer struct {
	pool   *sync.Pool      // of *[]byte, of FreeBodyBytes at most
	memory *fairpool.Claim // nil: it is not counted
	kept   *[]byte         // nil: nothing
}

// add adds a copy of data, and reports false if there is no memory for it.
func (b *eventBuffer) add(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	if b.kept == nil {
		b.kept, _ = b.pool.Get().(*[]byte)
		if b.kept == nil {
			b.kept = new([]byte)
		}
	}
	size := len(*b.kept) + len(data)
	if size > FreeBodyBytes && b.memory != nil && b.memory.AddUpTo(int64(size-FreeBodyBytes)) != nil {
		return false
	}
	*b.kept = append(*b.kept, data...)
	return true
}

// bytes returns what is kept.
func (b *eventBuffer) bytes() []byte {
	if b.kept == nil {
		return nil
	}
	return *b.kept
}

// drop drops the first n bytes of what is kept.
func (b *eventBuffer) drop(n int) {
	if n == len(*b.kept) {
		b.release()
	} else if n > 0 {
		*b.kept = append((*b.kept)[:0], (*b.kept)[n:]...)
	}
}

// release drops what is kept.
func (b *eventBuffer) release() {
	if b.kept == nil {
		return
	}
	if cap(*b.kept) <= FreeBodyBytes {
		*b.kept = (*b.kept)[:0]
		b.pool.Put(b.kept)
	} else {
		b.memory.Release()
	}
	b.kept = nil
}

package providertest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// patience is how long a test waits for something that comes at once.
const patience = 20 * time.Second

// A Message is one of a WebSocket.
type Message struct {
	Kind websocket.Kind
	Data []byte
}

// A Peer is the provider's end of one WebSocket. It is safe for concurrent use.
type Peer struct {
	Request *http.Request // with which it was opened; its body was read

	conn  *websocket.Conn
	piece int // bytes of a frame; 0: a message is one frame

	writing sync.Mutex
	ended   chan struct{} // closed when nothing more comes

	mu  sync.Mutex
	got []Message
	err error // why nothing more comes
}

// A peerServer is what opens Peers: the WebSockets of one server.
type peerServer struct {
	server *httptest.Server
	side   websocket.Side

	mu      sync.Mutex
	open    map[*Peer]bool
	stopped bool
	serving sync.WaitGroup
}

// serve opens a WebSocket and calls read with each message that comes, until none comes any more.
func (s *peerServer) serve(w http.ResponseWriter, p *Peer, protocol string, opened func(), read func(Message)) {
	conn, err := s.side.Accept(w, p.Request, protocol, http.Header{"Set-Cookie": {"__cf_bm=1; path=/"}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.conn = conn
	defer conn.Finish()
	if !s.add(p) {
		return
	}
	defer s.remove(p)
	opened()
	var whole []byte
	for {
		part, err := conn.Next()
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			close(p.ended)
			return
		}
		if whole = append(whole, part.Data...); part.Last {
			message := Message{part.Kind, whole}
			p.mu.Lock()
			p.got = append(p.got, message)
			p.mu.Unlock()
			read(message)
			whole = nil
		}
	}
}

// add notes a WebSocket that is open, and returns false if the server was stopped.
func (s *peerServer) add(p *Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	if s.open == nil {
		s.open = make(map[*Peer]bool)
	}
	s.open[p] = true
	s.serving.Add(1)
	return true
}

func (s *peerServer) remove(p *Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, p)
	s.serving.Done()
}

// start lets handler respond until the test ends, and returns the address: 127.0.0.1:port.
func (s *peerServer) start(t testing.TB, handler http.Handler) (address string) {
	s.server = httptest.NewServer(handler)
	t.Cleanup(s.Stop)
	return s.server.Listener.Addr().String()
}

// Stop ends the server: it cuts all connections, and refuses new ones. It may be called more than once.
func (s *peerServer) Stop() {
	s.mu.Lock()
	s.stopped = true
	for p := range s.open {
		p.conn.Abort()
	}
	s.mu.Unlock()
	s.serving.Wait()
	s.server.CloseClientConnections()
	s.server.Close()
}

// Send sends a text message. That nobody reads it any more is no reason for the test to fail.
func (p *Peer) Send(text string) { p.send(websocket.Text, []byte(text)) }

func (p *Peer) send(kind websocket.Kind, data []byte) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.piece == 0 {
		_ = p.conn.Send(kind, data)
		return
	}
	for first := true; ; first = false {
		n := min(p.piece, len(data))
		part := websocket.Part{Kind: kind, First: first, Last: n == len(data), Data: data[:n]}
		if err := p.conn.WritePart(part); err != nil || part.Last {
			return
		}
		data = data[n:]
	}
}

// SendBinary sends a binary message.
func (p *Peer) SendBinary(data []byte) { p.send(websocket.Binary, data) }

// Close sends a close frame. A code of 1005 stands for none.
func (p *Peer) Close(code websocket.Code, reason string) { _ = p.conn.Close(code, reason) }

// Abort cuts the connection without a close frame.
func (p *Peer) Abort() { p.conn.Abort() }

// Messages returns the messages so far, the oldest first.
func (p *Peer) Messages() []Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// Texts returns the text messages so far that have member, spelled like "type":"response.create", the oldest first.
func (p *Peer) Texts(member string) (all []string) {
	for _, m := range p.Messages() {
		if text := string(m.Data); m.Kind == websocket.Text && strings.Contains(text, member) {
			all = append(all, text)
		}
	}
	return all
}

// Wait waits until n text messages have come that have member, as Texts has it, and returns the nth.
func (p *Peer) Wait(t testing.TB, member string, n int) (text string) {
	t.Helper()
	waittest.Eventually(t, patience, func() error {
		got := p.Texts(member)
		if len(got) < n {
			return fmt.Errorf("the provider got %d messages with %s, want %d; all: %.2000q", len(got), member, n, p.Messages())
		}
		text = got[n-1]
		return nil
	})
	return text
}

// Ended waits for the end of the WebSocket, and returns the code with which the other end has closed it: CloseLost
// without a close frame.
func (p *Peer) Ended(t testing.TB) websocket.Code {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("the WebSocket to the provider does not end; it got %.2000q", p.Messages())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var closed *websocket.CloseError
	if errors.As(p.err, &closed) {
		return closed.Code
	}
	return websocket.CloseLost
}

// isOpen reports whether messages may still come.
func (p *Peer) isOpen() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

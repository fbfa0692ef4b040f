package websockettest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Patience is how long a test waits for what should come at once, or within a minute of fake time.
const Patience = 2 * time.Minute

// A Peer is one end of a connection, which speaks raw frames. It reads all that comes, and answers a close frame.
type Peer struct {
	net.Conn
	Masks bool // it is the client

	mu     sync.Mutex
	frames []Frame       // that have come; guarded by mu
	ended  chan struct{} // closed when no more come
	err    error         // why; read after ended
}

// NewPeer returns the peer that has the end conn of a connection after its handshake, as the client or as the server.
func NewPeer(conn net.Conn, isClient bool) *Peer {
	p := &Peer{Conn: conn, Masks: isClient, ended: make(chan struct{})}
	go p.read()
	return p
}

func (p *Peer) read() {
	defer close(p.ended)
	defer p.Close()
	for {
		var w Frame
		if w, p.err = Read(p, !p.Masks); p.err != nil {
			return
		}
		p.mu.Lock()
		p.frames = append(p.frames, w)
		p.mu.Unlock()
		if w.First == 0x88 {
			_, _ = p.Write(w.Encode(p.Masks)) // to an end that may have gone
			if p.Masks {                      // the server closes first
				_, p.err = io.Copy(io.Discard, p)
			}
			return
		}
	}
}

// Send writes frames.
func (p *Peer) Send(t testing.TB, frames ...Frame) {
	t.Helper()
	if _, err := p.Write(EncodeAll(frames, p.Masks)); err != nil {
		t.Error(err)
	}
}

// Got returns the frames that have come so far.
func (p *Peer) Got() []Frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Frame(nil), p.frames...)
}

// Wait waits until no more frames come, and returns them.
func (p *Peer) Wait(t testing.TB) []Frame {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		t.Errorf("the connection does not end; it got %s", Show(p.Got()))
	}
	return p.Got()
}

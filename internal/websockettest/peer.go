package websockettest

import (
	"io"
	"net"
	"strings"
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
	counts bool          // frames with data are only counted; guarded by mu
	data   int           // bytes of those; guarded by mu
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
		var h header
		if h, p.err = readHeader(p, !p.Masks); p.err != nil {
			return
		}
		if p.isCounted(h) {
			if _, p.err = io.CopyN(io.Discard, p, int64(h.length)); p.err != nil {
				return
			}
			continue
		}
		var w Frame
		if w, p.err = h.readPayload(p); p.err != nil {
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

// isCounted reports whether a frame is to be counted and dropped, and counts it.
func (p *Peer) isCounted(h header) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	isCounted := p.counts && h.first&opcodeBits < 8
	if isCounted {
		p.data += int(h.length)
	}
	return isCounted
}

// Count lets p only count the data that comes from now on, for messages that would fill the memory.
func (p *Peer) Count() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts = true
}

// Counted returns how many bytes of data have come since Count, or are coming.
func (p *Peer) Counted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.data
}

// Send writes frames.
func (p *Peer) Send(t testing.TB, frames ...Frame) {
	t.Helper()
	if _, err := p.Write(EncodeAll(frames, p.Masks)); err != nil {
		t.Error(err)
	}
}

// SendLong writes a text of size bytes, in one frame, without holding it: head, then As, then tail. It calls each after
// each 64 KiB.
func (p *Peer) SendLong(t testing.TB, head, tail string, size int, each func(sent int)) {
	t.Helper()
	const step = 64 << 10 // and a multiple of the mask's length
	start := head + strings.Repeat("A", step-len(head))
	part := Frame{Payload: strings.Repeat("A", step)}.Encode(p.Masks)
	part = part[len(part)-step:]
	end := Frame{Payload: strings.Repeat("A", (size-len(tail))%step) + tail}
	_, err := p.Write(Frame{First: 0x81, Payload: start, Claims: uint64(size)}.Encode(p.Masks))
	for sent := step; err == nil && sent+step <= size-len(tail); sent += step {
		each(sent)
		_, err = p.Write(part)
	}
	if err == nil {
		rest := end.Encode(p.Masks)
		_, err = p.Write(rest[len(rest)-len(end.Payload):])
	}
	if err != nil {
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

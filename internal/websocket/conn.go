// Package websocket speaks the WebSocket protocol (RFC 6455) for a relay: it accepts clients, connects to servers, and
// carries messages between them. What it carries can be read on the way, held back, dropped and added to.
//
// A relay has two Sides, which say what is demanded of its clients and of its servers. Side.Accept and Side.Dial make a
// Conn. Conn.Next returns messages in parts of up to MaxPart bytes, as they come, and Conn.WritePart passes a part on,
// so no message is ever held whole. Relay does both in both directions; the example shows how.
//
// A Conn answers pings, checks all that the RFC lets a receiver check, and closes with the code that it demands. It
// never compresses. Its methods end by deadlines alone: the end of the context of a handshake changes nothing later.
// A Conn that waits for a message takes about a kilobyte; a buffer of 16 KiB is taken while a longer one is read.
package websocket

import (
	"cmp"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	bufferSize = 16 << 10 // of a part and its header: what TLS puts into one record
	smallSize  = 512      // of the buffer that a Conn has while it waits for a frame
)

// MaxPart is the most bytes of a message that a Part has which Next returns. A frame of up to as many is one part.
const MaxPart = bufferSize - maxHeader

// The limits of a Side that does not say otherwise.
const (
	defaultMaxMessage   = 16 << 20
	defaultWriteTimeout = 30 * time.Second
	defaultCloseTimeout = 5 * time.Second
)

var (
	// ErrIdle means that no frame, or no part of a long one, has come within IdleTimeout.
	ErrIdle = errors.New("no frame has come in time")
	// ErrClosing means that a close frame was sent, after which nothing may be.
	ErrClosing = errors.New("the connection is being closed")
	// ErrQueueFull means that too much waits for the end of the message that is being passed on.
	ErrQueueFull = errors.New("too many bytes wait for the end of a message")

	errNotClosed = errors.New("the peer has not closed the connection in time")
	errOrder     = errors.New("the part does not follow the one before it")
)

// A Side says what is demanded of the peers on one side of a relay. All of its connections share its buffers. Its
// fields must not change once it is used, and it must not be copied.
type Side struct {
	// MaxMessage is the most bytes that a message from the peer may have; a longer one is refused with CloseTooBig.
	// 0 means 16 MiB.
	MaxMessage int64
	// IdleTimeout is for how long a frame may be awaited. A frame above MaxPart bytes may take as long for each part.
	// Then the connection is closed. 0 means that it may be silent for ever.
	IdleTimeout time.Duration
	// PingInterval is how often a ping is sent. The peer's answer is a frame, so one that lives is not idle. 0 means
	// never.
	PingInterval time.Duration
	// WriteTimeout is how long a frame may take to be written, with what has waited for its end. Then the connection is
	// cut. A call that writes may have to wait as long before that for another one. 0 means 30 s.
	WriteTimeout time.Duration
	// CloseTimeout is how long the peer may take to close after a close frame was sent to it. 0 means 5 s.
	CloseTimeout time.Duration

	buffers sync.Pool // of *buffer
}

type buffer [bufferSize]byte

func (s *Side) buffer() *buffer {
	if b, ok := s.buffers.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

// A Conn is one connection, after the handshake. One goroutine at a time may call Next and Finish, one WritePart, and
// any the other methods.
type Conn struct {
	side     *Side
	conn     net.Conn
	isServer bool // this end is the server: the peer masks what it sends, and this end does not
	protocol string

	in  input  // used by Next and Finish alone
	out output // guarded by its mutex

	mu    sync.Mutex // guards the following; held only for a moment
	endAt time.Time  // by when the peer must have closed, once it was told to
	err   error      // why the connection was cut from here
}

func (s *Side) newConn(conn net.Conn, isServer bool, protocol string) *Conn {
	c := &Conn{side: s, conn: conn, isServer: isServer, protocol: protocol}
	c.in.pingedAt = time.Now()
	return c
}

// Protocol returns the subprotocol that the handshake has chosen, "" if none.
func (c *Conn) Protocol() string { return c.protocol }

// Abort cuts the connection at once, without a close frame. What waits for it fails with net.ErrClosed.
func (c *Conn) Abort() { c.cut(net.ErrClosed) }

// cut closes the connection because of err, and returns why it was first cut.
func (c *Conn) cut(err error) error {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	err = c.err
	c.mu.Unlock()
	c.conn.Close() // TLS may take some time for it
	return err
}

// Finish closes the connection, and returns when it is closed. If a close frame was sent, the peer gets CloseTimeout to
// read it and to close its end, and what it sends meanwhile is dropped: a connection that is closed with bytes unread
// is reset, and the peer may lose what it has not read. Otherwise the connection is cut at once.
func (c *Conn) Finish() {
	defer c.Abort()
	if !c.isClosing() {
		return
	}
	for c.in.err == nil {
		_, _ = c.Next()
	}
	var closed *CloseError
	isClean := errors.As(c.in.err, &closed)
	if isClean && c.isServer {
		return // the server is to close first (RFC 6455, section 7.1.1)
	}
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok && !isClean {
		_ = half.CloseWrite()
	}
	b := c.side.buffer()
	defer c.side.buffers.Put(b)
	err := c.setReadDeadline(time.Time{}) // so endAt counts
	for err == nil {
		_, err = c.conn.Read(b[:])
	}
}

// isOver reports whether nothing can be sent any more: a close frame was, or the connection was cut.
func (c *Conn) isOver() bool {
	if c.isClosing() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// endBy sets when the peer must have closed, unless that is set.
func (c *Conn) endBy(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endAt.IsZero() {
		c.endAt = at
		_ = c.conn.SetReadDeadline(at)
	}
}

// setReadDeadline sets until when a read may take. If the peer must have closed before, it is until then.
func (c *Conn) setReadDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.endAt.IsZero() && (at.IsZero() || c.endAt.Before(at)) {
		at = c.endAt
	}
	return c.conn.SetReadDeadline(at)
}

// mustHaveClosed reports whether the peer should have closed by now.
func (c *Conn) mustHaveClosed(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.endAt.IsZero() && !now.Before(c.endAt)
}

func (s *Side) maxMessage() int64           { return cmp.Or(s.MaxMessage, defaultMaxMessage) }
func (s *Side) writeTimeout() time.Duration { return cmp.Or(s.WriteTimeout, defaultWriteTimeout) }
func (s *Side) closeTimeout() time.Duration { return cmp.Or(s.CloseTimeout, defaultCloseTimeout) }

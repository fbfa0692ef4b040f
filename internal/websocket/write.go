package websocket

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxQueue is how many bytes may wait for the end of a message.
const maxQueue = 64 << 10

// output is what a Conn knows of what it writes.
type output struct {
	mu      sync.Mutex // held while a frame is written
	closing bool       // a close frame was sent
	isOpen  bool       // the last part of WritePart's present message was not written
	kind    Kind       // of that message
	queue   []message  // what is sent when it was
	queued  int        // bytes in the queue
}

// A message is one that is sent whole.
type message struct {
	kind Kind
	data []byte
}

// WritePart sends a part as one frame. The parts of a message must be written in order, from the first to the last, and
// may be cut in another way than they came. Data is only read. An error means that no more messages can be sent: the
// connection was cut, or it is ErrClosing.
func (c *Conn) WritePart(p Part) error {
	out := &c.out
	out.mu.Lock()
	defer out.mu.Unlock()
	if err := c.beginWrite(); err != nil {
		return err
	}
	if p.First == out.isOpen {
		return errOrder
	}
	h := header{opcode: byte(p.Kind), fin: p.Last}
	if !p.First {
		h.opcode = opContinuation
	}
	out.isOpen, out.kind = !p.Last, p.Kind
	err := c.writeFrame(h, p.Data)
	if out.isOpen {
		return err
	}
	for _, m := range out.queue {
		if err == nil {
			err = c.writeFrame(header{opcode: byte(m.kind), fin: true}, m.data)
		}
	}
	out.queue, out.queued = nil, 0
	return err
}

// Send sends a message of the caller's own, in one frame. If it is Text, it must be UTF-8. Within a message of
// WritePart, Send keeps a copy, which is sent when that message has ended, and dropped if it never does. Up to 64 KiB
// may wait like that, else the error is ErrQueueFull. Data is only read.
func (c *Conn) Send(kind Kind, data []byte) error {
	out := &c.out
	out.mu.Lock()
	defer out.mu.Unlock()
	if err := c.beginWrite(); err != nil {
		return err
	}
	if !out.isOpen {
		return c.writeFrame(header{opcode: byte(kind), fin: true}, data)
	}
	if len(data)+maxHeader > maxQueue-out.queued {
		return ErrQueueFull
	}
	out.queue = append(out.queue, message{kind, slices.Clone(data)})
	out.queued += len(data) + maxHeader
	return nil
}

// writeControl sends a control frame, also within a message.
func (c *Conn) writeControl(opcode byte, data []byte) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if err := c.beginWrite(); err != nil {
		return err
	}
	return c.writeFrame(header{opcode: opcode, fin: true}, data)
}

// Close sends a close frame, also within a message, after which nothing more is sent. It does not wait for the peer's:
// Next goes on to return what comes until the peer has closed, which it must within CloseTimeout. Close does nothing if
// a close frame was sent before.
//
// CloseNoCode closes without a code. Other codes that must not be sent are sent as CloseInternal. A reason is cut to
// 123 bytes.
func (c *Conn) Close(code Code, reason string) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.beginWrite() != nil {
		return nil
	}
	return c.writeClose(code, reason)
}

// CloseAfter sends a text as Send does, and closes the connection as Close does. A binary message of WritePart that is
// under way is ended where it is, before the text. Within a text message, which could end within a character, only the
// close frame is sent. CloseAfter does nothing if a close frame was sent before.
func (c *Conn) CloseAfter(text []byte, code Code, reason string) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.beginWrite() != nil {
		return nil
	}
	if c.out.isOpen && c.out.kind == Binary {
		if err := c.writeFrame(header{opcode: opContinuation, fin: true}, nil); err != nil {
			return err
		}
		c.out.isOpen = false
	}
	if !c.out.isOpen {
		if err := c.writeFrame(header{opcode: byte(Text), fin: true}, text); err != nil {
			return err
		}
	}
	return c.writeClose(code, reason)
}

// writeClose writes the close frame. The caller holds out.mu.
func (c *Conn) writeClose(code Code, reason string) error {
	c.out.closing, c.out.queue = true, nil
	err := c.writeFrame(header{opcode: opClose, fin: true}, appendClose(nil, code, reason))
	c.endBy(time.Now().Add(c.side.closeTimeout()))
	return err
}

// beginWrite sets until when all may take that the caller writes before it unlocks out.mu, which it holds. So nobody
// waits longer for the lock. The error is ErrClosing or nil.
func (c *Conn) beginWrite() error {
	if c.out.closing {
		return ErrClosing
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.side.writeTimeout())) // if that fails, writing does
	return nil
}

// isClosing reports whether a close frame was sent.
func (c *Conn) isClosing() bool {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.closing
}

// writeFrame writes a frame with data. The caller holds out.mu. The frame is copied to a buffer, in several steps if it
// is long, so that it is masked there and goes out in one write.
func (c *Conn) writeFrame(h header, data []byte) error {
	h.length, h.masked = uint64(len(data)), !c.isServer
	if h.masked {
		h.key = newKey()
	}
	b := c.side.buffer()
	defer c.side.buffers.Put(b)
	n, key := h.put(b[:]), h.key
	for {
		size := min(len(data), len(b)-n)
		if h.masked {
			key = mask(b[n:], data[:size], key)
		} else {
			copy(b[n:], data[:size])
		}
		if err := c.write(b[:n+size]); err != nil {
			return err
		}
		if data = data[size:]; len(data) == 0 {
			return nil
		}
		n = 0
	}
}

// write writes p. If that fails, the peer may have got half a frame: the connection is cut.
func (c *Conn) write(p []byte) error {
	if _, err := c.conn.Write(p); err != nil {
		return c.cut(fmt.Errorf("writing: %w", err))
	}
	return nil
}

// newKey returns a new mask. Section 5.3 demands that nobody who makes the payload can foresee it.
func newKey() uint32 {
	var p [4]byte
	_, _ = rand.Read(p[:]) // it never fails
	return binary.LittleEndian.Uint32(p[:])
}

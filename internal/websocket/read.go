package websocket

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// A Kind says what the bytes of a message are. It is the opcode of its first frame.
type Kind byte

// The kinds of messages.
const (
	Text   Kind = 0x1 // valid UTF-8, as a whole: a part of it may end within a character
	Binary Kind = 0x2
)

// A Part is some of a message, or all of it.
type Part struct {
	Kind  Kind
	First bool // it begins a message
	Last  bool // it ends the message
	Data  []byte
}

// input is what a Conn knows of what it reads.
type input struct {
	small    [smallSize]byte
	large    *buffer // in use instead of small, unless it is nil
	from, to int     // the bytes of the buffer that were not read

	waitsFrom time.Time // since when the present frame, or part of one, is awaited
	pingedAt  time.Time // when the last ping was sent

	left    uint64    // bytes of the present data frame that were not read
	key     uint32    // its mask, for the next of these
	isFinal bool      // it is the last of its message
	kind    Kind      // of the present message
	isFirst bool      // nothing of that was returned
	isOpen  bool      // its last frame has not begun
	length  uint64    // of its frames so far
	text    textCheck // a complete text leaves it as it was before

	err error // what Next has returned
}

// Next waits for the next part of a message and returns it. Its Data may be used, and changed, until Next is called
// again. Next answers pings, drops pongs, and sends pings when they are due.
//
// When the connection has ended or must end, Next returns why, and the same again from then on: a *CloseError if the
// peer has closed it, a *ProtocolError if the peer has broken the protocol, ErrIdle, or what else has happened. In the
// first three cases a close frame was sent, if none was before. Then call Finish.
func (c *Conn) Next() (Part, error) {
	in := &c.in
	if in.err != nil {
		return Part{}, in.err
	}
	part, err := c.next()
	if err != nil {
		in.err = c.end(err)
		in.release(c.side)
		return Part{}, in.err
	}
	return part, nil
}

// end tells the peer why Next is to return err, if that is to be told, and returns the error.
func (c *Conn) end(err error) error {
	var closed *CloseError
	var broken *ProtocolError
	switch {
	case errors.As(err, &closed):
		_ = c.Close(closed.Code, "") // section 5.5.1: typically with the same code
	case errors.As(err, &broken):
		_ = c.Close(broken.Code, broken.Reason)
	case errors.Is(err, ErrIdle):
		_ = c.Close(CloseGoingAway, ErrIdle.Error())
	default:
		return c.cut(err)
	}
	return err
}

func (c *Conn) next() (Part, error) {
	in := &c.in
	if in.left == 0 {
		if err := c.nextFrame(); err != nil {
			return Part{}, err
		}
	} else {
		in.waitsFrom = time.Now()
	}
	data, err := c.take(int(min(in.left, MaxPart)))
	if err != nil {
		return Part{}, err
	}
	in.left -= uint64(len(data))
	if c.isServer {
		in.key = mask(data, data, in.key)
	}
	part := Part{Kind: in.kind, First: in.isFirst, Last: in.isFinal && in.left == 0, Data: data}
	in.isFirst = false
	if part.Kind == Text && (!in.text.add(data) || part.Last && !in.text.isComplete()) {
		return Part{}, &ProtocolError{CloseBadText, "the text is not UTF-8"}
	}
	return part, nil
}

// nextFrame reads the header of the next data frame, and all control frames before it.
func (c *Conn) nextFrame() error {
	in := &c.in
	for {
		h, err := c.readHeader()
		if err != nil {
			return err
		}
		if h.isControl() {
			if err := c.control(h); err != nil {
				return err
			}
			continue
		}
		if h.opcode != opContinuation {
			in.kind, in.isFirst, in.length = Kind(h.opcode), true, 0
		}
		if h.length > uint64(c.side.maxMessage())-in.length {
			return &ProtocolError{CloseTooBig, fmt.Sprintf("a message has more than %d bytes", c.side.maxMessage())}
		}
		in.length += h.length
		in.left, in.key, in.isFinal, in.isOpen = h.length, h.key, h.fin, !h.fin
		return nil
	}
}

// readHeader waits for a header and checks it, as soon as its first two bytes have come.
func (c *Conn) readHeader() (header, error) {
	now := time.Now()
	c.in.waitsFrom = now
	if err := c.pingIfDue(now); err != nil {
		return header{}, err
	}
	p, err := c.take(2)
	if err != nil {
		return header{}, err
	}
	h := parseStart(p[0], p[1])
	if problem := h.problem(c.isServer, c.in.isOpen); problem != "" {
		return h, &ProtocolError{CloseProtocolError, problem}
	}
	if p, err = c.take(h.rest()); err != nil {
		return h, err
	}
	h.parseRest(p)
	if !h.isMinimal() {
		return h, &ProtocolError{CloseProtocolError, "the length is not written in its shortest form"}
	}
	return h, nil
}

// control reads the payload of a control frame and does what that demands. The error is, or is also, what a close frame
// says.
func (c *Conn) control(h header) error {
	p, err := c.take(int(h.length))
	if err != nil {
		return err
	}
	mask(p, p, h.key)
	switch h.opcode {
	case opClose:
		return parseClose(p)
	case opPing:
		return c.answer(opPong, p)
	}
	return nil
}

// take waits for the next n bytes (up to bufferSize) and returns them. They stay as they are until the next call.
func (c *Conn) take(n int) ([]byte, error) {
	in := &c.in
	if in.to-in.from < n {
		if err := c.fill(n); err != nil {
			return nil, err
		}
	}
	in.from += n
	return in.buffer()[in.from-n : in.from], nil
}

// fill reads until n bytes are in the buffer.
func (c *Conn) fill(n int) error {
	in := &c.in
	in.makeRoom(n, c.side)
	for in.to-in.from < n {
		if err := c.setReadDeadline(c.nextDeadline()); err != nil {
			return err
		}
		m, err := c.conn.Read(in.buffer()[in.to:])
		in.to += m
		if m == 0 && err != nil {
			if err = c.afterError(err); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextDeadline returns when something is to be done if nothing comes, the zero time if never.
func (c *Conn) nextDeadline() (at time.Time) {
	if c.side.IdleTimeout > 0 {
		at = c.in.waitsFrom.Add(c.side.IdleTimeout)
	}
	if c.side.PingInterval > 0 {
		if ping := c.in.pingedAt.Add(c.side.PingInterval); at.IsZero() || ping.Before(at) {
			at = ping
		}
	}
	return at
}

// afterError does what is due when a read has failed. It returns nil if the connection may be read again.
func (c *Conn) afterError(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	now := time.Now()
	if c.mustHaveClosed(now) {
		return errNotClosed
	}
	if idle := c.side.IdleTimeout; idle > 0 && now.Sub(c.in.waitsFrom) >= idle {
		return ErrIdle
	}
	return c.pingIfDue(now)
}

// pingIfDue sends a ping if one is due.
func (c *Conn) pingIfDue(now time.Time) error {
	if interval := c.side.PingInterval; interval <= 0 || now.Sub(c.in.pingedAt) < interval {
		return nil
	}
	c.in.pingedAt = now
	return c.answer(opPing, nil)
}

// answer sends a control frame, unless nothing may be sent any more.
func (c *Conn) answer(opcode byte, data []byte) error {
	if err := c.writeControl(opcode, data); err != ErrClosing {
		return err
	}
	return nil
}

// buffer returns the buffer in use.
func (in *input) buffer() []byte {
	if in.large != nil {
		return in.large[:]
	}
	return in.small[:]
}

// makeRoom prepares the buffer for n bytes, fewer of which it has. The small one is used if that is enough, but
// within a message the large one is kept.
func (in *input) makeRoom(n int, side *Side) {
	unread := in.buffer()[in.from:in.to]
	in.from, in.to = 0, len(unread)
	if n <= smallSize && !in.isOpen {
		copy(in.small[:], unread)
		in.release(side)
		return
	}
	if n > smallSize && in.large == nil {
		in.large = side.buffer()
	}
	copy(in.buffer(), unread)
}

// release gives back the large buffer.
func (in *input) release(side *Side) {
	if in.large != nil {
		side.buffers.Put(in.large)
		in.large = nil
	}
}

package plainhttp

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// An exchange is a request and its response, of which it is the body.
type exchange struct {
	transport *Transport
	conn      *conn
	ctx       context.Context
	stop      func() bool   // keeps ctx from closing conn; reports false if it has closed it
	written   chan error    // gets the outcome of writing a long request; nil if the request was written
	keeps     bool          // conn can be used again after the response
	body      io.ReadCloser // that http.ReadResponse has returned
	state     atomic.Int32  // of the response
}

// States of an exchange.
const (
	running = iota
	whole   // the response was read to its end
	cut     // it was closed before, or it broke off
)

// exchange sends message, which is r, on c, and returns the response. It gives message back.
func (t *Transport) exchange(r *http.Request, c *conn, message *bytes.Buffer) (*http.Response, error) {
	x := &exchange{transport: t, conn: c, ctx: r.Context()}
	x.stop = context.AfterFunc(x.ctx, func() { c.Close() }) // ends each Read and Write
	if d := t.Base.ResponseHeaderTimeout; d > 0 {
		_ = c.SetDeadline(time.Now().Add(d))
	}
	c.left = t.Base.MaxResponseHeaderBytes
	writeErr := x.write(message)
	response, err := x.readResponse(r) // a server may respond to a request of which it reads only a part
	if err != nil {
		x.end(cut)
		if writeErr != nil {
			err = writeErr
		} else if c.left <= 0 { // else err may be about where the header was cut
			err = errHeaderTooLong
		}
		return nil, causeOf(x.ctx, err)
	}
	c.left = math.MaxInt64
	if t.Base.ResponseHeaderTimeout > 0 {
		_ = c.SetDeadline(time.Time{})
	}
	x.keeps = writeErr == nil && !response.Close && response.StatusCode >= 200
	x.body, response.Body = response.Body, x
	if response.ContentLength == 0 { // also of 204 and 304
		response.Body = http.NoBody
		x.end(whole)
	}
	return response, nil
}

// write writes message, a long one in the background: a server that responds early may never read all of it.
func (x *exchange) write(message *bytes.Buffer) error {
	if message.Len() > maxWrite {
		x.written = make(chan error, 1)
		go func() {
			_, err := x.conn.Write(message.Bytes())
			messages.Put(message)
			x.written <- err
		}()
		return nil
	}
	_, err := x.conn.Write(message.Bytes())
	messages.Put(message)
	return err
}

// readResponse reads the header of the response, after those of 1xx responses, of which a client skips any number
// (RFC 9110, section 15.2). 101 is final: no request asks for it.
func (x *exchange) readResponse(r *http.Request) (*http.Response, error) {
	if _, err := x.conn.in.Peek(1); err != nil {
		return nil, err
	}
	if trace := httptrace.ContextClientTrace(x.ctx); trace != nil && trace.GotFirstResponseByte != nil {
		trace.GotFirstResponseByte()
	}
	for {
		response, err := http.ReadResponse(x.conn.in, r)
		if err != nil || response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols ||
			response.StatusCode < 100 {
			return response, err
		}
	}
}

// Read implements io.Reader for the response's body. After the end, it never touches the connection, which another
// exchange may have.
func (x *exchange) Read(p []byte) (int, error) {
	switch x.state.Load() {
	case whole:
		return 0, io.EOF
	case cut:
		return 0, causeOf(x.ctx, errClosed)
	}
	n, err := x.body.Read(p)
	switch err {
	case nil:
		return n, nil
	case io.EOF:
		x.end(whole)
		return n, io.EOF
	}
	x.end(cut)
	return n, causeOf(x.ctx, err)
}

// Close implements io.Closer for the response's body. It may be called during a Read, which it ends. It closes the
// connection, unless all of the response was read.
func (x *exchange) Close() error {
	x.end(cut)
	return nil
}

// end gives the connection back, unless that was done. It is used again only if the request was written, and the
// response read to the end that its framing tells, with nothing after it (RFC 9112, section 9.3).
func (x *exchange) end(state int32) {
	if !x.state.CompareAndSwap(running, state) {
		return
	}
	isOpen := x.stop()
	if isOpen && state == whole && x.keeps && x.isWritten() && x.conn.in.Buffered() == 0 {
		x.transport.put(x.conn)
	} else {
		x.conn.Close()
	}
}

// isWritten reports whether all of the request was written.
func (x *exchange) isWritten() bool {
	if x.written == nil {
		return true
	}
	select {
	case err := <-x.written:
		return err == nil
	default:
		return false
	}
}

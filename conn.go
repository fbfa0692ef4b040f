package main

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lazyConn keeps its deadlines, but seldom tells the runtime of them, which costs more than all else that timeouts do.
// The runtime may have an earlier one, and a call that this ends too soon goes on.
type lazyConn struct {
	net.Conn
	read, write lazyDeadline
	aborted     chan struct{} // of a server's connection; holds one: the background read is to end
	closed      atomic.Bool
	release     func() // when it is closed
}

type lazyDeadline struct {
	mu     sync.Mutex
	wanted time.Time // zero: none
	set    time.Time // what the runtime has, never later than wanted; zero: none
}

// longAgo is after every deadline that is meant to end a call which runs.
var longAgo = time.Unix(3600, 0)

// want makes t the deadline; set tells the runtime.
func (d *lazyDeadline) want(t time.Time, set func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = t
	if d.set.IsZero() && t.IsZero() || d.set.After(longAgo) && (t.IsZero() || !t.Before(d.set)) {
		return nil
	}
	d.set = t
	return set(t)
}

// early tells whether err ended a call before the wanted deadline, which from then on the runtime has.
func (d *lazyDeadline) early(err error, set func(time.Time) error) bool {
	if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.wanted.IsZero() && !d.wanted.After(time.Now()) {
		return false
	}
	d.set = d.wanted
	return set(d.set) == nil
}

func (c *lazyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *lazyConn) SetWriteDeadline(t time.Time) error {
	return c.write.want(t, c.Conn.SetWriteDeadline)
}

func (c *lazyConn) SetReadDeadline(t time.Time) error {
	if c.aborted != nil && !t.IsZero() && t.Before(longAgo) {
		c.abort()
		return nil
	}
	return c.read.want(t, c.Conn.SetReadDeadline)
}

func (c *lazyConn) abort() {
	select {
	case c.aborted <- struct{}{}:
	default:
	}
}

func (c *lazyConn) Close() error {
	err := c.Conn.Close()
	if c.aborted != nil && !c.closed.Swap(true) {
		c.abort()
		c.release()
	}
	return err
}

func (c *lazyConn) Write(p []byte) (int, error) {
	for written := 0; ; {
		n, err := c.Conn.Write(p[written:])
		if written += n; !c.write.early(err, c.Conn.SetWriteDeadline) {
			return written, err
		}
	}
}

func (c *lazyConn) Read(p []byte) (int, error) {
	if len(p) == 1 && c.background() {
		<-c.aborted
		return 0, os.ErrDeadlineExceeded
	}
	for {
		n, err := c.Conn.Read(p)
		if n > 0 || !c.read.early(err, c.Conn.SetReadDeadline) {
			return n, err
		}
	}
}

// background tells whether a read of one byte is the one by which net/http learns, while a handler runs, that the client
// has gone away: the only one without a deadline, as the server has all of net/http's timeouts. Nothing here asks for
// that (see store), so it is not made; it would be a system call for each request that has to wait for Redis.
func (c *lazyConn) background() bool {
	c.read.mu.Lock()
	defer c.read.mu.Unlock()
	return c.aborted != nil && c.read.wanted.IsZero()
}

// CloseWrite lets net/http end a connection so that the client still gets the answer.
func (c *lazyConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// lazyListener accepts lazyConns for net/http, so many at a time: others wait in the system's queue, until one ends.
type lazyListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	close  func() error
}

func newLazyListener(l net.Listener, maxConnections int64) *lazyListener {
	closed := make(chan struct{})
	return &lazyListener{l, make(chan struct{}, maxConnections), closed, sync.OnceValue(func() error {
		close(closed)
		return l.Close()
	})}
}

func (l *lazyListener) Close() error { return l.close() }

// crowded tells whether three quarters of the connections that it may accept are taken. No more should then be kept for
// clients that may send another request, or those that do not could take them all.
func (l *lazyListener) crowded() bool { return len(l.slots)*4 > cap(l.slots)*3 }

func (l *lazyListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	release := func() { <-l.slots }
	c, err := l.Listener.Accept()
	if err != nil {
		release()
		return nil, err
	}
	return &lazyConn{Conn: c, aborted: make(chan struct{}, 1), release: release}, nil
}

// Package connlimit bounds what connections can take from an HTTP server: how many there are, how long they may take
// for a request or its response while they are scarce, and how many lines a header may have.
//
// An http.Server serves a Listener, with its Handler, ConnContext and ConnState, while its KeepRoom runs. The example
// shows how. It is for HTTP/1 without TLS.
package connlimit

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// crowdedTimeout replaces the server's ReadTimeout while connections are scarce.
const crowdedTimeout = time.Second

// Listener is a net.Listener that accepts a limited number of connections at a time. Others wait in the system's queue
// until one ends. Its methods may be called concurrently.
type Listener struct {
	inner  net.Listener
	places chan struct{} // holds one for each connection that is open or awaited
	closed chan struct{}
	close  func() error

	mu    sync.Mutex
	conns map[*conn]struct{} // open; guarded by mu
}

// New returns a Listener that accepts up to maxConnections (≥ 1) connections of l at a time. Closing it closes l.
func New(l net.Listener, maxConnections int64) *Listener {
	closed := make(chan struct{})
	return &Listener{
		inner:  l,
		places: make(chan struct{}, maxConnections),
		closed: closed,
		close: sync.OnceValue(func() error {
			close(closed)
			return l.Close()
		}),
		conns: make(map[*conn]struct{}),
	}
}

// Addr returns the address of the listener below.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close ends Accept and KeepRoom. Connections that were accepted stay open.
func (l *Listener) Close() error { return l.close() }

// Connections returns how many connections are open. While Accept waits for the next one, that counts, too.
func (l *Listener) Connections() int { return len(l.places) }

// Open returns how many connections are open, and how many may be.
func (l *Listener) Open() (open, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns), cap(l.places)
}

// Wait waits until no connection is open, for timeout at most. Call it when Accept has returned after Close: until then
// one more counts.
func (l *Listener) Wait(timeout time.Duration) {
	for end := time.Now().Add(timeout); l.Connections() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// NearCapacity reports whether more than three quarters of the connections are taken. No more should then be kept for
// clients that may send another request: those that do not could take them all.
func (l *Listener) NearCapacity() bool { return len(l.places)*4 > cap(l.places)*3 }

// Accept waits until fewer than the most connections are open, and then for the next one. After Close the error is
// net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.inner.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	limited := &conn{Conn: c}
	limited.release = sync.OnceFunc(func() {
		l.mu.Lock()
		delete(l.conns, limited)
		l.mu.Unlock()
		<-l.places
	})
	limited.headerSince.Store(time.Now().UnixNano())
	l.mu.Lock()
	l.conns[limited] = struct{}{}
	l.mu.Unlock()
	return limited, nil
}

// KeepRoom closes connections while NearCapacity, until it is no longer, so that others find one. It closes those that
// have waited for another request for a second, those that have waited longest first. It also closes, unless Admit was
// called for its request, each connection on which a request has begun and is not complete, with its body, after a
// second, or whose client has taken nothing of the response for a second. Such clients could otherwise take all
// connections for the timeouts of the server. A new connection counts as one on which a request has begun. KeepRoom
// returns when the listener is closed.
func (l *Listener) KeepRoom() {
	tick := time.NewTicker(crowdedTimeout / 10)
	defer tick.Stop()
	for {
		select {
		case <-l.closed:
			return
		case now := <-tick.C:
			if !l.NearCapacity() {
				continue
			}
			for _, c := range append(l.slow(now), l.idle(now)...) {
				c.Close()
			}
		}
	}
}

// slow returns the connections that have waited for a complete request, or for the client to read, for longer than
// crowdedTimeout.
func (l *Listener) slow(now time.Time) (slow []*conn) {
	isLate := func(since *atomic.Int64) bool {
		began := since.Load()
		return began > 0 && now.UnixNano()-began > int64(crowdedTimeout)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if isLate(&c.headerSince) || !c.admitted.Load() && (isLate(&c.bodySince) || isLate(&c.writeSince)) {
			slow = append(slow, c)
		}
	}
	return slow
}

// idle returns as many of the connections that have waited for another request for crowdedTimeout as must be closed so
// that connections are no longer scarce.
func (l *Listener) idle(now time.Time) (idle []*conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.headerSince.Load() == betweenRequests && now.UnixNano()-c.idleSince.Load() > int64(crowdedTimeout) {
			idle = append(idle, c)
		}
	}
	slices.SortFunc(idle, func(a, b *conn) int { return cmp.Compare(a.idleSince.Load(), b.idleSince.Load()) })
	return idle[:min(len(idle), max(len(l.places)-cap(l.places)*3/4, 0))]
}

// conn is a net.Conn that gives its place back when it is closed, and watches over the headers that it reads.
type conn struct {
	net.Conn
	release     func()
	headerSince atomic.Int64 // since when a header is awaited, in Unix nanoseconds; 0: none is; or betweenRequests
	bodySince   atomic.Int64 // since when a body is awaited; 0: none is
	writeSince  atomic.Int64 // since when the client has taken nothing of what is written; 0: nothing is
	idleSince   atomic.Int64 // since when it has waited for another request
	admitted    atomic.Bool  // the present request may take its time
	hijacked    atomic.Bool  // a handler has taken it over; there is no further request
	header      headerScan   // used by the reader alone, while headerSince is not 0
}

// betweenRequests means that the next header has not begun: its time counts from its first byte.
const betweenRequests = -1

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	since := c.headerSince.Load()
	if n == 0 || since == 0 {
		return n, err
	}
	if since == betweenRequests {
		c.headerSince.Store(time.Now().UnixNano())
		c.header = headerScan{}
	}
	if !c.header.add(p[:n]) {
		_, _ = c.Conn.Write([]byte(tooManyHeaderLines))
		// After any other error net/http would send a response of its own.
		return 0, &net.OpError{Op: "read", Err: net.ErrClosed}
	}
	return n, err
}

// maxWrite bounds what a client takes without being seen to take anything.
const maxWrite = 16 << 10

func (c *conn) Write(p []byte) (written int, err error) {
	defer c.writeSince.Store(0)
	for {
		part := p[written:min(written+maxWrite, len(p))]
		c.writeSince.Store(time.Now().UnixNano())
		n, err := c.Conn.Write(part)
		if written += n; err != nil || written == len(p) {
			return written, err
		}
	}
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end a connection so that the client still gets the response.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ConnState is for the server's field of that name: it notes that a request has ended and the next header may begin,
// and that a handler has taken over the connection. StateActive is of no use for the former, since net/http sets it
// when it has read the header.
func ConnState(c net.Conn, state http.ConnState) {
	limited := c.(*conn)
	switch state {
	case http.StateIdle:
		limited.idleSince.Store(time.Now().UnixNano())
		limited.bodySince.Store(0)
		limited.headerSince.Store(betweenRequests)
	case http.StateHijacked:
		limited.hijacked.Store(true)
	}
}

type connKey struct{}

// ConnContext is for the server's field of that name: from the context it returns, Handler finds the connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Handler returns a handler that notes when a request is complete, and calls next.
func (l *Listener) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		if r.Body != http.NoBody {
			c.bodySince.Store(time.Now().UnixNano())
			watched := *r // a copy: to end a connection, net/http looks for the body that it has made
			watched.Body = &body{r.Body, c}
			r = &watched
		}
		c.headerSince.Store(0)
		defer func() { // what is written after the handler, of this response or others, is not admitted
			c.admitted.Store(c.admitted.Load() && c.hijacked.Load())
		}()
		next.ServeHTTP(w, r)
	})
}

// body is the body of a request that notes when it has come.
type body struct {
	io.ReadCloser
	conn *conn
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.conn.bodySince.Store(0)
	}
	return n, err
}

// Admit lets the body of the request with ctx and its response take their time, even while connections are scarce. If
// its handler takes over the connection, that holds until the connection is closed. Admit does nothing if the request
// did not come through a Listener.
func Admit(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.admitted.Store(true)
	}
}

// Disconnect closes the connection of the request with ctx, whose handler may go on. It may be called more than once.
// It does nothing if the request did not come through a Listener.
func Disconnect(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.Close()
	}
}

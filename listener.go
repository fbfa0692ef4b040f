package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// crowdedHeaderTimeout replaces readHeaderTimeout while connections are scarce.
const crowdedHeaderTimeout = time.Second

// limitListener accepts a limited number of connections at a time. Others wait in the system's queue until one ends.
// While three quarters are taken, a connection has crowdedHeaderTimeout for its header: clients that send it slowly
// could else take all of them for readHeaderTimeout.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	close  func() error

	mu    sync.Mutex
	conns map[*limitedConn]struct{} // guarded by mu
}

func newLimitListener(l net.Listener, maxConnections int64) *limitListener {
	closed := make(chan struct{})
	return &limitListener{
		Listener: l,
		slots:    make(chan struct{}, maxConnections),
		closed:   closed,
		close: sync.OnceValue(func() error {
			close(closed)
			return l.Close()
		}),
		conns: make(map[*limitedConn]struct{}),
	}
}

func (l *limitListener) Close() error { return l.close() }

// connections returns how many connections are open, including the slot in which the next one is awaited.
func (l *limitListener) connections() int { return len(l.slots) }

// nearCapacity reports whether three quarters of the connections are taken. No more should then be kept for clients
// that may send another request: those that do not could take them all.
func (l *limitListener) nearCapacity() bool { return len(l.slots)*4 > cap(l.slots)*3 }

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	limited := &limitedConn{Conn: c}
	limited.release = sync.OnceFunc(func() {
		l.mu.Lock()
		delete(l.conns, limited)
		l.mu.Unlock()
		<-l.slots
	})
	limited.headerSince.Store(time.Now().UnixNano())
	l.mu.Lock()
	l.conns[limited] = struct{}{}
	l.mu.Unlock()
	return limited, nil
}

// cutSlowHeaders closes connections that have sent no complete header for crowdedHeaderTimeout, while few are left,
// until the listener is closed.
func (l *limitListener) cutSlowHeaders() {
	tick := time.NewTicker(crowdedHeaderTimeout / 10)
	defer tick.Stop()
	for {
		select {
		case <-l.closed:
			return
		case now := <-tick.C:
			if !l.nearCapacity() {
				continue
			}
			for _, c := range l.slow(now) {
				c.Close()
			}
		}
	}
}

func (l *limitListener) slow(now time.Time) (slow []*limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if since := c.headerSince.Load(); since > 0 && now.UnixNano()-since > int64(crowdedHeaderTimeout) {
			slow = append(slow, c)
		}
	}
	return slow
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	release     func()
	headerSince atomic.Int64 // since when a header is awaited, in Unix nanoseconds; 0: none is; or betweenRequests
	header      headerScan   // used by the reader alone, while headerSince is not 0
}

// betweenRequests means that the next header has not begun: its time counts from its first byte.
const betweenRequests = -1

func (c *limitedConn) Read(p []byte) (int, error) {
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
		return 0, &net.OpError{Op: "read", Err: net.ErrClosed} // which net/http does not respond to
	}
	return n, err
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end a connection so that the client still gets the response.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// endRequest is the server's ConnState: it notes that a request has ended and the next header may begin. StateActive is
// of no use: net/http sets it when it has read the header.
func endRequest(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		c.(*limitedConn).headerSince.Store(betweenRequests)
	}
}

type limitedConnKey struct{}

// withLimitedConn is the server's ConnContext, from which endHeader finds the connection of a request.
func withLimitedConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, limitedConnKey{}, c)
}

// endHeader notes that the header of a request is complete, and serves it with next.
func (l *limitListener) endHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(limitedConnKey{}).(*limitedConn).headerSince.Store(0)
		next.ServeHTTP(w, r)
	})
}

package connlimit

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

// Listener accepts a limited number of connections at a time. Others wait in the system's queue until one ends.
// While three quarters are taken, a connection has crowdedHeaderTimeout for its header: clients that send it slowly
// could else take all of them for readHeaderTimeout.
type Listener struct {
	net.Listener
	Slots  chan struct{}
	closed chan struct{}
	close  func() error

	mu    sync.Mutex
	conns map[*conn]struct{} // guarded by mu
}

func New(l net.Listener, maxConnections int64) *Listener {
	closed := make(chan struct{})
	return &Listener{
		Listener: l,
		Slots:    make(chan struct{}, maxConnections),
		closed:   closed,
		close: sync.OnceValue(func() error {
			close(closed)
			return l.Close()
		}),
		conns: make(map[*conn]struct{}),
	}
}

func (l *Listener) Close() error { return l.close() }

// Connections returns how many connections are open, including the slot in which the next one is awaited.
func (l *Listener) Connections() int { return len(l.Slots) }

// NearCapacity reports whether three quarters of the connections are taken. No more should then be kept for clients
// that may send another request: those that do not could take them all.
func (l *Listener) NearCapacity() bool { return len(l.Slots)*4 > cap(l.Slots)*3 }

func (l *Listener) Accept() (net.Conn, error) {
	select {
	case l.Slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.Slots
		return nil, err
	}
	limited := &conn{Conn: c}
	limited.release = sync.OnceFunc(func() {
		l.mu.Lock()
		delete(l.conns, limited)
		l.mu.Unlock()
		<-l.Slots
	})
	limited.headerSince.Store(time.Now().UnixNano())
	l.mu.Lock()
	l.conns[limited] = struct{}{}
	l.mu.Unlock()
	return limited, nil
}

// CutSlowHeaders closes connections that have sent no complete header for crowdedHeaderTimeout, while few are left,
// until the listener is closed.
func (l *Listener) CutSlowHeaders() {
	tick := time.NewTicker(crowdedHeaderTimeout / 10)
	defer tick.Stop()
	for {
		select {
		case <-l.closed:
			return
		case now := <-tick.C:
			if !l.NearCapacity() {
				continue
			}
			for _, c := range l.slow(now) {
				c.Close()
			}
		}
	}
}

func (l *Listener) slow(now time.Time) (slow []*conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if since := c.headerSince.Load(); since > 0 && now.UnixNano()-since > int64(crowdedHeaderTimeout) {
			slow = append(slow, c)
		}
	}
	return slow
}

// conn gives its place back when it is closed.
type conn struct {
	net.Conn
	release     func()
	headerSince atomic.Int64 // since when a header is awaited, in Unix nanoseconds; 0: none is; or betweenRequests
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
		return 0, &net.OpError{Op: "read", Err: net.ErrClosed} // which net/http does not respond to
	}
	return n, err
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

// ConnState is the server's ConnState: it notes that a request has ended and the next header may begin. StateActive is
// of no use: net/http sets it when it has read the header.
func ConnState(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		c.(*conn).headerSince.Store(betweenRequests)
	}
}

type connKey struct{}

// ConnContext is the server's ConnContext, from which endHeader finds the connection of a request.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Handler notes that the header of a request is complete, and serves it with next.
func (l *Listener) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(connKey{}).(*conn).headerSince.Store(0)
		next.ServeHTTP(w, r)
	})
}

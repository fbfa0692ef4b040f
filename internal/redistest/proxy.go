package redistest

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// Proxy stands between a service and Redis, and does to replies, and to requests, what a bad network does.
type Proxy struct {
	Address string       // host:port
	URL     string       // for the services under test
	Cuts    atomic.Int64 // connections that were cut

	requests atomic.Pointer[func([]byte) Fate]
}

// Fate is what becomes of a reply, or of a request.
type Fate int

const (
	Pass    Fate = iota // the reply reaches the service, or the request Redis
	Swallow             // neither it nor any that follows on the connection does; the connection stays open
	Cut                 // the connection ends before it
)

// NewProxy starts a proxy for r until the test ends. It asks judge, from several goroutines, for the fate of every
// reply, or of several that come together.
func NewProxy(t *testing.T, r *Server, judge func(reply []byte) Fate) *Proxy {
	t.Helper()
	return NewProxyTo(t, func() *Server { return r }, judge)
}

// NewProxyTo does what NewProxy does, for the Redis that target returns when a connection is made.
func NewProxyTo(t *testing.T, target func() *Server, judge func(reply []byte) Fate) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &Proxy{Address: l.Addr().String(), URL: target().urlAt(l.Addr().String())}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(target().Network, target().Address)
			if err != nil {
				client.Close()
				continue
			}
			go p.carry(client, server, func(request []byte) Fate {
				if judge := p.requests.Load(); judge != nil {
					return (*judge)(request)
				}
				return Pass
			})
			go p.carry(server, client, judge)
		}
	}()
	return p
}

// OnRequest lets judge decide, from several goroutines, about what services send from now on, before Redis gets it: a
// request, or several that come together. It may take its time.
func (p *Proxy) OnRequest(judge func(request []byte) Fate) { p.requests.Store(&judge) }

// carry carries what one side sends to the other.
func (p *Proxy) carry(from, to net.Conn, judge func([]byte) Fate) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		switch judge(buffer[:n]) {
		case Pass:
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		case Swallow:
			_, _ = io.Copy(io.Discard, from)
			return
		case Cut:
			p.Cuts.Add(1)
			return
		}
	}
}

package redistest

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// Proxy stands between a service and Redis, and does to replies what a bad network does.
type Proxy struct {
	Address string       // host:port
	URL     string       // for the services under test
	Cuts    atomic.Int64 // connections that were cut
}

// Fate is what becomes of a reply.
type Fate int

const (
	Pass    Fate = iota // the reply reaches the service
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
			go func() {
				_, _ = io.Copy(server, client)
				server.Close()
			}()
			go p.replies(client, server, judge)
		}
	}()
	return p
}

// replies carries replies from server to client.
func (p *Proxy) replies(client, server net.Conn, judge func(reply []byte) Fate) {
	defer client.Close()
	defer server.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		switch judge(buffer[:n]) {
		case Pass:
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		case Swallow:
			_, _ = io.Copy(io.Discard, server)
			return
		case Cut:
			p.Cuts.Add(1)
			return
		}
	}
}

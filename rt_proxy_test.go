package main

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// redisProxy stands between a service and Redis and may do with each reply what a bad network does.
type redisProxy struct {
	address, url string
	cuts         atomic.Int64 // connections that were cut
}

// fate is what becomes of a reply.
type fate int

const (
	pass    fate = iota
	swallow      // this and all that follow on the connection
	cut          // the connection
)

// newRedisProxy starts a proxy for r that asks judge for the fate of every reply.
func newRedisProxy(t *testing.T, r *redisServer, judge func(reply []byte) fate) *redisProxy {
	t.Helper()
	return newRedisProxyTo(t, func() *redisServer { return r }, judge)
}

// newRedisProxyTo is newRedisProxy for the Redis that target returns when a connection is made.
func newRedisProxyTo(t *testing.T, target func() *redisServer, judge func(reply []byte) fate) *redisProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &redisProxy{address: l.Addr().String(), url: target().urlAt(l.Addr().String())}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(target().network, target().address)
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
func (p *redisProxy) replies(client, server net.Conn, judge func(reply []byte) fate) {
	defer client.Close()
	defer server.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		switch judge(buffer[:n]) {
		case pass:
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		case swallow:
			_, _ = io.Copy(io.Discard, server)
			return
		case cut:
			p.cuts.Add(1)
			return
		}
	}
}

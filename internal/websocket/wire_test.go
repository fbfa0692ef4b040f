package websocket

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"tollgate/internal/websockettest"
)

// patience is how long a test waits for what should come at once, or within a minute of fake time.
const patience = websockettest.Patience

// The raw frames and peers of the tests.
type (
	wire = websockettest.Frame
	peer = websockettest.Peer
)

// show returns frames as text.
func show(frames []wire) string { return websockettest.Show(frames) }

// closeFrame returns a close frame with a code and a reason.
func closeFrame(code Code, reason string) wire { return websockettest.Close(uint16(code), reason) }

// newConns returns both ends of a TCP connection.
func newConns(t testing.TB) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		here.Close()
		there.Close()
	})
	return here, there
}

// newPeer returns a Conn of a Side and its peer, which reads all frames, and answers a close.
func newPeer(t testing.TB, side *Side, isServer bool) (*Conn, *peer) {
	t.Helper()
	here, there := newConns(t)
	return side.newConn(here, isServer, ""), websockettest.NewPeer(there, isServer)
}

// newPiped does what newPeer does without a network, in a bubble of synctest, where time is fake.
func newPiped(side *Side, isServer bool) (*Conn, *peer) {
	here, there := net.Pipe()
	return side.newConn(here, isServer, ""), websockettest.NewPeer(there, isServer)
}

// startRelay runs a Relay. ended gets what Run returns.
func startRelay(r *Relay) (ended chan [2]error) {
	ended = make(chan [2]error, 1)
	go func() {
		client, server := r.Run()
		ended <- [2]error{client, server}
	}()
	return ended
}

// waitFor returns what comes from a channel.
func waitFor[T any](t testing.TB, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(patience):
		t.Error("it takes too long")
	}
	return value
}

// A script is a connection whose peer says what is written in it, in pieces, and then nothing more. It notes what is
// written to it.
type script struct {
	net.Conn // nil: what is not defined here is not used
	say      []byte
	piece    int // the most bytes of one read
	heard    bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.say) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.say[:min(len(s.say), s.piece)])
	s.say = s.say[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return s.heard.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

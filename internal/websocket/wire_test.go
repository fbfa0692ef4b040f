package websocket

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what should come at once, or within a minute of fake time.
const patience = 2 * time.Minute

// A wire is a frame as a peer of any kind may write it. It is encoded without the code under test.
type wire struct {
	first   byte // fin, reserved bits, opcode
	payload string
	form    byte   // length16 or length64, though a shorter one would do
	claims  uint64 // a length that is not the payload's
	flip    bool   // masked if it must not be, and the other way round
}

// encode returns the bytes of the frame.
func (w wire) encode(masked bool) []byte {
	length := max(uint64(len(w.payload)), w.claims)
	p := []byte{w.first, 0}
	switch {
	case w.form == length64 || length > math.MaxUint16:
		p[1] = length64
		p = binary.BigEndian.AppendUint64(p, length)
	case w.form == length16 || length > maxControl:
		p[1] = length16
		p = binary.BigEndian.AppendUint16(p, uint16(length))
	default:
		p[1] = byte(length)
	}
	if masked == w.flip {
		return append(p, w.payload...)
	}
	p[1] |= maskBit
	key := []byte{0x37, 0xfa, 0x21, 0x3d}
	p = append(p, key...)
	return append(p, xor([]byte(w.payload), key)...)
}

// xor masks p in place, in another way than mask does.
func xor(p, key []byte) []byte {
	subtle.XORBytes(p, p, bytes.Repeat(key, len(p)/len(key)+1))
	return p
}

// encodeAll returns the bytes of several frames.
func encodeAll(frames []wire, masked bool) (p []byte) {
	for _, w := range frames {
		p = append(p, w.encode(masked)...)
	}
	return p
}

// closeFrame returns a close frame with a code and a reason.
func closeFrame(code Code, reason string) wire {
	return wire{first: 0x88, payload: string(binary.BigEndian.AppendUint16(nil, uint16(code))) + reason}
}

// readWire reads a frame that must be masked, or must not be, and must use the shortest length.
func readWire(r io.Reader, masked bool) (wire, error) {
	start := make([]byte, 2)
	if _, err := io.ReadFull(r, start); err != nil {
		return wire{}, err
	}
	if got := start[1]&maskBit != 0; got != masked {
		return wire{}, fmt.Errorf("a frame has masked %t, want %t", got, masked)
	}
	length, least := uint64(start[1]&lengthBits), uint64(0)
	if size := map[uint64]int{length16: 2, length64: 8}[length]; size > 0 {
		p := make([]byte, 8)
		if _, err := io.ReadFull(r, p[8-size:]); err != nil {
			return wire{}, err
		}
		length, least = binary.BigEndian.Uint64(p), map[int]uint64{2: 126, 8: 1 << 16}[size]
	}
	if length < least {
		return wire{}, fmt.Errorf("the length %d is not in its shortest form", length)
	}
	key := make([]byte, 4)
	if masked {
		if _, err := io.ReadFull(r, key); err != nil {
			return wire{}, err
		}
	}
	payload := make([]byte, length)
	_, err := io.ReadFull(r, payload)
	return wire{first: start[0], payload: string(xor(payload, key))}, err
}

// String shows a frame: T for text, B for binary, C for a continuation, P and Q for ping and pong, in lower case if it is
// not the last of its message; X and the code for a close.
func (w wire) String() string {
	if w.first == 0x88 {
		if len(w.payload) < 2 {
			return fmt.Sprintf("X%q", w.payload)
		}
		return fmt.Sprintf("X%d%q", binary.BigEndian.Uint16([]byte(w.payload)), w.payload[2:])
	}
	letter := string("ctb?????xpq?????"[w.first&opcodeBits])
	if w.first&finBit != 0 {
		letter = strings.ToUpper(letter)
	}
	if len(w.payload) > 200 {
		return fmt.Sprintf("%s(%d)", letter, len(w.payload))
	}
	return letter + fmt.Sprintf("%q", w.payload)
}

// show returns frames as text. The reasons of protocol errors are left out.
func show(frames []wire) string {
	var all []string
	for _, w := range frames {
		all = append(all, w.String())
	}
	return strings.Join(all, " ")
}

// A peer is the other end of a connection under test, which speaks raw frames.
type peer struct {
	net.Conn
	masks  bool // it is a client
	mu     sync.Mutex
	frames []wire        // that have come; guarded by mu
	ended  chan struct{} // closed when no more come
	err    error         // why; read after ended
}

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
	return side.newConn(here, isServer, ""), startPeer(there, isServer)
}

// newPiped does what newPeer does without a network, in a bubble of synctest, where time is fake.
func newPiped(side *Side, isServer bool) (*Conn, *peer) {
	here, there := net.Pipe()
	return side.newConn(here, isServer, ""), startPeer(there, isServer)
}

func startPeer(there net.Conn, masks bool) *peer {
	p := &peer{Conn: there, masks: masks, ended: make(chan struct{})}
	go p.read()
	return p
}

func (p *peer) read() {
	defer close(p.ended)
	defer p.Close()
	for {
		var w wire
		if w, p.err = readWire(p, !p.masks); p.err != nil {
			return
		}
		p.mu.Lock()
		p.frames = append(p.frames, w)
		p.mu.Unlock()
		if w.first == 0x88 {
			_, _ = p.Write(w.encode(p.masks)) // to an end that may have gone
			if p.masks {                      // the server closes first
				_, p.err = io.Copy(io.Discard, p)
			}
			return
		}
	}
}

// send writes frames.
func (p *peer) send(t testing.TB, frames ...wire) {
	t.Helper()
	if _, err := p.Write(encodeAll(frames, p.masks)); err != nil {
		t.Error(err)
	}
}

// got returns the frames that have come so far.
func (p *peer) got() []wire {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]wire(nil), p.frames...)
}

// wait waits until no more frames come, and returns them.
func (p *peer) wait(t testing.TB) []wire {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Errorf("the connection does not end; it got %s", show(p.got()))
	}
	return p.got()
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

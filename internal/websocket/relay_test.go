package websocket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"tollgate/internal/waittest"
	"tollgate/internal/websockettest"
)

// newRelay returns a Relay between two peers.
func newRelay(t testing.TB) (r *Relay, client, server *peer) {
	t.Helper()
	r = &Relay{}
	r.Client, client = newPeer(t, &Side{}, true)
	r.Server, server = newPeer(t, &Side{}, false)
	return r, client, server
}

// join returns the messages that frames are the fragments of, without what is between them.
func join(t testing.TB, frames []wire) (messages []wire) {
	t.Helper()
	var first byte // of the message that has begun
	var payload strings.Builder
	for _, w := range frames {
		op := w.First & opcodeBits
		if op >= opClose {
			continue
		}
		if (first != 0) != (op == opContinuation) {
			t.Fatalf("a message within another, or a continuation of none: %s", show(frames))
		}
		first |= finBit | op
		payload.WriteString(w.Payload)
		if w.First&finBit != 0 {
			messages = append(messages, wire{First: first, Payload: payload.String()})
			first = 0
			payload.Reset()
		}
	}
	if first != 0 {
		t.Fatalf("the last message has no end: %s", show(frames))
	}
	return messages
}

// countMessages returns how many messages have come to a peer.
func countMessages(p *peer) (n int) {
	for _, w := range p.Got() {
		if w.First&finBit != 0 && w.First&opcodeBits < opClose {
			n++
		}
	}
	return n
}

// traffic makes random messages, and the bytes of frames that have them: fragmented anywhere, with pings between.
func traffic(random *rand.Rand, masked bool) (messages []wire, sent []byte) {
	sizes := []int{0, 1, 125, 126, 127, 500, smallSize - 1, smallSize, smallSize + 1, MaxPart - 1, MaxPart, MaxPart + 1, 2*MaxPart + 1, 65535,
		65536, 100000}
	for range 20 {
		m := wire{First: 0x82}
		size := sizes[random.IntN(len(sizes))]
		if random.IntN(2) == 0 {
			m.First, m.Payload = 0x81, strings.Repeat("aé€\U0001f600", size/10+1)[:size/10*10]
		} else {
			p := make([]byte, size)
			for i := range p {
				p[i] = byte(random.Uint32())
			}
			m.Payload = string(p)
		}
		messages = append(messages, m)
		w, rest := wire{First: m.First &^ finBit}, m.Payload
		for isLast := false; !isLast; w.First = 0 {
			if random.IntN(4) == 0 {
				sent = append(sent, ping("still there?").Encode(masked)...)
			}
			n := random.IntN(len(rest) + 1)
			if isLast = random.IntN(3) == 0; isLast {
				n, w.First = len(rest), w.First|finBit
			}
			w.Payload, rest = rest[:n], rest[n:]
			sent = append(sent, w.Encode(masked)...)
		}
	}
	return messages, sent
}

// What comes out of a relay is what went in, in both directions at once, however it is fragmented and wherever reads end.
func TestRelayedEqualsSent(t *testing.T) {
	for range 10 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r, client, server := newRelay(t)
			ended := startRelay(r)
			var sent [2][]wire
			done := make(chan error, 2)
			for i, p := range []*peer{client, server} {
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				var raw []byte
				sent[i], raw = traffic(random, p.Masks)
				go func() {
					var err error
					for len(raw) > 0 && err == nil {
						n := min(1+random.IntN(1<<random.IntN(18)), len(raw))
						_, err = p.Write(raw[:n])
						raw = raw[n:]
					}
					done <- err
				}()
			}
			if err := errors.Join(waitFor(t, done), waitFor(t, done)); err != nil {
				t.Error(err)
			}
			// Each side has sent all. Once the server has all, the client closes.
			waittest.Eventually(t, patience, func() error {
				for i, p := range []*peer{server, client} {
					if got := countMessages(p); got < len(sent[i]) {
						return fmt.Errorf("%d messages came out, want %d", got, len(sent[i]))
					}
				}
				return nil
			})
			client.Send(t, bye)
			for i, p := range []*peer{server, client} {
				got := join(t, p.Wait(t))
				if len(got) != len(sent[i]) {
					t.Fatalf("%d messages, want %d", len(got), len(sent[i]))
				}
				for j := range got {
					if got[j] != sent[i][j] {
						t.Errorf("message %d: got %s, want %s", j, got[j], sent[i][j])
					}
				}
			}
			errs := waitFor(t, ended)
			if errs[0].Error() != `the peer has closed the connection: 1000 "bye"` ||
				errs[1].Error() != `the peer has closed the connection: 1000 "bye"` {
				t.Errorf("got %v", errs)
			}
		})
	}
}

// Messages of up to 16 MiB pass in both directions, in one frame or many, of text or not.
func TestLargeMessages(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	for _, test := range []struct {
		kind           Kind
		size, fragment int
	}{
		{Text, 16 << 20, 16 << 20},
		{Text, 1 << 20, 64 << 10},
		{Binary, 1 << 20, 1 << 20},
		{Binary, 16 << 20, 64 << 10},
	} {
		t.Run(fmt.Sprintf("kind %d, %d bytes in frames of %d", test.kind, test.size, test.fragment), func(t *testing.T) {
			t.Parallel()
			data := strings.Repeat("0123456789abcdé", test.size/16)
			r, client, server := newRelay(t)
			ended := startRelay(r)
			for _, p := range []*peer{client, server} {
				go func() {
					w := wire{First: byte(test.kind)}
					for rest := data; rest != ""; w.First = 0 {
						w.Payload, rest = rest[:test.fragment], rest[test.fragment:]
						if rest == "" {
							w.First |= finBit
						}
						p.Send(t, w)
					}
				}()
			}
			waittest.Eventually(t, patience, func() error {
				if client, server := countMessages(client), countMessages(server); client+server < 2 {
					return fmt.Errorf("the client has got %d messages, the server %d", client, server)
				}
				return nil
			})
			server.Send(t, bye)
			for _, p := range []*peer{client, server} {
				if got := join(t, p.Wait(t)); len(got) != 1 || got[0].Payload != data {
					t.Errorf("got %d messages", len(got))
				}
			}
			waitFor(t, ended)
		})
	}
}

// The beginning of a long frame is passed on before its end has come.
func TestLongFramesPassInParts(t *testing.T) {
	for _, fromClient := range []bool{true, false} {
		r, sender, other := newRelay(t)
		if !fromClient {
			sender, other = other, sender
		}
		ended := startRelay(r)
		sender.Send(t, wire{First: 0x82, Payload: strings.Repeat("*", 2*MaxPart), Claims: 16 << 20})
		waitFrames(t, other, "b(16370) c(16370)")
		sender.Close()
		other.Wait(t)
		waitFor(t, ended)
	}
}

// waitFrames waits until a peer has got frames.
func waitFrames(t testing.TB, p *peer, want string) {
	t.Helper()
	waittest.Eventually(t, patience, func() error {
		if got := show(p.Got()); got != want {
			return fmt.Errorf("got %s, want %s", got, want)
		}
		return nil
	})
}

// However one side ends, the other is told.
func TestRelayEnds(t *testing.T) {
	cut := func(p *peer) { p.Close() }
	say := func(frames ...wire) func(*peer) {
		return func(p *peer) { _, _ = p.Write(websockettest.EncodeAll(frames, p.Masks)) }
	}
	for _, test := range []struct {
		name         string
		end          func(client, server *peer)
		toClient     string // what the client gets
		toServer     string
		client, from string // the errors
	}{
		{"the client closes", func(c, _ *peer) { say(bye)(c) }, reply, goodbye, "1000 \"bye\"", "1000 \"bye\""},
		{"the server closes", func(_, s *peer) { say(bye)(s) }, goodbye, reply, "1000 \"bye\"", "1000 \"bye\""},
		{"the client has a code of its own", func(c, _ *peer) { say(closeFrame(4001, "é"))(c) }, `X4001""`, `X4001"é"`, `4001 "é"`, `4001 "é"`},
		{"the server has nothing to say", func(_, s *peer) { say(wire{First: 0x88})(s) }, `X""`, `X""`, "1005 \"\"", "1005 \"\""},
		{"the client is gone", func(c, _ *peer) { cut(c) }, "", `X1001""`, "EOF", "1001 \"\""},
		{"the server is gone", func(_, s *peer) { cut(s) }, `X1011""`, "", "1011 \"\"", "EOF"},
		{"the client is gone within a message", func(c, _ *peer) { say(begin("a"))(c); cut(c) }, "", `t"a" X1001""`, "EOF", "1001 \"\""},
		{"the server is gone within a frame", func(_, s *peer) { say(wire{First: 0x81, Claims: 9})(s); cut(s) }, `X1011""`, "",
			"1011 \"\"", "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, client, server := newRelay(t)
			ended := startRelay(r)
			test.end(client, server)
			if got := show(client.Wait(t)); got != test.toClient {
				t.Errorf("the client gets %s, want %s", got, test.toClient)
			}
			if got := show(server.Wait(t)); got != test.toServer {
				t.Errorf("the server gets %s, want %s", got, test.toServer)
			}
			for i, err := range waitFor(t, ended) {
				if want := []string{test.client, test.from}[i]; !strings.HasSuffix(err.Error(), want) {
					t.Errorf("got %v, want …%s", err, want)
				}
			}
		})
	}
}

// A user of the relay reads messages on the way, holds them back, changes and drops them, and adds its own.
func TestRelayHooks(t *testing.T) {
	r, client, server := newRelay(t)
	var held []byte
	r.FromClient = func(p Part) error {
		switch {
		case bytes.HasPrefix(p.Data, []byte("drop")):
			return r.Client.Send(Text, []byte("dropped"))
		case p.First && !p.Last: // held until it is whole
			held = append(held[:0], p.Data...)
			return nil
		case !p.First:
			held = append(held, p.Data...)
			if !p.Last {
				return nil
			}
			p = Part{Kind: p.Kind, First: true, Last: true, Data: bytes.ToUpper(held)}
		}
		return r.Server.WritePart(p)
	}
	r.FromServer = func(p Part) error {
		if bytes.Equal(p.Data, []byte("enough")) {
			return &CloseError{ClosePolicy, "no more"}
		}
		return r.Client.WritePart(p)
	}
	ended := startRelay(r)
	client.Send(t, text("drop this"), begin("a"), more("b"), ping(""), end("c"), text("d"))
	waitFrames(t, client, `T"dropped" Q""`)
	waitFrames(t, server, `T"ABC" T"d"`)
	server.Send(t, text("1"), text("enough"), text("2"))
	if got, want := show(client.Wait(t)), `T"dropped" Q"" T"1" X1008"no more"`; got != want {
		t.Errorf("the client gets %s, want %s", got, want)
	}
	if got, want := show(server.Wait(t)), `T"ABC" T"d" X1008"no more"`; got != want {
		t.Errorf("the server gets %s, want %s", got, want)
	}
	errs := waitFor(t, ended)
	if want := (CloseError{ClosePolicy, "no more"}); *errs[1].(*CloseError) != want || *errs[0].(*CloseError) != want {
		t.Errorf("got %v", errs)
	}
}

// An error of the user's own closes both sides.
func TestRelayRefuses(t *testing.T) {
	r, client, server := newRelay(t)
	calls := 0
	broken := errors.New("broken")
	r.FromClient = func(Part) error { calls++; return broken }
	ended := startRelay(r)
	client.Send(t, text("a"), text("b"))
	if got, want := show(client.Wait(t))+show(server.Wait(t)), `X1011""X1001""`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if errs := waitFor(t, ended); errs[0] != broken || calls != 1 {
		t.Errorf("got %v after %d calls", errs, calls)
	}
}

// When the client has gone, its end is handled as the user likes, and the server is still read: what cannot be written to
// the client is no reason to stop.
func TestRelayDrains(t *testing.T) {
	r, client, server := newRelay(t)
	var seen []string
	gone := make(chan error, 1)
	r.ClientEnded = func(err error) {
		gone <- err
		if err := r.Server.Send(Text, []byte("cancel")); err != nil {
			t.Error(err)
		}
	}
	r.FromServer = func(p Part) error {
		seen = append(seen, string(p.Data))
		if string(p.Data) == "done" {
			if err := r.Server.Close(CloseGoingAway, ""); err != nil {
				t.Error(err)
			}
		}
		return r.Client.WritePart(p)
	}
	ended := startRelay(r)
	client.Close()
	if err := waitFor(t, gone); !errors.Is(err, io.EOF) {
		t.Errorf("the client has ended with %v", err)
	}
	waitFrames(t, server, `T"cancel"`)
	server.Send(t, text("more"), text("done"))
	if got, want := show(server.Wait(t)), `T"cancel" X1001""`; got != want {
		t.Errorf("the server gets %s, want %s", got, want)
	}
	waitFor(t, ended)
	if got, want := strings.Join(seen, " "), "more done"; got != want {
		t.Errorf("saw %s, want %s", got, want)
	}
}

// What still comes from one side while the other is closing is dropped, and changes no code.
func TestRelayWhileClosing(t *testing.T) {
	r := &Relay{}
	here, server := newConns(t)
	r.Server = (&Side{}).newConn(here, false, "")
	var client *peer
	r.Client, client = newPeer(t, &Side{}, true)
	r.ServerEnded = func(err error) { // late
		client.Send(t, text("a"), text("b"), ping("c"))
		waitFrames(t, client, `Q"c"`)
		code, reason := Forward(err, CloseInternal)
		_ = r.Client.Close(code, reason)
	}
	ended := startRelay(r)
	if _, err := server.Write(closeFrame(3000, "over").Encode(false)); err != nil {
		t.Fatal(err)
	}
	if got, want := show(client.Wait(t)), `Q"c" X3000"over"`; got != want {
		t.Errorf("the client gets %s, want %s", got, want)
	}
	server.Close()
	waitFor(t, ended)
}

// While one side does not read, the other is not read either, beyond what the system buffers.
func TestRelayBackpressure(t *testing.T) {
	r := &Relay{}
	here, client := newConns(t) // which does not read
	r.Client = (&Side{WriteTimeout: time.Second, CloseTimeout: time.Second}).newConn(here, true, "")
	var server *peer
	r.Server, server = newPeer(t, &Side{}, false)
	ended := startRelay(r)
	var sent int
	_ = server.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	frame := bin(strings.Repeat("*", 1<<20)).Encode(false)
	var err error
	for err == nil {
		var n int
		n, err = server.Write(frame)
		sent += n
	}
	if sent > 64<<20 {
		t.Errorf("%d bytes were taken from the server", sent)
	}
	errs := waitFor(t, ended)
	var timeout net.Error
	if !errors.As(errs[0], &timeout) || !timeout.Timeout() {
		t.Errorf("the client has ended with %v", errs[0])
	}
	if got, want := show(server.Got()), `X1001""`; got != want {
		t.Errorf("the server gets %s, want %s", got, want)
	}
	client.Close()
}

// A panic of a function in either direction ends both connections, and is that of Run: in a goroutine of its own it would
// end the process.
func TestRelayPanics(t *testing.T) {
	boom := func() { panic("boom") }
	for name, set := range map[string]func(*Relay){
		"FromClient":  func(r *Relay) { r.FromClient = func(Part) error { boom(); return nil } },
		"FromServer":  func(r *Relay) { r.FromServer = func(Part) error { boom(); return nil } },
		"ClientEnded": func(r *Relay) { r.ClientEnded = func(error) { boom() } },
		"ServerEnded": func(r *Relay) { r.ServerEnded = func(error) { boom() } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, client, server := newRelay(t)
			set(r)
			panicked := make(chan any, 1)
			go func() {
				defer func() { panicked <- recover() }()
				r.Run()
			}()
			for _, p := range []*peer{client, server} {
				_, _ = p.Write(text("hello").Encode(p.Masks))
			}
			switch name {
			case "ClientEnded":
				client.Close()
			case "ServerEnded":
				server.Close()
			}
			select {
			case got := <-panicked:
				if s, _ := got.(string); !strings.HasPrefix(s, "boom\n") || !strings.Contains(s, "relay_test.go") {
					t.Errorf("Run panics with %v", got)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("Run does not end")
			}
			for _, c := range []*Conn{r.Client, r.Server} {
				if !c.isOver() {
					t.Error("a connection is open")
				}
			}
		})
	}
}

package websocket

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/waittest"
)

// readAll calls Next until it fails, and returns the error.
func readAll(c *Conn) error {
	for {
		if _, err := c.Next(); err != nil {
			return err
		}
	}
}

// A message of the caller's own stands between messages; a ping may also stand within one.
func TestSendBetweenMessages(t *testing.T) {
	for _, isServer := range []bool{true, false} {
		c, p := newPeer(t, &Side{}, isServer)
		for _, step := range []error{
			c.Send(Text, []byte("1")),
			c.WritePart(Part{Kind: Text, First: true, Data: []byte("a")}),
			c.Send(Text, []byte("2")),
			c.Ping(),
			c.Send(Binary, []byte("3")),
			c.WritePart(Part{Kind: Text, Data: []byte("b")}),
			c.WritePart(Part{Kind: Text, Last: true}),
			c.WritePart(Part{Kind: Binary, First: true, Last: true, Data: []byte("c")}),
			c.Send(Text, nil),
			c.Close(CloseNormal, "bye"),
			c.Close(CloseInternal, ""),
		} {
			if step != nil {
				t.Error(step)
			}
		}
		want := `T"1" t"a" P"" c"b" C"" T"2" B"3" B"c" T"" ` + goodbye
		c.Finish()
		if got := show(p.wait(t)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := c.Sent(), int64(len(encodeAll(p.got(), !isServer))); got != want {
			t.Errorf("sent %d bytes, want %d", got, want)
		}
		if got, want := c.Received(), int64(len(bye.encode(isServer))); got != want {
			t.Errorf("received %d bytes, want %d", got, want)
		}
		for name, err := range map[string]error{
			"WritePart": c.WritePart(Part{Kind: Text, First: true}), "Send": c.Send(Text, nil), "Ping": c.Ping(),
		} {
			if !errors.Is(err, ErrClosing) {
				t.Errorf("%s after Close: %v", name, err)
			}
		}
	}
}

// The queue keeps copies, and is bounded. A close within a message drops it.
func TestQueue(t *testing.T) {
	c, p := newPeer(t, &Side{}, true)
	if err := c.WritePart(Part{Kind: Text, First: true, Data: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	data, sent := []byte(strings.Repeat("*", 1000)), 0
	for sent = range 100 {
		if err := c.Send(Text, data); err != nil {
			if !errors.Is(err, ErrQueueFull) {
				t.Error(err)
			}
			break
		}
	}
	if want := maxQueue / (1000 + maxHeader); sent != want {
		t.Errorf("%d messages wait, want %d", sent, want)
	}
	data[0] = '!'
	if err := c.WritePart(Part{Kind: Text, Last: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.WritePart(Part{Kind: Text, First: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(Text, []byte("lost")); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(CloseTryAgain, ""); err != nil {
		t.Fatal(err)
	}
	c.Finish()
	want := `t"a" C"" ` + strings.Repeat("T(1000) ", sent) + `t"" X1013""`
	got := p.wait(t)
	if show(got) != want {
		t.Errorf("got %s, want %s", show(got), want)
	}
	if strings.Contains(got[2].payload, "!") {
		t.Error("the message was changed after it was sent")
	}
}

// Parts out of order are refused, and nothing is written.
func TestPartOrder(t *testing.T) {
	c, p := newPeer(t, &Side{}, true)
	steps := []struct {
		part Part
		ok   bool
	}{
		{Part{Kind: Text}, false},
		{Part{Kind: Text, Last: true}, false},
		{Part{Kind: Text, First: true}, true},
		{Part{Kind: Text, First: true}, false},
		{Part{Kind: Text, First: true, Last: true}, false},
		{Part{Kind: Text, Last: true}, true},
		{Part{Kind: Text, Last: true}, false},
	}
	for i, step := range steps {
		if err := c.WritePart(step.part); (err == nil) != step.ok {
			t.Errorf("step %d: %v", i, err)
		}
	}
	_ = c.Close(CloseNormal, "")
	c.Finish()
	if got, want := show(p.wait(t)), `t"" C"" X1000""`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Data that is written stays as it is, whatever its length, and comes out right.
func TestWrittenData(t *testing.T) {
	for _, isServer := range []bool{true, false} {
		c, p := newPeer(t, &Side{}, isServer)
		var want []string
		for _, size := range []int{0, 125, 126, MaxPart - 10, MaxPart, MaxPart + 8, 65535, 65536, 1 << 20} {
			data := strings.Repeat("0123456", size/7+1)[:size]
			b := []byte(data)
			if err := c.Send(Text, b); err != nil {
				t.Fatal(err)
			}
			if string(b) != data {
				t.Errorf("%d bytes were changed", size)
			}
			want = append(want, data)
		}
		_ = c.Close(CloseNoCode, "nobody reads this")
		c.Finish()
		got := p.wait(t)
		if last := got[len(got)-1].String(); len(got) != len(want)+1 || last != `X""` {
			t.Fatalf("%d frames, the last is %s", len(got), last)
		}
		for i, data := range want {
			if got[i].payload != data {
				t.Errorf("%d bytes came out wrong", len(data))
			}
		}
	}
}

// What a peer has sent before it answers a close still comes, and pings are no longer answered.
func TestNextAfterClose(t *testing.T) {
	for _, isServer := range []bool{true, false} {
		here, there := newConns(t)
		c := (&Side{}).newConn(here, isServer, "")
		if err := c.Close(ClosePolicy, "enough"); err != nil {
			t.Fatal(err)
		}
		if w, err := readWire(there, !isServer); w.String() != `X1008"enough"` {
			t.Fatalf("got %v, %v", w, err)
		}
		if _, err := there.Write(encodeAll([]wire{text("late"), ping(""), closeFrame(4000, "so be it")}, isServer)); err != nil {
			t.Fatal(err)
		}
		part, err := c.Next()
		if string(part.Data) != "late" || err != nil {
			t.Errorf("got %q, %v", part.Data, err)
		}
		for range 2 {
			var closed *CloseError
			if _, err = c.Next(); !errors.As(err, &closed) || *closed != (CloseError{4000, "so be it"}) {
				t.Errorf("got %v", err)
			}
		}
		if isServer { // it closes first
			c.Finish()
			if rest, err := io.ReadAll(there); len(rest) > 0 || err != nil {
				t.Errorf("after the close came %q, %v", rest, err)
			}
			continue
		}
		finished := make(chan struct{})
		go func() { defer close(finished); c.Finish() }()
		_ = there.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := there.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the client does not wait for the server to close: %d, %v", n, err)
		}
		there.Close()
		waitFor(t, finished)
	}
}

// A peer that has broken the protocol and goes on sending still gets to read why.
func TestBrokenPeerReadsWhy(t *testing.T) {
	c, p := newPeer(t, &Side{}, true)
	junk := make([]byte, 1<<20)
	go func() { // the peer sends more than the buffers of the connection take before it reads
		_, _ = p.Write(append(wire{first: 0x83}.encode(true), junk...))
	}()
	if err := readAll(c); err.Error() != "the peer has broken the protocol: 1002 the opcode is reserved" {
		t.Errorf("got %v", err)
	}
	c.Finish()
	if got, want := show(p.wait(t)), `X1002"the opcode is reserved"`; got != want {
		t.Errorf("got %s, want %s (%v)", got, want, p.err)
	}
}

// What is silent, deaf or does not close is not waited for longer than the Side says.
func TestTimeouts(t *testing.T) {
	const soon = 100 * time.Millisecond
	for _, test := range []struct {
		name string
		side *Side
		run  func(c *Conn, there net.Conn) error
		want string
	}{
		{"silent", &Side{IdleTimeout: soon, CloseTimeout: soon}, func(c *Conn, _ net.Conn) error { return readAll(c) }, "no frame has come in time"},
		{"silent behind a ping", &Side{IdleTimeout: soon, PingInterval: soon / 4, CloseTimeout: soon}, func(c *Conn, p net.Conn) error {
			_, _ = p.Write(ping("").encode(true))
			return readAll(c)
		}, "no frame has come in time"},
		{"deaf", &Side{WriteTimeout: soon}, func(c *Conn, _ net.Conn) error {
			for {
				if err := c.Send(Binary, make([]byte, 1<<20)); err != nil {
					if second := c.Ping(); second == nil {
						err = errors.New("a ping goes out after half a frame")
					}
					if _, third := c.Next(); third.Error() != err.Error() {
						err = fmt.Errorf("Next: %w", third)
					}
					return err
				}
			}
		}, "i/o timeout"},
		{"sends a frame byte by byte", &Side{IdleTimeout: soon, CloseTimeout: soon}, func(c *Conn, there net.Conn) error {
			go func() {
				frame := bin(strings.Repeat("*", 1000)).encode(true)
				for err := error(nil); err == nil && len(frame) > 0; time.Sleep(soon / 10) {
					_, err = there.Write(frame[:1])
					frame = frame[1:]
				}
			}()
			return readAll(c)
		}, "no frame has come in time"},
		{"reads a frame bit by bit", &Side{WriteTimeout: soon}, func(c *Conn, there net.Conn) error {
			go func() {
				for err := error(nil); err == nil; time.Sleep(soon / 10) {
					_, err = there.Read(make([]byte, 64<<10))
				}
			}()
			return c.Send(Binary, make([]byte, 64<<20))
		}, "i/o timeout"},
		{"does not close", &Side{CloseTimeout: soon, IdleTimeout: time.Hour}, func(c *Conn, _ net.Conn) error {
			_ = c.Close(CloseNormal, "")
			c.Finish()
			_, err := c.Next()
			return err
		}, "the peer has not closed the connection in time"},
		{"does not close while it is read", &Side{CloseTimeout: soon}, func(c *Conn, _ net.Conn) error {
			go func() { _ = c.Close(CloseNormal, "") }()
			return readAll(c)
		}, "the peer has not closed the connection in time"},
		{"sends and does not close", &Side{CloseTimeout: soon}, func(c *Conn, there net.Conn) error {
			go func() {
				for err := error(nil); err == nil; {
					_, err = there.Write(text("more").encode(true))
				}
			}()
			_ = c.Close(CloseNormal, "")
			c.Finish()
			_, err := c.Next()
			return err
		}, "the peer has not closed the connection in time"},
		{"closes half", &Side{CloseTimeout: soon}, func(c *Conn, there net.Conn) error {
			_, _ = there.Write(wire{first: 0x83}.encode(true))
			err := readAll(c)
			c.Finish()
			return err
		}, "the peer has broken the protocol: 1002 the opcode is reserved"},
		{"gone", &Side{}, func(c *Conn, there net.Conn) error {
			there.Close()
			return readAll(c)
		}, "EOF"},
		{"aborted", &Side{}, func(c *Conn, _ net.Conn) error {
			go c.Abort()
			return readAll(c)
		}, "use of closed network connection"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			here, there := newConns(t)
			c := test.side.newConn(here, true, "")
			ended := make(chan error, 1)
			go func() {
				err := test.run(c, there)
				c.Finish()
				ended <- err
			}()
			if err := waitFor(t, ended); err == nil || !strings.HasSuffix(err.Error(), test.want) {
				t.Errorf("got %v, want …%s", err, test.want)
			}
			if _, err := here.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is not closed: %v", err)
			}
		})
	}
}

// A ping is sent each PingInterval, whatever comes meanwhile, and a peer that answers is not idle.
func TestPings(t *testing.T) {
	for _, isChatty := range []bool{false, true} {
		t.Run(fmt.Sprint("chatty=", isChatty), func(t *testing.T) {
			t.Parallel()
			c, p := newPeer(t, &Side{PingInterval: 20 * time.Millisecond, IdleTimeout: 500 * time.Millisecond}, true)
			ended := make(chan error, 1)
			go func() { ended <- readAll(c) }()
			began := time.Now()
			for answered := 0; answered < 5 || time.Since(began) < 2*c.side.IdleTimeout; {
				waittest.Eventually(t, patience, func() error {
					if isChatty {
						p.send(t, text("a"))
					}
					if pings := len(p.got()); pings <= answered {
						return fmt.Errorf("%d pings, %d of them answered", pings, answered)
					}
					return nil
				})
				if answered++; !isChatty {
					p.send(t, pong(""))
				}
			}
			pings := p.got()
			if most := int(time.Since(began)/c.side.PingInterval) + 1; len(pings) > most || pings[0].String() != `P""` {
				t.Errorf("%d pings, at most %d are due: %s", len(pings), most, show(pings[:1]))
			}
			p.send(t, bye)
			if err := waitFor(t, ended); err.Error() != `the peer has closed the connection: 1000 "bye"` {
				t.Error(err)
			}
			c.Finish()
		})
	}
}

// Messages, pings and a close that several goroutines send at once stay whole.
func TestManyWriters(t *testing.T) {
	c, p := newPeer(t, &Side{}, false)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 50 {
				if err := errors.Join(c.Send(Text, []byte(long)), c.Ping()); err != nil && !errors.Is(err, ErrQueueFull) {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for i := range 100 {
			if err := c.WritePart(Part{Kind: Binary, First: i%2 == 0, Last: i%2 == 1, Data: make([]byte, MaxPart)}); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	_ = c.Close(CloseNormal, "")
	c.Finish()
	count := make(map[string]int)
	var order strings.Builder
	for _, w := range p.wait(t) {
		count[w.String()]++
		if w.first&opcodeBits < opClose {
			order.WriteByte(w.String()[0])
		}
	}
	if count[`P""`] != 200 || count["b(16370)"] != 50 || count["C(16370)"] != 50 || count[`T"`+long+`"`] == 0 {
		t.Errorf("got %v", count)
	}
	if strings.Contains(order.String(), "bT") {
		t.Errorf("a message within another: %s", order.String())
	}
}

// A Conn that waits for a frame, or for the rest of a short one, has no large buffer.
func TestBuffersAreGivenBack(t *testing.T) {
	side := &Side{}
	c := side.newConn(&script{piece: 1 << 20}, true, "")
	conn := c.conn.(*script)
	for _, size := range []int{10, 1000, MaxPart, smallSize, 3 * MaxPart} {
		conn.say = append(bin(strings.Repeat("*", size)).encode(true), 0x82)
		for {
			part, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if part.Last {
				break
			}
		}
		_ = c.fill(2) // of which one byte is there
		if c.in.large != nil {
			t.Errorf("%d bytes: the buffer is still held", size)
		}
		c.in.from, c.in.to = 0, 0
	}
}

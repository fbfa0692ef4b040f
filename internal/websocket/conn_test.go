package websocket

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/websockettest"
)

// readAll calls Next until it fails, and returns the error.
func readAll(c *Conn) error {
	for {
		if _, err := c.Next(); err != nil {
			return err
		}
	}
}

// A last message stands before the close frame, and not within a text. A binary message ends where it is.
func TestCloseAfter(t *testing.T) {
	for name, want := range map[string]string{
		"between messages": `T"last" ` + goodbye,
		"within a binary":  `b"a" C"" T"last" ` + goodbye,
		"within a text":    `t"a" ` + goodbye,
		"after a close":    `X1001""`,
	} {
		for _, isServer := range []bool{true, false} {
			c, p := newPeer(t, &Side{}, isServer)
			var err error
			switch name {
			case "within a binary":
				err = c.WritePart(Part{Kind: Binary, First: true, Data: []byte("a")})
			case "within a text":
				err = c.WritePart(Part{Kind: Text, First: true, Data: []byte("a")})
			case "after a close":
				err = c.Close(CloseGoingAway, "")
			}
			if err = errors.Join(err, c.CloseAfter([]byte("last"), CloseNormal, "bye")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := c.WritePart(Part{Kind: Binary, Last: true}); !errors.Is(err, ErrClosing) {
				t.Errorf("%s: WritePart after it: %v", name, err)
			}
			c.Finish()
			if got := show(p.Wait(t)); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
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
			c.writeControl(opPing, nil),
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
		if got := show(p.Wait(t)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		for name, err := range map[string]error{
			"WritePart": c.WritePart(Part{Kind: Text, First: true}), "Send": c.Send(Text, nil), "a ping": c.writeControl(opPing, nil),
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
	if err := c.Send(Text, data); err != nil { // there is room again, but it will be lost
		t.Fatal(err)
	}
	if err := c.Close(CloseTryAgain, ""); err != nil {
		t.Fatal(err)
	}
	c.Finish()
	want := `t"a" C"" ` + strings.Repeat("T(1000) ", sent) + `t"" X1013""`
	got := p.Wait(t)
	if show(got) != want {
		t.Errorf("got %s, want %s", show(got), want)
	}
	if strings.Contains(got[2].Payload, "!") {
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
	if got, want := show(p.Wait(t)), `t"" C"" X1000""`; got != want {
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
		got := p.Wait(t)
		if last := got[len(got)-1].String(); len(got) != len(want)+1 || last != `X""` {
			t.Fatalf("%d frames, the last is %s", len(got), last)
		}
		for i, data := range want {
			if got[i].Payload != data {
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
		if w, err := websockettest.Read(there, !isServer); w.String() != `X1008"enough"` {
			t.Fatalf("got %v, %v", w, err)
		}
		if _, err := there.Write(websockettest.EncodeAll([]wire{text("late"), ping(""), closeFrame(4000, "so be it")}, isServer)); err != nil {
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

// A peer that has broken the protocol can send to the end what it is sending, and still gets to read why.
func TestBrokenPeerReadsWhy(t *testing.T) {
	here, there := newConns(t)
	c := (&Side{CloseTimeout: patience}).newConn(here, true, "")
	sent := make(chan error, 1)
	go func() { // more than the buffers of the connection take, before it reads anything
		_, err := there.Write(append(wire{First: 0x83}.Encode(true), make([]byte, 32<<20)...))
		sent <- err
	}()
	if err := readAll(c); err.Error() != "the peer has broken the protocol: 1002 the opcode is reserved" {
		t.Errorf("got %v", err)
	}
	finished := make(chan struct{})
	go func() { defer close(finished); c.Finish() }()
	if err := waitFor(t, sent); err != nil {
		t.Error(err)
	}
	if w, err := websockettest.Read(there, false); w.String() != `X1002"the opcode is reserved"` {
		t.Errorf("got %s, %v", w, err)
	}
	if n, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the close came %d bytes, %v", n, err)
	}
	there.Close()
	waitFor(t, finished)
}

// limit is the timeout in timeouts.
const limit = time.Second

// hears has a peer read what comes, and says has it write a frame, at some time.
var (
	hears = func(p net.Conn) { go func() { _, _ = io.Copy(io.Discard, p) }() }
	says  = func(p net.Conn, w wire) { go func() { _, _ = p.Write(w.Encode(true)) }() }
)

var timeouts = []struct {
	name  string
	side  *Side
	run   func(c *Conn, p net.Conn) error
	after time.Duration
	want  string
}{
	{"silent", &Side{IdleTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		return readAll(c)
	}, limit, "no frame has come in time"},
	{"silent behind a ping", &Side{IdleTimeout: limit, PingInterval: limit / 4}, func(c *Conn, p net.Conn) error {
		hears(p)
		says(p, ping(""))
		return readAll(c)
	}, limit, "no frame has come in time"},
	{"silent and deaf", &Side{IdleTimeout: limit, WriteTimeout: 2 * limit}, func(c *Conn, _ net.Conn) error {
		return readAll(c)
	}, 3 * limit, "no frame has come in time"},
	{"sends a frame byte by byte", &Side{IdleTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		go func() {
			frame := bin(strings.Repeat("*", 1000)).Encode(true)
			for err := error(nil); err == nil && len(frame) > 0; time.Sleep(limit / 10) {
				_, err = p.Write(frame[:1])
				frame = frame[1:]
			}
		}()
		return readAll(c)
	}, limit, "no frame has come in time"},
	{"takes its time for each part", &Side{IdleTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		go func() {
			frame := bin(strings.Repeat("*", 3*MaxPart)).Encode(true)
			for err := error(nil); err == nil && len(frame) > 0; time.Sleep(limit * 3 / 4) {
				n := min(len(frame), MaxPart)
				_, err = p.Write(frame[:n])
				frame = frame[n:]
			}
		}()
		return readAll(c)
	}, 3*limit*3/4 + limit, "no frame has come in time"},
	{"deaf", &Side{WriteTimeout: limit}, func(c *Conn, _ net.Conn) error {
		err := c.Send(Text, []byte("a"))
		if second := c.writeControl(opPing, nil); second == nil || second.Error() != err.Error() {
			return fmt.Errorf("a ping: %w", second)
		}
		if _, third := c.Next(); third.Error() != err.Error() {
			return fmt.Errorf("Next: %w", third)
		}
		return err
	}, limit, "writing: write pipe: i/o timeout"},
	{"reads a frame bit by bit", &Side{WriteTimeout: limit}, func(c *Conn, p net.Conn) error {
		go func() {
			for err := error(nil); err == nil; time.Sleep(limit / 10) {
				_, err = p.Read(make([]byte, MaxPart))
			}
		}()
		return c.Send(Binary, make([]byte, 100*MaxPart))
	}, limit, "writing: write pipe: i/o timeout"},
	{"does not close", &Side{CloseTimeout: limit, IdleTimeout: time.Hour}, func(c *Conn, p net.Conn) error {
		hears(p)
		_ = c.Close(CloseNormal, "")
		c.Finish()
		_, err := c.Next()
		return err
	}, limit, "the peer has not closed the connection in time"},
	{"does not close while it is read", &Side{CloseTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		time.AfterFunc(limit, func() { _ = c.Close(CloseNormal, "") })
		return readAll(c)
	}, 2 * limit, "the peer has not closed the connection in time"},
	{"sends and does not close", &Side{CloseTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		go func() {
			for err := error(nil); err == nil; time.Sleep(limit / 10) {
				_, err = p.Write(text("more").Encode(true))
			}
		}()
		_ = c.Close(CloseNormal, "")
		c.Finish()
		_, err := c.Next()
		return err
	}, limit, "the peer has not closed the connection in time"},
	{"breaks the protocol and stays", &Side{CloseTimeout: limit}, func(c *Conn, p net.Conn) error {
		hears(p)
		says(p, wire{First: 0x83})
		err := readAll(c)
		c.Finish()
		return err
	}, limit, "the peer has broken the protocol: 1002 the opcode is reserved"},
	{"gone", &Side{}, func(c *Conn, p net.Conn) error {
		p.Close()
		return readAll(c)
	}, 0, "io: read/write on closed pipe"},
	{"aborted", &Side{}, func(c *Conn, _ net.Conn) error {
		time.AfterFunc(limit, c.Abort)
		return readAll(c)
	}, limit, "use of closed network connection"},
}

// What is silent, deaf or does not close is not waited for longer than the Side says.
func TestTimeouts(t *testing.T) {
	for _, test := range timeouts {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				defer time.Sleep(limit) // in which the peer ends
				defer there.Close()
				c := test.side.newConn(here, true, "")
				began := time.Now()
				if err := test.run(c, there); err == nil || err.Error() != test.want {
					t.Errorf("got %v, want %s", err, test.want)
				}
				if got := time.Since(began); got != test.after {
					t.Errorf("it takes %s, want %s", got, test.after)
				}
				c.Finish()
				if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is not closed: %v", err)
				}
			})
		})
	}
}

// A ping is sent each PingInterval, whatever comes meanwhile, and a peer that answers is not idle.
func TestPings(t *testing.T) {
	const interval = 25 * time.Second
	for _, test := range []struct {
		name    string
		answers bool
		every   time.Duration // it sends a message; 0: never
		lasts   time.Duration // until the connection is closed
		pings   int
		want    string
	}{
		{"answers", true, 0, 605 * time.Second, 24, `the peer has closed the connection: 1000 "bye"`},
		{"talks", false, 3 * time.Second, 605 * time.Second, 24, `the peer has closed the connection: 1000 "bye"`},
		{"talks without a pause", true, 100 * time.Millisecond, 605 * time.Second, 24, `the peer has closed the connection: 1000 "bye"`},
		{"is silent", false, 0, time.Minute, 2, "no frame has come in time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := newPiped(&Side{PingInterval: interval, IdleTimeout: time.Minute}, true)
				ended := make(chan error, 1)
				began := time.Now()
				go func() {
					ended <- readAll(c)
					c.Finish()
				}()
				for answered := 0; time.Since(began) < test.lasts; {
					time.Sleep(cmp.Or(test.every, time.Second))
					if test.every > 0 {
						p.Send(t, text("a"))
					}
					if test.answers && len(p.Got()) > answered {
						answered++
						p.Send(t, pong(""))
					}
				}
				if test.lasts > time.Minute {
					p.Send(t, bye)
				}
				if err := <-ended; err.Error() != test.want {
					t.Errorf("got %v, want %s", err, test.want)
				}
				if got := strings.Count(show(p.Wait(t)), `P""`); got != test.pings {
					t.Errorf("got %d pings, want %d", got, test.pings)
				}
			})
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
				if err := errors.Join(c.Send(Text, []byte(long)), c.writeControl(opPing, nil)); err != nil && !errors.Is(err, ErrQueueFull) {
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
	for _, w := range p.Wait(t) {
		count[w.String()]++
		if w.First&opcodeBits < opClose {
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

// A Conn that waits for a message, or for the rest of a short one, has no large buffer, nor has one that has ended.
func TestBuffersAreGivenBack(t *testing.T) {
	side := &Side{}
	c := side.newConn(&script{piece: 1 << 20}, true, "")
	conn := c.conn.(*script)
	for _, size := range []int{10, 1000, MaxPart, smallSize, 3 * MaxPart} {
		conn.say = append(bin(strings.Repeat("*", size)).Encode(true), 0x82)
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
	conn.say = begin(strings.Repeat("*", MaxPart)).Encode(true)
	if part, err := c.Next(); len(part.Data) != MaxPart || c.in.large == nil {
		t.Errorf("got %d bytes, %v", len(part.Data), err)
	}
	if _, err := c.Next(); c.in.large != nil {
		t.Errorf("after %v the buffer is still held", err)
	}
}

package websocket

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// A Relay carries messages between a client and a server until both connections have ended. Either may be closed from
// elsewhere. To close both, close the client first: the code with which one side answers is forwarded to the other, if
// that was not yet closed, without the reason.
type Relay struct {
	Client *Conn // accepted
	Server *Conn // dialled

	// FromClient is called with each part that comes from the client, and sends to the server what is to be sent; nil
	// passes all on. If it returns an error, which Run then returns, both sides are closed, with the code and reason of
	// the error if it is a *CloseError, and what still comes from the client is dropped. An error of writing to a server
	// that is closing or gone does not count: the end of the server's own direction tells why.
	FromClient func(Part) error
	// FromServer is called with each part that comes from the server, and does the same in the other direction.
	FromServer func(Part) error

	// ClientEnded is called when nothing more comes from the client, with the error that Next has returned. It must close
	// the server, now or later. nil closes it at once, with the client's code and reason, or with CloseGoingAway if the
	// client has sent none.
	ClientEnded func(error)
	// ServerEnded is called when nothing more comes from the server, and must close the client. nil closes it at once,
	// with the server's code and reason, or with CloseInternal.
	ServerEnded func(error)
}

// A direction of a Relay is what comes from one side. Each side is told a code of its own if the other is lost.
type direction struct {
	from, to         *Conn
	fromCode, toCode Code
	pass             func(Part) error
	ended            func(error)
	panicked         string // what with, and where; "" if nothing has
}

// Run carries messages, each direction in a goroutine of its own, until both sides are closed, and closes their
// connections. It returns why each has ended: what Next has returned, or FromClient or FromServer before. If one of the
// functions panics, both connections are cut and, when both directions have ended, Run panics in its place.
func (r *Relay) Run() (client, server error) {
	const clientCode, serverCode = CloseInternal, CloseGoingAway
	fromClient := direction{r.Client, r.Server, clientCode, serverCode, r.FromClient, r.ClientEnded, ""}
	fromServer := direction{r.Server, r.Client, serverCode, clientCode, r.FromServer, r.ServerEnded, ""}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server = fromServer.run()
	}()
	client = fromClient.run()
	<-done
	for _, d := range []*direction{&fromClient, &fromServer} {
		if d.panicked != "" {
			panic(d.panicked)
		}
	}
	return client, server
}

func (d *direction) run() error {
	defer d.from.Finish()
	defer d.catch() // before Finish, which need not wait then
	pass := d.pass
	if pass == nil {
		pass = d.to.WritePart
	}
	var refusal error
	for {
		part, err := d.from.Next()
		if err != nil {
			d.end(err)
			if refusal != nil {
				return refusal
			}
			return err
		}
		if refusal == nil {
			refusal = d.refuse(pass(part))
		}
	}
}

// catch is deferred, and keeps a panic for the caller of Run: in another goroutine it would end the process.
func (d *direction) catch() {
	if p := recover(); p != nil {
		d.panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
		d.from.Abort()
		d.to.Abort()
	}
}

// end does what is to be done when nothing more comes.
func (d *direction) end(err error) {
	if d.ended != nil {
		d.ended(err)
		return
	}
	code, reason := Forward(err, d.toCode)
	_ = d.to.Close(code, reason)
}

// refuse closes both sides because of an error of the function that passes parts on, unless that does not count.
func (d *direction) refuse(err error) error {
	if err == nil {
		return nil
	}
	var closed *CloseError
	if d.to.isOver() && !errors.As(err, &closed) {
		return nil
	}
	code, reason := Forward(err, d.fromCode) // first: what to answers to its close frame would be forwarded
	_ = d.from.Close(code, reason)
	code, reason = Forward(err, d.toCode)
	_ = d.to.Close(code, reason)
	return err
}

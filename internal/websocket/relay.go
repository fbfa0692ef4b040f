package websocket

// A Relay carries messages between a client and a server until both connections have ended.
type Relay struct {
	Client *Conn // accepted
	Server *Conn // dialled

	// FromClient is called with each part that comes from the client, and sends to the server what is to be sent. If it
	// is nil, all is passed on. After an error, which Run returns, both sides are closed: with its code and reason if
	// it is a *CloseError. What still comes from the client is dropped then.
	FromClient func(Part) error
	// FromServer is called with each part that comes from the server, and does the same in the other direction.
	FromServer func(Part) error

	// ClientEnded is called when nothing more comes from the client, with the error that Next has returned. It sees to
	// it that the server is closed. If it is nil, that is done at once, with the client's code and reason, or with
	// CloseGoingAway if it has sent none.
	ClientEnded func(error)
	// ServerEnded is called when nothing more comes from the server. If it is nil, the client is closed with the
	// server's code and reason, or with CloseInternal.
	ServerEnded func(error)
}

// A direction of a Relay is what comes from one side.
type direction struct {
	from, to *Conn
	pass     func(Part) error
	ended    func(error)
	lost     Code // for to, if from has sent none
}

// Run carries messages, each direction in a goroutine of its own, until both sides are closed, and closes their
// connections. It returns why each has ended: what Next has returned, or FromClient or FromServer before.
func (r *Relay) Run() (client, server error) {
	fromClient := direction{r.Client, r.Server, r.FromClient, r.ClientEnded, CloseGoingAway}
	fromServer := direction{r.Server, r.Client, r.FromServer, r.ServerEnded, CloseInternal}
	done := make(chan error, 1)
	go func() { done <- fromServer.run() }()
	client = fromClient.run()
	return client, <-done
}

func (d *direction) run() error {
	pass := d.pass
	if pass == nil {
		pass = d.to.WritePart
	}
	var refused error
	for {
		part, err := d.from.Next()
		switch {
		case err != nil:
			d.end(err)
			d.from.Finish()
			if refused != nil {
				return refused
			}
			return err
		case refused == nil:
			if refused = pass(part); refused != nil {
				d.refuse(refused)
			}
		}
	}
}

// end does what is to be done when nothing more comes.
func (d *direction) end(err error) {
	if d.ended != nil {
		d.ended(err)
		return
	}
	code, reason := Forward(err, d.lost)
	_ = d.to.Close(code, reason)
}

// refuse closes both sides because a part could not be passed on.
func (d *direction) refuse(err error) {
	code, reason := Forward(err, d.lost)
	_ = d.to.Close(code, reason)
	code, reason = Forward(err, CloseInternal)
	_ = d.from.Close(code, reason)
}

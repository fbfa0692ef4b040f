package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	maxPending  = 4096                  // commands that wait to be sent or for their reply
	redialPause = 10 * time.Millisecond // from one attempt to connect to the next
	// When a command's time runs out its connection may lead nowhere, or Redis may just be slow and others have the time
	// to wait. So it is closed once nothing at all comes over it for so much longer.
	silenceLeft = 600 * time.Millisecond
)

var (
	errPipelineFull   = errors.New("too many commands wait for Redis")
	errPipelineClosed = errors.New("connection closed")
	errNoReply        = errors.New("no reply in time")
	errUnasked        = errors.New("a reply that nobody waits for")
)

// pipeline shares one connection to Redis among all its callers. One goroutine sends what they have for it, all that has
// come up meanwhile at once, and another hands out the replies, which come in the same order: one system call serves many
// (https://redis.io/docs/latest/develop/using-commands/pipelining/). It is not for commands that block or are large: all
// others would wait for them.
//
// A connection that breaks is replaced at once. What was sent over it and not answered fails, and Redis may or may not
// have carried it out; what was not sent yet goes over the next.
type pipeline struct {
	dial  func(context.Context) (redis.Conn, error)
	close func() // ends the pipeline with all that still waits, and its goroutines

	mu       sync.Mutex
	waiting  []*command // not sent yet
	sent     []*command // from first on, those whose reply is to come, oldest first; nil: nobody waits for it any more
	first    int
	replies  uint64        // that have come
	conn     redis.Conn    // nil: none
	broken   bool          // conn is of no use any more
	sleeping bool          // the sender waits for wake
	wake     chan struct{} // holds one
	closed   bool
	sweep    *time.Timer // calls expire
	sweepAt  time.Time   // no later than the first deadline; zero: nothing waits
	closeAt  time.Time   // conn is closed then if there are no more replies than closeIf; zero: there is no doubt of it
	closeIf  uint64
}

// command is one command and what comes of it.
type command struct {
	name     string
	args     []any
	deadline time.Time
	reply    any
	err      error
	done     chan struct{} // holds one, when there is a reply or an error
}

// commands are those that nobody uses.
var commands = sync.Pool{New: func() any { return &command{done: make(chan struct{}, 1)} }}

// newPipeline returns a pipeline over connections that dial makes, which must have no timeouts of their own.
func newPipeline(dial func(context.Context) (redis.Conn, error)) *pipeline {
	p := &pipeline{dial: dial, wake: make(chan struct{}, 1)}
	p.sweep = time.AfterFunc(time.Hour, p.expire)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.run(ctx) })
	p.close = func() {
		p.mu.Lock()
		p.closed = true
		p.rouse()
		conn := p.conn
		p.mu.Unlock()
		cancel()
		if conn != nil { // the sender may be stuck in a write
			conn.Close()
		}
		running.Wait()
		p.sweep.Stop()
	}
	return p
}

// do sends a command, whose arguments are first and then more, and returns its reply. The error is a redis.Error where
// Redis refuses it. Any other means that no reply came before deadline: Redis may or may not have carried the command out.
func (p *pipeline) do(deadline time.Time, name string, first []any, more ...any) (any, error) {
	c := commands.Get().(*command)
	c.name, c.deadline = name, deadline
	c.args = append(append(c.args[:0], first...), more...)
	if err := p.enqueue(c); err != nil {
		return nil, err
	}
	<-c.done
	reply, err := c.reply, c.err
	if err == nil { // else the sender may have it yet
		c.reply = nil
		commands.Put(c)
	}
	return reply, err
}

func (p *pipeline) enqueue(c *command) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return errPipelineClosed
	case p.owing() >= maxPending:
		return errPipelineFull
	}
	p.waiting = append(p.waiting, c)
	if p.sweepAt.IsZero() || c.deadline.Before(p.sweepAt) {
		p.sweepAt = c.deadline
		p.sweep.Reset(time.Until(c.deadline))
	}
	p.rouse()
	return nil
}

// pending is how many commands wait.
func (p *pipeline) pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.owing()
}

func (p *pipeline) owing() int { return len(p.waiting) + len(p.sent) - p.first }

// rouse wakes the sender. The caller holds p.mu, here and below where it says so.
func (p *pipeline) rouse() {
	if p.sleeping {
		p.sleeping = false
		p.wake <- struct{}{}
	}
}

// work waits until there is something to send, and returns false where there is no connection to send it over any more.
func (p *pipeline) work() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.waiting) == 0 && !p.broken && !p.closed {
		p.sleeping = true
		p.mu.Unlock()
		<-p.wake
		p.mu.Lock()
	}
	return !p.broken && !p.closed
}

// run keeps the pipeline connected until ctx is done. After a connection that was of no use it waits for the next
// command before it tries again.
func (p *pipeline) run(ctx context.Context) {
	for ctx.Err() == nil {
		next := time.Now().Add(redialPause)
		conn, err := p.dial(ctx)
		if err == nil {
			err = p.serve(conn)
		} else {
			fail(p.unsent(), fmt.Errorf("connect: %v", err)) // no redis.Error, which would be the reply to a command
		}
		if err != nil {
			p.work()
		}
		time.Sleep(time.Until(next))
	}
	fail(p.unsent(), errPipelineClosed)
}

// unsent takes away all that waits to be sent.
func (p *pipeline) unsent() []*command {
	p.mu.Lock()
	defer p.mu.Unlock()
	commands := p.waiting
	p.waiting = nil
	return commands
}

// serve sends over conn until that breaks or the pipeline is closed. It returns an error where nothing came over it.
func (p *pipeline) serve(conn redis.Conn) error {
	p.mu.Lock()
	p.conn = conn
	replies := p.replies
	p.mu.Unlock()
	var broke error
	var receiver sync.WaitGroup
	receiver.Go(func() { broke = p.receive(conn) })
	var batch []*command
	for p.work() {
		p.gather()
		p.mu.Lock()
		batch, p.waiting = p.waiting, batch[:0]
		p.owe(batch)
		p.mu.Unlock()
		for _, c := range batch { // an error breaks the connection: receive tells
			_ = conn.Send(c.name, c.args...)
		}
		_ = conn.Flush()
	}
	conn.Close()
	receiver.Wait()

	p.mu.Lock()
	lost, useless := p.sent[p.first:], p.replies == replies
	p.sent, p.first, p.conn, p.broken, p.closeAt = nil, 0, nil, false, time.Time{}
	p.mu.Unlock()
	fail(lost, fmt.Errorf("connection lost: %v", broke))
	if useless {
		return broke
	}
	return nil
}

// owe adds to sent, in place as long as there is room. The caller holds p.mu.
func (p *pipeline) owe(batch []*command) {
	if p.first > 0 && len(p.sent)+len(batch) > cap(p.sent) {
		p.sent = p.sent[:copy(p.sent, p.sent[p.first:])]
		p.first = 0
	}
	p.sent = append(p.sent, batch...)
}

// gather lets callers that are about to come do so, which makes one write worth more.
func (p *pipeline) gather() {
	for before, now := 0, 1; now > before; {
		before = now
		runtime.Gosched()
		p.mu.Lock()
		now = len(p.waiting)
		p.mu.Unlock()
	}
}

// receive hands out the replies that come over conn until it breaks, and returns why it did.
func (p *pipeline) receive(conn redis.Conn) error {
	defer func() {
		p.mu.Lock()
		p.broken = true
		p.rouse()
		p.mu.Unlock()
	}()
	for {
		reply, err := conn.Receive()
		refused, answered := err.(redis.Error)
		if err != nil && !answered {
			return err
		}
		p.mu.Lock()
		if p.first == len(p.sent) { // as when Redis has too many clients
			p.mu.Unlock()
			return fmt.Errorf("%w: %v", errUnasked, err)
		}
		c := p.sent[p.first]
		p.sent[p.first] = nil
		if p.first++; p.first == len(p.sent) {
			p.sent, p.first = p.sent[:0], 0
		}
		p.replies++
		p.mu.Unlock()
		if c != nil {
			c.reply, c.err = reply, err
			c.done <- struct{}{}
		}
		if answered && strings.Contains(string(refused), "READONLY") {
			return err // a Redis that was demoted stays so for this connection
		}
	}
}

// expire fails the commands whose deadline has come, and closes a connection that has been silent for too long.
func (p *pipeline) expire() {
	now := time.Now()
	var expired []*command
	var silent redis.Conn
	p.mu.Lock()
	p.sweepAt = time.Time{}
	sweep := func(at time.Time) {
		if p.sweepAt.IsZero() || at.Before(p.sweepAt) {
			p.sweepAt = at
		}
	}
	due := func(c *command) bool {
		if c.deadline.After(now) {
			sweep(c.deadline)
			return false
		}
		expired = append(expired, c)
		return true
	}
	waiting := p.waiting[:0]
	for _, c := range p.waiting {
		if !due(c) {
			waiting = append(waiting, c)
		}
	}
	p.waiting = waiting
	for i := p.first; i < len(p.sent); i++ {
		if c := p.sent[i]; c != nil && due(c) {
			p.sent[i] = nil
		}
	}
	switch {
	case p.first == len(p.sent) || p.sent[p.first] != nil: // the reply that is due next is in time
		p.closeAt = time.Time{}
	case p.closeAt.IsZero() || p.replies > p.closeIf:
		p.closeAt, p.closeIf = now.Add(silenceLeft), p.replies
		sweep(p.closeAt)
	case p.closeAt.After(now):
		sweep(p.closeAt)
	default:
		silent = p.conn
	}
	if !p.sweepAt.IsZero() {
		p.sweep.Reset(p.sweepAt.Sub(now))
	}
	p.mu.Unlock()
	fail(expired, errNoReply)
	if silent != nil {
		silent.Close()
	}
}

// fail gives err to all of list that somebody waits for.
func fail(list []*command, err error) {
	for _, c := range list {
		if c != nil {
			c.err = err
			c.done <- struct{}{}
		}
	}
}

package redisdb

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
	maxPending  = 4096                  // commands of one connection that wait to be sent or for their reply
	maxWait     = 900                   // ms, of WAIT, during which the connection does nothing else
	redialPause = 10 * time.Millisecond // at least, from one attempt to connect to the next

	// A timed-out command does not prove that the connection is dead; Redis may be slow. The connection is closed only
	// if no reply at all arrives for another silenceTimeout.
	silenceTimeout = 600 * time.Millisecond
)

var (
	errTooManyPending = errors.New("too many commands wait for Redis")
	errConnClosed     = errors.New("connection closed")
	errNoReply        = errors.New("no reply in time")
	errUnexpected     = errors.New("a reply without a command")
	errTooFewReplicas = errors.New("written, but too few replicas have it")
)

// unsentError wraps the reason why a command was not sent: Redis has certainly not executed it. Where there are several
// servers, the command is sent again. That is why errTooManyPending of a shared connection is not wrapped, though the
// command was not sent either: it would only add to the commands that wait.
type unsentError struct{ err error }

func (e unsentError) Error() string { return e.err.Error() }
func (e unsentError) Unwrap() error { return e.err }

// sharedConn is one connection to Redis that all callers share. A writer sends, in one system call, all commands that
// have come since its last one, and a reader hands out the replies, which come in the same order
// (https://redis.io/docs/latest/develop/using-commands/pipelining/). Two to three times as many commands a second pass
// through it as through a pooled connection for each caller. A command that blocks or is large would delay all others:
// it does not belong here.
//
// A connection that breaks is replaced immediately. Commands that were sent over it and got no reply fail: Redis may or
// may not have executed them. Commands that were not sent yet are sent over the next one.
type sharedConn struct {
	dial     func(context.Context) (redis.Conn, error)
	replicas int  // that must have a write before its reply counts; 0: Redis replicates when it likes
	isLazy   bool // the first connection is made when the first command comes
	cancel   context.CancelFunc
	loops    sync.WaitGroup
	free     sync.Pool     // of *pendingCommand
	wake     chan struct{} // wakes the writer; has room for one

	mu       sync.Mutex        // guards the fields below
	queued   []*pendingCommand // not sent yet
	marked   bool              // queued has commands that need more than one reply
	inFlight commandQueue      // sent, oldest first; nil: expired, its reply is to be dropped
	held     []*pendingCommand // replied, but the replicas may not have them yet
	replies  uint64            // received over all connections
	conn     redis.Conn        // nil while there is no connection
	broken   bool              // conn must be replaced
	sleeping bool              // the writer waits for wake
	closed   bool
	stall    stallDetector
	expiry   *time.Timer // calls expire
	expiryAt time.Time   // when it does; zero: nothing waits
}

// pendingCommand is a command on its way: queued → in flight → replied, expired or lost. Whichever of the last three
// comes first sets reply and err and signals done, once.
type pendingCommand struct {
	name     string
	args     []any
	kind     kind
	deadline time.Time
	reply    any
	err      error
	done     chan struct{} // has room for one
}

// These stand in inFlight for replies that are due and that nobody waits for. They have no channel.
var (
	askingReply = new(pendingCommand) // of ASKING; its command follows
	waitReply   = new(pendingCommand) // of WAIT, which covers all writes before it
)

// newSharedConn returns a sharedConn over connections that dial makes, which must have no timeouts of their own. A
// write succeeds once that number of replicas have it. The first connection is made at once.
func newSharedConn(replicas int, dial func(context.Context) (redis.Conn, error)) *sharedConn {
	return startSharedConn(&sharedConn{dial: dial, replicas: replicas})
}

// newLazyConn does what newSharedConn does, but makes the first connection when the first command comes, and does not
// wait for replicas.
func newLazyConn(dial func(context.Context) (redis.Conn, error)) *sharedConn {
	return startSharedConn(&sharedConn{dial: dial, isLazy: true})
}

func startSharedConn(s *sharedConn) *sharedConn {
	s.wake = make(chan struct{}, 1)
	s.free.New = func() any { return &pendingCommand{done: make(chan struct{}, 1)} }
	s.expiry = time.AfterFunc(time.Hour, s.expire)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.loops.Go(func() { s.connectLoop(ctx) })
	return s
}

// close ends the connection and fails all commands that still wait.
func (s *sharedConn) close() {
	s.mu.Lock()
	s.closed = true
	s.wakeWriter()
	conn := s.conn
	s.mu.Unlock()
	s.cancel()
	if conn != nil { // the writer may be blocked in a write
		conn.Close()
	}
	s.loops.Wait()
	s.expiry.Stop()
}

// do sends a command and returns its reply. The error is a redis.Error if Redis refuses the command, and an unsentError
// or errTooManyPending if it was not sent. Any other error means that no reply came before deadline: Redis may or may
// not have executed the command. The caller must not change args before do returns. After any other error they must
// never be changed.
func (s *sharedConn) do(deadline time.Time, name string, args []any, kind kind) (any, error) {
	return s.doQueued(deadline, name, args, kind, nil)
}

// doQueued does what do does, and calls queued, unless that is nil, when all commands that are queued from then on are
// sent after this one.
func (s *sharedConn) doQueued(deadline time.Time, name string, args []any, kind kind, queued func()) (any, error) {
	c := s.free.Get().(*pendingCommand)
	c.name, c.args, c.kind, c.deadline = name, args, kind, deadline
	if err := s.enqueue(c); err != nil {
		return nil, err
	}
	if queued != nil {
		queued()
	}
	<-c.done
	reply, err := c.reply, c.err
	if err == nil { // after an error the writer or the reader may still hold c
		c.reply, c.args = nil, nil
		s.free.Put(c)
	}
	return reply, err
}

// enqueue hands c to the writer. The error is an unsentError or errTooManyPending.
func (s *sharedConn) enqueue(c *pendingCommand) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return unsentError{errConnClosed}
	case len(s.queued)+len(s.inFlight) >= maxPending:
		return errTooManyPending
	}
	if s.replicas == 0 {
		c.kind &^= kindWrite
	}
	s.marked = s.marked || c.kind&(kindAsking|kindWrite) != 0
	s.queued = append(s.queued, c)
	if s.expiryAt.IsZero() || c.deadline.Before(s.expiryAt) {
		s.expiryAt = c.deadline
		s.expiry.Reset(time.Until(c.deadline))
	}
	s.wakeWriter()
	return nil
}

// pending returns how many commands wait to be sent or for their reply.
func (s *sharedConn) pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queued) + len(s.inFlight)
}

// wakeWriter wakes the writer if it sleeps. The caller holds s.mu.
func (s *sharedConn) wakeWriter() {
	if s.sleeping {
		s.sleeping = false
		s.wake <- struct{}{}
	}
}

// waitForWork waits until a command is queued. It reports false if the connection is broken or closed.
func (s *sharedConn) waitForWork() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queued) == 0 && !s.broken && !s.closed {
		s.sleeping = true
		s.mu.Unlock()
		<-s.wake
		s.mu.Lock()
	}
	return !s.broken && !s.closed
}

// connectLoop keeps a connection until ctx is done. After one that carried no reply it waits for the next command
// before it dials again.
func (s *sharedConn) connectLoop(ctx context.Context) {
	if s.isLazy {
		s.waitForWork()
	}
	for ctx.Err() == nil {
		next := time.Now().Add(redialPause)
		conn, err := s.dial(ctx)
		if err == nil {
			err = s.writeLoop(conn)
		} else {
			// Not %w: a redis.Error would be taken for the reply to each command.
			failAll(s.takeQueued(), unsentError{fmt.Errorf("connect: %v", err)})
		}
		if err != nil {
			s.waitForWork()
		}
		sleep(ctx, time.Until(next))
	}
	failAll(s.takeQueued(), unsentError{errConnClosed})
}

// takeQueued removes and returns the commands that were not sent yet.
func (s *sharedConn) takeQueued() []*pendingCommand {
	s.mu.Lock()
	defer s.mu.Unlock()
	commands := s.queued
	s.queued = nil
	return commands
}

// writeLoop sends over conn until it breaks or s is closed. It returns an error if no reply came over it.
func (s *sharedConn) writeLoop(conn redis.Conn) error {
	s.mu.Lock()
	s.conn = conn
	repliesBefore := s.replies
	s.mu.Unlock()
	var readErr error
	var reader sync.WaitGroup
	reader.Go(func() { readErr = s.readLoop(conn) })
	var batch []*pendingCommand
	for s.waitForWork() {
		s.yieldForBatch()
		s.mu.Lock()
		batch, s.queued = s.queued, batch[:0]
		wait := s.pushBatch(batch)
		s.mu.Unlock()
		for _, c := range batch { // an error of Send or Flush ends readLoop as well, which reports it
			if c.kind&kindAsking != 0 {
				_ = conn.Send("ASKING")
			}
			_ = conn.Send(c.name, c.args...)
		}
		if !wait.IsZero() {
			_ = conn.Send("WAIT", s.replicas, min(max(time.Until(wait).Milliseconds(), 1), maxWait))
		}
		_ = conn.Flush()
	}
	conn.Close()
	reader.Wait()

	s.mu.Lock()
	lost, useless := append(s.held, s.inFlight...), s.replies == repliesBefore
	s.held, s.inFlight = nil, nil
	s.conn, s.broken, s.stall = nil, false, stallDetector{}
	s.mu.Unlock()
	failAll(lost, fmt.Errorf("connection lost: %v", readErr))
	if useless {
		return readErr
	}
	return nil
}

// pushBatch puts a batch in flight. If replicas must have some of its writes, it returns the last deadline of these:
// one WAIT after the batch, until then, serves them all. The caller holds s.mu.
func (s *sharedConn) pushBatch(batch []*pendingCommand) (wait time.Time) {
	if !s.marked {
		s.inFlight = append(s.inFlight, batch...)
		return wait
	}
	s.marked = false
	for _, c := range batch {
		if c.kind&kindAsking != 0 {
			s.inFlight = append(s.inFlight, askingReply)
		}
		s.inFlight = append(s.inFlight, c)
		if c.kind&kindWrite != 0 && c.deadline.After(wait) {
			wait = c.deadline
		}
	}
	if !wait.IsZero() {
		s.inFlight = append(s.inFlight, waitReply)
	}
	return wait
}

// yieldForBatch lets callers that are about to queue a command do so: the larger the batch, the cheaper each command.
func (s *sharedConn) yieldForBatch() {
	for before, now := 0, 1; now > before; {
		before = now
		runtime.Gosched()
		s.mu.Lock()
		now = len(s.queued)
		s.mu.Unlock()
	}
}

// readLoop hands out the replies that come over conn until it breaks, and returns why it did.
func (s *sharedConn) readLoop(conn redis.Conn) error {
	defer func() {
		s.mu.Lock()
		s.broken = true
		s.wakeWriter()
		s.mu.Unlock()
	}()
	for {
		reply, err := conn.Receive()
		refused, replied := errors.AsType[redis.Error](err)
		if err != nil && !replied {
			return err
		}
		s.mu.Lock()
		if len(s.inFlight) == 0 { // Redis sends one if it has too many clients
			s.mu.Unlock()
			return fmt.Errorf("%w: %v", errUnexpected, err)
		}
		c := s.inFlight.pop()
		s.replies++
		var replicated []*pendingCommand
		switch {
		case c == nil || c == askingReply:
			c = nil
		case c == waitReply:
			c, replicated, s.held = nil, s.held, nil
		case c.kind&kindWrite != 0 && err == nil:
			c.reply = reply
			s.held = append(s.held, c)
			c = nil
		}
		s.mu.Unlock()
		if c != nil {
			c.reply, c.err = reply, err
			c.done <- struct{}{}
		}
		if replicated != nil {
			s.release(replicated, reply, err)
		}
		if replied && strings.Contains(string(refused), "READONLY") {
			return err // a Redis that was demoted stays so for this connection
		}
	}
}

// release signals commands that were held until WAIT replied how many replicas have them.
func (s *sharedConn) release(held []*pendingCommand, reply any, err error) {
	if n, _ := redis.Int(reply, err); n < s.replicas {
		failAll(held, errTooFewReplicas)
		return
	}
	for _, c := range held {
		c.err = nil
		c.done <- struct{}{}
	}
}

// expire fails the commands whose deadline has passed, and closes a connection that has stalled.
func (s *sharedConn) expire() {
	now := time.Now()
	s.mu.Lock()
	unsent, next1 := takeExpired(&s.queued, now)
	silent, next2 := s.inFlight.expire(now)
	unreplicated, next3 := takeExpired(&s.held, now)
	stalled, check := s.stall.check(now, s.inFlight.overdue(), s.replies)
	s.expiryAt = earliest(earliest(next1, next2), earliest(next3, check))
	if !s.expiryAt.IsZero() {
		s.expiry.Reset(s.expiryAt.Sub(now))
	}
	conn := s.conn
	s.mu.Unlock()
	failAll(unsent, errNoReply)
	failAll(silent, errNoReply)
	failAll(unreplicated, errTooFewReplicas)
	if stalled && conn != nil {
		conn.Close()
	}
}

// takeExpired removes the commands whose deadline has passed and returns them, with the next deadline.
func takeExpired(commands *[]*pendingCommand, now time.Time) (expired []*pendingCommand, next time.Time) {
	left := (*commands)[:0]
	for _, c := range *commands {
		if c.deadline.After(now) {
			left = append(left, c)
			next = earliest(next, c.deadline)
		} else {
			expired = append(expired, c)
		}
	}
	*commands = left
	return expired, next
}

// earliest returns the earlier of two times; the zero time means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// failAll gives err to the commands that somebody still waits for.
func failAll(commands []*pendingCommand, err error) {
	for _, c := range commands {
		if c != nil && c.done != nil {
			c.reply, c.err = nil, err
			c.done <- struct{}{}
		}
	}
}

// stallDetector finds a connection over which nothing comes any more.
type stallDetector struct {
	stalledAt time.Time // zero: there is no doubt
	replies   uint64    // when the doubt arose
}

// check reports whether the connection has stalled, and when to check again. overdue says that the command whose reply
// must come next has expired.
func (d *stallDetector) check(now time.Time, overdue bool, replies uint64) (stalled bool, next time.Time) {
	switch {
	case !overdue:
		d.stalledAt = time.Time{}
	case d.stalledAt.IsZero() || replies > d.replies:
		d.stalledAt, d.replies = now.Add(silenceTimeout), replies
	case !d.stalledAt.After(now):
		return true, time.Time{}
	}
	return false, d.stalledAt
}

// commandQueue is a first-in, first-out queue: append adds to it.
type commandQueue []*pendingCommand

// overdue reports whether the first command of the queue has expired.
func (q commandQueue) overdue() bool {
	for _, c := range q {
		if c == nil || c.done != nil {
			return c == nil
		}
	}
	return false
}

// pop removes and returns the first command.
func (q *commandQueue) pop() *pendingCommand {
	c := (*q)[0]
	(*q)[0] = nil
	*q = (*q)[1:]
	return c
}

// expire replaces the commands whose deadline has passed by nil and returns them, with the next deadline.
func (q commandQueue) expire(now time.Time) (expired []*pendingCommand, next time.Time) {
	for i, c := range q {
		switch {
		case c == nil || c.done == nil:
		case c.deadline.After(now):
			next = earliest(next, c.deadline)
		default:
			expired = append(expired, c)
			q[i] = nil
		}
	}
	return expired, next
}

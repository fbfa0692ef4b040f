package redisdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	sentinelTimeout = time.Second            // of one Sentinel that is asked in the background
	sentinelGrace   = 250 * time.Millisecond // for the others, once most name one master
	locateTimeout   = 250 * time.Millisecond // of all that are asked for one new connection
	locateAge       = 100 * time.Millisecond // for which their replies are used for other new connections
	sentinelPing    = time.Second            // between two PINGs to the Sentinel that is followed
	sentinelPause   = 100 * time.Millisecond // before the next Sentinel is followed
	lostTimeout     = 500 * time.Millisecond // after which a master that does not respond counts as lost
)

var (
	errNoSuchMaster = errors.New("no Sentinel knows a master of that name")
	errNotSentinel  = setupError("this is not a Sentinel: " +
		"use redis:// for one server, redis-cluster:// for a Redis Cluster")
	errSentinel = setupError("this is a Sentinel: " +
		"use redis-sentinel://<host>:<port>/<name of the master> (rediss-sentinel:// for TLS)")
	errOtherMaster = errors.New("the Sentinels name another master")
	errNotMaster   = errors.New("the server that the Sentinels name is not a master")
	errUnsettled   = errors.New("the Sentinels disagree on the master")
	errSilent      = errors.New("no reply yet")
)

// sentinelSet is the Sentinels that watch a master.
type sentinelSet struct {
	url *URL

	mu      sync.Mutex // held while they are asked for a new connection
	askedAt time.Time  // when they were last asked for one; guarded by mu

	nameUnknown atomic.Bool // no Sentinel that responds knows the name
	dissent     dissentLog  // used by one goroutine
}

// askAll asks all Sentinels at once, and returns their replies in the order of the URL. It takes timeout at most. Once
// most of them name one master, it waits for the others for sentinelGrace: one of these may have promoted another, of
// which the rest learn later.
func (s *sentinelSet) askAll(ctx context.Context, timeout time.Duration) []sentinelReply {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	replies := make([]sentinelReply, len(s.url.seeds))
	arrived := make(chan int, len(replies)) // read before the reply that it is about
	all := make([]sentinelReply, len(replies))
	for i, sentinel := range s.url.seeds {
		replies[i] = sentinelReply{sentinel: sentinel, err: errSilent}
		go func() {
			named, err := s.ask(ctx, sentinel, timeout)
			all[i] = sentinelReply{sentinel, named, err}
			arrived <- i
		}()
	}
	var enough <-chan time.Time
	for range replies {
		select {
		case i := <-arrived:
			replies[i] = all[i]
		case <-enough:
			return replies
		case <-ctx.Done():
			return replies
		}
		if enough == nil && majority(replies).address != "" {
			enough = time.After(sentinelGrace)
		}
	}
	return replies
}

// ask returns the master that a Sentinel names.
func (s *sentinelSet) ask(ctx context.Context, sentinel string, timeout time.Duration) (named namedMaster, err error) {
	conn, err := s.dial(ctx, sentinel, timeout)
	if err != nil {
		return named, err
	}
	defer conn.Close()
	if err := conn.Send("SENTINEL", "get-master-addr-by-name", s.url.master); err != nil {
		return named, err
	}
	if err := conn.Send("SENTINEL", "MASTER", s.url.master); err != nil {
		return named, err
	}
	if err := conn.Flush(); err != nil {
		return named, err
	}
	address, err := redis.Strings(redis.ReceiveContext(conn, ctx))
	switch {
	case errors.Is(err, redis.ErrNil):
		return named, errNoSuchMaster
	case err != nil && strings.HasPrefix(err.Error(), "ERR unknown command"):
		return named, errNotSentinel
	case err != nil:
		return named, err
	case len(address) != 2:
		return named, errNoSuchMaster
	}
	state, err := redis.StringMap(redis.ReceiveContext(conn, ctx))
	if err != nil {
		return named, err
	}
	epoch, err := strconv.ParseInt(state["config-epoch"], 10, 64)
	if err != nil {
		return named, err
	}
	return namedMaster{net.JoinHostPort(address[0], address[1]), epoch}, nil
}

// dial connects to a Sentinel, which has credentials of its own.
func (s *sentinelSet) dial(ctx context.Context, address string, timeout time.Duration) (redis.Conn, error) {
	sentinel := URL{
		network: "tcp", tls: s.url.tls, certificates: s.url.certificates,
		username: s.url.sentinelUsername, password: s.url.sentinelPassword,
	}
	return sentinel.dial(ctx, address, timeout)
}

// isSentinel reports whether the reply of INFO is that of a Sentinel.
func isSentinel(info string) bool { return infoField(info, "redis_mode") == "sentinel" }

// follow calls changed whenever the master may have changed, until ctx is done. It listens to one Sentinel after the
// other.
func (s *sentinelSet) follow(ctx context.Context, changed func()) {
	for i := 0; ctx.Err() == nil; i++ {
		s.listen(ctx, s.url.seeds[i%len(s.url.seeds)], changed)
		sleep(ctx, sentinelPause)
	}
}

// listen does what follow does with one Sentinel, until the connection to it is lost or silent.
func (s *sentinelSet) listen(ctx context.Context, sentinel string, changed func()) {
	dialCtx, cancel := context.WithTimeout(ctx, sentinelTimeout)
	defer cancel()
	conn, err := s.dial(dialCtx, sentinel, sentinelTimeout)
	if err != nil {
		return
	}
	subscription := redis.PubSubConn{Conn: conn}
	var pings sync.WaitGroup
	defer pings.Wait()
	defer conn.Close()
	if subscription.Subscribe("+switch-master") != nil {
		return
	}
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	pings.Go(func() {
		tick := time.NewTicker(sentinelPing)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				conn.Close()
				return
			case <-tick.C:
				_ = subscription.Ping("") // the connection's failure ends the reading as well
			}
		}
	})
	for {
		// A message, a reply to a PING, or the confirmation of the subscription, before which a message may be missed.
		if _, lost := subscription.ReceiveWithTimeout(sentinelPing + sentinelTimeout).(error); lost {
			return
		}
		changed()
	}
}

// openSentinels connects to the master that the Sentinels name, checks it, and follows it
// (https://redis.io/docs/latest/develop/reference/sentinel-clients/).
func (c *Client) openSentinels(ctx context.Context) error {
	c.sentinels = &sentinelSet{url: c.options.URL}
	if err := untilServes(ctx, func() error { return c.tryMaster(ctx) }); err != nil {
		return err
	}
	c.started.Store(true)
	c.loops.Go(func() { c.refreshLoop(c.refreshMaster) })
	c.loops.Go(func() { c.sentinels.follow(c.ctx, c.refreshSoon) })
	return nil
}

// tryMaster asks the Sentinels for the master, and returns an error if that cannot serve. Each step takes half of the
// time that is left at most, so that another attempt may find another master.
func (c *Client) tryMaster(ctx context.Context) error {
	replies := c.sentinels.askAll(ctx, timeLeft(ctx)/2)
	c.useMaster(replies)
	n := c.master.Load()
	switch r := rival(replies); {
	case n == nil:
		return sentinelsError(replies)
	case r.address != "" && r.address != n.address:
		return errUnsettled // a failover, of which most have not heard yet, or one is wrong
	}
	ctx, cancel := context.WithTimeout(ctx, timeLeft(ctx)/2)
	defer cancel()
	if err := n.check(ctx); err != nil {
		return fmt.Errorf("%s: %w", n.address, err)
	}
	return nil
}

// sentinelsError returns why none of the Sentinels names a master.
func sentinelsError(replies []sentinelReply) error {
	var failures manyErrors
	for _, r := range replies {
		failures = append(failures, fmt.Errorf("%s: %w", r.sentinel, r.err))
	}
	return failures
}

// refreshMaster uses the master that the Sentinels name now. The log is told if they disagree.
func (c *Client) refreshMaster() {
	replies := c.sentinels.askAll(c.ctx, sentinelTimeout)
	chosen := c.useMaster(replies)
	said := dissent(replies, chosen)
	if c.ctx.Err() != nil || !c.sentinels.dissent.note(time.Now(), said != "") {
		return
	}
	log, name := c.options.Log, c.options.URL.master
	switch {
	case said == "":
		log.Infof("The Sentinels agree again: %s is the master", chosen.address)
	case nameUnknown(replies):
		log.Errorf("No Sentinel knows a master of the name %s any more; %s is used until one does", name, chosen.address)
	default:
		log.Warnf("The Sentinels disagree on the master, %s is used: %s", chosen.address, said)
	}
}

// locate asks the Sentinels for the master, unless they were asked after since. So connections that are made at about
// the same time share their replies.
func (c *Client) locate(ctx context.Context, since time.Time) {
	s := c.sentinels
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.askedAt.After(since) {
		return
	}
	began := time.Now()
	c.useMaster(s.askAll(ctx, locateTimeout))
	if ctx.Err() == nil {
		s.askedAt = began
	}
}

// useMaster makes the server that the Sentinels name the master, and returns which it is. The connections to the last
// one end immediately: it may live on and take writes, which will be lost.
func (c *Client) useMaster(replies []sentinelReply) namedMaster {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sentinels.nameUnknown.Store(nameUnknown(replies))
	old, last := c.master.Load(), c.named
	if r := rival(replies); r != c.rival {
		c.rival, c.rivalSince = r, time.Now()
	}
	chosen := chooseMaster(replies, masterInUse{
		namedMaster: last, lost: old != nil && old.lost.Load(), recent: time.Since(c.changedAt) < settleTime,
		beaten: c.rival.address != "" && time.Since(c.rivalSince) >= settleTime, failed: c.failed,
	})
	if c.ctx.Err() != nil || chosen == last {
		return last
	}
	c.named = chosen
	if old != nil && old.address == chosen.address {
		return chosen
	}
	n := c.newNode(chosen.address, c.dialMaster(chosen.address), c.anyProbeKey, nil)
	c.setMaster(n)
	if old == nil {
		return chosen
	}
	if last.epoch > chosen.epoch {
		c.failed = last
	} else if c.failed == chosen {
		c.failed = namedMaster{}
	}
	if c.started.Load() {
		c.changedAt = time.Now()
		c.options.Log.Infof("%s is the master now, no longer %s", n.name, old.address)
	}
	old.health.muted.Store(true)
	c.loops.Go(old.close)
	return chosen
}

// dialMaster returns a function that connects to the server at address if it is the master. The Sentinels are asked
// each time: a master that was down for a while is a master for some more time when it is back, but no longer theirs.
// Of one that could not be reached before they are asked again when it is connected to, since it may have been replaced
// just before it came back. Without them, the master that is known is the best guess.
func (c *Client) dialMaster(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		c.locate(ctx, time.Now().Add(-locateAge))
		n := c.master.Load()
		if n == nil || n.address != address {
			return nil, errOtherMaster
		}
		began := time.Now()
		conn, err := c.dialIfMaster(ctx, address, timeout, more...)
		if err == nil && n.lost.Load() {
			if c.locate(ctx, time.Now()); c.master.Load() != n {
				conn.Close()
				return nil, errOtherMaster
			}
		}
		_, replied := errors.AsType[redis.Error](err)
		switch {
		case err == nil || replied:
			n.lost.Store(false)
		case ctx.Err() == nil || time.Since(began) > lostTimeout: // and not for want of time
			n.lost.Store(true)
			c.refreshSoon()
		}
		if err != nil && c.sentinels.nameUnknown.Load() {
			return nil, fmt.Errorf("%w; %s: %w", errNoSuchMaster, address, err)
		}
		return conn, err
	}
}

// dialIfMaster connects to the server at address, and returns an error if it is not a master.
func (c *Client) dialIfMaster(ctx context.Context, address string, timeout time.Duration,
	more ...redis.DialOption) (redis.Conn, error) {
	conn, err := c.options.URL.dial(ctx, address, timeout, more...)
	if err != nil {
		return nil, err
	}
	role, err := redis.Values(redis.DoContext(conn, ctx, "ROLE"))
	if err == nil && len(role) > 0 {
		if name, _ := redis.String(role[0], nil); name != "master" {
			err = errNotMaster
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

package redisdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	sentinelTimeout = 250 * time.Millisecond // of one Sentinel that is asked
	resolveTimeout  = 600 * time.Millisecond // of all together
	sentinelPing    = time.Second            // between two PINGs to the Sentinel that is followed
	sentinelPause   = 100 * time.Millisecond // before the next Sentinel is followed
)

var (
	errNoSuchMaster = errors.New("no Sentinel knows a master of that name")
	errNotSentinel  = errors.New("this is not a Sentinel: " +
		"use redis:// for one server, redis-cluster:// for a Redis Cluster")
	errOtherMaster = errors.New("the Sentinels name another master")
	errNotMaster   = errors.New("the server that the Sentinels name is not a master")
)

// sentinelSet is the Sentinels that watch a master.
type sentinelSet struct {
	url *URL

	mu        sync.Mutex
	addresses []string // the next to be asked is the first; replaced, never changed; guarded by mu
}

// namedMaster is what a Sentinel says about the master. Of two, the one with the higher epoch is newer.
type namedMaster struct {
	address string
	epoch   int64
}

// first asks the Sentinels in turn and returns the master that the first one names which responds.
func (s *sentinelSet) first(ctx context.Context) (namedMaster, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var failure error
	for _, sentinel := range s.inTurn() {
		named, err := s.ask(ctx, sentinel)
		if err == nil {
			return named, nil
		}
		s.putLast(sentinel)
		if failure == nil || errors.Is(err, errNoSuchMaster) {
			failure = fmt.Errorf("%s: %w", sentinel, err)
		}
	}
	return namedMaster{}, failure
}

// newest asks all Sentinels and returns the newest of their replies: one that has promoted a replica knows it before
// the others do. agreed reports whether all responded and named the same server.
func (s *sentinelSet) newest(ctx context.Context) (named namedMaster, agreed bool) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	sentinels := s.inTurn()
	replies := make([]namedMaster, len(sentinels))
	each(len(sentinels), len(sentinels), func(i int) {
		replies[i], _ = s.ask(ctx, sentinels[i]) // without an address after an error
	})
	responses := 0
	agreed = true
	for _, reply := range replies {
		if reply.address == "" {
			continue
		}
		agreed = agreed && (responses == 0 || reply.address == named.address)
		if responses == 0 || reply.epoch > named.epoch {
			named = reply
		}
		responses++
	}
	return named, agreed && responses == len(sentinels)
}

// inTurn returns the addresses in the order in which they are to be asked.
func (s *sentinelSet) inTurn() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addresses
}

// putLast moves a Sentinel to the end of the turn.
func (s *sentinelSet) putLast(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(s.addresses), func(a string) bool { return a == address })
	s.addresses = append(others, address)
}

// ask returns the master that a Sentinel names.
func (s *sentinelSet) ask(ctx context.Context, sentinel string) (named namedMaster, err error) {
	ctx, cancel := context.WithTimeout(ctx, sentinelTimeout)
	defer cancel()
	conn, err := s.dial(ctx, sentinel)
	if err != nil {
		return named, err
	}
	defer conn.Close()
	address, err := redis.Strings(redis.DoContext(conn, ctx, "SENTINEL", "get-master-addr-by-name", s.url.master))
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
	state, err := redis.StringMap(redis.DoContext(conn, ctx, "SENTINEL", "MASTER", s.url.master))
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
func (s *sentinelSet) dial(ctx context.Context, address string) (redis.Conn, error) {
	sentinel := URL{
		network: "tcp", tls: s.url.tls, username: s.url.sentinelUsername, password: s.url.sentinelPassword,
	}
	return sentinel.dial(ctx, address, sentinelTimeout)
}

// follow calls changed whenever the master may have changed, until ctx is done. It listens to one Sentinel after the
// other.
func (s *sentinelSet) follow(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		sentinel := s.inTurn()[0]
		s.listen(ctx, sentinel, changed)
		s.putLast(sentinel)
		sleep(ctx, sentinelPause)
	}
}

// listen does what follow does with one Sentinel, until the connection to it is lost or silent.
func (s *sentinelSet) listen(ctx context.Context, sentinel string, changed func()) {
	dialCtx, cancel := context.WithTimeout(ctx, sentinelTimeout)
	defer cancel()
	conn, err := s.dial(dialCtx, sentinel)
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

// openSentinels connects to the master that Sentinels name, checks it, and follows it
// (https://redis.io/docs/latest/develop/reference/sentinel-clients/).
func (c *Client) openSentinels(ctx context.Context) error {
	c.sentinels = &sentinelSet{url: c.options.URL, addresses: c.options.URL.seeds}
	named, err := c.sentinels.first(ctx)
	if err != nil {
		return err
	}
	c.useMaster(named, true)
	if err := c.master.Load().check(ctx); err != nil {
		return fmt.Errorf("%s: %w", named.address, err)
	}
	c.loops.Go(func() {
		c.refreshLoop(func() error {
			if named, agreed := c.sentinels.newest(c.ctx); named.address != "" {
				c.useMaster(named, agreed)
			}
			return nil
		})
	})
	c.loops.Go(func() { c.sentinels.follow(c.ctx, c.refreshSoon) })
	return nil
}

// useMaster makes the server that Sentinels name the master, unless that is old news on which they do not agree. The
// connections to the last one end immediately: it may live on and take writes, which will be lost.
func (c *Client) useMaster(named namedMaster, agreed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil || named.epoch < c.masterEpoch && !agreed {
		return
	}
	c.masterEpoch = named.epoch
	old := c.master.Load()
	if old != nil && old.address == named.address {
		return
	}
	n := c.newNode(named.address, c.dialMaster(named.address), c.anyProbeKey)
	c.setMaster(n)
	if old != nil {
		c.options.Log.Infof("%s is the master now, no longer %s", n.name, old.address)
		c.loops.Go(old.close)
	}
}

// dialMaster returns a function that connects to the server at address if it is the master. A Sentinel is asked each
// time: a master that was down for a while is a master for some more time when it is back, but no longer theirs.
func (c *Client) dialMaster(address string) dialFunc {
	return func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
		if named, err := c.sentinels.first(ctx); err == nil {
			c.useMaster(named, false)
		} // without a Sentinel, the master that is known is the best guess
		if c.master.Load().address != address {
			return nil, errOtherMaster
		}
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
}

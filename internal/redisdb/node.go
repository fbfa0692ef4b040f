package redisdb

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	poolSize      = 64                     // connections to one server
	redialTimeout = 900 * time.Millisecond // for each step of a connection that is made while the service runs

	// A connection that was idle for longer is tested with PING before it is used: Redis may have been restarted.
	trustedIdleTime = time.Second

	waitGrace = 50 * time.Millisecond // for the reply of a WAIT whose time is up
)

// node is one Redis server that takes writes. Small commands share one connection, and small reads of what can be done
// without share another; large ones take a connection of the pool, so that nobody waits behind them. Its methods may be
// called from any number of goroutines. Their errors are a redis.Error if Redis refuses this command alone, an
// unsentError or errTooManyPending if it was not sent, and else mean that Redis may or may not have executed it.
type node struct {
	options  *Options
	name     string // in the log
	address  string // host:port; "" if there is only this one
	dial     dialFunc
	redialed func()        // called when the shared connection has to be dialled again
	readyKey func() string // returns a key that the server has, or would have

	pool   *redis.Pool
	shared *sharedConn
	reads  *sharedConn // for small reads that can be done without
	health *health
	close  func() // ends all connections and fails the commands that still wait

	memory  memoryGauge
	waiting atomic.Int64 // callers that wait for it
	askedAt atomic.Int64 // when a command was last sent here after ASKING, in Unix nanoseconds

	unchecked atomic.Bool // it could not be checked at start
	lost      atomic.Bool // behind Sentinels: it could not be reached when that was last tried, or was no master
}

// dialFunc connects to a server and logs in. Each step of that, and each read later, may take timeout.
type dialFunc func(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error)

// newNode returns the server at address, "" if it is the only one. Its shared connection is dialled in the background.
// If h is not nil the node goes on with that health, which was of a node with the same address.
func (c *Client) newNode(address string, dial dialFunc, readyKey func() string, h *health) *node {
	n := &node{
		options: &c.options, name: strings.TrimSpace("Redis " + address), address: address, dial: dial,
		redialed: c.refreshSoon, readyKey: readyKey,
	}
	if n.health = h; h == nil {
		n.health = &health{name: n.name, log: c.options.Log, refused: make(map[string]bool)}
	}
	n.pool = &redis.Pool{
		MaxActive:           poolSize,
		MaxIdle:             poolSize, // with fewer, connections are dialled all the time under load
		Wait:                true,
		DialContext:         func(ctx context.Context) (redis.Conn, error) { return n.dial(ctx, redialTimeout) },
		TestOnBorrowContext: n.testIdle,
	}
	dialShared := func(ctx context.Context) (redis.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, redialTimeout)
		defer cancel()
		return n.dial(ctx, redialTimeout, redis.DialReadTimeout(0), redis.DialWriteTimeout(0))
	}
	n.reads = newLazyConn(dialShared)
	dialled := false
	n.shared = newSharedConn(c.options.Replicas, func(ctx context.Context) (redis.Conn, error) {
		n.health.discardIdle() // what ended the last connection may have ended others
		if dialled {
			n.redialed()
		}
		dialled = true
		return dialShared(ctx)
	})
	ctx, cancel := context.WithCancel(context.Background())
	var probes sync.WaitGroup
	probes.Go(func() { n.probeWhileDown(ctx) })
	n.close = sync.OnceFunc(func() {
		cancel()
		n.shared.close()
		n.reads.close()
		probes.Wait()
		_ = n.pool.Close()
	})
	return n
}

// check returns an error if the server cannot serve. If it can, the log is warned of settings that lose data.
func (n *node) check(ctx context.Context) error {
	c, err := n.dial(ctx, timeLeft(ctx))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := redis.DoContext(c, ctx, "PING"); err != nil {
		return err
	}
	info, err := redis.String(redis.DoContext(c, ctx, "INFO"))
	hidden, refused := errors.AsType[redis.Error](err)
	if err == nil {
		err = checkInfo(info, n.options.URL.topology)
	}
	if err != nil && !refused {
		return err
	}
	if _, err := redis.DoContext(c, ctx, "EVAL", readyArgs(n.readyKey(), n.options.Required)...); err != nil {
		return err
	}
	have, want := 0, n.options.Replicas
	if want > 0 {
		if have, err = redis.Int(redis.DoContext(c, ctx, "WAIT", want, 100)); err != nil {
			return err
		}
	}
	if have < want {
		n.options.Log.Warnf("%s has %d replicas of the %d that must have a write: it refuses writes until they are there",
			n.name, have, want)
	}
	if refused {
		n.options.Log.Warnf("%s does not show its version and settings: %v", n.name, hidden)
	} else {
		n.warnOfSettings(info)
	}
	return nil
}

// checkLate checks a server that could not be reached at start.
func (n *node) checkLate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, redialTimeout)
	defer cancel()
	err := n.check(ctx)
	if err != nil && !lasts(err) {
		return
	}
	n.unchecked.Store(false)
	if err != nil {
		n.options.Log.Errorf("%s cannot be used: %v", n.name, err)
	} else {
		n.options.Log.Infof("%s can be used now", n.name)
	}
}

// checkInfo returns an error if the reply of INFO is that of a server in another mode than the topology has, or of an
// old version.
func checkInfo(info string, topology topology) error {
	switch {
	case isSentinel(info):
		return errSentinel
	case infoField(info, "redis_mode") == "cluster" && topology != clusterServers:
		return setupError("this is a node of a Redis Cluster: use redis-cluster:// (rediss-cluster:// for TLS)")
	}
	return checkRedisVersion(info)
}

// warnOfSettings warns of settings that lose data, which the reply of INFO shows.
func (n *node) warnOfSettings(info string) {
	if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
		n.options.Log.Warnf("%s's maxmemory-policy is %s: if its memory is full it evicts keys, and balances with them; "+
			"set it to noeviction", n.name, policy)
	}
	if infoField(info, "aof_enabled") == "0" {
		n.options.Log.Warnf("%s keeps no append-only file: a restart forgets charges; set appendonly to yes", n.name)
	}
}

// checkRedisVersion returns an error if the reply of INFO is that of a server older than Redis 7.0 or Valkey 7.2, which
// calls itself Redis 7.2.
func checkRedisVersion(info string) error {
	version := infoField(info, "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return setupError("version " + version + " is too old: tollgate needs Redis 7.0 or Valkey 7.2 or newer")
	}
	return nil
}

// run carries out op. asking says that its slot is being moved to this server.
func (n *node) run(deadline time.Time, op operation, asking bool) (any, error) {
	if asking {
		op.kind |= kindAsking
	}
	switch {
	case op.each != nil:
		return n.doEach(deadline, op.name, op.each)
	case op.script == nil:
		return n.send(deadline, op, op.name)
	}
	op.args[0] = op.script.sha1
	first := op
	if !op.script.isKnown.Load() { // then it is the EVAL that counts
		first.queued = nil
	}
	reply, err := n.send(deadline, first, "EVALSHA")
	if isNoScript(err) { // a restart or a failover forgets scripts
		op.args[0] = op.script.source
		reply, err = n.send(deadline, op, "EVAL")
	}
	if err == nil && !op.script.isKnown.Load() {
		op.script.isKnown.Store(true)
	}
	return reply, err
}

// observe returns the outcome of op, from which the health state learns unless op can be done without.
func (n *node) observe(op operation, reply any, err error) (any, error) {
	if op.kind&kindDispensable != 0 && classify(err) != faultNone {
		if IsOutOfMemory(err) {
			return nil, err
		}
		return nil, n.failed(op, err)
	}
	return n.health.observe(op.name, reply, err)
}

// failed returns the error of op, to which the server was unavailable because of err. The health state learns of it
// unless op can be done without: whether Redis is available, requests find out.
func (n *node) failed(op operation, err error) error {
	if op.kind&kindDispensable != 0 {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return n.health.failed(op.name, err)
}

// send sends a command over the connection that is right for op.
func (n *node) send(deadline time.Time, op operation, command string) (any, error) {
	switch {
	case op.large:
		return n.doPooled(deadline, command, op.args, op.kind)
	case op.kind&kindDispensable != 0: // only ReadSmall's are not large
		return n.reads.do(deadline, command, op.args, op.kind)
	}
	return n.shared.doQueued(deadline, command, op.args, op.kind, op.queued)
}

// doPooled does what sharedConn.do does, over a connection of the pool.
func (n *node) doPooled(deadline time.Time, command string, args []any, kind kind) (any, error) {
	return n.withConn(deadline, func(conn redis.Conn) (any, error) {
		if kind&kindAsking != 0 {
			if _, err := doUntil(deadline, conn, "ASKING"); err != nil {
				return nil, err
			}
		}
		reply, err := doUntil(deadline, conn, command, args...)
		if err != nil || kind&kindWrite == 0 || n.options.Replicas == 0 {
			return reply, err
		}
		wait := min(max(time.Until(deadline).Milliseconds(), 1), maxWait)
		have, _ := redis.Int(doUntil(deadline.Add(waitGrace), conn, "WAIT", n.options.Replicas, wait))
		if have < n.options.Replicas {
			return nil, errTooFewReplicas
		}
		return reply, nil
	})
}

// doEach runs a command once for each key, in one pipeline over a connection of the pool.
func (n *node) doEach(deadline time.Time, command string, keys []string) ([]any, error) {
	return redis.Values(n.withConn(deadline, func(conn redis.Conn) (any, error) {
		for _, key := range keys {
			if err := conn.Send(command, key); err != nil {
				return nil, err
			}
		}
		if err := conn.Flush(); err != nil {
			return nil, err
		}
		replies := make([]any, len(keys))
		for i := range replies {
			var err error
			if replies[i], err = receiveUntil(deadline, conn); err != nil {
				return nil, err
			}
		}
		return replies, nil
	}))
}

// withConn calls f with a connection of the pool.
func (n *node) withConn(deadline time.Time, f func(redis.Conn) (any, error)) (any, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	conn, err := n.pool.GetContext(ctx)
	if err != nil { // none is free, or none can be dialled: that says nothing about those in use
		return nil, unsentError{err}
	}
	defer conn.Close()
	return f(conn)
}

// doUntil sends a command and returns its reply.
func doUntil(deadline time.Time, conn redis.Conn, command string, args ...any) (any, error) {
	if err := conn.Send(command, args...); err != nil {
		return nil, err
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	return receiveUntil(deadline, conn)
}

// receiveUntil returns the next reply. To redigo a timeout of 0 means none, so no time left is a nanosecond.
func receiveUntil(deadline time.Time, conn redis.Conn) (any, error) {
	return redis.ReceiveWithTimeout(conn, max(time.Until(deadline), time.Nanosecond))
}

var errDiscarded = errors.New("the connection was idle during a failure")

// testIdle returns an error if Redis may have closed a connection of the pool while it was idle, so that no request
// pays for that.
func (n *node) testIdle(ctx context.Context, conn redis.Conn, lastUsed time.Time) error {
	if lastUsed.UnixNano() <= n.health.discardBefore.Load() {
		return errDiscarded
	}
	if time.Since(lastUsed) < trustedIdleTime {
		return nil
	}
	_, err := redis.DoContext(conn, ctx, "PING")
	if _, replied := errors.AsType[redis.Error](err); replied {
		return nil // LOADING, MISCONF: the connection is sound, and a new one would get the same reply
	}
	return err
}

// ready returns an error if Redis would refuse a required command. A PING does not show that: a Redis that was demoted,
// or that denies a command, still responds to it.
func (n *node) ready(deadline time.Time) error {
	reply, err := n.shared.do(deadline, "EVAL", readyArgs(n.readyKey(), n.options.Required), kindWrite)
	if refused, ok := errors.AsType[redis.Error](err); ok && strings.HasPrefix(string(refused), "MOVED ") {
		return n.health.failed(readyScript.name, err) // another server is the master of the slot now
	}
	_, err = n.health.observe(readyScript.name, reply, err)
	return err
}

// readyArgs returns the arguments of EVAL for ready.lua with the key.
func readyArgs(key string, required []Requirement) []any {
	args := []any{readyScript.source, 1, key}
	for _, r := range required {
		args = append(args, r.Prefix, r.Commands)
	}
	return args
}

// probeWhileDown finds out that Redis is available again, even if no request does, and checks it if that is due.
func (n *node) probeWhileDown(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if n.unchecked.Load() {
				n.checkLate(ctx)
			} else if n.health.down.Load() {
				_ = n.ready(time.Now().Add(redialTimeout))
			}
		}
	}
}

// scan calls f with the names of the keys that match pattern, as SCAN returns them: each at least once, in steps in
// which Redis looks at about count keys and which may take timeout.
func (n *node) scan(pattern string, count int, timeout time.Duration, f func(names []string) error) error {
	for cursor := "0"; ; {
		args := []any{cursor, "MATCH", pattern, "COUNT", count}
		reply, err := redis.Values(n.doPooled(time.Now().Add(timeout), "SCAN", args, 0))
		var names []string
		if err == nil {
			_, err = redis.Scan(reply, &cursor, &names)
		}
		if err == nil {
			err = f(names)
		}
		if err != nil || cursor == "0" {
			return err
		}
	}
}

package main

import (
	"cmp"
	"context"
	"crypto/sha1"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// ErrUnavailable means that Redis did not respond in time or refuses to work. A write may or may not have happened.
var ErrUnavailable = errors.New("redis is unavailable")

const (
	poolSize         = 64
	redialTimeout    = 900 * time.Millisecond // for a connection made while the service runs
	poolWriteTimeout = 350 * time.Millisecond // a write blocks only if Redis does not read

	// A connection that was idle for longer is tested with PING before it is used: Redis may have been restarted.
	trustedIdleTime = time.Second

	keepAliveInterval = 15 * time.Second // of TCP, which finds an idle connection whose peer is gone

	probeInterval = 250 * time.Millisecond // between probes of a Redis that is down
	recoveryQuiet = time.Second            // without a failure, before the log says that Redis is available again
	refusalQuiet  = time.Minute            // the same if Redis has refused commands that it has not executed since
)

// script is a Lua script, which Redis runs as one atomic step. The head of its file lists KEYS, ARGV and results.
type script struct {
	name         string // for errors and the health state
	source, sha1 any    // the first argument of EVAL and of EVALSHA, boxed once
}

func newScript(name, source string) *script {
	return &script{name, source, fmt.Sprintf("%x", sha1.Sum([]byte(source)))}
}

//go:embed lua/ready.lua
var readyLua string

var readyScript = newScript("ready", readyLua)

const readyKey = "apiKey:" // does not exist: no API key is empty

// redisClient is one Redis server. Small commands share one connection; large ones take a connection of the pool, so
// that nobody waits behind them. Its methods may be called from any number of goroutines.
//
// They take a deadline and no context: cancelling a command that was sent closes its connection, but Redis still
// executes it, and nobody would learn its outcome. Their errors are a redis.Error if Redis refuses this command alone,
// else they wrap ErrUnavailable.
type redisClient struct {
	pool     *redis.Pool
	shared   *sharedConn
	health   *health
	required []requirement
	stop     func() // ends the probes
}

// requirement names commands that the service needs on keys with a prefix.
type requirement struct{ prefix, commands string }

// openRedis connects to the server at url and checks it, until ctx is done. Errors are those of the dial, and of a
// server that is too old or denies a required command. The caller closes the client.
func openRedis(ctx context.Context, url *redisURL, required []requirement, log *logger) (*redisClient, error) {
	if err := checkServer(ctx, url, required, log); err != nil {
		return nil, err
	}
	c := &redisClient{health: &health{log: log, refused: make(map[string]bool)}, required: required}
	c.pool = &redis.Pool{
		MaxActive:           poolSize,
		MaxIdle:             poolSize, // with fewer, connections are dialled all the time under load
		Wait:                true,
		DialContext:         func(ctx context.Context) (redis.Conn, error) { return url.dial(ctx, redialTimeout) },
		TestOnBorrowContext: c.testIdle,
	}
	c.shared = newSharedConn(func(ctx context.Context) (redis.Conn, error) {
		c.health.discardIdle() // what ended the last connection may have ended others
		ctx, cancel := context.WithTimeout(ctx, redialTimeout)
		defer cancel()
		return url.dial(ctx, redialTimeout, redis.DialReadTimeout(0), redis.DialWriteTimeout(0))
	})
	ctx, cancel := context.WithCancel(context.Background())
	var probes sync.WaitGroup
	probes.Go(func() { c.probeWhileDown(ctx) })
	c.stop = func() {
		cancel()
		probes.Wait()
	}
	return c, nil
}

// checkServer dials url and returns an error if the server cannot serve tollgate. It warns of settings that lose data.
func checkServer(ctx context.Context, url *redisURL, required []requirement, log *logger) error {
	timeout := redialTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	c, err := url.dial(ctx, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := redis.DoContext(c, ctx, "PING"); err != nil {
		return err
	}
	info, err := redis.String(redis.DoContext(c, ctx, "INFO"))
	if refused, ok := errors.AsType[redis.Error](err); ok {
		log.warnf("Redis does not show its version and settings: %v", refused)
	} else if err != nil {
		return err
	} else if err := checkInfo(info, log); err != nil {
		return err
	}
	_, err = redis.DoContext(c, ctx, "EVAL", readyArgs(readyKey, required)...)
	return err
}

// checkInfo returns an error if the reply of INFO is that of a server older than Redis 7.0 or Valkey 7.2, which calls
// itself Redis 7.2. It warns of settings that lose data.
func checkInfo(info string, log *logger) error {
	version := infoField(info, "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("version %s is too old: tollgate needs Redis 7.0 or Valkey 7.2 or newer", version)
	}
	if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
		log.warnf("Redis's maxmemory-policy is %s: if its memory is full it evicts keys, and balances with them; "+
			"set it to noeviction", policy)
	}
	if infoField(info, "aof_enabled") == "0" {
		log.warnf("Redis keeps no append-only file: a restart forgets charges; set appendonly to yes")
	}
	return nil
}

// infoField returns the value of one line of INFO's reply, "" if it has no such line.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// close ends all connections. Nobody may use the client any more.
func (c *redisClient) close() {
	c.stop()
	c.shared.close()
	_ = c.pool.Close()
}

// eval runs a script over the shared connection: its keys and arguments must be small, and so must its reply. All keys
// must hash to the slot of the first.
func (c *redisClient) eval(deadline time.Time, s *script, keys []string, args ...any) (any, error) {
	all := scriptArgs(s, keys, args)
	reply, err := c.shared.do(deadline, "EVALSHA", all)
	if isNoScript(err) { // a restart or a failover forgets scripts
		all[0] = s.source
		reply, err = c.shared.do(deadline, "EVAL", all)
	}
	return c.health.observe(s.name, reply, err)
}

// evalLarge runs a script over a connection of the pool. All keys must hash to the slot of the first.
func (c *redisClient) evalLarge(deadline time.Time, s *script, keys []string, args ...any) (any, error) {
	all := scriptArgs(s, keys, args)
	return c.withConn(deadline, s.name, func(conn redis.Conn) (any, error) {
		reply, err := doUntil(deadline, conn, "EVALSHA", all...)
		if isNoScript(err) {
			all[0] = s.source
			reply, err = doUntil(deadline, conn, "EVAL", all...)
		}
		return reply, err
	})
}

func scriptArgs(s *script, keys []string, args []any) []any {
	all := append(make([]any, 0, 2+len(keys)+len(args)), s.sha1, len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	return append(all, args...)
}

// isOutOfMemory reports whether Redis has refused a command because its memory is full.
func isOutOfMemory(err error) bool {
	reply, ok := errors.AsType[redis.Error](err)
	return ok && strings.HasPrefix(string(reply), "OOM")
}

func isNoScript(err error) bool {
	reply, ok := errors.AsType[redis.Error](err)
	return ok && strings.HasPrefix(string(reply), "NOSCRIPT ")
}

// do runs one command on a key over a connection of the pool. The reply may be nil.
func (c *redisClient) do(deadline time.Time, command, key string, args ...any) (any, error) {
	all := append(append(make([]any, 0, 1+len(args)), key), args...)
	return c.withConn(deadline, command, func(conn redis.Conn) (any, error) {
		return doUntil(deadline, conn, command, all...)
	})
}

// doEach runs a command once for each key, in one pipeline over a connection of the pool.
func (c *redisClient) doEach(deadline time.Time, command string, keys []string) ([]any, error) {
	return redis.Values(c.withConn(deadline, command, func(conn redis.Conn) (any, error) {
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

// withConn calls f with a connection of the pool. op names what f does.
func (c *redisClient) withConn(deadline time.Time, op string, f func(redis.Conn) (any, error)) (any, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	conn, err := c.pool.GetContext(ctx)
	if err != nil { // none is free, or none can be dialled: that says nothing about those in use
		return nil, c.health.failed(op, err)
	}
	reply, err := f(conn)
	conn.Close()
	return c.health.observe(op, reply, err)
}

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
func (c *redisClient) testIdle(ctx context.Context, conn redis.Conn, lastUsed time.Time) error {
	if lastUsed.UnixNano() <= c.health.discardBefore.Load() {
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
func (c *redisClient) ready(deadline time.Time) error {
	reply, err := c.shared.do(deadline, "EVAL", readyArgs(readyKey, c.required))
	_, err = c.health.observe(readyScript.name, reply, err)
	return err
}

// readyArgs returns the arguments of EVAL for ready.lua with the key.
func readyArgs(key string, required []requirement) []any {
	args := []any{readyScript.source, 1, key}
	for _, r := range required {
		args = append(args, r.prefix, r.commands)
	}
	return args
}

// probeWhileDown finds out that Redis is available again, even if no request does.
func (c *redisClient) probeWhileDown(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if c.health.down.Load() {
				_ = c.ready(time.Now().Add(redialTimeout))
			}
		}
	}
}

// writeMetrics writes the state of the connections, and of Redis, which it queries.
func (c *redisClient) writeMetrics(e *exposition) {
	up := 1.0
	if c.ready(time.Now().Add(redialTimeout)) != nil {
		up = 0
	}
	e.single("redis_up", "gauge", "1 if Redis would decide a charge, else 0.", up)
	pool := c.pool.Stats()
	e.single("redis_pool_connections", "gauge", "Connections of the pool.", float64(pool.ActiveCount))
	e.single("redis_pool_idle_connections", "gauge", "Idle connections of the pool.", float64(pool.IdleCount))
	e.single("redis_pool_waits_total", "counter", "Times that a caller waited for a connection of the pool.",
		float64(pool.WaitCount))
	e.single("redis_pool_wait_seconds_total", "counter", "Time that callers waited for a connection of the pool.",
		pool.WaitDuration.Seconds())
	e.single("redis_pipeline_commands", "gauge", "Commands of the shared connection that wait for their reply.",
		float64(c.shared.pending()))
	e.single("redis_errors_total", "counter", "Commands that found Redis unavailable.", float64(c.health.failures.Load()))
}

// health knows whether Redis is available, and logs each change once. It learns from the outcome of every command.
type health struct {
	log      *logger
	down     atomic.Bool // the last line in the log says that Redis is unavailable
	failures atomic.Int64

	// Connections of the pool that were last used before it, in Unix nanoseconds, are not used again.
	discardBefore atomic.Int64

	mu          sync.Mutex // guards the fields below, and changes of down with the line in the log
	lastFailure time.Time
	refused     map[string]bool // commands and scripts that Redis has refused and not executed since
}

// observe updates the state from the outcome of one command or script, op, and maps errors that concern Redis as a
// whole to ErrUnavailable.
func (h *health) observe(op string, reply any, err error) (any, error) {
	if refused, ok := errors.AsType[redis.Error](err); ok {
		text, _, _ := strings.Cut(string(refused), ", with args") // of an unknown command, whose arguments are secret
		err = redis.Error(text)
	}
	switch classify(err) {
	case faultNone:
		h.succeeded(op)
		return reply, err
	case faultConnection, faultDemoted:
		h.discardIdle() // it is true of all connections
	}
	return nil, h.failed(op, err)
}

func (h *health) discardIdle() { h.discardBefore.Store(time.Now().UnixNano()) }

// succeeded notes that Redis has executed op. Redis is available again after recoveryQuiet without a failure, or after
// refusalQuiet if it has refused other commands: a Redis that is full still reads.
func (h *health) succeeded(op string) {
	if !h.down.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.refused, op)
	quiet := recoveryQuiet
	if len(h.refused) > 0 {
		quiet = refusalQuiet
	}
	if h.down.Load() && time.Since(h.lastFailure) > quiet {
		h.down.Store(false)
		clear(h.refused)
		h.log.infof("Redis is available again")
	}
}

// failed notes that Redis was unavailable to op because of err, and returns err as an ErrUnavailable.
func (h *health) failed(op string, err error) error {
	h.failures.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastFailure = time.Now()
	if _, replied := errors.AsType[redis.Error](err); replied {
		h.refused[op] = true
	}
	if !h.down.Swap(true) {
		h.log.errorf("Redis is unavailable: %v", err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// faultKind is what an error says about Redis as a whole.
type faultKind int

const (
	faultNone       faultKind = iota // nothing: there is no error, or it concerns one command
	faultConnection                  // the connection is lost or silent
	faultDemoted                     // this server is no longer the master
	faultRefused                     // Redis refuses work for now
)

// classify returns what err says about Redis as a whole. The codes are those with which Redis refuses commands that are
// correct (https://redis.io/docs/latest/develop/reference/protocol-spec/).
func classify(err error) faultKind {
	reply, replied := errors.AsType[redis.Error](err)
	switch {
	case err == nil:
		return faultNone
	case errors.Is(err, errTooManyPending):
		return faultRefused
	case !replied:
		return faultConnection
	case strings.Contains(string(reply), "READONLY"): // managed proxies wrap it in another error
		return faultDemoted
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(string(reply), "ERR "), " ")
	switch code {
	case "LOADING", "BUSY", "OOM", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS",
		"NOAUTH", "WRONGPASS", "NOPERM":
		return faultRefused
	}
	for _, text := range refusalPrefixes {
		if strings.HasPrefix(string(reply), text) {
			return faultRefused
		}
	}
	return faultNone
}

// refusalPrefixes are how replies without a code of their own begin.
var refusalPrefixes = []string{
	"ERR max number of clients", "ERR The user executing the script", "ERR ACL failure in script",
}

// redisURL is where Redis is and how to log in there.
type redisURL struct {
	network, address   string
	tls                bool
	username, password string
	db                 int
}

// parseRedisURL parses redis://[[user]:password@]host[:port][/db], rediss:// for the same over TLS, and
// unix://[[user]:password@]/path/redis.sock[?db=n]. Its errors quote nothing of the URL, which may hold a password.
func parseRedisURL(s string) (*redisURL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("is not a valid URL (are special characters in its password percent-encoded?)")
	}
	r := &redisURL{username: u.User.Username()}
	r.password, _ = u.User.Password()
	db, query := strings.TrimPrefix(u.Path, "/"), u.Query()
	switch u.Scheme {
	case "redis", "rediss":
		r.network, r.tls = "tcp", u.Scheme == "rediss"
		r.address = net.JoinHostPort(cmp.Or(u.Hostname(), "localhost"), cmp.Or(u.Port(), "6379"))
	case "unix":
		r.network, r.address = "unix", u.Path
		db = query.Get("db")
		query.Del("db")
	default:
		return nil, errors.New("must begin with redis://, rediss:// or unix://")
	}
	switch {
	case r.username != "" && r.password == "":
		return nil, errors.New("has a user but no password")
	case r.network == "unix" && (u.Host != "" || u.Path == ""):
		return nil, errors.New("must have three slashes before a socket's path: unix:///path/redis.sock")
	case u.Fragment != "":
		return nil, errors.New("has a fragment: write a # in its password as %23")
	case len(query) > 0 || u.Opaque != "":
		return nil, errors.New("has an unknown query")
	}
	if db != "" {
		if r.db, err = strconv.Atoi(db); err != nil || r.db < 0 {
			return nil, errors.New("has a database number that is not a whole number ≥ 0")
		}
	}
	return r, nil
}

// dial connects, logs in and selects the database. Each of these steps, and each read later, may take timeout.
func (r *redisURL) dial(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
	handshake := timeout
	if deadline, ok := ctx.Deadline(); ok { // redigo ignores the context during the TLS handshake
		handshake = max(min(timeout, time.Until(deadline)), time.Millisecond)
	}
	return redis.DialContext(ctx, r.network, r.address, append([]redis.DialOption{
		redis.DialConnectTimeout(timeout), redis.DialReadTimeout(timeout), redis.DialWriteTimeout(poolWriteTimeout),
		redis.DialUseTLS(r.tls), redis.DialTLSHandshakeTimeout(handshake), redis.DialKeepAlive(keepAliveInterval),
		redis.DialUsername(r.username), redis.DialPassword(r.password), redis.DialDatabase(r.db),
	}, more...)...)
}

// redact replaces the password in a text that may quote it.
func (r *redisURL) redact(text string) string {
	if r.password == "" {
		return text
	}
	return strings.ReplaceAll(text, r.password, "xxxxx")
}

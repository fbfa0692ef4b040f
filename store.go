package main

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// What the store answers besides data. Everything else that it returns is a fault that nobody foresaw.
var (
	// ErrNoTenant: there is no config of that tenant.
	ErrNoTenant = errors.New("no such tenant")
	// ErrNoKey: the API key is unknown, expired or another tenant's.
	ErrNoKey = errors.New("no such API key")
	// ErrBrokenConfig: what Redis holds as the tenant's config is none; somebody has put it straight there.
	ErrBrokenConfig = errors.New("broken config")
	// ErrTenantExists: there is a config of that tenant already.
	ErrTenantExists = errors.New("tenant exists")
	// ErrConfigChanged: the config is not one of those that the change was meant for.
	ErrConfigChanged = errors.New("config has changed")
	// ErrNoVersion: the history has no version with that ETag.
	ErrNoVersion = errors.New("no such version")
	// ErrRevoked: the admin token that asks was revoked meanwhile.
	ErrRevoked = errors.New("admin token was revoked")
	// ErrKeyReused: the Idempotency-Key has charged another amount before.
	ErrKeyReused = errors.New("idempotency key was used with other parameters")
	// ErrBalanceRange: the change would take a balance below 0 or above maxAmount, and was not made.
	ErrBalanceRange = errors.New("balance out of range")
	// ErrUnavailable: Redis did not answer in time or refuses to work. A write may or may not have happened.
	ErrUnavailable = errors.New("redis is unavailable")
)

// rateLimited is a refusal for now; nothing was written.
type rateLimited struct {
	retryAfter int64 // seconds, ≥ 1, until the same request may be accepted
}

func (rateLimited) Error() string { return "rate limited" }

// tokensSpent is the refusal of a charge: the balance was not enough, and is untouched.
type tokensSpent struct{ tokensLeft int64 }

func (tokensSpent) Error() string { return "not enough tokens" }

const (
	anonymousKeyLife = 24 * time.Hour

	// Every answer comes within 2 s of the end of its request. So a call that loads a config, or that the holder of an API key
	// waits for, may take callTimeout, of which a request makes two at most, or one and three of an admin's, which may take
	// adminTimeout each.
	callTimeout  = 900 * time.Millisecond
	adminTimeout = 350 * time.Millisecond

	poolSize = 64
	// A connection that was idle for longer is asked PING before it is used: Redis may have been restarted meanwhile.
	trustedIdleTime = time.Second
	faultOver       = time.Second // see recover
	refusalOver     = time.Minute
)

// Each script is one atomic step in Redis. Its head says what it takes and returns.
var (
	//go:embed lua/issue.lua
	issueLua string
	//go:embed lua/charge.lua
	chargeLua string
	//go:embed lua/key.lua
	keyLua string
	//go:embed lua/revoke.lua
	revokeLua string
	//go:embed lua/config.lua
	configLua string
	//go:embed lua/history.lua
	historyLua string
	//go:embed lua/delete.lua
	deleteLua string
	//go:embed lua/token.lua
	tokenLua string
	//go:embed lua/ready.lua
	readyLua string

	issueScript  = newScript(issueLua)
	chargeScript = newScript(chargeLua)
	keyScript    = newScript(keyLua)
	revokeScript = newScript(revokeLua)

	configScript  = newScript(configLua)
	historyScript = newScript(historyLua)
	deleteScript  = newScript(deleteLua)
	tokenScript   = newScript(tokenLua)
	readyScript   = newScript(readyLua)
)

// script has the first argument of EVAL and of EVALSHA.
type script struct{ source, sha1 []any }

func newScript(source string) *script {
	return &script{[]any{source}, []any{fmt.Sprintf("%x", sha1.Sum([]byte(source)))}}
}

// store is all that tollgate keeps, in Redis. Its methods may be called from any number of goroutines. They give up
// after callTimeout or adminTimeout with ErrUnavailable, and take no context: to give up a command that was sent, because
// a client went away, would close the connection while Redis carries the command out all the same, and nobody would know
// of it.
type store struct {
	pool      *redis.Pool
	shared    *pipeline // for what every request does
	log       *logger
	metrics   *metrics
	configs   configCache
	unwatch   func()        // ends watch
	histories chan struct{} // holds one: histories may be large, so one is read at a time
	demoted   chan struct{} // holds one: Redis was, so watch has to connect anew
	faults    sync.Mutex    // over the next three, and what is logged of them
	faulty    atomic.Bool   // the log says that Redis is unavailable
	faultTime time.Time     // when a call last found it so
	refused   map[any]bool  // commands and scripts that Redis has refused in it and not carried out since
	staleTime atomic.Int64  // connections that were last used before it, in Unix nanoseconds, are of no use
}

// openStore connects to Redis, checks that it can serve tollgate, and writes the config of tenant seedTenant if it is
// not there, all within timeout. The caller closes the store.
func openStore(ctx context.Context, redisURL *redisURL, timeout time.Duration, log *logger) (*store, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := redisURL.dial(ctx, timeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := redis.DoContext(c, ctx, "PING"); err != nil {
		return nil, err
	}
	info, err := redis.String(redis.DoContext(c, ctx, "INFO"))
	if refused, ok := errors.AsType[redis.Error](err); ok {
		log.warnf("Redis does not tell its version and settings: %v", refused)
	} else if err != nil {
		return nil, err
	} else {
		if err := checkRedisVersion(info); err != nil {
			return nil, err
		}
		if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
			log.warnf("Redis's maxmemory-policy is %s: once its memory is full it evicts keys, and balances with them; set it to noeviction", policy)
		}
		if infoField(info, "aof_enabled") == "0" {
			log.warnf("Redis keeps no append-only file: when it restarts it forgets charges; set appendonly to yes")
		}
	}
	if _, err := redis.DoContext(c, ctx, "EVAL", append([]any{readyLua}, needed...)...); err != nil {
		return nil, err
	}
	seed, err := parseConfig(seedConfig)
	if err != nil {
		return nil, err
	}
	create := redis.Args{configLua}.Add(4).AddFlat(configKeys(seedTenant)).Add("create", seedTenant, seed.raw, formatTime(time.Now()), "seed", "")
	if _, err := redis.DoContext(c, ctx, "EVAL", create...); err != nil {
		return nil, err
	}

	s := &store{log: log, metrics: newMetrics(), histories: make(chan struct{}, 1), demoted: make(chan struct{}, 1), refused: make(map[any]bool)}
	s.pool = &redis.Pool{
		MaxActive: poolSize,
		MaxIdle:   poolSize, // fewer would be redialled all the time under load
		Wait:      true,
		DialContext: func(ctx context.Context) (redis.Conn, error) {
			return redisURL.dial(ctx, callTimeout)
		},
		TestOnBorrowContext: s.testIdle,
	}
	s.shared = newPipeline(func(ctx context.Context) (redis.Conn, error) {
		s.staleTime.Store(time.Now().UnixNano()) // what ended the last one may have ended others
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var dialer net.Dialer // whose keep-alive of 15 s finds a connection that leads nowhere while it is idle
		return redisURL.dial(ctx, callTimeout, redis.DialReadTimeout(0), redis.DialWriteTimeout(0),
			redis.DialContextFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &lazyConn{Conn: c}, nil
			}))
	})
	watching, cancelWatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	tried := make(chan struct{})
	watch.Go(func() { s.watch(watching, redisURL, tried) })
	s.unwatch = func() {
		cancelWatch()
		watch.Wait()
	}
	<-tried
	return s, nil
}

// close ends all connections. Nobody may use the store any more: the server has drained before.
func (s *store) close() error {
	s.unwatch()
	s.shared.close()
	return s.pool.Close()
}

// errStale is why a connection is not used again.
var errStale = errors.New("connection of before a fault")

// testIdle refuses a connection that Redis may have closed while it was idle, so that a request does not pay for it.
func (s *store) testIdle(ctx context.Context, c redis.Conn, lastUsed time.Time) error {
	if lastUsed.UnixNano() <= s.staleTime.Load() {
		return errStale
	}
	if time.Since(lastUsed) < trustedIdleTime {
		return nil
	}
	_, err := redis.DoContext(c, ctx, "PING")
	if _, answered := errors.AsType[redis.Error](err); answered {
		return nil // LOADING, MISCONF: the connection is sound, Redis will say the same on a new one
	}
	return err
}

// do runs one command on a connection of the pool. A reply may be nil; a command that Redis refuses is an error.
func (s *store) do(timeout time.Duration, command string, args ...any) (any, error) {
	return s.with(timeout, command, func(c *call) (any, error) { return c.do(command, args...) })
}

// eval runs a script, which Redis forgets when it restarts, is promoted or is told to: then it is sent again.
func (s *store) eval(timeout time.Duration, sc *script, keys []string, args ...any) (any, error) {
	all := make([]any, 0, 2+len(keys)+len(args))
	all = append(all, sc.sha1[0], len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	all = append(all, args...)
	return s.with(timeout, sc, func(c *call) (any, error) {
		reply, err := c.do("EVALSHA", all...)
		if isNoScript(err) {
			all[0] = sc.source[0]
			return c.do("EVAL", all...)
		}
		return reply, err
	})
}

// evalShared is eval over the connection that all share, until deadline. args are the number of keys, the keys, and the
// script's arguments.
func (s *store) evalShared(deadline time.Time, sc *script, args ...any) (any, error) {
	reply, err := s.shared.do(deadline, "EVALSHA", sc.sha1, args...)
	if isNoScript(err) {
		reply, err = s.shared.do(deadline, "EVAL", sc.source, args...)
	}
	return s.outcome(sc, reply, err)
}

func isNoScript(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT ") }

// call is the use of a connection until a deadline.
type call struct {
	redis.Conn
	deadline time.Time
}

func (c *call) do(command string, args ...any) (any, error) {
	if err := c.Send(command, args...); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil {
		return nil, err
	}
	return c.receive()
}

// receive returns the next reply. redigo would take no time left for no limit.
func (c *call) receive() (any, error) {
	return redis.ReceiveWithTimeout(c.Conn, max(time.Until(c.deadline), time.Nanosecond))
}

// with runs commands on a connection of the pool, all within timeout. what names them.
func (s *store) with(timeout time.Duration, what any, run func(*call) (any, error)) (any, error) {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	c, err := s.pool.GetContext(ctx)
	if err != nil { // none is free, or none can be made: that says nothing about those in use
		return nil, s.fault(what, err)
	}
	reply, err := run(&call{c, deadline})
	c.Close()
	return s.outcome(what, reply, err)
}

// outcome notes what a call of a command or script tells of Redis as a whole, and turns what is no fault of the call into
// ErrUnavailable.
func (s *store) outcome(what, reply any, err error) (any, error) {
	if refused, ok := err.(redis.Error); ok { // one of a command that is not known quotes its arguments, and keys are secrets
		text, _, _ := strings.Cut(string(refused), ", with args")
		err = redis.Error(text)
	}
	if err != nil && unavailable(err) {
		// What came over one connection that is lost, or that leads to a Redis which was demoted, is true of all.
		_, answered := errors.AsType[redis.Error](err)
		demoted := answered && strings.Contains(err.Error(), "READONLY")
		if !answered && err != errPipelineFull || demoted {
			s.staleTime.Store(time.Now().UnixNano())
		}
		if demoted {
			select {
			case s.demoted <- struct{}{}:
			default:
			}
		}
		return nil, s.fault(what, err)
	}
	s.recover(what)
	return reply, err
}

// recover notes that Redis has carried out a command or script. That ends a fault after faultOver, or after refusalOver if
// Redis has refused others since: one that is full, say, still reads.
func (s *store) recover(what any) {
	if !s.faulty.Load() {
		return
	}
	s.faults.Lock()
	defer s.faults.Unlock()
	delete(s.refused, what)
	over := faultOver
	if len(s.refused) > 0 {
		over = refusalOver
	}
	if s.faulty.Load() && time.Since(s.faultTime) > over {
		s.faulty.Store(false)
		clear(s.refused)
		s.log.infof("Redis is available again")
	}
}

// fault notes that Redis is unavailable to a command or script, and logs it once, until recover finds that it is over.
func (s *store) fault(what any, err error) error {
	s.metrics.redisErrors.Add(1)
	s.faults.Lock()
	defer s.faults.Unlock()
	s.faultTime = time.Now()
	if _, answered := errors.AsType[redis.Error](err); answered {
		s.refused[what] = true
	}
	if !s.faulty.Swap(true) {
		s.log.errorf("Redis is unavailable: %v", err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// unavailable tells whether err is about Redis as a whole and may pass: no connection, or one of the error codes
// with which Redis refuses commands that are right in themselves (https://redis.io/docs/latest/develop/reference/protocol-spec/).
func unavailable(err error) bool {
	reply, answered := errors.AsType[redis.Error](err)
	if !answered {
		return true
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(string(reply), "ERR "), " ")
	switch code {
	case "LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS",
		"NOAUTH", "WRONGPASS", "NOPERM":
		return true
	}
	for _, text := range []string{"ERR max number of clients", "ERR The user executing the script", "ERR ACL failure in script"} {
		if strings.HasPrefix(string(reply), text) {
			return true
		}
	}
	return false
}

// writeMetrics writes what is known of Redis and the ways to it, and asks Redis for it.
func (s *store) writeMetrics(e *exposition) {
	up := 1.0
	if s.Ready() != nil {
		up = 0
	}
	e.single("redis_up", "gauge", "1 if Redis would decide a charge, else 0.", up)
	pool := s.pool.Stats()
	e.single("redis_pool_connections", "gauge", "Connections of the pool.", float64(pool.ActiveCount))
	e.single("redis_pool_idle_connections", "gauge", "Connections of the pool that nobody uses.", float64(pool.IdleCount))
	e.single("redis_pool_waits_total", "counter", "Times that a caller had to wait for a connection of the pool.", float64(pool.WaitCount))
	e.single("redis_pool_wait_seconds_total", "counter", "Time that callers have waited for a connection of the pool.", pool.WaitDuration.Seconds())
	e.single("redis_pipeline_commands", "gauge", "Commands that wait to be sent over the shared connection, or for their reply.", float64(s.shared.pending()))
}

// needed is what charges and logins need of Redis, as ready.lua takes it.
var needed = []any{
	4, "apiKey:", "{apiKey:", "login:", "tenant:",
	"DEL HGET HINCRBY HMGET HSET PEXPIRE PEXPIRETIME TIME", "DEL GET LINDEX LLEN LTRIM PEXPIRE PEXPIREAT RPUSH SET",
	"LINDEX LTRIM PEXPIRE RPUSH", "GET PTTL",
}

// Ready returns an error where a charge would not be decided: a Redis that was demoted, or denies a command, answers a PING
// all the same.
func (s *store) Ready() error {
	if _, err := s.evalShared(time.Now().Add(callTimeout), readyScript, needed...); err != nil {
		return fmt.Errorf("look whether Redis decides charges: %w", err)
	}
	return nil
}

const tenantsKey = "tenants"

func configKey(tenantID string) string      { return configPrefix + tenantID + configSuffix }
func historyKey(tenantID string) string     { return "{" + configKey(tenantID) + "}:history" }
func adminTokensKey(tenantID string) string { return "{" + configKey(tenantID) + "}:adminTokens" }

// Tenant returns the tenant with its config: as Redis holds that now, or as it held it at most watchTimeout ago, and
// never older than this store's own last write. tenantID must be valid. Errors: ErrNoTenant, ErrBrokenConfig,
// ErrUnavailable.
func (s *store) Tenant(tenantID string) (*tenant, error) {
	if t := s.configs.get(tenantID); t != nil {
		return t, nil
	}
	place := s.configs.load(tenantID)
	t, lasting, err := s.loadTenant(tenantID)
	if err != nil || !lasting {
		s.configs.drop(tenantID)
	} else {
		s.configs.put(place, t)
	}
	if err != nil && err != ErrNoTenant {
		return nil, fmt.Errorf("load tenant:<tenantId>:config of tenant %s: %w", tenantID, err)
	}
	return t, err
}

// loadTenant asks Redis for tenantID's config. It is lasting unless it expires, of which Redis says nothing until it
// gets round to delete it.
func (s *store) loadTenant(tenantID string) (t *tenant, lasting bool, err error) {
	var ttl int64
	raw, err := redis.Bytes(s.with(callTimeout, "GET", func(c *call) (any, error) {
		if err := c.Send("PTTL", configKey(tenantID)); err != nil {
			return nil, err
		}
		if err := c.Send("GET", configKey(tenantID)); err != nil {
			return nil, err
		}
		if err := c.Flush(); err != nil {
			return nil, err
		}
		var refused error
		ttl, refused = redis.Int64(c.receive())
		reply, err := c.receive()
		return reply, errors.Join(refused, err)
	}))
	if errors.Is(err, redis.ErrNil) {
		return nil, false, ErrNoTenant
	}
	if err != nil {
		return nil, false, err
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %v", ErrBrokenConfig, err) // no *invalidConfig: it is no bad request
	}
	config.etag = fmt.Sprintf("%x", sha1.Sum(raw))
	s.log.infof("Loaded tenant config for %s", tenantID)
	s.metrics.configLoads.Add(1)
	return &tenant{id: tenantID, config: config, idArg: tenantID, metrics: s.metrics.tenant(tenantID)}, ttl < 0, nil
}

// CreateTenant makes tenantID with its config; by whom stands in the history. Of several at once one wins, whole. It
// returns the config's ETag. Errors: ErrTenantExists, ErrUnavailable.
func (s *store) CreateTenant(tenantID string, config *tenantConfig, by admin) (etag string, err error) {
	return s.writeConfig("create", tenantID, config, by, nil)
}

// ReplaceConfig replaces tenantID's config as a whole and returns the new ETag, if its ETag meets all conditions, which
// are as config.lua takes them. Whether by may still do so, the comparison, the config and its history are one atomic
// step. Errors: ErrNoTenant where it has none (it is never made here), ErrRevoked, ErrConfigChanged, ErrUnavailable.
func (s *store) ReplaceConfig(tenantID string, config *tenantConfig, by admin, conditions []string) (etag string, err error) {
	return s.writeConfig("replace", tenantID, config, by, conditions)
}

func (s *store) writeConfig(how, tenantID string, config *tenantConfig, by admin, conditions []string) (string, error) {
	defer s.configs.drop(tenantID) // Redis will say so too, but later than the answer
	args := []any{how, tenantID, config.raw, formatTime(time.Now()), by.String(), by.tokenHash}
	for _, condition := range conditions {
		args = append(args, condition)
	}
	reply, err := redis.String(s.eval(adminTimeout, configScript, configKeys(tenantID), args...))
	if err != nil {
		return "", fmt.Errorf("%s tenant:<tenantId>:config of tenant %s, with its history: %w", how, tenantID, err)
	}
	switch reply {
	case "exists":
		return "", ErrTenantExists
	case "missing":
		return "", ErrNoTenant
	case "revoked":
		return "", ErrRevoked
	case "changed":
		return "", ErrConfigChanged
	}
	return reply, nil
}

// configKeys are all that a tenant has in Redis, as config.lua and delete.lua take them.
func configKeys(tenantID string) []string {
	return []string{configKey(tenantID), historyKey(tenantID), adminTokensKey(tenantID), tenantsKey}
}

// version is one that a config had, or has: when it was saved and by whom.
type version struct {
	ETag    string `json:"etag"`
	SavedAt string `json:"savedAt"`
	SavedBy string `json:"savedBy"`
}

// History lists the last versions of tenantID's config, newest first. Error: ErrUnavailable.
func (s *store) History(tenantID string) ([]version, error) {
	lines, err := redis.Strings(s.history(tenantID, ""))
	if err != nil {
		return nil, err
	}
	versions := make([]version, len(lines))
	for i, line := range lines {
		v := &versions[i]
		v.ETag, line, _ = strings.Cut(line, " ")
		v.SavedAt, v.SavedBy, _ = strings.Cut(line, " ")
	}
	return versions, nil
}

// Version returns a config that tenantID had, as it was saved. Errors: ErrNoVersion, ErrUnavailable.
func (s *store) Version(tenantID, etag string) ([]byte, error) {
	if etag == "" {
		return nil, ErrNoVersion
	}
	config, err := redis.Bytes(s.history(tenantID, etag))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNoVersion
	}
	return config, err
}

// history is what history.lua returns. A history has up to 20 MB, which Redis reads in 30 ms and does nothing else
// meanwhile, so this process asks for one at a time.
func (s *store) history(tenantID, etag string) (any, error) {
	deadline := time.Now().Add(adminTimeout)
	select {
	case s.histories <- struct{}{}:
		defer func() { <-s.histories }()
	case <-time.After(adminTimeout):
		return nil, fmt.Errorf("%w: too many histories are read", ErrUnavailable)
	}
	reply, err := s.eval(time.Until(deadline), historyScript, []string{historyKey(tenantID)}, etag)
	if err != nil {
		return nil, fmt.Errorf("read {tenant:<tenantId>:config}:history of tenant %s: %w", tenantID, err)
	}
	return reply, nil
}

// Tenants lists, in order, those that tollgate made or whose config was replaced through it, and that have one now.
// Error: ErrUnavailable.
func (s *store) Tenants() ([]string, error) {
	ids, err := redis.Strings(s.do(adminTimeout, "SMEMBERS", tenantsKey))
	if err != nil {
		return nil, fmt.Errorf("list those in tenants: %w", err)
	}
	slices.Sort(ids)
	there := make([]bool, len(ids))
	_, err = s.with(adminTimeout, "EXISTS", func(c *call) (any, error) {
		for _, id := range ids {
			if err := c.Send("EXISTS", configKey(id)); err != nil {
				return nil, err
			}
		}
		if err := c.Flush(); err != nil {
			return nil, err
		}
		for i := range ids {
			if there[i], err = redis.Bool(c.receive()); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list those in tenants: %w", err)
	}
	existing := make([]string, 0, len(ids))
	for i, id := range ids {
		if there[i] {
			existing = append(existing, id)
		}
	}
	return existing, nil
}

// DeleteTenant deletes tenantID's config with its history, and its admin tokens, if the config's ETag is one of ifMatch,
// or whatever it is where ifMatch is empty, in one atomic step. Its API keys stay, and are good again if it is made
// again. Errors: ErrNoTenant, ErrConfigChanged, ErrUnavailable.
func (s *store) DeleteTenant(tenantID string, ifMatch []string) error {
	defer s.configs.drop(tenantID)
	args := []any{tenantID}
	for _, etag := range ifMatch {
		args = append(args, etag)
	}
	n, err := redis.Int(s.eval(adminTimeout, deleteScript, configKeys(tenantID), args...))
	if err != nil {
		return fmt.Errorf("delete tenant:<tenantId>:config of tenant %s: %w", tenantID, err)
	}
	switch n {
	case 0:
		return ErrNoTenant
	case -1:
		return ErrConfigChanged
	}
	return nil
}

// AddAdminToken keeps tenantID's admin token, as its SHA-256 hash, if the admin who asks may still do so, in one atomic
// step. Errors: ErrNoTenant, ErrRevoked, ErrUnavailable.
func (s *store) AddAdminToken(tenantID string, hash [sha256.Size]byte, by admin) error {
	keys := []string{configKey(tenantID), adminTokensKey(tenantID)}
	n, err := redis.Int(s.eval(adminTimeout, tokenScript, keys, hex.EncodeToString(hash[:]), formatTime(time.Now()), by.tokenHash))
	if err != nil {
		return fmt.Errorf("add to {tenant:<tenantId>:config}:adminTokens of tenant %s: %w", tenantID, err)
	}
	switch n {
	case 0:
		return ErrNoTenant
	case -1:
		return ErrRevoked
	}
	return nil
}

// IsAdminToken tells whether tenantID has an admin token of that SHA-256. That Redis looks it up, rather than compares
// it in constant time, tells nobody anything: to steer a SHA-256 one would have to know the token. Error: ErrUnavailable.
func (s *store) IsAdminToken(tenantID string, hash [sha256.Size]byte) (bool, error) {
	is, err := redis.Bool(s.do(adminTimeout, "HEXISTS", adminTokensKey(tenantID), hex.EncodeToString(hash[:])))
	if err != nil {
		return false, fmt.Errorf("look into {tenant:<tenantId>:config}:adminTokens of tenant %s: %w", tenantID, err)
	}
	return is, nil
}

// RevokeAdminTokens ends all admin tokens of tenantID at once. Error: ErrUnavailable.
func (s *store) RevokeAdminTokens(tenantID string) error {
	if _, err := s.do(adminTimeout, "DEL", adminTokensKey(tenantID)); err != nil {
		return fmt.Errorf("delete {tenant:<tenantId>:config}:adminTokens of tenant %s: %w", tenantID, err)
	}
	return nil
}

// apiKey is what Redis holds of an API key.
type apiKey struct {
	TenantID   string
	UserID     string // "": anonymous
	Group      string
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	TokensLeft int64
}

func apiKeyKey(key string) string { return "apiKey:" + key }

// IssueKey makes the API key, with an expiry if life is not 0, in one atomic step, within timeout. Where loginLimit is
// not 0, at most that many keys are made in any minute for address, over all processes: beyond it the error is a
// rateLimited and nothing is written. Otherwise address does not matter. k.ExpiresAt is not read.
func (s *store) IssueKey(timeout time.Duration, key string, k apiKey, life time.Duration, address string, loginLimit int64) error {
	keys := []any{1, apiKeyKey(key)}
	if loginLimit > 0 {
		keys = []any{2, apiKeyKey(key), "login:" + address}
	}
	args := append(keys, life.Milliseconds(), loginLimit, k.TenantID, k.Group, formatTime(k.CreatedAt), k.TokensLeft)
	if k.UserID != "" {
		args = append(args, k.UserID)
	}
	wait, err := redis.Int64(s.evalShared(time.Now().Add(timeout), issueScript, args...))
	if err != nil {
		return fmt.Errorf("make apiKey:<apiKey> of tenant %s, with login:<address>: %w", k.TenantID, err)
	}
	if wait > 0 {
		return rateLimited{retryAfter: wait}
	}
	return nil
}

// Key returns tenantID's API key, within timeout. key must be valid. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Key(timeout time.Duration, tenantID, key string) (apiKey, error) {
	return s.changeKey(timeout, tenantID, key, keyChange{})
}

// keyChange is what to do to an API key; the zero value does nothing.
type keyChange struct {
	balance string // "add" tokens to the balance, "set" it to tokens, or "": leave it
	tokens  int64  // up to ± maxAmount
	group   *string
}

// ChangeKey changes tenantID's API key in one atomic step, without a change to its expiry, and returns it as it is
// then. key must be valid. Errors: ErrNoKey, ErrBalanceRange (nothing was changed), ErrUnavailable.
func (s *store) ChangeKey(tenantID, key string, change keyChange) (apiKey, error) {
	return s.changeKey(adminTimeout, tenantID, key, change)
}

func (s *store) changeKey(timeout time.Duration, tenantID, key string, change keyChange) (apiKey, error) {
	args := []any{1, apiKeyKey(key), tenantID, change.balance, change.tokens}
	if change.group != nil {
		args = append(args, *change.group)
	}
	reply, err := s.evalShared(time.Now().Add(timeout), keyScript, args...)
	if err != nil {
		return apiKey{}, fmt.Errorf("look at apiKey:<apiKey> of tenant %s: %w", tenantID, err)
	}
	switch reply.(type) {
	case nil:
		return apiKey{}, ErrNoKey
	case []byte:
		return apiKey{}, ErrBalanceRange
	}
	k, err := parseAPIKey(tenantID, reply)
	if err != nil {
		return apiKey{}, fmt.Errorf("look at apiKey:<apiKey> of tenant %s: %w", tenantID, err)
	}
	return k, nil
}

// parseAPIKey reads what key.lua shows.
func parseAPIKey(tenantID string, reply any) (apiKey, error) {
	k := apiKey{TenantID: tenantID}
	var createdAt string
	var expiresAt int64
	values, err := redis.Values(reply, nil)
	if err == nil {
		_, err = redis.Scan(values, &k.UserID, &k.Group, &createdAt, &k.TokensLeft, &expiresAt)
	}
	if err == nil {
		k.CreatedAt, err = time.Parse(time.RFC3339, createdAt)
	}
	if err != nil {
		return k, errors.New("junk") // the error itself may show a value
	}
	if expiresAt >= 0 {
		k.ExpiresAt = time.UnixMilli(expiresAt)
	}
	return k, nil
}

// RevokeKey deletes tenantID's API key: from then on it is ErrNoKey for every process. key must be valid. Errors:
// ErrNoKey, ErrUnavailable.
func (s *store) RevokeKey(tenantID, key string) error {
	n, err := redis.Int(s.eval(adminTimeout, revokeScript, []string{apiKeyKey(key), rateKey(key)}, tenantID))
	if err != nil {
		return fmt.Errorf("revoke apiKey:<apiKey> of tenant %s: %w", tenantID, err)
	}
	if n == 0 {
		return ErrNoKey
	}
	return nil
}

func rateKey(key string) string { return "{apiKey:" + key + "}:rate" }

// A charge is what Charge does.
type charge struct {
	key            string // a valid API key
	tokens         int64  // 0 … maxAmount; 0 takes nothing, but needs a balance of 1
	idempotencyKey string // "": none
}

// receipt is what a charge led to.
type receipt struct {
	tokensLeft int64
	replayed   bool // the Idempotency-Key was known: nothing was taken now, tokensLeft is of the first time
	group      string
	userID     string // "": anonymous
	limited    bool   // there is a rate limit:
	rate       rate
}

// rate is what an API key has used of its group's rate limit.
type rate struct {
	limit, window int64 // requests in any so many seconds
	remaining     int64 // requests that would be accepted now
	wait          int64 // seconds until a slot frees, 0 where none is used
}

// Charge takes c.tokens from the balance of t's API key, all or none, within the rate limit of the key's group, in one
// atomic step in Redis. With an Idempotency-Key it does so once in 24 h, however often it is called. Errors: ErrNoKey;
// rateLimited and tokensSpent, with nothing used and a receipt; ErrKeyReused; ErrUnavailable when Redis may or may not
// have taken them.
func (s *store) Charge(t *tenant, c charge) (receipt, error) {
	rate := rateKey(c.key)
	key := rate[1 : len(rate)-len("}:rate")]
	args := append(make([]any, 0, 10), 1, key)
	switch {
	case c.idempotencyKey != "":
		args = append(args, rate, "{"+key+"}:charge:"+c.idempotencyKey)
		args[0] = 3
	case len(t.config.limits) > 0:
		args = append(args, rate)
		args[0] = 2
	}
	args = append(args, t.idArg, c.tokens)
	deadline := time.Now().Add(callTimeout)
	for group := anonymousGroup; ; {
		reply, err := redis.Bytes(s.evalShared(deadline, chargeScript, t.config.appendLimits(args, group)...))
		if errors.Is(err, redis.ErrNil) {
			return receipt{}, ErrNoKey
		}
		var got receipt
		var outcome string
		if err == nil {
			outcome, got, err = parseReceipt(string(reply))
		}
		if err != nil {
			return receipt{}, fmt.Errorf("charge apiKey:<apiKey> of tenant %s: %w", t.id, err)
		}
		switch outcome {
		case "charged":
			return got, nil
		case "replayed":
			got.replayed = true
			return got, nil
		case "mismatch":
			return got, ErrKeyReused
		case "limited":
			return got, rateLimited{retryAfter: got.rate.wait}
		case "spent":
			return got, tokensSpent{got.tokensLeft}
		}
		group = got.group
	}
}

// parseReceipt reads what charge.lua returns.
func parseReceipt(reply string) (outcome string, got receipt, err error) {
	numbers, who, _ := strings.Cut(reply, "\n")
	got.userID, got.group, _ = strings.Cut(who, "\n")
	outcome, numbers, _ = strings.Cut(numbers, " ")
	read := func() int64 {
		var number string
		number, numbers, _ = strings.Cut(numbers, " ")
		if n, bad := strconv.ParseInt(number, 10, 64); bad == nil {
			return n
		}
		err = errors.New("the script's reply is none") // bad shows what it is
		return 0
	}
	got.tokensLeft = read()
	if numbers != "" {
		got.limited = true
		got.rate = rate{read(), read(), read(), read()}
	}
	return outcome, got, err
}

// formatTime is t in UTC as RFC 3339 has it, to the millisecond.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// checkRedisVersion refuses what is older than Redis 7.0 or Valkey 7.2, given the reply of INFO. Valkey calls itself
// Redis 7.2 for the sake of clients.
func checkRedisVersion(info string) error {
	version := infoField(info, "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("version %s is too old: tollgate needs Redis 7.0 or Valkey 7.2 or newer", version)
	}
	return nil
}

// infoField is the value of one line of INFO's reply, "" where there is none.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// redisURL is where Redis is and how to log in there.
type redisURL struct {
	network, address   string
	tls                bool
	username, password string
	db                 int
}

// parseRedisURL reads redis://[[user]:password@]host[:port][/db], rediss:// for the same over TLS, and
// unix://[[user]:password@]/path/redis.sock[?db=n]. Its errors show nothing of the URL, which may hold a password.
func parseRedisURL(s string) (*redisURL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("is no URL (are special characters in its password percent-encoded?)")
	}
	r := &redisURL{username: u.User.Username()}
	r.password, _ = u.User.Password()
	if r.username != "" && r.password == "" {
		return nil, errors.New("has a user but no password")
	}
	db := strings.TrimPrefix(u.Path, "/")
	query := u.Query()
	switch u.Scheme {
	case "redis", "rediss":
		r.network, r.tls = "tcp", u.Scheme == "rediss"
		host, port := u.Hostname(), u.Port()
		if host == "" {
			host = "localhost"
		}
		if port == "" {
			port = "6379"
		}
		r.address = net.JoinHostPort(host, port)
	case "unix":
		if u.Host != "" || u.Path == "" {
			return nil, errors.New("must have three slashes before a socket's path: unix:///path/redis.sock")
		}
		r.network, r.address = "unix", u.Path
		db = query.Get("db")
		query.Del("db")
	default:
		return nil, errors.New("must begin with redis://, rediss:// or unix://")
	}
	if len(query) > 0 || u.Fragment != "" || u.Opaque != "" {
		return nil, errors.New("has a query or fragment that is not known")
	}
	if db != "" {
		if r.db, err = strconv.Atoi(db); err != nil || r.db < 0 {
			return nil, errors.New("has a database number that is no whole number ≥ 0")
		}
	}
	return r, nil
}

// dial connects, logs in and selects the database. Each of these steps, and each read later, may take timeout; a write,
// which waits only where Redis does not read, adminTimeout.
func (r *redisURL) dial(ctx context.Context, timeout time.Duration, more ...redis.DialOption) (redis.Conn, error) {
	handshake := timeout
	if deadline, ok := ctx.Deadline(); ok { // for TLS, redigo does not look at it
		handshake = max(min(timeout, time.Until(deadline)), time.Millisecond)
	}
	return redis.DialContext(ctx, r.network, r.address, append([]redis.DialOption{
		redis.DialConnectTimeout(timeout), redis.DialReadTimeout(timeout), redis.DialWriteTimeout(adminTimeout),
		redis.DialUseTLS(r.tls), redis.DialTLSHandshakeTimeout(handshake),
		redis.DialUsername(r.username), redis.DialPassword(r.password), redis.DialDatabase(r.db),
	}, more...)...)
}

// redact takes the password out of a text that may quote it.
func (r *redisURL) redact(text string) string {
	if r.password == "" {
		return text
	}
	return strings.ReplaceAll(text, r.password, "xxxxx")
}

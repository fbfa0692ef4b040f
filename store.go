package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
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
	// ErrTokensSpent: the balance is smaller than the charge, and untouched.
	ErrTokensSpent = errors.New("not enough tokens")
	// ErrUnavailable: Redis did not answer in time or refuses to work. A write may or may not have happened.
	ErrUnavailable = errors.New("redis is unavailable")
)

// rateLimited is refused for now; nothing was written.
type rateLimited struct {
	retryAfter time.Duration // until the same request may be accepted
}

func (rateLimited) Error() string { return "rate limited" }

const (
	anonymousKeyLife = 24 * time.Hour

	// Together they bound one call of the store: two calls, which are the most a request makes, stay below 2 s.
	acquireTimeout = 400 * time.Millisecond // to get a connection: wait for one, or dial
	commandTimeout = 500 * time.Millisecond // for one reply of Redis

	maxConnections = 64
	// A connection that was idle for longer is asked PING before it is used: Redis may have been restarted meanwhile.
	trustedIdleTime = time.Second
)

// Each script is one atomic step in Redis. Its head says what it takes and returns.
var (
	//go:embed lua/issue.lua
	issueLua string
	//go:embed lua/consume.lua
	consumeLua string
	//go:embed lua/show.lua
	showLua string

	issueScript   = redis.NewScript(2, issueLua)
	consumeScript = redis.NewScript(1, consumeLua)
	showScript    = redis.NewScript(1, showLua)
)

// store is all that tollgate keeps, in Redis. Its methods may be called from any number of goroutines. They give up
// after acquireTimeout + commandTimeout with ErrUnavailable. A context that ends stops the wait for a connection, but
// never a command that was sent: Redis would carry it out all the same, and nobody would know of it.
type store struct {
	pool      *redis.Pool
	log       *logger
	faulty    atomic.Bool  // the last call found Redis unavailable
	faultTime atomic.Int64 // when one last did, in Unix nanoseconds
}

// openStore connects to Redis and checks that it can serve tollgate, within timeout. The caller closes the store.
func openStore(ctx context.Context, redisURL *redisURL, timeout time.Duration, log *logger) (*store, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := redisURL.dial(ctx, timeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Do("PING"); err != nil {
		return nil, err
	}
	info, err := redis.String(c.Do("INFO"))
	if err != nil {
		return nil, err
	}
	if err := checkRedisVersion(info); err != nil {
		return nil, err
	}
	if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
		log.warnf("Redis's maxmemory-policy is %s: once its memory is full it evicts keys, and balances with them; set it to noeviction", policy)
	}

	s := &store{log: log}
	s.pool = &redis.Pool{
		MaxActive: maxConnections,
		MaxIdle:   maxConnections, // fewer would be redialled all the time under load
		Wait:      true,
		DialContext: func(ctx context.Context) (redis.Conn, error) {
			return redisURL.dial(ctx, commandTimeout)
		},
		TestOnBorrowContext: s.testIdle,
	}
	return s, nil
}

// close waits for nothing: the server has drained before.
func (s *store) close() error { return s.pool.Close() }

// testIdle refuses a connection that Redis may have closed while it was idle, so that a request does not pay for it.
func (s *store) testIdle(ctx context.Context, c redis.Conn, lastUsed time.Time) error {
	if time.Since(lastUsed) < trustedIdleTime && lastUsed.UnixNano() > s.faultTime.Load() {
		return nil
	}
	_, err := redis.DoContext(c, ctx, "PING")
	if _, answered := errors.AsType[redis.Error](err); answered {
		return nil // LOADING, MISCONF: the connection is sound, Redis will say the same on a new one
	}
	return err
}

// do runs one command or script on a connection of the pool. A reply may be nil, a Redis error is none.
func (s *store) do(ctx context.Context, run func(redis.Conn) (any, error)) (any, error) {
	acquire, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	c, err := s.pool.GetContext(acquire)
	if err != nil {
		if ctx.Err() != nil { // the client has gone, which says nothing about Redis
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		return nil, s.fault(err)
	}
	defer c.Close()
	reply, err := run(c)
	if err != nil && unavailable(err) {
		return nil, s.fault(err)
	}
	if s.faulty.Load() && s.faulty.Swap(false) {
		s.log.infof("Redis is available again")
	}
	return reply, err
}

func (s *store) script(ctx context.Context, script *redis.Script, keysAndArgs ...any) (any, error) {
	return s.do(ctx, func(c redis.Conn) (any, error) { return script.Do(c, keysAndArgs...) })
}

// fault notes that Redis is unavailable and logs it once, until it is available again.
func (s *store) fault(err error) error {
	s.faultTime.Store(time.Now().UnixNano())
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
	return strings.HasPrefix(string(reply), "ERR max number of clients")
}

// Ping returns ErrUnavailable where Redis does not answer.
func (s *store) Ping(ctx context.Context) error {
	_, err := s.do(ctx, func(c redis.Conn) (any, error) { return c.Do("PING") })
	return err
}

func configKey(tenantID string) string { return "tenant:" + tenantID + ":config" }

// Seed writes tenantID's config, compact, unless it has one.
func (s *store) Seed(ctx context.Context, tenantID string, config *tenantConfig) error {
	_, err := s.do(ctx, func(c redis.Conn) (any, error) {
		return c.Do("SET", configKey(tenantID), config.raw, "NX")
	})
	if err == nil {
		err = s.listTenant(ctx, tenantID)
	}
	if err != nil {
		return fmt.Errorf("seed tenant %s: %w", tenantID, err)
	}
	return nil
}

// Config returns tenantID's config as Redis holds it now. tenantID must be valid. Errors: ErrNoTenant,
// ErrUnavailable, and *invalidConfig where somebody has put what is no config straight into Redis.
func (s *store) Config(ctx context.Context, tenantID string) (*tenantConfig, error) {
	raw, err := redis.Bytes(s.do(ctx, func(c redis.Conn) (any, error) { return c.Do("GET", configKey(tenantID)) }))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNoTenant
	}
	if err != nil {
		return nil, fmt.Errorf("load config of tenant %s: %w", tenantID, err)
	}
	config, err := parseConfig(raw)
	if err != nil {
		// Not wrapped: to the client a broken config is no bad request, but a fault of ours.
		return nil, fmt.Errorf("load config of tenant %s: %v", tenantID, err)
	}
	return config, nil
}

// ReplaceConfig replaces tenantID's config as a whole, in one atomic step. Errors: ErrNoTenant where it has none (it
// is never made here), ErrUnavailable.
func (s *store) ReplaceConfig(ctx context.Context, tenantID string, config *tenantConfig) error {
	reply, err := s.do(ctx, func(c redis.Conn) (any, error) {
		return c.Do("SET", configKey(tenantID), config.raw, "XX")
	})
	if err == nil && reply == nil {
		return ErrNoTenant
	}
	if err == nil {
		err = s.listTenant(ctx, tenantID)
	}
	if err != nil {
		return fmt.Errorf("replace config of tenant %s: %w", tenantID, err)
	}
	return nil
}

// listTenant adds a tenant that exists to the set of those that do; doing it again changes nothing.
func (s *store) listTenant(ctx context.Context, tenantID string) error {
	_, err := s.do(ctx, func(c redis.Conn) (any, error) { return c.Do("SADD", "tenants", tenantID) })
	return err
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

// IssueKey makes the API key, with an expiry if life is not 0, in one atomic step. Where loginLimit is not 0, at most
// that many keys are made in any minute for address, over all processes: beyond it the error is a rateLimited and
// nothing is written. Otherwise address does not matter. k.ExpiresAt is not read.
func (s *store) IssueKey(ctx context.Context, key string, k apiKey, life time.Duration, address string, loginLimit int64) error {
	args := []any{
		apiKeyKey(key), "login:" + address, life.Milliseconds(), loginLimit,
		"tenantId", k.TenantID, "group", k.Group, "createdAt", formatTime(k.CreatedAt), "tokensLeft", k.TokensLeft,
	}
	if k.UserID != "" {
		args = append(args, "userId", k.UserID)
	}
	wait, err := redis.Int64(s.script(ctx, issueScript, args...))
	if err != nil {
		return fmt.Errorf("issue key: %w", err)
	}
	if wait > 0 {
		return rateLimited{retryAfter: time.Duration(wait) * time.Microsecond}
	}
	return nil
}

// Key returns what tenantID's API key is. key must be valid. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Key(ctx context.Context, tenantID, key string) (apiKey, error) {
	k, err := parseAPIKey(s.script(ctx, showScript, apiKeyKey(key)))
	if err != nil {
		return apiKey{}, fmt.Errorf("look at key: %w", err)
	}
	if k.TenantID != tenantID {
		return apiKey{}, ErrNoKey
	}
	return k, nil
}

// parseAPIKey reads what show.lua returns. A key that is not there has no tenant.
func parseAPIKey(reply any, err error) (k apiKey, _ error) {
	values, err := redis.Values(reply, err)
	if err != nil {
		return k, err
	}
	var createdAt string
	var expiresAt int64
	if _, err := redis.Scan(values, &k.TenantID, &k.UserID, &k.Group, &createdAt, &k.TokensLeft, &expiresAt); err != nil {
		return k, err
	}
	if createdAt != "" {
		if k.CreatedAt, err = time.Parse(time.RFC3339, createdAt); err != nil {
			return k, errors.New("createdAt is no RFC 3339 time")
		}
	}
	if expiresAt >= 0 {
		k.ExpiresAt = time.UnixMilli(expiresAt)
	}
	return k, nil
}

// Consume takes n tokens (1 ≤ n ≤ maxAmount) from the balance of tenantID's API key, all or none, in one atomic step
// in Redis, and returns the balance that remains. Errors: ErrNoKey, ErrTokensSpent (with the balance, left as it was),
// ErrUnavailable when Redis may or may not have taken them.
func (s *store) Consume(ctx context.Context, tenantID, key string, n int64) (left int64, err error) {
	reply, err := redis.Int64s(s.script(ctx, consumeScript, apiKeyKey(key), tenantID, n))
	switch {
	case errors.Is(err, redis.ErrNil):
		return 0, ErrNoKey
	case err != nil:
		return 0, fmt.Errorf("consume: %w", err)
	case reply[0] == 0:
		return reply[1], ErrTokensSpent
	}
	return reply[1], nil
}

// formatTime is t in UTC as RFC 3339 has it, to the millisecond.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// checkRedisVersion refuses what is older than Redis 7.0 or Valkey 7.2, given the reply of INFO. Valkey calls itself
// Redis 7.2 for the sake of clients.
func checkRedisVersion(info string) error {
	version := infoField(info, "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("its version is %q, but tollgate needs Redis 7.0 or Valkey 7.2 or newer", version)
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

// dial connects, logs in and selects the database. Each of its reads and writes, then and later, may take timeout.
func (r *redisURL) dial(ctx context.Context, timeout time.Duration) (redis.Conn, error) {
	return redis.DialContext(ctx, r.network, r.address,
		redis.DialConnectTimeout(timeout), redis.DialReadTimeout(timeout), redis.DialWriteTimeout(timeout),
		redis.DialUseTLS(r.tls), redis.DialTLSHandshakeTimeout(timeout),
		redis.DialUsername(r.username), redis.DialPassword(r.password), redis.DialDatabase(r.db))
}

// redact takes the password out of a text that may quote it.
func (r *redisURL) redact(text string) string {
	if r.password == "" {
		return text
	}
	return strings.ReplaceAll(text, r.password, "xxxxx")
}

package main

import (
	"crypto/sha1"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Errors that the layers above may use begin with Err, as do the store's methods that they may call with a capital. Any
// other error of the store is a bug or malformed data in Redis.
var (
	// ErrNoTenant means that the tenant has no config.
	ErrNoTenant = errors.New("no such tenant")
	// ErrNoKey means that the API key is unknown, expired or another tenant's.
	ErrNoKey = errors.New("no such API key")
	// ErrBrokenConfig means that the tenant's config in Redis breaks the rules. It was written straight to Redis.
	ErrBrokenConfig = errors.New("broken config")
	// ErrTenantExists means that the tenant has a config already.
	ErrTenantExists = errors.New("tenant exists")
	// ErrConfigChanged means that the config is not one of those that the change was meant for.
	ErrConfigChanged = errors.New("config has changed")
	// ErrNoVersion means that the history has no version with that ETag.
	ErrNoVersion = errors.New("no such version")
	// ErrRevoked means that the caller's admin token was revoked meanwhile.
	ErrRevoked = errors.New("admin token was revoked")
	// ErrKeyReused means that the Idempotency-Key has charged another amount before.
	ErrKeyReused = errors.New("idempotency key was used with other parameters")
	// ErrBalanceRange means that a change would have taken a balance below 0 or above maxAmount.
	ErrBalanceRange = errors.New("balance out of range")
)

// rateLimitError refuses a request for now; nothing was written.
type rateLimitError struct {
	retryAfter time.Duration // whole seconds, at least one, until the same request may be accepted
}

func (rateLimitError) Error() string { return "rate limited" }

// insufficientTokensError refuses a charge that the balance does not cover; nothing was written.
type insufficientTokensError struct{ tokensLeft int64 }

func (insufficientTokensError) Error() string { return "not enough tokens" }

// anonymousKeyTTL is how long the API key of an anonymous user lives.
const anonymousKeyTTL = 24 * time.Hour

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
	//go:embed lua/unchanged.lua
	unchangedLua string
	//go:embed lua/history.lua
	historyLua string
	//go:embed lua/delete.lua
	deleteLua string
	//go:embed lua/token.lua
	tokenLua string

	issueScript     = newScript("issue", issueLua)
	chargeScript    = newScript("charge", chargeLua)
	keyScript       = newScript("key", keyLua)
	revokeScript    = newScript("revoke", revokeLua)
	configScript    = newScript("config", configLua)
	unchangedScript = newScript("unchanged", unchangedLua)
	historyScript   = newScript("history", historyLua)
	deleteScript    = newScript("delete", deleteLua)
	tokenScript     = newScript("token", tokenLua)
)

// requiredCommands are the commands that charges, logins and the loading of configs need, by prefix of their keys.
var requiredCommands = []requirement{
	{"apiKey:", "DEL HGET HINCRBY HMGET HSET PEXPIRE PEXPIRETIME TIME"},
	{"{apiKey:", "DEL GET LINDEX LLEN LTRIM PEXPIRE PEXPIREAT RPUSH SET"},
	{"login:", "LINDEX LTRIM PEXPIRE RPUSH"},
	{"tenant:", "GET"},
}

// Keys in Redis. All keys of one API key, and all of one tenant's config, hash to one slot of a Redis Cluster. All
// keys of one script must: what spans slots is done in steps, in an order in which a crash in between does no harm.
const tenantsRedisKey = "tenants"

func configRedisKey(tenantID string) string  { return "tenant:" + tenantID + ":config" }
func historyRedisKey(tenantID string) string { return "{tenant:" + tenantID + ":config}:history" }
func adminTokensRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:adminTokens"
}
func apiKeyRedisKey(key string) string    { return "apiKey:" + key }
func rateRedisKey(key string) string      { return "{apiKey:" + key + "}:rate" }
func loginRedisKey(address string) string { return "login:" + address }

func chargeRecordRedisKey(key, idempotencyKey string) string {
	return "{apiKey:" + key + "}:charge:" + idempotencyKey
}

// tenantRedisKeys returns the keys of config.lua and delete.lua.
func tenantRedisKeys(tenantID string) []string {
	return []string{configRedisKey(tenantID), historyRedisKey(tenantID), adminTokensRedisKey(tenantID)}
}

// store keeps tenants, API keys and charges in Redis. Its methods may be called from any number of goroutines. They
// return by deadline, give or take the scheduler, and then with an error that wraps ErrUnavailable. Tenant IDs and API
// keys that they are given must be valid.
type store struct {
	redis   *redisClient
	log     *logger
	configs *configCache
	loads   atomic.Int64 // configs read

	historySlot chan struct{} // holds one: histories may be large, so each process reads one at a time
}

// newStore returns a store on redis. The caller closes it before redis.
func newStore(redis *redisClient, log *logger) *store {
	s := &store{redis: redis, log: log, historySlot: make(chan struct{}, 1)}
	s.configs = newConfigCache(s.loadTenant, s.isUnchanged)
	return s
}

// close waits for what the store does in the background.
func (s *store) close() { s.configs.close() }

// Ready returns an error if Redis would not decide a charge.
func (s *store) Ready(deadline time.Time) error {
	if err := s.redis.ready(deadline); err != nil {
		return fmt.Errorf("check whether Redis decides charges: %w", err)
	}
	return nil
}

// writeMetrics writes what the store and Redis have counted.
func (s *store) writeMetrics(e *exposition) {
	e.single("tenant_config_loads_total", "counter", "Configs read from Redis.", float64(s.loads.Load()))
	s.redis.writeMetrics(e)
}

// Tenant returns the tenant with its config: as it is in Redis, or as it was there less than a second ago, and never
// older than this store's own last write. While Redis cannot be reached it may be configGraceAge old. Errors:
// ErrNoTenant, ErrBrokenConfig, ErrUnavailable.
func (s *store) Tenant(deadline time.Time, tenantID string) (*tenant, error) {
	t, err := s.configs.get(deadline, tenantID)
	if err != nil && err != ErrNoTenant {
		return nil, fmt.Errorf("load the config of tenant %s: %w", tenantID, err)
	}
	return t, err
}

// loadTenant reads tenantID's config, which may be large, over a connection of the pool.
func (s *store) loadTenant(deadline time.Time, tenantID string) (*tenant, error) {
	raw, err := redis.Bytes(s.redis.do(deadline, "GET", configRedisKey(tenantID)))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNoTenant
	}
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw)
	if err != nil { // not %w: to the client it is not a bad request
		return nil, fmt.Errorf("%w: %v", ErrBrokenConfig, err)
	}
	config.etag = fmt.Sprintf("%x", sha1.Sum(raw))
	s.log.infof("Loaded tenant config for %s", tenantID)
	s.loads.Add(1)
	return &tenant{id: tenantID, config: config}, nil
}

// isUnchanged reports whether t's config is still the one in Redis.
func (s *store) isUnchanged(deadline time.Time, t *tenant) (bool, error) {
	return redis.Bool(s.redis.eval(deadline, unchangedScript, []string{configRedisKey(t.id)}, t.config.etag))
}

// SeedTenant writes tenantID's config if it has none. Since that may be repeated, it tries until deadline to reach
// Redis.
func (s *store) SeedTenant(deadline time.Time, tenantID string, config *tenantConfig) error {
	for {
		_, err := s.writeConfig(deadline, "create", tenantID, config, "seed", actor{}, nil)
		_, replied := errors.AsType[redis.Error](err)
		switch {
		case err == nil || errors.Is(err, ErrTenantExists):
			return nil
		case replied || time.Until(deadline) < redialPause:
			return err
		}
		time.Sleep(redialPause)
	}
}

// CreateTenant creates tenantID with its config and returns the config's ETag. Of several concurrent calls one
// succeeds. Errors: ErrTenantExists, ErrUnavailable.
func (s *store) CreateTenant(deadline time.Time, tenantID string, config *tenantConfig, by actor) (string, error) {
	return s.writeConfig(deadline, "create", tenantID, config, by.String(), by, nil)
}

// ReplaceConfig replaces tenantID's config as a whole, if its ETag meets all conditions, which have the form that
// config.lua takes, and returns the new ETag. Checking that by may still do so, the comparison, the config and its
// history are one atomic step. Errors: ErrNoTenant, ErrRevoked, ErrConfigChanged, ErrUnavailable.
func (s *store) ReplaceConfig(deadline time.Time, tenantID string, config *tenantConfig, by actor,
	conditions []string) (string, error) {
	return s.writeConfig(deadline, "replace", tenantID, config, by.String(), by, conditions)
}

func (s *store) writeConfig(deadline time.Time, how, tenantID string, config *tenantConfig, name string, by actor,
	conditions []string) (string, error) {
	defer s.configs.drop(tenantID)
	// The set of tenants has a slot of its own, so adding the ID is a step of its own. It comes first: a crash in between
	// leaves an ID without a config in the set, which Tenants does not return. For the same reason nothing ever removes
	// an ID: that might undo the first step of a tenant that is being created again.
	if _, err := s.redis.do(deadline, "SADD", tenantsRedisKey, tenantID); err != nil {
		return "", fmt.Errorf("%s the config of tenant %s: %w", how, tenantID, err)
	}
	args := []any{how, config.compact, formatTime(time.Now()), name, by.tokenHash}
	for _, condition := range conditions {
		args = append(args, condition)
	}
	reply, err := redis.String(s.redis.evalLarge(deadline, configScript, tenantRedisKeys(tenantID), args...))
	if err != nil {
		return "", fmt.Errorf("%s the config of tenant %s: %w", how, tenantID, err)
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

// configVersion is one version in the history of a config.
type configVersion struct{ etag, savedAt, savedBy string }

// History returns the last versions of tenantID's config, newest first. Error: ErrUnavailable.
func (s *store) History(deadline time.Time, tenantID string) ([]configVersion, error) {
	lines, err := redis.Strings(s.readHistory(deadline, tenantID, ""))
	if err != nil {
		return nil, err
	}
	versions := make([]configVersion, len(lines))
	for i, line := range lines {
		v := &versions[i]
		v.etag, line, _ = strings.Cut(line, " ")
		v.savedAt, v.savedBy, _ = strings.Cut(line, " ")
	}
	return versions, nil
}

// Version returns the version of tenantID's config with that ETag, as it was saved. Errors: ErrNoVersion,
// ErrUnavailable.
func (s *store) Version(deadline time.Time, tenantID, etag string) ([]byte, error) {
	if etag == "" {
		return nil, ErrNoVersion
	}
	config, err := redis.Bytes(s.readHistory(deadline, tenantID, etag))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNoVersion
	}
	return config, err
}

// readHistory returns the reply of history.lua. Redis reads a history, of up to 20 MB, in 30 ms, and does nothing else
// meanwhile.
func (s *store) readHistory(deadline time.Time, tenantID, etag string) (any, error) {
	select {
	case s.historySlot <- struct{}{}:
		defer func() { <-s.historySlot }()
	case <-time.After(time.Until(deadline)):
		return nil, fmt.Errorf("%w: other histories are being read", ErrUnavailable)
	}
	reply, err := s.redis.evalLarge(deadline, historyScript, []string{historyRedisKey(tenantID)}, etag)
	if err != nil {
		return nil, fmt.Errorf("read the config history of tenant %s: %w", tenantID, err)
	}
	return reply, nil
}

// Tenants returns, sorted, the IDs of the tenants that were created or whose config was replaced through tollgate and
// that have a config. Error: ErrUnavailable.
func (s *store) Tenants(deadline time.Time) ([]string, error) {
	ids, err := redis.Strings(s.redis.do(deadline, "SMEMBERS", tenantsRedisKey))
	if err != nil {
		return nil, fmt.Errorf("list the tenants: %w", err)
	}
	slices.Sort(ids)
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = configRedisKey(id)
	}
	exist, err := redis.Ints(s.redis.doEach(deadline, "EXISTS", keys))
	if err != nil {
		return nil, fmt.Errorf("list the tenants: %w", err)
	}
	existing := make([]string, 0, len(ids))
	for i, id := range ids {
		if exist[i] == 1 {
			existing = append(existing, id)
		}
	}
	return existing, nil
}

// DeleteTenant deletes tenantID's config with its history and its admin tokens, if ifMatch is empty or has the config's
// ETag, in one atomic step. Its API keys stay. Errors: ErrNoTenant, ErrConfigChanged, ErrUnavailable.
func (s *store) DeleteTenant(deadline time.Time, tenantID string, ifMatch []string) error {
	defer s.configs.drop(tenantID)
	var args []any
	for _, etag := range ifMatch {
		args = append(args, etag)
	}
	n, err := redis.Int(s.redis.evalLarge(deadline, deleteScript, tenantRedisKeys(tenantID), args...))
	if err != nil {
		return fmt.Errorf("delete tenant %s: %w", tenantID, err)
	}
	switch n {
	case 0:
		return ErrNoTenant
	case -1:
		return ErrConfigChanged
	}
	return nil
}

// AddAdminToken adds an admin token of tenantID by its SHA-256, if by may still do so, in one atomic step. Errors:
// ErrNoTenant, ErrRevoked, ErrUnavailable.
func (s *store) AddAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte, by actor) error {
	keys := []string{configRedisKey(tenantID), adminTokensRedisKey(tenantID)}
	n, err := redis.Int(s.redis.evalLarge(deadline, tokenScript, keys,
		hex.EncodeToString(hash[:]), formatTime(time.Now()), by.tokenHash))
	if err != nil {
		return fmt.Errorf("add an admin token of tenant %s: %w", tenantID, err)
	}
	switch n {
	case 0:
		return ErrNoTenant
	case -1:
		return ErrRevoked
	}
	return nil
}

// IsAdminToken reports whether tenantID has an admin token with that SHA-256. It is looked up rather than compared in
// constant time: to make use of the time, one would have to know tokens for chosen hashes. Error: ErrUnavailable.
func (s *store) IsAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte) (bool, error) {
	found, err := redis.Bool(s.redis.do(deadline, "HEXISTS", adminTokensRedisKey(tenantID), hex.EncodeToString(hash[:])))
	if err != nil {
		return false, fmt.Errorf("look up an admin token of tenant %s: %w", tenantID, err)
	}
	return found, nil
}

// RevokeAdminTokens deletes all admin tokens of tenantID. Error: ErrUnavailable.
func (s *store) RevokeAdminTokens(deadline time.Time, tenantID string) error {
	if _, err := s.redis.do(deadline, "DEL", adminTokensRedisKey(tenantID)); err != nil {
		return fmt.Errorf("delete the admin tokens of tenant %s: %w", tenantID, err)
	}
	return nil
}

// apiKey is what Redis holds of an API key.
type apiKey struct {
	tenantID   string
	userID     string // "" is an anonymous user
	group      string
	createdAt  time.Time
	expiresAt  time.Time // zero: never
	tokensLeft int64
}

// NewKey stores an API key, with an expiry if ttl is not 0. k.expiresAt is not used. Error: ErrUnavailable.
func (s *store) NewKey(deadline time.Time, key string, k apiKey, ttl time.Duration) error {
	_, err := s.issueKey(deadline, []string{apiKeyRedisKey(key)}, k, ttl, 0)
	return err
}

// Login stores an API key as NewKey does, unless address has had perMinute logins in the last minute, over all
// processes. Check and write are one atomic step. Errors: rateLimitError, ErrUnavailable.
func (s *store) Login(deadline time.Time, key string, k apiKey, ttl time.Duration, address string,
	perMinute int64) error {
	wait, err := s.issueKey(deadline, []string{apiKeyRedisKey(key), loginRedisKey(address)}, k, ttl, perMinute)
	if err == nil && wait > 0 {
		return rateLimitError{retryAfter: time.Duration(wait) * time.Second}
	}
	return err
}

// issueKey returns the seconds until the login limit allows the key, 0 if it was stored.
func (s *store) issueKey(deadline time.Time, keys []string, k apiKey, ttl time.Duration,
	perMinute int64) (int64, error) {
	args := []any{ttl.Milliseconds(), perMinute, k.tenantID, k.group, formatTime(k.createdAt), k.tokensLeft}
	if k.userID != "" {
		args = append(args, k.userID)
	}
	wait, err := redis.Int64(s.redis.eval(deadline, issueScript, keys, args...))
	if err != nil {
		return 0, fmt.Errorf("store an API key of tenant %s: %w", k.tenantID, err)
	}
	return wait, nil
}

// Key returns tenantID's API key. Errors: ErrNoKey, ErrUnavailable.
func (s *store) Key(deadline time.Time, tenantID, key string) (apiKey, error) {
	return s.evalKey(deadline, tenantID, key, keyChange{})
}

// keyChange is a change of an API key; nil changes nothing. At most one of addTokens and setTokens may be set.
type keyChange struct {
	group     *string
	addTokens *int64 // from -maxAmount to maxAmount
	setTokens *int64 // from 0 to maxAmount
}

// UpdateKey changes tenantID's API key in one atomic step and returns it as it is then. Its expiry stays. Errors:
// ErrNoKey, ErrBalanceRange (nothing was changed), ErrUnavailable.
func (s *store) UpdateKey(deadline time.Time, tenantID, key string, change keyChange) (apiKey, error) {
	return s.evalKey(deadline, tenantID, key, change)
}

func (s *store) evalKey(deadline time.Time, tenantID, key string, change keyChange) (apiKey, error) {
	args := []any{tenantID, "", 0}
	switch {
	case change.addTokens != nil:
		args = []any{tenantID, "add", *change.addTokens}
	case change.setTokens != nil:
		args = []any{tenantID, "set", *change.setTokens}
	}
	if change.group != nil {
		args = append(args, *change.group)
	}
	reply, err := s.redis.eval(deadline, keyScript, []string{apiKeyRedisKey(key)}, args...)
	if err != nil {
		return apiKey{}, fmt.Errorf("read an API key of tenant %s: %w", tenantID, err)
	}
	switch reply.(type) {
	case nil:
		return apiKey{}, ErrNoKey
	case []byte:
		return apiKey{}, ErrBalanceRange
	}
	k, err := parseAPIKey(tenantID, reply)
	if err != nil {
		return apiKey{}, fmt.Errorf("read an API key of tenant %s: %w", tenantID, err)
	}
	return k, nil
}

// parseAPIKey parses the reply of key.lua.
func parseAPIKey(tenantID string, reply any) (apiKey, error) {
	k := apiKey{tenantID: tenantID}
	var createdAt string
	var expiresAt int64
	values, err := redis.Values(reply, nil)
	if err == nil {
		_, err = redis.Scan(values, &k.userID, &k.group, &createdAt, &k.tokensLeft, &expiresAt)
	}
	if err == nil {
		k.createdAt, err = time.Parse(time.RFC3339, createdAt)
	}
	if err != nil {
		return k, errors.New("malformed data") // err itself may quote a value
	}
	if expiresAt >= 0 {
		k.expiresAt = time.UnixMilli(expiresAt)
	}
	return k, nil
}

// RevokeKey deletes tenantID's API key. Errors: ErrNoKey, ErrUnavailable.
func (s *store) RevokeKey(deadline time.Time, tenantID, key string) error {
	n, err := redis.Int(s.redis.eval(deadline, revokeScript, []string{apiKeyRedisKey(key), rateRedisKey(key)}, tenantID))
	if err != nil {
		return fmt.Errorf("revoke an API key of tenant %s: %w", tenantID, err)
	}
	if n == 0 {
		return ErrNoKey
	}
	return nil
}

// chargeRequest is what to charge.
type chargeRequest struct {
	key            string
	tokens         int64  // 0 … maxAmount; 0 takes nothing, but needs a balance of 1
	idempotencyKey string // "": the charge has no key
}

// chargeResult is what a charge led to.
type chargeResult struct {
	tokensLeft   int64
	replayed     bool // the Idempotency-Key was known: nothing was taken now, and tokensLeft is that of the first time
	group        string
	userID       string // "" is an anonymous user
	hasRateLimit bool
	rate         rateLimitState // if hasRateLimit
}

// rateLimitState is how much an API key has used of its group's rate limit.
type rateLimitState struct {
	limit, window int64 // requests, in any window of seconds
	remaining     int64 // requests that would be accepted now
	wait          int64 // seconds until the next slot frees; 0 if none is used
}

// Charge takes c.tokens from the balance of t's API key, all or none, within the rate limit of the key's group, in
// one atomic step. With an Idempotency-Key it does so once in 24 h, however often it is called. Errors: ErrNoKey;
// rateLimitError and insufficientTokensError, with a result, if nothing was taken; ErrKeyReused; ErrUnavailable if
// Redis may or may not have taken them.
func (s *store) Charge(deadline time.Time, t *tenant, c chargeRequest) (chargeResult, error) {
	group := anonymousGroup
	for {
		outcome, result, err := s.chargeOnce(deadline, t, c, group)
		switch {
		case errors.Is(err, redis.ErrNil):
			return result, ErrNoKey
		case err != nil:
			return result, fmt.Errorf("charge an API key of tenant %s: %w", t.id, err)
		}
		switch outcome {
		case "charged":
			return result, nil
		case "replayed":
			result.replayed = true
			return result, nil
		case "mismatch":
			return result, ErrKeyReused
		case "limited":
			return result, rateLimitError{retryAfter: time.Duration(result.rate.wait) * time.Second}
		case "spent":
			return result, insufficientTokensError{result.tokensLeft}
		case "group":
			// The key is in another group: try again with that group's limit. An admin may move it meanwhile, so this
			// may repeat; the deadline ends it.
			group = result.group
		default:
			return result, fmt.Errorf("charge an API key of tenant %s: %w", t.id, errBadReply)
		}
	}
}

// chargeOnce runs charge.lua with the limits of all groups or, if they are too large, with that of group.
func (s *store) chargeOnce(deadline time.Time, t *tenant, c chargeRequest, group string) (string, chargeResult, error) {
	limits, onlyGroup := t.config.limits.sent(group)
	keys := append(make([]string, 0, 3), apiKeyRedisKey(c.key))
	if c.idempotencyKey != "" || !t.config.limits.empty() {
		keys = append(keys, rateRedisKey(c.key))
	}
	if c.idempotencyKey != "" {
		keys = append(keys, chargeRecordRedisKey(c.key, c.idempotencyKey))
	}
	args := append(make([]any, 0, 4), t.id, c.tokens, limits)
	if onlyGroup {
		args = append(args, group)
	}
	reply, err := redis.Bytes(s.redis.eval(deadline, chargeScript, keys, args...))
	if err != nil {
		return "", chargeResult{}, err
	}
	return parseChargeReply(string(reply))
}

// errBadReply does not quote the reply, which may hold what somebody wrote to Redis.
var errBadReply = errors.New("the script's reply is malformed")

// parseChargeReply parses the reply of charge.lua.
func parseChargeReply(reply string) (outcome string, result chargeResult, err error) {
	head, identity, _ := strings.Cut(reply, "\n")
	result.userID, result.group, _ = strings.Cut(identity, "\n")
	outcome, head, _ = strings.Cut(head, " ")
	var numbers [5]int64
	n := 0
	for number := range strings.SplitSeq(head, " ") {
		if n == len(numbers) {
			return outcome, result, errBadReply
		}
		if numbers[n], err = strconv.ParseInt(number, 10, 64); err != nil {
			return outcome, result, errBadReply
		}
		n++
	}
	if n != 1 && n != len(numbers) {
		return outcome, result, errBadReply
	}
	result.tokensLeft = numbers[0]
	result.hasRateLimit = n > 1
	result.rate = rateLimitState{numbers[1], numbers[2], numbers[3], numbers[4]}
	return outcome, result, nil
}

// formatTime returns t in UTC as RFC 3339 with milliseconds.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

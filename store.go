package main

import (
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
	"tollgate/internal/telemetry"
)

// Errors that the layers above may use begin with Err, as do the store's methods that they may call with a capital. Any
// other error of the store is a bug or malformed data in Redis.
var (
	// ErrUnavailable means that Redis did not respond in time or refuses to work. A write may or may not have happened.
	ErrUnavailable = redisdb.ErrUnavailable
	// ErrNoTenant means that the tenant has no config.
	ErrNoTenant = errors.New("no such tenant")
	// ErrNoKey means that the API key is unknown, expired or another tenant's.
	ErrNoKey = errors.New("no such API key")
	// ErrMalformed means that Redis holds something under the API key that tollgate does not write. It was written
	// straight to Redis. The error says what is wrong, and never the value.
	ErrMalformed = errors.New("the API key is malformed in Redis")
	// ErrBrokenConfig means that the tenant's config in Redis breaks the rules. It was written straight to Redis.
	ErrBrokenConfig = errors.New("broken config")
	// ErrTenantExists means that the tenant has a config already.
	ErrTenantExists = errors.New("tenant exists")
	// ErrConfigChanged means that the config is not one of those that the change was meant for.
	ErrConfigChanged = errors.New("config has changed")
	// ErrNoVersion means that the history has no version with that ETag.
	ErrNoVersion = errors.New("no such version")
	// ErrTooManyTokens means that the tenant has maxAdminTokens admin tokens already.
	ErrTooManyTokens = errors.New("too many admin tokens")
	// ErrNoToken means that the tenant has no admin token with that ID.
	ErrNoToken = errors.New("no such admin token")
	// ErrRevoked means that the caller's admin token was revoked meanwhile.
	ErrRevoked = errors.New("admin token was revoked")
	// ErrGroupDisabled means that the tenant's config no longer has the group of the API key.
	ErrGroupDisabled = errors.New("group is disabled")
	// ErrKeyDisabled means that an admin has disabled the API key.
	ErrKeyDisabled = errors.New("API key is disabled")
	// ErrKeyReused means that the Idempotency-Key was used before with other parameters.
	ErrKeyReused = errors.New("idempotency key was used with other parameters")
	// ErrBalanceRange means that a change would have taken a balance below 0 or above maxAmount.
	ErrBalanceRange = errors.New("balance out of range")
	// ErrNoHold means that the API key has no such open hold: it is unknown or has expired.
	ErrNoHold = errors.New("no such hold")
	// ErrModelDenied means that the group of the API key does not have the model.
	ErrModelDenied = errors.New("the group does not have the model")
	// ErrTooManyRequests means that as many requests of the API key are under way as its group may have at a time.
	ErrTooManyRequests = errors.New("too many requests at a time")
	// ErrTooManyHolds means that the API key has as many open holds as it may have.
	ErrTooManyHolds = errors.New("too many open holds")
	// ErrHoldSettled means that a hold was settled before, with another amount.
	ErrHoldSettled = errors.New("hold was settled with another amount")
)

const (
	anonymousKeyTTL = 24 * time.Hour // time to live of the API key of an anonymous user

	seedPause = 10 * time.Millisecond // between attempts to write a tenant at start

	generationChars = 13 // 65 random bits

	maxRecords = 10_000 // of Idempotency-Keys that the admins of a tenant leave in a day

	noteTimeout = 100 * time.Millisecond // for noting that a tenant exists

	chargeRecordTTL = 24 * time.Hour   // how long an Idempotency-Key is remembered
	verifyRecordTTL = 60 * time.Second // the same for verify's query parameter request
)

// Keys in Redis. All keys of one API key, and all of one tenant's config, hash to one slot of a Redis Cluster. All
// keys of one script must: what spans slots is done in steps, in an order in which a crash in between does no harm.
const (
	tenantsRedisKey    = "tenants"
	deploymentRedisKey = "deployment"
)

func configRedisKey(tenantID string) string  { return "tenant:" + tenantID + ":config" }
func historyRedisKey(tenantID string) string { return "{tenant:" + tenantID + ":config}:history" }
func versionsRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:versions"
}
func adminTokensRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:adminTokens"
}
func generationRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:generation"
}
func recordsRedisKey(tenantID string) string {
	return "{tenant:" + tenantID + ":config}:records"
}
func apiKeyRedisKey(key string) string { return "apiKey:" + key }
func rateRedisKey(key string) string   { return "{apiKey:" + key + "}:rate" }
func holdsRedisKey(key string) string  { return "{apiKey:" + key + "}:holds" }
func settledRedisKey(key, holdID string) string {
	return "{apiKey:" + key + "}:settled:" + holdID
}
func holdRecordRedisKey(key, digest string) string {
	return "{apiKey:" + key + "}:hold:" + digest
}
func loginRedisKey(address string) string { return "login:" + address }
func successorRedisKey(key string) string { return "{apiKey:" + key + "}:successor" }
func movesRedisKey(key string) string     { return "{apiKey:" + key + "}:moves" }
func movingRedisKey(key string) string    { return "{apiKey:" + key + "}:moving" }
func closedRedisKey(key string) string    { return "{apiKey:" + key + "}:closed" }
func firstRedisKey(key string) string     { return "{apiKey:" + key + "}:first" }
func currentRedisKey(first string) string { return "{apiKey:" + first + "}:current" }
func revokedRedisKey(key string) string   { return "{apiKey:" + key + "}:revoked" }
func signInRedisKey(tenantID, userID string) string {
	return "signIn:" + tenantID + ":" + userID
}
func signInMovesRedisKey(tenantID, userID string) string {
	return "{" + signInRedisKey(tenantID, userID) + "}:moves"
}
func mergesRedisKey(tenantID, userID string) string {
	return "{" + signInRedisKey(tenantID, userID) + "}:merges"
}
func userKeysByTimeRedisKey(tenantID, userID string) string {
	return "{" + userKeysRedisKey(tenantID, userID) + "}:byTime"
}
func userKeysByExpiryRedisKey(tenantID, userID string) string {
	return "{" + userKeysRedisKey(tenantID, userID) + "}:byExpiry"
}

// userKeysRedisKey returns where earlier versions had the index of a user's keys, in a set.
func userKeysRedisKey(tenantID, userID string) string {
	return "userKeys:" + tenantID + ":" + userID
}

// usageRedisKey returns where the counts of a tenant's day are: in a hash with a field for each sum.
func usageRedisKey(tenantID string, day int64) string {
	return "{tenant:" + tenantID + ":config}:usage:" + formatDay(day)
}

// keyUsageRedisKey returns where the counts of an API key's day are, by the name that the key had first.
func keyUsageRedisKey(first string, day int64) string {
	return "{apiKey:" + first + "}:usage:" + formatDay(day)
}

// responseRedisKey returns where the response to a request is cached that has that SHA-256.
func responseRedisKey(tenantID string, sum []byte) string {
	return "cache:" + tenantID + ":" + hex.EncodeToString(sum)
}

// recordRedisKey returns where an Idempotency-Key of an API key is remembered, by the name that the key had first. The
// name has 16 bytes of a hash, not the client's 255.
func recordRedisKey(first, kind, idempotencyKey string) string {
	return "{apiKey:" + first + "}:" + kind + ":" + shortHash(idempotencyKey)
}

// issueRecordRedisKey returns where an Idempotency-Key for a new API key is remembered.
func issueRecordRedisKey(t *tenant, idempotencyKey string) string {
	return "issue:" + t.id + ":" + shortHash(t.generation, idempotencyKey)
}

// shortHash returns 16 bytes of the SHA-256 of parts, encoded for a Redis key.
func shortHash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// newGeneration returns a generation that no tenant has had.
func newGeneration() string { return rand.Text()[:generationChars] }

// tenantRedisKeys returns the keys of config.lua and delete.lua.
func tenantRedisKeys(tenantID string) []string {
	return []string{
		configRedisKey(tenantID), historyRedisKey(tenantID), versionsRedisKey(tenantID), adminTokensRedisKey(tenantID),
		generationRedisKey(tenantID),
	}
}

// store keeps tenants, API keys and charges in Redis. Its methods may be called from any number of goroutines. They
// return by deadline, give or take the scheduler, and then with an error that wraps ErrUnavailable. Tenant IDs and API
// keys that they are given must be valid.
type store struct {
	redis   *redisdb.Client
	log     *telemetry.Logger
	configs *configCache
	loads   atomic.Int64 // configs read
	gone    lineLimit    // lines about configs that have vanished
}

// newStore returns a store on redis. The caller closes it before redis.
func newStore(redis *redisdb.Client, log *telemetry.Logger) *store {
	s := &store{redis: redis, log: log}
	s.configs = newConfigCache(s.loadTenant, s.isUnchanged, s.noteGone)
	return s
}

// close waits for what the store does in the background.
func (s *store) close() { s.configs.close() }

// Ready returns an error if Redis would not decide a charge.
func (s *store) Ready(deadline time.Time) error {
	if err := s.redis.Ready(deadline); err != nil {
		return fmt.Errorf("check whether Redis decides charges: %w", err)
	}
	return nil
}

// writeMetrics writes what the store and Redis have counted.
func (s *store) writeMetrics(e *telemetry.Page) {
	e.Single("tenant_config_loads_total", "counter", "Configs read from Redis.", float64(s.loads.Load()))
	s.redis.WriteMetrics(e)
}

// Tenant returns the tenant with its config: as it is in Redis, or as it was there less than a second ago, and never
// older than this store's own last write. While Redis cannot be reached it may be configGraceAge old. Errors:
// ErrNoTenant; ErrBrokenConfig, with a tenant without a config; ErrUnavailable.
func (s *store) Tenant(deadline time.Time, tenantID string) (*tenant, error) {
	t, err := s.configs.get(deadline, tenantID)
	if err != nil && err != ErrNoTenant && err != ErrBrokenConfig {
		return nil, fmt.Errorf("load the config of tenant %s: %w", tenantID, err)
	}
	return t, err
}

// loadTenant reads tenantID's config, which may be large, over a connection of the pool. It logs why a config is
// broken: once for each version of the config, since the cache keeps broken configs, too.
func (s *store) loadTenant(deadline time.Time, tenantID string) (*tenant, error) {
	keys := []string{configRedisKey(tenantID), generationRedisKey(tenantID)}
	values, err := redis.ByteSlices(s.redis.EvalLarge(deadline, loadScript, keys))
	switch {
	case err != nil:
		return nil, err
	case len(values) != 2:
		return nil, errBadReply
	case values[0] == nil:
		return nil, ErrNoTenant
	}
	s.noteTenant(deadline, tenantID)
	raw := values[0]
	t := &tenant{id: tenantID, generation: string(values[1]), etag: etagOf(raw)}
	if t.config, err = parseConfig(raw); err != nil {
		s.log.Errorf("The config of tenant %s is broken: %v", tenantID, err)
		return t, ErrBrokenConfig
	}
	s.log.Infof("Loaded tenant config for %s", tenantID)
	for _, sentence := range t.config.ignored {
		s.log.Warnf("The config of tenant %s: %s", tenantID, sentence)
	}
	s.loads.Add(1)
	return t, nil
}

// noteTenant adds tenantID to the set of tenants, which may not have it yet if its config was written straight to
// Redis. The config is served without it, and waits for it noteTimeout at most: the set may be on another server.
func (s *store) noteTenant(deadline time.Time, tenantID string) {
	if soon := time.Now().Add(noteTimeout); soon.Before(deadline) {
		deadline = soon
	}
	_, _ = s.redis.WriteDispensable(deadline, "SADD", tenantsRedisKey, tenantID)
}

// noteGone warns that the config of t has vanished, unless the tenant was deleted over HTTP: that begins a generation.
func (s *store) noteGone(t *tenant) {
	deadline := time.Now().Add(configLoadTimeout)
	generation, err := redis.String(s.redis.ReadDispensable(deadline, "GET", generationRedisKey(t.id)))
	if err == nil && generation != t.generation {
		return
	}
	switch left := s.gone.take(time.Now()); {
	case left > 1:
		s.log.Warnf("The config of tenant %s is gone: it has expired, or was deleted straight in Redis", t.id)
	case left == 1:
		s.log.Warnf("The config of tenant %s is gone, like others; more are not logged for a minute", t.id)
	}
}

// etagOf returns the ETag of a config with these bytes.
func etagOf(config []byte) string { return fmt.Sprintf("%x", sha1.Sum(config)) }

// isUnchanged reports whether t is still what is in Redis.
func (s *store) isUnchanged(deadline time.Time, t *tenant) (bool, error) {
	keys := []string{configRedisKey(t.id), generationRedisKey(t.id)}
	return redis.Bool(s.redis.Eval(deadline, unchangedScript, keys, t.etag, t.generation))
}

// checkGeneration returns ErrUnavailable if t is not known to be the tenant that has its ID now: it may have been
// deleted and created again since its config was read.
func (s *store) checkGeneration(deadline time.Time, t *tenant) error {
	generation, err := redis.String(s.redis.Read(deadline, "GET", generationRedisKey(t.id)))
	if err != nil && !errors.Is(err, redis.ErrNil) {
		return err
	}
	if generation != t.generation {
		return fmt.Errorf("%w: the tenant was deleted, and the config in use is older", ErrUnavailable)
	}
	return nil
}

// DeploymentID returns the ID of all processes that use this Redis, which the first call of one of them creates. Error:
// ErrUnavailable.
func (s *store) DeploymentID(deadline time.Time) (string, error) {
	id, err := redis.String(s.redis.Read(deadline, "GET", deploymentRedisKey))
	if errors.Is(err, redis.ErrNil) {
		created := rand.Text()
		id, err = redis.String(s.redis.Write(deadline, "SET", deploymentRedisKey, created, "NX", "GET"))
		if errors.Is(err, redis.ErrNil) {
			return created, nil
		}
	}
	if err == nil && !isIdentifier(id, 64) { // somebody else has written it
		err = errBadReply
	}
	if err != nil {
		return "", fmt.Errorf("read the ID of this deployment: %w", err)
	}
	return id, nil
}

// SeedTenant writes tenantID's config if it has none. No new generation begins, however many processes do so. Since
// that may be repeated, it tries until deadline to reach Redis.
func (s *store) SeedTenant(deadline time.Time, tenantID string, config *tenantConfig) error {
	for {
		_, err := s.writeConfig(deadline, "seed", tenantID, config, actor{name: "seed"}, nil)
		_, replied := errors.AsType[redis.Error](err)
		switch {
		case err == nil || errors.Is(err, ErrTenantExists):
			return nil
		case replied || time.Until(deadline) < seedPause:
			return err
		}
		time.Sleep(seedPause)
	}
}

// CreateTenant creates tenantID with its config and returns the config's ETag. Of several concurrent calls one
// succeeds. If the ID was in use before, which Redis knows by what is left of the former tenant or by the set of
// tenants, a new generation begins. Errors: ErrTenantExists, ErrUnavailable.
func (s *store) CreateTenant(deadline time.Time, tenantID string, config *tenantConfig, by actor) (string, error) {
	return s.writeConfig(deadline, "create", tenantID, config, by, nil)
}

// ReplaceConfig replaces tenantID's config as a whole, if its ETag meets all conditions, which have the form that
// config.lua takes, and returns the new ETag. Checking that by may still do so, the comparison, the config and its
// history are one atomic step. Errors: ErrNoTenant, ErrRevoked, ErrConfigChanged, ErrUnavailable.
func (s *store) ReplaceConfig(deadline time.Time, tenantID string, config *tenantConfig, by actor,
	conditions []string) (string, error) {
	return s.writeConfig(deadline, "replace", tenantID, config, by, conditions)
}

func (s *store) writeConfig(deadline time.Time, how, tenantID string, config *tenantConfig, by actor,
	conditions []string) (string, error) {
	defer s.configs.invalidate(tenantID)
	// The set of tenants has a slot of its own, so adding the ID is a step of its own. It comes first: a crash in between
	// leaves an ID without a config in the set, which Tenants does not return. For the same reason nothing ever removes
	// an ID: that might undo the first step of a tenant that is being created again.
	added, err := redis.Int(s.redis.Write(deadline, "SADD", tenantsRedisKey, tenantID))
	if err != nil {
		return "", fmt.Errorf("%s the config of tenant %s: add it to %s: %w", how, tenantID, tenantsRedisKey, err)
	}
	etag := etagOf(config.compact)
	args := []any{
		how, config.compact, etag, formatTime(time.Now()), by.String(), by.tokenHash, newGeneration(), 1 - added,
	}
	for _, condition := range conditions {
		args = append(args, condition)
	}
	reply, err := redis.String(s.redis.EvalLarge(deadline, configScript, tenantRedisKeys(tenantID), args...))
	if err != nil {
		return "", fmt.Errorf("%s the config of tenant %s: %w", how, tenantID, err)
	}
	switch reply {
	case "saved":
		return etag, nil
	case "exists":
		return "", ErrTenantExists
	case "missing":
		return "", ErrNoTenant
	case "revoked":
		return "", ErrRevoked
	case "changed":
		return "", ErrConfigChanged
	}
	return "", fmt.Errorf("%s the config of tenant %s: %w", how, tenantID, errBadReply)
}

// configVersion is one version in the history of a config.
type configVersion struct{ etag, savedAt, savedBy string }

// History returns the last versions of tenantID's config, newest first. Error: ErrUnavailable.
func (s *store) History(deadline time.Time, tenantID string) ([]configVersion, error) {
	heads, err := redis.Strings(s.redis.Read(deadline, "LRANGE", historyRedisKey(tenantID), 0, -1))
	if err != nil {
		return nil, fmt.Errorf("read the config history of tenant %s: %w", tenantID, err)
	}
	versions := make([]configVersion, len(heads))
	for i, head := range heads {
		v := &versions[i]
		v.etag, head, _ = strings.Cut(head, " ")
		v.savedAt, v.savedBy, _ = strings.Cut(head, " ")
	}
	return versions, nil
}

// Version returns the version of tenantID's config with that ETag, as it was saved. Errors: ErrNoVersion,
// ErrUnavailable.
func (s *store) Version(deadline time.Time, tenantID, etag string) ([]byte, error) {
	config, err := redis.Bytes(s.redis.Read(deadline, "HGET", versionsRedisKey(tenantID), etag))
	if errors.Is(err, redis.ErrNil) {
		return nil, ErrNoVersion
	}
	if err != nil {
		return nil, fmt.Errorf("read a config version of tenant %s: %w", tenantID, err)
	}
	return config, nil
}

// Tenants returns, sorted, the IDs of the tenants that have a config. One that was written straight to Redis is among
// them once it was loaded. Error: ErrUnavailable.
func (s *store) Tenants(deadline time.Time) ([]string, error) {
	ids, err := redis.Strings(s.redis.Read(deadline, "SMEMBERS", tenantsRedisKey))
	if err != nil {
		return nil, fmt.Errorf("list the tenants: read %s: %w", tenantsRedisKey, err)
	}
	slices.Sort(ids)
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = configRedisKey(id)
	}
	exist, err := redis.Ints(s.redis.ReadEach(deadline, "EXISTS", keys))
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
// ETag, in one atomic step. Its API keys stay in Redis, but are those of a former generation: if a tenant is created
// again under the same ID, they are not its. Its set of users and its list of payments are deleted if Redis responds in
// time. Errors: ErrNoTenant, ErrConfigChanged, ErrUnavailable.
func (s *store) DeleteTenant(deadline time.Time, tenantID string, ifMatch []string) error {
	defer s.configs.invalidate(tenantID)
	generation, unknown := s.readText(deadline, generationRedisKey(tenantID))
	args := []any{newGeneration()}
	for _, etag := range ifMatch {
		args = append(args, etag)
	}
	n, err := redis.Int(s.redis.EvalLarge(deadline, deleteScript, tenantRedisKeys(tenantID), args...))
	if err != nil {
		return fmt.Errorf("delete tenant %s: %w", tenantID, err)
	}
	switch n {
	case 0:
		return ErrNoTenant
	case -1:
		return ErrConfigChanged
	}
	if unknown == nil { // what stays takes memory, and no tenant sees it
		_, _ = s.redis.WriteDispensable(deadline, "UNLINK", usersRedisKey(tenantID, generation))
		_, _ = s.redis.WriteDispensable(deadline, "UNLINK", paymentsRedisKey(tenantID, generation))
	}
	return nil
}

// formatTime returns t in UTC as RFC 3339 with milliseconds.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// errBadReply does not quote the reply, which may hold what somebody wrote to Redis.
var errBadReply = errors.New("the script's reply is malformed")

// withTenant adds to an error of Redis what was being done and for whom. A nil reply, redis.ErrNil, is ErrNoKey. What a
// script refuses as malformed, and a value of a wrong type, are ErrMalformed.
func withTenant(err error, doing string, t *tenant) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.ErrNil):
		return ErrNoKey
	case isMalformed(err):
		err = fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return fmt.Errorf("%s of tenant %s: %w", doing, t.id, err)
}

// isMalformed reports whether Redis has refused a command or a script because of what a key holds.
func isMalformed(err error) bool {
	refused, _ := errors.AsType[redis.Error](err)
	return strings.HasPrefix(string(refused), "MALFORMED ") || strings.HasPrefix(string(refused), "WRONGTYPE ")
}

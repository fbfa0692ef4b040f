package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
)

// The index of a user's API keys is two sorted sets, see index.lua. It is in another slot of a cluster than the keys,
// so it is only a hint. It may name a key that does not exist. But a key that it does not name is not found, so a key
// is added before it is created and again after that, since whoever has listed the keys meanwhile has removed it.
// Redis drops what has expired by its own clock, so only indexStored says when a key expires, as Redis knows it; until
// then the key is one that never expires.
//
// The users of a tenant who have API keys are a sorted set in a slot of its own. It is to users what the index is to
// keys. A user is added to it after a key was added to the index that the index did not have, and before that key is
// created. A listing drops a user whose index is empty, and looks at the index again afterwards: so the later of the
// two puts the user back.

const (
	maxConcurrentReads = 64

	moveStep  = 100 // keys of the set of earlier versions that are moved at a time
	moveSteps = 10  // that one listing does

	moveReserve = 800 * time.Millisecond // that a listing keeps for the page

	maxPassed = 100_000 // keys that were created in one millisecond, over which Redis has to step

	reindexStep    = 1000 // keys that Redis looks at before it does something else
	reindexTimeout = 10 * time.Second
)

// indexRedisKeys returns the keys of index.lua. The set of earlier versions is left out if it is in another slot, as it
// may be in a cluster if the user ID has a brace.
func (s *store) indexRedisKeys(tenantID, userID string) (keys []string, withOld bool) {
	keys = []string{userKeysByTimeRedisKey(tenantID, userID), userKeysByExpiryRedisKey(tenantID, userID)}
	old := userKeysRedisKey(tenantID, userID)
	if s.redis.SameSlot(keys[0], old) {
		return append(keys, old), true
	}
	return keys, false
}

// indexKey adds a key to the index of its user, or changes what the index says of it. createdAt is zero if it is not
// known, expiresAt if the key never expires. It reports whether the index did not have the key. Without a user it does
// nothing.
func (s *store) indexKey(deadline time.Time, tenantID, userID, key string, createdAt, expiresAt time.Time) (added bool,
	err error) {
	if userID == "" {
		return false, nil
	}
	created, expires := int64(0), ""
	if !createdAt.IsZero() {
		created = max(createdAt.UnixMilli(), 0)
	}
	if !expiresAt.IsZero() {
		expires = strconv.FormatInt(expiresAt.UnixMilli(), 10)
	}
	keys, _ := s.indexRedisKeys(tenantID, userID)
	return redis.Bool(s.redis.Eval(deadline, indexScript, keys, key, created, expires))
}

// indexNewKey adds a key of t that is to be created to the index, and its user to the users. Without a user it does
// nothing.
func (s *store) indexNewKey(deadline time.Time, t *tenant, userID, key string, createdAt time.Time) error {
	for again := false; userID != ""; again = true {
		_, err := s.indexKey(deadline, t.id, userID, key, createdAt, time.Time{})
		added := false
		if err == nil {
			added, err = s.addUser(deadline, t.id, t.generation, userID)
		}
		if err != nil || !added || again || t.generation == "" {
			return err
		}
		// The index may have keys that the user had with a former tenant, and would count them.
		entries, err := s.readIndex(deadline, t.id, userID, indexCursor{}, maxPageLimit)
		if err == nil {
			err = s.lookUpPage(deadline, t, userID, entries) // removes this key as well
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// indexOwned does what indexKey does, and adds the user to the users if the index did not have the key.
func (s *store) indexOwned(deadline time.Time, o keyOwner, key string) error {
	added, err := s.indexKey(deadline, o.tenantID, o.userID, key, o.createdAt, o.expiresAt)
	if err == nil && added {
		err = s.addOwner(deadline, o)
	}
	return err
}

// unindexKey removes keys that do not exist from the index of their user, also from the set of earlier versions.
// Without a user it does nothing.
func (s *store) unindexKey(deadline time.Time, tenantID, userID string, keys ...string) error {
	if userID == "" || len(keys) == 0 {
		return nil
	}
	args, members := make([]any, 0, 3*len(keys)), make([]any, len(keys))
	for i, key := range keys {
		args, members[i] = append(args, key, "", "gone"), key
	}
	redisKeys, withOld := s.indexRedisKeys(tenantID, userID)
	_, err := s.redis.EvalLarge(deadline, unindexScript, redisKeys, args...)
	if err == nil && !withOld {
		_, err = s.redis.Write(deadline, "SREM", userKeysRedisKey(tenantID, userID), members...)
	}
	return err
}

// keyOwner says whose an API key is, and what the index should say of it.
type keyOwner struct {
	tenantID, generation, userID string    // all "" without such a key, or if it has no user
	createdAt                    time.Time // zero if it is malformed
	expiresAt                    time.Time // zero: never
}

// owner reads whose a key is. A key of a wrong type is an error for which isMalformed is true.
func (s *store) owner(deadline time.Time, key string) (o keyOwner, err error) {
	var createdAt string
	var expiresAt int64
	reply, err := redis.Values(s.redis.Eval(deadline, ownerScript, []string{apiKeyRedisKey(key)}))
	if err == nil {
		_, err = redis.Scan(reply, &o.tenantID, &o.generation, &o.userID, &createdAt, &expiresAt)
	}
	if err != nil || o.userID == "" || !validTenantID(o.tenantID) {
		return keyOwner{}, err
	}
	if t, err := time.Parse(time.RFC3339, createdAt); err == nil {
		o.createdAt = time.UnixMilli(t.UnixMilli())
	}
	if expiresAt >= 0 {
		o.expiresAt = time.UnixMilli(expiresAt)
	}
	return o, nil
}

// indexStored makes the index say of a key what Redis holds of it, and returns that. It looks again afterwards: if two
// changes of the expiry race, each has taken the key out of byExpiry before it changed anything, and the last that
// writes here has seen the later one.
func (s *store) indexStored(deadline time.Time, key string) (keyOwner, error) {
	o, err := s.owner(deadline, key)
	for err == nil && o.userID != "" {
		if err = s.indexOwned(deadline, o, key); err != nil {
			break
		}
		var now keyOwner
		if now, err = s.owner(deadline, key); err != nil || now == o {
			break
		}
		if now.userID == "" {
			err = s.unindexKey(deadline, o.tenantID, o.userID, key)
		}
		o = now
	}
	return o, err
}

// keepIndexed takes the key of a change that moves its expiry out of byExpiry, so that it is not dropped while it
// lives. After the change the caller calls done. If that fails, the index takes the key for one that never expires.
func (s *store) keepIndexed(deadline time.Time, t *tenant, key string, change keyChange) (done func(), err error) {
	if change.ttl == nil {
		return func() {}, nil
	}
	o, err := s.owner(deadline, key)
	if err == nil && o.tenantID == t.id {
		keys, _ := s.indexRedisKeys(o.tenantID, o.userID)
		_, err = s.redis.Eval(deadline, unindexScript, keys, key, "", "")
	}
	return func() { _, _ = s.indexStored(deadline, key) }, withTenant(err, "index an API key", t)
}

// indexCursor is where a page of a user's keys begins in byTime: after the first entries, as many as passed, of those
// with that score or a higher one. Of a list whose newest entry comes first, it is a lower one.
type indexCursor struct {
	score  int64 // Unix ms
	passed int
}

// String returns the cursor as clients get it.
func (c indexCursor) String() string { return fmt.Sprintf("%d.%d", c.score, c.passed) }

// text returns the cursor as a page has it; nil for a nil cursor.
func (c *indexCursor) text() *string {
	if c == nil {
		return nil
	}
	text := c.String()
	return &text
}

// parseIndexCursor parses what String returns.
func parseIndexCursor(text string) (c indexCursor, ok bool) {
	score, passed, _ := strings.Cut(text, ".")
	var err1, err2 error
	c.score, err1 = strconv.ParseInt(score, 10, 64)
	c.passed, err2 = strconv.Atoi(passed)
	ok = err1 == nil && err2 == nil && c.String() == text && c.score >= 0 && c.passed >= 0 && c.passed <= maxPassed
	return c, ok
}

// listedKey is an API key with what Redis holds of it.
type listedKey struct {
	key string
	apiKey
}

// indexEntry is an entry of the index, and the key that it names: nil unless it is one of the user.
type indexEntry struct {
	name  string
	score int64
	key   *listedKey
}

// UserKeys returns API keys of a user of t, oldest first: a page of at most limit of them, and where the next one
// begins, which is nil after the last. A page may have fewer keys, or none, since what the index names is looked up,
// and removed from it if it is not a key of that user. What earlier versions have left comes first: until all of it is
// moved, there are only empty pages, as it may have the oldest keys. Error: ErrUnavailable.
func (s *store) UserKeys(deadline time.Time, t *tenant, userID string, after indexCursor, limit int) (
	keys []listedKey, next *indexCursor, err error) {
	moved, err := s.moveOldKeys(deadline, t.id, userID, moveSteps)
	if err == nil && !moved && after == (indexCursor{}) {
		return nil, &indexCursor{}, nil
	}
	var entries []*indexEntry
	if err == nil {
		entries, err = s.readIndex(deadline, t.id, userID, after, limit+1)
	}
	page := entries[:min(limit, len(entries))]
	if err == nil {
		err = s.lookUpPage(deadline, t, userID, page)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list the API keys of a user of tenant %s: %w", t.id, err)
	}
	for _, e := range page {
		if e.score != after.score {
			after = indexCursor{score: e.score}
		}
		if e.key != nil {
			keys = append(keys, *e.key)
			after.passed++
		}
	}
	if len(entries) > limit {
		next = &after
	}
	return keys, next, nil
}

// readIndex returns n entries of the index of a user from a cursor on, or all if they are fewer.
func (s *store) readIndex(deadline time.Time, tenantID, userID string, from indexCursor, n int) ([]*indexEntry, error) {
	reply, err := redis.Strings(s.redis.Read(deadline, "ZRANGE", userKeysByTimeRedisKey(tenantID, userID),
		from.score, "+inf", "BYSCORE", "LIMIT", from.passed, n, "WITHSCORES"))
	if err != nil {
		return nil, err
	}
	entries := make([]*indexEntry, len(reply)/2)
	for i := range entries {
		score, err := strconv.ParseFloat(reply[2*i+1], 64)
		if err != nil {
			return nil, errBadReply
		}
		entries[i] = &indexEntry{name: reply[2*i], score: int64(score)}
	}
	return entries, nil
}

// lookUpPage looks up what entries name, and removes from the index what is not a key of the user. Keys are added to
// the index before they are created: one that has been meanwhile is added again.
func (s *store) lookUpPage(deadline time.Time, t *tenant, userID string, entries []*indexEntry) error {
	if err := s.lookUp(deadline, t, userID, entries); err != nil {
		return err
	}
	var dead []*indexEntry
	var names []string
	for _, e := range entries {
		if e.key == nil {
			dead, names = append(dead, e), append(names, e.name)
		}
	}
	if len(dead) == 0 {
		return nil
	}
	err := s.checkGeneration(deadline, t)
	if err == nil {
		err = s.unindexKey(deadline, t.id, userID, names...)
	}
	if err == nil {
		err = s.lookUp(deadline, t, userID, dead)
	}
	for _, e := range dead {
		if err == nil && e.key != nil {
			_, err = s.indexStored(deadline, e.name)
		}
	}
	return err
}

// lookUp sets the keys of entries.
func (s *store) lookUp(deadline time.Time, t *tenant, userID string, entries []*indexEntry) error {
	return inParallel(len(entries), func(i int) error {
		e := entries[i]
		if !validAPIKey(e.name) {
			return nil
		}
		k, err := s.Key(deadline, t, e.name)
		switch {
		case errors.Is(err, ErrMalformed):
			e.key = &listedKey{key: e.name, apiKey: apiKey{malformed: true}}
		case errors.Is(err, ErrNoKey):
		case err != nil:
			return err
		case k.userID == userID:
			e.key = &listedKey{key: e.name, apiKey: k}
		}
		return nil
	})
}

// oldestKey returns the oldest key of a user that has a balance of its own. It looks at the first 1,000 that the index
// names, from which it removes those that are gone: if these are all, the error is ErrUnavailable.
func (s *store) oldestKey(deadline time.Time, t *tenant, userID string) (r receiver, err error) {
	if userID == "" {
		return r, nil
	}
	for next, page := (&indexCursor{}), 0; next != nil && err == nil; page++ {
		if page == maxReceiverPages {
			return r, fmt.Errorf("%w: the user has too many keys", ErrUnavailable)
		}
		var keys []listedKey
		keys, next, err = s.UserKeys(deadline, t, userID, *next, defaultPageLimit)
		for _, k := range keys {
			b, err := s.Buyer(deadline, t, k.key)
			if err != nil && !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrMalformed) {
				return r, err
			}
			if err == nil && !k.malformed && b.key == k.key {
				return receiver{b.first, b.key}, nil
			}
		}
	}
	return r, err
}

// moveOldKeys moves keys from the set of earlier versions to the index, in at most that number of steps, and reports
// whether the set is empty then. It takes no second step if less than moveReserve is left until the deadline.
func (s *store) moveOldKeys(deadline time.Time, tenantID, userID string, steps int) (done bool, err error) {
	old := userKeysRedisKey(tenantID, userID)
	for step := range steps {
		if step > 0 && time.Until(deadline) < moveReserve {
			break
		}
		keys, err := redis.Strings(s.redis.Read(deadline, "SRANDMEMBER", old, moveStep))
		if err != nil || len(keys) == 0 {
			return err == nil, err
		}
		members := make([]any, len(keys))
		err = inParallel(len(keys), func(i int) error {
			members[i] = keys[i]
			if !validAPIKey(keys[i]) {
				return nil
			}
			_, err := s.indexStored(deadline, keys[i])
			if isMalformed(err) { // what it is says nothing of its user, but the set does
				_, err = s.indexKey(deadline, tenantID, userID, keys[i], time.Time{}, time.Time{})
			}
			return err
		})
		if err == nil {
			_, err = s.redis.Write(deadline, "SREM", old, members...)
		}
		if err != nil || len(keys) < moveStep {
			return err == nil, err
		}
	}
	return false, nil
}

// Reindex adds every API key of a user to the index, and its user to the users, and makes the index say of it what
// Redis holds. It empties the sets of earlier versions. It may run beside processes that serve. After each step it
// calls progress with how many keys it has found. It passes over what cannot be read, says in the log what that is, and
// returns how many there are. It ends early if ctx is done. Error: ErrUnavailable.
func (s *store) Reindex(ctx context.Context, progress func(keys int)) (unread int, err error) {
	keys := 0
	var unreadable atomic.Int64
	each := func(pattern string, f func(deadline time.Time, name string) error, after func(n int)) error {
		return s.redis.Scan(pattern, reindexStep, reindexTimeout, func(names []string) error {
			deadline := time.Now().Add(reindexTimeout)
			err := inParallel(len(names), func(i int) error {
				err := f(deadline, names[i])
				if isMalformed(err) || errors.Is(err, ErrMalformed) {
					unreadable.Add(1)
					s.log.Warnf("The key %s cannot be read: %v", keyName(strings.TrimPrefix(names[i], apiKeyRedisKey(""))), err)
					return nil
				}
				return err
			})
			after(len(names))
			return errors.Join(err, ctx.Err())
		})
	}
	err = each(apiKeyRedisKey(userKeyPrefix+"*"), s.reindexKey, func(n int) {
		keys += n
		progress(keys)
	})
	if err == nil {
		err = each("userKeys:*", s.reindexOld, func(int) {})
	}
	if err != nil {
		err = fmt.Errorf("index the API keys: %w", err)
	}
	return int(unreadable.Load()), err
}

// reindexKey indexes the API key that a key in Redis is. ErrMalformed: it has no time of creation, and is indexed as
// the oldest.
func (s *store) reindexKey(deadline time.Time, name string) error {
	key := strings.TrimPrefix(name, apiKeyRedisKey(""))
	if !validAPIKey(key) {
		return nil
	}
	o, err := s.indexStored(deadline, key)
	if err == nil && o.userID != "" {
		err = s.addOwner(deadline, o)
	}
	if err == nil && o.userID != "" && o.createdAt.IsZero() {
		err = fmt.Errorf("%w: createdAt is not a time", ErrMalformed)
	}
	return err
}

// reindexOld empties a set of earlier versions.
func (s *store) reindexOld(deadline time.Time, name string) error {
	_, rest, _ := strings.Cut(name, ":")
	tenantID, userID, _ := strings.Cut(rest, ":")
	if !validTenantID(tenantID) || userID == "" {
		return nil
	}
	for {
		done, err := s.moveOldKeys(deadline, tenantID, userID, 1)
		if done || err != nil {
			return err
		}
		deadline = time.Now().Add(reindexTimeout)
	}
}

// inParallel calls f with 0 … n-1, at most maxConcurrentReads at a time, until one call fails, and returns the first
// error.
func inParallel(n int, f func(i int) error) error {
	var calls sync.WaitGroup
	var failed atomic.Pointer[error]
	slots := make(chan struct{}, maxConcurrentReads)
	for i := 0; i < n && failed.Load() == nil; i++ {
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	calls.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

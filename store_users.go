package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Who may do something for a tenant: its admin tokens, and the users who have API keys, of whom the head of
// store_index.go says more.

const (
	maxAdminTokens  = 100  // of a tenant; earlier versions had no bound
	maxListedTokens = 1000 // of those that earlier versions have left
	tokenIDChars    = 8    // of the hash in hex
	tokenScanStep   = 1000 // tokens that Redis looks at before it does something else
)

// adminToken is an admin token as it is listed.
type adminToken struct {
	id        string // the first tokenIDChars of its SHA-256 in hex; two may have the same
	createdAt string
}

// AddAdminToken adds an admin token of tenantID by its SHA-256, if by may still do so, in one atomic step. Errors:
// ErrNoTenant, ErrRevoked, ErrTooManyTokens, ErrUnavailable.
func (s *store) AddAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte, by actor) error {
	keys := []string{configRedisKey(tenantID), adminTokensRedisKey(tenantID)}
	reply, err := redis.String(s.redis.EvalLarge(deadline, tokenScript, keys,
		hex.EncodeToString(hash[:]), formatTime(time.Now()), by.tokenHash, maxAdminTokens))
	if err != nil {
		return fmt.Errorf("add an admin token of tenant %s: %w", tenantID, err)
	}
	switch reply {
	case "added":
		return nil
	case "missing":
		return ErrNoTenant
	case "revoked":
		return ErrRevoked
	case "full":
		return ErrTooManyTokens
	}
	return fmt.Errorf("add an admin token of tenant %s: %w", tenantID, errBadReply)
}

// IsAdminToken reports whether tenantID has an admin token with that SHA-256. It is looked up rather than compared in
// constant time: to make use of the time, one would have to know tokens for chosen hashes. Error: ErrUnavailable.
func (s *store) IsAdminToken(deadline time.Time, tenantID string, hash [sha256.Size]byte) (bool, error) {
	found, err := redis.Bool(s.redis.Read(deadline, "HEXISTS", adminTokensRedisKey(tenantID), hex.EncodeToString(hash[:])))
	if err != nil {
		return false, fmt.Errorf("look up an admin token of tenant %s: %w", tenantID, err)
	}
	return found, nil
}

// AdminTokens returns the admin tokens of tenantID, oldest first. If there are more than maxListedTokens, which of them
// it returns is up to Redis. Error: ErrUnavailable.
func (s *store) AdminTokens(deadline time.Time, tenantID string) ([]adminToken, error) {
	created := make(map[string]string) // by hash: a scan may return one twice
	err := s.scanAdminTokens(deadline, tenantID, "*", func(pairs []string) (more bool, err error) {
		for pair := range slices.Chunk(pairs, 2) {
			if hash := pair[0]; len(hash) == 2*sha256.Size && len(created) < maxListedTokens {
				created[hash] = pair[1]
			}
		}
		return len(created) < maxListedTokens, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the admin tokens of tenant %s: %w", tenantID, err)
	}
	tokens := make([]adminToken, 0, len(created))
	for hash, createdAt := range created {
		tokens = append(tokens, adminToken{hash[:tokenIDChars], createdAt})
	}
	slices.SortFunc(tokens, func(a, b adminToken) int { // times as they are stored sort as text
		return cmp.Or(strings.Compare(a.createdAt, b.createdAt), strings.Compare(a.id, b.id))
	})
	return tokens, nil
}

// scanAdminTokens calls f with the admin tokens of tenantID whose hashes match pattern, as pairs of hash and time of
// creation: in steps, with each at least once, until f returns false or an error.
func (s *store) scanAdminTokens(deadline time.Time, tenantID, pattern string,
	f func(pairs []string) (more bool, err error)) error {
	for cursor := "0"; ; {
		reply, err := redis.Values(s.redis.Read(deadline, "HSCAN", adminTokensRedisKey(tenantID), cursor,
			"MATCH", pattern, "COUNT", tokenScanStep))
		var pairs []string
		if err == nil {
			_, err = redis.Scan(reply, &cursor, &pairs)
		}
		more := err == nil
		if more {
			more, err = f(pairs)
		}
		if !more || err != nil || cursor == "0" {
			return err
		}
	}
}

// RevokeAdminToken deletes the admin tokens of tenantID with that ID. Errors: ErrNoToken; ErrUnavailable, after which
// some may be deleted.
func (s *store) RevokeAdminToken(deadline time.Time, tenantID, id string) error {
	deleted := 0
	err := s.scanAdminTokens(deadline, tenantID, id+"*", func(pairs []string) (more bool, err error) {
		if len(pairs) == 0 {
			return true, nil
		}
		var hashes []any
		for pair := range slices.Chunk(pairs, 2) {
			hashes = append(hashes, pair[0])
		}
		n, err := redis.Int(s.redis.Write(deadline, "HDEL", adminTokensRedisKey(tenantID), hashes...))
		deleted += n
		return true, err
	})
	if err != nil {
		return fmt.Errorf("delete an admin token of tenant %s: %w", tenantID, err)
	}
	if deleted == 0 {
		return ErrNoToken
	}
	return nil
}

// RevokeAdminTokens deletes all admin tokens of tenantID. Error: ErrUnavailable.
func (s *store) RevokeAdminTokens(deadline time.Time, tenantID string) error {
	if _, err := s.redis.Write(deadline, "UNLINK", adminTokensRedisKey(tenantID)); err != nil {
		return fmt.Errorf("delete the admin tokens of tenant %s: %w", tenantID, err)
	}
	return nil
}

// usersRedisKey returns where the IDs of the users are who have API keys of a tenant, in a sorted set in which all have
// the score 0. The next tenant of that ID has another.
func usersRedisKey(tenantID, generation string) string {
	return strings.TrimSuffix("users:"+tenantID+":"+generation, ":")
}

// addUser adds a user to those of a tenant who have API keys, and reports whether it was not among them.
func (s *store) addUser(deadline time.Time, tenantID, generation, userID string) (added bool, err error) {
	return redis.Bool(s.redis.Write(deadline, "ZADD", usersRedisKey(tenantID, generation), 0, userID))
}

// addOwner adds the user of a key to those of its tenant, unless that was deleted since.
func (s *store) addOwner(deadline time.Time, o keyOwner) error {
	generation, err := s.readText(deadline, generationRedisKey(o.tenantID))
	if err == nil && generation == o.generation {
		_, err = s.addUser(deadline, o.tenantID, generation, o.userID)
	}
	return err
}

// keyUser is a user who has API keys.
type keyUser struct {
	id   string
	keys int64 // that the index has, at least 1
}

// Users returns users of t who have API keys and whose IDs begin with prefix, in the order of their bytes: a page of at
// most limit of them that come after the ID after, and after which the next page begins, "" if this is the last. A page
// may have fewer users, or none: one whose index is empty is dropped. Error: ErrUnavailable.
func (s *store) Users(deadline time.Time, t *tenant, prefix, after string, limit int) (users []keyUser, next string,
	err error) {
	from := "[" + prefix
	if after != "" && after >= prefix {
		from = "(" + after
	}
	ids, err := redis.Strings(s.redis.Read(deadline, "ZRANGE", usersRedisKey(t.id, t.generation),
		from, afterPrefix(prefix), "BYLEX", "LIMIT", 0, limit+1))
	if len(ids) > limit {
		ids = ids[:limit]
		next = ids[limit-1]
	}
	var counts []int64
	if err == nil {
		counts, err = s.countKeys(deadline, t, ids)
	}
	var gone []string
	for i, n := range counts {
		if n == 0 {
			gone = append(gone, ids[i])
		}
	}
	back := make(map[string]int64)
	if err == nil && len(gone) > 0 {
		back, err = s.dropUsers(deadline, t, gone)
	}
	if err != nil {
		return nil, "", fmt.Errorf("list the users of tenant %s: %w", t.id, err)
	}
	for i, id := range ids {
		if n := max(counts[i], back[id]); n > 0 {
			users = append(users, keyUser{id, n})
		}
	}
	return users, next, nil
}

// afterPrefix returns where ZRANGE … BYLEX ends that is to return what begins with prefix.
func afterPrefix(prefix string) string {
	last := len(prefix) - 1
	for last >= 0 && prefix[last] == 0xff {
		last--
	}
	if last < 0 {
		return "+"
	}
	return "(" + prefix[:last] + string([]byte{prefix[last] + 1})
}

// countKeys returns how many keys the index of each of those users of t has.
func (s *store) countKeys(deadline time.Time, t *tenant, ids []string) ([]int64, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = userKeysByTimeRedisKey(t.id, id)
	}
	return redis.Int64s(s.redis.ReadEach(deadline, "ZCARD", names))
}

// dropUsers removes users whose index is empty from the users of t, but puts those back who have got a key meanwhile.
// It returns these, and how many keys they have.
func (s *store) dropUsers(deadline time.Time, t *tenant, ids []string) (back map[string]int64, err error) {
	members := make([]any, len(ids))
	for i, id := range ids {
		members[i] = id
	}
	name := usersRedisKey(t.id, t.generation)
	var counts []int64
	if _, err = s.redis.Write(deadline, "ZREM", name, members...); err == nil {
		counts, err = s.countKeys(deadline, t, ids)
	}
	back = make(map[string]int64)
	var again []any
	for i, n := range counts {
		if n > 0 {
			back[ids[i]], again = n, append(again, 0, ids[i])
		}
	}
	if err == nil && len(again) > 0 {
		_, err = s.redis.Write(deadline, "ZADD", name, again...)
	}
	return back, err
}

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

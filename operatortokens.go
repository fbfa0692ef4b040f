package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"tollgate/internal/telemetry"
)

const (
	maxBearerTokens   = 16 // of one setting: two are enough to replace one
	enoughTokenLength = 16 // characters; a shorter token can be guessed
)

// bearerTokens is a set of bearer tokens that all open the same. Its zero value is empty. Its methods may be called
// concurrently.
type bearerTokens struct {
	all atomic.Pointer[[]bearerTokenHash]
}

type bearerTokenHash struct {
	hash  [sha256.Size]byte
	short bool // the token has fewer than enoughTokenLength characters
}

// replace replaces the tokens by those of a setting: one a line, or separated by commas. White space around them does
// not count. If the error is not nil, which shows no token, the former ones stay.
func (t *bearerTokens) replace(value string) error {
	var all []bearerTokenHash
	for token := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == '\n' }) {
		token = strings.TrimSpace(token)
		if token == "" {
			continue
		}
		if !validBearerToken(token) {
			return errors.New("has characters that no bearer token may have" +
				" (RFC 6750 allows A-Z a-z 0-9 - . _ ~ + / and = at the end)")
		}
		all = append(all, bearerTokenHash{sha256.Sum256([]byte(token)), len(token) < enoughTokenLength})
	}
	if len(all) == 0 && value != "" {
		return errors.New("has no token")
	}
	if len(all) > maxBearerTokens {
		return fmt.Errorf("has %d tokens, at most %d", len(all), maxBearerTokens)
	}
	t.all.Store(&all)
	return nil
}

func (t *bearerTokens) hashes() []bearerTokenHash {
	if all := t.all.Load(); all != nil {
		return *all
	}
	return nil
}

// has reports whether a token with that hash is among the tokens. It compares all of them, in constant time.
func (t *bearerTokens) has(hash [sha256.Size]byte) bool {
	found := 0
	for _, token := range t.hashes() {
		found |= subtle.ConstantTimeCompare(hash[:], token.hash[:])
	}
	return found == 1
}

// warnOfShort logs which of the tokens can be guessed. name is that of their setting.
func (t *bearerTokens) warnOfShort(log *telemetry.Logger, name string) {
	all := t.hashes()
	for i, token := range all {
		if !token.short {
			continue
		}
		which := name
		if len(all) > 1 {
			which = fmt.Sprintf("Token %d of %s", i+1, name)
		}
		log.Warnf("%s has fewer than %d characters: it can be guessed", which, enoughTokenLength)
	}
}

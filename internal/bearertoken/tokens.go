// Package bearertoken keeps sets of bearer tokens (RFC 6750) that open the same, and slows down those who guess at
// them.
package bearertoken

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

const (
	maxTokens    = 16 // of one setting: two are enough to replace one
	enoughLength = 16 // characters; a shorter token can be guessed
)

// Set is a set of bearer tokens that all open the same. Its zero value is empty. Its methods may be called
// concurrently.
type Set struct {
	all atomic.Pointer[[]tokenHash]
}

type tokenHash struct {
	hash  [sha256.Size]byte
	short bool // the token has fewer than enoughLength characters
}

// Replace replaces the tokens by those of a setting: one a line, or separated by commas. White space around them does
// not count. If the error is not nil, which shows no token, the former ones stay.
func (t *Set) Replace(value string) error {
	var all []tokenHash
	for token := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == '\n' }) {
		token = strings.TrimSpace(token)
		if token == "" {
			continue
		}
		if !Valid(token) {
			return errors.New("has characters that no bearer token may have" +
				" (RFC 6750 allows A-Z a-z 0-9 - . _ ~ + / and = at the end)")
		}
		all = append(all, tokenHash{sha256.Sum256([]byte(token)), len(token) < enoughLength})
	}
	if len(all) == 0 && value != "" {
		return errors.New("has no token")
	}
	if len(all) > maxTokens {
		return fmt.Errorf("has %d tokens, at most %d", len(all), maxTokens)
	}
	t.all.Store(&all)
	return nil
}

// Len returns how many tokens there are.
func (t *Set) Len() int { return len(t.hashes()) }

func (t *Set) hashes() []tokenHash {
	if all := t.all.Load(); all != nil {
		return *all
	}
	return nil
}

// Has reports whether a token with that hash is among the tokens. It compares all of them, in constant time.
func (t *Set) Has(hash [sha256.Size]byte) bool {
	found := 0
	for _, token := range t.hashes() {
		found |= subtle.ConstantTimeCompare(hash[:], token.hash[:])
	}
	return found == 1
}

// WarnOfShort logs which of the tokens can be guessed. name is that of their setting.
func (t *Set) WarnOfShort(log *telemetry.Logger, name string) {
	all := t.hashes()
	for i, token := range all {
		if !token.short {
			continue
		}
		which := name
		if len(all) > 1 {
			which = fmt.Sprintf("Token %d of %s", i+1, name)
		}
		log.Warnf("%s has fewer than %d characters: it can be guessed", which, enoughLength)
	}
}

// Valid reports whether token is a b64token (RFC 6750, section 2.1).
func Valid(token string) bool {
	body := strings.TrimRight(token, "=")
	for _, c := range []byte(body) {
		if !strict.IsWord(c) && strings.IndexByte(".~+/", c) < 0 {
			return false
		}
	}
	return body != ""
}

package main

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ID tokens of OpenID Connect, and the keys of those who sign them.

const (
	maxIDTokenBytes = 16 << 10
	maxSubjectBytes = 255              // OpenID Connect Core, section 2
	clockLeeway     = 60 * time.Second // between our clock and that of a provider

	minRSABits = 2048 // RFC 7518, section 3.3
	maxRSABits = 8192 // beyond it, a check takes milliseconds
)

var (
	// errInvalidIDToken means that an ID token fails a check. Errors that wrap it name the check, and quote nothing.
	errInvalidIDToken = errors.New("invalid ID token")
	// errNoKeySet means that the keys of a provider cannot be fetched, and none are cached.
	errNoKeySet = errors.New("the provider's keys cannot be fetched")
)

func idTokenError(check string) error { return fmt.Errorf("%w: %s", errInvalidIDToken, check) }

// identityProvider vouches for users who sign in.
type identityProvider struct {
	name    string   // in paths and user IDs
	title   string   // in sentences
	config  string   // the member of a config's auth that has the client IDs
	group   string   // of the keys of its users
	issuers []string // that its tokens may name
	keys    *keySet
}

// newGoogle and newApple return the providers whose keys are at keysURL.
func newGoogle(keysURL string, log *logger) *identityProvider {
	return &identityProvider{
		name: "google", title: "Google", config: "google_oauth", group: "google_logged_in",
		issuers: []string{"https://accounts.google.com", "accounts.google.com"},
		keys:    newKeySet("Google", keysURL, log),
	}
}

func newApple(keysURL string, log *logger) *identityProvider {
	return &identityProvider{
		name: "apple", title: "Apple", config: "apple_oauth", group: "apple_logged_in",
		issuers: []string{"https://appleid.apple.com"},
		keys:    newKeySet("Apple", keysURL, log),
	}
}

// verify checks an ID token that was issued for one of clientIDs and returns its subject, which is printable ASCII
// without white space and braces. Only RS256 is accepted, whatever the token's header says: what else it names (other
// algorithms, keys, addresses of keys) is never used. Errors: errInvalidIDToken, errNoKeySet.
func (p *identityProvider) verify(deadline time.Time, token string, clientIDs []string) (subject string, err error) {
	if len(token) > maxIDTokenBytes {
		return "", idTokenError("it is too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", idTokenError("it does not have three parts")
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = decodeBase64URL(part); err != nil {
			return "", idTokenError("a part is not base64url")
		}
	}
	kid, err := parseIDTokenHeader(decoded[0])
	if err != nil {
		return "", err
	}
	key, err := p.keys.key(deadline, kid)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256([]byte(token[:len(parts[0])+1+len(parts[1])]))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], decoded[2]) != nil {
		return "", idTokenError("the signature is wrong")
	}
	return p.checkClaims(decoded[1], clientIDs, time.Now())
}

// decodeBase64URL decodes base64url without padding (RFC 7515, section 2) in its only spelling: encoding/base64 alone
// would skip line breaks, and ignore bits at the end.
func decodeBase64URL(s string) ([]byte, error) {
	for i := range len(s) {
		if !isWord(s[i]) {
			return nil, errors.New("not base64url")
		}
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// parseIDTokenHeader checks the header of a token and returns the ID of the key that has signed it.
func parseIDTokenHeader(header []byte) (kid string, err error) {
	var algorithm, kind string
	critical := false
	err = decodeOpenObject(header, objectRules{
		"alg":  stringField(&algorithm),
		"kid":  stringField(&kid),
		"typ":  stringField(&kind),
		"crit": func(*problems, string, []byte) { critical = true },
	})
	switch {
	case err != nil:
		return "", idTokenError("its header is malformed")
	case algorithm != "RS256":
		return "", idTokenError("it is not signed with RS256")
	case kind != "" && !strings.EqualFold(kind, "JWT"):
		return "", idTokenError("it is another type of token")
	case critical: // RFC 7515, section 4.1.11
		return "", idTokenError("it has a critical extension")
	case kid == "" || len(kid) > 256:
		return "", idTokenError("it does not name its key")
	}
	return kid, nil
}

// checkClaims checks the payload of a token whose signature is right, and returns its subject.
func (p *identityProvider) checkClaims(payload []byte, clientIDs []string, now time.Time) (string, error) {
	var issuer, subject string
	var audience []string
	var expires, issued, notBefore time.Time
	err := decodeOpenObject(payload, objectRules{
		"iss": stringField(&issuer),
		"sub": stringField(&subject),
		"aud": audienceField(&audience),
		"exp": numericDateField(&expires),
		"iat": numericDateField(&issued),
		"nbf": numericDateField(&notBefore),
	}, "iss", "sub", "aud", "exp", "iat")
	unknown := func(id string) bool { return !slices.Contains(clientIDs, id) }
	switch {
	case err != nil:
		return "", idTokenError("its claims are malformed")
	case !slices.Contains(p.issuers, issuer):
		return "", idTokenError("another issuer")
	case len(audience) == 0 || slices.ContainsFunc(audience, unknown): // Core, section 3.1.3.7, step 3
		return "", idTokenError("another audience")
	case !now.Before(expires.Add(clockLeeway)):
		return "", idTokenError("it has expired")
	case issued.After(now.Add(clockLeeway)):
		return "", idTokenError("it was issued in the future")
	case notBefore.After(now.Add(clockLeeway)):
		return "", idTokenError("it is not valid yet")
	case !validSubject(subject):
		return "", idTokenError("its subject is malformed")
	}
	return subject, nil
}

// validSubject reports whether subject can be part of a user ID, which headers carry, and of a Redis key.
func validSubject(subject string) bool {
	bad := func(c rune) bool { return c <= ' ' || c > '~' || c == '{' || c == '}' }
	return subject != "" && len(subject) <= maxSubjectBytes && !strings.ContainsFunc(subject, bad)
}

// audienceField accepts a string, or an array of strings.
func audienceField(dst *[]string) fieldRule {
	return func(wrong *problems, path string, value []byte) {
		if value[0] != '[' {
			*dst = []string{""}
			stringField(&(*dst)[0])(wrong, path, value)
			return
		}
		readElements(wrong, path, value, func(wrong *problems, path string, value []byte) {
			var one string
			stringField(&one)(wrong, path, value)
			*dst = append(*dst, one)
		})
	}
}

// numericDateField accepts seconds since 1970, which may have decimals (RFC 7519, section 2).
func numericDateField(dst *time.Time) fieldRule {
	return func(wrong *problems, path string, value []byte) {
		seconds, err := strconv.ParseFloat(string(value), 64)
		if !isNumber(value) || err != nil || seconds < 0 || seconds > 1<<40 {
			wrong.add(path, "must be a time")
			return
		}
		*dst = time.UnixMilli(int64(seconds * 1000))
	}
}

const (
	maxKeySetBytes     = 64 << 10
	keyFetchTimeout    = 5 * time.Second
	keyWaitTimeout     = 500 * time.Millisecond // of a request that could do with a stale key
	keyRetryInterval   = time.Second            // after a fetch that failed
	unknownKeyInterval = time.Minute            // between fetches because of unknown keys
	minKeySetAge       = 5 * time.Minute
	maxKeySetAge       = 24 * time.Hour
)

// keySet is the JSON Web Key Set of a provider (RFC 7517), cached as its Cache-Control says, from minKeySetAge to
// maxKeySetAge. While it cannot be fetched, the last one is used. At most one fetch runs at a time.
type keySet struct {
	title, url string
	client     *http.Client
	log        *logger

	mu         sync.Mutex                // guards the fields below
	keys       map[string]*rsa.PublicKey // by kid; nil until the first fetch has succeeded
	freshUntil time.Time
	failedAt   time.Time // when the last fetch ended, if it failed
	unknownAt  time.Time // when an unknown key has last caused a fetch
	fetching   *keyFetch // nil while none runs
}

// keyFetch is a fetch that runs.
type keyFetch struct {
	began time.Time
	done  chan struct{}
}

func newKeySet(title, url string, log *logger) *keySet {
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DisableKeepAlives:      true, // it is used once in hours
		MaxResponseHeaderBytes: 16 << 10,
	}
	return &keySet{title: title, url: url, log: log, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// key returns the key with that ID. If it is unknown, or the keys are no longer fresh, they are fetched first. Errors:
// errInvalidIDToken if there is no such key; errNoKeySet if none can be fetched by deadline and none are cached.
func (s *keySet) key(deadline time.Time, kid string) (*rsa.PublicKey, error) {
	for {
		s.mu.Lock()
		key, cached, now := s.keys[kid], s.keys != nil, time.Now()
		if key != nil && now.Before(s.freshUntil) {
			s.mu.Unlock()
			return key, nil
		}
		if s.fetching == nil && s.mayFetch(now) {
			s.fetching = &keyFetch{began: now, done: make(chan struct{})}
			go s.fetch(s.fetching)
		}
		fetch := s.fetching
		s.mu.Unlock()

		wait := deadline
		if key != nil && fetch != nil && fetch.began.Add(keyWaitTimeout).Before(deadline) {
			wait = fetch.began.Add(keyWaitTimeout)
		}
		if fetch == nil || !fetch.endsBy(wait) {
			switch {
			case key != nil:
				return key, nil
			case !cached || fetch != nil:
				return nil, errNoKeySet
			}
			return nil, idTokenError("its key is unknown")
		}
	}
}

// endsBy waits for the end of a fetch and reports whether it came in time.
func (f *keyFetch) endsBy(deadline time.Time) bool {
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	select {
	case <-f.done:
		return true
	case <-timeout.C:
		return false
	}
}

// mayFetch reports whether a request that lacks a fresh key may cause a fetch, and notes that it does if the keys are
// fresh, so that its key is unknown. The caller holds s.mu.
func (s *keySet) mayFetch(now time.Time) bool {
	if now.Sub(s.failedAt) < keyRetryInterval {
		return false
	}
	if now.Before(s.freshUntil) {
		if now.Sub(s.unknownAt) < unknownKeyInterval {
			return false
		}
		s.unknownAt = now
	}
	return true
}

// fetch fetches the keys, and notes and logs the outcome.
func (s *keySet) fetch(f *keyFetch) {
	ctx, cancel := context.WithTimeout(context.Background(), keyFetchTimeout)
	defer cancel()
	keys, age, err := s.download(ctx)
	s.mu.Lock()
	now, wasFailing := time.Now(), !s.failedAt.IsZero()
	if err != nil {
		s.failedAt = now
	} else {
		s.keys, s.freshUntil, s.failedAt = keys, now.Add(age), time.Time{}
	}
	s.fetching = nil
	s.mu.Unlock()
	close(f.done)
	switch {
	case err != nil && !wasFailing:
		s.log.warnf("The keys of %s cannot be fetched: %v", s.title, err)
	case err == nil && wasFailing:
		s.log.infof("The keys of %s were fetched again", s.title)
	}
}

// download returns the keys at the provider and for how long they are fresh.
func (s *keySet) download(ctx context.Context) (map[string]*rsa.PublicKey, time.Duration, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, 0, err
	}
	response, err := s.client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("the response is %s", response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxKeySetBytes+1))
	if err != nil {
		return nil, 0, err
	}
	if len(body) > maxKeySetBytes {
		return nil, 0, fmt.Errorf("the response is larger than %d bytes", maxKeySetBytes)
	}
	keys, err := parseKeySet(body)
	return keys, keySetAge(response.Header), err
}

// keySetAge returns for how long a response with that header is fresh (RFC 9111, section 4.2.1), within our bounds.
func keySetAge(h http.Header) time.Duration {
	var seconds int64
	for directive := range strings.SplitSeq(strings.ToLower(strings.Join(h["Cache-Control"], ",")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "max-age":
			seconds, _ = strconv.ParseInt(strings.Trim(value, `"`), 10, 32) // the nearest int32 if it is beyond
		case "no-store", "no-cache":
			return minKeySetAge
		}
	}
	if age, err := strconv.ParseInt(h.Get("Age"), 10, 32); err == nil && age > 0 {
		seconds -= age
	}
	return min(max(time.Duration(seconds)*time.Second, minKeySetAge), maxKeySetAge)
}

// parseKeySet returns the keys of a key set that can verify RS256, by their IDs. It passes over all others, and over
// different keys of the same ID, of which nobody could say which one counts. The error means that none remain.
func parseKeySet(data []byte) (map[string]*rsa.PublicKey, error) {
	keys := make(map[string]*rsa.PublicKey)
	err := decodeOpenObject(data, objectRules{"keys": func(wrong *problems, path string, value []byte) {
		readElements(wrong, path, value, func(_ *problems, _ string, value []byte) {
			kid, key := parseRSAKey(value)
			if key == nil {
				return
			}
			if other, seen := keys[kid]; seen && (other == nil || !other.Equal(key)) {
				key = nil
			}
			keys[kid] = key
		})
	}}, "keys")
	if err != nil {
		return nil, errors.New("the response is not a JSON Web Key Set")
	}
	for kid, key := range keys {
		if key == nil {
			delete(keys, kid)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the key set has no key for RS256")
	}
	return keys, nil
}

// parseRSAKey returns the key that a JSON Web Key describes, nil if RS256 must not be verified with it.
func parseRSAKey(jwk []byte) (kid string, key *rsa.PublicKey) {
	var kind, use, algorithm, modulus, exponent string
	err := decodeOpenObject(jwk, objectRules{
		"kid": stringField(&kid), "kty": stringField(&kind), "use": stringField(&use), "alg": stringField(&algorithm),
		"n": stringField(&modulus), "e": stringField(&exponent),
	}, "kid", "kty", "n", "e")
	if err != nil || kid == "" || kind != "RSA" || use != "" && use != "sig" || algorithm != "" && algorithm != "RS256" {
		return "", nil
	}
	n, errN := decodeBase64URL(modulus)
	e, errE := decodeBase64URL(exponent)
	if errN != nil || errE != nil || len(e) > 4 {
		return "", nil
	}
	key = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if !isStrong(key) {
		return "", nil
	}
	return kid, key
}

// isStrong reports whether a key has a size and an exponent that are in use.
func isStrong(key *rsa.PublicKey) bool {
	bits := key.N.BitLen()
	return minRSABits <= bits && bits <= maxRSABits && key.N.Bit(0) == 1 && key.E >= 3 && key.E <= 1<<31-1 && key.E%2 == 1
}

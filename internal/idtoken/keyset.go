package idtoken

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

const (
	maxKeySetBytes = 64 << 10
	minRSABits     = 2048 // RFC 7518, section 3.3
	maxRSABits     = 8192 // beyond it, a check takes milliseconds

	fetchTimeout       = 5 * time.Second
	staleKeyTimeout    = 500 * time.Millisecond // for which a request that has a stale key waits for a fetch
	retryInterval      = time.Second            // after a fetch that failed
	unknownKeyInterval = time.Minute            // between fetches because of unknown keys
	minKeySetAge       = 5 * time.Minute
	maxKeySetAge       = 24 * time.Hour
)

// ErrNoKeys means that the keys of a provider are neither cached nor can be fetched.
var ErrNoKeys = errors.New("the provider's keys cannot be fetched")

// A keySet is the JSON Web Key Set of a provider (RFC 7517). Each key is cached for as long as the Cache-Control of the
// response says that it came with, but at least for minKeySetAge and at most for maxKeySetAge. A response that lacks it
// does not end it before: providers serve from many places, which do not all change at once. While the keys cannot be
// fetched again, the cached ones, which are stale then, serve on. At most one fetch runs at a time.
type keySet struct {
	title, url string // title names the provider in the log
	client     *http.Client
	log        *telemetry.Logger

	mu         sync.Mutex           // guards the fields below
	keys       map[string]cachedKey // by kid; nil until the first fetch has succeeded
	freshUntil time.Time            // until then only an unknown key causes a fetch
	failedAt   time.Time            // when the last fetch ended if it failed, else zero
	unknownAt  time.Time            // when an unknown key last caused a fetch
	fetching   *keyFetch            // nil while none runs
}

// A cachedKey is a key and how long it is fresh.
type cachedKey struct {
	*rsa.PublicKey
	freshUntil time.Time
}

// A keyFetch is a fetch that runs.
type keyFetch struct {
	began time.Time
	done  chan struct{} // closed at its end
}

func newKeySet(title, url string, log *telemetry.Logger) *keySet {
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DisableKeepAlives:      true, // there are hours between fetches
		MaxResponseHeaderBytes: 16 << 10,
	}
	return &keySet{title: title, url: url, log: log, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// key returns the key with an ID. If it is unknown, or the keys are stale, they are fetched first. A stale key is
// returned if that fails, or takes longer than staleKeyTimeout. Errors: ErrInvalid if there is no such key; ErrNoKeys
// if it is not cached and the keys are not fetched by deadline.
func (s *keySet) key(deadline time.Time, kid string) (*rsa.PublicKey, error) {
	for {
		s.mu.Lock()
		cached, now := s.keys != nil, time.Now()
		key, fresh := s.keys[kid].PublicKey, now.Before(s.keys[kid].freshUntil)
		if fresh {
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
		if key != nil && fetch != nil && fetch.began.Add(staleKeyTimeout).Before(deadline) {
			wait = fetch.began.Add(staleKeyTimeout)
		}
		if fetch == nil || !fetch.endsBy(wait) {
			switch {
			case key != nil:
				return key, nil
			case !cached || fetch != nil:
				return nil, ErrNoKeys
			}
			return nil, invalid("its key is unknown")
		}
	}
}

// endsBy waits for the end of a fetch until deadline, and reports whether it has ended.
func (f *keyFetch) endsBy(deadline time.Time) bool {
	select {
	case <-f.done:
		return true
	case <-time.After(time.Until(deadline)):
		return false
	}
}

// mayFetch reports whether a request that has no fresh key may cause a fetch. If the keys are fresh, its key is
// unknown: then mayFetch notes when. The caller holds s.mu.
func (s *keySet) mayFetch(now time.Time) bool {
	if now.Sub(s.failedAt) < retryInterval {
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
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, age, err := s.download(ctx)
	s.mu.Lock()
	now, wasFailing := time.Now(), !s.failedAt.IsZero()
	if err != nil {
		s.failedAt = now
	} else {
		s.merge(keys, now, now.Add(age))
		s.failedAt = time.Time{}
	}
	s.fetching = nil
	s.mu.Unlock()
	defer close(f.done)
	switch {
	case err != nil && !wasFailing:
		s.log.Warnf("The keys of %s cannot be fetched: %v", s.title, err)
	case err == nil && wasFailing:
		s.log.Infof("The keys of %s were fetched again", s.title)
	}
}

// merge adds the keys of a response, and drops the stale ones that it lacks. Fresh keys stay as they are, and so does
// s.freshUntil if an unknown key has caused the fetch: what is fresh until then must be fetched then. The caller holds
// s.mu.
func (s *keySet) merge(keys map[string]*rsa.PublicKey, now, freshUntil time.Time) {
	merged := make(map[string]cachedKey, len(keys))
	for kid, key := range keys {
		merged[kid] = cachedKey{key, freshUntil}
	}
	for kid, key := range s.keys {
		if now.Before(key.freshUntil) {
			merged[kid] = key
		}
	}
	s.keys = merged
	if !now.Before(s.freshUntil) {
		s.freshUntil = freshUntil
	}
}

// download returns the keys that the provider publishes, and for how long they are fresh.
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

// keySetAge returns for how long a response with that header is fresh (RFC 9111, section 4.2.1), from minKeySetAge to
// maxKeySetAge.
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

// parseKeySet returns the keys of a key set that can verify RS256, by their IDs. It skips all others, and different
// keys with the same ID, since either could be meant. The error means that none remain.
func parseKeySet(data []byte) (map[string]*rsa.PublicKey, error) {
	keys := make(map[string]*rsa.PublicKey)
	err := strict.DecodeOpen(data, strict.Rules{"keys": strict.ArrayOf(func(_ *strict.Problems, value []byte) bool {
		kid, key := parseRSAKey(value)
		if key == nil {
			return true
		}
		if other, seen := keys[kid]; seen && (other == nil || !other.Equal(key)) {
			key = nil
		}
		keys[kid] = key
		return true
	})}, "keys")
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

// parseRSAKey returns the key that a JSON Web Key describes, and its ID. The key is nil if RS256 must not be verified
// with it.
func parseRSAKey(jwk []byte) (kid string, key *rsa.PublicKey) {
	var kind, use, algorithm, modulus, exponent string
	err := strict.DecodeOpen(jwk, strict.Rules{
		"kid": strict.String(&kid), "kty": strict.String(&kind), "use": strict.String(&use), "alg": strict.String(&algorithm),
		"n": strict.String(&modulus), "e": strict.String(&exponent),
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

// isStrong reports whether a key has a size that is secure and not too slow, and a modulus and an exponent that are
// odd.
func isStrong(key *rsa.PublicKey) bool {
	bits := key.N.BitLen()
	return minRSABits <= bits && bits <= maxRSABits && key.N.Bit(0) == 1 && key.E >= 3 && key.E <= 1<<31-1 && key.E%2 == 1
}

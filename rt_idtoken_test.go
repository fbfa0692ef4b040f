package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testKeys are RSA keys that all tests share, since generating one takes long.
var testKeys = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i, bits := range []int{2048, 2048, 1024} {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, bits); err != nil {
			panic(err)
		}
	}
	return keys
})

func base64URL(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// jwk describes a key as a JSON Web Key with more members, such as `"use":"sig",`.
func jwk(kid string, key *rsa.PublicKey, more string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,%s"n":%q,"e":%q}`, kid, more, base64URL(key.N.Bytes()),
		base64URL(big.NewInt(int64(key.E)).Bytes()))
}

// keyServer serves a key set as Google does.
type keyServer struct {
	*httptest.Server
	fetches atomic.Int64
	mu      sync.Mutex
	status  int    // guarded by mu, as the rest
	body    string // the key set
	caching string // Cache-Control
	pause   chan struct{}
}

// newKeyServer serves the first of testKeys as k1, until the test ends.
func newKeyServer(t testing.TB) *keyServer {
	t.Helper()
	s := &keyServer{status: 200, caching: "public, max-age=19213, must-revalidate"}
	s.serve(jwk("k1", &testKeys()[0].PublicKey, `"use":"sig","alg":"RS256",`))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fetches.Add(1)
		s.mu.Lock()
		status, body, caching, pause := s.status, s.body, s.caching, s.pause
		s.mu.Unlock()
		if pause != nil {
			<-pause
		}
		w.Header().Set("Cache-Control", caching)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	return s
}

// serve changes the keys.
func (s *keyServer) serve(keys ...string) {
	s.set(func() { s.body = `{"keys":[` + strings.Join(keys, ",") + `]}` })
}

func (s *keyServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *keyServer) wantFetches(t *testing.T, want int64) {
	t.Helper()
	if got := s.fetches.Load(); got != want {
		t.Errorf("the keys were fetched %d times, want %d", got, want)
	}
}

// claims are the payload of a valid token, with changes; a value of nil removes a claim.
func claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": "https://accounts.google.com", "aud": "web-client", "azp": "web-client", "sub": "110169484474386276334",
		"iat": now, "exp": now + 3600, "email": "a@example.com", "email_verified": true,
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

func toJSON(v any) string {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// signToken signs a header and a payload as they are.
func signToken(key *rsa.PrivateKey, header, payload string) string {
	signed := base64URL([]byte(header)) + "." + base64URL([]byte(payload))
	hash := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + base64URL(signature)
}

// idToken returns a valid token, with changes to its claims.
func idToken(changes map[string]any) string {
	return signToken(testKeys()[0], tokenHeader, toJSON(claims(changes)))
}

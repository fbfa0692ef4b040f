// Package idtokentest serves the keys of a provider that signs ID tokens, and signs tokens with them, for tests.
package idtokentest

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

var keys = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i, bits := range []int{2048, 2048, 1024} {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, bits); err != nil {
			panic(err)
		}
	}
	return keys
})

// Keys returns three RSA keys, of 2048, 2048 and 1024 bits, which all tests share because it takes long to generate
// them.
func Keys() [3]*rsa.PrivateKey { return keys() }

// Base64URL returns data in base64url without padding.
func Base64URL(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// JWK returns the public half of a key as a JSON Web Key with that ID. more has further members, each with a comma
// after it, such as `"use":"sig",`.
func JWK(kid string, key *rsa.PrivateKey, more string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,%s"n":%q,"e":%q}`, kid, more, Base64URL(key.N.Bytes()),
		Base64URL(big.NewInt(int64(key.E)).Bytes()))
}

// A Server serves a key set as Google does.
type Server struct {
	URL     string       // of the key set
	Fetches atomic.Int64 // requests so far

	mu     sync.Mutex
	Status int           // of responses; like Body and Pause, it may be changed only by Set
	Body   string        // the key set
	Pause  chan struct{} // unless it is nil, responses wait until it is closed
}

// NewServer starts a server of the first of Keys, with the ID k1. It stops when the test ends.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{Status: http.StatusOK}
	s.Serve(JWK("k1", Keys()[0], `"use":"sig","alg":"RS256",`))
	server := httptest.NewServer(http.HandlerFunc(s.respond))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

func (s *Server) respond(w http.ResponseWriter, _ *http.Request) {
	s.Fetches.Add(1)
	s.mu.Lock()
	status, body, pause := s.Status, s.Body, s.Pause
	s.mu.Unlock()
	if pause != nil {
		<-pause
	}
	w.Header().Set("Cache-Control", "public, max-age=19213, must-revalidate")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// Serve makes keys, each a JSON Web Key, the key set.
func (s *Server) Serve(keys ...string) {
	s.Set(func() { s.Body = `{"keys":[` + strings.Join(keys, ",") + `]}` })
}

// Set calls change, which may change the fields of s, while no response reads them.
func (s *Server) Set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// WantFetches fails the test unless there were that many requests.
func (s *Server) WantFetches(t testing.TB, want int64) {
	t.Helper()
	if got := s.Fetches.Load(); got != want {
		t.Errorf("the keys were fetched %d times, want %d", got, want)
	}
}

// Payload returns the payload of a token of Google's that is valid for an hour, with changes to its claims. A change to
// nil removes a claim.
func Payload(changes map[string]any) string {
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": "https://accounts.google.com", "aud": "web-client", "azp": "web-client", "sub": "110169484474386276334",
		"iat": now, "exp": now + 3600, "email": "a@example.com", "email_verified": true,
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return string(payload)
}

// Header is the header of the tokens that Token returns.
const Header = `{"alg":"RS256","kid":"k1","typ":"JWT"}`

// Token returns a token with a payload as Payload returns it, which the first of Keys has signed.
func Token(changes map[string]any) string { return Sign(Keys()[0], Header, Payload(changes)) }

// Sign returns a token with header and payload as they are.
func Sign(key *rsa.PrivateKey, header, payload string) string {
	signed := Base64URL([]byte(header)) + "." + Base64URL([]byte(payload))
	hash := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + Base64URL(signature)
}

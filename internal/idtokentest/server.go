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

// Keys are RSA keys that all tests share, since generating one takes long.
var Keys = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i, bits := range []int{2048, 2048, 1024} {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, bits); err != nil {
			panic(err)
		}
	}
	return keys
})

func Base64URL(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// JWK describes a key as a JSON Web Key with more members, such as `"use":"sig",`.
func JWK(kid string, key *rsa.PublicKey, more string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,%s"n":%q,"e":%q}`, kid, more, Base64URL(key.N.Bytes()),
		Base64URL(big.NewInt(int64(key.E)).Bytes()))
}

// Server serves a key set as Google does.
type Server struct {
	*httptest.Server
	Fetches atomic.Int64
	mu      sync.Mutex
	Status  int    // guarded by mu, as the rest
	Body    string // the key set
	caching string // Cache-Control
	Pause   chan struct{}
}

// NewServer serves the first of Keys as k1, until the test ends.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{Status: 200, caching: "public, max-age=19213, must-revalidate"}
	s.Serve(JWK("k1", &Keys()[0].PublicKey, `"use":"sig","alg":"RS256",`))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.Fetches.Add(1)
		s.mu.Lock()
		status, body, caching, pause := s.Status, s.Body, s.caching, s.Pause
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

// Serve changes the keys.
func (s *Server) Serve(keys ...string) {
	s.Set(func() { s.Body = `{"keys":[` + strings.Join(keys, ",") + `]}` })
}

func (s *Server) Set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *Server) WantFetches(t *testing.T, want int64) {
	t.Helper()
	if got := s.Fetches.Load(); got != want {
		t.Errorf("the keys were fetched %d times, want %d", got, want)
	}
}

// Claims are the payload of a valid token, with changes; a value of nil removes a claim.
func Claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": "https://accounts.google.com", "aud": "web-client", "azp": "web-client", "sub": "110169484474386276334",
		"iat": now, "exp": now + 3600, "email": "a@example.com", "email_verified": true,
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

func ToJSON(v any) string {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// SignToken signs a header and a payload as they are.
func SignToken(key *rsa.PrivateKey, header, payload string) string {
	signed := Base64URL([]byte(header)) + "." + Base64URL([]byte(payload))
	hash := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + Base64URL(signature)
}

// Token returns a valid token, with changes to its claims.
func Token(changes map[string]any) string {
	return SignToken(Keys()[0], Header, ToJSON(Claims(changes)))
}

// Header is the header of the tokens that Token returns.
const Header = `{"alg":"RS256","kid":"k1","typ":"JWT"}`

package idtoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
)

// hmacToken signs with the secret, as HS256 does.
func hmacToken(secret []byte, header, payload string) string {
	signed := idtokentest.Base64URL([]byte(header)) + "." + idtokentest.Base64URL([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + idtokentest.Base64URL(mac.Sum(nil))
}

// ecToken signs with ES256.
func ecToken(key *ecdsa.PrivateKey, header, payload string) string {
	signed := idtokentest.Base64URL([]byte(header)) + "." + idtokentest.Base64URL([]byte(payload))
	hash := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + idtokentest.Base64URL(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// testGoogle returns Google with the keys of a key server.
func testGoogle(s *idtokentest.Server) (*Verifier, *telemetrytest.Log) {
	log := new(telemetrytest.Log)
	return Google(s.URL, telemetry.New(log)), log
}

func TestIDTokens(t *testing.T) {
	google, _ := testGoogle(idtokentest.NewServer(t))
	now := time.Now().Unix()
	for _, test := range []struct {
		name    string
		token   string
		subject string
	}{
		{"plain", idtokentest.Token(nil), "110169484474386276334"},
		{"the other issuer", idtokentest.Token(map[string]any{"iss": "accounts.google.com"}), "110169484474386276334"},
		{"another of our clients", idtokentest.Token(map[string]any{"aud": "ios-client"}), "110169484474386276334"},
		{"a list of audiences", idtokentest.Token(map[string]any{"aud": []string{"ios-client", "web-client"}}), "110169484474386276334"},
		{"times with decimals", idtokentest.Token(map[string]any{"exp": float64(now) + 60.5}), "110169484474386276334"},
		{"a clock that is a bit ahead", idtokentest.Token(map[string]any{"iat": now + 30, "nbf": now + 30}), "110169484474386276334"},
		{"Apple's form of a subject", idtokentest.Token(map[string]any{"sub": "001234.0123abcd.0456"}), "001234.0123abcd.0456"},
		{"no type", idtokentest.SignToken(idtokentest.Keys()[0], `{"alg":"RS256","kid":"k1"}`, idtokentest.ToJSON(idtokentest.Claims(nil))), "110169484474386276334"},
	} {
		t.Run(test.name, func(t *testing.T) {
			subject, err := google.Verify(time.Now().Add(10*time.Second), test.token, []string{"web-client", "ios-client"})
			if err != nil || subject != test.subject {
				t.Errorf("got %q, %v", subject, err)
			}
		})
	}
}

// badIDTokens returns tokens that fail one check each, with what the log says of it.
func badIDTokens() []struct{ name, token, check string } {
	good := idtokentest.Keys()[0]
	public := x509.MarshalPKCS1PublicKey(&good.PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: public})
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	now, payload := time.Now().Unix(), idtokentest.ToJSON(idtokentest.Claims(nil))
	parts := strings.Split(idtokentest.Token(nil), ".")
	with := func(name string, value any) string { return idtokentest.Token(map[string]any{name: value}) }
	header := func(header string) string { return idtokentest.SignToken(good, header, payload) }
	const (
		malformed = "its claims are malformed"
		wrongHead = "its header is malformed"
		notRS256  = "it is not signed with RS256"
		signature = "the signature is wrong"
		encoding  = "a part is not base64url"
		unknown   = "its key is unknown"
		threeOf   = "it does not have three parts"
		audience  = "another audience"
		subject   = "its subject is malformed"
	)
	return []struct{ name, token, check string }{
		{"empty", "", threeOf},
		{"two parts", parts[0] + "." + parts[1], threeOf},
		{"four parts", idtokentest.Token(nil) + ".x", threeOf},
		{"five parts of an encrypted token", "a.b.c.d.e", threeOf},
		{"huge", strings.Repeat("a", maxTokenBytes+1), "it is too long"},
		{"huge claim", with("x", strings.Repeat("a", maxTokenBytes)), "it is too long"},
		{"expired", with("exp", now-61), "it has expired"},
		{"expired long ago", with("exp", 0), "it has expired"},
		{"from the future", with("iat", now+120), "it was issued in the future"},
		{"not yet valid", with("nbf", now+120), "it is not valid yet"},
		{"no expiry", with("exp", nil), malformed},
		{"expiry as text", with("exp", fmt.Sprint(now+3600)), malformed},
		{"expiry beyond all years", with("exp", 1e300), malformed},
		{"negative expiry", with("exp", -1), malformed},
		{"no time of issue", with("iat", nil), malformed},
		{"another audience", with("aud", "other-client"), audience},
		{"an audience in another case", with("aud", "Web-Client"), audience},
		{"an audience beside ours", with("aud", []string{"web-client", "other-client"}), audience},
		{"no audience in the list", with("aud", []string{}), audience},
		{"a list in the list", with("aud", []any{[]string{"web-client"}}), malformed},
		{"no audience", with("aud", nil), malformed},
		{"only azp is ours", idtokentest.Token(map[string]any{"aud": "other-client", "azp": "web-client"}), audience},
		{"another issuer", with("iss", "https://accounts.example.com"), "another issuer"},
		{"Apple as issuer", with("iss", "https://appleid.apple.com"), "another issuer"},
		{"an issuer with a slash", with("iss", "https://accounts.google.com/"), "another issuer"},
		{"no issuer", with("iss", nil), malformed},
		{"no subject", with("sub", nil), malformed},
		{"empty subject", with("sub", ""), subject},
		{"subject as number", with("sub", 110169484474386276), malformed},
		{"subject with a line break", with("sub", "1\n2"), subject},
		{"subject with a hash tag", with("sub", "{apiKey:x}"), subject},
		{"long subject", with("sub", strings.Repeat("1", maxSubjectBytes+1)), subject},
		{"alg none", idtokentest.Base64URL([]byte(`{"alg":"none","kid":"k1"}`)) + "." + parts[1] + ".", notRS256},
		{"alg None", idtokentest.Base64URL([]byte(`{"alg":"None","kid":"k1"}`)) + "." + parts[1] + "." + parts[2], notRS256},
		{"no signature", parts[0] + "." + parts[1] + ".", signature},
		{"HS256 with the public key", hmacToken(public, `{"alg":"HS256","kid":"k1"}`, payload), notRS256},
		{"HS256 with the public key as PEM", hmacToken(publicPEM, `{"alg":"HS256","kid":"k1"}`, payload), notRS256},
		{"HS256 that calls itself RS256", hmacToken(publicPEM, idtokentest.Header, payload), signature},
		{"ES256", ecToken(ec, `{"alg":"ES256","kid":"ec"}`, payload), notRS256},
		{"an EC key for RS256", ecToken(ec, `{"alg":"RS256","kid":"ec"}`, payload), unknown},
		{"RS512", header(`{"alg":"RS512","kid":"k1"}`), notRS256},
		{"PS256", header(`{"alg":"PS256","kid":"k1"}`), notRS256},
		{"rs256", header(`{"alg":"rs256","kid":"k1"}`), notRS256},
		{"no algorithm", header(`{"kid":"k1"}`), notRS256},
		{"the algorithm under another name", header(`{"ALG":"RS256","kid":"k1"}`), notRS256},
		{"another key", idtokentest.SignToken(idtokentest.Keys()[1], idtokentest.Header, payload), signature},
		{"another key with its own ID", idtokentest.SignToken(idtokentest.Keys()[1], `{"alg":"RS256","kid":"k9"}`, payload), unknown},
		{"another key of the set", idtokentest.SignToken(idtokentest.Keys()[0], `{"alg":"RS256","kid":"k2"}`, payload), signature},
		{"a key ID that two keys have", header(`{"alg":"RS256","kid":"twice"}`), unknown},
		{"a weak key", idtokentest.SignToken(idtokentest.Keys()[2], `{"alg":"RS256","kid":"weak"}`, payload), unknown},
		{"a key for encryption", header(`{"alg":"RS256","kid":"enc"}`), unknown},
		{"a key for another algorithm", header(`{"alg":"RS256","kid":"rs512"}`), unknown},
		{"its own key", idtokentest.SignToken(idtokentest.Keys()[1], `{"alg":"RS256","kid":"k9","jwk":`+idtokentest.JWK("k9", &idtokentest.Keys()[1].PublicKey, "")+`}`,
			payload), unknown},
		{"no key ID", header(`{"alg":"RS256"}`), "it does not name its key"},
		{"an empty key ID", header(`{"alg":"RS256","kid":""}`), "it does not name its key"},
		{"a key ID that is a path", header(`{"alg":"RS256","kid":"../../k1"}`), unknown},
		{"critical extension", header(`{"alg":"RS256","kid":"k1","crit":["b64"],"b64":false}`), "it has a critical extension"},
		{"an access token", header(`{"alg":"RS256","kid":"k1","typ":"at+jwt"}`), "it is another type of token"},
		{"doubled algorithm", header(`{"alg":"none","alg":"RS256","kid":"k1"}`), wrongHead},
		{"doubled claim", idtokentest.SignToken(good, idtokentest.Header, strings.Replace(payload, `{`, `{"aud":"other-client",`, 1)), malformed},
		{"doubled claim that we do not read", idtokentest.SignToken(good, idtokentest.Header, strings.Replace(payload, `{`, `{"email":"b",`, 1)),
			malformed},
		{"claims that are no object", idtokentest.SignToken(good, idtokentest.Header, `["iss"]`), malformed},
		{"claims that are no JSON", idtokentest.SignToken(good, idtokentest.Header, payload+"x"), malformed},
		{"claims that are no UTF-8", idtokentest.SignToken(good, idtokentest.Header, strings.Replace(payload, "a@", "\xff@", 1)), malformed},
		{"a header that is no JSON", header(`{"alg":"RS256","kid":"k1"} {}`), wrongHead},
		{"padding", parts[0] + "." + parts[1] + "." + parts[2] + "==", encoding},
		{"a line break", parts[0] + "." + parts[1] + "." + parts[2][:10] + "\n" + parts[2][10:], encoding},
		{"base64 that is not base64url", parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:], encoding},
		{"a signature spelled differently", parts[0] + "." + parts[1] + "." + respell(parts[2]), encoding},
		{"a space", " " + idtokentest.Token(nil), encoding},
		{"Bearer", "Bearer " + idtokentest.Token(nil), encoding},
		{"claims of another token", parts[0] + "." + idtokentest.Base64URL([]byte(idtokentest.ToJSON(idtokentest.Claims(map[string]any{"sub": "1"})))) + "." + parts[2],
			signature},
	}
}

// respell changes the last character of base64url of 256 bytes so that only bits that count for nothing differ.
func respell(encoded string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, encoded[len(encoded)-1])
	return encoded[:len(encoded)-1] + string(alphabet[last^1])
}

func TestBadIDTokens(t *testing.T) {
	server := idtokentest.NewServer(t)
	first, second := &idtokentest.Keys()[0].PublicKey, &idtokentest.Keys()[1].PublicKey
	server.Serve(
		idtokentest.JWK("k1", first, ""), idtokentest.JWK("k2", second, ""), idtokentest.JWK("twice", first, ""), idtokentest.JWK("twice", second, ""),
		idtokentest.JWK("weak", &idtokentest.Keys()[2].PublicKey, ""), idtokentest.JWK("enc", first, `"use":"enc",`), idtokentest.JWK("rs512", first, `"alg":"RS512",`),
		`{"kty":"EC","kid":"ec","crv":"P-256","x":"AA","y":"AA"}`, `{"kty":"oct","kid":"k1","k":"c2VjcmV0"}`,
		`{"kty":"RSA","kid":"k1","n":"!","e":"AQAB"}`, `7`, `{}`,
	)
	google, _ := testGoogle(server)
	seen := make(map[string]bool)
	for _, test := range badIDTokens() {
		t.Run(test.name, func(t *testing.T) {
			_, err := google.Verify(time.Now().Add(10*time.Second), test.token, []string{"web-client", "ios-client"})
			if !errors.Is(err, ErrInvalid) || err.Error() != "invalid ID token: "+test.check {
				t.Errorf("got %v, want %s", err, test.check)
			}
		})
		seen[test.check] = true
	}
	if len(seen) < 15 {
		t.Errorf("only %d checks have failed", len(seen))
	}
	// The same server and keys do verify a good token.
	if _, err := google.Verify(time.Now().Add(10*time.Second), idtokentest.Token(nil), []string{"web-client"}); err != nil {
		t.Error(err)
	}
}

// A wanted key is one that key returns; any other error fails the test.
func wantKey(t *testing.T, keys *keySet, kid string, want error) {
	t.Helper()
	if _, err := keys.key(time.Now().Add(10*time.Second), kid); !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("key %s: %v, want %v", kid, err, want)
	}
}

// expire makes the cached keys old.
func (s *keySet) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freshUntil, s.failedAt = time.Time{}, time.Time{}
}

func TestKeySetCache(t *testing.T) {
	server := idtokentest.NewServer(t)
	google, log := testGoogle(server)
	keys := google.keys

	t.Run("many requests, one fetch", func(t *testing.T) {
		pause := make(chan struct{})
		server.Set(func() { server.Pause = pause })
		var requests sync.WaitGroup
		for range 50 {
			requests.Go(func() { wantKey(t, keys, "k1", nil) })
		}
		for deadline := time.Now().Add(10 * time.Second); server.Fetches.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nobody fetches the keys")
			}
		}
		server.Set(func() { server.Pause = nil })
		close(pause)
		requests.Wait()
		server.WantFetches(t, 1)
	})
	t.Run("an unknown key causes one fetch a minute", func(t *testing.T) {
		for range 5 {
			wantKey(t, keys, "k2", ErrInvalid)
		}
		server.WantFetches(t, 2)
		keys.mu.Lock()
		keys.unknownAt = keys.unknownAt.Add(-unknownKeyInterval)
		keys.mu.Unlock()
		server.Serve(idtokentest.JWK("k2", &idtokentest.Keys()[1].PublicKey, ""))
		wantKey(t, keys, "k2", nil)
		server.WantFetches(t, 3)
		wantKey(t, keys, "k1", ErrInvalid) // the provider has withdrawn it
		server.WantFetches(t, 3)
	})
	t.Run("stale keys serve while the provider is down", func(t *testing.T) {
		for _, broken := range []func(){
			func() { server.Status = 500 },
			func() { server.Status, server.Body = 200, `{"keys":[]}` },
			func() { server.Body = "<html>" },
			func() { server.Body = `{"keys":[` + strings.Repeat(" ", maxKeySetBytes) + `]}` },
		} {
			server.Set(broken)
			keys.expire()
			before := server.Fetches.Load()
			for range 3 {
				wantKey(t, keys, "k2", nil)
			}
			server.WantFetches(t, before+1)
			wantKey(t, keys, "k9", ErrInvalid)
		}
		server.Serve(idtokentest.JWK("k1", &idtokentest.Keys()[0].PublicKey, ""))
		keys.expire()
		wantKey(t, keys, "k1", nil)
		wantKey(t, keys, "k2", ErrInvalid)
		if n := log.Count("[WARN] The keys of Google cannot be fetched: "); n == 0 {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("a provider that hangs delays a stale key a little", func(t *testing.T) {
		pause := make(chan struct{})
		defer close(pause)
		server.Set(func() { server.Pause = pause })
		keys.expire()
		began := time.Now()
		wantKey(t, keys, "k1", nil)
		wantKey(t, keys, "k1", nil)
		if took := time.Since(began); took > keyFetchTimeout/2 {
			t.Errorf("it took %s", took)
		}
		if _, err := keys.key(time.Now().Add(10*time.Millisecond), "k9"); !errors.Is(err, ErrNoKeys) {
			t.Errorf("an unknown key: %v", err)
		}
	})
}

func TestNoKeySet(t *testing.T) {
	server := idtokentest.NewServer(t)
	server.Set(func() { server.Status = 404 })
	google, log := testGoogle(server)
	for range 3 {
		wantKey(t, google.keys, "k1", ErrNoKeys)
	}
	server.WantFetches(t, 1)
	if log.Count("[WARN]") != 1 || log.Count("the response is 404 Not Found") != 1 {
		t.Errorf("log:\n%s", log)
	}
	server.Set(func() { server.Status = 302 })
	google.keys.expire()
	wantKey(t, google.keys, "k1", ErrNoKeys)
	server.Set(func() { server.Status = 200 })
	google.keys.expire()
	wantKey(t, google.keys, "k1", nil)
}

func TestKeySetAge(t *testing.T) {
	for _, test := range []struct {
		name, caching, age string
		want               time.Duration
	}{
		{"Google's", "public, max-age=19213, must-revalidate, no-transform", "213", 19000 * time.Second},
		{"none", "", "", minKeySetAge},
		{"short", "max-age=1", "", minKeySetAge},
		{"long", "max-age=31536000", "", maxKeySetAge},
		{"beyond all numbers", "max-age=99999999999999999999", "", maxKeySetAge},
		{"negative", "max-age=-5", "", minKeySetAge},
		{"not a number", "max-age=soon", "", minKeySetAge},
		{"no-store", "no-store, max-age=3600", "", minKeySetAge},
		{"quoted", `Max-Age="3600"`, "", time.Hour},
		{"older than it may be", "max-age=600", "700", minKeySetAge},
	} {
		h := http.Header{"Cache-Control": {test.caching}}
		if test.age != "" {
			h.Set("Age", test.age)
		}
		if got := keySetAge(h); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// Whatever a token says, verify does not panic, and accepts none that it has not seen signed.
func FuzzIDToken(f *testing.F) {
	google, _ := testGoogle(idtokentest.NewServer(f))
	f.Add(idtokentest.Token(nil))
	for _, bad := range badIDTokens() {
		f.Add(bad.token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		subject, err := google.Verify(time.Now().Add(10*time.Second), token, []string{"web-client", "ios-client"})
		if (err == nil) == (subject == "") || err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNoKeys) {
			t.Errorf("got %q, %v", subject, err)
		}
	})
}

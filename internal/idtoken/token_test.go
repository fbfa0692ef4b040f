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
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/telemetrytest"
)

// soon returns a deadline that no test should reach.
func soon() time.Time { return time.Now().Add(10 * time.Second) }

var ourClients = []string{"web-client", "ios-client"}

// testGoogle returns Google with the keys of a server.
func testGoogle(s *idtokentest.Server) (*Verifier, *telemetrytest.Log) {
	log := new(telemetrytest.Log)
	return Google(s.URL, log.Logger()), log
}

// with returns a valid token but for one claim.
func with(name string, value any) string { return idtokentest.Token(map[string]any{name: value}) }

// withHeader returns a valid token but for its header.
func withHeader(header string) string {
	return idtokentest.Sign(idtokentest.Keys()[0], header, idtokentest.Payload(nil))
}

func TestVerify(t *testing.T) {
	google, _ := testGoogle(idtokentest.NewServer(t))
	const subject = "110169484474386276334"
	now := time.Now().Unix()
	for _, test := range []struct{ name, token, subject string }{
		{"plain", idtokentest.Token(nil), subject},
		{"the other issuer", with("iss", "accounts.google.com"), subject},
		{"another of our clients", with("aud", "ios-client"), subject},
		{"a list of audiences", with("aud", ourClients), subject},
		{"times with decimals", with("exp", float64(now)+60.5), subject},
		{"a clock that is a bit ahead", idtokentest.Token(map[string]any{"iat": now + 30, "nbf": now + 30}), subject},
		{"Apple's form of a subject", with("sub", "001234.0123abcd.0456"), "001234.0123abcd.0456"},
		{"no type", withHeader(`{"alg":"RS256","kid":"k1"}`), subject},
	} {
		t.Run(test.name, func(t *testing.T) {
			subject, err := google.Verify(soon(), test.token, ourClients)
			if err != nil || subject != test.subject {
				t.Errorf("got %q, %v", subject, err)
			}
		})
	}
}

// A badToken is a token that fails one check, and the check as the error names it.
type badToken struct{ name, token, check string }

func badTokens() []badToken { return slices.Concat(badForms(), badClaims(), badKeys()) }

func badForms() []badToken {
	const (
		notThree  = "it does not have three parts"
		encoding  = "a part is not base64url"
		signature = "the signature is wrong"
		malformed = "its header is malformed"
	)
	token := idtokentest.Token(nil)
	parts := strings.Split(token, ".")
	head, payload := parts[0]+".", "."+parts[1]+"."
	otherPayload := "." + idtokentest.Base64URL([]byte(idtokentest.Payload(map[string]any{"sub": "1"}))) + "."
	return []badToken{
		{"empty", "", notThree},
		{"two parts", head + parts[1], notThree},
		{"four parts", token + ".x", notThree},
		{"five parts of an encrypted token", "a.b.c.d.e", notThree},
		{"huge", strings.Repeat("a", maxTokenBytes+1), "it is too long"},
		{"huge claim", with("x", strings.Repeat("a", maxTokenBytes)), "it is too long"},
		{"padding", token + "==", encoding},
		{"a line break", head + parts[1] + "." + parts[2][:10] + "\n" + parts[2][10:], encoding},
		{"base64 that is not base64url", parts[0] + payload + "+/" + parts[2][2:], encoding},
		{"a signature spelled differently", parts[0] + payload + respell(parts[2]), encoding},
		{"a space", " " + token, encoding},
		{"Bearer", "Bearer " + token, encoding},
		{"no signature", parts[0] + payload, signature},
		{"claims of another token", parts[0] + otherPayload + parts[2], signature},
		{"doubled algorithm", withHeader(`{"alg":"none","alg":"RS256","kid":"k1"}`), malformed},
		{"a header that is no JSON", withHeader(`{"alg":"RS256","kid":"k1"} {}`), malformed},
	}
}

func badClaims() []badToken {
	const (
		malformed = "its claims are malformed"
		audience  = "another audience"
		subject   = "its subject is malformed"
	)
	now, payload := time.Now().Unix(), idtokentest.Payload(nil)
	spelled := func(payload string) string {
		return idtokentest.Sign(idtokentest.Keys()[0], idtokentest.Header, payload)
	}
	before := func(member string) string { return spelled("{" + member + "," + payload[1:]) }
	return []badToken{
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
		{"doubled claim", before(`"aud":"other-client"`), malformed},
		{"doubled claim that we do not read", before(`"email":"b"`), malformed},
		{"claims that are no object", spelled(`["iss"]`), malformed},
		{"claims that are no JSON", spelled(payload + "x"), malformed},
		{"claims that are no UTF-8", spelled(strings.Replace(payload, "a@", "\xff@", 1)), malformed},
	}
}

// badKeys returns tokens that are not signed with RS256, or not with the key k1 of serveOddKeys.
func badKeys() []badToken {
	const (
		notRS256  = "it is not signed with RS256"
		signature = "the signature is wrong"
		unknown   = "its key is unknown"
	)
	keys, payload := idtokentest.Keys(), idtokentest.Payload(nil)
	public := x509.MarshalPKCS1PublicKey(&keys[0].PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: public})
	parts := strings.Split(idtokentest.Token(nil), ".")
	unsigned := func(header string) string { return idtokentest.Base64URL([]byte(header)) + "." + parts[1] + "." }
	ownKey := `{"alg":"RS256","kid":"k9","jwk":` + idtokentest.JWK("k9", keys[1], "") + `}`
	return []badToken{
		{"alg none", unsigned(`{"alg":"none","kid":"k1"}`), notRS256},
		{"alg None", unsigned(`{"alg":"None","kid":"k1"}`) + parts[2], notRS256},
		{"HS256 with the public key", hmacToken(public, `{"alg":"HS256","kid":"k1"}`, payload), notRS256},
		{"HS256 with the public key as PEM", hmacToken(publicPEM, `{"alg":"HS256","kid":"k1"}`, payload), notRS256},
		{"HS256 that calls itself RS256", hmacToken(publicPEM, idtokentest.Header, payload), signature},
		{"ES256", ecToken(`{"alg":"ES256","kid":"ec"}`, payload), notRS256},
		{"an EC key for RS256", ecToken(`{"alg":"RS256","kid":"ec"}`, payload), unknown},
		{"RS512", withHeader(`{"alg":"RS512","kid":"k1"}`), notRS256},
		{"PS256", withHeader(`{"alg":"PS256","kid":"k1"}`), notRS256},
		{"rs256", withHeader(`{"alg":"rs256","kid":"k1"}`), notRS256},
		{"no algorithm", withHeader(`{"kid":"k1"}`), notRS256},
		{"the algorithm under another name", withHeader(`{"ALG":"RS256","kid":"k1"}`), notRS256},
		{"another key", idtokentest.Sign(keys[1], idtokentest.Header, payload), signature},
		{"another key with its own ID", idtokentest.Sign(keys[1], `{"alg":"RS256","kid":"k9"}`, payload), unknown},
		{"another key of the set", idtokentest.Sign(keys[0], `{"alg":"RS256","kid":"k2"}`, payload), signature},
		{"a key ID that two keys have", withHeader(`{"alg":"RS256","kid":"twice"}`), unknown},
		{"a weak key", idtokentest.Sign(keys[2], `{"alg":"RS256","kid":"weak"}`, payload), unknown},
		{"a key for encryption", withHeader(`{"alg":"RS256","kid":"enc"}`), unknown},
		{"a key for another algorithm", withHeader(`{"alg":"RS256","kid":"rs512"}`), unknown},
		{"its own key", idtokentest.Sign(keys[1], ownKey, payload), unknown},
		{"no key ID", withHeader(`{"alg":"RS256"}`), "it does not name its key"},
		{"an empty key ID", withHeader(`{"alg":"RS256","kid":""}`), "it does not name its key"},
		{"a long key ID", withHeader(`{"alg":"RS256","kid":"` + strings.Repeat("k", maxKeyIDBytes+1) + `"}`),
			"it does not name its key"},
		{"a key ID that is a path", withHeader(`{"alg":"RS256","kid":"../../k1"}`), unknown},
		{"critical extension", withHeader(`{"alg":"RS256","kid":"k1","crit":["b64"],"b64":false}`),
			"it has a critical extension"},
		{"an access token", withHeader(`{"alg":"RS256","kid":"k1","typ":"at+jwt"}`), "it is another type of token"},
	}
}

// serveOddKeys makes s serve the keys that badKeys expects: k1 and k2, and some that must not be used.
func serveOddKeys(s *idtokentest.Server) {
	keys := idtokentest.Keys()
	s.Serve(
		idtokentest.JWK("k1", keys[0], ""), idtokentest.JWK("k2", keys[1], ""),
		idtokentest.JWK("twice", keys[0], ""), idtokentest.JWK("twice", keys[1], ""),
		idtokentest.JWK("weak", keys[2], ""), idtokentest.JWK("enc", keys[0], `"use":"enc",`),
		idtokentest.JWK("rs512", keys[0], `"alg":"RS512",`),
		`{"kty":"EC","kid":"ec","crv":"P-256","x":"AA","y":"AA"}`, `{"kty":"oct","kid":"k1","k":"c2VjcmV0"}`,
		`{"kty":"RSA","kid":"k1","n":"!","e":"AQAB"}`, `7`, `{}`,
	)
}

// hmacToken signs with the secret, as HS256 does.
func hmacToken(secret []byte, header, payload string) string {
	signed := idtokentest.Base64URL([]byte(header)) + "." + idtokentest.Base64URL([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + idtokentest.Base64URL(mac.Sum(nil))
}

// ecToken signs with a new key, as ES256 does.
func ecToken(header, payload string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	signed := idtokentest.Base64URL([]byte(header)) + "." + idtokentest.Base64URL([]byte(payload))
	hash := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + idtokentest.Base64URL(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// respell changes the last character of base64url of 256 bytes so that only bits that count for nothing differ.
func respell(encoded string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, encoded[len(encoded)-1])
	return encoded[:len(encoded)-1] + string(alphabet[last^1])
}

func TestBadTokens(t *testing.T) {
	server := idtokentest.NewServer(t)
	serveOddKeys(server)
	google, _ := testGoogle(server)
	seen := make(map[string]bool)
	for _, test := range badTokens() {
		t.Run(test.name, func(t *testing.T) {
			_, err := google.Verify(soon(), test.token, ourClients)
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
	if _, err := google.Verify(soon(), idtokentest.Token(nil), []string{"web-client"}); err != nil {
		t.Error(err)
	}
}

// Whatever a token says, Verify does not panic, and accepts none that it has not seen signed.
func FuzzVerify(f *testing.F) {
	google, _ := testGoogle(idtokentest.NewServer(f))
	f.Add(idtokentest.Token(nil))
	for _, bad := range badTokens() {
		f.Add(bad.token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		subject, err := google.Verify(soon(), token, ourClients)
		if (err == nil) == (subject == "") || err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNoKeys) {
			t.Errorf("got %q, %v", subject, err)
		}
	})
}

// Package idtoken verifies ID tokens of OpenID Connect, by which Google and Apple tell other services who a user is.
//
// A token is accepted only if the provider has signed it with RS256 for one of the service's own client IDs, and it has
// not expired. Of a token that is not verified, nothing but the ID of its key is used: other algorithms, keys, and
// addresses of keys in it count for nothing.
//
// The provider's keys are fetched when they are needed, and cached. While they cannot be fetched, the last ones serve.
package idtoken

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

const (
	maxTokenBytes   = 16 << 10
	maxKeyIDBytes   = 256
	maxSubjectBytes = 255              // OpenID Connect Core, section 2
	clockLeeway     = 60 * time.Second // between our clock and that of a provider
)

// ErrInvalid means that an ID token has failed a check. The errors that wrap it say which check in a few words, and
// quote nothing of the token.
var ErrInvalid = errors.New("invalid ID token")

func invalid(check string) error { return fmt.Errorf("%w: %s", ErrInvalid, check) }

// A Verifier verifies the ID tokens of one provider. Any number of goroutines may use it.
type Verifier struct {
	issuers []string // that tokens may name
	keys    *keySet
}

// Google returns the verifier of Google's ID tokens. keysURL is where Google publishes its keys. Whether they can be
// fetched is logged when that changes.
func Google(keysURL string, log *telemetry.Logger) *Verifier {
	return &Verifier{[]string{"https://accounts.google.com", "accounts.google.com"}, newKeySet("Google", keysURL, log)}
}

// Apple returns the verifier of Apple's ID tokens. keysURL is where Apple publishes its keys. Whether they can be
// fetched is logged when that changes.
func Apple(keysURL string, log *telemetry.Logger) *Verifier {
	return &Verifier{[]string{"https://appleid.apple.com"}, newKeySet("Apple", keysURL, log)}
}

// Verify verifies a token that was issued for at least one of clientIDs, and for nobody else. It returns the token's
// subject, the provider's ID of the user: 1 to 255 bytes of printable ASCII without white space and braces. The clocks
// of the provider and of this machine may differ by 60 s.
//
// Errors: one that wraps ErrInvalid if the token fails a check; ErrNoKeys if its key is not cached and the keys cannot
// be fetched by deadline. If its key is cached but due to be fetched again, Verify waits for that for at most half a
// second.
func (v *Verifier) Verify(deadline time.Time, token string, clientIDs []string) (subject string, err error) {
	if len(token) > maxTokenBytes {
		return "", invalid("it is too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", invalid("it does not have three parts")
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = decodeBase64URL(part); err != nil {
			return "", invalid("a part is not base64url")
		}
	}
	kid, err := parseHeader(decoded[0])
	if err != nil {
		return "", err
	}
	key, err := v.keys.key(deadline, kid)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256([]byte(token[:len(parts[0])+1+len(parts[1])]))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], decoded[2]) != nil {
		return "", invalid("the signature is wrong")
	}
	return v.checkClaims(decoded[1], clientIDs, time.Now())
}

// decodeBase64URL decodes base64url without padding (RFC 7515, section 2). It accepts only one spelling of the same
// bytes: encoding/base64 alone would skip line breaks, and ignore the last bits if they stand for no byte.
func decodeBase64URL(s string) ([]byte, error) {
	for i := range len(s) {
		if !strict.IsWord(s[i]) {
			return nil, errors.New("not base64url")
		}
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// parseHeader checks the header of a token and returns the ID of the key that has to have signed it.
func parseHeader(header []byte) (kid string, err error) {
	var algorithm, kind string
	critical := false
	err = strict.DecodeOpen(header, strict.Rules{
		"alg":  strict.String(&algorithm),
		"kid":  strict.String(&kid),
		"typ":  strict.String(&kind),
		"crit": func(*strict.Problems, []byte) bool { critical = true; return true },
	})
	switch {
	case err != nil:
		return "", invalid("its header is malformed")
	case algorithm != "RS256":
		return "", invalid("it is not signed with RS256")
	case kind != "" && !strings.EqualFold(kind, "JWT"):
		return "", invalid("it is another type of token")
	case critical: // RFC 7515, section 4.1.11
		return "", invalid("it has a critical extension")
	case kid == "" || len(kid) > maxKeyIDBytes:
		return "", invalid("it does not name its key")
	}
	return kid, nil
}

// checkClaims checks the payload of a token whose signature is right, and returns its subject.
func (v *Verifier) checkClaims(payload []byte, clientIDs []string, now time.Time) (string, error) {
	var issuer, subject string
	var audience []string
	var expires, issued, notBefore time.Time
	err := strict.DecodeOpen(payload, strict.Rules{
		"iss": strict.String(&issuer),
		"sub": strict.String(&subject),
		"aud": audienceField(&audience),
		"exp": numericDateField(&expires),
		"iat": numericDateField(&issued),
		"nbf": numericDateField(&notBefore),
	}, "iss", "sub", "aud", "exp", "iat")
	unknown := func(id string) bool { return !slices.Contains(clientIDs, id) }
	switch {
	case err != nil:
		return "", invalid("its claims are malformed")
	case !slices.Contains(v.issuers, issuer):
		return "", invalid("another issuer")
	case len(audience) == 0 || slices.ContainsFunc(audience, unknown): // Core, section 3.1.3.7, step 3
		return "", invalid("another audience")
	case !now.Before(expires.Add(clockLeeway)):
		return "", invalid("it has expired")
	case issued.After(now.Add(clockLeeway)):
		return "", invalid("it was issued in the future")
	case notBefore.After(now.Add(clockLeeway)):
		return "", invalid("it is not valid yet")
	case !validSubject(subject):
		return "", invalid("its subject is malformed")
	}
	return subject, nil
}

// validSubject reports whether subject can be a part of HTTP headers and of Redis keys.
func validSubject(subject string) bool {
	bad := func(c rune) bool { return c <= ' ' || c > '~' || c == '{' || c == '}' }
	return subject != "" && len(subject) <= maxSubjectBytes && !strings.ContainsFunc(subject, bad)
}

// audienceField accepts a string or an array of strings.
func audienceField(dst *[]string) strict.Rule {
	one := func(wrong *strict.Problems, value []byte) bool {
		var id string
		ok := strict.String(&id)(wrong, value)
		*dst = append(*dst, id)
		return ok
	}
	return func(wrong *strict.Problems, value []byte) bool {
		if value[0] == '[' {
			return strict.ArrayOf(one)(wrong, value)
		}
		return one(wrong, value)
	}
}

// numericDateField accepts the seconds since 1970 UTC, with or without decimals (RFC 7519, section 2).
func numericDateField(dst *time.Time) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		seconds, err := strconv.ParseFloat(string(value), 64)
		if !strict.IsNumber(value) || err != nil || seconds < 0 || seconds > 1<<40 {
			return wrong.Add("must be a time")
		}
		*dst = time.UnixMilli(int64(seconds * 1000))
		return true
	}
}

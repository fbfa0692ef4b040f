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

// ID tokens of OpenID Connect, and the keys of those who sign them.

const (
	maxTokenBytes   = 16 << 10
	maxSubjectBytes = 255              // OpenID Connect Core, section 2
	clockLeeway     = 60 * time.Second // between our clock and that of a provider

	maxRSABits = 8192 // beyond it, a check takes milliseconds
)

var (
	// ErrInvalid means that an ID token fails a check. Errors that wrap it name the check, and quote nothing.
	ErrInvalid = errors.New("invalid ID token")
)

func invalid(check string) error { return fmt.Errorf("%w: %s", ErrInvalid, check) }

// Verifier checks the ID tokens of one provider. Its methods may be called from any number of goroutines.
type Verifier struct {
	issuers []string // that tokens may name
	keys    *keySet
}

// Google returns the verifier of Google's ID tokens, whose keys are at keysURL.
func Google(keysURL string, log *telemetry.Logger) *Verifier {
	return &Verifier{[]string{"https://accounts.google.com", "accounts.google.com"}, newKeySet("Google", keysURL, log)}
}

// Apple returns the verifier of Apple's ID tokens, whose keys are at keysURL.
func Apple(keysURL string, log *telemetry.Logger) *Verifier {
	return &Verifier{[]string{"https://appleid.apple.com"}, newKeySet("Apple", keysURL, log)}
}

// Verify checks an ID token that was issued for one of clientIDs and returns its subject, which is printable ASCII
// without white space and braces. Only RS256 is accepted, whatever the token's header says: what else it names (other
// algorithms, keys, addresses of keys) is never used. Errors: ErrInvalid, ErrNoKeys.
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

// decodeBase64URL decodes base64url without padding (RFC 7515, section 2) in its only spelling: encoding/base64 alone
// would skip line breaks, and ignore bits at the end.
func decodeBase64URL(s string) ([]byte, error) {
	for i := range len(s) {
		if !strict.IsWord(s[i]) {
			return nil, errors.New("not base64url")
		}
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// parseHeader checks the header of a token and returns the ID of the key that has signed it.
func parseHeader(header []byte) (kid string, err error) {
	var algorithm, kind string
	critical := false
	err = strict.DecodeOpen(header, strict.Rules{
		"alg":  strict.String(&algorithm),
		"kid":  strict.String(&kid),
		"typ":  strict.String(&kind),
		"crit": func(*strict.Problems, string, []byte) { critical = true },
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
	case kid == "" || len(kid) > 256:
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

// validSubject reports whether subject can be part of a user ID, which headers carry, and of a Redis key.
func validSubject(subject string) bool {
	bad := func(c rune) bool { return c <= ' ' || c > '~' || c == '{' || c == '}' }
	return subject != "" && len(subject) <= maxSubjectBytes && !strings.ContainsFunc(subject, bad)
}

// audienceField accepts a string, or an array of strings.
func audienceField(dst *[]string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		if value[0] != '[' {
			*dst = []string{""}
			strict.String(&(*dst)[0])(wrong, path, value)
			return
		}
		strict.ReadElements(wrong, path, value, func(wrong *strict.Problems, path string, value []byte) {
			var one string
			strict.String(&one)(wrong, path, value)
			*dst = append(*dst, one)
		})
	}
}

// numericDateField accepts seconds since 1970, which may have decimals (RFC 7519, section 2).
func numericDateField(dst *time.Time) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		seconds, err := strconv.ParseFloat(string(value), 64)
		if !strict.IsNumber(value) || err != nil || seconds < 0 || seconds > 1<<40 {
			wrong.Add(path, "must be a time")
			return
		}
		*dst = time.UnixMilli(int64(seconds * 1000))
	}
}

const (
	keyFetchTimeout    = 5 * time.Second
	keyWaitTimeout     = 500 * time.Millisecond // of a request that could do with a stale key
	keyRetryInterval   = time.Second            // after a fetch that failed
	unknownKeyInterval = time.Minute            // between fetches because of unknown keys
	minKeySetAge       = 5 * time.Minute
	maxKeySetAge       = 24 * time.Hour
)

package stripe

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	maxSignatureBytes = 4 << 10 // of the header, which has one v1 of 64 letters for each secret
	signatureSeconds  = 300     // by which a signature may differ from now, as in Stripe's own libraries
)

// A Signature is what the header Stripe-Signature of a webhook says. It proves nothing until Verify is called.
type Signature struct {
	time string   // Unix, seconds, in plain decimal
	macs []string // the values of v1, of whatever form
}

// ReadSignature reads the Stripe-Signature of a webhook that has come now. It needs no body, so a webhook without a
// current signature can be refused before its body is read. Schemes other than v1 count for nothing. Errors wrap
// ErrSignature: the header is absent, repeated, malformed, or more than 300 s old or ahead.
func ReadSignature(h http.Header, now time.Time) (*Signature, error) {
	values := h["Stripe-Signature"]
	switch {
	case len(values) == 0:
		return nil, fmt.Errorf("%w: it is absent", ErrSignature)
	case len(values) > 1:
		return nil, fmt.Errorf("%w: it is repeated", ErrSignature)
	case len(values[0]) > maxSignatureBytes:
		return nil, fmt.Errorf("%w: it is too long", ErrSignature)
	}
	var s Signature
	for item := range strings.SplitSeq(values[0], ",") {
		switch scheme, value, _ := strings.Cut(item, "="); scheme {
		case "t":
			if s.time != "" {
				return nil, fmt.Errorf("%w: it has two times", ErrSignature)
			}
			s.time = value
		case "v1":
			s.macs = append(s.macs, value)
		}
	}
	seconds, err := strconv.ParseInt(s.time, 10, 64)
	if err != nil || seconds < 0 || strconv.FormatInt(seconds, 10) != s.time { // others would sign another spelling
		return nil, fmt.Errorf("%w: it has no time", ErrSignature)
	}
	if len(s.macs) == 0 {
		return nil, fmt.Errorf("%w: it has no v1", ErrSignature)
	}
	if age := now.Unix() - seconds; age < -signatureSeconds || age > signatureSeconds {
		return nil, fmt.Errorf("%w: it is more than %d s from now", ErrSignature, signatureSeconds)
	}
	return &s, nil
}

// Verify reports whether the signature is that of body, the bytes as they came, with at least one of secrets. There are
// several while a secret is replaced by another. It computes at most one HMAC for each. An empty secret, with which
// anybody could sign, matches nothing.
func (s *Signature) Verify(body []byte, secrets ...string) bool {
	for _, secret := range secrets {
		if secret != "" && s.has(signatureOf(s.time, body, secret)) {
			return true
		}
	}
	return false
}

// has reports whether mac is one of the signature's, in a time that does not depend on where they differ.
func (s *Signature) has(mac string) bool {
	for _, sent := range s.macs {
		if hmac.Equal([]byte(sent), []byte(mac)) {
			return true
		}
	}
	return false
}

// signatureOf returns the v1 of a body that is sent at a time. The whole secret, whsec_ included, is the key.
func signatureOf(time string, body []byte, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(time + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

package stripe

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"tollgate/internal/strict"
)

var (
	// ErrUnavailable means that Stripe has not responded in time, or cannot be reached. It may have done what it was
	// asked for.
	ErrUnavailable = errors.New("no response from Stripe")

	// ErrShape means that an event or a response does not have the shape that is known. Errors that wrap it name the
	// member, and quote no value.
	ErrShape = errors.New("unknown shape of what Stripe has sent")

	// ErrSyntax means that an event is not JSON.
	ErrSyntax = errors.New("not JSON")

	// ErrSignature means that a webhook does not have a signature, or not a current one.
	ErrSignature = errors.New("invalid Stripe-Signature")
)

// An Error is a response by which Stripe refuses a request, or an unexpected one such as a redirect. Its texts have no
// API key in them, and at most 500 bytes each.
type Error struct {
	Status    int    // of HTTP
	Type      string // such as invalid_request_error; this and what follows may be empty
	Code      string // such as resource_missing
	Param     string // the parameter that is wrong
	Message   string // Stripe's sentence
	RequestID string // by which Stripe's dashboard finds the request
}

// Error returns all that is known.
func (e *Error) Error() string {
	text := fmt.Sprintf("Stripe responded %d", e.Status)
	for _, part := range []struct{ name, value string }{
		{"type", e.Type}, {"code", e.Code}, {"param", e.Param}, {"request", e.RequestID},
	} {
		if part.value != "" {
			text += " " + part.name + "=" + part.value
		}
	}
	return text + ": " + e.Message
}

const maxTextBytes = 500

// secrets are API keys and the secrets of webhooks. Stripe quotes keys that are wrong, with stars in place of most of
// their letters.
var secrets = regexp.MustCompile(`\b(sk|rk|pk|whsec)_[0-9A-Za-z_*]+`)

// newError returns the Error that a response is.
func newError(response *http.Response, body []byte, apiKey string) *Error {
	e := &Error{Status: response.StatusCode, RequestID: response.Header.Get("Request-Id")}
	err := decode(body, object(strict.Rules{"error": object(strict.Rules{
		"type": orNull(strict.String(&e.Type)), "code": orNull(strict.String(&e.Code)),
		"param": orNull(strict.String(&e.Param)), "message": orNull(strict.String(&e.Message)),
	})}, "error"))
	if err != nil || e.Message == "" { // a proxy's, perhaps
		e.Message = strings.ToLower(http.StatusText(e.Status))
	}
	for _, text := range []*string{&e.Type, &e.Code, &e.Param, &e.Message, &e.RequestID} {
		*text = clean(*text, apiKey)
	}
	return e
}

// clean returns a text of Stripe's for use in an Error.
func clean(text, apiKey string) string {
	if apiKey != "" {
		text = strings.ReplaceAll(text, apiKey, "…")
	}
	text = secrets.ReplaceAllString(text, "${1}_…")
	if len(text) > maxTextBytes {
		text = strings.ToValidUTF8(text[:maxTextBytes-len("…")], "") + "…"
	}
	return text
}

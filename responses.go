package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"

	"tollgate/internal/gateway"
	"tollgate/internal/idtoken"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// Values of headers that all responses have. They are never changed.
var (
	contentType  = []string{"application/json; charset=utf-8"}
	cacheControl = []string{"no-store"} // responses hold keys, balances and configs (RFC 6749, section 5.1)

	// A proxy that compresses a response makes its ETag weak, which If-Match never matches (RFC 9110, section 13.1.1).
	adminCacheControl = []string{"no-store, no-transform"}
)

// forbidTransform is the step of routes whose responses proxies must not change, errors included.
func forbidTransform(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	w.Header()["Cache-Control"] = adminCacheControl
	return nil
}

// writeJSON sends v as one compact object and a newline. Nothing is sent if v cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := encodeJSON(v)
	if err != nil {
		return err
	}
	return writeBody(w, status, body)
}

// encodeJSON returns v as one compact object and a newline.
func encodeJSON(v any) ([]byte, error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	return body.Bytes(), nil
}

// writeBody sends body, which is compact JSON and a newline. It returns nil, so that a handler can return it.
func writeBody(w http.ResponseWriter, status int, body []byte) error {
	h := w.Header()
	h["Content-Type"] = contentType
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = cacheControl
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone away is not an error of ours
	return nil
}

// tokensBody is the response to a charge or, with the new API key, to a login.
type tokensBody struct {
	APIKey     string `json:"apiKey,omitempty"`
	TokensLeft int64  `json:"tokensLeft"`
}

// keyBody is how responses show an API key, but for its tenant, which the caller named.
type keyBody struct {
	APIKey     string  `json:"apiKey,omitempty"`     // unless the caller named it
	SharesWith string  `json:"sharesWith,omitempty"` // in an admin's list: the key whose balance it is
	UserID     *string `json:"userId"`
	Group      string  `json:"group"`
	Label      string  `json:"label,omitempty"`
	CreatedAt  string  `json:"createdAt"`
	ExpiresAt  *string `json:"expiresAt"`
	TokensLeft int64   `json:"tokensLeft"`
	TokensHeld int64   `json:"tokensHeld,omitempty"`
	RefillsAt  *string `json:"refillsAt,omitempty"` // if its group has a refill
	Enabled    *bool   `json:"enabled,omitempty"`   // if it is false
	Added      *int64  `json:"added,omitempty"`     // after a change with upTo
}

func newKeyBody(k apiKey) keyBody {
	body := keyBody{
		Group: k.group, Label: k.label, CreatedAt: formatTime(k.createdAt), TokensLeft: k.tokensLeft,
		TokensHeld: k.tokensHeld,
	}
	if k.userID != "" {
		body.UserID = &k.userID
	}
	if !k.expiresAt.IsZero() {
		at := formatTime(k.expiresAt)
		body.ExpiresAt = &at
	}
	if !k.refillsAt.IsZero() {
		at := formatTime(k.refillsAt)
		body.RefillsAt = &at
	}
	if k.disabled {
		body.Enabled = new(bool)
	}
	return body
}

// setRateHeaders sets what is left of a rate limit, in the form of the IETF's draft
// (draft-ietf-httpapi-ratelimit-headers) and in OpenAI's. The names are spelled as there, which Header.Set would
// change.
func setRateHeaders(h http.Header, rate rateLimitState) {
	limit, remaining := strconv.FormatInt(rate.limit, 10), strconv.FormatInt(rate.remaining, 10)
	values := [...]string{
		`"requests";q=` + limit + ";w=" + strconv.FormatInt(rate.window, 10),
		`"requests";r=` + remaining + ";t=" + strconv.FormatInt(rate.wait, 10),
		limit,
		remaining,
	}
	h["RateLimit-Policy"], h["RateLimit"] = values[0:1:1], values[1:2:2]
	h["X-RateLimit-Limit-Requests"], h["X-RateLimit-Remaining-Requests"] = values[2:3:3], values[3:4:4]
}

// errorBody is the body of an error response, except on routes that have a provider's format.
type errorBody struct {
	Error      string   `json:"error"`
	TokensLeft *int64   `json:"tokensLeft,omitempty"`
	Errors     []string `json:"errors,omitempty"`

	// Of a request of the gateway.
	unsupported llmwire.UnsupportedError // its Member is "" for other errors
	code        string                   // in formats whose errors have codes; "" is that of the status
}

// errorResponse is what an error means: to the client, and to the count of refused charges.
type errorResponse struct {
	status     int
	body       errorBody
	refusal    refusal
	retryAfter int64 // seconds; 0 if the client is not told when to come again
	authStatus int   // the true status if a proxy can forward only another; else 0
}

// An errorWithResponse is an error that says itself what it means.
type errorWithResponse interface {
	error
	response() errorResponse
}

// badRequestError is a sentence for the client that says what is wrong with its request.
type badRequestError string

func (e badRequestError) Error() string { return string(e) }

func (e badRequestError) response() errorResponse {
	return errorResponse{status: http.StatusBadRequest, body: errorBody{Error: string(e)}}
}

// signInDisabledError means that a tenant's config lacks what sign-in with a provider needs.
type signInDisabledError struct{ provider string }

func (e signInDisabledError) Error() string { return "Sign-in with " + e.provider + " is disabled" }

func (e signInDisabledError) response() errorResponse {
	return errorResponse{status: http.StatusForbidden, body: errorBody{Error: e.Error()}}
}

// forwardAuthDenial is a refusal that nginx can forward: as 403, with its true status in X-Auth-Status.
type forwardAuthDenial struct{ error }

func (e forwardAuthDenial) Unwrap() error { return e.error }

func (e forwardAuthDenial) response() errorResponse {
	denied := responseTo(e.error)
	denied.authStatus, denied.status = denied.status, http.StatusForbidden
	return denied
}

func (e *configError) response() errorResponse {
	body := errorBody{Error: e.Error()}
	if all := e.sentences(); len(all) > 1 {
		body.Errors = all
	}
	return errorResponse{status: http.StatusBadRequest, body: body}
}

func (e insufficientTokensError) response() errorResponse {
	return errorResponse{
		status: http.StatusPaymentRequired, refusal: refusedBalance,
		body: errorBody{Error: "Payment Required", TokensLeft: &e.tokensLeft},
	}
}

func (e rateLimitError) response() errorResponse {
	return errorResponse{
		status: http.StatusTooManyRequests, refusal: refusedRate, retryAfter: e.wait,
		body: errorBody{Error: "Too Many Requests"},
	}
}

var (
	errNotFound      = errors.New("not found")
	errLoginDisabled = errors.New("anonymous login is disabled")
	errWeakETag      = errors.New("If-Match has a weak ETag")
)

// errorResponses says what all other errors mean. The first that matches counts.
var errorResponses = []struct {
	is      error
	status  int
	message string
	refusal refusal
}{
	{ErrNoTenant, http.StatusBadRequest, "Invalid tenant ID", notRefused},
	{errNoCredential, http.StatusUnauthorized, "Unauthorized", notRefused},
	{errInvalidCredential, http.StatusUnauthorized, "Unauthorized", notRefused},
	{ErrNoKey, http.StatusUnauthorized, "Unauthorized", refusedKey},
	{ErrRevoked, http.StatusUnauthorized, "Unauthorized", notRefused},
	{idtoken.ErrInvalid, http.StatusUnauthorized, "Invalid ID token", notRefused},
	{idtoken.ErrNoKeys, http.StatusServiceUnavailable, "Service unavailable", notRefused},
	{errLoginDisabled, http.StatusForbidden, "Anonymous login is disabled", notRefused},
	{errPaymentsDisabled, http.StatusForbidden, "Payments are disabled", notRefused},
	{errNotSignedIn, http.StatusForbidden, "Sign in before you pay", notRefused},
	{errUnknownPrice, http.StatusNotFound, "Unknown price", notRefused},
	{errSubscribed, http.StatusConflict, "There is a subscription already", notRefused},
	{errNotFound, http.StatusNotFound, "Not found", notRefused},
	{ErrNoVersion, http.StatusNotFound, "Not found", notRefused},
	{ErrNoHold, http.StatusNotFound, "Not found", notRefused},
	{ErrNoToken, http.StatusNotFound, "Not found", notRefused},
	{ErrTenantExists, http.StatusConflict, "Tenant already exists", notRefused},
	{ErrTooManyTokens, http.StatusConflict, "Too many admin tokens", notRefused},
	{ErrTooManyShares, http.StatusConflict, "Too many keys share the balance", notRefused},
	{ErrInGrace, http.StatusConflict, "The key was rotated: rotate the one that has taken its place", notRefused},
	{errWeakETag, http.StatusPreconditionFailed, "If-Match has a weak ETag: a proxy has changed it", notRefused},
	{ErrConfigChanged, http.StatusPreconditionFailed, "Config has changed", notRefused},
	{ErrKeyDisabled, http.StatusForbidden, "API key is disabled", refusedKey},
	{ErrGroupDisabled, http.StatusForbidden, "Group is disabled", refusedGroup},
	{ErrModelDenied, http.StatusNotFound, "The group does not have the model", notRefused},
	{ErrTooManyRequests, http.StatusTooManyRequests, "Too many requests at a time", refusedRate},
	{ErrTooManyHolds, http.StatusTooManyRequests, "Too many open holds", refusedRate},
	{errBodyTooLarge, http.StatusRequestEntityTooLarge, "Body too large", notRefused},
	{errSlowBody, http.StatusRequestTimeout, "Body came too slowly", notRefused},
	{errEncodedBody, http.StatusUnsupportedMediaType, "Content-Encoding is not supported: send the body as it is",
		notRefused},
	{ErrKeyReused, http.StatusUnprocessableEntity, "Idempotency-Key was used with other parameters",
		refusedIdempotencyKey},
	{ErrHoldSettled, http.StatusUnprocessableEntity, "The hold was settled with another amount", notRefused},
	{ErrUnavailable, http.StatusServiceUnavailable, "Service unavailable", notRefused},
}

// responseTo returns what err means. What is not foreseen is 500.
func responseTo(err error) errorResponse {
	if typed, ok := errors.AsType[errorWithResponse](err); ok {
		return typed.response()
	}
	if refused, ok := errors.AsType[llmwire.UnsupportedError](err); ok {
		response := badRequestError(err.Error()).response()
		response.body.unsupported = refused
		return response
	}
	if wrong, ok := errors.AsType[*strict.Error](err); ok {
		return badRequestError(wrong.Error()).response()
	}
	if failure, ok := errors.AsType[gateway.Error](err); ok {
		refused := errorResponse{status: failure.Status, body: errorBody{Error: failure.Message}}
		if failure.Status == http.StatusPaymentRequired {
			refused.refusal = refusedBalance
		}
		return refused
	}
	if failure, ok := errors.AsType[gateway.CodedError](err); ok {
		return errorResponse{status: failure.Status, body: errorBody{Error: failure.Message, code: failure.Code}}
	}
	if held, ok := errors.AsType[gateway.HeldError](err); ok {
		return errorResponse{
			status: http.StatusTooManyRequests, refusal: refusedBalance, retryAfter: 1,
			body: errorBody{Error: held.Error(), code: "balance_held"},
		}
	}
	for _, e := range errorResponses {
		if errors.Is(err, e.is) {
			return errorResponse{status: e.status, body: errorBody{Error: e.message}, refusal: e.refusal}
		}
	}
	return errorResponse{status: http.StatusInternalServerError, body: errorBody{Error: "Internal error"}}
}

// writeError turns an error into a response. What is not foreseen is logged.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	info, response := requestInfoOf(w), responseTo(err)
	if response.status == http.StatusInternalServerError && err != ErrBrokenConfig { // the store logs that once
		s.log.Errorf("%s id=%s: %v", r.Pattern, info.id, err)
	}
	h := w.Header()
	switch response.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", challenge(r, err))
		if info.format != nil {
			response.body.Error = keySentence(r, info, err)
		}
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		response.retryAfter = max(response.retryAfter, 1)
	}
	if response.retryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(response.retryAfter, 10))
	}
	if response.authStatus > 0 {
		h.Set("X-Auth-Status", strconv.Itoa(response.authStatus))
	}
	if response.status == http.StatusPaymentRequired && isCodex(r, info) {
		writeQuotaError(w, response.body.Error)
		return
	}
	writeErrorBody(w, info.format, response.status, response.body)
}

// challenge returns the WWW-Authenticate header of a 401 (RFC 6750, section 3). Only a client that has sent something
// is told more.
func challenge(r *http.Request, err error) string {
	switch {
	case !errors.Is(err, errNoCredential):
		return `Bearer realm="tollgate", error="invalid_token"`
	case len(r.Header["Authorization"]) > 0:
		return `Bearer realm="tollgate", error_description="send the header Authorization: Bearer <key or token>"`
	}
	return `Bearer realm="tollgate"`
}

// writeErrorBody sends an error, in a format of the gateway unless format is nil: the SDKs of providers read it.
func writeErrorBody(w http.ResponseWriter, format *llmwire.Format, status int, body errorBody) {
	if format != nil {
		setRequestID(w, *format)
		if isFinal(status) {
			w.Header()["X-Should-Retry"] = []string{"false"}
		}
		content := format.CodedErrorBody(status, body.code, body.Error)
		if body.unsupported.Member != "" {
			content = format.UnsupportedBody(status, body.unsupported)
		}
		_ = writeBody(w, status, append(content, '\n'))
		return
	}
	_ = writeJSON(w, status, body)
}

// isFinal reports whether a request of the gateway that got an error of ours with that status would get it again. Of a
// 502 only the gateway knows.
func isFinal(status int) bool {
	switch status {
	case 400, 401, 402, 403, 404, 413, 415, 504, 508:
		return true
	}
	return false
}

// writeNotFound sends the response to a request for which there is no route. If its client seems to be an SDK of a
// provider, it is in a shape that this one reads, also in a page of an origin that the tenant allows.
func (s *server) writeNotFound(w http.ResponseWriter, r *http.Request) {
	others, last := s.resources[:len(s.resources)-1], s.resources[len(s.resources)-1]
	sentence := "There is no such route: tollgate has " + strings.Join(others, ", ") + " and " + last
	if isUnmetered(r.URL.Path) {
		sentence = unmeteredSentence
	} else if meant, base := s.meantPath(r); meant != "" {
		sentence = "There is no such route: did you mean " + meant + "? Then the base URL must " + base
	} else if formatOfPath(r) == nil {
		_ = writeJSON(w, http.StatusNotFound, errorBody{Error: "Not found"})
		return
	}
	if s.respondToLostPreflight(w, r) {
		return
	}
	w.Header()["X-Should-Retry"] = []string{"false"}
	body := llmwire.UnknownRouteBody(sentence)
	if len(r.Header["Anthropic-Version"]) > 0 {
		setRequestID(w, llmwire.AnthropicMessages)
		body = llmwire.AnthropicMessages.ErrorBody(http.StatusNotFound, sentence)
	}
	_ = writeBody(w, http.StatusNotFound, append(body, '\n'))
}

// setRequestID repeats the X-Request-Id of a response in the header in which the SDKs of a format look for it. A
// provider's own takes its place if the response is relayed.
func setRequestID(w http.ResponseWriter, format llmwire.Format) {
	h := w.Header()
	if name := format.RequestIDHeader(); h[name] == nil {
		h[name] = h["X-Request-Id"]
	}
}

// meantPath returns the path of the gateway's route to which a request without a route would have gone if its client's
// base URL had no segment too many or too few: /acme/v1/messages for /acme/messages and for /acme/v1/v1/messages. base
// says in what the base URL must end. Both are "" if the path does not end as that of such a route.
func (s *server) meantPath(r *http.Request) (meant, base string) {
	requested := path.Clean(r.URL.Path)
	for _, resource := range s.resources {
		resource = "/" + resource
		before, ok := strings.CutSuffix(requested, resource)
		if !ok {
			continue
		}
		tenant, rest, _ := strings.Cut(strings.TrimPrefix(before, "/"), "/")
		switch {
		case tenant == "" || tenant == "v1":
			tenant = ""
		case validTenantID(tenant) && (rest == "" || rest == "v1" || strings.HasPrefix(rest, "v1/")):
			tenant = "/" + tenant
		default:
			return "", ""
		}
		meant, base = tenant+"/v1"+resource, tenant+"/v1"
		isAnthropic := strings.HasPrefix(resource, "/messages") ||
			resource == "/models" && len(r.Header["Anthropic-Version"]) > 0
		if isAnthropic && strings.HasSuffix(before, "/v1") { // its SDKs add /v1 to the base URL themselves
			base = tenant
		}
		if base == "" {
			return meant, "have no path"
		}
		return meant, "end in " + base
	}
	return "", ""
}

// formatOfPath returns the format of the gateway that the client of a request without a route expects, going by the
// path. It returns nil if the path is not below /v1/.
func formatOfPath(r *http.Request) *llmwire.Format {
	path := r.URL.Path
	if r.Pattern != "" { // that of the path without its "//" and ".."
		_, path = routeOf(r.Pattern)
	}
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		_, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if rest, ok = strings.CutPrefix(path, "v1/"); !ok {
			return nil
		}
	}
	resource, _, _ := strings.Cut(rest, "/")
	if resource == "messages" || resource == "models" && len(r.Header["Anthropic-Version"]) > 0 {
		return new(llmwire.AnthropicMessages)
	}
	return new(llmwire.OpenAIChat)
}

// formatOfHeader is the step of the routes that several APIs have in common: clients of Anthropic's send its version.
func formatOfHeader(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Anthropic-Version"]) > 0 {
		info.format = new(llmwire.AnthropicMessages)
		setRequestID(w, *info.format)
	}
	return nil
}

// countIssued counts a new API key.
func (s *server) countIssued(info *requestInfo, group string, k issuedKey) {
	s.metrics.keyIssued(info.tenantID, group)
	s.usage.add(info.tenant, usageEvent{key: k.key, granted: k.tokensLeft})
}

// countRefusal counts a charge or a hold of t that was refused with err.
func (s *server) countRefusal(t *tenant, err error) {
	if reason := responseTo(err).refusal; reason != notRefused {
		s.countRefused(t, reason)
	}
}

// countRefused counts a charge or a hold of t that was refused.
func (s *server) countRefused(t *tenant, reason refusal) {
	s.metrics.refusedCharge(t.id, reason)
	s.usage.add(t, usageEvent{refused: reason})
}

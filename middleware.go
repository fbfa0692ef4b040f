package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/idtoken"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

// All calls of the store for one request share one deadline, so that every response is sent within 2 s of the end of
// its request.
const (
	publicTimeout = 900 * time.Millisecond
	adminTimeout  = 1700 * time.Millisecond
)

// server serves the HTTP contract from what the store keeps.
type server struct {
	serverOptions
	store          *store
	log            *telemetry.Logger
	metrics        *metrics
	usage          *usageStats
	adminTokenHash [sha256.Size]byte
	processID      string       // random, begins the IDs of requests
	requests       atomic.Int64 // that were given an ID
	publicBodies   bodyLimiter
	adminBodies    bodyLimiter
	draining       atomic.Bool       // the server is about to stop
	metricsHash    [sha256.Size]byte // of options.metricsToken
	defaultTenant  sync.Once         // logs that it does not exist
	untrustedProxy sync.Once         // logs that logins come through one
	google, apple  *signInProvider
	gateway        *gateway.Gateway
	loggedFull     atomic.Int64 // when the log last said that Redis is short of memory, in Unix nanoseconds
}

// serverOptions is what the operator sets.
type serverOptions struct {
	adminToken     string         // the operator's
	metricsToken   string         // opens /metrics and nothing else; "": only the operator may
	loginLimit     int64          // anonymous logins a minute of one client address; 0 is no limit
	trustedProxies []netip.Prefix // whose X-Forwarded-For counts
	accessLog      bool
	googleKeysURL  string // of the keys that sign ID tokens
	appleKeysURL   string
	nearCapacity   func() bool // reports whether connections are scarce
	gateway        gateway.Options
	maxGatewayBody int64 // bytes of a request to the gateway
}

// newServer returns a server on st. It returns an error if anything is missing.
func newServer(st *store, log *telemetry.Logger, options serverOptions) (*server, error) {
	if st == nil || log == nil || options.adminToken == "" || options.nearCapacity == nil {
		return nil, errors.New("a server needs a store, a logger, an admin token and a measure of its capacity")
	}
	s := &server{
		serverOptions:  options,
		store:          st,
		log:            log,
		usage:          newUsageStats(st),
		gateway:        gateway.New(options.gateway, log),
		adminTokenHash: sha256.Sum256([]byte(options.adminToken)),
		metricsHash:    sha256.Sum256([]byte(options.metricsToken)),
		processID:      rand.Text()[:13],
		publicBodies:   newBodyLimiter(maxLargePublicBodies),
		adminBodies:    newBodyLimiter(maxLargeAdminBodies),
		google: &signInProvider{idtoken.Google(options.googleKeysURL, log), "google", "Google",
			"google_oauth", "google_logged_in"},
		apple: &signInProvider{idtoken.Apple(options.appleKeysURL, log), "apple", "Apple",
			"apple_oauth", "apple_logged_in"},
	}
	return s, nil
}

// requestInfo is the state of one request. Each step of its route adds to it.
type requestInfo struct {
	id          string          // X-Request-Id
	start       time.Time       // when the header was read
	deadline    time.Time       // of all calls of the store
	apiKey      string          // of a valid form, set by readAPIKey
	actor       actor           // set by requireOperator and requireAdmin
	tenantID    string          // of a tenant that exists, set by loadTenant and requireTenant
	tenant      *tenant         // likewise; its config is nil if it is broken, which loadTenant refuses
	body        []byte          // set by the steps that read it
	small       [64]byte        // memory for a small body, which saves an allocation
	response    [96]byte        // memory for what writeTokens sends, likewise
	releaseBody func()          // gives back what the body holds; nil: nothing
	outcome     gateway.Outcome // set by the gateway; its Endpoint is "" on other routes
}

type requestInfoKey struct{}

// requestInfoFrom returns the state of a request that came through withRequestInfo.
func requestInfoFrom(r *http.Request) *requestInfo {
	return r.Context().Value(requestInfoKey{}).(*requestInfo)
}

// A step is one thing that is done for a request: it adds to info, or refuses the request with an error, before it has
// written anything. A handler is the last step, which writes the response.
type step func(w http.ResponseWriter, r *http.Request, info *requestInfo) error

// access is what a request passes before its handler: steps in order, and the time for the calls of the store.
type access struct {
	timeout time.Duration
	steps   []step
}

// toHandler returns the http.Handler that runs the steps of a route and then its handler.
func (s *server) toHandler(a access, handler step) http.Handler {
	steps := append(slices.Clone(a.steps), handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info := requestInfoFrom(r)
		info.deadline = info.start.Add(a.timeout)
		w.(*responseRecorder).routing = false // what is sent from here on is not ServeMux's
		for _, step := range steps {
			if err := step(w, r, info); err != nil {
				s.writeError(w, r, err)
				return
			}
		}
	})
}

// middleware returns mux with everything that each request passes, from the outermost to the innermost.
func (s *server) middleware(mux *http.ServeMux, other otherMethod) http.Handler {
	return s.withRequestInfo(s.withObservation(s.withRecovery(limitHeader(withJSONErrors(mux, other)))))
}

// exchange is the context of a request, with its state and its response in the same allocation.
type exchange struct {
	context.Context
	info      requestInfo
	recorder  responseRecorder
	requestID [1]string // the value of X-Request-Id
}

// Value returns the request's state for requestInfoKey, and any other value of the context that it extends.
func (e *exchange) Value(key any) any {
	if key == (requestInfoKey{}) {
		return &e.info
	}
	return e.Context.Value(key)
}

// withRequestInfo attaches a requestInfo to the request's context and a recorder to its response. While the server
// drains, or connections are scarce, each response is the last of its connection.
func (s *server) withRequestInfo(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &exchange{Context: r.Context(), info: requestInfo{id: s.requestID(r), start: time.Now()}}
		e.requestID[0] = e.info.id
		w.Header()["X-Request-Id"] = e.requestID[:]
		if s.draining.Load() || s.nearCapacity() {
			w.Header().Set("Connection", "close")
		}
		r = r.WithContext(e)
		e.recorder = responseRecorder{ResponseWriter: w, request: r}
		next.ServeHTTP(&e.recorder, r)
	})
}

// maxHeaderFields bounds the fields of a request's header. Memory for them is far larger than their bytes.
const maxHeaderFields = 100

// limitHeader refuses requests with too many header fields before their body is read.
func limitHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fields := 0
		for _, values := range r.Header {
			fields += len(values)
		}
		if fields > maxHeaderFields {
			endUnread(w)
			writeErrorBody(w, r, http.StatusRequestHeaderFieldsTooLarge, errorBody{Error: "Too many headers"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// requestID returns the request's own X-Request-Id if it is valid, else a new one that no other process gives.
func (s *server) requestID(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	id := append(make([]byte, 0, 64), s.processID...)
	return string(strconv.AppendInt(append(id, '-'), s.requests.Add(1), 10))
}

// validRequestID reports whether id is 1-64 of A-Z a-z 0-9 _ - and not a key or token of ours, which are secret.
func validRequestID(id string) bool {
	return isIdentifier(id, 64) && !validAPIKey(id) && !validCredential(id, adminTokenPrefix)
}

// responseRecorder is the ResponseWriter that handlers get. It remembers what was sent, and holds back what ServeMux
// sends by itself.
type responseRecorder struct {
	http.ResponseWriter
	request  *http.Request
	status   int  // that was sent; 0: nothing was sent yet
	bytes    int  // of the body
	routing  bool // no handler has been called yet: what is sent is ServeMux's own
	heldBack int  // the status with which it did
}

func (w *responseRecorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseRecorder) WriteHeader(status int) {
	switch {
	case w.status != 0 || w.heldBack != 0:
	case w.routing:
		w.heldBack = status
	default:
		w.status = status
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *responseRecorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.heldBack != 0 {
		return len(p), nil
	}
	if w.request.Method != http.MethodHead {
		w.bytes += len(p)
	}
	return w.ResponseWriter.Write(p)
}

// otherMethod is given requests whose path has other methods than theirs, with Allow set. It reports whether it has
// responded.
type otherMethod func(w http.ResponseWriter, r *http.Request) bool

// withJSONErrors replaces what ServeMux sends by itself, in plain text or HTML, by the JSON error of that status. A
// redirect, which ServeMux sends for paths that are not clean, becomes a 404.
func withJSONErrors(mux *http.ServeMux, other otherMethod) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := w.(*responseRecorder)
		recorder.routing = true
		mux.ServeHTTP(w, r)
		recorder.routing = false
		status := recorder.heldBack
		recorder.heldBack = 0
		switch status {
		case 0:
		case http.StatusMethodNotAllowed:
			if !other(w, r) {
				writeErrorBody(w, r, status, errorBody{Error: "Method not allowed"})
			}
		default:
			w.Header().Del("Location")
			writeNotFound(w, r)
		}
	})
}

// withRecovery survives the panics of next: it logs the stack and responds with 500, or cuts the connection if a
// response was begun.
func (s *server) withRecovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p != http.ErrAbortHandler {
				s.log.Errorf("panic in %s id=%s: %v", r.Pattern, requestInfoFrom(r).id, p)
				for line := range strings.Lines(string(debug.Stack())) {
					s.log.Errorf("%s", strings.TrimSuffix(line, "\n"))
				}
			}
			recorder := w.(*responseRecorder)
			if recorder.status != 0 {
				panic(http.ErrAbortHandler)
			}
			recorder.routing = false
			writeErrorBody(w, r, http.StatusInternalServerError, errorBody{Error: "Internal error"})
		}()
		next.ServeHTTP(w, r)
	})
}

// withObservation counts responses and, if enabled, logs them, after what the request held was given back.
func (s *server) withObservation(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			info, recorder := requestInfoFrom(r), w.(*responseRecorder)
			if info.releaseBody != nil {
				info.releaseBody()
			}
			took := time.Since(info.start)
			s.metrics.request(r.Pattern, r.Method, recorder.status, took)
			if info.outcome.Endpoint != "" {
				s.metrics.gateway.count(info.tenantID, &info.outcome, recorder.status, took)
			}
			if s.accessLog {
				s.logAccess(r, info, recorder, took)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// logAccess writes the line of one request. It names the pattern of the route, since a path may hold a key.
func (s *server) logAccess(r *http.Request, info *requestInfo, recorder *responseRecorder, took time.Duration) {
	_, route := routeOf(r.Pattern)
	method, tenant, remote := r.Method, info.tenantID, r.RemoteAddr
	if r.Pattern == "" {
		route = "-"
	}
	if !slices.Contains(methods, method) {
		method = "-" // a client may send any token
	}
	if tenant == "" {
		tenant = "-"
	}
	if host, _, err := net.SplitHostPort(remote); err == nil {
		remote = host
	}
	provider := ""
	if o := &info.outcome; o.Endpoint != "" { // quoted, since the model may be any text of the client
		provider = fmt.Sprintf(" endpoint=%q model=%q", strict.Shorten(o.Endpoint), strict.Shorten(o.Model))
	}
	s.log.Infof("%s %s tenant=%s status=%d bytes=%d duration=%.2fms remote=%s id=%s%s", method, route, tenant,
		recorder.status, recorder.bytes, float64(took)/float64(time.Millisecond), remote, info.id, provider)
}

// pathTenantID returns the tenant ID in the path, valid or not, or the default one.
func pathTenantID(r *http.Request) string {
	if id := r.PathValue("tenantId"); id != "" {
		return id
	}
	return defaultTenant
}

// loadTenant loads the tenant of the path with its config. Errors are those of store.Tenant.
func (s *server) loadTenant(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	id := pathTenantID(r)
	if !validTenantID(id) {
		return ErrNoTenant
	}
	t, err := s.store.Tenant(info.deadline, id)
	if t != nil {
		info.tenantID, info.tenant = id, t
	}
	if err == ErrNoTenant && r.PathValue("tenantId") == "" {
		s.defaultTenant.Do(func() {
			s.log.Infof("A path without a tenant ID is that of the tenant %q, which does not exist: "+
				"create it with POST /admin/tenants", id)
		})
	}
	return err
}

// requireTenant checks that the tenant of the path exists. Its config may be broken, so that an admin can repair it.
// Errors: ErrNoTenant, ErrUnavailable.
func (s *server) requireTenant(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if err := s.loadTenant(w, r, info); err != ErrBrokenConfig {
		return err
	}
	return nil
}

// errNoCredential and errInvalidCredential are 401: nothing was sent that could be a bearer token, or a wrong one.
var (
	errNoCredential      = errors.New("no bearer token")
	errInvalidCredential = errors.New("invalid bearer token")
)

// readAPIKey reads the request's API key from Authorization or, as several SDKs send it, X-API-Key. If both are sent
// they must be equal. What does not have the form of a key never reaches Redis.
func (s *server) readAPIKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	if values := r.Header["X-Api-Key"]; len(values) > 0 {
		switch {
		case len(values) > 1 || err == nil && token != values[0] || err != nil && err != errNoCredential:
			return errInvalidCredential
		case len(r.Header["Authorization"]) > 0 && err != nil:
			return errInvalidCredential
		}
		token, err = values[0], nil
	}
	if err != nil {
		return err
	}
	if !validAPIKey(token) {
		return ErrNoKey
	}
	info.apiKey = token
	return nil
}

// requireOperator lets the operator pass.
func (s *server) requireOperator(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	if !s.isOperator(sha256.Sum256([]byte(token))) {
		return errInvalidCredential
	}
	info.actor = actor{}
	return nil
}

func (s *server) isOperator(hash [sha256.Size]byte) bool {
	return subtle.ConstantTimeCompare(hash[:], s.adminTokenHash[:]) == 1
}

// requireMetrics lets the operator pass, and the holder of the metrics token.
func (s *server) requireMetrics(_ http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(token))
	isMetrics := s.metricsToken != "" && subtle.ConstantTimeCompare(hash[:], s.metricsHash[:]) == 1
	if !isMetrics && !s.isOperator(hash) {
		return errInvalidCredential
	}
	return nil
}

// requireAdmin lets the operator pass, and the holder of one of the tenant's own admin tokens. It comes before
// requireTenant, so that a stranger does not learn which tenants exist.
func (s *server) requireAdmin(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(token))
	if s.isOperator(hash) {
		info.actor = actor{}
		return nil
	}
	id := pathTenantID(r)
	if !validTenantID(id) || !validCredential(token, adminTokenPrefix) {
		return errInvalidCredential
	}
	found, err := s.store.IsAdminToken(info.deadline, id, hash)
	if err != nil {
		return err
	}
	if !found {
		return errInvalidCredential
	}
	info.actor = actor{tokenHash: hex.EncodeToString(hash[:])}
	return nil
}

// bearerToken returns the token of the request's Authorization header (RFC 6750, section 2.1). Errors: errNoCredential
// if none was sent; errInvalidCredential if it was malformed, or sent more than once.
func bearerToken(r *http.Request) (string, error) {
	values := r.Header["Authorization"]
	if len(values) == 0 {
		return "", errNoCredential
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case len(values) > 1:
		return "", errInvalidCredential
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return "", errNoCredential
	case !validBearerToken(token):
		return "", errInvalidCredential
	}
	return token, nil
}

// idempotencyKey returns the request's Idempotency-Key, "" if it has none.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header["Idempotency-Key"]
	if len(values) == 0 {
		return "", nil
	}
	if len(values) == 1 && isPrintableID(values[0]) {
		return values[0], nil
	}
	return "", badRequestError("Idempotency-Key must be one header of 1 to 255 printable ASCII characters")
}

// isPrintableID reports whether id is 1 to 255 printable ASCII characters.
func isPrintableID(id string) bool {
	unprintable := func(c rune) bool { return c < ' ' || c > '~' }
	return id != "" && len(id) <= 255 && !strings.ContainsFunc(id, unprintable)
}

const (
	maxBodyBytes    = 1 << 20
	smallBodyBytes  = 4 << 10 // is allocated before it has come
	bodySlotTimeout = 40 * time.Millisecond

	// The most bodies over smallBodyBytes that are held at a time. No charge needs one, and anybody may send one, since
	// the body is read before Redis is queried for the key.
	maxLargePublicBodies = 16
	maxLargeAdminBodies  = 64
)

var (
	errBodyTooLarge = errors.New("body too large")
	errEncodedBody  = errors.New("body has a content coding")
	errBodyRefused  = badRequestError("This route takes no body")
	errBrokenBody   = badRequestError("Body could not be read to its end")
)

// bodyLimiter bounds how many large bodies are held in memory at a time.
type bodyLimiter struct{ slots chan struct{} }

func newBodyLimiter(n int) bodyLimiter { return bodyLimiter{make(chan struct{}, n)} }

// read is the step that reads the request's body. The time that it takes to come does not count for the deadline.
// Errors: errEncodedBody; errBodyTooLarge beyond maxBodyBytes; errBrokenBody if it ends early; ErrUnavailable if it is
// large and no slot is free for bodySlotTimeout.
func (l bodyLimiter) read(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if encoding := r.Header["Content-Encoding"]; len(encoding) > 0 {
		return errEncodedBody
	}
	began := time.Now()
	var err error
	info.body, info.releaseBody, err = l.readAll(w, r, info.small[:])
	info.deadline = info.deadline.Add(time.Since(began))
	return err
}

// readAll returns the request's body, which is read into small if it fits. release gives back the body's slot. It is
// nil if the body has no slot.
func (l bodyLimiter) readAll(w http.ResponseWriter, r *http.Request, small []byte) (body []byte, release func(),
	err error) {
	if 0 <= r.ContentLength && r.ContentLength <= smallBodyBytes {
		if r.ContentLength > int64(len(small)) {
			small = make([]byte, r.ContentLength)
		}
		body := small[:r.ContentLength]
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, nil, errBrokenBody
		}
		return body, nil, nil
	}
	var buffer bytes.Buffer
	limited := http.MaxBytesReader(w, r.Body, maxBodyBytes)
	if _, err = io.CopyN(&buffer, limited, smallBodyBytes+1); err == nil {
		select {
		case l.slots <- struct{}{}:
			release = func() { <-l.slots }
		case <-time.After(bodySlotTimeout):
			return nil, nil, fmt.Errorf("%w: too many large bodies are held", ErrUnavailable)
		}
		_, err = buffer.ReadFrom(limited)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, release, errBodyTooLarge
	}
	if err != nil && err != io.EOF {
		return nil, release, errBrokenBody
	}
	return buffer.Bytes(), release, nil
}

// refuseBody is the step of routes that take no body. To ignore one would hide a mistake of the client.
func refuseBody(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	if r.ContentLength == 0 {
		return nil
	}
	if r.ContentLength < 0 { // chunked
		if n, err := r.Body.Read(make([]byte, 1)); n == 0 && err == io.EOF {
			return nil
		}
	}
	endUnread(w)
	return errBodyRefused
}

// endUnread makes the response the last of its connection, and does without the rest of the request's body, for which
// net/http would wait after the response, until readTimeout.
func endUnread(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

// Values of headers that all responses have. They are never changed.
var (
	contentType  = []string{"application/json; charset=utf-8"}
	cacheControl = []string{"no-store"} // responses hold keys, balances and configs (RFC 6749, section 5.1)
)

// writeJSON sends v as one compact object and a newline. Nothing is sent if v cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode response: %w", err)
	}
	return writeBody(w, status, body.Bytes())
}

// writeBody sends body, which is compact JSON and a newline. It returns nil, so that a handler can return it.
func writeBody(w http.ResponseWriter, status int, body []byte) error {
	h := w.Header()
	h["Content-Type"] = contentType
	h["Cache-Control"] = cacheControl
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone away is not an error of ours
	return nil
}

// writeTokens sends the response to a charge or, with the new API key, to a login.
func writeTokens(w http.ResponseWriter, info *requestInfo, status int, apiKey string, tokensLeft int64) error {
	body := append(info.response[:0], '{')
	if apiKey != "" { // one of ours: nothing in it needs escaping
		body = append(body, `"apiKey":"`...)
		body = append(body, apiKey...)
		body = append(body, `",`...)
	}
	body = append(body, `"tokensLeft":`...)
	body = strconv.AppendInt(body, tokensLeft, 10)
	return writeBody(w, status, append(body, "}\n"...))
}

// keyBody is how responses show an API key, but for its tenant, which the caller named.
type keyBody struct {
	APIKey     string  `json:"apiKey,omitempty"` // unless the caller named it
	UserID     *string `json:"userId"`
	Group      string  `json:"group"`
	CreatedAt  string  `json:"createdAt"`
	ExpiresAt  *string `json:"expiresAt"`
	TokensLeft int64   `json:"tokensLeft"`
	RefillsAt  *string `json:"refillsAt,omitempty"` // if its group has a refill
	Enabled    *bool   `json:"enabled,omitempty"`   // if it is false
}

func newKeyBody(k apiKey) keyBody {
	body := keyBody{Group: k.group, CreatedAt: formatTime(k.createdAt), TokensLeft: k.tokensLeft}
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

func writeKey(w http.ResponseWriter, k apiKey) error {
	return writeJSON(w, http.StatusOK, newKeyBody(k))
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

// errorBody is the body of every error response.
type errorBody struct {
	Error      string   `json:"error"`
	TokensLeft *int64   `json:"tokensLeft,omitempty"`
	Errors     []string `json:"errors,omitempty"`
}

// badRequestError is a sentence for the client that says what is wrong with its request.
type badRequestError string

func (e badRequestError) Error() string { return string(e) }

// forwardAuthDenial is a refusal that nginx can forward: as 403, with its true status in X-Auth-Status.
type forwardAuthDenial struct{ error }

func (e forwardAuthDenial) Unwrap() error { return e.error }

// signInDisabledError means that a tenant's config lacks what sign-in with a provider needs.
type signInDisabledError struct{ provider string }

func (e signInDisabledError) Error() string { return "Sign-in with " + e.provider + " is disabled" }

var (
	errNotFound      = errors.New("not found")
	errLoginDisabled = errors.New("anonymous login is disabled")
)

// errorResponses maps errors to statuses and public sentences. The first that matches counts.
var errorResponses = []struct {
	is      error
	status  int
	message string
}{
	{ErrNoTenant, http.StatusBadRequest, "Invalid tenant ID"},
	{errNoCredential, http.StatusUnauthorized, "Unauthorized"},
	{errInvalidCredential, http.StatusUnauthorized, "Unauthorized"},
	{ErrNoKey, http.StatusUnauthorized, "Unauthorized"},
	{ErrRevoked, http.StatusUnauthorized, "Unauthorized"},
	{idtoken.ErrInvalid, http.StatusUnauthorized, "Invalid ID token"},
	{idtoken.ErrNoKeys, http.StatusServiceUnavailable, "Service unavailable"},
	{errLoginDisabled, http.StatusForbidden, "Anonymous login is disabled"},
	{errNotFound, http.StatusNotFound, "Not found"},
	{ErrNoVersion, http.StatusNotFound, "Not found"},
	{ErrNoHold, http.StatusNotFound, "Not found"},
	{ErrTenantExists, http.StatusConflict, "Tenant already exists"},
	{ErrConfigChanged, http.StatusPreconditionFailed, "Config has changed"},
	{ErrKeyDisabled, http.StatusForbidden, "API key is disabled"},
	{ErrGroupDisabled, http.StatusForbidden, "Group is disabled"},
	{errBodyTooLarge, http.StatusRequestEntityTooLarge, "Body too large"},
	{errEncodedBody, http.StatusUnsupportedMediaType, "Content-Encoding is not supported: send the body as it is"},
	{ErrKeyReused, http.StatusUnprocessableEntity, "Idempotency-Key was used with other parameters"},
	{ErrHoldSettled, http.StatusUnprocessableEntity, "The hold was settled with another amount"},
	{ErrUnavailable, http.StatusServiceUnavailable, "Service unavailable"},
}

// writeError turns an error into a response. What is not foreseen here is 500, and logged.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, body := errorResponse(w.Header(), r, err)
	if status == http.StatusInternalServerError && err != ErrBrokenConfig { // the store logs that once
		s.log.Errorf("%s id=%s: %v", r.Pattern, requestInfoFrom(r).id, err)
	}
	if _, ok := errors.AsType[forwardAuthDenial](err); ok {
		w.Header().Set("X-Auth-Status", strconv.Itoa(status))
		status = http.StatusForbidden
	}
	writeErrorBody(w, r, status, body)
}

// writeErrorBody sends an error. Those of the gateway's routes have the shape of their provider, for the sake of its
// SDKs.
func writeErrorBody(w http.ResponseWriter, r *http.Request, status int, body errorBody) {
	if format, ok := gatewayFormat(r); ok {
		_ = writeBody(w, status, append(format.ErrorBody(status, body.Error), '\n'))
		return
	}
	_ = writeJSON(w, status, body)
}

// writeNotFound sends the response to a request for which there is no route.
func writeNotFound(w http.ResponseWriter, r *http.Request) {
	if _, ok := gatewayFormat(r); ok {
		const sentence = "There is no such route: tollgate has chat/completions, messages, messages/count_tokens and models"
		_ = writeBody(w, http.StatusNotFound, append(llmwire.UnknownRouteBody(sentence), '\n'))
		return
	}
	_ = writeJSON(w, http.StatusNotFound, errorBody{Error: "Not found"})
}

// gatewayFormat returns the format of the gateway's route that r is for, and false if it is for none.
func gatewayFormat(r *http.Request) (format llmwire.Format, ok bool) {
	path := r.URL.Path
	if r.Pattern != "" {
		_, path = routeOf(r.Pattern)
	}
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		_, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		rest, ok = strings.CutPrefix(path, "v1/")
	}
	resource, _, _ := strings.Cut(rest, "/")
	if resource == "messages" || resource == "models" && len(r.Header["Anthropic-Version"]) > 0 {
		return llmwire.AnthropicMessages, ok
	}
	return llmwire.OpenAIChat, ok
}

// errorResponse returns the status and the body for err, and sets the headers that belong to them.
func errorResponse(h http.Header, r *http.Request, err error) (int, errorBody) {
	if bad, ok := errors.AsType[badRequestError](err); ok {
		return http.StatusBadRequest, errorBody{Error: bad.Error()}
	}
	if disabled, ok := errors.AsType[signInDisabledError](err); ok {
		return http.StatusForbidden, errorBody{Error: disabled.Error()}
	}
	if bad, ok := errors.AsType[*strict.Error](err); ok {
		return http.StatusBadRequest, errorBody{Error: bad.Error()}
	}
	if bad, ok := errors.AsType[*configError](err); ok {
		body := errorBody{Error: bad.Error()}
		if all := bad.sentences(); len(all) > 1 {
			body.Errors = all
		}
		return http.StatusBadRequest, body
	}
	if spent, ok := errors.AsType[insufficientTokensError](err); ok {
		return http.StatusPaymentRequired, errorBody{Error: "Payment Required", TokensLeft: &spent.tokensLeft}
	}
	if failure, ok := errors.AsType[gateway.Error](err); ok {
		if failure.Status == http.StatusServiceUnavailable {
			h.Set("Retry-After", "1")
		}
		return failure.Status, errorBody{Error: failure.Message}
	}
	if limited, ok := errors.AsType[rateLimitError](err); ok {
		h.Set("Retry-After", strconv.FormatInt(limited.wait, 10))
		return http.StatusTooManyRequests, errorBody{Error: "Too Many Requests"}
	}
	for _, e := range errorResponses {
		if errors.Is(err, e.is) {
			switch e.status {
			case http.StatusUnauthorized:
				h.Set("WWW-Authenticate", challenge(r, err))
			case http.StatusServiceUnavailable:
				h.Set("Retry-After", "1")
			}
			return e.status, errorBody{Error: e.message}
		}
	}
	return http.StatusInternalServerError, errorBody{Error: "Internal error"}
}

// countIssued counts a new API key.
func (s *server) countIssued(info *requestInfo, k apiKey) {
	s.metrics.keyIssued(info.tenantID, k.group)
	s.usage.add(info.tenant, usageEvent{granted: k.tokensLeft})
}

// countRefusal counts a charge or a hold that was refused with err.
func (s *server) countRefusal(tenantID string, err error) {
	_, limited := errors.AsType[rateLimitError](err)
	_, spent := errors.AsType[insufficientTokensError](err)
	switch {
	case limited:
		s.metrics.refusedCharge(tenantID, refusedRate)
	case spent:
		s.metrics.refusedCharge(tenantID, refusedBalance)
	case errors.Is(err, ErrNoKey):
		s.metrics.refusedCharge(tenantID, refusedKey)
	case errors.Is(err, ErrKeyDisabled):
		s.metrics.refusedCharge(tenantID, refusedKey)
	case errors.Is(err, ErrGroupDisabled):
		s.metrics.refusedCharge(tenantID, refusedGroup)
	case errors.Is(err, ErrKeyReused):
		s.metrics.refusedCharge(tenantID, refusedIdempotencyKey)
	}
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

// clientAddress returns where a request comes from, as the login limit counts it: an IPv4 address, or the /64 of an
// IPv6 one, which is what one customer gets. X-Forwarded-For counts only as far as trusted proxies vouch for it: of
// its hops, from the last one back, the first that is not trusted itself.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr // not a TCP connection
	}
	address := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(address, trusted); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		address = hop
	}
	if address.Is4() {
		return address.String()
	}
	return netip.PrefixFrom(address.WithZone(""), 64).Masked().String()
}

// parseHop parses a hop of X-Forwarded-For, which some proxies write with its port.
func parseHop(hop string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(hop); err == nil {
		return withPort.Addr().Unmap(), true
	}
	address, err := netip.ParseAddr(hop)
	return address.Unmap(), err == nil
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	return slices.ContainsFunc(trusted, func(prefix netip.Prefix) bool { return prefix.Contains(address.WithZone("")) })
}

package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tollgate/internal/cors"
	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/stripe"
	"tollgate/internal/telemetry"
)

// requestInfo is the state of one request. Each step of its route adds to it.
type requestInfo struct {
	id        string            // X-Request-Id
	start     time.Time         // when the header was read
	deadline  time.Time         // of all calls of the store
	format    *llmwire.Format   // of the responses of a route of the gateway; else nil
	apiKey    string            // has a valid form; set by readAPIKey and readSDKKey
	actor     actor             // set by requireOperator and requireAdmin
	tenantID  string            // of a tenant that exists; set by loadTenant and requireTenant
	tenant    *tenant           // set with tenantID; its config is nil if it is broken, which loadTenant refuses
	group     string            // of the API key; set by requireKey
	hops      string            // of a request to forward: its loopHeader; set by refuseLoop
	signature *stripe.Signature // of a webhook; set by readSignature
	body      []byte            // set by the steps that read it
	memory    *fairpool.Claim   // for body, and what a provider responds; nil on routes without a body
	place     *fairpool.Claim   // among the requests that wait for a provider; nil on other routes than theirs
	outcome   gateway.Outcome   // filled in by relay and openSession; its Endpoint is "" on other routes
	session   *sessionAccount   // that a session is paid from; nil on other routes
	run       func()            // carries the session that was opened to its end; nil: none was
	rest      func() error      // relays the rest of the stream that was begun; nil: none was
}

// requestInfoOf returns the state of the request that w responds to, which came through middleware.
func requestInfoOf(w http.ResponseWriter) *requestInfo { return &w.(*responseRecorder).info }

// middleware returns mux with everything that each request passes. browser has the patterns of the routes that pages of
// other origins may call.
//
// It is one handler: as six, they would keep another 1,000 bytes of stack while a stream is silent.
func (s *server) middleware(mux *http.ServeMux, browser map[string]bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := s.record(w, r)
		defer s.end(r, response)
		defer s.survive(r, response)
		if !refuseLongHeader(response, r) {
			s.route(response, r, mux, browser)
		}
		if rest := response.info.rest; rest != nil {
			if err := rest(); err != nil {
				panic(err)
			}
		}
	})
}

// record begins to record the state of the request and its response. While the server drains, or connections are
// scarce, each response is the last of its connection.
func (s *server) record(w http.ResponseWriter, r *http.Request) *responseRecorder {
	info := requestInfo{id: s.requestID(r), start: time.Now()}
	w.Header()["X-Request-Id"] = []string{info.id}
	if s.draining.Load() || s.nearCapacity() {
		w.Header().Set("Connection", "close")
	}
	return &responseRecorder{ResponseWriter: w, method: r.Method, info: info, sessions: &s.sessions}
}

// refuseLongHeader refuses a request with more than 100 header fields before its body is read, and reports whether it
// did. The fields take far more memory than bytes.
func refuseLongHeader(w http.ResponseWriter, r *http.Request) bool {
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	if fields <= 100 {
		return false
	}
	endUnread(w)
	writeErrorBody(w, formatOfPath(r), http.StatusRequestHeaderFieldsTooLarge, errorBody{Error: "Too many headers"})
	return true
}

// requestID returns the request's own X-Request-Id if it is 1 to 64 of A-Z a-z 0-9 _ - and not a key or token of ours,
// which are secret. Else it returns a new one that no other process returns.
func (s *server) requestID(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && isIdentifier(given[0], 64) &&
		!validAPIKey(given[0]) && !validCredential(given[0], adminTokenPrefix) {
		return given[0]
	}
	return s.processID + "-" + strconv.FormatInt(s.requests.Add(1), 10)
}

// responseRecorder is the ResponseWriter that handlers get. It remembers what was sent, and holds back what ServeMux
// sends by itself. It carries the state of its request.
type responseRecorder struct {
	http.ResponseWriter
	info     requestInfo
	method   string // of the request
	status   int    // what was sent; 0 if nothing was
	routing  bool   // no handler has been called yet: what is sent is ServeMux's own
	heldBack int    // the status of what ServeMux has sent; 0 if it has sent nothing

	bytes     atomic.Int64  // of the body or, on a connection that was taken over, all
	conn      net.Conn      // that the handler has taken over; nil: none
	takenOver time.Duration // from the request's header until then
	sessions  *atomic.Int64 // counts the connections that handlers have taken over
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
	if w.conn != nil {
		return 0, http.ErrHijacked
	}
	if w.method != http.MethodHead {
		w.bytes.Add(int64(len(p)))
	}
	return w.ResponseWriter.Write(p)
}

// route lets mux respond. It replaces what ServeMux sends by itself, in plain text or HTML, by the JSON error of that
// status or the response to a preflight. A redirect, which ServeMux sends for paths that are not clean, becomes a 404.
func (s *server) route(w *responseRecorder, r *http.Request, mux *http.ServeMux, browser map[string]bool) {
	w.routing = true
	mux.ServeHTTP(w, r)
	w.routing = false
	status := w.heldBack
	w.heldBack = 0
	switch status {
	case 0:
	case http.StatusMethodNotAllowed:
		if !s.respondToPreflight(w, r, mux, browser) {
			writeErrorBody(w, formatOfPath(r), status, errorBody{Error: "Method not allowed"})
		}
	default:
		w.Header().Del("Location")
		s.writeNotFound(w, r)
	}
}

// survive is deferred. It ends a panic: it logs the stack and responds with 500, or cuts the connection if a response
// was begun.
func (s *server) survive(r *http.Request, response *responseRecorder) {
	p := recover()
	if p == nil {
		return
	}
	if p != http.ErrAbortHandler {
		s.logPanic(r, response, p)
	}
	if response.status != 0 {
		panic(http.ErrAbortHandler)
	}
	response.routing = false
	writeErrorBody(response, response.info.format, http.StatusInternalServerError, errorBody{Error: "Internal error"})
}

// logPanic logs what a request has panicked with, and the stack.
func (s *server) logPanic(r *http.Request, response *responseRecorder, p any) {
	s.log.Panicf(p, "panic in %s id=%s", r.Pattern, response.info.id)
}

// end observes a response. A session that was opened goes on until its end first, without its handler.
func (s *server) end(r *http.Request, response *responseRecorder) {
	run := response.info.run
	if run == nil {
		s.observe(r, response)
		return
	}
	response.ResponseWriter = nil // which has the buffers of the connection
	r = &http.Request{
		Pattern: r.Pattern, Method: r.Method, RemoteAddr: r.RemoteAddr,
		Header: http.Header{"Traceparent": r.Header["Traceparent"]},
	}
	go s.runSession(run, r, response)
}

// observe counts a response and, if enabled, logs it, after what its request held was given back. A connection that was
// taken over is closed.
func (s *server) observe(r *http.Request, response *responseRecorder) {
	info := &response.info
	info.memory.Release()
	info.place.Release()
	took := time.Since(info.start)
	counted := took
	if response.conn != nil {
		response.conn.Close()        // net/http no longer does, even after a panic
		defer s.sessions.Add(-1)     // when nothing more is done for it
		counted = response.takenOver // not the hour that a session may last
	}
	s.metrics.request(r.Pattern, r.Method, response.status, counted)
	if info.outcome.Endpoint != "" {
		s.metrics.gateway.count(info.tenantID, &info.outcome, response.status, counted)
	}
	if s.options.accessLog {
		s.logAccess(r, response, took)
	}
}

// logAccess writes the line of one request. It names the pattern of the route, since a path may hold a key.
func (s *server) logAccess(r *http.Request, response *responseRecorder, took time.Duration) {
	info := &response.info
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
	more := ""
	if trace := telemetry.TraceID(r.Header["Traceparent"]); trace != "" {
		more = " trace=" + trace
	}
	if o := &info.outcome; o.Endpoint != "" { // quoted, since the model may be any text of the client
		model := o.Model
		if validAPIKey(model) { // in the wrong place
			model = "-"
		}
		more += fmt.Sprintf(" endpoint=%q model=%q", strict.Shorten(o.Endpoint), strict.Shorten(model))
	}
	if response.conn != nil {
		more += sessionText(info)
	}
	s.log.Infof("%s %s tenant=%s status=%d bytes=%d duration=%.2fms remote=%s id=%s%s", method, route, tenant,
		response.status, response.bytes.Load(), float64(took)/float64(time.Millisecond), remote, info.id, more)
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

// orNoTenant wraps readKey, a step that reads an API key. If that fails and the tenant does not exist, the error is
// ErrNoTenant: a client that has mistyped the tenant's ID has no key of that tenant, either.
func (s *server) orNoTenant(readKey step) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		err := readKey(w, r, info)
		if err != nil && s.loadTenant(w, r, info) == ErrNoTenant {
			return ErrNoTenant
		}
		return err
	}
}

// requireTenant checks that the tenant of the path exists. Its config may be broken, so that an admin can repair it.
// Errors: ErrNoTenant, ErrUnavailable.
func (s *server) requireTenant(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if err := s.loadTenant(w, r, info); err != ErrBrokenConfig {
		return err
	}
	return nil
}

// readQuery returns the parameters in the request's query. One that is not among names, or is given twice, is a
// badRequestError. Only by, which is a list, may be repeated.
func readQuery(r *http.Request, names ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequestError("Invalid query")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch {
		case !slices.Contains(names, name):
			return nil, badRequestError("Query " + strconv.Quote(strict.Shorten(name)) + " is unknown")
		case len(query[name]) > 1 && name != "by":
			return nil, badRequestError("Query " + strconv.Quote(name) + " is duplicated")
		}
	}
	return query, nil
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

// refuseIdempotencyKey is the step of routes that change something and remember no request. Whoever sends the header
// relies on it.
func refuseIdempotencyKey(_ http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	if len(r.Header["Idempotency-Key"]) > 0 {
		return badRequestError("This route does not support Idempotency-Key")
	}
	return nil
}

// isPrintableID reports whether id is 1 to 255 printable ASCII characters.
func isPrintableID(id string) bool {
	unprintable := func(c rune) bool { return c < ' ' || c > '~' }
	return id != "" && len(id) <= 255 && !strings.ContainsFunc(id, unprintable)
}

// readIdempotentRequest returns the request's Idempotency-Key, if it has one, and a digest of what it asks for.
func readIdempotentRequest(r *http.Request, body []byte) (idempotentRequest, error) {
	key, err := idempotencyKey(r)
	if err != nil || key == "" {
		return idempotentRequest{}, err
	}
	return idempotentRequest{key: key, hash: shortHash(string(body))}, nil
}

// setReplayed marks a response as that of an earlier request with the same Idempotency-Key.
func setReplayed(h http.Header) { h.Set("Idempotent-Replayed", "true") }

// exposedHeaders are the headers of responses that pages of other origins may read, if the tenant allows their origin,
// beside those that every page may. They are never changed.
var exposedHeaders = []string{"RateLimit, RateLimit-Policy, X-RateLimit-Limit-Requests, " +
	"X-RateLimit-Remaining-Requests, Retry-After, Retry-After-Ms, X-Should-Retry, Idempotent-Replayed, X-Request-Id, " +
	"Request-Id, X-Provider-Request-Id, X-Tokens-Charged, X-Tokens-Left, X-Tokens-Held, X-Max-Tokens, X-Cache, Age, " +
	"OpenAI-Processing-Ms, OpenAI-Version, OpenAI-Model"}

// forBrowsers returns the access of a route that pages of other origins may call.
func (s *server) forBrowsers(timeout time.Duration, steps ...step) access {
	all := slices.Concat([]step{s.allowOrigin}, steps, []step{s.varyByOrigin})
	return access{timeout: timeout, steps: all, browser: true}
}

// allowOrigin is the first step of routes for browsers: it lets pages of the origins that the tenant allows read the
// response, whatever it will be. It refuses nothing: that pages of other origins cannot read a response is up to
// browsers.
func (s *server) allowOrigin(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Origin"]) > 0 {
		s.setOrigin(w.Header(), r, info, pathTenantID(r))
	}
	return nil
}

// varyByOrigin marks responses as dependent on the origin if the tenant allows any: those to requests without one, too.
func (s *server) varyByOrigin(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	if t := info.tenant; t != nil && t.config != nil {
		t.config.origins.SetVary(w.Header())
	}
	return nil
}

// setOrigin sets the headers that a response to r's origin has, and reports whether the tenant allows it. If the tenant
// cannot be loaded there are none: a later step says why.
func (s *server) setOrigin(h http.Header, r *http.Request, info *requestInfo, tenantID string) bool {
	if !validTenantID(tenantID) {
		return false
	}
	t, err := s.store.Tenant(info.deadline, tenantID)
	return err == nil && t.config.origins.Allow(h, r, exposedHeaders)
}

// respondToPreflight responds to a preflight for a route that pages of other origins may call, and reports whether r is
// one. The header Allow has the methods of the path. To a request with another method it lets pages read the 405.
// browser has the patterns of such routes, all of which are in mux.
func (s *server) respondToPreflight(w http.ResponseWriter, r *http.Request, mux *http.ServeMux,
	browser map[string]bool) bool {
	h, info := w.Header(), requestInfoOf(w)
	methods := h.Get("Allow")
	routed := *r
	routed.Method, _, _ = strings.Cut(methods, ",")
	_, pattern := mux.Handler(&routed)
	if !browser[pattern] || len(r.Header["Origin"]) == 0 {
		return false
	}
	tenantID := defaultTenant
	if strings.Contains(pattern, " /{tenantId}/") {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
		tenantID, _ = url.PathUnescape(first)
	}
	info.deadline = info.start.Add(publicTimeout)
	if !s.setOrigin(h, r, info, tenantID) || !cors.IsPreflight(r, r.Method) {
		return false
	}
	cors.WritePreflight(w, r, methods)
	return true
}

// respondToLostPreflight lets pages of allowed origins read the 404 of a path that would belong to the gateway if there
// were such a route. It responds to r, and reports true, if r is such a page's preflight: the 404 comes afterwards.
func (s *server) respondToLostPreflight(w http.ResponseWriter, r *http.Request) bool {
	if len(r.Header["Origin"]) == 0 {
		return false
	}
	tenantID, _, _ := strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
	if tenantID == "v1" {
		tenantID = defaultTenant
	}
	info := requestInfoOf(w)
	info.deadline = info.start.Add(publicTimeout)
	if !s.setOrigin(w.Header(), r, info, tenantID) || !cors.IsPreflight(r, r.Method) {
		return false
	}
	cors.WritePreflight(w, r, verifyMethods)
	return true
}

// verifyMethods are those with which a page may call verify.
const verifyMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"

// isPagesPreflight reports whether a request for verify is the preflight of an allowed page that calls verify itself.
// A proxy, which describes its client's request in headers, asks for the service behind it: then the preflight is not
// such a one, nor is it with preflight=pass. allowOrigin has set the headers of w.
func isPagesPreflight(w http.ResponseWriter, r *http.Request) bool {
	allowed := len(w.Header()["Access-Control-Allow-Origin"]) > 0
	if !allowed || !cors.IsPreflight(r, r.Method) || r.URL.Query().Has("preflight") {
		return false
	}
	for _, name := range []string{
		"X-Forwarded-Method", "X-Forwarded-Uri", "X-Original-Method", "X-Original-Uri", "X-Original-Url",
	} {
		if len(r.Header[name]) > 0 {
			return false
		}
	}
	return true
}

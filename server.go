package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/idtoken"
	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
)

// All calls of the store for one request share one deadline, so that a response comes within 2 s after the request's
// last byte.
const (
	publicTimeout = 900 * time.Millisecond
	adminTimeout  = 1700 * time.Millisecond
)

// server serves the HTTP contract from what the store keeps.
type server struct {
	options        serverOptions
	store          *store
	log            *telemetry.Logger
	metrics        *metrics
	usage          *usageStats
	gateway        *gateway.Gateway
	handler        http.Handler // serves all routes
	nearCapacity   func() bool  // reports whether connections are scarce
	adminTokenHash [sha256.Size]byte
	metricsHash    [sha256.Size]byte // of the metrics token
	processID      string            // random; the IDs of requests begin with it
	requests       atomic.Int64      // the number of requests that were given an ID
	publicBodies   bodyReader
	adminBodies    bodyReader
	draining       atomic.Bool // the server is about to stop
	google, apple  *signInProvider
	defaultTenant  sync.Once    // logs that the tenant default does not exist
	untrustedProxy sync.Once    // logs that logins come through a proxy that is not trusted
	loggedFull     atomic.Int64 // when the log last said that Redis is short of memory, in Unix nanoseconds
}

// serverOptions is what the operator sets.
type serverOptions struct {
	adminToken     string         // the operator's; "" to create a random one
	metricsToken   string         // opens /metrics and nothing else; "" if only the operator may read them
	loginLimit     int64          // logins a minute of one client address; 0 for no limit
	trustedProxies []netip.Prefix // whose X-Forwarded-For counts
	accessLog      bool           // log a line for each request
	googleKeysURL  string         // of the keys that sign Google's ID tokens
	appleKeysURL   string         // of the keys that sign Apple's ID tokens
	gateway        gateway.Options
	maxGatewayBody int64 // bytes of a request to the gateway
}

// newServer returns a server on store. nearCapacity reports whether connections are scarce. It returns an error if
// anything is missing.
func newServer(store *store, log *telemetry.Logger, options serverOptions, nearCapacity func() bool) (*server, error) {
	if store == nil || log == nil || options.adminToken == "" || nearCapacity == nil {
		return nil, errors.New("a server needs a store, a logger, an admin token and a measure of its capacity")
	}
	s := &server{
		options:        options,
		store:          store,
		log:            log,
		usage:          newUsageStats(store),
		gateway:        gateway.New(options.gateway, log),
		nearCapacity:   nearCapacity,
		adminTokenHash: sha256.Sum256([]byte(options.adminToken)),
		metricsHash:    sha256.Sum256([]byte(options.metricsToken)),
		processID:      rand.Text()[:13],
		publicBodies:   bodyReader{maxBodyBytes, smallBodyBytes, make(chan struct{}, maxLargePublicBodies)},
		adminBodies:    bodyReader{maxBodyBytes, smallBodyBytes, make(chan struct{}, maxLargeAdminBodies)},
		google: &signInProvider{idtoken.Google(options.googleKeysURL, log), "google", "Google",
			"google_oauth", "google_logged_in"},
		apple: &signInProvider{idtoken.Apple(options.appleKeysURL, log), "apple", "Apple",
			"apple_oauth", "apple_logged_in"},
	}
	routes := s.routes()
	patterns := make([]string, len(routes))
	for i, r := range routes {
		patterns[i] = r.pattern
	}
	s.metrics = newMetrics(patterns)
	s.handler = s.serveRoutes(routes)
	return s, nil
}

// serveRoutes returns the http.Handler that serves the routes, with everything that each request passes before.
func (s *server) serveRoutes(routes []route) http.Handler {
	mux := http.NewServeMux()
	browser := make(map[string]bool)
	for _, r := range routes {
		mux.Handle(r.pattern, s.toHandler(r))
		browser[r.pattern] = r.access.browser
	}
	return s.middleware(mux, browser)
}

// A step is one thing that is done for a request: it adds to info, or refuses the request with an error, before it has
// written anything. A handler is the last step, which writes the response.
type step func(w http.ResponseWriter, r *http.Request, info *requestInfo) error

// access is what a request passes before its handler.
type access struct {
	timeout time.Duration   // for the calls of the store
	steps   []step          // in order
	browser bool            // pages of other origins may call the route, see cors.go
	format  *llmwire.Format // of the responses; nil for tollgate's own
}

// in returns the access of a route whose responses, errors included, have a format of the gateway.
func (a access) in(format llmwire.Format) access {
	a.format = &format
	return a
}

// forAdmins returns the access of a route that pages of other origins may not call.
func forAdmins(steps ...step) access { return access{timeout: adminTimeout, steps: steps} }

// route is a pattern of http.ServeMux, what its requests pass, and the handler that responds.
type route struct {
	pattern string
	access  access
	handler step
}

// toHandler returns the http.Handler that runs the steps of a route and then its handler.
func (s *server) toHandler(route route) http.Handler {
	steps := append(slices.Clone(route.access.steps), route.handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := w.(*responseRecorder)
		response.routing = false // what is sent from here on is not ServeMux's
		info := &response.info
		info.deadline = info.start.Add(route.access.timeout)
		info.format = route.access.format
		for _, step := range steps {
			if err := step(w, r, info); err != nil {
				s.writeError(w, r, err)
				return
			}
		}
	})
}

// routes returns every route. Each route of tenants has two patterns: below the tenant's ID, and without it for the
// tenant default.
func (s *server) routes() (routes []route) {
	for _, r := range slices.Concat(s.keyRoutes(), s.gatewayRoutes(), s.adminRoutes()) {
		method, path := routeOf(r.pattern)
		for _, prefix := range []string{"/{tenantId}", ""} {
			r.pattern = strings.TrimSpace(method + " " + prefix + path)
			routes = append(routes, r)
		}
	}
	return append(routes, s.otherRoutes()...)
}

// keyRoutes returns the routes of tenants for logins and for the holders of API keys.
func (s *server) keyRoutes() []route {
	var (
		public     = s.forBrowsers(publicTimeout, s.loadTenant)
		signIn     = s.forBrowsers(adminTimeout, s.publicBodies.read, s.loadTenant) // the provider takes its time
		verify     = s.forBrowsers(publicTimeout, s.readVerifyKey, s.loadTenant)
		holder     = s.forBrowsers(publicTimeout, s.readAPIKey, refuseBody, s.loadTenant)
		holderBody = s.forBrowsers(publicTimeout, s.readAPIKey, s.publicBodies.read, s.loadTenant)
	)
	return []route{
		{"POST /auth/anonymous", public, s.loginAnonymous},
		{"POST /auth/google", signIn, s.signIn(s.google)},
		{"POST /auth/apple", signIn, s.signIn(s.apple)},
		{"GET /auth/key", holder, s.showOwnKey},
		{"/auth/verify", verify, s.verify}, // any method: some proxies forward the client's own
		{"POST /tokens/consume", holderBody, s.consume},
		{"POST /tokens/holds", holderBody, s.hold},
		{"POST /tokens/holds/{holdId}/settle", holderBody, s.settleHold},
		{"DELETE /tokens/holds/{holdId}", holder, s.cancelHold},
	}
}

// gatewayRoutes returns the routes of tenants to their providers. Each row says the format of its responses.
func (s *server) gatewayRoutes() []route {
	var (
		caller = s.forBrowsers(publicTimeout, s.readSDKKey, s.loadTenant, s.readGatewayBody, s.loadTenant)
		reader = s.forBrowsers(publicTimeout, formatOfHeader, s.readSDKKey, refuseBody, s.loadTenant, s.requireKey)
	)
	return []route{
		{"POST /v1/chat/completions", caller.in(llmwire.OpenAIChat), s.generate},
		{"POST /v1/messages", caller.in(llmwire.AnthropicMessages), s.generate},
		{"POST /v1/messages/count_tokens", caller.in(llmwire.AnthropicMessages), s.countTokens},
		{"GET /v1/models", reader.in(llmwire.OpenAIChat), s.listModels},
		{"GET /v1/models/{model}", reader.in(llmwire.OpenAIChat), s.showModel},
	}
}

// adminRoutes returns the routes of tenants for their admins.
func (s *server) adminRoutes() []route {
	var (
		admin = forAdmins(s.requireAdmin, refuseBody, s.loadTenant)
		// A body may be slow to come: the token is checked before, so that strangers send none, and again after.
		adminBody = forAdmins(s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.loadTenant)
		// A route that does not use the config serves a tenant whose config is broken, too.
		repair     = forAdmins(s.requireAdmin, refuseBody, s.requireTenant)
		repairBody = forAdmins(s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.requireTenant)
	)
	return []route{
		{"GET /admin/config", admin, s.showConfig},
		{"PUT /admin/config", repairBody, s.replaceConfig},
		{"GET /admin/config/history", repair, s.showHistory},
		{"GET /admin/config/history/{etag}", repair, s.showVersion},
		{"POST /admin/config/history/{etag}/restore", repair, s.restoreVersion},
		{"POST /admin/keys", adminBody, s.issueUserKey},
		{"GET /admin/keys", repair, s.listUserKeys},
		{"GET /admin/keys/{apiKey}", repair, s.showKey},
		{"PATCH /admin/keys/{apiKey}", adminBody, s.updateKey},
		{"POST /admin/keys/{apiKey}/rotate", repair, s.rotateKey},
		{"DELETE /admin/keys/{apiKey}", repair, s.revokeKey},
		{"GET /admin/usage", repair, s.showUsage},
		{"POST /admin/tokens", repair, s.issueAdminToken},
		{"DELETE /admin/tokens", repair, s.revokeAdminTokens},
	}
}

// otherRoutes returns the routes that are not those of a tenant.
func (s *server) otherRoutes() []route {
	var (
		open         = access{timeout: publicTimeout, steps: []step{refuseBody}}
		operator     = forAdmins(s.requireOperator, refuseBody)
		operatorBody = forAdmins(s.requireOperator, s.adminBodies.read)
		metrics      = forAdmins(s.requireMetrics, refuseBody)
	)
	return []route{
		{"GET /admin/tenants", operator, s.listTenants},
		{"POST /admin/tenants", operatorBody, s.createTenant},
		{"DELETE /admin/tenants/{tenantId}", operator, s.deleteTenant},
		{"GET /metrics", metrics, s.showMetrics},
		{"GET /openapi.json", open, s.showOpenAPI},
		{"GET /healthz", open, s.showHealth},
		{"GET /readyz", open, s.showReadiness},
	}
}

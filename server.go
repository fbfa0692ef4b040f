package main

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/idtoken"
	"tollgate/internal/llmwire"
	"tollgate/internal/stripe"
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
	stripe         *stripe.Client
	stripeCalls    *fairpool.Pool // requests that wait for Stripe
	webhooks       *fairpool.Pool // those of Stripe that ask it something
	handler        http.Handler   // serves all routes
	resources      []string       // paths of the gateway's routes, below /v1/, without those that have an ID
	nearCapacity   func() bool    // reports whether connections are scarce
	operatorTokens *bearertoken.Set
	metricsTokens  *bearertoken.Set     // each opens /metrics and nothing else
	guesses        *bearertoken.Guesses // at the tokens of operators and admins
	processID      string               // random; the IDs of requests begin with it
	requests       atomic.Int64         // the number of requests that were given an ID
	bodies         bodyPools
	turns          fairpool.Turns // of tenants, to expensive requests
	deployment     deployment
	draining       atomic.Bool  // the server is about to stop
	sessions       atomic.Int64 // connections that are WebSockets now
	google, apple  *signInProvider
	defaultTenant  sync.Once    // logs that the tenant default does not exist
	untrustedProxy sync.Once    // logs that logins come through a proxy that is not trusted
	loggedFull     atomic.Int64 // when the log last said that Redis is short of memory, in Unix nanoseconds
}

// serverOptions is what the operator sets.
type serverOptions struct {
	adminTokens    *bearertoken.Set // the operator's, one at least
	metricsTokens  *bearertoken.Set // each opens /metrics and nothing else; none if only the operator may read them
	loginLimit     int64            // logins a minute of one client address; 0 for no limit
	trustedProxies []netip.Prefix   // whose X-Forwarded-For counts
	accessLog      bool             // log a line for each request
	googleKeysURL  string           // of the keys that sign Google's ID tokens
	appleKeysURL   string           // of the keys that sign Apple's ID tokens
	stripeURL      string           // of Stripe's API
	gateway        gateway.Options
	maxGatewayBody int64 // bytes of a request to the gateway
}

// newServer returns a server on store. nearCapacity reports whether connections are scarce. It returns an error if
// anything is missing.
func newServer(store *store, log *telemetry.Logger, options serverOptions, nearCapacity func() bool) (*server, error) {
	if store == nil || log == nil || options.adminTokens == nil || options.metricsTokens == nil || nearCapacity == nil {
		return nil, errors.New("a server needs a store, a logger, an admin token and a measure of its capacity")
	}
	s := &server{
		options:        options,
		store:          store,
		log:            log,
		usage:          newUsageStats(store),
		gateway:        gateway.New(options.gateway, log),
		stripe:         stripe.NewClient(options.stripeURL),
		stripeCalls:    fairpool.New(maxStripeCalls, options.gateway.TenantShare),
		nearCapacity:   nearCapacity,
		operatorTokens: options.adminTokens,
		metricsTokens:  options.metricsTokens,
		guesses:        bearertoken.NewGuesses(log),
		processID:      rand.Text()[:13],
		bodies:         newBodyPools(options.gateway.TenantShare),
		webhooks:       fairpool.New(maxWebhooks, options.gateway.TenantShare),
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
	s.resources = resourcesOf(s.gatewayRoutes())
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

// resourcesOf returns the paths of routes below /v1/, each once, without those that have a wildcard.
func resourcesOf(routes []route) (resources []string) {
	for _, r := range routes {
		_, path := routeOf(r.pattern)
		resource := strings.TrimPrefix(path, "/v1/")
		if !strings.Contains(resource, "{") && !slices.Contains(resources, resource) {
			resources = append(resources, resource)
		}
	}
	return resources
}

// A step is one thing that is done for a request: it adds to info, or refuses the request with an error, before it has
// written anything. A handler is the last step, which writes the response.
type step func(w http.ResponseWriter, r *http.Request, info *requestInfo) error

// access is what a request passes before its handler.
type access struct {
	timeout time.Duration   // for the calls of the store
	steps   []step          // in order
	browser bool            // pages of other origins may call the route
	format  *llmwire.Format // of the responses; nil for tollgate's own
}

// in returns the access of a route whose responses, errors included, have a format of the gateway.
func (a access) in(format llmwire.Format) access {
	a.format = &format
	return a
}

// toHandler returns the http.Handler that runs the steps of a route and then its handler.
func (s *server) toHandler(route route) http.Handler {
	steps := append(slices.Clone(route.access.steps), route.handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := w.(*responseRecorder)
		response.routing = false // what is sent from here on is not ServeMux's
		info := &response.info
		info.deadline = info.start.Add(route.access.timeout)
		if info.format = route.access.format; info.format != nil {
			setRequestID(w, *info.format)
		}
		for _, step := range steps {
			if err := step(w, r, info); err != nil {
				s.writeError(w, r, err)
				return
			}
		}
	})
}

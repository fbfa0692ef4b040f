package main

import (
	"bytes"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/clientip"
	"tollgate/internal/connlimit"
	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/idtoken"
	"tollgate/internal/llmwire"
	"tollgate/internal/stripe"
	"tollgate/internal/telemetry"
	"tollgate/internal/webpage"
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
	started        time.Time
	connections    func() (open, most int) // of clients; set before requests are served
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
	adminPage      bool  // serve the admin page
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
		started:        time.Now(),
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
	if options.adminPage {
		page, err := fs.Sub(pageFiles, "page")
		if err != nil {
			return nil, err
		}
		files, err := webpage.New(page)
		if err != nil {
			return nil, err
		}
		routes = append(routes, pageRoutes(files)...)
	}
	patterns := make([]string, len(routes))
	for i, r := range routes {
		patterns[i] = r.pattern
	}
	s.metrics = newMetrics(patterns)
	s.resources = resourcesOf(s.gatewayRoutes())
	s.handler = s.serveRoutes(routes)
	return s, nil
}

// pageFiles is the page for admins: HTML, modules of JavaScript and a style sheet, as they are.
//
//go:embed page
var pageFiles embed.FS

// pageRoutes returns the routes of the page for admins. It needs no credential: it asks for one, and sends it to the
// admin routes. ServeMux would refuse /admin/{file...} beside the routes of tenants.
func pageRoutes(page webpage.Page) []route {
	open := access{timeout: publicTimeout, steps: []step{refuseBody}}
	show := func(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
		if !page.Serve(w, r, r.PathValue("file")) {
			return errNotFound
		}
		return nil
	}
	return []route{{"GET /admin", open, show}, {"GET /admin/{$}", open, show}, {"GET /admin/page/{file}", open, show}}
}

// route is a pattern of http.ServeMux, what its requests pass, and the handler that responds.
type route struct {
	pattern string
	access  access
	handler step
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

const (
	maxBodyBytes   = 1 << 20  // on all routes but those of the gateway
	maxFormBytes   = 32 << 20 // of a form with a sound: providers accept files of 25 MB
	smallBodyBytes = 4 << 10  // first bytes of a body that need no room in a pool: no charge needs more

	// Bytes of bodies that are in memory at a time, beyond the first of each. Anybody may send a body to a public route,
	// since it is read before Redis is queried for the key.
	publicBodyMemory  = 16 << 20
	adminBodyMemory   = 64 << 20
	gatewayBodyMemory = 256 << 20 // also of providers' responses
	webhookBodyMemory = 8 * maxBodyBytes
)

// A large body of a request to the gateway may take as long as it needs at minUploadRate bytes a second, on average,
// and uploadPatience more.
const (
	minUploadRate  = 16 << 10 // bytes
	uploadPatience = 5 * time.Second
)

var (
	errBodyTooLarge = errors.New("body too large")
	errEncodedBody  = errors.New("body has a content coding")
	errSlowBody     = errors.New("body comes too slowly")
	errNoMemory     = fmt.Errorf("%w: too many large bodies are in memory", ErrUnavailable)
)

// bodyPools are the pools of memory for bodies.
type bodyPools struct{ public, admin, gateway, webhook *fairpool.Pool }

func newBodyPools(tenantShare float64) bodyPools {
	return bodyPools{
		public:  fairpool.New(publicBodyMemory, 1), // of client addresses, without tenants
		admin:   fairpool.New(adminBodyMemory, tenantShare),
		gateway: fairpool.New(gatewayBodyMemory, tenantShare),
		webhook: fairpool.New(webhookBodyMemory, 1), // of client addresses, without tenants
	}
}

// pools returns the state of what all requests share, by name.
func (s *server) pools() map[string]fairpool.Stats {
	pools := s.gateway.Pools()
	pools["public_bodies"], pools["admin_bodies"], pools["gateway_bodies"] =
		s.bodies.public.Stats(), s.bodies.admin.Stats(), s.bodies.gateway.Stats()
	pools["stripe"] = s.stripeCalls.Stats()
	pools["webhook_bodies"], pools["webhooks"] = s.bodies.webhook.Stats(), s.webhooks.Stats()
	return pools
}

// writePools writes the state of what all requests share.
func (s *server) writePools(p *telemetry.Page) {
	pools := s.pools()
	names := slices.Sorted(maps.Keys(pools))
	p.Family("pool_size", "gauge", "What all requests may take of a pool together.")
	for _, name := range names {
		p.Sample("pool_size", float64(pools[name].Size), "pool", name)
	}
	p.Family("pool_used", "gauge", "What they have taken.")
	for _, name := range names {
		p.Sample("pool_used", float64(pools[name].Used), "pool", name)
	}
	p.Family("pool_refused_total", "counter", "Requests that got nothing of a pool.")
	for _, name := range names {
		p.Sample("pool_refused_total", float64(pools[name].OverShare), "pool", name, "reason", "share")
		p.Sample("pool_refused_total", float64(pools[name].Full), "pool", name, "reason", "full")
	}
}

// readPublicBody is the step that reads a body that anybody may send: the share is that of a client address. Errors are
// those of readBody.
func (s *server) readPublicBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	address := clientip.Of(r, s.options.trustedProxies)
	info.memory = s.bodies.public.Claim(address, address)
	return readBody(w, r, info, smallBodyBytes, maxBodyBytes)
}

// readAdminBody is the step that reads the body of an admin, whose token was checked. It may be slow, even while
// connections are scarce, if the admin has a place among the requests that wait. Errors are those of readBody.
func (s *server) readAdminBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	tenant, admin := pathTenantID(r), info.actor.tokenHash
	if admin == "" { // the operator, who must be able to repair what the admins of a tenant do
		tenant = ""
	}
	info.memory, info.place = s.bodies.admin.Claim(tenant, admin), s.gateway.Place(tenant, admin)
	if gateway.TakePlace(info.place) == nil {
		connlimit.Admit(r.Context())
	}
	return readBody(w, r, info, smallBodyBytes, maxBodyBytes)
}

// readGatewayBody is the step that reads the body of a request to the gateway, of up to options.maxGatewayBody bytes,
// or maxFormBytes if it is a form.
// One over gateway.FreeBodyBytes, or of unknown size, is read only for an API key that exists, so that strangers can
// take neither memory nor the time that it needs. Such a request has its place among those that wait for a provider
// from then on. Errors: those of readBody and requireKey; a 503 if the key has no place; errSlowBody.
func (s *server) readGatewayBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	info.memory = s.bodies.gateway.Claim(info.tenantID, info.apiKey)
	info.place = s.gateway.Place(info.tenantID, info.apiKey)
	config := info.tenant.config
	info.place.SetShare(max(info.place.Share(), config.busiest)) // until the key's group is known
	limit := s.options.maxGatewayBody
	if info.format.TakesForm() {
		limit = maxFormBytes
	}
	if r.ContentLength > limit || 0 <= r.ContentLength && r.ContentLength <= gateway.FreeBodyBytes {
		return readBody(w, r, info, gateway.FreeBodyBytes, limit)
	}
	err := s.requireKey(w, r, info)
	if err == nil {
		info.place.SetShare(config.groups[info.group].maxConcurrent)
		err = gateway.TakePlace(info.place)
	}
	if err != nil {
		w.Header().Set("Connection", "close")
		return err
	}
	connlimit.Admit(r.Context())
	r.Body = &uploadReader{ReadCloser: r.Body, client: http.NewResponseController(w), start: time.Now()}
	return readBody(w, r, info, gateway.FreeBodyBytes, limit)
}

// withoutBody returns a step that does what check does. If that refuses a request, the response is sent at once, and
// its body is not read.
func withoutBody(check step) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		err := check(w, r, info)
		if err != nil && r.ContentLength != 0 {
			endUnread(w)
		}
		return err
	}
}

// readWebhookBody is the step that reads the body of a webhook. Anybody can send one with some signature, so the share
// is that of a client address, and the first bytes, which nearly all events fit into, need no room in the pool. Errors
// are those of readBody: 503 for a body that finds no room.
func (s *server) readWebhookBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	address := clientip.Of(r, s.options.trustedProxies)
	info.memory = s.bodies.webhook.Claim(address, address)
	return readBody(w, r, info, gateway.FreeBodyBytes, maxBodyBytes)
}

// readBody reads the request's body, of at most limit bytes. Those beyond the first free take memory of info.memory as
// they arrive. The time that the body takes to come does not count for the deadline. Errors: errEncodedBody;
// errBodyTooLarge; errNoMemory; errSlowBody; a badRequestError if the body ends early.
func readBody(w http.ResponseWriter, r *http.Request, info *requestInfo, free, limit int64) (err error) {
	if len(r.Header["Content-Encoding"]) > 0 {
		return errEncodedBody
	}
	if r.ContentLength > limit { // refused before a client that expects 100 Continue sends it
		w.Header().Set("Connection", "close")
		return errBodyTooLarge
	}
	began := time.Now()
	info.body, err = info.memory.ReadAll(r.Body, r.ContentLength, free, limit)
	info.deadline = info.deadline.Add(time.Since(began))
	if err == nil {
		return nil
	}
	w.Header().Set("Connection", "close")
	switch err {
	case fairpool.ErrTooLong:
		return errBodyTooLarge
	case fairpool.ErrShare, fairpool.ErrFull:
		return errNoMemory
	case errSlowBody:
		return err
	}
	return badRequestError("Body could not be read to its end")
}

// An uploadReader reads a body that may take longer than those of other requests. Its error is errSlowBody when too
// little has come.
type uploadReader struct {
	io.ReadCloser
	client *http.ResponseController
	start  time.Time
	bytes  int64 // that have come
}

func (u *uploadReader) Read(p []byte) (int, error) {
	earned := time.Duration(u.bytes) * time.Second / minUploadRate
	end := u.start.Add(uploadPatience + earned)
	_ = u.client.SetReadDeadline(end)
	_ = u.client.SetWriteDeadline(end.Add(writeTimeout)) // for the response
	n, err := u.ReadCloser.Read(p)
	u.bytes += int64(n)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		err = errSlowBody
	}
	return n, err
}

// maxEmptyObject bounds a {} with its white space, in bytes.
const maxEmptyObject = 64

// refuseBody is the step of routes that take no body: to ignore one would hide a mistake of the client. {} counts as
// none, since some HTTP clients send it with each POST.
func refuseBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if r.ContentLength == 0 {
		return nil
	}
	if r.ContentLength <= maxEmptyObject { // negative if it is chunked
		began := time.Now()
		body, err := io.ReadAll(io.LimitReader(r.Body, maxEmptyObject+1))
		info.deadline = info.deadline.Add(time.Since(began))
		if err == nil && len(body) <= maxEmptyObject && (len(body) == 0 || isEmptyObject(body)) {
			return nil
		}
	}
	endUnread(w)
	return badRequestError("This route takes no body")
}

// isEmptyObject reports whether body is {}, perhaps with white space around or in it.
func isEmptyObject(body []byte) bool {
	const space = " \t\r\n" // of JSON
	inner, opened := bytes.CutPrefix(bytes.Trim(body, space), []byte("{"))
	inner, closed := bytes.CutSuffix(inner, []byte("}"))
	return opened && closed && len(bytes.Trim(inner, space)) == 0
}

// refuseAdminBody does what refuseBody does, on routes of a tenant's admins. A {} may be slow to come, so the token is
// checked again after it.
func (s *server) refuseAdminBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if err := refuseBody(w, r, info); err != nil || r.ContentLength == 0 {
		return err
	}
	return s.requireAdmin(w, r, info)
}

// endUnread makes the response the last of its connection, and does without the rest of the request's body, for which
// net/http would wait after the response, until readTimeout.
func endUnread(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

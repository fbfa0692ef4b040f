package main

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/stripe"
	"tollgate/internal/telemetry"
)

const (
	maxNamedTenants = 1000 // further tenants are counted together as otherName
	maxNamedGroups  = 1000 // of all tenants together; further ones are counted as otherName
	otherName       = "other"
)

// metrics counts events and writes the counts in the Prometheus text format
// (https://prometheus.io/docs/instrumenting/exposition_formats/). Counting takes no lock, except for new keys and for a
// tenant's first event.
type metrics struct {
	routes map[string]*routeMetrics // by pattern; "" for requests that match none
	sorted []*routeMetrics          // each once, by path

	tenants atomic.Pointer[map[string]*tenantMetrics] // the map is replaced, never changed, under mu

	gateway gatewayMetrics

	mu     sync.Mutex
	issued map[issuedLabels]int64 // guarded by mu
}

// routeMetrics counts the requests of one path.
type routeMetrics struct {
	path      string
	responses map[string]*[len(statuses) + 1]atomic.Int64 // by method, then in the order of statuses
	durations *telemetry.Histogram
}

// statuses are the statuses counted by themselves. All others are counted together.
var statuses = [...]int{
	101, 200, 201, 204, 304, 400, 401, 402, 403, 404, 405, 408, 409, 412, 413, 415, 422, 426, 429, 431, 499,
	500, 502, 503, 504, 508, 529,
}

// methods are the methods counted by themselves, and otherName for all others.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", otherName}

// durations are the upper bounds of the buckets of request durations, in seconds.
var durations = []float64{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2}

// tenantMetrics counts the charges of one tenant, or of all that have no name of their own.
type tenantMetrics struct {
	tokensCharged atomic.Uint64 // may wrap, which Prometheus takes for a restart
	refused       [len(refusals)]atomic.Int64
	cached        [len(cacheResults)]atomic.Int64
	payments      [len(eventNames)][len(eventResults)]atomic.Int64
}

// cacheResults has the name of each result of the response cache.
var cacheResults = [...]string{
	gateway.CacheHit: "hit", gateway.CacheMiss: "miss", gateway.CacheBypass: "bypass",
	gateway.CacheStored: "stored", gateway.CacheSkipped: "skipped",
}

// refusal is the reason why a charge was refused.
type refusal int

const (
	notRefused refusal = iota // or for a reason that is not counted
	refusedKey
	refusedBalance
	refusedRate
	refusedIdempotencyKey
	refusedGroup
)

// refusals has the name of each refusal that is counted.
var refusals = [...]string{
	refusedKey: "key", refusedBalance: "balance", refusedRate: "rate", refusedIdempotencyKey: "idempotency_key",
	refusedGroup: "group",
}

// An eventResult is what came of a webhook.
type eventResult int

const (
	eventDone     eventResult = iota
	eventReplayed             // it was done before
	eventIgnored              // nothing is to be done
	eventRefused              // it is not Stripe's, or not for this account
	eventFailed               // it is not understood, or Stripe refuses to say more
	eventDelayed              // Redis or Stripe does not respond, or another event must come first
)

// eventResults has the name of each result.
var eventResults = [...]string{
	eventDone: "done", eventReplayed: "replayed", eventIgnored: "ignored", eventRefused: "refused",
	eventFailed: "failed", eventDelayed: "delayed",
}

// eventNames has the name of each kind of event, and one for what is not read.
var eventNames = [...]string{
	stripe.Ignored: "other", stripe.SessionCompleted: "session_completed", stripe.SessionFailed: "session_failed",
	stripe.InvoicePaid: "invoice_paid", stripe.SubscriptionChanged: "subscription_changed",
	stripe.SubscriptionDeleted: "subscription_deleted", stripe.ChargeRefunded: "charge_refunded",
	stripe.DisputeChanged: "dispute_changed",
}

type issuedLabels struct{ tenant, group string }

// newMetrics returns the metrics of a server whose routes are patterns, as http.ServeMux takes them: "GET /x", or "/x"
// for any method.
func newMetrics(patterns []string) *metrics {
	m := &metrics{routes: make(map[string]*routeMetrics), issued: make(map[issuedLabels]int64)}
	m.tenants.Store(new(map[string]*tenantMetrics))
	byPath := make(map[string]*routeMetrics)
	for _, pattern := range append([]string{""}, patterns...) {
		method, path := routeOf(pattern)
		r := byPath[path]
		if r == nil {
			r = &routeMetrics{
				path: path, responses: make(map[string]*[len(statuses) + 1]atomic.Int64),
				durations: telemetry.NewHistogram(durations),
			}
			byPath[path] = r
			m.sorted = append(m.sorted, r)
		}
		for _, name := range methods {
			if method == "" || name == method || name == "HEAD" && method == "GET" || name == otherName {
				r.responses[name] = new([len(statuses) + 1]atomic.Int64)
			}
		}
		m.routes[pattern] = r
	}
	slices.SortFunc(m.sorted, func(a, b *routeMetrics) int { return strings.Compare(a.path, b.path) })
	return m
}

// routeOf returns the method and the path of a pattern. The method is "" if the pattern is for any, and the path is
// otherName if there is no pattern.
func routeOf(pattern string) (method, path string) {
	if pattern == "" {
		return "", otherName
	}
	if method, path, ok := strings.Cut(pattern, " "); ok {
		return method, path
	}
	return "", pattern
}

// request counts a response to a request that matched pattern, or none if that is "".
func (m *metrics) request(pattern, method string, status int, took time.Duration) {
	r := m.routes[pattern]
	if r == nil {
		r = m.routes[""]
	}
	responses := r.responses[method]
	if responses == nil {
		responses = r.responses[otherName]
	}
	i := slices.Index(statuses[:], status)
	if i < 0 {
		i = len(statuses)
	}
	responses[i].Add(1)
	r.durations.Observe(took)
}

// charged counts tokens that were charged to a key of a tenant, which must exist: names are bounded, but kept for good.
func (m *metrics) charged(tenantID string, tokens int64) {
	m.tenant(tenantID).tokensCharged.Add(uint64(tokens))
}

// refusedCharge counts a charge that was refused to a tenant that exists.
func (m *metrics) refusedCharge(tenantID string, reason refusal) {
	m.tenant(tenantID).refused[reason].Add(1)
}

// cacheUsed counts what the response cache did for a tenant that exists.
func (m *metrics) cacheUsed(tenantID string, result gateway.CacheResult) {
	m.tenant(tenantID).cached[result].Add(1)
}

// paymentEvent counts a webhook of a tenant that exists.
func (m *metrics) paymentEvent(tenantID string, kind stripe.Kind, result eventResult) {
	m.tenant(tenantID).payments[kind][result].Add(1)
}

// tenant returns the counters of a tenant, which are those of otherName if there are too many tenants.
func (m *metrics) tenant(tenantID string) *tenantMetrics {
	if t := findTenant(*m.tenants.Load(), tenantID); t != nil {
		return t
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	tenants := *m.tenants.Load()
	if t := findTenant(tenants, tenantID); t != nil {
		return t
	}
	if len(tenants) >= maxNamedTenants {
		tenantID = otherName
	}
	more := make(map[string]*tenantMetrics, len(tenants)+1)
	maps.Copy(more, tenants)
	t := new(tenantMetrics)
	more[tenantID] = t
	m.tenants.Store(&more)
	return t
}

func findTenant(tenants map[string]*tenantMetrics, tenantID string) *tenantMetrics {
	t := tenants[tenantID]
	if t == nil && len(tenants) >= maxNamedTenants {
		t = tenants[otherName]
	}
	return t
}

// keyIssued counts a new API key of a tenant that exists.
func (m *metrics) keyIssued(tenantID, group string) {
	labels := issuedLabels{tenantID, group}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.issued[labels]; !ok && len(m.issued) >= maxNamedGroups {
		labels = issuedLabels{otherName, otherName}
	}
	m.issued[labels]++
}

// write writes all counts.
func (m *metrics) write(p *telemetry.Page) {
	m.writeRequests(p)
	m.writeDurations(p)
	m.writeTenants(p)
	m.gateway.write(p)
}

func (m *metrics) writeRequests(p *telemetry.Page) {
	const name = "http_requests_total"
	p.Family(name, "counter", "Requests, by the pattern of their route.")
	for _, r := range m.sorted {
		for _, method := range methods {
			responses := r.responses[method]
			if responses == nil {
				continue
			}
			for i := range responses {
				status := otherName
				if i < len(statuses) {
					status = strconv.Itoa(statuses[i])
				}
				if n := responses[i].Load(); n > 0 {
					p.Sample(name, float64(n), "route", r.path, "method", method, "status", status)
				}
			}
		}
	}
}

func (m *metrics) writeDurations(p *telemetry.Page) {
	const name = "http_request_duration_seconds"
	p.Family(name, "histogram", "Time from a request's header to the end of its response, or until a WebSocket is open.")
	for _, r := range m.sorted {
		if r.durations.Count() > 0 {
			p.Histogram(name, r.durations, "route", r.path)
		}
	}
}

func (m *metrics) writeTenants(p *telemetry.Page) {
	tenants := *m.tenants.Load()
	names := slices.Sorted(maps.Keys(tenants))
	p.Family("tokens_charged_total", "counter", "Tokens taken by charges, each charge once.")
	for _, name := range names {
		p.Sample("tokens_charged_total", float64(tenants[name].tokensCharged.Load()), "tenant", name)
	}
	p.Family("charges_refused_total", "counter", "Charges that took nothing: the key is unknown, its balance too small,"+
		" its rate used up, its Idempotency-Key used with other parameters, or its group removed.")
	for _, name := range names {
		for reason := refusedKey; int(reason) < len(refusals); reason++ {
			p.Sample("charges_refused_total", float64(tenants[name].refused[reason].Load()),
				"tenant", name, "reason", refusals[reason])
		}
	}
	p.Family("gateway_cache_total", "counter", "What the response cache did for requests, and with their responses.")
	for _, name := range names {
		for i, result := range cacheResults {
			if n := tenants[name].cached[i].Load(); n > 0 {
				p.Sample("gateway_cache_total", float64(n), "tenant", name, "result", result)
			}
		}
	}
	p.Family("payment_events_total", "counter", "Webhooks of Stripe with a current signature, by what came of them.")
	for _, name := range names {
		for kind, event := range eventNames {
			for result, count := range eventResults {
				if n := tenants[name].payments[kind][result].Load(); n > 0 {
					p.Sample("payment_events_total", float64(n), "tenant", name, "event", event, "result", count)
				}
			}
		}
	}
	m.mu.Lock()
	issued := maps.Clone(m.issued)
	m.mu.Unlock()
	p.Family("keys_issued_total", "counter", "API keys issued.")
	for labels, n := range issued {
		p.Sample("keys_issued_total", float64(n), "tenant", labels.tenant, "group", labels.group)
	}
}

// gatewayMetrics counts the requests of the gateway.
type gatewayMetrics struct {
	mu        sync.Mutex
	endpoints map[endpointLabels]*endpointMetrics // guarded by mu, as are their fields
	times     map[string]*endpointTimes           // by the endpoint's name; guarded by mu
}

const (
	maxNamedEndpoints = 1000 // of all tenants together; further ones are counted together as otherName
	maxTimedEndpoints = 100  // names of endpoints; further ones are counted as otherName
)

type endpointLabels struct{ tenant, endpoint string }

// endpointMetrics counts the requests of one tenant to one endpoint.
type endpointMetrics struct {
	responses map[int]int64           // by status; 0: any that is not in statuses
	tokens    [len(tokenKinds)]uint64 // in the order of tokenKinds
	sessions  time.Duration           // of all sessions that have ended
}

// tokenKinds are the kinds of tokens, of which each token has one, and how many of each were used.
var tokenKinds = [...]struct {
	direction, kind string
	of              func(u *llmwire.Usage) int64
}{
	{"input", "input", func(u *llmwire.Usage) int64 {
		return u.Input - u.CachedInput - u.CacheWrite - u.CacheWrite1h - u.AudioInput - u.CachedAudioInput - u.ImageInput
	}},
	{"input", "cached_input", func(u *llmwire.Usage) int64 { return u.CachedInput }},
	{"input", "cache_write", func(u *llmwire.Usage) int64 { return u.CacheWrite }},
	{"input", "cache_write_1h", func(u *llmwire.Usage) int64 { return u.CacheWrite1h }},
	{"input", "audio_input", func(u *llmwire.Usage) int64 { return u.AudioInput }},
	{"input", "cached_audio_input", func(u *llmwire.Usage) int64 { return u.CachedAudioInput }},
	{"input", "image_input", func(u *llmwire.Usage) int64 { return u.ImageInput }},
	{"output", "output", func(u *llmwire.Usage) int64 { return u.Output - u.AudioOutput - u.ImageOutput }},
	{"output", "audio_output", func(u *llmwire.Usage) int64 { return u.AudioOutput }},
	{"output", "image_output", func(u *llmwire.Usage) int64 { return u.ImageOutput }},
}

// endpointTimes has how long requests to one endpoint take as a whole, and until the first byte of the response.
type endpointTimes struct{ whole, firstByte *telemetry.Histogram }

// slowDurations are the upper bounds of the buckets of endpointTimes, in seconds.
var slowDurations = []float64{
	0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600,
}

// endpoint returns the counters of an endpoint of a tenant. The caller holds g.mu.
func (g *gatewayMetrics) endpoint(tenantID, name string) *endpointMetrics {
	labels := endpointLabels{tenantID, name}
	if g.endpoints[labels] == nil && len(g.endpoints) >= maxNamedEndpoints {
		labels = endpointLabels{otherName, otherName}
	}
	m := g.endpoints[labels]
	if m == nil {
		if g.endpoints == nil {
			g.endpoints = make(map[endpointLabels]*endpointMetrics)
		}
		m = &endpointMetrics{responses: make(map[int]int64)}
		g.endpoints[labels] = m
	}
	return m
}

// timesOf returns the times of an endpoint. The caller holds g.mu.
func (g *gatewayMetrics) timesOf(name string) *endpointTimes {
	if g.times[name] == nil && len(g.times) >= maxTimedEndpoints {
		name = otherName
	}
	times := g.times[name]
	if times == nil {
		if g.times == nil {
			g.times = make(map[string]*endpointTimes)
		}
		times = &endpointTimes{telemetry.NewHistogram(slowDurations), telemetry.NewHistogram(slowDurations)}
		g.times[name] = times
	}
	return times
}

// countTokens counts tokens that a session has used, when they are settled.
func (g *gatewayMetrics) countTokens(tenantID, endpoint string, u *llmwire.Usage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endpoint(tenantID, endpoint).add(u)
}

func (m *endpointMetrics) add(u *llmwire.Usage) {
	for i, row := range tokenKinds {
		m.tokens[i] += uint64(max(row.of(u), 0))
	}
}

// count counts a request of the gateway, with what came of it. The tokens of a session were counted before. took is the
// time until its end or, if it has opened a session, until then.
func (g *gatewayMetrics) count(tenantID string, o *gateway.Outcome, status int, took time.Duration) {
	if !slices.Contains(statuses[:], status) {
		status = 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.endpoint(tenantID, o.Endpoint)
	m.responses[status]++
	if status != http.StatusSwitchingProtocols {
		m.add(&o.Usage)
	}
	m.sessions += o.Session
	times := g.timesOf(o.Endpoint)
	times.whole.Observe(took)
	if o.FirstByte > 0 {
		times.firstByte.Observe(o.FirstByte)
	}
}

func (g *gatewayMetrics) write(p *telemetry.Page) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writeRequests(p)
	g.writeTimes(p, "gateway_request_duration_seconds",
		"Time from a request's header to the end of its response, or until a session is open.",
		func(t *endpointTimes) *telemetry.Histogram { return t.whole })
	g.writeTimes(p, "gateway_time_to_first_byte_seconds", "Time from a request's header to that of its response.",
		func(t *endpointTimes) *telemetry.Histogram { return t.firstByte })
}

func (g *gatewayMetrics) writeRequests(p *telemetry.Page) {
	all := slices.SortedFunc(maps.Keys(g.endpoints), func(a, b endpointLabels) int {
		return cmp.Or(strings.Compare(a.tenant, b.tenant), strings.Compare(a.endpoint, b.endpoint))
	})
	p.Family("gateway_requests_total", "counter", "Requests of the gateway, by the endpoint that responded.")
	for _, labels := range all {
		responses := g.endpoints[labels].responses
		for _, status := range slices.Sorted(maps.Keys(responses)) {
			name := otherName
			if status != 0 {
				name = strconv.Itoa(status)
			}
			p.Sample("gateway_requests_total", float64(responses[status]),
				"tenant", labels.tenant, "endpoint", labels.endpoint, "status", name)
		}
	}
	const seconds = "gateway_realtime_seconds_total"
	p.Family(seconds, "counter", "Time that realtime sessions were open, counted when they end.")
	for _, labels := range all {
		if took := g.endpoints[labels].sessions; took > 0 {
			p.Sample(seconds, took.Seconds(), "tenant", labels.tenant, "endpoint", labels.endpoint)
		}
	}
	p.Family("gateway_tokens_total", "counter", "Tokens of models that the gateway has charged, before prices.")
	for _, labels := range all {
		for i, row := range tokenKinds {
			if n := g.endpoints[labels].tokens[i]; n > 0 || row.kind == row.direction {
				p.Sample("gateway_tokens_total", float64(n), "tenant", labels.tenant, "endpoint", labels.endpoint,
					"direction", row.direction, "kind", row.kind)
			}
		}
	}
}

func (g *gatewayMetrics) writeTimes(p *telemetry.Page, name, help string,
	of func(*endpointTimes) *telemetry.Histogram) {
	p.Family(name, "histogram", help)
	for _, endpoint := range slices.Sorted(maps.Keys(g.times)) {
		p.Histogram(name, of(g.times[endpoint]), "endpoint", endpoint)
	}
}

// Package gateway relays requests to the model servers of others (endpoints) and charges what they cost.
//
// A caller parses a request (llmwire.ReadRequest or ReadForm), finds the endpoints that may serve it (Call.Choose) and
// lets Gateway.Serve respond. Serve holds the most that the request can cost in the caller's Account, relays the
// response and settles what was used. If the account cannot be reached then, that is repeated in the background.
//
// What all calls share is given out in shares, so that no user and no group of users can take it from the others.
//
// The package knows no tenant, no key and no database: an Account is what is paid from, a Cache where responses are
// kept.
package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
)

// FreeBodyBytes are the first bytes of each body that need no room in memory that is shared: there are only as many of
// them as requests.
const FreeBodyBytes = 64 << 10

// Options are what the operator sets.
type Options struct {
	Keys          *OperatorKeys
	Deny          []netip.Prefix // networks that no endpoint may have an address in
	HeaderTimeout time.Duration  // for an endpoint to begin its response
	IdleTimeout   time.Duration  // for which an endpoint may be silent then
	TotalTimeout  time.Duration  // for a request
	KeepAlive     time.Duration  // for which an idle connection to an http:// endpoint is kept
	MaxWaiting    int64          // requests that wait for an endpoint, or whose response is sent, at a time; ≥ 1
	MaxDrains     int64          // responses that are awaited or read at a time though their clients have gone; ≥ 1
	MaxSessions   int64          // sessions that are open at a time; ≥ 1
	MaxIdle       int64          // idle connections to http:// endpoints, and to https:// ones; ≥ 1
	TenantShare   float64        // the part of what all calls share that is one Tenant's, above 0 and at most 1
}

// A Gateway relays requests. Its methods may be called at the same time.
type Gateway struct {
	options    Options
	log        *telemetry.Logger
	transports *transports
	settler    settler
	patient    patientQueues
	renewal    time.Duration // from one renewal of a hold to the next
	cache      cacheWriter
	ctx        context.Context // of all requests to endpoints
	cut        context.CancelCauseFunc
	lists      *modelLists
	probes     *fairpool.Pool // endpoints that are being tested
	waiting    *fairpool.Pool // requests that wait for an endpoint, or whose response is sent
	drains     *fairpool.Pool // those of them whose clients have gone, instead
	sessions   *sessions
	streams    atomic.Int64 // that are relayed now
	estimated  atomic.Int64 // charges without reported usage

	unknownMembers atomic.Int64 // for which requests were refused
	unknownLogged  firsts       // of these, with their endpoints
	noUsageLogged  firsts       // endpoints that do not report usage
	noListLogged   firsts       // endpoints whose providers do not list their models
}

// New returns a Gateway that logs the failures of endpoints to log. Whoever ends its use calls Stop.
func New(options Options, log *telemetry.Logger) *Gateway {
	g := &Gateway{
		options: options, log: log, settler: settler{log: log}, renewal: leaseRenewal,
		cache:      newCacheWriter(options.TenantShare),
		transports: newTransports(options),
		lists:      newModelLists(options.TenantShare),
		probes:     fairpool.New(maxProbes, options.TenantShare),
		waiting:    fairpool.New(options.MaxWaiting, options.TenantShare),
		drains:     fairpool.New(options.MaxDrains, options.TenantShare),
		sessions:   newSessions(options),

		unknownLogged: firsts{most: maxUnknownWarnings}, noUsageLogged: firsts{most: maxUsageWarnings},
		noListLogged: firsts{most: maxUsageWarnings},
	}
	g.ctx, g.cut = context.WithCancelCause(context.Background())
	return g
}

// A Call is one request of a client.
type Call struct {
	ID     string // of the request, for the log
	Tenant string // whom the endpoints belong to: for the log, and a group of users as fairpool has it
	User   string // who makes the call, a member of the group
	Hops   string // that the request has come through, with this service, as endpoints are told; "" if they are not

	Account  Account          // that the request is paid from
	Request  *llmwire.Request // what was read of Body
	Body     []byte           // of the request, as it came
	Memory   *fairpool.Claim  // for what is read of the response; the caller releases it after Serve
	Place    *fairpool.Claim  // from Gateway.Place; so that the caller may take it before
	Start    time.Time        // when the request came
	Deadline time.Time        // for the steps of Account and Cache that come before the request is forwarded

	// Disconnect ends the connection to the client, which has gone, so that another client gets its place.
	Disconnect func()

	// CountTokens says that the request only asks how many tokens it has. That is free, but needs an account that is
	// not empty. It is never streamed: Serve sets Request.Stream to false.
	CountTokens bool

	// Compact says that the request asks for its input in fewer tokens (OpenAI's /v1/responses/compact). It costs what any
	// request does.
	Compact bool

	Stored *StoredRequest // instead of generating something, if it is not nil; Choose is not called then
	States States         // must not be nil for the format Responses

	Caching    Caching // says whether Cache is used
	Cache      Cache   // must not be nil if Caching is enabled
	Generation string  // what was cached under another one is not found

	Outcome *Outcome // where Choose and Serve say what became of the request; must not be nil

	all       Endpoints  // that Choose was called with
	keeper    string     // stateID of the endpoint that keeps what the request goes on from; "" for none
	allowed   ModelNames // what the account allows, if the request names no model and the default one was denied; else nil
	model     string     // as the endpoints know it
	endpoints Endpoints  // that may be tried, in order
	refused   []string   // members of the request that none of them allows
}

// An Outcome is what became of a request. It is complete when Serve, or the rest that it returns, returns or panics.
type Outcome struct {
	Endpoint  string        // that was tried last: its name, or kind/name; unchanged if none was
	Model     string        // that the endpoint was asked for
	FirstByte time.Duration // from Call.Start to the header of the endpoint's response; 0 if there was none
	Session   time.Duration // that a session was open; 0 if none was

	llmwire.Usage // tokens of models that were used, all together

	cost      int64 // of these in tokens of the account, which may have had fewer
	estimated bool  // the endpoint has not said what was used
}

// Serve responds to a call: with a cached response, with that of an endpoint or, if it returns an error, not at all.
// Choose must have succeeded, unless c.Stored is set; Serve panics otherwise. The error http.ErrAbortHandler says that
// the response was begun and that its connection must be cut. Other errors are an Error, a CodedError or those of
// c.Account.
//
// If rest is not nil, the response is a stream that was begun. The caller calls rest, which relays the rest of it and
// returns nil or http.ErrAbortHandler. A stream may be silent for minutes, and keeps the stack of its goroutine: the
// fewer functions call rest, the better. With all those around Serve it takes 16 KB instead of 8.
func (g *Gateway) Serve(w http.ResponseWriter, r *http.Request, c *Call) (rest func() error, err error) {
	x := g.begin(w, r, c)
	defer x.unlessBegun(x.end)
	serve := x.generate
	switch {
	case c.Stored != nil:
		serve = x.showStored
	case c.CountTokens:
		serve = x.countTokens
	}
	for {
		err := serve()
		if x.begun != nil {
			return x.continueStream, nil
		}
		denied, ok := errors.AsType[DeniedError](err)
		if !ok {
			return nil, err
		}
		if err := c.chooseAllowed(denied.Allowed); err != nil {
			g.NoteRefusal(c)
			return nil, err
		}
	}
}

// Stop cuts the requests that still run, and waits a few seconds until all are settled and what is to be cached is
// written. It may be called more than once.
func (g *Gateway) Stop() {
	g.cut(errStopping)
	timeout := stopTimeout
	if g.sessions.pool.Stats().Used > 0 {
		timeout += usageGrace // for the last response of each
	}
	g.settler.stop(timeout)
	g.cache.stop()
	g.transports.closeIdle()
}

// WriteMetrics writes the gauges and counters of the Gateway itself.
func (g *Gateway) WriteMetrics(p *telemetry.Page) {
	p.Single("gateway_holds", "gauge", "Open holds of the gateway in this process.", float64(g.settler.holds.Load()))
	p.Single("gateway_settlements_waiting", "gauge", "Holds whose settling is repeated until Redis responds.",
		float64(g.settler.waiting.Load()))
	p.Single("gateway_estimated_total", "counter", "Charges of the gateway without reported usage.",
		float64(g.estimated.Load()))
	p.Single("gateway_unpaid_tokens_total", "counter", "Tokens that were used and could not be charged.",
		float64(g.settler.unpaid.Load()))
	p.Single("gateway_unknown_members_total", "counter", "Members of requests that no endpoint allows.",
		float64(g.unknownMembers.Load()))
}

// Place returns a claim on a place among the requests that wait for an endpoint, for a user of a tenant. TakePlace
// takes it.
func (g *Gateway) Place(tenant, user string) *fairpool.Claim { return g.waiting.Claim(tenant, user) }

// TakePlace takes a place, unless it was taken before. The error is an Error of status 503.
func TakePlace(place *fairpool.Claim) error {
	if place.AddUpTo(1) != nil {
		return errTooMany
	}
	return nil
}

// Streams returns how many responses are relayed as streams of events now, including those whose clients have gone.
func (g *Gateway) Streams() int64 { return g.streams.Load() }

// Pools returns the state of what all calls share, by name.
func (g *Gateway) Pools() map[string]fairpool.Stats {
	return map[string]fairpool.Stats{
		"waiting": g.waiting.Stats(), "drains": g.drains.Stats(), "sessions": g.sessions.pool.Stats(),
		"cache_bytes": g.cache.collected.Stats(), "cache_writes": g.cache.waiting.Stats(),
		"model_lists": g.lists.fetches.Stats(), "endpoint_tests": g.probes.Stats(),
	}
}

// waitUntil waits until done reports true, for timeout at most.
func waitUntil(timeout time.Duration, done func() bool) {
	for end := time.Now().Add(timeout); !done() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// Causes for which a request to an endpoint is cancelled.
var (
	errClientGone = errors.New("the client has hung up")
	errSilent     = errors.New("the provider has stopped responding")
	errTooLong    = errors.New("the request has taken too long")
	errStopping   = errors.New("the server is stopping")
)

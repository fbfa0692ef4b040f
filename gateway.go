package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

const (
	maxBodiesBytes = 256 << 20 // of bodies that are held at a time
	checkedBody    = 64 << 10  // a larger body is read only if its API key exists
	bodyTimeout    = time.Minute
	maxEndpoints   = 3 // that one request may be tried at
	maxDrains      = 256
	holdGrace      = 5 * time.Minute // for which a hold outlives its request
	statusHungUp   = 499             // is only logged and counted: the client is gone
	noEndpoint     = "none"          // in metrics and the log: none was chosen
)

// gatewayOptions is what the operator sets.
type gatewayOptions struct {
	deny          []netip.Prefix // that no provider may have an address in
	headerTimeout time.Duration  // for a provider to begin its response
	idleTimeout   time.Duration  // for which a provider may be silent then
	totalTimeout  time.Duration  // for a request
	maxBody       int64          // bytes of a request
	maxStreams    int64          // that are open at a time
}

// gateway calls the providers of tenants for the holders of their API keys, and charges what that costs. What a request
// may cost at most is held before, and settled after.
type gateway struct {
	*server
	options   gatewayOptions
	transport *http.Transport
	settler   *settler
	cache     *responseCache
	ctx       context.Context // of all requests to providers
	cut       context.CancelCauseFunc
	bodies    atomic.Int64 // bytes of bodies
	streams   atomic.Int64
	drains    atomic.Int64 // streams that are read without a client
}

func newGateway(s *server, options gatewayOptions) *gateway {
	g := &gateway{
		server: s, options: options, settler: &settler{server: s}, cache: newResponseCache(s),
		transport: newProviderTransport(options.deny, options.headerTimeout),
	}
	g.ctx, g.cut = context.WithCancelCause(context.Background())
	return g
}

// call is one request to the gateway: what it asks for, what is held for it, and how it is responded to.
type call struct {
	*gateway
	clientRelay
	info *requestInfo
	r    *http.Request
	path string // below the URL of an endpoint

	model     string
	endpoints []*endpoint // that may be tried, in order
	endpoint  *endpoint   // that is or was tried last
	sent      bool        // it may have got the request

	ctx       context.Context // of the requests to endpoints
	stopTimer context.CancelFunc
	hold      heldTokens // its ID is "" before and after

	caching *cacheUse // nil if nothing is cached
}

// cacheUse is what a request has to do with the cache.
type cacheUse struct {
	redisKey      string
	ttl           time.Duration
	bypass        bool // no cached response is wanted
	noStore       bool // nor is this one to be cached
	input, output int64
	cost          int64 // of this response, known when it is settled
}

// generate responds to a request for a chat completion or a message.
func (g *gateway) generate(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	c, err := g.newCall(w, r, info)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.choose(); err != nil {
		return cmp.Or(g.requireKey(w, r, info), err) // a stranger learns nothing about models
	}
	if done, err := c.replay(); done || err != nil {
		return err
	}
	if c.request.Stream {
		if g.streams.Add(1) > g.options.maxStreams {
			g.streams.Add(-1)
			return gatewayError{http.StatusServiceUnavailable, "Too many streams are open"}
		}
		defer g.streams.Add(-1)
		defer context.AfterFunc(r.Context(), c.hangUp)()
	}
	if err := c.takeHold(); err != nil {
		return err
	}
	c.countLookup()
	defer c.settle() // whatever happens, also if what follows panics
	response, err := c.forward()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	g.metrics.gateway.firstByte(c.endpoint.name, time.Since(info.start))
	switch status := response.StatusCode; {
	case status >= 400:
		return c.relayError(response)
	case status < 200 || status >= 300:
		return c.providerFailed("it redirects, which is not followed")
	case !isIdentity(response.Header):
		return c.providerFailed("its response is compressed, though it was not asked to")
	case c.isStream(response):
		c.relayEvents(response)
		return nil
	}
	return c.relayCompletion(response)
}

// relayEvents relays a stream to its end, and charges for it.
func (c *call) relayEvents(response *http.Response) {
	if !c.request.Stream { // not asked for, but the provider has begun to bill it
		c.streams.Add(1)
		defer c.streams.Add(-1)
		defer context.AfterFunc(c.r.Context(), c.hangUp)()
	}
	c.keepStream()
	if err := c.relayStream(response); err != nil {
		c.settle()
		failure := c.interrupted(err)
		c.abort(failure.status, failure.message)
	}
	c.settle()
	c.storeStream(response)
}

// newCall reads a request.
func (g *gateway) newCall(w http.ResponseWriter, r *http.Request, info *requestInfo) (*call, error) {
	info.endpoint = noEndpoint
	format, _ := gatewayFormat(r)
	request, err := llmwire.ReadRequest(format, info.body)
	if err != nil {
		return nil, badRequestError(err.Error())
	}
	c := &call{gateway: g, info: info, r: r}
	limited, stopTimer := context.WithTimeoutCause(g.ctx, g.options.totalTimeout, errTooLong)
	ctx, cancel := context.WithCancelCause(limited)
	c.ctx, c.stopTimer = ctx, stopTimer
	c.clientRelay = clientRelay{
		w: w, client: http.NewResponseController(w), request: request, idle: g.options.idleTimeout, cancel: cancel,
		drain:  g.startDrain,
		stream: llmwire.Stream{Report: llmwire.Report{Format: format}, DropUsage: request.Stream && !request.IncludeUsage},
	}
	// A response may come much later than other routes' do.
	_ = c.client.SetWriteDeadline(time.Now().Add(g.options.totalTimeout + time.Minute))
	return c, nil
}

// end gives back what c has taken, but for its hold.
func (c *call) end() {
	c.cancel(nil)
	c.stopTimer()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.kept.release()
	if c.releaseDone != nil {
		c.releaseDone()
	}
}

// isFree reports whether the request generates nothing.
func (c *call) isFree() bool { return c.path != "" }

// startDrain begins to read a stream whose client has gone, if not too many are read.
func (g *gateway) startDrain() (release func(), ok bool) {
	if g.drains.Add(1) > maxDrains {
		g.drains.Add(-1)
		return nil, false
	}
	return func() { g.drains.Add(-1) }, true
}

// choose finds the endpoints that may be tried, and what model they are asked for.
func (c *call) choose() error {
	all := c.info.tenant.config.textEndpoints(c.request.Format)
	c.model = c.request.Model
	if c.model != "" {
		c.endpoints, c.model = endpointsFor(all, c.model)
	} else if i := slices.IndexFunc(all, func(e *endpoint) bool { return e.defaultModel != "" }); i >= 0 {
		c.model = all[i].defaultModel // which may have a slash and names no endpoint
		c.endpoints = endpointsAllowing(all, c.model)
	}
	c.info.model = c.model
	if len(c.endpoints) == 0 {
		sentence := "No endpoint allows the model " + strconv.Quote(strict.Shorten(c.model))
		if c.model == "" {
			sentence = "No endpoint has a default model: name one in the request"
		}
		return gatewayError{http.StatusNotFound, sentence}
	}
	if tool := c.request.ServerTool; tool != "" && !c.isFree() {
		c.endpoints = slices.DeleteFunc(slices.Clone(c.endpoints), func(e *endpoint) bool { return !e.serverTools })
		if len(c.endpoints) == 0 {
			return badRequestError("The provider would run " + strconv.Quote(tool) +
				" itself, which can cost more than can be held: it is not enabled")
		}
	}
	c.endpoints = c.endpoints[:min(len(c.endpoints), maxEndpoints)]
	return nil
}

// replay responds with a cached response to the same request of any of the tenant's API keys, if there is one, for its
// fee, and reports whether it has. Nobody needs to be able to pay for more than that. The response and the API key may
// be in different slots of a cluster, so these are steps: the head is read, the fee is charged, the rest is read. If
// the process dies in between, the fee is lost at most.
func (c *call) replay() (done bool, err error) {
	t := c.info.tenant
	rules := &t.config.caching
	ttl := rules.ttl()
	if ttl == 0 {
		return false, nil
	}
	c.w.Header()["X-Cache"] = []string{"MISS"}
	sum := requestSum(t, c.endpoints[0], c.model, c.r, c.info.body)
	c.caching = &cacheUse{redisKey: responseRedisKey(t.id, sum), ttl: ttl}
	if c.caching.bypass, c.caching.noStore = cacheDirectives(c.r.Header); c.caching.bypass {
		return false, nil
	}
	found, ok := c.store.FindResponse(c.cacheDeadline(), c.caching.redisKey)
	if !ok || time.Since(found.storedAt) >= ttl {
		return false, nil
	}
	fee := rules.feeFor(found.cost)
	result, err := c.chargeFee(fee)
	if err != nil {
		return false, err
	}
	if !found.isWhole() {
		c.bodies.Add(found.size)
		defer c.bodies.Add(-found.size)
		if found, ok = c.store.Response(c.cacheDeadline(), c.caching.redisKey); !ok { // it has just expired
			if err := c.returnFee(fee); err != nil {
				c.log.Warnf("A fee of %d tokens of tenant %s was not returned: %v", fee, t.id, err)
			}
			return false, nil
		}
	}
	c.metrics.charged(t.id, result.charged)
	c.usage.add(t, usageEvent{group: result.group, endpoint: c.endpoints[0].name, requests: 1, charged: result.charged})
	c.metrics.cacheUsed(t.id, cacheHit)
	h := c.w.Header()
	h["X-Cache"] = []string{"HIT"}
	h["Age"] = []string{strconv.FormatInt(int64(max(time.Since(found.storedAt), 0)/time.Second), 10)}
	h["X-Tokens-Charged"] = []string{strconv.FormatInt(result.charged, 10)}
	h["X-Tokens-Left"] = []string{strconv.FormatInt(result.tokensLeft, 10)}
	c.writeCached(found)
	return true, nil
}

// cacheDeadline returns the deadline for one step with the cache, which leaves the request the time to go on without.
func (c *call) cacheDeadline() time.Time {
	return time.Now().Add(min(cachePatience, time.Until(c.info.deadline)/2))
}

// chargeFee charges the fee for a cached response, under the same conditions as any charge.
func (c *call) chargeFee(fee int64) (chargeResult, error) {
	result, err := c.store.Charge(c.info.deadline, c.info.tenant, chargeRequest{key: c.info.apiKey, tokens: fee})
	if result.hasRateLimit {
		setRateHeaders(c.w.Header(), result.rate)
	}
	if err == nil {
		return result, nil
	}
	c.countRefusal(c.info.tenantID, err)
	if spent, ok := errors.AsType[insufficientTokensError](err); ok {
		c.w.Header().Set("X-Tokens-Left", strconv.FormatInt(spent.tokensLeft, 10))
		err = gatewayError{http.StatusPaymentRequired,
			fmt.Sprintf("The cached response needs %d tokens, %d are left", max(fee, 1), spent.tokensLeft)}
	}
	return result, err
}

// returnFee gives back the fee for a response that is gone, so that the request can go on without.
func (c *call) returnFee(fee int64) error {
	if fee == 0 {
		return nil
	}
	change := keyChange{addTokens: &fee}
	_, _, err := c.store.UpdateKey(c.info.deadline, c.info.tenant, c.info.apiKey, change, idempotentRequest{})
	return err
}

// countLookup counts that a request goes on without a cached response.
func (c *call) countLookup() {
	switch {
	case c.caching == nil:
	case c.caching.bypass:
		c.metrics.cacheUsed(c.info.tenantID, cacheBypass)
	default:
		c.metrics.cacheUsed(c.info.tenantID, cacheMiss)
	}
}

// isCacheable reports whether a response to the request may be cached. One of another endpoint than the first is what
// the request gets only while that is down.
func (c *call) isCacheable() bool {
	return c.caching != nil && !c.caching.noStore && c.endpoint == c.endpoints[0]
}

// keepStream begins to collect the stream that is about to be relayed, if it may be cached.
func (c *call) keepStream() {
	if c.isCacheable() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kept = &keptStream{cache: c.cache}
	}
}

// storeStream caches the stream that was relayed.
func (c *call) storeStream(response *http.Response) {
	c.mu.Lock()
	kept, whole := c.kept, c.stream.Done
	c.kept = nil
	c.mu.Unlock()
	if kept != nil {
		c.storeResponse(response, kept.data, whole && !kept.over, kept.release)
	}
}

// storeCompletion caches the response that was relayed, unless there was more than body.
func (c *call) storeCompletion(response *http.Response, body []byte, more bool) {
	if c.isCacheable() {
		c.storeResponse(response, body, !more && len(body) <= maxCachedBody, func() {})
	}
}

// storeResponse caches a response after the client has got it, if another client may get it, too, and then calls done.
func (c *call) storeResponse(response *http.Response, body []byte, whole bool, done func()) {
	mediaType := response.Header.Get("Content-Type")
	if !whole || response.StatusCode != http.StatusOK || len(mediaType) > maxMediaType ||
		!c.stream.IsReusable(c.request.N, c.request.Limit > 0) {
		c.metrics.cacheUsed(c.info.tenantID, cacheSkipped)
		done()
		return
	}
	_ = c.client.Flush()
	c.cache.write(c.info.tenantID, c.caching.redisKey, cachedResponse{
		storedAt: time.Now(), cost: c.caching.cost, input: c.caching.input, output: c.caching.output,
		mediaType: mediaType, body: body,
	}, c.caching.ttl, done)
}

// takeHold holds the most that the request can cost at any of its endpoints. A request without a limit may be held
// less, down to what one output token costs.
func (c *call) takeHold() error {
	if c.settler.isFull() {
		return gatewayError{http.StatusServiceUnavailable, "Too many charges wait for Redis"}
	}
	id, err := newCredential(holdPrefix)
	if err != nil {
		return err
	}
	h := holdRequest{key: c.info.apiKey, id: id, most: 1, least: 1, ttl: c.options.totalTimeout + holdGrace}
	for _, e := range c.endpoints {
		price, input := c.priceAt(e)
		least, most := c.request.Limit, c.request.Limit
		if c.request.Limit == 0 {
			least, most = 1, e.maxOutput
		}
		h.least = max(h.least, price.cost(input, least*c.request.N))
		h.most = max(h.most, price.cost(input, most*c.request.N))
	}
	c.hold = heldTokens{tenant: c.info.tenant, key: c.info.apiKey, id: id}
	c.settler.begin()
	result, err := c.store.Hold(c.info.deadline, c.info.tenant, h)
	if result.hasRateLimit {
		setRateHeaders(c.w.Header(), result.rate)
	}
	c.hold.tokens = result.held
	if err == nil {
		return nil
	}
	c.countRefusal(c.info.tenantID, err)
	if errors.Is(err, ErrUnavailable) { // they may be held
		c.settler.settleLater(c.hold, 0)
	} else {
		c.settler.drop()
	}
	if spent, ok := errors.AsType[insufficientTokensError](err); ok {
		return c.unaffordable(h.least, spent.tokensLeft)
	}
	return err
}

// priceAt returns the price at an endpoint that allows the model, and the input tokens to hold.
func (c *call) priceAt(e *endpoint) (tokenPrice, int64) {
	price, _ := e.price(c.model)
	return price, c.request.HeldInput(e.bytesPerToken, e.mediaTokens, e.maxInput)
}

// unaffordable returns the refusal of a request that needs more tokens than are left.
func (c *call) unaffordable(needed, left int64) error {
	c.w.Header().Set("X-Tokens-Left", strconv.FormatInt(left, 10))
	sentence := fmt.Sprintf("The request needs %d tokens, %d are left: ", needed, left)
	output := int64(maxAmount)
	for _, e := range c.endpoints {
		output = min(output, c.affordableOutput(e, left))
	}
	if output < 1 {
		return gatewayError{http.StatusPaymentRequired, sentence + "not enough for its input"}
	}
	return gatewayError{http.StatusPaymentRequired, sentence + fmt.Sprintf("at most %d output tokens", output)}
}

// affordableOutput returns how many output tokens of each choice the given tokens cover at e.
func (c *call) affordableOutput(e *endpoint, tokens int64) int64 {
	price, input := c.priceAt(e)
	output, _ := price.affords(tokens, input)
	return output / c.request.N
}

// forward sends the request to its endpoints, one after the other as long as none can have begun to generate, and
// returns the first response that is final.
func (c *call) forward() (*http.Response, error) {
	for i, e := range c.endpoints {
		isLast := i == len(c.endpoints)-1
		c.try(e)
		limit := int64(0)
		if c.request.Limit == 0 && !c.isFree() {
			limit = max(1, min(e.maxOutput, c.affordableOutput(e, c.hold.tokens)))
		}
		p := endpointRequest{
			to: e, path: c.path, query: c.r.URL.RawQuery, header: newProviderHeader(e, c.r.Header),
			body: c.request.Rewrite(c.model, e.format.LimitMember(e.url.Hostname()), limit),
		}
		response, sent, err := p.send(c.ctx, c.transport)
		c.sent = sent
		switch {
		case err == nil && (isLast || !mayTryNext(response.StatusCode)):
			return response, nil
		case err == nil:
			response.Body.Close()
			c.logFailure("it responds with " + strconv.Itoa(response.StatusCode))
		case c.ctx.Err() != nil || sent || isLast:
			return nil, c.interrupted(err)
		default:
			c.logFailure(failureReason(err))
		}
		c.sent = false
	}
	return nil, errNoEndpoint // not reached: there is a last endpoint
}

var errNoEndpoint = errors.New("no endpoint was tried")

// try makes e the endpoint of c.
func (c *call) try(e *endpoint) {
	c.endpoint, c.info.endpoint = e, e.name
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readOn = e.drain
}

// interrupted returns the error of a call whose endpoint has failed with err, or that was cancelled.
func (c *call) interrupted(err error) gatewayError {
	if c.sent { // it may be generating, and the SDKs would have it do that again
		c.w.Header().Set("X-Should-Retry", "false")
	}
	switch cause := context.Cause(c.ctx); {
	case cause == errClientGone:
		return gatewayError{statusHungUp, "The client has hung up"}
	case cause == errStopping:
		return gatewayError{http.StatusServiceUnavailable, "The server is stopping"}
	case cause == errTooLong:
		c.logFailure("the request took longer than -gateway-timeout")
		return gatewayError{http.StatusGatewayTimeout, "The request took too long"}
	case cause == errSilent || c.sent && isTimeout(err):
		c.logFailure("it does not respond in time")
		return gatewayError{http.StatusGatewayTimeout, "The provider does not respond in time"}
	case c.sent:
		c.logFailure(failureReason(err))
		return gatewayError{http.StatusBadGateway, "The connection to the provider was lost"}
	}
	c.logFailure(failureReason(err))
	return gatewayError{http.StatusBadGateway, "The provider cannot be reached"}
}

// providerFailed returns the error for a response that cannot be used.
func (c *call) providerFailed(reason string) error {
	c.sent = false
	c.logFailure(reason)
	return gatewayError{http.StatusBadGateway, "The provider's response cannot be used"}
}

func (c *call) logFailure(reason string) {
	c.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s", c.endpoint.name, c.info.tenantID, reason, c.info.id)
}

// isIdentity reports whether a body is sent as it is.
func isIdentity(h http.Header) bool {
	encoding := h.Get("Content-Encoding")
	return encoding == "" || strings.EqualFold(encoding, "identity")
}

// relayError relays a provider's error, which costs nothing. One that concerns the operator's account becomes 502.
func (c *call) relayError(response *http.Response) error {
	c.sent = false
	c.startWatch()
	most := maxErrorBody + int64(len(c.endpoint.apiKey))       // so that a key at the limit is found whole
	body, _ := io.ReadAll(io.LimitReader(response.Body, most)) // what has come says enough
	c.stopWatch()
	if c.request.Format.IsAccountError(response.StatusCode, body) {
		c.logFailure(fmt.Sprintf("it refuses the account of the endpoint with %d", response.StatusCode))
		return gatewayError{http.StatusBadGateway, "The provider refuses this service's account"}
	}
	if !isIdentity(response.Header) { // the endpoint's key cannot be found in it
		status := response.StatusCode
		c.settle()
		return gatewayError{status, "The provider responded with " + strconv.Itoa(status)}
	}
	if key := c.endpoint.apiKey; key != "" {
		body = bytes.ReplaceAll(body, []byte(key), []byte("[removed]"))
	}
	body = body[:min(len(body), maxErrorBody)]
	c.settle()
	c.writeWhole(response, body, nil)
	return nil
}

// relayCompletion relays a response that is not streamed. It is charged before it is sent, so that it says what it
// cost.
func (c *call) relayCompletion(response *http.Response) error {
	reserved := int64(0)
	defer func() { c.bodies.Add(-reserved) }()
	body, more, err := c.readWhole(response, func(bytes int64) {
		reserved += bytes
		c.bodies.Add(bytes)
	})
	if err != nil {
		return c.interrupted(err)
	}
	var rest io.Reader
	switch {
	case more:
		rest, c.unknown = response.Body, true
	case !c.isFree():
		switch _, err := c.stream.Read(body); {
		case err == nil:
		case json.Valid(body) && strict.SkipSpace(body)[0] == '{': // nested too deep to be read, but the provider bills it
			c.unknown, c.stream.Unread = true, true
		default:
			return c.providerFailed("its response is not a JSON object")
		}
	}
	c.begun = true
	c.settle()
	c.writeWhole(response, body, rest)
	if !c.isFree() {
		c.storeCompletion(response, body, more)
	}
	return nil
}

// cost returns the tokens that the provider has used and what they cost.
func (c *call) cost() (input, output, cost int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Not hungUp: while a stream is drained for a client that is gone, what goes wrong is the provider's doing.
	gone := context.Cause(c.ctx) == errClientGone
	isPaid := c.begun || gone && c.sent
	if !isPaid {
		return 0, 0, 0
	}
	report := &c.stream.Report
	if c.unknown {
		c.metrics.gateway.estimated.Add(1)
		return 0, 0, c.hold.tokens
	}
	if (c.broken || report.Failed) && !gone && report.ContentEvents == 0 {
		return 0, 0, 0
	}
	price, _ := c.priceAt(c.endpoint)
	input, output, exact := report.Counts(c.request.EstimatedInput(c.endpoint.mediaTokens))
	cost = price.cost(input, output)
	if !exact {
		c.metrics.gateway.estimated.Add(1)
		cost = min(cost, c.hold.tokens)
	}
	return input, output, cost
}

// settle turns the hold into the charge for what was used, when it is called first. If Redis does not respond, the
// charge is made later.
func (c *call) settle() {
	h := c.hold
	if h.id == "" {
		return
	}
	c.hold.id = ""
	input, output, cost := c.cost()
	c.metrics.gateway.tokens(c.info.tenantID, c.info.endpoint, input, output)
	h.endpoint, h.input, h.output = c.info.endpoint, input, output
	if c.caching != nil {
		c.caching.input, c.caching.output, c.caching.cost = input, output, cost
	}
	if result, ok := c.settler.settle(h, cost); ok {
		header := c.w.Header()
		header["X-Tokens-Charged"] = []string{strconv.FormatInt(result.charged, 10)}
		header["X-Tokens-Left"] = []string{strconv.FormatInt(result.tokensLeft, 10)}
	}
}

// stop ends what the gateway does: it cuts the requests that still run and waits until everything is settled.
func (g *gateway) stop() {
	g.cut(errStopping)
	g.settler.stop()
	g.cache.stop()
	g.transport.CloseIdleConnections()
}

// countTokens relays a request that generates nothing: it is free, and counts as one request of the rate limit.
func (g *gateway) countTokens(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	c, err := g.newCall(w, r, info)
	if err != nil {
		return err
	}
	defer c.end()
	c.path, c.request.Stream = "/count_tokens", false
	if err := c.choose(); err != nil {
		return cmp.Or(g.requireKey(w, r, info), err) // a stranger learns nothing about models
	}
	result, err := g.store.Charge(info.deadline, info.tenant, chargeRequest{key: info.apiKey})
	if result.hasRateLimit {
		setRateHeaders(w.Header(), result.rate)
	}
	if err != nil {
		g.countRefusal(info.tenantID, err)
		if _, spent := errors.AsType[insufficientTokensError](err); spent {
			return gatewayError{http.StatusPaymentRequired, "No tokens are left"}
		}
		return err
	}
	g.usage.add(info.tenant, usageEvent{group: result.group, requests: 1})
	response, err := c.forward()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch status := response.StatusCode; {
	case status >= 400:
		return c.relayError(response)
	case status != http.StatusOK || !isIdentity(response.Header):
		return c.providerFailed("its response is not 200, or compressed")
	}
	return c.relayCompletion(response)
}

// listModels sends the models that may be asked for.
func (g *gateway) listModels(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	format, _ := gatewayFormat(r)
	var models []llmwire.Model
	listed := make(map[string]bool)
	for _, e := range info.tenant.config.textEndpoints(format) {
		for _, name := range e.models {
			if name != anyModel && !listed[name] {
				listed[name] = true
				models = append(models, llmwire.Model{Name: name, Endpoint: e.name})
			}
		}
	}
	return writeBody(w, http.StatusOK, append(format.ModelListBody(models), '\n'))
}

// showModel sends one model that may be asked for.
func (g *gateway) showModel(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	format, _ := gatewayFormat(r)
	name := r.PathValue("model")
	endpoints, _ := endpointsFor(info.tenant.config.textEndpoints(format), name)
	if len(endpoints) == 0 {
		return gatewayError{http.StatusNotFound, "No endpoint allows the model " + strconv.Quote(strict.Shorten(name))}
	}
	model := llmwire.Model{Name: name, Endpoint: endpoints[0].name}
	return writeBody(w, http.StatusOK, append(format.ModelBody(model), '\n'))
}

// readKey reads the API key from Authorization or X-API-Key, of which SDKs send either or both: what does not have the
// form of a key of ours may be meant for another service.
func (g *gateway) readKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	sent := false
	for _, value := range slices.Concat(r.Header["Authorization"], r.Header["X-Api-Key"]) {
		sent = true
		if scheme, token, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "Bearer") {
			value = strings.TrimLeft(token, " ")
		}
		if !validAPIKey(value) {
			continue
		}
		if info.apiKey != "" && info.apiKey != value {
			return errInvalidCredential
		}
		info.apiKey = value
	}
	switch {
	case !sent:
		return errNoCredential
	case info.apiKey == "":
		return ErrNoKey
	}
	return nil
}

// requireKey checks that the tenant has the API key.
func (g *gateway) requireKey(_ http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	_, err := g.store.Key(info.deadline, info.tenant, info.apiKey)
	return err
}

// readBody reads a body of up to options.maxBody bytes. One that is large is read only for an API key that exists, so
// that strangers cannot fill the memory.
func (g *gateway) readBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Content-Encoding"]) > 0 {
		return errEncodedBody
	}
	size := r.ContentLength
	if size > g.options.maxBody {
		w.Header().Set("Connection", "close")
		return errBodyTooLarge
	}
	reserved := size
	if size < 0 || size > checkedBody {
		if err := g.requireKey(w, r, info); err != nil {
			w.Header().Set("Connection", "close")
			return err
		}
		if size < 0 {
			reserved = g.options.maxBody
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
	info.releaseBody = func() { g.bodies.Add(-reserved) }
	if g.bodies.Add(reserved) > maxBodiesBytes {
		w.Header().Set("Connection", "close")
		return gatewayError{http.StatusServiceUnavailable, "Too many bytes are in flight"}
	}
	began := time.Now()
	var err error
	if size >= 0 {
		info.body = make([]byte, size)
		_, err = io.ReadFull(r.Body, info.body)
	} else {
		info.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, g.options.maxBody))
		g.bodies.Add(int64(len(info.body)) - reserved)
		reserved = int64(len(info.body))
	}
	info.deadline = info.deadline.Add(time.Since(began))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errBodyTooLarge
	}
	if err != nil {
		return errBrokenBody
	}
	return nil
}

package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/llmwire"
)

const statusHungUp = 499 // is only logged and counted: the client has gone

var (
	errHungUp  = Error{statusHungUp, "The client has hung up"}
	errTooMany = Error{http.StatusServiceUnavailable, "Too many requests wait for a provider"}
)

// An exchange is the life of one call: what is held for it, where it is sent, and how it is responded to.
type exchange struct {
	gateway *Gateway
	call    *Call
	w       http.ResponseWriter
	r       *http.Request
	relay   relay

	ctx       context.Context // of the requests to endpoints; the gateway's own before ask
	stopTimer context.CancelFunc
	endpoint  *Endpoint // that is or was tried last
	hasNext   bool      // there is another endpoint to try
	sent      bool      // it may have got the request
	hold      Hold      // its ID is "" before it is taken and once it is settled
	lease     *lease    // of the hold; nil before it is taken
	lowered   bool      // the endpoint has got a lower limit than the request has
	caching   *cacheUse // nil if nothing is cached
	stateKept bool      // it is remembered whose the response is

	begun      *http.Response // the stream whose rest is to be relayed, or nil
	stopHangUp func() bool    // stops watching for the end of the client's connection
}

func (g *Gateway) begin(w http.ResponseWriter, r *http.Request, c *Call) *exchange {
	x := &exchange{gateway: g, call: c, w: w, r: r, ctx: g.ctx, stopTimer: func() {}}
	deadline := time.Now().Add(g.options.TotalTimeout)
	rest := g.options.TotalTimeout / 20 // a minute by default
	request := c.Request
	if c.isFree() {
		request.Stream = false
	}
	x.relay = relay{
		w: w, client: http.NewResponseController(w), request: request, isFree: c.isFree(),
		idle: g.options.IdleTimeout, cancel: func(error) {}, latest: deadline.Add(abortGrace),
		hurry: deadline.Add(-rest), patience: rest / 16,
		disconnect: c.Disconnect, place: c.Place, drain: g.drains.Claim(c.Tenant, c.User),
		stream: llmwire.Stream{Memory: c.Memory.Another()},
	}
	// A response may come much later than others do.
	_ = x.relay.client.SetWriteDeadline(deadline.Add(time.Minute))
	return x
}

// end gives back what x has taken, but for its hold. What is still to be written must be read soon.
func (x *exchange) end() {
	x.relay.cancel(nil)
	x.stopTimer()
	x.relay.end()
}

// unlessBegun calls f, which ends something, unless the rest of a stream needs it.
func (x *exchange) unlessBegun(f func()) {
	if x.begun == nil {
		f()
	}
}

// generate responds to a request for a completion.
func (x *exchange) generate() error {
	if err := x.findStates(); err != nil {
		return err
	}
	if done, err := x.replay(); done || err != nil {
		return err
	}
	// A place is taken only when it is known that the account exists. Most requests beyond a share are refused before
	// that, for less.
	if err := x.relay.place.Check(1); err != nil {
		return errTooMany
	}
	if err := x.takeHold(); err != nil {
		return err
	}
	x.countLookup()
	defer x.unlessBegun(x.settle) // whatever happens, also if what follows panics
	return x.ask(x.relayGenerated)
}

// errTryNext means that an endpoint has failed without having begun to generate, and that another is to be tried.
var errTryNext = errors.New("another endpoint is to be tried")

// limitTime begins a context for the requests to endpoints, which ends when the call must. A call that needs no
// endpoint does without: of a cached response it would be 4 % of the service's work.
func (x *exchange) limitTime() {
	limited, stopTimer := context.WithDeadlineCause(x.gateway.ctx, x.relay.latest.Add(-abortGrace), errTooLong)
	x.ctx, x.relay.cancel = context.WithCancelCause(limited)
	x.stopTimer = stopTimer
}

// ask takes a place, and sends the request to its endpoints, one after the other as long as none can have begun to
// generate. It lets relay respond with what comes, which returns errTryNext only while hasNext is true.
func (x *exchange) ask(relay func(*http.Response) error) error {
	if err := TakePlace(x.relay.place); err != nil {
		return err
	}
	x.limitTime()
	x.stopHangUp = context.AfterFunc(x.r.Context(), x.relay.hangUp)
	defer x.unlessBegun(func() { x.stopHangUp() })
	for i := 0; ; i++ {
		x.hasNext = i < len(x.call.endpoints)-1
		if err := x.askEndpoint(x.call.endpoints[i], relay); err != errTryNext {
			return err
		}
	}
}

// askEndpoint sends the request to e, and lets relay respond with what comes.
func (x *exchange) askEndpoint(e *Endpoint, relay func(*http.Response) error) error {
	limit := x.limitAt(e)
	expected := target{key: e.apiKey, limit: llmwire.MaxTokens, mayHide: x.mayHide(e), onHangUp: e.onHangUp,
		isKnown: e.format.Delivery() == llmwire.Binary || x.call.Request.WantsSubtitles()}
	if e.format.HasLimit() && !x.call.Compact {
		expected.limit = limit * x.outputs()
	}
	if x.leavesState(e) {
		expected.beforeEnd = x.keepState
	}
	x.relay.expect(expected)
	if x.r.Context().Err() != nil { // nobody is there to get what the endpoint would generate
		x.call.Disconnect() // who has only closed one direction gets nothing either
		return errHungUp
	}
	response, err := x.try(e, limit)
	if err != nil {
		if x.hasNext && !x.sent && x.ctx.Err() == nil {
			return x.tryNext(failureReason(err))
		}
		return x.interrupted(err)
	}
	defer x.unlessBegun(func() { response.Body.Close() })
	return relay(response)
}

// tryNext returns errTryNext after an endpoint has failed.
func (x *exchange) tryNext(reason string) error {
	x.logFailure(reason)
	x.sent = false
	return errTryNext
}

// mayHide reports whether e may generate reasoning that its response does not show, for which it bills all the same.
// Most models do unless they are told not to, and only some providers are known to obey.
func (x *exchange) mayHide(e *Endpoint) bool {
	if x.call.isFree() {
		return false
	}
	isOff := x.call.Request.ReasoningOff && e.format.ObeysReasoningOff(e.url.Hostname())
	return !isOff && e.prices.find(x.call.model).mayReason(e)
}

// relayGenerated relays the response to a request for a completion.
func (x *exchange) relayGenerated(response *http.Response) error {
	x.call.Outcome.FirstByte = time.Since(x.call.Start)
	switch status := response.StatusCode; {
	case status >= 400:
		return x.relayError(response)
	case status < 200 || status >= 300:
		return x.providerFailed("it redirects, which is not followed")
	case !isIdentity(response.Header):
		return x.providerFailed("its response is compressed, though it was not asked to")
	case x.relay.isStream(response):
		return x.relayEvents(response)
	case x.isBinary(response):
		return x.relayBinary(response)
	case x.call.Request.Format.Delivery() == llmwire.AsItComes:
		return x.relayAsItComes(response)
	}
	return x.relayCompletion(response)
}

// countTokens relays a request that generates nothing: it is free, and counts as one request of the rate limit.
func (x *exchange) countTokens() error {
	if err := x.findStates(); err != nil {
		return err
	}
	err := x.patiently(1, func(bool) error {
		_, err := x.call.Account.Charge(x.call.Deadline, x.call.models(), Usage{})
		return err
	})
	if _, spent := asInsufficient(err); spent {
		return Error{http.StatusPaymentRequired, "No tokens are left"}
	}
	if err != nil {
		return err
	}
	return x.ask(x.relayCount)
}

// relayCount relays the response to the question how many tokens a request has.
func (x *exchange) relayCount(response *http.Response) error {
	return x.relayFree(response, x.relay.isCount) // a server that ignores the path may have generated a response
}

// relayFree relays a response that costs nothing, if its body is as expected.
func (x *exchange) relayFree(response *http.Response, isExpected func(body []byte) bool) error {
	switch status := response.StatusCode; {
	case status >= 400:
		return x.relayError(response)
	case status != http.StatusOK || !isIdentity(response.Header) || x.relay.isStream(response):
		return x.providerFailed("its response is not 200, is compressed or is a stream")
	}
	body, err := x.relay.readWhole(response, x.call.Memory)
	switch {
	case hasMore(err) && x.call.Stored != nil:
		return x.relayLarge(response, body)
	case hasMore(err), err == nil && !isExpected(body):
		return x.providerFailed("its response is not what was asked for")
	case err != nil:
		return x.interrupted(err)
	}
	return x.respond(response, withoutKey(body, x.endpoint.apiKey))
}

// try sends the request to e with a limit of output tokens, and notes whether e may have got it.
func (x *exchange) try(e *Endpoint, limit int64) (response *http.Response, err error) {
	x.endpoint, x.call.Outcome.Endpoint = e, e.label
	p := endpointRequest{
		to: e, path: x.call.path(), query: x.r.URL.RawQuery, header: x.call.providerHeader(e, x.r.Header),
	}
	if stored := x.call.Stored; stored != nil {
		p.method, p.query = stored.Method, stored.Query
		delete(p.header, "Content-Type")
	} else {
		p.body = x.call.Request.Rewrite(x.changes(e, limit))
	}
	response, x.sent, err = p.send(x.ctx, x.gateway.transports)
	p.body = nil // the response keeps p until its end
	return response, err
}

// changes returns what is changed in the request before it is forwarded to e with a limit of output tokens. If that is
// lower than the request's own, it lets the response say so.
func (x *exchange) changes(e *Endpoint, limit int64) llmwire.Changes {
	c := llmwire.Changes{Model: x.call.model, DropTools: e.drops(x.call), LeaveStreamOptions: e.leavesUsage}
	if x.call.isBare() {
		return c
	}
	c.NoStore = e.stateTTL == 0
	if e.sendsUsers {
		c.SafetyID = safetyID(x.call.Tenant, x.hold.Owner)
	}
	if e.format.HasLimit() {
		c.LimitMember, c.Limit = e.limitName(), limit
	}
	h := x.w.Header()
	delete(h, "X-Max-Tokens")
	if x.lowered = x.call.Request.HasLimit && limit < x.call.Request.Limit; x.lowered {
		h["X-Max-Tokens"] = []string{strconv.FormatInt(limit, 10)}
	}
	return c
}

// safetyID returns what a provider is told to tell users apart: a digest of the tenant and of the owner of a hold.
func safetyID(tenant, owner string) string {
	sum := sha256.Sum256([]byte(tenant + "\n" + owner))
	return hex.EncodeToString(sum[:])
}

// interrupted returns the error of a call whose endpoint has failed with err, or that was cancelled.
func (x *exchange) interrupted(err error) Error {
	failure, reason := x.failureOf(err)
	if reason != "" {
		x.logFailure(reason)
	}
	if x.sent && failure.Status != http.StatusServiceUnavailable {
		x.forbidRetry()
	}
	return failure
}

// failureOf returns what interrupted does, and what to log of the endpoint; "" if that has not failed.
func (x *exchange) failureOf(err error) (failure Error, reason string) {
	switch cause := context.Cause(x.ctx); {
	case cause == errClientGone:
		return errHungUp, ""
	case cause == errStopping:
		return Error{http.StatusServiceUnavailable, "The server is stopping"}, ""
	case cause == errTooLong:
		return Error{http.StatusGatewayTimeout, "The request took too long"}, "the request took longer than -gateway-timeout"
	case cause == errSilent || x.sent && isTimeout(err):
		return Error{http.StatusGatewayTimeout, "The provider does not respond in time"}, "it does not respond in time"
	case err == errTooMuch:
		return Error{http.StatusBadGateway, "The provider does not stop at the limit"}, "it does not stop at the limit"
	case x.sent:
		return Error{http.StatusBadGateway, "The connection to the provider was lost"}, failureReason(err)
	}
	if wrong, ok := errors.AsType[credentialError](err); ok {
		x.forbidRetry()
		return Error{http.StatusBadGateway, "The endpoint's key cannot be sent: its " + wrong.Error()}, failureReason(err)
	}
	return Error{http.StatusBadGateway, "The provider cannot be reached"}, failureReason(err)
}

// forbidRetry keeps the SDKs from repeating a request that the provider may have billed, or will refuse again.
func (x *exchange) forbidRetry() { x.w.Header()["X-Should-Retry"] = []string{"false"} }

// providerFailed returns the error for a response that cannot be used.
func (x *exchange) providerFailed(reason string) error {
	x.sent = false
	x.forbidRetry()
	x.logFailure(reason)
	return Error{http.StatusBadGateway, "The provider's response cannot be used"}
}

// hasNothing returns errTryNext, or the error for a 2xx response that is an error without usage. It costs nothing, and
// may be repeated.
func (x *exchange) hasNothing(response *http.Response) error {
	reason := "it responds with " + strconv.Itoa(response.StatusCode) + " and an error, or nothing"
	if x.hasNext {
		return x.tryNext(reason)
	}
	x.logFailure(reason)
	for _, name := range []string{"Retry-After", "Retry-After-Ms"} {
		if values := response.Header[name]; len(values) > 0 {
			setWithoutKey(x.w.Header(), name, values, x.endpoint.apiKey)
		}
	}
	return Error{http.StatusBadGateway, "The provider's response is an error"}
}

func (x *exchange) logFailure(reason string) {
	x.gateway.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s",
		x.endpoint.label, x.call.Tenant, reason, x.call.ID)
}

// isIdentity reports whether a body is sent as it is.
func isIdentity(h http.Header) bool {
	encoding := h.Get("Content-Encoding")
	return encoding == "" || strings.EqualFold(encoding, "identity")
}

// respond settles, so that the response says what it cost, and then sends it. It returns nil, so that a caller can
// return it.
func (x *exchange) respond(response *http.Response, body []byte) error {
	x.settle()
	x.relay.writeWhole(response, body)
	return nil
}

// relayEvents relays a stream until something of it was sent. If it goes on, it sets x.begun, and continueStream is to
// be called.
func (x *exchange) relayEvents(response *http.Response) error {
	if x.isCacheable() {
		x.relay.collect(&collector{room: x.gateway.cache.collected.Claim(x.call.Tenant, x.call.User)})
	}
	x.gateway.streams.Add(1)
	defer x.unlessBegun(func() { x.gateway.streams.Add(-1) })
	ended, err := x.relay.openStream(response)
	if !ended {
		x.begun = response
		x.call.Body = nil
		x.call.Request.Forget() // no other endpoint is tried
		return nil
	}
	return x.endStream(response, err)
}

// continueStream relays the rest of the stream that was begun, and ends the call.
func (x *exchange) continueStream() error {
	defer x.endBegun()
	return x.endStream(x.begun, x.relay.continueStream(x.begun))
}

// endBegun ends what was left for the rest of a stream.
func (x *exchange) endBegun() {
	defer x.end()
	defer x.settle()
	defer x.stopHangUp()
	defer x.begun.Body.Close()
	x.gateway.streams.Add(-1)
}

// endStream ends a stream that was read to its end, with err as openStream and continueStream return it.
func (x *exchange) endStream(response *http.Response, err error) error {
	begun := x.relay.hasHeader()
	switch {
	case err == errNothing:
		return x.hasNothing(response)
	case err == errNoStream:
		return x.providerFailed("its response is no stream of events")
	case !begun:
		return x.interrupted(err)
	}
	x.settleSent()
	if context.Cause(x.ctx) != errClientGone { // then what the provider has generated since is not paid for
		x.keepState() // of one that broke off the client may know the ID
	}
	if err != nil {
		return x.relay.abort(x.interrupted(err))
	}
	x.storeStream(response)
	return nil
}

// relayError relays a provider's error, which costs nothing, unless another endpoint is to be tried. One that concerns
// the operator's account becomes 502.
func (x *exchange) relayError(response *http.Response) error {
	x.sent = false
	if reason := x.reasonToTryNext(response); reason != "" {
		return x.tryNext(reason)
	}
	status, key := response.StatusCode, x.endpoint.apiKey
	body := x.relay.readError(response, maxErrorBody+maxSpelling*len(key)) // so that a key at the limit is found whole
	if x.call.Request.Format.IsAccountError(status, body) {
		x.forbidRetry()
		x.logFailure(accountRefused + strconv.Itoa(status))
		return Error{http.StatusBadGateway, "The provider refuses this service's account"}
	}
	body = shownError(x.call.Request.Format, response, body, key)
	return x.respond(response, body[:min(len(body), maxErrorBody)])
}

// shownError returns the body of a provider's error without the endpoint's key. If that could not be found in it, it is
// another body, whose type is set in the response.
func shownError(format llmwire.Format, response *http.Response, body []byte, key string) []byte {
	if isIdentity(response.Header) {
		return withoutKey(body, key)
	}
	response.Header["Content-Type"] = []string{"application/json"}
	return format.ErrorBody(response.StatusCode, "The provider responded with "+strconv.Itoa(response.StatusCode))
}

// relayCompletion relays a response that is not streamed.
func (x *exchange) relayCompletion(response *http.Response) error {
	body, err := x.relay.readWhole(response, x.call.Memory)
	switch {
	case hasMore(err):
		return x.relayLarge(response, body)
	case err != nil:
		return x.interrupted(err)
	}
	return x.relayRead(response, body)
}

// relayRead relays a response that was read to its end.
func (x *exchange) relayRead(response *http.Response, body []byte) error {
	hasFailed, err := x.relay.readUsage(body)
	switch {
	case err == errNothing:
		return x.hasNothing(response)
	case err != nil:
		return x.providerFailed("its response is not a JSON object")
	case hasFailed:
		body = withoutKey(body, x.endpoint.apiKey)
	case x.call.Request.WantsText():
		if text, ok := llmwire.UnpackText(body); ok {
			body, response.Header["Content-Type"] = text, textType
		}
	}
	x.settle()
	x.keepState()
	x.relay.writeWhole(response, body)
	x.storeCompletion(response, body, true)
	return nil
}

// relayLarge relays a response that is not streamed as it comes, since there is too little memory for all of it. So its
// header cannot say what it costs.
func (x *exchange) relayLarge(response *http.Response, body []byte) error {
	if err := x.relay.relayParts(response, body); err != nil {
		_ = x.interrupted(err) // logs it
		return http.ErrAbortHandler
	}
	x.settleSent()
	x.storeCompletion(response, body, false)
	return nil
}

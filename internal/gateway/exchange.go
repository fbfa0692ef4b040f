package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

const (
	statusHungUp    = 499             // is only logged and counted: the client has gone
	countTokensPath = "/count_tokens" // below the URL of an endpoint
)

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

	ctx       context.Context // of the requests to endpoints
	stopTimer context.CancelFunc
	endpoint  *Endpoint // that is or was tried last
	sent      bool      // it may have got the request
	hold      Hold      // its ID is "" before it is taken and once it is settled
	lease     *lease    // of the hold; nil before it is taken
	lowered   bool      // the endpoint has got a lower limit than the request has
	caching   *cacheUse // nil if nothing is cached
}

func (g *Gateway) begin(w http.ResponseWriter, r *http.Request, c *Call) *exchange {
	x := &exchange{gateway: g, call: c, w: w, r: r}
	limited, stopTimer := context.WithTimeoutCause(g.ctx, g.options.TotalTimeout, errTooLong)
	ctx, cancel := context.WithCancelCause(limited)
	x.ctx, x.stopTimer = ctx, stopTimer
	deadline, _ := limited.Deadline()
	request := c.Request
	if c.CountTokens {
		request.Stream = false
	}
	x.relay = relay{
		w: w, client: http.NewResponseController(w), request: request, isFree: c.CountTokens,
		idle: g.options.IdleTimeout, cancel: cancel, latest: deadline.Add(abortGrace),
		disconnect: c.Disconnect, place: c.Place, drain: g.drains.Claim(c.Tenant, c.User),
		stream: llmwire.Stream{
			Report: llmwire.Report{Format: request.Format}, DropUsage: request.Stream && !request.IncludeUsage,
			Memory: c.Memory.Another(),
		},
	}
	// A response may come much later than others do.
	_ = x.relay.client.SetWriteDeadline(deadline.Add(time.Minute))
	return x
}

// end gives back what x has taken, but for its hold. What is still to be written must be read soon.
func (x *exchange) end() {
	x.relay.extendDeadline()
	x.relay.cancel(nil)
	x.stopTimer()
	x.relay.end()
}

// generate responds to a request for a completion.
func (x *exchange) generate() error {
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
	defer x.settle() // whatever happens, also if what follows panics
	return x.ask(x.relayGenerated)
}

// ask takes a place, sends the request, and lets relay respond with what comes.
func (x *exchange) ask(relay func(*http.Response) error) error {
	if err := TakePlace(x.relay.place); err != nil {
		return err
	}
	defer context.AfterFunc(x.r.Context(), x.relay.hangUp)()
	response, err := x.forward()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return relay(response)
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
	}
	return x.relayCompletion(response)
}

// countTokens relays a request that generates nothing: it is free, and counts as one request of the rate limit.
func (x *exchange) countTokens() error {
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
	switch status := response.StatusCode; {
	case status >= 400:
		return x.relayError(response)
	case status != http.StatusOK || !isIdentity(response.Header):
		return x.providerFailed("its response is not 200, or compressed")
	}
	return x.relayCompletion(response)
}

// forward sends the request to its endpoints, one after the other as long as none can have begun to generate, and
// returns the first response that is final.
func (x *exchange) forward() (*http.Response, error) {
	for i := 0; ; i++ {
		if x.r.Context().Err() != nil { // nobody is there to get what the endpoint would generate
			return nil, errHungUp
		}
		isLast := i == len(x.call.endpoints)-1
		response, err := x.try(x.call.endpoints[i])
		switch {
		case err == nil:
			reason := x.reasonToTryNext(response, isLast)
			if reason == "" {
				return response, nil
			}
			response.Body.Close()
			x.logFailure(reason)
		case x.ctx.Err() != nil || x.sent || isLast:
			return nil, x.interrupted(err)
		default:
			x.logFailure(failureReason(err))
		}
		x.sent = false
	}
}

// try sends the request to e, and notes whether e may have got it.
func (x *exchange) try(e *Endpoint) (response *http.Response, err error) {
	x.endpoint, x.call.Outcome.Endpoint = e, e.Name
	x.relay.setDrainOnHangUp(e.onHangUp == drainOnHangUp)
	p := endpointRequest{
		to: e, query: x.r.URL.RawQuery, header: x.call.providerHeader(e, x.r.Header),
		body: x.call.Request.Rewrite(x.changes(e, x.limitAt(e))),
	}
	if x.call.CountTokens {
		p.path = countTokensPath
	}
	response, x.sent, err = p.send(x.ctx, x.gateway.transports)
	return response, err
}

// changes returns what is changed in the request before it is forwarded to e with a limit of output tokens. If that is
// lower than the request's own, it lets the response say so.
func (x *exchange) changes(e *Endpoint, limit int64) llmwire.Changes {
	c := llmwire.Changes{Model: x.call.model, DropTools: e.drops(x.call), LeaveStreamOptions: e.leavesUsage}
	if e.sendsUsers {
		c.SafetyID = x.call.safetyID()
	}
	if x.call.CountTokens {
		return c
	}
	c.LimitMember, c.Limit = cmp.Or(e.limitMember, e.format.LimitMember(e.url.Hostname())), limit
	h := x.w.Header()
	delete(h, "X-Max-Tokens")
	if x.lowered = x.call.Request.HasLimit && limit < x.call.Request.Limit; x.lowered {
		h["X-Max-Tokens"] = []string{strconv.FormatInt(limit, 10)}
	}
	return c
}

// safetyID returns what a provider is told to tell users apart: a digest of the user and the tenant.
func (c *Call) safetyID() string {
	sum := sha256.Sum256([]byte(c.Tenant + "\n" + c.User))
	return hex.EncodeToString(sum[:])
}

// interrupted returns the error of a call whose endpoint has failed with err, or that was cancelled.
func (x *exchange) interrupted(err error) Error {
	if x.sent {
		x.forbidRetry()
	}
	switch cause := context.Cause(x.ctx); {
	case cause == errClientGone:
		return errHungUp
	case cause == errStopping:
		return Error{http.StatusServiceUnavailable, "The server is stopping"}
	case cause == errTooLong:
		x.logFailure("the request took longer than -gateway-timeout")
		return Error{http.StatusGatewayTimeout, "The request took too long"}
	case cause == errSilent || x.sent && isTimeout(err):
		x.logFailure("it does not respond in time")
		return Error{http.StatusGatewayTimeout, "The provider does not respond in time"}
	case x.sent:
		x.logFailure(failureReason(err))
		return Error{http.StatusBadGateway, "The connection to the provider was lost"}
	}
	x.logFailure(failureReason(err))
	if wrong, ok := errors.AsType[credentialError](err); ok {
		x.forbidRetry()
		return Error{http.StatusBadGateway, "The endpoint's key cannot be sent: its " + wrong.Error()}
	}
	return Error{http.StatusBadGateway, "The provider cannot be reached"}
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

func (x *exchange) logFailure(reason string) {
	x.gateway.log.Warnf("The endpoint %s of tenant %s failed: %s id=%s",
		x.endpoint.Name, x.call.Tenant, reason, x.call.ID)
}

// isIdentity reports whether a body is sent as it is.
func isIdentity(h http.Header) bool {
	encoding := h.Get("Content-Encoding")
	return encoding == "" || strings.EqualFold(encoding, "identity")
}

// respond settles, so that the response says what it cost, and then sends it: body and, unless it is nil, rest.
func (x *exchange) respond(response *http.Response, body []byte, rest io.Reader) error {
	x.settle()
	return x.relay.writeWhole(response, body, rest)
}

// relayEvents relays a stream to its end.
func (x *exchange) relayEvents(response *http.Response) error {
	if x.isCacheable() {
		x.relay.collect(&collector{room: x.gateway.cache.collected.Claim(x.call.Tenant, x.call.User)})
	}
	err := x.relay.relayStream(response)
	x.settle()
	if err != nil {
		return x.relay.abort(x.interrupted(err))
	}
	x.storeStream(response)
	return nil
}

// relayError relays a provider's error, which costs nothing. One that concerns the operator's account becomes 502.
func (x *exchange) relayError(response *http.Response) error {
	x.sent = false
	status, key := response.StatusCode, x.endpoint.apiKey
	body := x.relay.readError(response, maxErrorBody+len(key)) // so that a key at the limit is found whole
	if x.call.Request.Format.IsAccountError(status, body) {
		x.forbidRetry()
		x.logFailure(accountRefused + strconv.Itoa(status))
		return Error{http.StatusBadGateway, "The provider refuses this service's account"}
	}
	if !isIdentity(response.Header) { // the endpoint's key cannot be found in it
		return Error{status, "The provider responded with " + strconv.Itoa(status)}
	}
	if key != "" {
		body = bytes.ReplaceAll(body, []byte(key), []byte("[removed]"))
	}
	return x.respond(response, body[:min(len(body), maxErrorBody)], nil)
}

// relayCompletion relays a response that is not streamed. One that there is no memory for is relayed unread. It is
// charged all that is held for it, or by an estimate if others have the memory.
func (x *exchange) relayCompletion(response *http.Response) error {
	body, err := x.relay.readWhole(response, x.call.Memory)
	more := hasMore(err)
	if err != nil && !more {
		return x.interrupted(err)
	}
	var rest io.Reader
	if more {
		rest = response.Body
	}
	switch {
	case x.call.CountTokens:
		return x.respond(response, body, rest)
	case err == fairpool.ErrFull:
		return x.relay.writeUnread(response, body) // before it is settled, when its size is known
	}
	if !x.relay.readUsage(body, more) {
		return x.providerFailed("its response is not a JSON object")
	}
	if err := x.respond(response, body, rest); err != nil {
		return err
	}
	x.storeCompletion(response, body, more)
	return nil
}

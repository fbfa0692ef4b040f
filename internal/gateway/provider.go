package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
)

const (
	smallRequest  = 4 << 10         // bytes of a request that is sent in one piece
	errorPatience = 5 * time.Second // for the body of an error that is read to see whether another endpoint is tried
)

// Values of headers of requests for a provider, and of responses. They are never changed.
//
// The body was read as JSON, whatever the client says. Another charset, for example, would let the provider read other
// members than tollgate has. The official SDKs accept application/json also for streams.
var (
	jsonType     = []string{"application/json"}
	anyType      = []string{"*/*"}
	textType     = []string{"text/plain; charset=utf-8"}
	ownUserAgent = []string{"tollgate"}
)

// forwardedHeaders are those of a client's request that a provider gets as they are, beside the trace context. No other
// is forwarded: some have credentials, and with an Idempotency-Key Go's Transport would repeat the request by itself.
var forwardedHeaders = []string{
	"User-Agent", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta", "Originator", sessionHeader,
}

const (
	sessionHeader = "Session-Id"    // of Codex
	loopHeader    = "Tollgate-Loop" // which deployments the request has come through
)

// relayedHeaders are those of a provider's response that a client gets.
var relayedHeaders = []string{
	"Content-Type", "Retry-After", "Retry-After-Ms", "X-Should-Retry", "Request-Id", "Openai-Processing-Ms",
	"Openai-Version", "Openai-Model",
}

// endpointRequest is a request for a provider.
type endpointRequest struct {
	to     *Endpoint
	method string   // "" is POST
	path   string   // below the endpoint's URL; "" is that itself
	query  string   // of the client
	body   [][]byte // one after the other
	header http.Header
}

// providerHeader returns the header of a request to e for c, whose client has sent another.
func (c *Call) providerHeader(e *Endpoint, client http.Header) http.Header {
	header := make(http.Header, 8) // more of them need a table
	for _, name := range forwardedHeaders {
		if values := client[name]; len(values) > 0 {
			header[name] = values
		}
	}
	if betas := header["Anthropic-Beta"]; len(betas) > 0 {
		if header["Anthropic-Beta"] = e.withoutDearBetas(betas); len(header["Anthropic-Beta"]) == 0 {
			delete(header, "Anthropic-Beta")
		}
	}
	header["Content-Type"], header["Accept"] = jsonType, jsonType
	if e.format.TakesForm() {
		header["Content-Type"] = client["Content-Type"] // has the boundary, and nothing else
	}
	if e.format.Delivery() == llmwire.Binary {
		header["Accept"] = anyType
	}
	if len(header["User-Agent"]) == 0 || c.Caching.ttl(e.format.Kind()) > 0 { // a cached response is for all programs
		header["User-Agent"] = ownUserAgent
	}
	if telemetry.TraceID(client["Traceparent"]) != "" {
		header["Traceparent"] = client["Traceparent"]
		if state := telemetry.TraceState(client["Tracestate"]); state != "" {
			header["Tracestate"] = []string{state}
		}
	}
	if c.Hops != "" {
		header[loopHeader] = []string{c.Hops}
	}
	e.setCredential(header)
	return header
}

// ownHeader returns the header of a request of tollgate's own to e that has come through hops. contentType is that of a
// form; otherwise it has no effect.
func ownHeader(e *Endpoint, hops, contentType string) http.Header {
	header := (&Call{Hops: hops}).providerHeader(e, http.Header{"Content-Type": {contentType}})
	if name, value := e.format.VersionHeader(); name != "" {
		header[name] = []string{value}
	}
	return header
}

// send sends p until ctx is done and returns the response's header, with its body to be read. If it meets a stale
// connection, it sends p once more, on a fresh one. If it fails, sent reports whether the provider may have got the
// request.
func (p *endpointRequest) send(ctx context.Context, c *transports) (_ *http.Response, sent bool, err error) {
	if member, fault := p.to.credentialFault(); fault != "" {
		return nil, false, credentialError(member + " " + fault)
	}
	response, a, err := p.attempt(ctx, c.of(p.to.url))
	if a.foundStale(err) && ctx.Err() == nil {
		response, a, err = p.attempt(ctx, c.fresh)
	}
	return response, !a.at.IsZero(), err
}

// attempt sends p once.
func (p *endpointRequest) attempt(ctx context.Context, by http.RoundTripper) (*http.Response, *attempt, error) {
	a := new(attempt)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// Also before the Transport tries again, having sent nothing.
		GetConn: func(string) { a.at, a.reused = time.Time{}, false },
		GotConn: func(c httptrace.GotConnInfo) {
			a.at = time.Now()
			// On HTTP/2 a request may fail on a connection that lives. If the provider has not processed it, the Transport
			// repeats it itself (RFC 9113, section 8.7).
			a.reused = c.Reused && !isHTTP2(c.Conn)
		},
		GotFirstResponseByte: func() { a.replied.Store(true) },
	})
	size := 0
	for _, piece := range p.body {
		size += len(piece)
	}
	newBody := func() (io.ReadCloser, error) {
		pieces := append(make(net.Buffers, 0, len(p.body)), p.body...)
		return io.NopCloser(&pieces), nil
	}
	if size == 0 {
		newBody = func() (io.ReadCloser, error) { return http.NoBody, nil }
	} else if size <= smallRequest && p.to.url.Scheme == "https" { // http.Transport sends it with the header
		whole := bytes.Join(p.body, nil)
		newBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
	}
	body, _ := newBody()
	request := (&http.Request{
		Method: cmp.Or(p.method, http.MethodPost), URL: p.url(), Host: p.to.url.Host, Header: p.header,
		Body: body, GetBody: newBody, ContentLength: int64(size),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	response, err := by.RoundTrip(request)
	return response, a, err
}

// url returns where the request goes: to the endpoint's URL, with the client's query after its own.
func (p *endpointRequest) url() *url.URL {
	u := *p.to.url
	u.User, u.Fragment = nil, ""
	if p.path != "" {
		u.Path += p.path
		if u.RawPath != "" {
			u.RawPath += p.path
		}
	}
	switch {
	case u.RawQuery == "":
		u.RawQuery = p.query
	case p.query != "":
		u.RawQuery += "&" + p.query
	}
	return &u
}

// failureReason describes why a provider could not be reached, without the parts of err that come from a config.
func failureReason(err error) string {
	if wrong, ok := errors.AsType[credentialError](err); ok {
		return "its " + wrong.Error()
	}
	if errors.Is(err, errDenied) {
		return "its address is within -gateway-deny"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "its name cannot be resolved"
	}
	if isTimeout(err) || errors.Is(err, errSilent) {
		return "it does not respond in time"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its TLS certificate is not valid"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it does not speak TLS"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it closed the connection"
	}
	return "the connection failed"
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

// accountRefused, with the status behind it, is the reason of a failure that concerns the operator's account.
const accountRefused = "it refuses the account of the endpoint with "

// reasonToTryNext returns why the next endpoint is to be tried instead of relaying an error: its provider is
// overloaded or refuses the operator's account, and has not generated anything. It is "" if the response is to be
// relayed, as that of the last endpoint is.
func (x *exchange) reasonToTryNext(response *http.Response) string {
	status := response.StatusCode
	if !x.hasNext {
		return ""
	}
	var seen []byte
	if status == http.StatusBadRequest || status == http.StatusTooManyRequests { // others do not depend on the body
		seen = peekError(response)
	}
	if x.call.Request.Format.IsAccountError(status, seen) {
		return accountRefused + strconv.Itoa(status)
	}
	if status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500 {
		return "it responds with " + strconv.Itoa(status)
	}
	return ""
}

// peekError returns the beginning of an error's body, or what has come of it in time. response still has all of it.
func peekError(response *http.Response) []byte {
	body := response.Body
	defer time.AfterFunc(errorPatience, func() { body.Close() }).Stop()
	seen, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(seen), body), body}
	return seen
}

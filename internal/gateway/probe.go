package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

// ProbeTimeout is the longest that Gateway.Probe waits for an endpoint. It may take a few seconds more to close a
// WebSocket.
const ProbeTimeout = 10 * time.Second

const (
	maxProbes     = 32        // at a time; one tenant's share is Options.TenantShare
	maxProbeBody  = 256 << 10 // bytes of a response that are read; an image may have more
	maxProbeFault = 300       // bytes of what a provider says
)

var errTooManyProbes = Error{http.StatusServiceUnavailable, "Too many endpoints are being tested"}

// A ProbeCall is the question whether an endpoint works.
type ProbeCall struct {
	Tenant string // as in Call
	Hops   string // as in Call
}

// A Probe is what an endpoint has responded to the smallest request that it can serve.
type Probe struct {
	Model   string // that it was asked for; "" if the config names none
	Status  int    // of its response; 0 if none came
	Latency time.Duration
	Fault   string // a sentence without the endpoint's key; "" if the endpoint works

	began time.Time
}

// end notes what has come of the request.
func (p *Probe) end(status int, fault string) {
	p.Status, p.Fault, p.Latency = status, fault, time.Since(p.began)
}

// Probe sends the smallest request that e can serve, once, as any request for c.Tenant would be sent: for a token, or
// whatever else the kind of e has, and to open a session. No account pays for it, and nothing is counted. e must be
// complete and usable, and need not come from Usable. The errors are those of the Gateway, of status 503.
func (g *Gateway) Probe(ctx context.Context, e *Endpoint, c ProbeCall) (Probe, error) {
	p := Probe{Model: e.defaultModel}
	if p.Model == "" && len(e.models) > 0 {
		p.Model = e.models[0]
	}
	key, member, fault := g.options.Keys.keyFor(e, c.Tenant)
	withKey := *e
	withKey.apiKey = key
	if fault == "" {
		member, fault = withKey.credentialFault()
	}
	switch {
	case fault != "":
		p.Fault = "The endpoint cannot be used: its " + member + " " + fault
		return p, nil
	case p.Model == "":
		p.Fault = "The endpoint has no model to ask for by name: set its " + e.modelMember()
		return p, nil
	}
	place := g.probes.Claim(c.Tenant, "")
	if place.AddUpTo(1) != nil {
		return p, errTooManyProbes
	}
	defer place.Release()
	limited, stop := context.WithTimeoutCause(g.ctx, min(ProbeTimeout, g.options.HeaderTimeout), errSilent)
	defer stop()
	asked, cancel := context.WithCancelCause(limited)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(errClientGone) })()
	p.began = time.Now()
	g.probe(asked, &withKey, &p, c.Hops)
	if context.Cause(asked) == errStopping {
		return p, Error{http.StatusServiceUnavailable, "The server is stopping"}
	}
	return p, nil
}

// modelMember returns the member that has the model of a request that names none.
func (e *Endpoint) modelMember() string {
	if e.session != nil {
		return "model"
	}
	return "default_model"
}

// probe asks e, whose key is known, and ends p.
func (g *Gateway) probe(ctx context.Context, e *Endpoint, p *Probe, hops string) {
	if e.session != nil && !e.session.isUltravox {
		g.probeSession(ctx, e, p, hops)
		return
	}
	request, judge := e.probeRequest(p.Model, hops), e.faultOf
	if e.session != nil {
		judge = e.faultOfCall
	}
	response, sent, err := request.send(ctx, g.transports)
	if err != nil {
		p.end(0, unreached(sent, err))
		return
	}
	defer response.Body.Close()
	fault := judge(response)
	p.end(response.StatusCode, fault)
}

// probeRequest returns the smallest request for the model of e or, for a call, the request that creates one. That costs
// nothing unless it is joined.
func (e *Endpoint) probeRequest(model, hops string) *endpointRequest {
	if e.session != nil {
		header := e.openingHeader(hops)
		header["Content-Type"], header["Accept"] = jsonType, jsonType
		return &endpointRequest{to: e, body: [][]byte{e.session.newCall(ultravoxStep)}, header: header}
	}
	changes := llmwire.Changes{Model: model}
	if e.format.HasLimit() {
		changes.LimitMember = e.limitName()
	}
	contentType, body := e.format.Smallest(changes, e.voice)
	return &endpointRequest{to: e, body: body, header: ownHeader(e, hops, contentType)}
}

// unreached returns the sentence for a request that has failed with err before there was a response.
func unreached(sent bool, err error) string {
	if sent {
		return "The provider has failed: " + failureReason(err)
	}
	return "The provider cannot be reached: " + failureReason(err)
}

// faultOf returns what is wrong with a response of e, "" if nothing is.
func (e *Endpoint) faultOf(response *http.Response) string {
	if fault, ok := e.statusFault(response, http.StatusOK); !ok {
		return fault
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if e.format.Delivery() == llmwire.Binary && !strings.Contains(kind, "json") {
		return faultOfSound(response, kind)
	}
	if kind == "text/event-stream" {
		return "The provider's response is a stream, which was not asked for"
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProbeBody))
	if err != nil {
		return unreached(true, err)
	}
	if len(body) == maxProbeBody && e.format.Delivery() == llmwire.AsItComes && isObject(body) {
		return ""
	}
	report := llmwire.Report{Format: e.format}
	if _, err := report.Read(body); err == nil && !report.Failed && !report.IsFailure() {
		return ""
	}
	return cmp.Or(e.sentenceOf(response.StatusCode, body), "The provider's response is not what a URL that ends in "+
		e.format.URLSuffix()+" should send: does url have the right path?")
}

// isObject reports whether a response begins as a JSON object.
func isObject(body []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) }

// statusFault returns what is wrong with the header of a response that should have one of the given statuses. ok is
// false if the body need not be judged: something is wrong, or an error shows that the endpoint works, without a fault.
func (e *Endpoint) statusFault(response *http.Response, expected ...int) (fault string, ok bool) {
	status := response.StatusCode
	switch {
	case status >= 400:
		body, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorBody)) // what has come of it
		if !isIdentity(response.Header) {
			body = nil
		}
		if llmwire.IsAtLimit(status, body) {
			return "", false
		}
		return cmp.Or(e.sentenceOf(status, body), "The provider responds with "+strconv.Itoa(status)), false
	case status >= 300:
		return "The provider redirects, which is not followed", false
	case !slices.Contains(expected, status):
		return "The provider responds with " + strconv.Itoa(status), false
	case !isIdentity(response.Header):
		return "The provider's response is compressed, which was not asked for", false
	}
	return "", true
}

// sentenceOf returns what a provider says in an error, in one line without the key of e; "" if it says nothing. What it
// says of the operator's account is not for the admins of a tenant, who may use the key, but not read it.
func (e *Endpoint) sentenceOf(status int, body []byte) string {
	if e.isKeyNamed && e.format.IsAccountError(status, body) {
		return "The provider refuses the operator's account"
	}
	isSpace := func(c rune) bool { return c == ' ' || !unicode.IsGraphic(c) }
	words := strings.FieldsFunc(string(withoutKey([]byte(llmwire.ErrorSentence(body)), e.apiKey)), isSpace)
	sentence := strings.Join(words, " ")
	if len(sentence) > maxProbeFault {
		sentence = strings.ToValidUTF8(sentence[:maxProbeFault], "") + "…"
	}
	return sentence
}

// faultOfSound returns what is wrong with a response of a media type that should be a sound, of which the beginning is
// read.
func faultOfSound(response *http.Response, kind string) string {
	first := make([]byte, 512)
	n, err := io.ReadAtLeast(response.Body, first, 1)
	switch {
	case err == io.EOF:
		return "The provider's response is empty"
	case err != nil:
		return unreached(true, err)
	case strings.HasPrefix(cmp.Or(kind, http.DetectContentType(first[:n])), "text/"):
		return "The provider's response is a text, not a sound"
	}
	return ""
}

// faultOfCall does what faultOf does for a response of Ultravox to the creation of a call.
func (e *Endpoint) faultOfCall(response *http.Response) string {
	if fault, ok := e.statusFault(response, http.StatusOK, http.StatusCreated); !ok {
		return fault
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxCreatedCall+1))
	if err != nil {
		return unreached(true, err)
	}
	if _, ok := joinURL(body, e.url.Scheme); !ok || len(body) > maxCreatedCall {
		return "The provider's response has no joinUrl that may be dialled"
	}
	return ""
}

// probeSession opens a session of OpenAI's Realtime API, waits for its first event, and closes it.
func (g *Gateway) probeSession(ctx context.Context, e *Endpoint, p *Probe, hops string) {
	address := e.sessionURL(p.Model)
	server, response, err := g.sessions.servers.Dial(ctx, g.transports.fresh, address, e.openingHeader(hops))
	switch {
	case err == nil:
		defer server.Finish()
		defer server.Close(websocket.CloseNormal, "")
		defer context.AfterFunc(ctx, server.Abort)()
		fault := e.faultOfSession(ctx, server)
		p.end(response.StatusCode, fault)
	case response != nil:
		fault, _ := e.statusFault(response, http.StatusSwitchingProtocols)
		p.end(response.StatusCode, fault)
	default:
		p.end(0, unreached(false, err))
	}
}

// faultOfSession returns what is wrong with a session whose first event should be session.created, "" if that is.
func (e *Endpoint) faultOfSession(ctx context.Context, server *websocket.Conn) string {
	var event []byte
	for {
		part, err := server.Next()
		if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
			reason, _ := json.Marshal(closed.Reason) // cannot fail
			return cmp.Or(e.sentenceOf(http.StatusSwitchingProtocols, reason), "The provider closes the session")
		}
		if err != nil {
			return unreached(true, cmp.Or(context.Cause(ctx), err))
		}
		if event = append(event, part.Data...); part.Last || len(event) > maxErrorBody {
			break
		}
	}
	var first struct{ Type string }
	_ = json.Unmarshal(event, &first) // something else has no type
	if first.Type == "session.created" {
		return ""
	}
	return cmp.Or(e.sentenceOf(http.StatusSwitchingProtocols, event), "The provider's first event is not session.created")
}

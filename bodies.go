package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"tollgate/internal/clientip"
	"tollgate/internal/connlimit"
	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/telemetry"
)

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

// writePools writes the state of what all requests share.
func (s *server) writePools(p *telemetry.Page) {
	pools := s.gateway.Pools()
	pools["public_bodies"], pools["admin_bodies"], pools["gateway_bodies"] =
		s.bodies.public.Stats(), s.bodies.admin.Stats(), s.bodies.gateway.Stats()
	pools["stripe"] = s.stripeCalls.Stats()
	pools["webhook_bodies"], pools["webhooks"] = s.bodies.webhook.Stats(), s.webhooks.Stats()
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

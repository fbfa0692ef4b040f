package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/websocket"
)

const (
	sessionIdle  = 60 * time.Second // without a frame, after which a side is gone
	sessionPing  = 25 * time.Second // between pings
	sessionWrite = 30 * time.Second // for a frame, after which a side that does not read is gone
)

var errTooManySessions = Error{http.StatusServiceUnavailable, "Too many sessions are open"}

// A SessionCall is a client's request for a session: a WebSocket to an endpoint of the kind realtime.
type SessionCall struct {
	ID     string // of the request, for the log
	Tenant string // the owner of the endpoints: for the log, and a group of users as fairpool has it
	User   string // who makes the call, a member of the group
	Hops   string // that the request has come through, with this service, as endpoints are told

	Model    string // that the client names; "" for the default endpoint
	Protocol string // the subprotocol that the client is answered with; "" for none

	Account SessionAccount
	// Refusal returns the status, the code ("" for that of the status) and the sentence of an error of Account that the
	// Gateway does not know. nil: it is 403, and says itself what is wrong.
	Refusal func(error) (status int, code, message string)

	Place    *fairpool.Claim // from Gateway.SessionPlace
	Memory   *fairpool.Claim // for events that are read whole; nil: it is not bounded. The caller releases it
	Start    time.Time       // when the request came
	Deadline time.Time       // for the steps of Account that come before the session is open

	Outcome *Outcome // where ChooseEndpoint, OpenSession and run say what became of the session; must not be nil

	header   http.Header // of the response to the client, before that is accepted
	all      Endpoints   // that ChooseEndpoint was called with
	allowed  ModelNames  // what the account allows, if the client names no model and the first one was denied; else nil
	endpoint *Endpoint
	model    string // as the endpoint knows it, and the account allows it; of an Ultravox endpoint without one, its name
}

// sessions is what all sessions share.
type sessions struct {
	pool    *fairpool.Pool // of sessions that are open
	clients websocket.Side
	servers websocket.Side
	events  sync.Pool // of *[]byte: what is kept of an event until it is complete
}

func newSessions(options Options) *sessions {
	s := &sessions{pool: fairpool.New(max(options.MaxSessions, 1), options.TenantShare)}
	for _, side := range []*websocket.Side{&s.clients, &s.servers} {
		side.IdleTimeout, side.PingInterval, side.WriteTimeout = sessionIdle, sessionPing, sessionWrite
	}
	return s
}

// A provider is the provider's side of one session, and how that is paid for.
type provider interface {
	// open holds what the session needs first, and connects to the provider. If it returns an error, nothing is held any
	// more. Errors: an Error, a *refusedSession, a HeldError or those of the account.
	open(ctx context.Context) (*websocket.Conn, error)
	// run carries messages between the client and the provider until both connections are closed and everything is
	// settled. It ends soon after the Gateway is stopped.
	run(client, server *websocket.Conn)
	// abandon settles everything, and closes the connection to the provider, if the client cannot be accepted after open.
	abandon()
}

// SessionPlace returns a claim on a place among the sessions that are open, for a user of a tenant.
func (g *Gateway) SessionPlace(tenant, user string) *fairpool.Claim {
	return g.sessions.pool.Claim(tenant, user)
}

// OpenSession opens a session for the client. c.ChooseEndpoint must have succeeded. run carries the session to its end,
// and must be called once: best when the handler of r has returned, so that net/http keeps nothing for the session. run
// is nil if there is an error, and the client has got no response, or if the client has got the provider's refusal.
// Errors: an Error, a HeldError, or those of the account.
func (g *Gateway) OpenSession(w http.ResponseWriter, r *http.Request, c *SessionCall) (run func(), err error) {
	if c.Place.AddUpTo(1) != nil {
		return nil, errTooManySessions
	}
	defer func() {
		if run == nil {
			c.Place.Release()
		}
	}()
	c.header = w.Header()
	p, server, err := g.openAllowed(r, c)
	if refused, ok := errors.AsType[*refusedSession](err); ok {
		refused.send(w, c.endpoint.apiKey)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c.Outcome.FirstByte = time.Since(c.Start)
	client, err := g.acceptClient(w, r, c)
	if err != nil {
		p.abandon()
		return nil, err
	}
	return func() {
		defer c.Place.Release()
		began := time.Now()
		p.run(client, server)
		c.Outcome.Session = time.Since(began)
	}, nil
}

// openAllowed connects to the provider of the endpoint that was chosen. If the account denies its model, which the
// client has not named, it does that once more for one that the account allows.
func (g *Gateway) openAllowed(r *http.Request, c *SessionCall) (provider, *websocket.Conn, error) {
	for {
		c.Outcome.Endpoint, c.Outcome.Model = c.endpoint.label, c.model
		p := g.newProvider(c)
		server, err := g.openProvider(r, p)
		denied, isDenied := errors.AsType[DeniedError](err)
		if !isDenied {
			return p, server, err
		}
		if err := c.chooseAllowed(denied.Allowed); err != nil {
			return nil, nil, err
		}
	}
}

// newProvider returns the provider's side of a session.
func (g *Gateway) newProvider(c *SessionCall) provider {
	if c.endpoint.session.isUltravox {
		return newUltravoxSession(g, c)
	}
	return newOpenAISession(g, c)
}

// openProvider connects to the provider, unless the client hangs up meanwhile.
func (g *Gateway) openProvider(r *http.Request, p provider) (*websocket.Conn, error) {
	limited, stop := context.WithTimeoutCause(g.ctx, g.options.HeaderTimeout, errSilent)
	defer stop()
	ctx, cancel := context.WithCancelCause(limited)
	defer cancel(nil)
	defer context.AfterFunc(r.Context(), func() { cancel(errClientGone) })()
	return p.open(ctx)
}

// acceptClient opens the client's WebSocket. If that fails, it has gone.
func (g *Gateway) acceptClient(w http.ResponseWriter, r *http.Request, c *SessionCall) (*websocket.Conn, error) {
	if r.Context().Err() != nil {
		return nil, errHungUp
	}
	header := w.Header().Clone()
	header.Del("Connection") // which has another value for a WebSocket
	client, err := g.sessions.clients.Accept(w, r, c.Protocol, header)
	if refused, ok := errors.AsType[*websocket.HandshakeError](err); ok {
		return nil, Error{refused.Status, refused.Reason}
	}
	if err != nil {
		return nil, errHungUp
	}
	return client, nil
}

// A refusedSession is the response of a provider that refuses to open a session, which the client gets.
type refusedSession struct {
	response *http.Response
	body     []byte
}

func (e *refusedSession) Error() string {
	return "the provider refuses to open a session: " + strconv.Itoa(e.response.StatusCode)
}

// send sends the response, without the endpoint's key.
func (e *refusedSession) send(w http.ResponseWriter, key string) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(clientTimeout))
	h := w.Header()
	copyHeaders(h, e.response.Header, key)
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(e.body))}
	w.WriteHeader(e.response.StatusCode)
	_, _ = w.Write(e.body)
}

// failure returns what the client of a session is told of an error that ends it.
func (c *SessionCall) failure(err error) *llmwire.RealtimeError {
	return llmwire.RealtimeFailure(c.refusal(err))
}

// closeCode returns the code with which a session is closed because of an error of its account.
func (c *SessionCall) closeCode(err error) websocket.Code {
	if status, _, _ := c.refusal(err); status == http.StatusServiceUnavailable { // it is not the account's fault
		return websocket.CloseTryAgain
	}
	return websocket.ClosePolicy
}

// refusal returns the status, the code ("" for that of the status) and the sentence of an error.
func (c *SessionCall) refusal(err error) (status int, code, message string) {
	if coded, ok := errors.AsType[CodedError](err); ok {
		return coded.Status, coded.Code, coded.Message
	}
	if held, ok := errors.AsType[HeldError](err); ok {
		return http.StatusTooManyRequests, "balance_held", held.Error()
	}
	if left, ok := asInsufficient(err); ok {
		message = fmt.Sprintf("The balance does not cover another response: %d tokens are left", left)
		return http.StatusPaymentRequired, "", message
	}
	if _, ok := errors.AsType[DeniedError](err); ok {
		err = DeniedModel(c.model)
	}
	plain, isPlain := errors.AsType[Error](err)
	switch {
	case isPlain:
		return plain.Status, "", plain.Message
	case errors.Is(err, ErrNoHold):
		return http.StatusUnauthorized, "", "The API key is gone"
	case errors.Is(err, ErrUnavailable):
		return http.StatusServiceUnavailable, "", "The account cannot be reached"
	case c.Refusal != nil:
		return c.Refusal(err)
	}
	return http.StatusForbidden, "", err.Error()
}

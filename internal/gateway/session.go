package gateway

import (
	"context"
	"net/http"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/websocket"
)

// A SessionCall is a client's request for a session: a WebSocket to an endpoint of the kind realtime.
type SessionCall struct {
	ID     string // of the request, for the log
	Tenant string // whom the endpoints belong to: for the log, and a group of users as fairpool has it
	User   string // who makes the call, a member of the group
	Hops   string // that the request has come through, with this service, as endpoints are told

	Model    string // that the client names; "" for the default endpoint
	Protocol string // the subprotocol that the client is answered with; "" for none

	Account  SessionAccount
	Place    *fairpool.Claim // from Gateway.SessionPlace
	Start    time.Time       // when the request came
	Deadline time.Time       // for the steps of Account that come before the session is open

	Outcome *Outcome // where ChooseEndpoint and ServeSession say what became of the session; must not be nil

	all      Endpoints  // that ChooseEndpoint was called with
	allowed  ModelNames // what the account allows, if the client names no model and the first one was denied; else nil
	endpoint *Endpoint
	model    string // as the endpoint knows it, and the account allows it; of an Ultravox endpoint without one, its name
}

// sessions is what all sessions share.
type sessions struct {
	pool    *fairpool.Pool // of sessions that are open
	clients websocket.Side
	servers websocket.Side
}

func newSessions(options Options) sessions {
	return sessions{pool: fairpool.New(max(options.MaxSessions, 1), options.TenantShare)}
}

// A provider is the provider's side of one session, and how that is paid for.
type provider interface {
	// open holds what the session needs first, and connects to the provider. If it returns an error, nothing is held any
	// more. Errors: an Error, a HeldError or those of the account.
	open(ctx context.Context) (*websocket.Conn, error)
	// run carries messages between the client and the provider until both connections are closed and everything is
	// settled. It ends soon after the Gateway is stopped.
	run(client, server *websocket.Conn)
	// abandon settles everything if the client cannot be accepted after open.
	abandon()
}

// SessionPlace returns a claim on a place among the sessions that are open, for a user of a tenant.
func (g *Gateway) SessionPlace(tenant, user string) *fairpool.Claim {
	return g.sessions.pool.Claim(tenant, user)
}

// ServeSession opens a session for the client and carries it to its end. c.ChooseEndpoint must have succeeded. If it
// returns an error, the client has got no response. Errors: an Error, a HeldError, or those of the account.
func (g *Gateway) ServeSession(w http.ResponseWriter, r *http.Request, c *SessionCall) error {
	panic("not built yet")
}

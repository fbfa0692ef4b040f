package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A handler answers a request, or returns an error before it has written anything: server.writeError answers then.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *server) handle(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.writeError(w, r, err)
		}
	})
}

// answer is the ResponseWriter that all handlers get. What ServeMux says by itself (404, 405 and redirects, in plain
// text or HTML) it replaces by the JSON error of that status; a redirect becomes a 404.
type answer struct {
	http.ResponseWriter
	request  *http.Request
	id       [1]string     // the value of X-Request-Id
	status   int           // that was written; 0: none yet
	replaced bool          // what follows is not ours and goes nowhere
	bytes    int           // of the body
	tenant   string        // that there is; "": none
	slots    chan struct{} // of which the request's body holds one; nil: none
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status = status
	switch redirect := status == http.StatusTemporaryRedirect; {
	case a.request.Pattern != "" && !redirect:
		a.ResponseWriter.WriteHeader(status)
	case status == http.StatusMethodNotAllowed:
		a.replace(status, "Method not allowed")
	default:
		a.Header().Del("Location")
		a.replace(http.StatusNotFound, "Not found")
	}
}

func (a *answer) replace(status int, sentence string) {
	a.status, a.replaced = status, true
	_ = writeJSON(replacement{a}, status, errorBody{Error: sentence})
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.replaced {
		return len(p), nil
	}
	return a.write(p)
}

func (a *answer) write(p []byte) (int, error) {
	if a.request.Method != http.MethodHead {
		a.bytes += len(p)
	}
	return a.ResponseWriter.Write(p)
}

// replacement is an answer to which what replaces it is written.
type replacement struct{ *answer }

func (r replacement) WriteHeader(status int)      { r.ResponseWriter.WriteHeader(status) }
func (r replacement) Write(p []byte) (int, error) { return r.write(p) }

// observed serves next with an answer, survives its panics, and counts and, if told to, logs what it answered. Once the
// server drains, or has few connections to spare, each answer is its connection's last.
func (s *server) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		a := &answer{ResponseWriter: w, request: r, id: [1]string{s.requestID(r)}}
		w.Header()["X-Request-Id"] = a.id[:]
		defer func() {
			p := recover()
			aborted := p != nil && a.status != 0
			if p != nil {
				s.log.errorf("panic in %s id=%s: %v", r.Pattern, a.id[0], p)
				for line := range strings.Lines(string(debug.Stack())) {
					s.log.errorf("%s", strings.TrimSuffix(line, "\n"))
				}
				if !aborted {
					_ = writeJSON(a, http.StatusInternalServerError, errorBody{Error: "Internal error"})
				}
			}
			if a.slots != nil {
				<-a.slots
			}
			took := time.Since(start)
			s.metrics.request(r.Pattern, r.Method, a.status, took)
			if s.accessLog {
				s.logAccess(a, took)
			}
			if aborted {
				panic(http.ErrAbortHandler) // cut the connection: what was sent is not the answer
			}
		}()
		if s.draining.Load() || s.crowded() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(a, r)
	})
}

// logAccess writes the line of one request. The pattern of its route stands there, since a path may hold a key.
func (s *server) logAccess(a *answer, took time.Duration) {
	route := "-"
	if a.request.Pattern != "" {
		route = a.request.Pattern[strings.IndexByte(a.request.Pattern, '/'):] // without its method
	}
	method, tenant, remote := a.request.Method, "-", a.request.RemoteAddr
	if !slices.Contains(methods, method) {
		method = "-" // any token may be one
	}
	if a.tenant != "" {
		tenant = a.tenant
	}
	if host, _, err := net.SplitHostPort(remote); err == nil {
		remote = host
	}
	s.log.infof("%s %s tenant=%s status=%d bytes=%d duration=%.2fms remote=%s id=%s",
		method, route, tenant, a.status, a.bytes, float64(took)/float64(time.Millisecond), remote, a.id[0])
}

// requestID is the request's own X-Request-Id, if that is 1 to 64 of A-Z a-z 0-9 _ - and no key of ours, else a new one that no other process
// gives.
func (s *server) requestID(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	id := append(make([]byte, 0, 64), s.processID...)
	return string(strconv.AppendInt(append(id, '-'), s.requests.Add(1), 10))
}

func validRequestID(id string) bool {
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return 1 <= len(id) && len(id) <= 64 && !validAPIKey(id) && !validToken(id, adminPrefix) // which are secrets
}

type tenantContextKey struct{}

// withTenant attaches the tenant that the path names, or else the tenant default, to the request's context.
func (s *server) withTenant(next handler) handler {
	return s.withRepairableTenant(func(w http.ResponseWriter, r *http.Request) error {
		if err := tenantFrom(r).broken; err != nil {
			return err
		}
		return next(w, r)
	})
}

// withRepairableTenant is withTenant for what needs no config, and so lets an admin mend one that is broken.
func (s *server) withRepairableTenant(next handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id := tenantID(r)
		if !validTenantID(id) {
			return ErrNoTenant
		}
		t, err := s.store.Tenant(id)
		if errors.Is(err, ErrBrokenConfig) {
			t = &tenant{id: id, broken: err}
		} else if err != nil {
			return err
		}
		w.(*answer).tenant = id
		return next(w, r.WithContext(context.WithValue(r.Context(), tenantContextKey{}, t)))
	}
}

// withBody has read the request's body before next begins.
func (s *server) withBody(next handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		body, err := readBody(w, r, s.longBodies)
		if err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		return next(w, r)
	}
}

// tenantID is the one that the path names, valid or not, or else the default.
func tenantID(r *http.Request) string {
	if id := r.PathValue("tenantId"); id != "" {
		return id
	}
	return defaultTenant
}

// tenantFrom is the tenant of a request that came through withTenant.
func tenantFrom(r *http.Request) *tenant { return r.Context().Value(tenantContextKey{}).(*tenant) }

// admin is who sent an admin's request.
type admin struct {
	tokenHash string // SHA-256 of a tenant's admin token, in hex; "": the operator
}

// String is the admin's name in a config's history.
func (a admin) String() string {
	if a.tokenHash == "" {
		return "operator"
	}
	return a.tokenHash[:8]
}

type adminContextKey struct{}

// withOperator lets only those pass who hold the operator's token.
func (s *server) withOperator(next handler) handler {
	return s.authorized(next, func(*http.Request, string, [sha256.Size]byte) (admin, error) { return admin{}, errInvalidToken })
}

// withAdmin lets only those pass who hold the operator's token or one of the tenant's own admin tokens. It stands
// before withTenant, so that a stranger does not learn which tenants there are.
func (s *server) withAdmin(next handler) handler {
	return s.authorized(next, func(r *http.Request, token string, hash [sha256.Size]byte) (admin, error) {
		id := tenantID(r)
		if !validTenantID(id) || !validToken(token, adminPrefix) {
			return admin{}, errInvalidToken
		}
		is, err := s.store.IsAdminToken(id, hash)
		if err == nil && !is {
			err = errInvalidToken
		}
		return admin{hex.EncodeToString(hash[:])}, err
	})
}

// authorized attaches the admin to the request's context: the operator, or who else other says it is.
func (s *server) authorized(next handler, other func(r *http.Request, token string, hash [sha256.Size]byte) (admin, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		token, err := bearerToken(r)
		if err != nil {
			return err
		}
		who, hash := admin{}, sha256.Sum256([]byte(token))
		if subtle.ConstantTimeCompare(hash[:], s.adminTokenHash[:]) == 0 {
			if who, err = other(r, token, hash); err != nil {
				return err
			}
		}
		return next(w, r.WithContext(context.WithValue(r.Context(), adminContextKey{}, who)))
	}
}

// adminFrom is who sent a request that came through withOperator or withAdmin.
func adminFrom(r *http.Request) admin { return r.Context().Value(adminContextKey{}).(admin) }

// bearerToken is the token of the request's Authorization header (RFC 6750, section 2.1). Errors: errNoToken where none
// was sent; errInvalidToken where it was malformed, or sent more than once.
func bearerToken(r *http.Request) (string, error) {
	values := r.Header["Authorization"]
	if len(values) == 0 {
		return "", errNoToken
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case len(values) > 1:
		return "", errInvalidToken
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return "", errNoToken
	case !validBearerToken(token):
		return "", errInvalidToken
	}
	return token, nil
}

// validBearerToken tells whether token is a b64token (RFC 6750, section 2.1).
func validBearerToken(token string) bool {
	body := strings.TrimRight(token, "=")
	for _, c := range []byte(body) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
			return false
		}
	}
	return body != ""
}

// clientAddress is where a request comes from, as the login limit counts it: an IPv4 address, or the /64 of an IPv6
// one, since that is what one customer gets. X-Forwarded-For counts only as far as trusted proxies vouch for it: of
// its hops, from the last one back, the first that is not itself trusted.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr // no TCP connection
	}
	address := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(address, trusted); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		address = hop
	}
	if address.Is4() {
		return address.String()
	}
	return netip.PrefixFrom(address.WithZone(""), 64).Masked().String()
}

// parseHop reads a hop of X-Forwarded-For, which some proxies write with its port.
func parseHop(hop string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(hop); err == nil {
		return withPort.Addr().Unmap(), true
	}
	address, err := netip.ParseAddr(hop)
	return address.Unmap(), err == nil
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	for _, prefix := range trusted {
		if prefix.Contains(address.WithZone("")) {
			return true
		}
	}
	return false
}

package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofrs/uuid/v5"
)

const (
	anonymousPrefix = "temp_" // of the API keys of anonymous users
	userPrefix      = "user_" // of those of registered ones
	adminPrefix     = "adm_"  // of the admin tokens of tenants
)

// server answers the HTTP contract from what the store keeps.
type server struct {
	store          *store
	log            *logger
	adminTokenHash [sha256.Size]byte
	loginLimit     int64 // anonymous logins a minute of one client address, 0: no limit
	trustedProxies []netip.Prefix
	accessLog      bool
	metrics        *metrics
	processID      string        // random
	requests       atomic.Int64  // that were given an ID
	longCharges    chan struct{} // holds one for each charge with a long body
	longBodies     chan struct{} // the same for what admins send
	crowded        func() bool   // the server has few connections to spare
	draining       atomic.Bool   // the server is about to stop
}

// So many bodies of more than smallBodyBytes may be held at a time. No charge needs one, and anybody may send it, since the
// body is read before Redis is asked whose the key is.
const (
	maxLongCharges = 16
	maxLongBodies  = 64 // of admins
)

// newServer returns a server on st with the settings' limits. Everything in it must be there.
func newServer(st *store, log *logger, set *settings) (*server, error) {
	if st == nil || log == nil || set == nil || set.adminToken == "" {
		return nil, errors.New("a server needs a store, a logger and settings with an admin token")
	}
	return &server{
		store:          st,
		log:            log,
		adminTokenHash: sha256.Sum256([]byte(set.adminToken)),
		loginLimit:     set.loginLimit,
		trustedProxies: set.trustedProxies,
		accessLog:      set.accessLog,
		metrics:        st.metrics,
		processID:      rand.Text()[:13],
		longCharges:    make(chan struct{}, maxLongCharges),
		longBodies:     make(chan struct{}, maxLongBodies),
		crowded:        func() bool { return false },
	}, nil
}

// route is what answers requests of one pattern of http.ServeMux.
type route struct {
	pattern string
	handler handler
}

// routes serves every route there is.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, route := range s.table() {
		mux.Handle(route.pattern, s.handle(route.handler))
	}
	return s.observed(mux)
}

// table lists every route there is.
func (s *server) table() (all []route) {
	plain := func(pattern string, h handler) { all = append(all, route{pattern, h}) }
	// A tenant's route stands twice: below the tenant's ID, and without it for the tenant default.
	tenant := func(method, path string, h handler) {
		for _, prefix := range []string{"/{tenantId}", ""} {
			plain(strings.TrimSpace(method+" "+prefix+path), h)
		}
	}
	public := s.withTenant
	admin := func(h handler) handler { return s.withAdmin(s.withTenant(h)) }
	repair := func(h handler) handler { return s.withAdmin(s.withRepairableTenant(h)) }
	// A body may be slow to come: who sends it is asked before, and again when it is there.
	slow := func(h handler) handler { return s.withAdmin(s.withBody(h)) }

	tenant("POST", "/auth/anonymous", public(s.loginAnonymous))

	tenant("GET", "/auth/key", public(s.showOwnKey))
	tenant("POST", "/tokens/consume", public(s.consume))
	tenant("", "/auth/verify", public(s.verify)) // any method: some proxies pass on the client's own

	tenant("GET", "/admin/config", admin(s.showConfig))
	tenant("PUT", "/admin/config", slow(repair(s.replaceConfig)))
	tenant("GET", "/admin/config/history", repair(s.showHistory))
	tenant("GET", "/admin/config/history/{etag}", repair(s.showVersion))
	tenant("POST", "/admin/config/history/{etag}/restore", repair(s.restoreVersion))
	tenant("POST", "/admin/tokens", repair(s.issueAdminToken))
	tenant("DELETE", "/admin/tokens", repair(s.revokeAdminTokens))
	tenant("POST", "/admin/keys", slow(admin(s.issueUserKey)))
	tenant("GET", "/admin/keys/{apiKey}", repair(s.showKey))
	tenant("PATCH", "/admin/keys/{apiKey}", slow(admin(s.changeKey)))
	tenant("DELETE", "/admin/keys/{apiKey}", repair(s.revokeKey))

	plain("GET /admin/tenants", s.withOperator(s.listTenants))
	plain("POST /admin/tenants", s.withOperator(s.createTenant))
	plain("DELETE /admin/tenants/{tenantId}", s.withOperator(s.deleteTenant))

	plain("GET /healthz", s.showHealth)
	plain("GET /readyz", s.showReadiness)
	plain("GET /metrics", s.withOperator(s.showMetrics))
	return all
}

// errorBody is the body of every answer that is an error.
type errorBody struct {
	Error      string   `json:"error"`
	TokensLeft *int64   `json:"tokensLeft,omitempty"`
	Errors     []string `json:"errors,omitempty"`
}

// What handlers find wrong with a request; writeError knows the answer to each.
var (
	errNoToken       = errors.New("no bearer token")
	errInvalidToken  = errors.New("invalid bearer token")
	errLoginDisabled = errors.New("anonymous login is disabled")
	errBodyTooLarge  = errors.New("body too large")
	errNotFound      = errors.New("not found")
)

// badRequest is a sentence for the client that says what is wrong with its request.
type badRequest string

func (e badRequest) Error() string { return string(e) }

const errUnknownGroup = badRequest("group is not one of the tenant's user_groups")

// denied is a refusal that nginx is to pass on: as 403, with its true status in X-Auth-Status.
type denied struct{ error }

func (e denied) Unwrap() error { return e.error }

// writeError is where an error becomes a status and a public sentence. What nobody foresaw is logged.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, body := http.StatusInternalServerError, errorBody{Error: "Internal error"}
	var (
		bad     badRequest
		invalid *invalidConfig
		limited rateLimited
		spent   tokensSpent
		deny    denied
	)
	switch {
	case errors.As(err, &bad):
		status, body.Error = http.StatusBadRequest, bad.Error()
	case errors.As(err, &invalid):
		status, body.Error = http.StatusBadRequest, invalid.Error()
		if all := invalid.sentences(); len(all) > 1 {
			body.Errors = all
		}
	case errors.Is(err, ErrNoTenant):
		status, body.Error = http.StatusBadRequest, "Invalid tenant ID"
	case errors.Is(err, errNoToken):
		status, body.Error = http.StatusUnauthorized, "Unauthorized"
		w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate"`)
	case errors.Is(err, errInvalidToken), errors.Is(err, ErrNoKey), errors.Is(err, ErrRevoked):
		status, body.Error = http.StatusUnauthorized, "Unauthorized"
		w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
	case errors.As(err, &spent):
		status, body.Error, body.TokensLeft = http.StatusPaymentRequired, "Payment Required", &spent.tokensLeft
	case errors.Is(err, errNotFound), errors.Is(err, ErrNoVersion):
		status, body.Error = http.StatusNotFound, "Not found"
	case errors.Is(err, ErrTenantExists):
		status, body.Error = http.StatusConflict, "Tenant already exists"
	case errors.Is(err, ErrConfigChanged):
		status, body.Error = http.StatusPreconditionFailed, "Config has changed"
	case errors.Is(err, ErrKeyReused):
		status, body.Error = http.StatusUnprocessableEntity, "Idempotency-Key was used with other parameters"
	case errors.Is(err, errLoginDisabled):
		status, body.Error = http.StatusForbidden, "Anonymous login is disabled"
	case errors.Is(err, errBodyTooLarge):
		status, body.Error = http.StatusRequestEntityTooLarge, "Body too large"
	case errors.As(err, &limited):
		status, body.Error = http.StatusTooManyRequests, "Too Many Requests"
		w.Header().Set("Retry-After", strconv.FormatInt(limited.retryAfter, 10))
	case errors.Is(err, ErrUnavailable):
		status, body.Error = http.StatusServiceUnavailable, "Service unavailable"
		w.Header().Set("Retry-After", "1")
	default:
		s.log.errorf("%s id=%s: %v", r.Pattern, w.Header().Get("X-Request-Id"), err)
	}
	if errors.As(err, &deny) {
		w.Header().Set("X-Auth-Status", strconv.Itoa(status))
		status = http.StatusForbidden
	}
	_ = writeJSON(w, status, body)
}

// writeTokens answers a charge or, with the new API key, a login.
func writeTokens(w http.ResponseWriter, status int, apiKey string, tokensLeft int64) error {
	body := append(make([]byte, 0, 96), '{')
	if apiKey != "" { // one of ours: nothing in it needs escaping
		body = append(body, `"apiKey":"`...)
		body = append(body, apiKey...)
		body = append(body, `",`...)
	}
	body = append(body, `"tokensLeft":`...)
	body = strconv.AppendInt(body, tokensLeft, 10)
	return writeBody(w, status, append(body, "}\n"...))
}

func (s *server) loginAnonymous(w http.ResponseWriter, r *http.Request) error {
	t := tenantFrom(r)
	group, ok := t.config.groups[anonymousGroup]
	if !ok {
		return errLoginDisabled
	}
	key, err := newToken(anonymousPrefix)
	if err != nil {
		return err
	}
	k := apiKey{TenantID: t.id, Group: anonymousGroup, CreatedAt: time.Now(), TokensLeft: group.tokens}
	if err := s.store.IssueKey(callTimeout, key, k, anonymousKeyLife, clientAddress(r, s.trustedProxies), s.loginLimit); err != nil {
		return err
	}
	s.metrics.keyIssued(t.id, k.Group)
	return writeTokens(w, http.StatusOK, key, k.TokensLeft)
}

// newToken is prefix with a random UUID (RFC 9562, version 4: 122 random bits).
func newToken(prefix string) (string, error) {
	id, err := uuid.NewV4()
	if err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	return prefix + id.String(), nil
}

// bearerKey is the request's API key. What does not look like one of ours never reaches Redis.
func bearerKey(r *http.Request) (string, error) {
	token, err := bearerToken(r)
	if err != nil {
		return "", err
	}
	if !validAPIKey(token) {
		return "", ErrNoKey
	}
	return token, nil
}

// validAPIKey tells whether key is one of those that tollgate makes.
func validAPIKey(key string) bool {
	return validToken(key, anonymousPrefix) || validToken(key, userPrefix)
}

// validToken tells whether token is prefix with a UUID in its canonical lower-case form.
func validToken(token, prefix string) bool {
	id, ok := strings.CutPrefix(token, prefix)
	if !ok || len(id) != 36 || strings.ToLower(id) != id {
		return false
	}
	_, err := uuid.FromString(id)
	return err == nil
}

// slowBody is how long a body may come for the config to be still that of now: it is never older than a second.
const slowBody = time.Second - watchTimeout

func (s *server) consume(w http.ResponseWriter, r *http.Request) error {
	key, err := bearerKey(r)
	if err != nil {
		return err
	}
	if r.URL.RawQuery != "" { // ?tokens=n, as verify takes it, would charge 1
		return badRequest("consume takes no query: the amount stands in the body")
	}
	c := charge{key: key, tokens: 1}
	if c.idempotencyKey, err = idempotencyKey(r); err != nil {
		return err
	}
	began := time.Now()
	body, err := readBody(w, r, s.longCharges)
	if err != nil {
		return err
	}
	if tokens, ok := plainTokens(body); ok {
		c.tokens = tokens
	} else if len(body) > 0 {
		if err := readJSON(body, fields{"tokens": wholeNumber(&c.tokens, 1, maxAmount)}, "tokens"); err != nil {
			return err
		}
	}
	t := tenantFrom(r)
	if time.Since(began) > slowBody { // by now the config may be another
		if t, err = s.store.Tenant(t.id); err != nil {
			return err
		}
	}
	got, err := s.charge(t, c)
	setRateHeaders(w.Header(), got)
	if err != nil {
		return err
	}
	if got.replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	return writeTokens(w, http.StatusOK, "", got.tokensLeft)
}

// charge charges c, as the store does, and counts what came of it.
func (s *server) charge(t *tenant, c charge) (receipt, error) {
	got, err := s.store.Charge(t, c)
	switch err.(type) {
	case nil:
		if !got.replayed {
			t.metrics.tokensCharged.Add(uint64(c.tokens))
		}
	case rateLimited:
		t.metrics.refused[refusedRate].Add(1)
	case tokensSpent:
		t.metrics.refused[refusedBalance].Add(1)
	default:
		switch err {
		case ErrNoKey:
			t.metrics.refused[refusedKey].Add(1)
		case ErrKeyReused:
			t.metrics.refused[refusedIdempotencyKey].Add(1)
		}
	}
	return got, err
}

// plainTokens reads {"tokens":n} for consume where it is spelled just so, as it mostly is. All else is left to readJSON.
func plainTokens(body []byte) (n int64, ok bool) {
	digits, prefixed := bytes.CutPrefix(body, []byte(`{"tokens":`))
	digits, closed := bytes.CutSuffix(digits, []byte("}"))
	if !prefixed || !closed || len(digits) == 0 || len(digits) > 15 || digits[0] == '0' {
		return 0, false
	}
	for _, digit := range digits {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		n = n*10 + int64(digit-'0')
	}
	return n, true
}

// idempotencyKey is the request's Idempotency-Key, "" where it has none.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header["Idempotency-Key"]
	if len(values) == 0 {
		return "", nil
	}
	unprintable := func(c rune) bool { return c < ' ' || c > '~' }
	if key := values[0]; len(values) == 1 && key != "" && len(key) <= 255 && !strings.ContainsFunc(key, unprintable) {
		return key, nil
	}
	return "", badRequest("Idempotency-Key must be one header of 1 to 255 printable ASCII characters")
}

// setRateHeaders tells what is left of a rate limit, in the words of the IETF's draft (draft-ietf-httpapi-ratelimit-headers)
// and in OpenAI's. Names are written as those spell them, which Header.Set would not.
func setRateHeaders(h http.Header, got receipt) {
	if !got.limited {
		return
	}
	// All are cut from one string, the numbers alone from where they stand in the longer ones.
	text := append(make([]byte, 0, 96), `"requests";q=`...)
	text = strconv.AppendInt(text, got.rate.limit, 10)
	limit := len(text)
	text = strconv.AppendInt(append(text, ";w="...), got.rate.window, 10)
	policy := len(text)
	text = strconv.AppendInt(append(text, `"requests";r=`...), got.rate.remaining, 10)
	remaining := len(text)
	text = strconv.AppendInt(append(text, ";t="...), got.rate.wait, 10)
	all, number := string(text), len(`"requests";q=`)
	values := []string{all[:policy], all[policy:], all[number:limit], all[policy+number : remaining]}
	h["RateLimit-Policy"] = values[0:1:1]
	h["RateLimit"] = values[1:2:2]
	h["X-RateLimit-Limit-Requests"] = values[2:3:3]
	h["X-RateLimit-Remaining-Requests"] = values[3:4:4]
}

// verify is for proxies that ask before they let a request through. It ignores the request's body and Idempotency-Key,
// which are the client's and not the proxy's: a client could pass for ever with one that was charged once.
func (s *server) verify(w http.ResponseWriter, r *http.Request) error {
	key, err := bearerKey(r)
	if err != nil {
		return err
	}
	c := charge{key: key}
	deny, err := verifyQuery(r.URL.RawQuery, &c.tokens)
	if err != nil {
		return err
	}
	t := tenantFrom(r)
	got, err := s.charge(t, c)
	h := w.Header()
	setRateHeaders(h, got)
	if err != nil {
		_, limited := errors.AsType[rateLimited](err)
		_, spent := errors.AsType[tokensSpent](err)
		if deny && (limited || spent) {
			return denied{err}
		}
		return err
	}
	values := []string{t.id, headerText(got.group), strconv.FormatInt(got.tokensLeft, 10), headerText(got.userID)}
	h["X-Tenant-Id"] = values[0:1:1]
	h["X-User-Group"] = values[1:2:2]
	h["X-Tokens-Left"] = values[2:3:3]
	if got.userID != "" {
		h["X-User-Id"] = values[3:4:4]
	}
	return writeBody(w, http.StatusOK, []byte("{}\n"))
}

// verifyQuery reads ?tokens=n and ?deny=403. Anything else, or one of them twice, is a badRequest.
func verifyQuery(query string, tokens *int64) (deny bool, err error) {
	if strings.Contains(query, ";") { // which some take for &
		return false, badRequest("Invalid query")
	}
	seen := make([]string, 0, 2)
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, badName := url.QueryUnescape(name)
		value, badValue := url.QueryUnescape(value)
		switch {
		case badName != nil || badValue != nil:
			return false, badRequest("Invalid query")
		case slices.Contains(seen, name):
			return false, badRequest("Query " + strconv.Quote(name) + " is there twice")
		case name == "tokens":
			var wrong problems
			if wholeNumber(tokens, 0, maxAmount)(&wrong, "tokens", []byte(value)); len(wrong) > 0 {
				return false, badRequest(wrong[0])
			}
		case name == "deny":
			if deny = value == "403"; !deny {
				return false, badRequest("deny must be 403")
			}
		default:
			return false, badRequest("Query " + strconv.Quote(name) + " is not known")
		}
		seen = append(seen, name)
	}
	return deny, nil
}

// headerText is text as a header can carry it: all but printable ASCII is percent-encoded, % itself, and a space at an
// end, where HTTP would drop it.
func headerText(text string) string {
	special := func(i int) bool {
		c := text[i]
		return c < ' ' || c > '~' || c == '%' || c == ' ' && (i == 0 || i == len(text)-1)
	}
	at := 0
	for at < len(text) && !special(at) {
		at++
	}
	if at == len(text) {
		return text
	}
	var encoded strings.Builder
	for i, c := range []byte(text) {
		if special(i) {
			fmt.Fprintf(&encoded, "%%%02X", c)
		} else {
			encoded.WriteByte(c)
		}
	}
	return encoded.String()
}

func (s *server) showOwnKey(w http.ResponseWriter, r *http.Request) error {
	key, err := bearerKey(r)
	if err != nil {
		return err
	}
	k, err := s.store.Key(callTimeout, tenantFrom(r).id, key)
	if err != nil {
		return err
	}
	return writeKey(w, k)
}

// writeKey answers with all of k but the key itself and its tenant, which the asker named.
func writeKey(w http.ResponseWriter, k apiKey) error {
	body := struct {
		UserID     *string `json:"userId"`
		Group      string  `json:"group"`
		CreatedAt  string  `json:"createdAt"`
		ExpiresAt  *string `json:"expiresAt"`
		TokensLeft int64   `json:"tokensLeft"`
	}{Group: k.Group, CreatedAt: formatTime(k.CreatedAt), TokensLeft: k.TokensLeft}
	if k.UserID != "" {
		body.UserID = &k.UserID
	}
	if !k.ExpiresAt.IsZero() {
		at := formatTime(k.ExpiresAt)
		body.ExpiresAt = &at
	}
	return writeJSON(w, http.StatusOK, body)
}

func (s *server) showHealth(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, statusBody{"ok"})
}

// showReadiness says whether a charge would be decided.
func (s *server) showReadiness(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return ErrUnavailable
	}
	if err := s.store.Ready(); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, statusBody{"ready"})
}

// showMetrics answers in the Prometheus text format. It shows no key, token or user.
func (s *server) showMetrics(w http.ResponseWriter, r *http.Request) error {
	e := new(exposition)
	s.metrics.write(e)
	s.store.writeMetrics(e)
	writeProcess(e)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header()["Cache-Control"] = cacheControl
	_, _ = w.Write(e.Bytes())
	return nil
}

type statusBody struct {
	Status string `json:"status"`
}

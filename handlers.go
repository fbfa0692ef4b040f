package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

// handler returns the http.Handler that serves every route. It creates the server's metrics.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	var patterns []string
	browser := make(map[string]bool)
	for _, r := range s.routeTable() {
		if browser[r.pattern] = r.browser; r.browser {
			r.access = s.forBrowsers(r.access)
		}
		mux.Handle(r.pattern, s.toHandler(r.access, r.handler))
		patterns = append(patterns, r.pattern)
	}
	s.metrics = newMetrics(patterns)
	return s.middleware(mux, s.corsForOtherMethods(mux, browser))
}

// route is a pattern of http.ServeMux, what its requests pass, and the handler that responds.
type route struct {
	pattern string
	access  access
	handler step
	browser bool // pages of other origins may call it, see cors.go
}

// routeTable returns every route. Each tenant route has two patterns: below the tenant's ID, and without it for the
// tenant default.
func (s *server) routeTable() []route {
	var (
		public        = access{publicTimeout, []step{s.loadTenant}}
		signInBody    = access{adminTimeout, []step{s.publicBodies.read, s.loadTenant}} // the provider takes its time
		checkedKey    = access{publicTimeout, []step{s.readVerifyKey, s.loadTenant}}
		keyHolder     = access{publicTimeout, []step{s.readAPIKey, refuseBody, s.loadTenant}}
		keyHolderBody = access{publicTimeout, []step{s.readAPIKey, s.publicBodies.read, s.loadTenant}}

		modelReader = access{publicTimeout, []step{s.readKey, refuseBody, s.loadTenant, s.requireKey}}
		modelCaller = access{publicTimeout, []step{s.readKey, s.loadTenant, s.readBody, s.loadTenant}}

		// A route that does not use the config serves a tenant whose config is broken, too.
		admin       = access{adminTimeout, []step{s.requireAdmin, refuseBody, s.loadTenant}}
		adminRepair = access{adminTimeout, []step{s.requireAdmin, refuseBody, s.requireTenant}}
		// A body may be slow to come: the token is checked before, so that strangers send none, and again after.
		adminBody       = access{adminTimeout, []step{s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.loadTenant}}
		adminRepairBody = access{adminTimeout, []step{s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.requireTenant}}
	)
	var routes []route
	for _, t := range []struct {
		method, path string
		access       access
		handler      step
	}{
		{"POST", "/auth/anonymous", public, s.loginAnonymous},
		{"POST", "/auth/google", signInBody, s.signIn(s.google)},
		{"POST", "/auth/apple", signInBody, s.signIn(s.apple)},
		{"GET", "/auth/key", keyHolder, s.showOwnKey},
		{"", "/auth/verify", checkedKey, s.verify}, // any method: some proxies forward the client's own
		{"POST", "/tokens/consume", keyHolderBody, s.consume},
		{"POST", "/tokens/holds", keyHolderBody, s.hold},
		{"POST", "/tokens/holds/{holdId}/settle", keyHolderBody, s.settleHold},
		{"DELETE", "/tokens/holds/{holdId}", keyHolder, s.cancelHold},

		{"POST", "/v1/chat/completions", modelCaller, s.generate},
		{"POST", "/v1/messages", modelCaller, s.generate},
		{"POST", "/v1/messages/count_tokens", modelCaller, s.countTokens},
		{"GET", "/v1/models", modelReader, s.listModels},
		{"GET", "/v1/models/{model}", modelReader, s.showModel},

		{"GET", "/admin/config", admin, s.showConfig},
		{"PUT", "/admin/config", adminRepairBody, s.replaceConfig},
		{"GET", "/admin/config/history", adminRepair, s.showHistory},
		{"GET", "/admin/config/history/{etag}", adminRepair, s.showVersion},
		{"POST", "/admin/config/history/{etag}/restore", adminRepair, s.restoreVersion},
		{"POST", "/admin/keys", adminBody, s.issueUserKey},
		{"GET", "/admin/keys", adminRepair, s.listUserKeys},
		{"GET", "/admin/keys/{apiKey}", adminRepair, s.showKey},
		{"PATCH", "/admin/keys/{apiKey}", adminBody, s.updateKey},
		{"POST", "/admin/keys/{apiKey}/rotate", adminRepair, s.rotateKey},
		{"DELETE", "/admin/keys/{apiKey}", adminRepair, s.revokeKey},
		{"GET", "/admin/usage", adminRepair, s.showUsage},
		{"POST", "/admin/tokens", adminRepair, s.issueAdminToken},
		{"DELETE", "/admin/tokens", adminRepair, s.revokeAdminTokens},
	} {
		for _, prefix := range []string{"/{tenantId}", ""} {
			pattern := strings.TrimSpace(t.method + " " + prefix + t.path)
			routes = append(routes, route{pattern, t.access, t.handler, !strings.HasPrefix(t.path, "/admin/")})
		}
	}
	return append(routes, s.otherRoutes()...)
}

// otherRoutes returns the routes that are not those of a tenant.
func (s *server) otherRoutes() []route {
	var (
		open         = access{publicTimeout, []step{refuseBody}}
		operator     = access{adminTimeout, []step{s.requireOperator, refuseBody}}
		operatorBody = access{adminTimeout, []step{s.requireOperator, s.adminBodies.read}}
		metrics      = access{adminTimeout, []step{s.requireMetrics, refuseBody}}
	)
	return []route{
		{"GET /admin/tenants", operator, s.listTenants, false},
		{"POST /admin/tenants", operatorBody, s.createTenant, false},
		{"DELETE /admin/tenants/{tenantId}", operator, s.deleteTenant, false},
		{"GET /metrics", metrics, s.showMetrics, false},
		{"GET /openapi.json", open, s.showOpenAPI, false},
		{"GET /healthz", open, s.showHealth, false},
		{"GET /readyz", open, s.showReadiness, false},
	}
}

func (s *server) loginAnonymous(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	group, ok := info.tenant.config.groups[anonymousGroup]
	if !ok {
		return errLoginDisabled
	}
	key, err := newCredential(anonymousKeyPrefix)
	if err != nil {
		return err
	}
	k := apiKey{group: anonymousGroup, createdAt: time.Now(), tokensLeft: group.tokens}
	if s.loginLimit > 0 {
		address := clientAddress(r, s.trustedProxies)
		err = s.store.Login(info.deadline, info.tenant, key, k, anonymousKeyTTL, address, s.loginLimit)
		if _, limited := errors.AsType[rateLimitError](err); limited {
			s.warnOfUntrustedProxy(r)
		}
	} else {
		err = s.store.NewKey(info.deadline, info.tenant, key, k, anonymousKeyTTL)
	}
	if err != nil {
		return err
	}
	s.countIssued(info, k)
	return writeTokens(w, info, http.StatusOK, key, k.tokensLeft)
}

func (s *server) consume(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if r.URL.RawQuery != "" { // ?tokens=n is verify's: here it would charge 1
		return badRequestError("consume takes no query: put the amount in the body")
	}
	c := chargeRequest{key: info.apiKey, tokens: 1}
	var err error
	if c.idempotencyKey, err = idempotencyKey(r); err != nil {
		return err
	}
	if tokens, ok := plainTokens(info.body); ok {
		c.tokens = tokens
	} else if len(info.body) > 0 {
		if c.tokens, c.upTo, err = decodeCharge(info.body); err != nil {
			return err
		}
	}
	result, err := s.chargeAndCount(info, c)
	if result.hasRateLimit {
		setRateHeaders(w.Header(), result.rate)
	}
	if err != nil {
		return err
	}
	if result.replayed {
		setReplayed(w.Header())
	}
	if c.upTo {
		return writeJSON(w, http.StatusOK, chargedBody{result.charged, result.tokensLeft})
	}
	return writeTokens(w, info, http.StatusOK, "", result.tokensLeft)
}

// chargedBody is the response to a charge of an amount that the client does not know beforehand.
type chargedBody struct {
	Charged    int64 `json:"charged"`
	TokensLeft int64 `json:"tokensLeft"`
}

const (
	defaultHoldTTL = 900          // seconds
	maxHoldTTL     = 24 * 60 * 60 // seconds
)

func (s *server) hold(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	h := holdRequest{key: info.apiKey}
	ttlSeconds := int64(defaultHoldTTL)
	err := strict.Decode(info.body, strict.Rules{
		"tokens":    strict.Int(&h.most, 1, maxAmount),
		"expiresIn": strict.Seconds(&ttlSeconds, 1, maxHoldTTL),
	}, "tokens")
	if err != nil {
		return err
	}
	if h.idempotent, err = readIdempotentRequest(r, info.body); err != nil {
		return err
	}
	if h.id, err = newCredential(holdPrefix); err != nil {
		return err
	}
	h.least, h.ttl = h.most, time.Duration(ttlSeconds)*time.Second
	result, err := s.store.Hold(info.deadline, info.tenant, h)
	if result.hasRateLimit {
		setRateHeaders(w.Header(), result.rate)
	}
	if err != nil {
		s.countRefusal(info.tenantID, err)
		return err
	}
	if result.replayed {
		setReplayed(w.Header())
	} else {
		s.usage.add(info.tenant, usageEvent{group: result.group, requests: 1})
	}
	return writeJSON(w, http.StatusCreated, struct {
		HoldID     string `json:"holdId"`
		TokensLeft int64  `json:"tokensLeft"`
		ExpiresAt  string `json:"expiresAt"`
	}{result.id, result.tokensLeft, formatTime(result.expiresAt)})
}

func (s *server) settleHold(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	var used int64
	if err := strict.Decode(info.body, strict.Rules{"tokens": strict.Int(&used, 0, maxAmount)}, "tokens"); err != nil {
		return err
	}
	result, err := s.settlePathHold(r, info, used)
	if err != nil {
		return err
	}
	if result.replayed {
		setReplayed(w.Header())
	}
	return writeJSON(w, http.StatusOK, chargedBody{result.charged, result.tokensLeft})
}

func (s *server) cancelHold(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if _, err := s.settlePathHold(r, info, 0); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// settlePathHold settles the hold in the path, and counts what it charges.
func (s *server) settlePathHold(r *http.Request, info *requestInfo, used int64) (settlement, error) {
	id := r.PathValue("holdId")
	if !validHoldID(id) {
		return settlement{}, ErrNoHold
	}
	result, err := s.store.Settle(info.deadline, info.tenant, info.apiKey, id, used)
	if err == nil && !result.replayed {
		s.metrics.charged(info.tenantID, result.charged)
		s.usage.add(info.tenant, usageEvent{group: result.group, charged: result.charged})
	}
	return result, err
}

// chargeAndCount charges c, as store.Charge does, and counts the outcome.
func (s *server) chargeAndCount(info *requestInfo, c chargeRequest) (chargeResult, error) {
	result, err := s.store.Charge(info.deadline, info.tenant, c)
	if err == nil {
		if !result.replayed {
			s.metrics.charged(info.tenantID, result.charged)
			s.usage.add(info.tenant, usageEvent{group: result.group, requests: 1, charged: result.charged})
		}
		return result, nil
	}
	s.countRefusal(info.tenantID, err)
	return result, err
}

// decodeCharge decodes the body of a charge. Its results escape to the heap, which plainTokens avoids.
func decodeCharge(body []byte) (tokens int64, upTo bool, err error) {
	rules := strict.Rules{"tokens": strict.Int(&tokens, 1, maxAmount), "upTo": strict.Bool(&upTo)}
	err = strict.Decode(body, rules, "tokens")
	return tokens, upTo, err
}

// plainTokens parses {"tokens":n} if it is spelled exactly so, as it mostly is. Anything else is left to strict.Decode.
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

// readVerifyKey reads the API key as readAPIKey does. If the query has preflight=pass, a preflight needs none: then
// info.apiKey stays "". The proxy says in X-Forwarded-Method what the client's method is, unless it forwards that
// itself.
func (s *server) readVerifyKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	err := s.readAPIKey(w, r, info)
	if err != errNoCredential || len(r.Header["Authorization"]) > 0 || len(r.Header["X-Api-Key"]) > 0 {
		return err
	}
	methods := r.Header["X-Forwarded-Method"]
	if len(methods) == 0 {
		methods = []string{r.Method}
	}
	if len(methods) > 1 || !isPreflight(r, methods[0]) {
		return err
	}
	if query, wrong := parseVerifyQuery(r.URL.RawQuery); wrong != nil || !query.passPreflight {
		return err
	}
	return nil
}

// verify serves proxies that check a request before they forward it. It ignores the request's body and Idempotency-Key,
// which are the client's and not the proxy's: a client could pass forever with one that was charged once.
func (s *server) verify(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	query, err := parseVerifyQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if info.apiKey == "" { // a preflight, which whoever serves the request responds to
		return writeBody(w, http.StatusOK, []byte("{}\n"))
	}
	query.charge.key = info.apiKey
	result, err := s.chargeAndCount(info, query.charge)
	h := w.Header()
	if result.hasRateLimit {
		setRateHeaders(h, result.rate)
	}
	if err != nil {
		_, limited := errors.AsType[rateLimitError](err)
		_, spent := errors.AsType[insufficientTokensError](err)
		if query.deny && (limited || spent) {
			return forwardAuthDenial{err}
		}
		return err
	}
	if result.replayed {
		setReplayed(h)
	}
	h["X-Tenant-Id"] = []string{info.tenantID}
	h["X-User-Group"] = []string{headerText(result.group)}
	h["X-Tokens-Left"] = []string{strconv.FormatInt(result.tokensLeft, 10)}
	if result.userID != "" {
		h["X-User-Id"] = []string{headerText(result.userID)}
	}
	return writeBody(w, http.StatusOK, []byte("{}\n"))
}

// verifyQuery is what the query of verify asks for.
type verifyQuery struct {
	charge        chargeRequest // without the key
	deny          bool          // 402 and 429 are to be 403
	passPreflight bool
}

// parseVerifyQuery parses ?tokens=n, ?request=<id>, ?deny=403 and ?preflight=pass. Anything else, or one of them twice,
// is a badRequestError.
func parseVerifyQuery(query string) (q verifyQuery, err error) {
	if strings.Contains(query, ";") { // which some parsers take for &
		return q, badRequestError("Invalid query")
	}
	seen := make([]string, 0, 4)
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		switch {
		case nameErr != nil || valueErr != nil:
			return q, badRequestError("Invalid query")
		case slices.Contains(seen, name):
			return q, badRequestError("Query " + strconv.Quote(name) + " is duplicated")
		}
		seen = append(seen, name)
		if err := q.set(name, value); err != nil {
			return q, err
		}
	}
	return q, nil
}

// set sets one parameter.
func (q *verifyQuery) set(name, value string) error {
	switch name {
	case "tokens":
		if strings.Trim(value, "0123456789") != "" || strings.HasPrefix(value, "0") && value != "0" {
			value = "" // JSON's other spellings of whole numbers are not for queries
		}
		var wrong strict.Problems
		if !strict.Int(&q.charge.tokens, 0, maxAmount)(&wrong, []byte(value)) {
			return badRequestError("tokens " + wrong.Sentences[0])
		}
	case "request":
		if !isPrintableID(value) {
			return badRequestError("request must be 1 to 255 printable ASCII characters")
		}
		q.charge.requestID = value
	case "deny":
		if q.deny = value == "403"; !q.deny {
			return badRequestError("deny must be 403")
		}
	case "preflight":
		if q.passPreflight = value == "pass"; !q.passPreflight {
			return badRequestError("preflight must be pass")
		}
	default:
		return badRequestError("Query " + strconv.Quote(name) + " is unknown")
	}
	return nil
}

// headerText returns text as a header can carry it: percent-encoded are all bytes but printable ASCII, the % itself,
// and a space at either end, which HTTP would drop.
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

func (s *server) showOwnKey(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	k, err := s.store.Key(info.deadline, info.tenant, info.apiKey)
	if err != nil {
		return err
	}
	return writeKey(w, k)
}

// openAPIDocument describes all routes.
//
//go:embed openapi.json
var openAPIDocument []byte

func (s *server) showOpenAPI(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	return writeBody(w, http.StatusOK, openAPIDocument)
}

type statusBody struct {
	Status string `json:"status"`
}

func (s *server) showHealth(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	return writeJSON(w, http.StatusOK, statusBody{"ok"})
}

// showReadiness reports whether a charge would be decided.
func (s *server) showReadiness(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	if s.draining.Load() {
		return ErrUnavailable
	}
	if err := s.store.Ready(info.deadline); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, statusBody{"ready"})
}

// showMetrics sends the metrics in the Prometheus text format. They hold no key, token or user.
func (s *server) showMetrics(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	e := new(telemetry.Page)
	s.metrics.write(e)
	s.gateway.WriteMetrics(e)
	s.store.writeMetrics(e)
	telemetry.WriteProcess(e)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header()["Cache-Control"] = cacheControl
	_, _ = w.Write(e.Bytes())
	return nil
}

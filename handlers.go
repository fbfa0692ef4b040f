package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// handler returns the http.Handler that serves every route, those of the gateway with g. It creates the server's
// metrics.
func (s *server) handler(g *gateway) http.Handler {
	mux := http.NewServeMux()
	var patterns []string
	for _, r := range s.routeTable(g) {
		mux.Handle(r.pattern, s.toHandler(r.access, r.handler))
		patterns = append(patterns, r.pattern)
	}
	s.metrics = newMetrics(patterns)
	return s.middleware(mux)
}

// route is a pattern of http.ServeMux, what its requests pass, and the handler that responds.
type route struct {
	pattern string
	access  access
	handler step
}

// routeTable returns every route. Each tenant route has two patterns: below the tenant's ID, and without it for the
// tenant default.
func (s *server) routeTable(g *gateway) []route {
	var (
		open          = access{publicTimeout, []step{refuseBody}}
		public        = access{publicTimeout, []step{s.loadTenant}}
		checkedKey    = access{publicTimeout, []step{s.readAPIKey, s.loadTenant}}
		keyHolder     = access{publicTimeout, []step{s.readAPIKey, refuseBody, s.loadTenant}}
		keyHolderBody = access{publicTimeout, []step{s.readAPIKey, s.publicBodies.read, s.loadTenant}}

		modelReader = access{publicTimeout, []step{g.readKey, refuseBody, s.loadTenant, g.requireKey}}
		modelCaller = access{publicTimeout, []step{g.readKey, s.loadTenant, g.readBody, s.loadTenant}}

		// A route that does not use the config serves a tenant whose config is broken, too.
		admin       = access{adminTimeout, []step{s.requireAdmin, refuseBody, s.loadTenant}}
		adminRepair = access{adminTimeout, []step{s.requireAdmin, refuseBody, s.requireTenant}}
		// A body may be slow to come: the token is checked before, so that strangers send none, and again after.
		adminBody       = access{adminTimeout, []step{s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.loadTenant}}
		adminRepairBody = access{adminTimeout, []step{s.requireAdmin, s.adminBodies.read, s.requireAdmin, s.requireTenant}}

		operator     = access{adminTimeout, []step{s.requireOperator, refuseBody}}
		operatorBody = access{adminTimeout, []step{s.requireOperator, s.adminBodies.read}}
		metrics      = access{adminTimeout, []step{s.requireMetrics, refuseBody}}
	)
	var routes []route
	for _, t := range []struct {
		method, path string
		access       access
		handler      step
	}{
		{"POST", "/auth/anonymous", public, s.loginAnonymous},
		{"GET", "/auth/key", keyHolder, s.showOwnKey},
		{"", "/auth/verify", checkedKey, s.verify}, // any method: some proxies forward the client's own
		{"POST", "/tokens/consume", keyHolderBody, s.consume},
		{"POST", "/tokens/holds", keyHolderBody, s.hold},
		{"POST", "/tokens/holds/{holdId}/settle", keyHolderBody, s.settleHold},
		{"DELETE", "/tokens/holds/{holdId}", keyHolder, s.cancelHold},

		{"POST", "/v1/chat/completions", modelCaller, g.generate},
		{"POST", "/v1/messages", modelCaller, g.generate},
		{"POST", "/v1/messages/count_tokens", modelCaller, g.countTokens},
		{"GET", "/v1/models", modelReader, g.listModels},
		{"GET", "/v1/models/{model}", modelReader, g.showModel},

		{"GET", "/admin/config", admin, s.showConfig},
		{"PUT", "/admin/config", adminRepairBody, s.replaceConfig},
		{"GET", "/admin/config/history", adminRepair, s.showHistory},
		{"GET", "/admin/config/history/{etag}", adminRepair, s.showVersion},
		{"POST", "/admin/config/history/{etag}/restore", adminRepair, s.restoreVersion},
		{"POST", "/admin/keys", adminBody, s.issueUserKey},
		{"GET", "/admin/keys/{apiKey}", adminRepair, s.showKey},
		{"PATCH", "/admin/keys/{apiKey}", adminBody, s.updateKey},
		{"DELETE", "/admin/keys/{apiKey}", adminRepair, s.revokeKey},
		{"POST", "/admin/tokens", adminRepair, s.issueAdminToken},
		{"DELETE", "/admin/tokens", adminRepair, s.revokeAdminTokens},
	} {
		for _, prefix := range []string{"/{tenantId}", ""} {
			pattern := strings.TrimSpace(t.method + " " + prefix + t.path)
			routes = append(routes, route{pattern, t.access, t.handler})
		}
	}
	return append(routes,
		route{"GET /admin/tenants", operator, s.listTenants},
		route{"POST /admin/tenants", operatorBody, s.createTenant},
		route{"DELETE /admin/tenants/{tenantId}", operator, s.deleteTenant},
		route{"GET /metrics", metrics, s.showMetrics},
		route{"GET /healthz", open, s.showHealth},
		route{"GET /readyz", open, s.showReadiness},
	)
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
	s.metrics.keyIssued(info.tenantID, k.group)
	return writeTokens(w, http.StatusOK, key, k.tokensLeft)
}

// warnOfUntrustedProxy logs, once, that a login was refused which came through a proxy that is not trusted: all clients
// of that proxy then share one limit.
func (s *server) warnOfUntrustedProxy(r *http.Request) {
	if len(r.Header["X-Forwarded-For"]) == 0 {
		return
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !isTrusted(peer.Addr().Unmap(), s.trustedProxies) {
		s.untrustedProxy.Do(func() {
			s.log.warnf("A login was refused by the limit for %s, which sends X-Forwarded-For: if that is your proxy, "+
				"add it to TRUSTED_PROXIES, or all its clients share one limit", peer.Addr().Unmap())
		})
	}
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
		rules := objectRules{"tokens": intField(&c.tokens, 1, maxAmount), "upTo": boolField(&c.upTo)}
		if err := decodeObject(info.body, rules, "tokens"); err != nil {
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
	return writeTokens(w, http.StatusOK, "", result.tokensLeft)
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
	err := decodeObject(info.body, objectRules{
		"tokens":    intField(&h.most, 1, maxAmount),
		"expiresIn": secondsField(&ttlSeconds, 1, maxHoldTTL),
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
	}
	return writeJSON(w, http.StatusCreated, struct {
		HoldID     string `json:"holdId"`
		TokensLeft int64  `json:"tokensLeft"`
		ExpiresAt  string `json:"expiresAt"`
	}{result.id, result.tokensLeft, formatTime(result.expiresAt)})
}

func (s *server) settleHold(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	var used int64
	if err := decodeObject(info.body, objectRules{"tokens": intField(&used, 0, maxAmount)}, "tokens"); err != nil {
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
	}
	return result, err
}

// chargeAndCount charges c, as store.Charge does, and counts the outcome.
func (s *server) chargeAndCount(info *requestInfo, c chargeRequest) (chargeResult, error) {
	result, err := s.store.Charge(info.deadline, info.tenant, c)
	if err == nil {
		if !result.replayed {
			s.metrics.charged(info.tenantID, result.charged)
		}
		return result, nil
	}
	s.countRefusal(info.tenantID, err)
	return result, err
}

// plainTokens parses {"tokens":n} if it is spelled exactly so, as it mostly is. Anything else is left to decodeObject.
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

// verify serves proxies that check a request before they forward it. It ignores the request's body and Idempotency-Key,
// which are the client's and not the proxy's: a client could pass forever with one that was charged once.
func (s *server) verify(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	c := chargeRequest{key: info.apiKey}
	deny, err := parseVerifyQuery(r.URL.RawQuery, &c)
	if err != nil {
		return err
	}
	result, err := s.chargeAndCount(info, c)
	h := w.Header()
	if result.hasRateLimit {
		setRateHeaders(h, result.rate)
	}
	if err != nil {
		_, limited := errors.AsType[rateLimitError](err)
		_, spent := errors.AsType[insufficientTokensError](err)
		if deny && (limited || spent) {
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

// parseVerifyQuery parses ?tokens=n, ?request=<id> and ?deny=403. Anything else, or one of them twice, is a
// badRequestError.
func parseVerifyQuery(query string, c *chargeRequest) (deny bool, err error) {
	if strings.Contains(query, ";") { // which some parsers take for &
		return false, badRequestError("Invalid query")
	}
	seen := make([]string, 0, 3)
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		switch {
		case nameErr != nil || valueErr != nil:
			return false, badRequestError("Invalid query")
		case slices.Contains(seen, name):
			return false, badRequestError("Query " + strconv.Quote(name) + " is duplicated")
		}
		seen = append(seen, name)
		if err := setVerifyParameter(name, value, c, &deny); err != nil {
			return false, err
		}
	}
	return deny, nil
}

func setVerifyParameter(name, value string, c *chargeRequest, deny *bool) error {
	switch name {
	case "tokens":
		if strings.Trim(value, "0123456789") != "" || strings.HasPrefix(value, "0") && value != "0" {
			value = "" // JSON's other spellings of whole numbers are not for queries
		}
		var wrong problems
		if intField(&c.tokens, 0, maxAmount)(&wrong, name, []byte(value)); len(wrong) > 0 {
			return badRequestError(wrong[0])
		}
	case "request":
		if !isPrintableID(value) {
			return badRequestError("request must be 1 to 255 printable ASCII characters")
		}
		c.requestID = value
	case "deny":
		if *deny = value == "403"; !*deny {
			return badRequestError("deny must be 403")
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
	e := new(exposition)
	s.metrics.write(e)
	s.store.writeMetrics(e)
	writeProcess(e)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header()["Cache-Control"] = cacheControl
	_, _ = w.Write(e.Bytes())
	return nil
}

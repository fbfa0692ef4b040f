package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// success is the response to a change that returns nothing else.
type success struct {
	Success  bool     `json:"success"`
	Warnings []string `json:"warnings,omitempty"`
}

func setETag(h http.Header, etag string) { h["ETag"] = []string{`"` + etag + `"`} }

func (s *server) showConfig(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	t := info.tenant
	known, all, err := entityTags(r, "If-None-Match")
	if err != nil {
		return err
	}
	setETag(w.Header(), t.etag)
	if all || slices.Contains(known, t.etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeBody(w, http.StatusOK, t.config.json)
}

func (s *server) replaceConfig(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	var raw []byte
	if err := strict.Decode(info.body, configBodyRules(&raw), "config"); err != nil {
		return err
	}
	return s.saveConfig(w, r, info, raw)
}

// configBodyRules returns the rules for a body with a config, which is read into raw. Whoever sends the config alone is
// told where it belongs.
func configBodyRules(raw *[]byte) strict.Rules {
	rules := strict.Rules{"config": strict.Raw(raw)}
	for name := range new(tenantConfig).rules() {
		rules[name] = func(wrong *strict.Problems, _ []byte) bool {
			return wrong.Add(`is not a known member: put the config under "config"`)
		}
	}
	return rules
}

// saveConfig replaces the tenant's config by raw, if raw is a valid config and the present one meets the request's
// If-Match and If-None-Match.
func (s *server) saveConfig(w http.ResponseWriter, r *http.Request, info *requestInfo, raw []byte) error {
	config, err := s.parseNewConfig(info, info.tenantID, raw)
	if err != nil {
		return err
	}
	match, _, err := entityTags(r, "If-Match") // * holds: the tenant has a config
	if err != nil {
		return err
	}
	noneMatch, none, err := entityTags(r, "If-None-Match")
	if err != nil {
		return err
	}
	var conditions []string
	for _, etag := range match {
		conditions = append(conditions, "="+etag)
	}
	for _, etag := range noneMatch {
		conditions = append(conditions, "!"+etag)
	}
	if none {
		conditions = append(conditions, "none")
	}
	etag, err := s.store.ReplaceConfig(info.deadline, info.tenantID, config, info.actor, conditions)
	if err != nil {
		return explainMismatch(err, match)
	}
	s.audit(info, info.tenantID, "saved the config %s", etag)
	s.logConfigWarnings(info.tenantID, config)
	setETag(w.Header(), etag)
	return writeJSON(w, http.StatusOK, success{true, config.warnings})
}

// parseNewConfig parses a config that is put for a tenant. The time that it takes does not count for the deadline. The
// error is a *configError.
func (s *server) parseNewConfig(info *requestInfo, tenantID string, raw []byte) (*tenantConfig, error) {
	began := time.Now()
	defer func() { info.deadline = info.deadline.Add(time.Since(began)) }()
	return parseConfigWith(raw, func(e *gateway.Endpoint, wrong *strict.Problems) bool {
		ok := s.options.gateway.Keys.Check(e, tenantID, wrong)
		return e.CheckCredential(wrong) && ok
	})
}

// audit logs a change that an admin has made: who, of which tenant, and what.
func (s *server) audit(info *requestInfo, tenantID, format string, args ...any) {
	s.log.Auditf("Admin %s, tenant %s: %s", info.actor, tenantID, fmt.Sprintf(format, args...))
}

// keyName returns how the log names an API key: by the first 8 hex digits of its SHA-256.
func keyName(key string) string { return fmt.Sprintf("%.4x", sha256.Sum256([]byte(key))) }

// logConfigWarnings logs the warnings of a config that was saved.
func (s *server) logConfigWarnings(tenantID string, config *tenantConfig) {
	for _, warning := range config.warnings {
		s.log.Warnf("The config of tenant %s: %s", tenantID, warning)
	}
}

// entityTags parses If-Match or If-None-Match (RFC 9110, section 13.1). all reports a *. Tags are returned without
// their quotes, which may be missing. In If-None-Match a weak tag (W/"…") is taken for the strong one; in If-Match it
// begins with weakMark, so that it matches none of ours, which are all strong.
func entityTags(r *http.Request, header string) (tags []string, all bool, err error) {
	if len(r.Header[header]) == 0 {
		return nil, false, nil
	}
	rest := strings.Join(r.Header[header], ",")
	if rest == "*" {
		return nil, true, nil
	}
	invalid := badRequestError(header + ` must be * or a list of ETags such as "0a1b2c"`)
	for {
		rest = strings.TrimLeft(rest, " \t,") // white space and empty elements (RFC 9110, section 5.6.1.2)
		if rest == "" {
			break
		}
		tag, weak, after, ok := scanETag(rest)
		if !ok {
			return nil, false, invalid
		}
		if weak && header == "If-Match" {
			tag = weakMark + tag
		}
		tags, rest = append(tags, tag), after
	}
	if tags == nil {
		return nil, false, invalid
	}
	return tags, false, nil
}

// weakMark begins a weak tag of If-Match. No other tag begins so, since none has a quote in it.
const weakMark = `W/"`

// explainMismatch returns err, or errWeakETag if the config may only seem to have changed: If-Match has a weak tag.
func explainMismatch(err error, ifMatch []string) error {
	isWeak := func(tag string) bool { return strings.HasPrefix(tag, weakMark) }
	if err == ErrConfigChanged && slices.ContainsFunc(ifMatch, isWeak) {
		return errWeakETag
	}
	return err
}

// scanETag scans the entity tag at the start of a list and returns what follows it. The tag may lack its quotes.
func scanETag(list string) (tag string, weak bool, rest string, ok bool) {
	list, weak = strings.CutPrefix(list, "W/")
	if quoted, found := strings.CutPrefix(list, `"`); found {
		tag, rest, ok = strings.Cut(quoted, `"`)
	} else {
		end := strings.IndexAny(list+",", " \t,")
		tag, rest = list[:end], list[end:]
		ok = tag != "" && tag != "*" && !strings.Contains(tag, `"`)
	}
	after := strings.TrimLeft(rest, " \t")
	return tag, weak, rest, ok && (after == "" || after[0] == ',')
}

func (s *server) showHistory(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	versions, err := s.store.History(info.deadline, info.tenantID)
	if err != nil {
		return err
	}
	type version struct {
		ETag    string `json:"etag"`
		SavedAt string `json:"savedAt"`
		SavedBy string `json:"savedBy"`
	}
	body := struct {
		Versions []version `json:"versions"`
	}{make([]version, len(versions))}
	for i, v := range versions {
		body.Versions[i] = version{v.etag, v.savedAt, v.savedBy}
	}
	return writeJSON(w, http.StatusOK, body)
}

// pathVersion returns the version of the config whose ETag is in the path, with quotes or without.
func (s *server) pathVersion(r *http.Request, info *requestInfo) ([]byte, error) {
	return s.store.Version(info.deadline, info.tenantID, strings.Trim(r.PathValue("etag"), `"`))
}

func (s *server) showVersion(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	config, err := s.pathVersion(r, info)
	if err != nil {
		return err
	}
	if err := checkJSON(config); err != nil { // it was written straight to Redis
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Config json.RawMessage `json:"config"`
	}{config})
}

func (s *server) restoreVersion(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	config, err := s.pathVersion(r, info)
	if err != nil {
		return err
	}
	return s.saveConfig(w, r, info, config)
}

func (s *server) issueAdminToken(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	token, err := newCredential(adminTokenPrefix)
	if err != nil {
		return err
	}
	if err := s.store.AddAdminToken(info.deadline, info.tenantID, sha256.Sum256([]byte(token)), info.actor); err != nil {
		return err
	}
	s.audit(info, info.tenantID, "created an admin token")
	return writeJSON(w, http.StatusCreated, struct {
		AdminToken string `json:"adminToken"`
	}{token})
}

func (s *server) revokeAdminTokens(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	if err := s.store.RevokeAdminTokens(info.deadline, info.tenantID); err != nil {
		return err
	}
	s.audit(info, info.tenantID, "revoked all admin tokens")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// validTokenID reports whether id has the form of an admin token's.
func validTokenID(id string) bool {
	return len(id) == tokenIDChars && strings.Trim(id, "0123456789abcdef") == ""
}

func (s *server) revokeAdminToken(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	id := r.PathValue("id")
	if !validTokenID(id) {
		return ErrNoToken
	}
	if err := s.store.RevokeAdminToken(info.deadline, info.tenantID, id); err != nil {
		return err
	}
	s.audit(info, info.tenantID, "revoked the admin token %s", id)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) listAdminTokens(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	tokens, err := s.store.AdminTokens(info.deadline, info.tenantID)
	if err != nil {
		return err
	}
	type token struct {
		ID        string `json:"id"`
		CreatedAt string `json:"createdAt"`
	}
	body := struct {
		Tokens []token `json:"tokens"`
	}{make([]token, len(tokens))}
	for i, t := range tokens {
		body.Tokens[i] = token{t.id, t.createdAt}
	}
	return writeJSON(w, http.StatusOK, body)
}

func (s *server) listTenants(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	ids, err := s.store.Tenants(info.deadline)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Tenants []string `json:"tenants"`
	}{ids})
}

func (s *server) createTenant(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	var id string
	var raw []byte
	rules := configBodyRules(&raw)
	rules["tenantId"] = strict.String(&id)
	if err := strict.Decode(info.body, rules, "tenantId", "config"); err != nil {
		return err
	}
	if !validTenantID(id) {
		return badRequestError("tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit")
	}
	config, err := s.parseNewConfig(info, id, raw)
	if err != nil {
		return err
	}
	etag, err := s.store.CreateTenant(info.deadline, id, config, info.actor)
	if err != nil {
		return err
	}
	s.audit(info, id, "created the tenant with the config %s", etag)
	s.logConfigWarnings(id, config)
	w.Header().Set("Location", "/"+id+"/admin/config")
	setETag(w.Header(), etag)
	return writeJSON(w, http.StatusCreated, success{true, config.warnings})
}

func (s *server) deleteTenant(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	id := pathTenantID(r)
	if !validTenantID(id) {
		return ErrNoTenant
	}
	ifMatch, _, err := entityTags(r, "If-Match")
	if err != nil {
		return err
	}
	if err := s.store.DeleteTenant(info.deadline, id, ifMatch); err != nil {
		return explainMismatch(err, ifMatch)
	}
	s.audit(info, id, "deleted the tenant")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// testsPerMinute is how many tests of its endpoints a tenant may have in a minute.
const testsPerMinute = 10

// testEndpoint asks an endpoint for the smallest response that it can give. Nobody is charged for it.
func (s *server) testEndpoint(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	// Before the endpoint is looked for: to find one that is not used, all of the config is parsed, which may be large.
	if err := s.store.CountEndpointTest(info.deadline, info.tenantID); err != nil {
		return err
	}
	kind, name := r.PathValue("kind"), r.PathValue("name")
	e, unused := info.tenant.config.endpoint(llmwire.Kind(kind), name)
	if e == nil {
		return errNotFound
	}
	p := gateway.Probe{Fault: unused}
	if unused == "" {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(gateway.ProbeTimeout + writeTimeout))
		var err error
		p, err = s.gateway.Probe(r.Context(), e, gateway.ProbeCall{Tenant: info.tenantID, Hops: s.deploymentID()})
		if err != nil {
			return err
		}
	}
	s.audit(info, info.tenantID, "tested the endpoint %q: ok %t, status %d",
		strict.Shorten(kind)+"/"+strict.Shorten(name), p.Fault == "", p.Status)
	return writeJSON(w, http.StatusOK, struct {
		OK        bool   `json:"ok"`
		Status    int    `json:"status"`
		LatencyMs int64  `json:"latencyMs"`
		Model     string `json:"model"`
		Error     string `json:"error,omitempty"`
	}{p.Fault == "", p.Status, p.Latency.Milliseconds(), p.Model, p.Fault})
}

// turnTimeout is how long an expensive request waits for those of its tenant that came before it.
const turnTimeout = time.Second

// respondInTurn sends what compute returns. It is for requests whose cost depends on what is stored: of those with the
// same turn, which is the tenant's ID for its admins, one at a time is computed, so that nobody can take all of Redis
// or of the processors. Error: rateLimitError if the turn does not come in time. The client takes the response out of
// turn, however slowly.
func (s *server) respondInTurn(w http.ResponseWriter, turn string, compute func() (any, error)) error {
	end, ok := s.turns.Take(turn, turnTimeout)
	if !ok {
		return rateLimitError{wait: 1}
	}
	body, err := func() ([]byte, error) {
		defer end()
		v, err := compute()
		if err != nil {
			return nil, err
		}
		return encodeJSON(v)
	}()
	if err != nil {
		return err
	}
	return writeBody(w, http.StatusOK, body)
}

// A usageQuery says which days of usage to show and, for a tenant, in what detail.
type usageQuery struct {
	first   int64 // day, since 1970
	n       int   // days
	byModel bool  // as well as by endpoint and group
	byUser  bool
	limit   int // of the users of a day
}

// readUsageQuery reads ?from=<day>&to=<day>, and by=model, by=user and limit, which may be missing.
func readUsageQuery(r *http.Request) (q usageQuery, err error) {
	query, err := readQuery(r, "from", "to", "by", "limit")
	if err != nil {
		return q, err
	}
	if q, err = readUsageDays(query); err != nil {
		return q, err
	}
	for _, by := range query["by"] {
		switch by {
		case "model":
			q.byModel = true
		case "user":
			q.byUser = true
		default:
			return q, badRequestError("by must be model or user")
		}
	}
	if query.Has("limit") && !q.byUser {
		return q, badRequestError("limit is for by=user")
	}
	q.limit, err = pageLimit(query)
	return q, err
}

// readUsageDays reads ?from=<day>&to=<day>.
func readUsageDays(query url.Values) (q usageQuery, err error) {
	var days [2]int64
	for i, name := range []string{"from", "to"} {
		day, err := time.Parse(dayLayout, query.Get(name))
		if err != nil || day.Year() < 1970 {
			return q, badRequestError(name + " must be a day in UTC such as 2026-11-25")
		}
		days[i] = day.Unix() / daySeconds
	}
	q.first, q.n = days[0], int(days[1]-days[0])+1
	if q.n < 1 || q.n > maxUsageDays {
		return q, badRequestError(fmt.Sprintf("from must not be after to, and there may be %d days at most", maxUsageDays))
	}
	return q, nil
}

// onceOnly calls do, which makes a request that may have an Idempotency-Key. It does not call it if the request is
// refused and cannot be a replay. It counts the record that a tenant's own admin leaves.
func (s *server) onceOnly(info *requestInfo, request *idempotentRequest, do func() (replayed bool, err error)) error {
	if request.key == "" && request.refused != nil {
		return request.refused
	}
	counted := request.key != "" && request.refused == nil && info.actor.tokenHash != ""
	if counted {
		err := s.store.CountRecord(info.deadline, info.tenant)
		if _, full := errors.AsType[rateLimitError](err); full {
			counted, request.refused = false, err
		} else if err != nil {
			return err
		}
	}
	replayed, err := do()
	if counted && (replayed || err != nil && !errors.Is(err, ErrUnavailable)) {
		s.store.UncountRecord(info.deadline, info.tenant)
	}
	return err
}

// pageLimit returns how many entries a page may have: the limit in the query, or defaultPageLimit.
func pageLimit(query url.Values) (int, error) {
	if !query.Has("limit") {
		return defaultPageLimit, nil
	}
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 || limit > maxPageLimit || strconv.Itoa(limit) != query.Get("limit") {
		return 0, badRequestError(fmt.Sprintf("limit must be a whole number from 1 to %d", maxPageLimit))
	}
	return limit, nil
}

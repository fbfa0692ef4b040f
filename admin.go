package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"tollgate/internal/strict"
)

const (
	maxUserIDBytes  = 256
	maxKeyTTL       = 10 * 365 * 24 * time.Hour
	maxNamedInError = 20
)

// configBody is the response that shows a config.
type configBody struct {
	Config json.RawMessage `json:"config"`
}

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
		w.Header()["Cache-Control"] = cacheControl
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeBody(w, http.StatusOK, t.config.json)
}

func (s *server) replaceConfig(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	var raw []byte
	if err := strict.Decode(info.body, strict.Rules{"config": strict.Raw(&raw)}, "config"); err != nil {
		return err
	}
	return s.saveConfig(w, r, info, raw)
}

// saveConfig replaces the tenant's config by raw, if raw is a valid config and the present one meets the request's
// If-Match and If-None-Match.
func (s *server) saveConfig(w http.ResponseWriter, r *http.Request, info *requestInfo, raw []byte) error {
	config, err := parseConfig(raw)
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
		return err
	}
	s.audit(info, info.tenantID, "saved the config %s", etag)
	s.logConfigWarnings(info.tenantID, config)
	setETag(w.Header(), etag)
	return writeJSON(w, http.StatusOK, success{true, config.warnings})
}

// audit logs a change that an admin has made: who, of which tenant, and what.
func (s *server) audit(info *requestInfo, tenantID, format string, args ...any) {
	s.log.Infof("Admin %s, tenant %s: %s", info.actor, tenantID, fmt.Sprintf(format, args...))
}

// keyName returns how the log names an API key: by the first 8 hex digits of its SHA-256.
func keyName(key string) string { return fmt.Sprintf("%.4x", sha256.Sum256([]byte(key))) }

// logConfigWarnings logs which members of a config that was saved are probably misspelled.
func (s *server) logConfigWarnings(tenantID string, config *tenantConfig) {
	for _, warning := range config.warnings {
		s.log.Warnf("The config of tenant %s: %s", tenantID, warning)
	}
}

// entityTags parses If-Match or If-None-Match (RFC 9110, section 13.1). all reports a *. Tags are returned without
// their quotes, which may be missing. In If-None-Match a weak tag (W/"…") is taken for the strong one; in If-Match it
// keeps its W/, so that it matches none of ours, which are all strong.
func entityTags(r *http.Request, header string) (tags []string, all bool, err error) {
	if len(r.Header[header]) == 0 {
		return nil, false, nil
	}
	rest := strings.Join(r.Header[header], ",")
	if rest == "*" {
		return nil, true, nil
	}
	invalid := badRequestError(header + ` must be * or a list of ETags such as "0a1b2c"`)
	for rest = skipListSpace(rest); rest != ""; rest = skipListSpace(rest) {
		tag, weak, after, ok := scanETag(rest)
		if !ok {
			return nil, false, invalid
		}
		if weak && header == "If-Match" {
			tag = "W/" + tag
		}
		tags, rest = append(tags, tag), after
	}
	if tags == nil {
		return nil, false, invalid
	}
	return tags, false, nil
}

// skipListSpace skips white space and empty elements (RFC 9110, section 5.6.1.2).
func skipListSpace(list string) string { return strings.TrimLeft(list, " \t,") }

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

// versionBody is a version in the response that lists a config's history.
type versionBody struct {
	ETag    string `json:"etag"`
	SavedAt string `json:"savedAt"`
	SavedBy string `json:"savedBy"`
}

func (s *server) showHistory(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	versions, err := s.store.History(info.deadline, info.tenantID)
	if err != nil {
		return err
	}
	body := struct {
		Versions []versionBody `json:"versions"`
	}{make([]versionBody, len(versions))}
	for i, v := range versions {
		body.Versions[i] = versionBody{v.etag, v.savedAt, v.savedBy}
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
	return writeJSON(w, http.StatusOK, configBody{config})
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
	rules := strict.Rules{"tenantId": strict.String(&id), "config": strict.Raw(&raw)}
	if err := strict.Decode(info.body, rules, "tenantId", "config"); err != nil {
		return err
	}
	if !validTenantID(id) {
		return badRequestError("tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit")
	}
	config, err := parseConfig(raw)
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
		return err
	}
	s.audit(info, id, "deleted the tenant")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) issueUserKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	request, err := readIdempotentRequest(r, info.body)
	if err != nil {
		return err
	}
	k := apiKey{createdAt: time.Now()}
	tokens, ttlSeconds := int64(-1), int64(0)
	err = strict.Decode(info.body, strict.Rules{
		"userId":    userIDField(&k.userID),
		"group":     strict.String(&k.group),
		"tokens":    strict.Int(&tokens, 0, maxAmount),
		"expiresIn": strict.Seconds(&ttlSeconds, 1, int64(maxKeyTTL/time.Second)),
	}, "userId", "group")
	if err != nil {
		return err
	}
	group, ok := info.tenant.config.groups[k.group]
	if !ok {
		return unknownGroup(info.tenant.config)
	}
	k.tokensLeft = group.tokens
	if tokens >= 0 {
		k.tokensLeft = tokens
	}
	var key string
	ttl, replayed := time.Duration(ttlSeconds)*time.Second, false
	if request.key != "" {
		key, k.tokensLeft, replayed, err = s.store.NewKeyOnce(info.deadline, info.tenant, k, ttl, request)
	} else if key, err = newCredential(userKeyPrefix); err == nil {
		err = s.store.NewKey(info.deadline, info.tenant, key, k, ttl)
	}
	if err != nil {
		return err
	}
	if replayed {
		setReplayed(w.Header())
	} else {
		s.countIssued(info, k)
		s.audit(info, info.tenantID, "issued the key %s in the group %q", keyName(key), k.group)
	}
	return writeTokens(w, info, http.StatusCreated, key, k.tokensLeft)
}

// readIdempotentRequest returns the request's Idempotency-Key, if it has one, and a digest of what it asks for.
func readIdempotentRequest(r *http.Request, body []byte) (idempotentRequest, error) {
	key, err := idempotencyKey(r)
	if err != nil || key == "" {
		return idempotentRequest{}, err
	}
	return idempotentRequest{key, digest(string(body))}, nil
}

// setReplayed marks a response as that of an earlier request with the same Idempotency-Key.
func setReplayed(h http.Header) { h.Set("Idempotent-Replayed", "true") }

// unknownGroup returns the error for a group that the config does not have. It lists those that there are, at most 20.
func unknownGroup(config *tenantConfig) error {
	names := slices.Sorted(maps.Keys(config.groups))
	more := ""
	if len(names) > maxNamedInError {
		more = fmt.Sprintf(" and %d more", len(names)-maxNamedInError)
		names = names[:maxNamedInError]
	}
	for i, name := range names {
		names[i] = strconv.Quote(name)
	}
	if len(names) == 0 {
		return badRequestError("group must be one of the tenant's user_groups, and there are none")
	}
	return badRequestError("group must be one of the tenant's user_groups: " + strings.Join(names, ", ") + more)
}

// ttlField returns the rule for the seconds until a key expires, or null if it never does.
func ttlField(dst *time.Duration) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var seconds int64
		ok := string(value) == "null" || strict.Seconds(&seconds, 1, int64(maxKeyTTL/time.Second))(wrong, value)
		*dst = time.Duration(seconds) * time.Second
		return ok
	}
}

// userIDField returns the rule for 1 to maxUserIDBytes of text that a header can carry: printable, without white space
// at its ends.
func userIDField(dst *string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var id string
		if !strict.String(&id)(wrong, value) {
			return false
		}
		unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
		if id == "" || len(id) > maxUserIDBytes || strings.TrimSpace(id) != id || strings.ContainsFunc(id, unprintable) {
			return wrong.Add(fmt.Sprintf("must be 1 to %d bytes of printable text without white space at its ends",
				maxUserIDBytes))
		}
		*dst = id
		return true
	}
}

// pathKey returns the API key in the path. What does not have the form of one is not found.
func pathKey(r *http.Request) (string, error) {
	key := r.PathValue("apiKey")
	if !validAPIKey(key) {
		return "", errNotFound
	}
	return key, nil
}

// notFoundForAdmin turns ErrNoKey, which is 401 for the holder of a key, into 404 for an admin who names one.
func notFoundForAdmin(err error) error {
	if errors.Is(err, ErrNoKey) {
		return errNotFound
	}
	return err
}

func (s *server) showKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	k, err := s.store.Key(info.deadline, info.tenant, key)
	if err != nil {
		return notFoundForAdmin(err)
	}
	return writeKey(w, k)
}

func (s *server) updateKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	change, err := parseKeyChange(info.body)
	if err != nil {
		return err
	}
	if change.ttl != nil && !validCredential(key, userKeyPrefix) {
		return badRequestError("expiresIn is for user_ keys: a temp_ key expires 24 h after it was created")
	}
	if change.group != nil {
		if _, ok := info.tenant.config.groups[*change.group]; !ok {
			return unknownGroup(info.tenant.config)
		}
	}
	request, err := readIdempotentRequest(r, info.body)
	if err != nil {
		return err
	}
	k, replayed, err := s.store.UpdateKey(info.deadline, info.tenant, key, change, request)
	if errors.Is(err, ErrBalanceRange) {
		return badRequestError(fmt.Sprintf("addTokens must leave a balance from 0 to %d", int64(maxAmount)))
	}
	if err != nil {
		return notFoundForAdmin(err)
	}
	if replayed {
		setReplayed(w.Header())
	} else {
		if change.addTokens != nil {
			s.usage.add(info.tenant, usageEvent{granted: max(*change.addTokens, 0)})
		}
		s.audit(info, info.tenantID, "changed the key %s", keyName(key))
	}
	return writeKey(w, k)
}

// parseKeyChange parses the body of a PATCH of an API key.
func parseKeyChange(body []byte) (keyChange, error) {
	var group string
	var add, set int64
	var enabled bool
	var ttl time.Duration
	var change keyChange
	err := strict.Decode(body, strict.Rules{
		"group":     present(&change.group, &group, strict.String(&group)),
		"addTokens": present(&change.addTokens, &add, strict.Int(&add, -maxAmount, maxAmount)),
		"tokens":    present(&change.setTokens, &set, strict.Int(&set, 0, maxAmount)),
		"enabled":   present(&change.enabled, &enabled, strict.Bool(&enabled)),
		"expiresIn": present(&change.ttl, &ttl, ttlField(&ttl)),
	})
	if err == nil && change.addTokens != nil && change.setTokens != nil {
		err = badRequestError("addTokens and tokens must not be given together")
	}
	return change, err
}

// present returns rule with the effect that *dst points to value if the member exists.
func present[T any](dst **T, value *T, rule strict.Rule) strict.Rule {
	return func(wrong *strict.Problems, raw []byte) bool {
		*dst = value
		return rule(wrong, raw)
	}
}

// listUserKeys lists the API keys of the user in the query.
func (s *server) listUserKeys(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	userID, err := queryParameter(r, "userId")
	if err != nil {
		return err
	}
	if userID == "" {
		return badRequestError("userId is missing in the query")
	}
	keys, err := s.store.UserKeys(info.deadline, info.tenant, userID)
	if err != nil {
		return err
	}
	body := struct {
		Keys []keyBody `json:"keys"`
	}{make([]keyBody, len(keys))}
	for i, k := range keys {
		body.Keys[i] = newKeyBody(k.apiKey)
		body.Keys[i].APIKey = k.key
	}
	return writeJSON(w, http.StatusOK, body)
}

// queryParameter returns the value of the only parameter that a route takes, "" if it is not given. Any other
// parameter, and one that is given twice, is a badRequestError.
func queryParameter(r *http.Request, name string) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", badRequestError("Invalid query")
	}
	for other, values := range query {
		switch {
		case other != name:
			return "", badRequestError("Query " + strconv.Quote(other) + " is unknown")
		case len(values) > 1:
			return "", badRequestError("Query " + strconv.Quote(other) + " is duplicated")
		}
	}
	return query.Get(name), nil
}

func (s *server) revokeKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	forget, err := queryParameter(r, "forget")
	if err != nil {
		return err
	}
	if forget != "" && forget != "true" && forget != "false" {
		return badRequestError("forget must be true or false")
	}
	if err := s.store.RevokeKey(info.deadline, info.tenant, key, forget == "true"); err != nil {
		return notFoundForAdmin(err)
	}
	s.audit(info, info.tenantID, "revoked the key %s", keyName(key))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// groupUsage and endpointUsage are what a group and an endpoint have used on a day.
type groupUsage struct {
	Requests      int64 `json:"requests"`
	TokensCharged int64 `json:"tokensCharged"`
}

type endpointUsage struct {
	Requests      int64 `json:"requests"`
	InputTokens   int64 `json:"inputTokens"`
	OutputTokens  int64 `json:"outputTokens"`
	TokensCharged int64 `json:"tokensCharged"`
}

// usageBody is a day in the response that shows a tenant's usage.
type usageBody struct {
	Day           string                   `json:"day"`
	Requests      int64                    `json:"requests"`
	TokensCharged int64                    `json:"tokensCharged"`
	TokensGranted int64                    `json:"tokensGranted"`
	ByEndpoint    map[string]endpointUsage `json:"byEndpoint"`
	ByGroup       map[string]groupUsage    `json:"byGroup"`
}

func (s *server) showUsage(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	from, n, err := parseUsageQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	days, err := s.store.Usage(info.deadline, info.tenant, from, n)
	if err != nil {
		return err
	}
	body := make([]usageBody, n)
	for i, d := range days {
		body[i] = usageBody{
			Day: formatDay(from + int64(i)), Requests: d.total.requests,
			TokensCharged: d.total.charged, TokensGranted: d.granted,
			ByEndpoint: make(map[string]endpointUsage), ByGroup: make(map[string]groupUsage),
		}
		for name, sums := range d.endpoints {
			body[i].ByEndpoint[name] = endpointUsage{sums.requests, sums.input, sums.output, sums.charged}
		}
		for name, sums := range d.groups {
			body[i].ByGroup[name] = groupUsage{sums.requests, sums.charged}
		}
	}
	return writeJSON(w, http.StatusOK, struct {
		Days []usageBody `json:"days"`
	}{body})
}

// parseUsageQuery parses ?from=<day>&to=<day>, and returns the first day and how many there are.
func parseUsageQuery(query string) (first int64, n int, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, 0, badRequestError("Invalid query")
	}
	var days [2]int64
	for i, name := range []string{"from", "to"} {
		given := values[name]
		delete(values, name)
		if len(given) > 1 {
			return 0, 0, badRequestError("Query " + strconv.Quote(name) + " is duplicated")
		}
		day, err := time.Parse(dayLayout, strings.Join(given, ""))
		if err != nil || day.Year() < 1970 {
			return 0, 0, badRequestError(name + " must be a day in UTC such as 2026-11-25")
		}
		days[i] = day.Unix() / daySeconds
	}
	for name := range values {
		return 0, 0, badRequestError("Query " + strconv.Quote(strict.Shorten(name)) + " is unknown")
	}
	n = int(days[1]-days[0]) + 1
	if n < 1 || n > maxUsageDays {
		return 0, 0, badRequestError(fmt.Sprintf("from must not be after to, and there may be %d days at most", maxUsageDays))
	}
	return days[0], n, nil
}

func (s *server) rotateKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	request, err := readIdempotentRequest(r, nil)
	if err != nil {
		return err
	}
	rotated, tokensLeft, replayed, err := s.store.RotateKey(info.deadline, info.tenant, key, request)
	if err != nil {
		return notFoundForAdmin(err)
	}
	if replayed {
		setReplayed(w.Header())
	} else {
		s.audit(info, info.tenantID, "rotated the key %s, which is %s now", keyName(key), keyName(rotated))
	}
	return writeTokens(w, info, http.StatusOK, rotated, tokensLeft)
}

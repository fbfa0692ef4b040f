package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxUserIDBytes = 256
	maxKeyLife     = 10 * 365 * 24 * time.Hour
)

// configBody is a config as the admin routes show it.
type configBody struct {
	Config json.RawMessage `json:"config"`
}

// success is the answer to a change that has nothing to tell.
type success struct {
	Success bool `json:"success"`
}

func setETag(h http.Header, etag string) { h["ETag"] = []string{`"` + etag + `"`} }

func (s *server) showConfig(w http.ResponseWriter, r *http.Request) error {
	config := tenantFrom(r).config
	known, all, err := entityTags(r, "If-None-Match")
	if err != nil {
		return err
	}
	setETag(w.Header(), config.etag)
	if all || slices.Contains(known, config.etag) {
		w.Header()["Cache-Control"] = cacheControl
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeBody(w, http.StatusOK, config.answer)
}

func (s *server) replaceConfig(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, nil)
	if err != nil {
		return err
	}
	var raw []byte
	if err := readJSON(body, fields{"config": rawJSON(&raw)}, "config"); err != nil {
		return err
	}
	return s.saveConfig(w, r, raw)
}

// saveConfig replaces the tenant's config by raw, if raw is one and the config is what the request's If-Match and
// If-None-Match ask for.
func (s *server) saveConfig(w http.ResponseWriter, r *http.Request, raw []byte) error {
	config, err := parseConfig(raw)
	if err != nil {
		return err
	}
	match, _, err := entityTags(r, "If-Match") // all: there is one, or it is no tenant
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
	etag, err := s.store.ReplaceConfig(tenantFrom(r).id, config, adminFrom(r), conditions)
	if err != nil {
		return err
	}
	setETag(w.Header(), etag)
	return writeJSON(w, http.StatusOK, success{true})
}

// entityTags reads If-Match or If-None-Match (RFC 9110, section 13.1): * is all; no header is no tags, and not all.
// Tags come without their quotes, which may be missing. Of weak ones (W/"…") If-None-Match is true too; in If-Match they
// keep their W/, so that they match none of ours, which are all strong.
func entityTags(r *http.Request, header string) (tags []string, all bool, err error) {
	if len(r.Header[header]) == 0 {
		return nil, false, nil
	}
	list := strings.Join(r.Header[header], ",")
	if list == "*" {
		return nil, true, nil
	}
	for rest := list; ; {
		rest = strings.TrimLeft(rest, " \t,") // empty elements do not count (RFC 9110, section 5.6.1.2)
		if rest == "" {
			break
		}
		opaque, weak := strings.CutPrefix(rest, "W/")
		tag, quoted := strings.CutPrefix(opaque, `"`)
		if quoted {
			tag, rest, quoted = strings.Cut(tag, `"`)
		} else {
			end := strings.IndexAny(tag+",", " \t,")
			tag, rest = tag[:end], tag[end:]
			quoted = tag != "" && tag != "*" && !strings.Contains(tag, `"`)
		}
		if after := strings.TrimLeft(rest, " \t"); !quoted || after != "" && after[0] != ',' {
			tags = nil
			break
		}
		if weak && header == "If-Match" {
			tag = "W/" + tag
		}
		tags = append(tags, tag)
	}
	if tags == nil {
		return nil, false, badRequest(header + ` must be * or a list of ETags such as "0a1b2c"`)
	}
	return tags, false, nil
}

func (s *server) showHistory(w http.ResponseWriter, r *http.Request) error {
	versions, err := s.store.History(tenantFrom(r).id)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Versions []version `json:"versions"`
	}{versions})
}

// pathVersion is the config that a request's path names by its ETag, in quotes or without.
func (s *server) pathVersion(r *http.Request) ([]byte, error) {
	return s.store.Version(tenantFrom(r).id, strings.Trim(r.PathValue("etag"), `"`))
}

func (s *server) showVersion(w http.ResponseWriter, r *http.Request) error {
	config, err := s.pathVersion(r)
	if err != nil {
		return err
	}
	if err := checkJSON(config); err != nil { // it was put straight into Redis
		return &invalidConfig{problems{"it is no JSON: " + err.Error()}}
	}
	return writeJSON(w, http.StatusOK, configBody{config})
}

func (s *server) restoreVersion(w http.ResponseWriter, r *http.Request) error {
	config, err := s.pathVersion(r)
	if err != nil {
		return err
	}
	return s.saveConfig(w, r, config)
}

func (s *server) issueAdminToken(w http.ResponseWriter, r *http.Request) error {
	token, err := newToken(adminPrefix)
	if err != nil {
		return err
	}
	if err := s.store.AddAdminToken(tenantFrom(r).id, sha256.Sum256([]byte(token)), adminFrom(r)); err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, struct {
		AdminToken string `json:"adminToken"`
	}{token})
}

func (s *server) revokeAdminTokens(w http.ResponseWriter, r *http.Request) error {
	if err := s.store.RevokeAdminTokens(tenantFrom(r).id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) listTenants(w http.ResponseWriter, r *http.Request) error {
	ids, err := s.store.Tenants()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Tenants []string `json:"tenants"`
	}{ids})
}

func (s *server) createTenant(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, s.longBodies)
	if err != nil {
		return err
	}
	var id string
	var raw []byte
	if err := readJSON(body, fields{"tenantId": text(&id), "config": rawJSON(&raw)}, "tenantId", "config"); err != nil {
		return err
	}
	if !validTenantID(id) {
		return badRequest("tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit")
	}
	config, err := parseConfig(raw)
	if err != nil {
		return err
	}
	etag, err := s.store.CreateTenant(id, config, adminFrom(r))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/"+id+"/admin/config")
	setETag(w.Header(), etag)
	return writeJSON(w, http.StatusCreated, success{true})
}

func (s *server) deleteTenant(w http.ResponseWriter, r *http.Request) error {
	id := tenantID(r)
	if !validTenantID(id) {
		return ErrNoTenant
	}
	ifMatch, _, err := entityTags(r, "If-Match")
	if err != nil {
		return err
	}
	if err := s.store.DeleteTenant(id, ifMatch); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) issueUserKey(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, nil)
	if err != nil {
		return err
	}
	t := tenantFrom(r)
	k := apiKey{TenantID: t.id, CreatedAt: time.Now()}
	tokens, lifeSeconds := int64(-1), int64(0)
	err = readJSON(body, fields{
		"userId":    userID(&k.UserID),
		"group":     text(&k.Group),
		"tokens":    wholeNumber(&tokens, 0, maxAmount),
		"expiresIn": wholeNumber(&lifeSeconds, 1, int64(maxKeyLife/time.Second)),
	}, "userId", "group")
	if err != nil {
		return err
	}
	group, ok := t.config.groups[k.Group]
	if !ok {
		return errUnknownGroup
	}
	k.TokensLeft = group.tokens
	if tokens >= 0 {
		k.TokensLeft = tokens
	}
	key, err := newToken(userPrefix)
	if err != nil {
		return err
	}
	if err := s.store.IssueKey(adminTimeout, key, k, time.Duration(lifeSeconds)*time.Second, "", 0); err != nil {
		return err
	}
	s.metrics.keyIssued(t.id, k.Group)
	return writeTokens(w, http.StatusCreated, key, k.TokensLeft)
}

// userID is 1 to maxUserIDBytes of text that a header can hand on as it is: printable, with no white space at its ends.
func userID(dst *string) field {
	return func(wrong *problems, path string, value []byte) {
		var id string
		before := len(*wrong)
		text(&id)(wrong, path, value)
		if len(*wrong) > before {
			return
		}
		unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
		if id == "" || len(id) > maxUserIDBytes || strings.TrimSpace(id) != id || strings.ContainsFunc(id, unprintable) {
			wrong.add(path, fmt.Sprintf("must be 1 to %d bytes of printable text without white space at its ends", maxUserIDBytes))
			return
		}
		*dst = id
	}
}

// pathKey is the API key that an admin's request names. What does not look like one is nobody's.
func pathKey(r *http.Request) (string, error) {
	key := r.PathValue("apiKey")
	if !validAPIKey(key) {
		return "", errNotFound
	}
	return key, nil
}

// missing turns ErrNoKey, which answers whoever holds a key, into what answers an admin who asks about one.
func missing(err error) error {
	if errors.Is(err, ErrNoKey) {
		return errNotFound
	}
	return err
}

func (s *server) showKey(w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	k, err := s.store.Key(adminTimeout, tenantFrom(r).id, key)
	if err != nil {
		return missing(err)
	}
	return writeKey(w, k)
}

func (s *server) changeKey(w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	body, err := readBody(w, r, nil)
	if err != nil {
		return err
	}
	var change keyChange
	var group string
	balance := func(how string, min int64) field {
		read := wholeNumber(&change.tokens, min, maxAmount)
		return func(wrong *problems, path string, value []byte) {
			if change.balance != "" {
				wrong.add(path, "must not be given with the other of addTokens and tokens")
			}
			change.balance = how
			read(wrong, path, value)
		}
	}
	err = readJSON(body, fields{
		"group": func(wrong *problems, path string, value []byte) {
			change.group = &group
			text(&group)(wrong, path, value)
		},
		"addTokens": balance("add", -maxAmount),
		"tokens":    balance("set", 0),
	})
	if err != nil {
		return err
	}
	t := tenantFrom(r)
	if _, ok := t.config.groups[group]; change.group != nil && !ok {
		return errUnknownGroup
	}
	k, err := s.store.ChangeKey(t.id, key, change)
	if errors.Is(err, ErrBalanceRange) {
		return badRequest(fmt.Sprintf("addTokens must leave a balance from 0 to %d", int64(maxAmount)))
	}
	if err != nil {
		return missing(err)
	}
	return writeKey(w, k)
}

func (s *server) revokeKey(w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	if err := s.store.RevokeKey(tenantFrom(r).id, key); err != nil {
		return missing(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

package main

import (
	"cmp"
	"encoding/base64"
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
	maxKeyTTL = 10 * 365 * 24 * time.Hour
	maxGrace  = 7 * 24 * time.Hour // of a rotation

	maxUserIDBytes = 256
	maxLabelBytes  = 64
	maxReasonBytes = 200

	defaultPageLimit = 100
	maxPageLimit     = 1000
)

func (s *server) issueUserKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	request, err := readIdempotentRequest(r, info.body)
	if err != nil {
		return err
	}
	k, err := parseNewKey(info.body)
	if err != nil {
		return err
	}
	issue := s.store.NewKey
	if k.sharesWith != "" {
		issue = s.store.ShareKey
		k, request.refused, err = s.readShared(info, k)
	} else if group, ok := info.tenant.config.groups[k.group]; !ok {
		request.refused = unknownGroup(info.tenant.config)
	} else if k.tokensLeft < 0 {
		k.tokensLeft = group.tokens
	}
	if err != nil {
		return err
	}
	var issued issuedKey
	err = s.onceOnly(info, &request, func() (replayed bool, err error) {
		issued, err = issue(info.deadline, info.tenant, k, request)
		return issued.replayed, err
	})
	switch {
	case errors.Is(err, ErrNoKey): // it was rotated or revoked since it was read
		return errNotShared
	case err != nil:
		return err
	case issued.replayed:
		setReplayed(w.Header())
	case k.sharesWith != "":
		s.metrics.keyIssued(info.tenantID, k.group)
		s.audit(info, info.tenantID, "issued the key %s, which shares the balance of %s", keyName(issued.key),
			keyName(k.sharesWith))
	default:
		s.countIssued(info, k.group, issued)
		s.audit(info, info.tenantID, "issued the key %s in the group %q", keyName(issued.key), k.group)
	}
	return writeJSON(w, http.StatusCreated, tokensBody{issued.key, issued.tokensLeft})
}

// errNotShared refuses a balance that cannot be shared. Like Stripe's API, which knows members that name an object, it
// is 400: what the path names exists.
const errNotShared = badRequestError("sharesWith must be a user_ key of this tenant that shares with no other")

// parseNewKey parses the body of a request for an API key. The balance is -1 if it is to be the group's.
func parseNewKey(body []byte) (apiKey, error) {
	k := apiKey{createdAt: time.Now(), tokensLeft: -1}
	var group, sharesWith *string
	var tokens *int64
	var ttlSeconds int64
	rules := strict.Rules{
		"userId":     textField(&k.userID, maxUserIDBytes),
		"group":      present(&group, &k.group, strict.String(&k.group)),
		"tokens":     present(&tokens, &k.tokensLeft, strict.Int(&k.tokensLeft, 0, maxAmount)),
		"label":      textField(&k.label, maxLabelBytes),
		"expiresIn":  strict.Seconds(&ttlSeconds, 1, int64(maxKeyTTL/time.Second)),
		"sharesWith": present(&sharesWith, &k.sharesWith, strict.String(&k.sharesWith)),
	}
	err := strict.Decode(body, rules)
	switch {
	case err != nil:
	case sharesWith == nil:
		err = strict.Decode(body, rules, "userId", "group")
	case group != nil || tokens != nil:
		err = badRequestError("group and tokens must not be given with sharesWith: they are those of that key")
	case !validCredential(k.sharesWith, userKeyPrefix):
		err = errNotShared
	}
	if ttlSeconds > 0 {
		k.expiresAt = k.createdAt.Add(time.Duration(ttlSeconds) * time.Second)
	}
	return k, err
}

// readShared adds to k, a key that is to be issued, what it gets from the key that it shares with. refused is why it
// must not be issued, nil if it may.
func (s *server) readShared(info *requestInfo, k apiKey) (_ apiKey, refused, err error) {
	with, err := s.store.Key(info.deadline, info.tenant, k.sharesWith)
	switch {
	case errors.Is(err, ErrNoKey), err == nil && with.sharesWith != "":
		return k, errNotShared, nil
	case err != nil:
		return k, nil, err
	case k.userID != "" && k.userID != with.userID:
		refused = badRequestError("userId must be that of the key in sharesWith, or be left out")
	}
	k.userID, k.group, k.tokensLeft = with.userID, with.group, with.tokensLeft
	return k, refused, nil
}

// unknownGroup returns the error for a group that the config does not have. It lists those that there are, at most 20.
func unknownGroup(config *tenantConfig) error {
	const most = 20
	names := slices.Sorted(maps.Keys(config.groups))
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
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

// textField returns the rule for 1 to maxBytes bytes of text that a header can carry: printable, without white space
// at its ends.
func textField(dst *string, maxBytes int) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var text string
		if !strict.String(&text)(wrong, value) {
			return false
		}
		if !isPrintable(text, maxBytes) || strings.TrimSpace(text) != text {
			return wrong.Add(fmt.Sprintf("must be 1 to %d bytes of printable text without white space at its ends", maxBytes))
		}
		*dst = text
		return true
	}
}

// isPrintable reports whether text is 1 to maxBytes bytes of printable text.
func isPrintable(text string, maxBytes int) bool {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	return text != "" && len(text) <= maxBytes && !strings.ContainsFunc(text, unprintable)
}

// labelField returns the rule for the label of a key, or null if it is to have none.
func labelField(dst *string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		return string(value) == "null" || textField(dst, maxLabelBytes)(wrong, value)
	}
}

// notAReason is what is wrong with a reason that is not as the audit line may have it.
const notAReason = "must be 1 to 200 bytes of printable text"

// reasonField returns the rule for why an admin changes something.
func reasonField(dst *string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		ok := strict.String(dst)(wrong, value)
		if ok && !isPrintable(*dst, maxReasonBytes) {
			ok = wrong.Add(notAReason)
		}
		return ok
	}
}

// because returns the end of a line of the audit log that has a reason, in quotes, so that nobody can forge a line.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + strconv.Quote(reason)
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
	return writeJSON(w, http.StatusOK, newKeyBody(k))
}

func (s *server) updateKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	change, reason, err := parseKeyChange(info.body)
	if err != nil {
		return err
	}
	if change.ttl != nil && !validCredential(key, userKeyPrefix) {
		return badRequestError("expiresIn is for user_ keys: a temp_ key expires 24 h after it was created")
	}
	request, err := readIdempotentRequest(r, info.body)
	if err != nil {
		return err
	}
	if change.group != nil {
		if _, ok := info.tenant.config.groups[*change.group]; !ok {
			request.refused = unknownGroup(info.tenant.config)
		}
	}
	var k apiKey
	var replayed bool
	err = s.onceOnly(info, &request, func() (bool, error) {
		k, replayed, err = s.store.UpdateKey(info.deadline, info.tenant, key, change, request)
		return replayed, err
	})
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
			s.usage.add(info.tenant, usageEvent{key: cmp.Or(k.sharesWith, key), granted: max(*change.addTokens, 0)})
		}
		s.audit(info, info.tenantID, "changed the key %s%s", keyName(key), because(reason))
	}
	if k.malformed {
		return writeJSON(w, http.StatusOK, malformedKeyBody{key, "malformed"})
	}
	shown := newKeyBody(k)
	if change.upTo {
		added := -k.taken
		shown.Added = &added
	}
	return writeJSON(w, http.StatusOK, shown)
}

// parseKeyChange parses the body of a PATCH of an API key, and returns with the change the reason for it.
func parseKeyChange(body []byte) (change keyChange, reason string, err error) {
	var group, label string
	var add, set int64
	var enabled bool
	var ttl time.Duration
	err = strict.Decode(body, strict.Rules{
		"group":     present(&change.group, &group, strict.String(&group)),
		"addTokens": present(&change.addTokens, &add, strict.Int(&add, -maxAmount, maxAmount)),
		"tokens":    present(&change.setTokens, &set, strict.Int(&set, 0, maxAmount)),
		"enabled":   present(&change.enabled, &enabled, strict.Bool(&enabled)),
		"expiresIn": present(&change.ttl, &ttl, ttlField(&ttl)),
		"label":     present(&change.label, &label, labelField(&label)),
		"upTo":      strict.Bool(&change.upTo),
		"reason":    reasonField(&reason),
	})
	switch {
	case err != nil:
	case change.addTokens != nil && change.setTokens != nil:
		err = badRequestError("addTokens and tokens must not be given together")
	case change.upTo && add >= 0:
		err = badRequestError("upTo is for an addTokens below 0")
	}
	return change, reason, err
}

// present returns rule with the effect that *dst points to value if the member exists.
func present[T any](dst **T, value *T, rule strict.Rule) strict.Rule {
	return func(wrong *strict.Problems, raw []byte) bool {
		*dst = value
		return rule(wrong, raw)
	}
}

// malformedKeyBody is how an admin sees an API key in a list, or after a change, that could not be read.
type malformedKeyBody struct {
	APIKey string `json:"apiKey"`
	Error  string `json:"error"`
}

// listUserKeys lists the API keys of the user in the query: a page of them.
func (s *server) listUserKeys(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	query, err := readQuery(r, "userId", "limit", "after")
	if err != nil {
		return err
	}
	userID := query.Get("userId")
	if userID == "" {
		return badRequestError("userId is missing in the query")
	}
	limit, after, err := readPage(query)
	if err != nil {
		return err
	}
	if after == nil {
		after = new(indexCursor)
	}
	return s.respondInTurn(w, info.tenantID, func() (any, error) {
		keys, next, err := s.store.UserKeys(info.deadline, info.tenant, userID, *after, limit)
		if err != nil {
			return nil, err
		}
		return newKeyPage(keys, next), nil
	})
}

// readPage returns how many entries a page may have, and where it begins: nil is the first.
func readPage(query url.Values) (limit int, after *indexCursor, err error) {
	limit, err = pageLimit(query)
	if err == nil && query.Has("after") {
		cursor, ok := parseIndexCursor(query.Get("after"))
		if !ok {
			return 0, nil, badRequestError("after must be the next of another page")
		}
		after = &cursor
	}
	return limit, after, err
}

// keyPage is a page in the response that lists a user's keys.
type keyPage struct {
	Keys []any   `json:"keys"` // each a keyBody or a malformedKeyBody
	Next *string `json:"next"`
}

// newKeyPage returns a page as clients get it. next is nil on the last page.
func newKeyPage(keys []listedKey, next *indexCursor) keyPage {
	page := keyPage{Keys: make([]any, len(keys)), Next: next.text()}
	for i, k := range keys {
		if k.malformed {
			page.Keys[i] = malformedKeyBody{k.key, "malformed"}
			continue
		}
		body := newKeyBody(k.apiKey)
		body.APIKey, body.SharesWith = k.key, k.sharesWith
		page.Keys[i] = body
	}
	return page
}

// userPage is a page in the response that lists the users who have API keys.
type userPage struct {
	Users []userBody `json:"users"`
	Next  *string    `json:"next"`
}

type userBody struct {
	UserID string `json:"userId"`
	Keys   int64  `json:"keys"`
}

// listUsers lists the tenant's users who have API keys: a page of them. A cursor is the ID of the last one, encoded.
func (s *server) listUsers(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	query, err := readQuery(r, "prefix", "limit", "after")
	if err != nil {
		return err
	}
	limit, err := pageLimit(query)
	if err != nil {
		return err
	}
	encoding := base64.RawURLEncoding.Strict()
	after, err := encoding.DecodeString(query.Get("after"))
	if err != nil || query.Has("after") && (len(after) == 0 || encoding.EncodeToString(after) != query.Get("after")) {
		return badRequestError("after must be the next of another page")
	}
	return s.respondInTurn(w, info.tenantID, func() (any, error) {
		users, next, err := s.store.Users(info.deadline, info.tenant, query.Get("prefix"), string(after), limit)
		if err != nil {
			return nil, err
		}
		page := userPage{Users: make([]userBody, len(users))}
		for i, u := range users {
			page.Users[i] = userBody{u.id, u.keys}
		}
		if next != "" {
			cursor := encoding.EncodeToString([]byte(next))
			page.Next = &cursor
		}
		return page, nil
	})
}

func (s *server) rotateKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var graceSeconds int64
	if len(info.body) > 0 {
		rules := strict.Rules{"graceSeconds": strict.Int(&graceSeconds, 0, int64(maxGrace/time.Second))}
		if err := strict.Decode(info.body, rules); err != nil {
			return err
		}
	}
	if graceSeconds > 0 && !validCredential(key, userKeyPrefix) {
		return badRequestError("graceSeconds is for user_ keys")
	}
	request, err := readIdempotentRequest(r, nil)
	if err != nil {
		return err
	}
	grace := time.Duration(graceSeconds) * time.Second
	var rotated issuedKey
	err = s.onceOnly(info, &request, func() (replayed bool, err error) {
		rotated, err = s.store.RotateKey(info.deadline, info.tenant, key, grace, request)
		return rotated.replayed, err
	})
	if err != nil {
		return notFoundForAdmin(err)
	}
	if rotated.replayed {
		setReplayed(w.Header())
	} else {
		note := ""
		if grace > 0 {
			note = fmt.Sprintf("; the old one works for %d s more", graceSeconds)
		}
		s.audit(info, info.tenantID, "rotated the key %s, which is %s now%s", keyName(key), keyName(rotated.key), note)
	}
	return writeJSON(w, http.StatusOK, tokensBody{rotated.key, rotated.tokensLeft})
}

func (s *server) revokeKey(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	query, err := readQuery(r, "forget", "reason")
	if err != nil {
		return err
	}
	forget := query.Get("forget")
	if forget != "" && forget != "true" && forget != "false" {
		return badRequestError("forget must be true or false")
	}
	reason := query.Get("reason")
	if query.Has("reason") && !isPrintable(reason, maxReasonBytes) {
		return badRequestError("reason " + notAReason)
	}
	if err := s.store.RevokeKey(info.deadline, info.tenant, key, forget == "true"); err != nil {
		return notFoundForAdmin(err)
	}
	s.audit(info, info.tenantID, "revoked the key %s%s", keyName(key), because(reason))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

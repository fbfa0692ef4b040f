package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/gofrs/uuid/v5"

	"tollgate/internal/bearertoken"
	"tollgate/internal/clientip"
	"tollgate/internal/idtoken"
	"tollgate/internal/strict"
)

const (
	anonymousKeyPrefix = "temp_" // of the API keys of anonymous users
	userKeyPrefix      = "user_" // of the API keys of registered users
	adminTokenPrefix   = "adm_"  // of the admin tokens of tenants
)

// Errors that are 401: errNoCredential if nothing was sent that could be a bearer token, errInvalidCredential if the
// token is malformed or wrong.
var (
	errNoCredential      = errors.New("no bearer token")
	errInvalidCredential = errors.New("invalid bearer token")
)

// readAPIKey reads the request's API key from Authorization or, as several SDKs send it, X-API-Key. If both have one,
// they must be equal; an Authorization without a bearer token, as browsers and proxies add it, does not count beside
// X-API-Key. What does not have the form of a key never reaches Redis.
func (s *server) readAPIKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	keys := r.Header["X-Api-Key"]
	switch {
	case len(keys) == 0:
	case len(keys) > 1, err == errInvalidCredential, err == nil && token != keys[0]:
		return errInvalidCredential
	default:
		token, err = keys[0], nil
	}
	if err != nil {
		return err
	}
	if !validAPIKey(token) {
		return ErrNoKey
	}
	info.apiKey = token
	return nil
}

// readSDKKey reads the request's API key as the SDKs of providers send it: in Authorization, in X-API-Key, in Api-Key
// (Azure's), or in several of them. It is laxer than readAPIKey: an SDK may send a key of the provider in another
// header, so what does not have the form of a key of ours is ignored, and the word Bearer may be missing. Two different
// keys of ours are refused.
func (s *server) readSDKKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return info.readKey(keyHeaders(r))
}

// keyHeaders returns what a request has in the headers in which SDKs send API keys.
func keyHeaders(r *http.Request) []string {
	return slices.Concat(r.Header["Authorization"], r.Header["X-Api-Key"], r.Header["Api-Key"])
}

// readKey finds the API key among what the SDK of a provider has sent.
func (info *requestInfo) readKey(sent []string) error {
	if len(sent) == 0 {
		return errNoCredential
	}
	for _, value := range sent {
		if scheme, token, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "Bearer") {
			value = strings.TrimLeft(token, " ")
		}
		if !validAPIKey(value) {
			continue
		}
		if info.apiKey != "" && info.apiKey != value {
			info.apiKey = ""
			return errInvalidCredential
		}
		info.apiKey = value
	}
	if info.apiKey == "" {
		return ErrNoKey
	}
	return nil
}

// keySentence says to the client of a gateway's route why its request was refused with err, a 401: SDKs show it to
// their users. It has no key, and is the same for a key of another tenant as for one that never was.
func keySentence(r *http.Request, info *requestInfo, err error) string {
	tenant := " of this tenant"
	if info.tenantID != "" || r.PathValue("tenantId") == "" { // it exists, or is the default one
		tenant = " of tenant " + pathTenantID(r)
	}
	switch {
	case info.apiKey != "":
		return "The API key is not one" + tenant
	case errors.Is(err, errNoCredential):
		return "No API key was sent: send one" + tenant + " in " + keyPlaces(r)
	case errors.Is(err, errInvalidCredential):
		return "Two different API keys were sent"
	}
	return "What was sent is not an API key" + tenant + ": these begin with " + userKeyPrefix + " or " + anonymousKeyPrefix
}

// requireKey checks that the tenant has the API key, and sets info.group. Its errors are those of store.Key.
func (s *server) requireKey(_ http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	k, err := s.store.Key(info.deadline, info.tenant, info.apiKey)
	info.group = k.group
	return err
}

// spareBody is a step before the one that reads the body. If the client waits to be told that it may send the body
// (Expect: 100-continue; RFC 9110, section 10.1.1), it checks first that the tenant and the API key exist. Others are
// spared the second call of Redis that this takes.
func (s *server) spareBody(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Expect"]) == 0 {
		return nil
	}
	if err := s.loadTenant(w, r, info); err != nil {
		return err
	}
	return s.requireKey(w, r, info)
}

// forAdmins returns the access of a route for those whom check lets pass. Pages of other origins may not call it.
func (s *server) forAdmins(check step, steps ...step) access {
	return access{timeout: adminTimeout, steps: append([]step{forbidTransform, s.delayGuesses(check)}, steps...)}
}

// delayGuesses returns check, a step that reads the token of an operator or an admin, so that it delays the refusals of
// those who guess.
func (s *server) delayGuesses(check step) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		err := check(w, r, info)
		if err == errInvalidCredential {
			s.guesses.NoteRefusal(clientip.Of(r, s.options.trustedProxies), !s.nearCapacity())
		}
		return err
	}
}

// requireOperator lets the operator pass.
func (s *server) requireOperator(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	if !s.isOperator(sha256.Sum256([]byte(token))) {
		return errInvalidCredential
	}
	info.actor = actor{}
	return nil
}

func (s *server) isOperator(hash [sha256.Size]byte) bool { return s.operatorTokens.Has(hash) }

// requireMetrics lets the operator pass, and the holder of the metrics token.
func (s *server) requireMetrics(_ http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(token))
	if !s.metricsTokens.Has(hash) && !s.isOperator(hash) {
		return errInvalidCredential
	}
	return nil
}

// requireAdmin lets the operator pass, and the holder of one of the tenant's own admin tokens. It comes before
// requireTenant, so that a stranger does not learn which tenants exist.
func (s *server) requireAdmin(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(token))
	if s.isOperator(hash) {
		info.actor = actor{}
		return nil
	}
	id := pathTenantID(r)
	if !validTenantID(id) || !validCredential(token, adminTokenPrefix) {
		return errInvalidCredential
	}
	found, err := s.store.IsAdminToken(info.deadline, id, hash)
	if err != nil {
		return err
	}
	if !found {
		return errInvalidCredential
	}
	info.actor = actor{tokenHash: hex.EncodeToString(hash[:])}
	return nil
}

// bearerToken returns the token of the request's Authorization header (RFC 6750, section 2.1). Errors: errNoCredential
// if none was sent; errInvalidCredential if it was malformed, or sent more than once.
func bearerToken(r *http.Request) (string, error) {
	values := r.Header["Authorization"]
	if len(values) == 0 {
		return "", errNoCredential
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case len(values) > 1:
		return "", errInvalidCredential
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return "", errNoCredential
	case !bearertoken.Valid(token):
		return "", errInvalidCredential
	}
	return token, nil
}

// newCredential returns prefix with a random UUID (RFC 9562, version 4: 122 random bits).
func newCredential(prefix string) (string, error) {
	id, err := uuid.NewV4()
	if err != nil {
		return "", fmt.Errorf("generate a UUID: %w", err)
	}
	return prefix + id.String(), nil
}

// validAPIKey reports whether key has the form of tollgate's API keys.
func validAPIKey(key string) bool {
	return validCredential(key, anonymousKeyPrefix) || validCredential(key, userKeyPrefix)
}

// validCredential reports whether s is prefix with a UUID in its canonical lower-case form.
func validCredential(s, prefix string) bool {
	id, ok := strings.CutPrefix(s, prefix)
	if !ok || len(id) != 36 || strings.ToLower(id) != id {
		return false
	}
	_, err := uuid.FromString(id)
	return err == nil
}

// limitLogins counts a login of the client's address.
func (s *server) limitLogins(r *http.Request, info *requestInfo) error {
	if s.options.loginLimit == 0 {
		return nil
	}
	err := s.store.CountLogin(info.deadline, clientip.Of(r, s.options.trustedProxies), s.options.loginLimit)
	if _, limited := errors.AsType[rateLimitError](err); limited {
		s.warnOfUntrustedProxy(r)
	}
	return err
}

// warnOfUntrustedProxy logs, once, that a login was refused which came through a proxy that is not trusted: all clients
// of that proxy then share one limit.
func (s *server) warnOfUntrustedProxy(r *http.Request) {
	if address, ok := clientip.UntrustedProxy(r, s.options.trustedProxies); ok {
		s.untrustedProxy.Do(func() {
			s.log.Warnf("A login was refused by the limit for %s, which sends X-Forwarded-For: if that is your proxy, "+
				"add it to TRUSTED_PROXIES, or all its clients share one limit", address)
		})
	}
}

// signInProvider is a provider whose users may sign in.
type signInProvider struct {
	verifier *idtoken.Verifier
	name     string // in paths and user IDs
	title    string // in sentences
	config   string // the member of a config's auth that has the client IDs
	group    string // of the keys of its users
}

// signIn returns the handler that signs in a user for whom the provider vouches.
func (s *server) signIn(p *signInProvider) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		who, visitor, err := s.readSignIn(r, info, p)
		if err != nil {
			return err
		}
		k, err := s.store.SignIn(info.deadline, who, visitor)
		if err != nil {
			return err
		}
		if k.created {
			s.metrics.keyIssued(info.tenantID, k.group)
			granted := min(k.tokensLeft, who.tokens) // less if it is not the first key
			s.usage.add(info.tenant, usageEvent{key: k.key, granted: granted})
		}
		return writeJSON(w, http.StatusOK, struct {
			APIKey     string `json:"apiKey"`
			UserID     string `json:"userId"`
			TokensLeft int64  `json:"tokensLeft"`
			Merged     *bool  `json:"merged,omitempty"`
		}{k.key, k.userID, k.tokensLeft, k.merged})
	}
}

// readSignIn returns who signs in, and the temp_ key that is sent along, if there is one.
func (s *server) readSignIn(r *http.Request, info *requestInfo, p *signInProvider) (who signInIdentity,
	visitor string, err error) {
	config := info.tenant.config
	clientIDs := config.clientIDs[p.config]
	group, ok := config.groups[p.group]
	if !ok || len(clientIDs) == 0 {
		return who, "", signInDisabledError{p.title}
	}
	if err := s.limitLogins(r, info); err != nil {
		return who, "", err
	}
	var token string
	if err := strict.Decode(info.body, strict.Rules{"idToken": strict.String(&token)}, "idToken"); err != nil {
		return who, "", err
	}
	subject, err := p.verifier.Verify(info.deadline.Add(-publicTimeout), token, clientIDs) // the store needs the rest
	if err != nil {
		if errors.Is(err, idtoken.ErrInvalid) {
			s.log.Warnf("Sign-in with %s, tenant %s: %v", p.title, info.tenantID, err)
		}
		return who, "", err
	}
	if sent, err := bearerToken(r); err == nil && validCredential(sent, anonymousKeyPrefix) {
		visitor = sent
	}
	return signInIdentity{info.tenant, p.name + ":" + subject, p.group, group.tokens}, visitor, nil
}

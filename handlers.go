package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gofrs/uuid/v5"
)

const (
	anonymousPrefix = "temp_" // of the API keys of anonymous users
	userPrefix      = "user_" // of those of registered ones

	maxUserIDBytes = 256
	maxKeyLife     = 10 * 365 * 24 * time.Hour
)

// server answers the HTTP contract from what the store keeps.
type server struct {
	store          *store
	log            *logger
	adminTokenHash [sha256.Size]byte
	loginLimit     int64 // anonymous logins a minute of one client address, 0: no limit
	trustedProxies []netip.Prefix
	draining       atomic.Bool // the server is about to stop
}

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
	}, nil
}

// routes is every route there is.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	operator := func(pattern string, h handler) { mux.Handle(pattern, s.handle(h)) }
	// A tenant's route stands twice: below the tenant's ID, and without it for the tenant default.
	tenant := func(method, path string, h handler) {
		mux.Handle(method+" /{tenantId}"+path, s.handle(h))
		mux.Handle(method+" "+path, s.handle(h))
	}
	public := s.withTenant
	admin := func(h handler) handler { return s.withAdmin(s.withTenant(h)) }

	tenant("POST", "/auth/anonymous", public(s.loginAnonymous))

	tenant("GET", "/auth/key", public(s.showOwnKey))
	tenant("POST", "/tokens/consume", public(s.consume))

	tenant("GET", "/admin/config", admin(s.showConfig))
	tenant("PUT", "/admin/config", admin(s.replaceConfig))
	tenant("POST", "/admin/keys", admin(s.issueUserKey))

	operator("GET /healthz", s.showHealth)
	operator("GET /readyz", s.showReadiness)
	return s.recovered(mux)
}

// errorBody is the body of every answer that is an error.
type errorBody struct {
	Error      string `json:"error"`
	TokensLeft *int64 `json:"tokensLeft,omitempty"`
}

// What handlers find wrong with a request; writeError knows the answer to each.
var (
	errNoToken       = errors.New("no bearer token")
	errInvalidToken  = errors.New("invalid bearer token")
	errLoginDisabled = errors.New("anonymous login is disabled")
	errBodyTooLarge  = errors.New("body too large")
)

// badRequest is a sentence for the client that says what is wrong with its request.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// paymentRequired is ErrTokensSpent with the balance that was not enough.
type paymentRequired struct{ tokensLeft int64 }

func (paymentRequired) Error() string { return ErrTokensSpent.Error() }

// writeError is where an error becomes a status and a public sentence. What nobody foresaw is logged.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, body := http.StatusInternalServerError, errorBody{Error: "Internal error"}
	var (
		bad     badRequest
		invalid *invalidConfig
		limited rateLimited
		spent   paymentRequired
	)
	switch {
	case errors.As(err, &bad):
		status, body.Error = http.StatusBadRequest, bad.Error()
	case errors.As(err, &invalid):
		status, body.Error = http.StatusBadRequest, invalid.Error()
	case errors.Is(err, ErrNoTenant):
		status, body.Error = http.StatusBadRequest, "Invalid tenant ID"
	case errors.Is(err, errNoToken):
		status, body.Error = http.StatusUnauthorized, "Unauthorized"
		w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate"`)
	case errors.Is(err, errInvalidToken), errors.Is(err, ErrNoKey):
		status, body.Error = http.StatusUnauthorized, "Unauthorized"
		w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
	case errors.As(err, &spent):
		status, body.Error, body.TokensLeft = http.StatusPaymentRequired, "Payment Required", &spent.tokensLeft
	case errors.Is(err, errLoginDisabled):
		status, body.Error = http.StatusForbidden, "Anonymous login is disabled"
	case errors.Is(err, errBodyTooLarge):
		status, body.Error = http.StatusRequestEntityTooLarge, "Body too large"
	case errors.As(err, &limited):
		status, body.Error = http.StatusTooManyRequests, "Too Many Requests"
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(limited.retryAfter.Seconds())))))
	case errors.Is(err, ErrUnavailable):
		status, body.Error = http.StatusServiceUnavailable, "Service unavailable"
		w.Header().Set("Retry-After", "1")
	default:
		s.log.errorf("%s: %v", r.Pattern, err)
	}
	_ = writeJSON(w, status, body)
}

// issued is the answer to a new API key.
type issued struct {
	APIKey     string `json:"apiKey"`
	TokensLeft int64  `json:"tokensLeft"`
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
	if err := s.store.IssueKey(r.Context(), key, k, anonymousKeyLife, clientAddress(r, s.trustedProxies), s.loginLimit); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, issued{key, k.TokensLeft})
}

func (s *server) issueUserKey(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
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
		return badRequest("group is not one of the tenant's user_groups")
	}
	k.TokensLeft = group.tokens
	if tokens >= 0 {
		k.TokensLeft = tokens
	}
	key, err := newToken(userPrefix)
	if err != nil {
		return err
	}
	if err := s.store.IssueKey(r.Context(), key, k, time.Duration(lifeSeconds)*time.Second, "", 0); err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, issued{key, k.TokensLeft})
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

// validAPIKey tells whether key is temp_ or user_ with a UUID in its canonical lower-case form.
func validAPIKey(key string) bool {
	id, ok := strings.CutPrefix(key, anonymousPrefix)
	if !ok {
		id, ok = strings.CutPrefix(key, userPrefix)
	}
	if !ok || len(id) != 36 || strings.ToLower(id) != id {
		return false
	}
	_, err := uuid.FromString(id)
	return err == nil
}

func (s *server) consume(w http.ResponseWriter, r *http.Request) error {
	key, err := bearerKey(r)
	if err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	n := int64(1)
	if len(body) > 0 {
		if err := readJSON(body, fields{"tokens": wholeNumber(&n, 1, maxAmount)}, "tokens"); err != nil {
			return err
		}
	}
	left, err := s.store.Consume(r.Context(), tenantFrom(r).id, key, n)
	if errors.Is(err, ErrTokensSpent) {
		return paymentRequired{left}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		TokensLeft int64 `json:"tokensLeft"`
	}{left})
}

func (s *server) showOwnKey(w http.ResponseWriter, r *http.Request) error {
	key, err := bearerKey(r)
	if err != nil {
		return err
	}
	k, err := s.store.Key(r.Context(), tenantFrom(r).id, key)
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

// configBody is a config as the admin routes show it.
type configBody struct {
	Config json.RawMessage `json:"config"`
}

func (s *server) showConfig(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, configBody{tenantFrom(r).config.raw})
}

func (s *server) replaceConfig(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	var raw []byte
	if err := readJSON(body, fields{"config": rawJSON(&raw)}, "config"); err != nil {
		return err
	}
	config, err := parseConfig(raw)
	if err != nil {
		return err
	}
	if err := s.store.ReplaceConfig(r.Context(), tenantFrom(r).id, config); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Success bool `json:"success"`
	}{true})
}

func (s *server) showHealth(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, statusBody{"ok"})
}

// showReadiness says whether a request that needs Redis would be answered.
func (s *server) showReadiness(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return ErrUnavailable
	}
	if err := s.store.Ping(r.Context()); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, statusBody{"ready"})
}

type statusBody struct {
	Status string `json:"status"`
}

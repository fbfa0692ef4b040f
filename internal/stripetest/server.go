// Package stripetest is a stand-in for Stripe: a real HTTP server that has the state of one account. It serves the
// requests that tollgate makes, checks them as Stripe does, and misbehaves if it is told to. What its customers do,
// such as Server.Pay, changes the state and returns the events that Stripe would send. Nothing is sent by itself: a
// test delivers the events in any order, as often as it likes.
//
// Metadata goes where it goes at Stripe: that of a session stays there, subscription_data[metadata] goes to the
// subscription and, as it is when an invoice is made, to its invoices, and payment_intent_data[metadata] to the charge.
package stripetest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// Key is the API key that the server accepts.
	Key = "sk_test_51TollgateStripetest0123456789"

	// Secret signs webhooks, if a test has no other.
	Secret = "whsec_tollgateStripetest0123456789abcdef"

	// Version is the one that requests must ask for.
	Version = "2026-10-28.endive"

	// OldVersion has the shape before 2025-03-31.
	OldVersion = "2024-06-20"

	// UnitAmount is what one of any price costs, in cents.
	UnitAmount = 1000
)

// A Conduct is how the server responds. The zero value is one that works.
type Conduct struct {
	Status  int                 // unless it is 0, requests are refused, and nothing is done
	Message string              // of the refusal
	Hang    bool                // nothing comes until the client is gone, and nothing is done
	Cut     bool                // the request is obeyed, but the connection cut before the response
	Before  func(*http.Request) // unless it is nil, it is called first. It may change the server's state
}

// A Request is one that the server has read.
type Request struct {
	Method, Path   string // of the path, what follows /v1/
	IdempotencyKey string
	Form           url.Values // of the body, or the query
}

// A Server stands in for Stripe. Any number of goroutines may use it. Its methods panic if they are given an ID that it
// does not have.
type Server struct {
	URL string

	mu       sync.Mutex
	conduct  Conduct
	old      bool          // events have the old shape
	age      time.Duration // of events
	n        int           // objects made so far
	requests []Request
	replays  map[string]replay // by idempotency key
	closed   chan struct{}

	sessions      map[string]*session
	subscriptions map[string]*subscription
	invoices      map[string]*invoice
	charges       map[string]*charge
	disputes      map[string]*dispute
	customers     map[string]bool
	order         []string // the sessions' IDs, in the order in which they were made
}

// A replay is what a repeated request gets.
type replay struct {
	path, form string
	status     int
	body       []byte
}

// New starts a server. It stops when the test ends.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		replays: make(map[string]replay), closed: make(chan struct{}),
		sessions: make(map[string]*session), subscriptions: make(map[string]*subscription),
		invoices: make(map[string]*invoice), charges: make(map[string]*charge),
		disputes: make(map[string]*dispute), customers: make(map[string]bool),
	}
	server := httptest.NewServer(s)
	s.URL = server.URL
	t.Cleanup(func() {
		close(s.closed)
		server.Close()
	})
	return s
}

// SetConduct changes how requests from now on are served.
func (s *Server) SetConduct(c Conduct) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conduct = c
}

// SetOldShape says whether events from now on have the shape of OldVersion. Responses always have the one of Version,
// since they have what requests ask for.
func (s *Server) SetOldShape(old bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = old
}

// SetAge says how old events from now on are when they are returned.
func (s *Server) SetAge(age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age = age
}

// Forget forgets all idempotency keys, as Stripe does after a day or later.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.replays)
}

// Requests returns the requests so far, refused ones too.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Sessions returns the IDs of the Checkout Sessions so far, the oldest first.
func (s *Server) Sessions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// Sign returns a Stripe-Signature of a body, made at a time with each of the secrets.
func Sign(body []byte, at time.Time, secrets ...string) string {
	header := fmt.Sprintf("t=%d", at.Unix())
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
		header += ",v1=" + hex.EncodeToString(mac.Sum(nil))
	}
	return header
}

// ServeHTTP serves a request of the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := r.ParseForm()
	s.mu.Lock()
	conduct := s.conduct
	request := Request{
		r.Method, strings.TrimPrefix(r.URL.Path, "/v1/"), r.Header.Get("Idempotency-Key"), maps.Clone(r.Form),
	}
	s.requests = append(s.requests, request)
	s.mu.Unlock()
	if conduct.Before != nil {
		conduct.Before(r)
	}
	if conduct.Hang {
		select {
		case <-r.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	}
	refused := s.check(r)
	if err != nil {
		refused = refuse("", "Invalid form")
	}
	if conduct.Status != 0 {
		refused = &refusal{conduct.Status, "api_error", "", "", conduct.Message}
	}
	s.mu.Lock()
	status, body, replayed := s.respond(request, refused)
	s.mu.Unlock()
	if conduct.Cut {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", "req_stripetest")
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(status)
	w.Write(body)
}

// check returns the refusal of a request whose headers Stripe would refuse, or whose version is not pinned.
func (s *Server) check(r *http.Request) *refusal {
	switch token, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); {
	case !isBearer:
		return unauthorized("You did not provide an API key.")
	case token != Key:
		return unauthorized("Invalid API Key provided: " + token[:min(8, len(token))] + "********")
	case r.Header.Get("Stripe-Version") != Version:
		return refuse("", "Invalid Stripe API version")
	case r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/x-www-form-urlencoded":
		return refuse("", "Invalid content type")
	case len(r.Header.Get("Idempotency-Key")) > 255:
		return refuse("", "Idempotency keys have at most 255 characters")
	}
	return nil
}

// respond returns the response to a request. POST requests are done once for each idempotency key.
func (s *Server) respond(r Request, refused *refusal) (status int, body []byte, replayed bool) {
	key, form := r.IdempotencyKey, r.Form.Encode()
	if before, ok := s.replays[key]; ok && refused == nil && key != "" {
		if before.path == r.Path && before.form == form {
			return before.status, before.body, true
		}
		refused = &refusal{http.StatusBadRequest, "idempotency_error", "", "",
			"Keys for idempotent requests can only be used with the same parameters they were first used with."}
	}
	status = http.StatusOK
	var object map[string]any
	if refused == nil {
		object, refused = s.serve(r)
	}
	if refused != nil {
		status, object = refused.status, refused.object()
	}
	body = mustMarshal(object)
	if key != "" && refused == nil {
		s.replays[key] = replay{r.Path, form, status, body}
	}
	return status, body, false
}

// serve does what a request asks for.
func (s *Server) serve(r Request) (map[string]any, *refusal) {
	switch r.Method + " " + r.Path {
	case "POST checkout/sessions":
		return s.createSession(r.Form)
	case "POST billing_portal/sessions":
		return s.createPortal(r.Form)
	case "GET invoice_payments":
		return s.listPayments(r.Form.Get("payment[payment_intent]")), nil
	}
	if r.Method == http.MethodGet {
		if object := s.find(r); object != nil {
			return object, nil
		}
	}
	return nil, missing("id", r.Path)
}

// find returns what is at the path of a request, nil if nothing is.
func (s *Server) find(r Request) map[string]any {
	kind, id, ofLines := cutPath(r.Path)
	switch {
	case kind == "subscriptions" && s.subscriptions[id] != nil:
		return s.subscriptions[id].object(false)
	case kind == "charges" && s.charges[id] != nil:
		return s.charges[id].object(false)
	case kind == "invoices" && s.invoices[id] != nil && ofLines:
		return s.invoices[id].page(r.Form.Get("starting_after"), 100, false)
	case kind == "invoices" && s.invoices[id] != nil:
		return s.invoices[id].object(false)
	}
	return nil
}

// cutPath returns the parts of a path such as invoices/in_1/lines.
func cutPath(path string) (kind, id string, ofLines bool) {
	path, ofLines = strings.CutSuffix(path, "/lines")
	at := strings.LastIndexByte(path, '/')
	if at < 0 {
		return path, "", ofLines
	}
	return path[:at], path[at+1:], ofLines
}

// A refusal is an error in a response.
type refusal struct {
	status                     int
	kind, code, param, message string
}

// refuse returns the refusal of a parameter.
func refuse(param, message string) *refusal {
	return &refusal{http.StatusBadRequest, "invalid_request_error", "", param, message}
}

func unauthorized(message string) *refusal {
	return &refusal{http.StatusUnauthorized, "invalid_request_error", "", "", message}
}

func (r *refusal) object() map[string]any {
	return map[string]any{"error": map[string]any{
		"type": r.kind, "code": orNull(r.code), "param": orNull(r.param), "message": r.message,
	}}
}

// orNull returns nil for an empty string, which is null in JSON.
func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

func mustMarshal(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return body
}

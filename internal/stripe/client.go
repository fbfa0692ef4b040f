package stripe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/strict"
)

// Version is the version of the API that requests ask for. Months within a name such as endive are compatible.
const Version = "2026-10-28.endive"

// DefaultURL is where Stripe's API is.
const DefaultURL = "https://api.stripe.com"

const (
	callTimeout      = 10 * time.Second // of a request and its whole response
	maxResponseBytes = 4 << 20          // a page of 100 lines whose metadata has the largest size is 3 MB
	maxLinePages     = 20               // of maxPage lines of an invoice
)

// A Client calls Stripe's API for any number of accounts. It follows no redirects. Any number of goroutines may use it.
// Each request and response takes at most 10 s; how many there are at a time, the caller bounds.
type Client struct {
	baseURL string
	client  *http.Client
}

// NewClient returns a client of the API at baseURL, such as DefaultURL. It connects when it is used.
func NewClient(baseURL string) *Client {
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		ForceAttemptHTTP2:      true,
		DialContext:            (&net.Dialer{Timeout: callTimeout}).DialContext,
		TLSHandshakeTimeout:    callTimeout,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &Client{strings.TrimRight(baseURL, "/"), &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Account returns the account whose secret or restricted API key that is.
func (c *Client) Account(apiKey string) Account { return Account{c, apiKey} }

// An Account is an account of Stripe's, in which things are sold. The errors of its methods wrap ErrUnavailable, an
// *Error if Stripe refuses, or ErrShape. None has the API key in it.
type Account struct {
	client *Client
	apiKey string
}

// IsLive reports whether the account's API key is one for real money.
func (a Account) IsLive() bool { return strings.Contains(a.apiKey, "_live_") }

// post makes an object of a form. To the same idempotency key Stripe gives the same response, for at least 24 h, so the
// transport sends a request again whose connection breaks. If idempotencyKey is empty, it is a random one.
func (a Account) post(ctx context.Context, path string, f form, idempotencyKey string, rule strict.Rule) error {
	if idempotencyKey == "" {
		idempotencyKey = rand.Text()
	}
	r, err := http.NewRequest(http.MethodPost, a.client.baseURL+"/v1/"+path, strings.NewReader(f.encode()))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Idempotency-Key", idempotencyKey)
	return a.do(ctx, r, rule)
}

// get reads what is at a path. Its steps are constants and IDs.
func (a Account) get(ctx context.Context, f form, rule strict.Rule, path ...string) error {
	for _, step := range path {
		if !isID(step) { // it would lead elsewhere
			return fmt.Errorf("%w: not an ID", ErrShape)
		}
	}
	r, err := http.NewRequest(http.MethodGet, a.client.baseURL+"/v1/"+strings.Join(path, "/"), nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	r.URL.RawQuery = f.encode()
	return a.do(ctx, r, rule)
}

// do sends a request, and reads the response by a rule.
func (a Account) do(ctx context.Context, r *http.Request, rule strict.Rule) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Authorization", "Bearer "+a.apiKey)
	r.Header.Set("Stripe-Version", Version)
	r.Header.Set("User-Agent", "tollgate")
	response, err := a.client.client.Do(r.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponseBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case response.StatusCode < 200 || response.StatusCode > 299:
		return newError(response, body, a.apiKey)
	case len(body) > maxResponseBytes:
		return fmt.Errorf("%w: a response is larger than %d bytes", ErrShape, maxResponseBytes)
	}
	if err := decode(body, rule); !errors.Is(err, ErrSyntax) {
		return err
	}
	return fmt.Errorf("%w: a response is not JSON", ErrShape)
}

// A Checkout is what a customer is asked to pay for.
type Checkout struct {
	Mode              Mode // ModePayment or ModeSubscription, as the price is
	Price             string
	Quantity          int64  // at least 1; the customer cannot change it
	SuccessURL        string // where the customer goes then; Stripe replaces {CHECKOUT_SESSION_ID} in it
	CancelURL         string // where the link back leads; without it there is no link
	Customer          string // who has paid before, or empty for somebody new
	ClientReferenceID string // at most 200 characters

	// Metadata goes to the session, and in ModePayment to the charge, in ModeSubscription to the subscription, which
	// gives it to its invoices. Stripe takes at most 50 names of at most 40 characters, without brackets, with values of
	// at most 500 characters. Empty ones are left out.
	Metadata map[string]string
}

// CreateSession makes a Checkout Session, which has an URL. It lasts for 24 h. If somebody new pays, Stripe makes a
// customer, in both modes. The idempotency key has at most 255 characters. If it is empty, each call makes a session.
func (a Account) CreateSession(ctx context.Context, idempotencyKey string, c Checkout) (Session, error) {
	f := make(form)
	f.set(string(c.Mode), "mode")
	f.set(c.Price, "line_items", "0", "price")
	f.set(strconv.FormatInt(c.Quantity, 10), "line_items", "0", "quantity")
	f.set(c.SuccessURL, "success_url")
	f.set(c.CancelURL, "cancel_url")
	f.set(c.Customer, "customer")
	f.set(c.ClientReferenceID, "client_reference_id")
	f.setMap(c.Metadata, "metadata")
	if c.Mode == ModeSubscription {
		f.setMap(c.Metadata, "subscription_data", "metadata")
	} else {
		f.setMap(c.Metadata, "payment_intent_data", "metadata") // Stripe refuses it for a subscription
		if c.Customer == "" {
			f.set("always", "customer_creation") // by default, a subscription makes one and a payment none
		}
	}
	var s Session
	err := a.post(ctx, "checkout/sessions", f, idempotencyKey, session(&s))
	if err == nil && s.URL == "" {
		err = fmt.Errorf("%w: a new session has no url", ErrShape)
	}
	return s, err
}

// CreatePortal makes a session of the Billing Portal, where a customer changes or ends subscriptions and from where a
// link leads to returnURL. It returns the portal's URL, which opens for minutes only. The idempotency key is as in
// CreateSession.
func (a Account) CreatePortal(
	ctx context.Context, idempotencyKey, customer, returnURL string,
) (url string, err error) {
	f := make(form)
	f.set(customer, "customer")
	f.set(returnURL, "return_url")
	rule := object(strict.Rules{"url": strict.String(&url)}, "url")
	err = a.post(ctx, "billing_portal/sessions", f, idempotencyKey, rule)
	return url, err
}

// Subscription returns a subscription as it is now. It exists for ever, even if it is canceled.
func (a Account) Subscription(ctx context.Context, id string) (Subscription, error) {
	var s Subscription
	err := a.get(ctx, nil, subscription(&s, "id", "status", "metadata", "items"), "subscriptions", id)
	return s, err
}

// Charge returns a charge.
func (a Account) Charge(ctx context.Context, id string) (Charge, error) {
	var c Charge
	err := a.get(ctx, nil, charge(&c, "id"), "charges", id)
	return c, err
}

// Invoice returns an invoice, without its lines.
func (a Account) Invoice(ctx context.Context, id string) (Invoice, error) {
	var i Invoice
	err := a.get(ctx, nil, invoice(&i, nil, "id"), "invoices", id)
	return i, err
}

// InvoiceLines returns all lines of an invoice, at most 2,000: more are an error that wraps ErrShape. Each 100 of them
// are a request, so ctx should have a deadline.
func (a Account) InvoiceLines(ctx context.Context, id string) ([]Line, error) {
	var lines []Line
	for range maxLinePages {
		f := make(form)
		f.set(strconv.Itoa(maxPage), "limit")
		if len(lines) > 0 {
			f.set(lines[len(lines)-1].ID, "starting_after")
		}
		before, more := len(lines), false
		if err := a.get(ctx, f, list(&lines, &more, line), "invoices", id, "lines"); err != nil {
			return nil, err
		}
		if !more {
			return lines, nil
		}
		if len(lines) == before || lines[len(lines)-1].ID == "" { // nothing says where the next page begins
			break
		}
	}
	return nil, fmt.Errorf("%w: an invoice has too many lines", ErrShape)
}

// InvoiceOfPayment returns the ID of the invoice that a payment intent pays, empty if it pays none.
func (a Account) InvoiceOfPayment(ctx context.Context, paymentIntent string) (invoice string, err error) {
	type payment struct{ invoice string }
	f := make(form)
	f.set("payment_intent", "payment", "type")
	f.set(paymentIntent, "payment", "payment_intent")
	var payments []payment
	var more bool
	err = a.get(ctx, f, list(&payments, &more, func(p *payment) strict.Rule {
		return object(strict.Rules{"invoice": reference(id(&p.invoice))}, "invoice")
	}), "invoice_payments")
	if err != nil || len(payments) == 0 {
		return "", err
	}
	return payments[0].invoice, nil
}

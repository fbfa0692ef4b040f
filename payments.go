package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/strict"
	"tollgate/internal/stripe"
)

const (
	maxQuantity = 999_999 // as Stripe takes

	// stripeTimeout is for all that a request asks Stripe for.
	stripeTimeout = 10 * time.Second

	// maxStripeCalls bounds the requests of a process that wait for Stripe at a time. The share of an API key is an
	// eighth, that of a tenant options.gateway.TenantShare.
	maxStripeCalls = 64

	sessionsPerMinute = 10  // of checkouts, and of the portal, that an API key may have
	checkoutsPerDay   = 100 // since each leaves a record for weeks
)

var (
	errPaymentsDisabled = errors.New("the config lacks what payments need")
	errNotSignedIn      = errors.New("an anonymous user cannot pay")
	errUnknownPrice     = errors.New("the config has no such price")
	errSubscribed       = errors.New("the API key has a subscription")
	errStripeBusy       = fmt.Errorf("%w: too many requests wait for Stripe", ErrUnavailable)
)

// readURL returns the rule for a URL to which Stripe sends the user.
func (p *payments) readURL(dst *string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		ok := strict.String(dst)(wrong, value)
		return ok && (p.returnURLs.Allow(*dst) || wrong.Add("must be below one of return_urls"))
	}
}

// listPrices sends what can be bought.
func (s *server) listPrices(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	type priceBody struct {
		Price  string `json:"price"`
		Group  string `json:"group,omitempty"` // of a subscription
		Tokens int64  `json:"tokens"`
	}
	prices := []priceBody{}
	for _, one := range info.tenant.config.payments.prices {
		prices = append(prices, priceBody{one.id, one.group, one.tokens})
	}
	return writeJSON(w, http.StatusOK, struct {
		Prices []priceBody `json:"prices"`
	}{prices})
}

// urlBody is the response that sends a user to a page of Stripe's.
type urlBody struct {
	URL string `json:"url"`
}

// createCheckout sends a user to Stripe to pay.
func (s *server) createCheckout(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	who, err := s.buyer(info)
	if err != nil {
		return err
	}
	if strings.HasPrefix(info.apiKey, anonymousKeyPrefix) {
		return errNotSignedIn
	}
	order, saved, err := readOrder(info, who)
	if err != nil {
		return err
	}
	key, err := stripeKey(r, info, who, "checkout")
	if err != nil {
		return err
	}
	reference := rand.Text()
	if key != "" { // the same session has the same; another one that Stripe makes when it has forgotten the key has not
		reference = shortHash(key, saved.price, fmt.Sprint(order.Quantity), fmt.Sprint(saved.tokens))
	}
	order.Metadata = map[string]string{metadataTenant: info.tenantID, metadataReference: reference}
	if err := s.store.CountCheckout(info.deadline, who.first); err != nil {
		return err
	}
	var session stripe.Session
	err = s.askStripe(w, r, info, who, func(ctx context.Context, a stripe.Account) (err error) {
		session, err = a.CreateSession(ctx, key, order)
		if isMissingCustomer(err) { // it was deleted, or is another account's
			order.Customer = ""
			session, err = a.CreateSession(ctx, key+key, order) // "" stays ""
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.store.SaveCheckout(info.deadline, info.tenant, reference, saved); err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, urlBody{session.URL})
}

// readOrder returns what the body of a request for a checkout asks Stripe for, and what is saved of it.
func readOrder(info *requestInfo, who buyer) (order stripe.Checkout, saved checkout, err error) {
	p := &info.tenant.config.payments
	order = stripe.Checkout{Mode: stripe.ModeSubscription, Quantity: 1, Customer: who.customer}
	err = strict.Decode(info.body, strict.Rules{
		"price": strict.String(&order.Price), "quantity": strict.Int(&order.Quantity, 1, maxQuantity),
		"successUrl": p.readURL(&order.SuccessURL), "cancelUrl": p.readURL(&order.CancelURL),
	}, "price", "successUrl", "cancelUrl")
	if err != nil {
		return order, saved, err
	}
	bought, ok := p.price(order.Price)
	isPack := bought.group == ""
	switch {
	case !ok:
		return order, saved, errUnknownPrice
	case bought.tokens > maxAmount/order.Quantity:
		return order, saved, badRequestError("quantity is too large: no balance can hold the tokens")
	case !isPack && who.subscription != "":
		return order, saved, errSubscribed
	}
	saved = checkout{first: who.first, userID: who.userID, price: bought.id}
	if isPack {
		order.Mode, saved.tokens = stripe.ModePayment, bought.tokens*order.Quantity
	}
	return order, saved, nil
}

// openPortal sends a user to Stripe's portal, where subscriptions are changed and ended.
func (s *server) openPortal(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	who, err := s.buyer(info)
	if err != nil {
		return err
	}
	var returnURL, portal string
	rules := strict.Rules{"returnUrl": info.tenant.config.payments.readURL(&returnURL)}
	if err := strict.Decode(info.body, rules, "returnUrl"); err != nil {
		return err
	}
	if who.customer == "" {
		return errNotFound
	}
	key, err := stripeKey(r, info, who, "portal")
	if err != nil {
		return err
	}
	if err := s.store.CountPortal(info.deadline, who.first); err != nil {
		return err
	}
	err = s.askStripe(w, r, info, who, func(ctx context.Context, a stripe.Account) (err error) {
		portal, err = a.CreatePortal(ctx, key, who.customer, returnURL)
		return err
	})
	if isMissingCustomer(err) { // it was deleted, or is another account's, in which nothing was paid
		return errNotFound
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, urlBody{portal})
}

// buyer returns who pays with the request's API key. Errors: errPaymentsDisabled, ErrKeyDisabled, and those of
// store.Buyer.
func (s *server) buyer(info *requestInfo) (buyer, error) {
	who, err := s.store.Buyer(info.deadline, info.tenant, info.apiKey)
	switch {
	case err != nil: // as on other routes, a key is checked first
	case !info.tenant.config.payments.isEnabled():
		err = errPaymentsDisabled
	case who.disabled:
		err = ErrKeyDisabled
	}
	return who, err
}

// stripeKey returns what Stripe gets for the request's Idempotency-Key, "" if it has none. Other clients and tenants
// may have the same one.
func stripeKey(r *http.Request, info *requestInfo, who buyer, kind string) (string, error) {
	key, err := idempotencyKey(r)
	if err != nil || key == "" {
		return "", err
	}
	return shortHash(info.tenantID, info.tenant.generation, who.first, kind, key), nil
}

// askStripe calls ask, which has stripeTimeout for what it asks the tenant's account for, unless the client goes. Redis
// has a deadline of its own afterwards. Errors: errStripeBusy; and a stripeError if ask returns one.
func (s *server) askStripe(w http.ResponseWriter, r *http.Request, info *requestInfo, who buyer,
	ask func(context.Context, stripe.Account) error) error {
	place := s.stripeCalls.Claim(info.tenantID, who.first)
	if place.Add(1) != nil {
		return errStripeBusy
	}
	defer place.Release()
	connlimit.Admit(r.Context())
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stripeTimeout + writeTimeout))
	ctx, cancel := context.WithTimeout(r.Context(), stripeTimeout)
	defer cancel()
	err := ask(ctx, s.stripe.Account(info.tenant.config.payments.apiKey))
	info.deadline = stepDeadline()
	if err == nil {
		return nil
	}
	if r.Context().Err() == nil {
		s.log.Warnf("%s tenant=%s id=%s: %v", r.Pattern, info.tenantID, info.id, err)
	}
	return stripeError{err}
}

// A stripeError is one that Stripe has responded with, or that it has not responded.
type stripeError struct{ error }

func (e stripeError) Unwrap() error { return e.error }

func (e stripeError) response() errorResponse {
	refusal, _ := errors.AsType[*stripe.Error](e.error)
	switch {
	case errors.Is(e.error, stripe.ErrUnavailable):
		return responseTo(ErrUnavailable)
	case refusal != nil && refusal.Status == http.StatusConflict: // the same request is under way
		return responseTo(ErrUnavailable)
	case refusal != nil && refusal.Type == "idempotency_error":
		return responseTo(ErrKeyReused)
	}
	return errorResponse{status: http.StatusBadGateway, body: errorBody{Error: "Stripe refuses"}}
}

// isMissingCustomer reports whether Stripe has refused a request since it does not have the customer.
func isMissingCustomer(err error) bool {
	refusal, ok := errors.AsType[*stripe.Error](err)
	return ok && refusal.Code == "resource_missing" && refusal.Param == "customer"
}

// paymentBody is a payment in the response that lists them.
type paymentBody struct {
	At         string      `json:"at"`
	UserID     string      `json:"userId"`
	Kind       paymentKind `json:"kind"`
	Price      string      `json:"price"`
	Tokens     int64       `json:"tokens"`
	Group      *string     `json:"group"`
	StripeID   string      `json:"stripeId"`
	Unassigned bool        `json:"unassigned,omitempty"`
}

// listPayments lists the payments of a tenant: a page of them.
func (s *server) listPayments(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	query, err := readQuery(r, "limit", "after")
	if err != nil {
		return err
	}
	limit, after, err := readPage(query)
	if err != nil {
		return err
	}
	return s.respondInTurn(w, info.tenantID, func() (any, error) {
		list, next, err := s.store.Payments(info.deadline, info.tenant, after, limit)
		if err != nil {
			return nil, err
		}
		page := struct {
			Payments []paymentBody `json:"payments"`
			Next     *string       `json:"next"`
		}{make([]paymentBody, len(list)), next.text()}
		for i, p := range list {
			page.Payments[i] = paymentBody{
				formatTime(p.at), p.userID, p.kind, p.price, p.tokens, nil, p.stripeID, p.unassigned,
			}
			if p.group != "" {
				page.Payments[i].Group = &p.group
			}
		}
		return page, nil
	})
}

package main

import (
	"errors"
	"time"
)

var (
	// ErrNoCheckout means that tollgate does not know whose payment it is: the reference is not one of this tenant and
	// its generation, or it was forgotten.
	ErrNoCheckout = errors.New("no such checkout")
	// ErrNotGranted means that a payment has granted nothing yet.
	ErrNotGranted = errors.New("payment was not granted")
	// ErrStateMoved means that what a key has of its subscription has changed since SubscriptionVersion was called:
	// Stripe must be asked again.
	ErrStateMoved = errors.New("the subscription's state has changed meanwhile")
)

// A buyer is what Redis holds of the API key with which somebody pays: of the key that it shares with, if it shares.
type buyer struct {
	key          string // its present name
	first        string // the name that it had first
	userID       string
	disabled     bool
	customer     string // at Stripe; "" if nothing was ever paid
	subscription string // the present one, which has not ended; "" if there is none
}

// A checkout is what is remembered of a Checkout Session: whose payment it is.
type checkout struct {
	first  string // the name that the API key had first with which it was made
	userID string
	price  string
	tokens int64 // of a pack, all that is bought; 0 for a subscription
}

// A grant is what a payment gives.
type grant struct {
	id      string // of the Checkout Session or invoice
	intent  string // payment intent of a session, by which a refund names it; may be ""
	at      time.Time
	price   string
	group   string // of a subscription's price; "" for a pack
	add     int64  // tokens
	raiseTo int64  // tokens to which the balance is raised first, holds included; 0: it is not

	customer string             // at Stripe; "" if it is not known
	state    *subscriptionState // nil for a pack
}

// A stateVersion identifies what a key has of its subscription, as SubscriptionVersion returned it.
type stateVersion struct {
	first string // name of the key
	n     int64
}

// A subscriptionState is what Stripe has said of a subscription.
type subscriptionState struct {
	id        string
	group     string // in which its key is to be while it is paid; "" if it is not paid (any more)
	freeGroup string // in which its key is to be when it is not; "": the group before it was paid
	ended     bool   // for ever
	version   stateVersion
}

// A payment is an entry in the list of a tenant's payments.
type payment struct {
	at         time.Time
	userID     string
	kind       paymentKind
	price      string
	tokens     int64  // that the balance has gained or, if negative, lost
	group      string // "" for a pack
	stripeID   string // of the Checkout Session or invoice, or of the charge that is refunded or disputed
	unassigned bool   // nobody was there to get it; tokens is what it would have been
}

// A paymentKind says what a payment is for.
type paymentKind string

const (
	paidPack         paymentKind = "payment"
	paidSubscription paymentKind = "subscription"
	paidBack         paymentKind = "refund"
	paidDispute      paymentKind = "dispute"
)

// A grantResult is what became of a grant.
type grantResult struct {
	payment
	key      string // the name that the key had first which has it; "" if it is unassigned
	replayed bool   // that was so before
	second   bool   // its subscription has taken the place of another of the key that has not ended
}

// A reversal is what a refund or a dispute says of a payment.
type reversal struct {
	at       time.Time
	charge   string       // its ID
	refunded int64        // tokens of the grant that the refunds so far are for; 0 for a dispute
	dispute  string       // its ID; "" for a refund
	state    disputeState // of the dispute
}

// A disputeState is what a reversal says of its dispute. The higher one counts, in whatever order they come.
type disputeState int

const (
	disputeOpen disputeState = iota
	disputeLost
	disputeWon
)

// Buyer returns who pays with t's API key. Errors: ErrNoKey, ErrMalformed, ErrUnavailable.
func (s *store) Buyer(deadline time.Time, t *tenant, key string) (buyer, error) {
	return buyer{}, ErrNoKey
}

// SaveCheckout remembers for 40 days whose payment one with that reference is. Error: ErrUnavailable.
func (s *store) SaveCheckout(deadline time.Time, t *tenant, reference string, c checkout) error {
	return ErrUnavailable
}

// Checkout returns what SaveCheckout has saved. Errors: ErrNoCheckout, ErrUnavailable.
func (s *store) Checkout(deadline time.Time, t *tenant, reference string) (checkout, error) {
	return checkout{}, ErrNoCheckout
}

// KeepCheckout remembers a checkout for another 400 days: a webhook of it has granted something. Error: ErrUnavailable.
func (s *store) KeepCheckout(deadline time.Time, t *tenant, reference string) error {
	return ErrUnavailable
}

// SubscriptionVersion returns the version of what the key that gets c's payments has of its subscription. It is read
// before Stripe is asked for a subscription's state, and a part of that state. Error: ErrUnavailable.
func (s *store) SubscriptionVersion(deadline time.Time, t *tenant, c checkout) (stateVersion, error) {
	return stateVersion{}, ErrUnavailable
}

// Grant gives what a payment for c grants, once, in one atomic step with the record of it, and lists it. It goes to the
// key that c was made with, or if that is gone to its user's oldest key. Errors: ErrStateMoved, if nothing was granted
// and g.state is not of the present version; ErrMalformed, ErrUnavailable, after which it can be repeated.
func (s *store) Grant(deadline time.Time, t *tenant, c checkout, g grant) (grantResult, error) {
	return grantResult{}, ErrUnavailable
}

// SetSubscription sets what Stripe says of a subscription that was bought with c, if it is the present one of its key.
// One that has ended needs no version. Errors: ErrStateMoved, ErrMalformed, ErrUnavailable.
func (s *store) SetSubscription(deadline time.Time, t *tenant, c checkout, state subscriptionState) error {
	return ErrUnavailable
}

// Granted returns how many tokens a payment for c has granted; id is that of a Checkout Session, its payment intent, or
// an invoice. Errors: ErrNotGranted, ErrUnavailable.
func (s *store) Granted(deadline time.Time, t *tenant, c checkout, id string) (int64, error) {
	return 0, ErrNotGranted
}

// Reverse takes back what a refund or a dispute says of a payment for c, or gives back what a dispute has taken that is
// won, and lists that. id is as Granted takes it. It returns what has changed now: nothing, if it is repeated. Errors:
// ErrNotGranted, ErrMalformed, ErrUnavailable, after which it can be repeated.
func (s *store) Reverse(deadline time.Time, t *tenant, c checkout, id string, r reversal) (payment, error) {
	return payment{}, ErrNotGranted
}

// Payments returns the payments of t, newest first: at most limit of them, and where the next page begins, nil after
// the last. after is nil for the first page. Error: ErrUnavailable.
func (s *store) Payments(deadline time.Time, t *tenant, after *indexCursor, limit int) (
	list []payment, next *indexCursor, err error) {
	return nil, nil, ErrUnavailable
}

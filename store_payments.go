package main

import (
	"errors"
	"time"
)

// ErrNoCheckout means that tollgate does not know whose payment it is: the reference is not one of this tenant, or it
// was forgotten.
var ErrNoCheckout = errors.New("no such checkout")

// ErrNotGranted means that a payment has granted nothing yet.
var ErrNotGranted = errors.New("payment was not granted")

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
	add     int64 // tokens
	raiseTo int64 // tokens to which the balance is raised first, holds included; 0: it is not

	customer string
	state    *subscriptionState // nil for a pack
}

// A subscriptionState is what Stripe has said of a subscription.
type subscriptionState struct {
	id      string
	group   string // in which its key is to be while it is paid; "" if it is not paid (any more)
	ended   bool   // for ever
	version int64  // of the key's state, as SubscriptionVersion returned it before Stripe was asked
}

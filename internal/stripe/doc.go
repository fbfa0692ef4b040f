// Package stripe is a small client of Stripe's API, and reads the webhooks that Stripe sends. It makes and reads what
// selling packs and subscriptions by Stripe Checkout takes, and nothing more.
//
// A [Client] calls the API. [ReadSignature] and [Signature.Verify] say whether Stripe has sent a webhook, and
// [ReadEvent] what it says.
//
// # Versions
//
// Requests ask for the API's [Version], so responses have its shape. Events have the shape of the version that their
// webhook endpoint was created with, whatever requests ask for. Both shapes of invoices, subscriptions and charges are
// read, the one before and the one since 2025-03-31 (basil), into the same structs. Members that nothing here needs are
// passed over. What is needed and not there, or has a value that is not known, is an error that wraps [ErrShape]: a
// payment must not get lost in silence because a member has moved.
//
// # Order and repetition
//
// Stripe promises no order of events, repeats them, and can say the same thing in two of them. So an event does not
// show what was granted: that is recorded by the ID of the [Session] of a pack and of the [Invoice] of a subscription.
// The state of a subscription is best asked of Stripe when an event says that it has changed.
//
// # Why not Stripe's library
//
// Stripe's own has every object of one version of its API, so it reads only one of the two shapes, and a new version of
// the API is a new major version of the library.
package stripe

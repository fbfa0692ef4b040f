package stripe

import (
	"time"

	"tollgate/internal/strict"
)

// A Kind is what an event is about.
type Kind int

// The kinds, with Stripe's names of the events in brackets.
const (
	// Ignored is every other event: of another type, of a connected account, whose owner can make up whatever it says,
	// and those of the newer kind (v2.core.event), which have no object.
	Ignored Kind = iota

	// SessionCompleted: a customer has completed a Checkout Session (checkout.session.completed), or its payment has
	// succeeded later (checkout.session.async_payment_succeeded). Only Session.IsPaid says that it is paid.
	SessionCompleted

	// SessionFailed: its payment has failed later (checkout.session.async_payment_failed), or nobody has completed it
	// (checkout.session.expired).
	SessionFailed

	// InvoicePaid: an invoice is paid (invoice.paid). Stripe sends invoice.payment_succeeded too, which is ignored.
	InvoicePaid

	// SubscriptionChanged: a subscription was created or has changed (customer.subscription.created, .updated, .paused,
	// .resumed). Events of one subscription come in any order.
	SubscriptionChanged

	// SubscriptionDeleted: a subscription has ended for ever (customer.subscription.deleted).
	SubscriptionDeleted

	// ChargeRefunded: a part or all of a charge was refunded (charge.refunded).
	ChargeRefunded

	// DisputeChanged: a dispute or an inquiry was opened, has changed, or is closed (charge.dispute.created, .updated,
	// .funds_withdrawn, .funds_reinstated, .closed). An inquiry that becomes a dispute keeps its ID.
	DisputeChanged
)

// An Event is what a webhook says. Its Kind says which of the objects it has, as they were when Stripe made it.
type Event struct {
	ID      string
	Type    string // Stripe's name
	Kind    Kind
	Created time.Time // in whole seconds; it may be zero if the event is ignored
	IsLive  bool      // real money; compare with Account.IsLive

	Session      *Session
	Invoice      *Invoice
	Subscription *Subscription
	Charge       *Charge
	Dispute      *Dispute
}

// ReadEvent reads the body of a webhook, whatever the version of its endpoint. The caller has verified that Stripe has
// signed it. Of an event that is ignored, no object is read. Errors: one that wraps ErrSyntax if the body is not JSON,
// and one that wraps ErrShape if the event is of a known type, but not of a known shape. It has its ID and Type even
// then, as far as they are there.
func ReadEvent(body []byte) (Event, error) {
	var e Event
	var class, account string
	err := decode(body, object(strict.Rules{
		"object":   oneOf(&class, "event", "v2.core.event"),
		"id":       id(&e.ID),
		"type":     strict.String(&e.Type),
		"livemode": strict.Bool(&e.IsLive),
		"account":  orNull(strict.String(&account)),
	}, "id", "type", "livemode"))
	if err != nil || class == "v2.core.event" {
		return e, err
	}
	rules, required := strict.Rules{"created": seconds(&e.Created)}, []string(nil)
	if account == "" {
		if rule := e.object(); rule != nil {
			rules["data"] = object(strict.Rules{"object": rule}, "object")
			required = []string{"created", "data"}
		}
	}
	return e, decode(body, object(rules, required...))
}

// object sets the kind of an event by its type, and returns the rule that reads its object, nil if it is ignored.
func (e *Event) object() strict.Rule {
	switch e.Type {
	case "checkout.session.completed", "checkout.session.async_payment_succeeded":
		e.Kind, e.Session = SessionCompleted, new(Session)
		return session(e.Session, "id", "mode", "payment_status", "metadata")
	case "checkout.session.async_payment_failed", "checkout.session.expired":
		e.Kind, e.Session = SessionFailed, new(Session)
		return session(e.Session, "id")
	case "invoice.paid":
		e.Kind, e.Invoice = InvoicePaid, new(Invoice)
		return paidInvoice(e.Invoice)
	case "customer.subscription.created", "customer.subscription.updated",
		"customer.subscription.paused", "customer.subscription.resumed":
		e.Kind, e.Subscription = SubscriptionChanged, new(Subscription)
		return subscription(e.Subscription, "id", "metadata")
	case "customer.subscription.deleted":
		e.Kind, e.Subscription = SubscriptionDeleted, new(Subscription)
		return subscription(e.Subscription, "id", "metadata")
	case "charge.refunded":
		e.Kind, e.Charge = ChargeRefunded, new(Charge)
		return charge(e.Charge, "id", "amount", "amount_refunded")
	case "charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed",
		"charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated":
		e.Kind, e.Dispute = DisputeChanged, new(Dispute)
		return dispute(e.Dispute)
	}
	return nil
}

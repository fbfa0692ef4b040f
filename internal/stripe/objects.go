package stripe

import (
	"maps"
	"strings"

	"tollgate/internal/strict"
)

// A Mode is what a Checkout Session is for.
type Mode string

const (
	ModePayment      Mode = "payment"      // something is bought once
	ModeSubscription Mode = "subscription" // each period has an invoice, the first one too
	ModeSetup        Mode = "setup"        // nothing is bought; not made here
)

// A Session is a Checkout Session, by which a customer pays on a page of Stripe's. Strings are empty if Stripe has null
// there.
type Session struct {
	ID            string
	Mode          Mode
	IsPaid        bool   // or there is nothing to pay: a coupon covers all, or a trial begins
	URL           string // of the page; empty once it is complete or has expired
	Customer      string
	PaymentIntent string // in ModePayment, once it is known
	Metadata      map[string]string
}

// session reads a session that has at least the members in required. What is unpaid, such as a bank transfer, may be
// paid later or never.
func session(s *Session, required ...string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var status string
		ok := object(strict.Rules{
			"id":             id(&s.ID),
			"mode":           oneOf(&s.Mode, ModePayment, ModeSubscription, ModeSetup),
			"payment_status": oneOf(&status, "paid", "unpaid", "no_payment_required"),
			"url":            orNull(strict.String(&s.URL)),
			"customer":       orNull(reference(strict.String(&s.Customer))),
			"payment_intent": orNull(reference(id(&s.PaymentIntent))),
			"metadata":       metadata(&s.Metadata),
		}, required...)(wrong, value)
		s.IsPaid = status == "paid" || status == "no_payment_required"
		return ok
	}
}

// An Item is what is bought in each period of a subscription.
type Item struct{ Price string }

func item(i *Item) strict.Rule {
	return object(strict.Rules{
		"price": orNull(reference(strict.String(&i.Price))),
		"plan":  orNull(reference(strict.String(&i.Price))), // see line
	})
}

// A SubscriptionStatus says whether a subscription is paid for.
type SubscriptionStatus string

const (
	Active            SubscriptionStatus = "active"
	Trialing          SubscriptionStatus = "trialing"
	PastDue           SubscriptionStatus = "past_due" // Stripe retries the payment, for weeks
	Unpaid            SubscriptionStatus = "unpaid"   // it has given up
	Canceled          SubscriptionStatus = "canceled" // for ever
	Incomplete        SubscriptionStatus = "incomplete"
	IncompleteExpired SubscriptionStatus = "incomplete_expired" // the first payment has failed, for ever
	Paused            SubscriptionStatus = "paused"             // a trial has ended without a way to pay
)

// A Subscription is what a customer pays for again and again.
type Subscription struct {
	ID       string
	Status   SubscriptionStatus
	Metadata map[string]string
	Items    []Item // their first page
}

// subscription reads a subscription that has at least the members in required.
func subscription(s *Subscription, required ...string) strict.Rule {
	var more bool
	return object(strict.Rules{
		"id": id(&s.ID),
		"status": oneOf(&s.Status,
			Active, Trialing, PastDue, Unpaid, Canceled, Incomplete, IncompleteExpired, Paused),
		"metadata": metadata(&s.Metadata),
		"items":    list(&s.Items, &more, item),
	}, required...)
}

// An Invoice is what a customer pays for a period of a subscription, or for something else.
type Invoice struct {
	ID           string
	IsPaid       bool // outside Stripe, too; an invoice that has no status is as its event says
	Customer     string
	Subscription string // empty if it is for something else

	// Metadata is what the subscription had when the invoice was finalized. It is nil if the invoice does not say: it is
	// for something else, or has the shape of a version before 2023.
	Metadata map[string]string

	Lines     []Line
	MoreLines bool // Lines is not all: Account.InvoiceLines has the others
}

// paidInvoice reads both shapes of an invoice with its lines.
func paidInvoice(i *Invoice) strict.Rule {
	return invoice(i, strict.Rules{"lines": list(&i.Lines, &i.MoreLines, line)}, "id", "lines")
}

// invoice reads both shapes of an invoice, and more of its members by rules. It has at least those in required. What is
// of a subscription, or may be, must name it.
func invoice(i *Invoice, rules strict.Rules, required ...string) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		status, mayBeOfSubscription := "paid", true
		details := orNull(object(strict.Rules{
			"subscription": orNull(reference(id(&i.Subscription))), "metadata": metadata(&i.Metadata),
		}))
		all := strict.Rules{
			"id":     id(&i.ID),
			"status": orNull(strict.String(&status)),
			"billing_reason": func(wrong *strict.Problems, value []byte) bool {
				var reason string
				ok := orNull(strict.String(&reason))(wrong, value)
				mayBeOfSubscription = strings.HasPrefix(reason, "subscription")
				return ok
			},
			"customer":             orNull(reference(strict.String(&i.Customer))),
			"parent":               orNull(object(strict.Rules{"subscription_details": details})), // since basil
			"subscription":         orNull(reference(id(&i.Subscription))),
			"subscription_details": details,
		}
		maps.Copy(all, rules)
		ok := object(all, required...)(wrong, value)
		i.IsPaid = status == "paid"
		if ok && i.Subscription == "" && mayBeOfSubscription {
			return wrong.AddMember("parent", "must name the subscription")
		}
		return ok
	}
}

// A Line is a line of an invoice.
type Line struct {
	ID       string
	Price    string // empty if it has none, but an amount of its own
	Quantity int64  // 1 if Stripe names none
	Amount   int64  // in the smallest unit of the invoice's currency; negative for what is given back, 0 if not named

	// OfSubscription says that the line is what an item of a subscription costs. Others were added to the invoice.
	OfSubscription bool

	// IsProration says that the line charges or gives back a part of a period, since the subscription has changed within
	// it. What a whole period costs is in a line that is not a proration.
	IsProration bool
}

// line reads both shapes. A line of a subscription must have a price, and a line that has one must say whether it is a
// proration. Other lines may have an amount alone.
func line(l *Line) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		l.Quantity = 1
		var saysProration bool
		proration := func(wrong *strict.Problems, value []byte) bool {
			saysProration = true
			return strict.Bool(&l.IsProration)(wrong, value)
		}
		details := object(strict.Rules{"proration": proration}, "proration")
		price := reference(strict.String(&l.Price))
		var kind string
		ok := object(strict.Rules{
			"id":       strict.String(&l.ID),
			"quantity": orNull(amount(&l.Quantity)),
			"amount":   amount(&l.Amount),

			// Since basil.
			"parent": orNull(object(strict.Rules{
				"invoice_item_details": orNull(details),
				"subscription_item_details": orNull(func(wrong *strict.Problems, value []byte) bool {
					l.OfSubscription = true
					return details(wrong, value)
				}),
			})),
			"pricing": orNull(object(strict.Rules{"price_details": object(strict.Rules{"price": price}, "price")})),

			// Before. A plan has the same ID as its price, and is alone before 2020.
			"type": strict.String(&kind), "proration": proration, "price": orNull(price), "plan": orNull(price),
		})(wrong, value)
		l.OfSubscription = l.OfSubscription || kind == "subscription"
		switch {
		case !ok:
			return false
		case l.Price == "" && l.OfSubscription:
			return wrong.AddMember("pricing", "must have a price")
		case l.Price != "" && !saysProration:
			return wrong.AddMember("parent", "must say whether it is a proration")
		}
		return true
	}
}

// A Charge is a payment, and what was refunded of it.
type Charge struct {
	ID             string
	PaymentIntent  string
	Amount         int64             // that was paid, with taxes, in the smallest unit of a currency
	AmountRefunded int64             // by all refunds so far
	Metadata       map[string]string // nil if it does not say

	// Invoice is the one that was paid. It is always empty since basil: Account.InvoiceOfPayment asks for it.
	Invoice string
}

// charge reads a charge that has at least the members in required.
func charge(c *Charge, required ...string) strict.Rule {
	return object(strict.Rules{
		"id":              id(&c.ID),
		"payment_intent":  orNull(reference(id(&c.PaymentIntent))),
		"amount":          strict.Int(&c.Amount, 0, strict.MaxInt),
		"amount_refunded": strict.Int(&c.AmountRefunded, 0, strict.MaxInt),
		"metadata":        metadata(&c.Metadata),
		"invoice":         orNull(reference(id(&c.Invoice))),
	}, required...)
}

// A Dispute is a customer's complaint to a bank about a charge. The metadata of the charge is not in it.
type Dispute struct {
	ID     string
	Charge string

	IsInquiry bool // no money has moved, and none will unless it becomes a dispute
	IsWon     bool // the money is back
	IsClosed  bool // won, lost, prevented by a refund, or an inquiry without consequence
}

func dispute(d *Dispute) strict.Rule {
	return func(wrong *strict.Problems, value []byte) bool {
		var status string
		ok := object(strict.Rules{
			"id":     id(&d.ID),
			"charge": reference(id(&d.Charge)),
			"status": oneOf(&status, "needs_response", "under_review", "won", "lost", "prevented",
				"warning_needs_response", "warning_under_review", "warning_closed"),
		}, "id", "charge", "status")(wrong, value)
		d.IsInquiry = strings.HasPrefix(status, "warning_")
		d.IsWon = status == "won"
		d.IsClosed = d.IsWon || status == "lost" || status == "prevented" || status == "warning_closed"
		return ok
	}
}

package stripetest

import (
	"fmt"
	"maps"
	"strings"
	"time"
)

// An Event is one that Stripe would send to a webhook.
type Event struct {
	ID   string
	Type string
	Body []byte
}

const period = 30 * 24 * time.Hour

// event returns an event about an object.
func (s *Server) event(kind string, object map[string]any) Event {
	id, version := s.newID("evt"), Version
	if s.old {
		version = OldVersion
	}
	return Event{id, kind, mustMarshal(map[string]any{
		"id": id, "object": "event", "type": kind, "api_version": version, "created": time.Now().Add(-s.age).Unix(),
		"livemode": false, "pending_webhooks": 1, "data": map[string]any{"object": object},
	})}
}

// must returns what objects has under an ID, which it must have.
func must[T any](objects map[string]*T, id string) *T {
	object := objects[id]
	if object == nil {
		panic(fmt.Sprintf("stripetest: no %T with the ID %q", object, id))
	}
	return object
}

// Pay lets a customer pay what a session asks for, or succeed later with a payment that PayLater has begun.
func (s *Server) Pay(session string) []Event { return s.complete(session, "paid") }

// PayLater lets a customer complete a session by a payment that takes days: it is unpaid until Pay or Fail.
func (s *Server) PayLater(session string) []Event { return s.complete(session, "unpaid") }

// PayNothing lets a customer complete a session for which nothing is to be paid: a coupon covers all of a pack, or a
// subscription begins with a trial.
func (s *Server) PayNothing(session string) []Event {
	return s.complete(session, "no_payment_required")
}

func (s *Server) complete(id, payment string) (events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := must(s.sessions, id)
	kind := "checkout.session.completed"
	if c.status == "complete" {
		kind = "checkout.session.async_payment_succeeded"
	} else if c.customer == "" {
		c.customer = s.newID("cus")
	}
	s.customers[c.customer] = true
	c.status, c.payment = "complete", payment
	if c.mode == "subscription" {
		return s.subscribe(c, kind)
	}
	if c.intent == "" && payment != "no_payment_required" {
		c.intent = s.newID("pi")
	}
	if payment == "paid" {
		s.charge(&charge{intent: c.intent, customer: c.customer, amount: c.quantity * UnitAmount, metadata: c.inner})
	}
	return []Event{s.event(kind, c.object())}
}

// subscribe begins the subscription of a session, or lets it be paid that was begun by PayLater.
func (s *Server) subscribe(c *session, kind string) (events []Event) {
	status := map[string]string{"paid": "active", "unpaid": "incomplete", "no_payment_required": "trialing"}[c.payment]
	change := "updated"
	if c.subscription == "" {
		change, c.subscription = "created", s.newID("sub")
		now := time.Now()
		s.subscriptions[c.subscription] = &subscription{
			id: c.subscription, customer: c.customer, price: c.price, quantity: c.quantity,
			start: now, end: now.Add(period), metadata: c.inner,
		}
		c.invoice = s.invoice(s.subscriptions[c.subscription], "subscription_create", nil).id
	}
	sub, bill := s.subscriptions[c.subscription], s.invoices[c.invoice]
	sub.status, bill.free = status, c.payment == "no_payment_required"
	events = []Event{s.event(kind, c.object()), s.event("customer.subscription."+change, sub.object(s.old))}
	if c.payment != "unpaid" {
		events = append(events, s.pay(bill)...)
	}
	return events
}

// invoice makes an open invoice of a subscription. Without lines it is for the present period.
func (s *Server) invoice(sub *subscription, reason string, lines []Line) *invoice {
	i := &invoice{
		id: s.newID("in"), reason: reason, status: "open", customer: sub.customer, subscription: sub.id,
		metadata: maps.Clone(sub.metadata),
	}
	if len(lines) == 0 {
		lines = []Line{{Price: sub.price, Quantity: sub.quantity}}
	}
	for _, l := range lines {
		l.id, l.start, l.end = s.newID("il"), sub.start, sub.end
		i.lines = append(i.lines, l)
	}
	s.invoices[i.id] = i
	return i
}

// pay lets an invoice be paid. What is free, or gives back more than it costs, has no charge.
func (s *Server) pay(i *invoice) []Event {
	i.status = "paid"
	if amount := i.amount(); amount > 0 {
		i.intent = s.newID("pi")
		i.charge = s.charge(&charge{
			intent: i.intent, customer: i.customer, invoice: i.id, amount: amount, metadata: map[string]string{},
		})
	}
	return []Event{s.event("invoice.paid", i.object(s.old)), s.event("invoice.payment_succeeded", i.object(s.old))}
}

// charge makes a charge, and returns its ID.
func (s *Server) charge(c *charge) string {
	c.id = s.newID("ch")
	s.charges[c.id] = c
	return c.id
}

// Fail lets the payment of a session fail that PayLater has begun.
func (s *Server) Fail(session string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := must(s.sessions, session)
	events := []Event{s.event("checkout.session.async_payment_failed", c.object())}
	if sub := s.subscriptions[c.subscription]; sub != nil {
		sub.status = "incomplete_expired"
		events = append(events, s.event("customer.subscription.updated", sub.object(s.old)))
	}
	return events
}

// Expire ends a session that nobody has completed.
func (s *Server) Expire(session string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := must(s.sessions, session)
	c.status = "expired"
	return []Event{s.event("checkout.session.expired", c.object())}
}

// Subscription returns the ID of a session's subscription.
func (s *Server) Subscription(session string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return must(s.sessions, session).subscription
}

// Customer returns the ID of the customer who has completed a session.
func (s *Server) Customer(session string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return must(s.sessions, session).customer
}

// Renew begins the next period of a subscription, and lets it be paid.
func (s *Server) Renew(subscription string) []Event { return s.renew(subscription, true) }

// FailRenewal begins the next period of a subscription, whose payment fails, so that it is past due until Recover.
func (s *Server) FailRenewal(subscription string) []Event { return s.renew(subscription, false) }

func (s *Server) renew(id string, paid bool) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, id)
	sub.start, sub.end, sub.status = sub.end, sub.end.Add(period), "active"
	i := s.invoice(sub, "subscription_cycle", nil)
	if paid {
		return append([]Event{s.event("customer.subscription.updated", sub.object(s.old))}, s.pay(i)...)
	}
	sub.status = "past_due"
	return []Event{
		s.event("invoice.payment_failed", i.object(s.old)), s.event("customer.subscription.updated", sub.object(s.old)),
	}
}

// Recover lets the open invoices of a subscription be paid, which makes it active.
func (s *Server) Recover(subscription string) (events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, subscription)
	for _, i := range s.invoices {
		if i.subscription == sub.id && i.status == "open" {
			events = append(events, s.pay(i)...)
		}
	}
	sub.status = "active"
	return append(events, s.event("customer.subscription.updated", sub.object(s.old)))
}

// Invoice lets a subscription have an invoice with lines, such as a setup fee, which is paid. The event has the first
// 10 lines.
func (s *Server) Invoice(subscription, reason string, lines ...Line) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pay(s.invoice(must(s.subscriptions, subscription), reason, lines))
}

// ChangePlan changes the price of a subscription within its period: the rest of the old price is given back and that of
// the new one is paid, in an invoice of its own.
func (s *Server) ChangePlan(subscription, price string, quantity int64) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, subscription)
	i := s.invoice(sub, "subscription_update", []Line{
		{Price: sub.price, Quantity: -sub.quantity, Proration: true, Item: true},
		{Price: price, Quantity: quantity, Proration: true, Item: true},
	})
	sub.price, sub.quantity = price, quantity
	return append([]Event{s.event("customer.subscription.updated", sub.object(s.old))}, s.pay(i)...)
}

// SetStatus changes a subscription's status, such as to unpaid. Cancel ends one.
func (s *Server) SetStatus(subscription, status string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, subscription)
	sub.status = status
	return []Event{s.event("customer.subscription.updated", sub.object(s.old))}
}

// SetMetadata replaces the metadata of a subscription, for its invoices from now on.
func (s *Server) SetMetadata(subscription string, metadata map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	must(s.subscriptions, subscription).metadata = metadata
}

// CancelAtPeriodEnd says that a subscription is to end with its period, which changes nothing yet.
func (s *Server) CancelAtPeriodEnd(subscription string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, subscription)
	sub.cancelAtPeriodEnd = true
	return []Event{s.event("customer.subscription.updated", sub.object(s.old))}
}

// Cancel ends a subscription for ever.
func (s *Server) Cancel(subscription string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := must(s.subscriptions, subscription)
	sub.status = "canceled"
	return []Event{s.event("customer.subscription.deleted", sub.object(s.old))}
}

// Charge returns the ID of the charge by which a session or an invoice was paid, the first one of a subscription's
// session.
func (s *Server) Charge(of string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chargeOf(of).id
}

// chargeOf returns the charge of a session or an invoice, or the one with that ID.
func (s *Server) chargeOf(of string) *charge {
	if c := s.sessions[of]; c != nil {
		of = c.intent
		if c.invoice != "" {
			of = c.invoice
		}
	}
	for _, c := range s.charges {
		if of != "" && (c.id == of || c.intent == of || c.invoice == of) {
			return c
		}
	}
	panic(fmt.Sprintf("stripetest: no charge of %q", of))
}

// Refund gives back an amount, in cents, of the charge of a session or invoice, or of the charge with that ID.
func (s *Server) Refund(of string, amount int64) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.chargeOf(of)
	c.refunded = min(c.amount, c.refunded+amount)
	return []Event{s.event("charge.refunded", c.object(s.old))}
}

// Dispute opens a dispute about all of a charge, which is named as in Refund, with a status such as needs_response or,
// for an inquiry, warning_needs_response.
func (s *Server) Dispute(of, status string) (id string, events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.chargeOf(of)
	d := &dispute{id: s.newID("du"), charge: c.id, intent: c.intent, status: status}
	s.disputes[d.id] = d
	return d.id, []Event{s.event("charge.dispute.created", d.object(c.amount))}
}

// SetDispute changes the status of a dispute: won and lost, for example, close it.
func (s *Server) SetDispute(dispute, status string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := must(s.disputes, dispute)
	d.status = status
	kind := "updated"
	if !strings.HasSuffix(status, "needs_response") && !strings.HasSuffix(status, "under_review") {
		kind = "closed"
	}
	return []Event{s.event("charge.dispute."+kind, d.object(s.charges[d.charge].amount))}
}

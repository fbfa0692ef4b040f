package main

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"time"

	"tollgate/internal/strict"
	"tollgate/internal/stripe"
)

const (
	maxWebhooks = 64 // that ask Stripe something at a time

	// webhookTimeout bounds what one webhook asks of Stripe, all in all. Each question has 10 s. Stripe itself gives up
	// sooner and sends the event again later, but what has begun may as well be finished.
	webhookTimeout = 25 * time.Second

	metadataTenant    = "tollgate_tenant"
	metadataReference = "tollgate_reference"
	maxReferenceBytes = 64

	maxStateQuestions = 5              // for a subscription whose other events come at the same time
	maxGrantDelay     = 24 * time.Hour // from when a payment is given back, until it must have been granted
)

// errNotSold means that a subscription is paid, and the config does not say what for.
var errNotSold = errors.New("a subscription's price that is not in the config")

// received is the response to each event that is done, or needs nothing to be done.
type received struct {
	Received bool `json:"received"`
}

// forStripe returns the access of the route for webhooks. What is wrong with a request's head is refused before its
// body is read. After that, each step of the store has a deadline of its own, since Stripe is asked in between.
func (s *server) forStripe() access {
	return access{timeout: publicTimeout, steps: []step{
		withoutBody(s.loadTenant), withoutBody(requirePayments), withoutBody(readSignature), s.readWebhookBody,
	}}
}

// requirePayments is the step that refuses a tenant whose config does not say all that payments need.
func requirePayments(_ http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	if !info.tenant.config.payments.isEnabled() {
		return errPaymentsDisabled
	}
	return nil
}

// readSignature is the step that reads the signature of a webhook. It refuses one that is not current, so that
// strangers send no body.
func readSignature(_ http.ResponseWriter, r *http.Request, info *requestInfo) (err error) {
	if info.signature, err = stripe.ReadSignature(r.Header, time.Now()); err != nil {
		return badRequestError("Invalid Stripe-Signature")
	}
	return nil
}

// receiveWebhook handles an event that Stripe sends. Stripe repeats it, for days, until the response is 200.
func (s *server) receiveWebhook(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	// The response may take longer than others.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(webhookTimeout + 2*writeTimeout))
	event, err := s.readEvent(info)
	info.body = nil // while Stripe is asked, it takes no memory
	info.memory.Release()
	result := eventRefused
	if err == nil {
		result, err = s.handleEvent(info, &event)
	}
	if err != nil {
		switch responseTo(err).status {
		case http.StatusInternalServerError:
			result = eventFailed
			kind := strict.Shorten(event.Type)
			err = fmt.Errorf("tenant %s, event %q of type %q: %w", info.tenantID, event.ID, kind, err)
		case http.StatusServiceUnavailable:
			result = eventDelayed
		}
	}
	s.metrics.paymentEvent(info.tenantID, event.Kind, result)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, received{true})
}

// readEvent reads the event in a webhook that Stripe has signed for the tenant's account. Errors: a badRequestError; an
// error that wraps stripe.ErrShape.
func (s *server) readEvent(info *requestInfo) (stripe.Event, error) {
	p := &info.tenant.config.payments
	if !info.signature.Verify(info.body, p.secrets...) {
		return stripe.Event{}, badRequestError("Invalid Stripe-Signature")
	}
	event, err := stripe.ReadEvent(info.body)
	switch {
	case errors.Is(err, stripe.ErrSyntax):
		return event, badRequestError("The body is not JSON")
	case err == nil && event.IsLive != s.stripe.Account(p.apiKey).IsLive():
		return event, badRequestError("The event's livemode does not fit the API key")
	}
	return event, err
}

// A webhook is an event that is handled for a tenant.
type webhook struct {
	*server
	tenant   *tenant
	payments *payments
	account  stripe.Account
	event    *stripe.Event
}

// handleEvent does what an event asks for. While an event may ask Stripe something, it has a place in the pool
// webhooks: Stripe may not respond.
func (s *server) handleEvent(info *requestInfo, event *stripe.Event) (result eventResult, err error) {
	p := &info.tenant.config.payments
	h := webhook{s, info.tenant, p, s.stripe.Account(p.apiKey), event}
	ctx, cancel := context.WithTimeout(context.Background(), webhookTimeout) // also if Stripe has hung up
	defer cancel()
	switch event.Kind {
	case stripe.InvoicePaid, stripe.SubscriptionChanged, stripe.ChargeRefunded, stripe.DisputeChanged:
		place := s.webhooks.Claim(info.tenantID, info.tenantID)
		place.SetShare(maxWebhooks) // all of the tenant's
		if err := place.Add(1); err != nil {
			return eventDelayed, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		defer place.Release()
	}
	result = eventIgnored
	switch event.Kind {
	case stripe.SessionCompleted:
		result, err = h.grantSession(event.Session)
	case stripe.InvoicePaid:
		result, err = h.grantInvoice(ctx, event.Invoice)
	case stripe.SubscriptionChanged:
		result, err = h.setSubscription(ctx, event.Subscription)
	case stripe.SubscriptionDeleted:
		result, err = h.endSubscription(event.Subscription)
	case stripe.ChargeRefunded:
		result, err = h.refund(ctx, event.Charge)
	case stripe.DisputeChanged:
		result, err = h.dispute(ctx, event.Dispute)
	}
	if errors.Is(err, ErrNoCheckout) {
		return eventIgnored, nil
	}
	return result, h.explainStripe(err)
}

// explainStripe returns what an error of Stripe's API means for a webhook, and logs one that may not come again.
func (h *webhook) explainStripe(err error) error {
	refused, isRefused := errors.AsType[*stripe.Error](err)
	switch {
	case errors.Is(err, stripe.ErrUnavailable), isRefused && (refused.Status == 429 || refused.Status >= 500):
		h.warn("%v", err)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case isRefused:
		return errors.New(refused.Error()) // Stripe has not refused what the caller asked for
	}
	return err
}

// isNotFound reports whether Stripe has responded that it has no such object.
func isNotFound(err error) bool {
	refused, ok := errors.AsType[*stripe.Error](err)
	return ok && refused.Status == http.StatusNotFound
}

// stepDeadline returns the deadline of one step of the store.
func stepDeadline() time.Time { return time.Now().Add(publicTimeout) }

// checkout returns the checkout that an object of Stripe's is for, as its metadata say. The error is ErrNoCheckout if
// that is not this tenant's: another tenant, or something else, may use the same account of Stripe's.
func (h *webhook) checkout(metadata map[string]string) (checkout, error) {
	reference := metadata[metadataReference]
	if metadata[metadataTenant] != h.tenant.id || !isIdentifier(reference, maxReferenceBytes) {
		return checkout{}, ErrNoCheckout
	}
	return h.store.Checkout(stepDeadline(), h.tenant, reference)
}

// checkoutPaid does what checkout does, for something that was paid. It warns if it is this tenant's, and not known.
func (h *webhook) checkoutPaid(metadata map[string]string, id string) (checkout, error) {
	c, err := h.checkout(metadata)
	// A tenant that had this ID before may have sold it.
	if err == ErrNoCheckout && metadata[metadataTenant] == h.tenant.id && h.tenant.generation == "" {
		h.warn("%s was paid for a key that is not known: nothing is granted", id)
	}
	return c, err
}

// warn logs a warning on an event.
func (h *webhook) warn(format string, args ...any) {
	h.log.Warnf("Payments of tenant %s, event %s: %s", h.tenant.id, h.event.ID, fmt.Sprintf(format, args...))
}

// grantSession grants what a pack holds, once it is paid.
func (h *webhook) grantSession(s *stripe.Session) (eventResult, error) {
	if s.Mode != stripe.ModePayment || !s.IsPaid {
		return eventIgnored, nil // what a subscription grants comes with its invoices; what is unpaid may be paid later
	}
	c, err := h.checkoutPaid(s.Metadata, s.ID)
	if err != nil {
		return 0, err
	}
	return h.grant(c, grant{
		id: s.ID, intent: s.PaymentIntent, at: h.event.Created, price: c.price, add: c.tokens, customer: s.Customer,
	})
}

// grantInvoice grants what an invoice pays for, and sets the group of the key, since the events of the subscription may
// have come before it was known that the key has this one.
func (h *webhook) grantInvoice(ctx context.Context, i *stripe.Invoice) (result eventResult, err error) {
	if i.Subscription == "" {
		return eventIgnored, nil
	}
	metadata, err := h.metadataOf(ctx, i)
	if err != nil {
		return 0, err
	}
	c, err := h.checkoutPaid(metadata, i.ID)
	if err != nil {
		return 0, err
	}
	if !i.IsPaid {
		return 0, fmt.Errorf("%w: the status of a paid invoice", stripe.ErrShape)
	}
	lines := i.Lines
	if i.MoreLines {
		if lines, err = h.account.InvoiceLines(ctx, i.ID); err != nil {
			return 0, err
		}
	}
	g, err := h.payments.invoiceGrant(lines)
	if err != nil {
		return 0, err
	}
	g.id, g.at, g.customer = i.ID, h.event.Created, i.Customer
	err = h.withState(ctx, c, i.Subscription, g.group, func(state subscriptionState) (err error) {
		g.state = &state
		result, err = h.grant(c, g)
		return err
	})
	return result, err
}

// metadataOf returns the metadata of an invoice's subscription. The invoices of old versions of the API lack them.
func (h *webhook) metadataOf(ctx context.Context, i *stripe.Invoice) (map[string]string, error) {
	if i.Metadata != nil || i.Subscription == "" {
		return i.Metadata, nil
	}
	s, err := h.account.Subscription(ctx, i.Subscription)
	return s.Metadata, err
}

// grant grants what a payment gives, and logs what came of it.
func (h *webhook) grant(c checkout, g grant) (eventResult, error) {
	paid, err := h.store.Grant(stepDeadline(), h.tenant, c, g)
	switch {
	case err != nil:
		return 0, err
	case paid.replayed:
		return eventReplayed, nil
	}
	if paid.unassigned {
		h.warn("the key that has paid %s is gone, and its user has no other: %d tokens are unassigned", g.id, paid.tokens)
		return eventDone, nil
	}
	if paid.second {
		h.warn("%s is of a second subscription of one API key: its tokens are granted as well", g.id)
	}
	h.log.Infof("Granted %d tokens for %s: tenant %s, key %s, price %q, event %s",
		paid.tokens, g.id, h.tenant.id, keyName(paid.key), strict.Shorten(g.price), h.event.ID)
	h.usage.add(h.tenant, usageEvent{key: paid.key, granted: paid.tokens})
	return eventDone, nil
}

// withState asks Stripe for the present state of a subscription, and calls write with it. It does so again if the state
// of the key was written meanwhile, which may have been an older one. What Stripe says is newer than all that was
// written before it was asked, so the last to write has the newest, whatever the order of the events.
//
// paid is the group that an invoice has paid for, "" without one. If Stripe does not know the subscription, or its
// present price is not in the config, that is the state: what was paid for is granted all the same.
func (h *webhook) withState(ctx context.Context, c checkout, id, paid string,
	write func(subscriptionState) error) error {
	for range maxStateQuestions {
		version, err := h.store.SubscriptionVersion(stepDeadline(), h.tenant, c)
		if err != nil {
			return err
		}
		var state subscriptionState
		s, err := h.account.Subscription(ctx, id)
		if err == nil {
			state, err = h.payments.stateOf(&s)
		}
		if paid != "" && (isNotFound(err) || errors.Is(err, errNotSold)) {
			h.warn("%s is paid, and its state is not known: %v", id, err)
			state, err = subscriptionState{id: id, group: paid, freeGroup: h.payments.freeGroup}, nil
		}
		if err != nil {
			return err
		}
		state.version = version
		if err = write(state); err != ErrStateMoved {
			return err
		}
	}
	return fmt.Errorf("%w: other events of the subscription came at the same time", ErrUnavailable)
}

// setSubscription sets the group of a key as Stripe says that its subscription is now, whatever the event says.
func (h *webhook) setSubscription(ctx context.Context, s *stripe.Subscription) (eventResult, error) {
	c, err := h.checkout(s.Metadata)
	if err != nil {
		return 0, err
	}
	return eventDone, h.withState(ctx, c, s.ID, "", func(state subscriptionState) error {
		return h.store.SetSubscription(stepDeadline(), h.tenant, c, state)
	})
}

// endSubscription notes that a subscription has ended. That is for ever, so Stripe is not asked.
func (h *webhook) endSubscription(s *stripe.Subscription) (eventResult, error) {
	c, err := h.checkout(s.Metadata)
	if err != nil {
		return 0, err
	}
	ended := subscriptionState{id: s.ID, freeGroup: h.payments.freeGroup, ended: true}
	return eventDone, h.store.SetSubscription(stepDeadline(), h.tenant, c, ended)
}

// refund takes back the part of a grant that was refunded.
func (h *webhook) refund(ctx context.Context, charge *stripe.Charge) (eventResult, error) {
	if charge.Metadata == nil { // the event does not say what it is for, as Stripe's always do
		whole, err := h.account.Charge(ctx, charge.ID)
		if err != nil && !isNotFound(err) {
			return 0, err
		}
		charge.Metadata = whole.Metadata
	}
	return h.reverse(ctx, charge, func(granted int64) reversal {
		return reversal{refunded: refundOf(granted, charge.AmountRefunded, charge.Amount)}
	})
}

// dispute takes back a grant that is disputed, and gives it back if the dispute is won. An inquiry takes nothing.
func (h *webhook) dispute(ctx context.Context, d *stripe.Dispute) (eventResult, error) {
	if d.IsInquiry {
		return eventIgnored, nil
	}
	charge, err := h.account.Charge(ctx, d.Charge)
	if err != nil {
		return 0, err
	}
	return h.reverse(ctx, &charge, func(int64) reversal {
		return reversal{dispute: d.ID, state: stateOfDispute(d)}
	})
}

// reverse takes back what of says of a grant. If nothing was granted yet, it waits for that: the event comes again.
func (h *webhook) reverse(ctx context.Context, charge *stripe.Charge, of func(granted int64) reversal) (
	eventResult, error,
) {
	c, id, err := h.paymentOf(ctx, charge)
	if err != nil {
		return 0, err
	}
	granted, err := h.store.Granted(stepDeadline(), h.tenant, c, id)
	if errors.Is(err, ErrNotGranted) {
		if time.Since(h.event.Created) < maxGrantDelay {
			return eventDelayed, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		h.warn("%s is refunded or disputed, and nothing was granted for it", charge.ID)
		return eventIgnored, nil
	}
	if err != nil {
		return 0, err
	}
	r := of(granted)
	r.at, r.charge = h.event.Created, charge.ID
	taken, err := h.store.Reverse(stepDeadline(), h.tenant, c, id, r)
	if err != nil {
		return 0, err
	}
	h.log.Infof("%s of %s: tenant %s, key %s, tokens %d, event %s", h.event.Type, charge.ID, h.tenant.id,
		keyName(c.first), taken.tokens, h.event.ID)
	return eventDone, nil
}

// paymentOf returns the checkout that a charge was paid for, and under which ID it was granted: the payment intent of a
// pack or the invoice of a subscription. Only the charge of a pack has metadata. The error is ErrNoCheckout if that is
// not this tenant's.
func (h *webhook) paymentOf(ctx context.Context, charge *stripe.Charge) (c checkout, id string, err error) {
	if _, ok := charge.Metadata[metadataTenant]; ok {
		c, err = h.checkout(charge.Metadata)
		return c, charge.PaymentIntent, err
	}
	id = charge.Invoice
	if id == "" && charge.PaymentIntent != "" {
		if id, err = h.account.InvoiceOfPayment(ctx, charge.PaymentIntent); err != nil {
			return c, "", err
		}
	}
	if id == "" {
		return c, "", ErrNoCheckout
	}
	invoice, err := h.account.Invoice(ctx, id)
	if err != nil {
		return c, "", err
	}
	metadata, err := h.metadataOf(ctx, &invoice)
	if err != nil {
		return c, "", err
	}
	c, err = h.checkout(metadata)
	return c, id, err
}

// invoiceGrant returns what the lines of an invoice of a subscription grant, which is nothing if they are prorations. A
// line that was added to it, such as a fee for the setup, needs no price in the config. The error wraps errNotSold.
func (p *payments) invoiceGrant(lines []stripe.Line) (g grant, err error) {
	unknown, known := "", false
	for _, line := range lines {
		if line.IsProration {
			continue
		}
		sold, ok := p.price(line.Price)
		switch {
		case !ok && line.OfSubscription:
			unknown = line.Price
		case ok && line.Amount >= 0: // else it is given back
			tokens := mulDiv(sold.tokens, max(line.Quantity, 0), 1)
			if sold.reset {
				g.raiseTo = min(g.raiseTo+tokens, maxAmount)
			} else {
				g.add = min(g.add+tokens, maxAmount)
			}
			if g.price == "" || line.OfSubscription && !known {
				g.price, g.group = sold.id, sold.group
			}
			known = known || line.OfSubscription
		}
	}
	if unknown != "" && !known {
		return grant{}, fmt.Errorf("%w: %q", errNotSold, strict.Shorten(unknown))
	}
	return g, nil
}

// stateOf returns the state of a subscription. Its group is that of its first price that is in the config with one. The
// error wraps errNotSold if none of a paid subscription is.
func (p *payments) stateOf(s *stripe.Subscription) (subscriptionState, error) {
	state := subscriptionState{id: s.ID, freeGroup: p.freeGroup}
	switch s.Status {
	case stripe.Active, stripe.Trialing, stripe.PastDue:
	default:
		state.ended = s.Status == stripe.Canceled || s.Status == stripe.IncompleteExpired
		return state, nil
	}
	for _, item := range s.Items {
		if sold, ok := p.price(item.Price); ok && sold.group != "" {
			state.group = sold.group
			return state, nil
		}
	}
	return state, fmt.Errorf("%w: that of %s", errNotSold, s.ID)
}

// stateOfDispute returns the state of a dispute. One that a refund has prevented is lost, too.
func stateOfDispute(d *stripe.Dispute) disputeState {
	switch {
	case d.IsWon:
		return disputeWon
	case d.IsClosed:
		return disputeLost
	}
	return disputeOpen
}

// refundOf returns granted × refunded / paid, rounded down: all that was granted if more was refunded than paid.
func refundOf(granted, refunded, paid int64) int64 {
	if refunded >= paid {
		return granted
	}
	return mulDiv(granted, refunded, paid)
}

// mulDiv returns a × b / c, rounded down, at most maxAmount. None is negative, and c is not 0.
func mulDiv(a, b, c int64) int64 {
	high, low := bits.Mul64(uint64(a), uint64(b))
	if high >= uint64(c) { // the quotient has more than 64 bits
		return maxAmount
	}
	quotient, _ := bits.Div64(high, low, uint64(c))
	return int64(min(quotient, maxAmount))
}

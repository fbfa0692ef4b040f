package stripetest_test

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"tollgate/internal/stripe"
	"tollgate/internal/stripetest"
)

// newSession makes a session by the client that tollgate uses.
func newSession(t *testing.T, s *stripetest.Server, mode stripe.Mode) stripe.Session {
	t.Helper()
	session, err := stripe.NewClient(s.URL).Account(stripetest.Key).CreateSession(t.Context(), "", stripe.Checkout{
		Mode: mode, Price: "price_1", Quantity: 2, SuccessURL: "https://app.example.com/ok", Metadata: map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// Both shapes of every event are understood as the same, and have the metadata where Stripe has it.
func TestLives(t *testing.T) {
	for _, old := range []bool{false, true} {
		s := stripetest.New(t)
		s.SetOldShape(old)
		a := stripe.NewClient(s.URL).Account(stripetest.Key)
		var got []string
		var last stripe.Event
		read := func(events []stripetest.Event) {
			t.Helper()
			for _, event := range events {
				signature, err := stripe.ReadSignature(http.Header{"Stripe-Signature": {
					stripetest.Sign(event.Body, time.Now(), "whsec_other", stripetest.Secret)}}, time.Now())
				if err != nil || !signature.Verify(event.Body, stripetest.Secret) {
					t.Errorf("%s is not signed: %v", event.Type, err)
				}
				if last, err = stripe.ReadEvent(event.Body); err != nil {
					t.Fatalf("%s: %v", event.Body, err)
				}
				got = append(got, event.Type)
			}
		}
		pack := newSession(t, s, stripe.ModePayment)
		read(s.PayLater(pack.ID))
		if last.Session.IsPaid || last.Session.Metadata["a"] != "b" || last.Session.Customer == "" {
			t.Errorf("completed: %+v", last.Session)
		}
		read(s.Pay(pack.ID))
		read(s.Refund(pack.ID, 500))
		if c := last.Charge; c.Amount != 2000 || c.AmountRefunded != 500 || c.Metadata["a"] != "b" || c.Invoice != "" {
			t.Errorf("refunded: %+v", last.Charge)
		}
		id, events := s.Dispute(pack.ID, "needs_response")
		read(events)
		read(s.SetDispute(id, "won"))
		if d := last.Dispute; !d.IsWon || d.ID != id || d.Charge != s.Charge(pack.ID) {
			t.Errorf("won: %+v", d)
		}

		session := newSession(t, s, stripe.ModeSubscription)
		read(s.Pay(session.ID))
		sub := s.Subscription(session.ID)
		if i := last; i.Type != "invoice.payment_succeeded" {
			t.Errorf("got %s last", i.Type)
		}
		read(s.Renew(sub)[1:2])
		invoice := last.Invoice
		if invoice.Subscription != sub || invoice.Metadata["a"] != "b" || !invoice.IsPaid || len(invoice.Lines) != 1 ||
			invoice.Lines[0].Quantity != 2 || invoice.Lines[0].Price != "price_1" {
			t.Errorf("renewed: %+v", invoice)
		}
		read(s.Refund(invoice.ID, 5000))
		if (last.Charge.Invoice == invoice.ID) != old || len(last.Charge.Metadata) > 0 || last.Charge.AmountRefunded != 2000 {
			t.Errorf("refunded: %+v", last.Charge)
		}
		if of, err := a.InvoiceOfPayment(t.Context(), last.Charge.PaymentIntent); of != invoice.ID {
			t.Errorf("invoice of the payment: %q, %v", of, err)
		}
		read(s.ChangePlan(sub, "price_2", 1)[:1])
		read(s.FailRenewal(sub)[1:])
		if last.Subscription.Status != stripe.PastDue {
			t.Errorf("failed: %+v", last.Subscription)
		}
		read(s.Recover(sub))
		read(s.Invoice(sub, "manual", slices.Repeat([]stripetest.Line{{Price: "price_fee"}}, 120)...)[:1])
		if lines, err := a.InvoiceLines(t.Context(), last.Invoice.ID); len(lines) != 120 || len(last.Invoice.Lines) != 10 ||
			!last.Invoice.MoreLines {
			t.Errorf("got %d lines, %v", len(lines), err)
		}
		read(s.Cancel(sub))
		if now, err := a.Subscription(t.Context(), sub); now.Status != stripe.Canceled || now.Items[0].Price != "price_2" {
			t.Errorf("subscription: %+v, %v", now, err)
		}
		want := []string{
			"checkout.session.completed", "checkout.session.async_payment_succeeded", "charge.refunded",
			"charge.dispute.created", "charge.dispute.closed", "checkout.session.completed", "customer.subscription.created",
			"invoice.paid", "invoice.payment_succeeded", "invoice.paid", "charge.refunded", "customer.subscription.updated",
			"customer.subscription.updated", "invoice.paid", "invoice.payment_succeeded", "customer.subscription.updated",
			"invoice.paid", "customer.subscription.deleted",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// Requests are refused as Stripe refuses them, and done once for each idempotency key.
func TestRequests(t *testing.T) {
	s := stripetest.New(t)
	a := stripe.NewClient(s.URL).Account(stripetest.Key)
	good := stripe.Checkout{Mode: stripe.ModePayment, Price: "price_1", Quantity: 1, SuccessURL: "https://a.example/"}
	first, err := a.CreateSession(t.Context(), "k1", good)
	again, err2 := a.CreateSession(t.Context(), "k1", good)
	if err != nil || err2 != nil || first.ID != again.ID || len(s.Sessions()) != 1 {
		t.Errorf("repeated: %v, %v, %d sessions", err, err2, len(s.Sessions()))
	}
	for name, test := range map[string]struct {
		key, idempotency string
		change           func(*stripe.Checkout)
		conduct          stripetest.Conduct
		want             int
	}{
		"another key":            {"sk_test_other", "", nil, stripetest.Conduct{}, 401},
		"other parameters":       {stripetest.Key, "k1", func(c *stripe.Checkout) { c.Quantity = 2 }, stripetest.Conduct{}, 400},
		"no such price":          {stripetest.Key, "", func(c *stripe.Checkout) { c.Price = "price_none" }, stripetest.Conduct{}, 400},
		"no such customer":       {stripetest.Key, "", func(c *stripe.Checkout) { c.Customer = "cus_1" }, stripetest.Conduct{}, 400},
		"a quantity too large":   {stripetest.Key, "", func(c *stripe.Checkout) { c.Quantity = 1e6 }, stripetest.Conduct{}, 400},
		"a server that refuses":  {stripetest.Key, "", nil, stripetest.Conduct{Status: 402, Message: "No"}, 402},
		"a connection that ends": {stripetest.Key, "", nil, stripetest.Conduct{Cut: true}, 0},
	} {
		checkout := good
		if test.change != nil {
			test.change(&checkout)
		}
		s.SetConduct(test.conduct)
		_, err := stripe.NewClient(s.URL).Account(test.key).CreateSession(t.Context(), test.idempotency, checkout)
		var refused *stripe.Error
		if errors.As(err, &refused); refused == nil && !errors.Is(err, stripe.ErrUnavailable) || refused != nil && refused.Status != test.want {
			t.Errorf("%s: got %v, want %d", name, err, test.want)
		}
	}
	s.SetConduct(stripetest.Conduct{})
	paid, err := stripe.ReadEvent(s.Pay(first.ID)[0].Body)
	if err != nil || !paid.Session.IsPaid {
		t.Fatalf("session: %+v, %v", paid.Session, err)
	}
	if url, err := a.CreatePortal(t.Context(), "", paid.Session.Customer, "https://a.example/"); url == "" {
		t.Errorf("portal: %v", err)
	}
	form := maps.Clone(s.Requests()[0].Form)
	if form.Get("line_items[0][price]") != "price_1" || s.Requests()[0].IdempotencyKey != "k1" {
		t.Errorf("got the request %v", s.Requests()[0])
	}
}

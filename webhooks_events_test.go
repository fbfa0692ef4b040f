package main

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/stripe"
	"tollgate/internal/stripetest"
	"tollgate/internal/waittest"
)

// send delivers events, each once and in order, and checks the status of the responses.
func (l *customer) send(status int, events ...stripetest.Event) {
	l.t.Helper()
	for _, event := range events {
		send := func() reply { return l.payTest.deliver(l.t, event.Body) }
		got := send()
		if status == 200 && got.status == 503 { // a busy machine has missed a deadline
			got = repeat(send)
		}
		if got.status != status {
			l.t.Errorf("%s: got %d %s, want %d", event.Type, got.status, got.body, status)
		}
	}
}

// wantKey compares the key with what it must have now.
func (l *customer) wantKey(tokens int64, group string) {
	l.t.Helper()
	k, err := l.store.Key(in(10*time.Second), l.tn, l.key)
	if err != nil || k.tokensLeft != tokens || k.group != group {
		l.t.Errorf("got %d tokens, group %q, %v, want %d, %q", k.tokensLeft, k.group, err, tokens, group)
	}
}

// wantCount checks how many lines of the log have a text.
func (s *service) wantCount(t testing.TB, text string, want int) {
	t.Helper()
	if got := s.log.Count(text); got != want {
		t.Errorf("%d lines of the log have %q, want %d\n%s", got, text, want, s.log)
	}
}

// A pack is granted once it is paid, once, and logged and counted once.
func TestPackEvents(t *testing.T) {
	t.Parallel()
	first, l := today(), newMarket(t, "").newCustomer(t, 1)
	session := l.checkOut(stripe.ModePayment, "price_pack", 2, 1400)
	l.send(200, l.stripe.PayLater(session)...)
	l.wantKey(1000, "start")
	paid := l.stripe.Pay(session)
	l.send(200, paid...)
	l.wantKey(2400, "start")
	l.send(200, paid...)
	l.wantKey(2400, "start")
	l.wantCount(t, "[INFO] Granted 1400 tokens for "+session+": tenant "+l.tenant+", key "+keyName(l.key), 1)
	for _, result := range []string{"done", "replayed", "ignored"} {
		sample := fmt.Sprintf(`payment_events_total{tenant=%q,event="session_completed",result=%q}`, l.tenant, result)
		if got := l.sample(t, sample); got != 1 {
			t.Errorf("%s: got %v, want 1", sample, got)
		}
	}
	if n := len(l.stripe.Requests()); n != 1 {
		t.Errorf("Stripe was asked %d times, want once, for the session", n)
	}
	free := l.checkOut(stripe.ModePayment, "price_pack", 1, 700)
	l.send(200, l.stripe.PayNothing(free)...)
	l.wantKey(3100, "start")
	for _, never := range []func(string) []stripetest.Event{l.stripe.Expire, l.stripe.PayLater, l.stripe.Fail} {
		l.send(200, never(l.checkOutOnce())...)
	}
	l.wantKey(3100, "start")
	if days := l.checkoutDays(); days < 399 || days > 400 {
		t.Errorf("the checkout is remembered for %d days, want 400", days)
	}
	l.wantGranted(1400 + 700)
	l.wantKeyUsage(t, "/"+l.tenant+"/admin/keys/"+l.key+"/usage", first,
		keyUsageBody{TokensGranted: 1400 + 700, ByModel: map[string]endpointUsage{}}, testAdminToken)
}

// checkOutOnce returns a session of a pack, the same each time.
func (l *customer) checkOutOnce() string {
	if l.once == "" {
		l.once = l.checkOut(stripe.ModePayment, "price_pack", 1, 700)
	}
	return l.once
}

// checkoutDays returns for how many days the first checkout will be remembered.
func (l *customer) checkoutDays() int {
	l.t.Helper()
	return l.redis.Int(l.t, "TTL", "checkout:"+l.tenant+":"+l.references[0]) / 86400
}

// wantGranted waits until the tenant's usage says that as many tokens were granted.
func (l *customer) wantGranted(want int) {
	l.t.Helper()
	pattern := regexp.MustCompile(`"tokensGranted":(\d+)`)
	waittest.Eventually(l.t, 10*time.Second, func() error {
		now := time.Now().UTC()
		got := l.admin(l.t, "GET", fmt.Sprintf("/%s/admin/usage?from=%s&to=%s", l.tenant,
			now.AddDate(0, 0, -1).Format(time.DateOnly), now.Format(time.DateOnly)), "")
		sum := 0
		for _, match := range pattern.FindAllStringSubmatch(got.body, -1) {
			n, _ := strconv.Atoi(match[1])
			sum += n
		}
		if sum != want {
			return fmt.Errorf("%d tokens are counted as granted, want %d", sum, want)
		}
		return nil
	})
}

// The tokens and the group of a subscription follow its invoices and its state.
func TestSubscriptionEvents(t *testing.T) {
	t.Parallel()
	for _, free := range []string{"", "free"} {
		l := newMarket(t, map[string]string{"": "", "free": `"free_group":"free"`}[free]).newCustomer(t, 2)
		after := map[string]string{"": "start", "free": "free"}[free]
		s := l.subscribe("price_basic", 2, paidAtOnce)
		l.send(200, l.all...)
		l.wantKey(2000, "basic")
		l.redis.Do(t, "EXPIRE", checkoutRedisKey(l.tenant, l.references[0]), 35*86400) // a year later
		l.send(200, l.stripe.FailRenewal(s.id)...)
		l.wantKey(2000, "basic") // while it is past due
		if days := l.checkoutDays(); days < 399 {
			t.Errorf("the checkout is remembered for %d days", days)
		}
		l.send(200, l.stripe.SetStatus(s.id, "unpaid")...)
		l.wantKey(2000, after)
		l.send(200, l.stripe.Recover(s.id)...)
		l.wantKey(3000, "basic")
		l.send(200, l.stripe.ChangePlan(s.id, "price_premium", 1)...)
		l.wantKey(3000, "premium") // what it costs within the period grants nothing
		l.send(200, l.stripe.Renew(s.id)...)
		l.wantKey(6000, "premium")
		l.send(200, l.stripe.Invoice(s.id, "manual", stripetest.Line{Price: "price_setup", Quantity: 1, Item: true})...)
		l.wantKey(6000, "premium")
		s.price = "price_premium"
		s.bill(120)
		l.send(200, l.all[len(l.all)-2:]...)
		l.wantKey(6000+120*3000, "premium")
		l.send(200, l.stripe.Cancel(s.id)...)
		l.wantKey(6000+120*3000, after)
		l.send(200, l.all...)
		l.wantKey(6000+120*3000, after)
	}
}

// A subscription with "reset" raises the balance, and adds nothing to a larger one.
func TestResetPrice(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	l.redis.Do(t, "HSET", "apiKey:"+l.key, "tokensLeft", 30)
	session := l.checkOut(stripe.ModeSubscription, "price_raise", 2, 0)
	paid := l.stripe.Pay(session)
	l.send(200, paid...)
	l.wantKey(1600, "basic")
	l.wantGranted(1570)
	l.redis.Do(t, "HSET", "apiKey:"+l.key, "tokensLeft", 5000)
	l.send(200, paid...)
	l.send(200, l.stripe.Renew(l.stripe.Subscription(session))...)
	l.wantKey(5000, "basic")
}

// A second subscription of a key is granted, with a warning.
func TestSecondSubscription(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	first := l.subscribe("price_basic", 1, paidAtOnce)
	l.send(200, l.all...)
	l.subscribe("price_premium", 1, paidAtOnce)
	l.send(200, l.all...)
	l.wantKey(1000+500+3000, "premium")
	l.wantCount(t, "[WARN] Payments of tenant "+l.tenant, 1)
	l.wantCount(t, "is of a second subscription", 1)
	l.send(200, l.stripe.Cancel(first.id)...) // is no longer the present one
	l.wantKey(1000+500+3000, "premium")
}

// What is not of this tenant is ignored, without a question to Stripe where the metadata say so.
func TestForeignEvents(t *testing.T) {
	t.Parallel()
	m := newMarket(t, "")
	l := m.newCustomer(t, 1)
	metadata := func(tenant, reference string) map[string]string {
		return map[string]string{metadataTenant: tenant, metadataReference: reference}
	}
	for name, test := range map[string]struct {
		metadata map[string]string
		warnings int
	}{
		"nothing":              {nil, 0},
		"another tenant":       {metadata("acme", "r1"), 0},
		"an unknown reference": {metadata(l.tenant, "r1"), 4}, // a pack and three invoices were paid
		"a strange reference":  {metadata(l.tenant, "*:\n"), 4},
		"no reference":         {map[string]string{metadataTenant: l.tenant}, 4},
	} {
		before := m.log.Count("[WARN] Payments of tenant " + l.tenant)
		session := func(mode stripe.Mode, price string) string {
			s, err := stripe.NewClient(l.stripe.URL).Account(stripetest.Key).CreateSession(t.Context(), "", stripe.Checkout{
				Mode: mode, Price: price, Quantity: 1, SuccessURL: "https://app.example.com/", Metadata: test.metadata,
			})
			if err != nil {
				t.Fatal(err)
			}
			return s.ID
		}
		pack, subscription := session(stripe.ModePayment, "price_pack"), session(stripe.ModeSubscription, "price_basic")
		l.send(200, l.stripe.Pay(pack)...)
		l.send(200, l.stripe.Refund(pack, 100)...)
		dispute, events := l.stripe.Dispute(pack, "needs_response")
		l.send(200, events...)
		l.send(200, l.stripe.SetDispute(dispute, "lost")...)
		l.send(200, l.stripe.Pay(subscription)...)
		id := l.stripe.Subscription(subscription)
		l.send(200, l.stripe.Renew(id)...)
		l.send(200, l.stripe.ChangePlan(id, "price_premium", 3)...)
		l.send(200, l.stripe.Refund(subscription, 100)...)
		l.send(200, l.stripe.Cancel(id)...)
		if got := m.log.Count("[WARN] Payments of tenant "+l.tenant) - before; got != test.warnings {
			t.Errorf("%s: %d warnings, want %d\n%s", name, got, test.warnings, m.log)
		}
	}
	l.wantKey(1000, "start")
}

// What is not understood is an error that Stripe repeats: nothing is lost, and when it is understood it is granted.
func TestEventsThatFail(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	s := l.subscribe("price_basic", 1, paidAtOnce)
	l.send(200, l.all...)
	change := l.stripe.ChangePlan(s.id, "price_other", 1)
	l.send(500, change[:1]...)
	l.wantCount(t, "[ERROR] POST /{tenantId}/webhooks/stripe id=", 1)
	l.wantCount(t, "a subscription's price that is not in the config: that of "+s.id, 1)
	renewal := l.stripe.Renew(s.id)
	l.send(500, renewal[:2]...)
	l.wantCount(t, `a subscription's price that is not in the config: "price_other"`, 1)
	l.wantKey(1500, "basic")
	l.saveConfig(t, l.tenant, strings.Replace(payConfig(""), `"price_basic"`, `"price_other":{"group":"premium","tokens":7},"price_basic"`, 1))
	l.send(200, renewal...)
	l.send(200, change...)
	l.wantKey(1507, "premium")

	l.send(500, stripetest.Event{Type: "no shape", Body: event("invoice.paid", `{"secret":"whsec_inside"}`)})
	l.wantCount(t, `event "evt_1" of type "invoice.paid": unknown shape`, 1)
	open := strings.Replace(string(renewal[1].Body), `"status":"paid"`, `"status":"open"`, 1)
	l.send(500, stripetest.Event{Type: "not paid", Body: []byte(open)})
	for _, secret := range []string{stripetest.Key, stripetest.Secret, "whsec_inside"} {
		l.wantCount(t, secret, 0)
	}
	failed := fmt.Sprintf(`payment_events_total{tenant=%q,event="invoice_paid",result="failed"}`, l.tenant)
	if got := l.sample(t, failed); got != 3 {
		t.Errorf("%v events are counted as failed, want 3", got)
	}
}

// What was paid for is granted also if the subscription has a price by then that is not in the config, or Stripe does
// not know it.
func TestInvoiceOfUnknownState(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(l *customer, s *subscribed){
		"another price": func(l *customer, s *subscribed) { l.stripe.ChangePlan(s.id, "price_other", 1) },
		"unknown": func(l *customer, s *subscribed) {
			l.stripe.SetConduct(stripetest.Conduct{Status: 404, Message: "No such"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newMarket(t, "").newCustomer(t, 1)
			s := l.subscribe("price_basic", 1, paidAtOnce)
			change(l, s)
			i := slices.IndexFunc(l.all, func(e stripetest.Event) bool { return e.Type == "invoice.paid" })
			l.send(200, l.all[i], l.all[i])
			l.wantKey(1500, "basic")
			l.wantCount(t, "is paid, and its state is not known", 2)
		})
	}
}

// While Stripe does not respond, or Redis, events are to come again.
func TestEventsThatWait(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		conduct stripetest.Conduct
		want    int
		logged  string
	}{
		"it fails":             {stripetest.Conduct{Status: 500, Message: "Oops"}, 503, "Oops"},
		"too many requests":    {stripetest.Conduct{Status: 429, Message: "Slow down"}, 503, "Slow down"},
		"it cuts":              {stripetest.Conduct{Cut: true}, 503, "no response from Stripe"},
		"it hangs":             {stripetest.Conduct{Hang: true}, 503, "no response from Stripe"},
		"a permission lacks":   {stripetest.Conduct{Status: 403, Message: "Not for sk_test_abc"}, 500, "Not for sk_…"},
		"the API key is wrong": {stripetest.Conduct{Status: 401, Message: "Wrong key"}, 500, "Wrong key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newMarket(t, "").newCustomer(t, 1)
			s := l.subscribe("price_basic", 1, paidAtOnce)
			dispute, _ := l.stripe.Dispute(s.session, "needs_response")
			events := append(l.all[2:3:3], l.all[1], l.stripe.Refund(s.session, 10)[0], l.stripe.SetDispute(dispute, "lost")[0])
			l.stripe.SetConduct(test.conduct)
			began := time.Now()
			var sending sync.WaitGroup
			for _, event := range events {
				sending.Go(func() { l.send(test.want, event) })
			}
			sending.Wait()
			if took := time.Since(began); took > 10*time.Second+10*busy {
				t.Errorf("it took %s", took)
			}
			l.wantCount(t, test.logged, len(events))
			l.wantCount(t, "[ERROR]", map[int]int{500: len(events)}[test.want])
			l.wantKey(1000, "start")
			l.stripe.SetConduct(stripetest.Conduct{})
			l.send(200, events...)
			l.wantKey(1000, "basic")
		})
	}
}

// All that a webhook asks of Stripe has a bound, too.
func TestWebhookTimeout(t *testing.T) {
	long(t)
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	s := l.subscribe("price_basic", 1, paidAtOnce)
	s.bill(600) // six pages
	l.stripe.SetConduct(stripetest.Conduct{Before: func(r *http.Request) {
		select {
		case <-time.After(9 * time.Second):
		case <-r.Context().Done():
		}
	}})
	began := time.Now()
	l.send(503, l.all[len(l.all)-2])
	if took := time.Since(began); took < 20*time.Second || took > webhookTimeout+10*busy {
		t.Errorf("it took %s, want %s", took, webhookTimeout)
	}
}

// Webhooks of a tenant that wait for Stripe leave places for those of others.
func TestWebhookPlaces(t *testing.T) {
	t.Parallel()
	m := newMarket(t, "")
	l := m.newCustomer(t, 1)
	s := l.subscribe("price_basic", 1, paidAtOnce)
	other := &market{payTest: &payTest{m.service, m.stripe, newTenantIn(t, m.redis, payConfig(""))}, redis: m.redis, store: m.store}
	other.tn = m.store.wantTenant(t, other.tenant)
	neighbour := other.newCustomer(t, 2)
	neighbour.subscribe("price_basic", 1, paidAtOnce)
	waiting := make(chan struct{})
	release := sync.OnceFunc(func() { close(waiting) })
	t.Cleanup(release) // before the stand-in is stopped
	m.stripe.SetConduct(stripetest.Conduct{Before: func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, s.id) {
			<-waiting
		}
	}})
	var sending sync.WaitGroup
	for range maxWebhooks / 2 {
		sending.Go(func() { // some find others' states again and again when they go on
			if got := l.payTest.deliver(t, l.all[1].Body); got.status != 200 && got.status != 503 {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	m.awaitUsed(t, "webhooks", maxWebhooks/2)
	if used := m.used(t, "webhook_bodies"); used != 0 {
		t.Errorf("%v bytes of bodies are in memory", used)
	}
	l.send(503, l.all[1])
	neighbour.send(200, neighbour.all...)
	neighbour.wantKey(1500, "basic")
	pack := l.checkOut(stripe.ModePayment, "price_pack", 1, 700)
	l.send(200, l.stripe.Pay(pack)...) // needs no answer
	release()
	sending.Wait()
	m.awaitUsed(t, "webhooks", 0)
}

// Refunds and disputes take back what they are for, once that is granted.
func TestReversals(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		t.Run(strconv.FormatBool(old), func(t *testing.T) {
			t.Parallel()
			l := newMarket(t, "").newCustomer(t, 1)
			l.stripe.SetOldShape(old)
			pack := l.checkOut(stripe.ModePayment, "price_pack", 2, 1400)
			paid, refunds := l.stripe.Pay(pack), append(l.stripe.Refund(pack, 501), l.stripe.Refund(pack, 400)...)
			l.send(503, refunds...)
			l.wantKey(1000, "start")
			l.send(200, paid...)
			l.send(200, refunds[1], refunds[0], refunds[1])
			l.wantKey(1000+1400-1400*901/2000, "start")
			charge := l.stripe.Charge(pack)
			l.wantCount(t, "[INFO] charge.refunded of "+charge+": tenant "+l.tenant+", key "+keyName(l.key)+", tokens -630", 1)

			inquiry, events := l.stripe.Dispute(pack, "warning_needs_response")
			l.send(200, append(events, l.stripe.SetDispute(inquiry, "warning_closed")...)...)
			l.wantKey(1000+770, "start")
			dispute, events := l.stripe.Dispute(pack, "needs_response")
			l.send(200, events...)
			l.wantKey(1000, "start")
			l.send(200, l.stripe.SetDispute(dispute, "won")...)
			l.send(200, events...)
			l.wantKey(1000+770, "start")

			l.subscribe("price_basic", 1, paidAtOnce)
			session := l.stripe.Sessions()[1]
			refund := l.stripe.Refund(session, 250)
			l.send(503, refund...)
			l.send(200, l.all...)
			l.send(200, refund...)
			l.wantKey(1000+770+375, "basic")
			_, events = l.stripe.Dispute(session, "needs_response")
			l.send(200, events...)
			l.wantKey(1000+770, "basic")
		})
	}
}

// What is given back of a payment that was never granted comes again for a day, and no longer.
func TestLateReversals(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	pack := l.checkOut(stripe.ModePayment, "price_pack", 1, 700)
	l.stripe.Pay(pack)
	l.stripe.SetAge(maxGrantDelay - time.Minute)
	l.send(503, l.stripe.Refund(pack, 100)...)
	_, events := l.stripe.Dispute(pack, "needs_response")
	l.send(503, events...)
	l.wantCount(t, "[WARN] Payments", 0)
	l.stripe.SetAge(maxGrantDelay + time.Minute)
	l.send(200, l.stripe.Refund(pack, 100)...)
	_, events = l.stripe.Dispute(pack, "needs_response")
	l.send(200, events...)
	l.wantCount(t, l.stripe.Charge(pack)+" is refunded or disputed, and nothing was granted for it", 2)
}

// A tenant that is made again gets nothing of what its predecessor has sold, and is not warned of it.
func TestWebhookGenerations(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	s := l.subscribe("price_basic", 1, paidAtOnce)
	l.send(200, l.all...)
	l.admin(t, "DELETE", "/admin/tenants/"+l.tenant, "").want(t, 204, "")
	l.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+l.tenant+`","config":`+payConfig("")+`}`).want(t, 201, "")
	l.send(200, append(l.all, l.stripe.Renew(s.id)...)...)
	l.send(200, append(l.stripe.Refund(s.session, 100), l.stripe.Cancel(s.id)...)...)
	l.wantCount(t, "[WARN] Payments", 0)
	if n := len(l.redis.Keys(t, "payments:"+l.tenant+":*")); n != 0 {
		t.Errorf("%d lists of payments are there", n)
	}
}

// A payment whose key and user are gone is recorded, with a warning.
func TestUnassignedPayment(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 1)
	pack := l.checkOut(stripe.ModePayment, "price_pack", 1, 700)
	l.admin(t, "DELETE", "/"+l.tenant+"/admin/keys/"+l.key, "").want(t, 204, "")
	l.send(200, l.stripe.Pay(pack)...)
	l.wantCount(t, "[WARN] Payments of tenant "+l.tenant, 1)
	l.wantCount(t, pack+" is gone, and its user has no other: 700 tokens are unassigned", 1)
	l.wantCount(t, "[INFO] Granted", 0)
}

// Invoices of versions before 2023 do not have the metadata of their subscription: Stripe has them.
func TestInvoiceWithoutMetadata(t *testing.T) {
	t.Parallel()
	l := newMarket(t, "").newCustomer(t, 2) // the old shape
	l.subscribe("price_basic", 1, paidAtOnce)
	for _, event := range l.all {
		if event.Type != "invoice.paid" {
			continue
		}
		body := string(event.Body)
		at := strings.Index(body, `"subscription_details":{`)
		end := at + strings.Index(body[at:], "}}") + 2
		event.Body = []byte(body[:at] + `"x":0` + body[end:])
		l.send(200, event)
	}
	l.wantKey(1500, "basic")
}

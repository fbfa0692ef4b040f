package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tollgate/internal/stripetest"
)

// The secrets of auth.stripe are in no response, log line or metric, whatever goes wrong and even if Stripe quotes them. Admins
// see them in the config alone.
func TestPaymentSecrets(t *testing.T) {
	t.Parallel()
	stripe := stripetest.New(t)
	s := newService(t, "STRIPE_API_URL="+stripe.URL)
	var output strings.Builder
	do := func(method, path, body string, headers ...string) reply {
		t.Helper()
		got := s.do(t, method, path, body, headers...)
		fmt.Fprintf(&output, "%s %s: %d %v %s\n", method, path, got.status, got.header, got.body)
		return got
	}
	const (
		urls = `"return_urls":["http://localhost:3000/"],"prices":{"price_pack":{"tokens":10},"price_basic":{"group":"pro"}}`
		all  = `"api_key":"` + stripetest.Key + `","webhook_secret":["` + stripetest.Secret + `"],` + urls
	)
	config := func(members string) string {
		return `{"user_groups":{"pro":{"tokens":100}},"auth":{"stripe":{` + members + `}}}`
	}
	tenant, admin := newTenantIn(t, testRedis, config(all)), bearer(testAdminToken)
	path := "/" + tenant

	for _, members := range []string{
		`"api_key":"` + stripetest.Key + `\n","webhook_secret":"` + stripetest.Secret + `",` + urls,
		`"api_key":["` + stripetest.Key + `"],"webhook_secret":{"` + stripetest.Secret[:1] + `":"` + stripetest.Secret + `"},` + urls,
		`"api_key":"` + stripetest.Secret + `","webhook_secret":"` + stripetest.Key + ` ",` + urls,
		`"api_key":"` + stripetest.Key + `","webhook_secret":["` + strings.Repeat(stripetest.Secret+`","`, 6) + `"],` + urls,
		`"api_keys":"` + stripetest.Key + `","webhook_secrets":"` + stripetest.Secret + `",` + urls,
		`"free_group":"` + stripetest.Key + `",` + all, `"return_urls":["` + stripetest.Secret + `"],"api_key":"` + stripetest.Key + `"`,
		all,
	} {
		do("PUT", path+"/admin/config", `{"config":`+config(members)+`}`, admin)
		broken := newTenantIn(t, testRedis, config(members)) // it may also come straight into Redis
		do("POST", "/"+broken+"/webhooks/stripe", "{}", "Stripe-Signature: "+stripetest.Sign([]byte("{}"), time.Now(), stripetest.Secret))
		do("GET", "/"+broken+"/billing/prices", "")
	}
	do("GET", path+"/admin/config/history", "", admin)
	if got := s.admin(t, "GET", path+"/admin/config", ""); !strings.Contains(got.body, stripetest.Secret) {
		t.Errorf("admins do not see the config: %s", got.body)
	}

	buy := func(key, price string) {
		t.Helper()
		do("POST", path+"/billing/checkout", `{"price":"`+price+`","successUrl":"http://localhost:3000/","cancelUrl":"http://localhost:3000/"}`,
			bearer(key), retryKey+price)
	}
	deliver := func(events []stripetest.Event) {
		t.Helper()
		for _, event := range events {
			for _, secret := range []string{stripetest.Secret, "whsec_wrong", stripetest.Key} {
				do("POST", path+"/webhooks/stripe", string(event.Body), "Stripe-Signature: "+stripetest.Sign(event.Body, time.Now(), secret))
			}
		}
	}
	customer := s.issue(t, tenant, `"userId":"u-7","group":"pro"`)
	buy(customer, "price_pack")
	buy(customer, "price_basic")
	for _, session := range stripe.Sessions() {
		deliver(stripe.Pay(session))
	}
	subscription := stripe.Subscription(stripe.Sessions()[1])
	said := "No such key: " + stripetest.Key + " (Bearer " + stripetest.Key + "), " + stripetest.Secret
	for _, conduct := range []stripetest.Conduct{
		{}, {Cut: true}, {Status: 302, Message: said}, {Status: 400, Message: said}, {Status: 401, Message: said},
		{Status: 429, Message: said}, {Status: 500, Message: said},
		{Before: func(*http.Request) { panic(http.ErrAbortHandler) }},
	} {
		events := append(stripe.Renew(subscription), stripe.Refund(stripe.Sessions()[1], 1)...)
		stripe.SetConduct(conduct)
		key := s.issue(t, tenant, `"userId":"u-8","group":"pro"`)
		buy(key, "price_pack")
		buy(key, "price_basic")
		buy(key, "price_other")
		do("POST", path+"/billing/portal", `{"returnUrl":"http://localhost:3000/"}`, bearer(customer))
		do("POST", path+"/billing/portal", `{"returnUrl":"http://localhost:3000/"}`, bearer(stripetest.Key))
		deliver(events)
		stripe.SetConduct(stripetest.Conduct{})
	}
	do("POST", path+"/webhooks/stripe", "{}", "Stripe-Signature: "+stripetest.Secret)
	do("GET", path+"/admin/payments", "", admin)
	do("GET", path+"/admin/payments", "", bearer(stripetest.Secret))
	do("GET", "/metrics", "", admin)

	text := output.String() + s.log.String()
	if !strings.Contains(text, "Granted 10 tokens") || !strings.Contains(text, "Granted 100 tokens") {
		t.Errorf("nothing was bought:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "Stripetest0") { // a part of each secret
			t.Errorf("it has a secret: %s", line)
		}
	}
}

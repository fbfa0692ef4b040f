package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/stripetest"
	"tollgate/internal/waittest"
)

// stripeConfig returns a config whose auth.stripe has those members.
func stripeConfig(members string) string {
	return `{"auth":{"stripe":{` + members + `}},"user_groups":{"anonymous":{"tokens":5},"free":{"tokens":10},` +
		`"stripe_basic":{"tokens":5000},"stripe_premium":{"tokens":20000}}}`
}

// sellingMembers are the members of auth.stripe with which everything can be bought from stripetest.
const sellingMembers = `"api_key":"` + stripetest.Key + `","webhook_secret":"` + stripetest.Secret + `","free_group":"free",
	"return_urls":["https://app.example.com/shop/"],"prices":{
		"price_basic":{"group":"stripe_basic"},"price_pack":{"tokens":10000},
		"price_premium":{"group":"stripe_premium","tokens":7,"reset":true},"price_huge":{"tokens":9007199254740991},
		"price_none":{"tokens":1},"price_vast":{"group":"free","tokens":9007199254740991}}`

func TestStripeConfig(t *testing.T) {
	const path = "auth.stripe."
	const returnURL = " must be an absolute https URL with a path, such as https://app.example.com/, or http for localhost"
	for _, test := range []struct{ members, want string }{
		{`"api_key":"sk test"`, path + "api_key must be printable ASCII without spaces"},
		{`"api_key":"sk_té"`, path + "api_key must be printable ASCII without spaces"},
		{`"webhook_secret":""`, path + "webhook_secret must be a string that is not empty"},
		{`"webhook_secret":7`, path + "webhook_secret must be a string or an array of strings"},
		{`"webhook_secret":null`, path + "webhook_secret must be a string or an array of strings"},
		{`"webhook_secret":["S3",7]`, path + "webhook_secret[1] must be a string that is not empty"},
		{`"webhook_secret":[""]`, path + "webhook_secret[0] must be a string that is not empty"},
		{`"webhook_secret":["1","2","3","4","5","6"]`, path + "webhook_secret must have at most 5 secrets"},
		{`"free_group":7`, path + "free_group must be a string"},
		{`"free_group":"fre"`, path + "free_group must name a group of user_groups"},
		{`"free_group":""`, path + "free_group must name a group of user_groups"},
		{`"return_urls":"https://a.example/"`, path + "return_urls must be an array"},
		{`"return_urls":["https://a.example/","https://a.example"]`, path + "return_urls[1]" + returnURL},
		{`"return_urls":["http://a.example/"]`, path + "return_urls[0]" + returnURL},
		{`"return_urls":[7]`, path + "return_urls[0]" + returnURL},
		{`"return_urls":["https://a/"` + strings.Repeat(`,"https://a/"`, 100) + `]`, path + "return_urls must have at most 100 URLs"},
		{`"prices":[]`, path + "prices must be an object"},
		{`"prices":{"p":7}`, path + "prices.p must be an object"},
		{`"prices":{"p":{}}`, path + "prices.p must have a group or tokens"},
		{`"prices":{"p":{"reset":true}}`, path + "prices.p must have a group or tokens"},
		{`"prices":{"p":{"group":"pro"}}`, path + "prices.p.group must name a group of user_groups"},
		{`"prices":{"p":{"group":null}}`, path + "prices.p.group must be a string"},
		{`"prices":{"p":{"tokens":0}}`, path + "prices.p.tokens must be ≥ 1 without a group"},
		{`"prices":{"p":{"tokens":-1}}`, path + "prices.p.tokens must be a whole number ≥ 0"},
		{`"prices":{"p":{"tokens":1.5}}`, path + "prices.p.tokens must be a whole number ≥ 0"},
		{`"prices":{"p":{"tokens":9007199254740992}}`, path + "prices.p.tokens must be a whole number from 0 to 9007199254740991"},
		{`"prices":{"p":{"tokens":5,"reset":false}}`, path + "prices.p.reset must have a group beside it"},
		{`"prices":{"p":{"group":"free","reset":1}}`, path + "prices.p.reset must be true or false"},
		{`"prices":{"p":{"tokens":1},"p":{"tokens":2}}`, path + "prices.p is duplicated"},
		{`"prices":{"":{"tokens":1}}`, path + `prices[""] must be named by a price's ID of 1 to 255 characters`},
		{`"prices":{"p q":{"tokens":1}}`, path + `prices["p q"] must be named by a price's ID of 1 to 255 characters`},
		{`"prices":{"` + strings.Repeat("p", 256) + `":{"tokens":1}}`,
			path + `prices["` + strings.Repeat("p", 64) + `…"] must be named by a price's ID of 1 to 255 characters`},
		{`"prices":{"p0":{"tokens":1}` + repeated(`,"p%d":{"tokens":1}`, 1000) + `}`, path + "prices must have at most 1000 prices"},
	} {
		// A config that is put is refused, wherever it has its groups. One that is stored is served, and sells nothing.
		plain := stripeConfig(test.members)
		groups := strings.Index(plain, `,"user_groups"`)
		for _, config := range []string{plain, "{" + plain[groups+1:len(plain)-1] + "," + plain[1:groups] + "}"} {
			if _, err := parseNew([]byte(config)); err == nil || err.Error() != "Invalid config: "+test.want {
				t.Errorf("%.200s:\ngot  %v\nwant %s", config, err, test.want)
			}
			all := strings.Replace(config, `"stripe":{`, `"stripe":{`+unnamed(test.members), 1)
			c, err := parseConfig([]byte(all))
			if err != nil || c.payments.isEnabled() || len(c.payments.prices) > 0 ||
				!slices.Equal(c.ignored, []string{test.want + ": payments are disabled"}) {
				t.Errorf("%.200s: %v, enabled: %v, %q", all, err, c.payments.isEnabled(), c.ignored)
			}
		}
	}
	// What was always refused still is.
	for members, want := range map[string]string{
		`"api_key":7`:       path + "api_key must be a string",
		`"client_secret":7`: path + "client_secret must be a string",
		`"client_ids":[7]`:  path + "client_ids[0] must be a string",
	} {
		for _, parse := range []func([]byte) (*tenantConfig, error){parseNew, parseConfig} {
			if _, err := parse([]byte(stripeConfig(members))); err == nil || err.Error() != "Invalid config: "+want {
				t.Errorf("%s: got %v", members, err)
			}
		}
	}
}

// repeated returns a text for each of 1 to n.
func repeated(format string, n int) string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, format, i+1)
	}
	return all.String()
}

// unnamed returns those of sellingMembers that are not among members, with a comma behind each.
func unnamed(members string) (others string) {
	for _, member := range []string{`"api_key":"k"`, `"webhook_secret":"s"`, `"return_urls":["https://a/"]`, `"prices":{"x":{"tokens":1}}`} {
		if name, _, _ := strings.Cut(member, ":"); !strings.HasPrefix(members, name) {
			others += member + ","
		}
	}
	return others
}

// What is right is read as it is meant, and needs to be complete.
func TestStripeConfigMeaning(t *testing.T) {
	c, err := parseNew([]byte(stripeConfig(sellingMembers)))
	if err != nil || len(c.warnings) > 0 {
		t.Fatal(err, c.warnings)
	}
	p := c.payments
	want := []price{
		{"price_basic", "stripe_basic", 5000, false}, {"price_pack", "", 10000, false},
		{"price_premium", "stripe_premium", 7, true}, {"price_huge", "", maxAmount, false}, {"price_none", "", 1, false},
		{"price_vast", "free", maxAmount, false},
	}
	if !p.isEnabled() || p.freeGroup != "free" || !slices.Equal(p.secrets, []string{stripetest.Secret}) || !slices.Equal(p.prices, want) {
		t.Errorf("got %+v", p)
	}
	const key, secret, urls = `"api_key":"k",`, `"webhook_secret":["1","2","3","4","5"],`, `"return_urls":["http://localhost:3000/"],`
	const idle = "auth.stripe.prices are not sold: payments need api_key, webhook_secret and return_urls"
	for members, want := range map[string]struct {
		enabled  bool
		warnings []string
	}{
		key + secret + urls + `"prices":{}`:                                 {true, nil},
		key + secret + urls + `"prices":{"p":{"group":"free","tokens":0}}`:  {true, nil},
		secret + urls + `"prices":{"p":{"tokens":1}}`:                       {false, []string{idle}},
		key + urls + `"prices":{"p":{"tokens":1}}`:                          {false, []string{idle}},
		key + secret + `"prices":{"p":{"tokens":1}}`:                        {false, []string{idle}},
		`"api_key":"",` + secret + urls + `"prices":{"p":{"tokens":1}}`:     {false, []string{idle}},
		key + `"webhook_secret":[],` + urls + `"prices":{"p":{"tokens":1}}`: {false, []string{idle}},
		key + secret + `"return_urls":[],"prices":{"p":{"tokens":1}}`:       {false, []string{idle}},
		`"api_key":"k"`: {false, nil},
		key + `"webhook_secrets":"s","price":{},"return_url":[]`: {false, []string{
			misspelled("webhook_secrets", "webhook_secret"), misspelled("price", "prices"), misspelled("return_url", "return_urls")}},
		key + secret + urls + `"prices":{"p":{"tokens":1,"quantity":2}}`: {true, []string{
			"auth.stripe.prices.p.quantity is not known: it has no effect"}},
	} {
		c, err := parseNew([]byte(stripeConfig(members)))
		if err != nil || c.payments.isEnabled() != want.enabled || !slices.Equal(c.warnings, want.warnings) {
			t.Errorf("%s: %v, enabled: %v, %q", members, err, c.payments.isEnabled(), c.warnings)
		}
	}
	small := (&tenant{config: new(tenantConfig)}).bytes()
	if got, least := (&tenant{config: &tenantConfig{payments: p}}).bytes()-small, 5*64; got < least {
		t.Errorf("got %d bytes, want %d at least", got, least)
	}
}

func misspelled(name, meant string) string {
	return "auth.stripe." + name + " is not known: did you mean " + meant + "?"
}

// shopTest is a service that sells, and the Stripe through which it does.
type shopTest struct {
	*service
	stripe *stripetest.Server
	tenant string
	key    string // of a user
}

// newShopTest returns a shop of a new tenant, which has the config that is put, if there is one.
func newShopTest(t *testing.T) *shopTest {
	t.Helper()
	s := &shopTest{stripe: stripetest.New(t), tenant: newTenantID()}
	s.service = newService(t, "STRIPE_API_URL="+s.stripe.URL)
	s.createTenant(t, s.tenant, stripeConfig(sellingMembers)).want(t, 201, `{"success":true}`)
	s.key = s.newKey(t)
	return s
}

func (s *shopTest) newKey(t testing.TB) string {
	t.Helper()
	return s.issue(t, s.tenant, `"userId":"u-1","group":"free"`)
}

const shopURLs = `"successUrl":"https://app.example.com/shop/ok?s={CHECKOUT_SESSION_ID}","cancelUrl":"https://app.example.com/shop/"`

// buy asks for a checkout of a price.
func (s *shopTest) buy(t testing.TB, key, price, more string, headers ...string) reply {
	t.Helper()
	body := fmt.Sprintf(`{"price":%q,%s%s}`, price, shopURLs, more)
	return s.do(t, "POST", "/"+s.tenant+"/billing/checkout", body, append(headers, bearer(key))...)
}

// portal asks for a session of the portal.
func (s *shopTest) portal(t testing.TB, key, url string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+s.tenant+"/billing/portal", fmt.Sprintf(`{"returnUrl":%q}`, url), append(headers, bearer(key))...)
}

// The config of the specification needs nothing more, and sells nothing.
func TestSeedConfigSellsNothing(t *testing.T) {
	s := newService(t)
	id := newTenantID()
	s.createTenant(t, id, string(seedConfig)).want(t, 201, `{"success":true}`)
	s.putConfig(t, id, string(seedConfig)).want(t, 200, `{"success":true}`)
	s.do(t, "GET", "/"+id+"/billing/prices", "").want(t, 200, `{"prices":[]}`)
	key := s.issue(t, id, `"userId":"u-1","group":"stripe_basic"`)
	for _, path := range []string{"/billing/checkout", "/billing/portal"} {
		s.do(t, "POST", "/"+id+path, `{}`, bearer(key)).wantError(t, 403, "Payments are disabled")
		s.do(t, "POST", "/"+id+path, `{}`, bearer(someKey)).wantError(t, 401, "Unauthorized")
	}
}

func TestPrices(t *testing.T) {
	s := newShopTest(t)
	const want = `{"prices":[{"price":"price_basic","group":"stripe_basic","tokens":5000},{"price":"price_pack","tokens":10000},` +
		`{"price":"price_premium","group":"stripe_premium","tokens":7},{"price":"price_huge","tokens":9007199254740991},` +
		`{"price":"price_none","tokens":1},{"price":"price_vast","group":"free","tokens":9007199254740991}]}`
	s.do(t, "GET", "/"+s.tenant+"/billing/prices", "").want(t, 200, want)
	s.do(t, "GET", "/"+s.tenant+"/billing/prices", "x").want(t, 400, "")
	s.do(t, "GET", "/nobody/billing/prices", "").wantError(t, 400, "Invalid tenant ID")
	for _, method := range []string{"GET", "POST"} { // pages may call them
		config := strings.Replace(stripeConfig(sellingMembers), "{", `{"cors":{"allowed_origins":["https://app.example.com"]},`, 1)
		s.saveConfig(t, s.tenant, config)
		path := map[string]string{"GET": "/billing/prices", "POST": "/billing/checkout"}[method]
		got := s.do(t, method, "/"+s.tenant+path, "", "Origin: https://app.example.com")
		got.wantHeader(t, "Access-Control-Allow-Origin", "https://app.example.com")
	}
}

// A stored config that breaks a rule is served, and nothing is sold.
func TestStoredConfigSellsNothing(t *testing.T) {
	s := newService(t)
	id := newTenantIn(t, testRedis, stripeConfig(strings.Replace(sellingMembers, `"free_group":"free"`, `"free_group":"fre"`, 1)))
	s.do(t, "GET", "/"+id+"/billing/prices", "").want(t, 200, `{"prices":[]}`)
	s.do(t, "POST", "/"+id+"/billing/checkout", "", bearer(s.issue(t, id, `"userId":"u","group":"free"`))).
		wantError(t, 403, "Payments are disabled")
	if n := s.log.Count("[WARN] The config of tenant " + id + ": auth.stripe.free_group must name a group of user_groups: " +
		"payments are disabled\n"); n != 1 || s.log.Count("[WARN] The config") != 1 {
		t.Errorf("got the log\n%s", s.log)
	}
}

// Stripe is asked for what is bought, and knows by a reference alone for whom.
func TestCheckout(t *testing.T) {
	s := newShopTest(t)
	for i, test := range []struct {
		price, more, tokens string
		form                map[string]string
	}{
		{"price_pack", "", "10000", map[string]string{"mode": "payment", "line_items[0][quantity]": "1", "customer_creation": "always"}},
		{"price_pack", `,"quantity":3`, "30000", map[string]string{"mode": "payment", "line_items[0][quantity]": "3"}},
		{"price_basic", `,"quantity":999999`, "0", map[string]string{"mode": "subscription", "line_items[0][quantity]": "999999"}},
	} {
		got := s.buy(t, s.key, test.price, test.more)
		got.want(t, 201, "")
		request := s.stripe.Requests()[i]
		reference := request.Form.Get("metadata[tollgate_reference]")
		inner := map[string]string{"payment": "payment_intent_data", "subscription": "subscription_data"}[test.form["mode"]]
		test.form["line_items[0][price]"], test.form["metadata[tollgate_tenant]"] = test.price, s.tenant
		test.form[inner+"[metadata][tollgate_tenant]"], test.form[inner+"[metadata][tollgate_reference]"] = s.tenant, reference
		test.form["success_url"] = "https://app.example.com/shop/ok?s={CHECKOUT_SESSION_ID}"
		test.form["cancel_url"] = "https://app.example.com/shop/"
		for name, want := range test.form {
			if got := request.Form.Get(name); got != want {
				t.Errorf("%s of %s: got %q, want %q", name, test.price, got, want)
			}
		}
		if len(reference) < 20 || strings.Contains(request.Form.Encode(), s.key) || request.IdempotencyKey == "" {
			t.Errorf("got the request %v", request)
		}
		if url := got.text(t, "url"); !strings.HasSuffix(url, "/c/pay/"+s.stripe.Sessions()[i]) {
			t.Errorf("got the URL %s", url)
		}
		saved := s.record(t, reference)
		if saved["key"] != s.key || saved["user"] != "u-1" || saved["price"] != test.price || fmt.Sprint(saved["tokens"]) != test.tokens {
			t.Errorf("got the record %v", saved)
		}
	}
	// A customer of before stays one; one that Stripe no longer has is replaced by a new one.
	s.stripe.Pay(s.stripe.Sessions()[0])
	customer := s.stripe.Customer(s.stripe.Sessions()[0])
	for sent, want := range map[string][]string{customer: {customer}, "cus_gone": {"cus_gone", ""}} {
		testRedis.Do(t, "HSET", "apiKey:"+s.key, "customer", sent)
		before := len(s.stripe.Requests())
		s.buy(t, s.key, "price_pack", "", retryKey+sent).want(t, 201, "")
		var got []string
		for _, request := range s.stripe.Requests()[before:] {
			got = append(got, request.Form.Get("customer"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got the customers %q, want %q", got, want)
		}
	}
}

// What cannot be paid is refused, and Stripe not asked.
func TestCheckoutRefusals(t *testing.T) {
	s := newShopTest(t)
	disabled, subscribed := s.newKey(t), s.newKey(t)
	s.admin(t, "PATCH", "/"+s.tenant+"/admin/keys/"+disabled, `{"enabled":false}`).want(t, 200, "")
	testRedis.Do(t, "HSET", "apiKey:"+subscribed, "subscription", "sub_1", "customer", "cus_1")
	body := func(price, more string) string { return fmt.Sprintf(`{"price":%q,%s%s}`, price, shopURLs, more) }
	elsewhere := func(member, url string) string {
		return `{"price":"price_pack",` + strings.Replace(shopURLs, `"`+member+`":"https://app.example.com/shop/`, `"`+member+`":"`+url, 1) + `}`
	}
	const below = " must be below one of return_urls"
	for _, test := range []struct {
		key, body string
		status    int
		want      string
	}{
		{s.login(t, s.tenant), body("price_pack", ""), 403, "Sign in before you pay"},
		{"temp_11111111-2222-4333-8444-555555555555", body("price_pack", ""), 401, "Unauthorized"},
		{someKey, body("price_pack", ""), 401, "Unauthorized"},
		{"", body("price_pack", ""), 401, "Unauthorized"},
		{disabled, body("price_pack", ""), 403, "API key is disabled"},
		{s.key, body("price_other", ""), 404, "Unknown price"},
		{s.key, body("", ""), 404, "Unknown price"},
		{subscribed, body("price_basic", ""), 409, "There is a subscription already"},
		{s.key, body("price_pack", `,"quantity":0`), 400, "quantity must be a whole number from 1 to 999999"},
		{s.key, body("price_pack", `,"quantity":1000000`), 400, "quantity must be a whole number from 1 to 999999"},
		{s.key, body("price_pack", `,"quantity":1.5`), 400, "quantity must be a whole number from 1 to 999999"},
		{s.key, body("price_huge", `,"quantity":2`), 400, "quantity is too large: no balance can hold the tokens"},
		{s.key, body("price_vast", `,"quantity":2`), 400, "quantity is too large: no balance can hold the tokens"},
		{s.key, `{"price":"price_pack"}`, 400, "successUrl is missing"},
		{s.key, `{"price":"price_pack","successUrl":"https://app.example.com/shop/"}`, 400, "cancelUrl is missing"},
		{s.key, body("price_pack", `,"customer":"cus_1"`), 400, "customer is not a known member"},
		{s.key, ``, 400, ""},
		{s.key, elsewhere("successUrl", "https://evil.example/shop/"), 400, "successUrl" + below},
		{s.key, elsewhere("cancelUrl", "https://app.example.com/shop/../"), 400, "cancelUrl" + below},
		{s.key, elsewhere("cancelUrl", "https://app.example.com@evil.example/"), 400, "cancelUrl" + below},
	} {
		headers := []string{bearer(test.key)}
		if test.key == "" {
			headers = nil
		}
		got := s.do(t, "POST", "/"+s.tenant+"/billing/checkout", test.body, headers...)
		if text := got.field(t, "error"); got.status != test.status || test.want != "" && text != test.want {
			t.Errorf("%s: got %d %v, want %d %s", test.body, got.status, text, test.status, test.want)
		}
	}
	if n := len(s.stripe.Requests()); n > 0 {
		t.Errorf("Stripe was asked %d times", n)
	}
	// With a subscription, packs can be bought.
	testRedis.Do(t, "HDEL", "apiKey:"+subscribed, "customer")
	s.buy(t, subscribed, "price_pack", "").want(t, 201, "")
}

// Ten checkouts a minute, and a hundred a day, are counted for all processes and all names of a key.
func TestCheckoutRate(t *testing.T) {
	s := newShopTest(t)
	other := newService(t, "STRIPE_API_URL="+s.stripe.URL)
	for i := range 10 {
		if i == 5 {
			got := s.admin(t, "POST", "/"+s.tenant+"/admin/keys/"+s.key+"/rotate", "")
			got.want(t, 200, "")
			s.key, s.service = got.text(t, "apiKey"), other
		}
		s.buy(t, s.key, "price_pack", "").want(t, 201, "")
	}
	got := s.buy(t, s.key, "price_pack", "")
	got.wantError(t, 429, "Too Many Requests")
	if wait := got.header.Get("Retry-After"); wait == "" || wait == "0" || len(s.stripe.Requests()) != 10 {
		t.Errorf("Retry-After is %q, and Stripe was asked %d times", wait, len(s.stripe.Requests()))
	}
	sharing := s.issue(t, s.tenant, fmt.Sprintf(`"sharesWith":%q`, s.key)) // counts with the key that it shares with
	s.buy(t, sharing, "price_pack", "").wantError(t, 429, "Too Many Requests")

	key := s.newKey(t)
	testRedis.Do(t, "SET", "{apiKey:"+key+"}:checkoutDay", "99")
	s.buy(t, key, "price_pack", "").want(t, 201, "")
	got = s.buy(t, key, "price_pack", "")
	got.wantError(t, 429, "Too Many Requests")
	now := testRedis.Int(t, "EVAL", "return redis.call('TIME')[1] + 0", "0")
	if wait, _ := strconv.Atoi(got.header.Get("Retry-After")); wait < 1 || wait > 86400-now%86400+2 {
		t.Errorf("Retry-After is %d", wait)
	}
}

// A repeated request gets the same session, and no other key's or tenant's.
func TestCheckoutIdempotency(t *testing.T) {
	s := newShopTest(t)
	first := s.buy(t, s.key, "price_pack", "", retryKey+"k")
	first.want(t, 201, "")
	s.buy(t, s.key, "price_pack", "", retryKey+"k").want(t, 201, strings.TrimSpace(first.body))
	rotated := s.admin(t, "POST", "/"+s.tenant+"/admin/keys/"+s.key+"/rotate", "").text(t, "apiKey")
	s.buy(t, rotated, "price_pack", "", retryKey+"k").want(t, 201, strings.TrimSpace(first.body))
	s.buy(t, rotated, "price_pack", `,"quantity":2`, retryKey+"k").
		wantError(t, 422, "Idempotency-Key was used with other parameters")
	s.buy(t, s.newKey(t), "price_pack", "", retryKey+"k").want(t, 201, "")
	s.buy(t, rotated, "price_pack", "", retryKey+"k2").want(t, 201, "")
	s.buy(t, rotated, "price_pack", "", retryKey+strings.Repeat("k", 256)).want(t, 400, "")
	other := newTenantID()
	s.createTenant(t, other, stripeConfig(sellingMembers)).want(t, 201, "")
	s.tenant = other
	s.buy(t, s.newKey(t), "price_pack", "", retryKey+"k").want(t, 201, "")
	if n := len(s.stripe.Sessions()); n != 4 {
		t.Errorf("%d sessions were made, want 4", n)
	}
	for _, request := range s.stripe.Requests() {
		if len(request.IdempotencyKey) != 22 {
			t.Errorf("Stripe got the Idempotency-Key %q", request.IdempotencyKey)
		}
	}
}

// When Stripe has forgotten an Idempotency-Key, what was asked for with it before is not what is paid now.
func TestCheckoutForgotten(t *testing.T) {
	s := newShopTest(t)
	for i, test := range []struct{ price, more, tokens string }{
		{"price_pack", `,"quantity":999999`, "9999990000"}, {"price_pack", "", "10000"}, {"price_basic", "", "0"},
		{"price_pack", "", "5"}, // which holds less now
	} {
		if test.tokens == "5" {
			s.saveConfig(t, s.tenant, strings.Replace(stripeConfig(sellingMembers), `"tokens":10000`, `"tokens":5`, 1))
			s.buy(t, s.key, test.price, test.more, retryKey+"k").want(t, 422, "")
		}
		s.stripe.Forget()
		s.buy(t, s.key, test.price, test.more, retryKey+"k").want(t, 201, "")
		requests := s.stripe.Requests()
		record := s.record(t, requests[len(requests)-1].Form.Get("metadata[tollgate_reference]"))
		if record["price"] != test.price || fmt.Sprint(record["tokens"]) != test.tokens || len(s.stripe.Sessions()) != i+1 {
			t.Errorf("%s%s: got the record %v", test.price, test.more, record)
		}
	}
}

// record returns what is saved of a checkout.
func (s *shopTest) record(t testing.TB, reference string) (saved map[string]any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(testRedis.String(t, "GET", "checkout:"+s.tenant+":"+reference)))
	decoder.UseNumber()
	if err := decoder.Decode(&saved); err != nil {
		t.Fatal(err)
	}
	return saved
}

// What goes wrong at Stripe is told from what goes wrong at Redis, and leaves no record.
func TestStripeFails(t *testing.T) {
	t.Parallel()
	s := newShopTest(t)
	s.buy(t, s.key, "price_none", "").wantError(t, 502, "Stripe refuses")
	if s.log.Count("No such object: 'price_none'") != 1 {
		t.Errorf("Stripe's sentence is not in the log:\n%s", s.log)
	}
	for _, test := range []struct {
		conduct stripetest.Conduct
		status  int
	}{
		{stripetest.Conduct{Status: 401, Message: "Invalid API Key provided: " + stripetest.Key}, 502},
		{stripetest.Conduct{Status: 402, Message: "No"}, 502},
		{stripetest.Conduct{Status: 409, Message: "Another request is under way"}, 503},
		{stripetest.Conduct{Status: 429, Message: "Too many"}, 502},
		{stripetest.Conduct{Status: 500, Message: "Sorry"}, 502},
		{stripetest.Conduct{Status: 302}, 502},
		{stripetest.Conduct{Cut: true}, 503},
	} {
		s.stripe.SetConduct(test.conduct)
		got := s.buy(t, s.key, "price_pack", "")
		if got.want(t, test.status, ""); test.status == 503 && got.header.Get("Retry-After") == "" {
			t.Errorf("%+v: no Retry-After", test.conduct)
		}
	}
	s.stripe.SetConduct(stripetest.Conduct{Hang: true})
	began := time.Now()
	s.buy(t, s.newKey(t), "price_pack", "").wantError(t, 503, "Service unavailable")
	if took := time.Since(began); took < 9*time.Second || took > 10*time.Second+10*busy {
		t.Errorf("it took %s", took)
	}
	if n := len(testRedis.Keys(t, "checkout:"+s.tenant+":*")); n != 0 {
		t.Errorf("%d records were left", n)
	}
	for _, secret := range []string{stripetest.Key, stripetest.Secret, s.key} {
		if s.log.Count(secret) > 0 {
			t.Errorf("the log has a secret:\n%s", s.log)
		}
	}
	far := newService(t, "STRIPE_API_URL=http://127.0.0.1:1")
	s.service = far
	s.buy(t, s.newKey(t), "price_pack", "").wantError(t, 503, "Service unavailable")
}

// The time that Stripe takes is not Redis's, which has a deadline of its own for the record: without that, nobody gets the
// page.
func TestCheckoutDeadlines(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	stripe := stripetest.New(t)
	s := &shopTest{service: newService(t, "REDIS_URL="+r.URL(), "STRIPE_API_URL="+stripe.URL), stripe: stripe, tenant: newTenantID()}
	s.createTenant(t, s.tenant, stripeConfig(sellingMembers)).want(t, 201, "")
	s.key = s.newKey(t)
	stripe.SetConduct(stripetest.Conduct{Before: func(*http.Request) { time.Sleep(2 * publicTimeout) }})
	s.buy(t, s.key, "price_pack", "").want(t, 201, "")

	stripe.SetConduct(stripetest.Conduct{Before: func(*http.Request) { r.Signal(t, syscall.SIGSTOP) }})
	began := time.Now()
	s.buy(t, s.key, "price_pack", "").wantError(t, 503, "Service unavailable")
	if took := time.Since(began); took > publicTimeout+4*busy {
		t.Errorf("it took %s", took)
	}
	r.Signal(t, syscall.SIGCONT)
}

// A slow Stripe holds up at most half of the places of one tenant, and lets them go with the clients.
func TestStripePlaces(t *testing.T) {
	t.Parallel()
	s := newShopTest(t)
	s.stripe.SetConduct(stripetest.Conduct{Hang: true})
	others := &shopTest{service: s.service, stripe: s.stripe, tenant: newTenantID()}
	others.createTenant(t, others.tenant, stripeConfig(sellingMembers)).want(t, 201, "")
	others.key = others.newKey(t)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiting sync.WaitGroup
	var keys []string
	for range maxStripeCalls / 2 / 8 {
		keys = append(keys, s.newKey(t))
	}
	for i := range maxStripeCalls / 2 {
		waiting.Go(func() {
			r, _ := http.NewRequest("POST", s.url+"/"+s.tenant+"/billing/checkout", strings.NewReader(`{"price":"price_pack",`+shopURLs+`}`))
			r.Header.Set("Authorization", "Bearer "+keys[i/8])
			if response, err := client.Do(r.WithContext(ctx)); err == nil {
				t.Errorf("got %s", response.Status)
				response.Body.Close()
			}
		})
	}
	waittest.Eventually(t, 30*time.Second, func() error {
		if n := len(s.stripe.Requests()); n != maxStripeCalls/2 {
			return fmt.Errorf("Stripe was asked %d times", n)
		}
		return nil
	})
	got := s.buy(t, s.key, "price_pack", "")
	got.wantError(t, 503, "Service unavailable")
	if n := len(s.stripe.Requests()); n != maxStripeCalls/2 {
		t.Errorf("Stripe was asked %d times", n)
	}
	s.stripe.SetConduct(stripetest.Conduct{})
	others.buy(t, others.key, "price_pack", "").want(t, 201, "")
	cancel()
	waiting.Wait()
	s.awaitUsed(t, "stripe", 0)
	s.buy(t, s.key, "price_pack", "").want(t, 201, "")
}

func TestPortal(t *testing.T) {
	s := newShopTest(t)
	const back = "https://app.example.com/shop/"
	s.portal(t, s.key, back).wantError(t, 404, "Not found")
	s.portal(t, s.login(t, s.tenant), back).wantError(t, 404, "Not found")
	s.portal(t, someKey, back).wantError(t, 401, "Unauthorized")
	s.portal(t, s.key, "https://evil.example/").wantError(t, 400, "returnUrl must be below one of return_urls")
	s.do(t, "POST", "/"+s.tenant+"/billing/portal", "{}", bearer(s.key)).wantError(t, 400, "returnUrl is missing")

	s.buy(t, s.key, "price_pack", "").want(t, 201, "")
	session := s.stripe.Sessions()[0]
	s.stripe.Pay(session)
	testRedis.Do(t, "HSET", "apiKey:"+s.key, "customer", s.stripe.Customer(session))
	got := s.portal(t, s.key, back, retryKey+"k")
	got.want(t, 201, "")
	request := s.stripe.Requests()[1]
	if request.Form.Get("return_url") != back || request.Form.Get("customer") != s.stripe.Customer(session) ||
		!strings.Contains(got.text(t, "url"), "/p/session/") || len(request.IdempotencyKey) != 22 {
		t.Errorf("got %s for %v", got.body, request)
	}
	s.buy(t, s.key, "price_pack", "", retryKey+"k").want(t, 201, "") // another route, so another digest
	testRedis.Do(t, "HSET", "apiKey:"+s.key, "customer", "cus_gone")
	s.portal(t, s.key, back).wantError(t, 404, "Not found")
	s.stripe.SetConduct(stripetest.Conduct{Status: 400, Message: "No configuration"})
	s.portal(t, s.key, back).wantError(t, 502, "Stripe refuses")
	for range 7 {
		s.portal(t, s.key, back).want(t, 502, "")
	}
	s.portal(t, s.key, back).wantError(t, 429, "Too Many Requests")
	s.stripe.SetConduct(stripetest.Conduct{})
	s.buy(t, s.key, "price_pack", "").want(t, 201, "") // checkouts are counted apart
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/stripetest"
)

const webhookPath = "/webhooks/stripe"

// A payTest is a service with a tenant that sells by a stand-in for Stripe.
type payTest struct {
	*service
	stripe *stripetest.Server
	tenant string
}

// payGroups are the groups of tenants that sell.
const payGroups = `{"anonymous":{"tokens":100},"start":{"tokens":1000},"free":{"tokens":10},` +
	`"basic":{"tokens":500},"premium":{"tokens":2000}}`

// payConfig is the config of a tenant that sells. stripe are further members of auth.stripe, or others in place of these.
func payConfig(stripe string) string {
	members := map[string]json.RawMessage{
		"api_key":        json.RawMessage(`"` + stripetest.Key + `"`),
		"webhook_secret": json.RawMessage(`["` + stripetest.Secret + `"]`),
		"return_urls":    json.RawMessage(`["https://app.example.com/"]`),
		"prices": json.RawMessage(`{"price_basic":{"group":"basic"},"price_premium":{"group":"premium","tokens":3000},` +
			`"price_pack":{"tokens":700},"price_raise":{"group":"basic","tokens":800,"reset":true}}`),
	}
	if err := json.Unmarshal([]byte("{"+stripe+"}"), &members); err != nil {
		panic(err)
	}
	text, err := json.Marshal(members)
	if err != nil {
		panic(err)
	}
	return `{"user_groups":` + payGroups + `,"auth":{"stripe":` + string(text) + `}}`
}

// newPayTest returns a service with a tenant of payConfig(stripe).
func newPayTest(t *testing.T, stripe string, settings ...string) *payTest {
	t.Helper()
	fake := stripetest.New(t)
	s := newService(t, append([]string{"STRIPE_API_URL=" + fake.URL}, settings...)...)
	return &payTest{s, fake, newTenantIn(t, testRedis, payConfig(stripe))}
}

// signed returns the header with the signature of a body.
func signed(body []byte, at time.Time, secrets ...string) string {
	return "Stripe-Signature: " + stripetest.Sign(body, at, secrets...)
}

// deliver sends an event, as Stripe does.
func (p *payTest) deliver(t testing.TB, body []byte) reply {
	t.Helper()
	return p.do(t, "POST", "/"+p.tenant+webhookPath, string(body), signed(body, time.Now(), stripetest.Secret))
}

// event returns an event of a type about an object.
func event(kind, object string) []byte {
	return fmt.Appendf(nil, `{"id":"evt_1","object":"event","type":%q,"created":%d,"livemode":false,"data":{"object":%s}}`,
		kind, time.Now().Unix(), object)
}

// ignoredEvent is one of a type that asks for nothing.
var ignoredEvent = event("customer.created", `{}`)

// Events are taken only with a current signature by one of the secrets.
func TestWebhookSignatures(t *testing.T) {
	t.Parallel()
	const old, other = "whsec_old", "whsec_other"
	p := newPayTest(t, `"webhook_secret":["`+stripetest.Secret+`","`+old+`"]`)
	now := time.Now()
	good := signed(ignoredEvent, now, stripetest.Secret)
	_, mac, _ := strings.Cut(good, "v1=")
	live := bytes.Replace(ignoredEvent, []byte(`"livemode":false`), []byte(`"livemode":true`), 1)
	const wrong = "Invalid Stripe-Signature"
	for name, test := range map[string]struct {
		body    []byte
		headers []string
		want    string // "" for a 200
	}{
		"good":                       {ignoredEvent, []string{good}, ""},
		"290 s old":                  {ignoredEvent, []string{signed(ignoredEvent, now.Add(-290*time.Second), stripetest.Secret)}, ""},
		"290 s ahead":                {ignoredEvent, []string{signed(ignoredEvent, now.Add(290*time.Second), stripetest.Secret)}, ""},
		"by the old secret":          {ignoredEvent, []string{signed(ignoredEvent, now, old)}, ""},
		"one of two is right":        {ignoredEvent, []string{signed(ignoredEvent, now, other, stripetest.Secret)}, ""},
		"other schemes":              {ignoredEvent, []string{good + ",v0=" + mac}, ""},
		"an Idempotency-Key":         {ignoredEvent, []string{good, retryKey + "a", retryKey + "\x80"}, ""},
		"somebody's API key":         {ignoredEvent, []string{good, bearer(someKey)}, ""},
		"a newer kind of event":      {[]byte(`{"id":"evt_1","object":"v2.core.event","type":"x","livemode":false}`), nil, ""},
		"absent":                     {ignoredEvent, []string{}, wrong},
		"empty":                      {ignoredEvent, []string{"Stripe-Signature: "}, wrong},
		"repeated":                   {ignoredEvent, []string{good, good}, wrong},
		"without a time":             {ignoredEvent, []string{"Stripe-Signature: v1=" + mac}, wrong},
		"without a v1":               {ignoredEvent, []string{fmt.Sprintf("Stripe-Signature: t=%d,v0=%s", now.Unix(), mac)}, wrong},
		"301 s old":                  {ignoredEvent, []string{signed(ignoredEvent, now.Add(-301*time.Second), stripetest.Secret)}, wrong},
		"301 s ahead":                {ignoredEvent, []string{signed(ignoredEvent, now.Add(310*time.Second), stripetest.Secret)}, wrong},
		"by another secret":          {ignoredEvent, []string{signed(ignoredEvent, now, other)}, wrong},
		"by no secret":               {ignoredEvent, []string{signed(ignoredEvent, now, "")}, wrong},
		"of another body":            {ignoredEvent, []string{signed(live, now, stripetest.Secret)}, wrong},
		"no body":                    {nil, []string{good}, wrong},
		"no JSON":                    {[]byte("{"), nil, "The body is not JSON"},
		"no JSON and nothing at all": {[]byte(" "), nil, "The body is not JSON"},
		"of real money":              {live, nil, "The event's livemode does not fit the API key"},
	} {
		headers := test.headers
		if headers == nil {
			headers = []string{signed(test.body, now, stripetest.Secret)}
		}
		got := p.do(t, "POST", "/"+p.tenant+webhookPath, string(test.body), append(headers, "Origin: https://app.example.com")...)
		t.Log(name)
		if test.want != "" {
			got.wantError(t, 400, test.want)
		} else {
			got.want(t, 200, `{"received":true}`)
		}
		for header := range got.header {
			if strings.HasPrefix(header, "Access-Control") || header == "Idempotent-Replayed" || header == "Vary" {
				t.Errorf("the response has the header %s", header)
			}
		}
	}
	if got := p.sample(t, fmt.Sprintf(`payment_events_total{tenant=%q,event="other",result="ignored"}`, p.tenant)); got != 9 {
		t.Errorf("%v ignored events are counted, want 9", got)
	}
	if n := len(p.stripe.Requests()); n != 0 {
		t.Errorf("Stripe was asked %d times", n)
	}
}

// A live key takes events of real money, and no others.
func TestWebhookLivemode(t *testing.T) {
	t.Parallel()
	p := newPayTest(t, `"api_key":"rk_live_1234567890"`)
	p.deliver(t, ignoredEvent).wantError(t, 400, "The event's livemode does not fit the API key")
	live := bytes.Replace(ignoredEvent, []byte(`"livemode":false`), []byte(`"livemode":true`), 1)
	p.deliver(t, live).want(t, 200, `{"received":true}`)
}

// What is refused for its head gets its response at once, whether or not the body comes.
func TestWebhookBeforeBody(t *testing.T) {
	t.Parallel()
	p := newPayTest(t, "")
	disabled := newTenantIn(t, testRedis, payConfig(`"webhook_secret":[]`))
	good, stale := signed(nil, time.Now(), "x"), signed(nil, time.Now().Add(-time.Hour), "x")
	for name, test := range map[string]struct {
		tenant, signature string
		status            int
	}{
		"no tenant":    {"nobody", good, 400},
		"disabled":     {disabled, good, 403},
		"no signature": {p.tenant, "X: y", 400},
		"stale":        {p.tenant, stale, 400},
		"no time":      {p.tenant, "Stripe-Signature: v1=00", 400},
	} {
		for _, expect := range []string{"X-Expect: nothing", "Expect: 100-continue"} {
			t.Run(name+", "+expect, func(t *testing.T) {
				t.Parallel()
				c, began := p.dial(t), time.Now()
				fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n%s\r\n%s\r\n\r\n",
					test.tenant, webhookPath, expect, test.signature)
				got := readAll(c)
				if want := fmt.Sprintf("HTTP/1.1 %d ", test.status); !strings.HasPrefix(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if took := time.Since(began); took > readTimeout/2 {
					t.Errorf("it took %s", took)
				}
			})
		}
	}
	p.begin(t, "POST", "/"+p.tenant+webhookPath, 1000, good) // is told to go on
	p.do(t, "POST", "/"+disabled+webhookPath, "{}", good).wantError(t, 403, "Payments are disabled")
	p.do(t, "POST", "/"+newTenant(t, 1)+webhookPath, "{}", good).wantError(t, 403, "Payments are disabled")
	p.do(t, "POST", "/nobody"+webhookPath, "{}", good).wantError(t, 400, "Invalid tenant ID")
	p.do(t, "GET", "/"+p.tenant+webhookPath, "").wantError(t, 405, "Method not allowed")
}

// A body may have 1 MiB, and no content coding.
func TestWebhookBodySizes(t *testing.T) {
	t.Parallel()
	p := newPayTest(t, "")
	padded := func(size int) []byte {
		return append(ignoredEvent, bytes.Repeat([]byte(" "), size-len(ignoredEvent))...)
	}
	p.deliver(t, padded(maxBodyBytes)).want(t, 200, "")
	p.deliver(t, padded(maxBodyBytes+1)).wantError(t, 413, "Body too large")
	chunked, err := http.NewRequest("POST", p.url+"/"+p.tenant+webhookPath, io.MultiReader(bytes.NewReader(padded(maxBodyBytes+1))))
	if err != nil {
		t.Fatal(err)
	}
	chunked.Header.Set("Stripe-Signature", stripetest.Sign(nil, time.Now(), "x"))
	response, err := client.Do(chunked)
	if err != nil || response.StatusCode != 413 {
		t.Errorf("chunked: %v, %v, want 413", response, err)
	}
	p.do(t, "POST", "/"+p.tenant+webhookPath, "{}", signed(nil, time.Now(), "x"), "Content-Encoding: gzip").want(t, 415, "")
}

// Large bodies that strangers send slowly take half of the room for bodies at most, from one address. The events of
// others find room, and those that are small need none.
func TestWebhookSlowBodies(t *testing.T) {
	t.Parallel()
	p := newPayTest(t, "", trustTest)
	large := append(ignoredEvent, bytes.Repeat([]byte(" "), maxBodyBytes-len(ignoredEvent))...)
	slow := func(address string) io.Writer {
		c := p.begin(t, "POST", "/"+p.tenant+webhookPath, maxBodyBytes, address, signed(nil, time.Now(), "x"))
		c.Write(large[:maxBodyBytes-1])
		return c
	}
	address := fromElsewhere()
	for range 4 {
		slow(address)
	}
	waitUsed := func(least float64) { p.awaitAtLeast(t, "webhook_bodies", least) }
	waitUsed(3.5 * maxBodyBytes)
	send := func(address string, body []byte) reply {
		return p.do(t, "POST", "/"+p.tenant+webhookPath, string(body), address, signed(body, time.Now(), stripetest.Secret))
	}
	refused := send(address, large)
	refused.want(t, 503, "")
	refused.wantHeader(t, "Retry-After", "1")
	send(fromElsewhere(), large).want(t, 200, "")
	for range 4 {
		slow(fromElsewhere())
	}
	waitUsed(7.5 * maxBodyBytes)
	send(fromElsewhere(), large).want(t, 503, "")
	send(fromElsewhere(), ignoredEvent).want(t, 200, "")
	send(address, ignoredEvent).want(t, 200, "")
	p.awaitUsed(t, "webhook_bodies", 0) // since they must come within readTimeout
}

// A webhook with a wrong signature reads and writes nothing in Redis: the tenant's config is in memory.
func TestWebhookForgeries(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	redis := singleRedis(t)
	proxy := redistest.NewProxy(t, redis, func([]byte) redistest.Fate { return redistest.Pass })
	proxy.OnRequest(func([]byte) redistest.Fate {
		requests.Add(1)
		return redistest.Pass
	})
	p := &payTest{newService(t, "REDIS_URL="+proxy.URL), nil, newTenantIn(t, redis, payConfig(""))}
	p.deliver(t, ignoredEvent).want(t, 200, "")
	before := requests.Load()
	const n = 500
	paid := event("checkout.session.completed", `{}`)
	for range n {
		p.do(t, "POST", "/"+p.tenant+webhookPath, string(paid), signed(paid, time.Now(), "whsec_x")).want(t, 400, "")
	}
	if got := requests.Load() - before; got > n/4 { // of the config's cache and others, once a second each
		t.Errorf("%d requests came to Redis while %d webhooks were refused", got, n)
	}
}

// A Stripe that says no more than is needed sells as well.
func TestTerseStripe(t *testing.T) {
	t.Parallel()
	var metadata string // of the last session, in JSON
	terse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "POST /v1/checkout/sessions":
			values := make(map[string]string)
			for _, name := range []string{metadataTenant, metadataReference} {
				values[name] = r.PostFormValue("metadata[" + name + "]")
			}
			text, _ := json.Marshal(values)
			metadata = string(text)
			io.WriteString(w, `{"url":"https://checkout.example/1"}`)
		case "POST /v1/billing_portal/sessions":
			io.WriteString(w, `{"url":"https://portal.example/1"}`)
		case "GET /v1/subscriptions/sub_1":
			io.WriteString(w, `{"id":"sub_1","status":"active","metadata":`+metadata+
				`,"items":{"data":[{"price":{"id":"price_basic"}}]}}`)
		case "GET /v1/charges/ch_1":
			io.WriteString(w, `{"id":"ch_1","payment_intent":"pi_1","metadata":`+metadata+`}`)
		case "GET /v1/invoice_payments":
			io.WriteString(w, `{"data":[{"invoice":"in_1"}]}`)
		case "GET /v1/invoices/in_1":
			io.WriteString(w, `{"id":"in_1","subscription":"sub_1"}`)
		default:
			w.WriteHeader(404)
		}
	}))
	t.Cleanup(terse.Close)
	p := &payTest{service: newService(t, "STRIPE_API_URL="+terse.URL), tenant: newTenantIn(t, testRedis, payConfig(""))}
	key := p.issue(t, p.tenant, `"userId":"u","group":"start"`)
	buy := func(price string) {
		t.Helper()
		body := `{"price":"` + price + `","successUrl":"https://app.example.com/","cancelUrl":"https://app.example.com/"}`
		p.do(t, "POST", "/"+p.tenant+"/billing/checkout", body, bearer(key)).want(t, 201, `{"url":"https://checkout.example/1"}`)
	}
	send := func(kind, object string, tokens int, group string) {
		t.Helper()
		body := fmt.Appendf(nil, `{"id":"evt_1","type":%q,"created":%d,"livemode":false,"data":{"object":%s}}`,
			kind, time.Now().Unix(), object)
		p.deliver(t, body).want(t, 200, `{"received":true}`)
		got := p.do(t, "GET", "/"+p.tenant+"/auth/key", "", bearer(key))
		if want := fmt.Sprintf(`"tokensLeft":%d}`, tokens); !strings.Contains(got.body, want) || got.text(t, "group") != group {
			t.Errorf("after %s: got %s, want %s, %q", kind, got.body, want, group)
		}
	}

	buy("price_pack")
	send("checkout.session.expired", `{"id":"cs_2"}`, 1000, "start")
	send("checkout.session.completed", `{"id":"cs_1","mode":"payment","payment_status":"paid","customer":"cus_1","payment_intent":"pi_1",`+
		`"metadata":`+metadata+`}`, 1700, "start")
	send("charge.refunded", `{"id":"ch_1","payment_intent":"pi_1","amount":10,"amount_refunded":1}`, 1630, "start")
	send("charge.dispute.created", `{"id":"dp_1","charge":"ch_1","status":"needs_response"}`, 1000, "start")
	send("charge.dispute.closed", `{"id":"dp_1","charge":"ch_1","status":"won"}`, 1630, "start")
	p.do(t, "POST", "/"+p.tenant+"/billing/portal", `{"returnUrl":"https://app.example.com/"}`, bearer(key)).
		want(t, 201, `{"url":"https://portal.example/1"}`)

	buy("price_basic")
	send("invoice.paid", `{"id":"in_1","parent":{"subscription_details":{"subscription":"sub_1"}},"lines":{"data":[{"quantity":1,`+
		`"parent":{"subscription_item_details":{"proration":false}},"pricing":{"price_details":{"price":"price_basic"}}}]}}`, 2130, "basic")
	send("invoice.paid", `{"id":"in_2","subscription":"sub_1","lines":{"data":[{"type":"subscription","proration":false,`+
		`"price":{"id":"price_basic"}}]}}`, 2630, "basic")
	send("customer.subscription.updated", `{"id":"sub_1","metadata":`+metadata+`}`, 2630, "basic")
	send("charge.refunded", `{"id":"ch_2","payment_intent":"pi_2","amount":10,"amount_refunded":10}`, 2130, "basic")
	send("customer.subscription.deleted", `{"id":"sub_1","metadata":`+metadata+`}`, 2130, "start")
}

//go:build integration

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/stripetest"
)

// shopConfig is the config of a tenant that sells a pack and a subscription at a Stripe whose webhooks the secrets sign.
// Pages of origin may buy.
func shopConfig(t *testing.T, origin string, secrets ...string) string {
	t.Helper()
	list, err := json.Marshal(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1},"free":{"tokens":100},"basic":{"tokens":5000}},
		"cors":{"allowed_origins":[%[1]q]},"auth":{"stripe":{"api_key":%[2]q,"webhook_secret":%[3]s,"free_group":"free",
		"return_urls":[%[4]q],"prices":{"price_pack":{"tokens":10000},"price_basic":{"group":"basic"}}}}}`,
		origin, stripetest.Key, list, origin+"/")
}

// deliver sends a webhook as Stripe does.
func (s *service) deliver(t testing.TB, tenant, body string) reply {
	t.Helper()
	signature := stripetest.Sign([]byte(body), time.Now(), stripetest.Secret)
	return s.do(t, "POST", "/"+tenant+"/webhooks/stripe", body, "Stripe-Signature: "+signature)
}

// shopDriver does on the page in docs/examples/shop what a visitor with a key does: sign in, buy the first thing, and
// come back, where the page is loaded anew. It reports what the page shows then; its title is another if the page runs
// scripts that are in it. The key is the fragment of the first address.
const shopDriver = `
const until = async (condition) => { while (!condition()) await new Promise((wake) => setTimeout(wake, 10)); };
const text = (selector) => document.querySelector(selector).textContent;
if (sessionStorage.getItem("before")) {
	await until(() => text("#message") && !text("#message").endsWith("way."));
	const buttons = [...document.querySelectorAll("#prices button")].map((button) => button.textContent);
	await fetch("/report", { method: "POST", body: [
		text("#balance"), text("#message"), location.href, document.title, ...buttons,
	].join("\n") });
} else {
	document.querySelector("input").value = location.hash.slice(1, -1); // browse has added a slash
	document.querySelector("form button").click();
	await until(() => text("#message") || document.querySelector("#prices button"));
	if (text("#message")) await fetch("/report", { method: "POST", body: text("#message") });
	document.querySelectorAll("#prices button")[INDEX].click();
}`

// The page in docs/examples/shop sells a pack and a subscription, in a real browser that obeys its policy of content.
func TestIntegrationShopPage(t *testing.T) {
	const tollgate = "http://localhost:8080"
	for index, want := range []string{"10100 tokens, group free", "5100 tokens, group basic"} {
		t.Run(want, func(t *testing.T) {
			stripe := stripetest.New(t)
			var s *service
			tenant := newTenantID()
			mux := http.NewServeMux()
			mux.Handle("/", stripe)
			mux.HandleFunc("GET /c/pay/{session}", func(w http.ResponseWriter, r *http.Request) { // Stripe's page
				for _, event := range stripe.Pay(r.PathValue("session")) {
					s.deliver(t, tenant, string(event.Body)).want(t, 200, `{"received":true}`)
				}
				requests := stripe.Requests()
				i := slices.IndexFunc(requests, func(r stripetest.Request) bool { return r.Method == http.MethodPost })
				http.Redirect(w, r, requests[i].Form.Get("success_url"), http.StatusSeeOther)
			})
			server := httptest.NewServer(mux)
			t.Cleanup(server.Close)
			stripe.URL = server.URL // where its sessions lead
			s = newService(t, "STRIPE_API_URL="+server.URL)

			files := make(map[string]string)
			fill := strings.NewReplacer(tollgate+"/shop", s.url+"/"+tenant, tollgate+";", s.url+" 'self';",
				"</script>\n", "</script><script type=\"module\" src=\"driver.js\"></script><script>document.title = \"inline\"</script>")
			for _, name := range []string{"index.html", "shop.js"} {
				files[name] = fill.Replace(readFile(t, filepath.Join("docs/examples/shop", name)))
			}
			if strings.Contains(files["index.html"]+files["shop.js"], tollgate) {
				t.Error("the page has another address of tollgate")
			}
			files["driver.js"] = strings.ReplaceAll(shopDriver, "INDEX", fmt.Sprint(index))
			origin, reports := serveFiles(t, files)
			testRedis.Do(t, "SET", "tenant:"+tenant+":config", shopConfig(t, origin, stripetest.Secret))
			key := s.issue(t, tenant, `"userId":"u-7","group":"free"`)
			got := string(browse(t, origin+"/#"+key, reports))
			want = strings.Join([]string{want, "Thank you. Your tokens are here.", origin + "/", "Shop", "Buy 10000 tokens",
				"Subscribe to basic: 5000 tokens in each period"}, "\n")
			if got != want {
				t.Errorf("the page shows\n%s\nwant\n%s\n%s", got, want, s.log)
			}
		})
	}
}

// A mockedStripe is stripe-mock, and what it was asked.
type mockedStripe struct {
	url string

	mu    sync.Mutex
	calls map[string]int // the status of each kind of call
	forms []url.Values   // of the calls that make something
}

var stripeID = regexp.MustCompile(`/(charges|invoices|subscriptions)/[^/]+`)

// newMockedStripe starts stripe-mock.
func newMockedStripe(t *testing.T) *mockedStripe {
	t.Helper()
	target, err := url.Parse(stripetest.StartMock(t))
	if err != nil {
		t.Fatal(err)
	}
	m := &mockedStripe{calls: make(map[string]int)}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		call := r.Request.Method + " " + stripeID.ReplaceAllString(r.Request.URL.Path, "/$1/…")
		m.mu.Lock()
		defer m.mu.Unlock()
		m.calls[call] = max(m.calls[call], r.StatusCode)
		if r.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(r.Body)
			t.Errorf("%s: %d %s", call, r.StatusCode, body)
		}
		return nil
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		form, formErr := url.ParseQuery(string(body))
		if err != nil || formErr != nil {
			t.Error(err, formErr)
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		m.mu.Lock()
		m.forms = append(m.forms, form)
		m.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	m.url = server.URL
	return m
}

// last returns the form of the last call.
func (m *mockedStripe) last() url.Values {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.forms[len(m.forms)-1]
}

// stripe-mock, which knows Stripe's API by its OpenAPI document, finds nothing wrong with any call that the service makes.
// It has no state, so what it says of an object may not be understood.
func TestIntegrationPaymentsMock(t *testing.T) {
	m := newMockedStripe(t)
	s := newService(t, "STRIPE_API_URL="+m.url)
	tenant := newTenantIn(t, testRedis, shopConfig(t, "http://localhost:3000", stripetest.Secret))
	key := s.issue(t, tenant, `"userId":"u-7","group":"free"`)
	buy := func(price string) (metadata string) {
		t.Helper()
		s.do(t, "POST", "/"+tenant+"/billing/checkout", fmt.Sprintf(`{"price":%q,"quantity":2,
			"successUrl":"http://localhost:3000/ok?s={CHECKOUT_SESSION_ID}","cancelUrl":"http://localhost:3000/"}`, price),
			bearer(key)).want(t, 201, "")
		return fmt.Sprintf(`{"tollgate_tenant":%q,"tollgate_reference":%q}`, tenant, m.last().Get("metadata[tollgate_reference]"))
	}
	happens := func(kind, object string) reply {
		t.Helper()
		return s.deliver(t, tenant, fmt.Sprintf(`{"object":"event","id":"evt_1","type":%q,"livemode":false,"created":%d,
			"data":{"object":%s}}`, kind, time.Now().Unix(), object))
	}

	pack := buy("price_pack")
	happens("checkout.session.completed", `{"id":"cs_test_1","mode":"payment","payment_status":"paid","customer":"cus_1",
		"payment_intent":"pi_1","metadata":`+pack+`}`).want(t, 200, `{"received":true}`)
	if got := tokensLeft(t, key); got != 20100 {
		t.Errorf("the key has %d tokens", got)
	}
	buy("price_pack") // by a known customer
	subscription := buy("price_basic")
	s.do(t, "POST", "/"+tenant+"/billing/portal", `{"returnUrl":"http://localhost:3000/"}`, bearer(key)).want(t, 201, "")

	happens("customer.subscription.updated", `{"id":"sub_1","customer":"cus_1","status":"active","metadata":`+subscription+`,
		"items":{"data":[],"has_more":false}}`)
	happens("invoice.paid", `{"id":"in_1","status":"paid","billing_reason":"subscription_create","amount_paid":1,"currency":"eur",
		"parent":{"subscription_details":{"subscription":"sub_1","metadata":`+subscription+`}},"lines":{"data":[],"has_more":true}}`)
	happens("charge.refunded", `{"id":"ch_1","amount":2,"amount_refunded":1,"currency":"eur","metadata":{},"payment_intent":"pi_2"}`)
	happens("charge.dispute.created", `{"id":"du_1","charge":"ch_1","payment_intent":"pi_2","amount":2,"currency":"eur",
		"status":"needs_response"}`)

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, call := range []string{
		"POST /v1/checkout/sessions", "POST /v1/billing_portal/sessions", "GET /v1/subscriptions/…", "GET /v1/invoices/…/lines",
		"GET /v1/invoices/…", "GET /v1/invoice_payments", "GET /v1/charges/…",
	} {
		if m.calls[call] != http.StatusOK {
			t.Errorf("%s: got %d", call, m.calls[call])
		}
		delete(m.calls, call)
	}
	if len(m.calls) > 0 {
		t.Errorf("other calls: %v", m.calls)
	}
}

// What Stripe's library signs and accepts, the service accepts. What it refuses is refused, and so is what was signed
// more than 300 s ahead, which it accepts.
func TestIntegrationWebhookSignatures(t *testing.T) {
	secrets := []string{"whsec_old", "whsec_new"}
	s := newService(t)
	tenant := newTenantIn(t, testRedis, shopConfig(t, "http://localhost:3000", secrets...))
	now := time.Now().Unix()
	body := fmt.Sprintf(`{"object":"event","id":"evt_1","type":"ping","livemode":false,"created":%d,"é":"\u2028😀"}`, now)
	sign := func(secret string, ahead int64, payload string) map[string]any {
		return map[string]any{"task": "sign", "secret": secret, "timestamp": now + ahead, "payload": payload}
	}
	signed := stripetest.RunSDK(t, sdkDir, []map[string]any{
		sign("whsec_new", 0, body), sign("whsec_old", -200, body), sign("whsec_old", 200, body), sign("whsec_other", 0, body),
		sign("whsec_new", -400, body), sign("whsec_new", 400, body), sign("whsec_new", 0, body+" "), sign("", 0, body),
	})
	var headers []string
	for _, header := range signed {
		headers = append(headers, header.(string))
	}
	good, other := headers[0], headers[3]
	_, mac, _ := strings.Cut(good, "v1=")
	ahead := headers[5]
	headers = append(headers, other+",v1="+mac, good+",v0=x", "v1="+mac+","+strings.TrimSuffix(good, ",v1="+mac),
		"", "nonsense", "v1="+mac, strings.TrimSuffix(good, "v1="+mac), strings.Replace(good, "v1", "v0", 1), good+"0",
		strings.Replace(good, ",", ", ", 1), strings.Replace(good, "t=", "t=1", 1), strings.ToUpper(good))
	var tasks []map[string]any
	for _, header := range headers {
		for _, secret := range secrets {
			tasks = append(tasks, map[string]any{"task": "verify", "payload": body, "header": header, "secret": secret, "now": now})
		}
	}
	verified, accepted := stripetest.RunSDK(t, sdkDir, tasks), 0
	for i, header := range headers {
		theirs := slices.Contains(verified[i*len(secrets):(i+1)*len(secrets)], any("evt_1"))
		got := s.do(t, "POST", "/"+tenant+"/webhooks/stripe", body, "Stripe-Signature: "+header)
		if got.status == 200 {
			accepted++
		}
		if header == ahead && (got.status != 400 || !theirs) ||
			header != ahead && (got.status == 200) != theirs || got.status != 200 && got.status != 400 {
			t.Errorf("%s: got %d %s, while Stripe's library says %v", header, got.status, got.body, theirs)
		}
	}
	if accepted != 6 {
		t.Errorf("%d headers were accepted, want 6", accepted)
	}
}

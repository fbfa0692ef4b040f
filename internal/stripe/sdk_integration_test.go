//go:build integration

package stripe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"tollgate/internal/stripetest"
)

const sdkDir = "../../testdata/sdk"

// Stripe's library signs as we do.
func TestIntegrationSignatures(t *testing.T) {
	secrets := []string{testSecret, "whsec_ä", "x"}
	payloads := []string{string(testBody), "", "{}", "é\r\n\x00\u2028😀", strings.Repeat("x", 100_000)}
	var tasks []map[string]any
	for _, secret := range secrets {
		for _, payload := range payloads {
			tasks = append(tasks, map[string]any{"task": "sign", "payload": payload, "secret": secret, "timestamp": signedAt})
		}
	}
	for i, result := range stripetest.RunSDK(t, sdkDir, tasks) {
		secret, payload := secrets[i/len(payloads)], payloads[i%len(payloads)]
		want := fmt.Sprintf("t=%d,v1=%s", signedAt, signatureOf(fmt.Sprint(signedAt), []byte(payload), secret))
		if result != want {
			t.Errorf("%s, %.20q: it signs %v, want %s", secret, payload, result, want)
		}
		s, err := ReadSignature(signatureHeader(result.(string)), time.Unix(signedAt, 0))
		if err != nil || !s.Verify([]byte(payload), "whsec_other", secret) {
			t.Errorf("%s, %.20q: %v", secret, payload, err)
		}
	}
}

// Whatever header Stripe's library refuses is refused, and what is accepted it accepts too. Where it accepts more, the
// difference is meant.
func TestIntegrationVerification(t *testing.T) {
	const mac, other = testMAC, "0000000000000000000000000000000000000000000000000000000000000000"
	stricter := map[string]string{ // headers that are refused here alone, and why
		"t=1795828230,v1=" + signatureOf("1795828230", testBody, testSecret): "a time more than 300 s ahead",
		"t=1,t=1795827929,v1=" + mac:                                         "two times",
		"t=1795827929x,v1=" + mac:                                            "letters in the time",
		"t=01795827929,v1=" + mac:                                            "a zero before the time",
		"t= 1795827929,v1=" + mac:                                            "a space before the time",
		"t=+1795827929,v1=" + mac:                                            "a sign before the time",
		"t=1795827929,v1=" + mac + "=" + other:                               "an = behind the v1",
	}
	headers := []string{
		"t=1795827929,v1=" + mac, "v1=" + mac + ",t=1795827929", "t=1795827929,v1=" + other + ",v1=" + mac, "t=1795827929,v0=x,v1=" + mac,
		"t=1795827629,v1=" + signatureOf("1795827629", testBody, testSecret), // 300 s old
		"t=1795827628,v1=" + signatureOf("1795827628", testBody, testSecret),
		"t=1795828229,v1=" + signatureOf("1795828229", testBody, testSecret),
		"t=01795827929,v1=" + signatureOf("01795827929", testBody, testSecret),
		"t=1795827929.5,v1=" + signatureOf("1795827929.5", testBody, testSecret),
		"t=,v1=" + signatureOf("", testBody, testSecret), "t=-1,v1=" + signatureOf("-1", testBody, testSecret),
		"", "t=1795827929", "v1=" + mac, "t=1795827929,v1=", "t=1795827929,v1=" + other, "t=1795827929, v1=" + mac, "t=1795827929,v0=" + mac,
		"t=1795827929,V1=" + mac, "t=1795827929,v1=" + strings.ToUpper(mac), "t=1795827929,v1=" + mac[:63], "t=1795827929,v1=" + mac + "0",
		"t=1795827930,v1=" + mac, "t=1795827929;v1=" + mac, "nonsense", ",", "=", "t=1795827929,v1", "t=NaN,v1=" + mac, "t=1e9,v1=" + mac,
	}
	for header := range stricter {
		headers = append(headers, header)
	}
	var tasks []map[string]any
	for _, header := range headers {
		tasks = append(tasks, map[string]any{
			"task": "verify", "payload": string(testBody), "header": header, "secret": testSecret, "now": signedAt,
		})
	}
	accepted := 0
	for i, result := range stripetest.RunSDK(t, sdkDir, tasks) {
		s, err := ReadSignature(signatureHeader(headers[i]), time.Unix(signedAt, 0))
		got, theirs, why := err == nil && s.Verify(testBody, testSecret), result == "evt_1", stricter[headers[i]]
		if got {
			accepted++
		}
		if got != theirs && why == "" || why != "" && (got || !theirs) {
			t.Errorf("%s: accepted %v, while Stripe's library says %v (stricter: %q)", headers[i], got, result, why)
		}
	}
	if accepted != 6 {
		t.Errorf("%d headers were accepted, want 6", accepted)
	}
}

// recorded is a request as far as it counts.
type recorded struct {
	Method, Path string
	Form         url.Values // of the query and the body
	Version      string
	ContentType  string
	Bearer       string
}

// Stripe's library sends the same requests.
func TestIntegrationRequests(t *testing.T) {
	var requests []recorded
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		contentType := r.Header.Get("Content-Type")
		if r.Method == http.MethodGet {
			contentType = "" // theirs names one
		}
		requests = append(requests, recorded{
			r.Method, r.URL.Path, r.Form, r.Header.Get("Stripe-Version"), contentType, r.Header.Get("Authorization"),
		})
		io.WriteString(w, "{}")
	}))
	defer server.Close()
	metadata := map[string]any{"tenant": "acme", "tokens": "10000"}
	item := func(price string, n int) []any { return []any{map[string]any{"price": price, "quantity": n}} }
	theirs := map[string]struct { // by the name in allCalls
		resource, method string
		args             []any
	}{
		"a pack for somebody new": {"checkout.sessions", "create", []any{map[string]any{
			"mode": "payment", "line_items": item("price_pack", 3), "success_url": "https://shop.example/ok?s={CHECKOUT_SESSION_ID}",
			"client_reference_id": "acme:u-1", "customer_creation": "always", "metadata": metadata,
			"payment_intent_data": map[string]any{"metadata": metadata},
		}}},
		"a pack for a customer": {"checkout.sessions", "create", []any{map[string]any{
			"mode": "payment", "line_items": item("price_pack", 1), "customer": "cus_1",
		}}},
		"a subscription": {"checkout.sessions", "create", []any{map[string]any{
			"mode": "subscription", "line_items": item("price_basic", 1), "success_url": "https://shop.example/ok",
			"cancel_url": "https://shop.example/?a=b&c=ä d", "metadata": map[string]any{"tenant": "acme"},
			"subscription_data": map[string]any{"metadata": map[string]any{"tenant": "acme"}},
		}}},
		"a portal": {"billingPortal.sessions", "create", []any{map[string]any{
			"customer": "cus_1", "return_url": "https://shop.example/account",
		}}},
		"a subscription's state": {"subscriptions", "retrieve", []any{"sub_1"}},
		"a charge":               {"charges", "retrieve", []any{"ch_1"}},
		"an invoice":             {"invoices", "retrieve", []any{"in_1"}},
		"an invoice's lines":     {"invoices", "listLineItems", []any{"in_1", map[string]any{"limit": 100}}},
		"a payment's invoice": {"invoicePayments", "list", []any{map[string]any{
			"payment": map[string]any{"type": "payment_intent", "payment_intent": "pi_1"},
		}}},
	}
	for _, test := range allCalls {
		call, ok := theirs[test.name]
		if !ok {
			continue // the same request as another's
		}
		requests = nil
		_, _ = test.call(NewClient(server.URL).Account(testKey)) // the response is not understood
		stripetest.RunSDK(t, sdkDir, []map[string]any{{
			"task": "call", "port": server.Listener.Addr().(*net.TCPAddr).Port, "key": testKey, "version": Version,
			"resource": call.resource, "method": call.method, "args": call.args,
		}})
		if len(requests) != 2 || !reflect.DeepEqual(requests[0], requests[1]) {
			t.Errorf("%s: ours and theirs are\n%+v", test.name, requests)
		}
		delete(theirs, test.name)
	}
	if len(theirs) > 0 {
		t.Errorf("calls that were not made: %v", theirs)
	}
}

// stripe-mock finds nothing wrong with any call, and what it responds is read.
func TestIntegrationStripeMock(t *testing.T) {
	mock := stripetest.StartMock(t)
	a := NewClient(mock).Account("sk_test_123")
	for _, test := range allCalls {
		_, err := test.call(a)
		if test.name == "an invoice's lines" { // they lack their prices
			if !errors.Is(err, ErrShape) || !strings.HasSuffix(err.Error(), "data[0].pricing must have a price") {
				t.Errorf("%s: %v", test.name, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	for name, f := range map[string]form{ // it does check
		"an unknown parameter": {"mode": {"payment"}, "line_item[0][price]": {"price_1"}},
		"an unknown mode":      {"mode": {"gift"}},
		"no number":            {"mode": {"payment"}, "line_items[0][quantity]": {"many"}},
	} {
		err := a.post(t.Context(), "checkout/sessions", f, "", session(new(Session)))
		refused, ok := errors.AsType[*Error](err)
		if !ok || refused.Status != 400 || refused.Type != "invalid_request_error" || refused.Message == "" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err := NewClient(mock).Account("wrong").Charge(t.Context(), "ch_1")
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != 401 || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a wrong key: %v", err)
	}
}

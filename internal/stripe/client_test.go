package stripe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const testKey = "sk_test_51AbCdEfGhIjKlMnOp"

// newAccount returns an account at a server that responds by serve.
func newAccount(t *testing.T, serve http.HandlerFunc) Account {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	return NewClient(server.URL + "/").Account(testKey)
}

// respond responds with a body.
func respond(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

// A call is a method of Account with arguments.
type call func(Account) (any, error)

func createSession(c Checkout) call {
	return func(a Account) (any, error) { return a.CreateSession(context.Background(), "key-1", c) }
}

const openSession = `{"id":"cs_test_1","mode":"payment","payment_status":"unpaid","url":"https://checkout.stripe.com/c/1","metadata":{}}`

// allCalls has each method once, the request that it sends, a response to it, and what it returns then.
var allCalls = []struct {
	name     string
	call     call
	request  string // method, path and query, and body
	response string
	want     any
}{
	{
		"a pack for somebody new", createSession(Checkout{
			Mode: ModePayment, Price: "price_pack", Quantity: 3, SuccessURL: "https://shop.example/ok?s={CHECKOUT_SESSION_ID}",
			ClientReferenceID: "acme:u-1", Metadata: map[string]string{"tenant": "acme", "tokens": "10000", "empty": ""},
		}),
		"POST /v1/checkout/sessions client_reference_id=acme%3Au-1&customer_creation=always&line_items[0][price]=price_pack&" +
			"line_items[0][quantity]=3&metadata[tenant]=acme&metadata[tokens]=10000&mode=payment&" +
			"payment_intent_data[metadata][tenant]=acme&payment_intent_data[metadata][tokens]=10000&" +
			"success_url=https%3A%2F%2Fshop.example%2Fok%3Fs%3D%7BCHECKOUT_SESSION_ID%7D",
		openSession,
		Session{ID: "cs_test_1", Mode: ModePayment, URL: "https://checkout.stripe.com/c/1", Metadata: map[string]string{}},
	},
	{
		"a pack for a customer", createSession(Checkout{Mode: ModePayment, Price: "price_pack", Quantity: 1, Customer: "cus_1"}),
		"POST /v1/checkout/sessions customer=cus_1&line_items[0][price]=price_pack&line_items[0][quantity]=1&mode=payment",
		openSession,
		Session{ID: "cs_test_1", Mode: ModePayment, URL: "https://checkout.stripe.com/c/1", Metadata: map[string]string{}},
	},
	{
		"a subscription", createSession(Checkout{
			Mode: ModeSubscription, Price: "price_basic", Quantity: 1, SuccessURL: "https://shop.example/ok",
			CancelURL: "https://shop.example/?a=b&c=ä d",
			Metadata:  map[string]string{"tenant": "acme"},
		}),
		"POST /v1/checkout/sessions cancel_url=https%3A%2F%2Fshop.example%2F%3Fa%3Db%26c%3D%C3%A4+d&line_items[0][price]=price_basic&" +
			"line_items[0][quantity]=1&metadata[tenant]=acme&mode=subscription&subscription_data[metadata][tenant]=acme&" +
			"success_url=https%3A%2F%2Fshop.example%2Fok",
		strings.Replace(openSession, "payment", "subscription", 1),
		Session{ID: "cs_test_1", Mode: ModeSubscription, URL: "https://checkout.stripe.com/c/1", Metadata: map[string]string{}},
	},
	{
		"a portal", func(a Account) (any, error) {
			return a.CreatePortal(context.Background(), "key-1", "cus_1", "https://shop.example/account")
		},
		"POST /v1/billing_portal/sessions customer=cus_1&return_url=https%3A%2F%2Fshop.example%2Faccount",
		`{"id":"bps_1","object":"billing_portal.session","url":"https://billing.stripe.com/p/1"}`,
		"https://billing.stripe.com/p/1",
	},
	{
		"a subscription's state", func(a Account) (any, error) { return a.Subscription(context.Background(), "sub_1") },
		"GET /v1/subscriptions/sub_1 ",
		`{"id":"sub_1","customer":"cus_1","status":"active","metadata":{},"items":{"data":[{"price":{"id":"price_basic"},"quantity":1,` +
			`"current_period_start":1795827900,"current_period_end":1798419900}],"has_more":false}}`,
		Subscription{ID: "sub_1", Status: Active, Metadata: map[string]string{},
			Items: []Item{{"price_basic"}}},
	},
	{
		"a charge", func(a Account) (any, error) { return a.Charge(context.Background(), "ch_1") },
		"GET /v1/charges/ch_1 ",
		`{"id":"ch_1","amount":100,"amount_refunded":50,"currency":"eur","metadata":{},"payment_intent":"pi_1"}`,
		Charge{ID: "ch_1", Amount: 100, AmountRefunded: 50, Metadata: map[string]string{}, PaymentIntent: "pi_1"},
	},
	{
		"an invoice", func(a Account) (any, error) { return a.Invoice(context.Background(), "in_1") },
		"GET /v1/invoices/in_1 ",
		`{"id":"in_1","status":"open","billing_reason":"manual","amount_paid":0,"currency":"eur","lines":{"data":[{}],"has_more":true}}`,
		Invoice{ID: "in_1"},
	},
	{
		"an invoice's lines", func(a Account) (any, error) { return a.InvoiceLines(context.Background(), "in_1") },
		"GET /v1/invoices/in_1/lines?limit=100 ",
		`{"data":[{"id":"il_1","amount":1,"period":{"start":1795827900,"end":1798419900},"pricing":null}],"has_more":false}`,
		[]Line{{ID: "il_1", Quantity: 1, Amount: 1}},
	},
	{
		"a payment's invoice", func(a Account) (any, error) { return a.InvoiceOfPayment(context.Background(), "pi_1") },
		"GET /v1/invoice_payments?payment[payment_intent]=pi_1&payment[type]=payment_intent ",
		`{"data":[{"id":"inpay_1","invoice":"in_1","status":"paid"}],"has_more":false}`,
		"in_1",
	},
	{
		"few members of a payment", func(a Account) (any, error) { return a.InvoiceOfPayment(context.Background(), "pi_1") },
		"GET /v1/invoice_payments?payment[payment_intent]=pi_1&payment[type]=payment_intent ", `{"data":[{"invoice":"in_1"}]}`, "in_1",
	},
	{
		"few members of a session", createSession(Checkout{Mode: ModePayment, Price: "price_pack", Quantity: 1, Customer: "cus_1"}),
		"POST /v1/checkout/sessions customer=cus_1&line_items[0][price]=price_pack&line_items[0][quantity]=1&mode=payment",
		`{"url":"https://checkout.stripe.com/c/1"}`, Session{URL: "https://checkout.stripe.com/c/1"},
	},
	{
		"few members of a charge", func(a Account) (any, error) { return a.Charge(context.Background(), "ch_1") },
		"GET /v1/charges/ch_1 ", `{"id":"ch_1"}`, Charge{ID: "ch_1"},
	},
	{
		"few members of an invoice", func(a Account) (any, error) { return a.Invoice(context.Background(), "in_1") },
		"GET /v1/invoices/in_1 ", `{"id":"in_1","subscription":"sub_1"}`, Invoice{ID: "in_1", Subscription: "sub_1", IsPaid: true},
	},
	{
		"few members of a subscription", func(a Account) (any, error) { return a.Subscription(context.Background(), "sub_1") },
		"GET /v1/subscriptions/sub_1 ", `{"id":"sub_1","status":"active","metadata":{},"items":{"data":[{"price":{"id":"price_basic"}}]}}`,
		Subscription{ID: "sub_1", Status: Active, Metadata: map[string]string{}, Items: []Item{{"price_basic"}}},
	},
	{
		"a payment without an invoice", func(a Account) (any, error) { return a.InvoiceOfPayment(context.Background(), "pi_1") },
		"GET /v1/invoice_payments?payment[payment_intent]=pi_1&payment[type]=payment_intent ", `{"data":[],"has_more":false}`, "",
	},
}

// Each call sends what Stripe documents, and reads what it responds.
func TestCalls(t *testing.T) {
	brackets := strings.NewReplacer("%5B", "[", "%5D", "]")
	for _, test := range allCalls {
		t.Run(test.name, func(t *testing.T) {
			a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				got := brackets.Replace(fmt.Sprintf("%s %s %s", r.Method, r.URL, body))
				if err != nil || got != test.request {
					t.Errorf("%v\ngot  %s\nwant %s", err, got, test.request)
				}
				want := http.Header{
					"Authorization": {"Bearer " + testKey}, "Stripe-Version": {"2026-10-28.endive"}, "Accept": {"application/json"},
					"User-Agent": {"tollgate"}, "Accept-Encoding": {"gzip"},
				}
				if r.Method == http.MethodPost {
					want.Set("Content-Type", "application/x-www-form-urlencoded")
					want.Set("Idempotency-Key", "key-1")
					want.Set("Content-Length", fmt.Sprint(len(body)))
				}
				if !reflect.DeepEqual(r.Header, want) {
					t.Errorf("header\ngot  %v\nwant %v", r.Header, want)
				}
				io.WriteString(w, test.response)
			})
			if got, err := test.call(a); err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, test.want)
			}
		})
	}
}

// Lines beyond the first page are read, and a list without end has one.
func TestInvoiceLinePages(t *testing.T) {
	for _, test := range []struct {
		pages, perPage int // pages that have another one after them
		want           int // lines; 0: an error
	}{
		{0, 0, 0}, {0, 3, 3}, {1, 100, 200}, {19, 100, 2000}, {20, 100, 0}, {1 << 30, 1, 0}, {1, 0, 0},
	} {
		requests := 0
		a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
			after := ""
			if requests > 0 {
				after = fmt.Sprintf("il_%d", requests*test.perPage)
			}
			if got := r.URL.Query().Get("starting_after"); got != after {
				t.Errorf("page %d starts after %q, want %q", requests, got, after)
			}
			var lines []string
			for i := range test.perPage {
				lines = append(lines, fmt.Sprintf(`{"id":"il_%d","amount":1,"period":{"start":1,"end":2},"pricing":null,"parent":null}`,
					requests*test.perPage+i+1))
			}
			fmt.Fprintf(w, `{"data":[%s],"has_more":%v}`, strings.Join(lines, ","), requests < test.pages)
			requests++
		})
		lines, err := a.InvoiceLines(t.Context(), "in_1")
		fails := test.want == 0 && test.pages > 0
		if len(lines) != test.want || fails != errors.Is(err, ErrShape) || !fails && err != nil || requests > 20 {
			t.Errorf("%+v: %d requests, %d lines, %v", test, requests, len(lines), err)
		}
	}
}

// A page that names no line to go on from is not the first of many.
func TestInvoiceLinesWithoutIDs(t *testing.T) {
	a := newAccount(t, respond(`{"data":[{"amount":1}],"has_more":true}`))
	if lines, err := a.InvoiceLines(t.Context(), "in_1"); !errors.Is(err, ErrShape) {
		t.Errorf("got %d lines, %v", len(lines), err)
	}
}

// What Stripe refuses is an *Error with all that it says and without keys.
func TestErrors(t *testing.T) {
	long := strings.Repeat("é", 400)
	for _, test := range []struct {
		status int
		body   string
		want   Error
		text   string
	}{
		{400, `{"error":{"code":"resource_missing","doc_url":"https://x","message":"No such price: 'price_x'",` +
			`"param":"line_items[0][price]","request_log_url":"https://y","type":"invalid_request_error"}}`,
			Error{400, "invalid_request_error", "resource_missing", "line_items[0][price]", "No such price: 'price_x'", "req_1"},
			"Stripe responded 400 type=invalid_request_error code=resource_missing param=line_items[0][price] request=req_1: " +
				"No such price: 'price_x'"},
		{401, `{"error":{"message":"Invalid API Key provided: sk_test_************MnOp","type":"invalid_request_error"}}`,
			Error{401, "invalid_request_error", "", "", "Invalid API Key provided: sk_…", "req_1"},
			"Stripe responded 401 type=invalid_request_error request=req_1: Invalid API Key provided: sk_…"},
		{403, `{"error":{"type":"` + testKey + `","message":"` + testKey + ` (` + testKey + `) may not, nor rk_live_1 or whsec_9, task_1 may"}}`,
			Error{403, "…", "", "", "… (…) may not, nor rk_… or whsec_…, task_1 may", "…"}, ""},
		{402, `{"error":{"code":"card_declined","decline_code":"generic","message":"Your card was declined.","param":null,"type":"card_error"}}`,
			Error{402, "card_error", "card_declined", "", "Your card was declined.", "req_1"}, ""},
		{409, `{"error":{"code":"idempotency_key_in_use","message":"There is another","type":"idempotency_error"}}`,
			Error{409, "idempotency_error", "idempotency_key_in_use", "", "There is another", "req_1"}, ""},
		{429, `{"error":{"message":"Slow down","type":"rate_limit"}}`, Error{429, "rate_limit", "", "", "Slow down", "req_1"}, ""},
		{400, `{"error":{"message":"` + long + `"}}`, Error{400, "", "", "", long[:496] + "…", "req_1"}, ""},
		{500, `<html>`, Error{500, "", "", "", "internal server error", "req_1"}, "Stripe responded 500 request=req_1: internal server error"},
		{502, ``, Error{502, "", "", "", "bad gateway", "req_1"}, ""},
		{503, `{"error":"down"}`, Error{503, "", "", "", "service unavailable", "req_1"}, ""},
		{503, strings.Repeat(" ", maxResponseBytes) + `{}`, Error{503, "", "", "", "service unavailable", "req_1"}, ""},
		{404, `{"error":{"message":null,"type":null}}`, Error{404, "", "", "", "not found", "req_1"}, ""},
	} {
		a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Request-Id", map[bool]string{false: "req_1", true: testKey}[test.status == 403])
			w.WriteHeader(test.status)
			io.WriteString(w, test.body)
		})
		_, err := createSession(Checkout{})(a)
		refused, ok := errors.AsType[*Error](err)
		if !ok || *refused != test.want || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrShape) {
			t.Errorf("%d %.100s:\ngot  %+v\nwant %+v", test.status, test.body, err, test.want)
		} else if test.text != "" && err.Error() != test.text {
			t.Errorf("got  %s\nwant %s", err, test.text)
		}
	}
}

// Redirects are not followed, so the key goes nowhere else.
func TestNoRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		var requests atomic.Int64
		a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			http.Redirect(w, r, "/elsewhere", status)
		})
		for _, test := range allCalls {
			requests.Store(0)
			_, err := test.call(a)
			if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != status || requests.Load() != 1 {
				t.Errorf("%d, %s: %v after %d requests", status, test.name, err, requests.Load())
			}
		}
	}
}

// A response that is not understood is an error of each call.
func TestUnknownResponses(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "no JSON": "<html>", "no object": "[]", "an empty object": "{}", "null": "null",
	} {
		a := newAccount(t, respond(body))
		for _, test := range allCalls {
			if _, err := test.call(a); !errors.Is(err, ErrShape) || errors.Is(err, ErrSyntax) {
				t.Errorf("%s, %s: got %v, want %v", name, test.name, err, ErrShape)
			}
		}
	}
	a := newAccount(t, respond(`{"id":"cs_1","mode":"payment","payment_status":"unpaid","url":null,"metadata":{}}`))
	if _, err := createSession(Checkout{})(a); !errors.Is(err, ErrShape) {
		t.Errorf("a new session without an URL: %v", err)
	}
}

// A response has at most maxResponseBytes, and no more is read.
func TestLargeResponses(t *testing.T) {
	const charge = `{"id":"ch_1","amount":1,"amount_refunded":0,"currency":"eur","metadata":{}}`
	padding := strings.Repeat(" ", maxResponseBytes-len(charge))
	a := newAccount(t, respond(charge+padding))
	if c, err := a.Charge(t.Context(), "ch_1"); err != nil || c.ID != "ch_1" {
		t.Errorf("the largest response: %+v, %v", c, err)
	}
	a = newAccount(t, respond(charge+padding+" "))
	if _, err := a.Charge(t.Context(), "ch_1"); !errors.Is(err, ErrShape) {
		t.Errorf("a larger one: %v", err)
	}
	written := make(chan int, 1)
	a = newAccount(t, func(w http.ResponseWriter, _ *http.Request) {
		n, total := 0, 0
		for err := error(nil); err == nil; total += n {
			n, err = io.WriteString(w, padding)
		}
		written <- total
	})
	if _, err := a.Charge(t.Context(), "ch_1"); !errors.Is(err, ErrShape) {
		t.Errorf("an endless one: %v", err)
	}
	if got := <-written; got > 8*maxResponseBytes { // much is in buffers
		t.Errorf("%d bytes of an endless response were sent", got)
	}
}

// Only IDs become a part of a path.
func TestPaths(t *testing.T) {
	a := newAccount(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("it requests %s", r.URL) })
	for _, id := range []string{"", ".", "..", "a/b", "a?b", "a%2fb", "a b", "ä", "a#", strings.Repeat("a", 256)} {
		for name, call := range map[string]func() error{
			"Subscription": func() error { _, err := a.Subscription(t.Context(), id); return err },
			"Charge":       func() error { _, err := a.Charge(t.Context(), id); return err },
			"Invoice":      func() error { _, err := a.Invoice(t.Context(), id); return err },
			"InvoiceLines": func() error { _, err := a.InvoiceLines(t.Context(), id); return err },
		} {
			if err := call(); !errors.Is(err, ErrShape) {
				t.Errorf("%s of %q: %v", name, id, err)
			}
		}
	}
}

// Without an idempotency key, each POST has one of its own. With one, a POST whose connection breaks is sent again.
func TestIdempotencyKeys(t *testing.T) {
	var mu sync.Mutex // the requests come over different connections
	var keys []string
	broken := false
	a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) == 3 {
			broken = true
			panic(http.ErrAbortHandler) // as a balancer that restarts
		}
		io.WriteString(w, openSession)
	})
	for _, key := range []string{"", "", "mine"} {
		if _, err := a.CreateSession(t.Context(), key, Checkout{}); err != nil {
			t.Error(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(keys) != 4 || !broken || keys[0] == keys[1] || len(keys[0]) < 20 || len(keys[1]) < 20 || keys[2] != "mine" || keys[3] != "mine" {
		t.Errorf("the keys are %q", keys)
	}
}

// A call ends after 10 s, or with its context, also within a response.
func TestDeadlines(t *testing.T) {
	t.Run("a silent server", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := silentAccount()
			began := time.Now()
			_, err := a.Charge(t.Context(), "ch_1")
			if took := time.Since(began); !errors.Is(err, ErrUnavailable) || took != 10*time.Second {
				t.Errorf("%v after %s", err, took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began = time.Now()
			_, err = a.Charge(ctx, "ch_1")
			if took := time.Since(began); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Errorf("%v after %s", err, took)
			}
		})
	})
	t.Run("half a response", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := newAccount(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"id":`)
			w.(http.Flusher).Flush()
			cancel()
			<-r.Context().Done()
		})
		if _, err := a.Charge(ctx, "ch_1"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("a cut response", func(t *testing.T) {
		a := newAccount(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"id":`)
		})
		if _, err := a.Charge(t.Context(), "ch_1"); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	})
}

// silentAccount returns an account at a server that accepts connections and says nothing.
func silentAccount() Account {
	client := NewClient("http://stripe.test")
	client.client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		conn, peer := net.Pipe()
		go io.Copy(io.Discard, peer)
		return conn, nil
	}
	return client.Account(testKey)
}

// No error has the API key in it, wherever it comes from.
func TestErrorsHaveNoKey(t *testing.T) {
	closed := httptest.NewServer(respond(""))
	closed.Close()
	for name, a := range map[string]Account{
		"no server":             NewClient(closed.URL).Account(testKey),
		"no URL":                NewClient("http://a b").Account(testKey),
		"no scheme":             NewClient("stripe").Account(testKey),
		"a key with a new line": NewClient(closed.URL).Account(testKey + "\n"),
	} {
		for _, test := range allCalls {
			_, err := test.call(a)
			if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "sk_") || strings.Contains(err.Error(), testKey[8:]) {
				t.Errorf("%s, %s: %v", name, test.name, err)
			}
		}
	}
}

func TestIsLive(t *testing.T) {
	for key, want := range map[string]bool{
		"sk_live_1": true, "rk_live_1": true, "sk_test_1": false, "rk_test_1": false, "sk_1": false, "": false, "sk_test_live": false,
	} {
		if got := NewClient(DefaultURL).Account(key).IsLive(); got != want {
			t.Errorf("%s: got %v, want %v", key, got, want)
		}
	}
}

package stripe_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"tollgate/internal/stripe"
)

// serveWebhook refuses a webhook that Stripe has not signed, most of them before the body is read.
func serveWebhook(w http.ResponseWriter, r *http.Request) {
	signature, err := stripe.ReadSignature(r.Header, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil || !signature.Verify(body, "whsec_new", "whsec_old") {
		http.Error(w, "not signed", http.StatusBadRequest)
		return
	}
	event, err := stripe.ReadEvent(body)
	switch {
	case errors.Is(err, stripe.ErrSyntax):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case err != nil: // Stripe sends it again, for days
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch event.Kind {
	case stripe.SessionCompleted:
		if s := event.Session; s.Mode == stripe.ModePayment && s.IsPaid {
			fmt.Fprintf(w, "grant what %v says, once for %s", s.Metadata, s.ID)
		}
	case stripe.InvoicePaid:
		fmt.Fprintf(w, "grant the lines, once for %s", event.Invoice.ID)
	case stripe.SubscriptionChanged, stripe.SubscriptionDeleted:
		fmt.Fprintf(w, "ask for the state of %s", event.Subscription.ID)
	}
}

func ExampleReadEvent() {
	body := []byte(`{"object":"event","id":"evt_1","type":"checkout.session.completed","created":1795827929,"livemode":false,
		"data":{"object":{"id":"cs_1","mode":"payment","payment_status":"paid","metadata":{"tokens":"10000"}}}}`)
	at := fmt.Sprint(time.Now().Unix())
	mac := hmac.New(sha256.New, []byte("whsec_old"))
	mac.Write([]byte(at + "." + string(body)))

	for _, header := range []string{fmt.Sprintf("t=%s,v1=%x", at, mac.Sum(nil)), "t=" + at + ",v1=0", ""} {
		r := httptest.NewRequest("POST", "/webhooks/stripe", bytes.NewReader(body))
		r.Header.Set("Stripe-Signature", header)
		w := httptest.NewRecorder()
		serveWebhook(w, r)
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 grant what map[tokens:10000] says, once for cs_1
	// 400 not signed
	//
	// 400 invalid Stripe-Signature: it has no time
}

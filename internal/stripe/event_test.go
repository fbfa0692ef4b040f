package stripe

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/strict"
)

const (
	oldShape = "testdata/2024-06-20/"
	newShape = "testdata/2026-10-28.endive/"
)

// readPayload returns the body of an event in a file of testdata.
func readPayload(t testing.TB, path string) []byte {
	t.Helper()
	body, err := os.ReadFile(path + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return body
}

var (
	created = time.Unix(1795827929, 0).UTC()
	ours    = map[string]string{"tenant": "acme", "key": "k1"}
)

// Each object is read from the payloads of both shapes.
func TestReadEvent(t *testing.T) {
	for path, want := range map[string]Event{
		newShape + "checkout.session.completed": {ID: "evt_1new", Kind: SessionCompleted, Session: &Session{
			ID: "cs_test_a1B2c3D4", Mode: ModePayment, IsPaid: true, Customer: "cus_Q1", PaymentIntent: "pi_3Pa",
			Metadata: ours,
		}},
		newShape + "checkout.session.async_payment_failed": {ID: "evt_2new", Kind: SessionFailed, Session: &Session{
			ID: "cs_test_a1B2c3D4", Mode: ModePayment, Customer: "cus_Q1", PaymentIntent: "pi_3Pa",
			Metadata: ours,
		}},
		oldShape + "checkout.session.completed": {ID: "evt_1old", IsLive: true, Kind: SessionCompleted, Session: &Session{
			ID: "cs_test_a1B2c3D4", Mode: ModeSubscription, IsPaid: true, Customer: "cus_Q1",
			Metadata: ours,
		}},
		newShape + "invoice.paid": {ID: "evt_3new", Kind: InvoicePaid, Invoice: &Invoice{
			ID: "in_1New", IsPaid: true, Customer: "cus_Q1", Subscription: "sub_1New",
			Metadata: ours, Lines: []Line{
				{ID: "il_1", Price: "price_basic", Quantity: 2, Amount: 2000, OfSubscription: true},
				{ID: "il_2", Price: "price_basic", Quantity: 1, Amount: -333, IsProration: true},
				{
					ID: "il_3", Price: "price_premium", Quantity: 1, Amount: 700, OfSubscription: true, IsProration: true,
				},
				{ID: "il_4", Price: "price_setup", Quantity: 1, Amount: 500},
				{ID: "il_5", Quantity: 1, Amount: -867},
			},
		}},
		oldShape + "invoice.paid": {ID: "evt_3old", IsLive: true, Kind: InvoicePaid, Invoice: &Invoice{
			ID: "in_1Old", IsPaid: true, Customer: "cus_Q1", Subscription: "sub_1Old",
			Metadata: ours, MoreLines: true, Lines: []Line{
				{ID: "il_1", Price: "price_basic", Quantity: 2, Amount: 2000, OfSubscription: true},
				{ID: "il_2", Price: "price_basic", Quantity: 1, Amount: -333, IsProration: true},
				{ID: "il_3", Quantity: 1, Amount: 333},
			},
		}},
		newShape + "customer.subscription.updated": {ID: "evt_4new", Kind: SubscriptionChanged, Subscription: &Subscription{
			ID: "sub_1New", Status: PastDue, Metadata: ours,
			Items: []Item{{"price_basic"}},
		}},
		oldShape + "customer.subscription.deleted": {
			ID: "evt_4old", IsLive: true, Kind: SubscriptionDeleted, Subscription: &Subscription{
				ID: "sub_1Old", Status: Canceled, Metadata: ours,
				Items: []Item{{"price_basic"}, {"price_metered"}},
			},
		},
		newShape + "charge.refunded": {ID: "evt_5new", Kind: ChargeRefunded, Charge: &Charge{
			ID: "ch_3Pa", PaymentIntent: "pi_3Pa", Amount: 2380, AmountRefunded: 595, Metadata: ours,
		}},
		oldShape + "charge.refunded": {ID: "evt_5old", IsLive: true, Kind: ChargeRefunded, Charge: &Charge{
			ID: "ch_1Old", PaymentIntent: "pi_1Old", Amount: 2000, AmountRefunded: 2000,
			Metadata: map[string]string{}, Invoice: "in_1Old",
		}},
		newShape + "charge.dispute.created": {ID: "evt_6new", Kind: DisputeChanged, Dispute: &Dispute{
			ID: "du_1New", Charge: "ch_3Pa",
		}},
		oldShape + "charge.dispute.closed": {ID: "evt_6old", IsLive: true, Kind: DisputeChanged, Dispute: &Dispute{
			ID: "dp_1Old", Charge: "ch_1Old", IsWon: true, IsClosed: true,
		}},
	} {
		want.Type, want.Created = filepath.Base(path), created
		got, err := ReadEvent(readPayload(t, path))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %s\nwant %s", path, err, indented(t, got), indented(t, want))
		}
	}
}

func indented(t testing.TB, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Types have kinds, and no other type is read.
func TestKinds(t *testing.T) {
	for kind, test := range map[Kind]struct{ payload, types string }{
		SessionCompleted: {"checkout.session.completed", "checkout.session.completed checkout.session.async_payment_succeeded"},
		SessionFailed:    {"checkout.session.completed", "checkout.session.async_payment_failed checkout.session.expired"},
		InvoicePaid:      {"invoice.paid", "invoice.paid"},
		SubscriptionChanged: {"customer.subscription.updated", "customer.subscription.created customer.subscription.updated " +
			"customer.subscription.paused customer.subscription.resumed"},
		SubscriptionDeleted: {"customer.subscription.updated", "customer.subscription.deleted"},
		ChargeRefunded:      {"charge.refunded", "charge.refunded"},
		DisputeChanged: {"charge.dispute.created", "charge.dispute.created charge.dispute.updated charge.dispute.closed " +
			"charge.dispute.funds_withdrawn charge.dispute.funds_reinstated"},
		Ignored: {"invoice.paid", "invoice.payment_succeeded invoice.payment_failed invoice.finalized invoice_payment.paid refund.failed " +
			"charge.succeeded charge.refund.updated charge.dispute customer.subscription.trial_will_end payment_intent.succeeded Invoice.Paid"},
	} {
		for name := range strings.FieldsSeq(test.types) {
			body := readPayload(t, newShape+test.payload)
			body = bytes.Replace(body, []byte(`"type": "`+test.payload+`"`), []byte(`"type": "`+name+`"`), 1)
			if e, err := ReadEvent(body); err != nil || e.Kind != kind || e.Type != name || !e.Created.Equal(created) {
				t.Errorf("%s: got %+v, %v, want kind %d", name, e, err, kind)
			}
		}
	}
}

// What must be ignored has no object, whatever its own is like.
func TestIgnoredEvents(t *testing.T) {
	for _, body := range []string{
		`{"object":"event","id":"evt_1","type":"invoice.paid","account":"acct_1","created":1,"livemode":false,"data":{"object":{"id":"in_1"}}}`,
		`{"object":"event","id":"evt_1","type":"product.created","created":1,"livemode":false,"data":{"object":{"id":7}}}`,
		`{"object":"event","id":"evt_1","type":"product.created","account":null,"created":1,"livemode":false}`,
		`{"id":"evt_1","type":"product.created","livemode":false}`,
		`{"object":"v2.core.event","id":"evt_1","type":"invoice.paid","created":"2026-11-25T12:00:00Z","livemode":true,"data":{"object":1}}`,
	} {
		e, err := ReadEvent([]byte(body))
		want := Event{ID: "evt_1", Type: e.Type, Created: e.Created, IsLive: strings.Contains(body, "true")}
		if err != nil || e != want || e.Type == "" {
			t.Errorf("%s: got %+v, %v", body, e, err)
		}
	}
}

// What a status says of the objects that have one.
func TestStatuses(t *testing.T) {
	read := func(payload, from, to string) Event {
		t.Helper()
		body := readPayload(t, newShape+payload)
		if !bytes.Contains(body, []byte(from)) {
			t.Fatalf("%s has no %s", payload, from)
		}
		e, err := ReadEvent(bytes.Replace(body, []byte(from), []byte(to), 1))
		if err != nil {
			t.Errorf("%s with %s: %v", payload, to, err)
		}
		return e
	}
	for status, want := range map[string]bool{"paid": true, "no_payment_required": true, "unpaid": false} {
		if got := read("checkout.session.completed", `"payment_status": "paid"`, `"payment_status": "`+status+`"`).Session.IsPaid; got != want {
			t.Errorf("a session that is %s: is paid %v, want %v", status, got, want)
		}
	}
	for _, status := range []SubscriptionStatus{Active, Trialing, PastDue, Unpaid, Canceled, Incomplete, IncompleteExpired, Paused} {
		got := read("customer.subscription.updated", `"status": "past_due"`, `"status": "`+string(status)+`"`).Subscription.Status
		if got != status {
			t.Errorf("a subscription is %s, want %s", got, status)
		}
	}
	for status, want := range map[string]Dispute{
		"needs_response": {}, "under_review": {}, "won": {IsWon: true, IsClosed: true}, "lost": {IsClosed: true}, "prevented": {IsClosed: true},
		"warning_needs_response": {IsInquiry: true}, "warning_under_review": {IsInquiry: true},
		"warning_closed": {IsInquiry: true, IsClosed: true},
	} {
		got := read("charge.dispute.created", `"status": "needs_response"`, `"status": "`+status+`"`).Dispute
		if got.IsInquiry != want.IsInquiry || got.IsWon != want.IsWon || got.IsClosed != want.IsClosed {
			t.Errorf("a dispute that is %s: got %+v, want %+v", status, *got, want)
		}
	}
}

// setMember returns a payload with the member at a path set to value, or without it if value is nil. Numbers keep their
// digits.
func setMember(t testing.TB, payload []byte, value any, path ...any) []byte {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var root any
	if err := decoder.Decode(&root); err != nil {
		t.Fatal(err)
	}
	at := root
	for _, step := range path[:len(path)-1] {
		switch step := step.(type) {
		case int:
			at = at.([]any)[step]
		case string:
			at = at.(map[string]any)[step]
		}
	}
	switch step := path[len(path)-1].(type) {
	case int:
		at.([]any)[step] = value
	case string:
		if at.(map[string]any)[step] = value; value == nil {
			delete(at.(map[string]any), step)
		}
	}
	body, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// at is a path in an event's object.
func at(path ...any) []any { return append([]any{"data", "object"}, path...) }

var null = json.RawMessage("null")

// A member that is needed and missing, or has an unknown value, is an error that says which, in both shapes.
func TestUnknownShapes(t *testing.T) {
	tenLines := slices.Repeat([]struct{}{{}}, 10)
	firstLine := func(path ...any) []any { return append(at("lines", "data", 0), path...) }
	for _, test := range []struct {
		payload string
		value   any // nil: the member is missing
		path    []any
		want    string
	}{
		{newShape + "invoice.paid", nil, []any{"id"}, "id is missing"},
		{newShape + "invoice.paid", "evt 1", []any{"id"}, "id must be an ID of 1 to 255 letters, digits, _ and -"},
		{newShape + "invoice.paid", nil, []any{"type"}, "type is missing"},
		{newShape + "invoice.paid", nil, []any{"livemode"}, "livemode is missing"},
		{newShape + "invoice.paid", "true", []any{"livemode"}, "livemode must be true or false"},
		{newShape + "invoice.paid", nil, []any{"created"}, "created is missing"},
		{newShape + "invoice.paid", 1e15, []any{"created"}, "created must be a whole number from 0 to 253402300799"},
		{newShape + "invoice.paid", "v3.event", []any{"object"}, "object must be one of event, v2.core.event"},
		{newShape + "invoice.paid", nil, []any{"data"}, "data is missing"},
		{newShape + "invoice.paid", nil, []any{"data", "object"}, "data.object is missing"},
		{newShape + "invoice.paid", "in_1", []any{"data", "object"}, "data.object must be an object"},
		{newShape + "invoice.paid", "../x", at("id"), "data.object.id must be an ID of 1 to 255 letters, digits, _ and -"},
		{newShape + "invoice.paid", strings.Repeat("i", 256), at("id"), "data.object.id must be an ID of 1 to 255 letters, digits, _ and -"},
		{newShape + "invoice.paid", nil, at("lines"), "data.object.lines is missing"},
		{newShape + "invoice.paid", map[string]any{"data": tenLines}, at("lines"), "data.object.lines.has_more is missing"},
		{newShape + "invoice.paid", 0.5, firstLine("amount"), "data.object.lines.data[0].amount must be a whole number ≥ -9007199254740991"},
		{newShape + "invoice.paid", json.Number("9007199254740992"), firstLine("amount"),
			"data.object.lines.data[0].amount must be a whole number from -9007199254740991 to 9007199254740991"},
		{newShape + "invoice.paid", nil, at("parent"), "data.object.parent must name the subscription"},
		{newShape + "invoice.paid", null, at("parent"), "data.object.parent must name the subscription"},
		{newShape + "invoice.paid", nil, at("parent", "subscription_details", "subscription"), "data.object.parent must name the subscription"},
		{newShape + "invoice.paid", 7, at("parent", "subscription_details", "metadata", "key"),
			"data.object.parent.subscription_details.metadata.key must be a string"},
		{newShape + "invoice.paid", nil, firstLine("parent"), "data.object.lines.data[0].parent must say whether it is a proration"},
		{newShape + "invoice.paid", null, firstLine("parent"), "data.object.lines.data[0].parent must say whether it is a proration"},
		{newShape + "invoice.paid", null, firstLine("parent", "subscription_item_details"),
			"data.object.lines.data[0].parent must say whether it is a proration"},
		{newShape + "invoice.paid", nil, firstLine("parent", "subscription_item_details", "proration"),
			"data.object.lines.data[0].parent.subscription_item_details.proration is missing"},
		{newShape + "invoice.paid", nil, firstLine("pricing"), "data.object.lines.data[0].pricing must have a price"},
		{newShape + "invoice.paid", null, firstLine("pricing"), "data.object.lines.data[0].pricing must have a price"},
		{newShape + "invoice.paid", nil, firstLine("pricing", "price_details"), "data.object.lines.data[0].pricing must have a price"},
		{newShape + "invoice.paid", nil, firstLine("pricing", "price_details", "price"),
			"data.object.lines.data[0].pricing.price_details.price is missing"},
		{newShape + "invoice.paid", 1.5, firstLine("quantity"), "data.object.lines.data[0].quantity must be a whole number ≥ -9007199254740991"},
		{oldShape + "invoice.paid", nil, at("subscription"), "data.object.parent must name the subscription"},
		{oldShape + "invoice.paid", json.RawMessage(`{"id":"il_1","amount":1,"period":{"start":1,"end":2},"type":"subscription"}`),
			at("lines", "data", 0), "data.object.lines.data[0].pricing must have a price"},
		{oldShape + "invoice.paid", nil, firstLine("proration"), "data.object.lines.data[0].parent must say whether it is a proration"},
		{newShape + "invoice.paid", json.RawMessage(`{"id":"in_1","lines":{"data":[]}}`), []any{"data", "object"},
			"data.object.parent must name the subscription"},
		{newShape + "checkout.session.completed", nil, at("mode"), "data.object.mode is missing"},
		{newShape + "checkout.session.completed", nil, at("payment_status"), "data.object.payment_status is missing"},
		{newShape + "checkout.session.completed", "maybe", at("payment_status"),
			"data.object.payment_status must be one of paid, unpaid, no_payment_required"},
		{newShape + "checkout.session.completed", "gift", at("mode"), "data.object.mode must be one of payment, subscription, setup"},
		{newShape + "checkout.session.completed", nil, at("metadata"), "data.object.metadata is missing"},
		{newShape + "checkout.session.completed", []int{}, at("metadata"), "data.object.metadata must be an object"},
		{newShape + "checkout.session.completed", map[string]int{"id": 7}, at("payment_intent"),
			"data.object.payment_intent.id must be an ID of 1 to 255 letters, digits, _ and -"},
		{newShape + "customer.subscription.updated", "dormant", at("status"), "data.object.status must be one of active, trialing, past_due, " +
			"unpaid, canceled, incomplete, incomplete_expired, paused"},
		{newShape + "charge.refunded", nil, at("amount_refunded"), "data.object.amount_refunded is missing"},
		{newShape + "charge.refunded", -1, at("amount_refunded"), "data.object.amount_refunded must be a whole number ≥ 0"},
		{newShape + "charge.dispute.created", nil, at("charge"), "data.object.charge is missing"},
		{newShape + "charge.dispute.created", null, at("charge"), "data.object.charge must be an ID of 1 to 255 letters, digits, _ and -"},
		{newShape + "checkout.session.completed", 7, at("customer"), "data.object.customer must be a string"},
		{newShape + "charge.dispute.created", "warning", at("status"), "data.object.status must be one of needs_response, under_review, won, " +
			"lost, prevented, warning_needs_response, warning_under_review, warning_closed"},
	} {
		e, err := ReadEvent(setMember(t, readPayload(t, test.payload), test.value, test.path...))
		if test.path[0] == "data" && (!strings.HasPrefix(e.ID, "evt_") || e.Type != filepath.Base(test.payload)) {
			t.Errorf("%s, %v: the event is %s of type %s", test.payload, test.path, e.ID, e.Type)
		}
		if want := "unknown shape of what Stripe has sent: " + test.want; !errors.Is(err, ErrShape) || err.Error() != want {
			t.Errorf("%s, %v %v:\ngot  %v\nwant %s", test.payload, test.path, test.value, err, want)
		}
	}
}

// Variants that are understood.
func TestKnownVariants(t *testing.T) {
	firstLine := func(path ...any) []any { return append(at("lines", "data", 0), path...) }
	for name, test := range map[string]struct {
		payload string
		value   any
		path    []any
		got     func(Event) bool
	}{
		"an expanded customer": {newShape + "invoice.paid", map[string]any{"id": "cus_2", "object": "customer"}, at("customer"),
			func(e Event) bool { return e.Invoice.Customer == "cus_2" }},
		"an expanded subscription": {newShape + "invoice.paid", map[string]any{"id": "sub_2"},
			at("parent", "subscription_details", "subscription"), func(e Event) bool { return e.Invoice.Subscription == "sub_2" }},
		"an expanded price": {newShape + "invoice.paid", map[string]any{"id": "price_2"}, firstLine("pricing", "price_details", "price"),
			func(e Event) bool { return e.Invoice.Lines[0].Price == "price_2" }},
		"a plan alone": {oldShape + "invoice.paid", nil, firstLine("price"),
			func(e Event) bool { return e.Invoice.Lines[0].Price == "price_basic" }},
		"no quantity": {newShape + "invoice.paid", null, firstLine("quantity"), func(e Event) bool { return e.Invoice.Lines[0].Quantity == 1 }},
		"a quantity of 0": {newShape + "invoice.paid", 0, firstLine("quantity"),
			func(e Event) bool { return e.Invoice.Lines[0].Quantity == 0 }},
		"nothing to pay": {newShape + "invoice.paid", 0, at("amount_paid"),
			func(e Event) bool { return e.Invoice.IsPaid }},
		"an invoice that is not paid": {newShape + "invoice.paid", "open", at("status"), func(e Event) bool { return !e.Invoice.IsPaid }},
		"an invoice by hand": {newShape + "invoice.paid", "manual", at("billing_reason"),
			func(e Event) bool { return e.Invoice.Subscription == "sub_1New" }},
		"an invoice that does not copy metadata": {oldShape + "invoice.paid", nil, at("subscription_details"),
			func(e Event) bool { return e.Invoice.Metadata == nil && e.Invoice.Subscription == "sub_1Old" }},
		"what nothing needs": {newShape + "invoice.paid", 0.5, at("amount_paid"), func(e Event) bool { return e.Invoice.IsPaid }},
		"the largest amount": {newShape + "charge.refunded", json.Number("9007199254740991"), at("amount"),
			func(e Event) bool { return e.Charge.Amount == 1<<53-1 }},
		"an item with a plan alone": {oldShape + "customer.subscription.deleted", nil, at("items", "data", 0, "price"),
			func(e Event) bool { return e.Subscription.Items[0].Price == "price_basic" }},
	} {
		e, err := ReadEvent(setMember(t, readPayload(t, test.payload), test.value, test.path...))
		if err != nil || !test.got(e) {
			t.Errorf("%s: %v, got %s", name, err, indented(t, e))
		}
	}
}

// What nothing needs may be missing.
func TestFewMembers(t *testing.T) {
	const details = `"subscription_details":{"subscription":"sub_1","metadata":{"a":"b"}}`
	invoice := Invoice{ID: "in_1", IsPaid: true, Subscription: "sub_1", Metadata: map[string]string{"a": "b"},
		Lines: []Line{{Price: "price_1", Quantity: 2, OfSubscription: true}}}
	for _, test := range []struct {
		kind, object string
		got          func(Event) any
		want         any
	}{
		{"checkout.session.completed", `{"id":"cs_1","mode":"payment","payment_status":"paid","metadata":{}}`,
			func(e Event) any { return e.Session.IsPaid }, true},
		{"checkout.session.expired", `{"id":"cs_1","status":"expired"}`, func(e Event) any { return e.Session.ID }, "cs_1"},
		{"customer.subscription.updated", `{"id":"sub_1","metadata":{}}`, func(e Event) any { return e.Subscription.ID }, "sub_1"},
		{"customer.subscription.deleted", `{"id":"sub_1","status":"canceled","metadata":{}}`,
			func(e Event) any { return e.Subscription.ID }, "sub_1"},
		{"charge.refunded", `{"id":"ch_1","payment_intent":"pi_1","amount":3,"amount_refunded":1}`,
			func(e Event) any { return *e.Charge }, Charge{ID: "ch_1", PaymentIntent: "pi_1", Amount: 3, AmountRefunded: 1}},
		{"charge.dispute.closed", `{"id":"dp_1","charge":"ch_1","status":"won"}`,
			func(e Event) any { return *e.Dispute }, Dispute{ID: "dp_1", Charge: "ch_1", IsWon: true, IsClosed: true}},
		{"invoice.paid", `{"id":"in_1","parent":{` + details + `},"lines":{"data":[{"quantity":2,` +
			`"parent":{"subscription_item_details":{"proration":false}},"pricing":{"price_details":{"price":"price_1"}}}]}}`,
			func(e Event) any { return *e.Invoice }, invoice},
		{"invoice.paid", `{"id":"in_1","subscription":"sub_1",` + details + `,"lines":{"data":[{"quantity":2,` +
			`"type":"subscription","proration":false,"price":{"id":"price_1"}}]}}`,
			func(e Event) any { return *e.Invoice }, invoice},
	} {
		body := `{"id":"evt_1","type":"` + test.kind + `","livemode":false,"created":1,"data":{"object":` + test.object + `}}`
		if e, err := ReadEvent([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		} else if got := test.got(e); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", body, got, test.want)
		}
	}
}

// A page has at most 100 elements, however small they are.
func TestPages(t *testing.T) {
	lines := func(n int) []byte {
		data := make([]json.RawMessage, n)
		for i := range data {
			data[i] = json.RawMessage(`{"id":"il_1","amount":1,"period":{"start":1,"end":2}}`)
		}
		return setMember(t, readPayload(t, newShape+"invoice.paid"), data, at("lines", "data")...)
	}
	if e, err := ReadEvent(lines(100)); err != nil || len(e.Invoice.Lines) != 100 {
		t.Errorf("100 lines: %v", err)
	}
	const want = "unknown shape of what Stripe has sent: data.object.lines.data[100] is one too many"
	if e, err := ReadEvent(lines(10_000)); err == nil || err.Error() != want || len(e.Invoice.Lines) != 100 {
		t.Errorf("10,000 lines: %v, and %d were read", err, len(e.Invoice.Lines))
	}
}

// Bodies that are not JSON are told from those that are not understood.
func TestReadEventSyntax(t *testing.T) {
	for _, body := range []string{"", " ", "{", "payload=x", "{}}", "\ufeff{}", "\xff", `{"a":` + strings.Repeat("[", 20_000)} {
		if _, err := ReadEvent([]byte(body)); !errors.Is(err, ErrSyntax) || errors.Is(err, ErrShape) {
			t.Errorf("%.20q: got %v, want %v", body, err, ErrSyntax)
		}
	}
	for _, body := range []string{"{}", "[]", "null", "1", `"event"`, " {} \n", `{"object":null}`} {
		if _, err := ReadEvent([]byte(body)); !errors.Is(err, ErrShape) || errors.Is(err, ErrSyntax) {
			t.Errorf("%q: got %v, want %v", body, err, ErrShape)
		}
	}
}

// Whatever is signed, reading it neither panics nor returns what it must not: IDs that are unsafe in names, and an
// object that does not fit the kind.
func FuzzReadEvent(f *testing.F) {
	for _, dir := range []string{oldShape, newShape} {
		files, err := filepath.Glob(dir + "*.json")
		if err != nil || len(files) == 0 {
			f.Fatal("no payloads: ", err)
		}
		for _, file := range files {
			var compact bytes.Buffer
			if err := json.Compact(&compact, readPayload(f, strings.TrimSuffix(file, ".json"))); err != nil {
				f.Fatal(err)
			}
			f.Add(compact.Bytes())
		}
	}
	f.Add([]byte(`{"object":"v2.core.event","id":"evt_1","type":"v1.billing.meter.error_report_triggered","livemode":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := ReadEvent(body)
		if err != nil {
			if isJSON := strict.Check(body) == nil; errors.Is(err, ErrSyntax) == isJSON || errors.Is(err, ErrShape) != isJSON {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		ids := []string{e.ID}
		objects := map[Kind]bool{SessionCompleted: e.Session != nil, SessionFailed: e.Session != nil, InvoicePaid: e.Invoice != nil,
			SubscriptionChanged: e.Subscription != nil, SubscriptionDeleted: e.Subscription != nil,
			ChargeRefunded: e.Charge != nil, DisputeChanged: e.Dispute != nil, Ignored: true}
		if !objects[e.Kind] {
			t.Errorf("%q: kind %d has no object", body, e.Kind)
		}
		switch {
		case e.Session != nil:
			ids = append(ids, e.Session.ID)
		case e.Invoice != nil:
			ids = append(ids, e.Invoice.ID)
		case e.Subscription != nil:
			ids = append(ids, e.Subscription.ID)
		case e.Charge != nil:
			ids = append(ids, e.Charge.ID)
		case e.Dispute != nil:
			ids = append(ids, e.Dispute.ID, e.Dispute.Charge)
		}
		for _, id := range ids {
			if !isID(id) {
				t.Errorf("%q: the ID %q", body, id)
			}
		}
	})
}

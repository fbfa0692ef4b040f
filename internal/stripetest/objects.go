package stripetest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

type session struct {
	id, mode, price, status, payment, url   string
	customer, intent, subscription, invoice string
	clientReference                         string
	quantity                                int64
	metadata, inner                         map[string]string // inner is of the subscription or payment intent
}

type subscription struct {
	id, customer, status, price string
	quantity                    int64
	start, end                  time.Time
	cancelAtPeriodEnd           bool
	metadata                    map[string]string
}

type invoice struct {
	id, reason, status, customer, subscription, intent, charge string
	lines                                                      []Line
	metadata                                                   map[string]string
	free                                                       bool // a coupon or a trial covers all
}

// A Line is a line of an invoice.
type Line struct {
	Price     string
	Quantity  int64
	Proration bool
	Item      bool // it is an invoice item, not one of the subscription

	id         string
	start, end time.Time
}

type charge struct {
	id, intent, customer, invoice string
	amount, refunded              int64
	metadata                      map[string]string
}

type dispute struct{ id, charge, intent, status string }

// newID returns an ID with a prefix. No other server has it.
func (s *Server) newID(prefix string) string {
	s.n++
	return fmt.Sprintf("%s_%d%s", prefix, s.n, rand.Text()[:10])
}

// metadataOf returns the parameters of a form that are metadata in the parameter name.
func metadataOf(form url.Values, name string) map[string]string {
	metadata := make(map[string]string)
	for parameter := range form {
		if rest, ok := strings.CutPrefix(parameter, name+"["); ok {
			metadata[strings.TrimSuffix(rest, "]")] = form.Get(parameter)
		}
	}
	return metadata
}

// unknown returns the refusal of the first parameter of a form that is not among known, which may be metadata.
func unknown(form url.Values, known ...string) *refusal {
	for _, name := range slices.Sorted(maps.Keys(form)) {
		isMetadata := strings.HasPrefix(name, "metadata[") || strings.Contains(name, "_data[metadata][")
		if !isMetadata && !slices.Contains(known, name) {
			return &refusal{http.StatusBadRequest, "invalid_request_error", "parameter_unknown", name,
				"Received unknown parameter: " + name}
		}
	}
	return nil
}

// missing returns the refusal of a parameter that names an object which does not exist.
func missing(parameter, id string) *refusal {
	status := http.StatusBadRequest
	if parameter == "id" {
		status = http.StatusNotFound
	}
	return &refusal{status, "invalid_request_error", "resource_missing", parameter, "No such object: '" + id + "'"}
}

// isURL reports whether a parameter is a URL to which Stripe redirects.
func isURL(form url.Values, name string) bool {
	u, err := url.Parse(form.Get(name))
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

func isPrice(id string) bool {
	return strings.HasPrefix(id, "price_") && !strings.HasPrefix(id, "price_none")
}

// createSession makes a Checkout Session. Prices that begin with price_none do not exist.
func (s *Server) createSession(form url.Values) (map[string]any, *refusal) {
	if mode := form.Get("mode"); mode != "payment" && mode != "subscription" {
		return nil, refuse("mode", "Invalid mode")
	}
	if wrong := s.checkSession(form); wrong != nil {
		return nil, wrong
	}
	id, mode := s.newID("cs_test"), form.Get("mode")
	inner := "payment_intent_data[metadata]"
	if mode == "subscription" {
		inner = "subscription_data[metadata]"
	}
	quantity, _ := strconv.ParseInt(form.Get("line_items[0][quantity]"), 10, 64)
	c := &session{
		id: id, mode: mode, price: form.Get("line_items[0][price]"), quantity: quantity,
		status: "open", payment: "unpaid", url: s.URL + "/c/pay/" + id,
		customer: form.Get("customer"), clientReference: form.Get("client_reference_id"),
		metadata: metadataOf(form, "metadata"), inner: metadataOf(form, inner),
	}
	s.sessions[id] = c
	s.order = append(s.order, id)
	return c.object(), nil
}

// checkSession returns the refusal of parameters of which Stripe would make no session.
func (s *Server) checkSession(form url.Values) *refusal {
	mode, price, customer := form.Get("mode"), form.Get("line_items[0][price]"), form.Get("customer")
	quantity, _ := strconv.ParseInt(form.Get("line_items[0][quantity]"), 10, 64)
	forbidden := "subscription_data[metadata]"
	if mode == "subscription" {
		forbidden = "payment_intent_data[metadata]"
	}
	switch {
	case !isPrice(price):
		return missing("line_items[0][price]", price)
	case quantity < 1 || quantity > 999_999:
		return refuse("line_items[0][quantity]", "Invalid quantity")
	case !isURL(form, "success_url") || form.Has("cancel_url") && !isURL(form, "cancel_url"):
		return refuse("success_url", "Not a valid URL")
	case customer != "" && !s.customers[customer]:
		return missing("customer", customer)
	case form.Has("customer_creation") && (customer != "" || mode != "payment"):
		return refuse("customer_creation", "customer_creation is for mode=payment without a customer")
	case len(metadataOf(form, forbidden)) > 0:
		return refuse(forbidden, "You can not pass this in this mode")
	}
	return unknown(form, "mode", "line_items[0][price]", "line_items[0][quantity]", "success_url", "cancel_url",
		"customer", "client_reference_id", "customer_creation")
}

// createPortal makes a session of the Billing Portal.
func (s *Server) createPortal(form url.Values) (map[string]any, *refusal) {
	if wrong := unknown(form, "customer", "return_url"); wrong != nil {
		return nil, wrong
	}
	if customer := form.Get("customer"); !s.customers[customer] {
		return nil, missing("customer", customer)
	}
	if !isURL(form, "return_url") {
		return nil, refuse("return_url", "Not a valid URL")
	}
	id := s.newID("bps")
	return map[string]any{
		"id": id, "object": "billing_portal.session", "customer": form.Get("customer"),
		"return_url": form.Get("return_url"), "url": s.URL + "/p/session/" + id,
	}, nil
}

// listPayments lists the payments of invoices that a payment intent has made.
func (s *Server) listPayments(intent string) map[string]any {
	data := []any{}
	for _, c := range s.charges {
		if c.intent == intent && c.invoice != "" {
			data = append(data, map[string]any{
				"id": "inpay_" + c.id, "object": "invoice_payment", "invoice": c.invoice, "status": "paid",
				"amount_paid": c.amount, "payment": map[string]any{"type": "payment_intent", "payment_intent": intent},
			})
		}
	}
	return list(data, false)
}

func list(data []any, more bool) map[string]any {
	return map[string]any{"object": "list", "data": data, "has_more": more}
}

// priceOf returns a price as an object.
func priceOf(id string) map[string]any {
	return map[string]any{"id": id, "object": "price", "currency": "eur", "unit_amount": UnitAmount, "product": "prod_1"}
}

func (s *session) object() map[string]any {
	object := map[string]any{
		"id": s.id, "object": "checkout.session", "mode": s.mode, "status": s.status, "payment_status": s.payment,
		"url": nil, "customer": orNull(s.customer), "payment_intent": orNull(s.intent), "currency": "eur",
		"subscription": orNull(s.subscription), "invoice": orNull(s.invoice), "amount_total": s.quantity * UnitAmount,
		"client_reference_id": orNull(s.clientReference), "metadata": s.metadata, "livemode": false,
	}
	if s.status == "open" {
		object["url"] = s.url
	}
	if s.payment == "no_payment_required" {
		object["amount_total"] = 0
	}
	return object
}

func (s *subscription) object(old bool) map[string]any {
	item := map[string]any{
		"id": "si_1", "object": "subscription_item", "price": priceOf(s.price), "quantity": s.quantity, "subscription": s.id,
	}
	object := map[string]any{
		"id": s.id, "object": "subscription", "customer": s.customer, "status": s.status, "livemode": false,
		"cancel_at_period_end": s.cancelAtPeriodEnd, "metadata": s.metadata, "items": list([]any{item}, false),
	}
	periods := item
	if old {
		periods = object
	}
	periods["current_period_start"], periods["current_period_end"] = s.start.Unix(), s.end.Unix()
	return object
}

// page returns at most n lines of an invoice, those after the one with an ID.
func (i *invoice) page(after string, n int, old bool) map[string]any {
	from := 1 + slices.IndexFunc(i.lines, func(l Line) bool { return l.id == after })
	to := min(len(i.lines), from+n)
	data := []any{}
	for _, l := range i.lines[from:to] {
		data = append(data, l.object(i, old))
	}
	return list(data, to < len(i.lines))
}

func (l Line) object(i *invoice, old bool) map[string]any {
	amount := l.Quantity * UnitAmount
	object := map[string]any{
		"id": l.id, "object": "line_item", "amount": amount, "currency": "eur", "quantity": l.Quantity,
		"invoice": i.id, "metadata": i.metadata, "period": map[string]any{"start": l.start.Unix(), "end": l.end.Unix()},
	}
	if old {
		object["type"], object["proration"], object["price"] = "subscription", l.Proration, priceOf(l.Price)
		object["plan"] = map[string]any{"id": l.Price, "object": "plan"}
		object["subscription"] = i.subscription
		if l.Item {
			object["type"] = "invoiceitem"
		}
		return object
	}
	kind, other := "subscription_item_details", "invoice_item_details"
	if l.Item {
		kind, other = other, kind
	}
	object["parent"] = map[string]any{
		"type": kind, kind: map[string]any{"proration": l.Proration, "subscription": i.subscription}, other: nil,
	}
	object["pricing"] = map[string]any{
		"type": "price_details", "price_details": map[string]any{"price": l.Price, "product": "prod_1"},
	}
	return object
}

// amount returns what an invoice costs.
func (i *invoice) amount() (sum int64) {
	for _, l := range i.lines {
		sum += l.Quantity * UnitAmount
	}
	if i.free {
		return 0
	}
	return sum
}

// object returns an invoice with the first 10 of its lines.
func (i *invoice) object(old bool) map[string]any {
	object := map[string]any{
		"id": i.id, "object": "invoice", "status": i.status, "billing_reason": i.reason, "customer": i.customer,
		"amount_due": i.amount(), "amount_paid": 0, "currency": "eur", "livemode": false,
		"lines": i.page("", 10, old), "metadata": map[string]any{},
	}
	if i.status == "paid" {
		object["amount_paid"] = i.amount()
	}
	details := map[string]any{"metadata": i.metadata}
	if old {
		object["subscription"], object["subscription_details"], object["paid"] = i.subscription, details, i.status == "paid"
		object["charge"], object["payment_intent"] = orNull(i.charge), orNull(i.intent)
	} else {
		details["subscription"] = i.subscription
		object["parent"] = map[string]any{"type": "subscription_details", "subscription_details": details}
	}
	return object
}

func (c *charge) object(old bool) map[string]any {
	object := map[string]any{
		"id": c.id, "object": "charge", "amount": c.amount, "amount_refunded": c.refunded, "currency": "eur",
		"customer": c.customer, "payment_intent": c.intent, "metadata": c.metadata, "livemode": false, "paid": true,
		"refunded": c.refunded == c.amount, "status": "succeeded",
	}
	if old {
		object["invoice"] = orNull(c.invoice)
	}
	return object
}

func (d *dispute) object(amount int64) map[string]any {
	return map[string]any{
		"id": d.id, "object": "dispute", "charge": d.charge, "payment_intent": d.intent, "status": d.status,
		"amount": amount, "currency": "eur", "metadata": map[string]any{}, "livemode": false,
	}
}

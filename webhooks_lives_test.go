package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/redistest"
	"tollgate/internal/stripe"
	"tollgate/internal/stripetest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// These tests deliver what happens in the lives of payments, in every order and repetition, to two processes whose
// connections to Redis break. Whatever comes when, the balance and the group end the same.

// A market is two processes with a tenant that sells.
type market struct {
	*payTest  // its service is nil if there are handlers
	processes []*service
	handlers  []http.Handler // of two servers, in place of the processes
	redis     *redistest.Server
	store     *store // whose connections do not break
	tn        *tenant
	proxy     *redistest.Proxy // before the Redis of both processes
	cut       atomic.Int64     // counts replies of Redis down to 0: there, the connection breaks
	slow      atomic.Bool      // some commands take their time on the way to Redis
}

func newMarket(t *testing.T, members string) *market {
	t.Helper()
	m := newEmptyMarket(t, members)
	m.processes = newServices(t, "REDIS_URL="+m.proxy.URL, "STRIPE_API_URL="+m.stripe.URL, "SEED=false")
	m.service = m.processes[0]
	return m
}

// newBusyMarket returns one for thousands of events, which its handlers take without the cost of HTTP.
func newBusyMarket(t *testing.T, members string) *market {
	t.Helper()
	m := newEmptyMarket(t, members)
	options := serverOptions{adminTokens: tokensOf(t, testAdminToken), metricsTokens: new(bearertoken.Set), stripeURL: m.stripe.URL}
	for range 2 {
		log := new(telemetrytest.Log)
		s, err := newServer(newTestStoreAt(t, m.proxy.URL, log), log.Logger(), options, notNearCapacity)
		if err != nil {
			t.Fatal(err)
		}
		m.handlers = append(m.handlers, s.handler)
	}
	return m
}

// newEmptyMarket returns one without processes.
func newEmptyMarket(t *testing.T, members string) *market {
	t.Helper()
	m := new(market)
	m.redis = singleRedis(t)
	m.proxy = redistest.NewProxy(t, m.redis, func([]byte) redistest.Fate {
		if m.cut.Load() > 0 && m.cut.Add(-1) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	m.proxy.OnRequest(func([]byte) redistest.Fate {
		if m.slow.Load() && rand.IntN(8) == 0 {
			time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		}
		return redistest.Pass
	})
	m.payTest = &payTest{nil, stripetest.New(t), newTenantIn(t, m.redis, payConfig(members))}
	m.store = newTestStore(t, m.redis)
	m.tn = m.store.wantTenant(t, m.tenant)
	return m
}

// A customer is somebody with an API key. What happens in its life decides what must come of the key.
type customer struct {
	*market
	t          testing.TB
	seed       uint64
	rand       *rand.Rand
	key, user  string
	group      string // in which the key must end
	want       int64  // the balance with which it must end
	all        []stripetest.Event
	pending    []*delivery    // of all, in the order of delivery
	sending    sync.WaitGroup // for what is being delivered
	references []string       // of the checkouts
	once       string         // see checkOutOnce
	most       int            // times that an event is delivered at once
	early      bool           // deliver events while others are to happen
}

// newCustomer begins the life of a customer. seed decides what is left to chance.
func (m *market) newCustomer(t testing.TB, seed uint64) *customer {
	t.Helper()
	l := &customer{market: m, t: t, seed: seed, most: 3, rand: rand.New(rand.NewPCG(seed, 26)), group: "start", want: 1000}
	l.user = fmt.Sprintf("u%d", seed)
	k, err := m.store.NewKey(in(10*time.Second), m.tn, apiKey{
		group: l.group, userID: l.user, createdAt: time.Now(), tokensLeft: l.want,
	}, idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	l.key = k.key
	m.stripe.SetOldShape(seed%2 == 0)
	return l
}

// checkOut makes a Checkout Session, as a user does, and returns its ID.
func (l *customer) checkOut(mode stripe.Mode, price string, quantity, tokens int64) (session string) {
	l.t.Helper()
	reference := fmt.Sprintf("r%d", l.rand.Uint64())
	l.references = append(l.references, reference)
	s, err := stripe.NewClient(l.stripe.URL).Account(stripetest.Key).CreateSession(l.t.Context(), "", stripe.Checkout{
		Mode: mode, Price: price, Quantity: quantity, SuccessURL: "https://app.example.com/ok",
		Metadata: map[string]string{metadataTenant: l.tenant, metadataReference: reference},
	})
	if err == nil {
		err = l.store.SaveCheckout(in(10*time.Second), l.tn, reference, checkout{first: l.key, userID: l.user, price: price, tokens: tokens})
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return s.ID
}

// happen takes events that Stripe sends. Some are delivered while more happens, others when all has happened.
func (l *customer) happen(events []stripetest.Event) {
	l.t.Helper()
	l.all = append(l.all, events...)
	for _, event := range events {
		l.pending = append(l.pending, &delivery{event: event})
	}
	for l.early && l.rand.IntN(2) == 0 {
		l.start(l.pending[l.rand.IntN(len(l.pending))])
	}
}

func (l *customer) shuffle() {
	l.rand.Shuffle(len(l.pending), func(i, j int) { l.pending[i], l.pending[j] = l.pending[j], l.pending[i] })
}

// A delivery is an event that is to be delivered.
type delivery struct {
	event stripetest.Event
	done  atomic.Bool // it was responded to with 200 at least once; Stripe does not send it again
}

// start begins to send an event one to three times, to both of a busy market.
func (l *customer) start(d *delivery) {
	signature := stripetest.Sign(d.event.Body, time.Now(), stripetest.Secret)
	for range 1 + l.rand.IntN(l.most) {
		handler := l.handlers[l.rand.IntN(2)]
		l.sending.Go(func() {
			r, got := httptest.NewRequest("POST", "/"+l.tenant+webhookPath, bytes.NewReader(d.event.Body)), httptest.NewRecorder()
			r.Header.Set("Stripe-Signature", signature)
			switch handler.ServeHTTP(got, r); got.Code {
			case 200:
				d.done.Store(true)
			case 503:
			default:
				l.t.Errorf("%s: got %d %s", d.event.Body, got.Code, got.Body)
			}
		})
	}
}

// end delivers what is left, one event after the other or some at a time, until all is done. What was delivered while
// Redis did not respond, or before its payment, comes again later, once. In every fourth life all is delivered again
// then.
func (l *customer) end(atATime int) {
	l.t.Helper()
	l.sending.Wait()
	for again := range 2 - min(l.seed%4, 1) {
		if again > 0 {
			for _, d := range l.pending {
				d.done.Store(false)
			}
		}
		err := waittest.Until(20*time.Second, func() error {
			left := slices.DeleteFunc(slices.Clone(l.pending), func(d *delivery) bool { return d.done.Load() })
			for i, d := range left {
				if l.start(d); (i+1)%atATime == 0 {
					l.sending.Wait()
				}
			}
			l.sending.Wait()
			l.most = 1
			for _, d := range left {
				if !d.done.Load() {
					return fmt.Errorf("not done: %s", d.event.Body)
				}
			}
			return nil
		})
		if err != nil {
			l.t.Fatalf("%v\n%s", err, l.story())
		}
		l.check(again)
	}
}

// check compares the key, and the list of payments, with what must have come of the life.
func (l *customer) check(again uint64) {
	l.t.Helper()
	k, err := l.store.Key(in(10*time.Second), l.tn, l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	if k.tokensLeft != l.want || k.group != l.group {
		l.t.Errorf("delivery %d: the balance is %d in the group %s, want %d in %s\n%s",
			again+1, k.tokensLeft, k.group, l.want, l.group, l.story())
	}
}

// story returns what has happened, in order.
func (l *customer) story() string {
	var story strings.Builder
	for _, event := range l.all {
		fmt.Fprintf(&story, "%s\n", event.Type)
	}
	return story.String()
}

// What may become of a pack.
const (
	paidAtOnce = iota
	paidLater
	paidByCoupon
	paidNever
	expired
	waysToPay
)

// pack buys a pack, and has parts refunded, in cents, and a dispute with states, if it is paid with money.
func (l *customer) pack(way int, refunds []int64, dispute ...string) {
	l.t.Helper()
	const tokens, paid = 2 * 700, 2 * stripetest.UnitAmount
	session := l.checkOut(stripe.ModePayment, "price_pack", 2, tokens)
	switch way {
	case paidAtOnce:
		l.happen(l.stripe.Pay(session))
	case paidLater:
		l.happen(l.stripe.PayLater(session))
		l.happen(l.stripe.Pay(session))
	case paidByCoupon:
		l.happen(l.stripe.PayNothing(session))
		l.want += tokens
		return
	case paidNever:
		l.happen(l.stripe.PayLater(session))
		l.happen(l.stripe.Fail(session))
		return
	default:
		l.happen(l.stripe.Expire(session))
		return
	}
	l.want += tokens - l.reverse(session, tokens, paid, refunds, dispute)
}

// reverse has parts of a payment refunded, and a dispute about it, and returns what that takes of the grant.
func (l *customer) reverse(of string, granted, paid int64, refunds []int64, dispute []string) (taken int64) {
	l.t.Helper()
	refunded, id := int64(0), ""
	for _, amount := range refunds {
		l.happen(l.stripe.Refund(of, amount))
		refunded = min(refunded+amount, paid)
	}
	taken = granted * refunded / paid
	for _, state := range dispute {
		var events []stripetest.Event
		if id == "" {
			id, events = l.stripe.Dispute(of, state)
		} else {
			events = l.stripe.SetDispute(id, state)
		}
		l.happen(events)
	}
	if len(dispute) > 0 {
		if last := dispute[len(dispute)-1]; last != "won" && !strings.HasPrefix(last, "warning") {
			taken = granted
		}
	}
	return taken
}

// A subscribed is a subscription in a life.
type subscribed struct {
	*customer
	session, id, price string
	quantity           int64
	failed             bool // a renewal has failed, and was not recovered from
}

// perPeriod are the tokens and groups of subscriptions' prices.
var perPeriod = map[string]struct {
	tokens int64
	group  string
}{"price_basic": {500, "basic"}, "price_premium": {3000, "premium"}}

// subscribe buys a subscription, and pays, begins a trial, or pays later.
func (l *customer) subscribe(price string, quantity int64, way int) *subscribed {
	l.t.Helper()
	session := l.checkOut(stripe.ModeSubscription, price, quantity, 0)
	switch way {
	case paidLater:
		l.happen(l.stripe.PayLater(session))
		l.happen(l.stripe.Pay(session))
	case paidByCoupon:
		l.happen(l.stripe.PayNothing(session))
	default:
		l.happen(l.stripe.Pay(session))
	}
	s := &subscribed{customer: l, session: session, id: l.stripe.Subscription(session), price: price, quantity: quantity}
	s.paid()
	return s
}

// paid notes what a period grants.
func (s *subscribed) paid() {
	s.want += perPeriod[s.price].tokens * s.quantity
	s.group = perPeriod[s.price].group
}

func (s *subscribed) renew() {
	s.happen(s.stripe.Renew(s.id))
	s.paid()
}

func (s *subscribed) changePlan(price string, quantity int64) {
	s.happen(s.stripe.ChangePlan(s.id, price, quantity))
	s.price, s.quantity, s.group = price, quantity, perPeriod[price].group
}

func (s *subscribed) fail() {
	s.happen(s.stripe.FailRenewal(s.id))
	s.failed = true
}

func (s *subscribed) recover() {
	s.happen(s.stripe.Recover(s.id))
	s.failed = false
	s.paid()
}

// giveUp lets Stripe give up on a payment that has failed.
func (s *subscribed) giveUp() {
	s.happen(s.stripe.SetStatus(s.id, "unpaid"))
	s.group = s.free()
}

func (s *subscribed) cancel() {
	s.happen(s.stripe.Cancel(s.id))
	s.group = s.free()
}

// free returns the group of those who do not pay.
func (s *subscribed) free() string {
	if free := s.tn.config.payments.freeGroup; free != "" {
		return free
	}
	return "start"
}

// bill has an invoice with more lines than an event has, of the present price.
func (s *subscribed) bill(lines int) {
	s.happen(s.stripe.Invoice(s.id, "manual", slices.Repeat([]stripetest.Line{{Price: s.price, Quantity: 1}}, lines)...))
	s.want += int64(lines) * perPeriod[s.price].tokens
}

// live lets things happen by chance, and more in every fourth life.
func (l *customer) live() {
	steps, both := 3, 4
	if l.seed/4%4 == 0 {
		steps, both = 6, 2
	}
	if l.rand.IntN(2) == 0 {
		var refunds []int64
		for range l.rand.IntN(3) {
			refunds = append(refunds, 1+l.rand.Int64N(900))
		}
		disputes := [][]string{nil, nil, {"needs_response"}, {"needs_response", "under_review", "won"}, {"needs_response", "lost"},
			{"warning_needs_response", "warning_closed"}, {"warning_needs_response", "needs_response", "won"}}
		l.pack(l.rand.IntN(waysToPay), refunds, disputes[l.rand.IntN(len(disputes))]...)
		if l.rand.IntN(both) > 0 {
			return
		}
	}
	prices := []string{"price_basic", "price_premium"}
	for range 1 + l.rand.IntN(4)/3 {
		s := l.subscribe(prices[l.rand.IntN(2)], 1+l.rand.Int64N(2), l.rand.IntN(3))
		for range l.rand.IntN(steps) {
			switch step := l.rand.IntN(5); {
			case s.failed && step < 3:
				s.recover()
			case s.failed:
				s.giveUp()
				return
			case step == 0:
				s.renew()
			case step == 1:
				s.changePlan(prices[l.rand.IntN(2)], 1+l.rand.Int64N(3))
			case step == 2:
				s.fail()
			case step == 3:
				s.bill(11)
			default:
				s.happen(l.stripe.CancelAtPeriodEnd(s.id))
			}
		}
		if l.rand.IntN(3) == 0 {
			return
		}
		s.cancel()
	}
}

// permutations returns all orders of n numbers.
func permutations(n int) (all [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, shorter := range permutations(n - 1) {
		for at := range n {
			all = append(all, slices.Insert(slices.Clone(shorter), at, n-1))
		}
	}
	return all
}

// TestWebhookOrders delivers the events of short lives in all orders, after all has happened.
func TestWebhookOrders(t *testing.T) {
	t.Parallel()
	m := newBusyMarket(t, `"free_group":"free"`)
	seed := uint64(0)
	for name, happen := range map[string]func(l *customer){
		"a subscription": func(l *customer) { l.subscribe("price_basic", 2, paidAtOnce).cancel() },
		"one that lasts": func(l *customer) {
			s := l.subscribe("price_basic", 1, paidAtOnce)
			s.changePlan("price_premium", 1)
			s.renew()
		},
		"one that fails": func(l *customer) { s := l.subscribe("price_premium", 1, paidAtOnce); s.fail(); s.recover() },
		"another": func(l *customer) {
			l.subscribe("price_premium", 1, paidAtOnce).cancel()
			l.subscribe("price_basic", 1, paidLater)
		},
		"a refunded pack":   func(l *customer) { l.pack(paidLater, []int64{100, 500}) },
		"a disputed pack":   func(l *customer) { l.pack(paidAtOnce, []int64{700}, "needs_response", "won") },
		"a lost pack":       func(l *customer) { l.pack(paidAtOnce, []int64{700}, "needs_response", "lost") },
		"a pack not wanted": func(l *customer) { l.pack(paidNever, nil); l.pack(expired, nil) },
	} {
		for _, order := range permutations(4) {
			seed++
			l := m.newCustomer(t, seed)
			happen(l)
			l.inOrder(order)
			l.end(1)
			if t.Failed() {
				t.Fatalf("%s, in the order %v", name, order)
			}
		}
	}
}

// inOrder puts those events that do something into an order, which is that of the first ones. Others follow or, in every
// other life, come before.
func (l *customer) inOrder(order []int) {
	idle := func(d *delivery) bool {
		return d.event.Type == "invoice.payment_succeeded" || d.event.Type == "invoice.payment_failed" ||
			d.event.Type == "checkout.session.completed" && strings.Contains(string(d.event.Body), `"mode":"subscription"`)
	}
	events := slices.DeleteFunc(l.pending, idle)
	l.pending = nil
	for _, i := range order {
		if i < len(events) {
			l.pending = append(l.pending, events[i])
		}
	}
	if others := events[min(len(events), len(order)):]; l.seed%4 < 2 {
		l.pending = append(l.pending, others...)
	} else {
		l.pending = append(slices.Clone(others), l.pending...)
	}
}

// TestWebhookStaleStates holds back what one process writes that has asked Stripe, until more has happened and the other
// process has written that. What is older then is not written.
func TestWebhookStaleStates(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before func(s *subscribed) []stripetest.Event // the first is held back
		after  func(s *subscribed) []stripetest.Event // is delivered meanwhile
	}{
		"a plan, and unpaid": {
			func(s *subscribed) []stripetest.Event { s.changePlan("price_premium", 1); return s.all[4:] },
			func(s *subscribed) []stripetest.Event { s.giveUp(); return s.all[len(s.all)-1:] },
		},
		"a plan, and the end": {
			func(s *subscribed) []stripetest.Event { s.changePlan("price_premium", 1); return s.all[4:] },
			func(s *subscribed) []stripetest.Event { s.cancel(); return s.all[len(s.all)-1:] },
		},
		"a period, and unpaid": {
			func(s *subscribed) []stripetest.Event { s.renew(); return s.all[5:] },
			func(s *subscribed) []stripetest.Event { s.giveUp(); return s.all[len(s.all)-1:] },
		},
		"a period, and the end": {
			func(s *subscribed) []stripetest.Event { s.renew(); return s.all[5:] },
			func(s *subscribed) []stripetest.Event { s.cancel(); return s.all[len(s.all)-1:] },
		},
		"unpaid, and a plan": {
			func(s *subscribed) []stripetest.Event { s.giveUp(); return s.all[4:] },
			func(s *subscribed) []stripetest.Event {
				s.stripe.SetStatus(s.id, "active")
				s.changePlan("price_premium", 1)
				return s.all[5:6]
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMarket(t, "")
			l := m.newCustomer(t, 1)
			s := l.subscribe("price_basic", 1, paidAtOnce)
			l.send(200, l.all...)
			held := test.before(s)[0]
			var holds atomic.Bool
			writing, release := make(chan struct{}), make(chan struct{})
			holds.Store(true)
			m.proxy.OnRequest(func(request []byte) redistest.Fate {
				if bytes.Contains(request, []byte(s.id)) && holds.Swap(false) {
					close(writing)
					<-release
				}
				return redistest.Pass
			})
			l.sending.Go(func() { l.send(200, held) })
			<-writing
			meanwhile := &payTest{m.processes[1], m.stripe, m.tenant}
			for _, event := range test.after(s) {
				meanwhile.deliver(t, event.Body).want(t, 200, "")
			}
			close(release)
			l.sending.Wait()
			l.wantKey(l.want, l.group)
		})
	}
}

// TestWebhookCrashes breaks the connections to Redis after each of the replies in a life.
func TestWebhookCrashes(t *testing.T) {
	t.Parallel()
	m := newBusyMarket(t, "")
	seed := uint64(0)
	for name, happen := range map[string]func(l *customer){
		"a pack":         func(l *customer) { l.pack(paidAtOnce, []int64{300, 400}, "needs_response", "won") },
		"a subscription": func(l *customer) { l.subscribe("price_basic", 1, paidAtOnce).changePlan("price_premium", 1) },
		"one that ends":  func(l *customer) { l.subscribe("price_basic", 1, paidAtOnce).cancel() },
	} {
		reply := int64(0)
		for ended := false; !ended; {
			reply++
			seed++
			l := m.newCustomer(t, seed)
			l.most = 1
			happen(l)
			m.cut.Store(reply)
			l.end(1)
			ended = m.cut.Swap(0) > 0
			if t.Failed() {
				t.Fatalf("%s, after reply %d", name, reply)
			}
		}
		if reply < 20 {
			t.Errorf("%s: there were only %d replies", name, reply)
		}
	}
}

// TestWebhookLives lets things happen by chance, and delivers the events meanwhile and later in any order, several at a
// time, while connections to Redis break.
func TestWebhookLives(t *testing.T) {
	t.Parallel()
	lives := uint64(500)
	if brief() {
		lives = 40
	}
	const markets = 4
	for i := range uint64(markets) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			m := newBusyMarket(t, []string{"", `"free_group":"free"`}[i%2])
			for seed := i; seed < lives; seed += markets {
				l := m.newCustomer(t, seed)
				l.early = l.rand.IntN(4) > 0
				if l.rand.IntN(3) == 0 {
					m.cut.Store(1 + l.rand.Int64N(60))
				}
				m.slow.Store(l.early)
				l.live()
				l.shuffle()
				l.end(1 + l.rand.IntN(4))
				m.cut.Store(0)
				m.slow.Store(false)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

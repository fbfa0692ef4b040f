package main

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// Whatever comes in whatever order, however often, at once, and wherever it is interrupted: what a key has in the end
// is the same.

// A shop is what Stripe knows: the state that a subscription has now.
type shop struct {
	mu    sync.Mutex
	state subscriptionState
}

func (s *shop) set(state subscriptionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

func (s *shop) ask() subscriptionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// deliver does what an event calls for, as a webhook does, until it is done. An event is "i<n>" (an invoice), "s" (the
// subscription has changed), "ended", "p" (the pack is paid), or a step of a reversal. It returns the key that got what
// a payment grants.
func (b *buying) deliver(st *store, shop *shop, event string) (key string, err error) {
	for {
		var result grantResult
		switch event[0] {
		case 'i', 's', 'e':
			var version stateVersion
			if version, err = st.SubscriptionVersion(in(10*time.Second), b.tn, b.c); err != nil {
				return "", err
			}
			state := shop.ask()
			state.version = version
			switch event[0] {
			case 'i':
				g := grant{id: "in_" + event[1:], at: paidAt, price: "price_1", group: "basic", add: 100, state: &state}
				result, err = st.Grant(in(10*time.Second), b.tn, b.c, g)
			case 'e':
				state.ended = true
				fallthrough
			default:
				err = st.SetSubscription(in(10*time.Second), b.tn, b.c, state)
			}
		case 'p':
			result, err = st.Grant(in(10*time.Second), b.tn, b.c, pack("1", 1000))
		default:
			at := paidAt.Add(time.Minute)
			if strings.HasPrefix(event, "won") {
				at = at.Add(time.Minute)
			}
			_, err = st.Reverse(in(10*time.Second), b.tn, b.c, "pi_1", parseReversal(event, at))
		}
		if err != ErrStateMoved {
			return result.key, err
		}
	}
}

// A life is what happens at Stripe, one step after the other: each is the state of the subscription then, ” if it stays,
// and the events that tell of it.
type life struct {
	name  string
	steps []string // "state events…"
	group string   // in the end, without a free group
	sum   int64    // of what is granted in the end
}

var lives = []life{
	{"renewed", []string{"basic i1 s", "basic i2 s", "basic i3"}, "basic", 300},
	{"canceled", []string{"basic i1 s", "basic i2 s", "ended s ended"}, "free", 200},
	{"changed, failed, recovered, canceled at once",
		[]string{"basic i1 s", "premium s i2", "unpaid s", "premium i3 s", "ended ended"}, "free", 300},
	{"failed", []string{"basic i1 s", "unpaid s"}, "free", 100},
	{"refunded in parts", []string{"- p", "- r300", "- r700"}, "free", 300},
	{"disputed and won", []string{"- p", "- r300", "- open", "- won"}, "free", 700},
	{"disputed and lost", []string{"- p", "- open", "- lost open2", "- won2"}, "free", 0},
	{"both", []string{"basic p i1 s", "- r300", "premium s i2", "- open", "ended ended", "- won"}, "free", 900},
}

// parseStep returns a step of a life.
func parseStep(step, freeGroup string) (state subscriptionState, changes bool, events []string) {
	words := strings.Fields(step)
	state = subscriptionState{id: "sub_1", group: words[0], freeGroup: freeGroup, ended: words[0] == "ended"}
	if state.ended || words[0] == "unpaid" {
		state.group = ""
	}
	return state, words[0] != "-", words[1:]
}

// A courier delivers the events of a life in some order, each one to three times, by several workers and stores at once.
type courier struct {
	b      *buying
	stores []*store
	shop   *shop
	most   int64 // that the key may ever have

	mu      sync.Mutex
	random  *rand.Rand
	steps   []string // that have not happened yet
	free    string
	queue   []string // events, of which each may be delivered now
	working int
	keys    map[string]string // by payment, which key has it
}

// next returns the next event; "" without one now, and whether all is done.
func (c *courier) next() (event string, st *store, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.steps) > 0 && (len(c.queue) == 0 || c.random.IntN(3) == 0) {
		state, changes, events := parseStep(c.steps[0], c.free)
		c.steps = c.steps[1:]
		if changes {
			c.shop.set(state)
		}
		for _, event := range events {
			for range 1 + c.random.IntN(3) {
				c.queue = append(c.queue, event)
			}
		}
	}
	if len(c.queue) == 0 {
		return "", nil, c.working == 0
	}
	i := c.random.IntN(len(c.queue))
	event = c.queue[i]
	c.queue = slices.Delete(c.queue, i, i+1)
	c.working++
	return event, c.stores[c.random.IntN(len(c.stores))], false
}

// finish takes note of what became of an event: it is repeated if that is not done.
func (c *courier) finish(t *testing.T, event, key string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working--
	switch {
	case errors.Is(err, ErrUnavailable) || err == ErrNotGranted:
		c.queue = append(c.queue, event)
	case err != nil:
		t.Errorf("%s: %v", event, err)
	case key != "":
		if before := c.keys[event]; before != "" && before != key {
			t.Errorf("%s is granted twice", event)
		}
		c.keys[event] = key
	}
}

func (c *courier) run(t *testing.T) {
	var workers sync.WaitGroup
	for range 3 {
		workers.Go(func() {
			for {
				event, st, done := c.next()
				if done {
					return
				}
				if event == "" {
					time.Sleep(time.Millisecond)
					continue
				}
				key, err := c.b.deliver(st, c.shop, event)
				c.finish(t, event, key, err)
				if k, err := c.stores[0].Key(in(10*time.Second), c.b.tn, c.b.key); err == nil && k.tokensLeft > c.most {
					t.Errorf("after %s the key has %d tokens, more than the %d that were paid", event, k.tokensLeft, c.most)
				}
			}
		})
	}
	workers.Wait()
}

// TestPaymentOrders delivers lives in many orders, with two stores of which one loses replies.
func TestPaymentOrders(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	var requests atomic.Int64
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if requests.Add(1)%37 == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	stores := []*store{newTestStore(t, r), newTestStoreAt(t, proxy.URL)}
	seeds := 12
	if testing.Short() {
		seeds = 2
	}
	for _, life := range lives {
		t.Run(life.name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds {
				b := newBuying(t, r, stores[0], "free", 5)
				free := []string{"", "refilled"}[seed%2]
				c := &courier{b: b, stores: stores, shop: new(shop), most: 5 + 1300, random: rand.New(rand.NewPCG(uint64(seed), 1)),
					steps: life.steps, free: free, keys: make(map[string]string)}
				c.run(t)
				group := life.group
				if free != "" && group == "free" && strings.HasPrefix(life.steps[0], "basic") {
					group = free
				}
				b.want(t, b.key, 5+life.sum, group)
				if sum := b.sum(t); sum != life.sum {
					t.Errorf("seed %d: the list has %d tokens, want %d", seed, sum, life.sum)
				}
			}
		})
	}
	t.Cleanup(func() {
		if n := proxy.Cuts.Load(); n < 10 {
			t.Errorf("%d replies were lost", n)
		}
	})
}

// sum returns how many tokens the list of payments has.
func (b *buying) sum(t testing.TB) (sum int64) {
	t.Helper()
	list, _, err := b.st.Payments(in(10*time.Second), b.tn, nil, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if !p.unassigned {
			sum += p.tokens
		}
	}
	return sum
}

// While payments come, the key is rotated, revoked, and made again: each payment is granted once, to one key.
func TestPaymentOrdersOfKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	stores := []*store{newTestStore(t, r), newTestStore(t, r)}
	for seed := range 40 {
		b := newBuying(t, r, stores[0], "free", 0)
		second := b.issue(t, "free", 0)
		c := &courier{b: b, stores: stores, shop: new(shop), most: 3000, random: rand.New(rand.NewPCG(uint64(seed), 2)),
			steps: []string{"basic i1 s p", "basic i2 i3", "basic i4 i5 i6", "- i7 i8"}, keys: make(map[string]string)}
		var other sync.WaitGroup
		first, firstBalance, key := b.key, int64(0), b.key
		other.Go(func() {
			key = b.rotate(t, b.rotate(t, key))
			second = b.rotate(t, second)
			if seed%2 == 0 {
				k, err := stores[1].Key(in(10*time.Second), b.tn, key)
				if err != nil {
					t.Error(err)
				}
				firstBalance = k.tokensLeft // at least
				b.revoke(t, key)
			}
		})
		c.run(t)
		other.Wait()
		want := map[string]int64{}
		for event, key := range c.keys {
			want[key] += map[byte]int64{'i': 100, 'p': 1000}[event[0]]
		}
		all := int64(0)
		for _, n := range want {
			all += n
		}
		if len(c.keys) != 9 || all != 1800 || want[first] < firstBalance {
			t.Errorf("seed %d: granted are %v", seed, want)
		}
		if seed%2 == 0 {
			if k, err := stores[1].Key(in(10*time.Second), b.tn, second); err != nil || k.tokensLeft != all-want[first] {
				t.Errorf("seed %d: the second key has %d tokens, %v, want %d", seed, k.tokensLeft, err, all-want[first])
			}
		} else {
			b.want(t, key, 1800, "basic")
		}
		if sum := b.sum(t); sum != 1800 {
			t.Errorf("seed %d: the list has %d tokens", seed, sum)
		}
	}
}

// A process may die after each reply of Redis. What it has begun is finished when Stripe repeats the event.
func TestPaymentCrashes(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	var left atomic.Int64
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if left.Add(-1) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	direct, dying := newTestStore(t, r), newTestStoreAt(t, proxy.URL)
	state := subscriptionState{id: "sub_1", group: "basic"}
	revoked := func(b *buying) (key string) {
		key = b.issue(t, "free", 5)
		b.revoke(t, b.key)
		return key
	}
	for _, test := range []struct {
		name   string
		setUp  func(b *buying) (key string) // returns the key that is to have it all
		events []string
		want   int64 // tokens of the key; -1 without a key
		group  string
		list   string
	}{
		{"a pack", nil, []string{"p"}, 1005, "free", "payment cs_1 +1000"},
		{"an invoice", nil, []string{"i1"}, 105, "basic", "subscription in_1 +100 basic"},
		{"a state", nil, []string{"i1", "s", "ended"}, 105, "free", "subscription in_1 +100 basic"},
		{"a refund", nil, []string{"p", "r400"}, 605, "free", "payment cs_1 +1000,refund ch_1 -400"},
		{"a dispute", nil, []string{"p", "open", "won"}, 1005, "free", "payment cs_1 +1000,dispute ch_1 -1000,dispute ch_1 +1000"},
		{"a pack for another key", revoked, []string{"p", "r400"}, 605, "free", "payment cs_1 +1000,refund ch_1 -400"},
		{"an invoice for another key", revoked, []string{"i1", "ended"}, 105, "free", "subscription in_1 +100 basic"},
		{"a pack for nobody", func(b *buying) string { b.revoke(t, b.key); return "" }, []string{"p"}, 0, "", "payment cs_1 +1000 unassigned"},
		{"a rotated key", func(b *buying) string { return b.rotate(t, b.rotate(t, b.key)) }, []string{"p", "i1"}, 1105, "basic",
			"payment cs_1 +1000,subscription in_1 +100 basic"},
	} {
		crashes := 0
		for n := 1; ; n++ {
			b := newBuying(t, r, direct, "free", 5)
			b.c.reference = "ref"
			key := b.key
			if test.setUp != nil {
				key = test.setUp(b)
			}
			shop := &shop{state: state}
			waittest.Eventually(t, 10*time.Second, func() error { return dying.Ready(in(time.Second)) })
			cuts := proxy.Cuts.Load()
			left.Store(int64(n))
			for _, event := range test.events {
				if _, err := b.deliver(dying, shop, event); err != nil {
					left.Store(0)
					if _, err := b.deliver(direct, shop, event); err != nil {
						t.Fatalf("%s, %d: %s: %v", test.name, n, event, err)
					}
					waittest.Eventually(t, 10*time.Second, func() error { return dying.Ready(in(time.Second)) })
				}
			}
			left.Store(0)
			if key != "" {
				b.want(t, key, test.want, test.group)
			}
			if got := strings.Join(b.list(t), ","); got != test.list {
				t.Errorf("%s, after %d replies: the list has %s, want %s", test.name, n, got, test.list)
			}
			if proxy.Cuts.Load() == cuts {
				break
			}
			crashes++
		}
		if crashes < 2*len(test.events) {
			t.Errorf("%s: %d crashes", test.name, crashes)
		}
	}
}

// All orders of four events of one subscription, and of one pack, end the same.
func TestPaymentPermutations(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	st := newTestStore(t, r)
	for _, test := range []struct {
		events []string
		state  subscriptionState // of the subscription by then
		want   int64
		group  string
	}{
		{[]string{"i1", "i2", "s", "ended"}, subscriptionState{id: "sub_1", freeGroup: "premium", ended: true}, 200, "premium"},
		{[]string{"i1", "i2", "s", "s"}, subscriptionState{id: "sub_1", group: "basic"}, 200, "basic"},
		{[]string{"i1", "i2", "s", "p"}, subscriptionState{id: "sub_1", freeGroup: "premium"}, 1200, "premium"},
		{[]string{"p", "r300", "r700", "open"}, subscriptionState{}, 0, "free"},
		{[]string{"p", "r300", "open", "won"}, subscriptionState{}, 700, "free"},
		{[]string{"p", "open", "open2", "won"}, subscriptionState{}, 0, "free"},
	} {
		permute(test.events, func(order []string) {
			b := newBuying(t, r, st, "free", 0)
			for todo := slices.Clone(order); len(todo) > 0; todo = todo[1:] {
				if _, err := b.deliver(st, &shop{state: test.state}, todo[0]); err == ErrNotGranted {
					todo = append(todo, todo[0])
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if k, err := st.Key(in(10*time.Second), b.tn, b.key); err != nil || k.tokensLeft != test.want || k.group != test.group {
				t.Errorf("%v: %+v, %v, want %d in %q", order, k, err, test.want, test.group)
			}
		})
	}
}

// permute calls f with all orders of events.
func permute(events []string, f func(order []string)) {
	var add func(order, rest []string)
	add = func(order, rest []string) {
		if len(rest) == 0 {
			f(order)
		}
		for i := range rest {
			add(append(slices.Clone(order), rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	add(nil, events)
}

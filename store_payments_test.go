package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

const paymentConfig = `{"user_groups":{"free":{"tokens":10},"basic":{"tokens":100},"premium":{"tokens":500},
	"refilled":{"tokens":5,"refill":{"tokens":50,"every":3600}}}}`

// A buying is an API key with which something is bought, at the level of the store.
type buying struct {
	r   *redistest.Server
	st  *store
	tn  *tenant
	key string // its present name
	c   checkout

	issued int // keys, each a second older than the next
}

// newBuying issues a key with that balance to user u of a new tenant.
func newBuying(t testing.TB, r *redistest.Server, st *store, group string, tokens int64) *buying {
	t.Helper()
	tn := st.wantTenant(t, newTenantIn(t, r, paymentConfig))
	b := &buying{r: r, st: st, tn: tn}
	b.key = b.issue(t, group, tokens)
	b.c = checkout{first: b.key, userID: "u", price: "price_1", tokens: 100}
	return b
}

// issue issues a key to user u.
func (b *buying) issue(t testing.TB, group string, tokens int64) string {
	t.Helper()
	b.issued++
	at := time.Now().Add(time.Duration(b.issued-100) * time.Second)
	k := apiKey{userID: "u", group: group, createdAt: at, tokensLeft: tokens}
	issued, err := b.st.NewKey(in(10*time.Second), b.tn, k, idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return issued.key
}

func (b *buying) rotate(t testing.TB, key string) string {
	t.Helper()
	return b.rotateWithGrace(t, key, 0)
}

func (b *buying) rotateWithGrace(t testing.TB, key string, grace time.Duration) string {
	t.Helper()
	rotated, err := b.st.RotateKey(in(10*time.Second), b.tn, key, grace, idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return rotated.key
}

func (b *buying) revoke(t testing.TB, key string) {
	t.Helper()
	if err := b.st.RevokeKey(in(10*time.Second), b.tn, key, false); err != nil {
		t.Fatal(err)
	}
}

// share issues a key to user u, older than all others, that shares the balance of another.
func (b *buying) share(t testing.TB, with string) {
	t.Helper()
	k := apiKey{userID: "u", createdAt: time.Now().Add(-time.Hour), sharesWith: with}
	if _, err := b.st.ShareKey(in(10*time.Second), b.tn, k, idempotentRequest{}); err != nil {
		t.Fatal(err)
	}
}

var paidAt = time.UnixMilli(1_795_000_000_000)

// pack returns a grant of a pack.
func pack(id string, tokens int64) grant {
	return grant{id: "cs_" + id, intent: "pi_" + id, at: paidAt, price: "price_1", add: tokens, customer: "cus_1"}
}

// grant grants g, with the state that a subscription has now.
func (b *buying) grant(t testing.TB, g grant) grantResult {
	t.Helper()
	result, err := b.tryGrant(b.st, g)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func (b *buying) tryGrant(st *store, g grant) (grantResult, error) {
	if g.state != nil {
		state := *g.state
		var err error
		if state.version, err = st.SubscriptionVersion(in(10*time.Second), b.tn, b.c); err != nil {
			return grantResult{}, err
		}
		g.state = &state
	}
	return st.Grant(in(10*time.Second), b.tn, b.c, g)
}

// want compares the balance and the group of a key.
func (b *buying) want(t testing.TB, key string, tokens int64, group string) {
	t.Helper()
	k, err := b.st.Key(in(10*time.Second), b.tn, key)
	if err != nil || k.tokensLeft != tokens || k.group != group {
		t.Errorf("the key has %d tokens in the group %q, %v, want %d in %q", k.tokensLeft, k.group, err, tokens, group)
	}
}

// list returns the list of payments, oldest first, each as kind, ID, tokens, group and what else there is to say.
func (b *buying) list(t testing.TB) []string {
	t.Helper()
	list, next, err := b.st.Payments(in(10*time.Second), b.tn, nil, 1000)
	if err != nil || next != nil {
		t.Fatal(next, err)
	}
	var lines []string
	for _, p := range list {
		line := fmt.Sprintf("%s %s %+d", p.kind, p.stripeID, p.tokens)
		if p.group != "" {
			line += " " + p.group
		}
		if p.unassigned {
			line += " unassigned"
		}
		lines = append(lines, line)
		if p.userID != "u" || p.price != "price_1" {
			t.Errorf("%+v", p)
		}
	}
	slices.Reverse(lines)
	return lines
}

func (b *buying) wantList(t testing.TB, want ...string) {
	t.Helper()
	if got := b.list(t); !slices.Equal(got, want) {
		t.Errorf("the list has\n%q\nwant\n%q", got, want)
	}
}

func TestBuyer(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	b := newBuying(t, r, newTestStore(t, r), "free", 1)
	other := newBuying(t, r, b.st, "free", 1)
	rotated := b.issue(t, "free", 1)
	present := b.rotate(t, rotated)
	paid := b.issue(t, "free", 1)
	r.Do(t, "HSET", apiKeyRedisKey(paid), "customer", "cus_1", "subscription", "sub_1", "enabled", "0")
	share := func(with, first string, fields ...any) string {
		key := b.issue(t, "free", 1)
		r.Do(t, "HDEL", apiKeyRedisKey(key), "tokensLeft")
		r.Do(t, "HSET", append([]any{apiKeyRedisKey(key), "sharesWith", with, "sharesFirst", first}, fields...)...)
		return key
	}
	broken := b.issue(t, "free", 1)
	r.Do(t, "SET", apiKeyRedisKey(broken), "x")
	graced := b.issue(t, "free", 1)
	follower := share(graced, graced)
	after := b.rotateWithGrace(t, graced, time.Hour)
	r.Do(t, "HSET", apiKeyRedisKey(follower), "sharesWith", graced) // as if an earlier version had rotated it
	for _, test := range []struct {
		name, key string
		want      buyer
		err       error
	}{
		{"a key", b.key, buyer{key: b.key, first: b.key, userID: "u"}, nil},
		{"one that was rotated", present, buyer{key: present, first: rotated, userID: "u"}, nil},
		{"its former name", rotated, buyer{}, ErrNoKey},
		{"another tenant's", other.key, buyer{}, ErrNoKey},
		{"unknown", someKey, buyer{}, ErrNoKey},
		{"with a subscription, disabled", paid, buyer{paid, paid, "u", true, "cus_1", "sub_1"}, nil},
		{"one that shares", share(paid, paid), buyer{paid, paid, "u", true, "cus_1", "sub_1"}, nil},
		{"one that shares with a former name", share(rotated, rotated), buyer{key: present, first: rotated, userID: "u"}, nil},
		{"a disabled one that shares", share(b.key, b.key, "enabled", "0"), buyer{key: b.key, first: b.key, userID: "u", disabled: true}, nil},
		{"one that shares with another by that name", share(b.key, rotated), buyer{}, ErrNoKey},
		{"one that shares with nobody", share(someKey, someKey), buyer{}, ErrNoKey},
		{"a former name in its grace", graced, buyer{key: after, first: graced, userID: "u"}, nil},
		{"one that shares with that", follower, buyer{key: after, first: graced, userID: "u"}, nil},
		{"malformed", broken, buyer{}, ErrMalformed},
	} {
		if got, err := b.st.Buyer(in(10*time.Second), b.tn, test.key); !errors.Is(err, test.err) || err == nil && got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v, %v", test.name, got, err, test.want, test.err)
		}
	}
}

// A checkout is known for 40 days, and for 400 from each grant on, to its tenant alone, as it was first saved.
func TestCheckoutRecords(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	b := newBuying(t, r, newTestStore(t, r), "free", 1)
	b.c.price, b.c.userID = `a "price" of % + ü`, "a user"
	name := checkoutRedisKey(b.tn.id, "ref")
	save := func(c checkout) {
		t.Helper()
		if err := b.st.SaveCheckout(in(10*time.Second), b.tn, "ref", c); err != nil {
			t.Fatal(err)
		}
	}
	days := func(want int) {
		t.Helper()
		if got := float64(r.Int(t, "PTTL", name)) / 86400e3; got > float64(want) || got < float64(want)-0.1 {
			t.Errorf("it lives for another %f days, want %d", got, want)
		}
	}
	changed := b.c
	changed.tokens = 7
	for _, c := range []checkout{b.c, changed} {
		save(c)
		days(40)
		r.Do(t, "PEXPIRE", name, 1_000_000) // that is 39 days later
	}
	save(changed)
	days(40)
	want := b.c
	want.reference = "ref"
	got, err := b.st.Checkout(in(10*time.Second), b.tn, "ref")
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, replayed := range []bool{false, true} {
		r.Do(t, "PEXPIRE", name, 1_000_000)
		result, err := b.st.Grant(in(10*time.Second), b.tn, got, pack("1", 5))
		if err != nil || result.replayed != replayed {
			t.Errorf("granted: %+v, %v", result, err)
		}
		days(400)
		save(changed)
		days(400)
	}
	later := *b.tn
	later.generation = "G"
	other := newBuying(t, r, b.st, "free", 1)
	for _, tn := range []*tenant{&later, other.tn} {
		if got, err := b.st.Checkout(in(10*time.Second), tn, "ref"); err != ErrNoCheckout {
			t.Errorf("another tenant gets %+v, %v", got, err)
		}
	}
	for _, text := range []string{"", "x", "{}", "null", `{"key":"x"}`} {
		r.Do(t, "SET", name, text)
		if got, err := b.st.Checkout(in(10*time.Second), b.tn, "ref"); err != ErrNoCheckout {
			t.Errorf("%q is read as %+v, %v", text, got, err)
		}
	}
}

// What a grant gives, once.
func TestGrant(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	st := newTestStore(t, r)
	for _, test := range []struct {
		name      string
		group     string
		balance   int64
		held      int64
		expired   bool // of what is held
		add       int64
		raiseTo   int64
		want      int64
		granted   int64
		cancelled int64 // the balance once the hold is cancelled
	}{
		{name: "adds", balance: 5, add: 100, want: 105, granted: 100},
		{name: "up to the largest balance", balance: 5, add: maxAmount, want: maxAmount, granted: maxAmount - 5},
		{name: "nothing", balance: 5, want: 5},
		{name: "raises", balance: 5, raiseTo: 100, want: 100, granted: 95},
		{name: "does not lower", balance: 105, raiseTo: 100, want: 105},
		{name: "raises, then adds", balance: 5, raiseTo: 100, add: 7, want: 107, granted: 102},
		{name: "holds give back beside what is added", balance: 50, held: 30, add: 100, want: 120, granted: 100, cancelled: 150},
		{name: "holds repay what is raised", balance: 50, held: 30, raiseTo: 100, want: 100, granted: 80, cancelled: 100},
		{name: "holds repay a part of what is raised", balance: 50, held: 30, raiseTo: 40, want: 40, granted: 20, cancelled: 50},
		{name: "expired holds first", balance: 50, held: 30, expired: true, raiseTo: 60, want: 60, granted: 10},
		{name: "a refill first", group: "refilled", balance: 5, raiseTo: 60, add: 1, want: 61, granted: 11},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBuying(t, r, st, cmp.Or(test.group, "free"), test.balance)
			if test.group != "" {
				r.Do(t, "HSET", apiKeyRedisKey(b.key), "createdAt", "2020-01-01T00:00:00.000Z")
			}
			if test.held > 0 {
				_, err := st.Hold(in(10*time.Second), b.tn, holdRequest{key: b.key, id: "hold_1", most: test.held, least: test.held, ttl: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
			}
			if test.expired {
				r.Do(t, "HSET", holdsRedisKey(b.key), "hold_1", fmt.Sprintf("%d 1", test.held))
				r.Do(t, "HSET", apiKeyRedisKey(b.key), "holdsDue", 1)
			}
			g := grant{id: "in_1", at: paidAt, price: "price_1", add: test.add, raiseTo: test.raiseTo}
			for _, replayed := range []bool{false, true} {
				got := b.grant(t, g)
				if got.replayed != replayed || got.tokens != test.granted || got.key != b.key || !got.at.Equal(paidAt) {
					t.Errorf("got %+v, want %d tokens", got, test.granted)
				}
				b.want(t, b.key, test.want, cmp.Or(test.group, "free"))
				g.at, g.add = g.at.Add(time.Hour), g.add+1 // what is known stays as it was
			}
			if n, err := st.Granted(in(10*time.Second), b.tn, b.c, "in_1"); n != test.granted || err != nil {
				t.Errorf("granted are %d, %v, want %d", n, err, test.granted)
			}
			b.wantList(t, fmt.Sprintf("payment in_1 %+d", test.granted))
			if test.held > 0 && !test.expired {
				if _, err := st.Settle(in(10*time.Second), b.tn, newHolder(b.key), settleRequest{holdID: "hold_1"}); err != nil {
					t.Fatal(err)
				}
				b.want(t, b.key, test.cancelled, "free")
			}
		})
	}
}

// A payment that meets what is malformed, or a command that Redis denies, has granted nothing, and is granted later.
func TestGrantIsNotLost(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st := newTestStore(t, r)
	acl := func(rule string) { r.Do(t, "ACL", "SETUSER", "tollgate", rule) }
	for _, test := range []struct {
		name       string
		spoil, fix func(b *buying)
		err        error
	}{
		{"no balance", func(b *buying) { r.Do(t, "HSET", apiKeyRedisKey(b.key), "tokensLeft", "-1") },
			func(b *buying) { r.Do(t, "HSET", apiKeyRedisKey(b.key), "tokensLeft", "5") }, ErrMalformed},
		{"no key", func(b *buying) {
			r.Do(t, "RENAME", apiKeyRedisKey(b.key), "x")
			r.Do(t, "SET", apiKeyRedisKey(b.key), "y")
		},
			func(b *buying) { r.Do(t, "RENAME", "x", apiKeyRedisKey(b.key)) }, ErrMalformed},
		{"no record", func(b *buying) { r.Do(t, "LPUSH", paidRedisKey(b.key, "in_1"), "y") },
			func(b *buying) { r.Do(t, "DEL", paidRedisKey(b.key, "in_1")) }, ErrMalformed},
		{"no group", func(b *buying) { r.Do(t, "HDEL", apiKeyRedisKey(b.key), "group") },
			func(b *buying) { r.Do(t, "HSET", apiKeyRedisKey(b.key), "group", "free") }, ErrMalformed},
		{"HSET", func(*buying) { acl("-hset") }, func(*buying) { acl("+hset") }, ErrUnavailable},
		{"SET", func(*buying) { acl("-set") }, func(*buying) { acl("+set") }, ErrUnavailable},
		{"ZADD", func(*buying) { acl("-zadd") }, func(*buying) { acl("+zadd") }, ErrUnavailable},
		{"memory", func(*buying) { r.Do(t, "CONFIG", "SET", "maxmemory", 1) }, func(*buying) { r.Do(t, "CONFIG", "SET", "maxmemory", 0) },
			ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBuying(t, r, st, "free", 5)
			test.spoil(b)
			for range 2 {
				if got, err := b.tryGrant(st, invoice(1)); !errors.Is(err, test.err) {
					t.Errorf("got %+v, %v, want %v", got, err, test.err)
				}
			}
			test.fix(b)
			b.grant(t, invoice(1))
			b.want(t, b.key, 105, "basic")
			b.wantList(t, "subscription in_1 +100 basic")
			if got := b.grant(t, invoice(1)); !got.replayed {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// The steps of a subscription's life that the store sees. Each is a word: an invoice's number with the state that Stripe
// has then ("1:basic", "2:unpaid", "3:ended"), the state alone (":basic"), or a group that an admin sets ("=vip").
func TestSubscriptionStates(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	st := newTestStore(t, r)
	for _, test := range []struct {
		steps, freeGroup string
		tokens           int64
		group            string
		subscription     string
	}{
		{"1:basic", "", 100, "basic", "sub_1"},
		{"1:basic :unpaid", "", 100, "free", "sub_1"},
		{"1:basic :unpaid", "premium", 100, "premium", "sub_1"},
		{"1:basic :unpaid :basic", "premium", 100, "basic", "sub_1"},
		{"1:basic :ended", "", 100, "free", ""},
		{"1:basic :ended", "premium", 100, "premium", ""},
		{"1:basic :premium 2:premium", "", 200, "premium", "sub_1"},
		{"1:basic :premium :ended", "", 100, "free", ""},
		{":basic", "", 0, "free", ""},
		{":basic 1:basic", "", 100, "basic", "sub_1"},
		{":ended 1:basic", "", 100, "free", ""},            // what is final is final
		{":ended 1:basic", "premium", 100, "premium", ""},  // as if it had come in order
		{":ended", "premium", 0, "free", ""},               // nothing was ever paid
		{"1:basic :ended 2:ended", "", 200, "free", ""},    // paid after its end
		{"1:basic :ended :basic", "", 100, "free", ""},     // late
		{"1:unpaid", "premium", 100, "premium", "sub_1"},   // paid, but no longer when Stripe is asked
		{"1:basic 1:unpaid", "", 100, "basic", "sub_1"},    // a repetition says nothing of the state
		{"1:basic =vip :ended", "", 100, "free", ""},       // an admin's group lasts until the next event
		{"1:basic =vip :basic", "", 100, "basic", "sub_1"}, //
		{"1:basic :unpaid =vip :unpaid", "", 100, "vip", "sub_1"},
		{"1:basic :unpaid =vip :basic :ended", "", 100, "vip", ""},
		{"1:basic :unpaid =vip 2:unpaid", "premium", 200, "vip", "sub_1"}, // one that is not paid
		{"1:basic :ended =vip 2:ended", "premium", 200, "vip", ""},
		{":ended 1:ended =vip 2:ended", "premium", 200, "vip", ""},
		{"1:basic :ended =vip b1:ended", "premium", 200, "premium", ""}, // an event of another
		{"1:basic b1:premium", "", 200, "premium", "sub_b"},
		{"1:basic b1:premium :ended", "", 200, "premium", "sub_b"}, // of the former one
		{"1:basic b1:premium b:ended", "", 200, "free", ""},
		{"1:basic b1:unpaid", "", 200, "basic", "sub_1"},
		{"1:basic b1:ended", "premium", 200, "basic", "sub_1"},
		{"1:unpaid b1:premium", "", 200, "premium", "sub_b"},
		{"1:unpaid b1:unpaid b:premium", "", 200, "premium", "sub_b"},
		{"1:basic :ended b1:premium", "", 200, "premium", "sub_b"},
	} {
		t.Run(test.steps+" "+test.freeGroup, func(t *testing.T) {
			t.Parallel()
			b := newBuying(t, r, st, "free", 0)
			for step := range strings.FieldsSeq(test.steps) {
				b.takeStep(t, step, test.freeGroup)
			}
			b.want(t, b.key, test.tokens, test.group)
			got, err := st.Buyer(in(10*time.Second), b.tn, b.key)
			if err != nil || got.subscription != test.subscription {
				t.Errorf("the subscription is %q, %v, want %q", got.subscription, err, test.subscription)
			}
		})
	}
}

// takeStep takes a step of TestSubscriptionStates.
func (b *buying) takeStep(t *testing.T, step, freeGroup string) {
	t.Helper()
	if group, ok := strings.CutPrefix(step, "="); ok {
		if _, _, err := b.st.UpdateKey(in(10*time.Second), b.tn, b.key, keyChange{group: &group}, idempotentRequest{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	paid, status, _ := strings.Cut(step, ":")
	id := "sub_1"
	if strings.HasPrefix(paid, "b") {
		id = "sub_b"
	}
	state := subscriptionState{id: id, group: status, freeGroup: freeGroup, ended: status == "ended"}
	if status == "unpaid" || state.ended {
		state.group = ""
	}
	before, _ := b.st.Buyer(in(10*time.Second), b.tn, b.key)
	var err error
	if paid == "" || paid == "b" {
		if state.version, err = b.st.SubscriptionVersion(in(10*time.Second), b.tn, b.c); err == nil {
			err = b.st.SetSubscription(in(10*time.Second), b.tn, b.c, state)
		}
	} else {
		var got grantResult
		g := grant{id: "in_" + paid, at: paidAt, price: "price_1", group: "basic", add: 100, state: &state}
		got, err = b.tryGrant(b.st, g)
		if second := before.subscription != "" && before.subscription != id; !got.replayed && got.second != second {
			t.Errorf("%s: the key has another subscription: %v, want %v", step, got.second, second)
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
}

// A state that was asked for before another was set is not set, whatever the other is about.
func TestSubscriptionVersions(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	b := newBuying(t, r, newTestStore(t, r), "free", 0)
	version := func() stateVersion {
		t.Helper()
		v, err := b.st.SubscriptionVersion(in(10*time.Second), b.tn, b.c)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	stale := version()
	set := func(state subscriptionState, want error) {
		t.Helper()
		if err := b.st.SetSubscription(in(10*time.Second), b.tn, b.c, state); err != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	set(subscriptionState{id: "sub_1", group: "basic", version: stale}, nil) // not the present one
	set(subscriptionState{id: "sub_1", group: "basic", version: stale}, ErrStateMoved)
	g := grant{id: "in_1", at: paidAt, price: "price_1", add: 100, state: &subscriptionState{id: "sub_1", group: "basic", version: stale}}
	if got, err := b.st.Grant(in(10*time.Second), b.tn, b.c, g); err != ErrStateMoved {
		t.Errorf("got %+v, %v", got, err)
	}
	b.want(t, b.key, 0, "free")
	b.wantList(t)
	b.grant(t, g)
	if got, err := b.st.Grant(in(10*time.Second), b.tn, b.c, g); err != nil || !got.replayed { // whatever the version
		t.Errorf("got %+v, %v", got, err)
	}
	stale = version()
	set(subscriptionState{id: "sub_1", ended: true}, nil)
	set(subscriptionState{id: "sub_1", group: "basic", version: stale}, ErrStateMoved)
	set(subscriptionState{id: "sub_1", ended: true}, nil)
	b.revoke(t, b.key)
	b.issue(t, "free", 0)
	set(subscriptionState{id: "sub_1", group: "basic", version: stale}, ErrStateMoved) // that of another key
	b.want(t, b.st.mustReceiver(t, b), 0, "free")
}

// mustReceiver returns the present name of the key that gets what is paid for b.
func (s *store) mustReceiver(t testing.TB, b *buying) string {
	t.Helper()
	r, err := s.receiver(in(10*time.Second), b.tn, b.c)
	if err != nil {
		t.Fatal(err)
	}
	return r.key
}

// Refunds and disputes of a pack of 100 tokens. Steps are "r60" (60 tokens are refunded so far), "open", "lost" or "won"
// (of the dispute dp_1, or of another: "won2"), "-5" and "+5" (charges, and what an admin adds).
func TestReverse(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	st := newTestStore(t, r)
	for _, test := range []struct {
		steps string
		want  int64 // the balance, of 10 before the pack
		list  string
	}{
		{"r40", 70, "r-40"},
		{"r40 r40", 70, "r-40"},
		{"r40 r100", 10, "r-40 r-60"},
		{"r100 r40", 10, "r-100"},
		{"r500", 10, "r-100"},
		{"-80 r60", 0, "r-30"},
		{"-80 r60 +100 r60", 100, "r-30"}, // no shortfall is taken later
		{"-80 r60 +100 r70", 90, "r-30 r-10"},
		{"-110 r60", 0, "r+0"},
		{"open", 10, "d-100"},
		{"open open", 10, "d-100"},
		{"open won", 110, "d-100 d+100"},
		{"open won open", 110, "d-100 d+100"},
		{"won open", 110, ""},
		{"lost", 10, "d-100"},
		{"open lost", 10, "d-100"},
		{"lost open", 10, "d-100"},
		{"lost won", 110, "d-100 d+100"},
		{"won lost", 110, ""},
		{"r40 open", 10, "r-40 d-60"},
		{"r40 open won", 70, "r-40 d-60 d+60"},
		{"open r40 won", 70, "d-100 d+60"},
		{"open r100 won", 10, "d-100"},
		{"won r40 open", 70, "r-40"},
		{"open open2 won", 10, "d-100"},
		{"open open2 won won2", 110, "d-100 d+100"},
		{"-80 open won", 30, "d-30 d+30"}, // what it took
		{"-80 r40 open won", 0, "r-30 d+0 d+0"},
		{"-80 r40 +100 open won", 100, "r-30 d-60 d+60"}, // the shortfall of the refund is not taken later, either
		{"-80 r40 +100 open r70 won", 70, "r-30 d-60 d+30"},
		{"-80 open +100 r20 won", 110, "d-30 d+10"},
		{"-110 r40 +20 open +30 won r60", 30, "r+0 d-20 d+20 r-20"},
		{"-80 r40 +100 open won", 100, "r-30 d-60 d+60"}, // the refund's shortfall is not taken now
		{"-80 r40 +100 open r50 won", 90, "r-30 d-60 d+50"},
		{"-80 open +100 r40 won", 100, "d-30 d+0"}, // of 100 that were granted 80 are spent, and 40 given back
		{"open -10 won", 100, "d-100 d+100"},
	} {
		t.Run(test.steps, func(t *testing.T) {
			t.Parallel()
			b := newBuying(t, r, st, "free", 10)
			b.grant(t, pack("1", 100))
			at := paidAt
			for i, step := range strings.Fields(test.steps) {
				at = at.Add(time.Second)
				ids := []string{"cs_1", "pi_1"}
				b.reverse(t, st, ids[i%2], step, at)
			}
			b.want(t, b.key, test.want, "free")
			want := []string{"payment cs_1 +100"}
			for entry := range strings.FieldsSeq(test.list) {
				kind := map[byte]string{'r': "refund", 'd': "dispute"}[entry[0]]
				want = append(want, kind+" ch_1 "+entry[1:])
			}
			b.wantList(t, want...)
		})
	}
}

// reverse takes a step of TestReverse.
func (b *buying) reverse(t testing.TB, st *store, id, step string, at time.Time) {
	t.Helper()
	if step[0] == '-' || step[0] == '+' {
		n, _ := strconv.ParseInt(step, 10, 64)
		if _, _, err := st.UpdateKey(in(10*time.Second), b.tn, b.key, keyChange{addTokens: &n}, idempotentRequest{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	before, _ := b.st.Key(in(10*time.Second), b.tn, b.key)
	got, err := st.Reverse(in(10*time.Second), b.tn, b.c, id, parseReversal(step, at))
	if err != nil {
		t.Fatal(err)
	}
	after, _ := b.st.Key(in(10*time.Second), b.tn, b.key)
	if got.tokens != after.tokensLeft-before.tokensLeft || got.userID != "u" || got.stripeID != "ch_1" || !got.at.Equal(at) {
		t.Errorf("%s: got %+v", step, got)
	}
}

func parseReversal(step string, at time.Time) reversal {
	r := reversal{at: at, charge: "ch_1", dispute: "dp_1"}
	if refunded, ok := strings.CutPrefix(step, "r"); ok {
		r.dispute = ""
		r.refunded, _ = strconv.ParseInt(refunded, 10, 64)
		return r
	}
	name, second := strings.CutSuffix(step, "2")
	if second {
		r.dispute = "dp_2"
	}
	r.state = map[string]disputeState{"open": disputeOpen, "lost": disputeLost, "won": disputeWon}[name]
	return r
}

// A payment goes to the right key when the one that it was bought with was renamed or is gone.
func TestPaymentReceivers(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	testPaymentReceivers(t, r, newTestStore(t, r))
}

// The same in a cluster, where the key and another of its user are in different slots.
func testPaymentsInCluster(t *testing.T) {
	r := &redistest.Server{Cluster: redistest.SharedCluster(t)}
	testPaymentReceivers(t, r, newTestStore(t, r))
}

type receiverTest struct {
	name string
	run  func(t *testing.T, b *buying)
}

func testPaymentReceivers(t *testing.T, r *redistest.Server, st *store) {
	for _, test := range slices.Concat(otherReceivers, lostReceivers) {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, newBuying(t, r, st, "free", 5))
		})
	}
}

// invoice returns a grant of the nth invoice of a subscription.
func invoice(n int) grant {
	return grant{id: fmt.Sprintf("in_%d", n), at: paidAt, price: "price_1", group: "basic", add: 100,
		state: &subscriptionState{id: "sub_1", group: "basic"}}
}

var otherReceivers = []receiverTest{
	{"rotated twice", func(t *testing.T, b *buying) {
		b.grant(t, pack("1", 100))
		second := b.rotate(t, b.rotate(t, b.key))
		b.grant(t, pack("2", 100))
		if got := b.grant(t, pack("1", 100)); !got.replayed || got.key != b.key {
			t.Errorf("got %+v", got)
		}
		b.grant(t, invoice(1))
		b.want(t, second, 305, "basic")
		third := b.rotate(t, second)
		b.key = third
		b.reverse(t, b.st, "pi_1", "r40", paidAt)
		b.takeStep(t, ":ended", "")
		b.want(t, third, 265, "free")
	}},
	{"revoked, and the user has others", func(t *testing.T, b *buying) {
		broken := b.issue(t, "free", 7)
		b.r.Do(t, "HSET", apiKeyRedisKey(broken), "tokensLeft", "x")
		oldest := b.issue(t, "free", 7)
		b.share(t, b.issue(t, "free", 8))
		b.grant(t, pack("1", 100))
		b.revoke(t, b.key)
		if got := b.grant(t, pack("1", 100)); !got.replayed || got.key != b.key {
			t.Errorf("what was granted before: %+v", got)
		}
		for _, replayed := range []bool{false, true} {
			for _, g := range []grant{pack("2", 100), invoice(1)} {
				if got := b.grant(t, g); got.replayed != replayed || got.key != oldest || got.tokens != 100 {
					t.Errorf("got %+v", got)
				}
			}
		}
		b.want(t, oldest, 207, "basic")
		present := b.rotate(t, oldest)
		b.grant(t, invoice(2))
		b.want(t, present, 307, "basic")
		b.key = present
		b.reverse(t, b.st, "pi_2", "r100", paidAt)
		b.takeStep(t, ":ended", "")
		b.want(t, present, 207, "free")
		if got, err := b.st.Reverse(in(10*time.Second), b.tn, b.c, "cs_1", parseReversal("r100", paidAt)); err != nil || got.tokens != 0 {
			t.Errorf("from a key that is gone: %+v, %v", got, err)
		}
		b.wantList(t, "payment cs_1 +100", "payment cs_2 +100", "subscription in_1 +100 basic", "subscription in_2 +100 basic",
			"refund ch_1 -100", "refund ch_1 +0")
	}},
}

var lostReceivers = []receiverTest{
	{"the other is gone, too", func(t *testing.T, b *buying) {
		heir, next := b.issue(t, "free", 1), b.issue(t, "free", 2)
		b.revoke(t, b.key)
		b.grant(t, pack("1", 100))
		b.want(t, heir, 101, "free")
		b.revoke(t, heir)
		if got := b.grant(t, pack("1", 100)); !got.replayed || got.key != heir {
			t.Errorf("what was granted before: %+v", got)
		}
		b.grant(t, pack("2", 100))
		b.want(t, next, 102, "free")
		b.revoke(t, next)
		if got := b.grant(t, pack("1", 100)); !got.replayed || got.unassigned {
			t.Errorf("what was granted before: %+v", got)
		}
		if got := b.grant(t, pack("3", 100)); !got.unassigned || got.replayed {
			t.Errorf("to nobody: %+v", got)
		}
	}},
	{"named, but not granted", func(t *testing.T, b *buying) {
		heir, next := b.issue(t, "free", 1), b.issue(t, "free", 2)
		b.revoke(t, b.key)
		g := pack("1", 100)
		b.r.Do(t, "SET", receiverRedisKey(b.key), heir)
		b.r.Do(t, "SET", paidRedisKey(b.key, g.id), "to "+heir+" "+g.facts(b.c))
		b.revoke(t, heir)
		b.grant(t, g)
		b.want(t, next, 102, "free")
	}},
	{"nobody, then somebody", func(t *testing.T, b *buying) {
		b.revoke(t, b.key)
		for i := range 2 {
			if got := b.grant(t, pack("1", 100)); !got.unassigned || got.replayed != (i > 0) || got.tokens != 100 || got.key != "" {
				t.Errorf("got %+v", got)
			}
		}
		b.wantList(t, "payment cs_1 +100 unassigned")
		if n, err := b.st.Granted(in(10*time.Second), b.tn, b.c, "pi_1"); err != ErrNotGranted {
			t.Errorf("granted are %d, %v", n, err)
		}
		if got, err := b.st.Reverse(in(10*time.Second), b.tn, b.c, "cs_1", parseReversal("r100", paidAt)); err != ErrNotGranted {
			t.Errorf("got %+v, %v", got, err)
		}
		key := b.issue(t, "free", 1)
		for i := range 2 {
			if got := b.grant(t, pack("1", 100)); got.unassigned || got.replayed != (i > 0) || got.key != key {
				t.Errorf("got %+v", got)
			}
		}
		b.want(t, key, 101, "free")
		b.wantList(t, "payment cs_1 +100")
	}},
	{"ended before it was granted", func(t *testing.T, b *buying) {
		b.revoke(t, b.key)
		b.takeStep(t, ":ended", "")
		key := b.issue(t, "free", 1)
		b.grant(t, invoice(1))
		b.want(t, key, 101, "free")
	}},
	{"expired", func(t *testing.T, b *buying) {
		key := b.issue(t, "free", 1)
		b.r.Do(t, "PEXPIRE", apiKeyRedisKey(b.key), 1)
		waitGone(t, b.r, apiKeyRedisKey(b.key))
		b.grant(t, pack("1", 100))
		b.want(t, key, 101, "free")
	}},
	{"another tenant's by now", func(t *testing.T, b *buying) {
		b.r.Do(t, "HSET", apiKeyRedisKey(b.key), "generation", "G")
		if got := b.grant(t, pack("1", 100)); !got.unassigned {
			t.Errorf("got %+v", got)
		}
	}},
	{"many that are gone", func(t *testing.T, b *buying) {
		key := b.issue(t, "free", 1)
		b.revoke(t, b.key)
		index := []any{userKeysByTimeRedisKey(b.tn.id, "u")}
		for i := range 1100 {
			index = append(index, 1, fmt.Sprintf("user_%08d-2222-4333-8444-555555555555", i))
		}
		b.r.Do(t, "ZADD", index...)
		if got, err := b.tryGrant(b.st, pack("1", 100)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %+v, %v", got, err)
		}
		b.grant(t, pack("1", 100))
		b.want(t, key, 101, "free")
	}},
	{"signed in again", func(t *testing.T, b *buying) {
		who := signInIdentity{tenant: b.tn, userID: "google:s", group: "free", tokens: 5}
		keys := make([]string, 2)
		for i := range keys {
			got, err := b.st.SignIn(in(10*time.Second), who, "")
			if err != nil {
				t.Fatal(err)
			}
			if keys[i] = got.key; i == 0 {
				b.revoke(t, got.key)
			}
		}
		b.c.first, b.c.userID = keys[0], who.userID
		b.grant(t, pack("1", 100))
		b.want(t, keys[1], 100, "free")
	}},
	{"in its grace", func(t *testing.T, b *buying) { // its former name is that of a key that shares with it
		present := b.rotateWithGrace(t, b.key, time.Hour)
		b.grant(t, pack("1", 100))
		b.r.Do(t, "DEL", currentRedisKey(b.key)) // which an earlier version does not write
		b.grant(t, invoice(1))
		b.want(t, present, 205, "basic")
		shares := receiver{first: b.key, key: b.key} // found before the rotation
		g := invoice(2)
		if got, err := b.st.runGrant(in(10*time.Second), b.tn, b.c, g, shares, g.facts(b.c)); err != nil || got[0] != "gone" {
			t.Errorf("granted to the former name: %q, %v", got, err)
		}
		keys := []string{apiKeyRedisKey(b.key), holdsRedisKey(b.key), paidRedisKey(b.key, "cs_1")}
		args := []any{"", 100, "", 0, 1, "ch_1"}
		if got, err := b.st.runPaid(in(10*time.Second), b.tn, reverseScript, b.key, keys, args); err != nil || got[0] != "gone" {
			t.Errorf("taken from the former name: %q, %v", got, err)
		}
		got, err := b.st.redis.Eval(in(10*time.Second), subscriptionScript, keys[:1],
			append([]any{b.tn.id, ""}, (&subscriptionState{id: "sub_1", ended: true}).args(shares)...)...)
		if text, _ := got.([]byte); string(text) != "gone" {
			t.Errorf("set for the former name: %q, %v", text, err)
		}
	}},
	{"no user", func(t *testing.T, b *buying) {
		b.revoke(t, b.key)
		b.c.userID = ""
		if got := b.grant(t, pack("1", 100)); !got.unassigned {
			t.Errorf("got %+v", got)
		}
	}},
	{"the record of where it is now was lost", func(t *testing.T, b *buying) {
		present := b.rotate(t, b.key)
		b.r.Do(t, "DEL", currentRedisKey(b.key), successorRedisKey(b.key))
		b.grant(t, pack("1", 100))
		b.grant(t, pack("1", 100))
		b.want(t, present, 105, "free")
	}},
}

// waitGone waits until Redis has no key of that name.
func waitGone(t *testing.T, r *redistest.Server, name string) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if r.Int(t, "EXISTS", name) == 1 {
			return errors.New("it is still there")
		}
		return nil
	})
}

// What a payment has granted is known for 400 days, by the first name of the key, also after that is rotated or revoked.
func TestPaidRecordsStay(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	b := newBuying(t, r, newTestStore(t, r), "free", 5)
	b.grant(t, pack("1", 100))
	b.grant(t, invoice(1))
	b.takeStep(t, ":ended", "")
	b.revoke(t, b.rotate(t, b.key))
	other := b.issue(t, "free", 5)
	for _, id := range []string{"2", "3"} {
		b.grant(t, pack(id, 100))
		r.Do(t, "PEXPIRE", receiverRedisKey(b.key), 1_000_000)
	}
	b.grant(t, pack("4", 100))
	if days := float64(r.Int(t, "PTTL", paidRedisKey(other, "cs_4"))) / 86400e3; days > 400 || days < 399 {
		t.Errorf("that of the other key lives for another %f days", days)
	}
	for _, id := range []string{"cs_1", "pi_1", "in_1", "sub_1", "cs_4", "pi_4", "receiver"} {
		if days := float64(r.Int(t, "PTTL", paidRedisKey(b.key, id))) / 86400e3; days > 400 || days < 399 {
			t.Errorf("%s lives for another %f days", id, days)
		}
	}
}

// Admins see the last payments, in pages.
func TestListOfPayments(t *testing.T) {
	t.Parallel()
	s := newService(t)
	b := newBuying(t, testRedis, newTestStore(t, testRedis), "free", 0)
	path := "/" + b.tn.id + "/admin/payments"
	s.admin(t, "GET", path, "").want(t, 200, `{"payments":[],"next":null}`)
	for i := range 5 {
		g := pack(strconv.Itoa(i), int64(i+1))
		if i > 0 {
			g.at = paidAt.Add(time.Duration(i/2) * time.Hour) // some at the same time
		}
		b.grant(t, g)
	}
	b.grant(t, grant{id: "in_1", at: paidAt.Add(24 * time.Hour), price: "price_2", group: "basic", add: 7,
		state: &subscriptionState{id: "sub_1", group: "basic"}})
	b.reverse(t, b.st, "cs_4", "r2", paidAt.Add(48*time.Hour))
	b.reverse(t, b.st, "in_1", "r1", paidAt.Add(24*time.Hour)) // in the same second
	b.reverse(t, b.st, "in_1", "r3", paidAt.Add(24*time.Hour))
	b.revoke(t, b.key)
	lost := pack("9", 9)
	lost.at = paidAt.Add(72 * time.Hour)
	b.grant(t, lost)
	testRedis.Do(t, "ZADD", paymentsRedisKey(b.tn.id, ""), paidAt.Add(96*time.Hour).UnixMilli(), "not ours")
	const want = `{"at":"2026-11-21T11:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":9,"group":null,` +
		`"stripeId":"cs_9","unassigned":true},` +
		`{"at":"2026-11-20T11:06:40.000Z","userId":"u","kind":"refund","price":"price_1","tokens":-2,"group":null,"stripeId":"ch_1"},` +
		`{"at":"2026-11-19T11:06:40.000Z","userId":"u","kind":"refund","price":"price_2","tokens":-2,"group":"basic","stripeId":"ch_1"},` +
		`{"at":"2026-11-19T11:06:40.000Z","userId":"u","kind":"refund","price":"price_2","tokens":-1,"group":"basic","stripeId":"ch_1"},` +
		`{"at":"2026-11-19T11:06:40.000Z","userId":"u","kind":"subscription","price":"price_2","tokens":7,"group":"basic",` +
		`"stripeId":"in_1"},` +
		`{"at":"2026-11-18T13:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":5,"group":null,"stripeId":"cs_4"},` +
		`{"at":"2026-11-18T12:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":4,"group":null,"stripeId":"cs_3"},` +
		`{"at":"2026-11-18T12:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":3,"group":null,"stripeId":"cs_2"},` +
		`{"at":"2026-11-18T11:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":2,"group":null,"stripeId":"cs_1"},` +
		`{"at":"2026-11-18T11:06:40.000Z","userId":"u","kind":"payment","price":"price_1","tokens":1,"group":null,"stripeId":"cs_0"}`
	s.admin(t, "GET", path, "").want(t, 200, `{"payments":[`+want+`],"next":null}`)
	for limit := 1; limit <= 11; limit++ {
		var all []string
		for query := fmt.Sprintf("?limit=%d", limit); ; {
			got := s.admin(t, "GET", path+query, "")
			got.want(t, 200, "")
			list, next, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(got.body), `{"payments":[`), `],"next":`)
			if list != "" {
				all = append(all, list)
			}
			if next == "null}" {
				break
			}
			query = fmt.Sprintf("?limit=%d&after=%s", limit, got.text(t, "next"))
		}
		if got := strings.Join(all, ","); got != want {
			t.Errorf("in pages of %d: %s", limit, got)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=1001", "?after=x", "?after=", "?user=u"} {
		s.admin(t, "GET", path+query, "").want(t, 400, "")
	}
	s.do(t, "GET", path, "", bearer(b.key)).want(t, 401, "")
	many := []any{paymentsRedisKey(b.tn.id, "")}
	for i := range maxPayments + 5 {
		p := payment{at: paidAt.Add(-time.Hour), userID: "u", kind: paidPack, stripeID: fmt.Sprintf("cs_x%d", i)}
		many = append(many, p.at.UnixMilli(), p.String())
	}
	testRedis.Do(t, "ZADD", many...)
	b.grant(t, pack("1", 2)) // repeated
	if n := testRedis.Int(t, "ZCARD", paymentsRedisKey(b.tn.id, "")); n != maxPayments {
		t.Errorf("the list has %d entries", n)
	}
	s.admin(t, "GET", path+"?limit=8", "").want(t, 200, "")
	s.admin(t, "DELETE", "/admin/tenants/"+b.tn.id, "").want(t, 204, "")
	if testRedis.Int(t, "EXISTS", paymentsRedisKey(b.tn.id, "")) == 1 {
		t.Error("the list outlives the tenant")
	}
}

// A tenant that is made again sees nothing of the payments of its predecessor.
func TestPaymentsOfFormerTenant(t *testing.T) {
	t.Parallel()
	s := newService(t)
	b := newBuying(t, testRedis, newTestStore(t, testRedis), "free", 0)
	if err := b.st.SaveCheckout(in(10*time.Second), b.tn, "ref", b.c); err != nil {
		t.Fatal(err)
	}
	s.admin(t, "DELETE", "/admin/tenants/"+b.tn.id, "").want(t, 204, "")
	s.createTenant(t, b.tn.id, paymentConfig).want(t, 201, "")
	b.grant(t, pack("1", 5)) // that was under way
	path := "/" + b.tn.id + "/admin/payments"
	s.admin(t, "GET", path, "").want(t, 200, `{"payments":[],"next":null}`)
	former := b.c
	b.st.configs.invalidate(b.tn.id)
	b.tn = b.st.wantTenant(t, b.tn.id)
	if got, err := b.st.Checkout(in(10*time.Second), b.tn, "ref"); err != ErrNoCheckout {
		t.Errorf("got %+v, %v", got, err)
	}
	b.c.first = b.issue(t, "free", 0)
	b.grant(t, pack("1", 5))
	b.want(t, b.c.first, 5, "free")
	if n := tokensLeft(t, former.first); n != 5 {
		t.Errorf("the former key has %d tokens", n)
	}
	list := s.admin(t, "GET", path, "")
	if list.want(t, 200, ""); strings.Count(list.body, "cs_1") != 1 {
		t.Errorf("got %s", list.body)
	}
}

// A payment that is found to be nobody's while somebody else assigns it is in the list once, as assigned.
func TestAssignedMeanwhile(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate { return redistest.Pass })
	slow := newTestStoreAt(t, proxy.URL)
	b := newBuying(t, r, newTestStore(t, r), "free", 0)
	b.revoke(t, b.key)
	var once sync.Once
	key := ""
	proxy.OnRequest(func(request []byte) redistest.Fate {
		if bytes.Contains(request, []byte(`"unassigned":true`)) { // it is listed
			once.Do(func() {
				key = b.issue(t, "free", 0)
				b.grant(t, pack("1", 100))
			})
		}
		return redistest.Pass
	})
	got, err := b.tryGrant(slow, pack("1", 100))
	if err != nil || got.unassigned || !got.replayed || got.key != key {
		t.Errorf("got %+v, %v", got, err)
	}
	b.want(t, key, 100, "free")
	b.wantList(t, "payment cs_1 +100")
}

// The key's group may have to be asked for first, and many holds of it may have expired.
func TestPaidKeyWithManyGroupsAndHolds(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	b := newBuying(t, r, newTestStore(t, r), "g7", 5)
	groups := make([]string, 300)
	for i := range groups {
		groups[i] = fmt.Sprintf(`"g%d":{"tokens":1,"refill":{"tokens":%d,"every":3600}}`, i, i+1)
	}
	r.Do(t, "SET", configRedisKey(b.tn.id), `{"user_groups":{`+strings.Join(groups, ",")+`}}`)
	b.st.configs.invalidate(b.tn.id)
	b.tn = b.st.wantTenant(t, b.tn.id)
	expire := func() {
		for i := range 250 {
			r.Do(t, "HSET", holdsRedisKey(b.key), fmt.Sprintf("hold_%d", i), "2 1")
		}
		r.Do(t, "HSET", apiKeyRedisKey(b.key), "holdsDue", 1, "createdAt", "2020-01-01T00:00:00.000Z")
	}
	expire()
	b.grant(t, pack("1", 100))
	b.want(t, b.key, 605, "g7")
	expire()
	r.Do(t, "HSET", apiKeyRedisKey(b.key), "tokensLeft", 0)
	if got, err := b.st.Reverse(in(10*time.Second), b.tn, b.c, "cs_1", parseReversal("r100", paidAt)); err != nil || got.tokens != -100 {
		t.Errorf("got %+v, %v", got, err)
	}
	b.want(t, b.key, 400, "g7")
}

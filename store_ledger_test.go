package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/idtokentest"
	"tollgate/internal/redistest"
)

const walkConfig = `{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{
	"anonymous":{"tokens":60,"refill":{"tokens":50,"every":3600}},
	"google_logged_in":{"tokens":100,"refill":{"tokens":120,"every":3600},"max_concurrent":4}}}`

const walkConcurrent = 4 // the user's max_concurrent; a visitor has none

// A ledgerModel is what an API key must have after each step, computed without scripts. It also notes what happened, for
// ledgerHistory.
type ledgerModel struct {
	left, refillTo   int
	granted, spent   int
	refilled, repaid int
	pools            []*int // what is still to be repaid of each refill that came while a hold was open
	isDue            bool
	mayLag           bool // Redis may not have returned what has expired
	holds            map[string]modelHold
	history          []func(*ledgerHistory)
}

// A modelHold repays the debts that it has from a visitor's key, and the pools from opened on.
type modelHold struct {
	tokens, opened int
	debts          []*int
}

func newLedgerModel(tokens, refillTo int) *ledgerModel {
	return &ledgerModel{left: tokens, granted: tokens, refillTo: refillTo, holds: make(map[string]modelHold)}
}

func (m *ledgerModel) note(event func(*ledgerHistory)) { m.history = append(m.history, event) }

func (m *ledgerModel) held() (sum int) {
	for _, h := range m.holds {
		sum += h.tokens
	}
	return sum
}

// isGateways reports whether a hold is the gateway's.
func isGateways(id string) bool {
	return strings.HasPrefix(id, leasePrefix) || strings.HasPrefix(id, extraPrefix)
}

// leases returns how many requests of the gateway have holds, and the tokens of all that are the gateway's.
func (m *ledgerModel) leases() (n, sum int) {
	for id, h := range m.holds {
		if strings.HasPrefix(id, leasePrefix) {
			n++
		}
		if isGateways(id) {
			sum += h.tokens
		}
	}
	return n, sum
}

// lease returns what a hold of the gateway leads to: the error, and the tokens held.
func (m *ledgerModel) lease(r holdRequest, concurrent int) (held int, err error) {
	leases, leased := m.leases()
	least, most := int(r.least), int(r.most)
	if concurrent > 0 && leases >= concurrent {
		return leased, ErrTooManyRequests
	}
	if r.patient && m.left < most && m.left+leased >= most || m.left < least {
		return leased, insufficientTokensError{int64(m.left), int64(leased)}
	}
	if r.half && m.left < most {
		return least + (m.left-least)/2, nil
	}
	return min(most, m.left), nil
}

func (m *ledgerModel) hold(id string, tokens int) {
	m.holds[id] = modelHold{tokens: tokens, opened: len(m.pools)}
	m.left -= tokens
	m.note(func(h *ledgerHistory) { h.left, h.open[id] = h.left-tokens, tokens })
}

func (m *ledgerModel) charge(tokens int) {
	m.left, m.spent = m.left-tokens, m.spent+tokens
	m.note(func(h *ledgerHistory) { h.left -= tokens })
}

// refill does what is due.
func (m *ledgerModel) refill() {
	if !m.isDue {
		return
	}
	if given := m.refillTo - m.left; given > 0 {
		m.left += given
		m.refilled += given
		m.advance(given)
	}
	m.isDue = false
	m.note(func(h *ledgerHistory) {
		h.endAll(func(id string, tokens int) int { return max(tokens-h.charged[id], 0) })
		h.left = max(h.left, m.refillTo)
	})
}

// advance notes tokens that open holds are to repay.
func (m *ledgerModel) advance(tokens int) {
	if len(m.holds) > 0 {
		m.pools = append(m.pools, &tokens)
	}
}

// end ends a hold and returns what is charged for it.
func (m *ledgerModel) end(id string, used int) (charged int) {
	h := m.holds[id]
	charged = min(used, h.tokens+m.left)
	back := h.tokens - charged
	for _, pool := range slices.Concat(h.debts, m.pools[h.opened:]) {
		n := max(min(back, *pool), 0)
		*pool -= n
		m.repaid += n
		back -= n
	}
	m.left += back
	m.spent += charged
	if delete(m.holds, id); len(m.holds) == 0 {
		m.pools = nil
	}
	m.note(func(history *ledgerHistory) { history.end(id, charged) })
	return charged
}

// set sets the balance. What is held is forfeited.
func (m *ledgerModel) set(tokens int) {
	held := m.held()
	m.granted += tokens - m.left - held
	m.refilled += held
	m.left = tokens
	m.advance(held)
	m.note(func(h *ledgerHistory) {
		h.endAll(func(string, int) int { return 0 })
		h.left = tokens
	})
}

// merge adds what a visitor has to m.
func (m *ledgerModel) merge(visitor *ledgerModel) {
	visitor.refill()
	for id, h := range visitor.holds {
		m.holds[id] = modelHold{h.tokens, len(m.pools), visitor.pools[h.opened:]}
	}
	m.left += visitor.left
	m.granted, m.spent = m.granted+visitor.granted, m.spent+visitor.spent
	m.refilled, m.repaid = m.refilled+visitor.refilled, m.repaid+visitor.repaid
	m.note(func(h *ledgerHistory) {
		other := newLedgerHistory(60, h.charged)
		for _, event := range visitor.history {
			event(other)
		}
		h.left += other.left
		maps.Copy(h.open, other.open)
		maps.Copy(h.ended, other.ended)
	})
}

// A ledgerHistory is the same steps again, knowing what each hold will be charged: as if each had ended before the first
// refill that it was open at, so that nothing need be repaid.
type ledgerHistory struct {
	left    int
	open    map[string]int // tokens of holds that have not ended
	ended   map[string]int // and of those that have ended before their time
	charged map[string]int
}

func newLedgerHistory(tokens int, charged map[string]int) *ledgerHistory {
	return &ledgerHistory{tokens, make(map[string]int), make(map[string]int), charged}
}

// endAll ends all open holds before their time. back says what each gives back.
func (h *ledgerHistory) endAll(back func(id string, tokens int) int) {
	for id, tokens := range h.open {
		h.left += back(id, tokens)
		h.ended[id] = tokens
	}
	clear(h.open)
}

func (h *ledgerHistory) end(id string, charged int) {
	if tokens, ok := h.ended[id]; ok {
		h.left -= max(charged-tokens, 0)
		return
	}
	h.left += h.open[id] - charged
	delete(h.open, id)
}

// A ledgerWalk makes random steps with the key of a user and those of visitors who become that user.
type ledgerWalk struct {
	*testing.T
	random   *rand.Rand
	services []*service
	stores   []*store // of two more processes
	redis    func(command string, args ...any) any
	tenant   string
	user     string
	key      string
	model    *ledgerModel
	moved    map[string]string // hold ID → the visitor's key it was taken with
	charged  map[string]int    // hold ID → what it was settled with
	merges   int
	steps    []string
}

func (w *ledgerWalk) service() *service { return w.services[w.random.IntN(len(w.services))] }

// do sends a request, and again if a busy machine has missed a deadline. What has an Idempotency-Key is done once.
func (w *ledgerWalk) do(method, path, body string, headers ...string) reply {
	return repeat(func() reply { return w.service().do(w.T, method, "/"+w.tenant+path, body, headers...) })
}

// once returns an Idempotency-Key of one use.
func (w *ledgerWalk) once() string { return fmt.Sprintf("%s%x", retryKey, w.random.Uint64()) }

// wantLeft compares the balance that a response has with the model's.
func (w *ledgerWalk) wantLeft(got reply, m *ledgerModel) {
	w.Helper()
	if left := int(got.field(w.T, "tokensLeft").(float64)); left != m.left {
		w.Fatalf("%d tokens are left, want %d; %s after\n%s", left, m.left, got.body, strings.Join(w.steps, "\n"))
	}
	m.mayLag = false
}

// hold, lease, earlier, charge, settle, look, expire and age make one step with a key.
func (w *ledgerWalk) hold(key string, m *ledgerModel) {
	n := 1 + w.random.IntN(60)
	m.refill()
	got := w.do("POST", "/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, n), bearer(key), w.once())
	if m.left < n {
		got.want(w.T, 402, "")
	} else {
		got.want(w.T, 201, "")
		m.hold(got.text(w.T, "holdId"), n)
	}
	w.wantLeft(got, m)
}

// newLease returns a request for a hold of the gateway.
func (w *ledgerWalk) newLease(key, prefix string) holdRequest {
	r := holdRequest{key: key, most: int64(1 + w.random.IntN(90)), ttl: time.Hour}
	r.least, r.half, r.patient = 1+w.random.Int64N(r.most), w.random.IntN(2) == 0, w.random.IntN(2) == 0
	r.id, _ = newCredential(prefix)
	return r
}

// lease is a hold of the gateway, the first or a further one of a session.
func (w *ledgerWalk) lease(key string, m *ledgerModel) {
	r, concurrent := w.newLease(key, leasePrefix), 0
	if w.random.IntN(3) == 0 {
		r = w.newLease(key, extraPrefix)
	} else if key == w.key {
		concurrent = walkConcurrent
	}
	m.refill()
	held, refusal := m.lease(r, concurrent)
	store := w.stores[w.random.IntN(len(w.stores))]
	got, err := store.Hold(in(10*time.Second), store.wantTenant(w.T, w.tenant), r)
	if int(got.held) != held || !errors.Is(err, refusal) {
		w.Fatalf("%+v: held %d, %v; want %d, %v; after\n%s", r, got.held, err, held, refusal, strings.Join(w.steps, "\n"))
	}
	if refusal == nil {
		m.hold(r.id, held)
	}
	if int(got.tokensLeft) != m.left {
		w.Fatalf("%+v: %d are left, want %d; after\n%s", r, got.tokensLeft, m.left, strings.Join(w.steps, "\n"))
	}
	m.mayLag = false
}

// earlier is what an earlier version does, which does not know the field leases: it opens a hold, or ends one that has
// expired.
func (w *ledgerWalk) earlier(key string, m *ledgerModel) {
	if m.isDue || m.mayLag {
		return
	}
	name := "apiKey:" + key
	id := w.anyHold(m)
	if len(m.holds) > 1 && w.redis("HEXISTS", name, "hold:"+id) == int64(0) && len(m.pools) == 0 { // there is nothing to repay
		m.end(id, 0)
		w.redis("HDEL", "{"+name+"}:holds", id)
		w.redis("HSET", name, "tokensHeld", m.held(), "tokensLeft", m.left)
	} else if n := 1 + w.random.IntN(20); m.left >= n {
		deadline := time.Now().Add(time.Hour).UnixMilli()
		id, _ := newCredential(holdPrefix)
		fields, _ := redis.Strings(w.redis("HMGET", name, "holdsDue", "advanced"), nil)
		w.redis("HSET", "{"+name+"}:holds", id, fmt.Sprint(n, " ", deadline))
		w.redis("HSET", name, "tokensHeld", m.held()+n, "tokensLeft", m.left-n,
			"holdsDue", cmp.Or(fields[0], fmt.Sprint(deadline)), "hold:"+id, cmp.Or(fields[1], "0")+" - 0 ")
		m.hold(id, n)
	}
}

func (w *ledgerWalk) charge(key string, m *ledgerModel) {
	n := 1 + w.random.IntN(60)
	m.refill()
	got := w.do("POST", "/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, n), bearer(key), w.once())
	switch {
	case m.left < n:
		got.want(w.T, 402, "")
		w.wantLeft(got, m)
	default:
		got.want(w.T, 200, "")
		m.charge(n)
		if !m.mayLag {
			w.wantLeft(got, m)
		}
	}
}

// anyHold returns the ID of one of the open holds of m, or "" if none is open.
func (w *ledgerWalk) anyHold(m *ledgerModel) string {
	ids := slices.Sorted(maps.Keys(m.holds))
	if len(ids) == 0 {
		return ""
	}
	return ids[w.random.IntN(len(ids))]
}

func (w *ledgerWalk) settle(key string, m *ledgerModel) {
	id := w.anyHold(m)
	if id == "" {
		return
	}
	key = cmp.Or(w.moved[id], key)
	used := w.random.IntN(2 + m.holds[id].tokens*3/2)
	m.refill()
	charged := m.end(id, used)
	w.charged[id] = charged
	if isGateways(id) {
		w.settleLease(key, id, used, charged, m)
		return
	}
	got := w.do("POST", "/tokens/holds/"+id+"/settle", fmt.Sprintf(`{"tokens":%d}`, used), bearer(key))
	got.want(w.T, 200, "")
	if n := int(got.field(w.T, "charged").(float64)); n != charged {
		w.Fatalf("%d were charged, want %d; after\n%s", n, charged, strings.Join(w.steps, "\n"))
	}
	w.wantLeft(got, m)
}

func (w *ledgerWalk) settleLease(key, id string, used, charged int, m *ledgerModel) {
	store := w.stores[w.random.IntN(len(w.stores))]
	got, err := store.Settle(in(10*time.Second), store.wantTenant(w.T, w.tenant), newHolder(key),
		settleRequest{holdID: id, used: int64(used), isLease: true})
	if err != nil || int(got.charged) != charged || int(got.tokensLeft) != m.left {
		w.Fatalf("got %+v, %v; want %d charged and %d left; after\n%s", got, err, charged, m.left, strings.Join(w.steps, "\n"))
	}
	m.mayLag = false
}

// exchange settles a hold of the gateway and takes another in its place, up to three times.
func (w *ledgerWalk) exchange(key string, m *ledgerModel) {
	id := w.anyHold(m)
	if !isGateways(id) {
		return
	}
	key = cmp.Or(w.moved[id], key)
	used := w.random.IntN(2 + m.holds[id].tokens*3/2)
	next := w.newLease("", id[:len(leasePrefix)])
	first := w.stores[0]
	if _, err := first.Check(in(10*time.Second), first.wantTenant(w.T, w.tenant), newHolder(key), []string{"m"}); err != nil {
		w.Fatalf("Check: %v; after\n%s", err, strings.Join(w.steps, "\n"))
	}
	m.refill()
	charged := m.end(id, used)
	w.charged[id] = charged
	left := m.left
	held, refusal := m.lease(next, 0)
	if refusal == nil {
		m.hold(next.id, held)
	}
	for range 1 + w.random.IntN(3) {
		store := w.stores[w.random.IntN(len(w.stores))]
		got, err := store.Exchange(in(10*time.Second), store.wantTenant(w.T, w.tenant), newHolder(key),
			settleRequest{holdID: id, used: int64(used), isLease: true}, next)
		want := exchange{settlement: settlement{got.key, int64(charged), int64(left), got.group, got.replayed}, isSettled: true}
		if refusal == nil {
			want.held = int64(held)
		}
		if got != want || !errors.Is(err, refusal) {
			w.Fatalf("got %+v, %v; want %+v, %v; after\n%s", got, err, want, refusal, strings.Join(w.steps, "\n"))
		}
	}
	m.mayLag = false
}

func (w *ledgerWalk) look(key string, m *ledgerModel) {
	m.refill()
	got := w.do("GET", "/auth/key", "", bearer(key))
	w.wantLeft(got, m)
	if held := m.held(); held > 0 && got.field(w.T, "tokensHeld") != float64(held) {
		w.Fatalf("want %d tokens held; %s after\n%s", held, got.body, strings.Join(w.steps, "\n"))
	}
}

// expire moves the deadline of a hold to the past.
func (w *ledgerWalk) expire(key string, m *ledgerModel) {
	id := w.anyHold(m)
	if id == "" {
		return
	}
	w.redis("HSET", "{apiKey:"+key+"}:holds", id, fmt.Sprint(m.holds[id].tokens, " 1"))
	w.redis("HSET", "apiKey:"+key, "holdsDue", 1)
	m.end(id, 0) // also if a refill is due: what has expired is returned before
	m.mayLag = true
}

// age lets a period pass.
func (w *ledgerWalk) age(key string, m *ledgerModel) {
	name, period := "apiKey:"+key, time.Hour
	fields, err := redis.Strings(w.redis("HMGET", name, "createdAt", "refilledAt"), nil)
	if err != nil {
		w.Fatal(err)
	}
	created, _ := time.Parse(timeLayout, fields[0])
	w.redis("HSET", name, "createdAt", created.Add(-period).Format(timeLayout))
	if refilled, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
		w.redis("HSET", name, "refilledAt", refilled-period.Milliseconds())
	}
	m.isDue = true
}

// set lets an admin set the balance, which forfeits what is held.
func (w *ledgerWalk) set(m *ledgerModel) {
	n := w.random.IntN(150)
	m.refill()
	got := w.do("PATCH", "/admin/keys/"+w.key, fmt.Sprintf(`{"tokens":%d}`, n), bearer(testAdminToken))
	got.want(w.T, 200, "")
	m.set(n)
	w.wantLeft(got, m)
}

func (w *ledgerWalk) rotate(m *ledgerModel) {
	m.refill()
	got := w.do("POST", "/admin/keys/"+w.key+"/rotate", "", bearer(testAdminToken), w.once())
	got.want(w.T, 200, "")
	w.key = got.text(w.T, "apiKey")
}

// merge lets a visitor make a few steps and sign in.
func (w *ledgerWalk) merge() {
	if w.merges == maxMerges {
		return
	}
	w.merges++
	visitor := w.service().login(w.T, w.tenant)
	m := newLedgerModel(60, 50)
	for range w.random.IntN(12) {
		step := []func(string, *ledgerModel){w.hold, w.hold, w.lease, w.lease, w.earlier, w.charge, w.settle, w.exchange, w.look,
			w.expire, w.age, w.age}[w.random.IntN(12)]
		step(visitor, m)
	}
	w.model.refill()
	w.model.merge(m)
	for id := range m.holds {
		if w.random.IntN(2) == 0 {
			w.moved[id] = visitor
		}
	}
	got := w.do("POST", "/auth/google", tokenOf(w.user), bearer(visitor))
	got.want(w.T, 200, "")
	if got.field(w.T, "merged") != true {
		w.Errorf("got %s", got.body)
	}
	w.wantLeft(got, w.model)
}

// walk makes n steps, ends all holds, and compares the sums.
func (w *ledgerWalk) walk(n int) {
	w.key = w.service().wantSignIn(w.T, w.tenant, w.user, 100)
	m := newLedgerModel(100, 120)
	w.model = m
	steps := []struct {
		name string
		step func()
	}{
		{"hold", func() { w.hold(w.key, m) }}, {"hold", func() { w.hold(w.key, m) }}, {"hold", func() { w.hold(w.key, m) }},
		{"lease", func() { w.lease(w.key, m) }}, {"lease", func() { w.lease(w.key, m) }}, {"lease", func() { w.lease(w.key, m) }},
		{"earlier", func() { w.earlier(w.key, m) }},
		{"charge", func() { w.charge(w.key, m) }}, {"charge", func() { w.charge(w.key, m) }},
		{"settle", func() { w.settle(w.key, m) }}, {"settle", func() { w.settle(w.key, m) }},
		{"exchange", func() { w.exchange(w.key, m) }}, {"exchange", func() { w.exchange(w.key, m) }},
		{"look", func() { w.look(w.key, m) }}, {"expire", func() { w.expire(w.key, m) }}, {"age", func() { w.age(w.key, m) }},
		{"rotate", func() { w.rotate(m) }}, {"merge", w.merge}, {"set", func() { w.set(m) }},
	}
	for range n {
		next := steps[w.random.IntN(len(steps))]
		w.steps = append(w.steps, fmt.Sprintf("%s: left %d, held %v", next.name, m.left, m.holds))
		next.step()
	}
	for len(m.holds) > 0 {
		w.settle(w.key, m)
	}
	w.look(w.key, m)
	history := newLedgerHistory(100, w.charged)
	for _, event := range m.history {
		event(history)
	}
	if history.left != m.left {
		w.Errorf("%d tokens are left, want %d, as if holds had ended before refills; after\n%s",
			m.left, history.left, strings.Join(w.steps, "\n"))
	}
	if m.granted+m.refilled-m.repaid != m.spent+m.left {
		w.Errorf("%d were granted, %d refilled, %d of it repaid, %d spent, and %d are left",
			m.granted, m.refilled, m.repaid, m.spent, m.left)
	}
	key := w.redis("HKEYS", "apiKey:"+w.key)
	fields, err := redis.Strings(key, nil)
	if err != nil {
		w.Fatal(err)
	}
	for _, field := range fields {
		kind, _, _ := strings.Cut(field, ":")
		if slices.Contains([]string{"hold", "holdsDue", "tokensHeld", "leases", "advanced", "repaid", "debt"}, kind) {
			w.Errorf("without an open hold the key has the field %s", field)
		}
	}
}

// testWalks makes random walks beside one another.
func testWalks(t *testing.T, services []*service, url, tenant string, r *redistest.Server, walks, steps int) {
	t.Helper()
	stores := []*store{newTestStoreAt(t, url), newTestStoreAt(t, url)}
	seed := uint64(time.Now().UnixNano())
	for i := range walks {
		t.Run(fmt.Sprintf("seed %d %d", seed, i), func(t *testing.T) {
			t.Parallel()
			w := &ledgerWalk{
				T: t, random: rand.New(rand.NewPCG(seed, uint64(i))), services: services, stores: stores, tenant: tenant,
				redis: func(command string, args ...any) any { return r.Do(t, command, args...) },
				user:  fmt.Sprint("walker", i), moved: make(map[string]string), charged: make(map[string]int),
			}
			w.walk(steps)
		})
	}
}

// Whatever happens to a key, by whichever process, what was granted and refilled is what was spent and what is left.
func TestLedgerOfHolds(t *testing.T) {
	t.Parallel()
	services, _ := signInServices(t, 2)
	testWalks(t, services, testRedis.URL(), newTenantIn(t, testRedis, walkConfig), testRedis, 16, 120)
}

func testClusterWalks(t *testing.T) {
	c, keys := redistest.SharedCluster(t), idtokentest.NewServer(t)
	services := newServices(t, "REDIS_URL="+c.URL(), "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newClusterTenant(t, services[0], walkConfig)
	testWalks(t, services, c.URL(), tenant, &redistest.Server{Cluster: c}, 8, 60)
}

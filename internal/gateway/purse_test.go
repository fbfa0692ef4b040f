package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/waittest"
)

// A mishap is what goes wrong with one step of a fakeSessionAccount.
type mishap int

const (
	fine mishap = iota
	lost        // it is done, but its outcome is not known
	away        // it is not done, which is not known
)

// fakeSessionAccount is an account with several holds, which expire.
type fakeSessionAccount struct {
	Account // whose other methods are not called

	mu       sync.Mutex
	mishaps  []mishap      // of the next steps
	chance   func() mishap // of those after them; nil: fine
	refuse   error         // what Hold, Exchange and Check return
	expected []string      // models

	left, charged, missing int64
	open                   map[string]*fakeHold
	settled                map[string]Usage // by hold
	balances               map[string]Balance
	after                  map[string]string // hold → the one that Exchange has taken in its place
	ids, steps             int
	requests, ends         int      // holds that are not further ones, but for exchanges; settlements that are no parts
	wrong                  []string // what no caller may do
	asked                  HoldRequest
}

type fakeHold struct {
	tokens  int64
	expires time.Time
}

func newFakeSessionAccount(left int64) *fakeSessionAccount {
	return &fakeSessionAccount{
		left: left, open: make(map[string]*fakeHold), settled: make(map[string]Usage), balances: make(map[string]Balance),
		after: make(map[string]string),
	}
}

// step begins a step, and returns what goes wrong with it. The caller holds a.mu.
func (a *fakeSessionAccount) step() (m mishap) {
	a.steps++
	for id, hold := range a.open {
		if time.Now().After(hold.expires) {
			a.left += hold.tokens
			delete(a.open, id)
		}
	}
	if len(a.mishaps) > 0 {
		m, a.mishaps = a.mishaps[0], a.mishaps[1:]
	} else if a.chance != nil {
		m = a.chance()
	}
	return m
}

func (a *fakeSessionAccount) setChance(chance func() mishap) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.chance = chance
}

func (a *fakeSessionAccount) newID() string {
	a.ids++
	return fmt.Sprint("h", a.ids)
}

func (m mishap) or(err error) error {
	if m != fine {
		return fmt.Errorf("a timeout: %w", ErrUnavailable)
	}
	return err
}

func (a *fakeSessionAccount) take(id string, r HoldRequest) (Hold, error) {
	a.asked = r
	if !slices.Equal(r.Models, []string{"m"}) || !r.Half && r.Least != r.Most || r.TTL != leaseTTL || r.Patient {
		a.wrong = append(a.wrong, fmt.Sprintf("hold of %+v", r))
	}
	if a.refuse != nil {
		return Hold{ID: id}, a.refuse
	}
	if a.left < r.Least {
		return Hold{ID: id}, InsufficientError{Left: a.left}
	}
	tokens := min(r.Most, a.left)
	if tokens < r.Most {
		tokens = r.Least + (tokens-r.Least)/2
	}
	a.left -= tokens
	a.open[id] = &fakeHold{tokens, time.Now().Add(r.TTL)}
	return Hold{ID: id, Tokens: tokens, Owner: "owner"}, nil
}

func (a *fakeSessionAccount) Hold(_ time.Time, r HoldRequest) (hold Hold, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step()
	hold.ID = a.newID()
	if m != away {
		if hold, err = a.take(hold.ID, r); err == nil && !r.Further {
			a.requests++
		}
	}
	return hold, m.or(err)
}

func (a *fakeSessionAccount) Renew(_ time.Time, hold Hold, ttl time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step()
	if m == away {
		return m.or(nil)
	}
	_, isSettled := a.settled[hold.ID]
	open := a.open[hold.ID]
	switch {
	case isSettled:
		return m.or(ErrNoHold)
	case open == nil && a.left == 0:
		return m.or(ErrNoHold)
	case open == nil:
		open = &fakeHold{tokens: min(hold.Tokens, a.left)}
		a.left -= open.tokens
		a.open[hold.ID] = open
	}
	open.expires = time.Now().Add(ttl)
	return m.or(nil)
}

func (a *fakeSessionAccount) Settle(_ time.Time, id string, u Usage) (balance Balance, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step()
	if m != away {
		balance, err = a.settle(id, u)
	}
	if m != fine {
		balance = Balance{}
	}
	return balance, m.or(err)
}

// settle ends a hold, or charges for one that has expired or was refused.
func (a *fakeSessionAccount) settle(id string, u Usage) (Balance, error) {
	if before, ok := a.settled[id]; ok {
		if before != u {
			a.wrong = append(a.wrong, fmt.Sprintf("%s is settled to %+v, and then to %+v", id, before, u))
		}
		return a.balances[id], nil
	}
	if hold := a.open[id]; hold != nil {
		a.left += hold.tokens
		delete(a.open, id)
	}
	balance := Balance{Charged: min(u.Cost, a.left)}
	a.left -= balance.Charged
	a.charged += balance.Charged
	a.missing += u.Cost - balance.Charged
	balance.Left = a.left
	a.settled[id], a.balances[id] = u, balance
	if !u.IsPart {
		a.ends++
	}
	if nothing := (Usage{IsPart: true}); u != nothing && (u.Endpoint != "e" || u.Model != "m") {
		a.wrong = append(a.wrong, fmt.Sprintf("settled to %+v", u))
	}
	return balance, nil
}

func (a *fakeSessionAccount) Exchange(_ time.Time, id string, u Usage, r HoldRequest) (balance Balance, hold Hold, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step()
	if r.ID == "" {
		r.ID = a.newID()
	}
	if m == away {
		return Balance{}, Hold{ID: r.ID}, m.or(nil)
	}
	if !u.IsPart {
		a.wrong = append(a.wrong, "an exchange that ends the session")
	}
	balance, err = a.settle(id, u)
	_, isSettled := a.settled[r.ID]
	open := a.open[r.ID]
	switch {
	case isSettled:
		a.wrong = append(a.wrong, "an exchange for a hold that was settled")
	case open != nil && a.after[id] != r.ID:
		a.wrong = append(a.wrong, "another exchange of the same hold")
	case open != nil:
		hold = Hold{ID: r.ID, Tokens: open.tokens, Owner: "owner"}
	default:
		hold, err = a.take(r.ID, r)
		a.after[id] = r.ID
	}
	if m != fine {
		balance, hold = Balance{}, Hold{ID: r.ID}
	}
	return balance, hold, m.or(err)
}

func (a *fakeSessionAccount) Check(_ time.Time, models []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step()
	return m.or(a.refuse)
}

// held returns the tokens of the holds, in order.
func (a *fakeSessionAccount) held() (tokens []int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, hold := range a.open {
		tokens = append(tokens, hold.tokens)
	}
	slices.Sort(tokens)
	return tokens
}

// A purseTest is a purse of an account, where a token costs 1: a response is held at 32,768, and at least at 1,256.
type purseTest struct {
	*purse
	account *fakeSessionAccount
	log     *logBuffer
	costs   int64 // of everything that was used
}

func newPurseTest(t testing.TB, left int64) *purseTest {
	log := new(logBuffer)
	g := &Gateway{renewal: leaseRenewal, settler: settler{log: log.logger()}}
	account := newFakeSessionAccount(left)
	return &purseTest{account: account, log: log, purse: &purse{gateway: g, price: sessionPriceOf(t, "", ""), call: &SessionCall{
		Tenant: "acme", User: "user", Account: account, Outcome: new(Outcome), Deadline: time.Now().Add(time.Second),
		endpoint: &Endpoint{label: "e"}, model: "m",
	}}}
}

// opened returns a purse that is open.
func opened(t testing.TB, left int64) *purseTest {
	t.Helper()
	p := newPurseTest(t, left)
	if err := p.open(); err != nil {
		t.Fatal(err)
	}
	return p
}

// use spends tokens of output, after which n responses are held for.
func (p *purseTest) use(tokens int64, n int) error {
	p.costs += tokens
	return p.spend(llmwire.Usage{Output: tokens}, tokens, false, n, llmwire.Usage{})
}

func (p *purseTest) end(tokens int64) {
	p.costs += tokens
	p.close(llmwire.Usage{Output: tokens}, tokens, false)
}

// wantPaid checks that nothing is held, and that everything was charged once that the account could pay.
func (p *purseTest) wantPaid(t testing.TB) {
	t.Helper()
	a, s, o := p.account, &p.gateway.settler, p.call.Outcome
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.wrong) > 0 || len(a.open) > 0 || s.holds.Load() != 0 || s.waiting.Load() != 0 {
		t.Errorf("%q; %d holds are open, %d counted, %d settlements wait", a.wrong, len(a.open), s.holds.Load(), s.waiting.Load())
	}
	if a.charged+a.missing != p.costs || s.unpaid.Load() != uint64(a.missing) {
		t.Errorf("%d are charged, %d missing, of %d; %d unpaid", a.charged, a.missing, p.costs, s.unpaid.Load())
	}
	if a.requests != 1 || a.ends != 1 {
		t.Errorf("it counts as %d requests and ends %d times", a.requests, a.ends)
	}
	var used llmwire.Usage
	for _, u := range a.settled {
		used.Add(&u.Usage)
	}
	if o.Output != p.costs || o.cost != p.costs || used.Output != p.costs {
		t.Errorf("the outcome is %+v, and %+v was charged for; want %d", *o, used, p.costs)
	}
}

// Whatever is used, and however the account fails, everything is charged once.
func TestPurseByChance(t *testing.T) {
	for seed := range uint64(500) {
		synctest.Test(t, func(t *testing.T) {
			chance := rand.New(rand.NewPCG(seed, 1))
			p := opened(t, 2_000+chance.Int64N(300_000))
			badness, mishaps := chance.IntN(3)*chance.IntN(30), rand.New(rand.NewPCG(seed, 2))
			p.account.setChance(func() mishap {
				if mishaps.IntN(100) >= badness {
					return fine
				}
				return lost + mishap(mishaps.IntN(2))
			})
			var before int64 // charged
			for range chance.IntN(30) {
				n, cost := 1+chance.IntN(maxResponses+1), chance.Int64N(9_000)
				switch chance.IntN(6) {
				case 0, 1:
					_ = p.cover(n)
				case 2:
					time.Sleep(time.Duration(chance.Int64N(int64(100 * time.Second))))
					synctest.Wait()
				case 3:
					_ = p.check(time.Now())
				default:
					_ = p.use(cost, n)
				}
				if limit := p.limit(); limit < 1 || limit > 4_096 {
					t.Errorf("the limit is %d", limit)
				}
				p.account.mu.Lock()
				if p.account.charged < before || p.account.charged > p.costs {
					t.Errorf("%d are charged, after %d", p.account.charged, before)
				}
				before = p.account.charged
				p.account.mu.Unlock()
			}
			p.end(chance.Int64N(3_000))
			time.Sleep(10 * time.Second)
			p.account.setChance(nil)
			time.Sleep(time.Hour)
			p.wantPaid(t)
		})
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// Its methods may be called at the same time, while leases are renewed all the time.
func TestPurseAtTheSameTime(t *testing.T) {
	p := opened(t, 1<<40)
	p.gateway.renewal = 100 * time.Microsecond
	p.account.chance = func() mishap {
		return []mishap{fine, fine, fine, fine, fine, fine, fine, fine, fine, lost}[rand.IntN(10)]
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for n := range 200 {
				_ = p.cover(1 + n%maxResponses)
				_ = p.limit()
				_ = p.check(time.Now())
			}
		})
	}
	for n := range 200 {
		_ = p.use(10, 1+n%3)
	}
	all.Wait()
	p.end(5)
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := p.gateway.settler.holds.Load(); n > 0 {
			return fmt.Errorf("%d are held", n)
		}
		return nil
	})
	time.Sleep(time.Millisecond) // for a renewal that was under way, which must change nothing
	waittest.Eventually(t, 20*time.Second, func() error {
		if n := p.gateway.settler.waiting.Load(); n > 0 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	p.wantPaid(t)
}

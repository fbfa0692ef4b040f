package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
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

	mu      sync.Mutex
	mishaps []mishap      // of the next steps
	chance  func() mishap // of those after them; nil: fine
	refuse  error         // what Hold, Exchange and Check return

	left, charged, missing int64
	others                 int64 // held by other requests
	open                   map[string]*fakeHold
	settled                map[string]Usage // by hold
	balances               map[string]Balance
	after                  map[string]string // hold → the one that Exchange has taken in its place
	ids, steps             int
	lacking                int      // settlements that were not covered, though another hold would have done
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
func (a *fakeSessionAccount) step(deadline time.Time) (m mishap) {
	a.steps++
	if left := time.Until(deadline); left <= 0 || left > time.Second {
		a.wrong = append(a.wrong, fmt.Sprintf("%s for a step", left))
	}
	a.expire()
	if len(a.mishaps) > 0 {
		m, a.mishaps = a.mishaps[0], a.mishaps[1:]
	} else if a.chance != nil {
		m = a.chance()
	}
	return m
}

// expire returns the tokens of holds that were not renewed. The caller holds a.mu.
func (a *fakeSessionAccount) expire() {
	for id, hold := range a.open {
		if time.Now().After(hold.expires) {
			a.left += hold.tokens
			delete(a.open, id)
		}
	}
}

func (a *fakeSessionAccount) setChance(chance func() mishap) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.chance = chance
}

func (a *fakeSessionAccount) newID(isFurther bool) string {
	a.ids++
	return fmt.Sprint(isFurther, a.ids)
}

func (m mishap) or(err error) error {
	if m != fine {
		return fmt.Errorf("a timeout: %w", ErrUnavailable)
	}
	return err
}

func (a *fakeSessionAccount) take(id string, r HoldRequest) (Hold, error) {
	a.asked = r
	if !slices.Equal(r.Models, []string{"m"}) || r.TTL != leaseTTL || r.Patient {
		a.wrong = append(a.wrong, fmt.Sprintf("hold of %+v", r))
	}
	if a.refuse != nil {
		return Hold{ID: id}, a.refuse
	}
	if a.left < r.Least {
		return Hold{ID: id}, InsufficientError{Left: a.left, Held: a.others}
	}
	tokens := min(r.Most, a.left)
	if r.Half && tokens < r.Most {
		tokens = r.Least + (tokens-r.Least)/2
	}
	a.left -= tokens
	a.open[id] = &fakeHold{tokens, time.Now().Add(r.TTL)}
	return Hold{ID: id, Tokens: tokens, Owner: "owner"}, nil
}

func (a *fakeSessionAccount) Hold(deadline time.Time, r HoldRequest) (hold Hold, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step(deadline)
	hold.ID = a.newID(r.Further)
	if m != away {
		if hold, err = a.take(hold.ID, r); err == nil && !r.Further {
			a.requests++
		}
	}
	return hold, m.or(err)
}

func (a *fakeSessionAccount) Renew(deadline time.Time, hold Hold, ttl time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step(deadline)
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

func (a *fakeSessionAccount) Settle(deadline time.Time, id string, u Usage) (balance Balance, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step(deadline)
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
	for _, other := range a.open {
		if u.Cost > a.left && other.tokens >= u.Cost {
			a.lacking++
		}
	}
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

func (a *fakeSessionAccount) Exchange(deadline time.Time, id string, u Usage, r HoldRequest) (balance Balance, hold Hold, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step(deadline)
	if r.ID == "" {
		r.ID = a.newID(r.Further)
	}
	if m == away {
		return Balance{}, Hold{ID: r.ID}, m.or(nil)
	}
	if !u.IsPart || !strings.HasPrefix(id, fmt.Sprint(r.Further)) {
		a.wrong = append(a.wrong, fmt.Sprintf("exchange of %s, settled to %+v, for %+v", id, u, r))
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

func (a *fakeSessionAccount) Check(deadline time.Time, models []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.step(deadline)
	return m.or(a.refuse)
}

// held returns the tokens of the holds, in order.
func (a *fakeSessionAccount) held() (tokens []int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	for _, hold := range a.open {
		tokens = append(tokens, hold.tokens)
	}
	slices.Sort(tokens)
	return tokens
}

func (a *fakeSessionAccount) setMishaps(mishaps ...mishap) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mishaps = mishaps
}

func (a *fakeSessionAccount) stepsDone() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.steps
}

// paid returns the tokens that were charged.
func (a *fakeSessionAccount) paid() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.charged
}

// A purseTest is a purse of an account, where a token costs 1: a response is held at 32,768, and at least at 1,256.
type purseTest struct {
	*purse
	account *fakeSessionAccount
	log     *logBuffer
	costs   int64 // of everything that was used
}

func newPurseTest(t testing.TB, left int64) *purseTest {
	t.Helper()
	log := new(logBuffer)
	g := &Gateway{renewal: leaseRenewal, settler: settler{log: log.logger()}}
	account := newFakeSessionAccount(left)
	return &purseTest{account: account, log: log, purse: &purse{gateway: g, price: sessionPriceOf(t, "", ""), call: &SessionCall{
		Tenant: "acme", User: "user", Account: account, Outcome: new(Outcome), Deadline: time.Now().Add(time.Second),
		endpoint: &Endpoint{label: "e"}, model: "m", header: make(http.Header),
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

// use spends tokens of output, after which n responses are under way.
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
	if p.log.count("\n") > 0 {
		t.Errorf("log:\n%s", p.log.text.String())
	}
	var used llmwire.Usage
	for _, u := range a.settled {
		used.Add(&u.Usage)
	}
	if o.Output != p.costs || o.cost != p.costs || used.Output != p.costs {
		t.Errorf("the outcome is %+v, and %+v was charged for; want %d", *o, used, p.costs)
	}
}

// A session begins with a hold for one response, or is refused with nothing held.
func TestPurseOpens(t *testing.T) {
	insufficient := Error{402, "The session needs 1256 tokens, 1255 are left"}
	for name, test := range map[string]struct {
		left, others int64
		refuse       error
		mishap       mishap
		waiting      int64 // settlements
		held, limit  int64
		want         error
	}{
		"all":           {left: 1_000_000, held: 32_768, limit: 4096},
		"just all":      {left: 32_768, held: 32_768, limit: 4096},
		"half":          {left: 32_767, held: 1256 + 15_755, limit: 4096},
		"little":        {left: 3_256, held: 2_256, limit: 1_256},
		"the least":     {left: 1_256, held: 1_256, limit: 256},
		"too little":    {left: 1_255, want: insufficient},
		"others hold":   {left: 1_255, others: 1, want: HeldError{1_256, 1_255, 1}},
		"but too few":   {left: 1_254, others: 1, want: Error{402, "The session needs 1256 tokens, 1254 are left"}},
		"denied":        {left: 9_000, refuse: DeniedError{}, want: DeniedError{}},
		"no such key":   {left: 9_000, refuse: ErrNoHold, want: ErrNoHold},
		"lost":          {left: 9_000, mishap: lost, want: ErrUnavailable},
		"away":          {left: 9_000, mishap: away, want: ErrUnavailable},
		"too much debt": {left: 9_000, waiting: maxSettlements, want: Error{503, "Too many charges wait for Redis"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPurseTest(t, test.left)
				a, s := p.account, &p.gateway.settler
				a.others, a.refuse, a.mishaps = test.others, test.refuse, []mishap{test.mishap}
				s.waiting.Store(test.waiting)
				err := p.open()
				if test.want == nil && err == nil {
					want := HoldRequest{Least: 1256, Most: 32_768, TTL: leaseTTL, Models: []string{"m"}, Half: true}
					if held, limit := a.held(), p.limit(); !slices.Equal(held, []int64{test.held}) || limit != test.limit ||
						!reflect.DeepEqual(a.asked, want) {
						t.Errorf("%d are held, the limit is %d; want %d, %d; asked for %+v", held, limit, test.held, test.limit, a.asked)
					}
					p.end(0)
					p.wantPaid(t)
					return
				}
				if fmt.Sprint(err) != fmt.Sprint(test.want) && !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				isSpent := test.left < 1_256
				if got := p.call.header.Get("X-Tokens-Left"); isSpent != (got == fmt.Sprint(test.left)) {
					t.Errorf("the header says that %q are left", got)
				}
				time.Sleep(time.Minute)
				if held := a.held(); len(held) > 0 || s.holds.Load() != 0 || a.left != test.left {
					t.Errorf("%d are held, %d counted, %d left", held, s.holds.Load(), a.left)
				}
			})
		})
	}
}

// A purseStep is something that a session does, and what it leads to.
type purseStep struct {
	cover   int // that many responses; 0: it spends
	spend   int64
	of      int   // responses that are under way after it has spent
	input   int64 // of the last response
	mishaps []mishap
	refuse  error         // from now on
	sleep   time.Duration // before
	refill  int64         // tokens that the account gets before

	want    error
	held    []int64 // by the account, in order
	charged int64   // altogether
	limit   int64   // 0: 4096
}

var errDisabled = errors.New("the key is disabled")

// A purseCase is what a session does, and uses last, with an account of that many tokens.
type purseCase struct {
	left  int64
	steps []purseStep
	last  int64
}

func (c purseCase) test(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, c.left)
		for i, step := range c.steps {
			p.take(t, i, step)
		}
		p.end(c.last)
		time.Sleep(time.Minute)
		p.wantPaid(t)
	})
}

// Holds are settled and taken with each use.
func TestPurseSteps(t *testing.T) {
	const full = 32_768
	for name, test := range map[string]purseCase{
		"one after the other": {left: 100_000, steps: []purseStep{
			{spend: 500, held: []int64{full}, charged: 500},
			{cover: 1, held: []int64{full}, charged: 500},
			{spend: 0, held: []int64{full}, charged: 500},
			{spend: full, held: []int64{full}, charged: full + 500},
		}, last: 70},
		"two at a time": {left: 100_000, steps: []purseStep{
			{cover: 2, held: []int64{full, full}},
			{cover: 2, held: []int64{full, full}},
			{spend: 10, of: 2, held: []int64{full, full}, charged: 10},
			{spend: 20, of: 1, held: []int64{full}, charged: 30},
			{spend: 30, of: 1, held: []int64{full}, charged: 60},
		}, last: 5},
		"all at a time": {left: 400_000, steps: []purseStep{
			{cover: maxResponses, held: slices.Repeat([]int64{full}, maxResponses)},
			{cover: maxResponses + 1, want: errTooManyResponses, held: slices.Repeat([]int64{full}, maxResponses)},
			{spend: 10, of: 1, held: []int64{full}, charged: 10},
		}},
		"more than were covered": {left: 100_000, steps: []purseStep{
			{spend: 10, of: 2, held: []int64{full, full}, charged: 10},
		}},
		"a further one is refused": {left: full + 1_255, steps: []purseStep{
			{cover: 2, want: InsufficientError{Left: 1_255}, held: []int64{full}},
			{spend: 10, held: []int64{full}, charged: 10},
		}},
		"a small further one": {left: full + 3_256, steps: []purseStep{
			{cover: 2, held: []int64{2_256, full}, limit: 1_256},
			{cover: 3, want: InsufficientError{Left: 1_000}, held: []int64{2_256, full}, limit: 1_256},
			{spend: 100, of: 2, held: []int64{2_256, full}, limit: 1_256, charged: 100}, // the small one is exchanged
			{spend: 100, of: 1, held: []int64{full}, charged: 200},
			{spend: 100, of: 1, held: []int64{full}, charged: 300},
		}},
		"the larger one is done first": {left: full + 3_256, steps: []purseStep{
			{cover: 2, held: []int64{2_256, full}, limit: 1_256},
			{spend: 32_000, held: []int64{1_256 + 1_384}, limit: 1_640, charged: 32_000},
		}},
		"the largest one is done first": {left: full + 3_256, steps: []purseStep{
			{cover: 2, held: []int64{2_256, full}, limit: 1_256},
			{spend: 32_000, of: 2, held: []int64{1_768, 2_256}, limit: 768, charged: 32_000},
		}},
		"in the middle of a response": {left: 2 * full, steps: []purseStep{
			{cover: 2, held: []int64{full, full}},
			{spend: 20_000, of: 1, held: []int64{full}, charged: 20_000},
			{spend: 10_000, of: 1, held: []int64{full}, charged: 30_000},
			{spend: 4_000, of: 1, held: []int64{2*full - 34_000}, charged: 34_000}, // all that is left
			{spend: 1_000, held: []int64{1_256 + (2*full-36_256)/2}, charged: 35_000},
		}},
		"what is left is too small": {left: 5_512, steps: []purseStep{
			{cover: 2, held: []int64{1_256 + 436, 1_256 + 2_128}, limit: 692},
			{spend: 100, input: 3_000, held: []int64{4_256 + 578}, limit: 834, charged: 100},
		}},
		"the balance goes down": {left: 5_256, steps: []purseStep{
			{spend: 256, held: []int64{1_256 + 1_872}, limit: 2_128, charged: 256},
			{spend: 2_000, held: []int64{1_256 + 872}, limit: 1_128, charged: 2_256},
			{spend: 1_000, input: 500, held: []int64{1_756 + 122}, limit: 378, charged: 3_256},
			{spend: 1_000, input: 500, want: InsufficientError{Left: 1_000}, limit: 1, charged: 4_256},
			{cover: 1, want: InsufficientError{Left: 1_000}, limit: 1, charged: 4_256},
		}, last: 300},
		"more than there is": {left: 2_000, steps: []purseStep{
			{spend: 2_001, want: InsufficientError{}, limit: 1, charged: 2_000},
		}, last: 10},
		"disabled": {left: 100_000, steps: []purseStep{
			{cover: 3, held: []int64{full, full, full}},
			{spend: 10, of: 3, refuse: errDisabled, want: errDisabled, held: []int64{full, full}, limit: 1, charged: 10},
			{spend: 20, of: 2, want: errDisabled, held: []int64{full, full}, limit: 1, charged: 10},
		}, last: 300},
		"refused without a cost": {left: 100_000, steps: []purseStep{
			{spend: 0, refuse: errDisabled, want: errDisabled, limit: 1},
		}},
	} {
		t.Run(name, test.test)
	}
}

// If the account cannot be reached, the session goes on while what it used and the next response are covered.
func TestPurseWithoutAccount(t *testing.T) {
	const full = 32_768
	for name, test := range map[string]purseCase{
		"lost": {left: 100_000, steps: []purseStep{
			{spend: 10, mishaps: []mishap{lost}, held: []int64{full}, limit: 4096, charged: 10},
			{spend: 20, held: []int64{full}, limit: 4096, charged: 10}, // it is owed
			{sleep: time.Second, cover: 1, held: []int64{full}, charged: 30},
		}},
		"away": {left: 5_256, steps: []purseStep{
			{spend: 256, mishaps: []mishap{away, away}, held: []int64{1_256 + 2_000}, limit: 2_000},
			{spend: 1_000, held: []int64{1_256 + 2_000}, limit: 1_000},
			{cover: 2, want: ErrUnavailable, held: []int64{1_256 + 2_000}, limit: 1_000},
			{spend: 744, held: []int64{1_256 + 2_000}, limit: 256},
			{spend: 1, want: ErrUnavailable, held: []int64{1_256 + 2_000}, limit: 255},
			{spend: 1_256, want: ErrUnavailable, held: []int64{1_256 + 2_000}, limit: 1},
			{cover: 1, want: ErrUnavailable, held: []int64{1_256 + 2_000}, limit: 1},
			{sleep: 300 * time.Millisecond, cover: 1, want: ErrUnavailable, held: []int64{1_256 + 2_000}, limit: 1},
			{sleep: time.Second, cover: 1, held: []int64{1_256 + 371}, limit: 627, charged: 3_257}, // and it goes on
		}, last: 7},
		"away, and again": {left: 100_000, steps: []purseStep{
			{spend: 10, mishaps: []mishap{lost, away, fine, away, lost}, held: []int64{full}, charged: 10},
			{spend: 20, held: []int64{full}, charged: 10},
			{sleep: 900 * time.Millisecond, spend: 40, held: []int64{full}, charged: 10},
			{sleep: time.Minute, spend: 80, held: []int64{full}, charged: 150},
		}, last: 7},
		"refused in the background": {left: 100_000, steps: []purseStep{
			{spend: 10, refuse: errDisabled, mishaps: []mishap{away}, held: []int64{full}},
			{spend: 20, held: []int64{full}},
			{sleep: time.Second, spend: 40, want: errDisabled, limit: 1, charged: 10},
		}, last: 80},
		"away, while a further one is used": {left: full + 3_256, steps: []purseStep{
			{cover: 2, held: []int64{2_256, full}, limit: 1_256},
			{spend: 1_000, of: 2, mishaps: []mishap{away}, refill: 2 * full, held: []int64{2_256, full}, limit: 256},
			{spend: 32_000, of: 2, mishaps: []mishap{fine, away}, want: ErrUnavailable, held: []int64{2_256, full}, limit: 1},
			{sleep: 300 * time.Millisecond, cover: 1, want: ErrUnavailable, held: []int64{2_256, full}, limit: 1, charged: 1_000},
			{sleep: time.Second, cover: 2, held: []int64{2_256, full}, limit: 1_256, charged: 33_000},
		}},
		"away, while a further one is small": {left: full + 3_256, steps: []purseStep{
			{cover: 2, held: []int64{2_256, full}, limit: 1_256},
			{spend: 100, of: 2, mishaps: []mishap{away}, held: []int64{2_256, full}, limit: 1_156},
			{spend: 32_000, of: 2, want: ErrUnavailable, held: []int64{2_256, full}, limit: 1},
			{sleep: time.Second, cover: 2, held: []int64{1_668, 2_256}, limit: 668, charged: 32_100},
		}},
		"a further one is lost": {left: 100_000, steps: []purseStep{
			{cover: 2, mishaps: []mishap{lost}, want: ErrUnavailable, held: []int64{full, full}},
			{sleep: time.Second, cover: 2, held: []int64{full, full}},
		}},
		"settling a further one is lost": {left: 100_000, steps: []purseStep{
			{cover: 2, held: []int64{full, full}},
			{spend: 10, mishaps: []mishap{lost}, held: []int64{full}, charged: 10},
			{spend: 20, held: []int64{full}, charged: 30},
		}, last: 1},
	} {
		t.Run(name, test.test)
	}
}

// take takes one step and checks what it leads to.
func (p *purseTest) take(t *testing.T, i int, step purseStep) {
	t.Helper()
	a := p.account
	time.Sleep(step.sleep)
	synctest.Wait()
	a.mu.Lock()
	a.mishaps = append(a.mishaps, step.mishaps...)
	a.refuse = cmp.Or(step.refuse, a.refuse)
	a.left += step.refill
	a.mu.Unlock()
	var err error
	if step.cover > 0 {
		err = p.cover(step.cover, true)
	} else {
		p.costs += step.spend
		err = p.spend(llmwire.Usage{Output: step.spend}, step.spend, false, step.of, llmwire.Usage{Input: step.input})
	}
	if err != step.want && !errors.Is(err, step.want) {
		t.Errorf("step %d: got %v, want %v", i, err, step.want)
	}
	held, charged, limit, want := a.held(), a.paid(), p.limit(), cmp.Or(step.limit, 4096)
	if !slices.Equal(held, step.held) || limit != want || charged != step.charged {
		t.Errorf("step %d: %d are held, %d charged, the limit is %d; want %d, %d, %d",
			i, held, charged, limit, step.held, step.charged, want)
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
					_ = p.cover(n, true)
				case 2:
					time.Sleep(time.Duration(chance.Int64N(int64(100 * time.Second))))
					synctest.Wait()
				case 3:
					_ = p.check(time.Now().Add(time.Second))
				default:
					_ = p.use(cost, n)
				}
				if limit := p.limit(); limit < 1 || limit > 4_096 {
					t.Errorf("the limit is %d", limit)
				}
				if charged := p.account.paid(); charged < before || charged > p.costs {
					t.Errorf("%d are charged, after %d", charged, before)
				} else {
					before = charged
				}
			}
			p.end(chance.Int64N(3_000))
			time.Sleep(10 * time.Second)
			p.account.setChance(nil)
			time.Sleep(time.Hour)
			p.wantPaid(t)
			if n := p.account.lacking; n > 0 && badness == 0 {
				t.Errorf("%d settlements were not covered, though another hold would have done", n)
			}
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
				_ = p.cover(1+n%maxResponses, n%2 == 0)
				_ = p.limit()
				_ = p.check(time.Now().Add(time.Second))
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

// Each hold is renewed until it is settled, and no longer, also the one of an exchange that took a while.
func TestPurseLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const full = 32_768
		p := opened(t, 100_000)
		want := func(held ...int64) {
			t.Helper()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if got := p.account.held(); !slices.Equal(got, held) {
				t.Errorf("%d are held, want %d", got, held)
			}
		}
		want(full)
		_ = p.cover(2, true)
		want(full, full)
		_ = p.use(10, 2)
		want(full, full)
		_ = p.use(10, 1)
		want(full)
		p.account.setMishaps(lost)
		p.account.setChance(func() mishap { return away })
		_ = p.use(10, 1)
		time.Sleep(82 * time.Second)
		p.account.setChance(nil)
		for range 30 { // the exchange is decided soon before the hold that it has taken would expire
			time.Sleep(time.Second)
			if got := p.account.held(); !slices.Equal(got, []int64{full}) {
				t.Fatalf("%d are held", got)
			}
		}
		want(full)
		p.end(1)
		steps := p.account.stepsDone()
		want()
		if more := p.account.stepsDone() - steps; more > 0 {
			t.Errorf("%d steps after the end", more)
		}
		p.wantPaid(t)
	})
}

// An exchange is given up after 4 minutes. What it would have charged is unpaid, and the session must end.
func TestPurseGivesUp(t *testing.T) {
	for name, test := range map[string]struct {
		first   mishap
		unpaid  uint64
		charged int64
	}{
		"lost": {lost, 70, 73}, // it was charged
		"away": {away, 70, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := opened(t, 100_000)
				p.account.setMishaps(test.first)
				p.account.setChance(func() mishap { return away })
				for i, cost := range []int64{70, 1} {
					if err := p.use(cost, 1); err != nil {
						t.Errorf("use %d: %v", i, err)
					}
				}
				time.Sleep(settleTimeout - time.Second)
				if err := p.check(time.Now().Add(time.Second)); err != nil {
					t.Errorf("it was given up too early: %v", err)
				}
				time.Sleep(10 * time.Second)
				if err := p.check(time.Now().Add(time.Second)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable", err)
				}
				p.account.setChance(nil)
				p.end(2)
				time.Sleep(time.Hour)
				const line = "[ERROR] A charge of 70 tokens of tenant acme was given up: a timeout: the account cannot be reached\n"
				s := &p.gateway.settler
				if s.unpaid.Load() != test.unpaid || p.account.paid() != test.charged || p.log.count(line) != 1 {
					t.Errorf("%d are unpaid, %d charged; log:\n%s", s.unpaid.Load(), p.account.paid(), p.log.text.String())
				}
				if held := p.account.held(); len(held) > 0 || s.holds.Load() != 0 {
					t.Errorf("%d are held, %d counted", held, s.holds.Load())
				}
			})
		})
	}
}

// When the process stops, it waits for what sessions still have to pay.
func TestPurseIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 100_000)
		p.account.setMishaps(lost, away, away)
		_ = p.use(10, 1)
		_ = p.use(20, 1)
		p.end(40)
		p.gateway.settler.stop(stopTimeout)
		p.wantPaid(t)
	})
}

// An estimate costs what is held at most, if something is. Estimates are counted.
func TestPurseEstimates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 5_256) // of which 3,256 are held
		estimate := func(cost, costs int64, want error) {
			t.Helper()
			before := p.account.paid()
			err := p.spend(llmwire.Usage{}, cost, true, 0, llmwire.Usage{})
			if got := p.account.paid() - before; got != costs || !errors.Is(err, want) {
				t.Errorf("an estimate of %d costs %d, %v; want %d, %v", cost, got, err, costs, want)
			}
		}
		estimate(100, 100, nil)                                // then 3,206 are held
		estimate(100_000, 3_206, nil)                          // then 1,603
		estimate(100_000, 1_603, InsufficientError{Left: 347}) // then nothing
		p.close(llmwire.Usage{}, 100_000, true)                // at full price
		o := p.call.Outcome
		if want := int64(100 + 3_206 + 1_603 + 32_768); o.cost != want || !o.estimated || p.gateway.estimated.Load() != 4 {
			t.Errorf("the outcome is %+v, %d are counted; it should cost %d", o, p.gateway.estimated.Load(), want)
		}
	})
}

// What is looked at now and then is only whether the account may go on.
func TestPurseCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 100_000)
		for _, test := range []struct {
			refuse error
			mishap mishap
			want   error
		}{{}, {mishap: away}, {errDisabled, away, nil}, {errDisabled, fine, errDisabled}, {DeniedError{}, fine, DeniedError{}}} {
			p.account.refuse = test.refuse
			p.account.setMishaps(test.mishap)
			if err := p.check(time.Now().Add(time.Second)); !reflect.DeepEqual(err, test.want) {
				t.Errorf("%v, %d: got %v, want %v", test.refuse, test.mishap, err, test.want)
			}
		}
		p.account.refuse = nil
		p.account.setMishaps(away)
		_ = p.use(10, 1)
		steps := p.account.stepsDone()
		if err := p.check(time.Now().Add(time.Second)); err != nil || p.account.stepsDone() != steps {
			t.Errorf("while an exchange is repeated: %v", err)
		}
		p.end(0)
		time.Sleep(time.Minute)
		p.wantPaid(t)
	})
}

// A request of the user that waits for tokens is woken each time that some come back.
func TestPurseWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 100_000)
		turn := p.gateway.patient.join(member{"acme", "user"})
		defer turn.leave()
		want := func(what string) {
			t.Helper()
			select {
			case <-turn.woken:
			default:
				t.Errorf("nobody is woken after %s", what)
			}
		}
		_ = p.use(1, 1)
		want("an exchange")
		_ = p.cover(2, true)
		_ = p.use(1, 1)
		want("a further hold was settled")
		p.end(0)
		want("the end")
	})
}

package gateway

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/waittest"
)

// A grantingAccount decides holds by grant, which is told how many came before.
type grantingAccount struct {
	fakeAccount
	grant func(before int, r HoldRequest) error

	mu        sync.Mutex
	patient   []bool // of each hold that was asked for
	deadlines []time.Duration
}

func (a *grantingAccount) Hold(deadline time.Time, r HoldRequest) (Hold, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.grant(len(a.patient), r)
	a.patient = append(a.patient, r.Patient)
	a.deadlines = append(a.deadlines, time.Until(deadline))
	return Hold{ID: "h", Tokens: r.Most}, err
}

func (a *grantingAccount) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.patient)
}

// newWaiting returns an exchange that is to acquire a hold of a, and what ends its client.
func newWaiting(t *testing.T, a Account) (x *exchange, hangUp func()) {
	t.Helper()
	g := newTestGateway(t)
	ctx, hangUp := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "POST", "/", nil)
	x = g.begin(httptest.NewRecorder(), r, &Call{
		Tenant: "acme", User: "user", Account: a, Request: new(llmwire.Request), Outcome: new(Outcome),
		Memory: g.memory.Claim("acme", "user"), Place: g.Place("acme", "user"), Deadline: time.Now().Add(time.Second),
	})
	t.Cleanup(x.end)
	return x, hangUp
}

var (
	needed = HoldRequest{Least: 10, Most: 20}
	held   = InsufficientError{Left: 5, Held: 5}
)

func TestPatience(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		grant   func(before int, r HoldRequest) error
		waiting int // others, with turns
		want    error
		patient []bool // of each attempt
	}{
		{"at once", func(int, HoldRequest) error { return nil }, 0, nil, []bool{true}},
		{"settled by another process", func(before int, _ HoldRequest) error {
			return []error{held, held, nil}[before]
		}, 0, nil, []bool{true, true, true}},
		{"less, after a second", func(_ int, r HoldRequest) error {
			if r.Patient {
				return InsufficientError{Left: 15, Held: 5}
			}
			return nil
		}, 0, nil, []bool{true, true, true, true, false}},
		{"held all the time", func(int, HoldRequest) error { return held }, 0, HeldError{10, 5, 5},
			[]bool{true, true, true, true, false}},
		{"spent meanwhile", func(before int, _ HoldRequest) error {
			return []error{held, InsufficientError{Left: 4, Held: 5}}[before]
		}, 0, InsufficientError{Left: 4, Held: 5}, []bool{true, true}},
		{"spent", func(int, HoldRequest) error { return InsufficientError{Left: 9} }, 0, InsufficientError{Left: 9}, []bool{true}},
		{"all is held", func(int, HoldRequest) error { return InsufficientError{Left: 0, Held: 9} }, 0,
			InsufficientError{Left: 0, Held: 9}, []bool{true}},
		{"limited meanwhile", func(before int, _ HoldRequest) error {
			return []error{held, errors.ErrUnsupported}[before]
		}, 0, errors.ErrUnsupported, []bool{true, true}},
		{"others wait", func(int, HoldRequest) error { return held }, 16, HeldError{10, 5, 5}, []bool{true, false}},
		{"almost as many wait", func(before int, _ HoldRequest) error { return []error{held, nil}[before] }, 15,
			nil, []bool{true, true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := &grantingAccount{grant: test.grant}
			x, _ := newWaiting(t, a)
			for range test.waiting {
				defer x.gateway.patient.join(member{"acme", "user"}).leave()
			}
			err := x.acquire(needed)
			if err != test.want || !slices.Equal(a.patient, test.patient) {
				t.Errorf("got %v after %v, want %v after %v", err, a.patient, test.want, test.patient)
			}
			for _, left := range a.deadlines {
				if left <= 0 {
					t.Errorf("an attempt has %s", left)
				}
			}
			if n := len(x.gateway.patient.queues[member{"acme", "user"}]); n != test.waiting {
				t.Errorf("%d wait, want %d", n, test.waiting)
			}
			if n := x.gateway.settler.holds.Load(); (n == 1) != (err == nil) || n > 1 {
				t.Errorf("%d holds are counted", n)
			}
			x.lease.end()
		})
	}
}

// A request that waits counts as one that waits for an endpoint, and ends with its client or the process.
func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end  func(x *exchange, hangUp func())
		want error
	}{
		"client":  {func(_ *exchange, hangUp func()) { hangUp() }, errHungUp},
		"process": {func(x *exchange, _ func()) { x.gateway.cut(errStopping) }, Error{503, "The server is stopping"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, hangUp := newWaiting(t, &grantingAccount{grant: func(int, HoldRequest) error { return held }})
			done := make(chan error, 1)
			go func() { done <- x.acquire(needed) }()
			waittest.Eventually(t, 10*time.Second, func() error {
				if x.gateway.waiting.Stats().Used != 1 {
					return errors.New("it has no place")
				}
				return nil
			})
			test.end(x, hangUp)
			if err := <-done; err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	t.Run("no place", func(t *testing.T) {
		x, _ := newWaiting(t, &grantingAccount{grant: func(int, HoldRequest) error { return held }})
		fill(t, x.gateway.waiting.Claim("acme", "user"), 4) // of 10
		if err := x.acquire(needed); err != errTooMany {
			t.Errorf("got %v, want %v", err, errTooMany)
		}
	})
}

// Whoever settles wakes the first that waits, who wakes the next when it has left.
func TestPatientQueue(t *testing.T) {
	t.Parallel()
	a := &grantingAccount{grant: func(int, HoldRequest) error { return nil }}
	x, _ := newWaiting(t, a)
	q, of := &x.gateway.patient, member{"acme", "user"}
	other := q.join(member{"acme", "another"})
	first, second := q.join(of), q.join(of)
	woken := func(want ...int) {
		t.Helper()
		if got := []int{len(first.woken), len(second.woken), len(other.woken)}; !slices.Equal(got, want) {
			t.Errorf("woken: %v, want %v", got, want)
		}
	}
	if err := x.acquire(needed); err != nil || a.asked() != 1 {
		t.Fatal(err)
	}
	woken(0, 0, 0)
	x.settle()
	woken(1, 0, 0)
	q.wake(of)
	woken(1, 0, 0)
	first.leave()
	woken(1, 1, 0)
	second.leave()
	other.leave()
	if len(q.queues) > 0 {
		t.Errorf("left: %v", q.queues)
	}
}

// A request that is woken very often does not begin to ask without a pause.
func TestPatienceOfTheWoken(t *testing.T) {
	t.Parallel()
	const wakes = 64 // doublings of a pause after which it is 0
	var x *exchange
	a := &grantingAccount{}
	a.grant = func(before int, r HoldRequest) error {
		if before > 0 && before <= wakes {
			x.gateway.patient.wake(member{"acme", "user"})
		}
		return held
	}
	x, _ = newWaiting(t, a)
	if err := x.acquire(needed); err != (HeldError{10, 5, 5}) {
		t.Errorf("got %v", err)
	}
	if n, most := a.asked(), wakes+10; n > most {
		t.Errorf("it has asked %d times, want at most %d", n, most)
	}
}

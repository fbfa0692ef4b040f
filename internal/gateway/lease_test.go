package gateway

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/telemetry"
)

// renewals returns the seconds from began to each renewal.
func (a *fakeAccount) renewals(began time.Time) (seconds []int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.renewed {
		seconds = append(seconds, int(at.Sub(began).Seconds()))
	}
	return seconds
}

// A hold is renewed every 30 s and, if the account cannot be reached, each second until it can, until it is settled.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeAccount{held: 10, renew: append([]error{nil}, append(unavailable(2), ErrNoHold, errors.New("x"))...)}
		began := time.Now()
		l := startLease(a, Hold{ID: "h", Tokens: 10}, leaseRenewal)
		time.Sleep(155 * time.Second)
		l.end()
		l.end()
		time.Sleep(time.Hour)
		if got, want := a.renewals(began), []int{30, 60, 61, 62, 92, 122, 152}; !slices.Equal(got, want) {
			t.Errorf("renewed after %v s, want %v", got, want)
		}
	})
}

// While a settlement is repeated, its hold is renewed.
func TestLeaseOfADebt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := settler{log: telemetry.NewLogger(new(logBuffer))}
		a := &fakeAccount{held: 10, fail: unavailable(12)}
		began := time.Now()
		s.begin()
		s.settle(debt{a, "acme", "h", Usage{Cost: 3}, startLease(a, Hold{ID: "h", Tokens: 10}, leaseRenewal)})
		time.Sleep(time.Hour)
		if got, want := a.renewals(began), []int{30}; !slices.Equal(got, want) || a.attempts() != 13 {
			t.Errorf("renewed after %v s, want %v; %d attempts to settle", got, want, a.attempts())
		}
	})
}

// A request renews its hold until it is settled, and no longer.
func TestLeaseOfARequest(t *testing.T) {
	g := newScripted(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(200 * time.Millisecond)
		jsonBody(completion).ServeHTTP(w, r)
	}), "")
	g.renewal = 10 * time.Millisecond
	if response, body, err := g.post(t, `{"messages":[]}`); err != nil || response.StatusCode != 200 {
		t.Fatalf("%v %s", err, body)
	}
	n := len(g.account.renewals(time.Now()))
	if n < 2 {
		t.Errorf("it was renewed %d times", n)
	}
	time.Sleep(50 * time.Millisecond)
	if more := len(g.account.renewals(time.Now())) - n; more > 1 { // one may have been under way
		t.Errorf("it was renewed %d times after it was settled", more)
	}
}

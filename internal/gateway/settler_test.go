package gateway

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/waittest"
)

// unavailable returns as many errors of an account that cannot be reached.
func unavailable(n int) []error {
	return slices.Repeat([]error{fmt.Errorf("a timeout: %w", ErrUnavailable)}, n)
}

// A settlement is repeated until the account responds, with pauses that grow, and each with the same usage.
func TestSettlerRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		s := settler{log: log.logger()}
		a := &fakeAccount{left: 90, held: 10, fail: unavailable(8)}
		s.begin()
		began := time.Now()
		if _, ok := s.settle(debt{a, "acme", "h", Usage{Endpoint: "e", Cost: 3}, nil}); ok || s.waiting.Load() != 1 || s.holds.Load() != 1 {
			t.Errorf("settled: %v; %d wait, %d are held", ok, s.waiting.Load(), s.holds.Load())
		}
		for s.waiting.Load() > 0 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		pauses := 250 + 500 + 1000 + 2000 + 4*4000 // milliseconds
		if took := time.Since(began).Milliseconds(); int(took) < pauses || int(took) > pauses+20 {
			t.Errorf("it took %d ms, want %d", took, pauses)
		}
		if want := slices.Repeat([]Usage{{Endpoint: "e", Cost: 3}}, 9); !slices.Equal(a.settled, want) || a.left != 97 {
			t.Errorf("%v was settled, %d are left", a.settled, a.left)
		}
		if s.holds.Load() != 0 || s.unpaid.Load() != 0 || log.count("\n") != 0 {
			t.Errorf("%d are held, %d unpaid; log:\n%s", s.holds.Load(), s.unpaid.Load(), log.text.String())
		}
	})
}

// A settlement is given up after 4 minutes, and when the process stops. Then it is counted and logged.
func TestSettlerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		s := settler{log: log.logger()}
		a := &fakeAccount{fail: unavailable(1000)}
		s.begin()
		s.settle(debt{a, "acme", "h", Usage{Cost: 70}, nil})
		time.Sleep(settleTimeout - time.Second)
		if s.waiting.Load() != 1 {
			t.Error("it was given up too early")
		}
		time.Sleep(2 * maxSettlePause)
		const line = "[ERROR] A charge of 70 tokens of tenant acme was given up: a timeout: the account cannot be reached\n"
		if s.waiting.Load() != 0 || s.holds.Load() != 0 || s.unpaid.Load() != 70 || log.count(line) != 1 {
			t.Errorf("%d wait, %d unpaid; log:\n%s", s.waiting.Load(), s.unpaid.Load(), log.text.String())
		}

		s.begin()
		s.settle(debt{a, "acme", "h", Usage{Cost: 70}, nil})
		began := time.Now()
		s.stop(stopTimeout)
		if took := time.Since(began); took < stopTimeout || took > stopTimeout+time.Second {
			t.Errorf("it stopped after %s", took)
		}
		if log.count("[WARN] 1 holds were not settled: they return to their API keys when they expire\n") != 1 {
			t.Errorf("log:\n%s", log.text.String())
		}
		time.Sleep(2 * maxSettlePause)
		if s.waiting.Load() != 0 || s.unpaid.Load() != 140 || log.count(line) != 2 {
			t.Errorf("%d wait, %d unpaid; log:\n%s", s.waiting.Load(), s.unpaid.Load(), log.text.String())
		}
	})
}

// While too many settlements wait, nothing more is held. What could not be charged is counted, and logged unless there
// is nothing to settle.
func TestSettlerBounds(t *testing.T) {
	log := new(logBuffer)
	s := settler{log: log.logger()}
	for waiting, full := range map[int64]bool{0: false, maxSettlements - 1: false, maxSettlements: true} {
		if s.waiting.Store(waiting); s.isFull() != full {
			t.Errorf("with %d waiting, full is %v", waiting, s.isFull())
		}
	}
	for err, logged := range map[error]int{ErrNoHold: 0, fmt.Errorf("revoked: %w", ErrNoHold): 0, errors.New("y"): 1} {
		unpaid, lines := s.unpaid.Load(), log.count("[ERROR]")
		s.begin()
		if _, ok := s.settle(debt{&fakeAccount{fail: []error{err}}, "acme", "h", Usage{Cost: 70}, nil}); ok {
			t.Errorf("%v: settled", err)
		}
		if n := s.unpaid.Load() - unpaid; n != 70 || log.count("[ERROR]")-lines != logged {
			t.Errorf("%v: %d unpaid tokens\n%s", err, n, log.text.String())
		}
	}
	s.begin()
	if balance, ok := s.settle(debt{&fakeAccount{left: 30}, "acme", "h", Usage{Cost: 50}, nil}); !ok || balance != (Balance{30, 0}) {
		t.Errorf("got %v, %v", balance, ok)
	}
	if s.unpaid.Load() != 230 || s.holds.Load() != 0 {
		t.Errorf("%d are unpaid, %d held", s.unpaid.Load(), s.holds.Load())
	}
}

// A panic in what is repeated in the background does not end the process.
func TestSettlerPanics(t *testing.T) {
	log := new(logBuffer)
	s := settler{log: log.logger()}
	s.repeat(func() error { panic("boom") }, func(error) {})
	waittest.Eventually(t, 10*time.Second, func() error {
		if n := s.waiting.Load(); n > 0 || log.count("boom") == 0 {
			return fmt.Errorf("%d wait; the log has no panic", n)
		}
		return nil
	})
}

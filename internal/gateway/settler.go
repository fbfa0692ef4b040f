package gateway

import (
	"errors"
	"sync/atomic"
	"time"

	"tollgate/internal/telemetry"
)

const (
	maxSettlements = 10_000                 // that are repeated in the background; with more, new requests are refused
	settleTimeout  = 4 * time.Minute        // for which a settlement is repeated
	settleStep     = 900 * time.Millisecond // for one attempt
	settlePause    = 250 * time.Millisecond
	maxSettlePause = 4 * time.Second
	stopTimeout    = 5 * time.Second // for what is still to be settled when the process stops
)

// settler settles holds: each once, if need be when its account can be reached again.
type settler struct {
	log     *telemetry.Logger
	stopped atomic.Bool   // nothing is repeated any more
	holds   atomic.Int64  // that are open
	waiting atomic.Int64  // of these, those whose settling is repeated in the background
	unpaid  atomic.Uint64 // tokens that were used and not charged
}

// A debt is a hold that must be settled.
type debt struct {
	account Account
	tenant  string // for the log
	holdID  string
	usage   Usage
	lease   *lease // of the hold, which goes on until it is settled; nil if it is not known to have been taken
}

// isFull reports whether too many settlements wait for anything more to be held.
func (s *settler) isFull() bool { return s.waiting.Load() >= maxSettlements }

// begin counts a hold that may have been taken, which settle, settleLater or holdRefused ends.
func (s *settler) begin() { s.holds.Add(1) }

// holdRefused counts out a hold that was not taken after all.
func (s *settler) holdRefused() { s.holds.Add(-1) }

// settle settles d. ok is false if the account cannot be reached, so that d is settled later, and if there was nothing
// to settle.
func (s *settler) settle(d debt) (balance Balance, ok bool) { return s.finish(d, d.settle) }

// finish does what settle does, by a first step.
func (s *settler) finish(d debt, step func() (Balance, error)) (balance Balance, ok bool) {
	balance, err := step()
	if errors.Is(err, ErrUnavailable) {
		s.settleLater(d)
		return balance, false
	}
	s.settled(d, balance, err)
	return balance, err == nil
}

// settleSoon settles d, and does not wait for the outcome if the account is a QueuedAccount: it returns when a step of
// the account that begins afterwards finds d settled.
func (s *settler) settleSoon(d debt) {
	account, ok := d.account.(QueuedAccount)
	if !ok {
		s.settle(d)
		return
	}
	queued := make(chan struct{}, 1)
	notify := func() {
		select {
		case queued <- struct{}{}:
		default: // it was called before
		}
	}
	go func() {
		defer notify()
		defer s.recover()
		s.finish(d, func() (Balance, error) {
			return account.SettleQueued(time.Now().Add(settleStep), d.holdID, d.usage, notify)
		})
	}()
	<-queued
}

func (d *debt) settle() (Balance, error) {
	return d.account.Settle(time.Now().Add(settleStep), d.holdID, d.usage)
}

// settleLater settles d in the background, as repeat says. That does no harm if it was made before.
func (s *settler) settleLater(d debt) {
	var balance Balance
	s.repeat(func() (err error) {
		balance, err = d.settle()
		return err
	}, func(err error) { s.settled(d, balance, err) })
}

// repeat calls step in the background, with pauses, until the account responds, for settleTimeout at most: after that
// it may have forgotten what was done. Then it calls done with the last error of step, or ErrUnavailable.
func (s *settler) repeat(step func() error, done func(error)) {
	s.waiting.Add(1)
	go func() {
		defer s.waiting.Add(-1)
		defer s.recover()
		pause, err := settlePause, ErrUnavailable
		for giveUp := time.Now().Add(settleTimeout); errors.Is(err, ErrUnavailable); pause = min(2*pause, maxSettlePause) {
			time.Sleep(pause)
			if time.Now().After(giveUp) || s.stopped.Load() {
				break
			}
			err = step()
		}
		done(err)
	}()
}

// recover logs a panic of a goroutine that defers it. There it would end the process.
func (s *settler) recover() {
	if p := recover(); p != nil {
		s.log.Panicf(p, "panic while a hold was settled")
	}
}

// settled counts the outcome of a settlement.
func (s *settler) settled(d debt, balance Balance, err error) {
	d.lease.end()
	s.holds.Add(-1)
	if err != nil && !errors.Is(err, ErrNoHold) {
		s.log.Errorf("A charge of %d tokens of tenant %s was given up: %v", d.usage.Cost, d.tenant, err)
	}
	s.unpaid.Add(uint64(d.usage.Cost - min(d.usage.Cost, balance.Charged)))
}

// stop waits until everything is settled, for timeout at most.
func (s *settler) stop(timeout time.Duration) {
	if s.stopped.Load() {
		return
	}
	waitUntil(timeout, func() bool { return s.holds.Load() == 0 })
	s.stopped.Store(true)
	if n := s.holds.Load(); n > 0 {
		s.log.Warnf("%d holds were not settled: they return to their API keys when they expire", n)
	}
}

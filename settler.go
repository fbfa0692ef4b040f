package main

import (
	"errors"
	"sync/atomic"
	"time"
)

const (
	maxSettlements = 10_000          // that wait for Redis; beyond, nothing is held any more
	settleTimeout  = 4 * time.Minute // for which a settlement is repeated
	settlePause    = 250 * time.Millisecond
	maxSettlePause = 4 * time.Second
	stopTimeout    = 5 * time.Second // for what is still to be settled when the process stops
)

// settler settles the holds of the gateway: each once, if need be when Redis responds again.
type settler struct {
	*server
	stopped atomic.Bool // nothing is repeated any more
}

// heldTokens is a hold that must be settled once.
type heldTokens struct {
	tenant *tenant
	key    string
	id     string
	tokens int64

	// For the statistics, known when it is settled:
	endpoint      string
	input, output int64 // tokens of a model
}

// isFull reports whether too many settlements wait for anything more to be held.
func (s *settler) isFull() bool { return s.metrics.gateway.waiting.Load() >= maxSettlements }

// begin counts a hold that may have been taken, which settle, settleLater or drop ends.
func (s *settler) begin() { s.metrics.gateway.holds.Add(1) }

// drop counts a hold that was not taken after all.
func (s *settler) drop() { s.metrics.gateway.holds.Add(-1) }

// settle charges cost for h. If Redis does not respond, that is done later; ok is false then, and if h no longer
// exists.
func (s *settler) settle(h heldTokens, cost int64) (result settlement, ok bool) {
	result, err := s.store.SettleRotated(time.Now().Add(publicTimeout), h.tenant, h.key, h.id, cost)
	if errors.Is(err, ErrUnavailable) {
		s.settleLater(h, cost)
		return result, false
	}
	s.settled(h, cost, result, err)
	return result, err == nil
}

// settleLater repeats a settlement in the background until Redis responds, for settleTimeout at most. That does no harm
// if it was made before.
func (s *settler) settleLater(h heldTokens, cost int64) {
	s.metrics.gateway.waiting.Add(1)
	go func() {
		defer s.metrics.gateway.waiting.Add(-1)
		pause := settlePause
		for giveUp := time.Now().Add(settleTimeout); ; pause = min(2*pause, maxSettlePause) {
			time.Sleep(pause)
			result, err := s.store.SettleRotated(time.Now().Add(publicTimeout), h.tenant, h.key, h.id, cost)
			if !errors.Is(err, ErrUnavailable) || time.Now().After(giveUp) || s.stopped.Load() {
				s.settled(h, cost, result, err)
				return
			}
		}
	}()
}

// settled counts the outcome of a settlement.
func (s *settler) settled(h heldTokens, cost int64, result settlement, err error) {
	s.metrics.gateway.holds.Add(-1)
	switch {
	case err == nil:
		s.metrics.charged(h.tenant.id, result.charged)
		s.usage.add(h.tenant, usageEvent{
			group: result.group, endpoint: h.endpoint, requests: 1, charged: result.charged, input: h.input, output: h.output,
		})
	case !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrNoHold): // a key that was revoked has no holds
		s.log.Errorf("A charge of %d tokens of tenant %s was given up: %v", cost, h.tenant.id, err)
	}
	s.metrics.gateway.unpaid.Add(uint64(cost - min(cost, result.charged)))
}

// stop waits until everything is settled.
func (s *settler) stop() {
	if s.stopped.Load() {
		return
	}
	for end := time.Now().Add(stopTimeout); s.metrics.gateway.holds.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	s.stopped.Store(true)
	if n := s.metrics.gateway.holds.Load(); n > 0 {
		s.log.Warnf("%d holds were not settled: they return to their API keys when they expire", n)
	}
}

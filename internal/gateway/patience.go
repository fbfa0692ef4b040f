package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A balance that is only held is not spent: a request that other requests of its user leave too little for waits until
// some of them have been settled.
//
// A request that the balance covers never waits, also if others do: a small one does not stand behind a large one, and
// other processes know nothing of the queue. So under steady load a large request can be overtaken by smaller ones of
// the same user until its patience ends. It then gets less, or a 429 that clients repeat.
const (
	holdPatience = time.Second            // for which a request waits
	holdPoll     = 100 * time.Millisecond // until it looks for what other processes have settled; doubled each time
	maxPatient   = 16                     // requests of a user that wait at a time
)

// A HeldError is the refusal of a request that the balance would cover if what other requests hold came back.
type HeldError struct {
	Needed, Left, Held int64 // tokens
}

// Error returns a sentence for the client.
func (e HeldError) Error() string {
	return fmt.Sprintf("The request needs %d tokens, %d are left and %d are held by requests that still run: "+
		"repeat it in a second", e.Needed, e.Left, e.Held)
}

// acquire takes a hold. While the balance does not cover it, but would with what other requests of the user hold, it
// waits for these, and then takes less, if r allows that. Errors: those of patiently and Account.Hold.
func (x *exchange) acquire(r HoldRequest) error {
	return x.patiently(r.Least, func(patient bool) error {
		r.Patient = patient
		return x.tryHold(r)
	})
}

// patiently calls try, which takes tokens of the account, until it no longer returns an InsufficientError, or returns
// one of more tokens than others hold: after each settlement of a request of the user, for holdPatience at most. The
// last time it is told not to be patient. needed is the fewest tokens with which try can succeed. Errors: HeldError;
// those of TakePlace, wait and try.
func (x *exchange) patiently(needed int64, try func(patient bool) error) error {
	err := try(true)
	spent, isHeld := onlyHeld(err, needed)
	if !isHeld {
		return err
	}
	if err := TakePlace(x.relay.place); err != nil {
		return err
	}
	turn := x.gateway.patient.join(member{x.call.Tenant, x.call.User})
	defer turn.leave()
	deadline, began, end := x.call.Deadline, time.Now(), time.Now().Add(holdPatience)
	patient := true
	for poll := holdPoll; patient && isHeld; poll = min(2*poll, holdPatience) { // however often it is woken
		if turn != nil {
			if err := x.wait(turn.woken, min(poll, time.Until(end))); err != nil {
				return err
			}
		}
		patient = turn != nil && time.Now().Before(end)
		x.call.Deadline = deadline.Add(time.Since(began)) // which is Redis's
		err = try(patient)
		spent, isHeld = onlyHeld(err, needed)
	}
	if isHeld {
		x.w.Header().Set("X-Tokens-Left", strconv.FormatInt(spent.Left, 10))
		return HeldError{needed, spent.Left, spent.Held}
	}
	return err
}

// onlyHeld reports whether err is an InsufficientError only because other requests hold what the balance lacks.
func onlyHeld(err error, needed int64) (spent InsufficientError, ok bool) {
	spent, ok = errors.AsType[InsufficientError](err)
	return spent, ok && spent.Held > 0 && spent.Left+spent.Held >= needed
}

// wait waits until woken receives, or for d. The error is that of a call that has ended meanwhile.
func (x *exchange) wait(woken <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-woken:
	case <-timer.C:
	case <-x.r.Context().Done():
		return errHungUp
	case <-x.gateway.ctx.Done():
		return Error{http.StatusServiceUnavailable, "The server is stopping"}
	}
	return nil
}

// tryHold takes a hold, if the account grants it now, and starts its lease.
func (x *exchange) tryHold(r HoldRequest) (err error) {
	x.hold, x.lease, err = x.gateway.hold(x.call.Account, x.call.Tenant, x.call.Deadline, r)
	return err
}

// patientQueues are the requests of each user that wait for tokens, in the order in which they came. It is the order in
// which they are woken, not a right to come first.
type patientQueues struct {
	mu     sync.Mutex
	queues map[member][]*turn
}

// A member is a user of a tenant.
type member struct{ tenant, user string }

// A turn is the place of a request in the queue of its user. It is nil if the request does not wait.
type turn struct {
	all   *patientQueues
	of    member
	woken chan struct{} // receives if tokens may have come back
}

// join returns a turn, which leave ends, or nil if maxPatient requests of the user have one.
func (q *patientQueues) join(of member) *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queues[of]) >= maxPatient {
		return nil
	}
	t := &turn{all: q, of: of, woken: make(chan struct{}, 1)}
	if q.queues == nil {
		q.queues = make(map[member][]*turn)
	}
	q.queues[of] = append(q.queues[of], t)
	return t
}

// leave ends a turn. The next one is woken: there may be more tokens than this one has taken.
func (t *turn) leave() {
	if t == nil {
		return
	}
	t.all.mu.Lock()
	rest := t.all.queues[t.of]
	rest = slices.DeleteFunc(rest, func(other *turn) bool { return other == t })
	if t.all.queues[t.of] = rest; len(rest) == 0 {
		delete(t.all.queues, t.of)
	}
	t.all.mu.Unlock()
	t.all.wake(t.of)
}

// wake wakes the first of the requests that wait for tokens of a user. It never blocks.
func (q *patientQueues) wake(of member) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if first := q.queues[of]; len(first) > 0 {
		select {
		case first[0].woken <- struct{}{}:
		default: // it has not looked since it was woken
		}
	}
}

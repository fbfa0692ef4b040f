package main

import (
	"sync"
	"time"
)

// turns lets those who come under one name pass one at a time. Its zero value is ready for use.
type turns struct {
	mu     sync.Mutex
	byName map[string]*turn // of the names under which somebody passes or waits
}

// turn is what those who come under one name wait for.
type turn struct {
	taken chan struct{} // holds an element while somebody passes
	users int           // those who pass or wait
}

// take waits for the turn of a name, until timeout, and reports whether it came. If it did, the caller calls end when
// it has passed.
func (t *turns) take(name string, timeout time.Duration) (end func(), ok bool) {
	mine := t.enter(name)
	if !mine.wait(timeout) {
		t.leave(name)
		return nil, false
	}
	return func() {
		<-mine.taken
		t.leave(name)
	}, true
}

// wait takes the turn, and reports whether it has got it before timeout. It always gets one that is free.
func (t *turn) wait(timeout time.Duration) bool {
	select {
	case t.taken <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case t.taken <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}

// enter returns the turn of a name, and counts the caller among its users until leave.
func (t *turns) enter(name string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := t.byName[name]
	if mine == nil {
		mine = &turn{taken: make(chan struct{}, 1)}
		if t.byName == nil {
			t.byName = make(map[string]*turn)
		}
		t.byName[name] = mine
	}
	mine.users++
	return mine
}

// leave counts a caller out, and forgets a turn that nobody uses.
func (t *turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := t.byName[name]
	if mine.users--; mine.users == 0 {
		delete(t.byName, name)
	}
}

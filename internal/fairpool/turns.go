package fairpool

import (
	"sync"
	"time"
)

// Turns lets callers with the same name proceed one at a time. Its zero value is ready for use.
type Turns struct {
	mu     sync.Mutex
	byName map[string]*turn // of the names with which a caller proceeds or waits
}

// turn is what callers with the same name wait for.
type turn struct {
	taken chan struct{} // holds an element while a caller proceeds
	users int           // the callers that proceed or wait
}

// Take waits for the turn of a name, until timeout, and reports whether it came. If it did, the caller calls end when
// it is done.
func (t *Turns) Take(name string, timeout time.Duration) (end func(), ok bool) {
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
func (t *Turns) enter(name string) *turn {
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
func (t *Turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := t.byName[name]
	if mine.users--; mine.users == 0 {
		delete(t.byName, name)
	}
}

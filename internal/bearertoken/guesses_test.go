package bearertoken

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/telemetrytest"
)

// An address may have ten tokens refused in any minute. Each further refusal is delayed, those of others are not.
func TestGuessCount(t *testing.T) {
	g := NewGuesses(new(telemetrytest.Log).Logger())
	at := time.Now()
	for i, step := range []struct {
		after   time.Duration // the step before
		address string
		refused int  // tokens
		tooMany bool // of all of them
	}{
		{0, "a", 10, false},
		{0, "a", 1, true},
		{0, "b", 10, false},
		{59 * time.Second, "a", 5, true},
		{0, "b", 1, true},
		{time.Second, "b", 9, false}, // its first ten are a minute old
		{0, "b", 1, true},
		{0, "a", 5, false}, // five of the last minute are left
		{0, "a", 1, true},
		{time.Hour, "a", 10, false},
		{0, "a", 20, true},
	} {
		at = at.Add(step.after)
		for n := range step.refused {
			if got := g.count(step.address, at); got != step.tooMany {
				t.Errorf("step %d, token %d: too many is %v", i, n, got)
			}
		}
	}
}

// However many addresses guess, what is remembered is bounded, and they do not get more than an address that is known.
func TestGuessAddresses(t *testing.T) {
	g := NewGuesses(new(telemetrytest.Log).Logger())
	at := time.Now()
	for i := range 3 * maxGuessAddresses {
		if got := g.count(fmt.Sprint(i), at); got != (i >= maxGuessAddresses) {
			t.Fatalf("address %d: too many is %v", i, got)
		}
	}
	if n := len(g.addresses); n != maxGuessAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
	if g.count("later", at.Add(refusalWindow)) || len(g.addresses) != 1 {
		t.Errorf("%d addresses are remembered after a minute", len(g.addresses))
	}
}

// At most 64 refusals wait at a time; the others, and those for which connections are too scarce, do not.
func TestGuessDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(telemetrytest.Log)
		g := NewGuesses(log.Logger())
		wait := func(mayWait bool) time.Duration {
			began := time.Now()
			g.NoteRefusal("192.0.2.1", mayWait)
			return time.Since(began)
		}
		for range freeRefusals {
			if took := wait(true); took != 0 {
				t.Errorf("it took %s", took)
			}
		}
		for range 3 {
			if took := wait(true); took != time.Second {
				t.Errorf("it took %s", took)
			}
		}
		if took := wait(false); took != 0 {
			t.Errorf("with scarce connections it took %s", took)
		}
		var delayed sync.WaitGroup
		for range maxDelayed {
			delayed.Go(func() { wait(true) })
		}
		synctest.Wait()
		if took := wait(true); took != 0 {
			t.Errorf("with %d that wait it took %s", maxDelayed, took)
		}
		delayed.Wait()
		if took := wait(true); took != time.Second {
			t.Errorf("when they have ended it took %s", took)
		}
		const line = "[WARN] More than 10 admin or metrics tokens of 192.0.2.1 were refused within a minute"
		if log.Count(line) != 1 {
			t.Errorf("log:\n%s", log)
		}
		time.Sleep(30 * time.Second)
		for range 2 {
			wait(true)
		}
		if log.Count(line) != 1 {
			t.Errorf("after half a minute the log is:\n%s", log)
		}
		time.Sleep(30 * time.Second)
		for range freeRefusals {
			wait(true)
		}
		if log.Count("[WARN]") != 2 {
			t.Errorf("after a minute the log is:\n%s", log)
		}
	})
}

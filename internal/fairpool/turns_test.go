package fairpool

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Time stands still here while anybody can go on, so nothing depends on how fast the machine is.
func TestTurns(t *testing.T) {
	t.Run("one at a time, and other names beside it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all Turns
			var passing [3]atomic.Int64
			var passed sync.WaitGroup
			start := time.Now()
			for i := range 30 {
				passed.Go(func() {
					end, ok := all.Take(fmt.Sprint(i%3), time.Minute)
					if !ok {
						t.Error("it did not come")
						return
					}
					if n := passing[i%3].Add(1); n != 1 {
						t.Errorf("%d pass under one name", n)
					}
					time.Sleep(time.Second)
					passing[i%3].Add(-1)
					end()
				})
			}
			passed.Wait()
			if took := time.Since(start); took != 10*time.Second {
				t.Errorf("10 turns of 1 s under each name took %s", took)
			}
			if n := len(all.byName); n != 0 {
				t.Errorf("%d names are left", n)
			}
		})
	})
	t.Run("who waits too long does not pass", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all Turns
			end, ok := all.Take("a", 0)
			if !ok {
				t.Fatal("it is not free at first")
			}
			start := time.Now()
			if _, ok := all.Take("a", time.Second); ok || time.Since(start) != time.Second {
				t.Errorf("%t after %s, want false after 1 s", ok, time.Since(start))
			}
			end()
			if n := len(all.byName); n != 0 {
				t.Errorf("%d names are left", n)
			}
			if end, ok = all.Take("a", time.Second); !ok {
				t.Fatal("it is not free again")
			}
			end()
		})
	})
}

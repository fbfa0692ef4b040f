package main

import (
	"fmt"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/telemetrytest"
)

// Time stands still here while anybody can go on, so nothing depends on how fast the machine is.
func TestTurns(t *testing.T) {
	t.Run("one at a time, and other names beside it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all turns
			var passing [3]atomic.Int64
			var passed sync.WaitGroup
			start := time.Now()
			for i := range 30 {
				passed.Go(func() {
					end, ok := all.take(fmt.Sprint(i%3), time.Minute)
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
			var all turns
			end, ok := all.take("a", 0)
			if !ok {
				t.Fatal("it is not free at first")
			}
			start := time.Now()
			if _, ok := all.take("a", time.Second); ok || time.Since(start) != time.Second {
				t.Errorf("%t after %s, want false after 1 s", ok, time.Since(start))
			}
			end()
			if n := len(all.byName); n != 0 {
				t.Errorf("%d names are left", n)
			}
			if end, ok = all.take("a", time.Second); !ok {
				t.Fatal("it is not free again")
			}
			end()
		})
	})
}

// While a request of a tenant that lists keys or shows usage has its turn, others of the tenant are told to come again
// after a second, and those of other tenants are not.
func TestTurnsOfTenants(t *testing.T) {
	t.Parallel()
	log := new(telemetrytest.Log)
	server := newBareServer(t, log)
	listener := httptest.NewServer(server.handler)
	defer listener.Close()
	s := &service{url: listener.URL, log: log}
	id, other := newTenant(t, 1), newTenant(t, 1)
	paths := func(id string) []string {
		return []string{"/" + id + "/admin/keys?userId=u", "/" + id + "/admin/usage?from=2026-11-01&to=2026-11-02"}
	}
	end, ok := server.turns.take(id, 0)
	if !ok {
		t.Fatal("it is not free")
	}
	for _, path := range paths(id) {
		start := time.Now()
		got := s.admin(t, "GET", path, "")
		got.wantError(t, 429, "Too Many Requests")
		got.wantHeader(t, "Retry-After", "1")
		if waited := time.Since(start); waited < time.Second {
			t.Errorf("%s waited for %s", path, waited)
		}
	}
	for _, path := range paths(other) {
		s.admin(t, "GET", path, "").want(t, 200, "")
	}
	s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, "")
	end()
	for range 2 { // they give it back
		for _, path := range paths(id) {
			s.admin(t, "GET", path, "").want(t, 200, "")
		}
	}
}

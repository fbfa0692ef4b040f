package main

import (
	"net/http/httptest"
	"testing"
	"time"

	"tollgate/internal/telemetrytest"
)

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
	const days = "/usage?from=2026-11-01&to=2026-11-02"
	key, second := s.login(t, id), s.login(t, id)
	keys := map[string]string{id: key, other: s.login(t, other)}
	paths := func(id string) []string {
		return []string{"/" + id + "/admin/keys?userId=u", "/" + id + "/admin" + days, "/" + id + "/admin/keys/" + keys[id] + days}
	}
	end, ok := server.turns.Take(id, 0)
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
	own := func(key string) reply { return s.do(t, "GET", "/"+id+"/auth"+days, "", bearer(key)) }
	own(key).want(t, 200, "") // holders of keys wait for nobody else
	endOwn, _ := server.turns.Take(id+" "+key, 0)
	own(key).wantError(t, 429, "Too Many Requests")
	own(second).want(t, 200, "")
	endOwn()
	own(key).want(t, 200, "")
	end()
	for range 2 { // they give it back
		for _, path := range paths(id) {
			s.admin(t, "GET", path, "").want(t, 200, "")
		}
	}
}

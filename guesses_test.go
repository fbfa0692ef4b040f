package main

import (
	"testing"
	"time"
)

// An address that guesses tokens waits, on whichever route. The right token never waits, nor do other addresses or the
// holders of API keys.
func TestGuesses(t *testing.T) {
	t.Parallel()
	s := newService(t, trustTest, "METRICS_TOKEN=metrics-token-0123456789")
	id := newTenant(t, 10)
	token := s.newAdminToken(t, id)
	routes := []string{"/admin/tenants", "/" + id + "/admin/config", "/metrics", "/nobody/admin/keys", "/admin/config"}
	wrong := []string{"x", "adm_" + someKey[5:], someKey, "ä"}
	guesser, other := fromElsewhere(), fromElsewhere()
	took := func(method, path, token, from string, status int) time.Duration {
		t.Helper()
		began := time.Now()
		if got := s.do(t, method, path, "", bearer(token), from); got.status != status {
			t.Errorf("%s: %d, want %d", path, got.status, status)
		}
		return time.Since(began)
	}
	for i := range 10 {
		took("GET", routes[i%len(routes)], wrong[i%len(wrong)], guesser, 401)
		s.do(t, "GET", routes[i%len(routes)], "", guesser).want(t, 401, "") // without a token: that is no guess
		s.consume(t, id, someKey, "", guesser).want(t, 401, "")             // nor is a wrong key
	}
	for i, route := range routes {
		if d := took("GET", route, wrong[i%len(wrong)], guesser, 401); d < time.Second {
			t.Errorf("%s: a further refusal took %s", route, d)
		}
	}
	for _, fast := range []func() time.Duration{
		func() time.Duration { return took("GET", "/admin/tenants", testAdminToken, guesser, 200) },
		func() time.Duration { return took("GET", "/"+id+"/admin/config", token, guesser, 200) },
		func() time.Duration { return took("GET", "/metrics", "metrics-token-0123456789", guesser, 200) },
		func() time.Duration { return took("GET", "/admin/tenants", "x", other, 401) },
		func() time.Duration { return took("POST", "/"+id+"/tokens/consume", someKey, guesser, 401) },
	} {
		best := time.Hour
		for range 3 { // on a busy machine one may take long
			best = min(best, fast())
		}
		if best > 900*time.Millisecond {
			t.Errorf("what is not a guess took %s", best)
		}
	}
	if s.log.Count("[WARN]") != 1 || s.log.Count("tokens of 10.") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// An admin route that changes something honours an Idempotency-Key or refuses it, before it changes anything. What only
// reads ignores it.
func TestIdempotencyKeyOfAdmins(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	etag := bare(s.putConfig(t, id, `{"user_groups":{"anonymous":{"tokens":10}}}`).etag(t))
	s.newAdminToken(t, id)
	key := s.login(t, id)
	routes := adminRoutes(key, s.login(t, id), etag)
	routes = append(routes,
		adminRoute{"GET /admin/tenants", "/admin/tenants", "", 200},
		adminRoute{"GET /admin/status", "/admin/status", "", 200},
		adminRoute{"POST /admin/tenants", "/admin/tenants", `{"tenantId":"` + id + `x","config":{}}`, 201},
		adminRoute{"DELETE /admin/tenants/{tenantId}", "/admin/tenants/" + id, "", 204},
	)
	honoured := []string{"POST /admin/keys", "PATCH /admin/keys/{apiKey}", "POST /admin/keys/{apiKey}/rotate"}
	for _, route := range routes {
		t.Run(route.pattern, func(t *testing.T) {
			path := route.path
			if !strings.HasPrefix(path, "/admin/tenants") && path != "/admin/status" {
				path = "/" + id + path
			}
			got := s.admin(t, route.method(), path, route.body, retryKey+"k")
			if route.method() == "GET" || slices.Contains(honoured, route.pattern) {
				got.want(t, route.status, "")
				return
			}
			got.wantError(t, 400, "This route does not support Idempotency-Key")
			s.do(t, route.method(), path, route.body, retryKey+"k").want(t, 401, "")
		})
	}
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
	if n := len(s.history(t, id)); n != 2 {
		t.Errorf("there are %d versions of the config", n)
	}
	if n := testRedis.Int(t, "HLEN", adminTokensRedisKey(id)); n != 1 {
		t.Errorf("there are %d admin tokens", n)
	}
}

// listedToken is an element of the list of a tenant's admin tokens.
type listedToken struct{ ID, CreatedAt string }

// adminTokens returns the list of a tenant's admin tokens.
func (s *service) adminTokens(t *testing.T, tenant string) []listedToken {
	t.Helper()
	got := s.admin(t, "GET", "/"+tenant+"/admin/tokens", "")
	got.want(t, 200, "")
	var list struct{ Tokens []listedToken }
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || list.Tokens == nil {
		t.Fatalf("%s: %v", got.body, err)
	}
	return list.Tokens
}

// putAdminTokens puts n hashes straight into Redis that begin with the number of each, in hex, and returns the first.
func putAdminTokens(t *testing.T, r *redistest.Server, tenant string, n int) (first string) {
	t.Helper()
	hash := func(i int) string { return fmt.Sprintf("%08x%056x", i, i) }
	for i := 0; i < n; i += 1000 {
		args := []any{adminTokensRedisKey(tenant)}
		for j := i; j < min(n, i+1000); j++ {
			args = append(args, hash(j), "2026-01-02T03:04:05.678Z")
		}
		r.Do(t, "HSET", args...)
	}
	return hash(0)
}

// Admin tokens are listed by ID, oldest first, and each can be revoked alone.
func TestAdminTokenList(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	id, other := newTenant(t, 1), newTenant(t, 1)
	s.admin(t, "GET", "/"+id+"/admin/tokens", "").want(t, 200, `{"tokens":[]}`)
	var tokens, want []string
	for range 5 {
		token := s.newAdminToken(t, id)
		tokens, want = append(tokens, token), append(want, tokenHash(token)[:8])
		time.Sleep(2 * time.Millisecond) // times have milliseconds
	}
	wantIDs := func(t *testing.T, want []string) {
		t.Helper()
		var got []string
		for _, token := range s.adminTokens(t, id) {
			got = append(got, token.ID)
			if at, err := time.Parse(timeLayout, token.CreatedAt); err != nil || time.Since(at) > time.Minute {
				t.Errorf("%+v: %v", token, err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	wantIDs(t, want)
	t.Run("an invalid ID, and another tenant's, is not found", func(t *testing.T) {
		for _, wrong := range []string{"x", "*", "%2A", "????????", "", "%00", want[0][:7], tokenHash(tokens[0]), strings.ToUpper(tokens[0]),
			"0000000g", "00000000"} {
			s.admin(t, "DELETE", "/"+id+"/admin/tokens/"+wrong, "").wantError(t, 404, "Not found")
		}
		s.admin(t, "DELETE", "/"+other+"/admin/tokens/"+want[0], "").wantError(t, 404, "Not found")
		wantIDs(t, want)
	})
	t.Run("one is revoked for every process, and no other", func(t *testing.T) {
		path := "/" + id + "/admin/tokens/"
		s.do(t, "DELETE", path+want[2], "", bearer(tokens[1])).want(t, 204, "")
		s.do(t, "DELETE", path+want[1], "", bearer(tokens[1])).want(t, 204, "") // its own
		s.admin(t, "DELETE", path+want[1], "").wantError(t, 404, "Not found")
		for i, token := range tokens {
			status := 200
			if i == 1 || i == 2 {
				status = 401
			}
			services[1].do(t, "GET", "/"+id+"/admin/config", "", bearer(token)).want(t, status, "")
		}
		wantIDs(t, slices.Delete(slices.Clone(want), 1, 3))
		line := "[INFO] Admin " + want[1] + ", tenant " + id + ": revoked the admin token " + want[2] + "\n"
		if s.log.Count(line) != 1 {
			t.Errorf("log:\n%s", s.log)
		}
	})
	t.Run("an ID that two have revokes both", func(t *testing.T) {
		testRedis.Do(t, "HSET", adminTokensRedisKey(id), want[0]+strings.Repeat("0", 56), "2026-01-02T03:04:05.678Z")
		s.admin(t, "DELETE", "/"+id+"/admin/tokens/"+want[0], "").want(t, 204, "")
		s.do(t, "GET", "/"+id+"/admin/config", "", bearer(tokens[0])).want(t, 401, "")
		wantIDs(t, want[3:])
	})
}

// A tenant has 100 admin tokens at most, however many are asked for at a time.
func TestAdminTokenBound(t *testing.T) {
	services := newServices(t)
	id := newTenant(t, 1)
	first := putAdminTokens(t, testRedis, id, 95)
	outcomes := load{
		services: services, clients: 8, requests: 3, statuses: []int{201, 409},
		request: func(int, int) request {
			return request{method: "POST", path: "/" + id + "/admin/tokens", headers: []string{bearer(testAdminToken)}}
		},
	}.run(t)
	if n := len(outcomes.of("POST", 201)); n != 5 {
		t.Errorf("%d tokens were created beside 95", n)
	}
	s, path := services[0], "/"+id+"/admin/tokens"
	s.admin(t, "POST", path, "").want(t, 409, `{"error":"Too many admin tokens"}`)
	s.admin(t, "DELETE", path+"/"+first[:8], "").want(t, 204, "")
	s.admin(t, "POST", path, "").want(t, 201, "")
	s.admin(t, "POST", path, "").want(t, 409, "")
	s.admin(t, "DELETE", path, "").want(t, 204, "")
	s.admin(t, "POST", path, "").want(t, 201, "")
}

// What earlier versions have left, without a bound, is listed up to one, and deleted without holding Redis up.
func TestManyAdminTokens(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id, key := "abc", adminTokensRedisKey("abc")
	first := putAdminTokens(t, r, id, 20_000)
	if n := len(s.adminTokens(t, id)); n < 900 || n > 1000 {
		t.Errorf("%d of 20,000 are listed", n)
	}
	s.admin(t, "POST", "/"+id+"/admin/tokens", "").want(t, 409, "")
	s.admin(t, "DELETE", "/"+id+"/admin/tokens/"+first[:8], "").want(t, 204, "")
	if n, gone := r.Int(t, "HLEN", key), r.Int(t, "HEXISTS", key, first); n != 19_999 || gone != 0 {
		t.Errorf("%d are left", n)
	}
	unlinked := func() int { return redistest.Calls(r.String(t, "INFO", "commandstats"), "unlink") }
	for _, test := range []struct {
		name   string
		delete func(t *testing.T)
	}{
		{"all tokens", func(t *testing.T) { s.admin(t, "DELETE", "/"+id+"/admin/tokens", "").want(t, 204, "") }},
		{"the tenant", func(t *testing.T) { s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "") }},
		{"what is left of one", func(t *testing.T) { s.createTenant(t, id, `{}`).want(t, 201, "") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			putAdminTokens(t, r, id, 2000)
			before := unlinked()
			test.delete(t)
			if n := r.Int(t, "EXISTS", key); n != 0 || unlinked() == before {
				t.Errorf("%d is left, %d calls of UNLINK", n, unlinked()-before)
			}
		})
	}
}

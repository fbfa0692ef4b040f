package main

import (
	"slices"
	"strings"
	"testing"
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
		adminRoute{"POST /admin/tenants", "/admin/tenants", `{"tenantId":"` + id + `x","config":{}}`, 201},
		adminRoute{"DELETE /admin/tenants/{tenantId}", "/admin/tenants/" + id, "", 204},
	)
	honoured := []string{"POST /admin/keys", "PATCH /admin/keys/{apiKey}", "POST /admin/keys/{apiKey}/rotate"}
	for _, route := range routes {
		t.Run(route.pattern, func(t *testing.T) {
			path := route.path
			if !strings.HasPrefix(path, "/admin/tenants") {
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

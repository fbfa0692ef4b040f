package main

import (
	"slices"
	"strings"
	"testing"

	"tollgate/internal/redistest"
)

// keyHolderRoutes returns the method and the path, without a tenant, of each route that reads an API key.
func keyHolderRoutes() (routes [][2]string) {
	for _, route := range new(server).routes() {
		method, path := routeOf(route.pattern)
		path, found := strings.CutPrefix(path, "/{tenantId}")
		isLogin := strings.HasPrefix(path, "/auth/") && !slices.Contains([]string{"/auth/key", "/auth/usage", "/auth/verify"}, path)
		if !found || !route.access.browser || isLogin || path == "/billing/prices" {
			continue
		}
		if method == "" {
			method = "GET"
		}
		routes = append(routes, [2]string{method, strings.NewReplacer("{holdId}", "hold_x", "{model}", "m").Replace(path)})
	}
	return routes
}

// Whoever has mistyped the tenant learns that first, in the format of the route, whatever is wrong with the key.
func TestUnknownTenantWithoutKey(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	credentials := [][]string{
		nil, {"Authorization: "}, {"Authorization: Basic eA=="}, {bearer("sk-other")}, {bearer("a:b")},
		{bearer(someKey), bearer("temp_" + someKey[5:])},
		{"X-API-Key: x"}, {"X-API-Key: " + someKey, bearer("temp_" + someKey[5:])},
	}
	routes := keyHolderRoutes()
	if len(routes) < 11 {
		t.Fatalf("only %d routes were found", len(routes))
	}
	for _, route := range routes {
		t.Run(route[1], func(t *testing.T) {
			for _, headers := range credentials {
				for _, tenant := range []string{"/nobody", "/a%3Ab", ""} {
					got := s.do(t, route[0], tenant+route[1], "", openingOf(route[1], headers...)...)
					if strings.HasPrefix(route[1], "/v1/") {
						got.wantWireError(t, route[1], 400, "invalid_request_error", "")
					} else {
						got.want(t, 400, `{"error":"Invalid tenant ID"}`)
					}
				}
				if got := s.do(t, route[0], "/abc"+route[1], "", openingOf(route[1], headers...)...); got.status != 401 {
					t.Errorf("%q: got %d %s", headers, got.status, got.body)
				}
			}
		})
	}
	t.Run("Redis is away", func(t *testing.T) {
		r.Kill()
		s.do(t, "GET", "/nobody/auth/key", "").want(t, 401, `{"error":"Unauthorized"}`)
	})
}

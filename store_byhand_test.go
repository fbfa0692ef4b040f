package main

import (
	"slices"
	"strings"
	"testing"

	"tollgate/internal/redistest"
)

// An API key that is written straight into Redis is like any other once it has what docs/operations.md says, and is
// listed after -reindex.
func TestKeysWrittenByHand(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const config = `{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5}}}`
	first := newTenantIn(t, r, config)
	again := newTenantID()
	s.createTenant(t, again, config).want(t, 201, "")
	s.admin(t, "DELETE", "/admin/tenants/"+again, "").want(t, 204, "")
	s.createTenant(t, again, config).want(t, 201, "")
	for _, test := range []struct{ name, tenant, key, group string }{
		{"a user's", first, someKey, "pro"},
		{"of a tenant that was created again", again, "user_" + strings.Replace(someKey[5:], "1", "2", 1), "pro"},
		{"an anonymous one", first, "temp_" + someKey[5:], "anonymous"},
		{"an anonymous one of a tenant that was created again", again, "temp_" + strings.Replace(someKey[5:], "1", "2", 1), "anonymous"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := apiKeyRedisKey(test.key)
			r.Do(t, "HSET", name, "createdAt", "2026-01-02T03:04:05Z", "tokensLeft", 100) // as the specification says
			if test.group == "pro" {
				r.Do(t, "HSET", name, "userId", "u-7")
			} else {
				r.Do(t, "EXPIRE", name, 86400)
			}
			s.consume(t, test.tenant, test.key, "").want(t, 401, "")
			r.Do(t, "HSET", name, "tenantId", test.tenant, "group", test.group)
			if r.Int(t, "EXISTS", generationRedisKey(test.tenant)) == 1 {
				s.consume(t, test.tenant, test.key, "").want(t, 401, "")
				r.Do(t, "HSET", name, "generation", r.String(t, "GET", generationRedisKey(test.tenant)))
			}
			s.consume(t, test.tenant, test.key, "").want(t, 200, `{"tokensLeft":99}`)
			shown := s.do(t, "GET", "/"+test.tenant+"/auth/key", "", bearer(test.key))
			shown.want(t, 200, "")
			if expires := shown.field(t, "expiresAt") != nil; shown.text(t, "createdAt") != "2026-01-02T03:04:05.000Z" ||
				shown.text(t, "group") != test.group || expires != (test.group == "anonymous") {
				t.Errorf("got %s", shown.body)
			}
			if test.group != "pro" {
				return
			}
			p := startProcess(t, []string{"REDIS_URL=" + r.URL()}, "-reindex")
			if code := p.exitCode(t); code != 0 {
				t.Fatalf("exit code %d, log:\n%s", code, p.log)
			}
			if got := s.keysOf(t, test.tenant, "u-7"); !slices.Equal(got, []string{test.key}) {
				t.Errorf("listed are %q", got)
			}
		})
	}
}

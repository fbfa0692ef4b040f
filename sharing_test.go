package main

import (
	"fmt"
	"strings"
	"testing"
)

// Keys that share the balance of another, and those of former names in their grace.

// share issues a key that shares the balance of another.
func (s *service) share(t testing.TB, tenant, with string, members ...string) string {
	t.Helper()
	return s.issue(t, tenant, strings.Join(append(members, `"sharesWith":"`+with+`"`), ","))
}

// rotateWithGrace rotates a key and returns the new one.
func (s *service) rotateWithGrace(t testing.TB, tenant, key string, seconds int) string {
	t.Helper()
	got := s.admin(t, "POST", "/"+tenant+"/admin/keys/"+key+"/rotate", fmt.Sprintf(`{"graceSeconds":%d}`, seconds))
	got.want(t, 200, "")
	return got.text(t, "apiKey")
}

// A key that shares spends, holds and shows the balance of another. Its own are its name, its times and whether it is
// enabled.
func TestSharedBalance(t *testing.T) {
	t.Parallel()
	s, id := newService(t), limitedTenant(t, 100, 60)
	key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":1000`)
	got := s.admin(t, "POST", "/"+id+"/admin/keys", `{"sharesWith":"`+key+`","expiresIn":3600}`)
	got.want(t, 201, "")
	shared := got.text(t, "apiKey")
	if left := got.field(t, "tokensLeft"); left != float64(1000) {
		t.Errorf("it shows %v", left)
	}
	s.consume(t, id, shared, `{"tokens":100}`).want(t, 200, `{"tokensLeft":900}`)
	s.consume(t, id, key, `{"tokens":100}`).want(t, 200, `{"tokensLeft":800}`)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":300}`, bearer(shared))
	hold.want(t, 201, "")
	settle := "/" + id + "/tokens/holds/" + hold.text(t, "holdId") + "/settle"
	s.do(t, "POST", settle, `{"tokens":50}`, bearer(shared)).want(t, 200, `{"charged":50,"tokensLeft":750}`)
	s.do(t, "POST", settle, `{"tokens":50}`, bearer(key)).want(t, 200, `{"charged":50,"tokensLeft":750}`)
	s.consume(t, id, shared, `{"tokens":751}`).want(t, 402, `{"error":"Payment Required","tokensLeft":750}`)
	shown := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(shared))
	shown.want(t, 200, "")
	t.Log(shown.body)
	rotated := s.rotateWithGrace(t, id, key, 3600)
	for _, k := range []string{key, shared, rotated} {
		s.consume(t, id, k, `{"tokens":10}`).want(t, 200, "")
	}
	again := s.rotate(t, id, shared)
	s.consume(t, id, shared, "").want(t, 401, "")
	s.consume(t, id, again, `{"tokens":20}`).want(t, 200, `{"tokensLeft":700}`)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+again, `{"addTokens":5,"expiresIn":null,"enabled":false}`).want(t, 200, "")
	s.consume(t, id, again, "").want(t, 403, "")
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":704}`)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+again, `{"enabled":true}`).want(t, 200, "")
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+rotated, `{"enabled":false}`).want(t, 200, "")
	for _, k := range []string{key, again, rotated} {
		s.consume(t, id, k, "").want(t, 403, "")
	}
	t.Log(s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", "").body)
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+rotated, "").want(t, 204, "")
	for _, k := range []string{key, again, rotated} {
		s.consume(t, id, k, "").want(t, 401, "")
	}
	t.Log(testRedis.Keys(t, "*"+key[10:]+"*"), testRedis.Keys(t, "*"+again[10:]+"*"), testRedis.Keys(t, "*"+rotated[10:]+"*"))
	t.Log(s.log)
}

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is remembered of a key, under the name that it had first, for how long, and what comes of a repeated request
// whatever has changed since.

// charge, verify, hold, settle and update are requests that are repeated.
func rememberedRequests(id, hold string) []request {
	return []request{
		{method: "POST", path: "/" + id + "/tokens/consume", body: `{"tokens":30}`, headers: []string{retryKey + "c"}},
		{method: "GET", path: "/" + id + "/auth/verify?tokens=7&request=v"},
		{method: "POST", path: "/" + id + "/tokens/holds", body: `{"tokens":20}`, headers: []string{retryKey + "h"}},
		{method: "POST", path: "/" + id + "/tokens/holds/" + hold + "/settle", body: `{"tokens":15}`},
	}
}

// A key remembers after a rotation what it did before. An admin's request is the same whichever name of the key it uses.
func TestRotationKeepsOutcomes(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":1000}}}`)
	s := services[0]
	key := s.issue(t, id, `"userId":"u","group":"g"`)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(key)).text(t, "holdId")
	bodies := make(map[string]string)
	for _, r := range rememberedRequests(id, hold) {
		got := s.do(t, r.method, r.path, r.body, append(r.headers, bearer(key))...)
		if bodies[r.path+r.body] = strings.TrimSpace(got.body); got.status >= 300 {
			t.Errorf("%s: %d %s", r.path, got.status, got.body)
		}
	}
	topUp := func(key string) reply {
		return s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":50}`, retryKey+"p")
	}
	topUp(key).want(t, 200, "")
	left := tokensLeft(t, key)

	names := []string{key}
	for i := range 3 {
		names = append(names, s.rotate(t, id, names[i], retryKey+fmt.Sprint("r", i)))
		now := names[len(names)-1]
		for _, r := range rememberedRequests(id, hold) {
			got := services[1].do(t, r.method, r.path, r.body, append(r.headers, bearer(now))...)
			got.wantHeader(t, "Idempotent-Replayed", "true")
			if body := strings.TrimSpace(got.body); body != bodies[r.path+r.body] {
				t.Errorf("%s: got %s, want %s", r.path, body, bodies[r.path+r.body])
			}
		}
		for _, name := range names {
			topUp(name).wantHeader(t, "Idempotent-Replayed", "true")
			for j := range i + 1 { // each rotation again, by each name
				got := s.admin(t, "POST", "/"+id+"/admin/keys/"+name+"/rotate", "", retryKey+fmt.Sprint("r", j))
				got.wantHeader(t, "Idempotent-Replayed", "true")
				if got.text(t, "apiKey") != names[j+1] {
					t.Errorf("rotation %d by another name: %s", j, got.body)
				}
			}
			if name != now { // another request finds a key that is gone
				s.admin(t, "PATCH", "/"+id+"/admin/keys/"+name, `{"addTokens":50}`, retryKey+"q").want(t, 404, "")
				s.admin(t, "PATCH", "/"+id+"/admin/keys/"+name, `{"addTokens":50}`).want(t, 404, "")
			}
		}
		if got := tokensLeft(t, now); got != left {
			t.Fatalf("after %d rotations %d tokens are left, want %d", i+1, got, left)
		}
	}
	if current := testRedis.String(t, "GET", "{apiKey:"+key+"}:current"); current != names[3] {
		t.Errorf("the present name is %s, want %s", current, names[3])
	}
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+names[3], "").want(t, 204, "")
	if n := testRedis.Int(t, "EXISTS", "{apiKey:"+key+"}:current"); n != 0 {
		t.Error("the present name of a revoked key is left")
	}
	topUp(names[1]).wantHeader(t, "Idempotent-Replayed", "true")
	other := newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":1}}}`)
	for _, name := range names { // another tenant's admin learns nothing
		s.admin(t, "PATCH", "/"+other+"/admin/keys/"+name, `{"addTokens":50}`, retryKey+"p").want(t, 404, "")
		s.admin(t, "POST", "/"+other+"/admin/keys/"+name+"/rotate", "", retryKey+"r0").want(t, 404, "")
	}
}

// The first response comes again, whatever has become of the group or the key.
func TestReplaysAfterChanges(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":10},"h":{"tokens":10}}}`)
	body := `{"userId":"u","group":"g"}`
	key := s.admin(t, "POST", "/"+id+"/admin/keys", body, retryKey+"1").text(t, "apiKey")
	path := "/" + id + "/admin/keys/" + key
	s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"1").want(t, 200, "")
	s.admin(t, "PATCH", path, `{"group":"h"}`, retryKey+"2").want(t, 200, "")
	s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":2}`, bearer(key), retryKey+"h").want(t, 201, "")
	s.do(t, "GET", "/"+id+"/auth/verify?tokens=1&request=v", "", bearer(key)).want(t, 200, "")
	s.admin(t, "PATCH", path, `{"enabled":false}`).want(t, 200, "")
	s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":2}`, bearer(key), retryKey+"h").want(t, 201, "")
	s.do(t, "GET", "/"+id+"/auth/verify?tokens=1&request=v", "", bearer(key)).want(t, 200, "")

	s.putConfig(t, id, `{"user_groups":{}}`).want(t, 200, "")
	replays := func() {
		t.Helper()
		s.admin(t, "POST", "/"+id+"/admin/keys", body, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
		s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
		s.admin(t, "PATCH", path, `{"group":"h"}`, retryKey+"2").wantHeader(t, "Idempotent-Replayed", "true")
		s.admin(t, "PATCH", path, `{"group":"g"}`, retryKey+"2").want(t, 422, "")
	}
	replays()
	s.admin(t, "POST", "/"+id+"/admin/keys", body, retryKey+"new").want(t, 400, "")
	s.admin(t, "PATCH", path, `{"group":"h"}`, retryKey+"new").want(t, 400, "")
	if left := tokensLeft(t, key); left != 8 {
		t.Errorf("%d tokens are left, want 8", left)
	}
	s.admin(t, "DELETE", path, "").want(t, 204, "")
	replays()
	s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"new").want(t, 404, "")
	if n := testRedis.Int(t, "EXISTS", "apiKey:"+key); n != 0 {
		t.Error("the key is back")
	}
}

// What moved tokens or made a key is remembered for 40 days, and other changes for one.
func TestRecordsAreKept(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":10}}}`)
	key := s.issue(t, id, `"userId":"u","group":"g"`)
	path := "/" + id + "/admin/keys/" + key
	s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"add").want(t, 200, "")
	s.admin(t, "PATCH", path, `{"tokens":1}`, retryKey+"set").want(t, 200, "")
	s.admin(t, "PATCH", path, `{"enabled":true}`, retryKey+"enable").want(t, 200, "")
	s.rotate(t, id, key, retryKey+"rotate")
	for name, days := range map[string]int{
		"update:" + shortHash("add"): 40, "update:" + shortHash("set"): 40, "update:" + shortHash("enable"): 1,
		"rotate:" + shortHash(id+"  rotate"): 40,
	} {
		if ttl := testRedis.Int(t, "TTL", "{apiKey:"+key+"}:"+name); ttl > days*86400 || ttl < days*86400-600 {
			t.Errorf("%s is remembered for %d s, want %d days", name, ttl, days)
		}
	}
}

// A tenant's own admins leave no more than 10,000 records a day; the operator any number. Replays go on.
func TestRecordsOfADay(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":10}}}`)
	token := bearer(s.admin(t, "POST", "/"+id+"/admin/tokens", "").text(t, "adminToken"))
	body := `{"userId":"u","group":"g"}`
	issue := func(idempotencyKey string, headers ...string) reply {
		return s.do(t, "POST", "/"+id+"/admin/keys", body, append(headers, token, retryKey+idempotencyKey)...)
	}
	key := issue("1").text(t, "apiKey")
	for range 3 {
		issue("1").wantHeader(t, "Idempotent-Replayed", "true")
	}
	s.do(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":-100}`, token, retryKey+"x").want(t, 400, "")
	count := "{tenant:" + id + ":config}:records"
	if n := testRedis.Int(t, "GET", count); n != 1 {
		t.Errorf("%d records are counted, want 1: a replay and a refusal leave none", n)
	}
	ends := time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Unix()
	if at := testRedis.Int(t, "EXPIRETIME", count); at != int(ends) && at != int(ends+86400) {
		t.Errorf("they are counted until %d, want %d", at, ends)
	}
	testRedis.Do(t, "SET", count, 9999, "KEEPTTL")
	issue("2").want(t, 201, "")
	if ttl := testRedis.Int(t, "TTL", count); ttl < 0 {
		t.Error("they are counted for ever")
	}
	got := issue("3")
	got.want(t, 429, `{"error":"Too Many Requests"}`)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	issue("1").wantHeader(t, "Idempotent-Replayed", "true")
	path := "/" + id + "/admin/keys/" + key
	s.do(t, "PATCH", path, `{"addTokens":1}`, token, retryKey+"3").want(t, 429, "")
	s.do(t, "POST", path+"/rotate", "", token, retryKey+"3").want(t, 429, "")
	s.do(t, "PATCH", path, `{"addTokens":1}`, token).want(t, 200, "")
	s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"3").want(t, 200, "")
	if left := tokensLeft(t, key); left != 12 {
		t.Errorf("%d tokens are left, want 12", left)
	}
}

// recordTTLs returns the seconds for which each of a key's records is kept, by its name. Usage is not a record.
func recordTTLs(t *testing.T, key string) map[string]int {
	t.Helper()
	ttls := make(map[string]int)
	for _, name := range testRedis.Keys(t, "{apiKey:"+key+"}:*") {
		if record := strings.TrimPrefix(name, "{apiKey:"+key+"}:"); !strings.HasPrefix(record, "usage:") {
			ttls[record] = testRedis.Int(t, "TTL", name)
		}
	}
	return ttls
}

// A hold that takes nothing leaves nothing for longer than 10 minutes; one that is charged is remembered for a day.
func TestRecordsOfHolds(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":1000}}}`)
	for name, test := range map[string]struct {
		end   func(path string, key string)
		kept  int
		holds int // records of the Idempotency-Key and of the outcome
	}{
		"cancelled":      {func(path, key string) { s.do(t, "DELETE", path, "", bearer(key)).want(t, 204, "") }, 600, 2},
		"settled with 0": {func(path, key string) { s.do(t, "POST", path+"/settle", `{"tokens":0}`, bearer(key)).want(t, 200, "") }, 600, 2},
		"settled":        {func(path, key string) { s.do(t, "POST", path+"/settle", `{"tokens":3}`, bearer(key)).want(t, 200, "") }, 86400, 2},
		"charged nothing, since nothing is left": {func(path, key string) {
			testRedis.Do(t, "HSET", "{apiKey:"+key+"}:holds", path[strings.LastIndex(path, "/")+1:], "0 9999999999999")
			testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", 0)
			s.do(t, "POST", path+"/settle", `{"tokens":3}`, bearer(key)).want(t, 200, "")
		}, 600, 2},
		"open": {func(path, key string) {}, 5 + 600, 1}, // 10 min after it has expired
	} {
		t.Run(name, func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"g"`)
			hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10,"expiresIn":5}`, bearer(key), retryKey+"h")
			test.end("/"+id+"/tokens/holds/"+hold.text(t, "holdId"), key)
			ttls := recordTTLs(t, key)
			delete(ttls, "holds")
			if len(ttls) != test.holds {
				t.Errorf("there are the records %v", ttls)
			}
			for record, ttl := range ttls {
				if ttl > test.kept || ttl < test.kept-300 {
					t.Errorf("%s is kept for %d s, want %d", record, ttl, test.kept)
				}
			}
		})
	}
}

// The name that a key had first is known as long as the key has a name, and 40 days after that.
func TestNamesOfRotatedKeys(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":10}}}`)
	first := s.issue(t, id, `"userId":"u","group":"g","expiresIn":3600`)
	second := s.rotate(t, id, first)
	path := "/" + id + "/admin/keys/" + second
	wantTTL := func(what string, seconds int) {
		t.Helper()
		name := map[string]string{"current": "{apiKey:" + first + "}:current", "first": "{apiKey:" + second + "}:first"}[what]
		if ttl := testRedis.Int(t, "TTL", name); ttl > seconds || ttl < seconds-60 {
			t.Errorf("%s is kept for %d s, want %d", what, ttl, seconds)
		}
	}
	wantTTL("current", 3600)
	wantTTL("first", 3600+40*86400)
	s.admin(t, "PATCH", path, `{"expiresIn":null}`).want(t, 200, "")
	wantTTL("current", -1)
	wantTTL("first", -1)
	s.admin(t, "PATCH", path, `{"expiresIn":600}`).want(t, 200, "")
	wantTTL("current", 600)
	wantTTL("first", 600+40*86400)
	topUp := func(name string) reply {
		return s.admin(t, "PATCH", "/"+id+"/admin/keys/"+name, `{"addTokens":5}`, retryKey+"1")
	}
	topUp(second).want(t, 200, "")
	s.admin(t, "DELETE", path, "").want(t, 204, "")
	wantTTL("first", 40*86400)
	topUp(second).wantHeader(t, "Idempotent-Replayed", "true")
	topUp(first).wantHeader(t, "Idempotent-Replayed", "true")
}

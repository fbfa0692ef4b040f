package main

import (
	"fmt"
	"strings"
	"testing"

	"tollgate/internal/redistest"
)

// A Redis whose memory is full still reads and charges; what needs room is 503, and one line of the log says why.
func TestRedisFull(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, strict := newService(t, "REDIS_URL="+r.URL()), newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=1")
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":100}}}`)
	limited, key := s.login(t, "abc"), s.login(t, id)
	strict.login(t, id)
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	strict.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 429, "") // to refuse a login needs no memory
	r.Do(t, "DEL", "login:127.0.0.1")
	strict.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, "")
	for i := range 5 {
		s.do(t, "POST", "/abc/auth/anonymous", "").want(t, 503, `{"error":"Service unavailable"}`)
		s.consume(t, id, key, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, 99-i))
		s.consume(t, "abc", limited, "").want(t, 503, `{"error":"Service unavailable"}`) // would grow the log of its rate
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
		s.putConfig(t, "abc", `{}`).want(t, 503, "")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":0}`).want(t, 200, "")
	}
	if n := len(r.Keys(t, "apiKey:*")); n != 3 {
		t.Errorf("there are %d API keys, want 3", n)
	}
	if logins := r.Keys(t, "login:*"); len(logins) > 0 {
		t.Errorf("a login was counted in %q", logins)
	}
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	s.admin(t, "DELETE", "/abc/admin/keys/"+limited, "").want(t, 204, "")
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	s.wantRecovery(t)
	s.putConfig(t, "abc", `{"user_groups":{"anonymous":{"rate_limit":1000,"rate_limit_window":1}}}`).want(t, 200, "")
	s.wantOneFault(t)
}

// memoryOf returns how many bytes Redis uses, and how many it may.
func memoryOf(t *testing.T, r *redistest.Server) (used, most int) {
	t.Helper()
	info := r.String(t, "INFO", "memory")
	fmt.Sscan(redistest.Field(info, "used_memory"), &used)
	fmt.Sscan(redistest.Field(info, "maxmemory"), &most)
	return used, most
}

// In a full Redis a charge that needs no memory goes on, whatever the tenant's other groups have. One that would write
// the record of an Idempotency-Key, or an entry of a rate, is 503, so that strangers cannot fill the machine.
func TestChargesInFullRedis(t *testing.T) {
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000000},`+
		`"limited":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}}}`)
	plain, limited := s.login(t, id), s.issue(t, id, `"userId":"u","group":"limited"`)
	s.consume(t, id, plain, "", retryKey+"first").want(t, 200, `{"tokensLeft":999999}`)
	s.consume(t, id, limited, "").want(t, 200, "")
	used, _ := memoryOf(t, r)
	r.Do(t, "CONFIG", "SET", "maxmemory", used+200_000)
	long := strings.Repeat("k", 240)
	for _, prefix := range []string{"a", "b", "c"} {
		load{
			services: []*service{s}, clients: 8, requests: 160, statuses: []int{200, 503},
			request: func(client, i int) request {
				return consumeRequest(id, plain, 1, fmt.Sprintf("%s%s%s%d-%d", retryKey, prefix, long, client, i))
			},
		}.run(t)
	}
	if used, most := memoryOf(t, r); used > most+300_000 { // of buffers
		t.Errorf("%d bytes are used, %d are allowed", used, most)
	}
	records := r.Keys(t, "{apiKey:"+plain+"}:charge:*")
	for _, record := range records {
		if _, name, _ := strings.Cut(record, ":charge:"); len(name) != 22 { // 16 bytes in base64
			t.Fatalf("a record is called %s", record)
		}
	}
	if n := len(records); n < 100 || n == 3*8*160+1 {
		t.Errorf("%d charges were remembered: that proves little", n)
	}

	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	before := tokensLeftIn(t, r, plain)
	for i := range 3 {
		s.consume(t, id, plain, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, before-1-i))
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(plain)).want(t, 200, "")
		s.consume(t, id, plain, "", retryKey+"new").want(t, 503, `{"error":"Service unavailable"}`)
		s.do(t, "GET", "/"+id+"/auth/verify?tokens=1&request=new", "", bearer(plain)).want(t, 503, "")
		s.consume(t, id, limited, "").want(t, 503, `{"error":"Service unavailable"}`)
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(limited)).want(t, 503, "")
		s.consume(t, id, plain, `{"tokens":9007199254740991}`).want(t, 402, "")
		s.consume(t, id, someKey, "").want(t, 401, "")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+plain, `{"label":"a"}`).want(t, 503, "") // would grow the key
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+plain, `{"label":null}`).want(t, 200, "")
	}
	if left, other := tokensLeftIn(t, r, plain), tokensLeftIn(t, r, limited); left != before-3 || other != 999 {
		t.Errorf("%d and %d tokens are left, want %d and 999", left, other, before-3)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	s.consume(t, id, plain, "", retryKey+"new").wantHeader(t, "Idempotent-Replayed", "")
	s.consume(t, id, limited, "").want(t, 200, `{"tokensLeft":998}`)
}

// TestStartWithoutReplicas starts without the replicas that must have each write. What is only read is served.
func TestStartWithoutReplicas(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	newService(t, "REDIS_URL="+r.URL()) // the seed is there
	s := newService(t, "REDIS_URL="+r.URL(), "WAIT_REPLICAS=1")
	s.admin(t, "GET", "/abc/admin/config/history", "").want(t, 200, "")
	if n := s.log.Count("[WARN] The tenant abc cannot be created if it does not exist: "); n != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

// A service starts though Redis is full, and says that it cannot create the example tenant.
func TestStartOnFullRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	key := s.login(t, "abc")
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	s = newService(t, "REDIS_URL="+r.URL())
	s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 200, "")
	if n := s.log.Count("[WARN] The tenant abc cannot be created if it does not exist: "); n != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

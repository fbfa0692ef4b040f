package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// What is in Redis is what the contract's table of the Redis layout says.
func TestRedisLayout(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 100)
	start := time.Now()
	wantKey := func(t *testing.T, key string, want map[string]string) {
		t.Helper()
		if kind := testRedis.String(t, "TYPE", "apiKey:"+key); kind != "hash" {
			t.Fatalf("it is a %s, want a hash", kind)
		}
		got, _ := redis.StringMap(testRedis.Do(t, "HGETALL", "apiKey:"+key), nil)
		created, err := time.Parse(timeLayout, got["createdAt"])
		if err != nil || created.Before(start.Add(-time.Second)) || created.After(time.Now()) {
			t.Errorf("createdAt is %q: %v", got["createdAt"], err)
		}
		delete(got, "createdAt")
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	t.Run("an anonymous key", func(t *testing.T) {
		key := s.login(t, id)
		wantKey(t, key, map[string]string{"tenantId": id, "group": "anonymous", "tokensLeft": "100"})
		if ttl := testRedis.Int(t, "PTTL", "apiKey:"+key); ttl <= 23*3600*1000 || ttl > 24*3600*1000 {
			t.Errorf("it lives for %d ms", ttl)
		}
	})
	t.Run("a user's key", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u 1","group":"pro"`)
		wantKey(t, key, map[string]string{"tenantId": id, "group": "pro", "tokensLeft": "5000", "userId": "u 1"})
		if ttl := testRedis.Int(t, "PTTL", "apiKey:"+key); ttl != -1 {
			t.Errorf("it lives for %d ms, want forever", ttl)
		}
	})
	t.Run("a config", func(t *testing.T) {
		s.putConfig(t, id, ` { "x" : [ 1.50 , "é<&>" ] , "a" : 1e2 } `).want(t, 200, "")
		if got, want := testRedis.String(t, "GET", "tenant:"+id+":config"), `{"x":[1.50,"é<&>"],"a":1e2}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if ttl := testRedis.Int(t, "PTTL", "tenant:"+id+":config"); ttl != -1 {
			t.Errorf("it lives for %d ms, want forever", ttl)
		}
	})
	t.Run("the set of tenants", func(t *testing.T) {
		for _, tenant := range []string{id, "abc"} {
			if testRedis.Int(t, "SISMEMBER", "tenants", tenant) != 1 {
				t.Errorf("%s is not in it", tenant)
			}
		}
	})
}

// At start the config of tenant abc is written if it does not exist, and left alone if it does.
func TestSeed(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	newService(t, "REDIS_URL="+r.URL()).stop()
	var want bytes.Buffer
	if err := json.Compact(&want, seedConfig); err != nil {
		t.Fatal(err)
	}
	if got := r.String(t, "GET", "tenant:abc:config"); got != want.String() {
		t.Errorf("seeded %s\nwant %s", got, &want)
	}
	r.Do(t, "SET", "tenant:abc:config", `{"mine":true}`)
	newService(t, "REDIS_URL="+r.URL()).stop()
	if got := r.String(t, "GET", "tenant:abc:config"); got != `{"mine":true}` {
		t.Errorf("the second start made it %s", got)
	}
}

// Seeding a tenant whose config was deleted straight in Redis does not revive its admin tokens.
func TestSeedAnew(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	token := s.newAdminToken(t, "abc")
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 200, "")
	s.stop()
	r.Do(t, "DEL", "tenant:abc:config")
	s = newService(t, "REDIS_URL="+r.URL())
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 401, "")
	if versions := s.history(t, "abc"); len(versions) != 1 || versions[0].SavedBy != "seed" {
		t.Errorf("the history is %+v", versions)
	}
}

// malformed is a value of another kind than the one that belongs under a key, as a command and its arguments.
type malformed struct {
	name, command string
	args          []any
}

// put replaces what is in testRedis under key.
func (m malformed) put(t *testing.T, key string) {
	t.Helper()
	testRedis.Do(t, "DEL", key)
	testRedis.Do(t, m.command, append([]any{key}, m.args...)...)
}

const internalError = `{"error":"Internal error"}`

// wantNoValue checks that none of the malformed values is in the log.
func (s *service) wantNoValue(t *testing.T) {
	t.Helper()
	if s.log.Count("s3cret")+s.log.Count("8675309") > 0 {
		t.Errorf("a value is in the log:\n%s", s.log)
	}
}

// Malformed data under an API key is a fault for that key alone: 500, nothing overwritten, no value in the log.
func TestMalformedKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 100)
	const created = "2026-01-02T03:04:05.678Z"
	tests := []malformed{
		{"a string", "SET", []any{"s3cret"}},
		{"a list", "RPUSH", []any{"s3cret"}},
		{"no time and balance", "HSET", []any{"tenantId", id}},
		{"no balance", "HSET", []any{"tenantId", id, "createdAt", created}},
	}
	for _, balance := range []string{
		"s3cret", "1.5", "-5", "9007199254740992", "9223372036854775807", "", "5\n", "+5", "0007", "1e3", "0x10", "nan",
	} {
		tests = append(tests, malformed{"the balance " + balance, "HSET", []any{
			"tenantId", id, "group", "pro", "createdAt", created, "tokensLeft", balance,
		}})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			key := s.login(t, id)
			test.put(t, "apiKey:"+key)
			logged := len(s.log.String())
			before := testRedis.String(t, "DUMP", "apiKey:"+key)
			s.consume(t, id, key, "").want(t, 500, internalError)
			s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 500, internalError)
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 500, internalError)
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`).want(t, 500, internalError)
			if testRedis.String(t, "DUMP", "apiKey:"+key) != before {
				t.Error("it was overwritten")
			}
			if n := strings.Count(s.log.String()[logged:], " an API key of tenant "+id+": "); n != 4 {
				t.Errorf("%d lines name the tenant in\n%s", n, s.log.String()[logged:])
			}
		})
	}
	t.Run("the time of creation", func(t *testing.T) {
		key := s.login(t, id)
		testRedis.Do(t, "HSET", "apiKey:"+key, "createdAt", "s3cret")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`).want(t, 500, internalError)
		if tokensLeft(t, key) != 100 {
			t.Error("a change whose response is 500 was made")
		}
	})
	t.Run("a user ID with a newline", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"pro"`)
		testRedis.Do(t, "HSET", "apiKey:"+key, "userId", "a\nb")
		s.consume(t, id, key, "").want(t, 500, internalError)
	})
	s.login(t, id)
	s.wantNoValue(t)
}

// What is wrong with a malformed key is in the error, whichever step finds it, and the key itself is not.
func TestMalformedKeyError(t *testing.T) {
	t.Parallel()
	s, st := newService(t), newTestStore(t, testRedis)
	id := newTenantIn(t, testRedis, `{"user_groups":{"anonymous":{"tokens":9},"pro":{"tokens":9,"refill":{"tokens":9,"every":60}}}}`)
	tn := st.wantTenant(t, id)
	for _, test := range []struct{ name, group, field, value, want string }{
		{"the balance", "anonymous", "tokensLeft", "50.0", "tokensLeft is not a whole number from 0 to 2^53-1"},
		{"a time in ms", "anonymous", "createdAt", "1767225600000", "createdAt is not a time"},
		{"no time of day", "anonymous", "createdAt", "2026-01-02Ts3cret", "createdAt is not a time"},
		{"a time in ms, to refill", "pro", "createdAt", "1767225600000", "createdAt is not a time"},
		{"a list", "pro", "", "", "WRONGTYPE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"`+test.group+`"`)
			if test.field == "" {
				malformed{"", "RPUSH", []any{"s3cret"}}.put(t, "apiKey:"+key)
			} else {
				testRedis.Do(t, "HSET", "apiKey:"+key, test.field, test.value)
			}
			_, err := st.Key(in(10*time.Second), tn, key)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want one that says %s", err, test.want)
			}
			_, charge := st.Charge(in(10*time.Second), tn, chargeRequest{key: key, tokens: 1})
			if test.group == "pro" && !errors.Is(charge, ErrMalformed) {
				t.Errorf("a charge gets %v", charge)
			}
			for _, secret := range []string{key, "50.0", "1767225600000", "s3cret"} {
				if strings.Contains(fmt.Sprint(err, charge), secret) {
					t.Errorf("%v and %v have %q", err, charge, secret)
				}
			}
		})
	}
}

// A charge whose response is 500, since the log of its rate or a remembered outcome is malformed, was not taken.
func TestMalformedCharges(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := limitedTenant(t, 5, 60)
	for _, kind := range []struct {
		name, suffix string // of the Redis key
		values       []malformed
	}{
		{"the log", ":rate", []malformed{
			{"an element", "RPUSH", []any{"s3cret"}},
			{"a string", "SET", []any{"s3cret"}},
			{"a later element", "RPUSH", []any{"1", "s3cret"}},
			{"too large", "RPUSH", []any{"8675309e300"}},
			{"nan", "RPUSH", []any{"nan"}},
			{"not exact", "RPUSH", []any{"86753098675309867"}},
			{"of the future, and negative", "RPUSH", []any{time.Now().Add(time.Hour).UnixMicro(), "-5", "8"}},
		}},
		{"an outcome", ":charge:" + shortHash("k"), []malformed{
			{"not a number", "SET", []any{"s3cret"}},
			{"a list", "RPUSH", []any{"s3cret"}},
			{"not exact", "SET", []any{"10 86753098675309867530"}},
		}},
	} {
		for _, test := range kind.values {
			t.Run(kind.name+": "+test.name, func(t *testing.T) {
				key := s.login(t, id)
				test.put(t, "{apiKey:"+key+"}"+kind.suffix)
				for range 3 {
					s.consume(t, id, key, `{"tokens":10}`, retryKey+"k").want(t, 500, internalError)
				}
				if left := tokensLeft(t, key); left != 1000 {
					t.Errorf("%d tokens are left", left)
				}
			})
		}
	}
	s.login(t, id)
	s.wantNoValue(t)
}

// A malformed config is a fault for its tenant alone, which the log names.
func TestMalformedConfigs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, test := range []malformed{
		{"a list", "RPUSH", []any{"s3cret"}},
		{"not JSON", "SET", []any{"s3cret"}},
		{"not an object", "SET", []any{`["s3cret"]`}},
		{"a rule is broken", "SET", []any{`{"user_groups":{"a":{"tokens":"s3cret"}}}`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenant(t, 100)
			test.put(t, "tenant:"+id+":config")
			s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 500, internalError)
			if s.log.Count("tenant "+id) == 0 {
				t.Errorf("the log does not name tenant %s", id)
			}
		})
	}
	s.login(t, newTenant(t, 100))
	s.wantNoValue(t)
}

// In the steady state a charge is one command, and so one round trip, a login under a limit two, and the config costs
// none. Meanwhile the config may be compared again, and what was used be written, by scripts as well: only as many
// rounds may differ as the time that has passed allows, on a fast machine not one.
func TestCommandsSent(t *testing.T) { // alone: others would delay it
	started := time.Now()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=1000")
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":1000,"rate_limit_window":100},`+
		`"pro":{"rate_limit":1000,"rate_limit_window":100}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":1000`)
	s.login(t, id)
	s.consume(t, id, key, "").want(t, 200, "")
	commands := []struct {
		name string
		want []int // one of them
	}{
		{"evalsha", []int{5}}, {"eval", []int{0}}, {"pttl", []int{0}}, {"select", []int{0}}, {"auth", []int{0}},
		{"get", []int{0, 1}}, // 1 by the script, of the remembered outcome
	}
	calls := func() (n []int) {
		info := r.String(t, "INFO", "commandstats")
		for _, command := range commands {
			n = append(n, redistest.Calls(info, command.name))
		}
		return n
	}
	var unlike []string // rounds
	began := time.Now()
	for i := range 25 {
		before := calls()
		s.consume(t, id, key, "").want(t, 200, "")
		s.consume(t, id, key, "", fmt.Sprint(retryKey, i)).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/auth/verify?tokens=1", "", bearer(key)).want(t, 200, "")
		s.login(t, id)
		sent, isLike := calls(), true
		for j, command := range commands {
			sent[j] -= before[j]
			isLike = isLike && slices.Contains(command.want, sent[j])
		}
		if !isLike {
			unlike = append(unlike, fmt.Sprint(sent))
		}
	}
	times := func(every time.Duration) int { // that what is due so often may have come between rounds
		return int(min(time.Since(started)/every, 1+time.Since(began)/every))
	}
	allowed := min(2*times(configRefreshAge)+3*times(usageInterval), 24)
	if len(unlike) > allowed {
		t.Errorf("%d of 25 rounds of 3 charges and a login sent something else than %+v, at most %d may: %s",
			len(unlike), commands, allowed, unlike)
	}
}

// The keys of a deleted tenant are not those of the tenant that is created under its ID again, in whatever way.
func TestTenantGenerations(t *testing.T) {
	t.Parallel()
	const config = `{"user_groups":{"anonymous":{"tokens":100},"pro":{"tokens":5}}}`
	for _, test := range []struct {
		name   string
		create func(t *testing.T, r *redistest.Server, s *service)
	}{
		{"POST", func(t *testing.T, _ *redistest.Server, s *service) { s.createTenant(t, "abc", config).want(t, 201, "") }},
		{"put straight into Redis", func(t *testing.T, r *redistest.Server, _ *service) { r.Do(t, "SET", "tenant:abc:config", config) }},
		{"the seed", func(t *testing.T, r *redistest.Server, _ *service) { newService(t, "REDIS_URL="+r.URL()).stop() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := redistest.New(t)
			services := newServices(t, "REDIS_URL="+r.URL())
			s := services[0]
			s.putConfig(t, "abc", config).want(t, 200, "")
			for range 2 { // the second time the tenant has a generation already
				key, user := s.login(t, "abc"), s.issue(t, "abc", `"userId":"u","group":"pro","tokens":50`)
				s.consume(t, "abc", user, "", retryKey+"k").want(t, 200, `{"tokensLeft":49}`)
				s.admin(t, "DELETE", "/admin/tenants/abc", "").want(t, 204, "")
				for _, s := range services {
					waittest.Eventually(t, time.Second+busy, func() error { return s.consume(t, "abc", user, "").is(400) })
				}
				test.create(t, r, s)
				for _, s := range services {
					waittest.Eventually(t, time.Second+busy, func() error { return s.consume(t, "abc", user, "").is(401) })
					s.wantDead(t, r, "abc", key)
					s.wantDead(t, r, "abc", user)
				}
				own := s.login(t, "abc")
				for _, s := range services {
					s.consume(t, "abc", own, "").want(t, 200, "")
					s.do(t, "GET", "/abc/auth/key", "", bearer(own)).want(t, 200, "")
					s.admin(t, "PATCH", "/abc/admin/keys/"+own, `{"addTokens":1}`).want(t, 200, "")
				}
				s.admin(t, "DELETE", "/abc/admin/keys/"+own, "").want(t, 204, "")
				s.putConfig(t, "abc", config).want(t, 200, "")
			}
		})
	}
}

// wantDead checks that neither its holder nor an admin can do anything with a key that is there, but is one of a tenant
// that was deleted.
func (s *service) wantDead(t *testing.T, r *redistest.Server, tenant, key string) {
	t.Helper()
	before := r.String(t, "DUMP", "apiKey:"+key)
	s.consume(t, tenant, key, "").want(t, 401, `{"error":"Unauthorized"}`)
	s.consume(t, tenant, key, "", retryKey+"k").want(t, 401, `{"error":"Unauthorized"}`)
	s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key)).want(t, 401, "")
	s.do(t, "GET", "/"+tenant+"/auth/verify?tokens=1&request=r", "", bearer(key)).want(t, 401, "")
	s.admin(t, "GET", "/"+tenant+"/admin/keys/"+key, "").want(t, 404, `{"error":"Not found"}`)
	s.admin(t, "PATCH", "/"+tenant+"/admin/keys/"+key, `{"addTokens":1}`).want(t, 404, `{"error":"Not found"}`)
	s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+key, "").want(t, 404, `{"error":"Not found"}`)
	if r.String(t, "DUMP", "apiKey:"+key) != before {
		t.Error("a key of the deleted tenant was changed")
	}
}

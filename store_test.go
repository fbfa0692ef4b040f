package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// ---- What is in Redis -----------------------------------------------------------------------------------------------

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
// none.
func TestCommandsSent(t *testing.T) { // alone: if it takes a second, what was used is written meanwhile, by a script, too
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=1000")
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":1000,"rate_limit_window":100},`+
		`"pro":{"rate_limit":1000,"rate_limit_window":100}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":1000`)
	s.login(t, id)
	s.consume(t, id, key, "").want(t, 200, "")
	calls := func(command string) (n int) {
		fmt.Sscanf(redistest.Field(r.String(t, "INFO", "commandstats"), "cmdstat_"+command), "calls=%d", &n)
		return n
	}
	commands := []struct {
		name string
		want []int // one of them
	}{
		{"evalsha", []int{125}}, {"eval", []int{0}}, {"pttl", []int{0}}, {"select", []int{0}}, {"auth", []int{0}},
		{"get", []int{0, 25}}, // 25 by the script, of the remembered outcomes
	}
	before := make([]int, len(commands))
	for i, command := range commands {
		before[i] = calls(command.name)
	}
	for i := range 25 {
		s.consume(t, id, key, "").want(t, 200, "")
		s.consume(t, id, key, "", fmt.Sprint(retryKey, i)).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/auth/verify?tokens=1", "", bearer(key)).want(t, 200, "")
		s.login(t, id)
	}
	for i, command := range commands {
		if got := calls(command.name) - before[i]; !slices.Contains(command.want, got) {
			t.Errorf("75 charges and 25 logins sent %s %d times, want %d", command.name, got, command.want)
		}
	}
}

// ---- Rate limits ----------------------------------------------------------------------------------------------------

// rateLog puts requests that were accepted that time ago into an API key's log, instead of waiting for them to age.
func rateLog(t *testing.T, key string, ages ...time.Duration) {
	t.Helper()
	log := []any{"{apiKey:" + key + "}:rate"}
	now := time.Now()
	for _, age := range ages {
		log = append(log, now.Add(-age).UnixMicro())
	}
	testRedis.Do(t, "DEL", log[0])
	testRedis.Do(t, "RPUSH", log...)
}

// wantRate checks that charges of one token are accepted, with that many requests remaining after each.
func (s *service) wantRate(t *testing.T, tenant, key string, remaining ...int) {
	t.Helper()
	for _, n := range remaining {
		got := s.consume(t, tenant, key, "")
		got.want(t, 200, "")
		got.wantHeader(t, "X-RateLimit-Remaining-Requests", fmt.Sprint(n))
	}
}

// The limit is that of the config as it is now. What was accepted under another one still counts.
func TestRateLimitChanges(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1000)
	key := s.login(t, id)
	put := func(t *testing.T, limit int, window string) {
		t.Helper()
		config := fmt.Sprintf(`{"user_groups":{"anonymous":{"rate_limit":%d,"rate_limit_window":%s}}}`, limit, window)
		s.putConfig(t, id, config).want(t, 200, "")
	}
	for _, step := range []struct {
		name      string
		limit     int
		remaining []int // after each request that is accepted; then one is refused
	}{
		{"the first", 5, []int{4, 3, 2, 1, 0}},
		{"higher: two more", 7, []int{1, 0}},
		{"lower: what was accepted still counts", 1, nil},
		{"raised again: one slot, not all", 8, []int{0}},
		{"0: nobody", 0, nil},
	} {
		t.Run(step.name, func(t *testing.T) {
			put(t, step.limit, "1000")
			s.wantRate(t, id, key, step.remaining...)
			refused := s.consume(t, id, key, "")
			refused.want(t, 429, "")
			refused.wantHeader(t, "X-RateLimit-Remaining-Requests", "0")
		})
	}
	for _, window := range []string{"1000", "999999999999", "9007199254740991"} {
		t.Run("a limit of 0 in a window of "+window, func(t *testing.T) {
			put(t, 0, window)
			refused := s.consume(t, id, key, "")
			refused.want(t, 429, "")
			refused.wantHeader(t, "RateLimit", `"requests";r=0;t=`+window)
			refused.wantHeader(t, "Retry-After", window)
		})
	}
	t.Run("the widest window", func(t *testing.T) {
		put(t, 100_000, "9007199254740991")
		s.consume(t, id, key, "").wantHeader(t, "RateLimit-Policy", `"requests";q=100000;w=9007199254740991`)
	})
	t.Run("no such group any more: nobody", func(t *testing.T) {
		s.putConfig(t, id, `{}`).want(t, 200, "")
		s.consume(t, id, key, "").want(t, 403, `{"error":"Group is disabled"}`)
	})
}

// A group has its own limit, whatever it is called.
func TestRateLimitGroups(t *testing.T) {
	t.Parallel()
	s := newService(t)
	groups := []string{`anonymous`, ` `, `a\u0000b`, `\"`, `\\`, `ÿþ`, `1 1`, `pro`, `PRO`, `a.b[c]%`}
	var members []string
	for i, group := range groups {
		members = append(members, fmt.Sprintf(`"%s":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d}`, group, 5+i, 1000+i))
	}
	id := newTenantIn(t, testRedis, `{"user_groups":{`+strings.Join(members, ",")+`}}`)
	for i, group := range groups {
		key := s.issue(t, id, `"userId":"u","group":"`+group+`"`)
		s.consume(t, id, key, "").wantHeader(t, "RateLimit-Policy", fmt.Sprintf(`"requests";q=%d;w=%d`, 5+i, 1000+i))
	}
}

// What was accepted counts for as long as the window of now, or of the group of now, says.
func TestRateLimitWindows(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1)
	put := func(t *testing.T, limit, window int, pro string) {
		t.Helper()
		s.putConfig(t, id, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d},"pro":{%s}}}`,
			limit, window, pro)).want(t, 200, "")
	}
	wantLog := func(t *testing.T, key string, requests int) {
		t.Helper()
		if ttl := testRedis.Int(t, "TTL", "{apiKey:"+key+"}:rate"); ttl < 900 || ttl > 1000 {
			t.Errorf("the log lives for %d s", ttl)
		}
		if n := testRedis.Int(t, "LLEN", "{apiKey:"+key+"}:rate"); n != requests {
			t.Errorf("%d requests are in the log, want %d", n, requests)
		}
	}
	t.Run("a longer window holds for what was accepted under a shorter one", func(t *testing.T) {
		put(t, 3, 100, "")
		key := s.login(t, id)
		s.wantRate(t, id, key, 2, 1, 0)
		put(t, 3, 1000, "")
		s.consume(t, id, key, "").want(t, 429, "")
		wantLog(t, key, 3)
	})
	t.Run("a group with a longer window holds for what was accepted before in the same second", func(t *testing.T) {
		put(t, 3, 1, `"rate_limit":3,"rate_limit_window":1000`)
		key := s.login(t, id)
		s.wantRate(t, id, key, 2)
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"pro"}`).want(t, 200, "")
		s.consume(t, id, key, "").want(t, 200, "")
		wantLog(t, key, 2)
	})
	t.Run("a limit below what is in the window", func(t *testing.T) { // a slot frees when all but limit-1 have left
		key := s.login(t, id)
		rateLog(t, key, 990*time.Second, 500*time.Second, 100*time.Second)
		put(t, 2, 1000, `"rate_limit":5,"rate_limit_window":600`)
		refused := s.consume(t, id, key, "")
		refused.want(t, 429, "")
		if after := seconds(t, refused, "Retry-After"); after < 450 || after > 500 {
			t.Errorf("Retry-After is %d, want 500", after)
		}
		// Moved to another group, it has that group's limit, and keeps its log.
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"pro"}`).want(t, 200, "")
		s.wantRate(t, id, key, 2)
	})
}

// The limits of many groups are as good as those of few, though a charge does not send them all.
func TestManyGroups(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	members := []string{`"anonymous":{"tokens":1000,"rate_limit":2,"rate_limit_window":500}`, `"free":{"tokens":5}`}
	for i := range 500 {
		members = append(members, fmt.Sprintf(`"group %d":{"tokens":1000,"rate_limit":%d,"rate_limit_window":1000}`, i, 1+i%7))
	}
	id := newTenantIn(t, testRedis, `{"user_groups":{`+strings.Join(members, ",")+`}}`)
	check := func(t *testing.T, key string, limit, window int) {
		t.Helper()
		for i := range limit {
			got := services[i%2].consume(t, id, key, "")
			got.want(t, 200, "")
			got.wantHeader(t, "RateLimit-Policy", fmt.Sprintf(`"requests";q=%d;w=%d`, limit, window))
			got.wantHeader(t, "X-RateLimit-Remaining-Requests", fmt.Sprint(limit-1-i))
		}
		s.consume(t, id, key, "", retryKey+"k").want(t, 429, "")
	}
	t.Run("anonymous", func(t *testing.T) { check(t, s.login(t, id), 2, 500) })
	for _, i := range []int{0, 1, 6, 10, 100, 499} {
		t.Run(fmt.Sprint("group ", i), func(t *testing.T) {
			check(t, s.issue(t, id, fmt.Sprintf(`"userId":"u","group":"group %d"`, i)), 1+i%7, 1000)
		})
	}
	t.Run("a group without a limit", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"free"`)
		got := s.consume(t, id, key, `{"tokens":5}`)
		got.want(t, 200, `{"tokensLeft":0}`)
		got.wantHeader(t, "RateLimit-Policy", "")
		s.consume(t, id, key, "").want(t, 402, "")
	})
	t.Run("no such key", func(t *testing.T) { s.consume(t, id, someKey, "").want(t, 401, "") })
	t.Run("while a key moves between groups each charge is judged by one of them", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"free","tokens":1000000`)
		load{
			services: services, clients: 8, requests: 50, statuses: []int{200, 429},
			request: func(client, i int) request {
				if client > 0 {
					return consumeRequest(id, key, 1)
				}
				group := []string{"free", "group 5", "anonymous"}[i%3]
				return patchRequest(id, key, fmt.Sprintf(`{"group":"%s"}`, group), 0)
			},
		}.run(t)
	})
}

// The log outlives its first request: a window that begins at the second is as full. It ends with its last.
func TestLogExpiry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := limitedTenant(t, 5, 1000)
	key := s.login(t, id)
	log := "{apiKey:" + key + "}:rate"
	rateLog(t, key, 900*time.Second)
	testRedis.Do(t, "EXPIRE", log, 100) // as the request of then left it
	s.wantRate(t, id, key, 3)
	if ttl := testRedis.Int(t, "TTL", log); ttl < 900 || ttl > 1000 {
		t.Errorf("after a second request the log lives for %d s", ttl)
	}
	rateLog(t, key, 1001*time.Second, 300*time.Second, 300*time.Second, 300*time.Second, 300*time.Second)
	s.wantRate(t, id, key, 0)
	s.consume(t, id, key, "").want(t, 429, "")
	if n := testRedis.Int(t, "LLEN", log); n != 5 {
		t.Errorf("%d requests are in the log, want 5", n)
	}
}

// A rate limit adds six calls in Redis to the three of a charge, and two more if an entry has left the window.
func TestRateLimitCalls(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":1000,"rate_limit_window":100}}}`)
	key := s.login(t, id)
	log := "{apiKey:" + key + "}:rate"
	s.consume(t, id, key, "").want(t, 200, "")
	awaitUsage(t, r, id) // Redis has the script of that, too
	for _, leaves := range []bool{false, true} {
		want := "evalsha=1 hincrby=1 hmget=1 lindex=2 llen=1 pexpire=1 rpush=1 time=1"
		if leaves {
			want = "evalsha=1 hincrby=1 hmget=1 lindex=3 llen=1 ltrim=1 pexpire=1 rpush=1 time=1"
		}
		waittest.Eventually(t, 10*time.Second, func() error { // a script in the background may come between
			if leaves {
				r.Do(t, "LPUSH", log, in(-101*time.Second).UnixMicro())
			}
			r.Do(t, "CONFIG", "RESETSTAT")
			s.consume(t, id, key, "").want(t, 200, "")
			var calls []string
			for line := range strings.Lines(r.String(t, "INFO", "commandstats")) {
				name, n, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
				n, _, _ = strings.Cut(n, ",")
				if ok && !strings.HasPrefix(name, "config") && name != "info" {
					calls = append(calls, name+"="+n)
				}
			}
			slices.Sort(calls)
			if got := strings.Join(calls, " "); got != want {
				if !slices.Contains(calls, "evalsha=1") {
					return fmt.Errorf("there were other scripts: %s", got)
				}
				t.Errorf("a charge called %s, want %s", got, want)
			}
			return nil
		})
	}
}

// However many have left the window together, exactly those are forgotten.
func TestRateLimitPruning(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const limit = 100
	id := limitedTenant(t, limit, 500)
	for gone := 0; gone <= limit; gone += 1 + gone/7 {
		t.Run(fmt.Sprint(gone, " of ", limit), func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"anonymous"`)
			ages := make([]time.Duration, limit)
			for i := range ages {
				ages[i] = 200*time.Second - time.Duration(i)*time.Microsecond
				if i < gone {
					ages[i] += 400 * time.Second
				}
			}
			rateLog(t, key, ages...)
			for remaining := gone - 1; remaining >= max(0, gone-3); remaining-- {
				s.wantRate(t, id, key, remaining)
			}
			if gone == 0 {
				refused := s.consume(t, id, key, "")
				refused.want(t, 429, "")
				if after := seconds(t, refused, "Retry-After"); after < 250 || after > 300 {
					t.Errorf("Retry-After is %d, want 300", after)
				}
			}
		})
	}
}

// No window, wherever it begins, holds more accepted requests than the limit; and the limit is used to the full.
func TestSlidingWindow(t *testing.T) {
	long(t)
	t.Parallel()
	const limit, windows = 20, 3
	const window = time.Second
	services := newServices(t)
	id := limitedTenant(t, limit, 1)
	key := services[0].login(t, id)
	end := in(windows*window + window/2)
	accepted := load{
		services: services, clients: 16, statuses: []int{200, 429},
		request: func(int, int) request {
			time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
			return consumeRequest(id, key, 1)
		},
		until: func(o outcome) bool { return time.Now().After(end) },
	}.run(t).of("POST", 200)

	// The k-th acceptance was not before the k-th begin and not after the k-th end.
	var begun, ended []time.Time
	for _, o := range accepted {
		begun, ended = append(begun, o.began), append(ended, o.ended)
	}
	slices.SortFunc(begun, time.Time.Compare)
	slices.SortFunc(ended, time.Time.Compare)
	for k := 0; k+limit < len(begun); k++ {
		if apart := ended[k+limit].Sub(begun[k]); apart < window {
			t.Fatalf("%d requests were accepted within %s", limit+1, apart)
		}
	}
	if len(accepted) < limit*windows || 1000-tokensLeft(t, key) != len(accepted) {
		t.Errorf("%d requests were accepted, %d tokens spent", len(accepted), 1000-tokensLeft(t, key))
	}
	if n := testRedis.Int(t, "LLEN", "{apiKey:"+key+"}:rate"); n > limit {
		t.Errorf("%d requests are in the log, more than the limit of %d", n, limit)
	}
	waittest.Eventually(t, 5*time.Second, func() error { // after the window
		if testRedis.Int(t, "EXISTS", "{apiKey:"+key+"}:rate") != 0 {
			return errors.New("the log is still there")
		}
		return nil
	})
}

// ---- Generations and history ----------------------------------------------------------------------------------------

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

// largeConfig returns a config of a little more than that many bytes.
func largeConfig(version, bytes int) string {
	return fmt.Sprintf(`{"v":%d,"x":"%s"}`, version, strings.Repeat("x", bytes))
}

// A history costs what it shows: the list only its heads, a version only its own bytes; and what is no longer in the list
// is freed.
func TestHistoryCost(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const history, versions = "{tenant:abc:config}:history", "{tenant:abc:config}:versions"
	const size = 250_000 // bytes of a config
	for v := range 22 {
		s.putConfig(t, "abc", largeConfig(v, size)).want(t, 200, "")
	}
	sent := func() (n int) {
		fmt.Sscan(redistest.Field(r.String(t, "INFO", "stats"), "total_net_output_bytes"), &n)
		return n
	}
	t.Run("read", func(t *testing.T) {
		s.history(t, "abc") // loads the config, which each route needs
		before := sent()
		list := s.history(t, "abc")
		if n := sent() - before; len(list) != 20 || n > size/10 {
			t.Errorf("to list %d versions Redis sends %d bytes", len(list), n)
		}
		for i, version := range list {
			before := sent()
			s.admin(t, "GET", "/abc/admin/config/history/"+version.ETag, "").want(t, 200, `{"config":`+largeConfig(21-i, size)+`}`)
			if n := sent() - before; n > 5*size/2 { // the config itself may be loaded meanwhile
				t.Errorf("to show a version Redis sends %d bytes", n)
			}
		}
	})
	wantBytes := func(t *testing.T, kept, heads int) {
		t.Helper()
		n, list := r.Int(t, "HLEN", versions), r.Int(t, "LLEN", history)
		bytes := r.Int(t, "MEMORY", "USAGE", versions, "SAMPLES", 0) + r.Int(t, "MEMORY", "USAGE", history, "SAMPLES", 0)
		if n != kept || list != heads || bytes > (kept+1)*size*3/2 {
			t.Errorf("%d versions are kept, %d are in the list, in %d bytes", n, list, bytes)
		}
	}
	t.Run("freed", func(t *testing.T) { wantBytes(t, 20, 20) })
	t.Run("saved more than once, a config is kept once", func(t *testing.T) {
		for v := range 24 {
			s.putConfig(t, "abc", largeConfig(100+v%2, size)).want(t, 200, "")
		}
		wantBytes(t, 2, 20)
		for _, version := range s.history(t, "abc") {
			s.admin(t, "GET", "/abc/admin/config/history/"+version.ETag, "").want(t, 200, "")
		}
		for v := range 19 {
			s.putConfig(t, "abc", fmt.Sprintf(`{"v":%d}`, v)).want(t, 200, "")
		}
		wantBytes(t, 20, 20)
		s.putConfig(t, "abc", `{}`).want(t, 200, "")
		if bytes := r.Int(t, "MEMORY", "USAGE", versions, "SAMPLES", 0); bytes > size/10 {
			t.Errorf("20 small versions take %d bytes", bytes)
		}
	})
}

// An admin who loops over a large history does not slow the charges of another tenant.
func TestHistoryReaders(t *testing.T) {
	long(t)
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	for v := range 20 {
		s.putConfig(t, "abc", largeConfig(v, 1_000_000)).want(t, 200, "")
	}
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
	key := s.login(t, id)
	median := func() time.Duration {
		var took []time.Duration
		for range 300 {
			began := time.Now()
			s.consume(t, id, key, "").want(t, 200, "")
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	quiet := max(median(), time.Millisecond)
	readers := load{
		services: []*service{s}, clients: 4, statuses: []int{200},
		request: func(int, int) request {
			return request{method: "GET", path: "/abc/admin/config/history", headers: []string{bearer(testAdminToken)}}
		},
	}.start(t)
	readers.more(t, 20)
	loud := median()
	if reads := len(readers.stop()); loud > 6*quiet {
		t.Errorf("beside %d reads of a history a charge takes %s, without them %s", reads, loud, quiet)
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// What stands in Redis is what the contract's table of the Redis layout says.
func TestRedisLayout(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 100)
	start := time.Now()
	check := func(key, kind string, fields map[string]string) {
		t.Helper()
		if got := testRedis.string(t, "TYPE", key); got != kind {
			t.Fatalf("%s is a %s, want %s", key, got, kind)
		}
		got, _ := redis.StringMap(testRedis.do(t, "HGETALL", key), nil)
		created, err := time.Parse("2006-01-02T15:04:05.000Z", got["createdAt"])
		if err != nil || created.Before(start.Add(-time.Second)) || created.After(time.Now()) {
			t.Errorf("createdAt is %q: %v", got["createdAt"], err)
		}
		delete(got, "createdAt")
		if fmt.Sprint(got) != fmt.Sprint(fields) {
			t.Errorf("got %v, want %v", got, fields)
		}
	}

	key := s.login(t, id)
	check("apiKey:"+key, "hash", map[string]string{"tenantId": id, "group": "anonymous", "tokensLeft": "100"})
	if ttl := testRedis.int(t, "PTTL", "apiKey:"+key); ttl <= 23*3600*1000 || ttl > 24*3600*1000 {
		t.Errorf("an anonymous key lives for %d ms", ttl)
	}

	answer := s.do(t, "POST", "/"+id+"/admin/keys", `{"userId":"u 1","group":"pro"}`, bearer(testAdminToken))
	key = answer.field(t, "apiKey").(string)
	check("apiKey:"+key, "hash", map[string]string{"tenantId": id, "group": "pro", "tokensLeft": "5000", "userId": "u 1"})
	if ttl := testRedis.int(t, "PTTL", "apiKey:"+key); ttl != -1 {
		t.Errorf("a user's key lives for %d ms, want for ever", ttl)
	}

	s.do(t, "PUT", "/"+id+"/admin/config", ` { "config" : { "x" : [ 1.50 , "é<&>" ] , "a" : 1e2 } } `, bearer(testAdminToken)).want(t, 200, "")
	if got, want := testRedis.string(t, "GET", "tenant:"+id+":config"), `{"x":[1.50,"é<&>"],"a":1e2}`; got != want {
		t.Errorf("config is %s, want %s", got, want)
	}
	if ttl := testRedis.int(t, "PTTL", "tenant:"+id+":config"); ttl != -1 {
		t.Errorf("a config lives for %d ms, want for ever", ttl)
	}
	for _, tenantID := range []string{id, "abc"} {
		if testRedis.int(t, "SISMEMBER", "tenants", tenantID) != 1 {
			t.Errorf("%s is not in the set of tenants", tenantID)
		}
	}
}

// At start the config of tenant abc is written if it is not there, and left alone if it is.
func TestSeed(t *testing.T) {
	r := newRedis(t)
	newService(t, "REDIS_URL="+r.url()).stop()
	var want bytes.Buffer
	if err := json.Compact(&want, seedConfig); err != nil {
		t.Fatal(err)
	}
	if got := r.string(t, "GET", "tenant:abc:config"); got != want.String() {
		t.Errorf("seeded %s\nwant %s", got, &want)
	}
	r.do(t, "SET", "tenant:abc:config", `{"mine":true}`)
	newService(t, "REDIS_URL="+r.url()).stop()
	if got := r.string(t, "GET", "tenant:abc:config"); got != `{"mine":true}` {
		t.Errorf("the second start made it %s", got)
	}
}

// Seeding a tenant whose config was deleted straight in Redis does not revive its admin tokens.
func TestSeedAnew(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	token := s.admin(t, "POST", "/abc/admin/tokens", "").field(t, "adminToken").(string)
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 200, "")
	s.stop()
	r.do(t, "DEL", "tenant:abc:config")
	s = newService(t, "REDIS_URL="+r.url())
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 401, "")
	if versions := s.history(t, "abc"); len(versions) != 1 || versions[0].SavedBy != "seed" {
		t.Errorf("the history is %+v", versions)
	}
}

// Junk under a key of ours is a fault for that key or tenant alone: 500, nothing overwritten, no value in the log.
func TestJunkInRedis(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 100)
	junk := func(command string, args ...any) func(key string) {
		return func(key string) {
			testRedis.do(t, "DEL", key)
			testRedis.do(t, command, append([]any{key}, args...)...)
		}
	}
	balance := func(tokensLeft string) func(string) {
		return junk("HSET", "tenantId", id, "group", "pro", "createdAt", "2026-01-02T03:04:05.678Z", "tokensLeft", tokensLeft)
	}
	for _, put := range []func(string){
		junk("SET", "s3cret"), junk("RPUSH", "s3cret"), junk("HSET", "tenantId", id), junk("HSET", "tenantId", id, "createdAt", "2026-01-02T03:04:05.678Z"),
		balance("s3cret"), balance("1.5"), balance("-5"), balance("9007199254740992"), balance("9223372036854775807"), balance(""), balance("5\n"), balance("+5"),
		balance("0007"), balance("1e3"), balance("0x10"), balance("nan"),
	} {
		key := s.login(t, id)
		put("apiKey:" + key)
		logged := len(s.log.String())
		before := testRedis.string(t, "DUMP", "apiKey:"+key)
		s.do(t, "POST", "/"+id+"/tokens/consume", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 500, `{"error":"Internal error"}`)
		if testRedis.string(t, "DUMP", "apiKey:"+key) != before {
			t.Error("the junk was overwritten")
		}
		if n := strings.Count(s.log.String()[logged:], " apiKey:<apiKey> of tenant "+id+": "); n != 4 {
			t.Errorf("%d lines name the key's pattern and tenant in\n%s", n, s.log.String()[logged:])
		}
	}
	{
		key := s.login(t, id)
		testRedis.do(t, "HSET", "apiKey:"+key, "createdAt", "s3cret")
		s.do(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 500, `{"error":"Internal error"}`)
		if tokensLeft(t, key) != 100 {
			t.Error("a change that was answered 500 was made")
		}
	}
	// Junk beside a key: a charge that is answered 500 was not taken.
	limited := limitedTenant(t, 5, 60)
	for name, put := range map[string]func(string){
		":rate": junk("RPUSH", "s3cret"), ":rate ": junk("SET", "s3cret"), ":rate  ": junk("RPUSH", "1", "s3cret"),
		":rate   ": junk("RPUSH", "8675309e300"), ":rate    ": junk("RPUSH", "nan"), ":rate     ": junk("RPUSH", "86753098675309867"), ":charge:k  ": junk("SET", "10 86753098675309867530"),
		":charge:k": junk("SET", "s3cret"), ":charge:k ": junk("RPUSH", "s3cret"),
	} {
		key := s.login(t, limited)
		put("{apiKey:" + key + "}" + strings.TrimSpace(name))
		for range 3 {
			s.consume(t, limited, key, `{"tokens":10}`, retryKey+"k").want(t, 500, `{"error":"Internal error"}`)
		}
		if tokensLeft(t, key) != 1000 {
			t.Errorf("junk under %s: a charge that was answered 500 was taken", name)
		}
	}
	for _, put := range []func(string){
		junk("RPUSH", "s3cret"), junk("SET", "s3cret"), junk("SET", `["s3cret"]`), junk("SET", `{"user_groups":{"a":{"tokens":"s3cret"}}}`),
	} {
		broken := newTenant(t, 100)
		put("tenant:" + broken + ":config")
		s.do(t, "POST", "/"+broken+"/auth/anonymous", "").want(t, 500, `{"error":"Internal error"}`)
		if !strings.Contains(s.log.String(), "tenant "+broken) {
			t.Errorf("the log does not name tenant %s", broken)
		}
	}
	s.login(t, id)
	if log := s.log.String(); strings.Contains(log, "s3cret") || strings.Contains(log, "8675309") {
		t.Errorf("a value is in the log:\n%s", s.log)
	}
}

// In the steady state a charge or a login is one command, and so one round trip, and the config costs none.
func TestOneCommand(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url(), "LOGIN_LIMIT=1000")
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":1000,"rate_limit_window":100},"pro":{"rate_limit":1000,"rate_limit_window":100}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":1000`)
	s.login(t, id)
	s.consume(t, id, key, "").want(t, 200, "")
	calls := func(command string) (n int) {
		fmt.Sscanf(infoField(r.string(t, "INFO", "commandstats"), "cmdstat_"+command), "calls=%d", &n)
		return n
	}
	before := map[string]int{}
	for _, command := range []string{"evalsha", "eval", "get", "pttl", "select", "auth"} {
		before[command] = calls(command)
	}
	for i := range 50 {
		s.consume(t, id, key, "").want(t, 200, "")
		s.consume(t, id, key, "", fmt.Sprint(retryKey, i)).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/auth/verify?tokens=1", "", bearer(key)).want(t, 200, "")
		s.login(t, id)
	}
	for command, n := range before {
		want := 0
		if command == "evalsha" {
			want = 200
		}
		if got := calls(command) - n; command == "get" && got == 50 { // of the remembered outcomes, by the script
			continue
		} else if got != want {
			t.Errorf("150 charges and 50 logins sent %s %d times, want %d", command, got, want)
		}
	}
}

// Neither a charge nor a refusal changes when a key expires.
func TestChargeKeepsExpiry(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 3)
	key := s.login(t, id)
	before := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key)
	for _, body := range []string{"", `{"tokens":2}`, `{"tokens":2}`} {
		s.do(t, "POST", "/"+id+"/tokens/consume", body, bearer(key))
	}
	if after := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key); after != before || after < 0 {
		t.Errorf("the key expires at %d, before the charges at %d", after, before)
	}
}

// The limits are those of the config as it is now, whatever the group is called.
func TestRateLimitConfig(t *testing.T) {
	s := newService(t)
	groups := []string{`anonymous`, ``, ` `, `a\u0000b`, `\"`, `\\`, `ÿþ`, `1 1`, `pro`, `PRO`, `a.b[c]%`}
	config := func(limit int) string {
		var members []string
		for i, group := range groups {
			members = append(members, fmt.Sprintf(`"%s":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d}`, group, limit+i, 1000+i))
		}
		return `{"user_groups":{` + strings.Join(members, ",") + `}}`
	}
	id := testRedis.newTenant(t, config(5))
	keys := make([]string, len(groups))
	for i, group := range groups {
		keys[i] = s.issue(t, id, `"userId":"u","group":"`+group+`"`)
		s.consume(t, id, keys[i], "").wantHeader(t, "RateLimit-Policy", fmt.Sprintf(`"requests";q=%d;w=%d`, 5+i, 1000+i))
	}
	put := func(config string) {
		t.Helper()
		s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken)).want(t, 200, "")
	}
	key := keys[0]
	for range 4 {
		s.consume(t, id, key, "").want(t, 200, "")
	}
	s.consume(t, id, key, "").want(t, 429, "")
	put(config(7)) // higher: two more
	s.consume(t, id, key, "").wantHeader(t, "RateLimit", `"requests";r=1;t=1000`)
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, "").want(t, 429, "")
	put(config(1)) // lower: what was accepted still counts
	s.consume(t, id, key, "").wantHeader(t, "RateLimit", `"requests";r=0;t=1000`)
	put(config(8)) // raising it again gives one slot, not all
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, "").want(t, 429, "")
	put(config(0)) // nobody
	refused := s.consume(t, id, key, "")
	refused.want(t, 429, "")
	refused.wantHeader(t, "Retry-After", "1000")
	// A longer window holds also for what was accepted under a shorter one.
	window := func(seconds int) string {
		return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":3,"rate_limit_window":%d}}}`, seconds)
	}
	put(window(1))
	longer := s.issue(t, id, `"userId":"u","group":"anonymous"`)
	for range 3 {
		s.consume(t, id, longer, "").want(t, 200, "")
	}
	put(window(1000))
	s.consume(t, id, longer, "").want(t, 429, "")
	time.Sleep(1200 * time.Millisecond)
	s.consume(t, id, longer, "").want(t, 429, "")
	// With more in the window than a lowered limit allows, a slot frees when all but limit-1 have left.
	lowered := s.issue(t, id, `"userId":"u","group":"anonymous"`)
	now := time.Now().UnixMicro()
	testRedis.do(t, "RPUSH", "{apiKey:"+lowered+"}:rate", now-990_000_000, now-500_000_000, now-100_000_000)
	put(`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":2,"rate_limit_window":1000},"pro":{"rate_limit":5,"rate_limit_window":50}}}`)
	answer := s.consume(t, id, lowered, "")
	answer.want(t, 429, "")
	if wait := answer.header.Get("Retry-After"); wait != "500" && wait != "499" {
		t.Errorf("Retry-After is %s, want 500", wait)
	}
	// A key that moves to another group has that group's limit at once, and keeps its log.
	s.do(t, "PATCH", "/"+id+"/admin/keys/"+lowered, `{"group":"pro"}`, bearer(testAdminToken)).want(t, 200, "")
	s.consume(t, id, lowered, "").wantHeader(t, "X-RateLimit-Remaining-Requests", "4")
	put(`{}`) // no such group any more, so no limit
	s.consume(t, id, key, "").want(t, 200, "")
	// The widest window is no fault.
	put(`{"user_groups":{"anonymous":{"rate_limit":100000,"rate_limit_window":9007199254740991}}}`)
	s.consume(t, id, key, "").wantHeader(t, "RateLimit-Policy", `"requests";q=100000;w=9007199254740991`)
}

// The limits of many groups are as good as those of few, though a charge does not send them all.
func TestManyGroups(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	var members []string
	for i := range 500 {
		members = append(members, fmt.Sprintf(`"group %d":{"tokens":1000,"rate_limit":%d,"rate_limit_window":1000}`, i, 1+i%7))
	}
	id := testRedis.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":2,"rate_limit_window":500},"free":{"tokens":5},`+strings.Join(members, ",")+`}}`)
	check := func(key string, limit int, policy string) {
		t.Helper()
		for i := range limit {
			answer := services[i%2].consume(t, id, key, "")
			answer.want(t, 200, "")
			answer.wantHeader(t, "RateLimit-Policy", policy)
			answer.wantHeader(t, "X-RateLimit-Remaining-Requests", fmt.Sprint(limit-1-i))
		}
		services[0].consume(t, id, key, "", retryKey+"k").want(t, 429, "")
	}
	check(services[0].login(t, id), 2, `"requests";q=2;w=500`)
	for _, i := range []int{0, 1, 6, 10, 100, 499} {
		key := services[0].issue(t, id, fmt.Sprintf(`"userId":"u","group":"group %d"`, i))
		check(key, 1+i%7, fmt.Sprintf(`"requests";q=%d;w=1000`, 1+i%7))
	}
	free := services[0].issue(t, id, `"userId":"u","group":"free"`)
	answer := services[0].consume(t, id, free, `{"tokens":5}`)
	answer.want(t, 200, `{"tokensLeft":0}`)
	answer.wantHeader(t, "RateLimit-Policy", "")
	services[0].consume(t, id, free, "").want(t, 402, "")
	services[0].consume(t, id, someKey, "").want(t, 401, "")

	// A user ID with a newline, put straight into Redis, is junk.
	testRedis.do(t, "HSET", "apiKey:"+free, "userId", "a\nb")
	services[0].consume(t, id, free, "").want(t, 500, "")

	// While a key moves between groups each charge is judged by one of them.
	key := services[0].issue(t, id, `"userId":"u","group":"free","tokens":1000000`)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if g == 0 {
					services[0].admin(t, "PATCH", "/"+id+"/admin/keys/"+key, fmt.Sprintf(`{"group":"%s"}`, []string{"free", "group 5", "anonymous"}[i%3])).want(t, 200, "")
				} else if answer := services[g%2].consume(t, id, key, ""); answer.status != 200 && answer.status != 429 {
					t.Errorf("%d %s", answer.status, answer.body)
				}
			}
		})
	}
	wg.Wait()
}

// The log outlives its first request: a window that begins at the second is as full.
func TestLogExpiry(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 5, 1)
	key := s.login(t, id)
	s.consume(t, id, key, "").want(t, 200, "")
	time.Sleep(700 * time.Millisecond)
	for range 4 {
		s.consume(t, id, key, "").want(t, 200, "")
	}
	time.Sleep(400 * time.Millisecond)
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, "").want(t, 429, "")
}

// However many have left the window at once, exactly those are forgotten.
func TestRateLimitPruning(t *testing.T) {
	s := newService(t)
	const limit = 100
	id := limitedTenant(t, limit, 50)
	for gone := 0; gone <= limit; gone += 1 + gone/7 {
		key := s.issue(t, id, `"userId":"u","group":"anonymous"`)
		log := []any{"{apiKey:" + key + "}:rate"}
		now := time.Now().UnixMicro()
		for i := range limit {
			if i < gone {
				log = append(log, now-60_000_000+int64(i))
			} else {
				log = append(log, now-20_000_000+int64(i))
			}
		}
		testRedis.do(t, "RPUSH", log...)
		for remaining := gone - 1; remaining >= max(0, gone-3); remaining-- {
			s.consume(t, id, key, "").wantHeader(t, "X-RateLimit-Remaining-Requests", fmt.Sprint(remaining))
		}
		if gone == 0 {
			refused := s.consume(t, id, key, "")
			refused.want(t, 429, "")
			refused.wantHeader(t, "Retry-After", "30")
		}
	}
}

// No window, wherever it begins, holds more accepted requests than the limit; and the limit is used to the full.
func TestSlidingWindow(t *testing.T) {
	const limit, windows = 20, 3
	const window = time.Second
	services := []*service{newService(t), newService(t)}
	id := limitedTenant(t, limit, 1)
	key := services[0].login(t, id)
	var mu sync.Mutex
	var begun, ended []time.Time // of the accepted requests
	stop := time.Now().Add(windows*window + window/2)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				begin := time.Now()
				answer, err := services[g%2].send("POST", "/"+id+"/tokens/consume", "", bearer(key))
				end := time.Now()
				if err != nil || answer.status != 200 && answer.status != 429 {
					t.Errorf("%+v, %v", answer, err)
					return
				}
				if answer.status == 200 {
					mu.Lock()
					begun, ended = append(begun, begin), append(ended, end)
					mu.Unlock()
				}
				time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	if n := testRedis.int(t, "LLEN", "{apiKey:"+key+"}:rate"); n > limit {
		t.Errorf("%d requests are in the log, more than the limit of %d", n, limit)
	}
	// The k-th acceptance was not before the k-th begin and not after the k-th end.
	slices.SortFunc(begun, time.Time.Compare)
	slices.SortFunc(ended, time.Time.Compare)
	for k := 0; k+limit < len(begun); k++ {
		if apart := ended[k+limit].Sub(begun[k]); apart < window {
			t.Fatalf("%d requests were accepted within %s", limit+1, apart)
		}
	}
	if len(begun) < limit*windows || 1000-tokensLeft(t, key) != len(begun) {
		t.Errorf("%d requests were accepted, %d tokens spent", len(begun), 1000-tokensLeft(t, key))
	}
	time.Sleep(window + 100*time.Millisecond)
	if testRedis.int(t, "EXISTS", "{apiKey:"+key+"}:rate") != 0 {
		t.Error("the log outlives its window")
	}
}

// Whatever the interleaving over two processes, what was granted is what was spent plus what is left, and the
// balance never goes below 0.
func TestRacingCharges(t *testing.T) {
	const tokens, goroutines, charges = 1000, 64, 40
	services := []*service{newService(t), newService(t)}
	id := newTenant(t, tokens)
	key := services[0].login(t, id)

	var spent, refused atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range charges {
				n := (g+i)%3 + 1
				answer, err := services[(g+i)%2].send("POST", "/"+id+"/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, n), bearer(key))
				switch {
				case err != nil:
					t.Error(err)
				case answer.status == 200:
					spent.Add(int64(n))
				case answer.status == 402:
					refused.Add(1)
				default:
					t.Errorf("got %d %s", answer.status, answer.body)
				}
			}
		})
	}
	wg.Wait()
	left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft")
	if int64(left)+spent.Load() != tokens || left < 0 || refused.Load() == 0 {
		t.Errorf("granted %d, spent %d, left %d, refused %d times", tokens, spent.Load(), left, refused.Load())
	}
}

// One Idempotency-Key that races over two processes, while Redis forgets its scripts, is charged once, and everybody
// learns the same outcome.
func TestIdempotencyRace(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	id := newTenant(t, 100)
	key := services[0].login(t, id)
	var first, replayed atomic.Int64
	var wg sync.WaitGroup
	for g := range 64 {
		wg.Go(func() {
			if g%8 == 0 {
				testRedis.do(t, "SCRIPT", "FLUSH")
			}
			answer, err := services[g%2].send("POST", "/"+id+"/tokens/consume", `{"tokens":7}`, bearer(key), retryKey+"k")
			if err != nil {
				t.Error(err)
				return
			}
			answer.want(t, 200, `{"tokensLeft":93}`)
			if answer.header.Get("Idempotent-Replayed") == "true" {
				replayed.Add(1)
			} else {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if first.Load() != 1 || replayed.Load() != 63 || tokensLeft(t, key) != 93 {
		t.Errorf("%d charges, %d replays, %d tokens left", first.Load(), replayed.Load(), tokensLeft(t, key))
	}
}

// A key that has expired stays dead: of 1,300 charges that straddle its expiry, 1,000 come after it, and none makes it
// again.
func TestExpiredKeyStaysDead(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 100_000, 100)
	key := s.login(t, id)
	testRedis.do(t, "PEXPIRE", "apiKey:"+key, 60)
	var accepted, refused atomic.Int64
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			for i := range 130 {
				if i == 30 {
					time.Sleep(100 * time.Millisecond)
				}
				headers := []string{bearer(key)}
				if i%2 == 0 {
					headers = append(headers, fmt.Sprintf("%s%d-%d", retryKey, g, i))
				}
				answer, err := s.send("POST", "/"+id+"/tokens/consume", "", headers...)
				switch {
				case err == nil && answer.status == 200 && i < 30:
					accepted.Add(1)
				case err == nil && answer.status == 401:
					refused.Add(1)
				default:
					t.Errorf("%+v, %v", answer, err)
				}
			}
		})
	}
	wg.Wait()
	if testRedis.int(t, "EXISTS", "apiKey:"+key) != 0 || accepted.Load() == 0 || refused.Load() < 1000 {
		t.Errorf("%d charges were accepted, %d refused, and the key is %s", accepted.Load(), refused.Load(), testRedis.string(t, "TYPE", "apiKey:"+key))
	}
}

// A key that is revoked while it is charged and changed stays dead, and nothing of it comes back.
func TestRevokedUnderLoad(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	id := limitedTenant(t, 100_000, 100)
	key := services[0].issue(t, id, `"userId":"u","group":"anonymous"`)
	var dead atomic.Bool
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				wasDead := dead.Load()
				method, path, body, token := "POST", "/tokens/consume", "", key
				if i%3 == 0 {
					method, path, body, token = "PATCH", "/admin/keys/"+key, `{"addTokens":1,"group":"pro"}`, testAdminToken
				}
				answer, err := services[(g+i)%2].send(method, "/"+id+path, body, bearer(token), fmt.Sprintf("%s%d-%d", retryKey, g, i))
				switch {
				case err != nil || answer.status != 200 && answer.status != 401 && answer.status != 404:
					t.Errorf("%+v, %v", answer, err)
					return
				case wasDead && answer.status == 200:
					t.Errorf("a revoked key was good for %s", path)
					return
				case wasDead:
					return
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	services[0].admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
	dead.Store(true)
	wg.Wait()
	if n := testRedis.int(t, "EXISTS", "apiKey:"+key, "{apiKey:"+key+"}:rate"); n != 0 {
		t.Error("something of a revoked key is back")
	}
}

// Mixed charges, retries and changes of one key over two processes: the balance is what was granted and added less what
// was charged, each accepted charge once.
func TestLedger(t *testing.T) {
	const goroutines, rounds = 64, 12
	services := []*service{newService(t), newService(t)}
	id := limitedTenant(t, 10, 1) // of the group anonymous
	const granted = 500
	key := services[0].issue(t, id, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, granted))
	var charged, added, refused, limited, below atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for round := range rounds {
				s := services[(g+round)%2]
				switch n := 1 + (g*rounds+round)%9; round % 4 {
				case 0: // change the group, and the balance
					group := []string{"pro", "anonymous"}[g%2]
					if answer, err := s.send("PATCH", "/"+id+"/admin/keys/"+key, `{"group":"`+group+`"}`, bearer(testAdminToken)); err != nil || answer.status != 200 {
						t.Errorf("%+v, %v", answer, err)
					}
					amount := n
					if g%3 == 0 {
						amount = -20 * n
					}
					answer, err := s.send("PATCH", "/"+id+"/admin/keys/"+key, fmt.Sprintf(`{"addTokens":%d}`, amount), bearer(testAdminToken))
					switch {
					case err == nil && answer.status == 200:
						added.Add(int64(amount))
					case err == nil && answer.status == 400:
						below.Add(1)
					default:
						t.Errorf("%+v, %v", answer, err)
					}
				case 1: // a charge of its own
					answer, err := s.send("POST", "/"+id+"/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, n), bearer(key))
					switch {
					case err == nil && answer.status == 200:
						charged.Add(int64(n))
					case err == nil && answer.status == 402:
						refused.Add(1)
					case err == nil && answer.status == 429:
						limited.Add(1)
					default:
						t.Errorf("%+v, %v", answer, err)
					}
				default: // a charge that is sent three times; the copies of goroutine pairs share their Idempotency-Key
					for try := range 3 {
						answer, err := services[try%2].send("POST", "/"+id+"/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, 1+round),
							bearer(key), fmt.Sprintf("%s%d-%d", retryKey, g/2, round))
						switch {
						case err == nil && answer.status == 200 && answer.header.Get("Idempotent-Replayed") == "":
							charged.Add(int64(1 + round))
						case err != nil || answer.status != 200 && answer.status != 402 && answer.status != 429:
							t.Errorf("%+v, %v", answer, err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if left := int64(tokensLeft(t, key)); left != granted+added.Load()-charged.Load() || left < 0 {
		t.Errorf("granted %d, added %d, charged %d, but %d are left", granted, added.Load(), charged.Load(), left)
	}
	if charged.Load() == 0 || added.Load() == 0 || refused.Load() == 0 || limited.Load() == 0 || below.Load() == 0 {
		t.Errorf("charged %d, added %d; refused %d for their balance, %d for the rate, %d changes: that proves little",
			charged.Load(), added.Load(), refused.Load(), limited.Load(), below.Load())
	}
}

// When answers of Redis are lost after it has written, those who retry with their Idempotency-Key, at any process, pay once.
func TestLostReplies(t *testing.T) {
	const goroutines, charges = 20, 50
	var cutting atomic.Bool
	proxy := newRedisProxy(t, testRedis, func([]byte) fate {
		if cutting.Load() && rand.IntN(5) == 0 {
			return cut
		}
		return pass
	})
	services := []*service{newService(t, "REDIS_URL="+proxy.url), newService(t, "REDIS_URL="+proxy.url)}
	id := newTenant(t, 10_000)
	key := services[0].login(t, id)
	cutting.Store(true)
	var retries, replays atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range charges {
				for try := 0; ; try++ {
					answer, err := services[(g+try)%2].send("POST", "/"+id+"/tokens/consume", `{"tokens":3}`, bearer(key), fmt.Sprintf("%s%d-%d", retryKey, g, i))
					if err != nil || answer.status != 200 && answer.status != 503 {
						t.Errorf("%+v, %v", answer, err)
						return
					}
					if answer.status == 200 {
						if answer.header.Get("Idempotent-Replayed") == "true" {
							replays.Add(1)
						}
						break
					}
					retries.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if spent := 10_000 - tokensLeft(t, key); spent != 3*goroutines*charges {
		t.Errorf("%d tokens were taken for %d charges of 3", spent, goroutines*charges)
	}
	if retries.Load() == 0 || replays.Load() == 0 {
		t.Errorf("%d cuts, %d retries and %d replays prove nothing", proxy.cuts.Load(), retries.Load(), replays.Load())
	}
}

// Clients that go away in the middle of a charge close no connection to Redis, and a retry finds what they were charged.
func TestHangUps(t *testing.T) {
	const goroutines, charges = 16, 25
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":10000}}}`)
	key := s.login(t, id)
	hangUp := func(idempotencyKey string) {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(c, "POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\n%s%s\r\nContent-Length: 0\r\n\r\n", id, bearer(key), retryKey, idempotencyKey)
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		c.Close()
	}
	// Those of the service; the test's own come over the socket, and are counted as they are made.
	own := 0
	dialled := func() int {
		own++
		var n int
		fmt.Sscan(infoField(r.string(t, "INFO", "stats"), "total_connections_received"), &n)
		return n - own
	}
	all := func(do func(idempotencyKey string)) {
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range charges {
					do(fmt.Sprintf("%d-%d", g, i))
				}
			})
		}
		wg.Wait()
	}
	// Every connection that there may be is there first: so many scripts wait at once that each needs its own.
	r.signal(t, syscall.SIGSTOP)
	var warm sync.WaitGroup
	for range poolSize {
		warm.Go(func() { s.consume(t, id, key, "", retryKey+"warm").want(t, 200, "") })
	}
	time.Sleep(300 * time.Millisecond)
	r.signal(t, syscall.SIGCONT)
	warm.Wait()
	all(func(k string) { s.consume(t, id, key, "", retryKey+"warm-"+k).want(t, 200, "") })
	before := dialled()
	all(hangUp)
	time.Sleep(100 * time.Millisecond)
	after := dialled()
	spent := 10_000 - r.int(t, "HGET", "apiKey:"+key, "tokensLeft") - goroutines*charges - 1
	var replayed atomic.Int64
	all(func(k string) {
		answer := s.consume(t, id, key, "", retryKey+k)
		answer.want(t, 200, "")
		if answer.header.Get("Idempotent-Replayed") == "true" {
			replayed.Add(1)
		}
	})
	if int64(spent) != replayed.Load() || spent == 0 {
		t.Errorf("%d charges of clients that hung up were taken, %d are found by a retry", spent, replayed.Load())
	}
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 10_000-2*goroutines*charges-1 {
		t.Errorf("%d tokens are left", left)
	}
	if after != before {
		t.Errorf("%d connections to Redis were made anew", after-before)
	}
	if strings.Contains(s.log.String(), "[ERROR]") {
		t.Errorf("log:\n%s", s.log)
	}
}

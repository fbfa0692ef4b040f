package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const retryKey = "Idempotency-Key: "

// limitedTenant is a tenant whose group anonymous has 1,000 tokens and that rate limit.
func limitedTenant(t testing.TB, limit, window int) string {
	t.Helper()
	return testRedis.newTenant(t, fmt.Sprintf(
		`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d},"pro":{"tokens":5000}}}`, limit, window))
}

func (s *service) consume(t testing.TB, tenant, key, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/tokens/consume", body, append(headers, bearer(key))...)
}

// issue makes a registered user's key from the members of a request's body.
func (s *service) issue(t testing.TB, tenant, members string) string {
	t.Helper()
	answer := s.do(t, "POST", "/"+tenant+"/admin/keys", "{"+members+"}", bearer(testAdminToken))
	answer.want(t, 201, "")
	key, _ := answer.field(t, "apiKey").(string)
	return key
}

func tokensLeft(t testing.TB, key string) int {
	t.Helper()
	return testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft")
}

func (got reply) wantHeader(t testing.TB, name, value string) {
	t.Helper()
	if v := got.header.Get(name); v != value {
		t.Errorf("%d %s: %s is %q, want %q", got.status, strings.TrimSpace(got.body), name, v, value)
	}
}

func TestIdempotency(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	s := services[0]
	id := limitedTenant(t, 3, 100)
	key := s.login(t, id)

	first := s.consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
	first.want(t, 200, `{"tokensLeft":900}`)
	first.wantHeader(t, "Idempotent-Replayed", "")
	s.consume(t, id, key, `{"tokens":50}`).want(t, 200, `{"tokensLeft":850}`)
	testRedis.do(t, "SCRIPT", "FLUSH")
	for i := range 6 { // more often than the rate limit allows: a replay uses nothing of it
		again := services[i%2].consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
		again.want(t, 200, `{"tokensLeft":900}`)
		again.wantHeader(t, "Idempotent-Replayed", "true")
		again.wantHeader(t, "X-RateLimit-Remaining-Requests", "1")
	}
	mismatch := s.consume(t, id, key, `{"tokens":101}`, retryKey+"a b~!")
	mismatch.want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
	if left := tokensLeft(t, key); left != 850 {
		t.Errorf("%d tokens are left, want 850", left)
	}
	// An empty body is the amount 1; another API key, or another case, is another charge.
	s.consume(t, id, key, "", retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
	s.consume(t, id, key, `{"tokens":1}`, retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
	other := s.issue(t, id, `"userId":"u","group":"pro"`)
	s.consume(t, id, other, "", retryKey+"one").want(t, 200, `{"tokensLeft":4999}`)
	s.consume(t, id, other, "", retryKey+"ONE").want(t, 200, `{"tokensLeft":4998}`)

	ttl := testRedis.int(t, "TTL", "{apiKey:"+key+"}:charge:one")
	if ttl < 86400-60 || ttl > 86400 {
		t.Errorf("an outcome is remembered for %d s", ttl)
	}
	// What was refused is not remembered.
	s.consume(t, id, key, "", retryKey+"late").want(t, 429, `{"error":"Too Many Requests"}`)
	testRedis.do(t, "DEL", "{apiKey:"+key+"}:rate")
	s.consume(t, id, key, "", retryKey+"late").want(t, 200, `{"tokensLeft":848}`)
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 402, `{"error":"Payment Required","tokensLeft":4998}`)
	s.do(t, "PATCH", "/"+id+"/admin/keys/"+other, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 200, "")
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 200, `{"tokensLeft":0}`)
	// A balance that Lua would write with an exponent is remembered as it is.
	rich := s.issue(t, id, `"userId":"u","group":"pro","tokens":9007199254740991`)
	for range 2 {
		s.consume(t, id, rich, "", retryKey+"rich").want(t, 200, `{"tokensLeft":9007199254740990}`)
	}
	// A key that is gone is gone, also for those who retry.
	s.do(t, "DELETE", "/"+id+"/admin/keys/"+other, "", bearer(testAdminToken)).want(t, 204, "")
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 401, "")
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

func TestRateLimitHeaders(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 3, 100)
	key := s.login(t, id)
	want := func(answer reply, status int, remaining, wait string) {
		t.Helper()
		answer.want(t, status, "")
		answer.wantHeader(t, "RateLimit-Policy", `"requests";q=3;w=100`)
		answer.wantHeader(t, "RateLimit", `"requests";r=`+remaining+`;t=`+wait)
		answer.wantHeader(t, "X-RateLimit-Limit-Requests", "3")
		answer.wantHeader(t, "X-RateLimit-Remaining-Requests", remaining)
	}
	verify := func() reply { return s.do(t, "GET", "/"+id+"/auth/verify?tokens=1001", "", bearer(key)) }
	want(s.consume(t, id, key, `{"tokens":1001}`), 402, "3", "0") // refused: nothing is used
	want(verify(), 402, "3", "0")
	want(s.consume(t, id, key, ""), 200, "2", "100")
	want(s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)), 200, "1", "100")
	want(s.consume(t, id, key, `{"tokens":1001}`), 402, "1", "100")
	want(s.consume(t, id, key, ""), 200, "0", "100")
	for range 5 {
		refused := s.consume(t, id, key, "")
		want(refused, 429, "0", "100")
		refused.wantHeader(t, "Retry-After", "100")
		refused.want(t, 429, `{"error":"Too Many Requests"}`)
		want(verify(), 429, "0", "100")
	}
	if left := tokensLeft(t, key); left != 998 {
		t.Errorf("%d tokens are left, want 998", left)
	}
	// Looking at the key costs no rate.
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
	if n := testRedis.int(t, "LLEN", "{apiKey:"+key+"}:rate"); n != 3 {
		t.Errorf("%d requests are in the log, want 3", n)
	}
	if ttl := testRedis.int(t, "PTTL", "{apiKey:"+key+"}:rate"); ttl < 1 || ttl > 100_000 {
		t.Errorf("the log lives for %d ms", ttl)
	}

	free := s.issue(t, id, `"userId":"u","group":"pro"`)
	for name := range s.consume(t, id, free, "").header {
		if strings.Contains(strings.ToLower(name), "ratelimit") {
			t.Errorf("without a limit there is %s", name)
		}
	}
	if testRedis.int(t, "EXISTS", "{apiKey:"+free+"}:rate") != 0 {
		t.Error("without a limit there is a log")
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

// redisProxy stands between a service and Redis, and may do with each reply what a bad network does.
type redisProxy struct {
	address, url string
	cuts         atomic.Int64 // connections that reply has cut
}

// newRedisProxy starts a proxy that asks of every reply on a connection what to do with it: pass it on, swallow it and
// all that follow, or cut the connection.
func newRedisProxy(t *testing.T, r *redisServer, fate func(reply []byte) fate) *redisProxy {
	t.Helper()
	return newRedisProxyTo(t, r.socket, fate)
}

// newRedisProxyTo is newRedisProxy for the Redis whose socket it is told when a connection is made.
func newRedisProxyTo(t *testing.T, socket func() string, fate func(reply []byte) fate) *redisProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &redisProxy{address: l.Addr().String(), url: redisURLOf(l.Addr().String())}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			redis, err := net.Dial("unix", socket())
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(redis, client)
				redis.Close()
			}()
			go func() {
				defer client.Close()
				defer redis.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := redis.Read(buffer)
					if err != nil {
						return
					}
					switch fate(buffer[:n]) {
					case pass:
						if _, err := client.Write(buffer[:n]); err != nil {
							return
						}
					case swallow:
						_, _ = io.Copy(io.Discard, redis)
						return
					case cut:
						p.cuts.Add(1)
						return
					}
				}
			}()
		}
	}()
	return p
}

type fate int

const (
	pass fate = iota
	swallow
	cut
)

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

func TestKeyAdministration(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	s := services[0]
	id, other := newTenant(t, 100), newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	path := "/admin/keys/" + key
	admin := func(method, tenant, body string) reply {
		t.Helper()
		return s.do(t, method, "/"+tenant+path, body, bearer(testAdminToken))
	}
	own := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
	admin("GET", id, "").want(t, 200, strings.TrimSpace(own.body))
	expires := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key)

	steps := []struct {
		body, group string
		left        int
	}{
		{`{"tokens":10,"group":"pro"}`, "pro", 10},
		{`{"addTokens":5}`, "pro", 15},
		{`{"addTokens":-15,"group":"anonymous"}`, "anonymous", 0},
		{`{"addTokens":0}`, "anonymous", 0},
		{`{"addTokens":9007199254740991}`, "anonymous", maxAmount},
		{`{}`, "anonymous", maxAmount},
		{`{"group":"pro"}`, "pro", maxAmount},
	}
	for _, step := range steps {
		answer := admin("PATCH", id, step.body)
		answer.want(t, 200, "")
		want := fmt.Sprintf(`{"userId":"u","group":"%s",`, step.group)
		if !strings.HasPrefix(answer.body, want) || !strings.HasSuffix(answer.body, fmt.Sprintf(`"tokensLeft":%d}`+"\n", step.left)) {
			t.Errorf("%s: got %s", step.body, answer.body)
		}
		admin("GET", id, "").want(t, 200, strings.TrimSpace(answer.body))
	}
	admin("PATCH", id, `{"addTokens":1}`).want(t, 400, `{"error":"addTokens must leave a balance from 0 to 9007199254740991"}`)
	admin("PATCH", id, `{"tokens":5}`).want(t, 200, "")
	admin("PATCH", id, `{"addTokens":-6,"group":"anonymous"}`).want(t, 400, `{"error":"addTokens must leave a balance from 0 to 9007199254740991"}`)
	for body, want := range map[string]string{
		`{"tokens":1,"addTokens":1}`:     "addTokens must not be given with the other of addTokens and tokens",
		`{"tokens":-1}`:                  "tokens must be a whole number ≥ 0",
		`{"tokens":1.5}`:                 "tokens must be a whole number ≥ 0",
		`{"tokens":null}`:                "tokens must be a whole number ≥ 0",
		`{"addTokens":"1"}`:              "addTokens must be a whole number ≥ -9007199254740991",
		`{"addTokens":9007199254740992}`: "addTokens must be a whole number from -9007199254740991 to 9007199254740991",
		`{"group":"nobody"}`:             "group is not one of the tenant's user_groups",
		`{"group":null}`:                 "group must be a string",
		`{"userId":"x"}`:                 "userId is not a known member",
		`{"tokens":1,"tokens":1}`:        "tokens is there twice",
		``:                               "Invalid JSON: unexpected end of JSON input at byte 0",
	} {
		answer := admin("PATCH", id, body)
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
	if got := testRedis.string(t, "HGET", "apiKey:"+key, "group"); tokensLeft(t, key) != 5 || got != "pro" {
		t.Errorf("what was refused has changed the key: %d tokens, group %s", tokensLeft(t, key), got)
	}
	if got := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key); got != expires {
		t.Errorf("the key expires at %d, before the changes at %d", got, expires)
	}

	// Another tenant's key, one that is not there and one that cannot be: 404, and untouched.
	before := testRedis.string(t, "DUMP", "apiKey:"+key)
	for _, test := range []struct{ tenant, path string }{
		{other, path}, {id, "/admin/keys/" + someKey}, {id, "/admin/keys/x"}, {id, "/admin/keys/a%2Fb"}, {id, "/admin/keys/%00"}, {id, "/admin/keys/" + key + "x"},
	} {
		for method, body := range map[string]string{"GET": "", "PATCH": `{"tokens":1}`, "DELETE": ""} {
			s.do(t, method, "/"+test.tenant+test.path, body, bearer(testAdminToken)).want(t, 404, `{"error":"Not found"}`)
		}
	}
	if testRedis.string(t, "DUMP", "apiKey:"+key) != before || testRedis.int(t, "EXISTS", "apiKey:"+someKey) != 0 {
		t.Error("another tenant's admin has changed the key")
	}
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		s.do(t, method, "/"+id+path, "", bearer(key)).want(t, 401, "")
		s.do(t, method, "/"+id+"x"+path, "", bearer(testAdminToken)).want(t, 400, `{"error":"Invalid tenant ID"}`)
	}

	// A revoked key is dead for every process at once, and nothing of its rate is left.
	testRedis.do(t, "RPUSH", "{apiKey:"+key+"}:rate", 1)
	services[1].consume(t, id, key, "").want(t, 200, "")
	gone := admin("DELETE", id, "")
	gone.want(t, 204, "")
	if gone.body != "" {
		t.Errorf("204 with a body: %q", gone.body)
	}
	for _, s := range services {
		s.consume(t, id, key, "").want(t, 401, "")
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 401, "")
	}
	if n := testRedis.int(t, "EXISTS", "apiKey:"+key, "{apiKey:"+key+"}:rate"); n != 0 {
		t.Error("something of a revoked key is left")
	}
	admin("DELETE", id, "").want(t, 404, "")
}

func TestVerify(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 2)
	verify := func(method, query, key string, headers ...string) reply {
		t.Helper()
		return s.do(t, method, "/"+id+"/auth/verify"+query, "", append(headers, bearer(key))...)
	}
	key := s.login(t, id)
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
		answer := verify(method, "", key)
		answer.want(t, 200, `{}`)
		answer.wantHeader(t, "X-Tenant-Id", id)
		answer.wantHeader(t, "X-User-Group", "anonymous")
		answer.wantHeader(t, "X-Tokens-Left", "2")
		if _, ok := answer.header["X-User-Id"]; ok {
			t.Error("an anonymous user has an X-User-Id")
		}
	}
	if answer := verify("HEAD", "", key); answer.status != 200 || answer.body != "" {
		t.Errorf("HEAD: %+v", answer)
	}
	verify("GET", "?tokens=0", key).wantHeader(t, "X-Tokens-Left", "2")
	// The client's own Idempotency-Key and body are not for tollgate.
	for i := 1; i >= 0; i-- {
		answer := s.do(t, "POST", "/"+id+"/auth/verify?tokens=1", `{"tokens":`, bearer(key), retryKey+"mine")
		answer.want(t, 200, `{}`)
		answer.wantHeader(t, "X-Tokens-Left", fmt.Sprint(i))
	}
	for _, query := range []string{"", "tokens=0&", "tokens=1&"} {
		verify("GET", "?"+strings.TrimSuffix(query, "&"), key).want(t, 402, `{"error":"Payment Required","tokensLeft":0}`)
		answer := verify("GET", "?"+query+"deny=403", key)
		answer.want(t, 403, `{"error":"Payment Required","tokensLeft":0}`)
		answer.wantHeader(t, "X-Auth-Status", "402")
	}
	limited := limitedTenant(t, 0, 9)
	answer := s.do(t, "GET", "/"+limited+"/auth/verify?deny=403", "", bearer(s.login(t, limited)))
	answer.want(t, 403, `{"error":"Too Many Requests"}`)
	answer.wantHeader(t, "X-Auth-Status", "429")
	answer.wantHeader(t, "Retry-After", "9")
	verify("GET", "?deny=403", someKey).want(t, 401, "")
	s.do(t, "GET", "/nobody/auth/verify?deny=403", "", bearer(key)).want(t, 400, "")

	// What a header cannot carry as it is comes percent-encoded.
	odd := testRedis.newTenant(t, `{"user_groups":{"a\r\nX-User-Id: root ÿ%":{"tokens":1}}}`)
	user := s.issue(t, odd, `"userId":"ü@example.org 100%","group":"a\r\nX-User-Id: root ÿ%"`)
	answer = s.do(t, "GET", "/"+odd+"/auth/verify", "", bearer(user))
	answer.want(t, 200, `{}`)
	answer.wantHeader(t, "X-User-Id", "%C3%BC@example.org 100%25")
	answer.wantHeader(t, "X-User-Group", "a%0D%0AX-User-Id: root %C3%BF%25")
	for group, want := range map[string]string{"": "", " ": "%20", " a b ": "%20a b%20"} {
		if got := headerText(group); got != want {
			t.Errorf("%q in a header is %q, want %q", group, got, want)
		}
	}
	if n := len(answer.header["X-User-Id"]); n != 1 {
		t.Errorf("%d headers X-User-Id", n)
	}
}

// Malformed headers and queries are a 400 that names them, and take nothing.
func TestBadHeadersAndQueries(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 100, 100)
	key := s.login(t, id)
	const badKey = "Idempotency-Key must be one header of 1 to 255 printable ASCII characters"
	for _, headers := range [][]string{
		{retryKey}, {retryKey + "é"}, {retryKey + "a\tb"}, {retryKey + strings.Repeat("a", 256)}, {retryKey + "a", retryKey + "a"},
	} {
		answer := s.consume(t, id, key, "", headers...)
		answer.want(t, 400, `{"error":"`+badKey+`"}`)
	}
	s.consume(t, id, key, "", retryKey+strings.Repeat("a", 255)).want(t, 200, "")
	const whole = "tokens must be a whole number ≥ 0"
	s.do(t, "POST", "/"+id+"/tokens/consume?tokens=5", "", bearer(key)).want(t, 400, `{"error":"consume takes no query: the amount stands in the body"}`)
	for query, want := range map[string]string{
		"tokens=":                     whole,
		"tokens":                      whole,
		"tokens=-1":                   whole,
		"tokens=1.5":                  whole,
		"tokens=1e3":                  whole,
		"tokens=+1":                   whole,
		"tokens=-0":                   whole,
		"tokens=007":                  whole,
		"tokens=%2B1":                 whole,
		"tokens=0x1":                  whole,
		"tokens=1_000":                whole,
		"tokens=one":                  whole,
		"tokens=%00":                  whole,
		"tokens=9007199254740992":     "tokens must be a whole number from 0 to 9007199254740991",
		"tokens=99999999999999999999": "tokens must be a whole number from 0 to 9007199254740991",
		"tokens=1&tokens=1":           `Query "tokens" is there twice`,
		"Tokens=1":                    `Query "Tokens" is not known`,
		"deny=402":                    "deny must be 403",
		"deny=":                       "deny must be 403",
		"deny=403&deny=403":           `Query "deny" is there twice`,
		"token=1":                     `Query "token" is not known`,
		"=1":                          `Query "" is not known`,
		"a%0a=1":                      `Query "a\n" is not known`,
		"tokens=1;deny=403":           "Invalid query",
		"tokens=%zz":                  "Invalid query",
	} {
		answer := s.do(t, "GET", "/"+id+"/auth/verify?"+query, "", bearer(key))
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if left, used := tokensLeft(t, key), testRedis.int(t, "LLEN", "{apiKey:"+key+"}:rate"); left != 999 || used != 1 {
		t.Errorf("%d tokens are left and %d requests used, want 999 and 1", left, used)
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

// recipe is the README's snippet of that language, as it stands there but for the addresses in it.
func recipe(t *testing.T, language string, addresses ...string) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, snippet, ok := strings.Cut(string(readme), "```"+language+"\n")
	snippet, _, ok2 := strings.Cut(snippet, "```")
	if !ok || !ok2 {
		t.Fatalf("the README has no snippet for %s", language)
	}
	for i := 0; i < len(addresses); i += 2 {
		if !strings.Contains(snippet, addresses[i]) {
			t.Fatalf("the snippet for %s does not name %s", language, addresses[i])
		}
		snippet = strings.ReplaceAll(snippet, addresses[i], addresses[i+1])
	}
	return snippet
}

// countingProxy passes connections on and counts them.
type countingProxy struct {
	address  string
	accepted atomic.Int64
}

func newCountingProxy(t *testing.T, to string) *countingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &countingProxy{address: l.Addr().String()}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			through, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{from, through}, {through, from}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					from.Close()
					through.Close()
				}()
			}
		}
	}()
	return p
}

// The README's recipes for forward-auth work as they stand, with the real proxies.
func TestForwardAuthRecipes(t *testing.T) {
	proxies := map[string]func(t *testing.T, front, tollgate, backend string) *exec.Cmd{
		"nginx": func(t *testing.T, front, tollgate, backend string) *exec.Cmd {
			snippet := recipe(t, "nginx", "listen 8000", "listen "+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
			dir := t.TempDir()
			config := fmt.Sprintf("daemon off;\nmaster_process off;\npid %[1]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
				"client_body_temp_path %[1]s/b;\nproxy_temp_path %[1]s/p;\nfastcgi_temp_path %[1]s/f;\nuwsgi_temp_path %[1]s/u;\nscgi_temp_path %[1]s/s;\n%[2]s}\n", dir, snippet)
			file := filepath.Join(dir, "nginx.conf")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			return exec.Command("nginx", "-p", dir, "-c", file)
		},
		"caddyfile": func(t *testing.T, front, tollgate, backend string) *exec.Cmd {
			snippet := recipe(t, "caddyfile", ":8000", "http://"+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
			file := filepath.Join(t.TempDir(), "Caddyfile")
			if err := os.WriteFile(file, []byte("{\nadmin off\nauto_https off\n}\n"+snippet), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", file)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			return cmd
		},
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name := range r.Header {
			if strings.Contains(name, "_") {
				w.WriteHeader(500)
			}
		}
		fmt.Fprintf(w, "tenant=%s group=%s user=%s left=%s authorization=%s body=%s", r.Header["X-Tenant-Id"], r.Header["X-User-Group"], r.Header["X-User-Id"], r.Header["X-Tokens-Left"], r.Header.Get("Authorization"), body)
	}))
	defer backend.Close()
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	for name, command := range proxies {
		t.Run(name, func(t *testing.T) {
			port, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			front := fmt.Sprintf("127.0.0.1:%d", port)
			gate := newCountingProxy(t, strings.TrimPrefix(s.url, "http://"))
			cmd := command(t, front, gate.address, strings.TrimPrefix(backend.URL, "http://"))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatalf("the recipes are tested with the real proxies (`make tools` installs them): %v", err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if t.Failed() {
					t.Logf("%s", &out)
				}
			}()
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if c, err := net.Dial("tcp", front); err == nil {
					c.Close()
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the proxy does not listen")
				}
			}
			proxy := &service{url: "http://" + front}
			send := func(status int, pattern, body string, headers ...string) reply {
				t.Helper()
				answer := proxy.do(t, "POST", "/some/path?x=1", body, headers...)
				if answer.status != status || !regexp.MustCompile(pattern).MatchString(answer.body) {
					t.Errorf("got %d %s, want %d %s", answer.status, answer.body, status, pattern)
				}
				return answer
			}
			key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":2`)
			forged := []string{"X-User-Id: root", "X-Tokens-Left: 999", "X-Tenant-Id: evil", "X-User-Group: evil", "X_User_Id: root"}
			send(200, `^tenant=\[abc\] group=\[stripe_basic\] user=\[u-42\] left=\[1\] authorization= body=hello$`, "hello", bearer(key))
			send(200, `^tenant=\[abc\] group=\[stripe_basic\] user=\[u-42\] left=\[0\] authorization= body=$`, "", append(forged, bearer(key))...)
			send(402, `"error":"Payment Required"`, "", bearer(key))
			refused := send(401, "", "", bearer(someKey))
			refused.wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
			send(401, "", "")
			send(401, "", "", forged...)
			// An anonymous user has no ID, whatever the client says.
			anonymous := s.login(t, "abc")
			send(200, `^tenant=\[abc\] group=\[anonymous\] user=\[\]  ?left=\[99\]`, "", append(forged, bearer(anonymous))...)
			for range 9 { // the rest of the group's rate
				send(200, "", "", bearer(anonymous))
			}
			limited := send(429, `"error":"Too Many Requests"`, "", bearer(anonymous))
			if limited.header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			// nginx does not connect anew for each check. (Caddy does where it does not hand on the answer.)
			if n := gate.accepted.Load(); name == "nginx" && n > 3 {
				t.Errorf("%d connections to tollgate for some 20 checks", n)
			}
		})
	}
}

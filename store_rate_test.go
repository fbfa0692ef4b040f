package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

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
	waittest.Eventually(t, 10*time.Second, func() error { // Redis has the scripts of that, too
		if len(r.Keys(t, "{tenant:"+id+":config}:usage:*:users")) == 0 {
			return errors.New("the usage of users is not written")
		}
		return nil
	})
	for _, leaves := range []bool{false, true} {
		want := "evalsha=1 hincrby=1 hmget=1 lindex=2 llen=1 pexpire=1 rpush=1 time=1"
		if leaves {
			want = "evalsha=1 hincrby=1 hmget=1 lindex=3 llen=1 ltrim=1 pexpire=1 rpush=1 time=1"
		}
		waittest.Eventually(t, 10*time.Second, func() error { // a script in the background may come between
			if leaves {
				r.Do(t, "LPUSH", log, in(-101*time.Second).UnixMicro())
			}
			got := called(t, r, func() { s.consume(t, id, key, "").want(t, 200, "") })
			if got != want {
				if !strings.Contains(got, "evalsha=1 ") {
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

// A key whose group the config no longer has is refused: to remove a group must not lift its limit. That is so in
// configs whose groups a charge sends, and in those that have too many.
func TestRemovedGroup(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	var more strings.Builder
	for i := range 300 {
		fmt.Fprintf(&more, `,"group number %d":{"tokens":1}`, i)
	}
	for _, test := range []struct{ name, others string }{{"few groups", ""}, {"many groups", more.String()}} {
		t.Run(test.name, func(t *testing.T) {
			const group = `"free":{"tokens":100,"rate_limit":3,"rate_limit_window":1000},`
			with, without := `{"user_groups":{`+group+`"pro":{}`+test.others+`}}`, `{"user_groups":{"pro":{}`+test.others+`}}`
			id := newTenantIn(t, r, with)
			key := s.issue(t, id, `"userId":"u","group":"free"`)
			s.consume(t, id, key, `{"tokens":10}`, retryKey+"before").want(t, 200, `{"tokensLeft":90}`)
			s.putConfig(t, id, without).want(t, 200, "")
			for range 5 {
				s.consume(t, id, key, "").want(t, 403, `{"error":"Group is disabled"}`)
				s.consume(t, id, key, "", retryKey+"k").want(t, 403, `{"error":"Group is disabled"}`)
				s.do(t, "GET", "/"+id+"/auth/verify?tokens=1", "", bearer(key)).want(t, 403, `{"error":"Group is disabled"}`)
			}
			got := s.consume(t, id, key, `{"tokens":10}`, retryKey+"before")
			got.want(t, 200, `{"tokensLeft":90}`)
			got.wantHeader(t, "Idempotent-Replayed", "true")
			shown := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
			shown.want(t, 200, "")
			if group, left := shown.text(t, "group"), tokensLeftIn(t, r, key); group != "free" || left != 90 {
				t.Errorf("its group is %s, %d tokens are left", group, left)
			}
			if n := s.sample(t, `charges_refused_total{tenant="`+id+`",reason="group"}`); n != 15 {
				t.Errorf("%v refusals are counted, want 15", n)
			}
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"pro"}`).want(t, 200, "")
			s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":89}`)
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"free"}`).want(t, 400, "")
			s.putConfig(t, id, with).want(t, 200, "")
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"free"}`).want(t, 200, "")
			s.wantRate(t, id, key, 1, 0)
			s.consume(t, id, key, "").want(t, 429, "")
		})
	}
	// Names that no config may have: a key straight in Redis may be in such a group.
	for _, group := range []string{"", strings.Repeat("g", 64) + "x", "a\xfe1 1\xffb"} {
		t.Run(fmt.Sprintf("the group %.9q", group), func(t *testing.T) {
			id := newTenantIn(t, r, `{"user_groups":{"`+strings.Repeat("g", 64)+`":{},"a":{},"b":{}`+more.String()+`}}`)
			// hmget runs once each time that the charge's script runs.
			runs := func() int { return redistest.Calls(r.String(t, "INFO", "commandstats"), "hmget") }
			waittest.Eventually(t, 10*time.Second, func() error { // a busy machine may repeat it
				key := s.issue(t, id, `"userId":"u","group":"a","tokens":5`)
				r.Do(t, "HSET", "apiKey:"+key, "group", group)
				before := runs()
				s.consume(t, id, key, "").want(t, 403, `{"error":"Group is disabled"}`)
				if n := runs() - before; n != 2 {
					return fmt.Errorf("the script ran %d times, want 2: with the group anonymous, then with the key's", n)
				}
				return nil
			})
		})
	}
}

// Charges in a config with very many groups send and scan no more than those with few. Nor does a name of a group, or
// anything else that a tenant chooses, make a command large.
func TestCommandSize(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	members := []string{`"anonymous":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}`}
	for i := range 17_000 {
		members = append(members, fmt.Sprintf(`"%d":{"rate_limit":100000,"rate_limit_window":60}`, i))
	}
	medium := []string{`"anonymous":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}`}
	for i := range 55 { // just below what is sent as a whole
		medium = append(medium, fmt.Sprintf(`"%s%02d":{"tokens":1}`, strings.Repeat("g", maxGroupBytes-2), i))
	}
	for _, test := range []struct {
		name    string
		members []string
	}{{"17,000 groups", members}, {"55 long names", medium}} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenantIn(t, r, `{"user_groups":{`+strings.Join(test.members, ",")+`}}`)
			waittest.Eventually(t, 10*time.Second, func() error { // until the config is parsed, which takes the race detector long
				return s.admin(t, "GET", "/"+id+"/admin/config", "").is(200)
			})
			anonymous := s.login(t, id)
			last := strings.Split(test.members[len(test.members)-1], `"`)[1]
			other := s.issue(t, id, `"userId":"u","tokens":1000,"group":"`+last+`"`)
			s.consume(t, id, other, "").want(t, 200, "")
			bytes := func() (n int) {
				fmt.Sscan(redistest.Field(r.String(t, "INFO", "stats"), "total_net_input_bytes"), &n)
				return n
			}
			before := bytes()
			const charges = 100
			long := retryKey + strings.Repeat("k", 250)
			for i := range charges / 2 {
				s.consume(t, id, anonymous, "", fmt.Sprint(long, i)).want(t, 200, "")
				s.consume(t, id, other, "", fmt.Sprint(long, i)).want(t, 200, "")
			}
			if n := (bytes() - before) / charges; n > 8<<10 {
				t.Errorf("a charge sends %d bytes", n)
			}
		})
	}
}

// Entries of a rate log that are later than now, since a server with a faster clock wrote them, count as of now: the
// limit recovers after one window.
func TestRateLogFromTheFuture(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const hour = time.Hour
	for _, test := range []struct {
		name string
		ages []time.Duration
	}{
		{"all", []time.Duration{-hour, -hour, -hour}},
		{"the newest", []time.Duration{time.Second, -hour, -hour}},
		{"the oldest", []time.Duration{-hour, 200 * time.Millisecond, 100 * time.Millisecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id := limitedTenant(t, 3, 2)
			key := s.login(t, id)
			rateLog(t, key, test.ages...)
			testRedis.Do(t, "EXPIRE", "{apiKey:"+key+"}:rate", 3600)
			refused := s.consume(t, id, key, "")
			free := in(2 * time.Second) // what counts as of now has left the window
			refused.want(t, 429, "")
			if after := seconds(t, refused, "Retry-After"); after < 1 || after > 2 {
				t.Errorf("Retry-After is %d", after)
			}
			if ttl := testRedis.Int(t, "PTTL", "{apiKey:"+key+"}:rate"); ttl > 3000 {
				t.Errorf("the log lives for %d ms", ttl)
			}
			time.Sleep(time.Until(free) + time.Millisecond) // Redis's clock is another
			s.wantRate(t, id, key, 2, 1, 0)
			s.consume(t, id, key, "").want(t, 429, "")
		})
	}
	t.Run("very many", func(t *testing.T) {
		t.Parallel()
		id := limitedTenant(t, 100_000, 1000)
		key := s.login(t, id)
		later := make([]time.Duration, 5000)
		for i := range later {
			later[i] = -hour - time.Duration(i)
		}
		rateLog(t, key, later...)
		s.wantRate(t, id, key, 100_000-5001, 100_000-5002)
		newest, _ := redis.Int64(testRedis.Do(t, "LINDEX", "{apiKey:"+key+"}:rate", -1), nil)
		if late := time.UnixMicro(newest); time.Until(late) > time.Second {
			t.Errorf("the newest entry is of %s", late)
		}
	})
}

package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

const refillConfig = `{"user_groups":{"anonymous":{"tokens":10,"refill":{"tokens":100,"every":3600}},
	"plain":{"tokens":10},"limited":{"tokens":10,"rate_limit":100,"rate_limit_window":60,"refill":{"tokens":100,"every":3600}}}}`

// age makes a key that much older than it is.
func age(t *testing.T, key string, by time.Duration) (createdAt time.Time) {
	t.Helper()
	name := "apiKey:" + key
	createdAt, err := time.Parse(timeLayout, testRedis.String(t, "HGET", name, "createdAt"))
	if err != nil {
		t.Fatal(err)
	}
	createdAt = createdAt.Add(-by)
	testRedis.Do(t, "HSET", name, "createdAt", createdAt.Format(timeLayout))
	return createdAt
}

// wantRefillsAt checks when a key says that it is refilled next.
func (got reply) wantRefillsAt(t *testing.T, want time.Time) {
	t.Helper()
	if at := got.text(t, "refillsAt"); at != want.Format(timeLayout) {
		t.Errorf("refillsAt is %s, want %s", at, want.Format(timeLayout))
	}
}

// Whichever step finds a refill due does it.
func TestRefill(t *testing.T) {
	t.Parallel()
	s := newService(t)
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf(`"group %d":{"refill":{"tokens":1,"every":60}}`, i)
	}
	tenants := map[string]string{
		"few groups":  newTenantIn(t, testRedis, refillConfig),
		"many groups": newTenantIn(t, testRedis, strings.TrimSuffix(refillConfig, "}}")+","+strings.Join(many, ",")+"}}"),
	}
	for _, test := range []struct {
		name, method, path, body string
		admin                    bool
		left                     int
	}{
		{"a look", "GET", "/auth/key", "", false, 100},
		{"an admin's look", "GET", "/admin/keys/KEY", "", true, 100},
		{"a charge", "POST", "/tokens/consume", `{"tokens":30}`, false, 70},
		{"a charge of up to", "POST", "/tokens/consume", `{"tokens":300,"upTo":true}`, false, 0},
		{"a charge that is refused", "POST", "/tokens/consume", `{"tokens":101}`, false, 100},
		{"a check", "GET", "/auth/verify?tokens=1", "", false, 99},
		{"a hold", "POST", "/tokens/holds", `{"tokens":40}`, false, 60},
		{"a hold that is refused", "POST", "/tokens/holds", `{"tokens":101}`, false, 100},
		{"an admin's change", "PATCH", "/admin/keys/KEY", `{"addTokens":5}`, true, 105},
		{"an admin's balance", "PATCH", "/admin/keys/KEY", `{"tokens":5}`, true, 5},
	} {
		for name, tenant := range tenants {
			for _, group := range []string{"anonymous", "limited"} {
				t.Run(test.name+" in the group "+group+" of "+name, func(t *testing.T) {
					s.testRefill(t, tenant, group, func(key string) {
						path := "/" + tenant + strings.Replace(test.path, "KEY", key, 1)
						token := map[bool]string{false: key, true: testAdminToken}[test.admin]
						s.do(t, test.method, path, test.body, bearer(token))
					}, test.left)
				})
			}
		}
	}
}

// testRefill lets send make a request for a key of that group when a refill is due, which leaves left tokens.
func (s *service) testRefill(t *testing.T, tenant, group string, send func(key string), left int) {
	t.Helper()
	key := s.issue(t, tenant, `"userId":"u","group":"`+group+`"`)
	testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", 0)
	created := age(t, key, 59*time.Minute)
	s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key)).wantRefillsAt(t, created.Add(time.Hour))
	if n := tokensLeft(t, key); n != 0 {
		t.Fatalf("%d tokens are left before it is due", n)
	}
	created = age(t, key, 2*time.Hour)
	send(key)
	if n := tokensLeft(t, key); n != left {
		t.Errorf("%d tokens are left, want %d", n, left)
	}
	testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", 1)
	got := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key))
	if n := got.field(t, "tokensLeft"); n != 1.0 {
		t.Errorf("%v tokens are left: it was refilled twice", n)
	}
	got.wantRefillsAt(t, created.Add(3*time.Hour))
}

func TestRefillRules(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantIn(t, testRedis, refillConfig)
	show := func(t *testing.T, key string) reply {
		t.Helper()
		got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		got.want(t, 200, "")
		return got
	}
	t.Run("a balance that is higher stays", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":500`)
		age(t, key, 90*time.Minute)
		s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":499}`)
		s.consume(t, id, key, `{"tokens":450}`).want(t, 200, `{"tokensLeft":49}`) // the refill of this hour is over
	})
	t.Run("a group without has none", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"plain"`)
		age(t, key, 90*time.Minute)
		if got := show(t, key); strings.Contains(got.body, "refill") || got.field(t, "tokensLeft") != 10.0 {
			t.Errorf("got %s", got.body)
		}
		got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"limited"}`)
		if got.field(t, "tokensLeft") != 100.0 || got.text(t, "refillsAt") == "" {
			t.Errorf("in a group with a refill: got %s", got.body)
		}
		if n := testRedis.Int(t, "HEXISTS", "apiKey:"+key, "refilledAt"); n != 1 {
			t.Error("it is not remembered")
		}
	})
	t.Run("what holds give back repays it", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":80`)
		hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":70}`, bearer(key)).text(t, "holdId")
		age(t, key, 90*time.Minute)
		if got := show(t, key); got.field(t, "tokensLeft") != 100.0 || got.field(t, "tokensHeld") != 70.0 {
			t.Errorf("got %s, want 100 tokens and 70 held", got.body)
		}
		s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "")
		if left := tokensLeft(t, key); left != 100 {
			t.Errorf("%d tokens are left, want 100", left)
		}
	})
	t.Run("a replay shows what it showed", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"anonymous"`)
		path := "/" + id + "/admin/keys/" + key
		first := s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"1")
		s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":10}`)
		s.admin(t, "PATCH", path, `{"addTokens":1}`, retryKey+"1").want(t, 200, strings.TrimSpace(first.body))
	})
	t.Run("its group is gone", func(t *testing.T) {
		tenant := newTenantIn(t, testRedis, refillConfig)
		key := s.issue(t, tenant, `"userId":"u","group":"limited"`)
		age(t, key, 90*time.Minute)
		s.putConfig(t, tenant, `{"user_groups":{"anonymous":{"refill":{"tokens":1,"every":60}}}}`).want(t, 200, "")
		if got := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key)); got.field(t, "tokensLeft") != 10.0 {
			t.Errorf("got %s", got.body)
		}
		s.consume(t, tenant, key, "").wantError(t, 403, "Group is disabled")
	})
}

// A period begins at the creation of the key, in whatever form Redis has its time.
func TestRefillTimes(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantIn(t, testRedis, refillConfig)
	for _, created := range []string{
		"2024-02-29T23:59:59.999Z", "2000-03-01T00:00:00Z", "1999-12-31T23:00:00.5+05:30", "2026-01-01T00:00:00.000-08:00",
		"1970-01-01T00:00:00.000Z",
	} {
		key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":0`)
		testRedis.Do(t, "HSET", "apiKey:"+key, "createdAt", created)
		at, err := time.Parse(time.RFC3339, created)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		got.wantRefillsAt(t, at.UTC().Add((now.Sub(at)/time.Hour+1)*time.Hour))
		// Redis agrees on when the period began: a refill at its very beginning is the last one, before it is due again.
		begin := at.Add(now.Sub(at) / time.Hour * time.Hour).UnixMilli()
		for offset, want := range map[int64]float64{0: 0, -1: 100} {
			testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", 0, "refilledAt", begin+offset)
			if got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)); got.field(t, "tokensLeft") != want {
				t.Errorf("created %s, refilled at the beginning %+d ms: got %s, want %v", created, offset, got.body, want)
			}
		}
	}
}

// Periods of the calendar begin at 00:00 UTC: of the day, or of the first day of a month.
func TestNextRefill(t *testing.T) {
	for _, test := range []struct{ calendar, created, last, want string }{
		{"day", "2024-02-28T23:59:59.999Z", "", "2024-02-29T00:00:00Z"},
		{"day", "2023-02-28T00:00:00Z", "", "2023-03-01T00:00:00Z"},
		{"day", "2024-02-28T00:00:00Z", "2024-12-31T12:00:00Z", "2025-01-01T00:00:00Z"},
		{"day", "2026-03-29T00:30:00+02:00", "", "2026-03-29T00:00:00Z"}, // 28 March in UTC
		{"month", "2024-01-31T10:00:00Z", "", "2024-02-01T00:00:00Z"},
		{"month", "2024-01-31T10:00:00Z", "2024-02-29T23:59:59.999Z", "2024-03-01T00:00:00Z"},
		{"month", "2023-02-01T00:00:00Z", "", "2023-03-01T00:00:00Z"},
		{"month", "2023-12-01T00:00:00Z", "2023-12-31T00:00:00Z", "2024-01-01T00:00:00Z"},
		{"month", "2026-01-01T01:00:00+03:00", "", "2026-01-01T00:00:00Z"},
		{"month", "2026-05-09T00:00:00Z", "2026-04-01T00:00:00Z", "2026-06-01T00:00:00Z"}, // refilled before it was created
		{"", "2024-02-29T23:00:00Z", "", "2024-03-01T00:00:00Z"},
	} {
		created, err := time.Parse(time.RFC3339, test.created)
		if err != nil {
			t.Fatal(err)
		}
		last, _ := time.Parse(time.RFC3339, test.last)
		r := refill{tokens: 1, seconds: 3600, calendar: test.calendar}
		if got := r.next(created, last).UTC().Format(time.RFC3339Nano); got != test.want {
			t.Errorf("%+v: got %s", test, got)
		}
	}
}

// The scripts compute the same as refill.next, over the years from 1970 to 2199.
func TestNextRefillInLua(t *testing.T) {
	script := luaSource("balance", "refill") + `
		local all = {}
		for i = 1, #ARGV, 3 do
			all[#all + 1] = string.format('%.0f', nextRefill(tonumber(ARGV[i]), tonumber(ARGV[i + 1]), ARGV[i + 2]))
		end
		return all`
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	var instants []time.Time
	for year := 1970; year < 2200; year++ { // the ends of all months, and of 28 February
		for month := time.January; month <= time.December; month++ {
			instants = append(instants, time.Date(year, month, 1, 0, 0, 0, 0, time.UTC))
		}
		instants = append(instants, time.Date(year, time.February, 29, 0, 0, 0, 0, time.UTC))
	}
	end := instants[len(instants)-1].UnixMilli()
	for i := range instants {
		instants = append(instants, instants[i].Add(-time.Millisecond), time.UnixMilli(random.Int64N(end)))
	}
	args := []any{script, 0}
	var want []string
	for _, last := range instants {
		created := instants[random.IntN(len(instants))]
		r := refill{tokens: 1, seconds: 60 + random.Int64N(maxRefillPeriod), calendar: []string{"", "day", "month"}[random.IntN(3)]}
		args = append(args, max(created.UnixMilli(), 0), max(last.UnixMilli(), 0), r.every())
		next := r.next(time.UnixMilli(max(created.UnixMilli(), 0)), time.UnixMilli(max(last.UnixMilli(), 0)))
		want = append(want, strconv.FormatInt(next.UnixMilli(), 10))
	}
	got, err := redis.Strings(testRedis.Do(t, "EVAL", args...), nil)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d of %d, %v", len(got), len(want), err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("seed %d: %v: Redis has %s, want %s", seed, args[2+3*i:5+3*i], got[i], want[i])
		}
	}
}

// A refill by the calendar is done once in its period, which keys show.
func TestCalendarRefills(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for calendar, period := range map[string]time.Duration{"day": 24 * time.Hour, "month": 31 * 24 * time.Hour} {
		id := newTenantIn(t, testRedis,
			`{"user_groups":{"g":{"tokens":10,"refill":{"tokens":100,"every":"`+calendar+`"},"rate_limit":9,"rate_limit_window":9}}}`)
		key := s.issue(t, id, `"userId":"u","group":"g"`)
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).wantLeft(t, 10)
		age(t, key, period)
		got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		got.wantLeft(t, 100)
		r := refill{calendar: calendar}
		now := time.Now()
		got.wantRefillsAt(t, r.next(now, now))
		s.consume(t, id, key, `{"tokens":40}`).want(t, 200, `{"tokensLeft":60}`)
		hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":50}`, bearer(key)).text(t, "holdId")
		begin := time.Date(now.UTC().Year(), now.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
		if calendar == "day" {
			begin = now.UTC().Truncate(24 * time.Hour)
		}
		testRedis.Do(t, "HSET", "apiKey:"+key, "refilledAt", begin.UnixMilli()-1)
		s.consume(t, id, key, `{"tokens":1}`).want(t, 200, `{"tokensLeft":99}`)
		s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "") // which repays the refill
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).wantLeft(t, 99)
	}
}

// However many requests find a refill due, it is done once.
func TestRacingRefills(t *testing.T) {
	services, id := newServices(t), newTenantIn(t, testRedis, refillConfig)
	key := services[0].issue(t, id, `"userId":"u","group":"anonymous","tokens":7`)
	age(t, key, 90*time.Minute)
	all := load{
		services: services, clients: 32, requests: 10, statuses: []int{200, 402},
		request: func(int, int) request { return consumeRequest(id, key, 3) },
	}.run(t)
	if charged, left := all.of("", 200).sum(), tokensLeft(t, key); charged != 99 || left != 1 {
		t.Errorf("%d were charged and %d are left of 100", charged, left)
	}
}

func TestRefillConfig(t *testing.T) {
	for refill, problem := range map[string]string{
		`{"tokens":1,"every":60}`:                "",
		`{"tokens":9007199254740991,"every":60}`: "",
		`{"tokens":1,"every":31622400}`:          "",
		`{"tokens":0,"every":60}`:                ".tokens must be a whole number ≥ 1",
		`{"tokens":1,"every":59}`:                ".every must be a whole number of seconds from 60 to 31622400",
		`{"tokens":1,"every":31622401}`:          ".every must be a whole number of seconds from 60 to 31622400",
		`{"tokens":1,"every":"day"}`:             "",
		`{"tokens":1,"every":"month"}`:           "",
		`{"tokens":1,"every":"week"}`:            `.every must be "day", "month" or a number of seconds`,
		`{"tokens":1,"every":"3600"}`:            `.every must be "day", "month" or a number of seconds`,
		`{"tokens":1,"every":true}`:              ".every must be a whole number of seconds from 60 to 31622400",
		`{"tokens":1}`:                           ".every is missing",
		`{"every":60}`:                           ".tokens is missing",
		`7`:                                      " must be an object",
	} {
		_, err := parseConfig([]byte(`{"user_groups":{"g":{"refill":` + refill + `}}}`))
		got := ""
		if err != nil {
			got = strings.TrimPrefix(err.Error(), "Invalid config: user_groups.g.refill")
		}
		if got != problem {
			t.Errorf("%s: got %q, want %q", refill, got, problem)
		}
	}
}

// What a refill gives does not depend on who looks, is refused or holds while a hold is open, nor on the order in which
// holds end.
func TestRefillWhileHoldsAreOpen(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":100,"refill":{"tokens":100,"every":3600}}}}`)
	for name, look := range map[string]func(key string){
		"nothing":          func(string) {},
		"a look":           func(key string) { s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "") },
		"an admin's look":  func(key string) { s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").want(t, 200, "") },
		"a refused charge": func(key string) { s.consume(t, id, key, `{"tokens":101}`).want(t, 402, "") },
		"a refused hold": func(key string) {
			s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":101}`, bearer(key)).want(t, 402, "")
		},
		"a rotation":              func(key string) { s.rotate(t, id, key) },
		"a change by an admin":    func(key string) { s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":0}`).want(t, 200, "") },
		"a list of the user's":    func(key string) { s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", "").want(t, 200, "") },
		"the end of another hold": func(key string) { s.endedHold(t, id, key) },
	} {
		for used, left := range map[int]int{0: 100, 60: 100, 100: 100, 150: 50} {
			key := s.issue(t, id, `"userId":"u","group":"g"`)
			hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":100}`, bearer(key)).text(t, "holdId")
			age(t, key, 90*time.Minute)
			look(key)
			if name == "a rotation" {
				key = testRedis.String(t, "GET", "{apiKey:"+key+"}:current")
			}
			got := s.do(t, "POST", "/"+id+"/tokens/holds/"+hold+"/settle", fmt.Sprintf(`{"tokens":%d}`, used), bearer(key))
			got.want(t, 200, fmt.Sprintf(`{"charged":%d,"tokensLeft":%d}`, used, left))
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).wantLeft(t, left)
			if t.Failed() {
				t.Fatalf("%s, %d used", name, used)
			}
		}
	}
	t.Run("in whatever order holds end", func(t *testing.T) {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
			key := s.issue(t, id, `"userId":"u","group":"g","tokens":150`)
			var holds []string
			hold := func(tokens int) {
				got := s.do(t, "POST", "/"+id+"/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, tokens), bearer(key))
				holds = append(holds, got.text(t, "holdId"))
			}
			hold(60)
			hold(60)
			age(t, key, 90*time.Minute)
			hold(50) // of 100, of which 70 are in place of what the others hold
			for _, i := range order {
				used := []int{60, 10, 20}[i]
				s.do(t, "POST", "/"+id+"/tokens/holds/"+holds[i]+"/settle", fmt.Sprintf(`{"tokens":%d}`, used), bearer(key)).want(t, 200, "")
			}
			// As if the two had ended before the refill: 80 are left of 150, which becomes 100, and 20 are spent.
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).wantLeft(t, 80)
		}
	})
}

// wantLeft checks the balance that a response has.
func (got reply) wantLeft(t *testing.T, tokens int) {
	t.Helper()
	if got.field(t, "tokensLeft") != float64(tokens) {
		t.Errorf("got %s, want %d tokens", got.body, tokens)
	}
}

// endedHold opens and cancels a hold.
func (s *service) endedHold(t *testing.T, tenant, key string) {
	t.Helper()
	hold := s.do(t, "POST", "/"+tenant+"/tokens/holds", `{"tokens":1}`, bearer(key)).text(t, "holdId")
	s.do(t, "DELETE", "/"+tenant+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "")
}

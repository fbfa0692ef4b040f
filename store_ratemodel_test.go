package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
	"tollgate/internal/telemetrytest"
)

// rateModel is what a rate limit does, said simply: the ages in seconds of the requests in its log, oldest first.
type rateModel struct {
	ages    []int
	expires int // the seconds after which the log may be gone
}

// pass lets seconds pass, or sets Redis's clock back.
func (m *rateModel) pass(seconds int) {
	for i := range m.ages {
		m.ages[i] += seconds
	}
	if m.expires -= seconds; m.expires <= 0 {
		m.ages = nil
	}
}

// request makes a request at once, which is not counted if it is poor.
func (m *rateModel) request(limit, window int, poor bool) (accepted bool, remaining, wait int) {
	for i, age := range m.ages {
		if age < 0 {
			m.ages[i] = 0
			m.expires = window
		}
	}
	m.ages = slices.DeleteFunc(m.ages, func(age int) bool { return age >= window })
	if accepted = len(m.ages) < limit && !poor; accepted {
		m.ages, m.expires = append(m.ages, 0), window
	} else if n := len(m.ages); n >= limit && n > 0 {
		m.expires = max(m.expires, window-m.ages[n-1])
	}
	used := len(m.ages)
	switch {
	case limit == 0:
		wait = window
	case used > 0:
		wait = window - m.ages[max(used-limit, 0)]
	}
	return accepted, max(limit-used, 0), wait
}

// rateTrial is one API key, whose log in Redis is compared with the model.
type rateTrial struct {
	store  *store
	tenant string
	key    string
	log    string // its log in Redis
	began  time.Time
	model  rateModel
	past   []string
}

// pass makes the log in Redis older, as if that time had passed.
func (trial *rateTrial) pass(t *testing.T, seconds int) {
	t.Helper()
	trial.past = append(trial.past, fmt.Sprintf("%d s pass", seconds))
	trial.model.pass(seconds)
	entries, err := redis.Int64s(testRedis.Do(t, "LRANGE", trial.log, 0, -1), nil)
	if err != nil {
		t.Fatal(err)
	}
	ttl := testRedis.Int(t, "PTTL", trial.log) - 1000*seconds
	testRedis.Do(t, "DEL", trial.log)
	if len(entries) == 0 || ttl <= 0 {
		return
	}
	log := []any{trial.log}
	for _, entry := range entries {
		log = append(log, entry-1_000_000*int64(seconds))
	}
	testRedis.Do(t, "RPUSH", log...)
	testRedis.Do(t, "PEXPIRE", trial.log, ttl)
}

// request charges or holds, and says how the reply differs from the model.
func (trial *rateTrial) request(t *testing.T, limit, window int, hold, poor bool) error {
	t.Helper()
	trial.past = append(trial.past, fmt.Sprintf("request(%d in %d s, hold %t, poor %t)", limit, window, hold, poor))
	groups, tokens := fmt.Sprintf("\xffanonymous\xfe%d %d", limit, window), 1
	if poor {
		tokens = 1_000_000
	}
	accepted, numbers := "charged", 2
	keys, args := []string{apiKeyRedisKey(trial.key), trial.log}, []any{trial.tenant, "", tokens, groups}
	script := growingChargeScript
	if hold {
		accepted, numbers, script = "held", 3, holdScript
		keys = append(keys, holdsRedisKey(trial.key))
		id := fmt.Sprintf("lease_%d", len(trial.past))
		args = []any{trial.tenant, "", tokens, tokens, id, 600_000, groups, trial.key, "", ""}
	}
	reply, err := redis.String(trial.store.redis.Eval(in(publicTimeout), script.own, keys, args...))
	if err != nil {
		t.Fatal(err)
	}
	head, identity, _ := strings.Cut(reply, "\n")
	outcome, _, d, err := parseDecision(head, identity, numbers)
	if err != nil || d.rate == nil {
		t.Fatalf("got %q: %v", reply, err)
	}
	ok, remaining, wait := trial.model.request(limit, window, poor)
	want := rateLimitState{int64(limit), int64(window), int64(remaining), int64(wait)}
	if *d.rate != want || ok != (outcome == accepted) {
		return fmt.Errorf("got %s and %+v, want accepted=%t and %+v", outcome, *d.rate, ok, want)
	}
	return nil
}

// compare says how the log in Redis differs from the model.
func (trial *rateTrial) compare(t *testing.T) error {
	t.Helper()
	entries, err := redis.Int64s(testRedis.Do(t, "LRANGE", trial.log, 0, -1), nil)
	if err != nil {
		t.Fatal(err)
	}
	var ages []int
	for _, entry := range entries {
		ages = append(ages, int((trial.began.UnixMicro()-entry+1_000_000-1)/1_000_000))
	}
	if !slices.Equal(ages, trial.model.ages) || !slices.IsSorted(entries) {
		return fmt.Errorf("the log is %v, want %v", ages, trial.model.ages)
	}
	ttl, most := testRedis.Int(t, "PTTL", trial.log), 1000*trial.model.expires
	if len(ages) > 0 && (ttl > most+5 || ttl < most-1000) {
		return fmt.Errorf("the log lives for %d ms, want %d", ttl, most)
	}
	return nil
}

// Whatever the limits and windows are meanwhile, and however the clock goes, charges and holds are limited as the model
// says.
func TestRateLimitModel(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 1)
	url, err := redisdb.ParseURL(testRedis.URL())
	if err != nil {
		t.Fatal(err)
	}
	st, closeStore, err := openStore(context.Background(), &settings{redisURL: url}, new(telemetrytest.Log).Logger())
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore()
	for range 100 {
		trial := rateTrial{store: st, tenant: tenant, key: s.issue(t, tenant, `"userId":"u","group":"anonymous","tokens":1000`)}
		trial.log, trial.began = rateRedisKey(trial.key), time.Now()
		limit, window := rand.IntN(6), 1+rand.IntN(8)
		for range 30 {
			switch rand.IntN(8) {
			case 0:
				limit = rand.IntN(6)
			case 1:
				window = 1 + rand.IntN(8)
			case 2, 3:
				trial.pass(t, rand.IntN(4))
			case 4:
				trial.pass(t, -rand.IntN(4))
			}
			err := cmp.Or(trial.request(t, limit, window, rand.IntN(4) == 0, rand.IntN(5) == 0), trial.compare(t))
			if time.Since(trial.began) > 800*time.Millisecond {
				break // the model does not know the time that really passes
			}
			if err != nil {
				t.Fatalf("%v after\n%s", err, strings.Join(trial.past, "\n"))
			}
		}
	}
}

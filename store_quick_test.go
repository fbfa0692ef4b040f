package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
)

// The quick forms of hold.lua and settle.lua.

const quickConfig = `{"user_groups":{
	"plain":{"tokens":100},
	"limited":{"tokens":100,"rate_limit":12,"rate_limit_window":600},
	"concurrent":{"tokens":100,"max_concurrent":2},
	"both":{"tokens":100,"rate_limit":12,"rate_limit_window":600,"max_concurrent":3},
	"restricted":{"tokens":100,"models":["m"]}}}`

// fullTenant returns t as if one of its groups had a refill: then no quick form is used.
func fullTenant(t *tenant) *tenant {
	full, config := *t, *t.config
	config.encoded.refilled = true
	full.config = &config
	return &full
}

// A quickPair is two API keys to which the same happens, of which only the first is used with the quick forms.
type quickPair struct {
	*testing.T
	random  *rand.Rand
	conn    redis.Conn // to Redis, as its administrator
	isRich  bool       // the keys have more tokens than the quick forms hold
	store   *store
	tenants [2]*tenant
	keys    [2]string
	names   [2][]string // that the keys have had
	holders [2]map[string]*holder
	ids     []string // of holds, also of those that have ended or were refused
	steps   []string
}

func newQuickPair(t *testing.T, seed uint64) *quickPair {
	balances := []int64{200, 200, 99_999_999_999_950, maxAmount} // Lua itself writes the last as 9.007…e+15
	p := &quickPair{T: t, random: rand.New(rand.NewPCG(seed, 1)), store: newTestStore(t, testRedis)}
	var err error
	if p.conn, err = testRedis.Dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	balance := balances[seed/3%uint64(len(balances))]
	p.isRich = balance > 1e13
	id := newTenantIn(t, testRedis, quickConfig)
	if seed%4 == 3 {
		testRedis.Do(t, "SET", generationRedisKey(id), 2)
	}
	p.tenants[0] = p.store.wantTenant(t, id)
	p.tenants[1] = fullTenant(p.tenants[0])
	for side := range p.keys {
		p.keys[side], _ = newCredential(userKeyPrefix)
		p.names[side] = []string{p.keys[side]}
		p.holders[side] = make(map[string]*holder)
		p.redis("HSET", p.name(side), "tenantId", p.tenants[0].id, "group", "plain", "userId", "u",
			"createdAt", "2026-01-01T00:00:00.000Z", "tokensLeft", balance)
		if p.tenants[0].generation != "" {
			p.redis("HSET", p.name(side), "generation", p.tenants[0].generation)
		}
		if seed%2 == 0 {
			p.redis("PEXPIREAT", p.name(side), in(24*time.Hour).UnixMilli())
		}
	}
	return p
}

func (p *quickPair) name(side int) string      { return apiKeyRedisKey(p.keys[side]) }
func (p *quickPair) holdsName(side int) string { return holdsRedisKey(p.keys[side]) }

func (p *quickPair) redis(command string, args ...any) any {
	p.Helper()
	reply, err := p.conn.Do(command, args...)
	if err != nil {
		p.Fatalf("%s: %v", command, err)
	}
	return reply
}

var (
	unixMilli  = regexp.MustCompile(`\b[12]\d{12}\b`)
	scriptName = regexp.MustCompile(` script: \w+, on \S+`)
)

// state returns what Redis has of a key, with T in place of each time, and these times.
func (p *quickPair) state(side int) (text string, times []int64) {
	var lines []string
	for _, name := range []string{p.name(side), p.holdsName(side)} {
		fields, err := redis.StringMap(p.redis("HGETALL", name), nil)
		if err != nil {
			p.Fatal(err)
		}
		for field, value := range fields {
			lines = append(lines, fmt.Sprintf("%t %s = %q", name == p.name(side), field, value))
		}
		lines = append(lines, fmt.Sprint("expires ", p.redis("PEXPIRETIME", name)))
	}
	lines = append(lines, fmt.Sprint("rate ", p.redis("LLEN", rateRedisKey(p.keys[side]))))
	for _, id := range p.ids {
		name := settledRedisKey(p.names[side][0], id)
		value, _ := redis.String(p.redis("GET", name), nil)
		lines = append(lines, fmt.Sprintf("settled %s %q %v", id, value, p.redis("PEXPIRETIME", name)))
	}
	slices.Sort(lines)
	text = strings.Join(lines, "\n")
	for i, name := range p.names[side] {
		text = strings.ReplaceAll(text, name, fmt.Sprint("name ", i))
	}
	for _, at := range unixMilli.FindAllString(text, -1) {
		n, _ := strconv.ParseInt(at, 10, 64)
		times = append(times, n)
	}
	return unixMilli.ReplaceAllString(text, "T"), times
}

// both does something to both keys, and checks that it leads to the same.
func (p *quickPair) both(step string, do func(side int) string) {
	p.Helper()
	p.steps = append(p.steps, step)
	var got, state [2]string
	var times [2][]int64
	for side := range p.keys {
		got[side] = scriptName.ReplaceAllString(do(side), "")
		state[side], times[side] = p.state(side)
	}
	same := slices.EqualFunc(times[0], times[1], func(a, b int64) bool { return max(a-b, b-a) < 10_000 })
	if got[0] != got[1] || state[0] != state[1] || !same {
		p.Fatalf("after\n%s\nthe replies are\n%s\n%s\nand Redis has\n%s\n%v\n\n%s\n%v", strings.Join(p.steps, "\n"),
			got[0], got[1], state[0], times[0], state[1], times[1])
	}
}

// anyID returns the ID of a hold, most often of one that is open.
func (p *quickPair) anyID() string {
	open, _ := redis.Strings(p.redis("HKEYS", p.holdsName(0)), nil)
	slices.Sort(open)
	if len(open) > 0 && p.random.IntN(4) > 0 {
		return open[p.random.IntN(len(open))]
	}
	if len(p.ids) > 0 && p.random.IntN(8) > 0 {
		return p.ids[p.random.IntN(len(p.ids))]
	}
	id, _ := newCredential(leasePrefix)
	p.ids = append(p.ids, id)
	return id
}

func (p *quickPair) hold() {
	prefixes := []string{leasePrefix, leasePrefix, leasePrefix, leasePrefix, extraPrefix, holdPrefix}
	id, _ := newCredential(prefixes[p.random.IntN(len(prefixes))])
	p.ids = append(p.ids, id)
	most := 1 + p.random.Int64N(120)
	if p.isRich && p.random.IntN(3) == 0 {
		most = []int64{1e13 - 1, 1e13, 1e14 - 1, 1e14, maxAmount}[p.random.IntN(5)]
	}
	h := holdRequest{id: id, most: most, least: 1 + p.random.Int64N(most), ttl: time.Minute,
		half: p.random.IntN(3) == 0, patient: p.random.IntN(3) == 0}
	if p.random.IntN(3) == 0 {
		h.models = []string{[]string{"m", "n"}[p.random.IntN(2)]}
	}
	p.both(fmt.Sprintf("hold %+v", h), func(side int) string {
		h := h
		h.key = p.keys[side]
		result, err := p.store.Hold(in(time.Minute), p.tenants[side], h)
		if result.holder.first != p.names[side][0] && err == nil || result.key != p.keys[side] {
			p.Errorf("the holder is %+v", result.holder)
		}
		p.holders[side][id] = &result.holder
		if err == nil && time.Until(result.expiresAt).Round(10*time.Second) != time.Minute || err == nil && result.id != id {
			p.Errorf("%s is held until %s", result.id, result.expiresAt)
		}
		rate := "no rate"
		if result.rate != nil {
			rate = fmt.Sprint(result.rate.limit, result.rate.window, result.rate.remaining)
		}
		return fmt.Sprintln(result.held, result.tokensLeft, result.group, result.userID, rate, err)
	})
}

func (p *quickPair) settle() {
	r := settleRequest{holdID: p.anyID(), used: p.random.Int64N(150)}
	r.isLease = !strings.HasPrefix(r.holdID, holdPrefix)
	p.both(fmt.Sprintf("settle %+v", r), func(side int) string {
		h := newHolder(p.keys[side])
		if r.isLease {
			h = cmp.Or(p.holders[side][r.holdID], h)
		}
		result, err := p.store.Settle(in(time.Minute), p.tenants[side], h, r)
		if err == nil && result.key != p.keys[side] {
			p.Errorf("it is settled with %s", result.key)
		}
		return fmt.Sprintln(result.charged, result.tokensLeft, result.group, result.replayed, err)
	})
}

func (p *quickPair) renew() {
	id := p.anyID()
	p.both("renew "+id, func(side int) string {
		h := cmp.Or(p.holders[side][id], newHolder(p.keys[side]))
		return fmt.Sprint(p.store.RenewHold(in(time.Minute), p.tenants[side], h, id, 20, 2*time.Minute))
	})
}

func (p *quickPair) charge() {
	n := 1 + p.random.Int64N(30)
	p.both(fmt.Sprint("charge ", n), func(side int) string {
		result, err := p.store.Charge(in(time.Minute), p.tenants[side], chargeRequest{key: p.keys[side], tokens: n})
		return fmt.Sprintln(result.charged, result.tokensLeft, result.group, err)
	})
}

// change is what an admin does.
func (p *quickPair) change() {
	groups := []string{"plain", "plain", "limited", "concurrent", "both", "restricted", "gone"}
	group, tokens, enabled := groups[p.random.IntN(len(groups))], p.random.Int64N(300), p.random.IntN(3) > 0
	ttl := time.Duration(p.random.IntN(2)) * time.Hour
	change := []keyChange{{group: &group}, {group: &group}, {addTokens: &tokens}, {addTokens: &tokens},
		{setTokens: &tokens}, {enabled: &enabled}, {ttl: &ttl}}[p.random.IntN(7)]
	p.both(fmt.Sprint("change ", group, tokens, enabled, ttl), func(side int) string {
		k, _, err := p.store.UpdateKey(in(time.Minute), p.tenants[side], p.keys[side], change, idempotentRequest{})
		return fmt.Sprintln(k.tokensLeft, k.tokensHeld, k.group, err)
	})
}

func (p *quickPair) rotate() {
	p.both("rotate", func(side int) string {
		k, err := p.store.RotateKey(in(time.Minute), p.tenants[side], p.keys[side], 0, idempotentRequest{})
		if err == nil {
			p.keys[side] = k.key
			p.names[side] = append(p.names[side], k.key)
		}
		return fmt.Sprint(err)
	})
}

// expire lets an open hold expire.
func (p *quickPair) expire() {
	id := p.anyID()
	p.both("expire "+id, func(side int) string {
		tokens, _, _ := strings.Cut(testRedis.String(p.T, "HGET", p.holdsName(side), id), " ")
		if tokens != "" {
			p.redis("HSET", p.holdsName(side), id, tokens+" 1")
			p.redis("HSET", p.name(side), "holdsDue", 1)
		}
		return tokens
	})
}

// earlier is what a process of an earlier version does: it takes a hold, or ends one, and keeps up fewer fields.
func (p *quickPair) earlier() {
	id := p.anyID()
	deadline := in(time.Hour).UnixMilli()
	knowsHeld := p.random.IntN(2) == 0
	p.both(fmt.Sprint("an earlier version: ", id, knowsHeld), func(side int) string {
		tokens, _, _ := strings.Cut(testRedis.String(p.T, "HGET", p.holdsName(side), id), " ")
		n, _ := strconv.Atoi(tokens)
		if n > 0 {
			p.redis("HDEL", p.holdsName(side), id)
			p.redis("HDEL", p.name(side), "hold:"+id)
		} else if tokensLeft(p.T, p.keys[side]) >= 7 {
			n = -7
			p.redis("HSET", p.holdsName(side), id, fmt.Sprint("7 ", deadline))
			p.redis("HSETNX", p.name(side), "holdsDue", deadline)
		}
		p.redis("HINCRBY", p.name(side), "tokensLeft", n)
		if knowsHeld {
			p.redis("HINCRBY", p.name(side), "tokensHeld", -n)
		}
		return fmt.Sprint(n)
	})
}

// note makes an open hold one that a visitor has brought, with a debt to repay.
func (p *quickPair) note() {
	id := p.anyID()
	p.both("a visitor's hold: "+id, func(side int) string {
		open := p.redis("HEXISTS", p.holdsName(side), id)
		if open == int64(1) {
			p.redis("HSET", p.name(side), "hold:"+id, "0 d 0 ", "debt:d", "1 30 ")
		}
		return fmt.Sprint(open)
	})
}

// lose deletes the holds, as nobody does.
func (p *quickPair) lose() {
	p.both("no holds", func(side int) string { return fmt.Sprint(p.redis("DEL", p.holdsName(side))) })
}

// spoil makes a field malformed, and puts it right after a few steps.
func (p *quickPair) spoil() {
	fields := []string{"tokensLeft", "holdsDue", "tokensHeld", "leases", "advanced", "userId", "tenantId"}
	field := fields[p.random.IntN(len(fields))]
	values := []string{"x", "", "-1", "1e3", "0x10", "007", "5.0", "9007199254740993", "12345678901234", "1 2", "1 2 3",
		"9 9 9 9", "a\nb"}
	value := values[p.random.IntN(len(values))]
	var before [2]any
	p.both(fmt.Sprintf("%s = %q", field, value), func(side int) string {
		before[side] = p.redis("HGET", p.name(side), field)
		p.redis("HSET", p.name(side), field, value)
		return ""
	})
	for range 1 + p.random.IntN(4) {
		[]func(){p.hold, p.settle}[p.random.IntN(2)]()
	}
	p.both(field+" as it was", func(side int) string {
		if before[side] == nil {
			p.redis("HDEL", p.name(side), field)
		} else {
			p.redis("HSET", p.name(side), field, before[side])
		}
		return ""
	})
}

// Whatever happens to a key, the quick forms lead to what hold.lua and settle.lua lead to.
func TestQuickForms(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			p := newQuickPair(t, seed)
			common := []func(){p.hold, p.hold, p.settle, p.settle}
			rare := []func(){p.renew, p.charge, p.change, p.change, p.rotate, p.expire, p.earlier, p.note, p.lose, p.spoil}
			for range 80 {
				if p.random.IntN(3) > 0 {
					common[p.random.IntN(len(common))]()
				} else {
					rare[p.random.IntN(len(rare))]()
				}
			}
		})
	}
}

// A hold of the gateway and its settlement take one script each, and these call little, whether the key has other holds
// or not.
func TestQuickCalls(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st := newTestStore(t, r)
	tenant := st.wantTenant(t, newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000}}}`))
	key, _ := newCredential(anonymousKeyPrefix)
	r.Do(t, "HSET", apiKeyRedisKey(key), "tenantId", tenant.id, "group", anonymousGroup, "tokensLeft", 1_000_000)
	r.Do(t, "PEXPIRE", apiKeyRedisKey(key), time.Hour.Milliseconds())
	var holders []*holder
	var ids []string
	hold := func() {
		id, _ := newCredential(leasePrefix)
		result, err := st.Hold(in(time.Minute), tenant, holdRequest{key: key, id: id, most: 100, least: 1, ttl: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		holders, ids = append(holders, &result.holder), append(ids, id)
	}
	settle := func() {
		i := len(ids) - 1
		_, err := st.Settle(in(time.Minute), tenant, holders[i], settleRequest{holdID: ids[i], used: 5, isLease: true})
		if err != nil {
			t.Fatal(err)
		}
		holders, ids = holders[:i], ids[:i]
	}
	hold() // Redis has the scripts then
	settle()
	for _, test := range []struct {
		name string
		do   func()
		want string
	}{
		{"the first hold", hold, "evalsha=1 hmget=1 hset=2 pexpireat=1 pexpiretime=1 time=1"},
		{"another", hold, "evalsha=1 hlen=1 hmget=1 hset=2 time=1"},
		{"its settlement", settle, "evalsha=1 exists=1 hdel=1 hget=1 hmget=1 hset=1 set=1 time=1"},
		{"that of the first", settle, "evalsha=1 hdel=2 hgetall=1 hmget=1 hset=1 set=1 time=1"},
	} {
		if got := called(t, r, test.do); got != test.want {
			t.Errorf("%s called %s, want %s", test.name, got, test.want)
		}
	}
}

// It is the same in groups with limits, and in tenants that were deleted before.
func TestQuickCallsOfLimits(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st := newTestStore(t, r)
	id := newTenantIn(t, r, quickConfig)
	r.Do(t, "SET", generationRedisKey(id), 2)
	tenant := st.wantTenant(t, id)
	for _, group := range []string{"plain", "limited", "concurrent", "both", "restricted"} {
		key, _ := newCredential(userKeyPrefix)
		r.Do(t, "HSET", apiKeyRedisKey(key), "tenantId", id, "generation", 2, "group", group, "tokensLeft", 1000)
		for range 2 { // Redis has the scripts the second time
			r.Do(t, "CONFIG", "RESETSTAT")
			hold, _ := newCredential(leasePrefix)
			h := holdRequest{key: key, id: hold, most: 100, least: 1, ttl: time.Minute, models: []string{"m"}}
			result, err := st.Hold(in(time.Minute), tenant, h)
			if err == nil {
				_, err = st.Settle(in(time.Minute), tenant, &result.holder, settleRequest{holdID: hold, used: 5, isLease: true})
			}
			if err != nil {
				t.Fatalf("%s: %v", group, err)
			}
		}
		if n := redistest.Calls(r.String(t, "INFO", "commandstats"), "evalsha"); n != 2 {
			t.Errorf("%s: %d scripts, want 2", group, n)
		}
	}
}

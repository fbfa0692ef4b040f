package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

func today() string { return time.Now().UTC().Format(dayLayout) }

// usage returns what a tenant has used from the day first until now, in one sum.
func (s *service) usage(t testing.TB, tenant, first string) usageBody {
	t.Helper()
	days := s.usageDays(t, "/"+tenant+"/admin/usage?from="+first+"&to="+today())
	sum := days[0]
	for _, day := range days[1:] { // if a test began yesterday
		sum.Requests += day.Requests
		sum.TokensCharged += day.TokensCharged
		sum.TokensGranted += day.TokensGranted
		sum.CacheHits += day.CacheHits
		sum.Refused = sum.Refused.plus(day.Refused)
		for name, more := range day.ByGroup {
			of := sum.ByGroup[name]
			sum.ByGroup[name] = groupUsage{of.Requests + more.Requests, of.TokensCharged + more.TokensCharged}
		}
		for name, more := range day.ByEndpoint {
			sum.ByEndpoint[name] = sum.ByEndpoint[name].plus(more)
		}
	}
	sum.Day = ""
	return sum
}

// usageDays returns the days that a path shows, at least one.
func (s *service) usageDays(t testing.TB, path string) []usageBody {
	t.Helper()
	return daysOf[usageBody](t, s.admin(t, "GET", path, ""))
}

// daysOf returns the days of a response that shows usage, at least one.
func daysOf[Body any](t testing.TB, got reply) []Body {
	t.Helper()
	got.want(t, 200, "")
	var list usageDays[Body]
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || len(list.Days) == 0 {
		t.Fatalf("%s: %v", got.body, err)
	}
	return list.Days
}

func (u refusedUsage) plus(more refusedUsage) refusedUsage {
	return refusedUsage{u.Balance + more.Balance, u.Rate + more.Rate, u.Key + more.Key, u.Group + more.Group}
}

func (u endpointUsage) plus(more endpointUsage) endpointUsage {
	return endpointUsage{u.Requests + more.Requests, u.InputTokens + more.InputTokens,
		u.CachedInputTokens + more.CachedInputTokens, u.CacheWriteTokens + more.CacheWriteTokens,
		u.AudioInputTokens + more.AudioInputTokens, u.OutputTokens + more.OutputTokens,
		u.AudioOutputTokens + more.AudioOutputTokens, u.TokensCharged + more.TokensCharged}
}

// awaitUsage waits until what a tenant has used is written to r for the first time. From then on no key appears for that.
func awaitUsage(t testing.TB, r *redistest.Server, tenant string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if r.Int(t, "EXISTS", "{tenant:"+tenant+":config}:usage:"+today()) == 0 {
			return fmt.Errorf("the usage of %s is not written", tenant)
		}
		return nil
	})
}

// lastingKeys returns the keys in Redis that match a pattern, but for those of usage, which is written once a second.
func lastingKeys(t testing.TB, r *redistest.Server, pattern string) []string {
	t.Helper()
	return slices.DeleteFunc(r.Keys(t, pattern), func(name string) bool { return strings.Contains(name, ":usage:") })
}

// awaitKeyUsage does the same for what was granted to an API key.
func awaitKeyUsage(t testing.TB, r *redistest.Server, key string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		if len(r.Keys(t, "{apiKey:"+key+"}:usage:*")) == 0 {
			return errors.New("the usage of a key is not written")
		}
		return nil
	})
}

// wantUsage waits until a tenant's usage is want, in JSON without the day. What comes after byGroup may be missing.
func (s *service) wantUsage(t testing.TB, tenant, first, want string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		got, err := json.Marshal(s.usage(t, tenant, first))
		if rest, ok := strings.CutPrefix(string(got), `{"day":"",`+want); err != nil || !ok || rest != "}" && rest[:13] != `,"cacheHits":` {
			return fmt.Errorf("got %s\nwant %s", got, want)
		}
		return nil
	})
}

// Every request that was accepted is counted once, with what it cost, whichever process has served it.
func TestUsageByDay(t *testing.T) {
	t.Parallel()
	first, p, services := today(), providertest.New(t), newServices(t)
	s := services[0]
	g := s.gatewayTest(t, p, strings.Replace(cachedConfig(1000, cachingForAnHour, endpointJSON(p, "chat", chatPath, ""),
		endpointJSON(p, "claude", messagesPath, "")), `"user_groups":{`, `"user_groups":{"pro":{"tokens":5000},`, 1))
	pro := s.issue(t, g.tenant, `"userId":"u","group":"pro"`) // 5000 granted
	once := retryKey + "once"
	s.admin(t, "POST", "/"+g.tenant+"/admin/keys", `{"userId":"u","group":"pro","tokens":7}`, once).want(t, 201, "")
	s.admin(t, "POST", "/"+g.tenant+"/admin/keys", `{"userId":"u","group":"pro","tokens":7}`, once).want(t, 201, "")
	for _, change := range []string{`{"addTokens":100}`, `{"addTokens":-50}`, `{"tokens":5000}`} {
		s.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+pro, change).want(t, 200, "")
	}
	for i, body := range []string{`{"tokens":10}`, `{"tokens":20}`} {
		services[i].consume(t, g.tenant, pro, body).want(t, 200, "")
		services[i].consume(t, g.tenant, pro, `{"tokens":5}`, once).want(t, 200, "") // charged once
		services[i].consume(t, g.tenant, pro, `{"tokens":6000}`).want(t, 402, "")
		services[i].consume(t, g.tenant, someKey, "").want(t, 401, "")
	}
	s.do(t, "GET", "/"+g.tenant+"/auth/verify?tokens=3", "", bearer(pro)).want(t, 200, "")
	hold := s.do(t, "POST", "/"+g.tenant+"/tokens/holds", `{"tokens":100}`, bearer(pro)).text(t, "holdId")
	for range 2 { // settled once
		s.do(t, "POST", "/"+g.tenant+"/tokens/holds/"+hold+"/settle", `{"tokens":40}`, bearer(pro)).want(t, 200, "")
	}
	g.miss(t, chatPath, `{"max_tokens":9}`)
	g.hit(t, chatPath, `{"max_tokens":9}`)
	g.miss(t, messagesPath, `{"max_tokens":9,"stream":true}`)
	p.On("bad", providertest.Refuse(400))
	g.call(t, messagesPath, `{"model":"bad"}`)
	g.call(t, messagesPath+"/count_tokens", `{}`).is(200)
	const want = `"requests":10,"tokensCharged":118,"tokensGranted":6107,` +
		`"byEndpoint":{"chat":{"requests":2,"inputTokens":11,"cachedInputTokens":5,"cacheWriteTokens":0,"audioInputTokens":0,` +
		`"outputTokens":7,"audioOutputTokens":0,"tokensCharged":22},` +
		`"claude":{"requests":2,"inputTokens":11,"cachedInputTokens":3,"cacheWriteTokens":2,"audioInputTokens":0,` +
		`"outputTokens":7,"audioOutputTokens":0,"tokensCharged":18}},` +
		`"byGroup":{"anonymous":{"requests":5,"tokensCharged":40},"pro":{"requests":5,"tokensCharged":78}},` +
		`"cacheHits":1,"refused":{"balance":2,"rate":0,"key":2,"group":0}`
	services[1].wantUsage(t, g.tenant, first, want)
	s.usage(t, g.tenant, first)
	for _, key := range testRedis.Keys(t, "{tenant:"+g.tenant+":config}:usage:*") {
		if days := testRedis.Int(t, "TTL", key) / daySeconds; days < 99 || days > 100 {
			t.Errorf("%s expires after %d days", key, days)
		}
	}
	t.Run("a tenant of the same ID", func(t *testing.T) {
		s.consume(t, g.tenant, pro, "").want(t, 200, "")
		s.admin(t, "DELETE", "/admin/tenants/"+g.tenant, "").want(t, 204, "")
		s.createTenant(t, g.tenant, `{"user_groups":{"anonymous":{"tokens":3}}}`).want(t, 201, "")
		s.wantUsage(t, g.tenant, first, `"requests":0,"tokensCharged":0,"tokensGranted":0,"byEndpoint":{},"byGroup":{}`)
		s.consume(t, g.tenant, s.login(t, g.tenant), "").want(t, 200, "")
		s.wantUsage(t, g.tenant, first, `"requests":1,"tokensCharged":1,"tokensGranted":3,"byEndpoint":{},`+
			`"byGroup":{"anonymous":{"requests":1,"tokensCharged":1}}`)
	})
}

// With by=model each day says what was asked of each model, by the name that its endpoint knows it by.
func TestUsageByModel(t *testing.T) {
	t.Parallel()
	first, p, services := today(), providertest.New(t), newServices(t)
	s := services[0]
	g := s.gatewayTest(t, p, cachedConfig(1000, cachingForAnHour, endpointJSON(p, "chat", chatPath, ""),
		endpointJSON(p, "claude", messagesPath, "")))
	g.miss(t, chatPath, `{"max_tokens":9}`)
	g.hit(t, chatPath, `{"max_tokens":9}`)
	g.miss(t, messagesPath, `{"model":"m","max_tokens":9,"stream":true}`)
	long := strings.Repeat("l", maxUsageModel)
	for i, model := range []string{"chat/m", "chat/m", "a b", "a b", " ", `a\nb`, "é🙂", "x/y", "m ", "other", long, long + "l"} {
		body := fmt.Sprintf(`{"model":"%s","max_tokens":9,"n":1}`, model)
		if i == 0 || i == 2 { // the next one is the same
			g.miss(t, chatPath, body)
			continue
		}
		got := services[i%2].do(t, "POST", "/"+g.tenant+chatPath, body, bearer(g.key))
		if got.status != 200 {
			t.Errorf("%s: got %d %s", model, got.status, got.body)
		}
	}
	p.On("bad", providertest.Refuse(400))
	g.call(t, messagesPath, `{"model":"bad"}`)
	g.call(t, messagesPath+"/count_tokens", `{"model":"counted"}`).is(200)
	s.consume(t, g.tenant, g.key, "").want(t, 200, "")
	one := endpointUsage{Requests: 1, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: 18}
	two := endpointUsage{Requests: 2, InputTokens: 22, CachedInputTokens: 10, OutputTokens: 14, TokensCharged: 36}
	want := map[string]endpointUsage{"a b": {Requests: 2, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: 22},
		"m": {}, " ": one, "a\nb": one, "é🙂": one, "x/y": one, "m ": one, otherName: two, long: one, "bad": {Requests: 1}}
	// m: a miss, a hit, a stream of Anthropic's, a miss with n and a hit.
	want["m"] = endpointUsage{Requests: 5, InputTokens: 33, CachedInputTokens: 13, CacheWriteTokens: 2, OutputTokens: 21,
		TokensCharged: 18 + 4 + 18 + 18 + 4}
	query := "/" + g.tenant + "/admin/usage?from=" + first + "&to=" + today()
	waittest.Eventually(t, 20*time.Second, func() error {
		got := make(map[string]endpointUsage)
		for _, day := range s.usageDays(t, query+"&by=model&by=model") {
			for name, more := range day.ByModel {
				got[name] = got[name].plus(more)
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("got %v\nwant %v", got, want)
		}
		return nil
	})
	if got := s.admin(t, "GET", query, ""); strings.Contains(got.body, "byModel") {
		t.Errorf("without by=model: %s", got.body)
	}
}

// What was counted is written when the process stops.
func TestUsageAtShutdown(t *testing.T) {
	t.Parallel()
	first, s := today(), newService(t)
	id := newTenant(t, 100)
	key := s.login(t, id)
	for range 5 {
		s.consume(t, id, key, "").want(t, 200, "")
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	got := newService(t).usage(t, id, first)
	if got.Requests != 5 || got.TokensGranted != 100 || got.ByGroup["anonymous"].TokensCharged != 5 {
		t.Errorf("got %+v", got)
	}
}

func TestUsageQuery(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 100)
	const badFrom, badTo = "from must be a day in UTC such as 2026-11-25", "to must be a day in UTC such as 2026-11-25"
	const badRange = "from must not be after to, and there may be 92 days at most"
	for query, want := range map[string]string{
		"": badFrom, "?from=2026-11-01": badTo, "?to=2026-11-01": badFrom, "?from=2026-11-01&to=": badTo,
		"?from=2026-11-31&to=2026-12-01": badFrom, "?from=2026-11-1&to=2026-12-01": badFrom, "?from=1969-12-31&to=1970-01-01": badFrom,
		"?from=2026-11-01T00:00:00Z&to=2026-11-02": badFrom, "?from=2026-11-02&to=2026-11-01": badRange,
		"?from=2026-01-01&to=2026-04-03": badRange, "?from=1970-01-01&to=9999-12-31": badRange,
		"?from=2026-11-01&to=2026-11-02&x=1":             `Query "x" is unknown`,
		"?from=2026-11-01&to=2026-11-02&by=users":        "by must be model or user",
		"?from=2026-11-01&to=2026-11-02&by=":             "by must be model or user",
		"?from=2026-11-01&to=2026-11-02&by=model,group":  "by must be model or user",
		"?from=2026-11-01&to=2026-11-02&by=model&by=x":   "by must be model or user",
		"?from=2026-11-01&from=2026-11-01&to=2026-11-02": `Query "from" is duplicated`,
		"?from=%zz&to=2026-11-02":                        "Invalid query",
	} {
		s.admin(t, "GET", "/"+id+"/admin/usage"+query, "").wantError(t, 400, want)
	}
	const rest = `,"cacheHits":0,"refused":{"balance":0,"rate":0,"key":0,"group":0}}`
	const none = `"requests":0,"tokensCharged":0,"tokensGranted":0,"byEndpoint":{},"byGroup":{}` + rest
	s.admin(t, "GET", "/"+id+"/admin/usage?from=2024-02-28&to=2024-03-01", "").want(t, 200, `{"days":[{"day":"2024-02-28",`+none+
		`,{"day":"2024-02-29",`+none+`,{"day":"2024-03-01",`+none+`]}`)
	got := s.admin(t, "GET", "/"+id+"/admin/usage?from=2026-01-01&to=2026-04-02", "")
	if n := strings.Count(got.body, `"day"`); got.status != 200 || n != 92 {
		t.Errorf("%d, %d days", got.status, n)
	}
	s.admin(t, "GET", "/nobody/admin/usage?from=2026-11-01&to=2026-11-01", "").wantError(t, 400, "Invalid tenant ID")
	// What others have written there does no harm.
	testRedis.Do(t, "HSET", "{tenant:"+id+":config}:usage:2026-11-01", "requests", 4, "charged", "x", "granted", "-5", "group", 1,
		"group requests a b", 3, "group tokens c", 3, "endpoint input d", "99999999999999999", "other thing", 1,
		"endpoint input e", 9, "endpoint cached_input e", 4, "endpoint cache_write e", 3, "endpoint audio_input e", 2, "endpoint output e", 8,
		"endpoint audio_output e", 1, "endpoint image_input e", 1)
	s.admin(t, "GET", "/"+id+"/admin/usage?from=2026-11-01&to=2026-11-01", "").want(t, 200,
		`{"days":[{"day":"2026-11-01","requests":4,"tokensCharged":0,"tokensGranted":0,`+
			`"byEndpoint":{"d":{"requests":0,"inputTokens":9007199254740991,"cachedInputTokens":0,"cacheWriteTokens":0,"audioInputTokens":0,`+
			`"outputTokens":0,"audioOutputTokens":0,"tokensCharged":0},`+
			`"e":{"requests":0,"inputTokens":9,"cachedInputTokens":4,"cacheWriteTokens":3,"audioInputTokens":2,`+
			`"outputTokens":8,"audioOutputTokens":1,"tokensCharged":0}},`+
			`"byGroup":{"":{"requests":0,"tokensCharged":0},"a b":{"requests":3,"tokensCharged":0},"c":{"requests":0,"tokensCharged":0}}`+rest+`]}`)
	// An earlier version has written that hash, and counts no models.
	const noTokens = `"inputTokens":0,"cachedInputTokens":0,"cacheWriteTokens":0,"audioInputTokens":0,"outputTokens":0,"audioOutputTokens":0`
	byModel := func(want string) {
		t.Helper()
		got := s.admin(t, "GET", "/"+id+"/admin/usage?from=2026-11-01&to=2026-11-01&by=model", "")
		if got.status != 200 || !strings.Contains(got.body, `}},"byModel":{`+want+`},"byGroup":{`) {
			t.Errorf("got %d %s, want %s", got.status, got.body, want)
		}
	}
	byModel("")
	testRedis.Do(t, "HSET", "{tenant:"+id+":config}:usage:2026-11-01", "model requests ", 1, "model requests a\nb c", 2,
		"model charged a\nb c", 5, "model", 1)
	byModel(`"":{"requests":1,` + noTokens + `,"tokensCharged":0},"a\nb c":{"requests":2,` + noTokens + `,"tokensCharged":5}`)
	testRedis.Do(t, "SET", "{tenant:"+id+":config}:usage:2026-11-02", "x")
	s.admin(t, "GET", "/"+id+"/admin/usage?from=2026-11-02&to=2026-11-02", "").want(t, 500, "")
}

// Usage is read a few days at a time, and no further than the first that cannot be read.
func TestUsageInSteps(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st, id := newTestStore(t, r), newTenantIn(t, r, `{}`)
	tn := st.wantTenant(t, id)
	calls := func() int { return redistest.Calls(r.String(t, "INFO", "commandstats"), "hgetall") }
	days, err := st.Usage(in(10*time.Second), tn, 20_000, maxUsageDays)
	if n := calls(); err != nil || len(days) != maxUsageDays || n != maxUsageDays {
		t.Errorf("%d days, %v, read %d times", len(days), err, n)
	}
	reads := func() int {
		n, _ := strconv.Atoi(redistest.Field(r.String(t, "INFO", "stats"), "total_reads_processed"))
		return n
	}
	before := reads()
	if _, err := st.Usage(in(10*time.Second), tn, 20_000, maxUsageDays); err != nil {
		t.Fatal(err)
	}
	if n, want := reads()-before, (maxUsageDays+7)/8; n < want {
		t.Errorf("%d days came in %d pieces, want %d", maxUsageDays, n, want)
	}
	r.Do(t, "SET", usageRedisKey(id, 20_009), "x")
	read := calls()
	if _, err := st.Usage(in(10*time.Second), tn, 20_000, maxUsageDays); err == nil {
		t.Error("there is no error")
	}
	if n := calls() - read; n != 16 {
		t.Errorf("%d days were read, of which the tenth is malformed, want 16", n)
	}
}

// Counts are bounded in memory and in Redis, whatever names there are, and never wrap.
func TestUsageBounds(t *testing.T) {
	t.Parallel()
	st := newTestStore(t, singleRedis(t))
	u := newUsageStats(st)
	tn := &tenant{id: newTenantID()}
	long := strings.Repeat("g", maxGroupBytes+1)
	for i := range maxUsageNames {
		u.add(tn, usageEvent{group: fmt.Sprint("g", i), endpoint: long, requests: 1, charged: maxAmount, used: llmwire.Usage{Input: 1}})
	}
	u.add(tn, usageEvent{group: "one more", requests: 1, charged: 2})
	u.add(tn, usageEvent{group: "g0", requests: 1, charged: 2})
	for i := range maxUsageCounts + 10 {
		u.add(&tenant{id: fmt.Sprint("many", i)}, usageEvent{requests: 1})
	}
	if n := len(u.counts); n != maxUsageCounts {
		t.Errorf("%d days are counted", n)
	}
	var day usageDay
	for d := range u.counts {
		if d.tenantID == tn.id {
			day = d
		}
	}
	counts := u.counts[day]
	if n := len(counts.groups); n != maxUsageNames+1 || *counts.groups[otherName] != (usageSums{requests: 1, charged: 2}) {
		t.Errorf("%d groups, other has %+v", n, counts.groups[otherName])
	}
	if got := *counts.groups["g0"]; got != (usageSums{requests: 2, charged: maxAmount, input: 1}) {
		t.Errorf("g0 has %+v", got)
	}
	if got := *counts.endpoints[otherName]; got.requests != maxUsageNames || len(counts.endpoints) != 1 {
		t.Errorf("the long name has %+v", got)
	}
	for range maxUsageFields / maxUsageNames {
		for i := range maxUsageNames {
			u.add(tn, usageEvent{group: fmt.Sprint("h", time.Now().UnixNano(), i), requests: 1, charged: maxAmount})
		}
		if !st.AddUsage(in(5*time.Second), day, u.counts[day]) {
			t.Fatal("it was not written")
		}
		delete(u.counts, day)
	}
	days, err := st.Usage(in(5*time.Second), tn, day.day, 1)
	if err != nil {
		t.Fatal(err)
	}
	fields := singleRedis(t).Int(t, "HLEN", usageRedisKey(tn.id, day.day))
	if got := days[0]; got.total.requests != 102+maxUsageFields || got.total.charged != maxAmount ||
		got.groups[otherName].requests < 100 || fields > maxUsageFields+8 {
		t.Errorf("%+v, other has %+v, %d fields", got.total, got.groups[otherName], fields)
	}
}

// Models, whose names clients may invent, take no field from groups and endpoints.
func TestUsageOfManyModels(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	st := newTestStore(t, r)
	u, tn := newUsageStats(st), &tenant{id: newTenantID()}
	today := usageDay{tenantID: tn.id, day: 20_000}
	add := func(e usageEvent) {
		e.requests, e.endpoint = 1, cmp.Or(e.endpoint, "e")
		u.of(today).add(&e, e.sums())
	}
	write := func() {
		t.Helper()
		if !st.AddUsage(in(5*time.Second), today, u.counts[today]) {
			t.Fatal("it was not written")
		}
		delete(u.counts, today)
	}
	const rounds, perRound = 8, maxUsageNames + 10
	for round := range rounds {
		for i := range perRound {
			add(usageEvent{model: fmt.Sprint("m", round, " ", i)})
		}
		if n := len(u.counts[today].models); n != maxUsageNames+1 {
			t.Errorf("%d models are counted in memory, want %d", n, maxUsageNames+1)
		}
		write()
	}
	if n := r.Int(t, "HLEN", usageRedisKey(tn.id, today.day)); n < maxModelFields || n > maxModelFields+8 {
		t.Errorf("there are %d fields, want about %d", n, maxModelFields)
	}
	for i := range maxUsageNames {
		add(usageEvent{group: fmt.Sprint("g", i), endpoint: fmt.Sprint("e", i), model: "m0 0"})
	}
	add(usageEvent{endpoint: "e0", model: ""})
	add(usageEvent{endpoint: "e0", model: "\xff"})
	write()
	days, err := st.Usage(in(5*time.Second), tn, today.day, 1)
	if err != nil {
		t.Fatal(err)
	}
	got, sum := days[0], int64(0)
	for _, sums := range got.models {
		sum += sums.requests
	}
	if want := int64(rounds*perRound + maxUsageNames + 2); sum != want || got.total.requests != want {
		t.Errorf("models have %d requests of %d, want %d", sum, got.total.requests, want)
	}
	if n := got.models["m0 0"].requests; n != maxUsageNames+1 {
		t.Errorf("a model that was there has %d requests, want %d", n, maxUsageNames+1)
	}
	if len(got.groups) != maxUsageNames || got.groups[otherName] != nil || len(got.endpoints) != maxUsageNames+1 {
		t.Errorf("there are %d groups and %d endpoints", len(got.groups), len(got.endpoints))
	}
	kept := newUsageStats(nil)
	kept.add(tn, usageEvent{endpoint: "e", model: "\xff", requests: 1})
	kept.add(tn, usageEvent{endpoint: "e", model: "\xfe", requests: 1})
	kept.add(tn, usageEvent{model: "none was asked", requests: 1})
	other := &dayUsage{}
	for _, d := range kept.take() {
		other.merge(d)
	}
	if got := other.models; len(got) != 1 || got["\uFFFD"].requests != 2 {
		t.Errorf("what is not UTF-8 is counted as %v", got)
	}
}

// What Redis has certainly not got is written when it responds again.
func TestUsageWithoutRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageStats(newTestStore(t, r))
	tn := &tenant{id: "x"}
	want := func(when string, requests int) {
		t.Helper()
		sum := 0
		for _, key := range r.Keys(t, "{tenant:x:config}:usage:*") {
			n, err := redis.Int(r.Do(t, "HGET", key, "requests"), nil)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		if sum != requests {
			t.Errorf("%s: %d requests, want %d", when, sum, requests)
		}
	}
	u.add(tn, usageEvent{requests: 1, group: "g"})
	u.write()
	want("first", 1)
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	u.add(tn, usageEvent{requests: 1, group: "g"})
	u.write()
	want("full", 1)
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	u.write()
	want("no longer full", 2)
	r.Kill()
	u.add(tn, usageEvent{requests: 1, endpoint: "e"})
	u.write()
	u.add(tn, usageEvent{requests: 1, group: "g"})
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	waittest.Eventually(t, 20*time.Second, func() error {
		u.write()
		if n := len(u.counts); n > 0 {
			return fmt.Errorf("%d days are not written", n)
		}
		return nil
	})
	// The first command on a connection that was cut may have been executed: it is not sent again.
	if n := r.Int(t, "HGET", r.Keys(t, "{tenant:x:config}:usage:*")[0], "requests"); n != 4 && n != 3 {
		t.Errorf("%d requests", n)
	}
}

// In a cluster the days of a tenant are in one slot.
func testUsageInCluster(t *testing.T) {
	c := redistest.SharedCluster(t)
	first, s := today(), newService(t, "REDIS_URL="+c.URL())
	ids := make([]string, 3)
	for i := range ids {
		ids[i] = newClusterTenant(t, s, `{"user_groups":{"anonymous":{"tokens":9}}}`)
		s.consume(t, ids[i], s.login(t, ids[i]), "").want(t, 200, "")
	}
	for _, id := range ids {
		s.wantUsage(t, id, first, `"requests":1,"tokensCharged":1,"tokensGranted":9,"byEndpoint":{},`+
			`"byGroup":{"anonymous":{"requests":1,"tokensCharged":1}}`)
		s.admin(t, "GET", "/"+id+"/admin/usage?from=2026-01-01&to=2026-04-02", "").want(t, 200, "")
	}
	// Keys are in all slots, and one that was rotated in that of its first name.
	key := s.issue(t, ids[0], `"userId":"u","group":"anonymous"`)
	s.consume(t, ids[0], key, "").want(t, 200, "")
	for range 20 {
		s.consume(t, ids[0], s.issue(t, ids[0], `"userId":"u","group":"anonymous"`), "").want(t, 200, "")
	}
	key = s.admin(t, "POST", "/"+ids[0]+"/admin/keys/"+key+"/rotate", "").text(t, "apiKey")
	s.consume(t, ids[0], key, `{"tokens":2}`).want(t, 200, "")
	// One whose first name was forged counts for its tenant alone, and keeps nothing else from being counted.
	forged := s.issue(t, ids[0], `"userId":"u","group":"anonymous"`)
	c.Owner(t, apiKeyRedisKey(forged)).Do(t, "HSET", apiKeyRedisKey(forged), "first", s.issue(t, ids[0], `"userId":"u","group":"anonymous"`))
	s.consume(t, ids[0], forged, "").want(t, 200, "")
	want := keyUsageBody{Requests: 2, TokensCharged: 3, TokensGranted: 9, ByModel: map[string]endpointUsage{}}
	s.wantKeyUsage(t, "/"+ids[0]+"/auth/usage", first, want, key)
	s.wantUserUsage(t, ids[0], first, "", `[{"userId":"u","requests":22,"tokensCharged":23},`+
		`{"userId":null,"requests":1,"tokensCharged":1},{"userId":"other","requests":1,"tokensCharged":1}]`)
}

func BenchmarkUsage(b *testing.B) {
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = fmt.Sprintf("user_%036d", i)
	}
	for name, e := range map[string]usageEvent{
		"charge": {group: "anonymous", requests: 1, charged: 1},
		"completion": {group: "anonymous", endpoint: "openai", model: "gpt-5", requests: 1, charged: 1,
			used: llmwire.Usage{Input: 1, Output: 1}},
	} {
		b.Run(name, func(b *testing.B) {
			u, tn := newUsageStats(nil), &tenant{id: "a"}
			b.ReportAllocs()
			for i := range b.N {
				e.key = keys[i%len(keys)]
				u.add(tn, e)
				if i%10_000 == 9_999 { // as after a second
					u.take()
				}
			}
		})
	}
	b.Run("new keys", func(b *testing.B) {
		u, tn := newUsageStats(nil), &tenant{id: "a"}
		b.ReportAllocs()
		for i := range b.N {
			u.add(tn, usageEvent{key: fmt.Sprintf("user_%036d", i), group: "anonymous", requests: 1, charged: 1})
			if i%5_000 == 4_999 {
				u.take()
			}
		}
	})
}

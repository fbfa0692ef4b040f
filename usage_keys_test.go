package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// usagePath returns a path that shows usage from the day first until now.
func usagePath(path, first string) string { return path + "?from=" + first + "&to=" + today() }

// wantKeyUsage waits until a path shows want in one sum, which has no day.
func (s *service) wantKeyUsage(t testing.TB, path, first string, want keyUsageBody, token string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		sum := keyUsageBody{ByModel: make(map[string]endpointUsage)}
		for _, day := range daysOf[keyUsageBody](t, s.do(t, "GET", usagePath(path, first), "", bearer(token))) {
			sum.Requests += day.Requests
			sum.InputTokens += day.InputTokens
			sum.OutputTokens += day.OutputTokens
			sum.TokensCharged += day.TokensCharged
			sum.TokensGranted += day.TokensGranted
			for name, more := range day.ByModel {
				sum.ByModel[name] = sum.ByModel[name].plus(more)
			}
		}
		if !reflect.DeepEqual(sum, want) {
			return fmt.Errorf("%s\ngot  %+v\nwant %+v", path, sum, want)
		}
		return nil
	})
}

// wantUserUsage waits until the users of a tenant are want, in JSON, if all is of one day.
func (s *service) wantUserUsage(t testing.TB, tenant, first, query, want string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		var got []byte
		for _, day := range s.usageDays(t, usagePath("/"+tenant+"/admin/usage", first)+"&by=user"+query) {
			if text, _ := json.Marshal(day.ByUser); string(text) != "[]" || got == nil {
				got = text
			}
		}
		if string(got) != want {
			return fmt.Errorf("got  %s\nwant %s", got, want)
		}
		return nil
	})
}

// All that a key is charged for or granted counts for it, whichever process has served it and whatever its name was.
func TestKeyUsage(t *testing.T) {
	t.Parallel()
	first, p, services := today(), providertest.New(t), newServices(t)
	s := services[0]
	config := strings.Replace(cachedConfig(1000, cachingForAnHour, endpointJSON(p, "chat", chatPath, "")),
		`"user_groups":{`, `"user_groups":{"pro":{"tokens":5000},`, 1)
	visitor := s.gatewayTest(t, p, config)
	tenant, pro := "/"+visitor.tenant, s.issue(t, visitor.tenant, `"userId":"u","group":"pro"`)
	g := &gatewayTest{s, p, visitor.tenant, pro}
	for i, body := range []string{`{"tokens":10}`, `{"tokens":20}`} {
		services[i].consume(t, g.tenant, pro, body).want(t, 200, "")
		services[i].consume(t, g.tenant, pro, `{"tokens":6000}`).want(t, 402, "")
	}
	s.do(t, "GET", tenant+"/auth/verify?tokens=3", "", bearer(pro)).want(t, 200, "")
	hold := s.do(t, "POST", tenant+"/tokens/holds", `{"tokens":100}`, bearer(pro)).text(t, "holdId")
	s.do(t, "POST", tenant+"/tokens/holds/"+hold+"/settle", `{"tokens":40}`, bearer(pro)).want(t, 200, "")
	for _, change := range []string{`{"addTokens":100}`, `{"addTokens":-50}`, `{"tokens":5000}`} {
		s.admin(t, "PATCH", tenant+"/admin/keys/"+pro, change).want(t, 200, "")
	}
	g.miss(t, chatPath, `{"max_tokens":9}`)
	g.hit(t, chatPath, `{"max_tokens":9}`)
	want := keyUsageBody{
		Requests: 6, InputTokens: 11, OutputTokens: 7, TokensCharged: 10 + 20 + 3 + 40 + 18 + 4, TokensGranted: 5100,
		ByModel: map[string]endpointUsage{
			"m": {Requests: 2, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: 22},
		},
	}
	services[1].wantKeyUsage(t, tenant+"/auth/usage", first, want, pro)
	services[1].wantKeyUsage(t, tenant+"/admin/keys/"+pro+"/usage", first, want, testAdminToken)
	granted := keyUsageBody{TokensGranted: 1000, ByModel: map[string]endpointUsage{}}
	s.wantKeyUsage(t, tenant+"/auth/usage", first, granted, visitor.key)

	for _, key := range testRedis.Keys(t, "{apiKey:"+pro+"}:usage:*") {
		if days := testRedis.Int(t, "TTL", key) / daySeconds; days < 99 || days > 100 {
			t.Errorf("%s expires after %d days", key, days)
		}
	}
	for _, key := range testRedis.Keys(t, "{apiKey:"+visitor.key+"}:usage:*") {
		if got, want := testRedis.Int(t, "PEXPIRETIME", key), testRedis.Int(t, "PEXPIRETIME", "apiKey:"+visitor.key); got != want {
			t.Errorf("%s expires at %d, its key at %d", key, got, want)
		}
	}

	key := pro
	for range 2 { // what it has used stands under its first name
		old := key
		key = s.admin(t, "POST", tenant+"/admin/keys/"+old+"/rotate", "").text(t, "apiKey")
		s.do(t, "GET", usagePath(tenant+"/auth/usage", first), "", bearer(old)).wantError(t, 401, "Unauthorized")
		s.consume(t, g.tenant, key, `{"tokens":5}`).want(t, 200, "")
		want.Requests, want.TokensCharged = want.Requests+1, want.TokensCharged+5
		s.wantKeyUsage(t, tenant+"/auth/usage", first, want, key)
		if names := testRedis.Keys(t, "{apiKey:"+key+"}:usage:*"); len(names) > 0 {
			t.Errorf("there is %q", names)
		}
	}
	// It is shown in each state of the key.
	s.admin(t, "PATCH", tenant+"/admin/keys/"+key, `{"tokens":0}`).want(t, 200, "")
	s.wantKeyUsage(t, tenant+"/auth/usage", first, want, key)
	s.admin(t, "PATCH", tenant+"/admin/keys/"+key, `{"enabled":false}`).want(t, 200, "")
	s.wantKeyUsage(t, tenant+"/auth/usage", first, want, key)
	s.saveConfig(t, g.tenant, textConfig(5))
	s.consume(t, g.tenant, key, "").want(t, 403, "")
	s.wantKeyUsage(t, tenant+"/auth/usage", first, want, key)

	other := "/" + newTenant(t, 1)
	s.do(t, "GET", usagePath(other+"/auth/usage", first), "", bearer(key)).wantError(t, 401, "Unauthorized")
	s.admin(t, "GET", usagePath(other+"/admin/keys/"+key+"/usage", first), "").wantError(t, 404, "Not found")
	s.admin(t, "DELETE", tenant+"/admin/keys/"+key, "").want(t, 204, "")
	s.admin(t, "GET", usagePath(tenant+"/admin/keys/"+key+"/usage", first), "").wantError(t, 404, "Not found")
}

func TestKeyUsageQuery(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 100)
	key := s.login(t, id)
	paths := map[string]string{"/" + id + "/auth/usage": key, "/" + id + "/admin/keys/" + key + "/usage": testAdminToken}
	for path, token := range paths {
		for query, want := range map[string]string{
			"":                               "from must be a day in UTC such as 2026-11-25",
			"?from=2026-11-01":               "to must be a day in UTC such as 2026-11-25",
			"?from=2026-01-01&to=2026-04-03": "from must not be after to, and there may be 92 days at most",
			"?from=2026-11-01&to=2026-11-02&by=model": `Query "by" is unknown`,
			"?from=2026-11-01&to=2026-11-02&limit=1":  `Query "limit" is unknown`,
		} {
			s.do(t, "GET", path+query, "", bearer(token)).wantError(t, 400, want)
		}
		const none = `"requests":0,"inputTokens":0,"outputTokens":0,"tokensCharged":0,"tokensGranted":0,"byModel":{}}`
		s.do(t, "GET", path+"?from=2024-02-29&to=2024-03-01", "", bearer(token)).want(t, 200,
			`{"days":[{"day":"2024-02-29",`+none+`,{"day":"2024-03-01",`+none+`]}`)
		got := s.do(t, "GET", path+"?from=2026-01-01&to=2026-04-02", "", bearer(token))
		if n := strings.Count(got.body, `"day"`); got.status != 200 || n != 92 {
			t.Errorf("%s: %d, %d days", path, got.status, n)
		}
	}
	const days = "?from=2026-11-01&to=2026-11-01"
	s.do(t, "GET", "/"+id+"/auth/usage"+days, "").wantError(t, 401, "Unauthorized")
	s.do(t, "GET", "/"+id+"/auth/usage"+days, "", bearer(someKey)).wantError(t, 401, "Unauthorized")
	s.do(t, "GET", "/nobody/auth/usage"+days, "", bearer(key)).wantError(t, 400, "Invalid tenant ID")
	s.admin(t, "GET", "/"+id+"/admin/keys/"+someKey+"/usage"+days, "").wantError(t, 404, "Not found")
	s.admin(t, "GET", "/"+id+"/admin/keys/x/usage"+days, "").wantError(t, 404, "Not found")
	// It costs neither tokens nor rate.
	limited := limitedTenant(t, 1, 60)
	key = s.login(t, limited)
	for range 3 {
		s.do(t, "GET", "/"+limited+"/auth/usage"+days, "", bearer(key)).want(t, 200, "")
	}
	s.consume(t, limited, key, "").want(t, 200, `{"tokensLeft":999}`)
	// What somebody else has written there does no harm.
	testRedis.Do(t, "SET", "{apiKey:"+key+"}:usage:2026-11-01", "x")
	s.do(t, "GET", "/"+limited+"/auth/usage"+days, "", bearer(key)).want(t, 500, "")
}

// Long responses need memory of the pools for bodies.
func TestUsageMemory(t *testing.T) {
	t.Parallel()
	log := new(telemetrytest.Log)
	server := newBareServer(t, log)
	listener := httptest.NewServer(server.handler)
	defer listener.Close()
	s, id := &service{url: listener.URL, log: log}, newTenant(t, 100)
	key := s.login(t, id)
	server.usage.add(server.store.wantTenant(t, id), usageEvent{key: key, endpoint: "e", model: "m", requests: 1})
	server.usage.write()
	first := time.Now().UTC().AddDate(0, 0, -1).Format(dayLayout) // it may be midnight
	paths := map[string]string{
		"/" + id + "/auth/usage": key, "/" + id + "/admin/keys/" + key + "/usage": testAdminToken, "/" + id + "/admin/usage": testAdminToken,
	}
	get := func(path string) reply {
		query := usagePath(path, first)
		if strings.HasSuffix(path, "/admin/usage") {
			query += "&by=user"
		}
		return s.do(t, "GET", query, "", bearer(paths[path]))
	}
	var taken []*fairpool.Claim
	for i, pool := range []*fairpool.Pool{server.bodies.admin, server.bodies.gateway, server.bodies.admin, server.bodies.gateway} {
		claim := pool.Claim(fmt.Sprint(i), "x")
		claim.SetShare(pool.Stats().Size)
		if err := claim.Add(pool.Stats().Size / 2); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, claim)
	}
	for path := range paths {
		get(path).wantError(t, 503, "Service unavailable")
	}
	for _, claim := range taken {
		claim.Release()
	}
	for path := range paths {
		if got := get(path); got.status != 200 || !strings.Contains(got.body, `"requests":1`) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if a, g := server.bodies.admin.Stats().Used, server.bodies.gateway.Stats().Used; a+g > 0 {
		t.Errorf("%d and %d bytes are kept", a, g)
	}
}

// With by=user each day says who was charged most.
func TestUsageByUser(t *testing.T) {
	t.Parallel()
	first, services := today(), newServices(t)
	s, id := services[0], newTenant(t, 100)
	keys := []string{s.issue(t, id, `"userId":"u","group":"pro"`), s.issue(t, id, `"userId":"u","group":"pro"`),
		s.issue(t, id, `"userId":"ü v","group":"pro"`), s.login(t, id), s.login(t, id)}
	s.wantUserUsage(t, id, first, "", `[]`) // they have used nothing
	for i, key := range keys {
		services[i%2].consume(t, id, key, fmt.Sprintf(`{"tokens":%d}`, 10+i)).want(t, 200, "")
	}
	const all = `[{"userId":null,"requests":2,"tokensCharged":27},{"userId":"u","requests":2,"tokensCharged":21},` +
		`{"userId":"ü v","requests":1,"tokensCharged":12}]`
	s.wantUserUsage(t, id, first, "", all)
	s.wantUserUsage(t, id, first, "&limit=1&by=model", `[{"userId":null,"requests":2,"tokensCharged":27}]`)
	if got := s.admin(t, "GET", usagePath("/"+id+"/admin/usage", first), ""); strings.Contains(got.body, "byUser") {
		t.Errorf("without by=user: %s", got.body)
	}
	// What an earlier version has counted is of no user.
	day := usageRedisKey(id, time.Now().Unix()/daySeconds)
	testRedis.Do(t, "HINCRBY", day, "requests", 3)
	testRedis.Do(t, "HINCRBY", day, "charged", 25)
	s.wantUserUsage(t, id, first, "&limit=2", `[{"userId":null,"requests":2,"tokensCharged":27},`+
		`{"userId":"other","requests":3,"tokensCharged":25},{"userId":"u","requests":2,"tokensCharged":21}]`)
	t.Run("a tenant of the same ID", func(t *testing.T) {
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
		s.createTenant(t, id, `{"user_groups":{"anonymous":{"tokens":3}}}`).want(t, 201, "")
		s.wantUserUsage(t, id, first, "", `[]`)
		key := s.login(t, id)
		s.consume(t, id, key, "").want(t, 200, "")
		s.wantUserUsage(t, id, first, "", `[{"userId":null,"requests":1,"tokensCharged":1}]`)
	})
}

// Each day says what was refused, and why.
func TestUsageOfRefusals(t *testing.T) {
	t.Parallel()
	p, s := providertest.New(t), newService(t)
	config := strings.Replace(textConfig(1000, endpointJSON(p, "chat", chatPath, "")), `{"tokens":1000}`, `{"tokens":100,"models":["m"]},`+
		`"slow":{"tokens":100,"rate_limit":1,"rate_limit_window":3600}`, 1)
	const prompt = `{"model":"%s","messages":[],"max_tokens":%d}`
	for name, test := range map[string]struct {
		group string
		ask   func(t *testing.T, g *gatewayTest)
		want  refusedUsage
	}{
		"balance": {"anonymous", func(t *testing.T, g *gatewayTest) {
			s.consume(t, g.tenant, g.key, `{"tokens":101}`).want(t, 402, "")
			s.do(t, "GET", "/"+g.tenant+"/auth/verify?tokens=101", "", bearer(g.key)).want(t, 402, "")
			s.do(t, "POST", "/"+g.tenant+"/tokens/holds", `{"tokens":101}`, bearer(g.key)).want(t, 402, "")
			s.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+g.key, `{"tokens":0}`).want(t, 200, "")
			if err := g.call(t, chatPath, fmt.Sprintf(prompt, "m", 9)).is(402); err != nil {
				t.Error(err)
			}
		}, refusedUsage{Balance: 4}},
		"rate": {"slow", func(t *testing.T, g *gatewayTest) {
			s.consume(t, g.tenant, g.key, "").want(t, 200, "")
			s.consume(t, g.tenant, g.key, "").want(t, 429, "")
			s.do(t, "POST", "/"+g.tenant+"/tokens/holds", `{"tokens":1}`, bearer(g.key)).want(t, 429, "")
			if err := g.call(t, chatPath, fmt.Sprintf(prompt, "m", 9)).is(429); err != nil {
				t.Error(err)
			}
		}, refusedUsage{Rate: 3}},
		"key": {"anonymous", func(t *testing.T, g *gatewayTest) {
			s.consume(t, g.tenant, someKey, "").want(t, 401, "")
			s.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+g.key, `{"enabled":false}`).want(t, 200, "")
			s.consume(t, g.tenant, g.key, "").want(t, 403, "")
			if err := g.call(t, chatPath, fmt.Sprintf(prompt, "m", 9)).is(403); err != nil {
				t.Error(err)
			}
		}, refusedUsage{Key: 3}},
		"group": {"anonymous", func(t *testing.T, g *gatewayTest) {
			if err := g.call(t, chatPath, fmt.Sprintf(prompt, "other", 9)).is(404); err != nil {
				t.Error(err)
			}
			if err := g.call(t, chatPath, fmt.Sprintf(prompt, "m", 9)).is(200); err != nil {
				t.Error(err)
			}
			s.saveConfig(t, g.tenant, `{"user_groups":{}}`)
			s.consume(t, g.tenant, g.key, "").want(t, 403, "")
		}, refusedUsage{Group: 2}},
		"not these": {"anonymous", func(t *testing.T, g *gatewayTest) {
			s.consume(t, g.tenant, g.key, `{"tokens":1}`, retryKey+"k").want(t, 200, "")
			s.consume(t, g.tenant, g.key, `{"tokens":2}`, retryKey+"k").want(t, 422, "")
			s.consume(t, g.tenant, g.key, `{"tokens":-1}`).want(t, 400, "")
			s.consume(t, g.tenant, "x", "").want(t, 401, "")
			s.do(t, "GET", "/"+g.tenant+"/auth/key", "", bearer(someKey)).want(t, 401, "")
		}, refusedUsage{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := today()
			g := &gatewayTest{service: s, provider: p, tenant: newTenantIn(t, testRedis, config)}
			g.key = s.issue(t, g.tenant, `"userId":"u","group":"`+test.group+`"`)
			test.ask(t, g)
			waittest.Eventually(t, 20*time.Second, func() error {
				if got := s.usage(t, g.tenant, first); got.Refused != test.want || got.TokensGranted == 0 {
					return fmt.Errorf("got %+v, want %+v", got.Refused, test.want)
				}
				return nil
			})
		})
	}
}

// A model that a session's key may not use is counted once, as is a balance that does not cover it.
func TestRefusedAccounts(t *testing.T) {
	t.Parallel()
	s := &server{metrics: newMetrics(nil), usage: newUsageStats(nil)}
	tn := &tenant{id: "t", config: new(tenantConfig)}
	session := s.newSessionAccount(tn, someKey, nil, nil)
	_ = session.refused(tn, "g", ErrModelDenied)
	_ = session.refused(tn, "g", ErrGroupDisabled)
	_ = session.refused(nil, "", insufficientTokensError{})
	session.denied = true
	session.countRefused(gateway.DeniedModel("m"))
	session.countRefused(nil)
	session.denied = false
	session.countRefused(gateway.HeldError{})
	session.countRefused(gateway.Error{Status: 402})
	session.countRefused(gateway.Error{Status: 404})
	for day, got := range s.usage.counts {
		want := [len(refusals)]int64{refusedGroup: 3, refusedBalance: 3}
		if day.tenantID != "t" || got.refused != want {
			t.Errorf("%s: got %v, want %v", day.tenantID, got.refused, want)
		}
	}
}

// usageTest counts in one store, and writes when it is told to.
type usageTest struct {
	*testing.T
	*usageStats
	r      *redistest.Server
	tenant *tenant
	day    int64
}

func newUsageTest(t *testing.T, r *redistest.Server, st *store) *usageTest {
	t.Helper()
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":100}}}`)
	return &usageTest{t, newUsageStats(st), r, st.wantTenant(t, id), time.Now().Unix() / daySeconds}
}

// newKey issues a key of a user, "" for a temp_ key.
func (u *usageTest) newKey(user string) string {
	u.Helper()
	k := apiKey{userID: user, group: anonymousGroup, createdAt: time.Now(), tokensLeft: 1000}
	if user == "" {
		k.expiresAt = k.createdAt.Add(time.Hour)
	}
	issued, err := u.store.NewKey(in(10*time.Second), u.tenant, k, idempotentRequest{})
	if err != nil {
		u.Fatal(err)
	}
	return issued.key
}

func (u *usageTest) count(key string, charged int64) {
	u.add(u.tenant, usageEvent{key: key, requests: 1, charged: charged})
}

// used returns the tokens that Redis says a key was charged on one day or the next.
func (u *usageTest) used(first string) (charged int) {
	u.Helper()
	for _, key := range u.r.Keys(u, "{apiKey:"+first+"}:usage:*") {
		charged += u.r.Int(u, "HGET", key, "charged")
	}
	return charged
}

// users returns the users of the day and the one after it.
func (u *usageTest) users() map[string]userUsage {
	u.Helper()
	all := make(map[string]userUsage)
	for day := u.day; day < u.day+2; day++ {
		top, _, err := u.store.TopUsers(in(10*time.Second), u.tenant, day, 1000)
		if err != nil {
			u.Fatal(err)
		}
		for _, user := range top {
			sum := all[user.id]
			sum.add(user.requests, user.charged)
			all[user.id] = sum
		}
	}
	return all
}

func (u *usageTest) scripts() int {
	info := u.r.String(u, "INFO", "commandstats")
	return redistest.Calls(info, "evalsha") + redistest.Calls(info, "eval")
}

// A key may have another name, or be gone, when what it has used is written.
func TestUsageOfChangedKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	rotate := func(key string) string {
		rotated, err := u.store.RotateKey(in(10*time.Second), u.tenant, key, 0, idempotentRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return rotated.key
	}
	before, once, twice, merged, revoked := u.newKey("a"), u.newKey("b"), u.newKey("c"), u.newKey(""), u.newKey("d")
	later := rotate(before)
	for i, key := range []string{later, once, twice, merged, revoked, someKey} {
		u.count(key, int64(i+1))
	}
	last := rotate(rotate(twice))
	u.count(last, 10)
	rotate(once)
	if err := u.store.RevokeKey(in(10*time.Second), u.tenant, revoked, false); err != nil {
		t.Fatal(err)
	}
	who := signInIdentity{u.tenant, "google:s", anonymousGroup, 50}
	if got, err := u.store.SignIn(in(10*time.Second), who, merged); err != nil || got.merged == nil || !*got.merged {
		t.Fatalf("%+v, %v", got, err)
	}
	u.write()
	for key, want := range map[string]int{before: 1, later: 0, once: 2, twice: 13, last: 0, merged: 0, revoked: 0, someKey: 0} {
		if got := u.used(key); got != want {
			t.Errorf("%s has used %d, want %d", key, got, want)
		}
	}
	want := map[string]userUsage{"": {1, 4}, "a": {1, 1}, "b": {1, 2}, "c": {2, 13}}
	if got := u.users(); !reflect.DeepEqual(got, want) {
		t.Errorf("the users are %v, want %v", got, want)
	}
	if len(u.counts) > 0 {
		t.Errorf("left are %v", u.counts)
	}
	// The names of a key are looked up once, while it is used.
	for round := range 3 {
		u.count(later, 1)
		calls := u.scripts()
		u.write()
		if n := u.scripts() - calls; n != 3 {
			t.Errorf("round %d: %d scripts, want one for the tenant, its keys and its users each", round, n)
		}
		u.namesSince = time.Time{} // a minute passes
	}
	for range 2 {
		u.write()
		u.namesSince = time.Time{}
	}
	u.write()
	if n := len(u.names) + len(u.olderNames); n > 0 {
		t.Errorf("the names of %d keys are kept", n)
	}
	if got := u.used(before); got != 4 {
		t.Errorf("%d tokens are counted, want 4", got)
	}
}

// A charge takes as many commands with 100 keys, and usage takes less than one a key.
func TestUsageCommands(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = u.newKey(fmt.Sprint("u", i%10))
	}
	cost := func(keys ...string) int {
		before := u.scripts()
		for i := range 100 {
			c := chargeRequest{key: keys[i%len(keys)], tokens: 1}
			result, err := u.store.Charge(in(10*time.Second), u.tenant, c)
			if err != nil {
				t.Fatal(err)
			}
			u.count(result.key, result.charged)
		}
		u.write()
		return u.scripts() - before
	}
	cost(keys[0]) // Redis learns the scripts
	if n := cost(keys[0]); n != 103 {
		t.Errorf("100 charges of one key: %d scripts, want 103", n)
	}
	for when, want := range map[string]int{"new to usage": 104, "known": 104} {
		if n := cost(keys...); n != want {
			t.Errorf("100 charges of 100 keys, %s: %d scripts, want %d", when, n, want)
		}
	}
	u.write()
	for i, key := range keys {
		if got, want := u.used(key), 2+200*max(1-i, 0); got != want {
			t.Errorf("%s was charged %d, want %d", key, got, want)
		}
	}
}

// What others have written in the place of one key's usage does not concern other keys, and nothing is counted twice.
func TestUsageBesideMalformed(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	keys := make([]string, 11)
	for i := range keys {
		keys[i] = u.newKey("u")
	}
	r.Do(t, "DEL", apiKeyRedisKey(keys[9]), apiKeyRedisKey(keys[10])) // each is said to have become the other
	r.Do(t, "SET", currentRedisKey(keys[9]), keys[10])
	r.Do(t, "SET", currentRedisKey(keys[10]), keys[9])
	r.Do(t, "SET", keyUsageRedisKey(keys[0], u.day), "x")
	r.Do(t, "SET", keyUsageRedisKey(keys[0], u.day+1), "x")
	r.Do(t, "HSET", firstRedisKey(keys[1]), "x", "x")
	r.Do(t, "DEL", apiKeyRedisKey(keys[2]))
	r.Do(t, "SET", apiKeyRedisKey(keys[2]), "x")
	r.Do(t, "DEL", apiKeyRedisKey(keys[3]))
	r.Do(t, "LPUSH", currentRedisKey(keys[3]), "x")
	r.Do(t, "HSET", apiKeyRedisKey(keys[4]), "userId", strings.Repeat("u", maxUserIDBytes+1))
	r.Do(t, "HSET", keyUsageRedisKey(keys[5], u.day), "charged", "x")
	r.Do(t, "HSET", apiKeyRedisKey(keys[6]), "first", "of nobody")
	for round := 1; round <= 2; round++ {
		for _, key := range keys {
			u.count(key, 1)
		}
		u.write()
		for _, i := range []int{1, 4, 5, 7, 8} {
			if got := u.used(keys[i]); got != round {
				t.Errorf("round %d: key %d was charged %d", round, i, got)
			}
		}
		if got, want := u.users(), (map[string]userUsage{"u": {int64(4 * round), int64(4 * round)}}); !reflect.DeepEqual(got, want) {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
		if len(u.counts) > 0 {
			t.Errorf("round %d: left are %v", round, u.counts)
		}
	}
}

// A command that Redis denies leaves nothing behind that would be added again.
func TestUsageDenied(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	key, temp, requests := u.newKey("u"), u.newKey(""), 0
	for _, command := range []string{"hset", "pexpire", "pexpireat", "hmget", "hlen", "hget", "zadd"} {
		u.count(key, 1)
		u.count(temp, 1)
		requests++
		permit(t, r, "-"+command)
		for range 3 {
			u.write()
		}
		permit(t, r, "+"+command)
		u.write()
		days, err := u.store.Usage(in(10*time.Second), u.tenant, u.day, 2)
		if err != nil {
			t.Fatal(err)
		}
		n, users := int64(requests), u.users()
		if users["u"] != (userUsage{n, n}) || users[""] != (userUsage{n, n}) || u.used(key) != requests || u.used(temp) != requests ||
			days[0].total.charged+days[1].total.charged != 2*n {
			t.Errorf("%s: of %d requests: users %v, keys %d and %d, tenant %+v", command, n, users, u.used(key), u.used(temp), days[0].total)
		}
	}
}

// What Redis has certainly not got stays, what it may have got is not added again.
func TestUsageOfKeysWithoutRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	var cut atomic.Bool
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if cut.Load() {
			return redistest.Cut
		}
		return redistest.Pass
	})
	u := newUsageTest(t, r, newTestStoreAt(t, proxy.URL))
	key := u.newKey("u")
	model := usageEvent{key: key, endpoint: "e", model: "m", requests: 1, charged: 5, granted: 2, used: llmwire.Usage{Input: 3}}
	u.add(u.tenant, model)
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	for range 3 {
		u.write()
		u.count(key, 1)
	}
	if got := u.used(key); got != 0 {
		t.Errorf("a full Redis has %d", got)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	u.write()
	days, err := u.store.KeyUsage(in(10*time.Second), u.tenant, key, u.day, 2)
	if err != nil {
		t.Fatal(err)
	}
	days[0].merge(days[1])
	if got := days[0]; got.total.charged != 8 || got.granted != 2 || got.models["m"].input != 3 || got.models["m"].charged != 5 {
		t.Errorf("got %+v, %+v", got.total, got.models["m"])
	}
	if got := u.users()["u"]; got != (userUsage{4, 8}) {
		t.Errorf("the user has %v", got)
	}
	u.count(key, 1)
	cut.Store(true)
	u.write()
	cut.Store(false)
	waittest.Eventually(t, 20*time.Second, func() error {
		u.write()
		if len(u.counts) > 0 {
			return errors.New("there is more to write")
		}
		return nil
	})
	if got := u.used(key); got > 9 {
		t.Errorf("%d tokens were counted, want 9 at most", got)
	}
}

// Memory is bounded however many keys a tenant uses: what is beyond counts for the tenant.
func TestUsageKeyBounds(t *testing.T) {
	t.Parallel()
	u, first, second, third := newUsageStats(nil), &tenant{id: "a"}, &tenant{id: "b"}, &tenant{id: "c"}
	fill := func(tn *tenant, n int) {
		for i := range n {
			u.add(tn, usageEvent{key: fmt.Sprint(tn.id, i), requests: 1, charged: 1})
		}
	}
	counted := func(tn *tenant) (keys int, requests int64) {
		for day, d := range u.counts {
			if day.tenantID == tn.id {
				keys, requests = keys+len(d.keys), requests+d.total.requests
			}
		}
		return keys, requests
	}
	const more = 10
	fill(first, maxTenantKeys+more)
	fill(second, maxUsageKeys-maxTenantKeys+more)
	fill(third, more)
	for _, test := range []struct {
		tenant         *tenant
		keys, requests int
	}{
		{first, maxTenantKeys, maxTenantKeys + more},
		{second, maxUsageKeys - maxTenantKeys, maxUsageKeys - maxTenantKeys + more}, {third, 0, more},
	} {
		if keys, requests := counted(test.tenant); keys != test.keys || requests != int64(test.requests) {
			t.Errorf("%s: %d keys, %d requests, want %d, %d", test.tenant.id, keys, requests, test.keys, test.requests)
		}
	}
	if n := u.uncounted.Load(); n != 3*more {
		t.Errorf("%d are uncounted, want %d", n, 3*more)
	}
	for day, d := range u.take() { // as if Redis had not got them
		u.putBack(day, d)
	}
	if keys, requests := counted(first); keys != maxTenantKeys || requests != maxTenantKeys+more || u.keys != maxUsageKeys {
		t.Errorf("%d keys, %d requests are put back, %d in all", keys, requests, u.keys)
	}
	u.take()
	fill(third, more)
	if keys, _ := counted(third); keys != more {
		t.Errorf("%d keys are counted, want %d", keys, more)
	}

	model := func(key int, name string) {
		u.add(first, usageEvent{key: fmt.Sprint(key), endpoint: "e", model: name, requests: 1})
	}
	for key := range maxUsageModels/maxUsageNames + 5 {
		for i := range maxUsageNames + 5 {
			model(key, fmt.Sprint("m", i))
		}
	}
	model(0, strings.Repeat("m", maxUsageModel+1))
	models, requests := 0, int64(0)
	for _, d := range u.counts {
		for _, k := range d.keys {
			models += len(k.models)
			for _, sums := range k.models {
				requests += sums.requests
			}
		}
	}
	if want := int64((maxUsageModels/maxUsageNames+5)*(maxUsageNames+5) + 1); requests != want || models > maxUsageModels+more+5 {
		t.Errorf("%d models with %d requests, want %d at most with %d", models, requests, maxUsageModels+more+5, want)
	}
}

// In Redis the models of a key are bounded, and the users of a tenant: those who were charged most are kept.
func TestUsageKeyBoundsInRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	key := u.newKey("u")
	for round := range 5 {
		for i := range 60 {
			u.add(u.tenant, usageEvent{key: key, endpoint: "e", model: fmt.Sprint(round, " ", i), requests: 1, charged: 2})
		}
		u.write()
	}
	fields, requests := 0, int64(0)
	for i := range 2 {
		fields += r.Int(t, "HLEN", keyUsageRedisKey(key, u.day+int64(i)))
	}
	days, err := u.store.KeyUsage(in(10*time.Second), u.tenant, key, u.day, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, day := range days {
		for _, sums := range day.models {
			requests += sums.requests
		}
	}
	if requests != 300 || fields > 2*(maxKeyFields+3) || days[0].models[otherName] == nil && days[1].models[otherName] == nil {
		t.Errorf("%d fields, %d requests of models, want 300", fields, requests)
	}

	day := usageDay{u.tenant.id, u.tenant.generation, u.day + 5}
	add := func(from, n int, charged int64) {
		t.Helper()
		users, ids := make(map[string]*userUsage), make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("user %05d", from+i)
			users[ids[i]] = &userUsage{1, charged}
		}
		if !u.store.AddUserUsage(in(10*time.Second), day, ids, users) {
			t.Fatal("they were not added")
		}
	}
	for from := 0; from < maxUsageUsers; from += maxBatchUsers {
		add(from, maxBatchUsers, 2)
	}
	add(maxUsageUsers, maxBatchUsers, 3) // in place of others
	add(2*maxUsageUsers, maxBatchUsers, 1)
	add(maxUsageUsers, maxBatchUsers, maxAmount)
	top, kept, err := u.store.TopUsers(in(10*time.Second), u.tenant, day.day, 1000)
	names := usersRedisKeys(u.tenant.id, day.day)
	users, sums := r.Int(t, "ZCARD", names[0]), r.Int(t, "HLEN", names[1])
	if err != nil || len(top) != 1000 || users != maxUsageUsers || sums != maxUsageUsers+2 {
		t.Fatalf("%d users of %d, %d sums, %v", len(top), users, sums, err)
	}
	if got := top[maxBatchUsers-1].userUsage; got != (userUsage{2, maxAmount}) {
		t.Errorf("who was charged most has %v", got)
	}
	if got, want := top[maxBatchUsers], (topUser{"user 09999", userUsage{1, 2}}); got != want {
		t.Errorf("after those comes %v, want %v", got, want)
	}
	if want := (userUsage{maxUsageUsers + maxBatchUsers, maxAmount}); kept != want {
		t.Errorf("together they have %v, want %v", kept, want)
	}
	for _, name := range names[:2] {
		if days := r.Int(t, "TTL", name) / daySeconds; days < 99 || days > 100 {
			t.Errorf("%s expires after %d days", name, days)
		}
	}
}

// What is used with a key that shares a balance, or with the former name of a key in its grace, is that of the key that
// has the balance.
func TestUsageOfSharedBalances(t *testing.T) {
	t.Parallel()
	first, p, s := today(), providertest.New(t), newService(t)
	g := s.gatewayTest(t, p, strings.Replace(textConfig(1000, endpointJSON(p, "chat", chatPath, "")),
		`"user_groups":{`, `"user_groups":{"pro":{"tokens":5000},`, 1))
	tenant, key := "/"+g.tenant, s.issue(t, g.tenant, `"userId":"u","group":"pro"`)
	sharing := s.issue(t, g.tenant, `"sharesWith":"`+key+`"`)
	g.key = sharing
	s.consume(t, g.tenant, key, `{"tokens":10}`).want(t, 200, "")
	s.consume(t, g.tenant, sharing, `{"tokens":20}`).want(t, 200, "")
	hold := s.do(t, "POST", tenant+"/tokens/holds", `{"tokens":100}`, bearer(sharing)).text(t, "holdId")
	s.do(t, "POST", tenant+"/tokens/holds/"+hold+"/settle", `{"tokens":40}`, bearer(sharing)).want(t, 200, "")
	s.admin(t, "PATCH", tenant+"/admin/keys/"+sharing, `{"addTokens":100}`).want(t, 200, "")
	if err := g.call(t, chatPath, `{"max_tokens":9}`).is(200); err != nil {
		t.Fatal(err)
	}
	rotated := s.admin(t, "POST", tenant+"/admin/keys/"+key+"/rotate", `{"graceSeconds":600}`).text(t, "apiKey")
	s.consume(t, g.tenant, key, `{"tokens":3}`).want(t, 200, "")
	s.consume(t, g.tenant, sharing, `{"tokens":4}`).want(t, 200, "")
	want := keyUsageBody{
		Requests: 6, InputTokens: 11, OutputTokens: 7, TokensCharged: 10 + 20 + 40 + requestCost + 3 + 4, TokensGranted: 5100,
		ByModel: map[string]endpointUsage{
			"m": {Requests: 1, InputTokens: 11, CachedInputTokens: 5, OutputTokens: 7, TokensCharged: requestCost},
		},
	}
	for _, name := range []string{key, sharing, rotated} {
		s.wantKeyUsage(t, tenant+"/auth/usage", first, want, name)
		s.wantKeyUsage(t, tenant+"/admin/keys/"+name+"/usage", first, want, testAdminToken)
	}
	s.wantUserUsage(t, g.tenant, first, "", fmt.Sprintf(`[{"userId":"u","requests":6,"tokensCharged":%d}]`, want.TokensCharged))
	s.admin(t, "DELETE", tenant+"/admin/keys/"+rotated, "").want(t, 204, "")
	s.do(t, "GET", usagePath(tenant+"/auth/usage", first), "", bearer(sharing)).wantError(t, 401, "Unauthorized")
}

// A session counts for the key that pays, by whatever name.
func TestKeyUsageOfSessions(t *testing.T) {
	t.Parallel()
	a := newSessionIn(t, redistest.New(t))
	used := gateway.Usage{Endpoint: "e", Model: "m", Usage: llmwire.Usage{Output: 4}, Cost: 30}
	hold, err := a.Hold(soon(), takes(100))
	if err != nil {
		t.Fatal(err)
	}
	part := used
	part.IsPart = true
	_, hold, err = a.Exchange(soon(), hold.ID, part, takes(50))
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := a.server.store.RotateKey(soon(), a.tenant, a.key, 0, idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = a.Settle(soon(), hold.ID, used); err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]usageSums)
	for _, d := range a.server.usage.counts {
		for name, k := range d.keys {
			sum := sums[name]
			sum.add(*k.models["m"])
			sums[name] = sum
		}
	}
	want := map[string]usageSums{a.key: {charged: 30, output: 4}, rotated.key: {requests: 1, charged: 30, output: 4}}
	if !reflect.DeepEqual(sums, want) {
		t.Errorf("got %+v, want %+v", sums, want)
	}
}

// The most that a process counts for a tenant between two writings, and for a key, is written in one step each.
func TestUsageOfManyNames(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	key := u.newKey("u")
	used := llmwire.Usage{Input: 4, CachedInput: 1, CacheWrite: 1, AudioInput: 1, Output: 2, AudioOutput: 1}
	const n = maxUsageNames + 9
	for i := range n {
		name := fmt.Sprint("name ", i)
		u.add(u.tenant, usageEvent{key: key, group: name, endpoint: name, model: name, requests: 1, charged: 1, used: used})
	}
	u.write()
	days, err := u.store.Usage(in(10*time.Second), u.tenant, u.day, 2)
	if err != nil {
		t.Fatal(err)
	}
	days[0].merge(days[1])
	for _, kind := range days[0].kinds() {
		sums := usageSums{}
		for _, one := range *kind.all {
			sums.add(*one)
		}
		want := usageSums{requests: n, charged: n, input: 4 * n, output: 2 * n, cachedInput: n, cacheWrite: n, audioInput: n, audioOutput: n}
		if sums != want {
			t.Errorf("%s: got %+v, want %+v", kind.kind, sums, want)
		}
	}
	if got := u.used(key); got != n || len(u.counts) > 0 {
		t.Errorf("the key was charged %d, want %d; left are %d days", got, n, len(u.counts))
	}
}

// However many keys are used at a time, writing takes no longer than it may; what is left comes the next time. The
// benchmark writes as many as there may be.
func TestUsageOfManyKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	u := newUsageTest(t, r, newTestStore(t, r))
	conn := r.MustDial(t)
	const n = maxTenantKeys / 4
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("user_%08d-0000-4000-8000-000000000000", i)
		if err := conn.Send("HSET", apiKeyRedisKey(keys[i]), "tenantId", u.tenant.id, "userId", fmt.Sprint("u", i%(n/2))); err != nil {
			t.Fatal(err)
		}
	}
	redistest.MustDo(t, conn, "PING")
	for _, key := range keys {
		u.count(key, 1)
	}
	for range 20 {
		start := time.Now()
		u.write()
		took := time.Since(start)
		t.Logf("written in %v", took)
		if took > usageTimeout+4*busy {
			t.Errorf("writing took %v, want %v at most", took, usageTimeout)
		}
		if len(u.counts) == 0 {
			break
		}
	}
	for i := 0; i < n; i += 100 {
		if got := u.used(keys[i]); got != 1 {
			t.Errorf("key %d was charged %d", i, got)
		}
	}
	users := u.users()
	if len(users) != 1000 || users["u1249"] != (userUsage{2, 2}) {
		t.Errorf("%d users, one has %v", len(users), users["u1249"])
	}
}

// What the rows of users add up to is what the day has.
func TestUserUsages(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		top         []topUser
		kept, total userUsage
		want        string
	}{
		"none":     {nil, userUsage{}, userUsage{}, `[]`},
		"no users": {nil, userUsage{}, userUsage{2, 3}, `[{"userId":"other","requests":2,"tokensCharged":3}]`},
		"all kept": {[]topUser{{"a", userUsage{1, 2}}}, userUsage{1, 2}, userUsage{1, 2}, `[{"userId":"a","requests":1,"tokensCharged":2}]`},
		"rest": {[]topUser{{"a", userUsage{1, 9}}, {"", userUsage{1, 2}}}, userUsage{5, 13}, userUsage{8, 17},
			`[{"userId":"a","requests":1,"tokensCharged":9},{"userId":"other","requests":3,"tokensCharged":4},` +
				`{"userId":null,"requests":1,"tokensCharged":2}]`},
		"one of that name": {[]topUser{{"a", userUsage{1, 9}}, {"other", userUsage{1, 2}}}, userUsage{2, 11}, userUsage{5, 20},
			`[{"userId":"other","requests":4,"tokensCharged":11},{"userId":"a","requests":1,"tokensCharged":9}]`},
		"written before the tenant": {[]topUser{{"a", userUsage{1, 2}}}, userUsage{1, 2}, userUsage{},
			`[{"userId":"a","requests":1,"tokensCharged":2}]`},
	} {
		got, err := json.Marshal(userUsages(test.top, test.kept, usageSums{requests: test.total.requests, charged: test.total.charged}))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

// BenchmarkUsageWrite writes what 10,000 keys of 5,000 users have used in a second.
func BenchmarkUsageWrite(b *testing.B) {
	r := redistest.New(b)
	u, id := newUsageStats(newTestStore(b, r)), newTenantIn(b, r, `{}`)
	tn := u.store.wantTenant(b, id)
	keys := make([]string, maxTenantKeys)
	for i := range keys {
		keys[i] = fmt.Sprintf("user_%08d-0000-4000-8000-000000000000", i)
		r.Do(b, "HSET", apiKeyRedisKey(keys[i]), "tenantId", id, "userId", fmt.Sprint("u", i%5000))
	}
	writes := 0
	for b.Loop() {
		b.StopTimer()
		for _, key := range keys {
			u.add(tn, usageEvent{key: key, requests: 1, charged: 1, endpoint: "e", model: "m", used: llmwire.Usage{Input: 1, Output: 1}})
		}
		b.StartTimer()
		for len(u.counts) > 0 {
			u.write()
			writes++
		}
	}
	var calls, microseconds int
	info := redistest.Field(r.String(b, "INFO", "commandstats"), "cmdstat_evalsha")
	fmt.Sscanf(info, "calls=%d,usec=%d", &calls, &microseconds)
	b.ReportMetric(float64(writes)/float64(b.N), "writes/op")
	b.ReportMetric(float64(microseconds)/float64(calls), "redis-µs/script")
	b.ReportMetric(float64(microseconds)/float64(b.N)/1000, "redis-ms/op")
}

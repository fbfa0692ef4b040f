package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// What a group may ask of the gateway, and how the requests of one key share its balance.

const requestCost = providertest.InputTokens + providertest.OutputTokens

// testContention lets 64 clients make 800 requests with one key, each repeated while it is 429, and checks that as many
// succeed as the key is worth. What a request holds beyond its cost must be left at the end, and nothing else.
func testContention(t *testing.T, services []*service) {
	const worth = 200
	p := providertest.New(t)
	p.On("m", providertest.Conduct{Delay: time.Millisecond})
	s := services[0]
	for _, test := range []struct {
		name string
		held int // by a request
	}{
		{"holds of the cost", requestCost}, {"few fit", 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			tenant := newClusterTenant(t, s, textConfig(int64(worth-1)*requestCost+int64(test.held),
				endpointJSON(p, "chat", chatPath, `,"max_input_tokens":1`)))
			key := s.login(t, tenant)
			body := fmt.Sprintf(`{"messages":[],"max_tokens":%d}`, test.held-1)
			all := contend(t, services, "/"+tenant+chatPath, body, key)
			if all[200] != worth || all[402] != 800-worth {
				t.Errorf("of 800 requests %d succeeded, want %d; %v by status", all[200], worth, all)
			}
			waittest.Eventually(t, 10*time.Second, func() error { // Redis may have missed the deadline of a settlement
				got := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key))
				if got.field(t, "tokensLeft") != float64(test.held-requestCost) || strings.Contains(got.body, "tokensHeld") {
					return fmt.Errorf("%d more than the cost are held, and the key has %s", test.held-requestCost, got.body)
				}
				return nil
			})
		})
	}
}

// contend lets 64 clients make 800 requests together, over all services. Each request is repeated while it is 429 or
// 503. It returns how many had which status at last.
func contend(t *testing.T, services []*service, path, body, key string) map[int]int {
	var clients sync.WaitGroup
	var begun atomic.Int64
	var mu sync.Mutex
	statuses := make(map[int]int)
	for i := range 64 {
		clients.Go(func() {
			for begun.Add(1) <= 800 {
				for {
					got, err := services[i%len(services)].send("POST", path, body, bearer(key))
					if err == nil && got.status == 429 {
						got.wantWireError(t, path, 429, "rate_limit_error", "balance_held")
						got.wantHeader(t, "Retry-After", "1")
						time.Sleep(20 * time.Millisecond) // which is sooner than it is told
						continue
					} else if err == nil && got.status == 503 { // Redis has missed a deadline, and nothing is charged
						time.Sleep(100 * time.Millisecond)
						continue
					}
					mu.Lock()
					statuses[got.status]++
					mu.Unlock()
					break
				}
			}
		})
	}
	clients.Wait()
	return statuses
}

// What a key is worth is spent to the last request, however many of them run at a time.
func TestContention(t *testing.T) { // not beside other tests, which it leaves little time
	t.Run("one process", func(t *testing.T) { testContention(t, []*service{newService(t)}) })
	t.Run("two processes", func(t *testing.T) { testContention(t, newServices(t)) })
}

func testClusterContention(t *testing.T) {
	testContention(t, newServices(t, "REDIS_URL="+redistest.SharedCluster(t).URL()))
}

// A request that the balance would cover without another is 429 in both formats, and 402 only if even that would not do.
// It takes no rate.
func TestBalanceHeld(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.On("slow", providertest.Conduct{Hang: providertest.InContent})
	s := newService(t)
	config := textConfig(100, endpointsJSON(p, `,"max_input_tokens":1,"on_hangup":"cancel"`)...)
	g := s.gatewayTest(t, p, strings.Replace(config, `{"tokens":100}`, `{"tokens":100,"rate_limit":9,"rate_limit_window":999}`, 1))
	c := g.open(t, chatPath, `{"model":"slow","stream":true,"max_tokens":59}`, "ünd") // 40 are left
	for _, path := range []string{chatPath, messagesPath} {
		got := g.call(t, path, `{"max_tokens":50}`)
		code := map[string]string{chatPath: "balance_held"}[path]
		got.wantWireError(t, path, 429, "rate_limit_error", code)
		got.wantHeader(t, "Retry-After", "1")
		got.wantHeader(t, "X-Tokens-Left", "40")
		got.wantHeader(t, "X-RateLimit-Remaining-Requests", "8")
		if err := g.call(t, path, `{"max_tokens":100}`).is(402); err != nil { // 101 are needed
			t.Error(err)
		}
	}
	if n := g.sample(t, fmt.Sprintf(`charges_refused_total{tenant=%q,reason="balance"}`, g.tenant)); n != 4 {
		t.Errorf("%v refusals are counted, want 4", n)
	}
	g.wantServedAfter(t, c, chatPath, `{"max_tokens":50}`)
}

// wantServedAfter begins a call that waits for what that of c holds, closes c, and expects the call to succeed.
func (g *gatewayTest) wantServedAfter(t *testing.T, c net.Conn, path, body string) {
	t.Helper()
	done := make(chan reply, 1)
	go func() { done <- g.call(t, path, body) }()
	g.awaitUsed(t, "waiting", 2)
	c.Close()
	if err := (<-done).is(200); err != nil {
		t.Errorf("%s after the other request was settled: %v", path, err)
	}
}

// A fee, and the question how many tokens a request has, wait as a hold does: they need a balance, of 1 at least.
func TestFeeHeld(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.On("slow", providertest.Conduct{Hang: providertest.InContent})
	s := newService(t)
	g := s.gatewayTest(t, p, cachedConfig(60, cachingForAnHour, endpointsJSON(p, `,"max_input_tokens":1,"on_hangup":"cancel"`)...))
	g.miss(t, chatPath, `{"max_tokens":20}`) // 42 are left
	c := g.open(t, chatPath, `{"model":"slow","stream":true,"max_tokens":41}`, "ünd")
	const count = messagesPath + "/count_tokens"
	for _, test := range []struct{ path, body string }{{chatPath, `{"max_tokens":20}`}, {count, `{}`}} {
		got := g.call(t, test.path, test.body)
		got.wantWireError(t, test.path, 429, "rate_limit_error", map[string]string{chatPath: "balance_held"}[test.path])
		got.wantHeader(t, "Retry-After", "1")
	}
	g.wantServedAfter(t, c, count, `{}`)
	g.call(t, chatPath, `{"max_tokens":20}`).wantHeader(t, "X-Cache", "HIT")
	testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", 0)
	for _, path := range []string{chatPath, count} {
		if err := g.call(t, path, `{"max_tokens":20}`).is(402); err != nil {
			t.Error(err)
		}
	}
}

// A group's max_concurrent counts what a key has under way, over all processes: no holds through the HTTP API, and
// none that have expired.
func TestMaxConcurrent(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.On("slow", providertest.Conduct{Hang: providertest.InContent})
	services := newServices(t)
	config := formatsConfig(p, 10_000, `,"on_hangup":"cancel"`, "")
	g := services[0].gatewayTest(t, p, strings.Replace(config, `{"tokens":10000}`, `{"tokens":10000,"max_concurrent":2}`, 1))
	h, _ := g.hold(t, g.tenant, g.key, `{"tokens":5}`)
	open := func() net.Conn { return g.open(t, chatPath, `{"model":"slow","stream":true,"max_tokens":50}`, "ünd") }
	first, second := open(), open()
	wantBusy := func() {
		t.Helper()
		for i, f := range wireFormats() {
			got := services[i%2].do(t, "POST", "/"+g.tenant+f.path, f.body(), bearer(g.key))
			f.wantError(t, got, 429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error")
			got.wantHeader(t, "Retry-After", "1")
		}
	}
	wantFree := func() {
		t.Helper()
		waittest.Eventually(t, 20*time.Second, func() error { return g.call(t, chatPath, `{"max_tokens":50}`).is(200) })
	}
	wantBusy()
	if err := g.call(t, messagesPath+"/count_tokens", `{}`).is(200); err != nil {
		t.Error(err)
	}
	if _, got := g.hold(t, g.tenant, g.key, `{"tokens":5}`); got.status != 201 {
		t.Errorf("a hold through the HTTP API: %d %s", got.status, got.body)
	}
	g.settle(t, g.tenant, g.key, h.HoldID, `{"tokens":1}`).want(t, 200, "")
	wantBusy()
	g.key = g.rotate(t, g.tenant, g.key) // the requests go on with it
	wantBusy()
	first.Close()
	wantFree()
	third := open()
	wantBusy()
	g.expireHolds(t)
	if err := g.call(t, chatPath, `{"max_tokens":50}`).is(200); err != nil {
		t.Errorf("after the holds have expired: %v", err)
	}
	second.Close()
	third.Close()
}

// modelsConfig has an endpoint of each format, and a group with some of their models for each of groups.
func modelsConfig(p *providertest.Provider, groups string) string {
	config := strings.ReplaceAll(formatsConfig(p, 10_000, "", ""), `"*":`, `"old-1":{},"new-1":{},"new-2":{},"other":`)
	return strings.Replace(config, `{"anonymous":{"tokens":10000}}`, `{"anonymous":{"tokens":10000},`+groups+`}`, 1)
}

// A group has only its models, in requests of all kinds and in the list.
func TestGroupModels(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	s := newService(t)
	many := `"x":{"models":["none"]}` // more groups than a request sends
	for i := range 300 {
		many += fmt.Sprintf(`,"group-%d":{"models":["old-1"]}`, i)
	}
	const groups = `"few":{"tokens":10000,"models":["new-*","old-1"]},"one":{"tokens":10000,"models":["other"]},` +
		`"none":{"tokens":10000,"models":[]}`
	for name, config := range map[string]string{
		"few groups":  modelsConfig(p, groups),
		"many groups": modelsConfig(p, many+","+groups),
	} {
		g := s.gatewayTest(t, p, config)
		for _, test := range []struct {
			group, model string // asked for
			got          string // by the provider; "": 404
		}{
			{"anonymous", "", "m"}, {"anonymous", "other", "other"}, {"anonymous", "nothing", ""},
			{"few", "", "old-1"}, {"few", "m", ""}, {"few", "new-2", "new-2"}, {"few", "ENDPOINT/new-1", "new-1"},
			{"few", "other", ""}, {"few", "ENDPOINT/other", ""}, {"few", "nothing", ""},
			{"one", "", "other"}, {"one", "old-1", ""}, {"none", "", ""}, {"none", "m", ""},
		} {
			key := s.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":%q,"tokens":10000`, test.group))
			formats := wireFormats()
			count := formats[slices.IndexFunc(formats, func(f wireFormat) bool { return f.path == messagesPath })]
			count.path += "/count_tokens"
			for _, f := range append(formats, count) {
				t.Run(fmt.Sprint(name, " ", test.group, " ", test.model, f.path), func(t *testing.T) {
					g := &gatewayTest{s, p, g.tenant, key}
					g.testGroupModel(t, f, strings.Replace(test.model, "ENDPOINT", f.endpoint, 1), test.got)
				})
			}
		}
		for group, want := range map[string][]string{
			"anonymous": {"m", "old-1", "new-1", "new-2", "other"}, "few": {"old-1", "new-1", "new-2"}, "one": {"other"}, "none": nil,
		} {
			key := s.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":%q`, group))
			(&gatewayTest{s, p, g.tenant, key}).testModelList(t, want)
		}
	}
}

// testGroupModel asks for a model, or for none if it is "". The provider must be asked for got or, if that is "", not be
// asked, which takes neither tokens nor rate.
func (g *gatewayTest) testGroupModel(t *testing.T, f wireFormat, model, got string) {
	t.Helper()
	body := f.body()
	if model != "" {
		body = f.body(fmt.Sprintf(`,"model":%q`, model))
	}
	before, left := len(g.provider.Requests()), tokensLeft(t, g.key)
	response := g.call(t, f.path, body)
	if got == "" {
		f.wantError(t, response, 404, "invalid_request_error", "model_not_found", "not_found_error")
		if n := len(g.provider.Requests()) - before; n != 0 || tokensLeft(t, g.key) != left {
			t.Errorf("the provider got %d requests, %d tokens are left of %d", n, tokensLeft(t, g.key), left)
		}
		return
	}
	if err := response.is(200); err != nil {
		t.Fatal(err)
	}
	if sent := g.provider.Last(t); sent.Model != got {
		t.Errorf("the provider was asked for %q, want %q", sent.Model, got)
	}
}

// testModelList compares the models that a key sees with want.
func (g *gatewayTest) testModelList(t *testing.T, want []string) {
	t.Helper()
	var seen []string
	list := g.do(t, "GET", "/"+g.tenant+"/v1/models", "", bearer(g.key))
	for _, model := range list.field(t, "data").([]any) {
		seen = append(seen, model.(map[string]any)["id"].(string))
	}
	if !slices.Equal(seen, want) {
		t.Errorf("listed are %v, want %v", seen, want)
	}
	for _, model := range []string{"m", "old-1", "other", "chat%2Fnew-1"} {
		status := 404
		if slices.Contains(want, strings.TrimPrefix(model, "chat%2F")) {
			status = 200
		}
		if err := g.do(t, "GET", "/"+g.tenant+"/v1/models/"+model, "", bearer(g.key)).is(status); err != nil {
			t.Errorf("%s: %v", model, err)
		}
	}
}

// What is cached is only served to groups that have the model, and the default of each group is cached for itself.
func TestGroupModelsCached(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	s := newService(t)
	config := strings.TrimSuffix(modelsConfig(p, `"one":{"tokens":10000,"models":["other"],"rate_limit":5,"rate_limit_window":999}`), "}")
	g := s.gatewayTest(t, p, config+`,"caching":{`+cachingForAnHour+`}}`)
	one := &gatewayTest{s, p, g.tenant, s.issue(t, g.tenant, `"userId":"u","group":"one"`)}
	g.miss(t, chatPath, `{"model":"m"}`)
	g.miss(t, chatPath, `{}`)
	one.call(t, chatPath, `{"model":"m"}`).wantWireError(t, chatPath, 404, "invalid_request_error", "model_not_found")
	one.miss(t, chatPath, `{}`)
	if model := p.Last(t).Model; model != "other" {
		t.Errorf("the provider was asked for %q", model)
	}
	got := one.call(t, chatPath, `{}`)
	got.wantHeader(t, "X-Cache", "HIT")
	got.wantHeader(t, "X-RateLimit-Remaining-Requests", "3")
	if left := tokensLeft(t, one.key); left != 10_000-18-4 {
		t.Errorf("%d tokens are left", left)
	}
}

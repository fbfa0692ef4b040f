package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// endpointTest is the response to a test of an endpoint.
type endpointTest struct {
	OK        bool
	Status    int
	LatencyMs int64
	Model     string
	Error     string
}

// testEndpoint tests an endpoint of a tenant, with the operator's token.
func (s *service) testEndpoint(t testing.TB, tenant, endpoint string) (result endpointTest) {
	t.Helper()
	got := s.admin(t, "POST", testPath(tenant, endpoint), "")
	got.want(t, 200, "")
	if err := json.Unmarshal([]byte(got.body), &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// testPath returns the path of a test of an endpoint, which is given as kind/name.
func testPath(tenant, endpoint string) string {
	return "/" + tenant + "/admin/endpoints/" + endpoint + "/test"
}

// An endpoint of each format is asked for as little as possible, with its key, and nobody pays for it.
func TestEndpointTests(t *testing.T) {
	t.Parallel()
	s := newService(t)
	g := s.newGatewayTest(t, 10_000, "")
	token := s.newAdminToken(t, g.tenant)
	want := map[string]string{ // of the body that the provider gets
		"chat": `{"model":"m","max_tokens":1,`, "claude": `{"model":"m","max_tokens":1,`, "responses": `"max_output_tokens":16,"store":false`,
	}
	for i, f := range wireFormats() {
		testRedis.Do(t, "DEL", endpointTestsRedisKey(g.tenant))
		endpoint := f.kind + "/" + f.endpoint
		got := s.do(t, "POST", testPath(g.tenant, endpoint), "", bearer(token))
		got.want(t, 200, "")
		if ms, _ := got.field(t, "latencyMs").(float64); got.body != fmt.Sprintf(`{"ok":true,"status":200,"latencyMs":%v,"model":"m"}`+"\n", ms) {
			t.Errorf("%s: got %s", endpoint, got.body)
		}
		sent := g.provider.Last(t)
		if len(g.provider.Requests()) != i+1 || sent.Path != f.path || sent.Model != "m" || sent.Stream {
			t.Errorf("%s: the provider got %+v", endpoint, sent)
		}
		credential := sent.Header.Get("Authorization") + sent.Header.Get("X-Api-Key")
		if strings.TrimPrefix(credential, "Bearer ") != providertest.Key || sent.Header.Get(loopHeader) == "" {
			t.Errorf("%s: the provider got the header %v", endpoint, sent.Header)
		}
		if version := sent.Header.Get("Anthropic-Version"); (version != "") != (f.path == messagesPath) {
			t.Errorf("%s: Anthropic-Version is %q", endpoint, version)
		}
		if !strings.Contains(string(sent.Body), want[f.endpoint]) || len(sent.Body) > 4<<10 {
			t.Errorf("%s: the provider got %s", endpoint, sent.Body)
		}
		line := fmt.Sprintf("[INFO] Admin %s, tenant %s: tested the endpoint %q: ok true, status 200\n", tokenHash(token)[:8], g.tenant, endpoint)
		if n := s.log.Count(line); n != 1 {
			t.Errorf("%s: %d lines are %s%s", endpoint, n, line, s.log)
		}
		if n := s.sample(t, fmt.Sprintf(`gateway_requests_total{tenant=%q,endpoint=%q,status="200"}`, g.tenant, f.endpoint)); n > 0 {
			t.Errorf("%s: it counts as a request", endpoint)
		}
	}
	if n := tokensLeft(t, g.key); n != 10_000 {
		t.Errorf("%d tokens are left", n)
	}
	awaitUsage(t, testRedis, g.tenant)
	if got := s.usage(t, g.tenant, today()); got.Requests != 0 || len(got.ByEndpoint) != 0 {
		t.Errorf("the usage is %+v", got)
	}
	if s.log.Count(providertest.Key) != 0 {
		t.Errorf("the key is in the log:\n%s", s.log)
	}
}

// A test fails in words of the provider's or ours, and is not tried elsewhere.
func TestEndpointTestFails(t *testing.T) {
	t.Parallel()
	s := newService(t)
	g := s.newGatewayTest(t, 100, "")
	g.provider.On("", providertest.Conduct{Status: 401, Body: `{"error":{"message":"Incorrect API key provided: ` + providertest.Key + `."}}`})
	got := s.testEndpoint(t, g.tenant, "text/chat")
	got.LatencyMs = 0
	if want := (endpointTest{false, 401, 0, "m", "Incorrect API key provided: [removed]."}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := len(g.provider.Requests()); n != 1 {
		t.Errorf("%d requests were sent", n)
	}
	if s.log.Count(`tested the endpoint "text/chat": ok false, status 401`+"\n") != 1 || s.log.Count(providertest.Key) != 0 {
		t.Errorf("log:\n%s", s.log)
	}
	t.Run("a slow provider does not use up the time of Redis", func(t *testing.T) {
		g.provider.On("", providertest.Conduct{Delay: adminTimeout + busy})
		if got := s.testEndpoint(t, g.tenant, "text/claude"); !got.OK || got.LatencyMs < adminTimeout.Milliseconds() {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("one that leads back here", func(t *testing.T) {
		id := newTenantIn(t, testRedis, "{}")
		s.saveConfig(t, id, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":5}},"providers":{"text":{"endpoints":{
			"self":{"url":"%s/%s/v1/chat/completions","default_model":"m","api_key":%q}}}}}`, s.url, id, someKey))
		if got := s.testEndpoint(t, id, "text/self"); got.OK || got.Status != 508 || !strings.Contains(got.Error, "through this service before") {
			t.Errorf("got %+v", got)
		}
	})
}

// A provider that takes all the time that it may is named in the response, which still has time to be sent.
func TestEndpointTestTimesOut(t *testing.T) {
	t.Parallel()
	g := newService(t).newGatewayTest(t, 100, "")
	g.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	got := g.testEndpoint(t, g.tenant, "text/chat")
	if got.LatencyMs < gateway.ProbeTimeout.Milliseconds() {
		t.Errorf("it took %d ms", got.LatencyMs)
	}
	got.LatencyMs = 0
	if want := (endpointTest{Model: "m", Error: "The provider has failed: it does not respond in time"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Endpoints that the gateway does not use are not asked, and the response says why. Those that do not exist are 404, and
// count too, since looking for one takes as long as the config is large.
func TestEndpointTestUnused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := providertest.New(t)
	const unused = "The endpoint is not used: "
	id := newTenantIn(t, testRedis, fmt.Sprintf(`{"providers":{
		"text":{"endpoints":{"none":{},"old":{"url":"%[1]s/v1/completions"},"named":{"url":"%[1]s/v1/messages","default_model":"m",
			"api_key_name":"k"},"a b/ü?%%":{"url":"%[1]s/v1/chat/completions","default_model":"m"},"new":{"url":"%[1]s/v1/messages","limit":5}}},
		"images":{"endpoints":{"e":{"url":"%[1]s/v1/chat/completions"},"f":{"url":7}}},
		"realtime":{"endpoints":{"x":{"url":"ws://h/v1/realtime"},"openai":{"url":"ws://h/v1/chat","model":"m"}}},
		"video":{"endpoints":{"e":{"url":"%[1]s/v1/chat/completions"}}}}}`, p.URL))
	for _, test := range []struct{ endpoint, want string }{
		{"text/none", "The endpoint's url is missing"},
		{"text/old", "The endpoint's url is not used: its path should end in /chat/completions, /messages or /responses"},
		{"text/named", "The endpoint cannot be used: its api_key_name must name a key that the operator has for this tenant"},
		{"text/new", unused + "a member of it breaks a rule that is newer than the config: save the config to read which"},
		{"images/e", "The endpoint's url is not used: its path should end in /images/generations"},
		{"realtime/x", `The endpoint's type is missing: without "openai" or "ultravox" the endpoint is not used`},
		{"realtime/openai", "The endpoint's url is not used: its path should end in /realtime"},
		{"video/e", unused + "no request is for endpoints of its kind"},
		{"text/a%20b%2F%C3%BC%3F%25", ""},
	} {
		got := s.testEndpoint(t, id, test.endpoint)
		if got.OK != (test.want == "") || got.Error != test.want || got.OK != (got.Status == 200) {
			t.Errorf("%s: got %+v, want %q", test.endpoint, got, test.want)
		}
	}
	if n := len(p.Requests()); n != 1 {
		t.Errorf("%d requests were sent, want 1", n)
	}
	testRedis.Do(t, "DEL", endpointTestsRedisKey(id))
	for _, endpoint := range []string{
		"text/other", "images/none", "audio/e", "Text/none", "text/NONE", "video/f", "text/a", "text/%00", "endpoints/text", "text/a%20b",
	} {
		s.admin(t, "POST", testPath(id, endpoint), "").wantError(t, 404, "Not found")
	}
	if n := testRedis.Int(t, "LLEN", endpointTestsRedisKey(id)); n != testsPerMinute {
		t.Errorf("%d tests are counted, want %d", n, testsPerMinute)
	}
	s.admin(t, "POST", testPath(id, "text/other"), "").want(t, 429, "")
}

// Only the tenant's admins and the operator may test its endpoints; what is refused is not counted.
func TestEndpointTestAccess(t *testing.T) {
	t.Parallel()
	s := newService(t, trustTest)
	g := s.newGatewayTest(t, 100, "")
	other := newTenant(t, 10)
	path := testPath(g.tenant, "text/chat")
	for _, test := range []struct {
		method, body string
		headers      []string
		status       int
	}{
		{"POST", "", nil, 401}, {"POST", "", []string{bearer("x")}, 401}, {"POST", "", []string{bearer(g.key)}, 401},
		{"POST", "", []string{bearer(s.newAdminToken(t, other))}, 401},
		{"POST", "", []string{bearer(testAdminToken), retryKey + "a"}, 400},
		{"POST", `{"model":"m"}`, []string{bearer(testAdminToken)}, 400},
		{"GET", "", []string{bearer(testAdminToken)}, 405},
	} {
		s.do(t, test.method, path, test.body, append(test.headers, fromElsewhere())...).want(t, test.status, "")
	}
	s.admin(t, "POST", testPath("nobody", "text/chat"), "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	s.admin(t, "POST", testPath(newTenantIn(t, testRedis, "{"), "text/chat"), "").want(t, 500, "")
	if n := len(g.provider.Requests()) + testRedis.Int(t, "LLEN", endpointTestsRedisKey(g.tenant)); n != 0 {
		t.Errorf("%d requests were sent or counted", n)
	}
	s.do(t, "POST", path, "{}", bearer(s.newAdminToken(t, g.tenant))).want(t, 200, "")
}

// The tenant default has the route without its ID, too.
func TestEndpointTestOfDefault(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, p := newService(t, "REDIS_URL="+r.URL()), providertest.New(t)
	s.createTenant(t, defaultTenant, textConfig(5, endpointsJSON(p, "")...)).want(t, 201, "")
	for _, path := range []string{"/admin/endpoints/text/chat/test", "/default/admin/endpoints/text/chat/test"} {
		if got := s.admin(t, "POST", path, ""); got.status != 200 || !strings.HasPrefix(got.body, `{"ok":true,`) {
			t.Errorf("%s: got %d %s", path, got.status, got.body)
		}
	}
	t.Run("while Redis does not respond", func(t *testing.T) {
		r.Signal(t, syscall.SIGSTOP)
		defer r.Signal(t, syscall.SIGCONT)
		s.admin(t, "POST", "/admin/endpoints/text/chat/test", "").want(t, 503, `{"error":"Service unavailable"}`)
		if n := len(p.Requests()); n != 2 {
			t.Errorf("%d requests were sent", n)
		}
	})
}

// A tenant may have 10 tests in any minute, over all processes and tokens.
func TestEndpointTestLimit(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	g := services[0].newGatewayTest(t, 100, "")
	tokens := []string{testAdminToken, g.newAdminToken(t, g.tenant)}
	replies := make(chan reply)
	for i := range testsPerMinute + 6 {
		go func() {
			got, err := services[i%2].send("POST", testPath(g.tenant, "text/chat"), "", bearer(tokens[i/2%2]))
			if err != nil {
				t.Error(err)
			}
			replies <- got
		}()
	}
	statuses := make(map[int]int)
	for range testsPerMinute + 6 {
		got := <-replies
		if statuses[got.status]++; got.status == 429 {
			got.want(t, 429, `{"error":"Too Many Requests"}`)
			if wait, _ := strconv.Atoi(got.header.Get("Retry-After")); wait < 30 || wait > 60 {
				t.Errorf("Retry-After is %d", wait)
			}
		}
	}
	if statuses[200]+statuses[503] != testsPerMinute || statuses[429] != 6 || len(g.provider.Requests()) != statuses[200] {
		t.Errorf("the statuses are %v, and %d requests were sent", statuses, len(g.provider.Requests()))
	}
	kept := endpointTestsRedisKey(g.tenant)
	if ttl := testRedis.Int(t, "PTTL", kept); ttl <= 0 || ttl > 60_000 || !strings.HasPrefix(kept, "{tenant:"+g.tenant+":config}:") {
		t.Errorf("%s is kept for %d ms", kept, ttl)
	}
	other := services[1].newGatewayTest(t, 100, "")
	if got := other.testEndpoint(t, other.tenant, "text/chat"); !got.OK {
		t.Errorf("another tenant got %+v", got)
	}
	t.Run("the minute is over", func(t *testing.T) {
		testRedis.Do(t, "LSET", kept, "0", strconv.FormatInt(time.Now().Add(-61*time.Second).UnixMicro(), 10))
		if got := g.testEndpoint(t, g.tenant, "text/chat"); !got.OK {
			t.Errorf("got %+v", got)
		}
		services[1].admin(t, "POST", testPath(g.tenant, "text/chat"), "").want(t, 429, "")
	})
}

// Tests of a tenant's endpoints leave room for those of others, and the metrics show them.
func TestEndpointTestPool(t *testing.T) {
	t.Parallel()
	g := newService(t).newGatewayTest(t, 100, "")
	g.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r, err := http.NewRequestWithContext(t.Context(), "POST", g.url+testPath(g.tenant, "text/chat"), nil)
		if err != nil {
			return
		}
		r.Header.Set("Authorization", "Bearer "+testAdminToken)
		if response, err := client.Do(r); err == nil {
			response.Body.Close()
		}
	}()
	waittest.Eventually(t, 10*time.Second, func() error {
		if n := g.sample(t, `pool_used{pool="endpoint_tests"}`); n != 1 {
			return fmt.Errorf("%v are used", n)
		}
		return nil
	})
	g.provider.Stop()
	<-ended
}

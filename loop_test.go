package main

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

func TestReadHops(t *testing.T) {
	for _, test := range []struct {
		lines []string
		want  string
		ok    bool
	}{
		{nil, "", true},
		{[]string{""}, "", true},
		{[]string{"a"}, "a", true},
		{[]string{" a ,b,, c", "", "d"}, "a b c d", true},
		{slices.Repeat([]string{"a"}, maxHops-1), strings.Join(slices.Repeat([]string{"a"}, maxHops-1), " "), true},
		{slices.Repeat([]string{"a"}, maxHops), strings.Join(slices.Repeat([]string{"a"}, maxHops), " "), false},
		{[]string{"a, sk secret, b\x7f, " + strings.Repeat("x", 65) + ", c"}, "a c", true},
		{[]string{strings.Repeat("x", maxLoopHeader)}, "", true},
		{[]string{strings.Repeat("x", maxLoopHeader), ""}, "", false},
	} {
		if hops, ok := readHops(test.lines); strings.Join(hops, " ") != test.want || ok != test.ok {
			t.Errorf("%.40q: got %.40q, %v; want %.40q, %v", test.lines, hops, ok, test.want, test.ok)
		}
	}
}

// All processes of a Redis have the same ID, whoever asks first.
func TestDeploymentID(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	stores := []*store{newTestStore(t, r), newTestStore(t, r)}
	ids := make([]string, 20)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			id, err := stores[i%2].DeploymentID(in(5 * time.Second))
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	group.Wait()
	if same := slices.Compact(ids); len(same) != 1 || len(same[0]) < 20 || r.String(t, "GET", "deployment") != same[0] {
		t.Errorf("got %q", same)
	}
	r.Do(t, "SET", "deployment", "a\r\nb")
	if id, err := stores[0].DeploymentID(in(5 * time.Second)); !errors.Is(err, errBadReply) {
		t.Errorf("got %q, %v", id, err)
	}
}

// loopTenant creates a tenant of s in r whose endpoints are the routes below url, with an API key that is valid there,
// and a key for it.
func (s *service) loopTenant(t *testing.T, r *redistest.Server, url, key string) *gatewayTest {
	t.Helper()
	endpoint := func(name, path string) string {
		return fmt.Sprintf(`%q:{"url":"%s%s","default_model":"m","api_key":%q}`, name, url, path, key)
	}
	g := &gatewayTest{service: s, tenant: newTenantIn(t, r, textConfig(100_000, endpoint("chat", chatPath), endpoint("claude", messagesPath)))}
	g.key = s.login(t, g.tenant)
	return g
}

// wantLoop checks that calls to g are refused as a loop, and that they cost nothing.
func (g *gatewayTest) wantLoop(t *testing.T, name string) {
	t.Helper()
	for _, path := range []string{chatPath, messagesPath, messagesPath + "/count_tokens"} {
		kind, code := "invalid_request_error", "loop"
		if path != chatPath {
			kind, code = "api_error", ""
		}
		got := g.call(t, path, `{"messages":[]}`)
		got.wantWireError(t, path, 508, kind, code)
		got.wantHeader(t, "X-Should-Retry", "false")
		if t.Failed() {
			t.Fatalf("%s: %s", name, path)
		}
	}
	if got := g.do(t, "GET", "/"+g.tenant+"/auth/key", "", bearer(g.key)); got.field(t, "tokensLeft") != 100_000.0 {
		t.Errorf("%s: %s", name, got.body)
	}
}

// A request that comes through the same deployment again is refused: through the same process, through another one, or
// with another deployment in between. One that comes through several deployments to a provider is served.
func TestLoop(t *testing.T) {
	t.Parallel()
	a := newServices(t)
	otherRedis := redistest.New(t)
	b := newService(t, "REDIS_URL="+otherRedis.URL())
	inner := newTenant(t, 100_000)
	innerKey := a[0].login(t, inner)
	for i, name := range []string{"one process", "two processes"} {
		g := a[0].loopTenant(t, testRedis, a[i].url+"/"+inner, innerKey)
		// The inner tenant's endpoints are never asked for: it has none.
		g.wantLoop(t, name)
	}
	// a → b → a
	between := b.loopTenant(t, otherRedis, a[1].url+"/"+inner, innerKey)
	a[0].loopTenant(t, testRedis, b.url+"/"+between.tenant, between.key).wantLoop(t, "another deployment")

	p := providertest.New(t)
	last := a[0].gatewayTest(t, p, textConfig(100_000, endpointsJSON(p, "")...))
	for _, path := range []string{chatPath, messagesPath} {
		first := b.loopTenant(t, otherRedis, a[0].url+"/"+last.tenant, last.key)
		if err := first.call(t, path, `{}`, "Tollgate-Loop: x, y").is(200); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		want := []string{"x, y, " + otherRedis.String(t, "GET", "deployment") + ", " + testRedis.String(t, "GET", "deployment")}
		if got := p.Last(t).Header["Tollgate-Loop"]; !slices.Equal(got, want) {
			t.Errorf("%s: the provider got %q, want %q", path, got, want)
		}
	}
	n := len(p.Requests())
	for _, hops := range []string{strings.Repeat("x", maxLoopHeader+1), strings.Repeat("x,", maxHops)} {
		got := last.call(t, chatPath, `{`, "Tollgate-Loop: "+hops) // which is refused before the body is read
		got.wantWireError(t, chatPath, 508, "invalid_request_error", "loop")
	}
	if got := len(p.Requests()); got != n {
		t.Errorf("%d requests came to the provider, want %d", got, n)
	}
}

// The time that it takes to parse a body does not count for the deadline of Redis.
func TestParsingIsNotRedisTime(t *testing.T) {
	s := newBareServer(t, new(telemetrytest.Log))
	body := []byte(`{"messages":[` + strings.Repeat(`{"role":"user","content":[1,2,3]},`, 100_000) + `{}]}`)
	began := time.Now()
	if _, err := llmwire.ReadRequest(llmwire.OpenAIChat, body); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	config, err := parseConfig([]byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now()
	info := &requestInfo{
		format: new(llmwire.OpenAIChat), body: body, deadline: deadline, apiKey: someKey, tenantID: "t",
		tenant: &tenant{id: "t", config: config},
	}
	_ = s.generate(httptest.NewRecorder(), httptest.NewRequest("POST", chatPath, nil), info) // 404
	if extended := info.deadline.Sub(deadline); extended < took/4 {
		t.Errorf("parsing takes %s, and the deadline was extended by %s", took, extended)
	}
}

// Without the ID of its deployment the gateway serves, and still finds loops through the process.
func TestLoopWithoutDeploymentID(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	r.Do(t, "LPUSH", "deployment", "another application's")
	s, p := newService(t, "REDIS_URL="+r.URL()), providertest.New(t)
	served := s.loopTenant(t, r, p.URL, providertest.Key)
	for _, path := range []string{chatPath, messagesPath} {
		if err := served.call(t, path, `{}`).is(200); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	s.loopTenant(t, r, s.url+"/"+served.tenant, served.key).wantLoop(t, "one process")
	if n := s.log.Count("[WARN] Loops through other processes are not found until Redis has the ID of this deployment: "); n != 1 {
		t.Errorf("%d lines say that the ID is not known:\n%s", n, s.log)
	}
	r.Do(t, "DEL", "deployment")
	served.call(t, chatPath, `{}`)
	if id := r.String(t, "GET", "deployment"); len(id) < 20 {
		t.Errorf("the ID is %q", id)
	}
}

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// responsesRoute is the path of the Responses API.
const responsesRoute = "/v1/responses"

// newResponsesTest starts a service and a provider, and creates a tenant with an endpoint of the format Responses.
// members are those of the endpoint.
func newResponsesTest(t testing.TB, tokens int64, members string) *gatewayTest {
	t.Helper()
	p := providertest.New(t)
	return newService(t).gatewayTest(t, p, textConfig(tokens, endpointJSON(p, "responses", responsesRoute, members)))
}

// create makes a response with the given members, and returns its ID and those of its items.
func (g *gatewayTest) create(t testing.TB, members string) (id string, items []string) {
	t.Helper()
	return g.call(t, responsesRoute, `{"input":"hi"`+members+`}`).storedIDs(t)
}

// storedIDs returns the ID of a response and those of its items.
func (got reply) storedIDs(t testing.TB) (id string, items []string) {
	t.Helper()
	var response struct {
		ID     string
		Output []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(got.body), &response); err != nil || got.status != 200 || response.ID == "" {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	for _, item := range response.Output {
		items = append(items, item.ID)
	}
	return response.ID, items
}

// about sends a request about a stored response, or what is below it.
func (g *gatewayTest) about(t testing.TB, method, id string) reply {
	t.Helper()
	return g.do(t, method, "/"+g.tenant+responsesRoute+"/"+id, "", bearer(g.key))
}

// wantNotKept checks the refusal of what goes on from something that is not the key's own.
func (got reply) wantNotKept(t testing.TB) {
	t.Helper()
	got.wantWireError(t, responsesRoute, 404, "invalid_request_error", "previous_response_not_found")
}

// responsesKey returns where the IDs of an owner are in Redis.
func (g *gatewayTest) responsesKey(owner string) string { return statesRedisKeys(g.tenant, owner)[0] }

// Each route is forwarded to its own path, with the method and what tollgate changes in the body, and costs what it
// should: compact what a request does, the others nothing, also with an empty balance.
func TestResponsesRoutes(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 100_000, `,"max_output_tokens":500,"user_ids":true`)
	id, items := g.create(t, "")
	streamed := g.call(t, responsesRoute, `{"input":"hi","stream":true}`)
	if !strings.Contains(streamed.body, "event: response.completed") {
		t.Fatalf("got %d %s", streamed.status, streamed.body)
	}
	const spent = 18 // of each request
	if n := g.charged(t, 100_000); n != 2*spent {
		t.Errorf("charged %d", n)
	}
	if got := g.provider.Last(t).Member(t, "max_output_tokens"); got != "500" {
		t.Errorf("the limit is %s", got)
	}
	got := g.call(t, responsesRoute+"/compact", `{"input":"hi","model":"m"}`)
	if sent := g.provider.Last(t); got.status != 200 || sent.Path != responsesRoute+"/compact" ||
		string(sent.Body) != `{"input":"hi","model":"m"}` {
		t.Errorf("compact: got %d %s; the provider got %s %s", got.status, got.body, sent.Path, sent.Body)
	}
	got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(len(`{"input":"hi","model":"m"}`)+500))
	if n := g.charged(t, 100_000); n != 3*spent {
		t.Errorf("charged %d with compact, want %d", n, 3*spent)
	}
	got = g.call(t, responsesRoute+"/input_tokens", `{"input":"hi"}`)
	if sent := g.provider.Last(t); got.status != 200 || sent.Path != responsesRoute+"/input_tokens" ||
		sent.Member(t, "max_output_tokens")+sent.Member(t, "store") != "" {
		t.Errorf("input_tokens: got %d %s; the provider got %s %s", got.status, got.body, sent.Path, sent.Body)
	}
	testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", 0)
	for _, test := range []struct{ method, path, sent, query string }{
		{"GET", id, "GET /v1/responses/" + id, ""},
		{"HEAD", id, "GET /v1/responses/" + id, ""},
		{"GET", "%72" + id[1:], "GET /v1/responses/" + id, ""},
		{"GET", id + "/input_items?limit=2&order=asc&after=x", "GET /v1/responses/" + id + "/input_items", "after=x&limit=2&order=asc"},
		{"GET", id + "?include%5B%5D=a&include[]=b&stream=false", "GET /v1/responses/" + id, "include%5B%5D=a&include%5B%5D=b"},
		{"DELETE", id, "DELETE /v1/responses/" + id, ""},
	} {
		got := g.about(t, test.method, test.path)
		sent := g.provider.Last(t)
		if got.status != 200 || sent.Method+" "+sent.Path != test.sent || sent.Query != test.query || len(sent.Body) > 0 {
			t.Errorf("%s %s: got %d %s; the provider got %+v", test.method, test.path, got.status, got.body, sent)
		}
		got.wantHeader(t, "X-Tokens-Charged", "")
	}
	g.about(t, "GET", id).wantWireError(t, responsesRoute, 404, "invalid_request_error", "response_not_found")
	if n := testRedis.Int(t, "HEXISTS", g.responsesKey("k:"+g.key), items[0]); n != 1 || tokensLeft(t, g.key) != 0 {
		t.Errorf("%d, %d tokens are left", n, tokensLeft(t, g.key))
	}
}

// Requests that no route serves, or only for others, are refused before anything is asked of a provider.
func TestResponsesRefusals(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 100_000, "")
	id, _ := g.create(t, "")
	before := len(g.provider.Requests())
	for _, test := range []struct {
		method, path string
		headers      []string
		status       int
		text         string
	}{
		{"GET", "", []string{"Upgrade: websocket", "Connection: Upgrade"}, 426, `"error":{"message":"There is no WebSocket`},
		{"GET", "", []string{"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, 426, "There is no WebSocket"}, // behind nginx
		{"GET", "", []string{bearer(g.key)}, 405, `"error":{"message":"Method not allowed"`},
		{"GET", "", nil, 401, "No API key"},
		{"PUT", "", nil, 405, "Method not allowed"},
		{"POST", "/" + id + "/cancel", nil, 404, "There is no such route"},
		{"POST", "/" + id, nil, 405, "Method not allowed"},
		{"GET", "/" + id + "?stream=true", []string{bearer(g.key)}, 400, "is not streamed"},
		{"GET", "/" + id + "?starting_after=1", []string{bearer(g.key)}, 400, "unknown"},
		{"GET", "/" + id, nil, 401, "No API key"},
		{"DELETE", "/" + id, nil, 401, "No API key"},
		{"GET", "/" + id + "/input_items", []string{bearer(newKey(t))}, 401, "invalid_api_key"},
		{"GET", "/resp_1", []string{bearer(g.key)}, 404, "response_not_found"},
		{"DELETE", "/resp_1", []string{bearer(g.key)}, 404, "response_not_found"},
	} {
		got := g.do(t, test.method, "/"+g.tenant+responsesRoute+test.path, "", test.headers...)
		if got.status != test.status || !strings.Contains(got.body, test.text) {
			t.Errorf("%s %s: got %d %s, want %d with %q", test.method, test.path, got.status, got.body, test.status, test.text)
		}
	}
	if n := len(g.provider.Requests()); n != before {
		t.Errorf("%d requests came to the provider", n-before)
	}
}

// Requests that are free count for the rate limit of the key's group, and are only for keys that are enabled.
func TestResponsesFree(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	config := strings.Replace(textConfig(100_000, endpointJSON(p, "responses", responsesRoute, "")),
		`{"tokens"`, `{"rate_limit":5,"rate_limit_window":3600,"tokens"`, 1)
	g := newService(t).gatewayTest(t, p, config)
	id, _ := g.create(t, "")
	inputTokens := func() reply { return g.call(t, responsesRoute+"/input_tokens", `{"input":"hi"}`) }
	show := func() reply { return g.about(t, "GET", id) }
	items := func() reply { return g.about(t, "GET", id+"/input_items") }
	remove := func() reply { return g.about(t, "DELETE", id) }
	for i, request := range []func() reply{inputTokens, show, items} {
		got := request()
		if err := got.is(200); err != nil {
			t.Fatal(err)
		}
		got.wantHeader(t, "X-RateLimit-Remaining-Requests", fmt.Sprint(3-i))
	}
	if err := g.about(t, "GET", "resp_of_others").is(404); err != nil { // which is as good as a guess
		t.Error(err)
	}
	before := len(p.Requests())
	for _, request := range []func() reply{inputTokens, show, items, remove} {
		got := request()
		got.wantWireError(t, responsesRoute, 429, "rate_limit_error", "rate_limit_exceeded")
		if got.header.Get("Retry-After") == "" {
			t.Errorf("the header is %v", got.header)
		}
	}
	g.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+g.key, `{"enabled":false}`).want(t, 200, "")
	for _, request := range []func() reply{inputTokens, show, items, remove} {
		request().wantWireError(t, responsesRoute, 403, "invalid_request_error", "key_disabled")
	}
	if n := len(p.Requests()); n != before {
		t.Errorf("%d requests came to the provider", n-before)
	}
}

// Nobody else reaches a response, however its ID is spelled: not another user of the tenant, not another tenant with the
// same endpoint and key, and not one whose own server has said to keep a response of that ID.
func TestResponsesStrangers(t *testing.T) {
	t.Parallel()
	p, hostile := providertest.New(t), providertest.New(t)
	endpoint := endpointJSON(p, "responses", responsesRoute, `,"allow":["*"],"server_tools":true`)
	victim := newService(t).gatewayTest(t, p, textConfig(100_000, endpoint))
	id, items := victim.create(t, "")
	another := *victim
	another.key = another.login(t, another.tenant)
	evil := strings.Replace(endpoint, p.URL, hostile.URL, 1)
	tenant := victim.gatewayTest(t, p, textConfig(100_000, evil))
	claim := fmt.Sprintf(`{"id":%q,"object":"response","status":"completed","output":[{"id":%q,"type":"message"}],`+
		`"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}`, id, items[0])
	hostile.On("", providertest.Conduct{Body: claim})
	if got, _ := tenant.create(t, ""); got != id {
		t.Fatalf("the ID is %s", got)
	}
	tenant.saveConfig(t, tenant.tenant, textConfig(100_000, endpoint))
	before := len(p.Requests())
	for _, g := range []*gatewayTest{&another, tenant} {
		for _, path := range []string{
			id, "%72" + id[1:], "./" + id, id + "/", "/" + id, "x%2F..%2F" + id, id + "%00", id + "%2Finput_items", id + "/input_items",
			id + "/%69nput_items", id + "%3F", id + ";a", id + "%23", items[0], "%ff" + id, strings.Repeat("a", 8000) + id, "%2e%2e%2fmodels",
			"compact", "input_tokens", "ｒ" + id[1:],
		} {
			for _, method := range []string{"GET", "DELETE", "HEAD"} {
				if got := g.about(t, method, path); got.status != 404 && got.status != 405 {
					t.Errorf("%s %.80s: got %d %s", method, path, got.status, got.body)
				}
			}
		}
		escaped := fmt.Sprintf(`"\u00%x%s"`, id[0], id[1:])
		for _, body := range []string{
			`"previous_response_id":` + escaped, `"\u0070revious_response_id":"` + id + `"`,
			`"input":[{"type":"item_reference","id":"` + id + `"}]`, `"input":[{"\u0069d":` + escaped + `}]`,
			`"input":[{"id":"` + items[0] + `","type":null}]`, `"input":[{"id":"` + items[0] + `","type":"\u0072easoning","summary":[]}]`,
			`"input":[{"id":"` + items[0] + `","type":"image_generation_call"}]`,
			`"prompt_cache_options":{"comparison_response_id":"` + id + `"}`,
			`"input":[{"role":"user","content":[{"type":"item_reference","id":"` + id + `"}]}]`,
		} {
			for _, path := range []string{"", "/compact", "/input_tokens"} {
				g.call(t, responsesRoute+path, "{"+body+"}").wantNotKept(t)
			}
		}
	}
	if n := len(p.Requests()); n != before {
		t.Errorf("%d requests came to the provider: %s", n-before, p.Last(t).Path)
	}
}

// A response is forgotten when it is deleted, or is found to be, but not because a provider does not show it.
func TestResponsesForgotten(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 100_000, "")
	for _, test := range []struct {
		method, resource string
		status           int // of the provider's response
		kept             bool
	}{
		{"GET", "", 404, true}, {"GET", "/input_items", 404, true}, {"DELETE", "", 500, true}, {"DELETE", "", 404, false},
		{"DELETE", "", 200, false},
	} {
		id, _ := g.create(t, "")
		g.provider.Each(func(r providertest.Request) providertest.Conduct {
			if r.Method == "POST" || test.status == 200 {
				return providertest.Conduct{}
			}
			return providertest.Refuse(test.status)
		})
		if err := g.about(t, test.method, id+test.resource).is(test.status); err != nil {
			t.Error(err)
		}
		if got := testRedis.Int(t, "HEXISTS", g.responsesKey("k:"+g.key), id) == 1; got != test.kept {
			t.Errorf("%+v: kept is %v", test, got)
		}
	}
}

// newKey returns an API key that does not exist.
func newKey(t testing.TB) string {
	t.Helper()
	key, err := newCredential(userKeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// What the provider reads beside the body is held as input: all of the response that is continued, and the output of
// each other one, once.
func TestResponsesHold(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 100_000, `,"max_output_tokens":100`)
	g.provider.On("long", providertest.Conduct{Reasoning: "hm", Input: 1000, Output: 50})
	first, items := g.create(t, `,"model":"long"`)
	second, other := g.create(t, "")
	reference := func(id string) string { return fmt.Sprintf(`{"type":"item_reference","id":%q}`, id) }
	for _, test := range []struct {
		members string
		kept    int
	}{
		{`"input":"hi"`, 0},
		{fmt.Sprintf(`"previous_response_id":%q`, first), 1050},
		{fmt.Sprintf(`"previous_response_id":%q`, second), 18},
		{fmt.Sprintf(`"input":[%s,%s]`, reference(items[0]), reference(items[1])), 50},
		{fmt.Sprintf(`"input":[%s,%s]`, reference(items[0]), reference(other[0])), 57},
		{fmt.Sprintf(`"previous_response_id":%q,"input":[%s,%s]`, second, reference(other[0]), reference(items[0])), 68},
	} {
		body := "{" + test.members + "}"
		got := g.call(t, responsesRoute, body)
		if err := got.is(200); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(len(body)+100+test.kept))
	}
}

// All that a request goes on from must be at one endpoint that is still the same, and only that gets the request.
func TestResponsesEndpoint(t *testing.T) {
	t.Parallel()
	one, two := providertest.New(t), providertest.New(t)
	endpoints := []string{endpointJSON(one, "one", responsesRoute, ""), endpointJSON(two, "two", responsesRoute, "")}
	g := newService(t).gatewayTest(t, one, textConfig(100_000, endpoints...))
	g.create(t, `,"model":"two/m"`) // the two providers count their IDs alike
	second, secondItems := g.create(t, `,"model":"two/m"`)
	first, firstItems := g.create(t, `,"model":"one/m"`)
	previous := func(id string) string { return fmt.Sprintf(`{"input":"more","previous_response_id":%q}`, id) }
	count := func() [2]int { return [2]int{len(one.Requests()), len(two.Requests())} }
	before := count()
	two.On("", providertest.Refuse(503))
	if err := g.call(t, responsesRoute, previous(second)).is(503); err != nil { // one is not asked instead
		t.Error(err)
	}
	if got := count(); got != [2]int{before[0], before[1] + 1} {
		t.Errorf("got %v after %v", got, before)
	}
	g.call(t, responsesRoute, fmt.Sprintf(`{"input":[{"id":%q},{"id":%q}]}`, firstItems[0], secondItems[0])).wantNotKept(t)
	g.call(t, responsesRoute, fmt.Sprintf(`{"previous_response_id":%q,"input":[{"id":%q}]}`, first, secondItems[0])).wantNotKept(t)
	moved := strings.Replace(endpoints[0], responsesRoute, "/v1"+responsesRoute, 1)
	renamed := strings.Replace(endpoints[1], `"two"`, `"three"`, 1)
	g.saveConfig(t, g.tenant, textConfig(100_000, moved, renamed))
	for _, id := range []string{first, second} {
		g.call(t, responsesRoute, previous(id)).wantNotKept(t)
		if err := g.about(t, "GET", id).is(404); err != nil {
			t.Error(err)
		}
	}
	g.saveConfig(t, g.tenant, textConfig(100_000, slices.Concat(endpoints[1:], endpoints[:1])...))
	if err := g.call(t, responsesRoute, previous(first)).is(200); err != nil {
		t.Error(err)
	}
}

// Codex is told of an empty balance in the only way in which it does not repeat the request.
func TestResponsesCodex(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 1, "")
	g.saveConfig(t, g.tenant, textConfig(1, endpointJSON(g.provider, "responses", responsesRoute, ""),
		endpointJSON(g.provider, "chat", chatPath, "")))
	for _, test := range []struct {
		path, originator string
		status           int
	}{
		{responsesRoute, "codex_exec", 429},
		{responsesRoute + "/compact", "codex_cli_rs", 429},
		{responsesRoute, "other", 402},
		{responsesRoute, "", 402},
		{chatPath, "codex_exec", 402},
	} {
		got := g.call(t, test.path, `{"user":"hi"}`, "Originator: "+test.originator)
		var body struct{ Error struct{ Type, Code string } }
		_ = json.Unmarshal([]byte(got.body), &body)
		if got.status != test.status || body.Error.Type != "insufficient_quota" || body.Error.Code != "insufficient_quota" {
			t.Errorf("%s %q: got %d %s, want %d", test.path, test.originator, got.status, got.body, test.status)
		}
		got.wantHeader(t, "X-Should-Retry", "false")
		got.wantHeader(t, "Retry-After", "")
	}
}

// Whose a response is is known for state_ttl; without it nothing is stored, and so nothing is to be known.
func TestResponsesStateTTL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		members, body, store string
		ttl                  int // seconds of the hash; -2 without one
	}{
		{"", "", "", 86_400},
		{"", `,"store":true`, "true", 86_400},
		{"", `,"store":null`, "null", 86_400},
		{"", `,"store":false`, "false", -2},
		{`,"state_ttl":60`, "", "", 60},
		{`,"state_ttl":0`, "", "false", -2},
		{`,"state_ttl":0`, `,"store":true`, "false", -2},
	} {
		g := newResponsesTest(t, 100_000, test.members)
		id, _ := g.create(t, test.body)
		if got := g.provider.Last(t).Member(t, "store"); got != test.store {
			t.Errorf("%s %s: store is %s, want %s", test.members, test.body, got, test.store)
		}
		key := g.responsesKey("k:" + g.key)
		if got := testRedis.Int(t, "TTL", key); got > test.ttl || got < min(test.ttl, max(test.ttl-30, -2)) {
			t.Errorf("%s %s: the TTL is %d, want %d", test.members, test.body, got, test.ttl)
		}
		got := g.call(t, responsesRoute, fmt.Sprintf(`{"previous_response_id":%q}`, id))
		if want := 404; test.ttl < 0 && got.status != want || test.ttl > 0 && got.status != 200 {
			t.Errorf("%s %s: got %d %s", test.members, test.body, got.status, got.body)
		}
		testRedis.Do(t, "PEXPIRE", key, 1)
		waittest.Eventually(t, 5*time.Second, func() error { return g.about(t, "GET", id).is(404) })
	}
}

// A response is its user's: with every key, also after a rotation, in every process, but not in a later tenant of the
// same ID.
func TestResponsesOwner(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	p := providertest.New(t)
	config := strings.Replace(textConfig(100_000, endpointJSON(p, "responses", responsesRoute, "")),
		`{"anonymous"`, `{"pro":{"tokens":100000},"anonymous"`, 1)
	g := services[0].gatewayTest(t, p, config)
	other := *g
	other.service = services[1]
	wantFound := func(g *gatewayTest, id string) {
		t.Helper()
		if err := g.call(t, responsesRoute, fmt.Sprintf(`{"previous_response_id":%q}`, id)).is(200); err != nil {
			t.Error(err)
		}
		if err := g.about(t, "GET", id+"/input_items").is(200); err != nil {
			t.Error(err)
		}
	}
	id, _ := g.create(t, "")
	wantFound(&other, id)
	visitor, visitors := g.key, id
	const member = `"userId":"u","group":"pro"`
	g.key = g.issue(t, g.tenant, member)
	id, _ = g.create(t, "")
	other.key = g.issue(t, g.tenant, member)
	wantFound(&other, id)
	other.key = g.admin(t, "POST", "/"+g.tenant+"/admin/keys/"+other.key+"/rotate", "").text(t, "apiKey")
	wantFound(&other, id)
	g.key = g.admin(t, "POST", "/"+g.tenant+"/admin/keys/"+visitor+"/rotate", "").text(t, "apiKey")
	wantFound(g, visitors)
	if err := g.about(t, "GET", id).is(404); err != nil {
		t.Error(err)
	}
	g.admin(t, "DELETE", "/admin/tenants/"+g.tenant, "").want(t, 204, "")
	g.admin(t, "POST", "/admin/tenants", fmt.Sprintf(`{"tenantId":%q,"config":%s}`, g.tenant, config))
	g.key = repeat(func() reply {
		return g.admin(t, "POST", "/"+g.tenant+"/admin/keys", "{"+member+"}")
	}).text(t, "apiKey")
	if err := g.about(t, "GET", id).is(404); err != nil {
		t.Error(err)
	}
	g.call(t, responsesRoute, fmt.Sprintf(`{"previous_response_id":%q}`, id)).wantNotKept(t)
}

// The end of a response comes when it is known whose that is: it can be continued at once. A Redis that does not
// respond delays it by 2 s at most, and leaves the response nobody's.
func TestResponsesKeptBeforeEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		body     string
		conduct  providertest.Conduct
		recovers bool
	}{
		"stream":               {`{"input":"hi","stream":true}`, providertest.Conduct{}, true},
		"stream, Redis down":   {`{"input":"hi","stream":true}`, providertest.Conduct{}, false},
		"failed stream":        {`{"input":"hi","stream":true}`, providertest.Conduct{Failed: true}, true},
		"not streamed":         {`{"input":"hi"}`, providertest.Conduct{}, true},
		"whole and Redis down": {`{"input":"hi"}`, providertest.Conduct{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, p := redistest.New(t), providertest.New(t)
			g := &gatewayTest{service: newService(t, "REDIS_URL="+r.URL()), provider: p}
			g.tenant = newTenantIn(t, r, textConfig(100_000, endpointJSON(p, "responses", responsesRoute, "")))
			g.key = g.login(t, g.tenant)
			p.Each(func(got providertest.Request) providertest.Conduct {
				if got.Path == responsesRoute && got.Member(t, "previous_response_id") == "" {
					r.Signal(t, syscall.SIGSTOP)
				}
				return test.conduct
			})
			request, _ := http.NewRequest("POST", g.url+"/"+g.tenant+responsesRoute, strings.NewReader(test.body))
			request.Header.Set("Authorization", "Bearer "+g.key)
			id := make(chan string, 1)
			began, paused := time.Now(), make(chan struct{})
			var resumed time.Time
			go func() {
				defer close(paused)
				time.Sleep(500 * time.Millisecond)
				if resumed = time.Now(); test.recovers {
					r.Signal(t, syscall.SIGCONT)
				}
			}()
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			ended := readToEnd(response, id)
			<-paused
			if took := ended.Sub(began); ended.Before(resumed) || took > 5*time.Second {
				t.Errorf("the end came after %v", took)
			}
			if !test.recovers {
				r.Signal(t, syscall.SIGCONT)
			}
			body := fmt.Sprintf(`{"previous_response_id":%q}`, <-id)
			waittest.Eventually(t, 10*time.Second, func() error { // Redis may just have come back
				if got := g.call(t, responsesRoute, body); got.status != 503 && test.recovers != (got.status == 200) {
					t.Errorf("got %d %s", got.status, got.body)
				} else if got.status == 503 {
					return fmt.Errorf("got 503")
				}
				return nil
			})
		})
	}
}

// readToEnd reads a response, and returns when its end came. It sends the response's ID.
func readToEnd(response *http.Response, id chan<- string) (ended time.Time) {
	lines := bufio.NewReader(response.Body)
	for sent := false; ; {
		line, err := lines.ReadString('\n')
		if _, rest, found := strings.Cut(line, `"id":"resp_`); found && !sent {
			end, _, _ := strings.Cut(rest, `"`)
			id <- "resp_" + end
			sent = true
		}
		isEnd := strings.HasPrefix(line, "event: response.completed") || strings.HasPrefix(line, "event: response.failed")
		if ended.IsZero() && (isEnd || err != nil) {
			ended = time.Now()
		}
		if err != nil {
			return ended
		}
	}
}

// A response that breaks off has an ID all the same, and what it has used is what it can have used at most.
func TestResponsesBrokenOff(t *testing.T) {
	t.Parallel()
	g := newResponsesTest(t, 100_000, `,"max_output_tokens":300`)
	g.provider.Each(func(r providertest.Request) providertest.Conduct {
		if r.Stream {
			return providertest.Conduct{Cut: providertest.InContent}
		}
		return providertest.Conduct{}
	})
	const body = `{"input":"hi","stream":true}`
	id := make(chan string, 1)
	request, _ := http.NewRequest("POST", g.url+"/"+g.tenant+responsesRoute, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer "+g.key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	readToEnd(response, id)
	g.charged(t, 0)
	more := fmt.Sprintf(`{"previous_response_id":%q}`, <-id)
	got := g.call(t, responsesRoute, more)
	if got.status == 404 && strings.Contains(got.body, "this API key's") {
		t.Errorf("got %d %s", got.status, got.body)
	}
	got.wantHeader(t, "X-Tokens-Held", fmt.Sprint(len(more)+300+len(body)+300))
}

// While Redis is short of memory nothing is written about responses, which are served all the same.
func TestResponsesFullRedis(t *testing.T) {
	t.Parallel()
	r, p := redistest.New(t), providertest.New(t)
	g := &gatewayTest{service: newService(t, "REDIS_URL="+r.URL()), provider: p}
	g.tenant = newTenantIn(t, r, textConfig(100_000, endpointJSON(p, "responses", responsesRoute, "")))
	g.key = g.login(t, g.tenant)
	used, err := strconv.Atoi(redistest.Field(r.String(t, "INFO", "memory"), "used_memory"))
	if err != nil {
		t.Fatal(err)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", used*5/4)
	id, _ := g.create(t, "")
	if n := r.Int(t, "EXISTS", g.responsesKey("k:"+g.key)); n != 0 {
		t.Error("the response was noted")
	}
	g.call(t, responsesRoute, fmt.Sprintf(`{"previous_response_id":%q}`, id)).wantNotKept(t)
}

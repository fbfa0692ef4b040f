package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

const (
	chatPath     = "/v1/chat/completions"
	messagesPath = "/v1/messages"
)

// gatewayTest is a tenant whose endpoints are a provider, and a key of it.
type gatewayTest struct {
	*service
	provider    *providertest.Provider
	tenant, key string
}

// endpointJSON returns the member of endpoints for an endpoint of p that allows every model.
func endpointJSON(p *providertest.Provider, name, path, members string) string {
	return fmt.Sprintf(`%q:{"url":"%s%s","default_model":"m","models":{"*":{}},"api_key":"%s"%s}`,
		name, p.URL, path, providertest.Key, members)
}

// endpointsJSON returns endpointJSON's members for an endpoint of each format, chat and claude.
func endpointsJSON(p *providertest.Provider, members string) []string {
	return []string{endpointJSON(p, "chat", chatPath, members), endpointJSON(p, "claude", messagesPath, members)}
}

// textConfig returns the config of a tenant whose anonymous users get that many tokens.
func textConfig(tokens int64, endpoints ...string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{"text":{"endpoints":{%s}}}}`,
		tokens, strings.Join(endpoints, ","))
}

// newGatewayTest starts a service, and is its newGatewayTest.
func newGatewayTest(t testing.TB, tokens int64, members string, settings ...string) *gatewayTest {
	t.Helper()
	return newService(t, settings...).newGatewayTest(t, tokens, members)
}

// newGatewayTest starts a provider and creates a tenant that has an endpoint of each format there. members are added to
// both.
func (s *service) newGatewayTest(t testing.TB, tokens int64, members string) *gatewayTest {
	t.Helper()
	p := providertest.New(t)
	return s.gatewayTest(t, p, formatsConfig(p, tokens, members, ""))
}

// gatewayTest creates a tenant with that config in testRedis, and a key.
func (s *service) gatewayTest(t testing.TB, p *providertest.Provider, config string) *gatewayTest {
	t.Helper()
	g := &gatewayTest{service: s, provider: p, tenant: newTenantIn(t, testRedis, config)}
	g.key = s.login(t, g.tenant)
	return g
}

func (g *gatewayTest) call(t testing.TB, path, body string, headers ...string) reply {
	t.Helper()
	return g.do(t, "POST", "/"+g.tenant+path, body, append(headers, bearer(g.key))...)
}

// open begins a call on a connection of its own, and reads the response until it has seen text.
func (g *gatewayTest) open(t testing.TB, path, body, text string) *net.TCPConn {
	t.Helper()
	c := g.dial(t)
	fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		g.tenant, path, g.key, contentTypeOf(body), len(body), body)
	var seen []byte
	part := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := c.Read(part)
		if seen = append(seen, part[:n]...); err != nil {
			t.Fatalf("got %q, %v; want %q", seen, err, text)
		}
	}
	return c
}

// awaitRequests waits until the provider has got n requests.
func (g *gatewayTest) awaitRequests(t testing.TB, n int) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := len(g.provider.Requests()); got != n {
			return fmt.Errorf("%d requests came to the provider, want %d", got, n)
		}
		return nil
	})
}

// charged waits until no tokens of the key are held and returns how many are gone of those that it was given.
func (g *gatewayTest) charged(t testing.TB, granted int) int {
	t.Helper()
	waittest.Eventually(t, 30*time.Second, func() error {
		if n := testRedis.Int(t, "EXISTS", "{apiKey:"+g.key+"}:holds"); n > 0 {
			return fmt.Errorf("tokens are still held")
		}
		return nil
	})
	return granted - tokensLeft(t, g.key)
}

// wantWireError checks an error of either format.
func (got reply) wantWireError(t testing.TB, path string, status int, kind, code string) {
	t.Helper()
	var body struct {
		Type  string
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != status || body.Error.Type != kind ||
		body.Error.Code != code || body.Error.Message == "" || (body.Type == "error") != strings.Contains(path, "messages") {
		t.Errorf("%s: got %d %s\nwant %d, type %q, code %q", path, got.status, strings.TrimSpace(got.body), status, kind, code)
	}
	if h := got.header.Get("Content-Type"); h != "application/json; charset=utf-8" {
		t.Errorf("%s: Content-Type of %d is %q", path, got.status, h)
	}
	if id := got.header.Get("Request-Id"); (body.Type == "error") != (id != "") {
		t.Errorf("%s: Request-Id of %d is %q", path, got.status, id)
	}
	isFinal := slices.Contains([]int{400, 401, 402, 403, 404, 413, 415, 504, 508}, status)
	if h := got.header.Get("X-Should-Retry"); (h == "false") != isFinal && status != 502 {
		t.Errorf("%s: X-Should-Retry of %d is %q", path, got.status, h)
	}
}

const anthropicVersion = "anthropic-version: 2023-06-01"

// A base URL with a segment too many or too few gets the path that was meant, in the shape that the SDK reads.
func TestGatewayMeantPath(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const chat, v1, tenant, none = " end in /acme/v1", " end in /v1", " end in /acme", " have no path"
	for path, want := range map[string]struct{ meant, base string }{
		"/chat/completions":                             {"/v1/chat/completions", v1},
		"/acme/chat/completions":                        {"/acme/v1/chat/completions", chat},
		"/acme/messages":                                {"/acme/v1/messages", chat}, // its client does not add /v1
		"/acme/messages/count_tokens":                   {"/acme/v1/messages/count_tokens", chat},
		"/acme/models":                                  {"/acme/v1/models", chat},
		"/acme/v1/v1/messages":                          {"/acme/v1/messages", tenant},
		"/acme/v1/v1/messages/count_tokens":             {"/acme/v1/messages/count_tokens", tenant},
		"/acme/v1/v1/chat/completions":                  {"/acme/v1/chat/completions", chat},
		"/v1/v1/v1/messages":                            {"/v1/messages", none},
		"/acme/v1/chat/completions/":                    {"/acme/v1/chat/completions", chat},
		"/acme//v1/messages":                            {"/acme/v1/messages", tenant},
		"/acme/v1/chat/completions/chat/completions":    {"/acme/v1/chat/completions", chat},
		"/acme/v1/messages/v1/messages":                 {"/acme/v1/messages", tenant},
		"/acme/v1/completions":                          {"", ""},
		"/acme/completions":                             {"Not found", ""},
		"/acme/embeddings":                              {"/acme/v1/embeddings", chat},
		"/acme/v1/v1/images/generations":                {"/acme/v1/images/generations", chat},
		"/prefix/acme/v1/messages":                      {"Not found", ""}, // tollgate cannot know whose segment is too many
		"/-/messages":                                   {"Not found", ""},
		"/" + strings.Repeat("a", 65) + "/v1/messages/": {"There is no such route: tollgate has ", ""},
	} {
		for _, header := range []string{"X-Other: 1", anthropicVersion} {
			got := s.do(t, "POST", path, `{}`, header)
			sentence := want.meant
			if want.base != "" {
				sentence = "There is no such route: did you mean " + want.meant + "? Then the base URL must" + want.base + `"`
			}
			if got.status != 404 || !strings.Contains(got.body, sentence) {
				t.Errorf("%s: got %d %s, want %s", path, got.status, got.body, sentence)
			}
			switch {
			case want.meant == "Not found":
				got.want(t, 404, `{"error":"Not found"}`)
			case header == anthropicVersion:
				got.wantWireError(t, messagesPath, 404, "not_found_error", "")
			default:
				got.wantWireError(t, chatPath, 404, "invalid_request_error", "")
			}
		}
	}
	got := s.do(t, "GET", "/acme/v1/v1/models", "", anthropicVersion)
	if !strings.Contains(got.body, "did you mean /acme/v1/models? Then the base URL must end in /acme") {
		t.Errorf("got %s", got.body)
	}
}

// Every error that tollgate itself sends has the shape of the route's format.
func TestGatewayErrors(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "", "MAX_GATEWAY_BODY=100000")
	poor := g.issue(t, g.tenant, `"userId":"u","group":"anonymous","tokens":2`)
	limited := g.service.gatewayTest(t, g.provider, strings.Replace(formatsConfig(g.provider, 1000, "", ""),
		`{"tokens":1000}`, `{"tokens":1000,"rate_limit":0,"rate_limit_window":9}`, 1))
	broken := newTenantIn(t, testRedis, `{"providers":{"text":{"endpoints":{"x":{"on_hangup":"never"}}}}}`)
	ungrouped := g.issue(t, g.tenant, `"userId":"u","group":"anonymous"`)
	testRedis.Do(t, "HSET", "apiKey:"+ungrouped, "group", "gone")
	disabled := g.issue(t, g.tenant, `"userId":"u","group":"anonymous"`)
	g.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+disabled, `{"enabled":false}`).want(t, 200, "")
	const invalid = "invalid_request_error"
	for _, test := range []struct {
		name, tenant, key, body string
		status                  int
		openAI, code, anthropic string
	}{
		{"no JSON", g.tenant, g.key, `{"model"`, 400, invalid, "", invalid},
		{"no object", g.tenant, g.key, `[]`, 400, invalid, "", invalid},
		{"empty", g.tenant, g.key, ``, 400, invalid, "", invalid},
		{"duplicated", g.tenant, g.key, `{"model":"m","mod\u0065l":"n"}`, 400, invalid, "", invalid},
		{"wrong type", g.tenant, g.key, `{"stream":1}`, 400, invalid, "", invalid},
		{"limit", g.tenant, g.key, `{"max_tokens":-2}`, 400, invalid, "", invalid},
		{"spelling of a limit", g.tenant, g.key, `{"max_tokens":1e2}`, 400, invalid, "", invalid},
		{"n", g.tenant, g.key, `{"n":17}`, 400, invalid, "", invalid},
		{"thread", g.tenant, g.key, `{"thread":{"type":"create"}}`, 400, invalid, "", invalid},
		{"earlier response", g.tenant, g.key, `{"previous_response_id":"resp_1"}`, 400, invalid, "", invalid},
		{"server tool", g.tenant, g.key, `{"tools":[{"type":"web_search_20250305"}]}`, 400, invalid, "", invalid},
		{"unknown tenant", "nobody", g.key, `{ASK}`, 400, invalid, "", invalid},
		{"unknown key and tool", g.tenant, someKey, `{"tools":[{"type":"mcp"}]}`, 401, invalid, "invalid_api_key", "authentication_error"},
		{"unknown key", g.tenant, someKey, `{ASK}`, 401, invalid, "invalid_api_key", "authentication_error"},
		{"no key", g.tenant, "sk-other", `{ASK}`, 401, invalid, "invalid_api_key", "authentication_error"},
		{"poor", g.tenant, poor, `{ASK}`, 402, "insufficient_quota", "insufficient_quota", "billing_error"},
		{"group", g.tenant, ungrouped, `{ASK}`, 403, invalid, "key_disabled", "permission_error"},
		{"disabled", g.tenant, disabled, `{ASK}`, 403, invalid, "key_disabled", "permission_error"},
		{"too large", g.tenant, g.key, `{"a":"` + strings.Repeat("a", 100_000) + `"}`, 413, invalid, "", "request_too_large"},
		{"rate", limited.tenant, limited.key, `{ASK}`, 429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error"},
		{"broken config", broken, g.key, `{ASK}`, 500, "api_error", "", "api_error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, f := range wireFormats() {
				if !f.can(test.name) {
					continue
				}
				body := f.fill(test.body)
				for _, query := range []string{"", "?beta=true"} {
					got := g.do(t, "POST", "/"+test.tenant+f.path+query, body, bearer(test.key))
					f.wantError(t, got, test.status, test.openAI, test.code, test.anthropic)
					if test.status == 429 && got.header.Get("Retry-After") == "" {
						t.Errorf("%v", got.header)
					}
				}
			}
		})
	}
	t.Run("paths and methods", func(t *testing.T) {
		for _, path := range []string{"/v1/completions", "/v1/", "/v1/messages/batches", "/v1/responses/r/cancel", "/v1/models/a/b",
			"/v1//messages", "//v1/messages", "/x/../v1/messages"} {
			for _, prefix := range []string{"", "/" + g.tenant} {
				g.do(t, "POST", prefix+path, `{}`, bearer(g.key)).wantWireError(t, "chat", 404, invalid, "")
			}
		}
		g.do(t, "POST", "/v1/completions", `{}`, anthropicVersion).wantWireError(t, messagesPath, 404, "not_found_error", "")
		g.do(t, "GET", chatPath, "").wantWireError(t, chatPath, 405, invalid, "")
		g.do(t, "GET", messagesPath, "").wantWireError(t, messagesPath, 405, invalid, "")
		g.do(t, "POST", "/v1/models", "").wantWireError(t, chatPath, 405, invalid, "")
		g.do(t, "POST", "/v1/models", "", anthropicVersion).wantWireError(t, messagesPath, 405, invalid, "")
		many := slices.Repeat([]string{"X-Many: 1"}, 101)
		g.do(t, "POST", messagesPath, "{}", many...).wantWireError(t, messagesPath, 431, invalid, "")
		g.do(t, "POST", "/"+g.tenant+chatPath, "{}", many...).wantWireError(t, chatPath, 431, invalid, "")
		g.do(t, "GET", "/v1/auth/key", "").wantError(t, 400, "Invalid tenant ID") // of a tenant named v1
	})
	t.Run("details", func(t *testing.T) { // from which Anthropic's SDK knows that it may send the whole conversation
		got := g.call(t, messagesPath, `{"max_tokens":1,"thread":{"type":"continue","previous_message_id":"msg_1"}}`)
		got.want(t, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"thread is not supported: `+
			`send the whole conversation, and wait for the response","details":`+
			`{"error_code":"thread_unsupported_request","unsupported":["thread"]}}}`)
		if got := got.header.Get("X-Should-Retry"); got != "false" {
			t.Errorf("X-Should-Retry: %s", got)
		}
	})
	t.Run("model", func(t *testing.T) {
		only := g.service.gatewayTest(t, g.provider, textConfig(1000, fmt.Sprintf(
			`"a":{"url":"%s%s","default_model":"m","models":{"other":{}}},"b":{"url":"%s%s"},"c":{"url":"%s/v1/embeddings","default_model":"e"}`,
			g.provider.URL, chatPath, g.provider.URL, messagesPath, g.provider.URL)))
		only.call(t, chatPath, `{"model":"x"}`).wantWireError(t, chatPath, 404, invalid, "model_not_found")
		only.call(t, chatPath, `{"model":"e"}`).wantWireError(t, chatPath, 404, invalid, "model_not_found")
		only.call(t, messagesPath, `{}`).wantWireError(t, messagesPath, 404, "not_found_error", "")
		for _, model := range []string{"m", "other", "a/other", "a/m"} {
			only.call(t, chatPath, `{"model":"`+model+`"}`).is(200)
		}
	})
	if n := len(g.provider.Requests()); n != 4 {
		t.Errorf("%d requests came to the provider, want those of the 4 models", n)
	}
}

// A refusal for lack of tokens says what is needed, what is left and what that affords.
func TestGatewayUnaffordable(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	var endpoints []string
	for name, path := range map[string]string{"a": chatPath, "b": messagesPath} {
		endpoints = append(endpoints, fmt.Sprintf(`%q:{"url":"%s%s","default_model":"m","models":{"m":{"output":2}}}`, name, p.URL, path))
	}
	g := newService(t).gatewayTest(t, p, textConfig(60, endpoints...))
	const body = `{"max_tokens":100,"n":2}` // 24 bytes
	got := g.call(t, chatPath, body)
	got.wantWireError(t, chatPath, 402, "insufficient_quota", "insufficient_quota")
	got.wantHeader(t, "X-Tokens-Left", "60")
	for _, number := range []string{" 424 tokens", " 60 are left", " 9 output tokens"} { // (60 - 24) / 2 / 2
		if !strings.Contains(got.body, number) {
			t.Errorf("%s does not name%s", got.body, number)
		}
	}
	got = g.call(t, messagesPath, `{"max_tokens":1,"messages":[{"role":"user","content":"`+strings.Repeat("x", 60)+`"}]}`)
	if !strings.Contains(got.body, "not enough for its input") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if n := len(g.provider.Requests()); n > 0 || g.charged(t, 60) != 0 {
		t.Errorf("%d requests came to the provider", n)
	}
}

func TestGatewayCredential(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "")
	other := g.login(t, g.tenant)
	sentence := func(text string) string { return strings.ReplaceAll(text, "acme", g.tenant) }
	unknown, different := sentence("The API key is not one of tenant acme"), "Two different API keys were sent"
	none := sentence("No API key was sent: send one of tenant acme in Authorization: Bearer, x-api-key or api-key")
	malformed := sentence("What was sent is not an API key of tenant acme: these begin with user_ or temp_")
	key, otherKey := func(name string) string { return name + ": " + g.key }, func(name string) string { return name + ": " + other }
	foreign := g.login(t, newTenant(t, 5))
	for _, test := range []struct {
		refusal string
		headers []string
	}{
		{"", []string{bearer(g.key)}}, {"", []string{key("x-api-key")}}, {"", []string{key("api-key")}}, {"", []string{key("Authorization")}},
		{"", []string{bearer(g.key), key("x-api-key"), key("api-key")}},
		{"", []string{bearer("sk-ant-1"), key("x-api-key")}}, {"", []string{bearer(g.key), "x-api-key: sk-ant-1"}},
		{"", []string{bearer("sk-ant-1"), "x-api-key: sk-1", key("api-key")}}, {"", []string{bearer(g.key), "api-key: 0123456789abcdef"}},
		{different, []string{bearer(g.key), otherKey("x-api-key")}}, {different, []string{bearer(g.key), otherKey("api-key")}},
		{different, []string{key("x-api-key"), otherKey("api-key")}}, {different, []string{key("api-key"), otherKey("api-key")}},
		{none, nil}, {malformed, []string{"x-api-key: "}}, {malformed, []string{"Authorization: Basic " + g.key}},
		{malformed, []string{bearer("sk-1"), "x-api-key: sk-2", "api-key: sk-3"}}, {malformed, []string{bearer(g.key + "x")}},
		{unknown, []string{"api-key: " + someKey}}, {unknown, []string{bearer(foreign)}},
	} {
		for _, f := range wireFormats() {
			got := g.do(t, "POST", "/"+g.tenant+f.path, f.body(), test.headers...)
			if test.refusal == "" {
				if err := got.is(200); err != nil {
					t.Errorf("%s with %q: %v", f.path, test.headers, err)
				}
				continue
			}
			f.wantError(t, got, 401, "invalid_request_error", "invalid_api_key", "authentication_error")
			if !strings.Contains(got.body, `"message":"`+test.refusal+`"`) {
				t.Errorf("%s with %q: got %s, want %s", f.path, test.headers, got.body, test.refusal)
			}
		}
	}
	g.consume(t, g.tenant, someKey, "").wantError(t, 401, "Unauthorized") // no route of the gateway
	g.do(t, "POST", "/"+g.tenant+"/tokens/consume", "", key("api-key")).wantError(t, 401, "Unauthorized")
}

func TestGatewayModels(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := providertest.New(t)
	g := s.gatewayTest(t, p, strings.ReplaceAll(`{"user_groups":{"anonymous":{"tokens":0}},`+
		`"providers":{"text":{"default":"second","endpoints":{`+
		`"first":{"url":"http://h/v1/chat/completions","models":{"b":{},"x/y":{},"*":{}}},`+
		`"second":{"url":"http://h/v1/chat/completions","default_model":"a","models":{"b":{},"a":{}}},`+
		`"third":{"url":"http://h/v1/messages","default_model":"c"},"fourth":{"url":"http://h/v1/speech","default_model":"d"}}}}}`,
		"http://h", p.URL))
	get := func(path string, headers ...string) reply {
		return g.do(t, "GET", "/"+g.tenant+path, "", append(headers, bearer(g.key))...)
	}
	get("/v1/models").want(t, 200, `{"object":"list","data":[{"id":"a","object":"model","created":0,"owned_by":"second"},`+
		`{"id":"b","object":"model","created":0,"owned_by":"second"},{"id":"x/y","object":"model","created":0,"owned_by":"first"}]}`)
	const c = `{"type":"model","id":"c","display_name":"c","created_at":"1970-01-01T00:00:00Z",` +
		`"lifecycle":"active","deprecated_at":null,"retires_at":null,"line":null,"capabilities":null,"max_input_tokens":null,"max_tokens":null}`
	get("/v1/models", anthropicVersion).want(t, 200, `{"data":[`+c+`],"has_more":false,"first_id":"c","last_id":"c"}`)
	get("/v1/models/c", anthropicVersion).want(t, 200, c)
	get("/v1/models/a", anthropicVersion).wantWireError(t, messagesPath, 404, "not_found_error", "")
	get("/v1/models/x%2Fy").want(t, 200, `{"id":"x/y","object":"model","created":0,"owned_by":"first"}`)
	get("/v1/models/openai%2Fgpt-4o").want(t, 200, `{"id":"openai/gpt-4o","object":"model","created":0,"owned_by":"first"}`)
	get("/v1/models/first%2Fx%2Fy").want(t, 200, `{"id":"first/x/y","object":"model","created":0,"owned_by":"first"}`)
	get("/v1/models/any").want(t, 200, `{"id":"any","object":"model","created":0,"owned_by":"first"}`)
	g.do(t, "GET", "/"+g.tenant+"/v1/models", "", bearer(someKey)).wantWireError(t, chatPath, 401, "invalid_request_error", "invalid_api_key")
	g.do(t, "GET", "/"+g.tenant+"/v1/models", "").wantWireError(t, chatPath, 401, "invalid_request_error", "invalid_api_key")
	g.do(t, "GET", "/nobody/v1/models", "", bearer(g.key), anthropicVersion).
		wantWireError(t, messagesPath, 400, "invalid_request_error", "")
}

// Where the config leaves models open, the provider's own list fills them in. No redirect is followed, no denied address
// is asked, and a list that leads back to tollgate is ignored.
func TestGatewayModelLists(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.List("m", "openai/gpt-4o", "x")
	s := newService(t)
	list := func(g *gatewayTest, headers ...string) (names []string) {
		t.Helper()
		got := g.do(t, "GET", "/"+g.tenant+"/v1/models", "", append(headers, bearer(g.key))...)
		var body struct{ Data []struct{ ID string } }
		if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != 200 {
			t.Fatalf("%d %s: %v", got.status, got.body, err)
		}
		for _, model := range body.Data {
			names = append(names, model.ID)
		}
		return names
	}
	want := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	g := s.gatewayTest(t, p, textConfig(0, endpointsJSON(p, "")...))
	for range 2 {
		want(list(g), "m", "openai/gpt-4o", "x")
		want(list(g, anthropicVersion), "m", "openai/gpt-4o", "x")
	}
	if n := len(p.Requests()); n != 2 {
		t.Errorf("%d requests came to the provider", n)
	}
	g.do(t, "GET", "/"+g.tenant+"/v1/models", "", bearer(someKey)).wantWireError(t, chatPath, 401, "invalid_request_error", "invalid_api_key")
	azure := s.gatewayTest(t, p, textConfig(0, endpointJSON(p, "azure", chatPath, `,"auth":"api-key"`)))
	want(list(azure), "m", "openai/gpt-4o", "x")
	if got := p.Last(t).Header; got.Get("Api-Key") != providertest.Key || got.Get("Authorization") != "" {
		t.Errorf("the provider got %v", got)
	}
	denied := newService(t, "GATEWAY_DENY=127.0.0.0/8")
	want(list(denied.gatewayTest(t, p, textConfig(0, endpointsJSON(p, "")...))), "m")
	if n := len(p.Requests()); n != 3 {
		t.Errorf("%d requests came to the provider", n)
	}

	id := newTenant(t, 1000)
	loop := &gatewayTest{service: s, provider: p, tenant: id, key: s.login(t, id)}
	s.putConfig(t, id, textConfig(0, fmt.Sprintf(`"e":{"url":"%s/%s%s","default_model":"m","models":{"*":{}},"api_key":%q}`,
		s.url, id, chatPath, loop.key))).want(t, 200, "")
	want(list(loop), "m")
	s.do(t, "GET", "/"+id+"/v1/models", "", bearer(loop.key), "Tollgate-Loop: "+testRedis.String(t, "GET", "deployment")).
		wantWireError(t, chatPath, 508, "invalid_request_error", "loop")
}

// The tokens that a request needs are those of the table: one token fewer is refused.
func TestGatewayHolds(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := providertest.New(t)
	image := `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("A", 400) +
		`"}}]}],"max_tokens":5}`
	for _, test := range []struct {
		name, members, body string
		need                int
	}{
		{"bytes and limit", ``, `{"max_tokens":50}`, 17 + 50},
		{"the larger limit", ``, `{"max_tokens":50,"max_completion_tokens":70}`, 44 + 70},
		{"choices", ``, `{"max_tokens":50,"n":3}`, 23 + 150},
		{"no limit needs one token", ``, `{}`, 2 + 1},
		{"bytes per token", `,"bytes_per_token":3`, `{"max_tokens":50}`, 6 + 50},
		{"context window", `,"max_input_tokens":9`, `{"max_tokens":50}`, 9 + 50},
		{"tools", ``, `{"max_tokens":5,"tools":[{"type":"function","function":{}}]}`, 60 + 600 + 5},
		{"media", ``, image, len(image) - 400 + 2000 + 5},
		{"media tokens", `,"media_tokens":10`, image, len(image) - 400 + 10 + 5},
		{"prices", `,"models":{"m":{"input":0.1,"output":2.5}}`, `{"max_tokens":51}`, 2 + 128}, // 1.7 + 127.5, rounded up
		{"free", `,"models":{"m":{"input":0,"output":0}}`, `{"max_tokens":51}`, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := s.gatewayTest(t, p, textConfig(int64(test.need),
				fmt.Sprintf(`"a":{"url":"%s%s","default_model":"m"%s}`, p.URL, chatPath, test.members)))
			poor := s.issue(t, g.tenant, fmt.Sprintf(`"userId":"u","group":"anonymous","tokens":%d`, test.need-1))
			if err := s.do(t, "POST", "/"+g.tenant+chatPath, test.body, bearer(poor)).is(402); err != nil {
				t.Error(err)
			}
			if err := g.call(t, chatPath, test.body).is(200); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("no limit", func(t *testing.T) {
		g := s.gatewayTest(t, p, textConfig(60, fmt.Sprintf(
			`"a":{"url":"%s%s","default_model":"m","max_output_tokens":40,"models":{"m":{"output":0.5},"dear":{"output":3}}}`, p.URL, chatPath)))
		for _, test := range []struct {
			body  string
			limit string
		}{
			{`{}`, "40"},                    // the most
			{`{"model":"dear","n":2}`, "6"}, // (60 - 22) / 3 / 2
			{`{"model":"dear"}`, "14"},
		} {
			key := s.login(t, g.tenant)
			if err := s.do(t, "POST", "/"+g.tenant+chatPath, test.body, bearer(key)).is(200); err != nil {
				t.Fatal(err)
			}
			if got := p.Last(t).Member(t, "max_tokens"); got != test.limit {
				t.Errorf("%s was given %s output tokens, want %s", test.body, got, test.limit)
			}
		}
	})
	t.Run("the dearest endpoint", func(t *testing.T) {
		g := s.gatewayTest(t, p, textConfig(1000, endpointJSON(p, "a", chatPath, `,"max_output_tokens":10`)+","+
			fmt.Sprintf(`"b":{"url":"%s%s","default_model":"m","models":{"m":{"input":4,"output":5}}}`, p.URL, chatPath)))
		got := g.call(t, chatPath, `{"max_tokens":200}`)
		if !strings.Contains(got.body, "needs 1072 tokens") || !strings.Contains(got.body, "at most 185 output") {
			t.Errorf("%d %s", got.status, got.body)
		}
		if err := g.call(t, chatPath, `{"max_tokens":180}`).is(200); err != nil || g.charged(t, 1000) != 18 {
			t.Errorf("%v", err)
		}
	})
}

// A charge beyond the hold takes what is left, down to 0.
func TestGatewayUnpaid(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 100, "")
	g.provider.On("", providertest.Conduct{Body: `{"usage":{"prompt_tokens":500,"completion_tokens":1}}`})
	got := g.call(t, chatPath, `{"max_tokens":1}`)
	got.wantHeader(t, "X-Tokens-Charged", "100")
	got.wantHeader(t, "X-Tokens-Left", "0")
	if n := g.sample(t, "gateway_unpaid_tokens_total"); n != 401 {
		t.Errorf("%v tokens are unpaid", n)
	}
}

// openAIRefusal returns the body of an error with that code.
func openAIRefusal(code string) string {
	return fmt.Sprintf(`{"error":{"message":"No.","type":%q,"param":null,"code":%[1]q}}`, code)
}

// Errors of a provider are forwarded, but for those that concern the operator's account.
func TestGatewayProviderErrors(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	g := newGatewayTest(t, granted, "")
	for _, f := range wireFormats() {
		for _, status := range []int{400, 404, 422, 429, 500, 529} {
			g.provider.On("", providertest.Refuse(status, "Retry-After: 7", "x-should-retry: true", "Set-Cookie: a=b"))
			got := g.call(t, f.path, f.body())
			if err := got.is(status); err != nil || !strings.Contains(got.body, "The provider refuses.") {
				t.Errorf("%s: %v %s", f.path, err, got.body)
			}
			got.wantHeader(t, "Retry-After", "7")
			got.wantHeader(t, "X-Should-Retry", "true")
			got.wantHeader(t, "Set-Cookie", "")
			got.wantHeader(t, "X-Tokens-Charged", "0")
		}
		refusals := []providertest.Conduct{providertest.Refuse(401), providertest.Refuse(402), providertest.Refuse(403)}
		if f.path == messagesPath {
			refusals = append(refusals, providertest.Conduct{Status: 400, Body: providertest.EmptyCredit})
		} else {
			refusals = append(refusals, providertest.Conduct{Status: 429, Body: providertest.InsufficientQuota},
				providertest.Conduct{Status: 429, Body: openAIRefusal("billing_not_active")},
				providertest.Conduct{Status: 429, Body: openAIRefusal("exceeded_current_quota_error")},
				providertest.Conduct{Status: 400, Body: openAIRefusal("billing_hard_limit_reached")})
		}
		for _, refusal := range refusals {
			g.provider.On("", refusal)
			got := g.call(t, f.path, f.body())
			got.wantWireError(t, f.path, 502, "api_error", "")
			got.wantHeader(t, "X-Should-Retry", "false")
		}
	}
	spelled := strings.ReplaceAll(providertest.Key, "-", `\u002d`)
	withKey := `{"error":{"message":"bad key ` + providertest.Key + " " + spelled + `"}}` + strings.Repeat(" ", 100_000)
	g.provider.On("", providertest.Conduct{Status: 400, Body: withKey, Header: []string{"X-Request-Id: " + providertest.Key}})
	got := g.call(t, chatPath, `{}`)
	all := got.body + fmt.Sprint(got.header)
	if strings.Contains(all, providertest.Key) || strings.Contains(all, spelled) || len(got.body) > 64<<10 {
		t.Errorf("%d bytes: %.200s %v", len(got.body), got.body, got.header)
	}
	if n := g.charged(t, granted); n != 0 {
		t.Errorf("errors cost %d tokens", n)
	}
	if strings.Contains(g.log.String(), providertest.Key) {
		t.Error("the log has the provider's key")
	}
}

const errorWithUsage = `{"error":{"message":"no"},"usage":{"prompt_tokens":11,"completion_tokens":7,"input_tokens":11,"output_tokens":7}}`

// Another endpoint is tried only if the first cannot have begun to generate.
func TestGatewayFallback(t *testing.T) {
	t.Parallel()
	s := newService(t, "PROVIDER_TIMEOUT=1s")
	down := &providertest.Provider{URL: "http://127.0.0.1:1"} // nobody listens there
	const granted = 100_000
	for _, test := range []struct {
		name   string
		first  providertest.Conduct
		status int
		tried  int // of the second provider
	}{
		{"works", providertest.Conduct{}, 200, 0},
		{"408", providertest.Refuse(408), 200, 1},
		{"429", providertest.Refuse(429), 200, 1},
		{"500", providertest.Refuse(500), 200, 1},
		{"529", providertest.Refuse(529), 200, 1},
		{"400", providertest.Refuse(400), 400, 0},
		{"404", providertest.Refuse(404), 404, 0},
		{"401", providertest.Refuse(401), 200, 1},
		{"402", providertest.Refuse(402), 200, 1},
		{"403", providertest.Refuse(403), 200, 1},
		{"quota", providertest.Conduct{Status: 429, Body: providertest.InsufficientQuota}, 200, 1},
		{"hard limit", providertest.Conduct{Status: 400, Body: openAIRefusal("billing_hard_limit_reached")}, 200, 1},
		{"error in a 200", providertest.Conduct{Body: `{"error":{"message":"no"}}`}, 200, 1},
		{"error in a 200, with usage", providertest.Conduct{Body: errorWithUsage}, 200, 0},
		{"unusable 200", providertest.Conduct{Body: "<html>"}, 502, 0},
		{"lost", providertest.Conduct{Cut: providertest.BeforeHeaders}, 502, 0},
		{"slow", providertest.Conduct{Hang: providertest.BeforeHeaders}, 504, 0},
	} {
		forFormats(t, test.name, func(t *testing.T, f wireFormat) {
			first := providertest.New(t)
			first.On("", test.first)
			s.testFallback(t, f, first, test.status, test.tried)
		})
	}
	for _, f := range wireFormats() {
		t.Run("unreachable "+f.path, func(t *testing.T) { s.testFallback(t, f, down, 200, 1) })
	}
	t.Run("at most three", func(t *testing.T) {
		p := providertest.New(t)
		p.On("", providertest.Refuse(503, "Retry-After: 3"))
		var endpoints []string
		for i := range 5 {
			endpoints = append(endpoints, endpointJSON(p, fmt.Sprint("e", i), chatPath, ""))
		}
		g := s.gatewayTest(t, p, textConfig(granted, endpoints...))
		got := g.call(t, chatPath, `{}`)
		got.wantHeader(t, "Retry-After", "3")
		if n := len(p.Requests()); n != 3 || got.status != 503 {
			t.Errorf("%d endpoints were tried: %d %s", n, got.status, got.body)
		}
		g.call(t, chatPath, `{"model":"e4/m"}`)
		if n := len(p.Requests()); n != 4 {
			t.Errorf("the endpoint that was chosen was tried %d times", n-3)
		}
	})
	t.Run("none reachable", func(t *testing.T) {
		g := s.gatewayTest(t, down, formatsConfig(down, granted, "", ""))
		for _, f := range wireFormats() {
			got := g.call(t, f.path, f.body())
			got.wantWireError(t, f.path, 502, "api_error", "")
			got.wantHeader(t, "X-Should-Retry", "")
		}
	})
}

// testFallback makes a call whose first endpoint is first. It checks the response's status, how often the second endpoint
// was tried, and what was charged.
func (s *service) testFallback(t *testing.T, f wireFormat, first *providertest.Provider, status, tried int) {
	t.Helper()
	const granted = 100_000
	second := providertest.New(t)
	// The second is earlier in the config, and not the default.
	const config = `{"user_groups":{"anonymous":{"tokens":%d}},"providers":{%q:{"default":"a","endpoints":{%s,%s}}}}`
	g := s.gatewayTest(t, first, fmt.Sprintf(config, granted, f.kind,
		f.endpointOf(second, "b", ""), f.endpointOf(first, "a", `,"max_output_tokens":50`)))
	if err := g.call(t, f.path, f.body()).is(status); err != nil {
		t.Error(err)
	}
	if n := len(second.Requests()); n != tried {
		t.Errorf("the second endpoint was tried %d times", n)
	}
	charged := map[bool]int{true: f.charged}[status == 200]
	if n := g.charged(t, granted); n != charged {
		t.Errorf("charged %d, want %d", n, charged)
	}
}

// Half of the connections are left for charges, and memory for the bodies of a number of requests.
func TestGatewayBounds(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "", "MAX_GATEWAY_BODY=209715200")
	t.Run("a stranger sends no large body", func(t *testing.T) {
		c := g.dial(t)
		fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n", g.tenant, chatPath, bearer(someKey), 1<<20)
		if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 401 ") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a body without a length", func(t *testing.T) {
		r, _ := http.NewRequest("POST", g.url+"/"+g.tenant+chatPath, io.MultiReader(strings.NewReader(`{"messages":`), strings.NewReader(`[]}`)))
		r.Header.Set("x-api-key", g.key)
		response, err := client.Do(r)
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("%v, %v", response, err)
		}
		response.Body.Close()
	})
}

func TestGatewayCountTokens(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	s := newService(t)
	g := s.gatewayTest(t, p, strings.Replace(textConfig(10, endpointJSON(p, "claude", messagesPath, "")),
		`{"tokens":10}`, `{"tokens":10,"rate_limit":2,"rate_limit_window":60}`, 1))
	const path = messagesPath + "/count_tokens"
	for range 2 {
		got := g.call(t, path+"?beta=true", `{"model":"claude/x","messages":[]}`, "anthropic-version: 2023-06-01")
		if got.status != 200 || got.body != `{"input_tokens":11}` {
			t.Errorf("%d %s", got.status, got.body)
		}
		got.wantHeader(t, "X-Tokens-Charged", "")
	}
	if sent := p.Last(t); string(sent.Body) != `{"model":"x","messages":[]}` || sent.Path != path || sent.Query != "beta=true" {
		t.Errorf("%+v", sent)
	}
	g.call(t, path, `{}`).wantWireError(t, path, 429, "rate_limit_error", "")
	if n := g.charged(t, 10); n != 0 {
		t.Errorf("charged %d", n)
	}
	p.On("", providertest.Refuse(400))
	testRedis.Do(t, "DEL", "{apiKey:"+g.key+"}:rate")
	if err := g.call(t, path, `{}`).is(400); err != nil {
		t.Error(err)
	}
	testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", 0)
	g.call(t, path, `{}`).wantWireError(t, path, 402, "billing_error", "")
}

// A charge that Redis does not take is made when it can be reached again, once.
func TestGatewayWithoutRedis(t *testing.T) {
	t.Parallel()
	for _, f := range wireFormats() {
		t.Run(f.path, func(t *testing.T) {
			t.Parallel()
			f.testWithoutRedis(t)
		})
	}
}

func (f wireFormat) testWithoutRedis(t *testing.T) {
	r := redistest.New(t)
	p := providertest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	tenant := newTenantIn(t, r, formatsConfig(p, 1000, "", ""))
	key := s.login(t, tenant)
	frozen := make(chan struct{})
	p.Each(func(providertest.Request) providertest.Conduct {
		select {
		case <-frozen:
		default:
			r.Signal(t, syscall.SIGSTOP)
			close(frozen)
		}
		return providertest.Conduct{}
	})
	got := s.do(t, "POST", "/"+tenant+f.path, f.body(), bearer(key))
	if err := got.is(200); err != nil {
		t.Error(err) // it was paid for
	}
	got.wantHeader(t, "X-Tokens-Charged", "")
	if n := s.sample(t, "gateway_settlements_waiting"); n != 1 {
		t.Errorf("%v settlements wait", n)
	}
	got = s.do(t, "POST", "/"+tenant+f.path, f.body(), bearer(key))
	f.wantError(t, got, 503, "api_error", "", "overloaded_error")
	got.wantHeader(t, "Retry-After", "1")
	r.Signal(t, syscall.SIGCONT)
	waittest.Eventually(t, 20*time.Second, func() error {
		if n, waiting := tokensLeftIn(t, r, key), s.sample(t, "gateway_settlements_waiting"); n != 1000-f.charged || waiting != 0 {
			return fmt.Errorf("%d tokens are left, want %d; %v settlements wait", n, 1000-f.charged, waiting)
		}
		return nil
	})
	if n := r.Int(t, "EXISTS", "{apiKey:"+key+"}:holds"); n != 0 {
		t.Errorf("holds are left")
	}
}

func TestGatewayMetrics(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 100_000, "", "ACCESS_LOG=true")
	g.call(t, chatPath, `{"model":"chat/x y\nstatus=200 \""}`).is(200)
	g.call(t, messagesPath, `{"model":"m","stream":true,"messages":[{"content":"a secret prompt"}]}`).is(200)
	g.call(t, messagesPath, `{"tools":[{"type":"web_search_1"}]}`)
	g.charged(t, 100_000)
	labels := func(endpoint, more string) string {
		return fmt.Sprintf(`{tenant=%q,endpoint=%q,%s}`, g.tenant, endpoint, more)
	}
	for sample, want := range map[string]float64{
		"gateway_requests_total" + labels("chat", `status="200"`):                          1,
		"gateway_requests_total" + labels("claude", `status="200"`):                        1,
		"gateway_requests_total" + labels("none", `status="400"`):                          1,
		"gateway_tokens_total" + labels("claude", `direction="input",kind="input"`):        6,
		"gateway_tokens_total" + labels("claude", `direction="input",kind="cached_input"`): 3,
		"gateway_tokens_total" + labels("claude", `direction="input",kind="cache_write"`):  2,
		"gateway_tokens_total" + labels("claude", `direction="output",kind="output"`):      7,
		`gateway_request_duration_seconds_count{endpoint="chat"}`:                          1,
		`gateway_request_duration_seconds_bucket{endpoint="chat",le="600"}`:                1,
		`gateway_time_to_first_byte_seconds_count{endpoint="claude"}`:                      1,
		`gateway_holds`:                                   0,
		`gateway_estimated_total`:                         0,
		`gateway_unpaid_tokens_total`:                     0,
		`gateway_settlements_waiting`:                     0,
		`tokens_charged_total{tenant="` + g.tenant + `"}`: 36,
		`http_requests_total{route="/{tenantId}/v1/messages",method="POST",status="200"}`: 1,
	} {
		if got := g.sample(t, sample); got != want {
			t.Errorf("%s is %v, want %v", sample, got, want)
		}
	}
	log := g.log.String()
	if strings.Contains(log, "secret") || g.log.Count(`endpoint="chat" model="x y\nstatus=200 \""`) != 1 {
		t.Errorf("log:\n%s", log)
	}
	if g.log.Count(`endpoint="claude" model="m"`) != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// Over two processes of which one is killed, and with all that can go wrong, what was granted is what was charged and what
// is left.
func TestGatewayLedger(t *testing.T) {
	const granted = 300_000
	p := providertest.New(t)
	faults := []providertest.Conduct{
		{}, {}, {Output: 300}, {NoUsage: true}, {Cut: providertest.InContent}, {Cut: providertest.BeforeContent},
		{Cut: providertest.BeforeHeaders}, {Error: providertest.InContent}, {End: providertest.InContent},
		providertest.Refuse(500), providertest.Refuse(429), {Pause: 5 * time.Millisecond, Events: 20},
		{Input: 900, Output: 900}, {Delay: 30 * time.Millisecond},
	}
	for i, c := range faults {
		p.On(fmt.Sprint("m", i), c)
	}
	settings := []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "LOGIN_LIMIT=0"}
	processes := []*process{startProcess(t, settings), startProcess(t, settings)}
	services := []*service{processes[0].service(t), processes[1].service(t)}
	g := services[0].gatewayTest(t, p, textConfig(granted, endpointsJSON(p, "")...))

	const clients = 200
	left := make(chan struct{}, clients) // one for each client that has finished
	for client := range clients {
		go func() {
			for i := range 3 {
				n := client*3 + i
				g.ledgerCall(services[n/2%2], n, len(faults))
			}
			left <- struct{}{}
		}()
	}
	for finished := 0; finished < clients; {
		if tokens := tokensLeft(t, g.key); tokens < 0 || tokens > granted {
			t.Fatalf("%d tokens are left", tokens)
		}
		select {
		case <-left:
			if finished++; finished == 60 {
				_ = processes[1].cmd.Process.Kill()
			}
		case <-time.After(time.Millisecond):
		}
	}
	waittest.Eventually(t, 30*time.Second, func() error { // what the process that lives holds is settled
		if n := services[0].sample(t, "gateway_holds"); n != 0 {
			return fmt.Errorf("%v holds are open", n)
		}
		return nil
	})
	g.expireHolds(t)
	got := services[0].do(t, "GET", "/"+g.tenant+"/auth/key", "", bearer(g.key))
	if n := testRedis.Int(t, "EXISTS", "{apiKey:"+g.key+"}:holds"); n != 0 {
		t.Errorf("a hold is left after its deadline")
	}
	charged := g.settledTokens(t)
	if left := int(got.field(t, "tokensLeft").(float64)); left+charged != granted || charged == 0 {
		t.Errorf("%d of %d tokens are left, %d were charged", left, granted, charged)
	}
}

var client200 = &http.Transport{MaxIdleConnsPerHost: 200}

// ledgerCall makes the n-th call of TestGatewayLedger: to one of as many models as there are faults, in either format, a
// stream or not. Some clients hang up soon.
func (g *gatewayTest) ledgerCall(s *service, n, faults int) {
	body := fmt.Sprintf(`{"model":"m%d","stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`,
		n%faults, n%3 > 0, 1+n*7%900, strings.Repeat("x", n*13%2000))
	hangUpAfter := 10 * time.Second
	if n%5 == 0 {
		hangUpAfter = time.Duration(n%40) * time.Millisecond
	}
	caller := &http.Client{Transport: client200, Timeout: hangUpAfter}
	r, _ := http.NewRequest("POST", s.url+"/"+g.tenant+[]string{chatPath, messagesPath}[n%2], strings.NewReader(body))
	r.Header.Set("x-api-key", g.key)
	if response, err := caller.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

// expireHolds moves the deadlines of the key's holds to the past.
func (g *gatewayTest) expireHolds(t *testing.T) {
	t.Helper()
	holds, err := redis.StringMap(testRedis.Do(t, "HGETALL", "{apiKey:"+g.key+"}:holds"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, hold := range holds {
		tokens, _, _ := strings.Cut(hold, " ")
		testRedis.Do(t, "HSET", "{apiKey:"+g.key+"}:holds", id, tokens+" 1000")
	}
	if len(holds) > 0 {
		testRedis.Do(t, "HSET", "apiKey:"+g.key, "holdsDue", 1000)
	}
}

// settledTokens returns the sum of what was charged for the key's holds, as Redis remembers each.
func (g *gatewayTest) settledTokens(t *testing.T) (sum int) {
	t.Helper()
	records := testRedis.Keys(t, "{apiKey:"+g.key+"}:settled:*")
	ids := slices.Compact(slices.Clone(records))
	if len(ids) != len(records) {
		t.Errorf("%d settlements of %d holds", len(records), len(ids))
	}
	for _, record := range records {
		fields := strings.Fields(testRedis.String(t, "GET", record))
		charged, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += charged
	}
	return sum
}

// priceMembers are the names of all prices.
var priceMembers = []string{
	"input", "cached_input", "cache_write", "cache_write_1h", "audio_input", "image_input", "cached_audio_input", "output",
	"audio_output", "image_output", "search", "request",
}

// The members of a text endpoint are checked, and those of other providers are not.
func TestGatewayConfig(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	put := func(kind, members string) reply {
		return s.putConfig(t, id, `{"providers":{"`+kind+`":{"endpoints":{"e":{`+members+`}}}}}`)
	}
	for members, want := range map[string]string{
		`"models":7`:                            "models must be an object",
		`"models":{"m":7}`:                      "models.m must be an object",
		`"models":{"":{}}`:                      `models[""] must have a name of 1 to 256 bytes`,
		`"models":{"m":{"input":-1}}`:           "models.m.input must be a number from 0 to 1000000000 with at most 6 decimals",
		`"models":{"m":{"output":0.0000001}}`:   "models.m.output must be a number from 0 to 1000000000 with at most 6 decimals",
		`"models":{"m":{"output":"1"}}`:         "models.m.output must be a number from 0 to 1000000000 with at most 6 decimals",
		`"models":{"m":{"output":1e10}}`:        "models.m.output must be a number from 0 to 1000000000 with at most 6 decimals",
		`"models":{"m":{},"m":{}}`:              "models.m is duplicated",
		`"max_output_tokens":0`:                 "max_output_tokens must be a whole number ≥ 1",
		`"max_input_tokens":1.5`:                "max_input_tokens must be a whole number ≥ 1",
		`"bytes_per_token":9`:                   "bytes_per_token must be a whole number from 1 to 8",
		`"bytes_per_token":0`:                   "bytes_per_token must be a whole number from 1 to 8",
		`"media_tokens":-1`:                     "media_tokens must be a whole number ≥ 0",
		`"server_tools":"yes"`:                  `server_tools must be "drop", false or true`,
		`"server_tools":null`:                   `server_tools must be "drop", false or true`,
		`"min_output_tokens":0`:                 "min_output_tokens must be a whole number ≥ 1",
		`"image_tokens":-1`:                     "image_tokens must be a whole number ≥ 0",
		`"file_tokens":0`:                       "file_tokens must be a whole number ≥ 1",
		`"limit":"soft"`:                        `limit must be "clamp" or "strict"`,
		`"limit":true`:                          `limit must be "clamp" or "strict"`,
		`"limit_member":"n_predict"`:            `limit_member must be "max_completion_tokens" or "max_tokens"`,
		`"reasoning":"none"`:                    "reasoning must be true or false",
		`"stream_usage":0`:                      "stream_usage must be true or false",
		`"user_ids":"all"`:                      "user_ids must be true or false",
		`"allow":"*"`:                           "allow must be an array",
		`"allow":["x",""]`:                      "allow[1] must be a string of 1 to 256 bytes",
		`"allow":[7]`:                           "allow[0] must be a string of 1 to 256 bytes",
		`"models":{"m":{"reasoning":1}}`:        "models.m.reasoning must be true or false",
		`"models":{"m":{"above":7}}`:            "models.m.above must be an object",
		`"models":{"m":{"above":{"input":1}}}`:  "models.m.above.tokens is missing",
		`"models":{"m":{"above":{"tokens":0}}}`: "models.m.above.tokens must be a whole number ≥ 1",
		`"on_hangup":"stop"`:                    `on_hangup must be "cancel" or "drain"`,
		`"on_hangup":null`:                      `on_hangup must be "cancel" or "drain"`,
		`"auth":"basic"`:                        `auth must be "bearer", "x-api-key" or "api-key"`,
	} {
		path := "Invalid config: providers.text.endpoints.e."
		put("text", members).wantError(t, 400, path+want)
		put("realtime", members).want(t, 200, "")
	}
	for _, kind := range []string{"text", "realtime"} {
		for _, key := range []string{`sk-1\n`, `sk-1\r\n`, ` sk-1`, `s k`, `s\tk`, `s\u0000k`, `schlüssel`} {
			put(kind, `"api_key":"`+key+`"`).wantError(t, 400,
				"Invalid config: providers."+kind+".endpoints.e.api_key must be printable ASCII without white space")
		}
		put(kind, `"api_key":"sk-1_~!"`).want(t, 200, "")
	}
	for url, ok := range map[string]bool{
		"https://h/v1/chat/completions": true, "https://h/v1/messages?x=1": true, "https://h/v1/messages/": true,
		"https://h": false, "https://h/": false, "https://h/v1": false, "https://h/v1/embeddings": false, "https://h/v1/chat": false,
	} {
		want := `{"success":true}`
		if !ok {
			want = `{"success":true,"warnings":["providers.text.endpoints.e.url is not used: ` +
				`its path should end in /chat/completions, /messages or /responses"]}`
		}
		put("text", `"url":"`+url+`"`).want(t, 200, want)
		put("other", `"url":"`+url+`"`).want(t, 200, `{"success":true}`)
	}
	put("text", `"allow":["x"`+strings.Repeat(`,"x"`, 999)+`]`).want(t, 200, "")
	put("text", `"allow":["x"`+strings.Repeat(`,"x"`, 1000)+`]`).wantError(t, 400,
		"Invalid config: providers.text.endpoints.e.allow must have at most 1000 names")
	for _, name := range priceMembers {
		for _, member := range []string{`"` + name + `":%s`, `"above":{"tokens":1,"` + name + `":%s}`} {
			path := "models.m." + name
			if strings.HasPrefix(member, `"above"`) {
				path = "models.m.above." + name
			}
			for _, value := range []string{"-1", `"1"`, "1e10", "0.0000001", "null"} {
				put("text", `"models":{"m":{`+fmt.Sprintf(member, value)+`}}`).wantError(t, 400,
					"Invalid config: providers.text.endpoints.e."+path+" must be a number from 0 to 1000000000 with at most 6 decimals")
			}
		}
	}
	put("text", `"url":"https://h/v1/messages","models":{"*":{"input":0,"output":1e-6}},"max_output_tokens":1,"max_input_tokens":1,`+
		`"bytes_per_token":8,"media_tokens":0,"server_tools":true,"on_hangup":"cancel","unheard_of":{"a":[1]}`).want(t, 200, "")
	put("text", `"url":"https://h/v1/messages","models":{"m*":{"input":1.5,"output":1.5,"cached_input":0,"above":{"tokens":1,"output":2}}},`+
		`"min_output_tokens":1,"file_tokens":1,"limit":"strict","limit_member":"max_tokens","reasoning":false,"stream_usage":false,`+
		`"user_ids":true,"server_tools":"drop","on_hangup":"cancel","allow":["a","anthropic-beta:b","*"]`).want(t, 200, `{"success":true}`)
	got := put("text", `"max_outptu_tokens":1`)
	got.want(t, 200, "")
	if !strings.Contains(got.body, "providers.text.endpoints.e.max_outptu_tokens is not known: did you mean max_output_tokens?") {
		t.Errorf("%s", got.body)
	}
}

// A key that no header can carry, in a config that is older than the rule, is refused where it is used.
func TestGatewayStoredKey(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	const wrong = "api_key must be printable ASCII without white space"
	bad := endpointJSON(p, "bad", chatPath, "")
	bad = strings.Replace(bad, providertest.Key, providertest.Key+`\n`, 1)
	s := newService(t)
	g := s.gatewayTest(t, p, textConfig(1000, bad))
	got := g.call(t, chatPath, `{}`)
	got.wantWireError(t, chatPath, 502, "api_error", "")
	got.wantHeader(t, "X-Should-Retry", "false")
	if !strings.Contains(got.body, "The endpoint's key cannot be sent: its "+wrong) || strings.Contains(got.body, providertest.Key) ||
		s.log.Count("[WARN] The endpoint bad of tenant "+g.tenant+" failed: its "+wrong) != 1 {
		t.Errorf("got %s, log:\n%s", got.body, s.log)
	}
	s.admin(t, "GET", "/"+g.tenant+"/admin/config", "").want(t, 200, "")
	s.putConfig(t, g.tenant, textConfig(1000, bad)).wantError(t, 400, "Invalid config: providers.text.endpoints.bad."+wrong)
	g = s.gatewayTest(t, p, textConfig(1000, bad, endpointJSON(p, "good", chatPath, "")))
	if err := g.call(t, chatPath, `{}`).is(200); err != nil || g.charged(t, 1000) != 18 {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), providertest.Key) {
		t.Error("the log has the key")
	}
}

func TestGatewayServerTools(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, textConfig(100_000, endpointJSON(p, "plain", messagesPath, ""),
		endpointJSON(p, "tools", messagesPath, `,"server_tools":true`), endpointJSON(p, "chat", chatPath, "")))
	for body, status := range map[string]int{
		// There is an endpoint that allows them.
		`{"tools":[{"type":"web_search_20250305"}]}`:                                                     200,
		`{"model":"plain/m","tools":[{"type":"web_search_20250305"}]}`:                                   400,
		`{"model":"plain/m","mcp_servers":[{"url":"https://h"}]}`:                                        400,
		`{"model":"plain/m","tools":[{"type":"bash_1"},{"type":"text_editor_1"},{"type":"computer_1"}]}`: 200,
		`{"model":"plain/m","tools":[{"name":"weather"},{"type":"custom"}]}`:                             200,
	} {
		if err := g.call(t, messagesPath, body).is(status); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	g.call(t, chatPath, `{"tools":[{"type":"bash_1"}]}`).wantWireError(t, chatPath, 400, "invalid_request_error", "")
}

func TestGatewaySettings(t *testing.T) {
	get := func(env map[string]string, args ...string) (*settings, error) {
		return parseSettings(args, func(name string) string { return env[name] }, io.Discard)
	}
	show := func(s *settings) string {
		o := s.server.gateway
		return fmt.Sprint(o.Deny, o.HeaderTimeout, o.IdleTimeout, o.TotalTimeout, o.KeepAlive, " ", s.server.maxGatewayBody, " ",
			s.drainTimeout)
	}
	s, err := get(nil)
	deny := strings.ReplaceAll(gateway.DefaultDeny, ",", " ")
	if err != nil || show(s) != "["+deny+"] 10m0s 5m0s 20m0s 4s 16777216 10s" {
		t.Errorf("the default is %v, %v, %v", s.server.gateway, s.drainTimeout, err)
	}
	s, err = get(map[string]string{"GATEWAY_DENY": "10.0.0.0/8", "PROVIDER_TIMEOUT": "1s", "MAX_GATEWAY_BODY": "5"},
		"-provider-timeout=2s", "-provider-idle-timeout=3s", "-gateway-timeout=4s", "-provider-keep-alive=5s",
		"-drain-timeout=0s")
	if err != nil || show(s) != "[10.0.0.0/8] 2s 3s 4s 5s 5 0s" {
		t.Errorf("got %v, %v, %v", s.server.gateway, s.drainTimeout, err)
	}
	if s, err := get(nil, "-gateway-deny="); err != nil || len(s.server.gateway.Deny) != 0 {
		t.Errorf("got %v, %v", s, err)
	}
	for _, arg := range []string{
		"-gateway-deny=x", "-provider-timeout=0s", "-provider-timeout=10", "-gateway-timeout=25h", "-max-gateway-body=0",
		"-max-gateway-body=268435457", "-drain-timeout=-1s", "-provider-idle-timeout=", "-provider-keep-alive=0s",
	} {
		name, _, _ := strings.Cut(arg, "=")
		if _, err := get(nil, arg); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

// An error of a provider that is compressed could hide the endpoint's key, so it is not relayed.
func TestGatewayCompressedError(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1000, "")
	for _, f := range wireFormats() {
		path := f.path
		g.provider.On("", providertest.Conduct{Status: 400, Header: []string{"Content-Encoding: gzip"}, Body: "\x1f\x8bkey"})
		got := g.call(t, path, f.body())
		if got.status != 400 || strings.Contains(got.body, "key") || !strings.Contains(got.body, "The provider responded with 400") {
			t.Errorf("%s: got %d %q", path, got.status, got.body)
		}
		if n := g.charged(t, 1000); n != 0 {
			t.Errorf("%s: charged %d", path, n)
		}
	}
}

// A response that is too deeply nested to be read was generated all the same: it is relayed, and costs the hold.
func TestGatewayDeepResponse(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1000, "")
	body := `{"content":[{"type":"tool_use","input":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}]}`
	g.provider.On("", providertest.Conduct{Body: body})
	got := g.call(t, messagesPath, `{"max_tokens":50}`)
	if got.status != 200 || strings.TrimSpace(got.body) != body {
		t.Errorf("got %d %.80q", got.status, got.body)
	}
	if n := g.charged(t, 1000); n < 50 {
		t.Errorf("charged %d, held were 50 for the output alone", n)
	}
}

// A provider that fails while a stream is drained for a client that is gone is paid nothing if no content has come.
func TestGatewayFailureWhileDraining(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, textConfig(1000, endpointJSON(p, "chat", chatPath, `,"on_hangup":"drain"`)))
	p.On("", providertest.Conduct{Cut: providertest.BeforeContent, Pause: 500 * time.Millisecond})
	g.open(t, chatPath, `{"stream":true}`, "HTTP/1.1 200").Close()
	if n := g.charged(t, 1000); n != 0 {
		t.Errorf("charged %d", n)
	}
}

// A default model may have a slash in its name: what is before it does not choose another endpoint.
func TestGatewayDefaultModelWithSlash(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	router := strings.Replace(endpointJSON(p, "router", chatPath, ""), `"default_model":"`, `"default_model":"other/`, 1)
	g := newService(t).gatewayTest(t, p, textConfig(1000, router, endpointJSON(p, "other", chatPath, "")))
	if err := g.call(t, chatPath, `{}`).is(200); err != nil {
		t.Fatal(err)
	}
	if got := string(p.Last(t).Body); !strings.Contains(got, `"model":"other/`) {
		t.Errorf("the provider got %s", got)
	}
}

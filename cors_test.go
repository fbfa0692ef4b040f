package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

const (
	page      = "https://app.example.com"
	fromPage  = "Origin: " + page
	asksPOST  = "Access-Control-Request-Method: POST"
	otherPage = "Origin: https://evil.example.com"
)

// corsTenant creates a tenant that allows these origins, which are JSON.
func corsTenant(t *testing.T, origins string) string {
	t.Helper()
	return newTenantIn(t, testRedis, `{"cors":{"allowed_origins":`+origins+`},"user_groups":{
		"anonymous":{"tokens":1000},"limited":{"tokens":1000,"rate_limit":1,"rate_limit_window":60}}}`)
}

// wantCORS checks all headers of CORS that a response has.
func (got reply) wantCORS(t *testing.T, want map[string]string) {
	t.Helper()
	has := make(map[string]string)
	for name, values := range got.header {
		if strings.HasPrefix(name, "Access-Control-") || name == "Vary" {
			has[name] = strings.Join(values, "|")
		}
	}
	if !maps.Equal(has, want) {
		t.Errorf("%d has %q, want %q", got.status, has, want)
	}
}

// readable returns the headers with which a page may read a response.
func readable(origin string) map[string]string {
	return map[string]string{
		"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": exposedHeaders[0],
	}
}

var unreadable = map[string]string{"Vary": "Origin"}

func TestCORS(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := corsTenant(t, `["https://APP.example.com:443","http://localhost:3000"]`)
	key, limited := s.login(t, tenant), s.issue(t, tenant, `"userId":"u","group":"limited"`)
	s.consume(t, tenant, limited, "").want(t, 200, "")
	responses := []struct {
		name, method, path, body string
		status                   int
		header                   string
	}{
		{"a login", "POST", "/auth/anonymous", "", 200, "X-Test: 1"},
		{"a look", "GET", "/auth/key", "", 200, bearer(key)},
		{"a charge", "POST", "/tokens/consume", "", 200, bearer(key)},
		{"a check", "GET", "/auth/verify", "", 200, bearer(key)},
		{"a hold", "POST", "/tokens/holds", `{"tokens":1}`, 201, bearer(key)},
		{"no key", "POST", "/tokens/consume", "", 401, "X-Test: 1"},
		{"an unknown key", "POST", "/tokens/consume", "", 401, bearer(someKey)},
		{"a malformed body", "POST", "/tokens/consume", "{", 400, bearer(key)},
		{"a body with a coding", "POST", "/tokens/consume", "{}", 415, "Content-Encoding: gzip"},
		{"sign-in is disabled", "POST", "/auth/google", `{"idToken":"x"}`, 403, "X-Test: 1"},
		{"too few tokens", "POST", "/tokens/consume", `{"tokens":9999}`, 402, bearer(key)},
		{"over the rate", "POST", "/tokens/consume", "", 429, bearer(limited)},
		{"an unknown hold", "DELETE", "/tokens/holds/hold_" + someKey[5:], "", 404, bearer(key)},
		{"another method", "DELETE", "/tokens/consume", "", 405, bearer(key)},
		{"OPTIONS that is no preflight", "OPTIONS", "/tokens/consume", "", 405, "X-Test: 1"},
	}
	send := func(t *testing.T, i int, headers ...string) reply {
		t.Helper()
		r := responses[i]
		if r.status == 415 {
			headers = append(headers, bearer(key))
		}
		got := s.do(t, r.method, "/"+tenant+r.path, r.body, append(headers, r.header)...)
		if got.status != r.status {
			t.Errorf("got %d %s, want %d", got.status, got.body, r.status)
		}
		return got
	}
	for i, r := range responses {
		t.Run(r.name, func(t *testing.T) {
			send(t, i, fromPage).wantCORS(t, readable(page))
			send(t, i, "Origin: http://localhost:3000").wantCORS(t, readable("http://localhost:3000"))
			for _, other := range []string{
				otherPage, "Origin: null", "Origin: http://app.example.com", "Origin: https://app.example.com:8443",
				"Origin: https://app.example.com.evil.org", "Origin: http://localhost:3001", "Origin: *",
			} {
				send(t, i, other).wantCORS(t, unreadable)
			}
		})
	}
	t.Run("without an origin", func(t *testing.T) {
		s.do(t, "POST", "/"+tenant+"/auth/anonymous", "").wantCORS(t, unreadable)
		s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key)).wantCORS(t, unreadable)
	})
	t.Run("not for admins, nor for paths that do not exist", func(t *testing.T) {
		none := map[string]string{}
		s.admin(t, "GET", "/"+tenant+"/admin/config", "", fromPage).wantCORS(t, none)
		s.admin(t, "GET", "/"+tenant+"/admin/keys/"+key, "", fromPage).wantCORS(t, none)
		s.admin(t, "GET", "/admin/tenants", "", fromPage).wantCORS(t, none)
		s.admin(t, "GET", "/metrics", "", fromPage).wantCORS(t, none)
		s.do(t, "GET", "/healthz", "", fromPage).wantCORS(t, none)
		s.do(t, "GET", "/"+tenant+"/nowhere", "", fromPage).wantCORS(t, none)
		for _, path := range []string{"/" + tenant + "/admin/config", "/" + tenant + "/admin/keys/" + key, "/metrics", "/healthz"} {
			got := s.do(t, "OPTIONS", path, "", fromPage, asksPOST)
			got.want(t, 405, `{"error":"Method not allowed"}`)
			got.wantCORS(t, none)
		}
		got := s.do(t, "OPTIONS", "/"+tenant+"/nowhere", "", fromPage, asksPOST)
		got.want(t, 404, "")
		got.wantCORS(t, none)
	})
}

func TestPreflights(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := corsTenant(t, `["`+page+`"]`)
	const asksHeaders = "Access-Control-Request-Headers: authorization,content-type,idempotency-key"
	for path, methods := range map[string]string{
		"/auth/anonymous": "POST", "/auth/google": "POST", "/auth/apple": "POST", "/auth/key": "GET, HEAD",
		"/auth/usage":     "GET, HEAD",
		"/tokens/consume": "POST", "/tokens/holds": "POST", "/tokens/holds/x": "DELETE", "/tokens/holds/x/settle": "POST",
	} {
		t.Run(path, func(t *testing.T) {
			got := s.do(t, "OPTIONS", "/"+tenant+path, "", fromPage, asksPOST, asksHeaders)
			if got.want(t, 204, ""); got.body != "" {
				t.Errorf("204 with a body: %q", got.body)
			}
			got.wantHeader(t, "Content-Type", "")
			got.wantHeader(t, "Allow", "")
			want := map[string]string{
				"Vary": "Origin", "Access-Control-Allow-Origin": page, "Access-Control-Allow-Methods": methods,
				"Access-Control-Allow-Headers": "authorization,content-type,idempotency-key", "Access-Control-Max-Age": "600",
			}
			got.wantCORS(t, want)
			delete(want, "Access-Control-Allow-Headers")
			s.do(t, "OPTIONS", "/"+tenant+path, "", fromPage, asksPOST).wantCORS(t, want)
			refused := s.do(t, "OPTIONS", "/"+tenant+path, "", otherPage, asksPOST, asksHeaders)
			refused.want(t, 405, `{"error":"Method not allowed"}`)
			refused.wantCORS(t, unreadable)
		})
	}
	t.Run("any origin", func(t *testing.T) {
		tenant := corsTenant(t, `["*"]`)
		s.do(t, "OPTIONS", "/"+tenant+"/auth/key", "", otherPage, asksPOST).wantCORS(t, map[string]string{
			"Vary": "Origin", "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, HEAD",
			"Access-Control-Max-Age": "600",
		})
		s.do(t, "POST", "/"+tenant+"/auth/anonymous", "", "Origin: null").wantCORS(t, readable("*"))
	})
	t.Run("without the member nothing changes", func(t *testing.T) {
		for _, tenant := range []string{newTenant(t, 5), newTenantIn(t, testRedis, `{"cors":{}}`), "nobody", "a%2Fb"} {
			got := s.do(t, "OPTIONS", "/"+tenant+"/auth/key", "", fromPage, asksPOST)
			got.want(t, 405, `{"error":"Method not allowed"}`)
			got.wantHeader(t, "Allow", "GET, HEAD")
			got.wantCORS(t, map[string]string{})
			s.do(t, "POST", "/"+tenant+"/auth/anonymous", "", fromPage).wantCORS(t, map[string]string{})
		}
	})
	t.Run("the tenant default", func(t *testing.T) {
		r := redistest.New(t)
		s := newService(t, "REDIS_URL="+r.URL())
		s.do(t, "OPTIONS", "/auth/key", "", fromPage, asksPOST).want(t, 405, "")
		r.Do(t, "SET", "tenant:default:config", `{"cors":{"allowed_origins":["`+page+`"]}}`)
		waittest.Eventually(t, busy+busy, func() error {
			return s.do(t, "OPTIONS", "/auth/key", "", fromPage, asksPOST).is(204)
		})
	})
}

// With preflight=pass a preflight needs no key, and nothing else gets by.
func TestVerifyPreflight(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 5)
	key := s.login(t, tenant)
	path := "/" + tenant + "/auth/verify"
	const pass, options, origin = "?tokens=1&preflight=pass", "X-Forwarded-Method: OPTIONS", "Origin: https://a.example"
	for _, test := range []struct {
		name, method, query string
		headers             []string
		status              int
	}{
		{"its own method", "OPTIONS", pass, []string{origin, asksPOST}, 200},
		{"the original method", "GET", pass, []string{options, origin, asksPOST}, 200},
		{"as a proxy that sends HEAD", "HEAD", pass + "&deny=403", []string{options, origin, asksPOST}, 200},
		{"not asked for", "OPTIONS", "?tokens=1", []string{origin, asksPOST}, 401},
		{"another original method", "OPTIONS", pass, []string{"X-Forwarded-Method: POST", origin, asksPOST}, 401},
		{"two original methods", "OPTIONS", pass, []string{options, "X-Forwarded-Method: POST", origin, asksPOST}, 401},
		{"another case", "GET", pass, []string{"X-Forwarded-Method: options", origin, asksPOST}, 401},
		{"no origin", "OPTIONS", pass, []string{asksPOST}, 401},
		{"nothing is asked for", "OPTIONS", pass, []string{origin}, 401},
		{"an unknown key", "OPTIONS", pass, []string{origin, asksPOST, bearer(someKey)}, 401},
		{"an unknown key in X-API-Key", "OPTIONS", pass, []string{origin, asksPOST, "X-API-Key: " + someKey}, 401},
		{"another credential", "OPTIONS", pass, []string{origin, asksPOST, "Authorization: Basic eA=="}, 401},
		{"another value", "OPTIONS", "?preflight=true", []string{origin, asksPOST, bearer(key)}, 400},
		{"twice", "OPTIONS", pass + "&preflight=pass", []string{origin, asksPOST, bearer(key)}, 400},
		{"a wrong query", "OPTIONS", pass + "&x=1", []string{origin, asksPOST}, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.do(t, test.method, path+test.query, "", test.headers...)
			if got.status != test.status {
				t.Fatalf("got %d %s, want %d", got.status, got.body, test.status)
			}
			if test.status == 200 && test.method != "HEAD" {
				got.want(t, 200, "{}")
			}
			for _, name := range []string{"X-Tenant-Id", "X-User-Id", "X-User-Group", "X-Tokens-Left"} {
				if got.header.Get(name) != "" {
					t.Errorf("it has %s", name)
				}
			}
		})
	}
	s.do(t, "OPTIONS", "/nobody/auth/verify"+pass, "", origin, asksPOST).want(t, 400, "")
	got := s.do(t, "OPTIONS", path+pass, "", origin, asksPOST, bearer(key))
	got.want(t, 200, "{}")
	got.wantHeader(t, "X-Tokens-Left", "4") // with a key it is like any other request
	if left := tokensLeft(t, key); left != 4 {
		t.Errorf("%d tokens are left", left)
	}
}

// The preflight of a page that calls verify itself is that of any other route. What a proxy asks about is not.
func TestVerifyPagesPreflight(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := corsTenant(t, `["`+page+`"]`)
	path := "/" + tenant + "/auth/verify"
	want := map[string]string{
		"Vary": "Origin", "Access-Control-Allow-Origin": page, "Access-Control-Max-Age": "600",
		"Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE", "Access-Control-Allow-Headers": "x-api-key",
	}
	const asksHeaders = "Access-Control-Request-Headers: x-api-key"
	for _, query := range []string{"", "?tokens=1", "?x=1"} {
		got := s.do(t, "OPTIONS", path+query, "", fromPage, asksPOST, asksHeaders)
		got.want(t, 204, "")
		got.wantCORS(t, want)
	}
	for _, test := range []struct {
		name, method string
		headers      []string
	}{
		{"another origin", "OPTIONS", []string{otherPage, asksPOST}},
		{"nothing is asked for", "OPTIONS", []string{fromPage}},
		{"another method", "GET", []string{fromPage, asksPOST}},
		{"a credential", "OPTIONS", []string{fromPage, asksPOST, bearer(someKey)}},
		{"another credential", "OPTIONS", []string{fromPage, asksPOST, "Authorization: Basic eA=="}},
		{"Traefik", "GET", []string{fromPage, asksPOST, "X-Forwarded-Method: OPTIONS", "X-Forwarded-Uri: /"}},
		{"a proxy that forwards the method, and names it", "OPTIONS", []string{fromPage, asksPOST, "X-Forwarded-Method: OPTIONS"}},
		{"the path", "OPTIONS", []string{fromPage, asksPOST, "X-Forwarded-Uri: /"}},
		{"the path, for nginx", "OPTIONS", []string{fromPage, asksPOST, "X-Original-URI: /"}},
		{"the URL, for nginx", "OPTIONS", []string{fromPage, asksPOST, "X-Original-URL: https://a.example/"}},
		{"the method, for nginx", "OPTIONS", []string{fromPage, asksPOST, "X-Original-Method: OPTIONS"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.do(t, test.method, path, "", test.headers...).want(t, 401, `{"error":"Unauthorized"}`)
		})
	}
	s.do(t, "OPTIONS", path+"?preflight=pass", "", fromPage, asksPOST).want(t, 200, "{}") // as a proxy asks for it
	s.do(t, "OPTIONS", "/"+newTenant(t, 5)+"/auth/verify", "", fromPage, asksPOST).want(t, 401, "")
}

// Every route says whether browsers may call it: those of key holders and the public ones, not those of admins.
func TestBrowserRoutes(t *testing.T) {
	var browser []string
	for _, route := range new(server).routes() {
		if route.access.browser {
			if strings.Contains(route.pattern, "/admin/") {
				t.Errorf("%s is for browsers", route.pattern)
			}
			browser = append(browser, route.pattern)
		}
	}
	if !slices.Contains(browser, "POST /{tenantId}/tokens/consume") || !slices.Contains(browser, "POST /auth/anonymous") {
		t.Errorf("for browsers are %q", browser)
	}
}

// The gateway's routes are for browsers, too. What a provider says of origins is not for its clients'.
func TestGatewayCORS(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.Each(func(providertest.Request) providertest.Conduct {
		return providertest.Conduct{Header: []string{"Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: X-Other", "Vary: Cookie"}}
	})
	config := formatsConfig(p, 10_000, "", "")
	g := newService(t).gatewayTest(t, p, strings.Replace(config, "{", `{"cors":{"allowed_origins":["`+page+`"]},`, 1))
	paths := []string{messagesPath + "/count_tokens", "/v1/models", "/v1/models/m"}
	for _, f := range wireFormats() {
		paths = append(paths, f.path)
	}
	for _, path := range paths {
		got := g.do(t, "OPTIONS", "/"+g.tenant+path, "", fromPage, asksPOST)
		got.want(t, 204, "")
		got.wantHeader(t, "Access-Control-Allow-Origin", page)
	}
	for _, f := range wireFormats() {
		for body, status := range map[string]int{`{ASK}`: 200, `{ASK,STREAM}`: 200, `{"stream":7}`: 400} {
			got := g.call(t, f.path, f.fill(body), fromPage)
			got.wantCORS(t, readable(page))
			if err := got.is(status); err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
			g.call(t, f.path, f.fill(body), otherPage).wantCORS(t, unreadable)
		}
		g.do(t, "POST", "/"+g.tenant+f.path, f.body(), fromPage, bearer(someKey)).wantCORS(t, readable(page))
	}
	g.do(t, "GET", "/"+g.tenant+"/v1/models", "", fromPage, bearer(g.key)).wantCORS(t, readable(page))
	for _, path := range []string{"/v1/completions", "/v1/v1/messages", "/chat/completions", "/v1/messages/batches/x"} {
		path = "/" + g.tenant + path
		g.do(t, "POST", path, "{}", fromPage, bearer(g.key)).wantCORS(t, readable(page))
		g.do(t, "POST", path, "{}", otherPage, bearer(g.key)).wantCORS(t, unreadable)
		g.do(t, "POST", path, "{}", bearer(g.key)).wantCORS(t, nil)
		got := g.do(t, "OPTIONS", path, "", fromPage, asksPOST)
		got.want(t, 204, "")
		got.wantHeader(t, "Access-Control-Allow-Origin", page)
		got.wantHeader(t, "Content-Type", "")
		if err := g.do(t, "OPTIONS", path, "", otherPage, asksPOST).is(404); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	g.do(t, "POST", "/"+g.tenant+"/other", "{}", fromPage).wantCORS(t, nil)
}

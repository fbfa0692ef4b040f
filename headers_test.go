package main

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

const (
	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceParent = "traceparent: 00-" + traceID + "-00f067aa0ba902b7-01"
)

// What a client says of its body's type does not reach the provider: the body was read as JSON.
func TestProviderGetsJSON(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "")
	for _, contentType := range []string{
		"", "application/x-www-form-urlencoded", "application/json; charset=utf-7", "text/plain", "multipart/form-data; boundary=x",
	} {
		for _, path := range []string{chatPath, messagesPath, messagesPath + "/count_tokens"} {
			for _, body := range []string{`{}`, `{"stream":true}`} {
				if err := g.call(t, path, body, "Content-Type: "+contentType, "Accept: evil/accept").is(200); err != nil {
					t.Errorf("%s %s: %v", contentType, path, err)
				}
				sent := g.provider.Last(t).Header
				for _, name := range []string{"Content-Type", "Accept"} {
					if got := sent[name]; !slices.Equal(got, []string{"application/json"}) {
						t.Errorf("%s as %s: the provider got %s: %q", path, contentType, name, got)
					}
				}
			}
		}
	}
}

// The access log has the trace ID of a request if it is one, on each route.
func TestAccessLogTrace(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "", "ACCESS_LOG=true")
	for _, test := range []struct {
		method, path string
		headers      []string
		line         string // its end; "" if it has no trace
	}{
		{"POST", chatPath, []string{traceParent}, " trace=" + traceID + ` endpoint="chat" model="m"`},
		{"POST", messagesPath, []string{traceParent}, " trace=" + traceID + ` endpoint="claude" model="m"`},
		{"GET", "/auth/key", []string{traceParent}, " trace=" + traceID},
		{"GET", "/nowhere", []string{traceParent}, " trace=" + traceID},
		{"GET", "/auth/key", []string{traceParent, traceParent}, ""},
		{"GET", "/auth/key", []string{strings.ToUpper(traceParent)}, ""},
		{"GET", "/auth/key", []string{"traceparent: 00-" + g.key + "-00f067aa0ba902b7-01"}, ""},
		{"GET", "/auth/key", nil, ""},
	} {
		id := fmt.Sprintf("id-%d", time.Now().UnixNano())
		body := map[string]string{"POST": "{}"}[test.method]
		g.do(t, test.method, "/"+g.tenant+test.path, body, append(test.headers, bearer(g.key), "X-Request-Id: "+id)...)
		waittest.Eventually(t, 10*time.Second, func() error {
			if g.log.Count(" id="+id+test.line+"\n") != 1 {
				return fmt.Errorf("%s %s: no line ends in id=…%s:\n%s", test.method, test.path, test.line, g.log)
			}
			return nil
		})
	}
}

// A request of our own has the ID in the header that the SDKs of its format read; a relayed one that of the provider, if
// it has sent one.
func TestRequestID(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "")
	const mine = "X-Request-Id: mine"
	for _, test := range []struct {
		path, body, want string
		headers          []string
	}{
		{messagesPath, `{}`, "req_provider", nil}, {messagesPath, `{"stream":true}`, "req_provider", nil},
		{messagesPath + "/count_tokens", `{}`, "req_provider", nil}, {messagesPath, `{"model":7}`, "mine", nil},
		{messagesPath + "/nowhere", `{}`, "mine", []string{anthropicVersion}}, {messagesPath + "/nowhere", `{}`, "", nil},
		{"/nowhere", `{}`, "", []string{anthropicVersion}}, {chatPath, `{}`, "", nil}, {chatPath, `{"model":7}`, "", nil},
	} {
		got := g.call(t, test.path, test.body, append(test.headers, mine)...)
		got.wantHeader(t, "X-Request-Id", "mine")
		got.wantHeader(t, "Request-Id", test.want)
	}
	for header, want := range map[string]string{anthropicVersion: "mine", "X-Other: 1": ""} {
		for _, path := range []string{"/v1/models", "/v1/models/m", "/v1/models/a/b"} {
			g.do(t, "GET", "/"+g.tenant+path, "", bearer(g.key), header, mine).wantHeader(t, "Request-Id", want)
		}
	}
	g.provider.On("", providertest.Conduct{Cut: providertest.BeforeHeaders})
	g.call(t, messagesPath, `{}`, mine).wantHeader(t, "Request-Id", "mine")
}

// Pages can read every header of a response that is not there for proxies.
func TestExposedHeaders(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.On("busy", providertest.Refuse(429, "Retry-After: 1", "retry-after-ms: 900", "x-should-retry: true", "openai-model: m"))
	config := formatsConfig(p, 1000, "", `,"caching":{`+cachingForAnHour+`}`)
	config = strings.Replace(config, `{"tokens":1000}`, `{"tokens":1000,"rate_limit":100,"rate_limit_window":60}`, 1)
	g := newService(t).gatewayTest(t, p, strings.Replace(config, "{", `{"cors":{"allowed_origins":["*"]},`, 1))
	exposed := make(map[string]bool)
	for name := range strings.SplitSeq(exposedHeaders[0], ", ") {
		exposed[http.CanonicalHeaderKey(name)] = true
	}
	for _, name := range []string{"X-Tokens-Held", "X-Max-Tokens"} {
		if !exposed[name] {
			t.Errorf("%s is not exposed", name)
		}
	}
	// The first are readable without (https://fetch.spec.whatwg.org/#cors-safelisted-response-header-name).
	others := []string{
		"Allow", "Cache-Control", "Content-Length", "Content-Type", "Connection", "Date", "Vary", "Www-Authenticate", "X-Accel-Buffering",
		"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "X-Content-Type-Options", "X-Frame-Options",
	}
	seen := make(map[string]bool)
	check := func(got reply) {
		t.Helper()
		for name := range got.header {
			seen[name] = true
			if !exposed[http.CanonicalHeaderKey(name)] && !slices.Contains(others, name) {
				t.Errorf("%d has %s, which pages cannot read", got.status, name)
			}
		}
	}
	for _, f := range wireFormats() {
		g.decided(t, 0)
		for _, body := range []string{`{ASK}`, `{ASK,STREAM}`, `{"model":"busy",ASK}`, `{"model":7}`, `{"max_tokens":5000}`} {
			check(g.call(t, f.path, f.fill(body), fromPage))
		}
		check(g.do(t, "POST", "/"+g.tenant+f.path, f.body(), fromPage))
		check(g.do(t, "POST", "/"+g.tenant+f.path+"/x", `{}`, fromPage, anthropicVersion))
		waittest.Eventually(t, 10*time.Second, func() error {
			got := g.call(t, f.path, f.body(), fromPage)
			check(got)
			if f.can("cache") && got.header.Get("X-Cache") != "HIT" {
				return fmt.Errorf("%s is not cached", f.path)
			}
			return nil
		})
		g = g.service.gatewayTest(t, p, strings.Replace(config, "{", `{"cors":{"allowed_origins":["*"]},`, 1))
	}
	for _, name := range []string{
		"Age", "X-Cache", "Retry-After", "Retry-After-Ms", "X-Should-Retry", "Request-Id", "X-Provider-Request-Id", "X-Tokens-Charged",
		"X-Tokens-Left", "X-Request-Id", "Ratelimit", "Openai-Processing-Ms", "Openai-Model",
	} {
		if !seen[name] {
			t.Errorf("no response had %s", name)
		}
	}
}

// What repeating cannot change says so, in each format; what it may change does not.
func TestShouldRetry(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1000, "", "PROVIDER_TIMEOUT=1s", "MAX_GATEWAY_BODY=1000")
	down := g.service.gatewayTest(t, g.provider, formatsConfig(&providertest.Provider{URL: "http://127.0.0.1:1"}, 1000, "", ""))
	limited := g.service.gatewayTest(t, g.provider, strings.Replace(formatsConfig(g.provider, 1000, "", ""),
		`{"tokens":1000}`, `{"tokens":1000,"rate_limit":0,"rate_limit_window":9}`, 1))
	disabled := g.issue(t, g.tenant, `"userId":"u","group":"anonymous"`)
	spent := g.issue(t, g.tenant, `"userId":"u","group":"anonymous","tokens":0`)
	g.admin(t, "PATCH", "/"+g.tenant+"/admin/keys/"+disabled, `{"enabled":false}`).want(t, 200, "")
	for model, conduct := range map[string]providertest.Conduct{
		"slow": {Hang: providertest.BeforeHeaders}, "lost": {Cut: providertest.BeforeHeaders}, "account": providertest.Refuse(401),
		"redirect": providertest.Refuse(307, "Location: /"), "html": {Body: "<html>"}, "busy": providertest.Refuse(429),
		"broken": providertest.Refuse(500),
	} {
		g.provider.On(model, conduct)
	}
	tests := []struct {
		status    int
		on        *gatewayTest
		key, body string // "": a key of its own
		headers   []string
		want      string
	}{
		{400, g, "", `{"stream":7}`, nil, "false"},
		{401, g, someKey, `{ASK}`, nil, "false"},
		{402, g, spent, `{ASK}`, nil, "false"},
		{403, g, disabled, `{ASK}`, nil, "false"},
		{413, g, "", strings.Repeat(" ", 1001), nil, "false"},
		{415, g, "", `{ASK}`, []string{"Content-Encoding: gzip"}, "false"},
		{508, g, "", `{ASK}`, []string{"Tollgate-Loop: " + strings.Repeat("x,", maxHops)}, "false"},
		{504, g, "", `{"model":"slow",ASK}`, nil, "false"},
		{502, g, "", `{"model":"lost",ASK}`, nil, "false"},
		{502, g, "", `{"model":"account",ASK}`, nil, "false"},
		{502, g, "", `{"model":"redirect",ASK}`, nil, "false"},
		{502, g, "", `{"model":"html",ASK}`, nil, "false"},
		{502, down, down.key, `{ASK}`, nil, ""},
		{429, limited, limited.key, `{ASK}`, nil, ""},
		{429, g, "", `{"model":"busy",ASK}`, nil, ""},
		{500, g, "", `{"model":"broken",ASK}`, nil, ""},
		{200, g, "", `{ASK}`, nil, ""},
	}
	for _, f := range wireFormats() {
		t.Run(f.path, func(t *testing.T) {
			t.Parallel() // a test waits for a second
			own := g.login(t, g.tenant)
			for _, test := range tests {
				if test.status == 413 && !f.can("too large") {
					continue
				}
				got := test.on.do(t, "POST", "/"+test.on.tenant+f.path, f.fill(test.body), append(test.headers, bearer(cmp.Or(test.key, own)))...)
				if err := got.is(test.status); err != nil {
					t.Errorf("%.100s: %v", test.body, err)
				}
				if h := got.header.Get("X-Should-Retry"); h != test.want {
					t.Errorf("%.100s: X-Should-Retry of %d is %q, want %q", test.body, got.status, h, test.want)
				}
			}
		})
	}
	only := g.service.gatewayTest(t, g.provider, textConfig(1000, `"x":{"url":"http://h/v1/other"}`))
	for _, f := range wireFormats() {
		got := only.call(t, f.path, f.body())
		if got.status != 404 || !strings.Contains(got.body, "No endpoint has this format: the path of its URL would end in "+f.path[3:]) {
			t.Errorf("%s: got %d %s", f.path, got.status, got.body)
		}
		got.wantHeader(t, "X-Should-Retry", "false")
	}
}

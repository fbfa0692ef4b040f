package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

const uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`

// someKey looks like an API key, but no test makes it.
const someKey = "user_11111111-2222-4333-8444-555555555555"

func TestAnonymousLogin(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 7)
	shape := regexp.MustCompile(`^\{"apiKey":"temp_` + uuidPattern + `","tokensLeft":7\}\n$`)
	for _, body := range []string{"", "{", `{"userId":"x"}`, strings.Repeat("x", maxBodyBytes+1)} {
		answer := s.do(t, "POST", "/"+id+"/auth/anonymous", body)
		answer.want(t, 200, "")
		if !shape.MatchString(answer.body) {
			t.Errorf("got %q", answer.body)
		}
	}
	closed := testRedis.newTenant(t, `{"user_groups":{"pro":{"tokens":1}}}`)
	s.do(t, "POST", "/"+closed+"/auth/anonymous", "").want(t, 403, `{"error":"Anonymous login is disabled"}`)
	poor := testRedis.newTenant(t, `{"user_groups":{"anonymous":{}}}`)
	s.do(t, "POST", "/"+poor+"/auth/anonymous", "").want(t, 200, "")
}

// At most the limit of logins a minute of one address, counted over all processes.
func TestLoginLimit(t *testing.T) {
	r := newRedis(t)
	settings := []string{"REDIS_URL=" + r.url(), "LOGIN_LIMIT=3", "TRUSTED_PROXIES=127.0.0.0/8"}
	services := []*service{newService(t, settings...), newService(t, settings...)}
	login := func(i int, from string) reply {
		return services[i%2].do(t, "POST", "/abc/auth/anonymous", "", "X-Forwarded-For: "+from)
	}
	for i := range 3 {
		login(i, "192.0.2.1").want(t, 200, "")
	}
	for i := range 4 {
		answer := login(i, "192.0.2.1")
		answer.want(t, 429, `{"error":"Too Many Requests"}`)
		if after := answer.header.Get("Retry-After"); after != "60" && after != "59" {
			t.Errorf("Retry-After is %q", after)
		}
	}
	if n := r.int(t, "LLEN", "login:192.0.2.1"); n != 3 {
		t.Errorf("%d logins are in the log, want 3", n)
	}
	if ttl := r.int(t, "PTTL", "login:192.0.2.1"); ttl < 1 || ttl > 60_000 {
		t.Errorf("the log of logins lives for %d ms", ttl)
	}
	if n := len(r.do(t, "KEYS", "apiKey:*").([]any)); n != 3 {
		t.Errorf("there are %d API keys, want 3", n)
	}
	login(0, "192.0.2.2").want(t, 200, "")
	// The window slides: once the oldest login is a minute ago, one more is accepted, and only one.
	now := time.Now().UnixMicro()
	r.do(t, "LSET", "login:192.0.2.1", 0, now-60_000_000)
	login(0, "192.0.2.1").want(t, 200, "")
	login(1, "192.0.2.1").want(t, 429, "")
	// IPv6: one address is as good as another of its /64.
	for i := range 3 {
		login(i, fmt.Sprintf("2001:db8:0:1::%d", i)).want(t, 200, "")
	}
	login(0, "2001:db8:0:1:ffff::").want(t, 429, "")
	login(0, "2001:db8:0:2::").want(t, 200, "")

	unlimited := newService(t, "REDIS_URL="+r.url(), "LOGIN_LIMIT=0")
	for range 5 {
		unlimited.login(t, "abc")
	}
}

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	tests := []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:1234", nil, "192.0.2.1"},
		{"[2001:db8:1:2:3::4]:1234", nil, "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1234", nil, "fe80::/64"},
		{"[::ffff:192.0.2.1]:1234", nil, "192.0.2.1"},
		{"192.0.2.1:1234", []string{"203.0.113.9"}, "192.0.2.1"}, // nobody vouches for it
		{"10.0.0.1:1234", nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9"}, // the client wrote the first itself
		{"10.0.0.1:1234", []string{"6.6.6.6,203.0.113.9 , 10.2.2.2"}, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"6.6.6.6", "203.0.113.9", "10.2.2.2"}, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"203.0.113.9:555"}, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"[2001:db8::1]:555"}, "2001:db8::/64"},
		{"[::1]:1234", []string{"2001:db8::1"}, "2001:db8::/64"},
		{"10.0.0.1:1234", []string{"10.3.3.3"}, "10.3.3.3"},
		{"10.0.0.1:1234", []string{"203.0.113.9, unknown, 10.2.2.2"}, "10.2.2.2"},
		{"10.0.0.1:1234", []string{""}, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9,"}, "10.0.0.1"},
	}
	for _, test := range tests {
		r := &http.Request{RemoteAddr: test.peer, Header: http.Header{"X-Forwarded-For": test.forwarded}}
		if got := clientAddress(r, trusted); got != test.want {
			t.Errorf("%s %q: got %s, want %s", test.peer, test.forwarded, got, test.want)
		}
	}
}

// Every tenant route stands with the prefix, and without it for the tenant default; tenants are kept apart.
func TestTenants(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	routes := [][2]string{
		{"POST", "/auth/anonymous"}, {"GET", "/auth/key"}, {"POST", "/tokens/consume"},
		{"GET", "/admin/config"}, {"PUT", "/admin/config"}, {"POST", "/admin/keys"},
	}
	body := map[string]string{
		"PUT/admin/config": `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`,
		"POST/admin/keys":  `{"userId":"u","group":"anonymous"}`,
	}
	send := func(tenant, method, path, token string) reply {
		t.Helper()
		if strings.HasPrefix(path, "/admin") {
			token = testAdminToken
		}
		return s.do(t, method, tenant+path, body[method+path], bearer(token))
	}
	// The tenant default does not exist until somebody makes it.
	for _, route := range routes {
		send("", route[0], route[1], someKey).want(t, 400, `{"error":"Invalid tenant ID"}`)
		send("/nobody", route[0], route[1], someKey).want(t, 400, `{"error":"Invalid tenant ID"}`)
	}
	r.do(t, "SET", "tenant:default:config", `{"user_groups":{"anonymous":{"tokens":5}}}`)
	r.do(t, "SET", "tenant:admin:config", `{"user_groups":{"anonymous":{"tokens":5}}}`)
	for _, tenant := range []string{"", "/default", "/admin", "/abc"} {
		answer := s.do(t, "POST", tenant+"/auth/anonymous", "")
		answer.want(t, 200, "")
		key := answer.field(t, "apiKey").(string)
		for _, route := range routes {
			if answer := send(tenant, route[0], route[1], key); answer.status != 200 && answer.status != 201 {
				t.Errorf("%s %s%s: %d %s", route[0], tenant, route[1], answer.status, answer.body)
			}
		}
		id := strings.TrimPrefix(tenant, "/")
		if id == "" {
			id = "default"
		}
		if !strings.Contains(s.log.String(), "[INFO] Loaded tenant config for "+id+"\n") {
			t.Errorf("loading the config of %s is not logged", id)
		}
		// Another tenant's key is as good as none.
		other := "/abc"
		if id == "abc" {
			other = "/default"
		}
		for _, route := range routes[1:3] {
			answer := send(other, route[0], route[1], key)
			answer.want(t, 401, `{"error":"Unauthorized"}`)
		}
		if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 4 && left != 99 {
			t.Errorf("another tenant has spent of the key: %d left", left)
		}
	}
	if strings.Contains(s.log.String(), "nobody") {
		t.Error("the log tells of a tenant that does not exist")
	}
}

// What is no tenant ID never becomes part of a Redis key.
func TestTenantIDs(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	long := strings.Repeat("a", 64)
	for _, id := range []string{"a", "A-_9", "0", long, "auth", "tokens", "healthz"} {
		r.do(t, "SET", "tenant:"+id+":config", `{"user_groups":{"anonymous":{}}}`)
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 200, "")
	}
	for _, id := range []string{
		long + "a", "_a", "-a", "a.b", "a:b", "a%3Ab", "a%2Fb", "%00", "a%00", "a%0d%0aX:%20y", "a%0a", "%c3%a4", "%ff", "a%20", "*", "%2e%2e", "a%2f..%2fb",
		"x:config%0a",
	} {
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		if keys := r.do(t, "KEYS", "*"); len(keys.([]any)) != 8+1+1+7 { // configs, the history of abc, tenants, API keys
			t.Fatalf("after %s there are %q", id, keys)
		}
	}
	for line := range strings.Lines(s.log.String()) {
		if !strings.HasPrefix(line, "[INFO] ") {
			t.Errorf("log line %q", line)
		}
	}
}

// What no route serves is answered in JSON too, and never with a redirect.
func TestNoRoute(t *testing.T) {
	s := newService(t)
	for _, path := range []string{
		"/", "/x", "/abc", "/abc/", "/abc/auth", "/abc/auth/anonymous/", "/abc/auth/anonymous/x", "//abc/auth/anonymous", "/abc//auth/anonymous",
		"/abc/../abc/auth/anonymous", "/./auth/anonymous", "/healthz/", "/abc/healthz", "/HEALTHZ", "/a/b/c/d/e",
	} {
		for _, method := range []string{"GET", "POST"} {
			answer := s.do(t, method, path, "")
			answer.want(t, 404, `{"error":"Not found"}`)
			if answer.header.Get("Location") != "" {
				t.Errorf("%s: Location is %q", path, answer.header.Get("Location"))
			}
		}
	}
	tests := []struct{ method, path, allow string }{
		{"GET", "/abc/auth/anonymous", "POST"},
		{"DELETE", "/auth/anonymous", "POST"},
		{"POST", "/abc/auth/key", "GET, HEAD"},
		{"POST", "/abc/admin/config", "GET, HEAD, PUT"},
		{"POST", "/healthz", "GET, HEAD"},
		{"BREW", "/readyz", "GET, HEAD"},
	}
	for _, test := range tests {
		answer := s.do(t, test.method, test.path, "")
		answer.want(t, 405, `{"error":"Method not allowed"}`)
		if allow := answer.header.Get("Allow"); allow != test.allow {
			t.Errorf("%s %s: Allow is %q, want %q", test.method, test.path, allow, test.allow)
		}
	}
}

func TestHealth(t *testing.T) {
	s := newService(t)
	s.do(t, "GET", "/healthz", "").want(t, 200, `{"status":"ok"}`)
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
	if strings.Contains(s.log.String(), "Loaded") {
		t.Error("they are no tenant routes, but a config was loaded")
	}
}

// The answers to credentials that are missing, malformed, repeated or wrong.
func TestUnauthorized(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	const none, invalid = `Bearer realm="tollgate"`, `Bearer realm="tollgate", error="invalid_token"`
	tests := []struct {
		headers []string
		want    string
	}{
		{nil, none},
		{[]string{"Authorization: "}, none},
		{[]string{"Authorization: Bearer"}, none},
		{[]string{"Authorization: Basic YTpi"}, none},
		{[]string{"Authorization: " + key}, none},
		{[]string{"Authorization: Bearer:" + key}, none},
		{[]string{"X-Api-Key: " + key}, none},
		{[]string{bearer(someKey)}, invalid},
		{[]string{bearer("temp_11111111-2222-4333-8444-555555555555")}, invalid},
		{[]string{bearer("x")}, invalid},
		{[]string{bearer(key + "x")}, invalid},
		{[]string{bearer(key + " x")}, invalid},
		{[]string{bearer("a:b")}, invalid},
		{[]string{bearer("é")}, invalid},
		{[]string{bearer(strings.ToUpper(key))}, invalid},
		{[]string{bearer(key[5:])}, invalid},
		{[]string{bearer("user_" + key[5:])}, invalid},
		{[]string{bearer("temp_{" + key[5:] + "}")}, invalid},
		{[]string{bearer(key), bearer(key)}, invalid},
		{[]string{bearer(key), bearer(testAdminToken)}, invalid},
		{[]string{bearer(testAdminToken), bearer(testAdminToken)}, invalid},
		{[]string{bearer(testAdminToken[:10])}, invalid},
		{[]string{bearer(testAdminToken + "x")}, invalid},
	}
	routes := [][2]string{
		{"GET", "/auth/key"}, {"POST", "/tokens/consume"}, {"GET", "/admin/config"}, {"PUT", "/admin/config"}, {"POST", "/admin/keys"},
	}
	for _, test := range tests {
		for _, route := range routes {
			// A stranger does not learn from an admin route whether a tenant exists.
			for _, tenant := range []string{id, "nobody"} {
				if tenant == "nobody" && !strings.HasPrefix(route[1], "/admin") {
					continue
				}
				answer := s.do(t, route[0], "/"+tenant+route[1], "", test.headers...)
				answer.want(t, 401, `{"error":"Unauthorized"}`)
				if got := answer.header.Get("WWW-Authenticate"); got != test.want {
					t.Errorf("%s %s %q: WWW-Authenticate is %s, want %s", route[0], route[1], test.headers, got, test.want)
				}
			}
		}
	}
	for _, scheme := range []string{"bearer", "BEARER", "bEaReR ", "Bearer  "} {
		s.do(t, "GET", "/"+id+"/auth/key", "", "Authorization: "+scheme+" "+key).want(t, 200, "")
	}
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(testAdminToken)).want(t, 401, "")
	s.do(t, "GET", "/"+id+"/admin/config", "", bearer(key)).want(t, 401, "")
	if left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 10 {
		t.Errorf("%d tokens are left of 10", left)
	}
}

func TestConsume(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	consume := func(body string) reply { return s.do(t, "POST", "/"+id+"/tokens/consume", body, bearer(key)) }
	consume("").want(t, 200, `{"tokensLeft":9}`)
	consume(`{"tokens":3}`).want(t, 200, `{"tokensLeft":6}`)
	consume(" {\n\t\"tokens\" : 1 }\r\n").want(t, 200, `{"tokensLeft":5}`)
	consume(`{"\u0074okens":1}`).want(t, 200, `{"tokensLeft":4}`)
	consume(`{"tokens":5}`).want(t, 402, `{"error":"Payment Required","tokensLeft":4}`)
	consume(`{"tokens":9007199254740991}`).want(t, 402, `{"error":"Payment Required","tokensLeft":4}`)
	consume(`{"tokens":4}`).want(t, 200, `{"tokensLeft":0}`)
	consume("").want(t, 402, `{"error":"Payment Required","tokensLeft":0}`)

	// The largest balance is exact to the last token.
	answer := s.do(t, "POST", "/"+id+"/admin/keys", `{"userId":"u","group":"pro","tokens":9007199254740991}`, bearer(testAdminToken))
	key = answer.field(t, "apiKey").(string)
	consume("").want(t, 200, `{"tokensLeft":9007199254740990}`)
	consume(`{"tokens":9007199254740991}`).want(t, 402, `{"error":"Payment Required","tokensLeft":9007199254740990}`)
	consume(`{"tokens":9007199254740989}`).want(t, 200, `{"tokensLeft":1}`)
}

// A body that is not exactly what the contract asks for gets a 400 that says what is wrong, and takes nothing.
func TestBadBodies(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	before := testRedis.string(t, "GET", "tenant:"+id+":config")
	keys := len(testRedis.do(t, "KEYS", "apiKey:*").([]any))
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	const whole = "tokens must be a whole number ≥ 1"
	tests := []struct{ route, body, want string }{
		{"consume", `{"tokens":0}`, whole},
		{"consume", `{"tokens":-1}`, whole},
		{"consume", `{"tokens":1.5}`, whole},
		{"consume", `{"tokens":1.0}`, whole},
		{"consume", `{"tokens":1e2}`, whole},
		{"consume", `{"tokens":9007199254740992}`, "tokens must be a whole number from 1 to 9007199254740991"},
		{"consume", `{"tokens":99999999999999999999}`, "tokens must be a whole number from 1 to 9007199254740991"},
		{"consume", `{"tokens":-99999999999999999999}`, whole},
		{"consume", `{"tokens":"1"}`, whole},
		{"consume", `{"tokens":null}`, whole},
		{"consume", `{"tokens":true}`, whole},
		{"consume", `{"tokens":[1]}`, whole},
		{"consume", `{"tokens":{}}`, whole},
		{"consume", `{}`, "tokens is missing"},
		{"consume", `{"TOKENS":1}`, "TOKENS is not a known member"},
		{"consume", `{"to\u212Aens":1}`, "[\"to\u212aens\"] is not a known member"},
		{"consume", `{"tokens":1,"tokens":2}`, "tokens is there twice"},
		{"consume", `{"tokens":1,"\u0074okens":2}`, "tokens is there twice"},
		{"consume", `{"tokens":1,"x":2}`, "x is not a known member"},
		{"consume", `{"tokens":1,"":2}`, `[""] is not a known member`},
		{"consume", `[]`, "Body must be a JSON object"},
		{"consume", `1`, "Body must be a JSON object"},
		{"consume", `null`, "Body must be a JSON object"},
		{"consume", `{"tokens":1}{"tokens":1}`, "Invalid JSON: invalid character '{' after top-level value at byte 13"},
		{"consume", `{"tokens":1}x`, "Invalid JSON: invalid character 'x' after top-level value at byte 13"},
		{"consume", `{"tokens":1`, "Invalid JSON: unexpected end of JSON input at byte 11"},
		{"consume", `{"tokens":01}`, "Invalid JSON: invalid character '1' after object key:value pair at byte 12"},
		{"consume", `{'tokens':1}`, "Invalid JSON: invalid character '\\'' looking for beginning of object key string at byte 2"},
		{"consume", `{"tokens":1,}`, "Invalid JSON: invalid character '}' looking for beginning of object key string at byte 13"},
		{"consume", ` `, "Invalid JSON: unexpected end of JSON input at byte 1"},
		{"consume", `tokens=1`, "Invalid JSON: invalid character 'o' in literal true (expecting 'r') at byte 2"},
		{"consume", "{\"tokens\":1,\"\xff\":2}", "Invalid JSON: no valid UTF-8 at byte 14"},
		{"consume", "\ufeff{\"tokens\":1}", "Invalid JSON: invalid character 'ï' looking for beginning of value at byte 1"},
		{"consume", deep, "Invalid JSON: invalid character '[' exceeded max depth at byte 10001"},

		{"keys", `{"group":"pro"}`, "userId is missing"},
		{"keys", `{"userId":"u"}`, "group is missing"},
		{"keys", `{"userId":null,"group":"pro"}`, "userId must be a string"},
		{"keys", `{"userId":1,"group":"pro"}`, "userId must be a string"},
		{"keys", `{"userId":"","group":"pro"}`, "userId must be 1 to 256 bytes of printable text without white space at its ends"},
		{"keys", `{"userId":" u","group":"pro"}`, "userId must be 1 to 256 bytes of printable text without white space at its ends"},
		{"keys", `{"userId":"a\nb","group":"pro"}`, "userId must be 1 to 256 bytes of printable text without white space at its ends"},
		{"keys", `{"userId":"` + strings.Repeat("u", 257) + `","group":"pro"}`, "userId must be 1 to 256 bytes of printable text without white space at its ends"},
		{"keys", `{"userId":"\ud800","group":"pro"}`, "userId must not have half of a surrogate pair"},
		{"keys", `{"userId":"u","group":"none"}`, "group is not one of the tenant's user_groups"},
		{"keys", `{"userId":"u","group":"PRO"}`, "group is not one of the tenant's user_groups"},
		{"keys", `{"userId":"u","group":["pro"]}`, "group must be a string"},
		{"keys", `{"userId":"u","group":"pro","tokens":-1}`, "tokens must be a whole number ≥ 0"},
		{"keys", `{"userId":"u","group":"pro","tokens":null}`, "tokens must be a whole number ≥ 0"},
		{"keys", `{"userId":"u","group":"pro","tokens":9007199254740992}`, "tokens must be a whole number from 0 to 9007199254740991"},
		{"keys", `{"userId":"u","group":"pro","expiresIn":0}`, "expiresIn must be a whole number from 1 to 315360000"},
		{"keys", `{"userId":"u","group":"pro","expiresIn":315360001}`, "expiresIn must be a whole number from 1 to 315360000"},
		{"keys", `{"userId":"u","group":"pro","tenantId":"abc"}`, "tenantId is not a known member"},
		{"keys", ``, "Invalid JSON: unexpected end of JSON input at byte 0"},

		{"config", `{}`, "config is missing"},
		{"config", `{"config":{},"config":{}}`, "config is there twice"},
		{"config", `{"config":{},"force":true}`, "force is not a known member"},
		{"config", `{"config":null}`, "Invalid config: it must be an object"},
		{"config", `{"config":[]}`, "Invalid config: it must be an object"},
		{"config", `{"user_groups":{}}`, "user_groups is not a known member"},
		{"config", ``, "Invalid JSON: unexpected end of JSON input at byte 0"},
	}
	for _, test := range tests {
		var answer reply
		switch test.route {
		case "consume":
			answer = s.do(t, "POST", "/"+id+"/tokens/consume", test.body, bearer(key))
		case "keys":
			answer = s.do(t, "POST", "/"+id+"/admin/keys", test.body, bearer(testAdminToken))
		case "config":
			answer = s.do(t, "PUT", "/"+id+"/admin/config", test.body, bearer(testAdminToken))
		}
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != test.want {
			t.Errorf("%s %.60s: got %q, want %q", test.route, test.body, got, test.want)
		}
	}
	if left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 10 {
		t.Errorf("%d tokens are left of 10", left)
	}
	if after := testRedis.string(t, "GET", "tenant:"+id+":config"); after != before {
		t.Errorf("the config became %s", after)
	}
	if n := len(testRedis.do(t, "KEYS", "apiKey:*").([]any)); n != keys {
		t.Errorf("%d keys were made", n-keys)
	}
}

func TestBodySize(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	pad := func(body string, size int) string { return body + strings.Repeat(" ", size-len(body)) }
	for _, size := range []int{maxBodyBytes, maxBodyBytes + 1} {
		status, want := 200, ""
		if size > maxBodyBytes {
			status, want = 413, `{"error":"Body too large"}`
		}
		s.do(t, "POST", "/"+id+"/tokens/consume", pad(`{"tokens":1}`, size), bearer(key)).want(t, status, want)
		s.do(t, "PUT", "/"+id+"/admin/config", pad(`{"config":{}}`, size), bearer(testAdminToken)).want(t, status, want)
	}
	testRedis.do(t, "SET", "tenant:"+id+":config", `{}`)
	for range maxLongBodies + 1 { // each gives its place back
		s.consume(t, id, key, pad("x", smallBodyBytes+1)).want(t, 400, "")
		s.admin(t, "PUT", "/"+id+"/admin/config", pad("x", smallBodyBytes+1)).want(t, 400, "")
	}

	// Without a Content-Length, and cut off in the middle: nothing is taken.
	head := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(key) + "\r\nConnection: close\r\n"
	for request, want := range map[string]string{
		head + "Transfer-Encoding: chunked\r\n\r\nc\r\n{\"tokens\":2}\r\n0\r\n\r\n": "HTTP/1.1 200 ",
		head + "Transfer-Encoding: chunked\r\n\r\nc\r\n{\"tokens\":4}\r\nxyz\r\n":   "HTTP/1.1 400 ",
		head + "Transfer-Encoding: chunked\r\n\r\n":                                 "HTTP/1.1 400 ",
	} {
		c := s.dial(t)
		fmt.Fprint(c, request)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		if got := readAll(c); !strings.HasPrefix(got, want) {
			t.Errorf("%q: got %q, want %q", request, got, want)
		}
	}
	if left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 10-1-2 {
		t.Errorf("%d tokens are left, want 7", left)
	}
}

// Clients that hold long bodies back, which anybody may, do not fill the memory, nor keep others from their charges.
func TestLongCharges(t *testing.T) {
	const clients = 200
	p := startProcess(t, []string{"REDIS_URL=" + testRedis.url(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0", "ADMIN_TOKEN=" + testAdminToken})
	s := &service{url: "http://" + p.address(t)}
	id := newTenant(t, 10)
	key := s.login(t, id)
	most := strings.Repeat(" ", maxBodyBytes-1)
	for i := range clients {
		c := s.dial(t)
		head := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(someKey) + "\r\n"
		if i%2 == 0 {
			go fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, maxBodyBytes, most)
		} else {
			go fmt.Fprintf(c, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", head, len(most), most)
		}
	}
	long := func() reply { return s.consume(t, id, key, strings.Repeat(" ", smallBodyBytes)+"x") }
	for deadline := in(5 * time.Second); long().status != 503; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("however many long charges there are, one more is read")
		}
	}
	if heap := s.sample(t, "go_memstats_heap_alloc_bytes"); heap > 100<<20 {
		t.Errorf("%d clients take %g MiB", clients, heap/(1<<20))
	}
	for i := range 5 {
		s.consume(t, id, key, `{"tokens":1}`).want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, 9-i))
	}
	long().want(t, 503, `{"error":"Service unavailable"}`)
	s.admin(t, "PUT", "/"+id+"/admin/config", strings.Repeat(" ", smallBodyBytes)+`{"config":{}}`).want(t, 200, "")
	if left := tokensLeft(t, key); left != 5 {
		t.Errorf("%d tokens are left, want 5", left)
	}
}

// What a hostile client may send is its own fault: 4xx, never a redirect or a 5xx, nothing is taken, and no key that the
// layout does not have appears in Redis.
func TestHostileRequests(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	keys := func() string {
		names, err := redis.Strings(r.do(t, "KEYS", "*"), nil)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return strings.Join(names, "\n")
	}
	before := keys()
	hostile := func(request string, statuses ...int) {
		t.Helper()
		c := s.dial(t)
		fmt.Fprint(c, request)
		_ = c.(*net.TCPConn).CloseWrite()
		got := readAll(c)
		var status int
		fmt.Sscanf(got, "HTTP/1.1 %d ", &status)
		if !slices.Contains(statuses, status) || strings.Contains(got, "\r\nLocation: ") {
			t.Errorf("%.300q\ngot %q, want %d", request, got, statuses)
		}
		if after := keys(); after != before {
			t.Fatalf("%.300q\nmade of the keys\n%s\nthese:\n%s", request, before, after)
		}
	}
	headers := " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	for _, id := range []string{
		"%2F", "%2f..", "..", ".", "%2e%2e", "%2E", "", "/", "%00", "abc%00", "%0d%0a", "abc%0d%0aX-Y:%20z", ":", "abc:config", "abc%3Aconfig", strings.Repeat("a", 65),
		"é", "%c3%a9", "\xff", "%ff", "abc%2Fx", "abc%2f..%2fabc", "../abc", "abc/..", "abc/.", "abc/../abc", "./abc", "/abc", "abc/", "\\abc", "..\\abc", "%5cabc", "abc;x=1", "abc%20",
		"%20abc", "abc+", "abc.json", "*", "abc*", "a?c", "a[b]c", "{abc}", "%7babc%7d", "abc%25", "abc%2500", "abc#x", "-abc", "_abc", "ABC", "~abc", "abc~", "tenant:abc:config", "abc%e2%80%8b", "%EF%BD%81bc",
		"abc%2", "abc%zz", "%", "%u0061bc", "abc\x00", "abc\t", "abc x",
	} {
		for _, route := range []string{"POST /%s/auth/anonymous", "POST /%s/tokens/consume", "GET /%s/auth/verify"} {
			hostile(strings.Replace(route, "%s", id, 1)+headers+bearer(key)+"\r\n\r\n", 400, 404, 405)
		}
		hostile("PUT /"+id+"/admin/config"+headers+bearer(testAdminToken)+"\r\nContent-Length: 13\r\n\r\n{\"config\":{}}", 400, 404, 405)
		hostile("GET /abc/admin/keys/"+id+headers+bearer(testAdminToken)+"\r\n\r\n", 400, 404, 405)
		hostile("POST /abc/admin/config/history/"+id+"/restore"+headers+bearer(testAdminToken)+"\r\n\r\n", 400, 404, 405)
		hostile("DELETE /admin/tenants/"+id+headers+bearer(testAdminToken)+"\r\n\r\n", 400, 404, 405)
	}
	consume := "POST /abc/tokens/consume HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	for _, credential := range []string{
		bearer(key) + "\r\n" + bearer(key), bearer(key) + "\r\nauthorization: Bearer x", "Authorization: Bearer " + key + ", Bearer " + key, "Authorization: Bearer\t" + key,
		"Authorization: Bearer " + key + "\x00", "Authorization : Bearer " + key, "Authorization: Bearer\r\n " + key[:10] + "\r\n " + key[10:], "Authorization: Bearer " + key + "=", "Authorization: Bearer \"" + key + "\"",
		"Authorization:", "Authorization", ": Bearer " + key, "Authorization: bearer=" + key, "Authorization: Bearer " + key + ";x", "Proxy-Authorization: Bearer " + key, "Authorization\r: Bearer " + key,
	} {
		hostile(consume+credential+"\r\n\r\n", 400, 401)
	}
	consume += bearer(key) + "\r\n"
	for _, length := range []string{
		"-1", "+12", "0x0c", "1e1", "12.0", "12, 12", "12, 13", "12 13", "99999999999999999999", "9223372036854775808", "abc", "12a", "１２", "12;", "\"12\"", "12\r\nContent-Length: 13", "1048577", "9223372036854775807",
		"13", "1000", "11", "1", // of a body that ends before, or with which it is no JSON
	} {
		hostile(consume+"Content-Length: "+length+"\r\n\r\n{\"tokens\":1}", 400, 413)
	}
	for _, body := range []string{
		"xyz\r\n", "-1\r\n", "0xc\r\n{\"tokens\":1}\r\n0\r\n\r\n", " c\r\n{\"tokens\":1}\r\n0\r\n\r\n", "fffffffffffffffff\r\n{", "7fffffffffffffff\r\n{\"tokens\":1}", "c\r\n{\"tokens\":1}", "c\r\n{\"tokens\":1}\r\n",
		"c\r\n{\"tokens\":1}0\r\n\r\n", "b\r\n{\"tokens\":1}\r\n0\r\n\r\n", "d\r\n{\"tokens\":1}\r\n0\r\n\r\n", "c\r\n{\"tokens\":1}\r\n", "c\r\n{\"tokens\":1}\r\n0\r\n", "c\r\n{\"tokens\":1}\r\n0\r\nX",
		"", "\r\n", "c;" + strings.Repeat("x", 10_000) + "\r\n{\"tokens\":1}\r\n0\r\n\r\n", "c\r\n{\"tokens\":x}\r\n0\r\n\r\n", "c\n{\"tokens\":1}\n", "g\r\n{\"tokens\":1}\r\n0\r\n\r\n",
	} {
		hostile(consume+"Transfer-Encoding: chunked\r\n\r\n"+body, 400)
	}
	for _, line := range []string{
		"GET", "GET /healthz", "GET  /healthz HTTP/1.1", "G\x00T /healthz HTTP/1.1", "GET healthz HTTP/1.1", "GET /healthz HTTP/x", "/healthz", "\x16\x03\x01\x02", "GET /health\x7fz HTTP/1.1", "GET * HTTP/1.1", "GET http:// HTTP/1.1", "GET //// HTTP/1.1",
	} {
		hostile(line+"\r\nHost: x\r\nConnection: close\r\n\r\n", 400, 404)
	}
	for _, header := range []string{"", "Host: x\r\nHost: y\r\n", "Host: a b\r\n", "Host: x\r\nX Y: z\r\n", "Host: x\r\nX: \x01\r\n", "Host: x\r\n: y\r\n", "Host: x\r\nX: " + strings.Repeat("x", 13<<10) + "\r\n"} {
		hostile("GET /healthz HTTP/1.1\r\n"+header+"\r\n", 400, 431)
	}
	hostile("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404)
	s.do(t, "GET", "/healthz", "", "X: "+strings.Repeat("x", 8<<10)).want(t, 200, "")
	if left := r.int(t, "HGET", "apiKey:"+key, "tokensLeft"); left != 100 {
		t.Errorf("%d tokens are left, want 100", left)
	}
	for line := range strings.Lines(s.log.String()) {
		if !strings.HasPrefix(line, "[INFO] ") {
			t.Errorf("log line %q", line)
		}
	}
}

func TestShowKey(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	show := func(key string) map[string]any {
		t.Helper()
		answer := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		answer.want(t, 200, "")
		var object map[string]any
		if err := json.Unmarshal([]byte(answer.body), &object); err != nil {
			t.Fatal(err)
		}
		return object
	}
	lives := func(object map[string]any) time.Duration {
		t.Helper()
		const layout = "2006-01-02T15:04:05.000Z"
		created, err := time.Parse(layout, object["createdAt"].(string))
		if err != nil {
			t.Error(err)
		}
		expires, err := time.Parse(layout, object["expiresAt"].(string))
		if err != nil {
			t.Error(err)
		}
		return expires.Sub(created).Round(time.Second)
	}
	issue := func(body string) string {
		t.Helper()
		answer := s.do(t, "POST", "/"+id+"/admin/keys", body, bearer(testAdminToken))
		answer.want(t, 201, "")
		return answer.field(t, "apiKey").(string)
	}

	key := s.login(t, id)
	got := show(key)
	if len(got) != 5 || got["userId"] != nil || got["group"] != "anonymous" || got["tokensLeft"] != 10.0 || lives(got) != 24*time.Hour {
		t.Errorf("an anonymous key is %v", got)
	}
	if show(key)["tokensLeft"] != 10.0 {
		t.Error("looking costs tokens")
	}
	got = show(issue(`{"userId":"ü 1","group":"pro"}`))
	if len(got) != 5 || got["userId"] != "ü 1" || got["group"] != "pro" || got["tokensLeft"] != 5000.0 || got["expiresAt"] != nil {
		t.Errorf("a user's key is %v", got)
	}
	if got = show(issue(`{"userId":"u","group":"pro","expiresIn":90}`)); lives(got) != 90*time.Second {
		t.Errorf("a user's key that expires in 90 s is %v", got)
	}
	if got = show(issue(`{"userId":"u","group":"anonymous","tokens":0}`)); got["tokensLeft"] != 0.0 {
		t.Errorf("a user's key with no tokens is %v", got)
	}
	key = issue(`{"userId":"u","group":"pro","expiresIn":1}`)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		answer := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		if answer.status == 401 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a key that expires in 1 s is alive after 5 s")
		}
	}
}

func TestIssueKey(t *testing.T) {
	s := newService(t)
	id := testRedis.newTenant(t, `{"user_groups":{"pro":{"tokens":5},"a\u0000 \"ü":{"tokens":6},"":{}}}`)
	shape := regexp.MustCompile(`^\{"apiKey":"user_` + uuidPattern + `","tokensLeft":(\d+)\}\n$`)
	for body, want := range map[string]string{
		`{"userId":"u","group":"pro"}`:                                "5",
		`{"group":"pro","tokens":9007199254740991,"userId":"u"}`:      "9007199254740991",
		`{"userId":"u","group":"pro","tokens":0,"expiresIn":1}`:       "0",
		`{"userId":"u","group":"pro","expiresIn":315360000}`:          "5",
		`{"userId":"u","group":"a\u0000 \"\u00fc"}`:                   "6",
		`{"userId":"u","group":""}`:                                   "0",
		`{"userId":"` + strings.Repeat("u", 256) + `","group":"pro"}`: "5",
	} {
		answer := s.do(t, "POST", "/"+id+"/admin/keys", body, bearer(testAdminToken))
		answer.want(t, 201, "")
		if got := shape.FindStringSubmatch(answer.body); got == nil || got[1] != want {
			t.Errorf("%s: got %s, want %s tokens", body, answer.body, want)
		}
	}
}

func TestConfig(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	get := func() reply { return s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)) }
	put := func(config string) reply {
		return s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken))
	}
	get().want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5000}}}}`)
	put(string(seedConfig)).want(t, 200, `{"success":true}`)
	s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 200, "")
	// What is put replaces all of it, and comes back as it was but for white space: order, numbers, unknown members.
	put(` { "z" : 1.0e+2 , "a" : [ null , { "x" : "<\u00e9 \\ é\u2028\/>" , "x" : 2 } ] , "Auth" : 7 , "user_groups" : { "anonymous" : { "Tokens" : "x" , "tokens" : 3 } } } `).want(t, 200, `{"success":true}`)
	get().want(t, 200, `{"config":{"z":1.0e+2,"a":[null,{"x":"<\u00e9 \\ é\u2028\/>","x":2}],"Auth":7,"user_groups":{"anonymous":{"Tokens":"x","tokens":3}}}}`)
	answer := s.do(t, "POST", "/"+id+"/auth/anonymous", "")
	if answer.field(t, "tokensLeft") != 3.0 {
		t.Errorf("got %s", answer.body)
	}
	put(`{}`).want(t, 200, "")
	s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 403, "")

	// A typo must not create a tenant.
	s.do(t, "PUT", "/"+id+"x/admin/config", `{"config":{}}`, bearer(testAdminToken)).want(t, 400, `{"error":"Invalid tenant ID"}`)
	if testRedis.int(t, "EXISTS", "tenant:"+id+"x:config") != 0 {
		t.Error("a typo has made a tenant")
	}
	// What somebody puts straight into Redis, not compact, is served like any other.
	testRedis.do(t, "SET", "tenant:"+id+":config", "{\n \"a\": 1\n}\n")
	s.wantConfig(t, id, `{"a":1}`)
}

// A config that breaks a rule is refused; the error names the member by its path and shows no value.
func TestInvalidConfigs(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	const amount = " must be a whole number ≥ 0"
	tests := map[string]string{
		`7`:                                  "it must be an object",
		`{"user_groups":7}`:                  "user_groups must be an object",
		`{"user_groups":{"anonymous":"S3"}}`: "user_groups.anonymous must be an object",
		`{"user_groups":{"anonymous":{"tokens":-1}}}`:                       "user_groups.anonymous.tokens" + amount,
		`{"user_groups":{"anonymous":{"tokens":"S3"}}}`:                     "user_groups.anonymous.tokens" + amount,
		`{"user_groups":{"anonymous":{"tokens":1.5}}}`:                      "user_groups.anonymous.tokens" + amount,
		`{"user_groups":{"anonymous":{"tokens":null}}}`:                     "user_groups.anonymous.tokens" + amount,
		`{"user_groups":{"anonymous":{"tokens":9007199254740992}}}`:         "user_groups.anonymous.tokens must be a whole number from 0 to 9007199254740991",
		`{"user_groups":{"a.b":{"tokens":-1}}}`:                             `user_groups["a.b"].tokens` + amount,
		`{"user_groups":{"a":{"rate_limit":-1,"rate_limit_window":1}}}`:     "user_groups.a.rate_limit must be a whole number from 0 to 100000",
		`{"user_groups":{"a":{"rate_limit":100001,"rate_limit_window":1}}}`: "user_groups.a.rate_limit must be a whole number from 0 to 100000",
		`{"user_groups":{"a":{"rate_limit":1,"rate_limit_window":0}}}`:      "user_groups.a.rate_limit_window must be a whole number ≥ 1",
		`{"user_groups":{"a":{"rate_limit":1}}}`:                            "user_groups.a.rate_limit_window is missing beside rate_limit",
		`{"user_groups":{"a":{"tokens":1,"tokens":2}}}`:                     "user_groups.a.tokens is there twice",
		`{"user_groups":{"a":{},"\u0061":{}}}`:                              "user_groups.a is there twice",
		`{"user_groups":{},"user_groups":{}}`:                               "user_groups is there twice",
		`{"auth":[]}`:                                                       "auth must be an object",
		`{"auth":{"stripe":"S3"}}`:                                          "auth.stripe must be an object",
		`{"auth":{"stripe":{"api_key":7}}}`:                                 "auth.stripe.api_key must be a string",
		`{"auth":{"google_oauth":{"client_secret":{}}}}`:                    "auth.google_oauth.client_secret must be a string",
		`{"providers":[]}`:                                                  "providers must be an object",
		`{"providers":{"text":{"default":7}}}`:                              "providers.text.default must be a string",
		`{"providers":{"text":{"default":"S3"}}}`:                           "providers.text.default must name an endpoint",
		`{"providers":{"text":{"default":"S3","endpoints":{"b":{}}}}}`:      "providers.text.default must name an endpoint",
		`{"providers":{"text":{"endpoints":{"b":7}}}}`:                      "providers.text.endpoints.b must be an object",
		`{"providers":{"text":{"endpoints":{"b":{"url":"S3"}}}}}`:           "providers.text.endpoints.b.url must be an absolute http or https URL",
		`{"providers":{"text":{"endpoints":{"b":{"url":"/S3"}}}}}`:          "providers.text.endpoints.b.url must be an absolute http or https URL",
		`{"providers":{"text":{"endpoints":{"b":{"url":"ftp://S3"}}}}}`:     "providers.text.endpoints.b.url must be an absolute http or https URL",
		`{"providers":{"text":{"endpoints":{"b":{"url":"https://"}}}}}`:     "providers.text.endpoints.b.url must be an absolute http or https URL",
		`{"providers":{"text":{"endpoints":{"b":{"url":7}}}}}`:              "providers.text.endpoints.b.url must be an absolute http or https URL",
		`{"providers":{"text":{"endpoints":{"b":{"api_key":7}}}}}`:          "providers.text.endpoints.b.api_key must be a string",
		`{"auth":{"x":{"client_id":7}}}`:                                    "auth.x.client_id must be a string",
		`{"providers":{"text":7}}`:                                          "providers.text must be an object",
		`{"providers":{"text":{"endpoints":7}}}`:                            "providers.text.endpoints must be an object",
		`{"providers":{"text":{"endpoints":null}}}`:                         "providers.text.endpoints must be an object",
		`{"providers":{"text":{"endpoints":{"b":{"default_model":7}}}}}`:    "providers.text.endpoints.b.default_model must be a string",
		`{"providers":{"text":{"endpoints":{"b":{"model":null}}}}}`:         "providers.text.endpoints.b.model must be a string",
		`{"providers":{"text":{"endpoints":{"b":{"voice":7}}}}}`:            "providers.text.endpoints.b.voice must be a string",
		`{"providers":{"text":{"endpoints":{"b":{"encoding":7}}}}}`:         "providers.text.endpoints.b.encoding must be a string",
		`{"providers":{"text":{"endpoints":{"b":{"sampleRate":"S3"}}}}}`:    "providers.text.endpoints.b.sampleRate must be a number",
		`{"user_groups":{"\ud800":{"tokens":1}}}`:                           "user_groups[\"\ufffd\"] must not have half of a surrogate pair",
		`{"caching":7}`:                          "caching must be an object",
		`{"caching":{"enabled":1}}`:              "caching.enabled must be true or false",
		`{"caching":{"text_ttl":-1}}`:            "caching.text_ttl" + amount,
		`{"caching":{"transcription_ttl":"S3"}}`: "caching.transcription_ttl" + amount,
		`{"caching":{"fee_percentage":100.5}}`:   "caching.fee_percentage must be a number from 0 to 100",
		`{"caching":{"fee_percentage":-1}}`:      "caching.fee_percentage must be a number from 0 to 100",
		`{"caching":{"fee_percentage":"S3"}}`:    "caching.fee_percentage must be a number from 0 to 100",
	}
	for config, want := range tests {
		answer := s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken))
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != "Invalid config: "+want {
			t.Errorf("%s: got %q, want %q", config, got, want)
		}
		if strings.Contains(answer.body+s.log.String(), "S3") {
			t.Errorf("%s: a value is shown: %s", config, answer.body)
		}
	}
	s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)).want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5000}}}}`)
	for _, config := range []string{
		`{}`, `{"caching":{"fee_percentage":0.5,"text_ttl":0}}`, `{"user_groups":{"a":{"rate_limit":0,"rate_limit_window":1},"b":{"rate_limit_window":1}}}`,
		`{"providers":{"text":{"endpoints":{"b":{"url":"http://[::1]:80/x?y"}},"default":"b"}}}`, string(seedConfig),
	} {
		s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken)).want(t, 200, "")
	}
}

// A bug in a handler is a 500, with its stack in the log, and the server lives.
func TestPanic(t *testing.T) {
	var log logBuffer
	s := &server{log: newLogger(&log), metrics: newMetrics(), crowded: func() bool { return false }}
	mux := http.NewServeMux()
	mux.Handle("GET /early", s.handle(func(http.ResponseWriter, *http.Request) error { panic("oops\n[INFO] forged") }))
	mux.Handle("GET /late", s.handle(func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = io.WriteString(w, "half an answer")
		panic("too late")
	}))
	web := httptest.NewServer(s.observed(mux))
	defer web.Close()
	front := &service{url: web.URL}
	for range 2 {
		front.do(t, "GET", "/early", "").want(t, 500, `{"error":"Internal error"}`)
	}
	if answer, err := front.send("GET", "/late", ""); err == nil {
		t.Errorf("half an answer came as a whole one: %+v", answer)
	}
	text := log.String()
	if !strings.Contains(text, `[ERROR] panic in GET /early id=-1: oops\n[INFO] forged`) || !strings.Contains(text, "handlers_test.go") {
		t.Errorf("the log has no stack:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "[ERROR] ") {
			t.Errorf("log line %q", line)
		}
	}
}

func TestNewServerNeedsAll(t *testing.T) {
	if _, err := newServer(nil, newLogger(io.Discard), &settings{adminToken: "x"}); err == nil {
		t.Error("a server without a store was made")
	}
	if _, err := newServer(new(store), newLogger(io.Discard), &settings{}); err == nil {
		t.Error("a server without an admin token was made")
	}
}

func FuzzTenantID(f *testing.F) {
	for _, id := range []string{"abc", "a_-9", "", "_a", "a:b", "a\x00", "é", strings.Repeat("a", 65)} {
		f.Add(id)
	}
	pattern := regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z`)
	f.Fuzz(func(t *testing.T, id string) {
		if got, want := validTenantID(id), pattern.MatchString(id); got != want {
			t.Errorf("%q: got %v, want %v", id, got, want)
		}
	})
}

func FuzzBearerToken(f *testing.F) {
	for _, header := range []string{"Bearer abc", "bearer  a=", "Bearer", "Bearer a b", "Basic x", "Bearer \x00", ""} {
		f.Add(header)
	}
	pattern := regexp.MustCompile(`\A(?i:bearer) +([A-Za-z0-9._~+/-]+=*)\z`)
	f.Fuzz(func(t *testing.T, header string) {
		got, err := bearerToken(&http.Request{Header: http.Header{"Authorization": {header}}})
		want := pattern.FindStringSubmatch(header)
		if (err == nil) != (want != nil) || err == nil && got != want[1] {
			t.Errorf("%q: got %q, %v, want %q", header, got, err, want)
		}
	})
}

func FuzzAPIKey(f *testing.F) {
	for _, key := range []string{someKey, "temp_" + someKey[5:], "user_", "temp_11111111222243338444555555555555", "user_" + strings.ToUpper(someKey[5:])} {
		f.Add(key)
	}
	pattern := regexp.MustCompile(`\A(temp|user)_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z`)
	f.Fuzz(func(t *testing.T, key string) {
		if got, want := validAPIKey(key), pattern.MatchString(key); got != want {
			t.Errorf("%q: got %v, want %v", key, got, want)
		}
	})
}

func FuzzClientAddress(f *testing.F) {
	f.Add("10.0.0.1:1", "1.2.3.4, ::1")
	f.Add("[fe80::1%eth0]:1", "")
	f.Add("[::1]:1", "x,[::1]:2,1.2.3.4:5,::ffff:1.2.3.4,fe80::1%a:b")
	trusted := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	f.Fuzz(func(t *testing.T, peer, forwarded string) {
		if _, err := netip.ParseAddrPort(peer); err != nil {
			t.Skip() // net/http never gives such a peer
		}
		got := clientAddress(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {forwarded}}}, trusted)
		if address, err := netip.ParseAddr(got); err == nil && address.Is4() {
			return
		}
		if prefix, err := netip.ParsePrefix(got); err != nil || prefix.Bits() != 64 || prefix.Masked() != prefix {
			t.Errorf("%q %q: got %q", peer, forwarded, got)
		}
	})
}

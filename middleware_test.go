package main

import (
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

func TestNewServerNeedsAll(t *testing.T) {
	if _, err := newServer(nil, newLogger(io.Discard), &settings{adminToken: "x"}); err == nil {
		t.Error("a server without a store was made")
	}
	if _, err := newServer(new(store), newLogger(io.Discard), &settings{}); err == nil {
		t.Error("a server without an admin token was made")
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

// A charge is judged by the config as it is when its body is there, however slowly that came.
func TestSlowBodyConfig(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	for config, want := range map[string]string{`{"user_groups":{"anonymous":{"rate_limit":0,"rate_limit_window":9}}}`: "429", "": "400"} {
		c := s.dial(t)
		fmt.Fprintf(c, "POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nContent-Length: 12\r\n\r\n{", id, bearer(key))
		time.Sleep(50 * time.Millisecond)
		before := testRedis.string(t, "GET", "tenant:"+id+":config")
		if config == "" {
			s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
		} else {
			s.admin(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`).want(t, 200, "")
		}
		time.Sleep(slowBody + 50*time.Millisecond)
		fmt.Fprint(c, `"tokens":1}`)
		if answer := readAll(c); !strings.HasPrefix(answer, "HTTP/1.1 "+want) {
			t.Errorf("got %s, want %s", answer, want)
		}
		testRedis.do(t, "SET", "tenant:"+id+":config", before)
		s.wantConfig(t, id, before)
	}
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left", left)
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
	if !strings.Contains(text, `[ERROR] panic in GET /early id=-1: oops\n[INFO] forged`) || !strings.Contains(text, "middleware_test.go") {
		t.Errorf("the log has no stack:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "[ERROR] ") {
			t.Errorf("log line %q", line)
		}
	}
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

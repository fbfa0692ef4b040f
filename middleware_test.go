package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

func TestNewServerNeedsAll(t *testing.T) {
	options, log := serverOptions{adminTokens: tokensOf(t, "x"), metricsTokens: new(bearertoken.Set)}, telemetry.NewLogger(io.Discard)
	if _, err := newServer(new(store), log, options, notNearCapacity); err != nil {
		t.Error(err)
	}
	if _, err := newServer(nil, log, options, notNearCapacity); err == nil {
		t.Error("there is a server without a store")
	}
	if _, err := newServer(new(store), nil, options, notNearCapacity); err == nil {
		t.Error("there is a server without a logger")
	}
	if _, err := newServer(new(store), log, serverOptions{}, notNearCapacity); err == nil {
		t.Error("there is a server without an admin token")
	}
	if _, err := newServer(new(store), log, options, nil); err == nil {
		t.Error("there is a server without a measure of its capacity")
	}
}

// What is not a tenant ID never becomes part of a Redis key.
func TestTenantIDs(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	long := strings.Repeat("a", 64)
	for _, id := range []string{"a", "A-_9", "0", long, "auth", "tokens", "healthz"} {
		r.Do(t, "SET", "tenant:"+id+":config", `{"user_groups":{"anonymous":{}}}`)
		s.login(t, id)
	}
	before := lastingKeys(t, r, "*")
	for _, id := range []string{
		long + "a", "_a", "-a", "a.b", "a:b", "a%3Ab", "a%2Fb", "%00", "a%00", "a%0d%0aX:%20y", "a%0a", "%c3%a4", "%ff", "a%20", "*",
		"%2e%2e", "a%2f..%2fb", "x:config%0a",
	} {
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		if after := lastingKeys(t, r, "*"); !slices.Equal(after, before) {
			t.Fatalf("%s made of the keys\n%q\nthese:\n%q", id, before, after)
		}
	}
	s.wantNoAlarm(t)
}

// wantNoAlarm checks that the log has no errors or warnings, but that of a Redis of the test's own which is empty and that
// of the example's config, and no lines that somebody has forged.
func (s *service) wantNoAlarm(t *testing.T) {
	t.Helper()
	example := "[WARN] The config of tenant abc: " + switchedOff + "\n"
	for line := range strings.Lines(s.log.String()) {
		if !strings.HasPrefix(line, "[INFO] ") && line != emptyWarning && line != example {
			t.Errorf("log line %q", line)
		}
	}
}

// The responses to credentials that are missing, malformed, repeated or wrong.
func TestUnauthorized(t *testing.T) {
	t.Parallel()
	s := newService(t, trustTest)
	id := newTenant(t, 10)
	key := s.login(t, id)
	const none, invalid = `Bearer realm="tollgate"`, `Bearer realm="tollgate", error="invalid_token"`
	const described = none + `, error_description="send the header Authorization: Bearer <key or token>"`
	tests := []struct {
		name    string
		headers []string
		want    string
	}{
		{"no header", nil, none},
		{"empty", []string{"Authorization: "}, described},
		{"no token", []string{"Authorization: Bearer"}, described},
		{"another scheme", []string{"Authorization: Basic YTpi"}, described},
		{"no scheme", []string{"Authorization: " + key}, described},
		{"a colon", []string{"Authorization: Bearer:" + key}, described},
		{"another header", []string{"X-Token: " + key}, none},
		{"a user's key that does not exist", []string{bearer(someKey)}, invalid},
		{"an anonymous key that does not exist", []string{bearer("temp_11111111-2222-4333-8444-555555555555")}, invalid},
		{"not a key", []string{bearer("x")}, invalid},
		{"too long", []string{bearer(key + "x")}, invalid},
		{"two words", []string{bearer(key + " x")}, invalid},
		{"a colon in it", []string{bearer("a:b")}, invalid},
		{"not ASCII", []string{bearer("é")}, invalid},
		{"upper case", []string{bearer(strings.ToUpper(key))}, invalid},
		{"no prefix", []string{bearer(key[5:])}, invalid},
		{"another prefix", []string{bearer("user_" + key[5:])}, invalid},
		{"braces", []string{bearer("temp_{" + key[5:] + "}")}, invalid},
		{"repeated", []string{bearer(key), bearer(key)}, invalid},
		{"two credentials", []string{bearer(key), bearer(testAdminToken)}, invalid},
		{"the admin token repeated", []string{bearer(testAdminToken), bearer(testAdminToken)}, invalid},
		{"part of the admin token", []string{bearer(testAdminToken[:10])}, invalid},
		{"more than the admin token", []string{bearer(testAdminToken + "x")}, invalid},
	}
	routes := []struct{ method, path string }{
		{"GET", "/" + id + "/auth/key"},
		{"POST", "/" + id + "/tokens/consume"},
		{"GET", "/" + id + "/admin/config"},
		{"PUT", "/" + id + "/admin/config"},
		{"POST", "/" + id + "/admin/keys"},
		// A stranger does not learn from an admin route whether a tenant exists.
		{"GET", "/nobody/admin/config"},
		{"PUT", "/nobody/admin/config"},
		{"POST", "/nobody/admin/keys"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, route := range routes {
				got := s.do(t, route.method, route.path, "", append(test.headers, fromElsewhere())...)
				got.want(t, 401, `{"error":"Unauthorized"}`)
				got.wantHeader(t, "WWW-Authenticate", test.want)
			}
		})
	}
	t.Run("the scheme's case and spaces do not matter", func(t *testing.T) {
		for _, scheme := range []string{"bearer", "BEARER", "bEaReR ", "Bearer  "} {
			s.do(t, "GET", "/"+id+"/auth/key", "", "Authorization: "+scheme+" "+key).want(t, 200, "")
		}
	})
	t.Run("a credential is for its own routes", func(t *testing.T) {
		s.admin(t, "GET", "/"+id+"/auth/key", "").want(t, 401, "")
		s.do(t, "GET", "/"+id+"/admin/config", "", bearer(key)).want(t, 401, "")
	})
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left of 10", left)
	}
}

// badBody is a body that is refused, and why.
type badBody struct{ body, want string }

const nothingToParse = "Invalid JSON: unexpected end of JSON input at byte 0"

// testBadBodies checks that a route of a new tenant refuses bodies, each with a sentence that says what is wrong, and
// that nothing is taken, saved or created. If admin is set, the route is one for admins.
func testBadBodies(t *testing.T, method, path string, admin bool, tests []badBody) {
	t.Helper()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	token := key
	if admin {
		token = testAdminToken
	}
	config, keys := testRedis.String(t, "GET", "tenant:"+id+":config"), testRedis.Keys(t, "apiKey:*")
	for _, test := range tests {
		t.Run(fmt.Sprintf("%.60s", test.body), func(t *testing.T) {
			s.do(t, method, "/"+id+path, test.body, bearer(token)).wantError(t, 400, test.want)
		})
	}
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left of 10", left)
	}
	if after := testRedis.String(t, "GET", "tenant:"+id+":config"); after != config {
		t.Errorf("the config became %s", after)
	}
	if after := testRedis.Keys(t, "apiKey:*"); !slices.Equal(after, keys) {
		t.Errorf("there are %d keys, before there were %d", len(after), len(keys))
	}
}

func TestBadChargeBodies(t *testing.T) {
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	const (
		amount = "tokens must be a whole number ≥ 1"
		large  = "tokens must be a whole number from 1 to 9007199254740991"
		object = "Body must be a JSON object"
	)
	testBadBodies(t, "POST", "/tokens/consume", false, []badBody{
		{`{"tokens":0}`, amount},
		{`{"tokens":-1}`, amount},
		{`{"tokens":1.5}`, amount},
		{`{"tokens":1e-1}`, amount},
		{`{"tokens":9007199254740992}`, large},
		{`{"tokens":99999999999999999999}`, large},
		{`{"tokens":-99999999999999999999}`, amount},
		{`{"tokens":"1"}`, amount},
		{`{"tokens":null}`, amount},
		{`{"tokens":true}`, amount},
		{`{"tokens":[1]}`, amount},
		{`{"tokens":{}}`, amount},
		{`{}`, "tokens is missing"},
		{`{"TOKENS":1}`, "TOKENS is not a known member"},
		{`{"to\u212Aens":1}`, "[\"to\u212aens\"] is not a known member"},
		{`{"tokens":1,"tokens":2}`, "tokens is duplicated"},
		{`{"tokens":1,"\u0074okens":2}`, "tokens is duplicated"},
		{`{"tokens":1,"x":2}`, "x is not a known member"},
		{`{"tokens":1,"":2}`, `[""] is not a known member`},
		{`[]`, object},
		{`1`, object},
		{`null`, object},
		{`{"tokens":1}{"tokens":1}`, "Invalid JSON: invalid character '{' after top-level value at byte 13"},
		{`{"tokens":1}x`, "Invalid JSON: invalid character 'x' after top-level value at byte 13"},
		{`{"tokens":1`, "Invalid JSON: unexpected end of JSON input at byte 11"},
		{`{"tokens":01}`, "Invalid JSON: invalid character '1' after object key:value pair at byte 12"},
		{`{'tokens':1}`, "Invalid JSON: invalid character '\\'' looking for beginning of object key string at byte 2"},
		{`{"tokens":1,}`, "Invalid JSON: invalid character '}' looking for beginning of object key string at byte 13"},
		{` `, "Invalid JSON: unexpected end of JSON input at byte 1"},
		{`tokens=1`, "Invalid JSON: the body does not start with {"},
		{"{\"tokens\":1,\"\xff\":2}", "Invalid JSON: no valid UTF-8 at byte 14"},
		{"\ufeff{\"tokens\":1}", "Invalid JSON: it starts with a byte order mark"},
		{deep, "Invalid JSON: invalid character '[' exceeded max depth at byte 10001"},
	})
}

func TestBadKeyBodies(t *testing.T) {
	const (
		userID = "userId must be 1 to 256 bytes of printable text without white space at its ends"
		group  = `group must be one of the tenant's user_groups: "anonymous", "pro"`
		life   = "expiresIn must be a whole number of seconds from 1 to 315360000"
	)
	testBadBodies(t, "POST", "/admin/keys", true, []badBody{
		{`{"group":"pro"}`, "userId is missing"},
		{`{"userId":"u"}`, "group is missing"},
		{`{"userId":null,"group":"pro"}`, "userId must be a string"},
		{`{"userId":1,"group":"pro"}`, "userId must be a string"},
		{`{"userId":"","group":"pro"}`, userID},
		{`{"userId":" u","group":"pro"}`, userID},
		{`{"userId":"a\nb","group":"pro"}`, userID},
		{`{"userId":"` + strings.Repeat("u", 257) + `","group":"pro"}`, userID},
		{`{"userId":"\ud800","group":"pro"}`, "userId must not have half of a surrogate pair"},
		{`{"userId":"u","group":"none"}`, group},
		{`{"userId":"u","group":"PRO"}`, group},
		{`{"userId":"u","group":["pro"]}`, "group must be a string"},
		{`{"userId":"u","group":"pro","tokens":-1}`, "tokens must be a whole number ≥ 0"},
		{`{"userId":"u","group":"pro","tokens":null}`, "tokens must be a whole number ≥ 0"},
		{`{"userId":"u","group":"pro","tokens":9007199254740992}`, "tokens must be a whole number from 0 to 9007199254740991"},
		{`{"userId":"u","group":"pro","expiresIn":0}`, life},
		{`{"userId":"u","group":"pro","expiresIn":315360001}`, life},
		{`{"userId":"u","group":"pro","tenantId":"abc"}`, "tenantId is not a known member"},
		{``, nothingToParse},
	})
}

func TestBadConfigBodies(t *testing.T) {
	testBadBodies(t, "PUT", "/admin/config", true, []badBody{
		{`{}`, "config is missing"},
		{`{"config":{},"config":{}}`, "config is duplicated"},
		{`{"config":{},"force":true}`, "force is not a known member"},
		{`{"config":null}`, "Invalid config: it must be an object"},
		{`{"config":[]}`, "Invalid config: it must be an object"},
		{`{"user_groups":{}}`, `user_groups is not a known member: put the config under "config"`},
		{`{"caching":1,"config":{}}`, `caching is not a known member: put the config under "config"`},
		{``, nothingToParse},
	})
}

func TestBodySize(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	pad := func(body string, size int) string { return body + strings.Repeat(" ", size-len(body)) }
	t.Run("1 MiB is accepted", func(t *testing.T) {
		s.consume(t, id, key, pad(`{"tokens":1}`, maxBodyBytes)).want(t, 200, "")
		s.admin(t, "PUT", "/"+id+"/admin/config", pad(`{"config":{"user_groups":{"anonymous":{}}}}`, maxBodyBytes)).want(t, 200, "")
	})
	t.Run("1 byte more is not", func(t *testing.T) {
		s.consume(t, id, key, pad(`{"tokens":1}`, maxBodyBytes+1)).want(t, 413, `{"error":"Body too large"}`)
		s.admin(t, "PUT", "/"+id+"/admin/config", pad(`{"config":{}}`, maxBodyBytes+1)).want(t, 413, `{"error":"Body too large"}`)
	})
	t.Run("each large body gives its place back", func(t *testing.T) {
		for range publicBodyMemory/maxBodyBytes + 1 {
			s.consume(t, id, key, pad("x", maxBodyBytes)).want(t, 400, "")
		}
	})
	for _, test := range []struct{ name, chunks, want string }{
		{"chunked", "c\r\n{\"tokens\":2}\r\n0\r\n\r\n", "HTTP/1.1 200 "},
		{"chunked, with a malformed end", "c\r\n{\"tokens\":4}\r\nxyz\r\n", "HTTP/1.1 400 "},
		{"chunked, and cut off", "", "HTTP/1.1 400 "},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t)
			fmt.Fprint(c, "POST /"+id+"/tokens/consume HTTP/1.1\r\nHost: x\r\n"+bearer(key)+"\r\nConnection: close\r\n"+
				"Transfer-Encoding: chunked\r\n\r\n"+test.chunks)
			_ = c.CloseWrite()
			if got := readAll(c); !strings.HasPrefix(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if left := tokensLeft(t, key); left != 10-1-2 {
		t.Errorf("%d tokens are left, want 7", left)
	}
}

// A client that waits to be told that it may send its body is refused before, if that can be known.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	const tooLarge = "413 Request Entity Too Large"
	for _, test := range []struct {
		name, request, token string
		size                 int
		want                 string // the first status that comes
	}{
		{"consume", "POST /%s/tokens/consume", key, 3_000_000, tooLarge},
		{"consume, a byte too much", "POST /%s/tokens/consume", key, maxBodyBytes + 1, tooLarge},
		{"consume, not too much", "POST /%s/tokens/consume", key, maxBodyBytes, "100 Continue"},
		{"consume with an unknown key", "POST /%s/tokens/consume", someKey, 12, "401 Unauthorized"},
		{"consume with a malformed key", "POST /%s/tokens/consume", "x", 12, "401 Unauthorized"},
		{"consume of another tenant", "POST /nobody%s/tokens/consume", key, 12, "400 Bad Request"},
		{"a hold", "POST /%s/tokens/holds", key, 3_000_000, tooLarge},
		{"a hold with an unknown key", "POST /%s/tokens/holds", someKey, 12, "401 Unauthorized"},
		{"settling", "POST /%s/tokens/holds/" + holdPrefix + someKey[5:] + "/settle", key, 3_000_000, tooLarge},
		{"sign-in", "POST /%s/auth/google", "", 3_000_000, tooLarge},
		{"sign-in, not too much", "POST /%s/auth/google", "", 12, "100 Continue"},
		{"a config", "PUT /%s/admin/config", testAdminToken, 3_000_000, tooLarge},
		{"a config, not too much", "PUT /%s/admin/config", testAdminToken, maxBodyBytes, "100 Continue"},
		{"a config with a wrong token", "PUT /%s/admin/config", testAdminToken + "x", 3_000_000, "401 Unauthorized"},
		{"a key", "POST /%s/admin/keys", testAdminToken, 3_000_000, tooLarge},
		{"a change of a key", "PATCH /%s/admin/keys/" + key, testAdminToken, 3_000_000, tooLarge},
		{"no body is wanted", "POST /%s/admin/tokens", testAdminToken, 3_000_000, "400 Bad Request"},
		{"a completion", "POST /%s/v1/chat/completions", key, 100_000_000, tooLarge},
		{"a completion with an unknown key", "POST /%s/v1/chat/completions", someKey, 1_000_000, "401 Unauthorized"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t)
			fmt.Fprintf(c, test.request+" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n", id, test.size)
			if test.token != "" {
				fmt.Fprintf(c, "%s\r\n", bearer(test.token))
			}
			fmt.Fprint(c, "\r\n")
			got, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != test.want || !got.Close && got.StatusCode != 100 { // the body may follow or not
				t.Errorf("got %s, want %s; closed: %v", got.Status, test.want, got.Close)
			}
		})
	}
	if left := tokensLeft(t, key); left != 10 {
		t.Errorf("%d tokens are left of 10", left)
	}
}

// Clients that hold long bodies back, as anybody may, neither fill the memory nor keep others from their charges.
func TestLongCharges(t *testing.T) {
	const clients = 200
	p := startProcess(t, []string{
		"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "LOGIN_LIMIT=0", "ADMIN_TOKEN=" + testAdminToken,
	})
	s := p.service(t)
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
	long := func() reply { return s.consume(t, id, key, most+"x") }
	waittest.Eventually(t, 5*time.Second, func() error { return long().is(503) })
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

// A charge is judged by the config as it is when its body is complete, however slowly that came.
func TestSlowBodyConfig(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, test := range []struct {
		name   string
		change func(t *testing.T, id string)
		status string
	}{
		{"a new limit", func(t *testing.T, id string) {
			s.putConfig(t, id, `{"user_groups":{"anonymous":{"rate_limit":0,"rate_limit_window":9}}}`).want(t, 200, "")
		}, "429"},
		{"the tenant is gone", func(t *testing.T, id string) {
			s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
		}, "400"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id := newTenant(t, 10)
			key := s.login(t, id)
			c := s.begin(t, "POST", "/"+id+"/tokens/consume", 12, bearer(key))
			fmt.Fprint(c, `{`)
			test.change(t, id)
			time.Sleep(time.Second) // a config may be as old as that
			fmt.Fprint(c, `"tokens":1}`)
			if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 "+test.status) {
				t.Errorf("got %s, want %s", got, test.status)
			}
			if left := tokensLeft(t, key); left != 10 {
				t.Errorf("%d tokens are left", left)
			}
		})
	}
}

// hostileClient is a client of a service that has a Redis of its own, with one API key.
type hostileClient struct {
	*service
	redis *redistest.Server
	key   string
	keys  []string // in Redis, before anything was sent
}

func newHostileClient(t *testing.T) *hostileClient {
	t.Helper()
	r := redistest.New(t)
	h := &hostileClient{service: newService(t, "REDIS_URL="+r.URL()), redis: r}
	h.key = h.login(t, "abc")
	awaitUsage(t, r, "abc")
	awaitKeyUsage(t, r, h.key)
	h.keys = lastingKeys(t, r, "*")
	return h
}

// send sends the bytes of a request. What a hostile client may send is its own fault: a response with one of the
// statuses comes back, never a redirect or a 5xx, and no key that the layout does not have appears in Redis.
func (h *hostileClient) send(t *testing.T, request string, statuses ...int) {
	t.Helper()
	c := h.dial(t)
	fmt.Fprint(c, request)
	_ = c.CloseWrite()
	got := readAll(c)
	var status int
	fmt.Sscanf(got, "HTTP/1.1 %d ", &status)
	if !slices.Contains(statuses, status) || strings.Contains(got, "\r\nLocation: ") {
		t.Errorf("%.300q\ngot %q, want %d", request, got, statuses)
	}
	if after := lastingKeys(t, h.redis, "*"); !slices.Equal(after, h.keys) {
		t.Fatalf("%.300q\nmade of the keys\n%q\nthese:\n%q", request, h.keys, after)
	}
}

// wantNoHarm checks that nothing was taken, and that the log has no errors.
func (h *hostileClient) wantNoHarm(t *testing.T) {
	t.Helper()
	if left := tokensLeftIn(t, h.redis, h.key); left != 100 {
		t.Errorf("%d tokens are left, want 100", left)
	}
	h.wantNoAlarm(t)
}

const (
	hostileHeaders = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	hostileCharge  = "POST /abc/tokens/consume" + hostileHeaders
)

func TestHostilePaths(t *testing.T) {
	t.Parallel()
	h := newHostileClient(t)
	admin := hostileHeaders + bearer(testAdminToken) + "\r\n"
	for _, id := range []string{
		"%2F", "%2f..", "..", ".", "%2e%2e", "%2E", "", "/", "%00", "abc%00", "%0d%0a", "abc%0d%0aX-Y:%20z", ":", "abc:config",
		"abc%3Aconfig", strings.Repeat("a", 65), "é", "%c3%a9", "\xff", "%ff", "abc%2Fx", "abc%2f..%2fabc", "../abc", "abc/..",
		"abc/.", "abc/../abc", "./abc", "/abc", "abc/", "\\abc", "..\\abc", "%5cabc", "abc;x=1", "abc%20", "%20abc", "abc+",
		"abc.json", "*", "abc*", "a?c", "a[b]c", "{abc}", "%7babc%7d", "abc%25", "abc%2500", "abc#x", "-abc", "_abc", "ABC",
		"~abc", "abc~", "tenant:abc:config", "abc%e2%80%8b", "%EF%BD%81bc", "abc%2", "abc%zz", "%", "%u0061bc", "abc\x00",
		"abc\t", "abc x",
	} {
		for _, route := range []string{"POST /%s/auth/anonymous", "POST /%s/tokens/consume", "GET /%s/auth/verify"} {
			h.send(t, strings.Replace(route, "%s", id, 1)+hostileHeaders+bearer(h.key)+"\r\n\r\n", 400, 404, 405)
		}
		h.send(t, "PUT /"+id+"/admin/config"+admin+"Content-Length: 13\r\n\r\n{\"config\":{}}", 400, 404, 405)
		h.send(t, "GET /abc/admin/keys/"+id+admin+"\r\n", 400, 404, 405)
		h.send(t, "POST /abc/admin/config/history/"+id+"/restore"+admin+"\r\n", 400, 404, 405)
		h.send(t, "DELETE /admin/tenants/"+id+admin+"\r\n", 400, 404, 405)
	}
	h.wantNoHarm(t)
}

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	h := newHostileClient(t)
	t.Run("credentials", func(t *testing.T) {
		for _, credential := range []string{
			bearer(h.key) + "\r\n" + bearer(h.key),
			bearer(h.key) + "\r\nauthorization: Bearer x",
			"Authorization: Bearer " + h.key + ", Bearer " + h.key,
			"Authorization: Bearer\t" + h.key,
			"Authorization: Bearer " + h.key + "\x00",
			"Authorization : Bearer " + h.key,
			"Authorization: Bearer\r\n " + h.key[:10] + "\r\n " + h.key[10:],
			"Authorization: Bearer " + h.key + "=",
			"Authorization: Bearer \"" + h.key + "\"",
			"Authorization:",
			"Authorization",
			": Bearer " + h.key,
			"Authorization: bearer=" + h.key,
			"Authorization: Bearer " + h.key + ";x",
			"Proxy-Authorization: Bearer " + h.key,
			"Authorization\r: Bearer " + h.key,
		} {
			h.send(t, hostileCharge+credential+"\r\n\r\n", 400, 401)
		}
	})
	t.Run("request lines", func(t *testing.T) {
		for _, line := range []string{
			"GET", "GET /healthz", "GET  /healthz HTTP/1.1", "G\x00T /healthz HTTP/1.1", "GET healthz HTTP/1.1", "GET /healthz HTTP/x",
			"/healthz", "\x16\x03\x01\x02", "GET /health\x7fz HTTP/1.1", "GET * HTTP/1.1", "GET http:// HTTP/1.1", "GET //// HTTP/1.1",
		} {
			h.send(t, line+"\r\nHost: x\r\nConnection: close\r\n\r\n", 400, 404)
		}
		h.send(t, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404)
	})
	t.Run("headers", func(t *testing.T) {
		for _, header := range []string{
			"", "Host: x\r\nHost: y\r\n", "Host: a b\r\n", "Host: x\r\nX Y: z\r\n", "Host: x\r\nX: \x01\r\n", "Host: x\r\n: y\r\n",
			"Host: x\r\nX: " + strings.Repeat("x", 13<<10) + "\r\n",
		} {
			h.send(t, "GET /healthz HTTP/1.1\r\n"+header+"\r\n", 400, 431)
		}
		h.do(t, "GET", "/healthz", "", "X: "+strings.Repeat("x", 8<<10)).want(t, 200, "")
	})
	h.wantNoHarm(t)
}

func TestHostileBodies(t *testing.T) {
	t.Parallel()
	h := newHostileClient(t)
	t.Run("lengths", func(t *testing.T) {
		for _, length := range []string{
			"-1", "+12", "0x0c", "1e1", "12.0", "12, 12", "12, 13", "12 13", "99999999999999999999", "9223372036854775808", "abc",
			"12a", "１２", "12;", "\"12\"", "12\r\nContent-Length: 13", "1048577", "9223372036854775807",
			"13", "1000", "11", "1", // of a body that ends before, or with which it is not valid JSON
		} {
			h.send(t, hostileCharge+bearer(h.key)+"\r\nContent-Length: "+length+"\r\n\r\n{\"tokens\":1}", 400, 413)
		}
	})
	t.Run("chunks", func(t *testing.T) {
		for _, body := range []string{
			"xyz\r\n",
			"-1\r\n",
			"0xc\r\n{\"tokens\":1}\r\n0\r\n\r\n",
			" c\r\n{\"tokens\":1}\r\n0\r\n\r\n",
			"fffffffffffffffff\r\n{",
			"7fffffffffffffff\r\n{\"tokens\":1}",
			"c\r\n{\"tokens\":1}",
			"c\r\n{\"tokens\":1}\r\n",
			"c\r\n{\"tokens\":1}0\r\n\r\n",
			"b\r\n{\"tokens\":1}\r\n0\r\n\r\n",
			"d\r\n{\"tokens\":1}\r\n0\r\n\r\n",
			"c\r\n{\"tokens\":1}\r\n0\r\n",
			"c\r\n{\"tokens\":1}\r\n0\r\nX",
			"",
			"\r\n",
			"c;" + strings.Repeat("x", 10_000) + "\r\n{\"tokens\":1}\r\n0\r\n\r\n",
			"c\r\n{\"tokens\":x}\r\n0\r\n\r\n",
			"c\n{\"tokens\":1}\n",
			"g\r\n{\"tokens\":1}\r\n0\r\n\r\n",
		} {
			h.send(t, hostileCharge+bearer(h.key)+"\r\nTransfer-Encoding: chunked\r\n\r\n"+body, 400)
		}
	})
	h.wantNoHarm(t)
}

// Every response has an X-Request-Id: the request's own if that is fit for a log, else a new one.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	valid := regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	t.Run("the request's own", func(t *testing.T) {
		s.do(t, "GET", "/healthz", "", "X-Request-Id: mine").wantHeader(t, "X-Request-Id", "mine")
	})
	for _, test := range []struct{ name, id string }{
		{"empty", ""},
		{"a space", "a b"},
		{"not ASCII", "é"},
		{"too long", strings.Repeat("a", 65)},
		{"a tab", "a\tb"},
		{"an API key", key},
		{"an admin token", "adm_" + key[5:]},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key), "X-Request-Id: "+test.id).header.Get("X-Request-Id")
			if got == test.id || !valid.MatchString(got) {
				t.Errorf("%q became %q", test.id, got)
			}
		})
	}
	t.Run("each has its own", func(t *testing.T) {
		seen := make(map[string]bool)
		for _, path := range []string{"/healthz", "/healthz", "/nothing", "/abc/auth/key"} {
			got := s.do(t, "GET", path, "").header.Get("X-Request-Id")
			if !valid.MatchString(got) || seen[got] {
				t.Errorf("%s: %q", path, got)
			}
			seen[got] = true
		}
	})
	t.Run("the line of an error names its request", func(t *testing.T) {
		testRedis.Do(t, "SET", "apiKey:"+key, "not a hash")
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key), "X-Request-Id: broken").want(t, 500, "")
		if s.log.Count("\n[ERROR] GET /{tenantId}/auth/key id=broken: ") != 1 {
			t.Errorf("log:\n%s", s.log)
		}
	})
}

// A bug in a handler is a 500, with its stack in the log, and the server lives.
func TestPanic(t *testing.T) {
	var log telemetrytest.Log
	s := &server{log: log.Logger(), metrics: newMetrics(nil), nearCapacity: notNearCapacity}
	mux := http.NewServeMux()
	mux.Handle("GET /early", s.toHandler(route{handler: func(http.ResponseWriter, *http.Request, *requestInfo) error {
		panic("oops\n[INFO] forged")
	}}))
	mux.Handle("GET /late", s.toHandler(route{handler: func(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
		_, _ = io.WriteString(w, "half a response")
		panic("too late")
	}}))
	web := httptest.NewServer(s.middleware(mux, nil))
	defer web.Close()
	front := &service{url: web.URL}
	for range 2 {
		front.do(t, "GET", "/early", "").want(t, 500, `{"error":"Internal error"}`)
	}
	if got, err := front.send("GET", "/late", ""); err == nil {
		t.Errorf("half a response came as a whole one: %+v", got)
	}
	if log.Count(`[ERROR] panic in GET /early id=-1: oops\n[INFO] forged`) == 0 || log.Count("middleware_test.go") == 0 {
		t.Errorf("the log has no stack:\n%s", &log)
	}
	for line := range strings.Lines(log.String()) {
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
	for _, key := range []string{
		someKey, "temp_" + someKey[5:], "user_", "temp_11111111222243338444555555555555", "user_" + strings.ToUpper(someKey[5:]),
	} {
		f.Add(key)
	}
	pattern := regexp.MustCompile(`\A(temp|user)_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z`)
	f.Fuzz(func(t *testing.T, key string) {
		if got, want := validAPIKey(key), pattern.MatchString(key); got != want {
			t.Errorf("%q: got %v, want %v", key, got, want)
		}
	})
}

// A request with more than 100 header fields is refused before its body is waited for.
func TestTooManyHeaders(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	fields := func(n int) string { return strings.Repeat("X-A: b\r\n", n) }
	head := "POST /" + id + "/tokens/consume HTTP/1.1\r\nHost: x\r\n" + bearer(key) + "\r\n"
	for _, test := range []struct{ name, fields string }{
		{"101", fields(99)},
		{"very many", strings.Repeat("a:\r\n", 1500)},
		{"very many names", func() (all string) {
			for i := range 1000 {
				all += fmt.Sprintf("a%d:\r\n", i)
			}
			return all
		}()},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t)
			began := time.Now()
			fmt.Fprint(c, head+test.fields+"Content-Length: 4096\r\n\r\n")
			got := readAll(c)
			if !strings.HasPrefix(got, "HTTP/1.1 431 ") || !strings.HasSuffix(got, "\r\n\r\n{\"error\":\"Too many headers\"}\n") {
				t.Errorf("got %q", got)
			}
			if took := time.Since(began); took > 2*time.Second+busy {
				t.Errorf("it took %s", took)
			}
		})
	}
	t.Run("100", func(t *testing.T) {
		c := s.dial(t)
		fmt.Fprint(c, head+fields(97)+"Connection: close\r\nContent-Length: 12\r\n\r\n{\"tokens\":3}")
		if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 200 ") || tokensLeft(t, key) != 7 {
			t.Errorf("got %q", got)
		}
	})
}

func (got reply) wantRefusedBody(t *testing.T) {
	t.Helper()
	got.want(t, 400, "")
	if !strings.Contains(got.body, `"This route takes no body"`) {
		t.Errorf("got %s", got.body)
	}
}

// A route that takes no body refuses one, so that nobody thinks that it had an effect.
func TestBodiesWhereNoneBelong(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	withBody := []string{"/auth/verify", "POST /auth/anonymous", "POST /auth/google", "POST /auth/apple",
		"POST /tokens/consume", "POST /tokens/holds", "POST /tokens/holds/{holdId}/settle",
		"POST /billing/checkout", "POST /billing/portal", "POST /webhooks/stripe",
		"PUT /admin/config", "POST /admin/keys", "PATCH /admin/keys/{apiKey}", "POST /admin/keys/{apiKey}/rotate",
		"POST /admin/tenants"}
	awaitUsage(t, testRedis, id)
	before := lastingKeys(t, testRedis, "*tenant:"+id+":*")
	const body = `{"scope":"read"}`
	tested := 0
	for _, route := range allRoutes() {
		pattern := strings.Replace(route.pattern, "/{tenantId}/", "/", 1)
		if slices.Contains(withBody, pattern) || strings.HasPrefix(pattern, "POST /v1/") {
			continue
		}
		tested++
		method, path, _ := strings.Cut(route.pattern, " ")
		path = strings.NewReplacer("{tenantId}", id, "{apiKey}", key, "{etag}", strings.Repeat("a", 40), "{$}", "",
			"{file}", "index.html").Replace(path)
		token := testAdminToken
		if route.access.browser {
			token = key
		}
		t.Run(route.pattern, func(t *testing.T) {
			for _, body := range []string{
				body, " ", "[]", "{", "}", "null", "{}{}", "{\u00a0}", "{}" + strings.Repeat(" ", maxEmptyObject-1),
			} {
				s.do(t, method, path, body, bearer(token)).wantRefusedBody(t)
			}
			if t.Failed() {
				t.Fatal("If the route takes a body, add it to withBody above. Else its access in handlers.go lacks the step refuseBody.")
			}
			for _, chunks := range []string{"1\r\n \r\n0\r\n\r\n", "41\r\n{}" + strings.Repeat(" ", maxEmptyObject-1)} {
				c := s.dial(t)
				fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n%s", method, path, bearer(token), chunks)
				if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
					t.Errorf("%q: got %q", chunks, got)
				}
			}
		})
	}
	if tested < 20 {
		t.Errorf("%d routes are tested", tested)
	}
	if after := lastingKeys(t, testRedis, "*tenant:"+id+":*"); !slices.Equal(after, before) || tokensLeft(t, key) != 10 {
		t.Errorf("there are %q, before there were %q", after, before)
	}
	t.Run("an empty one, chunked, is accepted", func(t *testing.T) {
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("{} counts as none", func(t *testing.T) {
		for _, body := range []string{"{}", " {}\r\n", "\t{ \n }", strings.Repeat(" ", maxEmptyObject-2) + "{}"} {
			s.do(t, "GET", "/"+id+"/auth/key", body, bearer(key)).want(t, 200, "")
			s.admin(t, "POST", "/"+id+"/admin/tokens", body).want(t, 201, "")
			s.admin(t, "DELETE", "/"+id+"/admin/tokens", body).want(t, 204, "")
			s.admin(t, "GET", "/admin/tenants", body).want(t, 200, "")
			s.do(t, "GET", "/healthz", body).want(t, 200, "")
		}
		c := s.dial(t)
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
		if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("got %q", got)
		}
	})
	s.do(t, "POST", "/"+id+"/auth/anonymous", "anything").want(t, 200, "")
	s.do(t, "POST", "/"+id+"/auth/verify", "anything", bearer(key)).want(t, 200, "")
}

// A compressed body, or one that starts with a byte order mark, gets an error that names what is wrong.
func TestEncodedBodies(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.login(t, id)
	const coded = `{"error":"Content-Encoding is not supported: send the body as it is"}`
	for _, coding := range []string{"gzip", "br", "identity"} {
		s.consume(t, id, key, "\x1f\x8b\x08", "Content-Encoding: "+coding).want(t, 415, coded)
		s.consume(t, id, key, `{"tokens":1}`, "Content-Encoding: "+coding).want(t, 415, coded)
		s.putConfig(t, id, `{}`, "Content-Encoding: "+coding).want(t, 415, coded)
		s.admin(t, "POST", "/admin/tenants", `{}`, "Content-Encoding: "+coding).want(t, 415, coded)
	}
	const mark = "Invalid JSON: it starts with a byte order mark"
	for _, body := range []string{"\ufeff{\"tokens\":1}", "\xff\xfe{\x00", "\xfe\xff\x00{", "\x00\x00\xfe\xff\x00\x00\x00{"} {
		s.consume(t, id, key, body).wantError(t, 400, mark)
		s.admin(t, "PUT", "/"+id+"/admin/config", body).wantError(t, 400, mark)
	}
	if tokensLeft(t, key) != 10 {
		t.Errorf("%d tokens are left", tokensLeft(t, key))
	}
	direct := newTenantIn(t, testRedis, "\ufeff{}")
	s.do(t, "POST", "/"+direct+"/auth/anonymous", "").want(t, 500, "")
	if s.log.Count("tenant "+direct+" is broken: Invalid config: it is not valid JSON: it starts with a byte order mark\n") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

// The metrics token opens /metrics and nothing else.
func TestMetricsToken(t *testing.T) {
	t.Parallel()
	id := newTenant(t, 10)
	const token = "metrics-token-0123456789"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{"METRICS_TOKEN=" + token, "METRICS_TOKEN_FILE=" + file} {
		s := newService(t, setting, trustTest)
		metrics := s.do(t, "GET", "/metrics", "", bearer(token))
		if metrics.status != 200 || !strings.Contains(metrics.body, "\ngo_goroutines ") {
			t.Errorf("%s: %d %s", setting, metrics.status, metrics.body)
		}
		s.admin(t, "GET", "/healthz", "").want(t, 200, "")
		if s.sample(t, "go_goroutines") < 1 {
			t.Error("the operator's token does not open /metrics")
		}
		for _, route := range new(server).routes() {
			if strings.HasSuffix(route.pattern, " /metrics") || strings.HasSuffix(route.pattern, "z") {
				continue
			}
			method, path, found := strings.Cut(route.pattern, " ")
			if !found {
				method, path = "GET", route.pattern
			}
			open := []string{"anonymous", "google", "apple", "openapi.json", "prices", "stripe"} // or by a signature
			if slices.Contains(open, path[strings.LastIndexByte(path, '/')+1:]) {
				continue
			}
			path = strings.NewReplacer("{tenantId}", id, "{apiKey}", someKey, "{etag}", "a").Replace(path)
			status := 401
			if route.access.browser && !strings.Contains(route.pattern, "{tenantId}") {
				status = 400 // the tenant default, which does not exist
			}
			s.do(t, method, path, "", openingOf(path, bearer(token), fromElsewhere())...).want(t, status, "")
		}
		for _, wrong := range []string{"", token + "x", strings.ToUpper(token), someKey} {
			s.do(t, "GET", "/metrics", "", bearer(wrong)).want(t, 401, "")
		}
		if s.log.Count(token) != 0 {
			t.Errorf("the token is in the log:\n%s", s.log)
		}
	}
	s := newService(t)
	for _, wrong := range []string{"", " ", token} {
		s.do(t, "GET", "/metrics", "", "Authorization: Bearer "+wrong).want(t, 401, "")
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

func TestAnonymousLogin(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 7)
	shape := regexp.MustCompile(`^\{"apiKey":"temp_` + uuidPattern + `","tokensLeft":7\}\n$`)
	for _, body := range []string{"", "{", `{"userId":"x"}`, strings.Repeat("x", maxBodyBytes+1)} {
		got := s.do(t, "POST", "/"+id+"/auth/anonymous", body)
		got.want(t, 200, "")
		if !shape.MatchString(got.body) {
			t.Errorf("got %q", got.body)
		}
	}
	closed := newTenantIn(t, testRedis, `{"user_groups":{"pro":{"tokens":1}}}`)
	s.do(t, "POST", "/"+closed+"/auth/anonymous", "").want(t, 403, `{"error":"Anonymous login is disabled"}`)
	poor := newTenantIn(t, testRedis, `{"user_groups":{"anonymous":{}}}`)
	s.do(t, "POST", "/"+poor+"/auth/anonymous", "").want(t, 200, "")
}

// One address may log in that many times a minute, counted over all processes.
func TestLoginLimit(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	services := newServices(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=3", "TRUSTED_PROXIES=127.0.0.0/8")
	login := func(i int, from string) reply {
		return services[i%2].do(t, "POST", "/abc/auth/anonymous", "", "X-Forwarded-For: "+from)
	}
	t.Run("refused beyond the limit", func(t *testing.T) {
		for i := range 3 {
			login(i, "192.0.2.1").want(t, 200, "")
		}
		for i := range 4 {
			got := login(i, "192.0.2.1")
			got.want(t, 429, `{"error":"Too Many Requests"}`)
			if after := seconds(t, got, "Retry-After"); after < 30 || after > 60 {
				t.Errorf("Retry-After is %d", after)
			}
		}
		if n := r.Int(t, "LLEN", "login:192.0.2.1"); n != 3 {
			t.Errorf("%d logins are in the log, want 3", n)
		}
		if ttl := r.Int(t, "PTTL", "login:192.0.2.1"); ttl < 1 || ttl > 60_000 {
			t.Errorf("the log of logins lives for %d ms", ttl)
		}
		if n := len(r.Keys(t, "apiKey:*")); n != 3 {
			t.Errorf("there are %d API keys, want 3", n)
		}
		login(0, "192.0.2.2").want(t, 200, "")
	})
	t.Run("the window slides", func(t *testing.T) { // once the oldest login is a minute ago, one more is accepted, and only one
		r.Do(t, "LSET", "login:192.0.2.1", 0, time.Now().UnixMicro()-60_000_000)
		login(0, "192.0.2.1").want(t, 200, "")
		login(1, "192.0.2.1").want(t, 429, "")
	})
	t.Run("IPv6 addresses count by their first 64 bits", func(t *testing.T) {
		for i := range 3 {
			login(i, fmt.Sprintf("2001:db8:0:1::%d", i)).want(t, 200, "")
		}
		login(0, "2001:db8:0:1:ffff::").want(t, 429, "")
		login(0, "2001:db8:0:2::").want(t, 200, "")
	})
	t.Run("0 is no limit", func(t *testing.T) {
		unlimited := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=0")
		for range 5 {
			unlimited.login(t, "abc")
		}
	})
}

// seconds returns the value of a header that is a whole number.
func seconds(t *testing.T, got reply, header string) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(got.header.Get(header), "%d", &n); err != nil {
		t.Errorf("%s is %q", header, got.header.Get(header))
	}
	return n
}

// tenantRoute is a request that succeeds with the right credential, an API key or the admin token.
type tenantRoute struct {
	method, path, body string
	status             int
	admin              bool
}

// send sends the request with a prefix and that API key, or with the admin token if it is an admin's.
func (r tenantRoute) send(t *testing.T, s *service, prefix, key string) reply {
	t.Helper()
	if r.admin {
		return s.admin(t, r.method, prefix+r.path, r.body)
	}
	return s.do(t, r.method, prefix+r.path, r.body, bearer(key))
}

// Every tenant route exists with the prefix, and without it for the tenant default; tenants are kept apart.
func TestTenants(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const config = `{"user_groups":{"anonymous":{"tokens":5}}}`
	routes := []tenantRoute{
		{"POST", "/auth/anonymous", "", 200, false},
		{"GET", "/auth/key", "", 200, false},
		{"POST", "/tokens/consume", "", 200, false},
		{"GET", "/admin/config", "", 200, true},
		{"PUT", "/admin/config", `{"config":` + config + `}`, 200, true},
		{"POST", "/admin/keys", `{"userId":"u","group":"anonymous"}`, 201, true},
	}
	t.Run("a tenant that does not exist", func(t *testing.T) { // default is one until somebody creates it
		for _, prefix := range []string{"", "/default", "/nobody"} {
			for _, route := range routes {
				route.send(t, s, prefix, someKey).wantError(t, 400, "Invalid tenant ID")
			}
		}
		if s.log.Count("nobody") > 0 {
			t.Error("the log names a tenant that does not exist")
		}
	})
	r.Do(t, "SET", "tenant:default:config", config)
	r.Do(t, "SET", "tenant:admin:config", config)
	for _, test := range []struct {
		name, prefix, id, other string
		left                    int // once 1 was charged
	}{
		{"no prefix", "", "default", "/abc", 4},
		{"default", "/default", "default", "/abc", 4},
		{"a name that is also a route's", "/admin", "admin", "/abc", 4},
		{"another", "/abc", "abc", "/default", 99},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := s.do(t, "POST", test.prefix+"/auth/anonymous", "").text(t, "apiKey")
			for _, route := range routes {
				route.send(t, s, test.prefix, key).want(t, route.status, "")
			}
			if s.loads(test.id) == 0 {
				t.Errorf("loading the config of %s is not logged", test.id)
			}
			// Another tenant's key is as good as none.
			for _, route := range routes[1:3] {
				route.send(t, s, test.other, key).want(t, 401, `{"error":"Unauthorized"}`)
			}
			if left := tokensLeftIn(t, r, key); left != test.left {
				t.Errorf("%d tokens are left, want %d", left, test.left)
			}
		})
	}
}

// What no route serves has a response in JSON too, and never a redirect.
func TestNoRoute(t *testing.T) {
	t.Parallel()
	s := newService(t)
	paths := []string{
		"/", "/x", "/abc", "/abc/", "/abc/auth", "/abc/auth/anonymous/", "/abc/auth/anonymous/x", "//abc/auth/anonymous",
		"/abc//auth/anonymous", "/abc/../abc/auth/anonymous", "/./auth/anonymous", "/healthz/", "/abc/healthz", "/HEALTHZ", "/a/b/c/d/e",
	}
	for _, path := range paths {
		for _, method := range []string{"GET", "POST"} {
			got := s.do(t, method, path, "")
			got.want(t, 404, `{"error":"Not found"}`)
			got.wantHeader(t, "Location", "")
		}
	}
	methods := []struct{ method, path, allow string }{
		{"GET", "/abc/auth/anonymous", "POST"},
		{"DELETE", "/auth/anonymous", "POST"},
		{"POST", "/abc/auth/key", "GET, HEAD"},
		{"POST", "/abc/admin/config", "GET, HEAD, PUT"},
		{"POST", "/healthz", "GET, HEAD"},
		{"BREW", "/readyz", "GET, HEAD"},
	}
	for _, test := range methods {
		got := s.do(t, test.method, test.path, "")
		got.want(t, 405, `{"error":"Method not allowed"}`)
		got.wantHeader(t, "Allow", test.allow)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.do(t, "GET", "/healthz", "").want(t, 200, `{"status":"ok"}`)
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
	if s.log.Count("Loaded") > 0 {
		t.Error("they are no tenant routes, but a config was loaded")
	}
}

func TestConsume(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	t.Run("a small balance", func(t *testing.T) {
		key := s.login(t, id)
		for _, test := range []struct {
			body   string
			status int
			want   string
		}{
			{"", 200, `{"tokensLeft":9}`},
			{`{"tokens":3}`, 200, `{"tokensLeft":6}`},
			{" {\n\t\"tokens\" : 1 }\r\n", 200, `{"tokensLeft":5}`},
			{`{"\u0074okens":1}`, 200, `{"tokensLeft":4}`},
			{`{"tokens":5}`, 402, `{"error":"Payment Required","tokensLeft":4}`},
			{`{"tokens":9007199254740991}`, 402, `{"error":"Payment Required","tokensLeft":4}`},
			{`{"tokens":4}`, 200, `{"tokensLeft":0}`},
			{"", 402, `{"error":"Payment Required","tokensLeft":0}`},
		} {
			s.consume(t, id, key, test.body).want(t, test.status, test.want)
		}
	})
	t.Run("the largest balance is exact to the last token", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"pro","tokens":9007199254740991`)
		s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":9007199254740990}`)
		s.consume(t, id, key, `{"tokens":9007199254740991}`).want(t, 402, `{"error":"Payment Required","tokensLeft":9007199254740990}`)
		s.consume(t, id, key, `{"tokens":9007199254740989}`).want(t, 200, `{"tokensLeft":1}`)
	})
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	id := limitedTenant(t, 3, 1000)
	key := s.login(t, id)
	other := s.issue(t, id, `"userId":"u","group":"pro"`)

	t.Run("the first outcome again", func(t *testing.T) {
		first := s.consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
		first.want(t, 200, `{"tokensLeft":900}`)
		first.wantHeader(t, "Idempotent-Replayed", "")
		s.consume(t, id, key, `{"tokens":50}`).want(t, 200, `{"tokensLeft":850}`)
		testRedis.Do(t, "SCRIPT", "FLUSH")
		for i := range 6 { // more often than the rate limit allows: a replay uses nothing of it
			again := services[i%2].consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
			again.want(t, 200, `{"tokensLeft":900}`)
			again.wantHeader(t, "Idempotent-Replayed", "true")
			again.wantHeader(t, "X-RateLimit-Remaining-Requests", "1")
		}
		s.consume(t, id, key, `{"tokens":101}`, retryKey+"a b~!").
			want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
		if left := tokensLeft(t, key); left != 850 {
			t.Errorf("%d tokens are left, want 850", left)
		}
	})
	t.Run("what is the same charge", func(t *testing.T) { // an empty body is the amount 1
		s.consume(t, id, key, "", retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
		s.consume(t, id, key, `{"tokens":1}`, retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
		s.consume(t, id, other, "", retryKey+"one").want(t, 200, `{"tokensLeft":4999}`)
		s.consume(t, id, other, "", retryKey+"ONE").want(t, 200, `{"tokensLeft":4998}`)
	})
	t.Run("remembered for a day", func(t *testing.T) {
		if ttl := testRedis.Int(t, "TTL", "{apiKey:"+key+"}:charge:"+shortHash("one")); ttl < 86400-600 || ttl > 86400 {
			t.Errorf("an outcome is remembered for %d s", ttl)
		}
	})
	t.Run("what was refused is not remembered", func(t *testing.T) {
		s.consume(t, id, key, "", retryKey+"late").want(t, 429, `{"error":"Too Many Requests"}`)
		testRedis.Do(t, "DEL", "{apiKey:"+key+"}:rate")
		s.consume(t, id, key, "", retryKey+"late").want(t, 200, `{"tokensLeft":848}`)
		s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 402, `{"error":"Payment Required","tokensLeft":4998}`)
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+other, `{"addTokens":1}`).want(t, 200, "")
		s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 200, `{"tokensLeft":0}`)
	})
	t.Run("a balance that Lua would write with an exponent", func(t *testing.T) {
		rich := s.issue(t, id, `"userId":"u","group":"pro","tokens":9007199254740991`)
		for range 2 {
			s.consume(t, id, rich, "", retryKey+"rich").want(t, 200, `{"tokensLeft":9007199254740990}`)
		}
	})
	t.Run("a key that is gone is gone, even for those who retry", func(t *testing.T) {
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+other, "").want(t, 204, "")
		s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 401, "")
	})
}

// wantRateHeaders checks the headers of a rate limit of 3 requests in 1,000 s, of which that many remain.
// The next one becomes free late in the window.
func (got reply) wantRateHeaders(t *testing.T, status, remaining int) {
	t.Helper()
	got.want(t, status, "")
	got.wantHeader(t, "RateLimit-Policy", `"requests";q=3;w=1000`)
	got.wantHeader(t, "X-RateLimit-Limit-Requests", "3")
	got.wantHeader(t, "X-RateLimit-Remaining-Requests", strconv.Itoa(remaining))
	least, most := 900, 1000
	if remaining == 3 {
		least, most = 0, 0
	}
	var left, wait int
	limit := got.header.Get("RateLimit")
	if _, err := fmt.Sscanf(limit, `"requests";r=%d;t=%d`, &left, &wait); err != nil || left != remaining || wait < least || wait > most {
		t.Errorf("RateLimit is %q: %v", limit, err)
	}
}

func TestRateLimitHeaders(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := limitedTenant(t, 3, 1000)
	key := s.login(t, id)
	verify := func(t *testing.T, query string) reply {
		t.Helper()
		return s.do(t, "GET", "/"+id+"/auth/verify"+query, "", bearer(key))
	}
	t.Run("what is refused for its balance uses nothing", func(t *testing.T) {
		s.consume(t, id, key, `{"tokens":1001}`).wantRateHeaders(t, 402, 3)
		verify(t, "?tokens=1001").wantRateHeaders(t, 402, 3)
	})
	t.Run("what is accepted counts", func(t *testing.T) {
		s.consume(t, id, key, "").wantRateHeaders(t, 200, 2)
		verify(t, "").wantRateHeaders(t, 200, 1)
		s.consume(t, id, key, `{"tokens":1001}`).wantRateHeaders(t, 402, 1)
		s.consume(t, id, key, "").wantRateHeaders(t, 200, 0)
	})
	t.Run("refused beyond the limit", func(t *testing.T) {
		for range 5 {
			refused := s.consume(t, id, key, "")
			refused.wantRateHeaders(t, 429, 0)
			refused.want(t, 429, `{"error":"Too Many Requests"}`)
			if after := seconds(t, refused, "Retry-After"); after < 900 || after > 1000 {
				t.Errorf("Retry-After is %d", after)
			}
			verify(t, "?tokens=1001").wantRateHeaders(t, 429, 0)
		}
		if left := tokensLeft(t, key); left != 998 {
			t.Errorf("%d tokens are left, want 998", left)
		}
	})
	t.Run("looking at the key is free", func(t *testing.T) {
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
		if n := testRedis.Int(t, "LLEN", "{apiKey:"+key+"}:rate"); n != 3 {
			t.Errorf("%d requests are in the log, want 3", n)
		}
		if ttl := testRedis.Int(t, "PTTL", "{apiKey:"+key+"}:rate"); ttl < 1 || ttl > 1_000_000 {
			t.Errorf("the log lives for %d ms", ttl)
		}
	})
	t.Run("a group without a limit", func(t *testing.T) {
		free := s.issue(t, id, `"userId":"u","group":"pro"`)
		for name := range s.consume(t, id, free, "").header {
			if strings.Contains(strings.ToLower(name), "ratelimit") {
				t.Errorf("there is %s", name)
			}
		}
		if testRedis.Int(t, "EXISTS", "{apiKey:"+free+"}:rate") != 0 {
			t.Error("there is a log")
		}
	})
}

// Malformed headers and queries are a 400 that names them, and take nothing.
func TestBadHeadersAndQueries(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := limitedTenant(t, 100, 100)
	key := s.login(t, id)
	for _, test := range []struct {
		name    string
		headers []string
	}{
		{"empty", []string{retryKey}},
		{"not ASCII", []string{retryKey + "é"}},
		{"not printable", []string{retryKey + "a\tb"}},
		{"too long", []string{retryKey + strings.Repeat("a", 256)}},
		{"repeated", []string{retryKey + "a", retryKey + "a"}},
	} {
		t.Run("Idempotency-Key "+test.name, func(t *testing.T) {
			s.consume(t, id, key, "", test.headers...).
				wantError(t, 400, "Idempotency-Key must be one header of 1 to 255 printable ASCII characters")
		})
	}
	s.consume(t, id, key, "", retryKey+strings.Repeat("a", 255)).want(t, 200, "")
	t.Run("a query of consume", func(t *testing.T) {
		s.do(t, "POST", "/"+id+"/tokens/consume?tokens=5", "", bearer(key)).
			wantError(t, 400, "consume takes no query: put the amount in the body")
	})
	const whole = "tokens must be a whole number ≥ 0"
	const large = "tokens must be a whole number from 0 to 9007199254740991"
	for _, test := range []struct{ query, want string }{
		{"tokens=", whole},
		{"tokens", whole},
		{"tokens=-1", whole},
		{"tokens=1.5", whole},
		{"tokens=1e3", whole},
		{"tokens=+1", whole},
		{"tokens=-0", whole},
		{"tokens=007", whole},
		{"tokens=%2B1", whole},
		{"tokens=0x1", whole},
		{"tokens=1_000", whole},
		{"tokens=one", whole},
		{"tokens=%00", whole},
		{"tokens=9007199254740992", large},
		{"tokens=99999999999999999999", large},
		{"tokens=1&tokens=1", `Query "tokens" is duplicated`},
		{"Tokens=1", `Query "Tokens" is unknown`},
		{"deny=402", "deny must be 403"},
		{"deny=", "deny must be 403"},
		{"deny=403&deny=403", `Query "deny" is duplicated`},
		{"token=1", `Query "token" is unknown`},
		{"=1", `Query "" is unknown`},
		{"a%0a=1", `Query "a\n" is unknown`},
		{"tokens=1;deny=403", "Invalid query"},
		{"tokens=%zz", "Invalid query"},
	} {
		t.Run("verify?"+test.query, func(t *testing.T) {
			s.do(t, "GET", "/"+id+"/auth/verify?"+test.query, "", bearer(key)).wantError(t, 400, test.want)
		})
	}
	if left, used := tokensLeft(t, key), testRedis.Int(t, "LLEN", "{apiKey:"+key+"}:rate"); left != 999 || used != 1 {
		t.Errorf("%d tokens are left and %d requests used, want 999 and 1", left, used)
	}
}

func TestShowKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	show := func(t *testing.T, key string) (object map[string]any) {
		t.Helper()
		got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		got.want(t, 200, "")
		if err := json.Unmarshal([]byte(got.body), &object); err != nil {
			t.Fatal(err)
		}
		if len(object) != 5 {
			t.Errorf("got %v", object)
		}
		return object
	}
	at := func(t *testing.T, object map[string]any, name string) time.Time {
		t.Helper()
		at, err := time.Parse(timeLayout, fmt.Sprint(object[name]))
		if err != nil {
			t.Error(err)
		}
		return at
	}
	lives := func(t *testing.T, object map[string]any) time.Duration {
		t.Helper()
		return at(t, object, "expiresAt").Sub(at(t, object, "createdAt")).Round(5 * time.Second)
	}
	t.Run("an anonymous key", func(t *testing.T) {
		key := s.login(t, id)
		for range 2 { // looking is free
			got := show(t, key)
			if got["userId"] != nil || got["group"] != "anonymous" || got["tokensLeft"] != 10.0 || lives(t, got) != 24*time.Hour {
				t.Errorf("got %v", got)
			}
		}
	})
	t.Run("a user's key", func(t *testing.T) {
		got := show(t, s.issue(t, id, `"userId":"ü 1","group":"pro"`))
		if got["userId"] != "ü 1" || got["group"] != "pro" || got["tokensLeft"] != 5000.0 || got["expiresAt"] != nil {
			t.Errorf("got %v", got)
		}
	})
	t.Run("one that expires", func(t *testing.T) {
		if got := show(t, s.issue(t, id, `"userId":"u","group":"pro","expiresIn":90`)); lives(t, got) != 90*time.Second {
			t.Errorf("got %v", got)
		}
	})
	t.Run("one with no tokens", func(t *testing.T) {
		if got := show(t, s.issue(t, id, `"userId":"u","group":"anonymous","tokens":0`)); got["tokensLeft"] != 0.0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("one that has expired", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1`)
		waittest.Eventually(t, 10*time.Second, func() error { return s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).is(401) })
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 2)
	key := s.login(t, id)
	verify := func(t *testing.T, method, query, key string) reply {
		t.Helper()
		return s.do(t, method, "/"+id+"/auth/verify"+query, "", bearer(key))
	}
	t.Run("every method", func(t *testing.T) {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
			got := verify(t, method, "", key)
			got.want(t, 200, `{}`)
			got.wantHeader(t, "X-Tenant-Id", id)
			got.wantHeader(t, "X-User-Group", "anonymous")
			got.wantHeader(t, "X-Tokens-Left", "2")
			if _, ok := got.header["X-User-Id"]; ok {
				t.Error("an anonymous user has an X-User-Id")
			}
		}
		if got := verify(t, "HEAD", "", key); got.status != 200 || got.body != "" {
			t.Errorf("HEAD: %+v", got)
		}
		verify(t, "GET", "?tokens=0", key).wantHeader(t, "X-Tokens-Left", "2")
	})
	t.Run("the client's own Idempotency-Key and body are not for tollgate", func(t *testing.T) {
		for i := 1; i >= 0; i-- {
			got := s.do(t, "POST", "/"+id+"/auth/verify?tokens=1", `{"tokens":`, bearer(key), retryKey+"mine")
			got.want(t, 200, `{}`)
			got.wantHeader(t, "X-Tokens-Left", fmt.Sprint(i))
		}
	})
	t.Run("no tokens left", func(t *testing.T) {
		for _, query := range []string{"", "tokens=0", "tokens=1"} {
			verify(t, "GET", "?"+query, key).want(t, 402, `{"error":"Payment Required","tokensLeft":0}`)
			got := verify(t, "GET", "?"+strings.TrimPrefix(query+"&deny=403", "&"), key)
			got.want(t, 403, `{"error":"Payment Required","tokensLeft":0}`)
			got.wantHeader(t, "X-Auth-Status", "402")
		}
	})
	t.Run("no rate left", func(t *testing.T) {
		limited := limitedTenant(t, 0, 9)
		got := s.do(t, "GET", "/"+limited+"/auth/verify?deny=403", "", bearer(s.login(t, limited)))
		got.want(t, 403, `{"error":"Too Many Requests"}`)
		got.wantHeader(t, "X-Auth-Status", "429")
		got.wantHeader(t, "Retry-After", "9")
	})
	t.Run("deny is for 402 and 429 alone", func(t *testing.T) {
		verify(t, "GET", "?deny=403", someKey).want(t, 401, "")
		s.do(t, "GET", "/nobody/auth/verify?deny=403", "", bearer(key)).want(t, 400, "")
	})
	t.Run("what a header cannot carry comes percent-encoded", func(t *testing.T) {
		odd := newTenantIn(t, testRedis,
			`{"user_groups":{"a\r\nX-User-Id: root ÿ%":{"tokens":1}," ":{"tokens":1}," a b ":{"tokens":1}}}`)
		user := s.issue(t, odd, `"userId":"ü@example.org 100%","group":"a\r\nX-User-Id: root ÿ%"`)
		got := s.do(t, "GET", "/"+odd+"/auth/verify", "", bearer(user))
		got.want(t, 200, `{}`)
		got.wantHeader(t, "X-User-Id", "%C3%BC@example.org 100%25")
		got.wantHeader(t, "X-User-Group", "a%0D%0AX-User-Id: root %C3%BF%25")
		if n := len(got.header["X-User-Id"]); n != 1 {
			t.Errorf("%d headers X-User-Id", n)
		}
		for _, test := range []struct{ group, want string }{{" ", "%20"}, {" a b ", "%20a b%20"}} {
			user := s.issue(t, odd, `"userId":"u","group":"`+test.group+`"`)
			s.do(t, "GET", "/"+odd+"/auth/verify", "", bearer(user)).wantHeader(t, "X-User-Group", test.want)
		}
	})
}

// A check with ?request= charges once for a minute.
func TestVerifyRequest(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	id := newTenant(t, 100)
	key := s.login(t, id)
	verify := func(t *testing.T, i int, query string, headers ...string) reply {
		t.Helper()
		return services[i%2].do(t, "GET", "/"+id+"/auth/verify"+query, "", append(headers, bearer(key))...)
	}
	t.Run("charged once", func(t *testing.T) {
		for i := range 4 {
			got := verify(t, i, "?tokens=2&request=r%201")
			got.want(t, 200, `{}`)
			got.wantHeader(t, "X-Tokens-Left", "98")
			got.wantHeader(t, "X-User-Group", "anonymous")
			if replayed := got.header.Get("Idempotent-Replayed"); (replayed == "true") != (i > 0) {
				t.Errorf("request %d: Idempotent-Replayed is %q", i, replayed)
			}
		}
		if tokensLeft(t, key) != 98 {
			t.Errorf("%d tokens are left", tokensLeft(t, key))
		}
	})
	t.Run("remembered for a minute", func(t *testing.T) {
		if ttl := testRedis.Int(t, "TTL", "{apiKey:"+key+"}:verify:"+shortHash("r 1")); ttl < 30 || ttl > 60 {
			t.Errorf("it is remembered for %d s", ttl)
		}
	})
	t.Run("with another amount it is refused", func(t *testing.T) {
		verify(t, 0, "?tokens=3&request=r%201").want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
		verify(t, 0, "?request=r%201").want(t, 422, "")
	})
	t.Run("another request, and a consume, is another charge", func(t *testing.T) {
		verify(t, 0, "?tokens=2&request=r+2").wantHeader(t, "X-Tokens-Left", "96")
		s.consume(t, id, key, `{"tokens":2}`, retryKey+"r 1").want(t, 200, `{"tokensLeft":94}`)
	})
	t.Run("the client's Idempotency-Key does not count", func(t *testing.T) {
		verify(t, 0, "?tokens=1", retryKey+"r 1").wantHeader(t, "X-Tokens-Left", "93")
		verify(t, 0, "?tokens=1", retryKey+"r 1").wantHeader(t, "X-Tokens-Left", "92")
	})
	t.Run("malformed", func(t *testing.T) {
		for _, query := range []string{"?request=", "?request", "?request=%C3%A9", "?request=a%0Ab", "?request=" + strings.Repeat("r", 256)} {
			verify(t, 0, query).wantError(t, 400, "request must be 1 to 255 printable ASCII characters")
		}
		verify(t, 0, "?request=a&request=a").wantError(t, 400, `Query "request" is duplicated`)
	})
	t.Run("it uses one request of the rate", func(t *testing.T) {
		limited := limitedTenant(t, 1, 1000)
		key := s.login(t, limited)
		for i := range 3 {
			services[i%2].do(t, "GET", "/"+limited+"/auth/verify?request=r", "", bearer(key)).want(t, 200, "")
		}
		s.do(t, "GET", "/"+limited+"/auth/verify?request=s", "", bearer(key)).want(t, 429, "")
	})
}

// A proxy written in Go repeats a check if its connection is cut after the charge. That is charged once if the check has
// a ?request=.
func TestVerifyRepeated(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, test := range []struct {
		name, first, second string // queries
		left                int
	}{
		{"without a request", "tokens=1", "tokens=1", 100 - 3},
		{"with one", "tokens=1&request=once", "tokens=1&request=twice", 100 - 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id := newTenant(t, 100)
			key := s.login(t, id)
			var replies atomic.Int64
			relay := redistest.NewProxy(t, &redistest.Server{Network: "tcp", Address: s.address()}, func([]byte) redistest.Fate {
				if replies.Add(1) == 2 {
					return redistest.Cut
				}
				return redistest.Pass
			})
			proxy := &http.Client{Transport: new(http.Transport)}
			for _, query := range []string{test.first, test.second} { // on one connection: only a kept one makes a Transport repeat
				r, _ := http.NewRequest("GET", fmt.Sprintf("http://%s/%s/auth/verify?%s", relay.Address, id, query), nil)
				r.Header.Set("Authorization", "Bearer "+key)
				response, err := proxy.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if response.StatusCode != 200 {
					t.Errorf("got %d", response.StatusCode)
				}
			}
			if n := replies.Load(); n != 3 || tokensLeft(t, key) != test.left {
				t.Errorf("%d responses, %d tokens are left, want 3 and %d", n, tokensLeft(t, key), test.left)
			}
		})
	}
}

// Logins that a server with a faster clock has logged count as of now.
func TestLoginLogFromTheFuture(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=3")
	const log = "login:127.0.0.1"
	for range 3 {
		r.Do(t, "RPUSH", log, time.Now().Add(time.Hour).UnixMicro())
	}
	r.Do(t, "EXPIRE", log, 3600)
	refused := s.do(t, "POST", "/abc/auth/anonymous", "")
	refused.want(t, 429, "")
	if after := seconds(t, refused, "Retry-After"); after < 1 || after > 60 {
		t.Errorf("Retry-After is %d", after)
	}
	if n, ttl := r.Int(t, "LLEN", log), r.Int(t, "PTTL", log); n != 3 || ttl > 60_000 {
		t.Errorf("%d logins are in the log, which lives for %d ms", n, ttl)
	}
	for i := range 3 {
		at := r.Int(t, "LINDEX", log, i)
		if time.Until(time.UnixMicro(int64(at))) > time.Second {
			t.Fatalf("a login is logged for %s", time.UnixMicro(int64(at)))
		}
		r.Do(t, "LSET", log, i, at-61_000_000) // a minute passes
	}
	for range 3 {
		s.login(t, "abc")
	}
	s.do(t, "POST", "/abc/auth/anonymous", "").want(t, 429, "")
}

// IPv4 proxies may be written as IPv6. A proxy that is not listed is named in the log, once, when its clients are
// refused.
func TestUntrustedProxy(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	newTenantIn(t, r, "{}") // the log says if Redis is empty
	login := func(s *service, headers ...string) reply {
		return s.do(t, "POST", "/abc/auth/anonymous", "", headers...)
	}
	const from = "X-Forwarded-For: 192.0.2."
	const warning = "[WARN] A login was refused by the limit for 127.0.0.1, which sends X-Forwarded-For"
	t.Run("listed as ::ffff:127.0.0.0/104", func(t *testing.T) {
		s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=1", "TRUSTED_PROXIES=::ffff:127.0.0.0/104")
		for i := range 3 {
			login(s, fmt.Sprint(from, i)).want(t, 200, "")
			login(s, fmt.Sprint(from, i)).want(t, 429, "")
		}
		if n := s.log.Count("[WARN] A login"); n != 0 {
			t.Errorf("log:\n%s", s.log)
		}
	})
	t.Run("not listed", func(t *testing.T) {
		s := newService(t, "REDIS_URL="+r.URL(), "LOGIN_LIMIT=1")
		login(s).want(t, 200, "")
		login(s).want(t, 429, "")
		if n := s.log.Count("[WARN] A login"); n != 0 {
			t.Errorf("without a proxy: log:\n%s", s.log)
		}
		for i := range 3 {
			login(s, fmt.Sprint(from, i)).want(t, 429, "")
		}
		if n := s.log.Count(warning); n != 1 || s.log.Count("[WARN] A login") != 1 || s.log.Count("192.0.2.") != 0 {
			t.Errorf("log:\n%s", s.log)
		}
	})
}

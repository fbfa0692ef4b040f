package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

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

func TestIdempotency(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	s := services[0]
	id := limitedTenant(t, 3, 100)
	key := s.login(t, id)

	first := s.consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
	first.want(t, 200, `{"tokensLeft":900}`)
	first.wantHeader(t, "Idempotent-Replayed", "")
	s.consume(t, id, key, `{"tokens":50}`).want(t, 200, `{"tokensLeft":850}`)
	testRedis.do(t, "SCRIPT", "FLUSH")
	for i := range 6 { // more often than the rate limit allows: a replay uses nothing of it
		again := services[i%2].consume(t, id, key, `{"tokens":100}`, retryKey+"a b~!")
		again.want(t, 200, `{"tokensLeft":900}`)
		again.wantHeader(t, "Idempotent-Replayed", "true")
		again.wantHeader(t, "X-RateLimit-Remaining-Requests", "1")
	}
	mismatch := s.consume(t, id, key, `{"tokens":101}`, retryKey+"a b~!")
	mismatch.want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
	if left := tokensLeft(t, key); left != 850 {
		t.Errorf("%d tokens are left, want 850", left)
	}
	// An empty body is the amount 1; another API key, or another case, is another charge.
	s.consume(t, id, key, "", retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
	s.consume(t, id, key, `{"tokens":1}`, retryKey+"one").want(t, 200, `{"tokensLeft":849}`)
	other := s.issue(t, id, `"userId":"u","group":"pro"`)
	s.consume(t, id, other, "", retryKey+"one").want(t, 200, `{"tokensLeft":4999}`)
	s.consume(t, id, other, "", retryKey+"ONE").want(t, 200, `{"tokensLeft":4998}`)

	ttl := testRedis.int(t, "TTL", "{apiKey:"+key+"}:charge:one")
	if ttl < 86400-60 || ttl > 86400 {
		t.Errorf("an outcome is remembered for %d s", ttl)
	}
	// What was refused is not remembered.
	s.consume(t, id, key, "", retryKey+"late").want(t, 429, `{"error":"Too Many Requests"}`)
	testRedis.do(t, "DEL", "{apiKey:"+key+"}:rate")
	s.consume(t, id, key, "", retryKey+"late").want(t, 200, `{"tokensLeft":848}`)
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 402, `{"error":"Payment Required","tokensLeft":4998}`)
	s.do(t, "PATCH", "/"+id+"/admin/keys/"+other, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 200, "")
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 200, `{"tokensLeft":0}`)
	// A balance that Lua would write with an exponent is remembered as it is.
	rich := s.issue(t, id, `"userId":"u","group":"pro","tokens":9007199254740991`)
	for range 2 {
		s.consume(t, id, rich, "", retryKey+"rich").want(t, 200, `{"tokensLeft":9007199254740990}`)
	}
	// A key that is gone is gone, also for those who retry.
	s.do(t, "DELETE", "/"+id+"/admin/keys/"+other, "", bearer(testAdminToken)).want(t, 204, "")
	s.consume(t, id, other, `{"tokens":4999}`, retryKey+"poor").want(t, 401, "")
}

func TestRateLimitHeaders(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 3, 100)
	key := s.login(t, id)
	want := func(answer reply, status int, remaining, wait string) {
		t.Helper()
		answer.want(t, status, "")
		answer.wantHeader(t, "RateLimit-Policy", `"requests";q=3;w=100`)
		answer.wantHeader(t, "RateLimit", `"requests";r=`+remaining+`;t=`+wait)
		answer.wantHeader(t, "X-RateLimit-Limit-Requests", "3")
		answer.wantHeader(t, "X-RateLimit-Remaining-Requests", remaining)
	}
	verify := func() reply { return s.do(t, "GET", "/"+id+"/auth/verify?tokens=1001", "", bearer(key)) }
	want(s.consume(t, id, key, `{"tokens":1001}`), 402, "3", "0") // refused: nothing is used
	want(verify(), 402, "3", "0")
	want(s.consume(t, id, key, ""), 200, "2", "100")
	want(s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)), 200, "1", "100")
	want(s.consume(t, id, key, `{"tokens":1001}`), 402, "1", "100")
	want(s.consume(t, id, key, ""), 200, "0", "100")
	for range 5 {
		refused := s.consume(t, id, key, "")
		want(refused, 429, "0", "100")
		refused.wantHeader(t, "Retry-After", "100")
		refused.want(t, 429, `{"error":"Too Many Requests"}`)
		want(verify(), 429, "0", "100")
	}
	if left := tokensLeft(t, key); left != 998 {
		t.Errorf("%d tokens are left, want 998", left)
	}
	// Looking at the key costs no rate.
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, "")
	if n := testRedis.int(t, "LLEN", "{apiKey:"+key+"}:rate"); n != 3 {
		t.Errorf("%d requests are in the log, want 3", n)
	}
	if ttl := testRedis.int(t, "PTTL", "{apiKey:"+key+"}:rate"); ttl < 1 || ttl > 100_000 {
		t.Errorf("the log lives for %d ms", ttl)
	}

	free := s.issue(t, id, `"userId":"u","group":"pro"`)
	for name := range s.consume(t, id, free, "").header {
		if strings.Contains(strings.ToLower(name), "ratelimit") {
			t.Errorf("without a limit there is %s", name)
		}
	}
	if testRedis.int(t, "EXISTS", "{apiKey:"+free+"}:rate") != 0 {
		t.Error("without a limit there is a log")
	}
}

// Malformed headers and queries are a 400 that names them, and take nothing.
func TestBadHeadersAndQueries(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 100, 100)
	key := s.login(t, id)
	const badKey = "Idempotency-Key must be one header of 1 to 255 printable ASCII characters"
	for _, headers := range [][]string{
		{retryKey}, {retryKey + "é"}, {retryKey + "a\tb"}, {retryKey + strings.Repeat("a", 256)}, {retryKey + "a", retryKey + "a"},
	} {
		answer := s.consume(t, id, key, "", headers...)
		answer.want(t, 400, `{"error":"`+badKey+`"}`)
	}
	s.consume(t, id, key, "", retryKey+strings.Repeat("a", 255)).want(t, 200, "")
	const whole = "tokens must be a whole number ≥ 0"
	s.do(t, "POST", "/"+id+"/tokens/consume?tokens=5", "", bearer(key)).want(t, 400, `{"error":"consume takes no query: the amount stands in the body"}`)
	for query, want := range map[string]string{
		"tokens=":                     whole,
		"tokens":                      whole,
		"tokens=-1":                   whole,
		"tokens=1.5":                  whole,
		"tokens=1e3":                  whole,
		"tokens=+1":                   whole,
		"tokens=-0":                   whole,
		"tokens=007":                  whole,
		"tokens=%2B1":                 whole,
		"tokens=0x1":                  whole,
		"tokens=1_000":                whole,
		"tokens=one":                  whole,
		"tokens=%00":                  whole,
		"tokens=9007199254740992":     "tokens must be a whole number from 0 to 9007199254740991",
		"tokens=99999999999999999999": "tokens must be a whole number from 0 to 9007199254740991",
		"tokens=1&tokens=1":           `Query "tokens" is there twice`,
		"Tokens=1":                    `Query "Tokens" is not known`,
		"deny=402":                    "deny must be 403",
		"deny=":                       "deny must be 403",
		"deny=403&deny=403":           `Query "deny" is there twice`,
		"token=1":                     `Query "token" is not known`,
		"=1":                          `Query "" is not known`,
		"a%0a=1":                      `Query "a\n" is not known`,
		"tokens=1;deny=403":           "Invalid query",
		"tokens=%zz":                  "Invalid query",
	} {
		answer := s.do(t, "GET", "/"+id+"/auth/verify?"+query, "", bearer(key))
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if left, used := tokensLeft(t, key), testRedis.int(t, "LLEN", "{apiKey:"+key+"}:rate"); left != 999 || used != 1 {
		t.Errorf("%d tokens are left and %d requests used, want 999 and 1", left, used)
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

func TestVerify(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 2)
	verify := func(method, query, key string, headers ...string) reply {
		t.Helper()
		return s.do(t, method, "/"+id+"/auth/verify"+query, "", append(headers, bearer(key))...)
	}
	key := s.login(t, id)
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
		answer := verify(method, "", key)
		answer.want(t, 200, `{}`)
		answer.wantHeader(t, "X-Tenant-Id", id)
		answer.wantHeader(t, "X-User-Group", "anonymous")
		answer.wantHeader(t, "X-Tokens-Left", "2")
		if _, ok := answer.header["X-User-Id"]; ok {
			t.Error("an anonymous user has an X-User-Id")
		}
	}
	if answer := verify("HEAD", "", key); answer.status != 200 || answer.body != "" {
		t.Errorf("HEAD: %+v", answer)
	}
	verify("GET", "?tokens=0", key).wantHeader(t, "X-Tokens-Left", "2")
	// The client's own Idempotency-Key and body are not for tollgate.
	for i := 1; i >= 0; i-- {
		answer := s.do(t, "POST", "/"+id+"/auth/verify?tokens=1", `{"tokens":`, bearer(key), retryKey+"mine")
		answer.want(t, 200, `{}`)
		answer.wantHeader(t, "X-Tokens-Left", fmt.Sprint(i))
	}
	for _, query := range []string{"", "tokens=0&", "tokens=1&"} {
		verify("GET", "?"+strings.TrimSuffix(query, "&"), key).want(t, 402, `{"error":"Payment Required","tokensLeft":0}`)
		answer := verify("GET", "?"+query+"deny=403", key)
		answer.want(t, 403, `{"error":"Payment Required","tokensLeft":0}`)
		answer.wantHeader(t, "X-Auth-Status", "402")
	}
	limited := limitedTenant(t, 0, 9)
	answer := s.do(t, "GET", "/"+limited+"/auth/verify?deny=403", "", bearer(s.login(t, limited)))
	answer.want(t, 403, `{"error":"Too Many Requests"}`)
	answer.wantHeader(t, "X-Auth-Status", "429")
	answer.wantHeader(t, "Retry-After", "9")
	verify("GET", "?deny=403", someKey).want(t, 401, "")
	s.do(t, "GET", "/nobody/auth/verify?deny=403", "", bearer(key)).want(t, 400, "")

	// What a header cannot carry as it is comes percent-encoded.
	odd := testRedis.newTenant(t, `{"user_groups":{"a\r\nX-User-Id: root ÿ%":{"tokens":1}}}`)
	user := s.issue(t, odd, `"userId":"ü@example.org 100%","group":"a\r\nX-User-Id: root ÿ%"`)
	answer = s.do(t, "GET", "/"+odd+"/auth/verify", "", bearer(user))
	answer.want(t, 200, `{}`)
	answer.wantHeader(t, "X-User-Id", "%C3%BC@example.org 100%25")
	answer.wantHeader(t, "X-User-Group", "a%0D%0AX-User-Id: root %C3%BF%25")
	for group, want := range map[string]string{"": "", " ": "%20", " a b ": "%20a b%20"} {
		if got := headerText(group); got != want {
			t.Errorf("%q in a header is %q, want %q", group, got, want)
		}
	}
	if n := len(answer.header["X-User-Id"]); n != 1 {
		t.Errorf("%d headers X-User-Id", n)
	}
}

package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestTenantLifeCycle(t *testing.T) {
	r := newRedis(t)
	services := []*service{newService(t, "REDIS_URL="+r.url()), newService(t, "REDIS_URL="+r.url())}
	s := services[0]
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":["abc"]}`)
	for _, id := range []string{"zoe", "B_2", "default"} {
		created := s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":{"user_groups":{"anonymous":{"tokens":5}}}}`)
		created.want(t, 201, `{"success":true}`)
		created.wantHeader(t, "Location", "/"+id+"/admin/config")
		for _, s := range services {
			got := s.admin(t, "GET", created.header.Get("Location"), "")
			got.want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`)
			if got.etag(t) != created.etag(t) {
				t.Errorf("created with the ETag %s, served with %s", created.etag(t), got.etag(t))
			}
		}
		s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":{}}`).want(t, 409, `{"error":"Tenant already exists"}`)
	}
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":["B_2","abc","default","zoe"]}`)
	s.admin(t, "GET", "/admin/config", "").want(t, 200, "")

	// Put straight into Redis it is served, and listed once it was replaced through PUT; nothing of it is lost.
	r.do(t, "SET", "tenant:direct:config", `{"by": "hand"}`)
	s.admin(t, "GET", "/direct/admin/config", "").want(t, 200, `{"config":{"by":"hand"}}`)
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":["B_2","abc","default","zoe"]}`)
	if n := len(s.history(t, "direct")); n != 0 {
		t.Errorf("it has %d versions", n)
	}
	s.admin(t, "PUT", "/direct/admin/config", `{"config":{"by":"PUT"}}`).want(t, 200, "")
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":["B_2","abc","default","direct","zoe"]}`)
	versions := s.history(t, "direct")
	if at, err := time.Parse("2006-01-02T15:04:05.000Z", versions[1].SavedAt); err != nil || time.Since(at) > time.Minute {
		t.Errorf("what was put straight into Redis was saved at %s", versions[1].SavedAt)
	}
	if len(versions) != 2 || versions[0].SavedBy != "operator" || versions[1].SavedBy != "redis" {
		t.Fatalf("the history is %+v", versions)
	}
	s.admin(t, "GET", "/direct/admin/config/history/"+versions[1].ETag, "").want(t, 200, `{"config":{"by":"hand"}}`)
	// What was deleted straight in Redis is not listed.
	r.do(t, "DEL", "tenant:direct:config")
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":["B_2","abc","default","zoe"]}`)
	r.do(t, "DEL", "tenants", "tenant:abc:config")
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":[]}`)

	// Deleted, it is gone for every process, its API keys and admin tokens with it, and nothing of it is left.
	key := s.login(t, "zoe")
	token := s.admin(t, "POST", "/zoe/admin/tokens", "").field(t, "adminToken").(string)
	for _, stale := range []string{`"x"`, `"x", W/` + s.admin(t, "GET", "/zoe/admin/config", "").etag(t)} {
		s.admin(t, "DELETE", "/admin/tenants/zoe", "", "If-Match: "+stale).want(t, 412, `{"error":"Config has changed"}`)
	}
	s.admin(t, "DELETE", "/admin/tenants/zoe", "", "If-Match: \"").want(t, 400, "")
	gone := s.admin(t, "DELETE", "/admin/tenants/zoe", "", `If-Match: "x", `+s.admin(t, "GET", "/zoe/admin/config", "").etag(t))
	gone.want(t, 204, "")
	s.consume(t, "zoe", key, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	services[1].wantConfig(t, "zoe", "")
	for _, s := range services {
		s.consume(t, "zoe", key, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		s.do(t, "GET", "/zoe/auth/key", "", bearer(key)).want(t, 400, `{"error":"Invalid tenant ID"}`)
		s.do(t, "GET", "/zoe/admin/config", "", bearer(token)).want(t, 401, "")
		s.admin(t, "PUT", "/zoe/admin/config", `{"config":{}}`).want(t, 400, `{"error":"Invalid tenant ID"}`)
		s.admin(t, "GET", "/zoe/admin/config/history", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		s.admin(t, "POST", "/zoe/admin/tokens", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	}
	if keys := r.do(t, "KEYS", "*tenant:zoe:*").([]any); len(keys) != 0 {
		t.Errorf("of a deleted tenant there is %q", keys)
	}
	for _, id := range []string{"zoe", "nobody", "_", "a%3Ab", "%00"} {
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	}
	// Made again, it begins anew.
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"zoe","config":{}}`).want(t, 201, "")
	if n := len(s.history(t, "zoe")); n != 1 {
		t.Errorf("a tenant that was made again has %d versions", n)
	}
	s.do(t, "GET", "/zoe/admin/config", "", bearer(token)).want(t, 401, "")
	// That holds too where its config was deleted straight in Redis, and nothing else.
	token = s.admin(t, "POST", "/zoe/admin/tokens", "").field(t, "adminToken").(string)
	r.do(t, "DEL", "tenant:zoe:config")
	for _, s := range services {
		s.wantConfig(t, "zoe", "")
	}
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"zoe","config":{}}`).want(t, 201, "")
	s.do(t, "GET", "/zoe/admin/config", "", bearer(token)).want(t, 401, "")
	if n := len(s.history(t, "zoe")); n != 1 {
		t.Errorf("a tenant that was made again has %d versions", n)
	}

	for body, want := range map[string]string{
		`{"config":{}}`:                      "tenantId is missing",
		`{"tenantId":"x"}`:                   "config is missing",
		`{"tenantId":1,"config":{}}`:         "tenantId must be a string",
		`{"tenantId":"x","config":[]}`:       "Invalid config: it must be an object",
		`{"tenantId":"x","config":{},"a":1}`: "a is not a known member",
		`{"tenantId":"a:b","config":{}}`:     "tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit",
		`{"tenantId":"","config":{}}`:        "tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit",
	} {
		answer := s.admin(t, "POST", "/admin/tenants", body)
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
}

// Of two that create the same tenant at once one wins, and the config is the winner's, whole.
func TestCreateRace(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	for range 20 {
		id := fmt.Sprintf("race%d", tenants.Add(1))
		var winner atomic.Int64
		var won atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				answer, err := services[g%2].send("POST", "/admin/tenants", fmt.Sprintf(`{"tenantId":"%s","config":{"by":%d}}`, id, g), bearer(testAdminToken))
				switch {
				case err == nil && answer.status == 201:
					won.Add(1)
					winner.Store(int64(g))
				case err != nil || answer.status != 409:
					t.Errorf("%+v, %v", answer, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d have created %s", won.Load(), id)
		}
		services[0].admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, fmt.Sprintf(`{"config":{"by":%d}}`, winner.Load()))
		if versions := services[0].history(t, id); len(versions) != 1 {
			t.Errorf("the history is %+v", versions)
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

func TestETags(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	path := "/" + id + "/admin/config"
	first := s.admin(t, "GET", path, "").etag(t)
	put := func(config string, headers ...string) reply {
		t.Helper()
		return s.admin(t, "PUT", path, `{"config":`+config+`}`, headers...)
	}
	second := put(`{"v":2}`, "If-Match: "+first)
	second.want(t, 200, `{"success":true}`)
	got := s.admin(t, "GET", path, "")
	if got.etag(t) != second.etag(t) || got.etag(t) == first {
		t.Errorf("ETag %s became %s, served as %s", first, second.etag(t), got.etag(t))
	}
	current := second.etag(t)
	for _, stale := range []string{first, `"x"`, `""`, `"*"`, `"x,` + strings.Trim(current, `"`) + `"`, `"!` + strings.Trim(current, `"`) + `"`, `"x", ` + first, "W/" + current, strings.ToUpper(current), `"` + strings.Trim(current, `"`)[1:] + `"`} {
		put(`{"v":3}`, "If-Match: "+stale).want(t, 412, `{"error":"Config has changed"}`)
	}
	for _, malformed := range []string{"", ",", `"`, `"a`, `a"b`, `"a" "b"`, "*, *", `*, "a"`, `"a"b`, `W/`, `a b`} {
		put(`{"v":3}`, "If-Match: "+malformed).want(t, 400, `{"error":"If-Match must be * or a list of ETags such as \"0a1b2c\""}`)
	}
	s.admin(t, "GET", path, "").want(t, 200, `{"config":{"v":2}}`)
	if n := len(s.history(t, id)); n != 2 {
		t.Errorf("refused changes are in the history: %d versions", n)
	}
	put(`{"v":3}`, "If-Match: *").want(t, 200, "")
	current = put(`{"v":4}`).etag(t)
	current = put(`{"v":5}`, `If-Match: "x", `+current).etag(t)
	current = put(`{"v":6}`, `If-Match: "x"`, "If-Match: "+current).etag(t)
	current = put(`{"v":6.1}`, `If-Match: , "a,b" ,, ""  , `+current+",").etag(t)
	// If-None-Match is the other way round (RFC 9110, section 13.1.2).
	for _, stale := range []string{"*", current, `"x", W/` + current} {
		put(`{"v":6.2}`, "If-None-Match: "+stale).want(t, 412, `{"error":"Config has changed"}`)
	}
	put(`{"v":6.2}`, "If-Match: "+current, "If-None-Match: "+current).want(t, 412, "")
	put(`{"v":6.2}`, `If-None-Match: "`).want(t, 400, "")
	current = put(`{"v":6.3}`, `If-None-Match: "*", `+first).etag(t)
	current = put(`{"v":7}`, "If-Match: "+strings.Trim(current, `"`)).etag(t)
	if same := put(`{ "v" : 7 }`).etag(t); same != current {
		t.Error("the same config has another ETag")
	}
	// One that was put straight into Redis, not compact, has its ETag too.
	testRedis.do(t, "SET", "tenant:"+id+":config", ` {"v": 8} `)
	s.wantConfig(t, id, `{"v":8}`)
	put(`{"v":9}`, "If-Match: "+s.admin(t, "GET", path, "").etag(t)).want(t, 200, "")

	current = s.admin(t, "GET", path, "").etag(t)
	for _, known := range []string{current, "W/" + current, `"x", ` + current, "*"} {
		answer := s.admin(t, "GET", path, "", "If-None-Match: "+known)
		if answer.status != 304 || answer.body != "" || answer.etag(t) != current || answer.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %d %q", known, answer.status, answer.body)
		}
	}
	s.admin(t, "GET", path, "", "If-None-Match: "+first).want(t, 200, `{"config":{"v":9}}`)
	s.admin(t, "GET", path, "", `If-None-Match: "`).want(t, 400, "")
	s.admin(t, "PUT", "/"+id+"x/admin/config", `{"config":{}}`, "If-Match: *").want(t, 400, `{"error":"Invalid tenant ID"}`)
}

// Of many editors who start from the same version exactly one wins.
func TestEditRace(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	id := newTenant(t, 1)
	path := "/" + id + "/admin/config"
	for round := range 5 {
		etag := services[round%2].admin(t, "GET", path, "").etag(t)
		var won, winner atomic.Int64
		var wg sync.WaitGroup
		for g := range 50 {
			wg.Go(func() {
				answer, err := services[g%2].send("PUT", path, fmt.Sprintf(`{"config":{"round":%d,"by":%d}}`, round, g), bearer(testAdminToken), "If-Match: "+etag)
				switch {
				case err == nil && answer.status == 200:
					won.Add(1)
					winner.Store(int64(g))
				case err != nil || answer.status != 412:
					t.Errorf("%+v, %v", answer, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d editors have won", won.Load())
		}
		for _, s := range services {
			s.wantConfig(t, id, fmt.Sprintf(`{"round":%d,"by":%d}`, round, winner.Load()))
		}
	}
	if n := len(services[0].history(t, id)); n != 1+5 {
		t.Errorf("after 5 changes there are %d versions", n)
	}
}

func TestHistory(t *testing.T) {
	s := newService(t)
	id := fmt.Sprintf("history%d", tenants.Add(1))
	start := time.Now().Add(-time.Millisecond)
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":{"v":0,"secret":"S3"}}`).want(t, 201, "")
	token := s.admin(t, "POST", "/"+id+"/admin/tokens", "").field(t, "adminToken").(string)
	who := fmt.Sprintf("%x", sha256.Sum256([]byte(token)))[:8]
	etags := []string{s.history(t, id)[0].ETag}
	for v := 1; v <= 30; v++ {
		by := testAdminToken
		if v%2 == 0 {
			by = token
		}
		answer := s.do(t, "PUT", "/"+id+"/admin/config", fmt.Sprintf(`{"config":{"v":%d,"n":1.50,"secret":"S3\n"}}`, v), bearer(by))
		answer.want(t, 200, "")
		etags = append(etags, strings.Trim(answer.etag(t), `"`))
	}
	versions := s.history(t, id)
	if len(versions) != 20 {
		t.Fatalf("%d versions are kept, want 20", len(versions))
	}
	before := time.Now().Add(time.Second)
	for i, version := range versions {
		v := 30 - i
		by := "operator"
		if v%2 == 0 {
			by = who
		}
		at, err := time.Parse("2006-01-02T15:04:05.000Z", version.SavedAt)
		if version.ETag != etags[v] || version.SavedBy != by || err != nil || at.After(before) || at.Before(start) {
			t.Errorf("version %d is %+v, want the ETag %s by %s", v, version, etags[v], by)
		}
		before = at
		for _, etag := range []string{version.ETag, url.PathEscape(`"` + version.ETag + `"`)} {
			s.admin(t, "GET", "/"+id+"/admin/config/history/"+etag, "").want(t, 200, fmt.Sprintf(`{"config":{"v":%d,"n":1.50,"secret":"S3\n"}}`, v))
		}
	}
	if list := s.admin(t, "GET", "/"+id+"/admin/config/history", ""); strings.Contains(list.body, "S3") {
		t.Error("the list shows a config")
	}
	if n := testRedis.int(t, "LLEN", "{tenant:"+id+":config}:history"); n != 20 {
		t.Errorf("%d versions are in Redis", n)
	}
	for _, etag := range []string{etags[0], "x", "%00", etags[30][1:], "%22"} {
		s.admin(t, "GET", "/"+id+"/admin/config/history/"+etag, "").want(t, 404, `{"error":"Not found"}`)
		s.admin(t, "POST", "/"+id+"/admin/config/history/"+etag+"/restore", "").want(t, 404, `{"error":"Not found"}`)
	}
	// Another tenant's history is not found here.
	s.admin(t, "GET", "/"+newTenant(t, 1)+"/admin/config/history/"+etags[30], "").want(t, 404, "")

	restored := s.admin(t, "POST", "/"+id+"/admin/config/history/"+etags[15]+"/restore", "")
	restored.want(t, 200, `{"success":true}`)
	if strings.Trim(restored.etag(t), `"`) != etags[15] {
		t.Errorf("restored with the ETag %s, want %s", restored.etag(t), etags[15])
	}
	s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":{"v":15,"n":1.50,"secret":"S3\n"}}`)
	if versions := s.history(t, id); len(versions) != 20 || versions[0].ETag != etags[15] || versions[1].ETag != etags[30] {
		t.Errorf("after restoring the history is %+v", versions[:2])
	}
	// The same config once more is no new version, and pushes none out.
	for range 25 {
		s.admin(t, "POST", "/"+id+"/admin/config/history/"+etags[15]+"/restore", "").want(t, 200, "")
		s.admin(t, "PUT", "/"+id+"/admin/config", `{"config":{"v":15,"n":1.50,"secret":"S3\n"}}`).want(t, 200, "")
	}
	if versions := s.history(t, id); len(versions) != 20 || versions[1].ETag != etags[30] {
		t.Errorf("after saving the same again the history is %+v", versions[:2])
	}
	// It is a change like any other: conditional, and held to the rules.
	s.admin(t, "POST", "/"+id+"/admin/config/history/"+etags[30]+"/restore", "", `If-Match: "x"`).want(t, 412, "")
	testRedis.do(t, "SET", "tenant:"+id+":config", `{}`)
	testRedis.do(t, "LSET", "{tenant:"+id+":config}:history", 3, strings.Repeat("a", 40)+" 2026-01-02T03:04:05.678Z operator\n"+`{"caching":7}`)
	s.wantConfig(t, id, `{}`)
	s.admin(t, "POST", "/"+id+"/admin/config/history/"+strings.Repeat("a", 40)+"/restore", "").want(t, 400, `{"error":"Invalid config: caching must be an object"}`)
	s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":{}}`)
}

// A config that is broken, because somebody has put it straight into Redis, is mended over HTTP, and kept in the history;
// till then what needs no config works. What is no string at all is not touched.
func TestBrokenConfigIsMended(t *testing.T) {
	s := newService(t)
	for _, broken := range []string{`{"caching":7}`, `{"a":`, "\xff\n"} {
		id := newTenant(t, 5)
		path := "/" + id + "/admin/config"
		key := s.login(t, id)
		first := s.admin(t, "PUT", path, `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`).etag(t)
		token := s.admin(t, "POST", "/"+id+"/admin/tokens", "").field(t, "adminToken").(string)
		for _, mend := range [][3]string{
			{"PUT", path, `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`},
			{"POST", path + "/history/" + strings.Trim(first, `"`) + "/restore", ""},
		} {
			testRedis.do(t, "SET", "tenant:"+id+":config", broken)
			for deadline := time.Now().Add(time.Second); s.do(t, "POST", "/"+id+"/auth/anonymous", "").status != 500; {
				if time.Now().After(deadline) {
					t.Fatal("a broken config is not noticed")
				}
			}
			for _, public := range [][2]string{{"POST", "/tokens/consume"}, {"GET", "/auth/key"}, {"GET", "/auth/verify"}} {
				s.do(t, public[0], "/"+id+public[1], "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
			}
			s.admin(t, "GET", path, "").want(t, 500, "")
			s.admin(t, "POST", "/"+id+"/admin/keys", `{"userId":"u","group":"anonymous"}`).want(t, 500, "")
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"anonymous"}`).want(t, 500, "")
			s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").want(t, 200, "")
			s.admin(t, "PUT", path, `{"config":7}`).want(t, 400, "")
			s.do(t, mend[0], mend[1], mend[2], bearer(token)).want(t, 200, `{"success":true}`)
			s.login(t, id)
			versions := s.history(t, id)
			if versions[1].SavedBy != "redis" || versions[1].ETag != fmt.Sprintf("%x", sha1.Sum([]byte(broken))) {
				t.Errorf("the broken config is not in the history: %+v", versions)
			}
			s.admin(t, "POST", path+"/history/"+versions[1].ETag+"/restore", "").want(t, 400, "")
		}
		if strings.HasPrefix(broken, `{"c`) {
			s.admin(t, "GET", path+"/history/"+s.history(t, id)[1].ETag, "").want(t, 200, `{"config":`+broken+`}`)
		} else {
			answer := s.admin(t, "GET", path+"/history/"+s.history(t, id)[1].ETag, "")
			answer.want(t, 400, "")
			if !strings.HasPrefix(answer.field(t, "error").(string), "Invalid config: it is no JSON: ") {
				t.Errorf("got %s", answer.body)
			}
		}
	}
	id := newTenant(t, 5)
	testRedis.do(t, "DEL", "tenant:"+id+":config")
	testRedis.do(t, "RPUSH", "tenant:"+id+":config", "junk")
	s.admin(t, "PUT", "/"+id+"/admin/config", `{"config":{}}`).want(t, 500, "")
	if testRedis.string(t, "LINDEX", "tenant:"+id+":config", 0) != "junk" {
		t.Error("what is no string was overwritten")
	}
}

// No secret of a config is shown but by the routes that answer the config.
func TestConfigSecrets(t *testing.T) {
	s := newService(t)
	id := fmt.Sprintf("secrets%d", tenants.Add(1))
	const config = `{"auth":{"x":{"client_secret":"S3CRET"}},"user_groups":{"anonymous":{"tokens":5}}}`
	path := "/" + id + "/admin/config"
	answers := []reply{
		s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`),
		s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`),
		s.admin(t, "PUT", path, `{"config":`+config+`}`),
		s.admin(t, "PUT", path, `{"config":{"auth":{"x":{"client_secret":["S3CRET"]}}}}`),
		s.admin(t, "PUT", path, `{"config":{"auth":{"x":{"client_secret":"S3CRET",}}}}`),
		s.admin(t, "PUT", path, `{"config":`+config+`}`, `If-Match: "x"`),
		s.admin(t, "GET", path+"/history", ""),
		s.admin(t, "POST", path+"/history/"+s.history(t, id)[0].ETag+"/restore", ""),
		s.do(t, "POST", "/"+id+"/auth/anonymous", ""),
		s.admin(t, "GET", "/admin/tenants", ""),
		s.admin(t, "DELETE", "/admin/tenants/"+id, "", `If-Match: "x"`),
		s.admin(t, "DELETE", "/admin/tenants/"+id, ""),
	}
	for i, answer := range answers {
		if strings.Contains(answer.body+fmt.Sprint(answer.header), "S3CRET") {
			t.Errorf("answer %d shows a secret: %+v", i, answer)
		}
	}
	if strings.Contains(s.log.String(), "S3CRET") {
		t.Errorf("the log shows a secret:\n%s", s.log)
	}
}

// Deleting a tenant whose config was deleted straight in Redis leaves nothing of it behind.
func TestDeleteRemains(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	s.admin(t, "PUT", "/"+id+"/admin/config", `{"config":{}}`).want(t, 200, "")
	s.admin(t, "POST", "/"+id+"/admin/tokens", "").want(t, 201, "")
	testRedis.do(t, "DEL", "tenant:"+id+":config")
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	if keys := testRedis.do(t, "KEYS", "*tenant:"+id+":*").([]any); len(keys) != 0 || testRedis.int(t, "SISMEMBER", "tenants", id) != 0 {
		t.Errorf("there is still %q", keys)
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

func TestKeyAdministration(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	s := services[0]
	id, other := newTenant(t, 100), newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	path := "/admin/keys/" + key
	admin := func(method, tenant, body string) reply {
		t.Helper()
		return s.do(t, method, "/"+tenant+path, body, bearer(testAdminToken))
	}
	own := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
	admin("GET", id, "").want(t, 200, strings.TrimSpace(own.body))
	expires := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key)

	steps := []struct {
		body, group string
		left        int
	}{
		{`{"tokens":10,"group":"pro"}`, "pro", 10},
		{`{"addTokens":5}`, "pro", 15},
		{`{"addTokens":-15,"group":"anonymous"}`, "anonymous", 0},
		{`{"addTokens":0}`, "anonymous", 0},
		{`{"addTokens":9007199254740991}`, "anonymous", maxAmount},
		{`{}`, "anonymous", maxAmount},
		{`{"group":"pro"}`, "pro", maxAmount},
	}
	for _, step := range steps {
		answer := admin("PATCH", id, step.body)
		answer.want(t, 200, "")
		want := fmt.Sprintf(`{"userId":"u","group":"%s",`, step.group)
		if !strings.HasPrefix(answer.body, want) || !strings.HasSuffix(answer.body, fmt.Sprintf(`"tokensLeft":%d}`+"\n", step.left)) {
			t.Errorf("%s: got %s", step.body, answer.body)
		}
		admin("GET", id, "").want(t, 200, strings.TrimSpace(answer.body))
	}
	admin("PATCH", id, `{"addTokens":1}`).want(t, 400, `{"error":"addTokens must leave a balance from 0 to 9007199254740991"}`)
	admin("PATCH", id, `{"tokens":5}`).want(t, 200, "")
	admin("PATCH", id, `{"addTokens":-6,"group":"anonymous"}`).want(t, 400, `{"error":"addTokens must leave a balance from 0 to 9007199254740991"}`)
	for body, want := range map[string]string{
		`{"tokens":1,"addTokens":1}`:     "addTokens must not be given with the other of addTokens and tokens",
		`{"tokens":-1}`:                  "tokens must be a whole number ≥ 0",
		`{"tokens":1.5}`:                 "tokens must be a whole number ≥ 0",
		`{"tokens":null}`:                "tokens must be a whole number ≥ 0",
		`{"addTokens":"1"}`:              "addTokens must be a whole number ≥ -9007199254740991",
		`{"addTokens":9007199254740992}`: "addTokens must be a whole number from -9007199254740991 to 9007199254740991",
		`{"group":"nobody"}`:             "group is not one of the tenant's user_groups",
		`{"group":null}`:                 "group must be a string",
		`{"userId":"x"}`:                 "userId is not a known member",
		`{"tokens":1,"tokens":1}`:        "tokens is there twice",
		``:                               "Invalid JSON: unexpected end of JSON input at byte 0",
	} {
		answer := admin("PATCH", id, body)
		answer.want(t, 400, "")
		if got := answer.field(t, "error"); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
	if got := testRedis.string(t, "HGET", "apiKey:"+key, "group"); tokensLeft(t, key) != 5 || got != "pro" {
		t.Errorf("what was refused has changed the key: %d tokens, group %s", tokensLeft(t, key), got)
	}
	if got := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key); got != expires {
		t.Errorf("the key expires at %d, before the changes at %d", got, expires)
	}

	// Another tenant's key, one that is not there and one that cannot be: 404, and untouched.
	before := testRedis.string(t, "DUMP", "apiKey:"+key)
	for _, test := range []struct{ tenant, path string }{
		{other, path}, {id, "/admin/keys/" + someKey}, {id, "/admin/keys/x"}, {id, "/admin/keys/a%2Fb"}, {id, "/admin/keys/%00"}, {id, "/admin/keys/" + key + "x"},
	} {
		for method, body := range map[string]string{"GET": "", "PATCH": `{"tokens":1}`, "DELETE": ""} {
			s.do(t, method, "/"+test.tenant+test.path, body, bearer(testAdminToken)).want(t, 404, `{"error":"Not found"}`)
		}
	}
	if testRedis.string(t, "DUMP", "apiKey:"+key) != before || testRedis.int(t, "EXISTS", "apiKey:"+someKey) != 0 {
		t.Error("another tenant's admin has changed the key")
	}
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		s.do(t, method, "/"+id+path, "", bearer(key)).want(t, 401, "")
		s.do(t, method, "/"+id+"x"+path, "", bearer(testAdminToken)).want(t, 400, `{"error":"Invalid tenant ID"}`)
	}

	// A revoked key is dead for every process at once, and nothing of its rate is left.
	testRedis.do(t, "RPUSH", "{apiKey:"+key+"}:rate", 1)
	services[1].consume(t, id, key, "").want(t, 200, "")
	gone := admin("DELETE", id, "")
	gone.want(t, 204, "")
	if gone.body != "" {
		t.Errorf("204 with a body: %q", gone.body)
	}
	for _, s := range services {
		s.consume(t, id, key, "").want(t, 401, "")
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 401, "")
	}
	if n := testRedis.int(t, "EXISTS", "apiKey:"+key, "{apiKey:"+key+"}:rate"); n != 0 {
		t.Error("something of a revoked key is left")
	}
	admin("DELETE", id, "").want(t, 404, "")
}

// A tenant's admin token opens that tenant's admin routes and nothing else.
func TestTenantAdmins(t *testing.T) {
	s, other := newService(t), newService(t)
	ids := []string{newTenant(t, 10), newTenant(t, 10)}
	tokens := make([]string, 2)
	for i, id := range ids {
		answer := s.admin(t, "POST", "/"+id+"/admin/tokens", "")
		answer.want(t, 201, "")
		tokens[i] = answer.field(t, "adminToken").(string)
		if !validToken(tokens[i], "adm_") {
			t.Errorf("the token is %q", tokens[i])
		}
		hash := fmt.Sprintf("%x", sha256.Sum256([]byte(tokens[i])))
		if testRedis.int(t, "HEXISTS", "{tenant:"+id+":config}:adminTokens", hash) != 1 || testRedis.int(t, "HLEN", "{tenant:"+id+":config}:adminTokens") != 1 {
			t.Error("it is not kept as its SHA-256")
		}
		at := testRedis.string(t, "HGET", "{tenant:"+id+":config}:adminTokens", hash)
		if _, err := time.Parse("2006-01-02T15:04:05.000Z", at); err != nil {
			t.Errorf("it was made at %q", at)
		}
	}
	etag := s.admin(t, "PUT", "/"+ids[0]+"/admin/config", `{"config":{"user_groups":{"anonymous":{"tokens":10}}}}`).etag(t)
	key := s.login(t, ids[0])
	path := "/admin/config/history/" + strings.Trim(etag, `"`)
	routes := []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/admin/config", "", 200},
		{"PUT", "/admin/config", `{"config":{"user_groups":{"anonymous":{"tokens":10}}}}`, 200},
		{"GET", "/admin/config/history", "", 200},
		{"GET", path, "", 200},
		{"POST", path + "/restore", "", 200},
		{"POST", "/admin/keys", `{"userId":"u","group":"anonymous"}`, 201},
		{"GET", "/admin/keys/" + key, "", 200},
		{"PATCH", "/admin/keys/" + key, `{"tokens":3}`, 200},
		{"DELETE", "/admin/keys/" + key, "", 204},
		{"POST", "/admin/tokens", "", 201},
		{"DELETE", "/admin/tokens", "", 204},
	}
	other.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 200, "")
	// The list has every admin route of a tenant that there is.
	listed := make(map[string]bool)
	for _, route := range routes {
		pattern := strings.ReplaceAll(strings.ReplaceAll(route.path, key, "{apiKey}"), strings.Trim(etag, `"`), "{etag}")
		listed[route.method+" /{tenantId}"+pattern] = true
	}
	for _, route := range new(server).table() {
		if strings.Contains(route.pattern, "/{tenantId}/admin/") && !listed[route.pattern] {
			t.Errorf("%s is not tested", route.pattern)
		}
	}
	dump := func() string {
		var all string
		for _, key := range []string{"tenant:" + ids[0] + ":config", "{tenant:" + ids[0] + ":config}:history", "{tenant:" + ids[0] + ":config}:adminTokens", "apiKey:" + key} {
			all += testRedis.string(t, "DUMP", key)
		}
		return all
	}
	before := dump()
	for _, wrong := range []string{tokens[1], key, someKey, "adm_" + someKey[5:], tokens[0] + "x", strings.ToUpper(tokens[0]), tokens[0][4:], "adm_"} {
		for _, route := range routes {
			answer := s.do(t, route.method, "/"+ids[0]+route.path, route.body, bearer(wrong))
			answer.want(t, 401, `{"error":"Unauthorized"}`)
			answer.wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
		}
	}
	for _, tenant := range []string{"", "/nobody", "/" + ids[1], "/a:b", "/%00"} { // nor is the tenant default theirs
		for _, route := range routes {
			s.do(t, route.method, tenant+route.path, route.body, bearer(tokens[0])).want(t, 401, `{"error":"Unauthorized"}`)
		}
	}
	for _, route := range [][3]string{
		{"GET", "/admin/tenants", ""}, {"POST", "/admin/tenants", `{"tenantId":"mine","config":{}}`}, {"DELETE", "/admin/tenants/" + ids[0], ""},
	} {
		s.do(t, route[0], route[1], route[2], bearer(tokens[0])).want(t, 401, `{"error":"Unauthorized"}`)
		s.do(t, route[0], route[1], route[2]).want(t, 401, `{"error":"Unauthorized"}`)
	}
	for _, route := range [][2]string{{"GET", "/auth/key"}, {"POST", "/tokens/consume"}, {"GET", "/auth/verify"}} {
		s.do(t, route[0], "/"+ids[0]+route[1], "", bearer(tokens[0])).want(t, 401, "")
	}
	if dump() != before {
		t.Error("somebody without the right token has changed something")
	}
	for _, route := range routes {
		answer := s.do(t, route.method, "/"+ids[0]+route.path, route.body, bearer(tokens[0]))
		answer.want(t, route.status, "")
	}
	// Deleting the tokens ended all of them, at once, for every process, and of this tenant alone.
	other.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 401, "")
	s.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 401, "")
	s.do(t, "GET", "/"+ids[1]+"/admin/config", "", bearer(tokens[1])).want(t, 200, "")
	s.admin(t, "GET", "/"+ids[0]+"/admin/config", "").want(t, 200, "")
	for _, secret := range append(tokens, testAdminToken, key) {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("a secret is in the log:\n%s", s.log)
		}
	}
}

// A token that is revoked while its request's body is on its way changes nothing, whoever owns the tenant by then.
func TestRevokedMeanwhile(t *testing.T) {
	services := []*service{newService(t), newService(t)}
	s := services[0]
	for _, again := range []bool{false, true} {
		id := fmt.Sprintf("meanwhile%d", tenants.Add(1))
		create := `{"tenantId":"` + id + `","config":{"user_groups":{"pro":{"tokens":5}}}}`
		s.admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
		user := s.issue(t, id, `"userId":"u","group":"pro"`)
		token := s.admin(t, "POST", "/"+id+"/admin/tokens", "").field(t, "adminToken").(string)
		var waiting []net.Conn
		for _, request := range [][3]string{
			{"PUT", "/admin/config", `{"config":{"mine":true}}`},
			{"POST", "/admin/keys", `{"userId":"u","group":"pro","tokens":999999}`},
			{"PATCH", "/admin/keys/" + user, `{"tokens":999999}`},
		} {
			c := s.dial(t)
			fmt.Fprintf(c, "%s /%s%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nContent-Length: %d\r\n\r\n", request[0], id, request[1], bearer(token), len(request[2]))
			time.Sleep(50 * time.Millisecond)
			waiting = append(waiting, c)
		}
		services[1].admin(t, "DELETE", "/"+id+"/admin/tokens", "").want(t, 204, "")
		if again {
			services[1].admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
			services[1].admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
		}
		bodies := []string{`{"config":{"mine":true}}`, `{"userId":"u","group":"pro","tokens":999999}`, `{"tokens":999999}`}
		for i, c := range waiting {
			fmt.Fprint(c, bodies[i])
			if answer := readAll(c); !strings.HasPrefix(answer, "HTTP/1.1 401 ") {
				t.Errorf("a revoked token: %s", answer)
			}
		}
		s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":{"user_groups":{"pro":{"tokens":5}}}}`)
		if left := tokensLeft(t, user); left != 5 {
			t.Errorf("%d tokens are left", left)
		}
	}
}

// A token that asks for another, or changes the config, while it is revoked leaves none behind and changes nothing
// afterwards, however the requests interleave.
func TestRevocationRace(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	path := "/" + id + "/admin/tokens"
	for range 50 {
		token := s.admin(t, "POST", path, "").field(t, "adminToken").(string)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					answer, err := s.send("POST", path, "", bearer(token))
					if g%2 == 0 {
						answer, err = s.send("PUT", "/"+id+"/admin/config", fmt.Sprintf(`{"config":{"g":%d,"i":%d}}`, g, i), bearer(token))
					}
					if err != nil || answer.status != 201 && answer.status != 200 {
						if err != nil || answer.status != 401 {
							t.Errorf("%+v, %v", answer, err)
						}
						return
					}
				}
			})
		}
		s.admin(t, "DELETE", path, "").want(t, 204, "")
		config := testRedis.string(t, "GET", "tenant:"+id+":config")
		wg.Wait()
		if after := testRedis.string(t, "GET", "tenant:"+id+":config"); after != config {
			t.Fatalf("a revoked token has changed the config from %s to %s", config, after)
		}
		if n := testRedis.int(t, "HLEN", "{tenant:"+id+":config}:adminTokens"); n != 0 {
			t.Fatalf("%d tokens outlive their revocation", n)
		}
	}
}

package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// wantTenants checks the list of tenants.
func (s *service) wantTenants(t *testing.T, ids ...string) {
	t.Helper()
	list := ""
	if len(ids) > 0 {
		list = `"` + strings.Join(ids, `","`) + `"`
	}
	s.admin(t, "GET", "/admin/tenants", "").want(t, 200, `{"tenants":[`+list+`]}`)
}

// createTenant creates a tenant over HTTP.
func (s *service) createTenant(t *testing.T, id, config string) reply {
	t.Helper()
	return s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`)
}

// newAdminToken creates an admin token of a tenant's own.
func (s *service) newAdminToken(t *testing.T, tenant string) string {
	t.Helper()
	got := s.admin(t, "POST", "/"+tenant+"/admin/tokens", "")
	got.want(t, 201, "")
	return got.text(t, "adminToken")
}

// tokenHash returns what Redis keeps of an admin token.
func tokenHash(token string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(token))) }

// A tenant is served by every process, and listed, from when it is created over HTTP; one that was put straight into
// Redis is served too, and listed from then on.
func TestTenantCreation(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	services := newServices(t, "REDIS_URL="+r.URL())
	s := services[0]
	s.wantTenants(t, "abc")
	for _, id := range []string{"zoe", "B_2", "default"} {
		created := s.createTenant(t, id, `{"user_groups":{"anonymous":{"tokens":5}}}`)
		created.want(t, 201, `{"success":true}`)
		created.wantHeader(t, "Location", "/"+id+"/admin/config")
		for _, s := range services {
			got := s.admin(t, "GET", created.header.Get("Location"), "")
			got.want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`)
			got.wantHeader(t, "ETag", created.etag(t))
		}
		s.createTenant(t, id, `{}`).want(t, 409, `{"error":"Tenant already exists"}`)
	}
	s.wantTenants(t, "B_2", "abc", "default", "zoe")
	s.admin(t, "GET", "/admin/config", "").want(t, 200, "")

	t.Run("put straight into Redis, it is served, and listed from then on", func(t *testing.T) {
		r.Do(t, "SET", "tenant:direct:config", `{"by": "hand"}`)
		s.wantTenants(t, "B_2", "abc", "default", "zoe")
		s.admin(t, "GET", "/direct/admin/config", "").want(t, 200, `{"config":{"by":"hand"}}`)
		s.wantTenants(t, "B_2", "abc", "default", "direct", "zoe")
		if n := len(s.history(t, "direct")); n != 0 {
			t.Errorf("it has %d versions", n)
		}
		s.putConfig(t, "direct", `{"by":"PUT"}`).want(t, 200, "")
		s.wantTenants(t, "B_2", "abc", "default", "direct", "zoe")
		versions := s.history(t, "direct")
		if len(versions) != 2 || versions[0].SavedBy != "operator" || versions[1].SavedBy != "redis" {
			t.Fatalf("the history is %+v", versions)
		}
		if at, err := time.Parse(timeLayout, versions[1].SavedAt); err != nil || time.Since(at) > time.Minute {
			t.Errorf("what was put straight into Redis was saved at %s", versions[1].SavedAt)
		}
		s.admin(t, "GET", "/direct/admin/config/history/"+versions[1].ETag, "").want(t, 200, `{"config":{"by":"hand"}}`)
	})
	t.Run("deleted straight in Redis, it is not listed", func(t *testing.T) {
		r.Do(t, "DEL", "tenant:direct:config")
		s.wantTenants(t, "B_2", "abc", "default", "zoe")
		r.Do(t, "DEL", "tenants", "tenant:abc:config")
		s.wantTenants(t)
	})
}

func TestTenantCreationRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const badID = "tenantId must be 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit"
	for _, test := range []struct{ name, body, want string }{
		{"no ID", `{"config":{}}`, "tenantId is missing"},
		{"no config", `{"tenantId":"x"}`, "config is missing"},
		{"an ID that is not a string", `{"tenantId":1,"config":{}}`, "tenantId must be a string"},
		{"a config that breaks a rule", `{"tenantId":"x","config":[]}`, "Invalid config: it must be an object"},
		{"a member too many", `{"tenantId":"x","config":{},"a":1}`, "a is not a known member"},
		{"no wrapper", `{"tenantId":"x","user_groups":{}}`, `user_groups is not a known member: put the config under "config"`},
		{"an ID with a colon", `{"tenantId":"a:b","config":{}}`, badID},
		{"an empty ID", `{"tenantId":"","config":{}}`, badID},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.admin(t, "POST", "/admin/tenants", test.body).wantError(t, 400, test.want)
		})
	}
}

// A tenant that is deleted is gone for every process, with its keys and admin tokens. One that is created again begins
// anew.
func TestTenantDeletion(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s, id := services[0], newTenantID()
	path := "/" + id + "/admin/config"
	s.createTenant(t, id, `{"user_groups":{"anonymous":{"tokens":5}}}`).want(t, 201, "")
	token := s.newAdminToken(t, id)

	t.Run("deleted on a condition", func(t *testing.T) {
		etag := s.admin(t, "GET", path, "").etag(t)
		remove := func(ifMatch string) reply {
			return s.admin(t, "DELETE", "/admin/tenants/"+id, "", "If-Match: "+ifMatch)
		}
		remove(`"x"`).want(t, 412, `{"error":"Config has changed"}`)
		remove(`"x", W/`+etag).want(t, 412, weakETag)
		s.admin(t, "DELETE", "/admin/tenants/"+id, "", "If-Match: \"").want(t, 400, "")
	})
	t.Run("deleted, it is gone for every process, with its keys and admin tokens", func(t *testing.T) {
		const gone = `{"error":"Invalid tenant ID"}`
		key := s.login(t, id)
		etag := s.admin(t, "GET", path, "").etag(t)
		s.admin(t, "DELETE", "/admin/tenants/"+id, "", `If-Match: "x", `+etag).want(t, 204, "")
		s.consume(t, id, key, "").want(t, 400, gone)
		services[1].wantConfig(t, id, "")
		for _, s := range services {
			s.consume(t, id, key, "").want(t, 400, gone)
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 400, gone)
			s.do(t, "GET", path, "", bearer(token)).want(t, 401, "")
			s.putConfig(t, id, `{}`).want(t, 400, gone)
			s.admin(t, "GET", path+"/history", "").want(t, 400, gone)
			s.admin(t, "POST", "/"+id+"/admin/tokens", "").want(t, 400, gone)
		}
		if keys := lastingKeys(t, testRedis, "*tenant:"+id+":*"); !slices.Equal(keys, []string{"{tenant:" + id + ":config}:generation"}) {
			t.Errorf("of a deleted tenant there is %q", keys)
		}
		for _, id := range []string{id, "nobody", "_", "a%3Ab", "%00"} {
			s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 400, gone)
		}
	})
	wantAnew := func(t *testing.T, token string) {
		t.Helper()
		s.createTenant(t, id, `{}`).want(t, 201, "")
		if n := len(s.history(t, id)); n != 1 {
			t.Errorf("it has %d versions", n)
		}
		s.do(t, "GET", path, "", bearer(token)).want(t, 401, "")
	}
	t.Run("created again, it begins anew", func(t *testing.T) { wantAnew(t, token) })
	t.Run("even if only its config was deleted, straight in Redis", func(t *testing.T) {
		token := s.newAdminToken(t, id)
		testRedis.Do(t, "DEL", "tenant:"+id+":config")
		for _, s := range services {
			s.wantConfig(t, id, "")
		}
		wantAnew(t, token)
	})
}

// Of those who create the same tenant at the same time one wins, and the config is the winner's, whole.
func TestCreateRace(t *testing.T) {
	services := newServices(t)
	for range 20 {
		id := newTenantID()
		winners := load{
			services: services, clients: 8, requests: 1, statuses: []int{201, 409},
			request: func(client, _ int) request {
				return request{
					method: "POST", path: "/admin/tenants", headers: []string{bearer(testAdminToken)},
					body: fmt.Sprintf(`{"tenantId":"%s","config":{"by":%d}}`, id, client),
				}
			},
		}.run(t).of("POST", 201)
		if len(winners) != 1 {
			t.Fatalf("%d have created %s", len(winners), id)
		}
		services[0].admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, fmt.Sprintf(`{"config":{"by":%d}}`, winners[0].client))
		if versions := services[0].history(t, id); len(versions) != 1 {
			t.Errorf("the history is %+v", versions)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	get := func() reply { return s.admin(t, "GET", "/"+id+"/admin/config", "") }
	t.Run("as it is in Redis", func(t *testing.T) {
		get().want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5000}}}}`)
	})
	t.Run("the seed", func(t *testing.T) {
		s.putConfig(t, id, string(seedConfig)).want(t, 200, `{"success":true}`)
		s.login(t, id)
	})
	// What is put replaces all of it, and comes back as it was but for white space: order, numbers, unknown members.
	t.Run("as it was put", func(t *testing.T) {
		s.putConfig(t, id, ` { "z" : 1.0e+2 , "a" : [ null , { "x" : "<\u00e9 \\ é\u2028\/>" , "x" : 2 } ] , "Auth" : 7 , `+
			`"user_groups" : { "anonymous" : { "Tokens" : "x" , "tokens" : 3 } } } `).
			want(t, 200, `{"success":true,"warnings":["user_groups.anonymous.Tokens is not known: it has no effect",`+
				`"Auth is not known: did you mean auth?"]}`)
		get().want(t, 200, `{"config":{"z":1.0e+2,"a":[null,{"x":"<\u00e9 \\ é\u2028\/>","x":2}],"Auth":7,`+
			`"user_groups":{"anonymous":{"Tokens":"x","tokens":3}}}}`)
		if got := s.do(t, "POST", "/"+id+"/auth/anonymous", ""); got.field(t, "tokensLeft") != 3.0 {
			t.Errorf("got %s", got.body)
		}
	})
	t.Run("empty", func(t *testing.T) {
		s.putConfig(t, id, `{}`).want(t, 200, "")
		s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 403, "")
	})
	t.Run("a typo does not create a tenant", func(t *testing.T) {
		s.putConfig(t, id+"x", `{}`).want(t, 400, `{"error":"Invalid tenant ID"}`)
		if testRedis.Int(t, "EXISTS", "tenant:"+id+"x:config") != 0 {
			t.Error("there is a tenant")
		}
	})
	t.Run("put straight into Redis, not compact, it is served like any other", func(t *testing.T) {
		testRedis.Do(t, "SET", "tenant:"+id+":config", "{\n \"a\": 1\n}\n")
		s.wantConfig(t, id, `{"a":1}`)
	})
}

// weakETag is the response to an If-Match as a proxy leaves it that compresses.
const weakETag = `{"error":"If-Match has a weak ETag: a proxy has changed it"}`

func TestETags(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1)
	path := "/" + id + "/admin/config"
	put := func(t *testing.T, config string, headers ...string) reply {
		t.Helper()
		return s.putConfig(t, id, config, headers...)
	}
	get := func(t *testing.T, headers ...string) reply {
		t.Helper()
		return s.admin(t, "GET", path, "", headers...)
	}
	first := get(t).etag(t)
	current := put(t, `{"v":2}`, "If-Match: "+first).etag(t)
	if served := get(t).etag(t); served != current || current == first {
		t.Errorf("ETag %s became %s, served as %s", first, current, served)
	}
	t.Run("If-Match fails", func(t *testing.T) {
		for _, stale := range []string{
			first, `"x"`, `""`, `"*"`, `"x,` + bare(current) + `"`, `"!` + bare(current) + `"`, `"x", ` + first, `"W/` + bare(current) + `"`,
			strings.ToUpper(current), `"` + bare(current)[1:] + `"`,
		} {
			put(t, `{"v":3}`, "If-Match: "+stale).want(t, 412, `{"error":"Config has changed"}`)
		}
		for _, weak := range []string{"W/" + current, "W/" + bare(current), `"x", W/` + current, "W/" + first, `W/""`} {
			put(t, `{"v":3}`, "If-Match: "+weak).want(t, 412, weakETag)
			s.admin(t, "POST", path+"/history/"+bare(first)+"/restore", "", "If-Match: "+weak).want(t, 412, weakETag)
		}
		s.putConfig(t, id+"x", `{}`, "If-Match: W/"+current).want(t, 400, `{"error":"Invalid tenant ID"}`)
	})
	t.Run("If-Match is malformed", func(t *testing.T) {
		for _, malformed := range []string{"", ",", `"`, `"a`, `a"b`, `"a" "b"`, "*, *", `*, "a"`, `"a"b`, `W/`, `a b`} {
			put(t, `{"v":3}`, "If-Match: "+malformed).wantError(t, 400, `If-Match must be * or a list of ETags such as "0a1b2c"`)
		}
	})
	t.Run("what was refused has changed nothing", func(t *testing.T) {
		get(t).want(t, 200, `{"config":{"v":2}}`)
		if n := len(s.history(t, id)); n != 2 {
			t.Errorf("there are %d versions", n)
		}
	})
	t.Run("If-Match holds", func(t *testing.T) {
		put(t, `{"v":3}`, "If-Match: *").want(t, 200, "")
		current = put(t, `{"v":4}`).etag(t)
		current = put(t, `{"v":5}`, `If-Match: W/"x", `+current).etag(t)
		current = put(t, `{"v":6}`, `If-Match: "x"`, "If-Match: "+current).etag(t)
		current = put(t, `{"v":6.1}`, `If-Match: , "a,b" ,, ""  , `+current+",").etag(t)
	})
	t.Run("If-None-Match is the other way round", func(t *testing.T) { // RFC 9110, section 13.1.2
		for _, stale := range []string{"*", current, `"x", W/` + current} {
			put(t, `{"v":6.2}`, "If-None-Match: "+stale).want(t, 412, `{"error":"Config has changed"}`)
		}
		put(t, `{"v":6.2}`, "If-Match: "+current, "If-None-Match: "+current).want(t, 412, "")
		put(t, `{"v":6.2}`, `If-None-Match: "`).want(t, 400, "")
		current = put(t, `{"v":6.3}`, `If-None-Match: "*", `+first).etag(t)
	})
	t.Run("an ETag without its quotes", func(t *testing.T) {
		current = put(t, `{"v":7}`, "If-Match: "+bare(current)).etag(t)
	})
	t.Run("the same config has the same ETag", func(t *testing.T) {
		if same := put(t, `{ "v" : 7 }`).etag(t); same != current {
			t.Errorf("got %s, want %s", same, current)
		}
	})
	t.Run("put straight into Redis, not compact, it has its ETag too", func(t *testing.T) {
		testRedis.Do(t, "SET", "tenant:"+id+":config", ` {"v": 8} `)
		s.wantConfig(t, id, `{"v":8}`)
		put(t, `{"v":9}`, "If-Match: "+get(t).etag(t)).want(t, 200, "")
	})
	t.Run("304 for those who know it", func(t *testing.T) {
		current := get(t).etag(t)
		for _, known := range []string{current, "W/" + current, `"x", ` + current, "*"} {
			got := get(t, "If-None-Match: "+known)
			if got.status != 304 || got.body != "" || got.etag(t) != current || got.header.Get("Cache-Control") != "no-store, no-transform" {
				t.Errorf("%s: got %d %q", known, got.status, got.body)
			}
		}
		get(t, "If-None-Match: "+first).want(t, 200, `{"config":{"v":9}}`)
		get(t, `If-None-Match: "`).want(t, 400, "")
	})
	t.Run("a condition does not create a tenant", func(t *testing.T) {
		s.putConfig(t, id+"x", `{}`, "If-Match: *").want(t, 400, `{"error":"Invalid tenant ID"}`)
	})
}

// Of many editors who start from the same version exactly one wins.
func TestEditRace(t *testing.T) {
	services := newServices(t)
	id := newTenant(t, 1)
	path := "/" + id + "/admin/config"
	for round := range 5 {
		etag := services[round%2].admin(t, "GET", path, "").etag(t)
		winners := load{
			services: services, clients: 50, requests: 1, statuses: []int{200, 412},
			request: func(client, _ int) request {
				return request{
					method: "PUT", path: path, headers: []string{bearer(testAdminToken), "If-Match: " + etag},
					body: fmt.Sprintf(`{"config":{"round":%d,"by":%d}}`, round, client),
				}
			},
		}.run(t).of("PUT", 200)
		if len(winners) != 1 {
			t.Fatalf("%d editors have won", len(winners))
		}
		for _, s := range services {
			s.wantConfig(t, id, fmt.Sprintf(`{"round":%d,"by":%d}`, round, winners[0].client))
		}
	}
	if n := len(services[0].history(t, id)); n != 1+5 {
		t.Errorf("after 5 changes there are %d versions", n)
	}
}

// savedConfigs is a tenant whose config was saved 31 times: by its creation, and then in turn by the operator and with a
// token of the tenant's own.
type savedConfigs struct {
	*service
	tenant, path, token string
	etags               []string // of each version
}

func newSavedConfigs(t *testing.T) *savedConfigs {
	t.Helper()
	h := &savedConfigs{service: newService(t), tenant: newTenantID()}
	h.path = "/" + h.tenant + "/admin/config/history"
	h.createTenant(t, h.tenant, h.config(0)).want(t, 201, "")
	h.token = h.newAdminToken(t, h.tenant)
	h.etags = []string{h.history(t, h.tenant)[0].ETag}
	for v := 1; v <= 30; v++ {
		by := []string{h.token, testAdminToken}[v%2]
		got := h.do(t, "PUT", "/"+h.tenant+"/admin/config", `{"config":`+h.config(v)+`}`, bearer(by))
		got.want(t, 200, "")
		h.etags = append(h.etags, bare(got.etag(t)))
	}
	return h
}

// config returns the config of a version.
func (*savedConfigs) config(v int) string { return fmt.Sprintf(`{"v":%d,"n":1.50,"secret":"S3\n"}`, v) }

// The history has the last 20 versions, newest first.
func TestHistory(t *testing.T) {
	t.Parallel()
	start := time.Now().Add(-time.Millisecond)
	h := newSavedConfigs(t)
	versions := h.history(t, h.tenant)
	if len(versions) != 20 {
		t.Fatalf("%d versions are kept, want 20", len(versions))
	}
	before := time.Now().Add(time.Second)
	for i, version := range versions {
		v := 30 - i
		by := []string{tokenHash(h.token)[:8], "operator"}[v%2]
		at, err := time.Parse(timeLayout, version.SavedAt)
		if version.ETag != h.etags[v] || version.SavedBy != by || err != nil || at.After(before) || at.Before(start) {
			t.Errorf("version %d is %+v, want the ETag %s by %s", v, version, h.etags[v], by)
		}
		before = at
		for _, etag := range []string{version.ETag, url.PathEscape(`"` + version.ETag + `"`)} {
			h.admin(t, "GET", h.path+"/"+etag, "").want(t, 200, `{"config":`+h.config(v)+`}`)
		}
	}
	if list := h.admin(t, "GET", h.path, ""); strings.Contains(list.body, "S3") {
		t.Error("the list shows a config")
	}
	if n := testRedis.Int(t, "LLEN", "{tenant:"+h.tenant+":config}:history"); n != 20 {
		t.Errorf("%d versions are in Redis", n)
	}
	for _, etag := range []string{h.etags[0], "x", "%00", h.etags[30][1:], "%22"} {
		h.admin(t, "GET", h.path+"/"+etag, "").want(t, 404, `{"error":"Not found"}`)
		h.admin(t, "POST", h.path+"/"+etag+"/restore", "").want(t, 404, `{"error":"Not found"}`)
	}
	// Another tenant's history is not found here.
	h.admin(t, "GET", "/"+newTenant(t, 1)+"/admin/config/history/"+h.etags[30], "").want(t, 404, "")
}

func TestRestore(t *testing.T) {
	t.Parallel()
	h := newSavedConfigs(t)
	t.Run("restored", func(t *testing.T) {
		restored := h.admin(t, "POST", h.path+"/"+h.etags[15]+"/restore", "")
		restored.want(t, 200, `{"success":true}`)
		restored.wantHeader(t, "ETag", `"`+h.etags[15]+`"`)
		h.admin(t, "GET", "/"+h.tenant+"/admin/config", "").want(t, 200, `{"config":`+h.config(15)+`}`)
		if versions := h.history(t, h.tenant); len(versions) != 20 || versions[0].ETag != h.etags[15] || versions[1].ETag != h.etags[30] {
			t.Errorf("the history is %+v", versions[:2])
		}
	})
	t.Run("saving the same config again is no version, and pushes none out", func(t *testing.T) {
		for range 25 {
			h.admin(t, "POST", h.path+"/"+h.etags[15]+"/restore", "").want(t, 200, "")
			h.putConfig(t, h.tenant, h.config(15)).want(t, 200, "")
		}
		if versions := h.history(t, h.tenant); len(versions) != 20 || versions[1].ETag != h.etags[30] {
			t.Errorf("the history is %+v", versions[:2])
		}
	})
	t.Run("restoring is conditional, and held to the rules", func(t *testing.T) {
		h.admin(t, "POST", h.path+"/"+h.etags[30]+"/restore", "", `If-Match: "x"`).want(t, 412, "")
		broken := strings.Repeat("a", 40)
		testRedis.Do(t, "SET", "tenant:"+h.tenant+":config", `{}`)
		testRedis.Do(t, "LSET", "{tenant:"+h.tenant+":config}:history", 3, broken+" 2026-01-02T03:04:05.678Z operator")
		testRedis.Do(t, "HSET", "{tenant:"+h.tenant+":config}:versions", broken, `{"caching":7}`)
		h.wantConfig(t, h.tenant, `{}`)
		h.admin(t, "POST", h.path+"/"+broken+"/restore", "").want(t, 400, `{"error":"Invalid config: caching must be an object"}`)
		h.admin(t, "GET", "/"+h.tenant+"/admin/config", "").want(t, 200, `{"config":{}}`)
	})
}

// A config that is broken, because somebody has put it straight into Redis, is repaired over HTTP, and kept in the
// history. Until then, what needs no config works.
func TestBrokenConfigIsRepaired(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, test := range []struct {
		name, broken string
		shown        string // by its route in the history; "": refused
	}{
		{"a rule is broken", `{"caching":7}`, `{"caching":7}`},
		{"not JSON", `{"a":`, ""},
		{"not UTF-8", "\xff\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenant(t, 5)
			path := "/" + id + "/admin/config"
			const good = `{"config":{"user_groups":{"anonymous":{"tokens":5}}}}`
			key := s.login(t, id)
			first := bare(s.admin(t, "PUT", path, good).etag(t))
			token := s.newAdminToken(t, id)
			repairs := []request{
				{method: "PUT", path: path, body: good},
				{method: "POST", path: path + "/history/" + first + "/restore"},
			}
			for _, repair := range repairs {
				testRedis.Do(t, "SET", "tenant:"+id+":config", test.broken)
				waittest.Eventually(t, 5*time.Second, func() error { return s.do(t, "POST", "/"+id+"/auth/anonymous", "").is(500) })
				s.consume(t, id, key, "").want(t, 500, `{"error":"Internal error"}`)
				s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
				s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
				s.admin(t, "GET", path, "").want(t, 500, "")
				s.admin(t, "POST", "/"+id+"/admin/keys", `{"userId":"u","group":"anonymous"}`).want(t, 500, "")
				s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"anonymous"}`).want(t, 500, "")
				s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").want(t, 200, "")
				s.admin(t, "PUT", path, `{"config":7}`).want(t, 400, "")
				s.do(t, repair.method, repair.path, repair.body, bearer(token)).want(t, 200, `{"success":true}`)
				s.login(t, id)
				saved := s.history(t, id)[1]
				if saved.SavedBy != "redis" || saved.ETag != fmt.Sprintf("%x", sha1.Sum([]byte(test.broken))) {
					t.Errorf("the broken config is not in the history: %+v", saved)
				}
				s.admin(t, "POST", path+"/history/"+saved.ETag+"/restore", "").want(t, 400, "")
			}
			got := s.admin(t, "GET", path+"/history/"+s.history(t, id)[1].ETag, "")
			if test.shown != "" {
				got.want(t, 200, `{"config":`+test.shown+`}`)
				return
			}
			got.want(t, 400, "")
			if !strings.HasPrefix(got.text(t, "error"), "Invalid config: it is not valid JSON: ") {
				t.Errorf("got %s", got.body)
			}
		})
	}
	t.Run("what is not a string is not touched", func(t *testing.T) {
		id := newTenant(t, 5)
		testRedis.Do(t, "DEL", "tenant:"+id+":config")
		testRedis.Do(t, "RPUSH", "tenant:"+id+":config", "something")
		s.putConfig(t, id, `{}`).want(t, 500, "")
		if testRedis.String(t, "LINDEX", "tenant:"+id+":config", 0) != "something" {
			t.Error("it was overwritten")
		}
	})
}

// No secret of a config is shown, except by the routes that respond with the config.
func TestConfigSecrets(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantID()
	const config = `{"auth":{"x":{"client_secret":"S3CRET"}},"user_groups":{"anonymous":{"tokens":5}}}`
	path := "/" + id + "/admin/config"
	for i, got := range []reply{
		s.createTenant(t, id, config),
		s.createTenant(t, id, config),
		s.putConfig(t, id, config),
		s.putConfig(t, id, `{"auth":{"x":{"client_secret":["S3CRET"]}}}`),
		s.putConfig(t, id, `{"auth":{"x":{"client_secret":"S3CRET",}}}`),
		s.putConfig(t, id, config, `If-Match: "x"`),
		s.admin(t, "GET", path+"/history", ""),
		s.admin(t, "POST", path+"/history/"+s.history(t, id)[0].ETag+"/restore", ""),
		s.do(t, "POST", "/"+id+"/auth/anonymous", ""),
		s.admin(t, "GET", "/admin/tenants", ""),
		s.admin(t, "DELETE", "/admin/tenants/"+id, "", `If-Match: "x"`),
		s.admin(t, "DELETE", "/admin/tenants/"+id, ""),
	} {
		if strings.Contains(got.body+fmt.Sprint(got.header), "S3CRET") {
			t.Errorf("response %d shows a secret: %+v", i, got)
		}
	}
	if s.log.Count("S3CRET") > 0 {
		t.Errorf("the log shows a secret:\n%s", s.log)
	}
}

// Deleting a tenant whose config was deleted straight in Redis leaves nothing of it behind.
func TestDeleteRemains(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 1)
	s.putConfig(t, id, `{}`).want(t, 200, "")
	s.newAdminToken(t, id)
	testRedis.Do(t, "DEL", "tenant:"+id+":config")
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
	if keys := lastingKeys(t, testRedis, "*tenant:"+id+":*"); !slices.Equal(keys, []string{"{tenant:" + id + ":config}:generation"}) {
		t.Errorf("there is still %q", keys)
	}
}

func TestIssueKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	longest := strings.Repeat("ü", 32) // 64 bytes
	id := newTenantIn(t, testRedis, `{"user_groups":{"pro":{"tokens":5},"a\u0000 \"ü":{"tokens":6}," ":{},"`+longest+`":{"tokens":7}}}`)
	shape := regexp.MustCompile(`^\{"apiKey":"user_` + uuidPattern + `","tokensLeft":(\d+)\}\n$`)
	for _, test := range []struct{ name, body, tokens string }{
		{"the group's tokens", `{"userId":"u","group":"pro"}`, "5"},
		{"most tokens", `{"group":"pro","tokens":9007199254740991,"userId":"u"}`, "9007199254740991"},
		{"shortest life", `{"userId":"u","group":"pro","tokens":0,"expiresIn":1}`, "0"},
		{"longest life", `{"userId":"u","group":"pro","expiresIn":315360000}`, "5"},
		{"an odd group", `{"userId":"u","group":"a\u0000 \"\u00fc"}`, "6"},
		{"a group without tokens", `{"userId":"u","group":" "}`, "0"},
		{"the longest group", `{"userId":"u","group":"` + longest + `"}`, "7"},
		{"longest user ID", `{"userId":"` + strings.Repeat("u", 256) + `","group":"pro"}`, "5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.admin(t, "POST", "/"+id+"/admin/keys", test.body)
			got.want(t, 201, "")
			if match := shape.FindStringSubmatch(got.body); match == nil || match[1] != test.tokens {
				t.Errorf("got %s, want %s tokens", got.body, test.tokens)
			}
		})
	}
}

// An admin sees of a key what its holder sees. Nobody else reaches it, and once it is revoked nobody at all.
func TestKeyAdministration(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	id, other := newTenant(t, 100), newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	path := "/admin/keys/" + key

	t.Run("an admin sees what the holder sees", func(t *testing.T) {
		own := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
		s.admin(t, "GET", "/"+id+path, "").want(t, 200, strings.TrimSpace(own.body))
	})
	t.Run("not found: another tenant's key, none, and what cannot be one", func(t *testing.T) {
		before := testRedis.String(t, "DUMP", "apiKey:"+key)
		for _, test := range []struct{ tenant, path string }{
			{other, path}, {id, "/admin/keys/" + someKey}, {id, "/admin/keys/x"}, {id, "/admin/keys/a%2Fb"}, {id, "/admin/keys/%00"},
			{id, "/admin/keys/" + key + "x"},
		} {
			s.admin(t, "GET", "/"+test.tenant+test.path, "").want(t, 404, `{"error":"Not found"}`)
			s.admin(t, "PATCH", "/"+test.tenant+test.path, `{"tokens":1}`).want(t, 404, `{"error":"Not found"}`)
			s.admin(t, "DELETE", "/"+test.tenant+test.path, "").want(t, 404, `{"error":"Not found"}`)
		}
		if testRedis.String(t, "DUMP", "apiKey:"+key) != before || testRedis.Int(t, "EXISTS", "apiKey:"+someKey) != 0 {
			t.Error("another tenant's admin has changed the key")
		}
	})
	t.Run("not for the holder, nor without a tenant", func(t *testing.T) {
		for _, method := range []string{"GET", "PATCH", "DELETE"} {
			s.do(t, method, "/"+id+path, "", bearer(key)).want(t, 401, "")
			s.admin(t, method, "/"+id+"x"+path, "").want(t, 400, `{"error":"Invalid tenant ID"}`)
		}
	})
	t.Run("revoked, it is dead for every process, and nothing of its rate is left", func(t *testing.T) {
		testRedis.Do(t, "RPUSH", "{apiKey:"+key+"}:rate", 1)
		services[1].consume(t, id, key, "").want(t, 200, "")
		gone := s.admin(t, "DELETE", "/"+id+path, "")
		gone.want(t, 204, "")
		if gone.body != "" {
			t.Errorf("204 with a body: %q", gone.body)
		}
		for _, s := range services {
			s.consume(t, id, key, "").want(t, 401, "")
			s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 401, "")
		}
		if n := testRedis.Int(t, "EXISTS", "apiKey:"+key, "{apiKey:"+key+"}:rate"); n != 0 {
			t.Error("something of a revoked key is left")
		}
		s.admin(t, "DELETE", "/"+id+path, "").want(t, 404, "")
	})
}

// An admin changes a key's balance and group, all that a request asks for or nothing. No change moves its expiry.
func TestUpdateKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	path := "/" + id + "/admin/keys/" + key
	expires := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key)
	for _, step := range []struct {
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
	} {
		t.Run("PATCH "+step.body, func(t *testing.T) {
			got := s.admin(t, "PATCH", path, step.body)
			got.want(t, 200, "")
			begin, end := fmt.Sprintf(`{"userId":"u","group":"%s",`, step.group), fmt.Sprintf(`"tokensLeft":%d}`+"\n", step.left)
			if !strings.HasPrefix(got.body, begin) || !strings.HasSuffix(got.body, end) {
				t.Errorf("got %s", got.body)
			}
			s.admin(t, "GET", path, "").want(t, 200, strings.TrimSpace(got.body))
		})
	}
	t.Run("a change that is refused changes nothing", func(t *testing.T) {
		const balance = "addTokens must leave a balance from 0 to 9007199254740991"
		s.admin(t, "PATCH", path, `{"addTokens":1}`).wantError(t, 400, balance)
		s.admin(t, "PATCH", path, `{"tokens":5}`).want(t, 200, "")
		const both = "addTokens and tokens must not be given together"
		for _, test := range []struct{ body, want string }{
			{`{"addTokens":-6,"group":"anonymous"}`, balance},
			{`{"tokens":1,"addTokens":1}`, both},
			{`{"tokens":-1}`, "tokens must be a whole number ≥ 0"},
			{`{"tokens":1.5}`, "tokens must be a whole number ≥ 0"},
			{`{"tokens":null}`, "tokens must be a whole number ≥ 0"},
			{`{"addTokens":"1"}`, "addTokens must be a whole number ≥ -9007199254740991"},
			{`{"addTokens":9007199254740992}`, "addTokens must be a whole number from -9007199254740991 to 9007199254740991"},
			{`{"group":"nobody"}`, `group must be one of the tenant's user_groups: "anonymous", "pro"`},
			{`{"group":null}`, "group must be a string"},
			{`{"userId":"x"}`, "userId is not a known member"},
			{`{"tokens":1,"tokens":1}`, "tokens is duplicated"},
			{``, "Invalid JSON: unexpected end of JSON input at byte 0"},
		} {
			s.admin(t, "PATCH", path, test.body).wantError(t, 400, test.want)
		}
		if got := testRedis.String(t, "HGET", "apiKey:"+key, "group"); tokensLeft(t, key) != 5 || got != "pro" {
			t.Errorf("%d tokens, group %s", tokensLeft(t, key), got)
		}
	})
	t.Run("no change moves the expiry", func(t *testing.T) {
		if got := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key); got != expires {
			t.Errorf("the key expires at %d, before the changes at %d", got, expires)
		}
	})
}

// adminRoute is a request of a tenant's admin, and the status of its response if the token is right.
type adminRoute struct {
	pattern, path, body string
	status              int
}

func (r adminRoute) method() string {
	method, _, _ := strings.Cut(r.pattern, " ")
	return method
}

// adminRoutes are all routes for a tenant's admins. The last one deletes their tokens.
func adminRoutes(key, second, etag string) []adminRoute {
	const config = `{"config":{"user_groups":{"anonymous":{"tokens":10}}}}`
	return []adminRoute{
		{"GET /admin/config", "/admin/config", "", 200},
		{"PUT /admin/config", "/admin/config", config, 200},
		{"GET /admin/config/history", "/admin/config/history", "", 200},
		{"GET /admin/config/history/{etag}", "/admin/config/history/" + etag, "", 200},
		{"POST /admin/config/history/{etag}/restore", "/admin/config/history/" + etag + "/restore", "", 200},
		{"POST /admin/keys", "/admin/keys", `{"userId":"u","group":"anonymous"}`, 201},
		{"GET /admin/keys", "/admin/keys?userId=u", "", 200},
		{"GET /admin/keys/{apiKey}", "/admin/keys/" + key, "", 200},
		{"PATCH /admin/keys/{apiKey}", "/admin/keys/" + key, `{"tokens":3}`, 200},
		{"GET /admin/keys/{apiKey}/usage", "/admin/keys/" + key + "/usage?from=2026-11-25&to=2026-11-25", "", 200},
		{"DELETE /admin/keys/{apiKey}", "/admin/keys/" + key, "", 204},
		{"POST /admin/keys/{apiKey}/rotate", "/admin/keys/" + second + "/rotate", "", 200},
		{"GET /admin/users", "/admin/users?prefix=u", "", 200},
		{"GET /admin/payments", "/admin/payments?limit=1", "", 200},
		{"GET /admin/usage", "/admin/usage?from=2026-11-25&to=2026-11-25", "", 200},
		{"POST /admin/endpoints/{kind}/{name}/test", "/admin/endpoints/text/none/test", "", 404}, // no such endpoint
		{"GET /admin/tokens", "/admin/tokens", "", 200},
		{"POST /admin/tokens", "/admin/tokens", "", 201},
		{"DELETE /admin/tokens/{id}", "/admin/tokens/00000000", "", 404}, // no such token
		{"DELETE /admin/tokens", "/admin/tokens", "", 204},
	}
}

func TestAdminRoutesAreAll(t *testing.T) {
	var want []string
	for _, route := range new(server).routes() {
		if method, path, ok := strings.Cut(route.pattern, "/{tenantId}/admin/"); ok {
			want = append(want, method+"/admin/"+path)
		}
	}
	var got []string
	for _, route := range adminRoutes(someKey, someKey, "a") {
		got = append(got, route.pattern)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// No cache keeps what admins get, and no proxy changes it, errors included; no cache keeps a key.
func TestCacheControl(t *testing.T) {
	t.Parallel()
	s := newService(t, trustTest)
	id := newTenant(t, 10)
	etag := bare(s.putConfig(t, id, `{"user_groups":{"anonymous":{"tokens":10}}}`).etag(t))
	key := s.login(t, id)
	routes := adminRoutes(key, s.login(t, id), etag)
	for _, route := range routes {
		for _, token := range []string{"", "wrong", testAdminToken} {
			got := s.do(t, route.method(), "/"+id+route.path, route.body, bearer(token), fromElsewhere(),
				"Idempotency-Key: "+strings.Repeat("x", 300))
			got.wantHeader(t, "Cache-Control", "no-store, no-transform")
		}
		s.admin(t, route.method(), "/"+id+route.path, route.body).wantHeader(t, "Cache-Control", "no-store, no-transform")
	}
	for _, got := range []reply{
		s.admin(t, "GET", "/admin/tenants", ""), s.admin(t, "POST", "/admin/tenants", "{"),
		s.admin(t, "DELETE", "/admin/tenants/nobody", ""), s.admin(t, "PUT", "/nobody/admin/config", `{"config":{}}`),
		s.putConfig(t, id, `{}`, `If-Match: "x"`), s.do(t, "GET", "/metrics", "", bearer("x")),
	} {
		got.wantHeader(t, "Cache-Control", "no-store, no-transform")
	}
	for _, got := range []reply{
		s.do(t, "POST", "/"+id+"/auth/anonymous", ""), s.do(t, "POST", "/"+id+"/auth/google", "{}"),
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)), s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)),
		s.consume(t, id, key, ""), s.consume(t, id, someKey, ""), s.admin(t, "GET", "/metrics", ""), s.do(t, "GET", "/nothing", ""),
	} {
		got.wantHeader(t, "Cache-Control", "no-store")
	}
}

// A tenant's admin token opens that tenant's admin routes and nothing else.
func TestTenantAdmins(t *testing.T) {
	t.Parallel()
	s, other := newService(t), newService(t)
	ids := []string{newTenant(t, 10), newTenant(t, 10)}
	tokens := []string{s.newAdminToken(t, ids[0]), s.newAdminToken(t, ids[1])}
	for i, id := range ids { // kept is its SHA-256, with the time of its creation
		if !regexp.MustCompile(`^adm_` + uuidPattern + `$`).MatchString(tokens[i]) {
			t.Errorf("the token is %q", tokens[i])
		}
		kept := "{tenant:" + id + ":config}:adminTokens"
		if n := testRedis.Int(t, "HLEN", kept); n != 1 {
			t.Errorf("%d tokens are kept", n)
		}
		at := testRedis.String(t, "HGET", kept, tokenHash(tokens[i]))
		if _, err := time.Parse(timeLayout, at); err != nil {
			t.Errorf("it was created at %q", at)
		}
	}
	etag := bare(s.putConfig(t, ids[0], `{"user_groups":{"anonymous":{"tokens":10}}}`).etag(t))
	key := s.login(t, ids[0])
	other.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 200, "")

	t.Run("it opens its own tenant's", func(t *testing.T) {
		for _, route := range adminRoutes(key, s.login(t, ids[0]), etag) {
			s.do(t, route.method(), "/"+ids[0]+route.path, route.body, bearer(tokens[0])).want(t, route.status, "")
		}
	})
	t.Run("deleting the tokens ends all of them, for every process, and of this tenant alone", func(t *testing.T) {
		other.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 401, "")
		s.do(t, "GET", "/"+ids[0]+"/admin/config", "", bearer(tokens[0])).want(t, 401, "")
		s.do(t, "GET", "/"+ids[1]+"/admin/config", "", bearer(tokens[1])).want(t, 200, "")
		s.admin(t, "GET", "/"+ids[0]+"/admin/config", "").want(t, 200, "")
	})
	for _, secret := range append(tokens, testAdminToken, key) {
		if s.log.Count(secret) > 0 {
			t.Errorf("a secret is in the log:\n%s", s.log)
		}
	}
}

// Nobody without the right token opens an admin route, and nobody changes anything by trying.
func TestTenantAdminsElsewhere(t *testing.T) {
	t.Parallel()
	s := newService(t, trustTest)
	id, another := newTenant(t, 10), newTenant(t, 10)
	token, anothers := s.newAdminToken(t, id), s.newAdminToken(t, another)
	etag := bare(s.putConfig(t, id, `{"user_groups":{"anonymous":{"tokens":10}}}`).etag(t))
	key := s.login(t, id)
	routes := adminRoutes(key, s.login(t, id), etag)
	dump := func() (all string) {
		config := "tenant:" + id + ":config"
		for _, key := range []string{config, "{" + config + "}:history", "{" + config + "}:adminTokens", "apiKey:" + key} {
			all += testRedis.String(t, "DUMP", key)
		}
		return all
	}
	before := dump()
	t.Run("no other token opens them", func(t *testing.T) {
		for _, wrong := range []string{
			anothers, key, someKey, "adm_" + someKey[5:], token + "x", strings.ToUpper(token), token[4:], "adm_",
		} {
			for _, route := range routes {
				got := s.do(t, route.method(), "/"+id+route.path, route.body, bearer(wrong), fromElsewhere())
				got.want(t, 401, `{"error":"Unauthorized"}`)
				got.wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
			}
		}
	})
	t.Run("it opens no other tenant's, nor those of the tenant default", func(t *testing.T) {
		for _, tenant := range []string{"", "/nobody", "/" + another, "/a:b", "/%00"} {
			for _, route := range routes {
				got := s.do(t, route.method(), tenant+route.path, route.body, bearer(token), fromElsewhere())
				got.want(t, 401, `{"error":"Unauthorized"}`)
			}
		}
	})
	t.Run("it opens no route of the operator", func(t *testing.T) {
		for _, route := range []request{
			{method: "GET", path: "/admin/tenants"},
			{method: "GET", path: "/admin/status"},
			{method: "POST", path: "/admin/tenants", body: `{"tenantId":"mine","config":{}}`},
			{method: "DELETE", path: "/admin/tenants/" + id},
		} {
			s.do(t, route.method, route.path, route.body, bearer(token)).want(t, 401, `{"error":"Unauthorized"}`)
			s.do(t, route.method, route.path, route.body).want(t, 401, `{"error":"Unauthorized"}`)
		}
	})
	t.Run("it opens no public route", func(t *testing.T) {
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(token)).want(t, 401, "")
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(token)).want(t, 401, "")
		s.consume(t, id, token, "").want(t, 401, "")
	})
	if dump() != before {
		t.Error("somebody without the right token has changed something")
	}
	for _, secret := range []string{token, anothers, testAdminToken, key} {
		if s.log.Count(secret) > 0 {
			t.Errorf("a secret is in the log:\n%s", s.log)
		}
	}
}

// A token that is revoked while its request's body is on its way changes nothing, whoever owns the tenant by then.
func TestRevokedMeanwhile(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	for _, test := range []struct {
		name  string
		again bool
	}{{"the token is revoked", false}, {"the tenant is created again", true}} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenantID()
			const config = `{"user_groups":{"pro":{"tokens":5}}}`
			s.createTenant(t, id, config).want(t, 201, "")
			user := s.issue(t, id, `"userId":"u","group":"pro"`)
			token := s.newAdminToken(t, id)
			requests := []request{
				{method: "PUT", path: "/admin/config", body: `{"config":{"mine":true}}`},
				{method: "POST", path: "/admin/keys", body: `{"userId":"u","group":"pro","tokens":999999}`},
				{method: "PATCH", path: "/admin/keys/" + user, body: `{"tokens":999999}`},
				{method: "DELETE", path: "/admin/keys/" + user, body: `{}`},
			}
			var waiting []net.Conn
			for _, r := range requests {
				waiting = append(waiting, s.begin(t, r.method, "/"+id+r.path, len(r.body), bearer(token)))
			}
			services[1].admin(t, "DELETE", "/"+id+"/admin/tokens", "").want(t, 204, "")
			if test.again {
				services[1].admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
				services[1].createTenant(t, id, config).want(t, 201, "")
			}
			for i, c := range waiting {
				fmt.Fprint(c, requests[i].body)
				if got := readAll(c); !strings.HasPrefix(got, "HTTP/1.1 401 ") {
					t.Errorf("a revoked token: %s", got)
				}
			}
			s.wantConfig(t, id, config)
			if left := tokensLeft(t, user); left != 5 {
				t.Errorf("%d tokens are left", left)
			}
		})
	}
}

// A token that asks for another, or changes the config, while it is revoked leaves none behind and changes nothing
// afterwards, however the requests interleave.
func TestRevocationRace(t *testing.T) {
	s := newService(t, trustTest)
	id := newTenant(t, 1)
	path := "/" + id + "/admin/tokens"
	for range 50 {
		token := s.newAdminToken(t, id)
		racing := load{
			services: []*service{s}, clients: 8, statuses: []int{200, 201, 401},
			request: func(client, i int) request {
				if client%2 == 0 {
					return request{
						method: "PUT", path: "/" + id + "/admin/config", headers: []string{bearer(token), fromElsewhere()},
						body: fmt.Sprintf(`{"config":{"g":%d,"i":%d}}`, client, i),
					}
				}
				return request{method: "POST", path: path, headers: []string{bearer(token), fromElsewhere()}}
			},
			until: func(o outcome) bool { return o.err == nil && o.got.status == 401 },
		}.start(t)
		s.admin(t, "DELETE", path, "").want(t, 204, "")
		config := testRedis.String(t, "GET", "tenant:"+id+":config")
		racing.wait()
		if after := testRedis.String(t, "GET", "tenant:"+id+":config"); after != config {
			t.Fatalf("a revoked token has changed the config from %s to %s", config, after)
		}
		if n := testRedis.Int(t, "HLEN", "{tenant:"+id+":config}:adminTokens"); n != 0 {
			t.Fatalf("%d tokens outlive their revocation", n)
		}
	}
}

// Each change that an admin makes is one line of the log: who, of which tenant, what; never a key, a token or a value.
func TestAuditLog(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantID()
	const config = `{"user_groups":{"pro":{"tokens":5}},"secret":"S3CRET"}`
	etag := bare(s.createTenant(t, id, config).etag(t))
	token := s.newAdminToken(t, id)
	own := func(method, path, body string, headers ...string) reply {
		t.Helper()
		return s.do(t, method, "/"+id+"/admin"+path, body, append(headers, bearer(token))...)
	}
	later := bare(own("PUT", "/config", `{"config":{"user_groups":{"pro":{}},"secret":"S3CRET"}}`).etag(t))
	own("POST", "/config/history/"+etag+"/restore", "").want(t, 200, "")
	const user = `{"userId":"S3CRET","group":"pro","tokens":8675309}`
	key := own("POST", "/keys", user, retryKey+"k").text(t, "apiKey")
	own("POST", "/keys", user, retryKey+"k").want(t, 201, "") // a replay changes nothing
	own("PATCH", "/keys/"+key, `{"addTokens":8675309}`, retryKey+"k").want(t, 200, "")
	own("PATCH", "/keys/"+key, `{"addTokens":8675309}`, retryKey+"k").want(t, 200, "")
	own("DELETE", "/keys/"+key, "").want(t, 204, "")
	own("DELETE", "/tokens", "").want(t, 204, "")
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")

	// What reads, or is refused, is no change.
	other := newTenant(t, 5)
	path := "/" + other + "/admin"
	s.admin(t, "GET", path+"/config", "").want(t, 200, "")
	s.admin(t, "GET", path+"/config/history", "").want(t, 200, "")
	s.admin(t, "PUT", path+"/config", `{"config":{"caching":7}}`).want(t, 400, "")
	s.putConfig(t, other, `{}`, `If-Match: "x"`).want(t, 412, "")
	s.admin(t, "POST", path+"/keys", `{"userId":"u","group":"none"}`).want(t, 400, "")
	s.admin(t, "PATCH", path+"/keys/"+someKey, `{"tokens":1}`).want(t, 404, "")
	s.admin(t, "DELETE", path+"/keys/"+someKey, "").want(t, 404, "")
	s.createTenant(t, other, `{}`).want(t, 409, "")
	s.admin(t, "DELETE", "/admin/tenants/"+other, "", `If-Match: "x"`).want(t, 412, "")
	s.do(t, "DELETE", path+"/tokens", "", bearer(token)).want(t, 401, "")
	s.consume(t, other, s.login(t, other), "").want(t, 200, "")

	var got []string
	for line := range strings.Lines(s.log.String()) {
		if strings.HasPrefix(line, "[INFO] Admin ") {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	operator, admin := "[INFO] Admin operator, tenant "+id+": ", "[INFO] Admin "+tokenHash(token)[:8]+", tenant "+id+": "
	name := tokenHash(key)[:8]
	want := []string{
		operator + "created the tenant with the config " + etag,
		operator + "created an admin token",
		admin + "saved the config " + later,
		admin + "saved the config " + etag,
		admin + "issued the key " + name + ` in the group "pro"`,
		admin + "changed the key " + name,
		admin + "revoked the key " + name,
		admin + "revoked all admin tokens",
		operator + "deleted the tenant",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, secret := range []string{"S3CRET", "8675309", key, token, testAdminToken} {
		if s.log.Count(secret) != 0 {
			t.Errorf("%s is in the log:\n%s", secret, s.log)
		}
	}
}

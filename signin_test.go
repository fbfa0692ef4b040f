package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

const signInConfig = `{"auth":{"google_oauth":{"client_id":"web-client","client_ids":["ios-client"]},
	"apple_oauth":{"client_id":"apple-client"}},"user_groups":{"anonymous":{"tokens":50},
	"google_logged_in":{"tokens":1000},"apple_logged_in":{"tokens":700},"pro":{"tokens":5000}}}`

// signInServices returns services whose providers are key servers, and a tenant that uses them.
func signInServices(t *testing.T, n int, settings ...string) (services []*service, tenant string) {
	t.Helper()
	keys := idtokentest.NewServer(t)
	for range n {
		services = append(services, newService(t, append(settings, "GOOGLE_KEYS_URL="+keys.URL, "APPLE_KEYS_URL="+keys.URL)...))
	}
	return services, newTenantIn(t, testRedis, signInConfig)
}

// ownSignInService starts a service that signs users in, with a Redis of its own.
func ownSignInService(t *testing.T) (*service, *redistest.Server) {
	t.Helper()
	keys, r := idtokentest.NewServer(t), redistest.New(t)
	return newService(t, "REDIS_URL="+r.URL(), "GOOGLE_KEYS_URL="+keys.URL, "APPLE_KEYS_URL="+keys.URL), r
}

// tokenOf returns the body that signs in a user of Google.
func tokenOf(subject string) string {
	return fmt.Sprintf(`{"idToken":%q}`, idtokentest.Token(map[string]any{"sub": subject}))
}

func (s *service) signIn(t testing.TB, tenant, subject string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/auth/google", tokenOf(subject), headers...)
}

// wantSignIn signs a user in and expects a balance. It returns the key.
func (s *service) wantSignIn(t testing.TB, tenant, subject string, tokens int, headers ...string) string {
	t.Helper()
	got := s.signIn(t, tenant, subject, headers...)
	got.want(t, 200, "")
	key := got.text(t, "apiKey")
	want := fmt.Sprintf(`{"apiKey":%q,"userId":"google:%s","tokensLeft":%d`, key, subject, tokens)
	if rest, ok := strings.CutPrefix(got.body, want); !ok || rest != "}\n" && !strings.HasPrefix(rest, `,"merged":`) {
		t.Errorf("got %s, want %s", got.body, want)
	}
	if !validCredential(key, userKeyPrefix) {
		t.Errorf("got the key %q", key)
	}
	return key
}

// keysOf returns the keys of a user, as admins see them.
func (s *service) keysOf(t testing.TB, tenant, userID string) (keys []string) {
	t.Helper()
	got := s.admin(t, "GET", "/"+tenant+"/admin/keys?userId="+userID, "")
	got.want(t, 200, "")
	var list struct {
		Keys []struct{ APIKey, UserID string }
	}
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || list.Keys == nil {
		t.Fatalf("%s: %v", got.body, err)
	}
	for _, k := range list.Keys {
		if k.UserID != userID {
			t.Errorf("%s has a key of %s", userID, k.UserID)
		}
		keys = append(keys, k.APIKey)
	}
	return keys
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1)
	s := services[0]

	t.Run("the same key each time", func(t *testing.T) {
		key := s.wantSignIn(t, tenant, "u1", 1000)
		s.consume(t, tenant, key, `{"tokens":300}`).want(t, 200, `{"tokensLeft":700}`)
		if again := s.wantSignIn(t, tenant, "u1", 700); again != key {
			t.Error("another key")
		}
		if name := "signIn:" + tenant + ":google:u1"; testRedis.String(t, "GET", name) != key {
			t.Errorf("%s is %q", name, testRedis.String(t, "GET", name))
		}
		got := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key))
		if got.text(t, "userId") != "google:u1" || got.text(t, "group") != "google_logged_in" || got.field(t, "expiresAt") != nil {
			t.Errorf("got %s", got.body)
		}
		if keys := s.keysOf(t, tenant, "google:u1"); !slices.Equal(keys, []string{key}) {
			t.Errorf("got %q", keys)
		}
	})
	t.Run("another group", func(t *testing.T) {
		key := s.wantSignIn(t, tenant, "u2", 1000)
		s.admin(t, "PATCH", "/"+tenant+"/admin/keys/"+key, `{"group":"pro","tokens":3}`).want(t, 200, "")
		s.wantSignIn(t, tenant, "u2", 3)
	})
	t.Run("Apple", func(t *testing.T) {
		claims := map[string]any{"iss": "https://appleid.apple.com", "aud": "apple-client", "sub": "u1"}
		got := s.do(t, "POST", "/"+tenant+"/auth/apple", fmt.Sprintf(`{"idToken":%q}`, idtokentest.Token(claims)))
		got.want(t, 200, fmt.Sprintf(`{"apiKey":%q,"userId":"apple:u1","tokensLeft":700}`, got.text(t, "apiKey")))
		s.do(t, "POST", "/"+tenant+"/auth/apple", tokenOf("u1")).wantError(t, 401, "Invalid ID token")
	})
	t.Run("refused tokens", func(t *testing.T) {
		token := idtokentest.Token(map[string]any{"aud": "other-client"})
		got := s.do(t, "POST", "/"+tenant+"/auth/google", fmt.Sprintf(`{"idToken":%q}`, token))
		got.wantError(t, 401, "Invalid ID token")
		got.wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
		if s.log.Count("[WARN] Sign-in with Google, tenant "+tenant+": invalid ID token: another audience\n") != 1 {
			t.Errorf("log:\n%s", s.log)
		}
		for _, part := range strings.Split(token, ".") {
			if s.log.Count(part) > 0 {
				t.Errorf("the log has %s", part)
			}
		}
	})
	t.Run("bodies", func(t *testing.T) {
		for body, message := range map[string]string{
			``: "Invalid JSON: unexpected end of JSON input at byte 0", `{}`: "idToken is missing",
			`{"idToken":7}`: "idToken must be a string", `{"idToken":"","x":1}`: "x is not a known member",
		} {
			s.do(t, "POST", "/"+tenant+"/auth/google", body).wantError(t, 400, message)
		}
	})
	t.Run("disabled", func(t *testing.T) {
		for _, config := range []string{
			`{"user_groups":{"google_logged_in":{"tokens":1}}}`,
			`{"auth":{"google_oauth":{"client_id":""}},"user_groups":{"google_logged_in":{"tokens":1}}}`,
			`{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{"apple_logged_in":{"tokens":1}}}`,
		} {
			other := newTenantIn(t, testRedis, config)
			s.signIn(t, other, "u1").wantError(t, 403, "Sign-in with Google is disabled")
			s.do(t, "POST", "/"+other+"/auth/apple", tokenOf("u1")).wantError(t, 403, "Sign-in with Apple is disabled")
		}
		s.signIn(t, "nobody", "u1").wantError(t, 400, "Invalid tenant ID")
	})
	t.Run("metrics", func(t *testing.T) {
		sample := `keys_issued_total{tenant="` + tenant + `",group="google_logged_in"}`
		if got := s.sample(t, sample); got != 2 {
			t.Errorf("%s is %v, want 2", sample, got)
		}
	})
}

func TestSignInWithoutKeySet(t *testing.T) {
	t.Parallel()
	keys := idtokentest.NewServer(t)
	keys.Set(func() { keys.Status = 500 })
	s := newService(t, "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newTenantIn(t, testRedis, signInConfig)
	got := s.signIn(t, tenant, "u1")
	got.wantError(t, 503, "Service unavailable")
	got.wantHeader(t, "Retry-After", "1")
	keys.Set(func() { keys.Status = 200 })
	waittest.Eventually(t, 10*time.Second, func() error { return s.signIn(t, tenant, "u1").is(200) })
}

func TestSignInLimit(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1, "LOGIN_LIMIT=4", "TRUSTED_PROXIES=127.0.0.0/8")
	s := services[0]
	from := "X-Forwarded-For: 192.0.2." + fmt.Sprint(tenants.Load()%250)
	for range 2 {
		s.signIn(t, tenant, "u1", from).want(t, 200, "")
		s.do(t, "POST", "/"+tenant+"/auth/anonymous", "", from).want(t, 200, "")
	}
	got := s.signIn(t, tenant, "u1", from)
	got.wantError(t, 429, "Too Many Requests")
	if got.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	s.signIn(t, tenant, "u1", "X-Forwarded-For: 198.51.100.1").want(t, 200, "")
}

// Many first sign-ins of a user, at two processes, end with one key and one grant.
func TestRacingSignIns(t *testing.T) {
	services, tenant := signInServices(t, 2)
	visitor := services[0].login(t, tenant)
	services[0].consume(t, tenant, visitor, `{"tokens":20}`).want(t, 200, "")
	body := tokenOf("u1")
	all := load{
		services: services, clients: 100, requests: 1, statuses: []int{200},
		request: func(int, int) request {
			return request{"POST", "/" + tenant + "/auth/google", body, []string{bearer(visitor)}, 0}
		},
	}.run(t)
	keys := make(map[string]bool)
	for _, o := range all {
		keys[o.got.text(t, "apiKey")] = true
	}
	if len(all) != 100 || len(keys) != 1 {
		t.Errorf("%d sign-ins have %d keys", len(all), len(keys))
	}
	key := services[0].wantSignIn(t, tenant, "u1", 1030)
	if listed := services[1].keysOf(t, tenant, "google:u1"); !slices.Equal(listed, []string{key}) {
		t.Errorf("got the keys %q", listed)
	}
}

func TestVisitorSignsIn(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1)
	s := services[0]
	key := s.wantSignIn(t, tenant, "u1", 1000)

	t.Run("what is left is moved once", func(t *testing.T) {
		visitor := s.login(t, tenant)
		s.consume(t, tenant, visitor, `{"tokens":7}`).want(t, 200, "")
		for range 3 {
			if got := s.wantSignIn(t, tenant, "u1", 1043, bearer(visitor)); got != key {
				t.Error("another key")
			}
		}
		s.consume(t, tenant, visitor, "").want(t, 401, "")
		s.wantSignIn(t, tenant, "u2", 1000, bearer(visitor)) // it is not another user's now
		if left := lastingKeys(t, testRedis, "*"+visitor+"*"); !slices.Equal(left, []string{"{apiKey:" + visitor + "}:closed"}) {
			t.Errorf("it leaves %q", left)
		}
	})
	t.Run("and never again, even if the user's key is revoked", func(t *testing.T) {
		visitor := s.login(t, tenant)
		key := s.wantSignIn(t, tenant, "u6", 1050, bearer(visitor))
		s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+key, "").want(t, 204, "")
		s.wantSignIn(t, tenant, "u6", 0, bearer(visitor))
		s.wantSignIn(t, tenant, "u6", 0, bearer(visitor))
	})
	t.Run("several visitors", func(t *testing.T) {
		s.wantSignIn(t, tenant, "u3", 1050, bearer(s.login(t, tenant)))
		s.wantSignIn(t, tenant, "u3", 1100, bearer(s.login(t, tenant)))
	})
	t.Run("other credentials are ignored", func(t *testing.T) {
		other := newTenantIn(t, testRedis, signInConfig)
		foreign := s.login(t, other)
		for _, header := range []string{
			bearer(foreign), bearer(key), bearer(someKey), bearer(testAdminToken), "Authorization: Basic eA==", "X-API-Key: " + key,
		} {
			s.wantSignIn(t, tenant, "u4", 1000, header)
		}
		s.consume(t, other, foreign, "").want(t, 200, `{"tokensLeft":49}`)
		s.consume(t, tenant, key, `{"tokens":43}`).want(t, 200, `{"tokensLeft":1000}`)
	})
	t.Run("a user of the same name at another tenant", func(t *testing.T) {
		visitor := s.login(t, tenant)
		s.wantSignIn(t, tenant, "u5", 1050, bearer(visitor))
		s.wantSignIn(t, newTenantIn(t, testRedis, signInConfig), "u5", 1000, bearer(visitor))
	})
	if left := testRedis.Keys(t, "{signIn:"+tenant+":*:moves"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

func TestRevokedUser(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1)
	s := services[0]
	first := s.wantSignIn(t, tenant, "u1", 1000)
	path := "/" + tenant + "/admin/keys/"
	s.admin(t, "DELETE", path+first+"?forgot=true", "").wantError(t, 400, `Query "forgot" is unknown`)
	s.admin(t, "DELETE", path+first+"?forget=yes", "").wantError(t, 400, "forget must be true or false")
	s.admin(t, "DELETE", path+first, "").want(t, 204, "")

	t.Run("gets no second grant", func(t *testing.T) {
		second := s.wantSignIn(t, tenant, "u1", 0)
		if second == first || s.wantSignIn(t, tenant, "u1", 0) != second {
			t.Error("not a new key, or not the same one each time")
		}
		s.consume(t, tenant, first, "").want(t, 401, "")
		s.admin(t, "DELETE", path+second, "").want(t, 204, "")
		s.wantSignIn(t, tenant, "u1", 0)
	})
	t.Run("is forgotten if an admin says so", func(t *testing.T) {
		key := s.wantSignIn(t, tenant, "u1", 0)
		s.admin(t, "DELETE", path+key+"?forget=true", "").want(t, 204, "")
		s.admin(t, "DELETE", path+key+"?forget=true", "").want(t, 404, "")
		s.admin(t, "DELETE", path+key, "").want(t, 404, "")
		s.wantSignIn(t, tenant, "u1", 1000)
	})
	t.Run("also after the key was revoked", func(t *testing.T) {
		key := s.wantSignIn(t, tenant, "u7", 1000)
		s.admin(t, "DELETE", path+key, "").want(t, 204, "")
		other := newTenantIn(t, testRedis, signInConfig)
		s.admin(t, "DELETE", "/"+other+"/admin/keys/"+key+"?forget=true", "").want(t, 404, "")
		s.admin(t, "DELETE", path+key+"?forget=true", "").want(t, 204, "")
		again := s.wantSignIn(t, tenant, "u7", 1000)
		s.admin(t, "DELETE", path+key+"?forget=true", "").want(t, 404, "") // the user has another key now
		s.wantSignIn(t, tenant, "u7", 1000)
		if ttl := testRedis.Int(t, "PTTL", "{apiKey:"+key+"}:revoked"); ttl < 0 {
			t.Errorf("the record of %s, which is %s now, stays for ever", key, again)
		}
	})
	t.Run("others are not", func(t *testing.T) {
		key := s.issue(t, tenant, `"userId":"google:u1","group":"pro"`)
		s.admin(t, "DELETE", path+key+"?forget=true", "").want(t, 204, "")
		s.wantSignIn(t, tenant, "u1", 1000)
	})
	t.Run("not even if the key expires", func(t *testing.T) {
		key := s.wantSignIn(t, tenant, "u2", 1000)
		testRedis.Do(t, "PEXPIRE", "apiKey:"+key, 1)
		waittest.Eventually(t, 10*time.Second, func() error { return s.consume(t, tenant, key, "").is(401) })
		s.wantSignIn(t, tenant, "u2", 0)
	})
}

// A tenant that is created again under its ID has users of its own.
func TestSignInGeneration(t *testing.T) {
	t.Parallel()
	services, _ := signInServices(t, 1)
	s, tenant := services[0], newTenantID()
	create := fmt.Sprintf(`{"tenantId":%q,"config":%s}`, tenant, signInConfig)
	s.admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
	visitor := s.login(t, tenant)
	keys := make(map[string]bool)
	for range 3 {
		key := s.wantSignIn(t, tenant, "u1", 1000)
		s.consume(t, tenant, key, "").want(t, 200, "")
		keys[key] = true
		s.admin(t, "DELETE", "/admin/tenants/"+tenant, "").want(t, 204, "")
		s.admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
	}
	if len(keys) != 3 {
		t.Errorf("got the keys %q", slices.Collect(maps.Keys(keys)))
	}
	s.wantSignIn(t, tenant, "u1", 1000, bearer(visitor)) // which is a former tenant's
	if listed := s.keysOf(t, tenant, "google:u1"); len(listed) != 1 {
		t.Errorf("got the keys %q", listed)
	}
}

// A process that has not yet seen that a tenant was created again changes nothing of what its users have.
func TestSignInOfFormerTenant(t *testing.T) {
	t.Parallel()
	services, _ := signInServices(t, 1)
	s, id := services[0], newTenantID()
	create := fmt.Sprintf(`{"tenantId":%q,"config":%s}`, id, signInConfig)
	s.admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
	deadline := in(time.Minute)
	st := newTestStore(t, testRedis)
	former, err := st.loadTenant(deadline, id)
	if err != nil {
		t.Fatal(err)
	}
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	s.admin(t, "POST", "/admin/tenants", create).want(t, 201, "")
	key := s.wantSignIn(t, id, "u1", 1000)

	who := signInIdentity{tenant: former, userID: "google:u1", group: "pro", tokens: 1000}
	if k, err := st.SignIn(deadline, who, ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a sign-in gets %s, %v", k.key, err)
	}
	if keys, _, err := st.UserKeys(deadline, former, "google:u1", indexCursor{}, 100); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a listing gets %v, %v", keys, err)
	}
	s.wantSignIn(t, id, "u1", 1000)
	if listed := s.keysOf(t, id, "google:u1"); !slices.Equal(listed, []string{key}) {
		t.Errorf("listed are %q, want %q", listed, key)
	}
}

// cutter is a service whose connections to Redis are cut at the n-th reply after it was armed: the command has been
// executed, and the service knows nothing of it, as after a crash between two steps.
type cutter struct {
	*service
	redis *redistest.Server // of its own
	left  atomic.Int64
}

func newCutter(t *testing.T, settings ...string) *cutter {
	t.Helper()
	c := &cutter{redis: redistest.New(t)}
	proxy := redistest.NewProxy(t, c.redis, func([]byte) redistest.Fate {
		if c.left.Add(-1) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	c.service = newService(t, append(settings, "REDIS_URL="+proxy.URL)...)
	return c
}

// cut sends a request during which the connection is cut at the n-th reply, and waits until the service has found Redis
// again. It reports whether the request was interrupted.
func (c *cutter) cut(t *testing.T, n int64, request func() reply) (got reply, interrupted bool) {
	t.Helper()
	c.left.Store(n)
	got = request()
	c.left.Store(0)
	c.awaitReady(t)
	return got, got.status == 503
}

// awaitReady waits until the service has found Redis again after a cut.
func (c *cutter) awaitReady(t *testing.T) {
	t.Helper()
	waittest.Eventually(t, 30*time.Second, func() error { return c.do(t, "GET", "/readyz", "").is(200) })
}

// Wherever a sign-in is interrupted, the next one ends with one key, one grant, and the visitor's tokens.
func TestInterruptedSignIns(t *testing.T) {
	keys := idtokentest.NewServer(t)
	c := newCutter(t, "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newTenantIn(t, c.redis, signInConfig)
	c.wantSignIn(t, tenant, "warm", 1000)
	path := "/" + tenant + "/admin/keys/"
	failures, cuts := int64(0), int64(16)
	for n := int64(1); n <= cuts; n++ {
		c.awaitReady(t)
		subject := fmt.Sprintf("n%d", n)
		visitor := c.login(t, tenant)
		c.consume(t, tenant, visitor, `{"tokens":8}`).want(t, 200, "")
		got, interrupted := c.cut(t, n, func() reply { return c.signIn(t, tenant, subject, bearer(visitor)) })
		if interrupted {
			failures++
		} else {
			got.want(t, 200, "")
		}
		got = c.signIn(t, tenant, subject) // the visitor's key is not sent again
		got.want(t, 200, "")
		key := got.text(t, "apiKey")
		if left := c.redis.Int(t, "EXISTS", "apiKey:"+visitor); left == 1 { // it was interrupted before it was noted
			c.wantSignIn(t, tenant, subject, 1042, bearer(visitor))
		}
		c.wantSignIn(t, tenant, subject, 1042)
		if listed := c.keysOf(t, tenant, "google:"+subject); !slices.Equal(listed, []string{key}) {
			t.Errorf("cut %d: got the keys %q", n, listed)
		}
		// The same for the revocation, which forgets the user.
		c.cut(t, n, func() reply { return c.admin(t, "DELETE", path+key+"?forget=true", "") })
		if gone := c.admin(t, "DELETE", path+key+"?forget=true", ""); gone.status != 204 && gone.status != 404 {
			t.Errorf("cut %d: %d %s", n, gone.status, gone.body)
		}
		c.wantSignIn(t, tenant, subject, 1000)
		if n == failures && n == cuts && cuts < 40 { // what goes on in the background has replies, too
			cuts++
		}
	}
	if failures < 6 || failures == cuts {
		t.Errorf("%d of %d sign-ins were interrupted: that proves little", failures, cuts)
	}
}

// A key that was created by a sign-in that has not learned so, and was then revoked, does not come back.
func TestRevokedBeforeSignInEnds(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1)
	s := services[0]
	key := s.wantSignIn(t, tenant, "u1", 1000)
	testRedis.Do(t, "SET", "signIn:"+tenant+":google:u1", key+" new") // as after a crash
	testRedis.Do(t, "SET", "{apiKey:"+key+"}:successor", "")
	s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+key, "").want(t, 204, "")
	if again := s.wantSignIn(t, tenant, "u1", 0); again == key {
		t.Error("the revoked key is back")
	}
}

func TestSignInRecord(t *testing.T) {
	for _, r := range []signInRecord{
		{}, newSignInRecord(someKey, "", ""), newSignInRecord(someKey, "new", ""), newSignInRecord(someKey, "zero", "G1"),
		newSignInRecord(someKey, "", "G1"),
	} {
		if got, err := parseSignInRecord(r.text); err != nil || got != r {
			t.Errorf("%q: got %+v, %v", r.text, got, err)
		}
	}
	for _, text := range []string{"x", someKey + " ", someKey + " old", someKey + " new  @G", "temp_" + someKey[5:], "@G"} {
		if _, err := parseSignInRecord(text); !errors.Is(err, errBadReply) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// In a Redis Cluster a script whose keys are in different slots is refused. One server that has all slots is enough to
// tell.
func TestUsersInACluster(t *testing.T) {
	t.Parallel()
	r, err := redistest.StartClusterNode()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.Do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	waittest.Eventually(t, 30*time.Second, func() error {
		if info := r.String(t, "CLUSTER", "INFO"); !strings.Contains(info, "cluster_state:ok") {
			return errors.New(info)
		}
		return nil
	})
	keys := idtokentest.NewServer(t)
	url := strings.TrimSuffix(strings.Replace(r.URL(), "redis://", "redis-cluster://", 1), "/0")
	s := newService(t, "REDIS_URL="+url, "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newTenantIn(t, r, strings.Replace(signInConfig, `{"tokens":1000}`,
		`{"tokens":1000,"rate_limit":50,"rate_limit_window":60,"refill":{"tokens":2000,"every":3600}}`, 1))
	visitor := s.login(t, tenant)
	key := s.wantSignIn(t, tenant, "u1", 1050, bearer(visitor))
	s.do(t, "POST", "/"+tenant+"/tokens/holds", `{"tokens":100}`, bearer(key)).want(t, 201, "")
	r.Do(t, "HSET", "apiKey:"+key, "createdAt", "2026-01-01T00:00:00.000Z")
	s.consume(t, tenant, key, `{"tokens":1}`, retryKey+"1").want(t, 200, `{"tokensLeft":1999}`)
	rotated := s.rotate(t, tenant, key, retryKey+"1")
	s.wantSignIn(t, tenant, "u1", 1999)
	if listed := s.keysOf(t, tenant, "google:u1"); !slices.Equal(listed, []string{rotated}) {
		t.Errorf("got the keys %q", listed)
	}
	path := "/" + tenant + "/admin/keys/" + rotated
	s.admin(t, "PATCH", path, `{"enabled":false,"expiresIn":3600,"addTokens":1}`, retryKey+"2").want(t, 200, "")
	s.admin(t, "DELETE", path+"?forget=true", "").want(t, 204, "")
	s.wantSignIn(t, tenant, "u1", 1000)
}

// In a full Redis those who have signed in before sign in, and a user can be forgotten. What needs room is 503.
func TestSignInFull(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	tenant := newTenantIn(t, r, signInConfig)
	key := s.wantSignIn(t, tenant, "known", 1000)
	forgotten, revoked := s.wantSignIn(t, tenant, "forgotten", 1000), s.wantSignIn(t, tenant, "revoked", 1000)
	visitor := s.login(t, tenant)
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	if again := s.wantSignIn(t, tenant, "known", 1000); again != key {
		t.Errorf("got the key %s, want %s", again, key)
	}
	s.signIn(t, tenant, "new").want(t, 503, `{"error":"Service unavailable"}`)
	s.signIn(t, tenant, "known", bearer(visitor)).want(t, 503, "")
	s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+revoked, "").want(t, 204, "")
	s.signIn(t, tenant, "revoked").want(t, 503, "")
	for user, n := range map[string]int{"google:known": 1, "google:revoked": 0} { // a list needs no memory
		if keys := s.keysOf(t, tenant, user); len(keys) != n {
			t.Errorf("%s has the keys %q", user, keys)
		}
	}
	s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+forgotten+"?forget=true", "").want(t, 204, "")
	if records := r.Keys(t, "signIn:*"); len(records) != 2 {
		t.Errorf("there are the records %q, want those of known and revoked", records)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	s.wantSignIn(t, tenant, "known", 1050, bearer(visitor))
	s.wantSignIn(t, tenant, "forgotten", 1000)
	s.wantSignIn(t, tenant, "revoked", 0)
}

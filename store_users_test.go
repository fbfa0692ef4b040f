package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/redistest"
)

// usersOf lists the users of a tenant whose IDs begin with prefix, in pages of limit, each as "<user ID> <keys>".
func (s *service) usersOf(t testing.TB, tenant, prefix string, limit int) (users []string, pages int) {
	t.Helper()
	path := fmt.Sprintf("/%s/admin/users?limit=%d&prefix=%s", tenant, limit, url.QueryEscape(prefix))
	for after := ""; ; {
		got := repeat(func() reply { return s.admin(t, "GET", path+after, "") })
		got.want(t, 200, "")
		var page struct {
			Users []userBody
			Next  *string
		}
		if err := json.Unmarshal([]byte(got.body), &page); err != nil || page.Users == nil || len(page.Users) > limit {
			t.Fatalf("%d users, %v: %s", len(page.Users), err, got.body)
		}
		for _, u := range page.Users {
			users = append(users, fmt.Sprint(u.UserID, " ", u.Keys))
		}
		if pages++; page.Next == nil || pages > 1000 {
			return users, pages
		}
		after = "&after=" + *page.Next
	}
}

// wantUsers checks which users a tenant has, each as "<user ID> <keys>".
func (s *service) wantUsers(t testing.TB, tenant string, want ...string) {
	t.Helper()
	if got, _ := s.usersOf(t, tenant, "", 100); !slices.Equal(got, want) {
		t.Errorf("the users are %q, want %q", got, want)
	}
}

// The users who have keys are listed in the order of their bytes, however they have got them, and as long as they do.
func TestUsers(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	s.admin(t, "GET", "/"+id+"/admin/users", "").want(t, 200, `{"users":[],"next":null}`)
	s.login(t, id) // has no user
	s.issue(t, newTenantIn(t, testRedis, signInConfig), `"userId":"another tenant's","group":"pro"`)
	issue := func(user string) string {
		quoted, _ := json.Marshal(user)
		return s.issue(t, id, fmt.Sprintf(`"userId":%s,"group":"pro"`, quoted))
	}
	key := issue("b")
	for _, user := range []string{"é", "a", "a b", "aa", "Z", "{a}", "a}:", "日本", "日", "\U0001f600", "b", "b"} {
		issue(user)
	}
	s.wantSignIn(t, id, "1", 1000)
	s.wantSignIn(t, id, "1", 1000)
	all := []string{"Z 1", "a 1", "a b 1", "aa 1", "a}: 1", "b 3", "google:1 1", "{a} 1", "é 1", "日 1", "日本 1", "\U0001f600 1"}
	s.wantUsers(t, id, all...)

	t.Run("in pages of any size", func(t *testing.T) {
		for _, limit := range []int{1, 2, 5, len(all) - 1, len(all), 1000} {
			got, pages := s.usersOf(t, id, "", limit)
			if want := (len(all) + limit - 1) / limit; !slices.Equal(got, all) || pages != want {
				t.Errorf("%d pages of %d have %q, want %d with %q", pages, limit, got, want, all)
			}
		}
	})
	t.Run("by what their IDs begin with", func(t *testing.T) {
		for prefix, want := range map[string][]string{
			"a": {"a 1", "a b 1", "aa 1", "a}: 1"}, "a ": {"a b 1"}, "b": {"b 3"}, "google:": {"google:1 1"}, "日": {"日 1", "日本 1"},
			"\xc3": {"é 1"}, "\xe6\x97": {"日 1", "日本 1"}, "\xff": nil, "\xf0": {"\U0001f600 1"}, "[": nil, "(": nil, "c": nil, "bb": nil, "+": nil,
			"{": {"{a} 1"}, strings.Repeat("a", 300): nil,
		} {
			for _, limit := range []int{1, 100} {
				if got, _ := s.usersOf(t, id, prefix, limit); !slices.Equal(got, want) {
					t.Errorf("%q: got %q, want %q", prefix, got, want)
				}
			}
		}
	})
	t.Run("a rotation changes nothing, and without a key they are gone", func(t *testing.T) {
		key = s.rotate(t, id, key)
		s.wantUsers(t, id, all...)
		for _, user := range []string{"a", "日本", "google:1"} {
			for _, key := range s.keysOf(t, id, user) {
				s.admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
			}
		}
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
		left := []string{"Z 1", "a b 1", "aa 1", "a}: 1", "b 2", "{a} 1", "é 1", "日 1", "\U0001f600 1"}
		s.wantUsers(t, id, left...)
		if n := testRedis.Int(t, "ZCARD", "users:"+id); n != len(left) {
			t.Errorf("Redis has %d users, want %d", n, len(left))
		}
		issue("a")
		s.wantUsers(t, id, slices.Insert(left, 1, "a 1")...)
	})
}

func TestUsersQuery(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	path := "/" + id + "/admin/users"
	s.do(t, "GET", path, "").want(t, 401, "")
	s.do(t, "GET", path, "", bearer(s.login(t, id))).want(t, 401, "")
	for query, want := range map[string]string{
		"limit=0": "limit must be a whole number from 1 to 1000", "limit=1001": "limit must be a whole number from 1 to 1000",
		"userId=u": `Query "userId" is unknown`, "prefix=a&prefix=b": `Query "prefix" is duplicated`,
	} {
		s.admin(t, "GET", path+"?"+query, "").wantError(t, 400, want)
	}
	for _, after := range []string{"", "u", "YQ==", "YR", "Y%0AQ", "YQ%0A", "+", "%00"} { // YQ is a
		s.admin(t, "GET", path+"?after="+after, "").wantError(t, 400, "after must be the next of another page")
	}
	for _, user := range []string{"a", "b", "c"} {
		s.issue(t, id, fmt.Sprintf(`"userId":%q,"group":"pro"`, user))
	}
	for query, want := range map[string]string{
		"after=YQ&limit=1":  `{"users":[{"userId":"b","keys":1}],"next":"Yg"}`,
		"after=YQ&prefix=":  `{"users":[{"userId":"b","keys":1},{"userId":"c","keys":1}],"next":null}`,
		"after=YQ&prefix=c": `{"users":[{"userId":"c","keys":1}],"next":null}`, // before what begins so
		"after=Yw&prefix=b": `{"users":[],"next":null}`,                        // after all that does
		"prefix=":           `{"users":[{"userId":"a","keys":1},{"userId":"b","keys":1},{"userId":"c","keys":1}],"next":null}`,
	} {
		s.admin(t, "GET", path+"?"+query, "").want(t, 200, want)
	}
}

// commandsRun returns the commands that r has executed while f ran, those of scripts too.
func commandsRun(t *testing.T, r *redistest.Server, f func()) (commands []string) {
	t.Helper()
	r.Do(t, "CONFIG", "SET", "slowlog-log-slower-than", 0)
	r.Do(t, "CONFIG", "SET", "slowlog-max-len", 10_000)
	r.Do(t, "SLOWLOG", "RESET")
	f()
	for _, entry := range r.Do(t, "SLOWLOG", "GET", -1).([]any) {
		var words []string
		for _, word := range entry.([]any)[3].([]any) {
			words = append(words, string(word.([]byte)))
		}
		commands = append(commands, strings.Join(words, " "))
	}
	return commands
}

// count returns how many of the commands begin with prefix.
func count(commands []string, prefix string) (n int) {
	for _, command := range commands {
		if strings.HasPrefix(strings.ToLower(command), prefix) {
			n++
		}
	}
	return n
}

// A new key and a rotation take one command more for the users. A page looks at no more users than it may have.
func TestUsersCost(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, id := newService(t, "REDIS_URL="+r.URL()), newTenantIn(t, r, `{"user_groups":{"pro":{}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	users := 0
	for name, request := range map[string]func(){
		"a new key": func() { s.issue(t, id, `"userId":"u","group":"pro"`) },
		"the first key of a new": func() {
			users++
			s.issue(t, id, fmt.Sprintf(`"userId":"v%d","group":"pro"`, users))
		},
		"a rotation": func() { key = s.rotate(t, id, key) },
	} {
		sent := commandsRun(t, r, request)
		for range 100 { // until the config was not validated meanwhile, which reads the generation, too
			if !strings.Contains(strings.Join(sent, "\n"), " 2 tenant:"+id+":config {tenant:"+id+":config}:generation ") {
				break
			}
			sent = commandsRun(t, r, request)
		}
		added, more := count(sent, "zadd users:"+id+" 0 "), count(sent, "zrem users:")+count(sent, "get {tenant:")
		if added != 1 || more != 0 {
			t.Errorf("%s: %d commands add the user, and %d do more, want 1 and 0: %q", name, added, more, sent)
		}
	}

	args := []any{"users:" + id}
	for i := range 3000 {
		user := fmt.Sprintf("many-%04d", i)
		args = append(args, 0, user)
		toIndex(t, r, id, user, 5)([]any{someKey})
	}
	r.Do(t, "ZADD", args...)
	st := newTestStore(t, r)
	tn := st.wantTenant(t, id)
	after := "many-"
	sent := commandsRun(t, r, func() {
		for range 3 {
			users, next, err := st.Users(in(10*time.Second), tn, "many-", after, 1000)
			if len(users) != 1000 || err != nil {
				t.Fatalf("%d users, %v", len(users), err)
			}
			after = next
		}
	})
	if z, n := count(sent, "zrange"), count(sent, "zcard"); z != 3 || n != 3000 || count(sent, "zrem") != 0 || after != "" {
		t.Errorf("3 pages of 1,000 users take %d ZRANGE and %d ZCARD, then %q", z, n, after)
	}
}

// A user who gets a key after a listing has found none is listed, and stays among the users.
func TestUserWhoGetsAKeyMeanwhile(t *testing.T) {
	t.Parallel()
	for _, after := range []int64{2, 3} { // the reply to ZCARD, and that to ZREM
		r := redistest.New(t)
		id := newTenantIn(t, r, `{}`)
		users := usersRedisKey(id, "")
		create := [][]any{
			{"ZADD", userKeysByTimeRedisKey(id, "u-meanwhile"), 5, someKey}, {"ZADD", users, 0, "u-meanwhile"},
			{"HSET", "apiKey:" + someKey, "tenantId", id, "userId", "u-meanwhile", "tokensLeft", 1},
		}
		if after == 3 { // its creator has added the user before, and is not done with the rest
			create = [][]any{create[0], create[2]}
		}
		var replies atomic.Int64
		proxy := redistest.NewProxy(t, r, func(reply []byte) redistest.Fate {
			if bytes.Contains(reply, []byte("u-meanwhile")) {
				replies.Store(1) // this page of users
			} else if replies.Load() > 0 && replies.Add(1) == after {
				if err := r.DoAll(create...); err != nil {
					t.Error(err)
				}
			}
			return redistest.Pass
		})
		st := newTestStoreAt(t, proxy.URL)
		tn := st.wantTenant(t, id)
		r.Do(t, "ZADD", users, 0, "u-meanwhile", 0, "x")
		got, next, err := st.Users(in(10*time.Second), tn, "", "", 10)
		if err != nil || !slices.Equal(got, []keyUser{{"u-meanwhile", 1}}) || next != "" {
			t.Errorf("after reply %d: got %+v, %q, %v after %d replies", after, got, next, err, replies.Load())
		}
		if left := fmt.Sprintf("%s", r.Do(t, "ZRANGE", users, 0, -1)); left != "[u-meanwhile]" {
			t.Errorf("after reply %d: the users are %s", after, left)
		}
	}
}

// A key that a listing has taken for dead before it was created brings its user back, whom another listing has dropped.
func TestUserOfAKeyThatAppears(t *testing.T) {
	t.Parallel()
	st, id := newTestStore(t, testRedis), newTenant(t, 1)
	tn, deadline := st.wantTenant(t, id), in(time.Minute)
	key := bulkKeys(t, testRedis, id, "u", "2026-01-01T00:00:00.000Z", 1, func([]any) {})[0]
	for _, step := range []struct {
		name string
		run  func() error
		want int
	}{
		{"indexed again after it was created", func() error { _, err := st.indexStored(deadline, key); return err }, 1},
		{"indexed once more", func() error {
			testRedis.Do(t, "DEL", usersRedisKey(id, ""))
			_, err := st.indexStored(deadline, key)
			return err
		}, 0}, // the index has it: who has added it has added the user
		{"removed from the index by a listing, and then indexed", func() error {
			err := st.unindexKey(deadline, id, "u", key)
			if err == nil {
				_, err = st.indexStored(deadline, key)
			}
			return err
		}, 1},
	} {
		if err := step.run(); err != nil {
			t.Fatal(err)
		}
		if users, _, err := st.Users(deadline, tn, "", "", 10); err != nil || len(users) != step.want {
			t.Errorf("%s: got %v, %v", step.name, users, err)
		}
	}
}

// However keys come and go while users are listed, those who have keys in the end are listed, and no other.
func TestUsersUnderLoad(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 1)
	path := "/" + id + "/admin/"
	as := []string{bearer(testAdminToken)}
	listing := load{
		services: services, clients: 2, statuses: []int{200, 429, 503},
		request: func(_, i int) request {
			if i%3 == 0 {
				return request{method: "GET", path: path + fmt.Sprint("keys?userId=u", i%4), headers: as}
			}
			return request{method: "GET", path: path + "users", headers: as}
		},
	}.start(t)
	want := make(map[string]int)
	for round := range 10 {
		changes := load{
			services: services, clients: 4, requests: 1, statuses: []int{201}, retry: true,
			request: func(client, _ int) request {
				once, body := fmt.Sprint(retryKey, round, " ", client), fmt.Sprintf(`{"userId":"u%d","group":"pro"}`, client)
				return request{method: "POST", path: path + "keys", headers: append(as, once), body: body}
			},
		}
		for _, o := range changes.run(t).of("", 201) {
			if user := o.client; round < 9 || user%2 == 0 { // in the end two users have none
				services[0].revoke(t, id, o.got.text(t, "apiKey"))
			} else {
				want[fmt.Sprint("u", user)]++
			}
		}
	}
	listing.stop()
	got, _ := services[0].usersOf(t, id, "", 100)
	if len(got) != 2 || got[0] != "u1 1" || got[1] != "u3 1" || len(want) != 2 {
		t.Errorf("the users are %q, want %v", got, want)
	}
}

// Wherever it is interrupted, what makes a key leaves none without its user.
func TestUsersAfterInterruptions(t *testing.T) {
	keys := idtokentest.NewServer(t)
	c := newCutter(t, "GOOGLE_KEYS_URL="+keys.URL)
	id := newTenantIn(t, c.redis, signInConfig)
	c.wantSignIn(t, id, "warm", 1000)
	rotated := c.issue(t, id, `"userId":"rotated","group":"pro"`)
	failures := 0
	for n := int64(1); n <= 9; n++ {
		for name, request := range map[string]func() reply{
			"issue": func() reply {
				return c.admin(t, "POST", "/"+id+"/admin/keys", fmt.Sprintf(`{"userId":"n%d","group":"pro"}`, n))
			},
			"sign-in": func() reply { return c.signIn(t, id, fmt.Sprint("n", n)) },
			"rotate": func() reply {
				return c.admin(t, "POST", "/"+id+"/admin/keys/"+rotated+"/rotate", "", fmt.Sprint(retryKey, n))
			},
		} {
			c.awaitReady(t)
			if name == "rotate" {
				c.redis.Do(t, "DEL", usersRedisKey(id, "")) // they are those of an earlier version
			}
			got, interrupted := c.cut(t, n, request)
			if interrupted {
				failures++
			}
			if name == "rotate" {
				if got = request(); got.status == 200 {
					rotated = got.text(t, "apiKey")
				}
			}
			users, _ := c.usersOf(t, id, "", 1000)
			for _, key := range c.redis.Keys(t, "apiKey:user_*") {
				user := c.redis.String(t, "HGET", key, "userId")
				listed := slices.ContainsFunc(users, func(u string) bool { return strings.HasPrefix(u, user+" ") })
				if !listed && (name != "rotate" || user == "rotated") {
					t.Errorf("cut %d of %s: %s has a key and is not among the users %q", n, name, user, users)
				}
			}
			if name == "rotate" {
				c.reindex(t)
			}
		}
	}
	if failures < 9 {
		t.Errorf("%d requests were interrupted: that proves little", failures)
	}
}

// reindex does what -reindex does.
func (c *cutter) reindex(t *testing.T) {
	t.Helper()
	if _, err := newTestStore(t, c.redis).Reindex(t.Context(), func(int) {}); err != nil {
		t.Fatal(err)
	}
}

// Users of earlier versions are found by -reindex, but none of a tenant that was deleted.
func TestReindexUsers(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, id := newService(t, "REDIS_URL="+r.URL()), newTenantID()
	const config = `{"user_groups":{"pro":{"tokens":5}}}`
	s.createTenant(t, id, config).want(t, 201, "")
	s.issue(t, id, `"userId":"former","group":"pro"`)
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	s.createTenant(t, id, config).want(t, 201, "")
	malformed := s.issue(t, id, `"userId":"timeless","group":"pro"`)
	s.issue(t, id, `"userId":"u","group":"pro"`)
	s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	old := s.issue(t, id, `"userId":"old","group":"pro"`)
	r.Do(t, "DEL", userKeysByTimeRedisKey(id, "old"), "users:"+id+":"+r.String(t, "GET", generationRedisKey(id)))
	r.Do(t, "SADD", userKeysRedisKey(id, "old"), old)
	r.Do(t, "HSET", "apiKey:"+malformed, "createdAt", "x")
	s.wantUsers(t, id)
	for range 2 {
		if _, err := newTestStore(t, r).Reindex(t.Context(), func(int) {}); err != nil {
			t.Fatal(err)
		}
		s.wantUsers(t, id, "old 1", "timeless 1", "u 2")
	}
	if sets := r.Keys(t, "users:*"); len(sets) != 1 {
		t.Errorf("there are the sets %q", sets)
	}
}

// A tenant that is made again sees nothing of the users and the usage of the one before it.
func TestUsersOfFormerTenant(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, id := newService(t, "REDIS_URL="+r.URL()), newTenantID()
	const config = `{"user_groups":{"pro":{"tokens":5}}}`
	for round := range 3 {
		s.createTenant(t, id, config).want(t, 201, "")
		s.wantUsers(t, id)
		if got := s.usage(t, id, today()); got.Requests != 0 || got.TokensGranted != 0 || len(got.ByGroup) != 0 {
			t.Errorf("round %d: the usage is %+v", round, got)
		}
		for i, user := range []string{"u", "u", "v"} {
			key := s.issue(t, id, fmt.Sprintf(`"userId":%q,"group":"pro","tokens":9`, user))
			s.consume(t, id, key, "").want(t, 200, "")
			s.wantUsers(t, id, [][]string{{"u 1"}, {"u 2"}, {"u 2", "v 1"}}[i]...)
		}
		s.wantUsage(t, id, today(), `"requests":3,"tokensCharged":3,"tokensGranted":27,"byEndpoint":{},`+
			`"byGroup":{"pro":{"requests":3,"tokensCharged":3}}`)
		if sets := r.Keys(t, "users:*"); len(sets) != 1 {
			t.Errorf("round %d: there are the sets %q", round, sets)
		}
		r.Do(t, "ZADD", strings.Replace(r.Keys(t, "users:*")[0], "users:", "payments:", 1), 0, "x")
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
		if sets := append(r.Keys(t, "users:*"), r.Keys(t, "payments:*")...); len(sets) != 0 {
			t.Errorf("round %d: a tenant that was deleted leaves %q", round, sets)
		}
	}
	t.Run("even if nothing could be deleted with it", func(t *testing.T) {
		s.createTenant(t, id, config).want(t, 201, "")
		s.issue(t, id, `"userId":"u","group":"pro"`)
		r.Do(t, "DEL", configRedisKey(id))
		s.createTenant(t, id, config).want(t, 201, "")
		s.wantUsers(t, id)
		s.issue(t, id, `"userId":"u","group":"pro"`)
		s.wantUsers(t, id, "u 1")
	})
}

func TestAfterPrefix(t *testing.T) {
	for prefix, want := range map[string]string{
		"": "+", "a": "(b", "ab": "(ac", "a\xff": "(b", "\xff\xff": "+", "a\x00": "(a\x01", "\xc3": "(\xc4", "é": "(\xc3\xaa", "\x7f": "(\x80",
	} {
		if got := afterPrefix(prefix); got != want {
			t.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
}

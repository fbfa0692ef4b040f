package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// wantIndex checks how many keys the index of a user has, how many of them expire, and that nothing is left of the set
// of earlier versions.
func wantIndex(t testing.TB, r *redistest.Server, tenant, userID string, all, expiring int) {
	t.Helper()
	byTime, byExpiry := userKeysByTimeRedisKey(tenant, userID), userKeysByExpiryRedisKey(tenant, userID)
	if a, e := r.Int(t, "ZCARD", byTime), r.Int(t, "ZCARD", byExpiry); a != all || e != expiring {
		t.Errorf("the index of %s has %d keys, of which %d expire, want %d and %d", userID, a, e, all, expiring)
	}
	if n := r.Int(t, "EXISTS", userKeysRedisKey(tenant, userID)); n != 0 {
		t.Errorf("%s has a set of earlier versions", userID)
	}
}

func TestUserKeys(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 1)
	s := services[0]
	path := "/" + tenant + "/admin/keys"
	s.admin(t, "GET", path+"?userId=u-42", "").want(t, 200, `{"keys":[],"next":null}`)
	s.admin(t, "GET", path, "").wantError(t, 400, "userId is missing in the query")
	s.admin(t, "GET", path+"?userId=a&userId=b", "").wantError(t, 400, `Query "userId" is duplicated`)
	s.admin(t, "GET", path+"?userId=a&x=b", "").wantError(t, 400, `Query "x" is unknown`)
	s.do(t, "GET", path+"?userId=u-42", "").want(t, 401, "")

	var issued []string
	for i := range 5 {
		got := s.admin(t, "POST", path, `{"userId":"u-42","group":"pro"}`, retryKey+fmt.Sprint(i/2))
		issued = append(issued, got.text(t, "apiKey")) // two of them are replays
		time.Sleep(2 * time.Millisecond)               // the next one is younger
	}
	issued = slices.Compact(issued)
	other := s.issue(t, tenant, `"userId":"u-43","group":"pro"`)
	gone := s.issue(t, tenant, `"userId":"u-42","group":"pro","expiresIn":60`)
	testRedis.Do(t, "DEL", "apiKey:"+gone)
	testRedis.Do(t, "SADD", "userKeys:"+tenant+":u-42", other, someKey, "nonsense", "{x}", s.login(t, tenant))
	if got := s.keysOf(t, tenant, "u-42"); len(issued) != 3 || !slices.Equal(got, issued) {
		t.Errorf("got %q, want %q", got, issued)
	}
	wantIndex(t, testRedis, tenant, "u-42", len(issued), 0)
	got := s.admin(t, "GET", path+"?userId=u-43", "")
	one := s.admin(t, "GET", path+"/"+other, "")
	got.want(t, 200, `{"keys":[{"apiKey":"`+other+`",`+strings.TrimSuffix(one.body[1:], "\n")+`],"next":null}`)
	s.admin(t, "DELETE", path+"/"+issued[0], "").want(t, 204, "")
	wantIndex(t, testRedis, tenant, "u-42", 2, 0)
	if got := s.keysOf(t, newTenantIn(t, testRedis, signInConfig), "u-42"); len(got) > 0 {
		t.Errorf("another tenant has %q", got)
	}
}

// pagesOf lists a user's keys page by page, and returns each as "<key> <error or createdAt>".
func (s *service) pagesOf(t testing.TB, tenant, userID string, limit int) (keys []string, pages int) {
	t.Helper()
	path := fmt.Sprintf("/%s/admin/keys?userId=%s&limit=%d", tenant, userID, limit)
	for after := ""; ; pages++ {
		got := repeat(func() reply { return s.admin(t, "GET", path+after, "") })
		got.want(t, 200, "")
		var page struct {
			Keys []struct{ APIKey, Error, CreatedAt string }
			Next *string
		}
		if err := json.Unmarshal([]byte(got.body), &page); err != nil || page.Keys == nil || len(page.Keys) > limit {
			t.Fatalf("%d keys, %v: %s", len(page.Keys), err, got.body)
		}
		for _, k := range page.Keys {
			keys = append(keys, k.APIKey+" "+k.Error+k.CreatedAt)
		}
		if page.Next == nil {
			return keys, pages + 1
		}
		if !regexp.MustCompile(`^\d+\.\d+$`).MatchString(*page.Next) || pages > 3000 {
			t.Fatalf("page %d leads to %q", pages, *page.Next)
		}
		after = "&after=" + *page.Next
	}
}

// bulkKeys puts n keys of a user straight into Redis, all of them created at one time, and returns them sorted. index
// adds them to an index, several at a time.
func bulkKeys(t testing.TB, r *redistest.Server, tenant, userID, createdAt string, n int, index func(keys []any)) []string {
	t.Helper()
	c, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	keys := make([]string, n)
	for i := range keys {
		if keys[i], err = newCredential(userKeyPrefix); err == nil {
			_, err = c.Do("HSET", "apiKey:"+keys[i], "tenantId", tenant, "userId", userID, "group", "pro", "createdAt", createdAt, "tokensLeft", 7)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(keys)
	for some := range slices.Chunk(keys, 500) {
		members := make([]any, len(some))
		for i, key := range some {
			members[i] = key
		}
		index(members)
	}
	return keys
}

// toIndex returns what adds keys to the index of a user with a score.
func toIndex(t testing.TB, r *redistest.Server, tenant, userID string, score int64) func(keys []any) {
	return func(keys []any) {
		args := []any{userKeysByTimeRedisKey(tenant, userID)}
		for _, key := range keys {
			args = append(args, score, key)
		}
		r.Do(t, "ZADD", args...)
	}
}

// The index has when each key was created and expires, by Redis's clock, and expires itself with the last of its keys.
func TestIndexLayout(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	byTime, byExpiry := userKeysByTimeRedisKey(id, "u"), userKeysByExpiryRedisKey(id, "u")
	want := func(t *testing.T, key string) {
		t.Helper()
		created, err := time.Parse(timeLayout, testRedis.String(t, "HGET", "apiKey:"+key, "createdAt"))
		if got := testRedis.String(t, "ZSCORE", byTime, key); err != nil || got != fmt.Sprint(created.UnixMilli()) {
			t.Errorf("the index has %q, want %d, %v", got, created.UnixMilli(), err)
		}
		expires := testRedis.String(t, "ZSCORE", byExpiry, key)
		if at := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key); at < 0 && expires != "" || at >= 0 && expires != fmt.Sprint(at) {
			t.Errorf("the index has the expiry %q, want %d", expires, at)
		}
	}
	wantTTL := func(t *testing.T, want int) {
		t.Helper()
		for _, set := range []string{byTime, byExpiry} {
			if at := testRedis.Int(t, "PEXPIRETIME", set); at != want && testRedis.Int(t, "EXISTS", set) == 1 {
				t.Errorf("%s expires at %d, want %d", set, at, want)
			}
		}
	}
	expiry := func(key string) int { return testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key) }
	a := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	b := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":500`)
	wantIndex(t, testRedis, id, "u", 2, 2)
	wantTTL(t, expiry(a))
	c := s.issue(t, id, `"userId":"u","group":"pro"`)
	wantIndex(t, testRedis, id, "u", 3, 2)
	wantTTL(t, -1)
	for _, key := range []string{a, b, c} {
		want(t, key)
	}
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+c, "").want(t, 204, "")
	wantIndex(t, testRedis, id, "u", 2, 2)
	wantTTL(t, expiry(a))
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+b, `{"expiresIn":2000}`).want(t, 200, "")
	want(t, b)
	wantTTL(t, expiry(b))
	b = s.rotate(t, id, b)
	want(t, b)
	wantIndex(t, testRedis, id, "u", 2, 2)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+a, `{"expiresIn":null}`, retryKey+"1").want(t, 200, "")
	want(t, a)
	wantIndex(t, testRedis, id, "u", 2, 1)
	wantTTL(t, -1)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+a, `{"expiresIn":100}`).want(t, 200, "")
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+a, `{"expiresIn":null}`, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
	want(t, a)
	wantIndex(t, testRedis, id, "u", 2, 2)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+someKey, `{"expiresIn":100}`).want(t, 404, "")
	wantIndex(t, testRedis, id, "u", 2, 2)
}

// What is issued again and again with one Idempotency-Key, or rotated so, leaves one entry.
func TestIndexAfterReplays(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	path := "/" + id + "/admin/keys"
	var key string
	for i := range 300 {
		got := s.admin(t, "POST", path, `{"userId":"u","group":"pro"}`, retryKey+"1")
		got.want(t, 201, "")
		if key = got.text(t, "apiKey"); i%10 == 0 {
			s.admin(t, "POST", path, `{"userId":"u","group":"pro","tokens":1}`, retryKey+"1").want(t, 422, "")
			s.admin(t, "POST", path, `{"userId":"v","group":"pro"}`, retryKey+"1").want(t, 422, "")
		}
	}
	wantIndex(t, testRedis, id, "u", 1, 0)
	wantIndex(t, testRedis, id, "v", 0, 0)
	rotated := s.rotate(t, id, key, retryKey+"1")
	for range 20 {
		if again := s.rotate(t, id, key, retryKey+"1"); again != rotated {
			t.Errorf("got %s, want %s", again, rotated)
		}
	}
	wantIndex(t, testRedis, id, "u", 1, 0)
	var racing sync.WaitGroup
	for range 16 { // all but one find the key rotated after they have added the new one
		racing.Go(func() {
			if got, err := s.send("POST", path+"/"+rotated+"/rotate", "", bearer(testAdminToken), retryKey+"2"); err != nil || got.status != 200 {
				t.Errorf("%d %s, %v", got.status, got.body, err)
			}
		})
	}
	racing.Wait()
	wantIndex(t, testRedis, id, "u", 1, 0)
}

// Keys that have expired go from the index by themselves, and at the latest with the keys that are issued after them.
func TestIndexOfExpiredKeys(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	var last string
	for range 300 {
		last = s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1`)
	}
	permanent := s.issue(t, id, `"userId":"v","group":"pro"`)
	for range 25 {
		last = s.issue(t, id, `"userId":"v","group":"pro","expiresIn":1`)
	}
	waittest.Eventually(t, 30*time.Second, func() error { return s.consume(t, id, last, "").is(401) })
	wantIndex(t, testRedis, id, "u", 0, 0)
	s.issue(t, id, `"userId":"u","group":"pro"`)
	wantIndex(t, testRedis, id, "u", 1, 0)

	st := newTestStore(t, testRedis)
	for i, left := range []int{15, 5, 0, 0} {
		key := fmt.Sprint("user_", i)
		before := testRedis.Int(t, "ZCARD", userKeysByExpiryRedisKey(id, "v"))
		if _, err := st.indexKey(in(10*time.Second), id, "v", key, time.Now(), time.Time{}); err != nil {
			t.Fatal(err)
		}
		if left = max(before-10, 0); i == 3 && before > 0 {
			t.Errorf("%d are left", before)
		}
		wantIndex(t, testRedis, id, "v", 2+i+left, left)
	}
	if got := s.keysOf(t, id, "v"); !slices.Equal(got, []string{permanent}) {
		t.Errorf("got %q, want %q", got, permanent)
	}
}

// A key whose expiry is moved stays in the index, whatever of the change fails.
func TestIndexOfLivingKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"pro":{}}}`)
	s.issue(t, id, `"userId":"u","group":"pro"`)
	keys := []string{s.issue(t, id, `"userId":"u","group":"pro","expiresIn":2`), s.issue(t, id, `"userId":"u","group":"pro","expiresIn":2`)}
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+keys[0], `{"expiresIn":null}`).want(t, 200, "")
	permit(t, r, "-zadd") // the index does not learn of it
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+keys[1], `{"expiresIn":3600}`).want(t, 200, "")
	permit(t, r, "+zadd")
	wantIndex(t, r, id, "u", 3, 0)
	time.Sleep(2100 * time.Millisecond)
	s.issue(t, id, `"userId":"u","group":"pro"`)
	if got := s.keysOf(t, id, "u"); len(got) != 4 || !slices.Contains(got, keys[0]) || !slices.Contains(got, keys[1]) {
		t.Errorf("got %q, want %q among 4", got, keys)
	}
}

// A key that changes after it was read, but before that is in the index, is in it as it is then.
func TestIndexOfChangingKeys(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	var change atomic.Pointer[[]any]
	var failed atomic.Pointer[error]
	proxy := redistest.NewProxy(t, r, func(reply []byte) redistest.Fate {
		if bytes.Contains(reply, []byte("u-owner")) { // that says whose the key is
			if command := change.Swap(nil); command != nil {
				if err := r.DoAll(*command); err != nil {
					failed.Store(&err)
				}
			}
		}
		return redistest.Pass
	})
	st, later := newTestStoreAt(t, proxy.URL), in(time.Hour).UnixMilli()
	for _, test := range []struct {
		command     string
		args        []any
		all, expire int
	}{{"PERSIST", nil, 1, 0}, {"PEXPIREAT", []any{later}, 1, 1}, {"DEL", nil, 0, 0}} {
		key := bulkKeys(t, r, "t", "u-owner", "2026-01-01T00:00:00.000Z", 1, func([]any) {})[0]
		r.Do(t, "EXPIRE", "apiKey:"+key, 60)
		command := append([]any{test.command, "apiKey:" + key}, test.args...)
		change.Store(&command)
		if _, err := st.indexStored(in(10*time.Second), key); err != nil || change.Load() != nil || failed.Load() != nil {
			t.Fatalf("%s: %v, %v", test.command, err, failed.Load())
		}
		wantIndex(t, r, "t", "u-owner", test.all, test.expire)
		if at := r.String(t, "ZSCORE", userKeysByExpiryRedisKey("t", "u-owner"), key); test.expire == 1 && at != fmt.Sprint(later) {
			t.Errorf("it expires at %s in the index, want %d", at, later)
		}
		r.Do(t, "DEL", userKeysByTimeRedisKey("t", "u-owner"), userKeysByExpiryRedisKey("t", "u-owner"))
	}
}

// A key that is created after a listing did not find it is listed, and stays in the index.
func TestIndexOfKeysThatAppear(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	id := newTenantIn(t, r, `{}`)
	create := []any{"HSET", "apiKey:" + someKey, "tenantId", id, "userId", "u", "createdAt", "2026-01-01T00:00:00.000Z", "tokensLeft", 1}
	var replies atomic.Int64
	proxy := redistest.NewProxy(t, r, func(reply []byte) redistest.Fate {
		if bytes.Contains(reply, []byte(someKey)) {
			replies.Store(1) // this page of the index
		} else if replies.Load() > 0 && replies.Add(1) == 2 { // says that there is no such key
			if err := r.DoAll(create); err != nil {
				t.Error(err)
			}
		}
		return redistest.Pass
	})
	st := newTestStoreAt(t, proxy.URL)
	tn := st.wantTenant(t, id)
	if _, err := st.Key(in(10*time.Second), tn, someKey); !errors.Is(err, ErrNoKey) { // Redis knows the script now
		t.Fatal(err)
	}
	toIndex(t, r, id, "u", 1_767_225_600_000)([]any{someKey})
	keys, next, err := st.UserKeys(in(10*time.Second), tn, "u", indexCursor{}, 10)
	if err != nil || len(keys) != 1 || keys[0].key != someKey || next != nil {
		t.Errorf("got %+v, %v, %v after %d replies", keys, next, err, replies.Load())
	}
	wantIndex(t, r, id, "u", 1, 0)
}

// However changes of an expiry race, the index ends with the last.
func TestIndexUnderRacingChanges(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 1)
	key := services[0].issue(t, id, `"userId":"u","group":"pro"`)
	for range 10 {
		load{
			services: services, clients: 8, requests: 4, statuses: []int{200},
			request: func(client, i int) request {
				change := fmt.Sprintf(`{"expiresIn":%d}`, 1000+client*10+i)
				if (client+i)%3 == 0 {
					change = `{"expiresIn":null}`
				}
				return patchRequest(id, key, change, 0)
			},
		}.run(t)
		got := testRedis.String(t, "ZSCORE", userKeysByExpiryRedisKey(id, "u"), key)
		if at := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key); at < 0 && got != "" || at >= 0 && got != strconv.Itoa(at) {
			t.Errorf("the index has the expiry %q, want %d", got, at)
		}
	}
}

// All pages together have each key once, oldest first, whatever is in the index beside them.
func TestKeyPages(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	for _, limit := range []int{1, 2, 7, 40, 1000} {
		user := fmt.Sprint("u", limit)
		var want []string
		for i, n := range []int{3, 41, 0, 2, 1, 30} {
			at := time.UnixMilli(1_767_225_600_000 + int64(i)).UTC()
			keys := bulkKeys(t, testRedis, id, user, at.Format(timeLayout), n, toIndex(t, testRedis, id, user, at.UnixMilli()))
			for _, key := range keys {
				want = append(want, key+" "+at.Format(timeLayout))
			}
			dead := make([]any, 25) // before, between and after them
			for j := range dead {
				dead[j], _ = newCredential(userKeyPrefix)
			}
			toIndex(t, testRedis, id, user, at.UnixMilli())(append(dead, "", "{x}", someKey))
		}
		got, _ := s.pagesOf(t, id, user, limit)
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d have\n%q, want\n%q", limit, got, want)
		}
		wantIndex(t, testRedis, id, user, len(want), 0)
		if again, pages := s.pagesOf(t, id, user, limit); !slices.Equal(again, want) || pages != (len(want)+limit-1)/limit {
			t.Errorf("without dead entries %d pages of %d have\n%q", pages, limit, again)
		}
	}
}

// A page looks at no more keys than it may have, however many there are.
func TestKeyPageCost(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st, id := newTestStore(t, r), newTenantIn(t, r, `{}`)
	tn := st.wantTenant(t, id)
	bulkKeys(t, r, id, "u", "2026-01-01T00:00:00.000Z", 2000, toIndex(t, r, id, "u", 1_767_225_600_000))
	r.Do(t, "CONFIG", "RESETSTAT")
	r.Do(t, "CONFIG", "SET", "slowlog-log-slower-than", 0)
	r.Do(t, "CONFIG", "SET", "slowlog-max-len", 1000)
	for cursor := new(indexCursor); cursor.passed < 100; {
		keys, next, err := st.UserKeys(in(10*time.Second), tn, "u", *cursor, 20)
		if err != nil || len(keys) != 20 || next == nil {
			t.Fatalf("%d keys, %v, %v", len(keys), next, err)
		}
		cursor = next
	}
	log := fmt.Sprintf("%s", r.Do(t, "SLOWLOG", "GET", 1000))
	for passed := range 5 {
		if read := fmt.Sprintf("LIMIT %d 21 WITHSCORES", passed*20); !strings.Contains(log, read) {
			t.Errorf("Redis was not asked for %s:\n%s", read, log)
		}
	}
	info := r.String(t, "INFO", "commandstats")
	for command, want := range map[string]int{"evalsha": 100, "zrange": 5, "srandmember": 5, "hmget": 100, "zrem": 0, "smembers": 0} {
		if got := redistest.Calls(info, command); got != want && (command != "evalsha" || got > want+64) {
			t.Errorf("5 pages of 20 keys take %s %d times, want %d", command, got, want)
		}
	}
}

func TestKeyPageQuery(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	path := "/" + id + "/admin/keys?userId=u"
	for _, limit := range []string{"", "0", "-1", "1001", "1.0", "01", "+1", "1e2", "x", "99999999999999999999"} {
		s.admin(t, "GET", path+"&limit="+strings.ReplaceAll(limit, "+", "%2B"), "").
			wantError(t, 400, "limit must be a whole number from 1 to 1000")
	}
	for _, after := range []string{
		"", "x", "1", "1.", ".1", "1.1.1", "-1.0", "1.-1", "01.1", "1.01", "1.100001", "1.x", "99999999999999999999.1", someKey, "1.1 ",
	} {
		s.admin(t, "GET", path+"&after="+strings.ReplaceAll(after, " ", "%20"), "").
			wantError(t, 400, "after must be the next of another page")
	}
	s.admin(t, "GET", path+"&limit=1&limit=2", "").wantError(t, 400, `Query "limit" is duplicated`)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	for query, n := range map[string]int{"": 1, "&limit=1": 1, "&limit=1000&after=0.0": 1, "&after=9999999999999.7": 0} {
		got := s.admin(t, "GET", path+query, "")
		if got.want(t, 200, ""); strings.Count(got.body, key) != n || !strings.HasSuffix(got.body, `"next":null}`+"\n") {
			t.Errorf("%s: got %s", query, got.body)
		}
	}
	toIndex(t, testRedis, id, "many", 5)([]any{"a"})
	bulkKeys(t, testRedis, id, "many", "2026-01-01T00:00:00.000Z", 101, toIndex(t, testRedis, id, "many", 5))
	got := s.admin(t, "GET", "/"+id+"/admin/keys?userId=many", "")
	if n := strings.Count(got.body, `"apiKey"`); n != 99 || got.text(t, "next") != "5.99" {
		t.Errorf("the first page has %d keys and leads to %s", n, got.text(t, "next"))
	}
}

func FuzzIndexCursor(f *testing.F) {
	for _, text := range []string{"", "0.0", "1767225600000.17", "1", "-1.1", "1.100001", "1e3.0", "１.1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := parseIndexCursor(text)
		if ok && (c.String() != text || c.score < 0 || c.passed < 0 || c.passed > maxPassed) {
			t.Errorf("%q is %+v", text, c)
		}
	})
}

// A malformed key hides no other of its user.
func TestMalformedKeysInList(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	path := "/" + id + "/admin/keys"
	var want []string
	for i, test := range []struct{ field, value string }{
		{}, {"createdAt", "1767225600000"}, {"createdAt", "2026-01-02Ts3cret"}, {"tokensLeft", "50.0"}, {"list", ""}, {},
	} {
		got := s.admin(t, "POST", path, `{"userId":"u","group":"pro"}`)
		key := got.text(t, "apiKey")
		state := "malformed"
		switch test.field {
		case "":
			state = testRedis.String(t, "HGET", "apiKey:"+key, "createdAt")
		case "list":
			malformed{"", "RPUSH", []any{"s3cret"}}.put(t, "apiKey:"+key)
		default:
			testRedis.Do(t, "HSET", "apiKey:"+key, test.field, test.value)
		}
		want = append(want, key+" "+state)
		time.Sleep(2 * time.Millisecond)
		if state == "malformed" {
			logged := s.log.Count("[ERROR]")
			s.admin(t, "GET", path+"/"+key, "").want(t, 500, internalError)
			if n := s.log.Count("[ERROR]") - logged; n != 1 {
				t.Errorf("%d: %d lines in the log", i, n)
			}
		}
	}
	for _, limit := range []int{1, 4, 100} {
		if got, _ := s.pagesOf(t, id, "u", limit); !slices.Equal(got, want) {
			t.Errorf("pages of %d have\n%q, want\n%q", limit, got, want)
		}
	}
	got := s.admin(t, "GET", path+"?userId=u", "")
	if one := `{"apiKey":"` + want[1][:41] + `","error":"malformed"}`; !strings.Contains(got.body, one) {
		t.Errorf("got %s, without %s", got.body, one)
	}
	for _, key := range want {
		if s.log.Count(key[5:41]) > 0 {
			t.Errorf("the log has a key:\n%s", s.log)
		}
	}
	for _, text := range []string{"createdAt is not a time", "tokensLeft is not a whole number", "WRONGTYPE"} {
		if s.log.Count(text) == 0 {
			t.Errorf("the log does not say %s:\n%s", text, s.log)
		}
	}
	s.wantNoValue(t)
}

// What is in the set of earlier versions is listed like the rest, and moved: at most 1,000 keys a request.
func TestOldIndexIsMoved(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	old := userKeysRedisKey(id, "u")
	toOld := func(keys []any) { testRedis.Do(t, "SADD", append([]any{old}, keys...)...) }
	want := bulkKeys(t, testRedis, id, "u", "2026-01-01T00:00:00.000Z", 1, toOld)
	want = append(want, bulkKeys(t, testRedis, id, "u", "2026-01-02T00:00:00.000Z", 40, toIndex(t, testRedis, id, "u", 1_767_312_000_000))...)
	want = append(want, bulkKeys(t, testRedis, id, "u", "2026-01-03T00:00:00.000Z", 2200, toOld)...)
	broken := bulkKeys(t, testRedis, id, "u", "1767225600000", 1, toOld)[0]
	list := bulkKeys(t, testRedis, id, "u", "", 1, toOld)[0]
	malformed{"", "RPUSH", []any{"x"}}.put(t, "apiKey:"+list)
	expiring := s.issue(t, id, `"userId":"u","group":"pro","expiresIn":1000`)
	other := s.issue(t, id, `"userId":"v","group":"pro"`)
	toOld([]any{want[0], expiring, other, someKey, s.login(t, id), "nonsense", "{x}"})
	var size int
	first := repeat(func() reply {
		size = testRedis.Int(t, "SCARD", old)
		return s.admin(t, "GET", "/"+id+"/admin/keys?userId=u&limit=1000", "")
	})
	first.want(t, 200, `{"keys":[],"next":"0.0"}`)
	if left := testRedis.Int(t, "SCARD", old); left < size-1000 || left > size-100 { // a busy machine moves fewer
		t.Errorf("%d are left of %d", left, size)
	}
	got, pages := s.pagesOf(t, id, "u", 1000)
	for i := range got {
		got[i] = got[i][:41]
	}
	want = append(want, expiring)
	unreadable := []string{broken, list}
	slices.Sort(unreadable)
	want = append(unreadable, want...)
	if !slices.Equal(got, want) || pages < 4 {
		t.Errorf("%d pages have %d keys, want 4 or more with %d", pages, len(got), len(want))
	}
	wantIndex(t, testRedis, id, "u", len(want), 1)
	wantIndex(t, testRedis, id, "v", 1, 0)

	t.Run("what is revoked leaves the set, too", func(t *testing.T) {
		toOld([]any{want[5], want[6]})
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+want[5], "").want(t, 204, "")
		if left := testRedis.Int(t, "SCARD", old); left != 1 {
			t.Errorf("%d are left of 2", left)
		}
	})
}

// A user ID may have braces, which in a cluster lead to other slots. The users are in one slot, their indexes in others.
func testIndexInCluster(t *testing.T) {
	c := redistest.SharedCluster(t)
	r := &redistest.Server{Cluster: c}
	s := newService(t, "REDIS_URL="+c.URL())
	id := newClusterTenant(t, s, `{"user_groups":{"pro":{"tokens":9}}}`)
	for _, user := range []string{"plain", "a{b}c", "{b}", "a}b", "{", "}", "{}x", "a{}{b}"} {
		quoted, _ := json.Marshal(user)
		members := fmt.Sprintf(`"userId":%s,"group":"pro"`, quoted)
		keys := []string{s.issue(t, id, members), s.issue(t, id, members+`,"expiresIn":1000`)}
		byTime, byExpiry, old := userKeysByTimeRedisKey(id, user), userKeysByExpiryRedisKey(id, user), userKeysRedisKey(id, user)
		if redisdb.Slot(byTime) != redisdb.Slot(byExpiry) || user == "plain" && redisdb.Slot(byTime) != redisdb.Slot(old) {
			t.Errorf("%s: the index is in several slots", user)
		}
		wantIndex(t, r, id, user, 2, 1)
		r.Do(t, "DEL", byTime, byExpiry)
		r.Do(t, "SADD", old, keys[0], keys[1], someKey)
		got, _ := s.pagesOf(t, id, strings.NewReplacer("{", "%7B", "}", "%7D").Replace(user), 1)
		if len(got) != 2 {
			t.Errorf("%s has %q", user, got)
		}
		wantIndex(t, r, id, user, 2, 1)
		r.Do(t, "SADD", old, keys[0])
		rotated := s.rotate(t, id, keys[0])
		wantIndex(t, r, id, user, 2, 1)
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+rotated, "").want(t, 204, "")
		wantIndex(t, r, id, user, 1, 1)
	}
	s.wantUsers(t, id, "a{b}c 1", "a{}{b} 1", "a}b 1", "plain 1", "{ 1", "{b} 1", "{}x 1", "} 1")
	for _, user := range []string{"{b}", "plain"} {
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+s.keysOf(t, id, user)[0], "").want(t, 204, "")
	}
	s.wantUsers(t, id, "a{b}c 1", "a{}{b} 1", "a}b 1", "{ 1", "{}x 1", "} 1")
	if n := r.Int(t, "ZCARD", usersRedisKey(id, "")); n != 6 {
		t.Errorf("Redis has %d users, want 6", n)
	}
	s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	if r.Int(t, "EXISTS", usersRedisKey(id, "")) != 0 {
		t.Error("a tenant that was deleted has users")
	}
}

// Keys that an index lacks are found after -reindex, which runs beside a service. What it cannot read stops nothing.
func TestReindex(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	want := make(map[string][]string)
	for i := range 60 {
		user := fmt.Sprintf("u-%d", i%20)
		members := fmt.Sprintf(`"userId":%q,"group":"stripe_basic"`, user)
		if i%3 == 0 {
			members += `,"expiresIn":1000`
		}
		want[user] = append(want[user], s.issue(t, "abc", members))
		s.login(t, "abc")
	}
	for user, keys := range want {
		r.Do(t, "DEL", userKeysByTimeRedisKey("abc", user), userKeysByExpiryRedisKey("abc", user))
		if user > "u-5" {
			r.Do(t, "SADD", userKeysRedisKey("abc", user), keys[0], someKey)
		}
	}
	if got := s.keysOf(t, "abc", "u-1"); len(got) > 0 {
		t.Fatalf("got %q", got)
	}
	r.Do(t, "HSET", "apiKey:user_broken", "userId", "u-1", "tenantId", "a{b}")
	list, timeless := s.issue(t, "abc", `"userId":"u-x","group":"stripe_basic"`), s.issue(t, "abc", `"userId":"u-y","group":"stripe_basic"`)
	r.Do(t, "DEL", "apiKey:"+list)
	r.Do(t, "RPUSH", "apiKey:"+list, "s3cret")
	r.Do(t, "HSET", "apiKey:"+timeless, "createdAt", "s3cret")
	r.Do(t, "SET", "userKeys:abc:u-z", "s3cret")
	p := startProcess(t, []string{"REDIS_URL=" + r.URL()}, "-reindex")
	code := p.exitCode(t)
	if code != 0 || p.log.Count("[INFO] Indexed 63 API keys\n") != 1 || p.log.Count("[WARN] 3 keys could not be read\n") != 1 {
		t.Errorf("exit code %d, log:\n%s", code, p.log)
	}
	for _, name := range []string{list, timeless, "userKeys:abc:u-z"} {
		if p.log.Count("[WARN] The key "+keyName(name)+" cannot be read: ") != 1 || p.log.Count(name) > 0 {
			t.Errorf("the log does not name %s by %s:\n%s", name, keyName(name), p.log)
		}
	}
	if p.log.Count("s3cret") > 0 {
		t.Errorf("a value is in the log:\n%s", p.log)
	}
	expiring := 0
	for user, keys := range want {
		expiring += r.Int(t, "ZCARD", userKeysByExpiryRedisKey("abc", user))
		if got := s.keysOf(t, "abc", user); !slices.Equal(got, keys) {
			t.Errorf("%s has %q, want %q", user, got, keys)
		}
	}
	if left := r.Keys(t, "userKeys:*"); len(left) != 1 || expiring != 20 {
		t.Errorf("%d keys expire, and there are the sets %q", expiring, left)
	}
	s.admin(t, "GET", "/abc/admin/keys?userId=u-y", "").want(t, 200, `{"keys":[{"apiKey":"`+timeless+`","error":"malformed"}],"next":null}`)
	refused := startProcess(t, []string{"REDIS_URL=redis://127.0.0.1:1"}, "-reindex")
	if code := refused.exitCode(t); code != 1 {
		t.Errorf("without Redis: exit code %d", code)
	}
}

// A Redis that no longer responds ends -reindex.
func TestReindexUnavailable(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st := newTestStore(t, r)
	bulkKeys(t, r, "abc", "u", "2026-01-01T00:00:00.000Z", 3000, func([]any) {})
	steps := 0
	unread, err := st.Reindex(t.Context(), func(int) {
		if steps++; steps == 1 {
			r.Kill()
		}
	})
	if unread != 0 || err == nil || steps > 2 {
		t.Errorf("%d steps, %d unread, %v", steps, unread, err)
	}
	if err := r.Start(); err != nil { // to be closed
		t.Fatal(err)
	}
}

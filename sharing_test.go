package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// Keys that share the balance of another, and those of former names in their grace.

// share issues a key that shares the balance of another.
func (s *service) share(t testing.TB, tenant, with string, members ...string) string {
	t.Helper()
	return s.issue(t, tenant, strings.Join(append(members, `"sharesWith":"`+with+`"`), ","))
}

// rotateWithGrace rotates a key and returns the new one.
func (s *service) rotateWithGrace(t testing.TB, tenant, key string, seconds int, headers ...string) string {
	t.Helper()
	path, body := "/"+tenant+"/admin/keys/"+key+"/rotate", fmt.Sprintf(`{"graceSeconds":%d}`, seconds)
	if len(headers) == 0 {
		headers = []string{retryKey + rand.Text()} // it may be repeated
	}
	got := repeat(func() reply { return s.admin(t, "POST", path, body, headers...) })
	got.want(t, 200, "")
	return got.text(t, "apiKey")
}

// revoke revokes a key.
func (s *service) revoke(t testing.TB, tenant, key string) {
	t.Helper()
	got := repeat(func() reply { return s.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+key, "") })
	got.want(t, 204, "")
}

// sharers returns the keys that share with one, by the name that this had first.
func sharers(t testing.TB, r *redistest.Server, first string) []string {
	t.Helper()
	var names []string
	for _, name := range r.Do(t, "ZRANGE", sharesRedisKey(first), 0, -1).([]any) {
		names = append(names, string(name.([]byte)))
	}
	slices.Sort(names)
	return names
}

// A key that shares spends, holds, limits and shows what another has. Its own are its name, times, label, and whether
// it is enabled.
func TestSharedBalance(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), limitedTenant(t, 7, 3600)
	s, other := services[0], services[1]
	key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":1000`)
	issued := s.admin(t, "POST", "/"+id+"/admin/keys", `{"sharesWith":"`+key+`","expiresIn":3600,"label":"phone"}`)
	shared := issued.text(t, "apiKey")
	issued.want(t, 201, `{"apiKey":"`+shared+`","tokensLeft":1000}`)
	if !validCredential(shared, userKeyPrefix) {
		t.Errorf("got the key %s", shared)
	}
	auth, holds := "/"+id+"/auth/", "/"+id+"/tokens/holds"

	t.Run("charges", func(t *testing.T) {
		got := s.consume(t, id, shared, `{"tokens":100}`, retryKey+"1")
		got.want(t, 200, `{"tokensLeft":900}`)
		again := other.consume(t, id, key, `{"tokens":100}`, retryKey+"1")
		again.want(t, 200, `{"tokensLeft":900}`)
		again.wantHeader(t, "Idempotent-Replayed", "true")
		s.consume(t, id, shared, `{"tokens":901}`).want(t, 402, `{"error":"Payment Required","tokensLeft":900}`)
		verified := other.do(t, "GET", auth+"verify?tokens=100&request=1", "", bearer(shared))
		verified.want(t, 200, "")
		verified.wantHeader(t, "X-Tokens-Left", "800")
		other.do(t, "GET", auth+"verify?tokens=100&request=1", "", bearer(key)).wantHeader(t, "Idempotent-Replayed", "true")
	})
	t.Run("holds", func(t *testing.T) {
		hold := s.do(t, "POST", holds, `{"tokens":300}`, bearer(shared), retryKey+"1")
		hold.want(t, 201, "")
		s.do(t, "POST", holds, `{"tokens":300}`, bearer(key), retryKey+"1").want(t, 201, strings.TrimSpace(hold.body))
		settle := holds + "/" + hold.text(t, "holdId") + "/settle"
		s.do(t, "POST", settle, `{"tokens":50}`, bearer(shared)).want(t, 200, `{"charged":50,"tokensLeft":750}`)
		other.do(t, "POST", settle, `{"tokens":50}`, bearer(key)).wantHeader(t, "Idempotent-Replayed", "true")
		held := other.do(t, "POST", holds, `{"tokens":50}`, bearer(key)).text(t, "holdId")
		s.do(t, "DELETE", holds+"/"+held, "", bearer(shared)).want(t, 204, "")
	})
	t.Run("shows", func(t *testing.T) {
		got := other.do(t, "GET", auth+"key", "", bearer(shared))
		s.admin(t, "GET", "/"+id+"/admin/keys/"+shared, "").want(t, 200, strings.TrimSpace(got.body))
		created, expires := got.text(t, "createdAt"), got.text(t, "expiresAt")
		got.want(t, 200, `{"userId":"u","group":"anonymous","label":"phone","createdAt":"`+created+`","expiresAt":"`+expires+
			`","tokensLeft":750}`)
		if at, err := time.Parse(timeLayout, expires); err != nil || time.Until(at).Round(time.Hour) != time.Hour {
			t.Errorf("it expires at %s", expires)
		}
		if of := s.do(t, "GET", auth+"key", "", bearer(key)); of.text(t, "createdAt") == created || of.field(t, "expiresAt") != nil {
			t.Errorf("it shows the times of the other: %s", of.body)
		}
		if got := s.keysOf(t, id, "u"); !slices.Equal(got, []string{key, shared}) {
			t.Errorf("the list has %q, want %q", got, []string{key, shared})
		}
		list := s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", "").body
		if _, last, _ := strings.Cut(list, "},"); !strings.HasPrefix(last, `{"apiKey":"`+shared+`","sharesWith":"`+key+`",`) ||
			strings.Count(list, "sharesWith") != 1 {
			t.Errorf("the list does not say that %s shares with %s: %s", shared, key, list)
		}
	})
	t.Run("is limited", func(t *testing.T) {
		for range 2 {
			s.consume(t, id, shared, "").want(t, 200, "")
		}
		s.consume(t, id, shared, "").want(t, 200, `{"tokensLeft":747}`)
		other.consume(t, id, key, "").want(t, 429, "")
		other.consume(t, id, shared, "").want(t, 429, "")
	})
}

// What an admin changes of a key that shares is the other's, if that is the balance or the group. It is itself enabled,
// labelled, given an expiry, rotated and revoked.
func TestChangeSharedKeys(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 100)
	s, other := services[0], services[1]
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":100`)
	shared := s.share(t, id, key, `"userId":"u"`)
	path := "/" + id + "/admin/keys/"
	patch := func(key, body string, headers ...string) reply {
		return s.admin(t, "PATCH", path+key, body, headers...)
	}

	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":30}`, bearer(key)).text(t, "holdId")
	patch(shared, `{"addTokens":50}`, retryKey+"1").want(t, 200, "")
	patch(shared, `{"addTokens":50}`, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
	patch(shared, `{"tokens":10,"group":"anonymous","label":"a","enabled":false,"expiresIn":3600}`).want(t, 200, "")
	s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(shared)).want(t, 204, "") // which is forfeited
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, `{"userId":"u","group":"anonymous","createdAt":"`+
		s.admin(t, "GET", path+key, "").text(t, "createdAt")+`","expiresAt":null,"tokensLeft":10}`)
	got := s.admin(t, "GET", path+shared, "")
	if !strings.HasSuffix(got.body, `"tokensLeft":10,"enabled":false}`+"\n") || got.text(t, "label") != "a" {
		t.Errorf("got %s", got.body)
	}
	s.consume(t, id, shared, "").wantError(t, 403, "API key is disabled")
	s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":1}`, bearer(shared)).wantError(t, 403, "API key is disabled")
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":9}`)
	for _, name := range []string{"apiKey:" + key, "{apiKey:" + key + "}:holds"} {
		if ttl := testRedis.Int(t, "TTL", name); ttl > 0 {
			t.Errorf("%s expires in %d s", name, ttl)
		}
	}
	if score := testRedis.String(t, "ZSCORE", sharesRedisKey(key), shared); score == "inf" {
		t.Error("the set does not know when it expires")
	}
	patch(shared, `{"enabled":true,"expiresIn":null,"upTo":true,"addTokens":-100}`).want(t, 200, "")
	patch(key, `{"tokens":20,"enabled":false}`).want(t, 200, "")
	s.consume(t, id, shared, "").wantError(t, 403, "API key is disabled")
	patch(key, `{"enabled":true}`).want(t, 200, "")
	other.consume(t, id, shared, "").want(t, 200, `{"tokensLeft":19}`)

	rotated := s.rotate(t, id, shared, retryKey+"1")
	if again := other.rotate(t, id, shared, retryKey+"1"); again != rotated {
		t.Errorf("rotated to %s, then to %s", rotated, again)
	}
	patch(rotated, `{"addTokens":50}`, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
	s.consume(t, id, shared, "").want(t, 401, "")
	next := s.rotate(t, id, key)
	other.consume(t, id, rotated, "").want(t, 200, `{"tokensLeft":18}`)
	s.consume(t, id, next, "").want(t, 200, `{"tokensLeft":17}`)
	if got, want := sharers(t, testRedis, key), []string{rotated}; !slices.Equal(got, want) {
		t.Errorf("%q share with it, want %q", got, want)
	}
	s.revoke(t, id, rotated)
	other.consume(t, id, rotated, "").want(t, 401, "")
	s.admin(t, "GET", path+rotated, "").want(t, 404, "")
	s.consume(t, id, next, "").want(t, 200, `{"tokensLeft":16}`)
	dies := []string{s.share(t, id, next), s.share(t, id, next)}
	later := s.rotate(t, id, dies[0])
	s.revoke(t, id, next)
	for _, k := range append(dies, next, later) {
		other.consume(t, id, k, "").want(t, 401, "")
	}
	if got := s.keysOf(t, id, "u"); len(got) != 0 {
		t.Errorf("the list has %q", got)
	}
	for _, k := range append(dies, key, next, shared, rotated, later) { // what is left is forgotten by and by
		for _, name := range testRedis.Keys(t, "*apiKey:"+k+"*") {
			if ttl := testRedis.Int(t, "TTL", name); ttl < 0 || ttl > 40*24*3600 && !strings.Contains(name, ":usage:") {
				t.Errorf("%s is kept for %d s", name, ttl)
			}
		}
	}
}

func TestInvalidSharing(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	shared, foreign := s.share(t, id, key), s.issue(t, newTenant(t, 1), `"userId":"u","group":"pro"`)
	old := s.issue(t, id, `"userId":"u","group":"pro"`)
	s.rotateWithGrace(t, id, old, 3600)
	const notShared = "sharesWith must be a user_ key of this tenant that shares with no other"
	const both = "group and tokens must not be given with sharesWith: they are those of that key"
	for _, test := range []struct{ members, message string }{
		{`"sharesWith":"` + key + `","group":"pro"`, both},
		{`"sharesWith":"` + key + `","group":""`, both},
		{`"sharesWith":"` + key + `","tokens":1`, both},
		{`"sharesWith":"` + key + `","userId":"v"`, "userId must be that of the key in sharesWith, or be left out"},
		{`"sharesWith":"` + s.login(t, id) + `"`, notShared},
		{`"sharesWith":"` + shared + `"`, notShared},
		{`"sharesWith":"` + old + `"`, notShared},
		{`"sharesWith":"` + foreign + `"`, notShared},
		{`"sharesWith":"` + someKey + `"`, notShared},
		{`"sharesWith":""`, notShared},
		{`"sharesWith":"` + key + `","expiresIn":0`, "expiresIn must be a whole number of seconds from 1 to 315360000"},
		{`"sharesWith":null`, "sharesWith must be a string"},
		{`"userId":"u"`, "group is missing"},
	} {
		for _, header := range []string{"X-Nothing: 1", retryKey + "1"} {
			got := s.admin(t, "POST", "/"+id+"/admin/keys", "{"+test.members+"}", header)
			if got.status != 400 || got.field(t, "error") != test.message {
				t.Errorf("%s: got %d %s, want 400 %s", test.members, got.status, got.body, test.message)
			}
		}
	}
	rotate := "/rotate"
	for body, message := range map[string]string{
		`{"graceSeconds":-1}`:     "graceSeconds must be a whole number from 0 to 604800",
		`{"graceSeconds":604801}`: "graceSeconds must be a whole number from 0 to 604800",
		`{"grace":1}`:             "grace is not a known member",
	} {
		s.admin(t, "POST", "/"+id+"/admin/keys/"+key+rotate, body).wantError(t, 400, message)
	}
	visitor := "/" + id + "/admin/keys/" + s.login(t, id) + rotate
	s.admin(t, "POST", visitor, `{"graceSeconds":1}`).wantError(t, 400, "graceSeconds is for user_ keys")
	s.admin(t, "POST", visitor, `{"graceSeconds":0}`).want(t, 200, "")
	s.admin(t, "POST", "/"+id+"/admin/keys/"+old+rotate, "").wantError(t, 409,
		"The key was rotated: rotate the one that has taken its place")
	if got, want := sharers(t, testRedis, key), []string{shared}; !slices.Equal(got, want) {
		t.Errorf("%q share with it, want %q", got, want)
	}
}

// At most 100 keys share with one, those in their grace included. What has expired makes room.
func TestTooManySharers(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 100)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	short := s.share(t, id, key, `"expiresIn":2`)
	for range maxShares - 2 {
		s.share(t, id, key)
	}
	rotated := s.rotateWithGrace(t, id, key, 3600)
	keys, share := "/"+id+"/admin/keys", `{"sharesWith":"`+rotated+`"}`
	refused := s.admin(t, "POST", keys, share, retryKey+"1")
	if refused.status == 409 { // else the short one has expired on a slow machine
		refused.wantError(t, 409, "Too many keys share the balance")
		s.admin(t, "POST", keys+"/"+rotated+"/rotate", `{"graceSeconds":1}`).wantError(t, 409, "Too many keys share the balance")
		if got := s.keysOf(t, id, "u"); len(got) > 101 {
			t.Errorf("the list has %d keys", len(got))
		}
	}
	waittest.Eventually(t, 30*time.Second, func() error { return s.consume(t, id, short, "").is(401) })
	s.admin(t, "POST", keys, share, retryKey+"1").want(t, 201, "")
	again := s.rotate(t, id, rotated)
	s.consume(t, id, key, "").want(t, 200, "")
	s.revoke(t, id, again)
	s.consume(t, id, key, "").want(t, 401, "")
	if names := testRedis.Keys(t, "apiKey:*"+id+"*"); len(names) != 0 || len(sharers(t, testRedis, key)) != 0 {
		t.Errorf("%q are left", names)
	}
}

// A former name is a key of the new one's balance for its grace, with all that is remembered of it. It dies by itself, by
// being revoked, or with the new one.
func TestGrace(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 100)
	s, other := services[0], services[1]
	old := s.issue(t, id, `"userId":"u","group":"pro","tokens":5000,"label":"l"`) // enough to try until the grace is over
	s.consume(t, id, old, `{"tokens":10}`, retryKey+"1").want(t, 200, `{"tokensLeft":4990}`)
	key := s.rotateWithGrace(t, id, old, 3600, retryKey+"r")
	if again := other.rotateWithGrace(t, id, old, 3600, retryKey+"r"); again != key {
		t.Errorf("rotated to %s, then to %s", key, again)
	}
	other.admin(t, "POST", "/"+id+"/admin/keys/"+old+"/rotate", "", retryKey+"r").want(t, 422, "")
	for _, k := range []string{old, key} {
		other.consume(t, id, k, `{"tokens":10}`, retryKey+"1").wantHeader(t, "Idempotent-Replayed", "true")
		other.consume(t, id, k, `{"tokens":10}`).want(t, 200, "")
		shown := s.admin(t, "GET", "/"+id+"/admin/keys/"+k, "")
		if shown.text(t, "label") != "l" || (shown.field(t, "expiresAt") != nil) != (k == old) {
			t.Errorf("got %s", shown.body)
		}
	}
	if got, want := s.keysOf(t, id, "u"), 2; len(got) != want {
		t.Errorf("the list has %q", got)
	}
	shared := s.share(t, id, key)
	last := s.rotateWithGrace(t, id, key, 1)
	for _, k := range []string{old, shared, last} {
		other.consume(t, id, k, "").want(t, 200, "")
	}
	waittest.Eventually(t, 30*time.Second, func() error { return other.consume(t, id, key, "").is(401) })
	s.revoke(t, id, old)
	s.consume(t, id, old, "").want(t, 401, "")
	other.consume(t, id, shared, "").want(t, 200, "")
	if again := other.rotateWithGrace(t, id, old, 3600, retryKey+"r"); again != key {
		t.Errorf("replayed as %s, want %s", again, key)
	}

	t.Run("of a key that shares", func(t *testing.T) {
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+last, `{"tokens":100}`).want(t, 200, "")
		former, next := shared, s.rotateWithGrace(t, id, shared, 3600)
		s.admin(t, "POST", "/"+id+"/admin/keys/"+former+"/rotate", "").want(t, 409, "")
		s.revoke(t, id, former)
		s.consume(t, id, former, "").want(t, 401, "")
		other.consume(t, id, next, "").want(t, 200, "")
		shared, next = next, s.rotateWithGrace(t, id, next, 3600)
		for _, k := range []string{shared, next} {
			other.consume(t, id, k, "").want(t, 200, "")
		}
		s.revoke(t, id, next)
		for _, k := range []string{shared, next} {
			other.consume(t, id, k, "").want(t, 401, "")
		}
		s.consume(t, id, last, "").want(t, 200, "")
	})
	t.Run("ends with the key", func(t *testing.T) {
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+last, `{"expiresIn":60}`).want(t, 200, "")
		s.rotateWithGrace(t, id, last, 3600)
		if ttl := testRedis.Int(t, "TTL", "apiKey:"+last); ttl < 0 || ttl > 60 {
			t.Errorf("the former name lives for %d s", ttl)
		}
	})
}

// A charge with a key that shares is two commands, wherever the key with the balance has gone, and also with a key in its
// grace; one with another key stays at one.
func TestCommandsOfSharing(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	st := newTestStore(t, r)
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":1000}}}`)
	tn := st.wantTenant(t, id)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	shared := s.share(t, id, key)
	check := func(key string, want, idempotent int) {
		t.Helper()
		charge := func(idempotencyKey string) {
			if _, err := st.Charge(soon(), tn, chargeRequest{key: key, tokens: 1, idempotencyKey: idempotencyKey}); err != nil {
				t.Fatal(err)
			}
		}
		charge("") // Redis learns the scripts
		charge("0")
		count := func() (n int) {
			info := r.String(t, "INFO", "commandstats")
			for _, command := range []string{"evalsha", "eval", "get", "exists"} {
				n += redistest.Calls(info, command)
			}
			return n
		}
		least := func(idempotencyKeys ...string) int { // others have Redis do something, too
			all := make([]int, len(idempotencyKeys))
			for i, idempotencyKey := range idempotencyKeys {
				before := count()
				charge(idempotencyKey)
				all[i] = count() - before
			}
			return slices.Min(all)
		}
		if got := least("", "", "", "", ""); got != want {
			t.Errorf("a charge took %d commands, want %d", got, want)
		}
		if got := least(rand.Text(), rand.Text(), rand.Text(), rand.Text(), rand.Text()) - 1; got != idempotent {
			t.Errorf("a charge with an Idempotency-Key took %d commands, want %d", got, idempotent) // one looks for the record
		}
	}
	check(key, 1, 1)
	check(shared, 2, 2)
	for range 2 {
		key = s.rotate(t, id, key)
		shared = s.rotate(t, id, shared)
	}
	check(key, 1, 2) // the first asks for the name that the key had first
	check(shared, 2, 2)
	key, old := s.rotateWithGrace(t, id, key, 3600), key
	for k, want := range map[string]int{key: 1, shared: 2, old: 2} {
		check(k, want, 2)
	}
	next, former := s.rotateWithGrace(t, id, shared, 3600), shared
	key = s.rotate(t, id, key)
	for k, want := range map[string]int{key: 1, next: 2, former: 2, old: 2} {
		check(k, want, 2)
	}
}

// No token is spent twice, however charges with all keys of a balance race with what becomes of these.
func TestRacingSharers(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 1)
	s := services[0]
	first := s.issue(t, id, `"userId":"u","group":"pro","tokens":100000`)
	revoked, kept := s.share(t, id, first), s.share(t, id, first)
	var present atomic.Pointer[string]
	present.Store(&first)
	var isRevoked, isDisabled, done atomic.Bool
	var charged, refused atomic.Int64
	var charges sync.WaitGroup
	consume := func(s *service, key func() string, n int) {
		for i := 0; !done.Load(); i++ {
			name := key()
			wasRevoked, wasDisabled := isRevoked.Load() && name == revoked, isDisabled.Load()
			body, header := fmt.Sprintf(`{"tokens":%d}`, 1+i%4), fmt.Sprintf("%s%d of %d", retryKey, i, n)
			got, err := s.send("POST", "/"+id+"/tokens/consume", body, bearer(name), header)
			for err == nil && got.status == 503 { // a busy machine has missed a deadline: is it charged?
				got, err = s.send("POST", "/"+id+"/tokens/consume", body, bearer(*present.Load()), header)
				wasRevoked, wasDisabled = false, false
			}
			switch {
			case err != nil || got.status >= 500:
				t.Errorf("%d %s, %v", got.status, got.body, err)
			case got.status == 200 && (wasRevoked || wasDisabled && isDisabled.Load()):
				t.Errorf("charged after it was revoked: %v, or disabled: %v", wasRevoked, wasDisabled)
			case got.status == 200:
				charged.Add(int64(1 + i%4))
			default:
				refused.Add(1)
			}
		}
	}
	for n := range 8 {
		key := []func() string{
			func() string { return revoked }, func() string { return kept }, func() string { return *present.Load() },
			func() string { return first },
		}[n%4]
		charges.Go(func() { consume(services[n/4], key, n) })
	}
	settle := func() { // some more are charged
		before := charged.Load() + refused.Load()
		waittest.Eventually(t, 30*time.Second, func() error {
			if n := charged.Load() + refused.Load() - before; n < 40 {
				return fmt.Errorf("%d were sent", n)
			}
			return nil
		})
	}
	settle()
	for i := range 3 {
		next := services[i%2].rotateWithGrace(t, id, *present.Load(), 3600)
		present.Store(&next)
		settle()
	}
	s.revoke(t, id, revoked)
	isRevoked.Store(true)
	settle()
	path := "/" + id + "/admin/keys/" + *present.Load()
	s.admin(t, "PATCH", path, `{"enabled":false}`).want(t, 200, "")
	isDisabled.Store(true)
	settle()
	isDisabled.Store(false)
	s.admin(t, "PATCH", path, `{"enabled":true}`).want(t, 200, "")
	settle()
	done.Store(true)
	charges.Wait()
	if left := tokensLeft(t, *present.Load()); int64(100000-left) != charged.Load() {
		t.Errorf("%d were charged, and the balance has lost %d", charged.Load(), 100000-left)
	}
}

// A sharingTest is a key with which another shares, and a Redis that ceases to respond.
type sharingTest struct {
	*service
	redis       *redistest.Server
	store       *store // which reaches Redis in any case
	tenant      *tenant
	key, shared string
}

func newSharingTest(t *testing.T, r *redistest.Server, s *service) *sharingTest {
	t.Helper()
	st, id := newTestStore(t, r), newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":1000}}}`)
	c := &sharingTest{service: s, redis: r, store: st, tenant: st.wantTenant(t, id)}
	c.key = s.issue(t, id, `"userId":"u","group":"pro"`)
	c.shared = s.share(t, id, c.key)
	return c
}

// interrupt calls f for tests that are alike, with a store whose process dies at the first, the second, … reply of Redis,
// or before a request of its, until f is done before.
func interrupt(t *testing.T, f func(t *testing.T, c *sharingTest, dying *store) error) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	for _, when := range []string{"reply", "request"} {
		for n, isDone := int64(0), false; !isDone; n++ {
			t.Run(fmt.Sprintf("%s %d", when, n), func(t *testing.T) {
				var isArmed atomic.Bool
				var passed atomic.Int64
				judge := func([]byte) redistest.Fate {
					if isArmed.Load() && passed.Add(1) > n {
						return redistest.Cut
					}
					return redistest.Pass
				}
				pass := func([]byte) redistest.Fate { return redistest.Pass }
				proxy := redistest.NewProxy(t, r, map[string]func([]byte) redistest.Fate{"reply": judge, "request": pass}[when])
				if when == "request" {
					proxy.OnRequest(judge)
				}
				c, dying := newSharingTest(t, r, s), newTestStoreAt(t, proxy.URL)
				dying.wantTenant(t, c.tenant.id)
				isArmed.Store(true)
				err := f(t, c, dying)
				if isDone = err == nil; !isDone && !errors.Is(err, ErrUnavailable) {
					t.Errorf("it failed with %v", err)
				}
				isDone = isDone || n == 100
			})
		}
	}
}

// quick is a deadline for a store that does not reach Redis any more.
func quick() time.Time { return in(300 * time.Millisecond) }

// wantSharers checks which keys share, that each of them and the key itself can be charged, and what is listed.
func (c *sharingTest) wantSharers(t *testing.T, key string, names ...string) {
	t.Helper()
	slices.Sort(names)
	if got := sharers(t, c.redis, c.key); !slices.Equal(got, names) {
		t.Errorf("%q share, want %q", got, names)
	}
	for i, name := range append(names, key) {
		result, err := c.store.Charge(soon(), c.tenant, chargeRequest{key: name, tokens: 1})
		if want := int64(1000 - i - 1); err != nil || result.tokensLeft != want || result.key != key {
			t.Errorf("%s: %d tokens are left to %s, want %d to %s: %v", name, result.tokensLeft, result.key, want, key, err)
		}
	}
	listed := c.keysOf(t, c.tenant.id, "u")
	slices.Sort(listed)
	all := append(slices.Clone(names), key)
	slices.Sort(all)
	if !slices.Equal(listed, all) {
		t.Errorf("the list has %q, want %q", listed, all)
	}
}

// Wherever the process dies while it issues a key that shares, the repeated request issues one, and that does not come back
// once it was revoked.
func TestInterruptedSharing(t *testing.T) {
	interrupt(t, func(t *testing.T, c *sharingTest, dying *store) error {
		k := apiKey{userID: "u", createdAt: time.Now(), tokensLeft: 1000, sharesWith: c.key}
		request := idempotentRequest{key: "1", hash: "h"}
		_, err := dying.ShareKey(quick(), c.tenant, k, request)
		issued, wrong := c.store.ShareKey(soon(), c.tenant, k, request)
		if wrong != nil || issued.tokensLeft != 1000 || err == nil && !issued.replayed {
			t.Errorf("got %+v, %v", issued, wrong)
		}
		c.wantSharers(t, c.key, c.shared, issued.key)
		if _, wrong := c.store.ShareKey(soon(), c.tenant, k, idempotentRequest{key: "1", hash: "other"}); !errors.Is(wrong, ErrKeyReused) {
			t.Errorf("another request got %v", wrong)
		}
		c.revoke(t, c.tenant.id, issued.key)
		again, wrong := c.store.ShareKey(soon(), c.tenant, k, request)
		if wrong != nil || again.key != issued.key || !again.replayed {
			t.Errorf("got %+v, %v, want %s", again, wrong, issued.key)
		}
		if got := sharers(t, c.redis, c.key); !slices.Equal(got, []string{c.shared}) {
			t.Errorf("%q share", got)
		}
		c.consume(t, c.tenant.id, issued.key, "").want(t, 401, "")
		if got := c.keysOf(t, c.tenant.id, "u"); len(got) != 2 {
			t.Errorf("the list has %q", got)
		}
		return err
	})
}

// So it is with a rotation with a grace, and with a revocation.
func TestInterruptedRotationOfSharers(t *testing.T) {
	interrupt(t, func(t *testing.T, c *sharingTest, dying *store) error {
		request := idempotentRequest{key: "1"}
		_, err := dying.RotateKey(quick(), c.tenant, c.key, time.Hour, request)
		rotated, wrong := c.store.RotateKey(soon(), c.tenant, c.key, time.Hour, request)
		if wrong != nil || rotated.tokensLeft != 1000 || err == nil && !rotated.replayed {
			t.Errorf("got %+v, %v", rotated, wrong)
		}
		c.wantSharers(t, rotated.key, c.key, c.shared)
		return err
	})
}

func TestInterruptedRevocationOfSharers(t *testing.T) {
	interrupt(t, func(t *testing.T, c *sharingTest, dying *store) error {
		err := dying.RevokeKey(quick(), c.tenant, c.key, false)
		if wrong := c.store.RevokeKey(soon(), c.tenant, c.key, false); wrong != nil && wrong != ErrNoKey {
			t.Error(wrong)
		}
		for _, k := range []string{c.key, c.shared} {
			if _, err := c.store.Charge(soon(), c.tenant, chargeRequest{key: k, tokens: 1}); err != ErrNoKey {
				t.Errorf("a charge after the revocation: %v", err)
			}
		}
		if got := c.keysOf(t, c.tenant.id, "u"); len(got) != 0 {
			t.Errorf("the list has %q", got)
		}
		return err
	})
}

// A key that begins to share while the other is rotated or revoked is rotated or revoked with it.
func TestSharingMeanwhile(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	for _, what := range []string{"rotate", "revoke"} {
		t.Run(what, func(t *testing.T) {
			c := newSharingTest(t, r, s)
			var shared atomic.Pointer[string]
			var once sync.Once
			proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate { return redistest.Pass })
			st := newTestStoreAt(t, proxy.URL)
			proxy.OnRequest(func(request []byte) redistest.Fate {
				if strings.Contains(string(request), sharesRedisKey(c.key)) && strings.Contains(string(request), c.shared) {
					once.Do(func() {
						k := apiKey{userID: "u", createdAt: time.Now(), tokensLeft: 1000, sharesWith: c.key}
						if issued, err := c.store.ShareKey(soon(), c.tenant, k, idempotentRequest{}); err == nil {
							shared.Store(&issued.key)
						}
					})
				}
				return redistest.Pass
			})
			if what == "revoke" {
				if err := st.RevokeKey(soon(), c.tenant, c.key, false); err != nil {
					t.Error(err)
				}
				c.consume(t, c.tenant.id, *shared.Load(), "").want(t, 401, "")
				return
			}
			rotated, err := st.RotateKey(soon(), c.tenant, c.key, 0, idempotentRequest{})
			if err != nil {
				t.Error(err)
			}
			c.wantSharers(t, rotated.key, c.shared, *shared.Load())
		})
	}
}

// A session goes on with a key that shares as long as that exists and is enabled, wherever it and the other key go. What
// it has used is paid in any case.
func TestSessionOfSharers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const config = `{"user_groups":{"pro":{"tokens":1000}}}`
	for _, test := range []struct {
		name   string
		change func(t *testing.T, tenant, key, shared string) (present string)
		check  error // nil: it goes on
	}{
		{"revoked", func(t *testing.T, tenant, key, shared string) string {
			s.revoke(t, tenant, shared)
			return key
		}, gateway.ErrNoHold},
		{"disabled", func(t *testing.T, tenant, key, shared string) string {
			s.admin(t, "PATCH", "/"+tenant+"/admin/keys/"+shared, `{"enabled":false}`).want(t, 200, "")
			return key
		}, ErrKeyDisabled},
		{"other disabled", func(t *testing.T, tenant, key, _ string) string {
			s.admin(t, "PATCH", "/"+tenant+"/admin/keys/"+key, `{"enabled":false}`).want(t, 200, "")
			return key
		}, ErrKeyDisabled},
		{"rotated", func(t *testing.T, tenant, key, shared string) string {
			s.rotate(t, tenant, shared)
			return s.rotate(t, tenant, key)
		}, nil},
		{"rotated, then revoked", func(t *testing.T, tenant, key, shared string) string {
			s.revoke(t, tenant, s.rotate(t, tenant, shared))
			return s.rotateWithGrace(t, tenant, key, 3600)
		}, gateway.ErrNoHold},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id := newTenantIn(t, testRedis, config)
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			shared := s.share(t, id, key)
			a := &sessionTest{service: s, id: id, sessionAccount: newSessionOf(t, newBareServer(t, new(telemetrytest.Log)), id, shared)}
			first, further := a.mustHold(t, takes(100)), a.mustHold(t, furtherOf(takes(50)))
			if err := a.Check(soon(), []string{"m"}); err != nil {
				t.Error(err)
			}
			present := test.change(t, id, key, shared)
			if err := a.Check(soon(), []string{"m"}); !errors.Is(err, test.check) {
				t.Errorf("the check says %v, want %v", err, test.check)
			}
			if err := a.Renew(soon(), further, time.Minute); err != nil {
				t.Error(err)
			}
			balance, next, err := a.Exchange(soon(), first.ID, gateway.Usage{Cost: 30}, takes(200))
			if !errors.Is(err, test.check) || balance != (gateway.Balance{Charged: 30, Left: 920}) {
				t.Errorf("got %+v, %v, want %v", balance, err, test.check)
			}
			if _, err := a.Hold(soon(), furtherOf(takes(10))); !errors.Is(err, test.check) {
				t.Errorf("a further hold: %v, want %v", err, test.check)
			}
			left := 920
			if err == nil {
				a.Settle(soon(), next.ID, gateway.Usage{Cost: 20})
				left = 890 // 10 are held
			}
			if got, err := a.Settle(soon(), further.ID, gateway.Usage{Cost: 7}); err != nil || got.Charged != 7 {
				t.Errorf("got %+v, %v", got, err)
			}
			if got, want := tokensLeft(t, present), left+43; got != want {
				t.Errorf("%d tokens are left, want %d", got, want)
			}
		})
	}
}

// A session with a key in its grace is one with the key itself when that has passed, as if there had been none; but not
// if the former name was revoked.
func TestSessionInGrace(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, isRevoked := range []bool{false, true} {
		t.Run(fmt.Sprint(isRevoked), func(t *testing.T) {
			t.Parallel()
			id := newTenantIn(t, testRedis, `{"user_groups":{"pro":{"tokens":1000}}}`)
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			a := &sessionTest{service: s, id: id, sessionAccount: newSessionOf(t, newBareServer(t, new(telemetrytest.Log)), id, key)}
			hold := a.mustHold(t, takes(100))
			s.rotateWithGrace(t, id, key, 2)
			if err := a.Check(soon(), []string{"m"}); err != nil {
				t.Error(err)
			}
			if isRevoked {
				s.revoke(t, id, key)
			}
			waittest.Eventually(t, 30*time.Second, func() error { return s.consume(t, id, key, "").is(401) })
			if err := a.Check(soon(), []string{"m"}); (err != nil) != isRevoked {
				t.Errorf("the check says %v", err)
			}
			if got, err := a.Settle(soon(), hold.ID, gateway.Usage{Cost: 10}); err != nil || got.Charged != 10 {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// If the key with the balance has expired, those that share it are gone, too, and are deleted when somebody comes with
// them.
func TestOrphanedSharers(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	for _, visit := range []func(shared string) reply{
		func(shared string) reply { return s.consume(t, id, shared, "") },
		func(shared string) reply { return s.do(t, "GET", "/"+id+"/auth/key", "", bearer(shared)) },
		func(shared string) reply { return s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", "") },
	} {
		key := s.issue(t, id, `"userId":"u","group":"pro"`)
		rotated := s.rotate(t, id, key)
		shared := s.share(t, id, rotated)
		s.share(t, id, rotated)
		testRedis.Do(t, "PEXPIRE", "apiKey:"+rotated, 0)
		testRedis.Do(t, "PEXPIRE", currentRedisKey(key), 0)
		if got := visit(shared); got.status == 200 {
			got.want(t, 200, `{"keys":[],"next":null}`)
		} else {
			got.want(t, 401, "")
		}
		if n := testRedis.Int(t, "EXISTS", "apiKey:"+shared, sharesRedisKey(key)); n != 0 {
			t.Errorf("%d keys in Redis are left", n)
		}
		s.revoke(t, id, s.issue(t, id, `"userId":"u","group":"pro"`))
	}
}

// A user who signs in while the former name of the user's key is in its grace gets the new one, even if the process that
// rotated it has died before the sign-in was told.
func TestSignInGrace(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s, st := services[0], newTestStore(t, testRedis)
	old := s.wantSignIn(t, id, "u1", 1000)
	shared := s.share(t, id, old)
	r, err := st.rotate(soon(), st.wantTenant(t, id), old, time.Hour, idempotentRequest{}) // and no more
	if err != nil {
		t.Fatal(err)
	}
	if key := s.wantSignIn(t, id, "u1", 1000); key != r.key {
		t.Errorf("got %s, want %s", key, r.key)
	}
	visitor := s.login(t, id)
	left := 1000 + tokensLeft(t, visitor)
	s.wantSignIn(t, id, "u1", left, bearer(visitor))
	for _, k := range []string{old, shared} {
		left--
		s.consume(t, id, k, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, left))
	}
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+old+"?forget=true", "").want(t, 204, "")
	if key := s.wantSignIn(t, id, "u1", left); key != r.key {
		t.Errorf("got %s after its former name was revoked, want %s", key, r.key)
	}
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+r.key+"?forget=true", "").want(t, 204, "")
	s.consume(t, id, shared, "").want(t, 401, "")
	if key := s.wantSignIn(t, id, "u1", 1000); key == r.key {
		t.Error("the key has come back")
	}
}

// The gateway holds, charges and gives back tokens of the key with the balance, whatever becomes of the one that shares
// it meanwhile. Responses are those of the user.
func TestGatewayOfSharers(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1000, "")
	key := g.issue(t, g.tenant, `"userId":"u","group":"anonymous","tokens":1000`)
	g.key = g.share(t, g.tenant, key)
	const body = `{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"Hello!"}]}`
	got := g.call(t, chatPath, body)
	if err := got.is(200); err != nil {
		t.Error(err)
	}
	left := tokensLeft(t, key)
	if charged := got.header.Get("X-Tokens-Charged"); charged == "" || fmt.Sprint(1000-left) != charged {
		t.Errorf("charged %s, and %d are left", charged, left)
	}
	st := newTestStore(t, testRedis)
	tn := st.wantTenant(t, g.tenant)
	if owner, err := st.Owner(soon(), tn, g.key); owner != "u:u" || err != nil {
		t.Errorf("the owner is %q, %v", owner, err)
	}
	a := &account{server: newBareServer(t, new(telemetrytest.Log)), tenant: tn, key: g.key, header: make(map[string][]string),
		place: fairpool.New(10, 1).Claim("t", "u")}
	if _, err := a.Charge(soon(), nil, gateway.Usage{Cost: 10}); err != nil {
		t.Error(err)
	}
	hold, err := a.Hold(soon(), takes(100))
	if err != nil || hold.Owner != "u:u" {
		t.Errorf("got %+v, %v", hold, err)
	}
	g.revoke(t, g.tenant, g.key)
	if err := a.Refund(soon(), 10); err != nil {
		t.Error(err)
	}
	if err := a.Renew(soon(), hold, time.Minute); err != nil {
		t.Error(err)
	}
	rotated := g.rotateWithGrace(t, g.tenant, key, 3600)
	if balance, err := a.Settle(soon(), hold.ID, gateway.Usage{Cost: 40}); err != nil || balance.Charged != 40 {
		t.Errorf("got %+v, %v", balance, err)
	}
	if got := tokensLeft(t, rotated); got != left-40 {
		t.Errorf("%d tokens are left, want %d", got, left-40)
	}
	if err := g.call(t, chatPath, body).is(401); err != nil {
		t.Error(err)
	}
	testRedis.Do(t, "HDEL", "apiKey:"+rotated, "userId")
	shared := g.share(t, g.tenant, rotated)
	if owner, err := st.Owner(soon(), tn, shared); owner != "k:"+key || err != nil {
		t.Errorf("the owner is %q, %v", owner, err)
	}
}

// Keys that share are indexed anew like others.
func TestReindexSharers(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":1000}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	want := []string{key, s.share(t, id, key), s.rotateWithGrace(t, id, key, 3600)}
	r.Do(t, "DEL", userKeysByTimeRedisKey(id, "u"), userKeysByExpiryRedisKey(id, "u"))
	if unread, err := newTestStore(t, r).Reindex(t.Context(), func(int) {}); err != nil || unread != 0 {
		t.Errorf("%d were not read, %v", unread, err)
	}
	got := s.keysOf(t, id, "u")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the list has %q, want %q", got, want)
	}
	wantIndex(t, r, id, "u", 3, 1)
}

// In a cluster all keys of a balance are in one slot, and go with it.
func TestSharingInCluster(t *testing.T) {
	c := redistest.SharedCluster(t)
	r := &redistest.Server{Cluster: c}
	s := newService(t, "REDIS_URL="+c.URL())
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":1000}}}`)
	first := s.issue(t, id, `"userId":"u","group":"pro"`)
	shared := s.admin(t, "POST", "/"+id+"/admin/keys", `{"sharesWith":"`+first+`"}`, retryKey+"1").text(t, "apiKey")
	again := s.admin(t, "POST", "/"+id+"/admin/keys", `{"sharesWith":"`+first+`"}`, retryKey+"1")
	again.want(t, 201, `{"apiKey":"`+shared+`","tokensLeft":1000}`)
	again.wantHeader(t, "Idempotent-Replayed", "true")
	key := s.rotateWithGrace(t, id, first, 3600)
	shared = s.rotate(t, id, shared)
	left := 1000
	charge := func() {
		for _, k := range []string{first, shared, key} {
			left--
			s.consume(t, id, k, "", retryKey+fmt.Sprint(left)).want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, left))
		}
	}
	charge()
	slot := redisdb.Slot("apiKey:" + first)
	from := c.Owner(t, "apiKey:"+first)
	to := c.Nodes[slices.IndexFunc(c.Nodes[:c.Masters], func(n *redistest.Server) bool { return n != from })]
	c.MoveSlots(t, from, to, []int{int(slot)})
	charge()
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+shared, `{"expiresIn":3600,"addTokens":1}`, retryKey+"1").want(t, 200, "")
	s.revoke(t, id, key)
	for _, k := range []string{first, shared, key} {
		s.consume(t, id, k, "").want(t, 401, "")
	}
	c.MoveSlots(t, to, from, []int{int(slot)})
}

// A key that shares is refilled like the other, even if a charge sends only the key's own group because the config has
// many. It is charged in a full Redis, too.
func TestSharedBalanceElsewhere(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	groups := `"pro":{"tokens":100,"refill":{"tokens":1000,"every":60}}`
	for i := range 200 {
		groups += fmt.Sprintf(`,"a group with a long name %d":{"tokens":1}`, i)
	}
	id := newTenantIn(t, r, `{"user_groups":{`+groups+`}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	shared := s.share(t, id, key)
	r.Do(t, "HSET", "apiKey:"+key, "createdAt", formatTime(time.Now().Add(-90*time.Second)))
	if got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(shared)); got.field(t, "tokensLeft") != float64(1000) {
		t.Errorf("got %s", got.body)
	}
	refills := s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").text(t, "refillsAt")
	for range 2 {
		got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+shared, `{"label":"l"}`, retryKey+"1")
		if at := got.text(t, "refillsAt"); at != refills {
			t.Errorf("it is refilled at %s, want %s", at, refills)
		}
	}
	s.consume(t, id, shared, `{"tokens":500}`).want(t, 200, `{"tokensLeft":500}`)
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	s.consume(t, id, shared, "").want(t, 200, `{"tokensLeft":499}`)
	s.admin(t, "PATCH", "/"+id+"/admin/keys/"+shared, `{"addTokens":-9}`).want(t, 200, "")
	s.revoke(t, id, shared)
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":489}`)
}

// Whatever command Redis denies while a key that shares is made, none is left that would never expire.
func TestDeniedSharing(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":100}}}`)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	st := newTestStore(t, r)
	tn := st.wantTenant(t, id)
	now := time.Now()
	k := apiKey{createdAt: now, expiresAt: now.Add(time.Hour), tokensLeft: 100, sharesWith: key}
	for i, command := range []string{"hset", "pexpire", "zadd", "set"} {
		permit(t, r, "-"+command)
		request := idempotentRequest{key: fmt.Sprint(i), hash: "h"}
		if command == "hset" || command == "pexpire" { // which the record needs first
			request = idempotentRequest{}
		}
		if got, err := st.ShareKey(soon(), tn, k, request); err == nil {
			t.Errorf("-%s: got %+v", command, got)
		}
		permit(t, r, "+"+command)
		if names := r.Keys(t, "apiKey:*"); len(names) != 1 {
			t.Errorf("-%s: %q are there", command, names)
		}
		if got, err := st.ShareKey(soon(), tn, k, request); err != nil {
			t.Errorf("-%s: %v", command, err)
		} else {
			s.revoke(t, id, got.key)
		}
	}
}

// Whether a key still shares is decided in the step that takes the tokens: not before.
func TestChargeMeanwhile(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	off := false
	for what, want := range map[string]error{"revoke": ErrNoKey, "disable": ErrKeyDisabled, "rotate the other": nil} {
		t.Run(what, func(t *testing.T) {
			c := newSharingTest(t, r, s)
			var once sync.Once
			proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate { return redistest.Pass })
			st := newTestStoreAt(t, proxy.URL)
			proxy.OnRequest(func(request []byte) redistest.Fate {
				both := strings.Contains(string(request), "apiKey:"+c.shared) && strings.Contains(string(request), "apiKey:"+c.key)
				if !both {
					return redistest.Pass
				}
				once.Do(func() {
					var err error
					switch what {
					case "revoke":
						err = c.store.RevokeKey(soon(), c.tenant, c.shared, false)
					case "disable":
						_, _, err = c.store.UpdateKey(soon(), c.tenant, c.shared, keyChange{enabled: &off}, idempotentRequest{})
					default:
						_, err = c.store.RotateKey(soon(), c.tenant, c.key, 0, idempotentRequest{})
					}
					if err != nil {
						t.Error(err)
					}
				})
				return redistest.Pass
			})
			_, err := st.Charge(soon(), c.tenant, chargeRequest{key: c.shared, tokens: 1})
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}

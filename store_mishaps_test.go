package main

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// What must not happen to a key if Redis holds what tollgate never writes, or if sign-ins are interrupted or race.

// A key without tokensLeft that has a hold which has expired ends no request late, hides no other, and can be mended.
func TestKeyWithoutBalance(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	id := newTenantIn(t, r, signInConfig)
	members := `"userId":"u","group":"anonymous"`
	good, bad := s.issue(t, id, members), s.issue(t, id, members)
	r.Do(t, "HDEL", "apiKey:"+bad, "tokensLeft")
	r.Do(t, "HSET", "apiKey:"+bad, "holdsDue", 1)
	before := redistest.Calls(r.String(t, "INFO", "commandstats"), "evalsha")
	s.do(t, "GET", "/"+id+"/auth/key", "", bearer(bad)).want(t, 500, "")
	if n := redistest.Calls(r.String(t, "INFO", "commandstats"), "evalsha") - before; n > 20 {
		t.Errorf("a look has run %d scripts", n)
	}
	list := s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", "")
	if list.status != 200 || !strings.Contains(list.body, good) {
		t.Errorf("list: %d %s", list.status, list.body)
	}
	if got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+bad, `{"enabled":false}`); got.status != 200 {
		t.Errorf("disable: %d %s", got.status, got.body)
	}
	if got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+bad, `{"tokens":10}`); got.status != 200 {
		t.Errorf("set: %d %s", got.status, got.body)
	}
}

// A visitor with a hold can sign in though the user's holds are of a wrong type.
func TestUsersHoldsOfAWrongType(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	key := s.wantSignIn(t, id, "w", 1000)
	testRedis.Do(t, "SET", "{apiKey:"+key+"}:holds", "x")
	visitor := s.login(t, id)
	s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).want(t, 201, "")
	s.signIn(t, id, "w").want(t, 200, "")
	for range 2 {
		got := s.signIn(t, id, "w", bearer(visitor))
		if got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	s.signIn(t, id, "w").want(t, 200, "")
}

// A change of a malformed key that is repeated has the same response.
func TestReplayOfAMalformedKey(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	for _, field := range []string{"tokensLeft", "createdAt", "advanced", "tokensHeld"} {
		key := s.issue(t, id, `"userId":"r`+field+`","group":"anonymous"`)
		if field == "tokensHeld" {
			s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(key)).want(t, 201, "")
		}
		testRedis.Do(t, "HSET", "apiKey:"+key, field, "x")
		first := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"enabled":false}`, retryKey+"1")
		second := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"enabled":false}`, retryKey+"1")
		if first.status != 200 || second.status != 200 || first.body != second.body {
			t.Errorf("%s: %d %s, then %d %s", field, first.status, first.body, second.status, second.body)
		}
		second.wantHeader(t, "Idempotent-Replayed", "true")
	}
}

// Sign-ins at the same time do not lift the bound of 1,000 open holds.
func TestParallelMergesAreBounded(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	id := newTenantIn(t, r, strings.Replace(signInConfig, `"anonymous":{"tokens":50}`, `"anonymous":{"tokens":1000}`, 1))
	key := s.wantSignIn(t, id, "u", 1000)
	later := time.Now().Add(time.Hour).UnixMilli()
	var visitors []string
	for range 20 {
		visitor := s.login(t, id)
		putHolds(t, r, visitor, 1000, func(i int) int64 { return later + int64(i) })
		visitors = append(visitors, visitor)
	}
	var all sync.WaitGroup
	for _, visitor := range visitors {
		all.Go(func() { s.signIn(t, id, "u", bearer(visitor)) })
	}
	all.Wait()
	if n := r.Int(t, "HLEN", "{apiKey:"+key+"}:holds"); n > 1000 {
		t.Errorf("%d holds are open", n)
	}
}

// A key may hold more than 2^53-1 tokens in all, and works as others do.
func TestHeldBeyondMax(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":9007199254740991,"refill":{"tokens":9007199254740991,"every":3600}}}}`)
	t.Run("refill", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"g"`)
		first := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":9007199254740991}`, bearer(key)).text(t, "holdId")
		age(t, key, 90*time.Minute)
		s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key)).want(t, 201, "")
		if got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)); got.status != 200 {
			t.Errorf("look: %d %s", got.status, got.body)
		}
		if got := s.do(t, "DELETE", "/"+id+"/tokens/holds/"+first, "", bearer(key)); got.status != 204 {
			t.Errorf("cancel: %d %s", got.status, got.body)
		}
		testRedis.Do(t, "HSET", "apiKey:"+key, "holdsDue", 1) // as if the time had passed
		if got := s.consume(t, id, key, `{"tokens":9007199254740991}`); got.status >= 500 {
			t.Errorf("charge: %d %s", got.status, got.body)
		}
	})
	t.Run("set", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u2","group":"g"`)
		s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":9007199254740991}`, bearer(key)).want(t, 201, "")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"tokens":9007199254740991}`).want(t, 200, "")
		s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key)).want(t, 201, "")
		if got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)); got.status != 200 {
			t.Errorf("look: %d %s", got.status, got.body)
		}
	})
}

// A settlement, or a renewal, follows a visitor's key that is closed and not moved yet.
func TestSettledWhileMoving(t *testing.T) {
	t.Parallel()
	closeOnly := func(t *testing.T, l *leaseTest, subject string) (finish func() string) {
		user := l.wantSignIn(t, l.tenant.id, subject, 1000)
		who := signInIdentity{tenant: l.tenant, userID: "google:" + subject, group: "google_logged_in", tokens: 1000}
		if _, err := l.store.noteMove(in(time.Second), who, pendingMove{l.key, user}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := l.store.runClose(in(time.Second), who, l.key, "close", user); err != nil {
			t.Fatal(err)
		}
		return func() string { l.signIn(t, l.tenant.id, subject).want(t, 200, ""); return user }
	}
	t.Run("late", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		l.expire(t, l.key, 40)
		finish := closeOnly(t, l, "c1")
		got, err := l.settle(30)
		if err != nil || got.charged != 30 {
			t.Errorf("%+v, %v", got, err)
		}
		if user := finish(); tokensLeft(t, user) != 1070 {
			t.Errorf("left: %d", tokensLeft(t, user))
		}
	})
	t.Run("renewed", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		l.expire(t, l.key, 40)
		finish := closeOnly(t, l, "c2")
		if err := l.renew(40); errors.Is(err, ErrNoHold) {
			t.Errorf("%v", err)
		}
		finish()
	})
	t.Run("repeated", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		before := *l.holder
		if _, err := l.settle(30); err != nil {
			t.Fatal(err)
		}
		finish := closeOnly(t, l, "c3")
		l.holder = &before
		got, err := l.settle(30)
		if err != nil || got.charged != 30 || !got.replayed {
			t.Errorf("%+v, %v", got, err)
		}
		if user := finish(); tokensLeft(t, user) != 1070 {
			t.Errorf("left: %d", tokensLeft(t, user))
		}
	})
}

// A record of a visitor that is of a wrong type does not lock out the user.
func TestClosedOfAWrongType(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	st := newTestStore(t, testRedis)
	tn := st.wantTenant(t, id)
	user := s.wantSignIn(t, id, "ct", 1000)
	visitor := s.login(t, id)
	who := signInIdentity{tenant: tn, userID: "google:ct", group: "google_logged_in", tokens: 1000}
	_, _ = st.noteMove(in(time.Second), who, pendingMove{visitor, user}, false)
	testRedis.Do(t, "RPUSH", "{apiKey:"+visitor+"}:closed", "x")
	if got := s.signIn(t, id, "ct"); got.status != 200 {
		t.Errorf("sign-in: %d %s", got.status, got.body)
	}
}

// A user's key that is malformed swallows no visitor's.
func TestMalformedUser(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	user := s.wantSignIn(t, id, "mu", 1000)
	testRedis.Do(t, "HSET", "apiKey:"+user, "advanced", "x")
	visitor := s.login(t, id)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).text(t, "holdId")
	s.wantMerged(t, id, "mu", visitor, 1000, false)
	if got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(visitor)); got.status != 200 {
		t.Errorf("merged was false, but the visitor's key: %d %s", got.status, got.body)
	}
	if got := s.do(t, "POST", "/"+id+"/tokens/holds/"+hold+"/settle", `{"tokens":5}`, bearer(visitor)); got.status != 200 {
		t.Errorf("settle: %d %s", got.status, got.body)
	}
}

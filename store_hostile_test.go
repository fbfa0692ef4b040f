package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
)

// putHolds gives a key in r n holds of 1 token, as POST tokens/holds does; hold i ends at ends(i), in Unix ms.
func putHolds(t *testing.T, r *redistest.Server, key string, n int, ends func(i int) int64) {
	t.Helper()
	args := []any{"{apiKey:" + key + "}:holds"}
	for i := range n {
		id, err := newCredential(holdPrefix)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, id, fmt.Sprint("1 ", ends(i)))
	}
	r.Do(t, "HSET", args...)
	r.Do(t, "HSET", "apiKey:"+key, "holdsDue", ends(0), "tokensHeld", n)
}

// A hold that expires while a script runs, which finds a refill due, is no error of that script.
func TestHoldExpiresWithinAScript(t *testing.T) {
	p := providertest.New(t)
	s := newService(t)
	g := s.gatewayTest(t, p, strings.Replace(textConfig(100_000, endpointsJSON(p, "")...),
		`{"tokens":100000}`, `{"tokens":100000,"refill":{"tokens":100000,"every":3600}}`, 1))
	nearNow := func(i int) int64 { return time.Now().UnixMilli() - 450 + int64(i) }
	t.Run("public", func(t *testing.T) {
		hold := g.do(t, "POST", "/"+g.tenant+"/tokens/holds", `{"tokens":90}`, bearer(g.key)).text(t, "holdId")
		age(t, g.key, 90*time.Minute)
		putHolds(t, testRedis, g.key, 990, nearNow)
		g.do(t, "POST", "/"+g.tenant+"/tokens/holds/"+hold+"/settle", `{"tokens":50}`, bearer(g.key)).want(t, 200, "")
	})
	t.Run("gateway", func(t *testing.T) {
		g.key = s.login(t, g.tenant)
		p.On("m", providertest.Conduct{Input: 5000, Output: 3000, Delay: 2 * time.Second})
		got := make(chan reply)
		go func() {
			got <- g.call(t, chatPath, `{"model":"m","max_tokens":4000,"messages":[{"role":"user","content":"`+strings.Repeat("x", 8000)+`"}]}`)
		}()
		time.Sleep(700 * time.Millisecond)
		age(t, g.key, 90*time.Minute)
		began := time.Now().UnixMilli() + 900
		putHolds(t, testRedis, g.key, 990, func(i int) int64 { return began + int64(i) })
		if charged := (<-got).header.Get("X-Tokens-Charged"); charged != "8000" {
			t.Errorf("%q tokens were charged for 8000\n%s", charged, s.log)
		}
	})
}

// Merges do not lift the bound of 1,000 open holds.
func TestMergedHoldsAreBounded(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	id := newTenantIn(t, r, strings.Replace(signInConfig, `"anonymous":{"tokens":50}`, `"anonymous":{"tokens":1000}`, 1))
	key := s.wantSignIn(t, id, "u", 1000)
	later := time.Now().Add(time.Hour).UnixMilli()
	for range 20 {
		visitor := s.login(t, id)
		putHolds(t, r, visitor, 1000, func(i int) int64 { return later + int64(i) })
		s.signIn(t, id, "u", bearer(visitor)).want(t, 200, "")
	}
	if n := r.Int(t, "HLEN", "{apiKey:"+key+"}:holds"); n > 1000 {
		t.Errorf("%d holds are open", n)
	}
}

// However many refills come while a hold is open, and in whatever order holds end, no token is lost, and what is
// remembered is bounded.
func TestManyRefillsWhileHoldsAreOpen(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":100000,"refill":{"tokens":10,"every":60}}}}`)
	key := s.issue(t, id, `"userId":"u","group":"g"`)
	hold := func(tokens int) string {
		body := fmt.Sprintf(`{"tokens":%d,"expiresIn":86400}`, tokens)
		return s.do(t, "POST", "/"+id+"/tokens/holds", body, bearer(key)).text(t, "holdId")
	}
	cancel := func(hold string) {
		s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "")
	}
	all, spent := hold(100_000), 0
	var holds []string
	for range 40 {
		name := "apiKey:" + key
		age(t, key, time.Minute)
		if testRedis.Int(t, "HEXISTS", name, "refilledAt") == 1 {
			testRedis.Do(t, "HINCRBY", name, "refilledAt", -60_000)
		}
		holds = append(holds, hold(5))
		s.consume(t, id, key, `{"tokens":5}`).want(t, 200, "")
		spent += 5
	}
	for i := range holds {
		cancel(holds[len(holds)-1-i])
		if spans := strings.Count(testRedis.String(t, "HGET", "apiKey:"+key, "repaid"), "-"); spans > 64 {
			t.Errorf("%d spans are remembered", spans)
		}
	}
	cancel(all)
	if left := tokensLeft(t, key); left+spent != 100_000 {
		t.Errorf("%d are left and %d spent of 100,000", left, spent)
	}
}

// One bad value stops only itself.
func TestMalformedLedgers(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	for i, field := range []string{"holdsDue", "advanced", "tokensHeld", "refilledAt", "hold"} {
		t.Run(field, func(t *testing.T) {
			user := fmt.Sprint("m", i)
			spoil := func(key string) {
				hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(key)).text(t, "holdId")
				if field == "hold" {
					testRedis.Do(t, "HSET", "{apiKey:"+key+"}:holds", hold, "x")
					testRedis.Do(t, "HSET", "apiKey:"+key, "holdsDue", 1)
					return
				}
				testRedis.Do(t, "HSET", "apiKey:"+key, field, "x")
			}
			members := fmt.Sprintf(`"userId":%q,"group":"anonymous"`, user)
			good, bad := s.issue(t, id, members), s.issue(t, id, members)
			spoil(bad)
			if list := s.admin(t, "GET", "/"+id+"/admin/keys?userId="+user, ""); list.status != 200 || !strings.Contains(list.body, good) {
				t.Errorf("list: %d %s", list.status, list.body)
			}
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+bad, `{"enabled":false}`).want(t, 200, "")
			s.consume(t, id, bad, "").want(t, 403, "")

			s.wantSignIn(t, id, user, 1000)
			visitor := s.login(t, id)
			spoil(visitor)
			s.signIn(t, id, user, bearer(visitor)).want(t, 200, "")
			s.signIn(t, id, user).want(t, 200, "") // the user is not locked out
			moved := s.signIn(t, id, user)
			alive := testRedis.Int(t, "EXISTS", "apiKey:"+visitor) == 1
			if left := moved.field(t, "tokensLeft"); left == 1000.0 && !alive {
				t.Errorf("the visitor's 30 tokens are lost")
			}
		})
	}
}

// A renewal that was under way while the hold was settled and the visitor signed in.
func TestRenewalAfterSettlingAndMerging(t *testing.T) {
	t.Parallel()
	l := newLeaseTest(t, 100, 40)
	before := *l.holder
	if _, err := l.settle(10); err != nil {
		t.Fatal(err)
	}
	user := l.signIn(t, l.tenant.id, "u", bearer(l.key)).text(t, "apiKey")
	l.holder = &before
	_ = l.renew(40)
	l.wantHeld(t, user, 1090, 0)
}

// What a settlement has led to is known by each name that the visitor's key had.
func TestSettledThenMergedByALaterName(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	visitor := s.login(t, id)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).text(t, "holdId")
	visitor = s.rotate(t, id, visitor)
	settle := func() reply {
		return s.do(t, "POST", "/"+id+"/tokens/holds/"+hold+"/settle", `{"tokens":5}`, bearer(visitor))
	}
	first := settle()
	s.signIn(t, id, "u", bearer(visitor)).want(t, 200, "")
	settle().want(t, 200, strings.TrimSpace(first.body))
}

// A moved hold that was cancelled leaves nothing for longer than 10 min.
func TestCancelledMovedHoldLeavesLittle(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	visitor := s.login(t, id)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20,"expiresIn":86400}`, bearer(visitor), retryKey+"1").text(t, "holdId")
	key := s.signIn(t, id, "u", bearer(visitor)).text(t, "apiKey")
	s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "")
	for _, name := range testRedis.Keys(t, "*"+visitor+"*") {
		// One says where the holds are. The other has what the key spent, which may be written meanwhile.
		isMeantToStay := strings.HasSuffix(name, "}:closed") || strings.Contains(name, "}:usage:")
		if left := testRedis.Int(t, "TTL", name); left > 600 && !isMeantToStay {
			t.Errorf("%s is kept for %d s", name, left)
		}
	}
}

// A full Redis settles a hold that was moved.
func TestMovedHoldInAFullRedis(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	id := newTenantIn(t, r, signInConfig)
	visitor := s.login(t, id)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).text(t, "holdId")
	s.signIn(t, id, "u", bearer(visitor)).want(t, 200, "")
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	s.do(t, "POST", "/"+id+"/tokens/holds/"+hold+"/settle", `{"tokens":5}`, bearer(visitor)).want(t, 200, "")
}

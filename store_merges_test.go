package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/idtokentest"
)

// What becomes of a visitor's key that is merged into a user's: its tokens, its holds, its records.

// wantMerged signs a user in with a visitor's key, expects the balance and the member merged, and returns the user's
// key. If merged is nil, it expects no such member.
func (s *service) wantMerged(t *testing.T, tenant, subject, visitor string, tokens int, merged any) string {
	t.Helper()
	got := s.signIn(t, tenant, subject, bearer(visitor))
	got.want(t, 200, "")
	if got.field(t, "tokensLeft") != float64(tokens) {
		t.Errorf("got %s, want %d tokens", got.body, tokens)
	}
	if has := strings.Contains(got.body, `"merged"`); has != (merged != nil) || has && got.field(t, "merged") != merged {
		t.Errorf("got %s, want merged %v", got.body, merged)
	}
	return got.text(t, "apiKey")
}

// What a visitor holds is not lost by signing in: it is settled, cancelled and expires on the user's key.
func TestVisitorsHolds(t *testing.T) {
	t.Parallel()
	services, tenant := signInServices(t, 2)
	s := services[0]
	for i, test := range []struct {
		name string
		end  func(path, visitor, key string)
		left int
	}{
		{"settled with the user's key", func(path, _, key string) {
			s.do(t, "POST", path+"/settle", `{"tokens":5}`, bearer(key)).want(t, 200, `{"charged":5,"tokensLeft":1045}`)
		}, 1045},
		{"settled with the visitor's key, and again", func(path, visitor, _ string) {
			for i := range 2 {
				services[i].do(t, "POST", path+"/settle", `{"tokens":5}`, bearer(visitor)).want(t, 200, `{"charged":5,"tokensLeft":1045}`)
			}
			s.do(t, "POST", path+"/settle", `{"tokens":6}`, bearer(visitor)).want(t, 422, "")
		}, 1045},
		{"settled with more than it has", func(path, visitor, _ string) {
			s.do(t, "POST", path+"/settle", `{"tokens":200}`, bearer(visitor)).want(t, 200, `{"charged":200,"tokensLeft":850}`)
		}, 850},
		{"cancelled", func(path, visitor, _ string) { s.do(t, "DELETE", path, "", bearer(visitor)).want(t, 204, "") }, 1050},
		{"expired", func(path, _, key string) {
			id := path[strings.LastIndex(path, "/")+1:]
			testRedis.Do(t, "HSET", "{apiKey:"+key+"}:holds", id, "40 1")
			testRedis.Do(t, "HSET", "apiKey:"+key, "holdsDue", 1)
		}, 1050},
		{"settled after a rotation", func(path, visitor, key string) {
			rotated := s.rotate(t, tenant, key)
			s.do(t, "POST", path+"/settle", `{"tokens":5}`, bearer(visitor)).want(t, 200, `{"charged":5,"tokensLeft":1045}`)
			s.do(t, "POST", path+"/settle", `{"tokens":5}`, bearer(rotated)).wantHeader(t, "Idempotent-Replayed", "true")
		}, 1045},
	} {
		t.Run(test.name, func(t *testing.T) {
			visitor, subject := s.login(t, tenant), fmt.Sprint("h", i)
			hold := s.do(t, "POST", "/"+tenant+"/tokens/holds", `{"tokens":40}`, bearer(visitor), retryKey+"1").text(t, "holdId")
			key := s.wantMerged(t, tenant, subject, visitor, 1010, true)
			got := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key))
			if got.field(t, "tokensHeld") != 40.0 {
				t.Errorf("got %s, want 40 held", got.body)
			}
			s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(visitor)).want(t, 401, "")
			if ttl := testRedis.Int(t, "TTL", "{apiKey:"+visitor+"}:closed"); ttl < 800 || ttl > 900 { // a hold's usual time
				t.Errorf("where the holds are is known for %d s", ttl)
			}
			test.end("/"+tenant+"/tokens/holds/"+hold, visitor, key)
			s.wantSignIn(t, tenant, subject, test.left)
		})
	}
}

// The holds of a visitor whose sign-in was interrupted at any step are settled all the same, by whichever key.
func TestInterruptedMoveOfHolds(t *testing.T) {
	keys := idtokentest.NewServer(t)
	c := newCutter(t, "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newTenantIn(t, c.redis, signInConfig)
	interrupted := 0
	for n := int64(1); n <= 14; n++ {
		c.awaitReady(t)
		subject := fmt.Sprint("i", n)
		c.wantSignIn(t, tenant, subject, 1000)
		visitor := c.login(t, tenant)
		var holds []string
		for range 2 {
			holds = append(holds, c.do(t, "POST", "/"+tenant+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).text(t, "holdId"))
		}
		if got, isCut := c.cut(t, n, func() reply { return c.signIn(t, tenant, subject, bearer(visitor)) }); isCut {
			interrupted++
		} else {
			got.want(t, 200, "")
		}
		settle := "/" + tenant + "/tokens/holds/" + holds[0] + "/settle"
		for range 2 {
			settled := c.do(t, "POST", settle, `{"tokens":5}`, bearer(visitor))
			if settled.want(t, 200, ""); settled.field(t, "charged") != 5.0 {
				t.Errorf("cut at %d: %s", n, settled.body)
			}
		}
		c.do(t, "DELETE", "/"+tenant+"/tokens/holds/"+holds[1], "", bearer(visitor)).want(t, 204, "")
		c.wantSignIn(t, tenant, subject, 1045, bearer(visitor))
		c.wantSignIn(t, tenant, subject, 1045)
	}
	if interrupted < 5 {
		t.Errorf("%d sign-ins were interrupted", interrupted)
	}
}

// What is left of a visitor's key includes a refill that is due.
func TestVisitorWithADueRefill(t *testing.T) {
	t.Parallel()
	services, _ := signInServices(t, 1)
	s := services[0]
	id := newTenantIn(t, testRedis, strings.Replace(signInConfig, `"anonymous":{"tokens":50}`,
		`"anonymous":{"tokens":50,"refill":{"tokens":50,"every":3600}}`, 1))
	for i, look := range []bool{false, true} {
		visitor := s.login(t, id)
		s.consume(t, id, visitor, `{"tokens":50}`).want(t, 200, "")
		age(t, visitor, 90*time.Minute)
		if look {
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(visitor)).want(t, 200, "")
		}
		s.wantMerged(t, id, fmt.Sprint("u", i), visitor, 1050, true)
	}
}

// A visitor's key that would be 403 for a charge is not moved.
func TestVisitorsThatAreNotMoved(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s := services[0]
	without := strings.Replace(signInConfig, `"anonymous":{"tokens":50},`, "", 1)
	t.Run("its group is gone", func(t *testing.T) {
		visitor := s.login(t, id)
		s.putConfig(t, id, without).want(t, 200, "")
		s.consume(t, id, visitor, "").wantError(t, 403, "Group is disabled")
		s.wantMerged(t, id, "u", visitor, 1000, false)
		s.putConfig(t, id, signInConfig).want(t, 200, "")
		s.wantMerged(t, id, "u", visitor, 1050, true)
		s.wantMerged(t, id, "u", visitor, 1050, true) // its reply may have been lost
		s.wantMerged(t, id, "v", visitor, 1000, false)
	})
	t.Run("among many groups", func(t *testing.T) {
		many := make([]string, 500)
		for i := range many {
			many[i] = fmt.Sprintf(`"group %d":{"tokens":1,"refill":{"tokens":60,"every":3600}}`, i)
		}
		other := newTenantIn(t, testRedis, strings.Replace(signInConfig, `"user_groups":{`, `"user_groups":{`+strings.Join(many, ",")+",", 1))
		key := s.wantSignIn(t, other, "u", 1000)
		s.admin(t, "PATCH", "/"+other+"/admin/keys/"+key, `{"group":"group 498"}`).want(t, 200, "")
		visitor := s.login(t, other)
		s.admin(t, "PATCH", "/"+other+"/admin/keys/"+visitor, `{"group":"group 499"}`).want(t, 200, "")
		hold := s.do(t, "POST", "/"+other+"/tokens/holds", `{"tokens":30}`, bearer(visitor)).text(t, "holdId")
		age(t, visitor, 90*time.Minute)
		s.wantMerged(t, other, "u", visitor, 1060, true) // its refill of 40 is for the hold to repay
		s.do(t, "POST", "/"+other+"/tokens/holds/"+hold+"/settle", `{"tokens":10}`, bearer(key)).want(t, 200, `{"charged":10,"tokensLeft":1060}`)
	})
	t.Run("disabled", func(t *testing.T) {
		visitor := s.login(t, id)
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+visitor, `{"enabled":false}`).want(t, 200, "")
		s.wantMerged(t, id, "w", visitor, 1000, false)
	})
	t.Run("malformed", func(t *testing.T) {
		for _, fields := range [][2]string{{"tokensLeft", "50.0"}, {"tokensLeft", ""}} {
			visitor := s.login(t, id)
			testRedis.Do(t, "HSET", "apiKey:"+visitor, fields[0], fields[1])
			s.wantMerged(t, id, "x", visitor, 1000, false)
			s.wantSignIn(t, id, "x", 1000)
		}
		if s.log.Count("[WARN] A visitor's key of tenant "+id+" is not merged: MALFORMED tokensLeft is not a whole number") != 2 {
			t.Errorf("log:\n%s", s.log)
		}
	})
	t.Run("malformed after its move was noted by an earlier version", func(t *testing.T) {
		key, visitor := s.wantSignIn(t, id, "y", 1000), s.login(t, id)
		testRedis.Do(t, "HSET", "apiKey:"+visitor, "tokensLeft", "50.0")
		testRedis.Do(t, "HSET", "{signIn:"+id+":google:y}:moves", visitor, key)
		s.wantSignIn(t, id, "y", 1000)
		s.wantSignIn(t, id, "y", 1000)
	})
	t.Run("another tenant's, and none", func(t *testing.T) {
		s.wantMerged(t, id, "z", s.login(t, newTenantIn(t, testRedis, signInConfig)), 1000, nil)
		s.wantMerged(t, id, "z", "temp_"+strings.TrimPrefix(someKey, "user_"), 1000, nil)
	})
}

// At most 20 visitors are merged into one user a day.
func TestMergesOfADay(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 2)
	for i := range maxMerges {
		services[i%2].wantMerged(t, id, "u", services[0].login(t, id), 1000+50*(i+1), true)
	}
	s, visitor := services[0], services[0].login(t, id)
	s.wantMerged(t, id, "u", visitor, 2000, false)
	s.consume(t, id, visitor, "").want(t, 200, `{"tokensLeft":49}`)
	s.wantMerged(t, id, "v", s.login(t, id), 1050, true)
	count := "{signIn:" + id + ":google:u}:merges"
	ends := time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Unix()
	if at := int64(testRedis.Int(t, "EXPIRETIME", count)); at != ends && at != ends+86400 {
		t.Errorf("they are counted until %d, want %d", at, ends)
	}
	testRedis.Do(t, "DEL", count) // the day is over
	s.wantMerged(t, id, "u", visitor, 2049, true)
}

// A merge leaves nothing for longer than 10 minutes, but for the count of the day and what its holds need. It costs the
// same however many there were.
func TestRecordsOfMerges(t *testing.T) {
	t.Parallel()
	s, r := ownSignInService(t)
	id := newTenantIn(t, r, signInConfig)
	key := s.wantSignIn(t, id, "u", 1000)
	for i := range 3 {
		s.wantMerged(t, id, "u", s.login(t, id), 1050+50*i, true)
	}
	for _, name := range r.Keys(t, "*") {
		kept := slices.ContainsFunc([]string{":config", "tenants", "apiKey:" + key, "signIn:" + id, "userKeys", "users:", ":merges", ":usage:"},
			func(part string) bool { return strings.Contains(name, part) && !strings.HasSuffix(name, ":moves") })
		if ttl := r.Int(t, "TTL", name); !kept && (ttl < 0 || ttl > 600) {
			t.Errorf("%s is kept for %d s", name, ttl)
		}
	}
	moves := "{apiKey:" + key + "}:moves"
	if n := r.Int(t, "HLEN", moves); n != 3 {
		t.Errorf("%d moves are remembered, want 3", n)
	}
	fields, err := redis.StringMap(r.Do(t, "HGETALL", moves), nil)
	if err != nil {
		t.Fatal(err)
	}
	for digest, at := range fields { // another 10 minutes are over
		r.Do(t, "HSET", moves, digest, at[:len(at)-6]+"000000")
		r.Do(t, "HSET", moves, digest, "-1000")
	}
	s.wantMerged(t, id, "u", s.login(t, id), 1200, true)
	if n := r.Int(t, "HLEN", moves); n != 1 {
		t.Errorf("%d moves are remembered, want 1", n)
	}

	// What an earlier version has left may be large.
	for i := range 50 {
		args := []any{moves}
		for j := range 1000 {
			args = append(args, fmt.Sprintf("digest-%d-%d", i, j), time.Now().UnixMilli())
		}
		r.Do(t, "HSET", args...)
	}
	r.Do(t, "CONFIG", "RESETSTAT")
	s.wantMerged(t, id, "u", s.login(t, id), 1250, true)
	for line := range strings.Lines(r.String(t, "INFO", "commandstats")) {
		var calls, usec int
		if _, err := fmt.Sscanf(line, "cmdstat_hgetall:calls=%d,usec=%d,", &calls, &usec); err == nil && usec > 5000 {
			t.Errorf("it reads all that were merged before: %s", line)
		}
	}
}

// A process that acts on an old reply does not add a visitor's tokens again.
func TestMoveOnce(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s, st := services[0], newTestStore(t, testRedis)
	tn := st.wantTenant(t, id)
	key, visitor := s.wantSignIn(t, id, "u", 1000), s.login(t, id)
	s.wantMerged(t, id, "u", visitor, 1050, true)
	move := pendingMove{visitor, key}
	for range 3 {
		if _, err := st.receive(in(10*time.Second), tn, move, []string{"50", "0", ""}); err != nil {
			t.Error(err)
		}
		moved, err := st.finishMove(in(10*time.Second), signInIdentity{tenant: tn, userID: "google:u"}, move)
		if !moved || err != nil {
			t.Errorf("%v, %v", moved, err)
		}
	}
	s.wantSignIn(t, id, "u", 1050)
	rotated := s.rotate(t, id, key)
	if got, err := st.receive(in(10*time.Second), tn, move, []string{"50", "0", ""}); got != rotated || err != nil {
		t.Errorf("got %s, %v, want %s", got, err, rotated)
	}
	s.wantSignIn(t, id, "u", 1050)
	if _, err := st.finishMove(in(10*time.Second), signInIdentity{tenant: tn, userID: "google:v"}, move); err != nil {
		t.Error(errors.Unwrap(err))
	}
}

// A move whose end is not known stays remembered, so that it is not made twice.
func TestUnfinishedMoveIsRemembered(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s, st := services[0], newTestStore(t, testRedis)
	tn := st.wantTenant(t, id)
	key := s.wantSignIn(t, id, "u", 1000)
	unfinished := pendingMove{"temp_" + strings.TrimPrefix(someKey, "user_"), key}
	if _, err := st.receive(in(10*time.Second), tn, unfinished, []string{"50", "0", ""}); err != nil {
		t.Fatal(err)
	}
	s.wantMerged(t, id, "u", s.login(t, id), 1100, true)
	moves := "{apiKey:" + key + "}:moves"
	if ttl := testRedis.Int(t, "TTL", moves); ttl < 30*86400 {
		t.Errorf("it is remembered for %d s", ttl)
	}
	if _, err := st.receive(in(10*time.Second), tn, unfinished, []string{"50", "0", ""}); err != nil {
		t.Fatal(err)
	}
	s.wantSignIn(t, id, "u", 1100)
	who := signInIdentity{tenant: tn, userID: "google:u"}
	for range 3 { // a note that is repeated counts once
		if _, err := st.noteMove(in(10*time.Second), who, pendingMove{"temp_x", key}, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := testRedis.Int(t, "GET", "{signIn:"+id+":google:u}:merges"); n != 2 {
		t.Errorf("%d merges are counted, want 2", n)
	}
}

// A move to a key that was rotated with a grace since it was noted reaches the new name, as long as the old one shares
// its balance, and once.
func TestMoveInGrace(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s, st := services[0], newTestStore(t, testRedis)
	who := signInIdentity{tenant: st.wantTenant(t, id), userID: "google:u"}
	for _, received := range []bool{false, true} {
		key, visitor := s.wantSignIn(t, id, "u", 1000), s.login(t, id)
		if _, err := st.noteMove(soon(), who, pendingMove{visitor, key}, false); err != nil {
			t.Fatal(err)
		}
		if received {
			closed, err := st.runClose(soon(), who, visitor, "close", key)
			if err == nil {
				_, err = st.receive(soon(), who.tenant, pendingMove{visitor, key}, closed[1:])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		rotated := s.rotateWithGrace(t, id, key, 3600)
		s.wantMerged(t, id, "u", visitor, 1050, true)
		s.consume(t, id, key, `{"tokens":50}`).want(t, 200, `{"tokensLeft":1000}`)
		if n := testRedis.Int(t, "EXISTS", movesRedisKey(key)); n != 0 {
			t.Error("the former name has a record of the move")
		}
		s.consume(t, id, rotated, `{"tokens":1001}`).want(t, 402, `{"error":"Payment Required","tokensLeft":1000}`)
	}
}

// A visitor's key leads nobody of another tenant to the user's.
func TestMovedHoldOfAnotherTenant(t *testing.T) {
	t.Parallel()
	services, id := signInServices(t, 1)
	s, other := services[0], newTenantIn(t, testRedis, signInConfig)
	visitor := s.login(t, id)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":20}`, bearer(visitor)).text(t, "holdId")
	s.wantMerged(t, id, "u", visitor, 1030, true)
	s.do(t, "POST", "/"+other+"/tokens/holds/"+hold+"/settle", `{"tokens":20}`, bearer(visitor)).want(t, 401, "")
	s.wantSignIn(t, id, "u", 1030)
}

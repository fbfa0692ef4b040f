package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/providertest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// The gateway's holds: short leases, renewed and settled wherever the key goes.

// A leaseTest is a hold of the gateway, as account has it.
type leaseTest struct {
	*service
	store  *store
	tenant *tenant
	key    string
	holder *holder
	id     string
}

func newLeaseTest(t *testing.T, tokens, held int64) *leaseTest {
	t.Helper()
	services, id := signInServices(t, 1)
	l := &leaseTest{service: services[0], store: newTestStore(t, testRedis)}
	l.tenant = l.store.wantTenant(t, id)
	l.key = l.login(t, id)
	l.admin(t, "PATCH", "/"+id+"/admin/keys/"+l.key, fmt.Sprintf(`{"tokens":%d}`, tokens)).want(t, 200, "")
	l.id, _ = newCredential(holdPrefix)
	result, err := l.store.Hold(in(10*time.Second), l.tenant,
		holdRequest{key: l.key, id: l.id, most: held, least: held, ttl: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	l.holder = &result.holder
	return l
}

func (l *leaseTest) renew(held int64) error {
	return l.store.RenewHold(in(10*time.Second), l.tenant, l.holder, l.id, held, 90*time.Second)
}

func (l *leaseTest) settle(used int64) (settlement, error) {
	return l.store.Settle(in(10*time.Second), l.tenant, l.holder, settleRequest{holdID: l.id, used: used, isLease: true})
}

// expire lets the hold expire, and somebody look at the key.
func (l *leaseTest) expire(t *testing.T, key string, held int) {
	t.Helper()
	testRedis.Do(t, "HSET", "{apiKey:"+key+"}:holds", l.id, fmt.Sprint(held, " 1"))
	testRedis.Do(t, "HSET", "apiKey:"+key, "holdsDue", 1)
	l.do(t, "GET", "/"+l.tenant.id+"/auth/key", "", bearer(key)).want(t, 200, "")
}

// wantHeld checks the balance of a key and what it holds, and for how many seconds.
func (l *leaseTest) wantHeld(t *testing.T, key string, left, held int) {
	t.Helper()
	hold := ""
	if testRedis.Int(t, "HEXISTS", "{apiKey:"+key+"}:holds", l.id) == 1 {
		hold = testRedis.String(t, "HGET", "{apiKey:"+key+"}:holds", l.id)
	}
	var tokens int
	var deadline int64
	_, _ = fmt.Sscan(hold, &tokens, &deadline)
	if tokensLeft(t, key) != left || tokens != held {
		t.Errorf("%d are left and the hold is %q; want %d left, %d held", tokensLeft(t, key), hold, left, held)
	}
	if until := time.Until(time.UnixMilli(deadline)); held > 0 && (until > 90*time.Second || until < 60*time.Second) {
		t.Errorf("it is held for %s", until)
	}
}

func TestRenewedLeases(t *testing.T) {
	t.Parallel()
	t.Run("renewed", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.wantHeld(t, l.key, 60, 40)
	})
	t.Run("returned, and held again", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		l.expire(t, l.key, 40)
		l.wantHeld(t, l.key, 100, 0)
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.wantHeld(t, l.key, 60, 40)
	})
	t.Run("as much as is there", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		l.expire(t, l.key, 40)
		l.consume(t, l.tenant.id, l.key, `{"tokens":90}`).want(t, 200, "")
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.wantHeld(t, l.key, 0, 10)
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.expire(t, l.key, 10)
		l.consume(t, l.tenant.id, l.key, `{"tokens":10}`).want(t, 200, "")
		if err := l.renew(40); !errors.Is(err, ErrNoHold) {
			t.Errorf("with nothing left: %v", err)
		}
	})
	t.Run("not after it was settled", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		if got, err := l.settle(10); err != nil || got.charged != 10 {
			t.Errorf("%+v, %v", got, err)
		}
		if err := l.renew(40); !errors.Is(err, ErrNoHold) {
			t.Errorf("got %v", err)
		}
		l.wantHeld(t, l.key, 90, 0)
	})
	t.Run("of a key that was rotated twice", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		now := l.rotate(t, l.tenant.id, l.rotate(t, l.tenant.id, l.key))
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.wantHeld(t, now, 60, 40)
		if got, err := l.settle(30); err != nil || got.charged != 30 || got.tokensLeft != 70 {
			t.Errorf("%+v, %v", got, err)
		}
		if l.holder.key != now {
			t.Errorf("the holder is %s, want %s", l.holder.key, now)
		}
	})
	t.Run("of a key that was revoked", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		l.admin(t, "DELETE", "/"+l.tenant.id+"/admin/keys/"+l.key, "").want(t, 204, "")
		if err := l.renew(40); !errors.Is(err, ErrNoKey) {
			t.Errorf("got %v", err)
		}
		if _, err := l.settle(4); !errors.Is(err, ErrNoKey) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("of a visitor who has signed in and was rotated", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		user := l.wantSignIn(t, l.tenant.id, "u1", 1060, bearer(l.rotate(t, l.tenant.id, l.key)))
		now := l.rotate(t, l.tenant.id, user)
		if err := l.renew(40); err != nil {
			t.Error(err)
		}
		l.wantHeld(t, now, 1060, 40)
		for range 2 { // the second is a replay
			if got, err := l.settle(50); err != nil || got.charged != 50 || got.tokensLeft != 1050 {
				t.Errorf("%+v, %v", got, err)
			}
		}
	})
	t.Run("settled before the visitor signed in", func(t *testing.T) {
		l := newLeaseTest(t, 100, 40)
		if got, err := l.settle(10); err != nil || got.charged != 10 {
			t.Errorf("%+v, %v", got, err)
		}
		l.wantSignIn(t, l.tenant.id, "u2", 1090, bearer(l.key))
		if got, err := l.settle(10); err != nil || got.charged != 10 || !got.replayed { // its reply was lost
			t.Errorf("%+v, %v", got, err)
		}
		l.wantSignIn(t, l.tenant.id, "u2", 1090)
	})
}

// The account of a request remembers where its key has gone, longer than Redis does.
func TestAccountFollowsItsKey(t *testing.T) {
	t.Parallel()
	l := newLeaseTest(t, 100, 40)
	a := &account{server: newBareServer(t, new(telemetrytest.Log)), tenant: l.tenant, key: l.key, holder: *l.holder}
	user := l.wantSignIn(t, l.tenant.id, "u", 1060, bearer(l.key))
	if err := a.Renew(in(10*time.Second), gateway.Hold{ID: l.id, Tokens: 40}, time.Minute); err != nil {
		t.Fatal(err)
	}
	testRedis.Do(t, "DEL", "{apiKey:"+l.key+"}:closed")
	balance, err := a.Settle(in(10*time.Second), l.id, gateway.Usage{Cost: 30})
	if err != nil || balance != (gateway.Balance{Charged: 30, Left: 1070}) {
		t.Errorf("got %+v, %v", balance, err)
	}
	l.wantHeld(t, user, 1070, 0)
}

// The account remembers it even if a renewal found nothing left to hold.
func TestAccountFollowsItsSpentKey(t *testing.T) {
	t.Parallel()
	l := newLeaseTest(t, 100, 40)
	a := &account{server: newBareServer(t, new(telemetrytest.Log)), tenant: l.tenant, key: l.key, holder: *l.holder}
	user := l.wantSignIn(t, l.tenant.id, "u", 1060, bearer(l.key))
	l.expire(t, user, 40)
	l.consume(t, l.tenant.id, user, `{"tokens":1100}`).want(t, 200, "")
	if err := a.Renew(in(10*time.Second), gateway.Hold{ID: l.id, Tokens: 40}, time.Minute); !errors.Is(err, gateway.ErrNoHold) {
		t.Fatal(err)
	}
	testRedis.Do(t, "DEL", "{apiKey:"+l.key+"}:closed")
	l.admin(t, "PATCH", "/"+l.tenant.id+"/admin/keys/"+user, `{"addTokens":50}`).want(t, 200, "")
	balance, err := a.Settle(in(10*time.Second), l.id, gateway.Usage{Cost: 30})
	if err != nil || balance != (gateway.Balance{Charged: 30, Left: 20}) {
		t.Errorf("got %+v, %v", balance, err)
	}
}

// What the gateway has held and lost is charged all the same, once, down to 0.
func TestLateSettlement(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ spent, charged, left int }{{0, 50, 50}, {70, 30, 0}, {100, 0, 0}} {
		l := newLeaseTest(t, 100, 40)
		l.expire(t, l.key, 40)
		if test.spent > 0 {
			l.consume(t, l.tenant.id, l.key, fmt.Sprintf(`{"tokens":%d}`, test.spent)).want(t, 200, "")
		}
		path := "/" + l.tenant.id + "/tokens/holds/" + l.id
		l.do(t, "DELETE", path, "", bearer(l.key)).want(t, 404, "") // a public hold that has expired is unknown
		for i := range 3 {
			got, err := l.settle(50)
			if err != nil || got.charged != int64(test.charged) || got.tokensLeft != int64(test.left) || got.replayed != (i > 0) {
				t.Errorf("%+v: attempt %d: %+v, %v", test, i, got, err)
			}
		}
		if left := tokensLeft(t, l.key); left != test.left {
			t.Errorf("%d are left, want %d", left, test.left)
		}
	}
}

// If the process is killed, the tokens that it held are back within 90 s.
func TestKilledWhileGenerating(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	p.On("m", providertest.Conduct{Hang: providertest.InContent})
	process := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken})
	g := process.service(t).gatewayTest(t, p, textConfig(10_000, endpointsJSON(p, "")...))
	g.open(t, chatPath, `{"stream":true,"max_tokens":100}`, "ünd")
	if left := tokensLeft(t, g.key); left == 10_000 {
		t.Fatal("nothing is held")
	}
	process.kill()
	due := testRedis.Int(t, "HGET", "apiKey:"+g.key, "holdsDue")
	if until := time.Until(time.UnixMilli(int64(due))); until > 90*time.Second {
		t.Errorf("it is held for another %s", until)
	}
	g.expireHolds(t) // the time is over
	got := newService(t).do(t, "GET", "/"+g.tenant+"/auth/key", "", bearer(g.key))
	if got.field(t, "tokensLeft") != 10_000.0 || strings.Contains(got.body, "tokensHeld") {
		t.Errorf("got %s", got.body)
	}
}

// A visitor who signs in while a request of the gateway runs loses nothing but what that costs. The gateway's records
// are kept for 10 minutes.
func TestSignInWhileGenerating(t *testing.T) {
	t.Parallel()
	services, _ := signInServices(t, 1)
	p := providertest.New(t)
	p.On("m", providertest.Conduct{Delay: 2 * time.Second, Input: 10, Output: 20})
	config := strings.Replace(textConfig(1000, endpointsJSON(p, "")...), `{"user_groups":{`,
		`{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{"google_logged_in":{"tokens":1000},`, 1)
	g := services[0].gatewayTest(t, p, config)
	done := make(chan reply, 1)
	go func() { done <- g.call(t, chatPath, `{"messages":[]}`) }()
	waittest.Eventually(t, 10*time.Second, func() error {
		if tokensLeft(t, g.key) > 0 { // the request names no limit, so that everything is held
			return errors.New("nothing is held yet")
		}
		return nil
	})
	key := g.wantSignIn(t, g.tenant, "u", 1000, bearer(g.key))
	got := <-done
	got.wantHeader(t, "X-Tokens-Charged", "30")
	got.wantHeader(t, "X-Tokens-Left", "1970")
	g.wantSignIn(t, g.tenant, "u", 1970)
	ttls := recordTTLs(t, key)
	delete(ttls, "successor") // of the sign-in
	for record, ttl := range ttls {
		if ttl > 600 || ttl < 0 {
			t.Errorf("%s is kept for %d s", record, ttl)
		}
	}
}

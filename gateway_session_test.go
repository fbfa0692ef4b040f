package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// A sessionTest is the account of a session with an API key, without the session.
type sessionTest struct {
	*sessionAccount
	service *service // another process
	id      string   // of the tenant
}

const sessionConfig = `{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{
	"anonymous":{"tokens":1000,"rate_limit":3,"rate_limit_window":3600,"max_concurrent":1},
	"google_logged_in":{"tokens":500,"models":["m","n*"]}}}`

// newSessionTest returns the account of a new visitor of a new tenant.
func newSessionTest(t *testing.T, config string) *sessionTest {
	t.Helper()
	services, _ := signInServices(t, 1)
	s := &sessionTest{service: services[0], id: newTenantIn(t, testRedis, config)}
	s.sessionAccount = newSessionOf(t, newBareServer(t, new(telemetrytest.Log)), s.id, s.service.login(t, s.id))
	return s
}

// newSessionOf returns the account of a session of an API key.
func newSessionOf(t testing.TB, server *server, tenant, key string) *sessionAccount {
	t.Helper()
	place := fairpool.New(100, 1).Claim("t", "u")
	return server.newSessionAccount(server.store.wantTenant(t, tenant), key, make(http.Header), place)
}

// soon is a deadline that a busy machine meets.
func soon() time.Time { return in(10 * time.Second) }

// takes asks for that many tokens for the model m.
func takes(tokens int64) gateway.HoldRequest {
	return gateway.HoldRequest{Least: tokens, Most: tokens, TTL: 90 * time.Second, Models: []string{"m"}}
}

func (s *sessionTest) mustHold(t *testing.T, r gateway.HoldRequest) gateway.Hold {
	t.Helper()
	hold, err := s.Hold(soon(), r)
	if err != nil || hold.Tokens != r.Most {
		t.Fatalf("hold %+v: got %+v, %v", r, hold, err)
	}
	return hold
}

// wantExchange exchanges a hold for one of next.Most tokens, and expects what settling it leads to.
func (s *sessionTest) wantExchange(
	t *testing.T, hold gateway.Hold, cost int64, next gateway.HoldRequest, want gateway.Balance,
) gateway.Hold {
	t.Helper()
	balance, other, err := s.Exchange(soon(), hold.ID, gateway.Usage{Cost: cost}, next)
	if err != nil || balance != want || other.Tokens != next.Most {
		t.Errorf("got %+v, %+v, %v; want %+v, and %d held", balance, other, err, want, next.Most)
	}
	return other
}

// wantRefusal does the same, but expects that no other hold is taken. It returns the ID that it would have.
func (s *sessionTest) wantRefusal(
	t *testing.T, hold gateway.Hold, cost int64, next gateway.HoldRequest, want gateway.Balance, refusal error,
) string {
	t.Helper()
	balance, other, err := s.Exchange(soon(), hold.ID, gateway.Usage{Cost: cost}, next)
	if denied, ok := errors.AsType[gateway.DeniedError](refusal); ok {
		if got, ok := errors.AsType[gateway.DeniedError](err); ok && fmt.Sprint(got) == fmt.Sprint(denied) {
			err = refusal
		}
	} else if errors.Is(err, refusal) {
		err = refusal
	}
	if fmt.Sprintf("%#v", err) != fmt.Sprintf("%#v", refusal) || balance != want || other.Tokens != 0 {
		t.Errorf("got %+v, %+v, %#v; want %+v and %#v", balance, other, err, want, refusal)
	}
	return other.ID
}

// presentKey returns the name that the key has now.
func (s *sessionTest) presentKey() string { return s.lastSeen().key }

// wantLedger checks the balance of a key, what it holds, and its field leases.
func (s *sessionTest) wantLedger(t *testing.T, key string, left, held int, leases string) {
	t.Helper()
	name := "apiKey:" + key
	got := fmt.Sprint(tokensLeft(t, key), " 0 -")
	if testRedis.Int(t, "HEXISTS", name, "leases") == 1 {
		got = fmt.Sprint(tokensLeft(t, key), " ", testRedis.String(t, "HGET", name, "tokensHeld"), " ",
			testRedis.String(t, "HGET", name, "leases"))
	}
	if want := fmt.Sprint(left, " ", held, " ", leases); got != want {
		t.Errorf("the balance, what is held and leases are %s; want %s", got, want)
	}
}

// wantEnd settles holds with nothing, and expects that balance then.
func (s *sessionTest) wantEnd(t *testing.T, left int, holds ...gateway.Hold) {
	t.Helper()
	for _, hold := range holds {
		if _, err := s.Settle(soon(), hold.ID, gateway.Usage{}); err != nil {
			t.Error(err)
		}
	}
	s.wantLedger(t, s.presentKey(), left, 0, "-")
	for _, hold := range holds {
		if _, ok := s.holds[hold.ID]; ok {
			t.Errorf("the account remembers %s", hold.ID)
		}
	}
}

// change changes the config and waits until the account's process has it.
func (s *sessionTest) change(t *testing.T, config string) {
	t.Helper()
	testRedis.Do(t, "SET", "tenant:"+s.id+":config", config)
	waittest.Eventually(t, 10*time.Second, func() error {
		now, err := s.server.store.Tenant(soon(), s.id)
		if err != nil && err != ErrBrokenConfig || now.etag != etagOf([]byte(config)) {
			return errors.New("the config has not changed")
		}
		return nil
	})
}

// expire moves the deadlines of a key's holds to the past, and lets somebody look at the key.
func (s *sessionTest) expire(t *testing.T, key string) {
	t.Helper()
	g := &gatewayTest{service: s.service, tenant: s.id, key: key}
	g.expireHolds(t)
	s.service.do(t, "GET", "/"+s.id+"/auth/key", "", bearer(key)).want(t, 200, "")
}

// An exchange settles one hold and takes another, once however often it is repeated.
func TestExchange(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, sessionConfig)
	first := s.mustHold(t, takes(100))
	s.header = nil // which nothing writes to after the first hold
	s.wantLedger(t, s.key, 900, 100, "1 100 100")

	second := s.wantExchange(t, first, 30, takes(200), gateway.Balance{Charged: 30, Left: 970})
	s.wantLedger(t, s.key, 770, 200, "1 200 200")
	if second.ID == first.ID || !strings.HasPrefix(second.ID, leasePrefix) {
		t.Errorf("it has the ID %s", second.ID)
	}
	if err := s.Renew(soon(), second, time.Hour); err != nil {
		t.Error(err)
	}
	again := takes(200)
	again.ID = second.ID
	s.service.consume(t, s.id, s.key, `{"tokens":70}`).want(t, 200, "")
	for range 2 {
		if got := s.wantExchange(t, first, 30, again, gateway.Balance{Charged: 30, Left: 970}); got != second {
			t.Errorf("got %+v, want %+v", got, second)
		}
	}
	s.wantLedger(t, s.key, 700, 200, "1 200 200")
	if _, _, err := s.Exchange(soon(), first.ID, gateway.Usage{Cost: 31}, again); !errors.Is(err, ErrHoldSettled) {
		t.Errorf("with another cost: %v", err)
	}

	// More than was held is taken from the balance, and the other hold may be smaller than is wished.
	balance, third, err := s.Exchange(soon(), second.ID, gateway.Usage{Cost: 300},
		gateway.HoldRequest{Least: 100, Most: 1000, Half: true, TTL: time.Minute})
	if err != nil || balance != (gateway.Balance{Charged: 300, Left: 600}) || third.Tokens != 350 {
		t.Errorf("got %+v, %+v, %v", balance, third, err)
	}
	s.wantLedger(t, s.key, 250, 350, "1 350 350")
	if n := testRedis.Int(t, "LLEN", "{apiKey:"+s.key+"}:rate"); n != 2 { // the first hold and the charge
		t.Errorf("%d requests are in the log of the rate", n)
	}
	for record, ttl := range recordTTLs(t, s.key) {
		if strings.HasPrefix(record, "settled") && (ttl > 600 || ttl < 0) {
			t.Errorf("%s is kept for %d s", record, ttl)
		}
	}

	// An attempt that was late changes nothing, though the other hold is settled by now.
	s.wantEnd(t, 600, third)
	s.wantRefusal(t, first, 30, again, gateway.Balance{Charged: 30, Left: 970}, gateway.ErrNoHold)
	s.wantLedger(t, s.key, 600, 0, "-")
}

// Whatever refuses the other hold, the first is settled, once, and the other is taken as soon as it may be.
func TestRefusedExchange(t *testing.T) {
	t.Parallel()
	without := func(name string) string { return strings.Replace(sessionConfig, `"`+name+`"`, `"x"`, 1) }
	settled := gateway.Balance{Charged: 30, Left: 470}
	for _, test := range []struct {
		name    string
		refuse  func(t *testing.T, s *sessionTest, key string)
		want    gateway.Balance
		refusal error
		allow   func(t *testing.T, s *sessionTest, key string) // nil: it is refused for good
	}{
		{"too little is left", func(t *testing.T, s *sessionTest, key string) {
			s.service.consume(t, s.id, key, `{"tokens":350}`).want(t, 200, "")
		}, gateway.Balance{Charged: 30, Left: 120}, gateway.InsufficientError{Left: 120},
			func(t *testing.T, s *sessionTest, key string) {
				s.service.admin(t, "PATCH", "/"+s.id+"/admin/keys/"+key, `{"addTokens":350}`).want(t, 200, "")
			}},
		{"the key is disabled", func(t *testing.T, s *sessionTest, key string) {
			s.service.admin(t, "PATCH", "/"+s.id+"/admin/keys/"+key, `{"enabled":false}`).want(t, 200, "")
		}, settled, ErrKeyDisabled, func(t *testing.T, s *sessionTest, key string) {
			s.service.admin(t, "PATCH", "/"+s.id+"/admin/keys/"+key, `{"enabled":true}`).want(t, 200, "")
		}},
		{"the group is gone", func(t *testing.T, s *sessionTest, _ string) { s.change(t, without("google_logged_in")) },
			settled, ErrGroupDisabled, func(t *testing.T, s *sessionTest, _ string) { s.change(t, sessionConfig) }},
		{"the group has lost the model", func(t *testing.T, s *sessionTest, _ string) { s.change(t, without("m")) },
			settled, ErrModelDenied, func(t *testing.T, s *sessionTest, _ string) { s.change(t, sessionConfig) }},
		{"the config is broken", func(t *testing.T, s *sessionTest, _ string) { s.change(t, "{") },
			settled, ErrBrokenConfig, func(t *testing.T, s *sessionTest, _ string) { s.change(t, sessionConfig) }},
		{"the key is revoked", func(t *testing.T, s *sessionTest, key string) {
			s.service.admin(t, "DELETE", "/"+s.id+"/admin/keys/"+key, "").want(t, 204, "")
		}, gateway.Balance{}, gateway.ErrNoHold, nil},
		{"the tenant is gone", func(t *testing.T, s *sessionTest, _ string) { s.deleteTenant(t) }, settled, gateway.ErrNoHold, nil},
		{"the tenant is another", func(t *testing.T, s *sessionTest, _ string) {
			s.deleteTenant(t)
			s.service.admin(t, "POST", "/admin/tenants", fmt.Sprintf(`{"tenantId":%q,"config":{}}`, s.id)).want(t, 201, "")
			s.change(t, sessionConfig)
		}, settled, gateway.ErrNoHold, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSessionTest(t, sessionConfig)
			key := s.service.wantSignIn(t, s.id, "u", 500)
			s.sessionAccount = newSessionOf(t, s.server, s.id, key)
			first := s.mustHold(t, takes(100))
			test.refuse(t, s, key)
			next := takes(200)
			if test.refusal == ErrModelDenied {
				test.refusal = gateway.DeniedError{Allowed: s.mustTenant(t).config.groups["google_logged_in"].models}
			}
			for range 2 {
				next.ID = s.wantRefusal(t, first, 30, next, test.want, test.refusal)
			}
			checked := s.Check(soon(), next.Models)
			if _, spent := test.refusal.(gateway.InsufficientError); spent != (checked == nil) {
				t.Errorf("Check returned %v, the refusal is %v", checked, test.refusal)
			} else if !spent && fmt.Sprintf("%T", checked) != fmt.Sprintf("%T", test.refusal) && !errors.Is(checked, test.refusal) {
				t.Errorf("Check returned %v, the refusal is %v", checked, test.refusal)
			}
			if test.allow == nil {
				return
			}
			s.wantLedger(t, key, int(test.want.Left), 0, "-")
			test.allow(t, s, key)
			second := s.wantExchange(t, first, 30, next, test.want)
			if second.ID != next.ID {
				t.Errorf("it has the ID %s, want %s", second.ID, next.ID)
			}
			s.wantEnd(t, 470, second)
			if got := s.countedUsage(); got.charged != 30 {
				t.Errorf("%d tokens were counted as charged", got.charged)
			}
		})
	}
}

// What a session uses while it ends is charged once, down to 0, though no hold is left.
func TestChargeAfterRefusal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ cost, charged int64 }{{20, 20}, {5000, 970}} {
		s := newSessionTest(t, sessionConfig)
		first := s.mustHold(t, takes(100))
		s.service.admin(t, "PATCH", "/"+s.id+"/admin/keys/"+s.key, `{"enabled":false}`).want(t, 200, "")
		id := s.wantRefusal(t, first, 30, takes(200), gateway.Balance{Charged: 30, Left: 970}, ErrKeyDisabled)
		want := gateway.Balance{Charged: test.charged, Left: 970 - test.charged}
		for range 2 {
			balance, err := s.Settle(soon(), id, gateway.Usage{Cost: test.cost})
			if err != nil || balance != want {
				t.Errorf("got %+v, %v; want %+v", balance, err, want)
			}
		}
		s.wantLedger(t, s.key, int(want.Left), 0, "-")
	}
}

func (s *sessionTest) mustTenant(t *testing.T) *tenant { return s.server.store.wantTenant(t, s.id) }

func (s *sessionTest) deleteTenant(t *testing.T) {
	t.Helper()
	s.service.admin(t, "DELETE", "/admin/tenants/"+s.id, "").want(t, 204, "")
	waittest.Eventually(t, 10*time.Second, func() error {
		if _, err := s.server.store.Tenant(soon(), s.id); err != ErrNoTenant {
			return fmt.Errorf("the tenant is still there: %v", err)
		}
		return nil
	})
}

// countedUsage returns what the account's process has counted for the tenant.
func (s *sessionTest) countedUsage() (sum usageSums) {
	u := s.server.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	for day, counts := range u.counts {
		if day.tenantID == s.id {
			sum.add(counts.total)
		}
	}
	return sum
}

// A hold that has expired is charged for all the same, down to 0, before another is taken.
func TestExchangeOfAnExpiredHold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ spent, charged, left int64 }{{0, 50, 950}, {940, 50, 10}, {970, 30, 0}, {1000, 0, 0}} {
		s := newSessionTest(t, strings.Replace(sessionConfig, `,"rate_limit":3,"rate_limit_window":3600`, "", 1))
		first := s.mustHold(t, takes(100))
		s.expire(t, s.key)
		if test.spent > 0 {
			s.service.consume(t, s.id, s.key, fmt.Sprintf(`{"tokens":%d}`, test.spent)).want(t, 200, "")
		}
		want, next := gateway.Balance{Charged: test.charged, Left: test.left}, takes(10)
		if test.left == 0 {
			for range 2 {
				next.ID = s.wantRefusal(t, first, 50, next, want, gateway.InsufficientError{})
			}
			s.wantEnd(t, 0)
			continue
		}
		next.ID = s.wantExchange(t, first, 50, next, want).ID
		s.wantEnd(t, int(test.left), s.wantExchange(t, first, 50, next, want))
	}
}

// forEachMove runs a test of a session whose key is rotated, merged into a user's, or both. move does that, and returns
// the new key and how many tokens that has got.
func forEachMove(t *testing.T, test func(t *testing.T, s *sessionTest, move func() (key string, more int))) {
	t.Helper()
	rotate := func(t *testing.T, s *sessionTest, key string) string { return s.service.rotate(t, s.id, key) }
	merge := func(t *testing.T, s *sessionTest, key string) string {
		return s.service.signIn(t, s.id, "u", bearer(key)).text(t, "apiKey")
	}
	for name, move := range map[string]func(*testing.T, *sessionTest, string) string{
		"rotated": rotate, "merged": merge,
		"both": func(t *testing.T, s *sessionTest, key string) string {
			return rotate(t, s, merge(t, s, rotate(t, s, key)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSessionTest(t, sessionConfig)
			test(t, s, func() (string, int) {
				before := tokensLeft(t, s.key)
				key := move(t, s, s.key)
				return key, tokensLeft(t, key) - before
			})
		})
	}
}

// lose lets a hold be as if the reply to what was last done with it was lost.
func (s *sessionTest) lose(hold gateway.Hold) {
	s.holds[hold.ID] = sessionHold{holder: *newHolder(s.key)}
}

// A session goes on with its key when that is rotated or merged.
func TestExchangeFollowsTheKey(t *testing.T) {
	t.Parallel()
	forEachMove(t, func(t *testing.T, s *sessionTest, move func() (string, int)) {
		first, further := s.mustHold(t, takes(100)), s.mustHold(t, furtherOf(takes(50)))
		key, more := move()
		settled, next := gateway.Balance{Charged: 30, Left: int64(920 + more)}, takes(200)
		second := s.wantExchange(t, first, 30, next, settled)
		s.wantLedger(t, key, 720+more, 250, "1 250 250")
		if s.presentKey() != key {
			t.Errorf("the key is %s, want %s", s.presentKey(), key)
		}
		s.lose(first)
		next.ID = second.ID
		s.wantExchange(t, first, 30, next, settled)
		if more > 0 && s.Check(soon(), []string{"other"}) == nil {
			t.Error("the model other is allowed, which the user's group does not have")
		}
		s.wantEnd(t, 970+more, second, further, s.mustHold(t, furtherOf(takes(10))))
	})
}

// So it does if the key moves between two attempts.
func TestRepeatedExchangeFollowsTheKey(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{true, false} {
		forEachMove(t, func(t *testing.T, s *sessionTest, move func() (string, int)) {
			first, further := s.mustHold(t, takes(100)), s.mustHold(t, furtherOf(takes(50)))
			next, settled := takes(200), gateway.Balance{Charged: 30, Left: 920}
			if taken {
				next.ID = s.wantExchange(t, first, 30, next, settled).ID
				s.lose(first)
			} else {
				next.Least, next.Most = 1600, 1600
				next.ID = s.wantRefusal(t, first, 30, next, settled, gateway.InsufficientError{Left: 920, Held: 50})
				next.Least, next.Most = 200, 200
			}
			_, more := move()
			if err := s.Renew(soon(), further, time.Minute); err != nil { // so that it is known where the key is
				t.Error(err)
			}
			s.wantEnd(t, 970+more, s.wantExchange(t, first, 30, next, settled), further)
		})
	}
}

func TestRepeatedSettlementFollowsTheKey(t *testing.T) {
	t.Parallel()
	forEachMove(t, func(t *testing.T, s *sessionTest, move func() (string, int)) {
		first, further := s.mustHold(t, takes(100)), s.mustHold(t, furtherOf(takes(50)))
		for i := range 3 {
			balance, err := s.Settle(soon(), first.ID, gateway.Usage{Cost: 30})
			if err != nil || balance != (gateway.Balance{Charged: 30, Left: 920}) {
				t.Errorf("got %+v, %v", balance, err)
			}
			s.lose(first)
			if i == 0 {
				move()
			}
			if err := s.Renew(soon(), further, time.Minute); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestFurtherHoldFollowsTheKey(t *testing.T) {
	t.Parallel()
	forEachMove(t, func(t *testing.T, s *sessionTest, move func() (string, int)) {
		first := s.mustHold(t, takes(100))
		key, more := move()
		further := s.mustHold(t, furtherOf(takes(50)))
		if s.presentKey() != key {
			t.Errorf("the key is %s, want %s", s.presentKey(), key)
		}
		s.wantEnd(t, 1000+more, further, first)
	})
}

// What is used after a refusal is charged by the ID of the hold that was refused, also long after the key has moved.
func TestSettledRefusalFollowsTheKey(t *testing.T) {
	t.Parallel()
	forEachMove(t, func(t *testing.T, s *sessionTest, move func() (string, int)) {
		first := s.mustHold(t, takes(100))
		_, more := move()
		if err := s.Renew(soon(), first, time.Minute); err != nil {
			t.Error(err)
		}
		left := int64(970 + more)
		refused := s.wantRefusal(t, first, 30, takes(5000), gateway.Balance{Charged: 30, Left: left},
			gateway.InsufficientError{Left: left})
		for _, name := range []string{"current", "successor", "closed"} { // as if it was long ago
			testRedis.Do(t, "DEL", "{apiKey:"+s.key+"}:"+name)
		}
		balance, err := s.Settle(soon(), refused, gateway.Usage{Cost: 20})
		if err != nil || balance != (gateway.Balance{Charged: 20, Left: left - 20}) {
			t.Errorf("got %+v, %v", balance, err)
		}
	})
}

func furtherOf(r gateway.HoldRequest) gateway.HoldRequest {
	r.Further = true
	return r
}

// remainingRequests returns a header of the rate limit, which is not sent in canonical form.
func remainingRequests(h http.Header) string {
	for name, values := range h {
		if strings.EqualFold(name, "X-RateLimit-Remaining-Requests") {
			return strings.Join(values, ", ")
		}
	}
	return ""
}

// A session counts once, however many holds it has; what is exchanged stays the first or a further one.
func TestSessionCountsOnce(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, sessionConfig) // max_concurrent is 1, rate_limit 3
	first := s.mustHold(t, takes(100))
	used := remainingRequests(s.header)
	other := newSessionOf(t, s.server, s.id, s.key)
	busy := func() {
		t.Helper()
		if _, err := other.Hold(soon(), takes(1)); !errors.Is(err, ErrTooManyRequests) {
			t.Errorf("another session: %v", err)
		}
	}
	busy()
	for range 5 {
		further := s.mustHold(t, furtherOf(takes(50)))
		s.wantLedger(t, s.key, 850, 150, "1 150 150")
		exchanged := s.wantExchange(t, further, 0, takes(60), gateway.Balance{Left: 900})
		if !strings.HasPrefix(exchanged.ID, extraPrefix) {
			t.Errorf("a further hold became %s", exchanged.ID)
		}
		s.wantLedger(t, s.key, 840, 160, "1 160 160")
		first = s.wantExchange(t, first, 0, takes(100), gateway.Balance{Left: 940})
		busy()
		if _, err := s.Settle(soon(), exchanged.ID, gateway.Usage{}); err != nil {
			t.Error(err)
		}
	}
	if now := remainingRequests(s.header); now != used || used != "2" {
		t.Errorf("%q requests remained, then %q", used, now)
	}
	if n := testRedis.Int(t, "LLEN", "{apiKey:"+s.key+"}:rate"); n != 1 {
		t.Errorf("%d requests are in the log of the rate", n)
	}
	for _, hold := range []gateway.Hold{first, s.mustHold(t, furtherOf(takes(1)))} { // no client can settle them
		path := "/" + s.id + "/tokens/holds/" + hold.ID
		s.service.do(t, "DELETE", path, "", bearer(s.key)).want(t, 404, "")
		s.service.do(t, "POST", path+"/settle", `{"tokens":0}`, bearer(s.key)).want(t, 404, "")
	}
	if _, err := s.Settle(soon(), first.ID, gateway.Usage{}); err != nil {
		t.Error(err)
	}
	if _, err := other.Hold(soon(), takes(1)); err != nil {
		t.Errorf("after the first hold has ended: %v", err)
	}
}

// Further holds are refused as the first would be, but for the rate and what is under way.
func TestFurtherHolds(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, sessionConfig)
	first := s.mustHold(t, takes(100))
	if _, err := s.Hold(soon(), furtherOf(takes(901))); err != (gateway.InsufficientError{Left: 900, Held: 100}) {
		t.Errorf("got %v", err)
	}
	further := s.mustHold(t, furtherOf(takes(900)))
	s.expire(t, s.key)
	for _, hold := range []gateway.Hold{further, first} { // what was returned is held again, and charged for if it was not
		if err := s.Renew(soon(), hold, time.Minute); err != nil {
			t.Error(err)
		}
	}
	s.wantLedger(t, s.key, 0, 1000, "1 1000 1000")
	s.expire(t, s.key)
	balance, err := s.Settle(soon(), further.ID, gateway.Usage{Cost: 950})
	if err != nil || balance != (gateway.Balance{Charged: 950, Left: 50}) {
		t.Errorf("got %+v, %v", balance, err)
	}
	s.change(t, strings.Replace(sessionConfig, "anonymous", "x", 1))
	if _, err := s.Hold(soon(), furtherOf(takes(1))); !errors.Is(err, ErrGroupDisabled) {
		t.Errorf("got %v", err)
	}
	s.service.admin(t, "DELETE", "/"+s.id+"/admin/keys/"+s.key, "").want(t, 204, "")
	if _, err := s.Hold(soon(), furtherOf(takes(1))); !errors.Is(err, gateway.ErrNoHold) {
		t.Errorf("got %v", err)
	}
}

// Sessions of one key that pay at the same time, while one is renewed and settled, leave the right balance.
func TestParallelExchanges(t *testing.T) {
	t.Parallel()
	config := `{"user_groups":{"anonymous":{"tokens":100000,"refill":{"tokens":90000,"every":3600}}}}`
	s := newSessionTest(t, config)
	var all sync.WaitGroup
	for i := range 2 {
		session := *s
		session.sessionAccount = newSessionOf(t, s.server, s.id, s.key)
		holds := []gateway.Hold{session.mustHold(t, takes(1000)), session.mustHold(t, furtherOf(takes(1000)))}
		for j, hold := range holds {
			all.Go(func() {
				for n := range 50 {
					u := gateway.Usage{Cost: int64(10*i + j + n), IsPart: true}
					for next := takes(1000); ; {
						_, other, err := session.Exchange(soon(), hold.ID, u, next)
						if err != nil {
							t.Error(err)
							return
						}
						if next.ID != "" { // the second time
							hold = other
							break
						}
						next.ID = other.ID
						session.holdAgain(hold.ID)
					}
					if err := session.Renew(soon(), hold, time.Minute); err != nil {
						t.Error(err)
					}
					if err := session.Check(soon(), []string{"m"}); err != nil {
						t.Error(err)
					}
				}
				if _, err := session.Settle(soon(), hold.ID, gateway.Usage{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	spent := 4*(49*50/2) + 50*(0+1+10+11)
	s.wantLedger(t, s.key, 100_000-spent, 0, "-")
}

// holdAgain remembers a hold as if the reply to its exchange was lost, though it is counted.
func (s *sessionTest) holdAgain(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[id] = sessionHold{*newHolder(s.key), true}
}

// If the process dies, what is held returns at its deadline.
func TestAbandonedExchange(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, sessionConfig)
	s.wantExchange(t, s.mustHold(t, takes(100)), 30, takes(200), gateway.Balance{Charged: 30, Left: 970})
	due := time.UnixMilli(int64(testRedis.Int(t, "HGET", "apiKey:"+s.key, "holdsDue")))
	if until := time.Until(due); until > 90*time.Second {
		t.Errorf("it is held for another %s", until)
	}
	s.expire(t, s.key)
	s.wantLedger(t, s.key, 970, 0, "-")
}

// After refills in the middle of a session the balance is the same as if nothing had been held.
func TestExchangesAndRefills(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, `{"user_groups":{"anonymous":{"tokens":1000,"refill":{"tokens":800,"every":3600}}}}`)
	first := s.mustHold(t, takes(600))
	age(t, s.key, 90*time.Minute) // 400 of 1,000 become 800, as if the 600 were spent
	second := s.wantExchange(t, first, 100, takes(600), gateway.Balance{Charged: 100, Left: 900})
	s.wantLedger(t, s.key, 300, 600, "1 600 600")
	s.wantEnd(t, 900, second) // 1,000 - 100, which no refill raises
}

// Whatever replies of Redis are lost, and wherever the key goes meanwhile, a session pays for each use once.
func TestInterruptedExchanges(t *testing.T) {
	t.Parallel()
	service, r := ownSignInService(t)
	config := strings.Replace(sessionConfig, `,"rate_limit":3,"rate_limit_window":3600`, "", 1)
	var isArmed atomic.Bool
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if isArmed.Load() && rand.IntN(4) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	st := newTestStoreAt(t, proxy.URL)
	server := &server{store: st, metrics: newMetrics(nil), usage: newUsageStats(st)}
	s := &sessionTest{service: service, id: newTenantIn(t, r, config)}
	key, left, cuts := s.service.login(t, s.id), 1000, 0
	s.sessionAccount = newSessionOf(t, server, s.id, key)
	again := func(step func() error) {
		waittest.Eventually(t, time.Minute, func() error {
			err := step()
			if errors.Is(err, gateway.ErrUnavailable) {
				cuts++
				return err
			}
			if err != nil {
				t.Error(err)
			}
			return nil
		})
	}
	holds := []gateway.Hold{s.mustHold(t, takes(100)), s.mustHold(t, furtherOf(takes(100)))}
	isArmed.Store(true)
	for i := range 30 {
		hold, next, cost := &holds[i%2], takes(int64(100+i)), int64(i%3)
		var other gateway.Hold
		again(func() (err error) {
			switch rand.IntN(20) {
			case 0:
				key = s.service.rotate(t, s.id, key)
			case 1:
				if strings.HasPrefix(key, anonymousKeyPrefix) {
					key, left = s.service.signIn(t, s.id, "u", bearer(key)).text(t, "apiKey"), left+500
				}
			}
			_, other, err = s.Exchange(soon(), hold.ID, gateway.Usage{Cost: cost, IsPart: true}, next)
			next.ID = other.ID
			return err
		})
		again(func() error { return s.Renew(soon(), other, time.Minute) })
		*hold, left = other, left-int(cost)
	}
	again(func() error { return s.Check(soon(), []string{"m"}) })
	for _, hold := range holds {
		again(func() error {
			_, err := s.Settle(soon(), hold.ID, gateway.Usage{})
			return err
		})
	}
	if got := tokensLeftIn(t, r, key); got != left || r.Int(t, "HEXISTS", "apiKey:"+key, "tokensHeld") == 1 {
		t.Errorf("%d are left, want %d, and nothing held", got, left)
	}
	if got := s.countedUsage(); got.charged != 30 || cuts < 10 {
		t.Errorf("%d tokens were counted, want 30; %d steps were interrupted", got.charged, cuts)
	}
}

// newSessionIn returns the account of a session with a new API key in r.
func newSessionIn(t *testing.T, r *redistest.Server) *sessionAccount {
	t.Helper()
	newService(t, "REDIS_URL="+r.URL())
	id, st := newTenantIn(t, r, sessionConfig), newTestStore(t, r)
	k := apiKey{group: anonymousGroup, createdAt: time.Now(), tokensLeft: 1000}
	issued, err := st.NewKey(soon(), st.wantTenant(t, id), k, idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return newSessionOf(t, &server{store: st, metrics: newMetrics(nil), usage: newUsageStats(st)}, id, issued.key)
}

// A full Redis settles and holds nothing anew, so that the session ends, and is paid for.
func TestExchangeInAFullRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	a := newSessionIn(t, r)
	first, err := a.Hold(soon(), takes(100))
	if err != nil {
		t.Fatal(err)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	if err := a.Check(soon(), []string{"m"}); err != nil {
		t.Error(err)
	}
	if err := a.Renew(soon(), first, time.Minute); err != nil {
		t.Error(err)
	}
	u, next, settled := gateway.Usage{Cost: 30}, takes(200), gateway.Balance{Charged: 30, Left: 970}
	for range 2 {
		balance, second, err := a.Exchange(soon(), first.ID, u, next)
		if full, ok := err.(gateway.Error); !ok || full.Status != 503 || balance != settled || second.Tokens != 0 {
			t.Errorf("got %+v, %+v, %v", balance, second, err)
		}
		next.ID = second.ID
	}
	if _, err := a.Hold(soon(), furtherOf(takes(1))); !errors.Is(err, gateway.ErrUnavailable) {
		t.Errorf("a further hold: %v", err)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	balance, second, err := a.Exchange(soon(), first.ID, u, next)
	if err != nil || balance != settled || second.Tokens != 200 {
		t.Errorf("got %+v, %+v, %v", balance, second, err)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	if balance, err = a.Settle(soon(), second.ID, u); err != nil || balance != (gateway.Balance{Charged: 30, Left: 940}) {
		t.Errorf("got %+v, %v", balance, err)
	}
}

// What a session holds is settled and renewed under the config that was last seen.
func TestSessionSeesAnotherRefill(t *testing.T) {
	t.Parallel()
	config := `{"user_groups":{"anonymous":{"tokens":1000,"refill":{"tokens":800,"every":3600}}}}`
	s := newSessionTest(t, config)
	first := s.mustHold(t, takes(600))
	s.change(t, strings.Replace(config, "800", "500", 1))
	if err := s.Check(soon(), []string{"m"}); err != nil {
		t.Error(err)
	}
	age(t, s.key, 90*time.Minute) // 400 of 1,000 become 500
	balance, err := s.Settle(soon(), first.ID, gateway.Usage{Cost: 600})
	if err != nil || balance != (gateway.Balance{Charged: 600, Left: 500}) {
		t.Errorf("got %+v, %v", balance, err)
	}
}

// As long as the config cannot be read, nothing is settled by an exchange either, so that the session keeps its hold.
func TestExchangeWithoutConfig(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	other := newSessionIn(t, r)
	server := &server{store: newTestStore(t, r), metrics: newMetrics(nil), usage: newUsageStats(nil)}
	a := server.newSessionAccount(other.tenant, other.key, make(http.Header), other.place)
	first, err := a.Hold(soon(), takes(100))
	if err != nil {
		t.Fatal(err)
	}
	r.Do(t, "ACL", "SETUSER", "tollgate", "resetkeys", "~apiKey:*", "~{apiKey:*")
	if _, _, err = a.Exchange(soon(), first.ID, gateway.Usage{Cost: 30}, takes(10)); !errors.Is(err, gateway.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if left := tokensLeftIn(t, r, a.key); left != 900 {
		t.Errorf("%d are left", left)
	}
}

// What a session uses is counted as it is settled, once; it is one request, at its end.
func TestUsageOfSessions(t *testing.T) {
	t.Parallel()
	s := newSessionTest(t, sessionConfig)
	u := gateway.Usage{Endpoint: "e", Model: "m", Usage: llmwire.Usage{Input: 20, Output: 10}, Cost: 30, IsPart: true}
	hold := s.mustHold(t, takes(100))
	for range 3 {
		var err error
		if _, hold, err = s.Exchange(soon(), hold.ID, u, takes(100)); err != nil {
			t.Fatal(err)
		}
	}
	next := takes(5000)
	for range 2 {
		_, other, err := s.Exchange(soon(), hold.ID, u, next)
		if err != (gateway.InsufficientError{Left: 880}) {
			t.Error(err)
		}
		next.ID = other.ID
	}
	if _, err := s.Settle(soon(), hold.ID, u); err != nil { // it was settled and counted before
		t.Error(err)
	}
	if got := s.countedUsage(); got.requests != 0 || got.charged != 120 || got.input != 80 || got.output != 40 {
		t.Errorf("counted %+v", got)
	}
	last := s.mustHold(t, furtherOf(takes(10)))
	u.IsPart = false
	if _, err := s.Settle(soon(), last.ID, u); err != nil {
		t.Error(err)
	}
	if got := s.countedUsage(); got.requests != 1 || got.charged != 150 || got.input != 100 {
		t.Errorf("counted %+v", got)
	}
}

// A key whose group is not sent at first, or which has 1,000 holds.
func TestExchangeOfLargeTables(t *testing.T) {
	t.Parallel()
	var config strings.Builder
	config.WriteString(`{"user_groups":{"anonymous":{"tokens":5,"models":["x"]}`)
	for i := range 200 {
		fmt.Fprintf(&config, `,"a group with a long name %d":{"tokens":1000,"models":["m"]}`, i)
	}
	config.WriteString("}}")
	s := newSessionTest(t, config.String())
	key := s.service.issue(t, s.id, `"userId":"u","group":"a group with a long name 7"`)
	s.sessionAccount = newSessionOf(t, s.server, s.id, key)
	first := s.mustHold(t, takes(100))
	if err := s.Check(soon(), []string{"m"}); err != nil {
		t.Error(err)
	}
	if _, denied := errors.AsType[gateway.DeniedError](s.Check(soon(), []string{"m", "x"})); !denied {
		t.Error("the model x is allowed")
	}
	second := s.wantExchange(t, first, 30, takes(200), gateway.Balance{Charged: 30, Left: 970})
	later := func(int) int64 { return time.Now().Add(time.Hour).UnixMilli() }
	putHolds(t, testRedis, key, 999, later)
	second = s.wantExchange(t, second, 0, takes(200), gateway.Balance{Left: 970}) // one ends before the other begins
	testRedis.Do(t, "HDEL", "{apiKey:"+key+"}:holds", second.ID)                  // another has come in its place
	putHolds(t, testRedis, key, 1, later)
	s.wantRefusal(t, second, 1, takes(200), gateway.Balance{Charged: 1, Left: 769}, ErrTooManyHolds)
}

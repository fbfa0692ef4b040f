package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// Whatever the interleaving over two processes, what was granted is what was spent plus what is left, and the balance
// never goes below 0.
func TestRacingCharges(t *testing.T) {
	const granted = 1000
	services := newServices(t)
	id := newTenant(t, granted)
	key := services[0].login(t, id)
	all := load{
		services: services, clients: 64, requests: 40, statuses: []int{200, 402},
		request: func(client, i int) request { return consumeRequest(id, key, (client+i)%3+1) },
	}.run(t)
	spent, left, refused := all.of("POST", 200).sum(), tokensLeft(t, key), len(all.of("POST", 402))
	if left+spent != granted || left < 0 || refused == 0 {
		t.Errorf("granted %d, spent %d, left %d, refused %d times", granted, spent, left, refused)
	}
}

// One Idempotency-Key that races over two processes, while Redis forgets its scripts, is charged once, and everybody
// learns the same outcome.
func TestIdempotencyRace(t *testing.T) {
	services := newServices(t)
	id := newTenant(t, 100)
	key := services[0].login(t, id)
	all := load{
		services: services, clients: 64, requests: 1, statuses: []int{200},
		request: func(client, _ int) request {
			if client%8 == 0 {
				testRedis.Do(t, "SCRIPT", "FLUSH")
			}
			return consumeRequest(id, key, 7, retryKey+"k")
		},
	}.run(t)
	for _, o := range all {
		o.got.want(t, 200, `{"tokensLeft":93}`)
	}
	if first, again := len(all.replayed(false)), len(all.replayed(true)); first != 1 || again != 63 || tokensLeft(t, key) != 93 {
		t.Errorf("%d charges, %d replays, %d tokens left", first, again, tokensLeft(t, key))
	}
}

// Neither a charge nor a refusal changes when a key expires.
func TestChargeKeepsExpiry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 3)
	key := s.login(t, id)
	before := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key)
	s.consume(t, id, key, "").want(t, 200, "")
	s.consume(t, id, key, `{"tokens":2}`).want(t, 200, "")
	s.consume(t, id, key, `{"tokens":2}`).want(t, 402, "")
	if after := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+key); after != before || after < 0 {
		t.Errorf("the key expires at %d, before the charges at %d", after, before)
	}
}

// A key that expires while it is charged stays dead: none of the charges after it creates it again.
func TestExpiredKeyStaysDead(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 100_000, 100)
	key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":1000000000`)
	next := func(client, i int) request {
		if i%2 == 0 {
			return consumeRequest(id, key, 1, fmt.Sprintf("%s%d-%d", retryKey, client, i))
		}
		return consumeRequest(id, key, 1)
	}
	racing := load{services: []*service{s}, clients: 10, statuses: []int{200, 401}, request: next}.start(t)
	racing.more(t, 20)
	testRedis.Do(t, "PEXPIRE", "apiKey:"+key, 60)
	waittest.Eventually(t, 10*time.Second, func() error { return s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).is(401) })
	expired := time.Now()
	load{
		services: []*service{s}, clients: 10, requests: 100, statuses: []int{401},
		request: func(client, i int) request { return next(10+client, i) },
	}.run(t)
	for _, o := range racing.stop() {
		if o.began.After(expired) && o.got.status == 200 {
			t.Error("a charge was accepted after the key had expired")
		}
	}
	if testRedis.Int(t, "EXISTS", "apiKey:"+key) != 0 {
		t.Errorf("the key is a %s", testRedis.String(t, "TYPE", "apiKey:"+key))
	}
}

// A key that is revoked while it is charged and changed stays dead, and nothing of it comes back.
func TestRevokedUnderLoad(t *testing.T) {
	services := newServices(t)
	id := limitedTenant(t, 100_000, 100)
	key := services[0].issue(t, id, `"userId":"u","group":"anonymous","tokens":1000000000`)
	next := func(client, i int) request {
		if i%3 == 0 {
			return patchRequest(id, key, `{"addTokens":1,"group":"pro"}`, 1)
		}
		return consumeRequest(id, key, 1, fmt.Sprintf("%s%d-%d", retryKey, client, i))
	}
	racing := load{services: services, clients: 16, statuses: []int{200, 401, 404}, request: next}.start(t)
	racing.more(t, 100)
	services[0].admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
	revoked := time.Now()
	load{
		services: services, clients: 16, requests: 10, statuses: []int{401, 404},
		request: func(client, i int) request { return next(16+client, i) },
	}.run(t)
	for _, o := range racing.stop() {
		if o.began.After(revoked) && o.got.status == 200 {
			t.Errorf("a revoked key was good for %s %s", o.sent.method, o.sent.path)
		}
	}
	if n := testRedis.Int(t, "EXISTS", "apiKey:"+key, "{apiKey:"+key+"}:rate"); n != 0 {
		t.Error("something of a revoked key is back")
	}
}

// Mixed charges, retries and changes of one key over two processes: the balance is what was granted and added less what
// was charged, each accepted charge once.
func TestLedger(t *testing.T) {
	const granted = 500
	services := newServices(t)
	id := limitedTenant(t, 10, 1) // of the group anonymous
	key := services[0].issue(t, id, fmt.Sprintf(`"userId":"u","group":"anonymous","tokens":%d`, granted))
	// The balance covers these charges, so most are over the rate, whatever the load after them spends first.
	all := load{
		services: services, clients: 64, requests: 1, statuses: []int{200, 429},
		request: func(int, int) request { return consumeRequest(id, key, 1) },
	}.run(t)
	all = append(all, load{
		services: services, clients: 64, requests: 27, statuses: []int{200, 400, 402, 429},
		request: func(client, i int) request {
			n := 1 + (client*27+i)%9
			switch i % 9 {
			case 0:
				return patchRequest(id, key, `{"group":"`+[]string{"pro", "anonymous"}[client%2]+`"}`, 0)
			case 1:
				if client%3 == 0 {
					n *= -20
				}
				return patchRequest(id, key, fmt.Sprintf(`{"addTokens":%d}`, n), n)
			case 2:
				return consumeRequest(id, key, n)
			}
			// A charge that is sent three times, and by a second client as well.
			return consumeRequest(id, key, 1+i/3, fmt.Sprintf("%s%d-%d", retryKey, client/2, i/3))
		},
	}.run(t)...)
	charged, added := all.of("POST", 200).replayed(false).sum(), all.of("PATCH", 200).sum()
	if left := tokensLeft(t, key); left != granted+added-charged || left < 0 {
		t.Errorf("granted %d, added %d, charged %d, but %d are left", granted, added, charged, left)
	}
	poor, limited, below := len(all.of("POST", 402)), len(all.of("POST", 429)), len(all.of("PATCH", 400))
	if charged == 0 || added == 0 || poor == 0 || limited == 0 || below == 0 || len(all.of("POST", 400)) > 0 {
		t.Errorf("charged %d, added %d; refused %d for their balance, %d for the rate, %d changes: that proves little",
			charged, added, poor, limited, below)
	}
}

// When Redis's replies are lost after it has written, those who retry with their Idempotency-Key, at any process, pay
// once.
func TestLostReplies(t *testing.T) {
	const clients, charges = 20, 50
	var cutting atomic.Bool
	r := singleRedis(t)
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if cutting.Load() && rand.IntN(5) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	services := newServices(t, "REDIS_URL="+proxy.URL)
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":10000}}}`)
	key := services[0].login(t, id)
	cutting.Store(true)
	all := load{
		services: services, clients: clients, requests: charges, statuses: []int{200}, retry: true,
		request: func(client, i int) request {
			return consumeRequest(id, key, 3, fmt.Sprintf("%s%d-%d", retryKey, client, i))
		},
	}.run(t)
	if spent := 10_000 - tokensLeftIn(t, r, key); spent != 3*clients*charges {
		t.Errorf("%d tokens were taken for %d charges of 3", spent, clients*charges)
	}
	if retries, replays := len(all.of("POST", 503)), len(all.replayed(true)); retries == 0 || replays == 0 {
		t.Errorf("%d cuts, %d retries and %d replays prove nothing", proxy.Cuts.Load(), retries, replays)
	}
}

// Clients that go away in the middle of a charge close no connection to Redis, and a retry finds what they were charged.
func TestHangUps(t *testing.T) {
	long(t)
	const clients, charges = 16, 25
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":10000}}}`)
	key := s.login(t, id)
	observer, err := r.Dial() // the only connection of the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	dialled := func() (n int) {
		info, err := redis.String(observer.Do("INFO", "stats"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Sscan(redistest.Field(info, "total_connections_received"), &n)
		return n
	}
	left := func() int {
		n, err := redis.Int(observer.Do("HGET", "apiKey:"+key, "tokensLeft"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	charge := func(prefix string, clients, charges int) load {
		return load{
			services: []*service{s}, clients: clients, requests: charges, statuses: []int{200},
			request: func(client, i int) request {
				return consumeRequest(id, key, 1, fmt.Sprintf("%s%s%d-%d", retryKey, prefix, client, i))
			},
		}
	}
	const connections = 64 // of the pool
	// Every connection that there may be is there first: more scripts wait together than there are connections.
	r.Signal(t, syscall.SIGSTOP)
	waiting := charge("first-", connections, 1).start(t)
	time.Sleep(300 * time.Millisecond)
	r.Signal(t, syscall.SIGCONT)
	waiting.wait()
	charge("warm-", clients, charges).run(t)
	paid := connections + clients*charges
	before := dialled()

	hangUps := make(chan error, clients)
	for client := range clients {
		go func() {
			for i := range charges {
				c, err := net.Dial("tcp", s.address())
				if err != nil {
					hangUps <- err
					return
				}
				fmt.Fprintf(c, "POST /%s/tokens/consume HTTP/1.1\r\nHost: x\r\n%s\r\n%s%d-%d\r\nContent-Length: 0\r\n\r\n",
					id, bearer(key), retryKey, client, i)
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				c.Close()
			}
			hangUps <- nil
		}()
	}
	for range clients {
		if err := <-hangUps; err != nil {
			t.Fatal(err)
		}
	}
	spent := 0
	waittest.Eventually(t, 30*time.Second, func() error { // all that is under way has reached Redis, and no more comes
		last := spent
		time.Sleep(200 * time.Millisecond)
		spent = 10_000 - left() - paid
		if spent != last || spent == 0 {
			return fmt.Errorf("%d charges of clients that hung up were taken, then %d", last, spent)
		}
		return nil
	})
	after := dialled()
	retried := charge("", clients, charges).run(t)
	if found := len(retried.replayed(true)); spent != found {
		t.Errorf("%d charges of clients that hung up were taken, %d are found by a retry", spent, found)
	}
	if n := left(); n != 10_000-paid-clients*charges {
		t.Errorf("%d tokens are left", n)
	}
	if after != before {
		t.Errorf("%d connections to Redis are new", after-before)
	}
	s.wantNoAlarm(t)
}

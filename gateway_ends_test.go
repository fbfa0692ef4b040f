package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// A slowSettlement is a Redis whose replies stop with the settlement of the next hold, until they are released.
type slowSettlement struct {
	*redistest.Server
	url      string
	isNext   atomic.Bool // the next hold counts
	isHeld   atomic.Bool // it was taken
	stopped  atomic.Bool
	released chan struct{}
}

func newSlowSettlement(t *testing.T) *slowSettlement {
	t.Helper()
	slow := &slowSettlement{Server: redistest.New(t), released: make(chan struct{})}
	proxy := redistest.NewProxy(t, slow.Server, func(reply []byte) redistest.Fate {
		if slow.isNext.Load() && bytes.Contains(reply, []byte("held ")) {
			slow.isHeld.Store(true)
		}
		if slow.stopped.Load() {
			<-slow.released
		}
		return redistest.Pass
	})
	proxy.OnRequest(func(request []byte) redistest.Fate {
		if slow.isHeld.Load() && bytes.Contains(request, []byte(leasePrefix)) { // the next renewal is far
			slow.stopped.Store(true)
		}
		return redistest.Pass
	})
	slow.url = proxy.URL
	return slow
}

// release lets Redis reply again.
func (slow *slowSettlement) release() { close(slow.released) }

// A stream ends when its settlement is on its way to Redis. Redis's reply is not waited for, but before the service
// stops: then the charge is counted.
func TestStreamEndsBeforeReply(t *testing.T) {
	t.Parallel()
	var took time.Duration
	for range 5 { // a machine may be too busy
		if took = testSlowSettlement(t); took < settleReply || t.Failed() {
			return
		}
	}
	t.Errorf("the end of a stream took %s", took)
}

const settleReply = 900 * time.Millisecond // for which a step waits that settles a hold

// testSlowSettlement returns how long a stream took while Redis did not reply to its settlement.
func testSlowSettlement(t *testing.T) time.Duration {
	slow := newSlowSettlement(t)
	s := newService(t, "REDIS_URL="+slow.url)
	p := providertest.New(t)
	g := &gatewayTest{service: s, provider: p, tenant: newTenantIn(t, slow.Server, formatsConfig(p, 1000, "", ""))}
	g.key = s.login(t, g.tenant)
	const body = `{"stream":true,"max_tokens":50}`
	g.call(t, chatPath, body) // Redis knows the script then
	slow.isNext.Store(true)
	began := time.Now()
	got := g.call(t, chatPath, body)
	took := time.Since(began)
	if err := got.is(200); err != nil || !strings.HasSuffix(got.body, "[DONE]\n\n") {
		t.Errorf("%v; %s", err, got.body)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if !slow.stopped.Load() {
			return errors.New("Redis got no settlement")
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	select {
	case err := <-stopped:
		t.Errorf("the service has stopped before the settlement: %v", err)
	case <-time.After(keepAliveGrace + 100*time.Millisecond):
	}
	slow.release()
	if err := <-stopped; err != nil || s.log.Count("holds were not settled") > 0 {
		t.Errorf("%v\n%s", err, s.log)
	}
	charged := 1000 - tokensLeftIn(t, slow.Server, g.key)
	if n := slow.Int(t, "EXISTS", "{apiKey:"+g.key+"}:holds"); charged <= 0 || n != 0 {
		t.Errorf("%d tokens were charged, %d keys of holds are left", charged, n)
	}
	later := newService(t, "REDIS_URL="+slow.URL())
	days := later.admin(t, "GET", "/"+g.tenant+"/admin/usage?from="+today()+"&to="+today(), "")
	if want := fmt.Sprintf(`"tokensCharged":%d`, charged); !strings.Contains(days.body, want) {
		t.Errorf("usage is %s, want %s", days.body, want)
	}
	return took
}

// A client that has seen the end of a stream has its place and its tokens back: the next request, which needs both, is
// granted.
func TestNextAfterStream(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	config := strings.Replace(formatsConfig(p, 0, `,"limit":"strict"`, ""), `{"tokens":0}`, `{"tokens":0,"max_concurrent":1}`, 1)
	g := newService(t).gatewayTest(t, p, config)
	testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", 1000)
	const body = `{"stream":true,"max_tokens":50}`
	held, err := strconv.Atoi(g.call(t, chatPath, body).header.Get("X-Tokens-Held"))
	if err != nil {
		t.Fatal(err)
	}
	charged := g.charged(t, 1000)
	for i := range 100 {
		testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", held+charged)
		for range 2 {
			if got := g.call(t, chatPath, body); got.status != 200 {
				t.Fatalf("round %d: %d %s", i, got.status, got.body)
			}
		}
		if n := g.charged(t, held+charged); n != 2*charged {
			t.Fatalf("round %d: %d tokens were charged, want %d", i, n, 2*charged)
		}
	}
}

// A charge that follows a stream finds the tokens that the stream has not used.
func TestChargeAfterStream(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	g := newService(t).gatewayTest(t, p, formatsConfig(p, 1000, `,"limit":"strict"`, ""))
	const body = `{"stream":true,"max_tokens":50}`
	held := g.call(t, chatPath, body).header.Get("X-Tokens-Held")
	for i := range 100 {
		testRedis.Do(t, "HSET", "apiKey:"+g.key, "tokensLeft", held)
		if got := g.call(t, chatPath, body); got.status != 200 {
			t.Fatalf("round %d: %d %s", i, got.status, got.body)
		}
		if got := g.consume(t, g.tenant, g.key, ""); got.status != 200 {
			t.Fatalf("round %d: a charge: %d %s", i, got.status, got.body)
		}
	}
}

// The place is also back if the next request goes to another process, for which the settlement is still on its way.
func TestNextElsewhere(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate { return redistest.Pass })
	proxy.OnRequest(func(request []byte) redistest.Fate {
		if bytes.Contains(request, []byte(":settled:")) {
			time.Sleep(100 * time.Millisecond)
		}
		return redistest.Pass
	})
	p := providertest.New(t)
	config := strings.Replace(formatsConfig(p, 1000, "", ""), `{"tokens":1000}`, `{"tokens":1000,"max_concurrent":1}`, 1)
	g := &gatewayTest{service: newService(t, "REDIS_URL="+proxy.URL), provider: p, tenant: newTenantIn(t, r, config)}
	g.key = g.login(t, g.tenant)
	elsewhere := *g
	elsewhere.service = newService(t, "REDIS_URL="+r.URL())
	for range 3 { // Redis knows the scripts after the first
		for _, g := range []*gatewayTest{g, &elsewhere} {
			if got := g.call(t, chatPath, `{"stream":true,"max_tokens":50}`); got.status != 200 {
				t.Errorf("%d %s", got.status, got.body)
			}
		}
	}
}

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// spenders are clients that charge, hold and settle, rotate and stream, each with an API key of its own, over two
// processes. Each step is repeated until it is decided.
type spenders struct {
	services []*service
	tenant   string
	all      []*spender
	stopped  atomic.Bool
	running  sync.WaitGroup
	steps    atomic.Int64
}

// A spender is one of these clients.
type spender struct {
	*spenders
	name    string
	keys    []string // the names that its API key has had; the last is the present one
	steps   int
	spent   int // tokens that were acknowledged
	unsure  int // tokens that may have been charged beside, for streams that broke off
	refused int // responses that were 503
	lost    int // rotations and holds that were acknowledged and are not known
	longest time.Duration
}

const spenderTokens = 1_000_000 // that each is given

// startSpenders lets 6 clients begin, which leave the machine some time for other tests.
func startSpenders(t *testing.T, settings ...string) *spenders {
	t.Helper()
	p := providertest.New(t)
	all := &spenders{services: newServices(t, append(settings, "LOGIN_LIMIT=0")...)}
	all.tenant = newClusterTenant(t, all.services[0], fmt.Sprintf(
		`{"user_groups":{"pro":{"tokens":%d,"rate_limit":100000,"rate_limit_window":1}},"providers":{"text":{"endpoints":{%s}}}}`,
		spenderTokens, endpointJSON(p, "chat", chatPath, "")))
	for i := range 6 {
		s := &spender{spenders: all, name: strconv.Itoa(i)}
		s.keys = []string{all.services[0].issue(t, all.tenant, `"userId":"`+s.name+`","group":"pro"`)}
		all.all = append(all.all, s)
		all.running.Go(func() {
			for !all.stopped.Load() && s.step(t) {
				all.steps.Add(1)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return all
}

func (s *spender) key() string { return s.keys[len(s.keys)-1] }

// send sends a request with the present key, and again as long as the response is 503 or none comes.
func (s *spender) send(method, path, body string, headers ...string) reply {
	return s.sendAs(s.key(), method, path, body, headers...)
}

// sendAs does what send does with a key or an admin token.
func (s *spender) sendAs(token, method, path, body string, headers ...string) reply {
	began := time.Now()
	for try := 0; ; try++ {
		got, err := s.services[(s.steps+try)%2].send(method, "/"+s.tenant+path, body, append(headers, bearer(token))...)
		if s.longest = max(s.longest, time.Since(began)); err == nil && got.status != 503 || time.Since(began) > time.Minute {
			return got
		}
		s.refused++
		time.Sleep(5 * time.Millisecond)
	}
}

// step does one thing and reports whether the client can go on.
func (s *spender) step(t *testing.T) bool {
	s.steps++
	once := retryKey + s.name + "-" + strconv.Itoa(s.steps)
	var got reply
	switch s.steps % 8 {
	case 0:
		got = s.sendAs(testAdminToken, "POST", "/admin/keys/"+s.key()+"/rotate", "", once)
		if got.status == 200 {
			s.keys = append(s.keys, got.text(t, "apiKey"))
		}
	case 1:
		if got = s.send("POST", "/tokens/holds", `{"tokens":5}`, once); got.status != 201 {
			break
		}
		got = s.send("POST", "/tokens/holds/"+got.text(t, "holdId")+"/settle", `{"tokens":3}`)
		if got.status == 200 {
			s.spent += 3
		}
	case 2:
		got = s.send("POST", chatPath, `{"stream":true,"max_tokens":100}`)
		if got.status == 200 && strings.Contains(got.body, "[DONE]") {
			s.spent += 18
		} else {
			s.unsure += 200
		}
	default:
		if got = s.send("POST", "/tokens/consume", "", once); got.status == 200 {
			s.spent++
		}
	}
	switch {
	case got.status == 200:
	case got.status == 401 && len(s.keys) > 1: // the rotation was lost
		s.keys = s.keys[:len(s.keys)-1]
		s.lost++
	case got.status == 401, got.status == 404: // a hold was lost, or the key of an admin's request
		s.lost++
	default:
		t.Errorf("step %d: got %d %s", s.steps, got.status, got.body)
		return false
	}
	return true
}

// more waits until n more steps than now are done.
func (all *spenders) more(t *testing.T, n int64) {
	t.Helper()
	want := all.steps.Load() + n
	waittest.Eventually(t, 60*time.Second, func() error {
		if got := all.steps.Load(); got < want {
			return fmt.Errorf("%d steps are done, want %d", got, want)
		}
		return nil
	})
}

// stop ends the clients. It checks that no more was taken than they have spent and, if all is kept, that nothing was
// lost.
func (all *spenders) stop(t *testing.T, allKept bool) {
	t.Helper()
	all.stopped.Store(true)
	all.running.Wait()
	for _, s := range all.services {
		waittest.Eventually(t, 30*time.Second, func() error {
			if n := s.sample(t, "gateway_holds"); n != 0 {
				return fmt.Errorf("%v holds are open", n)
			}
			return nil
		})
	}
	var sum spender
	taken := 0
	for _, s := range all.all {
		k := s.send("GET", "/auth/key", "")
		left, _ := k.field(t, "tokensLeft").(float64)
		held, _ := k.field(t, "tokensHeld").(float64) // for a hold whose settling was lost
		charged := spenderTokens - int(left) - int(held)
		if held > 0 && allKept {
			t.Errorf("client %s: %v tokens are held", s.name, held)
		}
		if charged > s.spent+s.unsure+5*s.lost || allKept && (charged < s.spent || s.lost > 0) {
			t.Errorf("client %s: %d tokens were acknowledged, %d taken; %d steps were lost", s.name, s.spent, charged, s.lost)
		}
		taken += charged
		sum.spent, sum.unsure, sum.refused, sum.lost = sum.spent+s.spent, sum.unsure+s.unsure, sum.refused+s.refused, sum.lost+s.lost
		sum.longest = max(sum.longest, s.longest)
	}
	t.Logf("%d steps: %d tokens acknowledged, %d taken, %d unsure, %d steps lost, %d × 503, the longest wait %s",
		all.steps.Load(), sum.spent, taken, sum.unsure, sum.lost, sum.refused, sum.longest.Round(10*time.Millisecond))
}

// TestSpendersWithSentinels fails over twice by killing the master, and once by hand, with the old master alive. What is
// acknowledged may be lost then, but nothing is taken twice. With -wait-replicas nothing is lost either, not even if the
// old master was stopped and goes on.
func TestSpendersWithSentinels(t *testing.T) {
	long(t)
	t.Parallel()
	t.Run("failovers", func(t *testing.T) {
		t.Parallel()
		g := redistest.NewSentinels(t, "")
		all := startSpenders(t, "REDIS_URL="+g.URL())
		for range 2 {
			all.more(t, 300)
			old := g.Master(t)
			old.Kill()
			g.Promoted(t, old)
			if err := old.Start(); err != nil {
				t.Fatal(err)
			}
			all.more(t, 100)
			g.Heal(t, old)
		}
		old := g.Master(t)
		g.Failover(t, old)
		g.Heal(t, old)
		all.more(t, 300)
		all.stop(t, false)
	})
	t.Run("split brain", func(t *testing.T) {
		t.Parallel()
		g := redistest.NewSentinels(t, "")
		all := startSpenders(t, "REDIS_URL="+g.URL(), "WAIT_REPLICAS=1")
		all.more(t, 300)
		old := g.Master(t)
		old.Signal(t, syscall.SIGSTOP)
		g.Promoted(t, old)
		all.more(t, 100)
		old.Signal(t, syscall.SIGCONT)
		g.Heal(t, old)
		all.more(t, 300)
		all.stop(t, true)
	})
}

// testClusterSpenders moves slots while everything that a client may do goes on: nothing is lost.
func testClusterSpenders(t *testing.T) {
	long(t)
	c := redistest.SharedCluster(t)
	all := startSpenders(t, "REDIS_URL="+c.URL())
	all.more(t, 300)
	masters := c.MastersNow(t)
	owned := masters[0].Slots(t)
	slots := owned[:200:200]
	for _, s := range all.all { // what is kept for each user has a slot, whichever key it uses
		slot := redisdb.Slot(userKeysRedisKey(all.tenant, s.name))
		if slices.Contains(owned[200:], slot) && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
	}
	c.MoveSlots(t, masters[0], masters[1], slots)
	c.MoveSlots(t, masters[1], masters[0], slots)
	all.more(t, 300)
	all.stop(t, true)
}

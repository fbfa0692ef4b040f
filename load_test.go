package main

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/waittest"
)

// request is a request of a load.
type request struct {
	method, path, body string
	headers            []string
	amount             int // that tally.sum adds up
}

// consumeRequest returns the request that charges key.
func consumeRequest(tenant, key string, tokens int, headers ...string) request {
	return request{
		"POST", "/" + tenant + "/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, tokens), append(headers, bearer(key)), tokens,
	}
}

// load is many clients that send requests at the same time, each one after the other, in turn to all services.
type load struct {
	services []*service
	clients  int
	requests int                         // of each client; 0: until it is stopped, or until says so
	request  func(client, i int) request // returns the i-th request of a client
	statuses []int                       // that a response may have
	within   time.Duration               // of which every response must come; 0: any time
	retry    bool                        // repeat a request, at the next service, until its response is not 503
	until    func(outcome) bool          // reports whether the client has finished with this
	pause    time.Duration               // of a client between two requests
}

// outcome is what became of a request.
type outcome struct {
	client       int
	sent         request
	got          reply
	err          error
	began, ended time.Time
}

// run sends the load and returns what became of it.
func (l load) run(t testing.TB) tally {
	t.Helper()
	return l.start(t).wait()
}

// start begins to send the load.
func (l load) start(t testing.TB) *runningLoad {
	running := &runningLoad{load: l}
	for g := range l.clients {
		running.clients.Go(func() {
			for i := 0; (l.requests == 0 || i < l.requests) && !running.stopped.Load(); i++ {
				if !running.send(t, g, i) {
					return
				}
				time.Sleep(l.pause)
			}
		})
	}
	return running
}

// runningLoad is a load that is being sent.
type runningLoad struct {
	load
	clients   sync.WaitGroup
	stopped   atomic.Bool
	succeeded atomic.Int64 // responses that were 200
	mu        sync.Mutex
	all       tally // guarded by mu
}

// stop waits until each client has finished its request and returns what became of all.
func (r *runningLoad) stop() tally {
	r.stopped.Store(true)
	return r.wait()
}

// wait waits until the clients have finished and returns what became of their requests.
func (r *runningLoad) wait() tally {
	r.clients.Wait()
	return r.all
}

// more waits until n more requests than now have succeeded.
func (r *runningLoad) more(t testing.TB, n int64) {
	t.Helper()
	want := r.succeeded.Load() + n
	waittest.Eventually(t, 30*time.Second, func() error {
		if got := r.succeeded.Load(); got < want {
			return fmt.Errorf("%d requests have succeeded, want %d", got, want)
		}
		return nil
	})
}

// send sends a client's i-th request and reports whether the client goes on.
func (r *runningLoad) send(t testing.TB, client, i int) bool {
	sent := r.request(client, i)
	for giveUp, try := in(30*time.Second), 0; ; try++ {
		o := outcome{client: client, sent: sent, began: time.Now()}
		s := r.services[(client+i+try)%len(r.services)]
		o.got, o.err = s.send(sent.method, sent.path, sent.body, sent.headers...)
		o.ended = time.Now()
		if o.err == nil && o.got.status == 200 {
			r.succeeded.Add(1)
		}
		r.mu.Lock()
		r.all = append(r.all, o)
		r.mu.Unlock()
		if r.until != nil && r.until(o) {
			return false
		}
		again := r.retry && o.err == nil && o.got.status == 503 && time.Now().Before(giveUp)
		if o.err != nil || !again && !slices.Contains(r.statuses, o.got.status) {
			t.Errorf("%s %s: %d %s, %v", sent.method, sent.path, o.got.status, o.got.body, o.err)
			return false
		}
		if took := o.ended.Sub(o.began); r.within > 0 && took > r.within {
			t.Errorf("%s %s: %d %s after %s", sent.method, sent.path, o.got.status, o.got.body, took)
			return false
		}
		if !again {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tally is what became of a load's requests, in the order in which they ended.
type tally []outcome

// of returns the outcomes of requests with that method ("": any) whose response had that status.
func (all tally) of(method string, status int) (found tally) {
	for _, o := range all {
		if (method == "" || o.sent.method == method) && o.err == nil && o.got.status == status {
			found = append(found, o)
		}
	}
	return found
}

// replayed returns the outcomes that are replays of an earlier charge, if want is true, or those that are not.
func (all tally) replayed(want bool) (found tally) {
	for _, o := range all {
		if (o.got.header.Get("Idempotent-Replayed") == "true") == want {
			found = append(found, o)
		}
	}
	return found
}

// sum returns the sum of the requests' amounts.
func (all tally) sum() (sum int) {
	for _, o := range all {
		sum += o.sent.amount
	}
	return sum
}

// patchRequest returns the request of an admin who changes key.
func patchRequest(tenant, key, body string, amount int) request {
	return request{
		method: "PATCH", path: "/" + tenant + "/admin/keys/" + key, body: body,
		headers: []string{bearer(testAdminToken)}, amount: amount,
	}
}

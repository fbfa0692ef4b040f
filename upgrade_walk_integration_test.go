//go:build integration

package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/providertest"
)

// walkedKey is an API key in a walk, with what it must have: granted = charged + left + what is held.
type walkedKey struct {
	name                   string
	first                  string // the name that it had before a new process rotated it for the first time; else ""
	left, granted, charged int
	holds                  map[string]int // ID → tokens
	records                []walkedRecord
}

// A walkedRecord is a request that is remembered, by the name that at is.
type walkedRecord struct {
	by                             *service
	at, method, path, body, header string
	isAdmin                        bool
	got                            reply
}

// recordName returns the name by which a process records, and finds, what is remembered of the key. The old one uses the
// present name, the new one the name that the key had before its own rotations. What one process cannot find by that
// name is not repeated through it: it would be done twice, whichever of the two has recorded it.
func (w *upgradeWalk) recordName(s *service, k *walkedKey) string {
	if s == w.now {
		return cmp.Or(k.first, k.name)
	}
	return k.name
}

// An upgradeWalk makes random steps with the keys of a user and of visitors who become that user, each through one of
// the processes.
type upgradeWalk struct {
	*testing.T
	*upgrade
	random  *rand.Rand
	subject string
	user    *walkedKey
	moved   map[string]string // hold ID → the visitor's key with which it was taken
	merges  int
	ids     int // of requests and models
	free    int // completions that were not charged
	steps   []string
}

func (w *upgradeWalk) any() *service { return []*service{w.old, w.now}[w.random.IntN(2)] }

// send sends a request of a key, or of an admin, for which KEY in the path stands for the key.
func (w *upgradeWalk) send(s *service, k *walkedKey, isAdmin bool, method, path, body string, headers ...string) reply {
	w.Helper()
	token := k.name
	if isAdmin {
		token = testAdminToken
	}
	path = "/" + w.tenant + strings.Replace(path, "KEY", k.name, 1)
	got, err := s.send(method, path, body, append(headers, bearer(token))...)
	if err != nil || got.status >= 500 {
		w.fail("%s %s: %d %s %v", method, path, got.status, got.body, err)
	}
	return got
}

func (w *upgradeWalk) fail(format string, args ...any) {
	w.Helper()
	w.Fatalf(format+"\nafter\n%s", append(args, strings.Join(w.steps[max(len(w.steps)-12, 0):], "\n"))...)
}

// once sends a request that a process remembers, and returns the response. Without an Idempotency-Key it is remembered
// because of its path.
func (w *upgradeWalk) once(s *service, k *walkedKey, isAdmin bool, method, path, body string, withKey bool) reply {
	w.Helper()
	header := "X-Ignored: 1"
	if withKey {
		w.ids++
		header = retryKey + fmt.Sprint(w.ids)
	}
	at := w.recordName(s, k)
	got := w.send(s, k, isAdmin, method, path, body, header)
	if got.status < 300 {
		k.records = append(k.records, walkedRecord{s, at, method, path, body, header, isAdmin, got})
	}
	return got
}

// replay repeats a request, if it can be by the other process, which must change nothing.
func (w *upgradeWalk) replay(k *walkedKey) {
	if len(k.records) == 0 {
		return
	}
	r := k.records[w.random.IntN(len(k.records))]
	for _, s := range []*service{w.other(r.by), r.by} {
		if w.recordName(s, k) != r.at {
			continue
		}
		got := w.send(s, k, r.isAdmin, r.method, r.path, r.body, r.header)
		same := got.status == r.got.status
		for _, member := range []string{"tokensLeft", "holdId", "charged"} {
			same = same && got.field(w, member) == r.got.field(w, member)
		}
		if !same || got.header.Get("Idempotent-Replayed") != "true" {
			w.fail("%s %s again: got %d %s %v, want %s", r.method, r.path, got.status, got.body, got.header, r.got.body)
		}
		w.look(k)
		return
	}
}

// check compares what is left according to a response with what must be.
func (w *upgradeWalk) check(got reply, k *walkedKey) {
	w.Helper()
	if left, _ := got.field(w, "tokensLeft").(float64); got.status >= 300 && got.status != 402 || int(left) != k.left {
		w.fail("got %d %s, want %d left", got.status, got.body, k.left)
	}
}

func (w *upgradeWalk) look(k *walkedKey) {
	w.check(w.send(w.any(), k, false, "GET", "/auth/key", ""), k)
}

func (w *upgradeWalk) charge(k *walkedKey) {
	n, s := 1+w.random.IntN(40), w.any()
	body, got := fmt.Sprintf(`{"tokens":%d}`, n), reply{}
	if w.random.IntN(2) == 0 {
		got = w.send(s, k, false, "POST", "/tokens/consume", body)
	} else {
		got = w.once(s, k, false, "POST", "/tokens/consume", body, true)
	}
	w.charges(got, k, n)
	w.check(got, k)
}

// charges notes what a charge of n tokens has charged.
func (w *upgradeWalk) charges(got reply, k *walkedKey, n int) {
	if (got.status == 200) != (k.left >= n) {
		w.fail("a charge of %d of %d tokens: got %d %s", n, k.left, got.status, got.body)
	}
	if got.status == 200 {
		k.left, k.charged = k.left-n, k.charged+n
	}
}

func (w *upgradeWalk) verify(k *walkedKey) {
	w.ids++
	n, s := 1+w.random.IntN(9), w.any()
	path := fmt.Sprintf("/auth/verify?tokens=%d&request=v%d", n, w.ids)
	got := w.send(s, k, false, "GET", path, "")
	w.charges(got, k, n)
	if other := w.other(s); got.status == 200 && w.recordName(s, k) == w.recordName(other, k) {
		again := w.send(other, k, false, "GET", path, "")
		if again.status != 200 || again.header.Get("X-Tokens-Left") != strconv.Itoa(k.left) {
			w.fail("verify again: got %d %v, want %d left", again.status, again.header, k.left)
		}
	}
	w.look(k)
}

func (w *upgradeWalk) take(k *walkedKey) {
	n := 1 + w.random.IntN(60)
	got := w.once(w.any(), k, false, "POST", "/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, n), true)
	if k.left >= n {
		k.holds[got.text(w, "holdId")] = n
		k.left -= n
	}
	w.check(got, k)
}

// end settles, cancels or lets expire one of the open holds.
func (w *upgradeWalk) end(k *walkedKey) {
	ids := slices.Sorted(maps.Keys(k.holds))
	if len(ids) == 0 {
		return
	}
	id, s := ids[w.random.IntN(len(ids))], w.any()
	held, path := k.holds[id], "/tokens/holds/"+id
	delete(k.holds, id)
	switch w.random.IntN(3) {
	case 0:
		k.left += held
		w.expire(w, k.name, id, held)
	case 1:
		k.left += held
		if got := w.send(s, k, false, "DELETE", path, ""); got.status != 204 {
			w.fail("DELETE %s: got %d %s", path, got.status, got.body)
		}
	default:
		used := w.random.IntN(held*3/2 + 1)
		charged := min(used, held+k.left)
		k.left, k.charged = k.left+held-charged, k.charged+charged
		body, got := fmt.Sprintf(`{"tokens":%d}`, used), reply{}
		if visitor := w.moved[id]; visitor != "" && w.random.IntN(2) == 0 { // which only the new process follows
			got = w.send(w.now, &walkedKey{name: visitor}, false, "POST", path+"/settle", body)
		} else {
			got = w.once(s, k, false, "POST", path+"/settle", body, false)
		}
		if w.check(got, k); got.field(w, "charged") != float64(charged) {
			w.fail("got %s, want %d charged", got.body, charged)
		}
	}
	w.look(k)
}

func (w *upgradeWalk) topUp(k *walkedKey) {
	n := 1 + w.random.IntN(60)
	k.left, k.granted = k.left+n, k.granted+n
	w.check(w.once(w.any(), k, true, "PATCH", "/admin/keys/KEY", fmt.Sprintf(`{"addTokens":%d}`, n), true), k)
}

func (w *upgradeWalk) rotate(s *service, k *walkedKey) {
	got := w.send(s, k, true, "POST", "/admin/keys/KEY/rotate", "")
	w.check(got, k)
	before := *k
	if k.name = got.text(w, "apiKey"); s == w.now && k.first == "" {
		k.first = before.name
	}
	if got := w.send(w.other(s), &before, false, "GET", "/auth/key", ""); got.status != 401 {
		w.fail("the old name: got %d %s", got.status, got.body)
	}
}

func (w *upgradeWalk) list(k *walkedKey) {
	path := "/admin/keys?userId=google:" + w.subject
	_ = w.send(w.old, k, true, "GET", path, "") // need not list what a new process has issued
	if got := w.now.keysOf(w, w.tenant, "google:"+w.subject); !slices.Equal(got, []string{k.name}) {
		w.fail("got the keys %q, want %s", got, k.name)
	}
}

// complete asks for a completion through s and does what meanwhile does before the provider responds.
func (w *upgradeWalk) complete(s *service, k *walkedKey, meanwhile func()) {
	w.ids++
	model, gate, done := fmt.Sprint(w.subject, "-", w.ids), make(chan struct{}), make(chan reply, 1)
	w.gates.Store(model, gate)
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	path, body, token := "/"+w.tenant+chatPath, fmt.Sprintf(`{"model":%q,"max_tokens":20}`, model), bearer(k.name)
	go func() {
		got, err := s.send("POST", path, body, token)
		if err != nil {
			got.body = err.Error()
		}
		done <- got
	}()
	id := ""
	for ; id == "" && len(done) == 0; time.Sleep(time.Millisecond) {
		for found, tokens := range w.openHolds(k.name) {
			if _, known := k.holds[found]; !known {
				id, k.holds[found], k.left = found, tokens, k.left-tokens
			}
		}
	}
	if id == "" {
		if got := <-done; got.status != 402 {
			w.fail("a completion: got %d %v %s", got.status, got.header, got.body)
		}
		return
	}
	meanwhile()
	open()
	w.completed(<-done, k, id)
}

// completed notes what a completion for which k took a hold has charged. If it is one of a visitor who has become a user
// meanwhile, the old process does not find its hold, charges nothing, and leaves the hold to expire.
func (w *upgradeWalk) completed(got reply, k *walkedKey, id string) {
	const usage = providertest.InputTokens + providertest.OutputTokens
	charged, _ := strconv.Atoi(got.header.Get("X-Tokens-Charged"))
	_, own := k.holds[id]
	switch {
	case got.status == 200 && charged == usage && own:
		k.left, k.charged = k.left+k.holds[id]-charged, k.charged+charged
		delete(k.holds, id)
	case got.status == 200 && charged == 0 && !own:
		w.free++
	default:
		w.fail("a completion: got %d %v %s", got.status, got.header, got.body)
	}
	w.look(w.user)
}

// openHolds returns the open holds of a key according to Redis: ID → tokens.
func (w *upgradeWalk) openHolds(key string) map[string]int {
	holds, err := redis.StringMap(w.redis.Do(w, "HGETALL", "{apiKey:"+key+"}:holds"), nil)
	if err != nil {
		w.Fatal(err)
	}
	found := make(map[string]int)
	for id, hold := range holds {
		tokens, _, _ := strings.Cut(hold, " ")
		found[id], _ = strconv.Atoi(tokens)
	}
	return found
}

func (w *upgradeWalk) signIn(s *service, headers ...string) reply {
	got, err := s.send("POST", "/"+w.tenant+"/auth/google", tokenOf(w.subject), headers...)
	if err != nil || got.status != 200 {
		w.Errorf("a sign-in: got %d %s %v", got.status, got.body, err)
	}
	return got
}

// signInTwice signs the user in through both processes at the same moment, and returns the key.
func (w *upgradeWalk) signInTwice(headers ...string) string {
	var both [2]reply
	var requests sync.WaitGroup
	for i, s := range []*service{w.old, w.now} {
		requests.Go(func() { both[i] = w.signIn(s, headers...) })
	}
	requests.Wait()
	key := both[0].text(w, "apiKey")
	if both[1].text(w, "apiKey") != key {
		w.fail("two keys: %s %s", both[0].body, both[1].body)
	}
	return key
}

// merge lets a visitor make a few steps and sign in. One with open holds, or whose completion is under way, does so
// through the new process.
func (w *upgradeWalk) merge(s *service) {
	if w.merges == maxMerges {
		return
	}
	w.merges++
	v := &walkedKey{left: 200, granted: 200, holds: make(map[string]int)}
	got, err := w.any().send("POST", "/"+w.tenant+"/auth/anonymous", "")
	if v.name = got.text(w, "apiKey"); err != nil {
		w.Fatal(err)
	}
	for range w.random.IntN(6) {
		[]func(*walkedKey){w.charge, w.verify, w.take, w.end, w.look, w.replay}[w.random.IntN(6)](v)
	}
	signIn := func() {
		if got := w.signIn(s, bearer(v.name)).text(w, "apiKey"); got != w.user.name {
			w.fail("got the key %s, want %s", got, w.user.name)
		}
	}
	switch {
	case s != w.now && len(v.holds) > 0:
		s = w.now
	case len(v.holds) == 0 && w.random.IntN(2) == 0:
		signIn = func() { w.signInTwice(bearer(v.name)) }
	case s == w.now && w.random.IntN(2) == 0:
		w.complete(w.old, v, func() { w.join(v, signIn) })
	}
	if v.name != "" {
		w.join(v, signIn)
	}
	w.look(w.user)
}

// join merges a visitor's key into the user's.
func (w *upgradeWalk) join(v *walkedKey, signIn func()) {
	signIn()
	for id, tokens := range v.holds {
		w.user.holds[id], w.moved[id] = tokens, v.name
	}
	w.user.left, w.user.granted, w.user.charged = w.user.left+v.left, w.user.granted+v.granted, w.user.charged+v.charged
	*v = walkedKey{}
}

// walk makes n steps, ends all holds, compares the sums, and revokes the key.
func (w *upgradeWalk) walk(n int) {
	k := &walkedKey{left: 400, granted: 400, holds: make(map[string]int)}
	w.user, k.name = k, w.signInTwice()
	with := func(step func(*walkedKey)) func() { return func() { step(k) } }
	steps := map[string]func(){
		"charge": with(w.charge), "verify": with(w.verify), "replay": with(w.replay), "replay again": with(w.replay),
		"hold": with(w.take), "end": with(w.end), "end another": with(w.end), "look": with(w.look), "top up": with(w.topUp),
		"list": with(w.list), "rotate": func() { w.rotate(w.any(), k) }, "merge": func() { w.merge(w.any()) },
		"sign in":             func() { w.check(w.signIn(w.any()), k) },
		"complete and rotate": func() { s := w.any(); w.complete(s, k, func() { w.rotate(w.other(s), k) }) },
		"complete and merge":  func() { s := w.any(); w.complete(s, k, func() { w.merge(w.other(s)) }) },
	}
	names := slices.Sorted(maps.Keys(steps))
	for range n {
		name := names[w.random.IntN(len(names))]
		w.steps = append(w.steps, fmt.Sprintf("%s: %s, first %q, %d left, %v", name, k.name, k.first, k.left, k.holds))
		steps[name]()
	}
	for len(k.holds) > 0 {
		w.end(k)
	}
	w.wantLeft(w, k.name, k.granted-k.charged)
	w.Logf("%d keys of visitors were merged, %d completions were not charged", w.merges, w.free)
	w.wantHeld(w, k.name, 0, k.left)
	if got := w.send(w.any(), k, true, "DELETE", "/admin/keys/KEY", ""); got.status != 204 {
		w.fail("the revocation: got %d %s", got.status, got.body)
	}
	for _, s := range []*service{w.old, w.now} {
		if got := w.send(s, k, false, "POST", "/tokens/consume", ""); got.status != 401 {
			w.fail("after the revocation: got %d %s", got.status, got.body)
		}
	}
	w.wantLeft(w, w.signInTwice(), 0) // a ban is not turned into a grant
}

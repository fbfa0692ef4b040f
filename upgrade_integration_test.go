//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
)

// oldLayout is the last version whose records have the older layout: of holds, of rotated keys and of visitors' keys
// that were closed.
const oldLayout = "8928f0d0fdcccd7c133c165a79a2ee5d6c10a25d"

// upgrade is a rolling upgrade: a process of oldLayout and this program serve one tenant from one Redis.
type upgrade struct {
	redis    *redistest.Server
	old, now *service
	tenant   string
	gates    sync.Map // model → a channel: the provider responds to no request for it before the channel is closed
}

func newUpgrade(t *testing.T) *upgrade {
	t.Helper()
	if out, err := exec.Command("git", "cat-file", "-e", oldLayout+"^{commit}").CombinedOutput(); err != nil {
		t.Fatalf("this test builds the commit %s, which the repository lacks: fetch the whole history "+
			"(`git fetch --unshallow`): %v\n%s", oldLayout, err, out)
	}
	keys, p := idtokentest.NewServer(t), providertest.New(t)
	u := &upgrade{redis: redistest.New(t)} // with the redis.acl of now
	provider := httptest.NewServer(u.gated(t, p.URL))
	t.Cleanup(provider.Close)
	settings := []string{"REDIS_URL=" + u.redis.URL(), "GOOGLE_KEYS_URL=" + keys.URL, "APPLE_KEYS_URL=" + keys.URL}
	env := append([]string{"ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "LOGIN_LIMIT=0"}, settings...)
	u.old = startCommand(t, exec.Command(buildBinary(t, oldLayout)), env).service(t)
	u.now = newService(t, settings...)
	u.tenant = newTenantIn(t, u.redis, `{"auth":{"google_oauth":{"client_id":"web-client"}},"user_groups":{
		"anonymous":{"tokens":200},"google_logged_in":{"tokens":400},"pro":{"tokens":100}},
		"providers":{"text":{"endpoints":{`+endpointJSON(&providertest.Provider{URL: provider.URL}, "chat", chatPath, "")+`}}}}`)
	return u
}

// gated returns a handler that passes requests on to a provider, when their model's gate is open.
func (u *upgrade) gated(t *testing.T, provider string) http.Handler {
	t.Helper()
	to, err := url.Parse(provider)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var request struct{ Model string }
		_ = json.Unmarshal(body, &request)
		if gate, ok := u.gates.Load(request.Model); ok {
			select {
			case <-gate.(chan struct{}):
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r)
	})
}

// other returns the service that s is not.
func (u *upgrade) other(s *service) *service {
	if s == u.old {
		return u.now
	}
	return u.old
}

// wantLeft looks at a key through both processes.
func (u *upgrade) wantLeft(t testing.TB, key string, left int) {
	t.Helper()
	for _, s := range []*service{u.now, u.old} {
		got := s.do(t, "GET", "/"+u.tenant+"/auth/key", "", bearer(key))
		if got.status != 200 || got.field(t, "tokensLeft") != float64(left) {
			t.Errorf("got %d %s, want %d tokens left", got.status, got.body, left)
		}
	}
}

// wantHeld looks at a key through the new process.
func (u *upgrade) wantHeld(t testing.TB, key string, held, left int) {
	t.Helper()
	got := u.now.do(t, "GET", "/"+u.tenant+"/auth/key", "", bearer(key))
	var want any
	if held > 0 {
		want = float64(held)
	}
	if got.field(t, "tokensHeld") != want || got.field(t, "tokensLeft") != float64(left) {
		t.Errorf("got %s, want %d tokens held and %d left", got.body, held, left)
	}
}

// hold takes a hold and returns its ID.
func (u *upgrade) hold(t testing.TB, s *service, key string, tokens int) string {
	t.Helper()
	got := s.do(t, "POST", "/"+u.tenant+"/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, tokens), bearer(key))
	got.want(t, 201, "")
	return got.text(t, "holdId")
}

func (u *upgrade) settle(t testing.TB, s *service, key, id string, used int) reply {
	t.Helper()
	return s.do(t, "POST", "/"+u.tenant+"/tokens/holds/"+id+"/settle", fmt.Sprintf(`{"tokens":%d}`, used), bearer(key))
}

// expire moves the deadline of a hold to the past.
func (u *upgrade) expire(t testing.TB, key, id string, tokens int) {
	t.Helper()
	u.redis.Do(t, "HSET", "{apiKey:"+key+"}:holds", id, fmt.Sprint(tokens, " 1"))
	u.redis.Do(t, "HSET", "apiKey:"+key, "holdsDue", 1)
}

// Processes of the last version with the older layout and of this one serve one Redis: each honours what the other has
// written, and nobody is charged twice or gains tokens.
func TestIntegrationUpgrade(t *testing.T) {
	u := newUpgrade(t)
	for name, from := range map[string]*service{"records of the old process": u.old, "records of the new process": u.now} {
		t.Run(name, func(t *testing.T) { u.testRecords(t, from, u.other(from)) })
	}
	t.Run("index", u.testIndex)
	t.Run("moves", u.testMoves)
	t.Run("holds", u.testHolds)
	t.Run("walks", func(t *testing.T) {
		seed := uint64(time.Now().UnixNano())
		for i := range 8 {
			t.Run(fmt.Sprintf("seed %d %d", seed, i), func(t *testing.T) {
				t.Parallel()
				w := &upgradeWalk{
					T: t, upgrade: u, random: rand.New(rand.NewPCG(seed, uint64(i))), subject: fmt.Sprint("walker", i),
					moved: make(map[string]string),
				}
				w.walk(150)
			})
		}
	})
	for name, s := range map[string]*service{"old": u.old, "new": u.now} {
		for _, fault := range []string{"[ERROR]", "WRONGTYPE", "script", "panic"} {
			if s.log.Count(fault) > 0 {
				t.Errorf("the %s process has logged %q:\n%s", name, fault, s.log)
			}
		}
	}
}

// testRecords lets one process do what it remembers, and the other repeat it.
func (u *upgrade) testRecords(t *testing.T, from, to *service) {
	keys, path := "/"+u.tenant+"/admin/keys", "/"+u.tenant
	user := "google:" + t.Name()
	members := fmt.Sprintf(`{"userId":%q,"group":"pro"}`, user)
	retry := retryKey + t.Name()
	replayed := func(got reply, status int, body string) {
		t.Helper()
		got.want(t, status, strings.TrimSpace(body))
		got.wantHeader(t, "Idempotent-Replayed", "true")
	}
	issued := from.admin(t, "POST", keys, members, retry)
	issued.want(t, 201, "")
	key := issued.text(t, "apiKey")
	replayed(to.admin(t, "POST", keys, members, retry), 201, issued.body)
	to.admin(t, "POST", keys, strings.Replace(members, "pro", "anonymous", 1), retry).want(t, 422, "")

	from.consume(t, u.tenant, key, `{"tokens":7}`, retry).want(t, 200, `{"tokensLeft":93}`)
	replayed(to.consume(t, u.tenant, key, `{"tokens":7}`, retry), 200, `{"tokensLeft":93}`)
	to.consume(t, u.tenant, key, `{"tokens":8}`, retry).want(t, 422, "")

	const verify = "/auth/verify?tokens=3&request=r1"
	for _, s := range []*service{from, to} {
		s.do(t, "GET", path+verify, "", bearer(key)).wantHeader(t, "X-Tokens-Left", "90")
	}
	held := from.do(t, "POST", path+"/tokens/holds", `{"tokens":20}`, bearer(key), retry)
	held.want(t, 201, "")
	replayed(to.do(t, "POST", path+"/tokens/holds", `{"tokens":20}`, bearer(key), retry), 201, held.body)
	u.wantLeft(t, key, 70)
	id := held.text(t, "holdId")
	u.settle(t, from, key, id, 5).want(t, 200, `{"charged":5,"tokensLeft":85}`)
	replayed(u.settle(t, to, key, id, 5), 200, `{"charged":5,"tokensLeft":85}`)
	u.settle(t, to, key, id, 6).want(t, 422, "")
	replayed(to.do(t, "POST", path+"/tokens/holds", `{"tokens":20}`, bearer(key), retry), 201, held.body)

	added := from.admin(t, "PATCH", keys+"/"+key, `{"addTokens":15}`, retry)
	added.want(t, 200, "")
	replayed(to.admin(t, "PATCH", keys+"/"+key, `{"addTokens":15}`, retry), 200, added.body)
	to.admin(t, "PATCH", keys+"/"+key, `{"addTokens":16}`, retry).want(t, 422, "")
	u.wantLeft(t, key, 100)

	rotated := from.admin(t, "POST", keys+"/"+key+"/rotate", "", retry)
	rotated.want(t, 200, "")
	replayed(to.admin(t, "POST", keys+"/"+key+"/rotate", "", retry), 200, rotated.body)
	to.consume(t, u.tenant, key, "").want(t, 401, "")
	u.wantLeft(t, rotated.text(t, "apiKey"), 100)

	visitor := from.login(t, u.tenant)
	from.consume(t, u.tenant, visitor, `{"tokens":8}`).want(t, 200, "")
	owner := from.wantSignIn(t, u.tenant, t.Name(), 592, bearer(visitor))
	if again := to.wantSignIn(t, u.tenant, t.Name(), 592, bearer(visitor)); again != owner {
		t.Errorf("the user has the keys %s and %s", owner, again)
	}
	to.signIn(t, u.tenant, t.Name()+"2", bearer(visitor)).want(t, 200, "") // somebody else
	to.consume(t, u.tenant, visitor, "").want(t, 401, "")
	u.wantLeft(t, owner, 592)
	again := from.rotate(t, u.tenant, owner)
	if got := to.wantSignIn(t, u.tenant, t.Name(), 592); got != again {
		t.Errorf("after a rotation the user has the key %s, want %s", got, again)
	}
}

// testIndex lists through the new process what the old one has written. The reverse is not promised.
func (u *upgrade) testIndex(t *testing.T) {
	var want []string
	for _, s := range []*service{u.old, u.now, u.old} {
		want = append(want, s.issue(t, u.tenant, `"userId":"listed","group":"pro"`))
		time.Sleep(2 * time.Millisecond) // the next one is younger
	}
	want[0] = u.now.rotate(t, u.tenant, want[0])
	want[2] = u.old.rotate(t, u.tenant, want[2])
	for range 2 {
		if got := u.now.keysOf(t, u.tenant, "listed"); !slices.Equal(got, want) {
			t.Errorf("got the keys %q, want %q", got, want)
		}
	}
	u.old.admin(t, "DELETE", "/"+u.tenant+"/admin/keys/"+want[0], "").want(t, 204, "")
	u.now.admin(t, "DELETE", "/"+u.tenant+"/admin/keys/"+want[2], "").want(t, 204, "")
	if got := u.now.keysOf(t, u.tenant, "listed"); !slices.Equal(got, want[1:2]) {
		t.Errorf("got the keys %q, want %q", got, want[1:2])
	}
	got, err := u.old.send("GET", "/"+u.tenant+"/admin/keys?userId=listed", "", bearer(testAdminToken)) // as it documents it
	if err != nil || got.status != 200 {
		t.Errorf("the old process lists %d %s, %v", got.status, got.body, err)
	}
}

// testMoves leaves moves of visitors' keys as a process that crashed between two steps leaves them, for the other
// version to finish.
func (u *upgrade) testMoves(t *testing.T) {
	for i, test := range []struct {
		name     string
		finish   *service
		closed   string // the record of the key, with the owner for %[1]s and the user's key for %[2]s; "": it is open
		received bool
		want     int
		atMost   bool // want is the most that may be left: the old process takes the key for somebody else's, see close.lua
	}{
		{"noted by the old", u.now, "", false, 600, false},
		{"noted by the new", u.old, "", false, 600, false},
		{"closed by the old", u.now, "200 %[1]s", false, 600, false},
		{"received by the old", u.now, "200 %[1]s", true, 400, false},
		{"moved by the old", u.now, "0 %[1]s", true, 400, false},
		{"closed by the new", u.old, "200 %[1]s\n%[2]s", false, 600, true},
		{"received by the new", u.old, "200 %[1]s\n%[2]s", true, 400, false},
		{"moved by the new", u.old, "- %[1]s\n%[2]s", true, 400, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			subject := fmt.Sprint("mover", i)
			key, visitor := u.other(test.finish).wantSignIn(t, u.tenant, subject, 400), u.old.login(t, u.tenant)
			const month = 30 * 24 * 3600
			if test.closed != "" {
				u.redis.Do(t, "DEL", "apiKey:"+visitor)
				owner := u.tenant + "  google:" + subject
				record, _, _ := strings.Cut(fmt.Sprintf(test.closed+"|%[1]s%[2]s", owner, key), "|")
				u.redis.Do(t, "SET", "{apiKey:"+visitor+"}:closed", record, "EX", month)
			}
			if test.received {
				u.redis.Do(t, "HSET", "{apiKey:"+key+"}:moves", shortHash(visitor), time.Now().UnixMilli())
			}
			notes := "{signIn:" + u.tenant + ":google:" + subject + "}:moves"
			u.redis.Do(t, "HSET", notes, visitor, key)
			for _, s := range []*service{test.finish, u.other(test.finish), test.finish} {
				got := s.signIn(t, u.tenant, subject, bearer(visitor))
				got.want(t, 200, "")
				left := int(got.field(t, "tokensLeft").(float64))
				if left > test.want || left < test.want && !test.atMost {
					t.Errorf("got %s, want %d tokens left", got.body, test.want)
				}
			}
			u.now.consume(t, u.tenant, visitor, "").want(t, 401, "")
			if u.redis.Int(t, "EXISTS", notes) == 1 {
				t.Error("the move is still noted")
			}
		})
	}
}

// testHolds ends holds by the process that has not taken them. While the old process has ended or taken some of the
// open holds, what the new one shows as held may be wrong; it is right again when a hold expires or none is left.
func (u *upgrade) testHolds(t *testing.T) {
	for name, from := range map[string]*service{"taken by the old process": u.old, "taken by the new process": u.now} {
		t.Run(name, func(t *testing.T) {
			to := u.other(from)
			key := u.now.issue(t, u.tenant, `"userId":"holder","group":"pro"`)
			a, b, c := u.hold(t, from, key, 10), u.hold(t, from, key, 20), u.hold(t, from, key, 30)
			u.settle(t, to, key, a, 4).want(t, 200, `{"charged":4,"tokensLeft":46}`)
			u.expire(t, key, b, 20)
			u.wantHeld(t, key, 30, 66)
			u.settle(t, to, key, c, 35).want(t, 200, `{"charged":35,"tokensLeft":61}`)
			u.wantHeld(t, key, 0, 61)
			d := u.hold(t, u.now, key, 5)
			u.wantHeld(t, key, 5, 56)
			u.expire(t, key, d, 5)
			u.wantLeft(t, key, 61)
			u.wantHeld(t, key, 0, 61)
			for _, expired := range []string{b, d} {
				u.settle(t, to, key, expired, 1).want(t, 404, "")
			}
		})
		t.Run(name+", returned by the other", func(t *testing.T) {
			to := u.other(from)
			key := u.now.issue(t, u.tenant, `"userId":"holder","group":"pro"`)
			u.expire(t, key, u.hold(t, from, key, 60), 60)
			to.consume(t, u.tenant, key, `{"tokens":70}`).want(t, 200, `{"tokensLeft":30}`) // needs what has expired
			u.wantHeld(t, key, 0, 30)
			id := u.hold(t, u.now, key, 9)
			u.wantHeld(t, key, 9, 21)
			u.old.do(t, "DELETE", "/"+u.tenant+"/tokens/holds/"+id, "", bearer(key)).want(t, 204, "")
			u.wantHeld(t, key, 0, 30)
		})
	}
}

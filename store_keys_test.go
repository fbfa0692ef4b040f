package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// issueOnce is a key that two services have created with an Idempotency-Key, in a Redis of its own.
type issueOnce struct {
	redis    *redistest.Server
	services []*service
	tenant   string
	key      string
	first    reply // to the request that created it
}

const (
	issueOnceConfig = `{"user_groups":{"pro":{"tokens":50}}}`
	issueOnceBody   = `{"userId":"u","group":"pro"}`
)

func newIssueOnce(t *testing.T) *issueOnce {
	t.Helper()
	o := &issueOnce{redis: redistest.New(t)}
	o.services = newServices(t, "REDIS_URL="+o.redis.URL())
	o.tenant = newTenantIn(t, o.redis, issueOnceConfig)
	o.first = o.issue(t, 0, issueOnceBody, "k")
	o.first.want(t, 201, "")
	o.first.wantHeader(t, "Idempotent-Replayed", "")
	o.key = o.first.text(t, "apiKey")
	return o
}

// issue sends a request for a key with the Idempotency-Key retry to one of the two services.
func (o *issueOnce) issue(t *testing.T, service int, body, retry string) reply {
	t.Helper()
	return o.services[service].admin(t, "POST", "/"+o.tenant+"/admin/keys", body, retryKey+retry)
}

// wantReplay checks that both services respond to the same request as the first one did.
func (o *issueOnce) wantReplay(t *testing.T) {
	t.Helper()
	for i := range o.services {
		got := o.issue(t, i, issueOnceBody, "k")
		got.want(t, 201, strings.TrimSpace(o.first.body))
		got.wantHeader(t, "Idempotent-Replayed", "true")
	}
}

// wantKeys checks how many keys there are, of all tenants.
func (o *issueOnce) wantKeys(t *testing.T, n int) {
	t.Helper()
	if keys := o.redis.Keys(t, "apiKey:*"); len(keys) != n {
		t.Errorf("there are %d keys, want %d", len(keys), n)
	}
}

// A key is created once for one Idempotency-Key of a tenant.
func TestIssueKeyOnce(t *testing.T) {
	t.Parallel()
	o := newIssueOnce(t)
	t.Run("replayed", func(t *testing.T) {
		o.wantReplay(t)
		o.wantKeys(t, 1)
		records := o.redis.Keys(t, "issue:*")
		if len(records) != 1 {
			t.Fatalf("the records are %q", records)
		}
		if ttl := o.redis.Int(t, "TTL", records[0]); ttl < 40*86400-600 || ttl > 40*86400 {
			t.Errorf("it is remembered for %d s", ttl)
		}
	})
	t.Run("with another body it is refused", func(t *testing.T) {
		for _, body := range []string{
			`{"userId":"v","group":"pro"}`, issueOnceBody + " ", `{"userId":"u","group":"pro","tokens":50}`,
		} {
			o.issue(t, 1, body, "k").want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
		}
		o.wantKeys(t, 1)
	})
	t.Run("a malformed one is refused", func(t *testing.T) {
		for _, bad := range []string{"", "é", strings.Repeat("k", 256)} {
			o.issue(t, 0, issueOnceBody, bad).
				wantError(t, 400, "Idempotency-Key must be one header of 1 to 255 printable ASCII characters")
		}
		o.services[0].admin(t, "POST", "/"+o.tenant+"/admin/keys", issueOnceBody, retryKey+"a", retryKey+"a").want(t, 400, "")
		o.wantKeys(t, 1)
	})
	t.Run("what was refused is not remembered", func(t *testing.T) {
		o.issue(t, 0, `{"userId":"u","group":"none"}`, "late").want(t, 400, "")
		o.issue(t, 0, issueOnceBody, "late").want(t, 201, "")
		o.wantKeys(t, 2)
	})
	t.Run("another Idempotency-Key, and another tenant, is another key", func(t *testing.T) {
		if got := o.issue(t, 0, issueOnceBody, "K"); got.text(t, "apiKey") == o.key || got.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("got %s", got.body)
		}
		other := newTenantIn(t, o.redis, issueOnceConfig)
		got := o.services[0].admin(t, "POST", "/"+other+"/admin/keys", issueOnceBody, retryKey+"k")
		if got.text(t, "apiKey") == o.key {
			t.Errorf("got %s", got.body)
		}
		o.wantKeys(t, 4)
	})
	t.Run("racing over two processes", func(t *testing.T) {
		all := load{
			services: o.services, clients: 32, requests: 1, statuses: []int{201},
			request: func(int, int) request {
				return request{
					method: "POST", path: "/" + o.tenant + "/admin/keys", body: issueOnceBody,
					headers: []string{bearer(testAdminToken), retryKey + "race"},
				}
			},
		}.run(t)
		for _, outcome := range all {
			outcome.got.want(t, 201, strings.TrimSpace(all[0].got.body))
		}
		if n := len(all.replayed(false)); n != 1 {
			t.Errorf("%d responses are no replay", n)
		}
		o.wantKeys(t, 5)
	})
}

// The response to an Idempotency-Key is the first one, whatever becomes of the key, and of the config, meanwhile.
func TestIssueKeyReplay(t *testing.T) {
	t.Parallel()
	o := newIssueOnce(t)
	s := o.services[0]
	t.Run("replayed as it was, after a charge, a change of the config, and its revocation", func(t *testing.T) {
		s.consume(t, o.tenant, o.key, "").want(t, 200, `{"tokensLeft":49}`)
		s.putConfig(t, o.tenant, `{"user_groups":{"pro":{"tokens":7}}}`).want(t, 200, "")
		o.wantReplay(t)
		s.admin(t, "DELETE", "/"+o.tenant+"/admin/keys/"+o.key, "").want(t, 204, "")
		o.wantReplay(t)
		s.consume(t, o.tenant, o.key, "").want(t, 401, "")
		o.wantKeys(t, 0)
	})
	t.Run("a tenant that is created again is another", func(t *testing.T) {
		s.admin(t, "DELETE", "/admin/tenants/"+o.tenant, "").want(t, 204, "")
		s.createTenant(t, o.tenant, issueOnceConfig).want(t, 201, "")
		got := o.issue(t, 0, issueOnceBody, "k")
		got.want(t, 201, "")
		got.wantHeader(t, "Idempotent-Replayed", "")
		s.consume(t, o.tenant, got.text(t, "apiKey"), "").want(t, 200, `{"tokensLeft":49}`)
	})
}

// A change with an Idempotency-Key is made once; its replay returns the first response.
func TestUpdateKeyOnce(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s := services[0]
	id := newTenant(t, 100)
	key, other := s.issue(t, id, `"userId":"u","group":"pro","tokens":10`), s.issue(t, id, `"userId":"u","group":"pro","tokens":10`)
	update := func(i int, key, body, retry string) reply {
		return services[i%2].admin(t, "PATCH", "/"+id+"/admin/keys/"+key, body, retryKey+retry)
	}
	first := update(0, key, `{"addTokens":1000,"group":"anonymous"}`, "topup-1")
	first.want(t, 200, "")
	first.wantHeader(t, "Idempotent-Replayed", "")
	t.Run("replayed, after a charge and a change", func(t *testing.T) {
		s.consume(t, id, key, `{"tokens":7}`).want(t, 200, `{"tokensLeft":1003}`)
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"pro"}`).want(t, 200, "")
		for i := range 4 {
			got := update(i, key, `{"addTokens":1000,"group":"anonymous"}`, "topup-1")
			got.want(t, 200, strings.TrimSpace(first.body))
			got.wantHeader(t, "Idempotent-Replayed", "true")
		}
		if group := testRedis.String(t, "HGET", "apiKey:"+key, "group"); tokensLeft(t, key) != 1003 || group != "pro" {
			t.Errorf("%d tokens, group %s", tokensLeft(t, key), group)
		}
	})
	t.Run("with another body it is refused", func(t *testing.T) {
		update(1, key, `{"addTokens":1001}`, "topup-1").want(t, 422, `{"error":"Idempotency-Key was used with other parameters"}`)
	})
	t.Run("what was refused is not remembered", func(t *testing.T) {
		update(0, key, `{"addTokens":-2000}`, "late").want(t, 400, "")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"tokens":2003}`).want(t, 200, "")
		update(0, key, `{"addTokens":-2000}`, "late").want(t, 200, "")
		update(1, key, `{"addTokens":-2000}`, "late").wantHeader(t, "Idempotent-Replayed", "true")
		if tokensLeft(t, key) != 3 {
			t.Errorf("%d tokens are left", tokensLeft(t, key))
		}
	})
	t.Run("another API key is another change, and so is a charge", func(t *testing.T) {
		update(0, other, `{"addTokens":5}`, "topup-1").wantHeader(t, "Idempotent-Replayed", "")
		s.consume(t, id, other, `{"tokens":5}`, retryKey+"topup-1").want(t, 200, `{"tokensLeft":10}`)
	})
	t.Run("it expires after 40 days, or one if the balance stays", func(t *testing.T) {
		update(0, other, `{"enabled":true}`, "on").want(t, 200, "")
		for name, days := range map[string]int{key + "}:update:" + shortHash("topup-1"): 40, other + "}:update:" + shortHash("on"): 1} {
			if ttl := testRedis.Int(t, "TTL", "{apiKey:"+name); ttl < days*86400-600 || ttl > days*86400 {
				t.Errorf("%s is remembered for %d s, want %d days", name, ttl, days)
			}
		}
	})
	t.Run("a malformed one is refused", func(t *testing.T) {
		update(0, key, `{"addTokens":1}`, "").want(t, 400, "")
	})
	t.Run("racing over two processes", func(t *testing.T) {
		before := tokensLeft(t, other)
		all := load{
			services: services, clients: 32, requests: 2, statuses: []int{200},
			request: func(_, i int) request {
				r := patchRequest(id, other, `{"addTokens":3}`, 3)
				r.headers = append(r.headers, fmt.Sprint(retryKey, "race", i))
				return r
			},
		}.run(t)
		if n := len(all.replayed(false)); n != 2 || tokensLeft(t, other) != before+6 {
			t.Errorf("%d changes, %d tokens from %d", n, tokensLeft(t, other), before)
		}
	})
	t.Run("a revoked key stays dead", func(t *testing.T) {
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
		update(0, key, `{"addTokens":1000,"group":"anonymous"}`, "topup-1").wantHeader(t, "Idempotent-Replayed", "true")
		update(0, key, `{"addTokens":1}`, "topup-new").want(t, 404, `{"error":"Not found"}`)
		if testRedis.Int(t, "EXISTS", "apiKey:"+key) != 0 {
			t.Error("the key is back")
		}
	})
}

// When Redis's replies are lost after it has written, admins who retry with their Idempotency-Key create one key and
// add once.
func TestLostRepliesToAdmins(t *testing.T) {
	const clients, changes = 10, 30
	r := redistest.New(t)
	var cutting atomic.Bool
	proxy := redistest.NewProxy(t, r, func([]byte) redistest.Fate {
		if cutting.Load() && rand.IntN(5) == 0 {
			return redistest.Cut
		}
		return redistest.Pass
	})
	services := newServices(t, "REDIS_URL="+proxy.URL)
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":5}}}`)
	key := services[0].issue(t, id, `"userId":"u","group":"pro"`)
	cutting.Store(true)
	all := load{
		services: services, clients: clients, requests: changes, statuses: []int{200, 201}, retry: true,
		request: func(client, i int) request {
			retry := fmt.Sprintf("%s%d-%d", retryKey, client, i)
			if i%2 == 0 {
				sent := patchRequest(id, key, `{"addTokens":3}`, 3)
				sent.headers = append(sent.headers, retry)
				return sent
			}
			return request{
				method: "POST", path: "/" + id + "/admin/keys", body: `{"userId":"u","group":"pro"}`,
				headers: []string{bearer(testAdminToken), retry},
			}
		},
	}.run(t)
	if added := tokensLeftIn(t, r, key) - 5; added != 3*clients*changes/2 {
		t.Errorf("%d tokens were added by %d changes of 3", added, clients*changes/2)
	}
	if n := len(r.Keys(t, "apiKey:*")); n != 1+clients*changes/2 {
		t.Errorf("%d keys were created by %d requests", n-1, clients*changes/2)
	}
	if retries, replays := len(all.of("", 503)), len(all.replayed(true)); retries == 0 || replays == 0 {
		t.Errorf("%d cuts, %d retries and %d replays prove nothing", proxy.Cuts.Load(), retries, replays)
	}
}

// Whatever command Redis denies within a script, an admin's request that is 503 has changed nothing, and left no record
// that its retry would take for a success.
func TestDeniedAdminCommands(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5}}}`)
	awaitKeyUsage(t, r, s.login(t, id))
	for _, command := range []string{"hset", "pexpire", "hmget", "pexpiretime"} {
		t.Run(command, func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			awaitKeyUsage(t, r, key)
			keys := lastingKeys(t, r, "*")
			hash := r.String(t, "DUMP", "apiKey:"+key)
			const issue, change = `{"userId":"u","group":"pro","expiresIn":1000}`, `{"addTokens":3,"group":"anonymous"}`
			permit(t, r, "-"+command)
			if command != "pexpiretime" {
				s.admin(t, "POST", "/"+id+"/admin/keys", issue, retryKey+command).want(t, 503, "")
			}
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, change, retryKey+command).want(t, 503, "")
			permit(t, r, "+"+command)
			if after := lastingKeys(t, r, "*"); fmt.Sprint(after) != fmt.Sprint(keys) || r.String(t, "DUMP", "apiKey:"+key) != hash {
				t.Errorf("what was denied has changed\n%q to\n%q", keys, after)
			}
			got := s.admin(t, "POST", "/"+id+"/admin/keys", issue, retryKey+command)
			got.want(t, 201, "")
			got.wantHeader(t, "Idempotent-Replayed", "")
			s.consume(t, id, got.text(t, "apiKey"), "").want(t, 200, `{"tokensLeft":4}`)
			changed := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, change, retryKey+command)
			changed.want(t, 200, "")
			changed.wantHeader(t, "Idempotent-Replayed", "")
			if left := tokensLeftIn(t, r, key); left != 8 {
				t.Errorf("%d tokens are left", left)
			}
		})
	}
	t.Run("unlink: a tenant that could not be deleted keeps its keys", func(t *testing.T) {
		key := s.login(t, id)
		permit(t, r, "-unlink")
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 503, "")
		permit(t, r, "+unlink")
		waittest.Eventually(t, 5*time.Second, func() error { return s.consume(t, id, key, "").is(200) })
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	})
}

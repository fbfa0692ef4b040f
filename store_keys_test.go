package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// ---- A full Redis ---------------------------------------------------------------------------------------------------

// memoryOf returns how many bytes Redis uses, and how many it may.
func memoryOf(t *testing.T, r *redistest.Server) (used, most int) {
	t.Helper()
	info := r.String(t, "INFO", "memory")
	fmt.Sscan(redistest.Field(info, "used_memory"), &used)
	fmt.Sscan(redistest.Field(info, "maxmemory"), &most)
	return used, most
}

// In a full Redis a charge that needs no memory goes on, whatever the tenant's other groups have. One that would write
// the record of an Idempotency-Key, or an entry of a rate, is 503, so that strangers cannot fill the machine.
func TestChargesInFullRedis(t *testing.T) {
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000000},`+
		`"limited":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}}}`)
	plain, limited := s.login(t, id), s.issue(t, id, `"userId":"u","group":"limited"`)
	s.consume(t, id, plain, "", retryKey+"first").want(t, 200, `{"tokensLeft":999999}`)
	s.consume(t, id, limited, "").want(t, 200, "")
	used, _ := memoryOf(t, r)
	r.Do(t, "CONFIG", "SET", "maxmemory", used+500_000)
	long := strings.Repeat("k", 240)
	for _, prefix := range []string{"a", "b", "c"} {
		load{
			services: []*service{s}, clients: 8, requests: 400, statuses: []int{200, 503},
			request: func(client, i int) request {
				return consumeRequest(id, plain, 1, fmt.Sprintf("%s%s%s%d-%d", retryKey, prefix, long, client, i))
			},
		}.run(t)
	}
	if used, most := memoryOf(t, r); used > most+300_000 { // of buffers
		t.Errorf("%d bytes are used, %d are allowed", used, most)
	}
	records := r.Keys(t, "{apiKey:"+plain+"}:charge:*")
	for _, record := range records {
		if _, name, _ := strings.Cut(record, ":charge:"); len(name) != 22 { // 16 bytes in base64
			t.Fatalf("a record is called %s", record)
		}
	}
	if n := len(records); n < 100 || n == 3*8*400+1 {
		t.Errorf("%d charges were remembered: that proves little", n)
	}

	r.Do(t, "CONFIG", "SET", "maxmemory", 1)
	before := tokensLeftIn(t, r, plain)
	for i := range 3 {
		s.consume(t, id, plain, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, before-1-i))
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(plain)).want(t, 200, "")
		s.consume(t, id, plain, "", retryKey+"new").want(t, 503, `{"error":"Service unavailable"}`)
		s.do(t, "GET", "/"+id+"/auth/verify?tokens=1&request=new", "", bearer(plain)).want(t, 503, "")
		s.consume(t, id, limited, "").want(t, 503, `{"error":"Service unavailable"}`)
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(limited)).want(t, 503, "")
		s.consume(t, id, plain, `{"tokens":9007199254740991}`).want(t, 402, "")
		s.consume(t, id, someKey, "").want(t, 401, "")
	}
	if left, other := tokensLeftIn(t, r, plain), tokensLeftIn(t, r, limited); left != before-3 || other != 999 {
		t.Errorf("%d and %d tokens are left, want %d and 999", left, other, before-3)
	}
	r.Do(t, "CONFIG", "SET", "maxmemory", 0)
	s.consume(t, id, plain, "", retryKey+"new").wantHeader(t, "Idempotent-Replayed", "")
	s.consume(t, id, limited, "").want(t, 200, `{"tokensLeft":998}`)
}

// ---- Groups ---------------------------------------------------------------------------------------------------------

// A key whose group the config no longer has is refused: to remove a group must not lift its limit. That is so in
// configs whose groups a charge sends, and in those that have too many.
func TestRemovedGroup(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var more strings.Builder
	for i := range 300 {
		fmt.Fprintf(&more, `,"group number %d":{"tokens":1}`, i)
	}
	for _, test := range []struct{ name, others string }{{"few groups", ""}, {"many groups", more.String()}} {
		t.Run(test.name, func(t *testing.T) {
			const group = `"free":{"tokens":100,"rate_limit":3,"rate_limit_window":1000},`
			with, without := `{"user_groups":{`+group+`"pro":{}`+test.others+`}}`, `{"user_groups":{"pro":{}`+test.others+`}}`
			id := newTenantIn(t, testRedis, with)
			key := s.issue(t, id, `"userId":"u","group":"free"`)
			s.consume(t, id, key, `{"tokens":10}`, retryKey+"before").want(t, 200, `{"tokensLeft":90}`)
			s.putConfig(t, id, without).want(t, 200, "")
			for range 5 {
				s.consume(t, id, key, "").want(t, 403, `{"error":"Group is disabled"}`)
				s.consume(t, id, key, "", retryKey+"k").want(t, 403, `{"error":"Group is disabled"}`)
				s.do(t, "GET", "/"+id+"/auth/verify?tokens=1", "", bearer(key)).want(t, 403, `{"error":"Group is disabled"}`)
			}
			got := s.consume(t, id, key, `{"tokens":10}`, retryKey+"before")
			got.want(t, 200, `{"tokensLeft":90}`)
			got.wantHeader(t, "Idempotent-Replayed", "true")
			shown := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
			shown.want(t, 200, "")
			if group := shown.text(t, "group"); group != "free" || tokensLeft(t, key) != 90 {
				t.Errorf("its group is %s, %d tokens are left", group, tokensLeft(t, key))
			}
			if n := s.sample(t, `charges_refused_total{tenant="`+id+`",reason="group"}`); n != 15 {
				t.Errorf("%v refusals are counted, want 15", n)
			}
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"pro"}`).want(t, 200, "")
			s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":89}`)
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"free"}`).want(t, 400, "")
			s.putConfig(t, id, with).want(t, 200, "")
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"group":"free"}`).want(t, 200, "")
			s.wantRate(t, id, key, 1, 0)
			s.consume(t, id, key, "").want(t, 429, "")
		})
	}
	// Names that no config may have: a key straight in Redis may be in such a group.
	for _, group := range []string{"", strings.Repeat("g", 64) + "x", "a\xfe1 1\xffb"} {
		t.Run(fmt.Sprintf("the group %.9q", group), func(t *testing.T) {
			id := newTenantIn(t, testRedis, `{"user_groups":{"`+strings.Repeat("g", 64)+`":{},"a":{},"b":{}`+more.String()+`}}`)
			key := s.issue(t, id, `"userId":"u","group":"a","tokens":5`)
			testRedis.Do(t, "HSET", "apiKey:"+key, "group", group)
			began := time.Now()
			s.consume(t, id, key, "").want(t, 403, `{"error":"Group is disabled"}`)
			if took := time.Since(began); took > busy {
				t.Errorf("it took %s to refuse it", took)
			}
		})
	}
}

// Charges in a config with very many groups send and scan no more than those with few. Nor does a name of a group, or
// anything else that a tenant chooses, make a command large.
func TestCommandSize(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	members := []string{`"anonymous":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}`}
	for i := range 17_000 {
		members = append(members, fmt.Sprintf(`"%d":{"rate_limit":100000,"rate_limit_window":60}`, i))
	}
	medium := []string{`"anonymous":{"tokens":1000,"rate_limit":100000,"rate_limit_window":60}`}
	for i := range 55 { // just below what is sent as a whole
		medium = append(medium, fmt.Sprintf(`"%s%02d":{"tokens":1}`, strings.Repeat("g", maxGroupBytes-2), i))
	}
	for _, test := range []struct {
		name    string
		members []string
	}{{"17,000 groups", members}, {"55 long names", medium}} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenantIn(t, r, `{"user_groups":{`+strings.Join(test.members, ",")+`}}`)
			waittest.Eventually(t, 10*time.Second, func() error { // until the config is parsed, which takes the race detector long
				return s.admin(t, "GET", "/"+id+"/admin/config", "").is(200)
			})
			anonymous := s.login(t, id)
			last := strings.Split(test.members[len(test.members)-1], `"`)[1]
			other := s.issue(t, id, `"userId":"u","tokens":1000,"group":"`+last+`"`)
			s.consume(t, id, other, "").want(t, 200, "")
			bytes := func() (n int) {
				fmt.Sscan(redistest.Field(r.String(t, "INFO", "stats"), "total_net_input_bytes"), &n)
				return n
			}
			before := bytes()
			const charges = 100
			long := retryKey + strings.Repeat("k", 250)
			for i := range charges / 2 {
				s.consume(t, id, anonymous, "", fmt.Sprint(long, i)).want(t, 200, "")
				s.consume(t, id, other, "", fmt.Sprint(long, i)).want(t, 200, "")
			}
			if n := (bytes() - before) / charges; n > 8<<10 {
				t.Errorf("a charge sends %d bytes", n)
			}
		})
	}
}

// ---- Clocks ---------------------------------------------------------------------------------------------------------

// Entries of a rate log that are later than now, since a server with a faster clock wrote them, count as of now: the
// limit recovers after one window.
func TestRateLogFromTheFuture(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const hour = time.Hour
	for _, test := range []struct {
		name string
		ages []time.Duration
	}{
		{"all", []time.Duration{-hour, -hour, -hour}},
		{"the newest", []time.Duration{1500 * time.Millisecond, -hour, -hour}},
		{"the oldest", []time.Duration{-hour, 200 * time.Millisecond, 100 * time.Millisecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id := limitedTenant(t, 3, 2)
			key := s.login(t, id)
			rateLog(t, key, test.ages...)
			testRedis.Do(t, "EXPIRE", "{apiKey:"+key+"}:rate", 3600)
			began := time.Now()
			refused := s.consume(t, id, key, "")
			refused.want(t, 429, "")
			if after := seconds(t, refused, "Retry-After"); after < 1 || after > 2 {
				t.Errorf("Retry-After is %d", after)
			}
			if ttl := testRedis.Int(t, "PTTL", "{apiKey:"+key+"}:rate"); ttl > 3000 {
				t.Errorf("the log lives for %d ms", ttl)
			}
			time.Sleep(time.Until(began.Add(2*time.Second + 100*time.Millisecond)))
			s.wantRate(t, id, key, 2, 1, 0)
			s.consume(t, id, key, "").want(t, 429, "")
		})
	}
	t.Run("very many", func(t *testing.T) {
		t.Parallel()
		id := limitedTenant(t, 100_000, 1000)
		key := s.login(t, id)
		later := make([]time.Duration, 5000)
		for i := range later {
			later[i] = -hour - time.Duration(i)
		}
		rateLog(t, key, later...)
		s.wantRate(t, id, key, 100_000-5001, 100_000-5002)
		newest, _ := redis.Int64(testRedis.Do(t, "LINDEX", "{apiKey:"+key+"}:rate", -1), nil)
		if late := time.UnixMicro(newest); time.Until(late) > time.Second {
			t.Errorf("the newest entry is of %s", late)
		}
	})
}

// ---- Idempotency-Key on admin routes --------------------------------------------------------------------------------

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
		if ttl := o.redis.Int(t, "TTL", records[0]); ttl < 86400-600 || ttl > 86400 {
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
	t.Run("it expires after a day", func(t *testing.T) {
		ttl := testRedis.Int(t, "TTL", "{apiKey:"+key+"}:update:"+shortHash("topup-1"))
		if ttl < 86400-600 || ttl > 86400 {
			t.Errorf("it is remembered for %d s", ttl)
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
	t.Run("of a revoked key nothing is replayed", func(t *testing.T) {
		s.admin(t, "DELETE", "/"+id+"/admin/keys/"+key, "").want(t, 204, "")
		update(0, key, `{"addTokens":1000,"group":"anonymous"}`, "topup-1").want(t, 404, `{"error":"Not found"}`)
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
	s.login(t, id)
	awaitUsage(t, r, id)
	for _, command := range []string{"hset", "pexpire", "hmget", "pexpiretime"} {
		t.Run(command, func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			keys := r.Keys(t, "*")
			hash := r.String(t, "DUMP", "apiKey:"+key)
			const issue, change = `{"userId":"u","group":"pro","expiresIn":1000}`, `{"addTokens":3,"group":"anonymous"}`
			permit(t, r, "-"+command)
			if command != "pexpiretime" {
				s.admin(t, "POST", "/"+id+"/admin/keys", issue, retryKey+command).want(t, 503, "")
			}
			s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, change, retryKey+command).want(t, 503, "")
			permit(t, r, "+"+command)
			if after := r.Keys(t, "*"); fmt.Sprint(after) != fmt.Sprint(keys) || r.String(t, "DUMP", "apiKey:"+key) != hash {
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
	t.Run("del: a tenant that could not be deleted keeps its keys", func(t *testing.T) {
		key := s.login(t, id)
		permit(t, r, "-del")
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 503, "")
		permit(t, r, "+del")
		waittest.Eventually(t, 5*time.Second, func() error { return s.consume(t, id, key, "").is(200) })
		s.admin(t, "DELETE", "/admin/tenants/"+id, "").want(t, 204, "")
	})
}

// ---- Charges that race ----------------------------------------------------------------------------------------------

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
	key := services[0].issue(t, id, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, granted))
	all := load{
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
	}.run(t)
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

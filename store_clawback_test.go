package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A change with upTo takes what is there, down to 0, and says how much that was.
func TestTakeTokens(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, refillConfig)
	for _, test := range []struct {
		name, group       string
		balance           int
		body              string
		before            func(t *testing.T, key string)
		status, added     int
		left, leftOfHolds int // and when its holds have ended
	}{
		{"less than there is", "plain", 150, `{"addTokens":-100,"upTo":true}`, nil, 200, -100, 50, 50},
		{"all that there is", "plain", 150, `{"addTokens":-150,"upTo":true}`, nil, 200, -150, 0, 0},
		{"more than there is", "plain", 150, `{"addTokens":-1000,"upTo":true}`, nil, 200, -150, 0, 0},
		{"of nothing", "plain", 0, `{"addTokens":-1,"upTo":true}`, nil, 200, 0, 0, 0},
		{"most", "plain", maxAmount, `{"addTokens":-9007199254740991,"upTo":true}`, nil, 200, -maxAmount, 0, 0},
		{"with another change", "plain", 5, `{"upTo":true,"addTokens":-7,"enabled":true,"label":"x"}`, nil, 200, -5, 0, 0},
		{"what holds have is not there", "plain", 100, `{"addTokens":-1000,"upTo":true}`, s.holdOf(id, 30), 200, -70, 0, 30},
		{"a refill that is due comes first", "anonymous", 5, `{"addTokens":-60,"upTo":true}`, aged, 200, -60, 40, 40},
		{"and gives no more than there is", "anonymous", 5, `{"addTokens":-1000,"upTo":true}`, aged, 200, -100, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := s.issue(t, id, fmt.Sprintf(`"userId":"u","group":%q,"tokens":%d`, test.group, test.balance))
			if test.before != nil {
				test.before(t, key)
			}
			got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, test.body)
			got.want(t, 200, "")
			if added := got.field(t, "added"); added != float64(test.added) || strings.Contains(got.body, "-0") {
				t.Errorf("added is %v, want %d: %s", added, test.added, got.body)
			}
			if left := tokensLeft(t, key); left != test.left || got.field(t, "tokensLeft") != float64(test.left) {
				t.Errorf("%d tokens are left, want %d: %s", left, test.left, got.body)
			}
			for _, hold := range s.holdsOf(t, key) {
				s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 204, "")
			}
			if left := tokensLeft(t, key); left != test.leftOfHolds {
				t.Errorf("%d tokens are left when its holds have ended, want %d", left, test.leftOfHolds)
			}
		})
	}
}

// aged lets a refill of a key be due.
func aged(t *testing.T, key string) { age(t, key, 2*time.Hour) }

// holdOf returns what holds tokens of a key.
func (s *service) holdOf(tenant string, tokens int) func(t *testing.T, key string) {
	return func(t *testing.T, key string) {
		t.Helper()
		s.do(t, "POST", "/"+tenant+"/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, tokens), bearer(key)).want(t, 201, "")
	}
}

// holdsOf returns the open holds of a key in testRedis.
func (s *service) holdsOf(t *testing.T, key string) (ids []string) {
	t.Helper()
	for _, id := range testRedis.Do(t, "HKEYS", holdsRedisKey(key)).([]any) {
		ids = append(ids, string(id.([]byte)))
	}
	return ids
}

func TestTakeTokensRefused(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":7`)
	path := "/" + id + "/admin/keys/" + key
	const below = "upTo is for an addTokens below 0"
	for _, test := range []struct{ body, want string }{
		{`{"upTo":true}`, below},
		{`{"upTo":true,"addTokens":0}`, below},
		{`{"upTo":true,"addTokens":5}`, below},
		{`{"upTo":true,"tokens":5}`, below},
		{`{"upTo":true,"addTokens":-5,"tokens":5}`, "addTokens and tokens must not be given together"},
		{`{"upTo":1,"addTokens":-5}`, "upTo must be true or false"},
		{`{"upTo":null,"addTokens":-5}`, "upTo must be true or false"},
		{`{"upTo":false,"addTokens":-8}`, "addTokens must leave a balance from 0 to 9007199254740991"},
	} {
		s.admin(t, "PATCH", path, test.body).wantError(t, 400, test.want)
	}
	got := s.admin(t, "PATCH", path, `{"upTo":false,"addTokens":-5}`)
	got.want(t, 200, "")
	if left := tokensLeft(t, key); left != 2 || strings.Contains(got.body, "added") {
		t.Errorf("%d tokens are left: %s", left, got.body)
	}
	testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", "x")
	s.admin(t, "PATCH", path, `{"upTo":true,"addTokens":-5}`).want(t, 500, "")
	if left := testRedis.String(t, "HGET", "apiKey:"+key, "tokensLeft"); left != "x" {
		t.Errorf("the balance is %q", left)
	}
}

// With an Idempotency-Key it takes once. Whatever comes at the same time, no token is taken twice.
func TestTakeTokensOnce(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), newTenant(t, 1)
	s := services[0]
	t.Run("replayed", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"u","group":"pro","tokens":150,"label":"a"`)
		take := func(i int, body string) reply {
			return services[i].admin(t, "PATCH", "/"+id+"/admin/keys/"+key, body, retryKey+"refund")
		}
		first := take(0, `{"addTokens":-1000,"upTo":true}`)
		first.want(t, 200, "")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":70,"label":"b"}`).want(t, 200, "")
		for i := range services {
			got := take(i, `{"addTokens":-1000,"upTo":true}`)
			got.want(t, 200, strings.TrimSpace(first.body))
			got.wantHeader(t, "Idempotent-Replayed", "true")
		}
		take(1, `{"addTokens":-1000}`).want(t, 422, "")
		if added, label := first.field(t, "added"), first.text(t, "label"); added != -150.0 || label != "a" || tokensLeft(t, key) != 70 {
			t.Errorf("added %v, label %s, %d tokens are left", added, label, tokensLeft(t, key))
		}
	})
	t.Run("racing with charges", func(t *testing.T) {
		const tokens = 500
		key := s.issue(t, id, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, tokens))
		all := load{
			services: services, clients: 16, requests: 10, statuses: []int{200, 402},
			request: func(client, i int) request {
				if client%2 == 0 {
					return consumeRequest(id, key, 7)
				}
				return patchRequest(id, key, `{"addTokens":-9,"upTo":true}`, 0)
			},
		}.run(t)
		taken := all.of("POST", 200).sum()
		for _, o := range all.of("PATCH", 200) {
			taken -= int(o.got.field(t, "added").(float64))
		}
		if left := tokensLeft(t, key); taken+left != tokens {
			t.Errorf("%d tokens were taken and %d are left of %d", taken, left, tokens)
		}
	})
}

// A key's label is shown with it, wherever it is shown, and follows it.
func TestLabels(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	key := s.issue(t, id, `"userId":"u","group":"pro","label":"CI of é \"x\""`)
	want := func(t *testing.T, label string) {
		t.Helper()
		member := `"group":"pro",` + label + `"createdAt"`
		for _, got := range []reply{
			s.admin(t, "GET", "/"+id+"/admin/keys/"+key, ""), s.admin(t, "GET", "/"+id+"/admin/keys?userId=u", ""),
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)),
		} {
			if got.want(t, 200, ""); !strings.Contains(got.body, member) {
				t.Errorf("got %s, want %s", got.body, member)
			}
		}
	}
	change := func(t *testing.T, body string, headers ...string) reply {
		t.Helper()
		got := s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, body, headers...)
		got.want(t, 200, "")
		return got
	}
	want(t, `"label":"CI of é \"x\"",`)
	t.Run("a rotation keeps it", func(t *testing.T) {
		key = s.rotate(t, id, key)
		want(t, `"label":"CI of é \"x\"",`)
	})
	t.Run("changed, it replaces the former one", func(t *testing.T) {
		first := change(t, `{"label":"b"}`, retryKey+"1")
		want(t, `"label":"b",`)
		change(t, `{"addTokens":1}`)
		change(t, `{"label":"c","addTokens":1}`)
		want(t, `"label":"c",`)
		got := change(t, `{"label":"b"}`, retryKey+"1")
		got.want(t, 200, strings.TrimSpace(first.body))
		got.wantHeader(t, "Idempotent-Replayed", "true")
		want(t, `"label":"c",`)
	})
	t.Run("null removes it", func(t *testing.T) {
		for range 2 {
			if got := change(t, `{"label":null}`); strings.Contains(got.body, "label") {
				t.Errorf("got %s", got.body)
			}
			want(t, "")
		}
	})
	t.Run("malformed, a key can get one", func(t *testing.T) {
		testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", "x")
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"label":"d"}`).want(t, 200, `{"apiKey":"`+key+`","error":"malformed"}`)
		change(t, `{"tokens":5}`)
		want(t, `"label":"d",`)
	})
}

// What is to be text is refused if it is empty, too long or cannot be printed.
func TestLabelsAndReasonsRefused(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	path := "/" + id + "/admin/keys"
	const label, reason = "label must be 1 to 64 bytes of printable text without white space at its ends",
		"reason must be 1 to 200 bytes of printable text"
	bad := []string{`""`, `" x"`, `"x\t"`, `"a\nb"`, `"\u0000"`, `"\u200b"`, `"\ufffd"`, `"` + strings.Repeat("ü", 33) + `"`}
	for _, text := range bad {
		s.admin(t, "POST", path, `{"userId":"u","group":"pro","label":`+text+`}`).wantError(t, 400, label)
		s.admin(t, "PATCH", path+"/"+key, `{"label":`+text+`}`).wantError(t, 400, label)
	}
	s.admin(t, "POST", path, `{"userId":"u","group":"pro","label":null}`).wantError(t, 400, "label must be a string")
	s.admin(t, "PATCH", path+"/"+key, `{"label":1}`).wantError(t, 400, "label must be a string")
	s.admin(t, "PATCH", path+"/"+key, `{"label":"`+strings.Repeat("ü", 32)+`"}`).want(t, 200, "")

	for _, text := range []string{`""`, `"a\nb"`, `"\u001b[0m"`, `"\u2028"`, `"` + strings.Repeat("x", 201) + `"`} {
		s.admin(t, "PATCH", path+"/"+key, `{"enabled":false,"reason":`+text+`}`).wantError(t, 400, reason)
	}
	s.admin(t, "PATCH", path+"/"+key, `{"enabled":false,"reason":null}`).wantError(t, 400, "reason must be a string")
	for _, text := range []string{"", "a%0Ab", "%FF", "%1B", strings.Repeat("x", 201)} {
		s.admin(t, "DELETE", path+"/"+key+"?reason="+text, "").wantError(t, 400, reason)
	}
	s.admin(t, "DELETE", path+"/"+key+"?reason=a&reason=b", "").wantError(t, 400, `Query "reason" is duplicated`)
	if s.log.Count("[INFO] Admin operator, tenant "+id+": changed the key") != 1 || testRedis.Int(t, "EXISTS", "apiKey:"+key) != 1 {
		t.Errorf("the log has\n%s", s.log)
	}
}

// The audit line of a change has its reason, from which no other line can be made.
func TestReasons(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	path, line := "/"+id+"/admin/keys/"+key, "[INFO] Admin operator, tenant "+id+": "
	name := tokenHash(key)[:8]
	longest := strings.Repeat("ü", 100)
	for _, step := range []struct{ method, path, body, want string }{
		{"PATCH", "", `{"enabled":false,"reason":"dispute é of \"ch_1\": [INFO] Admin x"}`,
			"changed the key " + name + `: "dispute é of \"ch_1\": [INFO] Admin x"`},
		{"PATCH", "", `{"enabled":true,"reason":" \\ "}`, "changed the key " + name + `: " \\ "`},
		{"PATCH", "", `{"enabled":true,"reason":"` + longest + `"}`, "changed the key " + name + `: "` + longest + `"`},
		{"PATCH", "", `{"enabled":true}`, "changed the key " + name},
		{"DELETE", "?reason=leaked%20in%20%22x%22", "", "revoked the key " + name + `: "leaked in \"x\""`},
	} {
		s.admin(t, step.method, path+step.path, step.body).is(200)
		if n := s.log.Count(line + step.want + "\n"); n != 1 {
			t.Errorf("%s %s%s: %q is in the log %d times:\n%s", step.method, step.path, step.body, step.want, n, s.log)
		}
	}
}

// What adds tokens or makes a key is remembered for 40 days: payment providers repeat webhooks for days.
func TestRecordsOfPayments(t *testing.T) {
	t.Parallel()
	r := singleRedis(t)
	s := newService(t, "REDIS_URL="+r.URL())
	id := newTenantIn(t, r, `{"user_groups":{"pro":{"tokens":5000}}}`)
	for _, test := range []struct{ name, method, path, body string }{
		{"a new key", "POST", "", `{"userId":"u","group":"pro"}`},
		{"tokens that are added", "PATCH", "/KEY", `{"addTokens":5}`},
		{"tokens that are taken", "PATCH", "/KEY", `{"addTokens":-5}`},
		{"tokens that are taken, as far as they are there", "PATCH", "/KEY", `{"addTokens":-9000,"upTo":true}`},
		{"a balance", "PATCH", "/KEY", `{"tokens":5,"group":"pro"}`},
		{"a rotation", "POST", "/KEY/rotate", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			pattern := "*{apiKey:" + key + "}:*"
			if test.path == "" {
				pattern = issueRecordRedisKey(&tenant{id: id}, "evt")
			}
			path := "/" + id + "/admin/keys" + strings.Replace(test.path, "KEY", key, 1)
			first := s.admin(t, test.method, path, test.body, retryKey+"evt")
			found := 0
			for _, record := range r.Keys(t, pattern) {
				if !strings.Contains(record, ":update:") && !strings.Contains(record, ":rotate:") && record != pattern {
					continue
				}
				found++
				const days, minute = 40 * 86_400_000, 60_000
				if ttl := r.Int(t, "PTTL", record); ttl > days || ttl < days-minute {
					t.Errorf("%s is remembered for %d ms, want %d", record, ttl, days)
				}
			}
			again := s.admin(t, test.method, path, test.body, retryKey+"evt")
			again.want(t, first.status, strings.TrimSpace(first.body))
			again.wantHeader(t, "Idempotent-Replayed", "true")
			if found != 1 {
				t.Errorf("there are %d records", found)
			}
		})
	}
}

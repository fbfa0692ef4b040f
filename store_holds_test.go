package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"tollgate/internal/waittest"
)

// holdResponse is a response to a hold.
type holdResponse struct {
	HoldID     string
	TokensLeft int
	ExpiresAt  string
}

func (s *service) hold(t testing.TB, tenant, key, body string, headers ...string) (holdResponse, reply) {
	t.Helper()
	got := s.do(t, "POST", "/"+tenant+"/tokens/holds", body, append(headers, bearer(key))...)
	var h holdResponse
	if err := json.Unmarshal([]byte(got.body), &h); err != nil {
		t.Fatalf("%s: %v", got.body, err)
	}
	return h, got
}

func (s *service) settle(t testing.TB, tenant, key, id, body string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/tokens/holds/"+id+"/settle", body, bearer(key))
}

func TestHolds(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 100)
	key := s.login(t, tenant)
	left := func(want int) {
		t.Helper()
		if got := tokensLeft(t, key); got != want {
			t.Errorf("%d tokens are left, want %d", got, want)
		}
	}

	h, got := s.hold(t, tenant, key, `{"tokens":60}`)
	got.want(t, 201, "")
	if !regexp.MustCompile(`\Ahold_`+uuidPattern+`\z`).MatchString(h.HoldID) || h.TokensLeft != 40 {
		t.Errorf("got %s", got.body)
	}
	expires, err := time.Parse(timeLayout, h.ExpiresAt)
	if life := time.Until(expires); err != nil || life < 880*time.Second || life > 901*time.Second {
		t.Errorf("the hold lives until %s, %v", h.ExpiresAt, err)
	}
	left(40)
	_, got = s.hold(t, tenant, key, `{"tokens":41}`)
	got.want(t, 402, `{"error":"Payment Required","tokensLeft":40}`)

	s.settle(t, tenant, key, h.HoldID, `{"tokens":25}`).want(t, 200, `{"charged":25,"tokensLeft":75}`)
	again := s.settle(t, tenant, key, h.HoldID, `{"tokens":25}`)
	again.want(t, 200, `{"charged":25,"tokensLeft":75}`)
	again.wantHeader(t, "Idempotent-Replayed", "true")
	s.settle(t, tenant, key, h.HoldID, `{"tokens":26}`).wantError(t, 422, "The hold was settled with another amount")
	left(75)

	h, _ = s.hold(t, tenant, key, `{"tokens":75,"expiresIn":86400}`)
	left(0)
	s.do(t, "DELETE", "/"+tenant+"/tokens/holds/"+h.HoldID, "", bearer(key)).want(t, 204, "")
	left(75)

	// What is missing is taken from the balance, down to 0.
	h, _ = s.hold(t, tenant, key, `{"tokens":10}`)
	s.settle(t, tenant, key, h.HoldID, `{"tokens":30}`).want(t, 200, `{"charged":30,"tokensLeft":45}`)
	h, _ = s.hold(t, tenant, key, `{"tokens":10}`)
	s.settle(t, tenant, key, h.HoldID, `{"tokens":300}`).want(t, 200, `{"charged":45,"tokensLeft":0}`)

	const unknown = "hold_11111111-2222-4333-8444-555555555555"
	s.settle(t, tenant, key, unknown, `{"tokens":1}`).wantError(t, 404, "Not found")
	s.settle(t, tenant, key, "hold_x", `{"tokens":1}`).wantError(t, 404, "Not found")
	s.do(t, "DELETE", "/"+tenant+"/tokens/holds/"+unknown, "", bearer(key)).wantError(t, 404, "Not found")
	other := s.login(t, tenant)
	h, _ = s.hold(t, tenant, other, `{"tokens":5}`)
	s.settle(t, tenant, key, h.HoldID, `{"tokens":1}`).wantError(t, 404, "Not found")
	for body, sentence := range map[string]string{
		`{}`:                             "tokens is missing",
		`{"tokens":0}`:                   "tokens must be a whole number ≥ 1",
		`{"tokens":1,"expiresIn":0}`:     "expiresIn must be a whole number of seconds from 1 to 86400",
		`{"tokens":1,"expiresIn":86401}`: "expiresIn must be a whole number of seconds from 1 to 86400",
		`{"tokens":1,"upTo":true}`:       "upTo is not a known member",
	} {
		_, got := s.hold(t, tenant, other, body)
		got.wantError(t, 400, sentence)
	}
	_, got = s.hold(t, tenant, someKey, `{"tokens":1}`)
	got.wantError(t, 401, "Unauthorized")
	testRedis.Do(t, "HSET", "apiKey:"+other, "group", "gone")
	_, got = s.hold(t, tenant, other, `{"tokens":1}`)
	got.wantError(t, 403, "Group is disabled")
}

// A hold counts as one request of the rate, and settling is free.
func TestHoldRate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := limitedTenant(t, 2, 60)
	key := s.login(t, tenant)
	h, got := s.hold(t, tenant, key, `{"tokens":1}`)
	got.wantHeader(t, "X-RateLimit-Remaining-Requests", "1")
	s.settle(t, tenant, key, h.HoldID, `{"tokens":1}`).want(t, 200, "")
	s.hold(t, tenant, key, `{"tokens":1}`)
	_, got = s.hold(t, tenant, key, `{"tokens":1}`)
	got.wantError(t, 429, "Too Many Requests")
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// A repeated hold with the same Idempotency-Key holds once.
func TestHoldIdempotency(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 100)
	key := s.login(t, tenant)
	first, got := s.hold(t, tenant, key, `{"tokens":10}`, retryKey+"a")
	got.wantHeader(t, "Idempotent-Replayed", "")
	second, got := s.hold(t, tenant, key, `{"tokens":10}`, retryKey+"a")
	got.wantHeader(t, "Idempotent-Replayed", "true")
	if first != second || got.status != 201 || tokensLeft(t, key) != 90 {
		t.Errorf("%+v, then %+v", first, second)
	}
	_, got = s.hold(t, tenant, key, `{"tokens":11}`, retryKey+"a")
	got.wantError(t, 422, "Idempotency-Key was used with other parameters")
}

// A hold that has expired is back when the key is refused, held, settled or shown.
func TestHoldExpiry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 100)
	for name, look := range map[string]func(key string) error{
		"shown": func(key string) error {
			if left := s.do(t, "GET", "/"+tenant+"/auth/key", "", bearer(key)).field(t, "tokensLeft"); left != 100.0 {
				return fmt.Errorf("%v tokens are left", left)
			}
			return nil
		},
		"charged": func(key string) error { return s.consume(t, tenant, key, `{"tokens":100}`).is(200) },
		"held": func(key string) error {
			_, got := s.hold(t, tenant, key, `{"tokens":100}`)
			return got.is(201)
		},
	} {
		t.Run(name, func(t *testing.T) {
			key := s.login(t, tenant)
			h, _ := s.hold(t, tenant, key, `{"tokens":95,"expiresIn":1}`)
			s.consume(t, tenant, key, `{"tokens":6}`).want(t, 402, `{"error":"Payment Required","tokensLeft":5}`)
			waittest.Eventually(t, 5*time.Second, func() error { return look(key) })
			s.settle(t, tenant, key, h.HoldID, `{"tokens":1}`).wantError(t, 404, "Not found")
		})
	}
	t.Run("settled", func(t *testing.T) {
		key := s.login(t, tenant)
		s.hold(t, tenant, key, `{"tokens":50,"expiresIn":1}`)
		later, _ := s.hold(t, tenant, key, `{"tokens":50,"expiresIn":60}`)
		time.Sleep(1100 * time.Millisecond)
		s.settle(t, tenant, key, later.HoldID, `{"tokens":80}`).want(t, 200, `{"charged":80,"tokensLeft":20}`)
	})
	t.Run("ends with its key", func(t *testing.T) {
		key := s.login(t, tenant)
		h, _ := s.hold(t, tenant, key, `{"tokens":50,"expiresIn":86400}`)
		ttl := testRedis.Int(t, "PTTL", "apiKey:"+key)
		if holds := testRedis.Int(t, "PTTL", "{apiKey:"+key+"}:holds"); holds <= 0 || holds > ttl {
			t.Errorf("the holds live for %d ms, their key for %d", holds, ttl)
		}
		testRedis.Do(t, "DEL", "apiKey:"+key)
		s.settle(t, tenant, key, h.HoldID, `{"tokens":1}`).wantError(t, 401, "Unauthorized")
		if n := testRedis.Int(t, "EXISTS", "apiKey:"+key); n != 0 {
			t.Error("settling has brought an expired key back")
		}
	})
}

// Holds, settlements and charges that race over two services lose and invent nothing.
func TestHoldLedger(t *testing.T) {
	services := newServices(t)
	const granted = 2000
	tenant := newTenant(t, granted)
	key := services[0].login(t, tenant)
	charged := make(chan int)
	const clients = 20
	for c := range clients {
		go func() {
			sum := 0
			for i := range 20 {
				s := services[(c+i)%2]
				got, err := s.send("POST", "/"+tenant+"/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, 1+i*c%90), bearer(key))
				if err != nil || got.status != 201 {
					continue
				}
				var h holdResponse
				_ = json.Unmarshal([]byte(got.body), &h)
				for _, other := range services { // both settle it
					got, err := other.send("POST", "/"+tenant+"/tokens/holds/"+h.HoldID+"/settle", fmt.Sprintf(`{"tokens":%d}`, i*7%120), bearer(key))
					var body struct{ Charged int }
					if err == nil && json.Unmarshal([]byte(got.body), &body) == nil && got.header.Get("Idempotent-Replayed") == "" {
						sum += body.Charged
					}
				}
			}
			charged <- sum
		}()
	}
	sum := 0
	for range clients {
		sum += <-charged
	}
	if left := tokensLeft(t, key); left+sum != granted || sum == 0 {
		t.Errorf("%d tokens are left and %d were charged of %d", left, sum, granted)
	}
}

func TestConsumeUpTo(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 100)
	key := s.login(t, tenant)
	s.consume(t, tenant, key, `{"tokens":30,"upTo":true}`).want(t, 200, `{"charged":30,"tokensLeft":70}`)
	first := s.consume(t, tenant, key, `{"tokens":100,"upTo":true}`, retryKey+"a")
	first.want(t, 200, `{"charged":70,"tokensLeft":0}`)
	again := s.consume(t, tenant, key, `{"tokens":100,"upTo":true}`, retryKey+"a")
	again.want(t, 200, strings.TrimSpace(first.body))
	again.wantHeader(t, "Idempotent-Replayed", "true")
	s.consume(t, tenant, key, `{"tokens":1,"upTo":true}`).want(t, 402, `{"error":"Payment Required","tokensLeft":0}`)
	s.consume(t, tenant, key, `{"tokens":100}`, retryKey+"a").wantError(t, 422, "Idempotency-Key was used with other parameters")
	s.consume(t, tenant, key, `{"tokens":1,"upTo":1}`).wantError(t, 400, "upTo must be true or false")
	other := s.login(t, tenant)
	s.consume(t, tenant, other, `{"tokens":3,"upTo":false}`).want(t, 200, `{"tokensLeft":97}`)
}

// X-API-Key is taken on all routes of the holder of a key.
func TestXAPIKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 100)
	key, other := s.login(t, tenant), s.login(t, tenant)
	for _, route := range [][2]string{
		{"GET", "/auth/key"}, {"GET", "/auth/verify"}, {"POST", "/tokens/consume"}, {"POST", "/tokens/holds"},
	} {
		body := ""
		if route[1] == "/tokens/holds" {
			body = `{"tokens":1}`
		}
		for _, test := range []struct {
			ok      bool
			headers []string
		}{
			{true, []string{"X-API-Key: " + key}}, {true, []string{"X-API-Key: " + key, bearer(key)}},
			{false, []string{"X-API-Key: " + key, bearer(other)}}, {false, []string{"X-API-Key: " + key, "X-API-Key: " + key}},
			{false, []string{"X-API-Key: " + someKey}}, {false, []string{"X-API-Key: " + key, bearer("a:b")}},
			{false, []string{"X-API-Key: " + key, bearer(key), bearer(key)}}, {false, []string{"X-API-Key: ", "Authorization: Basic x"}},
			{true, []string{"X-API-Key: " + key, "Authorization: Basic x"}}, {true, []string{"X-API-Key: " + key, "Authorization: "}},
			{true, []string{"X-API-Key: " + key, "Authorization: Bearer"}},
		} {
			got := s.do(t, route[0], "/"+tenant+route[1], body, test.headers...)
			if ok := got.status < 300; ok != test.ok || !ok && got.status != 401 {
				t.Errorf("%s with %q: %d %s", route[1], test.headers, got.status, got.body)
			}
		}
	}
}

// A key has at most 1,000 open holds. What a visitor moves to it may be beyond that.
func TestHoldsOfAKey(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 10_000, "")
	holds := []any{"{apiKey:" + g.key + "}:holds"}
	for i := range 999 {
		holds = append(holds, fmt.Sprint("hold_", i), "1 9999999999999")
	}
	testRedis.Do(t, "HSET", holds...)
	testRedis.Do(t, "HSET", "apiKey:"+g.key, "holdsDue", 9999999999999, "tokensHeld", 999)
	path := "/" + g.tenant + "/tokens/holds"
	last := g.do(t, "POST", path, `{"tokens":1}`, bearer(g.key))
	last.want(t, 201, "")
	got := g.do(t, "POST", path, `{"tokens":1}`, bearer(g.key))
	got.want(t, 429, `{"error":"Too many open holds"}`)
	got.wantHeader(t, "Retry-After", "1")
	got = g.call(t, chatPath, `{"messages":[]}`)
	got.wantWireError(t, chatPath, 429, "rate_limit_error", "rate_limit_exceeded")
	got.wantHeader(t, "Retry-After", "1")
	if left := tokensLeft(t, g.key); left != 9_999 {
		t.Errorf("%d tokens are left", left)
	}
	g.do(t, "DELETE", path+"/"+last.text(t, "holdId"), "", bearer(g.key)).want(t, 204, "")
	g.do(t, "POST", path, `{"tokens":1}`, bearer(g.key)).want(t, 201, "")
}

// Setting a balance also forfeits what open holds would give back. A key shows what is held.
func TestForfeitedHolds(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenantIn(t, testRedis, `{"user_groups":{"g":{"tokens":1000}}}`)
	key := s.issue(t, id, `"userId":"u","group":"g"`)
	path, holds := "/"+id+"/admin/keys/"+key, "/"+id+"/tokens/holds"
	hold := func(tokens int) string {
		t.Helper()
		return s.do(t, "POST", holds, fmt.Sprintf(`{"tokens":%d}`, tokens), bearer(key)).text(t, "holdId")
	}
	wantHeld := func(got reply, left int, held any) {
		t.Helper()
		if got.wantLeft(t, left); held == nil && strings.Contains(got.body, "tokensHeld") || held != nil && got.field(t, "tokensHeld") != held {
			t.Errorf("got %s, want %v held", got.body, held)
		}
	}
	all, some := hold(900), hold(100)
	wantHeld(s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)), 0, 1000.0)
	wantHeld(s.admin(t, "GET", path, ""), 0, 1000.0)
	wantHeld(s.admin(t, "PATCH", path, `{"tokens":0}`, retryKey+"1"), 0, 1000.0)
	s.do(t, "DELETE", holds+"/"+all, "", bearer(key)).want(t, 204, "")
	wantHeld(s.admin(t, "GET", path, ""), 0, 100.0)
	s.admin(t, "PATCH", path, `{"addTokens":50}`).want(t, 200, "")
	late := hold(20) // opened after, so it gives back
	s.do(t, "DELETE", holds+"/"+late, "", bearer(key)).want(t, 204, "")
	s.do(t, "POST", holds+"/"+some+"/settle", `{"tokens":120}`, bearer(key)).want(t, 200, `{"charged":120,"tokensLeft":30}`)
	wantHeld(s.admin(t, "GET", path, ""), 30, nil)
	wantHeld(s.admin(t, "PATCH", path, `{"tokens":0}`, retryKey+"1"), 0, 1000.0) // a replay
	again := hold(10)
	s.do(t, "DELETE", holds+"/"+again, "", bearer(key)).want(t, 204, "")
	wantHeld(s.admin(t, "GET", path, ""), 30, nil)
}

// A process of an earlier version that ends the last hold leaves what the key says of held tokens: it is not believed.
func TestHeldByEarlierVersions(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 100)
	key := s.login(t, id)
	hold := func(tokens int) string {
		return s.do(t, "POST", "/"+id+"/tokens/holds", fmt.Sprintf(`{"tokens":%d}`, tokens), bearer(key)).text(t, "holdId")
	}
	testRedis.Do(t, "HDEL", "{apiKey:"+key+"}:holds", hold(30))
	testRedis.Do(t, "HDEL", "apiKey:"+key, "holdsDue")
	testRedis.Do(t, "HSET", "apiKey:"+key, "tokensLeft", 100)
	hold(5)
	got := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key))
	if got.field(t, "tokensLeft") != 95.0 || got.field(t, "tokensHeld") != 5.0 {
		t.Errorf("got %s, want 5 tokens held and 95 left", got.body)
	}
}

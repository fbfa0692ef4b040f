package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
	"tollgate/internal/providertest"
	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// What admins do to a key while it lives: disable it, move its expiry, rotate it.

func TestDisabledKeys(t *testing.T) {
	t.Parallel()
	services := newServices(t)
	s, id := services[0], limitedTenant(t, 100, 60)
	key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":50`)
	path := "/" + id + "/admin/keys/" + key
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key))
	hold.want(t, 201, "")
	s.consume(t, id, key, `{"tokens":1}`, retryKey+"before").want(t, 200, "")
	got := s.admin(t, "PATCH", path, `{"enabled":false}`)
	got.want(t, 200, "")
	if !strings.HasSuffix(got.body, `"tokensLeft":39,"tokensHeld":10,"enabled":false}`+"\n") {
		t.Errorf("got %s", got.body)
	}

	t.Run("charge nothing", func(t *testing.T) {
		for _, s := range services {
			const message = "API key is disabled"
			s.consume(t, id, key, "").wantError(t, 403, message)
			s.consume(t, id, key, `{"tokens":1}`, retryKey+"before").wantHeader(t, "Idempotent-Replayed", "true")
			s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).wantError(t, 403, message)
			s.do(t, "GET", "/"+id+"/auth/verify?deny=403", "", bearer(key)).wantError(t, 403, message)
			s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":1}`, bearer(key)).wantError(t, 403, message)
			s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 200, strings.TrimSpace(got.body))
			s.admin(t, "GET", path, "").want(t, 200, strings.TrimSpace(got.body))
		}
		if left := tokensLeft(t, key); left != 39 {
			t.Errorf("%d tokens are left", left)
		}
		if n := testRedis.Int(t, "LLEN", "{apiKey:"+key+"}:rate"); n != 2 {
			t.Errorf("%d requests are counted, want 2", n)
		}
	})
	t.Run("settle what they held before", func(t *testing.T) {
		settle := "/" + id + "/tokens/holds/" + hold.text(t, "holdId") + "/settle"
		s.do(t, "POST", settle, `{"tokens":4}`, bearer(key)).want(t, 200, `{"charged":4,"tokensLeft":45}`)
	})
	t.Run("other changes do not enable them", func(t *testing.T) {
		s.admin(t, "PATCH", path, `{"addTokens":5,"group":"pro"}`).want(t, 200, "")
		s.consume(t, id, key, "").want(t, 403, "")
	})
	t.Run("enabled again", func(t *testing.T) {
		got := s.admin(t, "PATCH", path, `{"enabled":true}`, retryKey+"on")
		if got.want(t, 200, ""); strings.Contains(got.body, "enabled") {
			t.Errorf("got %s", got.body)
		}
		s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":49}`)
		s.admin(t, "PATCH", path, `{"enabled":false}`).want(t, 200, "")
		again := s.admin(t, "PATCH", path, `{"enabled":true}`, retryKey+"on")
		again.want(t, 200, strings.TrimSpace(got.body))
		again.wantHeader(t, "Idempotent-Replayed", "true")
		s.consume(t, id, key, "").want(t, 403, "")
		s.admin(t, "PATCH", path, `{"enabled":null}`).wantError(t, 400, "enabled must be true or false")
	})
	t.Run("a visitor's is not moved", func(t *testing.T) {
		services, tenant := signInServices(t, 1)
		s := services[0]
		visitor := s.login(t, tenant)
		s.admin(t, "PATCH", "/"+tenant+"/admin/keys/"+visitor, `{"enabled":false}`).want(t, 200, "")
		s.wantSignIn(t, tenant, "u1", 1000, bearer(visitor))
		s.consume(t, tenant, visitor, "").want(t, 403, "")
	})
}

func TestKeyExpiry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := newTenant(t, 10)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	path := "/" + id + "/admin/keys/" + key
	ttl := func(name string) int { return testRedis.Int(t, "TTL", name) }
	wantTTL := func(t *testing.T, want int) {
		t.Helper()
		for _, name := range []string{"apiKey:" + key, "{apiKey:" + key + "}:holds"} {
			if got := ttl(name); got > want || got < want-60 {
				t.Errorf("%s lives for %d s, want %d", name, got, want)
			}
		}
	}
	s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key)).want(t, 201, "")
	wantTTL(t, -1)
	got := s.admin(t, "PATCH", path, `{"expiresIn":3600}`)
	got.want(t, 200, "")
	wantTTL(t, 3600)
	if at, err := time.Parse(timeLayout, got.text(t, "expiresAt")); err != nil || time.Until(at).Round(time.Hour) != time.Hour {
		t.Errorf("got %s", got.body)
	}
	s.admin(t, "PATCH", path, `{"tokens":7}`).want(t, 200, "")
	wantTTL(t, 3600)
	s.admin(t, "PATCH", path, `{"expiresIn":7200,"addTokens":1}`, retryKey+"1").want(t, 200, "")
	wantTTL(t, 7200)
	if got := s.admin(t, "PATCH", path, `{"expiresIn":null}`); got.field(t, "expiresAt") != nil {
		t.Errorf("got %s", got.body)
	}
	wantTTL(t, -1)
	for _, body := range []string{`{"expiresIn":0}`, `{"expiresIn":-1}`, `{"expiresIn":"1"}`, `{"expiresIn":315360001}`} {
		s.admin(t, "PATCH", path, body).wantError(t, 400, "expiresIn must be a whole number of seconds from 1 to 315360000")
	}
	s.admin(t, "PATCH", path, `{"expiresIn":1}`).want(t, 200, "")
	waittest.Eventually(t, 30*time.Second, func() error { return s.consume(t, id, key, "").is(401) })

	visitor := s.login(t, id)
	for _, body := range []string{`{"expiresIn":60}`, `{"expiresIn":null}`} {
		s.admin(t, "PATCH", "/"+id+"/admin/keys/"+visitor, body).wantError(t, 400,
			"expiresIn is for user_ keys: a temp_ key expires 24 h after it was created")
	}
}

// rotate rotates a key and returns the new one.
func (s *service) rotate(t testing.TB, tenant, key string, headers ...string) string {
	t.Helper()
	got := s.admin(t, "POST", "/"+tenant+"/admin/keys/"+key+"/rotate", "", headers...)
	got.want(t, 200, "")
	return got.text(t, "apiKey")
}

func TestRotation(t *testing.T) {
	t.Parallel()
	services, id := newServices(t), limitedTenant(t, 100, 60)
	s := services[0]
	key := s.issue(t, id, `"userId":"u","group":"anonymous","tokens":50,"expiresIn":3600`)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key)).text(t, "holdId")
	s.consume(t, id, key, "").want(t, 200, `{"tokensLeft":39}`)
	before := s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).body
	rate := testRedis.String(t, "DUMP", "{apiKey:"+key+"}:rate")

	rotated := s.rotate(t, id, key)
	t.Run("the new key has all of the old one", func(t *testing.T) {
		if !regexp.MustCompile(`^user_`+uuidPattern+`$`).MatchString(rotated) || rotated == key {
			t.Errorf("got the key %q", rotated)
		}
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(rotated)).want(t, 200, strings.TrimSpace(before))
		if testRedis.String(t, "DUMP", "{apiKey:"+rotated+"}:rate") != rate {
			t.Error("it has another rate log")
		}
		s.do(t, "POST", "/"+id+"/tokens/holds/"+hold+"/settle", `{"tokens":3}`, bearer(rotated)).
			want(t, 200, `{"charged":3,"tokensLeft":46}`)
		if got := s.keysOf(t, id, "u"); !slices.Equal(got, []string{rotated}) {
			t.Errorf("the user has the keys %q", got)
		}
	})
	t.Run("the old key is dead", func(t *testing.T) {
		for _, s := range services {
			s.consume(t, id, key, "").want(t, 401, "")
			s.do(t, "DELETE", "/"+id+"/tokens/holds/"+hold, "", bearer(key)).want(t, 401, "")
			s.admin(t, "POST", "/"+id+"/admin/keys/"+key+"/rotate", "").want(t, 404, "")
		}
		records := []string{"{apiKey:" + key + "}:current", "{apiKey:" + key + "}:settled:" + hold, "{apiKey:" + key + "}:successor"}
		if left := lastingKeys(t, testRedis, "*"+key+"*"); !slices.Equal(left, records) {
			t.Errorf("it leaves %q", left)
		}
	})
	t.Run("a visitor's stays a visitor's", func(t *testing.T) {
		visitor := s.login(t, id)
		expires := testRedis.Int(t, "PEXPIRETIME", "apiKey:"+visitor)
		rotated := s.rotate(t, id, visitor)
		if !validCredential(rotated, "temp_") || testRedis.Int(t, "PEXPIRETIME", "apiKey:"+rotated) != expires {
			t.Errorf("got %q", rotated)
		}
	})
	t.Run("once with an Idempotency-Key", func(t *testing.T) {
		key := s.issue(t, id, `"userId":"v","group":"pro"`)
		path := "/" + id + "/admin/keys/" + key + "/rotate"
		first := s.admin(t, "POST", path, "", retryKey+"1")
		first.want(t, 200, fmt.Sprintf(`{"apiKey":%q,"tokensLeft":5000}`, first.text(t, "apiKey")))
		s.consume(t, id, first.text(t, "apiKey"), "").want(t, 200, `{"tokensLeft":4999}`)
		again := s.admin(t, "POST", path, "", retryKey+"1")
		again.want(t, 200, strings.TrimSpace(first.body))
		again.wantHeader(t, "Idempotent-Replayed", "true")
		s.admin(t, "POST", path, "", retryKey+"2").want(t, 404, "")
		s.admin(t, "POST", "/"+newTenant(t, 1)+"/admin/keys/"+key+"/rotate", "", retryKey+"1").want(t, 404, "")
		if got := s.keysOf(t, id, "v"); !slices.Equal(got, []string{first.text(t, "apiKey")}) {
			t.Errorf("the user has the keys %q", got)
		}
	})
	t.Run("not of another tenant, nor with a body", func(t *testing.T) {
		s.admin(t, "POST", "/"+newTenant(t, 1)+"/admin/keys/"+rotated+"/rotate", "").want(t, 404, "")
		s.admin(t, "POST", "/"+id+"/admin/keys/x/rotate", "").want(t, 404, "")
		s.admin(t, "POST", "/"+id+"/admin/keys/"+rotated+"/rotate", `{"a":1}`).want(t, 400, "")
		s.do(t, "POST", "/"+id+"/admin/keys/"+rotated+"/rotate", "", bearer(rotated)).want(t, 401, "")
		s.consume(t, id, rotated, "").want(t, 200, "")
	})
}

// A new key that a script has together with another is in its slot of a cluster, and is as any other.
func TestNewKeyBeside(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`^temp_` + uuidPattern + `$`)
	keys := make(map[string]bool)
	for i := range 300 {
		beside := fmt.Sprintf("issue:t:%d", i/3)
		key, err := newKeyBeside(beside, anonymousKeyPrefix)
		if err != nil || !pattern.MatchString(key) || !validAPIKey(key) || keys[key] {
			t.Fatalf("got %q, %v", key, err)
		}
		keys[key] = true
		if got, want := redisdb.Slot("{apiKey:"+key+"}:rate"), redisdb.Slot(beside); got != want {
			t.Errorf("%s is in slot %d, want %d", key, got, want)
		}
	}
	s, id := newService(t), newTenant(t, 1)
	key := s.issue(t, id, `"userId":"u","group":"pro"`)
	for range 3 { // with one server, too
		rotated := s.rotate(t, id, key)
		if redisdb.Slot("apiKey:"+rotated) != redisdb.Slot("apiKey:"+key) {
			t.Errorf("%s is not in the slot of %s", rotated, key)
		}
		key = rotated
	}
}

// Rotating a key that does not exist costs one look at it.
func TestRotateUnknownKey(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	st, id := newTestStore(t, r), newTenantIn(t, r, `{}`)
	tn := st.wantTenant(t, id)
	scripts := func() int {
		info := r.String(t, "INFO", "commandstats")
		return redistest.Calls(info, "evalsha") + redistest.Calls(info, "eval")
	}
	rotate := func(request idempotentRequest) int {
		t.Helper()
		before := scripts()
		if got, err := st.RotateKey(in(10*time.Second), tn, someKey, 0, request); !errors.Is(err, ErrNoKey) {
			t.Errorf("got %+v, %v", got, err)
		}
		return scripts() - before
	}
	rotate(idempotentRequest{})
	rotate(idempotentRequest{key: "k"}) // Redis knows the scripts now
	if n := rotate(idempotentRequest{}); n != 1 {
		t.Errorf("it ran %d scripts, want 1", n)
	}
	if n := rotate(idempotentRequest{key: "k"}); n != 2 {
		t.Errorf("with an Idempotency-Key it ran %d scripts, want 2", n)
	}
}

// A user whose key was rotated signs in to the new one, wherever the rotation was interrupted.
func TestRotatedUserSignsIn(t *testing.T) {
	keys := idtokentest.NewServer(t)
	c := newCutter(t, "GOOGLE_KEYS_URL="+keys.URL)
	tenant := newTenantIn(t, c.redis, signInConfig)
	interrupted := 0
	const cuts = 14
	for n := int64(1); n <= cuts; n++ {
		c.awaitReady(t)
		subject := fmt.Sprintf("r%d", n)
		key := c.wantSignIn(t, tenant, subject, 1000, bearer(someKey))
		c.consume(t, tenant, key, `{"tokens":1}`).want(t, 200, "")
		got, isCut := c.cut(t, n, func() reply { return c.admin(t, "POST", "/"+tenant+"/admin/keys/"+key+"/rotate", "") })
		now := c.wantSignIn(t, tenant, subject, 999)
		if isCut {
			interrupted++
		} else if got.want(t, 200, ""); now != got.text(t, "apiKey") {
			t.Errorf("cut %d: signed in to another key", n)
		}
		if alive := c.redis.Int(t, "EXISTS", "apiKey:"+key, "apiKey:"+now); now != key && alive != 1 || now == key && alive != 2 {
			t.Errorf("cut %d: %d keys are alive", n, alive)
		}
		c.wantSignIn(t, tenant, subject, 1049, bearer(c.login(t, tenant)))
		c.admin(t, "DELETE", "/"+tenant+"/admin/keys/"+now, "").want(t, 204, "")
		c.wantSignIn(t, tenant, subject, 0)
	}
	if interrupted < 4 || interrupted == cuts {
		t.Errorf("%d of %d rotations were interrupted: that proves little", interrupted, cuts)
	}
}

// While a key is charged and rotated all the time, no token is lost, and none is doubled.
func TestRotationUnderLoad(t *testing.T) {
	services, id := newServices(t), newTenant(t, 1)
	var current atomic.Pointer[string]
	const tokens = 100_000
	key := services[0].issue(t, id, fmt.Sprintf(`"userId":"u","group":"pro","tokens":%d`, tokens))
	first := key
	current.Store(&first)
	running := load{
		services: services, clients: 16, statuses: []int{200, 401},
		request: func(int, int) request { return consumeRequest(id, *current.Load(), 3) },
	}.start(t)
	for i := range 40 {
		next := services[i%2].rotate(t, id, key)
		current.Store(&next)
		key = next
		running.more(t, 20)
	}
	all := running.stop()
	charged := all.of("", 200).sum()
	if left := tokensLeft(t, key); charged+left != tokens || charged == 0 {
		t.Errorf("%d were charged and %d are left of %d", charged, left, tokens)
	}
}

// A hold that was taken before a rotation can be settled by whoever read the key before.
func TestSettleAfterRotation(t *testing.T) {
	t.Parallel()
	s, id := newService(t), newTenant(t, 1)
	st := newTestStore(t, testRedis)
	tenant := st.wantTenant(t, id)
	key := s.issue(t, id, `"userId":"u","group":"pro","tokens":50`)
	hold := s.do(t, "POST", "/"+id+"/tokens/holds", `{"tokens":10}`, bearer(key)).text(t, "holdId")
	rotated := s.rotate(t, id, s.rotate(t, id, key))
	settle := settleRequest{holdID: hold, used: 4, isLease: true}
	got, err := st.Settle(in(10*time.Second), tenant, newHolder(key), settle)
	if want := (settlement{key: rotated, charged: 4, tokensLeft: 46, group: "pro"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	s.admin(t, "DELETE", "/"+id+"/admin/keys/"+rotated, "").want(t, 204, "")
	if _, err := st.Settle(in(10*time.Second), tenant, newHolder(key), settle); err != ErrNoKey {
		t.Errorf("of a revoked key: %v", err)
	}
}

// A request of the gateway is charged to the key that has replaced its own meanwhile.
func TestRotationDuringGeneration(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 10_000, "")
	g.provider.On("m", providertest.Conduct{Pause: 200 * time.Millisecond})
	c := g.open(t, chatPath, `{"stream":true}`, "ünd")
	rotated := g.rotate(t, g.tenant, g.key)
	if end := readUntil(c, "data: [DONE]"); !strings.Contains(end, "data: [DONE]") {
		t.Errorf("got %q", end)
	}
	g.key = rotated
	want := g.charged(t, 10_000)
	g.key = g.login(t, g.tenant)
	if err := g.call(t, chatPath, `{"stream":true}`).is(200); err != nil {
		t.Fatal(err)
	}
	if other := g.charged(t, 10_000); want != other || want == 0 {
		t.Errorf("%d were charged, and %d without a rotation", want, other)
	}
}

// readUntil reads from c until it has seen text, or the end.
func readUntil(c net.Conn, text string) string {
	var seen []byte
	part := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := c.Read(part)
		if seen = append(seen, part[:n]...); err != nil {
			break
		}
	}
	return string(seen)
}

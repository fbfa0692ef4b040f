package gateway

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/fairpool"
)

// crowd takes a pool: all that a user of a tenant may have or, for "", an eighth for each of eight others.
func crowd(t testing.TB, pool *fairpool.Pool, user string) {
	t.Helper()
	if user != "" {
		fill(t, pool.Claim("acme", user), pool.Stats().Size*3/8)
		return
	}
	for _, tenant := range strings.Split("abcdefgh", "") {
		fill(t, pool.Claim(tenant, "user"), pool.Stats().Size/8)
	}
}

// TestUnreadResponses relays a response byte for byte while memory is short, and still reads its usage.
// Without usage it costs an estimate by its size. A response of 64 KiB needs no memory.
func TestUnreadResponses(t *testing.T) {
	const request = `{"max_tokens":50000}` // 21 bytes: 50,020 are held
	long := strings.Replace(completion, "Hello.", strings.Repeat("x", 90<<10-len(completion)+len("Hello.")), 1)
	short := strings.Replace(completion, "Hello.", strings.Repeat("x", 60<<10), 1)
	for _, test := range []struct {
		name  string
		crowd func(t testing.TB, pool *fairpool.Pool)
		body  string
		cost  int64
	}{
		{"free", func(testing.TB, *fairpool.Pool) {}, long, 18},
		{"its own share", func(t testing.TB, pool *fairpool.Pool) { crowd(t, pool, "user") }, long, 18},
		{"others have it", func(t testing.TB, pool *fairpool.Pool) { crowd(t, pool, "") }, long, 18},
		{"others have it, no usage", func(t testing.TB, pool *fairpool.Pool) { crowd(t, pool, "") },
			strings.Replace(long, "usage", "Usage", 1), 90 << 10 / 3},
		{"short, its own share", func(t testing.TB, pool *fairpool.Pool) { crowd(t, pool, "user") }, short, 18},
		{"short, others have it", func(t testing.TB, pool *fairpool.Pool) { crowd(t, pool, "") }, short, 18},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newScripted(t, jsonBody(test.body), "")
			g.account.left = 1_000_000
			test.crowd(t, g.memory)
			before := g.memory.Stats().Used
			_, body, err := g.post(t, request)
			if err != nil || body != test.body {
				t.Errorf("got %d bytes of %d, %v", len(body), len(test.body), err)
			}
			if o := <-g.outcomes; o.cost != test.cost || o.estimated == (test.cost == 18) {
				t.Errorf("got %+v, want a cost of %d", o, test.cost)
			}
			eventually(t, "given back", func() bool { return g.memory.Stats().Used == before })
			g.wantNothingHeld(t)
		})
	}
}

// TestUnreadResponseStalls has an endpoint stall in a response while memory is short. The silence ends it like any other
// response, whether the client has gone or not.
func TestUnreadResponseStalls(t *testing.T) {
	long := strings.Replace(completion, "Hello.", strings.Repeat("x", 200<<10), 1)
	for _, hangsUp := range []bool{false, true} {
		for _, user := range []string{"user", ""} {
			g := newScripted(t, jsonBody(long[:150<<10], hang), "")
			crowd(t, g.memory, user)
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(whole))
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, response.Body, 100<<10); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if hangsUp {
				hangUp()
			} else if _, err := io.Copy(io.Discard, response.Body); err == nil {
				t.Error("it was whole")
			}
			if o := <-g.outcomes; o.cost != 118 || !o.estimated {
				t.Errorf("hangs up: %t, crowded by %q: got %+v, want the cost 118", hangsUp, user, o)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			g.wantNothingHeld(t)
		}
	}
}

// TestManyResponses has 40 responses of 1 MiB each, held back before their last bytes, fill their tenant's share of the
// memory, and not more.
func TestManyResponses(t *testing.T) {
	body := strings.Replace(completion, "Hello.", strings.Repeat("x", 1<<20), 1)
	wantBounded(t, whole, jsonBody(body[:1<<20], hang))
}

// TestManyLongEvents has 40 streams send most of an event of 1 MB each. Their memory is bounded as that of responses is.
func TestManyLongEvents(t *testing.T) {
	event := strings.Replace(content, "12345678", strings.Repeat("x", 900_000), 1)
	wantBounded(t, streamed, stream(event[:800_000], hang))
}

// wantBounded sends a request 40 times at once, and checks that the responses take no more than their tenant's share of
// the memory, and give it back.
func wantBounded(t *testing.T, request string, response script) {
	t.Helper()
	g := newScripted(t, response, "")
	g.waiting, g.memory = fairpool.New(400, 1), fairpool.New(32<<20, 0.5)
	for range 40 {
		go func() { _, _, _ = g.post(t, request) }()
	}
	eventually(t, "crowded", func() bool { return g.memory.Stats().OverShare > 0 })
	if s := g.memory.Stats(); s.Used > s.Size/2 {
		t.Errorf("%d of %d bytes are used", s.Used, s.Size)
	}
	g.Stop()
	g.wantNothingHeld(t)
}

// TestCrowdedReplays charges no fee for a cached response that cannot be sent, for lack of a place or of memory.
func TestCrowdedReplays(t *testing.T) {
	g := newCached(t, jsonBody(strings.Replace(completion, "Hello.", strings.Repeat("x", 3*firstRead), 1)))
	g.wantCached(t, whole, "MISS", CacheStored)
	left := g.account.left
	g.memory = fairpool.New(8, 0.5)
	g.wantCached(t, whole, "MISS", CacheStored)
	if g.account.left != left-18 {
		t.Errorf("%d tokens are left of %d: the fee was not returned", g.account.left, left)
	}
	left = g.account.left
	g.memory = fairpool.New(1<<20, 0.5)
	crowd(t, g.waiting, "user")
	fill(t, g.waiting.Claim("acme", "another"), 1)
	if response, body, err := g.post(t, whole); err != nil || response.StatusCode != 503 {
		t.Errorf("got %v %s, %v; want 503", response, body, err)
	}
	if g.account.left != left {
		t.Errorf("%d tokens are left of %d: the fee was not returned", g.account.left, left)
	}
}

// A deadlineRecorder keeps the last write deadline that was set.
type deadlineRecorder struct {
	http.ResponseWriter
	last *atomic.Int64 // in Unix nanoseconds
}

func (d deadlineRecorder) SetWriteDeadline(deadline time.Time) error {
	d.last.Store(deadline.UnixNano())
	return http.NewResponseController(d.ResponseWriter).SetWriteDeadline(deadline)
}

func (d deadlineRecorder) Unwrap() http.ResponseWriter { return d.ResponseWriter }

// TestRefusalsMustBeRead gives a client no more time to read a refusal than other parts of responses.
func TestRefusalsMustBeRead(t *testing.T) {
	g := newScripted(t, jsonBody(completion), "")
	var last atomic.Int64
	g.writer = func(w http.ResponseWriter) http.ResponseWriter { return deadlineRecorder{w, &last} }
	for _, left := range []int64{0, 10_000} {
		g.account.left = left
		if _, _, err := g.post(t, whole); err != nil {
			t.Fatal(err)
		}
		if until := time.Until(time.Unix(0, last.Load())); until > clientTimeout {
			t.Errorf("with %d tokens: the client has %s", left, until)
		}
	}
}

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// largeConfig returns a config of a little more than that many bytes.
func largeConfig(version, bytes int) string {
	return fmt.Sprintf(`{"v":%d,"x":"%s"}`, version, strings.Repeat("x", bytes))
}

// A history costs what it shows: the list only its heads, a version only its own bytes; and what is no longer in the list
// is freed.
func TestHistoryCost(t *testing.T) {
	long(t)
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const history, versions = "{tenant:abc:config}:history", "{tenant:abc:config}:versions"
	const size = 250_000 // bytes of a config
	for v := range 22 {
		s.saveConfig(t, "abc", largeConfig(v, size))
	}
	sent := func() (n int) {
		fmt.Sscan(redistest.Field(r.String(t, "INFO", "stats"), "total_net_output_bytes"), &n)
		return n
	}
	t.Run("read", func(t *testing.T) {
		s.history(t, "abc") // loads the config, which each route needs
		before := sent()
		list := s.history(t, "abc")
		if n := sent() - before; len(list) != 20 || n > size/10 {
			t.Errorf("to list %d versions Redis sends %d bytes", len(list), n)
		}
		for i, version := range list {
			before := sent()
			s.admin(t, "GET", "/abc/admin/config/history/"+version.ETag, "").want(t, 200, `{"config":`+largeConfig(21-i, size)+`}`)
			if n := sent() - before; n > 5*size/2 { // the config itself may be loaded meanwhile
				t.Errorf("to show a version Redis sends %d bytes", n)
			}
		}
	})
	wantBytes := func(t *testing.T, kept, heads int) {
		t.Helper()
		n, list := r.Int(t, "HLEN", versions), r.Int(t, "LLEN", history)
		bytes := r.Int(t, "MEMORY", "USAGE", versions, "SAMPLES", 0) + r.Int(t, "MEMORY", "USAGE", history, "SAMPLES", 0)
		if n != kept || list != heads || bytes > (kept+1)*size*3/2 {
			t.Errorf("%d versions are kept, %d are in the list, in %d bytes", n, list, bytes)
		}
	}
	t.Run("freed", func(t *testing.T) { wantBytes(t, 20, 20) })
	t.Run("saved more than once, a config is kept once", func(t *testing.T) {
		for v := range 24 {
			s.saveConfig(t, "abc", largeConfig(100+v%2, size))
		}
		wantBytes(t, 2, 20)
		for _, version := range s.history(t, "abc") {
			s.admin(t, "GET", "/abc/admin/config/history/"+version.ETag, "").want(t, 200, "")
		}
		for v := range 19 {
			s.saveConfig(t, "abc", fmt.Sprintf(`{"v":%d}`, v))
		}
		wantBytes(t, 20, 20)
		s.saveConfig(t, "abc", `{}`)
		if bytes := r.Int(t, "MEMORY", "USAGE", versions, "SAMPLES", 0); bytes > size/10 {
			t.Errorf("20 small versions take %d bytes", bytes)
		}
	})
}

// An admin who loops over a large history does not slow the charges of another tenant.
func TestHistoryReaders(t *testing.T) {
	long(t)
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	for v := range 20 {
		s.saveConfig(t, "abc", largeConfig(v, 1_000_000))
	}
	id := newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":1000000}}}`)
	key := s.login(t, id)
	median := func() time.Duration {
		var took []time.Duration
		for range 100 {
			began := time.Now()
			s.consume(t, id, key, "").want(t, 200, "")
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	quiet := max(median(), time.Millisecond)
	readers := load{
		services: []*service{s}, clients: 4, statuses: []int{200},
		request: func(int, int) request {
			return request{method: "GET", path: "/abc/admin/config/history", headers: []string{bearer(testAdminToken)}}
		},
	}.start(t)
	readers.more(t, 20)
	loud := median()
	if reads := len(readers.stop()); loud > 6*quiet {
		t.Errorf("beside %d reads of a history a charge takes %s, without them %s", reads, loud, quiet)
	}
}

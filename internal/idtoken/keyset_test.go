package idtoken

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/idtokentest"
)

// wantKey checks that keys has the key kid or, if want is not nil, that it returns that error.
func wantKey(t *testing.T, keys *keySet, kid string, want error) {
	t.Helper()
	if _, err := keys.key(soon(), kid); !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("key %s: %v, want %v", kid, err, want)
	}
}

// expire makes the cached keys old.
func (s *keySet) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freshUntil, s.failedAt = time.Time{}, time.Time{}
	for kid, key := range s.keys {
		s.keys[kid] = cachedKey{PublicKey: key.PublicKey}
	}
}

func TestKeySetCache(t *testing.T) {
	server := idtokentest.NewServer(t)
	google, log := testGoogle(server)
	keys := google.keys

	t.Run("many requests, one fetch", func(t *testing.T) {
		pause := make(chan struct{})
		server.Set(func() { server.Pause = pause })
		var requests sync.WaitGroup
		for range 50 {
			requests.Go(func() { wantKey(t, keys, "k1", nil) })
		}
		for deadline := time.Now().Add(10 * time.Second); server.Fetches.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nobody fetches the keys")
			}
		}
		server.Set(func() { server.Pause = nil })
		close(pause)
		requests.Wait()
		server.WantFetches(t, 1)
	})
	t.Run("an unknown key causes one fetch a minute", func(t *testing.T) {
		for range 5 {
			wantKey(t, keys, "k2", ErrInvalid)
		}
		server.WantFetches(t, 2)
		keys.mu.Lock()
		keys.unknownAt = keys.unknownAt.Add(-unknownKeyInterval)
		keys.mu.Unlock()
		server.Serve(idtokentest.JWK("k2", idtokentest.Keys()[1], ""))
		wantKey(t, keys, "k2", nil)
		server.WantFetches(t, 3)
		server.WantFetches(t, 3)
	})
	t.Run("stale keys serve while the provider is down", func(t *testing.T) {
		for _, broken := range []func(){
			func() { server.Status = 500 },
			func() { server.Status, server.Body = 200, `{"keys":[]}` },
			func() { server.Body = "<html>" },
			func() { server.Body = `{"keys":[` + strings.Repeat(" ", maxKeySetBytes) + `]}` },
		} {
			server.Set(broken)
			keys.expire()
			before := server.Fetches.Load()
			for range 3 {
				wantKey(t, keys, "k2", nil)
			}
			server.WantFetches(t, before+1)
			wantKey(t, keys, "k9", ErrInvalid)
		}
		server.Serve(idtokentest.JWK("k1", idtokentest.Keys()[0], ""))
		keys.expire()
		wantKey(t, keys, "k1", nil)
		wantKey(t, keys, "k2", ErrInvalid)
		if n := log.Count("[WARN] The keys of Google cannot be fetched: "); n == 0 {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("a provider that hangs delays a stale key a little", func(t *testing.T) {
		pause := make(chan struct{})
		defer close(pause)
		server.Set(func() { server.Pause = pause })
		keys.expire()
		began := time.Now()
		wantKey(t, keys, "k1", nil)
		wantKey(t, keys, "k1", nil)
		if took := time.Since(began); took > fetchTimeout/2 {
			t.Errorf("it took %s", took)
		}
		if _, err := keys.key(time.Now().Add(10*time.Millisecond), "k9"); !errors.Is(err, ErrNoKeys) {
			t.Errorf("an unknown key: %v", err)
		}
	})
}

// A response that was fetched before it was time ends no key that is fresh, and a later one none whose own time is not
// over.
func TestKeySetMerge(t *testing.T) {
	server := idtokentest.NewServer(t)
	google, _ := testGoogle(server)
	keys := google.keys
	wantKey(t, keys, "k1", nil)
	until := func(kid string) time.Time {
		keys.mu.Lock()
		defer keys.mu.Unlock()
		return keys.keys[kid].freshUntil
	}
	k2, k3 := idtokentest.JWK("k2", idtokentest.Keys()[1], ""), idtokentest.JWK("k3", idtokentest.Keys()[0], "")

	t.Run("fetched for an unknown key", func(t *testing.T) {
		first := until("k1")
		server.Serve(k2) // from a place that is ahead, or behind
		wantKey(t, keys, "k2", nil)
		wantKey(t, keys, "k1", nil)
		server.WantFetches(t, 2)
		if !until("k1").Equal(first) || !keys.freshUntil.Equal(first) || !until("k2").After(first) {
			t.Errorf("k1 is fresh until %s, it was until %s; the set until %s, k2 until %s", until("k1"), first, keys.freshUntil, until("k2"))
		}
	})
	t.Run("fetched when the time of one key is over", func(t *testing.T) {
		fresh := keys.keys["k2"]
		keys.expire()
		keys.keys["k2"] = fresh
		server.Serve(k3)
		wantKey(t, keys, "k1", ErrInvalid)
		wantKey(t, keys, "k2", nil)
		wantKey(t, keys, "k3", nil)
		server.WantFetches(t, 3)
	})
	t.Run("fetched when that of all is over", func(t *testing.T) {
		keys.expire()
		server.Serve(k2)
		wantKey(t, keys, "k2", nil)
		wantKey(t, keys, "k3", ErrInvalid)
		server.WantFetches(t, 4)
	})
}

func TestNoKeySet(t *testing.T) {
	server := idtokentest.NewServer(t)
	server.Set(func() { server.Status = 404 })
	google, log := testGoogle(server)
	for range 3 {
		wantKey(t, google.keys, "k1", ErrNoKeys)
	}
	server.WantFetches(t, 1)
	if log.Count("[WARN]") != 1 || log.Count("the response is 404 Not Found") != 1 {
		t.Errorf("log:\n%s", log)
	}
	server.Set(func() { server.Status = 302 })
	google.keys.expire()
	wantKey(t, google.keys, "k1", ErrNoKeys)
	server.Set(func() { server.Status = 200 })
	google.keys.expire()
	wantKey(t, google.keys, "k1", nil)
}

func TestKeySetAge(t *testing.T) {
	for _, test := range []struct {
		name, caching, age string
		want               time.Duration
	}{
		{"Google's", "public, max-age=19213, must-revalidate, no-transform", "213", 19000 * time.Second},
		{"none", "", "", minKeySetAge},
		{"short", "max-age=1", "", minKeySetAge},
		{"long", "max-age=31536000", "", maxKeySetAge},
		{"beyond all numbers", "max-age=99999999999999999999", "", maxKeySetAge},
		{"negative", "max-age=-5", "", minKeySetAge},
		{"not a number", "max-age=soon", "", minKeySetAge},
		{"no-store", "no-store, max-age=3600", "", minKeySetAge},
		{"quoted", `Max-Age="3600"`, "", time.Hour},
		{"older than it may be", "max-age=600", "700", minKeySetAge},
	} {
		h := http.Header{"Cache-Control": {test.caching}}
		if test.age != "" {
			h.Set("Age", test.age)
		}
		if got := keySetAge(h); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

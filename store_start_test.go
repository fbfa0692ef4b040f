package main

import (
	"fmt"
	"strings"
	"testing"

	"tollgate/internal/redistest"
)

const emptyWarning = "[WARN] This Redis is empty: a first start, or its data is lost\n"

// A start says if Redis has none of tollgate's keys, whatever else is there.
func TestEmptyRedis(t *testing.T) {
	t.Parallel()
	others := make([]any, 0, 6000)
	for i := range cap(others) / 2 {
		others = append(others, fmt.Sprint("session:", i), "x")
	}
	key := "user_" + strings.Repeat("0", 36)
	tests := []struct {
		name    string
		command []any // that has filled Redis
		empty   bool
	}{
		{"nothing", nil, true},
		{"another application's keys", []any{"SET", "session:1", "x"}, true},
		{"many of them", append([]any{"MSET"}, others...), true},
		{"what others may have as well", []any{"MSET", "cache:1", "x", "login:1", "x"}, true},
		{"a tenant", []any{"SADD", "tenants", "acme"}, false},
		{"the example", []any{"SET", "tenant:abc:config", "{}"}, false},
		{"a config written by hand", []any{"SET", "tenant:acme:config", "{}"}, false},
		{"an API key", []any{"HSET", "apiKey:" + key, "tenantId", "acme"}, false},
		{"what an API key remembers", []any{"SET", "{apiKey:" + key + "}:successor", "x"}, false},
	}
	r := redistest.New(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r.Do(t, "FLUSHALL")
			if test.command != nil {
				r.Do(t, test.command[0].(string), test.command[1:]...)
			}
			for _, seed := range []string{"SEED=false", "SEED=true"} {
				s := newService(t, "REDIS_URL="+r.URL(), seed)
				s.stop()
				if got := strings.Contains(s.log.String(), emptyWarning); got != test.empty {
					t.Errorf("%s: got %v, want %v: the log is\n%s", seed, got, test.empty, s.log)
				}
			}
			s := newService(t, "REDIS_URL="+r.URL()) // now there is the example, as after any start
			s.stop()
			if s.log.Count(emptyWarning) != 0 {
				t.Errorf("the next start: the log is\n%s", s.log)
			}
		})
	}
}

// In a cluster it is empty if no master has a key.
func TestEmptyCluster(t *testing.T) {
	t.Parallel()
	c, err := redistest.StartCluster(3, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	conn := c.Conn()
	defer conn.Close()
	start := func(want int) {
		t.Helper()
		s := newService(t, "REDIS_URL="+c.URL(), "SEED=false")
		s.stop()
		if got := s.log.Count(emptyWarning); got != want {
			t.Errorf("got %d warnings, want %d:\n%s", got, want, s.log)
		}
	}
	start(1)
	for i := range 8 { // on any of the masters
		tenant := fmt.Sprint("tenant:t", i, ":config")
		redistest.MustDo(t, conn, "SET", tenant, "{}")
		start(0)
		redistest.MustDo(t, conn, "DEL", tenant)
	}
	start(1)
}

// A Redis that another application uses is named as such, with the key that shows it.
func TestForeignRedis(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	for _, test := range []struct {
		key     string
		command []any
	}{
		{"tenants", []any{"SET", "tenants", "s3cret"}},
		{"tenants", []any{"HSET", "tenants", "s3cret", "s3cret"}},
		{"tenant:abc:config", []any{"HSET", "tenant:abc:config", "s3cret", "s3cret"}},
		{"tenant:abc:config", []any{"RPUSH", "tenant:abc:config", "s3cret"}},
	} {
		t.Run(fmt.Sprint(test.command[0], " ", test.key), func(t *testing.T) {
			r.Do(t, "FLUSHALL")
			r.Do(t, test.command[0].(string), test.command[1:]...)
			want := "[ERROR] Redis seems to be used by another application: its key " + test.key + " is not of the type that " +
				"tollgate writes; tollgate needs a Redis, or a database of one, of its own\n"
			p := startProcess(t, []string{"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0"})
			if code := p.exitCode(t); code != 1 || p.log.String() != want {
				t.Errorf("exit code %d, %q, want 1, %q", code, p.log, want)
			}
			s := newService(t, "REDIS_URL="+r.URL(), "SEED=false") // which serves other tenants
			s.login(t, newTenantIn(t, r, `{"user_groups":{"anonymous":{"tokens":5}}}`))
			if s.log.Count(want) != 1 || s.log.Count("s3cret") != 0 {
				t.Errorf("the log is\n%s", s.log)
			}
			if test.key == "tenants" {
				s.admin(t, "GET", "/admin/tenants", "").want(t, 500, "")
				s.createTenant(t, "acme", "{}").want(t, 500, "")
				if s.log.Count("read tenants: WRONGTYPE") != 1 || s.log.Count("add it to tenants: WRONGTYPE") != 1 {
					t.Errorf("the log is\n%s", s.log)
				}
			}
			r.Do(t, "DEL", test.key)
			newService(t, "REDIS_URL="+r.URL())
		})
	}
}

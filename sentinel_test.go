package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// After each failover requests are served by the new master within a second of its promotion.
func TestSentinel(t *testing.T) {
	long(t)
	t.Parallel()
	g := redistest.NewSentinels(t, "")
	s := newService(t, "REDIS_URL="+g.URL())
	s.login(t, "abc")
	if up := s.sample(t, fmt.Sprintf(`redis_up{node="%s"}`, g.Master(t).TCP)); up != 1 {
		t.Errorf("redis_up is %v", up)
	}
	served := func(t *testing.T, by *redistest.Server) {
		t.Helper()
		began := time.Now()
		waittest.Eventually(t, time.Second+busy, func() error {
			got := s.do(t, "POST", "/abc/auth/anonymous", "")
			if err := got.is(200); err != nil {
				return err
			}
			if by.Int(t, "EXISTS", "apiKey:"+got.text(t, "apiKey")) != 1 {
				return errors.New("the key was stored by another server")
			}
			return nil
		})
		t.Logf("served %s after the promotion", time.Since(began))
	}
	for _, name := range []string{"the master is killed", "the next master is killed"} {
		t.Run(name, func(t *testing.T) {
			old := g.Master(t)
			old.Kill()
			promoted := g.Promoted(t, old)
			served(t, promoted)
			if err := old.Start(); err != nil {
				t.Fatal(err)
			}
			key := s.login(t, "abc") // the old one is a master for a while, but not the Sentinels'
			if promoted.Int(t, "EXISTS", "apiKey:"+key) != 1 {
				t.Error("the new master does not have the key")
			}
			g.Heal(t, old, promoted)
		})
	}
	t.Run("the old master stays alive", func(t *testing.T) {
		old := g.Master(t)
		waittest.Eventually(t, 20*time.Second, g.Failover) // not too soon after the last one
		promoted := g.Promoted(t, old)
		served(t, promoted)
		g.Heal(t, old, promoted)
	})
	t.Run("the Sentinel that was used is gone", func(t *testing.T) {
		used := g.Nodes[0] // the first in the URL, unless it was silent
		used.Kill()
		old := g.Master(t)
		old.Kill()
		served(t, g.Promoted(t, old))
	})
	t.Run("no Sentinel is left", func(t *testing.T) {
		for _, p := range g.Nodes {
			p.Kill()
		}
		for range 5 {
			s.login(t, "abc")
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func TestSentinelPassword(t *testing.T) {
	t.Parallel()
	g := redistest.NewSentinels(t, "sentinels-password")
	env := []string{"REDIS_URL=" + g.URL(), "ADDR=127.0.0.1:0"}
	tests := []struct {
		name string
		env  []string
		want string // in the log of a process that exits with 1; "": it serves
	}{
		{"with it", append(slices.Clone(env), "SENTINEL_PASSWORD=sentinels-password"), ""},
		{"without it", env, "NOAUTH"},
		{"a wrong one", append(slices.Clone(env), "SENTINEL_PASSWORD=SECRET"), "WRONGPASS"},
		{"a name that no Sentinel knows", []string{
			"REDIS_URL=" + strings.TrimSuffix(g.URL(), redistest.MasterName) + "other", "SENTINEL_PASSWORD=sentinels-password",
		}, "no Sentinel knows a master of that name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := startProcess(t, test.env)
			if test.want == "" {
				p.service(t).login(t, "abc")
				return
			}
			log := "[ERROR] Redis connection failed: "
			if code := p.exitCode(t); code != 1 || !strings.HasPrefix(p.log.String(), log) ||
				!strings.Contains(p.log.String(), test.want) || strings.Contains(p.log.String(), "SECRET") {
				t.Errorf("exit code %d\n%s", code, p.log)
			}
		})
	}
}

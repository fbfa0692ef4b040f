package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		waittest.Eventually(t, time.Second+2*busy, func() error {
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
			g.Heal(t, old)
		})
	}
	t.Run("the old master stays alive", func(t *testing.T) {
		old := g.Master(t)
		promoted := g.Failover(t, old)
		served(t, promoted)
		g.Heal(t, old)
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

// One of three Sentinels that names another server, as long as there was no failover, changes nothing, though it is the
// first in the URL: neither where the service starts, nor where it goes after its connections are lost. The log says it
// once.
func TestSentinelsDisagree(t *testing.T) {
	long(t)
	t.Parallel()
	master := redistest.New(t)
	other := redistest.New(t)
	replica := redistest.New(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port), "--repl-diskless-sync-delay", "0")
	free, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	second, third := redistest.NewSentinel(t, master.Port), redistest.NewSentinel(t, master.Port)
	tests := []struct {
		name, host string
		port       int
	}{
		{"another master", "127.0.0.1", other.Port},
		{"a replica", "127.0.0.1", replica.Port},
		{"a server that is down", "127.0.0.1", free},
		{"the master by its host's name", "localhost", master.Port},
	}
	var all []*service
	for _, test := range tests {
		first := redistest.NewSentinel(t, free, "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes")
		first.Do(t, "SENTINEL", "REMOVE", redistest.MasterName)
		first.Do(t, "SENTINEL", "MONITOR", redistest.MasterName, test.host, test.port, 2)
		all = append(all, newService(t, "REDIS_URL="+redistest.SentinelURL(first, second, third)))
	}
	for range 5 {
		for i, s := range all {
			waittest.Eventually(t, 5*time.Second, func() error { // a lost connection may be a 503
				got := s.do(t, "POST", "/abc/auth/anonymous", "")
				if err := got.is(200); err != nil {
					return err
				}
				if master.Int(t, "EXISTS", "apiKey:"+got.text(t, "apiKey")) != 1 {
					t.Errorf("%s: the key was stored by another server", tests[i].name)
				}
				return nil
			})
		}
		master.Do(t, "CLIENT", "KILL", "TYPE", "normal")
		other.Do(t, "CLIENT", "KILL", "TYPE", "normal")
		time.Sleep(200 * time.Millisecond) // the services have connected again
	}
	if keys := other.Keys(t, "*"); len(keys) != 0 {
		t.Errorf("the other server has %q", keys)
	}
	for i, s := range all {
		s.log.Wait(t, "[WARN] The Sentinels disagree on the master, "+master.TCP+" is used: 127.0.0.1:", nil)
		if s.log.Count("The Sentinels disagree") != 1 || s.log.Count("is the master now") != 0 {
			t.Errorf("%s: log:\n%s", tests[i].name, s.log)
		}
	}
}

// A master that was moved by hand is found though its epoch is lower again and one Sentinel is away. One that was
// renamed stays in use until the Sentinels know the name again, and the log says so.
func TestSentinelMasterMoved(t *testing.T) {
	long(t)
	t.Parallel()
	g := redistest.NewSentinels(t, "")
	s := newService(t, "REDIS_URL="+g.URL())
	s.login(t, "abc")
	old := g.Master(t)
	promoted := g.Failover(t, old)
	g.Heal(t, old)
	servedBy := func(want *redistest.Server) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			got := s.do(t, "POST", "/abc/auth/anonymous", "")
			if err := got.is(200); err != nil {
				return err
			}
			if want.Int(t, "EXISTS", "apiKey:"+got.text(t, "apiKey")) != 1 {
				return errors.New("the key was stored by another server")
			}
			return nil
		})
	}
	switches := func() int { return s.log.Count(" is the master now, no longer ") }
	servedBy(promoted)
	before := switches()
	for _, p := range g.Nodes {
		p.Do(t, "SENTINEL", "RESET", redistest.MasterName)
	}
	for range 5 {
		s.login(t, "abc")
	}
	if n := switches(); n != before {
		t.Errorf("after SENTINEL RESET:\n%s", s.log)
	}
	moved := redistest.New(t)
	moved.Do(t, "SET", "tenant:abc:config", string(seedConfig))
	g.Nodes[2].Kill()
	for _, p := range g.Nodes[:2] {
		p.Monitor(t, moved.Port)
	}
	servedBy(moved) // though the last one still serves
	last := redistest.New(t)
	last.Do(t, "SET", "tenant:abc:config", string(seedConfig))
	for _, p := range g.Nodes[:2] {
		p.Monitor(t, last.Port)
	}
	moved.Kill()
	servedBy(last)
	for _, p := range g.Nodes[:2] {
		p.Monitor(t, 0)
	}
	s.log.Wait(t, "[ERROR] No Sentinel knows a master of the name main any more; "+last.TCP+" is used until one does", nil)
	s.login(t, "abc")
	last.Kill()
	s.do(t, "POST", "/abc/auth/anonymous", "").want(t, 503, "")
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	for _, p := range g.Nodes[:2] {
		p.Do(t, "SENTINEL", "MONITOR", redistest.MasterName, "127.0.0.1", last.Port, 2)
	}
	servedBy(last)
	s.log.Wait(t, "[INFO] The Sentinels agree again: "+last.TCP+" is the master", nil)
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

package main

import (
	"slices"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

// A tenant that is created under an ID that was in use has other keys, however the former tenant came and went.
func TestCreatedAgain(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	const config = `{"user_groups":{"pro":{"tokens":5}}}`
	byHand := func(t *testing.T, id string) { r.Do(t, "SET", configRedisKey(id), config) }
	for _, test := range []struct {
		name    string
		create  func(t *testing.T, id string)
		between func(t *testing.T, id string) // before it is created again
	}{
		{"written straight to Redis", byHand, nil},
		{"written straight to Redis, with an admin token, and not in the set of tenants", byHand, func(t *testing.T, id string) {
			r.Do(t, "SREM", tenantsRedisKey, id)
			r.Do(t, "HSET", adminTokensRedisKey(id), tokenHash("x"), formatTime(time.Now()))
		}},
		{"with a history, and not in the set of tenants", func(t *testing.T, id string) {
			s.createTenant(t, id, config).want(t, 201, "")
		}, func(t *testing.T, id string) { r.Do(t, "SREM", tenantsRedisKey, id) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenantID()
			test.create(t, id)
			key := s.issue(t, id, `"userId":"u","group":"pro"`)
			s.consume(t, id, key, "").want(t, 200, "")
			r.Do(t, "DEL", configRedisKey(id))
			if test.between != nil {
				test.between(t, id)
			}
			s.createTenant(t, id, config).want(t, 201, `{"success":true}`)
			s.consume(t, id, key, "").want(t, 401, `{"error":"Unauthorized"}`)
			s.admin(t, "GET", "/"+id+"/admin/keys/"+key, "").want(t, 404, "")
			if n := len(s.history(t, id)); n != 1 {
				t.Errorf("it has %d versions", n)
			}
			s.consume(t, id, s.issue(t, id, `"userId":"u","group":"pro"`), "").want(t, 200, `{"tokensLeft":4}`)
		})
	}
	t.Run("an ID that is new, and one that is taken, get no generation", func(t *testing.T) {
		id := newTenantID()
		s.createTenant(t, id, config).want(t, 201, "")
		key := s.issue(t, id, `"userId":"u","group":"pro"`)
		s.createTenant(t, id, config).want(t, 409, "")
		s.consume(t, id, key, "").want(t, 200, "")
		if r.Int(t, "EXISTS", generationRedisKey(id)) != 0 {
			t.Error("it has a generation")
		}
	})
}

// Processes that seed one empty Redis leave no generation, which would end the keys that another has issued meanwhile.
func TestSeedRace(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	log := new(telemetrytest.Log).Logger()
	url, err := redisdb.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	client, err := redisdb.Open(t.Context(), redisdb.Options{URL: url, Required: requiredCommands, ProbeKey: probeKey, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	config, err := parseConfig(seedConfig)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		r.Do(t, "FLUSHALL")
		var processes sync.WaitGroup
		for range 4 {
			processes.Go(func() {
				st := newStore(client, log)
				defer st.close()
				if err := st.SeedTenant(in(10*time.Second), seedTenant, config); err != nil {
					t.Error(err)
				}
			})
		}
		processes.Wait()
		keys := []string{tenantsRedisKey, configRedisKey(seedTenant), historyRedisKey(seedTenant), versionsRedisKey(seedTenant)}
		slices.Sort(keys)
		if got := lastingKeys(t, r, "*"); !slices.Equal(got, keys) {
			t.Fatalf("there are %q, want %q", got, keys)
		}
	}
}

// A config is served whether or not its tenant can be noted in the set of tenants, and nobody is alarmed.
func TestTenantThatCannotBeNoted(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	for _, test := range []struct {
		name          string
		spoil, repair func(t *testing.T)
	}{
		{"denied", func(t *testing.T) { permit(t, r, "-sadd") }, func(t *testing.T) { permit(t, r, "+sadd") }},
		{"full", func(t *testing.T) { r.Do(t, "CONFIG", "SET", "maxmemory", 1) },
			func(t *testing.T) { r.Do(t, "CONFIG", "SET", "maxmemory", 0) }},
		{"malformed", func(t *testing.T) { r.Do(t, "SET", tenantsRedisKey, "x") }, func(t *testing.T) { r.Do(t, "DEL", tenantsRedisKey) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := newTenantIn(t, r, `{"v":1}`)
			test.spoil(t)
			s.admin(t, "GET", "/"+id+"/admin/config", "").want(t, 200, `{"config":{"v":1}}`)
			s.do(t, "GET", "/readyz", "").want(t, 200, "")
			test.repair(t)
			if got := r.Int(t, "SISMEMBER", tenantsRedisKey, id); got != 0 {
				t.Error("it was noted: that proves nothing")
			}
			r.Do(t, "SET", configRedisKey(id), `{"v":2}`)
			s.wantConfig(t, id, `{"v":2}`)
			if got := r.Int(t, "SISMEMBER", tenantsRedisKey, id); got != 1 {
				t.Error("it was not noted with the next version")
			}
		})
	}
	s.wantNoAlarm(t)
}

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tollgate/internal/gateway"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// statesOf returns states of one response with these IDs.
func statesOf(ids ...string) []gateway.State {
	states := make([]gateway.State, len(ids))
	for i, id := range ids {
		states[i] = gateway.State{ID: id, Response: ids[0], Endpoint: "e", Input: 3, Output: 4}
	}
	return states
}

// An owner has at most maxStates IDs: the oldest are forgotten. They expire together, after the last.
func TestStatesBounds(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, testRedis)
	tenant := &tenant{id: newTenantID()}
	const owner = "u:a b}c"
	keep := func(ttl time.Duration, ids ...string) {
		t.Helper()
		if err := s.KeepStates(in(5*time.Second), tenant, owner, statesOf(ids...), ttl); err != nil {
			t.Fatal(err)
		}
	}
	has := func(id string) bool {
		t.Helper()
		states, err := s.States(in(5*time.Second), tenant, owner, []string{id})
		if err != nil && !errors.Is(err, gateway.ErrNotKept) {
			t.Fatal(err)
		}
		if err == nil && (len(states) != 1 || states[0].ID != id || states[0].Input != 3 || states[0].Output != 4) {
			t.Errorf("got %+v", states)
		}
		return err == nil
	}
	size := func() int { return testRedis.Int(t, "HLEN", statesRedisKeys(tenant.id, owner)[0]) }
	keep(time.Hour, "first", "item")
	waittest.Eventually(t, 5*time.Second, func() error { // until Redis's clock has gone on
		keep(time.Hour, "second")
		keys := statesRedisKeys(tenant.id, owner)
		if testRedis.String(t, "ZSCORE", keys[1], "second") == testRedis.String(t, "ZSCORE", keys[1], "item") {
			return errors.New("both came at once")
		}
		return nil
	})
	many := make([]string, maxStates-3)
	for i := range many {
		many[i] = fmt.Sprintf("id%d", i)
	}
	keep(time.Hour, many...)
	if n := size(); n != maxStates || !has("first") || !has("second") {
		t.Errorf("%d IDs are kept", n)
	}
	keep(time.Hour, "more", "another")
	if n := size(); n != maxStates || has("first") || has("item") || !has("second") || !has("more") || !has(many[0]) {
		t.Errorf("%d IDs are kept", n)
	}
	keep(time.Hour, append(many, "a", "b", "c", "d", "e")...)
	if n := size(); n != maxStates || has("second") || has("more") {
		t.Errorf("%d IDs are kept, and those of a larger response", n)
	}
	keep(time.Millisecond, "brief")
	if !has("brief") { // what is to last longer takes the others along
		t.Error("the shorter time counts for all")
	}
	for _, key := range statesRedisKeys(tenant.id, owner) { // as an eviction does
		testRedis.Do(t, "DEL", key)
		keep(time.Hour, "brief")
		if got := testRedis.Int(t, "PTTL", key); got < 1 {
			t.Errorf("%s never expires: %d", key, got)
		}
	}
	later := *tenant
	later.generation = "g"
	if _, err := s.States(in(5*time.Second), &later, owner, []string{"brief"}); !errors.Is(err, gateway.ErrNotKept) {
		t.Errorf("a later tenant of the same ID: got %v", err)
	}
	if _, err := s.States(in(5*time.Second), tenant, "u:a", []string{"brief"}); !errors.Is(err, gateway.ErrNotKept) {
		t.Errorf("another owner: got %v", err)
	}
	if err := s.ForgetState(in(5*time.Second), tenant, owner, "brief"); err != nil || has("brief") {
		t.Errorf("forgotten: %v", err)
	}
}

// A Redis that comes back before the deadline, as after a failover, remembers what came meanwhile.
func TestStatesOutage(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, tenant := newTestStore(t, r), &tenant{id: "acme"}
	r.Kill()
	const owner = "u:a"
	if err := s.KeepStates(in(100*time.Millisecond), tenant, owner, statesOf("a"), time.Hour); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	began := make(chan error)
	go func() {
		time.Sleep(200 * time.Millisecond)
		began <- r.Start()
	}()
	if err := s.KeepStates(in(20*time.Second), tenant, owner, statesOf("b"), time.Hour); err != nil {
		t.Error(err)
	}
	if err := <-began; err != nil {
		t.Fatal(err)
	}
	if _, err := s.States(in(5*time.Second), tenant, owner, []string{"b"}); err != nil {
		t.Error(err)
	}
}

// What somebody else has written is nobody's.
func TestStatesMalformed(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, testRedis)
	tenant := &tenant{id: newTenantID()}
	key := statesRedisKeys(tenant.id, "k:a")[0]
	const good = "- e 1 2 3 resp"
	for value, ok := range map[string]bool{
		good: true, "": false, "- e 1 2 3": false, "g e 1 2 3 resp": false, "- e -1 2 3 resp": false, "- e 1 x 3 resp": false,
		"- e 9007199254740992 2 3 resp": false, " e 1 2 3 resp": false,
	} {
		testRedis.Do(t, "HSET", key, "id", value)
		_, err := s.States(in(5*time.Second), tenant, "k:a", []string{"id"})
		if (err == nil) != ok || err != nil && !errors.Is(err, gateway.ErrNotKept) {
			t.Errorf("%q: got %v", value, err)
		}
	}
	testRedis.Do(t, "DEL", key)
	testRedis.Do(t, "SET", key, strings.Repeat("x", 3))
	if _, err := s.States(in(5*time.Second), tenant, "k:a", []string{"id"}); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
)

const (
	scriptKeys   = 400 // API keys that take turns
	scriptTurns  = 3   // of each key in a round
	scriptRounds = 9
)

var scriptDepths = []int{20, 1} // calls that are sent at once: as for 64 clients, and for a lone caller

// BenchmarkScripts prints what the steps of charges and completions cost Redis: the processor time of its process, and
// how long the scripts of it run. It records what the store sends for each, and then sends the same for many keys over
// one connection, in interleaved rounds.
func BenchmarkScripts(b *testing.B) {
	for b.Loop() {
		s := newScriptBench(b)
		for range scriptRounds {
			for _, depth := range scriptDepths {
				s.round(depth)
			}
		}
		s.checkBare()
		s.print()
	}
}

// A scriptBench is a Redis, and what is sent to it.
type scriptBench struct {
	*testing.B
	r     *redistest.Server
	conn  redis.Conn
	steps []*scriptStep
	turn  int // of each key, so far
}

// A scriptStep is a call of the store.
type scriptStep struct {
	name     string
	commands [][]any
	key, id  string   // the key, and the ID of its hold, that the commands name
	keys     []string // to send them for instead
	costs    map[int][]scriptCost
}

// A scriptCost is in µs a call: of the processor, and until the scripts have ended.
type scriptCost struct{ cpu, script float64 }

func newScriptBench(b *testing.B) *scriptBench {
	s := &scriptBench{B: b, r: redistest.New(b, "--appendonly", "no", "--slowlog-log-slower-than", "0")}
	conn, err := s.r.Dial()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	s.conn = conn
	sha := s.r.String(b, "SCRIPT", "LOAD", "#!lua\nreturn 1")
	s.steps = append(s.steps, &scriptStep{name: "empty script", commands: [][]any{{sha, 0}}, key: "-", id: "-",
		keys: make([]string, scriptKeys)})
	s.record("", `"tokens":1`)
	s.record(", limited", `"tokens":1,"rate_limit":600,"rate_limit_window":1`) // soon requests leave it
	s.addBare()
	s.r.Do(b, "CONFIG", "SET", "slowlog-log-slower-than", -1)
	return s
}

// record records a charge, a hold of the gateway and its settlement, of keys in a group like that.
func (s *scriptBench) record(suffix, group string) {
	st := newTestStore(s.B, s.r)
	t := st.wantTenant(s.B, newTenantIn(s.B, s.r, `{"user_groups":{"anonymous":{`+group+`},"pro":{"tokens":5000}}}`))
	key, _ := newCredential(anonymousKeyPrefix)
	s.r.Do(s.B, "HSET", apiKeyRedisKey(key), "tenantId", t.id, "group", anonymousGroup,
		"createdAt", formatTime(time.Now()), "tokensLeft", 1_000_000_000)
	s.r.Do(s.B, "PEXPIRE", apiKeyRedisKey(key), anonymousKeyTTL.Milliseconds())
	keys := make([]string, scriptKeys)
	for i := range keys {
		keys[i], _ = newCredential(anonymousKeyPrefix)
		s.r.Do(s.B, "COPY", apiKeyRedisKey(key), apiKeyRedisKey(keys[i]))
	}
	id, _ := newCredential(leasePrefix)
	var h holder
	calls := []func() error{
		func() error {
			_, err := st.Charge(in(time.Minute), t, chargeRequest{key: key, tokens: 1})
			return err
		},
		func() error {
			result, err := st.Hold(in(time.Minute), t,
				holdRequest{key: key, id: id, most: 4000, least: 50, ttl: time.Minute})
			h = result.holder
			return err
		},
		func() error {
			_, err := st.Settle(in(time.Minute), t, &h, settleRequest{holdID: id, used: 500, isLease: true})
			s.r.Do(s.B, "DEL", settledRedisKey(key, id))
			return err
		},
	}
	for range 2 { // Redis has the scripts the second time
		for i, name := range []string{"charge", "hold", "settle"} {
			s.r.Do(s.B, "SLOWLOG", "RESET")
			if err := calls[i](); err != nil {
				s.Fatal(err)
			}
			step := &scriptStep{name: name + suffix, key: key, id: id, keys: keys}
			step.commands = s.sent(key)
			s.steps = append(slices.DeleteFunc(s.steps, func(before *scriptStep) bool { return before.name == step.name }), step)
		}
	}
}

// Scripts that execute the commands of a charge, of one under a rate limit whose window a request leaves, and of the
// quick forms of hold and settlement, with constants and nothing else: no script that does the same work with these
// commands can cost less. KEYS[1] is the key, KEYS[2] its rate log or the hash of its holds, and KEYS[3] the record of a
// settlement. ARGV[1] is the hold ID.
const (
	bareCharge = `#!lua
local call = redis.call
call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'userId', 'enabled', 'first')
call('HINCRBY', KEYS[1], 'tokensLeft', '-1')
return 'charged 1 1000000000'`

	bareLimited = `#!lua
local call = redis.call
call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'userId', 'enabled', 'first')
call('TIME')
call('LINDEX', KEYS[2], '0')
call('LLEN', KEYS[2])
call('LINDEX', KEYS[2], '-1')
call('LINDEX', KEYS[2], '1')
call('LTRIM', KEYS[2], '1', '-1')
call('RPUSH', KEYS[2], '1700000000000000')
call('PEXPIRE', KEYS[2], '60000')
call('HINCRBY', KEYS[1], 'tokensLeft', '-1')
return 'charged 1 1000000000 600 60 599 60'`

	bareHold = `#!lua
local call = redis.call
call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'enabled', 'userId', 'first', 'holdsDue',
	'advanced', 'tokensHeld', 'leases')
call('TIME')
call('HSET', KEYS[2], ARGV[1], '4000 1800000000000')
call('PEXPIRETIME', KEYS[1])
call('PEXPIREAT', KEYS[2], '1900000000000')
call('HSET', KEYS[1], 'tokensLeft', '1000000000', 'tokensHeld', '4000', 'leases', '1 4000 4000', 'holdsDue', '1800000000000')
return 'held 4000 1000000000 1800000000000'`

	bareSettle = `#!lua
local call = redis.call
call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'first', 'holdsDue', 'advanced', 'tokensHeld',
	'leases', 'hold:')
call('TIME')
call('HGETALL', KEYS[2])
call('SET', KEYS[3], '500 500 1000000000', 'PX', '600000', 'NX')
call('HDEL', KEYS[2], ARGV[1])
call('HDEL', KEYS[1], 'tokensHeld', 'leases', 'holdsDue')
call('HSET', KEYS[1], 'tokensLeft', '1000000000')
return 'settled 500 1000000000'`
)

// addBare adds the steps of these scripts, for the keys of the charges.
func (s *scriptBench) addBare() {
	charge := s.steps[1]
	id, _ := newCredential(leasePrefix)
	add := func(name, source string, keys ...string) {
		args := []any{s.r.String(s.B, "SCRIPT", "LOAD", source), 1 + len(keys), apiKeyRedisKey(charge.key)}
		for _, key := range keys {
			args = append(args, key)
		}
		s.steps = append(s.steps, &scriptStep{name: name, commands: [][]any{append(args, id)}, key: charge.key, id: id,
			keys: charge.keys})
	}
	for _, key := range charge.keys { // its rate log stays that long
		s.r.Do(s.B, "RPUSH", rateRedisKey(key), 1, 2, 3, 4, 5, 6, 7, 8)
	}
	holds := holdsRedisKey(charge.key)
	add("commands of charge", bareCharge)
	add("commands of charge, limited", bareLimited, rateRedisKey(charge.key))
	add("commands of hold", bareHold, holds)
	add("commands of settle", bareSettle, holds, settledRedisKey(charge.key, id))
}

// checkBare fails unless each of these scripts calls what the script calls that it stands for. The limited charge is left
// out: how many requests leave its window varies.
func (s *scriptBench) checkBare() {
	s.turn++
	calls := func(prefix string) (all []string) {
		for _, name := range []string{"charge", "hold", "settle"} {
			all = append(all, called(s.B, s.r, func() { s.send(s.step(prefix+name), 1) }))
		}
		return all
	}
	if want, got := calls(""), calls("commands of "); !slices.Equal(got, want) {
		s.Errorf("the scripts with constants call %q, want %q", got, want)
	}
}

// step returns the step with that name.
func (s *scriptBench) step(name string) *scriptStep {
	i := slices.IndexFunc(s.steps, func(step *scriptStep) bool { return step.name == name })
	return s.steps[i]
}

// sent returns the arguments of the scripts that Redis has run for a key, but not those that it did not know yet.
func (s *scriptBench) sent(key string) (commands [][]any) {
	entries, err := redis.Values(s.r.Do(s.B, "SLOWLOG", "GET", -1), nil)
	if err != nil {
		s.Fatal(err)
	}
	for _, entry := range slices.Backward(entries) { // the oldest comes last
		words, err := redis.Strings(entry.([]any)[3], nil)
		if err != nil {
			s.Fatal(err)
		}
		if words[0] == "EVALSHA" && slices.ContainsFunc(words, func(word string) bool { return strings.Contains(word, key) }) {
			var args []any
			for _, word := range words[1:] {
				args = append(args, word)
			}
			commands = append(commands, args)
		}
	}
	return commands
}

// round sends each step for each key, some turns long. Those of one turn have one hold ID.
func (s *scriptBench) round(depth int) {
	for range scriptTurns {
		s.turn++
		for _, step := range s.steps {
			s.send(step, depth)
		}
	}
}

// send sends a step for each of its keys, depth of them at once.
func (s *scriptBench) send(step *scriptStep, depth int) {
	var commands [][]any
	for i, key := range step.keys {
		id := fmt.Sprintf("%s%04d%04d", strings.TrimRight(step.id, "0123456789abcdef")+"0000", s.turn, i)
		names := strings.NewReplacer(step.key, key, step.id, id)
		for _, command := range step.commands {
			args := slices.Clone(command)
			for j, arg := range args {
				args[j] = names.Replace(fmt.Sprint(arg))
			}
			commands = append(commands, args)
		}
	}
	before := s.used()
	for batch := range slices.Chunk(commands, depth*len(step.commands)) {
		for _, args := range batch {
			_ = s.conn.Send("EVALSHA", args...)
		}
		replies, err := redis.Values(s.conn.Do(""))
		for _, reply := range replies {
			if refused, ok := reply.(redis.Error); ok {
				err = refused
			}
		}
		if err != nil {
			s.Fatalf("%s: %v", step.name, err)
		}
	}
	after := s.used()
	n := float64(len(step.keys))
	if step.costs == nil {
		step.costs = make(map[int][]scriptCost)
	}
	step.costs[depth] = append(step.costs[depth], scriptCost{(after.cpu - before.cpu) / n, (after.script - before.script) / n})
}

// used returns what Redis has used so far, in µs.
func (s *scriptBench) used() scriptCost {
	return scriptCost{cpuMicros(s.B, s.r.PID()), scriptMicros(s.B, s.r)}
}

// print prints a table of the medians.
func (s *scriptBench) print() {
	medians := func(name string, depth int) scriptCost {
		var cpu, script []float64
		for _, cost := range s.step(name).costs[depth] {
			cpu, script = append(cpu, cost.cpu), append(script, cost.script)
		}
		return scriptCost{median(cpu), median(script)}
	}
	fmt.Print("\n| Redis's µs for a | 20 at once | of a charge | in the script | of a charge | alone | of a charge |\n" +
		"|---|---|---|---|---|---|---|\n")
	row := func(names ...string) {
		fmt.Printf("| %s |", strings.Join(names, " + "))
		for i, depth := range scriptDepths {
			charge, sum := medians("charge", depth), scriptCost{}
			for _, name := range names {
				cost := medians(name, depth)
				sum.cpu, sum.script = sum.cpu+cost.cpu, sum.script+cost.script
			}
			fmt.Printf(" %.1f | %.2f |", sum.cpu, sum.cpu/charge.cpu)
			if i == 0 {
				fmt.Printf(" %.1f | %.2f |", sum.script, sum.script/charge.script)
			}
		}
		fmt.Println()
	}
	for _, step := range s.steps {
		row(step.name)
	}
	row("hold", "settle")
	row("commands of hold", "commands of settle")
	row("hold, limited", "settle, limited")
}

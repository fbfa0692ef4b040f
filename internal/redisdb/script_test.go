package redisdb

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
)

// A full Redis runs scripts that only read or free memory, and refuses the others before their first command.
func TestScriptModes(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	c := newTestClient(t, r.URL(), new(telemetrytest.Log))
	const (
		read       = "return redis.call('GET', KEYS[1])"
		write      = "return redis.call('SET', KEYS[1], 'written')"
		free       = "return redis.call('DEL', KEYS[1])"
		freeToFill = "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], 'written')"
	)
	tests := []struct {
		name, source string
		mode         Mode
		room, full   string // the value of the key afterwards, "" if it is gone
		denied       bool   // even while there is room
		refused      bool   // as out of memory, while Redis has none to spare
	}{
		{"reading, NoWrites", read, NoWrites, "before", "before", false, false},
		{"reading, AllowOOM", read, AllowOOM, "before", "before", false, false},
		{"reading, DenyOOM", read, DenyOOM, "before", "before", false, true},
		{"writing, NoWrites", write, NoWrites, "before", "before", true, false},
		{"writing, AllowOOM", write, AllowOOM, "written", "written", false, false},
		{"writing, DenyOOM", write, DenyOOM, "written", "before", false, true},
		{"deleting, NoWrites", free, NoWrites, "before", "before", true, false},
		{"deleting, AllowOOM", free, AllowOOM, "", "", false, false},
		{"deleting, DenyOOM", free, DenyOOM, "", "before", false, true},
		{"deleting and writing, AllowOOM", freeToFill, AllowOOM, "written", "written", false, false},
		{"deleting and writing, DenyOOM", freeToFill, DenyOOM, "written", "before", false, true},
	}
	for _, memory := range []string{"room", "full"} {
		for _, test := range tests {
			t.Run(memory+"/"+test.name, func(t *testing.T) {
				r.Do(t, "CONFIG", "SET", "maxmemory", 0)
				r.Do(t, "SET", "apiKey:x", "before")
				want, refused := test.room, false
				if memory == "full" {
					r.Do(t, "CONFIG", "SET", "maxmemory", 1)
					want, refused = test.full, test.refused
				}
				_, err := c.Eval(time.Now().Add(prompt), NewScript(test.name, test.source, test.mode), []string{"apiKey:x"})
				if got := IsOutOfMemory(err); got != refused || errors.Is(err, ErrUnavailable) != refused {
					t.Errorf("out of memory: %v, want %v: %v", got, refused, err)
				}
				if denied := err != nil && !refused; denied != test.denied || MayHaveRun(err) && err != nil {
					t.Errorf("denied: %v, want %v: %v", denied, test.denied, err)
				}
				if got := r.String(t, "GET", "apiKey:x"); got != want {
					t.Errorf("the key is %q, want %q", got, want)
				}
			})
		}
	}
}

// A script that only reads does not wait for replicas, nor does one that can be done without. One that may write does.
func TestScriptReplicas(t *testing.T) {
	t.Parallel()
	r := redistest.New(t) // has none
	for _, test := range []struct {
		name string
		mode Mode
		eval func(c *Client, deadline time.Time, s *Script, keys []string, args ...any) (any, error)
		want error
	}{
		{"NoWrites", NoWrites, (*Client).Eval, nil},
		{"NoWrites, large", NoWrites, (*Client).EvalLarge, nil},
		{"AllowOOM", AllowOOM, (*Client).Eval, errTooFewReplicas},
		{"AllowOOM, large", AllowOOM, (*Client).EvalLarge, errTooFewReplicas},
		{"AllowOOM, dispensable", AllowOOM, (*Client).EvalDispensable, nil},
		{"DenyOOM", DenyOOM, (*Client).Eval, errTooFewReplicas},
		{"DenyOOM, large", DenyOOM, (*Client).EvalLarge, errTooFewReplicas},
		{"DenyOOM, dispensable", DenyOOM, (*Client).EvalDispensable, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			options := testOptions(t, r.URL(), new(telemetrytest.Log))
			options.Replicas = 1
			script := NewScript("read", "return redis.call('GET', KEYS[1])", test.mode)
			r.Do(t, "SCRIPT", "LOAD", script.source) // else the WAIT after EVALSHA would delay EVAL
			_, err := test.eval(open(t, options), time.Now().Add(time.Second), script, []string{"apiKey:x"})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A Redis that has forgotten a script learns it again, and the error of a script is no fault of Redis.
func TestScriptErrors(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	log := new(telemetrytest.Log)
	c := newTestClient(t, r.URL(), log)
	script := NewScript("fail", "return redis.error_reply(ARGV[1])", NoWrites)
	for _, text := range []string{"FIRST one", "SECOND one"} {
		_, err := c.Eval(time.Now().Add(prompt), script, []string{"apiKey:x"}, text)
		if refused, ok := errors.AsType[redis.Error](err); !ok || !strings.HasPrefix(string(refused), text) {
			t.Errorf("got %v, want %s", err, text)
		}
		if errors.Is(err, ErrUnavailable) {
			t.Errorf("%v is a fault of Redis", err)
		}
		r.Do(t, "SCRIPT", "FLUSH")
	}
	if log.Count("[ERROR]") != 0 {
		t.Errorf("log:\n%s", log)
	}
}

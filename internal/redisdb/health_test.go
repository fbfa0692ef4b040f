package redisdb

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/gomodule/redigo/redis"
)

// What the errors of Redis and of connections mean for Redis as a whole, for memory and for a retry.
func TestClassify(t *testing.T) {
	tests := []struct {
		err        error
		want       faultKind
		mayHaveRun bool
	}{
		{io.EOF, faultConnection, true},
		{errNoReply, faultConnection, true},
		{fmt.Errorf("connection lost: %w", io.EOF), faultConnection, true},
		{unsentError{errConnClosed}, faultConnection, false},
		{unsentError{errNoOwner}, faultConnection, false},
		{errTooManyPending, faultRefused, false},
		{unsentError{errTooManyPending}, faultRefused, false},
		{errTooFewReplicas, faultRefused, true},
		{redis.Error("READONLY You can't write against a read only replica."), faultDemoted, false},
		{redis.Error("ERR READONLY You can't write against a read only replica."), faultDemoted, false},
		{redis.Error("LOADING Redis is loading the dataset in memory"), faultRefused, false},
		{redis.Error("BUSY Redis is busy running a script."), faultRefused, false},
		{redis.Error("OOM command not allowed when used memory > 'maxmemory'."), faultRefused, false},
		{redis.Error("ERR OOM command not allowed"), faultRefused, false},
		{redis.Error("MISCONF Redis is configured to save RDB snapshots"), faultRefused, false},
		{redis.Error("MASTERDOWN Link with MASTER is down"), faultRefused, false},
		{redis.Error("CLUSTERDOWN Hash slot not served"), faultRefused, false},
		{redis.Error("TRYAGAIN Multiple keys request during rehashing of slot"), faultRefused, false},
		{redis.Error("NOREPLICAS Not enough good replicas to write."), faultRefused, false},
		{redis.Error("NOAUTH Authentication required."), faultRefused, false},
		{redis.Error("WRONGPASS invalid username-password pair"), faultRefused, false},
		{redis.Error("NOPERM this user has no permissions to run the 'get' command"), faultRefused, false},
		{redis.Error("ERR max number of clients reached"), faultRefused, false},
		{redis.Error("ERR The user executing the script can't run this command or subcommand"), faultRefused, false},
		{redis.Error("ERR ACL failure in script: this user has no permissions"), faultRefused, false},
		{redis.Error("WRONGTYPE Operation against a key holding the wrong kind of value"), faultNone, false},
		{redis.Error("ERR value is not an integer or out of range"), faultNone, false},
		{redis.Error("ERR wrong number of arguments for 'get' command"), faultNone, false},
		{redis.Error("MOVED 3999 127.0.0.1:6381"), faultNone, false}, // see parseRedirect
		{redis.Error(""), faultNone, false},
	}
	for _, test := range tests {
		for _, err := range []error{test.err, fmt.Errorf("%w: %w", ErrUnavailable, test.err)} {
			if got := classify(err); got != test.want {
				t.Errorf("%v: got %d, want %d", err, got, test.want)
			}
			if got := MayHaveRun(err); got != test.mayHaveRun {
				t.Errorf("%v: it may have run: %v", err, got)
			}
		}
	}
	if got := classify(nil); got != faultNone {
		t.Errorf("no error: got %d", got)
	}
}

func TestErrorCodes(t *testing.T) {
	tests := []struct {
		err              error
		memory, noScript bool
	}{
		{redis.Error("OOM command not allowed when used memory > 'maxmemory'."), true, false},
		{fmt.Errorf("%w: %w", ErrUnavailable, redis.Error("OOM command not allowed")), true, false},
		{redis.Error("NOSCRIPT No matching script. Please use EVAL."), false, true},
		{redis.Error("ERR OOM"), false, false},
		{errors.New("OOM command not allowed"), false, false},
		{errors.New("NOSCRIPT No matching script."), false, false},
		{nil, false, false},
	}
	for _, test := range tests {
		if got := IsOutOfMemory(test.err); got != test.memory {
			t.Errorf("%v: out of memory: %v", test.err, got)
		}
		if got := isNoScript(test.err); got != test.noScript {
			t.Errorf("%v: no script: %v", test.err, got)
		}
	}
}

func TestTopologyFollows(t *testing.T) {
	want := map[topology]map[redirectKind]bool{
		singleServer:   {},
		sentinelMaster: {notNow: true},
		clusterServers: {movedSlot: true, askedSlot: true, notNow: true},
	}
	for where, kinds := range want {
		for kind := movedSlot; kind <= noRedirect; kind++ {
			if got := where.follows(kind); got != kinds[kind] {
				t.Errorf("topology %d, kind %d: %v", where, kind, got)
			}
		}
	}
}

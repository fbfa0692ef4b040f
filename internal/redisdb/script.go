package redisdb

import (
	"crypto/sha1"
	_ "embed"
	"fmt"
	"sync/atomic"
)

// Mode says what a script may do, and whether Redis runs it while its memory is full: while it uses more than
// maxmemory and evicts nothing. A Mode is the flags in the first line of a script, which Redis checks before the script
// begins (https://redis.io/docs/latest/develop/programmability/eval-intro/#eval-flags). A script without such a line
// would run by Redis's older rule, which looks at each of its commands until one has written.
type Mode int

const (
	// NoWrites is the mode of scripts that only read. They run in a full Redis, and also on one that takes no writes:
	// a replica, or a master whose disk is full. A command in them that would write is an error. They do not wait for
	// replicas.
	NoWrites Mode = iota

	// AllowOOM is the mode of scripts that free memory, or replace what is there by something as large. They may write
	// in a full Redis, which checks none of their commands: a script that adds keys or fields would fill it further.
	AllowOOM

	// DenyOOM is the mode of all other scripts. A full Redis refuses them as a whole, whatever they would have done, with
	// an error for which IsOutOfMemory is true.
	DenyOOM
)

// shebangs has the first line of a script in each mode.
var shebangs = [...]string{
	NoWrites: "#!lua flags=no-writes\n",
	AllowOOM: "#!lua flags=allow-oom\n",
	DenyOOM:  "#!lua\n",
}

// Script is a Lua script, which Redis runs as one atomic step. It may be used concurrently.
type Script struct {
	name         string // for the health state
	source, sha1 any    // the first argument of EVAL and of EVALSHA, boxed once
	kind         kind
	isKnown      atomic.Bool // it was run before, and a server most likely knows it
}

// NewScript returns the script with a name, by which the client tells scripts apart, and that source in Lua. The source
// has no line "#!lua", which stands for the mode. Redis does not check the source before the script is first run.
func NewScript(name, source string, mode Mode) *Script {
	s := &Script{name: name}
	if mode != NoWrites {
		s.kind = kindWrite
	}
	source = shebangs[mode] + source
	s.source, s.sha1 = source, fmt.Sprintf("%x", sha1.Sum([]byte(source)))
	return s
}

//go:embed ready.lua
var readyLua string

var readyScript = NewScript("ready", readyLua, AllowOOM)

// operation is a command, or a script with its keys, and its arguments.
type operation struct {
	name   string // of the command or the script, for the health state
	script *Script
	args   []any    // of a script: a place for what EVAL or EVALSHA runs, the number of keys, the keys, the arguments
	each   []string // keys for each of which the command is sent, instead of args; nil: args
	kind   kind
	large  bool   // its arguments or its reply may be: it takes a connection of the pool
	queued func() // called when it is queued on the shared connection; may be nil
}

// scriptArgs returns the arguments of a script, with a place for what names it.
func scriptArgs(keys []string, args []any) []any {
	all := append(make([]any, 0, 2+len(keys)+len(args)), nil, len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	return append(all, args...)
}

func commandArgs(key string, args []any) []any {
	return append(append(make([]any, 0, 1+len(args)), key), args...)
}

// kind says what is to be done beside sending a command.
type kind uint8

const (
	kindAsking      kind = 1 << iota // send ASKING before it: its slot is being moved to this server
	kindWrite                        // it may write: its reply counts when enough replicas have what it wrote
	kindDispensable                  // that it fails says nothing about Redis
)

package redisdb

import (
	"crypto/sha1"
	_ "embed"
	"fmt"
)

// Script is a Lua script, which Redis runs as one atomic step. The head of its file lists KEYS, ARGV and results.
type Script struct {
	name         string // for errors and the health state
	source, sha1 any    // the first argument of EVAL and of EVALSHA, boxed once
	kind         Kind
}

func NewScript(name, source string, kind Kind) *Script {
	return &Script{name, source, fmt.Sprintf("%x", sha1.Sum([]byte(source))), kind}
}

//go:embed ready.lua
var readyLua string

var readyScript = NewScript("ready", readyLua, Writes)

// operation is a command, or a script with its keys, and its arguments.
type operation struct {
	name   string // of the command or the script, for errors and the health state
	script *Script
	args   []any // of a script: a place for what EVAL or EVALSHA runs, the number of keys, the keys, the arguments
	kind   Kind
	large  bool // its arguments or its reply may be: it takes a connection of the pool
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

// Kind says what is to be done beside sending a command.
type Kind uint8

const (
	afterAsking Kind = 1 << iota // send ASKING before it: its slot is being moved to this server
	Writes                       // it may write: its reply counts when enough replicas have what it wrote
	Dispensable                  // that it fails says nothing about Redis
)

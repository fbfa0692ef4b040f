package redisdb

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/telemetry"
)

// ErrUnavailable means that Redis did not respond in time or refuses to work for now. A write may or may not have
// happened; MayHaveRun says which.
var ErrUnavailable = errors.New("redis is unavailable")

const (
	probeInterval = 250 * time.Millisecond // between probes of a Redis that is down

	// The log says that Redis is available again after a time without a failure. It is longer if Redis has refused
	// commands that it has not executed since.
	recoveryQuiet = time.Second
	refusalQuiet  = time.Minute
)

// IsOutOfMemory reports whether Redis has refused a command or a script because its memory is full. Such an error also
// wraps ErrUnavailable, except of what can be done without.
func IsOutOfMemory(err error) bool {
	reply, ok := errors.AsType[redis.Error](err)
	return ok && strings.HasPrefix(string(reply), "OOM")
}

// IsWriteRefused reports whether Redis responds, and has refused a write because its memory is full, or has too few
// replicas for it.
func IsWriteRefused(err error) bool { return IsOutOfMemory(err) || errors.Is(err, errTooFewReplicas) }

// isNoScript reports whether Redis does not know the script that EVALSHA names.
func isNoScript(err error) bool {
	reply, ok := errors.AsType[redis.Error](err)
	return ok && strings.HasPrefix(string(reply), "NOSCRIPT ")
}

// health knows whether Redis is available, and logs each change once. It learns from the outcome of every command.
type health struct {
	name     string // of the server, in the log
	log      *telemetry.Logger
	down     atomic.Bool // the last line in the log says that Redis is unavailable
	muted    atomic.Bool // the server is not used any more: what becomes of the last commands there is not logged
	failures atomic.Int64

	// Connections of the pool that were last used before it, in Unix nanoseconds, are not used again.
	discardBefore atomic.Int64

	mu          sync.Mutex // guards the fields below, and changes of down with the line in the log
	lastFailure time.Time
	refused     map[string]bool // commands and scripts that Redis has refused and not executed since
}

// observe learns from the outcome of one command or script, op. Errors that concern Redis as a whole become
// ErrUnavailable.
func (h *health) observe(op string, reply any, err error) (any, error) {
	if _, unsent := errors.AsType[unsentError](err); unsent { // which says nothing about the connections in use
		return nil, h.failed(op, err)
	}
	if refused, ok := errors.AsType[redis.Error](err); ok {
		text, _, _ := strings.Cut(string(refused), ", with args") // of an unknown command, whose arguments are secret
		err = redis.Error(text)
	}
	switch classify(err) {
	case faultNone:
		h.succeeded(op)
		return reply, err
	case faultConnection, faultDemoted:
		h.discardIdle() // it is true of all connections
	}
	return nil, h.failed(op, err)
}

// discardIdle lets no connection of the pool that is idle now be used again.
func (h *health) discardIdle() { h.discardBefore.Store(time.Now().UnixNano()) }

// succeeded notes that Redis has executed op. Redis is available again after recoveryQuiet without a failure, or after
// refusalQuiet if it has refused other commands: a Redis that is full still reads.
func (h *health) succeeded(op string) {
	if !h.down.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.refused, op)
	quiet := recoveryQuiet
	if len(h.refused) > 0 {
		quiet = refusalQuiet
	}
	if h.down.Load() && time.Since(h.lastFailure) > quiet {
		h.down.Store(false)
		clear(h.refused)
		h.log.Infof("%s is available again", h.name)
	}
}

// failed notes that Redis was unavailable to op because of err, and returns err as an ErrUnavailable.
func (h *health) failed(op string, err error) error {
	h.failures.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastFailure = time.Now()
	if _, replied := errors.AsType[redis.Error](err); replied {
		h.refused[op] = true
	}
	if !h.down.Swap(true) && !h.muted.Load() {
		h.log.Errorf("%s is unavailable: %v", h.name, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// faultKind is what an error says about Redis as a whole.
type faultKind int

const (
	faultNone       faultKind = iota // nothing: there is no error, or it concerns one command
	faultConnection                  // the connection is lost or silent
	faultDemoted                     // this server is no longer the master
	faultRefused                     // Redis refuses work for now
)

// classify returns what err says about Redis as a whole. The codes are those with which Redis refuses commands that are
// correct (https://redis.io/docs/latest/develop/reference/protocol-spec/).
func classify(err error) faultKind {
	if err == nil {
		return faultNone
	}
	reply, replied := errors.AsType[redis.Error](err)
	switch {
	case errors.Is(err, errTooManyPending), errors.Is(err, errTooFewReplicas):
		return faultRefused
	case !replied:
		return faultConnection
	case strings.Contains(string(reply), "READONLY"): // managed proxies wrap it in another error
		return faultDemoted
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(string(reply), "ERR "), " ")
	switch code {
	case "LOADING", "BUSY", "OOM", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS",
		"NOAUTH", "WRONGPASS", "NOPERM":
		return faultRefused
	}
	for _, text := range refusalPrefixes {
		if strings.HasPrefix(string(reply), text) {
			return faultRefused
		}
	}
	return faultNone
}

// refusalPrefixes are how replies without a code of their own begin.
var refusalPrefixes = []string{
	"ERR max number of clients", "ERR The user executing the script", "ERR ACL failure in script",
}

// MayHaveRun reports whether Redis may have executed the command that failed with err: it was sent, and no reply says
// that it was refused. A script that was refused by one of its commands has run up to there.
func MayHaveRun(err error) bool {
	_, refused := errors.AsType[redis.Error](err)
	_, unsent := errors.AsType[unsentError](err)
	return !refused && !unsent && !errors.Is(err, errTooManyPending)
}

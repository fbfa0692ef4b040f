package redisdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const startPause = 100 * time.Millisecond // between two attempts at start

// setupError is an error that lasts until somebody changes the set-up.
type setupError string

func (e setupError) Error() string { return string(e) }

// manyErrors is why each of several servers that would do cannot be used.
type manyErrors []error

func (e manyErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e manyErrors) Unwrap() []error { return e }

// untilServes calls attempt until it succeeds, fails with an error that lasts, or ctx is done.
func untilServes(ctx context.Context, attempt func() error) error {
	var err error
	for {
		failure := attempt()
		if failure == nil || lasts(failure) {
			return failure
		}
		if err == nil || ctx.Err() == nil { // one that was cut short does not tell why
			err = failure
		}
		sleep(ctx, startPause)
		if ctx.Err() != nil {
			return err
		}
	}
}

// lasts reports whether a start that fails with err would do so again: the set-up is wrong. Anything else may pass by
// itself, such as a server that does not listen yet, loads its data or is being replaced.
func lasts(err error) bool {
	if many, ok := errors.AsType[manyErrors](err); ok {
		return !slices.ContainsFunc(many, func(err error) bool { return !lasts(err) })
	}
	if reply, ok := errors.AsType[redis.Error](err); ok {
		kind, _ := parseRedirect(reply, "")
		code, _, _ := strings.Cut(string(reply), " ")
		return kind == noRedirect && !slices.Contains([]string{"BUSY", "MISCONF", "NOREPLICAS", "OOM"}, code) &&
			!strings.HasPrefix(string(reply), "ERR max number of clients")
	}
	_, setup := errors.AsType[setupError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	op, ok := errors.AsType[*net.OpError](err)
	alert := ok && op.Op == "remote error" // the server does not accept our certificate, or lack of one
	return setup || certificate || otherName || noTLS || alert
}

// timeLeft returns how long it is until the deadline of ctx, or redialTimeout if that has none.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline)
	}
	return redialTimeout
}

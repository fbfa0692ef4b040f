package redisdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/gomodule/redigo/redis"
)

// Which errors end a start at once, because they do not pass by themselves.
func TestLasts(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	tests := []struct {
		err  error
		want bool
	}{
		{refused, false},
		{io.EOF, false},
		{context.DeadlineExceeded, false},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, false},
		{errNoSuchMaster, false},
		{errNotMaster, false},
		{errOtherMaster, false},
		{errNoSlots, false},
		{redis.Error("LOADING Redis is loading the dataset in memory"), false},
		{redis.Error("BUSY Redis is busy running a script."), false},
		{redis.Error("MASTERDOWN Link with MASTER is down"), false},
		{redis.Error("TRYAGAIN Multiple keys request during rehashing of slot"), false},
		{redis.Error("CLUSTERDOWN Hash slot not served"), false},
		{redis.Error("MOVED 3999 127.0.0.1:6381"), false},
		{redis.Error("READONLY You can't write against a read only replica."), false},
		{redis.Error("MISCONF Redis is configured to save RDB snapshots"), false},
		{redis.Error("NOREPLICAS Not enough good replicas to write."), false},
		{redis.Error("ERR max number of clients reached"), false},
		{redis.Error("NOAUTH Authentication required."), true},
		{redis.Error("WRONGPASS invalid username-password pair"), true},
		{redis.Error("NOPERM the user may not run HINCRBY"), true},
		{redis.Error("ERR DB index is out of range"), true},
		{redis.Error("ERR unknown command 'EVAL'"), true},
		{errNotSentinel, true},
		{errNotCluster, true},
		{checkRedisVersion("redis_version:6.2.14\r\n"), true},
		{checkInfo("redis_mode:sentinel\r\n", singleServer), true},
		{checkInfo("redis_mode:cluster\r\n", sentinelMaster), true},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, true},
		{x509.HostnameError{Host: "x", Certificate: new(x509.Certificate)}, true},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, true},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, true},
		{manyErrors{refused, errNotCluster}, false}, // the first may come up
		{manyErrors{errNotCluster, redis.Error("WRONGPASS")}, true},
	}
	for _, test := range tests {
		for _, err := range []error{test.err, fmt.Errorf("10.0.0.1:6379: %w", test.err)} {
			if got := lasts(err); got != test.want {
				t.Errorf("%v: got %v, want %v", err, got, test.want)
			}
		}
	}
}

// The error of a start is the last one that was not cut short by the end of its time.
func TestUntilServes(t *testing.T) {
	wrong, passing := setupError("wrong"), errors.New("passing")
	tests := []struct {
		name     string
		outcomes []error // of the attempts; the last one repeats
		want     error
		attempts int // at least
	}{
		{"at once", []error{nil}, nil, 1},
		{"later", []error{passing, passing, nil}, nil, 3},
		{"an error that lasts", []error{passing, wrong}, wrong, 2},
		{"never", []error{passing}, passing, 3},
	}
	for _, test := range tests {
		ctx, cancel := context.WithTimeout(t.Context(), 10*startPause)
		attempts := 0
		err := untilServes(ctx, func() error {
			attempts++
			return test.outcomes[min(attempts, len(test.outcomes))-1]
		})
		if err != test.want || attempts < test.attempts {
			t.Errorf("%s: got %v after %d attempts, want %v after %d", test.name, err, attempts, test.want, test.attempts)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*startPause)
	defer cancel()
	attempts := 0
	err := untilServes(ctx, func() error {
		if attempts++; attempts == 1 {
			return passing
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != passing {
		t.Errorf("cut short: got %v, want %v", err, passing)
	}
}

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// Redis's certificate is verified, by the system's CAs or the one given, and a Redis that asks for a certificate gets
// the one given. What keeps a connection from being made is named with the setting that would mend it.
func TestRedisTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t)
	otherCert, otherKey := redistest.NewCertificate(t)
	_, port := redistest.NewTLS(t, certFile, keyFile, "yes", "--requirepass", "pw")
	_, open := redistest.NewTLS(t, certFile, keyFile, "no", "--requirepass", "pw")
	const failed = "[ERROR] Redis connection failed: "
	tests := []struct {
		name string
		port int
		env  []string
		want string // in the log of a process that exits with 1; "": it serves
	}{
		{"a CA and a certificate", port, []string{"REDIS_CA_FILE=" + certFile, "REDIS_CERT_FILE=" + certFile, "REDIS_KEY_FILE=" + keyFile}, ""},
		{"a CA", open, []string{"REDIS_CA_FILE=" + certFile}, ""},
		{"one of the system's CAs", open, []string{"SSL_CERT_FILE=" + certFile}, ""},
		{"one of the system's CAs and a certificate", port,
			[]string{"SSL_CERT_FILE=" + certFile, "REDIS_CERT_FILE=" + certFile, "REDIS_KEY_FILE=" + keyFile}, ""},
		{"an unknown CA", open, nil, "signed by unknown authority: REDIS_CA_FILE names the file of its CA\n"},
		{"another CA, which counts instead of the system's", open, []string{"SSL_CERT_FILE=" + certFile, "REDIS_CA_FILE=" + otherCert},
			"REDIS_CA_FILE names the file of its CA\n"},
		{"no certificate", port, []string{"REDIS_CA_FILE=" + certFile},
			"it asks for a certificate, which REDIS_CERT_FILE and REDIS_KEY_FILE name\n"},
		{"another certificate", port, []string{"REDIS_CA_FILE=" + certFile, "REDIS_CERT_FILE=" + otherCert, "REDIS_KEY_FILE=" + otherKey},
			"it does not accept the certificate in REDIS_CERT_FILE\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := startProcess(t, append(test.env, fmt.Sprintf("REDIS_URL=rediss://:pw@localhost:%d", test.port), "ADDR=127.0.0.1:0"))
			if test.want != "" {
				if code := p.exitCode(t); code != 1 || !strings.HasPrefix(p.log.String(), failed) ||
					!strings.HasSuffix(p.log.String(), test.want) || p.log.Count("\n") != 1 {
					t.Errorf("exit code %d, want 1 and %q in\n%s", code, test.want, p.log)
				}
				return
			}
			s := p.service(t)
			key := s.login(t, "abc")
			load{
				services: []*service{s}, clients: 9, requests: 1, statuses: []int{200},
				request: func(int, int) request { return consumeRequest("abc", key, 1) },
			}.run(t)
			s.consume(t, "abc", key, "", retryKey+"k").want(t, 200, `{"tokensLeft":90}`)
		})
	}
}

// On SIGHUP the certificates are read again: with renewed ones a server is reached that has renewed its own. A file that
// is malformed changes nothing.
func TestRedisTLSIsReadAgain(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t)
	newCert, newKey := redistest.NewCertificate(t)
	r, port := redistest.NewTLS(t, certFile, keyFile, "yes")
	file := filepath.Join(t.TempDir(), "ca.pem")
	copyFile := func(from, to string) {
		t.Helper()
		if err := os.WriteFile(to, []byte(readFile(t, from)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(certFile, file)
	p := startProcess(t, []string{
		fmt.Sprintf("REDIS_URL=rediss://tollgate:%s@localhost:%d", redistest.Password, port), "ADDR=127.0.0.1:0",
		"REDIS_CA_FILE=" + file, "REDIS_CERT_FILE=" + certFile, "REDIS_KEY_FILE=" + keyFile,
	})
	s := p.service(t)
	s.login(t, "abc")
	p.reload(t, file, "no certificate", "[ERROR] REDIS_*_FILE was not read again, and the old value stays: REDIS_CA_FILE: ")
	copyFile(newCert, certFile)
	copyFile(newKey, keyFile)
	r.Do(t, "CONFIG", "SET", "tls-cert-file", certFile, "tls-key-file", keyFile, "tls-ca-cert-file", certFile)
	r.Do(t, "CLIENT", "KILL", "TYPE", "normal")
	waittest.Eventually(t, 5*time.Second, func() error { return s.do(t, "GET", "/readyz", "").is(503) })
	p.reload(t, file, readFile(t, newCert), "[INFO] REDIS_*_FILE was read again")
	waittest.Eventually(t, 5*time.Second, func() error { return s.do(t, "GET", "/readyz", "").is(200) })
	s.login(t, "abc")
}

// Sentinels and their servers are reached with the same certificates.
func TestSentinelTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t)
	_, port := redistest.NewTLS(t, certFile, keyFile, "yes")
	sentinel := redistest.NewSentinelTLS(t, certFile, keyFile, "yes", port)
	s := newService(t, fmt.Sprintf("REDIS_URL=rediss-sentinel://tollgate:%s@%s/%s", redistest.Password, sentinel, redistest.MasterName),
		"REDIS_CA_FILE="+certFile, "REDIS_CERT_FILE="+certFile, "REDIS_KEY_FILE="+keyFile)
	s.login(t, "abc")
}

// A file that does not fit is a bad setting, which is named.
func TestRedisTLSSettings(t *testing.T) {
	certFile, keyFile := redistest.NewCertificate(t)
	_, otherKey := redistest.NewCertificate(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("SECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	const tls, plain = "rediss://h", "redis://h"
	tests := []struct {
		name, url, ca, cert, key string
		want                     string // the begin of the error
	}{
		{"nothing", plain, "", "", "", ""},
		{"all", tls, certFile, certFile, keyFile, ""},
		{"all, with Sentinels", "rediss-sentinel://h/m", certFile, certFile, keyFile, ""},
		{"no such CA", tls, "/nowhere", "", "", "REDIS_CA_FILE: open /nowhere"},
		{"a CA that is no PEM", tls, text, "", "", fmt.Sprintf("REDIS_CA_FILE: %q has no certificate in PEM form", text)},
		{"a CA that is a key", tls, keyFile, "", "", fmt.Sprintf("REDIS_CA_FILE: %q has no certificate in PEM form", keyFile)},
		{"no such certificate", tls, "", "/nowhere", keyFile, "REDIS_CERT_FILE: open /nowhere"},
		{"no such key", tls, "", certFile, "/nowhere", "REDIS_KEY_FILE: open /nowhere"},
		{"a certificate that is no PEM", tls, "", text, keyFile, "REDIS_CERT_FILE, REDIS_KEY_FILE: tls: failed to find any PEM data in cert"},
		{"a key that is no PEM", tls, "", certFile, text, "REDIS_CERT_FILE, REDIS_KEY_FILE: tls: failed to find any PEM data in key"},
		{"the key of another", tls, "", certFile, otherKey, "REDIS_CERT_FILE, REDIS_KEY_FILE: tls: private key does not match public key"},
		{"no key", tls, "", certFile, "", "REDIS_CERT_FILE: there is no REDIS_KEY_FILE"},
		{"no certificate", tls, "", "", keyFile, "REDIS_KEY_FILE: there is no REDIS_CERT_FILE"},
		{"a CA without TLS", plain, certFile, "", "", "REDIS_CA_FILE: REDIS_URL has no TLS: it must begin with rediss://"},
		{"a certificate without TLS", "redis-cluster://h", "", certFile, keyFile,
			"REDIS_CERT_FILE: REDIS_URL has no TLS: it must begin with rediss-cluster://"},
		{"a CA for a socket", "unix:///s", certFile, "", "", "REDIS_CA_FILE: REDIS_URL has no TLS: it must begin with rediss://"},
		{"a wrong URL too", "h:6379", text, "", "", "REDIS_URL: must begin with"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			vars := env{"REDIS_URL": test.url, "REDIS_CA_FILE": test.ca, "REDIS_CERT_FILE": test.cert, "REDIS_KEY_FILE": test.key}
			if _, err := parse(vars); err != nil {
				got = err.Error()
			}
			if !strings.HasPrefix(got, test.want) || (got == "") != (test.want == "") || strings.Contains(got, "SECRET") {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A URL of the wrong kind ends the start soon, with a line that says which one to use.
func TestRedisURLOfOtherKind(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t)
	plain, port := redistest.NewTLS(t, certFile, keyFile, "no")
	other, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	sentinel := redistest.NewSentinelTLS(t, certFile, keyFile, "no", port)
	tls, refused := fmt.Sprintf("localhost:%d", port), fmt.Sprintf("localhost:%d", other)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	tests := []struct{ name, url, want string }{ // want is after "Redis connection failed: "
		{"TLS", "redis://" + tls, tls + ": this port uses TLS: use rediss://"},
		{"TLS, with a password", "redis://u:hunter2@" + tls, tls + ": this port uses TLS: use rediss://"},
		{"TLS of Sentinels", "redis-sentinel://" + sentinel + "/m", sentinel + ": this port uses TLS: use rediss-sentinel://"},
		{"TLS of a cluster", "redis-cluster://" + tls, tls + ": this port uses TLS: use rediss-cluster://"},
		{"TLS of the second seed", "redis-cluster://" + refused + "," + tls, tls + ": this port uses TLS: use rediss-cluster://"},
		{"no TLS", "rediss://" + plain.TCP, plain.TCP + ": this port does not use TLS: use redis://"},
		{"no TLS, with a password", "rediss://u:hunter2@" + plain.TCP, plain.TCP + ": this port does not use TLS: use redis://"},
		{"no TLS of Sentinels", "rediss-sentinel://" + plain.TCP + "/m", plain.TCP + ": this port does not use TLS: use redis-sentinel://"},
		{"no TLS of a cluster", "rediss-cluster://" + plain.TCP, plain.TCP + ": this port does not use TLS: use redis-cluster://"},
		{"a Sentinel as a cluster", "rediss-cluster://" + sentinel, sentinel + ": this is a Sentinel: " +
			"use redis-sentinel://<host>:<port>/<name of the master> (rediss-sentinel:// for TLS)"},
		{"a Sentinel as one server", "rediss://" + sentinel, "this is a Sentinel: " +
			"use redis-sentinel://<host>:<port>/<name of the master> (rediss-sentinel:// for TLS)"},
		{"a Sentinel as a cluster, with a password", "rediss-cluster://u:hunter2@" + sentinel, sentinel + ": this is a Sentinel: use"},
		{"a Sentinel as one server, with a password", "rediss://:hunter2@" + sentinel, sentinel + ": this is a Sentinel: use"},
		{"silence", "rediss-sentinel://" + silent.Addr().String() + "/m", silent.Addr().String() + ": "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			p := startProcess(t, []string{"REDIS_URL=" + test.url, "ADDR=127.0.0.1:0", "SSL_CERT_FILE=" + certFile})
			code, log := p.exitCode(t), p.log.String()
			want := "[ERROR] Redis connection failed: " + test.want
			if code != 1 || !strings.HasPrefix(log, want) || strings.Count(log, "\n") != 1 || strings.Contains(log, "hunter2") {
				t.Errorf("exit code %d, %q, want %q", code, log, want)
			}
			if took := time.Since(began); took > 3*time.Second+busy && test.name != "silence" {
				t.Errorf("it took %s", took)
			}
		})
	}
}

package redisdb

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// copyFile replaces the content of a file by that of another.
func copyFile(t *testing.T, to, from string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// After LoadTLS new connections use the renewed certificates. If it fails, they use those that were read before.
func TestLoadTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := redistest.NewCertificate(t)
	r, port := redistest.NewTLS(t, certFile, keyFile, "yes")
	options := testOptions(t, fmt.Sprintf("rediss://%s:%s@localhost:%d", r.User, redistest.Password, port), new(telemetrytest.Log))
	url := options.URL
	if err := url.SetTLSFiles(TLSFiles{CA: certFile, Cert: certFile, Key: keyFile}); err != nil {
		t.Fatal(err)
	}
	client := open(t, options)
	read := func(want string) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			_, err := client.Read(time.Now().Add(prompt), "GET", "apiKey:x")
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				return fmt.Errorf("got %v, want %q", err, want)
			}
			return nil
		})
	}
	read("")

	before := [2]string{certFile + ".old", keyFile + ".old"}
	copyFile(t, before[0], certFile)
	copyFile(t, before[1], keyFile)
	newCert, newKey := redistest.NewCertificate(t)
	copyFile(t, keyFile, newKey) // which does not fit the old certificate
	const want = "REDIS_CERT_FILE, REDIS_KEY_FILE: tls: private key does not match"
	if err := url.LoadTLS(); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	restart := func() {
		t.Helper()
		r.Kill()
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, keyFile, before[1])
	restart()
	copyFile(t, keyFile, newKey)
	read("") // with new connections, and what was read before

	copyFile(t, certFile, newCert)
	restart()
	read("unknown authority")
	var loads sync.WaitGroup
	for range 3 { // beside the attempts to connect
		loads.Go(func() {
			if err := url.LoadTLS(); err != nil {
				t.Error(err)
			}
		})
	}
	loads.Wait()
	read("")
}

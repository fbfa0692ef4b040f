//go:build integration

package stripetest

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// RunSDK has Stripe's own library do tasks of stripe.mjs in the directory sdk, and returns their results.
func RunSDK(t testing.TB, sdk string, tasks []map[string]any) []any {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("Stripe's library runs on Node.js (`make integration` installs it): %v", err)
	}
	input, err := json.Marshal(tasks)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(sdk, "stripe.mjs"))
	cmd.Stdin = bytes.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("`make integration` installs the library: %v\n%s", err, &stderr)
	}
	var results []any
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(tasks) {
		t.Fatalf("%v\n%s", err, out)
	}
	return results
}

const stripeMock = "github.com/stripe/stripe-mock@v0.203.0"

// StartMock starts stripe-mock, which checks requests by Stripe's OpenAPI document and has no state, and returns its
// URL. It stops when the test ends.
func StartMock(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	install := exec.CommandContext(t.Context(), "go", "install", stripeMock)
	install.Env = append(install.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", stripeMock, err, out)
	}
	mock := exec.CommandContext(t.Context(), filepath.Join(dir, "stripe-mock"),
		"-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0")
	out, err := mock.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	mock.Stderr = mock.Stdout
	if err := mock.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = mock.Process.Kill()
		_ = mock.Wait()
	})
	address := regexp.MustCompile(`HTTP at address: (\S+)\n`)
	var log []byte
	for chunk := make([]byte, 4096); ; {
		n, err := out.Read(chunk)
		log = append(log, chunk[:n]...)
		if found := address.FindSubmatch(log); found != nil {
			go io.Copy(io.Discard, out)
			return "http://" + string(found[1])
		}
		if err != nil {
			t.Fatalf("stripe-mock: %v\n%s", err, log)
		}
	}
}

//go:build integration

package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// These tests run the programs that tollgate works with: `make integration` installs and runs them.

// program returns the path of a program, without which the test fails.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the integration tests need the real %s (`make integration` installs it): %v", name, err)
	}
	return path
}

// startProgram runs a program until the test ends, and waits until it listens at address. If the test fails, its log has
// the program's output.
func startProgram(t *testing.T, cmd *exec.Cmd, address string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s", &out)
		}
	})
	waittest.Eventually(t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// promtool finds nothing to say about /metrics.
func TestIntegrationPromtool(t *testing.T) {
	check := exec.Command(program(t, "promtool"), "check", "metrics")
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	metricsStory(t, s, r)
	check.Stdin = strings.NewReader(s.admin(t, "GET", "/metrics", "").body)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// The linter that most users of OpenAPI documents know finds nothing.
func TestIntegrationOpenAPILint(t *testing.T) {
	lint := exec.Command(program(t, "npx"), "--yes", "@redocly/cli@2.77.0", "lint", "--max-problems=20", "openapi.json")
	lint.Env = append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	out, err := lint.CombinedOutput()
	if clean := "Your API description is valid"; err != nil || !strings.Contains(string(out), clean) ||
		regexp.MustCompile(`(?i)you have \d+ warning`).Match(out) {
		t.Errorf("%v\n%s", err, out)
	}
}

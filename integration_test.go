//go:build integration

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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

// The linter that most users of OpenAPI documents know finds nothing, but for the GET that always refuses.
func TestIntegrationOpenAPILint(t *testing.T) {
	lint := exec.Command(program(t, "npx"), "--yes", "@redocly/cli@2.77.0", "lint", "--max-problems=20",
		"--skip-rule=operation-2xx-response", "openapi.json")
	lint.Env = append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	out, err := lint.CombinedOutput()
	if clean := "Your API description is valid"; err != nil || !strings.Contains(string(out), clean) ||
		regexp.MustCompile(`(?i)you have \d+ warning`).Match(out) {
		t.Errorf("%v\n%s", err, out)
	}
}

// prometheusFiles writes the files for Prometheus in docs/operations.md into a directory, each named by its first line,
// with these replacements.
func prometheusFiles(t *testing.T, replacements ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, block := range docBlocks(t, "docs/operations.md") {
		if name, _, ok := strings.Cut(strings.TrimPrefix(block.text, "# "), "\n"); ok && block.language == "yaml" {
			text := strings.NewReplacer(replacements...).Replace(block.text)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// promtool finds nothing to say about the files for Prometheus in docs/operations.md, and their metrics exist.
func TestIntegrationPrometheusFiles(t *testing.T) {
	dir := prometheusFiles(t)
	if err := os.WriteFile(filepath.Join(dir, "metrics-token"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := exec.Command(program(t, "promtool"), "check", "config", "--lint-fatal", filepath.Join(dir, "prometheus.yml"))
	if out, err := check.CombinedOutput(); err != nil || !strings.Contains(string(out), "rules found") {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	const inClusters = "redis_slots_unowned" // this service has one server
	page := newService(t).admin(t, "GET", "/metrics", "").body
	names := regexp.MustCompile(`\b(?:http|redis|gateway|log|tokens|charges)_\w+`)
	found := 0
	for line := range strings.Lines(readFile(t, filepath.Join(dir, "tollgate.rules.yml"))) {
		if strings.Contains(line, "summary:") {
			continue
		}
		for _, name := range names.FindAllString(line, -1) {
			found++
			if !strings.Contains(page, "# TYPE "+name+" ") && name != inClusters {
				t.Errorf("there is no metric %s", name)
			}
		}
	}
	if found < 8 {
		t.Errorf("the rules have %d metrics", found)
	}
}

// Prometheus scrapes tollgate as docs/operations.md says.
func TestIntegrationPrometheusScrapes(t *testing.T) {
	const token = "metrics-token-of-this-test"
	s := newService(t, "METRICS_TOKEN="+token)
	dir := prometheusFiles(t, "localhost:8080", s.address(), "scrape_interval: 15s", "scrape_interval: 1s")
	if err := os.WriteFile(filepath.Join(dir, "metrics-token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	startProgram(t, exec.Command(program(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address), address)
	prometheus := &service{url: "http://" + address}
	waittest.Eventually(t, 30*time.Second, func() error {
		for _, query := range []string{`up{job="tollgate"}==1`, "redis_up==1"} {
			got, err := prometheus.send("GET", "/api/v1/query?query="+url.QueryEscape(query), "")
			if err != nil {
				return err
			}
			if !strings.Contains(got.body, `"instance":"`+s.address()+`"`) {
				return fmt.Errorf("%s is %s", query, got.body)
			}
		}
		return nil
	})
}

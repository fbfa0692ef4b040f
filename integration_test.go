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
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
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
// with these replacements, and docs/alerts.yml beside them.
func prometheusFiles(t *testing.T, replacements ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(readFile(t, "docs/alerts.yml")), 0o600); err != nil {
		t.Fatal(err)
	}
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

// promtool finds nothing to say about the files for Prometheus in docs.
func TestIntegrationPrometheusFiles(t *testing.T) {
	dir := prometheusFiles(t)
	if err := os.WriteFile(filepath.Join(dir, "metrics-token"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "rules found", "check", "config", "--lint-fatal", filepath.Join(dir, "prometheus.yml"))
}

// runPromtool runs promtool with these arguments, and expects that it succeeds and says what is wanted.
func runPromtool(t *testing.T, want string, arguments ...string) {
	t.Helper()
	out, err := exec.Command(program(t, "promtool"), arguments...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// Each alert of docs/alerts.yml fires when it must, and not before.
func TestIntegrationAlerts(t *testing.T) {
	const tests = "testdata/alerts.test.yml"
	runPromtool(t, "SUCCESS", "test", "rules", tests)
	for _, alert := range readAlerts(t) {
		if !strings.Contains(readFile(t, tests), `{alertname="`+alert.where+`"}`) {
			t.Errorf("no test expects that %s fires", alert.where)
		}
	}
}

// dashboardVariables stands for the values that Grafana puts in the place of the variables of docs/grafana.json.
var dashboardVariables = strings.NewReplacer("$__rate_interval", "1m", "$job", "tollgate", "$instance", ".*", "$tenant", ".*")

// promtool takes each expression of docs/grafana.json for a rule.
func TestIntegrationDashboard(t *testing.T) {
	d, rules := readDashboard(t), "groups:\n  - name: dashboard\n    rules:\n"
	panels, variables := d.expressions(t)
	for i, x := range slices.Concat(panels, variables) {
		rules += fmt.Sprintf("      - record: panel:%d\n        expr: %q\n", i, dashboardVariables.Replace(x.text))
	}
	path := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "SUCCESS", "check", "rules", "--lint-fatal", path)
}

// startPrometheus starts a Prometheus that scrapes s, and evaluates the alerts, every second as docs/operations.md says.
func startPrometheus(t *testing.T, s *service, token string) (prometheus *service) {
	t.Helper()
	dir := prometheusFiles(t, "localhost:8080", s.address(), "scrape_interval: 15s", "scrape_interval: 1s",
		"rule_files:", "global: { evaluation_interval: 1s }\nrule_files:")
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
	return &service{url: "http://" + address}
}

// query returns the result of an expression, at a service that is Prometheus.
func (s *service) query(expression string) (string, error) {
	got, err := s.send("GET", "/api/v1/query?query="+url.QueryEscape(expression), "")
	if err == nil {
		err = got.is(200)
	}
	return got.body, err
}

// Prometheus scrapes tollgate as docs/operations.md says, and evaluates the alerts. Then it has something for each panel
// of the dashboard but those whose subject is not there.
func TestIntegrationPrometheusScrapes(t *testing.T) {
	const token = "metrics-token-of-this-test"
	s, p, d := newService(t, "METRICS_TOKEN="+token), providertest.New(t), readDashboard(t)
	p.On("broken", providertest.Conduct{Status: 500})
	g := s.gatewayTest(t, p, formatsConfig(p, 1_000_000, "", `,"caching":{"enabled":true,"text_ttl":60}`))
	prometheus := startPrometheus(t, s, token)
	waittest.Eventually(t, 30*time.Second, func() error {
		for _, query := range []string{`up{job="tollgate"}==1`, "redis_up==1"} {
			got, err := prometheus.query(query)
			if err != nil {
				return err
			}
			if !strings.Contains(got, `"instance":"`+s.address()+`"`) {
				return fmt.Errorf("%s is %s", query, got)
			}
		}
		return nil
	})
	waittest.Eventually(t, 30*time.Second, func() error {
		got, err := prometheus.send("GET", "/api/v1/rules", "")
		if n, want := strings.Count(got.body, `"health":"ok"`), len(readAlerts(t)); err == nil && n != want {
			err = fmt.Errorf("%d alerts are evaluated, want %d: %s", n, want, got.body)
		}
		return err
	})
	absent := regexp.MustCompile("payment_events_total|gateway_realtime_seconds_total|redis_slots_unowned|pool_refused_total")
	waittest.Eventually(t, 60*time.Second, func() error {
		g.call(t, chatPath, `{}`)
		g.call(t, chatPath, `{"model":"broken"}`)
		g.consume(t, g.tenant, g.key, `{"tokens":2000000}`)
		g.login(t, g.tenant)
		panels, _ := d.expressions(t)
		for _, x := range panels {
			got, err := prometheus.query(dashboardVariables.Replace(x.text))
			if err != nil {
				return fmt.Errorf("%s: %w", x.where, err)
			}
			if strings.Contains(got, `"result":[]`) && !absent.MatchString(x.text) {
				return fmt.Errorf("%s: nothing is %s", x.where, x.text)
			}
		}
		return nil
	})
}

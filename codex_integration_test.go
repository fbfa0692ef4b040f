//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// codexConfigs returns the config.toml of docs/clients.md for Codex's own provider, and that for a provider of the
// user's.
func codexConfigs(t *testing.T) (own, custom string) {
	t.Helper()
	var configs []string
	for _, block := range docBlocks(t, "docs/clients.md") {
		if block.language == "toml" {
			configs = append(configs, block.text)
		}
	}
	if len(configs) != 2 {
		t.Fatalf("docs/clients.md has %d files in TOML, want 2", len(configs))
	}
	return configs[0], configs[1]
}

// codex runs Codex with a question, a config.toml and a model.
func codex(t *testing.T, s *service, tenant, key, config, model string) (output string, err error) {
	t.Helper()
	home := t.TempDir()
	config = strings.NewReplacer("http://localhost:8080/acme", s.url+"/"+tenant, "gpt-6-luna", model).Replace(config)
	if err := os.MkdirAll(filepath.Join(home, ".codex"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".codex", "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return agent(t, []string{"HOME=" + home, "CODEX_API_KEY=" + key, "TOLLGATE_API_KEY=" + key},
		[]string{"codex", "exec", "--skip-git-repo-check", agentQuestion})
}

// Codex works as docs/clients.md sets it up, with models for which it sends its tools in different ways, and each of its
// requests is charged what the provider reports. With its own provider it asks for a WebSocket first, and does without
// at once.
func TestIntegrationCodex(t *testing.T) {
	const input, output, balance = 12_600, 321, 60_000
	own, custom := codexConfigs(t)
	for _, test := range []struct {
		name, config, model string
		requests            int // the first is responded to with a call of a tool that there is in the member tools
	}{
		{"own provider", own, "gpt-6-luna", 1},
		{"custom provider", custom, "gpt-6-luna", 1},
		{"own provider, older model", own, "gpt-5.5", 2},
		{"custom provider, unknown model", custom, "some-model", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := providertest.New(t)
			p.On("", providertest.Conduct{Input: input, Output: output})
			s := newService(t, "ACCESS_LOG=true")
			tenant := anyModelTenant(t, p, balance)
			key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
			out, err := codex(t, s, tenant, key, test.config, test.model)
			if err != nil || !strings.Contains(out, "word ünd word ünd word ünd") || strings.Contains(out, "Reconnecting") {
				t.Errorf("%v\n%s", err, out)
			}
			wantAgent(t, p, test.model, `^codex_exec/0\.`)
			requests := p.Requests()
			if len(requests) != test.requests {
				t.Errorf("the provider got %d requests, want %d", len(requests), test.requests)
			}
			for _, r := range requests {
				if r.Header.Get("Originator") != "codex_exec" || r.Header.Get("Session-Id") == "" {
					t.Errorf("the provider got the headers %v", r.Header)
				}
				if strings.Contains(string(r.Body), `"web_search"`) {
					t.Errorf("the provider got the tool that it would run: %s", r.Member(t, "tools"))
				}
			}
			if n := s.log.Count("status=426"); n > 2 {
				t.Errorf("Codex asked for a WebSocket %d times:\n%s", n, s.log)
			}
			waittest.Eventually(t, 10*time.Second, func() error {
				if got, want := tokensLeft(t, key), balance-len(requests)*(input+output); got != want {
					return fmt.Errorf("%d tokens are left, want %d", got, want)
				}
				return nil
			})
		})
	}
}

// Codex tells its user that the balance is spent, and ends at once.
func TestIntegrationCodexErrors(t *testing.T) {
	own, custom := codexConfigs(t)
	for name, config := range map[string]string{"own provider": own, "custom provider": custom} {
		t.Run(name, func(t *testing.T) {
			p := providertest.New(t)
			s := newService(t, "ACCESS_LOG=true")
			tenant := anyModelTenant(t, p, 100)
			key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
			began := time.Now()
			out, err := codex(t, s, tenant, key, config, "gpt-6-luna")
			if err == nil || !strings.Contains(out, "Quota exceeded") || strings.Contains(out, "Reconnecting") {
				t.Errorf("%v: got %q", err, out)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			if n := s.log.Count("[INFO] POST /{tenantId}/v1/responses tenant=" + tenant + " status=429 "); n != 1 {
				t.Errorf("the log has %d requests, want 1:\n%s", n, s.log)
			}
			if n := len(p.Requests()); n != 0 {
				t.Errorf("the provider got %d requests, want none", n)
			}
		})
	}
}

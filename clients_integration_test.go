//go:build integration

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// anyModelTenant creates a tenant whose group pro has that many tokens, and whose endpoints are p for every model, one of
// each format.
func anyModelTenant(t *testing.T, p *providertest.Provider, tokens int) string {
	t.Helper()
	kind := func(name string, paths ...string) string {
		all := make([]string, len(paths))
		for i, path := range paths {
			all[i] = endpointJSON(p, fmt.Sprintf("%s-%d", name, i), path, `,"bytes_per_token":3,"server_tools":"drop","image_tokens":100`)
		}
		return fmt.Sprintf(`%q:{"endpoints":{%s}}`, name, strings.Join(all, ","))
	}
	return newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":%d}},"providers":{%s}}`, tokens, strings.Join([]string{
		kind("text", chatPath, responsesRoute, messagesPath), kind("embeddings", "/v1/embeddings"),
		kind("images", "/v1/images/generations"), kind("transcription", "/v1/audio/transcriptions"),
		kind("speech", "/v1/audio/speech"),
	}, ",")))
}

// wantAgent checks that the provider has got requests for model, and who sent them.
func wantAgent(t *testing.T, p *providertest.Provider, model, pattern string) {
	t.Helper()
	found := false
	for _, r := range p.Requests() {
		if r.Model != model {
			continue
		}
		found = true
		if agent := r.Header.Get("User-Agent"); !regexp.MustCompile(pattern).MatchString(agent) {
			t.Errorf("%s: the provider got the User-Agent %q, want %s", model, agent, pattern)
		}
	}
	if !found {
		t.Errorf("%s: the provider got no request", model)
	}
}

// The clients that many programs use instead of the official SDKs work, are charged what the provider reports, and say
// to it who they are.
func TestIntegrationClients(t *testing.T) {
	script := compileCalls(t, "clients")
	p := providertest.New(t)
	s := newService(t)
	tenant := anyModelTenant(t, p, 5000)
	const (
		once      = `"returned":{"content":"word ünd ","usage":18}`
		streamed  = `"returned":{"content":"word ünd word ünd word ünd ","usage":18}`
		withTool  = `"returned":{"content":"word ünd ","usage":36}`
		vercel    = `^ai/6\.\d.* ai-sdk/`
		langchain = `^langchainjs-openai/`
		agents    = `^Agents/JavaScript 0\.`
		vector    = `[0.25,-0.5,1]`
	)
	tests := []struct {
		kind, agent, want string
		charged           int
	}{
		{"compatible", vercel, once, 18},
		{"compatibleStream", `^ai-sdk/openai-compatible/2\.`, strings.Replace(streamed, `,"usage":18`, "", 1), 18},
		{"compatibleTools", vercel, withTool, 36},
		{"anthropic", vercel, once, 18},
		{"anthropicStream", `^ai-sdk/anthropic/3\.`, streamed, 18},
		{"anthropicTools", vercel, withTool, 36},
		{"langchain", langchain, once, 18},
		{"langchainStream", langchain, streamed, 18},
		{"langchainTools", langchain,
			`"returned":{"tool":{"name":"weather","args":{"city":"Zürich"},"type":"tool_call","id":"call_1"},"usage":18}`, 18},

		{"openai", vercel, once, 18},
		{"openaiStream", `^ai-sdk/openai/3\.`, streamed, 18},
		{"openaiTools", vercel, withTool, 36},
		{"openaiTurns", vercel, `"returned":{"content":"word ünd ","usage":[18,25]}`, 18 + 25}, // it refers to the first response
		{"openaiEmbed", vercel, `"returned":{"embedding":` + vector + `,"usage":11}`, 11},
		{"openaiTranscribe", vercel, `"returned":"word ünd "`, 18},
		{"openaiSpeech", vercel, `"returned":{"type":"audio/mpeg","bytes":18}`, len([]rune("How is the weather in Zürich?"))},
		{"openaiImage", vercel, `"returned":["iVBORw0KGgoA"]`, 18},
		{"agents", agents, withTool, 36},
		{"agentsStream", agents, strings.Replace(streamed, "18", "36", 1), 36},
		{"langchainResponses", langchain, once, 18},
		{"langchainEmbedQuery", langchain, `"returned":` + vector, 11},
		{"langchainEmbedDocuments", langchain, `"returned":[` + vector + `,` + vector + `]`, 11},
	}
	var calls []sdkCall
	for _, test := range tests {
		calls = append(calls, sdkCall{Name: test.kind, Model: test.kind, BaseURL: s.url + "/" + tenant,
			Key: s.issue(t, tenant, `"userId":"u-1","group":"pro"`), want: test.want, charged: test.charged})
	}
	runSDK(t, script, calls)
	for i, test := range tests {
		wantCharged(t, calls[i])
		wantAgent(t, p, test.kind, test.agent)
	}
}

// agent runs an agent of sdkDir until it ends, in an empty directory, with nothing of this machine's environment but
// env, and returns what it wrote.
func agent(t *testing.T, env, command []string) (output string, err error) {
	t.Helper()
	nodeModules(t)
	path, err := filepath.Abs(filepath.Join(sdkDir, "node_modules/.bin", command[0]))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, command[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s does not end:\n%s", command[0], out)
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("`make integration` installs %s: %v", command[0], err)
	}
	return string(out), err
}

const agentQuestion = "How is the weather in Zürich?"

// claude runs Claude Code with a question. credential is the variable with the key.
func claude(t *testing.T, s *service, tenant, credential, model string) (output string, err error) {
	t.Helper()
	return agent(t, []string{
		"HOME=" + t.TempDir(), "ANTHROPIC_BASE_URL=" + s.url + "/" + tenant, credential,
		"ANTHROPIC_MODEL=" + model, "ANTHROPIC_DEFAULT_HAIKU_MODEL=" + model,
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "DISABLE_TELEMETRY=1", "DISABLE_ERROR_REPORTING=1", "DISABLE_AUTOUPDATER=1",
	}, []string{"claude", "-p", agentQuestion})
}

// Claude Code, which sends 50 KB and asks for 128,000 output tokens, works with a balance of 60,000, and each of its
// requests is charged what the provider reports.
func TestIntegrationClaudeCode(t *testing.T) {
	const model, input, output, balance = "claude-sonnet-5-5", 12_600, 321, 60_000
	p := providertest.New(t)
	p.On(model, providertest.Conduct{Input: input, Output: output})
	s := newService(t)
	tenant := anyModelTenant(t, p, balance)
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	out, err := claude(t, s, tenant, "ANTHROPIC_AUTH_TOKEN="+key, model)
	if err != nil || !strings.Contains(out, "word ünd word ünd word ünd") {
		t.Errorf("%v\n%s", err, out)
	}
	wantAgent(t, p, model, `^claude-cli/2\.`)
	requests := len(p.Requests())
	if requests != 2 { // the first is responded to with a call of a tool
		t.Errorf("the provider got %d requests, want 2", requests)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if got, want := tokensLeft(t, key), balance-requests*(input+output); got != want {
			return fmt.Errorf("%d tokens are left, want %d", got, want)
		}
		return nil
	})
}

// Claude Code tells its user what is wrong, and does not repeat what cannot succeed.
func TestIntegrationClaudeCodeErrors(t *testing.T) {
	p := providertest.New(t)
	s := newService(t, "ACCESS_LOG=true")
	tenant := anyModelTenant(t, p, 100)
	poor := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	for name, test := range map[string]struct {
		key    string
		status int
		want   string
	}{
		"no such key": {someKey, 401, "API Error: 401"},
		"no balance":  {poor, 402, "API Error: 402 The request needs"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := claude(t, s, tenant, "ANTHROPIC_API_KEY="+test.key, "claude-sonnet-5-5")
			if err == nil || !strings.Contains(out, test.want) {
				t.Errorf("%v: got %q, want %q in it", err, out, test.want)
			}
			line := fmt.Sprintf("[INFO] POST /{tenantId}/v1/messages tenant=%s status=%d ", tenant, test.status)
			if n := s.log.Count(line); n != 1 {
				t.Errorf("the log has %q %d times, want 1:\n%s", line, n, s.log)
			}
		})
	}
	if n := len(p.Requests()); n != 0 {
		t.Errorf("the provider got %d requests, want none", n)
	}
}

//go:build integration

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

const sdkDir = "testdata/sdk"

// nodeModules checks that Node.js and the clients of testdata/sdk are installed.
func nodeModules(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("the official SDKs run on Node.js (`make integration` installs it): %v", err)
	}
	var manifest struct{ Dependencies, DevDependencies map[string]string }
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(sdkDir, "package.json"))), &manifest); err != nil {
		t.Fatal(err)
	}
	for _, modules := range []map[string]string{manifest.Dependencies, manifest.DevDependencies} {
		for module := range modules {
			if _, err := os.Stat(filepath.Join(sdkDir, "node_modules", module)); err != nil {
				t.Fatalf("`make integration` installs the clients: %v", err)
			}
		}
	}
}

// compile translates TypeScript files, with the types of the SDKs, and returns the directory with the JavaScript.
func compile(t *testing.T, files ...string) string {
	t.Helper()
	nodeModules(t)
	dir, err := os.MkdirTemp(sdkDir, "build-") // where Node.js finds the SDKs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if dir, err = filepath.Abs(dir); err != nil {
		t.Fatal(err)
	}
	var config struct {
		CompilerOptions map[string]any `json:"compilerOptions"`
		Files           []string       `json:"files"`
	}
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(sdkDir, "tsconfig.json"))), &config); err != nil {
		t.Fatal(err)
	}
	config.Files = nil
	for _, file := range files { // copied, so that their imports are found
		name := filepath.Base(file)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(readFile(t, file)), 0o600); err != nil {
			t.Fatal(err)
		}
		config.Files = append(config.Files, name)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tsconfig.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	compiler, err := filepath.Abs(filepath.Join(sdkDir, "node_modules/typescript/bin/tsc"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("node", compiler, "-p", dir).CombinedOutput(); err != nil {
		t.Fatalf("tsc: %v\n%s", err, out)
	}
	return dir
}

// compileCalls compiles one of the programs of testdata/sdk that make calls, with what else it imports, and returns its
// path.
func compileCalls(t *testing.T, name string, imports ...string) string {
	t.Helper()
	var files []string
	for _, file := range append(imports, name, "run") {
		files = append(files, filepath.Join(sdkDir, file+".ts"))
	}
	return filepath.Join(compile(t, files...), name+".js")
}

// sdkCall is a call with a client. The first word of its name says which; calls.ts and clients.ts of testdata/sdk have
// them.
type sdkCall struct {
	Name      string `json:"name"`
	BaseURL   string `json:"baseURL"`
	Key       string `json:"key"`
	Model     string `json:"model"`
	Prompt    string `json:"prompt,omitempty"`
	MaxTokens int    `json:"maxTokens,omitempty"`
	Retries   int    `json:"retries,omitempty"`

	want    string // JSON of what is returned or thrown; … stands for any text
	charged int
}

// nodeCommand returns the command that makes the calls that input has.
func nodeCommand(ctx context.Context, script string, input []byte) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Stdin = bytes.NewReader(input)
	return cmd
}

// runSDK makes the calls, in that environment, and checks what came back.
func runSDK(t *testing.T, script string, calls []sdkCall, env ...string) {
	t.Helper()
	input, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := nodeCommand(ctx, script, input)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH")) // without proxies, and without what would have a client report calls
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, &stderr)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(calls) {
		t.Fatalf("%d calls, %d results:\n%s", len(calls), len(lines), out)
	}
	for i, call := range calls {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(call.want), "…", ".*")
		want := regexp.MustCompile(`^\{"name":"` + regexp.QuoteMeta(call.Name) + `",` + pattern + `\}$`)
		if !want.MatchString(lines[i]) {
			t.Errorf("got  %s\nwant %s", lines[i], call.want)
		}
	}
}

// sdkTenant creates a tenant whose providers are p, with a group for each thing that can go wrong.
func sdkTenant(t *testing.T, p *providertest.Provider) string {
	t.Helper()
	return newTenantIn(t, testRedis, fmt.Sprintf(`{
		"user_groups": {"pro": {"tokens": 5000}, "poor": {"tokens": 20}, "slow": {"tokens": 5000, "rate_limit": 1, "rate_limit_window": 60}},
		"providers": {"text": {"default": "openai", "endpoints": {
			"openai": {"url": "%[1]s/v1/chat/completions", "api_key": "%[2]s", "default_model": "gpt-4o",
				"models": {"gpt-4o-mini": {"input": 0.5, "output": 2}, "busy": {}, "cut": {}, "error": {}, "mute": {"reasoning": false}, "once": {}}},
			"anthropic": {"url": "%[1]s/v1/messages", "api_key": "%[2]s", "default_model": "claude-opus-4-1",
				"models": {"busy": {}, "cut": {}, "error": {}, "mute": {"reasoning": false}}},
			"gone": {"url": "http://127.0.0.1:1/v1/chat/completions", "default_model": "gone"}
		}}}}`, p.URL, providertest.Key))
}

// The official SDKs do all that they do with the real providers, and each call is charged exactly.
func TestIntegrationSDK(t *testing.T) {
	script := compileCalls(t, "calls")
	p := providertest.New(t)
	p.On("busy", providertest.Conduct{Piece: 1, LineEnd: "\r\n", Prefix: "data:"})
	p.On("cut", providertest.Conduct{Content: strings.Repeat("x", 1<<20)})
	s := newService(t)
	tenant := sdkTenant(t, p)
	const (
		words    = `"word ünd word ünd word ünd "`
		textPart = `[{"type":"text","text":`
		toolUsed = `"reason":"tool_use","content":[{"type":"text","text":"word ünd "}]}`
		models   = `"gpt-4o","gpt-4o-mini","busy","cut","error","mute","once"`
	)
	calls := []sdkCall{
		{Name: "chat", want: `"returned":{"content":"word ünd ","reason":"stop","usage":18,"charged":"18","left":"4982"}`, charged: 18},
		{Name: "chat at a price", Model: "gpt-4o-mini", want: `"returned":{…,"usage":18,"charged":"20","left":"4980"}`, charged: 20},
		{Name: "chat with a limit", MaxTokens: 3, want: `"returned":{…"reason":"length","usage":14,"charged":"14",…}`, charged: 14},
		{Name: "chatStream", want: `"returned":{"content":` + words + `,"usage":0}`, charged: 18},
		{Name: "chatStreamUsage", want: `"returned":{"content":` + words + `,"usage":18}`, charged: 18},
		{Name: "chatStreamHelper", want: `"returned":{"content":` + words + `,"reason":"stop"}`, charged: 18},
		{Name: "chatStreamBreak", want: `"returned":{"reason":"stop"}`, charged: 18},
		{Name: "chatTools", want: `"returned":{"tool":"weather","arguments":"{\"city\":\"Zürich\"}","reason":"tool_calls","content":"word ünd "}`,
			charged: 36},
		{Name: "chatToolsStream", want: `"returned":{"tool":"weather","arguments":"{\"city\":\"Zürich\"}"}`, charged: 18},
		{Name: "chatStream in pieces", Model: "busy", want: `"returned":{"content":` + words + `,"usage":0}`, charged: 18},
		{Name: "chatStream of megabytes", Model: "cut", want: `"returned":{"content":"x…x","usage":0}`, charged: 18},
		{Name: "chatImage", want: `"returned":["stop","stop"]`, charged: 18},
		{Name: "chatPlain", want: `"returned":"stop"`, charged: 18},
		{Name: "chat at an endpoint", Model: "openai/gpt-4o", want: `"returned":{"content":"word ünd ",…}`, charged: 18},
		{Name: "models", want: `"returned":[` + models + `…]`},
		{Name: "model", want: `"returned":"gpt-4o"`},
		{Name: "message", Model: "claude-opus-4-1", charged: 18,
			want: `"returned":{"content":` + textPart + `"word ünd "}],"reason":"end_turn","output":7,"charged":"18","left":"4982"}`},
		{Name: "messageEvents", Model: "claude-opus-4-1", charged: 18, want: `"returned":["message_start",…"content_block_start",` +
			`"content_block_delta","content_block_stop","message_delta","message_stop"]`},
		{Name: "messageStream", Model: "claude-opus-4-1", charged: 18,
			want: `"returned":{"content":` + textPart + words + `}],"reason":"end_turn","output":7}`},
		{Name: "messageStream in pieces", Model: "busy", charged: 18,
			want: `"returned":{"content":` + textPart + words + `}],"reason":"end_turn","output":7}`},
		{Name: "messageStream of megabytes", Model: "cut", want: `"returned":{…,"reason":"end_turn","output":7}`, charged: 18},
		{Name: "messageTwoCredentials", Model: "claude-opus-4-1", want: `"returned":"end_turn"`, charged: 18},
		{Name: "messageBeta", Model: "claude-opus-4-1", want: `"returned":{"reason":"end_turn"}`, charged: 18},
		{Name: "messageTools", Model: "claude-opus-4-1", charged: 36,
			want: `"returned":{"tool":"weather","input":{"city":"Zürich"},` + toolUsed},
		{Name: "messageToolsStream", Model: "claude-opus-4-1", charged: 18,
			want: `"returned":{"tool":"weather","input":{"city":"Zürich"}}`},
		{Name: "messageToolRunner", Model: "claude-opus-4-1", charged: 36,
			want: `"returned":{"statuses":[400,200,200],"content":` + textPart + `"word ünd "}]}`},
		{Name: "countTokens", Model: "claude-opus-4-1", want: `"returned":11`},
		{Name: "messageModels", Model: "claude-opus-4-1", want: `"returned":["claude-opus-4-1","busy","cut","error","mute"]`},
		{Name: "messageModel", Model: "claude-opus-4-1", want: `"returned":"claude-opus-4-1"`},
	}
	for i := range calls {
		calls[i].Key = s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
		calls[i].BaseURL = s.url + "/" + tenant
		if calls[i].Model == "" {
			calls[i].Model = "gpt-4o"
		}
	}
	runSDK(t, script, calls)
	for _, call := range calls {
		wantCharged(t, call)
	}
	wantAgent(t, p, "gpt-4o", `^OpenAI/JS 6\.`)
	wantAgent(t, p, "claude-opus-4-1", `^Anthropic/JS 1\.`)
}

// wantCharged waits until the balance of the call's key, which was 5,000, shows what the call costs.
func wantCharged(t *testing.T, call sdkCall) {
	t.Helper()
	waittest.Eventually(t, 10*time.Second, func() error {
		if left := tokensLeft(t, call.Key); left != 5000-call.charged {
			return fmt.Errorf("%s: %d tokens are left, want %d", call.Name, left, 5000-call.charged)
		}
		return nil
	})
}

// A program that cancels a stream of a model without reasoning pays for what was generated until then, and the provider
// stops.
func TestIntegrationSDKAbort(t *testing.T) {
	script := compileCalls(t, "calls")
	p := providertest.New(t)
	p.On("mute", providertest.Conduct{Events: 4, Pause: 100 * time.Millisecond, Hang: providertest.BeforeUsage})
	s := newService(t)
	tenant := sdkTenant(t, p)
	calls := []sdkCall{
		{Name: "chatStreamAbort", want: `"returned":"the loop ended"`},
		{Name: "messageStreamAbort", want: `"threw":"APIUserAbortError",…`},
	}
	for i := range calls {
		calls[i].Model, calls[i].BaseURL = "mute", s.url+"/"+tenant
		calls[i].Key = s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	}
	runSDK(t, script, calls)
	waittest.Eventually(t, 30*time.Second, func() error {
		if open, cancelled := p.Counts(); open != 0 || cancelled != len(calls) {
			return fmt.Errorf("%d requests are open, %d were cancelled", open, cancelled)
		}
		return nil
	})
	for _, call := range calls {
		const input, mostOutput = 10, 50
		waittest.Eventually(t, 30*time.Second, func() error {
			if left := tokensLeft(t, call.Key); left > 5000-input || left < 5000-4*input-mostOutput {
				return fmt.Errorf("%s: %d of 5000 tokens are left", call.Name, left)
			}
			return nil
		})
	}
}

// Each error reaches a program as the class that the SDK has for it.
func TestIntegrationSDKErrors(t *testing.T) {
	script := compileCalls(t, "calls")
	p := providertest.New(t)
	conducts := map[string]providertest.Conduct{
		"busy": providertest.Refuse(429, "Retry-After: 7"), "cut": {Cut: providertest.InContent},
		"error": {Error: providertest.InContent}, "mute": {Hang: providertest.BeforeHeaders},
	}
	var once sync.Once
	p.Each(func(r providertest.Request) providertest.Conduct {
		c := conducts[r.Model]
		if r.Model == "once" {
			once.Do(func() { c = providertest.Refuse(500) })
		}
		return c
	})
	s := newService(t, "MAX_GATEWAY_BODY=20000", "PROVIDER_TIMEOUT=500ms")
	tenant := sdkTenant(t, p)
	pro := func() string { return s.issue(t, tenant, `"userId":"u-1","group":"pro"`) }
	slow := s.issue(t, tenant, `"userId":"u-1","group":"slow"`)
	s.consume(t, tenant, slow, "").want(t, 200, "")
	homeless := pro()
	testRedis.Do(t, "HSET", "apiKey:"+homeless, "group", "removed")
	openAI := func(class string, status int, kind, code, message string) string {
		return fmt.Sprintf(`"threw":"%s","status":%d,"code":%s,"type":"%s","message":"%d %s"…`, class, status, code, kind, status, message)
	}
	anthropic := func(class string, status int, kind, message string) string {
		return fmt.Sprintf(`"threw":"%s","status":%d,"type":"%s","message":"%d {\"type\":\"error\",\"error\":{\"type\":\"%[3]s\",`+
			`\"message\":\"%[5]s\"}…}"…`, class, status, kind, status, message)
	}
	const (
		invalid = "invalid_request_error"
		claude  = "claude-opus-4-1"
	)
	long := strings.Repeat("long ", 5000)
	calls := []sdkCall{
		{Name: "chat 400", Key: pro(), BaseURL: "/none", want: openAI("BadRequestError", 400, invalid, `…`, "…")},
		{Name: "chat 401", Key: someKey, want: openAI("AuthenticationError", 401, invalid, `"invalid_api_key"`, "…")},
		{Name: "chat 402", Key: s.issue(t, tenant, `"userId":"u-1","group":"poor"`),
			want: openAI("APIError", 402, "insufficient_quota", `"insufficient_quota"`, "…")},
		{Name: "chat 403", Key: homeless, want: openAI("PermissionDeniedError", 403, invalid, `"key_disabled"`, "…")},
		{Name: "chat 404", Key: pro(), Model: "other", want: openAI("NotFoundError", 404, invalid, `"model_not_found"`, "…")},
		{Name: "chat 413", Key: pro(), Prompt: long, want: openAI("APIError", 413, invalid, `…`, "…")},
		{Name: "chat 429", Key: slow, want: openAI("RateLimitError", 429, "rate_limit_error", `"rate_limit_exceeded"`, "…") + `"retryAfter":"…"`},
		{Name: "chat 429 of the provider", Key: pro(), Model: "busy",
			want: openAI("RateLimitError", 429, "requests", "null", "The provider refuses.") + `"retryAfter":"7"`},
		{Name: "chat 502", Key: pro(), Model: "gone", want: openAI("InternalServerError", 502, "api_error", "…", "…")},
		{Name: "chat 504", Key: pro(), Model: "mute", Retries: 2, want: openAI("InternalServerError", 504, "api_error", "…", "…")},
		{Name: "chat after a retry", Key: pro(), Model: "once", Retries: 2, want: `"returned":{…"charged":"18",…}`},
		{Name: "chatStream that is cut", Key: pro(), Model: "cut", want: `"threw":"APIError",…`},
		{Name: "chatStream with an error", Key: pro(), Model: "error", want: `"threw":"APIError",…"The provider gives up."…`},
		{Name: "model 404", Key: pro(), Model: "other", want: openAI("NotFoundError", 404, invalid, `"model_not_found"`, "…")},
		{Name: "responses 404", Key: pro(), want: openAI("NotFoundError", 404, invalid, "…", "…")},

		{Name: "message 400", Key: pro(), BaseURL: "/none", Model: claude, want: anthropic("BadRequestError", 400, invalid, "…")},
		{Name: "message 401", Key: someKey, Model: claude, want: anthropic("AuthenticationError", 401, "authentication_error", "…")},
		{Name: "message 402", Key: s.issue(t, tenant, `"userId":"u-1","group":"poor"`), Model: claude,
			want: anthropic("PaymentRequiredError", 402, "billing_error", "…")},
		{Name: "message 403", Key: homeless, Model: claude, want: anthropic("PermissionDeniedError", 403, "permission_error", "…")},
		{Name: "message 404", Key: pro(), Model: "other", want: anthropic("NotFoundError", 404, "not_found_error", "…")},
		{Name: "message 413", Key: pro(), Model: claude, Prompt: long, want: anthropic("ContentTooLargeError", 413, "request_too_large", "…")},
		{Name: "message 429", Key: slow, Model: claude, want: anthropic("RateLimitError", 429, "rate_limit_error", "…") + `"retryAfter":"…"`},
		{Name: "message 429 of the provider", Key: pro(), Model: "busy",
			want: anthropic("RateLimitError", 429, "rate_limit_error", "The provider refuses.") + `"retryAfter":"7"`},
		{Name: "message 504", Key: pro(), Model: "anthropic/mute", Retries: 2,
			want: anthropic("GatewayTimeoutError", 504, "api_error", "…")},
		{Name: "messageStream that is cut", Key: pro(), Model: "cut", want: `"threw":"APIError",…`},
		{Name: "messageStream with an error", Key: pro(), Model: "error", want: `"threw":"APIError",…The provider gives up.…`},
		{Name: "countTokens 401", Key: someKey, Model: claude, want: anthropic("AuthenticationError", 401, "authentication_error", "…")},
	}
	for i := range calls {
		if calls[i].BaseURL == "" {
			calls[i].BaseURL = "/" + tenant
		}
		calls[i].BaseURL = s.url + calls[i].BaseURL
		if calls[i].Model == "" {
			calls[i].Model = "gpt-4o"
		}
	}
	runSDK(t, script, calls)
	mute := 0
	for _, r := range p.Requests() {
		if r.Model == "mute" {
			mute++
		}
	}
	if mute != 2 {
		t.Errorf("2 calls that the provider may have begun were sent %d times", mute)
	}
}

// While Redis does not respond, the SDKs throw what makes them try again.
func TestIntegrationSDKWithoutRedis(t *testing.T) {
	script := compileCalls(t, "calls")
	r, p := redistest.New(t), providertest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	tenant := newTenantIn(t, r, fmt.Sprintf(`{"user_groups":{"pro":{"tokens":5000}},"providers":{"text":{"default":"openai","endpoints":{
		"openai":{"url":"%[1]s/v1/chat/completions","default_model":"gpt-4o"},
		"anthropic":{"url":"%[1]s/v1/messages","default_model":"claude-opus-4-1"}}}}}`, p.URL))
	key := s.issue(t, tenant, `"userId":"u-1","group":"pro"`)
	base := s.url + "/" + tenant
	runSDK(t, script, []sdkCall{{Name: "chat", BaseURL: base, Key: key, Model: "gpt-4o", want: `"returned":{…}`}})
	r.Kill()
	runSDK(t, script, []sdkCall{
		{Name: "chat", BaseURL: base, Key: key, Model: "gpt-4o",
			want: `"threw":"InternalServerError","status":503,…"type":"api_error",…"retryAfter":"1"`},
		{Name: "message", BaseURL: base, Key: key, Model: "claude-opus-4-1",
			want: `"threw":"…","status":503,"type":"overloaded_error",…"retryAfter":"1"`},
	})
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
}

// The back ends of docs/examples charge what their model reports, and nothing if it fails.
func TestIntegrationOwnBackend(t *testing.T) {
	script := filepath.Join(compile(t, "docs/examples/own-backend.ts"), "own-backend.js")
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("an example is in Python (`make integration` installs it): %v", err)
	}
	for name, command := range map[string][]string{
		"Python":     {python, "docs/examples/own_backend.py"},
		"TypeScript": {"node", script},
	} {
		t.Run(name, func(t *testing.T) {
			p := providertest.New(t)
			s := newService(t)
			tenant := newTenant(t, 650)
			backend := startBackend(t, command, append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "TOLLGATE="+s.url+"/"+tenant,
				"MODEL_URL="+p.URL+"/v1/chat/completions", "MODEL=gpt-4o-mini", "MODEL_KEY="+providertest.Key))
			key := s.login(t, tenant)
			post := func(path, body, key string, status int, want string) {
				t.Helper()
				got := backend.do(t, "POST", path, body, bearer(key))
				if text := strings.ReplaceAll(got.body, `": `, `":`); got.status != status || !strings.Contains(text, want) {
					t.Errorf("POST %s: got %d %s, want %d %s", path, got.status, got.body, status, want)
				}
			}
			post("/ask", "How?", someKey, 401, `"error":"Unauthorized"`)
			post("/ask", "How?", key, 200, `"tokensLeft":632`)
			if got := p.Last(t).Member(t, "max_completion_tokens"); got != "500" {
				t.Errorf("the model got the limit %s", got)
			}
			p.On("", providertest.Refuse(500))
			post("/ask", "How?", key, 502, `"error":"The model does not respond"`)
			post("/ask", "How? "+strings.Repeat("x", 100), key, 402, `"tokensLeft":632`) // needs more than that
			if n := len(p.Requests()); n != 2 {
				t.Errorf("%d requests came to the model, want 2", n)
			}
			post("/count", "one two  three", key, 200, `"tokensLeft":629`)
			post("/count", strings.Repeat("word ", 700), key, 200, `"charged":629`)
			post("/count", "one", key, 402, `"tokensLeft":0`)
			post("/count", strings.Repeat("word ", 5000), key, 413, "")
			post("/other", "", key, 404, "")
		})
	}
}

// startBackend starts an example on a free port and waits until it listens.
func startBackend(t *testing.T, command, env []string) *service {
	t.Helper()
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	out := new(telemetrytest.Log)
	cmd := exec.Command(command[0], append(command[1:], fmt.Sprint(port))...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	done := start(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%s", out)
		}
	})
	return &service{url: "http://127.0.0.1:" + out.Wait(t, "listening on ", done)}
}

// The programs in the docs work as they are.
func TestIntegrationDocPrograms(t *testing.T) {
	p := providertest.New(t)
	s := newService(t)
	tenant := anyModelTenant(t, p, 50000)
	key := s.issue(t, tenant, `"userId":"u-42","group":"pro"`)
	fill := strings.NewReplacer("http://localhost:8080/acme", s.url+"/"+tenant, "user_…", key)
	dir := t.TempDir()
	var programs []string
	for _, page := range []string{"docs/gateway.md", "docs/clients.md"} {
		for _, block := range docBlocks(t, page) {
			switch block.language {
			case "typescript":
				file := filepath.Join(dir, fmt.Sprintf("%s-%d.ts", filepath.Base(page), block.line))
				if err := os.WriteFile(file, []byte(fill.Replace(block.text)), 0o600); err != nil {
					t.Fatal(err)
				}
				programs = append(programs, file)
			case "python": // its packages are not installed
				cmd := exec.Command("python3", "-c", "import ast, sys; ast.parse(sys.stdin.read())")
				cmd.Stdin = strings.NewReader(block.text)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s:%d: %v\n%s", page, block.line, err, out)
				}
			}
		}
	}
	if len(programs) != 5 {
		t.Fatalf("the docs have %d programs in TypeScript", len(programs))
	}
	built := compile(t, programs...)
	for _, program := range programs {
		script := strings.TrimSuffix(filepath.Base(program), ".ts") + ".js"
		out, err := exec.Command("node", filepath.Join(built, script)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "word ünd ") {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		const each = providertest.InputTokens + providertest.OutputTokens
		if left, want := tokensLeft(t, key), 50000-len(p.Requests())*each; left != want {
			return fmt.Errorf("%d tokens are left, want %d", left, want)
		}
		return nil
	})
	if n := len(p.Requests()); n != 6 {
		t.Errorf("the provider got %d requests, want 6", n)
	}
}

// The docs name no model that its provider retires: those that Anthropic's SDK warns of.
func TestIntegrationDocsModels(t *testing.T) {
	nodeModules(t)
	const list = "node_modules/@anthropic-ai/sdk/internal/data/deprecated-models.js"
	retired := regexp.MustCompile(`'([^']+)': '`).FindAllStringSubmatch(readFile(t, filepath.Join(sdkDir, list)), -1)
	if len(retired) == 0 {
		t.Fatalf("%s names no model", list)
	}
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/examples/*.*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, model := range retired {
				if strings.Contains(readFile(t, file), model[1]) {
					t.Errorf("%s names %s", file, model[1])
				}
			}
		}
	}
}

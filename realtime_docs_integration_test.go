//go:build integration

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

const realtimePage = "docs/realtime.md"

// The prices of realtimeDocsConfig, as the config and as providertest has them.
var realtimeDocsPrices = map[string]int64{
	"input": 1, "cached_input": 1, "output": 4, "audio_input": 8, "cached_audio_input": 1, "audio_output": 16,
}

// realtimeDocsConfig is the config of a tenant whose sessions go to r. Pages of origin may log in.
func realtimeDocsConfig(r *providertest.Realtime, origin string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"cors":{"allowed_origins":[%q]},"providers":{"realtime":{
		"endpoints":{"openai":{"url":%q,"model":"gpt-realtime","api_key":%q,"models":{"gpt-realtime":{"input":1,"cached_input":1,
		"output":4,"audio_input":8,"cached_audio_input":1,"audio_output":16}}}}}}}`, realtimeTokens, origin, r.URL, providertest.Key)
}

// wantRealtimeCharged waits until keys have paid for all that r has reported.
func wantRealtimeCharged(t *testing.T, r *providertest.Realtime, sessions int, keys ...string) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		got, want := 0, int64(0)
		for _, key := range keys {
			got += realtimeTokens - tokensLeft(t, key)
		}
		usages := r.Usages()
		for _, u := range usages {
			want += u.Cost(realtimeDocsPrices, nil)
		}
		if len(usages) != sessions || int64(got) != want {
			return fmt.Errorf("%d tokens were charged, want %d for %+v", got, want, usages)
		}
		return nil
	})
}

// newWrittenRealtime returns a server that responds with a text.
func newWrittenRealtime(t *testing.T) *providertest.Realtime {
	t.Helper()
	r := providertest.NewRealtime(t)
	r.On(providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Text: "word ünd "}})
	return r
}

// pageDriver presses the button of the page in docs/realtime.md as soon as it can be pressed, and reports the answer.
const pageDriver = `<script type="module">
const until = async (condition) => { while (!condition()) await new Promise((wake) => setTimeout(wake, 10)); };
const [button, output] = [document.querySelector("button"), document.querySelector("pre")];
await until(() => !button.disabled || output.textContent);
button.click();
await until(() => output.textContent.endsWith("\n"));
await fetch("/report", { method: "POST", body: output.textContent });
</script>`

// The page in docs/realtime.md shows the answer in a real browser, and its visitor pays for it.
func TestIntegrationRealtimePage(t *testing.T) {
	blocks := slices.DeleteFunc(docBlocks(t, realtimePage), func(b docBlock) bool { return b.language != "html" })
	if len(blocks) != 1 {
		t.Fatalf("%s has %d pages", realtimePage, len(blocks))
	}
	r, s := newWrittenRealtime(t), newService(t)
	tenant := newTenantID()
	page := strings.Replace(blocks[0].text, "http://localhost:8080/voice", s.url+"/"+tenant, 1) + pageDriver
	origin, reports := servePage(t, page)
	testRedis.Do(t, "SET", "tenant:"+tenant+":config", realtimeDocsConfig(r, origin))
	if got, want := string(browse(t, origin, reports)), strings.Repeat("word ünd ", providertest.Events)+"\n"; got != want {
		t.Errorf("the page shows %q, want %q", got, want)
	}
	session := r.Session(t, 1)
	if got := session.Texts(`"type":"response.create"`); len(got) != 1 {
		t.Errorf("the provider got %q", got)
	}
	if header := fmt.Sprint(session.Request.Header); strings.Contains(header, "insecure") || strings.Contains(header, "localhost:") {
		t.Errorf("the provider got %s", header)
	}
}

// realtimePrograms compiles the programs in docs/realtime.md, and returns their paths.
func realtimePrograms(t *testing.T) (scripts []string) {
	t.Helper()
	dir := t.TempDir()
	var sources []string
	for _, block := range docBlocks(t, realtimePage) {
		if block.language == "typescript" {
			file := filepath.Join(dir, fmt.Sprintf("realtime-%d.ts", block.line))
			if err := os.WriteFile(file, []byte(block.text), 0o600); err != nil {
				t.Fatal(err)
			}
			sources = append(sources, file)
		}
	}
	if len(sources) != 2 {
		t.Fatalf("%s has %d programs", realtimePage, len(sources))
	}
	built := compile(t, sources...)
	for _, source := range sources {
		scripts = append(scripts, filepath.Join(built, strings.TrimSuffix(filepath.Base(source), ".ts")+".js"))
	}
	return scripts
}

// realtimeProxies are the commands that run a proxy in front of a tollgate, as docs/realtime.md has it, at a port of
// localhost.
var realtimeProxies = map[string]func(t *testing.T, port int, certificate, key, tollgate string) *exec.Cmd{
	"nginx": func(t *testing.T, port int, certificate, key, tollgate string) *exec.Cmd {
		return nginxOf(t, recipe(t, realtimePage, "Behind a proxy", "nginx", "listen 443", fmt.Sprintf("listen 127.0.0.1:%d", port),
			"/etc/ssl/tollgate.pem", certificate, "/etc/ssl/tollgate.key", key, "127.0.0.1:8080", tollgate))
	},
	"Caddy": func(t *testing.T, port int, certificate, key, tollgate string) *exec.Cmd {
		return caddyOf(t, recipe(t, realtimePage, "Behind a proxy", "caddyfile", "127.0.0.1:8080", tollgate,
			"tollgate.example.com {", fmt.Sprintf("https://localhost:%d {\n\tbind 127.0.0.1\n\ttls %s %s", port, certificate, key)))
	},
	// The recipe that exposes the gateway serves sessions as it is.
	"Caddy, exposed": func(t *testing.T, port int, certificate, key, tollgate string) *exec.Cmd {
		return caddyOf(t, proxyRecipe(t, "Expose the gateway", "caddyfile", "127.0.0.1:8080", tollgate,
			"tollgate.example.com {", fmt.Sprintf("https://localhost:%d {\n\tbind 127.0.0.1\n\ttls %s %s", port, certificate, key),
			"tollgate-admin.example.com {", "http://localhost:0 {"))
	},
}

// The programs in docs/realtime.md have a session through each proxy with the recipe there, and pay for it.
func TestIntegrationRealtimePrograms(t *testing.T) {
	scripts := realtimePrograms(t)
	s := newService(t)
	for name, command := range realtimeProxies {
		t.Run(name, func(t *testing.T) {
			r := newWrittenRealtime(t)
			tenant := newTenantIn(t, testRedis, realtimeDocsConfig(r, "http://localhost:3000"))
			key := s.login(t, tenant)
			port, err := redistest.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			front := fmt.Sprintf("localhost:%d", port)
			certificate, certificateKey := redistest.NewCertificate(t)
			startProgram(t, command(t, port, certificate, certificateKey, s.address()), fmt.Sprintf("127.0.0.1:%d", port))
			fill := strings.NewReplacer("https://tollgate.example.com/acme", "https://"+front+"/"+tenant,
				"ws://localhost:8080/acme", "wss://"+front+"/"+tenant, "user_…", key)
			for _, script := range scripts {
				filled := strings.TrimSuffix(script, ".js") + "-filled.js"
				if err := os.WriteFile(filled, []byte(fill.Replace(readFile(t, script))), 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, "node", filled)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_EXTRA_CA_CERTS=" + certificate}
				if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "word ünd ") {
					t.Errorf("%s: %v\n%s", filepath.Base(script), err, out)
				}
			}
			wantRealtimeCharged(t, r, len(scripts), key)
		})
	}
}

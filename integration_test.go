//go:build integration

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// These tests run the programs that tollgate works with: `make integration` installs and runs them.

// recipes is the file that has the recipes for forward-auth.
const recipes = "docs/proxies.md"

// program returns the path of a program, without which the test fails.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the integration tests need the real %s (`make integration` installs it): %v", name, err)
	}
	return path
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

func TestIntegrationNginx(t *testing.T) {
	nginx := program(t, "nginx")
	testForwardAuth(t, 3, func(front, tollgate, backend string) *exec.Cmd {
		snippet := recipe(t, "nginx", "listen 8000", "listen "+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
		dir := t.TempDir()
		config := "daemon off;\nmaster_process off;\npid pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"
		for _, temporary := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			config += fmt.Sprintf("%s_temp_path %s/%[1]s;\n", temporary, dir)
		}
		file := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(file, []byte(config+snippet+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command(nginx, "-p", dir, "-c", file)
	})
}

func TestIntegrationCaddy(t *testing.T) {
	caddy := program(t, "caddy")
	// Caddy connects anew for each check whose response it does not forward.
	testForwardAuth(t, 1000, func(front, tollgate, backend string) *exec.Cmd {
		snippet := recipe(t, "caddyfile", ":8000", "http://"+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
		file := filepath.Join(t.TempDir(), "Caddyfile")
		if err := os.WriteFile(file, []byte("{\nadmin off\nauto_https off\n}\n"+snippet), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(caddy, "run", "--adapter", "caddyfile", "--config", file)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		return cmd
	})
}

// recipe returns the recipe in that language, as it is but for the addresses in it.
func recipe(t *testing.T, language string, addresses ...string) string {
	t.Helper()
	text, err := os.ReadFile(recipes)
	if err != nil {
		t.Fatal(err)
	}
	_, snippet, ok := strings.Cut(string(text), "```"+language+"\n")
	snippet, _, ok2 := strings.Cut(snippet, "```")
	if !ok || !ok2 {
		t.Fatalf("%s has no recipe for %s", recipes, language)
	}
	for i := 0; i < len(addresses); i += 2 {
		if !strings.Contains(snippet, addresses[i]) {
			t.Fatalf("the recipe for %s does not name %s", language, addresses[i])
		}
		snippet = strings.ReplaceAll(snippet, addresses[i], addresses[i+1])
	}
	return snippet
}

// echoBackend responds with what reaches it of a request, and with 500 to a header that a proxy must not let through.
func echoBackend(t *testing.T) string {
	t.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name := range r.Header {
			if strings.Contains(name, "_") {
				w.WriteHeader(500)
			}
		}
		fmt.Fprintf(w, "tenant=%s group=%s user=%s left=%s authorization=%s body=%s", r.Header["X-Tenant-Id"], r.Header["X-User-Group"],
			r.Header["X-User-Id"], r.Header["X-Tokens-Left"], r.Header.Get("Authorization"), body)
	}))
	t.Cleanup(backend.Close)
	return strings.TrimPrefix(backend.URL, "http://")
}

// testForwardAuth tests a recipe as it is, with the real proxy that command runs. The proxy may make that many
// connections to tollgate for about 20 checks.
func testForwardAuth(t *testing.T, connections int64, command func(front, tollgate, backend string) *exec.Cmd) {
	r := redistest.New(t)
	s := newService(t, "REDIS_URL="+r.URL())
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	front := fmt.Sprintf("127.0.0.1:%d", port)
	gate := newCountingProxy(t, s.address())
	cmd := command(front, gate.address, echoBackend(t))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s", &out)
		}
	}()
	redistest.Eventually(t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", front)
		if err == nil {
			c.Close()
		}
		return err
	})

	proxy := &service{url: "http://" + front}
	send := func(t *testing.T, status int, pattern, body string, headers ...string) reply {
		t.Helper()
		got := proxy.do(t, "POST", "/some/path?x=1", body, headers...)
		if got.status != status || !regexp.MustCompile(pattern).MatchString(got.body) {
			t.Errorf("got %d %s, want %d %s", got.status, got.body, status, pattern)
		}
		return got
	}
	forged := []string{"X-User-Id: root", "X-Tokens-Left: 999", "X-Tenant-Id: evil", "X-User-Group: evil", "X_User_Id: root"}
	t.Run("a user", func(t *testing.T) {
		const who = `^tenant=\[abc\] group=\[stripe_basic\] user=\[u-42\] `
		key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":2`)
		send(t, 200, who+`left=\[1\] authorization= body=hello$`, "hello", bearer(key))
		send(t, 200, who+`left=\[0\] authorization= body=$`, "", append(forged, bearer(key))...)
		send(t, 402, `"error":"Payment Required"`, "", bearer(key))
	})
	t.Run("nobody", func(t *testing.T) {
		send(t, 401, "", "", bearer(someKey)).wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
		send(t, 401, "", "")
		send(t, 401, "", "", forged...)
	})
	t.Run("an anonymous user", func(t *testing.T) { // who has no ID, whatever the client says
		key := s.login(t, "abc")
		send(t, 200, `^tenant=\[abc\] group=\[anonymous\] user=\[\]  ?left=\[99\]`, "", append(forged, bearer(key))...)
		for range 9 { // the rest of the group's rate
			send(t, 200, "", "", bearer(key))
		}
		limited := send(t, 429, `"error":"Too Many Requests"`, "", bearer(key))
		if limited.header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	})
	if n := gate.accepted.Load(); n > connections {
		t.Errorf("%d connections to tollgate for about 20 checks", n)
	}
}

// countingProxy forwards connections and counts them.
type countingProxy struct {
	address  string
	accepted atomic.Int64
}

func newCountingProxy(t *testing.T, to string) *countingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &countingProxy{address: l.Addr().String()}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			through, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{from, through}, {through, from}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					from.Close()
					through.Close()
				}()
			}
		}
	}()
	return p
}

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
)

// recipe is the README's snippet of that language, as it stands there but for the addresses in it.
func recipe(t *testing.T, language string, addresses ...string) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, snippet, ok := strings.Cut(string(readme), "```"+language+"\n")
	snippet, _, ok2 := strings.Cut(snippet, "```")
	if !ok || !ok2 {
		t.Fatalf("the README has no snippet for %s", language)
	}
	for i := 0; i < len(addresses); i += 2 {
		if !strings.Contains(snippet, addresses[i]) {
			t.Fatalf("the snippet for %s does not name %s", language, addresses[i])
		}
		snippet = strings.ReplaceAll(snippet, addresses[i], addresses[i+1])
	}
	return snippet
}

// countingProxy passes connections on and counts them.
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

// The README's recipes for forward-auth work as they stand, with the real proxies.
func TestForwardAuthRecipes(t *testing.T) {
	proxies := map[string]func(t *testing.T, front, tollgate, backend string) *exec.Cmd{
		"nginx": func(t *testing.T, front, tollgate, backend string) *exec.Cmd {
			snippet := recipe(t, "nginx", "listen 8000", "listen "+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
			dir := t.TempDir()
			config := fmt.Sprintf("daemon off;\nmaster_process off;\npid %[1]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
				"client_body_temp_path %[1]s/b;\nproxy_temp_path %[1]s/p;\nfastcgi_temp_path %[1]s/f;\nuwsgi_temp_path %[1]s/u;\nscgi_temp_path %[1]s/s;\n%[2]s}\n", dir, snippet)
			file := filepath.Join(dir, "nginx.conf")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			return exec.Command("nginx", "-p", dir, "-c", file)
		},
		"caddyfile": func(t *testing.T, front, tollgate, backend string) *exec.Cmd {
			snippet := recipe(t, "caddyfile", ":8000", "http://"+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend)
			file := filepath.Join(t.TempDir(), "Caddyfile")
			if err := os.WriteFile(file, []byte("{\nadmin off\nauto_https off\n}\n"+snippet), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", file)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			return cmd
		},
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name := range r.Header {
			if strings.Contains(name, "_") {
				w.WriteHeader(500)
			}
		}
		fmt.Fprintf(w, "tenant=%s group=%s user=%s left=%s authorization=%s body=%s", r.Header["X-Tenant-Id"], r.Header["X-User-Group"], r.Header["X-User-Id"], r.Header["X-Tokens-Left"], r.Header.Get("Authorization"), body)
	}))
	defer backend.Close()
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	for name, command := range proxies {
		t.Run(name, func(t *testing.T) {
			port, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			front := fmt.Sprintf("127.0.0.1:%d", port)
			gate := newCountingProxy(t, strings.TrimPrefix(s.url, "http://"))
			cmd := command(t, front, gate.address, strings.TrimPrefix(backend.URL, "http://"))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatalf("the recipes are tested with the real proxies (`make tools` installs them): %v", err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if t.Failed() {
					t.Logf("%s", &out)
				}
			}()
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if c, err := net.Dial("tcp", front); err == nil {
					c.Close()
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the proxy does not listen")
				}
			}
			proxy := &service{url: "http://" + front}
			send := func(status int, pattern, body string, headers ...string) reply {
				t.Helper()
				answer := proxy.do(t, "POST", "/some/path?x=1", body, headers...)
				if answer.status != status || !regexp.MustCompile(pattern).MatchString(answer.body) {
					t.Errorf("got %d %s, want %d %s", answer.status, answer.body, status, pattern)
				}
				return answer
			}
			key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":2`)
			forged := []string{"X-User-Id: root", "X-Tokens-Left: 999", "X-Tenant-Id: evil", "X-User-Group: evil", "X_User_Id: root"}
			send(200, `^tenant=\[abc\] group=\[stripe_basic\] user=\[u-42\] left=\[1\] authorization= body=hello$`, "hello", bearer(key))
			send(200, `^tenant=\[abc\] group=\[stripe_basic\] user=\[u-42\] left=\[0\] authorization= body=$`, "", append(forged, bearer(key))...)
			send(402, `"error":"Payment Required"`, "", bearer(key))
			refused := send(401, "", "", bearer(someKey))
			refused.wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)
			send(401, "", "")
			send(401, "", "", forged...)
			// An anonymous user has no ID, whatever the client says.
			anonymous := s.login(t, "abc")
			send(200, `^tenant=\[abc\] group=\[anonymous\] user=\[\]  ?left=\[99\]`, "", append(forged, bearer(anonymous))...)
			for range 9 { // the rest of the group's rate
				send(200, "", "", bearer(anonymous))
			}
			limited := send(429, `"error":"Too Many Requests"`, "", bearer(anonymous))
			if limited.header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			// nginx does not connect anew for each check. (Caddy does where it does not hand on the answer.)
			if n := gate.accepted.Load(); name == "nginx" && n > 3 {
				t.Errorf("%d connections to tollgate for some 20 checks", n)
			}
		})
	}
}

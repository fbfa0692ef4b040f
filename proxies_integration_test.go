//go:build integration

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// metered is a service behind a real proxy, which asks tollgate as the recipe in docs/proxies.md says.
type metered struct {
	*service              // the proxy's front
	reached  atomic.Int64 // requests that got through to the service
}

// proxyCommand returns the command that runs a proxy at front, as its recipe says.
type proxyCommand func(t *testing.T, front, tollgate, backend string) *exec.Cmd

// forEachProxy runs test with each proxy whose recipe is tested.
func forEachProxy(t *testing.T, test func(t *testing.T, start func(tollgate string) *metered)) {
	for name, command := range map[string]proxyCommand{"nginx": nginxCommand, "caddy": caddyCommand} {
		t.Run(name, func(t *testing.T) {
			test(t, func(tollgate string) *metered { return startMetered(t, tollgate, command) })
		})
	}
}

// proxyRecipe returns the recipe in that section and language of docs/proxies.md, with other addresses.
func proxyRecipe(t *testing.T, section, language string, addresses ...string) string {
	t.Helper()
	return recipe(t, "docs/proxies.md", section, language, addresses...)
}

// recipe returns the one block in that section and language of a page, with other addresses.
func recipe(t *testing.T, page, section, language string, addresses ...string) string {
	t.Helper()
	blocks := slices.DeleteFunc(docBlocks(t, page), func(b docBlock) bool {
		return b.section != section || b.language != language
	})
	if len(blocks) != 1 {
		t.Fatalf("there are %d recipes for %s in %s", len(blocks), language, section)
	}
	for i := 0; i < len(addresses); i += 2 {
		if !strings.Contains(blocks[0].text, addresses[i]) {
			t.Fatalf("the recipe for %s does not name %s", language, addresses[i])
		}
	}
	return strings.NewReplacer(addresses...).Replace(blocks[0].text)
}

func nginxCommand(t *testing.T, front, tollgate, backend string) *exec.Cmd {
	return nginxOf(t, proxyRecipe(t, "nginx", "nginx",
		"listen 8000", "listen "+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend))
}

// nginxOf returns the command that runs nginx with recipe in its http block.
func nginxOf(t *testing.T, recipe string) *exec.Cmd {
	dir := t.TempDir()
	config := "daemon off;\nmaster_process off;\npid pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"
	for _, temporary := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf("%s_temp_path %s/%[1]s;\n", temporary, dir)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config+recipe+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(program(t, "nginx"), "-p", dir, "-c", file)
}

func caddyCommand(t *testing.T, front, tollgate, backend string) *exec.Cmd {
	return caddyOf(t, proxyRecipe(t, "Caddy", "caddyfile",
		":8000", "http://"+front, "127.0.0.1:8080", tollgate, "127.0.0.1:3000", backend))
}

// caddyOf returns the command that runs Caddy with recipe.
func caddyOf(t *testing.T, recipe string) *exec.Cmd {
	dir := t.TempDir()
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte("{\nadmin off\nauto_https off\n}\n"+recipe), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t, "caddy"), "run", "--adapter", "caddyfile", "--config", file)
	cmd.Env = append(os.Environ(), "HOME="+dir)
	return cmd
}

// startMetered runs a service, and a proxy before it that asks the tollgate at that address, until the test ends. The
// service says in its response what reaches it.
func startMetered(t *testing.T, tollgate string, command proxyCommand) *metered {
	t.Helper()
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	front := fmt.Sprintf("127.0.0.1:%d", port)
	m := &metered{service: &service{url: "http://" + front}}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.reached.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		for name := range r.Header {
			if strings.Contains(name, "_") {
				w.WriteHeader(http.StatusBadRequest)
			}
		}
		h := r.Header
		fmt.Fprintf(w, "%q %q %q %q authorization=%q cookie=%d body=%d %.10q", h["X-Tenant-Id"], h["X-User-Id"], h["X-User-Group"],
			h["X-Tokens-Left"], h.Get("Authorization"), len(h.Get("Cookie")), len(body), body)
	}))
	t.Cleanup(backend.Close)
	startProgram(t, command(t, front, tollgate, strings.TrimPrefix(backend.URL, "http://")), front)
	return m
}

// checkRelay passes connections on to tollgate. It remembers the requests on them, and can lose a response.
type checkRelay struct {
	address  string
	accepted atomic.Int64 // connections
	lose     atomic.Bool  // cut the next connection that a response comes on

	mu       sync.Mutex
	requests []*http.Request
}

func newCheckRelay(t *testing.T, tollgate string) *checkRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &checkRelay{address: l.Addr().String()}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			r.accepted.Add(1)
			to, err := net.Dial("tcp", tollgate)
			if err != nil {
				from.Close()
				continue
			}
			end := sync.OnceFunc(func() {
				from.Close()
				to.Close()
			})
			go func() {
				defer end()
				r.passRequests(from, to)
			}()
			go func() {
				defer end()
				r.passResponses(from, to)
			}()
		}
	}()
	return r
}

func (r *checkRelay) passRequests(from, to net.Conn) {
	// A request is remembered before it is passed on, and so before anybody has a response.
	var raw bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(from, &raw))
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
		r.mu.Lock()
		r.requests = append(r.requests, request)
		r.mu.Unlock()
		if _, err := raw.WriteTo(to); err != nil {
			return
		}
	}
}

func (r *checkRelay) passResponses(from, to net.Conn) {
	chunk := make([]byte, 64<<10)
	for {
		n, err := to.Read(chunk)
		if err != nil || r.lose.CompareAndSwap(true, false) {
			return
		}
		if _, err := from.Write(chunk[:n]); err != nil {
			return
		}
	}
}

// take returns the requests since the last call.
func (r *checkRelay) take() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.requests
	r.requests = nil
	return taken
}

// A request passes with the identity that tollgate gives it, and with nothing that the client made up.
func TestIntegrationProxyIdentity(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		m := start(s.address())
		forged := []string{
			"X-User-Id: root", "X-Tokens-Left: 999", "X-Tenant-Id: evil", "X-User-Group: evil", "X_User_Id: root",
		}
		want := func(got reply, body string) {
			t.Helper()
			if got.status != 200 || got.body != body {
				t.Errorf("got %d %s, want 200 %s", got.status, got.body, body)
			}
		}
		user := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":2`)
		want(m.do(t, "POST", "/some/path?x=1", "hello", bearer(user)),
			`["abc"] ["u-42"] ["stripe_basic"] ["1"] authorization="" cookie=0 body=5 "hello"`)
		want(m.do(t, "POST", "/some/path?x=1", "", append(forged, bearer(user))...),
			`["abc"] ["u-42"] ["stripe_basic"] ["0"] authorization="" cookie=0 body=0 ""`)

		// An anonymous user has no ID. Caddy passes an empty one.
		got := m.do(t, "GET", "/", "", append(forged, bearer(s.login(t, "abc")))...)
		got.body = strings.Replace(got.body, ` [""] `, ` [] `, 1)
		want(got, `["abc"] [] ["anonymous"] ["99"] authorization="" cookie=0 body=0 ""`)

		before := m.reached.Load()
		if err := m.do(t, "GET", "/", "", forged...).is(401); err != nil {
			t.Error(err)
		}
		if n := m.reached.Load() - before; n != 0 {
			t.Error("a request without a key has reached the service")
		}
	})
}

// nginx keeps its connections to tollgate. (Caddy connects anew for each check whose response it does not forward.)
func TestIntegrationProxyKeepsConnections(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	relay := newCheckRelay(t, s.address())
	m := startMetered(t, relay.address, nginxCommand)
	key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":100`)
	for range 10 {
		for credential, status := range map[string]int{bearer(key): 200, bearer(someKey): 401} {
			if err := m.do(t, "POST", "/some/path?x=1", "hello", credential).is(status); err != nil {
				t.Error(err)
			}
		}
	}
	if n, checks := relay.accepted.Load(), len(relay.take()); n > 3 || checks != 20 {
		t.Errorf("%d connections to tollgate for %d checks", n, checks)
	}
}

// A browser's preflight passes without a key, without an identity and without a charge, and nothing else does.
func TestIntegrationProxyPreflights(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		m := start(s.address())
		preflight := []string{"Origin: https://app.example.com", "Access-Control-Request-Method: POST"}
		forged := []string{"X-User-Id: root", "X-Tokens-Left: 999", "X-Tenant-Id: evil", "X-User-Group: evil"}
		for _, test := range []struct {
			method  string
			headers []string
			passes  bool
		}{
			{"OPTIONS", preflight, true},
			{"OPTIONS", slices.Concat(preflight, forged), true},
			{"OPTIONS", preflight[:1], false},
			{"OPTIONS", preflight[1:], false},
			{"POST", preflight, false},
			{"POST", slices.Concat(preflight, []string{"X-Forwarded-Method: OPTIONS"}), false},
			{"OPTIONS", slices.Concat(preflight, []string{bearer(someKey)}), false},
		} {
			before := m.reached.Load()
			got := m.do(t, test.method, "/some/path", "", test.headers...)
			const nobody = `[] [] [] [] authorization="" cookie=0 body=0 ""`
			if test.passes && (got.status != 200 || got.body != nobody) || !test.passes && got.status != 401 {
				t.Errorf("%s with %q: got %d %s", test.method, test.headers, got.status, got.body)
			}
			if reached := m.reached.Load() > before; reached != test.passes {
				t.Errorf("%s with %q: reached is %t", test.method, test.headers, reached)
			}
		}
	})
}

// Refusals are JSON errors, and nothing that is refused reaches the service.
func TestIntegrationProxyRefusals(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		m := start(s.address())
		refused := func(status int, message string, headers ...string) reply {
			t.Helper()
			before := m.reached.Load()
			got := m.do(t, "POST", "/x", "hello", headers...)
			if !strings.HasPrefix(got.header.Get("Content-Type"), "application/json") {
				t.Errorf("%d has the type %q", got.status, got.header.Get("Content-Type"))
			}
			if got.status != status || got.field(t, "error") != message {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, status, message)
			}
			if m.reached.Load() != before {
				t.Errorf("a request that is %d has reached the service", status)
			}
			return got
		}
		refused(401, "Unauthorized").wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate"`)
		refused(401, "Unauthorized", bearer(someKey)).
			wantHeader(t, "WWW-Authenticate", `Bearer realm="tollgate", error="invalid_token"`)

		poor := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":0`)
		refused(402, "Payment Required", bearer(poor))

		busy := s.login(t, "abc")
		for range 10 { // the group's rate
			if got := m.do(t, "GET", "/x", "", bearer(busy)); got.status != 200 {
				t.Fatalf("got %d %s", got.status, got.body)
			}
		}
		if wait := refused(429, "Too Many Requests", bearer(busy)).header.Get("Retry-After"); wait == "" {
			t.Error("429 without Retry-After")
		}
	})
}

// A visitor gets a key through the proxy, whatever cookies the browser has for the site, and the login limit counts the
// visitor's address, not the proxy's.
func TestIntegrationProxyLogin(t *testing.T) {
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		s := newService(t, "REDIS_URL="+redistest.New(t).URL(), "TRUSTED_PROXIES=127.0.0.1/32", "LOGIN_LIMIT=1")
		relay := newCheckRelay(t, s.address())
		m := start(relay.address)
		got := m.do(t, "POST", "/auth/anonymous", "", "Cookie: "+strings.Repeat("c", 13<<10), "X-Forwarded-For: 203.0.113.9")
		got.want(t, 200, "")
		requests := relay.take()
		if len(requests) != 1 || requests[0].URL.Path != "/abc/auth/anonymous" {
			t.Fatalf("tollgate got %d requests", len(requests))
		}
		if forwarded := requests[0].Header["X-Forwarded-For"]; !slices.Equal(forwarded, []string{"127.0.0.1"}) {
			t.Errorf("X-Forwarded-For is %q", forwarded)
		}
		m.do(t, "POST", "/auth/anonymous", "").wantError(t, 429, "Too Many Requests")
	})
}

// An admin behind a proxy that compresses can save a config that has not changed, or learns why not.
func TestIntegrationProxyCompresses(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		name    string
		command func(front string) *exec.Cmd
		status  int
		body    string
	}{
		{"nginx, whatever no-transform says", func(front string) *exec.Cmd {
			return nginxOf(t, "gzip on;\ngzip_proxied any;\ngzip_min_length 0;\ngzip_types application/json;\nserver {\nlisten "+front+
				";\nlocation / {\nproxy_pass http://"+s.address()+";\n}\n}\n")
		}, 412, weakETag},
		{"Caddy", func(front string) *exec.Cmd {
			return caddyOf(t, "http://"+front+" {\nencode gzip {\nminimum_length 0\n}\nreverse_proxy "+s.address()+"\n}\n")
		}, 200, `{"success":true}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			port, err := redistest.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			front := &service{url: fmt.Sprintf("http://127.0.0.1:%d", port)}
			startProgram(t, test.command(front.address()), front.address())
			id := newTenantIn(t, testRedis, `{"user_groups":{"anonymous":{}},"text":"`+strings.Repeat("long", 1000)+`"}`)
			got, err := front.send("GET", "/"+id+"/admin/config", "", "Accept-Encoding: gzip", bearer(testAdminToken))
			if err != nil || got.header.Get("Content-Encoding") != "gzip" {
				t.Fatalf("%v, %v", got, err)
			}
			etag := got.header.Get("ETag")
			front.putConfig(t, id, `{}`, "If-Match: "+etag).want(t, test.status, test.body)
		})
	}
}

// The check gets the credential and the proxy's request ID, and nothing else of the client's: neither its body nor its
// headers make it fail.
func TestIntegrationProxyPassesOnlyCredential(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		relay := newCheckRelay(t, s.address())
		m := start(relay.address)
		key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":100`)
		passes := func(name, method string, body io.Reader, contains string, headers ...string) {
			t.Run(name, func(t *testing.T) {
				r, err := http.NewRequest(method, m.url+"/upload", body)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range append(headers, bearer(key)) {
					name, value, _ := strings.Cut(h, ": ")
					r.Header.Add(name, value)
				}
				response, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				text, err := io.ReadAll(response.Body)
				if err != nil || response.StatusCode != 200 || !strings.Contains(string(text), contains) {
					t.Errorf("got %d %.200s, %v, want 200 with %s", response.StatusCode, text, err, contains)
				}
				wantBareCheck(t, relay.take(), key)
			})
		}
		const size = 3 << 20
		passes("an upload", "POST", bytes.NewReader(make([]byte, size)), fmt.Sprintf("body=%d", size))
		passes("a chunked upload", "PUT", io.MultiReader(bytes.NewReader(make([]byte, size))), fmt.Sprintf("body=%d", size))
		passes("many cookies", "GET", nil, "cookie=13312", "Cookie: "+strings.Repeat("c", 13<<10))
		passes("what browsers send", "POST", strings.NewReader("{}"), "body=2", "Accept: */*", "Accept-Language: de",
			"Cache-Control: no-cache", "Content-Type: application/json", "DNT: 1", "Forwarded: for=203.0.113.9",
			"Idempotency-Key: i", "If-None-Match: *", "Origin: https://example.com", "Pragma: no-cache", "Priority: u=1",
			"Range: bytes=0-1", "Referer: https://example.com/", "Sec-Fetch-Mode: cors", "User-Agent: browser",
			"X-Forwarded-For: 203.0.113.9", "X-Request-Id: r", "X-Own: 1")
		var fields []string
		for i := range 90 {
			fields = append(fields, fmt.Sprintf("X-Field-%d: %s", i, strings.Repeat("f", 100)))
		}
		passes("many fields", "GET", nil, "body=0", fields...)
	})
}

// wantBareCheck expects one check, with key and a request ID, and with no header beside those that the proxy needs.
func wantBareCheck(t *testing.T, requests []*http.Request, key string) {
	t.Helper()
	if len(requests) != 1 {
		t.Fatalf("tollgate got %d requests", len(requests))
	}
	check := requests[0]
	if id := check.URL.Query().Get("request"); check.URL.Path != "/abc/auth/verify" || len(id) < 32 {
		t.Errorf("the check is %s", check.URL)
	}
	if got := check.Header["Authorization"]; !slices.Equal(got, []string{"Bearer " + key}) {
		t.Error("the check does not have the client's credential")
	}
	for name, values := range check.Header {
		switch name {
		case "Authorization":
		case "Accept-Encoding", "User-Agent": // of Caddy's HTTP client
			if got := strings.Join(values, ","); got != "gzip" && got != "Go-http-client/1.1" {
				t.Errorf("the check has %s: %s", name, got)
			}
		case "Origin", "X-Forwarded-Method": // what tells a preflight, in nginx's recipe
		case "Priority", "Dnt": // short ones that Caddy's recipe leaves
		default:
			t.Errorf("the check has %s", name)
		}
	}
}

// If the connection of a check is cut after tollgate has charged, the proxy repeats it, and the key is charged once.
func TestIntegrationProxyLostResponse(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		relay := newCheckRelay(t, s.address())
		m := start(relay.address)
		key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_basic","tokens":100`)
		// Only a connection that is reused makes a proxy repeat a request. This one is kept after a refusal.
		if err := m.do(t, "GET", "/", "", bearer(someKey)).is(401); err != nil {
			t.Error(err)
		}
		relay.take()
		relay.lose.Store(true)
		if got := m.do(t, "GET", "/", "", bearer(key)); got.status != 200 || !strings.Contains(got.body, `["99"]`) {
			t.Errorf("got %d %s, want 200 with 99 tokens left", got.status, got.body)
		}
		var checks []string
		for _, r := range relay.take() {
			checks = append(checks, r.URL.String())
		}
		if len(checks) != 2 || checks[0] != checks[1] {
			t.Errorf("the checks are %q, want the same one twice", checks)
		}
		if left := s.do(t, "GET", "/abc/auth/key", "", bearer(key)).field(t, "tokensLeft"); left != 99.0 {
			t.Errorf("%v tokens are left, want 99", left)
		}
		// Another request has another ID, and is charged.
		if got := m.do(t, "GET", "/", "", bearer(key)); got.status != 200 || !strings.Contains(got.body, `["98"]`) {
			t.Errorf("got %d %s, want 200 with 98 tokens left", got.status, got.body)
		}
	})
}

// While tollgate hangs, or is gone, a client gets its 5xx soon, and nothing reaches the service.
func TestIntegrationProxyTollgateFails(t *testing.T) {
	r := redistest.New(t)
	forEachProxy(t, func(t *testing.T, start func(tollgate string) *metered) {
		p := startProcess(t, []string{"REDIS_URL=" + r.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken})
		s := p.service(t)
		m := start(s.address())
		key := s.issue(t, "abc", `"userId":"u-42","group":"stripe_premium","tokens":100`)
		passes := func() error {
			got, err := m.send("POST", "/", "hello", bearer(key))
			return errors.Join(err, got.is(200))
		}
		if err := passes(); err != nil {
			t.Fatal(err)
		}
		fails := func(what string) {
			t.Helper()
			before := m.reached.Load()
			for _, path := range []string{"/", "/auth/anonymous"} {
				began := time.Now()
				got := m.do(t, "POST", path, "hello", bearer(key))
				if took := time.Since(began); got.status < 500 || took > 5*time.Second {
					t.Errorf("%s: POST %s is %d after %s, want 5xx within 5 s", what, path, got.status, took)
				}
			}
			if m.reached.Load() != before {
				t.Errorf("%s: a request has reached the service", what)
			}
		}
		freeze(t, p.cmd.Process)
		fails("tollgate hangs")
		if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		waittest.Eventually(t, 30*time.Second, passes)
		p.kill()
		fails("tollgate is gone")
	})
}

// freeze stops a process and waits until all its threads have stopped.
func freeze(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("no threads: %v", err)
		}
		for _, thread := range threads {
			if stat, err := os.ReadFile(thread); err == nil && !strings.Contains(string(stat), ") T ") {
				return fmt.Errorf("a thread still runs: %s", stat)
			}
		}
		return nil
	})
}

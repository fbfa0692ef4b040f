//go:build integration

package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// The names under which the recipes expose tollgate.
const (
	exposedHost = "tollgate.example.com"
	adminHost   = "tollgate-admin.example.com"
)

// exposed is a tollgate behind a real proxy with TLS, as docs/proxies.md exposes it.
type exposed struct {
	address string // of the proxy
	roots   *x509.CertPool
}

// forEachExposed runs test with each proxy whose recipe exposes tollgate. start starts the proxy in front of the tollgate
// at an address; admins are the addresses that may use the admin routes.
func forEachExposed(t *testing.T, test func(t *testing.T, start func(tollgate, admins string) *exposed)) {
	for name, command := range map[string]func(t *testing.T, port int, certificate, key, tollgate, admins string) *exec.Cmd{
		"nginx": exposedNginx, "caddy": exposedCaddy,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(tollgate, admins string) *exposed {
				port, err := redistest.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				e := &exposed{address: fmt.Sprintf("127.0.0.1:%d", port), roots: x509.NewCertPool()}
				certificate, key := e.newCertificate(t)
				startProgram(t, command(t, port, certificate, key, tollgate, admins), e.address)
				return e
			})
		})
	}
}

func exposedNginx(t *testing.T, port int, certificate, key, tollgate, admins string) *exec.Cmd {
	return nginxOf(t, proxyRecipe(t, "Expose the gateway", "nginx", "listen 443", fmt.Sprintf("listen 127.0.0.1:%d", port),
		"/etc/ssl/tollgate.pem", certificate, "/etc/ssl/tollgate.key", key, "127.0.0.1:8080", tollgate, "203.0.113.0/24", admins))
}

func exposedCaddy(t *testing.T, port int, certificate, key, tollgate, admins string) *exec.Cmd {
	var hosts []string
	for _, host := range []string{exposedHost, adminHost} {
		hosts = append(hosts, host+" {", fmt.Sprintf("https://%s:%d {\n\tbind 127.0.0.1\n\ttls %s %s", host, port, certificate, key))
	}
	return caddyOf(t, proxyRecipe(t, "Expose the gateway", "caddyfile",
		append(hosts, "127.0.0.1:8080", tollgate, "203.0.113.0/24", admins)...))
}

// newCertificate returns the files of a certificate for both names, which e trusts, and of its key.
func (e *exposed) newCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	certificate, key = redistest.NewCertificate(t, exposedHost, adminHost)
	e.roots.AppendCertsFromPEM([]byte(readFile(t, certificate)))
	return certificate, key
}

// ask sends a request with a path as it is spelled, on a connection of its own, and returns the response. Its body comes
// as it is sent, and ends the connection when it is closed.
func (e *exposed) ask(t *testing.T, host, method, path, body string, headers ...string) *http.Response {
	t.Helper()
	c, err := tls.Dial("tcp", e.address, &tls.Config{RootCAs: e.roots, ServerName: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(in(30 * time.Second))
	head := append([]string{
		method + " " + path + " HTTP/1.1", "Host: " + host, "Connection: close", fmt.Sprintf("Content-Length: %d", len(body)),
	}, headers...)
	go func() { _, _ = io.WriteString(c, strings.Join(head, "\r\n")+"\r\n\r\n"+body) }() // it may be refused before its end
	response, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{response.Body, c}
	return response
}

// status sends a request as ask does, and returns the response's status and whether tollgate itself has responded.
func (e *exposed) status(t *testing.T, host, method, path, body string, headers ...string) (status int, tollgates bool) {
	t.Helper()
	response := e.ask(t, host, method, path, body, headers...)
	response.Body.Close()
	return response.StatusCode, response.Header.Get("X-Request-Id") != ""
}

// hiddenPaths are spellings of routes that nobody but admins may reach, and of routes that nobody may.
var hiddenPaths = []string{
	"/metrics", "/healthz", "/readyz", "/openapi.json", "/", "/admin", "/admin/", "/admin/tenants", "/admin/config",
	"/admin/page/app.js", "/%61dmin", "/admin?x=/v1/models", "/admin#/v1/models",
	"/abc/admin", "/abc/admin/config", "/abc/admin/config?x=/v1/chat/completions", "/abc/admin/tokens",
	"//admin/tenants", "/abc//admin/config", "/%61dmin/tenants", "/abc/%61dmin/config", "/abc/a%64min/config", "/ADMIN/tenants",
	"/abc/Admin/config", "/abc%2Fadmin%2Fconfig", "/admin/../admin/tenants", "/./admin/tenants", "/abc/v1/../admin/config",
	"/abc/v1/%2e%2e/admin/config", "/abc/v1/models/../../admin/config",
	"/abc/admin/keys/..%2f..%2fv1%2fmodels", "/admin/tokens/12345678", "/admin/v1/models", "/v1/admin/config",
	"/v1/a%64min/config", "/auth/admin/config", "/tokens/admin/config", "/tokens/../admin/config", "/auth/..%2fadmin/config",
	"/abc/admin;/v1/models", "/abc/admin/keys?userId=u", "/%6detrics", "/v1/../metrics", "/abc/auth//../../../metrics",
	"/abc\\admin/config", "https://tollgate.example.com/abc/admin/config",
	"https://tollgate-admin.example.com/admin/tenants", "https://tollgate.example.com/v1/../metrics",
	"/abc/v1/models#/../../admin/config", "/billing/admin/config", "/webhooks/../admin/config", "/abc/billing/..%2fadmin/config",
}

// Clients reach the routes for them, and neither admin routes nor metrics, however their paths are spelled.
func TestIntegrationExposedRoutes(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	key, token := s.issue(t, "abc", `"userId":"u","group":"stripe_basic"`), bearer(testAdminToken)
	forEachExposed(t, func(t *testing.T, start func(tollgate, admins string) *exposed) {
		e := start(s.address(), "203.0.113.0/24")
		for _, path := range hiddenPaths {
			for _, host := range []string{exposedHost, adminHost} {
				for _, method := range []string{"GET", "POST", "DELETE"} {
					status, _ := e.status(t, host, method, path, "", token)
					if status != 400 && status != 403 && status != 404 && status != 405 {
						t.Errorf("%s %s%s is %d", method, host, path, status)
					}
				}
			}
		}
		for _, test := range []struct {
			method, path string
			status       int
		}{
			{"POST", "/abc/auth/anonymous", 200}, {"GET", "/abc/auth/key", 200}, {"POST", "/abc/tokens/consume", 200},
			{"GET", "/abc/v1/models", 200}, {"GET", "/abc/v1/models/gpt-4o", 200}, {"GET", "/abc/v1/models/a%2Fb?x=1", 404},
			{"GET", "/abc/v1/models/..%2f..%2fadmin%2fconfig", 404}, {"GET", `/abc/v1/models/..\..\admin`, 404}, // names of models
			{"GET", "/abc/auth/verify?tokens=1", 200}, {"POST", "/abc/v1/embeddings", 400}, {"GET", "/abc/v1/files", 404},
			{"GET", "/abc/v1/responses/x", 404}, {"DELETE", "/abc/v1/responses/x", 404}, // not stored
			{"POST", "/auth/anonymous", 400}, {"POST", "/tokens/consume", 400}, {"GET", "/v1/models", 400}, // no tenant default
			{"GET", "/abc/billing/prices", 200}, {"POST", "/abc/webhooks/stripe", 403}, // payments are disabled
			{"DELETE", "/abc/tokens/holds/hold_11111111-2222-4333-8444-555555555555", 404},
		} {
			status, tollgates := e.status(t, exposedHost, test.method, test.path, "", bearer(key), "Cookie: "+strings.Repeat("c", 7<<10))
			if status != test.status || !tollgates {
				t.Errorf("%s %s is %d, from tollgate: %t, want %d from tollgate", test.method, test.path, status, tollgates, test.status)
			}
		}
	})
}

// A client that tries a WebSocket first is told at once to do without, though the proxies take the upgrade out.
func TestIntegrationExposedUpgrade(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	key := s.issue(t, "abc", `"userId":"u","group":"stripe_basic"`)
	forEachExposed(t, func(t *testing.T, start func(tollgate, admins string) *exposed) {
		status, tollgates := start(s.address(), "203.0.113.0/24").status(t, exposedHost, "GET", "/abc/v1/responses", "", bearer(key),
			"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
		if status != 426 || !tollgates {
			t.Errorf("got %d, from tollgate: %t, want 426 from tollgate", status, tollgates)
		}
	})
}

// Admins reach their routes under the name for them, from their addresses, and no others.
func TestIntegrationExposedAdmins(t *testing.T) {
	s := newService(t, "REDIS_URL="+redistest.New(t).URL())
	forEachExposed(t, func(t *testing.T, start func(tollgate, admins string) *exposed) {
		e := start(s.address(), "127.0.0.1")
		for _, test := range []struct {
			host, path string
			status     int
		}{
			{adminHost, "/admin/tenants", 200}, {adminHost, "/abc/admin/config", 200}, {adminHost, "/abc/admin/keys?userId=u", 200},
			{adminHost, "/abc/admin/config/history", 200}, {adminHost, "/metrics", 404}, {adminHost, "/abc/auth/key", 404},
			{adminHost, "/abc/v1/models", 404}, {adminHost, "//admin/tenants", 404}, {adminHost, "/", 404},
			{adminHost, "/admin", 200}, {adminHost, "/admin/", 200}, {adminHost, "/admin/page/app.js", 200},
			{exposedHost, "/admin/tenants", 404}, {exposedHost, "/abc/admin/config", 404}, {exposedHost, "/admin", 404},
			{exposedHost, "/admin/page/app.js", 404},
		} {
			if status, _ := e.status(t, test.host, "GET", test.path, "", bearer(testAdminToken)); status != test.status {
				t.Errorf("%s%s is %d, want %d", test.host, test.path, status, test.status)
			}
		}
	})
}

// A stream comes through as it is sent, its end too, and so do large bodies. Clients have addresses of their own.
func TestIntegrationExposedGateway(t *testing.T) {
	forEachExposed(t, func(t *testing.T, start func(tollgate, admins string) *exposed) {
		r, p := redistest.New(t), providertest.New(t)
		s := newService(t, "REDIS_URL="+r.URL(), "TRUSTED_PROXIES=127.0.0.1/32", "LOGIN_LIMIT=1")
		e := start(s.address(), "203.0.113.0/24")
		tenant := newTenantIn(t, r, textConfig(1000, endpointJSON(p, "chat", chatPath, `,"bytes_per_token":3,"reasoning":false`)))
		key := bearer(s.issue(t, tenant, `"userId":"u","group":"anonymous"`))
		path, login := "/"+tenant+chatPath, "/"+tenant+"/auth/anonymous"

		whole := e.ask(t, exposedHost, "POST", path, `{"stream":true,"max_tokens":9,"messages":[]}`, key)
		text, err := io.ReadAll(whole.Body)
		if err != nil || !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
			t.Errorf("a stream is %d %q, %v", whole.StatusCode, text, err)
		}
		p.On("m", providertest.Conduct{Hang: providertest.InContent})
		half := e.ask(t, exposedHost, "POST", path, `{"stream":true,"max_tokens":9,"messages":[]}`, key)
		events := bufio.NewScanner(half.Body)
		for seen := false; !seen; seen = strings.Contains(events.Text(), `"content":"word`) {
			if !events.Scan() {
				t.Fatalf("a stream that goes on is %d, and ends with %v", half.StatusCode, events.Err())
			}
		}
		half.Body.Close()
		waittest.Eventually(t, 10*time.Second, func() error {
			if open, cancelled := p.Counts(); open != 0 || cancelled != 1 {
				return fmt.Errorf("%d requests run, and %d were cancelled, after the client has hung up", open, cancelled)
			}
			return nil
		})

		for size, want := range map[int]int{3 << 20: 402, 17 << 20: 413} {
			body := `{"messages":[{"role":"user","content":"` + strings.Repeat("a", size) + `"}]}`
			if status, tollgates := e.status(t, exposedHost, "POST", path, body, key); status != want || want == 402 && !tollgates {
				t.Errorf("a body of %d bytes is %d, from tollgate: %t, want %d", size, status, tollgates, want)
			}
		}
		for _, want := range []int{200, 429} {
			if status, _ := e.status(t, exposedHost, "POST", login, "", "X-Forwarded-For: 203.0.113.9"); status != want {
				t.Errorf("a login is %d, want %d", status, want)
			}
		}
	})
}

//go:build integration

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// pageScript is what a page of another origin does with tollgate, and reports to its own server.
const pageScript = `<!doctype html><script type="module">
const report = {};
const call = async (path, init) => {
	try {
		const response = await fetch(TOLLGATE + path, init);
		const headers = {};
		for (const name of ["RateLimit", "X-RateLimit-Remaining-Requests", "X-Request-Id", "WWW-Authenticate",
			"X-Should-Retry", "Request-Id", "X-Provider-Request-Id", "X-Tokens-Charged", "X-Cache"]) {
			headers[name] = response.headers.get(name);
		}
		return {status: response.status, body: await response.json(), headers};
	} catch (error) {
		return {error: String(error)};
	}
};
report.login = await call("/auth/anonymous", {method: "POST"});
const authorized = {"Authorization": "Bearer " + report.login.body?.apiKey, "Content-Type": "application/json"};
report.charge = await call("/tokens/consume", {
	method: "POST", headers: {...authorized, "Idempotency-Key": "a"}, body: JSON.stringify({tokens: 3}),
});
report.key = await call("/auth/key", {headers: authorized});
report.refused = await call("/tokens/consume", {method: "POST", headers: {...authorized, "Authorization": "Bearer x"}});
const streamed = await fetch(TOLLGATE + "/v1/chat/completions", {
	method: "POST", headers: authorized, body: JSON.stringify({model: "m", stream: true, max_tokens: 3}),
}).catch(error => ({error: String(error)}));
if (streamed.error) {
	report.stream = streamed;
} else {
	const parts = [];
	for (const reader = streamed.body.pipeThrough(new TextDecoderStream()).getReader();;) {
		const {done, value} = await reader.read();
		if (done) break;
		parts.push(value);
	}
	report.stream = {
		status: streamed.status, headers: {"X-Request-Id": streamed.headers.get("X-Request-Id")},
		body: {text: parts.join("")},
	};
}
const message = {method: "POST", headers: {...authorized, "anthropic-version": "2023-06-01"}};
report.message = await call("/v1/messages", {...message, body: JSON.stringify({model: "m", max_tokens: 3})});
report.wrong = await call("/v1/messages", {...message, body: "{}", headers: {...message.headers, "Authorization": "Bearer x"}});
report.lost = await call("/v1/messages/batches", {...message, body: "{}"});
report.meant = await call("/v1/v1/messages", {...message, body: "{}"});
report.admin = await call("/admin/config", {headers: authorized});
await fetch("/report", {method: "POST", body: JSON.stringify(report)});
</script>`

// fetched is what a page has got from a call.
type fetched struct {
	Status  int
	Body    map[string]any
	Headers map[string]*string
	Error   string
}

// openPage opens a page that calls tollgate in a real browser, and returns what it reports. Before, it calls prepare with
// the origin of the page.
func openPage(t *testing.T, tollgate string, prepare func(origin string)) map[string]fetched {
	t.Helper()
	origin, reports := servePage(t, strings.ReplaceAll(pageScript, "TOLLGATE", fmt.Sprintf("%q", tollgate)))
	prepare(origin)
	var report map[string]fetched
	if body := browse(t, origin, reports); json.Unmarshal(body, &report) != nil {
		t.Fatalf("the page reports %s", body)
	}
	return report
}

// servePage serves a page until the test ends, and the SDKs below /files/. It returns the page's origin, and what the page
// posts to /report.
func servePage(t *testing.T, page string) (origin string, reports <-chan []byte) {
	t.Helper()
	return serveFiles(t, map[string]string{"index.html": page})
}

// serveFiles does what servePage does with a page of several files, by their names.
func serveFiles(t *testing.T, files map[string]string) (origin string, reports <-chan []byte) {
	t.Helper()
	posted := make(chan []byte, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{file...}", func(w http.ResponseWriter, r *http.Request) {
		name := cmp.Or(r.PathValue("file"), "index.html")
		if files[name] == "" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", mime.TypeByExtension(filepath.Ext(name)))
		_, _ = io.WriteString(w, files[name])
	})
	mux.HandleFunc("POST /report", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posted <- body
	})
	mux.Handle("GET /files/", http.StripPrefix("/files/", http.FileServer(http.Dir(sdkDir))))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "127.0.0.1", "localhost", 1), posted
}

// browse opens a page in a real browser, and returns what comes from reports.
func browse(t *testing.T, origin string, reports <-chan []byte, flags ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	profile, err := os.MkdirTemp("", "tollgate-browser")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "chromium", append(flags, "--headless", "--no-sandbox", "--disable-gpu",
		"--disable-dev-shm-usage", "--no-first-run", "--user-data-dir="+profile, "--remote-debugging-port=0", origin+"/")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a browser is many processes
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("pages are tested in a real browser (`make integration` installs it): %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	defer func() {
		cancel()
		<-ended
		waittest.Eventually(t, 30*time.Second, func() error { return os.RemoveAll(profile) }) // its last processes may still write
	}()
	select {
	case body := <-reports:
		return body
	case <-ended:
		t.Fatal("the browser ended without a report of the page")
	}
	return nil
}

// A page of an origin that the tenant allows logs in, charges, reads the headers and streams a completion; a page of
// another origin can do nothing of that.
func TestIntegrationBrowser(t *testing.T) {
	s := newService(t)
	tenant, p := newTenant(t, 10), providertest.New(t)
	allow := func(origin string) {
		t.Helper()
		s.putConfig(t, tenant, `{"cors":{"allowed_origins":["`+origin+`"]},"user_groups":{
			"anonymous":{"tokens":1000,"rate_limit":5,"rate_limit_window":60}},"caching":{"enabled":true,"text_ttl":60},
			"providers":{"text":{"endpoints":{`+strings.Join(endpointsJSON(p, ""), ",")+`}}}}`).want(t, 200, "")
	}
	for name, prepare := range map[string]func(origin string){
		"its origin is allowed": allow, "any origin is allowed": func(string) { allow("*") },
	} {
		t.Run(name, func(t *testing.T) {
			report := openPage(t, s.url+"/"+tenant, prepare)
			for name, want := range map[string]int{
				"login": 200, "charge": 200, "key": 200, "refused": 401, "stream": 200,
				"message": 200, "wrong": 401, "lost": 404, "meant": 404,
			} {
				if got := report[name]; got.Status != want || got.Error != "" || got.Headers["X-Request-Id"] == nil {
					t.Errorf("%s: got %+v", name, got)
				}
			}
			charge := report["charge"]
			if charge.Body["tokensLeft"] != 997.0 || report["key"].Body["tokensLeft"] != 997.0 ||
				charge.Headers["RateLimit"] == nil || *charge.Headers["X-RateLimit-Remaining-Requests"] != "4" {
				t.Errorf("got %+v and %+v", charge, report["key"])
			}
			if text, _ := report["stream"].Body["text"].(string); !strings.HasSuffix(text, "data: [DONE]\n\n") {
				t.Errorf("the page has streamed %q", text)
			}
			for name, headers := range map[string][]string{
				"message": {"Request-Id", "X-Tokens-Charged", "X-Cache"}, "wrong": {"Request-Id", "X-Should-Retry"},
				"lost": {"Request-Id", "X-Should-Retry"}, "meant": {"Request-Id", "X-Should-Retry"},
			} {
				for _, header := range headers {
					if report[name].Headers[header] == nil {
						t.Errorf("%s: the page does not see %s: %+v", name, header, report[name])
					}
				}
			}
			if got := report["admin"]; got.Error == "" {
				t.Errorf("a page can call an admin route: %+v", got)
			}
		})
	}
	t.Run("another origin is allowed", func(t *testing.T) {
		report := openPage(t, s.url+"/"+tenant, func(string) { allow("http://localhost:1") })
		if len(report) != 10 {
			t.Errorf("got %+v", report)
		}
		for name, got := range report {
			if got.Error == "" {
				t.Errorf("%s: got %+v", name, got)
			}
		}
	})
}

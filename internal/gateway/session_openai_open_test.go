package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/providertest"
	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// What a client gets instead of a session. Nothing is charged then, and nothing stays held.
func TestSessionRefusals(t *testing.T) {
	const key = providertest.Key
	refusing := func(status int, body string, header ...string) func(*testing.T, *testSession) {
		return func(_ *testing.T, g *testSession) {
			g.provider.On(providertest.RealtimeConduct{Status: status, Body: body, Header: header})
		}
	}
	account := func(refuse error) func(*testing.T, *testSession) {
		return func(_ *testing.T, g *testSession) { g.account.refuse = refuse }
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, row := range map[string]struct {
		prepare func(*testing.T, *testSession)
		status  int
		body    string
		header  string // a line of the response's
		warning string // in the log; "" for none
	}{
		"wrong key": {refusing(401, ""), 502, "refuses this service's account", "X-Should-Retry: false", "with 401"},
		"no quota": {refusing(429, `{"error":{"code":"insufficient_quota"}}`), 502, "account", "X-Should-Retry: false",
			"with 429"},
		"too many":   {refusing(429, `{"error":{"message":"slow"}}`, "Retry-After: 7"), 429, "slow", "Retry-After: 7", ""},
		"bad":        {refusing(400, "about "+key), 400, "about [removed]", "Content-Type: application/json", ""},
		"missing":    {refusing(404, ""), 404, "The provider refuses.", "", ""},
		"broken":     {refusing(500, ""), 500, "The provider refuses.", "X-Provider-Request-Id: req_provider", ""},
		"key inside": {refusing(500, strings.Repeat("a", 64<<10-len(key)/2)+key), 500, "aaa", "", ""},
		"compressed": {refusing(500, key, "Content-Encoding: gzip"), 500, "The provider responded with 500", "", ""},
		"redirect":   {refusing(302, "", "Location: /x"), 502, "opens no session", "X-Should-Retry: false", "with 302"},
		"no upgrade": {refusing(200, ""), 502, "opens no session", "X-Should-Retry: false", "with 200"},
		"not there": {func(t *testing.T, g *testSession) {
			g.endpoint = testEndpoint(t, closed.URL+"/v1/realtime", "")
		}, 502, "cannot be reached", "", "connection refused"},
		"bad key": {func(_ *testing.T, g *testSession) { g.endpoint.apiKey = "a b" }, 502, "key cannot be sent",
			"X-Should-Retry: false", "api_key"},
		"silent": {func(_ *testing.T, g *testSession) {
			g.options.HeaderTimeout = 50 * time.Millisecond
			g.provider.On(providertest.RealtimeConduct{Delay: 10 * time.Second})
		}, 504, "does not respond in time", "", "does not respond in time"},
		"denied": {func(_ *testing.T, g *testSession) {
			g.options.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			g.transports = newTransports(g.options)
		}, 502, "cannot be reached", "", "within -gateway-deny"},
		"no place": {func(_ *testing.T, g *testSession) {
			g.sessions.pool = fairpool.New(1, 1)
			_ = g.SessionPlace("other", "user").AddUpTo(1)
		}, 503, "Too many sessions are open", "", ""},
		"poor":      {func(_ *testing.T, g *testSession) { g.account.left = 48_383 }, 402, "needs 48384 tokens, 48383 are left", "", ""},
		"disabled":  {account(errors.New("API key is disabled")), 403, "API key is disabled", "", ""},
		"forbidden": {account(DeniedError{ModelNames{"x"}}), 404, "may not use the model", "", ""},
		"away":      {func(_ *testing.T, g *testSession) { g.account.mishaps = []mishap{lost} }, 503, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{})
			row.prepare(t, g)
			conn, response := g.dial(t, "?model=m")
			if conn != nil {
				t.Fatal("a session was opened")
			}
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != row.status || !strings.Contains(string(body), row.body) || strings.Contains(string(body), key[:10]) {
				t.Errorf("got %d %.300q, want %d %q", response.StatusCode, body, row.status, row.body)
			}
			if header, value, _ := strings.Cut(row.header, ": "); response.Header.Get(header) != value {
				t.Errorf("got the header %v, want %q", response.Header, row.header)
			}
			if n := g.log.count("The endpoint e of tenant acme failed"); n != min(len(row.warning), 1) || g.log.count(row.warning) == 0 {
				t.Errorf("the log is %s, want %q", g.log.text.String(), row.warning)
			}
			o := <-g.outcomes
			if g.account.paid() != 0 || o.Session != 0 || o.Model != "m" {
				t.Errorf("%d tokens were charged; the outcome is %+v", g.account.paid(), o)
			}
			waittest.Eventually(t, 20*time.Second, func() error {
				if held := g.account.held(); len(held) > 0 || g.settler.holds.Load() > 0 {
					return fmt.Errorf("%d tokens are held", held)
				}
				return nil
			})
		})
	}
}

// A client that hangs up while the provider is dialled, or that cannot be accepted then, pays nothing.
func TestSessionClientGone(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{Delay: 30 * time.Second})
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	const upgrade = "GET /?model=m HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	_, _ = io.WriteString(c, upgrade)
	waittest.Eventually(t, 10*time.Second, func() error {
		if len(g.provider.Requests()) == 0 {
			return errors.New("the provider is not dialled")
		}
		return nil
	})
	c.Close()
	g.wantCharged(t, 0)

	g = newTestSession(t, providertest.RealtimeConduct{})
	r := httptest.NewRequest("GET", "/?model=m", nil)
	r.Header = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="},
	}
	g.ServeHTTP(httptest.NewRecorder(), r) // which cannot be hijacked
	if code := g.provider.Session(t, 1).Ended(t); code != websocket.CloseGoingAway {
		t.Errorf("the provider got %d", code)
	}
	g.wantCharged(t, 0)
}

// The provider is dialled at the endpoint's URL, with the model beside what is in its query.
func TestSessionAddress(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	g.endpoint = testEndpoint(t, g.provider.URL+"?api-version=1&a=%26", `,"auth":"api-key"`)
	c := g.open(t)
	c.wait(t, "session.created", 1)
	r := g.provider.Requests()[0]
	if got := r.URL.String(); got != "/v1/realtime?a=%26&api-version=1&model=m" || r.Header.Get("Api-Key") != providertest.Key {
		t.Errorf("the provider got %s %v", got, r.Header)
	}
}

// A provider that also speaks HTTP/2 is dialled over TLS with HTTP/1.1, and only if its certificate is trusted.
func TestSessionOverTLS(t *testing.T) {
	g := newTestSession(t, providertest.RealtimeConduct{})
	server := httptest.NewUnstartedServer(g.provider)
	server.Config.ErrorLog = telemetry.NewLogger(io.Discard).Warnings()
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	g.endpoint = testEndpoint(t, "wss"+strings.TrimPrefix(server.URL, "https")+"/v1/realtime", "")
	if conn, response := g.dial(t, "?model=m"); conn != nil || response.StatusCode != 502 {
		t.Errorf("got %d", response.StatusCode)
	}
	g.transports.fresh.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	c := g.open(t)
	c.respond(t, 1)
	if r := g.provider.Requests()[0]; r.ProtoMajor != 1 || r.TLS == nil {
		t.Errorf("the provider got a request of %s", r.Proto)
	}
}

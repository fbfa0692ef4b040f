package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
	"tollgate/internal/providertest"
	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
)

// probeKey is the key of the endpoints of these tests. Providers that are asked to echo it send it in their errors.
const probeKey = "sk-probe-0123456789"

const atLimit = `{"error":{"message":"Could not finish the message because max_tokens or model output limit was reached."}}`

// What a provider sends that is not a response of its endpoint's format is said in a sentence, without the key.
func TestProbeFaults(t *testing.T) {
	const (
		chat, images, speech = llmwire.OpenAIChat, llmwire.OpenAIImages, llmwire.OpenAISpeech
		wrongPath            = "The provider's response is not what a URL that ends in "
		done                 = `{"choices":[{"index":0,"message":{"content":""},"finish_reason":"length"}]}`
	)
	html := script{header: "Content-Type: text/html", parts: []string{"<html>not here</html>"}}
	refusing := func(status int, parts ...string) script {
		return script{status, "Content-Type: application/json", parts}
	}
	for name, test := range map[string]struct {
		format llmwire.Format
		server http.Handler
		status int
		fault  string // its beginning; "" if the endpoint works
	}{
		"fine":                   {chat, jsonBody(done), 200, ""},
		"its only token is gone": {chat, refusing(400, atLimit), 400, ""},
		"not that status":        {chat, refusing(500, atLimit), 500, "Could not finish"},
		"the key echoed": {chat, refusing(401, `{"error":{"message":"Bad key `+probeKey+`."}}`),
			401, "Bad key [removed]."},
		"the key echoed in escapes": {chat, refusing(403, `{"message":"{\"key\":\"sk\\u002dprobe-0123456789\"}"}`), 403,
			`{"key":"[removed]"}`},
		"no sentence":   {chat, refusing(404, "<html>"+probeKey), 404, "The provider responds with 404"},
		"control chars": {chat, refusing(500, `{"error":"a\n\tb\u0000\u202ec\u0007 ünd"}`), 500, "a b c ünd"},
		"a long sentence": {chat, refusing(500, `{"error":"a`+strings.Repeat("ü", 500)+`"}`),
			500, "a" + strings.Repeat("ü", 149) + "…"},
		"compressed error": {chat, script{500, "Content-Encoding: gzip", []string{`{"error":"x"}`}},
			500, "The provider responds with 500"},
		"a redirect": {chat, script{307, "Location: /v2/chat/completions", nil},
			307, "The provider redirects, which is not followed"},
		"no content": {chat, script{status: 204}, 204, "The provider responds with 204"},
		"compressed": {chat, script{header: "Content-Encoding: gzip", parts: []string{done}},
			200, "The provider's response is compressed"},
		"a stream": {chat, script{header: "Content-Type: text/event-stream", parts: []string{content}},
			200, "The provider's response is a stream"},
		"a page":            {chat, html, 200, wrongPath + "/chat/completions should send: does url have the right path?"},
		"other JSON":        {chat, jsonBody(`{"status":"ok"}`), 200, wrongPath},
		"no object":         {chat, jsonBody(`[1]`), 200, wrongPath},
		"nothing":           {chat, jsonBody(), 200, wrongPath},
		"an error in a 200": {chat, jsonBody(`{"error":{"message":"Overloaded ` + probeKey + `"}}`), 200, "Overloaded [removed]"},
		"an endless one": {chat, jsonBody(`{"choices":[{"message":{"content":"`, strings.Repeat("a", maxProbeBody), hang),
			200, wrongPath},
		"cut":               {chat, jsonBody(`{"choices":[`, cut), 200, "The provider has failed: it closed the connection"},
		"closed unread":     {chat, script{parts: []string{cut}}, 0, "The provider has failed: it closed the connection"},
		"silent":            {chat, script{parts: []string{hang}}, 0, "The provider has failed: it does not respond in time"},
		"silent in between": {chat, jsonBody(`{"choices":[`, hang), 200, "The provider has failed: it does not respond in time"},
		"a large image":     {images, jsonBody(`{"data":[{"b64_json":"`, strings.Repeat("a", maxProbeBody), hang), 200, ""},
		"a large page": {images, script{header: "Content-Type: text/html", parts: []string{"<", strings.Repeat("a", maxProbeBody)}},
			200, wrongPath},
		"a sound":          {speech, script{header: "Content-Type: audio/mpeg", parts: []string{"ID3", hang}}, 200, ""},
		"an untyped sound": {speech, script{header: "Content-Type: ", parts: []string{"ID3\x04\x00\x00", hang}}, 200, ""},
		"a page for sound": {speech, html, 200, "The provider's response is a text, not a sound"},
		"an untyped page": {speech, script{header: "Content-Type: ", parts: []string{"<html>"}},
			200, "The provider's response is a text, not a sound"},
		"no sound":          {speech, script{header: "Content-Type: audio/mpeg"}, 200, "The provider's response is empty"},
		"an error as sound": {speech, jsonBody(`{"error":{"message":"No such voice."}}`), 200, "No such voice."},
		"a sound cut": {speech, script{header: "Content-Type: audio/mpeg", parts: []string{"", cut}},
			200, "The provider has failed: it closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newFormatted(t, test.format, `,"api_key":"`+probeKey+`"`, test.server)
			g.options.HeaderTimeout = 2 * time.Second
			began := time.Now()
			got, err := g.Probe(t.Context(), g.endpoints[0], ProbeCall{Tenant: "acme"})
			if err != nil || got.Status != test.status || got.Model != "m" || (got.Fault == "") != (test.fault == "") ||
				!strings.HasPrefix(got.Fault, test.fault) {
				t.Errorf("got %+v, %v; want %d %q", got, err, test.status, test.fault)
			}
			if got.Latency <= 0 || got.Latency > time.Since(began) {
				t.Errorf("it took %v", got.Latency)
			}
			if len(got.Fault) > maxProbeFault+len("…") {
				t.Errorf("the sentence has %d bytes", len(got.Fault))
			}
			if n := g.log.count(probeKey) + g.log.count("failed"); n != 0 || g.probes.Stats().Used != 0 {
				t.Errorf("%+v; the log is\n%s", g.probes.Stats(), g.log.text.String())
			}
			g.wantNothingHeld(t)
			g.Stop() // cuts what hangs
		})
	}
}

// Why a provider cannot be reached is said in plain words, without its URL and the credentials in that.
func TestProbeUnreachable(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = telemetry.NewLogger(&logBuffer{}).Warnings() // the client's alert is meant
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	old.Config.ErrorLog = telemetry.NewLogger(&logBuffer{}).Warnings()
	old.StartTLS()
	t.Cleanup(old.Close)
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deaf.Close() })
	host := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	for name, test := range map[string]struct{ origin, members, fault string }{
		"refused":         {"http://%s" + host(closed), "", "The provider cannot be reached: connection refused"},
		"no such name":    {"http://%shost.invalid", "", "The provider cannot be reached: its name cannot be resolved"},
		"no TLS":          {"https://%s" + host(plain), "", "The provider cannot be reached: it does not speak TLS"},
		"its certificate": {"https://%s" + host(untrusted), "", "The provider cannot be reached: its TLS certificate is not valid"},
		"old TLS":         {"https://%s" + host(old), "", "The provider cannot be reached: the connection failed"},
		"silent TLS":      {"https://%s" + deaf.Addr().String(), "", "The provider cannot be reached: it does not respond in time"},
		"denied":          {"http://%s192.0.2.1", "", "The provider cannot be reached: its address is within -gateway-deny"},
		"a bad key": {"http://%s" + host(plain), `,"api_key":"a b"`,
			"The endpoint cannot be used: its api_key must be printable ASCII without white space"},
		"a bad auth": {"http://%s" + host(plain), `,"auth":"x"`, `The endpoint cannot be used: its auth must be "bearer"`},
		"no operator's key": {"http://%s" + host(plain), `,"api_key_name":"k"`,
			"The endpoint cannot be used: its api_key_name must name a key that the operator has for this tenant"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestGateway(t)
			g.options.HeaderTimeout, g.options.Deny = 2*time.Second, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			g.transports = newTransports(g.options)
			url := fmt.Sprintf(test.origin, "name:secret@") + "/v1/chat/completions?key=secret"
			e := newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"%s`, url, test.members))
			got, err := g.Probe(t.Context(), e, ProbeCall{Tenant: "acme"})
			if err != nil || got.Status != 0 || !strings.HasPrefix(got.Fault, test.fault) || strings.Contains(got.Fault, "secret") {
				t.Errorf("got %+v, %v; want %q", got, err, test.fault)
			}
		})
	}
}

// The model that is asked for is the default one, or the first by name; the operator's key is sent, and never shown,
// nor what the provider says of the operator's account.
func TestProbeModel(t *testing.T) {
	g := newTestGateway(t)
	p := providertest.New(t)
	p.On("bad", providertest.Conduct{Status: 400, Body: `{"error":"not with ` + providertest.Key + `"}`})
	p.On("refused", providertest.Conduct{Status: 401, Body: `{"error":{"message":"Incorrect API key provided: sk-a****wxyz"}}`})
	p.On("broke", providertest.Conduct{Status: 429, Body: `{"error":{"message":"Quota of org-a","code":"insufficient_quota"}}`})
	g.options.Keys = new(OperatorKeys)
	if err := g.options.Keys.Load(keysFile(t, "{"+keyJSON("k", providertest.Key, p.URL, `["acme"]`)+"}")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ members, model, fault string }{
		{`"default_model":"m","models":{"n":{}}`, "m", ""}, {`"models":{"a*":{},"n":{},"m":{}}`, "n", ""},
		{`"default_model":"bad"`, "bad", "not with [removed]"},
		{`"default_model":"refused"`, "refused", "The provider refuses the operator's account"},
		{`"default_model":"broke"`, "broke", "The provider refuses the operator's account"},
		{`"models":{"a*":{}}`, "", "The endpoint has no model to ask for by name: set its default_model"},
		{`"reasoning":true`, "", "The endpoint has no model to ask for by name: set its default_model"},
	} {
		before := len(p.Requests())
		e := newEndpoint(t, "e", fmt.Sprintf(`"url":"%s/v1/chat/completions","api_key_name":"k",%s`, p.URL, test.members))
		got, err := g.Probe(t.Context(), e, ProbeCall{Tenant: "acme", Hops: "a, b"})
		if err != nil || got.Model != test.model || got.Fault != test.fault {
			t.Errorf("%s: got %+v, %v; want %q %q", test.members, got, err, test.model, test.fault)
		}
		if sent := len(p.Requests()) - before; sent != min(len(test.model), 1) {
			t.Errorf("%s: %d requests were sent", test.members, sent)
			continue
		}
		if test.model == "" {
			continue
		}
		last := p.Last(t)
		if last.Model != test.model || last.Header.Get("Authorization") != "Bearer "+providertest.Key ||
			last.Header.Get("Tollgate-Loop") != "a, b" || last.Header.Get("User-Agent") != "tollgate" {
			t.Errorf("%s: the provider got %+v", test.members, last)
		}
	}
	got, err := g.Probe(t.Context(), newSessionEndpoint(t, "e", `"type":"openai"`), ProbeCall{})
	if err != nil || !strings.HasSuffix(got.Fault, "set its model") {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Sessions are opened, with the model and the key, and closed when the first event has come. A call is only created.
func TestProbeSessions(t *testing.T) {
	const key = providertest.Key
	for name, test := range map[string]struct {
		conduct providertest.RealtimeConduct
		members string
		status  int
		fault   string
	}{
		"fine":      {providertest.RealtimeConduct{}, "", 101, ""},
		"in pieces": {providertest.RealtimeConduct{Piece: 7}, "", 101, ""},
		"refused": {providertest.RealtimeConduct{Status: 401, Body: `{"error":{"message":"Wrong: ` + key + `"}}`}, "", 401,
			"Wrong: [removed]"},
		"not found":     {providertest.RealtimeConduct{Status: 404, Body: "<html>"}, "", 404, "The provider responds with 404"},
		"no WebSocket":  {providertest.RealtimeConduct{Status: 200, Body: "<html>"}, "", 200, "The provider responds with 200"},
		"another key":   {providertest.RealtimeConduct{}, `,"auth":"x-api-key"`, 401, "Incorrect API key"},
		"no event":      {providertest.RealtimeConduct{Mute: true}, "", 101, "The provider has failed: it does not respond in time"},
		"no response":   {providertest.RealtimeConduct{Delay: time.Minute}, "", 0, "The provider cannot be reached: it does not respond in time"},
		"no such place": {providertest.RealtimeConduct{Status: 503}, "", 503, "The provider refuses."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, test.conduct)
			g.options.HeaderTimeout = 2 * time.Second
			e := testEndpoint(t, g.provider.URL+"?a=b", test.members)
			got, err := g.Probe(t.Context(), e, ProbeCall{Tenant: "acme", Hops: "a"})
			if err != nil || got.Status != test.status || got.Fault != test.fault || got.Model != "m" {
				t.Fatalf("got %+v, %v; want %d %q", got, err, test.status, test.fault)
			}
			sent := g.provider.Requests()
			if len(sent) != 1 || sent[0].URL.RawQuery != "a=b&model=m" || sent[0].Header.Get("Tollgate-Loop") != "a" {
				t.Errorf("the provider got %v", sent)
			}
			if n := g.sessions.pool.Stats().Used + g.probes.Stats().Used; n != 0 || g.log.count("failed") != 0 {
				t.Errorf("%d places are taken; the log is\n%s", n, g.log.text.String())
			}
		})
	}
}

// What a server sends as the first event of a session says whether the session works.
func TestProbeFirstEvent(t *testing.T) {
	for _, test := range []struct {
		send  func(s *providertest.RealtimeSession)
		fault string
	}{
		{func(s *providertest.RealtimeSession) { s.SendError("model_not_found", "No m, "+providertest.Key, "") }, "No m, [removed]"},
		{func(s *providertest.RealtimeSession) { s.SendEvent("pong", nil) }, "The provider's first event is not session.created"},
		{func(s *providertest.RealtimeSession) { s.Send("<html>") }, "The provider's first event is not session.created"},
		{func(s *providertest.RealtimeSession) { s.Send(strings.Repeat("a", maxErrorBody+1)) },
			"The provider's first event is not session.created"},
		{func(s *providertest.RealtimeSession) { s.Close(4000, "No model "+providertest.Key) }, "No model [removed]"},
		{func(s *providertest.RealtimeSession) { s.Close(1011, "") }, "The provider closes the session"},
	} {
		t.Run(test.fault, func(t *testing.T) {
			t.Parallel()
			g := newTestSession(t, providertest.RealtimeConduct{Mute: true})
			go func() { test.send(g.provider.Session(t, 1)) }()
			got, err := g.Probe(t.Context(), g.endpoint, ProbeCall{Tenant: "acme"})
			if err != nil || got.Status != 101 || got.Fault != test.fault {
				t.Errorf("got %+v, %v; want %q", got, err, test.fault)
			}
		})
	}
}

func TestProbeUltravox(t *testing.T) {
	for name, test := range map[string]struct {
		conduct providertest.UltravoxConduct
		key     string
		status  int
		fault   string
	}{
		"fine":      {providertest.UltravoxConduct{}, providertest.Key, 201, ""},
		"wrong key": {providertest.UltravoxConduct{}, "x", 403, "Invalid API key."},
		"full":      {providertest.UltravoxConduct{Status: 429}, providertest.Key, 429, "The provider refuses."},
		"no URL": {providertest.UltravoxConduct{Body: `{"joinUrl":"http://x"}`}, providertest.Key, 201,
			"The provider's response has no joinUrl that may be dialled"},
		"a page": {providertest.UltravoxConduct{Body: strings.Repeat("<", maxCreatedCall+1)}, providertest.Key, 201,
			"The provider's response has no joinUrl that may be dialled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := providertest.NewUltravox(t)
			p.On(test.conduct)
			e := newSessionEndpoint(t, "ultravox", fmt.Sprintf(`"url":%q,"api_key":%q,"model":"v"`, p.URL, test.key))
			got, err := newTestGateway(t).Probe(t.Context(), e, ProbeCall{Tenant: "acme"})
			if err != nil || got.Status != test.status || got.Fault != test.fault || got.Model != "v" {
				t.Fatalf("got %+v, %v; want %d %q", got, err, test.status, test.fault)
			}
			for _, call := range p.Calls() {
				if _, billed, _ := call.Bill(); billed != 0 || call.Max != 6*time.Second {
					t.Errorf("a call of %v was made, and %v are billed", call.Max, billed)
				}
			}
		})
	}
}

// Tests of endpoints are bounded, and none goes on when nobody waits for it, or the server stops.
func TestProbeBounds(t *testing.T) {
	g := newScripted(t, script{parts: []string{hang}}, "")
	g.probes = fairpool.New(4, 0.5)
	ask := func(ctx context.Context, tenant string) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := g.Probe(ctx, g.endpoints[0], ProbeCall{Tenant: tenant})
			ended <- err
		}()
		return ended
	}
	used := func(n int64) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			if got := g.probes.Stats().Used; got != n {
				return fmt.Errorf("%d are under way, want %d", got, n)
			}
			return nil
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := ask(ctx, "acme")
	used(1)
	second := ask(t.Context(), "acme")
	used(2)
	if err := <-ask(t.Context(), "acme"); !errors.Is(err, errTooManyProbes) {
		t.Errorf("got %v, want %v", err, errTooManyProbes)
	}
	other := ask(t.Context(), "other")
	used(3)
	cancel()
	if err := <-first; err != nil {
		t.Errorf("got %v", err)
	}
	used(2)
	g.Stop()
	for _, ended := range []<-chan error{second, other} {
		if err, ok := errors.AsType[Error](<-ended); !ok || err.Status != 503 {
			t.Errorf("got %v, want a 503", err)
		}
	}
	used(0)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

const realtimePath = "/v1/realtime"

// handshake returns the headers with which a client asks for a WebSocket, and more.
func handshake(more ...string) []string {
	return append([]string{
		"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, more...)
}

// openingOf returns the headers for a request to a route, which must ask for a WebSocket if the route opens one.
func openingOf(path string, headers ...string) []string {
	if strings.HasSuffix(path, realtimePath) {
		return handshake(headers...)
	}
	return headers
}

// asProtocol returns the header in which a browser sends a key, with what comes before it.
func asProtocol(before, key string) string {
	return "Sec-WebSocket-Protocol: " + before + keyProtocolPrefix + key
}

// What can be refused before a session is opened is, with a status and an error in OpenAI's shape.
func TestRealtimeRefusals(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := newTenant(t, 1000)
	key, path := s.login(t, tenant), "/"+tenant+realtimePath
	const invalid = "invalid_request_error"
	loop := loopHeader + ": " + strings.Repeat("a,", maxHops+1)
	for _, test := range []struct {
		name, path   string
		headers      []string
		status       int
		code, phrase string
	}{
		{"no WebSocket", path, []string{bearer(key)}, 426, "", "does not ask for an upgrade"},
		{"no WebSocket, and no tenant", realtimePath, nil, 426, "", "does not ask for an upgrade"},
		{"another version", path, append(slices.Delete(handshake(bearer(key)), 2, 3), "Sec-WebSocket-Version: 8"), 426, "", "not 13"},
		{"no nonce", path, append(slices.Delete(handshake(bearer(key)), 3, 4), "Sec-WebSocket-Key: x"), 400, "", "Sec-WebSocket-Key"},
		{"no key", path, handshake(), 401, "invalid_api_key", "or as the subprotocol openai-insecure-api-key.KEY beside realtime"},
		{"a provider's key", path, handshake(asProtocol("realtime, ", "sk-1")), 401, "invalid_api_key", "is not an API key"},
		{"an unknown key", path, handshake(bearer(someKey)), 401, "invalid_api_key", "not one of tenant " + tenant},
		{"an unknown key of a page", path, handshake(asProtocol("realtime,", someKey)), 401, "invalid_api_key", "not one of tenant"},
		{"a tenant that does not exist", "/none" + realtimePath, handshake(bearer(key)), 400, "", "Invalid tenant ID"},
		{"only the key's subprotocol", path, handshake(asProtocol("", key)), 400, "", "realtime is missing"},
		{"that and others", path, handshake(asProtocol("chat, ", key)), 400, "", "realtime is missing"},
		{"the same subprotocol twice", path, handshake(asProtocol("realtime, realtime, ", key)), 400, "", "different tokens"},
		{"an intent", path + "?intent=transcription", handshake(bearer(key)), 400, "", "leave out intent"},
		{"an intent and a model", path + "?model=m&intent=x", handshake(bearer(key)), 400, "", "leave out intent"},
		{"a call", path + "?call_id=rtc_1", handshake(bearer(key)), 400, "", "leave out call_id"},
		{"another parameter", path + "?model=m&api-version=1", handshake(bearer(key)), 400, "", `\"api-version\" is unknown`},
		{"two models", path + "?model=m&model=n", handshake(bearer(key)), 400, "", "duplicated"},
		{"half an escape", path + "?model=%2", handshake(bearer(key)), 400, "", "Invalid query"},
		{"a loop", path, handshake(bearer(key), loop), 508, "loop", "through this service before"},
		{"no endpoint", path + "?model=m", handshake(bearer(key)), 404, "model_not_found", ""},
		{"no endpoint, for a page", path, handshake(asProtocol("realtime, ", key)), 404, "model_not_found", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := s.do(t, "GET", test.path, "", test.headers...)
			got.wantWireError(t, realtimePath, test.status, invalid, test.code)
			if !strings.Contains(got.body, test.phrase) {
				t.Errorf("got %s, want %s", got.body, test.phrase)
			}
			if test.status == 426 {
				got.wantHeader(t, "Upgrade", "websocket")
				got.wantHeader(t, "Connection", "Upgrade")
			}
			if strings.Contains(fmt.Sprint(got.header, got.body), key) {
				t.Errorf("the response has the key: %+v", got)
			}
		})
	}
	t.Run("a body", func(t *testing.T) {
		s.do(t, "GET", path, `{"a":1}`, handshake(bearer(key))...).wantWireError(t, realtimePath, 400, invalid, "")
	})
	t.Run("other methods", func(t *testing.T) {
		s.do(t, "POST", path, "", handshake(bearer(key))...).wantWireError(t, realtimePath, 405, invalid, "")
		if err := s.do(t, "HEAD", path, "", bearer(key)).is(405); err != nil {
			t.Error(err)
		}
	})
}

// The key may be in any of the headers, or in a subprotocol, and the response never names that one.
func TestSessionCredential(t *testing.T) {
	const other = "user_99999999-2222-4333-8444-555555555555"
	key := someKey
	lines := func(headers ...string) *http.Request {
		r := httptest.NewRequest("GET", realtimePath, nil)
		for _, header := range headers {
			name, value, _ := strings.Cut(header, ": ")
			r.Header.Add(name, value)
		}
		return r
	}
	const agents = ", openai-agents-sdk.0.3.1"
	for _, test := range []struct {
		headers  []string
		err      error
		protocol string // "-" if none may be chosen
	}{
		{[]string{bearer(key)}, nil, ""},
		{[]string{"api-key: " + key}, nil, ""},
		{[]string{"X-API-Key: " + key}, nil, ""},
		{[]string{asProtocol("realtime, ", key)}, nil, "realtime"},
		{[]string{asProtocol("realtime,", key)}, nil, "realtime"},
		{[]string{asProtocol("realtime, ", key) + agents}, nil, "realtime"},
		{[]string{asProtocol("", key) + ",\trealtime"}, nil, "realtime"},
		{[]string{"Sec-WebSocket-Protocol: realtime", asProtocol("", key)}, nil, "realtime"},
		{[]string{asProtocol("", key), "Sec-WebSocket-Protocol: realtime" + agents}, nil, "realtime"},
		{[]string{bearer(key), "Sec-WebSocket-Protocol: realtime"}, nil, "realtime"},
		{[]string{bearer(key), "Sec-WebSocket-Protocol: chat"}, nil, ""},
		{[]string{bearer(key), asProtocol("realtime, ", key)}, nil, "realtime"},
		{[]string{bearer("sk-1"), asProtocol("realtime, ", key)}, nil, "realtime"},
		{[]string{bearer(key), asProtocol("realtime, ", "sk-1")}, nil, "realtime"},
		{[]string{asProtocol("realtime, ", "sk-1"), asProtocol("", key)}, nil, "realtime"},
		{[]string{asProtocol("", key)}, nil, "-"},
		{[]string{asProtocol("Realtime, ", key)}, nil, "-"},
		{[]string{bearer(key), asProtocol("", "sk-1")}, nil, "-"},
		{[]string{bearer(key), asProtocol("realtime, ", other)}, errInvalidCredential, "realtime"},
		{[]string{"api-key: " + other, asProtocol("realtime, ", key)}, errInvalidCredential, "realtime"},
		{[]string{asProtocol("realtime, ", key), asProtocol("", other)}, errInvalidCredential, "realtime"},
		{[]string{asProtocol("realtime, ", "")}, ErrNoKey, "realtime"},
		{[]string{asProtocol("realtime, ", key+"x")}, ErrNoKey, "realtime"},
		{[]string{"Sec-WebSocket-Protocol: realtime, OpenAI-Insecure-API-Key." + key}, errNoCredential, "realtime"},
		{[]string{"Sec-WebSocket-Protocol: realtime, " + key}, errNoCredential, "realtime"},
		{nil, errNoCredential, ""},
	} {
		r, info := lines(test.headers...), new(requestInfo)
		if err := new(server).readSessionKey(nil, r, info); err != test.err || (info.apiKey == key) != (err == nil) {
			t.Errorf("%q: got the key %q, %v, want %v", test.headers, info.apiKey, err, test.err)
		}
		protocol, err := sessionProtocol(r)
		if err != nil {
			protocol = "-"
		}
		if protocol != test.protocol {
			t.Errorf("%q: got the subprotocol %q, want %q", test.headers, protocol, test.protocol)
		}
	}
}

// A page may open a session if its tenant allows its origin, or has not said which it allows.
func TestRealtimeOrigins(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, test := range []struct {
		origins string // of the config; "" if it has none
		headers []string
		allowed bool
	}{
		{"", nil, true}, {"", []string{fromPage}, true}, {"", []string{"Origin: null"}, true},
		{`"` + page + `"`, nil, true}, {`"` + page + `"`, []string{fromPage}, true},
		{`"` + page + `"`, []string{otherPage}, false}, {`"` + page + `"`, []string{"Origin: null"}, false},
		{`"` + page + `"`, []string{fromPage, otherPage}, false}, {`"` + page + `"`, []string{"Origin: "}, false},
		{`"*"`, []string{otherPage}, true}, {`"*"`, nil, true},
		{" ", []string{fromPage}, false}, {" ", nil, true},
	} {
		tenant := newTenant(t, 10)
		if test.origins != "" {
			tenant = corsTenant(t, "["+test.origins+"]")
		}
		path, key := "/"+tenant+realtimePath, s.login(t, tenant)
		got := s.do(t, "GET", path, "", handshake(append(test.headers, asProtocol("realtime, ", key))...)...)
		if test.allowed {
			if err := got.is(404); err != nil { // there is no endpoint
				t.Errorf("%s, %q: %v", test.origins, test.headers, err)
			}
			continue
		}
		got.wantWireError(t, realtimePath, 403, "invalid_request_error", "origin_not_allowed")
	}
}

// What would go around the gateway is 404 and says why, to pages, too. So is a path with a segment too many or too few.
func TestRealtimeLostRoutes(t *testing.T) {
	t.Parallel()
	s := newService(t)
	tenant := corsTenant(t, `["`+page+`"]`)
	for _, path := range []string{
		"/v1/realtime/client_secrets", "/v1/realtime/sessions", "/v1/realtime/transcription_sessions", "/v1/realtime/calls",
		"/v1/realtime/calls/rtc_1/hangup", "/realtime/client_secrets", "/v1/v1/realtime/calls",
	} {
		for _, prefix := range []string{"", "/" + tenant} {
			got := s.do(t, "POST", prefix+path, "{}", bearer(someKey), fromPage)
			got.wantWireError(t, realtimePath, 404, "invalid_request_error", "")
			if !strings.Contains(got.body, "cannot be metered") {
				t.Errorf("%s: got %s", prefix+path, got.body)
			}
		}
		path = "/" + tenant + path
		s.do(t, "POST", path, "{}", fromPage).wantCORS(t, readable(page))
		s.do(t, "POST", path, "{}", otherPage).wantCORS(t, unreadable)
		s.do(t, "OPTIONS", path, "", fromPage, asksPOST).want(t, 204, "")
		if err := s.do(t, "OPTIONS", path, "", otherPage, asksPOST).is(404); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for path, want := range map[string]string{
		"/acme/realtime":        "did you mean /acme/v1/realtime? Then the base URL must end in /acme/v1",
		"/realtime":             "did you mean /v1/realtime? Then the base URL must end in /v1",
		"/acme/v1/v1/realtime":  "did you mean /acme/v1/realtime? Then the base URL must end in /acme/v1",
		"/acme/v1/realtime/":    "did you mean /acme/v1/realtime?",
		"/acme/v1/realtime/foo": "tollgate has chat/completions, ",
	} {
		got := s.do(t, "GET", path+"?model=m", "", handshake(bearer(someKey))...)
		got.wantWireError(t, realtimePath, 404, "invalid_request_error", "")
		if !strings.Contains(got.body, want) {
			t.Errorf("%s: got %s, want %s", path, got.body, want)
		}
	}
}

// standIn is a server with one route, /x, which opens a WebSocket for a session of its own.
type standIn struct {
	*server
	log  *telemetrytest.Log
	http *http.Server
	at   *connlimit.Listener
}

// newStandIn serves GET /x until the test ends. session is what the handler does with the WebSocket or, if it is to go on
// without the handler, what happens then: w is nil.
func newStandIn(t *testing.T, goesOn bool, session func(c *websocket.Conn, w http.ResponseWriter) error) *standIn {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := &standIn{log: new(telemetrytest.Log), at: connlimit.New(tcp, 16)}
	logger := in.log.Logger()
	in.server = &server{
		log: logger, metrics: newMetrics([]string{"GET /x"}), nearCapacity: notNearCapacity,
		gateway: gateway.New(gateway.Options{MaxWaiting: 8, MaxDrains: 8, MaxIdle: 8, MaxSessions: 8, TenantShare: 1}, logger),
	}
	in.options.accessLog = true
	in.handler = in.serveRoutes([]route{{"GET /x", access{}, func(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
		connlimit.Admit(r.Context())
		c, err := new(websocket.Side).Accept(w, r, "", nil)
		if err != nil {
			return err
		}
		if goesOn {
			requestInfoOf(w).run = func() { _ = session(c, nil) }
			return nil
		}
		return session(c, w)
	}}})
	in.http = newHTTPServer(in.at.Handler(in.handler), time.Minute, logger)
	go func() { _ = in.http.Serve(in.at) }()
	t.Cleanup(func() {
		in.http.Close()
		in.gateway.Stop()
	})
	return in
}

// connect opens a WebSocket to the stand-in.
func (in *standIn) connect(t *testing.T) *websocket.Conn {
	t.Helper()
	c, _, err := new(websocket.Side).Dial(t.Context(), new(http.Transport), "ws://"+in.at.Addr().String()+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	return c
}

// wantLine waits for a line of the log.
func wantLine(t *testing.T, log *telemetrytest.Log, pattern string) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^` + pattern + `$`)
	waittest.Eventually(t, 10*time.Second, func() error {
		if !line.MatchString(log.String()) {
			return fmt.Errorf("no line %s in\n%s", pattern, log)
		}
		return nil
	})
}

// A WebSocket counts as a response with status 101. However its handler ends, or the session that goes on without it,
// nothing more is sent, and the connection is closed.
func TestTakenOverConnection(t *testing.T) {
	t.Parallel()
	const greeting = "hello"
	for name, test := range map[string]struct {
		end  func(w http.ResponseWriter) error
		want string // in the log
	}{
		"without its handler":         {func(http.ResponseWriter) error { return nil }, ""},
		"a panic without its handler": {func(http.ResponseWriter) error { panic("oops") }, `\[ERROR\] panic in GET /x id=\S+: oops`},
		"nil":                         {func(http.ResponseWriter) error { return nil }, ""},
		"an error":                    {func(http.ResponseWriter) error { return errors.New("oops") }, `\[ERROR\] GET /x id=\S+: oops`},
		"a refusal":                   {func(http.ResponseWriter) error { return ErrNoKey }, ""},
		"a panic":                     {func(http.ResponseWriter) error { panic("oops") }, `\[ERROR\] panic in GET /x id=\S+: oops`},
		"http.ErrAbort":               {func(http.ResponseWriter) error { panic(http.ErrAbortHandler) }, ""},
		"a response":                  {func(w http.ResponseWriter) error { return writeBody(w, 200, []byte("x")) }, ""},
		"a response by hand":          {func(w http.ResponseWriter) error { w.WriteHeader(500); _, _ = w.Write([]byte("x")); return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			goesOn := strings.HasSuffix(name, "without its handler")
			in := newStandIn(t, goesOn, func(c *websocket.Conn, w http.ResponseWriter) error {
				_ = c.Send(websocket.Text, []byte(greeting))
				time.Sleep(1200 * time.Millisecond) // longer than what the histogram counts as a second
				return test.end(w)
			})
			c := in.connect(t)
			part, err := c.Next()
			if string(part.Data) != greeting || err != nil {
				t.Fatalf("got %q, %v", part.Data, err)
			}
			if n := in.sessions.Load(); n != 1 {
				t.Errorf("%d sessions are open", n)
			}
			if part, err := c.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("got %q, %v, want the end", part.Data, err)
			}
			const size = 97 + 32 + 2 + len(greeting) // the header of the response, and a frame
			wantLine(t, in.log, fmt.Sprintf(
				`\[INFO\] GET /x tenant=- status=101 bytes=%d duration=\d{4,}\.\d\dms remote=127\.0\.0\.1 id=\S+ `+
					`seconds=0\.0 input=0 output=0 charged=0`, size))
			if test.want != "" {
				wantLine(t, in.log, test.want)
			}
			waittest.Eventually(t, 10*time.Second, func() error {
				if n := in.sessions.Load() + int64(in.at.Connections()-1); n > 0 { // one is awaited
					return fmt.Errorf("%d sessions or connections are left", n)
				}
				return nil
			})
			wantSamples(t, in.metrics, `http_requests_total{route="/x",method="GET",status="101"} 1`,
				`http_request_duration_seconds_bucket{route="/x",le="1"} 1`)
			if strings.Contains(in.log.String(), "hijacked") {
				t.Errorf("log:\n%s", in.log)
			}
		})
	}
}

// When the process is to stop, sessions go on until the drain timeout. They are then ended, and awaited until nothing of
// them is left to do.
func TestDrainSessions(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	for name, test := range map[string]struct {
		lasts  time.Duration // for which a session goes on by itself
		closed int           // sessions that the drain closes
	}{
		"sessions that end in time": {timeout / 10, 0},
		"sessions that do not":      {time.Hour, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opened, ended := make(chan struct{}), make(chan struct{})
			var in *standIn
			stopped := make(chan struct{})
			in = newStandIn(t, true, func(c *websocket.Conn, _ http.ResponseWriter) error {
				place := in.gateway.SessionPlace("t", "u")
				defer place.Release()
				_ = place.Add(1)
				close(opened)
				select {
				case <-time.After(test.lasts):
				case <-stopped:
				}
				_ = c.Close(websocket.CloseGoingAway, "")
				c.Finish()
				time.Sleep(300 * time.Millisecond) // it still settles
				close(ended)
				return nil
			})
			c := in.connect(t)
			<-opened
			_ = in.at.Close()
			began := time.Now()
			time.AfterFunc(timeout+keepAliveGrace, func() { close(stopped) })
			go func() {
				for _, err := c.Next(); err == nil; _, err = c.Next() {
				}
				c.Finish()
			}()
			drain(in.http, in.at, in.server, timeout, in.server.log)
			select {
			case <-ended:
			default:
				t.Errorf("after %s the session has not ended", time.Since(began))
			}
			if n := in.log.Count("Realtime sessions that were still open after 1s and are closed: 1\n"); n != test.closed {
				t.Errorf("log:\n%s", in.log)
			}
			if n := in.log.Count("status=101"); n != 1 {
				t.Errorf("its line came too late:\n%s", in.log)
			}
		})
	}
}

// The tokens of a session count when they are settled, and its time when it has ended.
func TestSessionMetrics(t *testing.T) {
	m := newMetrics(nil)
	s := &server{metrics: m, usage: newUsageStats(nil)}
	used := llmwire.Usage{Input: 100, CachedInput: 40, AudioInput: 20, CachedAudioInput: 10, Output: 50, AudioOutput: 30}
	session := s.newSessionAccount(&tenant{id: "t"}, someKey, nil, nil)
	for _, isPart := range []bool{true, false} {
		session.countUsage(settlement{charged: 7}, gateway.Usage{Endpoint: "e", Model: "m", Usage: used, IsPart: isPart})
		session.countUsage(settlement{}, gateway.Usage{IsPart: isPart}) // a hold that was given back
	}
	session.account.countUsage(settlement{charged: 7}, gateway.Usage{Endpoint: "e", Usage: used}) // counts at its end
	o := &gateway.Outcome{Endpoint: "e", Model: "m", Session: 90 * time.Minute, FirstByte: time.Second}
	o.Usage = used
	o.Add(&used)
	m.gateway.count("t", o, 101, 30*time.Millisecond)
	const labels = `{tenant="t",endpoint="e",`
	wantSamples(t, m, `gateway_requests_total`+labels+`status="101"} 1`,
		`gateway_realtime_seconds_total{tenant="t",endpoint="e"} 5400`,
		`gateway_tokens_total`+labels+`direction="input",kind="input"} 60`,
		`gateway_tokens_total`+labels+`direction="input",kind="cached_input"} 80`,
		`gateway_tokens_total`+labels+`direction="input",kind="audio_input"} 40`,
		`gateway_tokens_total`+labels+`direction="input",kind="cached_audio_input"} 20`,
		`gateway_tokens_total`+labels+`direction="output",kind="output"} 40`,
		`gateway_tokens_total`+labels+`direction="output",kind="audio_output"} 60`,
		`gateway_request_duration_seconds_bucket{endpoint="e",le="0.05"} 1`,
		`tokens_charged_total{tenant="t"} 21`)
	e := new(telemetry.Page)
	m.write(e)
	if strings.Contains(e.String(), `endpoint=""`) {
		t.Errorf("tokens count without an endpoint:\n%s", e)
	}
	got := sessionText(&requestInfo{outcome: *o, session: session})
	if want := " seconds=5400.0 input=200 output=100 charged=14"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// No key is in the log, wherever it was sent.
func TestRealtimeLogHasNoKey(t *testing.T) {
	t.Parallel()
	s := newService(t, "ACCESS_LOG=true")
	tenant := corsTenant(t, `["`+page+`"]`)
	key, path := s.login(t, tenant), "/"+tenant+realtimePath
	requests := 0
	for _, secret := range []string{key, someKey, "sk-secret-of-a-provider"} {
		for _, credential := range []string{
			bearer(secret), "api-key: " + secret, "X-API-Key: " + secret, asProtocol("realtime, ", secret), asProtocol("", secret),
			"Sec-WebSocket-Protocol: realtime, " + secret,
		} {
			for _, more := range []string{"X-Other: 1", otherPage, fromPage, asProtocol("", key), "Sec-WebSocket-Key: x"} {
				for _, query := range []string{"", "?model=" + key, "?api_key=" + secret, "?" + secret} {
					s.do(t, "GET", path+query, "", handshake(credential, more)...)
					requests++
				}
			}
			s.do(t, "POST", path+"/calls/"+secret, "", credential)
			s.do(t, "GET", "/"+tenant+"/realtime?"+secret, "", handshake(credential)...)
			requests += 2
		}
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if got := s.log.Count(" tenant="); got < requests {
			return fmt.Errorf("%d lines, want %d", got, requests)
		}
		return nil
	})
	for _, secret := range []string{key, someKey, "sk-secret"} {
		if s.log.Count(secret)+s.log.Count(strings.TrimPrefix(secret, userKeyPrefix)) > 0 {
			t.Errorf("%s is in the log:\n%s", secret, s.log)
		}
	}
}

// waitSessions returns at once if nothing is open.
func TestWaitSessions(t *testing.T) {
	s := new(server)
	if open := s.waitSessions(context.Background()); open != 0 {
		t.Errorf("%d sessions are open", open)
	}
	s.sessions.Add(2)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if open := s.waitSessions(ctx); open != 2 {
		t.Errorf("%d sessions are open", open)
	}
}

// The client of an open session is told why its account refuses to go on.
func TestSessionRefusal(t *testing.T) {
	for _, test := range []struct {
		err           error
		status        int
		code, message string
	}{
		{ErrKeyDisabled, 403, "", "API key is disabled"},
		{ErrGroupDisabled, 403, "group_disabled", "Group is disabled"},
		{fmt.Errorf("hold tokens: %w", ErrGroupDisabled), 403, "group_disabled", "Group is disabled"},
		{ErrTooManyRequests, 429, "", "Too many requests at a time"},
		{errors.New("a secret"), 500, "", "Internal error"},
	} {
		if status, code, message := sessionRefusal(test.err); status != test.status || code != test.code || message != test.message {
			t.Errorf("%v: got %d, %q, %q, want %+v", test.err, status, code, message, test)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// talkTest is a service with a tenant whose only endpoint, realtime, is a provider of sessions of the model m.
type talkTest struct {
	*service
	provider    *providertest.Realtime
	tenant, key string
}

// talkPrices are those of the model m.
var talkPrices = map[string]int64{
	"input": 4, "cached_input": 1, "audio_input": 32, "cached_audio_input": 2, "output": 16, "audio_output": 64,
}

// newTalkTest starts a service, and creates a tenant whose anonymous users get that many tokens.
func newTalkTest(t testing.TB, tokens int, conduct providertest.RealtimeConduct, settings ...string) *talkTest {
	t.Helper()
	p := providertest.NewRealtime(t)
	p.On(conduct)
	s := &talkTest{service: newService(t, append(settings, "ACCESS_LOG=true")...), provider: p}
	s.tenant = newTenantIn(t, testRedis, talkConfig(p, tokens))
	s.key = s.login(t, s.tenant)
	return s
}

// talkConfig is the config of that tenant.
func talkConfig(p *providertest.Realtime, tokens int) string {
	prices := make([]string, 0, len(talkPrices))
	for kind, price := range talkPrices {
		prices = append(prices, fmt.Sprintf("%q:%d", kind, price))
	}
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d}},"providers":{"realtime":{"endpoints":{`+
		`"realtime":{"type":"openai","url":%q,"api_key":"%s","model":"m","models":{"m":{%s}},`+
		`"max_input_tokens":1000,"max_output_tokens":100}}}}}`, tokens, p.URL, providertest.Key, strings.Join(prices, ","))
}

// talkClient is a client of a session.
type talkClient struct {
	*websocket.Conn
	response *http.Response // to its handshake
}

// connect opens a session.
func (s *talkTest) connect(t testing.TB, query string, header http.Header, protocols ...string) (*talkClient, error) {
	t.Helper()
	address := "ws" + strings.TrimPrefix(s.url, "http") + "/" + s.tenant + realtimePath + query
	c, response, err := new(websocket.Side).Dial(t.Context(), new(http.Transport), address, header, protocols...)
	if err != nil {
		return &talkClient{response: response}, err
	}
	t.Cleanup(c.Abort)
	return &talkClient{c, response}, nil
}

// open opens a session with the key.
func (s *talkTest) open(t testing.TB) *talkClient {
	t.Helper()
	c, err := s.connect(t, "", http.Header{"Authorization": {"Bearer " + s.key}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// await reads events until one has text in it, and returns that.
func (c *talkClient) await(t testing.TB, text string) string {
	t.Helper()
	var event []byte
	for {
		part, err := c.Next()
		if err != nil {
			t.Fatalf("the session has ended with %v, and no event has %s", err, text)
		}
		if event = append(event, part.Data...); part.Last {
			if strings.Contains(string(event), text) {
				return string(event)
			}
			event = event[:0]
		}
	}
}

// respond asks for a response, and awaits it.
func (c *talkClient) respond(t testing.TB) {
	t.Helper()
	if err := c.Send(websocket.Text, []byte(`{"type":"response.create"}`)); err != nil {
		t.Fatal(err)
	}
	c.await(t, `"response.done"`)
}

// end reads until the session has ended, and returns the code.
func (c *talkClient) end(t testing.TB) websocket.Code {
	t.Helper()
	for {
		if _, err := c.Next(); err != nil {
			closed, ok := errors.AsType[*websocket.CloseError](err)
			c.Finish()
			if !ok {
				t.Errorf("the session has ended with %v", err)
				return 0
			}
			return closed.Code
		}
	}
}

// used is what one response uses, in tests that do not say otherwise, and what that costs.
var used = providertest.RealtimeUsage{Text: 100, Audio: 50, CachedText: 40, CachedAudio: 10, OutputText: 20, OutputAudio: 30}

func usedCost() int64 { return used.Cost(talkPrices, nil) }

// works is a provider whose responses use that.
func works() providertest.RealtimeConduct {
	return providertest.RealtimeConduct{Response: providertest.RealtimeResponse{Usage: used}}
}

// A session opens with each kind of credential and name, and the response says so as openapi.json has it.
func TestOpenSession(t *testing.T) {
	t.Parallel()
	s := newTalkTest(t, 1_000_000, works())
	for _, test := range []struct {
		query     string
		header    http.Header
		protocols []string
		protocol  string // that was chosen
	}{
		{"", http.Header{"Authorization": {"Bearer " + s.key}}, nil, ""},
		{"?model=m", http.Header{"Api-Key": {s.key}}, nil, ""},
		{"?model=realtime", http.Header{"X-Api-Key": {s.key}}, []string{"realtime"}, "realtime"},
		{"?model=realtime/m", nil, []string{"realtime", keyProtocolPrefix + s.key, "openai-agents-sdk.0.3.1"}, "realtime"},
		{"?model=", nil, []string{keyProtocolPrefix + s.key, "realtime"}, "realtime"},
		{"", http.Header{"Authorization": {"Bearer " + s.key}, "Origin": {page}}, nil, ""},
	} {
		c, err := s.connect(t, test.query, test.header, test.protocols...)
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		if got := c.Protocol(); got != test.protocol {
			t.Errorf("%+v: got the subprotocol %q", test, got)
		}
		got := reply{c.response.StatusCode, c.response.Header, ""}
		got.wantDocumented(t, "GET", "/"+s.tenant+realtimePath)
		if got.header.Get("X-Request-Id") == "" || got.header.Get("Sec-WebSocket-Extensions") != "" {
			t.Errorf("%+v: the header is %q", test, got.header)
		}
		c.await(t, `"session.created"`)
		_ = c.Close(websocket.CloseNormal, "")
		if code := c.end(t); code != websocket.CloseNormal {
			t.Errorf("%+v: it was closed with %d", test, code)
		}
	}
	for i, request := range s.provider.Requests() {
		if key := request.Header.Get("Authorization"); key != "Bearer "+providertest.Key || request.Header.Get("Origin") != "" ||
			request.Header.Get("Sec-WebSocket-Protocol") != "" || request.Header.Get(loopHeader) == "" {
			t.Errorf("request %d: the provider gets %q", i, request.Header)
		}
	}
}

// What a session has used counts while it goes on, and once; the session itself counts when it has ended.
func TestSessionIsCounted(t *testing.T) {
	t.Parallel()
	const responses = 3
	s := newTalkTest(t, 1_000_000, works())
	first := today()
	labels := fmt.Sprintf(`{tenant="%s",endpoint="realtime",`, s.tenant)
	want := func(when, sample string, want float64) {
		t.Helper()
		waittest.Eventually(t, 10*time.Second, func() error {
			if got := max(s.sample(t, sample), 0); got != want {
				return fmt.Errorf("%s: %s is %v, want %v", when, sample, got, want)
			}
			return nil
		})
	}
	c := s.open(t)
	for n := range responses {
		c.respond(t)
		when := fmt.Sprintf("after %d responses", n+1)
		want(when, "gateway_tokens_total"+labels+`direction="input",kind="input"}`, float64(n+1)*float64(used.Text-used.CachedText))
		want(when, "gateway_tokens_total"+labels+`direction="output",kind="audio_output"}`, float64(n+1)*float64(used.OutputAudio))
		want(when, `tokens_charged_total{tenant="`+s.tenant+`"}`, float64(n+1)*float64(usedCost()))
		want(when, "gateway_realtime_sessions", 1)
		want(when, `pool_used{pool="sessions"}`, 1)
		want(when, "gateway_requests_total"+labels+`status="101"}`, 0)
	}
	time.Sleep(1100 * time.Millisecond)
	_ = c.Close(websocket.CloseNormal, "")
	c.end(t)
	const end = "after the end"
	want(end, "gateway_requests_total"+labels+`status="101"}`, 1)
	want(end, "gateway_realtime_sessions", 0)
	want(end, `pool_used{pool="sessions"}`, 0)
	want(end, "gateway_holds", 0)
	want(end, "gateway_tokens_total"+labels+`direction="input",kind="input"}`, responses*float64(used.Text-used.CachedText))
	want(end, `tokens_charged_total{tenant="`+s.tenant+`"}`, responses*float64(usedCost()))
	want(end, `http_requests_total{route="/{tenantId}/v1/realtime",method="GET",status="101"}`, 1)
	want(end, `http_request_duration_seconds_bucket{route="/{tenantId}/v1/realtime",le="1"}`, 1)
	want(end, `gateway_request_duration_seconds_bucket{endpoint="realtime",le="1"}`, 1)
	if seconds := s.sample(t, fmt.Sprintf(`gateway_realtime_seconds_total{tenant="%s",endpoint="realtime"}`, s.tenant)); seconds < 1.1 {
		t.Errorf("the session has lasted for %v s", seconds)
	}
	input, output := responses*(used.Text+used.Audio), responses*(used.OutputText+used.OutputAudio)
	wantLine(t, s.log, fmt.Sprintf(`\[INFO\] GET /\{tenantId\}/v1/realtime tenant=%s status=101 bytes=\d{4,} duration=\d{4,}\.\d\dms `+
		`remote=127\.0\.0\.1 id=\S+ endpoint="realtime" model="m" seconds=\d+\.\d input=%d output=%d charged=%d`,
		s.tenant, input, output, responses*usedCost()))
	if left := tokensLeft(t, s.key); int64(left) != 1_000_000-responses*usedCost() {
		t.Errorf("%d tokens are left", left)
	}
	s.wantUsed(t, first, endpointUsage{
		Requests: 1, InputTokens: input, CachedInputTokens: responses * (used.CachedText + used.CachedAudio),
		AudioInputTokens: responses * used.Audio, OutputTokens: output, AudioOutputTokens: responses * used.OutputAudio,
		TokensCharged: responses * usedCost(),
	})
}

// A session is one request of the rate limit, one of max_concurrent until its end, and one of the sessions that an eighth
// of the connections may be.
func TestSessionIsBounded(t *testing.T) {
	t.Parallel()
	const noSetting = "MAX_CONNECTIONS=4096" // the default
	for name, row := range map[string]struct {
		limits, setting string // of the group, and of the service
		status          int    // of a second session
		code, phrase    string
		isOver          bool // a third one, after the end of the first, is opened
	}{
		"rate limit":     {`"rate_limit":1,"rate_limit_window":999`, noSetting, 429, "rate_limit_exceeded", "", false},
		"max_concurrent": {`"max_concurrent":1`, noSetting, 429, "rate_limit_exceeded", "at a time", true},
		"sessions":       {`"rate_limit":9,"rate_limit_window":999`, "MAX_CONNECTIONS=15", 503, "", "Too many sessions", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTalkTest(t, 1_000_000, works(), row.setting)
			config := talkConfig(s.provider, 1_000_000)
			s.saveConfig(t, s.tenant, strings.Replace(config, `"tokens":`, row.limits+`,"tokens":`, 1))
			c := s.open(t)
			second := func() reply {
				return s.do(t, "GET", "/"+s.tenant+realtimePath, "", handshake(bearer(s.key))...)
			}
			got := second()
			if got.status != row.status || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, row.code) ||
				!strings.Contains(got.body, row.phrase) {
				t.Errorf("got %d %q %s, want %d %s", got.status, got.header, got.body, row.status, row.code)
			}
			limited := strings.Contains(row.limits, "rate_limit")
			if remaining := c.response.Header.Get("X-RateLimit-Remaining-Requests"); (remaining != "") != limited {
				t.Errorf("%q requests remain", remaining)
			}
			reply{c.response.StatusCode, c.response.Header, ""}.wantDocumented(t, "GET", "/"+s.tenant+realtimePath)
			_ = c.Close(websocket.CloseNormal, "")
			c.end(t)
			waittest.Eventually(t, 10*time.Second, func() error {
				again, err := s.connect(t, "", http.Header{"Authorization": {"Bearer " + s.key}})
				if (err == nil) != row.isOver {
					return fmt.Errorf("after the end, another session: %v", err)
				}
				if err == nil {
					again.Abort()
				}
				return nil
			})
		})
	}
}

// wantUsed waits until that was used of the endpoint on the day first or since, and checks the sums.
func (s *talkTest) wantUsed(t *testing.T, first string, want endpointUsage) {
	t.Helper()
	waittest.Eventually(t, 20*time.Second, func() error {
		total := s.usage(t, s.tenant, first)
		if got := total.ByEndpoint["realtime"]; got != want {
			return fmt.Errorf("got %+v, want %+v", got, want)
		}
		if total.Requests != want.Requests || total.TokensCharged != want.TokensCharged {
			return fmt.Errorf("got %+v, want %+v", total, want)
		}
		return nil
	})
}

// spent returns what everything has cost that the provider has reported.
func (s *talkTest) spent() (cost int64) {
	for _, u := range s.provider.Usages() {
		cost += u.Cost(talkPrices, nil)
	}
	return cost
}

// When the service stops, sessions go on for the drain timeout, and are then closed with 1001. What is being generated is
// cancelled, and paid for, before the connections to Redis are closed.
func TestSessionsWhenStopped(t *testing.T) {
	t.Parallel()
	const drainTimeout = 1500 * time.Millisecond
	for name, conduct := range map[string]providertest.RealtimeConduct{
		"idle":       works(),
		"responding": {Response: providertest.RealtimeResponse{Usage: used, Hang: providertest.InContent}},
		"deaf":       {Response: providertest.RealtimeResponse{Usage: used, Hang: providertest.InContent, Deaf: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const granted = 1_000_000
			s := newTalkTest(t, granted, conduct, "DRAIN_TIMEOUT="+drainTimeout.String())
			c := s.open(t)
			if name == "idle" {
				c.respond(t)
			} else {
				_ = c.Send(websocket.Text, []byte(`{"type":"response.create"}`))
				c.await(t, `.delta"`)
			}
			began := time.Now()
			stopped := make(chan error, 1)
			go func() { stopped <- s.stop() }()
			if name == "idle" { // it goes on
				s.log.Wait(t, "[INFO] Stopping", nil)
				c.respond(t)
			}
			if code := c.end(t); code != websocket.CloseGoingAway {
				t.Errorf("it was closed with %d", code)
			}
			if took := time.Since(began); took < drainTimeout {
				t.Errorf("it was closed after %s", took)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			charged := int64(granted - tokensLeft(t, s.key))
			if want := s.spent(); charged != want && name != "deaf" || charged == 0 || charged > 36_000 {
				t.Errorf("%d tokens were charged, want %d", charged, want)
			}
			if n := testRedis.Int(t, "EXISTS", "{apiKey:"+s.key+"}:holds"); n > 0 {
				t.Error("tokens are still held")
			}
			wantLine(t, s.log, fmt.Sprintf(`\[INFO\] GET /\{tenantId\}/v1/realtime tenant=%s status=101 .* charged=%d`, s.tenant, charged))
			if s.log.Count("Realtime sessions that were still open after 1.5s and are closed: 1\n") != 1 ||
				s.log.Count("[WARN] Requests still ran")+s.log.Count("not settled") > 0 {
				t.Errorf("log:\n%s", s.log)
			}
		})
	}
}

// A provider that takes its time to refuse a session does not keep the client from learning why.
func TestSlowSessionRefusal(t *testing.T) {
	long(t)
	t.Parallel()
	s := newTalkTest(t, 1_000_000, providertest.RealtimeConduct{Status: 401, Delay: writeTimeout + time.Second})
	s.do(t, "GET", "/"+s.tenant+realtimePath, "", handshake(bearer(s.key))...).wantWireError(t, realtimePath, 502, "api_error", "")
}

// No key is in any line of the log, however a session was opened, or refused, and has ended.
func TestSessionLogHasNoKey(t *testing.T) {
	t.Parallel()
	s := newTalkTest(t, 200_000, works())
	opened := 0
	for _, test := range []struct {
		header    http.Header
		protocols []string
	}{
		{http.Header{"Authorization": {"Bearer " + s.key}}, nil},
		{http.Header{"Api-Key": {s.key}}, nil},
		{http.Header{"X-Api-Key": {s.key}, "X-Request-Id": {s.key}}, nil},
		{nil, []string{"realtime", keyProtocolPrefix + s.key}},
	} {
		for _, end := range []func(c *talkClient){
			func(c *talkClient) { _ = c.Close(websocket.CloseNormal, s.key) },
			func(c *talkClient) { _ = c.Send(websocket.Binary, []byte(s.key)) },
			func(c *talkClient) {
				_ = c.Send(websocket.Text, []byte(`{"type":"`+s.key+`"}`))
				_ = c.Close(4000, "")
			},
			func(c *talkClient) { _ = c.Send(websocket.Text, []byte(s.key)); _ = c.Close(4000, "") },
			func(c *talkClient) { c.Abort() },
			func(*talkClient) { s.provider.Session(t, opened).Close(4000, providertest.Key+s.key) },
			func(*talkClient) { s.provider.Session(t, opened).Abort() },
		} {
			c, err := s.connect(t, "", test.header, test.protocols...)
			if err != nil {
				t.Fatal(err)
			}
			opened++
			c.await(t, `"session.created"`)
			end(c)
			for _, err := c.Next(); err == nil; _, err = c.Next() {
			}
			c.Finish()
		}
	}
	refused := 0
	refuse := func(conduct providertest.RealtimeConduct) {
		s.provider.On(conduct)
		for _, header := range []string{bearer(s.key), "api-key: " + s.key, asProtocol("realtime, ", s.key)} {
			if got := s.do(t, "GET", "/"+s.tenant+realtimePath, "", handshake(header)...); got.status < 400 {
				t.Errorf("%+v: %d", conduct, got.status)
			}
			refused++
		}
	}
	for _, status := range []int{200, 302, 400, 401, 403, 429, 500} {
		body := `{"error":{"message":"Incorrect API key provided: ` + providertest.Key + s.key + `"}}`
		refuse(providertest.RealtimeConduct{Status: status, Body: body, Header: []string{"Location: http://" + s.key}})
	}
	s.provider.Stop()
	refuse(providertest.RealtimeConduct{})
	waittest.Eventually(t, 20*time.Second, func() error {
		if got := s.log.Count("/v1/realtime "); got != opened+refused {
			return fmt.Errorf("%d lines, want %d", got, opened+refused)
		}
		return nil
	})
	for _, secret := range []string{s.key, providertest.Key, strings.TrimPrefix(s.key, anonymousKeyPrefix), keyProtocolPrefix} {
		if s.log.Count(secret) > 0 {
			t.Errorf("%s is in the log:\n%s", secret, s.log)
		}
	}
}

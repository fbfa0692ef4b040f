package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// ultravoxConfig returns the config of a tenant with two endpoints of a provider. Its anonymous users have 1,000 tokens,
// and may use the second one alone.
func ultravoxConfig(p *providertest.Ultravox) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":1000,"models":["second"]}},"providers":{"realtime":{"endpoints":{
		"ultravox":{"url":%[1]q,"api_key":%[2]q},
		"second":{"type":"ultravox","url":%[1]q,"api_key":%[2]q,"voice":"Mark","sampleRate":16000,"price":{"second":7}}}}}}`,
		p.URL, providertest.Key)
}

// callUltravox opens a call. It returns nil and the response if it is refused.
func (g *gatewayTest) callUltravox(t testing.TB, query string) (*websocket.Conn, *http.Response) {
	t.Helper()
	transport := new(http.Transport)
	t.Cleanup(transport.CloseIdleConnections)
	c, response, err := new(websocket.Side).Dial(t.Context(), transport, g.url+"/"+g.tenant+realtimePath+query,
		http.Header{"Authorization": {"Bearer " + g.key}})
	if response == nil {
		t.Fatal(err)
	}
	return c, response
}

// A call is created, relayed and charged through the service, and nobody but Ultravox learns its key or where it is
// joined.
func TestUltravox(t *testing.T) {
	t.Parallel()
	s := newService(t, "ACCESS_LOG=true")
	p := providertest.NewUltravox(t)
	g := s.gatewayTest(t, nil, ultravoxConfig(p))

	client, response := g.callUltravox(t, "") // not the first endpoint, which the key may not use
	if client == nil {
		t.Fatalf("got %s", response.Status)
	}
	call := p.Call(t, 1)
	if got, want := call.Max, 138*time.Second; got != want {
		t.Errorf("the call may last %v, want %v", got, want)
	}
	sent := append([]byte(nil), "sound"...)
	_ = client.Send(websocket.Binary, sent)
	_ = client.Send(websocket.Text, []byte(`{"type":"spawn_thread"}`))
	var got []string
	for len(got) < 4 {
		part, err := client.Next()
		if err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		got = append(got, string(part.Data))
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{`"call_started"`, `"state"`, "sound", `"unknown_event"`} {
		if !strings.Contains(all, want) {
			t.Errorf("got %s, want %s", all, want)
		}
	}
	_ = client.Close(websocket.CloseNormal, "")
	client.Finish()
	if got := g.charged(t, 1000); got != 42 {
		t.Errorf("%d tokens were charged, want 42", got)
	}
	lasted, billed, reason := call.Bill()
	if billed != 6*time.Second || reason != "hangup" {
		t.Errorf("it lasted %v, %v are billed, and it ended with %q", lasted, billed, reason)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if s.log.Count(" charged=42") != 1 {
			return fmt.Errorf("no line of the log says what was charged: %s", s.log)
		}
		return nil
	})
	for _, secret := range []string{providertest.Key, call.JoinURL, g.key} {
		if s.log.Count(secret) > 0 || strings.Contains(all, secret) {
			t.Errorf("%s was shown", secret)
		}
	}
}

// What a provider refuses becomes a status before the 101, and costs nothing.
func TestUltravoxRefusals(t *testing.T) {
	t.Parallel()
	s := newService(t, "ACCESS_LOG=true")
	p := providertest.NewUltravox(t)
	g := s.gatewayTest(t, nil, ultravoxConfig(p))
	for _, test := range []struct {
		query   string
		conduct providertest.UltravoxConduct
		status  int
	}{
		{"?model=ultravox", providertest.UltravoxConduct{}, 404},
		{"?model=none", providertest.UltravoxConduct{}, 404},
		{"", providertest.UltravoxConduct{Status: 403}, 502},
		{"", providertest.UltravoxConduct{Status: 400}, 502},
		{"", providertest.UltravoxConduct{Status: 429, Header: []string{"Retry-After: 9"}}, 429},
		{"", providertest.UltravoxConduct{Body: `{"joinUrl":"http://127.0.0.1/"}`}, 502},
		{"", providertest.UltravoxConduct{JoinStatus: 404}, 502},
	} {
		p.On(test.conduct)
		client, response := g.callUltravox(t, test.query)
		if client != nil || response.StatusCode != test.status {
			t.Errorf("%s %+v: got %s, want %d", test.query, test.conduct, response.Status, test.status)
		}
		if got := response.Header.Get("Retry-After"); (got == "9") != (test.status == 429) {
			t.Errorf("%d: got Retry-After %q", test.status, got)
		}
		if got := g.charged(t, 1000); got != 0 {
			t.Errorf("%s %+v: %d tokens were charged", test.query, test.conduct, got)
		}
	}
	if s.log.Count(providertest.Key) > 0 {
		t.Error("the key was logged")
	}
}

// No matter what ends a call, 6 s are charged for it, nothing more is held, and each side gets the code. A key that may
// not go on ends one after 30 s: see the tests of the gateway.
func TestUltravoxSessionEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tokens         int
		end            func(g *gatewayTest, client *endClient, call *providertest.UltravoxCall)
		client, server websocket.Code
		event          string // as endRow has it
	}{
		"client closes": {1000, func(_ *gatewayTest, client *endClient, _ *providertest.UltravoxCall) {
			_ = client.Close(4001, "bye")
		}, 4001, 4001, ""},
		"client is gone": {1000, func(_ *gatewayTest, client *endClient, _ *providertest.UltravoxCall) {
			client.Abort()
		}, websocket.CloseLost, websocket.CloseGoingAway, ""},
		"provider closes": {1000, func(_ *gatewayTest, _ *endClient, call *providertest.UltravoxCall) {
			call.Close(4002, "enough")
		}, 4002, 4002, ""},
		"provider is gone": {1000, func(_ *gatewayTest, _ *endClient, call *providertest.UltravoxCall) {
			call.Abort()
		}, websocket.CloseInternal, websocket.CloseLost, "api_error"},
		"SIGTERM": {1000, func(g *gatewayTest, _ *endClient, _ *providertest.UltravoxCall) {
			go func() { _ = g.stop() }()
		}, websocket.CloseGoingAway, websocket.CloseGoingAway, ""},
		"balance, which Ultravox knows": {50, func(*gatewayTest, *endClient, *providertest.UltravoxCall) {},
			websocket.CloseNormal, websocket.CloseNormal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := providertest.NewUltravox(t)
			config := strings.Replace(ultravoxConfig(p), `"tokens":1000`, fmt.Sprintf(`"tokens":%d`, test.tokens), 1)
			g := newService(t, "DRAIN_TIMEOUT=100ms").gatewayTest(t, nil, config)
			conn, response := g.callUltravox(t, "")
			if conn == nil {
				t.Fatalf("got %s", response.Status)
			}
			client := newEndClient(&talkClient{conn, response})
			client.wait(t, `"call_started"`, 1)
			call := p.Call(t, 1)
			test.end(g, client, call)
			if code := client.end(t); code != test.client {
				t.Errorf("the client got the code %d, want %d", code, test.client)
			}
			if code := call.Ended(t); code != test.server {
				t.Errorf("the provider got the code %d, want %d", code, test.server)
			}
			if got, want := client.errors(t), strings.Fields(test.event); !slices.Equal(got, want) {
				t.Errorf("the client got the errors %q, want %q", got, want)
			}
			if got := g.charged(t, test.tokens); got != 42 {
				t.Errorf("%d tokens were charged, want 42", got)
			}
		})
	}
}

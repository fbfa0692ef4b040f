package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The call is created with the operator's key and what the config says, and joined without the key.
func TestUltravoxCall(t *testing.T) {
	const medium = `"medium":{"serverWebSocket":{"inputSampleRate":16000,"outputSampleRate":24000}},"joinTimeout":"30s","maxDuration":"3600s"`
	for _, test := range []struct{ model, voice, call, want string }{
		{"", "", "", `{` + medium + `}`},
		{"ultravox-v0.7", "Mark", `{}`, `{"model":"ultravox-v0.7","voice":"Mark",` + medium + `}`},
		{"", `"`, `{"systemPrompt":"Be brief.","temperature":0.30000000000000000001,"metadata":{"a":[1,null]}}`,
			`{"voice":"\"","systemPrompt":"Be brief.","temperature":0.30000000000000000001,"metadata":{"a":[1,null]},` + medium + `}`},
		{"a", "b", `{"model":"x","voice":"x","maxDuration":"9999s","joinTimeout":"1h","medium":{"webRtc":{}}}`,
			`{"model":"a","voice":"b",` + medium + `}`},
	} {
		inCall(t, func(c *callTest) {
			c.rules.model, c.rules.voice, c.rules.call = test.model, test.voice, []byte(test.call)
			s, err := c.begin()
			if err != nil {
				t.Fatal(err)
			}
			<-c.providers
			s.abandon()
			if got := c.bodies[0]; !reflect.DeepEqual(numbersOf(t, got), numbersOf(t, test.want)) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			for i, want := range []http.Header{
				{"Content-Type": jsonType, "Accept": jsonType, "X-Api-Key": {ultravoxKey}, "Tollgate-Loop": {"hop"}, "User-Agent": ownUserAgent},
				{"Tollgate-Loop": {"hop"}, "User-Agent": ownUserAgent},
			} {
				got := c.requests[i].Header.Clone()
				for _, name := range []string{"Content-Length", "Connection", "Upgrade"} {
					delete(got, name)
				}
				for name := range got {
					if strings.HasPrefix(name, "Sec-Websocket-") {
						delete(got, name)
					}
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("request %d: got %v, want %v", i, got, want)
				}
			}
			if got, want := c.requests[1].URL.Path, "/join/"+joinToken; got != want {
				t.Errorf("joined at %s, want %s", got, want)
			}
		})
	}
}

// numbersOf decodes a JSON object, whose numbers stay as they are.
func numbersOf(t *testing.T, text string) (members map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return members
}

// A call that cannot be created or joined costs nothing. The client gets a status, the operator a reason, and neither
// gets a secret.
func TestUltravoxRefused(t *testing.T) {
	const (
		noSession = "The provider does not open a session"
		noAccount = "The provider refuses this service's account"
		noJoin    = "its response has no joinUrl that may be dialled"
		echo      = `{"detail":"` + ultravoxKey + " " + joinToken + `"}`
	)
	tests := []struct {
		name    string
		set     func(c *callTest)
		status  int
		message string
		log     string
	}{
		{"400", func(c *callTest) { c.status, c.created = 400, echo }, 502, noSession, "it responds with 400 to the creation of a call"},
		{"401", func(c *callTest) { c.status, c.created = 401, echo }, 502, noAccount, accountRefused + "401"},
		{"402", func(c *callTest) { c.status, c.created = 402, echo }, 502, noAccount, accountRefused + "402"},
		{"403", func(c *callTest) { c.status, c.created = 403, echo }, 502, noAccount, accountRefused + "403"},
		{"404", func(c *callTest) { c.status, c.created = 404, echo }, 502, noSession, "it responds with 404"},
		{"429", func(c *callTest) { c.status, c.created = 429, echo }, 429, "The provider has too many sessions", "it responds with 429"},
		{"500", func(c *callTest) { c.status, c.created = 500, echo }, 502, noSession, "it responds with 500"},
		{"503", func(c *callTest) { c.status, c.created = 503, echo }, 503, "The provider has too many sessions", "it responds with 503"},
		{"a redirect", func(c *callTest) { c.status = 302 }, 502, noSession, "it responds with 302"},
		{"202", func(c *callTest) { c.status = 202 }, 502, noSession, "it responds with 202"},
		{"no body", func(c *callTest) { c.created = "" }, 502, noSession, noJoin},
		{"no URL", func(c *callTest) { c.created = echo }, 502, noSession, noJoin},
		{"a long body", func(c *callTest) { c.created += strings.Repeat(" ", maxCreatedCall) }, 502, noSession, noJoin},
		{"joining refused", func(c *callTest) { c.joins = 404 }, 502, noSession, "it refuses to let its call be joined with 404"},
		{"joining redirected", func(c *callTest) { c.joins = 302 }, 502, noSession, "it refuses to let its call be joined with 302"},
		{"no WebSocket", func(c *callTest) { c.joins = 200 }, 502, noSession, "it refuses to let its call be joined with 200"},
		{"no server", func(c *callTest) { c.transports.plain.DialContext = noNetwork }, 502, noSession, "the connection failed"},
		{"a key that cannot be sent", func(c *callTest) { c.key = ultravoxKey + "\n" }, 502, noSession, "its api_key must be printable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inCall(t, func(c *callTest) {
				test.set(c)
				_, err := c.begin()
				if want := (Error{test.status, test.message}); err != want {
					t.Errorf("got %v, want %v", err, want)
				}
				if c.log.count("[WARN] The endpoint u of tenant acme failed: "+test.log) != 1 || c.log.count(" id=id\n") != 1 {
					t.Errorf("logged %s, want %s", c.log.text.String(), test.log)
				}
				c.wantCharged(0)
			})
		})
	}
}

func noNetwork(context.Context, string, string) (net.Conn, error) { return nil, errors.New(joinToken) }

func TestJoinURL(t *testing.T) {
	for _, test := range []struct{ body, scheme, want string }{
		{`{"joinUrl":"wss://h/a?b=c"}`, "https", "wss://h/a?b=c"},
		{`{"joinUrl":"wss://h/a"}`, "http", "wss://h/a"},
		{`{"joinUrl":"ws://h:1/a"}`, "http", "ws://h:1/a"},
		{`{"joinUrl":"wss://user:secret@h/a#b"}`, "https", "wss://h/a"},
		{`{"joinUrl":"ws://h/a"}`, "https", ""},
		{`{"joinUrl":"https://h/a"}`, "https", ""},
		{`{"joinUrl":"http://h/a"}`, "http", ""},
		{`{"joinUrl":"file:///a"}`, "http", ""},
		{`{"joinUrl":"//h/a"}`, "http", ""},
		{`{"joinUrl":"/a"}`, "http", ""},
		{`{"joinUrl":"wss:///a"}`, "https", ""},
		{`{"joinUrl":"wss://:443/a"}`, "https", ""},
		{`{"joinUrl":"wss://h\n/a"}`, "https", ""},
		{`{"joinUrl":""}`, "https", ""},
		{`{"joinUrl":null}`, "https", ""},
		{`{"joinUrl":["wss://h/a"]}`, "https", ""},
		{`{"joinUrl":"wss://h/a"`, "https", ""},
		{`["wss://h/a"]`, "https", ""},
		{``, "https", ""},
	} {
		u, err := joinURL([]byte(test.body), test.scheme)
		got := ""
		if err == nil {
			got = u.String()
		}
		if got != test.want {
			t.Errorf("%s, %s: got %q, %v, want %q", test.body, test.scheme, got, err, test.want)
		}
	}
}

// The operator's list of denied networks holds for the URL that a provider lets a call be joined at.
func TestUltravoxDeniedJoinURL(t *testing.T) {
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"joinUrl":"ws://127.0.0.2:1/` + joinToken + `"}`))
	}))
	defer provider.Close()
	log := new(logBuffer)
	c := &callTest{
		t: t, log: log, account: &callAccount{fakeAccount: fakeAccount{left: 1000}}, price: priceUnit, key: ultravoxKey,
		Gateway: New(Options{HeaderTimeout: time.Minute, TenantShare: 0.5, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}},
			log.logger()),
		rules: &sessionRules{isUltravox: true, maxSession: time.Hour}, url: provider.URL,
	}
	_, err := c.begin()
	if err == nil || c.log.count("failed: its call cannot be joined: its address is within -gateway-deny id=id") != 1 {
		t.Errorf("got %v, logged %s", err, c.log.text.String())
	}
	c.wantSecret(err.Error())
}

// A provider that does not respond is given up in time, and nothing is held any more.
func TestUltravoxSilentProvider(t *testing.T) {
	inCall(t, func(c *callTest) {
		c.transports.plain.ResponseHeaderTimeout = 10 * time.Second
		c.transports.plain.DialContext = servePiped(c.t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})).dial
		began := time.Now()
		_, err := c.begin()
		if took := time.Since(began); err == nil || took != 10*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		c.wantCharged(0)
	})
}

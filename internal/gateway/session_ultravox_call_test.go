package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// The call is created with the operator's key and what the config says, and joined without the key.
func TestUltravoxCall(t *testing.T) {
	const medium = `"medium":{"serverWebSocket":{"inputSampleRate":16000,"outputSampleRate":16000}},"joinTimeout":"30s","maxDuration":"3600s"`
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
		tooMany   = `{"error":{"message":"The provider has too many calls"`
		noReach   = "The provider cannot be reached"
		noJoining = "its call cannot be joined: it responds with "
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
		{"400", func(c *callTest) { c.status, c.created = 400, echo }, 502, noSession, "it responds with 400 to the request for a call"},
		{"401", func(c *callTest) { c.status, c.created = 401, echo }, 502, noAccount, accountRefused + "401"},
		{"402", func(c *callTest) { c.status, c.created = 402, echo }, 502, noAccount, accountRefused + "402"},
		{"403", func(c *callTest) { c.status, c.created = 403, echo }, 502, noAccount, accountRefused + "403"},
		{"404", func(c *callTest) { c.status, c.created = 404, echo }, 502, noSession, "it responds with 404"},
		{"429", func(c *callTest) { c.status, c.created = 429, echo }, 429, tooMany, "it responds with 429"},
		{"500", func(c *callTest) { c.status, c.created = 500, echo }, 502, noSession, "it responds with 500"},
		{"503", func(c *callTest) { c.status, c.created = 503, echo }, 503, tooMany, "it responds with 503"},
		{"a redirect", func(c *callTest) { c.status = 302 }, 502, noSession, "it responds with 302"},
		{"202", func(c *callTest) { c.status = 202 }, 502, noSession, "it responds with 202"},
		{"no body", func(c *callTest) { c.created = "" }, 502, noSession, noJoin},
		{"no URL", func(c *callTest) { c.created = echo }, 502, noSession, noJoin},
		{"a long body", func(c *callTest) { c.created += strings.Repeat(" ", maxCreatedCall) }, 502, noSession, noJoin},
		{"joining refused", func(c *callTest) { c.joins = 404 }, 502, noSession, noJoining + "404"},
		{"joining redirected", func(c *callTest) { c.joins = 302 }, 502, noSession, noJoining + "302"},
		{"no WebSocket", func(c *callTest) { c.joins = 200 }, 502, noSession, noJoining + "200"},
		{"no server", func(c *callTest) { c.transports.plain.DialContext = noNetwork }, 502, noReach, "the connection failed"},
		{"a key that cannot be sent", func(c *callTest) { c.key = ultravoxKey + "\n" }, 502,
			"The endpoint's key cannot be sent: its api_key must be printable ASCII without white space",
			"its api_key must be printable ASCII without white space"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inCall(t, func(c *callTest) {
				test.set(c)
				_, err := c.begin()
				status, message, mayRetry := c.refusal(err)
				if status != test.status || !strings.HasPrefix(message, test.message) || mayRetry != (status != 502 || message == noReach) {
					t.Errorf("got %d %s, may retry: %v; want %d %s", status, message, mayRetry, test.status, test.message)
				}
				c.wantSecret(message)
				if c.log.count("[WARN] The endpoint u of tenant acme failed: "+test.log) != 1 || c.log.count(" id=id\n") != 1 {
					t.Errorf("logged %s, want %s", c.log.text.String(), test.log)
				}
				c.wantCharged(0)
			})
		})
	}
}

// refusal returns what a client is told of an error of begin, and whether it may try again.
func (c *callTest) refusal(err error) (status int, message string, mayRetry bool) {
	mayRetry = c.call.header.Get("X-Should-Retry") != "false"
	if plain, ok := errors.AsType[Error](err); ok {
		return plain.Status, plain.Message, mayRetry
	}
	refused, ok := errors.AsType[*refusedSession](err)
	if !ok {
		c.t.Fatalf("got %v", err)
	}
	w := httptest.NewRecorder()
	refused.send(w, ultravoxKey)
	if got, want := w.Header()["Retry-After"], []string{"7"}; !slices.Equal(got, want) {
		c.t.Errorf("got Retry-After %q, want %q", got, want)
	}
	c.wantSecret(fmt.Sprint(w.Header()))
	return w.Code, w.Body.String(), mayRetry
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
		if got, ok := joinURL([]byte(test.body), test.scheme); got != test.want || ok != (test.want != "") {
			t.Errorf("%s, %s: got %q, %v, want %q", test.body, test.scheme, got, ok, test.want)
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
		t: t, ctx: t.Context(), log: log, account: &callAccount{fakeAccount: fakeAccount{left: 1000}}, price: priceUnit, key: ultravoxKey,
		Gateway: New(Options{HeaderTimeout: time.Minute, TenantShare: 0.5, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}},
			log.logger()),
		rules: &sessionRules{isUltravox: true, maxSession: time.Hour}, url: provider.URL,
	}
	_, err := c.begin()
	if err == nil || c.log.count("failed: its address is within -gateway-deny id=id") != 1 {
		t.Errorf("got %v, logged %s", err, c.log.text.String())
	}
	c.wantSecret(err.Error())
}

// A provider that does not respond is given up in time, or when its client has gone, and nothing is held then.
func TestUltravoxSilentProvider(t *testing.T) {
	for _, test := range []struct {
		cause  error // for which it is given up after 3 s; nil: it is not
		after  time.Duration
		status int
	}{
		{nil, 10 * time.Second, 504}, {errClientGone, 3 * time.Second, 499}, {errStopping, 3 * time.Second, 503},
	} {
		for _, isCreated := range []bool{false, true} {
			inCall(t, func(c *callTest) {
				c.isSilent, c.isJoinSilent = !isCreated, isCreated
				for _, transport := range []*http.Transport{c.transports.plain, c.transports.fresh} {
					transport.ResponseHeaderTimeout = 10 * time.Second
				}
				ctx, cancel := context.WithCancelCause(c.t.Context())
				c.ctx = ctx
				if test.cause != nil {
					time.AfterFunc(3*time.Second, func() { cancel(test.cause) })
				}
				began := time.Now()
				_, err := c.begin()
				cancel(nil)
				plain, _ := errors.AsType[Error](err)
				if took := time.Since(began); plain.Status != test.status || took != test.after {
					t.Errorf("%v: got %v after %v, want %d after %v", test.cause, err, took, test.status, test.after)
				}
				c.wantCharged(0)
			})
		}
	}
}

package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

func prefixes(cidrs ...string) (all []netip.Prefix) {
	for _, cidr := range cidrs {
		all = append(all, netip.MustParsePrefix(cidr))
	}
	return all
}

// A denied address is not connected to, whatever name leads there.
func TestDeny(t *testing.T) {
	url := newServer(t, jsonBody(completion))
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/v1/chat/completions"))
		e := newEndpoint(t, "e", fmt.Sprintf(`"default_model":"m","url":"http://%s:%s/v1/chat/completions"`, host, port))
		g := newTestGateway(t, e)
		g.transports = newTransports(Options{Deny: prefixes("127.0.0.0/8", "::1/128"), KeepAlive: time.Minute, MaxIdle: 100})
		response, body, err := g.post(t, whole)
		if err != nil || response.StatusCode != 502 || body != "The provider cannot be reached" {
			t.Errorf("%s: got %v %s, %v", host, response, body, err)
		}
		if g.log.count("The endpoint e of tenant acme failed: its address is within -gateway-deny id=id") != 1 {
			t.Errorf("log:\n%s", g.log.text.String())
		}
	}
}

const (
	traceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	traceState  = "congo=t61rcWkgMzE"
)

// A provider gets few of the client's headers, and the endpoint's key in the header of its format, or that of auth.
func TestProviderHeader(t *testing.T) {
	client := http.Header{
		"Anthropic-Version": {"v"}, "Anthropic-Beta": {"b", "c"}, "Openai-Beta": {"o"}, "User-Agent": {"sdk/1"},
		"Originator": {"codex_cli_rs"}, "Session-Id": {"s"}, "Traceparent": {traceParent},
	}
	forwarded := client.Clone()
	forwarded["Content-Type"], forwarded["Accept"] = []string{"application/json"}, []string{"application/json"}
	forwarded["Tracestate"] = []string{"a=1,b=2"}
	for name, values := range (http.Header{
		"Accept": {"evil/accept"}, "Content-Type": {"application/json; charset=utf-7"}, "Tracestate": {"a=1", "b=2"},
		"Authorization": {"Bearer temp_1"}, "X-Api-Key": {"user_1"}, "Api-Key": {"user_1"}, "Cookie": {"c"}, "Idempotency-Key": {"i"},
		"Accept-Encoding": {"gzip"}, "X-Forwarded-For": {"1.2.3.4"}, "Baggage": {"a=b"}, "Tollgate-Loop": {"c"},
	}) {
		client[name] = values
	}
	for _, test := range []struct {
		e           Endpoint
		name, value string
	}{
		{Endpoint{}, "", ""},
		{Endpoint{apiKey: "k"}, "Authorization", "Bearer k"},
		{Endpoint{apiKey: "k", format: llmwire.AnthropicMessages}, "X-Api-Key", "k"},
		{Endpoint{apiKey: "k", auth: "api-key"}, "Api-Key", "k"},
		{Endpoint{apiKey: "k", auth: "x-api-key"}, "X-Api-Key", "k"},
		{Endpoint{apiKey: "k", auth: "bearer", format: llmwire.AnthropicMessages}, "Authorization", "Bearer k"},
		{Endpoint{auth: "api-key"}, "", ""},
	} {
		want := forwarded.Clone()
		if test.value != "" {
			want[test.name] = []string{test.value}
		}
		if got := new(Call).providerHeader(&test.e, client); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
	caching := readCaching(t, `"enabled":true,"text_ttl":1`)
	for _, test := range []struct {
		c            Call
		client, want http.Header
	}{
		{Call{}, nil, http.Header{"User-Agent": {"tollgate"}}},
		{Call{Caching: caching}, http.Header{"User-Agent": {"sdk/1"}}, http.Header{"User-Agent": {"tollgate"}}},
		{Call{Hops: "a, b"}, nil, http.Header{"User-Agent": {"tollgate"}, "Tollgate-Loop": {"a, b"}}},
		{Call{}, http.Header{"Tracestate": {traceState}}, http.Header{"User-Agent": {"tollgate"}}},
		{Call{}, http.Header{"Traceparent": {traceParent}, "Tracestate": {"A"}},
			http.Header{"User-Agent": {"tollgate"}, "Traceparent": {traceParent}}},
		{Call{}, http.Header{"Traceparent": {traceParent + "x"}, "Tracestate": {traceState}}, http.Header{"User-Agent": {"tollgate"}}},
	} {
		test.want["Content-Type"], test.want["Accept"] = []string{"application/json"}, []string{"application/json"}
		if got := test.c.providerHeader(&Endpoint{kind: llmwire.Text}, test.client); fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%v: got %v\nwant %v", test.client, got, test.want)
		}
	}
}

// An endpoint whose key cannot be sent is refused when its config is put, and not called if it is in Redis.
func TestCredentialFault(t *testing.T) {
	server := newServer(t, jsonBody(completion))
	const ascii, auth = "api_key must be printable ASCII without white space", `auth must be "bearer", "x-api-key" or "api-key"`
	for members, want := range map[string]string{
		`"default_model":"m"`: "", `"api_key":""`: "", `"api_key":"sk-1~!"`: "", `"api_key":"k","auth":"bearer"`: "",
		`"auth":"x-api-key"`: "", `"auth":"api-key"`: "",
		`"api_key":"sk-1\n"`: ascii, `"api_key":"sk-1\r\n"`: ascii, `"api_key":" sk-1"`: ascii, `"api_key":"s\tk"`: ascii,
		`"api_key":"s\u0000k"`: ascii, `"api_key":"schlüssel"`: ascii, `"api_key":"\u007f"`: ascii,
		`"auth":"Bearer"`: auth, `"auth":""`: auth, `"auth":7`: auth, `"auth":null`: auth,
	} {
		e := newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"models":{"*":{}},%s`, server, members)) // is always read
		var wrong strict.Problems
		if ok := e.CheckCredential(&wrong); ok != (want == "") || strings.Join(wrong.Sentences, "") != want {
			t.Errorf("%s: %v %q, want %q", members, ok, wrong.Sentences, want)
		}
		g := newTestGateway(t, e)
		response, body, err := g.post(t, `{"model":"m","max_tokens":9}`)
		switch {
		case err != nil:
			t.Errorf("%s: %v", members, err)
		case want == "" && response.StatusCode != 200:
			t.Errorf("%s: %d %s", members, response.StatusCode, body)
		case want != "" && (response.StatusCode != 502 || body != "The endpoint's key cannot be sent: its "+want ||
			response.Header.Get("X-Should-Retry") != "false" || g.account.left != 10_000 ||
			g.log.count("The endpoint e of tenant acme failed: its "+want) != 1):
			t.Errorf("%s: %d %s, want 502 %s", members, response.StatusCode, body, want)
		}
	}
}

// A request goes to the endpoint's URL with the path and the query of the request behind its own.
func TestEndpointURL(t *testing.T) {
	for _, test := range []struct{ url, path, query, want string }{
		{"https://h/v1/messages", "", "", "https://h/v1/messages"},
		{"https://h/v1/messages", "/count_tokens", "beta=true", "https://h/v1/messages/count_tokens?beta=true"},
		{"https://h/v1/messages?a=1", "", "b=2&c=%2F", "https://h/v1/messages?a=1&b=2&c=%2F"},
		{"https://h/v1/messages?a=1", "", "", "https://h/v1/messages?a=1"},
		{"https://h/v1/messages/?a=1", "", "", "https://h/v1/messages?a=1"},
		{"https://h/a%2Fb/messages/", "/count_tokens", "", "https://h/a%2Fb/messages/count_tokens"},
		{"https://user:secret@h/a%2Fb/messages#x", "/count_tokens", "", "https://h/a%2Fb/messages/count_tokens"},
	} {
		p := endpointRequest{to: newEndpoint(t, "e", fmt.Sprintf(`"url":%q`, test.url)), path: test.path, query: test.query}
		if got := p.url().String(); got != test.want {
			t.Errorf("%s became %s, want %s", test.url, got, test.want)
		}
	}
}

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

// A provider gets few of the client's headers, and the endpoint's key in the header of its format.
func TestProviderHeader(t *testing.T) {
	client := http.Header{
		"Accept": {"a"}, "Anthropic-Version": {"v"}, "Anthropic-Beta": {"b", "c"}, "Openai-Beta": {"o"},
		"Authorization": {"Bearer temp_1"}, "X-Api-Key": {"user_1"}, "Cookie": {"c"}, "Idempotency-Key": {"i"},
		"Accept-Encoding": {"gzip"}, "X-Forwarded-For": {"1.2.3.4"},
	}
	forwarded := http.Header{
		"Accept": {"a"}, "Anthropic-Version": {"v"}, "Anthropic-Beta": {"b", "c"}, "Openai-Beta": {"o"},
		"Content-Type": {"application/json"}, "User-Agent": {"tollgate"},
	}
	for _, test := range []struct {
		e           Endpoint
		name, value string
	}{
		{Endpoint{}, "X-None", ""},
		{Endpoint{apiKey: "k"}, "Authorization", "Bearer k"},
		{Endpoint{apiKey: "k", format: llmwire.AnthropicMessages}, "X-Api-Key", "k"},
	} {
		want := forwarded.Clone()
		if test.value != "" {
			want[test.name] = []string{test.value}
		}
		if got := newProviderHeader(&test.e, client, ""); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
	got := newProviderHeader(&Endpoint{}, http.Header{
		"User-Agent": {"sdk/1"}, "Content-Type": {"application/json; charset=utf-8"}, "Tollgate-Loop": {"c"},
	}, "a, b")
	if got.Get("User-Agent") != "sdk/1" || got.Get("Content-Type") != "application/json; charset=utf-8" ||
		fmt.Sprint(got["Tollgate-Loop"]) != "[a, b]" {
		t.Errorf("got %v", got)
	}
}

// A request goes to the endpoint's URL with the path and the query of the request behind its own.
func TestEndpointURL(t *testing.T) {
	for _, test := range []struct{ url, path, query, want string }{
		{"https://h/v1/messages", "", "", "https://h/v1/messages"},
		{"https://h/v1/messages", "/count_tokens", "beta=true", "https://h/v1/messages/count_tokens?beta=true"},
		{"https://h/v1/messages?a=1", "", "b=2&c=%2F", "https://h/v1/messages?a=1&b=2&c=%2F"},
		{"https://h/v1/messages?a=1", "", "", "https://h/v1/messages?a=1"},
		{"https://user:secret@h/a%2Fb/messages#x", "/count_tokens", "", "https://h/a%2Fb/messages/count_tokens"},
	} {
		p := endpointRequest{to: newEndpoint(t, "e", fmt.Sprintf(`"url":%q`, test.url)), path: test.path, query: test.query}
		if got := p.url().String(); got != test.want {
			t.Errorf("%s became %s, want %s", test.url, got, test.want)
		}
	}
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tollgate/internal/gateway"
	"tollgate/internal/options"
	"tollgate/internal/providertest"
)

// A small request, which tollgate rewrites, comes to the provider in one piece with its header.
func TestProviderGetsOnePiece(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		piece := make([]byte, 64<<10)
		n, _ := c.Read(piece)
		got <- string(piece[:n])
		const body = `{"usage":{"total_tokens":9}}`
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}()
	p := &providertest.Provider{URL: "http://" + l.Addr().String()}
	g := newService(t).gatewayTest(t, p, textConfig(10_000, endpointJSON(p, "chat", chatPath, "")))
	if err := g.call(t, chatPath, `{"messages":[],"max_tokens":5}`).is(200); err != nil {
		t.Error(err)
	}
	piece := <-got
	if _, body, _ := strings.Cut(piece, "\r\n\r\n"); !json.Valid([]byte(body)) || !strings.Contains(body, `"model":"m"`) {
		t.Errorf("the first piece is %q", piece)
	}
}

// What reaches the provider is the client's body but for what must change, and only headers that are allowed.
func TestGatewayForwards(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, `,"allow":["unknown"]`)
	headers := []string{
		"User-Agent: sdk/1", "OpenAI-Beta: b", "anthropic-version: 2023-06-01", "anthropic-beta: x", "Accept: */*",
		"Cookie: c=1", "originator: codex_cli_rs", "session-id: s", traceParent,
		"tracestate: a=1", "tracestate: b=2", "api-key: other", "baggage: a=b", "Idempotency-Key: k", "OpenAI-Organization: o",
		"X-Stainless-Lang: js", "Accept-Encoding: gzip", "X-Forwarded-For: 1.2.3.4", "X-Request-Id: mine",
		"x-api-key: sk-ant-other", "Origin: https://a.example",
	}
	charged := 0
	for _, f := range wireFormats() {
		f.ask = cmp.Or(f.odd, f.ask)
		const template = ` {ASK,` + "\n" + `"unknown":{"a":[1.0e0,  2],"b":"\u00fcnd ünd"} } `
		body, want := f.fill(template), f.fill(strings.Replace(template, "{", "{"+f.added, 1))
		sentType, wantType := "application/x-www-form-urlencoded", "application/json"
		if f.isForm { // its boundary may be spelled in other ways
			sentType = `Multipart/Form-Data; boundary="sound"`
			wantType = sentType
		}
		got := g.call(t, f.path+"?beta=true&x=%2F", body, append(headers, "Content-Type: "+sentType)...)
		if err := got.is(200); err != nil {
			t.Fatalf("%s: %v", f.path, err)
		}
		charged += f.charged
		sent := g.provider.Last(t)
		if string(sent.Body) != want || sent.Path != f.path || sent.Query != "beta=true&x=%2F" {
			t.Errorf("%s?%s got %s\nwant %s", sent.Path, sent.Query, sent.Body, want)
		}
		wantHeader := http.Header{
			"Authorization": {"Bearer " + providertest.Key}, "User-Agent": {"sdk/1"}, "Openai-Beta": {"b"},
			"Anthropic-Version": {"2023-06-01"}, "Anthropic-Beta": {"x"},
			"Accept": {"application/json"}, "Content-Type": {wantType}, "Content-Length": {strconv.Itoa(len(want))},
			"Originator": {"codex_cli_rs"}, "Session-Id": {"s"}, "Traceparent": {strings.TrimPrefix(traceParent, "traceparent: ")},
			"Tracestate":    {"a=1,b=2"},
			"Tollgate-Loop": {testRedis.String(t, "GET", "deployment")},
		}
		wantReply := map[string]string{
			"X-Provider-Request-Id": "req_provider", "Request-Id": "", "Openai-Processing-Ms": "42", "Openai-Version": "2020-10-01",
			"X-Request-Id": "mine", "Content-Type": "application/json", "X-Tokens-Charged": strconv.Itoa(f.charged),
			"Content-Length": strconv.Itoa(len(got.body)), "Set-Cookie": "", "Alt-Svc": "", "Openai-Organization": "",
			"Anthropic-Organization-Id": "", "X-Ratelimit-Remaining-Requests": "", "Anthropic-Ratelimit-Tokens-Remaining": "",
		}
		switch f.path {
		case messagesPath:
			delete(wantHeader, "Authorization")
			wantHeader["X-Api-Key"] = []string{providertest.Key}
			wantReply["X-Provider-Request-Id"], wantReply["Request-Id"] = "", "req_provider"
			wantReply["Openai-Processing-Ms"], wantReply["Openai-Version"] = "", ""
		case speechPath: // a sound, which is relayed as it comes
			wantHeader["Accept"] = []string{"*/*"}
			wantReply["Content-Type"], wantReply["Content-Length"] = "audio/mpeg", ""
		}
		if fmt.Sprint(sent.Header) != fmt.Sprint(wantHeader) {
			t.Errorf("%s: the provider got %v\nwant %v", f.path, sent.Header, wantHeader)
		}
		for name, value := range wantReply {
			got.wantHeader(t, name, value)
		}
	}
	if n := g.charged(t, 1_000_000); n != charged {
		t.Errorf("charged %d, want %d", n, charged)
	}
}

// The model and the limit that reach the provider are those of the request, as its endpoint has them.
func TestGatewayForwardsMembers(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 1_000_000, "")
	formats := wireFormats()
	for i, f := range formats {
		other := formats[(i+1)%len(formats)].endpoint // of another format
		for asked, want := range map[string]string{other + "/x": other + "/x", f.endpoint + "/x": "x", "x/y": "x/y"} {
			if err := g.call(t, f.path, f.fill(fmt.Sprintf(`{"model":%q,ASK}`, asked))).is(200); err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
			if got := g.provider.Last(t).Model; got != want {
				t.Errorf("%s: the model %s became %s, want %s", f.path, asked, got, want)
			}
		}
		if err := g.call(t, f.path, f.body(f.limit)).is(200); err != nil {
			t.Errorf("%s: %v", f.path, err)
		}
		if got := g.provider.Last(t).Body; !strings.Contains(string(got), f.limit) {
			t.Errorf("%s: got %s, want its limit%s", f.path, got, f.limit)
		}
	}
	for _, test := range []struct{ body, member, want string }{
		{`{"max_tokens":7}`, "max_tokens", `7`},
		{`{"max_completion_tokens":7}`, "max_completion_tokens", ``}, // which this provider may not obey
		{`{"max_completion_tokens":7}`, "max_tokens", `7`},
		{`{"max_completion_tokens":9,"max_tokens":7}`, "max_completion_tokens", ``},
		{`{"max_completion_tokens":9,"max_tokens":7}`, "max_tokens", `9`},
		{`{"max_tokens":-1}`, "max_tokens", `4096`},
		{`{"stream":true,"stream_options":{"other":false}}`, "stream_options", `{"include_usage":true,"other":false}`},
		{`{"stream":true,"stream_options":{"include_usage":false}}`, "stream_options", `{"include_usage":true}`},
	} {
		if err := g.call(t, chatPath, test.body).is(200); err != nil {
			t.Error(err)
		}
		if got := g.provider.Last(t).Member(t, test.member); got != test.want {
			t.Errorf("of %s, %s became %s, want %s", test.body, test.member, got, test.want)
		}
	}
}

// The list that docs/gateway.md recommends, which replaces the default, has the networks of the default.
func TestDocumentedDenyList(t *testing.T) {
	document, err := os.ReadFile("docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(document), "tollgate -gateway-deny ")
	list, _, _ = strings.Cut(list, "```")
	documented, err := options.Prefixes(strings.TrimSpace(strings.ReplaceAll(list, "\\\n", "")))
	if err != nil || len(documented) < 10 {
		t.Fatalf("%q: %v", list, err)
	}
	defaults, err := options.Prefixes(gateway.DefaultDeny)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range defaults {
		if !slices.ContainsFunc(documented, func(p netip.Prefix) bool { return p.Bits() <= want.Bits() && p.Overlaps(want) }) {
			t.Errorf("%s is not in %s", want, list)
		}
	}
}

func TestGatewayDeny(t *testing.T) {
	t.Parallel()
	p := providertest.New(t)
	endpoint := func(host string) string {
		return fmt.Sprintf(`"a":{"url":"http://%s%s","default_model":"m"}`, host, chatPath)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(p.URL, "http://"))
	s := newService(t, "GATEWAY_DENY=127.0.0.0/8, ::1/128, ::ffff:0:0/96")
	for _, host := range []string{"127.0.0.1:" + port, "localhost:" + port, "[::ffff:127.0.0.1]:" + port} {
		g := s.gatewayTest(t, p, textConfig(1000, endpoint(host)))
		g.call(t, chatPath, `{}`).wantWireError(t, chatPath, 502, "api_error", "")
		line := "[WARN] The endpoint a of tenant " + g.tenant + " failed: its address is within -gateway-deny"
		if g.charged(t, 1000) != 0 || s.log.Count(line) != 1 {
			t.Errorf("log:\n%s", s.log)
		}
	}
	if n := len(p.Requests()); n > 0 {
		t.Errorf("%d requests came to a denied provider", n)
	}
	s = newService(t)
	for _, host := range []string{
		"169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "100.100.100.200", "192.0.0.192", "[64:ff9b::a9fe:a9fe]",
	} {
		g := s.gatewayTest(t, p, textConfig(1000, endpoint(host)))
		g.call(t, chatPath, `{}`).wantWireError(t, chatPath, 502, "api_error", "")
		line := "[WARN] The endpoint a of tenant " + g.tenant + " failed: its address is within -gateway-deny"
		if s.log.Count(line) != 1 {
			t.Errorf("%s is not denied:\n%s", host, s.log)
		}
	}
}

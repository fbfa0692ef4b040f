package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// Each way in which a response can end has its price.
func TestGatewayCharges(t *testing.T) {
	const granted = 100_000
	g := newGatewayTest(t, granted, "", "PROVIDER_IDLE_TIMEOUT=300ms", "PROVIDER_TIMEOUT=300ms")
	const streamed, whole = `{"stream":true}`, `{"stream":false}` // 15 and 16 bytes: an estimated input of 4 tokens
	const input, all, half = 4, 10, 4                             // estimates: of the input, of three events of 10 bytes, of one
	for _, test := range []struct {
		name, body string
		conduct    conduct
		status     int
		chat       int // tokens charged
		messages   int
	}{
		{"whole", whole, conduct{}, 200, 18, 18},
		{"no usage", whole, conduct{noUsage: true}, 200, input + half, input + half},
		{"cut", whole, conduct{at: inContent}, 502, 0, 0},
		{"cut before headers", whole, conduct{at: beforeHeaders}, 502, 0, 0},
		{"ended early", whole, conduct{at: inContent, then: endEarly}, 502, 0, 0},
		{"silent", whole, conduct{at: inContent, then: hang}, 504, 0, 0},
		{"silent before headers", whole, conduct{at: beforeHeaders, then: hang}, 504, 0, 0},
		{"not JSON", whole, conduct{body: "<html>"}, 502, 0, 0},
		{"error", whole, providerError(500), 500, 0, 0},
		{"redirect", whole, conduct{status: 307, header: []string{"Location: /v1/other"}}, 502, 0, 0},
		{"compressed", whole, conduct{body: gzipped(`{}`), header: []string{"Content-Encoding: gzip"}}, 502, 0, 0},
		{"more than was held", `{"max_tokens":1}`, conduct{
			body: `{"usage":{"prompt_tokens":50,"completion_tokens":60,"input_tokens":50,"output_tokens":60}}`,
		}, 200, 110, 110},

		{"stream", streamed, conduct{}, 200, 18, 18},
		{"stream without usage", streamed, conduct{noUsage: true}, 200, input + all, input + all},
		{"stream cut before headers", streamed, conduct{at: beforeHeaders}, 502, 0, 0},
		{"stream cut before content", streamed, conduct{at: beforeContent}, 200, 0, 0},
		{"stream cut", streamed, conduct{at: inContent}, 200, input + half, 11 + half},
		{"stream cut with usage", streamed, conduct{at: beforeEnd}, 200, 18, 18},
		{"stream ended early", streamed, conduct{at: inContent, then: endEarly}, 200, input + half, 11 + half},
		{"stream ended after its reason", streamed, conduct{at: beforeUsage, then: endEarly}, 200, input + all, 11 + all},
		{"stream ended without a marker", streamed, conduct{at: beforeEnd, then: endEarly}, 200, 18, 18},
		{"stream with an error", streamed, conduct{at: inContent, then: sendError}, 200, input + half, 11 + half},
		{"stream with an error before content", streamed, conduct{at: beforeContent, then: sendError}, 200, 0, 0},
		{"stream silent", streamed, conduct{at: inContent, then: hang}, 200, input + half, 11 + half},
		{"stream refused", streamed, providerError(529), 529, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			g.provider.on("", test.conduct)
			for path, want := range map[string]int{chatPath: test.chat, messagesPath: test.messages} {
				g.key = g.login(t, g.tenant)
				got, err := g.send("POST", "/"+g.tenant+path, test.body, bearer(g.key))
				if got.status != test.status {
					t.Errorf("%s: %d %s", path, got.status, got.body)
				}
				if n := g.charged(t, granted); n != want {
					t.Errorf("%s: charged %d, want %d: %s", path, n, want, got.body)
				}
				isWhole := strings.Contains(got.body, "[DONE]") || strings.Contains(got.body, "message_stop") || test.conduct.then == endEarly &&
					test.conduct.at > inContent && path == chatPath
				if isStream := got.header.Get("Content-Type") != "application/json" && test.status == 200; isStream && !isWhole {
					if path == messagesPath && test.conduct.then == endEarly && test.conduct.at == beforeEnd {
						continue // the reason and the usage came: it is whole
					}
					if n := strings.Count(got.body, `"error":{`); n != 1 || err == nil {
						t.Errorf("%s: a broken stream has %d errors and ends with %v: %s", path, n, err, got.body)
					}
				} else if isStream && (err != nil || strings.Contains(got.body, `"error"`)) {
					t.Errorf("%s: a whole stream ends with %v: %s", path, err, got.body)
				}
				if lost := got.status == 504 || got.status == 502 && test.conduct.at > 0; lost && test.conduct.then != endEarly {
					got.wantHeader(t, "X-Should-Retry", "false")
				}
			}
		})
	}
	if n := g.sample(t, "gateway_holds"); n != 0 {
		t.Errorf("%v holds are open", n)
	}
	if n := g.sample(t, "gateway_estimated_total"); n < 10 {
		t.Errorf("%v charges are estimates", n)
	}
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

// A stream reaches the client as the provider sent it, but for the usage that the client did not ask for.
func TestGatewayStreams(t *testing.T) {
	t.Parallel()
	const granted = 10_000_000
	g := newGatewayTest(t, granted, "")
	direct := &service{url: g.provider.url}
	for _, test := range []struct {
		name    string
		conduct conduct
	}{
		{"plain", conduct{}},
		{"bytes one by one", conduct{piece: 1}},
		{"CR LF", conduct{lineEnd: "\r\n", piece: 7}},
		{"CR", conduct{lineEnd: "\r"}},
		{"no space", conduct{prefix: "data:"}},
		{"events of 900 kB", conduct{content: strings.Repeat("ü", 450_000)}},
		{"events of 3 MB", conduct{content: strings.Repeat("y", 3_000_000), events: 1}},
		{"many", conduct{events: 500}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g.provider.on("", test.conduct)
			for _, c := range []struct{ path, sent, equals string }{
				{chatPath, `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`, ""},
				{messagesPath, `{"model":"m","stream":true}`, ""},
			} {
				want := direct.do(t, "POST", c.path, c.sent, "x-api-key: "+map[string]string{messagesPath: providerKey}[c.path])
				got := g.call(t, c.path, c.sent)
				if got.body != want.body {
					t.Errorf("%s: %d bytes differ from the provider's %d", c.path, len(got.body), len(want.body))
				}
				got.wantHeader(t, "Cache-Control", "no-cache")
				got.wantHeader(t, "X-Accel-Buffering", "no")
				got.wantHeader(t, "Content-Type", "text/event-stream; charset=utf-8")
			}
			got := g.call(t, chatPath, `{"stream":true}`)
			if strings.Contains(got.body, `"usage":{`) || !strings.Contains(got.body, "[DONE]") {
				t.Errorf("%.2000s", got.body)
			}
		})
	}
	if n := g.charged(t, granted); n != 8*3*18 {
		t.Errorf("charged %d", n)
	}
}

// Each event reaches the client when it comes, not when the next one does.
func TestGatewayFlushes(t *testing.T) {
	g := newGatewayTest(t, 10_000, "")
	for _, path := range []string{chatPath, messagesPath} {
		g.provider.on("", conduct{at: inContent, then: hang})
		c := g.open(t, path, `{"stream":true}`, "ünd ")
		c.Close()
	}
}

// What a client pays that hangs up depends on what the provider has done by then.
func TestGatewayHangUps(t *testing.T) {
	const granted = 100_000
	g := newGatewayTest(t, granted, "")
	draining := g.service.gatewayTest(t, g.provider, textConfig(granted, endpointJSON(g.provider, "chat", chatPath, `,"on_hangup":"drain"`),
		endpointJSON(g.provider, "claude", messagesPath, `,"on_hangup":"drain"`)))
	slow := conduct{pause: 60 * time.Millisecond}
	const streamed = `{"stream":true}`
	for _, test := range []struct {
		name           string
		g              *gatewayTest
		body           string
		conduct        conduct
		until          string // what the client sees before it hangs up
		chat, messages int
		cancelled      string // the provider's responses: none, both or either
	}{
		{"not streamed", g, `{"stream":null}`, conduct{delay: 300 * time.Millisecond}, "", 18, 18, "none"},
		{"in mid-stream", g, streamed, conduct{at: inContent, then: hang}, "ünd ", 4 + 4, 11 + 4, "both"},
		{"after the end", g, streamed, conduct{}, "_END_", 18, 18, "none"},
		{"after the reason", g, streamed, slow, "_REASON_", 18, 18, "either"}, // the end may come before it is noticed
		{"reasoning", g, `{"stream":true,"reasoning_effort":"low","thinking":{"type":"enabled"}}`, slow, "ünd ", 18, 18, "none"},
		{"drain", draining, streamed, slow, "ünd ", 18, 18, "none"},
		{"before the response", g, streamed, conduct{at: beforeHeaders, then: hang}, "", 4, 4, "both"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := test.g
			g.provider.on("", test.conduct)
			for path, want := range map[string]int{chatPath: test.chat, messagesPath: test.messages} {
				until := test.until
				switch {
				case until == "_END_" && path == chatPath:
					until = "[DONE]"
				case until == "_END_":
					until = "message_stop"
				case until == "_REASON_" && path == chatPath:
					until = `"finish_reason":"stop"`
				case until == "_REASON_":
					until = "message_delta"
				}
				g.key = g.login(t, g.tenant)
				_, before := g.provider.counts()
				n := len(g.provider.requests())
				c := g.open(t, path, test.body, until)
				redistest.Eventually(t, 10*time.Second, func() error {
					if len(g.provider.requests()) == n {
						return fmt.Errorf("the provider got no request")
					}
					return nil
				})
				if test.until == "_END_" { // its client may see it before the response has ended
					redistest.Eventually(t, 10*time.Second, func() error {
						if open, _ := g.provider.counts(); open > 0 {
							return fmt.Errorf("%d requests are open", open)
						}
						return nil
					})
				}
				c.Close()
				if got := g.charged(t, granted); got != want {
					t.Errorf("%s: charged %d, want %d", path, got, want)
				}
				redistest.Eventually(t, 10*time.Second, func() error {
					if open, after := g.provider.counts(); open > 0 || test.cancelled != "either" &&
						(after > before) != (test.cancelled == "both") {
						return fmt.Errorf("%s: %d open, %d cancelled", path, open, after-before)
					}
					return nil
				})
			}
		})
	}
}

// The usage of a stream that has finished is awaited for 5 s, though its client has gone.
func TestGatewayUsageGrace(t *testing.T) {
	t.Parallel()
	const granted = 100_000
	g := newGatewayTest(t, granted, "")
	g.provider.on("", conduct{at: beforeUsage, then: hang})
	began := time.Now()
	g.open(t, chatPath, `{"stream":true}`, `"finish_reason":"stop"`).Close()
	if n := g.charged(t, granted); n != 4+10 {
		t.Errorf("charged %d", n)
	}
	if took := time.Since(began); took < 5*time.Second {
		t.Errorf("the usage was awaited for %s", took)
	}
}

// Of streams that are read without a client there are at most 256. Any more cost what was held.
func TestGatewayDrains(t *testing.T) {
	const granted = 1_000_000
	g := newGatewayTest(t, granted, `,"on_hangup":"drain"`)
	g.provider.on("", conduct{at: inContent, then: hang})
	const body = `{"stream":true,"max_tokens":30}` // 31 bytes
	for range 256 {
		g.open(t, chatPath, body, "ünd ").Close()
	}
	first := g.key
	redistest.Eventually(t, 30*time.Second, func() error {
		g.key = g.login(t, g.tenant)
		g.open(t, chatPath, body, "ünd ").Close()
		time.Sleep(20 * time.Millisecond)
		if held := testRedis.Int(t, "EXISTS", "{apiKey:"+g.key+"}:holds"); held > 0 {
			return fmt.Errorf("the stream is read without a client")
		}
		return nil
	})
	if n := g.charged(t, granted); n != 61 {
		t.Errorf("charged %d", n)
	}
	g.provider.stop() // ends the others
	g.key = first
	if n := g.charged(t, granted); n < 200*(8+4) {
		t.Errorf("charged %d", n)
	}
}

// In silence a comment comes every 15 s, which SDKs ignore.
func TestGatewaySilence(t *testing.T) {
	long(t)
	t.Parallel()
	g := newGatewayTest(t, 100_000, "")
	g.provider.on("", conduct{at: inContent, then: hang})
	c := g.open(t, messagesPath, `{"stream":true}`, "ünd ")
	_ = c.SetDeadline(in(time.Minute))
	began := time.Now()
	part := make([]byte, 1000)
	n, err := c.Read(part)
	if took := time.Since(began); !strings.Contains(string(part[:n]), ": keep-alive\n\n") || err != nil || took < 14*time.Second {
		t.Errorf("after %s: %q, %v", took, part[:n], err)
	}
}

// A client that does not read for 30 s has hung up.
func TestGatewayStuckClient(t *testing.T) {
	long(t)
	const granted = 100_000
	g := newGatewayTest(t, granted, "")
	g.provider.on("", conduct{content: strings.Repeat("y", 900_000), events: 1000, noUsage: true})
	began := time.Now()
	stuck := g.open(t, chatPath, `{"stream":true}`, "HTTP/1.1 200")
	t.Parallel() // only now: the tests that come first run meanwhile
	redistest.Eventually(t, 3*time.Minute, func() error {
		if _, cancelled := g.provider.counts(); cancelled == 0 {
			return fmt.Errorf("the provider still sends to a client that does not read")
		}
		return nil
	})
	stuck.Close()
	g.provider.mu.Lock()
	took := g.provider.leftAt.Sub(began)
	g.provider.mu.Unlock()
	if took < 30*time.Second || took > 2*time.Minute { // first its buffers fill
		t.Errorf("the client had hung up after %s", took)
	}
	if n := g.charged(t, granted); n <= 0 {
		t.Errorf("charged %d", n)
	}
}

// A stream may take longer than the time in which other responses must be sent.
func TestGatewayLongStream(t *testing.T) {
	long(t)
	t.Parallel()
	g := newGatewayTest(t, 10_000, "")
	g.provider.on("", conduct{pause: 700 * time.Millisecond, events: 15})
	g.provider.on("slow", conduct{delay: writeTimeout + time.Second})
	whole := make(chan reply)
	go func() { whole <- g.call(t, chatPath, `{"model":"slow"}`) }()
	if got := g.call(t, chatPath, `{"stream":true}`); !strings.HasSuffix(got.body, "[DONE]\n\n") {
		t.Errorf("%s", got.body)
	}
	if got := <-whole; got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestGatewayTotalTimeout(t *testing.T) {
	const granted = 10_000
	g := newGatewayTest(t, granted, "", "GATEWAY_TIMEOUT=400ms")
	g.provider.on("", conduct{pause: 30 * time.Millisecond, events: 1000, at: beforeEnd, then: hang})
	got, err := g.send("POST", "/"+g.tenant+chatPath, `{"stream":true}`, bearer(g.key))
	if err == nil || !strings.HasSuffix(got.body, "\n\n") ||
		!strings.Contains(got.body, `data: {"error":{"message":"The request took too long","type":"api_error"`) {
		t.Errorf("%v %s", err, got.body)
	}
	if n := g.charged(t, granted); n <= 4 {
		t.Errorf("charged %d", n)
	}
	g.provider.on("", conduct{at: beforeHeaders, then: hang})
	got = g.call(t, chatPath, `{}`)
	got.wantWireError(t, chatPath, 504, "api_error", "")
	got.wantHeader(t, "X-Should-Retry", "false")
}

// A process that is stopped lets streams run for a while, then cuts and settles them.
func TestGatewayStops(t *testing.T) {
	const granted = 10_000
	p := newProvider(t)
	settings := []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "DRAIN_TIMEOUT=1s"}
	process := startProcess(t, settings)
	g := process.service(t).gatewayTest(t, p, textConfig(granted, endpointJSON(p, "chat", chatPath, "")))
	p.on("endless", conduct{at: inContent, then: hang})
	p.on("slow", conduct{pause: 50 * time.Millisecond})
	endless := g.open(t, chatPath, `{"stream":true,"model":"endless"}`, "ünd ")
	slow := g.open(t, chatPath, `{"stream":true,"model":"slow"}`, "HTTP/1.1 200")
	if err := process.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := readAll(slow); !strings.Contains(got, "[DONE]") {
		t.Errorf("a stream was cut before its time: %s", got)
	}
	if got := readAll(endless); !strings.Contains(got, `"message":"The server is stopping"`) || strings.HasSuffix(got, "0\r\n\r\n") {
		t.Errorf("got %s", got)
	}
	if code := process.exitCode(t); code != 0 {
		t.Errorf("exit code %d: %s", code, process.log)
	}
	if n := g.charged(t, granted); n != 18+9+4 {
		t.Errorf("charged %d", n)
	}
}

// A response beyond 16 MiB is relayed unread, and charged what was held.
func TestGatewayLargeResponse(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	g := newGatewayTest(t, granted, "")
	body := `{"usage":{"prompt_tokens":1,"completion_tokens":1},"a":"` + strings.Repeat("x", 16<<20+1_000_000) + `"}`
	g.provider.on("", conduct{body: body})
	got := g.call(t, chatPath, `{"max_tokens":50}`)
	if got.body != body {
		t.Errorf("got %d bytes of %d", len(got.body), len(body))
	}
	if n := g.charged(t, granted); n != 67 {
		t.Errorf("charged %d", n)
	}
}

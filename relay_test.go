package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/providertest"
	"tollgate/internal/waittest"
)

// relayEnd is how a response ends for the client.
type relayEnd string

const (
	noStream    relayEnd = "no stream"
	complete    relayEnd = "a stream with the marker of its end"
	endsEarlier relayEnd = "a stream without the marker, and without an error"
	broken      relayEnd = "a stream with one error, which is cut"
	failed      relayEnd = "a stream with one error, which ends"
	cutShort    relayEnd = "no stream, which is cut"
)

// relayEnd returns how the response got ends; err is the error that ended its body.
func (f wireFormat) relayEnd(got reply, err error) relayEnd {
	isMarked := f.end != "" && strings.Contains(got.body, f.end)
	errors := max(strings.Count(got.body, `"error":{`), strings.Count(got.body, `"type":"error"`))
	isError := errors > 0 || strings.Contains(got.body, `"error":"`)
	switch isStream := strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream"); {
	case err != nil && !isStream && !isError:
		return cutShort
	case err == nil && (got.status != 200 || !isStream):
		return noStream
	case err == nil && !isError && isMarked:
		return complete
	case err == nil && !isError:
		return endsEarlier
	case err == nil && errors == 1 && !isMarked:
		return failed
	case err != nil && errors == 1 && !isMarked:
		return broken
	default:
		return relayEnd(fmt.Sprintf("%d errors and %v", errors, err))
	}
}

// Each way in which a response can end has its price.
func TestGatewayCharges(t *testing.T) {
	t.Parallel()
	const granted = 100_000
	patient, hasty := newService(t), newService(t, "PROVIDER_IDLE_TIMEOUT=2s", "PROVIDER_TIMEOUT=1s")
	// A message has an estimated input of 4 tokens.
	const streamed, whole = `{ASK,STREAM}`, `{ASK}`
	const input, all, half = 4, 10, 4 // estimates: of the input, of three events of 10 bytes, of one
	type cost struct {
		tokens int
		end    relayEnd
	}
	refused, full := cost{0, noStream}, cost{18, noStream}
	t.Run("conducts", func(t *testing.T) {
		for _, test := range []struct {
			name    string
			s       *service
			body    string
			conduct providertest.Conduct
			status  int
			retry   string // X-Should-Retry
			chat    cost   // and of the formats that say no other
		}{
			{"whole", patient, whole, providertest.Conduct{}, 200, "", full},
			{"no usage", patient, whole, providertest.Conduct{NoUsage: true}, 200, "",
				cost{input + half, noStream}},
			{"cut", patient, whole, providertest.Conduct{Cut: providertest.InContent}, 502, "false", refused},
			{"cut before headers", patient, whole, providertest.Conduct{Cut: providertest.BeforeHeaders}, 502, "false", refused},
			{"ended early", patient, whole, providertest.Conduct{End: providertest.InContent}, 502, "false", refused},
			{"silent", hasty, whole, providertest.Conduct{Hang: providertest.InContent}, 504, "false", refused},
			{"silent before headers", hasty, whole, providertest.Conduct{Hang: providertest.BeforeHeaders}, 504, "false", refused},
			{"not JSON", patient, whole, providertest.Conduct{Body: "<html>"}, 502, "false", refused},
			{"error", patient, whole, providertest.Refuse(500), 500, "", refused},
			{"redirect", patient, whole, providertest.Refuse(307, "Location: /v1/other"), 502, "false", refused},
			{"array", patient, whole, providertest.Conduct{Body: "[1]"}, 502, "false", refused},
			{"no account", patient, whole, providertest.Refuse(401), 502, "false", refused},
			{"compressed", patient, whole, providertest.Conduct{Body: gzipped(`{}`), Header: []string{"Content-Encoding: gzip"}},
				502, "false", refused},
			{"error in it", patient, whole, providertest.Conduct{Body: `{"error":{"message":"no"}}`}, 502, "", refused},
			{"no choice and no content", patient, whole, providertest.Conduct{Body: `{"id":"g","choices":[],"content":[]}`}, 502, "",
				refused},
			{"error with usage in it", patient, whole, providertest.Conduct{Body: errorWithUsage}, 200, "", full},
			{"more than was held", patient, whole, providertest.Conduct{
				Body: `{"usage":{"prompt_tokens":50,"completion_tokens":60,"input_tokens":50,"output_tokens":60}}`,
			}, 200, "", cost{110, noStream}},

			{"stream", patient, streamed, providertest.Conduct{}, 200, "", cost{18, complete}},
			{"stream without usage", patient, streamed, providertest.Conduct{NoUsage: true}, 200, "",
				cost{input + all, complete}},
			{"stream cut before headers", patient, streamed, providertest.Conduct{Cut: providertest.BeforeHeaders}, 502, "false",
				refused},
			{"stream cut before content", patient, streamed, providertest.Conduct{Cut: providertest.BeforeContent}, 200, "",
				cost{0, broken}},
			{"stream cut", patient, streamed, providertest.Conduct{Cut: providertest.InContent}, 200, "",
				cost{input + half, broken}},
			{"stream cut with usage", patient, streamed, providertest.Conduct{Cut: providertest.BeforeEnd}, 200, "",
				cost{18, broken}},
			{"stream ended early", patient, streamed, providertest.Conduct{End: providertest.InContent}, 200, "",
				cost{input + half, broken}},
			{"stream ended after its reason", patient, streamed, providertest.Conduct{End: providertest.BeforeUsage}, 200, "",
				cost{input + all, endsEarlier}},
			{"stream ended without a marker", patient, streamed, providertest.Conduct{End: providertest.BeforeEnd}, 200, "",
				cost{18, endsEarlier}},
			{"stream with an error", patient, streamed, providertest.Conduct{Error: providertest.InContent}, 200, "",
				cost{input + half, broken}},
			{"stream with an error before content", patient, streamed, providertest.Conduct{Error: providertest.BeforeContent}, 200, "",
				cost{0, broken}},
			{"stream silent", hasty, streamed, providertest.Conduct{Hang: providertest.InContent}, 200, "",
				cost{input + half, broken}},
			{"stream that begins with an error", patient, streamed, providertest.Conduct{
				Body: `data: {"type":"error","error":{"message":"no"}}` + "\n\n", Header: []string{"Content-Type: text/event-stream"},
			}, 502, "", refused},
			{"stream refused", patient, streamed, providertest.Refuse(529), 529, "", refused},
		} {
			for _, f := range wireFormats() {
				if !f.can(test.name) {
					continue
				}
				want, differs := f.ends[test.name]
				if !differs {
					want = ending{test.status, test.retry, test.chat.tokens, test.chat.end}
				}
				t.Run(test.name+" "+f.path, func(t *testing.T) {
					t.Parallel()
					g := test.s.newGatewayTest(t, granted, "")
					g.provider.On("", test.conduct)
					got, err := g.send("POST", "/"+g.tenant+f.path, f.fill(test.body), bearer(g.key))
					f.wantEnding(t, got, err, want, g.charged(t, granted))
				})
			}
		}
	})
	if n := patient.sample(t, "gateway_holds") + hasty.sample(t, "gateway_holds"); n != 0 {
		t.Errorf("%v holds are open", n)
	}
	if n := patient.sample(t, "gateway_estimated_total") + hasty.sample(t, "gateway_estimated_total"); n < 10 {
		t.Errorf("%v charges are estimates", n)
	}
}

// wantEnding compares a response, the error that ended its body and what it was charged with want.
func (f wireFormat) wantEnding(t *testing.T, got reply, err error, want ending, charged int) {
	t.Helper()
	if end := f.relayEnd(got, err); got.status != want.status || end != want.end {
		t.Errorf("got %d, %s: %s\nwant %d, %s", got.status, end, got.body, want.status, want.end)
	}
	if charged != want.tokens {
		t.Errorf("charged %d, want %d: %s", charged, want.tokens, got.body)
	}
	got.wantHeader(t, "X-Should-Retry", want.retry)
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
	s := newService(t)
	for _, f := range wireFormats() {
		if !f.can("stream") {
			continue
		}
		t.Run(f.path, func(t *testing.T) {
			t.Parallel()
			g := s.newGatewayTest(t, granted, "")
			provider := providertest.New(t) // asked directly: it gives its responses the same IDs
			direct, want := &service{url: provider.URL}, 0
			for _, test := range []struct {
				name    string
				conduct providertest.Conduct
			}{
				{"plain", providertest.Conduct{}},
				{"bytes one by one", providertest.Conduct{Piece: 1}},
				{"CR LF", providertest.Conduct{LineEnd: "\r\n", Piece: 7}},
				{"CR", providertest.Conduct{LineEnd: "\r"}},
				{"no space", providertest.Conduct{Prefix: "data:"}},
				{"events of 900 kB", providertest.Conduct{Content: strings.Repeat("ü", 450_000), Size: 900_000}},
				{"events of 3 MB", providertest.Conduct{Content: strings.Repeat("y", 3_000_000), Size: 3_000_000, Events: 1}},
				{"many", providertest.Conduct{Events: 500}},
			} {
				t.Run(test.name, func(t *testing.T) {
					if test.conduct.Size > 0 && f.path != chatPath && f.path != messagesPath {
						test.conduct.Events = 1 // others repeat them at the end
					}
					g.provider.On("", test.conduct)
					provider.On("", test.conduct)
					body, headers := "ASK,STREAM}", []string(nil)
					switch f.path {
					case chatPath: // which has its usage only on request
						body = `ASK,STREAM,"stream_options":{"include_usage":true}}`
					case messagesPath:
						headers = []string{"x-api-key: " + providertest.Key}
					}
					if !f.isForm {
						headers = append(headers, "Content-Type: application/json")
					}
					sent := direct.do(t, "POST", f.path, f.fill("{"+f.added+body), headers...)
					got := g.call(t, f.path, f.fill("{"+body))
					if got.body != sent.body || got.status != 200 || f.relayEnd(got, nil) != complete {
						t.Errorf("%d: %d bytes differ from the provider's %d", got.status, len(got.body), len(sent.body))
					}
					want += f.charged
					got.wantHeader(t, "Cache-Control", "no-cache")
					got.wantHeader(t, "X-Accel-Buffering", "no")
					got.wantHeader(t, "Content-Type", "text/event-stream; charset=utf-8")
					if f.path != chatPath {
						return
					}
					got = g.call(t, f.path, f.fill(`{ASK,STREAM}`))
					if strings.Contains(got.body, `"usage":{`) || !strings.Contains(got.body, "[DONE]") {
						t.Errorf("%.2000s", got.body)
					}
					want += f.charged
				})
			}
			if n := g.charged(t, granted); n != want {
				t.Errorf("charged %d, want %d", n, want)
			}
		})
	}
}

// Each event reaches the client when it comes, not when the next one does.
func TestGatewayFlushes(t *testing.T) {
	t.Parallel()
	g := newGatewayTest(t, 10_000, "")
	for _, path := range []string{chatPath, messagesPath} {
		g.provider.On("", providertest.Conduct{Hang: providertest.InContent})
		c := g.open(t, path, `{"stream":true}`, "ünd ")
		c.Close()
	}
}

// What a client pays that hangs up depends on what the provider has done by then.
func TestGatewayHangUps(t *testing.T) {
	t.Parallel()
	const granted = 100_000
	s := newService(t)
	const streamed, shown, cancel = `{ASK,STREAM}`, `,"reasoning":false`, `,"on_hangup":"cancel"`
	slow := providertest.Conduct{Pause: 60 * time.Millisecond}
	hang := providertest.Conduct{Hang: providertest.InContent}
	thinking, hidden := slow, slow
	thinking.Reasoning = "hmm"
	hidden.Output = 6000
	type hangUp struct {
		seen   string // by the client before it hangs up; SEEN is the end of the first content, END that of a stream
		tokens int    // charged
	}
	never, always, maybe := []int{0}, []int{1}, []int{0, 1}
	for _, test := range []struct {
		name, members, body string
		conduct             providertest.Conduct
		chat                hangUp // and of the formats that say no other charge
		ended               bool   // the response has when the client hangs up, whatever it has seen
		cancelled           []int  // how many of the provider's responses may be
	}{
		{"left, not streamed", "", `{ASK}`, providertest.Conduct{Delay: time.Second},
			hangUp{"", 18}, false, never},
		{"stream left in its middle", shown, streamed, hang, hangUp{"SEEN", 4 + 4}, false, always},
		{"stream left after its end", "", streamed, providertest.Conduct{}, hangUp{"END", 18}, true, never},
		{"stream left after its reason", "", streamed, slow, // the end may come before the hang-up is noticed
			hangUp{"REASON", 18}, false, maybe},
		{"stream left, hidden reasoning", "", `{ASK,STREAM,"max_tokens":8000}`, hidden, hangUp{"SEEN", 6011}, false, never},
		{"stream left, thinking that was seen", shown, streamed, thinking, hangUp{"SEEN", 18}, false, never},
		{"stream left, drain", shown + `,"on_hangup":"drain"`, streamed, slow, hangUp{"SEEN", 18}, false, never},
		{"stream left, cancel", cancel, streamed, hang, hangUp{"SEEN", 4 + 4}, false, always},
		{"stream left before it comes", "", streamed, providertest.Conduct{Delay: 300 * time.Millisecond},
			hangUp{"", 18}, false, never},
		{"stream left before it comes, nothing hidden", shown, streamed, providertest.Conduct{Hang: providertest.BeforeHeaders},
			hangUp{"", 4}, false, always},
	} {
		forFormats(t, test.name, func(t *testing.T, f wireFormat) {
			g := s.newGatewayTest(t, granted, test.members)
			g.provider.On("", test.conduct)
			seen := strings.NewReplacer("SEEN", f.seen, "REASON", f.reason, "END", f.end).Replace(test.chat.seen)
			c := g.open(t, f.path, f.fill(test.body), seen)
			waittest.Eventually(t, 10*time.Second, func() error {
				if open, _ := g.provider.Counts(); len(g.provider.Requests()) == 0 || test.ended && open > 0 {
					return fmt.Errorf("%d requests came to the provider, %d are open", len(g.provider.Requests()), open)
				}
				return nil
			})
			c.Close()
			want, differs := f.leaves[test.name]
			if !differs {
				want = test.chat.tokens
			}
			if got := g.charged(t, granted); got != want {
				t.Errorf("charged %d, want %d", got, want)
			}
			mayCancel := test.cancelled
			// Its cost is known before its end, which is not awaited.
			if strings.HasSuffix(f.path, "/audio/speech") && slices.Equal(mayCancel, never) {
				mayCancel = maybe
			}
			waittest.Eventually(t, 10*time.Second, func() error {
				open, cancelled := g.provider.Counts()
				if open > 0 || !slices.Contains(mayCancel, cancelled) {
					return fmt.Errorf("%d open, %d cancelled", open, cancelled)
				}
				return nil
			})
		})
	}
}

// A client that has closed its side of the connection has hung up, even if it still reads: the two cannot be told apart.
// No response comes that it could take for the provider's.
func TestGatewayHalfClosed(t *testing.T) {
	t.Parallel()
	const granted = 100_000
	s := newService(t)
	slow := providertest.Conduct{Delay: time.Second}
	for _, test := range []struct {
		name, body, seen string // by the client before it closes; SEEN is the end of the first content
		conduct          providertest.Conduct
	}{
		{"left, not streamed", `{ASK}`, "", slow},
		{"stream left before it comes", `{ASK,STREAM}`, "", slow},
		{"stream half-closed", `{ASK,STREAM}`, "SEEN", providertest.Conduct{Pause: 60 * time.Millisecond}},
	} {
		for _, f := range wireFormats() {
			if !f.can(test.name) {
				continue
			}
			t.Run(test.name+" "+f.path, func(t *testing.T) {
				t.Parallel()
				g := s.newGatewayTest(t, granted, "")
				g.provider.On("", test.conduct)
				c := g.open(t, f.path, f.fill(test.body), strings.Replace(test.seen, "SEEN", f.seen, 1))
				g.awaitRequests(t, 1)
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if rest := readAll(c); strings.Contains(rest, "HTTP/1.1") || strings.Contains(rest, "499") {
					t.Errorf("got %s", rest)
				}
				want, differs := f.leaves[test.name]
				if !differs {
					want = f.charged
				}
				if n := g.charged(t, granted); n != want {
					t.Errorf("charged %d, want %d", n, want)
				}
			})
		}
	}
}

// Streams of one key that are left at the same time, on two processes, are each charged exactly and once.
func TestHangUpsOnTwoProcesses(t *testing.T) {
	t.Parallel()
	const granted, each = 1_000_000, 12
	services := newServices(t)
	g := services[0].newGatewayTest(t, granted, "")
	g.provider.On("", providertest.Conduct{Pause: 50 * time.Millisecond, Output: 600})
	var clients sync.WaitGroup
	for i := range 2 * each {
		on := *g
		on.service = services[i%2]
		clients.Go(func() {
			on.open(t, []string{chatPath, messagesPath}[i/2%2], `{"stream":true,"max_tokens":1000}`, "ünd ").Close()
		})
	}
	clients.Wait()
	if n := g.charged(t, granted); n != 2*each*611 {
		t.Errorf("charged %d, want %d", n, 2*each*611)
	}
	for _, s := range services {
		s.awaitUsed(t, "drains", 0)
		s.awaitUsed(t, "waiting", 0)
	}
}

// The usage of a stream that has finished is awaited for 5 s, though its client has gone.
func TestGatewayUsageGrace(t *testing.T) {
	t.Parallel()
	const granted = 100_000
	g := newGatewayTest(t, granted, "")
	g.provider.On("", providertest.Conduct{Hang: providertest.BeforeUsage})
	began := time.Now()
	g.open(t, chatPath, `{"stream":true,"messages":[{}]}`, `"finish_reason":"stop"`).Close()
	if n := g.charged(t, granted); n != 4+10 {
		t.Errorf("charged %d", n)
	}
	if took := time.Since(began); took < 5*time.Second {
		t.Errorf("the usage was awaited for %s", took)
	}
}

// TestDrainShares has one key leave as many streams as it may have drains for. Further ones are cancelled and cost what was
// held. The streams that another tenant's user leaves are read to their end all the same, and charged exactly.
func TestDrainShares(t *testing.T) {
	t.Parallel()
	const most = 1024 * 3 / 8 // of a key that is alone: three quarters of its tenant's share
	s := newService(t)
	g, neighbour := s.newGatewayTest(t, 1_000_000, `,"on_hangup":"drain"`), s.newGatewayTest(t, 1_000_000, `,"on_hangup":"drain"`)
	g.provider.On("", providertest.Conduct{Hang: providertest.InContent})
	const body = `{"stream":true,"max_tokens":30}` // 31 bytes
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range most / 8 {
				g.open(t, chatPath, body, "ünd ").Close()
			}
		})
	}
	clients.Wait()
	s.awaitUsed(t, "drains", most)
	before := tokensLeft(t, g.key)
	g.open(t, chatPath, body, "ünd ").Close()
	s.awaitUsed(t, "waiting", 0)
	if charged := before - tokensLeft(t, g.key); charged != 61 {
		t.Errorf("a stream beyond the share has cost %d, want the 61 that were held", charged)
	}
	neighbour.provider.On("", providertest.Conduct{Pause: 50 * time.Millisecond})
	neighbour.open(t, chatPath, body, "ünd ").Close()
	if charged := neighbour.charged(t, 1_000_000); charged != 18 {
		t.Errorf("another tenant's user has paid %d, want 18", charged)
	}
	g.provider.Stop()
	s.awaitUsed(t, "drains", 0)
}

// In silence a comment comes every 15 s, which SDKs ignore.
func TestGatewaySilence(t *testing.T) {
	long(t)
	t.Parallel()
	g := newGatewayTest(t, 100_000, "")
	g.provider.On("", providertest.Conduct{Hang: providertest.InContent})
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
	g := newGatewayTest(t, granted, `,"reasoning":false`)
	g.provider.On("", providertest.Conduct{Content: strings.Repeat("y", 900_000), Events: 100, NoUsage: true})
	began := time.Now()
	stuck := g.open(t, chatPath, `{"stream":true}`, "HTTP/1.1 200")
	t.Parallel() // only now: the tests that come first run meanwhile
	waittest.Eventually(t, 3*time.Minute, func() error {
		if _, cancelled := g.provider.Counts(); cancelled == 0 {
			return fmt.Errorf("the provider still sends to a client that does not read")
		}
		return nil
	})
	stuck.Close()
	if took := g.provider.CancelledAt().Sub(began); took < 30*time.Second || took > 4*30*time.Second { // first its buffers fill
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
	g.provider.On("", providertest.Conduct{Pause: 700 * time.Millisecond, Events: 15})
	g.provider.On("slow", providertest.Conduct{Delay: writeTimeout + time.Second})
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
	t.Parallel()
	const granted = 10_000
	g := newGatewayTest(t, granted, "", "GATEWAY_TIMEOUT=1s")
	g.provider.On("", providertest.Conduct{Pause: 30 * time.Millisecond, Events: 1000, Hang: providertest.BeforeEnd})
	got, err := g.send("POST", "/"+g.tenant+chatPath, `{"stream":true}`, bearer(g.key))
	if err == nil || !strings.HasSuffix(got.body, "\n\n") ||
		!strings.Contains(got.body, `data: {"error":{"message":"The request took too long","type":"api_error"`) {
		t.Errorf("%v %s", err, got.body)
	}
	if n := g.charged(t, granted); n <= 4 {
		t.Errorf("charged %d", n)
	}
	g.provider.On("", providertest.Conduct{Hang: providertest.BeforeHeaders})
	got = g.call(t, chatPath, `{}`)
	got.wantWireError(t, chatPath, 504, "api_error", "")
	got.wantHeader(t, "X-Should-Retry", "false")
}

// A process that is stopped lets streams run for a while, then cuts and settles them.
func TestGatewayStops(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	p := providertest.New(t)
	settings := []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken, "DRAIN_TIMEOUT=2s"}
	process := startProcess(t, settings)
	g := process.service(t).gatewayTest(t, p, textConfig(granted, endpointJSON(p, "chat", chatPath, "")))
	p.On("endless", providertest.Conduct{Hang: providertest.InContent})
	p.On("slow", providertest.Conduct{Pause: 50 * time.Millisecond})
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
	if n := g.charged(t, granted); n != 18+4 {
		t.Errorf("charged %d", n)
	}
}

// A process that is stopped reads responses whose clients have gone, and settles them.
func TestGatewayStopsWithDrains(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	p := providertest.New(t)
	p.On("", providertest.Conduct{Pause: 100 * time.Millisecond, Delay: 500 * time.Millisecond})
	process := startProcess(t, []string{"REDIS_URL=" + testRedis.URL(), "ADDR=127.0.0.1:0", "ADMIN_TOKEN=" + testAdminToken})
	g := process.service(t).gatewayTest(t, p, textConfig(granted, endpointsJSON(p, "")...))
	clients := []net.Conn{
		g.open(t, chatPath, `{"stream":true,"max_tokens":50}`, "ünd "), g.open(t, messagesPath, `{"max_tokens":50}`, ""),
	}
	g.awaitRequests(t, 2)
	for _, c := range clients {
		c.Close()
	}
	if err := process.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := process.exitCode(t); code != 0 {
		t.Errorf("exit code %d: %s", code, process.log)
	}
	if n := g.charged(t, granted); n != 2*18 {
		t.Errorf("charged %d", n)
	}
}

// A response beyond 16 MiB is relayed as it comes, and charged exactly when it has ended.
func TestGatewayLargeResponse(t *testing.T) {
	t.Parallel()
	const granted = 10_000
	g := newGatewayTest(t, granted, "")
	body := `{"usage":{"prompt_tokens":1,"completion_tokens":1},"a":"` + strings.Repeat("x", 16<<20+1_000_000) + `"}`
	g.provider.On("", providertest.Conduct{Body: body})
	got := g.call(t, chatPath, `{"max_tokens":50}`)
	if got.body != body {
		t.Errorf("got %d bytes of %d", len(got.body), len(body))
	}
	got.wantHeader(t, "X-Tokens-Charged", "")
	if n := g.charged(t, granted); n != 2 {
		t.Errorf("charged %d", n)
	}
}

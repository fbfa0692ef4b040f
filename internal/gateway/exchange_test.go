package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/llmwire"
)

const (
	completion = `{"choices":[{"index":0,"message":{"content":"Hello."},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":11,"completion_tokens":7}}`
	content = `data: {"choices":[{"index":0,"delta":{"content":"12345678"}}]}` + "\n\n" // an estimated output of 3 tokens
	role    = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}` + "\n\n"
	short   = `data: {"choices":[{"index":0,"delta":{"content":"1"}}]}` + "\n\n"
	three   = `data: {"choices":[{"index":0,"delta":{"content":"123"}}]}` + "\n\n"
	reason  = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	usage   = `data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}` + "\n\n"
	done    = "data: [DONE]\n\n"
	comment = ": PROCESSING\n\n"
	broken  = `data: {"error":{"message":"no"}}` + "\n\n"

	whole    = `{"max_tokens":100}`               // 18 bytes: 118 are held
	streamed = `{"max_tokens":100,"stream":true}` // 32 bytes: 132 are held

	two = `{"max_tokens":100,"n":2,"stream":true}` // 38 bytes: 238 are held
)

func stream(parts ...string) script {
	return script{header: "Content-Type: text/event-stream", parts: parts}
}

func jsonBody(parts ...string) script {
	return script{header: "Content-Type: application/json", parts: parts}
}

// large is an event with 600 bytes of content.
var large = strings.Replace(short, `"1"`, `"`+strings.Repeat("1", 600)+`"`, 1)

// Each way in which a response can end has its price, and is settled once.
func TestCharges(t *testing.T) {
	exact, nothing, held := Outcome{Usage: llmwire.Usage{Input: 11, Output: 7}, cost: 18}, Outcome{}, Outcome{cost: 118, estimated: true}
	estimate := func(input, output int64) Outcome {
		return Outcome{Usage: llmwire.Usage{Input: input, Output: output}, cost: min(input+output, 132), estimated: true}
	}
	for _, test := range []struct {
		name, body string
		server     script
		status     int // 0: the response is cut
		want       Outcome
	}{
		{"whole", whole, jsonBody(completion), 200, exact},
		{"no usage", whole, jsonBody(`{"choices":[{"message":{"content":"123456789"}}]}`), 200, estimate(0, 3)},
		{"more than was held", whole, jsonBody(`{"usage":{"prompt_tokens":900,"completion_tokens":7}}`), 200,
			Outcome{Usage: llmwire.Usage{Input: 900, Output: 7}, cost: 907}},
		{"more output than was held, and no input", whole, jsonBody(`{"usage":{"completion_tokens":900}}`), 200,
			Outcome{Usage: llmwire.Usage{Output: 900}, cost: 900, estimated: true}},
		{"nested too deep", whole, jsonBody(`{"choices":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`), 200, held},
		{"too long", whole, jsonBody(strings.Replace(completion, "Hello.", strings.Repeat("x", maxWholeBody), 1)), 200, exact},
		{"too long, no usage", whole, jsonBody(`{"a":"` + strings.Repeat("x", maxWholeBody) + `"}`), 200,
			Outcome{Usage: llmwire.Usage{Output: maxWholeBody/3 + 3}, cost: 118, estimated: true}},
		{"not JSON", whole, jsonBody("<html>"), 502, nothing},
		{"cut", whole, jsonBody(completion[:20], cut), 502, nothing},
		{"cut before headers", whole, jsonBody(cut), 502, nothing},
		{"silent", whole, jsonBody(completion[:20], hang), 504, nothing},
		{"error", whole, script{status: 500, parts: []string{"{}"}}, 500, nothing},
		{"account", whole, script{status: 401, parts: []string{"{}"}}, 502, nothing},
		{"redirect", whole, script{status: 307, header: "Location: /"}, 502, nothing},
		{"compressed", whole, script{header: "Content-Encoding: gzip", parts: []string{"{}"}}, 502, nothing},
		{"array", whole, jsonBody("[]"), 502, nothing},
		{"empty", whole, jsonBody(), 502, nothing},
		{"no content", whole, script{status: 204}, 502, nothing},
		{"another protocol", whole, script{status: 101, header: "Upgrade: x"}, 502, nothing},
		{"compressed error", whole, script{status: 400, header: "Content-Encoding: gzip", parts: []string{"{}"}}, 400, nothing},

		{"stream", streamed, stream(content, content, reason, usage, done), 200, exact},
		{"stream that was not asked for", whole, stream(content, content, reason, usage, done), 200, exact},
		{"JSON instead of a stream", streamed, jsonBody(completion), 200, exact},
		{"stream without usage", streamed, stream(content, content, reason, done), 200, estimate(0, 6)},
		{"stream that ends after its reason", streamed, stream(content, reason), 200, estimate(0, 3)},
		{"stream that ends early", streamed, stream(content), 0, estimate(0, 3)},
		{"stream cut", streamed, stream(content, cut), 0, estimate(0, 3)},
		{"stream cut before its first event", streamed, stream(comment, cut), 502, nothing},
		{"stream cut in its first event", streamed, stream(content[:20]), 502, nothing},
		{"HTML instead of a stream", streamed, script{header: "Content-Type: text/html", parts: []string{"<html>"}}, 502, nothing},
		{"text instead of a stream", streamed, script{header: "Content-Type: text/plain", parts: []string{comment, "Sorry.\n\n"}}, 502, nothing},
		{"stream cut after its output, without content and input", streamed,
			stream(strings.Replace(reason, "}]}", `}],"usage":{"completion_tokens":7}}`, 1), cut), 0, estimate(0, 7)},
		{"stream cut before content", streamed, stream(role, cut), 0, nothing},
		{"stream with an error", streamed, stream(content, broken), 0, estimate(0, 3)},
		{"stream with an error before content", streamed, stream(role, broken), 0, nothing},
		{"stream that falls silent", streamed, stream(content, hang), 0, estimate(0, 3)},
		{"long estimate", streamed, stream(strings.Repeat(content, 100), cut), 0, estimate(0, 267)},
		{"stream up to twice its limit", streamed, stream(strings.Repeat(content, 200), reason, usage, done), 200, exact},
		{"stream beyond twice its limit", streamed, stream(strings.Repeat(content, 201), hang), 0, estimate(0, 536)},
		{"stream of many small events", streamed, stream(strings.Repeat(short, 300), reason, usage, done), 200, exact},
		{"stream up to eight bytes a token", streamed, stream(strings.Repeat(three, 266), reason, usage, done), 200, exact},
		{"stream beyond eight bytes a token", streamed, stream(strings.Repeat(three, 267), hang), 0, estimate(0, 267)},
		{"stream of two choices up to twice their limit", two, stream(strings.Repeat(content, 400), usage, done), 200, exact},
		{"stream of two choices beyond twice their limit", two, stream(strings.Repeat(content, 401), hang), 0,
			Outcome{Usage: llmwire.Usage{Output: 1070}, cost: 238, estimated: true}},
		{"stream of large events", streamed, stream(strings.Repeat(large, 3), reason, usage, done), 200, exact},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newScripted(t, test.server, "")
			response, body, err := g.post(t, test.body)
			if retry := response.Header.Get("X-Should-Retry"); retry != map[int]string{502: "false", 504: "false"}[test.status] {
				t.Errorf("X-Should-Retry is %q", retry)
			}
			isCut := response != nil && response.StatusCode == 200 && err != nil
			if isCut != (test.status == 0) || !isCut && (err != nil || response.StatusCode != test.status) {
				t.Fatalf("got %v, %.200q, %v", response, body, err)
			}
			if isBeyond := strings.Contains(test.name, "beyond"); isBeyond != strings.Contains(body, "does not stop at the limit") {
				t.Errorf("it ends with %q", body[max(len(body)-200, 0):])
			}
			got := <-g.outcomes
			want := test.want
			want.Endpoint, want.Model, want.FirstByte = "e", "m", got.FirstByte
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			used := Usage{Endpoint: "e", Model: "m", Usage: want.Usage, Cost: want.cost}
			if a := g.account; len(a.settled) != 1 || a.settled[0] != used || a.left != 10_000-want.cost {
				t.Errorf("%v was settled, want %v; %d are left", a.settled, used, a.left)
			}
			if n := g.estimated.Load(); n != map[bool]int64{true: 1}[want.estimated] {
				t.Errorf("%d charges are estimated", n)
			}
			g.wantNothingHeld(t)
		})
	}
}

// The tokens that a request needs are held for as long as it may take and a while longer.
func TestHolds(t *testing.T) {
	for _, test := range []struct {
		name, members, body string
		held                int64
	}{
		{"limit", ``, whole, 118},
		{"choices", ``, `{"max_tokens":100,"n":2}`, 224},
		{"no limit", `,"max_output_tokens":50`, `{}`, 52},
		{"price", `,"models":{"m":{"input":0.5,"output":2}}`, whole, 209},
		{"bytes", `,"bytes_per_token":3`, whole, 106},
		{"window", `,"max_input_tokens":7`, whole, 107},
		{"free", `,"models":{"m":{"input":0,"output":0}}`, whole, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newScripted(t, jsonBody(completion), test.members)
			held := int64(0)
			g.writer = func(w http.ResponseWriter) http.ResponseWriter {
				return &observer{w, func() { held = g.account.held }}
			}
			g.account.fail = []error{ErrNoHold} // so that it stays held
			if response, body, err := g.post(t, test.body); err != nil || response.StatusCode != 200 {
				t.Fatalf("%v %s", err, body)
			}
			if held != test.held || g.account.ttl != leaseTTL {
				t.Errorf("%d were held for %s, want %d", held, g.account.ttl, test.held)
			}
		})
	}
}

// observer calls f before a header is written.
type observer struct {
	http.ResponseWriter
	f func()
}

func (o *observer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

func (o *observer) WriteHeader(status int) {
	o.f()
	o.ResponseWriter.WriteHeader(status)
}

// What cannot be held is refused with what is needed. A hold that may have been taken is settled to nothing.
func TestRefusals(t *testing.T) {
	g := newScripted(t, jsonBody(completion), "")
	refuse := func(want string, status int) {
		t.Helper()
		response, body, err := g.post(t, whole)
		if err != nil || response.StatusCode != status || body != want {
			t.Errorf("got %v %q, %v; want %d %q", response, body, err, status, want)
		}
	}
	g.account.left = 60
	refuse("The request needs 118 tokens, 60 are left: at most 42 output tokens", 402)
	g.account.left = 17
	refuse("The request needs 118 tokens, 17 are left: not enough for its input", 402)
	g.account.left = 10_000
	g.settler.waiting.Store(maxSettlements)
	refuse("Too many charges wait for Redis", 503)
	g.settler.waiting.Store(0)
	for _, body := range []string{streamed, whole} {
		own := g.waiting.Claim("acme", "user")
		fill(t, own, 4)
		if response, text, _ := g.post(t, body); response.StatusCode != 503 || text != "Too many requests wait for a provider" {
			t.Errorf("got %d %s", response.StatusCode, text)
		}
		own.Release()
	}
	if n := g.account.attempts(); n != 0 {
		t.Errorf("%v was settled", g.account.settled)
	}
	g.account.holds = ErrUnavailable
	if _, _, err := g.post(t, whole); err == nil {
		t.Error("it was served")
	}
	eventually(t, "settled", func() bool { return g.account.attempts() == 1 })
	if g.account.settled[0] != (Usage{}) || g.account.left != 10_000 {
		t.Errorf("%v was settled, %d are left", g.account.settled, g.account.left)
	}
	g.wantNothingHeld(t)
}

// TestFallbackWithoutClient tries no further endpoint for a client that has gone. A stream that cannot cost what it does
// not show was cancelled then, so that its input is charged; else the failure of the first endpoint was awaited, which
// costs nothing.
func TestFallbackWithoutClient(t *testing.T) {
	const prompt = `{"stream":true,"messages":[{"content":"sixteen bytes..."}]}`
	for _, test := range []struct {
		body, members string
		cost          int64
	}{{whole, "", 0}, {prompt, "", 0}, {prompt, `,"reasoning":false`, 8}} {
		asked, answer := make(chan struct{}), make(chan struct{})
		first := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(asked)
			<-answer
			w.WriteHeader(500)
		}))
		var calls atomic.Int64
		second := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			jsonBody(completion).ServeHTTP(w, r)
		}))
		g := newTestGateway(t, newEndpoint(t, "a", fmt.Sprintf(`"url":%q,"default_model":"m"`, first)+test.members),
			newEndpoint(t, "b", fmt.Sprintf(`"url":%q,"default_model":"m"`, second)))
		ctx, hangUp := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(test.body))
		go func() { _, _ = http.DefaultClient.Do(r) }()
		<-asked
		hangUp()
		eventually(t, "gone", func() bool { return g.gone.Load() == 1 })
		close(answer)
		if o := <-g.outcomes; o.cost != test.cost || o.Endpoint != "a" || calls.Load() != 0 {
			t.Errorf("%+v: %+v, and the second endpoint was called %d times", test, o, calls.Load())
		}
		g.wantNothingHeld(t)
	}
}

// Another endpoint is tried only if the first cannot have begun to generate. Then the log says why.
func TestFallback(t *testing.T) {
	code := func(code string) []string { return []string{`{"error":{"message":"no","code":"` + code + `"}}`} }
	refuses := func(status int) string { return fmt.Sprint("it refuses the account of the endpoint with ", status) }
	long := strings.Repeat(" ", maxErrorBody-len(code("x")[0]))
	for name, test := range map[string]struct {
		first  script
		reason string // to try the second; "" if it is not tried
		body   string
	}{
		"works":              {jsonBody(completion), "", completion},
		"408":                {script{status: 408}, "it responds with 408", completion},
		"429":                {script{status: 429}, "it responds with 429", completion},
		"503":                {script{status: 503}, "it responds with 503", completion},
		"400":                {script{status: 400, parts: code("x")}, "", code("x")[0]},
		"400 without a body": {script{status: 400}, "", ""},
		"404":                {script{status: 404, parts: code("insufficient_quota")}, "", code("insufficient_quota")[0]},
		"a long 400":         {script{status: 400, parts: append(code("x"), long)}, "", code("x")[0] + long},
		"a 400 that breaks":  {script{status: 400, parts: append(code("x"), cut)}, "", code("x")[0]},
		"cut":                {script{parts: []string{cut}}, "", "The connection to the provider was lost"},
		"401":                {script{status: 401}, refuses(401), completion},
		"402":                {script{status: 402}, refuses(402), completion},
		"403":                {script{status: 403, parts: []string{"<html>"}}, refuses(403), completion},
		"hard limit":         {script{status: 400, parts: code("billing_hard_limit_reached")}, refuses(400), completion},
		"not active":         {script{status: 429, parts: code("billing_not_active")}, refuses(429), completion},
		"quota":              {script{status: 429, parts: code("insufficient_quota")}, refuses(429), completion},
		"quota of Moonshot":  {script{status: 429, parts: code("exceeded_current_quota_error")}, refuses(429), completion},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := func(s script) string { return `"default_model":"m","url":"` + newServer(t, s) + `"` }
			g := newTestGateway(t, newEndpoint(t, "a", url(test.first)), newEndpoint(t, "b", url(jsonBody(completion))))
			_, body, err := g.post(t, whole)
			if err != nil || body != test.body {
				t.Errorf("got %d bytes %.200q, %v, want %.200q", len(body), body, err, test.body)
			}
			tried := map[bool]string{true: "a", false: "b"}[test.reason == ""]
			if o := <-g.outcomes; o.Endpoint != tried {
				t.Errorf("%s was tried last", o.Endpoint)
			}
			if n := g.log.count("[WARN] The endpoint a of tenant acme failed: " + test.reason + " id="); (n == 1) != (tried == "b") {
				t.Errorf("log:\n%s", g.log.text.String())
			}
		})
	}
}

// A 2xx without usage that is an error or empty costs nothing. Another endpoint is tried. After the last one the client
// may ask again.
func TestNothing(t *testing.T) {
	const choiceError = `{"choices":[{"message":{"content":""},"finish_reason":"error","error":{"message":"no"}}]}`
	const noUsage = `data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}` + "\n\n"
	header := "Retry-After: 7"
	for _, test := range []struct {
		name, body string
		server     script
	}{
		{"error", whole, jsonBody(`{"error":{"message":"no"}}`)},
		{"error of a choice", whole, jsonBody(choiceError)},
		{"no choice", whole, jsonBody(`{"id":"g","choices":[]}`)},
		{"choices of null", whole, jsonBody(`{"id":"g","choices":null,"usage":null}`)},
		{"nothing", whole, jsonBody(`{}`)},
		{"error instead of a stream", streamed, jsonBody(`{"error":{"message":"no"}}`)},
		{"error in a stream", streamed, stream(broken)},
		{"error in a stream without its blank line", streamed, stream(broken[:len(broken)-2])},
		{"error in a stream, and its end", streamed, stream(broken, done)},
		{"error in a stream, and all that follows", streamed, stream(broken + noUsage + done)},
		{"error by its event's name", streamed, stream("event: error\ndata: {}\n\n" + noUsage + done)},
		{"nothing but its end, in parts", streamed, stream("data: {}\n\n" + noUsage + done)},
		{"error after comments", streamed, stream(comment, comment, broken)},
		{"error of a choice in a stream", streamed, stream("data: " + choiceError + "\n\n")},
		{"empty stream", streamed, stream()},
		{"stream of comments", streamed, stream(comment, comment)},
		{"stream of its end", streamed, stream(done)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := func(s script) string { return `"default_model":"m","url":"` + newServer(t, s) + `"` }
			failing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				name, value, _ := strings.Cut(header, ": ")
				w.Header().Set(name, value)
				test.server.ServeHTTP(w, r)
			})
			first := newEndpoint(t, "a", `"default_model":"m","url":"`+newServer(t, failing)+`"`)
			g := newTestGateway(t, first, newEndpoint(t, "b", url(jsonBody(completion))))
			response, body, err := g.post(t, test.body)
			if o := <-g.outcomes; err != nil || body != completion || o.Endpoint != "b" || o.cost != 18 {
				t.Errorf("with another endpoint: %s, %v, %+v", body, err, o)
			}
			if h := response.Header; h.Get("Retry-After") != "" || h.Get("X-Tokens-Charged") != "18" {
				t.Errorf("with another endpoint: %v", h)
			}
			g.endpoints = g.endpoints[:1]
			response, body, err = g.post(t, test.body)
			if o := <-g.outcomes; err != nil || response.StatusCode != 502 || o.cost != 0 || o.estimated {
				t.Errorf("alone: %d %s, %v, %+v", response.StatusCode, body, err, o)
			}
			if h := response.Header; h.Get("Retry-After") != "7" || len(h["X-Should-Retry"]) > 0 {
				t.Errorf("alone: %v", h)
			}
			if g.account.left != 10_000-18 {
				t.Errorf("%d are left", g.account.left)
			}
			if n := g.log.count("[WARN] The endpoint a of tenant acme failed: it responds with 200 and an error, or nothing"); n != 2 {
				t.Errorf("%d log lines: %s", n, g.log.text.String())
			}
			g.wantNothingHeld(t)
		})
	}
}

// The header of a stream waits for its first event, for a second at most. After it an error is the client's.
func TestHeaderPatience(t *testing.T) {
	next := make(partsToCome)
	g := newScripted(t, next, "")
	g.endpoints = append(g.endpoints, newEndpoint(t, "b", `"default_model":"m","url":"`+newServer(t, jsonBody(completion))+`"`))
	go func() {
		next <- comment
		next <- comment
	}()
	began := time.Now()
	r, _ := http.NewRequestWithContext(t.Context(), "POST", g.url, strings.NewReader(streamed))
	response, err := http.DefaultClient.Do(r)
	if took := time.Since(began); err != nil || response.StatusCode != 200 || took < headerPatience {
		t.Fatalf("%v, %v after %s", response, err, took)
	}
	defer response.Body.Close()
	early := make([]byte, 2*len(comment))
	if _, err := io.ReadFull(response.Body, early); err != nil || string(early) != comment+comment {
		t.Errorf("got %q, %v", early, err)
	}
	next <- broken
	close(next)
	rest, err := io.ReadAll(response.Body)
	if o := <-g.outcomes; string(rest) != broken || err == nil || o.Endpoint != "e" || o.cost != 0 {
		t.Errorf("got %q, %v, %+v", rest, err, o)
	}
}

// A request for the number of tokens is free and goes to its own path.
func TestCountTokens(t *testing.T) {
	paths := make(chan string, 10)
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths <- r.URL.String()
		jsonBody(`{"input_tokens":5}`).ServeHTTP(w, r)
	})
	url := strings.Replace(newServer(t, server), "chat/completions", "messages", 1)
	g := newTestGateway(t, newEndpoint(t, "e", `"default_model":"m","url":"`+url+`"`))
	g.format, g.count = llmwire.AnthropicMessages, true
	response, body, err := g.post(t, `{"stream":true,"tools":[{"type":"web_search_1"}]}`)
	if err != nil || response.StatusCode != 200 || body != `{"input_tokens":5}` {
		t.Errorf("got %v %s, %v", response, body, err)
	}
	if path := <-paths; path != "/v1/messages/count_tokens?beta=1" {
		t.Errorf("it went to %s", path)
	}
	if a := g.account; len(a.charged) != 1 || a.charged[0] != (Usage{}) || len(a.settled) != 0 || a.left != 10_000 {
		t.Errorf("%v was charged, %v settled", a.charged, a.settled)
	}
	g.account.left = 0
	if response, body, _ := g.post(t, `{}`); response.StatusCode != 402 || body != "No tokens are left" {
		t.Errorf("got %d %s", response.StatusCode, body)
	}
}

// What a server that ignores the path has generated is not had for nothing.
func TestCountTokensGeneratesNothing(t *testing.T) {
	const message = `{"type":"message","content":[{"type":"text","text":"x"}]`
	for name, server := range map[string]script{
		"message": jsonBody(message + `}`), "usage": jsonBody(`{"content":[],"usage":{"input_tokens":5,"output_tokens":5}}`),
		"completion": jsonBody(`{"choices":[{"message":{"content":"x"}}]}`), "stream": stream("data: " + message + "}\n\n"),
		"long": jsonBody(`{"a":"` + strings.Repeat("x", maxWholeBody) + `"}`), "text": jsonBody(`"x"`),
		"other API": jsonBody(`{"output":[{"content":[{"text":"x"}]}]}`), "older API": jsonBody(`{"completion":"x"}`),
		"nothing": jsonBody(`{}`), "null": jsonBody(`{"input_tokens":null}`), "inside": jsonBody(`{"a":{"input_tokens":5}}`),
	} {
		t.Run(name, func(t *testing.T) {
			g := newScripted(t, server, "")
			g.count = true
			if response, body, err := g.post(t, `{}`); err != nil || response.StatusCode != 502 {
				t.Errorf("got %v %.1000s, %v", response, body, err)
			}
			g.wantNothingHeld(t)
		})
	}
}

// A bug that panics in mid-response does not keep a hold.
func TestPanics(t *testing.T) {
	for body, server := range map[string]script{whole: jsonBody(completion), streamed: stream(content, hang)} {
		g := newScripted(t, server, "")
		g.writer = func(w http.ResponseWriter) http.ResponseWriter { return &observer{w, func() { panic("a bug") }} }
		if _, _, err := g.post(t, body); err == nil {
			t.Error("the connection was not cut")
		}
		if n := g.account.attempts(); n != 1 {
			t.Errorf("settled %d times", n)
		}
		g.wantNothingHeld(t)
	}
}

// The key of an endpoint is not in what a client gets, however long an error is, however it is spelled, and wherever it
// stands.
func TestErrorsHideTheKey(t *testing.T) {
	const key, spelled = "sk-1234567890", `sk\u002d1234567890`
	text := strings.Repeat("x", maxErrorBody-5)
	late := `data: {"error":{"message":"the key ` + spelled + ` is wrong"}}` + "\n\n"
	const inBody = `{"error":{"message":"sk-1234567890 and ` + spelled + `"},"usage":{"prompt_tokens":11,"completion_tokens":7}}`
	const clean = `{"error":{"message":"[removed] and [removed]"},"usage":{"prompt_tokens":11,"completion_tokens":7}}`
	for name, test := range map[string]struct {
		body   string
		server script
		want   string // the end of the body
	}{
		"at the limit":         {whole, script{status: 400, parts: []string{text + key}}, "x[remo"},
		"escaped at the limit": {whole, script{status: 400, parts: []string{text + strings.Replace(spelled, "s", `\\u0073`, 1)}}, "x[remo"},
		"of a 200":             {whole, jsonBody(inBody), clean},
		"of an error event":    {streamed, stream(content, late), `{"error":{"message":"the key [removed] is wrong"}}` + "\n\n"},
		"at the end": {streamed, stream(content, late[:len(late)-2], done),
			`{"error":{"message":"the key [removed] is wrong"}}` + done},
		"of what cannot be read": {streamed, stream(content, "data: wrong key "+spelled+"\n\n", reason, usage, done),
			"data: wrong key [removed]\n\n" + reason + done},
		"of a header":          {whole, script{header: "Openai-Version: v " + key, parts: []string{completion}}, completion},
		"of a stream's header": {streamed, script{header: "X-Request-Id: " + key, parts: []string{content, reason, usage, done}}, done},
	} {
		t.Run(name, func(t *testing.T) {
			g := newScripted(t, test.server, `,"api_key":"`+key+`"`)
			response, body, _ := g.post(t, test.body)
			if !strings.HasSuffix(body, test.want) || len(body) > maxErrorBody {
				t.Errorf("got %d bytes that end in %q, want %q", len(body), body[max(len(body)-100, 0):], test.want)
			}
			if all := fmt.Sprint(response.Header, body); strings.Contains(all, key) || strings.Contains(all, spelled) || g.log.count(key) > 0 {
				t.Errorf("the client gets the key: %v %.1000s", response.Header, body)
			}
		})
	}
}

// A request ends after the total timeout, also in mid-stream.
func TestTotalTimeout(t *testing.T) {
	g := newScripted(t, stream(content, hang), "")
	g.options.IdleTimeout, g.options.TotalTimeout = time.Minute, 200*time.Millisecond
	_, body, err := g.post(t, streamed)
	if err == nil || !strings.HasPrefix(body, content) || !strings.Contains(body, `"message":"The request took too long"`) {
		t.Errorf("got %s, %v", body, err)
	}
	if err := <-g.errors; err != http.ErrAbortHandler {
		t.Errorf("Serve returned %v", err)
	}
}

// The total timeout ends a response to a client that reads slowly, whether it is streamed, whole, longer than what is
// read whole, or cached.
func TestTotalTimeoutOfSlowReaders(t *testing.T) {
	long := strings.Repeat("x", maxWholeBody-1000)
	event := `data: {"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", 500_000) + `"}}]}` + "\n\n"
	for name, test := range map[string]struct {
		body   string
		server script
	}{
		"whole":    {whole, jsonBody(`{"choices":[{}],"a":"` + long + `"}`)},
		"longer":   {whole, jsonBody(`{"a":"` + long + long + `"}`)},
		"streamed": {streamed, stream(strings.Repeat(event, 60), reason, usage, done)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newScripted(t, test.server, "")
			g.options.TotalTimeout = time.Second
			c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
			fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(test.body), test.body)
			began := time.Now()
			ended := make(chan time.Duration, 1)
			go func() {
				<-g.errors
				ended <- time.Since(began)
			}()
			part := make([]byte, 16<<10)
			for {
				select {
				case took := <-ended:
					if took < 500*time.Millisecond || took > 6*time.Second {
						t.Errorf("it has ended after %s", took)
					}
					g.wantNothingHeld(t)
					return
				case <-time.After(20 * time.Millisecond): // 0.8 MB/s: all of it would take 20 s
					_, _ = c.Read(part)
				}
			}
		})
	}
}

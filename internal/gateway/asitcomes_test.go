package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// newKindEndpoint returns the endpoint of a kind for an object of a config.
func newKindEndpoint(t testing.TB, kind llmwire.Kind, name, members string) *Endpoint {
	t.Helper()
	e := NewEndpoint(kind, name)
	var wrong strict.Problems
	if !objectOf(e.GatewayRules(objectOf))(&wrong, []byte("{"+members+"}")) || !e.Complete() {
		t.Fatalf("%s cannot be used: %v", members, wrong.Sentences)
	}
	return e
}

// newFormatted returns a gateway whose endpoints, e0 and so on, have a format, each with a server that sends what it is
// given.
func newFormatted(t testing.TB, format llmwire.Format, members string, servers ...http.Handler) *testGateway {
	t.Helper()
	var endpoints []*Endpoint
	for i, server := range servers {
		base := strings.TrimSuffix(newServer(t, server), "/chat/completions")
		endpoints = append(endpoints, newKindEndpoint(t, format.Kind(), fmt.Sprint("e", i),
			fmt.Sprintf(`"url":%q,"default_model":"m"%s`, base+format.URLSuffix(), members)))
	}
	g := newTestGateway(t, endpoints...)
	g.format = format
	return g
}

const (
	embed     = `{"input":"12345678"}` // 20 bytes: 20 are held, 2 estimated
	vectors   = `{"object":"list","data":[{"embedding":[0.5,-1e-3]}],"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}`
	noVectors = `{"object":"list","data":[{"embedding":"AAAA"}]}`

	draw    = `{"prompt":"123"}` // 6243 are held
	drawing = `{"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":5,"output_tokens":70,"total_tokens":75}}`
	partial = `data: {"type":"image_generation.partial_image","b64_json":"AAAA"}` + "\n\n"
	drawn   = `data: {"type":"image_generation.completed","b64_json":"AAAA","usage":{"input_tokens":5,"output_tokens":70}}` + "\n\n"
	paint   = `{"prompt":"123","stream":true,"partial_images":2}` // 6443 are held
)

// inflated is vectors, or a drawing, of n bytes and more.
func inflated(body string, n int) string {
	long := `"filler":"` + strings.Repeat("x", n/2) + `"`
	return "{" + long + "," + body[1:len(body)-1] + "," + long + "}"
}

// Each way in which a response can end has its price, and is settled once. Where nothing was sent, another endpoint can
// be tried.
func TestAsItComesCharges(t *testing.T) {
	exact := Outcome{Usage: llmwire.Usage{Input: 8}, cost: 8}
	estimate := Outcome{Usage: llmwire.Usage{Input: 2}, cost: 2, estimated: true}
	pictures := Outcome{Usage: llmwire.Usage{Input: 5, Output: 70, ImageOutput: 70}, cost: 75}
	held := func(n int64) Outcome { return Outcome{cost: n, estimated: true} }
	nothing := Outcome{}
	const page = "<html>"
	for _, test := range []struct {
		name    string
		format  llmwire.Format
		body    string
		server  script
		status  int  // 0: the response is cut
		charged bool // before it was sent
		want    Outcome
	}{
		{"small", llmwire.OpenAIEmbeddings, embed, jsonBody(vectors), 200, true, exact},
		{"small, in pieces", llmwire.OpenAIEmbeddings, embed, jsonBody(strings.SplitAfter(vectors, ",")...), 200, true, exact},
		{"large", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(vectors, 300_000)), 200, false, exact},
		{"very large", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(vectors, 20<<20)), 200, false, exact},
		{"no usage", llmwire.OpenAIEmbeddings, embed, jsonBody(noVectors), 200, true, estimate},
		{"large, no usage", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(noVectors, 300_000)), 200, false, estimate},
		{"an error", llmwire.OpenAIEmbeddings, embed, jsonBody(`{"error":{"message":"no"}}`), 502, false, nothing},
		{"nothing", llmwire.OpenAIEmbeddings, embed, jsonBody(`{}`), 502, false, nothing},
		{"empty", llmwire.OpenAIEmbeddings, embed, jsonBody(), 502, false, nothing},
		{"not JSON", llmwire.OpenAIEmbeddings, embed, jsonBody(page), 502, false, nothing},
		{"long, not JSON", llmwire.OpenAIEmbeddings, embed, jsonBody(strings.Repeat(page, 100_000)), 502, false, nothing},
		{"large, with a second object", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(vectors, 300_000), "{}"), 0, false, exact},
		{"cut", llmwire.OpenAIEmbeddings, embed, jsonBody(vectors[:50], cut), 502, false, nothing},
		{"large, cut", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(vectors, 300_000)[:100_000], cut), 0, false, estimate},
		{"large, cut after its usage", llmwire.OpenAIEmbeddings, embed,
			jsonBody(`{"usage":{"prompt_tokens":8},`+inflated(vectors, 300_000)[1:200_000], cut), 0, false, exact},
		{"large image, cut after its usage", llmwire.OpenAIImages, draw,
			jsonBody(`{"usage":{"input_tokens":5,"output_tokens":70},`+inflated(drawing, 300_000)[1:200_000], cut), 0, false, pictures},
		{"silent", llmwire.OpenAIEmbeddings, embed, jsonBody("  ", hang), 504, false, nothing},
		{"large, then silent", llmwire.OpenAIEmbeddings, embed, jsonBody(inflated(vectors, 300_000)[:100_000], hang), 0, false, estimate},
		{"refused", llmwire.OpenAIEmbeddings, embed, script{status: 400, parts: []string{"{}"}}, 400, true, nothing},
		{"account", llmwire.OpenAIEmbeddings, embed, script{status: 401, parts: []string{"{}"}}, 502, false, nothing},
		{"compressed", llmwire.OpenAIEmbeddings, embed, script{header: "Content-Encoding: gzip", parts: []string{"{}"}}, 502, false, nothing},

		{"moderation", llmwire.OpenAIModerations, embed, jsonBody(`{"results":[{}]}`), 200, true, nothing},
		{"moderation with usage", llmwire.OpenAIModerations, embed, jsonBody(`{"results":[{}],"usage":{"prompt_tokens":8}}`), 200, true, nothing},
		{"moderation with an error", llmwire.OpenAIModerations, embed, jsonBody(`{"error":"no"}`), 502, false, nothing},

		{"image", llmwire.OpenAIImages, draw, jsonBody(drawing), 200, true, pictures},
		{"large image", llmwire.OpenAIImages, draw, jsonBody(inflated(drawing, 300_000)), 200, false, pictures},
		{"image without usage", llmwire.OpenAIImages, draw, jsonBody(`{"data":[{"url":"https://a.example"}]}`), 200, true, held(6243)},
		{"image with half a usage", llmwire.OpenAIImages, draw, jsonBody(`{"data":[{}],"usage":{"input_tokens":5}}`), 200, true, held(6243)},
		{"large image without usage", llmwire.OpenAIImages, draw, jsonBody(inflated(noVectors, 300_000)), 200, false, held(6243)},
		{"large image, cut", llmwire.OpenAIImages, draw, jsonBody(inflated(drawing, 300_000)[:100_000], cut), 0, false, held(6243)},
		{"image with an error", llmwire.OpenAIImages, draw, jsonBody(`{"error":"no"}`), 502, false, nothing},
		{"image stream", llmwire.OpenAIImages, paint, stream(partial, partial, drawn), 200, false, pictures},
		{"image stream without usage", llmwire.OpenAIImages, paint,
			stream(partial, `data: {"type":"image_generation.completed","b64_json":"AAAA"}`+"\n\n"), 200, false, held(6443)},
		{"image stream, cut", llmwire.OpenAIImages, paint, stream(partial, cut), 0, false, held(6443)},
		{"image stream, cut at once", llmwire.OpenAIImages, paint, stream(cut), 502, false, nothing},
		{"image stream with an error", llmwire.OpenAIImages, paint, stream(partial, broken), 0, false, held(6443)},
		{"image stream with an error at once", llmwire.OpenAIImages, paint, stream(broken), 502, false, nothing},
		{"an image instead of a stream", llmwire.OpenAIImages, paint, jsonBody(drawing), 200, true, pictures},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newFormatted(t, test.format, "", test.server)
			g.account.left = 100_000
			response, body, err := g.post(t, test.body)
			isCut := response != nil && response.StatusCode == 200 && err != nil
			if isCut != (test.status == 0) || !isCut && (err != nil || response.StatusCode != test.status) {
				t.Fatalf("got %v, %.200q, %v", response, body, err)
			}
			if test.status == 200 && body != strings.Join(test.server.parts, "") {
				t.Errorf("got %d bytes %.200s", len(body), body)
			}
			charged := map[bool]string{true: fmt.Sprint(test.want.cost)}[test.charged || test.status >= 400]
			if got := response.Header.Get("X-Tokens-Charged"); got != charged {
				t.Errorf("X-Tokens-Charged is %q, want %q", got, charged)
			}
			got := <-g.outcomes
			got.Endpoint, got.Model, got.FirstByte = "", "", 0
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			g.wantNothingHeld(t)
			if n := g.account.attempts(); n != 1 || g.account.left != 100_000-test.want.cost {
				t.Errorf("settled %d times, %d are left", n, g.account.left)
			}
			hasWarned := test.want.estimated && test.status == 200 && !strings.Contains(body, `"usage"`)
			line := "does not report usage: charges are estimated\n"
			if test.format == llmwire.OpenAIImages {
				line = "does not report usage: what is held is charged\n"
			}
			if n := g.log.count(line); n != map[bool]int{true: 1}[hasWarned] {
				t.Errorf("%d warnings of no usage", n)
			}
		})
	}
}

// A failure that comes first is tried elsewhere. What is sent then is the next endpoint's.
func TestAsItComesFallback(t *testing.T) {
	for name, first := range map[string]script{
		"an error": jsonBody(`{"error":{"message":"no"}}`), "nothing": jsonBody(`{"data":[]}`), "overloaded": {status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			g := newFormatted(t, llmwire.OpenAIEmbeddings, "", first, jsonBody(vectors))
			response, body, err := g.post(t, embed)
			if err != nil || response.StatusCode != 200 || body != vectors || (<-g.outcomes).Endpoint != "e1" {
				t.Errorf("got %v %s, %v", response, body, err)
			}
		})
	}
}

// What is held depends on the format, and an image is charged at its own price.
func TestOtherHolds(t *testing.T) {
	for _, test := range []struct {
		format                  llmwire.Format
		body, members, response string
		least, most, cost       int64
	}{
		{llmwire.OpenAIEmbeddings, embed, `,"bytes_per_token":3`, vectors, 7, 7, 8},
		{llmwire.OpenAIEmbeddings, embed, `,"models":{"m":{"input":0.5,"output":9,"request":3}}`, vectors, 13, 13, 7},
		{llmwire.OpenAIEmbeddings, embed, `,"max_output_tokens":9,"max_input_tokens":5`, vectors, 5, 5, 8},
		{llmwire.OpenAIModerations, embed, ``, `{"results":[{}]}`, 1, 1, 0},
		{llmwire.OpenAIModerations, embed, `,"models":{"m":{"request":2.5}}`, `{"results":[{}]}`, 3, 3, 3},
		{llmwire.OpenAIImages, draw, `,"image_tokens":100`, drawing, 103, 103, 75},
		{llmwire.OpenAIImages, `{"prompt":"123","n":2}`, `,"image_tokens":100`, drawing, 203, 203, 75},
		{llmwire.OpenAIImages, draw, `,"image_tokens":100,"models":{"m":{"input":2,"output":1,"image_output":3}}`, drawing, 306, 306, 220},
		{llmwire.OpenAIImages, draw, `,"image_tokens":100,"models":{"m":{"output":2,"image_output":1}}`, drawing, 203, 203, 75},
		{llmwire.OpenAIImages, draw, `,"models":{"m":{"image_input":5}}`, strings.Replace(drawing, `"output_tokens":70`,
			`"input_tokens_details":{"image_tokens":3},"output_tokens":70`, 1), 6243, 6243, 2 + 15 + 70},
		{llmwire.OpenAIImages, `{"prompt":"1","image_url":"a"}`, `,"allow":["image_url"],"models":{"m":{"image_input":5}}`, drawing,
			5*30 + 6240, 5*30 + 6240, 75},
	} {
		t.Run(test.body+test.members, func(t *testing.T) {
			g := newFormatted(t, test.format, test.members, jsonBody(test.response))
			response, body, err := g.post(t, test.body)
			if err != nil || response.StatusCode != 200 {
				t.Fatalf("got %v %s, %v", response, body, err)
			}
			if a := g.account; a.asked.Least != test.least || a.asked.Most != test.most || a.asked.Half {
				t.Errorf("asked for %+v, want %d to %d", a.asked, test.least, test.most)
			}
			if got := (<-g.outcomes).cost; got != test.cost {
				t.Errorf("cost %d, want %d", got, test.cost)
			}
			if got := response.Header.Get("X-Max-Tokens"); got != "" {
				t.Errorf("X-Max-Tokens is %s", got)
			}
			if test.least > 1 {
				g.account.left = test.least - 1
				if response, body, _ := g.post(t, test.body); response.StatusCode != 402 {
					t.Errorf("with less: %v %s", response, body)
				}
			}
		})
	}
	g := newFormatted(t, llmwire.OpenAIModerations, "", jsonBody(`{"results":[{}]}`))
	if g.account.left = 0; g.account.asked.Least != 0 {
		t.Fatal("asked before")
	}
	if response, body, _ := g.post(t, embed); response.StatusCode != 402 {
		t.Errorf("a moderation without a balance: %v %s", response, body)
	}
}

// Embeddings are cached, with their bytes; moderations and images are not.
func TestOtherCaches(t *testing.T) {
	for _, test := range []struct {
		name           string
		format         llmwire.Format
		body, response string
		header         string // X-Cache of the second response
	}{
		{"small", llmwire.OpenAIEmbeddings, embed, vectors, "HIT"},
		{"large", llmwire.OpenAIEmbeddings, embed, inflated(vectors, 500_000), "HIT"},
		{"too large", llmwire.OpenAIEmbeddings, embed, inflated(vectors, maxCachedBody), "MISS"},
		{"no usage", llmwire.OpenAIEmbeddings, embed, noVectors, "MISS"},
		{"moderation", llmwire.OpenAIModerations, embed, `{"results":[{}]}`, ""},
		{"image", llmwire.OpenAIImages, draw, drawing, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newFormatted(t, test.format, "", jsonBody(test.response))
			g.caching = Caching{enabled: true, textTTL: 60, fee: wholeFee / 2}
			for i, want := range []string{map[bool]string{true: "MISS"}[test.header != ""], test.header} {
				response, body, err := g.post(t, test.body)
				if err != nil || response.StatusCode != 200 || body != test.response || response.Header.Get("X-Cache") != want {
					t.Fatalf("%d: got %v, %d bytes, %v; want X-Cache %s", i, response, len(body), err, want)
				}
				if test.header != "" && i == 0 {
					result := map[bool]CacheResult{true: CacheStored, false: CacheSkipped}[test.header == "HIT"]
					eventually(t, "stored or skipped", func() bool { return g.kept.counted(result) == 1 })
				}
				if want == "HIT" && response.Header.Get("X-Tokens-Charged") != "4" {
					t.Errorf("the fee is %s", response.Header.Get("X-Tokens-Charged"))
				}
			}
			g.wantNothingHeld(t)
		})
	}
}

// newUsageRelay returns the relay of embeddings to w.
func newUsageRelay(t testing.TB, w http.ResponseWriter) *relay {
	t.Helper()
	l := newTestRelay(t, w, `{}`, func(error) {})
	l.request = &llmwire.Request{Format: llmwire.OpenAIEmbeddings, N: 1}
	l.expect(target{limit: llmwire.MaxTokens})
	return l
}

// The usage is found wherever it stands and wherever the response is split, and every byte is relayed.
func TestRelayUsageSplits(t *testing.T) {
	const usage = `"usage":{"prompt_tokens":8,"total_tokens":8}`
	for _, body := range []string{
		`{` + usage + `,"data":[{"embedding":[1,2.5]}]}`, `{"object":"list",` + usage + `,"data":[{"embedding":"AA\"}"}]}`,
		`{"data":[{"embedding":[1,2.5]}],` + usage + "}\n",
	} {
		for split := range len(body) {
			w := httptest.NewRecorder()
			l := newUsageRelay(t, w)
			l.beginUsage(&http.Response{StatusCode: 200, Header: http.Header{}})
			l.startWatch()
			_ = l.receivedUsage([]byte(body[:split]))
			l.sendEarly()
			_ = l.receivedUsage([]byte(body[split:]))
			_, begun, err := l.endUsage(io.EOF, nil)
			report := l.outcome().report
			used, _, exact := report.Used(1, 5)
			if !begun || err != nil || !exact || used != (llmwire.Usage{Input: 8}) || w.Body.String() != body {
				t.Fatalf("%s, split at %d: %v, %+v, exact: %v\n%s", body, split, err, used, exact, w.Body)
			}
			l.end()
		}
	}
}

// filledBody is a body of n bytes between its head and its tail.
type filledBody struct {
	head, tail string
	n, read    int64
	every      func(read int64) // called for each MiB
}

func (b *filledBody) Read(p []byte) (n int, err error) {
	switch {
	case len(b.head) > 0:
		n = copy(p, b.head)
		b.head = b.head[n:]
	case b.read < b.n:
		n = int(min(int64(len(p)), b.n-b.read))
		for i := range p[:n] {
			p[i] = 'x'
		}
		if b.read>>20 != (b.read+int64(n))>>20 {
			b.every(b.read)
		}
		b.read += int64(n)
	case len(b.tail) > 0:
		n = copy(p, b.tail)
		b.tail = b.tail[n:]
	default:
		return 0, io.EOF
	}
	return n, nil
}

// A response of 32 MB takes less than 1 MiB of memory, wherever its usage is, with a client that reads slowly.
func TestRelayUsageMemory(t *testing.T) {
	const usage = `"usage":{"prompt_tokens":8,"total_tokens":8}`
	live := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	const first, last = `"data":[{"embedding":"`, `"}]`
	for _, test := range []struct {
		name, head, tail string
		size             int64         // of what is between them
		pause            time.Duration // of the client before each 64 KiB
	}{
		{"first", `{` + usage + `,` + first, last + `}`, 32 << 20, time.Millisecond},
		{"middle", `{"a":"` + strings.Repeat("x", 100_000) + `",` + usage + `,` + first, last + `}`, 32 << 20, time.Millisecond},
		{"last", `{` + first, last + `,` + usage + `}`, 32 << 20, time.Millisecond},
		{"a client that reads 1 MiB a second", `{` + first, last + `,` + usage + `}`, 3 << 20, time.Second / 16},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := &filledBody{head: test.head, tail: test.tail}
			w := &countingWriter{discarder: discarder{make(http.Header)}, pause: test.pause}
			l := newUsageRelay(t, w)
			before, most, samples := live(), int64(0), 0
			mebibytes := test.size >> 20
			step := max(mebibytes/8, 1)
			body.n, body.every = test.size, func(read int64) {
				if read>>20%step == 0 {
					most = max(most, live()-before)
					samples++
				}
			}
			size := body.n + int64(len(body.head)+len(body.tail))
			_, begun, err := l.relayUsage(&http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body)})
			report := l.outcome().report
			used, _, exact := report.Used(1, 5)
			if !begun || err != nil || !exact || used != (llmwire.Usage{Input: 8}) || w.n != size {
				t.Errorf("%v, %+v, exact: %v, %d bytes of %d", err, used, exact, w.n, size)
			}
			if int64(samples) != mebibytes/step || most > 1<<20 {
				t.Errorf("%d bytes more are in use meanwhile, in %d samples", most, samples)
			}
			l.end()
		})
	}
}

// countingWriter counts what a client reads, with a pause before each part.
type countingWriter struct {
	discarder
	pause time.Duration
	n     int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	w.n += int64(len(p))
	return len(p), nil
}

// timedBody sends parts, each after a time.
type timedBody struct {
	after []time.Duration
	parts []string
}

func (b *timedBody) Read(p []byte) (int, error) {
	if len(b.parts) == 0 {
		return 0, io.EOF
	}
	time.Sleep(b.after[0])
	n := copy(p, b.parts[0])
	b.after, b.parts = b.after[1:], b.parts[1:]
	return n, nil
}

// The header of a response waits for its end for a second from the first byte on, unless it looks like an error.
func TestRelayUsagePatience(t *testing.T) {
	const head, tail = `{"data":[1],`, `"usage":{"prompt_tokens":8}}`
	for name, test := range map[string]struct {
		body  *timedBody
		begun bool
		err   error
	}{
		"late, but at once": {&timedBody{[]time.Duration{20 * time.Second, 900 * time.Millisecond}, []string{head, tail}}, false, nil},
		"slow":              {&timedBody{[]time.Duration{0, 1100 * time.Millisecond}, []string{head, tail}}, true, nil},
		"very slow":         {&timedBody{[]time.Duration{0, 50 * time.Second}, []string{head, tail}}, true, nil},
		"a slow error":      {&timedBody{[]time.Duration{0, 50 * time.Second}, []string{`{"error":`, `"no"}`}}, false, nil},
		"a slow page":       {&timedBody{[]time.Duration{0, 50 * time.Second}, []string{`<html>`, `<p>`}}, false, nil},
		"slow, and no JSON": {&timedBody{[]time.Duration{0, 2 * time.Second}, []string{`{"a"`, `>`}}, true, errNoJSON},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := httptest.NewRecorder()
				l := newUsageRelay(t, w)
				whole, begun, err := l.relayUsage(&http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(test.body)})
				if begun != test.begun || err != test.err || !begun && w.Body.Len() > 0 || begun && len(whole) > 0 {
					t.Errorf("begun: %v, %v; sent %q, kept %q", begun, err, w.Body, whole)
				}
				l.end()
			})
		})
	}
}

// A response whose client goes is read to its end for its usage.
func TestRelayUsageHangUp(t *testing.T) {
	long, broken := inflated(vectors, 400_000), errors.New("it broke")
	for _, end := range []error{nil, broken} {
		w := httptest.NewRecorder()
		l := newUsageRelay(t, w)
		l.cancel = func(err error) { t.Errorf("cancelled with %v", err) }
		rest := io.Reader(strings.NewReader(long[200_000:]))
		if end != nil {
			rest = &failingReader{end}
		}
		body := io.MultiReader(strings.NewReader(long[:200_000]), hook(l.hangUp), rest)
		_, begun, err := l.relayUsage(&http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body)})
		seen := l.outcome()
		_, _, exact := seen.report.Used(1, 5)
		if err != end || !begun || w.Body.Len() != 200_000 || exact != (end == nil) || seen.broken != (end != nil) || !seen.costs {
			t.Errorf("%v, begun: %v, %d bytes, exact: %v, %+v", err, begun, w.Body.Len(), exact, seen.broken)
		}
		l.end()
	}
}

// hook is a reader that has nothing, and is called for it.
type hook func()

func (h hook) Read([]byte) (int, error) {
	h()
	return 0, io.EOF
}

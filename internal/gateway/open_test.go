package gateway

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"tollgate/internal/llmwire"
)

// openStreams is how many streams of a format TestOpenStreams has open at a time.
const openStreams = 300

// heldBytes returns the bytes that are in use.
func heldBytes() uint64 {
	var stats runtime.MemStats
	for range 2 { // what a pool keeps lives through one
		runtime.GC()
	}
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc + stats.StackInuse
}

// memoryOfStream opens streams of a format whose server sends events and is silent then, and returns what one takes: at
// the client and the provider, too, which are in this process.
func memoryOfStream(t *testing.T, format llmwire.Format, body, first, event string) float64 {
	t.Helper()
	events := append([]string{first}, strings.Repeat(event, 50), ": last\n\n", hang)
	g := newFormatted(t, format, `,"on_hangup":"cancel"`, script{header: "Content-Type: text/event-stream", parts: events})
	g.Gateway = New(Options{
		HeaderTimeout: time.Minute, IdleTimeout: time.Minute, TotalTimeout: time.Minute, MaxWaiting: 16 * openStreams,
		TenantShare: 1, MaxDrains: 16 * openStreams, MaxIdle: 100, KeepAlive: time.Minute,
	}, g.log.logger())
	g.account.left = 1 << 50
	before := heldBytes()
	for range openStreams {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		lines := bufio.NewReader(c)
		for line := ""; line != ": last\n"; {
			if line, err = lines.ReadString('\n'); err != nil {
				t.Fatalf("%q, %v", line, err)
			}
		}
	}
	return float64(heldBytes()-before) / openStreams
}

// Open streams of Responses, whose events repeat what came before, take the memory of as many of chat whose
// longest event is as long.
func TestOpenStreams(t *testing.T) {
	const (
		chat  = `{"stream":true,"messages":[{"role":"user","content":"a"}]}`
		chunk = `data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}` + "\n\n"
		ask   = `{"stream":true,"input":[{"role":"user","content":"a"}]}`
		item  = `data: {"type":"response.output_item.done","item":{"id":"msg_1","type":"message","content":` +
			`[{"type":"output_text","text":"word"}]}}` + "\n\n"
		delta = `data: {"type":"response.output_text.delta","delta":"word","item_id":"msg_1"}` + "\n\n"
	)
	long := strings.Repeat("word ", 4000)
	created := `data: {"type":"response.created","response":{"id":"resp_1","status":"in_progress","instructions":"` +
		long + `","output":[]}}` + "\n\n"
	ofChat := memoryOfStream(t, llmwire.OpenAIChat, chat, strings.Replace(chunk, "word", long, 1), chunk)
	ofResponses := memoryOfStream(t, llmwire.OpenAIResponses, ask, created, delta+item)
	t.Logf("a stream takes %.0f bytes, of Responses %.0f", ofChat, ofResponses)
	if ofResponses > 1.1*ofChat {
		t.Errorf("a stream of Responses takes %.0f bytes, one of chat %.0f", ofResponses, ofChat)
	}
}

// A stream that was begun does not keep the request's body: with one of 48 KB it takes little more than with a short one.
func TestOpenStreamsForgetBodies(t *testing.T) {
	const (
		ask   = `{"stream":true,"messages":[{"role":"user","content":"a"}]}`
		chunk = `data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}` + "\n\n"
		size  = 48 << 10
	)
	short := memoryOfStream(t, llmwire.OpenAIChat, ask, chunk, chunk)
	long := memoryOfStream(t, llmwire.OpenAIChat, strings.Replace(ask, `"a"`, `"`+strings.Repeat("a", size)+`"`, 1), chunk, chunk)
	t.Logf("a stream takes %.0f bytes, after a long request %.0f", short, long)
	if long-short > size/3 {
		t.Errorf("a stream takes %.0f bytes, and %.0f after a request of %d", short, long, size)
	}
}

// Serve returns once a stream was begun, so that what it keeps while it is silent is a shallow stack.
func TestServeReturnsBegunStreams(t *testing.T) {
	const ask = `{"stream":true,"messages":[{"role":"user","content":"a"}]}`
	g := newFormatted(t, llmwire.OpenAIChat, `,"on_hangup":"cancel"`, script{header: "Content-Type: text/event-stream", parts: []string{
		`data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}` + "\n\n", hang,
	}})
	request, err := llmwire.ReadRequest(llmwire.OpenAIChat, []byte(ask))
	if err != nil {
		t.Fatal(err)
	}
	call, release := g.callOf("id", request, ask, g.account)
	defer release()
	if call.Outcome = new(Outcome); call.Choose(g.endpoints) != nil {
		t.Fatal("no endpoint")
	}
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	r, _ := http.NewRequestWithContext(ctx, "POST", "/v1", nil)
	rest, err := g.Serve(discarder{make(http.Header)}, r, call)
	if rest == nil || err != nil || g.Streams() != 1 || call.Outcome.cost != 0 {
		t.Fatalf("rest is nil: %v, error %v, %d streams, charged %d", rest == nil, err, g.Streams(), call.Outcome.cost)
	}
	hangUp()
	if _ = rest(); g.Streams() != 0 || call.Outcome.cost == 0 {
		t.Errorf("%d streams, charged %d after the end", g.Streams(), call.Outcome.cost)
	}
}

package providertest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const chat, messages = "/v1/chat/completions", "/v1/messages"

// post sends a request and returns what came of the response. cut is the error that ended its body.
func post(t *testing.T, p *Provider, path, body string, header http.Header) (status int, got string, cut error) {
	t.Helper()
	r, err := http.NewRequest("POST", p.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/json"}}
	for name, values := range header {
		r.Header[name] = values
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); kind == "" {
		t.Errorf("%s has no Content-Type", path)
	}
	content, cut := io.ReadAll(response.Body)
	return response.StatusCode, string(content), cut
}

// wantResponse checks one response: has and hasNot are parts of its body.
func wantResponse(t *testing.T, p *Provider, path, body string, header http.Header, wantStatus int, has, hasNot string, wantCut bool) {
	t.Helper()
	status, got, cut := post(t, p, path, body, header)
	if status != wantStatus || !strings.Contains(got, has) || hasNot != "" && strings.Contains(got, hasNot) || (cut != nil) != wantCut {
		t.Errorf("%s %s: %v, %d %.2000s\nwant %d, %s", path, body, cut, status, got, wantStatus, has)
	}
}

// A responseTest is a request, and what its response has.
type responseTest struct {
	path, members string
	status        int
	has, hasNot   string
	isCut         bool
}

// The provider speaks OpenAI Chat and Anthropic Messages, and each mishap comes at its moment.
func TestProvider(t *testing.T) {
	p := New(t)
	p.On("cut", Conduct{Cut: InContent})
	p.On("error", Conduct{Error: InContent})
	p.On("early", Conduct{End: BeforeUsage})
	p.On("busy", Refuse(429, "Retry-After: 7"))
	p.On("small", Conduct{Output: 50, Piece: 1, LineEnd: "\r"})
	p.On("thinking", Conduct{Reasoning: "hm"})
	const tools, chatTools = `,"tools":[{"name":"weather"}]`, `,"tools":[{"type":"function","function":{"name":"weather"}}]`
	const stream, streamUsage = `,"stream":true`, `,"stream":true,"stream_options":{"include_usage":true}`
	for _, test := range []responseTest{
		{chat, ``, 200, `"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,`, "", false},
		{chat, `,"n":2,"max_tokens":3`, 200, `"completion_tokens":6,`, `"finish_reason":"stop"`, false},
		{chat, stream, 200, "\n\ndata: [DONE]\n\n", `"usage"`, false},
		{chat, streamUsage, 200, `"choices":[],"usage":{"prompt_tokens":11,`, "", false},
		{chat, `,"stream_options":{"include_usage":true}`, 400, `only allowed when 'stream'`, "", false},
		{chat, chatTools, 200, `"name":"weather","arguments":"{\"city\"`, "", false},
		{chat, chatTools + stream, 200, `"finish_reason":"tool_calls"`, "", false},
		{messages, ``, 200, `"input_tokens":6,"cache_creation_input_tokens":2,"cache_read_input_tokens":3,"output_tokens":7}`, "", false},
		{messages, stream, 200, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", "error", false},
		{messages, tools, 200, `"stop_reason":"tool_use"`, "", false},
		{messages, tools + stream, 200, `"partial_json":"{\"city\"`, "text_delta", false},
		{messages + "/count_tokens", ``, 200, `{"input_tokens":11}`, "", false},
		{chat, `,"model":"cut","stream":true`, 200, `"content":"word`, "[DONE]", true},
		{chat, `,"model":"cut"`, 200, `"chatcmpl-1"`, "usage", true},
		{messages, `,"model":"error","stream":true`, 200, "event: error\n", "message_stop", false},
		{messages, `,"model":"early","stream":true`, 200, "content_block_stop", "message_delta", false},
		{messages, `,"model":"busy"`, 429, `"type":"rate_limit_error"`, "", false},
		{chat, `,"model":"thinking","stream":true`, 200, `{"reasoning_content":"hm"}`, "", false},
		{messages, `,"model":"thinking","stream":true`, 200, `"thinking_delta","thinking":"hm"`, "", false},
		{messages, `,"model":"small","stream":true,"max_tokens":20`, 200, `{"output_tokens":20}}` + "\r\r", "\n", false},
	} {
		wantResponse(t, p, test.path, `{"messages":[]`+test.members+`}`, nil, test.status, test.has, test.hasNot, test.isCut)
	}
	if got := p.Last(t); got.Path != messages || got.Model != "small" || got.Member(t, "max_tokens") != "20" || !got.Stream {
		t.Errorf("the last request is %+v", got)
	}
}

// Only the provider's own key is accepted, in the header of the format, or none.
func TestCredentials(t *testing.T) {
	p := New(t)
	for _, test := range []struct {
		path, name, value string
		status            int
	}{
		{chat, "Authorization", "Bearer " + Key, 200},
		{chat, "Authorization", "Bearer of-a-client", 401},
		{chat, "X-Api-Key", Key, 401},
		{messages, "X-Api-Key", Key, 200},
		{messages, "X-Api-Key", "of-a-client", 401},
		{messages, "Authorization", "Bearer " + Key, 401},
		{chat, "Api-Key", Key, 200},
		{messages, "Api-Key", Key, 200},
		{chat, "Api-Key", "of-a-client", 401},
		{chat, "Content-Type", "application/x-www-form-urlencoded", 400},
	} {
		if status, got, _ := post(t, p, test.path, `{}`, http.Header{test.name: {test.value}}); status != test.status {
			t.Errorf("%s with %s: %s: got %d %s, want %d", test.path, test.name, test.value, status, got, test.status)
		}
	}
}

// A request is open until its caller has left, and is cancelled then.
func TestCounts(t *testing.T) {
	p := New(t)
	p.On("", Conduct{Hang: BeforeUsage})
	wantCounts := func(wantOpen, wantCancelled int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			open, cancelled := p.Counts()
			if open == wantOpen && cancelled == wantCancelled {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d requests are open, %d were cancelled, want %d and %d", open, cancelled, wantOpen, wantCancelled)
			}
		}
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(p.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"stream":true}`
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chat, len(body), body)
	wantCounts(1, 0)
	var seen []byte
	for part := make([]byte, 4096); !bytes.Contains(seen, []byte(`"finish_reason":"stop"`)); {
		n, err := c.Read(part)
		if seen = append(seen, part[:n]...); err != nil {
			t.Fatalf("got %q, %v", seen, err)
		}
	}
	left := time.Now()
	c.Close()
	wantCounts(0, 1)
	if p.CancelledAt().Before(left) {
		t.Errorf("cancelled at %s, left at %s", p.CancelledAt(), left)
	}
}

// Package providertest is a stand-in for a provider of language models: a real HTTP server that speaks Anthropic
// Messages and OpenAI's formats, and misbehaves if it is told to. Realtime and Ultravox stand in for those that speak
// over WebSockets.
//
// As OpenAI's, it stores responses for one account: with its key, any ID of a response or an item works for anybody.
package providertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// Key is the credential that the provider accepts. It also accepts requests without any, as a local model server
	// does.
	Key = "sk-provider-0123456789abcdef"

	// InputTokens and OutputTokens are the usage that is reported unless a Conduct has another.
	InputTokens, OutputTokens = 11, 7

	// Events is the number of events with content in a stream, unless a Conduct has another.
	Events = 3

	// Seconds is how long a recording is, unless a Conduct has another length.
	Seconds = 3
)

// Moment is a point in the life of a response. The zero value never comes.
type Moment int

const (
	never         Moment = iota
	BeforeHeaders        // the request was read
	BeforeContent        // headers are sent; of a stream also the event that begins it
	InContent            // half of the content is sent; of JSON, half of the bytes
	BeforeUsage          // of a stream: the finish reason is sent
	BeforeEnd            // of a stream: the usage is sent; not [DONE] or message_stop, which not all formats have
)

// Place is where a body has its usage.
type Place int

const (
	Last Place = iota
	First
	Middle
)

// Conduct is how the provider responds to a request. The zero value is a provider that works.
type Conduct struct {
	Status int      // 0 is 200
	Header []string // lines of the form "Name: value", added to those that a real provider sends
	Body   string   // sent instead of what the format says
	Delay  time.Duration

	Input, Output int64 // usage, in tokens; 0 is the default. Output is at most what the request allows
	NoUsage       bool
	Content       string // of one event of a stream, or the text of a response; the default has 10 bytes: "word ünd "
	Events        int    // with content in a stream; 0 is the default
	Reasoning     string // is sent before the content, in an event of its own
	Failed        bool   // of Responses: the response ends as one that failed

	Size    int     // bytes that embeddings, images or sounds have in all, about; 0 is a few
	UsageAt Place   // of embeddings and images
	Seconds float64 // of a recording: it is also the usage then, instead of tokens

	// What goes wrong, and when: at most one of these is set.
	Cut   Moment // the connection is cut
	Hang  Moment // nothing more comes until the caller is gone
	Error Moment // an error event comes, and the stream ends
	End   Moment // the response ends as if it were complete

	Pause   time.Duration // before each event of a stream
	Piece   int           // bytes of a stream that are sent at a time; 0 is an event
	LineEnd string        // of a stream; "" is "\n"
	Prefix  string        // of a data line; "" is "data: "
}

// Refuse returns the conduct of a provider that responds with an error, whose body has the shape of the request's
// format.
func Refuse(status int, header ...string) Conduct {
	return Conduct{Status: status, Header: header}
}

// The bodies with which the providers say that the operator's account has no money left: OpenAI with the status 429,
// Anthropic with 400.
const (
	InsufficientQuota = `{"error":{"message":"You exceeded your current quota, please check your plan and billing ` +
		`details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
	EmptyCredit = `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to ` +
		`access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."},"request_id":"req_1"}`
)

// Request is a request as the provider got it.
type Request struct {
	Method, Path, Query string
	Header              http.Header
	Body                []byte
	Model               string
	Stream              bool
}

// Member returns a top-level member of the body as it was written, or "" if it is missing. The test fails if the body
// is no JSON object.
func (r Request) Member(t testing.TB, name string) string {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(r.Body, &members); err != nil {
		t.Fatalf("the provider got %q: %v", r.Body, err)
	}
	return string(members[name])
}

// Field returns the value of a field of a multipart form, or "" if it is missing. The test fails if the body is not a
// form.
func (r Request) Field(t testing.TB, name string) string {
	t.Helper()
	fields, err := readForm(r.Header.Get("Content-Type"), r.Body)
	if err != nil {
		t.Fatalf("the provider got %q: %v", r.Body, err)
	}
	return fields[name]
}

// Provider is the stand-in. It is safe for concurrent use.
type Provider struct {
	URL string // http://127.0.0.1:port

	server *httptest.Server
	closed chan struct{}
	stored storedResponses

	mu        sync.Mutex
	conducts  map[string]Conduct
	choose    func(Request) Conduct
	listed    []string // names of models; nil if there is no list
	got       []Request
	open      int       // requests that are being served
	cancelled int       // requests whose caller left before the response was complete
	leftAt    time.Time // when the last of them did
}

// New starts a provider that works, until the test ends.
func New(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{closed: make(chan struct{}), conducts: make(map[string]Conduct)}
	p.server = httptest.NewServer(http.HandlerFunc(p.serve))
	p.URL = p.server.URL
	t.Cleanup(p.Stop)
	return p
}

// Stop ends the provider: it cuts all connections, and refuses new ones. It may be called more than once.
func (p *Provider) Stop() {
	select {
	case <-p.closed:
		return
	default:
	}
	close(p.closed)
	p.server.CloseClientConnections()
	p.server.Close()
}

// On sets how requests for model are responded to. The model "" stands for every model without a conduct of its own.
func (p *Provider) On(model string, c Conduct) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conducts[model] = c
}

// List lets the provider have a list of models with these names.
func (p *Provider) List(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed = names
}

// list returns the list of models in the shape that OpenAI's and Anthropic's have in common. It is "" without a list,
// and if r does not ask for it.
func (p *Provider) list(r *http.Request) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listed == nil || r.Method != http.MethodGet || r.URL.Path != "/v1/models" {
		return ""
	}
	models := make([]string, len(p.listed))
	for i, name := range p.listed {
		models[i] = fmt.Sprintf(`{"id":%q}`, name)
	}
	return `{"data":[` + strings.Join(models, ",") + `]}`
}

// Each lets choose decide how each request is responded to, instead of what On has set. One call is made at a time.
func (p *Provider) Each(choose func(Request) Conduct) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose = choose
}

// Requests returns the requests so far, oldest first.
func (p *Provider) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// Last returns the newest request. The test fails if no request has come.
func (p *Provider) Last(t testing.TB) Request {
	t.Helper()
	got := p.Requests()
	if len(got) == 0 {
		t.Fatal("no request came to the provider")
	}
	return got[len(got)-1]
}

// Counts returns how many requests are being served, and how many were cancelled: their caller left before the response
// was complete.
func (p *Provider) Counts() (open, cancelled int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open, p.cancelled
}

// CancelledAt returns when the last request that was cancelled was, or the zero time.
func (p *Provider) CancelledAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leftAt
}

// serve records a request and responds to it.
func (p *Provider) serve(w http.ResponseWriter, r *http.Request) {
	buffer := bytes.NewBuffer(make([]byte, 0, max(r.ContentLength, 0)+bytes.MinRead))
	_, _ = buffer.ReadFrom(r.Body)
	content := buffer.Bytes()
	body, wrong := readBody(r, content)
	c := p.begin(Request{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), content, body.Model, body.Stream})
	complete := false
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
		if !complete && r.Context().Err() != nil {
			p.cancelled++
			p.leftAt = time.Now()
		}
	}()
	list := p.list(r)
	a := &response{
		conduct: c, request: body, content: content, w: w, r: r,
		closed: p.closed, stored: &p.stored, isMessages: isMessages(r),
	}
	a.setHeaders()
	switch {
	case !a.isAuthorized():
		a.fail(http.StatusUnauthorized, "Incorrect API key provided: "+
			strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	case list != "":
		a.send([]byte(list))
	case r.Method != http.MethodPost && !isStored(r) || !strings.HasPrefix(r.URL.Path, "/v1/"):
		a.fail(http.StatusNotFound, "Unknown request URL")
	case wrong != "":
		a.fail(http.StatusBadRequest, wrong)
	case body.StreamOptions != nil && !body.Stream:
		a.fail(http.StatusBadRequest, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	default:
		a.respond()
	}
	complete = r.Context().Err() == nil
}

// begin notes a request and returns how to respond to it.
func (p *Provider) begin(got Request) Conduct {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, got)
	p.open++
	if p.choose != nil {
		return p.choose(got)
	}
	if c, ok := p.conducts[got.Model]; ok {
		return c
	}
	return p.conducts[""]
}

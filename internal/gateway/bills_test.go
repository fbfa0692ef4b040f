package gateway

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/billtest"
	"tollgate/internal/llmwire"
)

// A billedCase is one response to one request, how it ends, and what the user has.
type billedCase struct {
	response *billtest.Response
	endpoint billtest.Endpoint
	sent     string // of the response
	isCut    bool   // the connection breaks after it
	leaves   int    // bytes of it after which the client leaves; −1 if the client stays
	isPoor   bool   // the balance covers no more than it must
	rest     int64  // of the balance, beside what is held

	leave   func()        // called when the client is to leave
	leaving chan struct{} // closed then
	goesOn  chan bool     // whether the provider goes on then; false if it waits until its request is cancelled
}

// here is a comment that the provider sends when the client is to leave.
const here = ": here\n\n"

// respond is what the provider does.
func (c *billedCase) respond(w http.ResponseWriter, r *http.Request) {
	send := func(text string) {
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	}
	w.Header().Set("Content-Type", map[bool]string{true: "text/event-stream", false: "application/json"}[c.response.Stream])
	if c.leaves == 0 {
		c.leave()
	} else if c.leaves > 0 {
		send(c.sent[:c.leaves] + here)
	}
	if c.leaves >= 0 && !<-c.goesOn {
		<-r.Context().Done()
		return
	}
	send(c.sent[max(c.leaves, 0):])
	if c.isCut {
		panic(http.ErrAbortHandler)
	}
}

// A leavingClient is a client that leaves when it gets the comment.
type leavingClient struct {
	discarder
	leave func()
}

func (c leavingClient) Write(p []byte) (int, error) {
	if strings.Contains(string(p), here) {
		c.leave()
	}
	return len(p), nil
}

// A restAccount has as much as a request asks for or, if it is poor, as little as it needs, and a rest.
type restAccount struct {
	fakeAccount
	isPoor bool
	rest   int64
	taken  Hold
}

func (a *restAccount) Hold(deadline time.Time, r HoldRequest) (_ Hold, err error) {
	if a.left = r.Most; a.isPoor {
		a.left = r.Least
	}
	a.taken, err = a.fakeAccount.Hold(deadline, r)
	a.left += a.rest
	return a.taken, err
}

// serve serves the case with g, and returns what it was charged.
func (c *billedCase) serve(t *testing.T, g *testGateway, provider *caseProvider) (outcome Outcome, account *restAccount) {
	t.Helper()
	id := provider.add(c)
	target, _ := url.Parse(provider.url)
	target.Path = "/v1" + c.response.Format.Path
	e := newEndpoint(t, "e", fmt.Sprintf(`"url":%q,%s`, target, c.endpoint.Config()))
	request, err := llmwire.ReadRequest(e.format, []byte(c.response.Request))
	if err != nil {
		t.Fatalf("%s: %v", c.response, err)
	}
	account = &restAccount{isPoor: c.isPoor, rest: c.rest}
	call, release := g.callOf(id, request, c.response.Request, account)
	defer release()
	call.Outcome = &outcome
	if err := call.Choose(Endpoints{e}); err != nil {
		t.Fatalf("%s: %v", c.response, err)
	}
	c.leaving, c.goesOn = make(chan struct{}), make(chan bool)
	c.leave = sync.OnceFunc(func() { close(c.leaving) })
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "/v1?case="+id, nil)
	x := g.begin(leavingClient{discarder{make(http.Header)}, c.leave}, r, call)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer x.end()
		x.generateAll()
	}()
	select {
	case <-c.leaving:
		x.relay.hangUp()
		c.goesOn <- x.ctx.Err() == nil
	case <-ended:
	}
	<-ended
	close(c.goesOn)
	return outcome, account
}

// generateAll responds to a request for a completion, whatever becomes of it.
func (x *exchange) generateAll() {
	if _ = x.generate(); x.begun != nil {
		_ = x.continueStream()
	}
}

// callOf returns the call of a case, whose tenant has no other, and what releases its claims.
func (g *testGateway) callOf(id string, request *llmwire.Request, body string, account Account) (c *Call, release func()) {
	memory, place := g.memory.Claim(id, id), g.Place(id, id)
	c = &Call{
		ID: id, Tenant: id, User: id, Memory: memory, Place: place, Disconnect: func() {}, Account: account,
		Request: request, Body: []byte(body), Start: time.Now(), Deadline: time.Now().Add(time.Minute),
		Cache: g.kept, States: g.states,
	}
	return c, func() {
		memory.Release()
		place.Release()
	}
}

// A caseProvider is the provider of all cases of a test, each of which says how it responds.
type caseProvider struct {
	url   string
	mu    sync.Mutex
	cases []responder
}

type responder interface {
	respond(w http.ResponseWriter, r *http.Request)
}

func (p *caseProvider) add(c responder) (id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cases = append(p.cases, c)
	return fmt.Sprint(len(p.cases) - 1)
}

func (p *caseProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var id int
	_, _ = fmt.Sscan(r.URL.Query().Get("case"), &id)
	_, _ = io.Copy(io.Discard, r.Body)
	p.mu.Lock()
	c := p.cases[id]
	p.mu.Unlock()
	c.respond(w, r)
}

// end returns what has come of the response, and how it has ended.
func (c *billedCase) end() (*billtest.Reading, billtest.End) {
	if c.leaves >= 0 && c.response.Stream {
		seen := c.response.Read(c.sent[:c.leaves])
		switch {
		case seen.Exact() && seen.Empty: // a client that leaves does not see whether it fails
			return seen, billtest.Left
		case seen.Done || seen.Exact():
			return seen, billtest.Complete
		case seen.Finished: // the usage is waited for
		case c.endpoint.Cancels(c.response, seen):
			return seen, billtest.Left
		}
	}
	r := c.response.Read(c.sent)
	if c.isCut && !r.Done || c.response.Stream && !r.Done && !r.Finished {
		return r, billtest.Broken
	}
	return r, billtest.Complete
}

// check serves the case and compares the charge.
func (c *billedCase) check(t *testing.T, g *testGateway, provider *caseProvider) {
	t.Helper()
	reading, end := c.end()
	outcome, account := c.serve(t, g, provider)
	if len(account.settled) != 1 {
		t.Errorf("%s\nsettled %v", c, account.settled)
		return
	}
	held, cost := account.taken.Tokens, account.settled[0].Cost
	want, exact := c.endpoint.Cost(reading, end, c.response.EstimatedInput(c.endpoint.MediaTokens), held)
	if cost != want || outcome.estimated == exact && want > 0 {
		t.Errorf("%s\nend %d: costs %d, estimated %v: %+v; want %d, %v, %+v",
			c, end, cost, outcome.estimated, outcome.Usage, want, !exact, reading)
	}
	if left := max(0, held+c.rest-cost); account.left != left {
		t.Errorf("%s\n%d are left, want %d", c, account.left, left)
	}
}

// String says what a test needs to know of a case that it fails with.
func (c *billedCase) String() string {
	return fmt.Sprintf("endpoint {%s}\n%ssent %d bytes, cut %v, the client leaves after %d, poor %v, rest %d",
		c.endpoint.Config(), c.response, len(c.sent), c.isCut, c.leaves, c.isPoor, c.rest)
}

// casesOf returns the cases of a response: it comes whole, it breaks off after each of its parts, and the client leaves
// after each of them.
func casesOf(r *billtest.Response) (cases []*billedCase) {
	random := rand.New(rand.NewPCG(r.Seed, 2))
	add := func(sent string, isCut bool, leaves int) {
		cases = append(cases, &billedCase{
			response: r, endpoint: billtest.NewEndpoint(random.Uint64(), r), sent: sent, isCut: isCut, leaves: leaves,
			isPoor: random.IntN(3) == 0, rest: []int64{0, random.Int64N(100), 1 << 40}[random.IntN(3)],
		})
	}
	text := strings.Join(r.Parts, "")
	add(text, false, -1)
	if !r.Stream {
		add(text, false, 0)
		add(text[:random.IntN(len(text))], true, -1)
		return cases
	}
	at := 0
	for _, part := range r.Parts {
		add(text[:at], true, -1)
		add(text[:at], false, -1)
		add(text, random.IntN(4) == 0, at)
		at += len(part)
	}
	return cases
}

// Whatever a provider sends and wherever it breaks off or the client leaves, the charge is what a plain computation finds.
func TestBills(t *testing.T) {
	provider := new(caseProvider)
	provider.url = newServer(t, provider)
	g := newTestGateway(t)
	for _, format := range billtest.Formats() {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stream %v", format.Name, stream), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(40) {
					for _, c := range casesOf(billtest.New(format, seed, stream)) {
						c.check(t, g, provider)
					}
				}
			})
		}
	}
}

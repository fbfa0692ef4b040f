package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/billtest"
	"tollgate/internal/llmwire"
)

// A purchaseProvider responds to each case with as many parts as that says, and cuts the connection if that is not all.
type purchaseProvider struct {
	mu    sync.Mutex
	cases []purchaseCase
}

type purchaseCase struct {
	*billtest.Purchase
	parts int
}

func (p *purchaseProvider) add(c purchaseCase) (id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cases = append(p.cases, c)
	return fmt.Sprint(len(p.cases) - 1)
}

func (p *purchaseProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var id int
	_, _ = fmt.Sscan(r.URL.Query().Get("case"), &id)
	_, _ = io.Copy(io.Discard, r.Body)
	p.mu.Lock()
	c := p.cases[id]
	p.mu.Unlock()
	w.Header().Set("Content-Type", c.Type)
	for _, part := range c.Parts[:c.parts] {
		_, _ = io.WriteString(w, part)
		_ = http.NewResponseController(w).Flush()
	}
	if c.parts < len(c.Parts) {
		panic(http.ErrAbortHandler)
	}
}

// check serves the case and compares the charge.
func (c purchaseCase) check(t *testing.T, g *testGateway, provider *purchaseProvider, url string) {
	t.Helper()
	format, ok := llmwire.FormatOf(llmwire.Kind(c.Name), c.Path)
	if !ok {
		t.Fatalf("%s is no format of %s", c.Path, c.Name)
	}
	e := newKindEndpoint(t, format.Kind(), "e", fmt.Sprintf(`"url":%q,%s`, url+"/v1"+c.Path, c.Config()))
	var request *llmwire.Request
	var err error
	if format.TakesForm() {
		request, err = llmwire.ReadForm(format, []string{c.ContentType}, []byte(c.Request))
	} else {
		request, err = llmwire.ReadRequest(format, []byte(c.Request))
	}
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	id, outcome, account := provider.add(c), Outcome{}, &restAccount{rest: 1 << 40}
	memory, place := g.memory.Claim(id, id), g.Place(id, id)
	defer memory.Release()
	defer place.Release()
	call := &Call{
		ID: id, Tenant: id, User: id, Memory: memory, Place: place, Disconnect: func() {}, Account: account,
		Request: request, Body: []byte(c.Request), Start: time.Now(), Deadline: time.Now().Add(time.Minute),
		Cache: g.kept, Outcome: &outcome,
	}
	if err := call.Choose(Endpoints{e}); err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "/v1?case="+id, nil)
	r.Header.Set("Content-Type", c.ContentType)
	x := g.begin(discarder{make(http.Header)}, r, call)
	_ = x.generate()
	x.end()
	if len(account.settled) != 1 {
		t.Errorf("%s\nsettled %v", c, account.settled)
		return
	}
	held, cost := account.taken.Tokens, account.settled[0].Cost
	if want := c.Cost(c.parts, held); cost != want {
		t.Errorf("%safter %d parts: costs %d of %d held: %+v; want %d", c, c.parts, cost, held, outcome.Usage, want)
	}
	if left := max(0, held+account.rest-cost); account.left != left {
		t.Errorf("%s\n%d are left, want %d", c, account.left, left)
	}
}

// Whatever a provider of another service than text sends, and wherever it breaks off, the charge is what a plain
// computation finds.
func TestPurchases(t *testing.T) {
	provider := new(purchaseProvider)
	url := strings.TrimSuffix(newServer(t, provider), "/v1/chat/completions")
	g := newTestGateway(t)
	for _, kind := range billtest.Kinds() {
		for _, stream := range []bool{false, true} {
			if stream && !kind.Streams {
				continue
			}
			t.Run(fmt.Sprintf("%s, stream %v", kind.Path, stream), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(100) {
					p := billtest.NewPurchase(kind, seed, stream)
					for parts := range len(p.Parts) + 1 {
						purchaseCase{p, parts}.check(t, g, provider, url)
					}
				}
			})
		}
	}
}

package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"tollgate/internal/billtest"
	"tollgate/internal/llmwire"
)

// A purchaseCase is a purchase of which a number of parts come. If these are not all, the connection is cut then.
type purchaseCase struct {
	*billtest.Purchase
	parts int
}

func (c purchaseCase) respond(w http.ResponseWriter, _ *http.Request) {
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
func (c purchaseCase) check(t *testing.T, g *testGateway, provider *caseProvider) {
	t.Helper()
	format, ok := llmwire.FormatOf(llmwire.Kind(c.Name), c.Path)
	if !ok {
		t.Fatalf("%s is not a format of %s", c.Path, c.Name)
	}
	e := newKindEndpoint(t, format.Kind(), "e", fmt.Sprintf(`"url":%q,%s`, provider.url+"/v1"+c.Path, c.Config()))
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
	call, release := g.callOf(id, request, c.Request, account)
	defer release()
	call.Outcome = &outcome
	if err := call.Choose(Endpoints{e}); err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "/v1?case="+id, nil)
	r.Header.Set("Content-Type", c.ContentType)
	x := g.begin(discarder{make(http.Header)}, r, call)
	x.generateAll()
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
	provider := new(caseProvider)
	provider.url = strings.TrimSuffix(newServer(t, provider), "/v1/chat/completions")
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
						purchaseCase{p, parts}.check(t, g, provider)
					}
				}
			})
		}
	}
}

package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/telemetry"
)

// purse is an account for one request at a time.
type purse struct{ left int64 }

func (p *purse) Hold(_ time.Time, r gateway.HoldRequest) (gateway.Hold, error) {
	if p.left < r.Least {
		return gateway.Hold{}, gateway.InsufficientError{Left: p.left}
	}
	return gateway.Hold{ID: "the only one", Tokens: min(r.Most, p.left)}, nil
}

func (p *purse) Renew(time.Time, gateway.Hold, time.Duration) error { return nil }

func (p *purse) Settle(_ time.Time, _ string, u gateway.Usage) (gateway.Balance, error) {
	return p.Charge(time.Time{}, nil, u)
}

func (p *purse) Charge(_ time.Time, _ []string, u gateway.Usage) (gateway.Balance, error) {
	p.left -= u.Cost
	return gateway.Balance{Charged: u.Cost, Left: p.left}, nil
}

func (p *purse) Count(time.Time) error { return nil }

func (p *purse) Refund(_ time.Time, tokens int64) error {
	p.left += tokens
	return nil
}

func ExampleGateway_Serve() {
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":30}}`)
	}))
	defer provider.Close()

	endpoint := gateway.NewEndpoint(llmwire.Text, "main")
	rules := endpoint.GatewayRules(func(strict.Rules) strict.Rule { return nil }) // there is no object in the config
	config := fmt.Sprintf(`{"url":"%s/v1/chat/completions","default_model":"m"}`, provider.URL)
	if err := strict.Decode([]byte(config), rules); err != nil || !endpoint.Complete() {
		fmt.Println("the config is wrong:", err)
	}

	g := gateway.New(gateway.Options{
		TotalTimeout: time.Minute, IdleTimeout: time.Minute, MaxWaiting: 100, TenantShare: 0.5, MaxDrains: 100, MaxIdle: 100,
	}, telemetry.NewLogger(os.Stdout))
	defer g.Stop()
	memory, place := fairpool.New(1<<20, 0.5).Claim("acme", "ann"), g.Place("acme", "ann")
	defer memory.Release()
	defer place.Release()
	body := []byte(`{"messages":[{"role":"user","content":"Hello"}]}`)
	r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(string(body)))
	w := httptest.NewRecorder()

	request, err := llmwire.ReadRequest(llmwire.OpenAIChat, body)
	if err != nil {
		fmt.Println(err) // a sentence for the client
	}
	account, outcome := &purse{left: 1000}, new(gateway.Outcome)
	call := &gateway.Call{
		Tenant: "acme", User: "ann", Request: request, Body: body, Account: account, Outcome: outcome,
		Memory: memory, Place: place, Start: time.Now(), Deadline: time.Now().Add(time.Second),
	}
	if err := call.Choose(gateway.Endpoints{endpoint}); err != nil {
		fmt.Println(err)
	}
	rest, err := g.Serve(w, r, call)
	if rest != nil {
		err = rest()
	}
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println(w.Code, w.Body, w.Header().Get("X-Tokens-Charged"))
	fmt.Println(outcome.Endpoint, outcome.Model, outcome.Input, outcome.Output, account.left)
	// Output:
	// 200 {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":30}} 42
	// main m 12 30 958
}

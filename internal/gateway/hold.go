package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"tollgate/internal/llmwire"
)

// takeHold holds the most that the request can cost at any of its endpoints. A request without a limit may be held
// less, down to what one output token costs.
func (x *exchange) takeHold() error {
	request := x.call.Request
	least, most := int64(1), int64(1)
	for _, e := range x.call.endpoints {
		price, input := x.priceAt(e)
		fewest, all := request.Limit, request.Limit // output tokens of each choice
		if !request.HasLimit {
			fewest, all = 1, e.maxOutput
		}
		least = max(least, price.cost(input, fewest*request.N))
		most = max(most, price.cost(input, all*request.N))
	}
	err := x.acquire(HoldRequest{Least: least, Most: most, TTL: leaseTTL, Models: x.call.models()})
	if left, spent := asInsufficient(err); spent {
		return x.unaffordable(least, left)
	}
	return err
}

// asInsufficient returns the tokens that are left if err is an InsufficientError.
func asInsufficient(err error) (left int64, ok bool) {
	spent, ok := errors.AsType[InsufficientError](err)
	return spent.Left, ok
}

// priceAt returns the price at an endpoint that allows the model, and the input tokens to hold.
func (x *exchange) priceAt(e *Endpoint) (price, int64) {
	p, _ := e.price(x.call.model)
	return p, x.call.Request.HeldInput(e.holding())
}

// unaffordable returns the refusal of a request that needs more tokens than are left.
func (x *exchange) unaffordable(needed, left int64) error {
	x.w.Header().Set("X-Tokens-Left", strconv.FormatInt(left, 10))
	sentence := fmt.Sprintf("The request needs %d tokens, %d are left: ", needed, left)
	output := int64(llmwire.MaxTokens)
	for _, e := range x.call.endpoints {
		output = min(output, x.affordableOutput(e, left))
	}
	if output < 1 {
		return Error{http.StatusPaymentRequired, sentence + "not enough for its input"}
	}
	return Error{http.StatusPaymentRequired, sentence + fmt.Sprintf("at most %d output tokens", output)}
}

// affordableOutput returns how many output tokens of each choice the given tokens cover at e.
func (x *exchange) affordableOutput(e *Endpoint, tokens int64) int64 {
	price, input := x.priceAt(e)
	output, _ := price.affords(tokens, input)
	return output / x.call.Request.N
}

// settle turns the hold into the charge for what was used, when it is called first. If the account cannot be reached,
// the charge is made later.
func (x *exchange) settle() {
	if x.hold.ID == "" {
		return
	}
	id := x.hold.ID
	x.hold.ID = ""
	x.setUsage()
	o := x.call.Outcome
	if o.estimated {
		x.gateway.estimated.Add(1)
	}
	usage := Usage{o.Endpoint, o.Usage, o.cost}
	if balance, ok := x.gateway.settler.settle(x.debt(id, usage)); ok {
		setBalance(x.w.Header(), balance)
	}
	x.gateway.patient.wake(member{x.call.Tenant, x.call.User})
}

// debt returns what a hold must be settled to.
func (x *exchange) debt(holdID string, used Usage) debt {
	return debt{x.call.Account, x.call.Tenant, holdID, used, x.lease}
}

// setUsage sets what the endpoint has used and what that costs in the outcome.
func (x *exchange) setUsage() {
	o := x.call.Outcome
	// Not hungUp: while a stream is drained for a client that is gone, what goes wrong is the provider's doing.
	gone := context.Cause(x.ctx) == errClientGone
	seen := x.relay.outcome()
	report := &seen.report
	switch {
	case !seen.costs && !(gone && x.sent):
	case seen.usageUnknown:
		o.cost, o.estimated = x.hold.Tokens, true
	case report.IsFailure(), seen.broken && !gone && report.ContentEvents == 0:
	default:
		var exact bool
		price, _ := x.priceAt(x.endpoint)
		o.Usage, _, exact = report.Used(x.call.Request.N, x.call.Request.EstimatedInput(x.endpoint.holding()))
		if o.cost = price.cost(o.Input, o.Output); !exact {
			o.cost, o.estimated = min(o.cost, x.hold.Tokens), true
		}
	}
}

// chargeFee charges the fee for a cached response, under the same conditions as any charge.
func (x *exchange) chargeFee(fee int64) (balance Balance, err error) {
	used := Usage{Endpoint: x.call.endpoints[0].Name, Cost: fee}
	err = x.patiently(max(fee, 1), func(bool) (err error) {
		balance, err = x.call.Account.Charge(x.call.Deadline, x.call.models(), used)
		return err
	})
	if left, spent := asInsufficient(err); spent {
		x.w.Header().Set("X-Tokens-Left", strconv.FormatInt(left, 10))
		err = Error{http.StatusPaymentRequired,
			fmt.Sprintf("The cached response needs %d tokens, %d are left", max(fee, 1), left)}
	}
	return balance, err
}

// returnFee gives back the fee for a response that is gone, so that the request can go on without.
func (x *exchange) returnFee(fee int64) {
	if err := x.call.Account.Refund(x.call.Deadline, fee); err != nil {
		x.gateway.log.Warnf("A fee of %d tokens of tenant %s was not returned: %v", fee, x.call.Tenant, err)
	}
}

// setBalance sets the headers that say what a response has cost.
func setBalance(h http.Header, balance Balance) {
	h["X-Tokens-Charged"] = []string{strconv.FormatInt(balance.Charged, 10)}
	h["X-Tokens-Left"] = []string{strconv.FormatInt(balance.Left, 10)}
}

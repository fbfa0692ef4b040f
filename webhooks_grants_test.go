package main

import (
	"errors"
	"math/big"
	"math/rand/v2"
	"reflect"
	"testing"

	"tollgate/internal/stripe"
)

// somePrices is what a tenant sells in tables of tests.
var somePrices = payments{freeGroup: "free", prices: []price{
	{id: "basic", group: "b", tokens: 500}, {id: "premium", group: "p", tokens: 3000}, {id: "pack", tokens: 700},
	{id: "raise", group: "b", tokens: 800, reset: true}, {id: "vast", group: "b", tokens: maxAmount},
}}

func TestInvoiceGrant(t *testing.T) {
	of := func(price string, quantity int64) stripe.Line {
		return stripe.Line{Price: price, Quantity: quantity, Amount: 1000 * quantity, OfSubscription: true}
	}
	item := func(price string, quantity int64) stripe.Line {
		return stripe.Line{Price: price, Quantity: quantity, Amount: 1000 * quantity}
	}
	prorated := func(l stripe.Line) stripe.Line {
		l.IsProration = true
		return l
	}
	type lines = []stripe.Line
	for name, test := range map[string]struct {
		lines lines
		want  grant
		fails bool
	}{
		"a period":       {lines{of("basic", 1)}, grant{price: "basic", group: "b", add: 500}, false},
		"its own tokens": {lines{of("premium", 1)}, grant{price: "premium", group: "p", add: 3000}, false},
		"three seats":    {lines{of("basic", 3)}, grant{price: "basic", group: "b", add: 1500}, false},
		"several items":  {lines{of("basic", 2), of("premium", 1)}, grant{price: "basic", group: "b", add: 4000}, false},
		"free": {
			lines{{Price: "basic", Quantity: 1, OfSubscription: true}},
			grant{price: "basic", group: "b", add: 500}, false,
		},
		"no seats":               {lines{of("basic", 0)}, grant{price: "basic", group: "b"}, false},
		"a setup fee":            {lines{item("setup", 1), of("basic", 1)}, grant{price: "basic", group: "b", add: 500}, false},
		"a fee without a price":  {lines{item("", 1), of("basic", 1)}, grant{price: "basic", group: "b", add: 500}, false},
		"a fee alone":            {lines{item("setup", 1)}, grant{}, false},
		"another product beside": {lines{of("storage", 1), of("basic", 1)}, grant{price: "basic", group: "b", add: 500}, false},
		"a pack that was added":  {lines{item("pack", 2), of("basic", 1)}, grant{price: "basic", group: "b", add: 1900}, false},
		"a pack alone":           {lines{item("pack", 2)}, grant{price: "pack", add: 1400}, false},
		"what is given back":     {lines{item("pack", -2), of("basic", 1)}, grant{price: "basic", group: "b", add: 500}, false},
		"given back for one": {
			lines{{Price: "basic", Quantity: 1, Amount: -1, OfSubscription: true}, of("premium", 1)},
			grant{price: "premium", group: "p", add: 3000}, false,
		},
		"a change of plan":        {lines{prorated(item("basic", -1)), prorated(item("premium", 1))}, grant{}, false},
		"one of the subscription": {lines{prorated(of("basic", -1)), prorated(of("premium", 1))}, grant{}, false},
		"one with the period": {
			lines{prorated(item("basic", -1)), prorated(of("premium", 1)), of("premium", 1)},
			grant{price: "premium", group: "p", add: 3000}, false,
		},
		"one of unknown prices": {lines{prorated(of("storage", 1))}, grant{}, false},
		"raised":                {lines{of("raise", 2)}, grant{price: "raise", group: "b", raiseTo: 1600}, false},
		"raised and added": {
			lines{of("raise", 1), of("basic", 1), of("raise", 1)},
			grant{price: "raise", group: "b", add: 500, raiseTo: 1600}, false,
		},
		"no more than the most":         {lines{of("vast", 3)}, grant{price: "vast", group: "b", add: maxAmount}, false},
		"the sum, too":                  {lines{of("vast", 1), of("basic", 1)}, grant{price: "vast", group: "b", add: maxAmount}, false},
		"a quantity beyond":             {lines{of("premium", maxAmount)}, grant{price: "premium", group: "p", add: maxAmount}, false},
		"nothing":                       {nil, grant{}, false},
		"an unknown price":              {lines{of("storage", 1)}, grant{}, true},
		"an unknown price and a pack":   {lines{of("storage", 1), item("pack", 1)}, grant{}, true},
		"an unknown price, prorated":    {lines{prorated(of("basic", 1)), of("storage", 1)}, grant{}, true},
		"the name of a price in a name": {lines{of("basi", 1)}, grant{}, true},
	} {
		got, err := somePrices.invoiceGrant(test.lines)
		if !reflect.DeepEqual(got, test.want) || errors.Is(err, errNotSold) != test.fails || !test.fails && err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, test.want)
		}
	}
}

func TestStateOfSubscription(t *testing.T) {
	type prices = []string
	for _, test := range []struct {
		status stripe.SubscriptionStatus
		items  prices
		want   subscriptionState
		fails  bool
	}{
		{stripe.Active, prices{"basic"}, subscriptionState{group: "b"}, false},
		{stripe.Trialing, prices{"premium"}, subscriptionState{group: "p"}, false},
		{stripe.PastDue, prices{"basic"}, subscriptionState{group: "b"}, false},
		{stripe.Active, prices{"storage", "pack", "premium", "basic"}, subscriptionState{group: "p"}, false},
		{stripe.Unpaid, prices{"basic"}, subscriptionState{}, false},
		{stripe.Paused, prices{"basic"}, subscriptionState{}, false},
		{stripe.Incomplete, prices{"basic"}, subscriptionState{}, false},
		{stripe.IncompleteExpired, prices{"basic"}, subscriptionState{ended: true}, false},
		{stripe.Canceled, prices{"storage"}, subscriptionState{ended: true}, false},
		{stripe.Active, prices{"storage", "pack", ""}, subscriptionState{}, true},
		{stripe.Active, nil, subscriptionState{}, true},
	} {
		s := stripe.Subscription{ID: "sub_1", Status: test.status}
		for _, price := range test.items {
			s.Items = append(s.Items, stripe.Item{Price: price})
		}
		test.want.id, test.want.freeGroup = "sub_1", "free"
		got, err := somePrices.stateOf(&s)
		if got != test.want || errors.Is(err, errNotSold) != test.fails || !test.fails && err != nil {
			t.Errorf("%s %q: got %+v, %v, want %+v", test.status, test.items, got, err, test.want)
		}
	}
}

func TestRefundOf(t *testing.T) {
	for _, test := range []struct{ granted, refunded, paid, want int64 }{
		{1000, 0, 2380, 0}, {1000, 595, 2380, 250}, {1000, 2380, 2380, 1000}, {1000, 2379, 2380, 999}, {3, 1, 2, 1},
		{1, 1, 2, 0}, {0, 1, 2, 0}, {1000, 3000, 2380, 1000}, {1000, 0, 0, 1000}, {maxAmount, maxAmount - 1, maxAmount, maxAmount - 1},
	} {
		if got := refundOf(test.granted, test.refunded, test.paid); got != test.want {
			t.Errorf("%d of %d, granted %d: got %d, want %d", test.refunded, test.paid, test.granted, got, test.want)
		}
	}
}

// Products and quotients are those of numbers without bounds.
func TestMulDiv(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	number := func() int64 { return r.Int64N(1 << r.Int64N(54)) }
	for range 10_000 {
		a, b, c := number(), number(), 1+number()
		want := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
		if want.Quo(want, big.NewInt(c)); want.Cmp(big.NewInt(maxAmount)) > 0 {
			want.SetInt64(maxAmount)
		}
		if got := mulDiv(a, b, c); got != want.Int64() {
			t.Fatalf("%d × %d / %d: got %d, want %d", a, b, c, got, want)
		}
	}
}

func TestStateOfDispute(t *testing.T) {
	for _, test := range []struct {
		d    stripe.Dispute
		want disputeState
	}{
		{stripe.Dispute{}, disputeOpen}, {stripe.Dispute{IsClosed: true}, disputeLost},
		{stripe.Dispute{IsClosed: true, IsWon: true}, disputeWon},
	} {
		if got := stateOfDispute(&test.d); got != test.want {
			t.Errorf("%+v: got %d, want %d", test.d, got, test.want)
		}
	}
}

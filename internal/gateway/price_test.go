package gateway

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"

	"tollgate/internal/llmwire"
)

func TestParsePrice(t *testing.T) {
	for _, test := range []struct {
		number string
		want   int64
		ok     bool
	}{
		{"0", 0, true}, {"1", 1_000_000, true}, {"0.1", 100_000, true}, {"0.000001", 1, true}, {"1e-06", 1, true},
		{"2.675", 2_675_000, true}, {"123456.123456", 123_456_123_456, true}, {"1e9", 1_000_000_000_000_000, true},
		{"999999999.999999", 999_999_999_999_999, true}, {"-0", 0, true},
		{"0.0000001", 0, false}, {"0.1234567", 0, false}, {"1e-7", 0, false}, {"-1", 0, false}, {"-0.000001", 0, false},
		{"1000000000.000001", 0, false}, {"1e999", 0, false}, {"1e-999", 0, true}, {"Infinity", 0, false}, {"NaN", 0, false},
		{`"1"`, 0, false}, {"", 0, false},
	} {
		if got, ok := parsePrice(test.number); ok != test.ok || ok && got != test.want {
			t.Errorf("parsePrice(%s) = %d, %v; want %d, %v", test.number, got, ok, test.want, test.ok)
		}
	}
	for range 10_000 { // whatever has 6 decimals is exact
		want := rand.Int64N(1_000_000_000_000_000)
		number := fmt.Sprintf("%d.%06d", want/1_000_000, want%1_000_000)
		if got, ok := parsePrice(number); !ok || got != want {
			t.Fatalf("parsePrice(%s) = %d, %v", number, got, ok)
		}
	}
}

func TestHeldPrice(t *testing.T) {
	for _, test := range []struct {
		price               heldPrice
		input, output, cost int64
	}{
		{heldPrice{input: 1_000_000, output: 1_000_000}, 10, 20, 30},
		{heldPrice{input: 100_000, output: 200_000}, 1, 1, 1},     // 0.3
		{heldPrice{input: 100_000, output: 200_000}, 10, 0, 1},    // exactly 1
		{heldPrice{input: 100_000, output: 200_000}, 10, 1, 2},    // 1.2
		{heldPrice{input: 100_000, output: 200_000}, 11, 22, 6},   // 5.5
		{heldPrice{input: 100_000, output: 200_000}, 3, 6, 2},     // 1.5, rounded up only once
		{heldPrice{input: 1, output: 1}, 1, 0, 1},                 // a millionth
		{heldPrice{input: 1, output: 1}, 999_999, 1, 1},           // exactly 1
		{heldPrice{input: 0, output: 0}, llmwire.MaxTokens, 1, 0}, // free
		{heldPrice{input: 1_000_000, output: 0}, 0, 5, 0},         // free output
		{heldPrice{input: 1_000_000, output: 0}, 0, 0, 0},         // nothing
		{heldPrice{input: 1_000_000, output: 0}, 1<<53 - 1, 0, 1<<53 - 1},
		{heldPrice{input: 1_000_001, output: 0}, 1<<53 - 1, 0, 1<<53 - 1},
		{heldPrice{input: 1_000_000, output: 1_000_000}, 1<<53 - 1, 1, 1<<53 - 1},
		{heldPrice{input: maxPrice, output: maxPrice}, 1<<53 - 1, 16 * (1<<53 - 1), 1<<53 - 1},
	} {
		if got := test.price.cost(test.input, test.output); got != test.cost {
			t.Errorf("%v.cost(%d, %d) = %d, want %d", test.price, test.input, test.output, got, test.cost)
		}
	}
}

// cost is exact, and affords is its inverse, for numbers of all sizes.
func TestHeldPriceProperties(t *testing.T) {
	number := func(most int64) int64 { return rand.Int64N(1<<rand.IntN(54)) % (most + 1) }
	saturated := 0
	for range 200_000 {
		price, request := heldPrice{input: number(maxPrice), output: number(maxPrice)}, number(maxPrice)
		price.known.add(1, request)
		input, output, balance := number(llmwire.MaxTokens), number(llmwire.MaxTokens), number(llmwire.MaxTokens)
		exact := new(big.Int).Mul(big.NewInt(price.input), big.NewInt(input))
		exact.Add(exact, new(big.Int).Mul(big.NewInt(price.output), big.NewInt(output)))
		exact.Add(exact, big.NewInt(request+priceUnit-1)).Div(exact, big.NewInt(priceUnit))
		if exact.Cmp(big.NewInt(llmwire.MaxTokens)) > 0 {
			exact.SetInt64(llmwire.MaxTokens)
			saturated++
		}
		if got := price.cost(input, output); got != exact.Int64() {
			t.Fatalf("%v.cost(%d, %d) = %d, want %d", price, input, output, got, exact)
		}
		most, ok := price.affords(balance, input)
		switch {
		case balance == llmwire.MaxTokens:
			continue // cost cannot tell what is more
		case !ok && price.cost(input, 0) <= balance:
			t.Fatalf("%v.affords(%d, %d) refuses", price, balance, input)
		case ok && price.cost(input, most) > balance:
			t.Fatalf("%v.affords(%d, %d) = %d, which is too much", price, balance, input, most)
		case ok && most < llmwire.MaxTokens && price.cost(input, most+1) <= balance:
			t.Fatalf("%v.affords(%d, %d) = %d, which is not the most", price, balance, input, most)
		}
	}
	if saturated < 1000 {
		t.Errorf("only %d costs were too large: that proves little", saturated)
	}
}

package main

import (
	"errors"
	"fmt"
	"testing"

	"tollgate/internal/gateway"
)

// The gateway learns from an error of the store what it has to know, and the error table what it knew before.
func TestForGateway(t *testing.T) {
	other := errors.New("other")
	for _, test := range []struct{ err, want error }{
		{ErrUnavailable, gateway.ErrUnavailable}, {ErrNoKey, gateway.ErrNoHold}, {ErrNoHold, gateway.ErrNoHold},
		{ErrKeyDisabled, ErrKeyDisabled}, {rateLimitError{5}, rateLimitError{5}}, {other, other},
		{insufficientTokensError{7}, gateway.InsufficientError{Left: 7}},
	} {
		err := fmt.Errorf("charge an API key: %w", test.err)
		got := forGateway(err)
		if !errors.Is(got, test.want) {
			t.Errorf("%v became %v, want %v", err, got, test.want)
		}
		if _, spent := errors.AsType[gateway.InsufficientError](got); !spent && (!errors.Is(got, test.err) || got.Error() != err.Error()) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if err := forGateway(nil); err != nil {
		t.Errorf("nil became %v", err)
	}
}

// A fee that is given back is not counted, also if it was 0.
func TestRefundedFee(t *testing.T) {
	a := &account{fee: new(usageEvent)}
	if err := a.Refund(in(publicTimeout), 0); err != nil || a.fee != nil {
		t.Errorf("%v is counted, %v", a.fee, err)
	}
}

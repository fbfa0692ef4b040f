package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"tollgate/internal/gateway"
)

// The gateway learns from an error of the store what it has to know, and the error table what it knew before.
func TestForGateway(t *testing.T) {
	other := errors.New("other")
	for _, test := range []struct{ err, want error }{
		{ErrUnavailable, gateway.ErrUnavailable}, {ErrNoKey, gateway.ErrNoHold}, {ErrNoHold, gateway.ErrNoHold},
		{ErrKeyDisabled, ErrKeyDisabled}, {rateLimitError{5}, rateLimitError{5}}, {other, other},
		{insufficientTokensError{7, 5}, gateway.InsufficientError{Left: 7, Held: 5}},
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
	st := newTestStore(t, testRedis)
	owner := st.wantTenant(t, newTenant(t, 100))
	issued, err := st.NewKey(in(10*time.Second), owner, apiKey{group: anonymousGroup, createdAt: time.Now(), tokensLeft: 90},
		idempotentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for fee, left := range map[int64]int{0: 90, 10: 100} {
		a := &account{server: &server{store: st}, tenant: owner, feeFrom: issued.key, fee: new(usageEvent)}
		if err := a.Refund(in(10*time.Second), fee); err != nil || a.fee != nil {
			t.Errorf("%d: %v is counted, %v", fee, a.fee, err)
		}
		if got := tokensLeft(t, issued.key); fee > 0 && got != left {
			t.Errorf("%d: %d tokens are left, want %d", fee, got, left)
		}
	}
}

package redistest

import (
	"testing"
	"time"
)

// Eventually calls condition until it returns nil. The test fails with its last error if that takes longer than within.
func Eventually(t testing.TB, within time.Duration, condition func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		late := time.Now().After(deadline)
		err := condition()
		if err == nil {
			return
		}
		if late {
			t.Fatalf("after %s: %v", within, err)
		}
	}
}

// Package waittest lets tests wait for what happens some time.
package waittest

import (
	"testing"
	"time"
)

// Eventually calls condition until it returns nil: every 2 ms at first and, the longer it takes, less often, at most
// every 25 ms. The test fails with its last error if that takes longer than within. It is called once more after that
// time, so that a slow machine is no reason to fail.
func Eventually(t testing.TB, within time.Duration, condition func() error) {
	t.Helper()
	if err := Until(within, condition); err != nil {
		t.Fatalf("after %s: %v", within, err)
	}
}

// Until does what Eventually does, and returns the error.
func Until(within time.Duration, condition func() error) error {
	for began := time.Now(); ; {
		late := time.Since(began) > within
		if err := condition(); err == nil || late {
			return err
		}
		time.Sleep(min(max(time.Since(began)/20, 2*time.Millisecond), 25*time.Millisecond))
	}
}

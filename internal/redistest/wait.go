package redistest

import (
	"testing"
	"time"

	"tollgate/internal/waittest"
)

// Eventually is waittest.Eventually, for tests that wait for Redis.
func Eventually(t testing.TB, within time.Duration, condition func() error) {
	t.Helper()
	waittest.Eventually(t, within, condition)
}

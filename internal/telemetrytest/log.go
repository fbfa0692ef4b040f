package telemetrytest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"tollgate/internal/redistest"
)

// Log collects the lines that a service logs.
type Log struct {
	mu   sync.Mutex
	text []byte
}

func (b *Log) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *Log) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// Wait returns the rest of the first line that begins with prefix, as soon as there is one. The test fails if done is
// closed before.
func (b *Log) Wait(t testing.TB, prefix string, done <-chan struct{}) (rest string) {
	t.Helper()
	redistest.Eventually(t, 30*time.Second, func() error {
		ended := false
		select {
		case <-done:
			ended = true
		default:
		}
		for line := range strings.Lines(b.String()) {
			if after, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(after, "\n") {
				rest = strings.TrimSuffix(after, "\n")
				return nil
			}
		}
		if ended {
			t.Fatalf("the service ended without a line %q in its log:\n%s", prefix, b)
		}
		return fmt.Errorf("no line %q in the log:\n%s", prefix, b)
	})
	return rest
}

// Count returns how often text is in the log.
func (b *Log) Count(text string) int { return strings.Count(b.String(), text) }

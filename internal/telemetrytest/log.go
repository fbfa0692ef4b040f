// Package telemetrytest collects what a service under test logs.
package telemetrytest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/telemetry"
	"tollgate/internal/waittest"
)

// Log is an io.Writer that keeps what is written. Its zero value is empty. Its methods may be called concurrently.
type Log struct {
	mu      sync.Mutex
	text    []byte              // guarded by mu
	loggers []*telemetry.Logger // guarded by mu
}

// Logger returns a Logger that writes to the log. Whoever reads the log then waits for the lines that it was given.
func (l *Log) Logger() *telemetry.Logger {
	logger := telemetry.NewLogger(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loggers = append(l.loggers, logger)
	return logger
}

// Write adds p to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

// String returns all that was written.
func (l *Log) String() string {
	l.mu.Lock()
	loggers := l.loggers
	l.mu.Unlock()
	for _, logger := range loggers {
		logger.Flush(10 * time.Second)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Count returns how often text is in the log.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Wait waits until there is a line that begins with prefix, and returns the rest of the first such line. The test fails
// if no such line comes within 30 s, or before done is closed.
func (l *Log) Wait(t testing.TB, prefix string, done <-chan struct{}) (rest string) {
	t.Helper()
	waittest.Eventually(t, 30*time.Second, func() error {
		ended := false
		select {
		case <-done:
			ended = true
		default:
		}
		for line := range strings.Lines(l.String()) {
			if after, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(after, "\n") {
				rest = strings.TrimSuffix(after, "\n")
				return nil
			}
		}
		if ended {
			t.Fatalf("the service ended without a line %q in its log:\n%s", prefix, l)
		}
		return fmt.Errorf("no line %q in the log:\n%s", prefix, l)
	})
	return rest
}

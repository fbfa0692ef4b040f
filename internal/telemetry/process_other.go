//go:build !linux

package telemetry

// writeSystem writes nothing.
func writeSystem(*Page) {}

// OpenFileLimit returns 0: how many files the process may have open is not known.
func OpenFileLimit() int64 { return 0 }

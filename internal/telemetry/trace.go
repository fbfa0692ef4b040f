package telemetry

import (
	"slices"
	"strings"
)

const (
	maxTraceParent  = 128 // bytes; version 00 has 55, later ones may have more
	maxTraceState   = 512 // bytes that must be passed on at least (W3C Trace Context, section 3.3.1.5)
	maxTraceMembers = 32
	maxTraceKey     = 256 // bytes, and of a value
)

// TraceID returns the trace ID in the lines of a traceparent header, 32 lower-case hex digits. It is "" unless there is
// one line, which is valid (W3C Trace Context, section 3.2) and not longer than 128 bytes.
func TraceID(traceparent []string) string {
	if len(traceparent) != 1 || len(traceparent[0]) < 55 || len(traceparent[0]) > maxTraceParent {
		return ""
	}
	line := traceparent[0]
	version, id, parent, flags := line[:2], line[3:35], line[36:52], line[53:55]
	for _, dash := range []int{2, 35, 52} {
		if line[dash] != '-' {
			return ""
		}
	}
	for _, field := range []string{version, id, parent, flags} {
		if !isLowerHex(field) {
			return ""
		}
	}
	more := line[55:]
	if version == "ff" || more != "" && (version == "00" || more[0] != '-') || !isPrintable(more) ||
		strings.Trim(id, "0") == "" || strings.Trim(parent, "0") == "" {
		return ""
	}
	return id
}

// TraceState returns the lines of a tracestate header as one, and "" if they are malformed (W3C Trace Context,
// section 3.3) or longer than 512 bytes.
func TraceState(tracestate []string) string {
	line := strings.Join(tracestate, ",")
	if len(line) > maxTraceState {
		return ""
	}
	var keys []string
	for member := range strings.SplitSeq(line, ",") {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue
		}
		key, value, found := strings.Cut(member, "=")
		if !found || !isTraceKey(key) || slices.Contains(keys, key) || value == "" || len(value) > maxTraceKey ||
			strings.Contains(value, "=") || !isPrintable(value) {
			return ""
		}
		if keys = append(keys, key); len(keys) > maxTraceMembers {
			return ""
		}
	}
	if len(keys) == 0 {
		return ""
	}
	return line
}

// isTraceKey reports whether key is one of a tracestate.
func isTraceKey(key string) bool {
	isStart := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	if key == "" || len(key) > maxTraceKey || !isStart(key[0]) {
		return false
	}
	for i := range len(key) {
		if !isStart(key[i]) && !strings.Contains("_-*/@", key[i:i+1]) {
			return false
		}
	}
	return true
}

func isLowerHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// isPrintable reports whether s has only printable ASCII characters.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

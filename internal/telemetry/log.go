// Package telemetry is what a service says about itself: lines of a log that nobody can forge, and metrics in the text
// format of Prometheus.
package telemetry

import (
	"fmt"
	"io"
	"log"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the lines that wait to be written. As many may have been taken to be written now.
const (
	maxLines     = 1024
	maxBytes     = 1 << 20
	maxLineBytes = 16 << 10 // of one line; the rest is cut off. A line may quote what a server or a client has sent
)

// chunkBytes bounds the lines that are written with one call, but for their times. Linux mixes up to 4,096 bytes with
// nothing that other processes write to the same pipe (pipe(7), PIPE_BUF).
const chunkBytes = 2048

// How many eighths of the room for lines that wait a line may fill. A flood of what clients cause then leaves a place
// for what operators must not miss.
const (
	infoEighths  = 6
	warnEighths  = 7
	errorEighths = 8
)

// Logger writes lines that begin with their level, such as "[INFO] ". Whatever is in a value, a line stays one line:
// every rune that is neither printable nor a tab is escaped as in a Go string. Its methods may be called concurrently.
//
// No method but Flush waits for a line to be written. A goroutine writes the lines in their order, while there are any.
// If the reader of the log does not keep up, lines for which there is no room are dropped and counted, and a [WARN]
// line in their place says how many. Lines that cannot be written are counted, too.
type Logger struct {
	out     io.Writer
	dropped atomic.Int64 // lines

	mu       sync.Mutex // guards the fields below; is not held while lines are written
	withTime bool
	waiting  []logLine
	bytes    int           // of waiting
	gap      int64         // lines that were dropped since the line without text in waiting, if it is there
	idle     chan struct{} // is closed when all is written; nil if it is
}

// logLine is a line that waits to be written.
type logLine struct {
	at   time.Time // is the zero time if the line has no time
	text string    // is "" if lines were dropped here
}

// NewLogger returns a Logger that writes to w. Each call has whole lines: one, or several that are short and waited.
func NewLogger(w io.Writer) *Logger { return &Logger{out: w} }

// ShowTime begins each further line with the time of its event, in the form of RFC 3339, UTC, with milliseconds.
func (l *Logger) ShowTime() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.withTime = true
}

// Infof writes what happens in normal operation. The arguments are those of fmt.Printf, as in the methods below.
func (l *Logger) Infof(format string, args ...any) { l.add(infoEighths, "[INFO] ", format, args) }

// Auditf writes who has changed what. It does what Infof does, but its lines are dropped as late as errors are.
func (l *Logger) Auditf(format string, args ...any) { l.add(errorEighths, "[INFO] ", format, args) }

// Warnf writes what an operator should look at some time.
func (l *Logger) Warnf(format string, args ...any) { l.add(warnEighths, "[WARN] ", format, args) }

// Errorf writes what keeps the service from doing its work.
func (l *Logger) Errorf(format string, args ...any) { l.add(errorEighths, "[ERROR] ", format, args) }

// Panicf writes what was recovered from a panic, after a text that says where, and the stack, a line each. It is for
// deferred functions that recover: the stack has the frames of the panic then.
func (l *Logger) Panicf(p any, format string, args ...any) {
	l.Errorf("%s: %v", fmt.Sprintf(format, args...), p)
	for line := range strings.Lines(string(debug.Stack())) {
		l.Errorf("%s", strings.TrimSuffix(line, "\n"))
	}
}

// Dropped returns how many lines were not written: there was no room for them, or the writer has returned an error.
func (l *Logger) Dropped() int64 { return l.dropped.Load() }

// Flush waits until all lines are written, for timeout at most.
func (l *Logger) Flush(timeout time.Duration) {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(timeout):
	}
}

// add lets a line wait to be written. It drops the line if more than that many eighths of the room would be taken.
func (l *Logger) add(eighths int, level, format string, args []any) {
	line := logLine{text: level + escape(fmt.Sprintf(format, args...)) + "\n"}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.withTime {
		line.at = time.Now()
	}
	if len(l.waiting) >= maxLines*eighths/8 || l.bytes+len(line.text) > maxBytes*eighths/8 {
		l.dropped.Add(1)
		if l.gap == 0 {
			l.waiting = append(l.waiting, logLine{at: line.at})
		}
		l.gap++
		return
	}
	l.waiting = append(l.waiting, line)
	l.bytes += len(line.text)
	if l.idle == nil {
		l.idle = make(chan struct{})
		go l.write()
	}
}

// escape returns text as one line, cut to maxLineBytes.
func escape(text string) string {
	var escaped strings.Builder
	for _, r := range text {
		if escaped.Len() > maxLineBytes {
			escaped.WriteString("…")
			break
		}
		if r == '\t' || strconv.IsPrint(r) {
			escaped.WriteRune(r)
		} else {
			escaped.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return escaped.String()
}

// write writes the lines that wait until none does. It takes all at once, since on a busy machine it gets the lock, and
// its turn, far less often than lines come.
func (l *Logger) write() {
	for {
		lines, gap := l.take()
		if len(lines) == 0 {
			return
		}
		var chunk []byte
		inChunk := 0
		for i, line := range lines {
			chunk = line.appendTo(chunk, gap)
			inChunk++
			if i+1 < len(lines) && len(chunk)+len(lines[i+1].text) < chunkBytes {
				continue
			}
			if _, err := l.out.Write(chunk); err != nil {
				l.dropped.Add(int64(inChunk))
			}
			chunk, inChunk = chunk[:0], 0
		}
	}
}

// take takes all lines that wait, and how many were dropped where one has no text. If none waits, the log is idle.
func (l *Logger) take() (lines []logLine, gap int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, gap = l.waiting, l.gap
	l.waiting, l.bytes, l.gap = nil, 0, 0
	if len(lines) == 0 {
		close(l.idle)
		l.idle = nil
	}
	return lines, gap
}

// appendTo appends the line as it is written. gap is how many lines were dropped if it has no text.
func (line logLine) appendTo(chunk []byte, gap int64) []byte {
	if !line.at.IsZero() {
		chunk = line.at.UTC().AppendFormat(chunk, "2006-01-02T15:04:05.000Z ")
	}
	if line.text == "" {
		return fmt.Appendf(chunk, "[WARN] %d lines of the log were dropped: nobody read them in time\n", gap)
	}
	return append(chunk, line.text...)
}

// Warnings returns a logger for net/http, which words itself what goes wrong with connections. Each of its lines is one
// of Warnf.
func (l *Logger) Warnings() *log.Logger { return log.New(warningWriter{l}, "", 0) }

type warningWriter struct{ log *Logger }

func (w warningWriter) Write(p []byte) (int, error) {
	w.log.Warnf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// Package telemetry is what a service says about itself: lines of a log that nobody can forge, and metrics in the text
// format of Prometheus.
package telemetry

import (
	"fmt"
	"io"
	"log"
	"strconv"
	"strings"
)

// Logger writes lines that begin with their level, such as "[INFO] ". Whatever is in a value, a line stays one line:
// every rune that is neither printable nor a tab is escaped as in a Go string. Its methods may be called concurrently.
type Logger struct{ out *log.Logger }

// NewLogger returns a Logger that writes each line to w with one call.
func NewLogger(w io.Writer) *Logger { return &Logger{log.New(w, "", 0)} }

// Infof writes what happens in normal operation. The arguments are those of fmt.Printf, as in the methods below.
func (l *Logger) Infof(format string, args ...any) { l.line("[INFO] ", fmt.Sprintf(format, args...)) }

// Warnf writes what an operator should look at some time.
func (l *Logger) Warnf(format string, args ...any) { l.line("[WARN] ", fmt.Sprintf(format, args...)) }

// Errorf writes what keeps the service from doing its work.
func (l *Logger) Errorf(format string, args ...any) { l.line("[ERROR] ", fmt.Sprintf(format, args...)) }

func (l *Logger) line(level, text string) {
	var escaped strings.Builder
	escaped.WriteString(level)
	for _, r := range text {
		if r == '\t' || strconv.IsPrint(r) {
			escaped.WriteRune(r)
		} else {
			escaped.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	l.out.Print(escaped.String())
}

// Warnings returns a logger for net/http, which words itself what goes wrong with connections. Each of its lines is one
// of Warnf.
func (l *Logger) Warnings() *log.Logger { return log.New(warningWriter{l}, "", 0) }

type warningWriter struct{ log *Logger }

func (w warningWriter) Write(p []byte) (int, error) {
	w.log.Warnf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

package telemetry

import (
	"fmt"
	"io"
	"log"
	"strconv"
	"strings"
)

// Logger writes lines that begin with their level. Whatever is in a value, a line stays one line.
type Logger struct{ out *log.Logger }

func New(w io.Writer) *Logger { return &Logger{log.New(w, "", 0)} }

func (l *Logger) Infof(format string, args ...any)  { l.line("[INFO] ", fmt.Sprintf(format, args...)) }
func (l *Logger) Warnf(format string, args ...any)  { l.line("[WARN] ", fmt.Sprintf(format, args...)) }
func (l *Logger) Errorf(format string, args ...any) { l.line("[ERROR] ", fmt.Sprintf(format, args...)) }

// line writes text with every rune escaped that is neither printable nor a tab.
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

// Warnings returns a Logger for net/http, which words itself what goes wrong with connections.
func (l *Logger) Warnings() *log.Logger { return log.New(warningWriter{l}, "", 0) }

type warningWriter struct{ log *Logger }

func (w warningWriter) Write(p []byte) (int, error) {
	w.log.Warnf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

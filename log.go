package main

import (
	"fmt"
	"io"
	"log"
	"strconv"
	"strings"
)

// logger writes lines that begin with their level. Whatever is in a value, a line stays one line.
type logger struct{ out *log.Logger }

func newLogger(w io.Writer) *logger { return &logger{log.New(w, "", 0)} }

func (l *logger) infof(format string, args ...any)  { l.line("[INFO] ", fmt.Sprintf(format, args...)) }
func (l *logger) warnf(format string, args ...any)  { l.line("[WARN] ", fmt.Sprintf(format, args...)) }
func (l *logger) errorf(format string, args ...any) { l.line("[ERROR] ", fmt.Sprintf(format, args...)) }

// line writes text with every rune escaped that is neither printable nor a tab.
func (l *logger) line(level, text string) {
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

// warnings returns a Logger for net/http, which words itself what goes wrong with connections.
func (l *logger) warnings() *log.Logger { return log.New(warningWriter{l}, "", 0) }

type warningWriter struct{ log *logger }

func (w warningWriter) Write(p []byte) (int, error) {
	w.log.warnf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

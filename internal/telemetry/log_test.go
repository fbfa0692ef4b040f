package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stalledWriter is a writer whose reader stands still until it is released. Its first write blocks.
type stalledWriter struct {
	bytes.Buffer
	released chan struct{}
}

func newStalledWriter() *stalledWriter { return &stalledWriter{released: make(chan struct{})} }

func (w *stalledWriter) Write(p []byte) (int, error) {
	<-w.released
	return w.Buffer.Write(p)
}

// wantLines checks that those lines are written, in that order, when the reader goes on.
func (w *stalledWriter) wantLines(t *testing.T, l *Logger, want []string) {
	t.Helper()
	close(w.released)
	l.Flush(10 * time.Second)
	got := strings.SplitAfter(w.String(), "\n")
	got = got[:len(got)-1]
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i]+"\n" {
			t.Fatalf("%d lines, want %d; line %d is %.100q, want %.100q", len(got), len(want), i,
				append(got, "")[min(i, len(got))], append(want, "")[min(i, len(want))])
		}
	}
}

func numbered(prefix string, n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprint(prefix, i))
	}
	return lines
}

// While the reader of the log stands still, nobody waits. What there is no room for is dropped and counted, access lines
// first; when the reader goes on, a line says where and how many.
func TestLogReaderStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newStalledWriter()
		l := NewLogger(w)
		l.Infof("first")
		synctest.Wait() // that line is being written
		const info, warn, rest = maxLines * infoEighths / 8, maxLines / 8, maxLines / 8
		for i := range 3000 {
			l.Infof("i%d", i)
		}
		for i := range 3000 {
			l.Warnf("w%d", i)
		}
		for i := range 3000 {
			l.Auditf("a%d", i)
			l.Errorf("e%d", i)
		}
		dropped := 4*3000 - info - (warn - 1) - rest // the line that says so has one place
		if got := l.Dropped(); got != int64(dropped) {
			t.Errorf("%d lines were dropped, want %d", got, dropped)
		}
		want := append([]string{"[INFO] first"}, numbered("[INFO] i", info)...)
		want = append(want, fmt.Sprintf("[WARN] %d lines of the log were dropped: nobody read them in time", dropped))
		want = append(want, numbered("[WARN] w", warn-1)...)
		for i := range rest / 2 {
			want = append(want, fmt.Sprint("[INFO] a", i), fmt.Sprint("[ERROR] e", i))
		}
		w.wantLines(t, l, want)
		l.Infof("later")
		l.Flush(time.Second)
		if !strings.HasSuffix(w.String(), "\n[INFO] later\n") || l.Dropped() != int64(dropped) {
			t.Errorf("%d lines were dropped; the last is %q", l.Dropped(), w.String()[w.Len()-40:])
		}
	})
}

// The lines that wait are bounded in bytes, too: a line may quote what somebody has sent.
func TestLogWaitingBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newStalledWriter()
		l := NewLogger(w)
		l.Infof("first")
		synctest.Wait()
		long := strings.Repeat("x", 1<<20)
		for range 100 {
			l.Infof("%s", long)
		}
		l.Auditf("%s", long)
		if l.bytes > maxBytes || l.bytes < maxBytes/2 {
			t.Errorf("%d bytes wait, at most %d may", l.bytes, maxBytes)
		}
		line := "[INFO] " + long[:maxLineBytes+1] + "…"
		n := maxBytes * infoEighths / 8 / (len(line) + 1)
		want := append([]string{"[INFO] first"}, make([]string, n)...)
		for i := range n {
			want[i+1] = line
		}
		want = append(want, fmt.Sprintf("[WARN] %d lines of the log were dropped: nobody read them in time", 100-n), line)
		w.wantLines(t, l, want)
		if l.bytes != 0 || l.waiting != nil {
			t.Errorf("%d bytes wait when all is written", l.bytes)
		}
	})
}

// A line has the time of its event, not that of its write.
func TestLogTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight UTC 2000-01-01
		w := newStalledWriter()
		l := NewLogger(w)
		l.Infof("a")
		synctest.Wait() // that line is being written
		l.ShowTime()
		l.Infof("b")
		time.Sleep(1234567 * time.Microsecond)
		l.Warnings().Print("c")
		for range maxLines {
			l.Infof("d")
		}
		time.Sleep(time.Hour)
		want := []string{"[INFO] a", "2000-01-01T00:00:00.000Z [INFO] b", "2000-01-01T00:00:01.234Z [WARN] c"}
		for range maxLines*infoEighths/8 - 2 {
			want = append(want, "2000-01-01T00:00:01.234Z [INFO] d")
		}
		want = append(want, "2000-01-01T00:00:01.234Z [WARN] 258 lines of the log were dropped: nobody read them in time")
		if got := maxLines - (maxLines*infoEighths/8 - 2); got != 258 {
			t.Fatal(got)
		}
		w.wantLines(t, l, want)
	})
}

// Flush waits for a reader that stands still no longer than it is told, and not at all if there is nothing to write.
func TestLogFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newStalledWriter()
		l := NewLogger(w)
		began := time.Now()
		l.Flush(time.Second)
		if took := time.Since(began); took != 0 {
			t.Errorf("nothing to write took %s", took)
		}
		l.Infof("a")
		l.Flush(time.Second)
		if took := time.Since(began); took != time.Second {
			t.Errorf("a reader that stands still took %s", took)
		}
		time.AfterFunc(time.Second, func() { close(w.released) })
		l.Flush(time.Minute)
		if took := time.Since(began); took != 2*time.Second || w.String() != "[INFO] a\n" {
			t.Errorf("after %s %q was written", took, w.String())
		}
	})
}

// fullDisk is a writer that fails, as a full disk does, or a pipe whose reader has gone.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// Lines that cannot be written are counted, and harm nobody.
func TestLogCannotBeWritten(t *testing.T) {
	l := NewLogger(fullDisk{})
	for range 100 {
		l.Infof("a")
		l.Errorf("b")
	}
	l.Flush(10 * time.Second)
	if n := l.Dropped(); n != 200 {
		t.Errorf("%d lines were dropped, want 200", n)
	}
}

// What was recovered from a panic is in one line, and each line of the stack in one of its own.
func TestLogPanic(t *testing.T) {
	var out bytes.Buffer
	l := NewLogger(&out)
	func() {
		defer func() { l.Panicf(recover(), "panic in %s", "a\nb") }()
		panic("oops\n[INFO] forged")
	}()
	l.Flush(10 * time.Second)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if want := `[ERROR] panic in a\nb: oops\n[INFO] forged`; lines[0] != want {
		t.Errorf("got %s, want %s", lines[0], want)
	}
	if len(lines) < 5 || !strings.Contains(out.String(), "log_test.go:") || strings.Contains(out.String(), `)\n`) {
		t.Errorf("the stack is %s", &out)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "[ERROR] ") {
			t.Errorf("a line begins in another way: %s", line)
		}
	}
}

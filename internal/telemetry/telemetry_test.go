package telemetry

import (
	"bytes"
	"math"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whatever is in a value, it cannot forge a line of the log.
func TestLogger(t *testing.T) {
	tests := []struct {
		name string
		log  func(l *Logger)
		want string
	}{
		{"levels", func(l *Logger) { l.Infof("a %d", 1); l.Warnf("b"); l.Errorf("c"); l.Auditf("d") },
			"[INFO] a 1\n[WARN] b\n[ERROR] c\n[INFO] d\n"},
		{"a line end", func(l *Logger) { l.Infof("%s", "a\n[ERROR] b\r") }, "[INFO] a\\n[ERROR] b\\r\n"},
		{"a line end at the end", func(l *Logger) { l.Infof("a\n") }, "[INFO] a\\n\n"},
		{"control characters", func(l *Logger) { l.Infof("%s", "\x00\x1b[31m\u0085\x7f") }, "[INFO] \\x00\\x1b[31m\\u0085\\x7f\n"},
		{"Unicode's line ends", func(l *Logger) { l.Infof("%s", "\u2028\u2029") }, "[INFO] \\u2028\\u2029\n"},
		{"what changes the direction", func(l *Logger) { l.Infof("%s", "\u202e\ufeff") }, "[INFO] \\u202e\\ufeff\n"},
		{"what is printable", func(l *Logger) { l.Infof("%s", "c\td é '\"\\") }, "[INFO] c\td é '\"\\\n"},
		{"bad UTF-8", func(l *Logger) { l.Infof("%s", "\xff") }, "[INFO] \ufffd\n"},
		{"a long line", func(l *Logger) { l.Infof("%s", strings.Repeat("\n", 1<<20)) },
			"[INFO] " + strings.Repeat(`\n`, maxLineBytes/2+1) + "…\n"},
		{"net/http", func(l *Logger) { l.Warnings().Printf("http: %s\n[INFO] x", "y") }, "[WARN] http: y\\n[INFO] x\n"},
		{"net/http with a line end", func(l *Logger) { l.Warnings().Print("http: y\nz\n") }, "[WARN] http: y\\nz\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			l := NewLogger(&out)
			test.log(l)
			l.Flush(10 * time.Second)
			if out.String() != test.want {
				t.Errorf("got  %q\nwant %q", out.String(), test.want)
			}
		})
	}
}

func TestPage(t *testing.T) {
	var p Page
	p.Single("up", "gauge", "Whether.", 1)
	p.Family("requests_total", "counter", "Requests.")
	p.Sample("requests_total", 1e21, "route", "/x")
	p.Sample("requests_total", 0.1, "route", "a\"b\\c\nd\te", "status", "")
	p.Sample("requests_total", math.Inf(1))
	const want = `# HELP up Whether.
# TYPE up gauge
up 1
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{route="/x"} 1e+21
requests_total{route="a\"b\\c\nd	e",status=""} 0.1
requests_total +Inf
`
	if p.String() != want || string(p.Bytes()) != want {
		t.Errorf("got\n%swant\n%s", p.String(), want)
	}
}

func TestHistogram(t *testing.T) {
	h := NewHistogram([]float64{0.00025, 0.001, 2.5})
	labels := append(make([]string, 0, 8), "route", "/x") // has room that Histogram must not use
	wantHistogram := func(count int64, want string) {
		t.Helper()
		var page Page
		page.Histogram("d", h, labels...)
		if page.String() != want || h.Count() != count {
			t.Errorf("%d: got\n%swant\n%s", h.Count(), &page, want)
		}
	}
	wantHistogram(0, `d_bucket{route="/x",le="0.00025"} 0
d_bucket{route="/x",le="0.001"} 0
d_bucket{route="/x",le="2.5"} 0
d_bucket{route="/x",le="+Inf"} 0
d_sum{route="/x"} 0
d_count{route="/x"} 0
`)
	var counting sync.WaitGroup
	for range 8 {
		counting.Go(func() {
			for _, d := range []time.Duration{ // two for each bucket, bounds belong to the bucket below them
				0, 250 * time.Microsecond, 250*time.Microsecond + 1, time.Millisecond,
				time.Millisecond + 1, 2500 * time.Millisecond, 2500*time.Millisecond + 1, time.Hour,
			} {
				h.Observe(d)
			}
		})
	}
	counting.Wait()
	wantHistogram(64, `d_bucket{route="/x",le="0.00025"} 16
d_bucket{route="/x",le="0.001"} 32
d_bucket{route="/x",le="2.5"} 48
d_bucket{route="/x",le="+Inf"} 64
d_sum{route="/x"} 28840.020000024
d_count{route="/x"} 64
`)
	if all := labels[:cap(labels)]; all[2] != "" {
		t.Errorf("the caller's labels are %q", all)
	}
}

func TestProcess(t *testing.T) {
	var p Page
	WriteProcess(&p)
	sample := regexp.MustCompile(`^[a-z_]+(\{version="[^"]+"\})? [0-9.e+-]+$`)
	values := make(map[string]float64)
	for line := range strings.Lines(p.String()) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "# ") {
			continue
		}
		if !sample.MatchString(line) {
			t.Errorf("malformed: %s", line)
		}
		name, text, _ := strings.Cut(line, " ")
		values[name], _ = strconv.ParseFloat(text, 64)
	}
	positive := []string{"go_goroutines", "go_memstats_heap_alloc_bytes", "go_memstats_mallocs_total"}
	if runtime.GOOS == "linux" {
		positive = append(positive, "process_cpu_seconds_total", "process_start_time_seconds",
			"process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds", "process_max_fds")
	}
	for _, name := range positive {
		if values[name] <= 0 {
			t.Errorf("%s is %v", name, values[name])
		}
	}
	if values["process_resident_memory_bytes"] > values["process_virtual_memory_bytes"] {
		t.Errorf("%v bytes are resident, of %v", values["process_resident_memory_bytes"], values["process_virtual_memory_bytes"])
	}
}

package telemetry

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Page is a page of metrics.
type Page struct{ bytes.Buffer }

// Family begins a metric, whose samples follow.
func (e *Page) Family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// Sample writes one value of the last family, with the names and values of its labels in turn.
func (e *Page) Sample(name string, value float64, labels ...string) {
	e.WriteString(name)
	separator := "{"
	for i := 0; i < len(labels); i += 2 {
		e.WriteString(separator + labels[i] + `="` + escapedLabel.Replace(labels[i+1]) + `"`)
		separator = ","
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	e.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

var escapedLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// Single writes a family of one value.
func (e *Page) Single(name, kind, help string, value float64) {
	e.Family(name, kind, help)
	e.Sample(name, value)
}

var startTime = time.Now()

// WriteProcess writes what the Go runtime and, on Linux, the system know about the process.
func WriteProcess(e *Page) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	e.Family("go_info", "gauge", "The version of Go.")
	e.Sample("go_info", 1, "version", runtime.Version())
	e.Single("go_goroutines", "gauge", "Goroutines.", float64(runtime.NumGoroutine()))
	e.Single("go_memstats_heap_alloc_bytes", "gauge", "Bytes of the heap in use.", float64(memory.HeapAlloc))
	e.Single("go_memstats_sys_bytes", "gauge", "Bytes obtained from the system.", float64(memory.Sys))
	e.Single("go_memstats_alloc_bytes_total", "counter", "Bytes allocated on the heap, ever.", float64(memory.TotalAlloc))
	e.Single("go_memstats_mallocs_total", "counter", "Objects allocated on the heap, ever.", float64(memory.Mallocs))
	e.Single("go_gc_cycles_total", "counter", "Garbage collections.", float64(memory.NumGC))
	e.Single("go_gc_pause_seconds_total", "counter", "Time for which collections have stopped the program.",
		time.Duration(memory.PauseTotalNs).Seconds())
	writeLinuxProcess(e)
}

// writeLinuxProcess writes nothing on systems without /proc.
func writeLinuxProcess(e *Page) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// The second field, the program's name in parentheses, may have spaces (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	number := func(field int) float64 {
		n, _ := strconv.ParseFloat(fields[field-3], 64)
		return n
	}
	const ticks = 100 // a second, on every Linux that Go runs on
	e.Single("process_start_time_seconds", "gauge", "When the process began, in Unix time.",
		float64(startTime.UnixMilli())/1000)
	e.Single("process_cpu_seconds_total", "counter", "Processor time used.", (number(14)+number(15))/ticks)
	e.Single("process_resident_memory_bytes", "gauge", "Memory resident.", number(24)*float64(os.Getpagesize()))
	e.Single("process_virtual_memory_bytes", "gauge", "Virtual memory.", number(23))
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		e.Single("process_open_fds", "gauge", "Open file descriptors.", float64(len(files)))
	}
	if limits, err := os.ReadFile("/proc/self/limits"); err == nil {
		_, line, _ := strings.Cut(string(limits), "Max open files")
		if most, err := strconv.ParseFloat(strings.Fields(line + " ?")[0], 64); err == nil {
			e.Single("process_max_fds", "gauge", "Maximum number of open file descriptors.", most)
		}
	}
}

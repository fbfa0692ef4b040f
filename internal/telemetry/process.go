package telemetry

import (
	"runtime"
	"time"
)

// startTime is when the process began, but for the time that it took to load.
var startTime = time.Now()

// WriteProcess writes what the Go runtime and, on Linux, the system know about the process.
func WriteProcess(p *Page) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	p.Family("go_info", "gauge", "The version of Go.")
	p.Sample("go_info", 1, "version", runtime.Version())
	p.Single("go_goroutines", "gauge", "Goroutines.", float64(runtime.NumGoroutine()))
	p.Single("go_memstats_heap_alloc_bytes", "gauge", "Bytes of the heap in use.", float64(memory.HeapAlloc))
	p.Single("go_memstats_sys_bytes", "gauge", "Bytes obtained from the system.", float64(memory.Sys))
	p.Single("go_memstats_alloc_bytes_total", "counter", "Bytes allocated on the heap, ever.", float64(memory.TotalAlloc))
	p.Single("go_memstats_mallocs_total", "counter", "Objects allocated on the heap, ever.", float64(memory.Mallocs))
	p.Single("go_gc_cycles_total", "counter", "Garbage collections.", float64(memory.NumGC))
	p.Single("go_gc_pause_seconds_total", "counter", "Time for which collections have stopped the program.",
		time.Duration(memory.PauseTotalNs).Seconds())
	writeSystem(p)
}

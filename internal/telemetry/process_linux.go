package telemetry

import (
	"fmt"
	"math"
	"os"
	"syscall"
	"time"
)

// writeSystem writes what the system knows about the process, under the names that Prometheus's own clients use. What
// it does not say is left out.
func writeSystem(p *Page) {
	p.Single("process_start_time_seconds", "gauge", "When the process began, in Unix time.",
		float64(startTime.UnixMilli())/1000)
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) == nil {
		used := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		p.Single("process_cpu_seconds_total", "counter", "Processor time used.", used.Seconds())
	}
	statm, _ := os.ReadFile("/proc/self/statm")
	var virtual, resident int // pages, see proc_pid_statm(5)
	if _, err := fmt.Sscan(string(statm), &virtual, &resident); err == nil {
		page := os.Getpagesize()
		p.Single("process_resident_memory_bytes", "gauge", "Memory resident.", float64(resident*page))
		p.Single("process_virtual_memory_bytes", "gauge", "Virtual memory.", float64(virtual*page))
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Single("process_open_fds", "gauge", "Open file descriptors.", float64(len(files)))
	}
	if limit := OpenFileLimit(); limit > 0 {
		p.Single("process_max_fds", "gauge", "Maximum number of open file descriptors.", float64(limit))
	}
}

// OpenFileLimit returns how many files and connections the process may have open (RLIMIT_NOFILE, which package os has
// raised as far as it may). It is 0 if that is not known, or not limited.
func OpenFileLimit() int64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt64 {
		return 0
	}
	return int64(limit.Cur)
}

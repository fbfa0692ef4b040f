package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxNamedTenants = 1000 // by name in metrics; the rest are other
	maxNamedGroups  = 1000 // of all tenants together; likewise, and if it has more than
	maxGroupBytes   = 64
	otherName       = "other"
)

// metrics counts what happens, to be read in the Prometheus text format
// (https://prometheus.io/docs/instrumenting/exposition_formats/). Counting takes a few atomic additions and no lock, but
// for that of new keys.
type metrics struct {
	routes map[string]*routeMetrics // by pattern; "": no route
	sorted []*routeMetrics          // each once, by name

	redisErrors atomic.Int64 // calls of Redis that found it unavailable
	configLoads atomic.Int64

	mu      sync.Mutex
	tenants map[string]*tenantMetrics
	issued  map[issuedLabels]int64
}

// routeMetrics are of one pattern.
type routeMetrics struct {
	route   string
	answers map[string]*[len(statuses) + 1]atomic.Int64 // by method; in the order of statuses
	buckets [len(durations) + 1]atomic.Int64
	nanos   atomic.Int64
}

// statuses are all that there are; one more counts any other.
var statuses = [...]int{200, 201, 204, 304, 400, 401, 402, 403, 404, 405, 409, 412, 413, 422, 429, 500, 503}

// methods are those that have a name in metrics; the rest are other.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", otherName}

// durations are the upper bounds of the buckets of request durations.
var durations = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second,
}

// tenantMetrics are of one tenant, or of all that have no name of their own.
type tenantMetrics struct {
	tokensCharged atomic.Uint64 // may wrap: to Prometheus a reset
	refused       [len(refusals)]atomic.Int64
}

// refusal is why a charge was refused.
type refusal int

const (
	refusedKey refusal = iota
	refusedBalance
	refusedRate
	refusedIdempotencyKey
)

var refusals = [...]string{"key", "balance", "rate", "idempotency_key"}

type issuedLabels struct{ tenant, group string }

func newMetrics() *metrics {
	m := &metrics{routes: make(map[string]*routeMetrics), tenants: make(map[string]*tenantMetrics), issued: make(map[issuedLabels]int64)}
	byRoute := make(map[string]*routeMetrics)
	for _, r := range append(new(server).table(), route{}) {
		pattern := r.pattern
		method, route, ok := strings.Cut(pattern, " ")
		if !ok { // any method
			method, route = "", pattern
		}
		if pattern == "" {
			route = otherName
		}
		r := byRoute[route]
		if r == nil {
			r = &routeMetrics{route: route, answers: make(map[string]*[len(statuses) + 1]atomic.Int64)}
			byRoute[route] = r
			m.sorted = append(m.sorted, r)
		}
		for _, name := range methods {
			if method == "" || method == name || method == "GET" && name == "HEAD" || name == otherName {
				r.answers[name] = new([len(statuses) + 1]atomic.Int64)
			}
		}
		m.routes[pattern] = r
	}
	slices.SortFunc(m.sorted, func(a, b *routeMetrics) int { return strings.Compare(a.route, b.route) })
	return m
}

// request counts an answer.
func (m *metrics) request(pattern, method string, status int, took time.Duration) {
	r := m.routes[pattern]
	if r == nil {
		r = m.routes[""]
	}
	answers := r.answers[method]
	if answers == nil {
		answers = r.answers[otherName]
	}
	if i := slices.Index(statuses[:], status); i >= 0 {
		answers[i].Add(1)
	} else {
		answers[len(statuses)].Add(1)
	}
	bucket := 0
	for bucket < len(durations) && took > durations[bucket] {
		bucket++
	}
	r.buckets[bucket].Add(1)
	r.nanos.Add(int64(took))
}

// tenant returns what counts for tenantID, which exists.
func (m *metrics) tenant(tenantID string) *tenantMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tenants[tenantID] == nil && len(m.tenants) >= maxNamedTenants {
		tenantID = otherName
	}
	t := m.tenants[tenantID]
	if t == nil {
		t = new(tenantMetrics)
		m.tenants[tenantID] = t
	}
	return t
}

// keyIssued counts a new API key.
func (m *metrics) keyIssued(tenantID, group string) {
	if len(group) > maxGroupBytes {
		group = otherName
	}
	labels := issuedLabels{tenantID, group}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.issued[labels]; !ok && len(m.issued) >= maxNamedGroups {
		labels = issuedLabels{otherName, otherName}
	}
	m.issued[labels]++
}

// exposition is a page of metrics as it is written.
type exposition struct{ bytes.Buffer }

func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value of the last family, with its labels' names and values in turn.
func (e *exposition) sample(name string, value float64, labels ...string) {
	e.WriteString(name)
	for i := 0; i < len(labels); i += 2 {
		e.WriteByte("{,"[min(i, 1)])
		e.WriteString(labels[i] + `="` + escapedLabel.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	e.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

var escapedLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// single writes a family of one value.
func (e *exposition) single(name, kind, help string, value float64) {
	e.family(name, kind, help)
	e.sample(name, value)
}

// write writes all that m counts.
func (m *metrics) write(e *exposition) {
	e.family("http_requests_total", "counter", "Requests answered, by the pattern of their route.")
	for _, r := range m.sorted {
		for _, method := range methods {
			if r.answers[method] == nil {
				continue
			}
			for i := range r.answers[method] {
				status := otherName
				if i < len(statuses) {
					status = strconv.Itoa(statuses[i])
				}
				if n := r.answers[method][i].Load(); n > 0 {
					e.sample("http_requests_total", float64(n), "route", r.route, "method", method, "status", status)
				}
			}
		}
	}
	const duration = "http_request_duration_seconds"
	e.family(duration, "histogram", "Time from a request's header to its answer.")
	for _, r := range m.sorted {
		count := int64(0)
		for i := range r.buckets {
			count += r.buckets[i].Load()
		}
		if count == 0 {
			continue
		}
		upTo := int64(0)
		for i, bound := range durations {
			upTo += r.buckets[i].Load()
			e.sample(duration+"_bucket", float64(upTo), "route", r.route, "le", strconv.FormatFloat(bound.Seconds(), 'g', -1, 64))
		}
		upTo += r.buckets[len(durations)].Load() // not count: others may have come meanwhile, and the sum must grow
		e.sample(duration+"_bucket", float64(upTo), "route", r.route, "le", "+Inf")
		e.sample(duration+"_sum", time.Duration(r.nanos.Load()).Seconds(), "route", r.route)
		e.sample(duration+"_count", float64(upTo), "route", r.route)
	}

	m.mu.Lock()
	tenants, issued := maps.Clone(m.tenants), maps.Clone(m.issued)
	m.mu.Unlock()
	names := slices.Sorted(maps.Keys(tenants))
	e.family("tokens_charged_total", "counter", "Tokens taken by charges that were answered with 200, each once.")
	for _, name := range names {
		e.sample("tokens_charged_total", float64(tenants[name].tokensCharged.Load()), "tenant", name)
	}
	e.family("charges_refused_total", "counter", "Charges that took nothing: the key is not known, its balance too small, its rate used up, or its Idempotency-Key used for another amount.")
	for _, name := range names {
		for i, reason := range refusals {
			e.sample("charges_refused_total", float64(tenants[name].refused[i].Load()), "tenant", name, "reason", reason)
		}
	}
	e.family("keys_issued_total", "counter", "API keys made.")
	for labels, n := range issued {
		e.sample("keys_issued_total", float64(n), "tenant", labels.tenant, "group", labels.group)
	}
	e.single("tenant_config_loads_total", "counter", "Configs read from Redis.", float64(m.configLoads.Load()))
	e.single("redis_errors_total", "counter", "Calls that found Redis unavailable.", float64(m.redisErrors.Load()))
}

var startTime = time.Now()

// writeProcess writes what the Go runtime and, on Linux, the system know of the process.
func writeProcess(e *exposition) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	e.family("go_info", "gauge", "The version of Go.")
	e.sample("go_info", 1, "version", runtime.Version())
	e.single("go_goroutines", "gauge", "Goroutines that there are.", float64(runtime.NumGoroutine()))
	e.single("go_memstats_heap_alloc_bytes", "gauge", "Bytes of the heap in use.", float64(memory.HeapAlloc))
	e.single("go_memstats_sys_bytes", "gauge", "Bytes obtained from the system.", float64(memory.Sys))
	e.single("go_memstats_alloc_bytes_total", "counter", "Bytes allocated on the heap, ever.", float64(memory.TotalAlloc))
	e.single("go_memstats_mallocs_total", "counter", "Objects allocated on the heap, ever.", float64(memory.Mallocs))
	e.single("go_gc_cycles_total", "counter", "Garbage collections.", float64(memory.NumGC))
	e.single("go_gc_pause_seconds_total", "counter", "Time for which collections have stopped the program.", time.Duration(memory.PauseTotalNs).Seconds())

	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third on (proc_pid_stat(5))
	number := func(field int) float64 {
		n, _ := strconv.ParseFloat(fields[field-3], 64)
		return n
	}
	const ticks = 100 // a second, on all that Go runs on
	e.single("process_start_time_seconds", "gauge", "When the process began, in Unix time.", float64(startTime.UnixMilli())/1000)
	e.single("process_cpu_seconds_total", "counter", "Processor time used.", (number(14)+number(15))/ticks)
	e.single("process_resident_memory_bytes", "gauge", "Memory resident.", number(24)*float64(os.Getpagesize()))
	e.single("process_virtual_memory_bytes", "gauge", "Virtual memory.", number(23))
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		e.single("process_open_fds", "gauge", "Open file descriptors.", float64(len(files)))
	}
	if limits, err := os.ReadFile("/proc/self/limits"); err == nil {
		_, line, _ := strings.Cut(string(limits), "Max open files")
		if most, err := strconv.ParseFloat(strings.Fields(line + " ?")[0], 64); err == nil {
			e.single("process_max_fds", "gauge", "File descriptors that may be open.", most)
		}
	}
}

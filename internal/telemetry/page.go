package telemetry

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Page is a page of metrics in the text format of Prometheus
// (https://prometheus.io/docs/instrumenting/exposition_formats/). Its zero value is empty. A caller writes each family
// once, and then all its samples.
type Page struct{ text bytes.Buffer }

// Bytes returns the page. It is valid until more is written.
func (p *Page) Bytes() []byte { return p.text.Bytes() }

// String returns the page.
func (p *Page) String() string { return p.text.String() }

// Family begins a metric. Its kind is counter, gauge or histogram.
func (p *Page) Family(name, kind, help string) {
	fmt.Fprintf(&p.text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// Sample writes one value of the last family. The labels are names and values in turn; a value may be any text.
func (p *Page) Sample(name string, value float64, labels ...string) {
	p.text.WriteString(name)
	separator := "{"
	for i := 0; i < len(labels); i += 2 {
		p.text.WriteString(separator + labels[i] + `="` + escapedLabel.Replace(labels[i+1]) + `"`)
		separator = ","
	}
	if len(labels) > 0 {
		p.text.WriteByte('}')
	}
	p.text.WriteString(" " + formatFloat(value) + "\n")
}

var escapedLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func formatFloat(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// Single writes a family of one value without labels.
func (p *Page) Single(name, kind, help string, value float64) {
	p.Family(name, kind, help)
	p.Sample(name, value)
}

// Histogram writes the samples of h, in seconds. The last family has that name and is a histogram.
func (p *Page) Histogram(name string, h *Histogram, labels ...string) {
	var count int64 // the sum of the buckets as they are read here: others may count meanwhile
	for i := range h.counts {
		bound := "+Inf"
		if i < len(h.bounds) {
			bound = formatFloat(h.bounds[i])
		}
		count += h.counts[i].Load()
		p.Sample(name+"_bucket", float64(count), append(slices.Clip(labels), "le", bound)...)
	}
	p.Sample(name+"_sum", time.Duration(h.sum.Load()).Seconds(), labels...)
	p.Sample(name+"_count", float64(count), labels...)
}

// Histogram counts durations by their size. Its methods may be called concurrently, and take no lock.
type Histogram struct {
	bounds []float64      // in seconds, ascending
	counts []atomic.Int64 // of the durations up to each bound and above the one before; the last: above all bounds
	sum    atomic.Int64   // nanoseconds
}

// NewHistogram returns a histogram whose buckets have the upper bounds, in seconds and in ascending order. They must
// not change.
func NewHistogram(bounds []float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Int64, len(bounds)+1)}
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.bounds, d.Seconds())
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Count returns how many durations were counted.
func (h *Histogram) Count() (n int64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

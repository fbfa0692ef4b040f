package main

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkTable prints what docs/performance.md states: first what was measured, then the table of ratios. Variables of
// the environment say more:
//
//	BASE    a commit: the service as it was there runs beside that of now
//	OTHER   the URL of another gateway's chat completions, with OTHER_KEY; it asks the provider, which is at PROVIDER_ADDR
//	ROWS    a pattern: only the rows that match it
//	ROUNDS  how often each is measured
//
// What is compared is measured in turn, in each round, so that what happens on the machine happens to all.
func BenchmarkTable(b *testing.B) {
	pattern, err := regexp.Compile("(?i)" + os.Getenv("ROWS"))
	if err != nil {
		b.Fatal(err)
	}
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("ROUNDS"), "12"))
	if err != nil || rounds < 1 {
		b.Fatal("ROUNDS is not a number")
	}
	rows := slices.DeleteFunc(slices.Clone(benchRows), func(r benchRow) bool { return !pattern.MatchString(r.name) })
	for b.Loop() {
		t := newBenchTable(b, rows)
		for round := range rounds {
			began := time.Now()
			t.measure(b, round)
			fmt.Fprintf(os.Stderr, "round %d of %d took %s\n", round+1, rounds, time.Since(began).Round(time.Second))
		}
		t.printSamples()
		t.printRows(rows)
	}
}

// A metric is something that a round of a work gives.
type metric string

const (
	perSecond  metric = "requests/s"
	medianMS   metric = "median ms"
	slowMS     metric = "p99 ms"
	firstMS    metric = "first event ms" // from when the provider sent it
	serverCPU  metric = "server µs"      // of the processor, for a request
	redisCPU   metric = "Redis µs"       // of the processor
	scriptTime metric = "scripts µs"     // that Redis says its scripts took
	loadCPU    metric = "load µs"        // of the processor, for client and provider
	allCPU     metric = "server and Redis µs"
	idleKB     metric = "KB of an idle connection"
	silentKB   metric = "KB of a silent stream"
	residentMB metric = "MB resident"
	streamsMB  metric = "MB with 1,000 streams"
	binaryMB   metric = "MB of the binary"
)

// A sample is what one round of a work gave.
type sample map[metric]float64

// A source is a work on a side, or on that of a column if side is "".
type source struct {
	side, work  string
	connections int
}

func many(work string) source { return source{"", work, 64} }
func lone(work string) source { return source{"", work, 1} }

// at returns the source on a side, unless it has one.
func (s source) at(side string) source {
	s.side = cmp.Or(s.side, side)
	return s
}

// A benchRow is a row of the table: a metric of a source or, with an op, what that is to the same metric of another.
type benchRow struct {
	name, aim string
	metric    metric
	a         source
	op        string // "/", "-", or ""
	b         source
}

// The works are defined in benchsides_test.go.
var benchRows = []benchRow{
	{"completion: requests/s, of the bare proxy's", "≥ 0.70", perSecond, many("completion"), "/", many("completion").at("proxy")},
	{"completion: CPU with Redis's, of the bare proxy's", "", allCPU, many("completion"), "/", many("completion").at("proxy")},
	{"completion: CPU of Redis, of a charge's", "≤ 2", redisCPU, many("completion"), "/", many("charge")},
	{"completion: time in Redis's scripts, of a charge's", "≤ 2", scriptTime, many("completion"), "/", many("charge")},
	{"completion: CPU of Redis, µs", "", redisCPU, many("completion"), "", source{}},
	{"completion: time in Redis's scripts, µs", "", scriptTime, many("completion"), "", source{}},
	{"lone completion: ms more than direct", "≤ 0.25", medianMS, lone("completion"), "-", lone("completion").at("direct")},
	{"lone completion: ms more than by the bare proxy", "", medianMS, lone("completion"), "-", lone("completion").at("proxy")},
	{"lone completion: CPU of Redis, of a lone charge's", "", redisCPU, lone("completion"), "/", lone("charge")},
	{"stream of 100 events: streams/s, of the bare proxy's", "≥ 0.85", perSecond, many("stream"), "/", many("stream").at("proxy")},
	{"stream of 100 events: CPU with Redis's, of the bare proxy's", "", allCPU, many("stream"), "/", many("stream").at("proxy")},
	{"lone stream: ms of its first event, more than direct", "≤ 0.15", firstMS, lone("stream"), "-", lone("stream").at("direct")},
	{"lone stream: ms of its first event, more than by the bare proxy", "", firstMS, lone("stream"), "-", lone("stream").at("proxy")},
	{"response: requests/s, of the bare proxy's", "", perSecond, many("response"), "/", many("response").at("proxy")},
	{"response stream: streams/s, of the bare proxy's", "", perSecond,
		many("response stream"), "/", many("response stream").at("proxy")},
	{"embedding: requests/s, of the bare proxy's", "", perSecond, many("embedding"), "/", many("embedding").at("proxy")},
	{"embeddings of 4 MB: requests/s, of the bare proxy's", "", perSecond, many("4 MB"), "/", many("4 MB").at("proxy")},
	{"cached response: requests/s, of the floor's", "≥ 0.45", perSecond, many("cached"), "/", many("charge").at("floor")},
	{"charge: requests/s, of the floor's", "", perSecond, many("charge"), "/", many("charge").at("floor")},
	{"charge: CPU of Redis, µs", "", redisCPU, many("charge"), "", source{}},
	{"charge: time in Redis's scripts, µs", "", scriptTime, many("charge"), "", source{}},
	{"charge: ms of the slowest 1 % at 10,000/s, of the floor's", "", slowMS,
		many("paced charge"), "/", many("paced charge").at("floor")},
	{"lone charge: requests/s, of the floor's", "", perSecond, lone("charge"), "/", lone("charge").at("floor")},
	{"limited charge: CPU of Redis, of a charge's", "≤ 1.8", redisCPU, many("limited"), "/", many("charge")},
	{"limited charge: time in Redis's scripts, of a charge's", "≤ 1.8", scriptTime, many("limited"), "/", many("charge")},
	{"limited charge: CPU of Redis, µs", "", redisCPU, many("limited"), "", source{}},
	{"limited charge: time in Redis's scripts, µs", "", scriptTime, many("limited"), "", source{}},
	{"limited charge: requests/s, of the floor's", "", perSecond, many("limited"), "/", many("charge").at("floor")},
	{"charge with Idempotency-Key: requests/s, of the floor's", "", perSecond, many("repeatable"), "/", many("charge").at("floor")},
	{"verify: requests/s, of the floor's", "", perSecond, many("verify"), "/", many("charge").at("floor")},
	{"login: requests/s, of the floor's", "", perSecond, many("login"), "/", many("charge").at("floor")},
	{"reading a config: requests/s, of the floor's", "", perSecond, many("config"), "/", many("charge").at("floor")},
	{"idle connection: KB", "≤ 14", idleKB, lone("memory"), "", source{}},
	{"idle connection at the floor: KB", "", idleKB, lone("memory").at("floor"), "", source{}},
	{"silent stream: KB", "≤ 40", silentKB, lone("memory"), "", source{}},
	{"silent stream by the bare proxy: KB", "", silentKB, lone("memory").at("proxy"), "", source{}},
	{"1,000 silent streams: MB of the service", "≤ 45", streamsMB, lone("memory"), "", source{}},
	{"service under the loads of this run: MB", "", residentMB, lone("resident"), "", source{}},
	{"start: ms until the first response", "", medianMS, lone("start"), "", source{}},
	{"binary: MB", "", binaryMB, lone("start"), "", source{}},
}

// A benchTable is a run of BenchmarkTable.
type benchTable struct {
	columns []string // the sides that have one: now, before, other
	sides   map[string]*benchSide
	sources []source
	samples map[source][]sample // of each round; nil if it left the work out
}

func newBenchTable(b *testing.B, rows []benchRow) *benchTable {
	t := &benchTable{columns: []string{"now"}, samples: map[source][]sample{}}
	if os.Getenv("BASE") != "" {
		t.columns = append(t.columns, "before")
	}
	if os.Getenv("OTHER") != "" {
		t.columns = append(t.columns, "other")
	}
	t.sides = startSides(b, t.columns)
	for _, row := range rows {
		for _, from := range []source{row.b, row.a} {
			for _, column := range t.columns {
				at := from.at(column)
				if side := t.sides[at.side]; side != nil && side.works[at.work] != nil && !slices.Contains(t.sources, at) {
					t.sources = append(t.sources, at)
				}
			}
		}
	}
	return t
}

// measure takes a sample of every source, in one order or the other.
func (t *benchTable) measure(b *testing.B, round int) {
	b.Helper()
	order := slices.Clone(t.sources)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, at := range order {
		var got sample
		if !isRare(at.work) || round%4 == 0 {
			got = t.sides[at.side].works[at.work](b, at.connections)
		}
		t.samples[at] = append(t.samples[at], got)
	}
}

// values returns a row's numbers for a column, of each round in which all was measured.
func (t *benchTable) values(row benchRow, column string) (values []float64) {
	others := t.samples[row.b.at(column)]
	for round, s := range t.samples[row.a.at(column)] {
		value, ok := s[row.metric]
		if ok && row.op != "" {
			var other float64
			if round < len(others) {
				other, ok = others[round][row.metric]
			}
			switch row.op {
			case "/":
				value /= other
			case "-":
				value -= other
			}
		}
		if ok {
			values = append(values, value)
		}
	}
	return values
}

// ratios returns what a row's numbers of now are to those of before, in each round; none if it is not tollgate's.
func (t *benchTable) ratios(row benchRow) (ratios []float64) {
	if row.a.side != "" {
		return nil
	}
	now, before := t.values(row, "now"), t.values(row, "before")
	for i := range min(len(now), len(before)) {
		ratios = append(ratios, now[i]/before[i])
	}
	return ratios
}

// printSamples prints the medians of what was measured.
func (t *benchTable) printSamples() {
	metrics := []metric{perSecond, medianMS, slowMS, firstMS, serverCPU, redisCPU, scriptTime, loadCPU}
	fmt.Printf("\nMedians of %d rounds of %s. The µs are processor time for one request, but for the scripts': that Redis says.\n\n"+
		"| work | connections | of |", len(t.samples[t.sources[0]]), roundTime)
	for _, m := range metrics {
		fmt.Printf(" %s |", m)
	}
	fmt.Printf("\n%s|\n", strings.Repeat("|---", 3+len(metrics)))
	for _, at := range t.sources {
		if len(t.values(benchRow{metric: perSecond, a: at}, "")) == 0 {
			continue
		}
		fmt.Printf("| %s | %d | %s |", at.work, at.connections, at.side)
		for _, m := range metrics {
			fmt.Printf(" %s |", spread(t.values(benchRow{metric: m, a: at}, ""), false))
		}
		fmt.Println()
	}
}

const benchLegend = `Medians [least … most] of the rounds. Requests come over 64 connections, a lone one over one. "Of the floor's" is the
ratio to a handler of net/http that returns what a charge returns, and has nothing behind it; "of the bare proxy's" to
httputil.ReverseProxy in tollgate's place; "direct" has nothing in that place. CPU is processor time, for one request.`

// printRows prints the table of ratios.
func (t *benchTable) printRows(rows []benchRow) {
	fmt.Print("\n", benchLegend, "\n\n| |")
	heads := slices.Clone(t.columns)
	last := "now" // the column that also shows the least and the most
	if slices.Contains(heads, "before") {
		last = "now / before"
		heads = slices.Insert(heads, 2, last)
	}
	for _, head := range append(heads, "aim") {
		fmt.Printf(" %s |", head)
	}
	fmt.Printf("\n%s|\n", strings.Repeat("|---", len(heads)+2))
	for _, row := range rows {
		fmt.Printf("| %s |", row.name)
		for _, head := range heads {
			values := t.values(row, head)
			if head == "now / before" {
				values = t.ratios(row)
			}
			fmt.Printf(" %s |", spread(values, head == last))
		}
		fmt.Printf(" %s |\n", row.aim)
	}
}

// spread returns the median of values and, if that is wanted, the least and the most.
func spread(values []float64, isWhole bool) string {
	if len(values) == 0 {
		return ""
	}
	if !isWhole {
		return short(median(values))
	}
	return fmt.Sprintf("%s [%s … %s]", short(median(values)), short(slices.Min(values)), short(slices.Max(values)))
}

// short returns three digits of a number or, if it is large, all before the point.
func short(value float64) string {
	digits := 3
	for limit := 1.0; digits > 0 && max(value, -value) >= limit; limit *= 10 {
		digits--
	}
	return strconv.FormatFloat(value, 'f', digits, 64)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// roundTime is how long a load lasts in a round.
const roundTime = 400 * time.Millisecond

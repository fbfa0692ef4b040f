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
			t.measure(b, round)
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
	streamsMB  metric = "MB with 1,000 streams"
	binaryMB   metric = "MB of the binary"
)

// A sample is what one round of a work gave.
type sample map[metric]float64

// A source is a work on a side: that of a column if side is "".
type source struct {
	side, work  string
	connections int
}

// A quantity is a metric of a source.
type quantity struct {
	metric metric
	source
}

func own(m metric, work string, connections int) quantity {
	return quantity{m, source{"", work, connections}}
}

func of(side string, m metric, work string, connections int) quantity {
	return quantity{m, source{side, work, connections}}
}

// A benchRow is a row of the table: a quantity, or what op makes of it and another.
type benchRow struct {
	name string
	a    quantity
	op   string // "/", "-", or ""
	b    quantity
	aim  string
}

// number, which is what a row shows for a column in a round.
func (r benchRow) number(a, b float64) float64 {
	switch r.op {
	case "/":
		return a / b
	case "-":
		return a - b
	}
	return a
}

// The works are defined in benchsides_test.go.
var benchRows = []benchRow{
	{"completion: requests/s, of the bare proxy's", own(perSecond, "completion", 64), "/", of("proxy", perSecond, "completion", 64), "≥ 0.70"},
	{"completion: ms that tollgate adds to a lone one", own(medianMS, "completion", 1), "-", of("direct", medianMS, "completion", 1), "≤ 0.25"},
	{"completion: ms that the bare proxy adds to a lone one", of("proxy", medianMS, "completion", 1), "-",
		of("direct", medianMS, "completion", 1), ""},
	{"completion: Redis's processor time, of a charge's", own(redisCPU, "completion", 64), "/", own(redisCPU, "charge", 64), "≤ 2"},
	{"completion: time in Redis's scripts, of a charge's", own(scriptTime, "completion", 64), "/", own(scriptTime, "charge", 64), "≤ 2"},
	{"completion: Redis's processor time for a lone one, of a lone charge's", own(redisCPU, "completion", 1), "/",
		own(redisCPU, "charge", 1), ""},
	{"completion: µs of Redis's processor", own(redisCPU, "completion", 64), "", quantity{}, ""},
	{"completion: µs in Redis's scripts", own(scriptTime, "completion", 64), "", quantity{}, ""},
	{"completion: processor time of tollgate and Redis, of the bare proxy's", own(allCPU, "completion", 64), "/",
		of("proxy", allCPU, "completion", 64), ""},
	{"stream of 100 events: streams/s, of the bare proxy's", own(perSecond, "stream", 64), "/", of("proxy", perSecond, "stream", 64), "≥ 0.85"},
	{"stream of 100 events: processor time of tollgate and Redis, of the bare proxy's", own(allCPU, "stream", 64), "/",
		of("proxy", allCPU, "stream", 64), ""},
	{"stream: ms that tollgate adds to the first event", own(firstMS, "stream", 1), "-", of("direct", firstMS, "stream", 1), "≤ 0.15"},
	{"stream: the same, beyond what the bare proxy adds", own(firstMS, "stream", 1), "-", of("proxy", firstMS, "stream", 1), ""},
	{"response: requests/s, of the bare proxy's", own(perSecond, "response", 64), "/", of("proxy", perSecond, "response", 64), ""},
	{"response stream: streams/s, of the bare proxy's", own(perSecond, "response stream", 64), "/",
		of("proxy", perSecond, "response stream", 64), ""},
	{"embedding: requests/s, of the bare proxy's", own(perSecond, "embedding", 64), "/", of("proxy", perSecond, "embedding", 64), ""},
	{"embeddings of 4 MB: requests/s, of the bare proxy's", own(perSecond, "4 MB", 64), "/", of("proxy", perSecond, "4 MB", 64), ""},
	{"cached response: requests/s, of the floor's", own(perSecond, "cached", 64), "/", of("floor", perSecond, "charge", 64), "≥ 0.45"},
	{"charge: requests/s, of the floor's", own(perSecond, "charge", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"charge: requests/s of a lone caller, of the floor's", own(perSecond, "charge", 1), "/", of("floor", perSecond, "charge", 1), ""},
	{"charge: µs of Redis's processor", own(redisCPU, "charge", 64), "", quantity{}, ""},
	{"charge: µs in Redis's scripts", own(scriptTime, "charge", 64), "", quantity{}, ""},
	{"charge: ms that the slowest 1 % of 10,000/s take, of the floor's", own(slowMS, "paced charge", 64), "/",
		of("floor", slowMS, "paced charge", 64), ""},
	{"limited charge: Redis's processor time, of a charge's", own(redisCPU, "limited", 64), "/", own(redisCPU, "charge", 64), "≤ 1.8"},
	{"limited charge: time in Redis's scripts, of a charge's", own(scriptTime, "limited", 64), "/", own(scriptTime, "charge", 64), "≤ 1.8"},
	{"limited charge: requests/s, of the floor's", own(perSecond, "limited", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"limited charge: µs of Redis's processor", own(redisCPU, "limited", 64), "", quantity{}, ""},
	{"limited charge: µs in Redis's scripts", own(scriptTime, "limited", 64), "", quantity{}, ""},
	{"charge with an Idempotency-Key: requests/s, of the floor's", own(perSecond, "repeatable", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"verify: requests/s, of the floor's", own(perSecond, "verify", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"login: requests/s, of the floor's", own(perSecond, "login", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"config: requests/s, of the floor's", own(perSecond, "config", 64), "/", of("floor", perSecond, "charge", 64), ""},
	{"memory: KB of an idle connection", own(idleKB, "memory", 1000), "", quantity{}, "≤ 14"},
	{"memory: KB of a silent stream", own(silentKB, "memory", 1000), "", quantity{}, "≤ 40"},
	{"memory: MB with 1,000 silent streams", own(streamsMB, "memory", 1000), "", quantity{}, "≤ 45"},
	{"start: ms until the first response", own(medianMS, "start", 1), "", quantity{}, ""},
	{"start: MB of the binary", own(binaryMB, "start", 1), "", quantity{}, ""},
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
		for _, q := range []quantity{row.b, row.a} {
			for _, column := range t.columns {
				at := q.on(column)
				if side := t.sides[at.side]; side != nil && side.works[at.work] != nil && !slices.Contains(t.sources, at) {
					t.sources = append(t.sources, at)
				}
			}
		}
	}
	return t
}

// on returns the source for a column.
func (q quantity) on(column string) source {
	at := q.source
	at.side = cmp.Or(at.side, column)
	return at
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
	a, b := t.samples[row.a.on(column)], t.samples[row.b.on(column)]
	for round := range a {
		number, ok := a[round][row.a.metric]
		second := 0.0
		if row.op != "" && ok {
			if ok = round < len(b); ok {
				second, ok = b[round][row.b.metric]
			}
		}
		if ok {
			values = append(values, row.number(number, second))
		}
	}
	return values
}

// printSamples prints the medians of what was measured.
func (t *benchTable) printSamples() {
	metrics := []metric{perSecond, medianMS, slowMS, firstMS, serverCPU, redisCPU, scriptTime, loadCPU}
	fmt.Printf("\nMedians of %d rounds of %s. Processor times are of a request.\n\n| work | connections | of |", len(t.samples[t.sources[0]]), roundTime)
	for _, m := range metrics {
		fmt.Printf(" %s |", m)
	}
	fmt.Printf("\n%s|\n", strings.Repeat("|---", 3+len(metrics)))
	for _, at := range t.sources {
		if isRare(at.work) {
			continue
		}
		fmt.Printf("| %s | %d | %s |", at.work, at.connections, at.side)
		for _, m := range metrics {
			fmt.Printf(" %s |", spread(t.values(benchRow{a: quantity{m, at}}, ""), false))
		}
		fmt.Println()
	}
}

// printRows prints the table of ratios.
func (t *benchTable) printRows(rows []benchRow) {
	fmt.Print("\nMedians [least … most] of the rounds. The floor is a handler of net/http that returns what a charge returns, the bare\n" +
		"proxy httputil.ReverseProxy. 64 connections, but for what is lone.\n\n| |")
	heads := t.columns
	if slices.Contains(t.columns, "before") {
		heads = slices.Insert(slices.Clone(heads), 2, "now / before")
	}
	for _, head := range append(heads, "aim") {
		fmt.Printf(" %s |", head)
	}
	fmt.Printf("\n%s|\n", strings.Repeat("|---", len(heads)+2))
	for _, row := range rows {
		fmt.Printf("| %s |", row.name)
		for _, head := range heads {
			if head != "now / before" {
				fmt.Printf(" %s |", spread(t.values(row, head), true))
				continue
			}
			now, before := t.values(row, "now"), t.values(row, "before")
			var ratios []float64
			for i := range min(len(now), len(before)) {
				ratios = append(ratios, now[i]/before[i])
			}
			fmt.Printf(" %s |", spread(ratios, true))
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

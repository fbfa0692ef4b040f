package llmwire

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/billtest"
)

// countsOf returns the counts of u that are not 0, by the names of their prices.
func countsOf(u Usage) billtest.Counts {
	counts := billtest.Counts{
		"input": u.Input, "cached_input": u.CachedInput, "cache_write": u.CacheWrite, "cache_write_1h": u.CacheWrite1h,
		"audio_input": u.AudioInput, "cached_audio_input": u.CachedAudioInput, "image_input": u.ImageInput,
		"output": u.Output, "audio_output": u.AudioOutput, "image_output": u.ImageOutput, "search": u.Searches,
	}
	maps.DeleteFunc(counts, func(_ string, n int64) bool { return n == 0 })
	return counts
}

// A bill is what a response has used, as far as it has come, and what else matters for its charge.
type bill struct {
	used   billtest.Counts
	others map[string]billtest.Counts // by model

	exact, hidden, done, finished, failed bool
	events, bytes                         int64 // of content
	model                                 string
}

const estimatedInput = 1000

// billOf returns the bill of a response with n choices.
func billOf(r *Report, n int64) bill {
	used, others, exact := r.Used(n, estimatedInput)
	b := bill{
		countsOf(used), make(map[string]billtest.Counts), exact, r.Hidden, r.Done, r.HasFinished(n), r.Failed, r.ContentEvents,
		r.ContentBytes(), r.Model,
	}
	for _, other := range others {
		b.others[other.Model] = countsOf(other.Usage)
	}
	return b
}

// plainBill returns the bill that a plain computation finds.
func plainBill(r *billtest.Reading) bill {
	used, others := r.Used(estimatedInput)
	b := bill{
		used, make(map[string]billtest.Counts), r.Exact(), r.Hidden, r.Done, r.Finished, r.Failed, r.Events,
		r.ContentBytes, r.Model,
	}
	for _, other := range others {
		b.others[other.Model] = other.Counts
	}
	return b
}

// tokens returns the tokens of all models.
func (b bill) tokens() int64 {
	sum := b.used["input"] + b.used["output"]
	for _, counts := range b.others {
		sum += counts["input"] + counts["output"]
	}
	return sum
}

// isHalf reports whether a bill can be that of a stream that broke off in the middle of an event, half of which has come.
// That counts as content, and may have been read as far as it goes.
func (b bill) isHalf(before, after bill, half int64) bool {
	input, output := b.used["input"], b.used["output"]
	return (b.hidden || b.exact) &&
		input >= min(before.used["input"], after.used["input"]) && output >= min(before.used["output"], after.used["output"]) &&
		input <= before.used["input"]+after.used["input"]+estimatedInput &&
		output <= max(before.used["output"], after.used["output"], before.events+2, (before.bytes+2*half+2)/3)+after.used["output"]
}

func formatOf(r *billtest.Response) Format {
	format, _ := FormatOf(Text, r.Format.Path)
	return format
}

// checkBills checks what a stream has used by the time that it breaks off: after each of its events, and after each byte
// for which inside reports true.
func checkBills(t *testing.T, r *billtest.Response, inside func() bool) {
	t.Helper()
	text, before := "", plainBill(r.Read(""))
	for _, part := range r.Parts {
		after := plainBill(r.Read(text + part))
		for end := range len(part) + 1 {
			if end < len(part) && !inside() {
				continue
			}
			s := &Stream{Report: Report{Format: formatOf(r)}}
			relay(s, []byte(text+part[:end]))
			got, reading := billOf(&s.Report, r.Choices), r.Read(text+part[:end])
			want, half := plainBill(reading), reading.Half
			if half > 0 && !got.isHalf(before, after, half) || half == 0 && fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("after %d bytes of %s\ngot  %+v\nwant %+v\nand  %+v", len(text)+end, r, got, want, after)
			}
			if got.tokens() < reading.FinalTokens {
				t.Fatalf("after %d bytes of %s\ngot %+v, but the final usage is %d", len(text)+end, r, got, reading.FinalTokens)
			}
		}
		text, before = text+part, after
	}
}

// Wherever a random response breaks off, what it has used by then is what a plain computation finds.
func TestBills(t *testing.T) {
	for _, format := range billtest.Formats() {
		t.Run(format.Name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(1, 2))
			for seed := range uint64(150) {
				checkBills(t, billtest.New(format, seed, true), func() bool { return seed < 6 || random.IntN(200) == 0 })
			}
		})
	}
}

// What a random response that is not streamed has used is what a plain computation finds.
func TestWholeBills(t *testing.T) {
	for _, format := range billtest.Formats() {
		for seed := range uint64(500) {
			r := billtest.New(format, seed, false)
			report, body := Report{Format: formatOf(r)}, strings.Join(r.Parts, "")
			if _, err := report.Read([]byte(body)); err != nil {
				t.Fatalf("%s: %v", r, err)
			}
			if got, want := billOf(&report, r.Choices), plainBill(r.Read(body)); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s\ngot  %+v\nwant %+v", r, got, want)
			}
		}
	}
}

// Random responses are made of every format.
func TestBillsOfEveryFormat(t *testing.T) {
	var made []string
	for _, format := range billtest.Formats() {
		made = append(made, format.Path)
	}
	for _, kind := range billtest.Kinds() {
		made = append(made, kind.Path)
	}
	for f := range formats {
		if !slices.Contains(made, Format(f).URLSuffix()) {
			t.Errorf("billtest makes nothing in the format of %s", Format(f).URLSuffix())
		}
	}
}

package llmwire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/fairpool"
)

// A streamTest is a stream of a response with n choices, and the summary of its report.
type streamTest struct {
	name    string
	format  Format
	n       int64
	events  []string // with LF
	dropped int      // the event that is taken out, from 1; 0 for none
	want    string
}

func streamTests() []streamTest {
	return slices.Concat(chatStreams(), messageStreams(), responseStreams())
}

// relay feeds data to s in pieces that end at the given offsets, and returns what it relays.
func relay(s *Stream, data []byte, ends ...int) (relayed []byte) {
	from := 0
	for _, end := range append(ends, len(data)) {
		for from < end {
			n := copy(s.Room(), data[from:end])
			relayed = append(relayed, s.Received(n)...)
			from += n
		}
	}
	return append(relayed, s.Finish()...)
}

// Wherever a stream is split and whatever its lines end in, the report is the same and the bytes are the provider's.
func TestStreams(t *testing.T) {
	t.Parallel()
	for _, test := range streamTests() {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			t.Run(test.name+fmt.Sprintf("%q", ending), func(t *testing.T) {
				events := make([]string, len(test.events))
				for i, event := range test.events {
					events[i] = strings.ReplaceAll(event, "\n", ending)
				}
				data := []byte(strings.Join(events, ""))
				for _, drop := range slices.Compact([]bool{test.dropped == 0, true}) {
					want := string(data)
					if test.dropped > 0 && drop {
						want = strings.Join(slices.Delete(slices.Clone(events), test.dropped-1, test.dropped), "")
					}
					check := func(ends ...int) {
						t.Helper()
						s := &Stream{Report: Report{Format: test.format}, DropUsage: drop}
						if got := string(relay(s, data, ends...)); got != want {
							t.Fatalf("split at %v: got %q, want %q", ends, got, want)
						}
						if got := s.Report.summary(test.n); got != test.want {
							t.Fatalf("split at %v\ngot  %s\nwant %s", ends, got, test.want)
						}
					}
					bytewise := make([]int, len(data))
					for i := range data {
						check(i)
						bytewise[i] = i
					}
					check(bytewise...)
				}
			})
		}
	}
}

// TestStreamMemory reads events of 40 and 400 KB with memory for neither, one or both. An event without memory is
// relayed byte for byte, unread. The memory is given back after the event.
func TestStreamMemory(t *testing.T) {
	event := func(size int) string {
		return `data: {"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", size) + `"}}]}` + "\n\n"
	}
	for _, test := range []struct {
		memory int64
		size   int
		unread bool
	}{{1, 40_000, false}, {1, 400_000, true}, {1 << 20, 400_000, false}, {200_000, 400_000, true}, {200_000, 100_000, false}} {
		pool := fairpool.New(test.memory, 1)
		s := &Stream{Memory: pool.Claim("acme", "user")}
		data := []byte(event(test.size) + event(1) + event(1))
		if relayed := relay(s, data); !bytes.Equal(relayed, data) {
			t.Errorf("%+v: %d bytes of %d were relayed", test, len(relayed), len(data))
		}
		if s.Report.Unread != test.unread || s.Report.contentBytes < int64(test.size) {
			t.Errorf("%+v: unread is %v, with %d bytes of content", test, s.Report.Unread, s.Report.contentBytes)
		}
		if s.Room(); pool.Stats().Used != 0 {
			t.Errorf("%+v: %d bytes are still used", test, pool.Stats().Used)
		}
	}
}

// An event is relayed when its last byte has come, and not a byte of it before.
func TestStreamFlush(t *testing.T) {
	for _, test := range streamTests()[:3] {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			s := &Stream{Report: Report{Format: test.format}}
			fed, relayed := 0, 0
			for _, event := range test.events {
				event = strings.ReplaceAll(event, "\n", ending)
				for i := range len(event) {
					s.Room()[0] = event[i]
					n := len(s.Received(1))
					relayed, fed = relayed+n, fed+1
					isLast := i == len(event)-1 || ending == "\r\n" && i == len(event)-2 // CR alone could be the end
					if isLast != (relayed == fed) || isLast != (n > 0) || !s.IsBetweenEvents() {
						t.Fatalf("%q: %d of %d bytes relayed after byte %d of %q", ending, relayed, fed, i, event)
					}
				}
			}
		}
	}
}

// What is too long to be read is relayed as it comes, and counted as content. What follows it is read.
func TestLongEvents(t *testing.T) {
	longLine := chatChunk(0, `"content":"`+strings.Repeat("x", 3<<20)+`"`, "null")
	manyLines := strings.Repeat("data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}]}\n", 40_000) + "\n"
	usage := chatEvent("[]", chatUsage)
	for _, test := range []struct {
		name, long string
		least      int64 // bytes of content
	}{
		{"line", longLine, 3 << 20}, {"event", manyLines, 3 * 40_000},
	} {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			t.Run(test.name+fmt.Sprintf("%q", ending), func(t *testing.T) {
				replace := func(s string) string { return strings.ReplaceAll(s, "\n", ending) }
				s := &Stream{DropUsage: true}
				before := replace(chatChunk(0, `"content":"a"`, "null"))
				data := before + replace(test.long)
				wasInEvent := false
				var relayed []byte
				for rest := []byte(data); len(rest) > 0; {
					room := s.Room()
					if len(rest) < 10_000 {
						room = room[:1] // so that every state is seen
					}
					n := copy(room[:min(len(room), 32<<10)], rest)
					rest = rest[n:]
					relayed = append(relayed, s.Received(n)...)
					wasInEvent = wasInEvent || !s.IsBetweenEvents()
					if held := len(data) - len(rest) - len(relayed); held > maxEventBytes {
						t.Fatalf("%d bytes are held back", held)
					}
				}
				if !wasInEvent || !s.IsBetweenEvents() || string(relayed) != data {
					t.Errorf("relayed %d of %d bytes, in an event: %v, still: %v",
						len(relayed), len(data), wasInEvent, !s.IsBetweenEvents())
				}
				if s.Report.contentBytes < test.least || s.Report.contentBytes > int64(len(data)) {
					t.Errorf("%d bytes of content, want at least %d", s.Report.contentBytes, test.least)
				}
				rest := replace(chatChunk(0, ``, `"stop"`) + usage + chatDone)
				want := replace(chatChunk(0, ``, `"stop"`) + chatDone)
				if got := string(relay(s, []byte(rest))); got != want || !s.Report.isComplete(1) {
					t.Errorf("then got %q, want %q; complete: %v", got, want, s.Report.isComplete(1))
				}
				if s.Room(); cap(s.buf) > 16*eventBuffer {
					t.Errorf("the buffer still has %d bytes", cap(s.buf))
				}
			})
		}
	}
}

// What is too long to be held is read as it comes, but for its content.
func TestUsageOfLongEvents(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2200<<10)
	const begin, end = `{"model":"m","choices":[{"index":0,"delta":{"content":"`, `"},"finish_reason":"stop"}],"usage":`
	lines := strings.Repeat(`"y",`+"\ndata: ", 200_000)
	for _, test := range []struct{ name, event string }{
		{"line", "data: " + begin + long + end + chatUsage + "}\n\n"},
		{"line after a byte order mark", "\ufeffdata: " + begin + long + end + chatUsage + "}\n\n"},
		{"several long lines", "data: " + begin + long + end + "\ndata: " + chatUsage + ",\ndata: \"x\":\"" + long + "\"}\n\n"},
		{"many lines", "data: " + begin + end + chatUsage + ",\ndata: \"logprobs\":[" + lines + "1]}\n\n"},
		{"other long fields", "id: " + long + "\n: " + long + "\ndata: " + begin + "x" + end + chatUsage + "}\n\n"},
		{"many objects", strings.Repeat("data: {\"choices\":[]}\n", 60_000) +
			"data: " + begin + "x" + end + chatUsage + "}\n\n"},
	} {
		for _, ending := range []string{"\n", "\r\n", "\r"} {
			for _, size := range []int{99, 4 << 20} {
				event := strings.ReplaceAll(test.event, "\n", ending)
				s := &Stream{DropUsage: true}
				var ends []int
				for at := size; at < len(event); at += size {
					ends = append(ends, at)
				}
				if got := relay(s, []byte(event), ends...); string(got) != event {
					t.Errorf("%s, %q, %d at a time: it became %.300q", test.name, ending, size, got)
				}
				used, _, exact := s.Report.Used(1, 0)
				if used.Input != 1117 || used.Output != 46 || !exact || s.Report.Model != "m" || !s.Report.Unread {
					t.Errorf("%s, %q, %d at a time: got %+v of %q, exact: %v", test.name, ending, size, used, s.Report.Model, exact)
				}
				if cap(s.buf) > 2*maxEventBytes || s.Report.parts != nil && cap(s.Report.parts.kept) > maxKept {
					t.Errorf("%s: %d and %d bytes are held", test.name, cap(s.buf), cap(s.Report.parts.kept))
				}
			}
		}
	}
}

// At its end a stream may lack the last blank line, or break off in the middle of an event.
func TestStreamFinish(t *testing.T) {
	whole := chatChunk(0, `"content":"a"`, `"stop"`)
	usage := chatEvent("[]", chatUsage)
	for _, test := range []struct {
		name, rest string
		finish     string
		want       string
	}{
		{"nothing", "", "", `1000+1 tokens, 1 events, 1 bytes normal estimated finished`},
		{"no blank line", "data: [DONE]\n", "data: [DONE]\n",
			`1000+1 tokens, 1 events, 1 bytes normal estimated done finished`},
		{"no line end", "data: [DONE]", "data: [DONE]", `1000+1 tokens, 1 events, 1 bytes normal estimated done finished`},
		{"CR", "data: [DONE]\r", "data: [DONE]\r", `1000+1 tokens, 1 events, 1 bytes normal estimated done finished`},
		{"usage without blank line", usage[:len(usage)-1], "", `1117+46 tokens, 1 events, 1 bytes normal finished complete`},
		{"half an event", "data: {\"ch", "data: {\"ch", `1000+2 tokens, 2 events, 5 bytes normal estimated finished unread`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Stream{DropUsage: true}
			data := whole + test.rest
			n := copy(s.Room(), data)
			if got := string(s.Received(n)); got != whole {
				t.Errorf("relayed %q", got)
			}
			s.Room()
			if got := string(s.Received(0)); got != "" {
				t.Errorf("then relayed %q", got)
			}
			if got := string(s.Finish()); got != test.finish {
				t.Errorf("at last relayed %q, want %q", got, test.finish)
			}
			if got := s.Report.summary(1); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Whatever a provider sends is relayed byte for byte, and read the same however it is split.
func FuzzStream(f *testing.F) {
	for _, test := range streamTests() {
		data := strings.Join(test.events, "")
		f.Add(int(test.format), []byte(data), uint16(100), uint16(7))
		f.Add(int(test.format), []byte(strings.ReplaceAll(data, "\n", "\r\n")), uint16(333), uint16(1))
	}
	f.Add(0, []byte("\r\r\n\n\r\n\rdata:{}\r\n\r"), uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, format int, data []byte, first, size uint16) {
		newStream := func(drop bool) *Stream {
			return &Stream{Report: Report{Format: Format(uint(format) % uint(len(formats)))}, DropUsage: drop}
		}
		var ends []int
		for at := int(first); at < len(data); at += int(size) + 1 {
			ends = append(ends, at)
		}
		whole, split := newStream(false), newStream(false)
		if got := relay(whole, data); !bytes.Equal(got, data) {
			t.Fatalf("%q became %q", data, got)
		}
		if got := relay(split, data, ends...); !bytes.Equal(got, data) {
			t.Fatalf("%q in pieces became %q", data, got)
		}
		if whole.Report.summary(1) != split.Report.summary(1) {
			t.Fatalf("%q: %s; in pieces %s", data, whole.Report.summary(1), split.Report.summary(1))
		}
		dropped, droppedSplit := relay(newStream(true), data), relay(newStream(true), data, ends...)
		if !bytes.Equal(dropped, droppedSplit) {
			t.Fatalf("%q became %q, in pieces %q", data, dropped, droppedSplit)
		}
		if bytes.Contains(data, []byte(byteOrderMark)) {
			return // it counts where the first line is, which may be dropped
		}
		again := newStream(true)
		if relay(again, dropped); again.Report.ContentEvents != whole.Report.ContentEvents {
			t.Fatalf("%q became %q, with other content", data, dropped)
		}
	})
}

// A stream of 100 events allocates nothing for an event.
func TestStreamAllocations(t *testing.T) {
	for _, format := range textFormats {
		events := benchmarkEvents(format)
		s := &Stream{Report: Report{Format: format}, DropUsage: true}
		feed := func() {
			for _, event := range events {
				if n := copy(s.Room(), event); len(s.Received(n)) != n {
					t.Fatal("not a whole event was relayed")
				}
			}
		}
		feed() // the buffers are allocated
		n := testing.AllocsPerRun(20, feed)
		for range 4 { // what other tests have left running allocates, too
			n = min(n, testing.AllocsPerRun(20, feed))
		}
		if n > 0 {
			t.Errorf("format %d: %v allocations in %d events", format, n, len(events))
		}
	}
}

func benchmarkEvents(format Format) [][]byte {
	const chunk = `data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk",` +
		`"created":1741570283,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"delta":{"content":"word\n\u00e9"},` +
		`"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n"
	events := make([][]byte, 100)
	for i := range events {
		events[i] = []byte(map[Format]string{
			OpenAIChat: chunk, AnthropicMessages: textDelta(`word\n\"`), OpenAIResponses: responseDelta("output_text", `word\n\"`),
		}[format])
	}
	events[98] = []byte(chatChunk(0, ``, `"stop"`))
	if format == OpenAIResponses {
		events[98] = []byte(responseEnd("response.completed", helloItem, responseUsage))
	}
	return events
}

func BenchmarkStream(b *testing.B) {
	for _, format := range textFormats {
		b.Run([]string{"OpenAI", "Anthropic", "Responses"}[format], func(b *testing.B) {
			events := benchmarkEvents(format)
			s := &Stream{Report: Report{Format: format}}
			b.SetBytes(int64(len(events[0])))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.Received(copy(s.Room(), events[i%100]))
			}
		})
	}
}

// A byte order mark belongs to the first line of a stream. Any other line that has one is of no known field.
func TestByteOrderMarks(t *testing.T) {
	chunk := func(n int) string { return fmt.Sprintf(`{"usage":{"prompt_tokens":1,"completion_tokens":%d}}`, n) }
	long := `{"choices":[{"delta":{"content":"` + strings.Repeat("x", 2*maxEventBytes) + `"}}],`
	for _, test := range []struct {
		name, stream string
		output       int64
	}{
		{"first", "\ufeffdata: " + chunk(3) + "\n\n", 3},
		{"first of several", "\ufeffdata: " + chunk(3)[:9] + "\ndata: " + chunk(3)[9:] + "\n\n", 3},
		{"first, before a long line", "\ufeffdata: " + chunk(3) + "\ndata: " + long, 3},
		{"twice", "\ufeff\ufeffdata: " + chunk(3) + "\n\n", 0},
		{"second line", ": x\n\ufeffdata: " + chunk(3) + "\n\n", 0},
		{"after a blank line", "\n\ufeffdata: " + chunk(3) + "\n\n", 0},
		{"second event", "data: " + chunk(3) + "\n\n\ufeffdata: " + chunk(5) + "\n\n", 3},
		{"in several lines", "data: " + chunk(3) + "\n\ufeffdata: " + chunk(5) + "\ndata: " + chunk(4) + "\n\n", 4},
		{"in lines of a later event", ": x\n\n\ufeffdata: " + chunk(5) + "\ndata: " + chunk(3) + "\ndata: " + chunk(4) + "\n\n", 4},
		{"before a long line", ": x\n\ufeffdata: " + chunk(5) + "\ndata: " + chunk(3) + "\ndata: " + long, 3},
	} {
		for _, step := range []int{1, 7, len(test.stream)} {
			s := &Stream{}
			for rest := []byte(test.stream); len(rest) > 0; {
				if len(test.stream)-len(rest) > 500 { // within the long text
					step = len(rest)
				}
				n := copy(s.Room(), rest[:min(step, len(rest))])
				s.Received(n)
				rest = rest[n:]
			}
			if got := s.Report.usage.get(outputTokens); got != test.output {
				t.Errorf("%s, %d bytes at a time: an output of %d, want %d", test.name, step, got, test.output)
			}
		}
	}
	s := &Stream{}
	s.Received(copy(s.Room(), "\ufeffevent: error\ndata: {}\n\n"))
	if !s.Report.Failed {
		t.Error("a first event with a byte order mark and an error has not failed")
	}
}

// A stream whose events come one at a time keeps a small buffer. The first read that fills it makes it larger.
func TestFirstRoom(t *testing.T) {
	const event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"
	s := Stream{Report: Report{Format: OpenAIChat}}
	for range 100 {
		if got := s.Received(copy(s.Room(), event)); string(got) != event {
			t.Fatalf("got %q, want %q", got, event)
		}
	}
	if size := cap(s.buf); size != firstBuffer {
		t.Errorf("the buffer has %d bytes, want %d", size, firstBuffer)
	}
	all := strings.Repeat(event, 100)
	for rest := all; rest != ""; {
		n := copy(s.Room(), rest)
		rest = rest[n:]
		s.Received(n)
	}
	if size := cap(s.buf); size != eventBuffer {
		t.Errorf("after a read that filled it, the buffer has %d bytes, want %d", size, eventBuffer)
	}
}

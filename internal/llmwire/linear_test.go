package llmwire

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostileBytes is the size of the documents that are made to be slow to read.
const hostileBytes = 1 << 20

// A hostileDocument is made so that it is read slowly wherever what a value costs depends on where it is.
type hostileDocument struct{ name, text string }

// longName returns an object of n bytes, half of them the name of an array of numbers.
func longName(n int, prefix string) string {
	return `{"` + prefix + strings.Repeat("A", n/2) + `":[1` + strings.Repeat(",1", n/4) + `]}`
}

// deepArray returns levels of open, an array of n bytes of value, and levels of end.
func deepArray(n, levels int, open, value, end string) string {
	return strings.Repeat(open, levels) + value + strings.Repeat(","+value, n/len(","+value)) + strings.Repeat(end, levels)
}

func hostileRequests(n int) []hostileDocument {
	inPart := `{"type":"x","image_url":"x"}`
	return []hostileDocument{
		{"long name", longName(n, "messages")},
		{"under messages", `{"messages":[` + longName(n, "") + `]}`},
		{"under content", `{"messages":[{"content":[` + longName(n, "content") + `]}]}`},
		{"under stream_options", `{"stream_options":` + longName(n, "") + `}`},
		{"under tools", `{"tools":[` + longName(n, "type") + `]}`},
		{"escaped name", `{"messages":[{"` + strings.Repeat(`\u0041`, n/12) + `":[1` + strings.Repeat(",1", n/4) + `]}]}`},
		{"escaped members", `{"messages":[{"\n":1` + strings.Repeat(`,"\n":1`, n/7) + `}]}`},
		{"deep content", `{"messages":[` + deepArray(n, 248, `{"content":[`, inPart, `]}`) + `]}`},
		{"deep sources", `{"messages":[` + deepArray(n, 165, `{"source":{"content":[`, `{}`, `]}}`) + `]}`},
		{"deep arrays", `{"messages":[{"x":` + deepArray(n, 496, `[`, `1`, `]`) + `}]}`},
		{"duplicates", `{"messages":[{"type":"image"` + strings.Repeat(`,"type":"image"`, n/15) + `}]}`},
		{"long number", `{"max_tokens":1` + strings.Repeat("0", n) + `}`},
		{"long type", `{"messages":[{"type":"` + strings.Repeat(`\u0041`, n/6) + `"}]}`},
		{"tools", `{"tools":[{}` + strings.Repeat(",{}", n/3) + `]}`},
		{"server tools", `{"tools":[{"type":"x"}` + strings.Repeat(`,{"type":"x"}`, n/13) + `]}`},
		{"tools in tools", `{"tools":[` + deepArray(n, 245, `{"tools":[`, `{"type":"x"}`, `]}`) + `]}`},
		{"tools in parts", `{"messages":[` + deepArray(n, 245, `{"tools":[`, `{"definition":{"type":"x"}}`, `]}`) + `]}`},
		{"references", `{"input":[{"id":"x"}` + strings.Repeat(`,{"id":"x"}`, n/11) + `]}`},
		{"items in items", `{"input":[` + deepArray(n, 245, `{"output":[`, `{"id":"x"}`, `]}`) + `]}`},
		{"places of tools", `{"tools":[{}` + strings.Repeat(`,{"environment":{"type":"x"},"execution":"x"}`, n/44) + `]}`},
		{"choices of tools", `{"tool_choice":{"tools":[{"name":"a"}` + strings.Repeat(`,{"name":"a"}`, n/13) + `]}}`},
		{"files", `{"messages":[{"content":[{"file":{"file_data":"AA"}}` + strings.Repeat(`,{"file":{"file_data":"AA"}}`, n/28) + `]}]}`},
	}
}

func hostileReports(n int) []hostileDocument {
	return []hostileDocument{
		{"long name", longName(n, "choices")},
		{"under choices", `{"choices":[` + longName(n, "") + `]}`},
		{"under delta", `{"choices":[{"delta":` + longName(n, "") + `}]}`},
		{"under message", `{"message":` + longName(n, "") + `}`},
		{"deep arrays", `{"choices":` + deepArray(n, 498, `[`, `1`, `]`) + `}`},
		{"escaped names", `{"choices":[{"\n":1` + strings.Repeat(`,"\u0041":1`, n/11) + `}]}`},
		{"choices", `{"choices":[1` + strings.Repeat(",1", n/2) + `]}`},
		{"deep content", `{"choices":[{"delta":` + deepArray(n, 248, `{"x":[`, `"a"`, `]}`) + `}]}`},
		{"content", `{"content":[{"type":"x"}` + strings.Repeat(`,{"text":"a"}`, n/13) + `]}`},
		{"tools", `{"content":` + deepArray(n, 248, `{"tool_calls":[`, `{"function":{"name":"\n"}}`, `]}`) + `}`},
		{"escapes", `{"choices":[{"delta":{"content":"` + strings.Repeat(`\n`, n/2) + `"}}]}`},
		{"items", `{"output":[{"id":"x"}` + strings.Repeat(`,{"id":"x","type":"y","z":"a"}`, n/30) + `]}`},
		{"responses", `{"response":{}` + strings.Repeat(`,"response":{"id":"x","output":[{}]}`, n/36) + `}`},
		{"usages", `{"choices":[{}` + strings.Repeat(`,{"usage":{"prompt_tokens":1}}`, n/29) + `]}`},
		{"models", `{"usage":{"iterations":[{}` + strings.Repeat(`,{"model":"`+strings.Repeat("m", 200)+`"}`, n/213) + `]}}`},
		{"long model", `{"model":"` + strings.Repeat(`\n`, n/2) + `"}`},
		{"iterations", `{"usage":{"iterations":[{}` + strings.Repeat(",{}", n/3) + `]}}`},
		{"long count", `{"usage":{"prompt_tokens":1` + strings.Repeat("0", n) + `}}`},
	}
}

const usageChunk = "data: {\"choices\":[],\"usage\":{}}\n\n"

func hostileStreams(n int) []hostileDocument {
	half := n/2 - 16 // an event of all is not too long
	usage := strings.Repeat(usageChunk, half/len(usageChunk))
	return []hostileDocument{
		{"CR", strings.Repeat("a\r", half)},
		{"blank lines", strings.Repeat("\r", n)},
		{"dropped", usage + ":" + strings.Repeat("a", half) + "\n\n"},
		{"dropped before a line", usage + ":" + strings.Repeat("a", half)},
		{"dropped, CR LF", strings.ReplaceAll(usage, "\n", "\r\n") + ":" + strings.Repeat("a", half) + "\n\n"},
		{"two lines of data", strings.Repeat("data: {\ndata: }\n\n", n/17)},
		{"two objects in an event", strings.Repeat("data: {}\ndata: {}\n\n", n/19)},
		{"many lines of data", strings.Repeat("data: {\n", n/8)},
		{"long line", `data: {"a":["` + strings.Repeat("a", half) + `",` + strings.Repeat(`{},`, 3*half) + `1]}` + "\n\n"},
		{"every other dropped", strings.Repeat(":a\n\n"+usageChunk, n/(4+len(usageChunk)))},
	}
}

// calls counts what a walker calls, and the bytes that the functions are given beside the text of arrays and objects.
type calls struct{ n, bytes int }

func (c *calls) add(name []byte, v jsonValue) {
	c.n++
	c.bytes += len(name) + len(v.path)
	if v.text[0] != '{' && v.text[0] != '[' {
		c.bytes += len(v.text)
	}
}

// counted returns shape, and the shapes in it, with functions that are counted.
func counted[T any](shape *jsonShape[T], c *calls) *jsonShape[T] {
	done := make(map[*jsonShape[T]]*jsonShape[T]) // a shape can be within itself
	var count func(shape *jsonShape[T]) *jsonShape[T]
	count = func(shape *jsonShape[T]) *jsonShape[T] {
		if shape == nil || done[shape] != nil {
			return done[shape]
		}
		row := shape.jsonRow
		if row.enter != nil {
			row.enter = func(to *T) { c.n++; shape.enter(to) }
		}
		if row.read != nil {
			row.read = func(to *T, v jsonValue) { c.add(nil, v); shape.read(to, v) }
		}
		if row.each != nil {
			row.each = func(to *T, object *jsonShape[T], name []byte, v jsonValue) {
				c.add(name, v)
				shape.each(to, object, name, v)
			}
		}
		copied := &jsonShape[T]{jsonRow: row, path: shape.path, members: make(map[string]*jsonShape[T])}
		done[shape] = copied
		for name, member := range shape.members {
			copied.members[name] = count(member)
		}
		copied.elements, copied.other = count(shape.elements), count(shape.other)
		return copied
	}
	return count(shape)
}

// hidden has the names of the documents whose values, but for a few, are in no table.
var hidden = map[string]bool{
	"long name": true, "under messages": true, "under content": true, "under tools": true, "escaped name": true,
	"escaped names": true, "deep arrays": true, "under choices": true, "under message": true,
}

// checkCalls compares what is called in a walk of d with the most calls for each byte.
func checkCalls(t *testing.T, d hostileDocument, most, ofHidden calls, walk func(document []byte, c *calls) error) {
	t.Helper()
	if hidden[d.name] {
		most = ofHidden
	}
	var got calls
	err := walk([]byte(d.text), &got)
	if isRefused := d.name == "long number"; (err != nil) != isRefused && d.name != "duplicates" {
		t.Errorf("%s: %v", d.name, err)
	}
	if n := len(d.text); got.n > most.n*n+64 || got.bytes > most.bytes*n+1024 {
		t.Errorf("%s of %d bytes: %+v, at most %+v for a byte", d.name, n, got, most)
	}
}

// A value that no table has costs no call, whatever it is in. One that a table has costs its own name and text, and
// never its path. So a document that is twice as large costs at most twice as much.
func TestLinearWalks(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1 << 16, 1 << 17} {
		for _, d := range hostileRequests(n) {
			for i, f := range formats[:len(textFormats)] {
				checkCalls(t, d, calls{1, 4}, calls{0, 1}, func(document []byte, c *calls) error { // names are noted
					r := newRequest(Format(i), document)
					return r.walker.walk(document, counted(f.request, c), r)
				})
			}
		}
		for _, d := range hostileReports(n) {
			for _, f := range formats[:len(textFormats)] {
				checkCalls(t, d, calls{1, 16}, calls{}, func(document []byte, c *calls) error {
					r := new(Report)
					return r.walker.walk(document, counted(f.report, c), r)
				})
			}
		}
	}
}

// What is known of a document is of bounded size, so no path that a function is given grows with a document's depth.
func TestLinearShapes(t *testing.T) {
	for _, f := range formats[:len(textFormats)] {
		checkShape(t, f.request, make(map[*jsonShape[Request]]bool))
		checkShape(t, f.report, make(map[*jsonShape[Report]]bool))
	}
}

func checkShape[T any](t *testing.T, shape *jsonShape[T], seen map[*jsonShape[T]]bool) {
	if shape == nil || seen[shape] {
		return
	}
	seen[shape] = true
	if len(shape.path) > 80 {
		t.Errorf("%s is long", shape.path)
	}
	isLeaf := shape.elements == nil && shape.other == nil && len(shape.members) == 0
	_, isLabel := joined(labels, responseLabels)[shape.path[strings.LastIndexByte(shape.path, '.')+1:]]
	if isLeaf && !isLabel && shape.enter == nil && shape.read == nil {
		t.Errorf("nothing is read at %s", shape.path)
	}
	for _, member := range shape.members {
		checkShape(t, member, seen)
	}
	checkShape(t, shape.elements, seen)
	checkShape(t, shape.other, seen)
}

// A walker that has read a document reads others without allocating, whatever is in them.
func TestLinearAllocations(t *testing.T) {
	for _, d := range hostileReports(1 << 14) {
		if d.name == "models" {
			continue // the usage of another model is kept
		}
		for _, format := range textFormats {
			r := &Report{Format: Format(format)}
			document := []byte(d.text)
			if n := testing.AllocsPerRun(10, func() { _, _ = r.Read(document) }); n > 0 {
				t.Errorf("%s: %v allocations", d.name, n)
			}
		}
	}
}

// The bytes of a stream stay where they were read to, but for those that are relayed after a dropped event: these are
// moved once, behind those that are relayed before it.
func TestLinearDrops(t *testing.T) {
	const n = 1000
	kept, rest := ":a\n\n", "data: {\"choices\""
	for _, ending := range []string{"\n", "\r\n", "\r"} {
		dropped := strings.ReplaceAll(usageChunk, "\n", ending)
		kept := strings.ReplaceAll(kept, "\n", ending)
		events := strings.Repeat(kept+dropped+dropped, n)
		for _, atOnce := range []bool{false, true} {
			data := []byte(events + rest)
			s := &Stream{DropUsage: true, buf: slices.Clone(data)[:0]}
			if atOnce {
				s.Received(len(data))
			} else {
				for range data {
					s.Received(1)
				}
			}
			if got := string(s.buf[:s.kept]); got != strings.Repeat(kept, n) {
				t.Fatalf("%q: %d bytes are kept", ending, len(got))
			}
			if s.event != len(events) || !bytes.Equal(s.buf[len(data)/2:], data[len(data)/2:]) {
				t.Errorf("%q: bytes have been moved", ending)
			}
			if got := len(s.Room()) + len(rest); got < cap(s.buf) || string(s.buf) != rest || s.event != 0 || s.line != 0 {
				t.Errorf("%q: then there is %q", ending, s.buf)
			}
		}
	}
}

// Bytes that have been searched for the end of a line are not searched again: those that have become an LF or CR
// meanwhile end no line.
func TestLinearLines(t *testing.T) {
	const lines = 10_000
	s := &Stream{buf: []byte(strings.Repeat("aa\r", lines))[:0]}
	s.buf = s.buf[:cap(s.buf)][:3*lines]
	n := 0
	for ; s.readLine(); n++ {
		if n == 0 {
			for i := 3; i < len(s.buf); i += 3 {
				s.buf[i] = '\n'
			}
		}
	}
	if n != lines {
		t.Errorf("%d lines, want %d", n, lines)
	}
	for _, end := range []byte("\r\n") {
		s := new(Stream)
		s.Received(copy(s.Room(), "aaaaaaaa")) // the line goes on
		s.buf[4] = end
		if s.Received(copy(s.Room(), "bbbb")); s.line != 0 {
			t.Errorf("%q was found in what had been searched", end)
		}
	}
}

func BenchmarkHostileRequest(b *testing.B) {
	for _, d := range hostileRequests(hostileBytes) {
		b.Run(d.name, func(b *testing.B) {
			b.SetBytes(int64(len(d.text)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = ReadRequest(OpenAIChat, []byte(d.text))
			}
		})
	}
}

func BenchmarkHostileReport(b *testing.B) {
	for _, d := range hostileReports(hostileBytes) {
		b.Run(d.name, func(b *testing.B) {
			b.SetBytes(int64(len(d.text)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = new(Report).Read([]byte(d.text))
			}
		})
	}
}

func BenchmarkHostileStream(b *testing.B) {
	for _, d := range hostileStreams(hostileBytes) {
		for _, size := range []int{1, 32 << 10} {
			b.Run(fmt.Sprintf("%s/reads of %d", d.name, size), func(b *testing.B) {
				b.SetBytes(int64(len(d.text)))
				b.ReportAllocs()
				for b.Loop() {
					s := &Stream{DropUsage: true}
					for rest := d.text; rest != ""; {
						room := s.Room()
						n := copy(room[:min(len(room), size)], rest)
						s.Received(n)
						rest = rest[n:]
					}
				}
			})
		}
	}
	for _, d := range hostileStreams(hostileBytes) { // as after a longer event, when there is room for it
		b.Run(d.name+"/at once", func(b *testing.B) {
			b.SetBytes(int64(len(d.text)))
			for b.Loop() {
				s := &Stream{DropUsage: true, buf: append([]byte(nil), d.text...)[:0]}
				s.Received(len(d.text))
			}
		})
	}
}

// Names in another case are compared with those that are read as fast as others are looked up.
func TestLinearCases(t *testing.T) {
	const most = 5 // times; 1.5 are usual
	for _, f := range formats {
		if f.request == nil {
			continue
		}
		eachShape(f.request, make(map[*jsonShape[Request]]bool), func(shape *jsonShape[Request]) {
			for name := range shape.members {
				if name != strings.ToLower(name) || len(name) >= maxFolded {
					t.Errorf("%s.%s has capitals, or more than %d letters", shape.path, name, maxFolded-1)
				}
			}
		})
	}
	read := func(name string) time.Duration {
		const n = 20_000
		body := []byte(`{"model":"m","messages":[{"role":"user","content":"x"` + strings.Repeat(`,"`+name+`":0`, n) + `}]}`)
		began := time.Now()
		if _, err := ReadRequest(OpenAIChat, body); err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
	for _, name := range []string{"A", "é"} {
		usual, slow := time.Hour, time.Hour
		for i := 0; i < 5 || i < 100 && slow > most*usual; i++ { // until nothing else has slowed it down
			usual, slow = min(usual, read("a")), min(slow, read(name))
		}
		if slow > most*usual {
			t.Errorf("%s takes %v, a takes %v", name, slow, usual)
		}
	}
}

// eachShape calls f with a shape and all shapes in it, each once.
func eachShape[T any](shape *jsonShape[T], seen map[*jsonShape[T]]bool, f func(*jsonShape[T])) {
	if shape == nil || seen[shape] {
		return
	}
	seen[shape] = true
	f(shape)
	for _, member := range shape.members {
		eachShape(member, seen, f)
	}
	eachShape(shape.elements, seen, f)
	eachShape(shape.other, seen, f)
}

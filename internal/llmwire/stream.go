package llmwire

import (
	"bytes"
	"iter"

	"tollgate/internal/fairpool"
)

const (
	maxEventBytes = 1 << 20  // a longer event is relayed before it has ended
	eventBuffer   = 2 << 10  // enough for a stream without long events
	firstBuffer   = 1 << 10  // enough for one whose events come one at a time: 1 KB less while it is silent
	freeBuffer    = 64 << 10 // for which no memory is taken of what others share
	dataPrefix    = "data:"
	doneData      = "[DONE]"
	byteOrderMark = "\ufeff" // that may be before the first line
)

// A Stream reads a provider's stream of server-sent events while it is relayed (section 9.2 of the HTML standard of the
// WHATWG). It returns the provider's own bytes, event by event. An event of more than 1 MiB, or one without memory for
// it, is returned as it comes. Its data counts as content, and is read by Report.ReadPart. An event with an error is in
// what is returned when Report.Failed becomes true.
//
// Only Report.Format has to be set. A Stream is used by one goroutine at a time:
//
//	for {
//		n, err := provider.Read(stream.Room())
//		client.Write(stream.Received(n))
//		if err != nil {
//			break
//		}
//	}
//	client.Write(stream.Finish())
type Stream struct {
	Report    Report // of the events that were read; its Format has to be set
	DropUsage bool   // take the extra event with the usage out, since the client has not asked for it

	// Memory is for what has come of an event beyond 64 KiB; nil if there is always enough. The caller releases it in the
	// end.
	Memory *fairpool.Claim

	buf     []byte // buf[:kept] is what Received returns, buf[event:] is what has come of the next event
	kept    int
	event   int  // start of the current event
	line    int  // start of the current line
	scanned int  // no line ends in buf[line:scanned]
	lf      int  // no LF is in buf[scanned:lf]
	afterCR bool // buf[line] may be the second half of the last line's CR LF
	dropped bool // that line ended an event that was dropped
	hasLine bool // a line has ended
	isLater bool // an event has ended

	lines    int  // of data in the current event
	from, to int  // where the first of these is in the event
	hasDone  bool // the current event has the end marker
	isError  bool // the name of the current event is error
	inEvent  bool // the start of the current event was returned before its end came
	inLine   bool // the start of the current line was, too
	inData   bool // that line has data
}

// Room returns a buffer of at least 256 bytes for the next bytes of the stream. What Received returned before is no
// longer valid then.
func (s *Stream) Room() []byte {
	isFull := len(s.buf) == cap(s.buf)
	if from := s.event; from > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[from:])] // no more than what came after an event in the last read
		s.event, s.line, s.scanned, s.lf = 0, s.line-from, s.scanned-from, s.lf-from
	}
	s.kept = 0
	rest := len(s.buf)
	if size := cap(s.buf); rest == 0 && size > 16*eventBuffer {
		s.buf = nil // a stream keeps no more than it needs
		s.Memory.Release()
	} else if size-rest < size/4 {
		s.buf = append(make([]byte, 0, 2*size), s.buf...)
	} else if isFull && 0 < size && size < eventBuffer { // more has come than fits
		s.buf = append(make([]byte, 0, eventBuffer), s.buf...)
	}
	if cap(s.buf) == 0 {
		s.buf = make([]byte, 0, firstBuffer)
	}
	return s.buf[len(s.buf):cap(s.buf)]
}

// Received reads the first n bytes of the last Room, and returns what can be relayed now, usually the events that have
// become complete.
func (s *Stream) Received(n int) []byte {
	s.Report.isStream = true
	s.buf = s.buf[:len(s.buf)+n]
	for s.readLine() {
	}
	if s.inLine || len(s.buf)-s.event > maxEventBytes || !s.hasMemory() {
		s.receivedPart()
	}
	return s.buf[:s.kept]
}

// receivedPart returns what has come of an event that is too long, but for the start of a line of which it is not known
// yet whether it has data.
func (s *Stream) receivedPart() {
	if !s.inEvent {
		s.inEvent = true
		s.readParts(s.buf[s.event:s.line])
	}
	part := s.buf[s.line:]
	if !s.inLine {
		if len(part) < len(byteOrderMark+dataPrefix) {
			s.keep(s.line)
			return
		}
		part, s.inData = s.dataOf(part)
		s.inLine = true
	}
	if s.inData {
		s.Report.ReadPart(part)
	}
	s.keep(len(s.buf))
	s.line, s.scanned = len(s.buf), len(s.buf)
}

// hasMemory reports whether Room can give more room, for which it takes memory.
func (s *Stream) hasMemory() bool {
	size := cap(s.buf)
	if rest := len(s.buf) - s.event; s.Memory == nil || size < freeBuffer || size-rest >= size/4 {
		return true
	}
	return s.Memory.AddUpTo(int64(2*size-freeBuffer)) == nil
}

// IsBetweenEvents reports whether what was returned so far ends with a complete event, so that other events can follow.
func (s *Stream) IsBetweenEvents() bool { return !s.inEvent }

// Finish reads the end of the stream, and returns what came after the last complete event: an event without the blank
// line that should end it, or a part of one. Relay it only if then Report.Done is true or Report.HasFinished reports
// true; otherwise the stream has broken off.
func (s *Stream) Finish() []byte {
	if s.line < len(s.buf) {
		s.endLine(s.buf[s.line:], len(s.buf))
	}
	if isUsage := s.endEvent(); isUsage && s.DropUsage {
		return nil
	}
	return s.buf[s.event:]
}

// keep moves s.buf[s.event:to], the current event or what has come of it, to the end of what Received returns. A
// dropped event leaves a gap there, so that each byte after it is moved once, however many events are dropped.
func (s *Stream) keep(to int) {
	if s.kept == s.event {
		s.kept = to
	} else {
		s.kept += copy(s.buf[s.kept:], s.buf[s.event:to])
	}
	s.event = to
}

// readLine reads the next line, which ends in LF, CR LF or CR, and reports whether there is one.
func (s *Stream) readLine() bool {
	if s.afterCR && s.line < len(s.buf) {
		s.afterCR = false
		if s.buf[s.line] == '\n' {
			s.skipLF()
		}
	}
	s.findLF()
	end := s.lf
	if at := bytes.IndexByte(s.buf[s.scanned:end], '\r'); at >= 0 {
		end = s.scanned + at
	}
	s.scanned = end
	if end == len(s.buf) {
		return false
	}
	next := end + 1
	if s.buf[end] == '\r' {
		if s.afterCR = next == len(s.buf); !s.afterCR && s.buf[next] == '\n' {
			next++
		}
	}
	s.endLine(s.buf[s.line:end], next)
	return true
}

// findLF moves s.lf to the next LF, or to the end. It looks at no byte twice, however many lines before it end in CR.
func (s *Stream) findLF() {
	from := max(s.lf, s.scanned)
	s.lf = len(s.buf)
	if at := bytes.IndexByte(s.buf[from:], '\n'); at >= 0 {
		s.lf = from + at
	}
}

// skipLF moves the start of the current line behind an LF, which ends the line before.
func (s *Stream) skipLF() {
	switch {
	case s.dropped:
		s.event++
	case s.event == s.line:
		s.keep(s.line + 1)
	}
	s.line++
	s.scanned = s.line
}

// endLine reads a line, without what ends it. The next line starts at next.
func (s *Stream) endLine(line []byte, next int) {
	s.dropped = false
	switch {
	case s.inLine:
		if s.inLine = false; s.inData {
			s.Report.ReadPart(line)
		}
	case len(line) > 0:
		s.readField(line)
	default: // a blank line ends an event
		isUsage := s.endEvent()
		s.inEvent, s.isLater = false, true
		if s.dropped = isUsage && s.DropUsage; s.dropped {
			s.event = next
		} else {
			s.keep(next)
		}
	}
	s.line, s.scanned, s.hasLine = next, next, true
}

// dataOf returns the data of a line. If it has none, ok is false, and data the line without a byte order mark.
func (s *Stream) dataOf(line []byte) (data []byte, ok bool) {
	if !s.hasLine {
		line = bytes.TrimPrefix(line, []byte(byteOrderMark))
	}
	return bytes.CutPrefix(line, []byte(dataPrefix))
}

// readField reads a line of an event. The data has the name of the event, too, but for errors of some providers.
func (s *Stream) readField(line []byte) {
	data, isData := s.dataOf(line)
	if !isData {
		s.isError = s.isError || isErrorName(data)
		return
	}
	for len(data) > 0 && (data[0] == ' ' || data[0] == '\t') {
		data = data[1:]
	}
	switch {
	case len(data) == 0:
	case data[0] == '[' && string(bytes.TrimSpace(data)) == doneData:
		s.Report.Objects++
		s.Report.Done, s.hasDone = true, true // before the end of the event, which some providers forget
	case s.inEvent:
		s.Report.ReadPart(data)
	default:
		if s.lines++; s.lines == 1 {
			s.to = s.line + len(line) - s.event
			s.from = s.to - len(data)
		}
	}
}

// isErrorName reports whether a line names an event error.
func isErrorName(line []byte) bool {
	return bytes.HasSuffix(line, []byte("error")) && (string(line) == "event: error" || string(line) == "event:error")
}

// endEvent reads the data of the event that ends, and reports whether it is the extra event with the usage.
func (s *Stream) endEvent() (isUsage bool) {
	switch {
	case s.inEvent:
		s.Report.endParts()
	case s.lines == 1:
		isUsage = s.read(s.buf[s.event+s.from:s.event+s.to]) && !s.hasDone
	case s.lines > 1:
		isUsage = s.readLines(s.buf[s.event:s.line]) && !s.hasDone
	}
	if s.isError && (s.lines > 0 || s.inEvent) {
		s.Report.fail()
		s.Report.FailedAtOnce = s.Report.FailedAtOnce || s.Report.Objects == 1
	}
	s.lines, s.hasDone, s.isError = 0, false, false
	return isUsage
}

// read reads the data of an event. What cannot be read counts as content, so that a provider that is not understood is
// not free.
func (s *Stream) read(data []byte) (isUsage bool) {
	isUsage, err := s.Report.Read(data)
	if err != nil {
		s.Report.AddUnread(int64(len(data)))
	}
	return isUsage
}

// readLines reads an event with several lines of data. They are one object or, against the standard, an object each.
func (s *Stream) readLines(event []byte) (isUsage bool) {
	if len(event) > freeBuffer {
		s.readParts(event)
		s.Report.endParts()
		return false
	}
	joined := make([]byte, 0, len(event))
	for line := range s.data(event) {
		joined = append(append(joined, line...), '\n')
	}
	before := s.Report
	isUsage, err := s.Report.Read(joined)
	if err == nil {
		return isUsage
	}
	s.Report.forgetItems(len(before.ItemIDs))
	s.Report = before
	for line := range s.data(event) {
		s.read(line)
	}
	return false
}

// readParts reads lines of an event that is too long.
func (s *Stream) readParts(lines []byte) {
	for line := range s.data(lines) {
		s.Report.ReadPart(line)
	}
}

// data returns the data of the lines that an event begins with, but for the end marker.
func (s *Stream) data(lines []byte) iter.Seq[[]byte] {
	if !s.isLater {
		lines = bytes.TrimPrefix(lines, []byte(byteOrderMark))
	}
	return func(yield func(data []byte) bool) {
		for len(lines) > 0 {
			line := lines
			if at := bytes.IndexAny(lines, "\r\n"); at >= 0 {
				line, lines = lines[:at], lines[at+1:]
			} else {
				lines = nil
			}
			data, isData := bytes.CutPrefix(line, []byte(dataPrefix))
			data = bytes.TrimSpace(data)
			if isData && len(data) > 0 && string(data) != doneData && !yield(data) {
				return
			}
		}
	}
}

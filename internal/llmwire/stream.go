package llmwire

import (
	"bytes"

	"tollgate/internal/fairpool"
)

const (
	maxEventBytes = 1 << 20  // a longer line or event is relayed unread
	eventBuffer   = 2 << 10  // enough for a stream without long events
	freeBuffer    = 64 << 10 // for which no memory is taken of what others share
)

// A Stream reads a provider's stream of server-sent events while it is relayed. It returns the provider's own bytes,
// event by event. An event of more than 1 MiB, or one without memory for it, is returned as it comes; a line of it that
// is returned in pieces is not read, and counts as content.
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
	hasData bool // the current event has data
	isUsage bool // which is the extra event and nothing else
	inEvent bool // the start of the current event was returned before its end came, because it is too long
	inLine  bool // the start of the current line was, too
}

// Room returns a buffer of at least 512 bytes for the next bytes of the stream. What Received returned before is no
// longer valid then.
func (s *Stream) Room() []byte {
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
	}
	if cap(s.buf) == 0 {
		s.buf = make([]byte, 0, eventBuffer)
	}
	return s.buf[len(s.buf):cap(s.buf)]
}

// Received reads the first n bytes of the last Room, and returns what can be relayed now, usually the events that have
// become complete.
func (s *Stream) Received(n int) []byte {
	s.buf = s.buf[:len(s.buf)+n]
	for s.readLine() {
	}
	if s.inLine || len(s.buf)-s.event > maxEventBytes || !s.hasMemory() {
		s.inEvent, s.inLine = true, s.inLine || s.line < len(s.buf)
		s.countUnread(s.buf[s.line:])
		s.keep(len(s.buf))
		s.line, s.scanned = len(s.buf), len(s.buf)
	}
	return s.buf[:s.kept]
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
	if s.isUsage && s.DropUsage && !s.inEvent {
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
		s.countUnread(line)
		s.inLine = false
	case len(line) > 0:
		s.readField(line)
	default: // a blank line ends an event
		if s.dropped = s.isUsage && s.DropUsage && !s.inEvent; s.dropped {
			s.event = next
		} else {
			s.keep(next)
		}
		s.hasData, s.isUsage, s.inEvent = false, false, false
	}
	s.line, s.scanned = next, next
}

// readField reads a line of an event. Only data matters: it has the name of the event, too, if there is one.
func (s *Stream) readField(line []byte) {
	data, isData := bytes.CutPrefix(line, []byte("data:"))
	data = bytes.TrimSpace(data)
	if !isData || len(data) == 0 {
		return
	}
	isFirst := !s.hasData
	s.hasData, s.isUsage = true, false
	if string(data) == "[DONE]" {
		s.Report.Done = true
		return
	}
	isUsage, err := s.Report.Read(data)
	if err != nil {
		s.countUnread(data)
	}
	s.isUsage = isUsage && isFirst
}

// countUnread counts bytes that cannot be read as content, so that a provider that is not understood is not free.
func (s *Stream) countUnread(data []byte) {
	if len(data) > 0 {
		s.Report.Unread = true
		s.Report.ContentEvents++
		s.Report.contentBytes += int64(len(data))
	}
}

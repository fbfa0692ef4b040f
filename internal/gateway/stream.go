package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"tollgate/internal/llmwire"
)

const (
	headerPatience = time.Second // for the first event of a stream, before its header is sent
	endGrace       = time.Second // for the end of a stream after its end marker
	abortGrace     = time.Second // for telling the client of a stream that it has taken too long
	maxEarly       = 64 << 10    // bytes of a stream that are kept until its header is sent
)

var (
	errNothing = errors.New("the response is an error, or empty")
	errTooMuch = errors.New("the stream is far beyond its limit")

	errNoStream = errors.New("the response has no events, but something else")
)

// collect makes c collect the stream that is relayed next.
func (l *relay) collect(c *collector) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collected = c
}

// takeCollected returns what collect was called with, nil if it was not. The caller releases it. isWhole reports
// whether it has the response to its end, or the stream with its end marker.
func (l *relay) takeCollected() (c *collector, isWhole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, l.collected = l.collected, nil
	return c, c != nil && !c.tooLong && (l.stream.Report.Done || !l.streaming)
}

// openStream relays a stream event by event until something of it was sent. Then continueStream relays the rest, unless
// the stream has ended. If it breaks, openStream and continueStream return an error. Then abort tells the client,
// unless hasHeader reports false. The error is errNothing if the first event is an error without usage, or if there is
// no event; errNoStream if there is something else; and errTooMuch if the stream is cut because it has far more than
// its limit allows.
func (l *relay) openStream(response *http.Response) (ended bool, err error) {
	l.beginStream(response)
	l.startWatch()
	ended = true // also if it panics
	defer func() {
		if ended {
			l.stopWatch()
		}
	}()
	for {
		isLast, err := l.relayNext(response)
		if isLast || l.isBegun() {
			return isLast, err
		}
	}
}

// continueStream relays the rest of a stream.
func (l *relay) continueStream(response *http.Response) error {
	defer l.stopWatch()
	for {
		if isLast, err := l.relayNext(response); isLast {
			return err
		}
	}
}

// relayNext relays what comes next of a stream, and reports whether that is the last of it.
func (l *relay) relayNext(response *http.Response) (isLast bool, err error) {
	n, err := response.Body.Read(l.room())
	done, failure := l.received(n)
	if done { // few providers do not end a stream after its end marker
		l.endTimer = time.AfterFunc(endGrace, func() { l.cancel(errSilent) })
	}
	if failure == nil && err != nil {
		failure = l.finish(err)
	}
	return failure != nil || err != nil, failure
}

// beginStream keeps the header of a stream until its first event comes, so that another endpoint can be tried if that
// is an error. After headerPatience checkSilence sends it.
func (l *relay) beginStream(response *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streaming, l.unsent = true, response
}

// isBegun reports whether the header of the stream was sent.
func (l *relay) isBegun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unsent == nil
}

// hasHeader reports whether the header of the stream was sent. It is not sent any more afterwards.
func (l *relay) hasHeader() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	return l.unsent == nil
}

// sendHeader sends the header of the stream, what was kept of it until now, and part. The caller holds l.mu.
func (l *relay) sendHeader(part []byte) {
	response, early := l.unsent, l.early
	l.unsent, l.early, l.costs = nil, nil, true
	h := l.w.Header()
	copyHeaders(h, response.Header, l.target.key)
	h["Cache-Control"] = []string{"no-cache"}
	h["X-Accel-Buffering"] = []string{"no"}
	l.w.WriteHeader(response.StatusCode)
	l.write(early)
	if l.write(part); len(early)+len(part) == 0 && !l.hungUp {
		l.extendDeadline()
		if err := l.client.Flush(); err != nil {
			l.loseClient()
		}
	}
}

// room returns where the next bytes of a stream are to be read to.
func (l *relay) room() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stream.Room()
}

// received relays the n bytes that were read to the room. It reports whether they have the end marker. Errors are those
// of openStream.
func (l *relay) received(n int) (done bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
	report := &l.stream.Report
	wasDone := report.Done
	part := l.stream.Received(n)
	if report.Done && !wasDone {
		l.noteEnd()
	}
	if report.Failed || report.Unread { // rarely
		part = withoutKey(part, l.target.key)
	}
	l.collected.add(part)
	switch {
	case l.unsent == nil:
		l.write(part)
	case beginsWithFailure(report):
		l.watchEnded = true
		return false, errNothing
	case report.Objects > 0 || len(l.early)+len(part) > maxEarly:
		l.sendHeader(part)
	default: // comments
		l.early = append(l.early, part...)
	}
	if l.isBeyondLimit() {
		l.broken = true
		return false, errTooMuch
	}
	return report.Done && !wasDone, nil
}

// noteEnd calls what is to be called before the end of the response is sent. The caller holds l.mu, which others may
// have meanwhile: none of them changes the stream.
func (l *relay) noteEnd() {
	if f := l.target.beforeEnd; f != nil {
		l.mu.Unlock()
		defer l.mu.Lock()
		f()
	}
}

// beginsWithFailure reports whether the first event of a stream is an error that costs nothing, whatever has come with
// it, or the stream has ended with nothing in it.
func beginsWithFailure(r *llmwire.Report) bool {
	return r.IsFailure() && (r.FailedAtOnce || r.Done && !r.Failed)
}

// isBeyondLimit reports whether a stream that has not finished has far more content than its limit allows: more than
// twice as many events, each of a token or more, and more than 8 bytes a token. The caller holds l.mu.
func (l *relay) isBeyondLimit() bool {
	report, limit := &l.stream.Report, l.target.limit
	return report.ContentEvents > 2*limit && report.ContentBytes() > 8*limit && !report.HasFinished(l.request.N)
}

// isEventStream reports whether text, in which there is no event with data, has only lines of server-sent events.
func isEventStream(text []byte) bool {
	for line := range bytes.FieldsFuncSeq(text, func(c rune) bool { return c == '\n' || c == '\r' }) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "", "event", "data", "id", "retry":
		default:
			return false
		}
	}
	return true
}

// finish relays the end of a stream, after which err came from the provider. Errors are err, errNothing and
// errNoStream.
func (l *relay) finish(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wasDone := l.stream.Report.Done
	rest, report := l.stream.Finish(), &l.stream.Report
	hasEnded := report.Done || err == io.EOF && report.HasFinished(l.request.N)
	if hasEnded && !wasDone {
		l.noteEnd()
	}
	if report.Failed || report.Unread {
		rest = withoutKey(rest, l.target.key)
	}
	isNothing := err == io.EOF && (report.IsFailure() || report.Objects == 0)
	switch {
	case isNothing && l.unsent != nil:
		l.watchEnded = true
		if report.Objects == 0 && !isEventStream(append(l.early, rest...)) {
			return errNoStream
		}
		return errNothing
	case hasEnded:
		if l.collected.add(rest); l.unsent != nil {
			l.sendHeader(rest)
		} else {
			l.write(rest)
		}
		l.costs = !isNothing
		return nil
	}
	l.broken = true
	return err
}

// abort tells the client that its stream is broken, unless the provider has. It returns http.ErrAbortHandler: the SDKs
// take a tidy end for success.
func (l *relay) abort(failure Error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stream.Report.Failed {
		if !l.stream.IsBetweenEvents() {
			l.write([]byte("\n\n"))
		}
		l.write(l.stream.Report.Format.ErrorEvent(failure.Status, failure.Message))
	}
	return http.ErrAbortHandler
}

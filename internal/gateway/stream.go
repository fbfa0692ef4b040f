package gateway

import (
	"io"
	"net/http"
	"time"
)

const (
	endGrace   = time.Second // for the end of a stream after its end marker
	abortGrace = time.Second // for telling the client of a stream that it has taken too long
)

// collect makes c collect the stream that is relayed next.
func (l *relay) collect(c *collector) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collected = c
}

// takeCollected returns what collect was called with, nil if it was not. The caller releases it. isWhole reports
// whether it has the stream with its end marker.
func (l *relay) takeCollected() (c *collector, isWhole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, l.collected = l.collected, nil
	return c, c != nil && !c.tooLong && l.stream.Report.Done
}

// relayStream relays a stream event by event and returns nil after its end. If the stream breaks, it returns the error
// to tell the client, which abort does.
func (l *relay) relayStream(response *http.Response) error {
	l.beginStream(response)
	l.startWatch()
	defer l.stopWatch()
	for {
		n, err := response.Body.Read(l.room())
		if done := l.received(n); done { // few providers do not end a stream after its end marker
			defer time.AfterFunc(endGrace, func() { l.cancel(errSilent) }).Stop()
		}
		if err != nil {
			return l.finish(err)
		}
	}
}

// beginStream sends the header of a stream.
func (l *relay) beginStream(response *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.costs, l.streaming = true, true
	h := l.w.Header()
	copyHeaders(h, response.Header)
	h["Cache-Control"] = []string{"no-cache"}
	h["X-Accel-Buffering"] = []string{"no"}
	l.extendDeadline()
	l.w.WriteHeader(response.StatusCode)
	if err := l.client.Flush(); err != nil {
		l.loseClient()
	}
}

// room returns where the next bytes of a stream are to be read to.
func (l *relay) room() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stream.Room()
}

// received relays the n bytes that were read to the room. It reports whether they have the end marker.
func (l *relay) received(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
	wasDone := l.stream.Report.Done
	part := l.stream.Received(n)
	l.collected.add(part)
	l.write(part)
	return l.stream.Report.Done && !wasDone
}

// finish relays the end of a stream, after which err came from the provider.
func (l *relay) finish(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.stream.Finish()
	if l.stream.Report.Done || err == io.EOF && l.stream.Report.HasFinished(l.request.N) {
		l.collected.add(rest)
		l.write(rest)
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

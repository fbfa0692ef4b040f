package gateway

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

const (
	clientTimeout   = 30 * time.Second // without reading, after which a client has hung up
	commentInterval = 15 * time.Second // of silence in a stream, after which a comment is sent
	drainPause      = time.Second      // before a response without a client asks for a drain again
	usageGrace      = 5 * time.Second  // for the usage of a stream that has finished and whose client has gone
	endGrace        = time.Second      // for the end of a stream after its end marker
	abortGrace      = time.Second      // for telling the client of a stream that it has taken too long

	maxWholeBody  = 16 << 20 // of a response that is not streamed
	maxErrorBody  = 64 << 10
	maxClientPart = 64 << 10 // that is written within clientTimeout
)

// A relay carries the response of an endpoint to the client, and keeps what is needed to charge for it. Beside the
// request's own goroutine, timers and the end of the client's connection use it: only its methods lock mu.
type relay struct {
	w       http.ResponseWriter
	client  *http.ResponseController
	request *llmwire.Request
	isFree  bool                    // the request costs nothing
	idle    time.Duration           // for which an endpoint may be silent
	cancel  context.CancelCauseFunc // ends the request to the endpoint
	latest  time.Time               // when the client must have the response

	disconnect func()          // ends the client's connection
	place      *fairpool.Claim // among the requests that wait
	drain      *fairpool.Claim // instead, when the client has gone

	mu            sync.Mutex     // guards the following
	stream        llmwire.Stream // also of responses that are not streamed, for what they report
	costs         bool           // the endpoint has begun a response that costs something
	broken        bool           // the response is not complete
	usageUnknown  bool           // the response was not read
	drainOnHangUp bool           // the endpoint's streams are read to their end though their clients have gone
	isDrained     bool           // this response has a drain instead of its place
	hungUp        bool           // the client of a stream has gone
	watchEnded    bool           // the response has been read: silence and hang-ups are ignored
	streaming     bool           // the response is a stream
	settled       bool           // what is still to come of the response does not count for its charge
	watch         *time.Timer
	drainRetry    *time.Timer // of a response that waits for a drain
	lastByteAt    time.Time   // when something came from the endpoint
	collected     *collector
}

// A relayOutcome is what a relay knows of a response.
type relayOutcome struct {
	costs, broken, usageUnknown bool
	report                      llmwire.Report
}

// outcome returns a copy of what is known so far.
func (l *relay) outcome() relayOutcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return relayOutcome{l.costs, l.broken, l.usageUnknown, l.stream.Report}
}

// setDrainOnHangUp says whether the next endpoint's stream is read to its end if its client hangs up.
func (l *relay) setDrainOnHangUp(drain bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drainOnHangUp = drain
}

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

// end gives back what the relay has taken.
func (l *relay) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	l.collected.release()
	if l.drainRetry != nil {
		l.drainRetry.Stop()
	}
	l.drain.Release()
	l.stream.Memory.Release()
}

// copyHeaders sets the headers of the response to the client that come from the provider.
func copyHeaders(client, provider http.Header) {
	for _, name := range relayedHeaders {
		if values := provider[name]; len(values) > 0 {
			client[name] = values
		}
	}
	if values := provider["X-Request-Id"]; len(values) > 0 {
		client["X-Provider-Request-Id"] = values
	}
}

// isStream reports whether a response is a stream of events.
func (l *relay) isStream(response *http.Response) bool {
	kind, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "text/event-stream" || l.request.Stream && kind != "application/json"
}

// write sends data to the client, unless that has gone. The caller holds l.mu.
func (l *relay) write(data []byte) {
	for len(data) > 0 && !l.hungUp {
		part := data[:min(len(data), maxClientPart)]
		data = data[len(part):]
		l.extendDeadline()
		_, err := l.w.Write(part)
		if err == nil {
			err = l.client.Flush()
		}
		if err != nil {
			l.loseClient()
		}
	}
}

// extendDeadline gives the client the time to read another part, but not beyond l.latest.
func (l *relay) extendDeadline() {
	deadline := time.Now().Add(clientTimeout)
	if l.latest.Before(deadline) {
		deadline = l.latest
	}
	_ = l.client.SetWriteDeadline(deadline)
}

// flush sends what was written to the client.
func (l *relay) flush() { _ = l.client.Flush() }

// hangUp is called when the client has closed its connection.
func (l *relay) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseClient()
}

// loseClient decides whether the provider's response is awaited and read without a client. The caller holds l.mu.
func (l *relay) loseClient() {
	if l.hungUp || l.watchEnded {
		return
	}
	l.hungUp = true
	l.disconnect()
	report := &l.stream.Report
	switch {
	case l.isFree, l.settled:
		l.cancel(errClientGone)
	case !l.request.Stream && !l.streaming:
		l.awaitDrain()
	case report.Done || report.IsFinal(l.request.N):
		l.cancel(errClientGone)
	case report.HasFinished(l.request.N): // its usage is about to come
		time.AfterFunc(usageGrace, func() { l.cancel(errClientGone) })
	case l.drainOnHangUp || l.request.HiddenOutput:
		if err := l.takeDrain(); err != nil {
			l.usageUnknown = err == fairpool.ErrShare // else others have all drains: what was seen is charged, and an estimate
			l.cancel(errClientGone)
		}
	default:
		l.cancel(errClientGone)
	}
}

// takeDrain gives the response a drain instead of its place, unless it has one. Errors are those of fairpool.Claim.Add.
// The caller holds l.mu.
func (l *relay) takeDrain() error {
	if l.isDrained {
		return nil
	}
	err := l.drain.Add(1)
	if err == nil {
		l.isDrained = true
		l.place.Release()
	}
	return err
}

// awaitDrain lets a response that is not streamed have a drain as soon as one is free. The provider bills it in any
// case, so that it is never cancelled. The caller holds l.mu.
func (l *relay) awaitDrain() {
	if l.drain.Check(1) != nil || l.takeDrain() != nil {
		l.drainRetry = time.AfterFunc(drainPause, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if !l.watchEnded {
				l.awaitDrain()
			}
		})
	}
}

// startWatch begins to watch the silence of the endpoint, until stopWatch.
func (l *relay) startWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
	l.watch = time.AfterFunc(min(commentInterval, l.idle), l.checkSilence)
}

func (l *relay) stopWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	l.watch.Stop()
}

// noteByte notes that something has come from the endpoint.
func (l *relay) noteByte() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
}

// checkSilence cancels the request to an endpoint that has been silent for too long, and lets the client of a stream
// know that it goes on, which also shows whether the client is still there.
func (l *relay) checkSilence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	silent := time.Since(l.lastByteAt)
	switch {
	case l.watchEnded:
		return
	case silent >= l.idle:
		l.cancel(errSilent)
		return
	case silent >= commentInterval && l.streaming && l.stream.IsBetweenEvents():
		l.write(keepAlive)
		silent = 0
	}
	next := l.idle - time.Since(l.lastByteAt)
	l.watch.Reset(max(min(next, commentInterval-silent%commentInterval), time.Millisecond))
}

var keepAlive = []byte(": keep-alive\n\n")

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

// readWhole reads a response that is not streamed, up to maxWholeBody bytes, for which it takes memory. Errors are
// those of fairpool.Claim.ReadAll. If hasMore reports true for the error, the rest is to be relayed by writeWhole.
func (l *relay) readWhole(response *http.Response, memory *fairpool.Claim) ([]byte, error) {
	l.startWatch()
	body, err := memory.ReadAll(watchedReader{response.Body, l}, response.ContentLength, FreeBodyBytes, maxWholeBody)
	if !hasMore(err) {
		l.stopWatch()
	}
	return body, err
}

// hasMore reports whether readWhole has left a part of the response, which is then relayed unread.
func hasMore(err error) bool {
	return err == fairpool.ErrTooLong || err == fairpool.ErrShare || err == fairpool.ErrFull
}

// A watchedReader reads from an endpoint, and notes that something has come.
type watchedReader struct {
	io.Reader
	relay *relay
}

func (r watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.relay.noteByte()
	return n, err
}

// readError returns the first bytes of an error, at most those given, or what has come of them when it breaks off.
func (l *relay) readError(response *http.Response, most int) []byte {
	l.startWatch()
	defer l.stopWatch()
	body, _ := io.ReadAll(io.LimitReader(response.Body, int64(most)))
	return body
}

// readUsage reads what a response that is not streamed has used. That is unknown if there is more than body, or if body
// is nested too deep to be read. The provider bills it all the same. ok is false if body is not a JSON object. Then it
// costs nothing.
func (l *relay) readUsage(body []byte, more bool) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if !more {
		_, err = l.stream.Report.Read(body)
	}
	if more || err == llmwire.ErrTooDeep {
		l.usageUnknown = true
	} else if err != nil {
		return false
	}
	l.costs = true
	return true
}

// writeCached sends a whole response that was cached: a stream as a stream.
func (l *relay) writeCached(cached cachedResponse) {
	response := &http.Response{StatusCode: http.StatusOK, Header: make(http.Header, 1)}
	if cached.mediaType != "" {
		response.Header["Content-Type"] = []string{cached.mediaType}
	}
	if !l.isStream(response) {
		_ = l.writeWhole(response, cached.body, nil) // cannot fail without a rest
		return
	}
	l.beginStream(response)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(cached.body)
}

// writeUnread sends a response of which only body was read. All of it counts as content: as much as it was said to
// have, else as has come.
func (l *relay) writeUnread(response *http.Response, body []byte) error {
	rest := countingReader{Reader: response.Body}
	err := l.writeWhole(response, body, &rest)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.costs = true
	l.stream.Report.AddUnread(max(response.ContentLength, int64(len(body))+rest.bytes))
	return err
}

// setSettled says that what is still to come of the response does not count for its charge.
func (l *relay) setSettled() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled = true; l.hungUp {
		l.cancel(errClientGone)
	}
}

// A countingReader counts the bytes that are read.
type countingReader struct {
	io.Reader
	bytes int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.bytes += int64(n)
	return n, err
}

// noStore is the value of Cache-Control of responses that are not streamed. It is never changed.
var noStore = []string{"no-store"}

// writeWhole sends a response that is not streamed: what was read of it and then, if it is not nil, the rest. It
// returns http.ErrAbortHandler if that breaks off. While the rest comes, silence and hang-ups end it.
func (l *relay) writeWhole(response *http.Response, body []byte, rest io.Reader) error {
	h := l.w.Header()
	copyHeaders(h, response.Header)
	h["Cache-Control"] = noStore
	if rest == nil {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	} else if length := response.Header["Content-Length"]; len(length) > 0 {
		h["Content-Length"] = length
	}
	if rest != nil {
		defer l.stopWatch()
		l.setSettled()
		rest = watchedReader{rest, l}
	}
	l.extendDeadline()
	l.w.WriteHeader(response.StatusCode)
	for gone := false; !gone && len(body) > 0; {
		part := body[:min(len(body), maxClientPart)]
		body = body[len(part):]
		l.extendDeadline()
		_, err := l.w.Write(part)
		gone = err != nil
	}
	if rest == nil {
		return nil
	}
	part := make([]byte, maxClientPart)
	for {
		n, err := rest.Read(part)
		l.extendDeadline()
		if _, failed := l.w.Write(part[:n]); failed != nil || err != nil && err != io.EOF {
			return http.ErrAbortHandler
		}
		if err == io.EOF {
			return nil
		}
	}
}

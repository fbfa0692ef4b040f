package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tollgate/internal/llmwire"
)

const (
	clientTimeout   = 30 * time.Second // without reading, after which a client has hung up
	commentInterval = 15 * time.Second // of silence in a stream, after which a comment is sent
	usageGrace      = 5 * time.Second  // for the usage of a stream that has finished and whose client has gone
	endGrace        = time.Second      // for the end of a stream after its end marker

	maxWholeBody  = 16 << 20 // of a response that is not streamed
	maxErrorBody  = 64 << 10
	maxClientPart = 64 << 10 // that is written within clientTimeout
)

// Causes for which a request to a provider is cancelled.
var (
	errClientGone = errors.New("the client has hung up")
	errSilent     = errors.New("the provider has stopped responding")
	errTooLong    = errors.New("the request has taken too long")
	errStopping   = errors.New("the server is stopping")
)

// clientRelay carries the response of a provider to the client, and keeps what is needed to charge for it. Beside the
// request's own goroutine, timers and the end of the client's connection use it.
type clientRelay struct {
	w       http.ResponseWriter
	client  *http.ResponseController
	request *llmwire.Request
	idle    time.Duration                    // for which a provider may be silent
	cancel  context.CancelCauseFunc          // ends the request to the provider
	drain   func() (release func(), ok bool) // begins to read a stream that nobody listens to

	mu          sync.Mutex     // guards all that follows
	readOn      bool           // the endpoint's streams are to be read to their end
	stream      llmwire.Stream // also of responses that are not streamed, for what they report
	begun       bool           // the provider has begun a response that costs something
	ended       bool           // nothing more may be written
	broken      bool           // the response of the provider is not complete
	hungUp      bool           // the client of a stream has gone
	unknown     bool           // the response was not read, so that what it cost is not known
	heard       time.Time      // when something came from the provider
	watch       *time.Timer
	releaseDone func() // ends what drain began
	kept        *keptStream
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
func (l *clientRelay) isStream(response *http.Response) bool {
	kind, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "text/event-stream" || l.request.Stream && kind != "application/json"
}

// write sends data to the client, unless that has gone. The caller holds l.mu.
func (l *clientRelay) write(data []byte) {
	for len(data) > 0 && !l.hungUp {
		part := data[:min(len(data), maxClientPart)]
		data = data[len(part):]
		_ = l.client.SetWriteDeadline(time.Now().Add(clientTimeout))
		_, err := l.w.Write(part)
		if err == nil {
			err = l.client.Flush()
		}
		if err != nil {
			l.loseClient()
		}
	}
}

// hangUp is called when the connection of a client that has asked for a stream ends.
func (l *clientRelay) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseClient()
}

// loseClient decides whether the provider's stream is read on without a client. The caller holds l.mu.
func (l *clientRelay) loseClient() {
	if l.hungUp || l.ended {
		return
	}
	l.hungUp = true
	report := &l.stream.Report
	switch {
	case report.Done || report.InputSeen && report.OutputSeen:
		l.cancel(errClientGone)
	case report.HasFinished(l.request.N): // its usage is about to come
		time.AfterFunc(usageGrace, func() { l.cancel(errClientGone) })
	case l.readOn || l.request.HiddenOutput:
		release, ok := l.drain()
		if l.releaseDone = release; !ok {
			l.unknown = true
			l.cancel(errClientGone)
		}
	default:
		l.cancel(errClientGone)
	}
}

// startWatch begins to watch the silence of the provider, until stopWatch.
func (l *clientRelay) startWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
	l.watch = time.AfterFunc(min(commentInterval, l.idle), l.checkSilence)
}

func (l *clientRelay) stopWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.watch.Stop()
}

// checkSilence cancels the request to a provider that has been silent for too long, and lets the client of a stream
// know that it goes on, which also shows whether the client is still there.
func (l *clientRelay) checkSilence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	silent := time.Since(l.heard)
	switch {
	case l.ended:
		return
	case silent >= l.idle:
		l.cancel(errSilent)
		return
	case silent >= commentInterval && l.begun && l.stream.IsBetweenEvents():
		l.write(keepAlive)
		silent = 0
	}
	next := l.idle - time.Since(l.heard)
	l.watch.Reset(max(min(next, commentInterval-silent%commentInterval), time.Millisecond))
}

var keepAlive = []byte(": keep-alive\n\n")

// relayStream relays a stream event by event and returns nil after its end. If the stream breaks, it returns the error
// to tell the client, which abort does.
func (l *clientRelay) relayStream(response *http.Response) error {
	l.beginStream(response)
	l.startWatch()
	defer l.stopWatch()
	for {
		n, err := response.Body.Read(l.stream.Room())
		if done := l.received(n); done { // few providers do not end a stream after its end marker
			defer time.AfterFunc(endGrace, func() { l.cancel(errSilent) }).Stop()
		}
		if err != nil {
			return l.finish(err)
		}
	}
}

// beginStream sends the header of a stream.
func (l *clientRelay) beginStream(response *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun = true
	h := l.w.Header()
	copyHeaders(h, response.Header)
	h["Cache-Control"] = []string{"no-cache"}
	h["X-Accel-Buffering"] = []string{"no"}
	_ = l.client.SetWriteDeadline(time.Now().Add(clientTimeout))
	l.w.WriteHeader(response.StatusCode)
	if err := l.client.Flush(); err != nil {
		l.loseClient()
	}
}

// received relays the n bytes that were read to the stream's room. It reports whether they have the end marker.
func (l *clientRelay) received(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
	wasDone := l.stream.Done
	part := l.stream.Received(n)
	l.kept.add(part)
	l.write(part)
	return l.stream.Done && !wasDone
}

// finish relays the end of a stream, after which err came from the provider.
func (l *clientRelay) finish(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.stream.Finish()
	if l.stream.Done || err == io.EOF && l.stream.HasFinished(l.request.N) {
		l.kept.add(rest)
		l.write(rest)
		return nil
	}
	l.broken = true
	return err
}

// abort tells the client that its stream is broken, with status and message, and cuts the connection: the SDKs take a
// tidy end for success.
func (l *clientRelay) abort(status int, message string) {
	if !l.stream.Failed { // the provider has not said so itself
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.stream.IsBetweenEvents() {
			l.write([]byte("\n\n"))
		}
		l.write(l.stream.Format.ErrorEvent(status, message))
	}
	panic(http.ErrAbortHandler)
}

// readWhole reads a response that is not streamed, up to maxWholeBody bytes. more reports whether it is longer. grown
// is told how much memory that takes.
func (l *clientRelay) readWhole(response *http.Response, grown func(bytes int64)) (body []byte, more bool, err error) {
	l.startWatch()
	defer l.stopWatch()
	buffer := make([]byte, 0, min(max(response.ContentLength, 0), maxWholeBody)+512)
	grown(int64(cap(buffer)))
	for {
		n, err := response.Body.Read(buffer[len(buffer):min(cap(buffer), maxWholeBody+1)])
		buffer = buffer[:len(buffer)+n]
		l.mu.Lock()
		l.heard = time.Now()
		l.mu.Unlock()
		switch {
		case len(buffer) > maxWholeBody:
			return buffer, true, nil
		case err == io.EOF:
			return buffer, false, nil
		case err != nil:
			return nil, false, err
		case len(buffer) == cap(buffer):
			before := cap(buffer)
			buffer = slices.Grow(buffer, len(buffer))
			grown(int64(cap(buffer) - before))
		}
	}
}

// writeCached sends a whole response that was cached: a stream as a stream.
func (l *clientRelay) writeCached(cached cachedResponse) {
	response := &http.Response{StatusCode: http.StatusOK, Header: make(http.Header, 1)}
	if cached.mediaType != "" {
		response.Header["Content-Type"] = []string{cached.mediaType}
	}
	if !l.isStream(response) {
		l.writeWhole(response, cached.body, nil)
		return
	}
	l.beginStream(response)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(cached.body)
}

// writeWhole sends a response that is not streamed: what was read of it, and then the rest, if it is long.
func (l *clientRelay) writeWhole(response *http.Response, body []byte, rest io.Reader) {
	h := l.w.Header()
	copyHeaders(h, response.Header)
	h["Cache-Control"] = cacheControl
	if rest == nil {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	} else if length := response.Header["Content-Length"]; len(length) > 0 {
		h["Content-Length"] = length
	}
	_ = l.client.SetWriteDeadline(time.Now().Add(clientTimeout))
	l.w.WriteHeader(response.StatusCode)
	for gone := false; !gone && len(body) > 0; {
		part := body[:min(len(body), maxClientPart)]
		body = body[len(part):]
		_ = l.client.SetWriteDeadline(time.Now().Add(clientTimeout))
		_, err := l.w.Write(part)
		gone = err != nil
	}
	if rest == nil {
		return
	}
	part := make([]byte, maxClientPart)
	for {
		n, err := rest.Read(part)
		_ = l.client.SetWriteDeadline(time.Now().Add(clientTimeout))
		if _, failed := l.w.Write(part[:n]); failed != nil || err != nil && err != io.EOF {
			panic(http.ErrAbortHandler)
		}
		if err == io.EOF {
			return
		}
	}
}

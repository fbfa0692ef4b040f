package gateway

import (
	"io"
	"net/http"
	"strconv"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

const (
	maxWholeBody = 16 << 20 // of a response that is not streamed
	maxErrorBody = 64 << 10
)

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

package gateway

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

const (
	maxWholeBody = 16 << 20 // of a response that is not streamed
	maxErrorBody = 64 << 10
)

// readWhole reads a response that is not streamed, up to maxWholeBody bytes, for which it takes memory. Errors are
// those of fairpool.Claim.ReadAll. If hasMore reports true for the error, the response is to be relayed by relayParts.
func (l *relay) readWhole(response *http.Response, memory *fairpool.Claim) ([]byte, error) {
	l.setWhole()
	l.startWatch()
	body, err := memory.ReadAll(watchedReader{response.Body, l}, response.ContentLength, FreeBodyBytes, maxWholeBody)
	if !hasMore(err) {
		l.stopWatch()
	}
	return body, err
}

// setWhole says that the response is no stream.
func (l *relay) setWhole() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isWhole = true
}

// hasMore reports whether readWhole has left a part of the response, for which there is no memory.
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

// readUsage reads what a response that is not streamed has used. That is unknown if body is nested too deep to be read:
// the provider bills it all the same. hasFailed reports whether it has an error. After an error of readUsage it costs
// nothing: errNothing means that body has an error, or no choice and no content, and no usage. Any other error means
// that body is not a JSON object.
func (l *relay) readUsage(body []byte) (hasFailed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	report := &l.stream.Report
	_, err = report.Read(body)
	switch {
	case err == llmwire.ErrTooDeep:
		l.usageUnknown = true
	case err != nil:
		return false, err
	case report.IsFailure():
		return true, errNothing
	}
	l.costs = true
	return report.Failed, nil
}

// isCount reports whether a response is that to a request for the number of tokens, and has no content and no usage,
// which would not be free.
func (l *relay) isCount(body []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	report := &l.stream.Report
	_, err := report.Read(body)
	return err == nil && report.ContentEvents == 0 && !report.HasUsage() && l.request.Format.IsTokenCount(body)
}

// writeCached sends a whole response that was cached: a stream as a stream.
func (l *relay) writeCached(cached cachedResponse) {
	response := &http.Response{StatusCode: http.StatusOK, Header: make(http.Header, 1)}
	if cached.mediaType != "" {
		response.Header["Content-Type"] = []string{cached.mediaType}
	}
	if !l.isStream(response) {
		l.writeWhole(response, cached.body)
		return
	}
	l.beginStream(response)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hurry = l.latest // nothing is to be read after it
	l.sendHeader(cached.body)
}

// noStore is the value of Cache-Control of responses that are not streamed. It is never changed.
var noStore = []string{"no-store"}

// writeHeader sends the header of a response that is not streamed, with the given Content-Length if there is one.
func (l *relay) writeHeader(response *http.Response, length []string) {
	h := l.w.Header()
	copyHeaders(h, response.Header, l.target.key)
	h["Cache-Control"] = noStore
	if len(length) > 0 {
		h["Content-Length"] = length
	}
	l.extendDeadline()
	l.w.WriteHeader(response.StatusCode)
}

// writeWhole sends a response that is not streamed. There is no hurry: nothing is to be read after it.
func (l *relay) writeWhole(response *http.Response, body []byte) {
	l.mu.Lock()
	l.hurry = l.latest
	l.mu.Unlock()
	l.writeHeader(response, []string{strconv.Itoa(len(body))})
	for gone := false; !gone && len(body) > 0; {
		part := body[:min(len(body), maxClientPart)]
		body = body[len(part):]
		l.extendDeadline()
		_, err := l.w.Write(part)
		gone = err != nil
	}
}

// relayParts relays a response that is not streamed, of which only body was read, as it comes. It is read to its end,
// also if the client goes. The last byte is sent only when it is known that it is the last one. It returns the error
// with which the response breaks off.
func (l *relay) relayParts(response *http.Response, body []byte) error {
	defer l.stopWatch()
	l.writeHeader(response, response.Header["Content-Length"])
	l.relayPart(body)
	part, kept := make([]byte, 1+maxClientPart), 0
	for {
		n, err := response.Body.Read(part[kept:])
		n += kept
		if err != nil {
			return l.endParts(part[:n], err)
		}
		if n > 0 {
			l.relayPart(part[:n-1])
			part[0], kept = part[n-1], 1
		}
	}
}

func (l *relay) relayPart(part []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readPart(part)
	l.write(part)
}

// readPart reads what a part of a response reports. The caller holds l.mu.
func (l *relay) readPart(part []byte) {
	l.lastByteAt = time.Now()
	l.costs = true
	l.stream.Report.ReadPart(part)
}

// endParts relays the last part of a response, after which err came, and returns the error with which it breaks off.
func (l *relay) endParts(part []byte, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readPart(part); err == io.EOF {
		l.noteEnd()
		err = nil
	}
	l.broken = err != nil
	l.write(part)
	return err
}

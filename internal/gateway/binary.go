package gateway

import (
	"io"
	"net/http"
	"strings"

	"tollgate/internal/llmwire"
)

// isBinary reports whether a response is relayed unread, since what it costs is known from the request. JSON is read:
// it may be an error.
func (x *exchange) isBinary(response *http.Response) bool {
	kind := strings.ToLower(response.Header.Get("Content-Type"))
	isSound := x.call.Request.Format.Delivery() == llmwire.Binary && !strings.Contains(kind, "json")
	return isSound || x.call.Request.WantsSubtitles()
}

// relayBinary relays a response as it comes, unread. It is settled with its first byte, so that its header says what it
// costs. If the client has gone by then, the rest is not awaited.
func (x *exchange) relayBinary(response *http.Response) error {
	part, err := x.relay.readFirst(response)
	switch {
	case err == io.EOF:
		return x.hasNothing(response)
	case err != nil:
		return x.interrupted(err)
	}
	x.settle()
	if err := x.relay.relayRest(response, part); err != nil {
		_ = x.interrupted(err) // logs it
		return http.ErrAbortHandler
	}
	return nil
}

// readFirst reads the first bytes of a response. The error is nil if there are any.
func (l *relay) readFirst(response *http.Response) ([]byte, error) {
	l.startWatch()
	part := make([]byte, maxClientPart)
	for {
		n, err := watchedReader{response.Body, l}.Read(part)
		if n > 0 {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.costs = true; l.hungUp {
				l.cancel(errClientGone)
			}
			return part[:n], nil
		}
		if err != nil {
			l.stopWatch()
			return nil, err
		}
	}
}

// relayRest relays a response that begins with part to its end, and returns the error with which it breaks off.
func (l *relay) relayRest(response *http.Response, part []byte) error {
	defer l.stopWatch()
	l.writeHeader(response, response.Header["Content-Length"])
	room := part[:cap(part)]
	for {
		l.mu.Lock()
		l.write(part)
		l.mu.Unlock()
		n, err := watchedReader{response.Body, l}.Read(room)
		part = room[:n]
		if err == io.EOF && n == 0 {
			return nil
		} else if err != nil && err != io.EOF {
			return err
		}
	}
}

package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"
)

var errNoJSON = errors.New("the response is not a JSON object")

// relayAsItComes relays a response however long it is, and reads only its usage. One that is complete within maxEarly
// bytes, and within headerPatience from its first byte, is settled before it is sent: its header says what it costs,
// and another endpoint is tried if it is an error.
func (x *exchange) relayAsItComes(response *http.Response) error {
	if x.isCacheable() {
		x.relay.collect(&collector{room: x.gateway.cache.collected.Claim(x.call.Tenant, x.call.User)})
	}
	whole, begun, err := x.relay.relayUsage(response)
	switch {
	case err == errNoJSON && !begun:
		return x.providerFailed("its response is not a JSON object")
	case err != nil && !begun:
		return x.interrupted(err)
	case err == errNoJSON:
		x.logFailure("its response is not a JSON object")
		return http.ErrAbortHandler
	case err != nil:
		_ = x.interrupted(err) // logs it
		return http.ErrAbortHandler
	case !begun:
		return x.relayRead(response, whole)
	}
	x.settleSent()
	x.storeStream(response)
	return nil
}

// relayUsage relays a response as it comes, and reads it to its end, also if the client goes. If begun is false,
// nothing was sent yet, and whole is all of the response. The error is errNoJSON if that is not one JSON object,
// otherwise that with which it breaks off.
func (l *relay) relayUsage(response *http.Response) (whole []byte, begun bool, err error) {
	l.beginUsage(response)
	l.startWatch()
	defer l.stopWatch()
	part := make([]byte, maxClientPart)
	for {
		n, err := response.Body.Read(part)
		failure := l.receivedUsage(part[:n])
		if failure == nil && err == nil {
			continue
		}
		return l.endUsage(err, failure)
	}
}

// beginUsage marks the response as not streamed, and keeps its header until enough of it has come.
func (l *relay) beginUsage(response *http.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isWhole, l.unsent = true, response
}

// receivedUsage relays a part of the response, or keeps it until the header is sent. It returns errNoJSON if the
// response does not begin as an object does.
func (l *relay) receivedUsage(part []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
	if l.unsent == nil {
		l.relayReported(part)
		return nil
	}
	if len(l.early) == 0 && len(part) > 0 {
		l.watchedSince = l.lastByteAt
		l.watch.Reset(min(headerPatience, l.idle))
	}
	if len(l.early)+len(part) <= maxEarly {
		l.early = append(l.early, part...)
		return nil
	}
	if !beginsObject(l.early) {
		return errNoJSON
	}
	l.sendEarly()
	l.relayReported(part)
	return nil
}

// relayReported relays a part of a response after its usage was read. The caller holds l.mu.
func (l *relay) relayReported(part []byte) {
	l.stream.Report.ReadUsage(part)
	l.collected.add(part)
	l.write(part)
}

// sendEarly sends the header and what was kept of the response until now. The caller holds l.mu.
func (l *relay) sendEarly() {
	response, early := l.unsent, l.early
	l.unsent, l.early, l.costs = nil, nil, true
	l.writeHeader(response, response.Header["Content-Length"])
	l.relayReported(early)
}

// isPatienceOver reports whether the header of a response is to be sent though little of it has come. If it is not a
// stream, something must have come that does not look like an error: an error is read whole, so that another endpoint
// can be tried, and the key taken out. The caller holds l.mu.
func (l *relay) isPatienceOver() bool {
	return l.unsent != nil && time.Since(l.watchedSince) >= headerPatience &&
		(l.streaming || beginsObject(l.early) && !bytes.Contains(l.early, []byte(`"error"`)))
}

// endUsage returns what relayUsage does, when the response has ended with err, or is given up for a failure.
func (l *relay) endUsage(err, failure error) (whole []byte, begun bool, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	begun = l.unsent == nil
	if failure == nil && err != io.EOF {
		failure = err
	}
	if begun && l.stream.Report.EndUsage() != nil && failure == nil {
		failure = errNoJSON
	}
	l.broken = failure != nil
	return l.early, begun, failure
}

// beginsObject reports whether text begins a JSON object.
func beginsObject(text []byte) bool {
	text = bytes.TrimLeft(text, " \t\r\n")
	return len(text) > 0 && text[0] == '{'
}

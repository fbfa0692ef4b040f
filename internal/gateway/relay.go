package gateway

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

const (
	clientTimeout = 30 * time.Second // without reading, after which a client has hung up
	maxClientPart = 64 << 10         // that is written within clientTimeout
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

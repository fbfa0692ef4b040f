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
	hurry   time.Time               // from when on the client is waited for patience at most; before latest

	disconnect func()          // ends the client's connection
	place      *fairpool.Claim // among the requests that wait
	drain      *fairpool.Claim // instead, when the client has gone
	endTimer   *time.Timer     // of a stream whose end marker has come; used by the request's goroutine alone

	mu           sync.Mutex     // guards the following
	target       target         // whose response is relayed
	stream       llmwire.Stream // also of responses that are not streamed, for what they report
	costs        bool           // the endpoint has begun a response that costs something
	broken       bool           // the response is not complete
	usageUnknown bool           // the response was not read
	isDrained    bool           // this response has a drain instead of its place
	hungUp       bool           // the client has gone
	watchEnded   bool           // the response has been read: silence and hang-ups are ignored
	streaming    bool           // the response is a stream
	isWhole      bool           // the response is not a stream, though one may have been asked for
	watch        *time.Timer
	drainRetry   *time.Timer // of a response that waits for a drain
	watchedSince time.Time
	lastByteAt   time.Time      // when something came from the endpoint, later by how long the client was waited for
	patience     time.Duration  // for which the client may still be waited for after hurry
	unsent       *http.Response // the stream whose header is to be sent
	early        []byte         // what is to be sent after it
	collected    *collector
}

// A target is what a relay knows of an endpoint before its response comes.
type target struct {
	key      string // which no client must see; "" if it needs no key
	limit    int64  // of output tokens, of all choices together; MaxTokens without a limit
	mayHide  bool   // the response may not show all output that it costs
	onHangUp hangUpRule
	isKnown  bool // a response that has begun costs what is known from the request

	// beforeEnd, unless it is nil, is called when all of a response has come, before the client gets its end.
	beforeEnd func()
}

// A relayOutcome is what a relay knows of a response.
type relayOutcome struct {
	costs, broken, usageUnknown bool
	report                      llmwire.Report
}

// isFailure reports whether a response with n choices has failed before it cost anything.
func (o *relayOutcome) isFailure(n int64) bool {
	r := &o.report
	return r.IsFailure() || (o.broken || r.Failed) && r.ContentEvents == 0 && !r.KnowsOutput(n)
}

// outcome returns a copy of what is known so far.
func (l *relay) outcome() relayOutcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return relayOutcome{l.costs, l.broken, l.usageUnknown, l.stream.Report}
}

// expect prepares for the response of the next endpoint, and forgets that of the one before.
func (l *relay) expect(t target) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collected.release()
	l.stream.Memory.Release()
	l.stream = llmwire.Stream{
		Report:    llmwire.Report{Format: l.request.Format},
		DropUsage: l.request.Stream && !l.request.IncludeUsage, Memory: l.stream.Memory,
	}
	l.lastByteAt = time.Now()
	l.target, l.collected, l.unsent, l.early = t, nil, nil, nil
	l.costs, l.broken, l.streaming, l.isWhole, l.watchEnded = false, false, false, false, false
}

// end gives back what the relay has taken.
func (l *relay) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	l.hurry, l.patience = l.latest, max(l.patience, 0)
	l.extendDeadline()
	l.collected.release()
	if l.drainRetry != nil {
		l.drainRetry.Stop()
	}
	l.drain.Release()
	l.stream.Memory.Release()
}

// copyHeaders sets the headers of the response to the client that come from the provider, without its key.
func copyHeaders(client, provider http.Header, key string) {
	for _, name := range relayedHeaders {
		if values := provider[name]; len(values) > 0 {
			setWithoutKey(client, name, values, key)
		}
	}
	if values := provider["X-Request-Id"]; len(values) > 0 {
		setWithoutKey(client, "X-Provider-Request-Id", values, key)
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
		began := l.extendDeadline()
		_, err := l.w.Write(part)
		if err == nil {
			err = l.client.Flush()
		}
		l.waited(began)
		if err != nil {
			l.loseClient()
		}
	}
}

// extendDeadline gives the client the time to read another part, but not beyond l.latest, and returns the time. Shortly
// before, a client that does not read has hung up: what the rest of a stream says of its cost is still to be read.
func (l *relay) extendDeadline() (now time.Time) {
	now = time.Now()
	deadline := now.Add(clientTimeout)
	for _, other := range []time.Time{later(now, l.hurry).Add(l.patience), l.latest} {
		if other.Before(deadline) {
			deadline = other
		}
	}
	_ = l.client.SetWriteDeadline(deadline)
	return now
}

// waited notes that the client was waited for since a time. That is no silence of the endpoint. The caller holds l.mu.
func (l *relay) waited(since time.Time) {
	d := time.Since(since)
	l.lastByteAt = l.lastByteAt.Add(d)
	if !since.Before(l.hurry) {
		l.patience -= d
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// flush sends what was written to the client.
func (l *relay) flush() { _ = l.client.Flush() }

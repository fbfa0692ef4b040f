package gateway

import (
	"time"

	"tollgate/internal/fairpool"
)

const (
	commentInterval = 15 * time.Second // of silence in a stream, after which a comment is sent
	drainPause      = time.Second      // before a response without a client asks for a drain again
	usageGrace      = 5 * time.Second  // for the usage of a stream that has finished and whose client has gone
)

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
	case l.isFree, l.costs && l.target.isKnown:
		l.cancel(errClientGone)
	case l.isWhole, !l.request.Stream && !l.streaming:
		l.awaitDrain()
	case report.IsFinal(l.request.N):
		l.cancel(errClientGone)
	case report.Done, report.HasFinished(l.request.N): // its usage may be about to come
		time.AfterFunc(usageGrace, func() { l.cancel(errClientGone) })
	case l.mustDrain():
		if err := l.takeDrain(); err != nil {
			l.usageUnknown = err == fairpool.ErrShare // else others have all drains: what was seen is charged, and an estimate
			l.cancel(errClientGone)
		}
	default:
		l.cancel(errClientGone)
	}
}

// mustDrain reports whether a stream that has not finished is read to its end for its usage, since what has come of it
// does not tell what it costs. The caller holds l.mu.
func (l *relay) mustDrain() bool {
	switch l.target.onHangUp {
	case cancelOnHangUp:
		return false
	case drainOnHangUp:
		return true
	}
	report := &l.stream.Report
	return l.target.mayHide || l.request.MediaOutput || report.Hidden || report.Unread
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
	l.watchedSince = time.Now()
	l.lastByteAt = l.watchedSince
	next := min(commentInterval, l.idle)
	if l.unsent != nil {
		next = min(next, headerPatience)
	}
	l.watch = time.AfterFunc(next, l.checkSilence)
}

func (l *relay) stopWatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchEnded = true
	l.watch.Stop()
	if l.endTimer != nil {
		l.endTimer.Stop()
	}
}

// noteByte notes that something has come from the endpoint.
func (l *relay) noteByte() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastByteAt = time.Now()
}

// checkSilence sends the header of a stream in which nothing but comments has come, or of a response that comes slowly.
// It cancels the request to an endpoint that has been silent for too long, and lets the client of a stream know that it
// goes on, which also shows whether the client is still there.
func (l *relay) checkSilence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	silent := time.Since(l.lastByteAt)
	if l.watchEnded {
		return
	}
	switch {
	case !l.isPatienceOver():
	case l.streaming:
		l.sendHeader(nil)
	default:
		l.sendEarly()
	}
	switch {
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

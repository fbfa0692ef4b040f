package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

// newTestRelay returns the relay of a stream to w.
func newTestRelay(t testing.TB, w http.ResponseWriter, body string, cancel context.CancelCauseFunc) *relay {
	t.Helper()
	request, err := llmwire.ReadRequest(llmwire.OpenAIChat, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return &relay{
		w: w, client: http.NewResponseController(w), request: request, idle: time.Minute, cancel: cancel,
		latest: time.Now().Add(time.Hour), disconnect: func() {},
		place: fairpool.New(1, 1).Claim("acme", "user"), drain: newDrains(t, freeDrains).Claim("acme", "user"),
		stream: llmwire.Stream{DropUsage: true, Memory: fairpool.New(1<<20, 1).Claim("acme", "user")},
	}
}

// Which users have the drains of a test.
const (
	freeDrains  = iota // nobody
	ownDrains          // the user, as many as it may have
	otherDrains        // others, all of them
)

// newDrains returns a pool of drains.
func newDrains(t testing.TB, users int) *fairpool.Pool {
	t.Helper()
	drains := fairpool.New(8, 0.5)
	take := func(tenant string, n int64) {
		if err := drains.Claim(tenant, "user").Add(n); err != nil {
			t.Fatal(err)
		}
	}
	switch users {
	case ownDrains:
		take("acme", 3)
	case otherDrains:
		for i := range 8 {
			take(fmt.Sprint(i), 1)
		}
	}
	return drains
}

// Relaying an event allocates nothing.
func TestRelayAllocations(t *testing.T) {
	relayed := func(events int) float64 {
		return testing.AllocsPerRun(10, func() {
			l := newTestRelay(t, discarder{make(http.Header)}, streamed, func(error) {})
			response := &http.Response{StatusCode: 200, Body: io.NopCloser(&repeatedReader{content, events})}
			_ = l.relayStream(response)
			if l.stream.Report.ContentEvents != int64(events) {
				t.Errorf("%d events were relayed, want %d", l.stream.Report.ContentEvents, events)
			}
		})
	}
	if few, many := relayed(10), relayed(10_010); many-few > 10 {
		t.Errorf("%.0f allocations for 10,000 events", many-few)
	}
}

// repeatedReader returns event as often as it is asked for, n times in all.
type repeatedReader struct {
	event string
	n     int
}

func (r *repeatedReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	r.n--
	return copy(p, r.event), nil
}

// discarder is a client that takes everything.
type discarder struct{ header http.Header }

func (d discarder) Header() http.Header            { return d.header }
func (discarder) Write(p []byte) (int, error)      { return len(p), nil }
func (discarder) WriteHeader(int)                  {}
func (discarder) FlushError() error                { return nil }
func (discarder) SetWriteDeadline(time.Time) error { return nil }

// What becomes of a stream whose client has gone depends on what has come of it by then.
func TestHangUp(t *testing.T) {
	const waits, cancels = "waits for the usage", "is cancelled"
	for _, test := range []struct {
		name, body string
		seen       string // of the stream
		drain      bool   // the endpoint's streams are drained
		drains     int    // who has them
		want       string // "": goes on
		unknown    bool   // so is what it costs: all that is held
	}{
		{"in mid-stream", streamed, content, false, freeDrains, cancels, false},
		{"before anything", streamed, "", false, freeDrains, cancels, false},
		{"after the reason", streamed, content + reason, false, freeDrains, waits, false},
		{"after the usage", streamed, content + reason + usage, true, freeDrains, cancels, false},
		{"after the end", streamed, content + reason + done, true, freeDrains, cancels, false},
		{"drained", streamed, content, true, freeDrains, "", false},
		{"drained, but the user has too many", streamed, content, true, ownDrains, cancels, true},
		{"drained, but others have all", streamed, content, true, otherDrains, cancels, false},
		{"reasoning", `{"stream":true,"reasoning_effort":"low"}`, content, false, freeDrains, "", false},
		{"reasoning, but the user has too many drains", `{"stream":true,"reasoning_effort":"low"}`, content, false, ownDrains, cancels, true},
		{"not streamed", whole, "", false, freeDrains, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				l := newTestRelay(t, discarder{make(http.Header)}, test.body, cancel)
				drains := newDrains(t, test.drains)
				before := drains.Stats().Used
				l.drain = drains.Claim("acme", "user")
				if err := l.place.Add(1); err != nil {
					t.Fatal(err)
				}
				disconnected := 0
				l.disconnect = func() { disconnected++ }
				l.setDrainOnHangUp(test.drain)
				l.received(copy(l.room(), test.seen))
				l.hangUp()
				l.hangUp() // changes nothing more
				if test.want == waits {
					time.Sleep(usageGrace - time.Millisecond)
					if ctx.Err() != nil {
						t.Errorf("it was cancelled too early: %v", context.Cause(ctx))
					}
					time.Sleep(time.Second)
				}
				cause := context.Cause(ctx)
				if (cause == errClientGone) != (test.want != "") || l.outcome().usageUnknown != test.unknown {
					t.Errorf("cancelled with %v, unknown usage: %v", cause, l.outcome().usageUnknown)
				}
				drained := map[bool]int64{true: 1}[test.want == "" && cause == nil]
				if n := drains.Stats().Used - before; n != drained {
					t.Errorf("%d drains are used, want %d", n, drained)
				}
				if err := l.place.Add(1); (err == nil) != (drained == 1) {
					t.Errorf("another place: %v, with %d drains", err, drained)
				}
				if disconnected != 1 {
					t.Errorf("the client was disconnected %d times", disconnected)
				}
				if l.end(); drains.Stats().Used != before {
					t.Errorf("%d drains are still used", drains.Stats().Used-before)
				}
			})
		})
	}
}

// A client that goes once the stream has ended changes nothing.
func TestHangUpAfterEnd(t *testing.T) {
	l := newTestRelay(t, discarder{make(http.Header)}, streamed, func(err error) { t.Errorf("cancelled with %v", err) })
	_ = l.relayStream(&http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(content + done))})
	l.hangUp()
	if l.hungUp || !l.outcome().report.Done {
		t.Error("it has hung up")
	}
}

// A response that is not streamed keeps its place until a drain is free, and is never cancelled.
func TestAwaitDrain(t *testing.T) {
	for _, others := range []int{ownDrains, otherDrains} {
		synctest.Test(t, func(t *testing.T) {
			l := newTestRelay(t, discarder{make(http.Header)}, whole, func(err error) { t.Errorf("cancelled with %v", err) })
			drains := newDrains(t, freeDrains)
			l.drain = drains.Claim("acme", "user")
			var taken []*fairpool.Claim
			for i := range 8 {
				taken = append(taken, drains.Claim(fmt.Sprint(i), "user"))
			}
			if others == ownDrains {
				taken = append(taken[:0], drains.Claim("acme", "user"))
				_ = taken[0].Add(3)
			}
			for _, claim := range taken {
				_ = claim.AddUpTo(1)
			}
			before := drains.Stats()
			if err := l.place.Add(1); err != nil {
				t.Fatal(err)
			}
			l.hangUp()
			time.Sleep(10 * drainPause)
			if now := drains.Stats(); now != before {
				t.Errorf("while no drain is free: %+v, before %+v", now, before)
			}
			if err := l.place.Add(1); err == nil {
				t.Error("it has lost its place")
			}
			taken[0].Release()
			time.Sleep(2 * drainPause)
			if err := l.place.Add(1); err != nil {
				t.Errorf("with a drain it still has its place: %v", err)
			}
			l.end()
			time.Sleep(2 * drainPause)
			if used := drains.Stats().Used; used != before.Used-map[int]int64{ownDrains: 3, otherDrains: 1}[others] {
				t.Errorf("%d drains are used at the end", used)
			}
		})
	}
}

// A drained stream is read to its end, and charged as reported. A hang-up beyond the user's own share of the drains costs
// what was held. If others have all of them, it costs what was seen.
func TestDrains(t *testing.T) {
	for users, cost := range map[int]int64{freeDrains: 18, ownDrains: 132, otherDrains: 3} {
		next := make(chan string)
		server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for part := range next {
				_, _ = io.WriteString(w, part)
				_ = http.NewResponseController(w).Flush()
			}
		})
		g := newScripted(t, server, `,"on_hangup":"drain"`)
		g.options.IdleTimeout, g.drains = time.Minute, newDrains(t, users)
		before := g.drains.Stats().Used
		ctx, hangUp := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(streamed))
		go func() { next <- content }()
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = response.Body.Read(make([]byte, 1))
		hangUp()
		if users == freeDrains {
			eventually(t, "drained", func() bool { return g.drains.Stats().Used == before+1 })
			next <- reason + usage + done
		}
		if o := <-g.outcomes; o.cost != cost || o.estimated == (users == freeDrains) {
			t.Errorf("%d: %+v, want a cost of %d", users, o, cost)
		}
		close(next)
		eventually(t, "given back", func() bool { return g.drains.Stats().Used == before })
		g.drains = newDrains(t, freeDrains)
		g.wantNothingHeld(t)
	}
}

// In silence a comment comes every 15 s between events, until the endpoint has been silent for too long.
func TestSilence(t *testing.T) {
	for seen, comments := range map[string]int{content: 3, content[:9]: 3, strings.Repeat("x", 2<<20): 0} {
		synctest.Test(t, func(t *testing.T) {
			w := httptest.NewRecorder()
			body, provider := io.Pipe()
			l := newTestRelay(t, w, streamed, func(err error) { _ = provider.CloseWithError(err) })
			go func() { _, _ = io.WriteString(provider, seen) }()
			began := time.Now()
			if err := l.relayStream(&http.Response{StatusCode: 200, Body: body}); err != errSilent {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took < l.idle || took > l.idle+time.Second {
				t.Errorf("it was cancelled after %s", took)
			}
			if n := strings.Count(w.Body.String(), ": keep-alive\n\n"); n != comments {
				t.Errorf("%d comments in %.200q", n, w.Body)
			}
			if got := strings.ReplaceAll(w.Body.String(), ": keep-alive\n\n", ""); len(seen) > 50 && got != seen {
				t.Errorf("got %d bytes, want %d", len(got), len(seen))
			}
		})
	}
}

// A stream that does not end after its end marker is cut a second later: it is whole.
func TestEndGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, provider := io.Pipe()
		l := newTestRelay(t, httptest.NewRecorder(), streamed, func(err error) { _ = provider.CloseWithError(err) })
		go func() { _, _ = io.WriteString(provider, content+done) }()
		began := time.Now()
		if err := l.relayStream(&http.Response{StatusCode: 200, Body: body}); err != nil || time.Since(began) != endGrace {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

// A broken stream ends with one error event, after a whole event.
func TestAbort(t *testing.T) {
	for seen, want := range map[string]string{
		content:                                 content + errorEvent,
		"data: {":                               errorEvent,
		broken:                                  broken,
		"data: " + strings.Repeat("x", 2<<20):   "data: " + strings.Repeat("x", 2<<20) + "\n\n" + errorEvent,
		content + "data: {}\n\n" + "data: [DON": content + "data: {}\n\n" + errorEvent,
	} {
		w := httptest.NewRecorder()
		l := newTestRelay(t, w, streamed, func(error) {})
		failed := errors.New("it broke")
		reader := io.MultiReader(strings.NewReader(seen), &failingReader{failed})
		if err := l.relayStream(&http.Response{StatusCode: 200, Body: io.NopCloser(reader)}); err != failed {
			t.Errorf("got %v", err)
		}
		if err := l.abort(Error{502, "lost"}); err != http.ErrAbortHandler {
			t.Errorf("abort returns %v", err)
		}
		if got := w.Body.String(); got != want {
			t.Errorf("of %.50q came %.200q (%d bytes), want %d", seen, got, len(got), len(want))
		}
	}
}

var errorEvent = string(llmwire.OpenAIChat.ErrorEvent(502, "lost"))

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

// A response beyond 16 MiB is sent as it comes. If it breaks off, so does the response to the client.
func TestWriteRest(t *testing.T) {
	l := newTestRelay(t, discarder{make(http.Header)}, whole, func(error) {})
	response := &http.Response{StatusCode: 200, Header: http.Header{"Content-Length": {"7"}}}
	l.startWatch()
	if err := l.writeWhole(response, []byte("1234"), strings.NewReader("567")); err != nil {
		t.Error(err)
	}
	if got := l.w.Header()["Content-Length"]; len(got) != 1 || got[0] != "7" {
		t.Errorf("Content-Length is %v", got)
	}
	if err := l.writeWhole(response, nil, &failingReader{io.ErrUnexpectedEOF}); err != http.ErrAbortHandler {
		t.Errorf("got %v", err)
	}
}

// Only what is meant for the client is copied.
func TestCopyHeaders(t *testing.T) {
	client := make(http.Header)
	copyHeaders(client, http.Header{
		"Content-Type": {"a"}, "Retry-After": {"7"}, "X-Request-Id": {"r"}, "Request-Id": {"q"}, "Set-Cookie": {"c"},
		"Openai-Organization": {"o"}, "Alt-Svc": {"h3"}, "X-Should-Retry": {"true"},
	})
	var got bytes.Buffer
	_ = client.Write(&got)
	want := "Content-Type: a\r\nRequest-Id: q\r\nRetry-After: 7\r\nX-Provider-Request-Id: r\r\nX-Should-Retry: true\r\n"
	if got.String() != want {
		t.Errorf("got %s", &got)
	}
}

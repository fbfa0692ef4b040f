package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
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
	l := &relay{
		w: w, client: http.NewResponseController(w), request: request, idle: time.Minute, cancel: cancel,
		latest: time.Now().Add(time.Hour), hurry: time.Now().Add(time.Hour), disconnect: func() {},
		place: fairpool.New(1, 1).Claim("acme", "user"), drain: newDrains(t, freeDrains).Claim("acme", "user"),
		stream: llmwire.Stream{Memory: fairpool.New(1<<20, 1).Claim("acme", "user")},
	}
	l.expect(target{limit: 1 << 20})
	return l
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

// relayStream relays a stream to its end, and reports whether something of it was sent.
func (l *relay) relayStream(response *http.Response) (begun bool, err error) {
	ended, err := l.openStream(response)
	if !ended {
		err = l.continueStream(response)
	}
	return l.hasHeader(), err
}

// Relaying an event allocates nothing.
func TestRelayAllocations(t *testing.T) {
	relayed := func(events int) float64 {
		return testing.AllocsPerRun(10, func() {
			l := newTestRelay(t, discarder{make(http.Header)}, streamed, func(error) {})
			response := &http.Response{StatusCode: 200, Body: io.NopCloser(&repeatedReader{content, events})}
			_, _ = l.relayStream(response)
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
	const none = `data: {"choices":[{"index":0,"delta":{"content":"1"}}],"usage":{"prompt_tokens":0,"completion_tokens":0}}` + "\n\n"
	const thought = `data: {"choices":[{"index":0,"delta":{"reasoning_content":"1"}}]}` + "\n\n"
	hides, shows := target{mayHide: true}, target{}
	drained, cancelled := target{onHangUp: drainOnHangUp}, target{mayHide: true, onHangUp: cancelOnHangUp}
	for _, test := range []struct {
		name, body string
		seen       string // of the stream
		of         target
		drains     int    // who has them
		want       string // "": goes on
		unknown    bool   // so is what it costs: all that is held
	}{
		{"in mid-stream", streamed, content, hides, freeDrains, "", false},
		{"before anything", streamed, "", hides, freeDrains, "", false},
		{"after the reason", streamed, content + reason, hides, freeDrains, waits, false},
		{"after a reason with a usage of 0", streamed, strings.Replace(none, `"delta"`, `"finish_reason":"stop","delta"`, 1),
			hides, freeDrains, waits, false},
		{"after the usage", streamed, content + reason + usage, hides, freeDrains, cancels, false},
		{"after the end", streamed, content + reason + usage + done, hides, freeDrains, cancels, false},
		{"after an end without usage", streamed, content + reason + done, hides, freeDrains, waits, false},
		{"after usage of nothing", streamed, none, hides, freeDrains, "", false},
		{"after early usage", streamed, usage + content, hides, freeDrains, "", false},
		{"the user has too many drains", streamed, content, hides, ownDrains, cancels, true},
		{"others have all drains", streamed, content, hides, otherDrains, cancels, false},
		{"one of two choices has ended", `{"stream":true,"n":2}`, content + reason, hides, freeDrains, "", false},

		{"nothing hidden, in mid-stream", streamed, content, shows, freeDrains, cancels, false},
		{"nothing hidden, before anything", streamed, "", shows, freeDrains, cancels, false},
		{"nothing hidden, after the reason", streamed, content + reason, shows, freeDrains, waits, false},
		{"nothing hidden, after usage of nothing", streamed, none, shows, freeDrains, cancels, false},
		{"nothing hidden, but thinking was seen", streamed, thought + content, shows, freeDrains, "", false},
		{"nothing hidden, but not all was understood", streamed, "data: {\n\n", shows, freeDrains, "", false},

		{"drain", streamed, content, drained, freeDrains, "", false},
		{"drain, after the usage", streamed, content + reason + usage, drained, freeDrains, cancels, false},
		{"drain, but the user has too many", streamed, content, drained, ownDrains, cancels, true},
		{"drain, but others have all", streamed, content, drained, otherDrains, cancels, false},
		{"cancel", streamed, content, cancelled, freeDrains, cancels, false},
		{"cancel, thinking was seen", streamed, thought, cancelled, freeDrains, cancels, false},
		{"cancel, after the reason", streamed, content + reason, cancelled, freeDrains, waits, false},
		{"not streamed", whole, "", cancelled, freeDrains, "", false},
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
				test.of.limit = 100
				l.expect(test.of)
				_, _ = l.received(copy(l.room(), test.seen))
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
	_, _ = l.relayStream(&http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(content + done))})
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
		next := make(partsToCome)
		g := newScripted(t, next, `,"on_hangup":"drain"`)
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

// A stream that is left costs what the provider reports in the end if what has come by then does not tell that.
func TestLeftStreams(t *testing.T) {
	const shows = `,"reasoning":false`
	delta := func(members string) string {
		return `data: {"choices":[{"index":0,"delta":{` + members + `}}]}` + "\n\n"
	}
	early := strings.Replace(content, `}]}`, `}],"usage":{"prompt_tokens":0,"completion_tokens":0}}`, 1)
	end := reason + usage + done
	media := strings.Repeat("A", 9000)
	const start = `data: {"type":"message_start","message":{"usage":{"input_tokens":0,"output_tokens":0}}}` + "\n\n"
	const ended = `data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":11,"output_tokens":7}}` +
		"\n\n" + `data: {"type":"message_stop"}` + "\n\n"
	block := func(members string) string {
		return start + `data: {"type":"content_block_delta","index":0,"delta":{` + members + `}}` + "\n\n"
	}
	const prompt = `{"stream":true,"max_tokens":10000,"messages":[{"content":"sixteen bytes..."}]}` // an estimated input of 8
	for _, test := range []struct {
		name, members, body, before, after string
		format                             llmwire.Format
		cost                               int64
	}{
		{"hidden", "", prompt, content, end, llmwire.OpenAIChat, 18},
		{"nothing hidden", shows, prompt, content, "", llmwire.OpenAIChat, 8 + 3},
		{"early usage", "", prompt, early + early, end, llmwire.OpenAIChat, 18},
		{"early usage, nothing hidden", shows, prompt, early + early, "", llmwire.OpenAIChat, 8 + 6},
		{"reasoning", shows, prompt, delta(`"reasoning_details":[{"text":"hm"}]`), end, llmwire.OpenAIChat, 18},
		{"image", shows, prompt, delta(`"images":[{"image_url":{"url":"data:image/png;base64,` + media + `"}}]`), end, llmwire.OpenAIChat, 18},
		{"sound", shows, prompt, delta(`"audio":{"data":"` + media + `"}`), end, llmwire.OpenAIChat, 18},
		{"of no known kind", shows, prompt, delta(`"smell":"` + media + `"`), end, llmwire.OpenAIChat, 18},
		{"sound was asked for", shows, strings.Replace(prompt, "{", `{"modalities":["audio"],`, 1), content, end, llmwire.OpenAIChat, 18},
		{"image, cancelled", `,"on_hangup":"cancel"`, prompt, delta(`"images":[{"image_url":{"url":"` + media + `"}}]`), "",
			llmwire.OpenAIChat, 8 + 3000},

		{"message", "", prompt, block(`"type":"text_delta","text":"12345678"`), ended, llmwire.AnthropicMessages, 18},
		{"message, nothing hidden", shows, prompt, block(`"type":"text_delta","text":"12345678"`), "", llmwire.AnthropicMessages, 8 + 3},
		{"signature", shows, prompt, block(`"type":"signature_delta","signature":"` + media + `"`), ended, llmwire.AnthropicMessages, 18},
		{"block of no known kind", shows, prompt, block(`"type":"smell_delta","smell":"` + media + `"`), ended, llmwire.AnthropicMessages, 18},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			url := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, test.before)
				_ = http.NewResponseController(w).Flush()
				if <-gone; test.after == "" {
					<-r.Context().Done()
				}
				_, _ = io.WriteString(w, test.after)
			}))
			if test.format == llmwire.AnthropicMessages {
				url = strings.Replace(url, "chat/completions", "messages", 1)
			}
			g := newTestGateway(t, newEndpoint(t, "e", fmt.Sprintf(`"url":%q,"default_model":"m"%s`, url, test.members)))
			g.format, g.account.left = test.format, 100_000
			g.options.IdleTimeout = time.Minute
			ctx, hangUp := context.WithCancel(t.Context())
			r, _ := http.NewRequestWithContext(ctx, "POST", g.url, strings.NewReader(test.body))
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(response.Body, make([]byte, len(test.before))); err != nil {
				t.Fatal(err)
			}
			hangUp()
			eventually(t, "gone", func() bool { return g.gone.Load() == 1 })
			close(gone)
			if o := <-g.outcomes; o.cost != test.cost || o.estimated != (test.after == "") {
				t.Errorf("got %+v, want a cost of %d", o, test.cost)
			}
			g.wantNothingHeld(t)
		})
	}
}

// Only a provider that is known to obey is believed to generate no reasoning when it is told so.
func TestMayHide(t *testing.T) {
	const none, disabled = `{"reasoning_effort":"none"}`, `{"thinking":{"type":"disabled"}}`
	for _, test := range []struct {
		url, members, body string
		want               bool
	}{
		{"https://api.openai.com/v1/chat/completions", "", `{}`, true},
		{"https://api.openai.com/v1/chat/completions", "", `{"reasoning_effort":"minimal"}`, true},
		{"https://api.openai.com/v1/chat/completions", "", none, false},
		{"https://us.openai.azure.com/openai/v1/chat/completions", "", none, false},
		{"https://api.openai.com.example.net/v1/chat/completions", "", none, true},
		{"https://openrouter.ai/api/v1/chat/completions", "", none, true},
		{"https://openrouter.ai/api/v1/chat/completions", `,"reasoning":false`, `{}`, false},
		{"https://openrouter.ai/api/v1/chat/completions", `,"models":{"m":{"reasoning":false}}`, `{}`, false},
		{"https://openrouter.ai/api/v1/chat/completions", `,"reasoning":false,"models":{"m":{"reasoning":true}}`, `{}`, true},
		{"https://api.anthropic.com/v1/messages", "", `{}`, true},
		{"https://api.anthropic.com/v1/messages", "", disabled, false},
		{"https://api.anthropic.com/v1/chat/completions", "", none, true}, // which ignores it
		{"https://example.net/v1/messages", "", disabled, true},
	} {
		e := newEndpoint(t, "e", `"url":"`+test.url+`","default_model":"m"`+test.members)
		request, err := llmwire.ReadRequest(e.format, []byte(test.body))
		if err != nil {
			t.Fatal(err)
		}
		x := &exchange{call: &Call{Request: request, model: "m"}}
		if got := x.mayHide(e); got != test.want {
			t.Errorf("%+v: got %t", test, got)
		}
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
			if _, err := l.relayStream(&http.Response{StatusCode: 200, Body: body}); err != errSilent {
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

// A slowWriter is a client that takes pace to read what is written.
type slowWriter struct {
	*httptest.ResponseRecorder
	pace     time.Duration
	deadline time.Time
	written  int
}

func (w *slowWriter) SetWriteDeadline(deadline time.Time) error {
	w.deadline = deadline
	return nil
}

func (w *slowWriter) Write(data []byte) (int, error) {
	if left := time.Until(w.deadline); left < w.pace {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(w.pace)
	w.written += len(data)
	return len(data), nil
}

// A client that reads slowly is given up before the total timeout, so that the rest of its stream can be read. It is
// not the endpoint that is silent while the client is waited for.
func TestSlowReaders(t *testing.T) {
	for _, pace := range []time.Duration{time.Second, 29 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := &slowWriter{ResponseRecorder: httptest.NewRecorder(), pace: pace}
			l := newTestRelay(t, w, streamed, nil)
			l.hurry, l.patience = time.Now().Add(19*time.Minute), 3*time.Second
			l.latest = l.hurry.Add(time.Minute)
			l.expect(target{mayHide: true})
			for !l.hungUp {
				l.write([]byte(content))
				if silent := time.Since(l.lastByteAt); silent > 0 {
					t.Fatalf("silent for %s", silent)
				}
			}
			if late := time.Since(l.hurry); late < -time.Minute || late > 3*time.Second || !l.isDrained {
				t.Errorf("pace %s: given up after %s, drained: %t", pace, late, l.isDrained)
			}
		})
	}
}

// A client that reads slowly gets all of a response after which nothing is to be read, up to the total timeout.
func TestSlowReadersOfWholes(t *testing.T) {
	body := strings.Repeat("x", 2*maxClientPart+1)
	for name, write := range map[string]func(l *relay){
		"whole":  func(l *relay) { l.writeWhole(&http.Response{StatusCode: 200}, []byte(body)) },
		"cached": func(l *relay) { l.writeCached(cachedResponse{body: []byte(body)}) },
		"end":    func(l *relay) { l.patience = -1; l.end(); _, _ = l.w.Write([]byte(body)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &slowWriter{ResponseRecorder: httptest.NewRecorder(), pace: 15 * time.Second}
				l := newTestRelay(t, w, streamed, func(error) {})
				l.hurry, l.latest, l.patience = time.Now(), time.Now().Add(time.Minute), 3*time.Second
				if write(l); w.written != len(body) {
					t.Errorf("the client got %d bytes, want %d", w.written, len(body))
				}
			})
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
		if _, err := l.relayStream(&http.Response{StatusCode: 200, Body: body}); err != nil || time.Since(began) != endGrace {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

// A broken stream ends with one error event, after a whole event.
func TestAbort(t *testing.T) {
	for seen, want := range map[string]string{
		content:                                 content + errorEvent,
		content + "data: {":                     content + errorEvent,
		content + broken:                        content + broken,
		"data: " + strings.Repeat("x", 2<<20):   "data: " + strings.Repeat("x", 2<<20) + "\n\n" + errorEvent,
		content + "data: {}\n\n" + "data: [DON": content + "data: {}\n\n" + errorEvent,
	} {
		w := httptest.NewRecorder()
		l := newTestRelay(t, w, streamed, func(error) {})
		failed := errors.New("it broke")
		reader := io.MultiReader(strings.NewReader(seen), &failingReader{failed})
		if _, err := l.relayStream(&http.Response{StatusCode: 200, Body: io.NopCloser(reader)}); err != failed {
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

// A response for which there is no memory is relayed as it comes, and its usage is read. If its client goes, it is read
// to its end.
func TestRelayParts(t *testing.T) {
	long := strings.Replace(completion, "Hello.", strings.Repeat("x", 300_000), 1)
	for _, test := range []struct {
		name     string
		rest     io.Reader
		hungUp   bool
		err      error
		sent     int
		isExact  bool
		isBroken bool
	}{
		{"all", strings.NewReader(long[100:]), false, nil, len(long), true, false},
		{"without a client", strings.NewReader(long[100:]), true, nil, 0, true, false},
		{"cut", &failingReader{io.ErrUnexpectedEOF}, false, io.ErrUnexpectedEOF, 100, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			l := newTestRelay(t, w, whole, func(err error) { t.Errorf("cancelled with %v", err) })
			l.setWhole()
			l.startWatch()
			if test.hungUp {
				l.hangUp()
			}
			response := &http.Response{StatusCode: 200, Header: http.Header{"Content-Length": {"7"}}, Body: io.NopCloser(test.rest)}
			if err := l.relayParts(response, []byte(long[:100])); err != test.err || w.Body.Len() != test.sent {
				t.Errorf("got %v and %d bytes, want %v and %d", err, w.Body.Len(), test.err, test.sent)
			}
			if got := w.Header()["Content-Length"]; len(got) != 1 || got[0] != "7" {
				t.Errorf("Content-Length is %v", got)
			}
			seen := l.outcome()
			used, _, exact := seen.report.Used(1, 5)
			if exact != test.isExact || exact && used.Input+used.Output != 18 || !seen.costs || seen.broken != test.isBroken {
				t.Errorf("used %+v, exact: %v, costs: %v, broken: %v", used, exact, seen.costs, seen.broken)
			}
			l.end()
		})
	}
}

// Only what is meant for the client is copied, without the endpoint's key.
func TestCopyHeaders(t *testing.T) {
	client := make(http.Header)
	provider := http.Header{
		"Content-Type": {"a"}, "Retry-After": {"7"}, "X-Request-Id": {"r sk-1 sk-1"}, "Request-Id": {"q", "sk-1"}, "Set-Cookie": {"c"},
		"Openai-Organization": {"o"}, "Alt-Svc": {"h3"}, "X-Should-Retry": {"true"}, "Openai-Version": {`sk\u002d1`},
	}
	copyHeaders(client, provider, "sk-1")
	var got bytes.Buffer
	_ = client.Write(&got)
	want := "Content-Type: a\r\nOpenai-Version: [removed]\r\nRequest-Id: q\r\nRequest-Id: [removed]\r\nRetry-After: 7\r\n" +
		"X-Provider-Request-Id: r [removed] [removed]\r\nX-Should-Retry: true\r\n"
	if got.String() != want {
		t.Errorf("got %s", &got)
	}
	if id := provider["Request-Id"]; id[1] != "sk-1" {
		t.Errorf("the provider's header was changed: %q", id)
	}
}

// An endpoint's key is found however JSON spells it.
func TestWithoutKey(t *testing.T) {
	for _, test := range []struct{ key, text, want string }{
		{"", `sk\u002d1`, `sk\u002d1`},
		{"sk-1", `{"a":"sk-12 sk-1"}`, `{"a":"[removed]2 [removed]"}`},
		{"sk-1", `{"a\n":"sk\u002d1\tsk-1"}`, `{"a\n":"[removed]\t[removed]"}`},
		{"sk-1", `\u0073\u006B\u002d\u0031`, `[removed]`},
		{"sk-1", `"{\"a\":\"sk\\u002d1\"}"`, `"{\"a\":\"[removed]\"}"`}, // JSON in JSON
		{"sk-1", `sk\-1, sk-\u00`, `[removed], sk-\u00`},
		{"s/k", `s\/k`, `[removed]`},
		{`s"k\`, `"s\"k\\"`, `"[removed]\\"`},
		{"sk-1", `sk-\u0131 sk- \`, `sk-\u0131 sk- \`},
		{"aa", `aaa\u0061a`, `[removed][removed]a`},
		{`\`, `\\`, `\\`},
	} {
		if got := string(withoutKey([]byte(test.text), test.key)); got != test.want {
			t.Errorf("%s in %s: got %s, want %s", test.key, test.text, got, test.want)
		}
	}
}

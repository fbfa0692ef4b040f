package providertest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// ultravoxStep is what the length of a call is rounded up to for its bill.
const ultravoxStep = 6 * time.Second

// UltravoxConduct is how an Ultravox conducts a call. The zero value is one that works: each sound comes back.
type UltravoxConduct struct {
	Status int // with which the call is refused; 0: it is not
	Header []string
	Body   string        // of the response to its creation, instead of what is usual
	Delay  time.Duration // before that

	JoinStatus int  // with which joining is refused; 0: it is not
	Mute       bool // no call_started comes
	Deaf       bool // hang_up does not end the call
}

// Ultravox is a stand-in for Ultravox: calls are created over HTTP and joined over a WebSocket. It is safe for
// concurrent use.
type Ultravox struct {
	URL string // http://127.0.0.1:port/api/calls

	peerServer

	mu      sync.Mutex
	conduct UltravoxConduct
	calls   []*UltravoxCall
}

// NewUltravox starts a server that works, until the test ends.
func NewUltravox(t testing.TB) *Ultravox {
	t.Helper()
	u := new(Ultravox)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/calls", u.create)
	mux.HandleFunc("GET /join/{id}", u.join)
	u.URL = "http://" + u.start(t, mux) + "/api/calls"
	return u
}

// On sets how calls are conducted that are created from now on.
func (u *Ultravox) On(c UltravoxConduct) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.conduct = c
}

// Calls returns the calls that were created so far, the oldest first.
func (u *Ultravox) Calls() []*UltravoxCall {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.calls)
}

// Call waits until the nth call, counted from 1, was joined.
func (u *Ultravox) Call(t testing.TB, n int) *UltravoxCall {
	t.Helper()
	waittest.Eventually(t, patience, func() error {
		calls := u.Calls()
		if len(calls) < n || !calls[n-1].joined() {
			return fmt.Errorf("call %d was not joined; there are %d", n, len(calls))
		}
		return nil
	})
	return u.Calls()[n-1]
}

// UltravoxCall is one call. Its methods are safe for concurrent use; those of Peer must not be called before it was
// joined.
type UltravoxCall struct {
	Peer
	ID      string
	JoinURL string
	Max     time.Duration // maxDuration

	conduct UltravoxConduct

	mu       sync.Mutex
	isJoined bool
	isOpen   bool      // it was joined, and that has succeeded
	start    time.Time // when call_started was sent; zero: never
	end      time.Time // zero: it goes on
	reason   string
}

// create responds to a request for a call.
func (u *Ultravox) create(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	u.mu.Lock()
	c := u.conduct
	u.mu.Unlock()
	if c.Delay > 0 {
		select {
		case <-time.After(c.Delay):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	for _, line := range c.Header {
		name, value, _ := strings.Cut(line, ": ")
		w.Header().Set(name, value)
	}
	respond := func(status int, text string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
	longest, wrong := readUltravox(body)
	switch {
	case c.Status != 0:
		respond(c.Status, cmp.Or(c.Body, `{"detail":"The provider refuses."}`))
	case r.Header.Get("X-API-Key") != Key || r.Header.Get("Authorization") != "":
		respond(http.StatusForbidden, `{"detail":"Invalid API key."}`)
	case wrong != "":
		respond(http.StatusBadRequest, wrong)
	default:
		call := u.newCall(c, longest)
		respond(http.StatusCreated, cmp.Or(c.Body, fmt.Sprintf(
			`{"callId":%q,"created":"2026-01-01T00:00:00Z","joined":null,"ended":null,"maxDuration":"%gs","joinUrl":%q}`,
			call.ID, longest.Seconds(), call.JoinURL)))
	}
}

// readUltravox returns the longest time that a call may take, and what is wrong with the request for it.
func readUltravox(body []byte) (longest time.Duration, wrong string) {
	var request struct {
		MaxDuration string
		Medium      struct {
			ServerWebSocket *struct{ InputSampleRate, OutputSampleRate int64 }
		}
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return 0, `{"detail":"JSON parse error"}`
	}
	longest, err := time.ParseDuration(cmp.Or(request.MaxDuration, "3600s"))
	if err != nil || !strings.HasSuffix(cmp.Or(request.MaxDuration, "s"), "s") || longest <= 0 {
		return 0, `{"maxDuration":["Invalid duration."]}`
	}
	if socket := request.Medium.ServerWebSocket; socket == nil || socket.InputSampleRate <= 0 {
		return 0, `{"medium":["serverWebSocket.inputSampleRate is required."]}`
	}
	return longest, ""
}

func (u *Ultravox) newCall(c UltravoxConduct, longest time.Duration) *UltravoxCall {
	u.mu.Lock()
	defer u.mu.Unlock()
	call := &UltravoxCall{Peer: Peer{ended: make(chan struct{})}, ID: fmt.Sprintf("call-%d", len(u.calls)+1),
		Max: longest, conduct: c}
	call.JoinURL = "ws" + strings.TrimPrefix(u.server.URL, "http") + "/join/" + call.ID
	u.calls = append(u.calls, call)
	return call
}

// join opens the WebSocket of a call, once.
func (u *Ultravox) join(w http.ResponseWriter, r *http.Request) {
	var call *UltravoxCall
	for _, c := range u.Calls() {
		if c.ID == r.PathValue("id") {
			call = c
		}
	}
	if call == nil || call.setJoined() || call.conduct.JoinStatus != 0 {
		status := http.StatusNotFound
		if call != nil {
			status = cmp.Or(call.conduct.JoinStatus, status)
		}
		http.Error(w, "The call cannot be joined.", status)
		return
	}
	call.Request = r
	timer := time.AfterFunc(call.Max, call.expire)
	timer.Stop()
	defer timer.Stop()
	u.serve(w, &call.Peer, "", func() { call.begin(timer) }, call.read)
	call.setEnd("hangup")
}

// setJoined notes that the call was joined, and returns whether it had been before.
func (c *UltravoxCall) setJoined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.isJoined
	c.isJoined = true
	return before
}

// setEnd notes why the call has ended, if that is not known.
func (c *UltravoxCall) setEnd(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end.IsZero() {
		c.end, c.reason = time.Now(), reason
	}
}

// expire ends the call as it ends after its maxDuration.
func (c *UltravoxCall) expire() {
	c.setEnd("timeout")
	c.Close(websocket.CloseNormal, "")
}

// begin starts the call's clock.
func (c *UltravoxCall) begin(timer *time.Timer) {
	c.mu.Lock()
	c.isOpen = true
	if !c.conduct.Mute {
		c.start = time.Now()
	}
	c.mu.Unlock()
	if !c.conduct.Mute {
		timer.Reset(c.Max)
		c.Send(fmt.Sprintf(`{"type":"call_started","callId":%q}`, c.ID))
		c.Send(`{"type":"state","state":"listening"}`)
	}
}

// read responds to a message.
func (c *UltravoxCall) read(m Message) {
	if m.Kind == websocket.Binary {
		c.SendBinary(m.Data)
		return
	}
	var event struct {
		Type, Text string
		Timestamp  float64
	}
	_ = json.Unmarshal(m.Data, &event)
	switch event.Type {
	case "ping":
		c.Send(fmt.Sprintf(`{"type":"pong","timestamp":%g}`, event.Timestamp))
	case "user_text_message":
		c.Send(fmt.Sprintf(`{"type":"transcript","role":"user","medium":"text","text":%s,"final":true,"ordinal":0}`,
			quoted(event.Text)))
		c.Send(`{"type":"transcript","role":"agent","medium":"voice","text":"word","final":true,"ordinal":1}`)
	case "hang_up":
		if !c.conduct.Deaf {
			c.setEnd("hangup")
			c.Close(websocket.CloseNormal, "")
		}
	}
}

// joined reports whether the WebSocket of the call was opened.
func (c *UltravoxCall) joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isOpen
}

// Bill returns how long the call has taken so far, what that is rounded up to, which is billed, and why it has ended:
// "" if it goes on. A call that has not started is free.
func (c *UltravoxCall) Bill() (lasted, billed time.Duration, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.start.IsZero() {
		return 0, 0, c.reason
	}
	end := c.end
	if end.IsZero() {
		end = time.Now()
	}
	lasted = end.Sub(c.start)
	return lasted, (lasted + ultravoxStep - 1) / ultravoxStep * ultravoxStep, c.reason
}

// Sound returns all bytes of sound that have come.
func (c *UltravoxCall) Sound() (all []byte) {
	for _, m := range c.Messages() {
		if m.Kind == websocket.Binary {
			all = append(all, m.Data...)
		}
	}
	return all
}

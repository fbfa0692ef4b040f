package providertest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/waittest"
	"tollgate/internal/websocket"
)

// RealtimeConduct is how a Realtime conducts a session. The zero value is one that works, and responds only if it is
// asked to.
type RealtimeConduct struct {
	Status int // with which the handshake is refused; 0: it is not
	Header []string
	Body   string
	Delay  time.Duration // before the response to the handshake

	Mute  bool // no session.created comes
	Piece int  // bytes of each frame that is sent; 0: an event is one frame

	// Turn is after how many input_audio_buffer.append the server finds the end of a turn: it cancels what it is saying,
	// commits the input and responds. 0: it never does.
	Turn int
	// Transcript is what the transcription of each input that is committed has used. If it is zero, nothing is
	// transcribed.
	Transcript RealtimeUsage

	// Respond returns how to respond to a response.create, or to a turn, for which event is nil. nil: always as Response
	// says.
	Respond  func(event []byte) RealtimeResponse
	Response RealtimeResponse

	// OnEvent is called with each event of the client, and returns true if nothing else is to be done about it.
	OnEvent func(s *RealtimeSession, kind string, event []byte) bool
}

// Realtime is a stand-in for OpenAI's Realtime API over WebSockets. It is safe for concurrent use.
//
// It keeps OpenAI's rules as far as a meter has to do with them: one response of the conversation at a time, and no
// more output than a session or a response allows. It tells each usage once, and remembers it.
type Realtime struct {
	URL string // ws://127.0.0.1:port/v1/realtime

	peerServer

	mu       sync.Mutex
	conduct  RealtimeConduct
	requests []*http.Request
	sessions []*RealtimeSession
}

// NewRealtime starts a server that works, until the test ends.
func NewRealtime(t testing.TB) *Realtime {
	t.Helper()
	r := new(Realtime)
	r.URL = "ws://" + r.start(t, r) + "/v1/realtime"
	return r
}

// On sets how sessions are conducted that are opened from now on.
func (r *Realtime) On(c RealtimeConduct) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conduct = c
}

// Requests returns the handshakes so far, those included that were refused, the oldest first.
func (r *Realtime) Requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Sessions returns the sessions so far, the oldest first.
func (r *Realtime) Sessions() []*RealtimeSession {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sessions)
}

// Session waits for the nth session, counted from 1.
func (r *Realtime) Session(t testing.TB, n int) *RealtimeSession {
	t.Helper()
	waittest.Eventually(t, patience, func() error {
		if got := len(r.Sessions()); got < n {
			return fmt.Errorf("%d sessions were opened, want %d", got, n)
		}
		return nil
	})
	return r.Sessions()[n-1]
}

// Usages returns what all sessions have reported.
func (r *Realtime) Usages() (all []RealtimeUsage) {
	for _, s := range r.Sessions() {
		all = append(all, s.Usages()...)
	}
	return all
}

// ServeHTTP opens a session. It may also be the handler of another server, as one with TLS.
func (r *Realtime) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	c := r.conduct
	r.requests = append(r.requests, req)
	r.mu.Unlock()
	if c.Delay > 0 {
		select {
		case <-time.After(c.Delay):
		case <-req.Context().Done():
			return
		}
	}
	protocol, isAuthorized := realtimeProtocol(req)
	model := req.URL.Query().Get("model")
	refuse := func(status int, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "req_provider")
		for _, line := range c.Header {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	switch {
	case c.Status != 0:
		refuse(c.Status, cmp.Or(c.Body, `{"error":{"message":"The provider refuses.","type":"server_error"}}`))
	case !isAuthorized:
		refuse(401, `{"error":{"message":"Incorrect API key","type":"invalid_request_error","code":"invalid_api_key"}}`)
	case model == "":
		refuse(400, `{"error":{"message":"You must provide a model parameter.","type":"invalid_request_error"}}`)
	case !strings.HasSuffix(req.URL.Path, "/realtime"):
		refuse(404, `{"error":{"message":"Unknown request URL","type":"invalid_request_error"}}`)
	default:
		r.newSession(c, req, model).serve(w, protocol)
	}
}

// realtimeProtocol returns the subprotocol to answer with, and whether the request has the key, in one place only.
func realtimeProtocol(req *http.Request) (protocol string, isAuthorized bool) {
	const prefix = "openai-insecure-api-key."
	var credentials []string
	for _, name := range []string{"Authorization", "Api-Key"} {
		if value := req.Header.Get(name); value != "" {
			credentials = append(credentials, strings.TrimPrefix(value, "Bearer "))
		}
	}
	for _, p := range websocket.Protocols(req) {
		if p == "realtime" {
			protocol = p
		}
		if key, ok := strings.CutPrefix(p, prefix); ok {
			credentials = append(credentials, key)
		}
	}
	return protocol, slices.Equal(credentials, []string{Key})
}

// RealtimeSession is one session. Its methods are safe for concurrent use.
type RealtimeSession struct {
	Peer

	realtime *Realtime
	conduct  RealtimeConduct
	running  sync.WaitGroup

	mu       sync.Mutex
	settings object // as session.updated has them
	events   int    // that were sent
	items    int
	appended int                     // input_audio_buffer.append since the last turn
	current  *realtimeRun            // the response of the conversation, if one is active
	active   map[string]*realtimeRun // by ID: it, and those out of the conversation
	usages   []RealtimeUsage
}

// object is JSON.
type object = map[string]any

func (r *Realtime) newSession(c RealtimeConduct, req *http.Request, model string) *RealtimeSession {
	s := &RealtimeSession{
		Peer:     Peer{Request: req, piece: c.Piece, ended: make(chan struct{})},
		realtime: r, conduct: c, active: make(map[string]*realtimeRun),
	}
	turns := any(nil)
	if c.Turn > 0 {
		turns = object{"type": "server_vad", "create_response": true, "interrupt_response": true}
	}
	pcm := object{"type": "audio/pcm", "rate": 24000}
	s.settings = object{
		"object": "realtime.session", "id": "sess_1", "type": "realtime", "model": model, "expires_at": 4102444800,
		"output_modalities": []string{"audio"}, "instructions": "", "tools": []any{}, "tool_choice": "auto",
		"max_output_tokens": "inf", "tracing": nil, "prompt": nil, "truncation": "auto",
		"audio": object{
			"input":  object{"format": pcm, "transcription": nil, "noise_reduction": nil, "turn_detection": turns},
			"output": object{"format": pcm, "voice": "marin", "speed": 1.0},
		},
	}
	return s
}

// serve conducts the session until its end.
func (s *RealtimeSession) serve(w http.ResponseWriter, protocol string) {
	opened := func() {
		s.realtime.mu.Lock()
		s.realtime.sessions = append(s.realtime.sessions, s)
		s.realtime.mu.Unlock()
		if !s.conduct.Mute {
			s.SendEvent("session.created", object{"session": s.Settings()})
		}
	}
	s.realtime.serve(w, &s.Peer, protocol, opened, func(m Message) { s.read(m.Data) })
	s.running.Wait() // responses end with the connection
}

// Settings returns the session as the last session.updated has it.
func (s *RealtimeSession) Settings() map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.settings)
}

// Usages returns what the session has reported.
func (s *RealtimeSession) Usages() []RealtimeUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.usages)
}

// SendEvent sends an event with a type, an ID and further members.
func (s *RealtimeSession) SendEvent(kind string, members map[string]any) {
	event := maps.Clone(members)
	if event == nil {
		event = object{}
	}
	s.mu.Lock()
	s.events++
	event["type"], event["event_id"] = kind, fmt.Sprintf("event_%d", s.events)
	s.mu.Unlock()
	text, err := json.Marshal(event)
	if err != nil {
		panic(err) // a test has made it
	}
	s.Send(string(text))
}

// SendError sends an error that leaves the session open.
func (s *RealtimeSession) SendError(code, message, eventID string) {
	e := object{"type": "invalid_request_error", "code": code, "message": message, "param": nil, "event_id": nil}
	if eventID != "" {
		e["event_id"] = eventID
	}
	s.SendEvent("error", object{"error": e})
}

// spend notes a usage that is reported.
func (s *RealtimeSession) spend(u RealtimeUsage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usages = append(s.usages, u)
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
	"tollgate/internal/websocket"
)

// noEndpoint is the endpoint, in metrics, of requests that were sent to none: refused, or served from the cache.
const noEndpoint = "none"

// generate responds to a request that lets a model work.
func (s *server) generate(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, new(gateway.Call))
}

// countTokens responds to the question how many tokens a request has.
func (s *server) countTokens(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, &gateway.Call{CountTokens: true})
}

// relay lets the gateway respond to a request with a body. c says what is asked for, if that is not the usual.
func (s *server) relay(w http.ResponseWriter, r *http.Request, info *requestInfo, c *gateway.Call) (err error) {
	info.outcome.Endpoint = noEndpoint
	began := time.Now()
	c.Request, err = readRequest(*info.format, r.Header, info.body)
	info.deadline = info.deadline.Add(time.Since(began)) // which is Redis's, and a large body takes a while
	switch _, isUnsupported := errors.AsType[llmwire.UnsupportedError](err); {
	case isUnsupported:
		return err
	case err != nil:
		return badRequestError(err.Error())
	}
	c.Tenant, c.Body, c.Outcome = info.tenantID, info.body, &info.outcome
	if err := c.Choose(s.gateway.Usable(info.tenant.config.endpoints, info.tenantID)); err != nil {
		if stranger := s.requireKey(w, r, info); stranger != nil { // who learns nothing about models
			return stranger
		}
		s.gateway.NoteRefusal(c)
		return err
	}
	return s.serve(w, r, info, c)
}

// serve lets the gateway respond to a call, of which the caller has set what differs from one request to the next.
func (s *server) serve(w http.ResponseWriter, r *http.Request, info *requestInfo, c *gateway.Call) error {
	t := info.tenant
	a := &account{server: s, tenant: t, key: info.apiKey, header: w.Header(), place: info.place}
	c.ID, c.Start, c.Deadline, c.Hops = info.id, info.start, info.deadline, info.hops
	c.Tenant, c.User, c.Generation = t.id, info.apiKey, t.generation
	c.Memory, c.Place, c.Disconnect = info.memory, info.place, func() { connlimit.Disconnect(r.Context()) }
	c.Account, c.States, c.Outcome = queuedAccount{a}, tenantStates{s, t, info.apiKey}, &info.outcome
	c.Caching, c.Cache = t.config.caching, tenantCache{s, t.id}
	defer a.countFee()
	connlimit.Admit(r.Context()) // the gateway bounds what takes long
	rest, err := s.gateway.Serve(w, r, c)
	if info.rest = rest; rest != nil {
		info.body = nil // it may be large, and a stream is silent for long
		info.memory.Release()
	}
	a.countRefused(err)
	if err == http.ErrAbortHandler {
		panic(err)
	}
	return err
}

// readRequest reads the body of a request to the gateway. Errors are those of llmwire.ReadRequest.
func readRequest(format llmwire.Format, header http.Header, body []byte) (*llmwire.Request, error) {
	if format.TakesForm() {
		return llmwire.ReadForm(format, header["Content-Type"], body)
	}
	return llmwire.ReadRequest(format, body)
}

// listedModelBytes is about how much memory a model takes in the response of listModels.
const listedModelBytes = 512

// listModels sends the models that may be asked for. Error: errNoMemory if memory for a long list is short.
func (s *server) listModels(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	info.memory = s.bodies.gateway.Claim(info.tenantID, info.apiKey)
	info.place = s.gateway.Place(info.tenantID, info.apiKey)
	info.place.SetShare(info.tenant.config.groups[info.group].maxConcurrent)
	models := s.gateway.Models(s.gateway.Usable(info.tenant.config.all(), info.tenantID), &gateway.ModelsCall{
		Tenant: info.tenantID, Hops: info.hops, Format: *info.format, Memory: info.memory, Place: info.place,
	})
	models = info.tenant.config.groups[info.group].models.Listed(models)
	if info.memory.Add(max(listedModelBytes*int64(len(models))-gateway.FreeBodyBytes, 0)) != nil {
		return errNoMemory
	}
	return writeBody(w, http.StatusOK, append(info.format.ModelListBody(models), '\n'))
}

// showModel sends one model that may be asked for.
func (s *server) showModel(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	model, err := s.gateway.Usable(info.tenant.config.all(), info.tenantID).Model(*info.format, r.PathValue("model"))
	if err != nil {
		return err
	}
	if len(info.tenant.config.groups[info.group].models.Listed([]llmwire.Model{model})) == 0 {
		return gateway.DeniedModel(model.Name)
	}
	return writeBody(w, http.StatusOK, append(info.format.ModelBody(model), '\n'))
}

// loopHeader has the ID of each deployment that a request of the gateway has come through, separated by commas. An
// endpoint may be tollgate itself: without the header one request would go round until no connection is left.
const (
	loopHeader    = "Tollgate-Loop"
	maxHops       = 32
	maxLoopHeader = 2 << 10 // bytes
)

// deploymentPatience is how long a request waits for the ID of its deployment. A slot of Redis may have no master.
const deploymentPatience = 100 * time.Millisecond

// refuseLoop is the step of routes whose requests are forwarded. It refuses a request that has come through this
// deployment before, or through too many, and sets info.hops. The error is a 508.
func (s *server) refuseLoop(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	own := s.deploymentID()
	hops, ok := readHops(r.Header[loopHeader])
	if !ok || slices.Contains(hops, own) || slices.Contains(hops, s.processID) {
		w.Header().Set("Connection", "close") // the body is not read
		return gateway.Error{Status: http.StatusLoopDetected, Message: "The request has come through this service before"}
	}
	info.hops = strings.Join(append(hops, own), ", ")
	return nil
}

// readHops returns the IDs in the lines of a loopHeader, and ignores anything that is not an ID. ok is false if the
// lines are too long, or leave no room for one more.
func readHops(lines []string) (hops []string, ok bool) {
	all := strings.Join(lines, ",")
	if len(all) > maxLoopHeader {
		return nil, false
	}
	for hop := range strings.SplitSeq(all, ",") {
		if hop = strings.TrimSpace(hop); isIdentifier(hop, 64) {
			hops = append(hops, hop)
		}
	}
	return hops, len(hops) < maxHops
}

// deploymentID returns the ID of this deployment, which Redis is asked for until it is known. Until then it is that of
// the process, so that at least loops through it are found.
func (s *server) deploymentID() string {
	if id := s.deployment.known.Load(); id != nil {
		return *id
	}
	if s.deployment.asking.CompareAndSwap(false, true) {
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			defer s.deployment.asking.Store(false)
			if id, err := s.store.DeploymentID(time.Now().Add(publicTimeout)); err == nil {
				s.deployment.known.Store(&id)
			} else {
				s.deployment.failure.Do(func() {
					s.log.Warnf("Loops through other processes are not found until Redis has the ID of this deployment: %v", err)
				})
			}
		}()
		select {
		case <-asked:
		case <-time.After(deploymentPatience):
		}
	}
	if id := s.deployment.known.Load(); id != nil {
		return *id
	}
	return s.processID
}

// deployment is what a process knows of the deployment that it is a part of.
type deployment struct {
	known   atomic.Pointer[string] // its ID
	asking  atomic.Bool            // Redis is being asked for it
	failure sync.Once              // logs that it is not known
}

const (
	realtimeProtocol  = "realtime"                 // the subprotocol of OpenAI's Realtime API
	keyProtocolPrefix = "openai-insecure-api-key." // of a subprotocol that is not one: it has the key of a browser
)

// requireWebSocket is a step of routes that open a WebSocket. It refuses a request that does not ask for one.
func requireWebSocket(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	refused, ok := errors.AsType[*websocket.HandshakeError](websocket.CheckRequest(r))
	if !ok {
		return nil
	}
	maps.Copy(w.Header(), refused.Header)
	return gateway.Error{Status: refused.Status, Message: "This route opens a WebSocket: " + refused.Reason}
}

// readSessionKey reads the request's API key as readSDKKey does, and from among the subprotocols: pages cannot set the
// headers of a WebSocket, so OpenAI's SDK sends the key of a browser there.
func (s *server) readSessionKey(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	sent := keyHeaders(r)
	for _, protocol := range websocket.Protocols(r) {
		if key, ok := strings.CutPrefix(protocol, keyProtocolPrefix); ok {
			sent = append(sent, key)
		}
	}
	return info.readKey(sent)
}

// keyPlaces says where a client of the gateway may send its API key.
func keyPlaces(r *http.Request) string {
	const headers = "Authorization: Bearer, x-api-key or api-key"
	if strings.HasSuffix(r.Pattern, "/v1/realtime") {
		return headers + ", or as the subprotocol " + keyProtocolPrefix + "KEY beside " + realtimeProtocol
	}
	return headers
}

// refuseOrigin is a step of routes that open a WebSocket. Any page may open one, and read it, without a preflight: so
// the server has to refuse those of origins that the tenant does not allow.
func (s *server) refuseOrigin(_ http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if info.tenant.config.origins.Refuse(r) {
		return gateway.CodedError{
			Status: http.StatusForbidden, Code: "origin_not_allowed", Message: "The tenant does not allow this origin",
		}
	}
	return nil
}

// sessionModel returns the model, or endpoint, that the query of a session names, "" if it names none. The error is a
// badRequestError.
func sessionModel(r *http.Request) (string, error) {
	query, err := readQuery(r, "model", "intent", "call_id")
	switch {
	case err != nil:
		return "", err
	case query.Has("intent"):
		return "", badRequestError("Sessions with an intent, which only transcribe, are not served: leave out intent")
	case query.Has("call_id"):
		return "", badRequestError("There are no calls to observe: leave out call_id")
	}
	return query.Get("model"), nil
}

// sessionProtocol returns the subprotocol of the response, "" for none. The error is a badRequestError: browsers, and
// most other clients, close a WebSocket without a subprotocol if they have offered one, and the one that has the key
// must not be sent back.
func sessionProtocol(r *http.Request) (string, error) {
	offered := websocket.Protocols(r)
	isKey := func(protocol string) bool { return strings.HasPrefix(protocol, keyProtocolPrefix) }
	switch {
	case slices.Contains(offered, realtimeProtocol):
		return realtimeProtocol, nil
	case slices.ContainsFunc(offered, isKey):
		return "", badRequestError("The subprotocol " + realtimeProtocol + " is missing beside the one with the key")
	}
	return "", nil
}

// openSession lets the gateway open a WebSocket for a client. The session goes on when openSession has returned.
func (s *server) openSession(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	info.outcome.Endpoint = noEndpoint
	model, err := sessionModel(r)
	if err != nil {
		return err
	}
	protocol, err := sessionProtocol(r)
	if err != nil {
		return err
	}
	t := info.tenant
	info.place, info.memory = s.gateway.SessionPlace(t.id, info.apiKey), s.bodies.gateway.Claim(t.id, info.apiKey)
	info.session = s.newSessionAccount(t, info.apiKey, w.Header(), info.place)
	c := &gateway.SessionCall{
		ID: info.id, Tenant: t.id, User: info.apiKey, Hops: info.hops, Model: model, Protocol: protocol,
		Account: info.session, Refusal: sessionRefusal, Place: info.place, Memory: info.memory,
		Start: info.start, Deadline: info.deadline, Outcome: &info.outcome,
	}
	if err := c.ChooseEndpoint(s.gateway.Usable(t.config.realtime, t.id)); err != nil {
		if stranger := s.requireKey(w, r, info); stranger != nil { // strangers learn nothing about models
			return stranger
		}
		return err
	}
	connlimit.Admit(r.Context()) // the gateway bounds what takes long
	info.run, err = s.gateway.OpenSession(w, r, c)
	if err == nil {
		return nil
	}
	info.session.countRefused(err)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // the provider may have taken long
	return err
}

// Hijack implements http.Hijacker, for a handler that opens a WebSocket: what it sends over the connection counts as a
// response with status 101, to which nothing else is added.
func (w *responseRecorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.sessions.Add(1) // before http.Server.Shutdown no longer waits for the connection
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		w.sessions.Add(-1)
		return nil, nil, err
	}
	w.status, w.conn, w.takenOver = http.StatusSwitchingProtocols, conn, time.Since(w.info.start)
	return countedConn{conn, &w.bytes}, buffered, nil
}

// A countedConn is a connection that counts the bytes that are written.
type countedConn struct {
	net.Conn
	written *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// CloseWrite ends the connection so that the client still gets what was written.
func (c countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// runSession carries a session to its end, when net/http has let go of what it keeps for a request. r and response have
// only what observe needs.
func (s *server) runSession(run func(), r *http.Request, response *responseRecorder) {
	defer s.observe(r, response)
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(r, response, p)
		}
	}()
	run()
}

// sessionRefusal returns how the client of an open session is told of err, which is a refusal of its account.
func sessionRefusal(err error) (status int, code, message string) {
	response := responseTo(err)
	if errors.Is(err, ErrGroupDisabled) {
		response.body.code = "group_disabled"
	}
	return response.status, response.body.code, response.body.Error
}

// sessionText returns what the line of the access log says of a session.
func sessionText(info *requestInfo) string {
	o, charged := &info.outcome, int64(0)
	if info.session != nil {
		charged = info.session.charged.Load()
	}
	return fmt.Sprintf(" seconds=%.1f input=%d output=%d charged=%d", o.Session.Seconds(), o.Input, o.Output, charged)
}

// waitSessions waits until no session is open, or ctx is done, and returns how many still are.
func (s *server) waitSessions(ctx context.Context) int64 {
	for {
		open := s.sessions.Load()
		if open == 0 || ctx.Err() != nil {
			return open
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// unmeteredSentence says why there are no routes with which a client would go past the gateway.
const unmeteredSentence = "There is no such route: a session that does not go through the gateway, as with a client " +
	"secret, WebRTC or SIP, cannot be metered. Open a WebSocket to /v1/realtime instead"

// isUnmetered reports whether a path is that of a resource of OpenAI's Realtime API with which a client would talk to
// the provider past the gateway.
func isUnmetered(path string) bool {
	_, below, _ := strings.Cut(path, "/realtime/")
	resource, _, _ := strings.Cut(below, "/")
	return slices.Contains([]string{"client_secrets", "sessions", "transcription_sessions", "calls"}, resource)
}

// compact responds to a request that asks for its input in fewer tokens.
func (s *server) compact(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	return s.relay(w, r, info, &gateway.Call{Compact: true})
}

// storedQuery are the parameters that requests about a stored response may have beside stream. They change neither what
// these cost nor whose response is shown.
var storedQuery = []string{"include", "include[]", "after", "limit", "order", "api-version"}

// stored returns the handler of requests about a response that a provider stores, or about what is below it.
func (s *server) stored(resource string) step {
	return func(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
		info.outcome.Endpoint = noEndpoint
		query, err := storedQueryOf(r)
		if err != nil {
			return err
		}
		request, err := llmwire.ReadRequest(*info.format, []byte("{}"))
		if err != nil {
			return err
		}
		method := http.MethodGet // HEAD, too: its response is what net/http makes of that
		if r.Method == http.MethodDelete {
			method = http.MethodDelete
		}
		t := info.tenant
		info.memory = s.bodies.gateway.Claim(t.id, info.apiKey)
		info.place = s.gateway.Place(t.id, info.apiKey)
		return s.serve(w, r, info, &gateway.Call{Request: request, Stored: &gateway.StoredRequest{
			Method: method, ID: r.PathValue("responseId"), Resource: resource, Query: query,
			Endpoints: s.gateway.Usable(t.config.endpoints, t.id),
		}})
	}
}

// storedQueryOf returns the query with which a request about a stored response is forwarded. The error is a
// badRequestError. A response is never streamed again: only those made in the background need that, and they are
// refused.
func storedQueryOf(r *http.Request) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", badRequestError("Invalid query")
	}
	for name, values := range query {
		switch {
		case name == "stream" && !slices.ContainsFunc(values, func(value string) bool { return value != "false" }):
			delete(query, name)
		case name == "stream":
			return "", badRequestError("A stored response is not streamed: leave out stream")
		case !slices.Contains(storedQuery, name):
			return "", badRequestError("Query " + strconv.Quote(strict.Shorten(name)) + " is unknown")
		}
	}
	return query.Encode(), nil
}

// refuseWebSocket is the first step of GET /v1/responses. Nothing but HTTP is spoken there: clients that try a
// WebSocket first, as Codex does, use POST at once when they get 426.
func refuseWebSocket(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	isHandshake := len(r.Header["Sec-Websocket-Key"]) > 0 // nginx takes the header Upgrade out
	for _, line := range r.Header["Upgrade"] {
		isHandshake = isHandshake || strings.Contains(strings.ToLower(line), "websocket")
	}
	if !isHandshake {
		return nil
	}
	h := w.Header()
	h["Upgrade"], h["Connection"] = []string{"HTTP/1.1"}, []string{"Upgrade"} // RFC 9110, section 15.5.22
	return gateway.Error{Status: http.StatusUpgradeRequired, Message: "There is no WebSocket here: use POST"}
}

// listResponses responds to GET /v1/responses without a WebSocket: responses are not listed.
func listResponses(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	w.Header()["Allow"] = []string{"OPTIONS, POST"}
	return gateway.Error{Status: http.StatusMethodNotAllowed, Message: "Method not allowed"}
}

// isCodex reports whether a request for a response is one of Codex, which repeats each request that fails, unless the
// error is a 429 of the type insufficient_quota.
func isCodex(r *http.Request, info *requestInfo) bool {
	isResponse := info.format != nil && *info.format == llmwire.OpenAIResponses
	return isResponse && strings.HasPrefix(r.Header.Get("Originator"), "codex")
}

// writeQuotaError sends a 402 to Codex.
func writeQuotaError(w http.ResponseWriter, message string) {
	w.Header()["X-Should-Retry"] = []string{"false"}
	body := llmwire.OpenAIResponses.ErrorBody(http.StatusPaymentRequired, message)
	_ = writeBody(w, http.StatusTooManyRequests, append(body, '\n'))
}

package gateway

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// A provider of OpenAI's Responses API keeps responses, and lets everybody behind one of its keys fetch, delete and
// continue them. So it is remembered here whose they are.

const keepTimeout = 2 * time.Second // for remembering a response, before the end of it is sent

// A State is what is known of something that an endpoint keeps: a response, or an item of its output.
type State struct {
	ID            string
	Response      string // ID of the response that it is, or is an item of
	Endpoint      string // which keeps it: a digest of its name and URL, in base64
	Input, Output int64  // tokens that the response has used, with all that it went on from
}

// States remembers what endpoints keep, and whose it is. Each step is given up at its deadline.
type States interface {
	// Find returns the owner of what the account pays for, and what is known of each ID, at least one. Errors: ErrNotKept
	// if one of them is not that owner's; any other error if that is not known.
	Find(deadline time.Time, ids []string) (owner string, states []State, err error)
	// Keep remembers states for an owner, for ttl or longer. If it fails, they are nobody's.
	Keep(deadline time.Time, owner string, states []State, ttl time.Duration)
	// Forget forgets an ID of an owner.
	Forget(deadline time.Time, owner, id string)
}

// ErrNotKept means that an ID is not one of an owner's.
var ErrNotKept = errors.New("it is not known as the owner's")

// A CodedError is an Error with a code of its own, in formats whose errors have codes.
type CodedError struct {
	Status        int
	Code, Message string
}

// Error returns the message.
func (e CodedError) Error() string { return e.Message }

// A StoredRequest is what a request does with a response that an endpoint keeps.
type StoredRequest struct {
	Method    string    // GET or DELETE
	ID        string    // of the response
	Resource  string    // below the response, with a slash before it; "" is the response itself
	Query     string    // of the request, escaped
	Endpoints Endpoints // that may keep the response
}

// stateID returns the digest by which it is remembered that the endpoint keeps something. Nobody can find two endpoints
// with the same one: what a server of a tenant's own says to have kept would be fetched from the other one.
func (e *Endpoint) stateID() string {
	sum := sha256.Sum256(appendParts(nil, e.Name, e.rawURL))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
}

// keeping returns those of the endpoints that have a stateID: one or none of each kind.
func (all Endpoints) keeping(id string) Endpoints {
	return all.where(func(e *Endpoint) bool { return e.stateID() == id })
}

// keeperOf returns the stateID of the endpoint that keeps all states, and false if there is not one that does.
func keeperOf(states []State) (id string, ok bool) {
	for _, state := range states {
		if state.Endpoint != states[0].Endpoint {
			return "", false
		}
	}
	return states[0].Endpoint, true
}

// errNotKept refuses a request that refers to something that is not known as the account's own.
var errNotKept = CodedError{http.StatusNotFound, "previous_response_not_found",
	"The previous response, or an item that the input refers to, is not found: it is not one of this API key's " +
		"responses, was not stored, has expired, or is kept by another endpoint"}

// findStates finds what the request goes on from, which must be the account's own, and chooses the endpoint that keeps
// it. What the provider reads of it is input of the request: all that the previous response has used, and the output of
// each other response that the input refers to.
func (x *exchange) findStates() error {
	c, request := x.call, x.call.Request
	if !request.UsesState() || c.keeper != "" {
		return nil
	}
	ids := request.References
	if request.Previous != "" {
		ids = append([]string{request.Previous}, ids...)
	}
	_, states, err := c.States.Find(c.Deadline, ids)
	if errors.Is(err, ErrNotKept) {
		return errNotKept
	}
	if err != nil {
		return err
	}
	keeper, ok := keeperOf(states)
	if !ok {
		return errNotKept
	}
	c.keeper = keeper
	request.KeptTokens = keptTokens(request, states)
	request.HasAudio, request.HasImages = true, true // as far as is known
	if err := c.Choose(c.all); err != nil {
		x.gateway.NoteRefusal(c)
		return err
	}
	return nil
}

// keptTokens returns how many tokens the provider reads of what a request goes on from.
func keptTokens(request *llmwire.Request, states []State) (tokens int64) {
	counted := make(map[string]bool, len(states))
	for i, state := range states {
		if counted[state.Response] {
			continue
		}
		counted[state.Response] = true
		if i == 0 && request.Previous != "" {
			tokens += state.Input
		}
		tokens = min(tokens+state.Output, llmwire.MaxTokens)
	}
	return tokens
}

// leavesState reports whether e keeps the response to the request, and it is remembered whose that is.
func (x *exchange) leavesState(e *Endpoint) bool {
	c := x.call
	isKept := c.Request.Stored || c.Compact // whether the response to compact is kept is not documented
	return isKept && e.stateTTL > 0 && !c.isFree()
}

// isForOwner reports whether the response must not be served to others, or may be made of what only its owner may read.
func (x *exchange) isForOwner() bool {
	return x.call.Compact || x.call.Request.UsesState() || x.leavesState(x.call.endpoints[0])
}

// keepState remembers whose the response is, as far as it was read. Calls after the first do nothing. It takes
// keepTimeout at most.
func (x *exchange) keepState() {
	if x.stateKept || !x.leavesState(x.endpoint) {
		return
	}
	report := x.relay.outcome().report
	if !isStateID(report.ResponseID) || report.IsFailure() {
		return
	}
	x.stateKept = true
	request := x.call.Request
	used, _, exact := report.Used(request.N, request.EstimatedInput(x.endpoint.holding))
	if !exact { // the most it can be: a request that continues it holds all of it
		used.Input = max(used.Input, request.HeldInput(x.endpoint.holding))
		used.Output = max(used.Output, x.limitAt(x.endpoint)*x.outputs())
	}
	state := State{
		Response: report.ResponseID, Endpoint: x.endpoint.stateID(),
		Input: min(used.Input, llmwire.MaxTokens), Output: min(used.Output, llmwire.MaxTokens),
	}
	ids := append([]string{report.ResponseID}, report.ItemIDs...)
	if x.call.Compact { // its output repeats items of the input, whose IDs the client has chosen
		ids = ids[:1]
	}
	states := make([]State, 0, len(ids))
	for _, id := range ids {
		if state.ID = id; isStateID(id) {
			states = append(states, state)
		}
	}
	x.call.States.Keep(time.Now().Add(keepTimeout), x.hold.Owner, states, x.endpoint.stateTTL)
}

// showStored relays a request about a response that an endpoint keeps, which is free, and counts as one request of the
// rate limit.
func (x *exchange) showStored() error {
	stored := x.call.Stored
	if err := x.call.Account.Count(x.call.Deadline); err != nil {
		return err
	}
	owner, states, err := x.call.States.Find(x.call.Deadline, []string{stored.ID})
	if err == nil {
		x.call.endpoints = stored.Endpoints.speaking(x.call.Request.Format).keeping(states[0].Endpoint)
		if len(x.call.endpoints) == 0 {
			err = ErrNotKept
		}
	}
	if errors.Is(err, ErrNotKept) {
		return CodedError{http.StatusNotFound, "response_not_found",
			"The response " + strconv.Quote(strict.Shorten(stored.ID)) + " is not found among those of this API key"}
	}
	if err != nil {
		return err
	}
	return x.ask(func(response *http.Response) error {
		// A server that shows no responses says 404 to GET, too.
		isGone := response.StatusCode == http.StatusOK || response.StatusCode == http.StatusNotFound
		if isGone && stored.Method == http.MethodDelete {
			x.call.States.Forget(time.Now().Add(keepTimeout), owner, stored.ID)
		}
		return x.relayFree(response, func([]byte) bool { return true })
	})
}

// isStateID reports whether id can be that of a response or an item, and be a segment of a path as it is.
func isStateID(id string) bool {
	for i := range len(id) {
		if !strict.IsWord(id[i]) && strings.IndexByte(".:=+@~", id[i]) < 0 {
			return false
		}
	}
	return id != "" && id[0] != '.'
}

// path returns where below the endpoint's URL the request goes.
func (c *Call) path() string {
	switch {
	case c.Stored != nil:
		return "/" + c.Stored.ID + c.Stored.Resource // isStateID is true for it
	case c.CountTokens:
		return c.Request.Format.CountPath()
	case c.Compact:
		return "/compact"
	}
	return ""
}

// isFree reports whether the request costs nothing.
func (c *Call) isFree() bool { return c.CountTokens || c.Stored != nil }

// isBare reports whether the request is forwarded without what is added to one that generates a response: providers
// accept only members of the prompt.
func (c *Call) isBare() bool { return c.isFree() || c.Compact }

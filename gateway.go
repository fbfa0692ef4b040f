package main

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/gateway"
	"tollgate/internal/llmwire"
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
	c.Account, c.States, c.Outcome = a, tenantStates{s, t, info.apiKey}, &info.outcome
	c.Caching, c.Cache = t.config.caching, tenantCache{s, t.id}
	defer a.countFee()
	connlimit.Admit(r.Context()) // the gateway bounds what takes long
	err := s.gateway.Serve(w, r, c)
	if err != nil && responseTo(err).refusal == refusedBalance {
		s.metrics.refusedCharge(t.id, refusedBalance)
	}
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

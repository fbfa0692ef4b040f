package main

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tollgate/internal/gateway"
)

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

// readHops returns the IDs in the lines of a loopHeader, without what is no ID. ok is false if the lines are too long,
// or leave no room for one more.
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

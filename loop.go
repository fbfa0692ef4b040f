package main

import (
	"net/http"
	"slices"
	"strings"

	"tollgate/internal/gateway"
)

// loopHeader has the ID of each deployment that a request of the gateway has come through, separated by commas. An
// endpoint may be tollgate itself: without the header one request would go round until no connection is left.
const (
	loopHeader    = "Tollgate-Loop"
	maxHops       = 32
	maxLoopHeader = 2 << 10 // bytes
)

// refuseLoop is the step of routes whose requests are forwarded. It refuses a request that has come through this
// deployment before, or through too many, and sets info.hops. Errors: a 508; those of store.DeploymentID.
func (s *server) refuseLoop(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	own, err := s.deploymentID(info)
	if err != nil {
		return err
	}
	hops, ok := readHops(r.Header[loopHeader])
	if !ok || slices.Contains(hops, own) {
		w.Header().Set("Connection", "close") // the body is not read
		return gateway.Error{Status: http.StatusLoopDetected, Message: "The request has come through this service before"}
	}
	info.hops = strings.Join(append(hops, own), ", ")
	return nil
}

// readHops returns the IDs in the lines of a loopHeader. ok is false if they are too long, or leave no room for one
// more.
func readHops(lines []string) (hops []string, ok bool) {
	all := strings.Join(lines, ",")
	if len(all) > maxLoopHeader {
		return nil, false
	}
	for hop := range strings.SplitSeq(all, ",") {
		if hop = strings.TrimSpace(hop); hop != "" {
			hops = append(hops, hop)
		}
	}
	return hops, len(hops) < maxHops
}

// deploymentID returns the ID of this deployment, which Redis is asked for once.
func (s *server) deploymentID(info *requestInfo) (string, error) {
	if id := s.deployment.Load(); id != nil {
		return *id, nil
	}
	id, err := s.store.DeploymentID(info.deadline)
	if err == nil {
		s.deployment.Store(&id)
	}
	return id, err
}

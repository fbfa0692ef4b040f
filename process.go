package main

import (
	"crypto/rand"
	"os"

	"tollgate/internal/telemetry"
)

// checkTokens makes a random operator's token, which it logs, if none is set, and logs which tokens can be guessed.
func (s *settings) checkTokens(log *telemetry.Logger) {
	if len(s.server.adminTokens.hashes()) == 0 {
		token := rand.Text()
		_ = s.server.adminTokens.replace(token) // is a bearer token
		log.Infof("ADMIN_TOKEN is not set; this run's admin token is %s", token)
	}
	s.warnOfShortTokens(log)
}

func (s *settings) warnOfShortTokens(log *telemetry.Logger) {
	s.server.adminTokens.warnOfShort(log, "ADMIN_TOKEN")
	s.server.metricsTokens.warnOfShort(log, "METRICS_TOKEN")
}

// reloadOn has the files of settings read again at each of hangups, until stop is called.
func (s *settings) reloadOn(hangups <-chan os.Signal, log *telemetry.Logger) (stop func()) {
	stopped := make(chan struct{})
	go func() {
		for {
			select {
			case <-hangups:
				s.reload(log)
			case <-stopped:
				return
			}
		}
	}()
	return func() { close(stopped) }
}

// reload reads the files of settings again. What cannot be read keeps its value.
func (s *settings) reload(log *telemetry.Logger) {
	if len(s.reloadables) == 0 {
		log.Infof("SIGHUP: no setting is a file that could be read again")
	}
	for _, r := range s.reloadables {
		if err := r.load(); err != nil {
			log.Errorf("%s was not read again, and the old value stays: %v", r.setting, err)
			continue
		}
		log.Infof("%s was read again", r.setting)
	}
	s.warnOfShortTokens(log)
}

// spareFiles is how many open files are kept for Redis, the log and the like.
const spareFiles = 100

// limitConnections bounds the connections of clients and those to providers by the open files that the process may
// have. If these are too few for maxConnections, it lowers that, and logs it. A connection of a client may need another
// to a provider. openFiles is the limit of the system, 0 if it is not known.
func (s *settings) limitConnections(openFiles int64, log *telemetry.Logger) {
	if openFiles == 0 {
		return
	}
	if enough := 2*s.maxConnections + spareFiles; openFiles < enough {
		most := max((openFiles-spareFiles)/2, 1)
		log.Warnf("The process may have %d open files (ulimit -n), and %d connections need %d: at most %d are taken",
			openFiles, s.maxConnections, enough, most)
		s.setMaxConnections(most)
	}
	// The rest is for connections to providers without a client's: drains, and those that are idle, of two kinds.
	g := &s.server.gateway
	rest := openFiles - spareFiles - s.maxConnections - g.MaxWaiting
	g.MaxDrains = min(max(rest/2, 1), g.MaxDrains)
	g.MaxIdle = min(max(rest/4, 1), g.MaxIdle)
}

// setMaxConnections bounds the connections of clients, and with them what may keep one for long: charges must always
// find another.
func (s *settings) setMaxConnections(n int64) {
	s.maxConnections = n
	s.server.gateway.MaxWaiting = max(n/2, 1)
	s.server.gateway.MaxDrains, s.server.gateway.MaxIdle = maxDrains, maxIdle
}

const (
	maxDrains = 1024 // responses that are awaited or read at a time though their clients have gone
	maxIdle   = 1024 // idle connections to http:// providers, and to https:// ones
)

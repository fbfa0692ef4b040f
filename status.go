package main

import (
	"math"
	"net/http"
	"time"
)

// statusBody is the state of this process, and of the Redis that it uses.
type statusBody struct {
	Version     string              `json:"version"`
	Uptime      int64               `json:"uptime"` // seconds
	Redis       redisStatus         `json:"redis"`
	Connections connectionStatus    `json:"connections"` // of clients
	Streams     int64               `json:"streams"`
	Sessions    int64               `json:"sessions"`
	Drains      int64               `json:"drains"`
	Pools       map[string]poolSize `json:"pools"` // by the label pool of the metrics
}

type redisStatus struct {
	Topology string       `json:"topology"`
	Nodes    []nodeStatus `json:"nodes"`
}

type nodeStatus struct {
	Address   string  `json:"address"`
	Role      string  `json:"role"`
	Up        bool    `json:"up"`
	LatencyMS float64 `json:"latencyMs"`
}

type connectionStatus struct {
	Open int `json:"open"`
	Max  int `json:"max"`
}

type poolSize struct {
	Used int64 `json:"used"`
	Max  int64 `json:"max"`
}

// showStatus shows the state of this process and of its Redis. It is also there while Redis does not respond.
func (s *server) showStatus(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	body := statusBody{
		Version: buildVersion(), Uptime: int64(time.Since(s.started).Seconds()), Redis: s.redisStatus(),
		Streams: s.gateway.Streams(), Sessions: s.sessions.Load(), Pools: make(map[string]poolSize),
	}
	body.Connections.Open, body.Connections.Max = s.connections()
	pools := s.pools()
	body.Drains = pools["drains"].Used
	for name, pool := range pools {
		body.Pools[name] = poolSize{pool.Used, pool.Size}
	}
	return writeJSON(w, http.StatusOK, body)
}

// redisStatus asks Redis for its state, which takes less than a second.
func (s *server) redisStatus() redisStatus {
	topology, nodes := s.store.Nodes()
	status := redisStatus{topology, make([]nodeStatus, len(nodes))}
	for i, n := range nodes {
		milliseconds := math.Round(n.Latency.Seconds()*1e5) / 100
		status.Nodes[i] = nodeStatus{n.Address, n.Role, n.Up, milliseconds}
	}
	return status
}

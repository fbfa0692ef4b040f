package main

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"fmt"
	"math"
	"net/http"
	"path"
	"slices"
	"strconv"
	"time"
)

// pageFiles is the admin page: HTML, modules of JavaScript and a style sheet, as they are.
//
//go:embed page
var pageFiles embed.FS

// pageIndex is the document of the page. Its files are served below /admin/page/.
const pageIndex = "index.html"

// pagePolicy lets the page run its own scripts and call its own origin, and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// adminPage is the files of the admin page by name.
type adminPage map[string]pageFile

type pageFile struct {
	content     []byte
	contentType string
	etag        string // without its quotes
}

// newAdminPage reads the page from the binary.
func newAdminPage() (adminPage, error) {
	types := map[string]string{".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
	entries, err := pageFiles.ReadDir("page")
	if err != nil {
		return nil, err
	}
	page := make(adminPage)
	for _, entry := range entries {
		contentType, ok := types[path.Ext(entry.Name())]
		if !ok {
			return nil, fmt.Errorf("page/%s has no content type", entry.Name())
		}
		content, err := pageFiles.ReadFile("page/" + entry.Name())
		if err != nil {
			return nil, err
		}
		etag := fmt.Sprintf("%.8x", sha256.Sum256(content))
		page[entry.Name()] = pageFile{content, contentType + "; charset=utf-8", etag}
	}
	return page, nil
}

// routes returns the routes of the page. It needs no credential: it asks for one, and sends it to the admin routes.
// ServeMux would refuse /admin/{file...} beside the routes of tenants.
func (p adminPage) routes() []route {
	open := access{timeout: publicTimeout, steps: []step{refuseBody}}
	return []route{
		{"GET /admin", open, p.showFile},
		{"GET /admin/{$}", open, p.showFile},
		{"GET /admin/page/{file}", open, p.showFile},
	}
}

// showFile sends the file that the path names, or the document, or 304 if the client has it. The client must ask each
// time, so that it never runs the files of two versions together. Files are sent whole, whatever Range says.
func (p adminPage) showFile(w http.ResponseWriter, r *http.Request, _ *requestInfo) error {
	file, ok := p[cmp.Or(r.PathValue("file"), pageIndex)]
	if !ok {
		return errNotFound
	}
	known, all, _ := entityTags(r, "If-None-Match") // one that is malformed matches nothing
	h := w.Header()
	h.Set("Content-Type", file.contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	setETag(h, file.etag)
	if all || slices.Contains(known, file.etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Length", strconv.Itoa(len(file.content)))
	_, _ = w.Write(file.content) // a client that has gone away is not an error of ours
	return nil
}

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

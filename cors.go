package main

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/strict"
)

// Cross-origin resource sharing (https://fetch.spec.whatwg.org/#http-cors-protocol) for the routes that a page in a
// browser may call, if the tenant's config allows its origin.

// exposedHeaders are those of responses that such pages may read, beside those that every page may. They are never
// changed.
var exposedHeaders = []string{"RateLimit, RateLimit-Policy, X-RateLimit-Limit-Requests, " +
	"X-RateLimit-Remaining-Requests, Retry-After, Retry-After-Ms, X-Should-Retry, Idempotent-Replayed, X-Request-Id, " +
	"Request-Id, X-Provider-Request-Id, X-Tokens-Charged, X-Tokens-Left, X-Tokens-Held, X-Max-Tokens, X-Cache, Age, " +
	"OpenAI-Processing-Ms, OpenAI-Version, OpenAI-Model"}

// forBrowsers returns the access of a route that pages of other origins may call.
func (s *server) forBrowsers(timeout time.Duration, steps ...step) access {
	all := slices.Concat([]step{s.allowOrigin}, steps, []step{s.varyByOrigin})
	return access{timeout: timeout, steps: all, browser: true}
}

// allowOrigin is the first step of routes for browsers: it lets pages of the origins that the tenant allows read the
// response, whatever it will be. It refuses nothing: that pages of other origins cannot read a response is up to
// browsers.
func (s *server) allowOrigin(w http.ResponseWriter, r *http.Request, info *requestInfo) error {
	if len(r.Header["Origin"]) > 0 {
		s.setOrigin(w.Header(), r, info, pathTenantID(r))
	}
	return nil
}

// varyByOrigin marks responses as dependent on the origin if the tenant allows any: those to requests without one, too.
func (s *server) varyByOrigin(w http.ResponseWriter, _ *http.Request, info *requestInfo) error {
	if t := info.tenant; t != nil && t.config != nil && t.config.origins != nil {
		w.Header()["Vary"] = []string{"Origin"}
	}
	return nil
}

// setOrigin sets the headers that a response to r's origin has, and reports whether the tenant allows it. If the tenant
// cannot be loaded there are none: a later step says why.
func (s *server) setOrigin(h http.Header, r *http.Request, info *requestInfo, tenantID string) bool {
	if !validTenantID(tenantID) {
		return false
	}
	t, err := s.store.Tenant(info.deadline, tenantID)
	if err != nil || t.config.origins == nil {
		return false
	}
	h["Vary"] = []string{"Origin"}
	origin := r.Header["Origin"]
	if len(origin) != 1 {
		return false
	}
	allowed := t.config.allowedOrigin(origin[0])
	if allowed == "" {
		return false
	}
	h["Access-Control-Allow-Origin"] = []string{allowed}
	h["Access-Control-Expose-Headers"] = exposedHeaders
	return true
}

// isPreflight reports whether a request with that method asks, for a browser, whether another may be sent.
func isPreflight(r *http.Request, method string) bool {
	asks := len(r.Header["Origin"]) > 0 && len(r.Header["Access-Control-Request-Method"]) > 0
	return asks && method == http.MethodOptions
}

// respondToPreflight responds to a preflight for a route that pages of other origins may call, and reports whether r is
// one. The header Allow has the methods of the path. To a request with another method it lets pages read the 405.
// browser has the patterns of such routes, all of which are in mux.
func (s *server) respondToPreflight(w http.ResponseWriter, r *http.Request, mux *http.ServeMux,
	browser map[string]bool) bool {
	h, info := w.Header(), requestInfoOf(w)
	methods := h.Get("Allow")
	routed := *r
	routed.Method, _, _ = strings.Cut(methods, ",")
	_, pattern := mux.Handler(&routed)
	if !browser[pattern] || len(r.Header["Origin"]) == 0 {
		return false
	}
	tenantID := defaultTenant
	if strings.Contains(pattern, " /{tenantId}/") {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
		tenantID, _ = url.PathUnescape(first)
	}
	info.deadline = info.start.Add(publicTimeout)
	if !s.setOrigin(h, r, info, tenantID) || !isPreflight(r, r.Method) {
		return false
	}
	for _, name := range []string{"Allow", "Content-Type", "X-Content-Type-Options"} {
		h.Del(name) // of the 405
	}
	writePreflight(w, r, methods)
	return true
}

// respondToLostPreflight lets pages of allowed origins read the 404 of a path that would belong to the gateway if there
// were such a route. It responds to r, and reports true, if r is such a page's preflight: the 404 comes afterwards.
func (s *server) respondToLostPreflight(w http.ResponseWriter, r *http.Request) bool {
	if len(r.Header["Origin"]) == 0 {
		return false
	}
	tenantID, _, _ := strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
	if tenantID == "v1" {
		tenantID = defaultTenant
	}
	info := requestInfoOf(w)
	info.deadline = info.start.Add(publicTimeout)
	if !s.setOrigin(w.Header(), r, info, tenantID) || !isPreflight(r, r.Method) {
		return false
	}
	for _, name := range []string{"Content-Type", "X-Content-Type-Options"} {
		w.Header().Del(name) // of ServeMux's 404
	}
	writePreflight(w, r, verifyMethods)
	return true
}

// writePreflight sends the response to a preflight of an allowed origin, which may use these methods.
func writePreflight(w http.ResponseWriter, r *http.Request, methods string) {
	h := w.Header()
	h.Del("Access-Control-Expose-Headers")
	h.Set("Access-Control-Allow-Methods", methods)
	if asked := r.Header["Access-Control-Request-Headers"]; len(asked) > 0 {
		h.Set("Access-Control-Allow-Headers", strings.Join(asked, ", "))
	}
	h.Set("Access-Control-Max-Age", "600") // seconds for which the browser may remember this
	w.WriteHeader(http.StatusNoContent)
}

// verifyMethods are those with which a page may call verify.
const verifyMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"

// isPagesPreflight reports whether a request for verify is the preflight of an allowed page that calls verify itself.
// A proxy, which describes its client's request in headers, asks for the service behind it: then the preflight is not
// such a one, nor is it with preflight=pass. allowOrigin has set the headers of w.
func isPagesPreflight(w http.ResponseWriter, r *http.Request) bool {
	if !isPreflight(r, r.Method) || len(w.Header()["Access-Control-Allow-Origin"]) == 0 || r.URL.Query().Has("preflight") {
		return false
	}
	for _, name := range []string{
		"X-Forwarded-Method", "X-Forwarded-Uri", "X-Original-Method", "X-Original-Uri", "X-Original-Url",
	} {
		if len(r.Header[name]) > 0 {
			return false
		}
	}
	return true
}

// normalizeOrigin returns an origin as browsers spell it: in lower case and without the default port. ok is false if it
// is not a scheme http or https, a host and perhaps a port, and nothing else; * is itself.
func normalizeOrigin(origin string) (normalized string, ok bool) {
	if origin == "*" {
		return origin, true
	}
	origin = strings.ToLower(origin)
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || origin != u.Scheme+"://"+u.Host {
		return "", false
	}
	port := u.Port()
	if !validHost(u.Hostname()) || strings.HasSuffix(u.Host, ":") || port != "" && !validPort(port) {
		return "", false
	}
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		return strings.TrimSuffix(origin, ":"+port), true
	}
	return origin, true
}

// validHost reports whether host is an IP address or a name in lower-case ASCII.
func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	for i := range len(host) {
		if !strict.IsWord(host[i]) && host[i] != '.' {
			return false
		}
	}
	return host != ""
}

// validPort reports whether port is a decimal number from 1 to 65535.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// allowedOrigin returns the value of Access-Control-Allow-Origin for an origin, "" if it is not allowed.
func (c *tenantConfig) allowedOrigin(origin string) string {
	switch {
	case slices.Contains(c.origins, "*"):
		return "*"
	case slices.Contains(c.origins, strings.ToLower(origin)):
		return origin
	}
	return ""
}

// Package cors lets pages of other origins call a service and read its responses, if these origins are allowed
// (https://fetch.spec.whatwg.org/#http-cors-protocol).
package cors

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/strict"
)

// Origins are those whose pages may read responses, as browsers spell them, or * alone for all. They are nil if nobody
// has said anything about origins: then responses have no headers of CORS.
type Origins []string

// Read is the rule for an array of origins.
func (o *Origins) Read(wrong *strict.Problems, value []byte) bool {
	*o = make(Origins, 0, 1)
	ok := strict.ArrayOf(func(wrong *strict.Problems, value []byte) bool {
		origin, _ := strict.Text(value)
		normalized, ok := normalizeOrigin(origin)
		if !ok {
			return wrong.Add("must be an origin such as https://app.example.com, or the only one *")
		}
		*o = append(*o, normalized)
		return true
	})(wrong, value)
	if len(*o) > 1 && slices.Contains(*o, "*") {
		return wrong.Add("must have * as its only entry, or not at all")
	}
	return ok
}

// SetVary marks a response as dependent on the origin of its request, even if the request has none.
func (o Origins) SetVary(h http.Header) {
	if o != nil {
		h["Vary"] = []string{"Origin"}
	}
}

// Allow sets the headers of the response to r, and reports whether a page of r's origin may read it. exposed is the
// value of Access-Control-Expose-Headers, which h shares: the headers that the page may read beside those that every
// page may.
func (o Origins) Allow(h http.Header, r *http.Request, exposed []string) bool {
	o.SetVary(h)
	origin := r.Header["Origin"]
	if len(origin) != 1 {
		return false
	}
	allowed := o.allowed(origin[0])
	if allowed == "" {
		return false
	}
	h["Access-Control-Allow-Origin"] = []string{allowed}
	h["Access-Control-Expose-Headers"] = exposed
	return true
}

// Refuse reports whether r comes from a page whose origin is not allowed, though somebody has said which are. It is for
// requests to which browsers do not apply CORS.
func (o Origins) Refuse(r *http.Request) bool {
	origin := r.Header["Origin"]
	return o != nil && len(origin) > 0 && (len(origin) > 1 || o.allowed(origin[0]) == "")
}

// allowed returns the value of Access-Control-Allow-Origin for an origin, "" if it is not allowed.
func (o Origins) allowed(origin string) string {
	switch {
	case slices.Contains(o, "*"):
		return "*"
	case slices.Contains(o, strings.ToLower(origin)):
		return origin
	}
	return ""
}

// IsPreflight reports whether a request with that method asks, for a browser, whether another may be sent.
func IsPreflight(r *http.Request, method string) bool {
	asks := len(r.Header["Origin"]) > 0 && len(r.Header["Access-Control-Request-Method"]) > 0
	return asks && method == http.MethodOptions
}

// WritePreflight sends the response to a preflight, r, of an origin for which Allow has reported true. Its pages may
// use these methods, which are separated by commas, and all headers that it asks for. The headers that http.ServeMux
// has set for a 404 or 405 are removed.
func WritePreflight(w http.ResponseWriter, r *http.Request, methods string) {
	h := w.Header()
	for _, name := range []string{"Access-Control-Expose-Headers", "Allow", "Content-Type", "X-Content-Type-Options"} {
		h.Del(name)
	}
	h.Set("Access-Control-Allow-Methods", methods)
	if asked := r.Header["Access-Control-Request-Headers"]; len(asked) > 0 {
		h.Set("Access-Control-Allow-Headers", strings.Join(asked, ", "))
	}
	h.Set("Access-Control-Max-Age", "600") // seconds for which the browser may remember this
	w.WriteHeader(http.StatusNoContent)
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

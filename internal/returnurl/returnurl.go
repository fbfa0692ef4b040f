// Package returnurl says whether a user may be sent to a URL that somebody has asked for: to an origin that is trusted,
// and there below a path. Open redirects begin where that is decided by one reading of the URL and browsers have
// another, so what is not plain is refused.
package returnurl

import (
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/strict"
)

const maxBytes = 5000 // of a URL, which is more than browsers and servers agree on

// A Base is a URL below which users may be sent.
type Base struct{ place place }

// Bases are those of somebody.
type Bases []Base

// ParseBase returns a base. It must be an absolute https URL, or http for localhost, with a path, and without userinfo,
// query, fragment and dot segments. A path that does not end in a slash is that of a page or a directory: /app has /app
// and /app/x below it, but not /apple.
func ParseBase(text string) (base Base, ok bool) {
	where, u, ok := placeOf(text)
	if !ok || strings.ContainsAny(text, "?#") || where.path != u.Path || !isHost(u) {
		return Base{}, false
	}
	isLocal := slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, strings.ToLower(u.Hostname()))
	return Base{where}, u.Scheme == "https" || isLocal
}

// isHost reports whether a URL has a name in ASCII or an IP address, and a port from 1 to 65535 or none.
func isHost(u *url.URL) bool {
	isOther := func(c byte) bool { return c != '.' && !strict.IsWord(c) }
	ip, err := netip.ParseAddr(u.Hostname())
	if err == nil && ip.Zone() != "" || err != nil && slices.ContainsFunc([]byte(u.Hostname()), isOther) {
		return false
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return u.Port() == "" || err == nil && port > 0
}

// Bytes returns about how much memory the bases take.
func (b Bases) Bytes() (size int) {
	for _, base := range b {
		size += 32 + len(base.place.origin) + len(base.place.path)
	}
	return size
}

// Allow reports whether a URL is one of the bases or below one: it has the scheme, host and port, and its path, without
// dot segments, begins with the base's. Query and fragment may be any.
func (b Bases) Allow(text string) bool {
	where, _, ok := placeOf(text)
	return ok && slices.ContainsFunc(b, func(base Base) bool { return where.isBelow(base.place) })
}

// A place is what of a URL is compared: the origin as browsers spell it, and the path as they send it, but decoded.
type place struct{ origin, path string }

// placeOf returns the place of an absolute http or https URL. It refuses userinfo, and what browsers read in ways of
// their own: backslashes, control characters, spaces, and other than ASCII.
func placeOf(text string) (where place, u *url.URL, ok bool) {
	isStrange := func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' }
	if len(text) > maxBytes || strings.ContainsFunc(text, isStrange) {
		return place{}, nil, false
	}
	u, err := url.Parse(text)
	if err != nil || defaultPorts[u.Scheme] == "" || u.User != nil || u.Hostname() == "" {
		return place{}, nil, false
	}
	origin := strings.ToLower(u.Scheme + "://" + u.Host)
	if port := u.Port(); port == "" || port == defaultPorts[u.Scheme] {
		origin = strings.TrimSuffix(origin, ":"+port)
	}
	cleaned, ok := cleanPath(u)
	return place{origin, cleaned}, u, ok
}

// defaultPorts has the ports that browsers leave out, by scheme. It is never changed.
var defaultPorts = map[string]string{"https": "443", "http": "80"}

// cleanPath returns the path of a URL, decoded, with its dot segments resolved, encoded or not, as browsers do
// (https://url.spec.whatwg.org/#path-state). It refuses encoded slashes and empty segments, about which servers
// disagree.
func cleanPath(u *url.URL) (cleaned string, ok bool) {
	isStrange := func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }
	hidesSlash := strings.Contains(strings.ToLower(u.EscapedPath()), "%2f")
	if hidesSlash || strings.Contains(u.Path, "//") || strings.ContainsFunc(u.Path, isStrange) {
		return "", false
	}
	cleaned = path.Clean("/" + u.Path)
	switch last := u.Path[strings.LastIndexByte(u.Path, '/')+1:]; last {
	case "", ".", "..":
		cleaned = strings.TrimSuffix(cleaned, "/") + "/"
	}
	return cleaned, true
}

// isBelow reports whether a place has base's origin, and base's path or one below that.
func (p place) isBelow(base place) bool {
	rest, ok := strings.CutPrefix(p.path, base.path)
	return ok && p.origin == base.origin && (rest == "" || rest[0] == '/' || strings.HasSuffix(base.path, "/"))
}

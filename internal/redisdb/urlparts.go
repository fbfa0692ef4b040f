package redisdb

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// urlParts is a URL of Redis in pieces: url.Parse does not understand several hosts, and its errors quote what may be a
// password.
type urlParts struct {
	scheme string // in lower case, one of urlSchemes
	user   string // with the @ at its end
	hosts  []string
	rest   string // from the first /, ? or # on
}

// splitURL takes a URL apart. The error says what keeps it from being one.
func splitURL(s string) (parts urlParts, err error) {
	if parts.scheme, err = splitScheme(s); err != nil {
		return parts, err
	}
	rest := strings.TrimPrefix(s[len(parts.scheme)+len(":"):], "//")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	begin := strings.LastIndexByte(rest[:end], '@') + 1
	parts.user, parts.rest = rest[:begin], rest[end:]
	parts.hosts = strings.Split(rest[begin:end], ",")
	unix, hasHost := parts.scheme == "unix", parts.hosts[0] != ""
	switch {
	case strings.Contains(parts.rest, "@") && (!unix || hasHost):
		return parts, errors.New("has an @ behind a /, ? or #: in a password write these as %40, %2F, %3F and %23")
	case unix && (hasHost || !strings.HasPrefix(parts.rest, "/")):
		return parts, errors.New("must have three slashes before a socket's path: unix:///path/redis.sock")
	}
	return parts, nil
}

// splitScheme returns the scheme of a URL, in lower case. The error says what is wrong with the URL as a whole, or with
// what follows the scheme at once.
func splitScheme(s string) (string, error) {
	scheme, rest, colon := strings.Cut(s, ":")
	scheme = strings.ToLower(scheme)
	r, known := urlSchemes[scheme]
	slashes := len(rest) - len(strings.TrimLeft(rest, "/"))
	switch {
	case strings.Trim(s, "\"'`“”‘’") != s:
		return "", errors.New("has quotes around it: leave them out")
	case !known || !colon:
		return "", errors.New("must begin with redis://, rediss:// (TLS), unix://, " +
			"redis-sentinel://, rediss-sentinel://, redis-cluster:// or rediss-cluster://")
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", errors.New("has a line break or another control character in it")
	case r.network == "unix":
	case slashes < 2:
		return "", fmt.Errorf("lacks slashes: two must follow the colon, as in %s://", scheme)
	case slashes > 2 && isHost(r.topology, rest[slashes:]):
		return "", fmt.Errorf("has more than two slashes behind the colon: write %s://<host>", scheme)
	}
	return scheme, nil
}

// isHost reports whether what follows three slashes is surely no path, but a host.
func isHost(t topology, s string) bool {
	return t == singleServer && !database.MatchString(s) || strings.ContainsAny(s, ":,")
}

// withoutHosts returns the URL as url.Parse understands it.
func (p urlParts) withoutHosts() string { return p.scheme + "://" + p.user + p.rest }

// setHosts sets where the servers are.
func (r *URL) setHosts(hosts []string) error {
	if r.network == "unix" {
		return nil
	}
	port := "6379"
	if r.topology == sentinelMaster {
		port = "26379"
	}
	for _, host := range hosts {
		if len(hosts) > 1 && (host == "" || host[0] == ':') {
			return errors.New("has a comma without a host before or after it")
		}
		address, err := parseHost(host, port)
		if err != nil {
			return err
		}
		r.seeds = append(r.seeds, address)
	}
	if r.topology == singleServer {
		r.address, r.seeds = r.seeds[0], nil
	}
	return nil
}

// parseHost returns host, which may lack its port or even its name, as host:port.
func parseHost(host, defaultPort string) (address string, err error) {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i+1:]
	}
	u, err := url.Parse("redis://" + name)
	n, portErr := strconv.ParseUint(cmp.Or(port, defaultPort), 10, 16)
	switch {
	case strings.ContainsAny(host, "[]") || strings.Contains(name, ":"):
		if err != nil || !strings.HasPrefix(name, "[") || !strings.HasSuffix(name, "]") {
			return "", errors.New("has a host that is neither a name nor an IP address: an IPv6 address needs brackets, " +
				"as in [::1]:6379")
		}
	case err != nil:
		return "", errors.New("has a host that is neither a name nor an IP address")
	}
	if portErr != nil || n == 0 {
		return "", errors.New("has a port that is not a number from 1 to 65535")
	}
	return net.JoinHostPort(cmp.Or(u.Hostname(), "localhost"), cmp.Or(port, defaultPort)), nil
}

var (
	database  = regexp.MustCompile(`^[0-9]{0,5}(\?|$)`)
	plainName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,40}$`) // of a parameter or a master: surely no password
)

// checkQuery returns an error that says what to write instead of the parameters that other clients have in their URLs.
func (r *URL) checkQuery(query url.Values) error {
	if len(query) == 0 {
		return nil
	}
	name := slices.Min(slices.Collect(maps.Keys(query)))
	value := query.Get(name)
	if value == "" || !plainName.MatchString(name) {
		return errors.New("has an unknown query (is a ? in its password written as %3F?)")
	}
	return fmt.Errorf("has an unknown parameter %q: %s", name, r.insteadOf(strings.ToLower(name), value))
}

// insteadOf returns what to write instead of a parameter.
func (r *URL) insteadOf(name, value string) string {
	switch {
	case strings.HasPrefix(name, "ssl") || strings.HasPrefix(name, "tls") || strings.Contains(name, "verify"):
		return "leave it out; TLS (rediss://) is always verified, REDIS_CA_FILE names a CA of your own, " +
			"REDIS_CERT_FILE and REDIS_KEY_FILE a client certificate"
	case name == "db" || name == "database":
		return r.databaseInstead(value)
	case strings.Contains(name, "master") || name == "service_name":
		if !plainName.MatchString(value) {
			value = "<name of the master>"
		}
		return fmt.Sprintf("write it behind the hosts: %s://<host>:<port>/%s", schemeOf(sentinelMaster, r.tls), value)
	case strings.Contains(name, "user") || strings.Contains(name, "pass"):
		return "write it before the host: <user>:<password>@<host>"
	}
	return "leave it out"
}

// databaseInstead returns where to write the number of the database.
func (r *URL) databaseInstead(value string) string {
	if value == "" || !database.MatchString(value) {
		value = "<number>"
	}
	switch {
	case r.topology == clusterServers:
		return "leave it out; a Redis Cluster has only one database"
	case r.topology == sentinelMaster:
		return "write it behind the name of the master: /<name>/" + value
	case r.network == "unix":
		return "write ?db=" + value
	}
	return "write it behind the host: /" + value
}

// schemeOf returns the scheme of a topology, with or without TLS.
func schemeOf(t topology, tls bool) string {
	for name, scheme := range urlSchemes {
		if scheme.topology == t && scheme.tls == tls && scheme.network == "tcp" {
			return name
		}
	}
	return "" // not reached
}

// checkFragment returns an error if there is a fragment, in which other clients have the name of the master.
func (r *URL) checkFragment(fragment, path string) error {
	switch {
	case fragment == "":
		return nil
	case r.topology == sentinelMaster && path == "":
		if !plainName.MatchString(fragment) {
			fragment = "<name of the master>"
		}
		return fmt.Errorf("has a fragment: write the name of the master after a slash: /%s", fragment)
	}
	return errors.New("has a fragment: write a # in its password as %23")
}

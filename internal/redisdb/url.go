package redisdb

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	poolWriteTimeout  = 350 * time.Millisecond // a write blocks only if Redis does not read
	keepAliveInterval = 15 * time.Second       // of TCP, which finds an idle connection whose peer is gone
)

// topology says how many servers share the keys, and how they are found.
type topology int

const (
	singleServer   topology = iota
	sentinelMaster          // the master that Sentinels name
	clusterServers          // the masters of a Redis Cluster, each with some of the slots
)

// URL says where Redis is, in which topology, and how to log in there.
type URL struct {
	topology           topology
	network, address   string   // of the one server
	seeds              []string // host:port of the Sentinels, or of nodes of the cluster
	master             string   // the name that the Sentinels know
	tls                bool
	username, password string
	db                 int
	certificates       *certificates // nil: the system's, and none of the client's

	sentinelUsername, sentinelPassword string
}

// urlSchemes has the schemes that a URL may have.
var urlSchemes = map[string]URL{
	"redis":           {network: "tcp"},
	"rediss":          {network: "tcp", tls: true},
	"unix":            {network: "unix"},
	"redis-sentinel":  {network: "tcp", topology: sentinelMaster},
	"rediss-sentinel": {network: "tcp", topology: sentinelMaster, tls: true},
	"redis-cluster":   {network: "tcp", topology: clusterServers},
	"rediss-cluster":  {network: "tcp", topology: clusterServers, tls: true},
}

// ParseURL parses
//
//	redis://[[user]:password@]host[:port][/db], and rediss:// for TLS
//	unix://[[user]:password@]/path/redis.sock[?db=n]
//	redis-sentinel://[[user]:password@]host[:port][,host[:port]]…/<master name>[/db], and rediss-sentinel://
//	redis-cluster://[[user]:password@]host[:port][,host[:port]]…, and rediss-cluster://
//
// White space around it does not count. The errors quote nothing that may be part of a password.
func ParseURL(s string) (*URL, error) {
	s = strings.TrimSpace(s)
	parts, err := splitURL(s)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(parts.withoutHosts())
	if err != nil {
		return nil, errors.New("is not a valid URL (are special characters in its password percent-encoded?)")
	}
	scheme := urlSchemes[parts.scheme]
	r := &scheme
	r.username = u.User.Username()
	r.password, _ = u.User.Password()
	switch {
	case r.username != "" && r.password == "":
		return nil, errors.New("has a user but no password")
	case r.topology == singleServer && len(parts.hosts) > 1:
		return nil, errors.New("has several hosts: use redis-cluster:// for a Redis Cluster, redis-sentinel:// for Sentinels")
	}
	path := strings.TrimPrefix(u.Path, "/")
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("has a query that is not name=value")
	}
	if r.network == "unix" {
		r.address, path = u.Path, query.Get("db")
		query.Del("db")
	}
	err = cmp.Or(r.setHosts(parts.hosts), r.checkQuery(query), r.checkFragment(u.Fragment, path), r.setPath(path))
	if err != nil {
		return nil, err
	}
	return r, nil
}

// setPath sets what follows the hosts: the number of the database and, before it, the name of the Sentinels' master.
func (r *URL) setPath(path string) (err error) {
	db := path
	switch r.topology {
	case sentinelMaster:
		r.master, db, _ = strings.Cut(path, "/")
		if r.master == "" {
			return errors.New("names no master: redis-sentinel://<host>:<port>/<name of the master>")
		}
	case clusterServers:
		if path != "" {
			return errors.New("has a database: a Redis Cluster has only one")
		}
	}
	if db == "" {
		return nil
	}
	if r.db, err = strconv.Atoi(db); err != nil || r.db < 0 {
		return errors.New("has a database number that is not a whole number ≥ 0")
	}
	return nil
}

// SetSentinelUser sets what the Sentinels ask for: a password, and a user unless that is "". White space around them
// does not count. It has no effect if r is nil or names no Sentinels. A user without a password is an error. It must be
// called before Open.
func (r *URL) SetSentinelUser(username, password string) error {
	if r == nil || r.topology != sentinelMaster {
		return nil
	}
	username, password = strings.TrimSpace(username), strings.TrimSpace(password)
	r.sentinelUsername, r.sentinelPassword = username, password
	if username != "" && password == "" {
		return errors.New("there is no SENTINEL_PASSWORD")
	}
	return nil
}

// dial connects to the server at address, logs in and selects the database. Each of these steps, and each read later,
// may take timeout. The TLS handshake is part of connecting.
func (r *URL) dial(ctx context.Context, address string, timeout time.Duration,
	more ...redis.DialOption) (redis.Conn, error) {
	connect := func(serverName string) (redis.Conn, error) {
		tcp := &net.Dialer{Timeout: timeout, KeepAlive: keepAliveInterval}
		dial := tcp.DialContext
		if r.tls { // not redigo's own, which ignores the context during the handshake
			dial = (&tls.Dialer{NetDialer: tcp, Config: r.tlsConfig(serverName)}).DialContext
		}
		return redis.DialContext(ctx, r.network, address, append([]redis.DialOption{
			redis.DialContextFunc(dial), redis.DialReadTimeout(timeout), redis.DialWriteTimeout(poolWriteTimeout),
			redis.DialUsername(r.username), redis.DialPassword(r.password), redis.DialDatabase(r.db),
		}, more...)...)
	}
	c, err := connect("")
	if _, otherName := errors.AsType[x509.HostnameError](err); otherName {
		// Some clusters announce IP addresses, but their certificate is that of the name under which all are reached.
		if name := r.seedName(); name != "" && isIP(address) {
			return connect(name)
		}
	}
	return c, err
}

// seedName returns the first seed's host, if it is a name and not an IP address, else "".
func (r *URL) seedName() string {
	if len(r.seeds) == 0 || isIP(r.seeds[0]) {
		return ""
	}
	host, _, _ := net.SplitHostPort(r.seeds[0])
	return host
}

func isIP(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}

// HasPassword reports whether the URL has a password.
func (r *URL) HasPassword() bool { return r.password != "" }

// Redact returns text with the passwords of the URL and of the Sentinels replaced by xxxxx. An error of Open may quote
// them.
func (r *URL) Redact(text string) string {
	for _, secret := range []string{r.password, r.sentinelPassword} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "xxxxx")
		}
	}
	return text
}

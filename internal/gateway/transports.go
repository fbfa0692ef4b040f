package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"tollgate/internal/plainhttp"
)

const (
	dialTimeout       = 5 * time.Second
	maxProviderHeader = 64 << 10
	maxIdleOfProvider = 256              // connections that are kept
	idleOfProvider    = 90 * time.Second // of TLS: a new connection takes several round trips
	staleWithin       = 5 * time.Second  // of a request; a connection that breaks later was not idle
	pingSilentAfter   = 15 * time.Second // on HTTP/2
	pingTimeout       = 5 * time.Second
	providerBuffer    = 2 << 10 // of each direction, for as long as a stream may be silent
)

// errDenied means that the operator has forbidden to connect to an address.
var errDenied = errors.New("the address is denied")

// transports carry requests to endpoints.
type transports struct {
	small  *plainhttp.Transport // to http:// endpoints; it leaves to plain what is not small
	plain  *http.Transport      // to the same, whose servers soon close what is idle
	secure *http.Transport      // to https:// ones
	fresh  *http.Transport      // each on a connection of its own
}

func newTransports(options Options) *transports {
	c := &transports{secure: newTransport(options.Deny, options.HeaderTimeout)}
	c.secure.MaxIdleConns = int(options.MaxIdle)
	c.plain, c.fresh = c.secure.Clone(), c.secure.Clone()
	c.plain.IdleConnTimeout = options.KeepAlive
	c.plain.MaxIdleConns = max(c.plain.MaxIdleConns/2, 1) // small, which has the same limit, takes the other half
	c.fresh.DisableKeepAlives = true
	c.small = &plainhttp.Transport{Base: c.plain}
	return c
}

// of returns what carries requests to u.
func (c *transports) of(u *url.URL) http.RoundTripper {
	if u.Scheme == "https" {
		return c.secure
	}
	return c.small
}

// closeIdle closes the connections that are idle.
func (c *transports) closeIdle() {
	c.small.CloseIdleConnections()
	c.plain.CloseIdleConnections()
	c.secure.CloseIdleConnections()
}

// newTransport returns a Transport that connects to no address in deny, whatever name it hides behind, and waits for
// the header of a response for headerTimeout.
func newTransport(deny []netip.Prefix, headerTimeout time.Duration) *http.Transport {
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			if to, err := netip.ParseAddrPort(address); err != nil || isDenied(to.Addr(), deny) {
				return errDenied
			}
			return nil
		},
	}
	return &http.Transport{
		DialContext: dialer.DialContext,
		// Through a proxy, only an address that is spelled in the URL can be checked.
		Proxy: func(r *http.Request) (*url.URL, error) {
			proxy, err := http.ProxyFromEnvironment(r)
			to, notAddress := netip.ParseAddr(r.URL.Hostname())
			if proxy != nil && notAddress == nil && isDenied(to, deny) {
				return nil, errDenied
			}
			return proxy, err
		},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: maxProviderHeader,
		ReadBufferSize:         providerBuffer,
		WriteBufferSize:        providerBuffer,
		MaxIdleConnsPerHost:    maxIdleOfProvider,
		IdleConnTimeout:        idleOfProvider,
		DisableCompression:     true, // what is compressed could not be read
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingSilentAfter, PingTimeout: pingTimeout},
	}
}

// An attempt is how a request was sent.
type attempt struct {
	at      time.Time   // when it got its connection; zero if it has got none: then nothing was sent
	reused  bool        // the connection was idle before
	replied atomic.Bool // a byte of the response has come
}

// foundStale reports whether an attempt that has failed with err has met a connection that the provider was closing
// because it was idle. Then the provider has not begun to work on the request.
func (a *attempt) foundStale(err error) bool {
	return err != nil && a.reused && !a.replied.Load() && !isTimeout(err) && time.Since(a.at) < staleWithin
}

// isHTTP2 reports whether a connection of a Transport speaks HTTP/2.
func isHTTP2(c net.Conn) bool {
	secure, ok := c.(*tls.Conn)
	return ok && secure.ConnectionState().NegotiatedProtocol == "h2"
}

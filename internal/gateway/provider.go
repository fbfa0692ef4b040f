package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

const (
	dialTimeout        = 5 * time.Second
	maxProviderHeader  = 64 << 10
	maxIdleOfProvider  = 256 // connections that are kept
	idleOfProvider     = 90 * time.Second
	pingSilentAfter    = 15 * time.Second // on HTTP/2
	pingTimeout        = 5 * time.Second
	maxIdleOfProviders = 1024
	providerBuffer     = 2 << 10 // of each direction, for as long as a stream may be silent
	smallRequest       = 4 << 10 // bytes of a request that is sent in one piece
)

// errDenied means that the operator has forbidden to connect to an address.
var errDenied = errors.New("the address is denied")

// newTransport returns what carries requests to endpoints. It connects to no address in deny, whatever name it
// hides behind, and waits for the header of a response for headerTimeout.
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
		MaxIdleConns:           maxIdleOfProviders,
		MaxIdleConnsPerHost:    maxIdleOfProvider,
		IdleConnTimeout:        idleOfProvider,
		DisableCompression:     true, // what is compressed could not be read
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingSilentAfter, PingTimeout: pingTimeout},
	}
}

// isDenied reports whether deny has an address, or the one that the system takes it for: the unspecified address is
// that of this machine, and some IPv6 addresses hold an IPv4 one (RFC 6052, section 2.1; RFC 3056, section 2).
func isDenied(address netip.Addr, deny []netip.Prefix) bool {
	address = address.Unmap()
	same := []netip.Addr{address}
	if address.IsUnspecified() {
		same = append(same, netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if address.Is6() {
		bytes := address.As16()
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(address.WithZone("")):
			same = append(same, netip.AddrFrom4([4]byte(bytes[12:])))
		case netip.MustParsePrefix("2002::/16").Contains(address.WithZone("")):
			same = append(same, netip.AddrFrom4([4]byte(bytes[2:6])))
		}
	}
	return slices.ContainsFunc(same, func(a netip.Addr) bool {
		return slices.ContainsFunc(deny, func(prefix netip.Prefix) bool { return prefix.Contains(a.WithZone("")) })
	})
}

// forwardedHeaders are those of a client's request that a provider gets. No other is forwarded: some have credentials,
// and with an Idempotency-Key Go's Transport would repeat the request by itself.
var forwardedHeaders = []string{
	"Content-Type", "Accept", "User-Agent", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta",
}

// relayedHeaders are those of a provider's response that a client gets.
var relayedHeaders = []string{
	"Content-Type", "Retry-After", "Retry-After-Ms", "X-Should-Retry", "Request-Id", "Openai-Processing-Ms",
	"Openai-Version", "Openai-Model",
}

// endpointRequest is a request for a provider.
type endpointRequest struct {
	to     *Endpoint
	path   string   // below the endpoint's URL; "" is that itself
	query  string   // of the client
	body   [][]byte // one after the other
	header http.Header
}

// newProviderHeader returns the header of a request to e for a client's request.
func newProviderHeader(e *Endpoint, client http.Header) http.Header {
	header := make(http.Header, len(forwardedHeaders)+1)
	for _, name := range forwardedHeaders {
		if values := client[name]; len(values) > 0 {
			header[name] = values
		}
	}
	if len(header["Content-Type"]) == 0 {
		header["Content-Type"] = []string{"application/json"}
	}
	if len(header["User-Agent"]) == 0 {
		header["User-Agent"] = []string{"tollgate"}
	}
	if e.apiKey != "" {
		name, value := e.format.Credential(e.apiKey)
		header[name] = []string{value}
	}
	return header
}

// send sends p until ctx is done and returns the response's header, with its body to be read. If it fails, sent reports
// whether the provider may have got the request.
func (p *endpointRequest) send(ctx context.Context, transport *http.Transport) (
	_ *http.Response, sent bool, err error,
) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { sent = false }, // also before the Transport tries again, having sent nothing
		GotConn: func(httptrace.GotConnInfo) { sent = true },
	})
	size := 0
	for _, piece := range p.body {
		size += len(piece)
	}
	newBody := func() (io.ReadCloser, error) {
		pieces := append(make(net.Buffers, 0, len(p.body)), p.body...)
		return io.NopCloser(&pieces), nil
	}
	if size <= smallRequest { // http.Transport sends a bytes.Reader in one write with the header
		whole := bytes.Join(p.body, nil)
		newBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
	}
	body, _ := newBody()
	request := (&http.Request{
		Method: http.MethodPost, URL: p.url(), Host: p.to.url.Host, Header: p.header,
		Body: body, GetBody: newBody, ContentLength: int64(size),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	response, err := transport.RoundTrip(request)
	return response, sent, err
}

// url returns where the request goes: to the endpoint's URL, with the client's query after its own.
func (p *endpointRequest) url() *url.URL {
	u := *p.to.url
	u.User, u.Fragment = nil, ""
	if p.path != "" {
		u.Path += p.path
		if u.RawPath != "" {
			u.RawPath += p.path
		}
	}
	switch {
	case u.RawQuery == "":
		u.RawQuery = p.query
	case p.query != "":
		u.RawQuery += "&" + p.query
	}
	return &u
}

// failureReason describes why a provider could not be reached, without the parts of err that come from a config.
func failureReason(err error) string {
	if errors.Is(err, errDenied) {
		return "its address is within -gateway-deny"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "its name cannot be resolved"
	}
	if isTimeout(err) {
		return "it does not respond in time"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it closed the connection"
	}
	return "the connection failed"
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

// mayTryNext reports whether a provider that responds with status has not generated anything, so that another endpoint
// may be tried.
func mayTryNext(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
}

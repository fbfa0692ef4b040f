package websocket

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
)

// maxRefusal is how much of the body of a response that is not 101 can be read.
const maxRefusal = 64 << 10

// Dial opens a WebSocket to a server. transport sends the request, so it says how to connect, and with which TLS; it is
// to be an *http.Transport or to use one. The URL's scheme is ws or wss, or http or https, which mean the same. header
// has what else is sent; protocols are the subprotocols to offer, the best first. No extension is offered.
//
// ctx bounds the handshake alone. Once that has succeeded, its end has no effect: call Finish or Abort.
//
// With a response that is not a 101, Dial returns both the response and an error. Up to 64 KiB of its body can be read
// then; it need not be closed.
func (s *Side) Dial(
	ctx context.Context, transport http.RoundTripper, address string, header http.Header, protocols ...string,
) (*Conn, *http.Response, error) {
	var conn net.Conn
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { conn = got.Conn }}
	request, key, err := newRequest(httptrace.WithClientTrace(ctx, trace), address, header, protocols)
	if err != nil {
		return nil, nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		return nil, copyRefusal(response), fmt.Errorf("the server refuses to open a WebSocket: %d", response.StatusCode)
	}
	protocol, err := checkResponse(response.Header, key, protocols)
	if err == nil && conn == nil { // without which there would be no deadlines
		err = errors.New("the transport does not tell which connection it uses")
	}
	if err != nil {
		response.Body.Close()
		return nil, nil, err
	}
	// The body has what came right behind the header. Its Close closes the connection, and is of no use besides.
	c := s.newConn(&upgraded{conn, response.Body}, false, protocol)
	seen := *response
	seen.Body = http.NoBody
	return c, &seen, nil
}

// newRequest returns a client's opening handshake (RFC 6455, section 4.1) and its key.
func newRequest(
	ctx context.Context, address string, header http.Header, protocols []string,
) (request *http.Request, key string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, "", err
	}
	switch u.Scheme {
	case "ws":
		u.Scheme = "http"
	case "wss":
		u.Scheme = "https"
	}
	if request, err = http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil); err != nil {
		return nil, "", err
	}
	for name, values := range header {
		if name = http.CanonicalHeaderKey(name); !strings.HasPrefix(name, "Sec-Websocket-") {
			request.Header[name] = slices.Clone(values)
		}
	}
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // it never fails
	key = base64.StdEncoding.EncodeToString(nonce)
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "websocket")
	request.Header.Set("Sec-WebSocket-Version", version)
	request.Header.Set("Sec-WebSocket-Key", key)
	if len(protocols) > 0 {
		request.Header.Set("Sec-WebSocket-Protocol", strings.Join(protocols, ", "))
	}
	return request, key, nil
}

// checkResponse checks the header of a 101, and returns the subprotocol that it names (RFC 6455, section 4.1).
func checkResponse(h http.Header, key string, protocols []string) (protocol string, err error) {
	if !isUpgrade(h) {
		return "", errors.New("the server has upgraded to something else than a WebSocket")
	}
	if accept, ok := only(h, "Sec-WebSocket-Accept"); !ok || accept != acceptKey(key) {
		return "", errors.New("the server's Sec-WebSocket-Accept is not that of the key")
	}
	if len(h.Values("Sec-WebSocket-Extensions")) > 0 {
		return "", errors.New("the server uses an extension that was not offered")
	}
	if len(h.Values("Sec-WebSocket-Protocol")) == 0 {
		return "", nil
	}
	if protocol, ok := only(h, "Sec-WebSocket-Protocol"); ok && slices.Contains(protocols, protocol) {
		return protocol, nil
	}
	return "", errors.New("the server has chosen a subprotocol that was not offered")
}

// copyRefusal returns a response with as much of its body as may be read, which it reads.
func copyRefusal(response *http.Response) *http.Response {
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal)) // what has come is good enough
	seen := *response
	seen.Body = io.NopCloser(bytes.NewReader(body))
	return &seen
}

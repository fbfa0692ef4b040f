package websocket

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tollgate/internal/websockettest"
)

// sampleKey and sampleAccept are those of RFC 6455, section 1.3.
const (
	sampleKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	sampleAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// handshakeOf returns a client's opening handshake. Each change is the line of a header, which replaces those of its
// name, or adds one if it begins with +; a line without a value removes the header.
func handshakeOf(start string, changes ...string) string {
	lines := []string{"Host: example.com", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: " + sampleKey}
	for _, change := range changes {
		line, isMore := strings.CutPrefix(change, "+")
		name, value, _ := strings.Cut(line, ":")
		if !isMore {
			lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
		}
		if value != "" {
			lines = append(lines, line)
		}
	}
	return start + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// serve starts an HTTP server and returns its address.
func serve(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// exchange sends bytes to an address, and returns the connection and the response.
func exchange(t testing.TB, address, request string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, response
}

// A server accepts what is an opening handshake, and says of anything else what is wrong.
func TestAccept(t *testing.T) {
	const get, ok = "GET / HTTP/1.1", http.StatusSwitchingProtocols
	side := &Side{}
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		protocol := ""
		if offered := Protocols(r); len(offered) > 0 {
			protocol = offered[0]
		}
		checked := CheckRequest(r)
		c, err := side.Accept(w, r, protocol, http.Header{"X-Request-Id": {"42"}})
		var refused *HandshakeError
		if errors.As(err, &refused) {
			if checked == nil || checked.Error() != err.Error() {
				t.Errorf("Accept says %v, CheckRequest %v", err, checked)
			}
			for name, values := range refused.Header {
				w.Header()[name] = values
			}
			http.Error(w, refused.Reason, refused.Status)
			return
		}
		if err != nil || checked != nil {
			t.Error(err, checked)
			return
		}
		if c.Protocol() != protocol {
			t.Errorf("the protocol is %q, want %q", c.Protocol(), protocol)
		}
		_ = c.Close(CloseNormal, "")
		c.Finish()
	})
	for _, test := range []struct {
		name    string
		request string
		status  int
		header  string // of the response, "name: value"
	}{
		{"the RFC's example", handshakeOf(get), ok, "Sec-WebSocket-Accept: " + sampleAccept},
		{"a header of the caller's", handshakeOf(get), ok, "X-Request-Id: 42"},
		{"no subprotocol", handshakeOf(get), ok, "Sec-WebSocket-Protocol: "},
		{"a subprotocol", handshakeOf(get, "Sec-WebSocket-Protocol: realtime, secret.sk-1"), ok, "Sec-WebSocket-Protocol: realtime"},
		{"subprotocols in two lines", handshakeOf(get, "+Sec-WebSocket-Protocol: a", "+Sec-WebSocket-Protocol: ,b ,"), ok,
			"Sec-WebSocket-Protocol: a"},
		{"tokens in lists, in any case", handshakeOf(get, "Connection: keep-alive, upgrade", "Upgrade: h2c,WebSocket"), ok,
			"Upgrade: websocket"},
		{"POST", handshakeOf("POST / HTTP/1.1"), 405, "Allow: GET"},
		{"HTTP/1.0", handshakeOf("GET / HTTP/1.0"), 426, "Upgrade: websocket"},
		{"a plain request", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 426, "Upgrade: websocket"},
		{"its Connection", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 426, "Connection: Upgrade"},
		{"no Connection", handshakeOf(get, "Connection:"), 426, "Upgrade: websocket"},
		{"another Connection", handshakeOf(get, "Connection: keep-alive"), 426, "Upgrade: websocket"},
		{"no Upgrade", handshakeOf(get, "Upgrade:"), 426, "Upgrade: websocket"},
		{"another Upgrade", handshakeOf(get, "Upgrade: websockets"), 426, "Upgrade: websocket"},
		{"no version", handshakeOf(get, "Sec-WebSocket-Version:"), 426, "Sec-WebSocket-Version: 13"},
		{"another version", handshakeOf(get, "Sec-WebSocket-Version: 8"), 426, "Sec-WebSocket-Version: 13"},
		{"two versions", handshakeOf(get, "+Sec-WebSocket-Version: 13"), 426, "Sec-WebSocket-Version: 13"},
		{"no key", handshakeOf(get, "Sec-WebSocket-Key:"), 400, ""},
		{"two keys", handshakeOf(get, "+Sec-WebSocket-Key: "+sampleKey), 400, ""},
		{"a key of 15 bytes", handshakeOf(get, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA"), 400, ""},
		{"a key of 18 bytes", handshakeOf(get, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAA"), 400, ""},
		{"a key that is not base64", handshakeOf(get, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA!A=="), 400, ""},
		{"bits behind the key's end", handshakeOf(get, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB=="), ok, ""},
		{"a body", handshakeOf(get, "Content-Length: 1") + "x", 400, ""},
		{"a body of unknown length", handshakeOf(get, "Transfer-Encoding: chunked") + "0\r\n\r\n", 400, ""},
		{"a subprotocol twice", handshakeOf(get, "Sec-WebSocket-Protocol: a, b, a"), 400, ""},
		{"a subprotocol that is not a token", handshakeOf(get, "Sec-WebSocket-Protocol: a, b/c"), 400, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, r, response := exchange(t, address, test.request)
			if response.StatusCode != test.status {
				body, _ := io.ReadAll(response.Body)
				t.Errorf("got %d %s, want %d", response.StatusCode, body, test.status)
			}
			name, value, _ := strings.Cut(test.header, ": ")
			if got := response.Header.Get(name); name != "" && got != value {
				t.Errorf("got %s: %s, want %s", name, got, value)
			}
			if response.StatusCode == ok {
				if w, err := websockettest.Read(r, false); w.String() != `X1000""` {
					t.Errorf("got %s, %v", w, err)
				}
			}
			c.Close()
		})
	}
}

// A connection that cannot be taken from the server is an error, and no fault of the client's.
func TestAcceptWithoutHijack(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": sampleKey,
	} {
		r.Header.Set(name, value)
	}
	var refused *HandshakeError
	if _, err := (&Side{}).Accept(httptest.NewRecorder(), r, "", nil); !errors.Is(err, http.ErrNotSupported) || errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
}

// An extension is never agreed to, so that no frame is ever compressed.
func TestAcceptNoExtension(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if c, err := (&Side{}).Accept(w, r, "", nil); err == nil {
			c.Abort()
		}
	})
	_, _, response := exchange(t, address, handshakeOf("GET / HTTP/1.1", "Sec-WebSocket-Extensions: permessage-deflate"))
	if got := response.Header.Values("Sec-WebSocket-Extensions"); response.StatusCode != 101 || got != nil {
		t.Errorf("got %d, %q", response.StatusCode, got)
	}
}

// Frames that a client sends right behind its handshake are not lost, whatever the server has read of them, and
// the Conn outlives the handler.
func TestAcceptEarlyFrames(t *testing.T) {
	conns := make(chan *Conn, 1)
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := (&Side{}).Accept(w, r, "", nil)
		if err != nil {
			t.Error(err)
		}
		conns <- c
	})
	for _, size := range []int{0, 10, 1000, 4000, 5000, 20000} {
		sent := string(bin(strings.Repeat("*", size)).Encode(true)) + string(text("second").Encode(true))
		c, _, _ := exchange(t, address, handshakeOf("GET / HTTP/1.1")+sent)
		conn := waitFor(t, conns)
		var got int
		for {
			part, err := conn.Next()
			if err != nil {
				t.Fatal(err)
			}
			if string(part.Data) == "second" {
				break
			}
			got += len(part.Data)
		}
		if got != size {
			t.Errorf("got %d bytes, want %d", got, size)
		}
		if _, err := c.Write(text("third").Encode(true)); err != nil {
			t.Error(err)
		}
		if part, err := conn.Next(); string(part.Data) != "third" {
			t.Errorf("got %q, %v", part.Data, err)
		}
		conn.Abort()
	}
}

// rawServer answers one connection after another: it reads a request and writes what respond returns.
func rawServer(t testing.TB, respond func(*http.Request) string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				c.Close()
				continue
			}
			if _, err := io.WriteString(c, respond(r)); err != nil {
				t.Error(err)
			}
		}
	}()
	return l.Addr().String()
}

// newTransport returns a Transport of its own for a test.
func newTransport(t testing.TB) *http.Transport {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// A client believes a server only if its answer is right in all points.
func TestDial(t *testing.T) {
	const start = "HTTP/1.1 101 Switching Protocols\r\n"
	const agreed = start + "Upgrade: WebSocket\r\nConnection: upgrade\r\n"
	for _, test := range []struct {
		name    string
		respond func(*http.Request) string
		want    string // the protocol, or the end of the error
	}{
		{"right", func(r *http.Request) string { return agreed + websockettest.AcceptLine(r) + "\r\n" }, "protocol "},
		{"a subprotocol", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + "Sec-WebSocket-Protocol: b\r\n\r\n"
		}, "protocol b"},
		{"a subprotocol that was not offered", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + "Sec-WebSocket-Protocol: B\r\n\r\n"
		}, "a subprotocol that was not offered"},
		{"an empty subprotocol", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + "Sec-WebSocket-Protocol:\r\n\r\n"
		}, "a subprotocol that was not offered"},
		{"two subprotocols", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n\r\n"
		}, "a subprotocol that was not offered"},
		{"an extension", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
		}, "an extension that was not offered"},
		{"no accept", func(*http.Request) string { return agreed + "\r\n" }, "not that of the key"},
		{"another key's accept", func(*http.Request) string {
			return agreed + "Sec-WebSocket-Accept: " + sampleAccept + "\r\n\r\n"
		}, "not that of the key"},
		{"two accepts", func(r *http.Request) string {
			return agreed + websockettest.AcceptLine(r) + websockettest.AcceptLine(r) + "\r\n"
		}, "not that of the key"},
		{"no Upgrade", func(r *http.Request) string {
			return start + "Connection: Upgrade\r\n" + websockettest.AcceptLine(r) + "\r\n"
		},
			"something else than a WebSocket"},
		{"another Upgrade", func(r *http.Request) string {
			return start + "Connection: Upgrade\r\nUpgrade: h2c\r\n" + websockettest.AcceptLine(r) + "\r\n"
		}, "something else than a WebSocket"},
		{"no Connection", func(r *http.Request) string {
			return start + "Upgrade: websocket\r\n" + websockettest.AcceptLine(r) + "\r\n"
		},
			"something else than a WebSocket"},
		{"200", func(r *http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" },
			"the server refuses to open a WebSocket: 200"},
		{"no HTTP", func(r *http.Request) string { return "what?\r\n\r\n" }, `malformed HTTP response "what?"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			address := rawServer(t, test.respond)
			c, response, err := (&Side{}).Dial(t.Context(), newTransport(t), "ws://"+address, nil, "a", "b")
			got := fmt.Sprint(err)
			if err == nil {
				got = "protocol " + c.Protocol()
				if response.StatusCode != 101 {
					t.Errorf("the response is %d", response.StatusCode)
				}
				c.Abort()
			}
			if !strings.HasSuffix(got, test.want) {
				t.Errorf("got %s, want …%s", got, test.want)
			}
		})
	}
}

// The request of a client has what RFC 6455 demands and what the caller adds, and no extension.
func TestDialRequest(t *testing.T) {
	seen := make(chan *http.Request, 1)
	address := rawServer(t, func(r *http.Request) string {
		seen <- r
		return "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
	})
	header := http.Header{"Authorization": {"Bearer sk-1"}, "Sec-Websocket-Extensions": {"permessage-deflate"}, "upgrade": {"h2c"},
		"sec-websocket-key": {sampleKey}}
	keys := make(map[string]bool)
	for _, protocols := range [][]string{nil, {"a", "b"}} {
		_, _, _ = (&Side{}).Dial(t.Context(), newTransport(t), "http://"+address+"/v1?model=m", header, protocols...)
		r := waitFor(t, seen)
		key := r.Header.Get("Sec-WebSocket-Key")
		keys[key] = true
		r.Header.Del("Sec-WebSocket-Key")
		r.Header.Del("User-Agent") // the Transport's, as is Accept-Encoding
		r.Header.Del("Accept-Encoding")
		want := http.Header{"Authorization": {"Bearer sk-1"}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
		want.Set("Sec-WebSocket-Version", "13")
		if protocols != nil {
			want["Sec-Websocket-Protocol"] = []string{"a, b"}
		}
		got, wanted := fmt.Sprint(r.Method, r.RequestURI, r.Header), fmt.Sprint("GET", "/v1?model=m", want)
		if got != wanted || len(key) != 24 || key == sampleKey {
			t.Errorf("got %s, key %s, want %s", got, key, wanted)
		}
	}
	if len(keys) != 2 {
		t.Error("both have the same key")
	}
}

// A refusal can be read, up to 64 KiB of its body.
func TestDialRefused(t *testing.T) {
	for _, size := range []int{0, 100, maxRefusal, maxRefusal + 1, 1 << 20} {
		address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, strings.Repeat("*", size)) // the client may not read all
		})
		c, response, err := (&Side{}).Dial(t.Context(), newTransport(t), "ws://"+address, nil)
		if c != nil || err == nil || response == nil {
			t.Fatalf("got %v, %v, %v", c, response, err)
		}
		body, err := io.ReadAll(response.Body)
		got := fmt.Sprint(response.StatusCode, response.Header.Get("Retry-After"), len(body), err)
		if want := fmt.Sprint(429, "7", min(size, maxRefusal), nil); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The context bounds the handshake, its body included, and nothing after it.
func TestDialContext(t *testing.T) {
	silent := rawServer(t, func(*http.Request) string { return "" })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := (&Side{}).Dial(ctx, newTransport(t), "ws://"+silent, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	half := rawServer(t, func(*http.Request) string { return "HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nhalf" })
	ctx, cancel = context.WithCancel(t.Context())
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := newTransport(t).RoundTrip(r)
		cancel()
		return response, err
	})
	if _, response, err := (&Side{}).Dial(ctx, transport, "ws://"+half, nil); err == nil || response.StatusCode != 500 {
		t.Errorf("got %v", err)
	}
	address := rawServer(t, func(r *http.Request) string {
		return websockettest.Accepted + websockettest.AcceptLine(r) + "\r\n" +
			string(websockettest.EncodeAll([]wire{text("early"), bin(strings.Repeat("*", 10000)), bye}, false))
	})
	ctx, cancel = context.WithCancel(t.Context())
	c, _, err := (&Side{IdleTimeout: patience}).Dial(ctx, newTransport(t), "ws://"+address, nil)
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	for _, want := range []string{"early", strings.Repeat("*", 10000)} {
		if part, err := c.Next(); string(part.Data) != want || err != nil {
			t.Errorf("got %d bytes, %v, want %d", len(part.Data), err, len(want))
		}
	}
	if err := readAll(c); err.Error() != `the peer has closed the connection: 1000 "bye"` {
		t.Errorf("got %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Without the connection there are no deadlines, so such a transport is refused.
func TestDialWithoutConnection(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		header := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}
		header.Set("Sec-WebSocket-Accept", acceptKey(r.Header.Get("Sec-WebSocket-Key")))
		return &http.Response{StatusCode: 101, Header: header, Body: here}, nil
	})
	_, _, err := (&Side{}).Dial(t.Context(), transport, "ws://example.com", nil)
	if err == nil || !strings.Contains(err.Error(), "which connection") {
		t.Errorf("got %v", err)
	}
	if _, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is not closed: %v", err)
	}
	for _, address := range []string{"ws://exa mple.com", "ftp://example.com", "/v1"} {
		if _, _, err := (&Side{}).Dial(t.Context(), newTransport(t), address, nil); err == nil {
			t.Errorf("%s can be dialled", address)
		}
	}
}

// Over TLS, to a server that prefers HTTP/2, all is the same, deadlines and closing included.
func TestTLS(t *testing.T) {
	conns := make(chan *Conn, 1)
	side := &Side{PingInterval: 20 * time.Millisecond, IdleTimeout: patience}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := side.Accept(w, r, "", nil)
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	transport := newTransport(t)
	transport.ForceAttemptHTTP2 = true
	transport.TLSClientConfig = &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	c, _, err := side.Dial(t.Context(), transport, "wss"+server.URL[len("https"):], nil)
	if err != nil {
		t.Fatal(err)
	}
	relay := &Relay{Client: waitFor(t, conns), Server: c} // what one end sends comes back to it
	relay.FromClient = relay.Client.WritePart
	got := make(chan string, 100)
	relay.FromServer = func(p Part) error { got <- string(p.Data); return nil }
	ended := startRelay(relay)
	sent := strings.Repeat("0123456789", 3000)
	// Several pings are due meanwhile: reads go on after their deadline.
	for began := time.Now(); time.Since(began) < 200*time.Millisecond; {
		if err := c.Send(Text, []byte(sent)); err != nil {
			t.Fatal(err)
		}
		for have := 0; have < len(sent); have += len(waitFor(t, got)) {
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := c.Close(CloseNormal, "bye"); err != nil {
		t.Error(err)
	}
	if errs := waitFor(t, ended); errs[0].Error() != `the peer has closed the connection: 1000 "bye"` ||
		errs[1].Error() != `the peer has closed the connection: 1000 ""` {
		t.Errorf("got %v", errs)
	}
}

package plainhttp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// What is unusual goes through Base.
func TestTakes(t *testing.T) {
	transport := newTransport(t)
	transport.Base.Proxy = func(r *http.Request) (*url.URL, error) {
		switch r.URL.Hostname() {
		case "proxied":
			return &url.URL{Scheme: "http", Host: "proxy"}, nil
		case "denied":
			return nil, errors.New("denied")
		}
		return nil, nil
	}
	for name, test := range map[string]struct {
		change func(r *http.Request)
		want   bool
	}{
		"usual":       {func(*http.Request) {}, true},
		"port":        {func(r *http.Request) { r.URL.Host = "[::1]:8080" }, true},
		"no body":     {func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }, true},
		"GET":         {func(r *http.Request) { r.Method = http.MethodGet }, false},
		"https":       {func(r *http.Request) { r.URL.Scheme = "https" }, false},
		"no host":     {func(r *http.Request) { r.URL.Host = "" }, false},
		"not ASCII":   {func(r *http.Request) { r.URL.Host = "bücher.example" }, false},
		"zone":        {func(r *http.Request) { r.URL.Host = "[fe80::1%25eth0]" }, false},
		"proxied":     {func(r *http.Request) { r.URL.Host = "proxied" }, false},
		"denied":      {func(r *http.Request) { r.URL.Host = "denied:80" }, false},
		"large":       {func(r *http.Request) { r.ContentLength = maxBody + 1 }, false},
		"unknown":     {func(r *http.Request) { r.ContentLength = -1 }, false},
		"perhaps":     {func(r *http.Request) { r.ContentLength = 0 }, false},
		"close":       {func(r *http.Request) { r.Close = true }, false},
		"chunked":     {func(r *http.Request) { r.TransferEncoding = []string{"chunked"} }, false},
		"trailer":     {func(r *http.Request) { r.Trailer = http.Header{"A": nil} }, false},
		"expect":      {func(r *http.Request) { r.Header.Set("Expect", "100-continue") }, false},
		"upgrade":     {func(r *http.Request) { r.Header.Set("Upgrade", "websocket") }, false},
		"repeated":    {func(r *http.Request) { r.Header.Set("Idempotency-Key", "a") }, false},
		"line break":  {func(r *http.Request) { r.Header.Set("A", "b\r\nC: d") }, false},
		"nul":         {func(r *http.Request) { r.Header.Set("A", "\x00") }, false},
		"other value": {func(r *http.Request) { r.Header.Set("A", "\tü") }, true},
	} {
		r := newRequest(t.Context(), "http://a.example/v1", "{}")
		test.change(r)
		if got := transport.takes(r); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if got := address(&url.URL{Host: "[::1]"}) + " " + address(&url.URL{Host: "a:8080"}); got != "[::1]:80 a:8080" {
		t.Errorf("got %s", got)
	}
}

// An error of dialling is returned as it is, and one of the request too.
func TestNotSent(t *testing.T) {
	transport, denied := newTransport(t), errors.New("denied")
	transport.Base.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, denied }
	if _, _, err := post(t, transport, "http://127.0.0.1", "{}"); err != denied {
		t.Errorf("got %v", err)
	}
	r := newRequest(t.Context(), "http://127.0.0.1", "{}")
	r.ContentLength++
	if _, err := transport.RoundTrip(r); err == nil || err == denied {
		t.Errorf("got %v", err)
	}
}

// A header that is too long is told from one that is malformed, wherever it is cut.
func TestHeaderBound(t *testing.T) {
	for more := range 5 {
		header := "HTTP/1.1 204 No Content\r\nX: \r\n\r\n"
		limit := int64(len(header) + 1000)
		header = strings.Replace(header, "X: ", "X: "+strings.Repeat("x", 1000+more), 1)
		s := newServer(t, func(c *serverConn) { c.respond(header) })
		transport := newTransport(t)
		transport.Base.MaxResponseHeaderBytes = limit
		if _, _, err := post(t, transport, s.url, "{}"); more == 0 && err != nil || more > 0 && err != errHeaderTooLong {
			t.Errorf("%d bytes more: %v", more, err)
		}
	}
}

// What arrives is what http.Transport sends.
func TestRequests(t *testing.T) {
	var got string
	s := newServer(t, func(c *serverConn) {
		header, _ := c.in.ReadString('!')
		got = header
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	})
	for _, path := range []string{"", "/a%2Fb?c=d&e", "?q"} {
		for _, host := range []string{"", "other.example"} {
			var want string
			for _, by := range []http.RoundTripper{newTransport(t).Base, newTransport(t)} {
				r := newRequest(t.Context(), s.url+path, `{"a":1}!`)
				r.Host = host
				r.Header["Content-Type"], r.Header["X-B"] = []string{"application/json"}, []string{"1", "\t2 "}
				if _, err := by.RoundTrip(r); err != nil {
					t.Fatal(err)
				}
				if want == "" {
					want = got
				}
			}
			if got != want || !strings.HasSuffix(got, `{"a":1}!`) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
}

// Requests that are cancelled or closed at any time never give their responses to others.
func TestNoMixedResponses(t *testing.T) {
	s := newServer(t, func(c *serverConn) {
		for {
			body, ok := c.request()
			if !ok {
				return
			}
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			half := len(body) / 2
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", half, body[:half])
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(body)-half, body[half:])
		}
	})
	transport := newTransport(t)
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for i := range 300 {
				body := fmt.Sprintf("%d of %d", i, client) + strings.Repeat(" ", rand.IntN(2)*maxWrite)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(2000))*time.Microsecond)
				response, err := transport.RoundTrip(newRequest(ctx, s.url, body))
				if err == nil {
					if i%3 == 0 {
						time.AfterFunc(time.Duration(rand.IntN(500))*time.Microsecond, func() { response.Body.Close() })
					}
					got, err := io.ReadAll(response.Body)
					if response.Body.Close(); err == nil && string(got) != body || !strings.HasPrefix(body, string(got)) {
						t.Errorf("got %.20q, want %.20q", got, body)
					}
				}
				cancel()
			}
		})
	}
	clients.Wait()
}

// FuzzResponse compares what is read of a response with what http.Transport reads.
func FuzzResponse(f *testing.F) {
	for _, r := range responses {
		f.Add([]byte(r.response))
	}
	f.Fuzz(func(t *testing.T, response []byte) {
		if len(response) > 32<<10 || bytes.Contains(response, []byte("101")) { // after 101, http.Transport lets the caller write
			return
		}
		base := newBase()
		base.DialContext = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				if _, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
					_, _ = server.Write(response)
				}
			}()
			return client, nil
		}
		want, wantErr := outcome(t, base)
		transport := &Transport{Base: base}
		got, err := outcome(t, transport)
		if got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("got %s, %v; want %s, %v", got, err, want, wantErr)
		}
		transport.CloseIdleConnections()
		base.CloseIdleConnections()
	})
}

// outcome returns what a request without a body gets.
func outcome(t *testing.T, by http.RoundTripper) (string, error) {
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a.example/", http.NoBody)
	response, err := by.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return fmt.Sprintf("%s %s %v %d %v %v %q", response.Proto, response.Status, response.Header, response.ContentLength,
		response.Close, response.Trailer, body), err
}

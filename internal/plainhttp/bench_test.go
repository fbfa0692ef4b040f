package plainhttp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// benchTransports are the two that are compared.
func benchTransports() map[string]http.RoundTripper {
	base := newBase()
	return map[string]http.RoundTripper{"http.Transport": base, "plainhttp": &Transport{Base: base.Clone()}}
}

func newBase() *http.Transport {
	return &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, Proxy: http.ProxyFromEnvironment,
		ResponseHeaderTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize: 2 << 10, WriteBufferSize: 2 << 10, MaxIdleConns: 100, MaxIdleConnsPerHost: 10,
		IdleConnTimeout: time.Minute, DisableCompression: true,
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	reply := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 29 Nov 2026 04:00:00 GMT\r\nContent-Length: 300\r\n\r\n" +
		strings.Repeat("x", 300))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				buffer := make([]byte, 4<<10)
				for n := 0; ; {
					m, err := c.Read(buffer[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buffer[:n], []byte("!")) {
						n = 0
						_, _ = c.Write(reply)
					}
				}
			}()
		}
	}()
	body := strings.Repeat("y", 99) + "!"
	for name, transport := range benchTransports() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, _ := http.NewRequest("POST", fmt.Sprintf("http://%s/v1/chat/completions", l.Addr()), strings.NewReader(body))
				r.Header["Content-Type"], r.Header["Accept"] = []string{"application/json"}, []string{"application/json"}
				r.Header["Authorization"], r.Header["User-Agent"] = []string{"Bearer x"}, []string{"tollgate"}
				response, err := transport.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
		})
	}
}

package websockettest

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Accepted is the head of the response that agrees to a handshake, but for its last line.
const Accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

// AcceptLine returns the line of the response that shows that the server has read the client's key.
func AcceptLine(r *http.Request) string {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return "Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n"
}

// A Server is a server whose handshakes and frames are written by hand.
type Server struct {
	Address  string             // host:port
	Requests chan *http.Request // each handshake
	Peers    chan *Peer         // each connection, after its handshake
}

// NewServer starts a Server, which ends with the test. respond returns the response to a handshake, without the empty
// line at its end; nil agrees to each. The test must receive what comes of each handshake.
func NewServer(t testing.TB, respond func(*http.Request) string) *Server {
	t.Helper()
	if respond == nil {
		respond = func(r *http.Request) string { return Accepted + AcceptLine(r) }
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &Server{Address: l.Addr().String(), Requests: make(chan *http.Request, 1024), Peers: make(chan *Peer, 1024)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go s.serve(conn, respond)
		}
	}()
	return s
}

func (s *Server) serve(conn net.Conn, respond func(*http.Request) string) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(readHead(conn))))
	if err != nil {
		conn.Close()
		return
	}
	s.Requests <- r
	response := respond(r)
	_, _ = io.WriteString(conn, response+"\r\n")
	if !strings.HasPrefix(response, "HTTP/1.1 101 ") {
		conn.Close()
		return
	}
	s.Peers <- NewPeer(conn, false)
}

// Upgrade sends a client's handshake on conn and returns the response and, if that agrees, the client.
func Upgrade(t testing.TB, conn net.Conn, path string, headers ...string) (*http.Response, *Peer) {
	t.Helper()
	response := Shake(t, conn, path, headers...)
	if response.StatusCode != http.StatusSwitchingProtocols {
		return response, nil
	}
	return response, NewPeer(conn, true)
}

// Shake sends a client's handshake on conn and returns the response. Each header is written "Name: value". The client
// offers compression.
func Shake(t testing.TB, conn net.Conn, path string, headers ...string) *http.Response {
	t.Helper()
	lines := append([]string{
		"GET " + path + " HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions: permessage-deflate",
	}, headers...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := readHead(conn)
	response, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(head), conn)), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return response
}

// readHead reads the head of a request or a response, and nothing behind it.
func readHead(r io.Reader) string {
	var head strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
		if _, err := r.Read(b); err != nil {
			break
		}
		head.Write(b)
	}
	return head.String()
}

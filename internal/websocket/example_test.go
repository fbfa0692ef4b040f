package websocket_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"tollgate/internal/websocket"
)

// A relay that counts what the server says, and shouts what the client says.
func Example() {
	clients := &websocket.Side{PingInterval: 25 * time.Second, IdleTimeout: time.Minute}
	servers := &websocket.Side{}

	// A server that repeats what it is told.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := clients.Accept(w, r, "", nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		for part, err := conn.Next(); err == nil; part, err = conn.Next() {
			_ = conn.WritePart(part) // if it fails, Next does
		}
		conn.Finish()
	}))
	defer server.Close()

	counted := make(chan int, 1)
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := websocket.CheckRequest(r); err != nil {
			http.Error(w, err.Error(), err.(*websocket.HandshakeError).Status)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		out, _, err := servers.Dial(ctx, http.DefaultTransport, server.URL, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		in, err := clients.Accept(w, r, "", nil)
		if err != nil {
			out.Abort()
			return
		}
		count := 0
		r2 := websocket.Relay{Client: in, Server: out}
		r2.FromClient = func(p websocket.Part) error {
			p.Data = []byte(strings.ToUpper(string(p.Data)))
			return out.WritePart(p)
		}
		r2.FromServer = func(p websocket.Part) error {
			count += len(p.Data)
			return in.WritePart(p)
		}
		_, _ = r2.Run()
		counted <- count
	}))
	defer relay.Close()

	conn, _, err := servers.Dial(context.Background(), http.DefaultTransport, "ws"+strings.TrimPrefix(relay.URL, "http"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = conn.Send(websocket.Text, []byte("hello"))
	part, err := conn.Next()
	fmt.Printf("%s %t %v\n", part.Data, part.Last, err)
	_ = conn.Close(websocket.CloseNormal, "bye")
	_, err = conn.Next()
	fmt.Println(err)
	conn.Finish()
	fmt.Println(<-counted, "bytes")
	// Output:
	// HELLO true <nil>
	// the peer has closed the connection: 1000 ""
	// 5 bytes
}

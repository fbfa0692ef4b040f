package websocket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"tollgate/internal/websocket"
)

var (
	clients = &websocket.Side{PingInterval: 25 * time.Second, IdleTimeout: time.Minute}
	servers = &websocket.Side{}
)

// echo is a server that sends back what it gets.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := clients.Accept(w, r, "", nil)
	if err != nil {
		return
	}
	defer conn.Finish()
	for {
		part, err := conn.Next()
		if err != nil {
			return
		}
		_ = conn.WritePart(part) // if it fails, Next does
	}
}

// open accepts a client once the server has accepted us, so that a refusal is a plain response.
func open(w http.ResponseWriter, r *http.Request, server string) (*websocket.Relay, error) {
	var refused *websocket.HandshakeError
	if err := websocket.CheckRequest(r); errors.As(err, &refused) {
		for name, values := range refused.Header {
			w.Header()[name] = values
		}
		http.Error(w, refused.Reason, refused.Status)
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	out, _, err := servers.Dial(ctx, http.DefaultTransport, server, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return nil, err
	}
	in, err := clients.Accept(w, r, "", nil)
	if err != nil {
		out.Abort()
		return nil, err
	}
	return &websocket.Relay{Client: in, Server: out}, nil
}

// A relay changes what the client says, counts what the server says, and ends the session after five bytes.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(echo))
	defer server.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		relay, err := open(w, r, server.URL)
		if err != nil {
			return
		}
		relay.FromClient = func(p websocket.Part) error {
			p.Data = bytes.ToUpper(p.Data)
			return relay.Server.WritePart(p)
		}
		left := 5
		relay.FromServer = func(p websocket.Part) error {
			if left -= len(p.Data); left < 0 {
				return &websocket.CloseError{Code: websocket.ClosePolicy, Reason: "that is enough"}
			}
			return relay.Client.WritePart(p)
		}
		go relay.Run()
	}))
	defer front.Close()

	conn, _, err := servers.Dial(context.Background(), http.DefaultTransport, front.URL, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Finish()
	for range 2 {
		_ = conn.Send(websocket.Text, []byte("hello"))
		part, err := conn.Next()
		fmt.Printf("%q %v\n", part.Data, err)
	}
	// Output:
	// "HELLO" <nil>
	// "" the peer has closed the connection: 1008 "that is enough"
}

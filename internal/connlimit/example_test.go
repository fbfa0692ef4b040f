package connlimit_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"tollgate/internal/connlimit"
)

// A server of at most 1,000 connections, with all three hooks, closes connections early while they are scarce. When it
// stops, it waits for those that are still open.
func Example() {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	listener := connlimit.New(tcp, 1000)
	go listener.KeepRoom()
	server := &http.Server{
		Handler: listener.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if listener.NearCapacity() {
				w.Header().Set("Connection", "close")
			}
			fmt.Fprintln(w, "Hello")
		})),
		ConnContext:       connlimit.ConnContext,
		ConnState:         connlimit.ConnState,
		ReadHeaderTimeout: 10 * time.Second,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + listener.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Print(string(body))

	_ = listener.Close()
	fmt.Println("stopped:", errors.Is(<-ended, net.ErrClosed))
	listener.Wait(10 * time.Second)
	fmt.Println(listener.Connections(), "connections are open")
	_ = server.Close()
	// Output:
	// Hello
	// stopped: true
	// 0 connections are open
}

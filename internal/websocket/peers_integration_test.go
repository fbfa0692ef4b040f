//go:build integration

package websocket

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A program is a client or a server of another library, or a browser.
type program struct {
	name    string
	command []string // and "client", URL or "server"
	lacks   []string // lines of the conversation that it cannot have
}

// programs returns what there is. Python's websockets may be for the system's Python alone.
func programs(t *testing.T) []program {
	t.Helper()
	if _, err := os.Stat("../../testdata/sdk/node_modules/ws"); err != nil {
		t.Fatalf("`make integration` installs the clients: %v", err)
	}
	all := []program{{name: "ws", command: []string{"node", "../../testdata/sdk/websocket.mjs"}}}
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import websockets").Run() == nil {
			return append(all, program{name: "websockets", command: []string{python, "testdata/peer.py"}})
		}
	}
	t.Log("left out: Python's websockets, which the package python3-websockets has")
	return all
}

// startServer starts a program as a server until the test ends. It returns its URL, and the lines that it prints.
func (p program) startServer(t *testing.T) (url string, lines *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(p.command[0], append(slices.Clone(p.command[1:]), "server")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines = bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the server does not say its port")
	}
	return "ws://127.0.0.1:" + lines.Text(), lines
}

// converse runs a program as a client, and returns what it prints.
func (p program) converse(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.command[0], append(slices.Clone(p.command[1:]), "client", url)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v", p.name, err)
	}
	return string(out)
}

// serveRelay starts a relay to a server and returns its URL.
func serveRelay(t *testing.T, server string) string {
	t.Helper()
	clients, servers := &Side{PingInterval: 100 * time.Millisecond, IdleTimeout: patience}, &Side{IdleTimeout: patience}
	transport := newTransport(t)
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		offered := Protocols(r)
		offered = offered[:min(len(offered), 1)]
		out, _, err := servers.Dial(r.Context(), transport, server, nil, offered...)
		if err != nil {
			t.Error(err)
			return
		}
		in, err := clients.Accept(w, r, out.Protocol(), nil)
		if err != nil {
			t.Error(err)
			return
		}
		(&Relay{Client: in, Server: out}).Run()
	})
	return "ws://" + address
}

// conversation is what each client prints.
var conversation = []string{
	"open, protocol realtime, extensions ",
	"text: aé€😀",
	"empty: ",
	"binary: 0,255,128",
	"large: true",
	"its fragments: xyz",
	"its ping: ponged q",
	"own fragments: abc",
	"own ping: p",
	"close: closed 4001 ",
	"its close: closed 4002 so be it",
	"its end: closed 1011 ",
	"too large: closed 1009 a message has more than 16777216 bytes",
}

// closes is what each server prints, sorted.
var closes = []string{"closed 1001 ", "closed 1006 ", "closed 4001 bye", "closed 4002 "}

// Clients and servers of other libraries, and a browser, talk through a relay as they would without it.
func TestIntegrationPeers(t *testing.T) {
	servers := programs(t)
	clients := append(servers, program{name: "Chromium", lacks: []string{"own fragments: ", "own ping: "}})
	for _, client := range clients {
		for _, server := range servers {
			t.Run(client.name+" to "+server.name, func(t *testing.T) {
				url, printed := server.startServer(t)
				var got string
				if client.command == nil {
					got = browse(t, serveRelay(t, url))
				} else {
					got = client.converse(t, serveRelay(t, url))
				}
				want := slices.DeleteFunc(slices.Clone(conversation), func(line string) bool {
					return slices.ContainsFunc(client.lacks, func(lacks string) bool { return strings.HasPrefix(line, lacks) })
				})
				if got != strings.Join(want, "\n")+"\n" {
					t.Errorf("the client prints\n%s, want\n%s", got, strings.Join(want, "\n"))
				}
				var closed []string
				for len(closed) < len(closes) && printed.Scan() {
					closed = append(closed, printed.Text())
				}
				slices.Sort(closed) // a connection may end after the next has begun
				if !slices.Equal(closed, closes) {
					t.Errorf("the server prints %q, want %q", closed, closes)
				}
			})
		}
	}
}

// browse has the conversation on a page in a browser.
func browse(t *testing.T, url string) string {
	t.Helper()
	reports := make(chan string, 1)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, `<!doctype html><script type="module">import { converse } from "/conversation.mjs";
const lines = await converse(WebSocket, %q).catch((error) => [String(error)]);
await fetch("/report", { method: "POST", body: lines.join("\n") + "\n" });</script>`, url)
		case "/conversation.mjs":
			w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
			http.ServeFile(w, r, "../../testdata/sdk/conversation.mjs")
		case "/report":
			body, _ := io.ReadAll(r.Body)
			reports <- string(body)
		default:
			http.NotFound(w, r)
		}
	}))
	defer page.Close()
	profile, err := os.MkdirTemp("", "websocket-browser") // its last processes may still write when the test ends
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(profile)
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--user-data-dir="+profile, "--remote-debugging-port=0", page.URL+"/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a browser is many processes
	if err := cmd.Start(); err != nil {
		t.Fatalf("pages are tested in a real browser (`make integration` installs it): %v", err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	select {
	case report := <-reports:
		return report
	case <-time.After(time.Minute):
		t.Error("the page reports nothing")
		return ""
	}
}

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchClients is how many connections, each with one request under way, load the service.
const benchClients = 64

// BenchmarkHTTP measures requests over loopback from parallel clients. The clients cost next to nothing (they
// allocate nothing), so the allocations are the server's; but they and Redis run on the same cores. What counts is
// therefore the ratio to the floor, which is the same shape of handler with no Redis, taken in the same run.
func BenchmarkHTTP(b *testing.B) {
	s := newService(b, "LOGIN_LIMIT=100000")
	tenant := newTenant(b, maxAmount)
	key := s.login(b, tenant)
	floor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err != nil || len(body) == 0 {
			panic("no body")
		}
		_ = writeJSON(w, http.StatusOK, struct {
			TokensLeft int64 `json:"tokensLeft"`
		}{maxAmount})
	}))
	defer floor.Close()

	const body = `{"tokens":1}`
	runs := []struct{ name, url, method, path, token, body string }{
		{"floor", floor.URL, "POST", "/" + tenant + "/tokens/consume", key, body},
		{"login", s.url, "POST", "/" + tenant + "/auth/anonymous", "", ""},
		{"consume", s.url, "POST", "/" + tenant + "/tokens/consume", key, body},
		{"config", s.url, "GET", "/" + tenant + "/admin/config", testAdminToken, ""},
	}
	rates := make(map[string]float64)
	for _, run := range runs {
		b.Run(run.name, func(b *testing.B) {
			request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: tollgate\r\nContent-Length: %d\r\n%s\r\n\r\n%s",
				run.method, run.path, len(run.body), bearer(run.token), run.body)
			rates[run.name] = load(b, strings.TrimPrefix(run.url, "http://"), []byte(request))
		})
	}
	fmt.Println()
	for _, run := range runs {
		if rates[run.name] > 0 && rates["floor"] > 0 {
			fmt.Printf("%-8s %8.0f req/s  %.2f of the floor\n", run.name, rates[run.name], rates[run.name]/rates["floor"])
		}
	}
}

// load sends request b.N times over benchClients connections and returns how many were answered a second, all with 200.
func load(b *testing.B, address string, request []byte) float64 {
	b.ReportAllocs()
	connections := make([]net.Conn, benchClients)
	for i := range connections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		connections[i] = c
	}
	commands, reads := redisWork(b)
	start := time.Now()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range connections {
		wg.Go(func() {
			answers := bufio.NewReader(c)
			for n := i; n < b.N; n += benchClients {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if err := readAnswer(answers); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	rate := float64(b.N) / time.Since(start).Seconds()
	commandsAfter, readsAfter := redisWork(b)
	b.ReportMetric(rate, "req/s")
	b.ReportMetric(float64(commandsAfter-commands)/float64(b.N), "redis-cmds/op")
	b.ReportMetric(float64(readsAfter-reads)/float64(b.N), "redis-reads/op")
	return rate
}

// readAnswer reads one answer, which must be a 200 with a Content-Length, and allocates nothing.
func readAnswer(r *bufio.Reader) error {
	size := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("answered %q", line)
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			size = 0
			for _, digit := range bytes.TrimSpace(value) {
				size = size*10 + int(digit-'0')
			}
		}
		if len(line) == 2 {
			break
		}
	}
	if size < 0 {
		return fmt.Errorf("no Content-Length")
	}
	_, err := r.Discard(size)
	return err
}

// redisWork is how many commands Redis has run so far, those that scripts call included, and how often it has read
// from a connection: once a round trip at most.
func redisWork(b *testing.B) (commands, reads int) {
	info := testRedis.string(b, "INFO", "stats")
	commands, _ = strconv.Atoi(infoField(info, "total_commands_processed"))
	reads, _ = strconv.Atoi(infoField(info, "total_reads_processed"))
	return commands, reads
}

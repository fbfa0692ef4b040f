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

	many := make([]string, 1000)
	for i := range many {
		many[i] = s.login(b, tenant)
	}
	limited := testRedis.newTenant(b, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d,"rate_limit":100000,"rate_limit_window":1}}}`, int64(maxAmount)))
	limitedKeys := []string{s.login(b, limited)}
	one := []string{key}
	const charge = `{"tokens":1}`
	runs := []struct {
		name, url, method, path string
		tokens                  []string
		header, body            string
	}{
		{"floor", floor.URL, "POST", "/" + tenant + "/tokens/consume", one, "", charge},
		{"login", s.url, "POST", "/" + tenant + "/auth/anonymous", one, "", ""},
		{"consume", s.url, "POST", "/" + tenant + "/tokens/consume", one, "", charge},
		{"consume, 1,000 keys", s.url, "POST", "/" + tenant + "/tokens/consume", many, "", charge},
		{"consume, rate limit", s.url, "POST", "/" + limited + "/tokens/consume", limitedKeys, "", charge},
		{"consume, Idempotency-Key", s.url, "POST", "/" + tenant + "/tokens/consume", many, retryKey + serial + "\r\n", charge},
		{"verify", s.url, "GET", "/" + tenant + "/auth/verify?tokens=1", one, "", ""},
		{"config", s.url, "GET", "/" + tenant + "/admin/config", []string{testAdminToken}, "", ""},
	}
	rates := make(map[string]float64)
	for _, run := range runs {
		b.Run(run.name, func(b *testing.B) {
			var requests [][]byte
			for _, token := range run.tokens {
				requests = append(requests, fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: tollgate\r\nContent-Length: %d\r\n%s%s\r\n\r\n%s",
					run.method, run.path, len(run.body), run.header, bearer(token), run.body))
			}
			rates[run.name] = load(b, strings.TrimPrefix(run.url, "http://"), requests)
		})
	}
	fmt.Println()
	for _, run := range runs {
		if rates[run.name] > 0 && rates["floor"] > 0 {
			fmt.Printf("%-24s %8.0f req/s  %.2f of the floor\n", run.name, rates[run.name], rates[run.name]/rates["floor"])
		}
	}
}

// serial stands in a request where each that is sent has a number of its own.
const serial = "000000000000"

// load sends b.N requests, the given ones in turn, over benchClients connections and returns how many were answered a
// second, all with 200.
func load(b *testing.B, address string, requests [][]byte) float64 {
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
	run := time.Now().UnixNano() / 1000 % 1_000_000 * 1_000_000 // no other run has its numbers
	before := redisWork(b)
	start := time.Now()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range connections {
		wg.Go(func() {
			answers := bufio.NewReader(c)
			request := make([]byte, 0, 1024)
			for n := i; n < b.N; n += benchClients {
				request = append(request[:0], requests[n%len(requests)]...)
				if at := bytes.Index(request, []byte(serial)); at >= 0 {
					strconv.AppendInt(request[:at], 1e11+(run+int64(n))%1e11, 10)
				}
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
	b.ReportMetric(rate, "req/s")
	for name, n := range redisWork(b) {
		b.ReportMetric(float64(n-before[name])/float64(b.N), name)
	}
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

// redisWork is what Redis has done so far, by the name of the metric: commands that the service sent (scripts, and
// the two that load a config), reads from connections (at most one a round trip), and commands with those that scripts
// call.
func redisWork(b *testing.B) map[string]int {
	info := testRedis.string(b, "INFO", "everything")
	calls := func(command string) (n int) {
		fmt.Sscanf(infoField(info, "cmdstat_"+command), "calls=%d", &n)
		return n
	}
	field := func(name string) (n int) {
		fmt.Sscan(infoField(info, name), &n)
		return n
	}
	return map[string]int{
		"redis-sent/op":  calls("evalsha") + calls("eval") + 2*calls("pttl"),
		"redis-reads/op": field("total_reads_processed"),
		"redis-calls/op": field("total_commands_processed"),
	}
}

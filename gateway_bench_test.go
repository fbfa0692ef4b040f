package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

const (
	benchReply = `{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",` +
		`"content":"Hello! How can I help you today?"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}`
	benchEvent = `data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,` +
		`"delta":{"content":" token"},"finish_reason":null}]}` + "\n\n"
	benchEnd = `data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" +
		`data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":100}}` + "\n\ndata: [DONE]\n\n"
	benchResponse = `{"id":"resp_%d","object":"response","status":"completed","model":"m","output":[{"id":"msg_%[1]d",` +
		`"type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","annotations":[],` +
		`"text":"Hello! How can I help you today?"}]}],` +
		`"usage":{"input_tokens":9,"output_tokens":9,"total_tokens":18}}`
	benchDelta = `event: response.output_text.delta` + "\n" + `data: {"type":"response.output_text.delta","item_id":"msg_1",` +
		`"output_index":0,"content_index":0,"delta":" token","logprobs":[],"obfuscation":"aB3"}` + "\n\n"
	benchCompleted = "event: response.completed\n" + `data: {"type":"response.completed","response":%s}` + "\n\n"

	benchVectors = `{"object":"list","data":[{"object":"embedding","index":0,"embedding":"%s"}],"model":"m",` +
		`"usage":{"prompt_tokens":9,"total_tokens":9}}`
	benchVector = 8 << 10 // bytes of an embedding of 1,536 numbers, in base64
	manyVectors = 4 << 20 // bytes of a long response

	benchEvents = 100
	sentAt      = ": sent at " // begins the comment with the time of a stream's first event
)

// benchProvider responds as fast as net/http can: whole, with a stream of benchEvents events, with one that is silent
// after its first event, or with a session.
func benchProvider(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, realtimePath) {
		benchSession(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	reply, event, end := benchReply, benchEvent, benchEnd
	if strings.HasSuffix(r.URL.Path, responsesRoute) {
		reply = fmt.Sprintf(benchResponse, time.Now().UnixNano())
		event, end = benchDelta, fmt.Sprintf(benchCompleted, reply)
	}
	if strings.HasSuffix(r.URL.Path, embeddingsPath) {
		w.Header().Set("Content-Type", "application/json")
		size := benchVector
		if bytes.Contains(body, []byte("dimensions")) {
			size = manyVectors
		}
		before, after, _ := strings.Cut(benchVectors, "%s")
		part := strings.Repeat("A", benchVector)
		_, _ = io.WriteString(w, before)
		for range size / len(part) {
			_, _ = io.WriteString(w, part)
		}
		_, _ = io.WriteString(w, after)
		return
	}
	if !bytes.Contains(body, []byte(`"stream":true`)) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, reply)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "%s%d\n%s", sentAt, time.Now().UnixNano(), event)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	if bytes.Contains(body, []byte("silent")) {
		<-r.Context().Done()
		return
	}
	for range benchEvents - 1 {
		_, _ = io.WriteString(w, event)
		_ = flush()
	}
	_, _ = io.WriteString(w, end)
}

// runBenchServer serves in a process of its own, as startCommand starts it: the provider, or a bare proxy to the URL role.
func runBenchServer(role string) {
	var handler http.Handler = http.HandlerFunc(benchProvider)
	if target, err := url.Parse(role); err == nil && target.Host != "" {
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Else a fast response could close the request's body before the transport has seen its end.
			_ = http.NewResponseController(w).EnableFullDuplex()
			proxy.ServeHTTP(w, r)
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Fprintln(os.Stderr, "[INFO] Listening on", l.Addr())
		err = http.Serve(l, handler)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// benchWay is a way to the provider.
type benchWay struct {
	name, address, path string
	process             *process        // whose processor time counts
	rates               []float64       // requests a second of each round
	micros              []float64       // of the processor for a request, of each round
	times               []time.Duration // of requests
	firsts              []time.Duration // from when the provider sent the first event until it came
}

// BenchmarkGateway compares the way through tollgate, which holds and settles, with that through a bare
// httputil.ReverseProxy and with the provider itself, and through tollgate at the commit BASE, if that is set. The runs of
// a round are interleaved.
func BenchmarkGateway(b *testing.B) {
	for b.Loop() {
		server := func(role string) *process {
			return startCommand(b, exec.Command(os.Args[0]), []string{"TOLLGATE_RUN_BENCH=" + role, "GOGC=400"})
		}
		provider := server("provider")
		proxy := server("http://" + provider.address(b))
		r := redistest.New(b, "--appendonly", "no")
		settings := append([]string{"REDIS_URL=" + r.URL()}, benchSettings...)
		p := startCommand(b, exec.Command(buildBinary(b, "")), settings)
		s := &service{url: "http://" + p.address(b)}
		tenant := newTenantIn(b, r, gatewayConfig(provider.address(b)))
		key := s.login(b, tenant)
		var former *process
		if commit := os.Getenv("BASE"); commit != "" {
			former = startCommand(b, exec.Command(buildBinary(b, commit)), settings)
		}

		fmt.Print("\n| | connections | by way of | requests/s | of the proxy | median ms | first event ms | server µs |\n" +
			"|---|---|---|---|---|---|---|---|\n")
		for _, kind := range benchKinds() {
			for _, connections := range []int{1, 64} {
				ways := []*benchWay{
					{name: "a bare proxy", process: proxy, path: kind.path},
					{name: "nothing", process: provider, path: kind.path},
					{name: "tollgate", process: p, path: "/" + tenant + kind.path},
				}
				if former != nil && kind.isServedBy(b, former, tenant, key) {
					ways = append(ways, &benchWay{name: "tollgate, at BASE", process: former, path: "/" + tenant + kind.path})
				}
				for round := range speedRounds {
					order := slices.Clone(ways)
					if round%2 == 1 {
						slices.Reverse(order)
					}
					for _, way := range order {
						way.address = way.process.address(b)
						way.run(b, key, kind.body, connections)
					}
				}
				for _, way := range ways {
					fmt.Printf("| %s | %d | %s | %.0f | %.2f | %.3f | %s | %.1f |\n", kind.name, connections, way.name,
						median(way.rates), median(way.rates)/median(ways[0].rates), milliseconds(way.times),
						firstColumn(way.firsts), median(way.micros))
				}
			}
		}
		for _, one := range []*process{p, former} {
			if one != nil {
				one.kill()
			}
		}
	}
}

// A benchKind is a kind of request that is measured.
type benchKind struct{ name, path, body string }

func benchKinds() []benchKind {
	const messages = `"messages":[{"role":"user","content":"Hello!"}]}`
	const input = `"input":[{"role":"user","content":"Hello!"}]}`
	return []benchKind{
		{"completion", chatPath, `{"model":"m","max_tokens":100,` + messages},
		{"stream of 100 events", chatPath, `{"model":"m","max_tokens":200,"stream":true,` + messages},
		{"response", responsesRoute, `{"model":"m","max_output_tokens":100,` + input},
		{"response as a stream", responsesRoute, `{"model":"m","max_output_tokens":200,"stream":true,` + input},
		{"embedding", embeddingsPath, `{"model":"m","encoding_format":"base64","input":"Hello!"}`},
		{"embeddings of 4 MB", embeddingsPath, `{"model":"m","encoding_format":"base64","dimensions":3072,"input":"Hello!"}`},
	}
}

// isServedBy reports whether the service of p has the route: an earlier one may not.
func (kind benchKind) isServedBy(b *testing.B, p *process, tenant, key string) bool {
	b.Helper()
	s := &service{url: "http://" + p.address(b)}
	got, err := s.send("POST", "/"+tenant+kind.path, kind.body, bearer(key))
	if err != nil {
		b.Fatal(err)
	}
	return got.status == http.StatusOK
}

// openSilentStreams opens that many streams of the benchmarks' provider, which are silent after their first event.
func openSilentStreams(b *testing.B, s *service, r *redistest.Server, provider, path string, n int) (closeAll func()) {
	b.Helper()
	tenant := newTenantIn(b, r, gatewayConfig(provider))
	key := ""
	var opened []net.Conn
	for i := range n {
		if i%200 == 0 { // within the share of one key
			key = s.login(b, tenant)
		}
		c, err := net.Dial("tcp", s.address())
		if err != nil {
			b.Fatal(err)
		}
		opened = append(opened, c)
		body := `{"stream":true,"max_tokens":10,"user":"silent"}`
		if path == responsesRoute {
			body = `{"stream":true,"max_output_tokens":16,"user":"silent"}`
		}
		fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: x\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s",
			tenant, path, key, len(body), body)
		head, err := bufio.NewReader(c).ReadString('}')
		if err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			b.Fatalf("%q, %v", head, err)
		}
	}
	return func() {
		for _, c := range opened {
			c.Close()
		}
	}
}

// gatewayConfig is the config of a tenant whose requests go to the benchmarks' provider.
func gatewayConfig(provider string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%[1]d}},"providers":{"text":{"endpoints":{`+
		`"a":{"url":"http://%[2]s%[3]s","default_model":"m"},"r":{"url":"http://%[2]s%[5]s","default_model":"m"}}},`+
		`"embeddings":{"endpoints":{"v":{"url":"http://%[2]s%[4]s","default_model":"m"}}}}}`,
		int64(maxAmount), provider, chatPath, embeddingsPath, responsesRoute)
}

func milliseconds(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2].Microseconds()) / 1000
}

func firstColumn(times []time.Duration) string {
	if len(times) == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", milliseconds(times))
}

// run sends requests for speedTime over that many connections.
func (way *benchWay) run(b *testing.B, key, body string, connections int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), speedTime)
	defer cancel()
	var mu sync.Mutex
	var clients sync.WaitGroup
	requests := 0
	user, system := cpuMicros(b, way.process.cmd.Process.Pid)
	for range connections {
		clients.Go(func() {
			times, firsts := way.send(b, ctx, key, body)
			mu.Lock()
			defer mu.Unlock()
			requests += len(times)
			way.times = append(way.times, times...)
			way.firsts = append(way.firsts, firsts...)
		})
	}
	clients.Wait()
	userAfter, systemAfter := cpuMicros(b, way.process.cmd.Process.Pid)
	way.micros = append(way.micros, (userAfter+systemAfter-user-system)/float64(max(requests, 1)))
	way.rates = append(way.rates, float64(requests)/speedTime.Seconds())
}

// send sends requests on one connection until ctx is done, and returns how long each took.
func (way *benchWay) send(b *testing.B, ctx context.Context, key, body string) (times, firsts []time.Duration) {
	c, err := net.Dial("tcp", way.address)
	if err != nil {
		b.Error(err)
		return nil, nil
	}
	defer c.Close()
	reader := bufio.NewReader(c)
	request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s",
		way.path, key, len(body), body)
	for ctx.Err() == nil {
		began := time.Now()
		if _, err := c.Write(request); err != nil {
			b.Error(err)
			return times, firsts
		}
		first, err := way.receive(reader)
		if err != nil {
			b.Errorf("%s: %v", way.name, err)
			return times, firsts
		}
		times = append(times, time.Since(began))
		if first > 0 {
			firsts = append(firsts, first)
		}
	}
	return times, firsts
}

// receive reads a response and, if it is a stream, returns how long its first event was on its way.
func (way *benchWay) receive(reader *bufio.Reader) (first time.Duration, err error) {
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s", response.Status)
	}
	part := make([]byte, 4096)
	n, err := response.Body.Read(part)
	if sent, isStream := strings.CutPrefix(string(part[:n]), sentAt); isStream {
		stamp, _, _ := strings.Cut(sent, "\n")
		nanos, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			return 0, err
		}
		first = time.Since(time.Unix(0, nanos))
	}
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
	}
	if err == io.EOF {
		err = nil
	}
	return first, err
}

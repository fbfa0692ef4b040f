package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tollgate/internal/redistest"
)

// What the benchmarks measure, and what they measure it against, each in a process of its own: deployed as in production,
// but on one machine with the load and with Redis.

// benchSettings are the settings of tollgate, with the garbage collector as `make run` sets it.
var benchSettings = []string{"GOGC=400", "GOMEMLIMIT=256MiB", "LOGIN_LIMIT=0", "ADDR=" + freeAddress, "ADMIN_TOKEN=" + testAdminToken}

const freeAddress = "127.0.0.1:0"

// buildBinary builds tollgate as it is released, at a commit, or as it is here if that is "".
func buildBinary(t testing.TB, commit string) string {
	t.Helper()
	dir := "."
	if commit != "" {
		dir = t.TempDir()
		archive := exec.Command("sh", "-c", `git archive -o "$1/all.tar" "$0" && tar -x -C "$1" -f "$1/all.tar"`, commit, dir)
		if out, err := archive.CombinedOutput(); err != nil {
			t.Fatalf("commit %s: %v\n%s", commit, err, out)
		}
	}
	binary := filepath.Join(t.TempDir(), "tollgate")
	build := exec.Command("go", "build", "-C", dir, "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// startBenchServer starts runBenchServer in a process of its own.
func startBenchServer(b *testing.B, role, address string, settings ...string) *process {
	b.Helper()
	all := append([]string{"TOLLGATE_RUN_BENCH=" + role, "ADDR=" + address, "GOGC=400", "GOMEMLIMIT=256MiB"}, settings...)
	return startCommand(b, exec.Command(os.Args[0]), all)
}

// runBenchServer serves at ADDR: the floor, the provider, or a bare proxy to the URL role.
func runBenchServer(role string) {
	handler := map[string]http.HandlerFunc{"floor": benchFloor, "provider": benchProvider}[role]
	if handler == nil {
		handler = benchProxy(role)
	}
	l, err := net.Listen("tcp", os.Getenv("ADDR"))
	if err == nil {
		fmt.Fprintln(os.Stderr, "[INFO] Listening on", l.Addr())
		err = http.Serve(l, handler)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// benchFloor responds as a charge does, by net/http and encoding/json with nothing behind them, and to a GET with nothing.
func benchFloor(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		return
	}
	var body struct {
		Tokens int64 `json:"tokens"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	_ = json.NewEncoder(w).Encode(struct {
		TokensLeft int64 `json:"tokensLeft"`
	}{maxAmount - body.Tokens})
}

// benchProxy relays to the URL with what the standard library has for it.
func benchProxy(to string) http.HandlerFunc {
	target, err := url.Parse(to)
	if err != nil {
		panic(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	return func(w http.ResponseWriter, r *http.Request) {
		// Else a fast response could close the request's body before the transport has seen its end.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	}
}

const (
	benchReply = `{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",` +
		`"content":"Hello! How can I help you today?"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}`
	benchEvent = `data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,` +
		`"delta":{"content":"%s"},"finish_reason":null}]}` + "\n\n"
	benchEnd = `data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" +
		`data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":100}}` + "\n\ndata: [DONE]\n\n"
	benchResponse = `{"id":"resp_%d","object":"response","status":"completed","model":"m","output":[{"id":"msg_%[1]d",` +
		`"type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","annotations":[],` +
		`"text":"Hello! How can I help you today?"}]}],` +
		`"usage":{"input_tokens":9,"output_tokens":9,"total_tokens":18}}`
	benchDelta = `event: response.output_text.delta` + "\n" + `data: {"type":"response.output_text.delta","item_id":"msg_1",` +
		`"output_index":0,"content_index":0,"delta":"%s","logprobs":[],"obfuscation":"aB3"}` + "\n\n"
	benchCompleted = "event: response.completed\n" + `data: {"type":"response.completed","response":%s}` + "\n\n"

	benchVectors = `{"object":"list","data":[{"object":"embedding","index":0,"embedding":"%s"}],"model":"m",` +
		`"usage":{"prompt_tokens":9,"total_tokens":9}}`
	benchVector = 8 << 10 // bytes of an embedding of 1,536 numbers, in base64
	manyVectors = 4 << 20 // bytes of a long response

	benchEvents = 100
)

// benchProvider responds as fast as net/http can: whole, with a stream of benchEvents events, with one that is silent
// after its first event, or with a session.
func benchProvider(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, realtimePath) {
		benchSession(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	if strings.HasSuffix(r.URL.Path, embeddingsPath) {
		writeVectors(w, body)
		return
	}
	reply, event, end := benchReply, benchEvent, benchEnd
	if strings.HasSuffix(r.URL.Path, responsesRoute) {
		reply = fmt.Sprintf(benchResponse, time.Now().UnixNano())
		event, end = benchDelta, fmt.Sprintf(benchCompleted, reply)
	}
	if !bytes.Contains(body, []byte(`"stream":true`)) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, reply)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, event, fmt.Sprintf("%s%d", sentAt, time.Now().UnixNano()))
	flush := http.NewResponseController(w).Flush
	_ = flush()
	if bytes.Contains(body, []byte("silent")) {
		<-r.Context().Done()
		return
	}
	token := fmt.Sprintf(event, " token")
	for range benchEvents - 1 {
		_, _ = io.WriteString(w, token)
		_ = flush()
	}
	_, _ = io.WriteString(w, end)
}

// writeVectors writes one embedding or, if the request wants dimensions, manyVectors bytes of them.
func writeVectors(w http.ResponseWriter, request []byte) {
	w.Header().Set("Content-Type", "application/json")
	size := benchVector
	if bytes.Contains(request, []byte("dimensions")) {
		size = manyVectors
	}
	before, after, _ := strings.Cut(benchVectors, "%s")
	part := strings.Repeat("A", benchVector)
	_, _ = io.WriteString(w, before)
	for range size / len(part) {
		_, _ = io.WriteString(w, part)
	}
	_, _ = io.WriteString(w, after)
}

// gatewayConfig is the config of a tenant whose requests go to the benchmarks' provider.
func gatewayConfig(provider string) string {
	return fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%[1]d}},"providers":{"text":{"endpoints":{`+
		`"a":{"url":"http://%[2]s%[3]s","default_model":"m"},"r":{"url":"http://%[2]s%[5]s","default_model":"m"}}},`+
		`"embeddings":{"endpoints":{"v":{"url":"http://%[2]s%[4]s","default_model":"m"}}}}}`,
		int64(maxAmount), provider, chatPath, embeddingsPath, responsesRoute)
}

// cpuMicros is the processor time that a process has used so far: that of its threads, which Linux counts in nanoseconds.
// That of the whole process comes in steps of 10 ms.
func cpuMicros(b *testing.B, pid int) (micros float64) {
	b.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if len(threads) == 0 {
		b.Fatal("Linux has no processor time of process ", pid)
	}
	for _, thread := range threads {
		var nanos float64
		text, _ := os.ReadFile(thread)
		fmt.Sscan(string(text), &nanos)
		micros += nanos / 1000
	}
	return micros
}

func residentKiB(b *testing.B, pid int) (n int) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	fmt.Sscan(redistest.Field(string(status), "VmRSS"), &n)
	return n
}

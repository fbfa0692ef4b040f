package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tollgate/internal/redisdb"
	"tollgate/internal/redistest"
	"tollgate/internal/telemetrytest"

	"github.com/gomodule/redigo/redis"
)

// What all tests use, in four sections: Redis, service, HTTP, waiting.

// ---- Redis ----------------------------------------------------------------------------------------------------------

const (
	testAdminToken = "test-admin-token"
)

// testRedis is the Redis of all tests that do not stop, freeze, restart or configure theirs. Each test has tenants of
// its own there. It is the server at TEST_REDIS_URL, if that is set, else one that TestMain starts, or, if
// TEST_REDIS_TOPOLOGY is "cluster", a Redis Cluster of three masters.
var testRedis *redistest.Server

func TestMain(m *testing.M) {
	if os.Getenv("TOLLGATE_RUN_MAIN") != "" { // startProcess runs this binary as the program itself
		main()
		os.Exit(0)
	}
	if kind := os.Getenv("TOLLGATE_RUN_FLOOR"); kind != "" {
		runFloor(kind)
	}
	if role := os.Getenv("TOLLGATE_RUN_BENCH"); role != "" {
		runBenchServer(role)
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = parallel.Set("8") // the default is for tests that compute: those that are parallel here wait
	}
	os.Exit(func() int {
		server, err := redistest.StartShared()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer server.Close()
		defer redistest.CloseSharedCluster()
		testRedis = server
		return m.Run()
	}())
}

// singleRedis returns testRedis or, if that is a cluster, a server of the test's own.
func singleRedis(t testing.TB) *redistest.Server {
	t.Helper()
	if testRedis.Cluster != nil {
		return redistest.New(t)
	}
	return testRedis
}

// tokensLeft returns the balance of an API key.
func tokensLeftIn(t testing.TB, r *redistest.Server, key string) int {
	t.Helper()
	return r.Int(t, "HGET", "apiKey:"+key, "tokensLeft")
}

var tenants atomic.Int64

// newTenantID returns a tenant ID that no other test has.
func newTenantID() string { return fmt.Sprintf("t%d", tenants.Add(1)) }

// newTenant puts config straight into Redis, as an operator may, under an ID that no other test has.
func newTenantIn(t testing.TB, r *redistest.Server, config string) string {
	t.Helper()
	id := newTenantID()
	r.Do(t, "SET", "tenant:"+id+":config", config)
	return id
}

// newTenant creates a tenant in testRedis whose anonymous users get that many tokens.
func newTenant(t testing.TB, tokens int) string {
	t.Helper()
	return newTenantIn(t, testRedis, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d},"pro":{"tokens":5000}}}`, tokens))
}

// limitedTenant creates a tenant in testRedis whose group anonymous has 1,000 tokens and that rate limit.
func limitedTenant(t testing.TB, limit, window int) string {
	t.Helper()
	return newTenantIn(t, testRedis, fmt.Sprintf(
		`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d},"pro":{"tokens":5000}}}`, limit, window))
}

// tokensLeft returns the balance of an API key in testRedis.
func tokensLeft(t testing.TB, key string) int {
	t.Helper()
	return tokensLeftIn(t, testRedis, key)
}

// ---- Service --------------------------------------------------------------------------------------------------------

// service is the whole program, running in this process.
type service struct {
	url  string
	log  *telemetrytest.Log
	stop func() error // returns what run returned
}

// newService runs the program on testRedis, or as the settings (NAME=value) say, until the test ends.
func newService(t testing.TB, settings ...string) *service {
	t.Helper()
	env := map[string]string{
		"REDIS_URL": testRedis.URL(), "ADDR": "127.0.0.1:0", "ADMIN_TOKEN": testAdminToken, "LOGIN_LIMIT": "0",
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		env[name] = value
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{log: new(telemetrytest.Log)}
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = run(ctx, nil, func(name string) string { return env[name] }, io.Discard, s.log)
	}()
	s.stop = func() error {
		cancel()
		for {
			client.CloseIdleConnections() // the service would wait a moment for what may come on them
			select {
			case <-done:
				return err
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("the service ended with: %v", err)
		}
	})
	s.url = "http://" + s.log.Wait(t, "[INFO] Listening on ", done)
	return s
}

// newServices runs the program twice, with the same settings.
func newServices(t testing.TB, settings ...string) []*service {
	t.Helper()
	return []*service{newService(t, settings...), newService(t, settings...)}
}

// process is the program in a process of its own, for what only a process has: signals and an exit code.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	log    *telemetrytest.Log
	done   chan struct{}
}

// startProcess starts the program with just these settings (NAME=value) and arguments.
func startProcess(t *testing.T, settings []string, args ...string) *process {
	t.Helper()
	// The race detector would have each process wait for a second before it ends.
	env := append(settings, "TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+t.TempDir())
	return startCommand(t, exec.Command(os.Args[0], args...), env)
}

func startCommand(t testing.TB, cmd *exec.Cmd, env []string) *process {
	t.Helper()
	p := &process{cmd: cmd, log: new(telemetrytest.Log), done: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// address returns where the process listens, once it does.
func (p *process) address(t testing.TB) string {
	t.Helper()
	return p.log.Wait(t, "[INFO] Listening on ", p.done)
}

// service returns the process as a service.
func (p *process) service(t testing.TB) *service {
	t.Helper()
	return &service{url: "http://" + p.address(t), log: p.log}
}

func (p *process) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("the process still runs:\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

// ---- HTTP -----------------------------------------------------------------------------------------------------------

const (
	uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	timeLayout  = "2006-01-02T15:04:05.000Z"

	// someKey looks like an API key, but no test creates it.
	someKey = "user_11111111-2222-4333-8444-555555555555"

	retryKey = "Idempotency-Key: "
)

// reply is a response of the service.
type reply struct {
	status int
	header http.Header
	body   string
}

// client keeps a connection for each of the goroutines that race in tests, and follows no redirect.
var client = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       30 * time.Second,
}

// send sends one request. Each header is written "Name: value"; body may be empty.
func (s *service) send(method, path, body string, headers ...string) (reply, error) {
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	response, err := client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(content)}, err
}

func (s *service) do(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	got, err := s.send(method, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	got.wantDocumented(t, method, path)
	return got
}

// admin sends a request with the operator's token.
func (s *service) admin(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, method, path, body, append(headers, bearer(testAdminToken))...)
}

// login creates an anonymous key.
func (s *service) login(t testing.TB, tenant string) string {
	t.Helper()
	got := s.do(t, "POST", "/"+tenant+"/auth/anonymous", "")
	got.want(t, 200, "")
	return got.text(t, "apiKey")
}

// issue creates a registered user's key from the members of a request's body.
func (s *service) issue(t testing.TB, tenant, members string) string {
	t.Helper()
	got := s.admin(t, "POST", "/"+tenant+"/admin/keys", "{"+members+"}")
	got.want(t, 201, "")
	return got.text(t, "apiKey")
}

func (s *service) consume(t testing.TB, tenant, key, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/tokens/consume", body, append(headers, bearer(key))...)
}

// putConfig replaces a tenant's config.
func (s *service) putConfig(t testing.TB, tenant, config string, headers ...string) reply {
	t.Helper()
	return s.admin(t, "PUT", "/"+tenant+"/admin/config", `{"config":`+config+`}`, headers...)
}

// savedVersion is an element of a config's history.
type savedVersion struct{ ETag, SavedAt, SavedBy string }

// history returns the list of a config's versions.
func (s *service) history(t testing.TB, tenant string) []savedVersion {
	t.Helper()
	got := s.admin(t, "GET", "/"+tenant+"/admin/config/history", "")
	got.want(t, 200, "")
	var list struct{ Versions []savedVersion }
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || list.Versions == nil {
		t.Fatalf("%s: %v", got.body, err)
	}
	return list.Versions
}

// sample returns the value of a sample of /metrics, which is given as it is written there, or -1 if it is missing.
func (s *service) sample(t testing.TB, sample string) float64 {
	t.Helper()
	got := s.admin(t, "GET", "/metrics", "")
	if got.status != 200 || got.header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("%d %s %s", got.status, got.header.Get("Content-Type"), got.body)
	}
	for line := range strings.Lines(got.body) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			return n
		}
	}
	return -1
}

// loads returns how often the service has loaded tenant's config from Redis.
func (s *service) loads(tenant string) int {
	return s.log.Count("[INFO] Loaded tenant config for " + tenant + "\n")
}

func (s *service) address() string { return strings.TrimPrefix(s.url, "http://") }

// dial opens a connection to the service, for requests that net/http does not send.
func (s *service) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(in(30 * time.Second))
	return c.(*net.TCPConn)
}

// begin sends the head of a request on a connection of its own and returns the connection once the service waits for
// the body.
func (s *service) begin(t testing.TB, method, path string, bodySize int, headers ...string) *net.TCPConn {
	t.Helper()
	const going = "HTTP/1.1 100 Continue\r\n\r\n"
	c := s.dial(t)
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n%s\r\n\r\n",
		method, path, bodySize, strings.Join(headers, "\r\n"))
	got := make([]byte, len(going))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != going {
		t.Fatalf("%s %s: got %q, %v, want %q", method, path, got[:n], err, going)
	}
	return c
}

// readAll returns all that comes until the other side closes the connection, or the deadline.
func readAll(c net.Conn) string {
	content, _ := io.ReadAll(c)
	return string(content)
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// want compares a response with the contract. A body of "" stands for any body.
func (got reply) want(t testing.TB, status int, body string) {
	t.Helper()
	if got.status != status || body != "" && got.body != body+"\n" {
		t.Errorf("got %d %s\nwant %d %s", got.status, got.body, status, body)
	}
	if got.status != http.StatusNoContent && got.header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("Content-Type is %q", got.header.Get("Content-Type"))
	}
}

func (got reply) wantHeader(t testing.TB, name, value string) {
	t.Helper()
	if v := got.header.Get(name); v != value {
		t.Errorf("%d %s: %s is %q, want %q", got.status, strings.TrimSpace(got.body), name, v, value)
	}
}

// wantError checks that the response is an error in JSON with that message.
func (got reply) wantError(t testing.TB, status int, message string) {
	t.Helper()
	got.want(t, status, "")
	if text := got.field(t, "error"); text != message {
		t.Errorf("got the error %q, want %q", text, message)
	}
}

// field returns a member of the response's JSON object.
func (got reply) field(t testing.TB, name string) any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(got.body), &object); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	return object[name]
}

// text returns a member of the response's JSON object that is a string, and not empty.
func (got reply) text(t testing.TB, name string) string {
	t.Helper()
	text, _ := got.field(t, name).(string)
	if text == "" {
		t.Fatalf("%d %s: there is no %s", got.status, got.body, name)
	}
	return text
}

// etag returns the response's ETag, in its quotes.
func (got reply) etag(t testing.TB) string {
	t.Helper()
	etag := got.header.Get("ETag")
	if len(etag) < 10 || etag[0] != '"' || etag[len(etag)-1] != '"' {
		t.Fatalf("%d %s: ETag is %q", got.status, got.body, etag)
	}
	return etag
}

// bare returns an ETag without its quotes.
func bare(etag string) string { return strings.Trim(etag, `"`) }

// request is a request of a load.
type request struct {
	method, path, body string
	headers            []string
	amount             int // that tally.sum adds up
}

// consumeRequest returns the request that charges key.
func consumeRequest(tenant, key string, tokens int, headers ...string) request {
	return request{
		"POST", "/" + tenant + "/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, tokens), append(headers, bearer(key)), tokens,
	}
}

// load is many clients that send requests at the same time, each one after the other, in turn to all services.
type load struct {
	services []*service
	clients  int
	requests int                         // of each client; 0: until it is stopped, or until says so
	request  func(client, i int) request // returns the i-th request of a client
	statuses []int                       // that a response may have
	within   time.Duration               // of which every response must come; 0: any time
	retry    bool                        // repeat a request, at the next service, until its response is not 503
	until    func(outcome) bool          // reports whether the client has finished with this
}

// outcome is what became of a request.
type outcome struct {
	client       int
	sent         request
	got          reply
	err          error
	began, ended time.Time
}

// run sends the load and returns what became of it.
func (l load) run(t testing.TB) tally {
	t.Helper()
	return l.start(t).wait()
}

// start begins to send the load.
func (l load) start(t testing.TB) *runningLoad {
	running := &runningLoad{load: l}
	for g := range l.clients {
		running.clients.Go(func() {
			for i := 0; (l.requests == 0 || i < l.requests) && !running.stopped.Load(); i++ {
				if !running.send(t, g, i) {
					return
				}
			}
		})
	}
	return running
}

// runningLoad is a load that is being sent.
type runningLoad struct {
	load
	clients   sync.WaitGroup
	stopped   atomic.Bool
	succeeded atomic.Int64 // responses that were 200
	mu        sync.Mutex
	all       tally // guarded by mu
}

// stop waits until each client has finished its request and returns what became of all.
func (r *runningLoad) stop() tally {
	r.stopped.Store(true)
	return r.wait()
}

// wait waits until the clients have finished and returns what became of their requests.
func (r *runningLoad) wait() tally {
	r.clients.Wait()
	return r.all
}

// more waits until n more requests than now have succeeded.
func (r *runningLoad) more(t testing.TB, n int64) {
	t.Helper()
	want := r.succeeded.Load() + n
	redistest.Eventually(t, 30*time.Second, func() error {
		if got := r.succeeded.Load(); got < want {
			return fmt.Errorf("%d requests have succeeded, want %d", got, want)
		}
		return nil
	})
}

// send sends a client's i-th request and reports whether the client goes on.
func (r *runningLoad) send(t testing.TB, client, i int) bool {
	sent := r.request(client, i)
	for giveUp, try := in(30*time.Second), 0; ; try++ {
		o := outcome{client: client, sent: sent, began: time.Now()}
		s := r.services[(client+i+try)%len(r.services)]
		o.got, o.err = s.send(sent.method, sent.path, sent.body, sent.headers...)
		o.ended = time.Now()
		if o.err == nil && o.got.status == 200 {
			r.succeeded.Add(1)
		}
		r.mu.Lock()
		r.all = append(r.all, o)
		r.mu.Unlock()
		if r.until != nil && r.until(o) {
			return false
		}
		again := r.retry && o.err == nil && o.got.status == 503 && time.Now().Before(giveUp)
		if o.err != nil || !again && !slices.Contains(r.statuses, o.got.status) {
			t.Errorf("%s %s: %d %s, %v", sent.method, sent.path, o.got.status, o.got.body, o.err)
			return false
		}
		if took := o.ended.Sub(o.began); r.within > 0 && took > r.within {
			t.Errorf("%s %s: %d %s after %s", sent.method, sent.path, o.got.status, o.got.body, took)
			return false
		}
		if !again {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tally is what became of a load's requests, in the order in which they ended.
type tally []outcome

// of returns the outcomes of requests with that method ("": any) whose response had that status.
func (all tally) of(method string, status int) (found tally) {
	for _, o := range all {
		if (method == "" || o.sent.method == method) && o.err == nil && o.got.status == status {
			found = append(found, o)
		}
	}
	return found
}

// replayed returns the outcomes that are replays of an earlier charge, if want is true, or those that are not.
func (all tally) replayed(want bool) (found tally) {
	for _, o := range all {
		if (o.got.header.Get("Idempotent-Replayed") == "true") == want {
			found = append(found, o)
		}
	}
	return found
}

// sum returns the sum of the requests' amounts.
func (all tally) sum() (sum int) {
	for _, o := range all {
		sum += o.sent.amount
	}
	return sum
}

// ---- Waiting --------------------------------------------------------------------------------------------------------

// long marks a load or fault suite: it is left out if the tests are run with -short, and for no other reason.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short")
	}
}

// busy is what a busy machine may add to the time that a response takes.
const busy = 500 * time.Millisecond

func in(d time.Duration) time.Time { return time.Now().Add(d) }

// is returns an error unless the response has that status.
func (got reply) is(status int) error {
	if got.status != status {
		return fmt.Errorf("got %d %s, want %d", got.status, strings.TrimSpace(got.body), status)
	}
	return nil
}

// wantConfig waits until the service serves that config, or none if it is "".
func (s *service) wantConfig(t testing.TB, tenant, config string) {
	t.Helper()
	redistest.Eventually(t, time.Second+busy, func() error {
		got := s.admin(t, "GET", "/"+tenant+"/admin/config", "")
		if config == "" {
			return got.is(400)
		}
		if want := `{"config":` + config + "}\n"; got.body != want {
			return fmt.Errorf("got %d %s, want %s", got.status, got.body, want)
		}
		return nil
	})
}

// wantRecovery waits until the service works again.
func (s *service) wantRecovery(t testing.TB) {
	t.Helper()
	redistest.Eventually(t, 2*time.Second+busy, func() error {
		return s.do(t, "POST", "/abc/auth/anonymous", "").is(200)
	})
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
}

// wantOneFault checks, after recovery, that the log says once that Redis was unavailable and once that it is back.
func (s *service) wantOneFault(t testing.TB) {
	t.Helper()
	redistest.Eventually(t, 30*time.Second, func() error {
		s.do(t, "GET", "/readyz", "").want(t, 200, "")
		s.consume(t, "abc", someKey, "").want(t, 401, "")
		s.login(t, "abc")
		if s.log.Count("[INFO] Redis is available again\n") == 0 {
			return fmt.Errorf("the log does not say that Redis is back:\n%s", s.log)
		}
		return nil
	})
	if s.log.Count("[ERROR]") != 1 || s.log.Count("[INFO] Redis is available again\n") != 1 {
		t.Errorf("log:\n%s", s.log)
	}
}

// newTenant creates a tenant in the cluster through the service.
func newClusterTenant(t testing.TB, s *service, config string) string {
	t.Helper()
	id := newTenantID()
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"`+id+`","config":`+config+`}`).want(t, 201, "")
	return id
}

// keysOn returns API keys of a tenant, n of them on each master, by its address.
func keysOn(t testing.TB, c *redistest.Cluster, s *service, tenant string, n int, members string) map[string][]string {
	t.Helper()
	masters := make(map[string]map[int]bool)
	keys := make(map[string][]string)
	for _, node := range c.Nodes {
		if node.Alive() && node.IsMaster(t) {
			slots := make(map[int]bool)
			for _, slot := range node.Slots(t) {
				slots[slot] = true
			}
			masters[node.TCP], keys[node.TCP] = slots, nil
		}
	}
	complete := func() bool {
		for _, some := range keys {
			if len(some) < n {
				return false
			}
		}
		return true
	}
	for !complete() {
		key := s.issue(t, tenant, members)
		for address := range maps.Keys(masters) {
			if masters[address][redisdb.Slot(apiKeyRedisKey(key))] && len(keys[address]) < n {
				keys[address] = append(keys[address], key)
			}
		}
	}
	return keys
}

// balanceIn returns what is left of an API key, from its master.
func balanceIn(t testing.TB, c *redistest.Cluster, key string) int {
	t.Helper()
	conn := c.Conn()
	defer conn.Close()
	n, err := redis.Int(conn.Do("HGET", apiKeyRedisKey(key), "tokensLeft"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Redis.

const (
	testAdminToken    = "test-admin-token"
	testRedisPassword = "test-password"
)

// testRedis is the Redis of all tests that do not harm theirs. Each test has tenants of its own there.
var testRedis *redisServer

func TestMain(m *testing.M) {
	if os.Getenv("TOLLGATE_RUN_MAIN") != "" { // startProcess runs this binary as the program itself
		main()
		os.Exit(0)
	}
	if os.Getenv("TOLLGATE_RUN_FLOOR") != "" {
		runFloor()
	}
	os.Exit(func() int {
		server, err := startRedis("")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer server.close()
		testRedis = server
		return m.Run()
	}())
}

// redisServer is a real redis-server of the tests' own.
type redisServer struct {
	port  int
	dir   string
	setUp string // what a shell does before it becomes redis-server
	args  []string
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	guard *exec.Cmd     // kills the process when the tests are gone
}

// startRedis starts a redis-server with an append-only file on a free port and waits until it answers.
func startRedis(setUp string, args ...string) (*redisServer, error) {
	dir, err := os.MkdirTemp("", "tollgate")
	if err != nil {
		return nil, err
	}
	r := &redisServer{dir: dir, setUp: setUp, args: args}
	for range 5 { // another process may take the port before redis-server does
		if r.port, err = freePort(); err == nil {
			if err = r.start(); err == nil {
				return r, nil
			}
		}
		if errors.Is(err, exec.ErrNotFound) {
			break
		}
	}
	os.RemoveAll(dir)
	return nil, err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start starts the server, for the first time or again after kill, with the data that it had.
func (r *redisServer) start() error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return fmt.Errorf("the tests need a real redis-server in PATH (`make tools` installs one): %w", err)
	}
	user, err := leastPrivilege()
	if err != nil {
		return err
	}
	r.cmd = exec.Command("sh", append([]string{"-c", r.setUp + `
		exec redis-server "$@"`, "redis-server",
		"--port", fmt.Sprint(r.port), "--bind", "127.0.0.1", "--dir", r.dir, "--unixsocket", r.socket(), "--save", "",
		"--appendonly", "yes", "--maxmemory-policy", "noeviction", "--user",
	}, append(user, r.args...)...)...)
	var out bytes.Buffer
	r.cmd.Stdout, r.cmd.Stderr = &out, &out
	if err := r.cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	r.done = done
	go func() {
		_ = r.cmd.Wait()
		close(done)
	}()
	// Should the tests be aborted, this pipe closes, and takes the server along.
	guard := exec.Command("sh", "-c", `read _; kill -9 "$0"; rm -rf "$1"`, fmt.Sprint(r.cmd.Process.Pid), r.dir)
	if _, err := guard.StdinPipe(); err != nil {
		return err
	}
	if err := guard.Start(); err != nil {
		return err
	}
	r.guard = guard
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		select {
		case <-done:
			return fmt.Errorf("redis-server ended:\n%s", &out)
		case <-time.After(5 * time.Millisecond):
		}
		c, err := redis.Dial("unix", r.socket())
		if err != nil {
			continue
		}
		_, err = c.Do("PING")
		c.Close()
		if _, answered := errors.AsType[redis.Error](err); err == nil || answered && !strings.HasPrefix(err.Error(), "LOADING") {
			return nil
		}
	}
	r.kill()
	return fmt.Errorf("redis-server did not start:\n%s", &out)
}

// leastPrivilege returns the user that the services under test log in as, with the rules of redis.acl, which the docs
// recommend.
func leastPrivilege() ([]string, error) {
	rules, err := os.ReadFile("redis.acl")
	if err != nil {
		return nil, err
	}
	return append([]string{"tollgate", "on", ">" + testRedisPassword}, strings.Fields(string(rules))...), nil
}

func (r *redisServer) kill() {
	_ = r.guard.Process.Kill()
	_ = r.guard.Wait()
	_ = r.cmd.Process.Kill()
	<-r.done
}

func (r *redisServer) close() {
	r.kill()
	os.RemoveAll(r.dir)
}

func (r *redisServer) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (r *redisServer) socket() string { return filepath.Join(r.dir, "redis.sock") }

func (r *redisServer) url() string { return redisURLOf(fmt.Sprintf("127.0.0.1:%d", r.port)) }

// redisURLOf is the URL of a Redis at address, for the user that services are.
func redisURLOf(address string) string {
	return "redis://tollgate:" + testRedisPassword + "@" + address
}

// do runs one command on a connection of its own, beside what the service does.
func (r *redisServer) do(t testing.TB, command string, args ...any) any {
	t.Helper()
	c, err := redis.Dial("unix", r.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reply, err := c.Do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

func (r *redisServer) int(t testing.TB, command string, args ...any) int {
	t.Helper()
	n, err := redis.Int(r.do(t, command, args...), nil)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return n
}

func (r *redisServer) string(t testing.TB, command string, args ...any) string {
	t.Helper()
	s, err := redis.String(r.do(t, command, args...), nil)
	if err != nil && !errors.Is(err, redis.ErrNil) {
		t.Fatalf("%s: %v", command, err)
	}
	return s
}

// newRedis is a redis-server for one test, which may do with it what it likes.
func newRedis(t testing.TB, args ...string) *redisServer {
	t.Helper()
	return newRedisAfter(t, "", args...)
}

// newRedisAfter is newRedis in a process for which a shell has done setUp.
func newRedisAfter(t testing.TB, setUp string, args ...string) *redisServer {
	t.Helper()
	r, err := startRedis(setUp, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

var tenants atomic.Int64

// newTenant puts config straight into Redis, as an operator may, under an ID that no other test has.
func (r *redisServer) newTenant(t testing.TB, config string) string {
	t.Helper()
	id := fmt.Sprintf("t%d", tenants.Add(1))
	r.do(t, "SET", "tenant:"+id+":config", config)
	return id
}

// newTenant is a tenant in testRedis whose anonymous users get that many tokens.
func newTenant(t testing.TB, tokens int) string {
	t.Helper()
	return testRedis.newTenant(t, fmt.Sprintf(`{"user_groups":{"anonymous":{"tokens":%d},"pro":{"tokens":5000}}}`, tokens))
}

// limitedTenant is a tenant whose group anonymous has 1,000 tokens and that rate limit.
func limitedTenant(t testing.TB, limit, window int) string {
	t.Helper()
	return testRedis.newTenant(t, fmt.Sprintf(
		`{"user_groups":{"anonymous":{"tokens":1000,"rate_limit":%d,"rate_limit_window":%d},"pro":{"tokens":5000}}}`, limit, window))
}

func tokensLeft(t testing.TB, key string) int {
	t.Helper()
	return testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft")
}

// redisProxy stands between a service and Redis, and may do with each reply what a bad network does.
type redisProxy struct {
	address, url string
	cuts         atomic.Int64 // connections that reply has cut
}

type fate int

const (
	pass fate = iota
	swallow
	cut
)

// newRedisProxy starts a proxy that asks of every reply on a connection what to do with it: pass it on, swallow it and
// all that follow, or cut the connection.
func newRedisProxy(t *testing.T, r *redisServer, fate func(reply []byte) fate) *redisProxy {
	t.Helper()
	return newRedisProxyTo(t, r.socket, fate)
}

// newRedisProxyTo is newRedisProxy for the Redis whose socket it is told when a connection is made.
func newRedisProxyTo(t *testing.T, socket func() string, fate func(reply []byte) fate) *redisProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &redisProxy{address: l.Addr().String(), url: redisURLOf(l.Addr().String())}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			redis, err := net.Dial("unix", socket())
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(redis, client)
				redis.Close()
			}()
			go func() {
				defer client.Close()
				defer redis.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := redis.Read(buffer)
					if err != nil {
						return
					}
					switch fate(buffer[:n]) {
					case pass:
						if _, err := client.Write(buffer[:n]); err != nil {
							return
						}
					case swallow:
						_, _ = io.Copy(io.Discard, redis)
						return
					case cut:
						p.cuts.Add(1)
						return
					}
				}
			}()
		}
	}()
	return p
}

// Service.

// service is the whole program, running in this process.
type service struct {
	url  string
	log  *logBuffer
	stop func() error // what run returned
}

// newService runs the program on testRedis, or as the settings (NAME=value) say, until the test ends.
func newService(t testing.TB, settings ...string) *service {
	t.Helper()
	env := map[string]string{
		"REDIS_URL": testRedis.url(), "ADDR": "127.0.0.1:0", "ADMIN_TOKEN": testAdminToken, "LOGIN_LIMIT": "0",
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		env[name] = value
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{log: new(logBuffer)}
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = run(ctx, nil, func(name string) string { return env[name] }, io.Discard, s.log)
	}()
	s.stop = func() error {
		client.CloseIdleConnections() // the service would wait a moment for what may come on them
		cancel()
		<-done
		return err
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("the service ended with: %v", err)
		}
	})
	address, ok := s.log.wait("[INFO] Listening on ", done)
	if !ok {
		t.Fatalf("the service does not listen:\n%s", s.log)
	}
	s.url = "http://" + address
	return s
}

// process is the program in a process of its own, for what only a process has: signals and an exit code.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	log    *logBuffer
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
	p := &process{cmd: cmd, log: new(logBuffer), done: make(chan struct{})}
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

// address is where the process listens, once it does.
func (p *process) address(t testing.TB) string {
	t.Helper()
	address, ok := p.log.wait("[INFO] Listening on ", p.done)
	if !ok {
		t.Fatalf("it does not listen:\n%s", p.log)
	}
	return address
}

func (p *process) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("the process still runs:\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

// logBuffer collects the lines that a service logs.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// wait returns the rest of the first line that begins with prefix, once it is there. It gives up when done is closed.
func (b *logBuffer) wait(prefix string, done <-chan struct{}) (string, bool) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		for line := range strings.Lines(b.String()) {
			if rest, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(rest, "\n") {
				return strings.TrimSuffix(rest, "\n"), true
			}
		}
		select {
		case <-done:
			return "", false
		case <-time.After(2 * time.Millisecond):
		}
	}
	return "", false
}

// HTTP.

const uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`

// someKey looks like an API key, but no test makes it.
const someKey = "user_11111111-2222-4333-8444-555555555555"

const retryKey = "Idempotency-Key: "

// reply is what the service answered.
type reply struct {
	status int
	header http.Header
	body   string
}

// client keeps a connection for each of the goroutines that race in tests, and follows no redirect.
var client = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       20 * time.Second,
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
	answer, err := client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return reply{answer.StatusCode, answer.Header, string(content)}, err
}

func (s *service) do(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	answer, err := s.send(method, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (s *service) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// readAll is all that comes until the other side closes the connection, or the deadline.
func readAll(c net.Conn) string {
	content, _ := io.ReadAll(c)
	return string(content)
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// want checks an answer against the contract. A body of "" is any body.
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

// field is a member of the answer's JSON object.
func (got reply) field(t testing.TB, name string) any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(got.body), &object); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	return object[name]
}

// etag is the answer's ETag, in its quotes.
func (got reply) etag(t testing.TB) string {
	t.Helper()
	etag := got.header.Get("ETag")
	if len(etag) < 10 || etag[0] != '"' || etag[len(etag)-1] != '"' {
		t.Fatalf("%d %s: ETag is %q", got.status, got.body, etag)
	}
	return etag
}

// login makes an anonymous key.
func (s *service) login(t testing.TB, tenantID string) string {
	t.Helper()
	answer := s.do(t, "POST", "/"+tenantID+"/auth/anonymous", "")
	answer.want(t, 200, "")
	key, _ := answer.field(t, "apiKey").(string)
	return key
}

func (s *service) consume(t testing.TB, tenant, key, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, "POST", "/"+tenant+"/tokens/consume", body, append(headers, bearer(key))...)
}

// issue makes a registered user's key from the members of a request's body.
func (s *service) issue(t testing.TB, tenant, members string) string {
	t.Helper()
	answer := s.do(t, "POST", "/"+tenant+"/admin/keys", "{"+members+"}", bearer(testAdminToken))
	answer.want(t, 201, "")
	key, _ := answer.field(t, "apiKey").(string)
	return key
}

// admin sends a request with the operator's token.
func (s *service) admin(t testing.TB, method, path, body string, headers ...string) reply {
	t.Helper()
	return s.do(t, method, path, body, append(headers, bearer(testAdminToken))...)
}

// history is the list of a config's versions.
func (s *service) history(t testing.TB, tenant string) []version {
	t.Helper()
	answer := s.admin(t, "GET", "/"+tenant+"/admin/config/history", "")
	answer.want(t, 200, "")
	var list struct{ Versions []version }
	if err := json.Unmarshal([]byte(answer.body), &list); err != nil || list.Versions == nil {
		t.Fatalf("%s: %v", answer.body, err)
	}
	return list.Versions
}

// sample is the value of a sample of /metrics, given as it stands there; -1 where it is not there.
func (s *service) sample(t testing.TB, sample string) float64 {
	t.Helper()
	answer := s.admin(t, "GET", "/metrics", "")
	if answer.status != 200 || answer.header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("%d %s %s", answer.status, answer.header.Get("Content-Type"), answer.body)
	}
	for line := range strings.Lines(answer.body) {
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

// loads is how often the service has loaded tenant's config from Redis.
func (s *service) loads(tenant string) int {
	return strings.Count(s.log.String(), "[INFO] Loaded tenant config for "+tenant+"\n")
}

// Waiting.

func in(d time.Duration) time.Time { return time.Now().Add(d) }

// wantConfig waits, for 1 s at most, until the service serves that config.
func (s *service) wantConfig(t *testing.T, tenant, want string) {
	t.Helper()
	start := time.Now()
	for {
		answer := s.do(t, "GET", "/"+tenant+"/admin/config", "", bearer(testAdminToken))
		if answer.status == 200 && answer.body == `{"config":`+want+"}\n" || want == "" && answer.status == 400 {
			return
		}
		if time.Since(start) > time.Second {
			t.Errorf("after 1 s the answer is still %d %s, want %s", answer.status, answer.body, want)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *service) wantRecovery(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		answer := s.do(t, "POST", "/abc/auth/anonymous", "")
		if answer.status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %d %s", answer.status, answer.body)
		}
	}
	s.do(t, "GET", "/readyz", "").want(t, 200, `{"status":"ready"}`)
}

// wantOneFault checks, after recovery, that the log tells once that Redis was unavailable and once that it is back.
func (s *service) wantOneFault(t *testing.T) {
	t.Helper()
	time.Sleep(faultOver)
	s.do(t, "GET", "/readyz", "").want(t, 200, "")
	s.consume(t, "abc", someKey, "").want(t, 401, "")
	s.login(t, "abc")
	log := s.log.String()
	if strings.Count(log, "[ERROR]") != 1 || strings.Count(log, "[INFO] Redis is available again\n") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

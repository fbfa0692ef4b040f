package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

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
func (r *redisServer) url() string    { return redisURLOf(fmt.Sprintf("127.0.0.1:%d", r.port)) }

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

// field is a member of the answer's JSON object.
func (got reply) field(t testing.TB, name string) any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(got.body), &object); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	return object[name]
}

// login makes an anonymous key.
func (s *service) login(t testing.TB, tenantID string) string {
	t.Helper()
	answer := s.do(t, "POST", "/"+tenantID+"/auth/anonymous", "")
	answer.want(t, 200, "")
	key, _ := answer.field(t, "apiKey").(string)
	return key
}

// Whatever the interleaving over two processes, what was granted is what was spent plus what is left, and the
// balance never goes below 0.
func TestRacingCharges(t *testing.T) {
	const tokens, goroutines, charges = 1000, 64, 40
	services := []*service{newService(t), newService(t)}
	id := newTenant(t, tokens)
	key := services[0].login(t, id)

	var spent, refused atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range charges {
				n := (g+i)%3 + 1
				answer, err := services[(g+i)%2].send("POST", "/"+id+"/tokens/consume", fmt.Sprintf(`{"tokens":%d}`, n), bearer(key))
				switch {
				case err != nil:
					t.Error(err)
				case answer.status == 200:
					spent.Add(int64(n))
				case answer.status == 402:
					refused.Add(1)
				default:
					t.Errorf("got %d %s", answer.status, answer.body)
				}
			}
		})
	}
	wg.Wait()
	left := testRedis.int(t, "HGET", "apiKey:"+key, "tokensLeft")
	if int64(left)+spent.Load() != tokens || left < 0 || refused.Load() == 0 {
		t.Errorf("granted %d, spent %d, left %d, refused %d times", tokens, spent.Load(), left, refused.Load())
	}
}

// A key that has expired stays dead: of 1,300 charges that straddle its expiry, 1,000 come after it, and none makes it
// again.
func TestExpiredKeyStaysDead(t *testing.T) {
	s := newService(t)
	id := limitedTenant(t, 100_000, 100)
	key := s.login(t, id)
	testRedis.do(t, "PEXPIRE", "apiKey:"+key, 60)
	var accepted, refused atomic.Int64
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			for i := range 130 {
				if i == 30 {
					time.Sleep(100 * time.Millisecond)
				}
				headers := []string{bearer(key)}
				if i%2 == 0 {
					headers = append(headers, fmt.Sprintf("%s%d-%d", retryKey, g, i))
				}
				answer, err := s.send("POST", "/"+id+"/tokens/consume", "", headers...)
				switch {
				case err == nil && answer.status == 200 && i < 30:
					accepted.Add(1)
				case err == nil && answer.status == 401:
					refused.Add(1)
				default:
					t.Errorf("%+v, %v", answer, err)
				}
			}
		})
	}
	wg.Wait()
	if testRedis.int(t, "EXISTS", "apiKey:"+key) != 0 || accepted.Load() == 0 || refused.Load() < 1000 {
		t.Errorf("%d charges were accepted, %d refused, and the key is %s", accepted.Load(), refused.Load(), testRedis.string(t, "TYPE", "apiKey:"+key))
	}
}

// Neither a charge nor a refusal changes when a key expires.
func TestChargeKeepsExpiry(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 3)
	key := s.login(t, id)
	before := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key)
	for _, body := range []string{"", `{"tokens":2}`, `{"tokens":2}`} {
		s.do(t, "POST", "/"+id+"/tokens/consume", body, bearer(key))
	}
	if after := testRedis.int(t, "PEXPIRETIME", "apiKey:"+key); after != before || after < 0 {
		t.Errorf("the key expires at %d, before the charges at %d", after, before)
	}
}

// What stands in Redis is what the contract's table of the Redis layout says.
func TestRedisLayout(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 100)
	start := time.Now()
	check := func(key, kind string, fields map[string]string) {
		t.Helper()
		if got := testRedis.string(t, "TYPE", key); got != kind {
			t.Fatalf("%s is a %s, want %s", key, got, kind)
		}
		got, _ := redis.StringMap(testRedis.do(t, "HGETALL", key), nil)
		created, err := time.Parse("2006-01-02T15:04:05.000Z", got["createdAt"])
		if err != nil || created.Before(start.Add(-time.Second)) || created.After(time.Now()) {
			t.Errorf("createdAt is %q: %v", got["createdAt"], err)
		}
		delete(got, "createdAt")
		if fmt.Sprint(got) != fmt.Sprint(fields) {
			t.Errorf("got %v, want %v", got, fields)
		}
	}

	key := s.login(t, id)
	check("apiKey:"+key, "hash", map[string]string{"tenantId": id, "group": "anonymous", "tokensLeft": "100"})
	if ttl := testRedis.int(t, "PTTL", "apiKey:"+key); ttl <= 23*3600*1000 || ttl > 24*3600*1000 {
		t.Errorf("an anonymous key lives for %d ms", ttl)
	}

	answer := s.do(t, "POST", "/"+id+"/admin/keys", `{"userId":"u 1","group":"pro"}`, bearer(testAdminToken))
	key = answer.field(t, "apiKey").(string)
	check("apiKey:"+key, "hash", map[string]string{"tenantId": id, "group": "pro", "tokensLeft": "5000", "userId": "u 1"})
	if ttl := testRedis.int(t, "PTTL", "apiKey:"+key); ttl != -1 {
		t.Errorf("a user's key lives for %d ms, want for ever", ttl)
	}

	s.do(t, "PUT", "/"+id+"/admin/config", ` { "config" : { "x" : [ 1.50 , "é<&>" ] , "a" : 1e2 } } `, bearer(testAdminToken)).want(t, 200, "")
	if got, want := testRedis.string(t, "GET", "tenant:"+id+":config"), `{"x":[1.50,"é<&>"],"a":1e2}`; got != want {
		t.Errorf("config is %s, want %s", got, want)
	}
	if ttl := testRedis.int(t, "PTTL", "tenant:"+id+":config"); ttl != -1 {
		t.Errorf("a config lives for %d ms, want for ever", ttl)
	}
	for _, tenantID := range []string{id, "abc"} {
		if testRedis.int(t, "SISMEMBER", "tenants", tenantID) != 1 {
			t.Errorf("%s is not in the set of tenants", tenantID)
		}
	}
}

// At start the config of tenant abc is written if it is not there, and left alone if it is.
func TestSeed(t *testing.T) {
	r := newRedis(t)
	newService(t, "REDIS_URL="+r.url()).stop()
	var want bytes.Buffer
	if err := json.Compact(&want, seedConfig); err != nil {
		t.Fatal(err)
	}
	if got := r.string(t, "GET", "tenant:abc:config"); got != want.String() {
		t.Errorf("seeded %s\nwant %s", got, &want)
	}
	r.do(t, "SET", "tenant:abc:config", `{"mine":true}`)
	newService(t, "REDIS_URL="+r.url()).stop()
	if got := r.string(t, "GET", "tenant:abc:config"); got != `{"mine":true}` {
		t.Errorf("the second start made it %s", got)
	}
}

// Redis may be reached in every way that the README names.
func TestRedisURLs(t *testing.T) {
	r := newRedis(t, "--requirepass", "s3cret", "--user", "gate", "on", ">gate:pw", "~*", "&*", "+@all")
	do := func(db int, command string, args ...any) (any, error) {
		c, err := redis.Dial("unix", r.socket(), redis.DialPassword("s3cret"), redis.DialDatabase(db))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.Do(command, args...)
	}
	tests := []struct {
		url string
		db  int
	}{
		{fmt.Sprintf("redis://:s3cret@127.0.0.1:%d", r.port), 0},
		{fmt.Sprintf("redis://:s3cret@localhost:%d/", r.port), 0},
		{fmt.Sprintf("redis://gate:gate%%3Apw@127.0.0.1:%d/3", r.port), 3},
		{fmt.Sprintf("unix://:s3cret@%s", r.socket()), 0},
		{fmt.Sprintf("unix://gate:gate%%3Apw@%s?db=5", r.socket()), 5},
	}
	for _, test := range tests {
		if _, err := do(0, "FLUSHALL"); err != nil {
			t.Fatal(err)
		}
		s := newService(t, "REDIS_URL="+test.url)
		s.login(t, "abc")
		s.stop()
		if n, err := redis.Int(do(test.db, "EXISTS", "tenant:abc:config")); n != 1 || err != nil {
			t.Errorf("%s did not use database %d: %v", test.url, test.db, err)
		}
	}
}

func TestRedisTLS(t *testing.T) {
	dir := t.TempDir()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, kind string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile, keyFile := file("cert.pem", "CERTIFICATE", certificate), file("key.pem", "PRIVATE KEY", key)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	newRedis(t, "--tls-port", fmt.Sprint(port), "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no",
		"--tls-ca-cert-file", certFile, "--requirepass", "pw")
	settings := []string{fmt.Sprintf("REDIS_URL=rediss://:pw@localhost:%d", port), "ADDR=127.0.0.1:0"}
	trusting := startProcess(t, append(settings, "SSL_CERT_FILE="+certFile))
	s := &service{url: "http://" + trusting.address(t)}
	apiKey := s.login(t, "abc")
	var wg sync.WaitGroup
	for range 9 {
		wg.Go(func() { s.consume(t, "abc", apiKey, "").want(t, 200, "") })
	}
	wg.Wait()
	s.consume(t, "abc", apiKey, "", retryKey+"k").want(t, 200, `{"tokensLeft":90}`)
	strict := startProcess(t, settings)
	if code := strict.exitCode(t); code != 1 || !strings.Contains(strict.log.String(), "[ERROR] Redis connection failed: tls: ") {
		t.Errorf("with one it does not: exit code %d\n%s", code, strict.log)
	}
}

func TestParseRedisURL(t *testing.T) {
	good := map[string]redisURL{
		"redis://":                    {network: "tcp", address: "localhost:6379"},
		"redis://h":                   {network: "tcp", address: "h:6379"},
		"redis://[::1]":               {network: "tcp", address: "[::1]:6379"},
		"redis://[::1]:7/2":           {network: "tcp", address: "[::1]:7", db: 2},
		"rediss://u:p%40@h:1":         {network: "tcp", address: "h:1", tls: true, username: "u", password: "p@"},
		"unix:///tmp/r.sock":          {network: "unix", address: "/tmp/r.sock"},
		"unix://:pw@/tmp/r.sock?db=3": {network: "unix", address: "/tmp/r.sock", password: "pw", db: 3},
	}
	for in, want := range good {
		if got, err := parseRedisURL(in); err != nil || *got != want {
			t.Errorf("%s: got %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "localhost:6379", "http://:SECRET@h", "redis://:SEC#RET@h", "redis://:SEC/RET@h", "redis://h/SECRET", "redis://h/-1",
		"redis://h/0/1", "redis://h?db=SECRET", "unix://tmp/SECRET", "unix://", "unix:///s?db=SECRET", "redis:SECRET", "redis://h:SECRET",
	} {
		if got, err := parseRedisURL(in); err == nil {
			t.Errorf("%s: got %+v, want an error", in, got)
		} else if strings.Contains(err.Error(), "SEC") || strings.Contains(err.Error(), "RET") {
			t.Errorf("%s: the error shows the URL: %v", in, err)
		}
	}
}

func TestCheckRedisVersion(t *testing.T) {
	for info, ok := range map[string]bool{
		"# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n":                     true,
		"# Server\r\nredis_version:8.2.1\r\n":                                               true,
		"# Server\r\nredis_version:10.0.0\r\n":                                              true,
		"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n": true,
		"# Server\r\nredis_version:6.2.14\r\n":                                              false,
		"# Server\r\nredis_version:255.255.255\r\n":                                         true, // a development build
		"# Server\r\n": false,
	} {
		if err := checkRedisVersion(info); (err == nil) != ok {
			t.Errorf("%q: %v", info, err)
		}
	}
}

// While Redis is frozen every answer is a 503 within 2 s; then everything is as before by itself, and the log tells of
// the fault once.
func TestRedisFrozen(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	r.signal(t, syscall.SIGSTOP)
	var wg sync.WaitGroup
	for range 2 * poolSize {
		wg.Go(func() {
			start := time.Now()
			answer, err := s.send("POST", "/abc/tokens/consume", "", bearer(key))
			if err != nil {
				t.Error(err)
				return
			}
			answer.want(t, 503, `{"error":"Service unavailable"}`)
			if answer.header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After is %q", answer.header.Get("Retry-After"))
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("the answer took %s", took)
			}
		})
	}
	wg.Wait()
	s.do(t, "GET", "/healthz", "").want(t, 200, `{"status":"ok"}`)
	s.do(t, "GET", "/readyz", "").want(t, 503, `{"error":"Service unavailable"}`)
	r.signal(t, syscall.SIGCONT)
	s.wantRecovery(t)
	s.wantOneFault(t)
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

// A Redis whose memory is full still reads and charges; what needs room is 503, and one line of the log says why.
func TestRedisFull(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	r.do(t, "CONFIG", "SET", "maxmemory", 1)
	for i := range 5 {
		s.do(t, "POST", "/abc/auth/anonymous", "").want(t, 503, `{"error":"Service unavailable"}`)
		s.consume(t, "abc", key, "").want(t, 200, fmt.Sprintf(`{"tokensLeft":%d}`, 99-i))
		s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 200, "")
		s.do(t, "PUT", "/abc/admin/config", `{"config":{}}`, bearer(testAdminToken)).want(t, 503, "")
		s.do(t, "PATCH", "/abc/admin/keys/"+key, `{"addTokens":0}`, bearer(testAdminToken)).want(t, 200, "")
	}
	if n := len(r.do(t, "KEYS", "apiKey:*").([]any)); n != 1 {
		t.Errorf("there are %d API keys, want 1", n)
	}
	s.do(t, "DELETE", "/abc/admin/keys/"+key, "", bearer(testAdminToken)).want(t, 204, "")
	r.do(t, "CONFIG", "SET", "maxmemory", 0)
	s.wantRecovery(t)
	s.admin(t, "PUT", "/abc/admin/config", `{"config":{"user_groups":{"anonymous":{}}}}`).want(t, 200, "")
	s.wantOneFault(t)
}

// A connection to a Redis that was demoted is given up: the next leads to the new master.
func TestRedisDemoted(t *testing.T) {
	old, master := newRedis(t), newRedis(t)
	var promoted atomic.Bool
	proxy := newRedisProxyTo(t, func() string {
		if promoted.Load() {
			return master.socket()
		}
		return old.socket()
	}, func([]byte) fate { return pass })
	s := newService(t, "REDIS_URL="+proxy.url)
	var wg sync.WaitGroup
	for range 8 { // several connections
		wg.Go(func() { s.login(t, "abc") })
	}
	wg.Wait()
	master.do(t, "SET", "tenant:abc:config", string(seedConfig))
	promoted.Store(true)
	old.do(t, "REPLICAOF", "127.0.0.1", master.port)
	s.wantRecovery(t)
	for range 20 {
		s.login(t, "abc")
	}
	s.wantOneFault(t)
}

// However slow Redis is, an answer comes within 2 s, also where a request needs several of Redis's.
func TestRedisSlow(t *testing.T) {
	r := newRedis(t)
	r.do(t, "ACL", "SETUSER", "gate", "on", ">pw", "~*", "&*", "+@all", "-client|tracking") // each request loads its config
	var delay atomic.Int64                                                                  // of every reply; Redis's time is as good as still
	proxy := newRedisProxy(t, r, func([]byte) fate {
		time.Sleep(time.Duration(delay.Load()))
		return pass
	})
	s := newService(t, "REDIS_URL=redis://gate:pw@"+proxy.address)
	s.admin(t, "PUT", "/abc/admin/config", `{"config":{"user_groups":{"anonymous":{}}}}`).want(t, 200, "")
	etag := s.history(t, "abc")[0].ETag
	token := s.admin(t, "POST", "/abc/admin/tokens", "").field(t, "adminToken").(string)
	key := s.issue(t, "abc", `"userId":"u","group":"anonymous","tokens":1000`)
	for _, ms := range []time.Duration{250, 340, 600, 880} {
		delay.Store(int64(ms * time.Millisecond))
		var wg sync.WaitGroup
		for i := range 2 * poolSize {
			wg.Go(func() {
				request := [][4]string{
					{"POST", "/abc/admin/config/history/" + etag + "/restore", "", token},
					{"PUT", "/abc/admin/config", `{"config":{"user_groups":{"anonymous":{}}}}`, token},
					{"POST", "/abc/auth/anonymous", ""},
					{"POST", "/abc/tokens/consume", `{"tokens":1}`, key},
					{"POST", "/abc/admin/keys", `{"userId":"u","group":"anonymous"}`, token},
					{"PATCH", "/abc/admin/keys/" + key, `{"addTokens":1}`, token},
				}[i%6]
				start := time.Now()
				answer, err := s.send(request[0], request[1], request[2], bearer(request[3]))
				if took := time.Since(start); err != nil || took > 2*time.Second || answer.status != 503 && answer.status > 201 {
					t.Errorf("%s: %d %s after %s, %v", request[1], answer.status, answer.body, took, err)
				}
			})
		}
		wg.Wait()
	}
}

// After a restart of Redis not one request meets a connection of before.
func TestRedisRestarted(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	var wg sync.WaitGroup
	for range 16 { // several idle connections
		wg.Go(func() { _, _ = s.send("GET", "/abc/auth/key", "", bearer(key)) })
	}
	wg.Wait()
	s.do(t, "POST", "/abc/tokens/consume", `{"tokens":5}`, bearer(key)).want(t, 200, `{"tokensLeft":95}`)
	time.Sleep(1100 * time.Millisecond) // the append-only file is synced every second
	r.kill()
	s.do(t, "GET", "/abc/auth/key", "", bearer(key)).want(t, 503, `{"error":"Service unavailable"}`)
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		answer := s.do(t, "GET", "/abc/auth/key", "", bearer(key))
		answer.want(t, 200, "")
		if left := answer.field(t, "tokensLeft"); left != 95.0 {
			t.Fatalf("tokensLeft is %v, want 95", left)
		}
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

// Junk under a key of ours is a fault for that key or tenant alone: 500, nothing overwritten, no value in the log.
func TestJunkInRedis(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 100)
	junk := func(command string, args ...any) func(key string) {
		return func(key string) {
			testRedis.do(t, "DEL", key)
			testRedis.do(t, command, append([]any{key}, args...)...)
		}
	}
	balance := func(tokensLeft string) func(string) {
		return junk("HSET", "tenantId", id, "group", "pro", "createdAt", "2026-01-02T03:04:05.678Z", "tokensLeft", tokensLeft)
	}
	for _, put := range []func(string){
		junk("SET", "s3cret"), junk("RPUSH", "s3cret"), junk("HSET", "tenantId", id), junk("HSET", "tenantId", id, "createdAt", "2026-01-02T03:04:05.678Z"),
		balance("s3cret"), balance("1.5"), balance("-5"), balance("9007199254740992"), balance("9223372036854775807"), balance(""), balance("5\n"), balance("+5"),
		balance("0007"), balance("1e3"), balance("0x10"), balance("nan"),
	} {
		key := s.login(t, id)
		put("apiKey:" + key)
		logged := len(s.log.String())
		before := testRedis.string(t, "DUMP", "apiKey:"+key)
		s.do(t, "POST", "/"+id+"/tokens/consume", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "GET", "/"+id+"/auth/verify", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "GET", "/"+id+"/auth/key", "", bearer(key)).want(t, 500, `{"error":"Internal error"}`)
		s.do(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 500, `{"error":"Internal error"}`)
		if testRedis.string(t, "DUMP", "apiKey:"+key) != before {
			t.Error("the junk was overwritten")
		}
		if n := strings.Count(s.log.String()[logged:], " apiKey:<apiKey> of tenant "+id+": "); n != 4 {
			t.Errorf("%d lines name the key's pattern and tenant in\n%s", n, s.log.String()[logged:])
		}
	}
	{
		key := s.login(t, id)
		testRedis.do(t, "HSET", "apiKey:"+key, "createdAt", "s3cret")
		s.do(t, "PATCH", "/"+id+"/admin/keys/"+key, `{"addTokens":1}`, bearer(testAdminToken)).want(t, 500, `{"error":"Internal error"}`)
		if tokensLeft(t, key) != 100 {
			t.Error("a change that was answered 500 was made")
		}
	}
	// Junk beside a key: a charge that is answered 500 was not taken.
	limited := limitedTenant(t, 5, 60)
	for name, put := range map[string]func(string){
		":rate": junk("RPUSH", "s3cret"), ":rate ": junk("SET", "s3cret"), ":rate  ": junk("RPUSH", "1", "s3cret"),
		":rate   ": junk("RPUSH", "8675309e300"), ":rate    ": junk("RPUSH", "nan"), ":rate     ": junk("RPUSH", "86753098675309867"), ":charge:k  ": junk("SET", "10 86753098675309867530"),
		":charge:k": junk("SET", "s3cret"), ":charge:k ": junk("RPUSH", "s3cret"),
	} {
		key := s.login(t, limited)
		put("{apiKey:" + key + "}" + strings.TrimSpace(name))
		for range 3 {
			s.consume(t, limited, key, `{"tokens":10}`, retryKey+"k").want(t, 500, `{"error":"Internal error"}`)
		}
		if tokensLeft(t, key) != 1000 {
			t.Errorf("junk under %s: a charge that was answered 500 was taken", name)
		}
	}
	for _, put := range []func(string){
		junk("RPUSH", "s3cret"), junk("SET", "s3cret"), junk("SET", `["s3cret"]`), junk("SET", `{"user_groups":{"a":{"tokens":"s3cret"}}}`),
	} {
		broken := newTenant(t, 100)
		put("tenant:" + broken + ":config")
		s.do(t, "POST", "/"+broken+"/auth/anonymous", "").want(t, 500, `{"error":"Internal error"}`)
		if !strings.Contains(s.log.String(), "tenant "+broken) {
			t.Errorf("the log does not name tenant %s", broken)
		}
	}
	s.login(t, id)
	if log := s.log.String(); strings.Contains(log, "s3cret") || strings.Contains(log, "8675309") {
		t.Errorf("a value is in the log:\n%s", s.log)
	}
}

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

// loads is how often the service has loaded tenant's config from Redis.
func (s *service) loads(tenant string) int {
	return strings.Count(s.log.String(), "[INFO] Loaded tenant config for "+tenant+"\n")
}

// watchers are the IDs of the connections on which services learn what changes.
func (r *redisServer) watchers(t *testing.T) (ids []string) {
	t.Helper()
	for line := range strings.Lines(r.string(t, "CLIENT", "LIST", "TYPE", "pubsub")) {
		id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
		ids = append(ids, id)
	}
	return ids
}

// What is written by any process, or straight to Redis, is what every process serves within 1 s, and at once on the
// process that wrote it, whatever happens to connections and keys. Between changes Redis is not asked.
func TestConfigFreshness(t *testing.T) {
	r := newRedis(t)
	services := []*service{newService(t, "REDIS_URL="+r.url()), newService(t, "REDIS_URL="+r.url())}
	const id = "fresh"
	version := 0
	next := func() string {
		version++
		return fmt.Sprintf(`{"version":%d}`, version)
	}
	set := func(args ...any) string {
		t.Helper()
		config := next()
		r.do(t, "SET", append([]any{"tenant:" + id + ":config", config}, args...)...)
		return config
	}
	everywhere := func(config string) {
		t.Helper()
		for _, s := range services {
			s.wantConfig(t, id, config)
		}
	}

	everywhere("")
	everywhere(set()) // straight to Redis
	for i, s := range services {
		config := next()
		s.do(t, "PUT", "/"+id+"/admin/config", `{"config":`+config+`}`, bearer(testAdminToken)).want(t, 200, "")
		s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)).want(t, 200, `{"config":`+config+`}`)
		services[1-i].wantConfig(t, id, config)
	}
	for _, s := range services {
		before := s.loads(id)
		for range 50 {
			s.do(t, "GET", "/"+id+"/admin/config", "", bearer(testAdminToken)).want(t, 200, "")
		}
		if n := s.loads(id) - before; n != 0 {
			t.Errorf("a config that has not changed was loaded %d times", n)
		}
	}

	config := set()
	r.do(t, "DEL", "tenant:"+id+":config")
	everywhere("")
	r.do(t, "SET", "tenant:other:config", config)
	r.do(t, "RENAME", "tenant:other:config", "tenant:"+id+":config")
	everywhere(config)
	for _, flush := range []string{"FLUSHALL", "FLUSHDB"} {
		everywhere(set())
		r.do(t, flush)
		everywhere("")
	}
	everywhere(set("PX", 300)) // Redis tells of an expiry only when it gets round to it
	everywhere("")
	everywhere(set())
	r.do(t, "PEXPIRE", "tenant:"+id+":config", 200)
	everywhere("")

	// All connections cut, while the config changes.
	for range 5 {
		everywhere(set())
		r.do(t, "CLIENT", "KILL", "TYPE", "pubsub")
		r.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		everywhere(set())
	}
	everywhere(set())
	for deadline := time.Now().Add(5 * time.Second); len(r.watchers(t)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody listens for changes any more")
		}
	}
	// A change that races with its loading.
	for range 200 {
		config := set()
		go services[1].send("GET", "/"+id+"/admin/config", "", bearer(testAdminToken))
		services[0].wantConfig(t, id, config)
	}
	everywhere(set())
}

// When the connection that tells of changes is there but says nothing (a network that swallows packets, a Redis that
// hangs), nothing that is cached is served for longer than 1 s.
func TestSilentWatch(t *testing.T) {
	r := newRedis(t)
	var mute atomic.Bool
	proxy := newRedisProxy(t, r, func(reply []byte) fate {
		if mute.Load() && (bytes.Contains(reply, []byte("pong")) || bytes.Contains(reply, []byte("__redis__:invalidate"))) {
			return swallow
		}
		return pass
	})
	s := newService(t, "REDIS_URL="+proxy.url)
	const id = "silent"
	r.do(t, "SET", "tenant:"+id+":config", `{"version":1}`)
	s.wantConfig(t, id, `{"version":1}`)
	mute.Store(true)
	r.do(t, "SET", "tenant:"+id+":config", `{"version":2}`)
	s.wantConfig(t, id, `{"version":2}`)
	r.do(t, "SET", "tenant:"+id+":config", `{"version":3}`)
	s.wantConfig(t, id, `{"version":3}`)
}

// What a process has written it serves at once, also where Redis does not tell it of the change.
func TestOwnWrites(t *testing.T) {
	r := newRedis(t)
	proxy := newRedisProxy(t, r, func(reply []byte) fate {
		// An invalidation becomes one of another tenant. The answers to PING, which keep the cache alive, pass.
		copy(reply, bytes.ReplaceAll(reply, []byte("tenant:own:config"), []byte("tenant:www:config")))
		return pass
	})
	s := newService(t, "REDIS_URL="+proxy.url)
	s.admin(t, "POST", "/admin/tenants", `{"tenantId":"own","config":{"version":0}}`).want(t, 201, "")
	for version := range 20 {
		s.admin(t, "GET", "/own/admin/config", "").want(t, 200, fmt.Sprintf(`{"config":{"version":%d}}`, version))
		s.admin(t, "PUT", "/own/admin/config", fmt.Sprintf(`{"config":{"version":%d}}`, version+1)).want(t, 200, "")
	}
	s.admin(t, "GET", "/own/admin/config", "").want(t, 200, "")
	s.admin(t, "DELETE", "/admin/tenants/own", "").want(t, 204, "")
	s.admin(t, "GET", "/own/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
}

// A config that expires is not served for longer, also where Redis does not get round to delete it.
func TestExpiringConfig(t *testing.T) {
	r := newRedis(t, "--enable-debug-command", "yes")
	s := newService(t, "REDIS_URL="+r.url())
	r.do(t, "DEBUG", "SET-ACTIVE-EXPIRE", 0)
	r.do(t, "SET", "tenant:brief:config", `{}`, "PX", 300)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 200, "")
	time.Sleep(400 * time.Millisecond)
	s.admin(t, "GET", "/brief/admin/config", "").want(t, 400, `{"error":"Invalid tenant ID"}`)
}

// A config that was loaded while it changed is not kept.
func TestCacheRace(t *testing.T) {
	one := &tenant{id: "x", config: &tenantConfig{answer: []byte("{}")}}
	for name, change := range map[string]func(*configCache){
		"drop":            func(c *configCache) { c.drop("x") },
		"reset":           func(c *configCache) { c.reset(true) },
		"drop, load":      func(c *configCache) { c.drop("x"); c.load("x") },
		"end of watching": func(c *configCache) { c.reset(false); c.reset(true) },
	} {
		var c configCache
		c.reset(true)
		place := c.load("x")
		change(&c)
		c.put(place, one)
		if c.get("x") != nil || c.bytes != 0 {
			t.Errorf("%s: what was loaded before is kept", name)
		}
	}
}

// Seeding a tenant whose config was deleted straight in Redis does not revive its admin tokens.
func TestSeedAnew(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	token := s.admin(t, "POST", "/abc/admin/tokens", "").field(t, "adminToken").(string)
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 200, "")
	s.stop()
	r.do(t, "DEL", "tenant:abc:config")
	s = newService(t, "REDIS_URL="+r.url())
	s.do(t, "GET", "/abc/admin/config", "", bearer(token)).want(t, 401, "")
	if versions := s.history(t, "abc"); len(versions) != 1 || versions[0].SavedBy != "seed" {
		t.Errorf("the history is %+v", versions)
	}
}

// A Redis whose EVALSHA was taken away quotes its arguments in its error, and they are keys: none of them is logged.
func TestErrorsWithoutKeys(t *testing.T) {
	r := newRedis(t, "--rename-command", "EVALSHA", "")
	s := newService(t, "REDIS_URL="+r.url())
	s.do(t, "GET", "/abc/auth/key", "", bearer(someKey)).want(t, 500, "")
	if log := s.log.String(); strings.Contains(log, someKey) || !strings.Contains(log, "ERR unknown command 'EVALSHA'") {
		t.Errorf("log:\n%s", log)
	}
}

// Where Redis refuses to tell of changes, each request loads its config, and the log says so once, at start.
func TestTrackingRefused(t *testing.T) {
	r := newRedis(t)
	r.do(t, "ACL", "SETUSER", "gate", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
	s := newService(t, fmt.Sprintf("REDIS_URL=redis://gate:pw@127.0.0.1:%d", r.port))
	if n := strings.Count(s.log.String(), "[WARN]"); n != 1 || !strings.Contains(s.log.String(), "[WARN] Redis refuses to say when configs change") {
		t.Errorf("%d warnings in\n%s", n, s.log)
	}
	before := s.loads("abc")
	for i := range 5 {
		config := fmt.Sprintf(`{"version":%d}`, i)
		r.do(t, "SET", "tenant:abc:config", config)
		s.do(t, "GET", "/abc/admin/config", "", bearer(testAdminToken)).want(t, 200, `{"config":`+config+`}`)
	}
	if n := s.loads("abc") - before; n != 5 {
		t.Errorf("5 requests loaded the config %d times", n)
	}
}

// The cache holds so many bytes and no more.
func TestCacheBound(t *testing.T) {
	var c configCache
	c.reset(true)
	config := &tenantConfig{answer: make([]byte, 1<<20)}
	for i := range 3 * maxCachedBytes >> 20 {
		one := &tenant{id: fmt.Sprint(i), config: config}
		c.put(c.load(one.id), one)
		if c.get(one.id) != one || c.bytes > maxCachedBytes {
			t.Fatalf("%d bytes are cached after %d configs", c.bytes, i+1)
		}
	}
	if n := len(c.entries); n != maxCachedBytes>>20 {
		t.Errorf("%d configs of 1 MiB are cached", n)
	}
	c.reset(false)
	if c.load("x") != nil || c.bytes != 0 {
		t.Error("it caches though nobody watches")
	}
}

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

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

func TestSafetyWarnings(t *testing.T) {
	r := newRedis(t)
	r.do(t, "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
	s := newService(t, "REDIS_URL="+r.url())
	if !strings.Contains(s.log.String(), "[WARN] Redis's maxmemory-policy is volatile-lru") {
		t.Errorf("no warning in\n%s", s.log)
	}
	if s = newService(t, "REDIS_URL="+newRedis(t, "--appendonly", "no").url()); !strings.Contains(s.log.String(), "[WARN] Redis keeps no append-only file") {
		t.Errorf("no warning in\n%s", s.log)
	}
	s = newService(t)
	if strings.Contains(s.log.String(), "[WARN]") {
		t.Errorf("a warning without need in\n%s", s.log)
	}
}

// The user in docker-compose.yml is the one that all tests run as.
func TestComposeUser(t *testing.T) {
	user, err := leastPrivilege()
	if err != nil {
		t.Fatal(err)
	}
	compose, err := os.ReadFile("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(compose), `">${REDIS_PASSWORD:-tollgate}",`)
	after, _, _ = strings.Cut(after, "]")
	if got := strings.Fields(strings.NewReplacer(`"`, "", ",", "").Replace(after)); !slices.Equal(got, user[3:]) {
		t.Errorf("compose has %q, the README %q", got, user[3:])
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

// Managed Redis may say ERR READONLY: its connection, too, is given up.
func TestRedisDemotedInOtherWords(t *testing.T) {
	old, master := newRedis(t), newRedis(t)
	var promoted atomic.Bool
	proxy := newRedisProxyTo(t, func() string {
		if promoted.Load() {
			return master.socket()
		}
		return old.socket()
	}, func(reply []byte) fate {
		copy(reply, bytes.ReplaceAll(reply, []byte("-READONLY You "), []byte("-ERR READONLY ")))
		return pass
	})
	s := newService(t, "REDIS_URL="+proxy.url)
	s.login(t, "abc")
	master.do(t, "SET", "tenant:abc:config", string(seedConfig))
	promoted.Store(true)
	old.do(t, "REPLICAOF", "127.0.0.1", 1)
	s.wantRecovery(t)
	for range 20 {
		s.login(t, "abc")
	}
	const changed = `{"user_groups":{"anonymous":{"tokens":7}}}` // of which the old one knows nothing
	master.do(t, "SET", "tenant:abc:config", changed)
	s.wantConfig(t, "abc", changed)
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

// While Redis loads its data it answers, but does not serve.
func TestRedisLoading(t *testing.T) {
	r := newRedis(t, "--key-load-delay", "400")
	s := newService(t, "REDIS_URL="+r.url())
	key := s.login(t, "abc")
	// While it loads Redis looks at its connections after each 1,024 commands of its append-only file.
	r.do(t, "EVAL", "for i = 1, 4000 do redis.call('SET', 'filler' .. i, 'x') end", 0)
	r.kill()
	started := make(chan error, 1)
	go func() { started <- r.start() }()
	var loading atomic.Bool
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for {
			if c, err := redis.Dial("unix", r.socket()); err == nil {
				_, err := c.Do("PING")
				c.Close()
				if err == nil {
					return
				}
				if strings.HasPrefix(err.Error(), "LOADING") {
					loading.Store(true)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	for deadline := in(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		answer := s.do(t, "GET", "/abc/auth/key", "", bearer(key))
		if answer.status == 200 {
			break
		}
		answer.want(t, 503, `{"error":"Service unavailable"}`)
		if time.Now().After(deadline) {
			t.Fatal("it is still not served")
		}
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if <-loaded; !loading.Load() {
		t.Error("Redis was never seen to load")
	}
}

// A connection that Redis has closed while nobody used it costs no request, neither over the pool nor over the shared one.
func TestClosedWhileIdle(t *testing.T) {
	r := newRedis(t)
	r.do(t, "ACL", "SETUSER", "gate", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
	for _, url := range []string{r.url(), fmt.Sprintf("redis://gate:pw@127.0.0.1:%d", r.port)} {
		s := newService(t, "REDIS_URL="+url)
		id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000}}}`)
		key := s.login(t, id)
		for round := range 4 {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { _, _ = s.send("GET", "/"+id+"/admin/config/history", "", bearer(testAdminToken)) })
			}
			wg.Wait()
			if round%2 == 0 {
				r.do(t, "CLIENT", "KILL", "TYPE", "normal")
				r.do(t, "CLIENT", "KILL", "TYPE", "pubsub")
			} else {
				r.kill()
				if err := r.start(); err != nil {
					t.Fatal(err)
				}
				r.do(t, "ACL", "SETUSER", "gate", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
			}
			time.Sleep(300 * time.Millisecond)
			for range 10 {
				s.admin(t, "GET", "/"+id+"/admin/config/history", "").want(t, 200, "")
				s.consume(t, id, key, "").want(t, 200, "")
			}
		}
	}
}

// A fault that shows only now and then is one all the same, and it is over even if nobody asks.
func TestFaultLog(t *testing.T) {
	r := newRedis(t)
	s := newService(t, "REDIS_URL="+r.url())
	id := r.newTenant(t, `{"user_groups":{"anonymous":{"tokens":1000}}}`)
	key := s.login(t, id)
	r.do(t, "CONFIG", "SET", "maxmemory", 1)
	for i := range 30 {
		if i%15 == 0 {
			s.do(t, "POST", "/"+id+"/auth/anonymous", "").want(t, 503, "")
		}
		s.consume(t, id, key, "").want(t, 200, "")
		time.Sleep(faultOver / 10)
	}
	if log := s.log.String(); strings.Count(log, "[ERROR]") != 1 || strings.Contains(log, "available again") {
		t.Errorf("while Redis was full:\n%s", log)
	}
	r.do(t, "CONFIG", "SET", "maxmemory", 0)
	for over := 1; over <= 2; over++ {
		for deadline := in(5 * time.Second); strings.Count(s.log.String(), "[INFO] Redis is available again\n") < over; time.Sleep(10 * time.Millisecond) {
			if over == 1 {
				s.login(t, id)
			}
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say that Redis is back:\n%s", s.log)
			}
		}
		if over == 1 {
			r.kill()
			s.consume(t, id, key, "").want(t, 503, "")
			if err := r.start(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

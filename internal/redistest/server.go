package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
)

const Password = "test-password"

func Shared(url string) (*Server, error) {
	switch topology := os.Getenv("TEST_REDIS_TOPOLOGY"); topology {
	case "":
	case "cluster":
		c, err := StartCluster(3, 0, "--appendonly", "yes")
		return &Server{Cluster: c}, err
	default:
		return nil, fmt.Errorf("TEST_REDIS_TOPOLOGY is %q, not cluster", topology)
	}
	if url == "" {
		return Start("")
	}
	return borrowRedis(url)
}

// Server is a real Redis: a process of the tests' own, or a database of a server that was there before.
type Server struct {
	Network, Address string // of the harness's connections
	Options          []redis.DialOption
	TCP              string // host:port, of the services' connections
	User             string // that the services log in as, with Password
	database         int

	Cluster *Cluster // if it is not one server; then all other fields are zero

	// Of a process of the tests' own:
	dir   string
	setUp string // what a shell does before it becomes redis-server
	args  []string
	Port  int
	Cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	guard *exec.Cmd     // kills the process when the tests are gone
}

// Start starts a redis-server with an append-only file on a free port and waits until it responds. It writes to
// that file before each reply, and syncs it never: what it has replied outlives the process, however slow the disk is.
func Start(setUp string, args ...string) (*Server, error) {
	dir, err := os.MkdirTemp("", "tollgate")
	if err != nil {
		return nil, err
	}
	r := &Server{
		Network: "unix", Address: filepath.Join(dir, "redis.sock"), User: "tollgate", dir: dir, setUp: setUp, args: args,
	}
	for range 5 { // another process may take the port before redis-server does
		if r.Port, err = FreePort(); err == nil {
			r.TCP = fmt.Sprintf("127.0.0.1:%d", r.Port)
			if err = r.Start(); err == nil {
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

func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Start starts the process, for the first time or again after kill, with the data that it had.
func (r *Server) Start() error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return fmt.Errorf("the tests need a real redis-server in PATH (`make tools` installs one): %w", err)
	}
	rules, err := leastPrivilege()
	if err != nil {
		return err
	}
	args := []string{"-c", r.setUp + `
		exec redis-server "$@"`, "redis-server",
		"--port", strconv.Itoa(r.Port), "--bind", "127.0.0.1", "--dir", r.dir, "--unixsocket", r.Address, "--save", "",
		"--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction",
		"--user", r.User, "on", ">" + Password,
	}
	r.Cmd = exec.Command("sh", slices.Concat(args, rules, r.args)...)
	var out bytes.Buffer
	r.Cmd.Stdout, r.Cmd.Stderr = &out, &out
	if err := r.Cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	r.done = done
	go func() {
		_ = r.Cmd.Wait()
		close(done)
	}()
	// If the tests are aborted, this pipe closes, and the shell kills the server.
	r.guard = exec.Command("sh", "-c", `read _; kill -9 "$0"; rm -rf "$1"`, strconv.Itoa(r.Cmd.Process.Pid), r.dir)
	if _, err := r.guard.StdinPipe(); err != nil {
		return err
	}
	if err := r.guard.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-done:
			return fmt.Errorf("redis-server ended:\n%s", &out)
		case <-time.After(5 * time.Millisecond):
		}
		c, err := r.Dial()
		if err != nil {
			continue
		}
		_, err = c.Do("PING")
		c.Close()
		if _, responds := errors.AsType[redis.Error](err); err == nil || responds && !strings.HasPrefix(err.Error(), "LOADING") {
			return nil
		}
	}
	r.Kill()
	return fmt.Errorf("redis-server did not start:\n%s", &out)
}

// leastPrivilege returns the rules of the user that the services under test log in as: those of redis.acl, which the
// documentation recommends.
func leastPrivilege() ([]string, error) {
	for dir := "."; ; dir = filepath.Join(dir, "..") { // a test runs in the directory of its package
		rules, err := os.ReadFile(filepath.Join(dir, "redis.acl"))
		if _, outside := os.Stat(filepath.Join(dir, "go.mod")); outside == nil || err == nil {
			return strings.Fields(string(rules)), err
		}
	}
}

// borrowedKey marks a database of a server that was there before as one that tests use. Its value is the time at which
// they began.
const borrowedKey = "tollgate-tests"

// borrowRedis returns an empty database of the server at rawURL (redis://…), in which the services log in as a user
// that has the rules of redis.acl. The user in rawURL must be an administrator. close empties the database again and
// deletes the services' user.
func borrowRedis(rawURL string) (*Server, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "redis" || u.Host == "" {
		return nil, errors.New("TEST_REDIS_URL must have the form redis://[[user]:password@]host[:port]")
	}
	if u.Port() == "" {
		u.Host += ":6379"
	}
	password, _ := u.User.Password()
	r := &Server{Network: "tcp", Address: u.Host, TCP: u.Host}
	options := []redis.DialOption{redis.DialUsername(u.User.Username()), redis.DialPassword(password)}
	for r.database = 15; r.database > 0; r.database-- {
		r.Options = append(options, redis.DialDatabase(r.database))
		free, err := r.take()
		if err != nil {
			return nil, fmt.Errorf("TEST_REDIS_URL, as an administrator: %w", err)
		}
		if free {
			return r, nil
		}
	}
	return nil, errors.New("TEST_REDIS_URL: none of the databases 1 to 15 is empty")
}

// take makes the database that of these tests and reports whether it was free: empty, or left behind by tests that were
// aborted.
func (r *Server) take() (bool, error) {
	c, err := r.Dial()
	if err != nil {
		return false, err
	}
	defer c.Close()
	if began, err := redis.Int64(c.Do("GET", borrowedKey)); err == nil && time.Since(time.Unix(began, 0)) > time.Hour {
		if _, err := c.Do("FLUSHDB"); err != nil {
			return false, err
		}
	}
	if n, err := redis.Int(c.Do("DBSIZE")); err != nil || n > 0 {
		return false, err
	}
	if taken, err := redis.String(c.Do("SET", borrowedKey, time.Now().Unix(), "NX")); taken != "OK" {
		return false, ignoreNil(err)
	}
	rules, err := leastPrivilege()
	if err != nil {
		return false, err
	}
	r.User = fmt.Sprintf("tollgate-test-%d", r.database)
	setUser := []any{"SETUSER", r.User, "reset", "on", ">" + Password}
	for _, rule := range rules {
		setUser = append(setUser, rule)
	}
	_, err = c.Do("ACL", setUser...)
	return err == nil, err
}

func ignoreNil(err error) error {
	if errors.Is(err, redis.ErrNil) {
		return nil
	}
	return err
}

func (r *Server) Kill() {
	_ = r.guard.Process.Kill()
	_ = r.guard.Wait()
	_ = r.Cmd.Process.Kill()
	<-r.done
}

// Close ends the process, or gives the database back as it was.
func (r *Server) Close() {
	if r.Cluster != nil {
		r.Cluster.Close()
		return
	}
	if r.Cmd != nil {
		r.Kill()
		os.RemoveAll(r.dir)
		return
	}
	c, err := r.Dial()
	if err == nil {
		defer c.Close()
		_, err = c.Do("FLUSHDB")
		_, err2 := c.Do("ACL", "DELUSER", r.User)
		err = errors.Join(err, err2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "database %d of TEST_REDIS_URL is not cleaned up: %v\n", r.database, err)
	}
}

func (r *Server) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := r.Cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// URL returns the URL of the server for the services under test.
func (r *Server) URL() string {
	if r.Cluster != nil {
		return r.Cluster.Url()
	}
	return r.urlAt(r.TCP)
}

// urlAt returns the URL for the services under test if they reach the server at address.
func (r *Server) urlAt(address string) string {
	return fmt.Sprintf("redis://%s:%s@%s/%d", r.User, Password, address, r.database)
}

// Dial connects to the server as its administrator.
func (r *Server) Dial() (redis.Conn, error) { return r.DialContext(context.Background()) }

// DialContext is dial, until ctx is done.
func (r *Server) DialContext(ctx context.Context) (redis.Conn, error) {
	if r.Cluster != nil {
		return r.Cluster.Conn(), nil
	}
	return redis.DialContext(ctx, r.Network, r.Address, r.Options...)
}

// Do runs one command on a connection of its own, beside what the service does.
func (r *Server) Do(t testing.TB, command string, args ...any) any {
	t.Helper()
	c, err := r.Dial()
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

func (r *Server) Int(t testing.TB, command string, args ...any) int {
	t.Helper()
	n, err := redis.Int(r.Do(t, command, args...), nil)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return n
}

func (r *Server) String(t testing.TB, command string, args ...any) string {
	t.Helper()
	s, err := redis.String(r.Do(t, command, args...), nil)
	if ignoreNil(err) != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return s
}

// Keys returns the names of the keys that match pattern, in order.
func (r *Server) Keys(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := redis.Strings(r.Do(t, "KEYS", pattern), nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// New starts a redis-server for one test, which may do with it what it likes.
func New(t testing.TB, args ...string) *Server {
	t.Helper()
	return NewAfter(t, "", args...)
}

// NewAfter is New in a process for which a shell has done setUp.
func NewAfter(t testing.TB, setUp string, args ...string) *Server {
	t.Helper()
	r, err := Start(setUp, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// Field returns the value of one line of INFO's reply, "" if it has no such line.
func Field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/waittest"
)

// Password is the password of the user whom the services under test log in as.
const Password = "test-password"

// Server is a real Redis: a process of the tests' own, a database of a server that was there before, or a cluster.
type Server struct {
	Network string             // of Address: unix or tcp
	Address string             // of the tests' own connections: the socket's path, or host:port
	Options []redis.DialOption // of the tests' own connections
	TCP     string             // host:port, of the services' connections
	User    string             // whom the services log in as, with Password
	Port    int                // of a process; else 0

	Cluster *Cluster // not nil if it is not one server; then all other fields are zero

	database int

	// Of a process:
	dir   string
	setUp string // what a shell does before it becomes redis-server
	args  []string
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	guard *exec.Cmd     // kills the process when the tests are gone
}

// New starts a redis-server for one test, which may do with it what it likes. It is as Start says.
func New(t testing.TB, args ...string) *Server {
	t.Helper()
	return NewAfter(t, "", args...)
}

// NewAfter does what New does, in a process for which a shell has run the commands setUp, such as ulimit.
func NewAfter(t testing.TB, setUp string, args ...string) *Server {
	t.Helper()
	r, err := startAfter(setUp, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// Main runs the tests of a package that share what start returns: StartShared or StartSharedServer. They find it in
// *shared. Main returns the code to exit with, after it has closed that and the cluster that tests share.
func Main(m *testing.M, start func() (*Server, error), shared **Server) int {
	server, err := start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Close()
	defer CloseSharedCluster()
	*shared = server
	return m.Run()
}

// StartShared returns the Redis that the tests of a package share: the server at TEST_REDIS_URL, if that is set, else
// one that it starts; or, if TEST_REDIS_TOPOLOGY is "cluster", a cluster of three masters without replicas.
func StartShared() (*Server, error) {
	switch topology := os.Getenv("TEST_REDIS_TOPOLOGY"); topology {
	case "":
		return StartSharedServer()
	case "cluster":
		c, err := StartCluster(3, 0, "--appendonly", "yes")
		if err == nil {
			err = c.setNodeTimeout(patientNodeTimeout)
		}
		return &Server{Cluster: c}, err
	default:
		return nil, fmt.Errorf("TEST_REDIS_TOPOLOGY is %q, not cluster", topology)
	}
}

// StartSharedServer does what StartShared does, but always with one server.
func StartSharedServer() (*Server, error) {
	if url := os.Getenv("TEST_REDIS_URL"); url != "" {
		return borrow(url)
	}
	return Start()
}

// Start starts a redis-server with further arguments and waits until it responds. It writes its append-only file before
// each reply, and never syncs it: what it has replied outlives the process, however slow the disk is.
func Start(args ...string) (*Server, error) { return startAfter("", args...) }

func startAfter(setUp string, args ...string) (*Server, error) {
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

// FreePort returns a port of 127.0.0.1 on which nothing listens, another one each time. It is below those that systems
// give to the connections that programs open, one of which could take it before a server does.
func FreePort() (int, error) {
	for range 100 {
		port := firstPort + (portOffset+int(portsGiven.Add(1)))%ports
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port from %d to %d is free", firstPort, firstPort+ports-1)
}

const firstPort, ports = 20_000, 12_000

var (
	portsGiven atomic.Int64
	portOffset = rand.IntN(ports) // differs from process to process
)

// Start starts the process, for the first time or again after Kill, with the data that it had.
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
	r.cmd = exec.Command("sh", slices.Concat(args, rules, r.args)...)
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
	// If the tests are aborted, this pipe closes, and the shell kills the server.
	r.guard = exec.Command("sh", "-c", `read _; kill -9 "$0"; rm -rf "$1"`, strconv.Itoa(r.cmd.Process.Pid), r.dir)
	if _, err := r.guard.StdinPipe(); err != nil {
		return err
	}
	if err := r.guard.Start(); err != nil {
		return err
	}
	err = waittest.Until(20*time.Second, func() error {
		if r.Alive() {
			return r.serves()
		}
		return nil
	})
	switch {
	case !r.Alive():
		return fmt.Errorf("redis-server ended:\n%s", &out)
	case err != nil:
		r.Kill()
		return fmt.Errorf("redis-server did not start: %w\n%s", err, &out)
	}
	return nil
}

// serves returns an error if the server cannot be reached, or loads its data.
func (r *Server) serves() error {
	c, err := r.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do("PING")
	if refused, ok := errors.AsType[redis.Error](err); ok && !strings.HasPrefix(string(refused), "LOADING") {
		return nil
	}
	return err
}

// leastPrivilege returns the rules of the user whom the services under test log in as: those of redis.acl, which the
// documentation recommends.
func leastPrivilege() ([]string, error) {
	dir, err := os.Getwd() // that of the package under test
	if err != nil {
		return nil, err
	}
	for {
		rules, err := os.ReadFile(filepath.Join(dir, "redis.acl"))
		_, noModule := os.Stat(filepath.Join(dir, "go.mod"))
		parent := filepath.Dir(dir)
		if err == nil || noModule == nil || parent == dir {
			return strings.Fields(string(rules)), err
		}
		dir = parent
	}
}

// Kill ends the process at once, as a crash would.
func (r *Server) Kill() {
	_ = r.guard.Process.Kill()
	_ = r.guard.Wait()
	_ = r.cmd.Process.Kill()
	<-r.done
}

// Close ends the process or the cluster and removes its data, or gives the database back as it was.
func (r *Server) Close() {
	switch {
	case r.Cluster != nil:
		r.Cluster.Close()
	case r.cmd != nil:
		r.Kill()
		os.RemoveAll(r.dir)
	default:
		r.giveBack()
	}
}

// PID returns the ID of the process.
func (r *Server) PID() int { return r.cmd.Process.Pid }

// Alive reports whether the process runs, or is stopped by SIGSTOP.
func (r *Server) Alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process.
func (r *Server) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// URL returns the URL for the services under test.
func (r *Server) URL() string {
	if r.Cluster != nil {
		return r.Cluster.URL()
	}
	return r.urlAt(r.TCP)
}

// urlAt returns the URL for the services under test if they reach the server at address.
func (r *Server) urlAt(address string) string {
	return fmt.Sprintf("redis://%s:%s@%s/%d", r.User, Password, address, r.database)
}

// Dial connects to the server as its administrator.
func (r *Server) Dial() (redis.Conn, error) { return r.DialContext(context.Background()) }

// DialContext does what Dial does, until ctx is done. The connection to a cluster is what Cluster.Conn returns.
func (r *Server) DialContext(ctx context.Context) (redis.Conn, error) {
	if r.Cluster != nil {
		return r.Cluster.Conn(), nil
	}
	return redis.DialContext(ctx, r.Network, r.Address, r.Options...)
}

// do runs one command as the administrator, over a connection of its own.
func (r *Server) do(command string, args ...any) (any, error) {
	c, err := r.Dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Do(command, args...)
}

// Do runs one command as the administrator, over a connection of its own. It must succeed.
func (r *Server) Do(t testing.TB, command string, args ...any) any {
	t.Helper()
	reply, err := r.do(command, args...)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// DoAll runs commands as the administrator, one after the other, until one fails. Each is its name and its arguments.
func (r *Server) DoAll(commands ...[]any) error {
	for _, command := range commands {
		if _, err := r.do(command[0].(string), command[1:]...); err != nil {
			return fmt.Errorf("%v: %w", command[:2], err)
		}
	}
	return nil
}

// Int does what Do does, with a command whose reply is a whole number.
func (r *Server) Int(t testing.TB, command string, args ...any) int {
	t.Helper()
	n, err := redis.Int(r.Do(t, command, args...), nil)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return n
}

// String does what Do does, with a command whose reply is a string. One that is missing is "".
func (r *Server) String(t testing.TB, command string, args ...any) string {
	t.Helper()
	s, err := redis.String(r.Do(t, command, args...), nil)
	if ignoreNil(err) != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return s
}

// Keys returns the names of the keys that match pattern, sorted.
func (r *Server) Keys(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := redis.Strings(r.Do(t, "KEYS", pattern), nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func ignoreNil(err error) error {
	if errors.Is(err, redis.ErrNil) {
		return nil
	}
	return err
}

// Field returns the value of the line "name:value" of a reply such as INFO's, "" if it has no such line.
func Field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// ScriptMicros returns how long EVALSHA has taken in all, by Redis's clock, according to a reply of INFO commandstats.
func ScriptMicros(info string) (micros float64) {
	var calls int
	fmt.Sscanf(Field(info, "cmdstat_evalsha"), "calls=%d,usec=%g", &calls, &micros)
	return micros
}

// Calls returns how often a command has been executed, by a script too, according to a reply of INFO commandstats.
func Calls(info, command string) (n int) {
	fmt.Sscanf(Field(info, "cmdstat_"+command), "calls=%d", &n) // a command that was never executed has no line
	return n
}

//go:build integration

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
	"tollgate/internal/waittest"
)

// runScript is a run.sh in a process group of its own, as a terminal starts it.
type runScript struct {
	*process
	port int // of Redis
}

// newRunPort returns a free port for a Redis that run.sh starts. The Redis ends, and its data is gone, when the test ends.
func newRunPort(t *testing.T) (port int, dir string) {
	t.Helper()
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(".redis", fmt.Sprint(port))
	t.Cleanup(func() {
		_ = exec.Command("redis-cli", "-p", fmt.Sprint(port), "shutdown", "nosave").Run() // there may be none
		os.RemoveAll(dir)
	})
	return port, dir
}

// startRunScript starts run.sh with the Redis at a port, until the test ends.
func startRunScript(t *testing.T, port int, settings ...string) runScript {
	t.Helper()
	cmd := exec.Command("./run.sh")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second // after a kill -9 its tollgate lives on
	env := append(os.Environ(), "ADDR=127.0.0.1:0", fmt.Sprintf("REDIS_URL= redis://localhost:%d\r\n", port))
	return runScript{startCommand(t, cmd, append(env, settings...)), port}
}

// signal sends a signal to the process group, as a terminal does.
func (r runScript) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-r.cmd.Process.Pid, sig); err != nil {
		t.Fatal(err)
	}
}

// pid returns the process ID of the Redis, 0 if none listens.
func (r runScript) pid() int {
	c, err := redis.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port))
	if err != nil {
		return 0
	}
	defer c.Close()
	info, _ := redis.String(c.Do("INFO", "server"))
	var pid int
	fmt.Sscan(redistest.Field(info, "process_id"), &pid)
	return pid
}

// wantEnd waits until run.sh has ended with a status.
func (r runScript) wantEnd(t *testing.T, status int) {
	t.Helper()
	if got := r.exitCode(t); got != status {
		t.Errorf("exit status %d, want %d:\n%s", got, status, r.log)
	}
}

// The Redis that one run.sh has started goes on as long as another uses it, however the first one ends. The last one
// stops it.
func TestIntegrationRunScripts(t *testing.T) {
	for _, test := range []struct {
		name  string
		first syscall.Signal // which ends the one that has started Redis
		last  syscall.Signal
	}{
		{"Ctrl-C in the first terminal", syscall.SIGINT, syscall.SIGINT},
		{"the first terminal is closed", syscall.SIGHUP, syscall.SIGHUP},
		{"SIGTERM", syscall.SIGTERM, syscall.SIGTERM},
		{"kill -9", syscall.SIGKILL, syscall.SIGTERM},
	} {
		t.Run(test.name, func(t *testing.T) {
			port, _ := newRunPort(t)
			first := startRunScript(t, port)
			firstAddress := first.address(t)
			second := startRunScript(t, port)
			s := second.service(t)
			pid, orphan := second.pid(), first.tollgate(t)
			first.signal(t, test.first)
			if test.first == syscall.SIGKILL {
				waittest.Eventually(t, 10*time.Second, func() error {
					if syscall.Kill(first.cmd.Process.Pid, 0) == nil {
						return fmt.Errorf("the first still runs")
					}
					return nil
				})
				(&service{url: "http://" + firstAddress}).login(t, "abc") // nobody has told its tollgate to end
				_ = syscall.Kill(orphan, syscall.SIGTERM)
				<-first.done
			} else {
				first.wantEnd(t, 0)
				if !strings.Contains(first.log.String(), fmt.Sprintf("Redis on port %d goes on: others are connected to it\n", port)) {
					t.Errorf("the first says\n%s", first.log)
				}
			}
			key := s.login(t, "abc")
			s.consume(t, "abc", key, "").want(t, 200, "")
			if got := second.pid(); got != pid {
				t.Errorf("Redis is process %d, want %d", got, pid)
			}
			third := startRunScript(t, port)
			third.service(t).login(t, "abc")
			second.signal(t, test.last)
			second.wantEnd(t, 0)
			third.signal(t, test.last)
			third.wantEnd(t, 0)
			if got := third.pid(); got != 0 {
				t.Errorf("Redis still runs as process %d", got)
			}
		})
	}
}

// tollgate returns the process ID of the tollgate that run.sh has started.
func (r runScript) tollgate(t *testing.T) (pid int) {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", fmt.Sprint(r.cmd.Process.Pid), "tollgate").Output()
	if _, scanErr := fmt.Sscan(string(out), &pid); err != nil || scanErr != nil {
		t.Fatalf("it has no process tollgate: %v, %v", err, scanErr)
	}
	return pid
}

// Scripts that start or end at the same time have one Redis, which is stopped in the end.
func TestIntegrationRunScriptsAtOnce(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			port, _ := newRunPort(t)
			var scripts []runScript
			for range 3 {
				scripts = append(scripts, startRunScript(t, port))
			}
			for _, r := range scripts {
				r.service(t).login(t, "abc")
			}
			for _, r := range scripts {
				r.signal(t, sig)
			}
			for _, r := range scripts {
				r.wantEnd(t, 0)
			}
			if pid := scripts[0].pid(); pid != 0 {
				t.Errorf("Redis still runs as process %d", pid)
			}
		})
	}
}

// A Redis that somebody else has started is never stopped.
func TestIntegrationRunScriptOtherRedis(t *testing.T) {
	port, _ := newRunPort(t)
	own := exec.Command("redis-server", "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
		"--dir", t.TempDir())
	done := start(t, own)
	defer func() {
		_ = own.Process.Kill()
		<-done
	}()
	r := runScript{port: port}
	waittest.Eventually(t, 10*time.Second, func() error {
		if r.pid() == 0 {
			return fmt.Errorf("Redis does not listen")
		}
		return nil
	})
	r = startRunScript(t, port)
	r.service(t).login(t, "abc")
	r.signal(t, syscall.SIGINT)
	r.wantEnd(t, 0)
	if got := r.pid(); got != own.Process.Pid {
		t.Errorf("Redis is process %d, want %d:\n%s", got, own.Process.Pid, r.log)
	}
}

// fullPort returns a port whose queue of connections is full: another one waits.
func fullPort(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := address.(*syscall.SockaddrInet4).Port
	for {
		c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), 300*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { c.Close() })
	}
}

// What accepts connections and says nothing is not waited for: tollgate says what is wrong. A signal ends the script
// meanwhile.
func TestIntegrationRunScriptSilentPort(t *testing.T) {
	listen := func() (silent net.Listener, port int) {
		t.Helper()
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
		return silent, silent.Addr().(*net.TCPAddr).Port
	}
	_, port := listen()
	r := startRunScript(t, port)
	r.wantEnd(t, 1)
	if log := r.log.String(); !strings.Contains(log, "[ERROR] Redis connection failed: ") || strings.Contains(log, "Starting Redis") {
		t.Errorf("it says\n%s", log)
	}
	r = startRunScript(t, fullPort(t))
	r.wantEnd(t, 1)
	if log := r.log.String(); !strings.Contains(log, "[ERROR] Redis connection failed: ") || strings.Contains(log, "Starting Redis") {
		t.Errorf("a port whose queue is full: it says\n%s", log)
	}
	silent, port := listen()
	r = startRunScript(t, port)
	conn, err := silent.Accept() // run.sh looks what it is
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	r.signal(t, syscall.SIGTERM)
	r.wantEnd(t, 0)
	if took := time.Since(began); took > 3*time.Second+busy {
		t.Errorf("it ended after %s", took)
	}
}

// run.sh starts no Redis that would ignore its data, and what it prints instead restores the data.
func TestIntegrationRunScriptRestore(t *testing.T) {
	port, dir := newRunPort(t)
	r := startRunScript(t, port)
	s := r.service(t)
	key := s.login(t, "abc")
	s.consume(t, "abc", key, "").want(t, 200, `{"tokensLeft":99}`)
	c, err := redis.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	redistest.MustDo(t, c, "SAVE")
	c.Close()
	r.signal(t, syscall.SIGINT)
	r.wantEnd(t, 0)
	if err := os.RemoveAll(filepath.Join(dir, "appendonlydir")); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, filepath.Join(dir, "dump.rdb"))
	r = startRunScript(t, port)
	r.wantEnd(t, 1)
	recipe := strings.Join(regexp.MustCompile(`(?m)^    .*$`).FindAllString(r.log.String(), -1), "\n")
	if !strings.Contains(r.log.String(), dir+" has a dump.rdb, but no appendonlydir: Redis would start empty") ||
		strings.Contains(r.log.String(), "Starting Redis") || before != readFile(t, filepath.Join(dir, "dump.rdb")) {
		t.Fatalf("it says\n%s", r.log)
	}
	if out, err := exec.Command("bash", "-c", recipe).CombinedOutput(); err != nil {
		t.Fatalf("%s\nprints\n%s\n%v", recipe, out, err)
	}
	waittest.Eventually(t, 10*time.Second, func() error {
		if r.pid() != 0 {
			return fmt.Errorf("Redis still runs")
		}
		return nil
	})
	r = startRunScript(t, port)
	s = r.service(t)
	s.consume(t, "abc", key, "").want(t, 200, `{"tokensLeft":98}`)
	r.signal(t, syscall.SIGINT)
	r.wantEnd(t, 0)

	manifest := filepath.Join(dir, "appendonlydir", "appendonly.aof.manifest")
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	r = startRunScript(t, port)
	r.wantEnd(t, 1)
	if !strings.Contains(r.log.String(), "appendonlydir lacks its manifest") {
		t.Errorf("it says\n%s", r.log)
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tollgate/internal/redistest"
	"tollgate/internal/telemetry"
	"tollgate/internal/telemetrytest"
	"tollgate/internal/waittest"
)

// stallingLog is a log whose reader stands still from some time on, as a terminal does after Ctrl-S.
type stallingLog struct {
	telemetrytest.Log
	gate sync.RWMutex
}

func (l *stallingLog) Write(p []byte) (int, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	return l.Log.Write(p)
}

// stall lets the reader stand still until goOn is called, which the end of the test does, too.
func (l *stallingLog) stall(t *testing.T) (goOn func()) {
	l.gate.Lock()
	goOn = sync.OnceFunc(l.gate.Unlock)
	t.Cleanup(goOn)
	return goOn
}

// newStallingService is newService with a log that can stall.
func newStallingService(t *testing.T, settings ...string) (*service, *stallingLog) {
	t.Helper()
	log := new(stallingLog)
	return newServiceWithLog(t, &log.Log, telemetry.NewLogger(log), settings...), log
}

// While the reader of the log stands still, every request is served, a Redis that was away is found again, and the
// process ends when it should. What is in the log when the reader goes on says what was dropped, and by whom what was
// changed.
func TestLogReaderStandsStill(t *testing.T) {
	t.Parallel()
	r := redistest.New(t)
	s, log := newStallingService(t, "REDIS_URL="+r.URL(), "ACCESS_LOG=true")
	key := s.login(t, "abc")
	goOn := log.stall(t)
	soon := func(what string, send func() reply, status int) {
		t.Helper()
		began := time.Now()
		if got := send(); got.status != status {
			t.Errorf("%s: %d %s, want %d", what, got.status, got.body, status)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: after %s", what, took)
		}
	}
	charge := func() reply { return s.consume(t, "abc", key, "") }
	ready := func() reply { return s.do(t, "GET", "/readyz", "") }
	for range 1200 { // more lines than may wait
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
	}
	soon("a charge", charge, 200)
	put := func() reply { return s.putConfig(t, "abc", `{"user_groups":{"anonymous":{"tokens":7}}}`) }
	soon("a change of the config", put, 200)
	soon("a charge with that config", charge, 200)
	r.Do(t, "SET", "tenant:other:config", `{"user_groups":{"anonymous":{"tokens":7}}}`)
	soon("the load of another config", func() reply { return s.do(t, "POST", "/other/auth/anonymous", "") }, 200)
	if dropped := s.sample(t, "log_lines_dropped_total"); dropped < 400 || dropped > 600 {
		t.Errorf("%v lines were dropped", dropped)
	}
	r.Kill()
	soon("a charge without Redis", charge, 503)
	soon("readiness without Redis", ready, 503)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	waittest.Eventually(t, 2*time.Second+busy, func() error { return charge().is(200) })
	soon("readiness with Redis", ready, 200)

	began := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the service has ended after %s", took)
	}
	if n := s.log.Count("[INFO] Stopped"); n != 0 {
		t.Fatal("the log did not stand still")
	}
	goOn()
	log.Wait(t, "[ERROR] Redis is unavailable: ", nil)
	for _, line := range []string{
		`\[INFO\] Admin operator, tenant abc: saved the config \w+`,
		`\[WARN\] \d+ lines of the log were dropped: nobody read them in time`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(log.String()) {
			t.Errorf("the log has no line %s", line)
		}
	}
}

// A failover is followed while the reader of the log stands still: its lines are logged under a lock.
func TestFailoverWhileLogStandsStill(t *testing.T) {
	long(t)
	t.Parallel()
	g := redistest.NewSentinels(t, "")
	s, log := newStallingService(t, "REDIS_URL="+g.URL(), "ACCESS_LOG=true")
	s.login(t, "abc")
	log.stall(t)
	for range 1200 {
		s.do(t, "GET", "/healthz", "").want(t, 200, "")
	}
	old := g.Master(t)
	old.Kill()
	promoted := g.Promoted(t, old)
	waittest.Eventually(t, 2*time.Second+busy, func() error {
		got := s.do(t, "POST", "/abc/auth/anonymous", "")
		if err := got.is(200); err != nil {
			return err
		}
		if promoted.Int(t, "EXISTS", "apiKey:"+got.text(t, "apiKey")) != 1 {
			return errors.New("the key was stored by another server")
		}
		return nil
	})
}

// startWithStderr starts the program as startProcess does, on a free port, with stderr as its standard error. It returns
// when it serves.
func startWithStderr(t *testing.T, stderr *os.File, settings ...string) (*exec.Cmd, *service, <-chan struct{}) {
	t.Helper()
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	s := &service{url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(settings, "TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+t.TempDir(),
		"ADDR="+s.address(), "ADMIN_TOKEN="+testAdminToken, "REDIS_URL="+testRedis.URL())
	cmd.Stderr = stderr
	done := start(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	waittest.Eventually(t, 30*time.Second, func() error {
		got, err := s.send("GET", "/readyz", "")
		if err != nil {
			return err
		}
		return got.is(200)
	})
	return cmd, s, done
}

// A log that cannot be written, or whose reader has gone, harms nobody: the service goes on, and stops in good order.
func TestLogIsLost(t *testing.T) {
	t.Parallel()
	open := func(name string) func(t *testing.T) (*os.File, func()) {
		return func(t *testing.T) (*os.File, func()) {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Skip(err)
			}
			return f, func() {}
		}
	}
	for _, test := range []struct {
		name string
		log  func(t *testing.T) (stderr *os.File, lose func())
	}{
		{"a full disk", open("/dev/full")},
		{"a pipe whose reader has gone", func(t *testing.T) (*os.File, func()) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			return w, func() { r.Close() }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stderr, lose := test.log(t)
			cmd, s, done := startWithStderr(t, stderr, "ACCESS_LOG=true")
			stderr.Close()
			lose()
			id := newTenant(t, 10)
			key := s.login(t, id)
			for range 5 {
				s.putConfig(t, id, `{"user_groups":{"anonymous":{}}}`).want(t, 200, "")
				s.consume(t, id, key, "").want(t, 200, "")
			}
			waittest.Eventually(t, 10*time.Second, func() error {
				if n := s.sample(t, "log_lines_dropped_total"); n < 10 {
					return fmt.Errorf("%v lines count as dropped", n)
				}
				return nil
			})
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-done
			if code := cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d, %s", code, cmd.ProcessState)
			}
		})
	}
}

// A process that cannot serve ends, with its exit code, also if nobody reads why.
func TestFailureThatNobodyReads(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_ = w.SetWriteDeadline(in(time.Second))
	if _, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 1<<20))); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the pipe is not full: %v", err)
	}
	for status, settings := range map[int][]string{1: {"REDIS_URL=redis://127.0.0.1:1"}, 2: {"ADDR=x", "SEED=x"}} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(settings, "TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+t.TempDir())
		cmd.Stderr = w
		done := start(t, cmd)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if code := cmd.ProcessState.ExitCode(); code != status {
			t.Errorf("%q: exit code %d, want %d", settings, code, status)
		}
	}
}

// A reader of the usage that has seen enough is no failure.
func TestUsageReaderHasGone(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	var stderr bytes.Buffer
	cmd := exec.Command(os.Args[0], "-h")
	cmd.Env = []string{"TOLLGATE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "GOCOVERDIR=" + t.TempDir()}
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil || stderr.String() != "" {
		t.Errorf("%v: %s", err, &stderr)
	}
	w.Close()
}

// With -log-time each line begins with the time of its event.
func TestLogTime(t *testing.T) {
	t.Parallel()
	const format = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[(INFO|WARN|ERROR)\] `
	wantTimes := func(log string, lines int) {
		t.Helper()
		if strings.Count(log, "\n") < lines {
			t.Errorf("want %d lines:\n%s", lines, log)
		}
		for line := range strings.Lines(log) {
			if !regexp.MustCompile(format).MatchString(line) {
				t.Errorf("log line %q", line)
			}
		}
	}
	began := time.Now().UTC().Truncate(time.Millisecond)
	p := startProcess(t, []string{"REDIS_URL=redis://127.0.0.1:1", "LOG_TIME=true"})
	p.exitCode(t)
	wantTimes(p.log.String(), 1)
	stamp, _, _ := strings.Cut(p.log.String(), " ")
	if at, err := time.Parse(time.RFC3339, stamp); err != nil || at.Before(began) || at.After(time.Now()) {
		t.Errorf("the time is %q, %v", stamp, err)
	}
	p = startProcess(t, []string{"ADDR=x", "SEED=x"}, "-log-time")
	p.exitCode(t)
	wantTimes(p.log.String(), 2)
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd, _, done := startWithStderr(t, file, "LOG_TIME=1", "ACCESS_LOG=1")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-done
	lines, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	wantTimes(string(lines), 4) // begun, a request, stopping, stopped
}

// Tollgate stands in front of AI back ends: it gives every tenant its own configuration, hands out API keys, and meters
// exactly what each key spends. All its state is in Redis.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	redisDialTimeout   = 5 * time.Second
	minAdminTokenBytes = 16

	keepAliveGrace = 500 * time.Millisecond

	readHeaderTimeout = 5 * time.Second
	readTimeout       = 8 * time.Second // of all of a request
	writeTimeout      = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 8 << 10 // to which net/http adds 4 KiB
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	log := newLogger(os.Stderr)
	if wrong, ok := errors.AsType[badSettings](err); ok {
		for _, sentence := range wrong {
			log.errorf("%s", sentence)
		}
		os.Exit(2)
	}
	log.errorf("%v", err)
	os.Exit(1)
}

// run is the whole program. It returns nil once it has stopped because ctx was done; a badSettings where args or the
// environment are wrong.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	set, err := parseSettings(args, getenv, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case set.version:
		_, err := fmt.Fprintln(stdout, "tollgate", buildVersion())
		return err
	case set.health:
		return checkHealth(ctx, set.addr)
	}
	return serve(ctx, set, newLogger(stderr))
}

// serve connects to Redis and serves HTTP until ctx is done, then finishes what runs.
func serve(ctx context.Context, set *settings, log *logger) error {
	st, err := openStore(ctx, set.redisURL, redisDialTimeout, log)
	if ctx.Err() != nil {
		return nil // told to stop before it had begun
	}
	if err != nil {
		//lint:ignore ST1005 the product's specification has these words
		return fmt.Errorf("Redis connection failed: %s", set.redisURL.redact(err.Error()))
	}
	defer st.close() // last of all, when nobody uses it any more

	if set.adminToken == "" {
		set.adminToken = rand.Text()
		log.infof("ADMIN_TOKEN is not set; this run's admin token is %s", set.adminToken)
	}
	if len(set.adminToken) < minAdminTokenBytes {
		log.warnf("ADMIN_TOKEN has fewer than %d characters: it can be guessed", minAdminTokenBytes)
	}
	srv, err := newServer(st, log, set)
	if err != nil {
		return err
	}
	var connections atomic.Int64
	web := &http.Server{
		Handler:           srv.routes(),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.warnings(),

		DisableGeneralOptionsHandler: true, // which answers OPTIONS * with 200
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				connections.Add(1)
			case http.StateClosed, http.StateHijacked:
				connections.Add(-1)
			}
		},
	}
	tcp, err := net.Listen("tcp", set.addr)
	if err != nil {
		return err
	}
	listener := newLazyListener(tcp, set.maxConnections)
	srv.crowded = listener.crowded
	log.infof("Listening on %s", listener.Addr())
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}

	log.infof("Stopping")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), set.drainTimeout)
	defer cancel()
	_ = listener.Close()
	srv.draining.Store(true) // /readyz is 503, and each answer ends its connection, so that clients connect elsewhere
	<-ended
	// Shutdown drops a request whose header it finds on a connection. One that was on its way over a connection kept
	// alive is answered if it comes within this grace.
	for end := time.Now().Add(keepAliveGrace); connections.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := web.Shutdown(drain); err != nil {
		log.warnf("Requests still ran after %s and were cut off", set.drainTimeout)
		_ = web.Close()
	}
	log.infof("Stopped")
	return nil
}

// buildVersion is that of the module when it was built from a tagged or committed state, else (devel).
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// checkHealth asks the server that listens on addr of this machine whether it is alive.
func checkHealth(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	answer, err := new(http.Transport).RoundTrip(r) // whatever proxy the environment names
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answered %s", answer.Status)
	}
	return nil
}

// logger writes lines that begin with their level. Whatever is in a value, a line stays one line.
type logger struct{ out *log.Logger }

func newLogger(w io.Writer) *logger { return &logger{log.New(w, "", 0)} }

func (l *logger) infof(format string, args ...any)  { l.line("[INFO] ", fmt.Sprintf(format, args...)) }
func (l *logger) warnf(format string, args ...any)  { l.line("[WARN] ", fmt.Sprintf(format, args...)) }
func (l *logger) errorf(format string, args ...any) { l.line("[ERROR] ", fmt.Sprintf(format, args...)) }

// line writes text with all that is not printable, but for tabs, escaped.
func (l *logger) line(level, text string) {
	var escaped strings.Builder
	escaped.WriteString(level)
	for _, r := range text {
		if r == '\t' || strconv.IsPrint(r) {
			escaped.WriteRune(r)
		} else {
			escaped.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	l.out.Print(escaped.String())
}

// warnings is a Logger for net/http, which has its own words for what goes wrong with connections.
func (l *logger) warnings() *log.Logger { return log.New(warningWriter{l}, "", 0) }

type warningWriter struct{ log *logger }

func (w warningWriter) Write(p []byte) (int, error) {
	w.log.warnf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

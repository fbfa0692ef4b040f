// Tollgate sits in front of AI back ends. It gives every tenant its own configuration, issues API keys, and meters
// exactly what each key spends. All its state is in Redis.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
	"tollgate/internal/connlimit"
	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
	"tollgate/internal/telemetry"
)

const (
	redisStartTimeout  = 5 * time.Second
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
	context.AfterFunc(ctx, stop) // a second signal ends the process immediately
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	log := telemetry.New(os.Stderr)
	if wrong, ok := errors.AsType[settingsError](err); ok {
		for _, sentence := range wrong {
			log.Errorf("%s", sentence)
		}
		os.Exit(2)
	}
	log.Errorf("%v", err)
	os.Exit(1)
}

// run is the whole program. It returns nil after it has stopped because ctx was done, and a settingsError if args or
// the environment are wrong.
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
	case set.reindex:
		return reindex(ctx, set, telemetry.New(stderr))
	}
	return serve(ctx, set, telemetry.New(stderr))
}

// serve connects to Redis and serves HTTP until ctx is done, then finishes what runs.
func serve(ctx context.Context, set *settings, log *telemetry.Logger) error {
	st, closeStore, err := openStore(ctx, set, log)
	if err == nil {
		defer closeStore() // last, when nobody uses it any more
	}
	if ctx.Err() != nil {
		return nil // cancelled while connecting: a clean exit
	}
	if err != nil {
		return connectError(set, err)
	}
	if set.adminToken == "" {
		set.adminToken = rand.Text()
		log.Infof("ADMIN_TOKEN is not set; this run's admin token is %s", set.adminToken)
	}
	if len(set.adminToken) < minAdminTokenBytes {
		log.Warnf("ADMIN_TOKEN has fewer than %d characters: it can be guessed", minAdminTokenBytes)
	}
	tcp, err := net.Listen("tcp", set.addr)
	if err != nil {
		return err
	}
	listener := connlimit.New(tcp, set.maxConnections)
	srv, err := newServer(st, log, serverOptions{
		adminToken:     set.adminToken,
		metricsToken:   set.metricsToken,
		loginLimit:     set.loginLimit,
		trustedProxies: set.trustedProxies,
		accessLog:      set.accessLog,
		googleKeysURL:  set.googleKeysURL,
		appleKeysURL:   set.appleKeysURL,
		nearCapacity:   listener.NearCapacity,
		gateway:        set.gateway,
		maxGatewayBody: set.maxGatewayBody,
	})
	if err != nil {
		return err
	}
	defer srv.usage.start()()
	web := &http.Server{
		Handler:           listener.Handler(srv.handler()),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.Warnings(),

		DisableGeneralOptionsHandler: true, // it would respond to OPTIONS * with 200

		ConnContext: connlimit.ConnContext,
		ConnState:   connlimit.ConnState,
	}
	go listener.CutSlowHeaders()
	log.Infof("Listening on %s", listener.Addr())
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Infof("Stopping")
	_ = listener.Close()
	srv.draining.Store(true) // /readyz is 503, and each response ends its connection, so that clients go elsewhere
	<-ended
	drain(web, listener, srv.gateway, set.drainTimeout, log)
	log.Infof("Stopped")
	return nil
}

// connectError returns the error for an openStore that has failed with err, which may quote the URL of Redis.
func connectError(set *settings, err error) error {
	//lint:ignore ST1005 the product's specification has these words
	return fmt.Errorf("Redis connection failed: %s", set.redisURL.Redact(err.Error()))
}

// reindex adds the API keys of users to the index, and reports its progress.
func reindex(ctx context.Context, set *settings, log *telemetry.Logger) error {
	set.seed = false
	st, closeStore, err := openStore(ctx, set, log)
	if err != nil {
		return connectError(set, err)
	}
	defer closeStore()
	indexed := 0
	err = st.Reindex(ctx, func(keys int) {
		indexed = keys
		log.Infof("Indexed %d API keys so far", keys)
	})
	if err != nil {
		return err
	}
	log.Infof("Indexed %d API keys", indexed)
	return nil
}

// openStore connects to Redis, checks it and seeds a tenant, within redisStartTimeout. closeStore ends the connections.
func openStore(ctx context.Context, set *settings, log *telemetry.Logger) (st *store, closeStore func(), err error) {
	deadline := time.Now().Add(redisStartTimeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	redis, err := redisdb.Open(ctx, redisdb.Options{
		URL: set.redisURL, Required: requiredCommands, ProbeKey: probeKey, Replicas: int(set.waitReplicas), Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	st = newStore(redis, log)
	closeStore = func() {
		st.close()
		redis.Close()
	}
	if set.seed {
		config, err := parseConfig(seedConfig)
		if err == nil {
			err = st.SeedTenant(deadline, seedTenant, config)
		}
		if err != nil {
			closeStore()
			return nil, nil, err
		}
	}
	return st, closeStore, nil
}

// drain waits for the requests that run, until timeout, and cuts off those that still run then.
func drain(web *http.Server, listener *connlimit.Listener, gate *gateway.Gateway, timeout time.Duration,
	log *telemetry.Logger) {
	defer gate.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Shutdown drops a request whose header it finds on a connection that was kept alive. One that is on its way is
	// served if it comes within this grace.
	for end := time.Now().Add(keepAliveGrace); listener.Connections() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := web.Shutdown(ctx); err != nil {
		log.Warnf("Requests still ran after %s and were cut off", timeout)
		gate.Stop() // before the connections are closed, so that the clients of streams learn of it
		_ = web.Close()
	}
}

// buildVersion returns the module's version if it was built from a tagged or committed state, else (devel).
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// checkHealth returns an error unless the service that listens on addr of this machine responds.
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
	response, err := new(http.Transport).RoundTrip(r) // whatever proxy the environment names
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz responded %s", response.Status)
	}
	return nil
}

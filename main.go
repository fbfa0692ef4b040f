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
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"tollgate/internal/connlimit"
	"tollgate/internal/options"
	"tollgate/internal/redisdb"
	"tollgate/internal/telemetry"
)

const (
	redisStartTimeout = 5 * time.Second
	keepAliveGrace    = 500 * time.Millisecond // for requests on connections that were kept alive, while draining
	logFlushTimeout   = time.Second            // for the first and last lines, in case nobody reads the log

	readHeaderTimeout = 5 * time.Second
	readTimeout       = 8 * time.Second // of all of a request
	writeTimeout      = 10 * time.Second
	maxHeaderBytes    = 8 << 10 // to which net/http adds 4 KiB
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // a log whose reader has gone is lost, and nothing else
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process immediately
	log := telemetry.NewLogger(os.Stderr)
	code := 0
	if err := run(ctx, hangups, os.Args[1:], os.Getenv, os.Stdout, log); err != nil {
		code = logFailure(log, err)
	}
	log.Flush(logFlushTimeout)
	os.Exit(code)
}

// logFailure logs an error of run, and returns the exit status for it.
func logFailure(log *telemetry.Logger, err error) int {
	if wrong, ok := errors.AsType[options.Errors](err); ok {
		for _, sentence := range wrong {
			log.Errorf("%s", sentence)
		}
		return 2
	}
	log.Errorf("%v", err)
	return 1
}

// run is the whole program. It returns nil after it has stopped because ctx was done, and an options.Errors if args or
// the environment are wrong. Each of hangups has it read the files of settings again.
func run(ctx context.Context, hangups <-chan os.Signal, args []string, getenv func(string) string, stdout io.Writer,
	log *telemetry.Logger) error {
	settings, err := parseSettings(args, getenv, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if settings.logTime {
		log.ShowTime()
	}
	if err != nil {
		return err
	}
	switch {
	case settings.version:
		_, err := fmt.Fprintln(stdout, "tollgate", buildVersion())
		return err
	case settings.health:
		return checkHealth(ctx, settings.addr)
	case settings.reindex:
		return reindex(ctx, settings, log)
	}
	defer settings.reloadOn(hangups, log)()
	return serve(ctx, settings, log)
}

// serve connects to Redis and serves HTTP until ctx is done, then finishes what runs.
func serve(ctx context.Context, settings *settings, log *telemetry.Logger) error {
	store, closeStore, err := openStore(ctx, settings, log)
	if err == nil {
		defer closeStore() // last, when nobody uses it any more
	}
	if ctx.Err() != nil {
		return nil // cancelled while connecting: a clean exit
	}
	if err != nil {
		return connectError(settings, err)
	}
	settings.limitConnections(telemetry.OpenFileLimit(), log)
	settings.checkTokens(log)
	tcp, err := net.Listen("tcp", settings.addr)
	if err != nil {
		return err
	}
	listener := connlimit.New(tcp, settings.maxConnections)
	server, err := newServer(store, log, settings.server, listener.NearCapacity)
	if err != nil {
		return err
	}
	server.connections = listener.Open
	defer server.usage.start()()
	httpServer := newHTTPServer(listener.Handler(server.handler), settings.idleTimeout, log)
	go listener.KeepRoom()
	log.Infof("Listening on %s", listener.Addr())
	ended := make(chan error, 1)
	go func() { ended <- httpServer.Serve(listener) }()
	log.Flush(logFlushTimeout)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Infof("Stopping")
	server.draining.Store(true) // /readyz is 503, and each response ends its connection, so that clients go elsewhere
	select {
	case err := <-ended:
		return err
	case <-time.After(settings.shutdownDelay):
	}
	_ = listener.Close()
	<-ended
	drain(httpServer, listener, server, settings.drainTimeout, log)
	log.Infof("Stopped")
	return nil
}

// newHTTPServer returns the http.Server that serves handler to the connections of a connlimit.Listener.
func newHTTPServer(handler http.Handler, idleTimeout time.Duration, log *telemetry.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
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
}

// connectError returns the error for an openStore that has failed with err, which may quote the URL of Redis.
func connectError(settings *settings, err error) error {
	if _, foreign := errors.AsType[foreignKeyError](err); foreign {
		return err
	}
	//lint:ignore ST1005 the product's specification has these words
	return fmt.Errorf("Redis connection failed: %s", settings.redisURL.Redact(err.Error()))
}

// reindex brings the index of users' API keys in line with the keys, and reports its progress.
func reindex(ctx context.Context, settings *settings, log *telemetry.Logger) error {
	store, closeStore, err := openStore(ctx, settings, log)
	if err != nil {
		return connectError(settings, err)
	}
	defer closeStore()
	indexed := 0
	unread, err := store.Reindex(ctx, func(keys int) {
		indexed = keys
		log.Infof("Indexed %d API keys so far", keys)
	})
	if err != nil {
		return err
	}
	log.Infof("Indexed %d API keys", indexed)
	if unread > 0 {
		log.Warnf("%d keys could not be read", unread)
	}
	return nil
}

// openStore connects to Redis, checks it and seeds a tenant, within redisStartTimeout and until ctx is done. The
// function that it returns ends the connections.
func openStore(ctx context.Context, settings *settings, log *telemetry.Logger) (*store, func(), error) {
	deadline := time.Now().Add(redisStartTimeout)
	openCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	redis, err := redisdb.Open(openCtx, redisdb.Options{
		URL: settings.redisURL, Required: requiredCommands, ProbeKey: probeKey, Replicas: int(settings.waitReplicas),
		Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	store := newStore(redis, log)
	closeStore := func() {
		store.close()
		redis.Close()
	}
	seeded := make(chan error, 1)
	go func() { seeded <- seedStore(deadline, store, settings, log) }()
	select {
	case err = <-seeded:
	case <-ctx.Done(): // for which a method of the store does not end
		go func() {
			<-seeded
			closeStore()
		}()
		return nil, nil, ctx.Err()
	}
	// The master of its slot is down, but not all are; or Redis takes no writes now, and serves the rest.
	if errors.Is(err, ErrUnavailable) && (!redis.OneSlot() || redisdb.IsWriteRefused(err)) {
		log.Warnf("The tenant %s cannot be created if it does not exist: %v", seedTenant, err)
		err = nil
	}
	if err != nil {
		closeStore()
		return nil, nil, err
	}
	return store, closeStore, nil
}

// seedStore looks at what is in Redis, and seeds a tenant if the settings say so.
func seedStore(deadline time.Time, store *store, settings *settings, log *telemetry.Logger) error {
	seeds := settings.seed && !settings.reindex
	empty, err := store.LooksEmpty()
	switch {
	case err != nil && seeds:
		return err
	case err != nil: // it may do for the other tenants
		log.Errorf("%v", err)
	case empty:
		log.Warnf("This Redis is empty: a first start, or its data is lost")
	}
	if !seeds {
		return nil
	}
	config, err := parseConfig(seedConfig)
	if err != nil {
		return err
	}
	return store.SeedTenant(deadline, seedTenant, config)
}

// endTimeout is for the sessions that a drain has closed: what they have used last is settled, and logged.
const endTimeout = 10 * time.Second

// drain waits for the requests and sessions that run, until timeout, and cuts off those that still run then.
func drain(httpServer *http.Server, listener *connlimit.Listener, server *server, timeout time.Duration,
	log *telemetry.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Shutdown drops a request whose header it finds on a connection that was kept alive. One that is on its way is
	// served if it comes within this grace.
	listener.Wait(keepAliveGrace)
	err := httpServer.Shutdown(ctx) // which does not wait for sessions
	if open := server.waitSessions(ctx); open > 0 {
		log.Infof("Realtime sessions that were still open after %s and are closed: %d", timeout, open)
	}
	ctx, cancelEnd := context.WithTimeout(context.Background(), endTimeout)
	defer cancelEnd()
	if err != nil {
		log.Warnf("Requests still ran after %s and were cut off", timeout)
	}
	server.gateway.Stop() // before connections are closed, so that the clients of streams learn of it
	if err != nil {
		_ = httpServer.Close()
	}
	server.waitSessions(ctx)
}

// buildVersion returns the module's version if it was built from a tagged or committed state, else (devel).
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// statusBody is the state of this process, and of the Redis that it uses.
type statusBody struct {
	Version string `json:"version"`
	Uptime  int64  `json:"uptime"` // seconds
	Redis   struct {
		Topology string       `json:"topology"`
		Nodes    []nodeStatus `json:"nodes"`
	} `json:"redis"`
	Connections struct { // of clients
		Open int `json:"open"`
		Max  int `json:"max"`
	} `json:"connections"`
	Streams  int64               `json:"streams"`
	Sessions int64               `json:"sessions"`
	Drains   int64               `json:"drains"`
	Pools    map[string]poolSize `json:"pools"` // by the label pool of the metrics
}

type nodeStatus struct {
	Address   string  `json:"address"`
	Role      string  `json:"role"`
	Up        bool    `json:"up"`
	LatencyMS float64 `json:"latencyMs"`
}

type poolSize struct {
	Used int64 `json:"used"`
	Max  int64 `json:"max"`
}

// showStatus shows the state of this process and of its Redis. It is also there while Redis does not respond: asking
// that takes less than a second.
func (s *server) showStatus(w http.ResponseWriter, _ *http.Request, _ *requestInfo) error {
	body := statusBody{
		Version: buildVersion(), Uptime: int64(time.Since(s.started).Seconds()),
		Streams: s.gateway.Streams(), Sessions: s.sessions.Load(), Pools: make(map[string]poolSize),
	}
	topology, nodes := s.store.Nodes()
	body.Redis.Topology, body.Redis.Nodes = topology, make([]nodeStatus, len(nodes))
	for i, n := range nodes {
		milliseconds := math.Round(n.Latency.Seconds()*1e5) / 100
		body.Redis.Nodes[i] = nodeStatus{n.Address, n.Role, n.Up, milliseconds}
	}
	body.Connections.Open, body.Connections.Max = s.connections()
	pools := s.pools()
	body.Drains = pools["drains"].Used
	for name, pool := range pools {
		body.Pools[name] = poolSize{pool.Used, pool.Size}
	}
	return writeJSON(w, http.StatusOK, body)
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

// checkTokens makes a random operator's token, which it logs, if none is set, and logs which tokens can be guessed.
func (s *settings) checkTokens(log *telemetry.Logger) {
	if s.server.adminTokens.Len() == 0 {
		token := rand.Text()
		_ = s.server.adminTokens.Replace(token) // is a bearer token
		log.Infof("ADMIN_TOKEN is not set; this run's admin token is %s", token)
	}
	s.warnOfShortTokens(log)
}

func (s *settings) warnOfShortTokens(log *telemetry.Logger) {
	s.server.adminTokens.WarnOfShort(log, "ADMIN_TOKEN")
	s.server.metricsTokens.WarnOfShort(log, "METRICS_TOKEN")
}

// reloadOn has the files of settings read again at each of hangups, until stop is called.
func (s *settings) reloadOn(hangups <-chan os.Signal, log *telemetry.Logger) (stop func()) {
	stopped := make(chan struct{})
	go func() {
		for {
			select {
			case <-hangups:
				s.reload(log)
			case <-stopped:
				return
			}
		}
	}()
	return func() { close(stopped) }
}

// reload reads the files of settings again. What cannot be read keeps its value.
func (s *settings) reload(log *telemetry.Logger) {
	if len(s.reloadables) == 0 {
		log.Infof("SIGHUP: no setting is a file that could be read again")
	}
	for _, r := range s.reloadables {
		if err := r.load(); err != nil {
			log.Errorf("%s was not read again, and the old value stays: %v", r.setting, err)
			continue
		}
		log.Infof("%s was read again", r.setting)
	}
	s.warnOfShortTokens(log)
}

// spareFiles is how many open files are kept for Redis, the log and the like.
const spareFiles = 100

// limitConnections bounds the connections of clients and those to providers by the open files that the process may
// have. If these are too few for maxConnections, it lowers that, and logs it. A connection of a client may need another
// to a provider. openFiles is the limit of the system, 0 if it is not known.
func (s *settings) limitConnections(openFiles int64, log *telemetry.Logger) {
	if openFiles == 0 {
		return
	}
	if enough := 2*s.maxConnections + spareFiles; openFiles < enough {
		most := max((openFiles-spareFiles)/2, 1)
		log.Warnf("The process may have %d open files (ulimit -n), and %d connections need %d: at most %d are taken",
			openFiles, s.maxConnections, enough, most)
		s.setMaxConnections(most)
	}
	// The rest is for connections to providers without a client's: drains, and those that are idle, of two kinds.
	g := &s.server.gateway
	rest := openFiles - spareFiles - s.maxConnections - g.MaxWaiting - g.MaxSessions
	g.MaxDrains = min(max(rest/2, 1), g.MaxDrains)
	g.MaxIdle = min(max(rest/4, 1), g.MaxIdle)
}

// setMaxConnections bounds the connections of clients, and with them what may keep one for long: charges must always
// find another.
func (s *settings) setMaxConnections(n int64) {
	s.maxConnections = n
	s.server.gateway.MaxWaiting, s.server.gateway.MaxSessions = max(n/2, 1), max(n/8, 1)
	s.server.gateway.MaxDrains, s.server.gateway.MaxIdle = maxDrains, maxIdle
}

const (
	maxDrains = 1024 // responses that are awaited or read at a time though their clients have gone
	maxIdle   = 1024 // idle connections to http:// providers, and to https:// ones
)

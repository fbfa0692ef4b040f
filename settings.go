package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/gateway"
	"tollgate/internal/options"
	"tollgate/internal/redisdb"
	"tollgate/internal/stripe"
)

// settings is what the command line and the environment say.
type settings struct {
	redisURL       *redisdb.URL
	redisTLS       redisdb.TLSFiles
	waitReplicas   int64 // replicas that must have a write before it is acknowledged
	addr           string
	seed           bool          // create the tenant abc if it does not exist
	maxConnections int64         // of clients
	idleTimeout    time.Duration // of clients' connections
	shutdownDelay  time.Duration // from the signal that stops the process to the drain
	drainTimeout   time.Duration // for the requests that run when the process is stopped
	logTime        bool          // log lines begin with their time
	reindex        bool          // bring the index of users' API keys in line with them, and end
	version        bool          // print the version, and end
	health         bool          // check that another process responds, and end
	server         serverOptions
	reloadables    []reloadable
}

// A reloadable is a setting that is the name of a file, or of several. SIGHUP has them read again.
type reloadable struct {
	setting string
	load    func() error // If it fails, the old value stays. It may be called while the value is used.
}

const usageHead = `Usage: tollgate [flags]

The environment variable in parentheses means the same as the flag, which wins. Secrets are never flags:
the operator's token (ADMIN_TOKEN), a REDIS_URL with a password and the Sentinels' own credentials
(SENTINEL_USERNAME, SENTINEL_PASSWORD) are read from the environment.

`

// options is the first part of the table. The first two are commands, which need few of the others.
func (s *settings) options() []options.Option {
	return []options.Option{
		{Flag: "version", Usage: "print the version and exit", Set: options.Into(&s.version, options.Bool)},
		{Flag: "health", Usage: "check that the tollgate that listens on -addr responds, and exit with 0 or 1",
			Set: options.Into(&s.health, options.Bool)},
		{Flag: "reindex", Usage: "bring the index of users' API keys in line with the keys, and exit",
			Set: options.Into(&s.reindex, options.Bool)},
		{Flag: "addr", Env: "ADDR", PortEnv: "PORT", Value: "host:port", Default: ":8080",
			Usage: "to listen on; if only PORT is set, :$PORT", Set: options.Into(&s.addr, options.Address)},
		{Flag: "redis-url", Env: "REDIS_URL", Value: "URL", Default: "redis://localhost:6379",
			Usage: "of Redis: redis://, rediss:// (TLS) or unix:///path/redis.sock for one server,\n" +
				"redis-sentinel://host,host/master or redis-cluster://host,host for several;\n" +
				"a password in it only in the environment", Set: options.Into(&s.redisURL, redisdb.ParseURL)},
		{Flag: "redis-ca-file", Env: "REDIS_CA_FILE", Value: "file",
			Usage: "in PEM form, of the CA that has signed Redis's certificate, if the system does not know it",
			Set:   options.Into(&s.redisTLS.CA, options.Text)},
		{Flag: "redis-cert-file", Env: "REDIS_CERT_FILE", Value: "file",
			Usage: "in PEM form, of the certificate to show to a Redis that asks for one",
			Set:   options.Into(&s.redisTLS.Cert, options.Text)},
		{Flag: "redis-key-file", Env: "REDIS_KEY_FILE", Value: "file",
			Usage: "in PEM form, of its key", Set: options.Into(&s.redisTLS.Key, options.Text)},
		{Flag: "wait-replicas", Env: "WAIT_REPLICAS", Value: "number", Default: "0",
			Usage: "of replicas of Redis that must have a charge, key or config before it is acknowledged",
			Set:   options.Into(&s.waitReplicas, options.Int(0, 100))},
		{Flag: "admin-token-file", Env: "ADMIN_TOKEN_FILE", Value: "file", SecretFile: true,
			Usage: "that holds the operator's token, unless it is in the environment as ADMIN_TOKEN;\n" +
				"several, one a line or separated by commas, all open the same;\n" +
				"if neither is set, a random one is created and logged at start",
			Set: s.server.adminTokens.Replace},
		{Flag: "metrics-token-file", Env: "METRICS_TOKEN_FILE", Value: "file", SecretFile: true,
			Usage: "that holds a token which opens /metrics alone, unless it is in the environment as METRICS_TOKEN",
			Set:   s.server.metricsTokens.Replace},
		{Flag: "seed", Env: "SEED", Default: "true", Usage: "create the tenant abc at start if it does not exist",
			Set: options.Into(&s.seed, options.Bool)},
		{Flag: "login-limit", Env: "LOGIN_LIMIT", Value: "number", Default: "600",
			Usage: "of logins a minute of one client address; 0 for no limit",
			Set:   options.Into(&s.server.loginLimit, options.Int(0, maxRateLimit))},
		{Flag: "trusted-proxies", Env: "TRUSTED_PROXIES", Value: "CIDRs",
			Usage: "of the proxies whose X-Forwarded-For counts, separated by commas",
			Set:   options.Into(&s.server.trustedProxies, options.Prefixes)},
		{Flag: "max-connections", Env: "MAX_CONNECTIONS", Value: "number", Default: "4096",
			Usage: "of clients' connections; more have to wait",
			Set:   options.Into(&s.maxConnections, options.Int(1, 1_000_000))},
		{Flag: "google-keys-url", Env: "GOOGLE_KEYS_URL", Value: "URL",
			Default: "https://www.googleapis.com/oauth2/v3/certs",
			Usage:   "of the keys that sign Google's ID tokens",
			Set:     options.Into(&s.server.googleKeysURL, options.HTTPURL)},
		{Flag: "apple-keys-url", Env: "APPLE_KEYS_URL", Value: "URL", Default: "https://appleid.apple.com/auth/keys",
			Usage: "of the keys that sign Apple's ID tokens",
			Set:   options.Into(&s.server.appleKeysURL, options.HTTPURL)},
		{Flag: "stripe-api-url", Env: "STRIPE_API_URL", Value: "URL", Default: stripe.DefaultURL,
			Usage: "of Stripe's API, for tests",
			Set:   options.Into(&s.server.stripeURL, options.HTTPURL)},
	}
}

// allOptions is the whole table.
func (s *settings) allOptions() []options.Option {
	return slices.Concat(s.options(), s.processOptions(), s.gatewayOptions())
}

// processOptions is the part of the table that concerns idle connections, the end of the process and the log.
func (s *settings) processOptions() []options.Option {
	return []options.Option{
		{Flag: "idle-timeout", Env: "IDLE_TIMEOUT", Value: "duration", Default: "2m",
			Usage: "of clients' connections; must be longer than the balancer's in front",
			Set:   options.Into(&s.idleTimeout, options.Duration(time.Second, 24*time.Hour))},
		{Flag: "shutdown-delay", Env: "SHUTDOWN_DELAY", Value: "duration", Default: "0s",
			Usage: "for which /readyz is 503 and everything else goes on, before the process stops",
			Set:   options.Into(&s.shutdownDelay, options.Duration(0, time.Hour))},
		{Flag: "drain-timeout", Env: "DRAIN_TIMEOUT", Value: "duration", Default: "10s",
			Usage: "for requests and realtime sessions that still run when the process is stopped; then they are cut off",
			Set:   options.Into(&s.drainTimeout, options.Duration(0, time.Hour))},
		{Flag: "access-log", Env: "ACCESS_LOG", Usage: "log a line for each request",
			Set: options.Into(&s.server.accessLog, options.Bool)},
		{Flag: "admin-page", Env: "ADMIN_PAGE", Default: "true", Usage: "serve the page for admins at /admin",
			Set: options.Into(&s.server.adminPage, options.Bool)},
		{Flag: "log-time", Env: "LOG_TIME", Usage: "begin each line of the log with its time",
			Set: options.Into(&s.logTime, options.Bool)},
	}
}

// gatewayOptions is the part of the table that concerns the gateway.
func (s *settings) gatewayOptions() []options.Option {
	return []options.Option{
		{Flag: "provider-keys-file", Env: "PROVIDER_KEYS_FILE", Value: "file",
			Usage: "with keys of providers that tenants may use by name and never read, in JSON", Set: s.loadKeys},
		{Flag: "gateway-deny", Env: "GATEWAY_DENY", Value: "CIDRs", Default: gateway.DefaultDeny,
			Usage: "that the gateway never connects to, separated by commas: by default those of clouds' metadata;\n" +
				"add loopback and private networks if strangers administer tenants",
			Set: options.Into(&s.server.gateway.Deny, options.Prefixes)},
		{Flag: "provider-timeout", Env: "PROVIDER_TIMEOUT", Value: "duration", Default: "10m",
			Usage: "for a provider to begin its response",
			Set:   options.Into(&s.server.gateway.HeaderTimeout, options.Duration(time.Millisecond, 24*time.Hour))},
		{Flag: "provider-idle-timeout", Env: "PROVIDER_IDLE_TIMEOUT", Value: "duration", Default: "5m",
			Usage: "for a provider that has begun its response and is silent",
			Set:   options.Into(&s.server.gateway.IdleTimeout, options.Duration(time.Millisecond, 24*time.Hour))},
		{Flag: "provider-keep-alive", Env: "PROVIDER_KEEP_ALIVE", Value: "duration", Default: "4s",
			Usage: "for an idle connection to an http:// provider: less than the provider itself keeps it",
			Set:   options.Into(&s.server.gateway.KeepAlive, options.Duration(time.Millisecond, time.Hour))},
		{Flag: "gateway-timeout", Env: "GATEWAY_TIMEOUT", Value: "duration", Default: "20m",
			Usage: "for a request of the gateway as a whole, with its response",
			Set:   options.Into(&s.server.gateway.TotalTimeout, options.Duration(time.Millisecond, 24*time.Hour))},
		{Flag: "tenant-share", Env: "TENANT_SHARE", Value: "part", Default: "0.5",
			Usage: "of connections, memory, drains and sessions that the requests of one tenant may take from all others",
			Set:   options.Into(&s.server.gateway.TenantShare, options.Part)},
		{Flag: "max-gateway-body", Env: "MAX_GATEWAY_BODY", Value: "bytes", Default: "16777216",
			Usage: "of a request to the gateway",
			Set:   options.Into(&s.server.maxGatewayBody, options.Int(1, gatewayBodyMemory))},
	}
}

// loadKeys reads the operator's keys of providers, and again on SIGHUP.
func (s *settings) loadKeys(filename string) error {
	keys := new(gateway.OperatorKeys)
	s.server.gateway.Keys = keys
	if filename != "" {
		s.reloadables = append(s.reloadables, reloadable{"PROVIDER_KEYS_FILE", func() error { return keys.Load(filename) }})
	}
	return keys.Load(filename)
}

// parseSettings reads all options. The error is flag.ErrHelp if args ask for the usage, which it then prints to stdout,
// or an options.Errors that names every bad setting; the others are then returned, too.
func parseSettings(args []string, getenv func(string) string, stdout io.Writer) (*settings, error) {
	s := &settings{server: serverOptions{adminTokens: new(bearertoken.Set), metricsTokens: new(bearertoken.Set)}}
	table := s.allOptions()
	given, wrong, err := options.Parse(table, args, getenv)
	if err != nil { // flag.ErrHelp
		fmt.Fprint(stdout, usageHead)
		options.PrintUsage(stdout, table)
		return nil, err
	}
	for _, o := range table {
		if s.version || s.health && o.Flag != "addr" {
			continue
		}
		source, err := given.Apply(&o)
		if err != nil {
			wrong = append(wrong, source+": "+err.Error())
		}
		if o.SecretFile && source != o.SecretEnv() {
			s.reloadables = append(s.reloadables, reloadable{source, func() error {
				_, err := given.Apply(&o)
				return err
			}})
		}
	}
	if wrong = append(wrong, s.completeRedis(given, getenv)...); len(wrong) > 0 {
		return s, wrong
	}
	s.setMaxConnections(s.maxConnections)
	return s, nil
}

// completeRedis adds to redisURL what other settings say of Redis, and returns a sentence for each that is bad.
func (s *settings) completeRedis(given *options.Given, getenv func(string) string) (wrong options.Errors) {
	if given.HasFlag("redis-url") && s.redisURL != nil && s.redisURL.HasPassword() {
		wrong = append(wrong, "-redis-url: must not hold a password, which others could read there: use REDIS_URL")
	}
	if err := s.redisURL.SetSentinelUser(getenv("SENTINEL_USERNAME"), getenv("SENTINEL_PASSWORD")); err != nil {
		wrong = append(wrong, "SENTINEL_USERNAME: "+err.Error())
	}
	if err := s.redisURL.SetTLSFiles(s.redisTLS); err != nil {
		wrong = append(wrong, err.Error())
	}
	if s.redisTLS != (redisdb.TLSFiles{}) {
		s.reloadables = append(s.reloadables, reloadable{"REDIS_*_FILE", s.redisURL.LoadTLS})
	}
	return wrong
}

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tollgate/internal/bearertoken"
	"tollgate/internal/gateway"
	"tollgate/internal/redisdb"
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

// A settingsError has a sentence for each bad setting.
type settingsError []string

func (e settingsError) Error() string { return strings.Join(e, "; ") }

const usageHead = `Usage: tollgate [flags]

The environment variable in parentheses means the same as the flag, which wins. Secrets are never flags:
the operator's token (ADMIN_TOKEN), a REDIS_URL with a password and the Sentinels' own credentials
(SENTINEL_USERNAME, SENTINEL_PASSWORD) are read from the environment.

`

// An option is one setting. Its flag wins over its environment variable, which wins over its default.
type option struct {
	flag  string
	env   string // "" if only the flag sets it
	value string // names the flag's value in the usage; "" for a boolean
	def   string
	usage string
	set   func(value string) error

	// secretFile means that the value is read from the file that the flag or the variable names, or else from the
	// variable without _FILE. Anybody on the machine can read a command line, so no flag has a secret itself.
	secretFile bool
}

// options is the first part of the table. The first two are commands, which need few of the others.
func (s *settings) options() []option {
	return []option{
		{flag: "version", usage: "print the version and exit", set: into(&s.version, parseBool)},
		{flag: "health", usage: "check that the tollgate that listens on -addr responds, and exit with 0 or 1",
			set: into(&s.health, parseBool)},
		{flag: "reindex", usage: "bring the index of users' API keys in line with the keys, and exit",
			set: into(&s.reindex, parseBool)},
		{flag: "addr", env: "ADDR", value: "host:port", def: ":8080",
			usage: "to listen on; if only PORT is set, :$PORT", set: into(&s.addr, parseAddress)},
		{flag: "redis-url", env: "REDIS_URL", value: "URL", def: "redis://localhost:6379",
			usage: "of Redis: redis://, rediss:// (TLS) or unix:///path/redis.sock for one server,\n" +
				"redis-sentinel://host,host/master or redis-cluster://host,host for several;\n" +
				"a password in it only in the environment", set: into(&s.redisURL, redisdb.ParseURL)},
		{flag: "redis-ca-file", env: "REDIS_CA_FILE", value: "file",
			usage: "in PEM form, of the CA that has signed Redis's certificate, if the system does not know it",
			set:   into(&s.redisTLS.CA, parseText)},
		{flag: "redis-cert-file", env: "REDIS_CERT_FILE", value: "file",
			usage: "in PEM form, of the certificate to show to a Redis that asks for one",
			set:   into(&s.redisTLS.Cert, parseText)},
		{flag: "redis-key-file", env: "REDIS_KEY_FILE", value: "file",
			usage: "in PEM form, of its key", set: into(&s.redisTLS.Key, parseText)},
		{flag: "wait-replicas", env: "WAIT_REPLICAS", value: "number", def: "0",
			usage: "of replicas of Redis that must have a charge, key or config before it is acknowledged",
			set:   into(&s.waitReplicas, parseInt(0, 100))},
		{flag: "admin-token-file", env: "ADMIN_TOKEN_FILE", value: "file", secretFile: true,
			usage: "that holds the operator's token, unless it is in the environment as ADMIN_TOKEN;\n" +
				"several, one a line or separated by commas, all open the same;\n" +
				"if neither is set, a random one is created and logged at start",
			set: s.server.adminTokens.Replace},
		{flag: "metrics-token-file", env: "METRICS_TOKEN_FILE", value: "file", secretFile: true,
			usage: "that holds a token which opens /metrics alone, unless it is in the environment as METRICS_TOKEN",
			set:   s.server.metricsTokens.Replace},
		{flag: "seed", env: "SEED", def: "true", usage: "create the tenant abc at start if it does not exist",
			set: into(&s.seed, parseBool)},
		{flag: "login-limit", env: "LOGIN_LIMIT", value: "number", def: "600",
			usage: "of logins a minute of one client address; 0 for no limit",
			set:   into(&s.server.loginLimit, parseInt(0, maxRateLimit))},
		{flag: "trusted-proxies", env: "TRUSTED_PROXIES", value: "CIDRs",
			usage: "of the proxies whose X-Forwarded-For counts, separated by commas",
			set:   into(&s.server.trustedProxies, parsePrefixes)},
		{flag: "max-connections", env: "MAX_CONNECTIONS", value: "number", def: "4096",
			usage: "of clients' connections; more have to wait", set: into(&s.maxConnections, parseInt(1, 1_000_000))},
		{flag: "google-keys-url", env: "GOOGLE_KEYS_URL", value: "URL", def: "https://www.googleapis.com/oauth2/v3/certs",
			usage: "of the keys that sign Google's ID tokens", set: into(&s.server.googleKeysURL, parseHTTPURL)},
		{flag: "apple-keys-url", env: "APPLE_KEYS_URL", value: "URL", def: "https://appleid.apple.com/auth/keys",
			usage: "of the keys that sign Apple's ID tokens", set: into(&s.server.appleKeysURL, parseHTTPURL)},
	}
}

// allOptions is the whole table.
func (s *settings) allOptions() []option {
	return slices.Concat(s.options(), s.processOptions(), s.gatewayOptions())
}

// processOptions is the part of the table that concerns idle connections, the end of the process and the log.
func (s *settings) processOptions() []option {
	return []option{
		{flag: "idle-timeout", env: "IDLE_TIMEOUT", value: "duration", def: "2m",
			usage: "of clients' connections; must be longer than the balancer's in front",
			set:   into(&s.idleTimeout, parseDuration(time.Second, 24*time.Hour))},
		{flag: "shutdown-delay", env: "SHUTDOWN_DELAY", value: "duration", def: "0s",
			usage: "for which /readyz is 503 and everything else goes on, before the process stops",
			set:   into(&s.shutdownDelay, parseDuration(0, time.Hour))},
		{flag: "drain-timeout", env: "DRAIN_TIMEOUT", value: "duration", def: "10s",
			usage: "for requests that still run when the process is stopped; then they are cut off",
			set:   into(&s.drainTimeout, parseDuration(0, time.Hour))},
		{flag: "access-log", env: "ACCESS_LOG", usage: "log a line for each request",
			set: into(&s.server.accessLog, parseBool)},
		{flag: "log-time", env: "LOG_TIME", usage: "begin each line of the log with its time",
			set: into(&s.logTime, parseBool)},
	}
}

// gatewayOptions is the part of the table that concerns the gateway.
func (s *settings) gatewayOptions() []option {
	return []option{
		{flag: "provider-keys-file", env: "PROVIDER_KEYS_FILE", value: "file",
			usage: "with keys of providers that tenants may use by name and never read, in JSON", set: s.loadKeys},
		{flag: "gateway-deny", env: "GATEWAY_DENY", value: "CIDRs", def: gateway.DefaultDeny,
			usage: "that the gateway never connects to, separated by commas: by default those of clouds' metadata;\n" +
				"add loopback and private networks if strangers administer tenants",
			set: into(&s.server.gateway.Deny, parsePrefixes)},
		{flag: "provider-timeout", env: "PROVIDER_TIMEOUT", value: "duration", def: "10m",
			usage: "for a provider to begin its response",
			set:   into(&s.server.gateway.HeaderTimeout, parseDuration(time.Millisecond, 24*time.Hour))},
		{flag: "provider-idle-timeout", env: "PROVIDER_IDLE_TIMEOUT", value: "duration", def: "5m",
			usage: "for a provider that has begun its response and is silent",
			set:   into(&s.server.gateway.IdleTimeout, parseDuration(time.Millisecond, 24*time.Hour))},
		{flag: "provider-keep-alive", env: "PROVIDER_KEEP_ALIVE", value: "duration", def: "4s",
			usage: "for an idle connection to an http:// provider: less than the provider itself keeps it",
			set:   into(&s.server.gateway.KeepAlive, parseDuration(time.Millisecond, time.Hour))},
		{flag: "gateway-timeout", env: "GATEWAY_TIMEOUT", value: "duration", def: "20m",
			usage: "for a request of the gateway as a whole, with its response",
			set:   into(&s.server.gateway.TotalTimeout, parseDuration(time.Millisecond, 24*time.Hour))},
		{flag: "tenant-share", env: "TENANT_SHARE", value: "part", def: "0.5",
			usage: "of connections, memory and drains that the requests of one tenant may take from all others",
			set:   into(&s.server.gateway.TenantShare, parsePart)},
		{flag: "max-gateway-body", env: "MAX_GATEWAY_BODY", value: "bytes", def: "16777216",
			usage: "of a request to the gateway", set: into(&s.server.maxGatewayBody, parseInt(1, gatewayBodyMemory))},
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

// into returns the function that sets dst to what parse returns.
func into[T any](dst *T, parse func(value string) (T, error)) func(value string) error {
	return func(value string) (err error) {
		*dst, err = parse(value)
		return err
	}
}

// parseSettings reads all options. The error is flag.ErrHelp if args ask for the usage, which it then prints to stdout,
// or a settingsError that names every bad setting; the others are then returned, too.
func parseSettings(args []string, getenv func(string) string, stdout io.Writer) (*settings, error) {
	s := &settings{server: serverOptions{adminTokens: new(bearertoken.Set), metricsTokens: new(bearertoken.Set)}}
	options := s.allOptions()
	given, wrong, err := parseFlags(options, args, stdout)
	if err != nil {
		return nil, err
	}
	for _, o := range options {
		if s.version || s.health && o.flag != "addr" {
			continue
		}
		source, err := o.apply(given, getenv)
		if err != nil {
			wrong = append(wrong, source+": "+err.Error())
		}
		if o.secretFile && source != o.secretEnv() {
			s.reloadables = append(s.reloadables, reloadable{source, func() error {
				_, err := o.apply(given, getenv)
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
func (s *settings) completeRedis(given map[string]string, getenv func(string) string) (wrong settingsError) {
	if _, ok := given["redis-url"]; ok && s.redisURL != nil && s.redisURL.HasPassword() {
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

// parseFlags returns the values of the flags in args, and a sentence for each argument that is not one. The error is
// flag.ErrHelp.
func parseFlags(options []option, args []string, stdout io.Writer) (map[string]string, settingsError, error) {
	given := make(map[string]string)
	flags := flag.NewFlagSet("tollgate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, o := range options {
		define, usage := flags.BoolFunc, o.usage
		if o.value != "" {
			define, usage = flags.Func, "`"+o.value+"` "+usage
		}
		if o.env != "" {
			usage += " (" + o.env + ")"
		}
		if o.def != "" {
			usage += " (default " + o.def + ")"
		}
		define(o.flag, usage, func(value string) error {
			given[o.flag] = value
			return nil
		})
	}
	var wrong settingsError
	for len(args) > 0 {
		err := flags.Parse(args)
		rest := flags.Args()
		switch {
		case errors.Is(err, flag.ErrHelp):
			fmt.Fprint(stdout, usageHead)
			flags.SetOutput(stdout)
			flags.PrintDefaults()
			return nil, nil, err
		case err != nil:
			wrong = append(wrong, err.Error())
			if len(rest) == len(args) { // a malformed flag is not consumed
				rest = rest[1:]
			}
		case len(rest) > 0:
			wrong = append(wrong, fmt.Sprintf("unexpected argument %q", rest[0]))
			rest = rest[1:]
		}
		args = rest
	}
	return given, wrong, nil
}

// apply sets what the option sets to its value, and returns where that comes from.
func (o *option) apply(given map[string]string, getenv func(string) string) (source string, err error) {
	value, source, err := o.resolve(given, getenv)
	if err == nil {
		err = o.set(value)
	}
	return source, err
}

// secretEnv returns the variable that may have the value itself, if secretFile is set.
func (o *option) secretEnv() string { return strings.TrimSuffix(o.env, "_FILE") }

// resolve returns the option's value and where it comes from.
func (o *option) resolve(given map[string]string, getenv func(string) string) (value, source string, err error) {
	value, isFlag := given[o.flag]
	source = "-" + o.flag
	if !isFlag && o.env != "" {
		value, source = getenv(o.env), o.env
		if port := getenv("PORT"); value == "" && o.env == "ADDR" && port != "" {
			value, source = ":"+port, "PORT"
		}
	}
	if value == "" && !isFlag {
		value = o.def
	}
	if !o.secretFile {
		return value, source, nil
	}
	secret := getenv(o.secretEnv())
	switch {
	case value == "":
		return secret, o.secretEnv(), nil
	case secret != "" && !isFlag:
		return "", source, fmt.Errorf("it and %s are both set: which one counts?", o.secretEnv())
	}
	content, err := os.ReadFile(value)
	secret = strings.TrimSpace(string(content))
	if err == nil && secret == "" {
		err = fmt.Errorf("%q is empty", value)
	}
	return secret, source, err
}

func parseText(value string) (string, error) { return value, nil }

func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil && value != "" {
		return false, fmt.Errorf("%q is neither true nor false", value)
	}
	return b, nil
}

func parseInt(lo, hi int64) func(value string) (int64, error) {
	return func(value string) (int64, error) {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < lo || n > hi {
			return 0, fmt.Errorf("%q is not a whole number from %d to %d", value, lo, hi)
		}
		return n, nil
	}
}

func parseDuration(lo, hi time.Duration) func(value string) (time.Duration, error) {
	return func(value string) (time.Duration, error) {
		d, err := time.ParseDuration(value)
		if err != nil || d < lo || d > hi {
			return 0, fmt.Errorf("%q is not a duration from %s to %s, such as 30s", value, lo, hi)
		}
		return d, nil
	}
}

func parsePart(value string) (float64, error) {
	part, err := strconv.ParseFloat(value, 64)
	if err != nil || !(part > 0 && part <= 1) {
		return 0, fmt.Errorf("%q is not a number above 0 and at most 1", value)
	}
	return part, nil
}

func parseAddress(value string) (string, error) {
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		return "", fmt.Errorf("%q is not a host:port or :port", value)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q is not a port from 0 to 65535", port)
	}
	return value, nil
}

// parseHTTPURL does not quote the URL in its error: it may hold a password.
func parseHTTPURL(value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		return "", errors.New("is not an absolute http or https URL")
	}
	return value, nil
}

// parsePrefixes reads CIDRs separated by commas. IPv4 networks written as IPv6 become IPv4, as clients' addresses do.
func parsePrefixes(value string) (prefixes []netip.Prefix, err error) {
	if value == "" {
		return nil, nil
	}
	var wrong settingsError
	for cidr := range strings.SplitSeq(value, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%q is not a CIDR such as 10.0.0.0/8", strings.TrimSpace(cidr)))
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		prefixes = append(prefixes, prefix)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return prefixes, nil
}

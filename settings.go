package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// settings is what the command line and the environment say.
type settings struct {
	redisURL       *redisURL
	addr           string
	adminToken     string // "": make one
	loginLimit     int64
	trustedProxies []netip.Prefix
	maxConnections int64 // of clients
	accessLog      bool
	drainTimeout   time.Duration // for what runs when it is told to stop
	version        bool
	health         bool
}

// badSettings is all that is wrong with the settings, a sentence each; nothing was tried.
type badSettings []string

func (e badSettings) Error() string { return strings.Join(e, "; ") }

// parseSettings reads flags and, where a flag is not given, the environment variable of its name in capitals. It names
// every bad one. Secrets come from the environment or from files alone: anybody on the machine can read a command line.
func parseSettings(args []string, getenv func(string) string, stdout io.Writer) (*settings, error) {
	set := &settings{drainTimeout: 10 * time.Second}
	fs := flag.NewFlagSet("tollgate", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	redisURL := fs.String("redis-url", "redis://localhost:6379",
		"`URL` of Redis: redis://, rediss:// (TLS) or unix:///path/redis.sock,\na password in it only in the environment (REDIS_URL)")
	addr := fs.String("addr", ":8080",
		"`host:port` to listen on (ADDR; where only PORT is set, :$PORT)")
	tokenFile := fs.String("admin-token-file", "",
		"`file` that holds the operator's token, unless it is in the environment as ADMIN_TOKEN;\nwithout either, a random one is made and logged at start (ADMIN_TOKEN_FILE)")
	loginLimit := fs.String("login-limit", "600",
		"`number` of anonymous logins a minute of one client address, 0: no limit (LOGIN_LIMIT)")
	proxies := fs.String("trusted-proxies", "",
		"`CIDRs`, separated by commas, of the proxies whose X-Forwarded-For counts (TRUSTED_PROXIES)")
	connections := fs.String("max-connections", "4096",
		"`number` of clients' connections; more have to wait (MAX_CONNECTIONS)")
	fs.BoolVar(&set.accessLog, "access-log", false, "log a line for each request (ACCESS_LOG)")
	fs.BoolVar(&set.health, "health", false, "ask the tollgate that runs at -addr whether it is alive, and exit with 0 or 1")
	fs.BoolVar(&set.version, "version", false, "print the version and exit")

	var wrong badSettings
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for rest := args; len(rest) > 0; {
		err := fs.Parse(rest)
		switch after := fs.Args(); {
		case errors.Is(err, flag.ErrHelp):
			printUsage(fs, stdout)
			return nil, err
		case err != nil:
			bad("%v", err)
			if len(after) == len(rest) { // a malformed flag is not taken off
				after = after[1:]
			}
			rest = after
		case len(after) > 0:
			bad("unexpected argument %q", after[0])
			rest = after[1:]
		default:
			rest = nil
		}
	}
	if set.version && len(wrong) == 0 {
		return set, nil
	}
	// source is where a setting's value comes from, to be named where that is bad.
	source := make(map[string]string)
	fs.Visit(func(f *flag.Flag) { source[f.Name] = "-" + f.Name })
	fs.VisitAll(func(f *flag.Flag) {
		if f.Name == "health" || f.Name == "version" || source[f.Name] != "" {
			return
		}
		source[f.Name] = strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value := getenv(source[f.Name]); value != "" {
			if err := fs.Set(f.Name, value); err != nil { // a string flag takes anything
				bad("%s: %q is neither true nor false", source[f.Name], value)
			}
		} else if port := getenv("PORT"); f.Name == "addr" && port != "" {
			source[f.Name] = "PORT"
			_ = fs.Set(f.Name, ":"+port)
		}
	})

	set.addr = *addr
	if _, port, err := net.SplitHostPort(*addr); err != nil {
		bad("%s: %q is no host:port or :port", source["addr"], *addr)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		bad("%s: %q is no port from 0 to 65535", source["addr"], port)
	}
	if set.health && len(wrong) == 0 {
		return set, nil
	}
	var err error
	if set.redisURL, err = parseRedisURL(*redisURL); err != nil {
		bad("%s %v", source["redis-url"], err)
	} else if source["redis-url"] == "-redis-url" && set.redisURL.password != "" {
		bad("-redis-url must not hold a password, which others could read there: use the environment variable REDIS_URL")
	}
	if set.adminToken, err = adminToken(getenv("ADMIN_TOKEN"), *tokenFile, source["admin-token-file"]); err != nil {
		bad("%v", err)
	}
	if set.loginLimit, err = strconv.ParseInt(*loginLimit, 10, 64); err != nil || set.loginLimit < 0 || set.loginLimit > maxRateLimit {
		bad("%s: %q is no whole number from 0 to %d", source["login-limit"], *loginLimit, maxRateLimit)
	}
	if set.maxConnections, err = strconv.ParseInt(*connections, 10, 64); err != nil || set.maxConnections < 1 || set.maxConnections > 1_000_000 {
		bad("%s: %q is no whole number from 1 to 1000000", source["max-connections"], *connections)
	}
	if *proxies != "" {
		for cidr := range strings.SplitSeq(*proxies, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
			if err != nil {
				bad("%s: %q is no CIDR such as 10.0.0.0/8", source["trusted-proxies"], cidr)
			}
			set.trustedProxies = append(set.trustedProxies, prefix)
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return set, nil
}

// adminToken is the operator's token: what stands in the file that fileSource, a flag or a variable, names, else token
// of the environment.
func adminToken(token, file, fileSource string) (string, error) {
	source := "ADMIN_TOKEN"
	if file != "" {
		if token != "" && fileSource == "ADMIN_TOKEN_FILE" {
			return "", errors.New("ADMIN_TOKEN and ADMIN_TOKEN_FILE are both set: which one counts?")
		}
		source = fileSource
		content, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("%s: %w", source, err)
		}
		token = strings.TrimSpace(string(content))
		if token == "" {
			return "", fmt.Errorf("%s: %q is empty", source, file)
		}
	}
	if token != "" && !validBearerToken(token) {
		return "", fmt.Errorf("%s has characters that no bearer token may have (RFC 6750 allows A-Z a-z 0-9 - . _ ~ + / and = at the end)", source)
	}
	return token, nil
}

func printUsage(fs *flag.FlagSet, w io.Writer) {
	fmt.Fprint(w, `Usage: tollgate [flags]

The environment variable in parentheses means the same as the flag, which wins. Secrets are never flags:
the operator's token (ADMIN_TOKEN) and a REDIS_URL with a password are read from the environment.

`)
	fs.SetOutput(w)
	fs.PrintDefaults()
}

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
)

// settings is what the command line and the environment say.
type settings struct {
	redisURL       *redisURL
	addr           string
	adminToken     string // "": make one
	loginLimit     int64
	trustedProxies []netip.Prefix
	version        bool
	health         bool
}

// badSettings is all that is wrong with the settings, a sentence each; nothing was tried.
type badSettings []string

func (e badSettings) Error() string { return strings.Join(e, "; ") }

// parseSettings reads flags and, where a flag is not given, the environment variable of its name in capitals. It names
// every bad one. Secrets come from the environment or from files alone: anybody on the machine can read a command line.
func parseSettings(args []string, getenv func(string) string, stdout io.Writer) (*settings, error) {
	set := new(settings)
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
	fs.BoolVar(&set.health, "health", false, "ask the tollgate that runs at -addr whether it is alive, and exit with 0 or 1")
	fs.BoolVar(&set.version, "version", false, "print the version and exit")

	var wrong badSettings
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		printUsage(fs, stdout)
		return nil, err
	case err != nil:
		bad("%v", err)
	case fs.NArg() > 0:
		bad("unexpected argument %q", fs.Arg(0))
	}
	given := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, name := range []string{"redis-url", "addr", "admin-token-file", "login-limit", "trusted-proxies"} {
		if value := getenv(envName(name)); value != "" && !given[name] {
			_ = fs.Set(name, value) // a string flag takes anything
		}
	}

	var err error
	if set.redisURL, err = parseRedisURL(*redisURL); err != nil {
		bad("REDIS_URL %v", err)
	} else if given["redis-url"] && set.redisURL.password != "" {
		bad("-redis-url must not hold a password, which others could read there: use the environment variable REDIS_URL")
	}
	if port := getenv("PORT"); port != "" && !given["addr"] && getenv("ADDR") == "" {
		*addr = ":" + port
	}
	set.addr = *addr
	if _, port, err := net.SplitHostPort(*addr); err != nil {
		bad("ADDR %q is no host:port or :port", *addr)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		bad("ADDR %q has no port from 0 to 65535", *addr)
	}
	if set.adminToken, err = adminToken(getenv("ADMIN_TOKEN"), *tokenFile, given["admin-token-file"]); err != nil {
		bad("%v", err)
	}
	if set.loginLimit, err = strconv.ParseInt(*loginLimit, 10, 64); err != nil || set.loginLimit < 0 || set.loginLimit > maxRateLimit {
		bad("LOGIN_LIMIT %q is no whole number from 0 to %d", *loginLimit, maxRateLimit)
	}
	if *proxies != "" {
		for cidr := range strings.SplitSeq(*proxies, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
			if err != nil {
				bad("TRUSTED_PROXIES: %q is no CIDR such as 10.0.0.0/8", cidr)
			}
			set.trustedProxies = append(set.trustedProxies, prefix)
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return set, nil
}

// adminToken is the operator's token: what stands in the file if that was asked for by a flag, else in the environment.
func adminToken(token, file string, fileFlag bool) (string, error) {
	source := "ADMIN_TOKEN"
	if file != "" {
		if token != "" && !fileFlag {
			return "", errors.New("ADMIN_TOKEN and ADMIN_TOKEN_FILE are both set: which one counts?")
		}
		source = "ADMIN_TOKEN_FILE"
		content, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("ADMIN_TOKEN_FILE: %w", err)
		}
		token = strings.TrimSpace(string(content))
		if token == "" {
			return "", errors.New("ADMIN_TOKEN_FILE is empty")
		}
	}
	if token != "" && !validBearerToken(token) {
		return "", fmt.Errorf("%s has characters that no bearer token may have (RFC 6750 allows A-Z a-z 0-9 - . _ ~ + / and = at the end)", source)
	}
	return token, nil
}

// envName is the environment variable that a flag overrides.
func envName(flagName string) string {
	return strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

func printUsage(fs *flag.FlagSet, w io.Writer) {
	fmt.Fprint(w, `Usage: tollgate [flags]

The environment variable in parentheses means the same as the flag, which wins. Secrets are never flags:
the operator's token (ADMIN_TOKEN) and a REDIS_URL with a password are read from the environment.

`)
	fs.SetOutput(w)
	fs.PrintDefaults()
}

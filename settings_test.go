package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tollgate/internal/options"
	"tollgate/internal/redisdb"
)

type env = map[string]string

// parse reads the settings from an environment and a command line.
func parse(vars env, args ...string) (*settings, error) {
	return parseSettings(args, func(name string) string { return vars[name] }, io.Discard)
}

// tokenFile writes content to a file and returns its path.
func tokenFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettings(t *testing.T) {
	secret := tokenFile(t, "from-file\n")
	redisURL := func(s *settings) any { return *s.redisURL }
	parsed := func(url string, sentinelUser ...string) string {
		u, err := redisdb.ParseURL(url)
		if err == nil && len(sentinelUser) == 2 {
			err = u.SetSentinelUser(sentinelUser[0], sentinelUser[1])
		}
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(*u)
	}
	waitReplicas := func(s *settings) any { return s.waitReplicas }
	addr := func(s *settings) any { return s.addr }
	opens := func(token string) func(s *settings) any { // whether it is the operator's, and among how many
		return func(s *settings) any {
			return fmt.Sprint(s.server.adminTokens.Has(sha256.Sum256([]byte(token))), s.server.adminTokens.Len())
		}
	}
	loginLimit := func(s *settings) any { return s.server.loginLimit }
	proxies := func(s *settings) any { return s.server.trustedProxies }
	connections := func(s *settings) any { return s.maxConnections }
	accessLog := func(s *settings) any { return s.server.accessLog }
	times := func(s *settings) any { return fmt.Sprint(s.idleTimeout, s.shutdownDelay, s.logTime) }
	googleKeys := func(s *settings) any { return s.server.googleKeysURL }
	appleKeys := func(s *settings) any { return s.server.appleKeysURL }
	stripeAPI := func(s *settings) any { return s.server.stripeURL }
	tests := []struct {
		name string
		env  env
		args []string
		of   func(*settings) any
		want string
	}{
		{"Redis by default", nil, nil, redisURL, parsed("redis://localhost:6379")},
		{"Redis from the environment", env{"REDIS_URL": "redis://u:p@h:1/2"}, nil, redisURL, parsed("redis://u:p@h:1/2")},
		{"Redis from a flag", env{"REDIS_URL": "redis://h:1"}, []string{"-redis-url", "redis://i:2"}, redisURL, parsed("redis://i:2")},
		{"address by default", nil, nil, addr, ":8080"},
		{"address from PORT", env{"PORT": "9"}, nil, addr, ":9"},
		{"ADDR beats PORT", env{"PORT": "9", "ADDR": "h:8"}, nil, addr, "h:8"},
		{"-addr beats both", env{"PORT": "9", "ADDR": "h:8"}, []string{"-addr", ":7"}, addr, ":7"},
		{"no admin token", nil, nil, opens(""), "false 0"},
		{"admin token", env{"ADMIN_TOKEN": "t"}, nil, opens("t"), "true 1"},
		{"admin token from a file", env{"ADMIN_TOKEN_FILE": secret}, nil, opens("from-file"), "true 1"},
		{"-admin-token-file", env{"ADMIN_TOKEN": "t"}, []string{"-admin-token-file", secret}, opens("from-file"), "true 1"},
		{"several admin tokens", env{"ADMIN_TOKEN": "t,u"}, nil, opens("u"), "true 2"},
		{"several admin tokens are not one", env{"ADMIN_TOKEN": "t,u"}, nil, opens("t,u"), "false 2"},
		{"several in a file", env{"ADMIN_TOKEN_FILE": tokenFile(t, "\r\n t ,\r\n,u\r\n\r\nv")}, nil, opens("u"), "true 3"},
		{"logins by default", nil, nil, loginLimit, "600"},
		{"no replicas by default", nil, nil, waitReplicas, "0"},
		{"replicas", env{"WAIT_REPLICAS": "2"}, nil, waitReplicas, "2"},
		{"-wait-replicas", env{"WAIT_REPLICAS": "2"}, []string{"-wait-replicas", "1"}, waitReplicas, "1"},
		{"Sentinels' user", env{
			"REDIS_URL": "redis-sentinel://h/m", "SENTINEL_USERNAME": "u", "SENTINEL_PASSWORD": "pw",
		}, nil, redisURL, parsed("redis-sentinel://h/m", "u", "pw")},
		{"white space around the Sentinels' user", env{
			"REDIS_URL": "redis-sentinel://h/m\n", "SENTINEL_USERNAME": "u\n", "SENTINEL_PASSWORD": " pw\r\n",
		}, nil, redisURL, parsed("redis-sentinel://h/m", "u", "pw")},
		{"white space around the URL", env{"REDIS_URL": " redis://h:1\n"}, nil, redisURL, parsed("redis://h:1")},
		{"white space around the URL in a flag", nil, []string{"-redis-url", "redis://h:1\n"}, redisURL, parsed("redis://h:1")},
		{"Sentinels' user without Sentinels", env{"SENTINEL_USERNAME": "u"}, nil, redisURL, parsed("redis://localhost:6379")},
		{"logins", env{"LOGIN_LIMIT": "5"}, nil, loginLimit, "5"},
		{"-login-limit", env{"LOGIN_LIMIT": "5"}, []string{"-login-limit=0"}, loginLimit, "0"},
		{"no proxies", nil, nil, proxies, "[]"},
		{"proxies", env{"TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"}, nil, proxies, "[10.0.0.0/8 ::1/128]"},
		{"connections by default", nil, nil, connections, "4096"},
		{"-max-connections", env{"MAX_CONNECTIONS": "7"}, []string{"-max-connections", "8"}, connections, "8"},
		{"Google's keys by default", nil, nil, googleKeys, "https://www.googleapis.com/oauth2/v3/certs"},
		{"Google's keys", env{"GOOGLE_KEYS_URL": "http://h/g"}, nil, googleKeys, "http://h/g"},
		{"-google-keys-url", env{"GOOGLE_KEYS_URL": "http://h/g"}, []string{"-google-keys-url=http://i/g"}, googleKeys, "http://i/g"},
		{"Apple's keys by default", nil, nil, appleKeys, "https://appleid.apple.com/auth/keys"},
		{"Apple's keys", env{"APPLE_KEYS_URL": "http://h/a"}, nil, appleKeys, "http://h/a"},
		{"Stripe's API by default", nil, nil, stripeAPI, "https://api.stripe.com"},
		{"Stripe's API", env{"STRIPE_API_URL": "http://h:1"}, nil, stripeAPI, "http://h:1"},
		{"-stripe-api-url", env{"STRIPE_API_URL": "http://h:1"}, []string{"-stripe-api-url=http://i"}, stripeAPI, "http://i"},
		{"no access log", nil, nil, accessLog, "false"},
		{"access log", env{"ACCESS_LOG": "1"}, nil, accessLog, "true"},
		{"times by default", nil, nil, times, "2m0s 0s false"},
		{"times", env{"IDLE_TIMEOUT": "620s", "SHUTDOWN_DELAY": "5s", "LOG_TIME": "true"}, nil, times, "10m20s 5s true"},
		{"times in flags", nil, []string{"-idle-timeout=1m", "-shutdown-delay=1s", "-log-time"}, times, "1m0s 1s true"},
		{"-access-log", env{"ACCESS_LOG": "true"}, []string{"-access-log=false"}, accessLog, "false"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			set, err := parse(test.env, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(test.of(set)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// The error about a setting names it and does not show a secret.
func TestSettingErrors(t *testing.T) {
	secret := tokenFile(t, "from-file\n")
	tests := []struct {
		name string
		env  env
		args []string
		want string
	}{
		{"no URL", env{"REDIS_URL": "h:1"}, nil, "REDIS_URL: must begin"},
		{"a port that does not exist", env{"REDIS_URL": "redis://h:99999"}, nil, "REDIS_URL: has a port that"},
		{"a white space for a Sentinels' password", env{
			"REDIS_URL": "redis-sentinel://h/m", "SENTINEL_USERNAME": "u", "SENTINEL_PASSWORD": "\n",
		}, nil, "SENTINEL_USERNAME: there is no SENTINEL_PASSWORD"},
		{"a password among the flags", nil, []string{"-redis-url", "redis://:hunter2@h"}, "-redis-url: must not hold a password"},
		{"a user alone", env{"REDIS_URL": "redis://user@h"}, nil, "REDIS_URL: has a user but no password"},
		{"no address", env{"ADDR": "8080"}, nil, "ADDR: "},
		{"no port", env{"PORT": "http"}, nil, "PORT: "},
		{"no address in -addr", nil, []string{"-addr", "8080"}, "-addr: "},
		{"white space in the token", env{"ADMIN_TOKEN": "hunter 2"}, nil, "ADMIN_TOKEN: has characters"},
		{"white space in one of several", env{"ADMIN_TOKEN": "t,hunter 2"}, nil, "ADMIN_TOKEN: has characters"},
		{"nothing but separators", env{"ADMIN_TOKEN": " ,"}, nil, "ADMIN_TOKEN: has no token"},
		{"too many", env{"METRICS_TOKEN": strings.Repeat("hunter2,", 17)}, nil, "METRICS_TOKEN: has 17 tokens, at most 16"},
		{"idle connections that do not stay", env{"IDLE_TIMEOUT": "0s"}, nil, `IDLE_TIMEOUT: "0s" is not a duration from 1s`},
		{"a delay without its unit", env{"SHUTDOWN_DELAY": "5"}, nil, `SHUTDOWN_DELAY: "5" is not a duration`},
		{"two admin tokens", env{"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": secret}, nil, "both set"},
		{"no such file", env{"ADMIN_TOKEN_FILE": "/nowhere"}, nil, "/nowhere"},
		{"a negative number", env{"LOGIN_LIMIT": "-1"}, nil, "LOGIN_LIMIT"},
		{"an address without its length", env{"TRUSTED_PROXIES": "10.0.0.1"}, nil, "TRUSTED_PROXIES"},
		{"too many connections", env{"MAX_CONNECTIONS": "1000001"}, nil, "MAX_CONNECTIONS"},
		{"a relative URL", env{"GOOGLE_KEYS_URL": "/certs"}, nil, "GOOGLE_KEYS_URL: is not an absolute"},
		{"Stripe without a scheme", env{"STRIPE_API_URL": "localhost:12111"}, nil, "STRIPE_API_URL: is not an absolute"},
		{"another scheme", nil, []string{"-apple-keys-url=file:///hunter2"}, "-apple-keys-url: is not an absolute"},
		{"no boolean", env{"ACCESS_LOG": "yes"}, nil, `ACCESS_LOG: "yes" is neither true nor false`},
		{"an admin token among the flags", nil, []string{"-admin-token=hunter2"}, "not defined: -admin-token"},
		{"an argument", nil, []string{"serve"}, `unexpected argument "serve"`},
		{"several", nil, []string{"-nope1", "---", "-login-limit=x", "a", "-nope2"},
			"not defined: -nope1; bad flag syntax: ---; unexpected argument \"a\"; " +
				"flag provided but not defined: -nope2; -login-limit: "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(test.env, test.args...)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// All bad settings are named together, with exit code 2, before anything is tried.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	p := startProcess(t, []string{
		"REDIS_URL=redis://h:99999", "ADDR=y", "ADMIN_TOKEN=ä", "LOGIN_LIMIT=z", "TRUSTED_PROXIES=q", "MAX_CONNECTIONS=0", "ACCESS_LOG=2",
	}, "more")
	if code := p.exitCode(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	if p.log.Count("[ERROR] ") != 8 || p.log.Count("\n") != 8 {
		t.Errorf("want 8 errors, got\n%s", p.log)
	}
	for _, name := range []string{
		"REDIS_URL", "ADDR", "ADMIN_TOKEN", "LOGIN_LIMIT", "TRUSTED_PROXIES", "MAX_CONNECTIONS", "ACCESS_LOG", "more",
	} {
		if !strings.Contains(p.log.String(), name) {
			t.Errorf("%s is not named in\n%s", name, p.log)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	p := startProcess(t, nil, "-h")
	if code := p.exitCode(t); code != 0 {
		t.Errorf("-h: exit code %d", code)
	}
	for _, want := range []string{
		"REDIS_URL", "redis://localhost:6379", "ADDR", ":8080", "PORT", "ADMIN_TOKEN", "ADMIN_TOKEN_FILE", "LOGIN_LIMIT", "600",
		"TRUSTED_PROXIES", "MAX_CONNECTIONS", "4096", "ACCESS_LOG", "-health", "-version",
	} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("-h does not name %s", want)
		}
	}
	p = startProcess(t, []string{"REDIS_URL=bad"}, "-version")
	code, out := p.exitCode(t), p.stdout.String()
	if code != 0 || !strings.HasPrefix(out, "tollgate ") || len(out) < len("tollgate v\n") {
		t.Errorf("-version: exit code %d, %q", code, out)
	}
}

func TestShortAdminToken(t *testing.T) {
	t.Parallel()
	s := newService(t, "ADMIN_TOKEN=short-of-16-chr")
	if s.log.Count("[WARN] ADMIN_TOKEN has fewer than 16 characters") != 1 || s.log.Count("short-of") != 0 {
		t.Errorf("log:\n%s", s.log)
	}
	if s = newService(t, "ADMIN_TOKEN=0123456789abcdef"); s.log.Count("ADMIN_TOKEN") != 0 {
		t.Errorf("log:\n%s", s.log)
	}
}

func noEnvironment(string) string { return "" }

// -version needs no other setting, -health only the address.
func TestCommands(t *testing.T) {
	bad := func(name string) string {
		if name == "ADDR" {
			return "there"
		}
		return "bad: " + name
	}
	if s, err := parseSettings([]string{"-version"}, bad, io.Discard); err != nil || !s.version {
		t.Errorf("-version: %+v, %v", s, err)
	}
	if s, err := parseSettings([]string{"-health", "-addr=:7"}, bad, io.Discard); err != nil || !s.health || s.addr != ":7" {
		t.Errorf("-health: %+v, %v", s, err)
	}
	_, err := parseSettings([]string{"-health"}, bad, io.Discard)
	if err == nil || err.Error() != `ADDR: "there" is not a host:port or :port` {
		t.Errorf("-health: %v", err)
	}
	for _, args := range [][]string{{"-nope", "-version"}, {"-version", "x"}, {"-health=maybe"}} {
		wrong, ok := errors.AsType[options.Errors](func() error { _, err := parseSettings(args, noEnvironment, io.Discard); return err }())
		if !ok || len(wrong) != 1 {
			t.Errorf("%q: %q", args, wrong)
		}
	}
}

// The usage shows every option with its variable and its default.
func TestUsage(t *testing.T) {
	var usage strings.Builder
	if _, err := parseSettings([]string{"-nope", "-h"}, noEnvironment, &usage); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, o := range new(settings).allOptions() {
		_, after, _ := strings.Cut(usage.String(), "\n  "+strings.TrimSpace("-"+o.Flag+" "+o.Value)+"\n")
		text, _, _ := strings.Cut(after, "\n  -")
		if text == "" || !strings.Contains(text, o.Env) || !strings.Contains(text, o.Default) {
			t.Errorf("-%s: the usage has %q", o.Flag, text)
		}
	}
}

// Names of flags and variables go together, and no name is used twice.
func TestOptionNames(t *testing.T) {
	var names []string
	for _, o := range new(settings).allOptions() {
		if o.Env != "" && o.Env != strings.ToUpper(strings.ReplaceAll(o.Flag, "-", "_")) {
			t.Errorf("-%s has the variable %s", o.Flag, o.Env)
		}
		if o.SecretFile && !strings.HasSuffix(o.Env, "_FILE") {
			t.Errorf("%s is a file", o.Env)
		}
		names = append(names, o.Flag)
	}
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("duplicated: %q", names)
	}
}

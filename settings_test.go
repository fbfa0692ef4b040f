package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(env map[string]string, args ...string) (*settings, error) {
		return parseSettings(args, func(name string) string { return env[name] }, io.Discard)
	}
	type env = map[string]string
	good := []struct {
		env  env
		args []string
		want func(*settings) any
		text string
	}{
		{nil, nil, func(s *settings) any { return *s.redisURL }, "{tcp localhost:6379 false   0}"},
		{env{"REDIS_URL": "redis://u:p@h:1/2"}, nil, func(s *settings) any { return *s.redisURL }, "{tcp h:1 false u p 2}"},
		{env{"REDIS_URL": "redis://h:1"}, []string{"-redis-url", "redis://i:2"}, func(s *settings) any { return s.redisURL.address }, "i:2"},
		{nil, nil, func(s *settings) any { return s.addr }, ":8080"},
		{env{"PORT": "9"}, nil, func(s *settings) any { return s.addr }, ":9"},
		{env{"PORT": "9", "ADDR": "h:8"}, nil, func(s *settings) any { return s.addr }, "h:8"},
		{env{"PORT": "9", "ADDR": "h:8"}, []string{"-addr", ":7"}, func(s *settings) any { return s.addr }, ":7"},
		{nil, nil, func(s *settings) any { return s.adminToken }, ""},
		{env{"ADMIN_TOKEN": "t"}, nil, func(s *settings) any { return s.adminToken }, "t"},
		{env{"ADMIN_TOKEN_FILE": secret}, nil, func(s *settings) any { return s.adminToken }, "from-file"},
		{env{"ADMIN_TOKEN": "t"}, []string{"-admin-token-file", secret}, func(s *settings) any { return s.adminToken }, "from-file"},
		{nil, nil, func(s *settings) any { return s.loginLimit }, "600"},
		{env{"LOGIN_LIMIT": "5"}, nil, func(s *settings) any { return s.loginLimit }, "5"},
		{env{"LOGIN_LIMIT": "5"}, []string{"-login-limit=0"}, func(s *settings) any { return s.loginLimit }, "0"},
		{nil, nil, func(s *settings) any { return s.trustedProxies }, "[]"},
		{nil, nil, func(s *settings) any { return s.maxConnections }, "4096"},
		{env{"MAX_CONNECTIONS": "7"}, []string{"-max-connections", "8"}, func(s *settings) any { return s.maxConnections }, "8"},
		{nil, nil, func(s *settings) any { return s.accessLog }, "false"},
		{env{"ACCESS_LOG": "1"}, nil, func(s *settings) any { return s.accessLog }, "true"},
		{env{"ACCESS_LOG": "true"}, []string{"-access-log=false"}, func(s *settings) any { return s.accessLog }, "false"},
		{env{"TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"}, nil, func(s *settings) any { return s.trustedProxies }, "[10.0.0.0/8 ::1/128]"},
	}
	for _, test := range good {
		set, err := parse(test.env, test.args...)
		if err != nil {
			t.Errorf("%v %v: %v", test.env, test.args, err)
		} else if got := fmt.Sprint(test.want(set)); got != test.text {
			t.Errorf("%v %v: got %s, want %s", test.env, test.args, got, test.text)
		}
	}
	bad := []struct {
		env  env
		args []string
		want string
	}{
		{env{"REDIS_URL": "h:1"}, nil, "REDIS_URL must begin"},
		{nil, []string{"-redis-url", "redis://:hunter2@h"}, "-redis-url must not hold a password"},
		{env{"REDIS_URL": "redis://user@h"}, nil, "REDIS_URL has a user but no password"},
		{env{"ADDR": "8080"}, nil, "ADDR: "},
		{env{"PORT": "http"}, nil, "PORT: "},
		{env{"PORT": "65536"}, nil, "PORT: "},
		{nil, []string{"-addr", "8080"}, "-addr: "},
		{env{"ADMIN_TOKEN": "hunter 2"}, nil, "ADMIN_TOKEN has characters"},
		{env{"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": secret}, nil, "both set"},
		{env{"ADMIN_TOKEN_FILE": "/nowhere"}, nil, "/nowhere"},
		{env{"ADMIN_TOKEN_FILE": "/dev/null"}, nil, `ADMIN_TOKEN_FILE: "/dev/null" is empty`},
		{nil, []string{"-admin-token-file", "/nowhere"}, "-admin-token-file: open /nowhere"},
		{env{"LOGIN_LIMIT": "-1"}, nil, "LOGIN_LIMIT"},
		{env{"LOGIN_LIMIT": "1.5"}, nil, "LOGIN_LIMIT"},
		{env{"TRUSTED_PROXIES": "10.0.0.1"}, nil, "TRUSTED_PROXIES"},
		{env{"MAX_CONNECTIONS": "1000001"}, nil, "MAX_CONNECTIONS"},
		{nil, []string{"-max-connections=many"}, "-max-connections"},
		{env{"ACCESS_LOG": "yes"}, nil, `ACCESS_LOG: "yes" is neither true nor false`},
		{nil, []string{"-access-log=maybe"}, "-access-log"},
		{nil, []string{"-admin-token=hunter2"}, "not defined: -admin-token"},
		{nil, []string{"serve"}, `unexpected argument "serve"`},
		{nil, []string{"-nope1", "---", "-login-limit=x", "a", "-nope2"}, `not defined: -nope1; bad flag syntax: ---; unexpected argument "a"; ` +
			"flag provided but not defined: -nope2; -login-limit: "},
	}
	for _, test := range bad {
		if _, err := parse(test.env, test.args...); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v %v: got %v, want %q", test.env, test.args, err, test.want)
		}
	}
}

// All bad settings are named at once, with exit code 2, before anything is tried.
func TestBadSettings(t *testing.T) {
	p := startProcess(t, []string{"REDIS_URL=x", "ADDR=y", "ADMIN_TOKEN=ä", "LOGIN_LIMIT=z", "TRUSTED_PROXIES=q", "MAX_CONNECTIONS=0", "ACCESS_LOG=2"}, "more")
	if code := p.exitCode(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	log := p.log.String()
	if strings.Count(log, "[ERROR] ") != 8 || strings.Count(log, "\n") != 8 {
		t.Errorf("want 8 errors, got\n%s", log)
	}
	for _, name := range []string{"REDIS_URL", "ADDR", "ADMIN_TOKEN", "LOGIN_LIMIT", "TRUSTED_PROXIES", "MAX_CONNECTIONS", "ACCESS_LOG", "more"} {
		if !strings.Contains(log, name) {
			t.Errorf("%s is not named in\n%s", name, log)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
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
	if code, out := p.exitCode(t), p.stdout.String(); code != 0 || !strings.HasPrefix(out, "tollgate ") || len(out) < len("tollgate v\n") {
		t.Errorf("-version: exit code %d, %q", code, out)
	}
}

func TestShortAdminToken(t *testing.T) {
	s := newService(t, "ADMIN_TOKEN=short-of-16-chr")
	if log := s.log.String(); strings.Count(log, "[WARN] ADMIN_TOKEN has fewer than 16 characters") != 1 || strings.Contains(log, "short-of") {
		t.Errorf("log:\n%s", log)
	}
	if log := newService(t, "ADMIN_TOKEN=0123456789abcdef").log.String(); strings.Contains(log, "[WARN]") {
		t.Errorf("log:\n%s", log)
	}
}

package options

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type env = map[string]string

// in returns the environment that has these variables.
func in(vars env) func(string) string { return func(name string) string { return vars[name] } }

// secretFile writes content to a file and returns its path.
func secretFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// set is what a table of options has set, by flag.
type set map[string]string

// table returns options of all kinds, which write their values to s.
func (s set) table() []Option {
	into := func(name string) func(string) error {
		return func(value string) error {
			if value == "bad" {
				return errors.New("is bad")
			}
			s[name] = value
			return nil
		}
	}
	return []Option{
		{Flag: "log", Env: "LOG", Usage: "log more", Set: into("log")},
		{Flag: "addr", Env: "ADDR", PortEnv: "PORT", Value: "host:port", Default: ":80", Usage: "to listen on", Set: into("addr")},
		{Flag: "name", Value: "text", Usage: "of the program", Set: into("name")},
		{Flag: "token-file", Env: "TOKEN_FILE", Value: "file", SecretFile: true, Usage: "with a token", Set: into("token-file")},
	}
}

// apply parses args and applies the option with that flag. It returns its value and where it comes from.
func apply(t *testing.T, name string, vars env, args ...string) (value, source string, err error) {
	t.Helper()
	values := make(set)
	table := values.table()
	given, wrong, err := Parse(table, args, in(vars))
	if err != nil || len(wrong) > 0 {
		t.Fatalf("%q: %v, %v", args, wrong, err)
	}
	i := slices.IndexFunc(table, func(o Option) bool { return o.Flag == name })
	source, err = given.Apply(&table[i])
	return values[name], source, err
}

func TestApply(t *testing.T) {
	secret := secretFile(t, "from-file\n")
	empty := secretFile(t, " \n")
	for _, test := range []struct {
		name         string
		option       string
		env          env
		args         []string
		value        string
		source, fail string
	}{
		{"the default", "addr", nil, nil, ":80", "ADDR", ""},
		{"the variable", "addr", env{"ADDR": "h:1"}, nil, "h:1", "ADDR", ""},
		{"the flag", "addr", env{"ADDR": "h:1"}, []string{"-addr", "h:2"}, "h:2", "-addr", ""},
		{"the last flag", "addr", nil, []string{"-addr=h:2", "--addr", "h:3"}, "h:3", "-addr", ""},
		{"an empty variable is ignored", "addr", env{"ADDR": ""}, nil, ":80", "ADDR", ""},
		{"an empty flag is used", "addr", env{"ADDR": "h:1"}, []string{"-addr="}, "", "-addr", ""},
		{"the port", "addr", env{"PORT": "9"}, nil, ":9", "PORT", ""},
		{"the variable beats the port", "addr", env{"ADDR": "h:1", "PORT": "9"}, nil, "h:1", "ADDR", ""},
		{"the flag beats the port", "addr", env{"PORT": "9"}, []string{"-addr", "h:2"}, "h:2", "-addr", ""},
		{"the port is not another's", "log", env{"PORT": "9"}, nil, "", "LOG", ""},
		{"a boolean by default", "log", nil, nil, "", "LOG", ""},
		{"a boolean flag", "log", nil, []string{"-log"}, "true", "-log", ""},
		{"a boolean flag with a value", "log", env{"LOG": "1"}, []string{"-log=false"}, "false", "-log", ""},
		{"no variable", "name", env{"": "x", "NAME": "x"}, nil, "", "-name", ""},
		{"a flag without a variable", "name", nil, []string{"-name", "x"}, "x", "-name", ""},
		{"a bad value", "addr", env{"ADDR": "bad"}, nil, "", "ADDR", "is bad"},
		{"no secret", "token-file", nil, nil, "", "TOKEN", ""},
		{"a secret", "token-file", env{"TOKEN": "t"}, nil, "t", "TOKEN", ""},
		{"a bad secret", "token-file", env{"TOKEN": "bad"}, nil, "", "TOKEN", "is bad"},
		{"a file", "token-file", env{"TOKEN_FILE": secret}, nil, "from-file", "TOKEN_FILE", ""},
		{"a flag beats a secret", "token-file", env{"TOKEN": "t"}, []string{"-token-file", secret}, "from-file", "-token-file", ""},
		{"a flag beats a file", "token-file", env{"TOKEN_FILE": empty}, []string{"-token-file", secret}, "from-file", "-token-file", ""},
		{"a secret and a file", "token-file", env{"TOKEN": "t", "TOKEN_FILE": secret}, nil, "", "TOKEN_FILE",
			"it and TOKEN are both set: which one counts?"},
		{"no such file", "token-file", env{"TOKEN_FILE": "/nowhere"}, nil, "", "TOKEN_FILE", "open /nowhere"},
		{"no such file in a flag", "token-file", nil, []string{"-token-file", "/nowhere"}, "", "-token-file", "open /nowhere"},
		{"an empty file", "token-file", env{"TOKEN_FILE": empty}, nil, "", "TOKEN_FILE", `"` + empty + `" is empty`},
	} {
		t.Run(test.name, func(t *testing.T) {
			value, source, err := apply(t, test.option, test.env, test.args...)
			if value != test.value || source != test.source {
				t.Errorf("got %q of %s, want %q of %s", value, source, test.value, test.source)
			}
			if (err == nil) != (test.fail == "") || err != nil && !strings.HasPrefix(err.Error(), test.fail) {
				t.Errorf("got %v, want %q", err, test.fail)
			}
		})
	}
}

// The file of a secret is read each time.
func TestApplyAgain(t *testing.T) {
	values := make(set)
	table := values.table()
	path := secretFile(t, "one")
	given, _, err := Parse(table, []string{"-token-file", path}, in(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := given.Apply(&table[3]); err != nil || values["token-file"] != want {
			t.Errorf("got %q, %v, want %s", values["token-file"], err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{"-log", "-addr", "h:1"}, ""},
		{[]string{"-nope"}, "flag provided but not defined: -nope"},
		{[]string{"-token=x"}, "flag provided but not defined: -token"},
		{[]string{"-addr"}, "flag needs an argument: -addr"},
		{[]string{"serve"}, `unexpected argument "serve"`},
		{[]string{"--", "-addr"}, `unexpected argument "-addr"`},
		{[]string{"-nope1", "---", "-log", "a", "-nope2"}, "flag provided but not defined: -nope1; bad flag syntax: ---; " +
			`unexpected argument "a"; flag provided but not defined: -nope2`},
	} {
		given, wrong, err := Parse(make(set).table(), test.args, in(nil))
		if err != nil || wrong.Error() != test.want {
			t.Errorf("%q: got %q, %v, want %q", test.args, wrong, err, test.want)
		}
		if got := given.HasFlag("log"); got != slices.Contains(test.args, "-log") {
			t.Errorf("%q: has -log: %v", test.args, got)
		}
	}
	for _, args := range [][]string{{"-h"}, {"-nope", "x", "--help"}} {
		if _, _, err := Parse(make(set).table(), args, in(nil)); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%q: got %v", args, err)
		}
	}
}

func TestPrintUsage(t *testing.T) {
	var b strings.Builder
	PrintUsage(&b, make(set).table())
	const want = `  -addr host:port
    	host:port to listen on (ADDR) (default :80)
  -log
    	log more (LOG)
  -name text
    	text of the program
  -token-file file
    	file with a token (TOKEN_FILE)
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Package options reads the options of a program from its command line, its environment and files with secrets.
//
// A program has a table of Options. Parse reads the command line by it, and Apply then sets what each option sets.
package options

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// An Option is one setting. Its flag wins over its environment variable, which wins over its default.
type Option struct {
	Flag    string
	Env     string // "" if only the flag sets it
	Value   string // names the flag's value in the usage; "" for a boolean
	Default string
	Usage   string
	Set     func(value string) error

	// PortEnv is a variable with the port of an address, as platforms set it for what they run. It stands for :port if
	// Env is not set. "" stands for no variable.
	PortEnv string

	// SecretFile means that the value is read from the file that the flag or the variable names, or else from the
	// variable without _FILE. Anybody on the machine can read a command line, so no flag has a secret itself.
	SecretFile bool
}

// Errors has a sentence for each bad option or argument.
type Errors []string

// Error returns all sentences, separated by semicolons.
func (e Errors) Error() string { return strings.Join(e, "; ") }

// Given is what a command line and an environment say.
type Given struct {
	flags  map[string]string
	getenv func(name string) string
}

// Parse reads the flags in args, and returns a sentence for each argument that is not one of table's. The error is
// flag.ErrHelp if args ask for the usage.
func Parse(table []Option, args []string, getenv func(name string) string) (*Given, Errors, error) {
	given := &Given{make(map[string]string), getenv}
	flags := given.flagSet(table)
	var wrong Errors
	for len(args) > 0 {
		err := flags.Parse(args)
		rest := flags.Args()
		switch {
		case errors.Is(err, flag.ErrHelp):
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

// PrintUsage writes the flag, the variable, the default and the usage of each option.
func PrintUsage(w io.Writer, table []Option) {
	flags := new(Given).flagSet(table)
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// flagSet returns the flags of table, which set those of g.
func (g *Given) flagSet(table []Option) *flag.FlagSet {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, o := range table {
		define, usage := flags.BoolFunc, o.Usage
		if o.Value != "" {
			define, usage = flags.Func, "`"+o.Value+"` "+usage
		}
		if o.Env != "" {
			usage += " (" + o.Env + ")"
		}
		if o.Default != "" {
			usage += " (default " + o.Default + ")"
		}
		define(o.Flag, usage, func(value string) error {
			g.flags[o.Flag] = value
			return nil
		})
	}
	return flags
}

// HasFlag reports whether the command line has the flag.
func (g *Given) HasFlag(name string) bool {
	_, ok := g.flags[name]
	return ok
}

// Apply calls o.Set with the option's value, and returns where that comes from: the flag with its -, or the variable.
// The error is that of Set, or says why there is no value. Apply may be called again, which reads the file of a secret
// again.
func (g *Given) Apply(o *Option) (source string, err error) {
	value, source, err := g.resolve(o)
	if err == nil {
		err = o.Set(value)
	}
	return source, err
}

// SecretEnv returns the variable that may have the value itself, if SecretFile is set.
func (o *Option) SecretEnv() string { return strings.TrimSuffix(o.Env, "_FILE") }

// resolve returns the option's value and where it comes from.
func (g *Given) resolve(o *Option) (value, source string, err error) {
	value, isFlag := g.flags[o.Flag]
	source = "-" + o.Flag
	if !isFlag && o.Env != "" {
		value, source = g.getenv(o.Env), o.Env
		if value == "" && o.PortEnv != "" {
			if port := g.getenv(o.PortEnv); port != "" {
				value, source = ":"+port, o.PortEnv
			}
		}
	}
	if value == "" && !isFlag {
		value = o.Default
	}
	if !o.SecretFile {
		return value, source, nil
	}
	secret := g.getenv(o.SecretEnv())
	switch {
	case value == "":
		return secret, o.SecretEnv(), nil
	case secret != "" && !isFlag:
		return "", source, fmt.Errorf("it and %s are both set: which one counts?", o.SecretEnv())
	}
	content, err := os.ReadFile(value)
	secret = strings.TrimSpace(string(content))
	if err == nil && secret == "" {
		err = fmt.Errorf("%q is empty", value)
	}
	return secret, source, err
}

package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
)

const (
	defaultTenant  = "default"
	seedTenant     = "abc"
	anonymousGroup = "anonymous"

	maxTenantIDBytes = 64
	maxRateLimit     = 100_000
)

// seedConfig is the config of seedTenant, written at start where there is none.
//
//go:embed seed-config.json
var seedConfig []byte

// validTenantID tells whether id is 1-64 of A-Z a-z 0-9 _ -, starting with a letter or digit. Only such an ID may
// become part of a Redis key.
func validTenantID(id string) bool {
	if id == "" || len(id) > maxTenantIDBytes || id[0] == '_' || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// A tenant is who a request is for, with the config that Redis held when the request came. It is never changed once made.
type tenant struct {
	id     string
	config *tenantConfig
	broken error // an ErrBrokenConfig that says why there is no config; only behind withRepairableTenant
	idArg  any   // id, as an argument for Redis

	metrics *tenantMetrics
}

// tenantConfig is a config as tollgate reads it. It is never changed once made.
type tenantConfig struct {
	answer []byte // the config as the admin routes show it
	raw    []byte // the config within answer: compact JSON, otherwise as it was put
	etag   string // SHA-1 of the bytes in Redis, in hex; "" unless it comes from there
	groups map[string]userGroup
	limits []byte // the groups' rate limits, as charge.lua reads them
	sent   any    // limits, as an argument for Redis, where a charge sends all of them
}

// bytes is about how much memory the config takes.
func (c *tenantConfig) bytes() int { return len(c.answer) + len(c.limits) + 64*len(c.groups) }

// maxSentLimits is how many bytes of rate limits a charge sends, since only Redis knows its key's group. Where there are
// more it sends the limit of one group, and again if the key is of another.
const maxSentLimits = 4 << 10

// appendLimits adds to a charge's arguments the limits of all groups, or that of group and its name.
func (c *tenantConfig) appendLimits(args []any, group string) []any {
	if c.sent != nil {
		return append(args, c.sent)
	}
	_, limit, ok := bytes.Cut(c.limits, []byte("\xff"+group+"\xfe"))
	if ok {
		limit, _, _ = bytes.Cut(limit, []byte("\xff"))
		limit = fmt.Appendf(nil, "\xff%s\xfe%s", group, limit)
	}
	return append(args, limit, group)
}

// userGroup is what the holders of a group's API keys get.
type userGroup struct {
	tokens int64 // balance of a new key; 0 where the config names none
}

// maxProblems is how many of a config's faults an answer lists.
const maxProblems = 100

// invalidConfig lists every rule that a config breaks, in its order, each naming the member by its path. It never
// shows a value: configs are full of secrets.
type invalidConfig struct{ problems problems }

func (e *invalidConfig) Error() string { return e.sentences()[0] }

// sentences is a sentence for each problem; of more than maxProblems it says how many more there are.
func (e *invalidConfig) sentences() []string {
	var all []string
	for _, problem := range e.problems[:min(len(e.problems), maxProblems)] {
		all = append(all, "Invalid config: "+problem)
	}
	if more := len(e.problems) - maxProblems; more > 0 {
		all = append(all, fmt.Sprintf("Invalid config: %d more members are wrong", more))
	}
	return all
}

// parseConfig checks data against the rules for configs and gives what tollgate reads of it. What it does not know it
// keeps byte for byte but for white space. The error is an *invalidConfig.
func parseConfig(data []byte) (*tenantConfig, error) {
	if err := checkJSON(data); err != nil {
		return nil, &invalidConfig{problems{"it is no JSON: " + err.Error()}}
	}
	answer := bytes.NewBufferString(`{"config":`)
	start := answer.Len()
	_ = json.Compact(answer, data) // what is valid can be compacted
	end := answer.Len()
	answer.WriteString("}\n")
	c := &tenantConfig{answer: answer.Bytes(), raw: answer.Bytes()[start:end:end], groups: make(map[string]userGroup)}
	if c.raw[0] != '{' {
		return nil, &invalidConfig{problems{"it must be an object"}}
	}
	var wrong problems
	c.read(&wrong, "", c.raw)
	if len(c.limits) <= maxSentLimits {
		c.sent = c.limits
	}
	if len(wrong) > 0 {
		return nil, &invalidConfig{wrong}
	}
	return c, nil
}

// read is the field of a whole config.
func (c *tenantConfig) read(wrong *problems, path string, value []byte) {
	readMembers(wrong, path, value, fields{
		"auth": each(func(string) field {
			return object(fields{"api_key": anyText, "client_id": anyText, "client_secret": anyText})
		}),
		"user_groups": each(c.group),
		"providers":   each(func(string) field { return provider }),
		"caching": object(fields{
			"enabled":           boolean,
			"text_ttl":          anyAmount,
			"transcription_ttl": anyAmount,
			"fee_percentage":    number(0, 100),
		}),
	})
}

// group is the field of one member of user_groups.
func (c *tenantConfig) group(name string) field {
	return func(wrong *problems, path string, value []byte) {
		var g userGroup
		var limit, window int64
		seen := readMembers(wrong, path, value, fields{
			"tokens":            wholeNumber(&g.tokens, 0, maxAmount),
			"rate_limit":        wholeNumber(&limit, 0, maxRateLimit),
			"rate_limit_window": wholeNumber(&window, 1, maxAmount),
		})
		if seen["rate_limit"] && !seen["rate_limit_window"] {
			wrong.add(memberPath(path, "rate_limit_window"), "is missing beside rate_limit")
		}
		if seen["rate_limit"] {
			c.limits = fmt.Appendf(c.limits, "\xff%s\xfe%d %d", name, limit, window)
		}
		c.groups[name] = g
	}
}

// provider is the field of one member of providers.
func provider(wrong *problems, path string, value []byte) {
	var chosen string
	endpoints := make(map[string]bool)
	endpoint := object(fields{
		"url": absoluteURL, "api_key": anyText, "default_model": anyText, "model": anyText,
		"voice": anyText, "encoding": anyText, "sampleRate": anyNumber,
	})
	named := false
	readMembers(wrong, path, value, fields{
		"default": func(wrong *problems, path string, value []byte) {
			before := len(*wrong)
			text(&chosen)(wrong, path, value)
			named = len(*wrong) == before
		},
		"endpoints": each(func(name string) field {
			endpoints[name] = true
			return endpoint
		}),
	})
	if named && !endpoints[chosen] {
		wrong.add(memberPath(path, "default"), "must name an endpoint")
	}
}

func anyText(wrong *problems, path string, value []byte) { text(new(string))(wrong, path, value) }
func anyAmount(wrong *problems, path string, value []byte) {
	wholeNumber(new(int64), 0, maxAmount)(wrong, path, value)
}

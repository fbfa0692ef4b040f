package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gofrs/uuid/v5"
)

const (
	defaultTenant  = "default"
	seedTenant     = "abc"
	anonymousGroup = "anonymous"

	anonymousKeyPrefix = "temp_" // of the API keys of anonymous users
	userKeyPrefix      = "user_" // of the API keys of registered users
	adminTokenPrefix   = "adm_"  // of the admin tokens of tenants

	maxTenantIDBytes = 64
	maxRateLimit     = 100_000
)

// seedConfig is the config of seedTenant, which is written at start if it does not exist.
//
//go:embed seed-config.json
var seedConfig []byte

// validTenantID reports whether id is 1-64 of A-Z a-z 0-9 _ - and starts with a letter or digit. Only such an ID may
// become part of a Redis key.
func validTenantID(id string) bool {
	return isIdentifier(id, maxTenantIDBytes) && id[0] != '_' && id[0] != '-'
}

// isIdentifier reports whether s is 1 to maxBytes of A-Z a-z 0-9 _ -.
func isIdentifier(s string, maxBytes int) bool {
	for i := range len(s) {
		if !isWord(s[i]) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= maxBytes
}

// newCredential returns prefix with a random UUID (RFC 9562, version 4: 122 random bits).
func newCredential(prefix string) (string, error) {
	id, err := uuid.NewV4()
	if err != nil {
		return "", fmt.Errorf("generate a UUID: %w", err)
	}
	return prefix + id.String(), nil
}

// validAPIKey reports whether key has the form of tollgate's API keys.
func validAPIKey(key string) bool {
	return validCredential(key, anonymousKeyPrefix) || validCredential(key, userKeyPrefix)
}

// validCredential reports whether s is prefix with a UUID in its canonical lower-case form.
func validCredential(s, prefix string) bool {
	id, ok := strings.CutPrefix(s, prefix)
	if !ok || len(id) != 36 || strings.ToLower(id) != id {
		return false
	}
	_, err := uuid.FromString(id)
	return err == nil
}

// validBearerToken reports whether token is a b64token (RFC 6750, section 2.1).
func validBearerToken(token string) bool {
	body := strings.TrimRight(token, "=")
	for _, c := range []byte(body) {
		if !isWord(c) && strings.IndexByte(".~+/", c) < 0 {
			return false
		}
	}
	return body != ""
}

// actor is who changes something as an admin.
type actor struct {
	tokenHash string // SHA-256 of a tenant's admin token, in hex; "" is the operator
}

// String returns the actor's name in a config's history.
func (a actor) String() string {
	if a.tokenHash == "" {
		return "operator"
	}
	return a.tokenHash[:8]
}

// tenant is a tenant with the config that Redis held when it was read. It is never changed.
type tenant struct {
	id     string
	config *tenantConfig
}

// tenantConfig is a config as tollgate uses it. It is never changed once parsed.
type tenantConfig struct {
	json    []byte // the response of GET …/admin/config
	compact []byte // the config within json: as it was put, but for white space
	etag    string // SHA-1 of the bytes in Redis, in hex; "" if it was not read from there
	groups  map[string]userGroup
	limits  limitTable
}

// bytes returns about how much memory the config takes.
func (c *tenantConfig) bytes() int { return len(c.json) + 2*len(c.limits.all) + 128*len(c.groups) }

// userGroup is what the holders of a group's API keys get.
type userGroup struct {
	tokens int64      // the balance of a new key
	limit  *rateLimit // nil: unlimited
}

// rateLimit allows requests in any window of seconds.
type rateLimit struct{ requests, seconds int64 }

// limitTable is the rate limits of a config's groups as lua/charge.lua reads them: for each group \255, its name, \254,
// the requests, a space and the seconds. The bytes 254 and 255 occur in no UTF-8, so in no group's name.
type limitTable struct {
	all string            // those of all groups, complete up to maxSentLimits bytes
	one map[string]string // by group
}

// maxSentLimits bounds the limits that each charge sends, since only Redis knows the group of its key. Beyond it a
// charge sends the limit of one group, and is repeated if its key is in another.
const maxSentLimits = 4 << 10

func (l *limitTable) add(group string, limit rateLimit) {
	one := fmt.Sprintf("\xff%s\xfe%d %d", group, limit.requests, limit.seconds)
	if l.one == nil {
		l.one = make(map[string]string)
	}
	l.one[group] = one
	if len(l.all) <= maxSentLimits { // beyond it, all is not sent
		l.all += one
	}
}

// empty reports whether no group has a limit.
func (l *limitTable) empty() bool { return len(l.one) == 0 }

// sent returns what a charge sends: all limits, or only that of group; onlyGroup reports which.
func (l *limitTable) sent(group string) (limits string, onlyGroup bool) {
	if len(l.all) <= maxSentLimits {
		return l.all, false
	}
	return l.one[group], true
}

// maxProblems is how many faults of a config a response lists.
const maxProblems = 100

// configError lists every rule that a config breaks, in the config's order, each naming the member by its path. It
// never quotes a value: configs contain secrets.
type configError struct{ problems problems }

func (e *configError) Error() string { return e.sentences()[0] }

// sentences returns a sentence for each problem, and one for all beyond maxProblems.
func (e *configError) sentences() []string {
	var all []string
	for _, problem := range e.problems[:min(len(e.problems), maxProblems)] {
		all = append(all, "Invalid config: "+problem)
	}
	if more := len(e.problems) - maxProblems; more > 0 {
		all = append(all, fmt.Sprintf("Invalid config: %d more members are wrong", more))
	}
	return all
}

// parseConfig checks data against the rules for configs. Unknown members are kept byte for byte, except white space.
// The error is a *configError.
func parseConfig(data []byte) (*tenantConfig, error) {
	if err := checkJSON(data); err != nil {
		return nil, &configError{problems{"it is not valid JSON: " + err.Error()}}
	}
	response := bytes.NewBufferString(`{"config":`)
	start := response.Len()
	_ = json.Compact(response, data) // cannot fail: data is valid
	end := response.Len()
	response.WriteString("}\n")
	c := &tenantConfig{
		json:    response.Bytes(),
		compact: response.Bytes()[start:end:end],
		groups:  make(map[string]userGroup),
	}
	if c.compact[0] != '{' {
		return nil, &configError{problems{"it must be an object"}}
	}
	var wrong problems
	readMembers(&wrong, "", c.compact, c.rules())
	if len(wrong) > 0 {
		return nil, &configError{wrong}
	}
	return c, nil
}

// rules returns the rules for a config, which read what tollgate uses into c.
func (c *tenantConfig) rules() objectRules {
	return objectRules{
		"auth": mapOf(func(string) fieldRule {
			return objectOf(objectRules{"api_key": anyString, "client_id": anyString, "client_secret": anyString})
		}),
		"user_groups": mapOf(c.groupRule),
		"providers":   mapOf(func(string) fieldRule { return checkProvider }),
		"caching": objectOf(objectRules{
			"enabled":           anyBool,
			"text_ttl":          anyCount,
			"transcription_ttl": anyCount,
			"fee_percentage":    numberField(0, 100),
		}),
	}
}

// groupRule returns the rule for one member of user_groups.
func (c *tenantConfig) groupRule(name string) fieldRule {
	return func(wrong *problems, path string, value []byte) {
		var group userGroup
		var limit rateLimit
		seen := readMembers(wrong, path, value, objectRules{
			"tokens":            intField(&group.tokens, 0, maxAmount),
			"rate_limit":        intField(&limit.requests, 0, maxRateLimit),
			"rate_limit_window": intField(&limit.seconds, 1, maxAmount),
		})
		if seen["rate_limit"] {
			if !seen["rate_limit_window"] {
				wrong.add(memberPath(path, "rate_limit_window"), "is missing beside rate_limit")
			}
			group.limit = &limit
			c.limits.add(name, limit)
		}
		c.groups[name] = group
	}
}

// checkProvider is the rule for one member of providers.
func checkProvider(wrong *problems, path string, value []byte) {
	var chosen string
	endpoints := make(map[string]bool)
	endpoint := objectOf(objectRules{
		"url": absoluteURL, "api_key": anyString, "default_model": anyString, "model": anyString,
		"voice": anyString, "encoding": anyString, "sampleRate": anyNumber,
	})
	named := false
	readMembers(wrong, path, value, objectRules{
		"default": func(wrong *problems, path string, value []byte) {
			before := len(*wrong)
			stringField(&chosen)(wrong, path, value)
			named = len(*wrong) == before
		},
		"endpoints": mapOf(func(name string) fieldRule {
			endpoints[name] = true
			return endpoint
		}),
	})
	if named && !endpoints[chosen] {
		wrong.add(memberPath(path, "default"), "must name an endpoint")
	}
}

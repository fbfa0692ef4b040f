package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/gateway"
	"tollgate/internal/strict"
)

// seedConfig is the config of seedTenant, which is written at start if it does not exist.
//
//go:embed seed-config.json
var seedConfig []byte

// tenantConfig is a config as tollgate uses it. It is never changed once parsed.
type tenantConfig struct {
	json     []byte // the response of GET …/admin/config
	compact  []byte // the config within json: as it was put, but for white space
	groups   map[string]userGroup
	encoded  groupTable
	warnings []string          // sentences on members that are probably misspelled
	compared int               // unknown members that were compared with known ones for these
	text     gateway.Endpoints // of providers.text, the default one first, then in the config's order
	caching  gateway.Caching

	clientIDs map[string][]string // by member of auth, for which ID tokens may be issued
	origins   []string            // whose pages may call tollgate, normalized, or "*"; nil if the config says nothing
}

const (
	maxCompared      = 1000 // unknown members of a config that are compared with known ones
	maxComparedBytes = 64   // of the names of these
)

// configError lists every rule that a config breaks, in the config's order, each naming the member by its path. It
// never quotes a value: configs contain secrets.
type configError struct{ problems strict.Problems }

func (e *configError) Error() string { return e.sentences()[0] }

// sentences returns a sentence for each problem, and one for all beyond strict.MaxProblems.
func (e *configError) sentences() []string {
	var all []string
	for _, problem := range e.problems[:min(len(e.problems), strict.MaxProblems)] {
		all = append(all, "Invalid config: "+problem)
	}
	if more := len(e.problems) - strict.MaxProblems; more > 0 {
		all = append(all, fmt.Sprintf("Invalid config: %d more members are wrong", more))
	}
	return all
}

// parseConfig checks data against the rules for configs. Unknown members are kept byte for byte, except white space.
// The error is a *configError.
func parseConfig(data []byte) (*tenantConfig, error) {
	if err := strict.Check(data); err != nil {
		return nil, &configError{strict.Problems{"it is not valid JSON: " + err.Error()}}
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

		clientIDs: make(map[string][]string),
	}
	if c.compact[0] != '{' {
		return nil, &configError{strict.Problems{"it must be an object"}}
	}
	var wrong strict.Problems
	c.readMembers(&wrong, "", c.compact, c.rules())
	if len(wrong) > 0 {
		return nil, &configError{wrong}
	}
	return c, nil
}

// membersOf returns the rule for an object that may have unknown members, like objectOf, and notes those that are
// probably misspelled.
func (c *tenantConfig) membersOf(rules strict.Rules) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) { c.readMembers(wrong, path, value, rules) }
}

// readMembers reads the members of an object as the function of that name does, and notes each unknown one that is
// within two letters of a known one that is missing, among the first maxCompared unknown ones of the config. It returns
// which of the known members there are.
func (c *tenantConfig) readMembers(wrong *strict.Problems, path string, value []byte, rules strict.Rules) (
	seen map[string]bool,
) {
	var unknown []string
	seen = strict.ReadObject(wrong, path, value, func(name string) strict.Rule {
		rule := rules[name]
		if rule == nil && c.compared < maxCompared && len(name) <= maxComparedBytes {
			unknown = append(unknown, name)
			c.compared++
		}
		return rule
	})
	if len(unknown) == 0 {
		return seen
	}
	missing := slices.DeleteFunc(slices.Sorted(maps.Keys(rules)), func(name string) bool { return seen[name] })
	for _, name := range unknown {
		if len(c.warnings) == strict.MaxProblems {
			break
		}
		if best := nearest(name, missing); best != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("%s is not known: did you mean %s?", strict.Path(path, name), best))
		}
	}
	return seen
}

// nearest returns which of the known names is nearest to name, "" if none is within two letters.
func nearest(name string, known []string) (best string) {
	distance := 3
	for _, candidate := range known {
		if max(len(name)-len(candidate), len(candidate)-len(name)) >= distance { // the common case, and cheap
			continue
		}
		if d := editDistance(name, candidate); d < distance && d < len(candidate)-1 {
			best, distance = candidate, d
		}
	}
	return best
}

// editDistance returns how many bytes must be inserted, deleted, replaced or swapped with their neighbour to turn a
// into b (the optimal string alignment distance). Neither may be longer than maxComparedBytes.
func editDistance(a, b string) int {
	var rows [3][maxComparedBytes + 1]int // of the table, in turn, for as much of a as is done and each start of b
	row := &rows[0]
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last := &rows[(i+1)%3], row
		row = &rows[i%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// rules returns the rules for a config, which read what tollgate uses into c.
func (c *tenantConfig) rules() strict.Rules {
	return strict.Rules{
		"auth":        strict.MapOf(c.authRule),
		"user_groups": strict.MapOf(c.groupRule),
		"cors":        c.membersOf(strict.Rules{"allowed_origins": c.readOrigins}),
		"providers":   strict.MapOf(c.providerRule),
		"caching":     c.membersOf(c.caching.Rules()),
	}
}

// authRule returns the rule for one member of auth.
func (c *tenantConfig) authRule(name string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		add := func(wrong *strict.Problems, path string, value []byte) {
			var id string
			if strict.String(&id)(wrong, path, value); id != "" {
				c.clientIDs[name] = append(c.clientIDs[name], id)
			}
		}
		c.readMembers(wrong, path, value, strict.Rules{
			"api_key": strict.AnyString, "client_id": add, "client_secret": strict.AnyString,
			"client_ids": func(wrong *strict.Problems, path string, value []byte) {
				strict.ReadElements(wrong, path, value, add)
			},
		})
	}
}

// groupRule returns the rule for one member of user_groups.
func (c *tenantConfig) groupRule(name string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		var group userGroup
		if name == "" || len(name) > maxGroupBytes {
			wrong.Add(path, fmt.Sprintf("must have a name of 1 to %d bytes", maxGroupBytes))
			return
		}
		var limit rateLimit
		seen := c.readMembers(wrong, path, value, strict.Rules{
			"tokens":            strict.Int(&group.tokens, 0, maxAmount),
			"rate_limit":        strict.Int(&limit.requests, 0, maxRateLimit),
			"rate_limit_window": strict.Int(&limit.seconds, 1, maxAmount),
			"refill":            c.refillField(&group.refill),
		})
		if seen["rate_limit"] {
			if !seen["rate_limit_window"] {
				wrong.Add(strict.Path(path, "rate_limit_window"), "is missing beside rate_limit")
			}
			group.limit = &limit
		}
		c.groups[name] = group
		c.encoded.add(name, group)
	}
}

// refillField returns the rule for a group's refill.
func (c *tenantConfig) refillField(dst **refill) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		*dst = new(refill)
		seen := c.readMembers(wrong, path, value, strict.Rules{
			"tokens": strict.Int(&(*dst).tokens, 1, maxAmount),
			"every":  strict.Seconds(&(*dst).seconds, minRefillPeriod, maxRefillPeriod),
		})
		for _, name := range []string{"tokens", "every"} {
			if value[0] == '{' && !seen[name] {
				wrong.Add(strict.Path(path, name), "is missing")
			}
		}
	}
}

// providerRule returns the rule for one member of providers. The gateway uses the endpoints of text.
func (c *tenantConfig) providerRule(kind string) strict.Rule {
	return func(wrong *strict.Problems, path string, value []byte) {
		var chosen string
		var endpoints gateway.Endpoints
		named := false
		c.readMembers(wrong, path, value, strict.Rules{
			"default": func(wrong *strict.Problems, path string, value []byte) {
				before := len(*wrong)
				strict.String(&chosen)(wrong, path, value)
				named = len(*wrong) == before
			},
			"endpoints": strict.MapOf(func(name string) strict.Rule {
				e := gateway.NewEndpoint(name)
				endpoints = append(endpoints, e)
				if kind == "text" {
					return c.membersOf(e.TextRules(c.membersOf))
				}
				return c.membersOf(e.Rules())
			}),
		})
		first := slices.IndexFunc(endpoints, func(e *gateway.Endpoint) bool { return e.Name == chosen })
		if named && first < 0 {
			wrong.Add(strict.Path(path, "default"), "must name an endpoint")
		}
		if kind != "text" {
			return
		}
		if first > 0 {
			chosen := endpoints[first]
			endpoints = slices.Insert(slices.Delete(endpoints, first, first+1), 0, chosen)
		}
		for _, e := range endpoints {
			if e.Complete() {
				c.text = append(c.text, e)
			}
		}
	}
}

// readOrigins is the rule for the origins that may call tollgate.
func (c *tenantConfig) readOrigins(wrong *strict.Problems, path string, value []byte) {
	c.origins = make([]string, 0, 1)
	strict.ReadElements(wrong, path, value, func(wrong *strict.Problems, path string, value []byte) {
		var origin string
		strict.String(&origin)(new(strict.Problems), path, value)
		normalized, ok := normalizeOrigin(origin)
		if !ok {
			wrong.Add(path, "must be an origin such as https://app.example.com, or the only one *")
			return
		}
		c.origins = append(c.origins, normalized)
	})
	if len(c.origins) > 1 && slices.Contains(c.origins, "*") {
		wrong.Add(path, "must have * as its only entry, or not at all")
	}
}

// normalizeOrigin returns an origin as browsers spell it: in lower case and without the default port. ok is false if it
// is not a scheme http or https, a host and perhaps a port, and nothing else; * is itself.
func normalizeOrigin(origin string) (normalized string, ok bool) {
	if origin == "*" {
		return origin, true
	}
	origin = strings.ToLower(origin)
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || origin != u.Scheme+"://"+u.Host {
		return "", false
	}
	port := u.Port()
	if !validHost(u.Hostname()) || strings.HasSuffix(u.Host, ":") || port != "" && !validPort(port) {
		return "", false
	}
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		return strings.TrimSuffix(origin, ":"+port), true
	}
	return origin, true
}

// validHost reports whether host is an IP address or a name in lower-case ASCII.
func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	for i := range len(host) {
		if !strict.IsWord(host[i]) && host[i] != '.' {
			return false
		}
	}
	return host != ""
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// allowedOrigin returns the value of Access-Control-Allow-Origin for an origin, "" if it is not allowed.
func (c *tenantConfig) allowedOrigin(origin string) string {
	switch {
	case slices.Contains(c.origins, "*"):
		return "*"
	case slices.Contains(c.origins, strings.ToLower(origin)):
		return origin
	}
	return ""
}
